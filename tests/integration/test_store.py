"""The store: who may hold a job, which edges exist, what the plans of hot queries are."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack, suppress
from unittest import mock

import pytest
from helpers import Slots, db_with_app
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from balsam_lite.core import caller, states
from balsam_lite.core.errors import (
    AmbiguousJobId,
    DatabaseError,
    DependencyCycle,
    DuplicateApp,
    DuplicateDependency,
    InvalidSpec,
    LostLease,
    NotFound,
    ParentInUse,
    StateError,
    UnknownApp,
    UnknownField,
    UnknownJob,
)
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.schema import FREE, VISIBLE, sql_list
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import (
    apps,
    claims,
    graph,
    insert,
    large_writes,
    leases,
    pieces,
    runs,
    steps,
    suspects,
    transitions,
    undo,
    user_actions,
)


@pytest.fixture
def db(tmp_path):
    with db_with_app(tmp_path / "db") as made:
        yield made


def add(db, *jobs):
    return list(insert.add_jobs(db, [{"application": "a", **job} for job in jobs]).ids)


def open_lease(db, pid=1):
    with db.write() as cx:
        return leases.open_lease(cx, "launcher", Holder("host", "ns", pid, "1"), "", 1)


def take(db, lease, free=100, **only):
    with db.write() as cx:
        return claims.take(cx, lease, Slots(free), claims.Filter(**only), 2).to_run


def finish(db, lease, claim, result=states.RUN_DONE, code=0):
    with db.write() as cx:
        return claims.finish(cx, lease, [runs.RunResult(claim.job, claim.attempt, result, code, "", 3, 4)], 5).lost


def state(db, job):
    with db.read() as cx:
        return queries.job(cx, job)["state"]


# --- claims -----------------------------------------------------------------------------------------------------------


def test_claims_come_by_priority_then_size_then_length_then_age(db):
    jobs = add(
        db,
        {"name": "old"},
        {"name": "new"},
        {"name": "long", "wall_time_minutes": 9},
        {"name": "small", "node_packing_count": 8},
        {"name": "urgent", "priority": 1, "node_packing_count": 8},
        {"name": "low", "priority": -1},
    )
    taken = take(db, open_lease(db))
    assert [claim.name for claim in taken] == ["urgent", "long", "old", "new", "small", "low"]
    assert {claim.job for claim in taken} == set(jobs)
    assert all(claim.attempt == 1 for claim in taken)


def test_a_job_longer_than_the_time_left_is_passed_over_and_a_shorter_one_taken(db):
    add(db, {"name": "long", "wall_time_minutes": 30, "priority": 5}, {"name": "short", "wall_time_minutes": 4})
    lease = open_lease(db)
    assert [claim.name for claim in take(db, lease, minutes_left=29.9)] == ["short"]
    assert [claim.name for claim in take(db, lease, minutes_left=30)] == ["long"]


def test_serial_mode_leaves_jobs_of_many_ranks_alone(db):
    add(db, {"ranks_per_node": 2}, {"num_nodes": 2}, {"name": "serial"})
    assert [claim.name for claim in take(db, open_lease(db))] == ["serial"]


def test_a_claim_is_running_with_one_holder_before_anything_starts(db):
    (job,) = add(db, {})
    lease = open_lease(db)
    take(db, lease)
    with db.read() as cx:
        row = queries.job(cx, job)
    assert (row["state"], row["lease"], row["attempt"]) == ("RUNNING", lease, 1)
    assert take(db, open_lease(db)) == []


def test_a_launcher_that_was_reaped_cannot_finish_its_job(db):
    (job,) = add(db, {})
    zombie, heir = open_lease(db), open_lease(db, 2)
    (old,) = take(db, zombie)
    with db.write() as cx:
        (lease,) = [found for found in leases.open_leases(cx) if found.id == zombie]
        assert leases.reap(cx, lease, 9) == 1
    (new,) = take(db, heir)
    assert finish(db, zombie, old) == [job]
    assert state(db, job) == "RUNNING"
    assert finish(db, heir, old) == [job]  # the right lease, but the attempt of another
    assert finish(db, heir, new) == []
    assert state(db, job) == "JOB_FINISHED"
    with db.write() as cx, pytest.raises(LostLease):
        leases.heartbeat(cx, zombie, 10)


def test_the_eldest_lease_is_the_oldest_of_those_that_are_open_and_not_dead(db):
    silent, closed, eldest, young = (open_lease(db, pid) for pid in (1, 2, 3, 4))
    now_s = 0.0
    watch = leases.Watch(lambda: now_s)
    with db.write() as cx:
        leases.close_lease(cx, closed, 2, "idle")
        assert leases.is_eldest(cx, silent, 30, watch), "it has not been watched yet"
        leases.living(cx, 30, watch)
        now_s = 31.0
        for lease in (eldest, young):
            leases.heartbeat(cx, lease, 60_000_000)
        assert [leases.is_eldest(cx, one, 30, watch) for one in (silent, closed, eldest, young)] == [0, 0, 1, 0]


def test_a_launcher_reads_who_took_its_lease_and_for_how_long_it_had_not_been_seen(db):
    (robbed, stopped), now_s = (open_lease(db, pid) for pid in (1, 2)), 0.0
    watch = leases.Watch(lambda: now_s)
    with db.write() as cx:
        (lease, _) = leases.open_leases(cx)
        watch.unchanged_s(lease)
        now_s = 131.4
        leases.reap(cx, lease, 5, watch=watch)
        leases.close_lease(cx, stopped, 5, "stopped by the user")
    by = f"process {os.getpid()} on {os.uname().nodename}, which had seen no heartbeat of it for 2 min"
    for number, how in (
        (robbed, f"Lease {robbed} was taken away by {by}; its jobs belong to another launcher now."),
        (stopped, f"Lease {stopped} was closed by another process (stopped by the user); its jobs belong"),
        (99, "Lease 99 is not in this DB any more."),
    ):
        for check in (leases.refuse_lost, lambda cx, lease: leases.heartbeat(cx, lease, 9)):
            with db.write() as cx, pytest.raises(LostLease) as caught:
                check(cx, number)
            assert caught.value.message.startswith(how)


def test_a_committed_result_stays_when_its_launcher_is_reaped_afterwards(db):
    (job,) = add(db, {})
    number = open_lease(db)
    (claim,) = take(db, number)
    finish(db, number, claim)
    with db.write() as cx:
        leases.reap(cx, leases.open_leases(cx)[0], 9)
    assert state(db, job) == "JOB_FINISHED"


@pytest.mark.parametrize(
    ("fields", "result", "end"),
    [
        ({}, "RUN_DONE", "JOB_FINISHED"),
        ({}, "RUN_ERROR", "FAILED"),
        ({}, "RUN_TIMEOUT", "RESTART_READY"),
        ({"auto_timeout_retry": False}, "RUN_TIMEOUT", "FAILED"),
        ({"restart_limit": 0}, "RUN_TIMEOUT", "FAILED"),
    ],
)
def test_a_result_leads_where_the_table_says(db, fields, result, end):
    (job,) = add(db, fields)
    lease = open_lease(db)
    (claim,) = take(db, lease)
    finish(db, lease, claim, result, 0 if result == "RUN_DONE" else 1)
    assert state(db, job) == end


def test_a_result_left_by_a_dead_holder_is_settled(db):
    jobs = add(db, {}, {}, {})
    for job, left in zip(jobs, ("RUN_DONE", "RUN_ERROR", "RUN_TIMEOUT")):
        user_actions.set_state(db, [job], left)
    with db.write() as cx:
        assert steps.settle_abandoned(cx, 1, 0, 5) == []
    assert [state(db, job) for job in jobs] == ["JOB_FINISHED", "FAILED", "RESTART_READY"]


def test_a_kill_is_sticky_whatever_the_run_reports(db):
    (job,) = add(db, {})
    lease = open_lease(db)
    (claim,) = take(db, lease)
    assert user_actions.kill(db, [job]) == (1, 1)
    assert finish(db, lease, claim, "RUN_ERROR", 1) == []
    with db.read() as cx:
        row = queries.job(cx, job)
    assert (row["state"], row["lease"]) == ("USER_KILLED", None)


def test_claims_that_never_started_go_back_to_where_they_were_with_their_attempt_number(db):
    (job,) = add(db, {})
    lease = open_lease(db)
    for _ in range(2):
        (claim,) = take(db, lease)
        assert claim.attempt == 1
        with db.write() as cx:
            claims.finish(cx, lease, [claims.unstarted(claim, 5, "No place became free for it")], 5)
            row = queries.job(cx, job)
            *_, end = select.event_page(cx)
        assert (row["state"], row["lease"], row["restarts"], row["attempt"]) == ("CREATED", None, 0, 0)
        assert end[1:3] == ("RUNNING", "CREATED") and end[5] == 0, "its program was never started"


# --- the user ---------------------------------------------------------------------------------------------------------


def test_a_running_jobs_state_can_be_killed_but_not_set(db):
    (job,) = add(db, {})
    take(db, open_lease(db))
    with pytest.raises(StateError, match="held by launcher"):
        user_actions.set_state(db, [job], "RESTART_READY")
    with pytest.raises(StateError, match="Only a launcher"):
        user_actions.set_state(db, [job], "RUNNING")


def test_a_failed_parent_started_again_revives_the_children_that_failed_only_because_of_it(db):
    a, b, c, d = add(db, {"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"})
    with db.write() as cx:
        for parent, child in ((a, b), (b, c), (a, d)):
            graph.add_dependency(cx, parent, child, 1)
    user_actions.set_state(db, [d], "FAILED")  # by the user, not because of its parent
    user_actions.set_state(db, [a], "FAILED")
    assert [state(db, job) for job in (b, c, d)] == ["FAILED"] * 3
    user_actions.set_state(db, [a], "RESTART_READY")
    assert [state(db, job) for job in (b, c, d)] == ["AWAITING_PARENTS", "AWAITING_PARENTS", "FAILED"]
    lease = open_lease(db)
    for job in (a, b, c):
        (claim,) = take(db, lease)
        assert claim.job == job
        finish(db, lease, claim)
    assert state(db, c) == "JOB_FINISHED"


def test_created_makes_a_job_wait_for_its_parents_again(db):
    a, b = add(db, {}, {})
    with db.write() as cx:
        graph.add_dependency(cx, a, b, 1)
    user_actions.set_state(db, [b], "CREATED")
    assert state(db, b) == "AWAITING_PARENTS"


def test_cycles_duplicates_and_late_parents_are_refused_and_nothing_is_written(db):
    a, b, c, late = add(db, {}, {}, {}, {})
    with db.write() as cx:
        graph.add_dependency(cx, a, b, 1)
        graph.add_dependency(cx, b, c, 1)
    for error, parent, child in (
        (DependencyCycle, c, a),
        (DependencyCycle, a, a),
        (DuplicateDependency, a, b),
    ):
        with pytest.raises(error), db.write() as cx:
            graph.add_dependency(cx, parent, child, 1)
    user_actions.set_state(db, [a], "JOB_FINISHED")
    with pytest.raises(StateError, match="already started"), db.write() as cx:
        graph.add_dependency(cx, late, a, 1)
    with db.read() as cx:
        assert queries.edges(cx) == [(a, b), (b, c)]


def test_the_cycle_check_is_linear_on_a_deep_diamond(db):
    jobs = add(db, *[{} for _ in range(300)])
    with db.write() as cx:
        edges = [(jobs[i], jobs[i + k]) for i in range(297) for k in (1, 2, 3)]
        graph.add_edges(cx, edges, 1)  # 3 ** 100 paths
        with pytest.raises(DependencyCycle):
            graph.add_dependency(cx, jobs[-1], jobs[0], 1)


def test_a_parent_others_wait_for_is_removed_only_by_force_and_its_children_fail_with_the_reason(db):
    a, b = add(db, {}, {})
    with db.write() as cx:
        graph.add_dependency(cx, a, b, 1)
    with pytest.raises(ParentInUse):
        user_actions.delete(db, [a])
    assert user_actions.delete(db, [a], force=True) == 1
    with db.read() as cx:
        assert queries.history(cx, b)[-1][2:] == ("FAILED", "A parent job was removed from the DB")
        assert queries.edges(cx) == []
        assert cx.execute("SELECT count(*) FROM event WHERE job = ?", (a,)).fetchone() == (0,)


def test_killing_thousands_of_waiting_jobs_is_one_transaction(db):
    jobs = add(db, *[{} for _ in range(large_writes.MAX_DIRECT_JOBS)])
    statements = []
    with db.read() as cx:
        cx.set_trace_callback(lambda sql: statements.append(sql) if sql.startswith(("BEGIN", "COMMIT")) else None)
    assert user_actions.kill(db, jobs).killed == large_writes.MAX_DIRECT_JOBS
    assert [sql.split()[0] for sql in statements] == ["BEGIN", "COMMIT"]
    with db.read() as cx:
        assert select.count_states(cx) == {"USER_KILLED": large_writes.MAX_DIRECT_JOBS}


# --- adding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "error", "words"),
    [
        ({"nodes": 3}, UnknownField, "node_packing_count|num_nodes"),
        ({"num_nodes": 0}, InvalidSpec, "num_nodes must be 1 or more"),
        ({"application": "b"}, UnknownApp, "no application 'b'"),
        ({"state": "RUNNING"}, InvalidSpec, "cannot be set"),
        ({"parents": [99]}, UnknownJob, "parent"),
        ({"name": "a\nb"}, InvalidSpec, "one line"),
        ({"data": {"x": object()}}, InvalidSpec, "JSON"),
        ({"args": "'"}, InvalidSpec, "closing quotation"),
    ],
)
def test_one_bad_job_among_many_adds_none(db, job, error, words):
    many = [{"application": "a"} for _ in range(30)] + [{"application": "a", **job}]
    with pytest.raises(error, match=words):
        insert.add_jobs(db, many)
    with db.read() as cx:
        assert select.count_jobs(cx) == 0
        assert cx.execute("SELECT count(*) FROM job").fetchone() == (0,)


def test_a_generator_may_use_the_db_and_may_fail_half_way(db):
    def jobs():
        for number in range(12_000):
            if number == 5:
                add(db, {"name": "inner"})
            if number == 11_999:
                raise KeyError("broken generator")
            yield {"application": "a", "name": str(number)}

    with pytest.raises(KeyError):
        insert.add_jobs(db, jobs())
    with db.read() as cx:
        assert [row[0] for row in select.job_rows(cx, columns=("name",))] == ["inner"]


def test_a_short_id_that_is_taken_is_drawn_anew_with_its_workdir(db, monkeypatch):
    same = ["00000000-0000-4000-8000-00000000000" + str(n) for n in range(3)]
    fresh = iter([*same, "11111111-0000-4000-8000-000000000000", same[0], "22222222-0000-4000-8000-000000000000"])
    monkeypatch.setattr("balsam_lite.core.field_specs.new_job_id", lambda: next(fresh))
    add(db, {"name": "x"}, {"name": "x"}, {"name": "x"})
    with db.read() as cx:
        rows = select.job_rows(cx, columns=("job_id", "workdir"))
    assert len({row[0][:8] for row in rows}) == 3
    assert all(row[1] == f"x_{row[0][:8]}" for row in rows)


def test_an_app_name_is_taken_once(db):
    with pytest.raises(DuplicateApp), db.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "other"})


# --- many jobs at once ------------------------------------------------------------------------------------------------


def events_of(db, job):
    with db.read() as cx:
        return cx.execute("SELECT from_state, to_state, time FROM event WHERE job = ? ORDER BY id", (job,)).fetchall()


def statements(db, work):
    """The statements that `work(cx)` executes in a transaction of its own."""
    seen = []
    with db.write() as cx:
        cx.set_trace_callback(seen.append)
        work(cx)
        cx.set_trace_callback(None)
    return seen


def test_jobs_that_change_alike_are_claimed_and_ended_by_one_update_each_time(db):
    def turn(jobs):
        add(db, *[{}] * jobs)
        lease = open_lease(db)
        claiming = statements(db, lambda cx: taken.extend(claims.take(cx, lease, Slots(jobs), claims.Filter(), 2).to_run))
        exits = [runs.RunResult(claim.job, 1, states.RUN_DONE, 0, "", 3, 4) for claim in taken[-jobs:]]
        ending = statements(db, lambda cx: claims.finish(cx, lease, exits, 5))
        begun = sum("INTO run" in sql for sql in claiming)
        assert begun == jobs, "a row of each"
        return [[sql.split()[0] for sql in one if "UPDATE job" in sql] for one in (claiming, ending)], len(claiming) - begun

    taken = []
    few, many = turn(5), turn(50)
    assert few == many
    assert few[0] == [["UPDATE"], ["UPDATE"]]
    assert {state(db, claim.job) for claim in taken} == {"JOB_FINISHED"}


def test_each_job_gets_its_own_events_in_order_however_they_are_grouped(db):
    alike = add(db, {}, {}, {})
    other = add(db, {"max_retries": 1})
    lease = open_lease(db)
    taken = {claim.job: claim for claim in take(db, lease)}
    codes = dict(zip([*alike, *other], (0, 0, 3, 3)))
    results = {0: states.RUN_DONE, 3: states.RUN_ERROR}
    exits = [
        runs.RunResult(job, taken[job].attempt, results[code], code, "", 10 + job, 20 + job) for job, code in codes.items()
    ]
    with db.write() as cx:
        claims.finish(cx, lease, exits, 30)
    start = [("CREATED", "PREPROCESSED", 2), ("PREPROCESSED", "RUNNING", 2)]
    ends = {"done": ["RUN_DONE", "JOB_FINISHED"], "failed": ["RUN_ERROR", "FAILED"], "again": ["RUN_ERROR", "RESTART_READY"]}
    for job, end in zip([*alike, *other], ("done", "done", "failed", "again")):
        path = ["RUNNING", *ends[end]]
        assert events_of(db, job) == [*start, *((a, b, 20 + job) for a, b in zip(path, path[1:]))]
        with db.read() as cx:
            row = queries.job(cx, job)
        assert (row["state"], row["return_code"], row["lease"], row["retries"]) == (
            path[-1],
            codes[job],
            None,
            int(end == "again"),
        )


def test_no_job_changes_if_one_of_many_is_not_in_the_expected_state(db):
    jobs = add(db, {}, {}, {})
    user_actions.kill(db, jobs[1:2])
    with pytest.raises(RuntimeError, match="3 jobs were to change their state, 2 did"), db.write() as cx:
        transitions.apply(cx, [transitions.Transition(job, ("CREATED", "READY"), 3) for job in jobs], states.STEP)
    assert [state(db, job) for job in jobs] == ["CREATED", "USER_KILLED", "CREATED"]


def test_jobs_are_updated_by_their_numbers_and_no_index_is_searched(db):
    jobs = add(db, *[{}] * 20)
    changes = statements(
        db,
        lambda cx: transitions.apply(
            cx, [transitions.Transition(job, ("CREATED", "READY"), 3) for job in jobs], states.STEP, only_if=FREE
        ),
    )
    (update,) = (sql for sql in changes if "UPDATE job" in sql)
    with db.read() as cx:
        plan = [row[3] for row in cx.execute(f"EXPLAIN QUERY PLAN {update}") if " job" in row[3]]
    assert plan == ["SEARCH job USING INTEGER PRIMARY KEY (rowid=?)"]


# --- plans ------------------------------------------------------------------------------------------------------------


def hot_queries(cx):
    """Each query that a launcher's tick or a listing asks, by name."""
    within = claims.Filter(minutes_left=10.0)
    yield "shapes", lambda: claims.shapes(cx)
    yield "shapes of a workflow", lambda: claims.shapes(cx, claims.sources(("w1",)))
    for workflows in (None, ("w1",)):
        for source in claims.sources(workflows):
            yield f"best of {workflows}", lambda source=source: claims._best(cx, source, claims.Shape(1, 1, 1, 0), 5, within)
    yield "still held", lambda: claims.still_held(cx, 1)
    yield "suspects", lambda: claims.fitting_suspects(cx, Slots(1), within)
    yield "unsettled", lambda: steps.settle_abandoned(cx, 1, 5, 1)
    yield "ls --state", lambda: select.job_rows(cx, {"state": "JOB_FINISHED"}, limit=5)
    yield "ls --id", lambda: select.job_rows(cx, {"which": "fab50000"}, limit=5)
    for word in ("#7", "7", "fab5", "fab50000", "fab50000-0000-4000-8000-000000000000"):
        yield f"which job is {word}", lambda word=word: fits(cx, word)
    yield "ls --wf", lambda: select.job_rows(cx, {"workflow": "w1"}, limit=5)
    yield "ls", lambda: select.job_rows(cx, limit=5)
    yield "ls wf", lambda: queries.workflows(cx)
    yield "ls --by-states", lambda: select.count_states(cx)
    yield "ls --history", lambda: queries.history(cx, 1)
    yield "settle", lambda: graph.settle(cx, [1], 1)
    yield "propagate", lambda: graph.propagate(cx, [1], [2], 1)
    yield "reconsider children", lambda: graph.reconsider_children(cx, [1], 1)


def fits(cx, word):
    with suppress(UnknownJob, AmbiguousJobId):
        queries.find_job(cx, word)


def cost(db):
    """Query name -> steps of SQLite's machine, in tens."""
    steps = {}
    with db.write() as cx:
        for name, ask in hot_queries(cx):
            counted = []
            cx.set_progress_handler(lambda counted=counted: counted.append(1) and None, 10)
            ask()
            cx.set_progress_handler(None, 10)
            steps[name] = len(counted)
    return steps


def test_hot_queries_cost_the_same_with_thirty_times_the_jobs_and_after_analyze(db):
    def more(number):
        add(db, *[{"workflow": f"w{n % 3}", "priority": n % 2, "node_packing_count": 1 + n % 2} for n in range(number)])

    more(200)
    user_actions.set_state(db, range(1, 100), "JOB_FINISHED")
    few = cost(db)
    more(6000)
    user_actions.set_state(db, range(1000, 4000), "JOB_FINISHED")
    with db.read() as cx:
        cx.execute("ROLLBACK")
        cx.execute("ANALYZE")  # statistics must not talk the planner out of the index
        cx.execute("BEGIN")
    db.close()
    many = cost(db)
    assert {name: steps for name, steps in many.items() if steps > 1.2 * few[name] + 10} == {}


# --- property ---------------------------------------------------------------------------------------------------------

JOBS = st.integers(min_value=0, max_value=9)
RUN_WHEN = st.sampled_from(["all_finished", "all_finished", "all_ended", "any_finished"])


#: What `undo` takes back.
DEEDS = {
    "rm": lambda db, jobs: user_actions.delete(db, jobs, force=True),
    "kill": user_actions.kill,
    "kill recursively": lambda db, jobs: user_actions.kill(db, jobs, recursive=True),
    "rerun": lambda db, jobs: user_actions.rerun(db, jobs, values={"priority": 7, "data": {"k": 1}}),
    "rerun as new": lambda db, jobs: user_actions.rerun(db, jobs, "CREATED"),
    "modify": lambda db, jobs: user_actions.update_fields(
        db, jobs, {"workflow": "x", "tags": {"a": "b"}, "run_when": "all_ended"}
    ),
    "fail": lambda db, jobs: user_actions.set_state(db, jobs, "FAILED"),
    "finish": lambda db, jobs: user_actions.set_state(db, jobs, "JOB_FINISHED"),
}


class StoreMachine(RuleBasedStateMachine):
    """Launchers, their deaths, scripts, users and dependencies in any order.

    No job may become RUNNING while its `run_when` does not hold, none may be stuck, and the counts of parents in the rows must
    agree with the rows of the parents.
    """

    @initialize()
    def start(self):
        import tempfile

        caller.command = "balsam test"  # `undo` looks for commands
        self.directory = tempfile.TemporaryDirectory()
        self.db = directories.create(self.directory.name + "/db")
        with self.db.write() as cx:
            apps.add_app(cx, {"name": "a", "executable": "true"})
            apps.add_app(cx, {"name": "scripts", "executable": "true", "preprocess": "true", "postprocess": "true"})
        self.jobs: list[int] = []
        self.leases: list[int] = []
        self.held: dict[tuple[int, int], claims.Claim] = {}  # (lease, job): those that run …
        self.steps: dict[tuple[int, int], claims.Claim] = {}  # … and those that are in a step
        self.now = 1

    def teardown(self):
        if not hasattr(self, "db"):
            return
        self.run_to_the_end()
        self.db.close()
        self.directory.cleanup()

    def unfinished(self) -> set[int]:
        """Return the jobs that a large write has still to change, or to tell that a parent has ended."""
        return set()

    def complete_writes(self) -> bool:
        """Complete large writes, if there can be any. Return whether there was something left of them."""
        return False

    def run_to_the_end(self):
        """With every launcher dead and one more that runs whatever it gets, all jobs come to an end."""
        while self.leases:
            self.die(0, False)
        lease = open_lease(self.db, 99)
        for _ in range(200):
            with self.db.write() as cx:
                left = steps.settle_abandoned(cx, lease, 10, 7)
                taken = claims.take(cx, lease, Slots(3, 3), claims.Filter(), 2)
                ends = [runs.RunResult(c.job, c.attempt, states.RUN_DONE, 0, "", 3, 4) for c in taken.to_run]
                if not left and not taken.to_run and not taken.to_prepare:
                    taken, left = take_suspects(cx, lease, Slots(3, 3))
                    ends = [runs.RunResult(c.job, c.attempt, states.RUN_DONE, 0, "", 3, 4) for c in taken.to_run]
                left += claims.finish(cx, lease, ends, 5).to_settle
                steps.finish(cx, lease, [step_end(claim) for claim in (*left, *taken.to_prepare)], 6)
            if not self.complete_writes() and not left and not taken.to_run and not taken.to_prepare:
                break
        with self.db.read() as cx:
            stuck = "SELECT id, state, lease, run_when, unfinished_parents FROM job WHERE state NOT IN (?, ?, ?)"
            assert cx.execute(stuck, states.END_STATES).fetchall() == []
        self.the_rows_tell_one_story()

    def job(self, number):
        return self.jobs[number % len(self.jobs)]

    @rule(
        packing=st.sampled_from([1, 2]),
        limit=st.integers(0, 2),
        retry=st.booleans(),
        parents=st.lists(JOBS, max_size=3),
        run_when=RUN_WHEN,
        waits=st.sampled_from([True, True, True, False]),
        app=st.sampled_from(["a", "a", "scripts"]),
    )
    def add(self, packing, limit, retry, parents, run_when, waits, app):
        chosen = sorted({self.job(n) for n in parents}) if self.jobs else []
        fields = {"node_packing_count": packing, "restart_limit": limit, "auto_timeout_retry": retry, "parents": chosen}
        self.jobs += add(self.db, {**fields, "run_when": run_when, "wait_for_parents": waits, "application": app})

    @rule()
    def launch(self):
        self.leases.append(open_lease(self.db, len(self.leases) + 1))

    @precondition(lambda self: self.leases)
    @rule(lease=JOBS, free=st.integers(1, 3))
    def claim(self, lease, free):
        lease = self.leases[lease % len(self.leases)]
        holding = self.run_when_holds()
        with self.db.write() as cx:
            taken = claims.take(cx, lease, Slots(free, free), claims.Filter(), 2)
        for claim in (*taken.to_run, *taken.to_prepare):
            assert not [key for key in (*self.held, *self.steps) if key[1] == claim.job], "two holders"
            assert holding[claim.job], "it does not hold"
            with self.db.read() as cx:
                assert cx.execute("SELECT launcher_deaths < 2 FROM job WHERE id = ?", (claim.job,)).fetchone()[0], "a suspect"
        self.held.update({(lease, claim.job): claim for claim in taken.to_run})
        self.steps.update({(lease, claim.job): claim for claim in taken.to_prepare})

    @precondition(lambda self: self.leases)
    @rule(lease=JOBS, free=st.integers(1, 3))
    def claim_suspects(self, lease, free):
        lease = self.leases[lease % len(self.leases)]
        holding = self.run_when_holds()
        with self.db.write() as cx:
            taken, left = take_suspects(cx, lease, Slots(free, free))
        for claim in (*taken.to_run, *taken.to_prepare, *left):
            assert not [key for key in (*self.held, *self.steps) if key[1] == claim.job], "two holders"
        assert all(holding[claim.job] for claim in (*taken.to_run, *taken.to_prepare)), "it does not hold"
        self.held.update({(lease, claim.job): claim for claim in taken.to_run})
        self.steps.update({(lease, claim.job): claim for claim in (*taken.to_prepare, *left)})

    @precondition(lambda self: self.held)
    @rule(which=JOBS, result=st.sampled_from(["RUN_DONE", "RUN_DONE", "RUN_ERROR", "RUN_TIMEOUT", "RESTART_READY"]))
    def end(self, which, result):
        key = sorted(self.held)[which % len(self.held)]
        claim = self.held.pop(key)
        with self.db.write() as cx:
            reported = claims.finish(cx, key[0], [runs.RunResult(claim.job, claim.attempt, result, 0, "", 3, 4)], 5)
        assert reported.lost in ([], [key[1]])
        if reported.lost:
            with self.db.read() as cx, pytest.raises(UnknownJob):
                queries.job(cx, key[1])
        self.steps.update({(key[0], kept.job): kept for kept in reported.to_settle})

    @precondition(lambda self: self.steps)
    @rule(which=JOBS, wanted=st.sampled_from([state for state in states.STATES if state != "RUNNING"]))
    def script_moves_its_job(self, which, wanted):
        key = sorted(self.steps)[which % len(self.steps)]
        with self.db.read() as cx:
            found = cx.execute("SELECT job_id, lease, attempt FROM job WHERE id = ?", (key[1],)).fetchone()
            (db_id,) = cx.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()
        if found is None:
            return
        variables = {
            "BALSAM_HOOK": "postprocess",
            "BALSAM_JOB_ID": found[0],
            "BALSAM_RUN": f"{db_id}:{key[0]}:{key[1]}:{found[2]}",
        }
        with mock.patch.dict(os.environ, variables), suppress(StateError, LostLease):
            user_actions.set_state(self.db, [key[1]], wanted)

    @precondition(lambda self: self.steps)
    @rule(which=JOBS, interrupted=st.booleans())
    def end_step(self, which, interrupted):
        key = sorted(self.steps)[which % len(self.steps)]
        with self.db.write() as cx:
            steps.finish(cx, key[0], [step_end(self.steps.pop(key))._replace(interrupted=interrupted)], 6)

    @precondition(lambda self: self.leases)
    @rule(lease=JOBS, is_counted=st.booleans())
    def die(self, lease, is_counted):
        dead = self.leases.pop(lease % len(self.leases))
        with self.db.write() as cx:
            (found,) = [one for one in leases.open_leases(cx) if one.id == dead]
            leases.reap(cx, found, 5, may_have_killed=lambda facts: is_counted)
        zombies = [claim for (holder, _), claim in self.held.items() if holder == dead]
        self.held = {key: claim for key, claim in self.held.items() if key[0] != dead}
        self.steps = {key: claim for key, claim in self.steps.items() if key[0] != dead}
        for claim in zombies:
            before = self.snapshot()
            assert finish(self.db, dead, claim) == [claim.job]
            assert self.snapshot() == before

    @precondition(lambda self: self.jobs)
    @rule(job=JOBS, wanted=st.sampled_from(states.STATES))
    def set_state(self, job, wanted):
        before = self.snapshot()
        try:
            user_actions.set_state(self.db, [self.job(job)], wanted)
        except StateError:
            assert self.snapshot() == before

    @precondition(lambda self: self.jobs)
    @rule(jobs=st.lists(JOBS, min_size=1, max_size=10), values=st.sampled_from([{}, {}, {"run_when": "all_ended"}]))
    def rerun(self, jobs, values):
        user_actions.rerun(self.db, sorted({self.job(job) for job in jobs}), values=values)

    @precondition(lambda self: self.jobs)
    @rule(job=JOBS, run_when=RUN_WHEN, waits=st.booleans())
    def modify(self, job, run_when, waits):
        user_actions.update_fields(self.db, [self.job(job)], {"run_when": run_when, "wait_for_parents": waits})

    @precondition(lambda self: self.jobs)
    @rule(jobs=st.lists(JOBS, min_size=1, max_size=3), workflow=st.sampled_from(["", "one", "two"]))
    def move(self, jobs, workflow):
        user_actions.update_fields(self.db, sorted({self.job(job) for job in jobs}), {"workflow": workflow})

    @precondition(lambda self: self.jobs)
    @rule(job=JOBS, recursive=st.booleans())
    def kill(self, job, recursive):
        user_actions.kill(self.db, [self.job(job)], recursive=recursive)

    @precondition(lambda self: len(self.jobs) > 1)
    @rule(job=JOBS, force=st.booleans())
    def delete(self, job, force):
        chosen = self.job(job)
        try:
            user_actions.delete(self.db, [chosen], force=force)
        except ParentInUse:
            return
        self.jobs.remove(chosen)

    @precondition(lambda self: len(self.jobs) > 1)
    @rule(parent=JOBS, child=JOBS)
    def depend(self, parent, child):
        try:
            with self.db.write() as cx:
                graph.add_dependency(cx, self.job(parent), self.job(child), 1)
        except (DependencyCycle, DuplicateDependency, StateError):
            pass

    @precondition(lambda self: len(self.jobs) > 1)
    @rule(parents=st.lists(JOBS, max_size=3), child=JOBS)
    def set_parents(self, parents, child):
        with suppress(DependencyCycle, StateError), self.db.write() as cx:
            graph.set_parents(cx, self.job(child), [self.job(parent) for parent in parents], 1)

    @precondition(lambda self: self.jobs)
    @rule(jobs=st.lists(JOBS, min_size=1, max_size=4), what=st.sampled_from(sorted(DEEDS)))
    def do_and_undo(self, jobs, what):
        chosen = sorted({self.job(job) for job in jobs})
        with self.db.read() as cx:
            if cx.execute("SELECT 1 FROM job WHERE lease IS NOT NULL OR start_after IS NOT NULL").fetchone():
                return
            # A child whose run_when was changed after it had failed is revived by any change of a parent, and stays so.
            ignores_parents = f"""SELECT 1 FROM job WHERE wait_for_parents = 0 AND id IN (SELECT child FROM dependency)
                OR {graph.FAILED_WITH_PARENT} AND {graph.CAUSE} IS NULL"""
            if cx.execute(ignores_parents).fetchone():
                return
        if self.unfinished():
            return
        before, known = self.picture(), self.last_action()
        with suppress(StateError):
            DEEDS[what](self.db, chosen)
        self.complete_writes()
        self.the_rows_tell_one_story()
        action = self.last_action()
        if action is None or action == known:
            return
        done = undo.take_back(self.db, action)
        self.complete_writes()
        after = self.picture()
        changes = [pair for rows in zip(before, after) for pair in zip(*rows) if pair[0] != pair[1]]
        assert after == before, (what, changes)
        assert not done.left

    def last_action(self):
        with self.db.read() as cx:
            try:
                return undo.find(cx)
            except NotFound:
                return None

    def picture(self):
        """Return the jobs with their fields, states and dependencies; all states in which a job waits are one."""
        waiting = (*states.UNPREPARED_STATES, states.AWAITING_PARENTS, *states.RUNNABLE_STATES)
        columns = "id, workflow, data, tags, priority, run_when, wait_for_parents, attempt, restarts, retries, launcher_deaths"
        with self.db.read() as cx:
            jobs = cx.execute(
                f"""SELECT {columns}, CASE WHEN state IN ({sql_list(waiting)}) THEN 'waits' ELSE state END,
                    (SELECT cause FROM failure WHERE id = job.failure), (SELECT count(*) FROM run WHERE job = job.id)
                    FROM job WHERE {VISIBLE} ORDER BY id"""
            ).fetchall()
            edges = cx.execute("SELECT * FROM dependency ORDER BY parent, child").fetchall()
            tags = cx.execute("SELECT job, key, value FROM job_tag JOIN tag ON tag.id = tag ORDER BY 1, 2, 3").fetchall()
            return jobs, edges, tags

    @rule()
    def settle(self):
        with self.db.write() as cx:
            steps.settle_abandoned(cx, 1, 0, 7)

    def snapshot(self):
        with self.db.read() as cx:
            return cx.execute("SELECT id, state, lease, attempt, restarts FROM job ORDER BY id").fetchall()

    def run_when_holds(self) -> dict[int, bool | None]:
        """Return for each job, by its parents' rows, whether its `run_when` holds; None: it cannot any more."""
        with self.db.read() as cx:
            jobs = cx.execute("SELECT id, run_when, wait_for_parents FROM job").fetchall()
            parents: dict[int, list[tuple[str, int | None]]] = {job: [] for job, _, _ in jobs}
            for child, *parent in cx.execute("SELECT child, state, lease FROM dependency JOIN job ON job.id = parent"):
                parents[child].append(tuple(parent))
        return {job: not waits or holds(run_when, parents[job]) for job, run_when, waits in jobs}

    @invariant()
    def the_rows_tell_one_story(self):
        if not hasattr(self, "db"):
            return
        holding, unfinished = self.run_when_holds(), self.unfinished()
        with self.db.read() as cx:
            for job, now, lease, attempt, _ in self.snapshot():
                events = cx.execute("SELECT from_state, to_state FROM event WHERE job = ? ORDER BY id", (job,)).fetchall()
                chain = ["CREATED", *[new for _, new in events]]
                assert [old for old, _ in events] == chain[:-1]
                assert chain[-1] == now
                assert all(states.is_edge(old, new) for old, new in events), events
                assert (now == "RUNNING") <= (lease is not None)
                assert sum(new == "RUNNING" for _, new in events) == attempt
                if lease is None and job not in unfinished:
                    assert (now == "AWAITING_PARENTS") <= (holding[job] is False), (job, now, events)
                    assert (now in (*states.UNPREPARED_STATES, *states.RUNNABLE_STATES)) <= (holding[job] is True), (
                        job,
                        events,
                    )
            counted = dict(cx.execute(f"SELECT state, count(*) FROM job WHERE {VISIBLE} GROUP BY state"))
            assert select.count_states(cx) == counted
            by_workflow = f"SELECT workflow, state, count(*) FROM job WHERE {VISIBLE} GROUP BY 1, 2 ORDER BY 1, 2"
            assert cx.execute("SELECT * FROM workflow_count").fetchall() == cx.execute(by_workflow).fetchall()
            failures = dict(cx.execute(f"SELECT failure, count(*) FROM job WHERE {VISIBLE} AND failure > 0 GROUP BY 1"))
            assert dict(cx.execute("SELECT id, jobs FROM failure WHERE jobs <> 0")) == failures
            assert cx.execute("SELECT id FROM job WHERE (state = 'FAILED') <> (failure IS NOT NULL)").fetchall() == []
            assert cx.execute("SELECT cause FROM failure WHERE cause = 'unknown'").fetchall() == []
            hidden_ones = cx.execute(f"SELECT attempt, lease FROM job WHERE NOT {VISIBLE}").fetchall()
            assert set(hidden_ones) <= {(0, None)}
            for job, count in cx.execute("SELECT id, unfinished_parents FROM job"):
                assert job in unfinished or (count == 0) == (holding[job] is True), (job, count)
            wrong = f"SELECT id FROM job WHERE unfinished_parents <> {graph.UNFINISHED_PARENTS}"
            assert {job for (job,) in cx.execute(wrong)} <= unfinished


def take_suspects(cx, lease, room):
    """Take the suspects that a launcher would run next; return what was claimed, and what is to be settled."""
    group = suspects.next_group(claims.fitting_suspects(cx, room, claims.Filter()))
    if not group:
        return claims.ClaimResult([], []), []
    taken = claims.take_suspects(cx, lease, room, claims.Filter(), group, 2)
    return taken, steps.settle_suspects(cx, lease, group, 3, 7)


def holds(run_when: str, parents: list[tuple[str, int | None]]) -> bool | None:
    """Return whether parents in these states, with these leases, let a job run; None: they cannot any more."""
    ended = [state for state, lease in parents if lease is None and state in states.END_STATES]
    finished = ended.count("JOB_FINISHED")
    if run_when == "all_finished":
        return None if len(ended) > finished else finished == len(parents)
    if run_when == "all_ended" or not parents:
        return len(ended) == len(parents)
    return True if finished else None if len(ended) == len(parents) else False


def step_end(claim: claims.Claim) -> steps.StepEnd:
    """Return the end of a step that succeeded."""
    if claim.state in states.UNPREPARED_STATES:
        return steps.StepEnd(claim, ("PREPROCESSED",))
    if claim.state in (states.RUN_ERROR, states.RUN_TIMEOUT):
        return steps.StepEnd(claim, (), "no handler", "no handler")
    return steps.StepEnd(claim, ("POSTPROCESSED", "JOB_FINISHED") if claim.state == "RUN_DONE" else ("JOB_FINISHED",))


StoreMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestStoreMachine = StoreMachine.TestCase


class PiecesMachine(StoreMachine):
    """The same with large writes, cut into pieces of one job each; anything may happen between two pieces."""

    @initialize()
    def start(self):
        self.small = ExitStack()
        self.small.enter_context(mock.patch.multiple(large_writes, MAX_DIRECT_JOBS=1, JOBS_PER_PART=1))
        self.small.enter_context(
            mock.patch.multiple(pieces, PIECE_S=0, complete=lambda *_: Counter(), _is_abandoned=lambda *_: True)
        )
        self.insertion = None
        super().start()

    def teardown(self):
        super().teardown()
        self.small.close()

    def complete_writes(self):
        is_done = False
        while pieces.advance_abandoned(self.db):
            self.the_rows_tell_one_story()
            is_done = True
        assert self.unfinished() == set()
        return is_done

    def run_to_the_end(self):
        if self.insertion:
            self.insertion.undo()
        super().run_to_the_end()
        with self.db.read() as cx:
            assert cx.execute("SELECT count(*) FROM large_write").fetchone() == (0,)
            assert cx.execute("SELECT count(*) FROM job WHERE start_after IS NOT NULL").fetchone() == (0,)

    def unfinished(self):
        with self.db.read() as cx:
            parts = cx.execute("SELECT action, value FROM large_write_part, json_each(jobs)").fetchall()
            edges = cx.execute("SELECT parent, child FROM dependency").fetchall()
            given_up = "SELECT job.id FROM job JOIN large_write ON job.id BETWEEN first AND last WHERE pid = 0"
            parts += [("discard", job) for (job,) in cx.execute(given_up)]
        told = {job for action, job in parts if action == "tell_children"}
        return {job for _, job in parts} | {child for parent, child in edges if parent in told}

    @rule()
    def advance(self):
        pieces.advance_abandoned(self.db)

    @precondition(lambda self: self.insertion is None)
    @rule(parents=st.lists(JOBS, max_size=2), run_when=RUN_WHEN)
    def begin_insert(self, parents, run_when):
        known = sorted({self.job(parent) for parent in parents}) if self.jobs else []
        chain = [{"run_when": run_when, "parents": [*known, *(insert.Position(n) for n in range(place))]} for place in range(3)]
        spool = insert._Spool()
        for chunk in insert._checked(chain, None, spool.parents):
            spool.put(chunk)
        self.insertion = insert.Insertion(self.db, spool, insert._resolved(spool, []))

    @precondition(lambda self: self.insertion is not None)
    @rule(is_cut=st.booleans())
    def insert_more(self, is_cut):
        insertion = self.insertion
        try:
            if is_cut:
                insertion.undo()
            elif insertion.advance():
                return
            else:
                self.jobs += insertion.release().ids
        except (UnknownJob, DatabaseError):  # a parent was removed, or the insert was taken for dead
            insertion.undo()
        self.insertion = None

    @precondition(lambda self: self.jobs)
    @rule(jobs=st.lists(JOBS, min_size=2, max_size=10), wanted=st.sampled_from(states.STATES))
    def set_states(self, jobs, wanted):
        before = self.snapshot()
        try:
            user_actions.set_state(self.db, sorted({self.job(job) for job in jobs}), wanted)
        except StateError:
            assert self.snapshot() == before

    @precondition(lambda self: len(self.jobs) > 3)
    @rule(jobs=st.lists(JOBS, min_size=2, max_size=3), force=st.booleans())
    def delete_several(self, jobs, force):
        chosen = sorted({self.job(job) for job in jobs})
        with suppress(ParentInUse):
            user_actions.delete(self.db, chosen, force=force)
            self.jobs = [job for job in self.jobs if job not in chosen]


PiecesMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPiecesMachine = PiecesMachine.TestCase
