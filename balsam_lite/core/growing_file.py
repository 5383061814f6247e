"""Read files that other programs write meanwhile: the last lines, and then what is added, in pieces of bounded size."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO, NamedTuple

#: Maximum number of bytes of one piece.
PIECE_BYTES = 1 << 18
#: Bytes in which to look for the beginnings of the last lines; lines beyond are cut.
_MAX_SEARCH_BYTES = 1 << 27
_BLOCK_BYTES = 1 << 16


class Place(NamedTuple):
    """How far a file has been read."""

    inode: int
    offset: int


NOWHERE = Place(0, 0)


def _open(path: str) -> IO[bytes]:
    """Open a regular file; raise OSError (EINVAL) for a pipe or a device, which could block."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", path)
    return file


def place_of_last_lines(path: str, lines: int) -> Place:
    """Return the place at which the last `lines` lines of a file begin. Raises OSError."""
    with _open(path) as file:
        found = os.fstat(file.fileno())
        return Place(found.st_ino, _offset_of_last_lines(file, found.st_size, lines))


def _offset_of_last_lines(file: IO[bytes], end: int, lines: int) -> int:
    if lines == 0 or end == 0:
        return end
    least, missing, start = max(0, end - _MAX_SEARCH_BYTES), lines, end - 1  # the last byte may end the last line
    while start > least:
        size = min(_BLOCK_BYTES, start - least)
        block = os.pread(file.fileno(), size, start - size)
        newlines = block.count(b"\n")
        if newlines >= missing:
            at = len(block)
            for _ in range(missing):
                at = block.rindex(b"\n", 0, at)
            return start - size + at + 1
        missing -= newlines
        start -= size
    return least


def read_on(path: str, place: Place) -> tuple[bytes, Place]:
    """Return the next piece of a file and the place after it; of a file that was replaced or truncated, from its beginning.

    An empty piece is the present end of the file. Raises OSError.
    """
    with _open(path) as file:
        found = os.fstat(file.fileno())
        offset = place.offset if found.st_ino == place.inode and found.st_size >= place.offset else 0
        data = os.pread(file.fileno(), PIECE_BYTES, offset)
        return data, Place(found.st_ino, offset + len(data))
