"""Detach a process from its terminal and session, and keep one that has a terminal from blocking on it."""

from __future__ import annotations

import errno
import os
import select
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

#: Called when the child is ready, with the words that the parent prints.
Ready = Callable[[str, str], None]


def detach() -> Ready:
    """Continue in a child process with a separate session. The parent waits until it is ready, and then ends.

    The child calls the returned function, once, with the words that the parent prints, and the file to which its own stderr
    is redirected ("" or one that cannot be opened: nowhere). If it ends before that, the parent ends with its exit code.
    """
    readable, writable = os.pipe()
    child = os.fork()
    if child:
        os.close(writable)
        _wait_for(child, readable)
    os.close(readable)
    os.setsid()

    def ready(words: str, log: str) -> None:
        _leave_streams(log)
        os.write(writable, b"+" + words.encode("utf-8", "surrogateescape"))
        os.close(writable)

    return ready


def _wait_for(child: int, readable: int) -> None:
    with open(readable, "rb") as pipe:
        answer = pipe.read()
    if not answer:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    os.write(1, answer[1:])
    os._exit(0)


def _leave_streams(log: str) -> None:
    """Close the standard streams: the process that started this one may wait for their end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    try:
        errors = os.open(log, flags, 0o600) if log else nothing
    except OSError:
        errors = nothing
    for source, target in ((nothing, 0), (nothing, 1), (errors, 2)):
        os.dup2(source, target)
    for handle in {nothing, errors} - {0, 1, 2}:
        os.close(handle)


STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: The terminal is closed, the reader of a pipe is gone, or the descriptor was closed: writes fail permanently.
_GONE = (errno.EIO, errno.EPIPE, errno.ENXIO, errno.EBADF)
#: Seconds to wait for a reader of stderr.
STALL_TIMEOUT_S = 1.0


def handle_stop_signals(handler: Callable[[int, FrameType | None], object]) -> dict[int, Any]:
    """Call `handler` for SIGTERM, SIGINT and SIGHUP; return the earlier handlers of those that changed.

    SIGINT and SIGHUP stay ignored if they are ignored: nohup(1) does that to SIGHUP, and shells without job control to SIGINT
    of what they start with `&` (POSIX.1-2017, Shell Command Language, 2.11).
    """
    kept = {number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN}
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS if number not in kept}


class _Stalled:
    """How much was omitted since stderr was last read."""

    lines = 0


def write_stderr(text: str | bytes) -> bool:
    """Write to stderr, unbuffered, and return whether it still exists. Never raises OSError, and never blocks for long.

    When stderr is gone, /dev/null replaces it, so that no later writer fails, nor Python's last flush. While a pipe is full or
    a terminal is stopped by Ctrl-S, text is omitted: messages are also in the log file.
    """
    data = text if isinstance(text, bytes) else text.encode(errors="backslashreplace")
    if not _has_room():
        _Stalled.lines += 1
        return True
    if _Stalled.lines:
        data = f"[{_Stalled.lines} line(s) left out: there was no reader]\n".encode() + data
        _Stalled.lines = 0
    try:
        for start in range(0, len(data), select.PIPE_BUF):  # a pipe that poll(2) reports as writable has room for that
            if start and not _has_room():
                break
            os.write(2, data[start : start + select.PIPE_BUF])
    except OSError as exc:
        if exc.errno in _GONE:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            if nowhere != 2:
                os.close(nowhere)
        return False
    return True


def _has_room() -> bool:
    """Return whether stderr can be written; wait a moment for that, but not if it could not the last time."""
    waiting = select.poll()
    waiting.register(2, select.POLLOUT)
    return bool(waiting.poll(0 if _Stalled.lines else STALL_TIMEOUT_S * 1000))
