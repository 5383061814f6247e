"""Jobs that are held back for a moment after they were added, because a dependency may follow (`job.start_after`).

A script that adds a job and then gives it a parent would otherwise race with a running launcher. So a job that `dag.add_job`
adds without parents starts one second (START_DELAY_S) after its process has last added a job or a dependency, at the latest
`MAX_HOLD_S` after it was added, and at once when the process ends, waits for jobs or reads them.

The process extends and clears `start_after` of its jobs (`graph_write`, `release`); launchers and the service clear it when it
is due (`release_due`). This is no lease: a job that is held back can be changed or killed like any waiting job.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from ...core import import_guard, states
from ...core.clock import SECOND_US, SystemClock
from ...core.settings import Settings
from ..engine.connection import Database, at_exit
from ..engine.schema import HELD_BACK, LARGE_WRITE_HOLD, sql_list
from ..query.queries import matches_workflow
from . import journal

#: Seconds after which a job starts although its process goes on adding jobs.
MAX_HOLD_S = 10
_MAX_HOLD_US = MAX_HOLD_S * SECOND_US
#: Each held-back job delays the start of all of them by this many microseconds, up to START_DELAY_S: so the times of many jobs
#: are extended only now and then, and not with each added job.
_SLACK_US = 1000

#: Seconds that a process waits for a busy DB at its exit.
_END_TIMEOUT_S = 2.0

_THESE = f"id IN (SELECT value FROM json_each(?)) AND start_after < {LARGE_WRITE_HOLD}"


# --- in the process that adds jobs ------------------------------------------------------------------------------------


class _Held:
    """The jobs of one DB that this process holds back."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.delay_us = int(min(Settings.load(database.directory).START_DELAY_S, MAX_HOLD_S) * SECOND_US)
        self.until_us = 0  # when they start, unless they are moved on
        self.jobs: deque[tuple[int, int]] = deque()  # (when it starts at the latest, number), in that order

    def numbers(self, now_us: int) -> list[int]:
        """Return the numbers of those that are still held back."""
        while self.jobs and self.jobs[0][0] <= now_us:
            self.jobs.popleft()
        if self.until_us <= now_us:
            self.jobs.clear()
        return [number for _, number in self.jobs]


#: By directory; under the lock, which is never held while waiting for the DB.
_held: dict[str, _Held] = {}
_lock = threading.Lock()
_is_prepared = False


def _of(database: Database) -> _Held:
    """Return what this process holds back in that DB."""
    global _is_prepared
    with _lock:
        if not _is_prepared:
            _is_prepared = True
            at_exit(_release_all)
            os.register_at_fork(after_in_child=_forget)
        found = _held.get(database.directory)
        if found is None:
            found = _held[database.directory] = _Held(database)
        return found


def _forget() -> None:
    """Forget the parent's jobs in a forked child, which does not hold them."""
    global _lock
    _lock = threading.Lock()
    _held.clear()


@contextmanager
def graph_write(database: Database) -> Iterator[tuple[sqlite3.Connection, int | None]]:
    """Open a write transaction that adds jobs or dependencies, and extend the hold on this process's jobs.

    Yield the connection, and the `start_after` of a job that is to be held back; None where START_DELAY_S is 0.
    """
    held = _of(database)
    before = held.until_us
    try:
        with database.write() as cx:
            is_short = held.delay_us and journal.current() is None
            yield cx, _moved_on(cx, held, SystemClock.now_us()) if is_short else None
    except BaseException:
        held.until_us = before
        raise


def _moved_on(cx: sqlite3.Connection, held: _Held, now_us: int) -> int:
    """Return the new time at which the jobs that are held back start."""
    with _lock:
        if held.until_us < now_us + held.delay_us:
            numbers = held.numbers(now_us)
            held.until_us = now_us + held.delay_us + min(len(numbers) * _SLACK_US, held.delay_us)
            if numbers:
                sql = f"UPDATE job SET start_after = min(created + {_MAX_HOLD_US}, ?) WHERE {_THESE}"
                cx.execute(sql, (held.until_us, json.dumps(numbers)))
        return min(held.until_us, now_us + _MAX_HOLD_US)


def hold(database: Database, number: int, created_us: int) -> None:
    """Record that this process holds that job back, now that it is in the DB."""
    held = _of(database)
    with _lock:
        held.jobs.append((created_us + _MAX_HOLD_US, number))


def move_on(database: Database) -> None:
    """Extend the hold on this process's jobs, because it has just added others. One write transaction if there are any."""
    if database.directory in _held:
        with _lock:
            is_holding = bool(_held[database.directory].numbers(SystemClock.now_us()))
        if is_holding:
            with graph_write(database):
                pass


def release(database: Database) -> None:
    """Let the jobs that this process holds back in that DB start, because it waits for jobs or reads them.

    One write transaction if there are any. Does nothing inside a transaction: reads there are not for a user. If the DB cannot
    be written, the jobs start when they are due.
    """
    held = _held.get(database.directory)
    if (
        held is None
        or not held.jobs
        or journal.current() is not None
        or database.is_in_transaction
        or import_guard.is_importing()
    ):
        return
    with _lock:
        numbers = held.numbers(SystemClock.now_us())
        held.jobs.clear()
    if numbers:
        with suppress(Exception), database.write() as cx:
            cx.execute(f"UPDATE job SET start_after = NULL WHERE {_THESE}", (json.dumps(numbers),))


def _release_all() -> None:
    """Release all jobs at the end of the process, without a long wait for a busy DB."""
    for held in list(_held.values()):
        held.database.busy_timeout_s = min(held.database.busy_timeout_s, _END_TIMEOUT_S)
        release(held.database)


# --- in launchers and the service; inside the caller's transaction ----------------------------------------------------


def release_due(cx: sqlite3.Connection, now_us: int) -> int:
    """Let the jobs start that are due. Return their number."""
    return cx.execute("UPDATE job INDEXED BY job_start_after SET start_after = NULL WHERE start_after <= ?", (now_us,)).rowcount


def next_start(cx: sqlite3.Connection) -> int | None:
    """Return when the next job that is held back is due, in microseconds; None if there is none."""
    found = cx.execute(f"SELECT min(start_after) FROM job INDEXED BY job_start_after WHERE {HELD_BACK}").fetchone()[0]
    if found is not None and found >= LARGE_WRITE_HOLD:  # no time: `pieces` lets it start
        return None
    return None if found is None else int(found)


def among(cx: sqlite3.Connection, jobs: Iterable[int]) -> set[int]:
    """Return those of these jobs that are held back and have not ended."""
    rows = cx.execute(f"SELECT id, state FROM job WHERE {_THESE}", (json.dumps(list(jobs)),))
    return {number for number, state in rows if state not in states.END_STATES}


def count(
    cx: sqlite3.Connection,
    workflow: str | None = None,
    tags: tuple[tuple[str, str], ...] = (),
    launch: int | None = None,
    serial_only: bool = False,
    by_large_write: bool = False,
) -> int:
    """Count the jobs for this launcher that only the hold keeps from starting.

    Args:
        by_large_write: count the jobs that wait for the end of a large write (see `pieces`) instead of the others.
        workflow: a name or a glob; None: all.
        launch: only jobs planned for it; None: all.
    """
    where = f" AND start_after {'>=' if by_large_write else '<'} {LARGE_WRITE_HOLD}"
    parameters: list[str] = []
    for tag in tags:
        where += " AND EXISTS (SELECT 1 FROM json_each(job.tags) WHERE key = ? AND value = ?)"
        parameters += tag
    if launch is not None:
        where += f" AND queued_launch_id = {launch:d}"
    if serial_only:
        where += " AND num_nodes = 1 AND ranks_per_node = 1"
    rows = cx.execute(
        f"""SELECT workflow, count(*) FROM job INDEXED BY job_start_after WHERE {HELD_BACK} AND lease IS NULL
            AND unfinished_parents = 0 AND state IN ({_STARTABLE}){where} GROUP BY workflow""",
        parameters,
    )
    return sum(jobs for name, jobs in rows if workflow is None or matches_workflow(name, workflow))


_STARTABLE = sql_list((*states.RUNNABLE_STATES, *states.UNPREPARED_STATES))
