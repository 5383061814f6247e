"""A holder on another host is dead when its heartbeat does not change, whatever the clocks of the hosts show."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import balsam
from helpers import wait_until
from launching import Bench

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import Holder
from balsam_lite.db.store import counters, leases
from balsam_lite.db.store.leases import Lease, Watch, is_dead

ELSEWHERE = Holder("elsewhere", "pid:[1]", 7, "9")
EXPIRY_S = 120.0
AHEAD_US, BEHIND_US = 3600 * 10**6, -600 * 10**6  # how wrong the other host's clock is
DAY_US = 86_400 * 10**6


def beat_at(heartbeat_us: int) -> Lease:
    return Lease(1, "launcher", ELSEWHERE, "", heartbeat_us)


@pytest.mark.parametrize("off_us", [0, AHEAD_US, BEHIND_US, 100 * DAY_US, -100 * DAY_US])
def test_a_heartbeat_that_does_not_change_is_dead_after_the_expiry_of_watching(off_us: int) -> None:
    now = 0.0
    watch = Watch(lambda: now)
    lease = beat_at(SystemClock.now_us() + off_us)
    assert not is_dead(lease, EXPIRY_S, watch)
    now = EXPIRY_S
    assert not is_dead(lease, EXPIRY_S, watch)
    now = EXPIRY_S + 1
    assert is_dead(lease, EXPIRY_S, watch)


@pytest.mark.parametrize("off_us", [0, AHEAD_US, BEHIND_US])
def test_a_heartbeat_that_changes_lives(off_us: int) -> None:
    now = 0.0
    watch = Watch(lambda: now)
    began_us = SystemClock.now_us()
    for beat in range(20):
        now = beat * 100.0
        assert not is_dead(beat_at(began_us + off_us + int(now * 1e6)), EXPIRY_S, watch)


def test_one_look_does_not_tell_whether_a_holder_elsewhere_is_dead() -> None:
    for off_us in (0, -2 * DAY_US, 2 * DAY_US):
        lease, now_us = beat_at(SystemClock.now_us() + off_us), SystemClock.now_us()
        assert not is_dead(lease, EXPIRY_S) and not is_dead(lease, EXPIRY_S, Watch())
        assert leases.is_silent(lease, now_us, EXPIRY_S) is leases.is_doubtful(lease, now_us, EXPIRY_S, Watch()) is bool(off_us)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Make a DB whose only job is RUNNING on another host."""
    bench = Bench(tmp_path, BALSAM_LEASE_EXPIRY_S="2")
    bench.app("true", "true")
    [job] = bench.add([{"application": "true"}])
    with bench.db.write() as cx:
        lease = leases.open_lease(cx, "launcher", ELSEWHERE, "", SystemClock.now_us())
        cx.execute("UPDATE job SET lease = ?, state = 'RUNNING', attempt = 1 WHERE id = ?", (lease, job))
        counters.recount(cx)
    yield bench
    bench.close()


def set_heartbeat(bench: Bench, off_us: int) -> None:
    with bench.db.write() as cx:
        leases.heartbeat(cx, 1, SystemClock.now_us() + off_us)


@pytest.mark.parametrize("off_us", [AHEAD_US, BEHIND_US])
def test_a_launcher_stays_until_it_knows_and_then_runs_the_jobs_of_the_dead(bench: Bench, off_us: int) -> None:
    set_heartbeat(bench, off_us)
    assert bench.run(BALSAM_IDLE_TTL_S="0.1") == 0
    assert bench.job(1)["state"] == "JOB_FINISHED"
    assert ("RESTART_READY", "The launcher 1 (pid 7 on elsewhere) is gone") in bench.history(1)


def test_a_live_launcher_whose_clock_is_behind_is_not_robbed(bench: Bench) -> None:
    set_heartbeat(bench, BEHIND_US)
    stop = threading.Event()

    def live() -> None:
        while not stop.wait(0.2):
            set_heartbeat(bench, BEHIND_US)

    holder = threading.Thread(target=live)
    holder.start()
    try:
        launcher = bench.launch("--persistent")
        log = Path(bench.directory, "log", "stderr")
        wait_until(lambda: "Watching it for 2 s" in log.read_text())
        code, _, err = balsam(None, "site", "rm", bench.directory, "--force", BALSAM_LEASE_EXPIRY_S="2")
        assert code == 75 and "in use" in err and os.path.exists(bench.db.path)
        began = SystemClock().monotonic()
        wait_until(lambda: SystemClock().monotonic() - began > 4)  # twice what it takes to know
        assert launcher.poll() is None
        assert bench.job(1)["state"] == "RUNNING" and bench.job(1)["lease"] == 1
    finally:
        stop.set()
        holder.join()
    bench.wait_for(1, "JOB_FINISHED")  # now it is dead


def test_a_site_whose_holder_elsewhere_is_dead_can_be_removed_whatever_its_clock_said(bench: Bench) -> None:
    set_heartbeat(bench, AHEAD_US)
    bench.db.close()
    code, _, err = balsam(None, "site", "rm", bench.directory, "--force", BALSAM_LEASE_EXPIRY_S="2")
    assert code == 0, err
    assert "Watching for up to 2 s whether launcher 1 (pid 7 on elsewhere)" in err
    assert not os.path.exists(bench.db.path)
