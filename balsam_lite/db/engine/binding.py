"""Where a DB is: distinguish it from a copy of it, and change the paths in the rows of one that was moved.

The table `meta` records the path of the DB's file and the file's inode.

A DB that was renamed, moved to another file system, or restored in place is still the same DB. It is a copy if the file to
which it was bound still exists and is another one. A copy on another host is recognized by its inode. On network file systems,
which may change a file's inode (fuse, cifs), nothing is concluded from it.
"""

from __future__ import annotations

import json
import os
import sqlite3
from typing import NamedTuple

from . import filesystem

_KEY = "file"
#: Recorded in a backup. No file has this inode, so a backup that is put into use is always recognised as a copy.
NO_INODE = 0

SAME, MOVED, COPY = "same", "moved", "copy"


class Binding(NamedTuple):
    """The file to which a DB was bound."""

    inode: int
    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.path} on {self.host}" if self.inode else f"a backup of {self.path} on {self.host}"

    def is_at(self, path: str) -> bool:
        """Return whether `path` is the bound place."""
        return self.host == os.uname().nodename and self.path == os.path.realpath(path)


def recorded(cx: sqlite3.Connection) -> Binding | None:
    """Return what the DB is bound to; None if `init` has not bound it yet."""
    row = cx.execute("SELECT value FROM meta WHERE key = ?", (_KEY,)).fetchone()
    if row is None:
        return None
    return Binding(*json.loads(row[0]))


def record(cx: sqlite3.Connection, path: str, inode: int | None = None) -> None:
    """Bind the DB to the file `path`, or to one with that inode. Runs inside the caller's write transaction."""
    bound = Binding(os.stat(path).st_ino if inode is None else inode, os.uname().nodename, os.path.realpath(path))
    cx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (_KEY, json.dumps(bound)))  # a path need not be UTF-8


def judge(cx: sqlite3.Connection, path: str) -> str:
    """Return whether the open file `path` is the bound one (SAME), was MOVED or restored, or is a COPY.

    A moved DB must be rebound: otherwise a copy of it would seem to be moved, too.
    """
    bound = recorded(cx)
    if bound is None:
        return SAME
    if bound.inode == NO_INODE:
        return COPY
    here = os.stat(path)
    is_of_host = bound.host == os.uname().nodename
    if not is_of_host or bound.path == os.path.realpath(path):
        return SAME if bound.inode == here.st_ino else MOVED if is_of_host else COPY
    try:
        if os.path.samestat(os.stat(bound.path), here):  # by another path, such as that of a bind mount
            return SAME
    except OSError:
        return MOVED
    return COPY if _has_id(bound.path, id_of(cx)) else MOVED


def renew_id(cx: sqlite3.Connection) -> None:
    """Give a copy an id that differs from the original's. Runs inside the caller's write transaction."""
    cx.execute("UPDATE meta SET value = lower(hex(randomblob(16))) WHERE key = 'id'")


def id_of(cx: sqlite3.Connection) -> str:
    """Return the random text that distinguishes this DB from all others, even its copies. Needs a transaction."""
    return str(cx.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0])


def _has_id(path: str, db_id: str) -> bool:
    """Return whether the DB there has that id, as far as it can be read: a new DB may have been created there."""
    try:
        other = sqlite3.connect(f"file:{filesystem.quoted(path)}?mode=ro", uri=True, timeout=1)
        try:
            return id_of(other) == db_id
        finally:
            other.close()
    except (sqlite3.Error, TypeError):
        return True


# --- moved DBs ----------------------------------------------------------------------------------------------------------

#: Columns that may hold an absolute path below the DB's directory. Other user text is never changed.
_PATHS = (
    ("job", "user_workdir"), ("job", "workdir"), ("job", "stage_in_url"), ("job", "stage_out_url"), ("batch_job", "command"),
    ("batch_job", "log"),
)  # fmt: skip
#: Columns of an application with files that are run or read, possibly below the DB's directory.
_COMMANDS = ("executable", "preprocess", "postprocess", "envscript", "command_template", "definition")


def relocate(cx: sqlite3.Connection, old: str, new: str) -> int:
    """Replace the directory `old` by `new` at the start of stored paths. Return the number of changed paths."""
    changed = 0
    for table, column in _PATHS:
        changed += cx.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        ).rowcount
    return changed


def apps_with(cx: sqlite3.Connection, directory: str) -> list[str]:
    """Return the names of the applications that run or read a file below that directory."""
    where = " OR ".join(f"instr({column}, ?)" for column in _COMMANDS)
    query = f"SELECT name FROM app WHERE {where} ORDER BY id"
    return [row[0] for row in cx.execute(query, [f"{directory}/"] * len(_COMMANDS))]
