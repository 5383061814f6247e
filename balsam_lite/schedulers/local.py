"""A batch scheduler on this machine, without a daemon: the default where there is no other.

It queues scripts, runs them one after the other (or `MAX_LOCAL_LAUNCHES` at once), detached, with a time limit, and
records how they ended. This is its interface; `local_queue` is the queue on disk, `shepherd` the process that watches one
script. Any queue and project name is accepted and means nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..core.clock import SECOND_US, SystemClock
from ..core.errors import CancelFailed, PollFailed, SubmitFailed
from ..core.process_table import JOB_VARIABLES
from ..core.settings import Settings, home
from . import base
from .base import BatchStatus, Submission
from .environ import LOCAL_ENDTIME, LOCAL_JOBID, LOCAL_NODES, RANK_VARIABLES
from .local_queue import LocalQueue, QueueRecord

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
