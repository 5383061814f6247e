"""Put a whole site into another directory of this host: the DB, its jobs' directories, and what they know of their place."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from ..db import connection, filesystem, location, maintenance, registry
from ..db.registry import Entry
from ..db.store import relocate
from ..errors import DatabaseError, InputError, UnsafeFilesystem
from . import manage


class Moved(NamedTuple):
    """What became of a site that was moved."""

    entry: Entry
    links: int  # between jobs, which were mended
    apps: list[str]  # whose commands name the old directory
    is_left: bool  # something of the old directory could not be removed


def move(entry: Entry, destination: str) -> Moved:
    """Put a DB of this host into another directory, with all that lies there, and note that.

    Working directories are relative and move along; paths and links that name the old directory are changed. Across file
    systems everything is copied first, and removed from its old place when the copy is complete.

    Raises:
        InputError: the destination exists or lies inside. DatabaseBusy. UnsafeFilesystem. DatabaseError.
    """
    source, target = manage.directory_of(entry, "moved"), os.path.abspath(os.path.expanduser(destination))
    if os.path.lexists(target):
        raise InputError(f"{target} exists", hint="The destination is the new path of the directory itself.")
    if target.startswith(f"{source}/"):
        raise InputError(f"{target} lies inside the site itself")
    manage.refuse_busy(source, "moved")
    _refuse_unsafe(source, target)
    data = os.path.join(target, location.DATA)
    _put(source, target)
    try:
        apps = _change_paths(target, source, target)
        links = _mend_links(data, source, target)
        moved = registry.move(entry.number, target) if entry.number else registry.add(target)
    except BaseException:
        if os.path.lexists(source):  # that was a copy
            shutil.rmtree(target, ignore_errors=True)
        else:
            _mend_links(data, target, source)
            _change_paths(target, target, source)
            os.rename(target, source)
        raise
    shutil.rmtree(source, ignore_errors=True)  # of a copy
    return Moved(moved, links, apps, os.path.lexists(source))


def _refuse_unsafe(source: str, target: str) -> None:
    mount = filesystem.mount_of(os.path.dirname(target))
    if location.open_database(source).access == filesystem.LOCAL and mount.access != filesystem.LOCAL:
        raise UnsafeFilesystem(
            f"{target} would lie on a {mount}, for which this DB was not set up.",
            hint=f"Do that first: `balsam init --access shared {source}`.",
        )


def _put(source: str, target: str) -> None:
    """Rename the directory; where that is impossible, make a copy of it."""
    try:
        try:
            os.rename(source, target)
        except OSError as exc:
            if exc.errno != errno.EXDEV:
                raise
            _copy(source, target)
    except OSError as exc:
        raise DatabaseError(f"{source} cannot be moved to {target}: {exc.strerror or exc}") from exc


def _copy(source: str, target: str) -> None:
    """A copy of the directory, under its name when it is complete. The file itself is copied by SQLite."""
    part = f"{target}.part"
    try:
        shutil.copytree(source, part, symlinks=True, ignore=shutil.ignore_patterns(*connection.FILES))
        db = location.open_database(source)
        maintenance.backup(db, os.path.join(part, connection.FILE_NAME))
        db.close()
        os.rename(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _change_paths(directory: str, old: str, new: str) -> list[str]:
    """Change what the DB in that directory knows of its place. Returns the apps that name `old`."""
    db = location.open_database(directory)
    with db.session(), db.write() as cx:
        relocate.relocate(cx, old, new)
        apps = relocate.apps_with(cx, old)
    db.close()
    return apps


def _mend_links(folder: str, old: str, new: str) -> int:
    """Let the links below `folder` that lead into `old` lead into `new`. Returns how many did."""
    mended = 0
    for link in _links(folder):
        goal = os.readlink(link)
        if goal.startswith(f"{old}/"):
            fresh = f"{link}.moved"
            os.symlink(new + goal[len(old) :], fresh)
            os.replace(fresh, link)
            mended += 1
    return mended


def _links(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = list(found)
    for one in entries:
        if one.is_symlink():
            yield one.path
        elif one.is_dir(follow_symlinks=False):
            yield from _links(one.path)
