"""Read jobs with their whole history, page by page, as archives keep them."""

from __future__ import annotations

import os
import sqlite3
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Any, NamedTuple

from ...core import field_specs
from ..engine.connection import Database
from ..engine.filesystem import LOCAL
from . import edits, queries, results, runs, select
from .operators import execute
from .runs import Run

_PAGE = 1000
_NAMES = tuple(field_specs.JOB_FIELD)


class FullRecord(NamedTuple):
    """A job and all that is known of it, in stored form."""

    number: int
    job_id: str
    fields: dict[str, Any]  # by the names of `field_specs.JOB_FIELDS`
    failure: str  # cause; "": it has not failed
    events: list[tuple[int, str, str, str, str | None]]  # time, from, to, message, data as JSON; oldest first
    runs: list[Run]
    edits: list[dict[str, Any]]  # as `edits.edits` shows them
    parents: list[int]  # of the jobs that are read
    absent_parents: list[str]  # UUIDs of its other parents, also of those at other sites
    result: str | None  # JSON of what a call or a function has returned, if that is plain
    call: tuple[bytes, bytes, Any] | None  # of a call: its context, payload and result, as stored


@contextmanager
def snapshot(db: Database) -> Iterator[sqlite3.Connection]:
    """Yield a connection whose queries see one moment, for as long as is needed.

    On a local disk this is a read transaction, during which others write. A shared DB is copied, and its lock is released
    as soon as the copy is complete.
    """
    if db.access == LOCAL:
        with db.read() as cx:
            yield cx
        return
    import tempfile

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="balsam-export-"))
        copy = stack.enter_context(closing(sqlite3.connect(os.path.join(folder, "copy"), isolation_level=None)))
        with db.read() as cx:
            cx.backup(copy)
        yield copy


def numbers_of(cx: sqlite3.Connection, where: select.Given) -> array[int]:
    """Return the numbers of the jobs that match, in order; eight bytes each."""
    return array("q", (row[0] for row in execute(cx, *select.statement(cx, "job.id", where))))


def read(cx: sqlite3.Connection, numbers: array[int], data_directory: str) -> Iterator[list[FullRecord]]:
    """Yield the jobs with these numbers, in order, in pages. `data_directory` is that of the DB."""
    for start in range(0, len(numbers), _PAGE):
        yield _page(cx, numbers[start : start + _PAGE], numbers, data_directory)


def _page(cx: sqlite3.Connection, some: Sequence[int], chosen: array[int], data_directory: str) -> list[FullRecord]:
    rows = queries.columns_of(cx, some, ("job_id", *_NAMES, "failure"))
    causes = dict(cx.execute("SELECT id, cause FROM failure"))
    parents: dict[int, list[tuple[int, str]]] = {}
    sql = """SELECT d.child, d.parent, coalesce(p.job_id, there.job_id) FROM json_each(?) AS one
        CROSS JOIN dependency d ON d.child = one.value LEFT JOIN job p ON p.id = d.parent
        LEFT JOIN remote_parent there ON there.id = -d.parent
        WHERE coalesce(p.id, there.id) IS NOT NULL ORDER BY d.child, d.parent"""
    listed = str(list(some))
    for child, parent, job_id in cx.execute(sql, (listed,)):
        parents.setdefault(child, []).append((parent, job_id))
    events: dict[int, list[tuple[int, str, str, str, str | None]]] = {}
    sql = """SELECT job, time, from_state, to_state, message, data FROM json_each(?) AS one
        CROSS JOIN event INDEXED BY event_job ON event.job = one.value ORDER BY event.job, event.id"""
    for job, *event in cx.execute(sql, (listed,)):
        events.setdefault(job, []).append(tuple(event))
    found_results = results.page(cx, {"id": list(some)}, (results.RESULT,), 0, _PAGE, "", data_directory)
    returned: dict[int, str | None] = {row[0]: row[1] for row in found_results}
    sql = """SELECT call.job, content, payload, result FROM json_each(?) AS one
        CROSS JOIN call ON call.job = one.value JOIN call_context ON call_context.id = call.context"""
    calls = {job: (content, payload, result) for job, content, payload, result in cx.execute(sql, (listed,))}
    ran = runs.runs_of_each(cx, some)
    edited: dict[int, list[dict[str, Any]]] = {}
    for edit in edits.edits(cx, some):
        edited.setdefault(edit["job"], []).append(edit)
    found = []
    for number in some:
        if number not in rows:
            continue
        job_id, *values, failure = rows[number]
        inside = {parent: _is_in(chosen, parent) for parent, _ in parents.get(number, ())}
        found.append(
            FullRecord(
                number,
                job_id,
                dict(zip(_NAMES, values)),
                causes.get(failure, ""),
                events.get(number, []),
                ran.get(number, []),
                edited.get(number, []),
                [parent for parent, is_inside in inside.items() if is_inside],
                [one for parent, one in parents.get(number, ()) if not inside[parent]],
                returned.get(number),
                calls.get(number),
            )
        )
    return found


def _is_in(numbers: array[int], number: int) -> bool:
    place = bisect_left(numbers, number)
    return place < len(numbers) and numbers[place] == number
