"""The views `jobs`, `runs`, `events`, `results` and `failures`, over which users' SQL runs (see `user_sql`): their columns.

Jobs that are still being added are in none of them.
"""

from __future__ import annotations

from typing import NamedTuple

from ...core import field_specs
from ...core.clock import SECOND_US
from ..engine.schema import FAILED_FOR_CAUSE, VISIBLE, visible
from . import runs
from .fields import JOB, LAST_UPDATE

#: Raised when a column gets another meaning or is removed; new columns do not raise it.
VERSION = 1


class ViewColumn(NamedTuple):
    """A column of a view."""

    name: str
    raw_sql: str  # the value as it is stored
    meaning: str
    kind: str = ""  # as in `fields.Column`

    @property
    def sql(self) -> str:
        """Return the expression for users: times as text, secret variables masked."""
        if self.kind == "time":
            return f"CASE WHEN {self.raw_sql} IS NOT NULL THEN {_iso_sql(self.raw_sql)} END"
        wrapped = {"environ": f"balsam_masked({self.raw_sql})", "value": f"balsam_value({self.raw_sql})"}
        return wrapped.get(self.kind, self.raw_sql)

    @property
    def description(self) -> str:
        """Return the meaning with the form of the value."""
        if self.kind == "environ":
            return f"{self.meaning}, as JSON; the values of secret ones are masked"
        return f"{self.meaning} (ISO 8601, UTC)" if self.kind == "time" else self.meaning + ", as JSON" * self.is_json

    @property
    def is_json(self) -> bool:
        """Return whether the value is a JSON object or list."""
        return self.kind in (*field_specs.JSON_KINDS, "parents", "value")


class View(NamedTuple):
    """A view for users."""

    name: str
    meaning: str
    source: str  # what follows FROM
    columns: tuple[ViewColumn, ...]


def _iso_sql(expression: str) -> str:
    """Return the expression for a time in microseconds as text of ISO 8601, as `clock.iso_us` formats it."""
    return (
        f"strftime('%Y-%m-%dT%H:%M:%S', {expression} / {SECOND_US}, 'unixepoch')"
        f" || printf('.%06dZ', {expression} % {SECOND_US})"
    )


_TIMES = ("created", "start_after", "told_to_stop")


def _field(name: str) -> ViewColumn:
    field = field_specs.JOB_FIELD[name]
    return ViewColumn(name, f"job.{name}", field.meaning, "time" if name in _TIMES else field.kind)


_IDS = (
    ViewColumn("id", "job.id", "Number of the job"),
    ViewColumn("job_id", "job.job_id", "UUID of the job"),
)
#: What is known of an attempt, as columns of `run`.
_OF_RUN = (
    ViewColumn("node", "ifnull(run.nodes, '')", "Nodes as a compressed list; a share of a host is HOST/2"),
    ViewColumn("started", "run.started", "When the program was started", "time"),
    ViewColumn("ended", "run.ended", "When it ended", "time"),
    ViewColumn("runtime_s", runs.RUNTIME_S, "Seconds between the two; null if unknown or not over"),
    ViewColumn(
        "user_cpu_s", f"run.user_us / {SECOND_US}.0", "CPU seconds of the program and the processes for which it waited"
    ),
    ViewColumn("system_cpu_s", f"run.system_us / {SECOND_US}.0", "CPU seconds of the system for these"),
    ViewColumn("max_memory_bytes", "run.max_memory", "Peak memory of its largest process"),
)
_FAILURE = ViewColumn(
    "failure",
    "(SELECT cause FROM failure WHERE failure.id = job.failure)",
    "Why the job is FAILED, in words; null if it is not",
)
_LAST_RUN = "job LEFT JOIN run ON run.job = job.id AND run.attempt = job.attempt"

VIEWS = (
    View(
        "jobs", "one row for each job, with all its fields", f"{_LAST_RUN} WHERE {VISIBLE}",
        (
            *_IDS, *(_field(field.name) for field in field_specs.JOB_FIELDS),
            ViewColumn("app_id", JOB.columns["app_id"].sql, "Number of the application"),
            ViewColumn(
                "parents", "(SELECT json_group_array(parent) FROM dependency WHERE child = job.id AND parent > 0)",
                "Numbers of the parents in this DB", "parents",
            ),
            ViewColumn("last_update", LAST_UPDATE, "When it last entered a state", "time"),
            _FAILURE, *_OF_RUN,
        ),
    ),
    View(
        "runs", "one row for each attempt that was started", f"run WHERE {visible('run.job')}",
        (
            ViewColumn("job", "run.job", "Number of the job"),
            ViewColumn("attempt", "run.attempt", "Number of the attempt, from 1"),
            *_OF_RUN,
            ViewColumn("return_code", "run.return_code", "Exit code; negative: the signal that ended it"),
            ViewColumn("cause", "run.cause", "Why it ended; empty: by itself"),
            ViewColumn("gpus", "run.gpus", "GPUs on each node"),
            ViewColumn("cpus", "run.cpus", "CPUs to which it was pinned"),
            ViewColumn("launcher", "run.lease", "Number of the launcher"),
        ),
    ),
    View(
        "events", "one row for each change of a state; that to CREATED has the id 0",
        f"""(SELECT id AS job, 0 AS id, created AS time, '' AS from_state, 'CREATED' AS to_state, origin AS message,
            NULL AS data FROM job UNION ALL SELECT job, id, time, from_state, to_state, message, data FROM event) AS event
            WHERE {visible("event.job")}""",
        (
            ViewColumn("id", "event.id", "Number of the event"),
            ViewColumn("job", "event.job", "Number of the job"),
            ViewColumn("time", "event.time", "When", "time"),
            ViewColumn("from_state", "event.from_state", "State that was left"),
            ViewColumn("to_state", "event.to_state", "State that was entered"),
            ViewColumn("message", "event.message", "Message"),
            ViewColumn("data", "event.data", "More about it", "object"),
        ),
    ),
    View(
        "results", "one row for each job: what went in and what came out", f"{_LAST_RUN} WHERE {VISIBLE}",
        (
            *_IDS, *map(_field, ("name", "workflow", "application", "state", "parameters", "tags", "data", "return_code")),
            ViewColumn(
                "result", "(SELECT result FROM call WHERE call.job = job.id)",
                "What a call of an executor returned, if it is plain and small", "value",
            ),
            _field("attempt"), *_OF_RUN, _field("created"), _FAILURE,
        ),
    ),
    View(
        "failures", "one row for each job that is FAILED", f"{_LAST_RUN} WHERE job.{FAILED_FOR_CAUSE} AND {VISIBLE}",
        (
            *_IDS, *map(_field, ("name", "workflow", "application")), _FAILURE._replace(meaning="Why, in words"),
            ViewColumn(
                "message", "(SELECT message FROM event WHERE event.job = job.id ORDER BY event.id DESC LIMIT 1)",
                "Message of its last event",
            ),
            *map(_field, ("return_code", "attempt")), *_OF_RUN,
        ),
    ),
)  # fmt: skip
#: Name -> view.
BY_NAME = {view.name: view for view in VIEWS}
#: Columns with times.
TIME_COLUMNS = frozenset(column.name for view in VIEWS for column in view.columns if column.kind == "time")
