"""The program of a spawn helper: start programs for a launcher, reap them, refill their slots, end them when it is gone.

It runs as a separate process; its standard input is a socket to the launcher, and `spawner` is the other end. It has one
thread, so that starting a program is one call of posix_spawn after a chdir. All processes that it has started stay below it in
the process tree, even those that double-fork or open a session, because a helper is a subreaper (prctl(2)): when the launcher
is gone, the helper ends that tree, even if the programs have changed their environment.

Messages are tuples, each written by marshal after its length. The launcher sends START to END below; the helper answers with
STARTED to PONG, several in one piece while it has more programs to start, else at once.
"""

from __future__ import annotations

import errno
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from ...core.errors import SpawnFailed
from ...core.process_table import DETACHED_VARIABLE, RUN_VARIABLE, run_mark_of, sees_processes
from .adopted import Adopted, HelperRun
from .run_file import RunFile, Writer
from .usage import PeakMemory

# From the launcher: (START, *Request), (QUEUE, *Request), (NOW, keys), (WITHDRAW, keys), (TELL, keys),
# (SIGNAL, keys, number, is_group), (BEGIN, common environment, RunFile or None), (BEAT,), (PING,), (END, grace_s).
START, QUEUE, NOW, WITHDRAW, TELL, SIGNAL, BEGIN, BEAT, PING, END = range(10)
# To it: (STARTED, key, pid, started, started_us),
# (ENDED, key, return code, ended_us, end, key of the successor or None, user_us, system_us, peak memory or None,
# [(name, *Process) of what it has left] or None),
# (FAILED, key, words, errno or None, path or None), (WITHDRAWN, keys), (PONG,), (UNRECORDED, why).
STARTED, ENDED, FAILED, WITHDRAWN, PONG, UNRECORDED = range(6)
#: How a run ended: by itself; after it had been told to stop; because the launcher sent no heartbeat.
BY_ITSELF, TOLD, ABANDONED = range(3)

_RUN, _DETACHED = RUN_VARIABLE.encode(), DETACHED_VARIABLE.encode()
#: Bytes of the number that is a message's length.
LENGTH_BYTES = 4
#: Marks a variable that the launcher has but a program must not have. No real value contains a NUL.
UNSET = b"\0"

#: Programs get back the default action of signals that are ignored here, or by the process that started the launcher.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
#: While more programs wait to be started, answers are collected for at most this long, in seconds.
_BATCH_S = 0.01
#: Interval, in seconds, at which a helper checks for adopted processes, to record them for the time after a crash; by the
#: seconds since its last start: programs go into the background soon after they were started, or when they end.
_LOOK_PERIODS_S = ((0.2, 0.02), (2.0, 0.1), (float("inf"), 1.0))
#: Interval, in seconds, at which a helper checks processes that it is ending, and seconds after SIGKILL until it gives up.
_END_PERIOD_S, _UNKILLABLE_S = 0.01, 30.0
#: When memory runs out, the kernel kills programs started here before the launcher: see proc_pid_oom_score_adj(5).
_OOM_SCORE_ADJ = 300
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_BYTES_AT_ONCE = 1 << 18
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LINUX = sys.platform.startswith("linux")


class Request(NamedTuple):
    """A program to start in `directory`, in a new session, with stdout and stderr in the file `output` there."""

    key: int  # given back with the answers
    program: str  # a path
    argv: list[bytes]
    own: dict[bytes, bytes]  # what its environment has beyond the common one, or instead of it
    directory: str
    output: str  # never through a link
    appends: bool = False  # to the output; else that is made anew, and must not exist
    root: str = ""  # below which `directory` is made if it is missing; "": it is not made
    renew: tuple[str, int, bool] | None = None  # for `job_files.renew`, which puts aside what has the output's name
    prepare: bytes = b""  # pickled: (function, arguments) of what is to be done before
    cpus: tuple[int, ...] = ()  # it may run on these; (): on all that this process may
    lane: int = 0  # what is queued takes the place of a run of the same lane; 0: of none


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

    def run(self) -> None:
        """Work until the launcher tells it to end, or is gone."""
        while not self._is_over:
            if self._sleep():
                self._hear()
            self._reap()
            if self._runs and time.monotonic() >= self._look_at:
                self._look_for_leftovers()
            self._look_for_life()
            self._flush()
        self._end_everything(BY_ITSELF)

    def _sleep(self) -> bool:
        """Sleep until an event happens or something is due; return whether a message has arrived."""
        due_s = [self._flush_at - time.monotonic()] if self._answers and self._queued else []
        if self._runs:
            due_s.append(self._look_at - time.monotonic())
            if self._silence_s:
                due_s.append(self._beat_at + self._silence_s - _boot_time())
        has_message = False
        for fd, _ in self._poll.poll(max(0.0, min(due_s)) * 1000 + 1 if due_s else None):
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
        self._environ = environ
        if run_file is not None:
            self._record = Writer(RunFile._make(run_file))
            self._note_start(os.getpid(), _start_of_child(os.getpid()), b"")
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
        found: list[Request] = []
        for lane, queue in self._queues.items():
            if any(request.key in keys for request in queue):
                found += [request for request in queue if request.key in keys]
                self._queues[lane] = deque(request for request in queue if request.key not in keys)
        self._queued -= len(found)
        return found

    # --- starting -----------------------------------------------------------------------------------------------------

    def _start(self, request: Request) -> bool:
        started_us, tick = _now_us(), _boot_tick()
        try:
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
        start = tick if tick and tick == _boot_tick() else _start_of_child(pid)
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
            del self._by_key[run.key]
            ended_us, code = _now_us(), os.waitstatus_to_exitcode(status)
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
        queue = self._queues.get(lane)
        while queue:
            request = queue.popleft()
            self._queued -= 1
            if self._start(request):
                return request.key
        return None

    def _tell(self, keys: list[int]) -> None:
        """Mark those of these runs that have not ended as told to stop."""
        self._reap()
        for key in keys:
            if key in self._by_key:
                self._by_key[key].end = TOLD

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


# --- one program ------------------------------------------------------------------------------------------------------


def spawn(request: Request, environ: Mapping[bytes, bytes]) -> int:
    """Start a program; return its pid. Raise SpawnFailed if that is impossible, from the OSError that is the cause, if any."""
    try:
        is_new = bool(request.root) and make_directory(request.directory, request.root)
        if request.prepare:
            import pickle

            for function, arguments in pickle.loads(request.prepare):
                function(*arguments)
        if request.renew and (request.renew[1] > 1 or not (is_new or request.renew[2])):
            request = _renewed(request)
        try:
            return _start(request, environ)
        except FileExistsError:
            request = _renewed(request) if request.renew else request._replace(appends=True)
            return _start(request, environ)
    except SpawnFailed:
        raise
    except (OSError, ValueError) as exc:
        _explain(exc, request)
    except Exception as exc:  # noqa: BLE001  # preparing a job may raise anything
        error: BaseException | None = exc
        while error is not None and not isinstance(error, OSError):
            error = error.__cause__
        raise SpawnFailed(getattr(exc, "message", "") or str(exc) or type(exc).__name__) from error


def make_directory(path: str, root: str) -> bool:
    """Make a working directory and the directories above it, but never `root` itself; return whether it is new.

    `root` is the DB's data/. If it is missing, its file system is not mounted, and mounting it later would hide the results.

    Raises:
        SpawnFailed: with the reason.
    """
    try:
        os.mkdir(path)
    except FileExistsError:
        return False
    except OSError:
        try:
            if path.startswith(f"{root}/"):
                os.stat(root)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.mkdir(path)
        except FileExistsError:
            return False
        except OSError as exc:
            raise SpawnFailed(f"the working directory cannot be made: {exc}") from exc
    return True


def _renewed(request: Request) -> Request:
    from ...core import job_files

    assert request.renew is not None
    job_id, attempt, is_generated = request.renew
    output = job_files.renew(request.directory, request.output, job_id, attempt, is_generated)
    return request._replace(output=output, appends=True, renew=None)


def _start(request: Request, environ: Mapping[bytes, bytes]) -> int:
    if not request.cpus:
        return _spawn(request, environ)
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, request.cpus)
    except OSError as exc:
        raise SpawnFailed(f"it cannot be pinned to CPU {', '.join(map(str, request.cpus))}: {exc.strerror}") from exc
    try:
        return _spawn(request, environ)
    finally:
        os.sched_setaffinity(0, before)


def _spawn(request: Request, environ: Mapping[bytes, bytes]) -> int:
    variables = {**environ, **request.own}
    if UNSET in request.own.values():
        variables = {name: value for name, value in variables.items() if value != UNSET}
    os.chdir(request.directory)
    flags = OUTPUT_FLAGS | os.O_APPEND | (0 if request.appends else os.O_EXCL)
    try:
        return os.posix_spawn(
            request.program,
            request.argv,
            variables,
            file_actions=(
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, request.output, flags, 0o666),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ),
            setsid=True,
            setsigmask=(),
            setsigdef=_DEFAULT_SIGNALS,
        )
    except NotImplementedError:  # the C library cannot open a session in posix_spawn: glibc before 2.26, macOS before 10.15
        return _spawn_by_subprocess(request, variables, flags)


def _spawn_by_subprocess(request: Request, variables: Mapping[bytes, bytes], flags: int) -> int:
    import subprocess

    output = os.open(request.output, flags, 0o666)
    try:
        child = subprocess.Popen(
            request.argv,
            executable=request.program,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)
    child.returncode = 0  # the helper waits for it, not this object
    return child.pid


def _explain(exc: OSError | ValueError, request: Request) -> NoReturn:
    """Raise SpawnFailed: why the program could not be started."""
    if not isinstance(exc, OSError):
        raise SpawnFailed(f"{request.program} cannot be started: {exc}")
    # posix_spawn does not tell which path failed: check whether it was the directory or the output file.
    path = os.path.join(request.directory, request.output)
    error = OSError(exc.errno, exc.strerror, request.program)  # for the check whether the machine is to blame
    if not os.path.isdir(request.directory):
        error.filename = request.directory
        raise SpawnFailed(f"the working directory {request.directory} cannot be entered: {exc.strerror}") from error
    try:
        os.close(os.open(path, OUTPUT_FLAGS | os.O_CLOEXEC, 0o666))
    except OSError as at_output:
        error.filename = path
        raise SpawnFailed(f"the output file {path} cannot be written: {at_output.strerror}") from error
    if exc.errno == errno.ENOEXEC:
        words = "cannot be executed: it is no program, and its first line is no #! line"
    elif exc.errno == errno.ENOENT and os.path.exists(os.path.join(request.directory, request.program)):
        words = "cannot be executed: the interpreter in its #! line does not exist"
    else:
        words = f"cannot be executed: {exc.strerror}"
    raise SpawnFailed(f"{request.program} {words}") from error


# --- the process ------------------------------------------------------------------------------------------------------


def framed(messages: Sequence[tuple[Any, ...] | list[Any]]) -> bytes:
    """Return messages in the form in which they are sent."""
    parts = []
    for words in messages:
        text = marshal.dumps(words)
        parts += [len(text).to_bytes(LENGTH_BYTES, "big"), text]
    return b"".join(parts)


def unframed(unread: bytearray) -> list[tuple[Any, ...]]:
    """Remove the complete messages from the received bytes, and return them."""
    found, start, size = [], 0, len(unread)
    while size - start >= LENGTH_BYTES:
        end = start + LENGTH_BYTES + int.from_bytes(unread[start : start + LENGTH_BYTES], "big")
        if end > size:
            break
        found.append(marshal.loads(bytes(unread[start + LENGTH_BYTES : end])))
        start = end
    del unread[:start]
    return found


def _start_of_child(pid: int) -> str:
    """Return the start of a child that has not been reaped, in the form of `identity.start_of`; it may have ended already."""
    if not _LINUX:
        from ...core.process_table import start_of

        return start_of(pid)
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            stat = file.read(4096)
        return stat[stat.rindex(b")") + 2 :].split(None, 20)[19].decode()
    except (OSError, ValueError, IndexError):  # /proc is not mounted
        return ""


def _boot_tick() -> str:
    """Return the present time in the unit of process starts in proc_pid_stat(5); "" elsewhere than on Linux.

    If this is the same before and after a fork, it is the start of the child. Reading /proc would have to wait for its exec.
    """
    return str(time.clock_gettime_ns(time.CLOCK_BOOTTIME) * _TICKS_PER_S // 1_000_000_000) if _LINUX else ""


def _now_us() -> int:
    return time.time_ns() // 1000


def _boot_time() -> float:
    """Return seconds of a clock that runs while this host sleeps, because its lease can expire on other hosts meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if _LINUX else time.monotonic()


def become_subreaper() -> None:
    """Make this process the parent of descendants that lose theirs. Only possible on Linux."""
    if not _LINUX:
        return
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


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
