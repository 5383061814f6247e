"""Starting programs while the launcher goes on with other things.

Starting one means waiting until the new process has become the program: half a millisecond in which the launcher could
read, decide and write. So threads do the waiting, several of them, as what one waits for is mostly another CPU. Python's own
os.posix_spawn and subprocess hold the interpreter meanwhile; on Linux the C library's posix_spawn is called through ctypes,
which does not, and which can also set the directory of the child alone. Elsewhere subprocess has to do.

The threads know nothing but `Request`s; what they mean, and everything else, stays with the one that asks.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple

from ..errors import LaunchError, SpawnFailed

#: Programs inherit what is ignored; these get the system's default back. Python ignores SIGPIPE and SIGXFSZ, nohup and shells
#: may have ignored SIGHUP and SIGINT for the launcher: a job must not depend on how that was started.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT)
_OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK

#: So many programs are being started at once, at most.
_THREADS = 3
#: A program that has not started after so many seconds hangs in the file system and will not be waited for.
_ABANDON_S = 5.0


class Request(NamedTuple):
    """A program to start: in `directory`, in a session of its own, stdout and stderr in file `output` there."""

    key: int  # the caller's, given back with the answer
    program: str  # a path
    argv: list[bytes]
    environ: list[bytes]  # NAME=value
    directory: str
    output: str  # never through a link
    prepare: Callable[[], object] | None = None  # called before, in the thread that starts the program; may raise SpawnFailed
    appends: bool = False  # to the output; else that is made anew, and must not exist
    cpus: tuple[int, ...] = ()  # it may run on these; (): on all that this process may
    #: Puts what has the output's name aside; returns the name of the file to append to. Called where there is such a file.
    renew: Callable[[], str] | None = None
    is_rerun: bool = False  # call `renew` in any case

    def renewed(self) -> Request:
        """Return the request with the output file that `renew` names. Raises OSError."""
        assert self.renew is not None
        return self._replace(output=self.renew(), appends=True, renew=None)


class Answer(NamedTuple):
    """What became of a request."""

    key: int
    pid: int | LaunchError
    started_us: int


class Spawner:
    """Starts programs, in the order of the requests or nearly so, in threads of its own.

    `now_us` is called there, and `on_answer` after each answer.
    """

    def __init__(self, now_us: Callable[[], int], on_answer: Callable[[], object]) -> None:
        self._now_us, self._on_answer = now_us, on_answer
        self._requests: SimpleQueue[Request | None] = SimpleQueue()  # None: no more
        self._answers: deque[Answer] = deque()
        self._spawn = _PosixSpawn() if sys.platform.startswith("linux") else _spawn_by_subprocess
        self._threads: list[threading.Thread] = []
        self._abandoned = False

    def start(self, request: Request) -> None:
        """Queue a program to be started; `answers` reports it. Raises RuntimeError if no thread can be started for it."""
        if not self._threads:
            self._start_threads()
        self._requests.put(request)

    def _start_threads(self) -> None:
        """Start as many threads as this user's limits allow, at least one."""
        for _ in range(_THREADS):
            thread = threading.Thread(target=self._work, name="spawner", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                if not self._threads:
                    raise
                return
            self._threads.append(thread)

    def spawn(self, request: Request) -> int:
        """Start a program now, in the thread of the caller; returns its pid.

        Raises:
            SpawnFailed: with the reason.
        """
        if self._abandoned:
            raise SpawnFailed("the launcher has given up")
        try:
            if request.prepare:
                request.prepare()
            if request.is_rerun:
                request = request.renewed()
            try:
                return self._start(request)
            except FileExistsError:
                request = request.renewed() if request.renew else request._replace(appends=True)
                return self._start(request)
        except (OSError, ValueError) as exc:
            raise _failure(exc, request) from exc

    def _start(self, request: Request) -> int:
        """A child inherits the affinity of the thread that starts it; on Linux each thread has its own."""
        if not request.cpus:
            return self._spawn(request)
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, request.cpus)
        except OSError as exc:
            listed = ", ".join(map(str, request.cpus))
            raise SpawnFailed(f"it cannot be pinned to CPU {listed}: {exc.strerror}") from exc
        try:
            return self._spawn(request)
        finally:
            os.sched_setaffinity(0, before)

    @property
    def has_answers(self) -> bool:
        """Whether `answers` has something to tell."""
        return bool(self._answers)

    def answers(self) -> list[Answer]:
        """What became of requests since the last call."""
        return [self._answers.popleft() for _ in range(len(self._answers))]

    def abandon(self) -> None:
        """Start nothing more; on return nothing is being started, either."""
        self._abandoned = True
        for _ in self._threads:
            self._requests.put(None)
        for thread in self._threads:
            thread.join(_ABANDON_S)

    def _work(self) -> None:
        while True:
            request = self._requests.get()
            if request is None:
                return
            started = self._now_us()
            pid: int | LaunchError
            try:
                pid = self.spawn(request)
            except LaunchError as exc:
                pid = exc
            except Exception as exc:  # noqa: BLE001  # one bad job fails alone, and the thread goes on
                pid = SpawnFailed(f"unexpected {type(exc).__name__}: {exc}")
                pid.__cause__ = exc
            self._answers.append(Answer(request.key, pid, started))
            self._on_answer()


class Piped:
    """A program in a session of its own, with pipes to its stdin, stdout and stderr.

    The terminal's signals do not reach it; when this process dies, it finds its stdin at the end.

    Raises:
        SpawnFailed: with the reason.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environ, start_new_session=True)
        except OSError as exc:
            raise SpawnFailed(f"{argv[0]} cannot be started: {exc.strerror}") from exc
        assert self._process.stdout is not None and self._process.stderr is not None
        self.stdout, self.stderr = self._process.stdout.fileno(), self._process.stderr.fileno()

    def tell(self, line: bytes) -> None:
        """Write to its stdin, if it still reads."""
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), line)
        except OSError:
            pass

    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self._process.poll()


class Companion:
    """A program in this process's own group and session, with its stdout and stderr, and nothing to read.

    Whoever signals the group, the terminal or a batch system, reaches both.

    Raises:
        SpawnFailed: with the reason.
    """

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        try:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, env=environ)
        except OSError as exc:
            raise SpawnFailed(f"{argv[0]} cannot be started: {exc.strerror}") from exc

    def signal(self, number: int) -> None:
        """Send a signal, if it lives."""
        self._process.send_signal(number)

    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that killed it."""
        return self._process.poll()


# --- the C library ----------------------------------------------------------------------------------------------------

# From <spawn.h> of glibc (2.29 and newer) and musl (1.1.24 and newer), the same numbers in both.
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
#: Bytes that are enough for posix_spawnattr_t, posix_spawn_file_actions_t and sigset_t of either, on any machine.
_ROOM = 1024


class _PosixSpawn:
    """posix_spawn(3), for `Request`s."""

    def __init__(self) -> None:
        self._libc = ctypes.PyDLL(None)  # keeps the interpreter: these calls take no time
        self._posix_spawn = ctypes.CDLL(None).posix_spawn  # lets go of it
        self._attributes = ctypes.create_string_buffer(_ROOM)
        no_signals, defaults = ctypes.create_string_buffer(_ROOM), ctypes.create_string_buffer(_ROOM)
        for signals in (no_signals, defaults):
            self._call("sigemptyset", signals)
        for number in _DEFAULT_SIGNALS:
            self._call("sigaddset", defaults, int(number))
        self._call("posix_spawnattr_init", self._attributes)
        self._call("posix_spawnattr_setsigmask", self._attributes, no_signals)
        self._call("posix_spawnattr_setsigdefault", self._attributes, defaults)
        flags = ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID)
        self._call("posix_spawnattr_setflags", self._attributes, flags)

    def __call__(self, request: Request) -> int:
        actions = ctypes.create_string_buffer(_ROOM)
        self._call("posix_spawn_file_actions_init", actions)
        try:
            self._call("posix_spawn_file_actions_addchdir_np", actions, os.fsencode(request.directory))
            self._call("posix_spawn_file_actions_addopen", actions, 0, b"/dev/null", os.O_RDONLY, 0)
            output, flags = os.fsencode(request.output), _output_flags(request)
            self._call("posix_spawn_file_actions_addopen", actions, 1, output, flags, 0o666)
            self._call("posix_spawn_file_actions_adddup2", actions, 1, 2)
            pid = ctypes.c_int()
            program = os.fsencode(request.program)
            argv, environ = _strings(request.argv), _strings(request.environ)
            _check(self._posix_spawn(ctypes.byref(pid), program, actions, self._attributes, argv, environ))
            return pid.value
        finally:
            self._call("posix_spawn_file_actions_destroy", actions)

    def _call(self, name: str, *arguments: Any) -> None:
        _check(getattr(self._libc, name)(*arguments))


def _output_flags(request: Request) -> int:
    return _OUTPUT_FLAGS | os.O_APPEND | (0 if request.appends else os.O_EXCL)


def _check(failed: int) -> None:
    if failed:
        raise OSError(failed, os.strerror(failed))


def _strings(words: list[bytes]) -> ctypes.Array[Any]:
    return (ctypes.c_char_p * (len(words) + 1))(*words)


# --- without it -------------------------------------------------------------------------------------------------------


def _spawn_by_subprocess(request: Request) -> int:
    environ = dict(word.split(b"=", 1) for word in request.environ)
    directory = os.open(request.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        output = os.open(request.output, _output_flags(request), 0o666, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        child = subprocess.Popen(
            request.argv,
            executable=request.program,
            cwd=request.directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    finally:
        os.close(output)
    child.returncode = 0  # `process.reap` waits for it, not this object
    return child.pid


# --- what went wrong --------------------------------------------------------------------------------------------------


def _failure(exc: OSError | ValueError, request: Request) -> SpawnFailed:
    if not isinstance(exc, OSError):
        return SpawnFailed(f"{request.program} cannot be started: {exc}")
    # posix_spawn says what failed, not where: look whether it was the directory or the output file.
    path = os.path.join(request.directory, request.output)
    exc.filename = request.program  # for the check whether the machine is to blame
    if not os.path.isdir(request.directory):
        exc.filename = request.directory
        return SpawnFailed(f"the working directory {request.directory} cannot be entered: {exc.strerror}")
    try:
        os.close(os.open(path, _OUTPUT_FLAGS | os.O_CLOEXEC, 0o666))
    except OSError as at_output:
        exc.filename = path
        return SpawnFailed(f"the output file {path} cannot be written: {at_output.strerror}")
    if exc.errno == errno.ENOEXEC:
        return SpawnFailed(f"{request.program} cannot be executed: it is no program, and its first line is no #! line")
    if exc.errno == errno.ENOENT and os.path.exists(os.path.join(request.directory, request.program)):
        return SpawnFailed(f"{request.program} cannot be executed: the interpreter in its #! line does not exist")
    return SpawnFailed(f"{request.program} cannot be executed: {exc.strerror}")
