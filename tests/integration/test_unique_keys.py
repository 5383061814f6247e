"""Jobs with a unique_key are added once, in any number and by any number of processes."""

from __future__ import annotations

import multiprocessing
import threading
from pathlib import Path

import pytest
from helpers import db_with_app, wait_until

from balsam_lite.core import caller
from balsam_lite.core.errors import DatabaseBusy, DuplicateKey, InputError, InvalidSpec
from balsam_lite.db.engine import directories, salvage
from balsam_lite.db.manager import use
from balsam_lite.db.models import BalsamJob
from balsam_lite.db.query import select
from balsam_lite.db.store import insert, large_writes, pieces, undo, unique_keys, user_actions
from balsam_lite.launcher import dag

# The thresholds of large writes, so that 30 jobs are many.
SMALL = [
    (large_writes, "MAX_DIRECT_JOBS", 10),
    (pieces, "PAUSE_S", 0),
    (pieces, "INSERT_UNIT", 7),
    (pieces, "INSERT_PIECE_S", 0),
]


@pytest.fixture
def db(tmp_path, monkeypatch):
    for module, name, value in SMALL:
        monkeypatch.setattr(module, name, value)
    with db_with_app(tmp_path / "db") as made, use(made):
        yield made


def jobs(*keys, **fields):
    return [{"application": "a", "name": f"n{place}", "unique_key": key, **fields} for place, key in enumerate(keys)]


def stored(db, column="unique_key"):
    with db.read() as cx:
        return [row[0] for row in cx.execute(f"SELECT {column} FROM job ORDER BY id")]


def parents_of(db):
    with db.read() as cx:
        return sorted(cx.execute("SELECT parent, child FROM dependency"))


NUMBERS = [4, 30]  # in one transaction, and in pieces


@pytest.mark.parametrize("number", NUMBERS)
def test_a_key_that_exists_is_refused_with_the_job_that_has_it_and_nothing_is_added(db, number):
    insert.add_jobs(db, jobs("k3"))
    with pytest.raises(
        DuplicateKey, match=r"Job number 4: the unique_key 'k3' is that of job n0 \[[0-9a-f]{8}\] \(#1\) already"
    ):
        insert.add_jobs(db, jobs(*(f"k{n}" for n in range(number))))
    assert stored(db) == ["k3"]
    with db.read() as cx:
        assert not large_writes.is_any(cx)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_refusal_counts_the_others(db, number):
    insert.add_jobs(db, jobs("k1", "k2", "k3"))
    with pytest.raises(DuplicateKey, match=r"Job number 2: .*; 2 more of these jobs have the key of another one"):
        insert.add_jobs(db, jobs(*(f"k{n}" for n in range(number))))


@pytest.mark.parametrize("number", NUMBERS)
def test_jobs_whose_key_exists_are_skipped_and_the_others_added(db, number):
    insert.add_jobs(db, jobs("k1", "other", "k2"))
    added = insert.add_jobs(db, jobs(*(f"k{n}" for n in range(number))), on_duplicate="skip")
    assert added.number == number - 2
    assert list(added.skipped.positions) == [1, 2]
    assert added.skipped_ids == [1, 3]
    assert [added.is_new(place) for place in range(4)] == [True, False, False, True]
    names = stored(db, "name")
    assert [names[added.id_of(place) - 1] for place in (0, 3)] == ["n0", "n3"]
    assert stored(db).count("k2") == 1
    assert len(stored(db)) == number + 1


@pytest.mark.parametrize("number", NUMBERS)
def test_two_rows_of_one_key_in_one_input(db, number):
    given = jobs(*(f"k{n % (number - 2)}" for n in range(number)))
    with pytest.raises(DuplicateKey, match=rf"Job number {number - 1}: .*'k0' is that of job number 1 of the same batch"):
        insert.add_jobs(db, given)
    assert stored(db) == []
    added = insert.add_jobs(db, given, on_duplicate="skip")
    assert added.number == number - 2
    assert added.skipped_ids == [added.first, added.first + 1]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_job_without_a_key_is_added_any_number_of_times(db, number):
    for _ in range(2):
        assert insert.add_jobs(db, jobs(*[None] * number), on_duplicate="skip").number == number


@pytest.mark.parametrize("number", NUMBERS)
def test_the_job_with_the_key_takes_the_place_of_a_skipped_parent(db, number):
    insert.add_jobs(db, jobs("k0", "k1"))
    given = jobs(*(f"k{n}" for n in range(number)))
    given[1]["parents"] = [insert.Position(0)]  # a skipped child keeps the parents it has: none
    given[2]["parents"] = [insert.Position(0), insert.Position(1)]
    given[3]["parents"] = [insert.Position(2)]
    added = insert.add_jobs(db, given, on_duplicate="skip")
    assert parents_of(db) == [(1, added.id_of(2)), (2, added.id_of(2)), (added.id_of(2), added.id_of(3))]


@pytest.mark.parametrize("number", NUMBERS)
def test_errors_number_the_jobs_as_given_although_some_are_skipped(db, number):
    insert.add_jobs(db, jobs("k0"))
    given = [{**row, "workdir": f"w/{n}"} for n, row in enumerate(jobs(*(f"k{n}" for n in range(number))))]
    given[3]["workdir"] = "w/1"
    with pytest.raises(InvalidSpec, match="Job number 4: job number 2 has the workdir w/1 too"):
        insert.add_jobs(db, given, on_duplicate="skip")


def test_the_key_of_a_removed_job_is_free_and_undo_tells_that_it_is_taken(db):
    insert.add_jobs(db, jobs("a", "b"))
    user_actions.delete(db, [1, 2])
    insert.add_jobs(db, jobs("a"))
    with db.read() as cx:
        number = cx.execute("SELECT max(id) FROM action").fetchone()[0]
        (action,) = [one for one in undo.of_user(cx, caller.current().user) if one.id == number]
    assert undo.preview(db, action) == undo.Undone(1, {"key": 1})
    assert undo.take_back(db, action) == undo.Undone(1, {"key": 1})
    assert stored(db) == ["b", "a"]


def test_a_key_is_not_changed_later(db):
    (job,) = BalsamJob.objects.bulk_create(jobs("a"))
    assert job.unique_key == "a"
    job.unique_key = "b"
    with pytest.raises(InvalidSpec, match="unique_key is set when a job is added"):
        job.save()
    with pytest.raises(InvalidSpec, match="unique_key is set when a job is added"):
        BalsamJob.objects.update(unique_key=None)
    assert stored(db) == ["a"]


def test_a_copy_of_a_job_has_no_key(db):
    (job,) = BalsamJob.objects.bulk_create(jobs("a"))
    dag.clone(job).save()
    assert stored(db) == ["a", None]


def test_objects_of_skipped_jobs_become_the_jobs_that_are_there(db):
    made = BalsamJob(name="first", application="a", unique_key="x")
    made.save()
    again = [BalsamJob(name=name, application="a", unique_key=key) for name, key in (("new", "y"), ("second", "x"))]
    found = BalsamJob.objects.bulk_create(again, on_duplicate="skip")
    assert [job.name for job in found] == ["new"]
    assert found.skipped == [made.id]
    assert again[1] == made
    assert (again[1].id, again[1].name, again[1].job_id) == (made.id, "first", made.job_id)
    with pytest.raises(DuplicateKey):
        BalsamJob.objects.bulk_create([BalsamJob(name="third", application="a", unique_key="x")])


def test_add_job_returns_the_job_that_has_the_key(db):
    first = dag.add_job("one", application="a", unique_key="x")
    again = dag.add_job("two", application="a", unique_key="x", on_duplicate="skip", parents=[first])
    assert (again, again.name, again.id) == (first, "one", first.id)
    assert parents_of(db) == []
    with pytest.raises(DuplicateKey, match="'x' is that of job one"):
        dag.add_job("two", application="a", unique_key="x")
    with pytest.raises(DuplicateKey), dag.transaction():
        dag.add_job("two", application="a", unique_key="x")
    assert len(stored(db)) == 1


def test_a_transaction_of_the_dag_does_not_skip(db):
    with pytest.raises(InputError, match="not possible inside"), dag.transaction():
        BalsamJob.objects.bulk_create(jobs("a"), on_duplicate="skip")
    with pytest.raises(InvalidSpec, match="must be 'refuse' or 'skip', not 'ignore'"):
        BalsamJob.objects.bulk_create(jobs("a"), on_duplicate="ignore")


def test_a_key_can_be_looked_up(db):
    insert.add_jobs(db, jobs("a", "b", None))
    assert [job.unique_key for job in BalsamJob.objects.filter(unique_key="b")] == ["b"]
    assert BalsamJob.objects.filter(unique_key=None).count() == 1
    with db.read() as cx:
        plan = str(cx.execute("EXPLAIN QUERY PLAN SELECT id FROM job WHERE unique_key = 'b'").fetchall())
        assert "job_unique_key" in plan
        assert select.job_ids(cx, {"unique_key__startswith": "b"}) == [2]


@pytest.mark.parametrize("key", [7, "a\0b", "x" * 1001])
def test_what_is_no_key_is_refused(db, key):
    with pytest.raises(InvalidSpec, match="job unique_key must"):
        insert.add_jobs(db, jobs(key))


# --- several writers --------------------------------------------------------------------------------------------------


def test_while_jobs_with_keys_are_hidden_others_with_keys_wait(db, monkeypatch, caplog):
    monkeypatch.setattr(unique_keys, "_REPORT_S", 0.0)
    begun, may_end = threading.Event(), threading.Event()
    advance = insert.Insertion.advance

    def slowly(self):
        begun.set()
        assert may_end.wait(60)
        return advance(self)

    monkeypatch.setattr(insert.Insertion, "advance", slowly)
    results = []
    many = threading.Thread(target=lambda: insert.add_jobs(db, jobs(*(f"k{n}" for n in range(30)))))
    many.start()
    assert begun.wait(60)
    insert.add_jobs(db, jobs(None))  # one without a key does not wait
    with pytest.raises(DatabaseBusy, match="adding 30 jobs with unique keys"), db.write():
        insert.add_jobs(db, jobs("k5"))
    few = threading.Thread(target=lambda: results.append(insert.add_jobs(db, jobs("k5", "new"), on_duplicate="skip")))
    few.start()
    wait_until(lambda: "is adding 30 jobs with unique keys; 0 are done. This insert waits for it." in caplog.text)
    assert few.is_alive()
    may_end.set()
    many.join(60)
    few.join(60)
    assert results[0].number == 1
    assert len(results[0].skipped_ids) == 1
    keys = stored(db)
    assert len(keys) == len({*keys}) == 32  # 30, one without, "new"


def test_the_keys_of_an_insert_that_died_are_free(db):
    spool = insert._Spool()
    for chunk in insert._checked(jobs(*(f"k{n}" for n in range(30))), None, spool.parents):
        spool.put(chunk)
    dead = insert.Insertion(db, spool, insert._resolved(spool, []))
    assert dead.advance()
    with db.write() as cx:
        large_writes.give_up(cx, dead.hidden.write)  # as others do for a dead process
    assert insert.add_jobs(db, jobs("k0")).number == 1
    assert stored(db) == ["k0"]


def test_a_key_that_undo_gives_back_in_the_middle_ends_the_insert(db):
    insert.add_jobs(db, jobs("k29"))
    user_actions.delete(db, [1])
    spool = insert._Spool()
    for chunk in insert._checked(jobs(*(f"k{n}" for n in range(30))), None, spool.parents):
        spool.put(chunk)
    insertion = insert.Insertion(db, spool, insert._resolved(spool, []))
    assert insertion.advance()
    with db.read() as cx:
        action = undo.find(cx, cx.execute("SELECT max(id) FROM action").fetchone()[0])
    undo.take_back(db, action)
    with pytest.raises(DuplicateKey, match="'k29' has meanwhile become that of job n0"):
        insertion.carry_out()
    assert stored(db) == ["k29"]


def _writer(directory: str, seed: int, start) -> None:
    for module, name, value in SMALL:
        setattr(module, name, value)
    db = directories.open_database(directory)
    start.wait()
    for turn in range(6):
        number = 25 if (turn + seed) % 2 else 3
        keys = [f"k{(seed * 7 + turn * 5 + n) % 60}" for n in range(number)]
        insert.add_jobs(db, jobs(*keys), on_duplicate="skip")
    db.close()


def test_processes_that_add_the_same_keys_at_once_add_each_once(db, tmp_path):
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    writers = [context.Process(target=_writer, args=(str(Path(db.directory)), seed, start)) for seed in range(4)]
    for one in writers:
        one.start()
    start.set()
    for one in writers:
        one.join(120)
    assert [one.exitcode for one in writers] == [0] * 4
    keys = stored(db)
    assert len(keys) == len({*keys})
    assert unique_keys.find_duplicates(db, [[(0, keys[0])]], "skip", 1)


def test_keys_survive_salvage(db, tmp_path):
    insert.add_jobs(db, jobs("a", None, "b"))
    db.close()
    salvage.salvage(db.directory, str(tmp_path / "saved"))
    saved = directories.open_database(str(tmp_path / "saved"))
    assert stored(saved) == ["a", None, "b"]
    with pytest.raises(DuplicateKey):
        insert.add_jobs(saved, jobs("b"))
    saved.close()
