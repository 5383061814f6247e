"""Run another program to its end, bounded in time and output. Not for users' jobs; `spawner` runs those."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, NamedTuple

from . import import_guard
from .daemon import STOP_SIGNALS
from .process_table import DETACHED_VARIABLE, JOB_VARIABLES

#: Maximum bytes kept of a command's stdout, and of its stderr. A thousand batch jobs described at length need half of it.
MAX_OUTPUT_BYTES = 16 * 1024 * 1024

#: Bytes read of a file that replaces stderr, its maximum size, and how often the size is checked, in seconds.
_END_BYTES, MAX_FILE_BYTES, _FILE_CHECK_INTERVAL_S = 64 * 1024, 256 * 1024 * 1024, 0.5

_KILLED = "so it was killed"

#: The pids of the children of this process for which `run` waits.
running: set[int] = set()


class Completed(NamedTuple):
    """The result of a command."""

    argv: list[str]
    returncode: int | None  # None: it did not start, or was killed (too slow, too much output); see stderr
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.returncode == 0

    @property
    def was_killed(self) -> bool:
        """Whether it had started and was killed, so that its effects are unknown."""
        return self.returncode is None and self.stderr.endswith(_KILLED)


def run(
    argv: list[str],
    *,
    timeout_s: float = 60.0,
    environ: Mapping[str, str] | None = None,
    directory: str | None = None,
    stdin: bytes = b"",
    largest_bytes: int = MAX_OUTPUT_BYTES,
    leaves_some: bool = False,
) -> Completed:
    """Run a command to its end, or until `timeout_s` seconds have passed. Every failure is reported in the result.

    The command gets `stdin`, a separate session, and `environ` (None: this process's) as its whole environment. A command that
    prints more than `largest_bytes` is killed: no program used here prints that much, and it might never end. If it
    `leaves_some` of its processes running, which keep its stderr open, stderr is a file: waiting for a pipe to end would block.
    """
    with ExitStack() as opened:
        file = opened.enter_context(tempfile.TemporaryFile(prefix="balsam-")) if leaves_some else None
        try:
            with _readable(stdin) as given:
                process = subprocess.Popen(
                    argv,
                    stdin=given,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE if file is None else file,
                    env=environ,
                    cwd=directory,
                    start_new_session=True,
                )
        except (OSError, ValueError) as exc:  # ValueError: a NUL byte in a word
            return Completed(argv, None, "", f"{argv[0]} could not be started: {exc}")
        running.add(process.pid)
        opened.callback(running.discard, process.pid)
        output, errors = bytearray(), bytearray()
        pipes = {opened.enter_context(pipe): kept for pipe, kept in _pipes(process, output, errors)}
        try:
            trouble = _collect(process, pipes, file, timeout_s, largest_bytes)
        except BaseException:
            _kill(process)
            raise
        if trouble:
            _kill(process)
        if file is not None:
            errors += _end_of(file.fileno())
        if trouble:
            return Completed(argv, None, _text(output), f"{_text(errors)}\n{trouble}, {_KILLED}".strip())
        return Completed(argv, process.returncode, _text(output), _text(errors))


class Pager:
    """A program that shows what is written to its stdin until the user leaves it."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: IO[bytes]) -> None:
        self._process, self.stdin = process, stdin

    def finish(self) -> None:
        """End its input, and wait until the user leaves it. Ctrl-C is for the pager, which has the same terminal."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        while True:
            try:
                self._process.wait()
            except KeyboardInterrupt:
                continue
            return


def start_pager(command: str) -> Pager:
    """Start a pager, given as a command line for the shell, on this process's terminal. Raises OSError."""
    environ = {"LESS": "FRX", "LV": "-c", **os.environ}
    process = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.PIPE, env=environ)
    assert process.stdin
    return Pager(process, process.stdin)


def run_module(module: str, *words: str) -> Completed:
    """Run a module with this Python and this package, until it ends or has detached from this process (see `daemon`).

    It may be started from inside a job, and must not end with that job. Not while an application is loaded (`import_guard`).
    """
    import_guard.check_writable()
    own = {name: value for name, value in os.environ.items() if name not in JOB_VARIABLES}
    return run(
        module_words(module, *words), environ={**own, DETACHED_VARIABLE: "1", "PYTHONPATH": python_path()}, directory="/"
    )


#: A process that `start_module` has started.
Module = subprocess.Popen[bytes]


def start_module(module: str, link: int) -> Module:
    """Start a module with this Python and this package, in a separate session, with the descriptor `link` as its stdin.

    It begins with the stop signals blocked, and has to unblock them once it handles them. Call `await_module` at its end.

    Raises:
        OSError: it could not be started.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process = subprocess.Popen(
            module_words(module),
            stdin=link,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": python_path()},
            cwd="/",
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    running.add(process.pid)
    return process


def await_module(process: Module, timeout_s: float = 1) -> int:
    """Wait for the end of a module that is about to end; kill it if it does not within `timeout_s`. Return its exit code."""
    _wait(process, timeout_s)
    if process.poll() is None:
        _kill(process)
    running.discard(process.pid)
    return -signal.SIGKILL if process.returncode is None else process.returncode


def restore_python_path() -> None:
    """Remove from PYTHONPATH what `start_module` has added for this process, so that its children do not inherit it."""
    rest = os.environ.get("PYTHONPATH", "").partition(":")[2]
    os.environ["PYTHONPATH"] = rest
    if not rest:
        del os.environ["PYTHONPATH"]


def module_words(module: str, *words: str) -> list[str]:
    """Return the command line that runs a module of ours with this Python, as `-m` does, but ignoring the current directory.

    `-m` would look there first, and take a `balsam_lite.py` for this package. `-P` needs Python 3.11.
    """
    code = "import sys; sys.path[:] = filter(None, sys.path); import runpy; "
    return [sys.executable, "-c", f"{code}runpy.run_module({module!r}, run_name='__main__', alter_sys=True)", *words]


def python_path() -> str:
    """Return a PYTHONPATH with which this Python finds this package, installed or not."""
    above_the_package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return ":".join([above_the_package, *filter(None, [os.environ.get("PYTHONPATH")])])


@contextmanager
def _readable(data: bytes) -> Iterator[int]:
    """Yield a descriptor from which `data` can be read. Uses an unnamed file: a pipe would have to be fed meanwhile."""
    if not data:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile(prefix="balsam-") as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


def _pipes(process: subprocess.Popen[bytes], output: bytearray, errors: bytearray) -> Iterator[tuple[IO[bytes], bytearray]]:
    """Yield the pipes from the command, each with the buffer for its output."""
    for pipe, kept in ((process.stdout, output), (process.stderr, errors)):
        if pipe is not None:
            yield pipe, kept


def _end_of(handle: int) -> bytes:
    """Return the end of the data written to that file."""
    return os.pread(handle, _END_BYTES, max(os.fstat(handle).st_size - _END_BYTES, 0))


def _collect(
    process: subprocess.Popen[bytes],
    pipes: Mapping[IO[bytes], bytearray],
    file: IO[bytes] | None,
    timeout_s: float,
    largest_bytes: int,
) -> str:
    """Read the pipes to their ends and wait for the command. Return why it must be killed, or ""."""
    give_up = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for pipe, kept in pipes.items():
            selector.register(pipe, selectors.EVENT_READ, kept)
        while selector.get_map() or process.poll() is None:
            left_s = give_up - time.monotonic()
            if left_s <= 0:
                return _late(timeout_s)
            if file is not None and os.fstat(file.fileno()).st_size > MAX_FILE_BYTES:
                return _too_much(MAX_FILE_BYTES)
            pause_s = left_s if file is None else min(left_s, _FILE_CHECK_INTERVAL_S)
            if not selector.get_map():
                _wait(process, pause_s)
                continue
            for key, _ in selector.select(pause_s):
                data = os.read(key.fd, 65536)
                key.data.extend(data)
                if not data:
                    selector.unregister(key.fileobj)
                elif len(key.data) > largest_bytes:
                    return _too_much(largest_bytes)
    return ""


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        pass


def _too_much(largest_bytes: int) -> str:
    return f"it printed more than {largest_bytes // 1024**2} MiB"


def _late(timeout_s: float) -> str:
    return f"no answer within {timeout_s:g} s"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the command and its children. A process that hangs in the kernel, on a dead file system, is abandoned."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    _wait(process, 1)


def _text(output: bytearray) -> str:
    return output.decode("utf-8", "replace")
