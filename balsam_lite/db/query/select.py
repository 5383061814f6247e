"""Read the jobs, applications, batch jobs and events that meet conditions (see `filters`): numbers, counts, pages, rows.

Rows are dicts with the names of the workshop's interface; `sites.interface` lists their keys. Every function runs inside the
caller's transaction, on its connection `cx`; none imports peewee. All raise UnknownField, InvalidSpec and InvalidStateError.

All pages cost the same: a page begins after the last number of the previous one, since an offset would read all jobs before it;
and with tags SQLite scans the jobs with the rarest tag in the order of its index.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Union

from ...core import field_specs, states
from ...core.errors import InvalidSpec
from ...core.parameters import launch_params_of
from ..engine.schema import PAYLOAD, VISIBLE
from . import queries, runs
from .fields import APP, BATCH_JOB, EVENT, INTERNAL_EVENT_KEYS, JOB, WEIGHT, Column, Table, column_of
from .filters import EVERY, Conditions, Q
from .operators import LARGEST, Term, execute

Row = dict[str, Any]
#: Conditions as users give them, or already checked.
Given = Union[Mapping[str, Any], Q, Conditions]  # Python 3.9 evaluates it

# --- rows -------------------------------------------------------------------------------------------------------------

_decoded = json.JSONDecoder().raw_decode


def _object(text: str | None) -> Any:
    # `json.loads` would look for blanks before and after, of which there are none in what is stored.
    if text is None:
        return None
    if text == "{}":
        return {}
    return field_specs.read_object(text) if field_specs.FLOAT_KEY in text else _decoded(text)[0]


def _parents(text: str | None) -> list[int]:
    return sorted(map(int, text.split(","))) if text else []


def _launch_params(text: str) -> dict[str, str]:
    """Read the MPI flags with the affinity before them, as one text."""
    affinity, _, flags = text.partition(" ")
    return launch_params_of(flags, affinity) if flags or affinity != "none" else {}


#: Functions that convert a fetched value for a row, by the kind of its column; other kinds need none.
READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("json", "word", *field_specs.JSON_KINDS), _object),
    "flag": bool,
    "launch_params": _launch_params,
    "parents": _parents,
    "uuids": lambda text: [] if text == "[]" else json.loads(text),
    "attempts": runs.attempts,
}

JOB_COLUMNS: dict[str, Column] = {
    **{name: JOB.columns[name] for name in ("id", "job_id", "workdir", "app_id")},
    **{field_specs.WORKSHOP_NAMES.get(field.name, field.name): JOB.columns[field.name] for field in field_specs.JOB_FIELDS},
    "launch_params": Column("job.cpu_affinity || ' ' || job.mpi_flags", "launch_params"),
    "parent_ids": Column("(SELECT group_concat(parent) FROM dependency WHERE child = job.id AND parent > 0)", "parents"),
    "remote_parents": Column(queries.REMOTE_PARENTS, "uuids"),
    **{name: JOB.columns[name] for name in ("last_update", "batch_job_id")},
}
APP_COLUMNS: Mapping[str, Column] = APP.columns
#: The columns of a job in a listing: every column, the UUIDs of its relatives, and whether its results are out of date.
LISTED = {
    **JOB_COLUMNS,
    "parents": Column(queries.RELATIVES[0], "uuids"),
    "children": Column(queries.RELATIVES[1], "uuids"),
    "stale": Column(queries.STALE, "flag"),
    **{name: JOB.columns[name] for name in runs.OF_JOB},
}
#: Columns that are read only if they are named.
_NAMED_ONLY = {"attempts": Column(runs.ATTEMPTS, "attempts")}


def read_rows(
    cursor: Iterable[tuple[Any, ...]], columns: Mapping[str, Column], own: Mapping[str, Callable[[Any], Any]] = {}
) -> Iterator[Row]:
    """Yield the rows of a cursor over exactly these columns as dicts; `own` are readers that differ from the usual ones."""
    names = tuple(columns)
    usual = {name: READERS[column.kind] for name, column in columns.items() if column.kind in READERS}
    readers = [*{**usual, **own}.items()]
    for values in cursor:
        row = dict(zip(names, values))
        for name, read in readers:
            row[name] = read(row[name])
        yield row


def fetched(column: Column) -> str:
    """Return the expression that fetches a column so that `READERS` can read it: a value below a JSON field as JSON."""
    return f"json_quote({column.sql})" if column.kind in ("json", "word") else column.sql


def columns_sql(columns: Mapping[str, Column]) -> str:
    """Return the list of expressions between SELECT and FROM."""
    return ", ".join(column.sql for column in columns.values())


# --- orders and places ------------------------------------------------------------------------------------------------


def sorting(table: Table, order: str) -> Term:
    """Return the ORDER BY of an order such as "-state"; ties are sorted by number.

    Raises:
        UnknownField: there is no such field; the nearest one is named.
    """
    direction = "DESC" if order.startswith("-") else "ASC"
    if order in ("", "id", "-id"):
        return Term(f"{table.number} {direction}")
    column = column_of(table, order.removeprefix("-"))
    nulls = " NULLS LAST" if column.is_sorted_last else ""
    return Term(f"{column.sql} {direction}{nulls}, {table.number}", column.parameters)


def limits(start: int, stop: int | None) -> tuple[int, int]:
    """Return the parameters of LIMIT and OFFSET for the rows from `start` to before `stop`. Raises InvalidSpec."""
    for place in (start, stop):
        if place is not None and (not isinstance(place, int) or isinstance(place, bool) or place < 0):
            raise InvalidSpec(f"A place among the rows must be a whole number of 0 or more, not {place!r}.")
    return (-1 if stop is None else min(max(stop - start, 0), LARGEST)), min(start, LARGEST)


def _conditions(cx: sqlite3.Connection, where: Given, table: Table = JOB) -> Conditions:
    found = where if isinstance(where, Conditions) else Conditions(where, table)
    return found.rarest_first(cx)


# --- jobs -------------------------------------------------------------------------------------------------------------


def statement(
    cx: sqlite3.Connection,
    columns: str,
    where: Given = EVERY,
    order: str = "",
    start: int = 0,
    stop: int | None = None,
    after: int = 0,
) -> Term:
    """Return the query for jobs in order; with `after`, which requires the order of numbers, only jobs with greater numbers."""
    by, by_parameters = sorting(JOB, order)
    is_by_number = order in ("", "id", "-id")
    number = "job.id"
    parameters: Sequence[Any] = ()
    if not where:
        # After ANALYZE the planner believes that sorting by another index is cheaper than reading in order.
        source = f"job {'NOT INDEXED' * is_by_number} WHERE {VISIBLE}"
    else:
        only = _conditions(cx, where)
        if is_by_number and only.tags and not only.is_named:  # stops at the limit even where very many jobs have the tag
            number = "given.job"
            source, parameters = only.along_tag()
        else:
            # The index on states yields the jobs of one state in order, and would sort those of several for each page. After a
            # full page the next one is not far, so that scanning the jobs finds it.
            has_one_state = only.states is not None and len(only.states) == 1
            condition, parameters = only.sql(is_ordered=bool(after) and not has_one_state)
            source = f"job WHERE {condition}"
            number = "+job.id" if only.is_named else "job.id"
    if after:
        source, parameters = f"{source} AND {number} > ?", [*parameters, after]
    ordered = by.replace("job.id", "given.job") if number == "given.job" else by
    sql = f"SELECT {columns} FROM {source} ORDER BY {ordered} LIMIT ? OFFSET ?"
    return Term(sql, [*parameters, *by_parameters, *limits(start, stop)])


def job_rows(
    cx: sqlite3.Connection,
    where: Given = EVERY,
    columns: Sequence[str] = queries.JOB_COLUMNS,
    order: str = "",
    limit: int | None = None,
) -> list[tuple[Any, ...]]:
    """Return these columns (or other expressions of SQL) of the jobs that match, in their stored form."""
    return execute(cx, *statement(cx, ", ".join(columns), where, order, 0, limit)).fetchall()


def jobs(cx: sqlite3.Connection, where: Given = EVERY, order: str = "", start: int = 0, stop: int | None = None) -> list[Row]:
    """Return the jobs that match, from place `start` to before `stop` in an order such as "-state"; "" is by number."""
    numbers, parameters = statement(cx, "job.id", where, order, start, stop)
    by, by_parameters = sorting(JOB, order)
    # First the numbers, then the rows of those: sorting whole rows would read and keep all that match.
    sql = f"SELECT {columns_sql(JOB_COLUMNS)} FROM ({numbers}) AS chosen CROSS JOIN job ON job.id = chosen.id ORDER BY {by}"
    return list(read_rows(execute(cx, sql, [*parameters, *by_parameters]), JOB_COLUMNS))


def jobs_page(cx: sqlite3.Connection, where: Given, fields: Sequence[str], after: int, size: int, order: str = "") -> list[Row]:
    """Return the first `size` of the jobs that match and have a number above `after`, with these fields, or [] for all."""
    known = {**LISTED, **_NAMED_ONLY}
    for name in fields:
        if name not in known:
            raise JOB.unknown(name)
    columns = {name: known[name] for name in fields} or LISTED
    return list(read_rows(execute(cx, *statement(cx, columns_sql(columns), where, order, 0, size, after)), columns))


def job_ids(cx: sqlite3.Connection, where: Given = EVERY, most: int | None = None, order: str = "") -> list[int]:
    """Return the numbers of the matching jobs, in order; with `most` at most that many."""
    return [row[0] for row in execute(cx, *statement(cx, "job.id", where, order, 0, most))]


def count_jobs(cx: sqlite3.Connection, where: Given = EVERY) -> int:
    """Return the number of matching jobs. Conditions on states only read the counters, regardless of the number of jobs."""
    only = _conditions(cx, where)
    if only.is_of_states:
        return sum(count_states(cx, only).values())
    return count_rows(cx, only)


def count_rows(cx: sqlite3.Connection, only: Conditions) -> int:
    """Return the number of rows of any table that match."""
    condition, parameters = only.sql()
    return int(execute(cx, f"SELECT count(*) FROM {only.table.name} WHERE {condition}", parameters).fetchone()[0])


def count_states(cx: sqlite3.Connection, where: Given = EVERY) -> dict[str, int]:
    """Return state -> number of matching jobs, for states with any; from the counters if these suffice."""
    only = _conditions(cx, where)
    if only.is_of_states:
        counts = cx.execute("SELECT state, jobs FROM state_count WHERE jobs > 0")
        return {state: jobs for state, jobs in counts if only.states is None or state in only.states}
    if counted := only.on_counts():
        query = f"SELECT state, sum(jobs) FROM workflow_count AS job WHERE {counted.sql} GROUP BY state"
        return dict(execute(cx, query, counted.parameters))
    condition, parameters = only.sql()
    return dict(execute(cx, f"SELECT job.state, count(*) FROM job WHERE {condition} GROUP BY +job.state", parameters))


def count_workflows(cx: sqlite3.Connection, where: Given = EVERY) -> dict[str, dict[str, int]]:
    """Return workflow -> state -> number of matching jobs. Conditions on workflows and states only read the counters."""
    only = _conditions(cx, where)
    if counted := only.on_counts():
        rows = execute(cx, f"SELECT workflow, state, jobs FROM workflow_count AS job WHERE {counted.sql}", counted.parameters)
    else:
        condition, parameters = only.sql()
        of_jobs = f"SELECT job.workflow, job.state, count(*) FROM job WHERE {condition} GROUP BY +job.workflow, +job.state"
        rows = execute(cx, of_jobs, parameters)
    found: dict[str, dict[str, int]] = {}
    for workflow, state, jobs in rows:
        found.setdefault(workflow, {})[state] = jobs
    return found


def count_failures(cx: sqlite3.Connection, where: Given = EVERY) -> dict[str, int]:
    """Return cause -> number of matching FAILED jobs, most first. The condition `failure` selects the jobs of a cause.

    Without conditions (or with the state FAILED alone) this reads the counters.
    """
    only = _conditions(cx, where)
    if only.is_of_states:
        rows = cx.execute("SELECT cause, jobs FROM failure WHERE jobs > 0 ORDER BY jobs DESC, cause").fetchall()
        return dict(rows) if only.states is None or states.FAILED in only.states else {}
    # Where most jobs match, SQLite would read all of these; those that failed are fewer.
    hint = ""
    if counted := only.on_counts():
        sums = f"SELECT sum(jobs), sum(jobs * (state = '{states.FAILED}')) FROM workflow_count AS job WHERE {counted.sql}"
        matching, failed = execute(cx, sums, counted.parameters).fetchone()
        if not failed:
            return {}
        hint = "INDEXED BY job_failure" if matching > cx.execute("SELECT sum(jobs) FROM failure").fetchone()[0] else ""
    condition, parameters = only.sql()
    by_cause = f"""SELECT job.failure AS number, count(*) AS jobs FROM job {hint}
        WHERE {condition} AND job.failure IS NOT NULL GROUP BY 1"""
    query = f"SELECT cause, found.jobs FROM ({by_cause}) AS found JOIN failure ON failure.id = number ORDER BY 2 DESC, 1"
    return dict(execute(cx, query, parameters))


# --- new jobs ---------------------------------------------------------------------------------------------------------


def _jobs_between(cx: sqlite3.Connection, first: int, last: int) -> list[Row]:
    sql = f"SELECT {columns_sql(JOB_COLUMNS)} FROM job WHERE job.id BETWEEN ? AND ? ORDER BY job.id"
    return list(read_rows(cx.execute(sql, (first, last)), JOB_COLUMNS))


#: Fields of a new job that the DB sets, and its estimate, which differs from the given value if that is 0 or missing.
_OF_NEW = ("id", "job_id", "workdir", "app_id", "app", "state", "last_update", "wall_time_min")


def new_jobs(cx: sqlite3.Connection, first: int, last: int, fields: Iterable[str]) -> list[Row]:
    """Return jobs that were just added, with these fields and those that the DB sets; other fields have their defaults.

    Rows of all fields would take three times the memory and twice the time. If one of the jobs has changed since (a launcher
    may be quick), or is planned or has parents, all fields are read nevertheless.
    """
    shown = {*_OF_NEW, *fields}
    if "launch_params" in shown:
        shown |= {"cpu_affinity", "mpi_flags"}
    if shown.isdisjoint(("parent_ids", "queued_launch_id")):
        columns = {name: column for name, column in JOB_COLUMNS.items() if name in shown}
        columns |= {"app_id": JOB.columns["application"], "last_update": JOB.columns["created"]}
        sql = f"""SELECT {columns_sql(columns)} FROM job
            WHERE id BETWEEN ? AND ? AND +state = '{states.CREATED}' AND lease IS NULL ORDER BY id"""
        rows = list(read_rows(cx.execute(sql, (first, last)), columns, _sharing_readers(cx, shown)))
        if len(rows) == last - first + 1:
            return rows
    return _jobs_between(cx, first, last)


def _sharing_readers(cx: sqlite3.Connection, shown: Iterable[str]) -> dict[str, Callable[[Any], Any]]:
    """Return the readers of columns with equal values in many new jobs: each value exists once in memory."""
    numbers: dict[str, int] = dict(cx.execute("SELECT name, id FROM app"))
    known = lru_cache(maxsize=1000)(_object)
    readers: dict[str, Callable[[Any], Any]] = {
        "app_id": numbers.get,
        "app": sys.intern,
        "state": sys.intern,
        "tags": lambda text: known(text).copy(),
    }
    return {name: read for name, read in readers.items() if name in shown}


# --- applications -----------------------------------------------------------------------------------------------------


def apps(cx: sqlite3.Connection, where: Given = EVERY, order: str = "", start: int = 0, stop: int | None = None) -> list[Row]:
    """Return the applications that match."""
    condition, parameters = _conditions(cx, where, APP).sql()
    by, more = sorting(APP, order)
    sql = f"SELECT {columns_sql(APP_COLUMNS)} FROM app WHERE {condition} ORDER BY {by} LIMIT ? OFFSET ?"
    return list(read_rows(execute(cx, sql, [*parameters, *more, *limits(start, stop)]), APP_COLUMNS))


def count_apps(cx: sqlite3.Connection, where: Given = EVERY) -> int:
    """Return the number of matching applications."""
    return count_rows(cx, _conditions(cx, where, APP))


# --- batch jobs -------------------------------------------------------------------------------------------------------


def batch_job_rows(cx: sqlite3.Connection, where: Given = EVERY) -> list[Row]:
    """Return all columns of the batch jobs that match, oldest first."""
    condition, parameters = _conditions(cx, where, BATCH_JOB).sql()
    cursor = execute(cx, f"SELECT * FROM batch_job WHERE {condition} ORDER BY id", parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor]


# --- events -----------------------------------------------------------------------------------------------------------
#
# An event is a change of state. The data that a user or a hook attached to it (`state_data`) is in the row's data under
# `PAYLOAD`, next to keys of this program. The condition `after` is the place of the last row of the page before. Events of few
# jobs are read job by job; for many jobs the table is scanned in order of time and filtered, because finding and sorting the
# events again for each page would take quadratic time.

#: Up to this number of jobs, events are read job by job.
FEW_JOBS = 10_000
#: Events in a page of tuples.
EVENTS_PER_PAGE = 50_000


_EVENT_COLUMNS = (
    "event.id, event.job, event.time, event.from_state, event.to_state, event.message, event.data, "
    f"{WEIGHT}, {runs.BEGAN}, {runs.RETURN_CODE}"
)


def _event(values: Sequence[Any]) -> Row:
    """Return an event. Source of the keys of its data: Balsam 0.7. `started`, of an end, is ours: see `EventTuple`."""
    number, job, time, old, new, message, data, weight, began, code = values
    shown: Row = {} if weight is None else {"num_nodes": weight}
    if new == states.RUN_ERROR:
        shown["returncode"], shown["error"] = code, message
    elif message:
        shown["message"] = message
    if began is not None:
        shown["started"] = began
    if data:
        shown.update(_event_data(data))
    return {"id": number, "job_id": job, "timestamp": time, "from_state": old, "to_state": new, "data": shown}


def _event_data(stored: str) -> Row:
    """Return the data that a user or a hook gave an event, and that of other kinds of events."""
    own: Row = json.loads(stored)
    shown: Row = {}
    shown.update((key, value) for key, value in own.items() if key not in INTERNAL_EVENT_KEYS)
    shown.update(own.get(PAYLOAD, {}))
    return shown


def events(
    cx: sqlite3.Connection, where: Mapping[str, Any] = EVERY, order: str = "", start: int = 0, stop: int | None = None
) -> list[Row]:
    """Return the matching events, newest first, or in `order`; events with the same time in the order of their recording.

    The condition `after` is a place, [timestamp, id], and selects the events that follow it in the order. It works with the
    orders "", "timestamp" and "-timestamp".

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    table, condition = events_source(cx, _on_events(cx, where), order)
    by, by_parameters = _sorting_events(order)
    limit, offset = limits(start, stop)
    found: list[Row] = []
    for sql, parameters in _after(where.get("after"), order):
        left = limit if limit < 0 else limit - len(found)
        query = f"SELECT {_EVENT_COLUMNS} FROM {table} WHERE {condition.sql} AND {sql} ORDER BY {by} LIMIT ? OFFSET ?"
        found += map(_event, execute(cx, query, (*condition.parameters, *parameters, *by_parameters, left, offset)))
    return found


def _on_events(cx: sqlite3.Connection, where: Mapping[str, Any]) -> Conditions:
    return _conditions(cx, {name: value for name, value in where.items() if name != "after"}, EVENT)


def _sorting_events(order: str) -> Term:
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


def events_source(cx: sqlite3.Connection, only: Conditions, order: str) -> tuple[str, Term]:
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
    counted = f"SELECT count(*) FROM (SELECT 1 FROM {source} LIMIT {FEW_JOBS + 1})"
    return int(execute(cx, counted, parameters).fetchone()[0]) <= FEW_JOBS


def count_events(cx: sqlite3.Connection, where: Mapping[str, Any] = EVERY) -> int:
    """Return the number of matching events, ignoring `after`."""
    return count_rows(cx, _on_events(cx, where))


#: (timestamp in microseconds, state left, state entered, number of the job, nodes of an event to RUNNING else None, when the
#: program of a run that ends was started if that is known, 0 if it never was, number)
EventTuple = Sequence[Any]


def event_page(
    cx: sqlite3.Connection, where: Mapping[str, Any] = EVERY, after: int = 0, touching: Sequence[str] = ()
) -> list[EventTuple]:
    """Return some thousands of the matching events with numbers above `after`, by number, as `EventTuple`.

    With `touching`, only events that leave or enter one of these states.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    touched = [{"$or": [{"from_state__in": touching}, {"to_state__in": touching}]}] if touching else []
    table, (sql, parameters) = events_source(cx, _on_events(cx, {**where, "$and": [*where.get("$and", ()), *touched]}), "id")
    query = f"""SELECT event.time, event.from_state, event.to_state, event.job, {WEIGHT}, {runs.BEGAN}, event.id
        FROM {table} WHERE {sql} AND event.id > ? ORDER BY event.id LIMIT {EVENTS_PER_PAGE}"""
    return execute(cx, query, (*parameters, min(after, LARGEST))).fetchall()
