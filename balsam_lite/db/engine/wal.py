"""Detect that the `-wal` or `-shm` of a local DB was deleted or replaced, and restore the data that only this process has.

SQLite neither notices nor documents a remedy: "If a database file is separated from its WAL file, then transactions that were
previously committed might be lost" (https://sqlite.org/wal.html#walfile). A process that had the file open keeps its contents
until it ends; others would continue with an older state. Both files keep their inodes as long as any connection is open: only
the last one to close removes them, under an exclusive lock. So another inode means that another program has replaced a file.

The layouts are those of https://sqlite.org/walformat.html. Never opens the database file or the `-shm`: closing a descriptor
would drop SQLite's locks (https://sqlite.org/howtocorrupt.html#posix_close_bug).

A DB that this user cannot write is also read here: while `-wal` and `-shm` exist, SQLite reads a WAL database without
writing (https://sqlite.org/wal.html#readonly). Otherwise `immutable=1` (https://sqlite.org/uri.html#uriimmutable) is correct
while there is no WAL and no process writes. A WAL that was left without its `-shm`, and every DB that is opened in sessions,
is read from a private copy.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from ...core import files
from ...core.errors import DatabaseBusy, DatabaseError
from . import filesystem

_HEADER, _FRAME_HEADER = 32, 24
#: The bytes that every connection that has read a WAL database locks (os_unix.c: SHARED_FIRST, SHARED_SIZE).
_SHARED_LOCK = ["1073741826", "1073742335"]

File = tuple[int, int]  # device and inode


class Sides(NamedTuple):
    """The WAL and its index as one connection has them open, or as they are at their paths; None: does not exist."""

    wal: File | None
    shm: File | None


def sides_of(path: str) -> Sides:
    """Return the WAL and `-shm` beside the database file `path`."""
    return Sides(_file_at(f"{path}-wal"), _file_at(f"{path}-shm"))


def _file_at(path: str) -> File | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class _Index(NamedTuple):
    """The header of the `-shm`: the state of the WAL."""

    frames: int
    backfilled: int  # frames that are in the database file, too
    page_bytes: int
    salts: bytes
    checksums: bytes  # of the last frame, as stored there

    def frame_at(self, number: int) -> int:
        return _HEADER + (number - 1) * (_FRAME_HEADER + self.page_bytes)

    def header_of(self, handle: int, number: int) -> bytes:
        """Return the salts and checksums of a frame; fewer bytes at the end of the file."""
        return os.pread(handle, 16, self.frame_at(number) + 8)

    def is_whole(self, handle: int) -> bool:
        """Return whether that file holds all frames. Each checksum covers all previous data, and each frame has the salts."""
        if not all(self.header_of(handle, number)[:8] == self.salts for number in range(1, self.frames + 1)):
            return False
        return not self.frames or self.header_of(handle, self.frames)[8:] == self.checksums


def _read_index(handle: int) -> _Index:
    data = os.pread(handle, 136, 0)
    if len(data) < 136:
        return _Index(0, 0, 0, b"", b"")

    def word(at: int) -> int:
        return int.from_bytes(data[at : at + 4], sys.byteorder)

    size = int.from_bytes(data[14:16], sys.byteorder)
    sums = word(24).to_bytes(4, "big") + word(28).to_bytes(4, "big")
    return _Index(word(16), word(96), (size & 0xFE00) + ((size & 1) << 16), data[32:40], sums)


def _handle_of(file: File | None) -> int | None:
    """Return the descriptor with which this process has a file open."""
    for name in os.listdir("/dev/fd"):
        with suppress(OSError, ValueError):
            found = os.fstat(int(name))
            if (found.st_dev, found.st_ino) == file:
                return int(name)
    return None


def put_back(path: str, mine: Sides) -> str:
    """Write the WAL that a connection of this process has open back to its place, unless all of it is there.

    The caller holds the write lock with that connection, and reopens the DB afterwards. If the `-shm` was changed as well,
    other processes may share no lock with this one: nothing is written if one of them wrote anything.

    Returns why this cannot be done; "" if nothing is lost. Raises OSError if the WAL cannot be written.
    """
    wal, shm = _handle_of(mine.wal), _handle_of(mine.shm)
    if wal is None or shm is None:
        return "it cannot be read any more"
    index, there = _read_index(shm), sides_of(path)
    is_indexed_alike = there.shm == mine.shm
    if not index.frames or (index.frames == index.backfilled and not is_indexed_alike):
        return ""
    try:
        other = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        other = -1
    try:
        if other >= 0 and is_indexed_alike and index.is_whole(other):
            return ""
        if not index.is_whole(wal):
            return "another program has written to the new one"
        if other >= 0 and not is_indexed_alike and _has_more(other, wal, index):
            return "another program has written to the new one"
        if there.wal != mine.wal:
            _copy(wal, index.frame_at(index.frames + 1), path)
    finally:
        if other >= 0:
            os.close(other)
    return ""


def _has_more(other: int, mine: int, index: _Index) -> bool:
    """Return whether a WAL contains anything that is not in `mine`, whose index is no longer shared by all."""
    size = os.fstat(other).st_size
    if not size:
        return False
    if os.pread(other, 8, 16) != index.salts:
        return True
    number = 1
    while index.frame_at(number) < size:
        header = index.header_of(other, number)
        if header[:8] == index.salts and (number > index.frames or header != index.header_of(mine, number)):
            return True
        number += 1
    return False


def _copy(wal: int, size: int, path: str) -> None:
    """Replace the `-wal` with a complete copy of a file, or leave it unchanged."""
    like = os.stat(path)
    with files.replacing(f"{path}-wal", is_durable=True) as temporary:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            at = 0
            while at < size:
                piece = os.pread(wal, min(size - at, 1 << 20), at)
                if not piece:
                    raise OSError(f"the open WAL ends at {at}, not at {size}")
                file.write(piece)
                at += len(piece)
            os.fchmod(handle, like.st_mode & 0o777)
            with suppress(PermissionError):
                os.fchown(handle, like.st_uid, like.st_gid)


def is_unused(path: str) -> bool:
    """Return whether no process has the database `path` open, which has neither a WAL nor a `-shm`; False also if unknown.

    A connection gets the exclusive lock of a WAL database (https://sqlite.org/wal.html#noshm) only if no other one has read it.
    It takes 0.1 ms; the first process that reads /proc/locks after a while waits 10 to 20 ms for all CPUs (in Linux 6.18).
    """
    try:
        cx = sqlite3.connect(f"file:{filesystem.quoted(path)}?mode=rw", uri=True, timeout=0, isolation_level=None)
        try:
            cx.execute("PRAGMA locking_mode = EXCLUSIVE")
            cx.execute("PRAGMA user_version")
        finally:
            cx.close()
    except sqlite3.Error:
        return False
    return True


def holder_of(path: str) -> int | None:
    """Return the pid of another process that has the database open, as far as /proc/locks (proc(5)) shows it; else None.

    The kernel prints the table in pages, and may skip a lock while others change; so it is read twice.
    """
    try:
        here = os.stat(path)
        lines = []
        for _ in range(2):
            with open("/proc/locks", encoding="ascii") as file:
                lines += [line.split() for line in file]
    except OSError:
        return None
    for words in lines:
        if len(words) < 8 or words[1] != "POSIX" or words[-2:] != _SHARED_LOCK:
            continue
        major, minor, inode = words[-3].split(":")
        pid = int(words[-4])
        if int(inode) != here.st_ino or pid == os.getpid():
            continue
        # btrfs and overlayfs report another device number here than stat(2) does.
        if (int(major, 16), int(minor, 16)) == (os.major(here.st_dev), os.minor(here.st_dev)) or _has_open(pid, here):
            return pid
    return None


def _has_open(pid: int, here: os.stat_result) -> bool:
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), here):
                    return True
    return False


_PAUSE_S = 0.05


class State(NamedTuple):
    """The inode, size and time of the file, and size and time of the WAL: every write changes one of them."""

    file: tuple[int, int, int]
    wal: tuple[int, int]  # zeros if it is empty or missing


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
    """Return whether this user lacks write permission for the directory or the file."""
    return not (os.access(directory, os.W_OK) and os.access(path, os.W_OK))


def private_copy(path: str, is_free: Callable[[], bool], patience_s: float) -> str:
    """Copy the file and its WAL, while there are no writes, to a new temporary directory; return the copy's path.

    `is_free` returns whether no process is writing. The caller removes the directory.

    Raises:
        DatabaseBusy: others kept writing for `patience_s` seconds. DatabaseError: it cannot be copied.
    """
    import shutil  # here, not above: it takes longer to import than `ls` takes to read
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
