"""Jobs that kill their launchers are found by running suspects apart, and fail alone (`store.suspects`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from helpers import Slots
from launching import Bench

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import demand, reasons
from balsam_lite.db.store import apps, batch_jobs, claims, insert, leases, runs, suspects, user_actions

#: The parent of a program is a spawn helper, whose parent is the launcher. Jobs that run beside it have started by then.
#: Kills launchers only: after the launcher's death the helper's parent may be the process that the tests run in.
KILL_LAUNCHER = (
    "sleep 0.5; parent=$(awk '{print $4}' /proc/$PPID/stat); "
    "grep -aq launcher /proc/$parent/cmdline && kill -9 $parent; sleep 60"
)
KILL_HELPER = "sleep 0.5; kill -9 $PPID; sleep 60"
REASON = r"^Its launcher died \d+ times while it ran"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.shell("killer", KILL_LAUNCHER)
    made.shell("helper-killer", KILL_HELPER)
    made.shell("innocent", "sleep 1")
    made.shell("short", "sleep 0.1")
    yield made
    made.close()


def launch_until_done(bench: Bench, *options: str, most: int = 20, **environ: str) -> list[int]:
    """Run launchers until one ends in good order; return all exit codes."""
    codes: list[int] = []
    while not codes or codes[-1]:
        assert len(codes) < most, codes
        codes.append(bench.run(*options, **environ))
    return codes


class Run(NamedTuple):
    """One attempt, from its RUNNING event to the next event of the job."""

    job: int
    lease: int
    is_apart: bool
    is_alone: bool
    start_us: int
    end_us: int


def attempts_of(bench: Bench) -> list[Run]:
    with bench.db.read() as cx:
        events = cx.execute("SELECT job, time, to_state, message, data FROM event ORDER BY job, id").fetchall()
        leases = {(job, ended): lease for job, ended, lease in cx.execute("SELECT job, ended, lease FROM run")}
    found = []
    for (job, start_us, state, message, data), (other, end_us, *_) in zip(events, events[1:]):
        if state == "RUNNING":
            assert job == other
            if (job, end_us) in leases:  # else it was given back before it started
                is_alone = "alone" in json.loads(data or "{}")
                found.append(Run(job, leases[job, end_us], "Runs a" in message, is_alone, start_us, end_us))
    return found


def assert_suspects_ran_apart(bench: Bench) -> None:
    """Nothing ran beside a suspect in its launcher but suspects of the same group, and nothing beside one that ran alone."""
    found = attempts_of(bench)
    for one in (run for run in found if run.is_apart):
        beside = [
            other
            for other in found
            if other != one and other.lease == one.lease and other.start_us < one.end_us and one.start_us < other.end_us
        ]
        assert all(other.is_apart and other.start_us == one.start_us for other in beside), (one, beside)
        assert not (one.is_alone and beside), (one, beside)


def assert_found(bench: Bench, killers: Iterable[int], innocent: Iterable[int]) -> None:
    for job in killers:
        assert bench.job(job)["state"] == "FAILED"
        assert re.search(REASON, bench.history(job)[-1][1])
        assert bench.job(job)["restarts"] == 0
    for job in innocent:
        row = bench.job(job)
        assert (row["state"], row["launcher_deaths"]) == ("JOB_FINISHED", 0)
    assert_suspects_ran_apart(bench)


# --- with real launchers ----------------------------------------------------------------------------------------------


def test_a_job_that_kills_its_launcher_is_found_and_fails_alone(bench: Bench) -> None:
    killer, *innocent = bench.add([{"application": "killer"}, *[{"application": "innocent"}] * 5])
    codes = launch_until_done(bench, "--nodes", "6")
    assert len(codes) <= 9  # two deaths beside all, then 3, 2, 1 of them at most; more if some start late on a busy host
    assert_found(bench, [killer], innocent)


def test_a_job_that_kills_its_launcher_needs_no_others_to_be_found(bench: Bench) -> None:
    (killer,) = bench.add([{"application": "killer"}])
    assert launch_until_done(bench) == [-9, -9, -9, 0]
    assert_found(bench, [killer], [])


def test_several_jobs_that_kill_their_launchers_are_all_found(bench: Bench) -> None:
    jobs = bench.add([{"application": "killer" if number in (1, 4) else "innocent"} for number in range(6)])
    launch_until_done(bench, "--nodes", "6")
    killers = [jobs[1], jobs[4]]
    assert_found(bench, killers, set(jobs) - set(killers))


def test_a_job_that_kills_spawn_helpers_is_found_by_one_launcher(bench: Bench) -> None:
    killer, *innocent = bench.add([{"application": "helper-killer"}, *[{"application": "innocent"}] * 5])
    assert bench.run("--nodes", "6") == 0
    assert_found(bench, [killer], innocent)


@pytest.mark.parametrize("hook", ["preprocess", "postprocess"])
@pytest.mark.parametrize("line", [KILL_LAUNCHER, KILL_HELPER], ids=["its launcher", "its helper"])
def test_a_hook_that_kills_its_launcher_is_found_and_fails_alone(bench: Bench, tmp_path: Path, hook: str, line: str) -> None:
    script = tmp_path / "hook.sh"
    script.write_text(f"#!/bin/sh\n{line}\n")
    script.chmod(0o755)
    bench.app("hooked", "true", **{hook: str(script)})
    killer, *innocent = bench.add([{"application": "hooked"}, *[{"application": "innocent"}] * 3])
    launch_until_done(bench, "--nodes", "4")
    assert_found(bench, [killer], innocent)


def test_suspects_wait_for_other_jobs_and_the_next_launcher_begins_with_those(bench: Bench) -> None:
    (killer,) = bench.add([{"application": "killer"}])
    assert [bench.run(), bench.run()] == [-9, -9]
    others = bench.add([{"application": "short"}] * 6)
    assert launch_until_done(bench, "--nodes", "2") == [-9, 0]
    assert_found(bench, [killer], others)
    started = {run.job: run.start_us for run in attempts_of(bench)}  # the last of each
    assert all(started[job] < started[killer] for job in others)


def test_suspects_are_not_starved_by_a_stream_of_other_jobs(bench: Bench) -> None:
    killer, *stream = bench.add([{"application": "helper-killer", "priority": 1}, *[{"application": "short"}] * 500])
    assert bench.run("--nodes", "4", timeout=120, BALSAM_SUSPECT_WAIT_S="0.5") == 0
    assert_found(bench, [killer], stream)
    ends = {run.job: run.end_us for run in attempts_of(bench)}
    assert ends[killer] < max(ends[job] for job in stream)


def test_a_user_s_rerun_clears_the_count(bench: Bench) -> None:
    (killer,) = bench.add([{"application": "killer"}])
    launch_until_done(bench)
    user_actions.set_state(bench.db, [killer], "RESTART_READY")
    assert bench.job(killer)["launcher_deaths"] == 0


def test_jobs_that_wait_to_be_run_apart_have_that_as_their_reason(bench: Bench) -> None:
    (killer,) = bench.add([{"application": "killer"}])
    assert [bench.run(), bench.run()] == [-9, -9]
    assert bench.run("--wf-filter", "another") == 0
    with bench.db.read() as cx:
        told = reasons.first_reasons(cx, [bench.job(killer)], reasons.surroundings(cx, SystemClock.now_us(), 120.0))
    assert "its launcher died 2 times while it ran; it will be run apart from other jobs" in told[killer]


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = directories.create(str(tmp_path / "db"))
    with database.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
        apps.add_app(cx, {"name": "prepared", "executable": "true", "preprocess": "true"})
    yield database
    database.close()


def add(db: Database, *jobs: dict[str, Any]) -> list[int]:
    return list(insert.add_jobs(db, [{"application": "a", **job} for job in jobs]).ids)


def take(db: Database, free: int = 100, **only: Any) -> tuple[leases.Lease, list[int]]:
    with db.write() as cx:
        number = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        taken = claims.take(cx, number, Slots(free), claims.Filter(**only), 2).to_run
        (lease,) = (one for one in leases.open_leases(cx) if one.id == number)
    return lease, [claim.job for claim in taken]


def take_suspects(db: Database, free: int = 100, **only: Any) -> tuple[leases.Lease, list[int]]:
    room, which = Slots(free, 5), claims.Filter(**only)
    with db.write() as cx:
        number = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        found = claims.fitting_suspects(cx, room, which)
        group = suspects.next_group(found)
        taken = claims.take_suspects(cx, number, room, which, group, 2) if group else claims.ClaimResult([], [])
        (lease,) = (one for one in leases.open_leases(cx) if one.id == number)
    return lease, [claim.job for claim in (*taken.to_run, *taken.to_prepare)]


def die(db: Database, lease: leases.Lease) -> None:
    with db.write() as cx:
        leases.reap(cx, lease, 9, may_have_killed=lambda facts: True)


def make_suspects(db: Database, jobs: Iterable[int], deaths: int = 2) -> None:
    for _ in range(deaths):
        lease, taken = take(db)
        assert set(taken) == set(jobs)
        die(db, lease)


def job(db: Database, number: int, *columns: str) -> tuple[Any, ...]:
    with db.read() as cx:
        return tuple(cx.execute(f"SELECT {', '.join(columns)} FROM job WHERE id = ?", (number,)).fetchone())


def test_suspects_are_taken_by_halves_of_those_with_the_most_deaths(db: Database) -> None:
    jobs = add(db, *[{}] * 7)
    make_suspects(db, jobs)
    assert take(db)[1] == []
    lease, first = take_suspects(db)
    assert len(first) == 4
    die(db, lease)
    lease, second = take_suspects(db)
    assert len(second) == 2 and set(second) < set(first)
    with db.write() as cx:
        exits = [runs.RunResult(number, 4, "RUN_DONE", 0, "", 3, 4) for number in second]
        claims.finish(cx, lease.id, exits, 5)
    assert [job(db, number, "state", "launcher_deaths") for number in second] == [("JOB_FINISHED", 0)] * 2
    assert len(take_suspects(db)[1]) == 1


@pytest.mark.parametrize("result", ["RUN_DONE", "RUN_ERROR", "RUN_TIMEOUT"])
def test_any_end_of_a_run_clears_the_count_but_not_the_loss_of_it(db: Database, result: str) -> None:
    ended, lost = add(db, {}, {})
    make_suspects(db, [ended, lost])
    (lease, [one]), (other_lease, [other]) = take_suspects(db), take_suspects(db)
    with db.write() as cx:
        claims.finish(cx, lease.id, [runs.RunResult(one, 3, result, 0, "", 3, 4)], 5)
        claims.finish(cx, other_lease.id, [runs.RunResult(other, 3, "RESTART_READY", None, "", 3, 4)], 5)
    assert job(db, one, "launcher_deaths") == (0,)
    assert job(db, other, "launcher_deaths") == (2,)


def test_only_a_job_that_ran_alone_fails_by_the_death_of_its_launcher(db: Database) -> None:
    pair = add(db, {}, {})
    make_suspects(db, pair)
    for _ in range(2):
        lease, [alone] = take_suspects(db)
        die(db, lease)
        assert job(db, alone, "state", "restarts") == ("FAILED", 0)


def test_jobs_that_had_not_started_and_outside_causes_count_as_restarts(db: Database) -> None:
    jobs = add(db, {}, {})
    lease, _ = take(db)
    with db.write() as cx:
        leases.reap(cx, lease, 9, may_have_killed=lambda facts: facts.job == jobs[0])
    assert [job(db, number, "launcher_deaths", "restarts") for number in jobs] == [(1, 0), (0, 1)]


def test_filters_hold_for_suspects(db: Database) -> None:
    jobs = add(
        db,
        {"workflow": "w1", "tags": {"a": "1"}},
        {"workflow": "w2", "wall_time_minutes": 60},
        {"workflow": "w3", "ranks_per_node": 2},
    )
    lease, _ = take(db, serial_only=False)
    die(db, lease)
    lease, _ = take(db, serial_only=False)
    die(db, lease)
    with db.read() as cx:
        assert claims.matching_workflows(cx, "w*") == ("w1", "w2", "w3")
        which = {
            "workflow": claims.Filter(("w2",)),
            "tag": claims.Filter(tags=(("a", "1"),), serial_only=False),
            "time": claims.Filter(minutes_left=10),
            "launch": claims.Filter(launch=1, launch_only=True),
            "all": claims.Filter(serial_only=False),
        }
        found = {name: [one.entry.job for one in claims.fitting_suspects(cx, Slots(9), only)] for name, only in which.items()}
    assert found == {"workflow": [jobs[1]], "tag": [jobs[0]], "time": [jobs[0]], "launch": [], "all": jobs}


def test_a_suspect_is_prepared_and_waits_for_its_parents_like_any_job(db: Database) -> None:
    (parent,) = add(db, {})
    lease, [_] = take(db)
    with db.write() as cx:
        claims.finish(cx, lease.id, [runs.RunResult(parent, 1, "RUN_DONE", 0, "", 3, 4)], 5)
    (child,) = add(db, {"parents": [parent], "application": "a"})
    make_suspects(db, [child])
    user_actions.set_state(db, [parent], "RESTART_READY")
    assert job(db, child, "state") == ("AWAITING_PARENTS",)
    assert take_suspects(db)[1] == []
    lease, [_] = take(db)
    with db.write() as cx:
        claims.finish(cx, lease.id, [runs.RunResult(parent, 2, "RUN_DONE", 0, "", 3, 4)], 5)
    assert take(db)[1] == []
    assert take_suspects(db)[1] == [child]


def test_the_service_counts_suspects_and_plans_them_for_launches(db: Database) -> None:
    jobs = add(db, {}, {})
    make_suspects(db, jobs)
    shape = claims.Shape(1, 1, 1, 0)
    with db.write() as cx:
        assert demand.startable(cx) == [demand.Work(shape, 1, 2)]
        launch = batch_jobs.add(cx, {}, 1)
    assert batch_jobs.reserve(db, launch, shape, 5, 2) == 2
    with db.read() as cx:
        assert demand.of_launch(cx, launch) == [demand.Work(shape, 1, 2)]
        assert batch_jobs.orphaned(cx, []) == [launch]
        assert len(claims.fitting_suspects(cx, Slots(9), claims.Filter(launch=launch, launch_only=True))) == 2


def test_suspects_are_found_by_their_index(db: Database) -> None:
    with db.read() as cx:
        plan = [row[3] for row in cx.execute(f"EXPLAIN QUERY PLAN {suspects.query('1', '')}")]
    assert "SCAN job USING INDEX job_suspect" in plan[0] or "SEARCH job USING INDEX job_suspect" in plan[0], plan


# --- the cause of a death ---------------------------------------------------------------------------------------------

NOW_US = 10**15
LIMIT_MINUTES = 60


def cause(db: Database, batch: dict[str, Any] | None = None, host: str = "", beat_us: int | None = None, **told: int) -> str:
    """Return the outside cause of the death of a launcher whose last heartbeat was at `beat_us`, in that batch job."""
    add(db, {})
    holder = Holder.current()._replace(pid=2**22 + 1)
    now_us = SystemClock.now_us()
    with db.write() as cx:
        if batch is not None:
            number = batch_jobs.add(cx, {"wall_minutes": LIMIT_MINUTES}, now_us)
            batch_jobs.mark_submitted(cx, number, "77")
            cx.execute(
                f"UPDATE batch_job SET {', '.join(f'{name} = ?' for name in batch)} WHERE id = ?", (*batch.values(), number)
            )
        opened = leases.open_lease(
            cx, "launcher", holder._replace(host=host or holder.host), "" if batch is None else "77", now_us
        )
        claims.take(cx, opened, Slots(1), claims.Filter(), now_us)
        leases.heartbeat(cx, opened, now_us if beat_us is None else beat_us)
        if told:
            claims.tell_to_stop(cx, opened, [1], now_us)
        (lease,) = leases.open_leases(cx)
        return leases.outside_cause(cx, lease, now_us, [])


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, ""),
        ({"told": 1}, "it had been told to stop"),
        ({"beat_us": 1}, "its host was started again"),
        ({"host": "elsewhere"}, "its host cannot be asked"),
        ({"batch": {"state": "running"}}, ""),
        ({"batch": {"state": "running"}, "host": "elsewhere"}, "its host cannot be asked"),
        ({"batch": {"state": "cancelling"}}, "its batch job is cancelling"),
        ({"batch": {"state": "cancelled", "ended": 5}}, "its batch job is cancelled"),
        ({"batch": {"state": "timeout", "ended": 5}}, "its batch job is timeout"),
        ({"batch": {"state": "gone", "ended": 5}}, "its batch job is gone"),
        ({"batch": {"state": "failed", "ended": 5, "reason": "a node failed"}}, "a node failed"),
        ({"batch": {"state": "failed", "ended": 5, "reason": "it used more memory than it had"}, "host": "elsewhere"}, ""),
        ({"batch": {"state": "failed", "ended": 5, "started": 5}}, "the time of its batch job was up"),
        ({"batch": {"state": "running", "scheduler_id": "78"}}, "its batch job is unknown"),
    ],
)  # fmt: skip
def test_a_death_counts_only_without_an_outside_cause(db: Database, facts: dict[str, Any], expected: str) -> None:
    assert cause(db, **facts) == expected


def test_a_batch_job_in_which_another_launcher_lives_goes_on(db: Database) -> None:
    with db.write() as cx:
        for _ in range(2):
            leases.open_lease(cx, "launcher", Holder.current()._replace(host="elsewhere"), "78", 1)
        dead, living = leases.open_leases(cx)
        assert leases.outside_cause(cx, dead, NOW_US, []) == "its batch job is unknown"
        assert leases.outside_cause(cx, dead, NOW_US, [living]) == ""
