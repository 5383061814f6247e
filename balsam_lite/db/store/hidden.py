"""Jobs of a large insert that are hidden until it is complete: ranges of job numbers, each named by a row of `large_write`.

An insert of very many jobs is committed in pieces (see `insert.Insertion`). Its numbers are reserved before the first piece, so
jobs that others add meanwhile get later ones, and no number is used twice. Until one short transaction removes the row:

- every query for jobs or events has the condition `schema.visible`; claims read around the range (`gaps`), so that they skip it
  by a seek, however many rows it has;
- the rows live in the dependency graph like others: a parent's end reaches them. `count` counts their states apart,
  and the counters of all jobs get them at the end (`release`).

Where the owner died or gave up (`give_up`), any process deletes the jobs in pieces (`discard`), and then the row.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from ...core import states
from ...core.clock import SystemClock
from ...core.errors import DatabaseError
from ...core.identity import Holder
from . import tags

#: No job has a larger number.
_LAST = 2**63 - 1


class HiddenRange(NamedTuple):
    """Numbers of hidden jobs, both ends included, and the `large_write` that names them."""

    write: int
    first: int
    last: int


def ranges(cx: sqlite3.Connection) -> list[HiddenRange]:
    """Return the hidden ranges in order of their numbers; [] as a rule."""
    rows = cx.execute("SELECT id, first, last FROM large_write WHERE first > 0 ORDER BY first").fetchall()
    return [HiddenRange(*row) for row in rows]


def gaps(cx: sqlite3.Connection) -> list[tuple[int, int]]:
    """Return the ranges of numbers between hidden ones, in order; [] where nothing is hidden."""
    found, after = [], 0
    for _, first, last in ranges(cx):
        found.append((after + 1, first - 1))
        after = last
    return [*found, (after + 1, _LAST)] if found else []


def last_number(cx: sqlite3.Connection) -> int:
    """Return the largest job number that was ever given out."""
    row = cx.execute("SELECT seq FROM sqlite_sequence WHERE name = 'job'").fetchone()
    return int(row[0]) if row else 0


def begin(cx: sqlite3.Connection, jobs: int) -> HiddenRange:
    """Reserve the numbers of new jobs for this process, and hide them."""
    first = last_number(cx) + 1
    last = first + jobs - 1
    if not cx.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'job'", (last,)).rowcount:
        cx.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('job', ?)", (last,))
    write = cx.execute(
        """INSERT INTO large_write (host, pid_namespace, pid, started, touched, total, counted, first, last)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (*Holder.current(), SystemClock.now_us(), jobs, json.dumps({states.CREATED: jobs}), first, last),
    ).lastrowid
    assert write is not None
    return HiddenRange(write, first, last)


def touch(cx: sqlite3.Connection, write: int, done: int) -> None:
    """Record that the owner goes on and how many jobs it has written. Raise DatabaseError if others have taken it for dead."""
    sql = "UPDATE large_write SET touched = ?, done = ? WHERE id = ? AND pid <> 0"
    if not cx.execute(sql, (SystemClock.now_us(), done, write)).rowcount:
        raise DatabaseError(
            "Another process took this one for dead and removed the jobs that it was adding; nothing was added.",
            hint="Add them again.",
        )


def count(cx: sqlite3.Connection, moved: Mapping[int, tuple[str, str]], among: list[HiddenRange]) -> None:
    """Count changes of state, given as job -> (source, target), of jobs in these ranges."""
    for write, first, last in among:
        change: Counter[str] = Counter()
        for job, (source, target) in moved.items():
            if first <= job <= last:
                change[source] -= 1
                change[target] += 1
        if change:
            (text,) = cx.execute("SELECT counted FROM large_write WHERE id = ?", (write,)).fetchone()
            change.update(json.loads(text))
            cx.execute("UPDATE large_write SET counted = ? WHERE id = ?", (json.dumps(change), write))


def release(cx: sqlite3.Connection, write: int) -> dict[str, int]:
    """Let everybody see the jobs. Return how many there are in each state, for the caller to count."""
    (text,) = cx.execute("SELECT counted FROM large_write WHERE id = ?", (write,)).fetchone()
    cx.execute("DELETE FROM large_write WHERE id = ?", (write,))
    found: dict[str, int] = json.loads(text)
    return found


def give_up(cx: sqlite3.Connection, write: int) -> None:
    """Leave it to any process to delete the jobs."""
    cx.execute("UPDATE large_write SET pid = 0 WHERE id = ?", (write,))


def discard(cx: sqlite3.Connection, write: int, jobs: int) -> bool:
    """Delete up to that number of the hidden jobs of a write that was given up. False if it has none."""
    row = cx.execute("SELECT first, last FROM large_write WHERE id = ? AND first > 0 AND pid = 0", (write,)).fetchone()
    if row is None:
        return False
    found = cx.execute("SELECT id FROM job WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?", (*row, jobs)).fetchall()
    if not found:
        return False
    ends = (found[0][0], found[-1][0])
    tags.remove(cx, "job.id BETWEEN ? AND ?", ends)
    cx.execute("DELETE FROM event WHERE job BETWEEN ? AND ?", ends)
    cx.execute("DELETE FROM dependency WHERE child BETWEEN ? AND ?", ends)
    cx.execute("DELETE FROM dependency WHERE parent BETWEEN ? AND ?", ends)
    cx.execute("DELETE FROM job WHERE id BETWEEN ? AND ?", ends)
    return True
