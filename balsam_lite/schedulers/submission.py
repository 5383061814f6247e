"""The one road from a launch request to a batch job, and what became of it; for the command line, `dag`, the service.

Intent before effect: the row is in the DB before the scheduler hears of it, so a crash in between is found again by the
script's name at the next `refresh`. Nothing slow happens inside a transaction. Nothing here prints.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Mapping
from typing import Any

from ..clock import SECOND_US, SystemClock
from ..db import batch_queries, location
from ..db.batch_queries import BatchRow
from ..db.connection import Database
from ..db.store import batch_jobs
from ..errors import (
    AmbiguousJobId,
    CancelFailed,
    SubmitFailed,
    SubmitUncertain,
    UnknownBatchJob,
)
from ..settings import Settings
from .base import GONE, BatchStatus, Scheduler, Submission, select
from .request import LaunchRequest, validated
from .script import NAME, render

#: A row may be on its way to the scheduler for so long, or for twice what its command is given if that is longer.
SUBMISSION_PATIENCE_S = 120
_NEVER_SEEN = "the scheduler does not have it: whoever submitted it died before that, or got no answer"


# --- submitting -------------------------------------------------------------------------------------------------------


def submit_launch(
    db: Database,
    settings: Settings,
    request: LaunchRequest,
    scheduler: Scheduler | None = None,
    before: Callable[[BatchRow], None] | None = None,
) -> BatchRow:
    """Submit a launcher and return its row. Opens two short write transactions, before and after.

    `before` is called with the new row, when it is in the DB and the scheduler has not heard of it yet.

    Raises:
        InvalidSpec, SettingsError: nothing was written. SubmitFailed: the row stays, with the reason. SubmitUncertain: it
            stays as it was before; `refresh` finds the batch job by its name, or gives it up.
    """
    scheduler = scheduler or select(settings)
    request = validated(request, settings)
    render(db, settings, scheduler, request, 0)  # a template that is broken costs no row
    row = _add_row(db, request, scheduler.domain)
    if before:
        before(row)
    try:
        script = render(db, settings, scheduler, request, row["id"])
        _write_script(row["command"], script)
        native_id = scheduler.submit(_submission(db, row))
    except SubmitUncertain:
        raise
    except (OSError, SubmitFailed) as exc:
        reason = exc.message if isinstance(exc, SubmitFailed) else str(exc)
        with db.write() as cx:
            batch_jobs.mark_failed(cx, row["id"], reason, SystemClock.now_us())
        if isinstance(exc, SubmitFailed):
            raise
        raise SubmitFailed(f"The job script {row['command']} cannot be written: {exc}") from exc
    with db.write() as cx:
        batch_jobs.mark_submitted(cx, row["id"], native_id)
        return _get(batch_queries.get(cx, row["id"]), row["id"])


def render_script(db: Database, settings: Settings, request: LaunchRequest, number: int) -> str:
    """The job script that `submit_launch` would submit as `qlaunch<number>`. Writes nothing.

    Raises:
        InvalidSpec. SettingsError: the template is missing or broken, with file, line and reason.
    """
    return render(db, settings, select(settings), validated(request, settings), number)


def _add_row(db: Database, request: LaunchRequest, domain: str) -> BatchRow:
    values = {
        **request._asdict(),
        "scheduler": domain,
        "filter_tags": json.dumps(dict(request.filter_tags), sort_keys=True),
        "prescheduled_only": int(request.prescheduled_only),
        "partitions": json.dumps([part.as_fields() for part in request.partitions]),
        "optional_params": json.dumps(dict(request.optional_params), sort_keys=True),
    }
    with db.write() as cx:
        number = batch_jobs.add(cx, values, SystemClock.now_us())
        stem = os.path.join(db.directory, location.QSUBMIT, f"{NAME}{number}")
        batch_jobs.set_paths(cx, number, stem + ".sh", stem + ".out")
        return _get(batch_queries.get(cx, number), number)


def _get(row: BatchRow | None, number: int) -> BatchRow:
    if row is None:
        raise UnknownBatchJob(f"There is no qlaunch{number} in this DB.")
    return row


def _submission(db: Database, row: BatchRow) -> Submission:
    return Submission(
        name=f"{NAME}{row['id']}",
        script=row["command"],
        output=row["log"],
        directory=os.path.join(db.directory, location.QSUBMIT),
        nodes=row["nodes"],
        minutes=row["wall_minutes"],
        queue=row["queue"],
        project=row["project"],
        flags=tuple(shlex.split(row["sched_flags"])),
    )


def _write_script(path: str, text: str) -> None:
    """Write an executable file, whole or not at all. A link in its place is refused, not followed and not replaced."""
    try:
        os.mkdir(os.path.dirname(path))  # and not what is above it: that would bring back a DB which somebody has removed
    except FileExistsError:
        pass
    if os.path.islink(path):
        raise FileExistsError(f"{path} is a link")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path + ".new", flags, 0o755)
    try:
        with open(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(handle, os.fstat(handle).st_mode | 0o500)
            file.write(text)
        os.replace(path + ".new", path)
    except OSError:
        os.unlink(path + ".new")
        raise


# --- afterwards -------------------------------------------------------------------------------------------------------


def refresh(db: Database, scheduler: Scheduler, now_us: int | None = None) -> list[BatchRow]:
    """Ask the scheduler about every batch job of its own that has not ended and write down what changed. Returns those rows.

    Opens its own transactions; a write one only where something changed. `now_us` is for tests.

    Raises:
        PollFailed: nothing is known, so nothing was changed.
    """
    now_us = SystemClock.now_us() if now_us is None else now_us
    with db.read() as cx:
        rows = batch_queries.open_rows(cx, scheduler.domain)
    found = {row["id"]: scheduler.find(_submission(db, row), row["created"]) for row in rows if _is_pending(row)}
    ids = {row["id"]: row["scheduler_id"] or found.get(row["id"]) or "" for row in rows}
    asked = {ids[row["id"]]: row["log"] for row in rows if ids[row["id"]]}
    statuses = scheduler.poll(asked) if asked else {}
    late_us = now_us - _patience_us(scheduler) if "" in ids.values() else 0
    changes = [row for row in rows if _differs(row, ids[row["id"]], statuses, now_us, late_us)]
    if not changes:
        return rows
    with db.write() as cx:
        for row in changes:
            native_id = ids[row["id"]]
            if not native_id:
                batch_jobs.mark_failed(cx, row["id"], _NEVER_SEEN, now_us)
                continue
            if _is_pending(row):
                batch_jobs.mark_submitted(cx, row["id"], native_id)
            batch_jobs.record(cx, row["id"], **_columns(statuses.get(native_id), row, now_us))
        fresh = [batch_queries.get(cx, row["id"]) for row in rows]
    return [row for row in fresh if row]


def _is_pending(row: BatchRow) -> bool:
    return str(row["state"]) == batch_jobs.PENDING


def _patience_us(scheduler: Scheduler) -> int:
    return int(max(SUBMISSION_PATIENCE_S, 2 * scheduler.timeout_s) * SECOND_US)


def _differs(row: BatchRow, native_id: str, statuses: Mapping[str, BatchStatus], now_us: int, late_us: int) -> bool:
    if not native_id:
        return int(row["created"]) < late_us
    if _is_pending(row):
        return True
    status = statuses.get(native_id)
    if status and not status.may_be(row["command"], row["log"]):
        return _is_anothers(status, row)
    columns = _columns(status, row, now_us)
    return any(columns[name] != row[name] for name in columns)


def _columns(status: BatchStatus | None, row: BatchRow, now_us: int) -> dict[str, Any]:
    """A status as columns of the table. Gone is not success: it is said, with the time at which it was noticed."""
    if status is None or _is_anothers(status, row):
        what = "does not know it any more" if status is None else "has another batch job of that number now"
        reason = f"the scheduler {what}; the launcher's log may tell how it ended"
        return {"state": GONE, "reason": reason, "exit_code": None, "started": row["started"], "ended": now_us}
    is_cancelling = row["state"] == batch_jobs.CANCELLING and not status.is_ended
    return {
        "state": batch_jobs.CANCELLING if is_cancelling else status.state,
        "reason": status.reason,
        "exit_code": status.exit_code,
        "started": row["started"] if status.started_us is None else status.started_us,
        "ended": (now_us if status.ended_us is None else status.ended_us) if status.is_ended else None,
    }


def _is_anothers(status: BatchStatus, row: BatchRow) -> bool:
    """Whether this is certainly another batch job, under a number that was this row's. The user's flags may move the output."""
    if status.may_be(row["command"], row["log"]):
        return False
    return status.command not in ("", row["command"]) or not row["sched_flags"]


def cancel(db: Database, scheduler: Scheduler, number: int) -> BatchRow:
    """Cancel the batch job with that number of ours and return its row, refreshed. Its end may take a moment longer.

    Raises:
        UnknownBatchJob. CancelFailed: it has ended, was never submitted, or the scheduler refused. PollFailed.
    """
    row = _read(db, number)
    if _is_pending(row):
        refresh(db, scheduler)
        row = _read(db, number)
    if row["ended"] is not None:
        raise CancelFailed(f"{NAME}{number} has ended already ({row['state']}).")
    if row["scheduler"] != scheduler.domain:
        raise CancelFailed(
            f"{NAME}{number} belongs to another scheduler: {row['scheduler']}, not {scheduler.domain}.",
            hint="SCHEDULER_CLASS of the settings says which scheduler is in use; or go to the host that has that one.",
        )
    if not row["scheduler_id"]:
        raise CancelFailed(f"{NAME}{number} is just being submitted.", hint="Try again in a moment.")
    status = scheduler.poll({row["scheduler_id"]: row["log"]}).get(row["scheduler_id"])
    if status and not status.may_be(row["command"], row["log"]):
        refresh(db, scheduler)
        what = f"which runs {status.command or '?'} and prints to {status.output or '?'}"
        raise CancelFailed(f"{NAME}{number} was batch job {row['scheduler_id']}; that is another one now, {what}.")
    scheduler.cancel(row["scheduler_id"])
    with db.write() as cx:
        batch_jobs.mark_cancelling(cx, number)
    refresh(db, scheduler)
    return _read(db, number)


def _read(db: Database, number: int) -> BatchRow:
    with db.read() as cx:
        return _get(batch_queries.get(cx, number), number)


def resolve(db: Database, word: str) -> BatchRow:
    """The batch job that a user means by `qlaunch7`, by our number 7 or by the scheduler's id.

    Of several with one id of the scheduler's the newest is meant: some schedulers begin to count anew.

    Raises:
        UnknownBatchJob. AmbiguousJobId: one batch job has this number of ours, and another one this id.
    """
    named = word.startswith(NAME)
    digits = word[len(NAME) :] if named else word
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else 0
    with db.read() as cx:
        ours = batch_queries.get(cx, number)
        theirs = None if named or not word else batch_queries.by_scheduler_id(cx, word)
    if ours and theirs and ours["id"] != theirs["id"]:
        raise AmbiguousJobId(
            f"{word} could be {NAME}{ours['id']} or {NAME}{theirs['id']}, which the scheduler calls {word}.",
            hint=f"Say {NAME}{ours['id']} or {NAME}{theirs['id']}.",
        )
    row = ours or theirs
    if row is None:
        raise UnknownBatchJob(f"There is no batch job {word} in this DB.", hint="`balsam ls queues --all` lists them.")
    return row


def legacy_form(row: BatchRow) -> dict[str, Any]:
    """A row as Balsam 0.3 printed it: these keys, in this order, and the scheduler's id as a number if it is one."""
    scheduler_id = row["scheduler_id"]
    return {
        "command": row["command"],
        "from_balsam": bool(row["from_balsam"]),
        "id": row["id"],
        "job_mode": row["job_mode"],
        "nodes": row["nodes"],
        "prescheduled_only": bool(row["prescheduled_only"]),
        "project": row["project"],
        "queue": row["queue"],
        "scheduler_id": int(scheduler_id) if scheduler_id.isascii() and scheduler_id.isdigit() else scheduler_id,
        "state": row["state"],
        "wall_minutes": row["wall_minutes"],
        "wf_filter": row["wf_filter"],
    }


__all__ = [
    "NAME",
    "SUBMISSION_PATIENCE_S",
    "LaunchRequest",
    "cancel",
    "legacy_form",
    "refresh",
    "render_script",
    "resolve",
    "submit_launch",
    "validated",
]
