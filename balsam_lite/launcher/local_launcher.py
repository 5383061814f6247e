"""A launcher that belongs to a `BalsamExecutor`: it runs the executor's jobs on this host, and ends with it.

The launcher is this module, started as a separate process with one end of a socket pair. The other end is the executor's: when
that is closed, also because its process was killed, the launcher stops its jobs and ends. Over the same socket it reports its
warnings and errors. Where no DB is active, the executor has a temporary one, which the launcher removes at its end.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import weakref
from contextlib import suppress
from typing import NoReturn

from ..core import daemon, subprocess_run
from ..core.errors import BalsamError
from ..db.engine import directories
from ..db.engine.connection import Database

_MODULE = "balsam_lite.launcher.local_launcher"
#: Bytes read at once from the socket, which holds a few hundred lines; what does not fit is only in the launcher's log.
_PIECE_BYTES = 1 << 16
#: Seconds that a launcher may take to end beyond its grace for running jobs.
_END_TIMEOUT_S = 20.0


def temporary_db() -> Database:
    """Create a DB in a temporary directory, not registered as a known one."""
    return directories.set_up(tempfile.mkdtemp(prefix="balsam-executor-"))


class LocalLauncher:
    """The executor's end.

    Args:
        directory: of the DB, which the launcher removes at its end if it `is_temporary`.
        workflow: of the jobs that it runs. slots: the number of nodes to divide this host into; None: one per core.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, directory: str, is_temporary: bool, workflow: str, slots: int | None, job_mode: str) -> None:
        self._link, end = socket.socketpair()
        with end:
            self._process = subprocess_run.start_module(_MODULE, end.fileno())
        _links.add(self._link)
        request = {"directory": directory, "is_temporary": is_temporary, "workflow": workflow, "slots": slots, "mode": job_mode}
        with suppress(OSError):  # it has ended, which `failure` reports
            self._link.sendall(json.dumps(request).encode() + b"\n")
        self._link.setblocking(False)
        self._unread = b""

    def lines(self) -> list[str]:
        """Return the warnings and errors that have arrived since the last call."""
        with suppress(OSError):  # BlockingIOError: nothing more has arrived
            while piece := self._link.recv(_PIECE_BYTES):
                self._unread += piece
        *lines, self._unread = self._unread.split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def has_ended(self) -> bool:
        """Return whether the launcher has ended."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Make the launcher stop its jobs and end."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        self._link.close()

    def wait(self) -> None:
        """Wait for its end, after `close`."""
        subprocess_run.await_module(self._process, _END_TIMEOUT_S)


#: The executors' ends in this process. A forked child must not keep them open.
_links: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _forget_links() -> None:
    for link in list(_links):
        link.close()


os.register_at_fork(after_in_child=_forget_links)


# --- the launcher's process -------------------------------------------------------------------------------------------


class _ToExecutor(logging.Handler):
    """Send warnings and errors to the executor, unless it has stopped reading."""

    def __init__(self, link: socket.socket) -> None:
        super().__init__(logging.WARNING)
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())

    def say(self, text: str) -> None:
        with suppress(OSError):
            self._link.sendall(f"{text}\n".encode(errors="replace"))


def main() -> int:
    """Run the launcher that the executor requests on stdin; return its exit code."""
    for number in daemon.STOP_SIGNALS:
        signal.signal(number, _stop_early)  # until the launcher handles them
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    subprocess_run.restore_python_path()
    link = socket.socket(fileno=os.dup(0))
    with open(0, "rb", closefd=False) as stdin:
        line = stdin.readline()
    if not line:
        return 1
    request = json.loads(line)
    to_executor = _ToExecutor(link)
    logging.getLogger("balsam_lite").addHandler(to_executor)
    link.setblocking(False)
    try:
        _end_with(link)
        from .main import LauncherOptions, run_launcher

        options = LauncherOptions(request["mode"], request["workflow"], nodes=request["slots"], persistent=True)
        return run_launcher(request["directory"], options)
    except BalsamError as exc:
        to_executor.say(str(exc))
        return 1
    finally:
        if request["is_temporary"]:
            shutil.rmtree(request["directory"], ignore_errors=True)


def _stop_early(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _end_with(link: socket.socket) -> None:
    """Send SIGTERM to this process once the other end of the link is closed."""

    def look(*_: object) -> None:
        with suppress(BlockingIOError):
            try:
                is_closed = not link.recv(1, socket.MSG_PEEK)
            except ConnectionError:
                is_closed = True
            if is_closed:
                signal.signal(signal.SIGIO, signal.SIG_IGN)
                os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGIO, look)
    fcntl.fcntl(link, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(link, fcntl.F_SETFL, fcntl.fcntl(link, fcntl.F_GETFL) | os.O_ASYNC)
    look()


if __name__ == "__main__":
    sys.exit(main())
