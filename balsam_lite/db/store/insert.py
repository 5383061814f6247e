"""Adding jobs, one or ten million, all or nothing.

What the user gives is checked and put aside outside of any transaction (it may come from a slow generator, and may itself
use the DB); then one transaction inserts it. Memory stays constant: beyond a few thousand rows they wait in a file.
"""

from __future__ import annotations

import marshal
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import length_hint
from typing import IO, Any, Callable, NamedTuple

from ... import spec, states
from ...clock import SystemClock
from ...errors import DatabaseError, InvalidSpec, UnknownApp, UnknownJob
from ..connection import Database
from . import graph, moves
from .tags import Tagger

#: Rows that are kept in memory, and rows in one piece of the file.
_CHUNK = 5000
#: Bytes of the number that says how long such a piece is.
_LENGTH = 8

Progress = Callable[[int], None]


class Added(NamedTuple):
    """The jobs that were added: `number` of them, with the ids from `first` on."""

    first: int
    number: int
    renamed: dict[int, str] = {}  # id -> UUID, of those whose given UUID had a short id that was taken

    @property
    def ids(self) -> range:
        return range(self.first, self.first + self.number)


class _Chunk(NamedTuple):
    """Rows that were given by the same fields."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    parents: dict[int, list[int]]  # position in `rows` -> ids of the parents


def add_jobs(db: Database, jobs: Iterable[Mapping[str, Any]], progress: Progress | None = None) -> Added:
    """Add jobs given by their fields (see `spec.JOB_FIELDS`); the fields not given take their defaults.

    Besides the fields a job may give `job_id` (a UUID), `workdir` (below `data/`; several jobs may share one), `origin` (a
    word on where it comes from, shown in its history) and `parents` (ids of jobs that exist already). Opens its own write
    transaction, after `jobs` is used up. `progress` hears how many jobs were read or inserted since it was last called.

    Raises:
        UnknownField, InvalidSpec: with the number of the job, counted from 1. UnknownApp, UnknownJob. Nothing is added.
    """
    with _Spool() as spool:
        for chunk in _checked(jobs, progress):
            spool.put(chunk)
        if not spool.rows:
            return Added(0, 0)
        with db.write() as cx:
            _check_apps(cx, spool.applications)
            return _insert(cx, spool, progress)


def check_jobs(jobs: Iterable[Mapping[str, Any]]) -> None:
    """Raise what `add_jobs` would for the fields of a job. Whether its parents and its application exist is not looked at."""
    for _ in _checked(jobs, None):
        pass


# --- checking ---------------------------------------------------------------------------------------------------------

#: Given beside the fields: not checked as a field is.
_EXTRA = ("job_id", "workdir", "origin", "parents")


def _checked(jobs: Iterable[Mapping[str, Any]], progress: Progress | None) -> Iterator[_Chunk]:
    now = SystemClock.now_us()
    names: tuple[str, ...] | None = None
    rows: list[tuple[Any, ...]] = []
    parents: dict[int, list[int]] = {}
    columns: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], tuple[Any, ...]] = tuple
    for number, job in enumerate(jobs, 1):
        given = tuple(job)
        if given != names or len(rows) == _CHUNK:
            if rows:
                yield _Chunk(columns, rows, parents)
                _report(progress, len(rows))
                rows, parents = [], {}
            if given != names:
                names = given
                columns, check = _row_maker(given, now)
        try:
            rows.append(check(job))
            if job.get("parents"):
                parents[len(rows) - 1] = list(job["parents"])
        except ValueError as exc:
            raise type(exc)(f"Job number {number}: {exc}") from exc
    if rows:
        yield _Chunk(columns, rows, parents)
        _report(progress, len(rows))


def _report(progress: Progress | None, rows: int) -> None:
    if progress:
        progress(rows)


def _row_maker(names: tuple[str, ...], now: int) -> tuple[tuple[str, ...], Callable[[Mapping[str, Any]], tuple[Any, ...]]]:
    """For jobs given by the fields `names`: the columns to store, and how a job becomes a row of those."""
    columns, checks = spec.job_columns(tuple(name for name in names if name not in _EXTRA))
    pairs = tuple(zip((name for name in names if name not in _EXTRA), checks))
    own_id, origin, given_workdir = "job_id" in names, "origin" in names, "workdir" in names
    new_id, workdir_name, checked_workdir = spec.new_job_id, spec.workdir_name, spec.checked_workdir
    own_workdir = "user_workdir" in columns
    workflow_at, name_at = (columns.index(name) if name in columns else -1 for name in ("workflow", "name"))

    def row(job: Mapping[str, Any]) -> tuple[Any, ...]:
        try:
            values = [check(job[name]) for name, check in pairs]
        except ValueError:
            spec.check_job({name: job[name] for name, _ in pairs})  # says which field it was
            raise
        job_id = spec.checked_job_id(job["job_id"]) if own_id else new_id()
        if given_workdir:
            workdir = checked_workdir(job["workdir"])
        else:
            label, name = values[workflow_at] if workflow_at >= 0 else "", values[name_at] if name_at >= 0 else ""
            workdir = workdir_name(label, name, job_id)
        if own_workdir:
            workdir = (job["user_workdir"] and os.path.abspath(os.path.expanduser(job["user_workdir"]))) or workdir
        return (job_id, workdir, str(job["origin"]) if origin else "", now, *values)

    return ("job_id", "workdir", "origin", "created", *columns), row


# --- keeping them -----------------------------------------------------------------------------------------------------


class _Spool:
    """Checked rows on their way to the database: the first chunks in memory, the others in a file without a name."""

    def __init__(self) -> None:
        self.rows = 0
        self.applications: set[str] = set()
        self._in_memory: list[_Chunk] = []
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file:
            self._file.close()

    def put(self, chunk: _Chunk) -> None:
        self.rows += len(chunk.rows)
        if "application" in chunk.columns:
            position = chunk.columns.index("application")
            self.applications.update({row[position] for row in chunk.rows})
        if "application" not in chunk.columns:
            self.applications.add("")
        if len(self._in_memory) < 2:
            self._in_memory.append(chunk)
            return
        try:
            self._file = self._file or tempfile.TemporaryFile(prefix="balsam-")
            # As one block with its length before it: `marshal.load` would read the file value by value, ten times slower.
            block = marshal.dumps(tuple(chunk))
            self._file.write(len(block).to_bytes(_LENGTH, "big") + block)
        except OSError as exc:
            raise DatabaseError(f"The jobs cannot be put aside in {tempfile.gettempdir()}: {exc}") from exc

    def chunks(self) -> Iterator[_Chunk]:
        yield from self._in_memory
        if self._file:
            self._file.seek(0)
            while length := self._file.read(_LENGTH):
                yield _Chunk(*marshal.loads(self._file.read(int.from_bytes(length, "big"))))


# --- inserting --------------------------------------------------------------------------------------------------------


def _check_apps(cx: sqlite3.Connection, names: set[str]) -> None:
    known = {row[0] for row in cx.execute("SELECT name FROM app")}
    missing = sorted(names - known - {""})
    if missing:
        listed = ", ".join(sorted(known)) or "none yet: `balsam app --name NAME --executable …` adds one"
        raise UnknownApp(f"App {', '.join(missing[:5])} not registered in local DB", hint=f"Registered are: {listed}")


def _insert(cx: sqlite3.Connection, spool: _Spool, progress: Progress | None) -> Added:
    if spool.rows > 4 * _CHUNK:
        cx.execute("PRAGMA cache_size = -65536")  # KiB: the random short ids touch the whole index
    before = _last_id(cx)
    edges: list[tuple[int, int]] = []
    renamed: dict[int, str] = {}
    tagger = Tagger(cx)
    for chunk in spool.chunks():
        first = _last_id(cx) + 1
        renamed.update((first + n, job_id) for n, job_id in _insert_rows(cx, chunk.columns, chunk.rows).items())
        edges += [(parent, first + n) for n, parents in chunk.parents.items() for parent in parents]
        if "tags" in chunk.columns:
            place = chunk.columns.index("tags")
            tagger.add((number, row[place]) for number, row in enumerate(chunk.rows, first))
        _report(progress, len(chunk.rows))
    added = Added(before + 1, _last_id(cx) - before, renamed)
    if added.number != spool.rows:
        raise RuntimeError(f"{spool.rows} jobs were to be added, {added.number} were")
    moves.count(cx, Counter({(None, states.CREATED): added.number}))
    if edges:
        _check_parents(cx, {parent for parent, _ in edges})
        graph.add_edges(cx, edges, SystemClock.now_us())
    return added


def _last_id(cx: sqlite3.Connection) -> int:
    row = cx.execute("SELECT seq FROM sqlite_sequence WHERE name = 'job'").fetchone()
    return int(row[0]) if row else 0


def _check_parents(cx: sqlite3.Connection, parents: set[int]) -> None:
    query = "SELECT count(*) FROM job WHERE id IN (SELECT value FROM json_each(?))"
    if cx.execute(query, (moves.id_list(parents),)).fetchone()[0] != len(parents):
        raise UnknownJob("A parent does not exist in this DB (any more).")


def _insert_rows(cx: sqlite3.Connection, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> dict[int, str]:
    """Insert rows whose first two columns are job_id and workdir. A short id that is taken already is drawn anew.

    Returns the UUIDs that were drawn anew, by the row's position.
    """
    sql = f"INSERT INTO job ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    done = 0
    renamed: dict[int, str] = {}
    while done < len(rows):
        given = iter(rows[done:] if done else rows)
        try:
            cx.executemany(sql, given)
            return renamed
        except sqlite3.IntegrityError as exc:
            if "job_short_id" not in str(exc):
                raise InvalidSpec(f"The job cannot be stored: {exc}") from exc
            done = len(rows) - length_hint(given)  # SQLite has refused the last one that it was given
            row = _with_new_id(cx, rows[done - 1])
            cx.execute(sql, row)
            renamed[done - 1] = row[0]
    return renamed


def _with_new_id(cx: sqlite3.Connection, row: tuple[Any, ...]) -> tuple[Any, ...]:
    taken = "SELECT 1 FROM job WHERE substr(job_id, 1, 8) = ?"
    job_id = row[0]
    while cx.execute(taken, (job_id[:8],)).fetchone():
        job_id = spec.new_job_id()
    return (job_id, row[1].replace(row[0][:8], job_id[:8]), *row[2:])
