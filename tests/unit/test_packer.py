"""From the policy and what waits to the next launch: within the policy, hardly idle, and with a reason where there is none."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from balsam_lite.db.query.demand import Work
from balsam_lite.db.store.claims import Shape
from balsam_lite.service.packer import Launch, LaunchCapacity, choose, cost, uncovered
from balsam_lite.service.policy import Queue, Range

SERIAL = Shape(1, 1, 1, 0)
MARGIN = 2
DEBUG = Queue("debug", True, 1, (Range(1, 16, 1, 60),))
THETA = Queue(
    "default", True, 20,
    (Range(128, 255, 30, 180), Range(256, 383, 30, 360), Range(384, 639, 30, 540), Range(802, 4392, 30, 1440)),
)  # fmt: skip


def launch(*left: Work, queues: tuple[Queue, ...] = (DEBUG,), closed: dict[str, str] | None = None) -> Launch:
    found = choose(queues, closed or {}, left, MARGIN).launch
    assert found is not None
    return found


def serial(minutes: int, jobs: int, packing: int = 1) -> Work:
    return Work(Shape(1, 1, packing, 0), minutes, jobs)


def mpi(nodes: int, minutes: int, jobs: int) -> Work:
    return Work(Shape(nodes, 4, 1, 0), minutes, jobs)


# --- the launch -------------------------------------------------------------------------------------------------------


def test_one_small_job_gets_the_smallest_launch() -> None:
    assert launch(serial(10, 1)) == Launch("debug", 1, 12, "serial", (serial(10, 1),))


def test_packed_jobs_share_a_node() -> None:
    assert launch(serial(10, 64, packing=64))[:3] == ("debug", 1, 12)
    assert launch(serial(10, 65, packing=64))[:3] in {("debug", 1, 22), ("debug", 2, 12)}
    assert launch(serial(10, 3, packing=3))[:3] == ("debug", 1, 12)


def test_a_launch_is_short_where_that_costs_little() -> None:
    """8 nodes for 10 minutes are a fifth more than 2 for 34, and over in a third of the time."""
    assert launch(serial(1, 64))[:3] == ("debug", 8, 10)


def test_work_beyond_the_largest_launch_gets_the_largest() -> None:
    found = launch(serial(29, 10_000))
    assert found[:3] == ("debug", 16, 60)
    assert found.jobs == 32


def test_the_largest_and_the_longest_job_fit() -> None:
    found = launch(mpi(10, 30, 1), serial(5, 20), mpi(2, 58, 1))
    assert found.nodes >= 10
    assert found.minutes == 60
    assert found.job_mode == "mixed"
    assert found.jobs == 22


def test_the_mode_is_what_the_jobs_need() -> None:
    assert launch(serial(5, 3)).job_mode == "serial"
    assert launch(mpi(1, 5, 3)).job_mode == "mpi"
    assert launch(mpi(1, 5, 3), serial(5, 3)).job_mode == "mixed"


def test_each_number_of_nodes_has_its_own_times() -> None:
    assert launch(serial(30, 1000), queues=(THETA,)) == Launch("default", 1000, 32, "serial", (serial(30, 1000),))
    assert launch(mpi(200, 178, 1), queues=(THETA,))[1:3] == (200, 180)
    assert launch(mpi(200, 179, 1), queues=(THETA,))[1:3] == (256, 181)
    assert launch(serial(600, 1), queues=(THETA,))[1:3] == (802, 602)


def test_of_several_queues_the_cheapest_is_taken_and_a_closed_one_left_alone() -> None:
    assert launch(serial(5, 1), queues=(THETA, DEBUG)).queue == "debug"
    assert launch(serial(5, 1), queues=(THETA, DEBUG), closed={"debug": "full"}).queue == "default"
    off = DEBUG._replace(is_on=False)
    assert launch(serial(5, 1), queues=(THETA, off)).queue == "default"


def test_a_huge_short_job_and_a_small_long_one_do_not_share_a_launch() -> None:
    wide = Queue("wide", True, 1, (Range(1, 4000, 1, 1440),))
    found = launch(mpi(4000, 5, 1), serial(1380, 1), queues=(wide,))
    assert found[:4] == ("wide", 4000, 7, "mpi")


# --- no launch --------------------------------------------------------------------------------------------------------


def test_what_fits_nowhere_is_told_with_the_reason_and_does_not_keep_others_waiting() -> None:
    found = choose((DEBUG, THETA), {}, [mpi(5000, 1, 2), serial(1439, 1), mpi(700, 1439, 1), serial(5, 1)], MARGIN)
    assert found.launch is not None
    assert found.launch.planned == (serial(5, 1),)
    assert [(left.work.jobs, left.reason) for left in found.misfits] == [
        (2, "needs 5000 nodes; the policy allows 4392 at most"),
        (1, "wall_time_minutes is above 1438: the policy allows 1440 minutes at most for 1 node(s), and 2 are for the launch"
            " itself"),
        (1, "wall_time_minutes is above 1438: the policy allows 1440 minutes at most for 700 node(s), and 2 are for the launch"
            " itself"),
    ]  # fmt: skip


def test_a_policy_that_is_off_is_the_reason() -> None:
    found = choose((DEBUG._replace(is_on=False),), {}, [serial(1, 1)], MARGIN)
    assert found.launch is None
    assert found.misfits[0].reason == "no queue of the policy is switched on"


def test_work_waits_for_the_queues_that_would_take_it() -> None:
    found = choose(
        (DEBUG, THETA), {"debug": "1 of 1 launches", "default": "it failed"}, [mpi(100, 10, 1), serial(5, 1)], MARGIN
    )
    assert found.launch is None
    assert [left.reason for left in found.waits] == ["default: it failed", "debug: 1 of 1 launches; default: it failed"]
    assert choose((DEBUG,), {}, [], MARGIN) == (None, (), ())


# --- what open launches will do ---------------------------------------------------------------------------------------


def test_planned_jobs_are_covered_and_the_rest_of_a_launch_is_for_others() -> None:
    planned = serial(10, 4)
    supply = LaunchCapacity(2, 40.0, promised=40.0)
    assert uncovered([serial(10, 8)], [planned], [supply]) == []
    assert uncovered([serial(10, 9)], [planned], [supply]) == [serial(10, 1)]
    assert uncovered([serial(10, 3)], [planned], []) == []


@pytest.mark.parametrize(
    "supply",
    [
        LaunchCapacity(1, 60.0),  # too few nodes
        LaunchCapacity(4, 29.9),  # too little time
        LaunchCapacity(4, 60.0, serial_only=True),
        LaunchCapacity(4, 60.0, only=()),
        LaunchCapacity(4, 60.0, only=(serial(30, 5),)),
        LaunchCapacity(4, 60.0, promised=240.0),
        LaunchCapacity(4, 0.0),
        LaunchCapacity(4, 60.0, promised=1e9),
    ],
)
def test_a_launch_counts_only_for_what_it_can_take(supply: LaunchCapacity) -> None:
    assert uncovered([mpi(2, 30, 1)], [], [supply]) == [mpi(2, 30, 1)]


def test_a_filtered_launch_counts_for_the_jobs_that_it_takes() -> None:
    assert uncovered([serial(30, 8)], [], [LaunchCapacity(4, 60.0, only=(serial(30, 5),))]) == [serial(30, 3)]


def test_the_small_launch_takes_the_small_jobs() -> None:
    assert uncovered([serial(10, 4), mpi(4, 10, 1)], [], [LaunchCapacity(4, 10.0), LaunchCapacity(1, 40.0)]) == []


# --- properties -------------------------------------------------------------------------------------------------------

SHAPES = st.builds(
    Shape, st.sampled_from([1, 1, 2, 3, 8, 17, 200]), st.sampled_from([1, 4]), st.sampled_from([1, 2, 3, 64]), st.just(0)
)
WORKS = st.lists(st.builds(Work, SHAPES, st.integers(1, 2000), st.integers(1, 10**6)), max_size=30)


@st.composite
def queues(draw: st.DrawFn) -> Queue:
    ranges, lowest = [], 1
    for _ in range(draw(st.integers(1, 4))):
        nodes = sorted(draw(st.tuples(st.integers(lowest, lowest + 50), st.integers(lowest, lowest + 50))))
        minutes = sorted(draw(st.tuples(st.integers(1, 1500), st.integers(1, 1500))))
        ranges.append(Range(*nodes, *minutes))
        lowest = nodes[1] + 1
    return Queue(draw(st.sampled_from("abc")), draw(st.booleans()), draw(st.integers(1, 3)), tuple(ranges))


def some_queues() -> st.SearchStrategy[list[Queue]]:
    return st.lists(queues(), max_size=3, unique_by=lambda queue: queue.name)


def fits(work: Work, limits: Range, margin: int) -> bool:
    return work.shape.num_nodes <= limits.max_nodes and work.minutes + margin <= limits.max_minutes


@settings(deadline=None)
@given(some_queues(), WORKS, st.sets(st.sampled_from("abc")), st.integers(1, 20))
def test_a_launch_is_within_the_policy_and_can_do_what_is_planned(
    policy: list[Queue], left: list[Work], closed: set[str], margin: int
) -> None:
    left = uncovered(left, [], [])
    found = choose(policy, dict.fromkeys(closed, "full"), left, margin)
    usable = [queue for queue in policy if queue.is_on and queue.name not in closed]
    could = any(fits(work, limits, margin) for work in left for queue in usable for limits in queue.ranges)
    assert (found.launch is not None) == could
    if found.launch is None:
        assert len(found.misfits) + len(found.waits) == len(left)
        return
    made = found.launch
    queue = next(queue for queue in usable if queue.name == made.queue)
    (limits,) = [one for one in queue.ranges if one.min_nodes <= made.nodes <= one.max_nodes]
    assert limits.min_minutes <= made.minutes <= limits.max_minutes
    assert made.planned
    assert all(work.shape.num_nodes <= made.nodes and work.minutes + margin <= made.minutes for work in made.planned)
    assert sum(work.jobs * cost(work) for work in made.planned) <= made.nodes * (made.minutes - margin) + 1e-6
    assert made.job_mode != "serial" or all(work.shape.is_serial for work in made.planned)
    for shape in {work.shape for work in made.planned}:
        there = sum(work.jobs for work in left if work.shape == shape)
        assert sum(work.jobs for work in made.planned if work.shape == shape) <= there


@settings(deadline=None)
@given(WORKS, st.lists(st.builds(LaunchCapacity, st.integers(1, 300), st.floats(0, 2000), st.floats(0, 1e5), st.booleans())))
def test_open_launches_never_cover_more_than_they_can_do(waiting: list[Work], supplies: list[LaunchCapacity]) -> None:
    before = sum(work.jobs * cost(work) for work in waiting)
    after = sum(work.jobs * cost(work) for work in uncovered(waiting, [], supplies))
    capacity = sum(max(0.0, supply.nodes * supply.minutes - supply.promised) for supply in supplies)
    assert before - after <= capacity + 1e-3 * len(waiting) + 1e-6 * before


@settings(deadline=None)
@given(WORKS)
def test_launches_one_after_the_other_do_all_the_work_that_fits(left: list[Work]) -> None:
    """Each covers what it was chosen for, so that nothing is submitted for twice and nothing is left."""
    big = Queue("q", True, 99, (Range(1, 400, 1, 3000),))
    left = uncovered([work._replace(jobs=min(work.jobs, 50)) for work in left], [], [])
    for _ in range(200):
        made = choose((big,), {}, left, MARGIN).launch
        if made is None:
            assert left == []
            return
        supply = LaunchCapacity(made.nodes, made.minutes - MARGIN, 0.0, made.job_mode == "serial")
        now = uncovered(left, [], [supply])
        assert sum(work.jobs for work in now) < sum(work.jobs for work in left)
        left = now
    raise AssertionError(f"still left after 200 launches: {left}")


def test_thousands_of_different_jobs_are_packed_quickly() -> None:
    left = [Work(Shape(1 + n % 5 * 40, 1 + n % 2, 1 + n % 3, 0), 1 + n * 7 % 1400, 1 + n % 100) for n in range(3000)]
    started = time.process_time()
    assert launch(*uncovered(left, [], []), queues=(DEBUG, THETA)).jobs > 0
    assert time.process_time() - started < 5  # well under a second on a machine that does nothing else


def test_sizes_are_whole_nodes_also_where_jobs_are_thirds_of_one() -> None:
    for jobs in range(1, 50):
        assert launch(serial(50, jobs, packing=3)).nodes == math.ceil(min(jobs, 48) / 3)
