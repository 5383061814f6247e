"""Is a directory on a disk of this host, or on a file system that several hosts share?

WAL keeps its index in shared memory, which only processes of one host have in common: see CONTRIBUTING, "The database".
Reads the mount table; never touches the directory.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

LOCAL, SHARED = "local", "shared"

#: File systems whose pages all processes that can reach them share. Anything else, known or not, counts as shared.
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
    """The mount that holds `directory`: the longest mount point above it, of those the last one mounted.

    `table` is the text of /proc/self/mountinfo (proc_pid_mountinfo(5)); by default it is read. Without one (macOS) the
    file system counts as local.
    """
    if table is None:
        try:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                table = file.read()
        except OSError:
            return Mount("/", "apfs", "?")
    path = os.path.realpath(directory)
    best = Mount("/", "unknown", "?")
    for line in table.split("\n"):  # not splitlines: a mount point may hold a form feed
        mount = _parse(line)
        if mount and _is_below(path, mount.point) and len(mount.point) >= len(best.point):
            best = mount
    return best


def _parse(line: str) -> Mount | None:
    # "36 35 98:0 /root /mount\\040point rw,noatime shared:1 - ext4 /dev/sda rw": fields before " - " vary in number.
    left, dash, right = line.partition(" - ")
    before, after = left.split(" "), right.split(" ")
    if not dash or len(before) < 5 or len(after) < 2:
        return None
    return Mount(_unescape(before[4]), after[0], _unescape(after[1]))


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _is_below(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")
