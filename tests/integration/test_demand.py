"""What waits, by shape and estimate; jobs planned for a launch, and who takes them."""

from __future__ import annotations

from collections import Counter

import pytest
from helpers import Slots
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_lite.core import process_table
from balsam_lite.core.clock import SECOND_US
from balsam_lite.db.engine import directories
from balsam_lite.db.query import demand
from balsam_lite.db.query.demand import Work
from balsam_lite.db.store import apps, batch_jobs, claims, insert, leases, user_actions
from balsam_lite.db.store.claims import Filter, Shape

SERIAL = Shape(1, 1, 1, 0)


@pytest.fixture
def db(tmp_path):
    database = fresh(tmp_path)
    yield database
    database.close()


def fresh(directory):
    database = directories.create(str(directory / "db"))
    with database.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    return database


def add(db, *jobs):
    return list(insert.add_jobs(db, [{"application": "a", **job} for job in jobs]).ids)


def launch(db, **values):
    with db.write() as cx:
        return batch_jobs.add(cx, values, 1)


def take(db, free=1, **only):
    with db.write() as cx:
        lease = leases.open_lease(cx, "launcher", process_table.Holder.current(), "", 1)
        taken = claims.take(cx, lease, Slots(free, 5), Filter(**only), 2)
    return [claim.job for claim in (*taken.to_run, *taken.to_prepare)]


def planned_for(db):
    """Launch -> its jobs."""
    found = {}
    with db.read() as cx:
        for job, number in cx.execute("SELECT id, queued_launch_id FROM job WHERE queued_launch_id IS NOT NULL ORDER BY id"):
            found.setdefault(number, []).append(job)
    return found


# --- counting ---------------------------------------------------------------------------------------------------------

JOBS = st.fixed_dictionaries(
    {
        "num_nodes": st.sampled_from([1, 2]),
        "node_packing_count": st.sampled_from([1, 3]),
        "wall_time_minutes": st.sampled_from([1, 5, 60, 2**53]),
        "priority": st.sampled_from([-(2**53), 0, 2**53]),
        "workflow": st.sampled_from(["w1", "w2", ""]),
    }
)
STATES = st.sampled_from(["CREATED", "READY", "PREPROCESSED", "RESTART_READY", "JOB_FINISHED", "RUN_DONE", "FAILED"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(JOBS, STATES), max_size=25))
def test_counts_by_shape_and_estimate_are_those_of_the_rows(tmp_path_factory, jobs):
    db = fresh(tmp_path_factory.mktemp("counted"))
    ids = add(db, *(job for job, _ in jobs))
    for number, (_, state) in zip(ids, jobs):
        if state != "CREATED":
            user_actions.set_state(db, [number], state)
    startable = [(job, state) for job, state in jobs if state in demand._STARTABLE_STATES]
    assert_counts(db, demand.startable, [job for job, _ in startable])
    assert_counts(db, lambda cx: demand.of_workflows(cx, "w*"), [job for job, _ in startable if job["workflow"]])
    with db.read() as cx:
        assert demand.has_unsettled(cx) == any(state == "RUN_DONE" for _, state in jobs)
    db.close()


def assert_counts(db, count, jobs):
    expected = Counter((Shape(job["num_nodes"], 1, job["node_packing_count"], 0), job["wall_time_minutes"]) for job in jobs)
    with db.read() as cx:
        assert {work[:2]: work.jobs for work in count(cx)} == expected


def test_very_many_equal_jobs_are_told_from_the_counters_of_states(db, monkeypatch):
    monkeypatch.setattr(demand, "MAX_EQUAL_ENTRIES", 10)
    monkeypatch.setattr(demand, "MAX_ENTRIES", 40)
    monkeypatch.setattr(demand, "MAX_RUNS", 12)
    add(db, *[{"wall_time_minutes": 5} for _ in range(100)], *[{"num_nodes": 2} for _ in range(7)])
    with db.read() as cx:
        assert demand.startable(cx) == [Work(SERIAL, 5, 100), Work(Shape(2, 1, 1, 0), 1, 7)]
    add(db, *[{"num_nodes": 3, "wall_time_minutes": 1 + n} for n in range(50)])
    with db.read() as cx:
        found = demand.startable(cx)
    assert sum(work.jobs for work in found) == 157  # none is forgotten, only its estimate is another's
    assert {work.shape.num_nodes for work in found} == {1, 2, 3}


def test_what_a_launcher_has_in_hand_shrinks_as_its_jobs_run(db):
    add(db, {"wall_time_minutes": 60, "node_packing_count": 2}, {"wall_time_minutes": 10, "num_nodes": 3})
    with db.write() as cx:
        lease = leases.open_lease(cx, "launcher", process_table.Holder.current(), "", 1)
        claims.take(cx, lease, Slots(9, 5), Filter(serial_only=False), 0)
        assert demand.held_node_minutes(cx, [lease], 0) == 60 / 2 + 10 * 3
        assert demand.held_node_minutes(cx, [lease], 20 * 60 * SECOND_US) == 40 / 2
        assert demand.held_node_minutes(cx, [lease, 99], 10**15) == 0
        assert demand.held_node_minutes(cx, [], 0) == 0


# --- planning ---------------------------------------------------------------------------------------------------------


def test_jobs_are_planned_in_the_order_of_claiming_and_for_one_launch_each(db):
    first, urgent, longer, other, long = add(
        db, {}, {"priority": 1}, {"wall_time_minutes": 9}, {"num_nodes": 2}, {"wall_time_minutes": 99}
    )
    assert batch_jobs.reserve(db, 1, SERIAL, 9, 2) == 2
    assert planned_for(db) == {1: [urgent, longer]}
    assert batch_jobs.reserve(db, 2, SERIAL, 99, 50) == 2
    assert planned_for(db) == {1: [urgent, longer], 2: [first, long]}
    assert batch_jobs.reserve(db, 3, SERIAL, 99, 50) == 0
    assert batch_jobs.reserve(db, 3, Shape(2, 1, 1, 0), 1, 0) == 0
    assert other not in planned_for(db).values()


def test_thousands_are_planned_and_given_back_in_short_transactions(db, monkeypatch):
    monkeypatch.setattr(batch_jobs, "BATCH", 7)
    ids = add(db, *[{} for _ in range(50)])
    assert batch_jobs.reserve(db, 1, SERIAL, 1, 30) == 30
    assert planned_for(db) == {1: ids[:30]}
    assert batch_jobs.unclaim(db, 1) == 30
    assert planned_for(db) == {}
    assert batch_jobs.unclaim(db, 1) == 0


def test_a_launch_that_is_over_is_found_by_what_was_planned_for_it(db):
    one, two = launch(db), launch(db)
    jobs = add(db, *[{"queued_launch_id": number} for number in (one, two, two, 77)])
    user_actions.set_state(db, jobs[:1], "PREPROCESSED")
    with db.read() as cx:
        assert batch_jobs.orphaned(cx, []) == [one, two, 77]
        assert batch_jobs.orphaned(cx, [two]) == [one, 77]


def test_what_has_ended_keeps_its_launch(db):
    number = launch(db)
    done, waiting, running = add(db, *[{"queued_launch_id": number} for _ in range(3)])
    user_actions.set_state(db, [done], "JOB_FINISHED")
    assert batch_jobs.unclaim(db, number) == 2
    assert planned_for(db) == {number: [done]}
    assert waiting != running


def test_a_launch_was_idle_only_if_nobody_ran_any_of_its_jobs(db):
    def was_idle(number):
        with db.read() as cx:
            return batch_jobs.was_idle(cx, number)

    without, idle, used, retried = (launch(db) for _ in range(4))
    for number in (idle, used, retried):
        add(db, {"queued_launch_id": number}, {"queued_launch_id": number})
    take(db, 1, launch=used, launch_only=True)
    with db.write() as cx:
        lease = leases.open_lease(cx, "launcher", process_table.Holder.current(), "", 1)
        (claim,) = claims.take(cx, lease, Slots(1, 5), Filter(launch=retried, launch_only=True), 2).to_run
        claims.finish(cx, lease, [claims.unstarted(claim, 3, "")], 3)
    assert [was_idle(number) for number in (without, idle, used, retried, 99)] == [True, True, False, False, False]


def test_the_last_of_many_planned_jobs_shows_that_a_launch_was_not_idle(db):
    number = launch(db)
    jobs = add(db, *[{"queued_launch_id": number} for _ in range(150)])
    with db.write() as cx:
        cx.execute("INSERT INTO event (job, time, from_state, to_state) VALUES (?, ?, '', 'RUNNING')", (jobs[-1], 10**18))
        assert not batch_jobs.was_idle(cx, number)


def test_a_launch_with_nothing_planned_was_idle_unless_a_launcher_began_in_it(db):
    number = launch(db)
    with db.write() as cx:
        cx.execute("UPDATE batch_job SET scheduler_id = '12.host', created = 100 WHERE id = ?", (number,))
        for kind, scheduler_id, opened in (("launcher", "12", 99), ("service", "12", 101), ("launcher", "13", 101)):
            leases.open_lease(cx, kind, process_table.Holder.current(), scheduler_id, opened)
        assert batch_jobs.was_idle(cx, number)
        leases.open_lease(cx, "launcher", process_table.Holder.current(), "12", 101)
        assert not batch_jobs.was_idle(cx, number)


# --- taking -----------------------------------------------------------------------------------------------------------


def test_a_launcher_takes_what_is_planned_for_its_launch_before_better_jobs_and_then_any(db):
    better, mine, others = add(db, {"priority": 9}, {"queued_launch_id": 1}, {"queued_launch_id": 2, "wall_time_minutes": 5})
    assert take(db, 1, launch=1) == [mine]
    assert take(db, 1, launch=1) == [better]
    assert take(db, 1, launch=1) == [others]
    assert take(db, 1, launch=1) == []


def test_places_left_by_planned_jobs_go_to_others_in_the_same_turn(db):
    other, mine, third = add(db, {}, {"queued_launch_id": 1}, {})
    assert take(db, 2, launch=1) == [mine, other]
    assert take(db, 5, launch=1) == [third]


def test_a_launcher_without_a_launch_heeds_no_plan(db):
    first, second = add(db, {"queued_launch_id": 1, "priority": 1}, {})
    assert take(db, 5) == [first, second]


def test_prescheduled_means_nothing_else(db):
    other, mine = add(db, {"priority": 9}, {"queued_launch_id": 1})
    assert take(db, 5, launch=1, launch_only=True) == [mine]
    with db.read() as cx:
        assert claims.waiting(cx, Filter(launch=1, launch_only=True)) == []
        assert claims.waiting(cx, Filter(launch=1)) == [(SERIAL, 1, 1)]
    assert take(db, 5, launch=1) == [other]


def test_a_plan_does_not_widen_the_workflow_and_the_tags(db):
    wrong, right, tagged = add(
        db,
        {"queued_launch_id": 1, "workflow": "x"},
        {"queued_launch_id": 1, "workflow": "y"},
        {"queued_launch_id": 1, "workflow": "y", "tags": {"k": "v"}},
    )
    assert take(db, 5, launch=1, workflows=("y",), tags=(("k", "v"),)) == [tagged]
    assert take(db, 5, launch=1, workflows=("y",)) == [right]
    assert take(db, 5, launch=1) == [wrong]


def test_planned_jobs_to_be_prepared_use_up_the_preparations(db):
    with db.write() as cx:
        apps.add_app(cx, {"name": "prepared", "executable": "true", "preprocess": "true"})
    mine = add(db, *[{"application": "prepared", "queued_launch_id": 1} for _ in range(4)])
    others = add(db, *[{"application": "prepared"} for _ in range(4)])
    assert take(db, 9, launch=1) == [*mine, others[0]]


def test_looking_for_planned_jobs_costs_nothing_where_others_are_planned(db):
    """Whatever is planned for other launches, and however many wait: a few seeks."""

    def steps():
        counted = []
        with db.read() as cx:
            cx.set_progress_handler(lambda: counted.append(1) and None, 10)
            claims.shapes(cx, claims.sources_of_launch(1))
            batch_jobs.orphaned(cx, [2, 3])
            cx.set_progress_handler(None, 10)
        return len(counted)

    add(db, {"queued_launch_id": 2}, {"queued_launch_id": 3})
    few = steps()
    add(db, *[{"queued_launch_id": 2 + n % 2} for n in range(3000)], *[{} for _ in range(3000)])
    assert steps() <= few + 5
