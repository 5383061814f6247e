"""A runner that holds back the ends of runs for a moment, as the batch job may be ending, too.

A scheduler that ends a batch job sends SIGTERM to all its processes at once, the users' programs as well as the launcher.
Slurm does so (scancel(1); tried with version 22.05, where the signal reached the jobs first), and on many nodes it takes a
moment to reach them all. A job that the signal kills must not count as failed: it has run out of time. Nor may a job count as
done: Slurm signals children before their parents, and a script whose program was ended goes on and exits with 0 (tried, too).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..core import states
from ..core.clock import SECOND_US, Clock
from .run_results import Finished
from .runner import Runner

#: The launcher's own SIGTERM may arrive this many seconds later than that of its jobs: on one node; on many.
_GRACE_S, _GRACE_ON_MANY_NODES_S = 0.5, 2.0
#: Hold back a successful exit for 4 % of the run time (at least 20 ms, else not at all), so that its children wait little.
_GRACE_PART, _MIN_GRACE_S = 0.04, 0.02


def exit_grace_s(nodes: int) -> float:
    """Return for how many seconds to hold back a failure in a batch job with that number of nodes."""
    return _GRACE_S if nodes == 1 else _GRACE_ON_MANY_NODES_S


def hold_back_s(has_failed: bool, ran_s: float, exit_grace_s: float) -> float:
    """Return for how many seconds to hold back the end of a program that ran for `ran_s`."""
    if has_failed:
        return exit_grace_s
    seconds = min(exit_grace_s, _GRACE_PART * ran_s)
    return seconds if seconds >= _MIN_GRACE_S else 0.0


class ExitGraceRunner:
    """See `Runner`. A failed run keeps its place for `exit_grace_s` seconds; a broken node breaks no more jobs in that time. A
    successful exit is held back for a small part of the time that it ran, and its place is free at once.

    If the launcher stops within that time, the run may have ended for the same reason, and is a RUN_TIMEOUT.
    """

    def __init__(self, runner: Runner, clock: Clock, exit_grace_s: float) -> None:
        self._runner, self._clock, self._exit_grace_s = runner, clock, exit_grace_s
        self._pending: list[tuple[Finished, float]] = []  # held back, and when to report them, on the monotonic clock
        self._settled: list[Finished] = []
        self._asked: dict[int, tuple[str, int]] = {}  # jobs that are to be stopped, what they count as, and since when

    def __getattr__(self, name: str) -> Any:
        """Return what is the runner's own: how jobs are queued and started, and how many were."""
        return getattr(self._runner, name)

    @property
    def jobs(self) -> set[int]:
        """Return the jobs that run and are not being stopped, and those whose ends are held back."""
        return self._runner.jobs | {finished.exit.job for finished, _ in self._pending}

    def __len__(self) -> int:
        return len(self._runner) + len(self._pending) + len(self._settled)

    @property
    def is_busy(self) -> bool:
        """Return whether `poll` should be called again soon."""
        return bool(self._runner.is_busy or self._pending or self._settled)

    def poll(self) -> list[Finished]:
        """Return the ended runs, but not those held back; for successful held-back runs report only their free placement."""
        ends, self._settled = self._settled, []
        now = self._clock.monotonic()
        ends += [finished for finished, until in self._pending if now >= until]
        self._pending = [pending for pending in self._pending if now < pending[1]]
        for finished in self._runner.poll():
            if finished.is_doubted:  # the place alone, of a job that may run elsewhere by now
                ends.append(finished)
                continue
            asked = self._asked.pop(finished.exit.job, None)
            if asked:
                # A run that was not told to stop had ended before, on whichever node it ran.
                is_pending = finished.exit.told_us is None and self._hold_back_s(finished) > 0
                ends.append(_settled(finished, *asked) if is_pending else finished)
            elif hold_back_s := self._hold_back_s(finished):
                if not _failed(finished):
                    ends.append(finished._replace(is_doubted=True))
                    finished = finished._replace(place=None, is_repeated=True)
                self._pending.append((finished, now + hold_back_s))
            else:
                ends.append(finished)
        return ends

    def _hold_back_s(self, finished: Finished) -> float:
        ended = finished.exit
        if ended.result not in (states.RUN_DONE, states.RUN_ERROR) or ended.started_us is None:
            return 0.0
        return hold_back_s(_failed(finished), (ended.ended_us - ended.started_us) / SECOND_US, self._exit_grace_s)

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End those jobs; report those that have ended a moment ago as `result`, too."""
        kept, now_us = [], self._clock.now_us()
        for pending in self._pending:
            if pending[0].exit.job in jobs:
                self._settled.append(_settled(pending[0], result, now_us))
            else:
                kept.append(pending)
        self._pending = kept
        self._asked.update(dict.fromkeys(self._runner.jobs & set(jobs), (result, now_us)))
        self._runner.stop(jobs, result, grace_s)


def _failed(finished: Finished) -> bool:
    """Return whether the run had started and failed."""
    return finished.exit.result == states.RUN_ERROR and finished.exit.started_us is not None


def _settled(finished: Finished, result: str, asked_us: int) -> Finished:
    """Return the end of a held-back run, with a stop requested at `asked_us`, as if the run had been told to stop."""
    ended = finished.exit
    if result == states.RUN_TIMEOUT:
        how = ended.message or "exit code 0, which may be a script's that was interrupted"
        result = result if ended.return_code else ended.result
        ended = ended._replace(result=result, message=f"Ended just before the launcher: {how}", told_us=asked_us)
    return finished._replace(exit=ended)
