"""Starting many programs at once.

Starting one means waiting until the new process has become the program, about half a millisecond in which the other cores
would have nothing to do. So a few threads start programs side by side. Python's own os.posix_spawn and subprocess hold the
interpreter meanwhile; on Linux the C library's posix_spawn is called through ctypes, which does not, and which can also
set the directory of the child alone. Elsewhere subprocess has to do.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from itertools import count
from queue import SimpleQueue
from typing import Any, NamedTuple

from ..errors import SpawnFailed

#: Python ignores SIGPIPE and SIGXFSZ, and programs inherit what is ignored; these get the system's default back.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
_OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW

#: More than so many threads only wait for each other.
_MOST_THREADS = 4


class Request(NamedTuple):
    """A program to start: in `directory`, in a session of its own, stdout and stderr in file `output` there."""

    program: str  # a path
    argv: list[bytes]
    environ: list[bytes]  # NAME=value
    directory: str
    output: str  # written anew, never through a link


class Spawner:
    """Starts programs with as many threads as there are CPUs, the caller's among them."""

    def __init__(self, cpus: int) -> None:
        self._helpers = min(cpus, _MOST_THREADS) - 1
        self._batches: SimpleQueue[_Batch] = SimpleQueue()
        self._started = False
        self._spawn = _PosixSpawn() if sys.platform.startswith("linux") else _spawn_by_subprocess

    def start_all(self, requests: list[Request]) -> list[int | SpawnFailed]:
        """Start them all; for each its pid, or why it does not run."""
        batch = _Batch(requests)
        helpers = min(self._helpers, len(requests) - 1)
        if helpers > 0:
            self._start_threads()
            for _ in range(helpers):
                self._batches.put(batch)
        self._work(batch)
        for _ in range(helpers):
            batch.finished.acquire()
        return batch.results  # type: ignore[return-value]

    def _start_threads(self) -> None:
        if not self._started:
            self._started = True
            # A thread that comes back from starting a program must not wait 5 ms for the interpreter.
            sys.setswitchinterval(0.0005)
            for _ in range(self._helpers):
                threading.Thread(target=self._help, daemon=True).start()

    def _help(self) -> None:
        while True:
            batch = self._batches.get()
            try:
                self._work(batch)
            finally:
                batch.finished.release()

    def _work(self, batch: _Batch) -> None:
        for number in batch.numbers:
            if number >= len(batch.requests):
                return
            request = batch.requests[number]
            try:
                batch.results[number] = self._spawn(request)
            except OSError as exc:
                batch.results[number] = _failure(exc, request)


class _Batch:
    """Requests that several threads share out among themselves."""

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests
        self.results: list[int | SpawnFailed | None] = [None] * len(requests)
        self.numbers = count()
        self.finished = threading.Semaphore(0)


# --- the C library ----------------------------------------------------------------------------------------------------

# From <spawn.h> of glibc (2.29 and newer) and musl (1.1.24 and newer), the same numbers in both.
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
#: Bytes that are enough for posix_spawnattr_t, posix_spawn_file_actions_t and sigset_t of either, on any machine.
_ROOM = 1024


class _PosixSpawn:
    """posix_spawn(3), for `Request`s."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=False)
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
            self._call("posix_spawn_file_actions_addopen", actions, 1, os.fsencode(request.output), _OUTPUT_FLAGS, 0o666)
            self._call("posix_spawn_file_actions_adddup2", actions, 1, 2)
            pid = ctypes.c_int()
            program = os.fsencode(request.program)
            argv, environ = _strings(request.argv), _strings(request.environ)
            self._call("posix_spawn", ctypes.byref(pid), program, actions, self._attributes, argv, environ)
            return pid.value
        finally:
            self._call("posix_spawn_file_actions_destroy", actions)

    def _call(self, name: str, *arguments: Any) -> None:
        failed = getattr(self._libc, name)(*arguments)
        if failed:
            raise OSError(failed, os.strerror(failed))


def _strings(words: list[bytes]) -> ctypes.Array[Any]:
    return (ctypes.c_char_p * (len(words) + 1))(*words)


# --- without it -------------------------------------------------------------------------------------------------------


def _spawn_by_subprocess(request: Request) -> int:
    environ = dict(word.split(b"=", 1) for word in request.environ)
    directory = os.open(request.directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        output = os.open(request.output, _OUTPUT_FLAGS, 0o666, dir_fd=directory)
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


def _failure(exc: OSError, request: Request) -> SpawnFailed:
    # posix_spawn says what failed, not where: look whether it was the directory or the output file.
    path = os.path.join(request.directory, request.output)
    if not os.path.isdir(request.directory):
        return SpawnFailed(f"the working directory {request.directory} cannot be entered: {exc.strerror}")
    try:
        os.close(os.open(path, _OUTPUT_FLAGS | os.O_CLOEXEC, 0o666))
    except OSError as at_output:
        return SpawnFailed(f"the output file {path} cannot be written: {at_output.strerror}")
    if exc.errno == errno.ENOEXEC:
        return SpawnFailed(f"{request.program} cannot be executed: it is no program, and its first line is no #! line")
    if exc.errno == errno.ENOENT and os.path.exists(os.path.join(request.directory, request.program)):
        return SpawnFailed(f"{request.program} cannot be executed: the interpreter in its #! line does not exist")
    return SpawnFailed(f"{request.program} cannot be executed: {exc.strerror}")
