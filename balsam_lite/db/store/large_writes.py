"""Rows of large writes: the lists of jobs that a write has still to change, and the ranges of jobs that an insert still hides.

A row of `large_write` is a write; `pieces` carries it out. All functions run inside the caller's transaction.

- Its rows of `large_write_part` are the parts still to be done: an action and the numbers of the jobs to apply it to. No
  launcher can claim a job that a part names (`unfinished`); a job that was put back is held (`start_after` is `held_until`)
  until all jobs of the write are.
- An insert of very many jobs is committed in pieces (`pieces.HiddenInsert`). Its numbers are reserved before the first piece
  (`hide`), so jobs that others add meanwhile get later ones, and no number is used twice. Until one short transaction removes
  the row, every query for jobs or events has the condition `schema.visible`; claims seek past the range (`visible_ranges`).
  Hidden rows live in the dependency graph like others: `count_hidden` counts their states apart, and the counters of all jobs
  get them at the end (`unhide`). If the owner died or gave up (`give_up`), any process deletes the jobs in pieces
  (`discard_hidden`), and then the row.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...core.clock import SystemClock
from ...core.errors import DatabaseError
from ...core.process_table import Holder
from ..engine.schema import LARGE_WRITE_HOLD
from . import tags

#: Jobs that one transaction may change; more are changed in pieces.
MAX_DIRECT_JOBS = 5000
#: Jobs in a part, the smallest amount of work in a piece.
JOBS_PER_PART = 500
CHILDREN = "children"

Progress = Callable[[int], None]

#: Applies an action to these jobs. Takes the number of the write and the action's parameters; returns what it counted.
Action = Callable[[sqlite3.Connection, int, Sequence[int], Mapping[str, Any]], Mapping[str, int]]


# --- lists of jobs to change ---


class Part(NamedTuple):
    """An action, by its name in `pieces.ACTIONS`, and the jobs to apply it to, possibly many."""

    action: str
    parameters: Mapping[str, Any]
    jobs: Sequence[int]


def rows_of(parts: Iterable[Part]) -> Iterator[tuple[str, str, int, int, str]]:
    for part in parts:
        parameters = json.dumps(part.parameters)
        for start in range(0, len(part.jobs), JOBS_PER_PART):
            jobs = part.jobs[start : start + JOBS_PER_PART]
            yield part.action, parameters, min(jobs), max(jobs), json.dumps(jobs)


def store(cx: sqlite3.Connection, rows: Iterable[Sequence[Any]], total: int, owner: Holder | None) -> int:
    holder = owner or Holder("", "", 0, "")
    number = cx.execute(
        "INSERT INTO large_write (host, pid_namespace, pid, started, touched, total) VALUES (?, ?, ?, ?, ?, ?)",
        (*holder, SystemClock.now_us() if owner else 0, total),
    ).lastrowid
    assert number is not None
    _add(cx, number, rows)
    return number


def _add(cx: sqlite3.Connection, number: int, rows: Iterable[Sequence[Any]]) -> None:
    sql = "INSERT INTO large_write_part (large_write, action, parameters, first, last, jobs) VALUES (?, ?, ?, ?, ?, ?)"
    cx.executemany(sql, ((number, *row) for row in rows))


def add(cx: sqlite3.Connection, number: int, part: Part) -> None:
    """Append a part to a write, after all its present parts."""
    _add(cx, number, rows_of([part]))


def defer_children(cx: sqlite3.Connection, jobs: Sequence[int]) -> None:
    """Leave it to the next launcher to reconsider these jobs, whose parents have changed; see `graph.reconsider`."""
    store(cx, rows_of([Part(CHILDREN, {}, sorted(jobs))]), len(jobs), None)


def is_any(cx: sqlite3.Connection) -> bool:
    """Return whether a large write is unfinished. Reads one table, which is usually empty."""
    return cx.execute("SELECT 1 FROM large_write LIMIT 1").fetchone() is not None


def has_lists(cx: sqlite3.Connection) -> bool:
    """Return whether a large write other than an insert is unfinished, so that jobs are held until it is complete."""
    return is_any(cx) and cx.execute("SELECT 1 FROM large_write WHERE first = 0 LIMIT 1").fetchone() is not None


def unfinished(cx: sqlite3.Connection, jobs: Iterable[int]) -> set[int]:
    """Return those of `jobs` that a large write has still to change: no launcher may claim them."""
    if not is_any(cx):
        return set()
    rows = cx.execute(
        """SELECT wanted.value FROM json_each(?) AS wanted WHERE EXISTS (SELECT 1 FROM large_write_part AS part
            WHERE part.first <= wanted.value AND part.last >= wanted.value
                AND wanted.value IN (SELECT value FROM json_each(part.jobs)))""",
        (json.dumps(list(jobs)),),
    )
    return {row[0] for row in rows}


def held_until(number: int) -> int:
    """Return the `start_after` of a job that waits for the end of that write."""
    return LARGE_WRITE_HOLD + number


def release_some(cx: sqlite3.Connection, number: int) -> bool:
    """Let some of the jobs start that waited for the end of that write. Return False if there is none."""
    query = "SELECT id FROM job INDEXED BY job_start_after WHERE start_after = ? LIMIT ?"
    sql = f"UPDATE job NOT INDEXED SET start_after = NULL WHERE id IN ({query})"
    return cx.execute(sql, (held_until(number), JOBS_PER_PART)).rowcount > 0


# --- hidden ranges of jobs ---


#: No job has a larger number.
_MAX_JOB = 2**63 - 1


class HiddenRange(NamedTuple):
    """Numbers of hidden jobs, both ends included, and the `large_write` that names them."""

    write: int
    first: int
    last: int


def hidden_ranges(cx: sqlite3.Connection) -> list[HiddenRange]:
    """Return the hidden ranges in order of their numbers; [] as a rule."""
    rows = cx.execute("SELECT id, first, last FROM large_write WHERE first > 0 ORDER BY first").fetchall()
    return [HiddenRange(*row) for row in rows]


def visible_ranges(cx: sqlite3.Connection) -> list[tuple[int, int]]:
    """Return the ranges of numbers between hidden ones, in order; [] where nothing is hidden."""
    found, after = [], 0
    for _, first, last in hidden_ranges(cx):
        found.append((after + 1, first - 1))
        after = last
    return [*found, (after + 1, _MAX_JOB)] if found else []


def last_number(cx: sqlite3.Connection) -> int:
    """Return the largest job number ever assigned."""
    row = cx.execute("SELECT seq FROM sqlite_sequence WHERE name = 'job'").fetchone()
    return int(row[0]) if row else 0


def hide(cx: sqlite3.Connection, jobs: int, has_keys: bool = False) -> HiddenRange:
    """Reserve the numbers of new jobs, some with a unique_key or none, for this process, and hide them."""
    first = last_number(cx) + 1
    last = first + jobs - 1
    if not cx.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'job'", (last,)).rowcount:
        cx.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('job', ?)", (last,))
    write = cx.execute(
        """INSERT INTO large_write (host, pid_namespace, pid, started, touched, total, first, last, has_keys)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (*Holder.current(), SystemClock.now_us(), jobs, first, last, has_keys),
    ).lastrowid
    assert write is not None
    return HiddenRange(write, first, last)


def touch(cx: sqlite3.Connection, write: int, done: int) -> None:
    """Record that the owner is alive and has written `done` jobs. Raise DatabaseError if another process took it for dead."""
    sql = "UPDATE large_write SET touched = ?, done = ? WHERE id = ? AND pid <> 0"
    if not cx.execute(sql, (SystemClock.now_us(), done, write)).rowcount:
        raise DatabaseError(
            "Another process took this one for dead and removed the jobs that it was adding; nothing was added.",
            hint="Add them again.",
        )


def count_hidden(cx: sqlite3.Connection, write: int, change: Mapping[tuple[str, str], int]) -> None:
    """Update the numbers of hidden jobs of a write, from (workflow, state) -> difference."""
    cx.executemany(
        """INSERT INTO hidden_count (large_write, workflow, state, jobs) VALUES (?, ?, ?, ?)
            ON CONFLICT (large_write, workflow, state) DO UPDATE SET jobs = jobs + excluded.jobs""",
        [(write, *key, jobs) for key, jobs in change.items() if jobs],
    )


def unhide(cx: sqlite3.Connection, hidden: HiddenRange) -> dict[tuple[str, str], int]:
    """Make the hidden jobs visible. Return their number by (workflow, state), for the caller to count."""
    rows = cx.execute("SELECT workflow, state, jobs FROM hidden_count WHERE large_write = ?", (hidden.write,)).fetchall()
    forget(cx, hidden.write)
    failed = "SELECT count(*) FROM job INDEXED BY job_failure WHERE failure = failure.id AND id BETWEEN ? AND ?"
    cx.execute(f"UPDATE failure SET jobs = jobs + ({failed})", hidden[1:])
    return {(workflow, state): jobs for workflow, state, jobs in rows}


def forget(cx: sqlite3.Connection, write: int) -> None:
    """Delete a write that is complete, and the numbers of its hidden jobs."""
    cx.execute("DELETE FROM hidden_count WHERE large_write = ?", (write,))
    cx.execute("DELETE FROM large_write WHERE id = ?", (write,))


def give_up(cx: sqlite3.Connection, write: int) -> None:
    """Leave it to any process to delete the jobs."""
    cx.execute("UPDATE large_write SET pid = 0 WHERE id = ?", (write,))


def discard_hidden(cx: sqlite3.Connection, write: int, jobs: int) -> bool:
    """Delete up to `jobs` hidden jobs of a write that was given up. Return False if it has none."""
    row = cx.execute("SELECT first, last FROM large_write WHERE id = ? AND first > 0 AND pid = 0", (write,)).fetchone()
    if row is None:
        return False
    found = cx.execute("SELECT id FROM job WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?", (*row, jobs)).fetchall()
    if not found:
        return False
    ends = (found[0][0], found[-1][0])
    tags.remove(cx, "job.id BETWEEN ? AND ?", ends)
    of_these = "job BETWEEN ? AND ?"
    cx.execute(f"DELETE FROM source WHERE id IN (SELECT source FROM imported WHERE {of_these})", ends)
    cx.execute(f"DELETE FROM action WHERE jobs = 0 AND id IN (SELECT action FROM edit WHERE {of_these})", ends)
    for table in ("event", "run", "edit", "imported"):
        cx.execute(f"DELETE FROM {table} WHERE {of_these}", ends)
    cx.execute("DELETE FROM dependency WHERE child BETWEEN ? AND ?", ends)
    cx.execute("DELETE FROM dependency WHERE parent BETWEEN ? AND ?", ends)
    cx.execute("DELETE FROM job WHERE id BETWEEN ? AND ?", ends)
    return True
