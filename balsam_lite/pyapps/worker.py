"""The program of a worker: it makes calls of an executor, one after the other, that a spawn helper gives it.

`launcher.exec.workers` is the helper's side and describes the messages. Before each call the worker reports it and sets its
variables and directory; after it, the worker restores what Python code can change in a process, and ends if it cannot. What the
executor's initializer and the modules of a function change when they are imported, stays for the calls that follow.
"""

from __future__ import annotations

import marshal
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from ..launcher.exec.workers import BEGUN, DONE, LEAVES, LINK_FD, OUTPUT_FD, RENEWED, RETIRES, STAYS, new_output, publish
from . import result_file, run_call
from .result_file import Outcome, ResultHeader

_MAX_BYTES = 4 << 20
#: Signals whose handlers are compared after each call.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2)


def serve() -> int:
    """Make calls until the helper has no more for this worker, or is gone. Return the exit code.

    The arguments are --worker MAX_CALLS MAX_MIB.
    """
    max_calls, max_mib = map(int, sys.argv[2:4])
    sys.argv[1:] = []
    return CallServer(socket.socket(fileno=LINK_FD), max_calls, max_mib).run()


class CallServer:
    """The calls of one worker. `max_calls` and `max_mib` of memory end it; 0: no limit."""

    def __init__(self, link: socket.socket, max_calls: int, max_mib: int) -> None:
        self._link, self._max_calls, self._max_mib = link, max_calls, max_mib
        os.set_inheritable(LINK_FD, False)
        os.set_inheritable(OUTPUT_FD, False)
        link.setblocking(True)
        self._pid, self._fd = os.getpid(), _identity(LINK_FD)
        self._calls = 0
        self._state = _ProcessState()
        self._used = _usage()
        self._peaks: int | None = None
        with suppress(OSError):  # a kernel without it, or another system
            self._peaks = os.open("/proc/self/clear_refs", os.O_WRONLY)
        _become_subreaper()

    def run(self) -> int:
        """Make calls; return the exit code."""
        reports: list[tuple[Any, ...]] = []
        while True:
            try:
                message = self._link.recv(_MAX_BYTES, socket.MSG_DONTWAIT) if reports else self._link.recv(_MAX_BYTES)
            except BlockingIOError:
                message = None
            except OSError:  # a call has closed it: the helper does not hear of this worker any more
                return 1
            if message:
                words = marshal.loads(message)
                if len(words) == 2:
                    with open(words[1], "rb") as file:
                        words = (words[0], *marshal.load(file)[1:])
                    os.unlink(file.name)
                reports.append((BEGUN, words[0], time.time_ns() // 1000))
            if reports:
                try:
                    self._link.send(marshal.dumps(reports, 2))
                except OSError:
                    return 1
                reports = []
            if message is None:
                continue
            if not message:
                return 0
            report, code = self._make(*words)
            if report[-1] == LEAVES or report[-1] == RETIRES:
                with suppress(OSError):
                    self._link.send(marshal.dumps([report], 2))
                return code
            reports.append(report)

    def _make(
        self,
        key: int,
        own: dict[bytes, bytes],
        directory: str,
        output: str,
        root: str,
        renew: tuple[str, int, bool] | None,
        content: bytes,
        payload: bytes,
        results: tuple[Any, ...],
        needs_directory: bool,
    ) -> tuple[tuple[Any, ...], int]:
        """Make a call; return the report about it, and its exit code."""
        context = run_call.CallContext(*pickle.loads(content))
        self._calls += 1
        os.environb.update(own)
        if self._peaks is not None:
            with suppress(OSError):
                os.write(self._peaks, b"5")
        if needs_directory:
            os.chdir(directory)
        outcome = run_call.outcome_of(context, payload, results, note_setup=lambda: self._state.note(own))
        if os.getpid() != self._pid:  # the code has forked this process and returned in it, too: that is no result
            run_call.print_trace(outcome)
            os._exit(0 if outcome.good else 1)
        run_call.print_trace(outcome)
        code = 0 if outcome.good else 1
        ended_us = time.time_ns() // 1000
        if _identity(LINK_FD) != self._fd or _identity(OUTPUT_FD) != self._state.output:
            # The code has closed them. The call ends with this process, like that of any program.
            self._write(outcome, directory, own)
            sys.exit(code)
        user, system, peak = _usage()
        used = user - self._used[0], system - self._used[1], peak
        self._used = user, system, peak
        from ..launcher.exec.program import Request

        published = self._publish(Request(key, "", [], {}, directory, output, root=root, renew=renew))
        fate = self._state.restore(directory if needs_directory else "")
        if fate != LEAVES and (fate == RETIRES or self._is_used_up(context.max_calls, peak)):
            fate = RETIRES
        elif fate == STAYS and published:
            fate = RENEWED
        sent = self._sent(outcome, directory, own)
        return (DONE, key, code, sent, ended_us, *used, fate), code

    def _sent(self, outcome: Outcome, directory: str, own: dict[bytes, bytes]) -> bytes | str:
        """Return an outcome as it is reported: in bytes, or "" if it is in the result file, because it is large."""
        content = pickle.dumps(tuple(outcome), protocol=4)
        if len(content) <= run_call.MAX_INLINE_BYTES:
            return content
        self._write(outcome, directory, own)
        return ""

    def _write(self, outcome: Outcome, directory: str, own: dict[bytes, bytes]) -> None:
        """Write the result file."""
        os.makedirs(directory, exist_ok=True)
        job_id, attempt = own[b"BALSAM_JOB_ID"].decode(), int(own[b"BALSAM_ATTEMPT"])
        path = os.path.join(directory, result_file.file_name(job_id))
        with suppress(OSError):
            os.unlink(path)
        result_file.write(path, ResultHeader(job_id, attempt, outcome.good), outcome)

    def _publish(self, request: Any) -> bool:
        """Give the output of a call to its job; return whether there was any. What follows goes to a new file."""
        self._state.flush()
        state = os.fstat(OUTPUT_FD)
        if not state.st_size:
            return False
        try:
            publish(OUTPUT_FD, request)
        except Exception as exc:  # noqa: BLE001  # a disk that is full must not cost the result
            sys.stderr.write(f"The output of a call cannot be kept: {exc}\n")
        new = new_output(request.root)
        for number in (1, 2, OUTPUT_FD):
            os.dup2(new, number, inheritable=number != OUTPUT_FD)
        os.close(new)
        self._state.output = _identity(OUTPUT_FD)
        return True

    def _is_used_up(self, max_calls: int, peak_kib: int) -> bool:
        most = min(filter(None, (max_calls, self._max_calls)), default=0)
        return bool(most and self._calls >= most) or bool(self._max_mib and peak_kib > self._max_mib * 1024)


class _ProcessState:
    """What Python code can change in a process."""

    def __init__(self) -> None:
        self.output = _identity(OUTPUT_FD)
        self._environ: dict[bytes, bytes] = {}
        self.note({})

    def note(self, own: dict[bytes, bytes]) -> None:
        """Keep the present state as the one to restore, except for the variables that the present call has of its job."""
        before = {name: value for name, value in self._environ.items() if name in own}
        self._environ = {**{name: value for name, value in os.environb.items() if name not in own}, **before}
        self._argv = list(sys.argv)
        self._threads = _threads()
        self._streams = sys.stdin, sys.stdout, sys.stderr
        self._mask = os.umask(0o077)
        os.umask(self._mask)
        self._handlers = [signal.getsignal(number) for number in _SIGNALS]

    def flush(self) -> None:
        """Write what the streams hold."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # it is closed, or the code has put anything there
                stream.flush()

    def restore(self, directory: str) -> int:
        """Restore the process. Return STAYS, RETIRES if that is not possible, or LEAVES if something of the call still runs."""
        now = dict(os.environb)
        if now != self._environ:
            for name in now.keys() - self._environ.keys():
                del os.environb[name]
            os.environb.update({name: value for name, value in self._environ.items() if now.get(name) != value})
        os.chdir("/")
        os.umask(self._mask)
        sys.argv[:] = self._argv
        is_whole = not any(getattr(one, "closed", False) for one in self._streams)
        sys.stdin, sys.stdout, sys.stderr = self._streams
        for number in (1, 2):
            if _identity(number) != self.output:
                try:
                    os.dup2(OUTPUT_FD, number)
                except OSError:
                    is_whole = False
        if signal.pthread_sigmask(signal.SIG_BLOCK, ()) or signal.getitimer(signal.ITIMER_REAL)[0]:
            is_whole = False
        if [signal.getsignal(number) for number in _SIGNALS] != self._handlers:
            is_whole = False
        if _has_children() or (threading.active_count() > 1 and _threads() - self._threads):
            return LEAVES
        return STAYS if is_whole else RETIRES


def _has_children() -> bool:
    """Return whether processes run that a call has left; reap those that have ended."""
    with suppress(ChildProcessError):
        while True:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                return True
    return False


def _threads() -> set[threading.Thread]:
    """Return the threads that keep this process from ending, and the main one."""
    return {thread for thread in threading.enumerate() if not thread.daemon}


def _identity(number: int) -> tuple[int, int] | None:
    try:
        state = os.fstat(number)
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _usage() -> tuple[int, int, int]:
    """Return the CPU time used in microseconds, by kind, and the peak memory in KiB."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return int((own.ru_utime + children.ru_utime) * 1e6), int((own.ru_stime + children.ru_stime) * 1e6), own.ru_maxrss


def _become_subreaper() -> None:
    """Become the parent of processes that calls leave, even if they detach themselves."""
    from ..launcher.exec.program import become_subreaper

    become_subreaper()
