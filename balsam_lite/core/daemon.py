"""Leaving the process, the terminal and the session that one was started from."""

from __future__ import annotations

import os
from collections.abc import Callable

#: Says that all is well, and what the parent is to print.
Ready = Callable[[str, str], None]


def detach() -> Ready:
    """Go on in a child with a session of its own. The parent waits for it to be ready, and then ends.

    The child calls what this returns, once, with the words that the parent is to print, and the file in which its own
    stderr is to go on ("" or one that cannot be opened: nowhere). If it ends before that, the parent ends with its exit code.
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
    """Whoever sent for this process may wait for the end of its streams."""
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
