"""Every write to the table `batch_job`.

A row is open until `ended` is set. What a scheduler reports of an ended one is not written any more, so that nonsense in its
answer cannot bring a batch job back to life; except where `absent` is set: that end is a guess, made because the
scheduler stopped listing the batch job, and the scheduler may correct it. All functions run inside the caller's write
transaction, on its connection `cx`.
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


#: A row whose state may still change.
_OPEN = "(ended IS NULL OR absent IS NOT NULL)"


def retry(cx: sqlite3.Connection, number: int, values: Mapping[str, Any], now_us: int) -> bool:
    """Make a row whose submission was refused pending again, with new `values`; count the try.

    Return False where the row is gone, or its submission was not refused (or no longer is).
    """
    row = {**values, "state": PENDING, "created": now_us, "reason": "", "ended": None}
    changed = cx.execute(
        f"UPDATE batch_job SET tries = tries + 1, {', '.join(f'{name} = ?' for name in row)}"
        " WHERE id = ? AND state = ? AND scheduler_id = '' AND absent IS NULL",
        (*row.values(), number, SUBMISSION_FAILED),
    )
    return changed.rowcount == 1


def mark_submitted(cx: sqlite3.Connection, number: int, scheduler_id: str, cluster: str = "") -> bool:
    """Store the scheduler's id for it. A row that was given up comes back, too: its submitter was only slow.

    Return False where the row is gone, or another process has already found the same batch job by its name.
    """
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, scheduler_id = ?, cluster = ?, reason = '', ended = NULL, absent = NULL"
        " WHERE id = ? AND scheduler_id = '' AND state IN (?, ?)",
        (SUBMITTED, scheduler_id, cluster, number, PENDING, SUBMISSION_FAILED),
    )
    return changed.rowcount == 1


def mark_failed(cx: sqlite3.Connection, number: int, reason: str, now_us: int) -> bool:
    """End a row whose submission was refused. Return False where it became a batch job, or the row is gone."""
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, reason = ?, ended = ?, absent = NULL WHERE id = ? AND state = ?",
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
    absent: int | None,
    was_absent: int | None = None,
) -> bool:
    """Write what the scheduler reported. Return False where the row has certainly ended, or is gone.

    Also return False if its `absent` is not `was_absent` any more: another process had a newer answer. Times are µs since
    the epoch; None for `started` keeps what is known.
    """
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, reason = ?, exit_code = ?, started = coalesce(?, started), ended = ?, absent = ?"
        f" WHERE id = ? AND absent IS ? AND {_OPEN}",
        (state, reason, exit_code, started, ended, absent, number, was_absent),
    )
    return changed.rowcount == 1


def disown(cx: sqlite3.Connection, reason: str, now_us: int) -> int:
    """End the rows of all batch jobs that may still change, without asking a scheduler. Return their number."""
    query = f"UPDATE batch_job SET state = 'gone', reason = ?, ended = coalesce(ended, ?), absent = NULL WHERE {_OPEN}"
    return cx.execute(query, (reason, now_us)).rowcount
