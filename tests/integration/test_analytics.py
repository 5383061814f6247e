"""Reports over events and batch jobs: the numbers of Balsam 0.7, whatever the order and the kind of time."""

from __future__ import annotations

import random
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from enum import Enum
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_lite.analytics import available_nodes, error_report, process_job_times, throughput_report, utilization_report
from balsam_lite.api import EventLog
from balsam_lite.core.clock import us_of
from balsam_lite.core.errors import InvalidSpec
from balsam_lite.db.engine import directories
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.store import apps, user_actions

T0 = datetime(2026, 5, 31, 12)  # noqa: DTZ001  # events' times are UTC without saying so


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def event(when, job, old, new, **data):
    return SimpleNamespace(timestamp=when, job_id=job, from_state=old, to_state=new, data=data)


def start(seconds, job, weight=None):
    data = {} if weight is None else {"num_nodes": weight}
    return event(at(seconds), job, "PREPROCESSED", "RUNNING", **data)


def end(seconds, job, state="RUN_DONE"):
    return event(at(seconds), job, "RUNNING", state)


class Tuples:
    """As a query of events, which has its rows ready as tuples."""

    def __init__(self, events):
        self._events = events

    def tuples(self, touching=()):
        for one in self._events:
            time = us_of(one.timestamp)
            yield time, one.from_state, one.to_state, one.job_id, one.data.get("num_nodes"), one.data.get("started")

    def __iter__(self):
        raise AssertionError("a million objects were made")


#: Of the specification: jobs 1 and 2 share a node, job 1 ends when job 3 begins.
VECTOR = [start(0, 1, 0.125), start(0, 2, 0.125), end(10, 1), start(10, 3, 2), end(12, 2), end(30, 3)]


@pytest.mark.parametrize("kind", [list, Tuples])
@pytest.mark.parametrize("order", [1, -1])
def test_utilization_is_that_of_the_specification(kind, order):
    times, totals = utilization_report(kind(VECTOR[::order]))
    assert times == [at(s) for s in (0, 0, 10, 10, 12, 30)]
    assert totals == [0.125, 0.25, 0.125, 2.125, 2.0, 0]
    assert utilization_report(kind(VECTOR[::order]), node_weighting=False)[1] == [1, 2, 1, 2, 1, 0]


@pytest.mark.parametrize("kind", [list, Tuples])
def test_throughput_counts_the_events_that_enter_the_state(kind):
    events = [event(at(s), s, "RUN_DONE", "JOB_FINISHED") for s in (5, 1, 3)] + [end(2, 9)]
    times, counts = throughput_report(kind(events))
    assert (times, counts) == ([at(1), at(3), at(5)], [1, 2, 3])
    assert throughput_report(kind(events), to_state="RUN_DONE") == ([at(2)], [1])
    elapsed = [(time - min(times)).total_seconds() for time in times]
    assert elapsed == [0, 2, 4]


def test_a_state_that_nobody_knows_is_entered_by_nothing():
    assert throughput_report([end(1, 1)], "STAGED_OUT") == throughput_report(Tuples([end(1, 1)]), "STAGED_OUT") == ([], [])


def test_states_may_be_members_of_an_enum():
    class State(Enum):
        RUNNING = "RUNNING"
        RUN_DONE = "RUN_DONE"

    events = [event(at(0), 1, "PREPROCESSED", State.RUNNING), event(at(4), 1, State.RUNNING, State.RUN_DONE)]
    assert utilization_report(events) == ([at(0), at(4)], [1, 0])
    assert throughput_report(events, State.RUN_DONE) == ([at(4)], [1])


def test_nothing_gives_two_empty_lists():
    assert utilization_report([]) == utilization_report(Tuples([])) == ([], [])
    assert throughput_report([]) == available_nodes([]) == error_report([]) == error_report({}) == ([], [])


def test_ends_without_a_start_change_nothing_and_what_still_runs_stays():
    assert utilization_report([end(1, 1), start(2, 2, 4), end(3, 3)]) == ([at(2)], [4])
    assert utilization_report([end(1, 1)]) == ([], [])


def test_each_attempt_has_its_own_weight():
    events = [start(0, 1, 4), end(5, 1, "RUN_TIMEOUT"), start(5, 1, 0.5), end(9, 1)]
    assert utilization_report(events) == ([at(s) for s in (0, 5, 5, 9)], [4, 0, 0.5, 0])


def test_a_job_without_data_takes_a_node():
    bare = event(at(0), 1, "PREPROCESSED", "RUNNING")
    bare.data = None
    assert utilization_report([bare]) == ([at(0)], [1])


def test_sums_of_fractions_end_at_exactly_nothing():
    events = [start(n / 7, n, 1 / 3) for n in range(1000)] + [end(200 + n / 3, n) for n in range(1000)]
    assert utilization_report(events)[1][-1] == 0


moves = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.sampled_from([0.125, 0.5, 1, 3]), st.integers(0, 6)))


@settings(max_examples=50, deadline=None)
@given(moves, st.randoms(use_true_random=False))
def test_utilization_is_the_sum_over_the_runs_at_each_time(runs, chance):
    """Each job runs again and again: a pause, a length of time and a weight for each run."""
    now, spans, events = {}, [], []
    for pause, length, weight, job in runs:
        begin = now.get(job, 0) + pause
        spans.append((begin, begin + length, weight))
        events += [start(begin, job, weight), end(begin + length, job)]
        now[job] = begin + length
    chance.shuffle(events)
    times, totals = utilization_report(events)
    deltas = sorted([(at(b), w) for b, _, w in spans] + [(at(e), -w) for _, e, w in spans])
    assert times == [time for time, _ in deltas]
    assert totals == pytest.approx([sum(change for _, change in deltas[: n + 1]) for n in range(len(deltas))])
    for place, time in enumerate(times):
        if time not in times[place + 1 :]:
            assert totals[place] == pytest.approx(sum(w for b, e, w in spans if at(b) <= time < at(e)))


def test_runs_without_length_come_to_nothing_in_whatever_order_they_are_noted():
    for events in ([start(5, 1), end(5, 1)], [end(5, 1), start(5, 1)]):
        times, totals = utilization_report(events)
        assert times == [at(5), at(5)]
        assert totals[-1] == 0


def test_an_end_without_a_start_takes_nothing_from_the_run_that_begins_then():
    for events in ([end(5, 1), start(5, 1, 2), end(9, 1)], [start(5, 1, 2), end(9, 1), end(5, 1)]):
        assert utilization_report(events) == ([at(5), at(9)], [2, 0])
    brief = [end(5, 1), start(5, 1), start(7, 1, 4), end(9, 1)]
    assert utilization_report(brief) == ([at(5), at(5), at(7), at(9)], [-1, 0, 4, 0])


# --- times ------------------------------------------------------------------------------------------------------------


def test_times_keep_their_zone_and_naive_ones_among_them_are_utc():
    zone = timezone(timedelta(hours=2))
    aware = [event(at(s).replace(tzinfo=timezone.utc).astimezone(zone), s, "RUN_DONE", "JOB_FINISHED") for s in (3, 1)]
    assert [time.utcoffset() for time in throughput_report(aware)[0]] == [timedelta(hours=2)] * 2
    mixed = [*aware, event(at(2), 2, "RUN_DONE", "JOB_FINISHED")]
    times, _ = throughput_report(mixed)
    assert times == [at(s).replace(tzinfo=timezone.utc) for s in (1, 2, 3)]


def test_tuples_come_back_as_naive_utc_to_the_microsecond():
    when = T0 + timedelta(microseconds=143_928)
    times, _ = throughput_report(Tuples([event(when, 1, "RUN_DONE", "JOB_FINISHED")]))
    assert times == [when]
    assert times[0].tzinfo is None


# --- batch jobs -------------------------------------------------------------------------------------------------------


def batch_job(begin, finish, nodes):
    return SimpleNamespace(start_time=begin, end_time=finish, num_nodes=nodes)


def test_available_nodes_are_those_of_the_specification():
    times, nodes = available_nodes([batch_job(at(5), at(20), 2), batch_job(at(0), at(10), 4)])
    assert (times, nodes) == ([at(0), at(5), at(10), at(20)], [4, 6, 2, 0])


def test_batch_jobs_that_have_not_ended_are_left_out_and_counted():
    listed = [batch_job(at(0), at(1), 3), batch_job(at(0), None, 8), batch_job(None, None, 8)]
    with pytest.warns(RuntimeWarning, match="^2 batch jobs"):
        assert available_nodes(listed) == ([at(0), at(1)], [3, 0])


# --- Balsam 0.3's -----------------------------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path):
    made = directories.create(str(tmp_path / "db"))
    with made.write() as cx:
        apps.add_app(cx, {"name": "hello", "executable": "echo"})
    with use(made):
        yield made
    made.close()


def test_process_job_times_has_all_that_happened_to_the_jobs(database):
    BalsamJob.objects.bulk_create([{"name": f"j{n}", "workflow": "ab"[n % 2], "application": "hello"} for n in range(5)])
    user_actions.set_state(database, list(BalsamJob.objects.all().numbers()), "FAILED", "", by="test")
    first = BalsamJob.objects.get(name="j0")
    times = process_job_times()
    assert {state: len(found) for state, found in times.items()} == {"CREATED": 5, "FAILED": 5}
    assert first.get_state_times()["FAILED"] in times["FAILED"]
    assert {state: len(found) for state, found in process_job_times(BalsamJob.objects.filter(workflow="b")).items()} == {
        "CREATED": 2, "FAILED": 2,
    }  # fmt: skip
    assert process_job_times([first]) == {state: [time] for state, time in first.get_state_times().items()}
    assert process_job_times([]) == {}
    assert error_report() == ([], [])


def test_a_query_of_events_gives_the_same_reports_as_its_objects(database):
    BalsamJob.objects.bulk_create([{"name": f"j{n}", "application": "hello", "node_packing_count": 8} for n in (1, 2)])
    rows = [
        (1, 0, "CREATED", "RUNNING", None),
        (2, 1, "CREATED", "RUNNING", None),
        (1, 9, "RUNNING", "RUN_DONE", None),
        (1, 9, "RUN_DONE", "JOB_FINISHED", None),
        (1, 10, "RESTART_READY", "RUNNING", None),
        (1, 11, "RUNNING", "RESTART_READY", None),
    ]
    with database.write() as cx:
        cx.executemany("INSERT INTO event (job, time, from_state, to_state, data) VALUES (?, ?, ?, ?, ?)", rows)
        cx.execute("INSERT INTO run (job, attempt, started, ended) VALUES (1, 1, 5, 9), (2, 1, NULL, NULL)")
    for report in (utilization_report, throughput_report):
        assert report(EventLog.objects.all()) == report(list(EventLog.objects.all())) == report(EventLog.objects.all()[:9])
    times, nodes = utilization_report(EventLog.objects.filter(job_id=[1, 2]))
    assert [(time - datetime(1970, 1, 1)) // timedelta(microseconds=1) for time in times] == [1, 5, 9]  # noqa: DTZ001
    zone = timezone(timedelta(hours=3))
    aware = [
        event(one.timestamp.replace(tzinfo=timezone.utc).astimezone(zone), one.job_id, one.from_state, one.to_state, **one.data)
        for one in EventLog.objects.all()
    ]
    assert utilization_report(aware)[0] == [time.replace(tzinfo=timezone.utc) for time in times]
    assert nodes == [0.125, 0.25, 0.125], "job 1 was started at 5, and the second time not at all"
    assert throughput_report(EventLog.objects.filter(job_id=[2])) == ([], [])


def test_error_report_counts_by_the_minute():
    seconds = [0, 1, 59, 60, 200]
    edges, counts = error_report({"RUN_ERROR": [at(s) for s in reversed(seconds)], "RUN_DONE": [at(7)]})
    assert counts == [3, 1, 0, 1]
    assert edges == [at(s) for s in (0, 60, 120, 180, 240)]
    assert error_report([end(s, s, "RUN_ERROR") for s in seconds]) == (edges, counts)
    assert error_report({"RUN_ERROR": [at(s) for s in seconds]}, bin_s=150)[1] == [4, 1]
    with pytest.raises(InvalidSpec, match="bin_s"):
        error_report({}, bin_s=0)


# --- cost -------------------------------------------------------------------------------------------------------------


def test_a_report_of_many_events_costs_little():
    """A bound far above what it takes; benchmarks/workshop.py measures."""
    import time

    chance = random.Random(1)
    rows = []
    for job in range(50_000):
        begin = chance.randrange(10**12)
        rows += [(begin, "PREPROCESSED", "RUNNING", job, 0.125, None)]
        rows += [(begin + 10**7, "RUNNING", "RUN_DONE", job, None, begin + 10)]
    started = time.process_time()
    times, totals = utilization_report(SimpleNamespace(tuples=lambda touching: iter(rows)))
    assert time.process_time() - started < 3
    assert (len(times), totals[-1]) == (100_000, 0)


def test_importing_it_loads_neither_peewee_nor_numpy():
    code = "import sys, balsam_lite.analytics; print({'peewee', 'numpy', 'matplotlib', 'sqlite3'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "set()"
