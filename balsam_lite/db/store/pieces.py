"""Large writes: a change of many jobs is first stored as a list, and then carried out in short transactions with pauses.

A row of `large_write` is such a write, its rows of `large_write_part` are the parts left to do: an action and the numbers of
the jobs to apply it to. A transaction applies parts for `PIECE_S` seconds and deletes them, so each part is applied once, by
any process: if a crash or Ctrl-C interrupts a write, the next command or launcher completes it. Until then:

- A job that a part names cannot be claimed (`unfinished`), so that no action meets a job that has started meanwhile.
- A job that was put back is held (`start_after` is `held_until`) until all are, so that no child runs before its parents.
- A later action on a job that a part names first applies that part to it (`finish_first`), so the later one wins.

Updating the very many children of one job is such a write, too (`defer_children`). It has no owner: launchers carry it out.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, TypeVar

from ...core.clock import SECOND_US, SystemClock
from ...core.errors import BalsamError
from ...core.process_table import Holder
from ..collected import Added, Skipped
from ..engine import connection
from ..engine.connection import Database
from ..engine.filesystem import LOCAL
from . import actions, job_changes, large_writes, reversal
from .large_writes import CHILDREN, Part, Progress, is_any

#: Seconds after which a piece begins no further part.
PIECE_S = 0.15
#: Seconds between pieces. SQLite has no fair queue: a waiting process retries every 20 ms at most (`Database._patiently`) …
PAUSE_S = 0.025
#: … and every 100 ms at most for the session of a shared DB.
SHARED_PAUSE_S = 0.15
#: Seconds without a piece after which other processes complete a write. It does no harm if its owner goes on, too.
ABANDONED_S = 5.0

#: Seconds without a piece after which another host's insert is undone, as an expired lease is.
SILENT_S = 120.0


ACTIONS = {**job_changes.ACTIONS, **reversal.ACTIONS}

_T = TypeVar("_T")


# --- storing ----------------------------------------------------------------------------------------------------------


def run(
    db: Database,
    parts: Sequence[Part],
    begin: Callable[[sqlite3.Connection], Sequence[int]],
    progress: Progress | None = None,
) -> Counter[str]:
    """Apply these actions in pieces, one after the other. Return their counts. Opens its own write transactions.

    Args:
        begin: called in the transaction that stores the list. Returns for each part the number of the user's action (see
            `actions`); raises if the write must not be begun.
        progress: called with the number of jobs done since the last call.

    Raises:
        KeyboardInterrupt: its message names the remaining work, which the next command or launcher completes.
    """
    rows = [(place, row) for place, part in enumerate(parts) for row in large_writes.rows_of([part])]
    with db.write() as cx:
        by = begin(cx)
        texts = [json.dumps({**part.parameters, "by": action}) for part, action in zip(parts, by)]
        listed = [(action, texts[place], *rest) for place, (action, _, *rest) in rows]
        number = large_writes.store(cx, listed, sum(len(part.jobs) for part in parts), Holder.current())
    return complete(db, number, progress)


@contextmanager
def few(db: Database, jobs: Iterable[int] = ()) -> Iterator[sqlite3.Connection]:
    """Open a write transaction, or join the open one, to change few jobs.

    First apply to these jobs what unfinished writes still have to do with them. Afterwards complete abandoned writes, and the
    updates of children that the change has deferred.
    """
    with db.write() as cx:
        finish_first(cx, jobs)
        yield cx
        is_left = is_any(cx)
    if is_left and not db.is_in_transaction:
        complete(db)


def find_and_change(
    db: Database,
    find: Callable[[sqlite3.Connection, int | None], list[int]],
    change: Callable[[list[int]], _T],
) -> tuple[list[int], _T]:
    """Find jobs and change them, few jobs in one write transaction or in the open one. Return both results.

    Args:
        find: returns the numbers of the jobs; its second argument is the maximum number, None for all.
    """
    most = None if db.is_in_transaction else large_writes.MAX_DIRECT_JOBS + 1
    with few(db) as cx:
        jobs = find(cx, most)
        if most is None or len(jobs) < most:
            return jobs, change(jobs)
    with db.read() as cx:  # no writer waits for that
        jobs = find(cx, None)
    return jobs, change(jobs)


# --- inserting --------------------------------------------------------------------------------------------------------

#: Rows or dependencies that a piece of an insert adds between two checks of the clock: about 50 ms.
INSERT_UNIT = 2500
#: Seconds of such a piece with its commit, after which it adds nothing more. Each commit writes most pages of the index on
#: short ids again, so these pieces are longer than others.
INSERT_PIECE_S = 0.25


class HiddenInsert(ABC):
    """An insert of very many jobs, hidden until all are inserted; see `large_writes`. Its methods open write transactions."""

    def __init__(self, db: Database, hidden: large_writes.HiddenRange) -> None:
        self._db, self.hidden = db, hidden
        self.renamed: dict[int, str] = {}  # see `Added`
        self.skipped = Skipped()
        self._written = 0  # jobs
        self._commit_s = 0.0  # what the last commit took; on a slow disk more than all else
        self._units = self._all_units()
        self._commits = connection.commits - 1  # before the range was hidden

    @abstractmethod
    def _all_units(self) -> Iterator[Callable[[sqlite3.Connection], None]]:
        """Yield the work in small units, each to be run inside a write transaction."""

    @abstractmethod
    def _complete(self, cx: sqlite3.Connection) -> None:
        """Make the jobs visible and count them, inside the last transaction."""

    def carry_out(self) -> Added:
        """Insert all, or nothing if that raises."""
        try:
            started = time.monotonic()
            while self.advance():
                pause(self._db, time.monotonic() - started)
                started = time.monotonic()
            return self.release()
        except BaseException:
            self.undo()
            raise

    def advance(self) -> bool:
        """Write one piece. Return whether there was anything left to write."""
        unit = next(self._units, None)
        if unit is None:
            return False
        with self._db.write() as cx:
            failpoint("before-piece")
            enlarge_cache(cx)
            until = time.monotonic() + INSERT_PIECE_S - self._commit_s
            while unit is not None:
                unit(cx)
                unit = next(self._units, None) if time.monotonic() < until else None
            large_writes.touch(cx, self.hidden.write, self._written)
            written_at = time.monotonic()
        self._commit_s = time.monotonic() - written_at
        failpoint("after-piece")
        return True

    def release(self) -> Added:
        """Make the jobs visible, in one short transaction."""
        with few(self._db) as cx:
            failpoint("before-piece")
            large_writes.touch(cx, self.hidden.write, self._written)
            self._complete(cx)
        failpoint("after-piece")
        return self.added

    @property
    def added(self) -> Added:
        """Return the jobs that it adds. Numbers at the end of the hidden range are not used if jobs are skipped."""
        jobs = self.hidden.last - self.hidden.first + 1 - len(self.skipped.positions)
        return Added(self.hidden.first, jobs, self.renamed, self.skipped)

    def undo(self) -> None:
        """Remove the rows that were written; if that fails, leave this to the next command or launcher."""
        try:
            with suppress(BalsamError):
                with self._db.write() as cx:
                    large_writes.give_up(cx, self.hidden.write)
                complete(self._db, self.hidden.write)
                connection.forget_commits(self._commits)
        except KeyboardInterrupt:
            rest = "the next balsam command or launcher removes what was written"
            raise KeyboardInterrupt(f"Interrupted: nothing is added; {rest}.") from None


# --- carrying out -----------------------------------------------------------------------------------------------------


def complete(db: Database, number: int | None = None, progress: Progress | None = None) -> Counter[str]:
    """Complete that write, then those without an owner. Return the counts of the first one."""
    counted: Counter[str] = Counter()
    done, total = 0, 0
    try:
        while True:
            started = time.monotonic()
            state = _advance(db, number) if number is not None else None
            if state is not None:
                if progress:
                    progress(state.done - done)
                done, total, counted = state.done, state.total, state.counted
                if state.is_complete:
                    number = None
            elif not advance_abandoned(db):
                return counted
            else:
                number = None
            pause(db, time.monotonic() - started)
    except KeyboardInterrupt:
        how_far = f"{done} of {total} done" if total else "not all is done"
        raise KeyboardInterrupt(f"Interrupted: {how_far}; the next balsam command or launcher completes it.") from None


def enlarge_cache(cx: sqlite3.Connection) -> None:
    """Enlarge this connection's cache for the index on short ids: these are random, so a piece touches most of its pages."""
    cx.execute("PRAGMA cache_size = -65536")  # KiB


def pause(db: Database, piece_s: float) -> None:
    """Leave the DB to other processes for a moment, after a piece that took `piece_s` seconds."""
    time.sleep(PAUSE_S if db.access == LOCAL else max(SHARED_PAUSE_S, piece_s))


class UnfinishedWrite(NamedTuple):
    done: int
    total: int
    counted: Counter[str]
    is_complete: bool


def _advance(db: Database, number: int) -> UnfinishedWrite | None:
    """Do one piece of that write, in one transaction. Return None if other processes have completed it."""
    with db.write() as cx:
        failpoint("before-piece")
        enlarge_cache(cx)
        until = time.monotonic() + PIECE_S
        is_complete = False
        while not is_complete:
            is_complete = not (
                _do_part(cx, number)
                or large_writes.release_some(cx, number)
                or large_writes.discard_hidden(cx, number, large_writes.JOBS_PER_PART)
            )
            if time.monotonic() >= until:
                break
        row = cx.execute("SELECT done, total, counted FROM large_write WHERE id = ?", (number,)).fetchone()
        if is_complete:
            if cx.execute("SELECT 1 FROM large_write WHERE id = ? AND (first = 0 OR pid = 0)", (number,)).fetchone():
                large_writes.forget(cx, number)
        else:
            cx.execute("UPDATE large_write SET touched = ? WHERE id = ? AND pid <> 0", (SystemClock.now_us(), number))
    failpoint("after-piece")
    return None if row is None else UnfinishedWrite(row[0], row[1], Counter(json.loads(row[2])), is_complete)


def _do_part(cx: sqlite3.Connection, number: int) -> bool:
    """Do the next part of that write. Return False if there is none."""
    row = cx.execute(
        "SELECT id, action, parameters, jobs FROM large_write_part WHERE large_write = ? ORDER BY id LIMIT 1", (number,)
    ).fetchone()
    if row is None:
        return False
    part, action, parameters, text = row
    jobs = json.loads(text)
    cx.execute("DELETE FROM large_write_part WHERE id = ?", (part,))
    if action != CHILDREN:
        finish_first(cx, jobs, before=number)
    arguments = json.loads(parameters)
    _apply(cx, number, action, jobs, arguments)
    left = cx.execute("SELECT 1 FROM large_write_part WHERE large_write = ? LIMIT 1", (number,)).fetchone()
    if left is None and arguments.get("by"):
        actions.end(cx, arguments["by"])
    return True


def _apply(cx: sqlite3.Connection, number: int, action: str, jobs: Sequence[int], parameters: Mapping[str, Any]) -> None:
    counted = ACTIONS[action](cx, number, jobs, parameters)
    (text,) = cx.execute("SELECT counted FROM large_write WHERE id = ?", (number,)).fetchone()
    sums = json.dumps(Counter(json.loads(text)) + Counter(counted))
    cx.execute("UPDATE large_write SET done = min(done + ?, total), counted = ? WHERE id = ?", (len(jobs), sums, number))


def finish_first(cx: sqlite3.Connection, jobs: Iterable[int], before: int | None = None) -> None:
    """Apply to these jobs what unfinished writes still have to do with them; with `before` only writes with smaller numbers.

    Call this before any other change of these jobs. Runs inside the caller's write transaction.
    """
    if not is_any(cx):
        return
    wanted = set(jobs)
    if not wanted:
        return
    rows = cx.execute(
        """SELECT id, large_write, action, parameters, jobs FROM large_write_part
            WHERE action <> ? AND large_write < ? AND first <= ? AND last >= ? ORDER BY large_write, id""",
        (CHILDREN, before or 1 << 62, max(wanted), min(wanted)),
    ).fetchall()
    for part, number, action, parameters, text in rows:
        listed = json.loads(text)
        now = [job for job in listed if job in wanted]
        if now:
            later = [job for job in listed if job not in wanted]
            cx.execute("UPDATE large_write_part SET jobs = ? WHERE id = ?", (json.dumps(later), part))
            _apply(cx, number, action, now, json.loads(parameters))


class Unfinished(NamedTuple):
    """A large write that is not complete."""

    text: str  # a sentence for the user
    is_abandoned: bool


def described(cx: sqlite3.Connection) -> list[Unfinished]:
    """Return the large writes that are not complete."""
    sql = """SELECT host, pid_namespace, pid, started, id, touched, first, total, done, coalesce(
            (SELECT action FROM large_write_part WHERE large_write = large_write.id ORDER BY id LIMIT 1), '')
        FROM large_write ORDER BY id"""
    found = []
    for *holder, number, touched, first, total, done, action in cx.execute(sql).fetchall():
        owner = Holder(*holder)
        is_abandoned = _is_cut(number, owner, touched) if first else _is_abandoned(owner, touched)
        name = "an insert" if first else "the children of jobs that have ended" if action == CHILDREN else "a change"
        who = f"by process {owner.pid} on {owner.host}" if owner.pid else "by no process"
        fate = ""
        if is_abandoned:
            fate = "removes its jobs" if first else "completes it"
            fate = f"; the next command that changes jobs, a launcher or the service {fate}"
        found.append(Unfinished(f"{name} of {total} job(s), {done} of them done {who}{fate}", is_abandoned))
    return found


def advance_abandoned(db: Database) -> bool:
    """Do one piece of a write without a live owner. Return False if there is no such write. Opens transactions."""
    with db.session():
        with db.read() as cx:
            columns = "host, pid_namespace, pid, started, id, touched, first"
            rows = cx.execute(f"SELECT {columns} FROM large_write ORDER BY id").fetchall()
        for *holder, number, touched, first in rows:
            owner = Holder(*holder)
            if _is_cut(number, owner, touched) if first else _is_abandoned(owner, touched):
                if first and owner.pid:
                    with db.write() as cx:
                        large_writes.give_up(cx, number)
                return _advance(db, number) is not None
    return False


def _is_abandoned(owner: Holder, touched_us: int) -> bool:
    return owner.pid == 0 or owner.is_provably_dead() or SystemClock.now_us() - touched_us > ABANDONED_S * SECOND_US


#: Inserts by processes on other hosts: when they were last touched, and since when this process has known that.
_seen: dict[int, tuple[int, float]] = {}


def _is_cut(number: int, owner: Holder, touched_us: int) -> bool:
    """Return whether to undo an insert, which only its owner can complete. A stopped owner on this host counts as alive.

    The clocks of two hosts may differ: only the time for which this process has seen no change counts.
    """
    if owner.pid == 0 or owner.is_provably_dead():
        return True
    touched, since = _seen.setdefault(number, (touched_us, time.monotonic()))
    if touched != touched_us:
        _seen[number] = (touched_us, time.monotonic())
        return False
    return not owner.is_here() and time.monotonic() - since > SILENT_S


# --- holding ----------------------------------------------------------------------------------------------------------


# --- for tests --------------------------------------------------------------------------------------------------------

#: `NAME:N` kills the process when it reaches that place for the Nth time, as in launchers (`launcher.failpoints`).
FAILPOINT = "BALSAM_FAILPOINT"
_passes: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Kill this process here if a test has requested it."""
    armed = os.environ.get(FAILPOINT)
    if armed:
        _passes[name] += 1
        if armed == f"{name}:{_passes[name]}":
            os.kill(os.getpid(), signal.SIGKILL)
