"""One live line on a terminal while a launcher runs."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable

from ..core import states, terminal
from ..core.errors import BalsamError
from ..db.engine.connection import Database
from ..db.query import queries
from .loop import Launcher
from .runner import Runner


class RecentRate:
    """A rate per second, over the last minute.

    Args:
        now: when the count was 0, on the monotonic clock.
    """

    _WINDOW_S = 60.0

    def __init__(self, now: float) -> None:
        self._counts = deque([(now, 0)])  # the first is the newest one that is a minute old, if there is one

    def note(self, now: float, count: int) -> None:
        """Record the present count."""
        self._counts.append((now, count))
        while len(self._counts) > 2 and self._counts[1][0] <= now - self._WINDOW_S:
            self._counts.popleft()

    @property
    def per_s(self) -> float:
        """Return the rate at the last `note`."""
        (first, before), (last, count) = self._counts[0], self._counts[-1]
        return (count - before) / max(last - first, 0.001)


class Progress:
    """One live line on a terminal: finished, failed and running jobs, their rate, what is awaited. Elsewhere nothing."""

    _PERIOD_S, _TOLD_PERIOD_S = 0.5, 60.0

    def __init__(self, db: Database) -> None:
        self._db = db
        self._shown_at = time.monotonic()
        self._rate = RecentRate(self._shown_at)
        self._on = sys.stderr.isatty()
        self._launcher: Launcher | None = None
        self._told, self._told_at = "", 0.0
        self._runner: Runner | None = None

    def watch(self, launcher: Launcher, runner: Runner) -> None:
        """Say whom to ask."""
        self._launcher, self._runner = launcher, runner

    def around(self, wait: Callable[[float], object]) -> Callable[[float], object]:
        """`wait`, with a look at the line before."""
        if not self._on:
            return wait

        def wait_and_show(seconds: float) -> None:
            if self._on and time.monotonic() - self._shown_at >= self._PERIOD_S:
                self._show()
            wait(seconds)

        return wait_and_show

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        assert self._launcher is not None and self._runner is not None
        self._tell(self._launcher.trouble)
        try:
            with self._db.read() as cx:
                counts = queries.state_counts(cx)
        except BalsamError:
            return
        waiting = sum(counts.get(state, 0) for state in queries.WAITING_STATES)
        jobs = self._launcher.tally.jobs
        self._rate.note(self._shown_at, sum(jobs.values()))
        line = f"{jobs[states.JOB_FINISHED]} finished, {len(self._runner)} running, {waiting} waiting"
        line += f", {jobs[states.FAILED]} failed"
        line += f", {jobs[states.USER_KILLED]} killed" if jobs[states.USER_KILLED] else ""
        line += f", {self._rate.per_s:.1f} jobs/s"
        line += f"; waits for {self._launcher.awaited}" if self._launcher.awaited else ""
        width = _width()
        self._on = terminal.write_stderr(f"\r{line[:width]:<{width}}")  # False: never again to a terminal that is closed

    def _tell(self, trouble: str) -> None:
        """Write above the line why nothing can start, at most once a minute unless the reason has changed."""
        is_due = trouble != self._told or self._shown_at - self._told_at >= self._TOLD_PERIOD_S
        if trouble and is_due:
            self.clear()
            self._on = terminal.write_stderr(f"{trouble}\n")
            self._told, self._told_at = trouble, self._shown_at

    def clear(self) -> None:
        """Leave the line."""
        if self._on:
            terminal.write_stderr(f"\r{'':{_width()}}\r")  # not every terminal knows escape sequences


def _width() -> int:
    try:
        columns = os.get_terminal_size(2).columns
    except OSError:  # it is closed
        columns = 0
    return max((columns or 80) - 1, 1)
