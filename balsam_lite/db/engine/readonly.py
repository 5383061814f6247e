"""Read a DB that this user cannot write: another user's, or one on a read-only mount.

While the files `-wal` and `-shm` are there, SQLite reads a WAL database without writing (https://sqlite.org/wal.html#readonly).
Else `immutable=1` (https://sqlite.org/uri.html#uriimmutable) is right while there is no WAL and no process writes. A WAL
that was left without its `-shm`, and every DB that is opened in sessions, is read from a private copy.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from ...core.errors import DatabaseBusy, DatabaseError

_PAUSE_S = 0.05


class State(NamedTuple):
    """The inode, size and time of the file, and size and time of the WAL: every write changes one of them."""

    file: tuple[int, int, int]
    wal: tuple[int, int]  # zeros if it is empty or not there


def state_of(path: str) -> State:
    """Return the state of the database file `path`. Raises OSError."""
    found = os.stat(path)
    try:
        wal = os.stat(f"{path}-wal")
    except FileNotFoundError:
        wal = None
    return State(
        (found.st_ino, found.st_size, found.st_mtime_ns), (wal.st_size, wal.st_mtime_ns) if wal and wal.st_size else (0, 0)
    )


def is_refused(directory: str, path: str) -> bool:
    """Return whether this user cannot write both the directory and the file."""
    return not (os.access(directory, os.W_OK) and os.access(path, os.W_OK))


def private_copy(path: str, is_free: Callable[[], bool], patience_s: float) -> str:
    """Copy the file and its WAL, at a moment without writes, into a new temporary directory; return the copy's path.

    `is_free` tells whether no process is writing. The caller removes the directory.

    Raises:
        DatabaseBusy: others kept writing for `patience_s` seconds. DatabaseError: it cannot be copied.
    """
    import shutil  # here, not above: they take longer to import than `ls` takes to read
    import tempfile

    started = time.monotonic()
    folder = tempfile.mkdtemp(prefix="balsam-read-")
    copy = os.path.join(folder, os.path.basename(path))
    try:
        while True:
            before = state_of(path)
            if is_free():
                shutil.copyfile(path, copy)
                if before.wal[0]:
                    shutil.copyfile(f"{path}-wal", f"{copy}-wal")
                if is_free() and state_of(path) == before:
                    return copy
            if time.monotonic() - started > patience_s:
                raise DatabaseBusy(
                    f"The DB {os.path.dirname(path)} was written all the time and could not be read.", hint="Try again."
                )
            time.sleep(_PAUSE_S)
    except BaseException as exc:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(exc, OSError):
            raise DatabaseError(f"{path} cannot be copied to {folder} for reading: {exc.strerror or exc}") from exc
        raise
