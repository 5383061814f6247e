"""A runner that waits a moment before it believes a failure: the batch job may be ending.

A scheduler that ends a batch job sends SIGTERM to everything in it at once, the users' programs as well as the launcher.
Slurm does (scancel(1); tried with version 22.05, where the signal reached the jobs first), and on many nodes it takes a
moment to reach them all. A job that dies of it must not count as failed: it has run out of time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from .. import states
from ..clock import Clock
from ..db.store.claims import Claim
from .nodes import Place
from .runner import Finished, Runner

#: So long may the launcher's own SIGTERM come after its jobs', in seconds: on one node; and where each is told on its own.
_PATIENCE_S, _PATIENCE_ON_MANY_NODES_S = 0.5, 2.0


def patience_s(nodes: int) -> float:
    """How long to doubt a failure in a batch job of so many nodes, in seconds."""
    return _PATIENCE_S if nodes == 1 else _PATIENCE_ON_MANY_NODES_S


class _Failure(NamedTuple):
    """A run that failed, and when to believe it, on the monotonic clock."""

    finished: Finished
    until: float


class PatientRunner:
    """See `Runner`. What ends well is reported at once; what fails keeps its place for `patience_s` seconds, in which
    on a node that breaks everything no more jobs are broken.

    If the launcher stops within that time, the run has ended because of the same reason, and is a RUN_TIMEOUT.
    """

    def __init__(self, runner: Runner, clock: Clock, patience_s: float) -> None:
        self._runner, self._clock, self._patience_s = runner, clock, patience_s
        self._failures: deque[_Failure] = deque()  # oldest first
        self._settled: list[Finished] = []
        self._asked: dict[int, str] = {}  # jobs whose end was asked for, and what it counts as

    @property
    def jobs(self) -> set[int]:
        """The jobs that hold a place and are not being stopped, those in doubt among them."""
        return self._runner.jobs | {failure.finished.exit.job for failure in self._failures}

    def __len__(self) -> int:
        return len(self._runner) + len(self._failures) + len(self._settled)

    @property
    def is_busy(self) -> bool:
        """Whether `poll` should be called again soon."""
        return bool(self._runner.is_busy or self._failures or self._settled)

    def start(self, claim: Claim, place: Place) -> None:
        """Start a job at its place."""
        self._runner.start(claim, place)

    def poll(self) -> list[Finished]:
        """The runs that ended, but those that failed just now."""
        ends, self._settled = self._settled, []
        now = self._clock.monotonic()
        while self._failures and now >= self._failures[0].until:
            ends.append(self._failures.popleft().finished)
        for finished in self._runner.poll():
            asked = self._asked.pop(finished.exit.job, "")
            if asked:  # on another node it may have ended before it was asked to
                ends.append(_settled(finished, asked))
            elif _failed(finished):
                self._failures.append(_Failure(finished, now + self._patience_s))
            else:
                ends.append(finished)
        return ends

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End those jobs; what has failed a moment ago is reported as `result`, too."""
        kept: deque[_Failure] = deque()
        for failure in self._failures:
            if failure.finished.exit.job in jobs:
                self._settled.append(_settled(failure.finished, result))
            else:
                kept.append(failure)
        self._failures = kept
        self._asked.update(dict.fromkeys(self._runner.jobs & set(jobs), result))
        self._runner.stop(jobs, result, grace_s)

    def kill_now(self) -> None:
        """Let the grace of all that are being stopped be over."""
        self._runner.kill_now()


def _failed(finished: Finished) -> bool:
    """Whether it ran, and ended badly."""
    return finished.exit.result == states.RUN_ERROR and finished.exit.started_us is not None


def _settled(finished: Finished, result: str) -> Finished:
    """The end of a run that was asked for, with that result if it ended badly."""
    ended = finished.exit
    if _failed(finished) and result == states.RUN_TIMEOUT:
        ended = ended._replace(result=result, message=f"Ended just before the launcher: {ended.message}")
    return finished._replace(exit=ended)
