"""`balsam status` as a process: what it shows of a DB in each condition, in 25 lines."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, Slots
from looking import BALSAM, Job, Process, active_db, run
from sshd import far_site

from balsam_lite.core.clock import SECOND_US, SystemClock
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import progress
from balsam_lite.db.store import batch_jobs, claims, insert, leases


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    with active_db(tmp_path, monkeypatch) as found:
        yield found


def take(db: Database, number: int) -> tuple[int, list[claims.Claim]]:
    """Let a launcher of this process take that number of jobs."""
    with db.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", SystemClock.now_us())
        return lease, claims.take(cx, lease, Slots(number), claims.Filter(), SystemClock.now_us()).to_run


def end(db: Database, lease: int, taken: list[claims.Claim], code: int = 0) -> None:
    """Let runs of ten seconds end."""
    now_us = SystemClock.now_us()
    state, words = ("RUN_ERROR", f"nonzero return {code}") if code else ("RUN_DONE", "")
    results = [claims.RunResult(one.job, one.attempt, state, code, words, now_us - 10 * SECOND_US, now_us) for one in taken]
    with db.write() as cx:
        claims.finish(cx, lease, results, now_us)


def test_a_db_without_jobs_says_so_and_what_to_do(db: Database) -> None:
    code, out, err = run("status")
    assert (code, err) == (0, "")
    assert "There are no jobs yet." in out
    assert "Next      add jobs" in out


def test_jobs_rate_time_left_nodes_failures_and_reasons_are_shown(db: Database) -> None:
    insert.add_jobs(db, [{"name": f"j{n}", "workflow": f"w{n % 7}", "application": "sh"} for n in range(40)])
    insert.add_jobs(db, [{"name": "kid", "workflow": "kids", "application": "sh", "parents": [40]}])
    lease, taken = take(db, 30)
    end(db, lease, taken[:10])
    end(db, lease, taken[10:12], 3)
    code, out, err = run("status")
    assert (code, err) == (0, "")
    table = {line.split("  ")[0]: line.split()[-5:] for line in out.splitlines()[1:8]}
    assert table["workflow"] == ["jobs", "waiting", "running", "finished", "failed"]
    assert table["all"] == ["41", "11", "18", "10", "2"]
    assert "4 others" in table
    rows = [list(map(int, numbers)) for name, numbers in table.items() if name not in ("workflow", "all")]
    assert [sum(column) for column in zip(*rows)] == [41, 11, 18, 10, 2]
    assert re.search(r"^Progress  29 % ended, .* per s in the last .* s, time left: about 16 s$", out, re.MULTILINE), out
    assert re.search(r"^Running   on .+ \(18\)$", out, re.MULTILINE)
    assert re.search(r"^Failed +2  exit code 3$", out, re.MULTILINE)
    assert re.search(r"^Waiting +\d", out, re.MULTILINE)
    assert "disk: " in out
    assert len(out.splitlines()) <= 25


def test_the_time_left_is_unknown_where_an_application_has_never_run(db: Database) -> None:
    insert.add_jobs(db, [{"name": f"j{n}", "workflow": "w", "application": "sh"} for n in range(4)])
    assert "time left: unknown" in run("status")[1]
    lease, taken = take(db, 3)
    end(db, lease, taken[:1])
    assert "time left: about 15 s" in run("status")[1]
    with db.write() as cx:
        cx.execute("INSERT INTO app (name, executable) VALUES ('new', 'true')")
    insert.add_jobs(db, [{"name": "other", "workflow": "v", "application": "new"}])
    assert "time left: unknown" in run("status")[1]
    assert "time left: about 15 s" in run("status", "--wf", "w")[1]


def test_the_time_left_counts_jobs_from_all_over_the_table(db: Database) -> None:
    with db.write() as cx:
        cx.execute("INSERT INTO app (name, executable) VALUES ('long', 'true')")
    for application in ("sh", "long"):
        insert.add_jobs(db, [{"name": f"{application}{n}", "workflow": "w", "application": application} for n in range(1500)])
    now_us = SystemClock.now_us()
    with db.write() as cx:
        for job, seconds in ((1, 10), (1501, 100)):
            cx.execute(
                "INSERT INTO run (job, attempt, started, ended) VALUES (?, 0, ?, ?)",
                (job, now_us - seconds * SECOND_US, now_us),
            )
            cx.execute(
                "INSERT INTO event (job, time, from_state, to_state) VALUES (?, ?, 'RUNNING', 'RUN_DONE')", (job, now_us)
            )
    with db.read() as cx:
        left_s = progress.seconds_left(cx, {}, {"CREATED": 3000, "JOB_FINISHED": 100}, 10)
    assert left_s == pytest.approx(1500 * 110 / 10, rel=0.1)


def test_the_rate_is_that_of_the_last_minutes(db: Database) -> None:
    insert.add_jobs(db, [{"name": f"j{n}", "workflow": f"w{n % 2}", "application": "sh"} for n in range(20)])
    lease, taken = take(db, 20)
    end(db, lease, taken)
    with db.write() as cx:
        hour_ago = SystemClock.now_us() - 3600 * SECOND_US
        cx.execute("UPDATE event SET time = ? WHERE job <= 10", (hour_ago,))
        cx.execute("UPDATE event SET time = time - 100000000 WHERE job > 10")
    with db.read() as cx:
        found = progress.rate(cx, {}, SystemClock.now_us())
        of_one = progress.rate(cx, {"workflow": "w1"}, SystemClock.now_us())
    assert found.jobs == 10
    assert 100 <= found.seconds < 120
    assert of_one.jobs == 5


def test_launches_are_shown_with_the_reason_of_the_scheduler(db: Database) -> None:
    Job(db, "one")
    with db.write() as cx:
        batch_jobs.mark_submitted(
            cx, batch_jobs.add(cx, {"scheduler": "fake", "nodes": 4, "wall_minutes": 60, "job_mode": "mpi"}, 1), "77"
        )
        minute_ago, later = SystemClock.now_us() - 60 * SECOND_US, 4102444800 * SECOND_US
        cx.execute(
            "UPDATE batch_job SET reason = '(Priority)', state = 'queued', created = ?1, polled = ?1, expected_start = ?2",
            (minute_ago, later),
        )
    code, out, _ = run("status")
    assert code == 0
    assert re.search(
        r"^Launches  qlaunch1 queued 6\d s: \(Priority\), start 01-01 00:00, asked 6\d s ago",
        out,
        re.MULTILINE,
    ), out
    (launch,) = json.loads(run("status", "--json")[1])[0]["queued"]
    assert launch["expected_start"] == "2100-01-01T00:00:00.000000Z"
    assert launch["polled"] == launch["created"]
    assert "Next" not in out, "there is nothing to do but wait"


def test_conditions_limit_the_jobs_and_no_match_is_exit_code_3(db: Database) -> None:
    Job(db, "one", workflow="a").set("FAILED", message="x")
    Job(db, "two", workflow="b")
    out = run("status", "--wf", "b")[1]
    assert "Failed" not in out
    assert "\nb " in out
    assert "\na " not in out
    out = run("status", "--state", "FAILED")[1]
    assert "Waiting" not in out
    assert run("status", "--wf", "c")[0] == 3


def test_everything_fits_25_lines_of_the_terminal(db: Database) -> None:
    jobs = [{"name": f"j{n}", "workflow": f"{'long ' * 20}{n}", "application": "sh", "num_nodes": n % 9 + 1} for n in range(60)]
    insert.add_jobs(db, jobs)
    for number in range(1, 12):
        with db.write() as cx:
            cx.execute("INSERT INTO failure (cause, jobs) VALUES (?, 1)", (f"cause \x1b {number} " * 100,))
            row = {"scheduler": "fake", "nodes": 4, "wall_minutes": 60, "job_mode": "mpi"}
            batch_jobs.mark_submitted(cx, batch_jobs.add(cx, row, 1), str(number))
    for columns in (80, 20):
        primary, secondary = pty.openpty()
        environ = {**os.environ, "COLUMNS": str(columns)}
        process = subprocess.Popen([*BALSAM, "status"], stdout=secondary, env=environ)
        assert process.wait(30) == 0
        lines = os.read(primary, 100_000).decode().splitlines()
        os.close(primary)
        os.close(secondary)
        assert len(lines) <= 25
        assert all(len(line) <= columns for line in lines)
        assert "\x1b" not in "".join(lines)


def test_a_db_that_cannot_be_written_is_shown(db: Database) -> None:
    Job(db, "one")
    db.close()
    for path in (*Path(db.directory).iterdir(), Path(db.directory)):
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        words = [*BALSAM, "status"]
        if os.geteuid() == 0:
            words = ["setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-dac_override", *words]
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        assert "\nw " in done.stdout
    finally:
        for path in (Path(db.directory), *Path(db.directory).iterdir()):
            path.chmod(path.stat().st_mode | 0o200)


def test_it_is_repeated_until_it_is_stopped(db: Database) -> None:
    Job(db, "one", workflow="first")
    process = Process("status", "--watch", "0.2")
    process.has("\nfirst ")
    Job(db, "two", workflow="second")
    process.has("\nsecond ")
    process.process.terminate()
    process.end()
    assert run("status", "--watch", "0")[0] == 2


def test_json_has_the_documented_keys(db: Database) -> None:
    insert.add_jobs(db, [{"name": f"j{n}", "workflow": "w", "application": "sh"} for n in range(4)])
    take(db, 2)
    code, out, err = run("status", "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    document = (ROOT / "docs" / "json.rst").read_text().partition("\nStatus\n")[2].partition("\nWaits\n")[0]
    keys = {line.split("``")[1] for line in document.splitlines() if line.startswith("``") and "status" not in line}
    assert set(found) == keys
    assert found["states"] == {"CREATED": 2, "RUNNING": 2}


def test_several_sites_one_on_another_host_follow_each_other(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    Job(db, "one")
    with far_site(db.directory) as remote:
        monkeypatch.setenv("PATH", remote.path)
        code, out, err = run("status", "--site", "far,this")
    assert (code, err) == (0, "")
    assert out.count("Progress  0 % ended") == 2
    assert re.search(r"^far, 20", out, re.MULTILINE)
