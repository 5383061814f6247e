"""Call the setting ON_EVENT, a command or URLs, with JSON on stdin. It never blocks, outlives or disturbs its caller.

    python -m balsam_lite.core.event_hook

is the process between a launcher or service and the command. It makes the calls that it reads from the socket on stdin, each
within a time limit, reports the failed ones, and ends the command at once when the other end of the socket is closed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from . import daemon, subprocess_run
from .process_table import JOB_VARIABLES, below, signal_all

_MODULE = "balsam_lite.core.event_hook"  # also where `__name__` is `__main__`
#: Maximum bytes kept of what a command prints. One that prints more is ended.
MAX_OUTPUT_BYTES = 1 << 20
#: Maximum characters of the command's output in a log line.
_MAX_WORDS = 300
#: What `--urls` prints, and its exit code, where apprise is missing.
_NO_APPRISE = "the Python package apprise is missing: pip install 'balsam_lite[notify]'"

Notification = Mapping[str, Any]


class Call(NamedTuple):
    """The result of one call."""

    event: str
    failure: str  # in words; "" if it succeeded
    returncode: int | None = 0  # None: it did not start, or was ended
    stdout: str = ""
    stderr: str = ""


def is_urls(on_event: str) -> bool:
    """Return whether ON_EVENT lists URLs for apprise, separated by spaces, and is no command.

    >>> is_urls("mailto://me:pw@example.org slack://token"), is_urls("curl https://example.org")
    (True, False)
    """
    words = on_event.split()
    return bool(words) and all(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", word) for word in words)


def described(on_event: str) -> str:
    """Return ON_EVENT for a message: of URLs, which contain passwords, only the schemes."""
    return " ".join(f"{word.partition('://')[0]}://…" for word in on_event.split()) if is_urls(on_event) else on_event


def call(on_event: str, notifications: Sequence[Notification], timeout_s: float) -> Call:
    """Call ON_EVENT with a notification, or URLs with several, and wait for its end. Every failure is in the result.

    A command is run by /bin/sh in the directory of the DB, with BALSAM_DB_PATH set.
    """
    directory = str(notifications[0]["db"])
    environ = {name: value for name, value in os.environ.items() if name not in JOB_VARIABLES}
    environ["BALSAM_DB_PATH"] = directory
    if is_urls(on_event):
        words = subprocess_run.module_words(_MODULE, "--urls")
        environ["PYTHONPATH"] = subprocess_run.python_path()
        stdin = json.dumps([on_event.split(), notifications])
    else:
        words, stdin = ["/bin/sh", "-c", on_event], json.dumps(notifications[0])
    done = subprocess_run.run(
        words, timeout_s=timeout_s, environ=environ, directory=directory, stdin=stdin.encode(), largest_bytes=MAX_OUTPUT_BYTES
    )
    last = done.stderr.rstrip().rpartition("\n")[2][:_MAX_WORDS]
    how = "" if done.ok else last if done.returncode is None else f"exit code {done.returncode}{last and f': {last}'}"
    return Call(", ".join(str(one["event"]) for one in notifications), how, done.returncode, done.stdout, done.stderr)


class HookProcess:
    """The process that calls ON_EVENT for this one: at most one at a time. No method blocks but `close`, for a given time."""

    def __init__(self, on_event: str, timeout_s: float) -> None:
        self._on_event, self._timeout_s = on_event, timeout_s
        self._process: subprocess_run.Module | None = None
        self._link: socket.socket | None = None
        self._unread = b""

    @property
    def is_busy(self) -> bool:
        """Return whether calls are being made; as of the last `poll`."""
        return self._process is not None

    def start(self, notifications: Sequence[Notification]) -> str:
        """Start to call ON_EVENT for each, one after the other. Return why this is impossible; "" if it is not."""
        self._link, end = socket.socketpair()
        with end:
            try:
                self._process = subprocess_run.start_module(_MODULE, end.fileno())
            except OSError as exc:
                self._link.close()
                return f"ON_EVENT could not be called: {exc.strerror}"
        # A few notifications fit into the buffer of the socket.
        with suppress(OSError):
            self._link.sendall(json.dumps([self._on_event, self._timeout_s, *notifications]).encode() + b"\n")
        self._link.setblocking(False)
        return ""

    def poll(self) -> list[str]:
        """Return a line for each call that has failed since the last poll."""
        if self._link is None:
            return []
        pieces = [self._unread]
        try:
            while pieces[-1] or len(pieces) == 1:
                pieces.append(self._link.recv(1 << 16))
            is_over = True
        except BlockingIOError:
            is_over = False
        except OSError:
            is_over = True
        *found, self._unread = b"".join(pieces).split(b"\n")
        lines = [f"ON_EVENT failed for {event}: {failure}" for event, failure in map(json.loads, found)]
        if is_over:
            code = self._leave()
            lines += [f"ON_EVENT failed: the process that calls it ended with exit code {code}"] * (code != 0)
        return lines

    def close(self, wait_s: float) -> list[str]:
        """Wait at most that long for the calls under way, end them, and return a line for each that failed."""
        give_up, lines = time.monotonic() + wait_s, self.poll()
        while self.is_busy and time.monotonic() < give_up:
            time.sleep(0.01)
            lines += self.poll()
        if self.is_busy:
            lines.append(f"ON_EVENT was ended: it was still running {wait_s:g} s after the end of its caller's work")
            self._leave()
        return lines

    def _leave(self) -> int:
        """Close the link, which makes the process end its command and itself. Return its exit code."""
        assert self._link is not None and self._process is not None
        self._link.close()
        code = subprocess_run.await_module(self._process)
        self._process, self._link, self._unread = None, None, b""
        return code


# --- the process between ----------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Make the calls that stdin requests; `--urls`: send one notification to URLs."""
    if argv:
        return _send(*json.load(sys.stdin))
    for number in daemon.STOP_SIGNALS:  # the batch system may signal all processes of a job; a command gets the defaults
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    subprocess_run.restore_python_path()
    link = socket.socket(fileno=os.dup(0))
    request = b""
    while not request.endswith(b"\n"):
        piece = link.recv(1 << 16)
        if not piece:
            return 1
        request += piece
    on_event, timeout_s, *notifications = json.loads(request)
    threading.Thread(target=_end_with, args=(link,), daemon=True).start()
    # Loading apprise takes longer than sending.
    for several in [notifications] if is_urls(on_event) else [[one] for one in notifications]:
        done = call(on_event, several, timeout_s)
        if done.failure:
            link.sendall(json.dumps([done.event, done.failure]).encode() + b"\n")
    os._exit(0)  # at once: the caller waits for this end


def _end_with(link: socket.socket) -> None:
    """End this process and its command once the other end of the link is closed."""
    with suppress(OSError):
        while link.recv(1):
            pass
    for pid in list(subprocess_run.running):
        with suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    signal_all(below(os.getpid()), signal.SIGKILL)  # the thread may have started it, and not have noted it yet
    os._exit(1)


def _send(urls: Sequence[str], notifications: Sequence[Notification]) -> int:
    try:
        import apprise
    except ImportError:
        sys.stderr.write(f"{_NO_APPRISE}\n")
        return 1
    sender = apprise.Apprise()
    for url in urls:
        if not sender.add(url):
            sys.stderr.write(f"apprise does not understand the URL that begins with {url.partition('://')[0]}://\n")
            return 1
    kinds = {"job-failed": "failure", "stuck": "warning", "workflow-finished": "success"}
    are_sent = [
        sender.notify(
            title=f"balsam: {one['event']}", body=f"{one['text']}\n{one['db']}", notify_type=kinds.get(one["event"], "info")
        )
        for one in notifications
    ]
    if not all(are_sent):
        sys.stderr.write(f"apprise could not send it to {described(' '.join(urls))}\n")
    return int(not all(are_sent))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
