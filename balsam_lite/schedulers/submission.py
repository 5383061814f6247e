"""Submit launch requests as batch jobs and follow their states; used by the command line, `dag` and the service.

The row is written to the DB before the scheduler is called, so a batch job that is lost by a crash in between is found by its
script's name at the next `refresh`. Nothing slow happens inside a transaction. Nothing here prints.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from typing import Any

from ..core.clock import SECOND_US, SystemClock
from ..core.errors import AmbiguousJobId, CancelFailed, SubmitFailed, SubmitUncertain, UnknownBatchJob
from ..core.files import replacing, write_new
from ..core.settings import Settings
from ..db.engine import directories
from ..db.engine.connection import Connection, Database
from ..db.query import queries, takers
from ..db.query.queries import BatchRow
from ..db.store import batch_jobs
from .base import CANCELLED, GONE, QUEUED, BatchStatus, LaunchRequest, Scheduler, Submission, select, validated
from .script import NAME, render

#: Seconds that a row may be on its way to the scheduler, or twice the time limit of its command if that is longer.
SUBMISSION_TIMEOUT_S = 120
#: A batch job that is missing from valid answers of the scheduler for this long counts as gone. Listings can be incomplete:
#: squeue shows a new batch job seconds after sbatch has returned, and PBS denies one that runs (psij-python #399, #401).
ABSENCE_TIMEOUT_S = 120
#: How long to ask again about one that counts as gone: at least a minute apart, and at growing intervals.
REVIEW_PERIOD_S = 7 * 86400
_REVIEW_INTERVAL_S = 60
#: Minimum age in seconds of the recorded time of an answer about a waiting batch job, if nothing else has changed.
_POLL_NOTE_S = 60
_NOT_LISTED = "the scheduler does not list it at the moment; after two minutes without a sign it counts as gone"
_NOT_SET_UP = """{0} was chosen because its commands are on PATH, but here they reach no scheduler.
To run launches on this machine instead: export BALSAM_SCHEDULER_CLASS=LocalScheduler"""
_SEE_LOG = "the launcher's log may tell how it ended"
_NEVER_SEEN = "the scheduler does not have it: the process that submitted it died before that, or got no answer"


# --- submitting -------------------------------------------------------------------------------------------------------


def submit_launch(
    db: Database,
    settings: Settings,
    request: LaunchRequest,
    scheduler: Scheduler | None = None,
    before: Callable[[BatchRow], None] | None = None,
    again: int | None = None,
) -> BatchRow:
    """Submit a launcher and return its row. Opens two short write transactions, before and after.

    A refused submission is tried again in the same row, which counts its `tries`: the row `again`, or the newest row of exactly
    this request. `before` is called with the row, after it is written to the DB and before the scheduler is asked.

    Raises:
        InvalidSpec, SettingsError: nothing was written. SubmitFailed: the row stays, with the reason. SubmitUncertain: the row
            stays as it was before; `refresh` finds the batch job by its name, or gives it up.
    """
    scheduler = scheduler or select(settings)
    request = validated(request, settings)
    render(db, settings, scheduler, request, 0)  # a broken template must not leave a row
    row = _add_row(db, request, scheduler.domain, again)
    if before:
        before(row)
    try:
        script = render(db, settings, scheduler, request, row["id"])
        _write_script(row["command"], script, 0o755 if directories.is_shared_read(db.directory) else 0o700)
        native_id = scheduler.submit(_submission(db, row))
    except SubmitUncertain:
        raise
    except (OSError, SubmitFailed) as exc:
        reason = exc.message if isinstance(exc, SubmitFailed) else str(exc)
        with db.write() as cx:
            batch_jobs.mark_failed(cx, row["id"], reason, SystemClock.now_us())
        if isinstance(exc, SubmitFailed):
            if not settings.SCHEDULER_CLASS and not scheduler.responds():
                exc.hint = _NOT_SET_UP.format(scheduler.name)
            raise
        raise SubmitFailed(f"The job script {row['command']} cannot be written: {exc}") from exc
    with db.write() as cx:
        batch_jobs.mark_submitted(cx, row["id"], *_id_and_cluster(native_id))
        return _get(queries.batch_job(cx, row["id"]), row["id"])


def render_script(db: Database, settings: Settings, request: LaunchRequest, number: int) -> str:
    """Return the job script that `submit_launch` would submit as `qlaunch<number>`. Writes nothing.

    Raises:
        InvalidSpec. SettingsError: the template is missing or broken, with file, line and reason.
    """
    return render(db, settings, select(settings), validated(request, settings), number)


def _add_row(db: Database, request: LaunchRequest, domain: str, again: int | None) -> BatchRow:
    values = {
        **request._asdict(),
        "scheduler": domain,
        "filter_tags": json.dumps(dict(request.filter_tags), sort_keys=True),
        "prescheduled_only": int(request.prescheduled_only),
        "partitions": json.dumps([part.as_fields() for part in request.partitions]),
        "optional_params": json.dumps(dict(request.optional_params), sort_keys=True),
    }
    with db.write() as cx:
        now_us = SystemClock.now_us()
        number = again or (queries.newest_batch_job(cx, values) or {"id": 0})["id"]
        values["environment"] = json.dumps(batch_jobs.kept_variables(os.environ))
        if not batch_jobs.retry(cx, number, values, now_us):
            number = batch_jobs.add(cx, values, now_us)
        stem = os.path.join(db.directory, directories.QSUBMIT, f"{NAME}{number}")
        batch_jobs.set_paths(cx, number, stem + ".sh", stem + ".out")
        return _get(queries.batch_job(cx, number), number)


def _get(row: BatchRow | None, number: int) -> BatchRow:
    if row is None:
        raise UnknownBatchJob(f"There is no qlaunch{number} in this DB.")
    return row


def _submission(db: Database, row: BatchRow) -> Submission:
    return Submission(
        name=f"{NAME}{row['id']}",
        script=row["command"],
        output=row["log"],
        directory=os.path.join(db.directory, directories.QSUBMIT),
        nodes=row["nodes"],
        minutes=row["wall_minutes"],
        queue=row["queue"],
        project=row["project"],
        flags=tuple(shlex.split(row["sched_flags"])),
    )


def _write_script(path: str, text: str, mode: int) -> None:
    """Write an executable file with that mode, less umask, completely or not at all.

    A link at that path is refused, neither followed nor replaced.
    """
    try:
        os.mkdir(os.path.dirname(path))  # not its parents: that would create a DB again that was removed
    except FileExistsError:
        pass
    if os.path.islink(path):
        raise FileExistsError(f"{path} is a link")
    with replacing(path) as temporary:
        write_new(temporary, text, mode)
        os.chmod(temporary, os.stat(temporary).st_mode | 0o500)


# --- afterwards -------------------------------------------------------------------------------------------------------


def refresh(db: Database, scheduler: Scheduler, now_us: int | None = None, number: int | None = None) -> list[BatchRow]:
    """Ask the scheduler about its batch jobs and record what changed. Return the rows that had not ended, or have not now.

    A batch job that is missing from an answer has not ended: it counts as gone only after ABSENCE_TIMEOUT_S of such answers.
    The scheduler is asked about it again for REVIEW_PERIOD_S, at growing intervals: it is open again if listed, or ends as
    the accounting then reports. Opens separate transactions; a write transaction only if something changed.

    Args:
        now_us: for tests.
        number: a row to ask about in any case.

    Raises:
        PollFailed: nothing is known, so nothing was changed.
    """
    now_us = SystemClock.now_us() if now_us is None else now_us
    with db.read() as cx:
        rows = queries.open_batch_jobs(cx, scheduler.domain)
        over = queries.batch_jobs_presumed_over(cx, scheduler.domain, now_us - REVIEW_PERIOD_S * SECOND_US)
    rows += [row for row in over if row["id"] == number or _is_due(row, now_us)]
    found = {row["id"]: scheduler.find(_submission(db, row), row["created"]) for row in rows if not row["scheduler_id"]}
    ids = {row["id"]: _native_id(row) or found.get(row["id"]) or "" for row in rows}
    asked = {ids[row["id"]]: row["log"] for row in rows if ids[row["id"]]}
    statuses = scheduler.poll(asked) if asked else {}
    changes = []
    for row in rows:
        columns = _columns(statuses.get(ids[row["id"]]), row, now_us, _patience_us(scheduler))
        is_found = bool(ids[row["id"]]) and not row["scheduler_id"]
        if (
            is_found
            or any(columns[name] != row[name] for name in columns)
            or _is_old(row, statuses.get(ids[row["id"]]), now_us)
        ):
            changes.append((row, is_found, columns))
    if changes:
        with db.write() as cx:
            for row, is_found, columns in changes:
                if is_found:
                    batch_jobs.mark_submitted(cx, row["id"], *_id_and_cluster(ids[row["id"]]))
                columns = _with_jobs_left(cx, columns, row, ids[row["id"]])
                polled = now_us if ids[row["id"]] in statuses else None
                batch_jobs.record(cx, row["id"], **columns, polled=polled, was_absent=None if is_found else row["absent"])
            fresh = [queries.batch_job(cx, row["id"]) for row in rows]
        pairs = [(row, now) for row, now in zip(rows, fresh) if now]
    else:
        pairs = [(row, row) for row in rows]
    return [now for row, now in pairs if row["ended"] is None or now["ended"] is None]


def _is_old(row: BatchRow, status: BatchStatus | None, now_us: int) -> bool:
    """Return whether to store the time of an answer that tells nothing new about a waiting batch job."""
    is_waiting = status is not None and status.state == QUEUED
    return is_waiting and (row["polled"] is None or now_us - row["polled"] >= _POLL_NOTE_S * SECOND_US)


def _is_due(row: BatchRow, now_us: int) -> bool:
    """Return whether to ask again about a batch job that counts as over."""
    return bool(now_us - row["absent"] >= max(_REVIEW_INTERVAL_S * SECOND_US, (row["absent"] - row["ended"]) // 4))


def _is_pending(row: BatchRow) -> bool:
    return str(row["state"]) == batch_jobs.PENDING


def _patience_us(scheduler: Scheduler) -> int:
    return int(max(SUBMISSION_TIMEOUT_S, 2 * scheduler.timeout_s) * SECOND_US)


def _native_id(row: BatchRow) -> str:
    """Return the id as the scheduler's module knows it; see `Scheduler`."""
    return ";".join(filter(None, (row["scheduler_id"], row["cluster"])))


def _id_and_cluster(native_id: str) -> tuple[str, str]:
    scheduler_id, _, cluster = native_id.partition(";")
    return scheduler_id, cluster


def _columns(status: BatchStatus | None, row: BatchRow, now_us: int, patience_us: int) -> dict[str, Any]:
    """Return a status as columns of the table. Gone is not success: it is reported, with the time at which it was noticed."""
    columns = {name: row[name] for name in ("state", "reason", "exit_code", "started", "ended", "absent", "expected_start")}
    if status is None:
        return {**columns, **_absence(row, now_us, patience_us)}
    if _is_anothers(status, row):
        ended = now_us if row["ended"] is None else row["ended"]
        reason = f"the scheduler has another batch job of that number now; {_SEE_LOG}"
        return {**columns, "state": GONE, "reason": reason, "exit_code": None, "ended": ended, "absent": None}
    if not _is_ours(status, row):
        return {**columns, "absent": None if row["ended"] is None else now_us}
    is_cancelling = row["state"] == batch_jobs.CANCELLING and not status.is_ended
    return {
        "state": batch_jobs.CANCELLING if is_cancelling else status.state,
        "reason": status.reason,
        "exit_code": status.exit_code,
        "started": row["started"] if status.started_us is None else status.started_us,
        "ended": (now_us if status.ended_us is None else status.ended_us) if status.is_ended else None,
        "absent": None,
        "expected_start": status.expected_us,
    }


def _with_jobs_left(cx: Connection, columns: dict[str, Any], row: BatchRow, native_id: str) -> dict[str, Any]:
    """Return the columns; if the batch job ended by itself, the reason includes the jobs that its launchers left."""
    if columns["ended"] is None or columns["state"] in (CANCELLED, GONE) or not native_id:
        return columns
    left = takers.left_in(cx, _id_and_cluster(native_id)[0], row["created"])
    return {**columns, "reason": "; ".join(filter(None, (columns["reason"], left)))}


def _absence(row: BatchRow, now_us: int, patience_us: int) -> dict[str, Any]:
    """Return the columns that change when a valid answer lacks a batch job; after some time of that it counts as over."""
    if row["ended"] is not None:
        return {"absent": now_us}
    since_us = now_us if row["absent"] is None else row["absent"]
    is_over = now_us - since_us >= ABSENCE_TIMEOUT_S * SECOND_US
    over = {"exit_code": None, "ended": now_us, "absent": now_us}
    if row["scheduler_id"]:
        if is_over:
            return {**over, "state": GONE, "reason": f"the scheduler does not know it any more; {_SEE_LOG}"}
        return {"reason": _NOT_LISTED, "absent": since_us}
    if is_over and now_us - row["created"] > patience_us:
        return {**over, "state": batch_jobs.SUBMISSION_FAILED, "reason": _NEVER_SEEN}
    return {"absent": since_us}


def _is_ours(status: BatchStatus, row: BatchRow) -> bool:
    """Return whether this is the row's batch job, as far as the scheduler reports. The user's flags may move the output."""
    return status.may_be(row["command"], row["log"]) or (bool(row["sched_flags"]) and status.name == f"{NAME}{row['id']}")


def _is_anothers(status: BatchStatus, row: BatchRow) -> bool:
    """Return whether this is certainly another batch job, under a number that was this row's."""
    if _is_ours(status, row):
        return False
    return status.command not in ("", row["command"]) or not row["sched_flags"]


def cancel(db: Database, scheduler: Scheduler, number: int) -> BatchRow:
    """Cancel the batch job with that number of ours and return its row, refreshed. Its end may take a moment longer.

    Raises:
        UnknownBatchJob. CancelFailed: it has ended, was never submitted, or the scheduler refused. PollFailed.
    """
    row = _read(db, number)
    if _is_pending(row) or (row["absent"] is not None and row["ended"] is not None):
        refresh(db, scheduler, number=number)
        row = _read(db, number)
    if row["ended"] is not None:
        raise CancelFailed(f"{NAME}{number} has ended already ({row['state']}).")
    if row["scheduler"] != scheduler.domain:
        raise CancelFailed(
            f"{NAME}{number} belongs to another scheduler: {row['scheduler']}, not {scheduler.domain}.",
            hint="SCHEDULER_CLASS of the settings sets which scheduler is in use; or go to the host that has that one.",
        )
    if not row["scheduler_id"]:
        raise CancelFailed(f"{NAME}{number} is just being submitted.", hint="Try again in a moment.")
    native_id = _native_id(row)
    status = scheduler.poll({native_id: row["log"]}).get(native_id)
    if status and not _is_ours(status, row):
        refresh(db, scheduler)
        what = f"which runs {status.command or '?'} and prints to {status.output or '?'}"
        raise CancelFailed(f"{NAME}{number} was batch job {row['scheduler_id']}; that is another one now, {what}.")
    scheduler.cancel(native_id)
    with db.write() as cx:
        batch_jobs.mark_cancelling(cx, number)
    refresh(db, scheduler)
    return _read(db, number)


def _read(db: Database, number: int) -> BatchRow:
    with db.read() as cx:
        return _get(queries.batch_job(cx, number), number)


def resolve(db: Database, word: str) -> BatchRow:
    """Return the batch job that a user means by `qlaunch7`, by our number 7 or by the scheduler's id.

    If several have the same scheduler id, the newest is meant: some schedulers restart their numbering.

    Raises:
        UnknownBatchJob. AmbiguousJobId: one batch job has this number of ours, and another one this id.
    """
    named = word.startswith(NAME)
    digits = word[len(NAME) :] if named else word
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else 0
    with db.read() as cx:
        ours = queries.batch_job(cx, number)
        theirs = None if named or not word else queries.batch_job_with_scheduler_id(cx, word)
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
    """Return a row as Balsam 0.3 printed it: these keys, in this order, and the scheduler's id as a number if it is one."""
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
