"""Which job a word names: a number, a prefix of an id, or a name; in every command and in Python."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from helpers import Balsam

from balsam_lite.core import field_specs
from balsam_lite.core.errors import AmbiguousJobId, DuplicateJobId, UnknownJob
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import apps, insert
from balsam_lite.launcher import dag

IDS = [f"{short}-0000-4000-8000-000000000000" for short in ("2aaaaaaa", "bbbbbbbb", "bbbccccc", "dddddddd", "eeeeeeee")]


pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """Add five jobs: #1 and #2 have unique names, #3 and #4 share one, #5 is called `bbbb`."""
    made = directories.create(str(tmp_path / "db"))
    with made.write() as cx:
        apps.add_app(cx, {"name": "say", "executable": "echo Hello,"})
    names = ("prepare", "run 7", "twice", "twice", "bbbb")
    insert.add_jobs(
        made, [{"name": name, "job_id": one, "workflow": "w", "application": "say"} for name, one in zip(names, IDS)]
    )
    yield made
    made.close()


def found(db: Database, word: str) -> int:
    with db.read() as cx:
        return queries.find_job(cx, word)


def field(db: Database, number: int, name: str) -> Any:
    with db.read() as cx:
        return queries.job(cx, number)[name]


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("1", 1), ("#1", 1), ("#2", 2), ("01", 1), ("2a", 1), ("2AAA", 1), ("bbbbb", 2), ("bbbc", 3), ("prepare", 1),
        ("run 7", 2), (IDS[3], 4), (IDS[3].upper(), 4), ("dddddddd-00", 4), (" d ", 4),
    ],
)  # fmt: skip
def test_a_word_that_fits_one_job_means_it(db: Database, word: str, number: int) -> None:
    assert found(db, word) == number


@pytest.mark.parametrize(
    ("word", "listed"),
    [
        ("2", {"'#1'  2aaaaaaa  prepare  w  CREATED  (by its id)", "'#2'  bbbbbbbb  run 7  w  CREATED  (by its number)"}),
        ("bbbb", {"'#2'  bbbbbbbb  run 7  w  CREATED  (by its id)", "'#5'  eeeeeeee  bbbb  w  CREATED  (by its name)"}),
        ("twice", {"'#3'  bbbccccc  twice  w  CREATED  (by its name)", "'#4'  dddddddd  twice  w  CREATED  (by its name)"}),
        ("bbb", {"'#2'  bbbbbbbb  run 7  w  CREATED  (by its id)", "'#3'  bbbccccc  twice  w  CREATED  (by its id)"}),
    ],
)  # fmt: skip
def test_a_word_that_fits_several_jobs_is_refused_with_all_of_them_listed(db: Database, word: str, listed: set[str]) -> None:
    with pytest.raises(AmbiguousJobId) as caught:
        found(db, word)
    assert {line.strip() for line in str(caught.value).splitlines()} >= listed
    assert "by its number in quotes, such as '#" in str(caught.value)


@pytest.mark.parametrize(
    "word", ["", " ", "#", "#99", "99", "9" * 30, "#" + "9" * 30, "nosuch", "prep", "%", "é", "#x", "-1", "f'"]
)
def test_a_word_that_fits_no_job_is_not_found(db: Database, word: str) -> None:
    with pytest.raises(UnknownJob):
        found(db, word)


def test_a_job_that_fits_a_word_in_two_ways_is_meant(db: Database) -> None:
    (number,) = insert.add_jobs(
        db, [{"name": "6", "application": "say", "job_id": f"6{'f' * 7}-0000-4000-8000-000000000000"}]
    ).ids
    assert number == 6
    assert found(db, "6") == 6


def test_a_whole_uuid_is_an_id_though_a_job_is_called_so(db: Database) -> None:
    insert.add_jobs(db, [{"name": IDS[0], "application": "say"}])
    assert found(db, IDS[0]) == 1


def test_of_very_many_candidates_ten_are_listed(db: Database) -> None:
    insert.add_jobs(db, [{"name": "many", "application": "say"}] * 12)
    with pytest.raises(AmbiguousJobId) as caught:
        found(db, "many")
    assert str(caught.value).count("(by its name)") == 10
    assert "…" in str(caught.value)


# --- every command ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["#2", "bbbbb", "run 7"])
def test_every_command_takes_a_number_a_beginning_of_an_id_or_a_name(balsam: Balsam, db: Database, word: str) -> None:
    for words in (
        ("modify", word, "priority", "5"), ("modify", word, "state", "FAILED"), ("rerun", "--id", word, "--yes"),
        ("dep", "prepare", word), ("killjob", "--id", word, "--yes"),
        ("job", "--name", "x", "--workflow", "w", "--app", "say", "--parent", word, "--yes"),
        ("mkchild", "--parent", word, "--name", "y", "--app", "say", "--yes"),
        ("job", "create", "-a", "say", "-w", "there", "-pid", word, "--yes"),
        ("job", "ls", "--id", word), ("job", "modify", "--id", word, "--state", "CREATED"),
    ):  # fmt: skip
        code, _, err = balsam(*words)
        assert (code, words, err if code else "") == (0, words, "")
    assert (field(db, 2, "priority"), field(db, 2, "state")) == (5, "AWAITING_PARENTS")
    for words in (("ls", "--id", word, "--json"), ("job", "ls", "--id", word, "--json")):
        assert [one["id"] for one in json.loads(balsam(*words)[1])] == [2]
    with db.read() as cx:
        assert queries.edges(cx) == [(1, 2), (2, 6), (2, 7), (2, 8)]
    assert balsam("rm", "jobs", "--id", word, "--force")[0] == 0
    assert balsam("ls", "--id", word, "--json") == (0, "[]\n", "")


@pytest.mark.parametrize(("word", "code"), [("2", 2), ("bbbb", 2), ("twice", 2), ("nosuch", 3), ("#99", 3), ("", 3)])
def test_a_command_on_one_job_changes_nothing_where_the_word_fits_none_or_several(
    balsam: Balsam, db: Database, word: str, code: int
) -> None:
    for words in (
        ("modify", word, "priority", "5"), ("rerun", "--id", word, "--yes"), ("dep", "prepare", word), ("dep", word, "prepare"),
        ("killjob", "--id", word, "--yes"), ("killjob", "--id", "prepare", word, "--yes"),
        ("job", "--name", "x", "--workflow", "w", "--app", "say", "--parent", word, "--yes"),
        ("mkchild", "--parent", word or " ", "--name", "y", "--app", "say", "--yes"),
    ):  # fmt: skip
        expected = 2 if "--id" in words and not word else code  # an empty condition, as of an unset variable
        assert (words, balsam(*words)[:2]) == (words, (expected, ""))
    with db.read() as cx:
        assert queries.edges(cx) == []
        assert select.count_states(cx) == {"CREATED": 5}


def test_ls_shows_all_that_a_word_fits(balsam: Balsam) -> None:
    def numbers(*words: str) -> list[int]:
        return [one["id"] for one in json.loads(balsam("ls", "--json", *words)[1])]

    assert numbers("--id", "2") == [1, 2]
    assert numbers("--id", "bbbb") == [2, 5]
    assert numbers("--id", "twice") == [3, 4]
    assert numbers("--id", "#2", "--id", "prepare") == [1, 2]
    assert numbers("--id", "#2", "--id", "prepare", "--name", "run") == [2]
    assert balsam("ls", "--id", "")[0] == 2  # of an unset variable: not everything


def test_thousands_of_jobs_can_be_named_at_once(balsam: Balsam, db: Database) -> None:
    with db.read() as cx:
        many = {"which": [*(f"#{n}" for n in range(2, 5000)), "prepare"]}
        assert select.job_ids(cx, many) == [1, 2, 3, 4, 5]


def test_digits_are_the_number_for_the_commands_of_the_workshop(balsam: Balsam, db: Database) -> None:
    for words in (("job", "ls", "--json", "--id", "2"), ("job", "ls", "--json", "--id", "2", "--id", "#2")):
        assert [one["id"] for one in json.loads(balsam(*words)[1])] == [2]
    assert [one["id"] for one in json.loads(balsam("job", "ls", "--json", "--id", "2", "--id", "prepare")[1])] == [1, 2]
    assert balsam("job", "modify", "--id", "2", "--state", "FAILED")[0] == 0
    assert balsam("job", "create", "-a", "say", "-w", "there", "-pid", "4", "-pid", "prepare", "--yes")[0] == 0
    assert (field(db, 1, "state"), field(db, 2, "state")) == ("CREATED", "FAILED")
    with db.read() as cx:
        assert queries.edges(cx) == [(1, 6), (4, 6)]


def test_the_commands_of_the_workshop_change_nothing_where_a_word_fits_none_or_several(balsam: Balsam, db: Database) -> None:
    for word, code in (("bbbb", 2), ("twice", 2), ("nosuch", 3), ("", 3)):
        for words in (
            ("job", "modify", "--id", "1", "--id", word, "--state", "FAILED"), ("job", "rm", "--id", word, "--yes"),
            ("job", "create", "-a", "say", "-w", "there", "-pid", word, "--yes"),
        ):  # fmt: skip
            is_empty_option = not word and "--id" in words  # as of an unset variable
            assert (words, balsam(*words)[:2]) == (words, (2 if is_empty_option else code, ""))
    with db.read() as cx:
        assert select.count_states(cx) == {"CREATED": 5}


def test_python_takes_the_same_words_and_a_number_is_the_number(db: Database) -> None:
    with use(db):
        for word in ("#2", "bbbbb", "run 7", 2, uuid.UUID(IDS[1])):
            assert dag.clone(word).name == "run 7"
            job = dag.add_job("child", application="say", parents=[word])
            assert job.get_parents_by_id() == [IDS[1]]
            job.set_parents(["prepare", word])
            assert job.get_parents_by_id() == [IDS[0], IDS[1]]
        with pytest.raises(AmbiguousJobId, match="'#1'"):
            dag.kill("2")
        assert dag.kill(2) == 6
        assert BalsamJob.objects.get(id=1).state == "CREATED"


# --- ids that users choose --------------------------------------------------------------------------------------------

TAKEN, ALIKE, OWN = IDS[0], f"{IDS[0][:8]}-1111-4111-8111-111111111111", "0badcafe-0000-4000-8000-000000000000"


def adders() -> dict[str, Callable[[str], object]]:
    """Return the ways to add a job with a given id."""

    def in_a_block(job_id: str) -> None:
        with dag.transaction():
            dag.add_job("x", application="say", job_id=job_id).save()

    def dict_in_a_block(job_id: str) -> None:
        with dag.transaction():
            BalsamJob.objects.bulk_create([{"name": "x", "application": "say", "job_id": job_id}])

    return {
        "add_job": lambda job_id: dag.add_job("x", application="say", job_id=job_id),
        "save": lambda job_id: BalsamJob(name="x", application="say", job_id=uuid.UUID(job_id)).save(),
        "create": lambda job_id: BalsamJob.objects.create(name="x", application="say", job_id=job_id),
        "objects": lambda job_id: BalsamJob.objects.bulk_create(
            [BalsamJob(name="y", application="say"), BalsamJob(name="x", application="say", job_id=job_id)]
        ),
        "dicts": lambda job_id: BalsamJob.objects.bulk_create(
            [{"name": "y", "application": "say"}, {"name": "x", "application": "say", "job_id": job_id}]
        ),
        "clone": lambda job_id: dag.clone(2, name="x", job_id=job_id).save(),
        "block": in_a_block,
        "dict in a block": dict_in_a_block,
    }


@pytest.mark.parametrize("way", adders())
def test_an_id_that_a_user_gave_is_kept_or_refused_and_never_replaced(db: Database, way: str) -> None:
    add = adders()[way]
    with use(db):
        for job_id, words in ((TAKEN, "is that of job prepare"), (ALIKE, "begins like that of job prepare")):
            with pytest.raises(DuplicateJobId, match=rf"{job_id} {words} \[2aaaaaaa\]"):
                add(job_id)
            assert BalsamJob.objects.count() == 5
        add(OWN)
        assert BalsamJob.objects.get(name="x").job_id == OWN


def test_two_jobs_of_one_call_cannot_have_one_id(db: Database) -> None:
    with use(db), pytest.raises(DuplicateJobId, match=OWN):
        BalsamJob.objects.bulk_create([{"name": name, "application": "say", "job_id": OWN} for name in "xy"])
    with use(db):
        assert BalsamJob.objects.count() == 5


def test_an_id_that_was_drawn_is_drawn_anew_where_its_beginning_is_taken(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = iter([ALIKE, ALIKE, OWN, ALIKE, "1badcafe-0000-4000-8000-000000000000"])
    monkeypatch.setattr(field_specs, "new_job_id", lambda: next(draw))
    with use(db):
        added = dag.add_job("x", application="say")
        assert (added.job_id, added.workdir) == (OWN, "x_0badcafe")
        (bulk,) = BalsamJob.objects.bulk_create([{"name": "y", "application": "say"}])
        assert bulk.workdir == "y_1badcafe"


# --- names in a batch -------------------------------------------------------------------------------------------------


def test_a_parent_of_a_batch_is_found_by_its_name_in_the_db_but_not_if_the_batch_has_that_name_too(db: Database) -> None:
    with use(db):
        (child,) = BalsamJob.objects.bulk_create([{"name": "Child", "application": "say", "parents": ["run 7"]}])
        assert child.get_parents_by_id() == [IDS[1]]
        (below,) = BalsamJob.objects.bulk_create([{"name": "below", "application": "say", "parents": ["Child"]}])
        assert below.get_parents_by_id() == [child.job_id]
        for names in (("prepare", "x"), ("x", "prepare")):
            rows = [{"name": name, "application": "say", "parents": ["prepare"] * (name == "x")} for name in names]
            with pytest.raises(AmbiguousJobId, match="'prepare' is also the name of a job"):
                BalsamJob.objects.bulk_create(rows)
        with dag.transaction():
            dag.add_job("run 8", application="say")
            for word in ("run 8", "#99"):
                with pytest.raises((AmbiguousJobId, UnknownJob)):
                    dag.add_job("x", application="say", parents=[word])
        with dag.transaction():
            dag.add_job("in a block", application="say", parents=["run 7", "#1"])
        assert BalsamJob.objects.get(name="in a block").get_parents_by_id() == [IDS[0], IDS[1]]
        assert BalsamJob.objects.count() == 9
