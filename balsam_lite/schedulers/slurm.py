"""Slurm: sbatch, squeue and scancel, and sacct where the site keeps accounts.

Facts are from the manuals sbatch(1), squeue(1), scancel(1) and sacct(1) of Slurm 22.05, and were tried on that version;
the outputs in the doctests are its own. Slurm lists a batch job for some minutes after its end (slurm.conf(5): MinJobAge,
300 s by default), with its exit code. After that only the accounting knows it, and many sites have none.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from ..core.clock import SECOND_US
from ..core.process_table import JOB_VARIABLES
from ..core.settings import Settings
from ..core.subprocess_run import Completed
from . import base
from .base import BatchStatus, CommandScheduler, Submission
from .environ import RANK_VARIABLES

#: Separates the fields of an answer. It does not occur in queues, paths or names that users type.
_SEPARATOR = "\x1f"

#: The fields that squeue and sacct are asked for, in this order. Fields that may hold any text come last.
_SQUEUE_FIELDS = ("JobID", "State", "exit_code", "Reason", "SubmitTime", "StartTime", "EndTime", "Name", "Command")
_SACCT_FIELDS = ("JobIDRaw", "State", "ExitCode", "Submit", "Start", "End", "JobName")

#: Times as seconds since 1970 in every answer, independent of the time zone and the user's settings.
_EPOCH_TIMES = "SLURM_TIME_FORMAT=%s"

#: Linux refuses a longer argument (MAX_ARG_STRLEN is 128 KiB).
_MAX_ARGUMENT = 100_000
#: How far back to look for batch jobs if there are too many to be named.
_HISTORY_S = 30 * 86400


class _Meaning(NamedTuple):
    """What a state of Slurm means here, and a text that describes it."""

    state: str
    words: str = ""


#: Every state that squeue and sacct show; "JOB STATE CODES" in their manuals.
_STATES = {
    "PENDING": _Meaning(base.QUEUED),
    "CONFIGURING": _Meaning(base.QUEUED, "its nodes are being made ready"),
    "REQUEUED": _Meaning(base.QUEUED, "it was put back into the queue"),
    "REQUEUE_FED": _Meaning(base.QUEUED, "it was put back into the queue"),
    "REQUEUE_HOLD": _Meaning(base.QUEUED, "it was put back into the queue, and is held"),
    "RESV_DEL_HOLD": _Meaning(base.QUEUED, "held, because its reservation was deleted"),
    "SPECIAL_EXIT": _Meaning(base.QUEUED, "it was put back into the queue, and is held"),
    "RUNNING": _Meaning(base.RUNNING),
    "COMPLETING": _Meaning(base.RUNNING, "it is ending"),
    "RESIZING": _Meaning(base.RUNNING, "its size is being changed"),
    "SIGNALING": _Meaning(base.RUNNING, "it is getting a signal"),
    "STAGE_OUT": _Meaning(base.RUNNING, "its files are being copied"),
    "STOPPED": _Meaning(base.RUNNING, "stopped; it keeps its nodes"),
    "SUSPENDED": _Meaning(base.RUNNING, "suspended by Slurm"),
    "COMPLETED": _Meaning(base.FINISHED),
    "FAILED": _Meaning(base.FAILED),
    "CANCELLED": _Meaning(base.CANCELLED, "cancelled"),
    "TIMEOUT": _Meaning(base.TIMED_OUT, "it reached its time limit"),
    "DEADLINE": _Meaning(base.FAILED, "it could not be done before its deadline"),
    "NODE_FAIL": _Meaning(base.FAILED, "a node failed"),
    "BOOT_FAIL": _Meaning(base.FAILED, "its nodes could not be booted"),
    "LAUNCH_FAILED": _Meaning(base.FAILED, "its script could not be started"),
    "RECONFIG_FAIL": _Meaning(base.FAILED, "its nodes could not be set up"),
    "OUT_OF_MEMORY": _Meaning(base.FAILED, "it used more memory than it had"),
    "PREEMPTED": _Meaning(base.CANCELLED, "it had to make room for a job of higher priority"),
    "REVOKED": _Meaning(base.ENDED, "it runs on another cluster of the federation"),
}

#: Why a batch job waits, in words; "JOB REASON CODES" in squeue(1). Other codes are shown as they are.
_REASONS = {
    "Resources": "it waits for nodes to become free",
    "Priority": "others in the queue come first",
    "Dependency": "it waits for another batch job",
    "DependencyNeverSatisfied": "what it waits for can never happen",
    "BeginTime": "its time to start has not come",
    "JobHeldUser": "held by its owner",
    "JobHeldAdmin": "held by the administrators",
    "Licenses": "it waits for a licence",
    "PartitionConfig": "the queue does not have what it asks for",
    "PartitionDown": "the queue is closed",
    "PartitionInactive": "the queue is closed",
    "PartitionNodeLimit": "it asks for more nodes than the queue allows",
    "PartitionTimeLimit": "it asks for more time than the queue allows",
    "ReqNodeNotAvail": "a node that it asks for is not available",
}
#: Reasons that add nothing to the state or the exit code.
_MUTE_REASONS = frozenset(("", "None", "(null)", "NonZeroExitCode", "TimeLimit"))

#: The user's own defaults for squeue; those for which there is no option would hide batch jobs from the answer.
_SQUEUE_VARIABLES = "SQUEUE_"
#: Variables that describe the batch job in which this process runs. A batch job submitted from inside it must not inherit
#: them, but would: srun takes its defaults from them.
_INSIDE = ("SLURM_", "SLURMD_")
_NOT_OF_A_JOB = frozenset(("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT"))

#: Messages of sbatch (exit code 1) when it got no answer: the controller is slow, and may accept the batch job a
#: moment later (tried with 22.05.8), or ended in between. Source: slurm_errno.c of Slurm 22.05.8.
_NO_ANSWER = ("Socket timed out", "(receive failure)", "Message receive failure", "Zero Bytes were transmitted")

#: Paths of slurm.conf; at the second one slurmd keeps the file from the controller ("configless" Slurm).
_PLACES_OF_CONFIGURATION = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf")
_MAX_CONFIGURATION = 1024 * 1024  # characters


class SlurmScheduler(CommandScheduler):
    """See `base.Scheduler`. Reads the first part of Slurm's configuration file, to distinguish this cluster from others.

    The id of a batch job that was submitted to another cluster (`--clusters` of sbatch) is NUMBER;CLUSTER, as sbatch prints it.
    `cluster` makes this the scheduler of that one; each cluster is asked by separate commands, since each numbers from 1.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str] = os.environ, cluster: str = "") -> None:
        adapter = SlurmAdapter(os.getuid(), *base.commands_of(settings), environ=environ, cluster=cluster)
        super().__init__(adapter, timeout_s=settings.SCHEDULER_TIMEOUT_S)
        self.domain = "@".join(filter(None, (self.name, _cluster(environ))))
        self._settings, self._environ, self._cluster = settings, environ, cluster

    def poll(self, outputs: Mapping[str, str]) -> dict[str, BatchStatus]:
        found: dict[str, BatchStatus] = {}
        for cluster in sorted({cluster_of(native_id) for native_id in outputs}):
            own = {native_id: output for native_id, output in outputs.items() if cluster_of(native_id) == cluster}
            there = self if cluster == self._cluster else SlurmScheduler(self._settings, self._environ, cluster)
            found.update(super().poll(own) if there is self else there.poll(own))
        return found

    def find(self, submission: Submission, since_us: int) -> str | None:
        if self._cluster:
            return super().find(submission, since_us)
        clusters = clusters_in(submission.flags) or clusters_in([f"-M{self._environ.get('SLURM_CLUSTERS', '')}"])
        places = [SlurmScheduler(self._settings, self._environ, cluster) for cluster in clusters]
        found = [there.find(submission, since_us) for there in places] or [super().find(submission, since_us)]
        return next(filter(None, found), None)

    def _leaves_doubt(self, answer: Completed) -> bool:
        return super()._leaves_doubt(answer) or any(words in answer.stderr for words in _NO_ANSWER)

    def _parse(self, answer: Completed, ids: Collection[str]) -> dict[str, BatchStatus] | None:
        found = super()._parse(answer, ids)
        garbled = {native_id for native_id in ids if _number(native_id) in unreadable(answer.stdout)}
        return None if found is None or garbled - found.keys() else found  # lines of other batch jobs do not matter


def _number(native_id: str) -> str:
    return native_id.partition(";")[0]


def cluster_of(native_id: str) -> str:
    """Return the cluster that numbered a batch job; "" means the one that Slurm's commands ask by default.

    >>> cluster_of("17;red"), cluster_of("17")
    ('red', '')
    """
    return native_id.partition(";")[2]


def clusters_in(flags: Sequence[str]) -> list[str]:
    """Return the clusters among which the user's flags for sbatch let Slurm choose; [] if they name none.

    >>> clusters_in(["-C", "knl", "-M", "red,blue"]), clusters_in(["--clusters=red"]), clusters_in(["-Mred"])
    (['red', 'blue'], ['red'], ['red'])
    """
    chosen = ""
    for word, following in zip(flags, [*flags[1:], ""]):
        if word in ("-M", "--clusters", "--cluster"):
            chosen = following
        elif word.startswith(("--clusters=", "--cluster=")):
            chosen = word.partition("=")[2]
        elif word.startswith("-M"):
            chosen = word[2:]
    return [name for name in chosen.split(",") if name not in ("", "all")]


class SlurmAdapter(base.Adapter):
    """See `base.Adapter`.

    A project is passed on unless it is the built-in default of the settings, which is a project of another machine.
    """

    name = "SlurmScheduler"
    template = "slurm.tmpl"
    commands = ("sbatch", "squeue", "scancel")

    def __init__(self, user: int, *commands: str, environ: Mapping[str, str] = os.environ, cluster: str = "") -> None:
        super().__init__(*commands)
        self._user, self._environ, self._cluster = user, environ, cluster

    def submit_argv(self, submission: Submission) -> list[str]:
        output = _literal_path(submission.output)
        has_project = submission.project not in ("", Settings().DEFAULT_PROJECT)
        return [
            *self._without(_inherited(self._environ)),
            *(self._submit, "--parsable", f"--job-name={submission.name}", f"--chdir={submission.directory}"),
            *(f"--output={output}", f"--error={output}", "--open-mode=append"),  # one file, kept when Slurm starts it again
            *(f"--nodes={submission.nodes}", f"--time={submission.minutes}"),
            *([f"--partition={submission.queue}"] if submission.queue else []),
            *([f"--account={submission.project}"] if has_project else []),
            *submission.flags,
            submission.script,
        ]

    def parse_id(self, stdout: str) -> str:
        """Return the number that --parsable prints, with the cluster if Slurm had a choice. Sites may add lines.

        >>> [SlurmAdapter(0).parse_id(text) for text in ("278079\\n", "Welcome!\\n17;red\\n", "Submitted batch job 5\\n", "x1")]
        ['278079', '17;red', '5', '']
        """
        found = re.findall(r"^(?:Submitted batch job )?([0-9]+)(?:(?:;| on cluster )(.*))?$", stdout, re.MULTILINE)
        return ";".join(filter(None, found[-1])) if found else ""

    def status_argv(self, ids: Collection[str]) -> list[str]:
        # Always query all of the user's: one unknown number makes the whole answer an error, and many exceed the command line.
        # Size 0 means as long as the field; the text that follows it is appended to the field.
        fields = f":0{_SEPARATOR},".join(_SQUEUE_FIELDS) + ":0"
        options = (*self._where, "--noheader", "--all", "--states=all", f"--user={self._user}", f"--Format={fields}")
        unwanted = [name for name in self._environ if name.startswith(_SQUEUE_VARIABLES)]
        return [*self._without(unwanted, _EPOCH_TIMES), self._status, *options]

    def parse_statuses(self, answer: Completed) -> dict[str, BatchStatus] | None:
        return self._named(parse_squeue(answer.stdout)) if answer.ok else None

    def past_argv(self, ids: Collection[str]) -> list[str]:
        which = f"--jobs={','.join(filter(_is_id, map(_number, ids)))}"  # one odd id would make it report none
        options = [*self._where, "--noheader", "--parsable2", f"--delimiter={_SEPARATOR}", "--allocations"]
        options.append(f"--format={','.join(_SACCT_FIELDS)}")
        if len(which) > _MAX_ARGUMENT:
            since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - _HISTORY_S))
            return [*self._without((), _EPOCH_TIMES), self._sacct, *options, f"--user={self._user}", f"--starttime={since}"]
        return [*self._without((), _EPOCH_TIMES), self._sacct, *options, which]

    @property
    def _where(self) -> list[str]:
        return [f"--clusters={self._cluster}"] if self._cluster else []

    def _named(self, statuses: dict[str, BatchStatus] | None) -> dict[str, BatchStatus] | None:
        """Return the statuses with their cluster in the ids. The line with its name that squeue prints first is ignored."""
        if statuses is None or not self._cluster:
            return statuses
        ids = {number: f"{number};{self._cluster}" for number in statuses}
        return {ids[number]: status._replace(native_id=ids[number]) for number, status in statuses.items()}

    @property
    def _sacct(self) -> str:
        """Return the path of sacct, which is in the same directory as squeue."""
        return os.path.join(os.path.dirname(self._status), "sacct")

    def parse_past(self, answer: Completed) -> dict[str, BatchStatus]:
        return self._named(parse_sacct(answer.stdout) if answer.ok else {}) or {}

    def cancel_argv(self, native_id: str) -> list[str]:
        number, _, cluster = native_id.partition(";")
        return [self._cancel, *([f"--clusters={cluster}"] if cluster else []), number]

    @staticmethod
    def _without(variables: Collection[str], *assignments: str) -> list[str]:
        """Return the words before a command that unset those variables and set others; [] if there is nothing to change."""
        words = [*(f"--unset={name}" for name in sorted(variables)), *assignments]
        return ["env", *words] if words else []


# --- what Slurm prints ------------------------------------------------------------------------------------------------


def parse_squeue(text: str) -> dict[str, BatchStatus] | None:
    """Return the batch jobs of an answer of squeue, by id; None if it is cut off, or not one line of it is an answer.

    >>> line = _SEPARATOR.join("2 FAILED 768 NonZeroExitCode 1795342663 1795342664 1795342665 qlaunch1 /a.sh".split())
    >>> parse_squeue(line + "\\n")["2"].exit_code
    3
    >>> parse_squeue(line), parse_squeue("Segmentation fault\\n"), parse_squeue("")
    (None, None, {})
    """
    return _parse(text, len(_SQUEUE_FIELDS), _squeue_status)


def unreadable(text: str) -> set[str]:
    """Return the ids at the beginning of lines of squeue that cannot be read further; whether they live is unknown.

    >>> unreadable(f"7{_SEPARATOR}RUNNING\\n"), unreadable("8 is what it says\\n")
    ({'7'}, set())
    """
    rows = [line.split(_SEPARATOR) for line in text.split("\n")]
    return {row[0] for row in rows if _is_id(row[0]) and not _is_whole(row, len(_SQUEUE_FIELDS))}


def _is_whole(row: Sequence[str], count: int) -> bool:
    return len(row) == count and _is_id(row[0]) and bool(row[1].strip())


def parse_sacct(text: str) -> dict[str, BatchStatus]:
    """Return the batch jobs of an answer of `sacct --allocations`, by id.

    >>> line = _SEPARATOR.join("2|CANCELLED by 0|0:15|1795342663|1795342664|1795342665|qlaunch1".split("|"))
    >>> status = parse_sacct(line + "\\n")["2"]
    >>> status.state, status.exit_code, status.reason
    ('cancelled', 143, 'cancelled')
    """
    return _parse(text, len(_SACCT_FIELDS), _sacct_status) or {}


def _parse(text: str, count: int, make: Callable[[list[str]], BatchStatus]) -> dict[str, BatchStatus] | None:
    if text and not text.endswith("\n"):
        return None
    # Not splitlines: paths may contain characters that it takes for the end of a line.
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("CLUSTER:")]
    rows = [line.split(_SEPARATOR) for line in lines]
    found = base.by_id(make(row) for row in rows if _is_whole(row, count))
    return found if found or not lines else None


def _is_id(text: str) -> bool:
    """Return whether this is the number of a batch job; parts of one (`12+1`, `12_[3-4]`) are not ours."""
    return text.isascii() and text.isdigit()


def _squeue_status(row: list[str]) -> BatchStatus:
    native_id, state, code, reason, submitted, started, ended, name, command = row
    return _status(native_id, state, reason, _wait_status(code), started, ended)._replace(
        name=name, command=_known(command), submitted_us=_time_us(submitted)
    )


def _sacct_status(row: list[str]) -> BatchStatus:
    native_id, state, code, submitted, started, ended, name = row
    status = _status(native_id, state, "", _exit_and_signal(code), started, ended)
    return status._replace(name=name, submitted_us=_time_us(submitted))


def _status(native_id: str, state: str, reason: str, code: int | None, started: str, ended: str) -> BatchStatus:
    word = state.split(maxsplit=1)[0]  # sacct: "CANCELLED by 1000"
    began_us, ended_us = _time_us(started), _time_us(ended)
    # A state that this module does not know counts as not ended: only Slurm's known final states mean an end.
    meaning = _STATES.get(word, _Meaning(base.QUEUED, f"Slurm calls it {word}"))
    if meaning.state not in base.ENDED_STATES:
        # The times of one that waits are plans, and so is the end of one that runs.
        running = meaning.state == base.RUNNING
        status = BatchStatus(native_id, meaning.state, _sentence(meaning, reason), None, began_us if running else None)
        return status._replace(expected_us=None if running else began_us)
    if meaning.state == base.CANCELLED and began_us == ended_us:  # before it started
        began_us = code = None
    return BatchStatus(native_id, meaning.state, _sentence(meaning, reason), code, began_us, ended_us)


def _sentence(meaning: _Meaning, reason: str) -> str:
    """Return the state and Slurm's reason in words, with the reason's original name for looking it up.

    >>> _sentence(_Meaning(base.QUEUED), "Resources")
    'it waits for nodes to become free (Resources)'
    >>> _sentence(_Meaning(base.QUEUED), "QOSMaxCpuPerUserLimit"), _sentence(_Meaning(base.TIMED_OUT, "too long"), "TimeLimit")
    ('QOSMaxCpuPerUserLimit', 'too long')
    """
    if reason in _MUTE_REASONS:
        return meaning.words
    if meaning.state in base.ENDED_STATES and meaning.words:  # why it waited, once
        return meaning.words
    words = meaning.words or _REASONS.get(reason, "")
    return f"{words} ({reason})" if words else reason


def _wait_status(text: str) -> int | None:
    """Convert squeue's exit_code, a wait(2) status, to a shell's exit code. Other versions print it as sacct does.

    >>> [_wait_status(text) for text in ("0", "768", "9", "36608", "0:15", "?", "")]
    [0, 3, 137, 143, 143, None, None]
    """
    if not _is_id(text):
        return _exit_and_signal(text)
    return 128 + (int(text) & 0x7F) if int(text) & 0x7F else int(text) >> 8 & 0xFF


def _exit_and_signal(text: str) -> int | None:
    """Convert sacct's ExitCode to a shell's exit code.

    >>> [_exit_and_signal(text) for text in ("3:0", "0:9", "1:15", "", "1")]
    [3, 137, 143, None, None]
    """
    found = re.fullmatch(r"([0-9]{1,3}):([0-9]{1,3})", text)
    if found is None:
        return None
    return 128 + int(found[2]) if int(found[2]) else int(found[1])


def _time_us(text: str) -> int | None:
    """Convert seconds since 1970 to microseconds; None for "N/A", "Unknown", and for 0, which Slurm prints for never."""
    return int(text) * SECOND_US or None if _is_id(text) and len(text) < 12 else None


def _known(text: str) -> str:
    """Return a path; "" where Slurm has none, as for `sbatch --wrap`."""
    return text if text.startswith("/") else ""


# --- what Slurm is told -----------------------------------------------------------------------------------------------


def _literal_path(path: str) -> str:
    """Return a path in which sbatch expands nothing; "filename pattern" in sbatch(1).

    >>> _literal_path("/db 100%j/qsubmit/qlaunch1.out")
    '/db 100%%j/qsubmit/qlaunch1.out'
    """
    return path.replace("%", "%%")


def _inherited(environ: Mapping[str, str]) -> list[str]:
    """Return the variables that a new batch job must not inherit from the job, rank or batch job that submits it."""
    own = [name for name in (*JOB_VARIABLES, *RANK_VARIABLES) if name in environ]
    if "SLURM_JOB_ID" not in environ:
        return own
    return list({*own, *(name for name in environ if name.startswith(_INSIDE) and name not in _NOT_OF_A_JOB)})


def _cluster(environ: Mapping[str, str]) -> str:
    """Return the name of the cluster that Slurm's commands use; "" if no file specifies it.

    SLURM_CLUSTERS specifies it, if there are several (sbatch(1)); else ClusterName in slurm.conf, which SLURM_CONF names.
    """
    chosen = environ.get("SLURM_CLUSTERS", "")
    if chosen:
        return chosen
    places = [environ["SLURM_CONF"]] if environ.get("SLURM_CONF") else _PLACES_OF_CONFIGURATION
    for path in places:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                found = re.search(r"^\s*ClusterName\s*=\s*(\S+)", file.read(_MAX_CONFIGURATION), re.MULTILINE | re.IGNORECASE)
        except (OSError, ValueError):  # ValueError: a NUL in the path
            continue
        if found:
            return found[1]
    return ""
