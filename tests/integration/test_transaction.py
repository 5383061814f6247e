"""Whole graphs in one transaction: `parents` in a batch, `add_dependencies`, `with dag.transaction()`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from contextlib import nullcontext

import pytest
from helpers import Slots, wait_until

from balsam_lite.api import Job
from balsam_lite.core.errors import (
    DependencyCycle,
    DuplicateDependency,
    InputError,
    InvalidSpec,
    StateError,
    UnknownApp,
    UnknownJob,
)
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.query import queries
from balsam_lite.db.store import apps, claims, leases, user_actions
from balsam_lite.launcher import dag
from balsam_lite.launcher.executor import BalsamExecutor


@pytest.fixture(params=["local", "shared"])
def db(tmp_path, request):
    database = directories.create(str(tmp_path / "db"), request.param)
    with database.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    with use(database):
        yield database
    database.close()


def edges(db):
    """Return (name of the parent, name of the child) of all dependencies."""
    with db.read() as cx:
        names = dict(cx.execute("SELECT id, name FROM job"))
        return sorted((names[parent], names[child]) for parent, child in queries.edges(cx))


def states(db):
    return {job.name: job.state for job in BalsamJob.objects.all()}


def names(db):
    return [job.name for job in BalsamJob.objects.all()]


def take(db):
    """Return the names of the jobs that a launcher would start now."""
    with db.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        taken = claims.take(cx, lease, Slots(1000), claims.Filter(serial_only=False), 1)
        return sorted(claim.name for claim in taken.to_run)


# --- a graph in one bulk_create ---------------------------------------------------------------------------------------


def test_a_batch_names_its_parents_by_position_uuid_object_and_number(db):
    old = dag.add_job(name="old", application="a")
    known = str(uuid.uuid4())
    first = BalsamJob(name="first", application="a")
    last = BalsamJob(name="last", application="a")
    batch = [
        {"name": "late", "application": "a", "parents": [dag.Position(4)]},
        first,
        {"name": "known", "application": "a", "job_id": known.upper(), "parents": [first, old.id, old.job_id[:9]]},
        {"name": "next", "application": "a", "parents": [uuid.UUID(known), dag.Position(1), first]},
        last,
    ]
    made = BalsamJob.objects.bulk_create(batch)
    assert [job.name for job in made] == ["late", "first", "known", "next", "last"]
    assert edges(db) == sorted([("last", "late"), ("first", "known"), ("old", "known"), ("known", "next"), ("first", "next")])
    assert states(db)["late"] == states(db)["next"] == "AWAITING_PARENTS"
    assert first.state == "CREATED" and BalsamJob.objects.get(name="next").unfinished_parents == 2


def test_a_job_made_without_saving_may_have_parents_of_the_same_batch(db):
    one = dag.add_job(name="one", application="a", save=False)
    two = dag.add_job(name="two", application="a", save=False, parents=[one])
    BalsamJob.objects.bulk_create([two, one])
    assert edges(db) == [("one", "two")]
    assert two.state == "AWAITING_PARENTS" and f'"{one.job_id}"' in repr(two).replace("'", '"')
    alone = dag.add_job(name="alone", application="a", save=False, parents=[BalsamJob(application="a")])
    with pytest.raises(UnknownJob):
        alone.save()


@pytest.mark.parametrize(
    ("parents", "error", "words"),
    [
        ([dag.Position(2)], DependencyCycle, "Job number 3: a job cannot wait for itself"),
        ([dag.Position(3)], InvalidSpec, "Job number 3: there is no position 3 in this batch of 3"),
        ([dag.Position(-1)], InvalidSpec, "Job number 3: there is no position -1"),
        ([dag.Position(1.0)], InvalidSpec, "no position 1.0"),
        ([dag.Position(True)], InvalidSpec, "no position True"),
        ([99], UnknownJob, "Job number 3 cannot have that parent: There is no job #99"),
        ([str(uuid.UUID(int=5))], UnknownJob, "Job number 3 cannot have that parent"),
        ([""], UnknownJob, "Job number 3 cannot have that parent"),
        ([True], InvalidSpec, "Job number 3: .*not True"),
        ([None], InvalidSpec, "Job number 3: .*not None"),
        ([1.5], InvalidSpec, "Job number 3: .*not 1.5"),
        (dag.Position(1), InvalidSpec, "Job number 3: parents must be a list"),
        ("12345678", InvalidSpec, "Job number 3: parents must be a list"),
        (7, InvalidSpec, "Job number 3: parents must be a list"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_parent_that_makes_no_sense_is_refused_with_the_job_and_nothing_is_added(db, parents, error, words, inside):
    batch = [{"application": "a"}, {"application": "a"}, {"application": "a", "parents": parents}]
    if inside and "a job cannot" in words:
        words = "cannot wait for itself"
    with pytest.raises(error, match=words), dag.transaction() if inside else nullcontext():
        BalsamJob.objects.bulk_create(batch)
    assert names(db) == []


def test_a_hundred_thousand_jobs_with_a_cycle_at_the_end_write_nothing(tmp_path):
    database = directories.create(str(tmp_path / "db"))
    with database.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    count = 100_000
    batch = ({"application": "a", "parents": [dag.Position(n - 1)] if n else []} for n in range(count - 2))
    last = [
        {"application": "a", "parents": [dag.Position(count - 1)]},
        {"application": "a", "parents": [dag.Position(count - 2)]},
    ]
    started = time.process_time()
    with use(database), pytest.raises(DependencyCycle, match=r"Job number (99999|100000): ") as caught:
        BalsamJob.objects.bulk_create(job for part in (batch, last) for job in part)
    assert time.process_time() - started < 60  # quadratic would be hours
    assert caught.value.hint == "2 jobs would wait for each other: jobs number 99999, 100000."
    with use(database):
        assert BalsamJob.objects.count() == 0
    database.close()


# --- many dependencies at once ----------------------------------------------------------------------------------------


def test_many_dependencies_are_added_at_once_however_the_jobs_are_given(db):
    a, b, c, d = (dag.add_job(name=name, application="a") for name in "abcd")
    dag.add_dependencies([(a, b), (b.id, c.job_id), (c.job_id[:8], BalsamJob.objects.filter(name="d"))])
    assert edges(db) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert b.state == "AWAITING_PARENTS" and a.state == "CREATED"
    dag.add_dependencies([])
    for no_pair in (a, "ab", (a,), (a, b, c), None, 7):
        with pytest.raises(InputError, match="Dependency number 2: must be a pair"):
            dag.add_dependencies([(a, d), no_pair])
    assert len(edges(db)) == 3


def test_one_bad_dependency_of_many_writes_none(db):
    a, b, c, d = (dag.add_job(name=name, application="a") for name in "abcd")
    running, held = dag.add_job(name="running", application="a"), dag.add_job(name="held", application="a")
    dag.add_dependency(a, b)
    with db.write() as cx:
        cx.execute("UPDATE job SET state = 'RUN_DONE', attempt = 1 WHERE id = ?", (running.id,))
        cx.execute("UPDATE job SET lease = 1 WHERE id = ?", (held.id,))
    for bad, error, words in [
        ((b, a), DependencyCycle, "circular"),
        ((d, c), DependencyCycle, "circular"),
        ((c, c), DependencyCycle, "itself"),
        ((a, b), DuplicateDependency, f"#{b.id} waits for job #{a.id}"),
        ((c, d), DuplicateDependency, f"#{d.id} waits for job #{c.id}"),
        ((a, 99), UnknownJob, "99"),
        ((a, "ffffffff"), UnknownJob, "ffffffff"),
        ((a, running), StateError, f"already started[^#]*#{running.id};"),
        ((a, held), StateError, f"being prepared[^#]*#{held.id};"),
    ]:
        with pytest.raises(error, match=words):
            dag.add_dependencies([(c, d), bad])
        with pytest.raises(error, match=words), dag.transaction():
            dag.add_dependencies([(dag.add_job(name="never", application="a"), d), (c, d), bad])
    assert edges(db) == [("a", "b")] and "never" not in names(db)


def test_a_cycle_through_old_and_new_dependencies_is_found(db):
    a, b, c, d = (dag.add_job(name=name, application="a") for name in "abcd")
    dag.add_dependencies([(a, b), (c, d)])
    with pytest.raises(DependencyCycle, match="4 jobs would wait for each other"):
        dag.add_dependencies([(b, c), (d, a)])
    with pytest.raises(DependencyCycle), dag.transaction():  # through a new job
        dag.add_dependency(dag.add_job(name="new", application="a", parents=[b]), a)
    assert edges(db) == [("a", "b"), ("c", "d")] and "new" not in names(db)


# --- a block ----------------------------------------------------------------------------------------------------------


def test_a_block_is_written_whole_at_its_end(db):
    old = dag.add_job(name="old", application="a")
    late = dag.add_job(name="late", application="a")
    with dag.transaction():
        a = dag.add_job(name="a", application="a", tags={"x": "1"}, data={"deep": [1]}, parents=[old])
        b = dag.clone(a, name="b")
        b.save()
        c = BalsamJob(name="c", application="a", environ_vars="X=1:Y=2")
        c.save()
        many = BalsamJob.objects.bulk_create(
            [{"name": "d", "application": "a"}, {"name": "e", "application": "a", "parents": [dag.Position(0), a]}]
        )
        f = dag.add_job(name="f", application="a", parents=[a, b.job_id, c.job_id[:10]])
        dag.add_dependency(a, b)
        dag.add_dependencies([(b, c), (c.job_id, late), (old.id, late)])
        g = dag.add_job(name="g", application="a")
        g.set_parents([f])
        g.set_parents([a, old])
        assert a.id is None and len(a.job_id) == 36 and a.state == "CREATED"
        assert names(db) == ["old", "late"] and not many and edges(db) == []
    assert names(db) == ["old", "late", "a", "b", "c", "d", "e", "f", "g"]
    assert edges(db) == sorted(
        [("old", "a"), ("a", "b"), ("b", "c"), ("c", "late"), ("old", "late"), ("d", "e"), ("a", "e"),
         ("a", "f"), ("b", "f"), ("c", "f"), ("a", "g"), ("old", "g")]
    )  # fmt: skip
    assert [job.name for job in many] == ["d", "e"]
    assert a.id == 3 and a.state == b.state == late.state == "AWAITING_PARENTS"
    stored = BalsamJob.objects.get(name="a")
    assert stored == a and stored.tags == {"x": "1"} and stored.data == {"deep": [1]}
    assert BalsamJob.objects.filter(tags__x="1").count() == 2
    assert BalsamJob.objects.get(name="c").environ_vars == {"X": "1", "Y": "2"}
    assert take(db) == ["d", "old"]


def test_a_block_stores_a_job_as_it_was_when_it_was_saved_last(db):
    with dag.transaction():
        job = dag.add_job(name="a", application="a", data={"n": 1})
        job.data["n"] = 2
        job.save()
        job.data["n"] = 3
        job.description = "later"
    assert BalsamJob.objects.get().data == {"n": 2} and BalsamJob.objects.get().description == ""
    job.save()
    assert BalsamJob.objects.get().data == {"n": 3} and BalsamJob.objects.get().description == "later"


def test_an_exception_writes_nothing_and_the_objects_can_be_saved_later(db):
    jobs = []

    def block():
        with dag.transaction():
            jobs.append(dag.add_job(name="a", application="a", args="x"))
            dag.add_dependency(jobs[0], dag.add_job(name="b", application="a"))
            raise KeyError

    with pytest.raises(KeyError):
        block()
    (job,) = jobs
    assert names(db) == [] and job.id is None
    job.save()
    assert names(db) == ["a"] and edges(db) == [] and BalsamJob.objects.get().args == "x"
    dag.add_job(name="c", application="a")
    assert names(db) == ["a", "c"]


def test_of_nested_blocks_the_outermost_writes_and_a_failed_inner_one_is_dropped(db):
    def inner(a, c, old):
        with dag.transaction():
            c.save()
            dag.add_dependencies([(c, a), (c, old)])
            a.description = "changed"
            a.save()
            raise KeyError

    old = dag.add_job(name="old", application="a")
    c = BalsamJob(name="c", application="a")
    with dag.transaction():
        a = dag.add_job(name="a", application="a")
        with dag.transaction():
            b = dag.add_job(name="b", application="a")
            dag.add_dependency(a, b)
        assert names(db) == ["old"]
        with pytest.raises(KeyError):
            inner(a, c, old)
        with pytest.raises(InvalidSpec, match="Job number 2"):
            BalsamJob.objects.bulk_create([{"name": "d", "application": "a"}, {"application": "a", "num_nodes": 0}])
        with pytest.raises(DuplicateDependency):
            dag.add_dependencies([(b, dag.add_job(name="e", application="a")), (a, b)])
        dag.add_dependency(a, old)
    assert names(db) == ["old", "a", "b", "e"]
    assert edges(db) == [("a", "b"), ("a", "old")]
    assert c.id is None and a.id == 2 and BalsamJob.objects.get(name="a").description == ""
    c.save()
    assert c.id == 5


def test_the_id_that_a_job_has_in_a_block_is_the_one_that_it_keeps(db, monkeypatch):
    from balsam_lite.core import field_specs

    dag.add_job(name="old", application="a")
    taken = BalsamJob.objects.get().job_id
    drawn = [taken[:8] + str(uuid.UUID(int=n))[8:] for n in (1, 2)]
    drawn.append(str(uuid.UUID("12345678" * 4)))
    drawn += [drawn[-1][:8] + drawn[0][8:], str(uuid.UUID("87654321" * 4))]
    monkeypatch.setattr(field_specs, "new_job_id", lambda: drawn.pop(0))
    with dag.transaction():
        seen = [dag.add_job(name=name, application="a").job_id for name in "ab"]
    assert [job.job_id for job in BalsamJob.objects.exclude(name="old")] == seen
    assert [job_id[:8] for job_id in seen] == ["12345678", "87654321"]


def test_a_cycle_in_a_block_writes_nothing(db):
    def block():
        with dag.transaction():
            jobs = [dag.add_job(name=str(n), application="a") for n in range(5)]
            dag.add_dependencies(zip(jobs, jobs[1:]))
            dag.add_dependency(jobs[-1], jobs[0])

    with pytest.raises(DependencyCycle, match="circular"):
        block()
    assert names(db) == []


def test_bad_jobs_and_dependencies_are_refused_where_they_are_added(db):
    with dag.transaction():
        a, b = (dag.add_job(name=name, application="a") for name in "ab")
        dag.add_dependency(a, b)
        with pytest.raises(DuplicateDependency):
            dag.add_dependency(a, b)
        with pytest.raises(DuplicateDependency):
            dag.add_dependency(a.job_id, b.job_id[:12])
        with pytest.raises(DependencyCycle):
            dag.add_dependency(a, a)
        with pytest.raises(UnknownApp):
            dag.add_job(name="c", application="none")
        with pytest.raises(UnknownJob):
            dag.add_job(name="c", application="a", parents=["ffffffff"])
        with pytest.raises(UnknownJob):
            dag.add_dependency(BalsamJob(application="a"), b)
        with pytest.raises(InvalidSpec):
            BalsamJob(application="a", num_nodes=-1).save()
    assert names(db) == ["a", "b"] and edges(db) == [("a", "b")]
    with pytest.raises(UnknownJob, match=r"Job number 1 .*77"), dag.transaction():
        dag.add_job(name="c", application="a", parents=[77])
    assert names(db) == ["a", "b"]


def test_only_additions_are_possible_inside(db):
    old = dag.add_job(name="old", application="a")
    with dag.transaction():
        new = dag.add_job(name="new", application="a")
        old.description = "x"
        for refused in (
            lambda: dag.kill(old),
            lambda: dag.kill(new),
            lambda: new.update_state("JOB_FINISHED"),
            new.delete,
            new.refresh_from_db,
            new.get_parents,
            lambda: old.update_state("JOB_FINISHED"),
            old.save,
            old.delete,
            lambda: old.set_parents([]),
            lambda: BalsamJob.batch_update_state([old.job_id], "JOB_FINISHED"),
            lambda: BalsamJob.objects.update(args="1"),
            lambda: user_actions.rerun(db, [old.id]),
            lambda: BalsamJob.objects.all().delete(),
            lambda: BalsamJob.objects.get_or_create(name="new", application="a"),
            lambda: Job(workdir="w", app_id="a", site_name="x").save(),
            lambda: Job.objects.bulk_create([]),
            lambda: BalsamExecutor(application="a").submit("x"),
        ):
            with pytest.raises((InputError, UnknownJob), match=r"with dag.transaction\(\)"):
                refused()
        assert BalsamJob.objects.get(name="old").state == "CREATED"
        dag.add_app("later", "true")
    assert names(db) == ["old", "new"] and old.description == "x"
    old.save()
    assert dag.kill(new) == 1


def test_a_block_is_of_one_db(db, tmp_path):
    other = directories.create(str(tmp_path / "other"))
    with dag.transaction():
        dag.add_job(name="a", application="a")
        with use(other), pytest.raises(InputError, match="other"):
            BalsamJob.objects.bulk_create([{"name": "b"}])
    assert names(db) == ["a"]
    other.close()


def test_a_template_and_a_child_are_added_in_a_block(db, monkeypatch):
    one = dag.add_job(name="one", workflow="w", application="a")
    dag.add_job(name="two", workflow="w", application="a", parents=[one])
    monkeypatch.setenv("BALSAM_JOB_ID", one.job_id)
    with dag.transaction():
        copies = dag.wf_from_template("w", "v")
        dag.spawn_child(name="child")
        assert not copies
    assert edges(db) == [("one", "child"), ("one", "two"), ("one", "two")]
    assert [job.name for job in copies] == ["one", "two"]


def test_each_thread_has_its_own_block(db):
    inside, done = threading.Event(), threading.Event()

    def other():
        assert inside.wait(30)
        dag.add_job(name="direct", application="a")
        with dag.transaction():
            dag.add_job(name="own", application="a")
        db.close()
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    with dag.transaction():
        dag.add_job(name="mine", application="a")
        inside.set()
        assert done.wait(30)
        assert names(db) == ["direct", "own"]
    thread.join()
    assert names(db) == ["direct", "own", "mine"]


def test_two_threads_write_their_blocks_whole(db):
    def add(prefix):
        with dag.transaction():
            jobs = [dag.add_job(name=f"{prefix}{n}", application="a") for n in range(50)]
            dag.add_dependencies(zip(jobs, jobs[1:]))
        db.close()

    threads = [threading.Thread(target=add, args=(name,)) for name in "pq"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = names(db)
    assert len(found) == 100 and {found[0][0], found[50][0]} == {"p", "q"}
    assert [name[0] for name in found] == [found[0][0]] * 50 + [found[50][0]] * 50
    assert len(edges(db)) == 98


def test_a_forked_child_does_not_write_its_parents_block(db):
    with dag.transaction():
        dag.add_job(name="mine", application="a")
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            assert status == 0
            assert names(db) == ["direct", "own"]
        else:
            dag.add_job(name="direct", application="a")
            with dag.transaction():
                dag.add_job(name="own", application="a")
    if not child:
        os._exit(0)
    assert names(db) == ["direct", "own", "mine"]


def test_a_killed_process_leaves_all_of_a_block_or_nothing(db, tmp_path):
    code = """
import os, sys
from balsam_lite.launcher import dag
for n in range(10**6):
    with dag.transaction():
        jobs = [dag.add_job(name=f"{n}", application="a") for _ in range(20)]
        dag.add_dependencies(zip(jobs, jobs[1:]))
"""
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "BALSAM_DB_PATH": db.directory})
    try:
        wait_until(lambda: BalsamJob.objects.count() >= 40, 60)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    blocks = BalsamJob.objects.count() // 20
    assert BalsamJob.objects.count() == 20 * blocks and len(edges(db)) == 19 * blocks
    counts = {job.name: 0 for job in BalsamJob.objects.all()}
    assert len(counts) == blocks


def test_no_launcher_takes_a_child_before_its_parent_while_a_block_is_open(db):
    with dag.transaction():
        a, b = (dag.add_job(name=name, application="a") for name in "ab")
        assert take(db) == []
        dag.add_dependency(a, b)
    assert take(db) == ["a"]
