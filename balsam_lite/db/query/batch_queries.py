"""Every read of the table `batch_job`. Rows are dicts of all columns; times are microseconds since the epoch.

All functions run inside the caller's transaction, on its connection `cx`. The table grows by one row per launch, so it
is scanned: an index would cost more than it saves.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any

from .filters import Conditions
from .operators import execute

BatchRow = dict[str, Any]


def get(cx: sqlite3.Connection, number: int) -> BatchRow | None:
    """Return the batch job with that number in the DB; None if there is none."""
    return next(iter(_rows(cx, "WHERE id = ?", (number,))), None)


def by_scheduler_id(cx: sqlite3.Connection, scheduler_id: str) -> BatchRow | None:
    """Return the newest batch job with that scheduler id: some schedulers reuse their ids."""
    return next(iter(_rows(cx, "WHERE scheduler_id = ? ORDER BY id DESC LIMIT 1", (scheduler_id,))), None)


def launch_of(cx: sqlite3.Connection, scheduler: str, scheduler_id: str, cluster: str = "") -> BatchRow | None:
    """Return the batch job in which a launcher runs, by its scheduler (as in Settings.SCHEDULER_CLASS) and scheduler id.

    If the cluster is known, a batch job with the same id on another cluster does not match.

    Return None if Balsam did not submit it, or the submitter has not written the id yet.
    """
    # Inside a PBS batch job its id ends in a dot and the server name; submission returns it without these.
    where = """WHERE scheduler_id IN (?, ?) AND scheduler LIKE ? || '%' AND (? = '' OR cluster IN ('', ?))
        ORDER BY cluster = ? DESC, id DESC LIMIT 1"""
    parameters = (scheduler_id, scheduler_id.partition(".")[0], scheduler, cluster, cluster, cluster)
    return next(iter(_rows(cx, where, parameters)), None)


def has_pending(cx: sqlite3.Connection, scheduler: str) -> bool:
    """Return whether a process is about to submit a batch job to that scheduler, or died while doing so."""
    return bool(_rows(cx, "WHERE ended IS NULL AND scheduler_id = '' AND scheduler LIKE ? || '%' LIMIT 1", (scheduler,)))


def open_rows(cx: sqlite3.Connection, scheduler: str) -> list[BatchRow]:
    """Return the rows of one scheduler (its `domain`) that may still change, oldest first."""
    return _rows(cx, "WHERE ended IS NULL AND scheduler = ? ORDER BY id", (scheduler,))


def presumed_over(cx: sqlite3.Connection, scheduler: str, since_us: int) -> list[BatchRow]:
    """Return the rows of one scheduler that count as ended only because it stopped listing them, at `since_us` or later.

    The oldest come first. A row is omitted if a later one has the same scheduler id: the scheduler reuses its ids.
    """
    newer = """SELECT 1 FROM batch_job AS later WHERE later.id > batch_job.id AND later.scheduler = batch_job.scheduler
        AND later.scheduler_id = batch_job.scheduler_id AND later.cluster = batch_job.cluster AND later.scheduler_id <> ''"""
    where = f"WHERE ended >= ? AND absent IS NOT NULL AND scheduler = ? AND NOT EXISTS ({newer}) ORDER BY id"
    return _rows(cx, where, (since_us, scheduler))


def newest(cx: sqlite3.Connection, values: Mapping[str, Any]) -> BatchRow | None:
    """Return the newest row with these values in these columns."""
    where = " AND ".join(f"{name} = ?" for name in values)
    return next(iter(_rows(cx, f"WHERE {where} ORDER BY id DESC LIMIT 1", values.values())), None)


def unended_rows(cx: sqlite3.Connection) -> list[BatchRow]:
    """Return the rows of all schedulers that may still change, oldest first."""
    return _rows(cx, "WHERE ended IS NULL ORDER BY id")


def all_rows(cx: sqlite3.Connection, limit: int | None = None) -> list[BatchRow]:
    """Return the newest `limit` rows (None: all), oldest first."""
    return _rows(cx, "ORDER BY id DESC LIMIT ?", (-1 if limit is None else limit,))[::-1]


def matching(cx: sqlite3.Connection, only: Conditions) -> list[BatchRow]:
    """Return the rows that meet conditions, oldest first."""
    condition, parameters = only.sql()
    return _rows(cx, f"WHERE {condition} ORDER BY id", parameters)


def next_number(cx: sqlite3.Connection) -> int:
    """Return the number that the next batch job will get, unless another process is faster."""
    found = cx.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batch_job'").fetchone()
    return int(found[0]) + 1 if found else 1


def _rows(cx: sqlite3.Connection, rest: str, parameters: Iterable[Any] = ()) -> list[BatchRow]:
    cursor = execute(cx, f"SELECT * FROM batch_job {rest}", tuple(parameters))
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor]
