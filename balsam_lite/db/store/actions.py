"""What users and their scripts do to jobs: a row of `action` for each call, and rows of `edit` for each job that it changes.

An edit holds the value before the action, so that the values of every attempt are known and `undo` can restore them; the
new values, equal in all jobs, are in `action.fields`. Keys of objects are edited one by one (`data.x`). A change of state is an
event, too; its edits only serve to undo it. All functions run inside the caller's write transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ...core import caller, field_specs
from ...core.clock import SystemClock
from ..query.edits import OF_STATE
from . import journal

MODIFY, KILL, RERUN, REMOVE, REMOVE_APPS, UNDO = "modify", "kill", "rerun", "rm", "rm apps", "undo"

#: Fields that are recorded key by key.
OBJECTS = frozenset(field.name for field in field_specs.JOB_FIELDS if field.kind in field_specs.JSON_KINDS)
#: A value longer than this that several jobs share is stored once.
_MAX_INLINE = 24

#: The action of which all further ones of this process are a part; 0: none.
_outer = 0


def begin(cx: sqlite3.Connection, kind: str) -> int:
    """Record that the caller begins to do something, and return its number. `end` removes it if it has changed nothing."""
    if _outer:
        return _outer
    who = caller.current()
    cx.execute("INSERT OR IGNORE INTO author (user, host, command) VALUES (?, ?, ?)", who)
    author = cx.execute("SELECT id FROM author WHERE user = ? AND host = ? AND command = ?", who).fetchone()[0]
    now = SystemClock.now_us()
    number = cx.execute("INSERT INTO action (time, author, kind) VALUES (?, ?, ?)", (now, author, kind)).lastrowid
    assert number is not None
    journal.note_action(cx, number, now)
    return number


def end(cx: sqlite3.Connection, action: int) -> None:
    """Remove an action that has changed nothing."""
    if action != _outer:
        cx.execute("DELETE FROM action WHERE id = ? AND jobs = 0", (action,))


@contextmanager
def as_one(cx: sqlite3.Connection, kind: str) -> Iterator[int]:
    """Record all that is done in this block, in one transaction, as one action."""
    global _outer
    action = begin(cx, kind)
    before, _outer = _outer, action
    try:
        yield action
    finally:
        _outer = before
    end(cx, action)


def count(cx: sqlite3.Connection, action: int, jobs: int) -> None:
    """Add to the number of jobs that an action has changed."""
    cx.execute("UPDATE action SET jobs = jobs + ? WHERE id = ?", (jobs, action))


class Edit(NamedTuple):
    """The value before an action; None: there was no such key, or no value."""

    job: int
    field: str
    attempt: int
    old: Any


def note(cx: sqlite3.Connection, action: int, edits: Sequence[Edit]) -> None:
    """Record edits of an action. Of several edits of one field of one job the first one counts."""
    if not edits:
        return
    jobs = {edit.job for edit in edits}
    known = "SELECT count(DISTINCT job) FROM edit WHERE job IN (SELECT value FROM json_each(?)) AND action = ?"
    count(cx, action, len(jobs) - cx.execute(known, (json.dumps(list(jobs)), action)).fetchone()[0])
    often = Counter(edit.old for edit in edits if isinstance(edit.old, str) and len(edit.old) > _MAX_INLINE)
    shared = {
        text: cx.execute("INSERT INTO edit_text (text) VALUES (?)", (text,)).lastrowid
        for text, number in often.items()
        if number > 1
    }
    cx.executemany(
        "INSERT OR IGNORE INTO edit (job, action, field, attempt, old, shared) VALUES (?, ?, ?, ?, ?, ?)",
        ((e.job, action, e.field, e.attempt, *((None, shared[e.old]) if e.old in shared else (e.old, None))) for e in edits),
    )


def note_fields(cx: sqlite3.Connection, action: int, stored: Mapping[str, Any], jobs: str) -> None:
    """Record that jobs, listed in JSON, are about to get these values, in stored form."""
    names = list(stored)
    query = f"SELECT id, attempt, {', '.join(names)} FROM job NOT INDEXED WHERE id IN (SELECT value FROM json_each(?))"
    edits: list[Edit] = []
    new: dict[str, Any] = {}
    known: dict[tuple[str, str], dict[str, Any]] = {}
    wanted = {name: texts_of(stored[name]) for name in names if name in OBJECTS}
    for job, attempt, *values in cx.execute(query, (jobs,)):
        for name, old in zip(names, values):
            if old == stored[name]:
                continue
            if name not in OBJECTS:
                edits.append(Edit(job, name, attempt, old))
                new[name] = stored[name]
                continue
            keys = known.get((name, old))
            if keys is None:
                keys = known[name, old] = _changed_keys(old, stored[name])
            for key, text in keys.items():
                edits.append(Edit(job, f"{name}.{key}", attempt, text))
                new[f"{name}.{key}"] = wanted[name].get(key)
    if edits:
        note(cx, action, edits)
        _note_new(cx, action, new)


def texts_of(stored: str) -> dict[str, str]:
    """Return the values of an object, each as JSON text."""
    return {key: json.dumps(value) for key, value in json.loads(stored).items()}


def _changed_keys(old: str, new: str) -> dict[str, str | None]:
    """Return the keys that differ, with their old values as JSON text; None: the key is new."""
    before, after = texts_of(old), texts_of(new)
    return {key: before.get(key) for key in {**before, **after} if before.get(key) != after.get(key)}


def _note_new(cx: sqlite3.Connection, action: int, new: Mapping[str, Any]) -> None:
    (text,) = cx.execute("SELECT fields FROM action WHERE id = ?", (action,)).fetchone()
    known = json.loads(text)
    if any(name not in known for name in new):
        cx.execute("UPDATE action SET fields = ? WHERE id = ?", (json.dumps({**new, **known}), action))


def note_states(cx: sqlite3.Connection, action: int, rows: Iterable[Sequence[Any]], new: str = "") -> None:
    """Record that the state of jobs changes to `new`. A row has the number, the attempt and columns `OF_STATE` before that."""
    edits = [
        Edit(job, name, attempt, value)
        for job, attempt, *values in rows
        for name, value in zip(OF_STATE, values)
        if value or name == "state"
    ]
    if edits:
        note(cx, action, edits)
        _note_new(cx, action, {"state": new})
