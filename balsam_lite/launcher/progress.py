"""One live line on a terminal while a launcher runs."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from .. import terminal
from ..db import queries
from ..db.connection import Database
from ..errors import BalsamError
from .loop import Launcher
from .runner import Runner


class Progress:
    """One live line on a terminal: done, running, waiting, failed, rate. Elsewhere nothing (the log has it all)."""

    _PERIOD_S = 0.5

    def __init__(self, db: Database) -> None:
        self._db = db
        self._shown_at = self._started = time.monotonic()
        self._on = sys.stderr.isatty()
        self._launcher: Launcher | None = None
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
        try:
            with self._db.read() as cx:
                counts = queries.state_counts(cx)
        except BalsamError:
            return
        done, failed, timed_out = self._launcher.tally
        waiting = sum(counts.get(state, 0) for state in (*queries.WAITING_STATES,))
        rate = (done + failed) / max(self._shown_at - self._started, 0.001)
        line = f"{done} done, {len(self._runner)} running, {waiting} waiting, {failed + timed_out} failed, {rate:.1f} jobs/s"
        width = _width()
        self._on = terminal.write_stderr(f"\r{line[:width]:<{width}}")  # not once more to a terminal that is closed

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
