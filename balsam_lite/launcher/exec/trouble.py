"""Failures to start that are the machine's fault, not the job's, and the launcher's pause because of them.

A job whose start fails for lack of processes, memory, files or disk space uses up no restart. `Machine` distinguishes such a
failure from the job's own (a missing program, too many arguments); `Pause` decides when to try again.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import Counter
from contextlib import suppress

from ...core.errors import MachineTrouble
from ...db.engine import filesystem

#: No program can start for lack of a resource (fork(2), pthread_create(3), open(2), execve(2) of Linux man-pages 6.03).
_LACKS = {
    errno.EAGAIN: "no more processes or threads can be started",
    errno.ENOMEM: "there is not enough memory",
    errno.EMFILE: "the launcher has too many files open",
    errno.ENFILE: "this host has too many files open",
}
#: A file system is full, broken or gone; the last four are from network file systems or FUSE servers.
_STORAGE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EROFS)
    + (errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT)
)
#: When a file is copied, these concern the file that is written.
_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
#: Seconds for which a finding about data/ is valid: many starts may fail at the same time.
_BELIEVED_S = 0.5
#: Seconds until the next check of data/ after a good one: thousands of short tasks may start in a second.
_USABLE_S = 0.005


class Machine:
    """This host and the directory of the jobs' working directories. Any thread may ask."""

    def __init__(self, data_directory: str) -> None:
        self._data = data_directory
        self._known: tuple[int, int] | None = None
        self._looked_at = self._tried_at = self._usable_until = float("-inf")
        self._short = self._unwritable = ""
        self._is_away = False  # on other hosts it may be there
        self.why_data_is_gone()

    def trouble_behind(self, exc: BaseException) -> MachineTrouble | None:
        """Return the machine's trouble that caused a failure; None if the job itself is at fault.

        Looks along the causes of `exc` for an OSError, whose `filename` tells where it happened.
        """
        error: BaseException | None = exc
        while error is not None:
            if isinstance(error, MachineTrouble):
                return error
            if isinstance(error, OSError) and error.errno is not None:
                return self._judge(error, error.errno)
            if isinstance(error, MemoryError):
                return MachineTrouble(_lack(errno.ENOMEM), MachineTrouble.HOST)
            if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
                return MachineTrouble(_lack(errno.EAGAIN), MachineTrouble.HOST)
            error = error.__cause__
        return None

    def _judge(self, error: OSError, code: int) -> MachineTrouble | None:
        if code in _LACKS:
            return MachineTrouble(_lack(code), MachineTrouble.HOST)
        name = error.filename2 if code in _WRITING and error.filename2 else error.filename
        path = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
        if code == errno.ETXTBSY:
            return MachineTrouble(f"another program has {path} open for writing ({error.strerror})", scope=path)
        if code in _STORAGE or f"{path}/".startswith(f"{self._data}/"):
            general = self.why_data_fails()
            if general:
                return MachineTrouble(general, MachineTrouble.HOST if self._is_away else "")
        if code not in _STORAGE:
            return None
        place = filesystem.existing(path)
        reason = filesystem.why_full(place, code) or f"{path or place}: {error.strerror}"
        return MachineTrouble(reason, scope=self._scope(place))

    def _scope(self, place: str) -> str:
        """Return the scope of a failure at a path of one job: the path's file system, or the path alone."""
        with suppress(OSError):
            if os.stat(place).st_dev != os.stat(self._data).st_dev:
                return filesystem.mount_of(place).point
        return place

    def why_data_is_gone(self) -> str:
        """Return why working directories cannot be made, by a cheap check of data/; "" if they can."""
        away = self._why_away()
        self._is_away = bool(away)
        return away or self._why_short()

    def data_trouble(self) -> MachineTrouble | None:
        """Return `why_data_is_gone` as MachineTrouble; None if data/ is usable, or was a moment ago."""
        now = time.monotonic()
        if now < self._usable_until:
            return None
        gone = self.why_data_is_gone()
        if not gone:
            self._usable_until = now + _USABLE_S
        return MachineTrouble(gone, MachineTrouble.HOST if self._is_away else "") if gone else None

    def _why_away(self) -> str:
        try:
            found = os.stat(self._data)
        except OSError as exc:
            return f"The directory {self._data} is not usable: {exc.strerror} (is its file system mounted?)"
        if not stat.S_ISDIR(found.st_mode):
            return f"{self._data} is not a directory"
        self._known = self._known or (found.st_dev, found.st_ino)
        # A file system that is mounted again may get another device number, and a file on a FUSE another inode number.
        if found.st_dev != self._known[0] and found.st_ino != self._known[1]:
            return (
                f"The directory {self._data} is not the one that this launcher began with "
                "(was its file system mounted or unmounted since?)"
            )
        return ""

    def _why_short(self) -> str:
        now = time.monotonic()
        if now - self._looked_at > _BELIEVED_S:
            self._looked_at = now
            self._short = ""
            with suppress(OSError):  # the next start shows it
                error = filesystem.try_to_write(self._data) if filesystem.is_short(self._data) else None
                # Not all file systems tell the truth about what is free.
                self._short = filesystem.why_full(self._data, error.errno) if error else ""
        return self._short

    def why_data_fails(self) -> str:
        """Return why no file can be written to data/; "" if one can. Writes a file, at most twice a second.

        Missing permissions do not count: those of data/ may differ from those of the directories in it.
        """
        now = time.monotonic()
        if now - self._tried_at > _BELIEVED_S:
            self._tried_at = now
            self._unwritable = self.why_data_is_gone()
            error = None if self._unwritable else filesystem.try_to_write(self._data)
            if error is not None and error.errno in _STORAGE:
                self._unwritable = filesystem.why_full(self._data, error.errno) or f"{self._data}: {error.strerror}"
        return self._unwritable


def _lack(code: int) -> str:
    return f"{_LACKS[code]} ({os.strerror(code)})"


class Setbacks:
    """How long to hold back jobs that cannot start because of trouble with their paths while other jobs can start.

    The first job with a scope (a program, a directory, a file system) tries again after 1, 2, 4 … 600 seconds. Jobs of the same
    scope that fail meanwhile wait longer, one after the other. Times are seconds on the monotonic clock.
    """

    FIRST_S, MAX_S = 1.0, 600.0
    #: Minimum wait, in seconds, of a job that fails meanwhile, and seconds added for each job that waits already.
    _OTHERS_S, _STEP_S = 60.0, 0.05

    def __init__(self) -> None:
        self.reasons: dict[int, str] = {}  # by job, as long as it is held back
        self._scopes: dict[str, TroubleScope] = {}

    def hold(self, job: int, trouble: MachineTrouble, now: float) -> float:
        """Return the number of seconds for which to hold a job back."""
        self.reasons[job] = trouble.message
        scope = self._scopes.setdefault(trouble.scope, TroubleScope())
        if now < scope.next_try:
            scope.waiting += 1
            return min(self.MAX_S, max(scope.interval_s, self._OTHERS_S) + self._STEP_S * scope.waiting)
        scope.interval_s = min(self.MAX_S, 2 * scope.interval_s) or self.FIRST_S
        scope.next_try, scope.waiting = now + scope.interval_s, 0
        return scope.interval_s

    def release(self, job: int) -> None:
        """Forget a job that is being started again."""
        if self.reasons:
            self.reasons.pop(job, None)

    @property
    def summary(self) -> list[str]:
        """Return a sentence for each reason."""
        return [f"{jobs} job(s) are held back: {reason}" for reason, jobs in Counter(self.reasons.values()).items()]


class TroubleScope:
    """The state of one trouble, shared by all affected jobs."""

    def __init__(self) -> None:
        self.interval_s = self.next_try = 0.0
        self.waiting = 0


class Pause:
    """When to try again after trouble that keeps all jobs from starting. Times are seconds on the monotonic clock.

    Each failed try doubles the interval. A try is one start; after a good one two are allowed at once, then four, until the
    trouble counts as over.
    """

    FIRST_S, MAX_S = 1.0, 60.0
    #: A start without any report for this many seconds is a good one: nodes report ends, not starts.
    _SILENCE_S = 3.0
    #: The trouble is over when this many starts at once were good.
    _ENOUGH = 64
    #: Minimum interval of log lines about the trouble, in seconds.
    _LINE_PERIOD_S = 60.0

    def __init__(self) -> None:
        self.reason = ""  # "": there is no trouble
        self.next_try = 0.0
        self._interval_s = 0.0
        self._window = 1
        self._failed = 0  # starts, since the last line in the log
        self._tried: tuple[float, int] | None = None  # when, and how many programs had been started by then
        self._line_at = self._began = 0.0
        self._is_announced = False

    def fail(self, reason: str, now: float) -> None:
        """Record that a start failed for that reason."""
        if not self.reason:
            self._began = now
            self._interval_s, self._failed, self._is_announced = self.FIRST_S, 0, False
        elif self._tried is not None:
            self._interval_s = min(self.MAX_S, max(self.FIRST_S, 2 * self._interval_s))
        self.reason, self._tried, self._window = reason, None, 1
        self.next_try = now + self._interval_s
        self._failed += 1

    def allowed(self, now: float, most: int) -> int:
        """Return how many programs may be started now; `most` if there is no trouble."""
        if not self.reason:
            return most
        return 0 if now < self.next_try else min(self._window, most)

    def try_again(self, now: float, starts: int, started: int) -> None:
        """Record a try with this many starts, or with nothing to start, after `started` programs had been started."""
        if not self.reason:
            return
        self._tried = (now, started) if starts else None
        self.next_try = now + (self._SILENCE_S if starts else self._interval_s)

    def listen(self, now: float, started: int) -> str:
        """Check whether a try was good. Return a line for the log when the trouble is over, else ""."""
        if self._tried is None or (started == self._tried[1] and now - self._tried[0] < self._SILENCE_S):
            return ""
        self._tried, self._window = None, 2 * self._window
        self._interval_s, self.next_try = self.FIRST_S / 2, now
        if self._window <= self._ENOUGH:
            return ""
        self.reason = ""
        return f"Jobs can be started again, after {now - self._began:.0f} s." if self._is_announced else ""

    def hasten(self, now: float) -> None:
        """Try again soon: a run has ended, which may have freed what was missing."""
        if self.reason and self._tried is None:
            self.next_try = min(self.next_try, now)

    def line(self, now: float) -> str:
        """Return a line for the log, if it is time for one; else ""."""
        if not self.reason or now < self._line_at:
            return ""
        self._line_at, self._is_announced = now + self._LINE_PERIOD_S, True
        failed, self._failed = self._failed, 0
        went_back = f"{failed} start(s) failed, their jobs went back"
        return f"The machine is in trouble: {self.reason}. {went_back}; next try in {max(0.0, self.next_try - now):.0f} s."
