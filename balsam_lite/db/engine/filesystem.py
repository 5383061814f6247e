"""Determine whether a directory is on a disk of this host, or on a file system that several hosts share.

WAL keeps its index in shared memory, which only processes of one host have in common: see CONTRIBUTING, "The database".
Reads the mount table; never accesses the DB.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

LOCAL, SHARED = "local", "shared"

#: File systems whose pages all processes that can access them share. Any other file system counts as shared between hosts.
_LOCAL_TYPES = frozenset(
    [
        "ext2",
        "ext3",
        "ext4",
        "xfs",
        "btrfs",
        "zfs",
        "tmpfs",
        "ramfs",
        "overlay",
        "aufs",
        "f2fs",
        "jfs",
        "reiserfs",
        "bcachefs",
        "apfs",
        "hfs",
        "ufs",
    ]
)


class Mount(NamedTuple):
    """One line of the mount table."""

    point: str
    kind: str
    source: str

    @property
    def access(self) -> str:
        """LOCAL or SHARED."""
        return LOCAL if self.kind in _LOCAL_TYPES else SHARED

    def __str__(self) -> str:
        return f"{self.kind} file system {self.source} mounted on {self.point}"


def mount_of(directory: str, table: str | None = None) -> Mount:
    """Return the mount that holds `directory`: the longest mount point above it; of several, the last one mounted.

    `table` is the text of /proc/self/mountinfo (proc_pid_mountinfo(5)); by default it is read. Without it (macOS) the file
    system counts as local.
    """
    path = f"{os.path.realpath(directory)}/"
    mounts = mount_points(table).values()
    return max(
        (mount for mount in mounts if path.startswith(mount.point.rstrip("/") + "/")), key=lambda mount: len(mount.point)
    )


#: "36 35 98:0 /root /mount\040point rw,noatime shared:1 - ext4 /dev/sda rw": the number of fields before " - " varies. A mount
#: point may hold a form feed, which is a line break for some functions of Python.
_MOUNT = re.compile(r"^(?:[^ \n]+ ){4}([^ \n]+) (?:[^\n]*? )?- ([^ \n]+) ([^ \n]*)", re.MULTILINE)
_ESCAPE = re.compile(r"\\([0-7]{3})")


def mount_points(table: str | None = None) -> dict[str, Mount]:
    """Return the mounts by mount point; of several at one point the last. There is always one at the root."""
    if table is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                table = file.read()
        except OSError:
            return {"/": Mount("/", "apfs", "?")}
    found = {"/": Mount("/", "unknown", "?")}
    for point, kind, source in _MOUNT.findall(table):
        point, source = (_ESCAPE.sub(lambda one: chr(int(one[1], 8)), text) for text in (point, source))
        found[point] = Mount(point, kind, source)
    return found


def mounts_on_the_way(path: str, points: Mapping[str, Mount]) -> Iterator[Mount]:
    """Yield the mounts that an absolute path crosses, also through symbolic links; each before anything on it is accessed.

    So a caller that stops at a mount that may not answer is not blocked by it.
    """
    here, mount, ahead = "/", points["/"], _parts(path)
    yield mount
    for _ in range(_MAX_WAY):
        if not ahead:
            return
        name = ahead.pop()
        place = os.path.dirname(here) if name == ".." else os.path.join(here, name)
        before, mount = mount, next(points[above] for above in _upwards(place) if above in points)
        if mount != before:
            yield mount
        try:
            link = os.readlink(place)
        except OSError:  # not a link, or nothing exists
            here = place
            continue
        if link.startswith("/"):
            here = "/"
        ahead += _parts(link)


#: Maximum number of links to follow: a cycle of links leads nowhere.
_MAX_WAY = 1000


def _parts(path: str) -> list[str]:
    """Return the names in a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _upwards(path: str) -> Iterator[str]:
    """Yield an absolute path, and all directories above it."""
    while path != "/":
        yield path
        path = os.path.dirname(path)
    yield path


def clock_ahead_s(directory: str) -> float | None:
    """Return by how many seconds the clock that dates new files there is ahead of this host's; None if it cannot be read."""
    path = os.path.join(directory, f".balsam-part-{os.urandom(8).hex()}")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            before = time.time()
            os.write(handle, b"\n")
            os.fsync(handle)  # then the server has dated it
            after, written = time.time(), os.fstat(handle).st_mtime
        finally:
            os.close(handle)
            os.unlink(path)
    except OSError:
        return None
    return min(written - before, 0.0) or max(written - after, 0.0)


# --- full file systems ------------------------------------------------------------------------------------------------

#: Size of the file written to test for space. A transaction needs a few pages.
_SAMPLE_BYTES = 64 * 1024


def try_to_write(directory: str) -> OSError | None:
    """Write a small hidden file and remove it. Return the error, or None."""
    path = os.path.join(directory, f".balsam-part-{os.urandom(8).hex()}")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            try:
                rest = memoryview(os.urandom(_SAMPLE_BYTES))  # random, as some file systems compress
                while rest:
                    rest = rest[os.write(handle, rest) :]
            finally:
                os.close(handle)  # NFS reports here that a quota is exhausted
        finally:
            os.unlink(path)
    except OSError as exc:
        return exc
    return None


def is_short(directory: str) -> bool:
    """Return whether a file system reports that it is nearly full; it does not report quotas. Raises OSError."""
    found = os.statvfs(directory)
    free = found.f_bfree if os.geteuid() == 0 else found.f_bavail
    return free * found.f_frsize < _SAMPLE_BYTES or (found.f_files > 0 and not found.f_favail)


def why_full(directory: str, code: int | None) -> str:
    """Return why nothing could be written there, if `code` (an errno) means a full disk, no inodes or a quota; else "".

    A project or directory quota may look like a full disk: xfs_quota(8) returns ENOSPC for it.
    """
    if code == errno.EDQUOT:
        return f"The quota for {directory} is used up"
    if code != errno.ENOSPC:
        return ""
    try:
        found = os.statvfs(directory)
    except OSError:
        return f"The disk of {directory} is full"
    if found.f_files and not found.f_favail:
        return f"The disk of {directory} is out of inodes (it has {found.f_files}, one for each file and directory)"
    free_mib = found.f_bavail * found.f_frsize // 2**20
    return f"The disk of {directory} is full{f' ({free_mib} MiB are free: is there a quota?)' if free_mib else ''}"


def is_lack(exc: OSError) -> bool:
    """Return whether the disk is full, out of inodes or over its quota."""
    return exc.errno in (errno.ENOSPC, errno.EDQUOT)


def failure(exc: OSError, path: str, otherwise: str | None = None) -> str:
    """Return as text why a file at `path` cannot be written: what its disk lacks, else `otherwise` or the error."""
    full = why_full(existing(path), exc.errno)
    return full[0].lower() + full[1:] if full else otherwise or str(exc)


def existing(path: str) -> str:
    """Return the path if it is a directory, else the nearest one above it."""
    while path and not os.path.isdir(path):
        above = os.path.dirname(path)
        if above == path:
            break
        path = above
    return path or "/"


def quoted(path: str) -> str:
    """Return `path` as a part of a file: URI (https://sqlite.org/uri.html). `urllib.parse` would take long to import."""
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
