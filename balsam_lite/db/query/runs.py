"""Read the record of runs: one row for each attempt of a job (see `store.runs`).

The last run of a job has no column in the table `job`; the expressions here find it by a seek.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from ...core import states
from ..engine.schema import sql_list

#: Causes of an end that nobody saw: `ended` is when the job was freed, so that the run time is not known.
_UNSEEN = ("launcher died", "node lost", "unknown")


#: States to which a claim goes back whose program has not started.
_GIVEN_BACK = sql_list((*states.UNPREPARED_STATES, *states.RUNNABLE_STATES))


class Run(NamedTuple):
    """An attempt of a job. None: unknown, or not over; times are microseconds UTC."""

    job: int
    attempt: int
    lease: int | None  # of the launcher
    nodes: str  # names as a compressed list; a share of a host is HOST/2
    gpus: str  # names on each node: `0,1`; `0,1;2,3` where the nodes differ
    cpus: str  # to which it was pinned: `0-3,8`; "" if it was not
    started_us: int | None
    ended_us: int | None  # where nobody saw the end, when the job was freed
    return_code: int | None  # negative: the signal that ended it
    user_us: int | None  # CPU time of the program and of the processes for which it waited
    system_us: int | None
    max_memory: int | None  # bytes of its largest process at its peak
    cause: str  # why it ended; "": by itself

    @property
    def runtime_us(self) -> int | None:
        """Return how long it ran; None if that is unknown, or it still runs."""
        if self.started_us is None or self.ended_us is None or self.cause in _UNSEEN:
            return None
        return self.ended_us - self.started_us


_COLUMNS = (
    "run.job, run.attempt, run.lease, run.nodes, run.gpus, run.cpus, run.started, run.ended, run.return_code, "
    "run.user_us, run.system_us, run.max_memory, run.cause"
)


def runs_of(cx: sqlite3.Connection, job: int) -> list[Run]:
    """Return the runs of a job, oldest first. Claims whose program never started are none."""
    return list(map(Run._make, cx.execute(f"SELECT {_COLUMNS} FROM run WHERE job = ? ORDER BY attempt", (job,))))


# --- expressions of SQL -----------------------------------------------------------------------------------------------


def of_last_run(expression: str) -> str:
    """Return this expression of the columns of `run` for the last run of the row of `job`; NULL if it has never run."""
    return f"(SELECT {expression} FROM run WHERE run.job = job.id ORDER BY run.attempt DESC LIMIT 1)"


def _of_ended_run(expression: str) -> str:
    return f"(SELECT {expression} FROM run WHERE run.job = event.job AND run.ended = event.time)"


#: When the program of a run was started that the row of `event` ends; 0 if it never was: the job was given back, and there is
#: no such run. NULL if it is unknown.
BEGAN = f"""CASE WHEN event.from_state = '{states.RUNNING}' THEN
    {_of_ended_run("CASE WHEN count(*) THEN max(run.started) WHEN event.to_state IN (" + _GIVEN_BACK + ") THEN 0 END")} END"""
#: The return code of the run that the row of `event` ends.
RETURN_CODE = f"""CASE WHEN event.from_state = '{states.RUNNING}' THEN {_of_ended_run("max(run.return_code)")} END"""
