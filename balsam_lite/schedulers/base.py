"""The interface of a batch scheduler to the rest of the program, and the code that runs a scheduler's commands.

A scheduler with commands (Slurm, Cobalt, PBS) is an `Adapter`: data and pure functions, driven by `CommandScheduler`.
The output of other programs is untrusted: any bytes are decoded, and a parser that cannot read the text reports that. This
module knows no particular scheduler and imports none before it is selected.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ..core import clock, field_specs
from ..core.clock import SECOND_US
from ..core.errors import CancelFailed, InvalidSpec, PollFailed, SettingsError, SubmitFailed, SubmitUncertain
from ..core.settings import Settings

if TYPE_CHECKING:
    from ..core.subprocess_run import Completed

QUEUED = "queued"
RUNNING = "running"
FINISHED = "finished"  # exit code 0
FAILED = "failed"  # another exit code, a signal, or not started at all
TIMED_OUT = "timeout"
CANCELLED = "cancelled"
ENDED = "ended"  # how is unknown
GONE = "gone"  # the scheduler does not know it (any more)

ENDED_STATES = frozenset((FINISHED, FAILED, TIMED_OUT, CANCELLED, ENDED, GONE))

#: Seconds; a loaded head node may take half a minute to answer.
COMMAND_TIMEOUT_S = 60.0
#: The same for a second question in one poll.
_SIDE_TIMEOUT_S = 20.0
#: Maximum difference between the clocks of a scheduler's host and this one; also, some schedulers report whole seconds only.
CLOCK_SLACK_US = 60 * SECOND_US


class Submission(NamedTuple):
    """A script on its way to a scheduler."""

    name: str  # for display; together with `script` it identifies the batch job
    script: str  # absolute path
    output: str  # absolute path of the file for its stdout and stderr
    directory: str  # where it starts
    nodes: int
    minutes: int
    queue: str = ""
    project: str = ""
    flags: tuple[str, ...] = ()  # the user's own, passed on word by word


class BatchStatus(NamedTuple):
    """What a scheduler reports about one batch job. Times are microseconds since the epoch, None if not reported."""

    native_id: str
    state: str  # one of the constants above
    reason: str = ""  # a sentence for users
    exit_code: int | None = None  # as in a shell: 128 + n after signal n; None: unknown, or not ended
    started_us: int | None = None
    ended_us: int | None = None
    name: str = ""
    command: str = ""  # path of the script; "" where the scheduler does not report it
    output: str = ""  # path of its output; likewise
    submitted_us: int | None = None
    expected_us: int | None = None  # when the scheduler expects to start it; of one that waits

    @property
    def is_ended(self) -> bool:
        return self.state in ENDED_STATES

    def may_be(self, script: str, output: str) -> bool:
        """Return False if this is certainly a batch job of another script: a number or a name can be another's too."""
        return self.command in ("", script) and self.output in ("", output)

    def is_submission(self, submission: Submission, since_us: int) -> bool:
        """Return whether this is the result of that submission, made at `since_us` or later."""
        if self.name != submission.name or not self.may_be(submission.script, submission.output):
            return False
        return self.submitted_us is None or self.submitted_us >= since_us - CLOCK_SLACK_US


def by_id(statuses: Iterable[BatchStatus]) -> dict[str, BatchStatus]:
    """Return the statuses by id. Of two with one id the first counts, unless only the other reports a live batch job.

    >>> sorted(by_id([BatchStatus("7", FAILED), BatchStatus("7", RUNNING), BatchStatus("8", RUNNING)]).items())[0][1].state
    'running'
    """
    found: dict[str, BatchStatus] = {}
    for status in statuses:
        known = found.get(status.native_id)
        if known is None or (known.is_ended and not status.is_ended):
            found[status.native_id] = status
    return found


class Scheduler(Protocol):
    """A batch scheduler. Its ids are opaque text, except that a cluster's name may follow a semicolon."""

    name: str  # as in Settings.SCHEDULER_CLASS
    template: str  # file name of its job script's template
    domain: str  # where its ids are unique: two schedulers of one name may both have a batch job 1
    timeout_s: float  # time limit of one of its commands

    def responds(self) -> bool:
        """Return whether the scheduler answers on this host. Runs a command, if it has any."""

    def submit(self, submission: Submission) -> str:
        """Hand the script over and return the batch job's id.

        Raises:
            SubmitFailed: it was not accepted. SubmitUncertain: that is unknown; `find` may tell later.
        """

    def poll(self, outputs: Mapping[str, str]) -> dict[str, BatchStatus]:
        """Return what is known of those batch jobs, by id. The scheduler does not list an absent one at the moment.

        Args:
            outputs: by id, the path of the batch job's output; some schedulers write a record of the end in the same directory.

        Raises:
            PollFailed: there was no answer. Nothing is known, so nothing may change.
        """

    def cancel(self, native_id: str) -> None:
        """Ask for the batch job's end; it may take a moment. Raises CancelFailed."""

    def find(self, submission: Submission, since_us: int) -> str | None:
        """Return the id of the batch job that came from this script, submitted at `since_us` or later. Raises PollFailed."""


# --- schedulers with commands -----------------------------------------------------------------------------------------


def commands_of(settings: Settings) -> tuple[str, str, str]:
    """Return the commands that the settings give in place of the scheduler's own: submit, status, cancel."""
    return settings.SCHEDULER_SUBMIT_EXE, settings.SCHEDULER_STATUS_EXE, settings.SCHEDULER_CANCEL_EXE


def user_name() -> str:
    """Return the system's name for this process's user; environment variables are ignored."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, for example
        return os.environ.get("USER", "") or str(os.getuid())


class Adapter:
    """A scheduler with commands, as data and pure functions. No function here runs anything or raises on odd text."""

    name: str
    template: str
    #: The commands that submit, list and cancel batch jobs.
    commands: tuple[str, str, str]

    def __init__(self, submit: str = "", status: str = "", cancel: str = "") -> None:
        """Create an adapter for these commands, given by name or path; "" means the usual one."""
        given = zip((submit, status, cancel), self.commands)
        self._submit, self._status, self._cancel = (command or usual for command, usual in given)

    def submit_argv(self, submission: Submission) -> list[str]:
        """Return the command that submits a script."""
        raise NotImplementedError

    def parse_id(self, stdout: str) -> str:
        """Return the new batch job's id; "" where there is none."""
        raise NotImplementedError

    def status_argv(self, ids: Collection[str]) -> list[str]:
        """Return the command that lists those batch jobs; all of this user's if `ids` is empty."""
        raise NotImplementedError

    def parse_statuses(self, answer: Completed) -> dict[str, BatchStatus] | None:
        """Return every batch job in the answer, by id. None if the answer contains no information on any."""
        raise NotImplementedError

    def past_argv(self, ids: Collection[str]) -> list[str]:
        """Return the command that reports batch jobs that `status_argv` no longer lists; [] if there is none."""
        return []

    def parse_past(self, answer: Completed) -> dict[str, BatchStatus]:
        """Return every batch job in the answer, by id, including running ones; {} if there is none."""
        return {}

    def read_past(self, native_id: str, output: str) -> BatchStatus | None:
        """Return how a batch job ended, from a file that the scheduler wrote next to its output; None if there is none."""
        return None

    def cancel_argv(self, native_id: str) -> list[str]:
        """Return the command that cancels a batch job."""
        return [self._cancel, native_id]


class CommandScheduler:
    """A `Scheduler` made of an `Adapter` and this machine's commands."""

    def __init__(self, adapter: Adapter, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self.name, self.template = adapter.name, adapter.template
        self.domain = adapter.name
        self._adapter, self.timeout_s = adapter, timeout_s

    def responds(self) -> bool:
        return self._run(self._adapter.status_argv(()), timeout_s=_SIDE_TIMEOUT_S).ok

    def submit(self, submission: Submission) -> str:
        answer = self._run(self._adapter.submit_argv(submission), submission.directory)
        native_id = self._adapter.parse_id(answer.stdout) if answer.ok else ""
        if native_id:
            return native_id
        if self._leaves_doubt(answer):
            hint = "`balsam ls queues` shows in a moment whether it was accepted."
            raise SubmitUncertain(f"{self.name} did not say whether it has {submission.name}.", **answer._asdict(), hint=hint)
        raise SubmitFailed(f"{self.name} refused the batch job.", **answer._asdict())

    def _leaves_doubt(self, answer: Completed) -> bool:
        """Return whether a submission that gave no id may have been accepted: only a plain failure rules that out."""
        return answer.ok or answer.was_killed or (answer.returncode or 0) < 0

    def poll(self, outputs: Mapping[str, str]) -> dict[str, BatchStatus]:
        if not outputs:
            return {}
        statuses = self._statuses(outputs)
        found = {native_id: statuses[native_id] for native_id in outputs if native_id in statuses}
        return {**self._past({native_id: outputs[native_id] for native_id in outputs if native_id not in found}), **found}

    def _past(self, outputs: Mapping[str, str]) -> dict[str, BatchStatus]:
        """Return the same for batch jobs that the scheduler no longer lists. Missing ones are unknown, which is no failure."""
        found = {}
        argv = self._adapter.past_argv(outputs) if outputs else []
        if argv:
            found = self._adapter.parse_past(self._run(argv, timeout_s=_SIDE_TIMEOUT_S))
        for native_id, output in outputs.items():
            read = None if native_id in found else self._adapter.read_past(native_id, output)
            if read is not None:
                found[native_id] = read
        return {native_id: status for native_id, status in found.items() if native_id in outputs}

    def _run(self, argv: list[str], directory: str | None = None, timeout_s: float = math.inf) -> Completed:
        from ..core.subprocess_run import run  # here, not above: the Python interfaces use this module for its types

        return run(argv, timeout_s=min(timeout_s, self.timeout_s), directory=directory)

    def cancel(self, native_id: str) -> None:
        answer = self._run(self._adapter.cancel_argv(native_id))
        if not answer.ok:
            raise CancelFailed(f"{self.name} did not cancel batch job {native_id}.", **answer._asdict())

    def find(self, submission: Submission, since_us: int) -> str | None:
        return self._pick(self._statuses(()).values(), submission, since_us)

    @staticmethod
    def _pick(statuses: Iterable[BatchStatus], submission: Submission, since_us: int) -> str | None:
        """Return, of several possible ones, the one submitted last: not all schedulers report a script or an output."""
        found = [status for status in statuses if status.is_submission(submission, since_us)]
        return max(found, key=lambda status: status.submitted_us or 0).native_id if found else None

    def _statuses(self, ids: Collection[str]) -> dict[str, BatchStatus]:
        answer = self._run(self._adapter.status_argv(ids))
        statuses = None if answer.returncode is None else self._parse(answer, ids)
        if statuses is None:
            raise PollFailed(f"{self.name} did not tell the state of its batch jobs.", **answer._asdict())
        return statuses

    def _parse(self, answer: Completed, ids: Collection[str]) -> dict[str, BatchStatus] | None:
        """Return every batch job in the answer to a question about `ids`; None if the answer does not cover all of them."""
        return self._adapter.parse_statuses(answer)


# --- which scheduler --------------------------------------------------------------------------------------------------


class KnownScheduler(NamedTuple):
    """A module of this package, and the commands by which its scheduler is recognised."""

    module: str
    commands: tuple[str, ...]


#: By class name (Settings.SCHEDULER_CLASS), in the order in which they are looked for. Slurm comes first, because it has
#: wrappers with the names of PBS's commands; Cobalt before PBS, because only cqwait distinguishes the two.
_SCHEDULERS = {
    "SlurmScheduler": KnownScheduler("slurm", ("sbatch", "squeue")),
    "CobaltScheduler": KnownScheduler("cobalt", ("qsub", "qstat", "cqwait")),
    "PBSScheduler": KnownScheduler("pbs", ("qsub", "qstat")),
    "LocalScheduler": KnownScheduler("local", ()),
}


def select(settings: Settings) -> Scheduler:
    """Return the scheduler that the settings ask for. Loads its module.

    Raises:
        SettingsError: there is none of that name.
    """
    name = settings.SCHEDULER_CLASS or _first_on_path()
    if name not in _SCHEDULERS:
        raise SettingsError(
            f"SCHEDULER_CLASS: there is no scheduler {name!r}", hint=f"There are: {', '.join(sorted(_SCHEDULERS))}."
        )
    module = importlib.import_module(f".{_SCHEDULERS[name].module}", __package__)
    return cast(Scheduler, getattr(module, name)(settings))


def _first_on_path() -> str:
    """Return the first scheduler whose commands are all on PATH; LocalScheduler needs none."""
    return next(name for name, entry in _SCHEDULERS.items() if all(map(shutil.which, entry.commands)))


# --- launches as users request them -----------------------------------------------------------------------------------


#: The text between two colons; a backslash at the very end stands for itself.
_PIECE = re.compile(r"(?:\A|:)((?:[^\\:]|\\.|\\\Z)*)", re.DOTALL)
_FIELDS = ("job_mode", "num_nodes", "filter_tags")


class Partition(NamedTuple):
    """Some nodes of a batch job, in its order, for one launcher."""

    job_mode: str
    num_nodes: int
    filter_tags: Mapping[str, str] = {}  # in addition to those of the batch job, whose values they override

    @classmethod
    def parse(cls, text: str) -> Partition:
        r"""Parse what `as_text` wrote or a user typed.

        >>> Partition.parse(r"mpi:2:kind=large:when=12\:00")
        Partition(job_mode='mpi', num_nodes=2, filter_tags={'kind': 'large', 'when': '12:00'})

        Raises:
            InvalidSpec.
        """
        mode, *rest = [re.sub(r"\\(.)", r"\1", piece, flags=re.DOTALL) for piece in _PIECE.findall(text)]
        pairs = [piece.partition("=") for piece in rest[1:]]
        is_number = bool(rest) and re.fullmatch("[0-9]{1,8}", rest[0]) is not None
        if not is_number or not all(key and equals for key, equals, _ in pairs):
            raise InvalidSpec(f"{text!r} needs to be in format MODE:NUM_NODES[:KEY=VALUE]")
        return cls.from_fields({"job_mode": mode, "num_nodes": int(rest[0]), "filter_tags": {k: v for k, _, v in pairs}})

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Partition:
        """Create a partition from a mapping with these fields, such as JSON or the Python API provides.

        Raises:
            InvalidSpec.
        """
        unknown = sorted(set(fields) - set(_FIELDS))
        if unknown or not {"job_mode", "num_nodes"} <= set(fields):
            raise InvalidSpec(f"A partition has the fields {', '.join(_FIELDS)}, not {', '.join(map(str, fields))}")
        tags = fields.get("filter_tags") or {}
        made = cls(str(fields["job_mode"]), fields["num_nodes"], tags)
        if made.job_mode not in field_specs.JOB_MODES:
            raise InvalidSpec(
                f"job_mode of a partition must be one of {', '.join(field_specs.JOB_MODES)}, not {made.job_mode!r}"
            )
        if type(made.num_nodes) is not int or made.num_nodes < 1:
            raise InvalidSpec(f"num_nodes of a partition must be a whole number from 1, not {made.num_nodes!r}")
        if not isinstance(tags, Mapping) or not all(isinstance(word, str) for pair in tags.items() for word in pair):
            raise InvalidSpec(f"filter_tags of a partition must have text as names and values, not {tags!r}")
        return made

    def as_text(self) -> str:
        r"""Format the partition for a command line.

        >>> Partition("serial", 1, {"when": "12:00"}).as_text()
        'serial:1:when=12\\:00'
        """
        tags = [re.sub(r"([\\:])", r"\\\1", f"{key}={value}") for key, value in sorted(self.filter_tags.items())]
        return ":".join([self.job_mode, str(self.num_nodes), *tags])

    def as_fields(self) -> dict[str, Any]:
        """Return the partition as a dict for JSON."""
        return {"job_mode": self.job_mode, "num_nodes": self.num_nodes, "filter_tags": dict(self.filter_tags)}


def check_sum(parts: Sequence[Partition], nodes: int) -> None:
    """Refuse parts that are not all of the nodes. No parts at all are no partition. Raises InvalidSpec."""
    total = sum(part.num_nodes for part in parts)
    if parts and total != nodes:
        raise InvalidSpec(f"Sum of partition sizes must equal batchjob num_nodes: they have {total}, it has {nodes}.")


_MAX_COUNT = 10**7


class LaunchRequest(NamedTuple):
    """A request of a user or the service: one launcher on `nodes` nodes for `wall_minutes` minutes."""

    nodes: int
    wall_minutes: int | str  # text is a time that `durations` reads; `validated` converts it to minutes
    queue: str = ""
    project: str = ""  # "" means Settings.DEFAULT_PROJECT
    job_mode: str = "serial"
    wf_filter: str = ""  # "" means any workflow
    filter_tags: Mapping[str, str] = {}
    sched_flags: str = ""  # as typed; split like a shell does before the scheduler's command gets them
    prescheduled_only: bool = False
    partitions: Sequence[Partition] = ()  # all of the nodes, each part with a separate launcher; () means one launcher for all
    optional_params: Mapping[str, str] = {}  # more variables for the job template


def validated(request: LaunchRequest, settings: Settings) -> LaunchRequest:
    """Return the request with its defaults filled in.

    Raises:
        InvalidSpec: a value makes no sense, or would break out of its line in a job script.
    """
    if isinstance(request.wall_minutes, str):
        try:
            request = request._replace(wall_minutes=clock.whole_minutes(request.wall_minutes))
        except ValueError as exc:
            raise InvalidSpec(f"wall_minutes {exc}") from None
    for field in ("nodes", "wall_minutes"):
        value = getattr(request, field)
        if type(value) is not int or not 1 <= value <= _MAX_COUNT:
            raise InvalidSpec(f"{field} must be a whole number from 1 to {_MAX_COUNT}, not {value!r}")
    if request.job_mode not in field_specs.JOB_MODES:
        raise InvalidSpec(f"job_mode must be one of {', '.join(field_specs.JOB_MODES)}, not {request.job_mode!r}")
    for field in ("queue", "project", "wf_filter", "sched_flags"):
        _check_line(field, getattr(request, field))
    for field, words in _mappings(request):
        for key, value in words.items():
            _check_line(field, key)
            _check_line(f"{field}: {key}", value)
    check_sum(request.partitions, request.nodes)
    try:
        shlex.split(request.sched_flags)
    except ValueError as exc:
        raise InvalidSpec(f"sched_flags cannot be split into words ({exc}): {request.sched_flags}") from None
    return request._replace(project=request.project or settings.DEFAULT_PROJECT)


def _mappings(request: LaunchRequest) -> Iterator[tuple[str, Mapping[str, str]]]:
    yield "filter_tags", request.filter_tags
    yield "optional_params", request.optional_params
    for part in request.partitions:
        yield "filter_tags of a partition", part.filter_tags


def _check_line(field: str, value: Any) -> None:
    if not isinstance(value, str) or not value.isprintable():
        raise InvalidSpec(f"{field} must be one line of printable characters, not {value!r}")
