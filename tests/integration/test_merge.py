"""Merging jobs of another DB with their history: seen whole or not at all, recognized when they come again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from helpers import db_with_app

from balsam_lite.core import states
from balsam_lite.core.errors import DependencyCycle, DuplicateApp, InvalidSpec, UnknownJob
from balsam_lite.db.engine import directories, doctor, salvage
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import edits, runs, select
from balsam_lite.db.store import insert, large_writes, pieces, trash, undo, user_actions
from balsam_lite.db.store.merge import ForeignEdit, ForeignEvent, ForeignJob, Merged, MergeOptions, Origin, merge

ORIGIN = Origin("archive", "/far/away.tar", "theta", "/projects/db", "abc", 5_000_000)
RUN = {"attempt": 1, "nodes": "nid1", "started": 2_000_000, "ended": 3_000_000, "return_code": 0, "max_memory": 4096}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with db_with_app(tmp_path / "db") as made:
        yield made


def uuid(number: int) -> str:
    return str(UUID(int=(number << 96) + 7, version=4))


def job(number: int, state: str = states.JOB_FINISHED, **fields: Any) -> ForeignJob:
    """A job of an application that is here; `parents`, `runs` and the like are not its fields."""
    own = {name: fields.pop(name) for name in list(fields) if name in ForeignJob._fields}
    given = {"name": f"j{number}", "workflow": "w", "application": "a", "state": state, "created": 1_000_000, **fields}
    return ForeignJob(number, own.pop("job_id", uuid(number)), given, **own)


def rows(db: Database, **where: Any) -> list[dict[str, Any]]:
    with db.read() as cx:
        return select.jobs(cx, where)


def faults(db: Database) -> list[str]:
    found = doctor.look_over(db, now_us=0, expiry_s=60)
    return [one.text for one in found if one.topic == "rows" and one.level != doctor.OK]


def table_sizes(db: Database) -> dict[str, int]:
    with db.read() as cx:
        names = [row[0] for row in cx.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: cx.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names if name != "sqlite_sequence"}


def merged(db: Database, jobs: Sequence[ForeignJob], **options: Any) -> Merged:
    return merge(db, jobs, ORIGIN, options=MergeOptions(**options))


def test_a_merged_job_has_its_record(db: Database) -> None:
    events = [
        ForeignEvent(1_500_000, "CREATED", "PREPROCESSED"), ForeignEvent(2_000_000, "PREPROCESSED", "RUNNING"),
        ForeignEvent(3_000_000, "RUNNING", "RUN_DONE", "", {"note": 1}),
        ForeignEvent(4_000_000, "RUN_DONE", "JOB_FINISHED", "well"),
    ]  # fmt: skip
    edit = ForeignEdit(1_200_000, "ann", "theta", "balsam modify", "modify", "num_nodes", 0, 1, 2)
    fields = {"num_nodes": 2, "data": {"x": [1]}, "tags": {"t": "1"}, "attempt": 1, "return_code": 0, "origin": "by hand"}
    done = merged(db, [job(7, events=events, runs=[RUN], edits=[edit], **fields)])
    assert done.added.ids == range(1, 2)
    (row,) = rows(db, tags={"t": "1"})
    assert row["job_id"] == uuid(7) and row["workdir"] == f"w/j7_{uuid(7)[:8]}" and row["created"] == 1_000_000
    assert {name: row[name] for name in fields} == fields
    with db.read() as cx:
        (run,) = runs.runs_of(cx, 1)
        (edited,) = edits.edits(cx, [1])
        history = sorted((e["timestamp"], e["to_state"], e["data"].get("note")) for e in select.events(cx, {"job_id": 1}))
        assert undo.of_user(cx, "ann") == [], "what was done elsewhere cannot be taken back here"
        assert cx.execute("SELECT kind, file, host, directory, db FROM source").fetchone() == ORIGIN[:5]
        assert cx.execute("SELECT * FROM imported").fetchall() == [(1, 1, 7, None)]
    assert (run.nodes, run.started_us, run.runtime_us, run.return_code, run.max_memory, run.lease) == (
        "nid1", 2_000_000, 1_000_000, 0, 4096, None,
    )  # fmt: skip
    assert (edited["user"], edited["field"], edited["old"], edited["new"]) == ("ann", "num_nodes", 1, 2)
    assert history[-3:] == [(2_000_000, "RUNNING", None), (3_000_000, "RUN_DONE", 1), (4_000_000, "JOB_FINISHED", None)]
    assert faults(db) == []


def test_a_job_that_has_not_ended_does_not_start_by_itself(db: Database) -> None:
    unfinished = [job(n, state) for n, state in enumerate(states.STATES, 1) if state not in states.END_STATES]
    done = merged(db, unfinished)
    assert done.stopped == {state: 1 for state in states.STATES if state not in states.END_STATES}
    assert {row["state"] for row in rows(db)} == {states.USER_KILLED}
    with db.read() as cx:
        assert cx.execute("SELECT jobs FROM state_count WHERE state = 'USER_KILLED'").fetchone() == (len(unfinished),)
    user_actions.rerun(db, [1])
    assert rows(db, id=1)[0]["state"] == states.CREATED
    assert faults(db) == []


def test_runnable_jobs_arrive_as_they_were_and_running_ones_restart(db: Database) -> None:
    before = [states.CREATED, states.RUNNING, states.RUN_DONE, states.AWAITING_PARENTS, states.FAILED]
    jobs = [job(n, state) for n, state in enumerate(before, 1)]
    jobs[1] = job(2, states.RUNNING, attempt=1, runs=[{**RUN, "ended": None}])
    merged(db, jobs, is_runnable=True)
    assert [row["state"] for row in rows(db)] == ["CREATED", "RESTART_READY", "RUN_DONE", "READY", "FAILED"]
    with db.read() as cx:
        (run,) = runs.runs_of(cx, 2)
    assert (run.ended_us, run.cause, run.runtime_us) == (ORIGIN.written_us, "unknown", None)
    assert faults(db) == []


def test_children_wait_for_parents_wherever_these_are_in_the_source(db: Database) -> None:
    jobs = [
        job(9, states.AWAITING_PARENTS, parents=[30]), job(20, states.AWAITING_PARENTS, parents=[21]), job(21),
        job(30, states.CREATED), job(31, states.FAILED, failure="exit code 3"),
        job(32, states.FAILED, parents=[31], events=[ForeignEvent(1, "AWAITING_PARENTS", "FAILED", "", {"parent": 31})]),
    ]  # fmt: skip
    merged(db, jobs, is_runnable=True)
    found = {row["name"]: row for row in rows(db)}
    assert [found[f"j{n}"]["state"] for n in (9, 20, 32)] == ["AWAITING_PARENTS", "READY", "FAILED"]
    assert found["j9"]["parent_ids"] == [found["j30"]["id"]]
    with db.read() as cx:
        assert select.count_failures(cx) == {"exit code 3": 1, "unknown": 1}
    user_actions.set_state(db, [found["j31"]["id"]], states.JOB_FINISHED)
    assert rows(db, name="j32")[0]["state"] == states.READY, "it failed only because of that parent"
    assert faults(db) == []


def test_jobs_that_come_again_are_skipped_and_their_new_children_find_them(db: Database) -> None:
    merged(db, [job(1), job(2)])
    again = merged(db, [job(1), job(2), job(3, parents=[1])])
    assert (again.already_here, again.added.number) == (2, 1)
    later = merged(db, [job(4, states.AWAITING_PARENTS, absent_parents=[uuid(2)])], is_runnable=True)
    assert (later.orphaned, later.added.number) == (0, 1)
    found = rows(db)
    assert [row["parent_ids"] for row in found] == [[], [], [1], [2]]
    assert found[3]["state"] == states.READY
    assert faults(db) == []


def test_a_job_that_waits_for_a_parent_that_is_nowhere_does_not_run(db: Database) -> None:
    done = merged(db, [job(1, states.AWAITING_PARENTS, absent_parents=[uuid(99)])], is_runnable=True)
    assert (done.orphaned, dict(done.stopped)) == (1, {"AWAITING_PARENTS": 1})
    with db.read() as cx:
        message = cx.execute("SELECT message FROM event ORDER BY id DESC LIMIT 1").fetchone()[0]
    assert "a parent of it was not imported" in message


def test_new_ids_add_copies_with_directories_of_their_own_names(db: Database) -> None:
    merged(db, [job(1, workdir=f"old/place_{uuid(1)[:8]}")])
    done = merged(db, [job(1, workdir=f"old/place_{uuid(1)[:8]}"), job(2)], new_ids=True)
    first, copy, _ = rows(db)
    assert done.added.number == 2 and copy["job_id"] != first["job_id"]
    assert copy["workdir"] == f"old/place_{copy['job_id'][:8]}"
    assert merged(db, [job(2)]).already_here == 1, "a copy is recognized by the UUID that it had"


def test_a_short_id_that_is_taken_is_drawn_anew(db: Database) -> None:
    insert.add_jobs(db, [{"application": "a", "given_id": uuid(1)}])
    other = uuid(1)[:-1] + "0"
    done = merged(db, [job(5, job_id=other), job(6, job_id=uuid(6)), job(7, job_id=uuid(6)[:-1] + "0")])
    assert (done.redrawn, done.added.number) == (2, 3)
    assert merged(db, [job(5, job_id=other)]).already_here == 1
    assert len({row["job_id"][:8] for row in rows(db)}) == 4


def test_a_job_whose_key_is_here_is_that_job(db: Database) -> None:
    insert.add_jobs(db, [{"application": "a", "unique_key": "k1", "name": "mine"}])
    done = merged(db, [job(1, unique_key="k1"), job(2, unique_key="k2", parents=[1])])
    assert (done.same_key, done.added.number) == (1, 1)
    assert [(row["name"], row["parent_ids"], row["unique_key"]) for row in rows(db)] == [("mine", [], "k1"), ("j2", [1], "k2")]
    merged(db, [job(1, unique_key="k1")], new_ids=True)
    assert rows(db, name="j1")[0]["unique_key"] is None
    with pytest.raises(InvalidSpec, match="unique_key"):
        merged(db, [job(5, unique_key="x"), job(6, unique_key="x")])
    assert len(rows(db)) == 3 and faults(db) == []


def test_workflow_and_chosen_directories(db: Database) -> None:
    os.makedirs(os.path.join(db.directory, "data", "taken"))
    jobs = [
        job(1, workdir="taken"),
        job(2, workdir="taken"),
        job(3, workdir="free/1"),
        job(4, user_workdir="/no/such", folder="f4"),
    ]
    folders: dict[str, str] = {}
    done = merge(db, jobs, ORIGIN, options=MergeOptions(workflow="new"), place_files=lambda found, _: folders.update(found))
    found = rows(db)
    assert {row["workflow"] for row in found} == {"new"}
    assert [row["workdir"] for row in found] == [f"taken_{uuid(1)[:8]}"] * 2 + ["free/1", f"new/j4_{uuid(4)[:8]}"]
    assert found[3]["user_workdir"] == "" and done.moved == 1
    assert folders == {"f4": found[3]["workdir"]}


@pytest.mark.parametrize("files_to", ["", "/far"])
def test_no_file_comes_into_a_directory_that_a_job_names(db: Database, tmp_path: Path, files_to: str) -> None:
    jobs = [job(1, user_workdir=str(tmp_path), folder="f1"), job(2, user_workdir=str(tmp_path))]
    folders: dict[str, str] = {}
    merge(db, jobs, ORIGIN, options=MergeOptions(files_to=files_to), place_files=lambda found, _: folders.update(found))
    assert not any(path.startswith(str(tmp_path)) for path in folders.values())
    assert folders == ({"f1": f"/far/w/j1_{uuid(1)[:8]}"} if files_to else {})
    found = rows(db)
    assert found[0]["user_workdir"] == (folders["f1"] if files_to else str(tmp_path)) == found[0]["workdir"]
    assert found[1]["user_workdir"] == found[1]["workdir"] == str(tmp_path)


def test_applications_come_along_and_differing_ones_are_refused_kept_or_renamed(db: Database) -> None:
    apps = [{"name": "a", "executable": "false"}, {"name": "b", "executable": "echo"}]
    jobs = [job(1), job(2, application="b"), job(3, application="gone")]
    with pytest.raises(DuplicateApp, match="executable: here 'true', there 'false'"):
        merge(db, jobs, ORIGIN, apps)
    assert rows(db) == []
    kept = merge(db, jobs, ORIGIN, apps, MergeOptions(on_differing_app="keep"))
    assert (kept.kept_apps, kept.new_apps, kept.unknown_apps) == (["a"], ["b"], ["gone"])
    for number in (4, 5):  # the second time the renamed one is here
        renamed = merge(db, [job(number)], ORIGIN, apps, MergeOptions(on_differing_app="rename"))
        assert renamed.renamed_apps == {"a": "a-2"}
        assert rows(db, name=f"j{number}")[0]["app"] == "a-2"
    with db.read() as cx:
        assert sorted(app["name"] for app in select.apps(cx)) == ["a", "a-2", "b"]


BAD = {
    "state": [job(1, "NO_STATE")],
    "field": [job(1, unheard_of=1)],
    "value": [job(1, num_nodes=0)],
    "workdir": [job(1, workdir="../out")],
    "absolute workdir": [job(1, workdir="/etc")],
    "id": [job(1, job_id="no uuid")],
    "number": [job(0)],
    "number twice": [job(1), job(1, job_id=uuid(2))],
    "parent": [job(1, parents=[2])],
    "own parent": [job(1, parents=[1])],
    "circle": [job(1, parents=[2]), job(2, parents=[1])],
    "event": [job(1, events=[ForeignEvent(1, "CREATED", "x")])],
    "time": [job(1, events=[ForeignEvent("now", "CREATED", "READY")])],  # type: ignore[arg-type]
    "run": [job(1, runs=[{**RUN, "attempt": 0}])],
    "two runs": [job(1, runs=[RUN, RUN])],
    "edit": [job(1, edits=[ForeignEdit(1, "u", "h", "c", "modify", "name", 0, [1], "x")])],
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_jobs_add_nothing(db: Database, kind: str) -> None:
    before = table_sizes(db)
    with pytest.raises((InvalidSpec, DependencyCycle, ValueError)):
        merged(db, [job(50), *BAD[kind]])
    assert table_sizes(db) == before


def test_a_dry_run_writes_nothing(db: Database) -> None:
    before = table_sizes(db)
    done = merge(db, [job(1), job(2, states.CREATED)], ORIGIN, [{"name": "b"}], MergeOptions(dry_run=True))
    assert (done.added.number, dict(done.stopped), done.new_apps) == (2, {"CREATED": 1}, ["b"])
    assert table_sizes(db) == before


def many() -> list[ForeignJob]:
    edit = ForeignEdit(1, "u", "h", "c", "modify", "name", 0, "x", "y")
    return [
        job(n, states.FAILED, parents=[1] * (n > 1), runs=[RUN], tags={"n": str(n % 3)}, edits=[edit], failure="exit code 1")
        for n in range(1, 41)
    ]


def test_nothing_is_seen_before_all_is_there_and_a_failure_removes_it(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from balsam_lite.db.store import merge as module

    monkeypatch.setattr(module, "_CHUNK", 7)
    monkeypatch.setattr(pieces, "INSERT_PIECE_S", 0)
    monkeypatch.setattr(pieces, "PAUSE_S", 0)
    before = table_sizes(db)
    seen = []

    def refuse(folders: object, touch: object) -> None:
        other = Database(db.directory, db.access)
        seen.append((rows(other), faults(other), table_sizes(other)["job"]))
        other.close()
        raise OSError("the disk is full")

    with pytest.raises(OSError):
        merge(db, many(), ORIGIN, place_files=refuse)
    assert seen == [([], [], 40)]
    after = table_sizes(db)
    assert {name for name in after if after[name] != before[name]} <= {"failure", "author"}, "which hold no job"
    merge(db, many(), ORIGIN)
    assert len(rows(db)) == 40 and faults(db) == []


CRASHING = """
import sys
sys.path[:0] = sys.argv[2:3]
from balsam_lite.db.engine import directories
from balsam_lite.db.store import merge, pieces
from test_merge import ORIGIN, many
merge._CHUNK, pieces.INSERT_PIECE_S, pieces.PAUSE_S = 7, 0, 0
merge.merge(directories.open_database(sys.argv[1]), many(), ORIGIN)
"""


@pytest.mark.parametrize("place", ["before-piece:1", "after-piece:1", "before-piece:4", "after-piece:6", "before-piece:7"])
def test_a_crash_leaves_nothing(db: Database, place: str) -> None:
    before = table_sizes(db)
    db.close()
    here = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__))]
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, db.directory, here[0]],
        env={**os.environ, "BALSAM_FAILPOINT": place, "PYTHONPATH": here[1]}, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert rows(db) == []
    insert.add_jobs(db, [{"application": "a"}])  # as any change does, this removes what was written
    after = table_sizes(db)
    assert {name for name in after if after[name] != before[name]} <= {"failure", "author", "job", "workflow_count"}
    assert [row["name"] for row in rows(db)] == [""] and faults(db) == []


def test_a_parent_that_is_removed_meanwhile_undoes_all(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    merged(db, [job(1)])
    advance = pieces.HiddenInsert.advance

    def removing(self: pieces.HiddenInsert) -> bool:
        user_actions.delete(db, [1])
        return advance(self)

    monkeypatch.setattr(pieces.HiddenInsert, "advance", removing)
    with pytest.raises(UnknownJob, match="removed meanwhile"):
        merged(db, [job(2, absent_parents=[uuid(1)])])
    assert rows(db) == []


def test_where_a_job_comes_from_survives_trash_and_salvage(db: Database, tmp_path: Path) -> None:
    merged(db, [job(1), job(2)])
    user_actions.delete(db, [1])
    with db.read() as cx:
        assert cx.execute("SELECT job FROM imported").fetchall() == [(2,)]
        action = undo.find(cx, 1)
    undo.take_back(db, action)
    db.close()
    rescued = directories.open_database(salvage.salvage(db.directory, str(tmp_path / "new")).directory)
    for one in (db, rescued):
        with one.read() as cx:
            query = "SELECT job, number, directory FROM imported JOIN source ON source.id = imported.source ORDER BY job"
            assert cx.execute(query).fetchall() == [(1, 1, "/projects/db"), (2, 2, "/projects/db")]
    rescued.close()
    assert trash.KEEP_DAYS and large_writes.MAX_DIRECT_JOBS
