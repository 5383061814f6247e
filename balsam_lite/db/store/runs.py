"""Write the record of runs: one row for each attempt of a job. `db.query.runs` reads it.

A row is inserted in the transaction that makes the job RUNNING, and completed in the one that ends the run. Its `ended` is the
time of the event that leaves RUNNING, which links the two. A claim whose program has certainly never started leaves no row.
All functions run inside the caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from ...core import states
from . import exit_rules
from .transitions import id_list

#: Why a run ended, if not by itself: its launcher was told to stop, or its time was up; the user killed it; the kernel did,
#: for lack of memory; its node, or its launcher, was gone; the end is not known, as in a copy of the DB.
TOLD_TO_STOP, TIME_LIMIT, KILLED, OUT_OF_MEMORY = "told to stop", "limit", "killed", "out of memory"
NODE_LOST, LAUNCHER_DIED, UNKNOWN = "node lost", "launcher died", "unknown"

#: (job, attempt, nodes, GPUs) of a run that begins; its placement may not be known yet.
Beginning = tuple[int, int, str, str]
#: Returns the nodes and the GPUs of a placement in words, from the numbers of its nodes in the launcher and the GPUs on each.
Describe = Callable[[tuple[int, ...], tuple[tuple[str, ...], ...]], tuple[str, str]]


class RunResult(NamedTuple):
    """How a run ended."""

    job: int
    attempt: int
    result: str  # RUN_DONE, RUN_ERROR or RUN_TIMEOUT; RESTART_READY: unknown, its node is lost
    return_code: int | None
    message: str
    started_us: int | None  # None: it never started, or that is unknown
    ended_us: int
    told_us: int | None = None  # when it was told to stop, before it ended, because its launcher stops
    start_after: int | None = None  # of RESTART_READY, in microseconds: it is held back until then
    is_counted: bool = True  # as a restart, if it had started: not where its node died
    is_death: bool = False  # the launcher or the spawn helper that ran it died
    #: Of RESTART_READY: it has certainly not started, and goes back to this state, in which it was claimed, and attempt number.
    former: str = ""
    may_have_started: bool = False  # it is unknown whether it started
    cause: str = ""  # why it ended, if not by itself: see `runs`
    nodes: tuple[int, ...] = ()  # on which it ran, by their numbers in the launcher; (): as known at the claim
    gpus: tuple[tuple[str, ...], ...] = ()  # on each of these
    cpus: str = ""  # to which it was pinned, such as `0-3,8`
    user_us: int | None = None  # CPU time of its processes, as far as they were waited for; None: unknown
    system_us: int | None = None
    max_memory: int | None = None  # bytes at the peak of the largest process; None: unknown
    outcome: bytes | str | None = None  # of a call: see `calls.Result`; b"": it has none. None: this is no call

    @property
    def has_started(self) -> bool:
        """Return whether its program has started, or may have."""
        return self.started_us is not None or self.may_have_started


class ProgramStart(NamedTuple):
    """When and where a program started that still runs."""

    job: int
    attempt: int
    started_us: int | None  # None: not known here
    nodes: tuple[int, ...]
    gpus: tuple[tuple[str, ...], ...]
    cpus: str


def lost_run(
    facts: exit_rules.JobFacts, message: str, now_us: int, cause: str, is_counted: bool = True, is_death: bool = False
) -> RunResult:
    """Return the end of a run whose launcher is gone. It may have started; `is_counted`: this counts as a restart."""
    return RunResult(
        facts.job, facts.attempt, states.RESTART_READY, None, message, None, now_us,
        is_counted=is_counted, is_death=is_death, may_have_started=True, cause=cause,
    )  # fmt: skip


def as_known(nodes: tuple[int, ...], gpus: tuple[tuple[str, ...], ...]) -> tuple[str, str]:
    """Describe the placement as it was when the job was claimed, where no launcher can be asked."""
    return "", ""


def begin(cx: sqlite3.Connection, lease: int, runs: Iterable[Beginning]) -> None:
    """Insert the rows of runs that begin."""
    cx.executemany(
        f"INSERT INTO run (job, attempt, lease, nodes, gpus) VALUES (?, ?, {lease:d}, ?, ?)",
        runs,
    )


def note_starts(cx: sqlite3.Connection, starts: Iterable[ProgramStart], describe: Describe) -> None:
    """Record when and where programs that still run have started, in case their launcher does not see their end."""
    cx.executemany(
        """UPDATE run SET started = coalesce(?, started), nodes = ?, gpus = ?, cpus = ?
            WHERE job = ? AND attempt = ? AND ended IS NULL""",
        ((one.started_us, *describe(one.nodes, one.gpus), one.cpus, one.job, one.attempt) for one in starts),
    )


_END = """UPDATE run SET started = coalesce(?, started), ended = ?, return_code = ?, user_us = ?, system_us = ?,
    max_memory = ?, cause = ?, nodes = coalesce(nullif(?, ''), nodes), gpus = coalesce(nullif(?, ''), gpus), cpus = ?
    WHERE job = ? AND attempt = ?"""


def end(
    cx: sqlite3.Connection, results: Iterable[RunResult], describe: Describe = as_known, stop_cause: str = TOLD_TO_STOP
) -> None:
    """Complete the rows of runs that have ended, and delete those of claims whose programs have never started.

    `stop_cause` is why runs that were told to stop have ended.
    """
    ended, unstarted = [], []
    for run in results:
        if run.result == states.RESTART_READY and not run.has_started:
            unstarted.append((run.job, run.attempt))
            continue
        nodes, gpus = describe(run.nodes, run.gpus) if run.nodes else ("", "")
        cause = run.cause or (stop_cause if run.told_us is not None else "")
        ended.append(
            (run.started_us, run.ended_us, run.return_code, run.user_us, run.system_us, run.max_memory, cause, nodes, gpus,
                run.cpus, run.job, run.attempt)
        )  # fmt: skip
    cx.executemany(_END, ended)
    if unstarted:
        cx.executemany("DELETE FROM run WHERE job = ? AND attempt = ?", unstarted)


def end_unseen(cx: sqlite3.Connection, jobs: Collection[int], now_us: int, cause: str) -> None:
    """Complete the rows of these jobs' last runs, whose ends no launcher has seen."""
    if jobs:
        sql = "UPDATE run SET ended = ?, cause = ? WHERE job IN (SELECT value FROM json_each(?)) AND ended IS NULL"
        cx.execute(sql, (now_us, cause, id_list(jobs)))


def restore(cx: sqlite3.Connection, rows: Iterable[Sequence[object]]) -> None:
    """Insert whole rows of jobs that exist and have none for that attempt."""
    known = {row[0] for row in cx.execute("SELECT id FROM job")}
    width = len(cx.execute("PRAGMA table_info(run)").fetchall())
    sql = f"INSERT OR IGNORE INTO run VALUES ({', '.join('?' * width)})"
    cx.executemany(sql, (tuple(row) for row in rows if row[0] in known))
