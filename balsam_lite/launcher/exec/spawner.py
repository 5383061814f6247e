"""Start programs through spawn helpers, which own them and report how they end (see `spawn_helper`).

`Spawner` is the launcher's side: it distributes the programs among its helpers, and replaces a helper that dies. Programs are
started by a `HelperChannel` from any thread; the thread of the launcher's loop calls `poll` and reads the answers.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Union

from ...core import subprocess_run
from ...core.errors import SpawnFailed
from ...core.process_table import Process, is_younger, start_of, state_of
from ...core.subprocess_run import module_words, python_path
from . import hardware, program, spawn_helper
from .adopted import Adopted
from .program import Request, become_subreaper, framed, unframed
from .run_file import RunFile, RunFiles, Writer

log = logging.getLogger(__name__)

#: Maximum number of helpers of a launcher on a host, and the number of programs at which another one is started.
MAX_HELPERS, _PROGRAMS_PER_HELPER = 4, 4
#: Seconds without an answer after which a helper is checked: it may have been stopped.
PING_S = 2.0
#: Seconds beyond the grace for a helper to end its programs.
_LEAVE_S = 5.0
_CHANNELS = 4  # at most
_BYTES_AT_ONCE = 1 << 18


class Started(NamedTuple):
    """A program has started."""

    key: int
    pid: int
    start: str  # as identity.start_of has it
    started_us: int


class Leftover(NamedTuple):
    """A process that a program has left running."""

    name: str
    process: Process


class Ended(NamedTuple):
    """A program has ended."""

    key: int
    returncode: int  # negative: the signal that killed it
    ended_us: int
    end: int = program.BY_ITSELF
    successor: int | None = None  # the key of the queued program that has taken its place
    left: list[Leftover] | None = []  # what it has left running; None: unknown
    user_us: int | None = None  # CPU time of the program and of the processes for which it has waited
    system_us: int | None = None
    max_memory: int | None = None  # bytes; None: unknown
    outcome: bytes | str | None = None  # of a call that a worker has made; "": it is in the result file


class FailedStart(NamedTuple):
    """A program could not be started."""

    key: int
    error: SpawnFailed


class Withdrawn(NamedTuple):
    """A queued program that never started."""

    key: int


class Lost(NamedTuple):
    """A program whose helper has died. It may run, or may never have started."""

    key: int


Answer = Union[Started, Ended, FailedStart, Withdrawn, Lost]


class HelperChannel:
    """The programs of one user of a spawner, each with a key that is unique among them."""

    def __init__(self, spawner: Spawner, number: int) -> None:
        self._spawner, self._number = spawner, number
        self._answers: deque[Answer] = deque()

    def wire(self, key: int) -> int:
        """Return the key that is unique in the spawner."""
        return key * _CHANNELS + self._number

    def start(self, request: Request) -> None:
        """Start a program at once; the answers are Started and Ended, or FailedStart, or Lost."""
        self._spawner.send_request(program.START, request._replace(key=self.wire(request.key)))

    def queue(self, request: Request) -> None:
        """Queue a program to replace the next one of its lane that ends with exit code 0."""
        self._spawner.send_request(program.QUEUE, request._replace(key=self.wire(request.key)))

    def start_queued(self, key: int) -> None:
        """Start a queued program at once, if it has not been started yet."""
        self._send_about([key], program.NOW)

    def withdraw(self, keys: Collection[int]) -> None:
        """Withdraw those queued programs; the answer for each one that has not started is Withdrawn."""
        self._send_about(keys, program.WITHDRAW)

    def tell(self, keys: Collection[int]) -> None:
        """Mark these programs as told to stop."""
        self._send_about(keys, program.TELL)

    def signal(self, key: int, number: int, is_group: bool = False) -> None:
        """Signal a program, or its whole process group, unless it has ended. It counts as told to stop."""
        self._send_about([key], program.SIGNAL, int(number), is_group)

    def _send_about(self, keys: Collection[int], kind: int, *more: object) -> None:
        self._spawner.send_about([self.wire(key) for key in keys], kind, *more)

    def put(self, answer: Answer) -> None:
        """Add an answer for `answers`."""
        self._answers.append(answer)

    def answers(self) -> list[Answer]:
        """Return the answers to requests since the last call, in order."""
        return [self._answers.popleft() for _ in range(len(self._answers))]


class HelperProcess:
    """The launcher's end of one helper."""

    def __init__(self, words: Sequence[str], environ: Mapping[bytes, bytes], run_file: RunFile | None) -> None:
        self.link, end = socket.socketpair()
        # A helper ignores these signals, and until it does they must not end it: a batch system signals all processes of a job.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, spawn_helper.IGNORED)
        try:
            self.process = subprocess.Popen(
                words, stdin=end.fileno(), stdout=subprocess.DEVNULL, env=_environ(), start_new_session=True, cwd="/"
            )
        except OSError:
            self.link.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            end.close()
        self.started = start_of(self.process.pid)
        self.link.setblocking(False)
        first = (program.BEGIN, dict(environ), None if run_file is None else tuple(run_file))
        self.unread, self.unsent = bytearray(), bytearray(framed([first]))
        self.keys: set[int] = set()  # of its programs, queued ones among them
        self.queued: dict[int, int] = {}  # key -> lane
        self.waiting: Counter[int] = Counter()  # by lane
        self.heard_at = self.asked_at = time.monotonic()
        self.is_silent = False

    def load(self, lane: int) -> float:
        """Return a measure of how long a program queued for that lane waits, to compare helpers."""
        return (self.waiting[lane] + 1) / (len(self.keys) - len(self.queued) + 0.01)

    def unqueue(self, key: int) -> None:
        """Record that a program is not queued any more, if it was."""
        lane = self.queued.pop(key, None)
        if lane is not None:
            self.waiting[lane] -= 1


class Spawner:
    """Starts programs by helpers: one at first, more while each has many programs, up to `MAX_HELPERS`.

    Args:
        environ: the common environment of all programs.
        grace_s: seconds between TERM and KILL when this process is gone.
        silence_s: see `spawn_helper.Helper`.
        run_files: the files in which helpers record the programs that they start.

    Raises:
        SpawnFailed: no helper can be started.
    """

    def __init__(
        self, environ: Mapping[bytes, bytes], grace_s: float, silence_s: float = 0.0, run_files: RunFiles | None = None
    ) -> None:
        self._environ, self._grace_s, self._run_files = environ, grace_s, run_files
        self._number_of_helpers = 0  # that were ever started
        self._most = min(MAX_HELPERS, max(2, hardware.cpus() // 8))
        self._words = module_words("balsam_lite.launcher.exec.spawn_helper", str(silence_s), str(grace_s))
        self._lock = threading.RLock()
        self._channels: list[HelperChannel] = []
        self._where: dict[int, HelperProcess] = {}  # by key
        self._is_closed = self._is_unrecorded = False
        self._adopted, self._orphans = Adopted(), list[Process]()
        become_subreaper()
        self._helpers: list[HelperProcess] = []
        self._staff()

    def _staff(self) -> None:
        """Start another helper if there is none, or if all have many programs and the limit allows it."""
        is_crowded = len(self._helpers) < self._most and len(self._where) >= _PROGRAMS_PER_HELPER * len(self._helpers)
        if self._helpers and not is_crowded:
            return
        try:
            run_file = self._run_files.file(self._number_of_helpers) if self._run_files is not None else None
            self._helpers.append(HelperProcess(self._words, self._environ, run_file))
            self._number_of_helpers += 1
        except OSError as exc:
            if not self._helpers:
                raise SpawnFailed(f"{self._words[0]} cannot be started: {exc.strerror}") from exc
            self._most = len(self._helpers)  # this user's limits allow no more

    def channel(self) -> HelperChannel:
        """Return a new channel."""
        self._channels.append(HelperChannel(self, len(self._channels)))
        return self._channels[-1]

    @property
    def files(self) -> list[int]:
        """Return the descriptors that can be read when there are answers."""
        return [helper.link.fileno() for helper in self._helpers]

    @property
    def pids(self) -> list[int]:
        """Return the pids of the helpers."""
        return [helper.process.pid for helper in self._helpers]

    # --- requests -----------------------------------------------------------------------------------------------------

    def send_request(self, kind: int, request: Request) -> None:
        """Give a program to a helper. Raise SpawnFailed after `abandon`, or if no helper can be started."""
        with self._lock:
            if self._is_closed:
                raise SpawnFailed("the launcher has given up")
            self._staff()
            if request.call is not None:  # by one helper, so that there are no more workers than calls at once
                helper = self._helpers[0]
                if kind == program.QUEUE:
                    helper.queued[request.key] = request.lane
                    helper.waiting[request.lane] += 1
            elif kind == program.QUEUE:
                helper = min(self._helpers, key=lambda one: (one.is_silent, one.load(request.lane)))
                helper.queued[request.key] = request.lane
                helper.waiting[request.lane] += 1
            else:
                helper = min(self._helpers, key=lambda one: (one.is_silent, len(one.keys) - len(one.queued)))
            helper.keys.add(request.key)
            self._where[request.key] = helper
            self._send(helper, (kind, *request))

    def send_about(self, keys: Collection[int], kind: int, *more: object) -> None:
        """Send a message about programs to those helpers that have them."""
        with self._lock:
            by_helper: dict[int, tuple[HelperProcess, list[int]]] = {}
            for key in keys:
                helper = self._where.get(key)
                if helper is not None:
                    by_helper.setdefault(id(helper), (helper, []))[1].append(key)
            for helper, its in by_helper.values():
                self._send(helper, (kind, its, *more))

    def beat(self) -> None:
        """Tell the helpers that the launcher has just written its heartbeat."""
        self._send_all((program.BEAT,))

    def _send_all(self, words: tuple[Any, ...]) -> None:
        with self._lock:
            for helper in self._helpers:
                self._send(helper, words)

    def _send(self, helper: HelperProcess, words: tuple[Any, ...]) -> None:
        helper.unsent += framed([words])

    def flush(self) -> None:
        """Send the queued requests, as far as the helpers read."""
        with self._lock:
            for helper in self._helpers:
                if helper.unsent:
                    with suppress(OSError):  # a dead one is noticed when it is read
                        del helper.unsent[: helper.link.send(helper.unsent)]

    # --- answers ------------------------------------------------------------------------------------------------------

    def poll(self) -> None:
        """Read the helpers' answers into the channels, and replace those that have died."""
        with self._lock:
            self.flush()
            for helper in list(self._helpers):
                self._read(helper)
            self._look_for_silent_ones()

    def _read(self, helper: HelperProcess) -> None:
        while True:
            try:
                piece = helper.link.recv(_BYTES_AT_ONCE)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            if not piece:
                self._bury(helper)
                return
            helper.unread += piece
            if len(piece) < _BYTES_AT_ONCE:
                break
        if not helper.unread:
            return
        for words in unframed(helper.unread):
            self._note(helper, words)
        helper.heard_at, helper.is_silent = time.monotonic(), False

    def _note(self, helper: HelperProcess, words: tuple[Any, ...]) -> None:
        kind = words[0]
        if kind == program.PONG:
            return
        if kind == program.UNRECORDED:
            if not self._is_unrecorded:
                self._is_unrecorded = True
                log.warning("Starts cannot be recorded (%s). After a crash runs are found by their environment only.", words[1])
            return
        if kind == program.WITHDRAWN:
            for wire in words[1]:
                self._forget(helper, wire).put(Withdrawn(wire // _CHANNELS))
            return
        wire = words[1]
        key, channel = wire // _CHANNELS, self._channels[wire % _CHANNELS]
        if kind == program.STARTED:
            helper.unqueue(wire)
            channel.put(Started(key, *words[2:]))
        elif kind == program.ENDED:
            self._forget(helper, wire)
            _, _, code, ended_us, end, successor, *usage, left = words
            if left:
                left = [Leftover(name, Process._make(fields)) for name, *fields in left]
            channel.put(Ended(key, code, ended_us, end, None if successor is None else successor // _CHANNELS, left, *usage))
        else:
            self._forget(helper, wire)
            channel.put(FailedStart(key, _failure(*words[2:])))

    def _forget(self, helper: HelperProcess, wire: int) -> HelperChannel:
        helper.keys.discard(wire)
        helper.unqueue(wire)
        self._where.pop(wire, None)
        return self._channels[wire % _CHANNELS]

    def _bury(self, helper: HelperProcess) -> None:
        """Report the programs of a helper that has died, and start another one."""
        self._helpers.remove(helper)
        helper.link.close()
        helper.process.kill()
        code = helper.process.wait()
        if not self._is_closed:
            log.error("Spawn helper %d has died (exit code %d) with %d program(s).", helper.process.pid, code, len(helper.keys))
        self._orphans += self._adopted_from(helper)
        for wire in list(helper.keys):
            self._forget(helper, wire).put(Lost(wire // _CHANNELS))
        if not self._is_closed:
            with suppress(SpawnFailed):  # the next request reports it
                self._staff()

    def _adopted_from(self, helper: HelperProcess) -> list[Process]:
        """Return the running processes of a dead helper. Record those that it had just started and had not recorded itself."""
        found = [
            one
            for one in self._adopted.orphans({*self.pids, *subprocess_run.running})
            if is_younger(one.started, helper.started)
        ]
        if found and self._run_files is not None:
            record = Writer(self._run_files.file(self._number_of_helpers))
            self._number_of_helpers += 1
            for one in found:
                record.start(one.pid, one.started, b"")
        return found

    def take_orphans(self) -> list[Process]:
        """Return the processes, alive at that time, that helpers which died since the last call have left to this process."""
        found, self._orphans = self._orphans, []
        return found

    def _look_for_silent_ones(self) -> None:
        now = time.monotonic()
        for helper in self._helpers:
            if now - helper.asked_at < PING_S or not helper.keys:
                continue
            if helper.heard_at < helper.asked_at:
                state = state_of(helper.process.pid)
                is_stopped = state == "T"  # by another program, perhaps again before it could answer
                if not helper.is_silent:
                    what = "was stopped and is continued" if is_stopped else f"does not answer (state {state or 'unknown'})"
                    log.warning("Spawn helper %d %s. Its programs go on.", helper.process.pid, what)
                helper.is_silent = True
                if is_stopped:
                    helper.process.send_signal(signal.SIGCONT)
            helper.asked_at = now
            self._send(helper, (program.PING,))
        self.flush()

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the helpers and their remaining programs."""
        self.abandon(self._grace_s)

    def abandon(self, grace_s: float | None = None) -> None:
        """Start nothing more, make the helpers end all programs, and wait for that."""
        grace_s = self._grace_s if grace_s is None else grace_s
        with self._lock:
            self._is_closed = True
            self._send_all((program.END, grace_s))
            self.flush()
            deadline = time.monotonic() + grace_s + _LEAVE_S
            for helper in self._helpers:
                with suppress(OSError):
                    helper.link.shutdown(socket.SHUT_WR)
                helper.process.send_signal(signal.SIGCONT)
                try:
                    helper.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    helper.process.kill()
                    helper.process.wait()
                helper.link.close()
            self._helpers = []


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": python_path()}


def _failure(words: str, code: int | None, path: str | bytes | None) -> SpawnFailed:
    """Return why a program could not be started, with an OSError as its cause if there was one."""
    failure = SpawnFailed(words)
    if code is not None:
        failure.__cause__ = OSError(code, os.strerror(code), path)
    return failure


# --- sleeping ---------------------------------------------------------------------------------------------------------


class Alarm:
    """Sleeps until a signal arrives (also for a child's end) or the time is up. Use it once, as a context manager."""

    _spawner: Spawner | None = None

    def attach(self, spawner: Spawner) -> None:
        """Wake up for the spawner's answers as well, and send its requests before each sleep."""
        self._spawner = spawner

    def __enter__(self) -> Alarm:
        self._read, write = os.pipe()
        self._write = write
        for end in (self._read, write):
            os.set_blocking(end, False)
        self._old = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # without a handler Python does not write to the pipe
        return self

    def __exit__(self, *exc: object) -> None:
        signal.set_wakeup_fd(self._old)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)

    def wake(self) -> None:
        """End the sleep, or the next one. Any thread may call it."""
        with suppress(BlockingIOError):  # it is full of such calls
            os.write(self._write, b"\0")

    def wait(self, seconds: float) -> bool:
        """Sleep for `seconds`. Return True at once when a signal or an answer has arrived since the last call."""
        waiting = select.poll()  # select.select takes no descriptor beyond 1023
        waiting.register(self._read, select.POLLIN)
        if self._spawner is not None:
            self._spawner.flush()
            for file in self._spawner.files:
                waiting.register(file, select.POLLIN)
        ready = [file for file, _ in waiting.poll(max(0.0, seconds) * 1000)]
        if self._read not in ready:
            return bool(ready)
        with suppress(BlockingIOError):
            os.read(self._read, 4096)
        return True


# --- programs that are no job's ---------------------------------------------------------------------------------------


class Companion:
    """A program in this process's own group and session, with its stdout and stderr, and nothing to read.

    A signal to the group, from the terminal or a batch system, reaches both.

    Raises:
        SpawnFailed: with the reason.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], **how: Any) -> None:
        try:
            self._process = subprocess.Popen(argv, **{"stdin": subprocess.DEVNULL, "env": environ, **how})
        except OSError as exc:
            raise SpawnFailed(f"{argv[0]} cannot be started: {exc.strerror}") from exc

    def signal(self, number: int) -> None:
        """Send a signal to the program if it is alive."""
        self._process.send_signal(number)

    def returncode(self) -> int | None:
        """Return the return code; None while it runs; negative: the signal that killed it."""
        return self._process.poll()


class Piped(Companion):
    """A program in a separate session, with pipes to its stdin, stdout and stderr.

    The terminal's signals do not reach it; when this process dies, its stdin ends.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        super().__init__(argv, environ, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        assert self._process.stdin is not None and self._process.stdout is not None and self._process.stderr is not None
        self._stdin = self._process.stdin.fileno()
        self.stdout, self.stderr = self._process.stdout.fileno(), self._process.stderr.fileno()

    def tell(self, line: bytes) -> None:
        """Write to the program's stdin, if it still reads."""
        with suppress(OSError):
            os.write(self._stdin, line)
