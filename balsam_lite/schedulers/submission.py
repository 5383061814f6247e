"""The one road from a launch request to a batch job, and what became of it; for the command line, `dag`, the service.

Intent before effect: the row is in the DB before the scheduler hears of it, so a crash in between is found again by the
script's name at the next `refresh`. Nothing slow happens inside a transaction. Nothing here prints.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import spec
from ..clock import SECOND_US, SystemClock
from ..db import batch_queries, location
from ..db.batch_queries import BatchRow
from ..db.connection import Database
from ..db.store import batch_jobs
from ..errors import (
    AmbiguousJobId,
    CancelFailed,
    InvalidSpec,
    SettingsError,
    SubmitFailed,
    SubmitUncertain,
    UnknownBatchJob,
)
from ..settings import HOME_VARIABLE, Settings, home
from .base import GONE, BatchStatus, Scheduler, Submission, select

if TYPE_CHECKING:
    import jinja2


#: A row may be on its way to the scheduler for so long, or for twice what its command is given if that is longer.
SUBMISSION_PATIENCE_S = 120

#: With our number behind it: what a batch job is called, by the scheduler and by users.
_NAME = "qlaunch"
_LARGEST_COUNT = 10**7
#: Where templates lie in the DB and among the user's settings; those of Balsam 0.3 did so too.
TEMPLATES = "job-templates"
#: The templates of this package.
PACKAGED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "templates")


class LaunchRequest(NamedTuple):
    """What a user or the service asks for: one launcher on `nodes` nodes for `wall_minutes` minutes."""

    nodes: int
    wall_minutes: int
    queue: str = ""
    project: str = ""  # "" is Settings.DEFAULT_PROJECT
    job_mode: str = "serial"
    wf_filter: str = ""  # "" is: any workflow
    filter_tags: Mapping[str, str] = {}
    sched_flags: str = ""  # as typed; split like a shell does before the scheduler's command gets them
    prescheduled_only: bool = False


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
    _render(db, settings, scheduler, request, 0)  # a template that is broken costs no row
    row = _add_row(db, request, scheduler.domain)
    if before:
        before(row)
    try:
        script = _render(db, settings, scheduler, request, row["id"])
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
    return _render(db, settings, select(settings), validated(request, settings), number)


def validated(request: LaunchRequest, settings: Settings) -> LaunchRequest:
    """The request with its defaults filled in.

    Raises:
        InvalidSpec: a value makes no sense, or would break out of its line in a job script.
    """
    for field in ("nodes", "wall_minutes"):
        value = getattr(request, field)
        if type(value) is not int or not 1 <= value <= _LARGEST_COUNT:
            raise InvalidSpec(f"{field} must be a whole number from 1 to {_LARGEST_COUNT}, not {value!r}")
    if request.job_mode not in spec.JOB_MODES:
        raise InvalidSpec(f"job_mode must be one of {', '.join(spec.JOB_MODES)}, not {request.job_mode!r}")
    for field in ("queue", "project", "wf_filter", "sched_flags"):
        _check_line(field, getattr(request, field))
    for key, value in request.filter_tags.items():
        _check_line("filter_tags", key)
        _check_line(f"filter_tags: {key}", value)
    try:
        shlex.split(request.sched_flags)
    except ValueError as exc:
        raise InvalidSpec(f"sched_flags cannot be split into words ({exc}): {request.sched_flags}") from None
    return request._replace(project=request.project or settings.DEFAULT_PROJECT)


def _check_line(field: str, value: Any) -> None:
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidSpec(f"{field} must be one line of printable characters, not {value!r}")


def _add_row(db: Database, request: LaunchRequest, domain: str) -> BatchRow:
    values = {
        **request._asdict(),
        "scheduler": domain,
        "filter_tags": json.dumps(dict(request.filter_tags), sort_keys=True),
        "prescheduled_only": int(request.prescheduled_only),
    }
    with db.write() as cx:
        number = batch_jobs.add(cx, values, SystemClock.now_us())
        stem = os.path.join(db.directory, location.QSUBMIT, f"{_NAME}{number}")
        batch_jobs.set_paths(cx, number, stem + ".sh", stem + ".out")
        return _get(batch_queries.get(cx, number), number)


def _get(row: BatchRow | None, number: int) -> BatchRow:
    if row is None:
        raise UnknownBatchJob(f"There is no qlaunch{number} in this DB.")
    return row


def _submission(db: Database, row: BatchRow) -> Submission:
    return Submission(
        name=f"{_NAME}{row['id']}",
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


# --- the job script ---------------------------------------------------------------------------------------------------


class _ShellText(str):
    """Text that is one shell word as it stands; `raw` is what the shell makes of it.

    Users' templates, written for Balsam 0.3, put values into command lines bare.
    """

    raw: str

    def __new__(cls, raw: str, prefix: str = "") -> _ShellText:
        text = super().__new__(cls, prefix + (shlex.quote(raw) if raw else raw))
        text.raw = prefix + raw
        return text


def _quoted(value: Any) -> str:
    """The template filter `q`: any value as one shell word."""
    return shlex.quote(value.raw if isinstance(value, _ShellText) else str(value))


def _render(db: Database, settings: Settings, scheduler: Scheduler, request: LaunchRequest, number: int) -> str:
    import jinja2

    path = _template_path(db, settings, scheduler)
    try:
        return _load_template(path, db).render(_variables(db, request, number))
    except jinja2.TemplateSyntaxError as exc:
        raise SettingsError(f"{exc.filename or path}, line {exc.lineno}: {exc.message}") from exc
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as exc:
        raise SettingsError(f"{path}{_line_of(exc, path)}: {exc}", hint=_hint(exc)) from exc


def _template_path(db: Database, settings: Settings, scheduler: Scheduler) -> str:
    """Where the template lies: in the DB, else among the user's settings, else in this package."""
    name = os.path.expanduser(settings.JOB_TEMPLATE or scheduler.template)
    places = [os.path.join(folder, name) for folder in _template_folders(db)]
    for path in places:
        if os.path.isfile(path):
            return path
    looked = "".join(f"\n    {path}" for path in dict.fromkeys(places))
    raise SettingsError(f"JOB_TEMPLATE: there is no file {name}", hint=f"  Looked for:{looked}")


def _template_folders(db: Database) -> list[str]:
    own = [os.path.join(folder, below) for folder in (db.directory, home()) for below in ("", TEMPLATES)]
    return [*own, PACKAGED]


def copy_template(db: Database, settings: Settings, scheduler: Scheduler | None = None) -> str:
    """Copy the template in use into the DB, for the user to edit, unless one lies there. Returns the path that is in use.

    A file that is there is never replaced. Opens no transaction.

    Raises:
        SettingsError: there is no such scheduler or template. OSError: the copy cannot be written.
    """
    scheduler = scheduler or select(settings)
    source = _template_path(db, settings, scheduler)
    if not settings.JOB_TEMPLATE and not source.startswith(os.path.join(db.directory, "")):
        target = os.path.join(db.directory, TEMPLATES, scheduler.template)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        copy_new(source, target)
        return target
    return source


def copy_new(source: str, target: str) -> None:
    """Copy a file to where none is; one that is there stays. Raises OSError."""
    with open(source, "rb") as file:
        content = file.read()
    try:
        copy = open(target, "xb")
    except FileExistsError:  # somebody else was faster
        return
    try:
        with copy:
            copy.write(content)
    except OSError:
        os.unlink(target)
        raise


def _load_template(path: str, db: Database) -> jinja2.Template:
    import jinja2

    folder, name = os.path.split(path)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, *_template_folders(db)]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["q"] = _quoted
    return environment.get_template(name)


def _variables(db: Database, request: LaunchRequest, number: int) -> dict[str, Any]:
    """The variables of a job template. `project` to `pg_bin` are those of Balsam 0.3; text can be put in bare."""
    balsam_bin = _ShellText(_balsam_bin())
    filters = _ShellText(request.wf_filter, "wf-filter=") if request.wf_filter else _ShellText("consume-all")
    return {
        "project": _ShellText(request.project),
        "queue": _ShellText(request.queue),
        "nodes": request.nodes,
        "time_minutes": request.wall_minutes,
        "job_mode": _ShellText(request.job_mode),
        "wf_filter": filters,
        "balsam_bin": balsam_bin,
        "balsam_db_path": _ShellText(db.directory),
        "balsam_home": _ShellText(home() if HOME_VARIABLE in os.environ else ""),
        "pg_bin": balsam_bin,  # PostgreSQL's commands, once; templates put it on PATH
        "name": _ShellText(f"{_NAME}{number}"),
        "filter_tags": [_ShellText(f"{key}={value}") for key, value in sorted(request.filter_tags.items())],
        "sched_flags": request.sched_flags,
    }


def _balsam_bin() -> str:
    """The directory of the `balsam` command that belongs to this process."""
    candidates = [os.path.abspath(sys.argv[0])] if os.path.basename(sys.argv[0]) == "balsam" else []
    candidates += [os.path.join(os.path.dirname(sys.executable), "balsam"), shutil.which("balsam") or ""]
    for path in candidates:
        if os.path.isfile(path):
            return os.path.dirname(path)
    return os.path.dirname(sys.executable)


def _line_of(exc: BaseException, path: str) -> str:
    """`, line N` of the template, from the traceback: jinja2 puts the template's lines there."""
    line, traceback = 0, exc.__traceback__
    while traceback:
        if traceback.tb_frame.f_code.co_filename == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f", line {line}" if line else ""


def _hint(exc: BaseException) -> str:
    import jinja2

    if isinstance(exc, jinja2.UndefinedError):
        return (
            "A job template may use: project queue nodes time_minutes job_mode wf_filter balsam_bin balsam_db_path"
            " balsam_home pg_bin name filter_tags sched_flags, and the filter q."
        )
    return ""


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
                batch_jobs.mark_failed(cx, row["id"], "the process that was submitting it died before it had", now_us)
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
    return {
        "state": status.state,
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
        raise CancelFailed(f"{_NAME}{number} has ended already ({row['state']}).")
    if row["scheduler"] != scheduler.domain:
        raise CancelFailed(
            f"{_NAME}{number} belongs to another scheduler: {row['scheduler']}, not {scheduler.domain}.",
            hint="SCHEDULER_CLASS of the settings says which scheduler is in use; or go to the host that has that one.",
        )
    if not row["scheduler_id"]:
        raise CancelFailed(f"{_NAME}{number} is just being submitted.", hint="Try again in a moment.")
    status = scheduler.poll({row["scheduler_id"]: row["log"]}).get(row["scheduler_id"])
    if status and not status.may_be(row["command"], row["log"]):
        refresh(db, scheduler)
        what = f"which runs {status.command or '?'} and prints to {status.output or '?'}"
        raise CancelFailed(f"{_NAME}{number} was batch job {row['scheduler_id']}; that is another one now, {what}.")
    scheduler.cancel(row["scheduler_id"])
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
    named = word.startswith(_NAME)
    digits = word[len(_NAME) :] if named else word
    number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else 0
    with db.read() as cx:
        ours = batch_queries.get(cx, number)
        theirs = None if named or not word else batch_queries.by_scheduler_id(cx, word)
    if ours and theirs and ours["id"] != theirs["id"]:
        raise AmbiguousJobId(
            f"{word} could be {_NAME}{ours['id']} or {_NAME}{theirs['id']}, which the scheduler calls {word}.",
            hint=f"Say {_NAME}{ours['id']} or {_NAME}{theirs['id']}.",
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
