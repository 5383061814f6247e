"""Read the tables of an SQLite file that another program has made. The file is not changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

from ...core.errors import InputError
from . import filesystem

_MAGIC = b"SQLite format 3\0"


def is_sqlite(path: str) -> bool:
    """Return whether a file is one of SQLite. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def rows(path: str, ending: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table whose name ends so, by column, in the order of insertion; in one read transaction.

    Raises:
        InputError: there is no such table, or the file cannot be read.
    """
    try:
        cx = sqlite3.connect(f"file:{filesystem.quoted(path)}?mode=ro", uri=True, timeout=30)
        try:
            names = [name for (name,) in cx.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            found = [name for name in names if name == ending or name.endswith(f"_{ending}")]
            if len(found) != 1:
                raise InputError(f"{path} has no table {ending}; its tables are: {', '.join(sorted(names)) or 'none'}")
            cursor = cx.execute('SELECT * FROM "{}" ORDER BY rowid'.format(found[0].replace('"', '""')))
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                yield dict(zip(columns, row))
        finally:
            cx.close()
    except sqlite3.Error as exc:
        raise InputError(f"{path} cannot be read as an SQLite file: {exc}") from exc
