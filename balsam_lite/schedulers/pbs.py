"""PBS: OpenPBS and PBS Pro; also Torque, and Slurm's wrappers with the names of PBS's commands, as far as they are compatible.

Facts are from the manual pages of OpenPBS 23.06 (qsub(1B), qstat(1B), pbs_job_attributes(7B)), the PBS Professional 2022.1
guides ("Job Exit Status Codes"), the manual pages of Torque 6.1, and contribs/torque/qstat.pl of Slurm 22.05. Nodes, time,
queue and project are lines of the job script, `#PBS …`: the command line would override what a user has written there.

Statuses come from one `qstat -x -f -F json`, which also reports ended batch jobs. If that is not understood (Torque, old
versions) or its JSON is broken (by unusual variables in the environment of a batch job in some versions), the same is
read from the text of `qstat -f`.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from ..core.clock import SECOND_US
from ..core.errors import PollFailed
from ..core.settings import Settings
from ..core.subprocess_run import Completed
from . import base
from .base import BatchStatus, CommandScheduler, Submission

_Attributes = Mapping[str, str]

#: The letters of job_state, pbs_job_attributes(7B), and what they mean here. C is Torque's and Slurm's letter for F.
_STATES = {
    "Q": (base.QUEUED, ""),
    "H": (base.QUEUED, "held"),
    "W": (base.QUEUED, "it waits for its time, or for files"),
    "T": (base.QUEUED, "it is on its way to another queue"),
    "M": (base.QUEUED, "it was moved to another server"),
    "S": (base.QUEUED, "suspended"),
    "U": (base.QUEUED, "suspended while a user works on the host"),
    "R": (base.RUNNING, ""),
    "B": (base.RUNNING, ""),
    "E": (base.RUNNING, "it has ended and is being cleaned up"),
}
_ENDED = frozenset("FXC")

#: substate of a batch job that was deleted; pbs_job_attributes(7B).
_SUBSTATE_DELETED = "91"
#: Exit_status of one that ran into its time limit; PBS Professional 2022.1, table "Job Exit Status Codes".
_EXIT_WALL_TIME = -29
#: Above it, Exit_status is this value plus the number of the signal that killed the script; same source.
_EXIT_SIGNAL = 256

#: Exit codes of qstat if a batch job is unknown, or over (PBSE_UNKJOBID and PBSE_HISTJOBID modulo 256, pbs_error.h), and
#: its message in that case. With any other message the state is unknown.
_UNKNOWN_CODES = (153, 35)
_UNKNOWN = re.compile(r"Unknown Job Id|Job has finished", re.IGNORECASE)

_ID = re.compile(r"(\d+(?:\[\d*\])?)(?:\.[\w.-]+)?", re.ASCII)


class PBSScheduler(CommandScheduler):
    """See `base.Scheduler`. Asks for JSON until it learns that this PBS has none."""

    def __init__(self, settings: Settings) -> None:
        commands, user = base.commands_of(settings), base.user_name()
        super().__init__(PBSAdapter(user, *commands), timeout_s=settings.SCHEDULER_TIMEOUT_S)
        self._text = PBSAdapter(user, *commands, form=TEXT)

    def find(self, submission: Submission, since_us: int) -> str | None:
        """Run two commands: the list of this user's batch jobs has no paths, so query those of that name."""
        listed = self._run(self._adapter.status_argv(()))
        if _is_misunderstood(listed):
            self._adapter = self._text
            listed = self._run(self._adapter.status_argv(()))
        if not listed.ok:
            raise PollFailed(f"{self.name} did not list this user's batch jobs.", **listed._asdict())
        ids = parse_list(listed.stdout, submission.name)
        return self._pick(self._statuses(ids).values(), submission, since_us) if ids else None

    def _statuses(self, ids: Collection[str]) -> dict[str, BatchStatus]:
        answer = self._run(self._adapter.status_argv(ids))
        if self._adapter is not self._text:
            if _is_misunderstood(answer):
                self._adapter = self._text
            if self._adapter is self._text or _is_broken(answer):
                answer = self._run(self._text.status_argv(ids))
        statuses = None if answer.returncode is None else self._adapter.parse_statuses(answer)
        if statuses is None:
            raise PollFailed(f"{self.name} did not tell the state of its batch jobs.", **answer._asdict())
        return statuses


#: Options of qstat: history in JSON, or the text that all versions print. Torque's -x means XML, so it is not used for text.
JSON, TEXT = ("-x", "-f", "-F", "json"), ("-f",)


class PBSAdapter(base.Adapter):
    """See `base.Adapter`. `form` is JSON or TEXT. `status_argv` covers ended batch jobs, where the server keeps a history."""

    name = "PBSScheduler"
    template = "pbs.tmpl"
    commands = ("qsub", "qstat", "qdel")

    def __init__(self, user: str, *commands: str, form: tuple[str, ...] = JSON) -> None:
        super().__init__(*commands)
        self._user, self._form = user, form

    def submit_argv(self, submission: Submission) -> list[str]:
        options = ("-N", submission.name, "-o", submission.output, "-j", "oe")
        return [self._submit, *options, *submission.flags, submission.script]

    def parse_id(self, stdout: str) -> str:
        """Return the id, which qsub prints on a separate line, followed by the server's name; Slurm's wrapper prints no server.

        >>> PBSAdapter("me").parse_id("Welcome\\n412020.polaris-pbs-01.example.org\\n")
        '412020.polaris-pbs-01.example.org'
        """
        lines = [line.strip() for line in stdout.splitlines()]
        return next((line for line in reversed(lines) if _ID.fullmatch(line)), "")

    def status_argv(self, ids: Collection[str]) -> list[str]:
        if ids:
            return [self._status, *self._form, *ids]
        history = ["-x"] if self._form == JSON else []
        return [self._status, *history, "-u", self._user]

    def parse_statuses(self, answer: Completed) -> dict[str, BatchStatus] | None:
        """Return the statuses of the ids in the command line; if it has none, of all batch jobs in the answer.

        JSON and text are distinguished by their form. An id that is not mentioned is gone only if qstat does not
        complain of anything else.
        """
        if not _is_believable(answer):
            return None
        jobs = _load(answer.stdout)
        found = base.by_id(status_of(native_id, values) for native_id, values in jobs or parse_text(answer.stdout))
        if not found and _is_broken(answer):
            return None
        asked = {_number(word): word for word in answer.argv[1:] if _ID.fullmatch(word)}
        named = ((asked.get(_number(native_id), native_id), status) for native_id, status in found.items())
        return {native_id: status._replace(native_id=native_id) for native_id, status in named}


def _number(native_id: str) -> str:
    """Return an id without its server: `12` and `12.host` are the same batch job."""
    return native_id.partition(".")[0]


# --- what qstat prints ------------------------------------------------------------------------------------------------


def _is_misunderstood(answer: Completed) -> bool:
    """Return whether this qstat does not know the options for JSON. Torque takes -x for XML; all others print their usage."""
    if answer.stdout.startswith("<"):
        return True
    text = (answer.stderr + answer.stdout[:1000]).lower()
    words = ("usage", "illegal", "invalid option", "unknown option")
    return answer.returncode in (1, 2) and any(word in text for word in words)


def _is_believable(answer: Completed) -> bool:
    if answer.ok:
        return True
    complaints = [line for line in answer.stderr.splitlines() if line.startswith("qstat:")]
    return answer.returncode in _UNKNOWN_CODES and all(map(_UNKNOWN.search, complaints))


def _is_broken(answer: Completed) -> bool:
    """Return whether this is not JSON, and not just the complaint that none of the batch jobs is known."""
    said_something = answer.ok or (answer.returncode in _UNKNOWN_CODES and bool(answer.stdout.strip()))
    return said_something and _load(answer.stdout) is None


def _load(text: str) -> list[tuple[str, _Attributes]] | None:
    """Return the batch jobs in qstat's JSON, with their attributes; None if it is not JSON.

    Keys may come twice, so objects are read as pairs.
    """
    if not text.lstrip().startswith("{"):
        return None
    try:
        pairs = json.loads(text, object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    members = [value for key, value in pairs if key == "Jobs" and isinstance(value, tuple)]
    return [(job[0], dict(_flat(job[1]))) for jobs in members for job in jobs if isinstance(job[1], tuple)]


def _flat(pairs: Iterable[tuple[str, Any]], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested objects to the names of the text form: Resource_List.walltime."""
    for key, value in pairs:
        if isinstance(value, tuple):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, str(value)


def parse_text(text: str) -> Iterator[tuple[str, _Attributes]]:
    """Yield the batch jobs in the text of `qstat -f`, with their attributes.

    An attribute has a line `    name = value`, and further lines that begin with a tab and are joined without a blank.
    Slurm's wrapper indents the attributes themselves by a tab, and has no further lines.
    """
    for block in re.split(r"^Job Id:", text, flags=re.MULTILINE)[1:]:
        first, *lines = block.splitlines() or [""]
        found = _ID.match(first.strip())
        if found:
            yield found[0], dict(_attributes(lines))


def _attributes(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    name, value, indent = "", "", ""
    for line in lines:
        found = re.match(r"(\s+)([\w.]+) = (.*)$", line)
        if found and (not name or found[1] == indent):
            if name:
                yield name, value
            indent, name, value = found[1], found[2], found[3]
        elif line.startswith("\t"):
            value += line[1:]
    if name:
        yield name, value


def parse_list(text: str, name: str) -> list[str]:
    """Return the ids in the lines of `qstat -u USER` that may have that name; the listing may cut names short.

    >>> parse_list("12.host  me  workq  qlaunch12*  --  1\\n13.host  me  workq  other  --  1\\n", "qlaunch123")
    ['12.host']
    """
    rows = (line.split() for line in text.splitlines())
    return [row[0].rstrip("*") for row in rows if row and row[0][:1].isdigit() and any(_may_be(name, word) for word in row[1:])]


def _may_be(name: str, word: str) -> bool:
    return word == name or (len(word) > 8 and name.startswith(word.rstrip("*")))


# --- what it means ----------------------------------------------------------------------------------------------------


def status_of(native_id: str, values: _Attributes) -> BatchStatus:
    """Return the status that a batch job's attributes describe."""
    letter = values.get("job_state", "")
    state, reason, exit_code = _outcome(values) if letter in _ENDED else (*_living(letter, values), None)
    output = values.get("Output_Path", "")
    return BatchStatus(
        native_id,
        state,
        reason,
        exit_code,
        started_us=_date_us(values, "stime", "start_time"),
        ended_us=_date_us(values, "obittime", "comp_time", "mtime") if letter in _ENDED else None,
        name=values.get("Job_Name", ""),
        output=output[output.find(":/") + 1 :] if ":/" in output else output if output.startswith("/") else "",
        submitted_us=_date_us(values, "qtime", "ctime"),
        expected_us=_date_us(values, "estimated.start_time") if state == base.QUEUED else None,
    )


def _living(letter: str, values: _Attributes) -> tuple[str, str]:
    state, reason = _STATES.get(letter, (base.QUEUED, f"state {letter or 'unknown'}"))
    comment = values.get("comment", "") if state == base.QUEUED else ""
    return state, comment or reason


def _outcome(values: _Attributes) -> tuple[str, str, int | None]:
    """Return state, reason and exit code as in a shell. The scheduler's comment is added if something went wrong."""
    code = _whole(values.get("Exit_status", values.get("exit_status", "")))
    comment = values.get("comment", "")
    killed = code is not None and code > _EXIT_SIGNAL
    exit_code = None if code is None or code < 0 else 128 + code - _EXIT_SIGNAL if killed else code
    how = "" if not code else f"exit code {code}" if not killed else f"killed by {_signal_name(code - _EXIT_SIGNAL)}"
    if code == _EXIT_WALL_TIME or (exit_code is not None and exit_code > 128 and _time_is_up(values)):
        return base.TIMED_OUT, _joined("its time limit was reached", how if code != _EXIT_WALL_TIME else ""), exit_code
    if values.get("substate") == _SUBSTATE_DELETED:
        return base.CANCELLED, _joined("cancelled", how), exit_code
    if code is None:
        return base.ENDED, _joined("PBS does not tell its exit code", comment), None
    if code < 0:
        return base.FAILED, _joined(f"PBS could not run it (its code {code})", comment), None
    return (base.FAILED if code else base.FINISHED), how, exit_code


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _signal_name(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:
        return f"signal {number}"


def _time_is_up(values: _Attributes) -> bool:
    used, limit = (duration_s(values.get(f"{of}.walltime", "")) for of in ("resources_used", "Resource_List"))
    return used is not None and limit is not None and used >= limit


def duration_s(text: str) -> int | None:
    """Return the seconds in `[[HH:]MM:]SS`, pbs_resources(7B); hours may exceed 99. None for anything else.

    >>> duration_s("100:00:01"), duration_s("90"), duration_s("soon")
    (360001, 90, None)
    """
    if not re.fullmatch(r"\d{1,9}(:\d{1,2}){0,3}(\.\d*)?", text, re.ASCII):
        return None
    seconds = 0
    for part, factor in zip(reversed(text.partition(".")[0].split(":")), (1, 60, 3600, 86400)):
        seconds += int(part) * factor
    return seconds


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?\d{1,9}", text, re.ASCII) else None


def _date_us(values: _Attributes, *names: str) -> int | None:
    """Return the first of those attributes that is set, in microseconds since the epoch: ctime(3) in the server's time zone,
    which is assumed to be this host's, or seconds since the epoch."""
    text = next((values[name] for name in names if name in values), "")
    if re.fullmatch(r"\d{1,11}", text, re.ASCII):
        return int(text) * SECOND_US
    try:
        return int(time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y"))) * SECOND_US
    except (ValueError, OverflowError):
        return None
