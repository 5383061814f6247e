"""Write files completely or not at all, write files that are on the disk when the call returns, and lock between processes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Seconds between tries of a process that waits for a file lock.
_POLL_INTERVAL_S = 0.005
#: The errors of flock(2) and fcntl(2) on a file system without locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)


class LocksUnsupported(OSError):
    """The file system does not support locks."""


@contextmanager
def replacing(path: str, is_durable: bool = False) -> Iterator[str]:
    """Yield the name of a new file in the directory of `path`; rename that file to `path` at the end.

    Readers of `path` see either the old file or the new one. After an exception the new file is removed and `path` unchanged.
    With `is_durable` the file is on the disk when it gets its name, and its name when the block ends.
    """
    directory, name = os.path.split(path)
    short = os.fsdecode(os.fsencode(name)[:200])  # a file name has at most 255 bytes
    temporary = os.path.join(directory, f"{short}.{os.urandom(6).hex()}.new")
    try:
        yield temporary
        if is_durable:
            sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if is_durable:
        sync_directory(directory)


def write_new(path: str, data: str | bytes, mode: int = 0o666) -> None:
    """Create a file with that mode, less umask, or raise FileExistsError. Does not follow a link."""
    content = data.encode("utf-8", "surrogateescape") if isinstance(data, str) else data
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, mode), "wb") as file:
        file.write(content)


def write_atomic(path: str, data: str | bytes, mode: int = 0o666, is_durable: bool = False) -> None:
    """Write a file with that mode, less umask, so that readers see the old content or the new. Raises OSError."""
    with replacing(path, is_durable) as temporary:
        write_new(temporary, data, mode)


def write_json_atomic(path: str, value: object) -> None:
    """Write a small file that every user may read; it is on the disk when this returns. Raises OSError."""
    with replacing(path, is_durable=True) as temporary:
        write_new(temporary, json.dumps(value, indent=4) + "\n")
        os.chmod(temporary, 0o644)


def sync(path: str) -> None:
    """Wait until the content of a file is on the disk. Raises OSError. Not for a database file that this process has open."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_directory(path: str) -> None:
    """Wait until new and renamed names in a directory are on the disk.

    Ignores errors, as SQLite does (os_unix.c, unixSync): some network file systems cannot sync a directory.
    """
    with suppress(OSError):
        sync(path or ".")


@contextmanager
def locked(path: str, timeout_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file `path`, creating it; the lock ends with the block or the process. Never fork inside.

    Raises:
        TimeoutError: another process has held it for `timeout_s`. LocksUnsupported. OSError: the file cannot be written.
    """
    from filelock import FileLock, Timeout  # its import takes longer than that of all of core

    os.stat(os.path.dirname(path) or ".")  # filelock would create a directory that has been removed
    try:
        lock = FileLock(path, timeout_s, 0o600, fallback_to_soft=False)
    except TypeError:  # the versions for Python 3.9 have no such option, and do not fall back
        lock = FileLock(path, timeout_s, 0o600)
    try:
        lock.acquire(poll_interval=_POLL_INTERVAL_S)
    except Timeout:
        raise TimeoutError(errno.ETIMEDOUT, f"locked by another process for {timeout_s:g} s", path) from None
    except (NotImplementedError, OSError) as exc:
        if isinstance(exc, OSError) and exc.errno not in _NO_LOCKS:
            raise
        raise LocksUnsupported(errno.EOPNOTSUPP, "the file system has no locks", path) from exc
    try:
        yield
    finally:
        lock.release()
