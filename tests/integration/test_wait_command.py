"""`balsam wait` as a process: when it ends, with which exit code, and what it shows meanwhile."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from looking import BALSAM, Job, Process, active_db, run
from sshd import far_site

from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import queries
from balsam_lite.db.store import insert, user_actions


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    with active_db(tmp_path, monkeypatch) as found:
        yield found


def is_registered(db: Database) -> bool:
    with db.read() as cx:
        return cx.execute("SELECT count(*) FROM lease WHERE kind = 'wait' AND closed IS NULL").fetchone()[0] > 0


def waiting(db: Database, *words: str) -> Process:
    """Start the command, and return when it waits."""
    process = Process("wait", *words)
    wait_until(lambda: is_registered(db))
    return process


def test_it_ends_when_the_last_job_has_ended_and_lists_those_that_failed(db: Database) -> None:
    good, bad, other = Job(db, "good"), Job(db, "bad"), Job(db, "other", workflow="v")
    process = waiting(db, "--wf", "w")
    good.set("JOB_FINISHED")
    bad.set("FAILED", message="out of luck")
    code, out, err = process.end()
    assert code == 1
    assert re.fullmatch(rf"\[bad \| {bad.job_id[:8]}\] FAILED: it is FAILED, set by .*\n", out)
    assert err.startswith("1 JOB_FINISHED, 1 FAILED after ")
    assert not is_registered(db)
    other.set("JOB_FINISHED")
    assert run("wait", "good", "other")[0] == 0
    assert run("wait")[0] == 1


def test_the_first_that_ends_is_enough_with_any(db: Database) -> None:
    first, second = Job(db, "first"), Job(db, "second")
    process = waiting(db, "--any", "first", "second")
    second.set("JOB_FINISHED")
    assert process.end()[0] == 0
    first.set("USER_KILLED")
    assert run("wait", "--any", "first")[0] == 1


def test_until_a_state_waits_for_that_or_a_later_one(db: Database) -> None:
    job, over, failed = Job(db, "one"), Job(db, "over"), Job(db, "failed")
    over.set("RUN_DONE")
    process = waiting(db, "--until", "PREPROCESSED", "one", "over")
    job.set("STAGED_IN")
    job.set("PREPROCESSED")
    code, _, err = process.end()
    assert code == 0
    assert "2 reached PREPROCESSED after " in err
    failed.set("FAILED")
    assert run("wait", "--until", "RUNNING", "failed")[0] == 1
    assert run("wait", "--until", "FAILED", "failed")[0] == 0
    assert run("wait", "--until", "RUNING", "one")[0] == 2


def test_the_time_is_limited(db: Database) -> None:
    Job(db, "one")
    code, out, err = run("wait", "--timeout", "1s")
    assert (code, out) == (124, "")
    assert err.startswith("Time over: 1 not yet after ")
    assert run("wait", "--timeout", "soon")[0] == 2


def test_nothing_to_wait_for_is_exit_code_3(db: Database) -> None:
    for words in ([], ["--wf", "x"], ["nothing"]):
        assert run("wait", *words)[0] == 3


def test_a_removed_job_counts_as_failed(db: Database) -> None:
    job, _ = Job(db, "one"), Job(db, "two").set("JOB_FINISHED")
    process = waiting(db)
    user_actions.delete(db, [job.number])
    code, out, err = process.end()
    assert (code, out) == (1, f"#{job.number} removed\n")
    assert "1 JOB_FINISHED, 1 removed after " in err


def test_json_has_the_numbers_and_the_failures_of_each_site(db: Database) -> None:
    bad, good = Job(db, "bad"), Job(db, "good")
    bad.set("FAILED", message="exit code 1")
    good.set("JOB_FINISHED")
    code, out, err = run("wait", "--json")
    assert (code, err) == (1, "")
    (found,) = json.loads(out)
    failure = {"id": bad.number, "job_id": bad.job_id, "name": "bad", "state": "FAILED"}
    assert found.pop("elapsed_s") >= 0
    assert "exit code 1" in found["failures"][0].pop("reason")
    assert found == {
        "site": "db", "jobs": 2, "pending": 0, "failed": 1, "states": {"FAILED": 1, "JOB_FINISHED": 1}, "time_over": False,
        "failures": [failure],
    }  # fmt: skip


def test_the_reason_is_printed_when_nothing_happens(db: Database) -> None:
    Job(db, "one")
    process = waiting(db, "--timeout", "30s")
    process.has("no launcher")
    process.process.kill()
    process.end()


@pytest.mark.parametrize("columns", [80, 20])
def test_a_terminal_shows_one_line_that_fits(db: Database, columns: int) -> None:
    jobs = [Job(db, f"j{number}") for number in range(4)]
    primary, secondary = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(columns)}
    process = subprocess.Popen([*BALSAM, "wait"], stderr=secondary, stdout=subprocess.PIPE, env=environ)
    shown = b""
    for number, job in enumerate(jobs):
        while f"{number} of 4".encode() not in shown:
            shown += os.read(primary, 10_000)
        job.set("JOB_FINISHED")
    assert process.communicate(timeout=30) == (b"", None)
    shown += os.read(primary, 10_000)
    os.close(primary)
    os.close(secondary)
    assert process.returncode == 0
    *lines, last = shown.decode().split("\r\n")[0].split("\r")
    assert all(len(line) < columns for line in lines)
    assert ("[" in lines[1]) == (columns == 80)
    assert last.startswith("4 JOB_FINISHED after ")


def test_very_many_jobs_cost_little_while_nothing_happens(db: Database) -> None:
    insert.add_jobs(db, [{"name": "j", "workflow": "w", "application": "sh"} for _ in range(20_000)])
    process = waiting(db, "--wf", "w")
    with db.read() as cx:
        before = queries.news(cx).mark
    assert process.idle_cpu_s(3) <= 0.06
    user_actions.delete(db, list(range(1, 20_001)))
    assert process.end()[0] == 1
    with db.read() as cx:
        assert queries.news(cx, before).has_removed


def test_a_site_on_another_host_is_waited_for(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(db, "one")
    with far_site(db.directory) as remote:
        monkeypatch.setenv("PATH", remote.path)
        assert run("wait", "--site", "far", "one", "--timeout", "1s")[0] == 124
        process = Process("wait", "--site", "far", "one")
        with pytest.raises(subprocess.TimeoutExpired):
            process.process.wait(2)
        began = time.monotonic()
        job.set("JOB_FINISHED")
        assert process.end()[0] == 0
        assert time.monotonic() - began < 20
