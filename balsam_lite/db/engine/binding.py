"""Tell a DB from a copy of it: the table `meta` records where its file is, and the file's inode.

A DB that was renamed, moved to another file system, or restored in its place is still the same DB. It is a copy if the file
that it was bound to still exists and is another one. A copy on another host is known by its inode. On network file systems,
which may give a file a new number (fuse, cifs), nothing is concluded from that.
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
    """The file that a DB was bound to."""

    inode: int
    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.path} on {self.host}" if self.inode else f"a backup of {self.path} on {self.host}"

    def is_at(self, path: str) -> bool:
        """Return whether that is its place."""
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

    One that was moved is to be bound anew: else a copy of it would seem to be moved, too.
    """
    bound = recorded(cx)
    if bound is None:
        return SAME
    if bound.inode == NO_INODE:
        return COPY
    here = os.stat(path)
    if bound.is_at(path) or bound.host != os.uname().nodename:
        other = MOVED if bound.is_at(path) else COPY
        return SAME if bound.inode == here.st_ino else other
    try:
        if os.path.samestat(os.stat(bound.path), here):  # by another name, such as that of a bind mount
            return SAME
    except OSError:
        return MOVED
    return COPY if _has_id(bound.path, id_of(cx)) else MOVED


def renew_id(cx: sqlite3.Connection) -> None:
    """Give a copy an id that the original does not have. Runs inside the caller's write transaction."""
    cx.execute("UPDATE meta SET value = lower(hex(randomblob(16))) WHERE key = 'id'")


def id_of(cx: sqlite3.Connection) -> str:
    """Return the random text that tells this DB from all others, its copies among them. Needs a transaction."""
    return str(cx.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0])


def _has_id(path: str, db_id: str) -> bool:
    """Return whether the DB there has that id, as far as it can be read: a new DB may have been made there."""
    try:
        other = sqlite3.connect(f"file:{filesystem.quoted(path)}?mode=ro", uri=True, timeout=1)
        try:
            return id_of(other) == db_id
        finally:
            other.close()
    except (sqlite3.Error, TypeError):
        return True
