"""Small files of a DB and its user, such as the list of known sites: written whole, and on the disk when the write returns."""

from __future__ import annotations

import json
import os
from contextlib import suppress


def write_json(path: str, value: object) -> None:
    """Write a file so that readers see the old or the new one, never a part, also after a power cut."""
    import tempfile  # here, not above: importing it takes a fifth of the time of `balsam ls`

    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=os.path.basename(path))
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=4)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    sync_directory(os.path.dirname(path))


def sync(path: str) -> None:
    """Wait until the content of a file is on the disk. Raises OSError. Not for a database file that this process has open."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_directory(path: str) -> None:
    """Wait until new names and renames in a directory are on the disk.

    Ignores errors, as SQLite does (os_unix.c, unixSync): some network file systems cannot sync a directory.
    """
    with suppress(OSError):
        sync(path or ".")
