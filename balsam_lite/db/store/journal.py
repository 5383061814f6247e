"""What a thread has written since it began a block that may have to take it back; see `compensation`.

The functions of the store note here what they write. Outside of a block that costs a look at a variable of the thread.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Union

from ...core.clock import SECOND_US, SystemClock
from ...core.errors import StateError
from ..engine.connection import Database

#: Seconds after which a job that a block has added starts although the block goes on, or its process has died.
MAX_HOLD_S = 60


class AddedJobs(NamedTuple):
    """Jobs with consecutive numbers."""

    first: int
    last: int
    job_id: str  # of the first one
    held_until_us: int


class BegunAction(NamedTuple):
    """An action on jobs (see `actions`). It may have changed nothing, and its transaction may have been rolled back."""

    number: int
    time_us: int


class ChangedParents(NamedTuple):
    """A job that was given other parents."""

    child: int
    before: tuple[int, ...]


class WrittenApp(NamedTuple):
    """An application that was added, changed or removed."""

    number: int
    name: str
    before: Mapping[str, Any] | None  # its row; None: there was none


Entry = Union[AddedJobs, BegunAction, ChangedParents, WrittenApp]


class Journal:
    """The writes of one block to one DB, in their order. A block inside another one appends to the journal of that one."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.process = os.getpid()
        self.entries: list[Entry] = []
        self.callbacks: list[Callable[[], object]] = []  # called if the outermost block succeeds


class _OpenJournal(threading.local):
    journal: Journal | None = None


_open = _OpenJournal()


def current() -> Journal | None:
    """Return the journal of this thread of this process; None outside of a block."""
    journal = _open.journal
    return None if journal is None or journal.process != os.getpid() else journal


def set_current(journal: Journal | None) -> None:
    """Begin a block, or end it."""
    _open.journal = journal


def _of(cx: sqlite3.Connection) -> Journal | None:
    journal = current()
    return journal if journal is not None and getattr(cx, "path", "") == journal.db.path else None


def start_after(db: Database, given: int | None) -> int | None:
    """Return when jobs that are added now may start: in a block not before its end, else as `given`."""
    journal = current()
    return SystemClock.now_us() + MAX_HOLD_S * SECOND_US if journal is not None and journal.db.path == db.path else given


def refuse_wait(db: Database, jobs: Iterable[int]) -> None:
    """Raise StateError if one of these jobs was added in the open block, whose end they wait for."""
    journal = current()
    if journal is None or journal.db.path != db.path:
        return
    added = [range(entry.first, entry.last + 1) for entry in journal.entries if isinstance(entry, AddedJobs)]
    for job in jobs:
        if any(job in numbers for numbers in added):
            raise StateError(
                f"Job #{job} was added in this `with transaction.atomic()` and starts when the block ends.",
                hint="Wait for it after the block.",
            )


def note_jobs(db: Database, first: int, number: int, held_until_us: int | None) -> None:
    """Note jobs that were added."""
    journal = current()
    if journal is None or journal.db.path != db.path or not number or held_until_us is None:
        return
    with db.read() as cx:
        (job_id,) = cx.execute("SELECT job_id FROM job WHERE id = ?", (first,)).fetchone()
    journal.entries.append(AddedJobs(first, first + number - 1, job_id, held_until_us))


def note_action(cx: sqlite3.Connection, number: int, time_us: int) -> None:
    """Note an action on jobs that begins."""
    journal = _of(cx)
    if journal is not None:
        journal.entries.append(BegunAction(number, time_us))


def note_parents(cx: sqlite3.Connection, children: set[int]) -> None:
    """Note that jobs are about to be given other parents."""
    journal = _of(cx)
    if journal is not None:
        for child in sorted(children):
            rows = cx.execute("SELECT parent FROM dependency WHERE child = ?", (child,))
            journal.entries.append(ChangedParents(child, tuple(row[0] for row in rows)))


def note_new_app(cx: sqlite3.Connection, number: int, name: str) -> None:
    """Note that an application was added."""
    journal = _of(cx)
    if journal is not None:
        journal.entries.append(WrittenApp(number, name, None))


def note_app(cx: sqlite3.Connection, condition: str, value: int | str) -> None:
    """Note that the application for which an SQL condition holds is about to be changed or removed."""
    journal = _of(cx)
    if journal is None:
        return
    cursor = cx.execute(f"SELECT * FROM app WHERE {condition}", (value,))
    names = [column[0] for column in cursor.description]
    for row in cursor.fetchall():
        before = dict(zip(names, row))
        journal.entries.append(WrittenApp(before["id"], before["name"], before))
