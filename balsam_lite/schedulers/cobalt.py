"""Cobalt, the batch scheduler of Argonne's Theta and Cooley: qsub, qstat, qdel, and the log that it writes.

Facts are from the source and the man pages of Cobalt 1.0.33 (github.com/ido/cobalt): clients/POSIX/{qsub,qstat,qdel}.py,
lib/client_utils.py, lib/Components/cqm.py. Nodes, time, queue and project are lines of the job script, `#COBALT …`, as
they always were: command-line options would override them, and so override what a user has written there.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import time
from collections.abc import Collection, Iterator, Mapping, Sequence

from ..core.clock import SECOND_US
from ..core.errors import SubmitFailed
from ..core.settings import Settings
from ..core.subprocess_run import Completed
from . import base
from .base import BatchStatus, CommandScheduler, Submission

#: The columns of a query. Those without blanks come first, so that unusual text at the end of a line does not affect them.
_COLUMNS = ("JobID", "State", "StartTime", "JobName", "Command")

#: Every state that qstat shows, with its meaning here; lib/Components/cqm.py. `done` is not among them: such a batch job
#: is about to leave the list, and its log reports how it ended.
_STATES = {
    "queued": (base.QUEUED, ""),
    "starting": (base.QUEUED, "it is being started"),
    "user_hold": (base.QUEUED, "held by its owner (user_hold)"),
    "admin_hold": (base.QUEUED, "held by the administrators (admin_hold)"),
    "dep_hold": (base.QUEUED, "it waits for other batch jobs (dep_hold)"),
    "dep_fail": (base.QUEUED, "a batch job that it waits for has failed, so it will not start (dep_fail)"),
    "maxrun_hold": (base.QUEUED, "as many batch jobs run as are allowed to at once (maxrun_hold)"),
    "preempted": (base.QUEUED, "it had to make room and will go on later (preempted)"),
    "running": (base.RUNNING, ""),
    "preempting": (base.RUNNING, "it has to make room (preempting)"),
    "killing": (base.RUNNING, "it is being ended (killing)"),
    "exiting": (base.RUNNING, "it has ended and is being cleaned up (exiting)"),
}
_DONE = "done"

#: The format of all dates in Cobalt (client_utils.sec_to_str). The zone is always UTC.
_DATE = re.compile(r"\w{3} (\w{3} \d\d \d\d:\d\d:\d\d \d{4}) \+0000 \(UTC\)")
_EXIT_CODE = re.compile(r"task completed normally with an exit code of (-?\d+|None)")
_DELETED = re.compile(r"user delete requested(?:.* by user (\S+))?")
_START_VARIABLE = re.compile(r"\bCOBALT_STARTTIME=(\d{1,12})\b")
_TIME_IS_UP = "maximum execution time exceeded"

_CONFIG_VARIABLE, _CONFIG = "COBALT_CONFIG_FILES", "/etc/cobalt.conf"
#: A log has a few kilobytes. If another, larger file is in its place, only the end is read.
_LOG_BYTES = 1024 * 1024


class CobaltScheduler(CommandScheduler):
    """See `base.Scheduler`. Reads Cobalt's configuration file, to distinguish this Cobalt's batch jobs from another's."""

    def __init__(self, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        adapter = CobaltAdapter(base.user_name(), *base.commands_of(settings))
        super().__init__(adapter, timeout_s=settings.SCHEDULER_TIMEOUT_S)
        self.domain = "@".join(filter(None, (self.name, _service(environ))))

    def submit(self, submission: Submission) -> str:
        # The script is started by a login shell with -c "exec SCRIPT" (lib/ProcessGroup.py), in which nothing is quoted.
        if shlex.quote(submission.script) != submission.script:
            raise SubmitFailed(
                f"Cobalt cannot start {submission.script}: there is a character in its path that means something to shells.",
                hint="Move the DB to a path of plain letters and digits.",
            )
        return super().submit(submission)

    def find(self, submission: Submission, since_us: int) -> str | None:
        """Find also a batch job that has ended: qsub writes the id into the log."""
        written = parse_submission(_read(log_path(submission.output)), since_us - base.CLOCK_SLACK_US)
        return written or super().find(submission, since_us)


class CobaltAdapter(base.Adapter):
    """See `base.Adapter`. Cobalt has no command that reports ended batch jobs, but writes a log of each."""

    name = "CobaltScheduler"
    template = "cobalt.tmpl"
    commands = ("qsub", "qstat", "qdel")

    def __init__(self, user: str, *commands: str) -> None:
        super().__init__(*commands)
        self._user = user

    def submit_argv(self, submission: Submission) -> list[str]:
        # Both outputs are opened for appending (lib/ProcessGroup.py, 'a'), so that they can be one file.
        return [
            self._submit,
            *("--mode", "script", "--cwd", submission.directory, "--jobname", submission.name),
            *("-o", submission.output, "-e", submission.output, "--debuglog", log_path(submission.output)),
            *submission.flags,
            submission.script,
        ]

    def parse_id(self, stdout: str) -> str:
        """Return the number, which qsub prints on a separate line; notes of the site may precede or follow it.

        >>> CobaltAdapter("me").parse_id("Job routed to queue \\"debug\\"\\n278079\\n")
        '278079'
        """
        for pattern in (r"^\s*(\d+)\s*$", r"^\s*(\d+)\s", r"(\d+)\s*\Z"):
            found = re.search(pattern, stdout, re.MULTILINE | re.ASCII)
            if found:
                return found[1]
        return ""

    def status_argv(self, ids: Collection[str]) -> list[str]:
        # Always query all of the user's: for unknown numbers alone qstat prints nothing and exits with 1, as after a failure.
        # --header overrides any QSTAT_HEADER and CQSTAT_HEADER in the user's environment.
        return [self._status, "--header", ":".join(_COLUMNS), "-u", self._user]

    def parse_statuses(self, answer: Completed) -> dict[str, BatchStatus] | None:
        return parse_table(answer.stdout) if answer.ok else None

    def read_past(self, native_id: str, output: str) -> BatchStatus | None:
        return parse_log(_read(log_path(output)), native_id)


def log_path(output: str) -> str:
    """Return the path at which Cobalt is told to write its log of a batch job: next to the output.

    >>> log_path("/db/qsubmit/qlaunch1.out")
    '/db/qsubmit/qlaunch1.cobaltlog'
    """
    return os.path.splitext(output)[0] + ".cobaltlog"


# --- qstat ------------------------------------------------------------------------------------------------------------


def parse_table(text: str) -> dict[str, BatchStatus] | None:
    """Return the batch jobs of a table of qstat, by id; None if there is no such table.

    The table has titles, a line of `=`, then one line per batch job; cells are aligned with their titles, at least two blanks
    apart, the ids right-aligned. Lines that do not begin with a number belong to other output.
    """
    lines = iter(text.splitlines())
    titles = next((line for line in lines if line.split()[:2] == list(_COLUMNS[:2])), None)
    if titles is None:
        return None
    places = {title: titles.index(title) for title in _COLUMNS if title in titles}
    rows = (_row(line, places) for line in lines)
    return base.by_id(status for status in rows if status)


def _row(line: str, places: Mapping[str, int]) -> BatchStatus | None:
    words = line.split(None, 2)
    if not words or not (words[0].isascii() and words[0].isdigit()):
        return None
    word = words[1].lower() if len(words) > 1 else ""
    if word == _DONE:
        return None
    state, reason = _STATES.get(word, (base.QUEUED, f"state {word or 'unknown'}"))
    started, name, command = (_cell(line, places, title) for title in _COLUMNS[2:])
    return BatchStatus(words[0], state, reason, started_us=_date_us(started), name=name, command=_path(command))


def _cell(line: str, places: Mapping[str, int], title: str) -> str:
    if title not in places:
        return ""
    following = [place for place in places.values() if place > places[title]]
    return line[places[title] : min(following, default=len(line))].strip()


def _path(text: str) -> str:
    """Return a path, or "" for anything else, such as the `-` of a missing value."""
    return text if text.startswith("/") else ""


def _date_us(text: str) -> int | None:
    """Return the first date in the text, in microseconds since the epoch.

    >>> _date_us("Thu Jan 01 00:00:10 1970 +0000 (UTC) submitted with cwd set to: /")
    10000000
    """
    found = _DATE.search(text)
    if not found:
        return None
    import calendar

    try:
        return calendar.timegm(time.strptime(found[1], "%b %d %H:%M:%S %Y")) * SECOND_US
    except ValueError:
        return None


# --- the log ----------------------------------------------------------------------------------------------------------


def parse_log(text: str, native_id: str) -> BatchStatus | None:
    """Return how the batch job ended, from its log; None if that is missing. Read it only for one that qstat no longer lists.

    The exit code is nowhere else. A batch job that was ended by its limit or by qdel has no exit code: Cobalt logs the request,
    and nothing afterwards (cqm.py, _sm_killing__task_end).
    """
    own = next((block for found, block in reversed(_blocks(text)) if found == native_id), [])
    ends = [line for line in own if _EXIT_CODE.search(line) or _DELETED.search(line) or _TIME_IS_UP in line]
    if not ends:
        return None
    state, reason, exit_code = _outcome(ends)
    started = _START_VARIABLE.search("\n".join(own))
    begun = next((line for line in own if _DATE.match(line) and "Command:" in line), "")
    return BatchStatus(
        native_id,
        state,
        reason,
        exit_code,
        started_us=int(started[1]) * SECOND_US if started else _date_us(begun),
        ended_us=_date_us(ends[-1]),
    )


def _outcome(ends: Sequence[str]) -> tuple[str, str, int | None]:
    text = "\n".join(ends)
    finished = _EXIT_CODE.search(text)
    exit_code = int(finished[1]) if finished and finished[1] != "None" else None
    how = f"exit code {exit_code}" if exit_code else ""
    if _TIME_IS_UP in text:
        return base.TIMED_OUT, f"its time limit was reached; {how}".rstrip("; "), exit_code
    deleted = _DELETED.search(text)
    if deleted:
        by = f" by {deleted[1]}" if deleted[1] else ""
        return base.CANCELLED, f"cancelled{by}; {how}".rstrip("; "), exit_code
    if exit_code is None:
        return base.ENDED, "Cobalt has not learned its exit code", None
    return (base.FAILED if exit_code else base.FINISHED), how, exit_code


def parse_submission(text: str, since_us: int) -> str:
    """Return the id in the log of a batch job submitted at `since_us` or later; "" if there is none."""
    for native_id, block in reversed(_blocks(text)):
        submitted = next((_date_us(line) for line in block if "submitted with cwd set to" in line), None)
        if submitted is None or submitted >= since_us:
            return native_id
    return ""


def _blocks(text: str) -> list[tuple[str, list[str]]]:
    """Group the log's lines by the id above them: qsub appends to an existing file, perhaps of an earlier DB at this path."""
    blocks: list[tuple[str, list[str]]] = []
    for line in text.splitlines():
        found = re.match(r"Jobid: (\d+)\s*$", line, re.ASCII)
        if found:
            blocks.append((found[1], []))
        elif blocks:
            blocks[-1][1].append(line)
    return blocks


def _read(path: str) -> str:
    """Return the end of a file, as text; "" if it cannot be read. Follows no link to a device, and never blocks."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read(_LOG_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


# --- which Cobalt -----------------------------------------------------------------------------------------------------


def _service(environ: Mapping[str, str]) -> str:
    """Return the address of the Cobalt that the commands use; "" if no configuration gives it. See cobalt.conf(5).

    Two machines may share a file system, each with its own Cobalt, and both number their batch jobs from 1.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(list(_config_files(environ)), encoding="utf-8")
        return parser.get("components", "service-location", fallback="")
    except (configparser.Error, OSError, UnicodeDecodeError):
        return ""


def _config_files(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths of lib/__init__.py: the variable's, else the usual one."""
    yield from filter(None, environ.get(_CONFIG_VARIABLE, _CONFIG).split(":"))
