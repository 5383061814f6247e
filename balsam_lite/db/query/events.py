"""Find the events of jobs by the names of the workshop's interface (Balsam 0.7): in pages, or a million as plain tuples.

An event is a change of state. The data that a user or a hook attached to it (`state_data`) is in the row's data under
`PAYLOAD`, next to keys of this program. Functions that take a connection run inside the caller's transaction.

The condition `after` is the place of the last row of the page before, so that a page costs the same at the end as at the
beginning. Events of few jobs are read job by job; for many jobs the table is scanned in order of time and filtered, because
finding and sorting the events again for each page would take quadratic time.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from ...core import states
from ...core.errors import InvalidSpec
from ..engine.connection import Database
from ..engine.schema import PAYLOAD
from .fields import EVENT, INTERNAL_EVENT_KEYS, WEIGHT
from .filters import EVERY, Conditions, Where
from .operators import LARGEST, Term, execute
from .select import count_rows, limits, sorting

Row = dict[str, Any]

#: When the program of a run that ends was started, which may be later than its event to RUNNING; 0 if it never was. Like
#: `claims` writes it.
_BEGAN = f"""CASE WHEN event.from_state = '{states.RUNNING}' AND event.data GLOB '{{"started":[0-9]*' THEN
    CAST(substr(event.data, {len('{"started":') + 1}) AS INTEGER) END"""

#: The data of nearly all rows are one of these; parsing JSON would take longer than everything else.
_ONE_NUMBER = re.compile(r'\{"(lease|started)":(\d+)\}').fullmatch

#: Up to this number of jobs, events are read job by job.
_FEW_JOBS = 10_000
#: Events in a page of tuples.
_PAGE = 50_000


# --- rows -------------------------------------------------------------------------------------------------------------

_SELECT = f"event.id, event.job, event.time, event.from_state, event.to_state, event.message, event.data, {WEIGHT}"


def _row(values: Sequence[Any]) -> Row:
    number, job, time, old, new, message, data, weight = values
    shown = _data(new, message, data, weight)
    return {"id": number, "job_id": job, "timestamp": time, "from_state": old, "to_state": new, "data": shown}


def _data(state: str, message: str, stored: str | None, weight: float | None) -> Row:
    """Return the data of an event. Source of the keys: Balsam 0.7. `started`, of an end, is ours: see `EventTuple`."""
    one = _ONE_NUMBER(stored) if stored else None
    own: Row = {one[1]: int(one[2])} if one else json.loads(stored) if stored else {}
    shown: Row = {} if weight is None else {"num_nodes": weight}
    if state == states.RUN_ERROR:
        shown["returncode"], shown["error"] = own.get("return_code"), message
    elif message:
        shown["message"] = message
    shown.update((key, value) for key, value in own.items() if key not in INTERNAL_EVENT_KEYS)
    shown.update(own.get(PAYLOAD, {}))
    return shown


# --- reading ----------------------------------------------------------------------------------------------------------


def events(cx: sqlite3.Connection, where: Where = EVERY, order: str = "", start: int = 0, stop: int | None = None) -> list[Row]:
    """Return the matching events, newest first, or in `order`; events with the same time in the order of their recording.

    The condition `after` is a place, [timestamp, id], and selects the events that follow it in the order. It works with the
    orders "", "timestamp" and "-timestamp".

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    table, condition = _source(cx, _conditions(cx, where), order)
    by, by_parameters = _sorting(order)
    limit, offset = limits(start, stop)
    found: list[Row] = []
    for sql, parameters in _after(where.get("after"), order):
        left = limit if limit < 0 else limit - len(found)
        statement = f"SELECT {_SELECT} FROM {table} WHERE {condition.sql} AND {sql} ORDER BY {by} LIMIT ? OFFSET ?"
        found += map(_row, execute(cx, statement, (*condition.parameters, *parameters, *by_parameters, left, offset)))
    return found


def _conditions(cx: sqlite3.Connection, where: Where) -> Conditions:
    rest = {name: value for name, value in where.items() if name != "after"}
    return Conditions(rest, EVENT).rarest_first(cx)


def _sorting(order: str) -> Term:
    if order.lstrip("-") in ("", "timestamp"):
        direction = "ASC" if order == "timestamp" else "DESC"
        return Term(f"event.time {direction}, event.id {direction}")
    return sorting(EVENT, order)


def _after(place: Any, order: str) -> list[Term]:
    """Return the conditions for events after a place: first the others with the same time, then all later ones, each a range.

    With a single condition SQLite would read all events of that time again for every page, and a million may share it.
    """
    if place is None:
        return [Term("1", [])]
    is_place = isinstance(place, (list, tuple)) and len(place) == 2 and all(isinstance(one, int) for one in place)
    if order.lstrip("-") not in ("", "timestamp") or not is_place:
        raise InvalidSpec(f"event condition after must be [timestamp, id], in the order of time, not {place!r}")
    time, number = (min(max(one, -LARGEST), LARGEST) for one in place)
    sign = ">" if order == "timestamp" else "<"
    return [Term(f"event.time = ? AND event.id {sign} ?", [time, number]), Term(f"event.time {sign} ?", [time])]


def _source(cx: sqlite3.Connection, only: Conditions, order: str) -> tuple[str, Term]:
    """Return the table with the index to use, and the condition of the events that match."""
    if only.is_named:
        return "event", only.sql()
    if not only.jobs.is_empty and _are_few(cx, only.jobs):
        return "event INDEXED BY event_job", only.sql()
    hint = "INDEXED BY event_time" if order.lstrip("-") in ("", "timestamp") else "NOT INDEXED"
    return f"event {hint}", only.sql(is_ordered=True)


def _are_few(cx: sqlite3.Connection, jobs: Conditions) -> bool:
    """Return whether few jobs meet these conditions."""
    sql, parameters = jobs.sql()
    source = f"job WHERE {sql}"
    if jobs.tags and not jobs.is_named:
        source, parameters = jobs.along_tag()
    counted = f"SELECT count(*) FROM (SELECT 1 FROM {source} LIMIT {_FEW_JOBS + 1})"
    return int(execute(cx, counted, parameters).fetchone()[0]) <= _FEW_JOBS


def count_events(cx: sqlite3.Connection, where: Where = EVERY) -> int:
    """Return the number of matching events, ignoring `after`."""
    return count_rows(cx, _conditions(cx, where))


# --- a million of them ------------------------------------------------------------------------------------------------

#: (timestamp in microseconds, state left, state entered, number of the job, nodes of an event to RUNNING else None, when the
#: program of a run that ends was started if that is known, 0 if it never was, number)
EventTuple = Sequence[Any]


def page_of_tuples(
    cx: sqlite3.Connection, where: Where = EVERY, after: int = 0, touching: Sequence[str] = ()
) -> list[EventTuple]:
    """Return some thousands of the matching events with numbers above `after`, by number, as `EventTuple`.

    With `touching`, only events that leave or enter one of these states.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    touched = [{"$or": [{"from_state__in": touching}, {"to_state__in": touching}]}] if touching else []
    table, (sql, parameters) = _source(cx, _conditions(cx, {**where, "$and": [*where.get("$and", ()), *touched]}), "id")
    statement = f"""SELECT event.time, event.from_state, event.to_state, event.job, {WEIGHT}, {_BEGAN}, event.id
        FROM {table} WHERE {sql} AND event.id > ? ORDER BY event.id LIMIT {_PAGE}"""
    return execute(cx, statement, (*parameters, min(after, LARGEST))).fetchall()


def event_tuples(db: Database, where: Where = EVERY, touching: Sequence[str] = ()) -> Iterator[EventTuple]:
    """Yield all matching events in the order of their recording, which is nearly the order of time.

    Opens a read transaction for each page, so that it blocks no other process; holds one page in memory.
    """
    last = 0
    while True:
        with db.read() as cx:
            page = page_of_tuples(cx, where, last, touching)
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1][-1]
