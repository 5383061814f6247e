"""A spawn helper's side of workers: processes that stay and make one call of an executor after the other.

The helper starts a worker as the leader of a session, like any program, and gives it calls through a socket, one message each
(see `pyapps.worker` for its side). A worker is for calls that are alike: of one `kind`. It reports each call before it begins
it. While calls are short, some are sent ahead; what a worker has not read yet is taken back by reading it from the helper's
copy of the worker's end. Without a call a worker holds no place, and ends after IDLE_S seconds.

A call that is told to end takes its worker with it, and so does one that leaves processes or threads: it ends when its worker
does. If a worker dies, its call ends with it; calls that it has not begun are given to other workers.
"""

from __future__ import annotations

import marshal
import os
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from ...core.errors import SpawnFailed
from .adopted import HelperRun
from .program import DEFAULT_SIGNALS, ENDED, FAILED, STARTED, UNSET, Request, make_directory, prepare, start_of_child

#: Descriptors of a worker: its end of the socket, and what it has as stdout and stderr.
LINK_FD, OUTPUT_FD = 99, 98
#: From a worker: (BEGUN, key, started_us), (DONE, key, code, outcome, ended_us, user_us, system_us, peak memory in KiB, fate).
BEGUN, DONE = range(2)
#: What becomes of a worker after a call: it stays; it stays with a new file as its output; it must not make another call; it
#: ends, and the call with it.
STAYS, RENEWED, RETIRES, LEAVES = range(4)
#: A worker without a call ends after this many seconds, or at once when less than this share of the memory is available.
IDLE_S, _MIN_MEMORY = 10.0, 0.08
#: Calls are sent ahead to a worker whose last ones took less than this many seconds on average, up to this many.
_SHORT_S, _MAX_AHEAD = 0.004, 16
#: Calls that were sent ahead are taken back from a worker whose present call takes this many seconds.
_STUCK_S = 0.02
#: The output of a call becomes visible when it has run for this many seconds.
_VISIBLE_S = 1.0
#: Larger messages go by a file.
_MAX_MESSAGE_BYTES, _BUFFER_BYTES = 100_000, 4 << 20
#: Variables that differ between calls of one kind.
OF_CALL = frozenset(
    (b"BALSAM_JOB_ID", b"BALSAM_ATTEMPT", b"BALSAM_RUN", b"BALSAM_PARENT_IDS", b"BALSAM_PARENT_STATES")
    + (b"BALSAM_PARENT_IDS_FILE", b"BALSAM_PARENT_STATES_FILE")
)


class CallRequest(NamedTuple):
    """What a `Request` has in addition if it is a call for a worker; a plain tuple in messages."""

    kind: bytes  # calls of one kind may be made by one worker
    mark: bytes  # the BALSAM_RUN of the worker
    context: bytes
    payload: bytes
    results: tuple[bytes | str | None, ...]
    needs_directory: bool  # the call runs in the job's directory


class CallWorker(HelperRun):
    """A worker, with the call that it makes as its run; without one its key is -1."""

    __slots__ = (
        "begun",
        "calls",
        "far",
        "final",
        "is_doomed",
        "kind",
        "link",
        "mean_s",
        "output",
        "seen",
        "sent",
        "start",
        "used",
    )

    def __init__(
        self, kind: bytes, pid: int, start: str, mark: bytes, link: socket.socket, far: socket.socket, output: int
    ) -> None:
        super().__init__(-1, 0, pid, "/", mark, False)
        self.kind, self.start, self.link, self.far, self.output = kind, start, link, far, output
        self.sent: deque[Request] = deque()  # what it has been given, the call that it makes first
        self.begun = 0.0  # when it has begun that one, or has become idle
        self.calls = 0
        self.mean_s = 1.0  # of its last calls
        self.is_doomed = False  # it is given no other call
        self.final: list[Any] | None = None  # the answer about its last call, which ends when the worker does
        self.used = (0, 0)  # CPU time of earlier calls
        self.seen = 0  # bytes of output that were last reported, see `WorkerPool.look`


class WorkerPool:
    """The workers of one helper.

    Args:
        answer: sends an answer to the launcher.
        runs, by_key: the helper's runs by pid, which include all workers, and those that have begun, by key.
        refill: takes the next queued request of a lane; None if there is none.
        requeue: puts a request back to the front of its lane.
        note_start: records the start of a process for the next launcher.
        on_change: called with the descriptor of a new worker and True, and of one that has ended and False.
    """

    def __init__(
        self,
        answer: Callable[[Any], None],
        runs: dict[int, HelperRun],
        by_key: dict[int, HelperRun],
        refill: Callable[[int], Request | None],
        requeue: Callable[[Request], None],
        note_start: Callable[[int, str, bytes], None],
        on_change: Callable[[int, bool], None],
    ) -> None:
        self._answer, self._runs, self._by_key = answer, runs, by_key
        self._refill, self._requeue, self._note_start = refill, requeue, note_start
        self._on_change = on_change
        self.by_fd: dict[int, CallWorker] = {}
        self._placed: set[int] = set()  # keys of calls that have a place and have not begun
        self._look_at = 0.0
        self.environ: dict[bytes, bytes] = {}

    @property
    def due_at(self) -> float:
        """Return when `look` is to be called, on the monotonic clock."""
        return self._look_at

    # --- giving calls -------------------------------------------------------------------------------------------------

    def start(self, request: Request) -> None:
        """Give a call that has a place to an idle worker, or to a new one. Raises SpawnFailed."""
        assert request.call is not None
        call = CallRequest._make(request.call)
        worker = next(
            (one for one in self.by_fd.values() if one.kind == call.kind and not one.sent and not one.is_doomed), None
        )
        if worker is None:
            worker = self._new(request, call)
        self._give(worker, request)
        self._placed.add(request.key)

    def _new(self, request: Request, call: CallRequest) -> CallWorker:
        variables = {**self.environ, **{name: value for name, value in request.own.items() if name not in OF_CALL}}
        variables[b"BALSAM_RUN"] = call.mark
        variables = {name: value for name, value in variables.items() if value != UNSET}
        link, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (link, far):
            end.setblocking(False)
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        output = new_output(request.root)
        try:
            pid = os.posix_spawn(
                request.program,
                request.argv,
                variables,
                file_actions=(
                    (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                    (os.POSIX_SPAWN_DUP2, output, OUTPUT_FD),
                    (os.POSIX_SPAWN_DUP2, far.fileno(), LINK_FD),
                ),
                setsid=True,
                setsigmask=(),
                setsigdef=DEFAULT_SIGNALS,
            )
        except (OSError, ValueError, NotImplementedError) as exc:
            for end in (link, far):
                end.close()
            os.close(output)
            raise SpawnFailed(f"{request.program} cannot be started as a worker: {exc}") from exc
        start = start_of_child(pid)
        worker = CallWorker(call.kind, pid, start, call.mark, link, far, output)
        worker.begun = time.monotonic()
        self._runs[pid] = self.by_fd[link.fileno()] = worker
        self._note_start(pid, start, call.mark)
        self._on_change(link.fileno(), True)
        return worker

    def _give(self, worker: CallWorker, request: Request) -> None:
        """Send a call to a worker.

        Raises:
            SpawnFailed: its directory cannot be prepared; or the worker has not read what was sent before.
        """
        assert request.call is not None
        call = CallRequest._make(request.call)
        if call.needs_directory or request.prepare:
            prepare(request)
        own = {name: value for name, value in request.own.items() if name in OF_CALL}
        words = (request.key, own, request.directory, request.output, request.root, request.renew, *call[2:])
        message = marshal.dumps(words, 2)  # in a format that every version of Python reads
        try:
            if len(message) > _MAX_MESSAGE_BYTES:
                with tempfile.NamedTemporaryFile(prefix="balsam-call-", delete=False) as file:
                    file.write(message)
                message = marshal.dumps((request.key, file.name), 2)
            worker.link.send(message)
        except BrokenPipeError:
            pass  # the worker has just died; the call is started again when it is reaped
        except OSError as exc:
            raise SpawnFailed(f"the call cannot be given to its worker: {exc.strerror}") from exc
        worker.sent.append(request)

    def _ahead(self, worker: CallWorker) -> None:
        """Send calls ahead while they are short."""
        if worker.mean_s > _SHORT_S or worker.is_doomed or not worker.sent:
            return
        lane = worker.sent[0].lane
        while len(worker.sent) < _MAX_AHEAD:
            request = self._refill(lane)
            if request is None:
                return
            assert request.call is not None
            call = CallRequest._make(request.call)
            if call.kind != worker.kind or request.prepare or call.needs_directory:
                self._requeue(request)
                return
            try:
                self._give(worker, request)
            except SpawnFailed:  # the buffer is full
                self._requeue(request)
                return

    def _give_again(self, worker: CallWorker, request: Request) -> None:
        try:
            self._give(worker, request)
        except SpawnFailed as exc:
            self._fail(request, exc)

    def retract(self, worker: CallWorker, with_placed: bool = False) -> list[Request]:
        """Take back the calls that a worker has not read. Requeue those without a place; return the others.

        With `with_placed`, requeue all.
        """
        unread = set()
        while True:
            try:
                message = worker.far.recv(_BUFFER_BYTES, socket.MSG_DONTWAIT)  # the worker has made it blocking
            except OSError:
                break
            if not message:
                break
            unread.add(marshal.loads(message)[0])
        taken = [request for request in worker.sent if request.key in unread]
        worker.sent = deque(request for request in worker.sent if request.key not in unread)
        return self._put_back(taken, with_placed)

    def _put_back(self, taken: list[Request], with_placed: bool = False) -> list[Request]:
        placed = []
        for request in reversed(taken):
            if request.key in self._placed and not with_placed:
                placed.append(request)
            else:
                self._placed.discard(request.key)
                self._requeue(request)
        return placed

    def retract_keys(self, keys: Collection[int]) -> None:
        """Take back calls that were sent ahead if one of them is among these."""
        for worker in self.by_fd.values():
            if any(request.key in keys and request.key not in self._placed for request in worker.sent):
                for request in self.retract(worker):
                    self._give_again(worker, request)

    def retract_all(self) -> None:
        """Take back all calls that have not been read, also those that have a place."""
        for worker in self.by_fd.values():
            worker.is_doomed = True
            self.retract(worker, with_placed=True)

    # --- what workers report ------------------------------------------------------------------------------------------

    def hear_all(self) -> None:
        """Read the reports of all workers."""
        for worker in list(self.by_fd.values()):
            self.hear(worker)

    def hear(self, worker: CallWorker) -> None:
        """Read the reports of a worker."""
        while True:
            try:
                message = worker.link.recv(_BUFFER_BYTES)
            except OSError:
                return
            if not message:
                return
            try:
                for kind, key, *words in marshal.loads(message):
                    if not worker.sent or key != worker.sent[0].key:
                        raise ValueError(f"a report about call {key}")
                    (self._begun if kind == BEGUN else self._done)(worker, key, *words)
            except (EOFError, TypeError, ValueError):  # the code of a call has written it; it costs only that call
                worker.is_doomed = True
                os.kill(worker.pid, signal.SIGKILL)  # not reaped yet, so that it is the same process

    def _begun(self, worker: CallWorker, key: int, started_us: int) -> None:
        request = worker.sent[0]
        worker.key, worker.lane, worker.begun = key, request.lane, time.monotonic()
        worker.calls += 1
        worker.mark, worker.directory = request.own.get(b"BALSAM_RUN", b""), request.directory  # of processes that it leaves
        self._placed.discard(key)
        self._by_key[key] = worker
        self._answer((STARTED, key, worker.pid, worker.start, started_us))

    def _done(
        self,
        worker: CallWorker,
        key: int,
        code: int,
        outcome: bytes | str,
        ended_us: int,
        user: int,
        system: int,
        peak: int,
        fate: int,
    ) -> None:
        request = worker.sent.popleft()
        end, now = worker.end, time.monotonic()
        worker.used = worker.used[0] + user, worker.used[1] + system
        worker.mean_s += (now - worker.begun - worker.mean_s) * (0.2 if worker.calls > 2 else 1.0)
        worker.is_doomed = worker.is_doomed or fate in (RETIRES, LEAVES)
        memory = peak * 1024 if peak else None
        answer: list[Any] = [ENDED, key, code, ended_us, end, None, user, system, memory, outcome]
        if fate == LEAVES:
            worker.final = answer
            self._put_away(worker)
            return
        del self._by_key[key]
        worker.key, worker.end, worker.begun, worker.seen = -1, 0, now, 0
        if fate == RENEWED:
            with suppress(OSError):
                output = os.open(f"/proc/{worker.pid}/fd/{OUTPUT_FD}", os.O_RDWR)
                os.close(worker.output)
                worker.output = output
        if worker.is_doomed:
            self._put_away(worker)
        answer[5] = self._successor(worker, request.lane, code == 0 and not end)
        answer.append([])  # it has left no processes
        self._answer(answer)
        self._ahead(worker)

    def _successor(self, worker: CallWorker | None, lane: int, may_refill: bool) -> int | None:
        """Return the key of the call that gets the place of one that has ended: what its worker has, or the next."""
        if worker is not None and worker.sent:
            self._placed.add(worker.sent[0].key)
            return worker.sent[0].key
        request = self._refill(lane) if may_refill and lane else None
        while request is not None:
            try:
                if worker is not None and not worker.is_doomed and request.call is not None and request.call[0] == worker.kind:
                    self._placed.add(request.key)
                    self._give(worker, request)
                else:
                    self.again(request)
                return request.key
            except SpawnFailed as exc:
                self._fail(request, exc)
            request = self._refill(lane)
        return None

    def _put_away(self, worker: CallWorker) -> None:
        """Let a worker end that is to make no other call."""
        for request in self.retract(worker):
            self.again(request)
        with suppress(OSError):
            worker.link.shutdown(socket.SHUT_WR)

    def again(self, request: Request) -> None:
        """Start a call that has a place and was not begun, elsewhere."""
        try:
            self.start(request)
        except SpawnFailed as exc:
            self._fail(request, exc)

    def _fail(self, request: Request, exc: SpawnFailed) -> None:
        self._placed.discard(request.key)
        cause = exc.__cause__
        code, path = (cause.errno, cause.filename) if isinstance(cause, OSError) else (None, None)
        self._answer((FAILED, request.key, exc.message, code, path if isinstance(path, (str, bytes)) else None))

    # --- the end of workers -------------------------------------------------------------------------------------------

    def doom(self, worker: CallWorker) -> None:
        """Give no other call to a worker whose call is told to end."""
        worker.is_doomed = True
        for request in self.retract(worker):
            self.again(request)

    def note_exit(
        self, worker: CallWorker, code: int, ended_us: int, user_us: int, system_us: int, peak: int | None
    ) -> list[Any] | None:
        """Report the end of a worker's call with the worker; return the answer, which lacks what the worker has left."""
        self.hear(worker)
        unread = self.retract(worker)
        fd = worker.link.fileno()
        self._on_change(fd, False)
        del self.by_fd[fd]
        worker.link.close()
        worker.far.close()
        request = worker.sent[0] if worker.sent else None
        answer = worker.final
        if answer is not None:
            answer[2:5] = code, ended_us, worker.end
            key = answer[1]
        elif worker.key >= 0 and request is not None:
            worker.sent.popleft()
            key = request.key
            usage = max(0, user_us - worker.used[0]), max(0, system_us - worker.used[1])
            answer = [ENDED, key, code, ended_us, worker.end, None, *usage, peak, None]
            with suppress(OSError, SpawnFailed):
                publish(worker.output, request)
        if answer is not None:
            self._by_key.pop(key, None)
            answer[5] = self._successor(None, worker.lane, code == 0 and not worker.end)
        unbegun = [*worker.sent, *unread]
        if not worker.calls and unbegun:
            self._fail(
                unbegun.pop(0), SpawnFailed(f"Its worker ended ({_words(code)}) before the call began{_tail(worker.output)}")
            )
        for one in self._put_back(unbegun):
            self.again(one)
        os.close(worker.output)
        return answer

    def look(self) -> None:
        """End idle workers, show the output of long calls, take back what was sent ahead to a worker that is not quick."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + (_STUCK_S if any(len(one.sent) > 1 for one in self.by_fd.values()) else 1.0)
        is_short = None
        for worker in list(self.by_fd.values()):
            age_s = now - worker.begun
            if worker.is_doomed and worker.key < 0 and age_s > IDLE_S:  # its exit hooks hang
                with suppress(OSError):
                    os.killpg(worker.pid, signal.SIGKILL)
            if not worker.sent and not worker.is_doomed:
                is_short = _memory_is_short() if is_short is None and age_s > 1.0 else is_short
                if age_s > IDLE_S or is_short:
                    worker.is_doomed = True
                    self._put_away(worker)
                continue
            if len(worker.sent) > 1 and age_s > _STUCK_S:
                worker.mean_s = max(worker.mean_s, age_s)
                for request in self.retract(worker):
                    self._give_again(worker, request)
            if worker.key >= 0 and age_s > _VISIBLE_S and not worker.seen:
                with suppress(OSError, SpawnFailed):
                    worker.seen = os.fstat(worker.output).st_size
                    if worker.seen:
                        publish(worker.output, worker.sent[0], may_copy=False)


# --- output -----------------------------------------------------------------------------------------------------------


def new_output(root: str) -> int:
    """Return the descriptor of a new file without a name, on the file system of the DB if that is possible."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
    try:
        return os.open(root, flags | os.O_TMPFILE, 0o666)
    except (OSError, AttributeError):  # not on every file system
        with tempfile.TemporaryFile(prefix="balsam-output-") as file:
            return os.open(f"/proc/self/fd/{file.fileno()}", flags) if os.path.isdir("/proc/self/fd") else os.dup(file.fileno())


def publish(output: int, request: Request, may_copy: bool = True) -> None:
    """Give the output of a call its name in the job's directory, unless it is empty or has been given it.

    Raises:
        OSError, SpawnFailed: the directory cannot be made, or the file not be written.
    """
    from ...core import job_files

    state = os.fstat(output)
    if not state.st_size or state.st_nlink:
        return
    make_directory(request.directory, request.root)
    if request.renew is None or request.renew[1] == 1 or not may_copy:
        with suppress(OSError):
            link = os.path.join(request.directory, request.output)
            os.link(f"/proc/self/fd/{output}", link, src_dir_fd=output, follow_symlinks=True)
            return
    if not may_copy:
        return
    name = job_files.renew(request.directory, request.output, *request.renew) if request.renew else request.output
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    target = os.open(os.path.join(request.directory, name), flags, 0o666)
    try:
        for piece in _pieces(output):
            os.write(target, piece)
    finally:
        os.close(target)


def _pieces(file: int) -> Iterator[bytes]:
    start = 0
    while piece := os.pread(file, 1 << 20, start):
        start += len(piece)
        yield piece


def _tail(output: int) -> str:
    """Return the end of a worker's output, for a message."""
    with suppress(OSError):
        text = os.pread(output, 2000, max(0, os.fstat(output).st_size - 2000)).decode(errors="replace").strip()
        return f": {text}" if text else ""
    return ""


def _words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"


def _memory_is_short() -> bool:
    with suppress(OSError, ValueError, KeyError, ZeroDivisionError), open("/proc/meminfo", encoding="ascii") as file:
        sizes = {line.partition(":")[0]: int(line.split()[1]) for line in file}
        return sizes["MemAvailable"] / sizes["MemTotal"] < _MIN_MEMORY
    return False
