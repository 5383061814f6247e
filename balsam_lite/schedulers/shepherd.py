"""The process that watches one local batch job: waits for its turn, starts it, ends it at its limit, records how it ended.

    python -m balsam_lite.schedulers.shepherd DIRECTORY ID

It may be killed at any moment. All its decisions are on disk before they take effect, and another shepherd continues
from there. A script is started once: the process that becomes it claims the record first, under the queue's lock, and
does so only while the shepherd that forked it is still the recorded one.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
import traceback
from typing import NoReturn

from ..core import daemon, process_table
from ..core.clock import SECOND_US, SystemClock
from ..core.process_table import Holder
from . import base, environ
from .local import LocalQueue, QueueRecord, open_output, outcome

_PAUSE_S = 0.4  # between two looks at the queue; a child's end is noticed at once
_HEAL_S = 2.0  # between two checks for missing shepherds
_LEFTOVERS = "leftovers"  # QueueRecord.stopping: the script is over, its background processes are not

_now_us = SystemClock.now_us


class Shepherd:
    """Watches batch job `native_id`. `tick` does one turn, `run` all of them."""

    def __init__(self, queue: LocalQueue, native_id: str) -> None:
        self._queue, self._id = queue, native_id
        self._me = Holder.current()
        self._child = 0  # the child that it forked and has not waited for
        self._exit = (0, 0)  # pid and wait status of the last child
        self._next_fork = 0.0
        self._seen: list[process_table.Process] = []
        self._next_heal = 0.0

    def run(self) -> None:
        alarm = _wake_on_child_exit()
        if not self._claim():
            return
        while True:
            try:
                if not self.tick():
                    return
                pause = _PAUSE_S
            except OSError:  # a full disk or an unreachable network file system may recover; the script goes on
                daemon.write_stderr(traceback.format_exc())
                pause = 10 * _PAUSE_S
            _sleep(alarm, pause)

    def _claim(self) -> bool:
        """Become the recorded shepherd, unless another one lives or nothing is left to do."""
        with self._queue.locked():
            record = self._queue.read(self._id)
            if record is None or record.ended_us is not None or not record.submitter.is_here():
                return False
            if record.shepherd and not record.shepherd.is_provably_dead():
                return False
            self._queue.write(record._replace(shepherd=self._me, spawned_us=0))
            return True

    def tick(self) -> bool:
        """Take one turn. Return whether another one follows."""
        self._reap()
        record = self._queue.read(self._id)
        if record is None or record.ended_us is not None or record.shepherd != self._me:
            return False
        if record.state == base.QUEUED:
            if not self._child and time.monotonic() >= self._next_fork and self._queue.is_turn_of(record):
                self._fork()
        elif not self._watch(record):
            return False
        self._heal_others()
        return True

    def _heal_others(self) -> None:
        if time.monotonic() >= self._next_heal:
            self._next_heal = time.monotonic() + _HEAL_S
            for native_id, reason in self._queue.heal().items():
                daemon.write_stderr(f"no shepherd for batch job {native_id}: {reason}\n")

    # --- starting -----------------------------------------------------------------------------------------------------

    def _fork(self) -> None:
        self._child = os.fork()
        if self._child:
            self._next_fork = time.monotonic() + _HEAL_S  # if the child fails, it would fail again a moment later
            self._next_heal = 0.0  # the next one is now first in the queue and needs a shepherd
            return
        try:
            self._become_script()
        finally:
            daemon.write_stderr(traceback.format_exc())
            os._exit(126)  # whatever happened, this process must not go on as a second shepherd

    def _become_script(self) -> NoReturn:
        """Claim the record as this very process, then become the script. Runs in the child."""
        os.setsid()
        with self._queue.locked():
            record = self._queue.read(self._id)
            if record is None or record.state != base.QUEUED or record.shepherd != self._me:
                os._exit(0)  # cancelled meanwhile, or a new shepherd has taken over from a dead one
            if not self._queue.is_turn_of(record):
                os._exit(0)
            try:
                variables = self._queue.environ(self._id)
                output = open_output(record.submission.output)
                os.chdir(record.submission.directory)
            except (OSError, ValueError) as exc:
                self._queue.write(record.ended(base.FAILED, f"not started: {exc}"))
                os._exit(0)
            record = record._replace(state=base.RUNNING, runner=Holder.current(), started_us=_now_us())
            self._queue.write(record)
        os.dup2(output, 1)
        os.dup2(output, 2)
        _execute(record, variables)

    # --- running and ending -------------------------------------------------------------------------------------------

    def _watch(self, record: QueueRecord) -> bool:
        """Watch a script that some shepherd started. Return whether any of its processes is left."""
        assert record.runner is not None
        over = self._is_over(record.runner)
        if not over and not record.stopping:
            self._stop_if_due(record)
            return True
        members = process_table.family(record.runner, self._seen)
        if over and not members:
            self._finish(record)
            return False
        if not record.stopping:
            self._stop(record, _LEFTOVERS)
        elif _now_us() - record.stopping_us > record.grace_s * SECOND_US:
            process_table.signal_all(members, signal.SIGKILL)
        return True

    def _is_over(self, runner: Holder) -> bool:
        """Return whether the script has ended: its own child once it was waited for, an adopted one once it is dead."""
        if runner.pid in (self._child, self._exit[0]):
            return self._child == 0
        return runner.is_provably_dead()

    def _reap(self) -> None:
        if self._child:
            pid, status = os.waitpid(self._child, os.WNOHANG)
            if pid:
                self._child, self._exit = 0, (pid, status)

    def _stop_if_due(self, record: QueueRecord) -> None:
        if record.cancelled_us is not None:
            self._stop(record, base.CANCELLED)
        elif _now_us() >= record.deadline_us:
            self._stop(record, base.TIMED_OUT)

    def _stop(self, record: QueueRecord, why: str) -> None:
        """Record that the script's processes are being ended and why, then signal them."""
        assert record.runner is not None
        with self._queue.locked():
            self._queue.write(record._replace(stopping=why, stopping_us=_now_us()))
        self._seen = process_table.family(record.runner)
        process_table.terminate_session(record.runner, self._seen)

    def _finish(self, record: QueueRecord) -> None:
        assert record.runner is not None
        pid, status = self._exit
        with self._queue.locked():
            self._queue.write(outcome(record, status if pid == record.runner.pid else None))
        self._next_heal = 0.0
        self._heal_others()


def _execute(record: QueueRecord, variables: dict[str, str]) -> NoReturn:
    """Become the script, with every signal as in a fresh process (Python ignores SIGPIPE, nohup ignores SIGHUP)."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):  # the C library reserves two of them
            pass
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    variables[environ.LOCAL_JOBID] = record.id
    variables[process_table.DETACHED_VARIABLE] = "1"
    variables[environ.LOCAL_NODES] = str(record.submission.nodes)
    variables[environ.LOCAL_ENDTIME] = str(record.deadline_us // SECOND_US)
    script = record.submission.script
    try:
        try:
            os.execve(script, [script], variables)
        except OSError as exc:
            if exc.errno != errno.ENOEXEC:
                raise
            os.execve("/bin/sh", ["/bin/sh", script], variables)  # it has no #! line: do what a shell would do
    except (OSError, ValueError) as exc:
        os.write(2, f"{script} could not be started: {exc}\n".encode("utf-8", "replace"))
    os._exit(127)


# --- the process ------------------------------------------------------------------------------------------------------


def _wake_on_child_exit() -> int:
    """Return a descriptor that becomes readable when a child ends."""
    readable, writable = os.pipe()
    os.set_blocking(readable, False)
    os.set_blocking(writable, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    return readable


def _sleep(alarm: int, seconds: float) -> None:
    waiting = select.poll()  # select.select takes no descriptor beyond 1023
    waiting.register(alarm, select.POLLIN)
    if waiting.poll(seconds * 1000):
        os.read(alarm, 4096)


def main(argv: list[str]) -> None:
    """Watch the batch job `argv[1]` of the queue in the directory `argv[0]`."""
    directory, native_id = argv
    daemon.detach()("", os.path.join(directory, "shepherd.log"))
    Shepherd(LocalQueue(directory), native_id).run()


if __name__ == "__main__":
    main(sys.argv[1:])
