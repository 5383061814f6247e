"""The fields that conditions, orders and columns can name: of jobs, applications, events and batch jobs.

A field goes by the name of its column; the names of Balsam 0.7 are aliases of it. Nothing here reads a database.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ...core import field_specs, states
from ...core.errors import InvalidSpec, UnknownField
from ..engine.schema import PAYLOAD
from . import runs

COMPARISONS = {"lt": "<", "lte": "<=", "gt": ">", "gte": ">="}
_TEXTS = ("contains", "startswith", "endswith", "regex")
OF_JSON = ("has_key", "has_keys", "has_any_keys", "contained_by")
#: Lookups that can end a condition's name.
LOOKUPS = (
    "exact", "iexact", "ne", *COMPARISONS, *_TEXTS, *(f"i{name}" for name in _TEXTS), "glob", "in", "isnull", "range",
    *OF_JSON,
)  # fmt: skip


class Column(NamedTuple):
    """An expression of SQL that conditions compare, orders sort by and reads fetch."""

    sql: str
    kind: str  # a kind of `field_specs`, or uuid, time, json (a path into a JSON column), word (such a path to text)
    parameters: tuple[Any, ...] = ()
    is_stored: bool = False  # a column of the table itself, as indexes have it
    choices: tuple[str, ...] = ()  # all values that there can be; () is: any
    type_sql: str = ""  # of a path: the JSON type of the value there; takes the same parameters
    is_sorted_last: bool = False  # rows without a value come last in either direction


class Table(NamedTuple):
    """The rows of one kind, and the names that conditions on them can use."""

    name: str  # in the DB
    what: str  # in messages
    columns: Mapping[str, Column]
    aliases: Mapping[str, str] = {}  # other name -> field, or field and lookup
    links: Mapping[str, tuple[str, str]] = {}  # first word of a path -> (table where it goes on, column that leads there)
    specials: tuple[str, ...] = ()  # conditions on something else than a column; see `filters`

    @property
    def number(self) -> str:
        """Return the column with the number of a row."""
        return f"{self.name}.id"

    @property
    def names(self) -> list[str]:
        """Return every name that a condition can begin with."""
        return [*dict.fromkeys((*self.columns, *self.specials, *self.aliases, *self.links))]

    def words(self, name: str) -> list[str]:
        """Return the words of a name, an alias at its beginning replaced."""
        head, *rest = name.split("__")
        if rest and head in self.links and rest[0] not in LOOKUPS:
            return [head, *rest]
        return [*self.aliases.get(head, head).split("__"), *rest]

    def unknown(self, name: str) -> UnknownField:
        """Return the error that there is no field of that name, with the nearest one."""
        return UnknownField.named(self.what, name, self.names)


def _stored(table: str, kinds: Mapping[str, str]) -> dict[str, Column]:
    return {name: Column(f"{table}.{name}", kind, is_stored=True) for name, kind in kinds.items()}


def _kinds(fields: Iterable[field_specs.Field]) -> dict[str, str]:
    return {field.name: field.kind for field in fields}


# --- jobs -------------------------------------------------------------------------------------------------------------

_BEFORE_DOT = "substr({0}, 1, instr({0} || '.', '.') - 1)".format("holder.scheduler_id")
#: The batch jobs in which launchers ran: lease -> batch job. PBS appends its server to an id, which submission leaves out.
LAUNCHES = f"""lease AS holder CROSS JOIN batch_job AS launch
    ON launch.scheduler_id <> '' AND launch.scheduler_id IN (holder.scheduler_id, {_BEFORE_DOT})"""
#: The batch job in which a job last ran, else the one for which it is planned. Some schedulers use their ids again: the newest.
BATCH_JOB_OF_JOB = f"""coalesce(CASE WHEN job.attempt > 0 THEN (SELECT launch.id FROM {LAUNCHES} WHERE holder.id = {runs.LEASE}
    ORDER BY launch.id DESC LIMIT 1) END, job.queued_launch_id)"""
LAST_UPDATE = "coalesce((SELECT time FROM event WHERE event.job = job.id ORDER BY event.id DESC LIMIT 1), job.created)"

JOB = Table(
    "job",
    "job",
    {
        **_stored("job", {"id": "id", "job_id": "uuid", **_kinds(field_specs.JOB_FIELDS), "created": "time"}),
        "app_id": Column("(SELECT app.id FROM app WHERE app.name = job.application)", "id"),
        "batch_job_id": Column(BATCH_JOB_OF_JOB, "id"),
        "last_update": Column(LAST_UPDATE, "time"),
        **{name: Column(*about, is_sorted_last=True) for name, about in runs.OF_JOB.items()},
        "failure": Column("(SELECT cause FROM failure WHERE failure.id = job.failure)", "text"),
        "lock": Column("ifnull((SELECT host || ':' || pid FROM lease WHERE lease.id = job.lease), '')", "text"),
    },
    {
        "queued_launch": "queued_launch_id",
        **runs.SHORT_NAMES,
        **field_specs.OUR_NAMES,
        "last_update_before": "last_update__lte",
        "last_update_after": "last_update__gte",
    },
    {"queued_launch": ("batch_job", "job.queued_launch_id")},
    ("uuid", "which", "parent_id", "child_id", "scheduler_id"),
)

# --- applications -----------------------------------------------------------------------------------------------------

APP = Table(
    "app",
    "application",
    {
        **_stored("app", {"id": "id", **_kinds(field_specs.APP_FIELDS)}),
        # A command line, a template of one, or a Python function.
        "kind": Column(
            """CASE WHEN app.command_template <> '' THEN 'template' WHEN app.definition <> '{}' THEN 'function'
                ELSE 'command' END""",
            "text",
        ),
    },
)

# --- batch jobs -------------------------------------------------------------------------------------------------------

_BATCH_JOB_KINDS = {
    "id": "id", "scheduler_id": "text", "scheduler": "text", "project": "text", "queue": "text", "nodes": "count",
    "wall_minutes": "minutes", "job_mode": "text", "wf_filter": "text", "filter_tags": "tags", "sched_flags": "text",
    "command": "text", "state": "text", "reason": "text", "prescheduled_only": "flag", "from_balsam": "flag",
    "created": "time", "started": "time", "ended": "time", "exit_code": "id", "log": "text", "partitions": "text",
    "optional_params": "object", "absent": "time", "cluster": "text", "tries": "count", "expected_start": "time",
    "polled": "time", "environment": "object",
}  # fmt: skip

BATCH_JOB = Table(
    "batch_job",
    "batch job",
    _stored("batch_job", _BATCH_JOB_KINDS),
    {
        "num_nodes": "nodes",
        "wall_time_min": "wall_minutes",
        "start_time": "started",
        "end_time": "ended",
        "start_time_before": "started__lte",
        "start_time_after": "started__gte",
        "end_time_before": "ended__lte",
        "end_time_after": "ended__gte",
    },
)

#: The state of a batch job as it is stored -> the same in the words of Balsam 0.7; all others are "finished".
BATCH_JOB_STATES = {
    "pending-submission": "pending_submission", "submitted": "queued", "submission-failed": "submit_failed",
    "cancelling": "pending_deletion", "queued": "queued", "running": "running",
}  # fmt: skip
_CASES = " ".join(f"WHEN '{stored}' THEN '{shown}'" for stored, shown in BATCH_JOB_STATES.items())
#: Batch jobs as a site shows them.
BATCH_JOB_OF_SITE = BATCH_JOB._replace(
    columns={
        **BATCH_JOB.columns,
        "state": Column(
            f"CASE batch_job.state {_CASES} ELSE 'finished' END", "text", choices=(*BATCH_JOB_STATES.values(), "finished")
        ),
    }
)

# --- events -----------------------------------------------------------------------------------------------------------

#: The nodes that a run takes, by the job's present values.
WEIGHT = f"""CASE WHEN event.to_state = '{states.RUNNING}' THEN
    (SELECT job.num_nodes * 1.0 / job.node_packing_count FROM job WHERE job.id = event.job) END"""

EVENT = Table(
    "event",
    "event",
    {
        **_stored("event", {"id": "id", "job": "id", "time": "time", "from_state": "state", "to_state": "state"}),
        "message": Column("event.message", "text", is_stored=True),
        "data": Column("event.data", "object"),
    },
    {
        "job_id": "job__id",
        "tags": "job__tags",
        "batch_job_id": "job__batch_job_id",
        "scheduler_id": "job__scheduler_id",
        "timestamp": "time",
        "timestamp_before": "time__lte",
        "timestamp_after": "time__gte",
    },
    {"job": ("job", "event.job")},
)

TABLES = {table.name: table for table in (JOB, APP, BATCH_JOB, EVENT)}


# --- paths into JSON --------------------------------------------------------------------------------------------------


def _is_quotable(key: str) -> bool:
    """Return whether a key can be quoted in a path; SQLite before 3.45 knows no escapes there."""
    return key != "" and not any(letter in '"\\' or letter < " " for letter in key)


def _steps(key: str) -> tuple[str, ...]:
    """Return how a path goes on below a key, which may be a position in a list."""
    is_position = key.isdecimal() and key.isascii() and len(key) < 10
    return (f'."{key}"', f"[{int(key)}]") if is_position else (f'."{key}"',)


def json_path(column: Column, keys: list[str]) -> Column:
    """Return the column at a path into a JSON column, NULL if it is missing. A key of digits is also a position in a list.

    Raises:
        InvalidSpec: a key but the last holds quotes, backslashes or control characters.
    """
    kind = "json" if column.kind == "object" else "word"
    *above, last = keys
    if not all(map(_is_quotable, above)):
        raise InvalidSpec(f"Only the last key of a path may hold quotes or backslashes: {'__'.join(keys)}")
    if not _is_quotable(last):
        path = "$" + "".join(f'."{key}"' for key in above)
        value = f"(SELECT {{}} FROM json_each({column.sql}, ?) WHERE key = ?)"
        return Column(value.format("value"), kind, (path, last), type_sql=value.format("type"))
    paths = tuple("$" + "".join(path) for path in itertools.product(*map(_steps, keys)))
    values = [f"json_extract({column.sql}, ?)"] * len(paths)
    types = [f"nullif(json_type({column.sql}, ?), 'null')"] * len(paths)
    if len(paths) == 1:
        return Column(values[0], kind, paths, type_sql=types[0])
    return Column(f"coalesce({', '.join(values)})", kind, paths, type_sql=f"coalesce({', '.join(types)})")


# --- columns of orders and rows ---------------------------------------------------------------------------------------


def column_of(table: Table, name: str) -> Column:
    """Return the column named `name` to sort or fetch rows: a field, an alias, or a path into a JSON field.

    Raises:
        UnknownField, InvalidSpec.
    """
    head, *rest = table.words(name)
    if rest and head in table.links:
        there, number = table.links[head]
        inner = column_of(TABLES[there], "__".join(rest))
        if inner.sql == f"{there}.id":
            return Column(number, "id", is_stored=True)
        return Column(f"(SELECT {inner.sql} FROM {there} WHERE {there}.id = {number})", inner.kind, inner.parameters)
    if head == "pk":
        head = "job_id" if table is JOB else "id"
    column = table.columns.get(head)
    if column is None or (rest and column.kind not in field_specs.JSON_KINDS):
        raise table.unknown(name)
    return json_path(column, rest) if rest else column


def shown_event_data(key: str) -> Column:
    """Return the column of an event's shown value for a key of its data, as `events` reads it."""
    is_error = f"event.to_state = '{states.RUN_ERROR}'"
    shown = {
        "num_nodes": WEIGHT,
        "returncode": f"CASE WHEN {is_error} THEN {runs.RETURN_CODE} END",
        "started": runs.BEGAN,
        "error": f"CASE WHEN {is_error} THEN event.message END",
        "message": f"CASE WHEN NOT {is_error} THEN nullif(event.message, '') END",
    }.get(key)
    if shown is None and key in INTERNAL_EVENT_KEYS:
        return Column("NULL", "json", type_sql="NULL")
    given = f"(SELECT {{0}} FROM json_each(event.data, '$.{PAYLOAD}') WHERE key = ?)"
    own = "(SELECT {0} FROM json_each(event.data) WHERE key = ?)"
    value = f"coalesce({', '.join(filter(None, (given.format('value'), own.format('value'), shown)))})"
    type_of_shown = shown and f"nullif(typeof({shown}), 'null')"
    kind = f"coalesce({', '.join(filter(None, (given.format('type'), own.format('type'), type_of_shown)))})"
    return Column(value, "json", (key, key), type_sql=kind)


#: Keys of an event's data that are for this program only, or are shown under other names.
INTERNAL_EVENT_KEYS = ("alone", PAYLOAD)
