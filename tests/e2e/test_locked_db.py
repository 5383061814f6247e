"""On a local disk a launcher keeps its lease as long as it lives, however long another process keeps the DB locked."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from launching import Bench

#: Every time after which something could be given up.
SHORT = {
    "BALSAM_BUSY_TIMEOUT_S": "0.2", "BALSAM_LEASE_EXPIRY_S": "1", "BALSAM_KILL_GRACE_S": "0.2", "BALSAM_TROUBLE_TTL_S": "1",
    "BALSAM_IDLE_TTL_S": "0.2",
}  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path, **SHORT)
    bench.app("until", "bash -c 'while ! test -e ../../go; do sleep 0.05; done; touch ../../ended'")
    bench.db.busy_timeout_s = 30.0
    yield bench
    bench.close()


def said(bench: Bench) -> str:
    return Path(bench.directory, "log", "stderr").read_text()


def say_go(bench: Bench) -> None:
    Path(bench.directory, "go").touch()
    wait_until(Path(bench.directory, "ended").exists)


def launch_one(bench: Bench):
    (job,) = bench.add([{"name": "j", "application": "until"}])
    launcher = bench.launch()
    bench.wait_for(job, "RUNNING")
    return launcher, job


def test_a_run_that_ends_while_the_db_is_locked_is_recorded_after_all(bench: Bench) -> None:
    launcher, job = launch_one(bench)
    with bench.db.write():
        say_go(bench)
        launcher.send_signal(signal.SIGTERM)
        wait_until(lambda: "Trying until it can be written" in said(bench))
        assert launcher.poll() is None
    assert launcher.wait(30) == 0
    assert bench.job(job)["state"] == "JOB_FINISHED" and bench.job(job)["attempt"] == 1


def test_a_launcher_that_is_told_again_to_stop_gives_up_and_the_next_one_runs_the_job(bench: Bench) -> None:
    launcher, job = launch_one(bench)
    with bench.db.write():
        say_go(bench)
        launcher.send_signal(signal.SIGTERM)
        wait_until(lambda: "To give up, stop again" in said(bench))
        wait_until(lambda: launcher.poll() is not None or launcher.send_signal(signal.SIGTERM), 30, 0.5)
    assert launcher.wait(30) == 1
    assert "the next launcher will free the jobs" in said(bench)
    assert bench.run() == 0
    assert bench.job(job)["state"] == "JOB_FINISHED" and bench.job(job)["attempt"] == 2


def test_a_launcher_waits_at_its_start_until_the_db_can_be_written(bench: Bench) -> None:
    (job,) = bench.add([{"name": "j", "application": "until"}])
    Path(bench.directory, "go").touch()
    with bench.db.write():
        launcher = bench.launch(BALSAM_TROUBLE_TTL_S="600")
        wait_until(lambda: "still trying" in said(bench))
    assert launcher.wait(60) == 0
    assert bench.job(job)["state"] == "JOB_FINISHED"
    with bench.db.write():
        assert bench.run() == 75, "it has taken nothing"
    assert "was kept busy by another process" in said(bench)


def test_a_launcher_without_work_leaves_in_good_order_and_says_why(bench: Bench) -> None:
    (job,) = bench.add([{"name": "later", "application": "until"}])
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET start_after = ?", (10**18,))  # what waits keeps it from leaving at once
    launcher = bench.launch(BALSAM_IDLE_TTL_S="600")
    wait_until(lambda: "Nothing to start" in said(bench))
    with bench.db.write():
        assert launcher.wait(60) == 1
    log = said(bench)
    assert "Stopping: The DB cannot be used, still trying: " in log and "lease is lost" not in log and "Traceback" not in log
    assert "Lease 1 stays open, which the next launcher finds" in log
    Path(bench.directory, "go").touch()
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET start_after = NULL")
    assert bench.run() == 0
    assert bench.job(job)["state"] == "JOB_FINISHED"
