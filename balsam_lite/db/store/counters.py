"""Counters: the numbers of jobs by state, by workflow and state, and by cause of failure.

A listing reads these few rows instead of a million jobs. Code that changes a state, a workflow or the jobs themselves updates
them in the same write transaction. Jobs that are still being added are left out; `large_writes` counts them apart.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence

from ...core import causes
from ..engine.schema import FAILED_FOR_CAUSE, VISIBLE


def count(cx: sqlite3.Connection, change: Mapping[tuple[str, str], int]) -> None:
    """Update the numbers of jobs per state and per workflow and state, from (workflow, state) -> difference."""
    by_state: Counter[str] = Counter()
    for (_, state), jobs in change.items():
        by_state[state] += jobs
    cx.executemany("UPDATE state_count SET jobs = jobs + ? WHERE state = ?", [(n, state) for state, n in by_state.items() if n])
    cx.executemany(
        """INSERT INTO workflow_count (workflow, state, jobs) VALUES (?, ?, ?)
            ON CONFLICT (workflow, state) DO UPDATE SET jobs = jobs + excluded.jobs""",
        [(*key, n) for key, n in change.items() if n],
    )
    cx.executemany(
        "DELETE FROM workflow_count WHERE workflow = ? AND state = ? AND jobs = 0", [key for key, n in change.items() if n < 0]
    )


def counts_of(cx: sqlite3.Connection, jobs: str, parameters: Sequence[object] = ()) -> Counter[tuple[str, str]]:
    """Return the number of jobs by (workflow, state), for `count`; `jobs` is the query for their numbers."""
    return Counter(cx.execute(f"SELECT workflow, state FROM job NOT INDEXED WHERE id IN ({jobs})", parameters))


def add(cx: sqlite3.Connection, jobs: str) -> None:
    """Count jobs, listed in JSON, that were just added again."""
    count(cx, counts_of(cx, "SELECT value FROM json_each(?)", (jobs,)))
    these = f"id IN (SELECT value FROM json_each(?)) AND {FAILED_FOR_CAUSE}"
    failures = f"SELECT count(*), failure FROM job NOT INDEXED WHERE {these} GROUP BY 2"
    cx.executemany("UPDATE failure SET jobs = jobs + ? WHERE id = ?", cx.execute(failures, (jobs,)).fetchall())


def uncount(cx: sqlite3.Connection, jobs: str) -> int:
    """Take jobs that are about to be deleted from all counters. `jobs` is the query for their numbers. Return how many."""
    gone = counts_of(cx, jobs)
    uncount_failures(cx, f"IN ({jobs})")
    count(cx, {key: -number for key, number in gone.items()})
    return sum(gone.values())


def recount(cx: sqlite3.Connection) -> None:
    """Count all jobs anew, by state, by workflow and by cause of failure. Reads all jobs."""
    cx.execute("DELETE FROM workflow_count")
    cx.execute(f"INSERT INTO workflow_count SELECT workflow, state, count(*) FROM job WHERE {VISIBLE} GROUP BY workflow, state")
    total = "SELECT coalesce(sum(jobs), 0) FROM workflow_count w WHERE w.state = state_count.state"
    cx.execute(f"UPDATE state_count SET jobs = ({total})")
    cx.execute(f"UPDATE failure SET jobs = (SELECT count(*) FROM job WHERE failure = failure.id AND {VISIBLE})")


# --- causes of failures -----------------------------------------------------------------------------------------------


def count_failures(cx: sqlite3.Connection, which: str, ids: object, cause: str) -> int:
    """Count these jobs, which fail, and return the number of their cause."""
    number = number_of_cause(cx, cause)
    jobs = f"SELECT count(*) FROM job NOT INDEXED WHERE id {which} AND {VISIBLE}"
    cx.execute(f"UPDATE failure SET jobs = jobs + ({jobs}) WHERE id = ?", (ids, number))
    return number


def number_of_cause(cx: sqlite3.Connection, cause: str) -> int:
    """Return the number of a cause of failures, which may be new."""
    row = cx.execute("SELECT id FROM failure WHERE cause = ?", (cause,)).fetchone()
    if row is None:
        if cause != causes.OTHER and cx.execute("SELECT count(*) FROM failure").fetchone()[0] >= causes.MAX_CAUSES:
            return number_of_cause(cx, causes.OTHER)
        row = (cx.execute("INSERT INTO failure (cause, jobs) VALUES (?, 0)", (cause,)).lastrowid,)
    return int(row[0])


def uncount_failures(cx: sqlite3.Connection, which: str, *ids: object) -> None:
    """Take these jobs, which fail no more or are deleted, from the numbers of jobs of their causes."""
    sql = (
        f"SELECT count(*), failure FROM job NOT INDEXED WHERE id {which} AND {FAILED_FOR_CAUSE} AND {VISIBLE} GROUP BY failure"
    )
    cx.executemany("UPDATE failure SET jobs = jobs - ? WHERE id = ?", cx.execute(sql, ids).fetchall())
