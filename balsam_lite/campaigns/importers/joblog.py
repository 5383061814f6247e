"""Read the joblog of GNU parallel: each command that it ran becomes a job, and each line one run of it.

Format (GNU parallel 20221122, parallel(1), --joblog): columns separated by tabs; the command is the rest of the line, with NUL
in the place of line breaks. With --resume-failed and --retries a command has several lines, of the same number. A command that
--timeout has ended has the exit value -1.
"""

from __future__ import annotations

import os
import shlex
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ...core import causes, states
from ...core.errors import InvalidSpec
from ...db.store import runs
from ...db.store.merge import ForeignEvent, ForeignJob
from ..job_rows import COMMANDS_APP
from .source_content import SourceContent, SourceOptions, origin_of

_HEADER = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand"
_NAMESPACE = uuid.UUID("5f0c3a3e-1f0e-4b65-9d2f-9d4b8f1c7a55")
_LOCAL = ":"
#: Cause of the failure of a command that --timeout has ended.
_TIMEOUT = "--timeout"


class JoblogLine(NamedTuple):
    """A run that a joblog records."""

    number: int  # of the command
    host: str
    started_us: int
    ended_us: int
    return_code: int  # negative: the signal that ended it
    is_timeout: bool
    command: str


def read(path: str, options: SourceOptions) -> SourceContent:
    """Return the content of a joblog. Its jobs run in `options.directory`, by default the current one."""
    directory = os.path.abspath(options.directory or os.curdir)
    attempts: dict[tuple[int, str], list[JoblogLine]] = {}
    for line in _lines(path):
        attempts.setdefault((line.number, line.command), []).append(line)
    jobs = _jobs(attempts.values(), directory, options.workflow or "joblog")
    return SourceContent(jobs, [COMMANDS_APP], origin_of("joblog", path, directory), len(attempts))


def _jobs(found: Iterable[list[JoblogLine]], directory: str, workflow: str) -> Iterator[ForeignJob]:
    for number, attempts in enumerate(sorted(found, key=lambda one: one[0].started_us), 1):
        yield _job(number, sorted(attempts, key=lambda one: one.started_us), directory, workflow)


def _lines(path: str) -> Iterator[JoblogLine]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for number, text in enumerate(file, 1):
                if text.rstrip("\r\n") != _HEADER:
                    yield _line(f"{path}, line {number}", text.rstrip("\n"))
                elif number == 1:
                    continue
                # A log that was continued (--joblog +FILE) may have the header again.
            if not file.tell():
                raise InvalidSpec(f"{path} is empty; a joblog has a line of column names.")
    except OSError as exc:
        raise InvalidSpec(f"The joblog {path} cannot be read: {exc.strerror}") from None


def _line(where: str, text: str) -> JoblogLine:
    parts = text.split("\t", 8)
    try:
        number, host, started, seconds, _, _, code, signal, command = parts
        start_us, code_, signal_ = round(float(started) * 1e6), int(code), int(signal)
        end_us = start_us + round(float(seconds) * 1e6)
        line = JoblogLine(int(number), host, start_us, end_us, -signal_ if signal_ else code_, code_ == -1, command)
        if line.number < 1 or end_us < start_us or not 0 < start_us < 2**53 or not command:
            raise ValueError
    except (ValueError, OverflowError):
        if where.endswith(" 1"):
            raise InvalidSpec(f"{where}: this is no joblog of GNU parallel; it begins with the line {_HEADER!r}") from None
        raise InvalidSpec(f"{where}: this is no line of a joblog: {text[:80]!r}") from None
    try:
        command.encode()
    except UnicodeEncodeError:
        raise InvalidSpec(f"{where}: the command is not valid UTF-8: {command[:80]!a}") from None
    return line._replace(command=command.replace("\0", "\n"))


def _job(number: int, attempts: list[JoblogLine], directory: str, workflow: str) -> ForeignJob:
    first, last = attempts[0], attempts[-1]
    state, events = states.CREATED, []
    for line in attempts:
        end = states.RUN_TIMEOUT if line.is_timeout else states.RUN_ERROR if line.return_code else states.RUN_DONE
        events += [
            ForeignEvent(line.started_us, state, states.RUNNING, "" if line.host == _LOCAL else f"on {line.host}"),
            ForeignEvent(line.ended_us, states.RUNNING, end, _said(line)),
        ]
        state = states.FAILED if line.return_code else states.JOB_FINISHED
        events.append(ForeignEvent(line.ended_us, end, state))
    fields: dict[str, Any] = {
        "name": f"{workflow}-{first.number}",
        "workflow": workflow,
        "application": COMMANDS_APP["name"],
        "args": shlex.quote(first.command),
        "user_workdir": directory,
        "state": state,
        "created": first.started_us,
        "origin": f"run by GNU parallel as number {first.number}",
        "attempt": len(attempts),
        "return_code": last.return_code,
    }
    failure = "" if state != states.FAILED else _TIMEOUT if last.is_timeout else causes.of_exit(last.return_code)
    job_id = uuid.uuid5(_NAMESPACE, f"{first.number}\0{first.started_us}\0{first.command}")
    return ForeignJob(number, str(job_id), fields, failure, events, [_run(n, one) for n, one in enumerate(attempts, 1)])


def _said(line: JoblogLine) -> str:
    if line.is_timeout:
        return f"{_TIMEOUT} of GNU parallel"
    return causes.of_exit(line.return_code) if line.return_code else ""


def _run(attempt: int, line: JoblogLine) -> dict[str, Any]:
    return {
        "attempt": attempt,
        "nodes": "" if line.host == _LOCAL else line.host,
        "started": line.started_us,
        "ended": line.ended_us,
        "return_code": line.return_code,
        "cause": runs.TIME_LIMIT if line.is_timeout else "",
    }
