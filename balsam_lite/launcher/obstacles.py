"""Why a launcher does not run the jobs that wait: for its last lines, its log and the note of its lease."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from ..core import states
from ..db.engine.connection import Connection, Database
from ..db.query import outlook
from ..db.query.outlook import Scope
from ..db.store import claims, held_back, pieces
from ..db.store.claims import Filter, Shape
from .exec.trouble import Pause, Setbacks
from .placement import NodePool

_NO_PLACE = "waits for a free place"
_LARGE_WRITE = "waits for the end of a change of very many jobs"
_RUNS_APART = "runs apart from other jobs, as its launchers died while it ran"


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
        """Which jobs it takes, whatever they cost."""
        return Scope(self.workflow, self.tags, self.launch if self.launch_only else None)


class Obstacles:
    """What keeps the jobs of a DB from being run by one launcher, as of the last `survey`."""

    def __init__(self, db: Database, pool: NodePool, limits: Limits, pause: Pause, setbacks: Setbacks) -> None:
        self._db, self._pool, self._limits, self._pause, self._setbacks = db, pool, limits, pause, setbacks
        #: The shapes of waiting jobs that the launcher will not take, and why.
        self.by_shape: list[tuple[Shape, str]] = []
        #: Why the launcher starts nothing beside what it runs; "" if it does.
        self.apart = ""
        #: The number of jobs of its filter that the launcher would leave, by reason.
        self.left: Counter[str] = Counter()

    def survey(self, only: Filter) -> list[str]:
        """Return a sentence for each kind of waiting job that this launcher did not take, with the reason."""
        reasons = []
        self.by_shape, self.left = [], Counter(self._setbacks.reasons.values())
        with self._db.read() as cx:
            has_lists = pieces.has_lists(cx)
            for shape, jobs, shortest in claims.waiting(cx, only):
                reason = self._why_not(shape, shortest, only)
                reason = _LARGE_WRITE if has_lists and reason == _NO_PLACE else reason
                passing = (_NO_PLACE, _LARGE_WRITE, self._pause.reason, self.apart)
                self.by_shape += [(shape, reason)] * (reason not in passing)
                reasons.append(f"{jobs} waiting job(s) like {_described(shape)}: {reason}")
                self.left[reason] += jobs
            suspects = Counter(
                self._why_not(Shape._make(one.entry.shape), one.entry.minutes, only) for one in claims.suspects_of(cx, only)
            )
            counts = outlook.state_counts(cx, self._limits.scope, (states.AWAITING_PARENTS, *states.UNSETTLED_STATES))
            new_jobs = self.count_held_back(cx) - len(self._setbacks.reasons)
            listed = self.count_held_back(cx, by_large_write=True) if has_lists else 0
        for reason, jobs in suspects.items():
            reason = _RUNS_APART if reason in (_NO_PLACE, self.apart) else reason
            self.left[reason] += jobs
            reasons.append(f"{jobs} waiting job(s) that ran when launchers died: {reason}")
        reasons += self._setbacks.summary
        if new_jobs > 0:
            self.left["is held back for some seconds, as dependencies may follow"] = new_jobs
            reasons.append(f"{new_jobs} new job(s) are held back for some seconds, as dependencies may follow")
        if listed:
            self.left[_LARGE_WRITE] += listed
            reasons.append(f"{listed} job(s) wait for the end of a change of very many jobs")
        if counts[states.AWAITING_PARENTS]:
            reasons.append(f"{counts[states.AWAITING_PARENTS]} job(s) wait for their parents")
        unsettled = sum(counts[state] for state in states.UNSETTLED_STATES)
        if unsettled:
            reasons.append(f"{unsettled} job(s) have run and wait for their postprocess script or stage-out")
        self.left["waits for its parents"] = counts[states.AWAITING_PARENTS]
        self.left["waits for its postprocess script or stage-out"] = unsettled
        self.left = +self.left
        return reasons

    def count_held_back(self, cx: Connection, by_large_write: bool = False) -> int:
        """Count the jobs that are held back, for a time or by a large write, of those that this launcher takes."""
        limits = self._limits
        launch = limits.launch if limits.launch_only else None
        return held_back.count(cx, limits.workflow, limits.tags, launch, limits.serial_only, by_large_write)

    def _why_not(self, shape: Shape, shortest: int, only: Filter) -> str:
        never = self._pool.never_fits(shape)
        if only.serial_only and not shape.is_serial:
            return self._limits.no_mpi
        if never:
            return never
        if only.minutes_left is not None and only.minutes_left <= 0 and shortest <= claims.SHORT:
            return "the launcher's time is up"
        if only.minutes_left is not None and shortest > only.minutes_left:
            return f"wall_time_minutes is {shortest} or more, {max(only.minutes_left, 0):.1f} minutes are left"
        return self._pause.reason or self.apart or _NO_PLACE


def _described(shape: Shape) -> str:
    return " ".join(f"{name}={value:g}" for name, value in zip(shape._fields, shape))
