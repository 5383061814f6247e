"""A launcher's dealings with the store: take jobs, report how they ended, hear which were killed.

One tick of a launcher is one write transaction of `finish`, `settle_abandoned` and `take`; all functions run inside it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, Protocol, cast

from ... import spec, states
from ..schema import STARTABLE, UNSETTLED
from . import graph, outcomes
from .moves import Move, id_list, move

_FACTS = ", ".join(("id", *outcomes.JobFacts._fields[1:]))


#: A row as SQLite gives it.
Row = tuple[Any, ...]


class Shape(NamedTuple):
    """What a job costs: see `spec.SHAPE_FIELDS`. Jobs of one shape fit in the same places."""

    num_nodes: int
    ranks_per_node: int
    node_packing_count: int
    gpus_per_rank: float

    @property
    def is_serial(self) -> bool:
        """One rank on one node: what serial mode runs (source: Balsam 0.3.8)."""
        return self.num_nodes == 1 and self.ranks_per_node == 1


class Claim(NamedTuple):
    """A job that now belongs to the launcher, with all that is needed to run it. It is RUNNING in the database already."""

    job: int
    job_id: str
    attempt: int
    name: str
    workflow: str
    workdir: str  # relative to the DB's data/, or absolute
    args: str
    environ_vars: str  # JSON
    shape: Shape
    threads_per_rank: int
    threads_per_core: int
    cpu_affinity: str
    wall_time_minutes: int
    application: str
    executable: str | None  # None: there is no such application
    envscript: str | None
    preprocess: str | None
    postprocess: str | None
    stage_in_url: str
    stage_out_url: str
    stage_out_files: str
    parent_ids: str  # JSON list of UUIDs
    place: object  # what `Room.reserve` gave


class Exit(NamedTuple):
    """How a run ended."""

    job: int
    attempt: int
    result: str  # RUN_DONE, RUN_ERROR or RUN_TIMEOUT
    return_code: int | None
    message: str
    started_us: int | None  # None: it never started
    ended_us: int


class Room(Protocol):
    """What a launcher has to offer; asked inside the transaction, so it only computes."""

    def count(self, shape: Shape) -> int:
        """How many jobs of that shape it would take, at most."""

    def reserve(self, shape: Shape) -> object:
        """A place for one more job of that shape; None when there is none left."""


class Filter(NamedTuple):
    """Which jobs a launcher takes."""

    workflows: tuple[str, ...] | None = None  # exact names; None: all
    serial_only: bool = True
    minutes_left: float | None = None  # None: no limit


# --- taking jobs ------------------------------------------------------------------------------------------------------

_SHAPE = ", ".join(spec.SHAPE_FIELDS)
_CANDIDATE = (
    "job.id, job.state, job.job_id, job.attempt, job.name, job.workflow, job.workdir, job.args, job.environ_vars, "
    "job.threads_per_rank, job.threads_per_core, job.cpu_affinity, job.wall_time_minutes, job.application, "
    "app.executable, app.envscript, app.preprocess, app.postprocess, "
    "job.stage_in_url, job.stage_out_url, job.stage_out_files, "
    "(SELECT json_group_array(parent.job_id) FROM dependency JOIN job AS parent ON parent.id = dependency.parent "
    "WHERE dependency.child = job.id), job.priority"
)


class _Source(NamedTuple):
    """One of the two indexes over startable jobs: of all workflows, or of one."""

    index_name: str
    condition: str
    parameters: tuple[str, ...]


def _sources(workflows: tuple[str, ...] | None) -> list[_Source]:
    if workflows is None:
        return [_Source("job_startable", STARTABLE, ())]
    return [_Source("job_startable_of_workflow", f"{STARTABLE} AND workflow = ?", (name,)) for name in workflows]


def shapes(cx: sqlite3.Connection, workflows: tuple[str, ...] | None = None) -> list[Shape]:
    """The distinct shapes of startable jobs: a few seeks in the index for each, however many jobs there are."""
    found: set[Shape] = set()
    for source in _sources(workflows):
        shape = _next_shape(cx, source, None)
        while shape is not None:
            found.add(shape)
            shape = _next_shape(cx, source, shape)
    return sorted(found)


def _next_shape(cx: sqlite3.Connection, source: _Source, last: Shape | None) -> Shape | None:
    """The smallest shape beyond `last`.

    SQLite compares row values by reading every entry that is equal in the first column, so the seeks are spelled out:
    equal in the first n columns and greater in the next, for the longest n that finds one.
    """
    for equal in (0,) if last is None else range(len(spec.SHAPE_FIELDS) - 1, -1, -1):
        terms = [f"{field} = ?" for field in spec.SHAPE_FIELDS[:equal]]
        terms += [] if last is None else [f"{spec.SHAPE_FIELDS[equal]} > ?"]
        query = f"""SELECT {_SHAPE} FROM job INDEXED BY {source.index_name}
            WHERE {" AND ".join([source.condition, *terms])} ORDER BY {_SHAPE} LIMIT 1"""
        row = cx.execute(query, (*source.parameters, *(() if last is None else last[: equal + 1]))).fetchone()
        if row is not None:
            return Shape(*row)
    return None


def waiting(cx: sqlite3.Connection, workflows: tuple[str, ...] | None = None) -> list[tuple[Shape, int, int]]:
    """The startable jobs by shape: (shape, how many, the shortest estimate in minutes). Reads them all: not for a loop."""
    where, parameters = STARTABLE, cast("tuple[str, ...]", ())
    if workflows is not None:
        where, parameters = f"{STARTABLE} AND workflow IN (SELECT value FROM json_each(?))", (json.dumps(workflows),)
    rows = cx.execute(
        f"""SELECT {_SHAPE}, count(*), min(wall_time_minutes) FROM job INDEXED BY job_startable
            WHERE {where} GROUP BY {_SHAPE}""",
        parameters,
    )
    return [(Shape(*row[:-2]), row[-2], row[-1]) for row in rows]


def matching_workflows(cx: sqlite3.Connection, pattern: str) -> tuple[str, ...]:
    """The workflows with startable jobs whose name is `pattern`, or matches it as a glob if it holds `*`, `?` or `[`."""
    if not set(pattern) & set("*?["):
        return (pattern,)
    query = f"""SELECT min(workflow) FROM job INDEXED BY job_startable_of_workflow
        WHERE {STARTABLE} AND workflow > ?"""
    found = []
    name = cx.execute(query.replace("> ?", ">= ?"), ("",)).fetchone()[0]
    while name is not None:
        if fnmatchcase(name, pattern):
            found.append(name)
        name = cx.execute(query, (name,)).fetchone()[0]
    return tuple(found)


def take(cx: sqlite3.Connection, lease: int, room: Room, only: Filter, now_us: int) -> list[Claim]:
    """Claim the jobs to start next: by priority, then the larger, then the longer ones, then the older.

    A job whose estimate `wall_time_minutes` is beyond `only.minutes_left` is left alone. What has nothing to be prepared
    passes from CREATED to RUNNING at once. Returns claims in the order in which they should start; none is normal.
    """
    candidates = []
    for shape in shapes(cx, only.workflows):
        if only.serial_only and not shape.is_serial:
            continue
        wanted = room.count(shape)
        if wanted > 0:
            for source in _sources(only.workflows):
                candidates += [(shape, row) for row in _best(cx, source, shape, wanted, only.minutes_left)]
    candidates.sort(key=_order)
    chosen, full = [], set()
    for shape, row in candidates:
        if shape not in full:
            place = room.reserve(shape)
            if place is None:
                full.add(shape)
            else:
                chosen.append((shape, row, place))
    _mark_running(cx, lease, [row for _, row, _ in chosen], now_us)
    return [_claim(shape, row, place) for shape, row, place in chosen]


def _order(candidate: tuple[Shape, Row]) -> tuple[Any, ...]:
    shape, row = candidate
    return (-row[-1], -shape.num_nodes, shape.node_packing_count, -row[12], row[0])


def _best(cx: sqlite3.Connection, source: _Source, shape: Shape, wanted: int, minutes: float | None) -> list[Row]:
    """The first `wanted` candidates of a shape. One range of the index per priority, so that no row is read in vain."""
    where = f"{source.condition} AND {' AND '.join(f'{field} = ?' for field in spec.SHAPE_FIELDS)}"
    fixed = (*source.parameters, *shape)
    longest = 2**53 if minutes is None else int(minutes)
    next_priority = f"SELECT max(priority) FROM job INDEXED BY {source.index_name} WHERE {where} AND priority < ?"
    best = f"""SELECT {_CANDIDATE} FROM job INDEXED BY {source.index_name} LEFT JOIN app ON app.name = job.application
        WHERE {where} AND priority = ? AND wall_time_minutes <= ?
        ORDER BY wall_time_minutes DESC, job.id LIMIT ?"""
    found: list[Row] = []
    priority: int | None = 2**62
    while len(found) < wanted:
        priority = cx.execute(next_priority, (*fixed, priority)).fetchone()[0]
        if priority is None:
            break
        found += cx.execute(best, (*fixed, priority, longest, wanted - len(found))).fetchall()
    return found


def _mark_running(cx: sqlite3.Connection, lease: int, rows: Sequence[Row], now_us: int) -> None:
    holder = (None, f'{{"lease":{lease}}}')
    moves = []
    for row in rows:
        job, state = row[0], row[1]
        if state in states.RUNNABLE_STATES:
            moves.append(Move(job, (state, states.RUNNING), now_us, (), holder[1:]))
        else:
            moves.append(Move(job, (state, states.PREPROCESSED, states.RUNNING), now_us, (), holder))
    move(cx, moves, states.LAUNCHER, "lease = ?, attempt = attempt + 1, return_code = NULL", [(lease,)] * len(moves))


def _claim(shape: Shape, row: Row, place: object) -> Claim:
    job, _, job_id, attempt, name, workflow, workdir, args, environ_vars, *rest, _ = row
    return Claim._make((job, job_id, attempt + 1, name, workflow, workdir, args, environ_vars, shape, *rest, place))


# --- reporting --------------------------------------------------------------------------------------------------------


def finish(cx: sqlite3.Connection, lease: int, exits: Iterable[Exit], now_us: int) -> list[int]:
    """Record how runs ended, release the jobs, promote or fail their children.

    A job that was killed meanwhile is released and stays USER_KILLED. Returns the jobs that are not this lease's any more
    (deleted, or reaped by somebody who took this launcher for dead); nothing was written for those.
    """
    ended = {e.job: e for e in exits}
    if not ended:
        return []
    facts = _facts(cx, f"id IN (SELECT value FROM json_each(?)) AND lease = {lease:d}", (id_list(ended),))
    mine = {f.job: f for f in facts if f.attempt == ended[f.job].attempt}
    moves, columns = [], []
    for job, fact in mine.items():
        if fact.state == states.RUNNING:
            outcome = outcomes.after_run(fact, ended[job].result)
            moves.append(_finished(ended[job], outcome))
            columns.append((ended[job].return_code, outcome.restarts))
    move(cx, moves, states.LAUNCHER, "lease = NULL, return_code = ?, restarts = ?", columns)
    killed = [job for job, fact in mine.items() if fact.state != states.RUNNING]
    release(cx, lease, killed)
    _tell_children(cx, moves, now_us)
    return [job for job in ended if job not in mine]


def _finished(ended: Exit, outcome: outcomes.Outcome) -> Move:
    facts = {"started": ended.started_us, "return_code": ended.return_code or None}
    known = ",".join(f'"{key}":{value:d}' for key, value in facts.items() if value is not None)
    data = (f"{{{known}}}",) if known else ()
    return Move(ended.job, outcome.path, ended.ended_us, (ended.message, *outcome.messages), data)


def settle_abandoned(cx: sqlite3.Connection, now_us: int, limit: int = 1000) -> int:
    """Decide about jobs whose program ended but whose holder left before deciding. Returns how many there were."""
    facts = _facts(cx, f"{UNSETTLED} LIMIT ?", (limit,), "INDEXED BY job_unsettled")
    found = [(fact.job, outcomes.settle(fact, fact.state)) for fact in facts]
    moves = [Move(job, outcome.path, now_us, outcome.messages) for job, outcome in found]
    move(cx, moves, states.STEP, "restarts = ?", [(outcome.restarts,) for _, outcome in found])
    _tell_children(cx, moves, now_us)
    return len(moves)


def _tell_children(cx: sqlite3.Connection, moves: Sequence[Move], now_us: int) -> None:
    ends: dict[str, list[int]] = {}
    for m in moves:
        ends.setdefault(m.path[-1], []).append(m.job)
    if states.JOB_FINISHED in ends:
        graph.parents_finished(cx, ends[states.JOB_FINISHED], now_us)
    if states.FAILED in ends:
        graph.parents_failed(cx, ends[states.FAILED], now_us)


def give_back(cx: sqlite3.Connection, lease: int, jobs: Iterable[int], now_us: int) -> None:
    """Return claims that were never started, without counting a restart."""
    facts = _facts(cx, f"id IN (SELECT value FROM json_each(?)) AND lease = {lease:d}", (id_list(jobs),))
    path = (states.RUNNING, states.RESTART_READY)
    note = ("Not started before the launcher's end",)
    moves = [Move(f.job, path, now_us, note) for f in facts if f.state == path[0]]
    move(cx, moves, states.REAPER, "lease = NULL")
    release(cx, lease, [f.job for f in facts if f.state != states.RUNNING])


def release(cx: sqlite3.Connection, lease: int, jobs: Iterable[int]) -> None:
    """Let go of jobs without touching their state."""
    cx.executemany("UPDATE job SET lease = NULL WHERE id = ? AND lease = ?", [(job, lease) for job in jobs])


def still_running(cx: sqlite3.Connection, lease: int) -> set[int]:
    """The jobs that this lease is meant to run. What a launcher runs beyond these was killed or deleted."""
    query = f"SELECT id FROM job INDEXED BY job_lease WHERE lease = ? AND state = '{states.RUNNING}'"
    return {row[0] for row in cx.execute(query, (lease,))}


def _facts(cx: sqlite3.Connection, where: str, parameters: Row, hint: str = "") -> list[outcomes.JobFacts]:
    rows = cx.execute(f"SELECT {_FACTS} FROM job {hint} WHERE {where}", parameters)
    return [outcomes.JobFacts._make(row) for row in rows]
