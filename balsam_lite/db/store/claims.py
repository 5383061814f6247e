"""A launcher's part of the store: take jobs, report how they ended, find out which were killed.

One tick of a launcher is one write transaction of `finish`, `steps.finish`, `steps.settle_abandoned` and `take`; all
functions run inside it.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple, Protocol

from ...core import causes, field_specs, states
from ...core.clock import format_us
from ...core.parameters import launch_params_of
from ..engine.schema import FREE, RUNNABLE, SUSPECT, SUSPECT_DEATHS, UNPREPARED, VISIBLE
from ..query import queries
from ..query.queries import has_wildcard, matches_workflow
from . import calls, exit_rules, graph, large_writes, runs, suspects
from .runs import Describe, RunResult
from .suspects import Suspect
from .tags import TaggedJobs, of_workflows, rarest, read_tagged, scan_is_cheap
from .transitions import Transition, apply, id_list

#: A row as SQLite gives it.
Row = tuple[Any, ...]


class Shape(NamedTuple):
    """The resources that a job needs: see `field_specs.SHAPE_FIELDS`. Jobs of one shape fit the same placements."""

    num_nodes: int
    ranks_per_node: int
    node_packing_count: int
    gpus_per_rank: float

    @property
    def is_serial(self) -> bool:
        """Whether this is one rank on one node, as serial mode runs (source: Balsam 0.3.8)."""
        return self.num_nodes == 1 and self.ranks_per_node == 1


class Claim(NamedTuple):
    """A job that now belongs to the launcher, with everything needed to run it, prepare it or settle its result.

    A job to be run is already RUNNING in the database; `state` is its state before that.
    """

    job: int
    state: str
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
    input_files: str
    parents: str  # JSON list of [UUID, name, workdir, state]
    mpi_flags: str = ""  # as typed, for the MPI start command
    parameters: str = "{}"  # JSON, for the application's command template or function
    definition: str | None = "{}"  # JSON, of an application that is a Python class; see `field_specs.APP_FIELDS` for these six
    command_template: str | None = ""
    app_parameters: str | None = "{}"
    app_environ: str | None = "{}"
    handle_error: str | None = ""
    handle_timeout: str | None = ""
    keep_background: int = 0  # of the job or its application: leave the processes alone that a run leaves
    record: str | None = None  # JSON, of a job whose Python class is shown it: see `fields_of`
    place: object = None  # what `Capacity.reserve` gave
    call: calls.ClaimedCall | None = None  # of an executor, or with results of calls for their child

    @property
    def label(self) -> str:
        """Return the job's name and short id, as logs name it: `run_7 [7df86c8b]`."""
        return f"{self.name} [{self.job_id[:8]}]".lstrip()


class ClaimResult(NamedTuple):
    """The result of `take`, in the order in which to start the jobs."""

    to_run: list[Claim]
    to_prepare: list[Claim]


class Capacity(Protocol):
    """The free resources of a launcher. Called inside the transaction, so the methods only compute."""

    #: Number of further jobs that it would prepare.
    preparations: int

    def fits(self, shape: Shape) -> bool:
        """Return whether the launcher takes jobs of that shape at all."""

    def count(self, shape: Shape) -> int:
        """Return the maximum number of jobs of that shape that the launcher would take."""

    def reserve(self, shape: Shape) -> object:
        """Reserve and return a placement for one more job of that shape; None if there is none left."""

    def describe(self, place: object) -> tuple[str, str]:
        """Return the nodes and the GPUs of a placement for the record of the run; "" if they are not known yet."""


class Filter(NamedTuple):
    """Selects the jobs that a launcher takes."""

    workflows: tuple[str, ...] | None = None  # exact names; None: all
    serial_only: bool = True
    minutes_left: float | None = None  # None: no limit
    tags: tuple[tuple[str, str], ...] = ()  # all of these
    launch: int | None = None  # the number of its batch job: jobs that are planned for it come first …
    launch_only: bool = False  # … and no others


# --- taking jobs ------------------------------------------------------------------------------------------------------

_SHAPE = ", ".join(field_specs.SHAPE_FIELDS)
_SHAPE_OF_JOB = ", ".join(f"job.{field}" for field in field_specs.SHAPE_FIELDS)
#: All fields of a job for the class of its application, if that has a `run` function or a preamble. Those that are JSON stay
#: text: SQLite does not know NaN.
_RECORD = (
    "CASE WHEN app.definition <> '{}' AND (app.command_template = '' OR json_extract(app.definition, '$.preamble')) "
    "THEN json_array(app.id, (SELECT group_concat(parent) FROM dependency WHERE child = job.id AND parent > 0), "
    f"{', '.join(f'job.{field.name}' for field in field_specs.JOB_FIELDS)}) END"
)
_CANDIDATE = (
    "job.id, job.state, job.job_id, job.attempt, job.name, job.workflow, job.workdir, job.args, job.environ_vars, "
    "job.threads_per_rank, job.threads_per_core, job.cpu_affinity, job.wall_time_minutes, job.application, "
    "app.executable, app.envscript, app.preprocess, app.postprocess, "
    "job.stage_in_url, job.stage_out_url, job.stage_out_files, job.input_files, "
    f"(SELECT json_group_array(json_array({queries.PARENT})) {queries.FROM_PARENTS} WHERE dependency.child = job.id), "
    "job.mpi_flags, job.parameters, app.definition, app.command_template, app.parameters, app.environ_vars, "
    "app.handle_error, app.handle_timeout, job.keep_background OR coalesce(app.keep_background, 0), "
    f"{_RECORD}, job.priority"
)
#: Plain jobs: nothing to prepare before their program but links to their parents' files, which are made at its start.
_PLAIN = "job.stage_in_url = '' AND coalesce(app.preprocess, '') = ''"
#: wall_time_minutes=1, the minimum, is the default and means "unknown": such a job may always start.
SHORT = 1
#: When no more jobs can be prepared, search this many of the first jobs for ones that need no preparation.
_MAX_CANDIDATES_BEYOND = 2000


class StartableIndex(NamedTuple):
    """An index over jobs that can be started: the prepared or the unprepared ones; of all, of one workflow, of one launch."""

    index_name: str
    condition: str
    parameters: tuple[str | int, ...]
    is_prepared: bool


_KINDS = (("job_runnable", RUNNABLE, True), ("job_unprepared", UNPREPARED, False))


def sources(workflows: tuple[str, ...] | None = None) -> list[StartableIndex]:
    """Return the indexes with the startable jobs of these workflows; None: of all."""
    if workflows is None:
        return [StartableIndex(name, condition, (), is_prepared) for name, condition, is_prepared in _KINDS]
    return [
        StartableIndex(f"{name}_of_workflow", f"{condition} AND workflow = ?", (workflow,), is_prepared)
        for name, condition, is_prepared in _KINDS
        for workflow in workflows
    ]


def sources_of_launch(launch: int, workflows: tuple[str, ...] | None = None) -> list[StartableIndex]:
    """Return the indexes with the startable jobs planned for a launch. Workflows are checked row by row: at most thousands."""
    within, names = of_workflows(workflows)
    return [
        StartableIndex(f"{name}_of_launch", f"{condition} AND queued_launch_id = ?{within}", (launch, *names), is_prepared)
        for name, condition, is_prepared in _KINDS
    ]


def source_of_suspects(launch: int | None = None) -> StartableIndex:
    """Return the index with the suspects, which run apart from other jobs; with `launch`, those planned for it."""
    if launch is None:
        return StartableIndex("job_suspect", SUSPECT, (), True)
    return StartableIndex("job_suspect", f"{SUSPECT} AND queued_launch_id = ?", (launch,), True)


def shapes(cx: sqlite3.Connection, among: Sequence[StartableIndex | TaggedJobs] | None = None) -> list[Shape]:
    """Return the distinct shapes of startable jobs, with a few index seeks for each, regardless of the number of jobs."""
    found: set[Shape] = set()
    for source in sources() if among is None else among:
        if isinstance(source, TaggedJobs):
            found.update(Shape._make(entry.shape) for entry in source.entries)
            continue
        shape = _next_shape(cx, source, None)
        while shape is not None:
            found.add(shape)
            shape = _next_shape(cx, source, shape)
    return sorted(found)


def _next_shape(cx: sqlite3.Connection, source: StartableIndex, last: Shape | None) -> Shape | None:
    """Return the smallest shape greater than `last`; None if there is none.

    SQLite compares row values by reading every entry that is equal in the first column, so the seeks are explicit: equal in
    the first n columns and greater in the next, for the longest n that finds one.
    """
    for equal in (0,) if last is None else range(len(field_specs.SHAPE_FIELDS) - 1, -1, -1):
        terms = [f"{field} = ?" for field in field_specs.SHAPE_FIELDS[:equal]]
        terms += [] if last is None else [f"{field_specs.SHAPE_FIELDS[equal]} > ?"]
        query = f"""SELECT {_SHAPE} FROM job INDEXED BY {source.index_name}
            WHERE {" AND ".join([source.condition, *terms])} ORDER BY {_SHAPE} LIMIT 1"""
        row = cx.execute(query, (*source.parameters, *(() if last is None else last[: equal + 1]))).fetchone()
        if row is not None:
            return Shape(*row)
    return None


def waiting(cx: sqlite3.Connection, only: Filter) -> list[tuple[Shape, int, int]]:
    """Return (shape, number of startable jobs, shortest estimate in minutes). Reads all of these jobs: not for a loop."""
    found: dict[Shape, tuple[int, int]] = {}
    listed = None if only.launch_only else _with_rare_tag(cx, only)
    if listed is not None:
        for entry in chain.from_iterable(source.entries for source in listed):
            before = found.get(Shape._make(entry.shape), (0, entry.minutes))
            found[Shape._make(entry.shape)] = (before[0] + 1, min(before[1], entry.minutes))
        return [(shape, jobs, shortest) for shape, (jobs, shortest) in sorted(found.items())]
    (tagged, words), (within, names) = _tagged(only), of_workflows(only.workflows)
    tagged, parameters = tagged + within, [*words, *names]
    if only.launch_only:
        tagged += " AND queued_launch_id = ?"
        parameters.append(only.launch)
    for name, condition, _ in _KINDS:
        rows = cx.execute(
            f"""SELECT {_SHAPE}, count(*), min(wall_time_minutes) FROM job INDEXED BY {name}
                WHERE {condition}{tagged} AND {VISIBLE} GROUP BY {_SHAPE}""",
            parameters,
        )
        for *values, jobs, shortest in rows:
            before = found.get(Shape(*values), (0, shortest))
            found[Shape(*values)] = (before[0] + jobs, min(before[1], shortest))
    return [(shape, jobs, shortest) for shape, (jobs, shortest) in sorted(found.items())]


def matching_workflows(cx: sqlite3.Connection, pattern: str) -> tuple[str, ...]:
    """Return the workflows with startable jobs whose name is `pattern`, or matches it as a glob if it contains `*` or `?`."""
    if not has_wildcard(pattern):
        return (pattern,)
    found = set()
    for index_name, condition in (("job_runnable_of_workflow", RUNNABLE), ("job_unprepared_of_workflow", UNPREPARED)):
        query = f"SELECT min(workflow) FROM job INDEXED BY {index_name} WHERE {condition} AND workflow > ?"
        name = cx.execute(query.replace("> ?", ">= ?"), ("",)).fetchone()[0]
        while name is not None:
            if matches_workflow(name, pattern):
                found.add(name)
            name = cx.execute(query, (name,)).fetchone()[0]
    found.update(name for name in suspects.workflows(cx) if matches_workflow(name, pattern))
    return tuple(sorted(found))


def take(cx: sqlite3.Connection, lease: int, room: Capacity, only: Filter, now_us: int) -> ClaimResult:
    """Claim the jobs to start next: by priority, then larger before smaller, longer before shorter, older before newer.

    A job whose estimate `wall_time_minutes` exceeds `only.minutes_left` is not claimed, unless the estimate is the minimum,
    which means "unknown". Jobs without preparation go from CREATED to RUNNING at once; the others are claimed in their present
    state, up to the number of preparations that `room` allows. An empty result is normal.

    Jobs planned for the launcher's own launch come before all others. The others may be planned for another launch: a plan
    never keeps work from a free launcher.
    """
    taken = ClaimResult([], [])
    for among in _rounds(cx, only):
        more = _take_among(cx, lease, room, only, among, now_us)
        room.preparations -= len(more.to_prepare)
        taken = ClaimResult(taken.to_run + more.to_run, taken.to_prepare + more.to_prepare)
    return taken


def _rounds(cx: sqlite3.Connection, only: Filter) -> Iterator[Sequence[StartableIndex | TaggedJobs]]:
    """Yield the indexes to search for jobs, one group after the other."""
    if only.launch is not None:
        yield sources_of_launch(only.launch, only.workflows)
    if not only.launch_only:
        listed = _with_rare_tag(cx, only)
        yield sources(only.workflows) if listed is None else listed


def _with_rare_tag(cx: sqlite3.Connection, only: Filter) -> list[TaggedJobs] | None:
    """Return the startable jobs that have all the tags if one of the tags is rare; else None."""
    if not only.tags:
        return None
    tag = rarest(cx, only.tags)
    if tag is None:
        tagged = _tagged(only)
        if not all(scan_is_cheap(cx, *source[:3], *tagged) for source in sources(only.workflows)):
            tag = rarest(cx, only.tags, is_slow=True)
    return None if tag is None else read_tagged(cx, tag, _PLAIN, *_tagged(only), only.workflows)


def _take_among(
    cx: sqlite3.Connection,
    lease: int,
    room: Capacity,
    only: Filter,
    among: Sequence[StartableIndex | TaggedJobs],
    now_us: int,
    note: tuple[str, str | None] | None = None,
) -> ClaimResult:
    candidates = []
    fitting = [s for s in shapes(cx, among) if room.fits(s) and (s.is_serial or not only.serial_only)]
    # Consider one job of each of several shapes, even where nothing is free: `room` may reserve nodes for the first of those.
    fewest = int(len(fitting) > 1 or only.launch is not None)
    for shape in fitting:
        wanted = max(room.count(shape), fewest)
        for source in among:
            candidates += [(shape, row) for row in _candidates(cx, source, shape, wanted, room.preparations, only)]
    unfinished = large_writes.unfinished(cx, (row[0] for _, row in candidates)) if candidates else ()
    if unfinished:
        candidates = [(shape, row) for shape, row in candidates if row[0] not in unfinished]
    candidates.sort(key=_order)
    chosen: list[tuple[Shape, Row, object]] = []
    to_prepare: list[tuple[Shape, Row]] = []
    full: set[Shape] = set()
    for shape, row in candidates:
        if _has_to_be_prepared(row):
            if len(to_prepare) < room.preparations:
                to_prepare.append((shape, row))
        elif shape not in full:
            place = room.reserve(shape)
            if place is None:
                full.add(shape)
            else:
                chosen.append((shape, row, place))
    _mark_running(cx, lease, [(row, room.describe(place)) for _, row, place in chosen], now_us, note)
    hold_for_step(cx, lease, [row[0] for _, row in to_prepare])
    to_run = calls.added_to(cx, [_claim(*one) for one in chosen])
    return ClaimResult(to_run, [_claim(shape, row) for shape, row in to_prepare])


def suspects_of(cx: sqlite3.Connection, only: Filter) -> list[Suspect]:
    """Return the suspects that match the filter, regardless of their shape."""
    if not suspects.is_any(cx):
        return []
    return suspects.read(cx, _PLAIN, *_tagged(only), only.workflows, only.launch if only.launch_only else None)


def take_suspects(
    cx: sqlite3.Connection, lease: int, room: Capacity, only: Filter, group: Sequence[Suspect], now_us: int
) -> ClaimResult:
    """Claim those suspects that can be prepared or started, up to the capacity of `room`.

    `group` is a `suspects.next_group`: the launcher runs nothing else until all of them have ended.
    """
    note = suspects.running_note(group[0].deaths, is_alone=len(group) == 1)
    return _take_among(cx, lease, room, only, suspects.startable(group), now_us, note)


def fitting_suspects(cx: sqlite3.Connection, room: Capacity, only: Filter) -> list[Suspect]:
    """Return the suspects that match the filter and that the launcher can run in its remaining time."""
    found = []
    for one in suspects_of(cx, only):
        shape = Shape._make(one.entry.shape)
        fits = room.fits(shape) and (shape.is_serial or not only.serial_only)
        if (fits and one.entry.minutes <= longest_estimate(only.minutes_left)) or one.is_unsettled:
            found.append(one)
    return found


def hold_for_step(cx: sqlite3.Connection, lease: int, jobs: Iterable[int]) -> None:
    """Claim jobs without changing their state."""
    cx.executemany("UPDATE job SET lease = ? WHERE id = ? AND lease IS NULL", [(lease, job) for job in jobs])


def _has_to_be_prepared(row: Row) -> bool:
    return row[1] in states.UNPREPARED_STATES and bool(row[16] or row[18])  # preprocess, stage_in_url


def _candidates(
    cx: sqlite3.Connection, source: StartableIndex | TaggedJobs, shape: Shape, wanted: int, preparations: int, only: Filter
) -> list[Row]:
    """Return rows of jobs: up to `wanted` that can be started, and up to `preparations` that must be prepared first."""
    limit = wanted if source.is_prepared else wanted + preparations
    found = _best(cx, source, shape, limit, only) if limit > 0 else []
    plain = sum(not _has_to_be_prepared(row) for row in found)
    if source.is_prepared or plain >= wanted or len(found) < limit:
        return found
    # Jobs that must be prepared first must not keep placements empty that later jobs could use.
    known = {row[0] for row in found}
    return found + [
        row for row in _best(cx, source, shape, wanted - plain, only, _MAX_CANDIDATES_BEYOND) if row[0] not in known
    ]


def _order(candidate: tuple[Shape, Row]) -> tuple[Any, ...]:
    shape, row = candidate
    return (-row[-1], -shape.num_nodes, shape.node_packing_count, -row[12], row[0])


def _best(
    cx: sqlite3.Connection, source: StartableIndex | TaggedJobs, shape: Shape, wanted: int, only: Filter, plain_among: int = 0
) -> list[Row]:
    """Return the first `wanted` candidates of a shape; with `plain_among`, only the plain ones among that many first jobs.

    Reads one range of the index per priority, so that no row is read in vain.
    """
    if isinstance(source, TaggedJobs):
        return _listed(cx, source.best(shape, wanted, longest_estimate(only.minutes_left), plain_among > 0))
    where = f"{source.condition} AND {' AND '.join(f'{field} = ?' for field in field_specs.SHAPE_FIELDS)}"
    fixed = (*source.parameters, *shape)
    longest = longest_estimate(only.minutes_left)
    next_priority = f"SELECT max(priority) FROM job INDEXED BY {source.index_name} WHERE {where} AND priority < ?"
    tagged, tags = _tagged(only)
    app, order = "LEFT JOIN app ON app.name = job.application", "ORDER BY wall_time_minutes DESC, job.id LIMIT ?"
    table = f"job INDEXED BY {source.index_name}"
    gaps = large_writes.visible_ranges(cx)
    estimate = "wall_time_minutes = ? AND job.id BETWEEN ? AND ?" if gaps else "wall_time_minutes <= ?"
    these = f"WHERE {where} AND priority = ? AND {estimate}{tagged}"
    best = f"SELECT {_CANDIDATE} FROM {table} {app} {these} {order}"
    if plain_among:
        first = f"(SELECT job.id FROM {table} {these} {order}) AS first CROSS JOIN job ON job.id = first.id"
        best = f"SELECT {_CANDIDATE} FROM {first} {app} WHERE {_PLAIN} LIMIT {wanted:d}"
    found: list[Row] = []
    priority: int | None = 2**62
    while len(found) < wanted:
        priority = cx.execute(next_priority, (*fixed, priority)).fetchone()[0]
        if priority is None:
            break
        ranges = _around(cx, table, where, (*fixed, priority), longest, gaps) if gaps else ((longest,),)
        for values in ranges:
            limit = plain_among or wanted - len(found)
            found += cx.execute(best, (*fixed, priority, *values, *tags, limit)).fetchall()
            if len(found) >= wanted:
                break
    return found


def _around(
    cx: sqlite3.Connection, table: str, where: str, fixed: Row, longest: int, gaps: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, int, int]]:
    """Yield each estimate of the jobs of one priority, longest first, with each range of job numbers that is not hidden.

    Hidden jobs with equal keys are adjacent in the index, in order of their numbers: one seek skips all of them.
    """
    for minutes in estimates(cx, table, where, fixed, longest):
        for first, last in gaps:
            yield minutes, first, last


def estimates(cx: sqlite3.Connection, table: str, where: str, fixed: Row, longest: int) -> Iterator[int]:
    """Yield the estimates, at most `longest` minutes, of the jobs of one priority, longest first. Takes a seek for each.

    `fixed` are the parameters of `where` and the priority.
    """
    query = f"SELECT max(wall_time_minutes) FROM {table} WHERE {where} AND priority = ? AND wall_time_minutes <= ?"
    while (minutes := cx.execute(query, (*fixed, longest)).fetchone()[0]) is not None:
        yield minutes
        longest = minutes - 1


def _listed(cx: sqlite3.Connection, jobs: Sequence[int]) -> list[Row]:
    """Return the candidate rows of these jobs, in this order."""
    if not jobs:
        return []
    rows = cx.execute(
        f"""SELECT {_CANDIDATE} FROM job LEFT JOIN app ON app.name = job.application
            WHERE job.id IN (SELECT value FROM json_each(?))""",
        (id_list(jobs),),
    )
    by_number = {row[0]: row for row in rows}
    return [by_number[job] for job in jobs]


def longest_estimate(minutes_left: float | None) -> int:
    """Return the largest estimate, in minutes, that a job may have to start in that time; None: there is no limit."""
    return 2**53 if minutes_left is None else max(SHORT, int(minutes_left))


def _tagged(only: Filter) -> tuple[str, list[str | int | None]]:
    """Return the SQL condition that a job has all the tags, and its parameters."""
    condition = " AND EXISTS (SELECT 1 FROM json_each(job.tags) WHERE key = ? AND value = ?)"
    return condition * len(only.tags), [word for pair in only.tags for word in pair]


def _mark_running(
    cx: sqlite3.Connection,
    lease: int,
    chosen: Sequence[tuple[Row, tuple[str, str]]],
    now_us: int,
    note: tuple[str, str | None] | None = None,
) -> None:
    """Make jobs RUNNING and begin their runs; each row comes with the nodes and GPUs of its run.

    `note` is the message and the data of the event RUNNING.
    """
    messages, data = (("", note[0]), (None, note[1])) if note else ((), ())
    moves = []
    for row, _ in chosen:
        job, state = row[0], row[1]
        if state in states.RUNNABLE_STATES:
            moves.append(Transition(job, (state, states.RUNNING), now_us, messages[1:], data[1:]))
        else:
            moves.append(Transition(job, (state, states.PREPROCESSED, states.RUNNING), now_us, messages, data))
    columns = "lease = ?, attempt = attempt + 1, return_code = NULL, told_to_stop = NULL"
    apply(cx, moves, states.LAUNCHER, columns, [(lease,)] * len(moves), only_if=FREE)
    runs.begin(cx, lease, [(row[0], row[3] + 1, *where) for row, where in chosen])


def _claim(shape: Shape, row: Row, place: object = None) -> Claim:
    job, state, job_id, attempt, name, workflow, workdir, args, environ_vars, *rest, _ = row
    number = attempt if place is None else attempt + 1
    return Claim._make((job, state, job_id, number, name, workflow, workdir, args, environ_vars, shape, *rest, place, None))


def fields_of(claim: Claim) -> dict[str, Any]:
    """Return all fields of a claimed job under the names of the newer interface; {} if the claim has no record."""
    if not claim.record:
        return {}
    from ..query import select
    from ..query.fields import JOB

    app_id, parents, *values = json.loads(claim.record)
    names = [field.name for field in field_specs.JOB_FIELDS]
    columns = {field_specs.WORKSHOP_NAMES.get(name, name): JOB.columns[name] for name in names}
    (row,) = select.read_rows([tuple(values)], columns)
    del row["lease"]
    numbers = sorted(map(int, parents.split(","))) if parents else []
    params = launch_params_of(row["mpi_flags"], row["cpu_affinity"])
    return {**row, "app_id": app_id, "parent_ids": numbers, "launch_params": params}


def claims_of(cx: sqlite3.Connection, jobs: Iterable[int]) -> list[Claim]:
    """Return the claims of jobs that this launcher holds, to settle their results."""
    rows = cx.execute(
        f"""SELECT {_SHAPE_OF_JOB}, {_CANDIDATE} FROM job LEFT JOIN app ON app.name = job.application
            WHERE job.id IN (SELECT value FROM json_each(?))""",
        (id_list(jobs),),
    )
    width = len(field_specs.SHAPE_FIELDS)
    return [_claim(Shape(*row[:width]), row[width:]) for row in rows]


# --- reporting --------------------------------------------------------------------------------------------------------


class Reported(NamedTuple):
    """The result of `finish`."""

    lost: list[int]  # jobs that are not this lease's any more; nothing was written for those
    to_settle: list[Claim]  # still held, in a result state: a script or a copy has to decide what becomes of them
    results: Counter[str] = Counter()  # RUN_DONE, RUN_ERROR, RUN_TIMEOUT -> how many attempts ended so
    killed: int = 0  # jobs that the user has killed meanwhile


def finish(
    cx: sqlite3.Connection,
    lease: int,
    exits: Iterable[RunResult],
    now_us: int,
    settles: bool = True,
    describe: Describe = runs.as_known,
    stop_cause: str = runs.TOLD_TO_STOP,
) -> Reported:
    """Record how runs ended, release the jobs, promote or fail their children.

    A job that was killed meanwhile is released and stays USER_KILLED. A job that this lease no longer holds was deleted, or
    reaped by a process that took this launcher for dead. With `settles` the launcher keeps jobs that need a step after their
    program; else these are left to the next launcher.

    `stop_cause` is why runs that were told to stop have ended.
    """
    ended = {e.job: e for e in exits}
    if not ended:
        return Reported([], [])
    facts = facts_of(cx, f"job.id IN (SELECT value FROM json_each(?)) AND job.lease = {lease:d}", (id_list(ended),))
    mine = {f.job: f for f in facts if f.attempt == ended[f.job].attempt}
    moves, columns, kept, lost = [], [], [], []
    released_jobs: list[tuple[int, str]] = []
    killed: list[RunResult] = []
    for job, fact in mine.items():
        run = ended[job]
        if fact.state != states.RUNNING:
            killed.append(run._replace(cause=runs.KILLED))
            continue
        if run.result == states.RESTART_READY:
            lost.append((fact, run))
            continue
        result = exit_rules.result_of(fact, run.result, run.told_us)
        outcome = exit_rules.after_run(fact, result, run.return_code)
        moves.append(_finished(run, outcome))
        keep = settles and outcome.needs_step
        columns.append((lease if keep else None, run.return_code, outcome.restarts, outcome.retries, run.told_us))
        if keep:
            kept.append(job)
        else:
            released_jobs.append((job, outcome.path[-1]))
    changes = "lease = ?, return_code = ?, restarts = ?, retries = ?, told_to_stop = ?, launcher_deaths = 0"
    apply(cx, moves, states.LAUNCHER, changes, columns)
    graph.released(cx, released_jobs, now_us)
    runs.end(cx, [*(ended[m.job] for m in moves), *killed], describe, stop_cause)
    calls.store_results(cx, ((run.outcome, run.job) for run in ended.values() if run.job in mine))
    requeue_lost(cx, lost, now_us, describe)
    release(cx, lease, [run.job for run in killed], now_us)
    lost_jobs = [job for job in ended if job not in mine]
    return Reported(lost_jobs, claims_of(cx, kept) if kept else [], Counter(m.path[1] for m in moves), len(killed))


def _finished(ended: RunResult, outcome: exit_rules.NextStates) -> Transition:
    cause = outcome.cause
    if ended.result == states.RUN_ERROR and ended.started_us is None:
        cause = causes.of_message(causes.NOT_STARTED, ended.message)
    return Transition(ended.job, outcome.path, ended.ended_us, (ended.message, *outcome.messages), cause=cause)


def unstarted(claim: Claim, now_us: int, why: str) -> RunResult:
    """Return the end of a claim whose program has certainly never been started."""
    return RunResult(claim.job, claim.attempt, states.RESTART_READY, None, why, None, now_us, former=claim.state)


def requeue_lost(
    cx: sqlite3.Connection,
    lost: Sequence[tuple[exit_rules.JobFacts, RunResult]],
    now_us: int,
    describe: Describe = runs.as_known,
) -> None:
    """Return RUNNING jobs that no launcher runs any more to RESTART_READY, which is the result of the run given with each.

    A job that had started has used up a restart; at its limit it fails with its children.

    A job that has certainly never started returns to its former state, and its attempt number is reused by the next run.
    If a job was running when its launcher or spawn helper died, the death is counted instead of a restart; see `suspects`.
    The runs end when their events do, and those that have never started leave no record.
    """
    if not lost:
        return
    moves, columns = [], []
    deaths = suspects.at_death(cx, [run.job for _, run in lost if run.is_death and run.has_started])
    for facts, run in lost:
        message = run.message
        outcome = exit_rules.after_lost_holder(facts, run.has_started and run.is_counted)
        if facts.job in deaths:
            number = deaths[facts.job][0] + 1
            outcome = exit_rules.after_death(facts, number, deaths[facts.job][1])
            if number >= SUSPECT_DEATHS:
                message = f"{message}; {suspects.describe(number)}, so it will be run apart from other jobs"
        path = (states.RUNNING, run.former) if run.former else outcome.path
        if run.has_started and facts.told_to_stop is not None:
            message = f"{message}; the run had been told to stop at {format_us(facts.told_to_stop)}"
        moves.append(Transition(facts.job, path, run.ended_us, (outcome.messages[0] or message,), cause=outcome.cause))
        columns.append((outcome.restarts, run.start_after, facts.attempt - bool(run.former), int(facts.job in deaths)))
    changes = "lease = NULL, restarts = ?, start_after = ?, attempt = ?, launcher_deaths = launcher_deaths + ?"
    apply(cx, moves, states.REAPER, changes, columns)
    runs.end(cx, [run for _, run in lost], describe)
    graph.released(cx, [(m.job, m.path[-1]) for m in moves], now_us)


def count_step_deaths(cx: sqlite3.Connection, held: Iterable[exit_rules.JobFacts], now_us: int, was_alone: bool) -> None:
    """Count the death of a launcher for jobs that were in a step; a suspect that ran alone has caused it, and fails."""
    failed = []
    for facts in held:
        cx.execute("UPDATE job SET launcher_deaths = launcher_deaths + 1 WHERE id = ?", (facts.job,))
        deaths = cx.execute("SELECT launcher_deaths FROM job WHERE id = ?", (facts.job,)).fetchone()[0]
        if was_alone and deaths > SUSPECT_DEATHS:
            outcome = exit_rules.after_death(facts, deaths, was_alone)
            path = (facts.state, states.FAILED)
            failed.append(Transition(facts.job, path, now_us, outcome.messages, cause=outcome.cause))
    apply(cx, failed, states.REAPER, "lease = NULL")
    graph.released(cx, [(m.job, m.path[-1]) for m in failed], now_us)


def release(cx: sqlite3.Connection, lease: int, jobs: Iterable[int], now_us: int) -> None:
    """Release those of `jobs` that the lease holds, in their present states; propagate the ends to their children."""
    listed = id_list(jobs)
    if listed == "[]":
        return
    query = "SELECT id, state FROM job WHERE id IN (SELECT value FROM json_each(?)) AND lease = ?"
    held = cx.execute(query, (listed, lease)).fetchall()
    update = "UPDATE job NOT INDEXED SET lease = NULL WHERE id IN (SELECT value FROM json_each(?)) AND lease = ?"
    cx.execute(update, (listed, lease))
    graph.released(cx, held, now_us)


def tell_to_stop(cx: sqlite3.Connection, lease: int, jobs: Iterable[int], now_us: int) -> None:
    """Record that these runs have just been told to stop, in case their launcher does not survive the grace period."""
    cx.execute(
        f"""UPDATE job SET told_to_stop = ? WHERE id IN (SELECT value FROM json_each(?)) AND lease = ?
            AND state = '{states.RUNNING}'""",
        (now_us, id_list(jobs), lease),
    )


def still_held(cx: sqlite3.Connection, lease: int) -> set[int]:
    """Return the jobs that this lease should hold. Any other job that the launcher still runs was killed or deleted."""
    query = f"SELECT id FROM job INDEXED BY job_lease WHERE lease = ? AND state <> '{states.USER_KILLED}'"
    return {row[0] for row in cx.execute(query, (lease,))}


def facts_of(cx: sqlite3.Connection, where: str, parameters: Row, hint: str = "") -> list[exit_rules.JobFacts]:
    """Return the facts about the jobs for which `where` holds."""
    sql = f"SELECT {exit_rules.FACTS} FROM job {hint} LEFT JOIN app ON app.name = job.application WHERE {where}"
    return [exit_rules.JobFacts._make(row) for row in cx.execute(sql, parameters)]
