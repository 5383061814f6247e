"""Does the way in which a DB is opened keep its promise here? Several processes, on one host or many, count in a scratch DB.

Each of them adds one to a number and writes a row about it, as often as it can for a few seconds. If the locks hold, the
number at the end is the sum of what they say they did. The scratch DB lies beside the real one, which is not touched.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ...core.errors import DatabaseError, DatabaseReadOnly
from ...core.identity import Holder
from ...core.settings import Settings
from . import directories
from .connection import Connection, Database
from .filesystem import failure

_PREFIX = "selftest-"
_CALLED_OFF = "called-off"
#: Seconds until all of them must have begun. Python starts slowly from a parallel file system, and batch steps queue.
GATHERING_S = 40.0


class TesterReport(NamedTuple):
    """What one tester says it did."""

    name: str
    host: str
    pid_namespace: str
    commits: int
    slowest_s: float  # its slowest transaction, waiting included
    met_s: float  # when it saw that all had come, by its host's clock

    def as_text(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def parsed(cls, text: str) -> TesterReport | None:
        """From what a tester printed, whatever a login shell or a batch system put before it; None if it is not there."""
        for line in reversed(text.splitlines()):
            try:
                return cls(**json.loads(line))
            except (ValueError, TypeError, RecursionError):
                continue
        return None


@contextmanager
def scratch(db: Database) -> Iterator[str]:
    """The directory of a scratch DB beside `db`, opened in the same way; gone at the end."""
    try:
        directory = tempfile.mkdtemp(prefix=_PREFIX, dir=db.directory)
    except OSError as exc:
        kind = DatabaseReadOnly if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else DatabaseError
        raise kind(f"The DB {db.directory} cannot be written: {failure(exc, db.directory)}") from exc
    try:
        made = directories.set_up(directory, db.access)
        with made.write() as cx:
            cx.execute("CREATE TABLE tester (name TEXT PRIMARY KEY)")
            cx.execute("CREATE TABLE tally (tester TEXT, n INTEGER)")
            cx.execute("CREATE TABLE total (n INTEGER)")
            cx.execute("INSERT INTO total VALUES (0)")
        made.close()
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def call_off(directory: str) -> None:
    """Let testers that wait for others go home."""
    try:
        os.close(os.open(os.path.join(directory, _CALLED_OFF), os.O_WRONLY | os.O_CREAT, 0o644))
    except OSError:  # then they go when their time is over
        pass


def count(directory: str, name: str, testers: int, seconds: float) -> TesterReport:
    """Be one of so many testers: wait for the others, then count for so many seconds.

    Raises:
        DatabaseError: the scratch DB is not there, the others did not come, or the DB could not be used.
    """
    give_up = time.monotonic() + GATHERING_S

    def is_over() -> bool:
        return time.monotonic() > give_up or os.path.exists(os.path.join(directory, _CALLED_OFF))

    _wait(lambda: directories.is_db(directory), is_over, f"The scratch DB {directory} is not there.")
    db = directories.open_database(directory, Settings.load(os.path.dirname(directory)))
    with db.write() as cx:
        cx.execute("INSERT INTO tester VALUES (?)", (name,))
    _wait(lambda: _number_of(db) >= testers, is_over, f"Not all of the {testers} testers came.")
    met_s = time.time()
    done, slowest_s, started = 0, 0.0, time.monotonic()
    until = started + seconds
    while started < until:
        with db.write() as cx:
            _add_one(cx, name)
        done, ended = done + 1, time.monotonic()
        slowest_s, started = max(slowest_s, ended - started), ended
    db.close()
    me = Holder.current()
    return TesterReport(name, me.host, me.pid_namespace, done, round(slowest_s, 3), round(met_s, 3))


def _wait(condition: Callable[[], bool], is_over: Callable[[], bool], otherwise: str) -> None:
    while not condition():
        if is_over():
            raise DatabaseError(otherwise)
        time.sleep(0.1)


def _number_of(db: Database) -> int:
    with db.read() as cx:
        return int(cx.execute("SELECT count(*) FROM tester").fetchone()[0])


def _add_one(cx: Connection, name: str) -> None:
    n = cx.execute("SELECT n FROM total").fetchone()[0] + 1
    cx.execute("UPDATE total SET n = ?", (n,))
    cx.execute("INSERT INTO tally VALUES (?, ?)", (name, n))


def faults(directory: str, tallies: Sequence[TesterReport]) -> list[str]:
    """What of the testers' work is not in the scratch DB, or is in it twice; [] if nothing."""
    db = directories.open_database(directory)
    expected = sum(tally.commits for tally in tallies)
    with db.session():
        try:
            damage = [str(row[0]) for row in db.execute_outside_transaction("PRAGMA integrity_check(3)") if row[0] != "ok"]
            with db.read() as cx:
                found = _differences(cx, tallies, expected)
        except (DatabaseError, sqlite3.Error) as exc:
            return [f"the scratch DB cannot be read any more: {exc}"]
    db.close()
    return [*(f"the scratch DB is damaged: {text}" for text in damage), *found]


def _differences(cx: Connection, tallies: Sequence[TesterReport], expected: int) -> list[str]:
    total = cx.execute("SELECT n FROM total").fetchone()[0]
    differences = [] if total == expected else [f"{expected} were counted, but the number is {total}"]
    for tally in tallies:
        rows = cx.execute("SELECT count(*) FROM tally WHERE tester = ?", (tally.name,)).fetchone()[0]
        if rows != tally.commits:
            differences.append(f"{tally.name} on {tally.host} committed {tally.commits} rows, {rows} of them are there")
    twice = cx.execute("SELECT count(*) - count(DISTINCT n) FROM tally").fetchone()[0]
    return [*differences, f"{twice} numbers were given twice"] if twice else differences
