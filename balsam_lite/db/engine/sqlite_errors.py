"""Translate SQLite's errors: what happened to which DB, why, and what to do next."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from ...core.errors import BalsamError, DatabaseBusy, DatabaseError, DatabaseFull, DatabaseReadOnly, NotABalsamDB
from . import filesystem


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Raise a DatabaseError that names the cause for each SQLite error in the block, except for invalid SQL."""
    try:
        yield
    except sqlite3.OperationalError as exc:
        raise translation(exc, path) from exc
    except sqlite3.DatabaseError as exc:
        if isinstance(exc, (sqlite3.IntegrityError, sqlite3.ProgrammingError)):
            raise
        raise translation(exc, path) from exc


def is_busy(exc: sqlite3.Error) -> bool:
    """Return whether another connection has the file locked."""
    return "locked" in str(exc)


def why_full(text: str, directory: str) -> str:
    """Return the shortage (space, inodes, quota) because of which SQLite could not write; else "".

    SQLite reports only ENOSPC at a write as SQLITE_FULL; a quota, or a full disk when the WAL's files are made, is an I/O
    error or a file that cannot be opened (os_unix.c of SQLite 3.31 to 3.50).
    """
    if not any(words in text for words in ("full", "disk I/O", "unable to open")):
        return ""
    for place in (directory, *_temporary_directory()):
        error = filesystem.try_to_write(place)
        reason = filesystem.why_full(place, error.errno) if error else ""
        if reason:
            return reason
    return f"The disk of {directory} is full" if "full" in text else ""


def _temporary_directory() -> list[str]:
    """Return where SQLite puts its temporary files (https://sqlite.org/tempfiles.html, section 5); [] if nowhere."""
    named = filter(None, map(os.environ.get, ("SQLITE_TMPDIR", "TMPDIR")))
    usable = [path for path in (*named, "/var/tmp", "/usr/tmp", "/tmp") if os.path.isdir(path) and os.access(path, os.W_OK)]
    return usable[:1]


def translation(exc: sqlite3.Error, path: str) -> BalsamError:
    """Return the error to raise for an SQLite error at the database file `path`."""
    text, directory = str(exc), os.path.dirname(path)
    if is_busy(exc):
        return DatabaseBusy(f"The DB {directory} is busy: {text}", hint="Try again.")
    full = why_full(text, directory)
    if full:
        return DatabaseFull(f"{full}; nothing was written.", hint="Free some space, try again.")
    unwritable = "unable to open" in text and os.path.isdir(directory) and not os.access(directory, os.W_OK)
    if unwritable or "readonly" in text or "read-only" in text:
        return DatabaseReadOnly(f"The DB {directory} cannot be written: {text}", hint="See the directory's permissions.")
    if "unable to open" in text:
        hint = "The directory and the files in it must be readable and writable for you."
        if _has_few_files_left():
            text, hint = "too many open files", "`ulimit -n` shows how many this process may have."
        return DatabaseError(f"The DB {directory} cannot be opened: {text}", hint=hint)
    if "not a database" in text or "malformed" in text:
        return NotABalsamDB(
            f"{path} is damaged or no database: {text}",
            hint="Restore a backup, or let `balsam db salvage NEW_DIR` read what can be read.",
        )
    return DatabaseError(f"The DB {directory}: {text}")


def _has_few_files_left() -> bool:
    """Return whether this process can hardly open another file: SQLite needs four, and does not report the shortage."""
    opened: list[int] = []
    try:
        for _ in range(2):
            opened += os.pipe()
    except OSError as exc:
        return exc.errno in (errno.EMFILE, errno.ENFILE)
    finally:
        for handle in opened:
            os.close(handle)
    return False
