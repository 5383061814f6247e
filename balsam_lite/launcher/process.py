"""User code as processes: start them, hear of their end, stop whole trees. The only place that does.

One thread only: starting changes the current directory, and `reap` collects every child that this process has.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ..clock import SystemClock
from ..errors import SpawnFailed
from ..processes import Process, signal_all, with_mark


#: Python ignores SIGPIPE and SIGXFSZ, and programs inherit what is ignored; these get the system's default back.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ)
_OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


class Ended(NamedTuple):
    """A child that ended."""

    pid: int
    returncode: int  # negative: the signal that killed it
    ended_us: int


# --- starting ---------------------------------------------------------------------------------------------------------

_found_programs: dict[tuple[str, bytes], str] = {}


def find_program(name: str, environ: Mapping[bytes, bytes], directory: str) -> str:
    """The path of a program, found as a shell in `directory` with that environment would.

    Raises:
        SpawnFailed: there is none.
    """
    if "/" in name:
        return name
    path = environ.get(b"PATH", os.defpath.encode())
    found = _found_programs.get((name, path))
    if found is None or not os.access(found, os.X_OK):
        found = shutil.which(name, path=os.fsdecode(path))
        if found is None:
            raise SpawnFailed(f"{name}: command not found (PATH is {os.fsdecode(path)})")
        if not os.path.isabs(found):
            return os.path.join(directory, found)
        _found_programs[name, path] = found
    return found


def make_directory(path: str) -> None:
    """Make a working directory, which is probably new, with the directories above it.

    Raises:
        SpawnFailed: with the reason.
    """
    try:
        os.mkdir(path)
    except FileExistsError:
        pass
    except OSError:
        try:
            os.makedirs(path, exist_ok=True)
        except OSError as exc:
            raise SpawnFailed(f"the working directory cannot be made: {exc}") from exc


def keep_output(path: str, attempt: int) -> None:
    """Put the output of an earlier attempt aside as `<path>.<its number>`."""
    try:
        os.rename(path, f"{path}.{attempt - 1}")
    except OSError:  # it has none
        pass


def spawn(program: str, argv: list[str], environ: Mapping[bytes, bytes], directory: str, output: str) -> int:
    """Start a program in `directory` and a session of its own, stdout and stderr in file `output` there; returns its pid.

    `output` is written anew and never through a link. No shell is involved.

    Raises:
        SpawnFailed: with the reason in words; nothing runs then.
    """
    actions = (
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, _OUTPUT_FLAGS, 0o666),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    )
    try:
        os.chdir(directory)
    except OSError as exc:
        raise SpawnFailed(f"the working directory cannot be entered: {exc}") from exc
    try:
        return os.posix_spawn(
            program, argv, environ, file_actions=actions, setsid=True, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
        )
    except OSError as exc:
        raise _failure(exc, program, output) from exc
    except ValueError as exc:  # a NUL byte
        raise SpawnFailed(f"{program} cannot be started: {exc}") from exc


def leave_directory() -> None:
    """Go where nobody minds: a launcher that stays in a job's directory keeps its file system busy."""
    os.chdir("/")


def _failure(exc: OSError, program: str, output: str) -> SpawnFailed:
    # posix_spawn says what failed, not where: look whether it was the output file.
    try:
        os.close(os.open(output, _OUTPUT_FLAGS | os.O_CLOEXEC, 0o666))
    except OSError as at_output:
        return SpawnFailed(f"the output file {output} cannot be written: {at_output.strerror}")
    if exc.errno == errno.ENOEXEC:
        return SpawnFailed(f"{program} cannot be executed: it is no program, and its first line is no #! line")
    if exc.errno == errno.ENOENT and os.path.exists(program):
        return SpawnFailed(f"{program} cannot be executed: the interpreter in its #! line does not exist")
    return SpawnFailed(f"{program} cannot be executed: {exc.strerror}")


def tail(path: str, lines: int, limit: int = 16_384) -> str:
    """The last `lines` lines of a file of any size and bytes, at most `limit` bytes; "" if it cannot be read."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            text = file.read(limit)
    except (OSError, ValueError):
        return ""
    kept = text.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}").splitlines()[-lines:]
    return "\n".join(kept)


# --- hearing of the end -----------------------------------------------------------------------------------------------


def reap() -> Iterator[Ended]:
    """Every child that has ended since the last call."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield Ended(pid, os.waitstatus_to_exitcode(status), SystemClock.now_us())


class Alarm:
    """Sleep until a signal comes, a child's end among them, or the time is up. Use as a context manager, once."""

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

    def wait(self, seconds: float) -> None:
        """Return after `seconds`, or at once when a signal has come since the last call."""
        if select.select([self._read], [], [], max(0.0, seconds))[0]:
            try:
                os.read(self._read, 4096)
            except BlockingIOError:
                pass


# --- stopping ---------------------------------------------------------------------------------------------------------


def end_orphans(mark: bytes, grace_s: float) -> int:
    """Kill every process whose run mark starts with `mark`, and wait until they are gone. Returns how many there were.

    For the jobs of a launcher that is provably dead: TERM, grace, KILL.
    """
    deadline = time.monotonic() + grace_s
    found: set[Process] = set()
    number = signal.SIGTERM
    while True:
        members = with_mark(mark)
        if not members:
            return len(found)
        if number == signal.SIGKILL or not set(members) <= found:
            signal_all(members, number)
        found.update(members)
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        time.sleep(0.01)
