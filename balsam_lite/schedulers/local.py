"""A batch scheduler on this machine, without a daemon: the default where there is no other.

It queues scripts, runs them one after the other (or `MAX_LOCAL_LAUNCHES` at once), detached, with a time limit, and
records how they ended. `shepherd` is the process that watches one script. Any queue and project name is accepted and means
nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from ..core import files, process_table, subprocess_run
from ..core.clock import SECOND_US, SystemClock
from ..core.errors import CancelFailed, PollFailed, SubmitFailed
from ..core.process_table import JOB_VARIABLES, Holder
from ..core.settings import Settings, home
from . import base
from .base import BatchStatus, Submission
from .environ import LOCAL_ENDTIME, LOCAL_JOBID, LOCAL_NODES, RANK_VARIABLES

#: Seconds in addition to the time that a script has to end; the clocks of two hosts differ.
_SLACK_S = 60.0

#: Variables to remove: a script that is submitted from inside a job, a batch job or an MPI rank does not run inside it.
_NOT_INHERITED = frozenset((*JOB_VARIABLES, *RANK_VARIABLES, LOCAL_JOBID, LOCAL_NODES, LOCAL_ENDTIME))


class LocalScheduler:
    """See `base.Scheduler`. `environ` is this process's environment, which scripts inherit."""

    name = "LocalScheduler"
    template = "local.tmpl"

    def __init__(self, settings: Settings, environ: Mapping[str, str] = os.environ) -> None:
        self.timeout_s = settings.SCHEDULER_TIMEOUT_S
        self._limit = settings.MAX_LOCAL_LAUNCHES
        self._grace_s = 2 * settings.KILL_GRACE_S  # a launcher gives its jobs half of it, and then has to record their ends
        self._environ = environ
        self.domain = f"{self.name}@{os.uname().nodename}:{os.path.join(home(environ), 'local-scheduler')}"
        self._queue = LocalQueue(os.path.join(home(environ), "local-scheduler"))

    def responds(self) -> bool:
        return True

    def submit(self, submission: Submission) -> str:
        inherited = {key: value for key, value in self._environ.items() if key not in _NOT_INHERITED}
        try:
            self._queue.create()
            with self._queue.locked():
                record = self._queue.add(submission, self._limit, self._grace_s, inherited)
        except OSError as exc:
            raise SubmitFailed(
                f"The local scheduler cannot keep {submission.name} in {self._queue.directory}: {exc}",
                hint="BALSAM_HOME names another directory for it.",
            ) from exc
        # From here on it is in the queue. If this fails, the next process that reads the queue does it.
        failure = self._heal_if_possible().get(record.id)
        if failure:
            self._withdraw(record.id, failure)
            raise SubmitFailed(f"The local scheduler could not start a process for {submission.name}: {failure}")
        return record.id

    def _withdraw(self, native_id: str, reason: str) -> None:
        with self._queue.locked():
            record = self._queue.read(native_id)
            if record and record.state == base.QUEUED:
                self._queue.write(record.ended(base.FAILED, reason))

    def poll(self, outputs: Mapping[str, str]) -> dict[str, BatchStatus]:
        if outputs and not os.path.isdir(self._queue.directory):
            raise PollFailed(
                f"There is no local queue in {self._queue.directory}, so nothing is known of its batch jobs.",
                hint="They may be another user's, or were submitted with another BALSAM_HOME.",
            )
        try:
            self._heal_if_possible()
            records = [self._queue.read(native_id) for native_id in outputs]
        except OSError as exc:
            raise PollFailed(f"The local scheduler cannot read {self._queue.directory}: {exc}") from exc
        return {record.id: _believable(record).status() for record in records if record}

    def _heal_if_possible(self) -> dict[str, str]:
        try:
            return self._queue.heal() if os.path.isdir(self._queue.directory) else {}
        except OSError:  # a full disk must not prevent reading
            return {}

    def cancel(self, native_id: str) -> None:
        try:
            with self._queue.locked():
                record = self._queue.read(native_id)
                if record is None:
                    raise CancelFailed(f"The local scheduler knows no batch job {native_id}.")
                if record.ended_us is not None:
                    raise CancelFailed(f"The local batch job {native_id} has ended already ({record.state}).")
                if record.state == base.QUEUED:  # also on another host, which checks this file before it starts the script
                    self._queue.write(record.ended(base.CANCELLED, "cancelled before it started"))
                elif not record.submitter.is_here():
                    raise CancelFailed(f"The local batch job {native_id} belongs to {record.submitter.host}; go there.")
                elif record.cancelled_us is None:
                    self._queue.write(record._replace(cancelled_us=SystemClock.now_us()))
            self._queue.heal()
        except OSError as exc:
            raise CancelFailed(f"The local scheduler cannot write {self._queue.directory}: {exc}") from exc

    def find(self, submission: Submission, since_us: int) -> str | None:
        if not os.path.isdir(self._queue.directory):
            return None
        try:
            for record in self._queue.newest_first():
                if record.submitted_us < since_us:
                    return None
                if record.submission.script == submission.script:
                    return record.id
        except OSError as exc:
            raise PollFailed(f"The local scheduler cannot read {self._queue.directory}: {exc}") from exc
        return None


def _believable(record: QueueRecord) -> QueueRecord:
    """Return the record; as ended if it is long past its time limit, and no shepherd is left to record that."""
    if record.started_us is None or record.ended_us is not None or record.submitter.is_here():
        return record
    last_us = record.deadline_us + int((2 * record.grace_s + _SLACK_S) * SECOND_US)
    if SystemClock.now_us() <= last_us:
        return record
    return record._replace(state=base.ENDED, reason="its host or container is gone", ended_us=record.deadline_us)


# --- the queue on disk ------------------------------------------------------------------------------------------------
# <home>/local-scheduler/active/ID.json      queued and running ones
#                        active/ID.environ   the script's environment, until it ends
#                        ended/ID.json       those that are over, the newest thousand
#                        lock, shepherd.log
#
# There is no daemon. Each running batch job has a shepherd (a process, see `shepherd`), and so has the first one that waits.
# Any process that reads the queue (a command, a shepherd) starts missing shepherds: see `heal`. This module never runs or ends
# a script.


#: Microseconds within which a shepherd has to appear. Python starts within a second on a busy machine.
_SPAWN_TIMEOUT_US = 10 * SECOND_US
#: Time limit for the lock: on a broken network file system the call may never return.
_LOCK_TIMEOUT_S = 20.0
KEEP_ENDED = 1000

_now_us = SystemClock.now_us


class QueueRecord(NamedTuple):
    """All that is known of one local batch job. Times are microseconds since the epoch."""

    id: str
    submission: Submission
    limit: int  # it starts only while fewer than this many run
    grace_s: float  # between SIGTERM and SIGKILL
    submitter: Holder
    submitted_us: int
    spawned_us: int = 0  # when its shepherd was started; 0 once that has appeared
    shepherd: Holder | None = None
    runner: Holder | None = None  # the process that became the script
    started_us: int | None = None
    cancelled_us: int | None = None  # when the user asked for its end
    stopping: str = ""  # why its processes are being ended
    stopping_us: int = 0
    state: str = base.QUEUED
    reason: str = ""
    exit_code: int | None = None
    ended_us: int | None = None

    @property
    def deadline_us(self) -> int:
        return (self.started_us or 0) + self.submission.minutes * 60 * SECOND_US

    def ended(self, state: str, reason: str, exit_code: int | None = None) -> QueueRecord:
        return self._replace(state=state, reason=reason, exit_code=exit_code, ended_us=_now_us())

    def status(self) -> BatchStatus:
        name, script = self.submission.name, self.submission.script
        return BatchStatus(self.id, self.state, self.reason, self.exit_code, self.started_us, self.ended_us, name, script)

    def to_json(self) -> str:
        return json.dumps({**self._asdict(), "submission": self.submission._asdict()})

    @classmethod
    def from_json(cls, text: str) -> QueueRecord:
        """Parse the JSON; ignore unknown keys. Raises ValueError, TypeError or LookupError if `to_json` did not write it."""
        values = {key: value for key, value in json.loads(text).items() if key in cls._fields}
        submission = values["submission"]
        submission["flags"] = tuple(submission["flags"])
        values["submission"] = Submission(**submission)
        for key in ("submitter", "shepherd", "runner"):
            values[key] = Holder(*values[key]) if values.get(key) else None
        return cls(**values)


def outcome(record: QueueRecord, wait_status: int | None) -> QueueRecord:
    """Return the record of a script that is over. `wait_status` is os.waitpid's, None if it was not waited for."""
    exit_code, how = None, "exit code unknown: its shepherd process was killed while the script ran"
    if wait_status is not None and os.WIFSIGNALED(wait_status):
        exit_code, how = 128 + os.WTERMSIG(wait_status), f"killed by signal {os.WTERMSIG(wait_status)}"
    elif wait_status is not None:
        exit_code = os.WEXITSTATUS(wait_status)
        how = f"exit code {exit_code}" if exit_code else ""
    if record.stopping == base.CANCELLED:
        return record.ended(base.CANCELLED, f"cancelled; {how}".rstrip("; "), exit_code)
    if record.stopping == base.TIMED_OUT:
        limit = f"time limit of {record.submission.minutes} min reached; {how}".rstrip("; ")
        return record.ended(base.TIMED_OUT, limit, exit_code)
    state = base.ENDED if exit_code is None else base.FAILED if exit_code else base.FINISHED
    return record.ended(state, how, exit_code)


class LocalQueue:
    """The queue in one directory. Methods raise OSError if the directory cannot be read or written.

    All writes happen inside `locked()`, so that no two processes change one record based on the same old version.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._active, self._ended = (os.path.join(directory, folder) for folder in ("active", "ended"))

    def create(self) -> None:
        """Create the directory. Other users may not read it: it holds the environment of scripts."""
        for path in (self.directory, self._active, self._ended):
            os.makedirs(path, mode=0o700, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the files against other processes. Not reentrant; never fork inside. Raises TimeoutError, OSError."""
        with files.locked(os.path.join(self.directory, "lock"), _LOCK_TIMEOUT_S):
            yield

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, native_id: str) -> QueueRecord | None:
        """Return the record of that id; None if there is none (any more) or it is unreadable."""
        if not (native_id.isascii() and native_id.isdigit()):
            return None
        # In this order: a record appears among the ended ones before it leaves the active ones.
        return self._load(self._active, native_id) or self._load(self._ended, native_id)

    def newest_first(self) -> Iterator[QueueRecord]:
        """Yield all records, ended or not, the newest first."""
        for native_id in sorted({*_ids(self._active), *_ids(self._ended)}, reverse=True):
            record = self.read(str(native_id))
            if record:
                yield record

    def environ(self, native_id: str) -> dict[str, str]:
        """Return the environment for the script."""
        with open(os.path.join(self._active, f"{native_id}.environ"), encoding="ascii") as file:
            found = json.load(file)
        return {str(key): str(value) for key, value in found.items()}

    def front(self) -> list[QueueRecord]:
        """Return this host's running batch jobs and the first of the waiting ones, in the order of their ids.

        They start strictly in that order, so nothing after the first waiting one has to be read.
        """
        found = []
        for native_id in sorted(_ids(self._active)):
            record = self._load(self._active, str(native_id))
            if record is None or not record.submitter.is_here():
                continue
            found.append(record)
            if record.state == base.QUEUED:
                break
        return found

    def is_turn_of(self, record: QueueRecord) -> bool:
        """Return whether that waiting batch job may start now. Reliable only inside `locked()`."""
        front = self.front()
        return bool(front) and front[-1].id == record.id and len(front) - 1 < record.limit

    # --- writing: inside `locked()` -----------------------------------------------------------------------------------

    def add(self, submission: Submission, limit: int, grace_s: float, environ: Mapping[str, str]) -> QueueRecord:
        """Add a script to the end of the queue, under a number that was never used before."""
        ended = sorted(_ids(self._ended))
        number = max([0, *ended[-1:], *_ids(self._active)]) + 1
        record = QueueRecord(str(number), submission, limit, grace_s, Holder.current(), _now_us())
        # JSON keeps bytes that are not UTF-8 as lone surrogates, in ASCII.
        variables = os.path.join(self._active, f"{number}.environ")
        files.write_atomic(variables, json.dumps(dict(environ)), 0o600)
        try:
            self.write(record)
        except OSError:
            _remove(variables)
            raise
        for old in ended[: -KEEP_ENDED or None]:
            _remove(self._path(self._ended, str(old)))
        return record

    def write(self, record: QueueRecord) -> None:
        """Replace the record atomically; one that has ended leaves the queue."""
        folder = self._active if record.ended_us is None else self._ended
        path = self._path(folder, record.id)
        files.write_atomic(path, record.to_json(), 0o600)
        if folder is self._ended:
            _remove(self._path(self._active, record.id))
            _remove(os.path.join(self._active, f"{record.id}.environ"))

    # --- missing shepherds --------------------------------------------------------------------------------------------

    def heal(self) -> dict[str, str]:
        """Start missing shepherds; record the end of scripts that ended without one. Takes the lock.

        A shepherd is missing if it is provably dead, or was started and has not appeared. Starting one too many does
        no harm: the second sees the first and exits. Returns the reasons of failures, by id.
        """
        with self.locked():
            missing = [record for record in self.front() if self._needs_shepherd(record)]
            for record in missing:
                self.write(record._replace(spawned_us=_now_us()))
        failures = {record.id: self._spawn_shepherd(record.id) for record in missing}
        return {native_id: reason for native_id, reason in failures.items() if reason}

    def _needs_shepherd(self, record: QueueRecord) -> bool:
        if record.shepherd and not record.shepherd.is_provably_dead():
            return False
        if record.spawned_us and abs(_now_us() - record.spawned_us) < _SPAWN_TIMEOUT_US:
            return False
        ended = self._load(self._ended, record.id)
        if ended:  # its shepherd died between recording the end and taking it off the queue
            self.write(ended)
            return False
        if record.runner and not process_table.family(record.runner):
            self.write(outcome(record, None))
            return False
        return True

    def _spawn_shepherd(self, native_id: str) -> str:
        """Start one, detached. Return why that failed, or ""."""
        answer = subprocess_run.run_module(f"{__package__}.shepherd", self.directory, native_id)
        return "" if answer.ok else f"exit code {answer.returncode}: {answer.stderr.strip() or '<no output>'}"

    # --- files --------------------------------------------------------------------------------------------------------

    def _load(self, folder: str, native_id: str) -> QueueRecord | None:
        try:
            with open(self._path(folder, native_id), encoding="ascii") as file:
                return QueueRecord.from_json(file.read())
        except (FileNotFoundError, ValueError, TypeError, LookupError, AttributeError):
            return None

    @staticmethod
    def _path(folder: str, native_id: str) -> str:
        return os.path.join(folder, f"{native_id}.json")


def _ids(folder: str) -> Iterator[int]:
    for name in os.listdir(folder):
        stem, _, ending = name.partition(".")
        if ending == "json" and stem.isascii() and stem.isdigit():
            yield int(stem)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def open_output(path: str) -> int:
    """Open a script's output file for appending, as a descriptor. Follows no link and never blocks.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    import stat

    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    handle = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path} is no regular file")
    os.set_blocking(handle, True)
    return handle
