"""Compute reports from events and batch jobs: throughput, nodes in use, nodes available, errors over time.

Pure functions over any iterable of objects with the attributes of an event (`timestamp from_state to_state job_id data`) or a
batch job (`start_time end_time num_nodes`), in any order. A query of events is read as plain tuples, which is many times
faster than objects. The result is two lists of equal length, times first, for `plt.step(times, values, where="post")`.

A time without a zone is UTC. The times in a report have a zone if those of the events do; if only some of these have one, all
times in the report get one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from itertools import accumulate
from operator import itemgetter
from typing import Any

from .core.errors import InvalidSpec
from .core.states import JOB_FINISHED, RUN_ERROR, RUNNING, STATES

#: timestamp (integer microseconds since the epoch, or a datetime), state left, state entered, job, number of nodes of the job,
#: time at which the program of an ending run was started (microseconds; 0: never) or None.
Event = tuple[Any, str, str, Any, Any, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NAIVE_EPOCH = _EPOCH.replace(tzinfo=None)
#: Digits to which sums of fractions of nodes are rounded, so that an empty machine has exactly 0 nodes in use.
_DIGITS = 9
#: Replaces a start that belongs to no run.
_NO_RUN: tuple[Any, float] = None, 0.0
#: Number of jobs per query.
_PAGE = 10_000


# --- events and batch jobs --------------------------------------------------------------------------------------------


def throughput_report(events: Iterable[Any], to_state: str = JOB_FINISHED) -> tuple[list[datetime], list[int]]:
    """Return when the first, second, third, … event entered that state: (times, [1, 2, 3, …]). No such event: ([], [])."""
    wanted = _text(to_state)
    times = _datetimes(_sorted([(event[0],) for event in _tuples(events, wanted) if event[2] == wanted]))
    return times, list(range(1, len(times) + 1))


def utilization_report(events: Iterable[Any], node_weighting: bool = True) -> tuple[list[datetime], list[float]]:
    """Return the nodes in use from each of these times on; without `node_weighting`, running jobs. No run at all: ([], []).

    The number of nodes of a run is `num_nodes` in the data of its event, else 1. A run begins with its event to RUNNING, or at
    `started` in the data of its end, which is later where a launcher has claimed the job ahead; 0 means that it never ran.
    Changes are in the order (time, change): at equal times ends come before starts. The end of a run whose start is not among
    the events changes nothing, and a job that still runs counts as in use to the end.
    """
    starts, ends = [], []
    for event in _tuples(events, RUNNING):
        if event[2] == RUNNING:
            if event[1] != RUNNING:
                starts.append(event)
        elif event[1] == RUNNING:
            ends.append(event)
    return _totals(_changes(_sorted(ends + starts), node_weighting))


def available_nodes(batch_jobs: Iterable[Any]) -> tuple[list[datetime], list[float]]:
    """Return how many nodes all batch jobs together had from each of these times on. Nothing to count: ([], []).

    Batch jobs that have not begun or not ended are left out, with a warning (RuntimeWarning) that gives their number.
    """
    changes: list[tuple[Any, float]] = []
    left_out = 0
    for one in batch_jobs:
        if one.start_time is None or one.end_time is None:
            left_out += 1
        else:
            changes += [(one.start_time, one.num_nodes), (one.end_time, -one.num_nodes)]
    if left_out:
        import warnings

        text = f"{left_out} batch jobs have not begun, or have not ended; they are left out of the available nodes."
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    return _totals(_sorted(changes))


def _tuples(events: Iterable[Any], state: str) -> Iterable[Event]:
    """Return the events as tuples, at least those that leave or enter that state: from a query, or made from attributes."""
    ready = getattr(events, "tuples", None)
    if not callable(ready):
        return _from_attributes(events)
    return ready(touching=(state,) if state in STATES else ())


def _from_attributes(events: Iterable[Any]) -> Iterator[Event]:
    for event in events:
        data = event.data or {}
        weight, began = data.get("num_nodes"), data.get("started")
        yield event.timestamp, _text(event.from_state), _text(event.to_state), event.job_id, weight, began


def _text(state: Any) -> str:
    """Return the name of a state, which may be given as a member of an enum."""
    return state if isinstance(state, str) else str(getattr(state, "value", state))


def _changes(moves: Iterable[Event], weighting: bool) -> list[tuple[Any, float]]:
    """Return (time, change) of the runs from moves out of and into RUNNING, which are in order of time, ends first.

    An end whose start is unknown and a start at the same time are a run of length 0. But if the job ends again before it
    starts again, that start belongs to another run, and the first end is left out.
    """
    found: list[tuple[Any, float]] = []
    some_never_ran = False
    running: dict[Any, int] = {}  # job -> index of its start in `found`
    ended: dict[Any, Any] = {}  # job -> when it left RUNNING, without a known start
    brief: dict[Any, tuple[Any, float]] = {}  # job -> the end of a run of length 0, unless it ends later
    for move in moves:
        when, job = move[0], move[3]
        if move[2] == RUNNING:
            weight = move[4]
            nodes = float(weight) if weighting and weight is not None else 1.0
            place = len(found)
            found.append((when, nodes))
            if job in brief:
                found.append(brief.pop(job))
            if ended and ended.pop(job, None) == when:
                brief[job] = when, -nodes
            running[job] = place
        elif job in running:
            brief.pop(job, None)
            place = running.pop(job)
            claimed, nodes = found[place]
            began = move[5]
            if began == 0:
                found[place], some_never_ran = _NO_RUN, True
                continue
            if began is not None:
                began = began if isinstance(when, int) else _moment(began, when.tzinfo)
                if began > claimed:
                    found[place] = (began if began < when else when), nodes  # `when` only if a clock was corrected
            found.append((when, -nodes))
        elif move[5] != 0:
            ended[job] = when
    found += brief.values()
    return [change for change in found if change is not _NO_RUN] if some_never_ran else found


def _moment(time_us: int, zone: tzinfo | None) -> datetime:
    since = timedelta(microseconds=time_us)
    return _NAIVE_EPOCH + since if zone is None else (_EPOCH + since).astimezone(zone)


def _totals(changes: list[tuple[Any, float]]) -> tuple[list[datetime], list[float]]:
    """Return the times of the changes, and the sum from each of them on."""
    changes.sort()
    return _datetimes(changes), [round(total, _DIGITS) for total in accumulate(change for _, change in changes)]


# --- histories, as Balsam 0.3 reported them ---------------------------------------------------------------------------


def process_job_times(jobs: Any = None) -> dict[str, list[datetime]]:
    """Return when jobs entered each state: state -> times in order, in UTC, with their zone. States never entered are left out.

    Reads the DB of `jobs` in separate transactions: of a query set (`BalsamJob.objects.filter(…)`), of a list of jobs of the
    active DB, or of all the jobs there.

    Raises:
        NoDatabase: none is active.
    """
    from .db.models import BalsamJob
    from .db.query import queries

    if jobs is None:
        jobs = BalsamJob.objects.all()
    elif not hasattr(jobs, "numbers"):
        jobs = BalsamJob.objects.filter(job_id__in=[job.job_id for job in jobs])
    found: dict[str, list[int]] = {}
    numbers = list(jobs.numbers())
    for start in range(0, len(numbers), _PAGE):
        with jobs.database.read() as cx:
            for time_us, state in queries.entries(cx, numbers[start : start + _PAGE]):
                found.setdefault(state, []).append(time_us)
    return {state: [_EPOCH + timedelta(microseconds=time) for time in sorted(times)] for state, times in found.items()}


def error_report(time_data: Any = None, bin_s: float = 60) -> tuple[list[datetime], list[int]]:
    """Return how many runs ended in RUN_ERROR in each minute: (N + 1 edges of bins, N counts). No error: ([], []).

    `time_data` is the result of `process_job_times`, or events; by default the histories of all jobs of the active DB.

    Raises:
        InvalidSpec: `bin_s` is not more than 0.
    """
    if not bin_s > 0 or math.isinf(bin_s):
        raise InvalidSpec(f"bin_s must be more than 0 seconds, not {bin_s!r}.")
    if time_data is None:
        time_data = process_job_times()
    if isinstance(time_data, Mapping):
        times = _datetimes(_sorted([(time,) for time in time_data.get(RUN_ERROR, ())]))
    else:
        times, _ = throughput_report(time_data, RUN_ERROR)
    if not times:
        return [], []
    width = timedelta(seconds=bin_s)
    counts = [0] * ((times[-1] - times[0]) // width + 1)
    for time in times:
        counts[(time - times[0]) // width] += 1
    return [times[0] + number * width for number in range(len(counts) + 1)], counts


# --- times ------------------------------------------------------------------------------------------------------------


def _sorted(rows: list[Any]) -> list[Any]:
    """Return the rows by time, their first item; those of one time stay in order."""
    try:
        return sorted(rows, key=itemgetter(0))
    except TypeError:  # times with and without a zone
        return sorted(((_with_zone(row[0]), *row[1:]) for row in rows), key=itemgetter(0))


def _with_zone(time: datetime) -> datetime:
    return time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time


def _datetimes(rows: Sequence[tuple[Any, ...]]) -> list[datetime]:
    """Return the first items of the rows as datetimes; microseconds become UTC without a zone, as timestamps of events are."""
    if rows and isinstance(rows[0][0], int):
        return [_NAIVE_EPOCH + timedelta(microseconds=row[0]) for row in rows]
    return [row[0] for row in rows]
