"""The work there is: by shape and estimate, from which the service decides which launches to submit; and whether jobs may still
come for an idle launcher, and why.

Counts come from the indexes that launchers use for claims, without reading the rows. Above a million jobs even that takes too
long for every turn, so a very large number of equal jobs is derived from the counters of states. Whether jobs may come is read
from the counters, or, with a filter, from a bounded number of the jobs that have not ended. All functions only read, and run
inside the caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ...core import field_specs, states
from ...core.clock import SECOND_US
from ..engine.schema import UNSETTLED, VISIBLE, sql_list
from ..store import claims, large_writes, leases
from ..store.claims import Shape, StartableIndex
from ..store.leases import Watch
from . import queries, select

#: Entries of an index that are counted one by one, of equal jobs and in all. A hundred thousand take 10 ms.
MAX_EQUAL_ENTRIES, MAX_ENTRIES = 100_000, 200_000
#: Number of different priorities and estimates to count, in all, and at least for each shape. A thousand take 20 ms.
MAX_RUNS, _MIN_RUNS = 1500, 10
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
    found = held(cx, lease)
    left = sum(
        width(run.shape.num_nodes, run.shape.node_packing_count)
        * max(0.0, run.minutes - (now_us - (now_us if run.began_us is None else run.began_us)) / (60 * SECOND_US))
        for run in found.runs
    )
    return left * found.jobs / max(len(found.runs), 1)


class HeldRun(NamedTuple):
    """A job that a launcher holds."""

    job: int
    shape: Shape
    minutes: int  # its estimate
    began_us: int | None  # None: it has never run
    is_running: bool  # else a step before or after its run


class HeldJobs(NamedTuple):
    """The jobs that a launcher holds."""

    jobs: int
    runs: list[HeldRun]  # some of these, to stand for all


def held(cx: sqlite3.Connection, lease: int) -> HeldJobs:
    """Return the jobs that a launcher holds."""
    jobs = cx.execute("SELECT count(*) FROM job INDEXED BY job_lease WHERE lease = ?", (lease,)).fetchone()[0]
    sample = cx.execute(
        f"""SELECT {", ".join(field_specs.SHAPE_FIELDS)}, id, wall_time_minutes,
            (SELECT max(time) FROM event WHERE event.job = job.id AND to_state = '{states.RUNNING}'),
            state = '{states.RUNNING}' FROM job INDEXED BY job_lease WHERE lease = ? LIMIT ?""",
        (lease, _SAMPLE),
    )
    return HeldJobs(jobs, [HeldRun(row[4], Shape(*row[:4]), row[5], row[6], bool(row[7])) for row in sample])


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
    most_runs = max(_MIN_RUNS, MAX_RUNS // max(1, len(places)))
    budget = MAX_ENTRIES
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
            most = max(1, min(MAX_EQUAL_ENTRIES, budget))
            jobs = 0
            for first, last in gaps:
                limits = (first, last, most + 1 - jobs)
                jobs += cx.execute(f"SELECT count(*) FROM ({equal})", (*fixed, priority, minutes, *limits)).fetchone()[0]
            budget -= jobs
            yield (shape, minutes), min(jobs, most), jobs <= most
        priority = cx.execute(next_priority, (*fixed, priority)).fetchone()[0]


# --- what may come -----------------------------------------------------------------------------------------------------

_UNENDED = tuple(state for state in states.STATES if state not in states.END_STATES)
#: Loops in shells and scripts add jobs in shorter intervals than this, in seconds.
_ADDING_S = 2.0
#: Rows that are read to find one that matches a filter. Beyond that there may be one.
MAX_ROWS = 20_000

#: The reason to wait while the launcher's scope has never had a job; the scope in words follows.
FIRST_JOB = "a first job"


class Scope(NamedTuple):
    """The jobs that a launcher takes."""

    workflow: str | None = None  # exact name or glob; None: all
    tags: tuple[tuple[str, str], ...] = ()  # all of these
    launch: int | None = None  # only those planned for this launch

    def takes_workflow(self, workflow: str) -> bool:
        """Return whether jobs of that workflow are in the scope, as far as this matters."""
        return self.workflow is None or queries.matches_workflow(workflow, self.workflow)

    def __str__(self) -> str:
        """Return the scope as words that follow "a job"; "" for all jobs."""
        words = [f"of workflow {self.workflow}"] if self.workflow is not None else []
        words += [f"with the tag {key}={value}" for key, value in self.tags]
        words += ["planned for this launch"] if self.launch is not None else []
        return " " + " ".join(words) if words else ""


def what_may_come(
    cx: sqlite3.Connection, scope: Scope, now_us: int, expiry_s: float, since_us: int | None = None, watch: Watch | None = None
) -> str:
    """Return in words why there may be jobs to run later, or "" if there can be none.

    There can be none when every job in the scope has ended, no hook of an ended job runs, and no process is registered as
    waiting for jobs. In a scope that never had a job the first one may come; and when one was added a moment ago, but after
    `since_us` (the launcher's start), the next one may.
    """
    if large_writes.hidden_ranges(cx):
        return "jobs that are being added"
    unended = _unended(cx, scope)
    if unended:
        return unended
    # A hook may have set the final state of its job, and go on: it can still add jobs.
    held = (
        f"SELECT 1 FROM job INDEXED BY job_lease WHERE lease IS NOT NULL AND state IN ({sql_list(states.END_STATES)}) LIMIT 1"
    )
    if cx.execute(held).fetchone():
        return "a script of a job that has ended"
    waiting = leases.living_waits(cx, expiry_s, watch)
    if waiting:
        holder = waiting[0].lease.holder
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        return f"jobs of a program that waits for jobs (pid {holder.pid} on {holder.host}{more})"
    if not _has_any(cx, scope):
        return FIRST_JOB + str(scope)
    newest_us = cx.execute("SELECT created FROM job ORDER BY id DESC LIMIT 1").fetchone()[0]
    is_adding = since_us is not None and newest_us > since_us and now_us - newest_us < _ADDING_S * SECOND_US
    return "the next job of a program that has just added one" if is_adding else ""


def state_counts(cx: sqlite3.Connection, scope: Scope, wanted: tuple[str, ...]) -> Counter[str]:
    """Return how many jobs in the scope are in each of the states `wanted`; with a filter, read every such job."""
    if scope == Scope():
        counts = select.count_states(cx)
        return Counter({state: counts[state] for state in wanted if counts.get(state)})
    launch = "" if scope.launch is None else f" AND queued_launch_id = {scope.launch:d}"
    where = f"state IN ({sql_list(wanted)}){launch} AND {VISIBLE}"
    query = f"SELECT state, workflow, tags FROM job INDEXED BY job_state WHERE {where}"
    return Counter(state for state, workflow, tags in cx.execute(query) if _matches(scope, workflow, tags))


def _unended(cx: sqlite3.Connection, scope: Scope) -> str:
    if scope.launch is not None:
        query = f"""SELECT 1 FROM job INDEXED BY job_queued_launch
            WHERE queued_launch_id = ? AND state IN ({sql_list(_UNENDED)}) LIMIT 1"""
        return "jobs planned for this launch that have not ended" if cx.execute(query, (scope.launch,)).fetchone() else ""
    counts = select.count_states(cx)
    found = {state: counts[state] for state in _UNENDED if counts.get(state)}
    if not found:
        return ""
    if scope.workflow is None and not scope.tags:
        return "jobs that have not ended: " + ", ".join(f"{number} {state}" for state, number in found.items())
    query = f"SELECT workflow, tags FROM job INDEXED BY job_state WHERE state IN ({sql_list(_UNENDED)}) LIMIT ?"
    number = 0
    for workflow, tags in cx.execute(query, (MAX_ROWS,)):
        number += 1
        if _matches(scope, workflow, tags):
            return "jobs of its filter that have not ended"
    return "jobs that have not ended, too many to look at" if number == MAX_ROWS else ""


def _matches(scope: Scope, workflow: str, tags: str) -> bool:
    if not scope.takes_workflow(workflow):
        return False
    return not scope.tags or dict(scope.tags).items() <= json.loads(tags).items()


def _has_any(cx: sqlite3.Connection, scope: Scope) -> bool:
    """Return whether a job is in the scope; False also where the search would take too long."""
    if scope.launch is not None:
        return cx.execute("SELECT 1 FROM job WHERE queued_launch_id = ? LIMIT 1", (scope.launch,)).fetchone() is not None
    if scope.tags:
        with_tag = f"SELECT job FROM job_tag WHERE tag = {queries.TAG} LIMIT ?"
        rows = cx.execute(f"SELECT workflow, tags FROM job WHERE id IN ({with_tag})", (*scope.tags[0], MAX_ROWS))
        return any(_matches(scope, workflow, tags) for workflow, tags in rows)
    if scope.workflow is None:
        return bool(select.count_states(cx))
    return any(queries.matches_workflow(name, scope.workflow) for name in queries.workflows(cx))
