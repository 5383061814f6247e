"""Take back what a block of a thread has written, if the block fails (`compat.transaction.atomic`).

Each write in the block is committed at once in a short transaction, so that the block reads what it has written and other
processes do not wait for it. Jobs that it adds are held back until its end, at most `journal.MAX_HOLD_S`. If the block fails,
they are removed, and changes of other jobs are taken back as far as nothing has run since (`undo`).
"""

from __future__ import annotations

from collections.abc import Sequence

from ...core.clock import SystemClock
from ...core.errors import BalsamError
from ..engine.connection import Database
from . import apps, graph, undo, user_actions
from .journal import AddedJobs, BegunAction, ChangedParents, Entry, Journal

#: Jobs that one transaction lets start.
_JOBS_PER_WRITE = 2000


def keep(journal: Journal) -> None:
    """Let the jobs that the block has added start. One short write transaction for each few thousand of them."""
    for entry in journal.entries:
        if not isinstance(entry, AddedJobs):
            continue
        for first in range(entry.first, entry.last + 1, _JOBS_PER_WRITE):
            last = min(first + _JOBS_PER_WRITE - 1, entry.last)
            with journal.db.write() as cx:
                sql = "UPDATE job SET start_after = NULL WHERE id BETWEEN ? AND ? AND start_after = ?"
                cx.execute(sql, (first, last, entry.held_until_us))
    journal.entries.clear()


def take_back(db: Database, entries: Sequence[Entry]) -> list[str]:
    """Take back these writes, the last one first. Return what cannot be taken back, in words."""
    left = [_take_back(db, entry) for entry in reversed(entries)]
    return [words for words in left if words]


def _take_back(db: Database, entry: Entry) -> str:
    if isinstance(entry, AddedJobs):
        return _remove(db, entry)
    if isinstance(entry, BegunAction):
        with db.read() as cx:
            action = undo.by_number(cx, entry.number)
        if action is None or action.time_us != entry.time_us:
            return ""
        return undo.in_words(undo.take_back(db, action).left)
    if isinstance(entry, ChangedParents):
        try:
            with db.write() as cx:
                graph.set_parents(cx, entry.child, entry.before, SystemClock.now_us())
        except BalsamError as exc:
            return f"the parents of job #{entry.child}: {exc.message}"
        return ""
    with db.write() as cx:
        apps.restore_app(cx, *entry)
    return ""


def _remove(db: Database, added: AddedJobs) -> str:
    with db.read() as cx:
        found = cx.execute("SELECT job_id FROM job WHERE id = ?", (added.first,)).fetchone()
        rows = cx.execute("SELECT id FROM job WHERE id BETWEEN ? AND ?", (added.first, added.last))
        numbers = [row[0] for row in rows]
    if found == (added.job_id,):  # else the transaction was rolled back, and the numbers are those of other jobs
        user_actions.delete(db, numbers, force=True, is_kept=False)
    return ""
