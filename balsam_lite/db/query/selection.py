"""The jobs and applications that meet conditions (see `conditions`), as rows in the workshop's words; `interface` tells what
the rows hold.

Every function runs inside the caller's transaction, on its connection `cx`, and imports no peewee.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ...core import field_specs, states
from ...core.errors import InvalidSpec
from .. import launch_params
from . import queries
from .conditions import (
    APP_CONDITIONS,
    BATCH_JOB,
    LARGEST,
    LAST_UPDATE,
    Row,
    Term,
    Where,
    along_tag,
    are_named,
    given,
    of_jobs,
    rarest_first,
    selection,
    take_tags,
    unknown,
)

# --- rows -------------------------------------------------------------------------------------------------------------


class Column(NamedTuple):
    """What a row has under one name: an expression of SQL, and how its value is made the row's."""

    sql: str
    read: Callable[[Any], Any] | None = None
    is_sorted_by: bool = True


_decoded = json.JSONDecoder().raw_decode


def _object(text: str) -> Any:
    # `json.loads` would look for blanks before and behind, of which there are none in what we stored.
    if field_specs.FLOAT_KEY in text:
        return field_specs.read_object(text)
    return {} if text == "{}" else _decoded(text)[0]


def _parents(text: str | None) -> list[int]:
    return sorted(map(int, text.split(","))) if text else []


def _launch_params(text: str) -> dict[str, str]:
    """Of the MPI flags with the affinity before them, as one text."""
    affinity, _, flags = text.partition(" ")
    return launch_params.from_fields(flags, affinity) if flags or affinity != "none" else {}


#: Fields that the workshop calls otherwise.
WORKSHOP_NAMES = {"application": "app", "wall_time_minutes": "wall_time_min"}
#: The same the other way round.
OUR_NAMES = {theirs: ours for ours, theirs in WORKSHOP_NAMES.items()}


def _field_column(table: str, field: field_specs.Field) -> Column:
    read = _object if field.kind in field_specs.JSON_KINDS else bool if field.kind == "flag" else None
    return Column(f"{table}.{field.name}", read, field.kind not in field_specs.JSON_KINDS)


JOB_COLUMNS: dict[str, Column] = {
    "id": Column("job.id"),
    "job_id": Column("job.job_id"),
    "workdir": Column("job.workdir"),
    "app_id": Column("(SELECT app.id FROM app WHERE app.name = job.application)", None, False),
    **{WORKSHOP_NAMES.get(field.name, field.name): _field_column("job", field) for field in field_specs.JOB_FIELDS},
    "launch_params": Column("job.cpu_affinity || ' ' || job.mpi_flags", _launch_params, False),
    "parent_ids": Column("(SELECT group_concat(parent) FROM dependency WHERE child = job.id)", _parents, False),
    "last_update": Column(LAST_UPDATE),
    "batch_job_id": Column(BATCH_JOB, None, False),
}

#: What an application is: a command line, a template of one, or a Python function.
_KIND = "CASE WHEN app.command_template <> '' THEN 'template' WHEN app.definition <> '{}' THEN 'function' ELSE 'command' END"

APP_COLUMNS: dict[str, Column] = {
    "id": Column("app.id"),
    **{field.name: _field_column("app", field) for field in field_specs.APP_FIELDS},
    "kind": Column(_KIND),
}


def sorting(what: str, columns: Mapping[str, Column], table: str, order: str) -> str:
    """The ORDER BY of an order such as "-state"; rows that are equal in it come by number.

    Raises:
        UnknownField: rows cannot be sorted by that; the nearest one is named.
    """
    name = order.lstrip("-") or "id"
    sortable = [name for name, column in columns.items() if column.is_sorted_by]
    if name not in sortable:
        raise unknown(f"{what}s cannot be sorted by {name!r}.", name, sortable)
    direction = "DESC" if order.startswith("-") else "ASC"
    return f"{table}.id {direction}" if name == "id" else f"{columns[name].sql} {direction}, {table}.id"


def limits(start: int, stop: int | None) -> tuple[int, int]:
    """The parameters of LIMIT and OFFSET for the rows from `start` to before `stop`. Raises InvalidSpec."""
    for place in (start, stop):
        if place is not None and (not isinstance(place, int) or isinstance(place, bool) or place < 0):
            raise InvalidSpec(f"A place among the rows must be a whole number of 0 or more, not {place!r}.")
    return (-1 if stop is None else min(max(stop - start, 0), LARGEST)), min(start, LARGEST)


def read_rows(cursor: Iterable[tuple[Any, ...]], columns: Mapping[str, Column]) -> Iterator[Row]:
    """The rows of a cursor over exactly these columns, as dicts."""
    names = tuple(columns)
    readers = [(name, column.read) for name, column in columns.items() if column.read]
    for values in cursor:
        row = dict(zip(names, values))
        for name, read in readers:
            row[name] = read(row[name])
        yield row


def columns_sql(columns: Mapping[str, Column]) -> str:
    """What stands between SELECT and FROM."""
    return ", ".join(column.sql for column in columns.values())


# --- jobs -------------------------------------------------------------------------------------------------------------


def jobs_statement(where: Where, order: str = "", start: int = 0, stop: int | None = None) -> Term:
    """The query for the numbers of jobs, in order."""
    by = sorting("job", JOB_COLUMNS, "job", order)
    asked = given(where)
    if by.startswith("job.id ") and "tags" in asked and not are_named(asked):
        # To stop at the limit, even where very many jobs have the tag.
        tags = take_tags(asked)
        source, parameters = along_tag(tags, of_jobs(asked, is_ordered=True))
        statement = f"SELECT job.id FROM {source} ORDER BY {by.replace('job.id', 'given.job')} LIMIT ? OFFSET ?"
        return Term(statement, [*parameters, *limits(start, stop)])
    sql, parameters = of_jobs(where)
    # After ANALYZE the planner believes that sorting by another index is cheaper than reading in order.
    hint = "NOT INDEXED" if not asked and by.startswith("job.id ") else ""
    statement = f"SELECT job.id FROM job {hint} WHERE {sql} ORDER BY {by} LIMIT ? OFFSET ?"
    return Term(statement, [*parameters, *limits(start, stop)])


def jobs(
    cx: sqlite3.Connection, where: Mapping[str, Any] = {}, order: str = "", start: int = 0, stop: int | None = None
) -> list[Row]:
    """The jobs that match. Raises UnknownField, InvalidSpec, InvalidStateError."""
    numbers, parameters = jobs_statement(rarest_first(cx, where), order, start, stop)
    # First the numbers, then the rows of those: sorting whole rows would read and keep all that match.
    sql = f"""SELECT {columns_sql(JOB_COLUMNS)} FROM ({numbers}) AS chosen CROSS JOIN job ON job.id = chosen.id
        ORDER BY {sorting("job", JOB_COLUMNS, "job", order)}"""
    return list(read_rows(cx.execute(sql, parameters), JOB_COLUMNS))


def jobs_between(cx: sqlite3.Connection, first: int, last: int) -> list[Row]:
    """The jobs in that range of numbers, in order."""
    sql = f"SELECT {columns_sql(JOB_COLUMNS)} FROM job WHERE job.id BETWEEN ? AND ? ORDER BY job.id"
    return list(read_rows(cx.execute(sql, (first, last)), JOB_COLUMNS))


#: What the DB decides about a new job, and its estimate, which is not what was given where that is 0 or nothing.
_OF_NEW = ("id", "job_id", "workdir", "app_id", "app", "state", "last_update", "wall_time_min")


def new_jobs(cx: sqlite3.Connection, first: int, last: int, fields: Iterable[str]) -> list[Row]:
    """Jobs that were just added, with values for these fields and for what the DB decides; the others have their defaults.

    A row of all fields would take three times the memory, and twice the time. Where one of the jobs is not as it was added
    any more (a launcher may be quick), or is planned or has parents, all fields are read nevertheless.
    """
    shown = {*_OF_NEW, *fields}
    if "launch_params" in shown:
        shown |= {"cpu_affinity", "mpi_flags"}
    if shown.isdisjoint(("parent_ids", "queued_launch_id")):
        columns = {name: column for name, column in JOB_COLUMNS.items() if name in shown}
        columns.update(_same_for_many(cx, shown))
        sql = f"""SELECT {columns_sql(columns)} FROM job
            WHERE id BETWEEN ? AND ? AND +state = '{states.CREATED}' AND lease IS NULL ORDER BY id"""
        rows = list(read_rows(cx.execute(sql, (first, last)), columns))
        if len(rows) == last - first + 1:
            return rows
    return jobs_between(cx, first, last)


def _same_for_many(cx: sqlite3.Connection, shown: Iterable[str]) -> dict[str, Column]:
    """How those of the shown columns of new jobs are read that hold the same for many of them: each value exists once."""
    numbers: dict[str, int] = dict(cx.execute("SELECT name, id FROM app"))
    columns = {
        "app_id": Column("job.application", numbers.get),
        "app": Column("job.application", sys.intern),
        "state": Column("job.state", sys.intern),
        "last_update": Column("job.created"),
    }
    if "tags" in shown:
        known = lru_cache(maxsize=1000)(_object)
        columns["tags"] = Column("job.tags", lambda text: known(text).copy())
    return columns


def job_ids(cx: sqlite3.Connection, where: Mapping[str, Any] = {}, most: int | None = None) -> list[int]:
    """The numbers of the jobs that match, in order; with `most` the first of them."""
    found = cx.execute(*jobs_statement(rarest_first(cx, where)))
    return [row[0] for row in (found if most is None else found.fetchmany(most))]


def count_jobs(cx: sqlite3.Connection, where: Mapping[str, Any] = {}) -> int:
    """How many match. By states alone it reads the counters, whatever the number of jobs."""
    if given(where).keys() <= {"state"}:
        return sum(count_states(cx, where).values())
    sql, parameters = of_jobs(rarest_first(cx, where))
    return int(cx.execute(f"SELECT count(*) FROM job WHERE {sql}", parameters).fetchone()[0])


def count_states(cx: sqlite3.Connection, where: Mapping[str, Any] = {}) -> dict[str, int]:
    """State -> number of the jobs that match, of the states that have any; by the counters where those know it."""
    sql, parameters = of_jobs(rarest_first(cx, where))
    if not parameters:
        return queries.state_counts(cx)
    if given(where).keys() == {"state"}:
        wanted = json.loads(parameters[0])
        return {state: jobs for state, jobs in queries.state_counts(cx).items() if state in wanted}
    return dict(cx.execute(f"SELECT job.state, count(*) FROM job WHERE {sql} GROUP BY +job.state", parameters))


# --- applications -----------------------------------------------------------------------------------------------------


def apps(
    cx: sqlite3.Connection, where: Mapping[str, Any] = {}, order: str = "", start: int = 0, stop: int | None = None
) -> list[Row]:
    """The applications that match. Raises UnknownField, InvalidSpec."""
    sql, parameters = selection("app", APP_CONDITIONS, where)
    by = sorting("app", APP_COLUMNS, "app", order)
    statement = f"SELECT {columns_sql(APP_COLUMNS)} FROM app WHERE {sql} ORDER BY {by} LIMIT ? OFFSET ?"
    return list(read_rows(cx.execute(statement, (*parameters, *limits(start, stop))), APP_COLUMNS))


def count_apps(cx: sqlite3.Connection, where: Mapping[str, Any] = {}) -> int:
    """How many match."""
    sql, parameters = selection("app", APP_CONDITIONS, where)
    return int(cx.execute(f"SELECT count(*) FROM app WHERE {sql}", parameters).fetchone()[0])
