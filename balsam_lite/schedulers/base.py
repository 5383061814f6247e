"""The interface of a batch scheduler to the rest of the program, and the code that runs a scheduler's commands.

A scheduler with commands (Slurm, Cobalt, PBS) is an `Adapter`: data and pure functions, driven by `CommandScheduler`.
The output of other programs is untrusted: any bytes are decoded, and a parser that cannot read the text reports that. This
module knows no particular scheduler and imports none before it is selected.
"""

from __future__ import annotations

import importlib
import math
import os
import shutil
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, Protocol, cast

from ..core.clock import SECOND_US
from ..core.errors import CancelFailed, PollFailed, SettingsError, SubmitFailed, SubmitUncertain
from ..core.settings import Settings
from ..core.subprocess_run import Completed, run

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


def user_name() -> str:
    """Return the system's name for this process's user; environment variables are ignored."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, for example
        return os.environ.get("USER", "") or str(os.getuid())


class Adapter(Protocol):
    """A scheduler with commands, as data and pure functions. No function here runs anything or raises on odd text."""

    name: str
    template: str

    def submit_argv(self, submission: Submission) -> list[str]: ...

    def environ(self) -> Mapping[str, str]:
        """Return variables to add to the environment of its commands, such as the format of their answers."""

    def parse_id(self, stdout: str) -> str:
        """Return the new batch job's id; "" where there is none."""

    def status_argv(self, ids: Collection[str]) -> list[str]:
        """Return the command that lists those batch jobs; all of this user's if `ids` is empty."""

    def parse_statuses(self, answer: Completed) -> dict[str, BatchStatus] | None:
        """Return every batch job in the answer, by id. None if the answer contains no information on any."""

    def past_argv(self, ids: Collection[str]) -> list[str]:
        """Return the command that reports batch jobs that `status_argv` no longer lists; [] if there is none."""

    def parse_past(self, answer: Completed) -> dict[str, BatchStatus]:
        """Return every batch job in the answer, by id, including running ones; {} if there is none."""

    def read_past(self, native_id: str, output: str) -> BatchStatus | None:
        """Return how a batch job ended, from a file that the scheduler wrote next to its output; None if there is none."""

    def cancel_argv(self, native_id: str) -> list[str]: ...


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
        environ = {**os.environ, **self._adapter.environ()}
        return run(argv, timeout_s=min(timeout_s, self.timeout_s), environ=environ, directory=directory)

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
