"""DBs of older versions, each with a launcher killed at work, are migrated and go on (data/make_old.py)."""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elsewhere import balsam
from helpers import TESTS
from launching import Bench
from test_database import picture

from balsam_lite.core.states import (
    AWAITING_PARENTS,
    FAILED,
    JOB_FINISHED,
    READY,
    RESTART_READY,
    RUN_ERROR,
    RUNNING,
    USER_KILLED,
)
from balsam_lite.db.engine import directories, migrations, schema
from balsam_lite.db.query import queries, select
from balsam_lite.db.query.edits import edits
from balsam_lite.db.query.runs import runs_of
from balsam_lite.db.store import large_writes, pieces, user_actions

VERSIONS = range(1, schema.VERSION)
#: Children that had not started, or were to start again, when their parent was put back.
WAIT_AGAIN = {"child-late": READY, "child-timed-out": RESTART_READY}
#: Programs of these versions left such children where they were.
LEFT_CHILDREN = range(1, 5)
TABLES = ("job", "app", "event", "dependency", "lease", "batch_job")


def rows(path: str, table: str) -> list[dict[str, Any]]:
    cx = sqlite3.connect(path)
    cx.row_factory = sqlite3.Row
    found = [dict(row) for row in cx.execute(f"SELECT * FROM {table}")]
    cx.close()
    return found


@pytest.fixture(params=VERSIONS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """Make a DB whose file is of an older version, for present launchers."""
    bench = Bench(tmp_path)
    bench.db.close()
    os.unlink(bench.db.path)
    Path(bench.directory, "settings.json").write_text('{"LEASE_EXPIRY_S": 1}')  # its launchers on other hosts are watched
    cx = sqlite3.connect(bench.db.path, isolation_level=None)
    cx.execute("PRAGMA journal_mode = WAL")
    cx.executescript((TESTS / "data" / f"schema_{request.param}.sql").read_text(encoding="utf-8"))
    assert cx.execute("PRAGMA user_version").fetchone() == (request.param,)
    if request.param >= 5:
        cx.execute("DELETE FROM meta WHERE key = 'file'")  # else it is taken for a copy
    cx.close()
    yield bench
    bench.close()


def was_written_by(old: Bench) -> int:
    """Return the schema version of the file."""
    cx = sqlite3.connect(old.db.path)
    try:
        return int(cx.execute("PRAGMA user_version").fetchone()[0])
    finally:
        cx.close()


def test_there_is_a_file_of_each_older_version() -> None:
    found = {path.name for path in (TESTS / "data").glob("schema_*.sql")}
    assert found == {f"schema_{version}.sql" for version in VERSIONS}


def test_init_makes_of_an_old_file_what_a_fresh_one_is_and_loses_nothing(old: Bench, tmp_path: Path) -> None:
    before = {table: rows(old.db.path, table) for table in TABLES}
    put_back = {job["name"] for job in before["job"]} & WAIT_AGAIN.keys() if was_written_by(old) in LEFT_CHILDREN else set()
    code, _, err = balsam(old.directory, "ls")
    assert code == 1 and f"balsam init {old.directory}" in err
    code, out, err = balsam(None, "init", old.directory)
    assert (code, err.count("\n")) == (0, 1), err
    assert "whether launcher 4" in err and "on laptop) still lives" in err
    fresh = picture(directories.create(str(tmp_path / "fresh")))
    counts = sorted(Counter(job["state"] for job in rows(old.db.path, "job")).items())
    assert [row for row in rows(old.db.path, "state_count") if row["jobs"]] == [{"state": s, "jobs": n} for s, n in counts]
    assert {**picture(old.db), "counts": fresh["counts"]} == fresh
    for table in TABLES:
        after = rows(old.db.path, table)
        if table == "event":
            assert len(after) == len(before[table]) + len(put_back)
        for was, now in zip(before[table], after):
            if was.get("name") in put_back and table == "job":
                assert (was["state"], now["state"]) == (WAIT_AGAIN[was["name"]], AWAITING_PARENTS)
                del was["state"]
            changed = {key for key, value in was.items() if value != now.get(key, "")}
            assert changed <= ({"unfinished_parents"} if table == "job" else {"data"} if table in ("app", "event") else set())
    with old.db.read() as cx:
        assert cx.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert [row[0] for row in cx.execute("SELECT name FROM job WHERE NOT wait_for_parents AND unfinished_parents")] == []
        tagged = cx.execute(
            "SELECT job.name, tag.key, tag.value FROM job_tag JOIN job ON job.id = job JOIN tag ON tag.id = tag"
        )
        assert set(tagged) == {("done", "size", "big"), ("done", "colour", "red"), ("child-late", "size", "small")}
        for number, name in cx.execute("SELECT id, name FROM job").fetchall():
            if name in put_back:
                last = queries.history(cx, number)[-1]
                assert last[1:] == (WAIT_AGAIN[name], AWAITING_PARENTS, "A parent was put back")
    assert balsam(old.directory, "db", "check", "--seconds", "0")[0] == 0
    code, out, _ = balsam(old.directory, "ls", "--tag", "size=small")
    assert code == 0 and "child-late" in out


def test_a_launcher_runs_what_an_old_file_has_left_in_the_order_of_the_graph(old: Bench) -> None:
    was = {job["name"]: job for job in rows(old.db.path, "job")}
    for child in WAIT_AGAIN:
        assert was[child]["unfinished_parents"] == 1  # else the file does not show what this test is about
    assert balsam(None, "init", old.directory)[0] == 0
    assert old.run("--nodes", "2", BALSAM_LEASE_EXPIRY_S="1", BALSAM_IDLE_TTL_S="3") == 0
    now = {job["name"]: job for job in rows(old.db.path, "job")}
    ended = {name: job["state"] for name, job in now.items() if was[name]["state"] in (JOB_FINISHED, FAILED, USER_KILLED)}
    assert ended == {name: was[name]["state"] for name in ended}
    assert {job["state"] for name, job in now.items() if name not in ended} == {JOB_FINISHED}
    assert [now[f"running{n}"]["attempt"] for n in range(2)] == [2, 2]
    assert {now[f"running{n}"]["restarts"] for n in range(2)} == {1}
    at = {name: dict(zip(*times(old, job["id"]))) for name, job in now.items() if name not in ended}
    for parent, child in (
        ("done", "child-late"),
        ("done", "child-timed-out"),
        ("child-late", "grandchild-late"),
        ("running0", "child-running"),
        ("running1", "child-running"),
    ):
        assert at[parent][JOB_FINISHED] <= at[child][RUNNING], (parent, child)


def times(old: Bench, number: int) -> tuple[list[str], list[int]]:
    """Return when each state was entered last."""
    with old.db.read() as cx:
        found = cx.execute("SELECT to_state, time FROM event WHERE job = ? ORDER BY id", (number,)).fetchall()
    return [row[0] for row in found], [row[1] for row in found]


@pytest.mark.parametrize("old", LEFT_CHILDREN, indirect=True)
def test_children_that_were_put_back_below_a_failed_parent_fail_with_those_below_them(old: Bench) -> None:
    cx = sqlite3.connect(old.db.path, isolation_level=None)
    cx.execute("BEGIN")
    cx.execute("UPDATE state_count SET jobs = 0")
    add = "INSERT INTO job (job_id, name, state, unfinished_parents) VALUES (?, ?, ?, ?)"
    given = (("parent", FAILED, 0), ("child", RESTART_READY, 1), ("grandchild", AWAITING_PARENTS, 1))
    numbers = [cx.execute(add, (f"{n:08x}-0000-4000-8000-000000000000", *job)).lastrowid for n, job in enumerate(given, 1)]
    cx.executemany("INSERT INTO dependency VALUES (?, ?)", zip(numbers, numbers[1:]))
    cx.execute("UPDATE state_count SET jobs = (SELECT count(*) FROM job WHERE job.state = state_count.state)")
    cx.execute("COMMIT")
    cx.close()
    assert balsam(None, "init", old.directory)[0] == 0
    assert [old.job(number)["state"] for number in numbers] == [FAILED] * 3
    with old.db.read() as cx:
        counted = dict(cx.execute("SELECT state, count(*) FROM job GROUP BY state"))
        assert select.count_states(cx) == counted
    user_actions.rerun(old.db, numbers[:1])
    assert [old.job(number)["state"] for number in numbers[1:]] == [AWAITING_PARENTS] * 2


@pytest.mark.parametrize("old", range(6, schema.VERSION), indirect=True)  # older programs changed them in one transaction
def test_a_change_of_many_jobs_that_an_older_program_left_is_completed(old: Bench) -> None:
    cx = sqlite3.connect(old.db.path, isolation_level=None)
    ended = [row[0] for row in cx.execute("SELECT id FROM job WHERE state = 'JOB_FINISHED' AND name = 'child-done'")]
    waiting = [row[0] for row in cx.execute("SELECT id FROM job WHERE name LIKE 'bulk%'")]
    cx.execute("INSERT INTO large_write VALUES (1, '', '', 0, '', 0, 6, 0, '{}', 0, 0)")
    parts = (
        ("rerun", {"target": None, "stored": {"args": "new"}}, ended),
        ("kill", {"said": ["", None, 1]}, waiting[:2]),
        ("delete", {"force": True}, waiting[2:4]),
        ("fields", {"stored": {"priority": 7}, "before": {}}, waiting[4:]),
    )
    sql = "INSERT INTO large_write_part (large_write, action, parameters, first, last, jobs) VALUES (1, ?, ?, ?, ?, ?)"
    named = was_written_by(old) > 6  # from then on the parts name the action of which they are
    for action, parameters, jobs in parts:
        of_action = {"by": 1, "is_kept": False} if named else {}
        cx.execute(sql, (action, json.dumps({**parameters, **of_action}), min(jobs), max(jobs), json.dumps(jobs)))
    author = (
        cx.execute("SELECT user FROM author WHERE id = (SELECT author FROM action WHERE id = 1)").fetchone()[0] if named else ""
    )
    cx.close()
    assert balsam(None, "init", old.directory)[0] == 0
    pieces.complete(old.db)
    assert old.job(ended[0])["state"] == AWAITING_PARENTS and old.job(ended[0])["args"] == "new"  # its parent was put back
    assert [old.job(number)["state"] for number in waiting[:2]] == [USER_KILLED] * 2
    assert old.job(waiting[4])["priority"] == 7
    with old.db.read() as cx:
        assert not large_writes.is_any(cx)
        assert cx.execute("SELECT count(*) FROM job WHERE id IN (?, ?)", waiting[2:4]).fetchone() == (0,)
        assert [edit["user"] for edit in edits(cx, [waiting[4]])] == [author]
    assert balsam(old.directory, "db", "check")[0] == 0


def test_what_events_of_an_old_file_tell_of_runs_is_in_the_record(old: Bench) -> None:
    events, jobs = rows(old.db.path, "event"), {job["id"]: job for job in rows(old.db.path, "job")}
    assert balsam(None, "init", old.directory)[0] == 0
    with old.db.read() as cx:
        shown = {event["id"]: event["data"] for event in select.events(cx)}
        runs = {job: runs_of(cx, job) for job in jobs}
    for event in events:
        data = json.loads(event["data"] or "{}")
        assert shown[event["id"]].get("started", 0) == data.get("started", 0)
        if event["to_state"] == RUN_ERROR:
            assert shown[event["id"]]["returncode"] == data.get("return_code")
    for number, job in jobs.items():
        its = [event for event in events if event["job"] == number]
        ran = sum(event["to_state"] == RUNNING for event in its) - sum(event["data"] == '{"started":0}' for event in its)
        assert [run.attempt for run in runs[number]] == [*range(job["attempt"] - ran + 1, job["attempt"] + 1)]
        assert [run.ended_us is None for run in runs[number]] == [False] * (ran - 1) + [job["state"] == RUNNING] * (ran > 0)
    assert any(run.lease for its in runs.values() for run in its)


def test_the_attempts_of_an_old_file_are_numbered_from_the_last_one(tmp_path: Path) -> None:
    """Runs that ended, one that was given back before its start, one whose launcher died, and one that still runs."""
    cx = sqlite3.connect(":memory:")
    for statement in schema.STATEMENTS:
        cx.execute(statement)
    cx.execute("INSERT INTO job (id, job_id, attempt, created) VALUES (1, 'x', 4, 1)")
    events = [
        (10, "CREATED", "RUNNING", "", '{"lease":1}'), (19, "RUNNING", "RUN_ERROR", "", '{"started":11,"return_code":-9}'),
        (20, "RESTART_READY", "RUNNING", "", '{"lease":2,"alone":1}'), (21, "RUNNING", "RESTART_READY", "", '{"started":0}'),
        (30, "RESTART_READY", "RUNNING", "", '{"lease":3}'), (39, "RUNNING", "RESTART_READY", "The launcher 3 is gone", None),
        (40, "RESTART_READY", "RUNNING", "", '{"lease":4}'), (49, "RUNNING", "RUN_DONE", "", '{"started":41}'),
        (50, "RESTART_READY", "RUNNING", "", '{"lease":5}'),
    ]  # fmt: skip
    sql = "INSERT INTO event (job, time, from_state, to_state, message, data) VALUES (1, ?, ?, ?, ?, ?)"
    cx.executemany(sql, events)
    for statement in migrations.RUNS_FROM_EVENTS:
        cx.execute(statement)
    columns = "attempt, lease, started, ended, return_code, cause"
    assert cx.execute(f"SELECT {columns} FROM run ORDER BY attempt").fetchall() == [
        (1, 1, 11, 19, -9, ""), (2, 3, None, 39, None, "launcher died"), (3, 4, 41, 49, 0, ""), (4, 5, None, None, None, ""),
    ]  # fmt: skip
    assert cx.execute("SELECT data FROM event WHERE data IS NOT NULL").fetchall() == [('{"alone":1}',)]
    cx.close()
