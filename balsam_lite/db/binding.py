"""Tell a DB from a copy of it: the table `meta` records the inode of the file, which a copy does not have.

A rename keeps the inode. A DB that was moved to another file system has another one, and nothing is left where it was. Only
on local disks is an inode a fact: network file systems may give a file a new number (fuse, cifs), and overlays when it is
first written, so nothing is concluded from it there.
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
_UNSTEADY = ("overlay", "aufs")

SAME, MOVED, COPY = "same", "moved", "copy"


class Binding(NamedTuple):
    """The file that a DB was bound to."""

    inode: int
    host: str
    path: str

    def __str__(self) -> str:
        return f"{self.path} on {self.host}" if self.inode else f"a backup of {self.path} on {self.host}"


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
    """Return whether the open file `path` is the bound one (SAME), was MOVED, or is a COPY.

    It counts as moved if no other file with that inode and the same DB id is where the bound one was.
    """
    bound = recorded(cx)
    if bound is None or bound.inode == os.stat(path).st_ino:
        return SAME
    if bound.inode != NO_INODE and filesystem.mount_of(os.path.dirname(path)).kind in _UNSTEADY:
        return SAME
    is_elsewhere = bound.host == os.uname().nodename and bound.path != os.path.realpath(path)
    return MOVED if is_elsewhere and bound.inode != NO_INODE and not _is_there(bound, _id(cx)) else COPY


def renew_id(cx: sqlite3.Connection) -> None:
    """Give a copy an id that the original does not have. Runs inside the caller's write transaction."""
    cx.execute("UPDATE meta SET value = lower(hex(randomblob(16))) WHERE key = 'id'")


def _id(cx: sqlite3.Connection) -> str:
    return str(cx.execute("SELECT value FROM meta WHERE key = 'id'").fetchone()[0])


def _is_there(bound: Binding, db_id: str) -> bool:
    try:
        if os.stat(bound.path).st_ino != bound.inode:
            return False
    except OSError:
        return False
    from .connection import quoted  # here, not above: it imports this module

    try:  # a new DB may have been given the inode of one that was moved away
        other = sqlite3.connect(f"file:{quoted(bound.path)}?mode=ro", uri=True, timeout=1)
        try:
            return _id(other) == db_id
        finally:
            other.close()
    except (sqlite3.Error, TypeError):
        return True
