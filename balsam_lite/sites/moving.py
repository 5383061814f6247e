"""Put a whole site into another directory of this host: the DB, its jobs' directories, and what they know of their place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from ..core.errors import BalsamError, DatabaseError, InputError, UnsafeFilesystem
from ..core.files import write_json_atomic
from ..db.engine import binding, connection, directories, filesystem, maintenance, registry, session
from ..db.engine.connection import Database
from ..db.engine.registry import SiteEntry
from ..db.store import relocate
from . import manage


class Moved(NamedTuple):
    """What became of a site that was moved."""

    entry: SiteEntry
    links: int  # between jobs, which were mended
    apps: list[str]  # whose commands name the old directory
    is_left: bool  # something of the old directory could not be removed


def move(entry: SiteEntry, destination: str) -> Moved:
    """Put a DB of this host into another directory, with all that lies there, and note that.

    Working directories are relative and move along; paths and links that name the old directory are changed. Across file
    systems everything is copied first, and removed from its old place when the copy is complete. A move that was killed halfway
    is brought to its end by the same call once more.

    Raises:
        InputError: the destination exists or lies inside. DatabaseBusy. UnsafeFilesystem. DatabaseError.
    """
    target = os.path.abspath(os.path.expanduser(destination))
    if not entry.is_there and _comes_from(target) == entry.path:
        return _arrive(entry, entry.path, target)
    source = manage.directory_of(entry, "moved")
    directories.refuse_name(target)
    if os.path.lexists(target):
        raise InputError(f"{target} exists", hint="The destination is the new path of the directory itself.")
    if target.startswith(f"{source}/"):
        raise InputError(f"{target} lies inside the site itself")
    manage.refuse_busy(source, "moved")
    _refuse_unsafe(source, target)
    with manage.quiesced(source, "moved") as db:
        if not _is_renamed(source, target):
            return _move_by_copy(entry, db, source, target)
    try:
        return _arrive(entry, source, target)
    except BaseException:
        _mend_links(os.path.join(target, directories.DATA), target, source)
        _change_paths(target, target, source)
        os.rename(target, source)
        _forget_where_from(source)
        raise


def _move_by_copy(entry: SiteEntry, db: Database, source: str, target: str) -> Moved:
    """Inside `quiesced`, as what others wrote into the old DB after the copy would be lost."""
    _copy(db, source, target)
    try:
        moved = _arrive(entry, source, target)
        os.sync()  # else a power cut could take both: the original is removed now
    except BaseException:
        _take_back(entry, source, target)
        raise
    try:  # so that whoever has the old file open hears of it
        os.unlink(os.path.join(source, connection.FILE_NAME))
    except BaseException as exc:
        if directories.is_db(source):  # else the copy is all there is: a Ctrl-C may be heard when it is gone already
            _take_back(moved.entry, source, target)
        if isinstance(exc, OSError):
            text = f"{source} cannot be removed: {exc.strerror or exc}"
            raise DatabaseError(text, hint="Its directory must be writable.") from exc
        raise
    shutil.rmtree(source, ignore_errors=True)
    return moved._replace(is_left=not manage.remove_empty(source))


def _take_back(entry: SiteEntry, source: str, target: str) -> None:
    """Remove the copy, and let nobody look for the DB there."""
    if entry.number:
        with contextlib.suppress(BalsamError):
            registry.move(entry.number, source)
    shutil.rmtree(target, ignore_errors=True)


def _arrive(entry: SiteEntry, source: str, target: str) -> Moved:
    """Let the DB in its new directory, and the registry, know where it is."""
    apps = _change_paths(target, source, target)
    links = _mend_links(os.path.join(target, directories.DATA), source, target)
    arrived = registry.move(entry.number, target) if entry.number else registry.add(target)
    _forget_where_from(target)
    return Moved(arrived, links, apps, False)


def _refuse_unsafe(source: str, target: str) -> None:
    mount = filesystem.mount_of(os.path.dirname(target))
    if directories.open_database(source).access == filesystem.LOCAL and mount.access != filesystem.LOCAL:
        raise UnsafeFilesystem(
            f"{target} would lie on a {mount}, for which this DB was not set up.",
            hint=f"Do that first: `balsam init --access shared {source}`.",
        )


def _is_renamed(source: str, target: str) -> bool:
    """Rename the directory, with a note in it where it was. False where the new one would be on another file system."""
    try:
        write_json_atomic(os.path.join(source, manage.MOVING), source)
        os.rename(source, target)
    except OSError as exc:
        _forget_where_from(source)
        if exc.errno == errno.EXDEV:
            return False
        raise _cannot_move(source, target, exc) from exc
    with contextlib.suppress(FileNotFoundError):  # the lock of this session came along
        os.unlink(os.path.join(target, session.FILE_NAME))
    return True


def _comes_from(target: str) -> str:
    """The directory in which a DB was that has not wholly arrived in `target`; "" if there is none such."""
    try:
        with open(os.path.join(target, manage.MOVING), encoding="utf-8") as file:
            return str(json.load(file)) if directories.is_db(target) else ""
    except (OSError, ValueError, RecursionError):
        return ""


def _forget_where_from(directory: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, manage.MOVING))


def _copy(db: Database, source: str, target: str) -> None:
    """A copy of the directory, under its name when it is complete. The file itself is copied by SQLite."""
    part = f"{target}.part"
    if os.path.lexists(part):  # perhaps somebody else's; it is removed below, whatever goes wrong
        raise InputError(f"{part} exists", hint="If a move that was killed has left it, remove it and try again.")
    ours = shutil.ignore_patterns(*connection.FILES, f"{session.FILE_NAME}*")
    try:
        shutil.copytree(source, part, symlinks=True, ignore=ours)
        maintenance.backup(db, os.path.join(part, connection.FILE_NAME), replaces=True)
        os.rename(part, target)
    except BaseException as exc:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(exc, OSError):
            raise _cannot_move(source, target, exc) from exc
        raise


def _cannot_move(source: str, target: str, exc: OSError) -> DatabaseError:
    return DatabaseError(f"{source} cannot be moved to {target}: {filesystem.failure(exc, target, exc.strerror)}")


def _change_paths(directory: str, old: str, new: str) -> list[str]:
    """Change what the DB in that directory knows of its place. Returns the apps that name `old`."""
    db = directories.open_database(directory)
    with db.session(), db.write() as cx:
        relocate.relocate(cx, old, new)
        apps = relocate.apps_with(cx, old)
        binding.record(cx, db.path)
    db.close()
    return apps


def _mend_links(folder: str, old: str, new: str) -> int:
    """Let the links below `folder` that lead into `old` lead into `new`. Returns how many did."""
    mended = 0
    for link in _links(folder):
        if not os.path.islink(link):
            continue  # it was `fresh` of another one
        goal = os.readlink(link)
        if goal.startswith(f"{old}/"):
            fresh, mended_goal = f"{link}.moved", new + goal[len(old) :]
            if os.path.islink(fresh) and os.readlink(fresh) == mended_goal:  # left by a move that was killed here
                os.unlink(fresh)
            os.symlink(mended_goal, fresh)
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
