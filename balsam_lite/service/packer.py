"""Choose the launch to submit next from the policy and the waiting work, or give the reasons why there is none. Pure.

Work is counted in node-minutes, from the jobs' shapes and estimates. A job of one node takes 1/node_packing_count of it, as
in a launcher; all others take whole nodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from ..db.query.catalogue import text_of
from ..db.query.demand import Work, width
from ..db.query.takers import Queue, Range, policy_obstacle
from ..db.store.claims import Shape

#: Weight of node-minutes that stay idle, relative to those that do work.
_PRICE_OF_IDLENESS = 0.25
#: A launch may cost this many times as much as the cheapest one for the same work, if it ends sooner.
_HASTE = 1.25
#: Maximum number of estimates of one shape that are considered; more are rounded up to these.
_MAX_ESTIMATES = 12
#: Minimum ratio of the next larger size, or estimate, that is tried.
_STEP, _COARSE_STEP = 1.5, 4.0
#: Maximum number of rounds: the sizes at which all the work takes 1, 2, … rounds are tried.
_MAX_ROUNDS = 8
#: Tolerance for errors of binary fractions, such as three thirds of a node.
_TINY = 1e-9


class LaunchCapacity(NamedTuple):
    """What a queued or running launch can still do."""

    nodes: int
    minutes: float  # left for jobs
    promised: float = 0.0  # node-minutes of these that planned and running jobs will use
    serial_only: bool = False
    only: tuple[Work, ...] | None = None  # the jobs that it takes in addition; None: all

    def fits(self, work: Work) -> bool:
        """Return whether such a job could start there, now or later."""
        return (
            work.shape.num_nodes <= self.nodes
            and work.minutes <= self.minutes
            and (work.shape.is_serial or not self.serial_only)
        )


class Launch(NamedTuple):
    """A launch that should be submitted."""

    queue: str
    nodes: int
    minutes: int
    job_mode: str  # serial, mpi or mixed
    planned: tuple[Work, ...]  # what it will do if the estimates are right; of each shape the longest estimate, rounded up

    @property
    def jobs(self) -> int:
        """Return how many jobs it will do."""
        return sum(work.jobs for work in self.planned)


class UnplacedWork(NamedTuple):
    """Work without a launch, and why."""

    work: Work
    reason: str


class LaunchChoice(NamedTuple):
    """What to do next."""

    launch: Launch | None
    misfits: tuple[UnplacedWork, ...]  # what no queue of the policy allows
    waits: tuple[UnplacedWork, ...]  # what is allowed only in queues that take no more launches now


# --- what is there to do ----------------------------------------------------------------------------------------------


def uncovered(waiting: Iterable[Work], planned: Iterable[Work], capacities: Iterable[LaunchCapacity]) -> list[Work]:
    """Return the waiting work that is neither planned for a launch nor will be done by an open one, the largest jobs first."""
    jobs: Counter[tuple[Shape, int]] = Counter()
    for work in waiting:
        jobs[work.shape, work.minutes] += work.jobs
    for work in planned:
        jobs[work.shape, work.minutes] -= work.jobs
    left = sorted((Work(*key, number) for key, number in jobs.items() if number > 0), key=_largest_first)
    for launch in sorted(capacities, key=lambda one: (one.nodes, one.minutes)):
        left = _without(left, launch)
    return left


def _without(left: Sequence[Work], launch: LaunchCapacity) -> list[Work]:
    capacity = launch.nodes * launch.minutes - launch.promised
    takes = None if launch.only is None else Counter({work[:2]: work.jobs for work in launch.only})
    rest: list[Work] = []
    for place, work in enumerate(left):
        if capacity < _TINY:
            return [*rest, *left[place:]]
        if launch.fits(work):
            done = min(work.jobs, _whole(capacity / cost(work)))
            done = done if takes is None else min(done, takes[work[:2]])
            capacity -= done * cost(work)
            work = work._replace(jobs=work.jobs - done)
        if work.jobs:
            rest.append(work)
    return rest


def _largest_first(work: Work) -> tuple[float, ...]:
    return (-work.shape.num_nodes, -work.minutes, *work.shape)


def _width(work: Work) -> float:
    return width(work.shape.num_nodes, work.shape.node_packing_count)


def cost(work: Work) -> float:
    """Return the node-minutes of one of these jobs."""
    return _width(work) * work.minutes


def _whole(amount: float) -> int:
    return max(0, math.floor(amount + _TINY))


# --- which launch -----------------------------------------------------------------------------------------------------


def choose(
    queues: Sequence[Queue],
    closed: Mapping[str, str],
    left: Sequence[Work],
    margin: int,
    refused: Mapping[str, Mapping[Shape, str]] = MappingProxyType({}),
) -> LaunchChoice:
    """Choose the launch that does most of the remaining work without much idleness: the cheapest, or a shorter one for little
    more.

    Args:
        closed: queues that take no launch now, each with the reason.
        left: from `uncovered`.
        margin: minutes of each launch that no job can use: for its start and its end.
        refused: by queue, the shapes that launches there do not take, each with the reason.
    """
    on = [queue for queue in queues if queue.is_on]
    misfits = [UnplacedWork(work, reason) for work in left if (reason := _misfit(on, work, margin))]
    unfit = {misfit.work for misfit in misfits}
    candidates = [
        candidate
        for queue in on
        if queue.name not in closed
        for limits in queue.ranges
        for candidate in _candidates(queue.name, limits, _wanted(left, unfit, refused.get(queue.name, {})), margin)
    ]
    best = max(candidates, key=_Candidate.worth, default=None)
    if best is None:
        waits = [UnplacedWork(work, _why_closed(on, closed, refused, work, margin)) for work in left if work not in unfit]
        return LaunchChoice(None, tuple(misfits), tuple(waits))
    equals = [one for one in candidates if one.done >= best.done - _TINY and one.cost <= _HASTE * best.cost]
    return LaunchChoice(min(equals, key=lambda one: (one.minutes, one.nodes)).launch(), tuple(misfits), ())


def _misfit(on: Sequence[Queue], work: Work, margin: int) -> str:
    """Return why no queue allows a launch for such a job; "" if one does."""
    found = policy_obstacle(on, work.shape.num_nodes, work.minutes, margin)
    return text_of(found) if found else ""


def _wanted(left: Iterable[Work], unfit: Collection[Work], refused: Collection[Shape]) -> list[Work]:
    return [work for work in left if work not in unfit and work.shape not in refused]


def _why_closed(
    on: Sequence[Queue], closed: Mapping[str, str], refused: Mapping[str, Mapping[Shape, str]], work: Work, margin: int
) -> str:
    names = [queue.name for queue in on if not _misfit([queue], work, margin)]
    return "; ".join(f"{name}: {refused.get(name, {}).get(work.shape) or closed[name]}" for name in names)


class _Candidate(NamedTuple):
    """A launch that the policy allows."""

    queue: str
    nodes: int
    minutes: int
    planned: tuple[Work, ...]
    done: float  # node-minutes of work

    @property
    def cost(self) -> int:
        return self.nodes * self.minutes

    def worth(self) -> tuple[float, int]:
        return (self.done - _PRICE_OF_IDLENESS * (self.cost - self.done), -self.minutes)

    def launch(self) -> Launch:
        serial = {work.shape.is_serial for work in self.planned}
        mode = "mixed" if len(serial) > 1 else "serial" if serial == {True} else "mpi"
        return Launch(self.queue, self.nodes, self.minutes, mode, self.planned)


def _candidates(queue: str, limits: Range, left: Sequence[Work], margin: int) -> Iterator[_Candidate]:
    """Yield launches within one range of the policy: for jobs up to several sizes and estimates, on several node counts."""
    most = limits.max_minutes - margin
    fitting = _coarse([work for work in left if work.shape.num_nodes <= limits.max_nodes and work.minutes <= most])
    for largest in _thinned({work.shape.num_nodes for work in fitting}):
        for longest in _thinned({work.minutes for work in fitting}):
            some = [work for work in fitting if work.shape.num_nodes <= largest and work.minutes <= longest]
            for nodes in _sizes(limits, some):
                height, planned = _packed(some, nodes, most)
                done = sum(work.jobs * cost(work) for work in planned)
                yield _Candidate(queue, nodes, max(limits.min_minutes, height + margin), planned, done)


def _coarse(fitting: Iterable[Work]) -> list[Work]:
    """Return the same work with few estimates for each shape, the longest jobs first."""
    by_shape: dict[Shape, list[Work]] = {}
    for work in sorted(fitting, key=lambda work: -work.minutes):
        by_shape.setdefault(work.shape, []).append(work)
    merged: Counter[tuple[Shape, int]] = Counter()
    for shape, works in by_shape.items():
        # Both ends of the estimates are kept within a band, so that bands are as wide as this ratio.
        ratio = (works[0].minutes / works[-1].minutes) ** (1 / _MAX_ESTIMATES) if len(works) > _MAX_ESTIMATES else 1.0
        top = works[0].minutes
        for work in works:
            top = top if work.minutes * ratio > top - _TINY else work.minutes
            merged[shape, top] += work.jobs
    found = [Work(*key, jobs) for key, jobs in merged.items()]
    return sorted(found, key=lambda work: (-work.minutes, -_width(work), work.shape))


def _thinned(values: Iterable[int]) -> list[int]:
    """Return the largest value and some of the others that are far apart."""
    kept: list[int] = []
    for value in sorted(values, reverse=True):
        if not kept or value * _COARSE_STEP <= kept[-1]:
            kept.append(value)
    return kept


def _sizes(limits: Range, works: Sequence[Work]) -> list[int]:
    """Return the numbers of nodes to try: from the largest job's to the number that all jobs would take at once."""
    if not works:
        return []
    at_once = sum(work.jobs * _width(work) for work in works)
    least = max(limits.min_nodes, *(work.shape.num_nodes for work in works))
    most = max(least, min(limits.max_nodes, math.ceil(at_once - _TINY)))
    found = {least, most, *(math.ceil(at_once / rounds - _TINY) for rounds in range(2, _MAX_ROUNDS + 1))}
    size = least
    while size < most:
        found.add(size)
        size = math.ceil(size * _STEP)
    return sorted(size for size in found if least <= size <= most)


def _packed(works: Sequence[Work], nodes: int, most: int) -> tuple[int, tuple[Work, ...]]:
    """Return the minutes that work takes on that many nodes, and the part of it that fits into `most` minutes.

    Place the longest jobs first, in rounds that last as long as their longest job; shorter jobs fill the rest of a round, one
    after the other. A launcher, which starts the next job as soon as there is room, does no worse.
    """
    height, room, top = 0, 0.0, 0  # what is left of the last round, and its length
    planned = []
    for work in works:
        beside = _beside(work, room, top)
        number = min(work.jobs, beside)
        if number:
            room -= _width(work) * math.ceil(number / (top // work.minutes))
        at_once = _whole(nodes / _width(work))
        rounds = min(math.ceil((work.jobs - number) / at_once), (most - height) // work.minutes)
        if rounds > 0:
            more = min(work.jobs - number, rounds * at_once)
            number += more
            height += rounds * work.minutes
            room, top = nodes - _width(work) * (more - (rounds - 1) * at_once), work.minutes
        if number:
            planned.append(work._replace(jobs=number))
    return height, tuple(planned)


def _beside(work: Work, room: float, top: int) -> int:
    """Return how many jobs fit into the rest of a round."""
    free = float(_whole(room)) if work.shape.num_nodes > 1 else room
    return _whole(free / _width(work)) * (top // work.minutes)
