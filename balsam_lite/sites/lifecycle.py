"""Create, find, move, remove and forget sites, and start and stop their services."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ..core.errors import AnotherService, BalsamError, DatabaseBusy, DatabaseError, InputError, NotABalsamDB, UnsafeFilesystem
from ..core.files import write_json_atomic
from ..core.process_table import Holder
from ..core.settings import FILE_NAME as SETTINGS_FILE
from ..core.settings import Settings
from ..db.engine import binding, connection, directories, filesystem, maintenance, registry, session
from ..db.engine.connection import Database
from ..db.engine.registry import SiteEntry
from ..db.query import queries, select
from ..db.store import leases
from ..db.store.leases import watch_the_doubtful
from ..schedulers import base, script, submission
from ..service import main as service
from ..service import policy
from .interface import Row

# --- making -----------------------------------------------------------------------------------------------------------


def create(path: str, name: str, access: str | None = None) -> tuple[SiteEntry, Database]:
    """Create a DB in a directory that holds none yet, and register it under that name.

    The name is reserved first, so that of two simultaneous calls one is refused; it is freed if the DB cannot be created.

    Raises:
        InputError: a DB is there already, or the path is a file. DuplicateSite, InvalidSpec: the name. Otherwise as
        `directories.create`.
    """
    directory = os.path.abspath(os.path.expanduser(path))
    if directories.is_db(directory) and not directories.is_unfinished(directory):
        raise InputError(f"{directory} already exists", hint=f"`balsam site rename {path} NAME` gives that DB another name.")
    before = {entry.number: entry for entry in registry.known(gone=True)}
    entry = registry.add(directory, name)
    try:
        return entry, directories.set_up(directory, access)
    except BaseException:
        if entry.number in before:  # a missing one, whose place it takes
            registry.rename(entry.number, before[entry.number].name)
        else:
            registry.forget(entry.number)
        raise


# --- existing sites ----------------------------------------------------------------------------------------------------


def jobs_in(directory: str) -> int:
    """Return the number of jobs in a DB. Opens a read transaction."""
    db = directories.open_database(directory)
    with db.session(), db.read() as cx:
        found = sum(select.count_states(cx).values())
    db.close()
    return found


def refuse_busy(directory: str, what: str) -> None:
    """Raise DatabaseBusy if a launcher, a service or a batch job of that DB is alive; `what` cannot be done then.

    Raises:
        DatabaseBusy, DatabaseError. PollFailed: it has batch jobs, and their scheduler does not answer.
    """
    settings = Settings.load(directory)
    db = directories.open_database(directory, settings)
    watch = watch_the_doubtful(db, settings.LEASE_EXPIRY_S)
    with db.session(), db.read() as cx:
        found = [str(one) for one in leases.living(cx, settings.LEASE_EXPIRY_S, watch)]
        waits = bool(queries.unended_batch_jobs(cx))
    if waits:  # as far as is known
        submission.refresh(db, base.select(settings))
        with db.read() as cx:
            found += [f"batch job {row['id']} ({row['state']})" for row in queries.unended_batch_jobs(cx)]
    db.close()
    _refuse(found, directory, what)


def _refuse(users: list[str], directory: str, what: str) -> None:
    if users:
        raise DatabaseBusy(
            f"The site in {directory} is in use and cannot be {what}: {', '.join(users)}.",
            hint="`balsam site stop` ends its service, `balsam queue rm` its batch jobs; a launcher ends with Ctrl-C.",
        )


@contextmanager
def quiesced(directory: str, what: str) -> Iterator[Database]:
    """Keep all other processes from writing to a DB inside the block, which removes it: their writes would be lost.

    They wait, and are then told that it is gone. Yields a Database to read it with.

    Raises:
        DatabaseBusy: a launcher or a service has started, or others did not stop writing. DatabaseError.
    """
    settings = Settings.load(directory)
    db = directories.open_database(directory, settings)
    try:
        with db.quiesced() as reader:
            with reader.read() as cx:
                users = [str(one) for one in leases.living(cx, settings.LEASE_EXPIRY_S)]
            _refuse(users, directory, what)
            yield reader
    finally:
        db.close()


def directory_of(entry: SiteEntry, what: str) -> str:
    """Return the directory of a site on this host; `what` names the planned operation in errors.

    Raises:
        InputError: it is on another host, or reached through a link. NotABalsamDB: it is gone. SiteUnreachable: its file
        system does not answer.
    """
    if entry.is_remote:
        raise InputError(f"Site {entry.name} is on {entry.host} and can only be {what} there.", hint=f"ssh {entry.host}")
    registry.refuse_unresponsive(entry)
    if not directories.is_db(entry.path):
        raise NotABalsamDB(
            f"No Balsam DB is in {entry.path}",
            hint=f"`balsam site forget {entry.name!r}` if it is gone for good. If a move was cut short, repeat it: "
            f"`balsam site mv {entry.name!r} DIRECTORY`.",
        )
    if os.path.islink(entry.path):
        raise InputError(
            f"{entry.path} is a link to {os.path.realpath(entry.path)}, and only the directory itself can be {what}.",
            hint=f"`balsam site forget {entry.number}`, and then name the directory.",
        )
    return entry.path


# --- removing ---------------------------------------------------------------------------------------------------------

#: A note in the directory of a DB that is being moved: its previous directory.
MOVING = "moving.json"

#: The parts of a DB, in the order of removal: until its file is gone, the directory counts as a DB. SQLite's other files,
#: which hold its locks, and the lock of a session are removed later: no process may come in between.
_FOLDERS = (directories.DATA, directories.LOG, directories.QSUBMIT, script.TEMPLATES)
_FILES = (MOVING, SETTINGS_FILE, policy.TEMPLATE, service.LOCK, *connection.FILES, directories.MARKER, session.FILE_NAME)


def remove(entry: SiteEntry) -> list[str]:
    """Remove a DB of this host with all its jobs and their working directories, and forget the site.

    Other files in its directory, such as the user's own scripts, are kept; returns their names.

    Raises:
        InputError: it is on another host. NotABalsamDB, DatabaseBusy: nothing was removed. DatabaseError: not all of it.
    """
    directory = directory_of(entry, "removed")
    refuse_busy(directory, "removed")
    try:
        with quiesced(directory, "removed"):
            for name in (*_FOLDERS, *_FILES):
                _remove(os.path.join(directory, name))
            left = sorted({*os.listdir(directory)} - {session.FILE_NAME})
            if not left and not remove_empty(directory):
                os.rmdir(directory)  # raises with the reason
    except OSError as exc:
        raise DatabaseError(f"{directory} cannot be removed entirely: {exc}", hint="Fix that, and try again.") from exc
    if entry.number:
        registry.forget(entry.number)
    return left


def remove_empty(directory: str) -> bool:
    """Remove the directory of a removed DB if it is empty; return whether it is gone.

    Processes that wait for a shared DB may each create a lock file there again before they learn that the DB is gone.
    """
    for _ in range(10):
        try:
            _remove(os.path.join(directory, session.FILE_NAME))
            os.rmdir(directory)
        except OSError:
            time.sleep(0.005)
        if not os.path.lexists(directory):
            return True
    return False


def _remove(path: str) -> None:
    """Remove a file, a directory with its contents, or a link (not its target)."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


class Moved(NamedTuple):
    """The result of moving a site."""

    entry: SiteEntry
    links: int  # between jobs, which were updated
    apps: list[str]  # whose commands name the old directory
    is_left: bool  # a part of the old directory could not be removed


def move(entry: SiteEntry, destination: str) -> Moved:
    """Move a DB of this host, with everything in its directory, to another directory, and register its new place.

    Working directories are relative and move along; paths and links that name the old directory are changed. Across file
    systems everything is copied first, and removed from its old place when the copy is complete. If a move was killed halfway,
    the same call completes it.

    Raises:
        InputError: the destination exists or is inside the DB's directory. DatabaseBusy. UnsafeFilesystem. DatabaseError.
    """
    target = os.path.abspath(os.path.expanduser(destination))
    if not entry.is_there and _comes_from(target) == entry.path:
        return _arrive(entry, entry.path, target)
    source = directory_of(entry, "moved")
    directories.refuse_name(target)
    if os.path.lexists(target):
        raise InputError(f"{target} exists", hint="The destination is the new path of the directory itself.")
    if target.startswith(f"{source}/"):
        raise InputError(f"{target} is inside the site itself")
    refuse_busy(source, "moved")
    _refuse_unsafe(source, target)
    with quiesced(source, "moved") as db:
        if not _is_renamed(source, target):
            return _move_by_copy(entry, db, source, target)
    try:
        return _arrive(entry, source, target)
    except BaseException:
        _redirect_links(os.path.join(target, directories.DATA), target, source)
        _change_paths(target, target, source)
        os.rename(target, source)
        _forget_where_from(source)
        raise


def _move_by_copy(entry: SiteEntry, db: Database, source: str, target: str) -> Moved:
    """Copy the DB, then remove the original. Runs inside `quiesced`: writes to the old DB after the copy would be lost."""
    _copy(db, source, target)
    try:
        moved = _arrive(entry, source, target)
        os.sync()  # else a power failure could destroy both: the original is removed now
    except BaseException:
        _take_back(entry, source, target)
        raise
    try:  # so that a process that has the old file open notices
        os.unlink(os.path.join(source, connection.FILE_NAME))
    except BaseException as exc:
        if directories.is_db(source):  # else the copy is the only one: a Ctrl-C may arrive after the removal
            _take_back(moved.entry, source, target)
        if isinstance(exc, OSError):
            text = f"{source} cannot be removed: {exc.strerror or exc}"
            raise DatabaseError(text, hint="Its directory must be writable.") from exc
        raise
    shutil.rmtree(source, ignore_errors=True)
    return moved._replace(is_left=not remove_empty(source))


def _take_back(entry: SiteEntry, source: str, target: str) -> None:
    """Remove the copy, and point the registry entry back to the source."""
    if entry.number:
        with contextlib.suppress(BalsamError):
            registry.move(entry.number, source)
    shutil.rmtree(target, ignore_errors=True)


def _arrive(entry: SiteEntry, source: str, target: str) -> Moved:
    """Record the new directory in the DB and in the registry."""
    apps = _change_paths(target, source, target)
    links = _redirect_links(os.path.join(target, directories.DATA), source, target)
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
    """Rename the directory, with a note in it of its old path. Return False if the new one would be on another file system."""
    try:
        write_json_atomic(os.path.join(source, MOVING), source)
        os.rename(source, target)
    except OSError as exc:
        _forget_where_from(source)
        if exc.errno == errno.EXDEV:
            return False
        raise _cannot_move(source, target, exc) from exc
    with contextlib.suppress(FileNotFoundError):  # the lock of this session moved along
        os.unlink(os.path.join(target, session.FILE_NAME))
    return True


def _comes_from(target: str) -> str:
    """Return the previous directory of a DB that has not completely arrived in `target`; "" if there is none."""
    try:
        with open(os.path.join(target, MOVING), encoding="utf-8") as file:
            return str(json.load(file)) if directories.is_db(target) else ""
    except (OSError, ValueError, RecursionError):
        return ""


def _forget_where_from(directory: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, MOVING))


def _copy(db: Database, source: str, target: str) -> None:
    """Copy the directory, giving the copy its name when it is complete. SQLite copies the database file."""
    part = f"{target}.part"
    if os.path.lexists(part):  # perhaps another user's; it is removed below, whatever goes wrong
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
    """Update the paths in the DB in that directory. Return the apps that name `old`."""
    db = directories.open_database(directory)
    with db.session(), db.write() as cx:
        binding.relocate(cx, old, new)
        apps = binding.apps_with(cx, old)
        binding.record(cx, db.path)
    db.close()
    return apps


def _redirect_links(folder: str, old: str, new: str) -> int:
    """Redirect links below `folder` from `old` to `new`. Return their number."""
    redirected = 0
    for link in _links(folder):
        if not os.path.islink(link):
            continue  # it was the `fresh` name of another link
        goal = os.readlink(link)
        if goal.startswith(f"{old}/"):
            fresh, new_goal = f"{link}.moved", new + goal[len(old) :]
            if os.path.islink(fresh) and os.readlink(fresh) == new_goal:  # left by a move that was killed here
                os.unlink(fresh)
            os.symlink(new_goal, fresh)
            os.replace(fresh, link)
            redirected += 1
    return redirected


def _links(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        entries = list(found)
    for one in entries:
        if one.is_symlink():
            yield one.path
        elif one.is_dir(follow_symlinks=False):
            yield from _links(one.path)


def start(directory: str) -> Row:
    """Start the service of that DB in the background: {"said": lines, pid, host, log}.

    Raises:
        AnotherService: one is already running; the message names its host and pid. LaunchError: it did not start.
    """
    try:
        started = service.start(directory)
    except AnotherService as exc:
        found = service.status(directory)
        if found["state"] != "running":  # it has just started or ended
            raise
        raise AnotherService(
            f"The site is already running on {found['host']} [PID {found['pid']}].",
            hint="To restart it, first use `balsam site stop`.",
        ) from exc
    host = Holder.current().host
    return {"said": [f"Started Balsam site daemon [pid {started.pid}] on {host}"], "host": host, **started._asdict()}


def check(directory: str) -> Row:
    """Read what a service of that DB would: {"said": []}. Raise SettingsError if it could not start."""
    policy.load(directory, Settings.load(directory))
    return {"said": []}


def stop(directory: str) -> Row:
    """Stop the service of that DB and wait for its end; {"said": lines}. If none runs, that is no error.

    Raises:
        LaunchError: it is still busy, or belongs to another user.
    """
    found = service.status(directory)
    said = service.stop(directory)
    if found["state"] != "running" or found["host"] != Holder.current().host:
        return {"said": [said]}
    return {"said": [f"Sent SIGTERM to Balsam site daemon [pid {found['pid']}]", "Site daemon shutdown OK"]}


def status(directory: str) -> Row:
    """Return the status of the service: {"said": lines} and the fields of `service.main.status`."""
    found = service.status(directory)
    if found["state"] == "none":
        return {"said": ["No service has run at this site."], **found}
    return {"said": [f"The service is {found['state']} (pid {found['pid']} on {found['host']})."], **found}
