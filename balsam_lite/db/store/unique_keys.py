"""Unique keys of jobs: add a job only if none has its key yet.

An index keeps the keys unique, among hidden jobs too. Two inserts that both hide jobs could hold keys of one another, and a
key of a hidden job may still disappear. Therefore inserts of jobs with keys wait for each other (`when_free`): while one of
them hides jobs, no other one begins.
"""

from __future__ import annotations

import json
import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ...core import states
from ...core.errors import DatabaseBusy, DuplicateKey, InvalidSpec
from ..collected import Skipped
from ..engine.connection import Database
from ..engine.schema import HAS_KEY
from ..query import queries
from . import pieces

#: Raise DuplicateKey for a key that exists already, or leave out the job.
REFUSE, SKIP = "refuse", "skip"
#: Longest wait for another insert of jobs with keys.
_TIMEOUT_S = 300.0
#: Seconds of that wait after which it is reported, and between two reports.
_REPORT_S, _REPEAT_S = 3.0, 30.0
#: What to do about DuplicateKey.
_HINT = "`--on-duplicate skip`, in Python on_duplicate='skip', adds only the others."

#: A job with a key: its position in the batch, counted from 0, and the key.
KeyedJob = tuple[int, str]


def check_mode(on_duplicate: str) -> None:
    """Raise InvalidSpec unless `on_duplicate` is `REFUSE` or `SKIP`."""
    if on_duplicate not in (REFUSE, SKIP):
        raise InvalidSpec(f"on_duplicate must be {REFUSE!r} or {SKIP!r}, not {on_duplicate!r}")


class _Hiding(NamedTuple):
    """An insert of jobs with keys that is not complete."""

    host: str
    pid: int
    total: int
    done: int


def _hiding(cx: sqlite3.Connection) -> _Hiding | None:
    row = cx.execute("SELECT host, pid, total, done FROM large_write WHERE has_keys LIMIT 1").fetchone()
    return None if row is None else _Hiding(*row)


@contextmanager
def when_free(db: Database, has_keys: bool) -> Iterator[sqlite3.Connection]:
    """Open a write transaction as `pieces.few` does; with `has_keys` only when no other insert hides jobs with keys.

    A long wait is reported by `logging`, on stderr unless the program has other handlers.

    Raises:
        DatabaseBusy: another insert takes too long, or a transaction is open, in which nothing can be waited for.
    """
    report_at = time.monotonic() + _REPORT_S
    until = time.monotonic() + _TIMEOUT_S
    while True:
        with pieces.few(db) as cx:
            other = _hiding(cx) if has_keys else None
            if other is None:
                yield cx
                return
        what = f"Process {other.pid} on {other.host} is adding {other.total} jobs with unique keys; {other.done} are done."
        if db.is_in_transaction or time.monotonic() > until:
            raise DatabaseBusy(what, hint="Until it has ended no other job with a unique_key can be added. Try again later.")
        if time.monotonic() >= report_at:
            import logging  # here, not above: hardly any insert needs it

            logging.getLogger(__name__).warning("%s This insert waits for it.", what)
            report_at += _REPEAT_S
        pieces.pause(db, 0)


def find_duplicates(db: Database, keyed: Iterable[Sequence[KeyedJob]], on_duplicate: str, jobs: int) -> Skipped:
    """Return which jobs of a batch have the key of another job, in the DB or before them in the batch.

    Opens read transactions, or joins the open transaction. Memory is constant but for 16 bytes a duplicate.

    Args:
        keyed: the jobs with keys, in pieces of a few thousand, in order. jobs: the number of jobs in the batch.

    Raises:
        DuplicateKey: there is one, and `on_duplicate` is `REFUSE`; it names the first one, and their number.
    """
    positions, owners = array("q"), array("q")
    first = ""
    seen = KeysSoFar()
    for some in keyed:
        with db.read() as cx:
            query = f"SELECT unique_key, id FROM job WHERE {HAS_KEY} AND unique_key IN (SELECT value FROM json_each(?))"
            present = dict(cx.execute(query, (json.dumps([key for _, key in some]),)))
        before = seen.add(some) if jobs > 1 else {}
        for position, key in some if present or before else ():
            owner = present.get(key) or before.get(position)
            if owner is not None:
                positions.append(position)
                owners.append(owner)
                if len(positions) == 1:
                    first = key
    if positions and on_duplicate == REFUSE:
        with db.read() as cx:
            raise _refusal(cx, first, positions, owners)
    return Skipped(positions, owners)


def release_failed(cx: sqlite3.Connection, keys: Sequence[str]) -> None:
    """Take these keys from calls that have failed, were killed, or have no result, so that others may have them."""
    has_failed = f"state IN ('{states.FAILED}', '{states.USER_KILLED}')"
    has_result = "EXISTS (SELECT 1 FROM call WHERE call.job = job.id AND result IS NOT NULL)"
    cx.execute(
        f"UPDATE job SET unique_key = NULL WHERE {HAS_KEY} AND unique_key IN (SELECT value FROM json_each(?)) "
        f"AND ({has_failed} OR (state = '{states.JOB_FINISHED}' AND NOT {has_result}))",
        (json.dumps(keys),),
    )


def _refusal(cx: sqlite3.Connection, key: str, positions: Sequence[int], owners: Sequence[int]) -> DuplicateKey:
    of = _label(cx, owners[0]) if owners[0] > 0 else f"job number {-owners[0]} of the same batch"
    others = len(positions) - 1
    more = f"; {others} more of these jobs {'has' if others == 1 else 'have'} the key of another one" if others else ""
    text = f"Job number {positions[0] + 1}: the unique_key {key!r} is that of {of} already{more}. Nothing was added."
    return DuplicateKey(text, hint=_HINT)


def _label(cx: sqlite3.Connection, job: int) -> str:
    name, job_id = queries.columns_of(cx, [job], ("name", "job_id"))[job]
    return f"job {f'{name} ' if name else ''}[{job_id[: queries.SHORT_ID]}] (#{job})"


class KeysSoFar:
    """The keys of a batch, as they are read: in a temporary file of SQLite beyond 64 MiB."""

    def __init__(self) -> None:
        self._cx: sqlite3.Connection | None = None

    def add(self, keyed: Sequence[KeyedJob]) -> dict[int, int]:
        """Add keys. Return the positions whose key is there already -> -1 - the position of the first job with it."""
        if self._cx is None:
            self._cx = sqlite3.connect("", isolation_level=None)
            self._cx.execute("PRAGMA cache_size = -65536")  # KiB
            self._cx.execute("CREATE TABLE seen (key TEXT PRIMARY KEY, position INTEGER) WITHOUT ROWID")
            self._cx.execute("BEGIN")
        before = self._cx.total_changes
        self._cx.executemany("INSERT OR IGNORE INTO seen (position, key) VALUES (?, ?)", keyed)
        if self._cx.total_changes - before == len(keyed):
            return {}
        query = "SELECT position FROM seen WHERE key = ?"
        firsts = ((position, self._cx.execute(query, (key,)).fetchone()[0]) for position, key in keyed)
        return {position: -1 - first for position, first in firsts if first != position}


def taken(cx: sqlite3.Connection, key: str) -> DuplicateKey:
    """Return the error for a key that another process gave to a job while this one was adding jobs."""
    row = cx.execute(f"SELECT id FROM job WHERE {HAS_KEY} AND unique_key = ?", (key,)).fetchone()
    of = _label(cx, row[0]) if row else "another job"
    return DuplicateKey(
        f"The unique_key {key!r} has meanwhile become that of {of}. Nothing was added.", hint="Add the jobs again."
    )
