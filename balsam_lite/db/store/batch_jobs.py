"""Every write to the table `batch_job`.

A row is open until `ended` is set, and what a scheduler says of an ended one is not written any more: nonsense in its
answer cannot bring a batch job back to life. All functions run inside the caller's write transaction, on its
connection `cx`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

PENDING = "pending-submission"
SUBMITTED = "submitted"
SUBMISSION_FAILED = "submission-failed"
#: Its end was asked for, and the scheduler has not said yet that it came.
CANCELLING = "cancelling"


def add(cx: sqlite3.Connection, values: Mapping[str, Any], now_us: int) -> int:
    """Insert a batch job that is about to be submitted and return its number. `values` are columns of the table."""
    row = {**values, "state": PENDING, "created": now_us}
    columns = ", ".join(row)
    marks = ", ".join("?" * len(row))
    cursor = cx.execute(f"INSERT INTO batch_job ({columns}) VALUES ({marks})", tuple(row.values()))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def set_paths(cx: sqlite3.Connection, number: int, command: str, log: str) -> None:
    """Say where the script and its output lie; their names hold the number, so they come after `add`."""
    cx.execute("UPDATE batch_job SET command = ?, log = ? WHERE id = ?", (command, log, number))


def mark_submitted(cx: sqlite3.Connection, number: int, scheduler_id: str) -> bool:
    """Note the scheduler's id for it. Also a row that was given up for lost comes back: its submitter was only slow.

    Returns False where the row is gone, or somebody else has found the same batch job by its name already.
    """
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, scheduler_id = ?, reason = '', ended = NULL"
        " WHERE id = ? AND scheduler_id = '' AND state IN (?, ?)",
        (SUBMITTED, scheduler_id, number, PENDING, SUBMISSION_FAILED),
    )
    return changed.rowcount == 1


def mark_failed(cx: sqlite3.Connection, number: int, reason: str, now_us: int) -> bool:
    """End a row that did not become a batch job. Returns False where it did, or the row is gone."""
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, reason = ?, ended = ? WHERE id = ? AND state = ?",
        (SUBMISSION_FAILED, reason, now_us, number, PENDING),
    )
    return changed.rowcount == 1


def mark_cancelling(cx: sqlite3.Connection, number: int) -> None:
    """Note that the scheduler was asked to end it, unless it has ended."""
    cx.execute("UPDATE batch_job SET state = ? WHERE id = ? AND ended IS NULL", (CANCELLING, number))


def record(
    cx: sqlite3.Connection,
    number: int,
    *,
    state: str,
    reason: str,
    exit_code: int | None,
    started: int | None,
    ended: int | None,
) -> bool:
    """Write what the scheduler said. Returns False where the row has ended already, or is gone.

    Times are microseconds since the epoch; None for `started` keeps what is known.
    """
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, reason = ?, exit_code = ?, started = coalesce(?, started), ended = ?"
        " WHERE id = ? AND ended IS NULL",
        (state, reason, exit_code, started, ended, number),
    )
    return changed.rowcount == 1
