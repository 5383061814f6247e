"""Adding jobs, one or ten million, all or nothing.

The input is checked and collected outside of any transaction (it may come from a slow generator, and may itself use the DB).
Then one transaction inserts it; a very large number of jobs takes several short ones, whose rows stay hidden until all are
inserted (`Insertion`). Memory stays constant: beyond a few thousand rows they are kept in a file. Only the dependencies stay
in memory.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from operator import itemgetter, length_hint
from typing import Any, Callable, NamedTuple, Union
from uuid import UUID

from ...core import field_specs, states
from ...core.clock import SystemClock
from ...core.errors import (
    AmbiguousJobId,
    BalsamError,
    DependencyCycle,
    DuplicateJobId,
    InvalidSpec,
    UnknownApp,
    UnknownJob,
)
from .. import collected
from ..collected import Added, Skipped
from ..engine.connection import Database
from ..engine.schema import OWN_WORKDIR, VISIBLE, sql_list
from ..query import queries
from . import apps as applications
from . import calls, counters, graph, journal, large_writes, pieces, remote_parents, transitions, unique_keys
from .blocks import Blocks
from .large_writes import Progress
from .tags import Tagger

#: Rows that are kept in memory, and rows in one piece of the file.
_CHUNK = 5000
_KEY = "unique_key"


class Position(NamedTuple):
    """A parent given by its position in the same batch, counted from 0. A plain int is the number of a job in the DB."""

    value: int


class Named(str):
    """A parent given by its name in the same batch, or else by a word that names a job in the DB."""


#: How a parent is given: the number of a job in the DB, a word that names one (see `queries.fitting`), the UUID of a job
#: of the same batch, or a position or a name in it.
Ref = Union[int, str, Position]


class _Chunk(NamedTuple):
    """Rows that were given by the same fields."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    claimed: list[int]  # positions in `rows` of jobs whose working directory, which was given, must not be another job's
    number: int  # of the first row, counted from 1 over all chunks
    ids_are_given: bool  # by the user
    calls: list[tuple[int, int, bytes]]  # of executors: position in `rows`, context, payload
    given_numbers: tuple[int, ...] = ()  # of the rows, counted over all jobs of the batch; (): as by `number`

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """The number of its jobs by (workflow, state)."""
        if "workflow" not in self.columns:
            return Counter({("", states.CREATED): len(self.rows)})
        found = Counter(map(itemgetter(self.columns.index("workflow")), self.rows))
        return Counter({(workflow, states.CREATED): jobs for workflow, jobs in found.items()})

    def part(self, start: int, stop: int) -> _Chunk:
        """Return the chunk of some of its rows."""
        claimed = [place - start for place in self.claimed if start <= place < stop]
        called = [(place - start, context, payload) for place, context, payload in self.calls if start <= place < stop]
        chunk = self._replace(rows=self.rows[start:stop], claimed=claimed, number=self.number + start, calls=called)
        return chunk._replace(given_numbers=self.given_numbers[start:stop])

    def without(self, skipped: Skipped) -> _Chunk:
        """Return the chunk without the rows of skipped jobs; `number` counts the others."""
        first = self.number - 1
        start, stop = (bisect_left(skipped.positions, place) for place in (first, first + len(self.rows)))
        left_out = {place - first for place in skipped.positions[start:stop]}
        kept = [place for place in range(len(self.rows)) if place not in left_out]
        claimed = [new for new, place in enumerate(kept) if place in {*self.claimed}] if self.claimed else []
        rows, numbers = [self.rows[place] for place in kept], tuple(self.number + place for place in kept)
        new_place = {place: new for new, place in enumerate(kept)} if self.calls else {}
        called = [(new_place[place], context, payload) for place, context, payload in self.calls if place in new_place]
        return self._replace(rows=rows, claimed=claimed, number=self.number - start, given_numbers=numbers, calls=called)

    def given_number(self, place: int) -> int:
        """Return the number of a row, as the user counts the jobs."""
        return self.given_numbers[place] if self.given_numbers else self.number + place


def add_jobs(
    db: Database,
    jobs: Iterable[Mapping[str, Any]],
    progress: Progress | None = None,
    dependencies: Iterable[tuple[Ref, Ref]] = (),
    start_after: int | None = None,
    on_duplicate: str = unique_keys.REFUSE,
    apps: Sequence[applications.AppChange] = (),
    dry_run: bool = False,
) -> Added:
    """Add jobs given by their fields (see `field_specs.JOB_FIELDS`); missing fields take their defaults.

    Besides the fields, a job may have `job_id` (a UUID, replaced if its first 8 characters are taken) or `given_id` (a UUID
    chosen by the user), `workdir` (below `data/`), `allow_shared_workdir` (True: other jobs that have not ended may have that
    workdir, too), `origin` (where the job comes from, shown in its history), `call` (of an executor: the number of a context,
    and a payload; see `calls`) and `parents`: numbers or UUIDs of existing jobs, UUIDs of jobs of this batch, or a `Position`
    in it. After reading all `jobs` this opens one write transaction, or many short ones for more than
    `large_writes.MAX_DIRECT_JOBS` jobs or parents. Either way other processes see all of the jobs or none.

    Args:
        progress: called with the number of jobs read or inserted since the last call.
        dependencies: (parent, child) pairs to be added after the jobs; the children are jobs that exist already.
        start_after: hold the jobs back until then, in microseconds; see `held_back`.
        on_duplicate: "skip" leaves out jobs whose `unique_key` is that of a job in the DB, or of an earlier one of `jobs`. The
            job with that key takes their place as a parent; its own parents stay as they are. "refuse" raises DuplicateKey.
        apps: applications to add or change in the transaction in which the jobs become visible.
        dry_run: only raise what would be raised, and count.

    Raises:
        UnknownField, InvalidSpec, UnknownJob, DependencyCycle: with the number of the job, counted from 1. UnknownApp.
        DuplicateJobId: a `given_id`, or its first 8 characters, is that of another job. DuplicateKey. For
        `dependencies` as `graph.add_dependencies`, for `apps` as `apps.carry_out`. Nothing is added.
    """
    unique_keys.check_mode(on_duplicate)
    with _Spool() as spool:
        start_after = journal.start_after(db, start_after)
        for chunk in _checked(jobs, progress, spool.parents, start_after):
            spool.put(chunk)
        linked = list(dependencies)
        if not spool.rows and not linked and not apps:
            return Added(0, 0)
        spool.apps = apps
        spool.applications.difference_update(app.fields["name"] for app in apps)
        edges = _resolved(spool, linked)
        if dry_run:
            with db.read() as cx:
                _check_apps(cx, spool.applications)
                spool.skip(db, on_duplicate)
                _check_before(cx, spool, edges.of_new(spool.skipped))
            return spool.added(0, {})
        collected.refuse("Adding jobs by balsam_lite.api or an executor")
        if max(spool.rows, len(edges.inner) + len(edges.outer)) > large_writes.MAX_DIRECT_JOBS and not db.is_in_transaction:
            added = Insertion(db, spool, edges, progress, on_duplicate).carry_out()
        else:
            with unique_keys.when_free(db, spool.has_keys) as cx:
                applications.carry_out(cx, spool.apps)
                _check_apps(cx, spool.applications)
                spool.skip(db, on_duplicate)
                added = _insert(cx, spool, edges.of_new(spool.skipped), progress)
        journal.note_jobs(db, added.first, added.number, start_after)
        return added


def check_jobs(db: Database, jobs: Iterable[Mapping[str, Any]]) -> None:
    """Raise the errors of `add_jobs` for the fields of jobs. Does not check whether parents and applications exist."""
    for chunk in _checked(jobs, None, []):
        if chunk.claimed:
            with db.read() as cx:
                _refuse_shared(cx, chunk)


# --- checking ---------------------------------------------------------------------------------------------------------

#: Given in addition to the fields, and not checked as a field is.
EXTRA = ("job_id", "given_id", "workdir", "allow_shared_workdir", "origin", "parents", "call")


def _checked(
    jobs: Iterable[Mapping[str, Any]],
    progress: Progress | None,
    parents: list[tuple[Ref, int]],
    start_after: int | None = None,
) -> Iterator[_Chunk]:
    """Yield chunks of checked rows; append (parent, position of the child) of each dependency to `parents`."""
    now = SystemClock.now_us()
    names: tuple[str, ...] | None = None
    rows: list[tuple[Any, ...]] = []
    claimed: list[int] = []
    called: list[tuple[int, int, bytes]] = []
    columns: tuple[str, ...] = ()
    has_workdir = has_call = False
    check: Callable[[Mapping[str, Any]], tuple[Any, ...]] = tuple
    for number, job in enumerate(jobs, 1):
        given = tuple(job)
        if given != names or len(rows) == _CHUNK:
            if rows:
                yield _Chunk(columns, rows, claimed, number - len(rows), "given_id" in (names or ()), called)
                _report(progress, len(rows))
                rows, claimed, called = [], [], []
            if given != names:
                names, has_workdir, has_call = given, "workdir" in given, "call" in given
                columns, check = _row_maker(given, now, start_after)
        try:
            rows.append(check(job))
            if job.get("parents"):
                parents += [(parent, number - 1) for parent in refs(job["parents"])]
            if has_workdir and not (job.get("allow_shared_workdir") or job.get("user_workdir")):
                claimed.append(len(rows) - 1)
            if has_call:
                called.append((len(rows) - 1, *job["call"]))
        except ValueError as exc:
            raise type(exc)(f"Job number {number}: {exc}") from exc
    if rows:
        yield _Chunk(columns, rows, claimed, number - len(rows) + 1, "given_id" in (names or ()), called)
        _report(progress, len(rows))


def refs(parents: Any) -> Iterator[Ref]:
    """Return each parent once. Raises InvalidSpec: that is no list of parents."""
    if isinstance(parents, (str, bytes, Mapping, Position)) or not isinstance(parents, Iterable):
        raise InvalidSpec(f"parents must be a list of jobs, not {parents!r}")
    for parent in dict.fromkeys(parents):
        if isinstance(parent, (str, UUID)):
            yield parent if isinstance(parent, Named) else str(parent).strip()
        elif isinstance(parent, (int, Position)) and not isinstance(parent, bool):
            yield parent
        else:
            raise InvalidSpec(f"a parent must be a job, its number, its UUID or a position in the batch, not {parent!r}")


def _report(progress: Progress | None, rows: int) -> None:
    if progress:
        progress(rows)


def _row_maker(
    names: tuple[str, ...], now: int, start_after: int | None
) -> tuple[tuple[str, ...], Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
    """Return the columns to store for jobs with the fields `names`, and the function that makes a row from a job."""
    columns, checks = field_specs.job_columns(tuple(name for name in names if name not in EXTRA))
    pairs = tuple(zip((name for name in names if name not in EXTRA), checks))
    own_id = next((name for name in ("given_id", "job_id") if name in names), "")
    origin, given_workdir = "origin" in names, "workdir" in names
    new_id, workdir_name, checked_workdir = field_specs.new_job_id, field_specs.workdir_name, field_specs.checked_workdir
    own_workdir = "user_workdir" in columns
    held: tuple[int, ...] = () if start_after is None else (start_after,)
    workflow_at, name_at = (columns.index(name) if name in columns else -1 for name in ("workflow", "name"))

    def row(job: Mapping[str, Any]) -> tuple[Any, ...]:
        try:
            values = [check(job[name]) for name, check in pairs]
        except ValueError:
            field_specs.check_job({name: job[name] for name, _ in pairs})  # names the field
            raise
        job_id = field_specs.checked_job_id(job[own_id]) if own_id else new_id()
        if given_workdir:
            workdir = checked_workdir(job["workdir"])
        else:
            label, name = values[workflow_at] if workflow_at >= 0 else "", values[name_at] if name_at >= 0 else ""
            workdir = workdir_name(label, name, job_id)
        if own_workdir:
            workdir = (job["user_workdir"] and os.path.abspath(os.path.expanduser(job["user_workdir"]))) or workdir
        return (job_id, workdir, str(job["origin"]) if origin else "", now, *held, *values)

    return ("job_id", "workdir", "origin", "created", *(("start_after",) if held else ()), *columns), row


# --- keeping them -----------------------------------------------------------------------------------------------------


class _Spool:
    """Checked rows to be inserted: the first chunks in memory, the others in an unnamed temporary file."""

    def __init__(self) -> None:
        self.rows = 0
        self.parents: list[tuple[Ref, int]] = []  # and the position of the child
        self.applications: set[str] = set()  # which the DB must have
        self.apps: Sequence[applications.AppChange] = ()
        self.has_claims = False  # whether a chunk has `claimed` ones
        self.has_keys = False  # whether a job has a unique_key
        self.skipped = Skipped()
        self._in_memory: list[_Chunk] = []
        self._file = Blocks()

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.__exit__(*exc)

    def put(self, chunk: _Chunk) -> None:
        self.rows += len(chunk.rows)
        self.has_claims = self.has_claims or bool(chunk.claimed)
        if _KEY in chunk.columns:
            place = chunk.columns.index(_KEY)
            self.has_keys = self.has_keys or any(row[place] is not None for row in chunk.rows)
        if "application" in chunk.columns:
            position = chunk.columns.index("application")
            self.applications.update({row[position] for row in chunk.rows})
        if "application" not in chunk.columns:
            self.applications.add("")
        if len(self._in_memory) < 2:
            self._in_memory.append(chunk)
        else:
            self._file.put(tuple(chunk))

    def chunks(self) -> Iterator[_Chunk]:
        yield from self._in_memory
        yield from (_Chunk(*block) for block in self._file)

    def skip(self, db: Database, on_duplicate: str) -> None:
        """Set `skipped`, or raise DuplicateKey; see `unique_keys.find_duplicates`."""
        if self.has_keys:
            self.skipped = unique_keys.find_duplicates(db, self._keyed_jobs(), on_duplicate, self.rows)

    def _keyed_jobs(self) -> Iterator[list[unique_keys.KeyedJob]]:
        for chunk in self.chunks():
            if _KEY in chunk.columns:
                at = chunk.columns.index(_KEY)
                yield [(place, row[at]) for place, row in enumerate(chunk.rows, chunk.number - 1) if row[at] is not None]

    def new_chunks(self) -> Iterator[_Chunk]:
        """Yield the chunks without the jobs that are skipped."""
        for chunk in self.chunks():
            some = chunk.without(self.skipped) if self.skipped else chunk
            if some.rows:
                yield some

    def added(self, first: int, renamed: dict[int, str]) -> Added:
        """Return what is to be added, with the ids from `first` on."""
        return Added(first, self.rows - len(self.skipped.positions), renamed, self.skipped)

    def refuse_names(self, words: Set[str]) -> None:
        """Raise AmbiguousJobId if one of these words, which name parents, is the name of a job of this batch."""
        for chunk in self.chunks() if words else ():
            at = chunk.columns.index("name") if "name" in chunk.columns else None
            for name in words & {row[at] for row in chunk.rows} if at is not None else ():
                raise AmbiguousJobId(
                    f"The parent {name!r} is also the name of a job of the same batch.",
                    hint="Name a job of the batch by dag.Position(n) or its UUID, and one in the DB by its number.",
                )

    def positions_by_name(self, names: Set[str]) -> dict[str, list[int]]:
        """Return the positions of the jobs of this batch with these names."""
        found: dict[str, list[int]] = {}
        first = 0
        for chunk in self.chunks() if names else ():
            if "name" in chunk.columns:
                at = chunk.columns.index("name")
                for place, row in enumerate(chunk.rows, first):
                    if row[at] in names:
                        found.setdefault(row[at], []).append(place)
            first += len(chunk.rows)
        return found

    def positions(self, job_ids: set[str]) -> dict[str, int]:
        """Return the positions of the jobs with these UUIDs, of those in this batch."""
        found: dict[str, int] = {}
        first = 0
        for chunk in self.chunks() if job_ids else ():
            found.update((row[0], first + n) for n, row in enumerate(chunk.rows) if row[0] in job_ids)
            first += len(chunk.rows)
        return found


# --- dependencies -----------------------------------------------------------------------------------------------------


class _Edges(NamedTuple):
    """Dependencies as (parent, child), by whether each of the two is in the batch or in the DB."""

    inner: list[tuple[int, int]]  # positions in the batch
    outer: list[tuple[int | str, int]]  # a job in the DB, a position
    added: list[tuple[Ref, int | str]]  # a job in the DB or a position, a job in the DB

    def of_new(self, skipped: Skipped) -> _Edges:
        """Return the dependencies without those of skipped jobs on their parents."""
        if not skipped:
            return self
        is_new = Added(0, 0, {}, skipped).is_new
        return self._replace(
            inner=[edge for edge in self.inner if is_new(edge[1])], outer=[edge for edge in self.outer if is_new(edge[1])]
        )


def _resolved(spool: _Spool, linked: Sequence[tuple[Ref, Ref]]) -> _Edges:
    """Find the parents that are in the batch, and refuse a cycle in it. Takes time linear in the dependencies."""
    words = {ref: ref.lower() for ref, _ in (*spool.parents, *linked) if isinstance(ref, str) and not isinstance(ref, Named)}
    positions = spool.positions(set(words.values()))
    own = {word: positions[lower] for word, lower in words.items() if lower in positions}
    spool.refuse_names(words.keys() - own.keys())
    named = spool.positions_by_name({ref for ref, _ in spool.parents if isinstance(ref, Named)})
    edges = _Edges([], [], [])
    for parent, child in spool.parents:
        if isinstance(parent, Named):
            places = named.get(parent, [])
            if len(places) > 1:
                numbers = graph.listed(place + 1 for place in places)
                raise AmbiguousJobId(
                    f"Job number {child + 1}: the parent {str(parent)!r} is the name of several jobs: jobs number {numbers}.",
                    hint="Give these jobs different names, or name the parent by its position.",
                )
            parent = Position(places[0]) if places else str(parent)
        place = position(parent, spool.rows, child) if isinstance(parent, Position) else own.get(parent)  # type: ignore[arg-type]
        if place is None:
            edges.outer.append((parent, child))  # type: ignore[arg-type]
        else:
            edges.inner.append((place, child))
    for parent, linked_child in linked:
        place = own.get(parent) if isinstance(parent, str) else None
        edges.added.append((parent if place is None else Position(place), linked_child))  # type: ignore[arg-type]
    if any(parent >= child for parent, child in edges.inner):
        _refuse_cycle(edges.inner)
    return edges


def position(parent: Position, rows: int, child: int) -> int:
    """Return the position, in a batch of `rows` jobs, that the job at `child` names. Raises InvalidSpec: there is none."""
    index = parent.value
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < rows:
        raise InvalidSpec(
            f"Job number {child + 1}: there is no position {index!r} in this batch of {rows} job(s)",
            hint="Positions are counted from 0, as in a list.",
        )
    return index


def _refuse_cycle(inner: list[tuple[int, int]]) -> None:
    cycle = graph.find_cycle(inner)
    if len(cycle) == 1:
        raise DependencyCycle(f"Job number {cycle[0] + 1}: a job cannot wait for itself; nothing was added.")
    if cycle:
        named = graph.listed(job + 1 for job in cycle)
        raise DependencyCycle(
            f"Job number {cycle[0] + 1}: Detected circular dependency; nothing was added.",
            hint=f"{len(cycle)} jobs would wait for each other: jobs number {named}.",
        )


# --- inserting --------------------------------------------------------------------------------------------------------


def _check_apps(cx: sqlite3.Connection, names: set[str]) -> None:
    known = {row[0] for row in cx.execute("SELECT name FROM app")}
    missing = sorted(names - known - {""})
    if missing:
        raise UnknownApp.named(missing[0], sorted(known))


def _insert(cx: sqlite3.Connection, spool: _Spool, edges: _Edges, progress: Progress | None) -> Added:
    known = _known(cx, edges)
    if spool.rows > 4 * _CHUNK:
        pieces.enlarge_cache(cx)
    before = large_writes.last_number(cx)
    renamed: dict[int, str] = {}
    tagger = Tagger(cx)
    new: Counter[tuple[str, str]] = Counter()
    for chunk in spool.new_chunks():
        first = large_writes.last_number(cx) + 1
        renamed.update((first + n, job_id) for n, job_id in _insert_rows(cx, chunk).items())
        _add_tags(tagger, chunk, first)
        _add_calls(cx, chunk, first)
        new += chunk.counts
        _report(progress, len(chunk.rows))
    added = spool.added(before + 1, renamed)
    number = large_writes.last_number(cx) - before
    if added.number != number:
        raise RuntimeError(f"{added.number} jobs were to be added, {number} were")
    counters.count(cx, new)
    pairs = _pairs(edges, known, added)
    if pairs:
        graph.add_edges(cx, pairs, SystemClock.now_us())
    _add_to_known(cx, edges, known, added)
    return added


def _add_tags(tagger: Tagger, chunk: _Chunk, first: int) -> None:
    """Store the tags of the jobs of a chunk, whose numbers begin with `first`."""
    if "tags" in chunk.columns:
        place = chunk.columns.index("tags")
        tagger.add((number, row[place]) for number, row in enumerate(chunk.rows, first))


def _add_calls(cx: sqlite3.Connection, chunk: _Chunk, first: int) -> None:
    if chunk.calls:
        calls.add(cx, ((first + place, context, payload) for place, context, payload in chunk.calls))


def _pairs(edges: _Edges, known: Mapping[int | str, int], added: Added) -> list[tuple[int, int]]:
    """Return the dependencies of the new jobs, by numbers."""
    if added.skipped:
        id_of = added.id_of
        pairs = [(id_of(parent), id_of(child)) for parent, child in edges.inner]
        return [*dict.fromkeys(pairs + [(known[parent], id_of(child)) for parent, child in edges.outer])]
    first = added.first
    new = [(first + parent, first + child) for parent, child in edges.inner]
    return new + [(known[parent], first + child) for parent, child in edges.outer]


def _add_to_known(cx: sqlite3.Connection, edges: _Edges, known: Mapping[int | str, int], added: Added) -> None:
    """Add the dependencies of jobs that were in the DB before."""
    if edges.added:
        pairs = [(added.id_of(p.value) if isinstance(p, Position) else known[p], known[child]) for p, child in edges.added]
        graph.add_dependencies(cx, pairs, SystemClock.now_us())


def _check_before(cx: sqlite3.Connection, spool: _Spool, edges: _Edges) -> dict[int | str, int]:
    """Raise what an insert would raise about parents and working directories. Return the known parents, see `_known`."""
    known = _known(cx, edges)
    for chunk in spool.new_chunks() if spool.has_claims else ():
        _refuse_shared(cx, chunk)
    return known


# --- inserting in pieces ----------------------------------------------------------------------------------------------


class Insertion(pieces.HiddenInsert):
    """The insert of very many new jobs.

    All checks that need no write precede the first piece. Changes by other processes, such as a removed parent, make `advance`
    or `release` raise the errors of `add_jobs`; then `undo` removes all rows that were written.
    """

    def __init__(
        self,
        db: Database,
        spool: _Spool,
        edges: _Edges,
        progress: Progress | None = None,
        on_duplicate: str = unique_keys.REFUSE,
    ) -> None:
        self._spool, self._edges, self._progress = spool, edges, progress
        if not spool.has_keys:
            self._look_up(db)
        with unique_keys.when_free(db, spool.has_keys) as cx:
            _check_apps(cx, spool.applications)
            hidden = large_writes.hide(cx, spool.rows, spool.has_keys)
        super().__init__(db, hidden)
        if spool.has_keys:  # which no other process adds from now on
            try:
                spool.skip(db, on_duplicate)
                self.skipped, self._edges = spool.skipped, edges.of_new(spool.skipped)
                self._look_up(db)
            except BaseException:
                self.undo()
                raise

    def _look_up(self, db: Database) -> None:
        """Find the parents, and raise what can be raised before anything is written."""
        with db.read() as cx:
            self._known = _check_before(cx, self._spool, self._edges)

    def _all_units(self) -> Iterator[Callable[[sqlite3.Connection], None]]:
        for chunk in self._spool.new_chunks():
            for start in range(0, len(chunk.rows), pieces.INSERT_UNIT):
                yield partial(self._add_rows, chunk.part(start, start + pieces.INSERT_UNIT))
        new = _pairs(self._edges, self._known, self.added)
        for start in range(0, len(new), pieces.INSERT_UNIT):
            yield partial(self._add_edges, new[start : start + pieces.INSERT_UNIT])

    def _add_rows(self, part: _Chunk, cx: sqlite3.Connection) -> None:
        first = self.hidden.first + part.number - 1
        self.renamed.update((first + n, job_id) for n, job_id in _insert_rows(cx, part, first).items())
        _add_tags(Tagger(cx), part, first)  # a new one, as others may have removed tags since the last piece
        _add_calls(cx, part, first)
        large_writes.count_hidden(cx, self.hidden.write, part.counts)
        self._written += len(part.rows)
        _report(self._progress, len(part.rows))

    def _add_edges(self, pairs: Sequence[tuple[int, int]], cx: sqlite3.Connection) -> None:
        wanted = {parent: child for parent, child in pairs if 0 <= parent < self.hidden.first}
        sql = "SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))"
        for (parent,) in cx.execute(sql, (transitions.id_list(wanted),)).fetchall() if wanted else ():
            del wanted[parent]
        if wanted:
            parent, child = wanted.popitem()
            number = child - self.hidden.first + 1
            raise UnknownJob(f"Job number {number} cannot have that parent: There is no job #{parent} in this DB (any more).")
        graph.add_edges(cx, pairs, SystemClock.now_us())

    def _complete(self, cx: sqlite3.Connection) -> None:
        applications.carry_out(cx, self._spool.apps)
        _check_apps(cx, self._spool.applications)
        counters.count(cx, large_writes.unhide(cx, self.hidden))
        _add_to_known(cx, self._edges, self._known, self.added)


# --- rows ---------------------------------------------------------------------------------------------------------------


#: The end of a generated working directory: the short id of its job.
_GENERATED = re.compile(r"(?:\A|[/_])[0-9a-f]{8}\Z")
_IN_USE = f"job.state NOT IN ({sql_list(states.END_STATES)}) AND job.workdir = given.value AND job.id <> ?"
_CHOSEN_BY = f"""SELECT job.id, job.job_id, job.state, job.workdir FROM json_each(?) AS given
    CROSS JOIN job INDEXED BY job_own_workdir WHERE {OWN_WORKDIR} AND {_IN_USE} LIMIT 1"""
_GENERATED_FOR = f"""SELECT job.id, job.job_id, job.state, job.workdir FROM json_each(?) AS given
    CROSS JOIN job INDEXED BY job_short_id WHERE substr(job_id, 1, 8) = substr(given.value, -8) AND {_IN_USE} LIMIT 1"""


_MAY_SHARE = "Choose another workdir, or allow that both use it: allow_shared_workdir=True, or --allow-shared-workdir."


def _refuse_shared(cx: sqlite3.Connection, chunk: _Chunk) -> None:
    """Raise InvalidSpec if a working directory that was given is that of another job that has not ended."""
    places: dict[str, int] = {}
    for place in chunk.claimed:
        workdir = chunk.rows[place][1]
        other = places.setdefault(workdir, place)
        if other != place:
            numbers = chunk.given_number(place), chunk.given_number(other)
            text = f"Job number {numbers[0]}: job number {numbers[1]} has the workdir {workdir} too."
            raise InvalidSpec(text, hint=_MAY_SHARE)
    found = workdir_in_use(cx, list(places))
    if found:
        cause = InvalidSpec(found[1], hint=_MAY_SHARE)
        number = chunk.given_number(places[found[0]])
        raise InvalidSpec(f"Job number {number}: {cause.message}", hint=cause.hint) from cause


def workdir_in_use(cx: sqlite3.Connection, workdirs: Sequence[str], but: int = 0) -> tuple[str, str] | None:
    """Return the first of these workdirs of a job that has not ended, with a sentence about that job; None without one.

    The job with the number `but` does not count.
    """
    row = cx.execute(_CHOSEN_BY, (json.dumps(workdirs), but)).fetchone()
    if row is None:
        like_generated = [workdir for workdir in workdirs if _GENERATED.search(workdir)]
        row = cx.execute(_GENERATED_FOR, (json.dumps(like_generated), but)).fetchone() if like_generated else None
    if row is None:
        return None
    number, job_id, state, workdir = row
    return workdir, f"The workdir {workdir} is that of job #{number} [{job_id[:8]}], which has not ended: it is {state}."


def _known(cx: sqlite3.Connection, edges: _Edges) -> dict[int | str, int]:
    """Return the numbers of the jobs in the DB that the edges name."""
    ends: list[tuple[Any, str]] = [
        (parent, f"Job number {child + 1} cannot have that parent: ") for parent, child in edges.outer
    ]
    ends += [(end, "") for pair in edges.added for end in pair if not isinstance(end, Position)]
    numbers = [end for end, _ in ends if isinstance(end, int)]
    query = f"SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?)) AND {VISIBLE}"
    known: dict[int | str, int] = (
        {row[0]: row[0] for row in cx.execute(query, (transitions.id_list(numbers),))} if numbers else {}
    )
    known.update((number, number) for number in (remote_parents.existing(cx, numbers) if min(numbers, default=0) < 0 else ()))
    for end, where in ends:
        if end not in known:
            try:
                if isinstance(end, int):
                    raise UnknownJob(f"There is no job #{end} in this DB (any more).")
                known[end] = queries.find_job(cx, end)
            except BalsamError as exc:
                raise type(exc)(f"{where}{exc.message}", hint=exc.hint) from exc
    return known


def _insert_rows(cx: sqlite3.Connection, chunk: _Chunk, first: int | None = None) -> dict[int, str]:
    """Insert rows whose first two columns are job_id and workdir. A drawn id is replaced if its short id is taken.

    Args:
        first: the number of the first row, which the others follow; None: SQLite gives the numbers.

    Return the UUIDs that replace drawn ones, by the row's position.

    Raises:
        DuplicateJobId: the short id of a given one is taken. InvalidSpec: a workdir that was given is taken. DuplicateKey.
    """
    if chunk.claimed:
        _refuse_shared(cx, chunk)
    columns, rows = chunk.columns, chunk.rows
    if first is not None:
        columns, rows = (*columns, "id"), [(*row, number) for number, row in enumerate(rows, first)]
    sql = f"INSERT INTO job ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    done = 0
    renamed: dict[int, str] = {}
    while done < len(rows):
        given = iter(rows[done:] if done else rows)
        try:
            cx.executemany(sql, given)
            return renamed
        except sqlite3.IntegrityError as exc:
            if _KEY in str(exc):
                row = rows[len(rows) - length_hint(given) - 1]
                raise unique_keys.taken(cx, row[columns.index(_KEY)]) from exc
            if "job_short_id" not in str(exc):
                raise InvalidSpec(f"The job cannot be stored: {exc}") from exc
            done = len(rows) - length_hint(given)  # SQLite has refused the last one that it was given
            if chunk.ids_are_given:
                raise _duplicate(cx, rows[done - 1][0]) from exc
            row = _with_new_id(cx, rows[done - 1])
            cx.execute(sql, row)
            renamed[done - 1] = row[0]
    return renamed


def _duplicate(cx: sqlite3.Connection, job_id: str) -> DuplicateJobId:
    other, name = queries.short_id_holder(cx, job_id) or ("", "")
    label = f"{name} [{other[:8]}]".lstrip()
    if other == job_id:
        return DuplicateJobId(f"The job_id {job_id} is that of job {label} already.", hint="Without a job_id one is drawn.")
    return DuplicateJobId(
        f"The job_id {job_id} begins like that of job {label}; the first {queries.SHORT_ID} characters name one job in a DB.",
        hint="Without a job_id one is drawn that differs.",
    )


def _with_new_id(cx: sqlite3.Connection, row: tuple[Any, ...]) -> tuple[Any, ...]:
    taken = "SELECT 1 FROM job WHERE substr(job_id, 1, 8) = ?"
    job_id = row[0]
    while cx.execute(taken, (job_id[:8],)).fetchone():
        job_id = field_specs.new_job_id()
    return (job_id, row[1].replace(row[0][:8], job_id[:8]), *row[2:])
