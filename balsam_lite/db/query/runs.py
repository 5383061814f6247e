"""Read the record of runs: one row for each attempt of a job (see `store.runs`).

The last run of a job has no column in the table `job`; expressions here find it by its primary key.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core import states
from ...core.clock import SECOND_US
from ..engine.schema import sql_list

if TYPE_CHECKING:
    from datetime import datetime

#: Causes of an end that was not seen: `ended` is when the job was freed, so that the run time is not known.
UNSEEN_CAUSES = ("launcher died", "node lost", "unknown")


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
    ended_us: int | None  # if the end was not seen, when the job was freed
    return_code: int | None  # negative: the signal that ended it
    user_us: int | None  # CPU time of the program and of the processes for which it waited
    system_us: int | None
    max_memory: int | None  # bytes of its largest process at its peak
    cause: str  # why it ended; "": by itself

    @property
    def runtime_us(self) -> int | None:
        """Return how long it ran; None if that is unknown, or it still runs."""
        if self.started_us is None or self.ended_us is None or self.cause in UNSEEN_CAUSES:
            return None
        return self.ended_us - self.started_us

    def as_row(self) -> dict[str, Any]:
        """Return the run as sites and listings show it: durations in seconds, times in microseconds."""
        seconds = {"runtime_s": self.runtime_us, "user_cpu_s": self.user_us, "system_cpu_s": self.system_us}
        return {
            "attempt": self.attempt, "node": self.nodes, "gpus": self.gpus, "cpus": self.cpus, "started": self.started_us,
            "ended": self.ended_us, "return_code": self.return_code, "max_memory_bytes": self.max_memory, "cause": self.cause,
            "launcher": self.lease, **{name: None if us is None else us / SECOND_US for name, us in seconds.items()},
        }  # fmt: skip


class Attempt(NamedTuple):
    """An attempt of a job, as Python shows it. None: unknown, or not over; times are UTC."""

    attempt: int
    node: str  # names as a compressed list; a share of a host is HOST/2
    gpus: str
    cpus: str  # to which it was pinned
    started: datetime | None
    ended: datetime | None
    return_code: int | None  # negative: the signal that ended it
    max_memory_bytes: int | None  # of its largest process
    cause: str  # why it ended; "": by itself
    launcher: int | None
    runtime_s: float | None
    user_cpu_s: float | None
    system_cpu_s: float | None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Attempt:
        """Return the attempt that `Run.as_row` describes."""
        from datetime import datetime, timezone

        def moment(us: int | None) -> datetime | None:
            return None if us is None else datetime.fromtimestamp(us / SECOND_US, timezone.utc)

        return cls(**{**row, "started": moment(row["started"]), "ended": moment(row["ended"])})


class WithAttempts:
    """The record of its runs, for a job in Python."""

    __slots__ = ()

    def _run_rows(self) -> list[dict[str, Any]]:
        """Return the job's runs as `Run.as_row` shows them."""
        raise NotImplementedError

    @property
    def attempts(self) -> list[Attempt]:
        """Return its attempts, oldest first: when and where each ran, how it ended and what it used. Read anew each time.

        An attempt that never started is none.
        """
        return list(map(Attempt.of_row, self._run_rows()))

    @property
    def runtime(self) -> float | None:
        """Return for how many seconds its last attempt ran; None if that is unknown, or is not over. Read anew each time."""
        found = self.attempts
        return found[-1].runtime_s if found else None


_COLUMNS = (
    "run.job, run.attempt, run.lease, run.nodes, run.gpus, run.cpus, run.started, run.ended, run.return_code, "
    "run.user_us, run.system_us, run.max_memory, run.cause"
)


def runs_of(cx: sqlite3.Connection, job: int) -> list[Run]:
    """Return the runs of a job, oldest first. Claims whose program never started are none."""
    return list(map(Run._make, cx.execute(f"SELECT {_COLUMNS} FROM run WHERE job = ? ORDER BY attempt", (job,))))


def runs_of_each(cx: sqlite3.Connection, jobs: Iterable[int]) -> dict[int, list[Run]]:
    """Return the runs of these jobs by job, oldest first."""
    found: dict[int, list[Run]] = {}
    sql = f"""SELECT {_COLUMNS} FROM json_each(?) AS one CROSS JOIN run ON run.job = one.value ORDER BY run.job, run.attempt"""
    for row in cx.execute(sql, (json.dumps(list(jobs)),)):
        found.setdefault(row[0], []).append(Run._make(row))
    return found


def launcher_records(cx: sqlite3.Connection, numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Return these launchers: number, host, scheduler's id of the batch job ("": none), when the lease was opened and closed,

    why it ended, and the record of the environment (see `launcher.environment`).
    """
    names = ("launcher", "host", "scheduler_id", "opened", "closed", "end_reason")
    sql = """SELECT id, host, scheduler_id, opened, closed, end_reason, environment FROM lease
        WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"""
    unknown = {"modules": [], "versions": {}, "environment_hash": "", "environment_difference": {}}
    return [
        {**dict(zip(names, row)), **unknown, **json.loads(row[-1] or "{}")}
        for row in cx.execute(sql, (json.dumps(list(numbers)),))
    ]


# --- expressions of SQL -----------------------------------------------------------------------------------------------


def _of_last_run(expression: str) -> str:
    """Return this expression of the columns of `run` for the present attempt of the row of `job`; NULL if there is no run."""
    return f"(SELECT {expression} FROM run WHERE run.job = job.id AND run.attempt = job.attempt)"


LEASE = _of_last_run("run.lease")
#: How long the row of `run` ran, in seconds; NULL if that is unknown.
RUNTIME_S = f"CASE WHEN run.cause NOT IN ({sql_list(UNSEEN_CAUSES)}) THEN (run.ended - run.started) / {SECOND_US}.0 END"
#: Name -> (expression of SQL, kind as in `fields.Column`) of what is known of a job's last run.
OF_JOB = {
    "started": (_of_last_run("run.started"), "time"),
    "ended": (_of_last_run("run.ended"), "time"),
    "runtime_s": (_of_last_run(RUNTIME_S), "amount"),
    "node": (f"ifnull({_of_last_run('run.nodes')}, '')", "text"),
    "max_memory_bytes": (_of_last_run("run.max_memory"), "count0"),
}
#: Short names of these.
SHORT_NAMES = {"runtime": "runtime_s", "max_memory": "max_memory_bytes"}
#: All runs of the row of `job`, as a JSON list of lists; `attempts` reads it.
ATTEMPTS = (
    f"(SELECT json_group_array(json_array({_COLUMNS})) FROM (SELECT * FROM run WHERE job = job.id ORDER BY attempt) AS run)"
)


def attempts(text: str) -> list[dict[str, Any]]:
    """Return the rows of `ATTEMPTS`, each as `Run.as_row` shows it."""
    return [Run._make(values).as_row() for values in json.loads(text)]


def _of_ended_run(expression: str) -> str:
    return f"(SELECT {expression} FROM run WHERE run.job = event.job AND run.ended = event.time)"


#: When the program of a run was started that the row of `event` ends; 0 if it never was: the job was given back, and there is
#: no such run. NULL if it is unknown.
BEGAN = f"""CASE WHEN event.from_state = '{states.RUNNING}' THEN
    {_of_ended_run("CASE WHEN count(*) THEN max(run.started) WHEN event.to_state IN (" + _GIVEN_BACK + ") THEN 0 END")} END"""
#: The return code of the run that the row of `event` ends.
RETURN_CODE = f"""CASE WHEN event.from_state = '{states.RUNNING}' THEN {_of_ended_run("max(run.return_code)")} END"""
