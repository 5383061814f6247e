"""What a launcher tells: why jobs wait, its counts, and its progress."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any, NamedTuple, Protocol

from ..core import daemon, states
from ..core.clock import SECOND_US, Clock, spoken
from ..core.errors import BalsamError
from ..db.engine.connection import Connection, Database
from ..db.query import demand, select
from ..db.query.catalogue import make
from ..db.query.demand import Scope
from ..db.query.filters import condition_on_text
from ..db.query.takers import Taker
from ..db.store import claims, held_back, large_writes
from ..db.store.claims import Filter, Shape
from .exec.trouble import Pause, Setbacks
from .placement import NodePool

log = logging.getLogger(__name__)

#: Maximum number of reasons that a launcher gives for waiting jobs at once.
_MAX_SENTENCES = 20
#: Maximum number of reasons that are written above the progress line at once.
_MAX_TOLD = 5
#: The final states that are counted apart in the progress of a launcher.
_SHOWN_ENDS = ((states.FAILED, "failed"), (states.USER_KILLED, "killed"))
_NO_PLACE = make("no-place", running="").text
_LARGE_WRITE = make("large-write").text
_APART = make("apart").text
_RUNS_APART = make("runs-apart", deaths="its launchers died while it ran").text
_HELD_BACK = make("held-back", until="for some seconds", why=", as dependencies may follow").text
_PARENTS = make("waits-for-parents", what="its parents", parent_id="").text
_UNSETTLED = make("unsettled").text


class Limits(NamedTuple):
    """When the launcher ends, and which jobs it takes."""

    workflow: str | None  # exact name or glob; None: all
    serial_only: bool
    ends_at: float | None  # on the monotonic clock
    idle_ttl_s: float | None  # None: stay
    tags: tuple[tuple[str, str], ...] = ()  # all of these
    launch: int | None = None  # the batch job in which it runs: what is planned for that comes first …
    launch_only: bool = False  # … and nothing else is taken
    no_mpi: str = "needs --job-mode=mpi"  # the reason to leave jobs of many ranks under `serial_only`

    @property
    def scope(self) -> Scope:
        """Return which jobs it takes, at any cost in nodes and time."""
        return Scope(self.workflow, self.tags, self.launch if self.launch_only else None)

    @property
    def conditions(self) -> dict[str, Any]:
        """Return the same as conditions of `db.query.filters`."""
        where = {} if self.workflow is None else condition_on_text("workflow", self.workflow)
        if self.tags:
            where["tags"] = dict(self.tags)
        if self.launch_only:
            where["queued_launch_id"] = self.launch
        return where


class Obstacles:
    """The reasons why one launcher does not run jobs of a DB, as of the last `survey`."""

    def __init__(
        self, db: Database, pool: NodePool, limits: Limits, pause: Pause, setbacks: Setbacks, clock: Clock, steps: int
    ) -> None:
        self._db, self._pool, self._limits, self._pause, self._setbacks = db, pool, limits, pause, setbacks
        self._steps = steps  # how many jobs it holds at once for these
        ends_at = limits.ends_at
        self._ends_us = None if ends_at is None else clock.now_us() + int((ends_at - clock.monotonic()) * SECOND_US)
        #: Whether the launcher starts nothing together with what it runs.
        self.is_apart = False
        #: The number of jobs of its filter that the launcher would leave, by reason.
        self.left: Counter[str] = Counter()

    def taker(self, minutes_left: float | None = None) -> Taker:
        """Return which jobs the launcher takes now."""
        limits = self._limits
        return Taker(
            "",
            limits.scope,
            self._pool.kinds,
            limits.serial_only,
            limits.no_mpi,
            self._pool.mpi,
            minutes_left,
            limits.launch,
            self._pause.reason,
            self.is_apart,
            self._steps,
        )

    @property
    def state(self) -> tuple[object, ...]:
        """Return the part of `note` that changes; cheap."""
        return self._pause.reason, self.is_apart, self._pool.closed

    def note(self) -> str:
        """Return which jobs the launcher takes, for the note of its lease: other processes tell from it why jobs wait."""
        return self.taker().as_note(self._ends_us)

    def survey(self, only: Filter) -> list[str]:
        """Return a sentence for each reason why this launcher did not take jobs, the one of most jobs first."""
        kinds: dict[str, list[tuple[int, Shape]]] = {}  # by reason, the number and shape of waiting jobs
        self.left = Counter(self._setbacks.reasons.values())
        taker = self.taker(only.minutes_left)
        with self._db.read() as cx:
            has_lists = large_writes.has_lists(cx)
            for shape, jobs, shortest in claims.waiting(cx, only):
                reason = _why_not(taker, shape, shortest)
                reason = _LARGE_WRITE if has_lists and reason == _NO_PLACE else reason
                kinds.setdefault(reason, []).append((jobs, shape))
                self.left[reason] += jobs
            suspects = Counter(
                _why_not(taker, Shape._make(one.entry.shape), one.entry.minutes) for one in claims.suspects_of(cx, only)
            )
            counts = demand.state_counts(cx, self._limits.scope, (states.AWAITING_PARENTS, *states.UNSETTLED_STATES))
            new_jobs = self.count_held_back(cx) - len(self._setbacks.reasons)
            listed = self.count_held_back(cx, by_large_write=True) if has_lists else 0
        reasons = _sentences(kinds)
        for reason, jobs in suspects.items():
            reason = _RUNS_APART if reason in (_NO_PLACE, _APART) else reason
            self.left[reason] += jobs
            reasons.append(f"{jobs} waiting job(s) that ran when launchers died: {reason}")
        reasons += self._setbacks.summary
        if new_jobs > 0:
            self.left[_HELD_BACK] = new_jobs
            reasons.append(f"{new_jobs} new job(s) are held back for some seconds, as dependencies may follow")
        if listed:
            self.left[_LARGE_WRITE] += listed
            reasons.append(f"{listed} job(s) wait for the end of a change of very many jobs")
        if counts[states.AWAITING_PARENTS]:
            reasons.append(f"{counts[states.AWAITING_PARENTS]} job(s) wait for their parents")
        unsettled = sum(counts[state] for state in states.UNSETTLED_STATES)
        if unsettled:
            reasons.append(f"{unsettled} job(s) have run and wait for their postprocess script or stage-out")
        self.left[_PARENTS] = counts[states.AWAITING_PARENTS]
        self.left[_UNSETTLED] = unsettled
        self.left = +self.left
        return reasons

    def count_held_back(self, cx: Connection, by_large_write: bool = False) -> int:
        """Count the jobs that are held back, for a time or by a large write, of those that this launcher takes."""
        limits = self._limits
        launch = limits.launch if limits.launch_only else None
        return held_back.count(cx, limits.workflow, limits.tags, launch, limits.serial_only, by_large_write)


def _sentences(kinds: Mapping[str, list[tuple[int, Shape]]]) -> list[str]:
    """Return a sentence for each reason, with its number of waiting jobs and the shape of most of these."""
    found = []
    for reason, alike in sorted(kinds.items(), key=lambda item: -sum(jobs for jobs, _ in item[1])):
        _, shape = max(alike)
        words = " ".join(f"{name}={value:g}" for name, value in zip(shape._fields, shape))
        others = f" and {len(alike) - 1} other kind(s)" if len(alike) > 1 else ""
        found.append(f"{sum(jobs for jobs, _ in alike)} waiting job(s) like {words}{others}: {reason}")
    if len(found) > _MAX_SENTENCES:
        found[_MAX_SENTENCES:] = [f"and {len(found) - _MAX_SENTENCES} more reasons: `balsam explain` tells them"]
    return found


def _why_not(taker: Taker, shape: Shape, shortest: int) -> str:
    """Return why a launcher does not start jobs of that shape, the shortest of which has that estimate."""
    obstacles = [*taker.size_obstacles(shape), *taker.time_obstacles(shortest)]
    if obstacles:
        return make(obstacles[0].code, **{"more": " or more", **obstacles[0].values}).text
    return taker.trouble or (_APART if taker.apart else _NO_PLACE)


# --- counts -----------------------------------------------------------------------------------------------------------


class Tally:
    """Counts of jobs by the final state reached here, and of attempts that ended here, possibly several for one job."""

    def __init__(self) -> None:
        self.jobs: Counter[str] = Counter()  # by final state
        self.attempts: Counter[str] = Counter()  # by result: RUN_DONE, RUN_ERROR, RUN_TIMEOUT

    def add(self, jobs: Mapping[str, int], attempts: Mapping[str, int]) -> None:
        """Count what one transaction has recorded."""
        self.jobs.update(jobs)
        self.attempts.update(attempts)

    @property
    def is_used(self) -> bool:
        """Return whether anything was counted."""
        return any(self.jobs.values()) or any(self.attempts.values())

    def __str__(self) -> str:
        """Return the counts in words: `993 JOB_FINISHED, 7 FAILED; 1081 attempts: 993 done, 81 failed, 7 timed out`."""
        jobs = _listed((self.jobs[state], state) for state in states.END_STATES) or "no job ended"
        names = {states.RUN_DONE: "done", states.RUN_ERROR: "failed", states.RUN_TIMEOUT: "timed out"}
        results = _listed((self.attempts[result], name) for result, name in names.items())
        total = sum(self.attempts.values())
        return f"{jobs}; {total} attempt{'s' * (total != 1)}{results and f': {results}'}"


def _listed(counts: Iterable[tuple[int, str]]) -> str:
    return ", ".join(f"{number} {name}" for number, name in counts if number)


# --- progress ---------------------------------------------------------------------------------------------------------


class RecentRate:
    """A rate per second, over the last minute.

    Args:
        now: when the count was `count`, on the monotonic clock.
    """

    _WINDOW_S = 60.0

    def __init__(self, now: float, count: int = 0) -> None:
        self._counts = deque([(now, count)])  # the first is the newest one that is a minute old, if there is one

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


class Reporter(Protocol):
    """The properties of a launcher that its progress shows."""

    awaited: str
    explained: list[str]

    @property
    def trouble(self) -> str:
        """Return why nothing can start; "" if it can."""


class Progress:
    """What a launcher tells while it runs: one live line on a terminal, and the same in the log at growing intervals."""

    _PERIOD_S, _TOLD_PERIOD_S = 0.5, 60.0
    #: The first and the longest interval of log lines, in seconds. Each is twice the one before; another wait begins anew.
    _FIRST_LOG_S, _MAX_LOG_S = 30.0, 1800.0
    #: Counting the jobs of a filter by tags reads them: keep its share of the time below 1/N.
    _SPACING = 50

    def __init__(self, db: Database, limits: Limits) -> None:
        self._db, self._where = db, limits.conditions
        now = time.monotonic()
        self._show_at, self._log_s = now + self._PERIOD_S, self._FIRST_LOG_S
        self._log_at = now + self._log_s
        self._rate: RecentRate | None = None
        self._on = sys.stderr.isatty()
        self._launcher: Reporter | None = None
        self._told, self._told_at = [""], 0.0
        self._awaited = ""
        self._runner: Sized | None = None

    def watch(self, launcher: Reporter, runner: Sized) -> None:
        """Show this launcher and the jobs of this runner."""
        self._launcher, self._runner = launcher, runner

    def around(self, wait: Callable[[float], object]) -> Callable[[float], object]:
        """Return `wait` preceded by what is to be told."""

        def tell_and_wait(seconds: float) -> None:
            now = time.monotonic()
            if self._on and now >= self._show_at:
                self._show(now)
            if now >= self._log_at:
                self._log(now)
            wait(seconds)

        return tell_and_wait

    def _show(self, now: float) -> None:
        self._tell(now)
        line = self.line(now)
        self._show_at = now + max(self._PERIOD_S, self._SPACING * (time.monotonic() - now))
        if line:
            width = _width()
            self._on = daemon.write_stderr(f"\r{line[:width]:<{width}}")  # False: never again to a terminal that is closed

    def _log(self, now: float) -> None:
        assert self._launcher is not None
        if self._launcher.awaited != self._awaited:
            self._awaited, self._log_s = self._launcher.awaited, self._FIRST_LOG_S
        line = self.line(now)
        if line:
            log.info("Progress: %s", line)
        self._log_s = min(2 * self._log_s, self._MAX_LOG_S)
        self._log_at = now + self._log_s

    def line(self, now: float) -> str:
        """Return how far the jobs of the launcher's filter are, also those that others run; "" while the DB cannot be read.

        Args:
            now: on the monotonic clock.
        """
        assert self._launcher is not None and self._runner is not None
        try:
            with self._db.read() as cx:
                counts = select.count_states(cx, self._where)
        except BalsamError:
            return ""
        ended = sum(counts.get(state, 0) for state in states.END_STATES)
        total = sum(counts.values())
        self._rate = self._rate or RecentRate(now, ended)
        self._rate.note(now, ended)
        rate = max(self._rate.per_s, 0.0)  # jobs may have been put back or removed
        percent = f" ({100 * ended // total} %)" if total else ""
        words = [f"{ended} of {total} ended{percent}"]
        words += [f"{counts[state]} {name}" for state, name in _SHOWN_ENDS if counts.get(state)]
        words.append(f"{len(self._runner)} running")
        if self._launcher.awaited:
            return f"{', '.join(words)}; waits for {self._launcher.awaited}"
        words.append(f"{rate:.1f} jobs/s")
        words += [f"about {spoken(max((total - ended) / rate, 1))} left"] if rate and total > ended else []
        return ", ".join(words)

    def _tell(self, now: float) -> None:
        """Write above the line why nothing can start: again when that changes, and trouble once a minute."""
        assert self._launcher is not None
        trouble = self._launcher.trouble
        reasons = [trouble] if trouble else [f"Nothing to start: {reason}" for reason in self._launcher.explained]
        if reasons and (reasons != self._told or (trouble and now - self._told_at >= self._TOLD_PERIOD_S)):
            self.clear()
            self._on = daemon.write_stderr("".join(f"{reason}\n" for reason in reasons[:_MAX_TOLD]))
            self._told, self._told_at = reasons, now

    def clear(self) -> None:
        """Erase the line."""
        if self._on:
            daemon.write_stderr(f"\r{'':{_width()}}\r")  # not every terminal knows escape sequences


def _width() -> int:
    try:
        columns = os.get_terminal_size(2).columns
    except OSError:  # it is closed
        columns = 0
    return max((columns or 80) - 1, 1)
