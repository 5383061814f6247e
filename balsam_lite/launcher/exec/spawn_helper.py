"""The program of a spawn helper: start programs for a launcher, reap them, refill their slots, end them when it is gone.

It runs as a separate process; its standard input is a socket to the launcher, and `spawner` is the other end. It has one
thread, so that starting a program is one call of posix_spawn after a chdir. All processes that it has started stay below it in
the process tree, even those that double-fork or open a session, because a helper is a subreaper (prctl(2)): when the launcher
is gone, the helper ends that tree, even if the programs have changed their environment.

Messages are tuples, each written by marshal after its length. The launcher sends START to END below; the helper answers with
STARTED to PONG, several in one piece while it has more programs to start, else at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ...core.errors import SpawnFailed
from ...core.process_table import DETACHED_VARIABLE, RUN_VARIABLE, run_mark_of, sees_processes
from .adopted import Adopted, HelperRun
from .program import (
    ABANDONED,
    BEAT,
    BEGIN,
    BY_ITSELF,
    ENDED,
    FAILED,
    NOW,
    PING,
    PONG,
    QUEUE,
    SIGNAL,
    START,
    STARTED,
    TELL,
    TOLD,
    UNRECORDED,
    WITHDRAW,
    WITHDRAWN,
    Request,
    become_subreaper,
    boot_tick,
    framed,
    now_us,
    spawn,
    start_of_child,
    unframed,
)
from .run_file import RunFile, Writer
from .usage import PeakMemory
from .workers import CallWorker, WorkerPool

_RUN, _DETACHED = RUN_VARIABLE.encode(), DETACHED_VARIABLE.encode()
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
#: While more programs wait to be started, answers are collected for at most this long, in seconds.
_BATCH_S = 0.01
#: Interval, in seconds, at which a helper checks for adopted processes, to record them for the time after a crash; by the
#: seconds since its last start: programs go into the background soon after they were started, or when they end.
_LOOK_PERIODS_S = ((0.2, 0.02), (2.0, 0.1), (float("inf"), 1.0))
#: Interval, in seconds, at which a helper checks processes that it is ending, and seconds after SIGKILL until it gives up.
_END_PERIOD_S, _UNKILLABLE_S = 0.01, 30.0
#: When memory runs out, the kernel kills programs started here before the launcher: see proc_pid_oom_score_adj(5).
_OOM_SCORE_ADJ = 300
_BYTES_AT_ONCE = 1 << 18
_LINUX = sys.platform.startswith("linux")


class Helper:
    """One spawn helper, from the first message to the end of the launcher.

    Args:
        silence_s: the runs are ended when the launcher has not sent BEAT for this number of seconds; 0: never.
        grace_s: between TERM and KILL at the launcher's end.
    """

    def __init__(self, link: socket.socket, silence_s: float, grace_s: float) -> None:
        self._link, self._silence_s, self._grace_s = link, silence_s, grace_s
        self._environ: dict[bytes, bytes] = {}
        self._record: Writer | None = None
        self._runs: dict[int, HelperRun] = {}  # by pid
        self._by_key: dict[int, HelperRun] = {}
        self._queues: dict[int, deque[Request]] = {}  # by lane
        self._queued = 0
        self._answers: list[tuple[Any, ...] | list[Any]] = []
        self._ended: list[tuple[HelperRun, list[Any]]] = []  # with its answer, which lacks what the run has left
        self._adopted = Adopted()
        self._peak = PeakMemory()
        self._sees_processes = sees_processes()
        self._look_at = self._started_at = 0.0  # when to look for adopted processes; when the last program was started
        self._flush_at = 0.0
        self._workers = WorkerPool(
            self._answer, self._runs, self._by_key, self._next_queued, self._requeue, self._note_start, self._watch
        )
        self._unread = bytearray()
        self._unsent = b""
        self._beat_at = _boot_time()
        self._is_over = False
        self._wake, wake = os.pipe()
        for end in (self._wake, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        link.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)
        self._poll.register(link, select.POLLIN)

    def _watch(self, fd: int, is_new: bool) -> None:
        if is_new:
            self._poll.register(fd, select.POLLIN)
        else:
            self._poll.unregister(fd)

    def run(self) -> None:
        """Work until the launcher tells it to end, or is gone."""
        while not self._is_over:
            if self._sleep():
                self._hear()
            self._reap()
            if self._runs and time.monotonic() >= self._look_at:
                self._look_for_leftovers()
            if self._workers.by_fd:
                self._workers.look()
            self._look_for_life()
            self._flush()
        self._end_everything(BY_ITSELF)

    def _sleep(self) -> bool:
        """Sleep until an event happens or something is due; return whether a message has arrived."""
        due_s = [self._flush_at - time.monotonic()] if self._answers and self._queued else []
        if self._runs:
            due_s.append(self._look_at - time.monotonic())
            if self._workers.by_fd:
                due_s.append(self._workers.due_at - time.monotonic())
            if self._silence_s:
                due_s.append(self._beat_at + self._silence_s - _boot_time())
        has_message = False
        for fd, _ in self._poll.poll(max(0.0, min(due_s)) * 1000 + 1 if due_s else None):
            if fd in self._workers.by_fd:
                self._workers.hear(self._workers.by_fd[fd])
                continue
            if fd != self._wake:
                has_message = True
                continue
            with suppress(BlockingIOError):
                os.read(self._wake, 512)
        return has_message

    # --- messages -----------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        for kind, *words in self._messages():
            if kind == START:
                self._start(Request._make(words))
            elif kind == QUEUE:
                request = Request._make(words)
                self._queues.setdefault(request.lane, deque()).append(request)
                self._queued += 1
            elif kind == NOW:
                for request in self._unqueue(set(words[0])):
                    self._start(request)
            elif kind == WITHDRAW:
                self._answer((WITHDRAWN, [request.key for request in self._unqueue(set(words[0]))]))
            elif kind == TELL:
                self._tell(words[0])
            elif kind == SIGNAL:
                self._signal(*words)
            elif kind == BEGIN:
                self._begin(*words)
            elif kind == BEAT:
                self._beat_at = _boot_time()
            elif kind == PING:
                self._answer((PONG,))
            else:
                self._is_over, self._grace_s = True, words[0]

    def _begin(self, environ: dict[bytes, bytes], run_file: tuple[Any, ...] | None) -> None:
        self._environ = self._workers.environ = environ
        if run_file is not None:
            self._record = Writer(RunFile._make(run_file))
            self._note_start(os.getpid(), start_of_child(os.getpid()), b"")
        # From now on, the next launcher ends this helper before it takes the jobs. Until now, it may have taken them already.
        self._is_over = self._is_over or self._is_alone()

    def _is_alone(self) -> bool:
        """Return whether the launcher is gone; some of its messages may still be unread."""
        waiting = select.poll()
        waiting.register(self._link, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in waiting.poll(0))

    def _messages(self) -> Iterator[tuple[Any, ...]]:
        """Yield the launcher's messages. Reads all first: once the launcher is gone, no requested program may start."""
        while True:
            try:
                piece = self._link.recv(_BYTES_AT_ONCE)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece:
                self._is_over = True
                break
            self._unread += piece
        for words in unframed(self._unread):
            if not (self._is_over and words[0] in (START, QUEUE, NOW)):  # this launcher is gone, and the next one has its jobs
                yield words

    def _answer(self, words: tuple[Any, ...] | list[Any]) -> None:
        if not self._answers:
            self._flush_at = time.monotonic() + _BATCH_S
        self._answers.append(words)

    def _flush(self) -> None:
        """Send the answers when they are due: at once if nothing is queued; later if the launcher does not read."""
        if self._answers and (not self._queued or time.monotonic() >= self._flush_at):
            if self._ended:
                self._look_for_leftovers()
            self._unsent += framed(self._answers)
            self._answers = []
        if not self._unsent:
            return
        try:
            self._unsent = self._unsent[self._link.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self._unsent, self._is_over = b"", True
        self._poll.modify(self._link, select.POLLIN | (select.POLLOUT if self._unsent else 0))

    def _unqueue(self, keys: set[int]) -> list[Request]:
        self._workers.retract_keys(keys)
        found: list[Request] = []
        for lane, queue in self._queues.items():
            if any(request.key in keys for request in queue):
                found += [request for request in queue if request.key in keys]
                self._queues[lane] = deque(request for request in queue if request.key not in keys)
        self._queued -= len(found)
        return found

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start(self, request: Request) -> bool:
        started_us, tick = now_us(), boot_tick()
        try:
            if request.call is not None:
                self._workers.start(request)
                return True
            pid = spawn(request, self._environ)
        except SpawnFailed as exc:
            code, path = (exc.__cause__.errno, exc.__cause__.filename) if isinstance(exc.__cause__, OSError) else (None, None)
            self._answer((FAILED, request.key, exc.message, code, path if isinstance(path, (str, bytes)) else None))
            return False
        self._started_at = time.monotonic()
        self._look_at = min(self._look_at, self._started_at + _LOOK_PERIODS_S[0][1])
        run = self._runs[pid] = self._by_key[request.key] = HelperRun(
            request.key, request.lane, pid, request.directory, request.own.get(_RUN, b""), _DETACHED in request.own
        )
        start = tick if tick and tick == boot_tick() else start_of_child(pid)
        self._note_start(pid, start, run.mark)
        self._answer((STARTED, request.key, pid, start, started_us))
        return True

    def _note_start(self, pid: int, start: str, mark: bytes) -> None:
        """Record a start for the next launcher."""
        trouble = self._record.start(pid, start, mark) if self._record is not None else ""
        if trouble:
            self._answer((UNRECORDED, trouble))

    # --- ends ---------------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Reap the children that have ended, including adopted ones, and refill the slots of successful runs."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG) if self._sees_processes else self._end_group_and_wait()
            except ChildProcessError:
                return
            if not pid:
                return
            run = self._runs.pop(pid, None)
            if run is None:
                continue
            ended_us, code = now_us(), os.waitstatus_to_exitcode(status)
            if isinstance(run, CallWorker):
                used = int(usage.ru_utime * 1e6), int(usage.ru_stime * 1e6), self._peak.read(usage.ru_maxrss)
                of_call = self._workers.note_exit(run, code, ended_us, *used)
                if of_call is not None:
                    self._ended.append((run, of_call))
                    self._answer(of_call)
                continue
            del self._by_key[run.key]
            successor = None
            if code == 0 and run.end == BY_ITSELF and run.lane:
                successor = self._refill(run.lane)
            times = int(usage.ru_utime * 1e6), int(usage.ru_stime * 1e6)
            answer = [ENDED, run.key, code, ended_us, run.end, successor, *times, self._peak.read(usage.ru_maxrss)]
            self._ended.append((run, answer))
            self._answer(answer)

    def _end_group_and_wait(self) -> tuple[int, int, Any]:
        """Reap a child without /proc, as wait4 does. End the rest of its group now: later nothing would find it."""
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return 0, 0, None
        run = self._runs.get(found.si_pid)
        if run is not None and not run.is_kept:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(run.pid, signal.SIGKILL)
        return os.wait4(found.si_pid, 0)

    def _look_for_leftovers(self) -> None:
        """Record adopted processes, and add to the answers about ended runs the processes that each has left."""
        ended, self._ended = self._ended, []
        over, fresh = self._adopted.look(self._runs, [run for run, _ in ended])
        for run, answer in ended:
            answer.append(self._adopted.of(run.pid))
        if self._record is not None:
            for pid in over:
                self._record.end(pid)
            for process, mark in fresh:
                self._note_start(process.pid, process.started, mark)
        now = time.monotonic()
        self._look_at = now + next(period for age, period in _LOOK_PERIODS_S if now - self._started_at < age)

    def _refill(self, lane: int) -> int | None:
        while (request := self._next_queued(lane)) is not None:
            if self._start(request):
                return request.key
        return None

    def _next_queued(self, lane: int) -> Request | None:
        queue = self._queues.get(lane)
        if not queue:
            return None
        self._queued -= 1
        return queue.popleft()

    def _requeue(self, request: Request) -> None:
        self._queues.setdefault(request.lane, deque()).appendleft(request)
        self._queued += 1

    def _tell(self, keys: list[int]) -> None:
        """Mark those of these runs that have not ended as told to stop."""
        self._reap()
        self._workers.hear_all()
        for key in keys:
            run = self._by_key.get(key)
            if run is not None:
                run.end = TOLD
                if isinstance(run, CallWorker):
                    self._workers.doom(run)

    def _signal(self, keys: list[int], number: int, is_group: bool) -> None:
        """Signal those of these runs that have not been reaped: until then no other process can have their pids."""
        self._tell(keys)
        for key in keys:
            if key in self._by_key:
                with suppress(ProcessLookupError, PermissionError):
                    (os.killpg if is_group else os.kill)(self._by_key[key].pid, number)

    # --- the launcher's end -------------------------------------------------------------------------------------------

    def _look_for_life(self) -> None:
        """End all runs if the launcher may have lost its lease: other launchers may take the jobs then."""
        if self._silence_s and self._runs and _boot_time() - self._beat_at >= self._silence_s:
            self._end_everything(ABANDONED)

    def _end_everything(self, end: int) -> None:
        """Give the queued programs back, and end all processes below this one, including new ones: TERM, grace, KILL."""
        self._workers.retract_all()
        if self._queued:
            queued = {request.key for queue in self._queues.values() for request in queue}
            self._answer((WITHDRAWN, [request.key for request in self._unqueue(queued)]))
        for run in self._runs.values():
            run.end = run.end or end or TOLD
        from ...core.process_table import below, signal_all

        told: set[Any] | None = None
        kill_at = time.monotonic() + self._grace_s
        number = signal.SIGTERM
        while True:
            self._reap()
            living = below(os.getpid())  # without /proc, nothing: process groups must do
            now = time.monotonic()
            if not (living or self._runs) or now > kill_at + _UNKILLABLE_S:
                return
            if now >= kill_at:
                number = signal.SIGKILL
            if number == signal.SIGKILL or told is None or not told.issuperset(living):
                for one in living:
                    if told is None or one not in told:  # it may outlive its parent, and this process
                        self._note_start(one.pid, one.started, run_mark_of(one.pid))
                for pid in self._runs:
                    with suppress(ProcessLookupError, PermissionError):
                        os.killpg(pid, number)
                signal_all(living, number)
                told = {*(told or ()), *living}
            time.sleep(_END_PERIOD_S)


# --- the process ------------------------------------------------------------------------------------------------------


def _boot_time() -> float:
    """Return seconds of a clock that runs while this host sleeps, because its lease can expire on other hosts meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _LINUX else time.monotonic()


def _raise_oom_score() -> None:
    """Make the kernel kill programs rather than the launcher when memory runs out: children inherit the score."""
    with suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+", encoding="ascii") as file:
        score = int(file.read())
        file.seek(0)
        file.write(str(min(1000, score + _OOM_SCORE_ADJ)))


def main() -> None:
    """Serve the launcher at the other end of stdin. The arguments are SILENCE_S GRACE_S."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)  # the launcher blocks them for the time until here
    become_subreaper()
    _raise_oom_score()
    link = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    Helper(link, float(sys.argv[1]), float(sys.argv[2])).run()


if __name__ == "__main__":
    main()
