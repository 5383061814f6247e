"""Register this process with a DB while it waits for jobs, and explain on stderr when nothing happens to them.

A launcher whose jobs have all ended leaves at once, unless a process is registered that may add more when it has its results.
All of this is best effort: a process that can read a DB but not write it can wait, too.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.clock import SystemClock
from ..core.errors import BalsamError
from ..core.identity import Holder
from ..core.import_guard import StopLoading

if TYPE_CHECKING:
    from ..db.engine.connection import Database

T = TypeVar("T")

#: Seconds that a process stays registered after it has waited: a loop that waits, adds jobs and waits again is one wait.
_LINGER_S = 10.0
#: Heartbeat interval of a registered process, in seconds; LEASE_EXPIRY_S is 120 by default.
_HEARTBEAT_S = 30.0
#: Busy timeout for registering, in seconds: it must not delay the caller for long.
_BUSY_TIMEOUT_S = 2.0
#: Seconds without any change after which to look for the reason, then in growing intervals; and to repeat the same reason.
_QUIET_S, _LONGEST_QUIET_S, _REPEAT_S = 5.0, 60.0, 600.0


class Presence:
    """This process's registration with one DB, shared by all waits for its jobs in this process. `of` finds it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._users = 0
        self._left_at = 0.0
        self._beat_at = time.monotonic() + _HEARTBEAT_S
        self._lease: int | None = None
        self._timer: threading.Timer | None = None

    def enter(self) -> None:
        """Begin to wait. One write transaction, unless this process is registered already."""
        with self._lock:
            self._users += 1
            if self._lease is None:
                self._lease = self._write(_opened)

    def beat(self) -> None:
        """Beat the heart now and then, for launchers on other hosts or in containers: they see nothing else of this process."""
        from ..db.store import leases

        now = time.monotonic()
        if now < self._beat_at or self._lease is None:
            return
        with self._lock:
            self._beat_at, lease = now + _HEARTBEAT_S, self._lease
            if lease is not None:
                self._write(lambda cx, _: leases.heartbeat(cx, lease, SystemClock.now_us()))

    def leave(self) -> None:
        """End a wait. The registration ends a little later."""
        with self._lock:
            self._users -= 1
            self._left_at = time.monotonic()
            if not self._users and self._timer is None and self._lease is not None:
                self._start_timer(_LINGER_S)

    def _start_timer(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        with self._lock:
            self._timer = None
            left_s = self._left_at + _LINGER_S - time.monotonic()
            if self._users:
                return
            if left_s > 0:
                self._start_timer(left_s)
            else:
                self._end()

    def _end(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            from ..db.store import waits

            self._write(lambda cx, _: waits.close_wait(cx, lease))

    def end_now(self) -> None:
        """End the registration with the process."""
        if self._lock.acquire(timeout=_BUSY_TIMEOUT_S):
            self._end()

    def _write(self, act: Callable[[Any, float], T]) -> T | None:
        """Write over a separate connection: any thread may call this, and the caller's may be inside a transaction."""
        from ..core.settings import Settings
        from ..db.engine import directories

        try:
            settings = Settings.load(self._directory)
            db = directories.open_database(self._directory, settings)
            db.busy_timeout_s = _BUSY_TIMEOUT_S
            try:
                with db.write() as cx:
                    return act(cx, settings.LEASE_EXPIRY_S)
            finally:
                db.close()
        except (BalsamError, OSError):
            return None
        except StopLoading:  # another thread is importing an application's module; that is the one to stop
            if not isinstance(threading.current_thread(), threading.Timer):
                raise
            return None


def _opened(cx: Any, expiry_s: float) -> int:
    from ..db.store import waits

    job_id = os.environ.get("BALSAM_JOB_ID", "")
    return waits.open_wait(cx, Holder.current(), job_id, SystemClock.now_us(), expiry_s)


_presences: dict[tuple[int, str], Presence] = {}
_presences_lock = threading.Lock()


def touch(directory: str) -> None:
    """Register this process for some seconds: its user is about to wait, and jobs may end before that."""
    presence = of(directory)
    presence.enter()
    presence.leave()


def of(directory: str) -> Presence:
    """Return this process's Presence at that DB; a forked child has a separate one."""
    with _presences_lock:
        if not _presences:
            atexit.register(_end_all)
        return _presences.setdefault((os.getpid(), directory), Presence(directory))


def _end_all() -> None:
    for (process, _), presence in list(_presences.items()):
        if process == os.getpid():
            presence.end_now()


class Waiting:
    """One wait for jobs of one DB, from its first pause to `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._presence = of(database.directory)
        self._presence.enter()
        self._quiet_since = time.monotonic()
        self._look_at = self._quiet_since + _QUIET_S
        self._said, self._said_at = "", 0.0
        from ..db.store import leases

        self._watch = leases.Watch()

    def close(self) -> None:
        """End the wait."""
        self._presence.leave()

    def note(self, has_moved: bool, jobs: Callable[[], Sequence[int]]) -> None:
        """Record whether anything has happened since the last call; if not for long, print why.

        `jobs` gives the numbers of those that are waited for.
        """
        now = time.monotonic()
        self._presence.beat()
        if has_moved:
            self._quiet_since = now
            self._look_at = now + _QUIET_S
        elif now >= self._look_at:
            quiet_s = now - self._quiet_since
            self._look_at = now + min(quiet_s, _LONGEST_QUIET_S)
            self._tell(list(jobs()), quiet_s, now)

    def _tell(self, jobs: Sequence[int], quiet_s: float, now: float) -> None:
        from ..core.settings import Settings
        from ..db.query import stalls

        try:
            expiry_s = Settings.load(self._database.directory).LEASE_EXPIRY_S
            with self._database.read() as cx:
                now_us, watch = SystemClock.now_us(), self._watch
                why = stalls.why_nothing_happens(cx, jobs, now_us, expiry_s, watch) if jobs else ""
        except BalsamError:  # the wait itself will raise it
            return
        if not why or (why == self._said and now - self._said_at < _REPEAT_S):
            return
        self._said, self._said_at = why, now
        number = f"{len(jobs)} jobs" if len(jobs) > 1 else "a job"
        try:
            sys.stderr.write(f"balsam: waiting for {number} of {self._database.directory} for {quiet_s:.0f} s: {why}\n")
            sys.stderr.flush()
        except (AttributeError, OSError, ValueError):  # stderr is closed
            pass
