"""What a launcher can take in its next transaction: the places that are free, and those that will be soon."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ..db.store.claims import RunResult, Shape
from .placement import NodePool, Placement

#: Maximum number of jobs to claim ahead; a crash of the launcher sends these through RESTART_READY for nothing.
MAX_AHEAD = 256
#: Maximum number of ends and of claims in one transaction, so that other writers wait for a fraction of a second, and the first
#: of many thousand places is filled before the last one is asked for.
MAX_AT_ONCE = 1024

#: Stands for the place of a claimed job that waits for one.
AHEAD = object()


class TickCapacity:
    """The capacity of one tick: the free places, and claims ahead of places that will be free soon."""

    def __init__(self, pool: NodePool, ahead_of: Callable[[Shape], int], preparations: int, starts: int = MAX_AT_ONCE) -> None:
        self._pool, self._ahead_of, self.preparations, self.starts = pool, ahead_of, preparations, starts
        self._ahead: dict[Shape, int] = {}
        self._reserved: list[Placement] = []
        self._left = starts
        self.keeps_nodes = False  # for a job that found no place

    @property
    def is_used_up(self) -> bool:
        """Return whether nothing is left in this tick; there may be more to claim in the next one."""
        return self._left <= 0

    def fits(self, shape: Shape) -> bool:
        return not self._pool.never_fits(shape)

    def count(self, shape: Shape) -> int:
        if shape not in self._ahead:
            self._ahead[shape] = max(0, self._ahead_of(shape))
        return min(self._pool.count(shape) + self._ahead[shape], self._left)

    def reserve(self, shape: Shape) -> object:
        if self.is_used_up:
            return None
        place = self._pool.reserve(shape)
        if place is not None:
            self._reserved.append(place)
            self._left -= 1
            return place
        if self._ahead.get(shape, 0) > 0 and not self._pool.is_reserving:
            self._ahead[shape] -= 1
            self._left -= 1
            return AHEAD
        if not self.keeps_nodes:
            self.keeps_nodes = True
            self._pool.reserve_for(shape)
        return None

    def undo(self) -> None:
        """Release the reserved places: the transaction failed, and nothing was claimed."""
        for place in self._reserved:
            self._pool.release(place)


class EndRate:
    """The rate at which runs end, from the recent ones; short tasks are claimed ahead by it, long ones never.

    By the monotonic clock: the host's clock may be set while jobs run.
    """

    _MEMORY_S = 2.0
    _SILENCE_S = 1.0  # without an end for this long, the runs may be long ones

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._began = monotonic()
        self._ends: deque[tuple[float, float, Shape]] = deque(maxlen=2048)  # end, seconds that it ran, and what it was

    def add(self, ended: RunResult, shape: Shape) -> None:
        """Count a run whose end was just heard of."""
        now = self._monotonic()
        ran_s = 0.0 if ended.started_us is None else (ended.ended_us - ended.started_us) / 1e6
        self._ends.append((now, min(max(ran_s, 0.0), now - self._began), shape))

    def expected(self, seconds: float, shape: Shape | None = None) -> int:
        """Return how many runs, of that shape or of all, will probably end within `seconds`."""
        now = self._monotonic()
        while self._ends and now - self._ends[0][0] > self._MEMORY_S:
            self._ends.popleft()
        ends = self._ends if shape is None else [end for end in self._ends if end[2] == shape]
        if len(ends) < 2 or now - ends[-1][0] > self._SILENCE_S:
            return 0
        ended, ran_s, _ = ends[0]
        # Runs that began together end together; their rate is their number per run time.
        span_s = max(ends[-1][0] - ended, ran_s, 0.01)
        return min(int(len(ends) / span_s * seconds), MAX_AHEAD)
