"""Take back what a user's command did, as far as nothing has run since and no other command has changed the same."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...core import caller
from ...core.errors import NotFound
from ..engine.connection import Database
from . import actions, large_writes, pieces, reversal, trash
from .large_writes import Part, Progress

#: The reason why a job cannot be restored -> in words, after "1 job" or "5 jobs".
REASONS = {
    "ran": "ran since",
    "held": "now with a launcher",
    "running": "running when killed",
    "changed": "changed since",
    "gone": "removed since",
    "conflict": "its id is that of a present one",
    "key": "its unique_key is that of a job added since",
    "expired": "not in the trash any more",
}


def in_words(left: Mapping[str, int]) -> str:
    """Return which jobs could not be restored, and why; "" if there are none."""
    return ", ".join(f"{jobs} job{'s' * (jobs != 1)} {REASONS[reason]}" for reason, jobs in left.items())


class Action(NamedTuple):
    """What a user did."""

    id: int
    time_us: int
    user: str
    host: str
    command: str
    kind: str
    jobs: int
    fields: dict[str, Any]  # the new values, in stored form
    is_undone: bool


def of_user(cx: sqlite3.Connection, user: str, most: int = 20) -> list[Action]:
    """Return the last actions of a user, newest first, without those of jobs' programs and hooks."""
    sql = f"{_ACTIONS} WHERE user = ? AND jobs > 0 AND command NOT LIKE 'a job''s %' ORDER BY action.id DESC LIMIT ?"
    return [_action(row) for row in cx.execute(sql, (user, most)).fetchall()]


_ACTIONS = """SELECT action.id, time, user, host, command, kind, jobs, fields, undone IS NOT NULL
    FROM action JOIN author ON author.id = action.author"""


def _action(row: Sequence[Any]) -> Action:
    *who, fields, is_undone = row
    return Action._make((*who, json.loads(fields), bool(is_undone)))


def find(cx: sqlite3.Connection, number: int | None = None) -> Action:
    """Return this user's action with that number, or the last one by a command that can be taken back.

    Raises:
        NotFound: there is none, or it was taken back already.
    """
    user = caller.current().user
    listed = of_user(cx, user, -1 if number is not None else 1000)
    for one in listed:
        is_wanted = one.id == number if number is not None else one.command.startswith("balsam ") and not one.is_undone
        if is_wanted and one.kind != actions.UNDO and not one.is_undone:
            return one
    if number is None:
        raise NotFound(f"There is no command of {user} to take back.", hint="`balsam undo --list` shows what was done.")
    known = [one for one in listed if one.id == number]
    reason = "was taken back already" if known and known[0].is_undone else "is no command of yours that can be taken back"
    hint = "`balsam undo --list` shows the numbers. To do something again, give its command again."
    raise NotFound(f"Number {number} {reason}.", hint=hint)


def by_number(cx: sqlite3.Connection, number: int) -> Action | None:
    """Return the action with that number, of any user; None if there is none that has changed a job and was not taken back."""
    row = cx.execute(f"{_ACTIONS} WHERE action.id = ? AND jobs > 0 AND undone IS NULL", (number,)).fetchone()
    return None if row is None else _action(row)


class Undone(NamedTuple):
    """How many jobs were, or would be, restored, and how many not, by the keys of `REASONS`."""

    taken: int
    left: dict[str, int]


def preview(db: Database, action: Action) -> Undone:
    """Return what `take_back` would do. Opens a read transaction."""
    with db.read() as cx:
        edited, kept = _edited(cx, action.id), _kept(cx, action.id)
        counted = _missing(action, edited, kept)
        for jobs in reversal.slices(edited):
            counted.update(one.reason or "taken" for one in reversal.reversals(cx, action.id, action.fields, jobs))
        for row, jobs in kept:
            clashes = trash.conflicts(cx, row)
            counted.update(clashes + Counter(taken=len(jobs) - sum(clashes.values())))
        return _undone(counted)


def take_back(db: Database, action: Action, progress: Progress | None = None) -> Undone:
    """Restore what an action changed or removed. A crash in the middle leaves the rest to the next command or launcher.

    Opens its own write transactions, many short ones for very many jobs.

    Raises:
        NotFound: another process has taken it back meanwhile.
    """
    with db.read() as cx:
        edited, kept = _edited(cx, action.id), _kept(cx, action.id)
    # A row of dependencies or applications has no jobs; a part needs one, and no job has the number 0.
    parts = [Part("restore", {"row": row}, jobs or [0]) for row, jobs in kept]
    parts.append(Part("take_back", {"action": action.id}, edited))

    def mark(cx: sqlite3.Connection) -> int:
        by = actions.begin(cx, actions.UNDO)
        if not cx.execute("UPDATE action SET undone = ? WHERE id = ? AND undone IS NULL", (by, action.id)).rowcount:
            raise NotFound("Another process has taken it back meanwhile.")
        return by

    if max(len(kept) * large_writes.JOBS_PER_PART, len(edited)) > large_writes.MAX_DIRECT_JOBS:
        counted = pieces.run(db, parts, lambda cx: [mark(cx)] * len(parts), progress)
    else:
        counted = Counter()
        with pieces.few(db, edited) as cx:
            by = mark(cx)
            for part in parts:
                counted.update(pieces.ACTIONS[part.action](cx, 0, part.jobs, {**part.parameters, "by": by}))
    counted.update(_missing(action, edited, kept))
    return _undone(counted)


def _undone(counted: Mapping[str, int]) -> Undone:
    return Undone(counted.get("taken", 0), {reason: counted[reason] for reason in REASONS if counted.get(reason)})


def _missing(action: Action, edited: Sequence[int], kept: Sequence[tuple[int, list[int]]]) -> Counter[str]:
    """Return how many jobs of an action have left no rows from which to restore them."""
    if action.kind == actions.REMOVE_APPS:  # its number of jobs includes the applications
        return Counter(expired=0 if kept else action.jobs)
    missing = max(0, action.jobs - len(edited) - sum(len(jobs) for _, jobs in kept))
    return Counter(expired=missing) if action.kind == actions.REMOVE else Counter(gone=missing)


def _edited(cx: sqlite3.Connection, action: int) -> list[int]:
    return [row[0] for row in cx.execute("SELECT DISTINCT job FROM edit WHERE action = ? ORDER BY job", (action,))]


def _kept(cx: sqlite3.Connection, action: int) -> list[tuple[int, list[int]]]:
    """Return the rows of the trash of an action, with their jobs, the last one first."""
    rows = cx.execute("SELECT id, jobs FROM trash INDEXED BY trash_action WHERE action = ? ORDER BY id DESC", (action,))
    return [(row, json.loads(jobs)) for row, jobs in rows]
