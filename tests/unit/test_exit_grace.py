"""A failure is not believed at once where the batch job may be ending."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from balsam_lite.core import states
from balsam_lite.core.settings import Settings
from balsam_lite.db.store import exit_rules
from balsam_lite.db.store.claims import Shape
from balsam_lite.db.store.exit_rules import JobFacts
from balsam_lite.db.store.runs import RunResult
from balsam_lite.launcher.exit_grace import ExitGraceRunner
from balsam_lite.launcher.loop import Launcher
from balsam_lite.launcher.placement import Node, NodePool
from balsam_lite.launcher.reporting import Limits
from balsam_lite.launcher.run_results import Finished


class Clock:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def now_us(self):
        return int(self.now * 1_000_000)


class Runs:
    """A runner whose runs end when the test says so."""

    is_busy = False

    def __init__(self, *jobs):
        self.jobs, self.ends, self.stops = set(jobs), [], []

    def __len__(self):
        return len(self.jobs)

    def end(self, job, result=states.RUN_ERROR, started_us=1, ended_us=2, told_us=None):
        code, message = (0, "") if result == states.RUN_DONE else (3, "nonzero return 3")
        self.ends.append(Finished(RunResult(job, 1, result, code, message, started_us, ended_us, told_us), f"place of {job}"))

    def poll(self):
        ends, self.ends = self.ends, []
        self.jobs -= {finished.exit.job for finished in ends}
        return ends

    def stop(self, jobs, result, grace_s):
        self.stops.append((set(jobs), result, grace_s))

    def start(self, claim, place):
        self.jobs.add(claim)


@pytest.fixture
def clock():
    return Clock()


def results(runner):
    return [(end.exit.job, result_of(end.exit)) for end in runner.poll() if not end.is_doubted]


def result_of(ended, **flags):
    """Return the result that the store records."""
    return exit_rules.result_of(JobFacts(1, "RUNNING", 1, 1, 0, 10, 1, None, 0, "", 0, 0, 0, 0, 0, **flags), ended[2], ended[7])


def test_a_failure_is_reported_when_no_stop_came_in_time(clock):
    runs = Runs(1, 2)
    runner = ExitGraceRunner(runs, clock, 0.5)
    runs.end(1)
    assert results(runner) == []
    assert (runner.jobs, len(runner), runner.is_busy) == ({1, 2}, 2, True)
    clock.now += 0.4
    runs.end(2)
    assert results(runner) == []
    clock.now += 0.1
    assert results(runner) == [(1, states.RUN_ERROR)]
    assert runner.jobs == {2}
    clock.now += 0.4
    assert results(runner) == [(2, states.RUN_ERROR)]
    assert (runner.jobs, len(runner), runner.is_busy) == (set(), 0, False)


def test_a_failure_just_before_the_stop_is_a_timeout(clock):
    runs = Runs(1, 2)
    runner = ExitGraceRunner(runs, clock, 0.5)
    runs.end(1)
    assert results(runner) == []
    runner.stop(runner.jobs, states.RUN_TIMEOUT, 10)
    assert (len(runner), runner.is_busy) == (2, True)
    runs.end(2, states.RUN_TIMEOUT)
    first, second = runner.poll()
    assert first.exit[:5] == (1, 1, states.RUN_TIMEOUT, 3, "Ended just before the launcher: nonzero return 3")
    assert first.place == "place of 1"
    assert (second.exit.job, second.exit.result) == (2, states.RUN_TIMEOUT)


def test_a_failure_that_crosses_the_stop_on_its_way_is_a_timeout(clock):
    runs = Runs(1, 2, 3)
    runner = ExitGraceRunner(runs, clock, 0.5)
    runner.stop(runner.jobs, states.RUN_TIMEOUT, 10)
    for job, result in ((1, states.RUN_ERROR), (2, states.RUN_DONE), (3, states.RESTART_READY)):
        runs.end(job, result)
    assert results(runner) == [(1, states.RUN_TIMEOUT), (2, states.RUN_DONE), (3, states.RESTART_READY)]


def test_ends_that_leave_no_doubt_are_reported_at_once(clock):
    runs = Runs(1, 2, 3, 4)
    runner = ExitGraceRunner(runs, clock, 0.5)
    runs.end(1, states.RUN_DONE)
    runs.end(2, started_us=None)
    runs.end(4, states.RESTART_READY)
    assert results(runner) == [(1, states.RUN_DONE), (2, states.RUN_ERROR), (4, states.RESTART_READY)]


def test_a_good_end_in_doubt_frees_its_place_at_once_and_only_once(clock):
    runs = Runs(1, 2)
    runner = ExitGraceRunner(runs, clock, 0.5)
    runs.end(1, states.RUN_DONE, ended_us=60 * 10**6)
    runs.end(2)
    assert [(end.exit.job, end.place, end.is_doubted) for end in runner.poll()] == [(1, "place of 1", True)]
    clock.now += 0.6
    assert [(end.exit.job, end.place, end.is_doubted) for end in runner.poll()] == [(1, None, False), (2, "place of 2", False)]


def test_a_good_end_of_a_long_run_just_before_the_stop_is_a_timeout(clock):
    runs = Runs(1, 2, 3, 4, 5, 6)
    runner = ExitGraceRunner(runs, clock, 0.5)
    runs.end(1, states.RUN_DONE, ended_us=5 * 10**6)
    runs.end(2, states.RUN_DONE, ended_us=10**5)
    assert results(runner) == [(2, states.RUN_DONE)]
    clock.now += 0.25
    runs.end(3, states.RUN_DONE, ended_us=90 * 10**6)
    assert results(runner) == [(1, states.RUN_DONE)]
    runner.stop(runner.jobs, states.RUN_TIMEOUT, 10)
    runs.end(4, states.RUN_DONE, ended_us=101 * 10**6)  # of another node, whose clock is ahead: it had ended when it was told
    runs.end(5, states.RUN_DONE, ended_us=99 * 10**6, told_us=98 * 10**6)
    runs.end(6, states.RUN_DONE, ended_us=10**5)  # too short to be in doubt
    ends = runner.poll()
    assert [(end.exit.job, result_of(end.exit)) for end in ends] == [
        (3, states.RUN_TIMEOUT), (4, states.RUN_TIMEOUT), (5, states.RUN_TIMEOUT), (6, states.RUN_DONE),
    ]  # fmt: skip
    assert all(result_of(end.exit, exit_0_is_done_after_stop=1) == states.RUN_DONE for end in ends)
    assert "exit code 0" in ends[0].exit.message


def test_a_job_killed_by_the_user_is_reported_at_once(clock):
    runs = Runs(1, 2)
    runner = ExitGraceRunner(runs, clock, 0.5)
    runs.end(2)
    assert results(runner) == []
    runner.stop({1, 2}, states.RUN_ERROR, 0.7)
    assert runs.stops == [({1, 2}, states.RUN_ERROR, 0.7)]
    runs.end(1)
    assert results(runner) == [(2, states.RUN_ERROR), (1, states.RUN_ERROR)]
    runner.start(1, "again")
    runs.end(1)
    assert results(runner) == []


def test_a_place_whose_end_is_doubted_is_given_away_as_soon_as_any_other(clock):
    shape = Shape(1, 1, 1, 0)
    settings = Settings()
    for free in (True, False):
        due = []
        for is_doubted in (True, False):
            pool = NodePool([Node(1)])
            ended = Finished(RunResult(1, 1, states.RUN_DONE, 0, "", 1, 2), pool.reserve(shape), is_doubted)
            runner = SimpleNamespace(poll=lambda ended=ended: [ended], queued=Counter())
            db = SimpleNamespace(busy_timeout_s=1.0, access="shared")
            limits = Limits(None, False, None, None)
            launcher = Launcher(
                db, settings, 1, pool, runner, SimpleNamespace(poll=list, room=lambda: 1), limits, clock, clock.monotonic
            )
            launcher._collect()
            if not free:
                pool.reserve(shape)
            due.append(launcher._due(clock.now))
        assert due[0] == due[1] < clock.now + 0.06
