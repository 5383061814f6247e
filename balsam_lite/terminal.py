"""How a long-running program treats the terminal and the signal dispositions that it was started with."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

#: The terminal is closed, the reader of a pipe is gone, or the descriptor was closed: nothing can be written ever again.
_GONE = (errno.EIO, errno.EPIPE, errno.ENXIO, errno.EBADF)


def handle_stop_signals(handler: Callable[[int, FrameType | None], object]) -> dict[int, Any]:
    """Call `handler` for SIGTERM, SIGINT and SIGHUP; return the earlier handlers of those that changed.

    SIGINT and SIGHUP stay ignored where they are ignored: nohup(1) does that to SIGHUP, and shells without job control to
    SIGINT of what they start with `&` (POSIX.1-2017, Shell Command Language, 2.11).
    """
    kept = {number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN}
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS if number not in kept}


def write_stderr(text: str | bytes) -> bool:
    """Write to stderr, unbuffered, and return whether that could be done. Never raises OSError.

    When stderr is gone, /dev/null takes its place: no later writer fails, nor Python's last flush.
    """
    try:
        os.write(2, text if isinstance(text, bytes) else text.encode(errors="backslashreplace"))
    except OSError as exc:
        if exc.errno in _GONE:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            if nowhere != 2:
                os.close(nowhere)
        return False
    return True
