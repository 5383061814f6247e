"""Run users' SQL over the views (see `views`): it only reads, for a limited time.

The views are made in the temporary schema of a separate connection. An authorizer lets a query read them and nothing else, so
that neither jobs that are still being added nor secret variables are seen. Each view reads the tables through an inner view
with a random name, by which the authorizer knows that it is ours and no expression of the query that has its name.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...core import field_specs
from ...core.errors import DatabaseError, InputError, did_you_mean
from ...core.plain_values import json_of_result
from ..engine import filesystem
from ..engine.connection import Database
from .views import BY_NAME, VIEWS


class QueryTimeout(DatabaseError):
    """A query took longer than it may."""


@contextmanager
def opened(database: Database) -> Iterator[ReadOnlyViews]:
    """Open the views of a DB, as it is at one moment.

    On a local disk this is a read transaction, which writers do not notice. On a shared file system, where a transaction would
    stop all others, the file is copied to a temporary directory first; the DB is locked while it is copied.

    Raises:
        DatabaseError: the DB cannot be read, or the copy not be written.
    """
    own = Database(database.directory, database.access, busy_timeout_s=database.busy_timeout_s)
    if database.access == filesystem.LOCAL:
        try:
            with own.read() as cx:
                views = ReadOnlyViews(cx)
                try:
                    yield views
                finally:
                    views.release()
        finally:
            own.close()
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="balsam-read-") as folder:
        copy = sqlite3.connect(os.path.join(folder, "copy.sqlite3"), isolation_level=None)
        try:
            with own.read() as cx:
                cx.backup(copy)
            copy.execute("BEGIN")
            yield ReadOnlyViews(copy)
        finally:
            copy.close()


class ReadOnlyViews:
    """A connection on which users' queries run."""

    def __init__(self, cx: sqlite3.Connection) -> None:
        self._cx = cx
        self._is_released = False
        self._inner = f"balsam_{os.urandom(8).hex()}_"
        self._denied: list[tuple[int, str | None, str | None]] = []
        cx.create_function("balsam_masked", 1, field_specs.masked_json, deterministic=True)
        cx.create_function("balsam_value", 1, json_of_result, deterministic=True)
        for view in VIEWS:
            columns = ", ".join(f"{column.sql} AS {column.name}" for column in view.columns)
            cx.execute(f"CREATE TEMP VIEW {self._inner}{view.name} AS SELECT {columns} FROM {view.source}")
            cx.execute(f"CREATE TEMP VIEW {view.name} AS SELECT * FROM {self._inner}{view.name}")
        for name in _TABLE_FUNCTIONS:  # their first use declares them, which the authorizer would take for a change
            cx.execute(f"SELECT 1 FROM {name}('[]')").fetchall()
        cx.execute("PRAGMA query_only = 1")
        cx.set_authorizer(self._authorize)

    def release(self) -> None:
        """Allow all statements again, such as the end of the transaction. (Python before 3.11 cannot remove an authorizer.)"""
        self._is_released = True
        self._cx.set_progress_handler(None, 0)

    def _authorize(self, action: int, first: str | None, second: str | None, schema: str | None, source: str | None) -> int:
        """Let a query read our views, and our views the tables. See https://sqlite.org/c3ref/c_alter_table.html."""
        if self._is_released or action in (_SELECT, _RECURSIVE) or (action == _FUNCTION and second != "load_extension"):
            return sqlite3.SQLITE_OK
        if action == _READ and first is not None:
            is_ours = source is not None and source.startswith(self._inner)
            is_hiding = (first, second) == ("large_write", "")  # SQLite does not tell which view asks whether there is any row
            if is_ours or is_hiding or first in (*BY_NAME, *_TABLE_FUNCTIONS) or first.startswith(self._inner):
                return sqlite3.SQLITE_OK
        self._denied.append((action, first, second))
        return sqlite3.SQLITE_DENY

    def query(self, sql: str, timeout_s: float) -> tuple[list[str], Iterator[Sequence[Any]]]:
        """Run a query; return the names of its columns, and its rows as they come, in which bytes are hexadecimal digits.

        Args:
            timeout_s: how long the query may take, with what is done with its rows meanwhile.

        Raises:
            InputError: it is no query, would change something, or names what there is not. QueryTimeout, also by the rows.
            KeyboardInterrupt, after Ctrl-C.
        """
        ends = time.monotonic() + timeout_s
        self._cx.set_progress_handler(lambda: time.monotonic() > ends, _INSTRUCTIONS)
        self._denied.clear()
        text = _without_comments(sql)
        if not text.strip(" \t\r\n;"):
            raise InputError(
                "The query is empty.", hint='An example: balsam sql "SELECT state, count(*) FROM jobs GROUP BY state"'
            )
        _refuse_quoted_text(text, sql)
        try:
            cursor = self._cx.execute(sql)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as exc:
            raise self._translated(exc, sql, ends, timeout_s) from exc
        if cursor.description is None:
            raise InputError("This statement yields no rows.", hint=_ONLY_READS)
        return [column[0] for column in cursor.description], self._rows(cursor, sql, ends, timeout_s)

    def _rows(self, cursor: sqlite3.Cursor, sql: str, ends: float, timeout_s: float) -> Iterator[Sequence[Any]]:
        try:
            while rows := cursor.fetchmany(1000):
                for row in rows:
                    yield row if bytes not in map(type, row) else [v.hex() if type(v) is bytes else v for v in row]
                if time.monotonic() > ends:
                    raise _timeout(timeout_s)
        except sqlite3.Error as exc:
            raise self._translated(exc, sql, ends, timeout_s) from exc

    def _translated(self, exc: Exception, sql: str, ends: float, timeout_s: float) -> BaseException:
        """Return the error to raise for one of SQLite."""
        text = str(exc)
        if "interrupted" in text:  # by the handler: also where Ctrl-C raised in it, an exception that SQLite drops
            return _timeout(timeout_s) if time.monotonic() > ends else KeyboardInterrupt()
        if self._denied:
            return _refused(*self._denied[0], sql)
        for pattern, translate in _ERRORS:
            if found := re.match(pattern, text, re.S):
                return translate(found, sql)
        return InputError(f"The query fails: {text}", hint=_ONLY_READS)


_SELECT, _READ, _FUNCTION, _RECURSIVE = 21, 20, 31, 33
#: What statements do, by SQLite's number of the action.
_ACTIONS = {
    18: "would add rows to {0}", 23: "would change {0}", 9: "would remove rows of {0}", 19: "is a PRAGMA ({0})",
    24: "would attach {0}", 25: "would detach {0}", 22: "would begin or end a transaction", 32: "would set a savepoint",
}  # fmt: skip
_TABLE_FUNCTIONS = ("json_each", "json_tree")
#: Instructions of SQLite's machine between two looks at the clock: some tenths of a millisecond.
_INSTRUCTIONS = 20_000
_ONLY_READS = "`balsam sql` runs one SELECT; `balsam sql --views` lists the views and their columns."


def _timeout(timeout_s: float) -> QueryTimeout:
    return QueryTimeout(
        f"The query took longer than {timeout_s:g} s and was ended.", hint="--timeout SECONDS lets it take longer."
    )


def _refused(action: int, first: str | None, second: str | None, sql: str) -> InputError:
    if action == _READ:
        return _no_view(str(first), sql)
    if action == _FUNCTION:
        return InputError(f"The function {second} cannot be used.")
    does = _ACTIONS.get(action, "would change the DB").format(first)
    if str(first).startswith("sqlite_"):
        does = "needs more than the views"
    return InputError(f"This statement {does}, and `balsam sql` only reads.", hint=_ONLY_READS)


def _no_view(name: str, sql: str) -> InputError:
    return InputError(
        f"There is no view {name!r}{_place(sql, name)}.{did_you_mean(name, BY_NAME)}",
        hint=f"The views are: {', '.join(BY_NAME)}",
    )


def _no_column(name: str, sql: str, is_ambiguous: bool) -> InputError:
    bare = name.rpartition(".")[2].strip('"')
    if is_ambiguous:
        return InputError(f"There are several columns {bare!r}{_place(sql, name)}: name the view, as in jobs.{bare}.")
    named = [view for view in VIEWS if re.search(rf"\b{view.name}\b", sql)] or VIEWS
    known = list(dict.fromkeys(column.name for view in named for column in view.columns))
    near = f"{did_you_mean(bare, known)} A key of data is json_extract(data, '$.{bare}')."
    return InputError(f"There is no column {name!r}{_place(sql, name)}.{near}", hint=f"Columns: {', '.join(known)}")


def _place(sql: str, word: str) -> str:
    """Return where a word is in the query, as far as it occurs; SQLite tells it to no Python."""
    start = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", sql) or re.search(re.escape(word), sql)
    if start is None or not word:
        return ""
    before = sql[: start.start()]
    return f" (line {before.count(chr(10)) + 1}, column {start.start() - before.rfind(chr(10))})"


def _refuse_quoted_text(text: str, sql: str) -> None:
    """Raise InputError for a name in double quotes that nothing has: SQLite would take it for text.

    Python can turn that off since 3.12.
    """
    known = {column.name for view in VIEWS for column in view.columns} | set(BY_NAME)
    quoted = re.findall(r'(\bAS\s+)?"((?:[^"]|"")*)"', re.sub(r"'(?:[^']|'')*'", "''", text), re.I)
    known |= {name for alias, name in quoted if alias}
    for _, name in quoted:
        if name not in known:
            raise _no_column(name, sql, is_ambiguous=False)


def _without_comments(sql: str) -> str:
    return re.sub(r"--[^\n]*|/\*.*?(\*/|\Z)", "", sql, flags=re.S)


#: What messages of SQLite begin with -> the error to raise.
_ERRORS: tuple[tuple[str, Callable[[re.Match[str], str], Exception]], ...] = (
    (".*one statement", lambda found, sql: InputError("There is more than one statement; give one query.", hint=_ONLY_READS)),
    (r"no such table: (?:main\.|temp\.)?(.*)", lambda found, sql: _no_view(found[1], sql)),
    ("no such column: (.*)", lambda found, sql: _no_column(found[1], sql, is_ambiguous=False)),
    ("ambiguous column name: (.*)", lambda found, sql: _no_column(found[1], sql, is_ambiguous=True)),
    ("no such function: (.*)", lambda found, sql: InputError(f"There is no function {found[1]!r}{_place(sql, found[1])}.")),
    (
        'near "(.*?)": syntax error',
        lambda found, sql: InputError(f"Syntax error near {found[1]!r}{_place(sql, found[1])}.", hint=_ONLY_READS),
    ),
    (
        ".*(full|disk I/O)",
        lambda found, sql: DatabaseError(
            f"The query cannot be finished: {found.string}", hint="SQLITE_TMPDIR names another directory for temporary files."
        ),
    ),
)


def unique_names(names: Iterable[str]) -> list[str]:
    """Return names of columns, those that came before with a number after them."""
    found: dict[str, None] = {}
    for name in names:
        number = 2
        new = name
        while new in found:
            new, number = f"{name}_{number}", number + 1
        found[new] = None
    return list(found)
