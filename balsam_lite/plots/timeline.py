"""Compute the numbers that the plots show: curves over time, jobs by state, runs in lanes. Needs only the standard library.

A million state changes are kept packed, 34 bytes each. Every curve that is returned has a few thousand points at most, which
still show all peaks and gaps. Times are microseconds since the epoch, UTC.
"""

from __future__ import annotations

import heapq
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from operator import le
from typing import Any, NamedTuple

from ..core import states
from ..core.clock import SECOND_US

#: Number of pieces that curves are cut into; each keeps up to four points.
PIECES = 600
#: The state of a job before it is created; also used for any state that only a newer balsam_lite knows.
_NOWHERE = len(states.STATES)
_CODES = {state: code for code, state in enumerate(states.STATES)}
_RUNNING = _CODES[states.RUNNING]
#: Digits to which sums of fractions of nodes are rounded, so that no nodes in use is exactly 0.
_DIGITS = 9
#: The start of a program that never ran, although its job was RUNNING.
_NEVER = -1


class Curve(NamedTuple):
    """A quantity that has the value `values[i]` from `times[i]` on."""

    times: Sequence[int]
    values: Sequence[float]


class Window(NamedTuple):
    """The span of time that is shown; what happened outside of it is still taken into account."""

    start: int = 0
    end: int = 2**62

    def holds(self, time_us: int) -> bool:
        """Return whether that time is shown."""
        return self.start <= time_us <= self.end


ALL = Window()


class Changes:
    """Packed state changes of jobs. Jobs of several sites are told apart by `site`, a small number."""

    def __init__(self) -> None:
        self.times = array("q")
        self.left = array("b")
        self.entered = array("b")
        self._jobs = array("q")
        self._nodes = array("d")
        self._began = array("q")

    def __len__(self) -> int:
        return len(self.times)

    def add(self, events: Iterable[Sequence[Any]], site: int = 0) -> None:
        """Append (time, state left, state entered, job, nodes) of that site, in any order of time.

        A further column is the time at which the program of an ending run was started, if known: a launcher that claims short
        jobs ahead sets them to RUNNING earlier. 0 means that the program was never started.
        """
        times, left, entered, jobs, nodes = self.times, self.left, self.entered, self._jobs, self._nodes
        for time_us, from_state, to_state, job, weight, *began in events:
            times.append(time_us)
            left.append(_CODES.get(from_state, _NOWHERE))
            entered.append(_CODES.get(to_state, _NOWHERE))
            jobs.append(site << 48 | job)
            nodes.append(1.0 if weight is None else weight)
            self._began.append((began[0] or _NEVER) if began and began[0] is not None else 0)

    def extend(self, other: Changes, site: int) -> None:
        """Append all changes of `other`, whose site is 0, as changes of that site."""
        self.times.extend(other.times)
        self.left.extend(other.left)
        self.entered.extend(other.entered)
        self._jobs.extend(site << 48 | job for job in other._jobs)
        self._nodes.extend(other._nodes)
        self._began.extend(other._began)

    def in_order(self) -> Iterator[tuple[int, int, int, int, float, int]]:
        """Yield (time, code of the state left, of the one entered, job, nodes, start of the program, 0 or _NEVER) by time.

        Changes that were added in order of time keep their order. Else, of changes at one time, those that enter RUNNING come
        last, so that a job leaves it before it enters it again.
        """
        columns = (self.times, self.left, self.entered, self._jobs, self._nodes, self._began)
        if all(map(le, self.times, islice(self.times, 1, None))):
            return zip(*columns)
        keys = [2 * time + (entered == _RUNNING) for time, entered in zip(self.times, self.entered)]
        order = sorted(range(len(self)), key=keys.__getitem__)
        return zip(*(map(column.__getitem__, order) for column in columns))


class Runs(NamedTuple):
    """The runs of jobs by their start, each with its number of nodes and the code of the state in which it ended."""

    starts: array[int]
    ends: array[int]
    codes: array[int]
    nodes: array[float]

    def add(self, window: Window, start: int, end: int, code: int, nodes: float) -> None:
        """Append the part of that run that the window shows."""
        if start <= window.end and end >= window.start:
            self.starts.append(max(start, window.start))
            self.ends.append(min(end, window.end))
            self.codes.append(code)
            self.nodes.append(nodes)

    @property
    def until(self) -> int:
        """Return the last end of all runs."""
        return max(self.ends)


def state_name(code: int) -> str:
    """Return the name of the state with that code."""
    return states.STATES[code]


# --- curves -----------------------------------------------------------------------------------------------------------


def finished(changes: Changes, window: Window = ALL, state: str = states.JOB_FINISHED) -> Curve:
    """Return the curve of how many times that state has been entered in the window."""
    code = _CODES[state]
    pairs = zip(changes.times, changes.entered)
    times = sorted(time for time, entered in pairs if entered == code and window.holds(time))
    return Curve(times, range(1, len(times) + 1))


def first_start(changes: Changes, window: Window = ALL) -> int | None:
    """Return when the first job was started in the window; None if no job was."""
    pairs = zip(changes.times, changes.entered)
    return min((time for time, entered in pairs if entered == _RUNNING and window.holds(time)), default=None)


def runs(changes: Changes, now_us: int, window: Window = ALL) -> Runs:
    """Return the runs whose start is known, cut to the window. A run that has not ended lasts until `now_us`, in the state
    RUNNING; a job whose program never ran has no run."""
    open_runs: dict[int, tuple[int, float]] = {}
    ended: dict[int, tuple[int, int]] = {}  # job -> when and to what it left RUNNING without a known start
    found = Runs(array("q"), array("q"), array("b"), array("d"))
    for time, left, entered, job, nodes, began in changes.in_order():
        if entered == _RUNNING:
            if job in ended and ended[job][0] == time:  # a run of length 0, whose end came first
                found.add(window, time, time, ended.pop(job)[1], nodes)
            else:
                open_runs[job] = time, nodes
        elif left == _RUNNING:
            if job in open_runs:
                start, its_nodes = open_runs.pop(job)
                if began != _NEVER:
                    found.add(window, max(start, min(began, time)), time, entered, its_nodes)
            elif began != _NEVER:
                ended[job] = time, entered
    for start, its_nodes in open_runs.values():
        found.add(window, start, max(start, now_us), _RUNNING, its_nodes)
    order = sorted(range(len(found.starts)), key=found.starts.__getitem__)
    in_order: Any = (array(column.typecode, map(column.__getitem__, order)) for column in found)
    return Runs(*in_order)


def in_use(of: Runs) -> Curve:
    """Return the curve of the number of nodes in use."""
    by_end = sorted(range(len(of.ends)), key=of.ends.__getitem__)
    ends = ((of.ends[run], -of.nodes[run]) for run in by_end)
    return _summed(heapq.merge(ends, zip(of.starts, of.nodes)))


def available(batch_jobs: Iterable[tuple[int | None, int | None, int]], now_us: int, window: Window = ALL) -> Curve:
    """Return the curve of nodes of batch jobs, from (start, end, nodes) of each; one without an end lasts until `now_us`."""
    changes: list[tuple[int, float]] = []
    for start, end, nodes in batch_jobs:
        last = now_us if end is None else end
        if start is not None and start <= window.end and last >= window.start:
            first = max(start, window.start)
            changes += [(first, nodes), (max(first, min(last, window.end)), -nodes)]
    return _summed(sorted(changes))


def _summed(changes: Iterable[tuple[int, float]]) -> Curve:
    """Return the running sum of (time, change), which are in order, one point per time."""
    times, values = array("q"), array("d")
    total = 0.0
    for time, change in changes:
        total += change
        if times and times[-1] == time:
            values[-1] = round(total, _DIGITS)
        else:
            times.append(time)
            values.append(round(total, _DIGITS))
    return Curve(times, values)


def mean(curve: Curve, start: int, end: int) -> float:
    """Return the mean of the curve over that span of time."""
    total = 0.0
    for time, until, value in zip(curve.times, chain(islice(curve.times, 1, None), [end]), curve.values):
        total += value * max(0, min(until, end) - max(time, start))
    return total / (end - start) if end > start else 0.0


def thinned(curve: Curve, pieces: int = PIECES) -> Curve:
    """Return the curve with at most four points in each piece of time: the first, lowest, highest and last one."""
    if len(curve.times) <= 4 * pieces:
        return curve
    first = curve.times[0]
    width = (curve.times[-1] - first) // pieces + 1
    kept: list[int] = []
    begin = 0
    for piece in range(1, pieces + 1):
        end = bisect_right(curve.times, first + piece * width - 1, begin)
        if end > begin:
            inside = range(begin, end)
            kept += sorted(
                {begin, min(inside, key=curve.values.__getitem__), max(inside, key=curve.values.__getitem__), end - 1}
            )
        begin = end
    return Curve([curve.times[index] for index in kept], [curve.values[index] for index in kept])


# --- jobs by state ----------------------------------------------------------------------------------------------------


class Counts(NamedTuple):
    """The number of jobs in each state at (and after) each of these times; only states that had a job in them."""

    times: list[int]
    by_state: dict[str, list[int]]  # in the order of the states


def counts(changes: Changes, window: Window = ALL, pieces: int = PIECES) -> Counts:
    """Count the jobs by state over time, from all their changes, including their creation."""
    marks = _marks([time for time in changes.times if window.holds(time)], pieces)
    grid = [[0] * (len(marks) + 1) for _ in range(_NOWHERE + 1)]  # the last column: after all marks
    for time, left, entered in zip(changes.times, changes.left, changes.entered):
        place = bisect_left(marks, time)  # the first mark at or after this change
        grid[left][place] -= 1
        grid[entered][place] += 1
    found = {}
    for code, state in enumerate(states.STATES):
        values = [max(0, value) for value in islice(accumulate(grid[code]), len(marks))]
        if any(values):
            found[state] = values
    return Counts(marks, found)


def _marks(times: Sequence[int], pieces: int) -> list[int]:
    """Return the times themselves if they are few, else equal steps from the first to the last one."""
    if len(times) <= 4 * pieces or max(times) - min(times) <= pieces:
        return sorted(set(times))
    first, last = min(times), max(times)
    return [first + (last - first) * piece // pieces for piece in range(pieces + 1)]


# --- lanes ------------------------------------------------------------------------------------------------------------


def lanes(of: Runs) -> array[int]:
    """Return for each run the lowest lane in which it overlaps no other."""
    free: list[int] = []
    busy: list[tuple[int, int]] = []  # (end, lane)
    found = array("q")
    count = 0
    for start, end in zip(of.starts, of.ends):
        while busy and busy[0][0] <= start:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, count = count, count + 1
        found.append(lane)
        heapq.heappush(busy, (end, lane))
    return found


# --- units ------------------------------------------------------------------------------------------------------------

_UNITS = (("seconds", 1, 180), ("minutes", 60, 180), ("hours", 3600, 72), ("days", 86400, 0))


def unit(span_us: float) -> tuple[str, int]:
    """Return the unit in which a time span of that length is easiest to read: its name, and its length in microseconds.

    >>> unit(90e6), unit(3600e6)
    (('seconds', 1000000), ('minutes', 60000000))
    """
    for name, seconds, most in _UNITS:
        if span_us <= most * seconds * SECOND_US:
            return name, seconds * SECOND_US
    return name, seconds * SECOND_US


def moment(time_us: int) -> str:
    """Format a time for display, to the second, in UTC.

    >>> moment(1538593440143928)
    '2018-10-03 19:04:00 UTC'
    """
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_us // SECOND_US))
