"""The waiting work by shape and estimate, from which the service decides which launches to submit.

Counts come from the indexes that launchers use for claims, without reading the rows. Above a million jobs even that takes too
long for every turn, so a very large number of equal jobs is derived from the counters of states. All functions run inside the
caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ...core import field_specs, states
from ...core.clock import SECOND_US
from ..engine.schema import UNSETTLED
from ..store import claims, large_writes
from ..store.claims import Shape, StartableIndex
from . import select

#: Entries of an index that are counted one by one, of equal jobs and in all. A hundred thousand take 10 ms.
_MOST_EQUAL, _MOST = 100_000, 200_000
#: Number of different priorities and estimates to count, in all, and at least for each shape. A thousand take 20 ms.
_MOST_RUNS, _FEWEST_RUNS = 1500, 10
#: Larger than any priority or estimate.
_BEYOND = 2**62
#: Number of a launcher's running jobs to read; the others are assumed to be like these.
_SAMPLE = 200

_STARTABLE_STATES = (*states.RUNNABLE_STATES, *states.UNPREPARED_STATES)


class Work(NamedTuple):
    """Jobs with the same shape and estimate."""

    shape: Shape
    minutes: int  # the estimate of each
    jobs: int


def startable(cx: sqlite3.Connection) -> list[Work]:
    """Return all work that a launcher could take now, reserved or not. Exact except for a very large number of equal jobs."""
    found, cut = _counted(cx, [*claims.sources(), claims.source_of_suspects()])
    if cut:
        counts = select.count_states(cx)
        unseen = sum(counts.get(state, 0) for state in _STARTABLE_STATES) - sum(found.values())
        for place, key in enumerate(cut):
            found[key] += max(0, unseen * (place + 1) // len(cut) - unseen * place // len(cut))
    return _as_work(found)


def of_workflows(cx: sqlite3.Connection, pattern: str) -> list[Work]:
    """Return `startable` for the workflows that match a launch's filter; of very many equal jobs, only those counted."""
    return _as_work(_counted(cx, claims.sources(claims.matching_workflows(cx, pattern)))[0])


def of_launch(cx: sqlite3.Connection, launch: int) -> list[Work]:
    """Return the startable work that is planned for a launch."""
    return _as_work(_counted(cx, [*claims.sources_of_launch(launch), claims.source_of_suspects(launch)])[0])


def has_unsettled(cx: sqlite3.Connection) -> bool:
    """Return whether programs have ended whose launcher is gone, so that another launcher must settle their results."""
    return cx.execute(f"SELECT 1 FROM job INDEXED BY job_unsettled WHERE {UNSETTLED} LIMIT 1").fetchone() is not None


def held_node_minutes(cx: sqlite3.Connection, leases: Iterable[int], now_us: int) -> float:
    """Return the node-minutes that these launchers' jobs still take if the estimates are right.

    Reads the start times of some of their runs; the others are assumed to be like these.
    """
    return sum(_held_by(cx, lease, now_us) for lease in leases)


def _held_by(cx: sqlite3.Connection, lease: int, now_us: int) -> float:
    jobs = cx.execute("SELECT count(*) FROM job INDEXED BY job_lease WHERE lease = ?", (lease,)).fetchone()[0]
    sample = cx.execute(
        f"""SELECT num_nodes, node_packing_count, wall_time_minutes,
            coalesce((SELECT max(time) FROM event WHERE event.job = job.id AND to_state = '{states.RUNNING}'), ?)
            FROM job INDEXED BY job_lease WHERE lease = ? LIMIT ?""",
        (now_us, lease, _SAMPLE),
    ).fetchall()
    left = sum(
        width(nodes, packing) * max(0.0, minutes - (now_us - began) / (60 * SECOND_US))
        for nodes, packing, minutes, began in sample
    )
    return left * jobs / max(len(sample), 1)


def width(num_nodes: int, node_packing_count: int) -> float:
    """Return the number of nodes that a job takes: a fraction if several jobs share a node, else whole nodes."""
    return float(num_nodes) if num_nodes > 1 else 1 / node_packing_count


def _as_work(found: Counter[tuple[Shape, int]]) -> list[Work]:
    return [Work(shape, minutes, jobs) for (shape, minutes), jobs in sorted(found.items()) if jobs > 0]


_Key = tuple[Shape, int]


def _counted(cx: sqlite3.Connection, among: Sequence[StartableIndex]) -> tuple[Counter[_Key], list[_Key]]:
    """Count the jobs by shape and estimate. Return the counts, and the keys of which there are more jobs than counted."""
    found: Counter[_Key] = Counter()
    cut: dict[_Key, None] = {}
    places = [(source, shape) for source in among for shape in claims.shapes(cx, [source])]
    most_runs = max(_FEWEST_RUNS, _MOST_RUNS // max(1, len(places)))
    budget = _MOST
    for source, shape in places:
        for number, (key, jobs, is_all) in enumerate(_runs(cx, source, shape, budget)):
            budget -= jobs
            found[key] += jobs
            if not is_all or number + 1 == most_runs:
                cut[key] = None
            if number + 1 == most_runs:
                break
    return found, list(cut)


def _runs(cx: sqlite3.Connection, source: StartableIndex, shape: Shape, budget: int) -> Iterator[tuple[_Key, int, bool]]:
    """Yield the runs of equal jobs of one shape, priority by priority, with two seeks and a count for each estimate.

    Each item has the number of jobs (0 if all are hidden) and whether all were counted; at least one is.
    """
    where = f"{source.condition} AND {' AND '.join(f'{field} = ?' for field in field_specs.SHAPE_FIELDS)}"
    fixed = (*source.parameters, *shape)
    table = f"job INDEXED BY {source.index_name}"
    next_priority = f"SELECT max(priority) FROM {table} WHERE {where} AND priority < ?"
    equal = f"SELECT 1 FROM {table} WHERE {where} AND priority = ? AND wall_time_minutes = ? AND job.id BETWEEN ? AND ? LIMIT ?"
    gaps = large_writes.visible_ranges(cx) or [(0, _BEYOND)]
    priority: int | None = cx.execute(next_priority, (*fixed, _BEYOND)).fetchone()[0]
    while priority is not None:
        for minutes in claims.estimates(cx, table, where, (*fixed, priority), _BEYOND):
            most = max(1, min(_MOST_EQUAL, budget))
            jobs = 0
            for first, last in gaps:
                limits = (first, last, most + 1 - jobs)
                jobs += cx.execute(f"SELECT count(*) FROM ({equal})", (*fixed, priority, minutes, *limits)).fetchone()[0]
            budget -= jobs
            yield (shape, minutes), min(jobs, most), jobs <= most
        priority = cx.execute(next_priority, (*fixed, priority)).fetchone()[0]
