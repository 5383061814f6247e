"""Predict how soon runs end, to claim jobs ahead, and decide when to check the DB for changes by other processes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from ..db.engine.connection import Database
from ..db.engine.filesystem import LOCAL
from ..db.store.claims import Shape
from ..db.store.runs import RunResult

#: Maximum number of jobs to claim ahead; a crash of the launcher needlessly sends these through RESTART_READY.
MAX_AHEAD = 256


class EndRate:
    """The rate at which recent runs have ended. Short tasks are claimed ahead according to it, long ones never.

    Uses the monotonic clock: the host's clock may be set while jobs run.
    """

    _MEMORY_S = 2.0
    _SILENCE_S = 1.0  # without an end for this long, the runs may be long ones

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._began = monotonic()
        self._ends: deque[tuple[float, float, Shape]] = deque(maxlen=2048)  # end, seconds that it ran, and what it was

    def add(self, ended: RunResult, shape: Shape) -> None:
        """Count a run whose end was just reported."""
        now = self._monotonic()
        ran_s = 0.0 if ended.started_us is None else (ended.ended_us - ended.started_us) / 1e6
        self._ends.append((now, min(max(ran_s, 0.0), now - self._began), shape))

    def expected(self, seconds: float, shape: Shape) -> int:
        """Return how many runs of that shape will probably end within `seconds`."""
        now = self._monotonic()
        while self._ends and now - self._ends[0][0] > self._MEMORY_S:
            self._ends.popleft()
        ends = [end for end in self._ends if end[2] == shape]
        if len(ends) < 2 or now - ends[-1][0] > self._SILENCE_S:
            return 0
        ended, ran_s, _ = ends[0]
        # Runs that began together end together; their rate is their number per run time.
        span_s = max(ends[-1][0] - ended, ran_s, 0.01)
        return min(int(len(ends) / span_s * seconds), MAX_AHEAD)


class Quiet:
    """Detects writes by other processes on a shared file system, without opening a session while nothing happens.

    There only opening the file shows its contents, which costs the lock file, the opening and two syncs. So the interval grows
    with each transaction without news, up to `MAX_S`, and is reset by one with news. Between these, size and time of the file
    are a hint, which an NFS client may take from its cache for `acregmin` to `acregmax` seconds (3 to 60 by default, nfs(5));
    other file systems show them at once. So a new job or a kill is usually noticed after `HINT_S`, and after `MAX_S` at the
    latest. Times are seconds on the monotonic clock.
    """

    FIRST_S, MAX_S = 0.1, 3.0
    #: Interval of checks of the hint.
    HINT_S = 0.25

    def __init__(self, db: Database) -> None:
        self._db = db
        self.interval_s = 0.0
        self._next = float("-inf")
        self._file: tuple[int, int, int] | None = None

    @property
    def look_s(self) -> float:
        """Return the minimum number of seconds until the next look."""
        return self.HINT_S if self.interval_s else 0.0

    def has_news(self, now: float) -> bool:
        """Return whether other processes may have written since the last transaction."""
        changed = self._db.changed()
        return changed if self._db.access == LOCAL else now >= self._next or self._seen() != self._file

    def note(self, now: float, brought_something: bool) -> None:
        """Record a transaction, and whether it brought news."""
        if self._db.access == LOCAL:
            return
        self.interval_s = 0.0 if brought_something else min(self.MAX_S, max(self.FIRST_S, 1.5 * self.interval_s))
        self._next, self._file = now + self.interval_s, self._seen()

    def _seen(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._db.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
