"""The events of jobs, found in the workshop's words (Balsam 0.7): a million of them in pages, or as plain tuples.

An event is a change of state. What a user or a hook said with one (`state_data`) is in the row's data under `PAYLOAD`, beside
what we note there ourselves. Functions that take a connection run inside the caller's transaction.

Pages follow one another by the condition `after`, the place of the last row that was read, so that a page costs the same at
the end as at the beginning. Events of a few jobs are read by these; of many, the table is walked in order of time and the
others are left out, because finding and sorting them anew for each page would take quadratic time.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...core import states
from ...core.errors import InvalidSpec
from ..engine.connection import Database
from ..engine.schema import PAYLOAD, visible
from .conditions import (
    JOB_CONDITIONS,
    Maker,
    Row,
    Term,
    Where,
    compared,
    given,
    listed,
    looked_up,
    numbers,
    one_of,
    pairs,
    rarest_first,
    selection,
    state_names,
    tagged,
    time_us,
    valid_text,
)
from .queries import JOBS_WITH
from .selection import (
    Column,
    columns_sql,
    limits,
    sorting,
)

#: Nodes that a run takes, of the job's values now.
_WEIGHT = f"""CASE WHEN event.to_state = '{states.RUNNING}' THEN
    (SELECT job.num_nodes * 1.0 / job.node_packing_count FROM job WHERE job.id = event.job) END"""

#: When the program of a run that ends was started, which may be later than its event to RUNNING; 0 if it never was. Like
#: `claims` writes it.
_BEGAN = f"""CASE WHEN event.from_state = '{states.RUNNING}' AND event.data GLOB '{{"started":[0-9]*' THEN
    CAST(substr(event.data, {len('{"started":') + 1}) AS INTEGER) END"""

#: Keys of a row's data that are nobody's business, or are shown under other names.
_INTERNAL = ("lease", "return_code", PAYLOAD)

#: Nearly all rows' data are one of these, and reading JSON takes longer than all else.
_ONE_NUMBER = re.compile(r'\{"(lease|started)":(\d+)\}').fullmatch

#: So many jobs are few.
_FEW_JOBS = 10_000
#: Events in a page of tuples.
_PAGE = 50_000


# --- conditions -------------------------------------------------------------------------------------------------------


def _of_jobs(name: str) -> Maker:
    """The condition that the event's job meets a condition on jobs."""
    make = JOB_CONDITIONS[name]

    def term(value: Any, plain: str) -> Term:
        sql, parameters = make(value, "")
        return Term(f"event.job IN (SELECT job.id FROM job WHERE {sql})", parameters)

    return term


def _of_scheduler_ids(value: Any, plain: str) -> Term:
    wanted = [valid_text(str(one)) for one in listed(value)]
    launches = "SELECT json_group_array(id) FROM batch_job WHERE scheduler_id IN (SELECT value FROM json_each(?))"
    sql, parameters = JOB_CONDITIONS["batch_job_id"]([], "")
    sql = sql.replace("json_each(?)", f"json_each(({launches}))")
    return Term(f"event.job IN (SELECT job.id FROM job WHERE {sql})", [json.dumps(wanted)] * len(parameters))


def _with_data(value: Any, plain: str) -> Term:
    """The condition that the data that is shown has all these pairs, compared as text."""
    found = [(str(key), word) for key, word in value.items()] if isinstance(value, dict) else pairs(value)
    terms = [_datum(key, word) for key, word in found]
    return Term(" AND ".join(f"({sql})" for sql, _ in terms) or "1", [p for _, parameters in terms for p in parameters])


_RUN_ERROR = f"event.to_state = '{states.RUN_ERROR}'"
_STORED = f"""coalesce((SELECT CAST(value AS TEXT) FROM json_each(event.data, '$.{PAYLOAD}') WHERE key = ?),
    (SELECT CAST(value AS TEXT) FROM json_each(event.data) WHERE key = ?))"""


def _datum(key: str, value: Any) -> Term:
    key, word = valid_text(key), valid_text(str(int(value)) if isinstance(value, bool) else str(value))
    if key == "num_nodes":
        return Term(f"{_WEIGHT} = CAST(? AS REAL)", [word])
    if key == "returncode":
        return Term(f"{_RUN_ERROR} AND json_extract(event.data, '$.return_code') = CAST(? AS INTEGER)", [word])
    if key in _INTERNAL:
        return Term("0", [])
    shown = {"message": f"NOT {_RUN_ERROR} AND event.message = ?", "error": f"{_RUN_ERROR} AND event.message = ?"}.get(key)
    if shown:
        return Term(f"({shown}) OR {_STORED} = ?", [word, key, key, word])
    return Term(f"{_STORED} = ?", [key, key, word])


CONDITIONS: dict[str, Maker] = {
    "id": one_of("event.id", numbers),
    "job_id": one_of("event.job", numbers),
    "batch_job_id": _of_jobs("batch_job_id"),
    "scheduler_id": _of_scheduler_ids,
    "tags": tagged("event.job"),
    "data": _with_data,
    "timestamp_before": compared("event.time", "<=", time_us),
    "timestamp_after": compared("event.time", ">=", time_us),
    "from_state": one_of("event.from_state", state_names),
    "to_state": one_of("event.to_state", state_names),
}
#: The same where the events of very many jobs are walked: whether one has a tag is looked up, and not all that have it.
_OF_MANY = {**CONDITIONS, "tags": looked_up("event.job")}
#: By which jobs are chosen.
_BY_JOB = ("job_id", "batch_job_id", "scheduler_id", "tags")


# --- rows -------------------------------------------------------------------------------------------------------------

_COLUMNS = {
    "id": Column("event.id"),
    "job_id": Column("event.job"),
    "timestamp": Column("event.time"),
    "from_state": Column("event.from_state"),
    "to_state": Column("event.to_state"),
    "data": Column(f"event.message, event.data, {_WEIGHT}", None, False),
}
_SELECT = columns_sql(_COLUMNS)


def _row(values: Sequence[Any]) -> Row:
    number, job, time, old, new, message, data, weight = values
    shown = _data(new, message, data, weight)
    return {"id": number, "job_id": job, "timestamp": time, "from_state": old, "to_state": new, "data": shown}


def _data(state: str, message: str, stored: str | None, weight: float | None) -> Row:
    """What an event says. Source of the keys: Balsam 0.7. `started`, of an end, is ours: see `EventTuple`."""
    one = _ONE_NUMBER(stored) if stored else None
    own: Row = {one[1]: int(one[2])} if one else json.loads(stored) if stored else {}
    shown: Row = {} if weight is None else {"num_nodes": weight}
    if state == states.RUN_ERROR:
        shown["returncode"], shown["error"] = own.get("return_code"), message
    elif message:
        shown["message"] = message
    shown.update((key, value) for key, value in own.items() if key not in _INTERNAL)
    shown.update(own.get(PAYLOAD, {}))
    return shown


# --- reading ----------------------------------------------------------------------------------------------------------


def events(
    cx: sqlite3.Connection, where: Mapping[str, Any] = {}, order: str = "", start: int = 0, stop: int | None = None
) -> list[Row]:
    """The events that match, newest first, or in `order`; those of one moment in the order in which they were noted.

    The condition `after` is a place, [timestamp, id]: only what comes behind it in the order. It goes with the orders "",
    "timestamp" and "-timestamp".

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    rest = rarest_first(cx, {name: value for name, value in where.items() if name != "after"})
    table, condition = _source(cx, rest, order)
    limit, offset = limits(start, stop)
    found: list[Row] = []
    for sql, parameters in _behind(where.get("after"), order):
        left = limit if limit < 0 else limit - len(found)
        statement = f"SELECT {_SELECT} FROM {table} WHERE {condition.sql} AND {sql} ORDER BY {_sorting(order)} LIMIT ? OFFSET ?"
        found += map(_row, cx.execute(statement, (*condition.parameters, *parameters, left, offset)))
    return found


def _sorting(order: str) -> str:
    if order.lstrip("-") in ("", "timestamp"):
        direction = "ASC" if order == "timestamp" else "DESC"
        return f"event.time {direction}, event.id {direction}"
    return sorting("event", _COLUMNS, "event", order)


def _behind(place: Any, order: str) -> list[Term]:
    """The conditions for what lies behind a place: first the rest of the same moment, then all others, each one range.

    As one condition SQLite would read all events of that moment again for every page, and a million may share one.
    """
    if place is None:
        return [Term("1", [])]
    if order.lstrip("-") not in ("", "timestamp") or not isinstance(place, (list, tuple)) or len(place) != 2:
        raise InvalidSpec(f"event condition after must be [timestamp, id], in the order of time, not {place!r}")
    time, number = map(time_us, place)
    sign = ">" if order == "timestamp" else "<"
    return [Term(f"event.time = ? AND event.id {sign} ?", [time, number]), Term(f"event.time {sign} ?", [time])]


def _source(cx: sqlite3.Connection, where: Where, order: str) -> tuple[str, Term]:
    """The table with the index to use, and the condition of those that match."""
    asked = given(where)
    condition = _visible(selection("event", CONDITIONS, asked))
    if "id" in asked:
        return "event", condition
    by_job = {name: value for name, value in asked.items() if name in _BY_JOB}
    if by_job and _are_few(cx, by_job):
        return "event INDEXED BY event_job", condition
    hint = "INDEXED BY event_time" if order.lstrip("-") in ("", "timestamp") else "NOT INDEXED"
    return f"event {hint}", _visible(selection("event", _OF_MANY, asked))


def _visible(condition: Term) -> Term:
    return Term(f"{condition.sql} AND {visible('event.job')}", condition.parameters)


def _are_few(cx: sqlite3.Connection, by_job: Where) -> bool:
    """Whether the conditions choose few jobs. The first one with few decides; they all must hold."""
    if len(listed(by_job.get("job_id", range(_FEW_JOBS + 1)))) <= _FEW_JOBS:
        return True
    others = {name: value for name, value in by_job.items() if name != "job_id"}
    if not others:
        return False
    tags = pairs(others.pop("tags", {}))
    sql, parameters = selection("event", _OF_MANY, {**others, "tags": tags[1:]})
    source = JOBS_WITH if tags else "SELECT id AS job FROM job"
    jobs = f"SELECT 1 FROM ({source}) AS event WHERE {sql} LIMIT {_FEW_JOBS + 1}"
    words = [word for pair in tags[:1] for word in pair]
    return int(cx.execute(f"SELECT count(*) FROM ({jobs})", [*words, *parameters]).fetchone()[0]) <= _FEW_JOBS


def count_events(cx: sqlite3.Connection, where: Mapping[str, Any] = {}) -> int:
    """How many match, `after` left aside."""
    rest = rarest_first(cx, {name: value for name, value in where.items() if name != "after"})
    sql, parameters = _visible(selection("event", CONDITIONS, rest))
    return int(cx.execute(f"SELECT count(*) FROM event WHERE {sql}", parameters).fetchone()[0])


# --- a million of them ------------------------------------------------------------------------------------------------

#: (timestamp in microseconds, state left, state entered, number of the job, nodes of an event to RUNNING else None, when the
#: program of a run that ends was started if that is known, 0 if it never was, number)
EventTuple = Sequence[Any]


def page_of_tuples(
    cx: sqlite3.Connection, where: Mapping[str, Any] = {}, after: int = 0, touching: Sequence[str] = ()
) -> list[EventTuple]:
    """Some thousands of the events that match, by number from behind `after` on, as `EventTuple`.

    With `touching` those that leave or enter one of these states.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    where = rarest_first(cx, where)
    table, (sql, parameters) = _source(cx, where, "id")
    if touching:
        listed_states = state_names(list(touching))
        either = (f"event.{side}_state IN (SELECT value FROM json_each(?))" for side in ("from", "to"))
        sql, parameters = f"{sql} AND ({' OR '.join(either)})", [*parameters, listed_states, listed_states]
    statement = f"""SELECT event.time, event.from_state, event.to_state, event.job, {_WEIGHT}, {_BEGAN}, event.id
        FROM {table} WHERE {sql} AND event.id > ? ORDER BY event.id LIMIT {_PAGE}"""
    return cx.execute(statement, (*parameters, time_us(after))).fetchall()


def event_tuples(db: Database, where: Mapping[str, Any] = {}, touching: Sequence[str] = ()) -> Iterator[EventTuple]:
    """All of them, in the order in which they were noted, which is nearly that of time.

    Opens a read transaction for each page, so that it keeps nobody from anything while its user works; memory is that of a
    page.
    """
    last = 0
    while True:
        with db.read() as cx:
            page = page_of_tuples(cx, where, last, touching)
        yield from page
        if len(page) < _PAGE:
            return
        last = page[-1][-1]
