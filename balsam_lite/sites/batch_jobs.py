"""The batch jobs of a site, with the field names of Balsam 0.7: for `local.LocalSite`. `schedulers` submits and stores them.

States are those of Balsam 0.7; the exact end of a batch job is in `status_info`. The scheduler is asked before its batch jobs
are returned; if it does not answer, or its answer cannot be stored, a warning is issued and the stored values are returned.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core import states
from ..core.errors import CancelFailed, DatabaseError, InvalidSpec, PollFailed, UnknownBatchJob, UnknownField
from ..core.settings import Settings, SettingsWarning
from ..db.engine.connection import Connection, Database
from ..db.query import filters, queries
from ..db.query.catalogue import text_of
from ..db.query.demand import Scope
from ..db.query.fields import BATCH_JOB_OF_SITE, BATCH_JOB_STATES
from ..db.query.filters import Conditions
from ..db.query.queries import BatchRow
from ..db.query.select import batch_job_rows, job_ids
from ..db.query.takers import NodeKind, Taker
from ..db.store import batch_jobs, claims
from ..launcher.exec import hardware
from ..schedulers import base, submission
from ..schedulers.base import LaunchRequest, Partition, validated
from ..schedulers.submission import render_script, submit_launch

Row = dict[str, Any]

PENDING_SUBMISSION, QUEUED, RUNNING, FINISHED = "pending_submission", "queued", "running", "finished"
SUBMIT_FAILED, PENDING_DELETION = "submit_failed", "pending_deletion"
STATES = (PENDING_SUBMISSION, QUEUED, RUNNING, FINISHED, SUBMIT_FAILED, PENDING_DELETION)
#: States of batch jobs that have not ended.
ACTIVE_STATES = (PENDING_SUBMISSION, QUEUED, RUNNING, PENDING_DELETION)

_REQUIRED = ("num_nodes", "wall_time_min", "job_mode")
#: Fields that a new batch job may be given, with their defaults.
_DEFAULTS: Row = {
    "project": "", "queue": "", "wf_filter": "", "filter_tags": {}, "partitions": (), "optional_params": {}, "sched_flags": "",
}  # fmt: skip


class SchedulerWarning(SettingsWarning):
    """The scheduler did not answer, or its answer cannot be stored; the batch jobs that are shown may be out of date."""


# --- reading ----------------------------------------------------------------------------------------------------------


def select(db: Database, where: Mapping[str, Any] = {}, order: str = "", start: int = 0, stop: int | None = None) -> list[Row]:
    """Return the batch jobs that match, as `interface.SiteInterface.select`. Asks the scheduler for changes first.

    Raises:
        UnknownField, InvalidSpec.
    """
    only = Conditions(where, BATCH_JOB_OF_SITE)
    refresh(db)
    with db.read() as cx:
        found = list(map(_as_row, batch_job_rows(cx, only)))
    return _ordered(found, order)[start:stop]


def count(db: Database, where: Mapping[str, Any] = {}) -> int:
    """Return the number of batch jobs that match."""
    return len(select(db, where))


def refresh(db: Database) -> None:
    """Ask the scheduler for changes of its batch jobs and store them; warn if it does not answer, or they cannot be stored."""
    try:
        submission.refresh(db, base.select(Settings.load(db.directory)))
    except PollFailed as exc:
        warnings.warn(f"Scheduler is not reachable: {exc}", SchedulerWarning, stacklevel=3)
    except DatabaseError as exc:  # others' DBs can often only be read
        text = f"The states of batch jobs are as they were last noted, because newer ones cannot be: {exc.message}"
        warnings.warn(text, SchedulerWarning, stacklevel=3)


def _as_row(row: BatchRow) -> Row:
    native_id = row["scheduler_id"]
    return {
        "id": row["id"],
        "scheduler_id": int(native_id) if native_id.isascii() and native_id.isdigit() else native_id or None,
        "project": row["project"],
        "queue": row["queue"],
        "num_nodes": row["nodes"],
        "wall_time_min": row["wall_minutes"],
        "job_mode": row["job_mode"],
        "filter_tags": json.loads(row["filter_tags"]),
        "partitions": json.loads(row["partitions"]) or None,
        "optional_params": json.loads(row["optional_params"]),
        "state": BATCH_JOB_STATES.get(row["state"], FINISHED),
        "status_info": _status_info(row),
        "start_time": row["started"],
        "end_time": row["ended"],
        **{name: row[name] for name in _KEPT},
        "scheduler_state": row["state"],
        "prescheduled_only": bool(row["prescheduled_only"]),
        "from_balsam": bool(row["from_balsam"]),
    }


#: Columns that keep their names. Fields that Balsam 0.7 names differently are there under both names.
_KEPT = (
    "scheduler", "cluster", "nodes", "wall_minutes", "wf_filter", "sched_flags", "command", "reason", "created", "exit_code",
    "log", "tries", "expected_start", "polled",
)  # fmt: skip


def _status_info(row: BatchRow) -> Row:
    failed = row["state"] == batch_jobs.SUBMISSION_FAILED
    found = {
        "error": row["reason"] if failed else "",
        "reason": "" if failed else row["reason"],
        "ended_as": row["state"] if row["ended"] is not None and not failed else "",
        "exit_code": row["exit_code"],
        "tries": row["tries"] if row["tries"] > 1 else None,
        "cluster": row["cluster"],
        "submit_script": row["command"],
        "log": row["log"],
    }
    return {name: value for name, value in found.items() if value not in ("", None)}


def _ordered(rows: list[Row], order: str) -> list[Row]:
    field = order.lstrip("-") or "id"
    if field not in ("id", "state", "queue", "num_nodes", "wall_time_min", "start_time", "end_time"):
        raise UnknownField(f"Batch jobs cannot be sorted by {field!r}.")
    # A missing time comes last, ascending or descending.
    known, unknown = [row for row in rows if row[field] is not None], [row for row in rows if row[field] is None]
    return sorted(known, key=lambda row: row[field], reverse=order.startswith("-")) + unknown


# --- changing ---------------------------------------------------------------------------------------------------------


def create(db: Database, rows: Sequence[Row]) -> list[Row]:
    """Submit batch jobs, at once. All are checked, and their job scripts rendered, before the first one is submitted.

    If one will probably run nothing, `status_info` has the reasons as `warnings`; they are not stored.

    Raises:
        UnknownField, InvalidSpec, SettingsError: nothing was submitted. SubmitFailed: this one was refused, the previous ones
        are in the queue.
    """
    settings = Settings.load(db.directory)
    requests = []
    for number, row in enumerate(rows):
        try:
            requests.append(validated(_request(row), settings))
            render_script(db, settings, requests[-1], 0)
        except InvalidSpec as exc:
            if len(rows) == 1:
                raise
            raise InvalidSpec(f"Batch job {number + 1} of {len(rows)}: {exc.message}", hint=exc.hint) from exc
    return [_submitted(db, settings, request) for request in requests]


def script(db: Database, row: Row) -> str:
    """Return the job script that `create` would submit for this row. Raises the same errors, and submits nothing."""
    settings = Settings.load(db.directory)
    with db.read() as cx:
        number = queries.next_batch_job(cx)
    return render_script(db, settings, validated(_request(row), settings), number)


def _submitted(db: Database, settings: Settings, request: LaunchRequest) -> Row:
    scheduler = base.select(settings)
    found = warnings_for(db, settings, request, scheduler.name)  # before the launcher can have taken any jobs
    row = _as_row(submit_launch(db, settings, request, scheduler))
    if found:
        row["status_info"]["warnings"] = found
    return row


def _request(row: Row) -> LaunchRequest:
    unknown = sorted(set(row) - {*_REQUIRED, *_DEFAULTS})
    if unknown:
        raise UnknownField(f"A batch job cannot be given: {', '.join(unknown)}")
    missing = [name for name in _REQUIRED if row.get(name) is None]
    if missing:
        raise InvalidSpec(f"A batch job needs {', '.join(missing)}")
    given: Row = {name: default if row.get(name) is None else row[name] for name, default in _DEFAULTS.items()}
    for name in ("filter_tags", "optional_params"):
        if not isinstance(given[name], Mapping):
            raise InvalidSpec(f"{name} must be a mapping, not {given[name]!r}")
    return LaunchRequest(
        row["num_nodes"],
        row["wall_time_min"],
        given["queue"],
        given["project"],
        row["job_mode"],
        wf_filter=given["wf_filter"],
        filter_tags=given["filter_tags"],
        sched_flags=given["sched_flags"],
        partitions=[Partition.from_fields(part) for part in given["partitions"]],
        optional_params=given["optional_params"],
    )


def update(db: Database, changes: Iterable[Mapping[str, Any]]) -> int:
    """Cancel batch jobs: each change is {"id": …, "state": "pending_deletion"}. No other field can be changed.

    Raises:
        UnknownField, InvalidSpec, UnknownBatchJob: none was cancelled. CancelFailed, PollFailed: this one was not cancelled.
    """
    changes = list(changes)
    for change in changes:
        unknown = sorted(set(change) - {"id", "state"})
        if unknown:
            raise UnknownField(f"Of a batch job {', '.join(unknown)} cannot be changed.")
        if change.get("state") != PENDING_DELETION:
            raise InvalidSpec(f"A batch job can only be put into the state {PENDING_DELETION}, not {change.get('state')!r}")
    numbers = [change["id"] for change in changes]
    with db.read() as cx:
        missing = [number for number in numbers if queries.batch_job(cx, number) is None]
    if missing:
        raise UnknownBatchJob(f"There is no batch job {', '.join(map(str, missing))} in this DB.")
    _cancel(db, numbers)
    return len(numbers)


def delete(db: Database, where: Mapping[str, Any]) -> Row:
    """Cancel all matching batch jobs that have not ended; their rows stay. Return {"deleted": how many, "held": 0}.

    Raises:
        UnknownField, InvalidSpec, CancelFailed, PollFailed.
    """
    numbers = [row["id"] for row in select(db, where) if row["state"] in ACTIVE_STATES]
    _cancel(db, numbers)
    return {"deleted": len(numbers), "held": 0}


def _cancel(db: Database, numbers: Iterable[int]) -> None:
    """Cancel all of these batch jobs, continuing after one that fails; raise the first error at the end."""
    scheduler = base.select(Settings.load(db.directory))
    trouble: list[CancelFailed | PollFailed] = []
    for number in numbers:
        try:
            submission.cancel(db, scheduler, number)
        except (CancelFailed, PollFailed) as exc:
            trouble.append(exc)
    if trouble:
        raise trouble[0]


# --- why a launch will probably run nothing ---------------------------------------------------------------------------


#: States of jobs that a launcher will process.
WAITING = tuple(state for state in states.STATES if state not in (*states.END_STATES, states.RUNNING))


def warnings_for(db: Database, settings: Settings, request: LaunchRequest, scheduler_name: str) -> list[str]:
    """Return the warnings about a launch for the waiting jobs. Detects the GPUs of this host if the launch runs here."""
    whole = Partition(request.job_mode, request.nodes)
    found: list[str] = []
    matches = False
    for part in request.partitions or (whole,):
        tags = {**request.filter_tags, **part.filter_tags}
        with db.read() as cx:
            matches = matches or _has_any(cx, request.wf_filter, tags)
            workflows = claims.matching_workflows(cx, request.wf_filter) if request.wf_filter else None
            waiting = claims.waiting(cx, claims.Filter(workflows, serial_only=False, tags=tuple(tags.items())))
        gpus = _gpus_per_node(settings, request.nodes, scheduler_name) if waiting else None
        kind = NodeKind(part.num_nodes, None, gpus)
        taker = Taker("", Scope(), (kind,), serial_only=part.job_mode == "serial", launch=0)
        for shape, jobs, _ in waiting:
            obstacles = taker.size_obstacles(shape)
            found += [f"{jobs} matching job(s): {text_of(one, taker.what)}." for one in obstacles]
    found += _missing_mpi4py(request, scheduler_name)
    return list(dict.fromkeys(found if matches else ["No waiting job matches this launch.", *found]))


def _has_any(cx: Connection, wf_filter: str, tags: Mapping[str, str]) -> bool:
    where: dict[str, Any] = {"state": list(WAITING), "tags": dict(tags)}
    if wf_filter:
        where.update(filters.condition_on_text("workflow", wf_filter))
    return bool(job_ids(cx, where, most=1))


def _missing_mpi4py(request: LaunchRequest, scheduler_name: str) -> list[str]:
    if request.nodes == 1 or request.job_mode == "mpi" or request.partitions or scheduler_name == "LocalScheduler":
        return []
    import sys
    from importlib.util import find_spec

    if find_spec("mpi4py") is not None:
        return []
    return [
        f"A {request.job_mode} launcher on several nodes needs mpi4py, which {sys.executable} does not have here. "
        "Without it there, it fails at its start: `pip install mpi4py`, or load the module that has it in the job template."
    ]


def _gpus_per_node(settings: Settings, nodes: int, scheduler_name: str) -> float | None:
    """Return the GPUs of each node; None if only the nodes themselves know."""
    if settings.GPUS_PER_NODE >= 0:
        return settings.GPUS_PER_NODE
    if scheduler_name != "LocalScheduler":
        return None
    return -(-len(hardware.gpus()) // nodes)  # distributed evenly; the first nodes have one more if a remainder is left
