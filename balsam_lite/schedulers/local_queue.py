"""The local queue on disk: one small file per batch job, and the rules for the order in which they start.

    <home>/local-scheduler/active/ID.json      queued and running ones
                           active/ID.environ   the script's environment, until it ends
                           ended/ID.json       those that are over, the newest thousand
                           lock, shepherd.log

There is no daemon. Each running batch job has a shepherd (a process, see `shepherd`), and so has the first one that
waits. Any process that reads the queue (a command, a shepherd) starts missing shepherds: see `heal`. This
module never runs or ends a script.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from ..core import files, process_table, subprocess_run
from ..core.clock import SECOND_US, SystemClock
from ..core.process_table import Holder
from . import base
from .base import BatchStatus, Submission

#: Microseconds within which a shepherd has to appear. Python starts within a second on a busy machine.
_SPAWN_TIMEOUT_US = 10 * SECOND_US
#: Time limit for the lock: on a broken network file system the call may never return.
_LOCK_TIMEOUT_S = 20.0
_KEEP_ENDED = 1000

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
        for old in ended[: -_KEEP_ENDED or None]:
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
