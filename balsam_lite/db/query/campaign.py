"""Read what plots and reports show of many jobs: the jobs with their runs, the changes of state in bins of time, and the graph.

Every function returns one page, so that a transaction is short however many jobs match, and takes the last number of the page
before. Rows are plain data, which JSON carries. All raise UnknownField, InvalidSpec and InvalidStateError.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from ...core import states
from ..engine.schema import visible
from . import select
from .fields import EVENT
from .filters import EVERY, Conditions
from .operators import LARGEST, execute
from .runs import launcher_records

#: Jobs in a page, and events.
JOBS_PER_PAGE, EVENTS_PER_PAGE = 20_000, 50_000
MAX_LAUNCHERS = 500

#: Since when the job of a run has waited for a launcher: its creation, its last parent's end, or its return to the queue.
_WAITS_SINCE = f"""CASE WHEN run.attempt > 1 OR EXISTS (SELECT 1 FROM dependency WHERE child = job.id) THEN
    coalesce((SELECT max(time) FROM event WHERE event.job = job.id AND event.time <= run.started AND (
        event.from_state = '{states.AWAITING_PARENTS}' OR event.to_state IN ('{states.CREATED}', '{states.RESTART_READY}')
    )), job.created) ELSE job.created END"""

#: When a run began; where that is not known, when the job was set to RUNNING.
_STARTED = f"""CASE WHEN run.job IS NOT NULL THEN coalesce(run.started, (SELECT max(time) FROM event WHERE event.job = run.job
    AND event.to_state = '{states.RUNNING}' AND (run.ended IS NULL OR event.time <= run.ended))) END"""

#: The columns of a page of runs.
RUN_COLUMNS = {
    "job": "job.id",
    "created": "job.created",
    "state": "job.state",
    "workflow": "job.workflow",
    "app": "job.application",
    "failure": "coalesce((SELECT cause FROM failure WHERE failure.id = job.failure), '')",
    "weight": "job.num_nodes * 1.0 / job.node_packing_count",
    "started": _STARTED,
    "ended": "run.ended",
    "return_code": "run.return_code",
    "cause": "run.cause",
    "nodes": "run.nodes",
    "memory": "run.max_memory",
    "cpu_us": "run.user_us + run.system_us",
    "waits_since": _WAITS_SINCE,
}


def runs(cx: sqlite3.Connection, where: Mapping[str, Any] = EVERY, after: int = 0) -> list[Sequence[Any]]:
    """Return the matching jobs with numbers above `after`, by number, as rows of RUN_COLUMNS; [] at the end.

    A job has a row for each of its runs, or one row without a run (`started` is None).
    """
    numbers, parameters = select.statement(cx, "job.id", where, "", 0, JOBS_PER_PAGE, after)
    sql = f"""SELECT {", ".join(RUN_COLUMNS.values())} FROM ({numbers}) AS chosen CROSS JOIN job ON job.id = chosen.id
        LEFT JOIN run ON run.job = job.id"""
    return execute(cx, sql, parameters).fetchall()


def changes(
    cx: sqlite3.Connection,
    where: Mapping[str, Any] = EVERY,
    after: int = 0,
    shift: int = 0,
    first: int = 0,
    last: int = LARGEST,
) -> tuple[int, list[Sequence[Any]]]:
    """Count the changes of state of the matching jobs in events with numbers above `after`, by time.

    Args:
        shift: a bin is 2 ** `shift` microseconds long.
        first, last: the span of time (microseconds); what was before is counted in the first bin, what is later is left out.

    Returns:
        the number of the last event that was read, 0 at the end; rows of [bin, state left, state entered, number of changes].
    """
    only = Conditions(EVERY, EVENT)
    only.jobs = Conditions(where).rarest_first(cx)
    source, (sql, parameters) = select.events_source(cx, only, "id")
    query = f"""SELECT max(event.time, ?) >> ?, event.from_state, event.to_state, event.id FROM {source}
        WHERE {sql} AND event.time <= ? AND event.id > ? ORDER BY event.id LIMIT {EVENTS_PER_PAGE}"""
    rows = execute(cx, query, (first, shift, *parameters, last, after)).fetchall()
    counted = Counter(map(itemgetter(0, 1, 2), rows))
    return rows[-1][3] if rows else 0, [[*key, number] for key, number in counted.items()]


def parents(cx: sqlite3.Connection, where: Mapping[str, Any] = EVERY, after: int = 0) -> tuple[int, list[Sequence[int]]]:
    """Return the dependencies of matching jobs with numbers above `after`.

    Returns:
        the number of the last job that was read, 0 at the end; rows of [parent, child].
    """
    numbers, parameters = select.statement(cx, "job.id", where, "", 0, JOBS_PER_PAGE, after)
    sql = f"""SELECT chosen.id, dependency.parent FROM ({numbers}) AS chosen
        LEFT JOIN dependency ON dependency.child = chosen.id AND dependency.parent > 0 AND {visible("dependency.parent")}"""
    rows = execute(cx, sql, parameters).fetchall()
    return rows[-1][0] if rows else 0, [[parent, child] for child, parent in rows if parent is not None]


def launchers(cx: sqlite3.Connection) -> list[dict[str, Any]]:
    """Return the newest launchers, newest first, at most MAX_LAUNCHERS: see `runs.launcher_records`."""
    newest = cx.execute("SELECT id FROM lease WHERE kind = 'launcher' ORDER BY id DESC LIMIT ?", (MAX_LAUNCHERS,)).fetchall()
    return launcher_records(cx, (number for (number,) in newest))[::-1]
