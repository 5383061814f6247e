"""Start one program, as a launcher requests it of a spawn helper, and the messages between the two.

Messages are tuples, each written by marshal after its length (`framed`).
"""

from __future__ import annotations

import errno
import marshal
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

from ...core.errors import SpawnFailed

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

#: Bytes of the number that is a message's length.
LENGTH_BYTES = 4
#: Marks a variable that the launcher has but a program must not have. No real value contains a NUL.
UNSET = b"\0"

#: Programs get back the default action of signals that are ignored here, or by the process that started the launcher.
DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
OUTPUT_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
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
    call: tuple[Any, ...] | None = None  # of an executor, for a worker: see `workers.CallRequest`


# --- messages -----------------------------------------------------------------------------------------------------------


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


# --- one program ------------------------------------------------------------------------------------------------------


def spawn(request: Request, environ: Mapping[bytes, bytes]) -> int:
    """Start a program; return its pid. Raise SpawnFailed if that is impossible, from the OSError that is the cause, if any."""
    is_new = prepare(request)
    try:
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


def prepare(request: Request) -> bool:
    """Make the directory of a program if it is missing, and what is to be there. Return whether the directory is new.

    Raises:
        SpawnFailed: from the OSError that is the cause, if any.
    """
    try:
        is_new = bool(request.root) and make_directory(request.directory, request.root)
        if request.prepare:
            import pickle

            for function, arguments in pickle.loads(request.prepare):
                function(*arguments)
        return is_new
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
            setsigdef=DEFAULT_SIGNALS,
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


# --- times --------------------------------------------------------------------------------------------------------------


def start_of_child(pid: int) -> str:
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


def boot_tick() -> str:
    """Return the present time in the unit of process starts in proc_pid_stat(5); "" elsewhere than on Linux.

    If this is the same before and after a fork, it is the start of the child. Reading /proc would have to wait for its exec.
    """
    return str(time.clock_gettime_ns(time.CLOCK_BOOTTIME) * _TICKS_PER_S // 1_000_000_000) if _LINUX else ""


def now_us() -> int:
    return time.time_ns() // 1000


def become_subreaper() -> None:
    """Make this process the parent of descendants that lose theirs. Only possible on Linux."""
    if not _LINUX:
        return
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
