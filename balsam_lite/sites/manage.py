"""Make and remove whole sites: the DB's directory and its line in the registry, both or neither."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import DatabaseBusy, DatabaseError, InputError, NotABalsamDB
from ..core.settings import FILE_NAME as SETTINGS_FILE
from ..core.settings import Settings
from ..db.engine import connection, directories, registry, session
from ..db.engine.connection import Database
from ..db.engine.registry import SiteEntry
from ..db.engine.watching import watch_the_doubtful
from ..db.query import batch_queries, select
from ..db.store import leases
from ..schedulers import base, script, submission
from ..service import main as service
from ..service import policy
from . import fanout

# --- making -----------------------------------------------------------------------------------------------------------


def create(path: str, name: str, access: str | None = None) -> tuple[SiteEntry, Database]:
    """A new DB in a directory that holds none yet, known by that name.

    The name is taken first, so that of two at once one is refused; if the DB cannot be made, it is free again.

    Raises:
        InputError: a DB is there already, or the path is a file. DuplicateSite, InvalidSpec: the name. Else as
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
        if entry.number in before:  # one that was gone, whose place it is
            registry.rename(entry.number, before[entry.number].name)
        else:
            registry.forget(entry.number)
        raise


# --- what is there -----------------------------------------------------------------------------------------------------


def jobs_in(directory: str) -> int:
    """How many jobs a DB holds. Opens a read transaction."""
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
        waits = bool(batch_queries.unended_rows(cx))
    if waits:  # as far as anybody has noticed
        submission.refresh(db, base.select(settings))
        with db.read() as cx:
            found += [f"batch job {row['id']} ({row['state']})" for row in batch_queries.unended_rows(cx)]
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
    """Let nobody write into a DB while the block lasts, which removes it: else what others write until then would be lost.

    They wait, and then hear that it is gone. Gives a Database to read it with.

    Raises:
        DatabaseBusy: a launcher or a service has begun, or others did not stop writing. DatabaseError.
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
    """The directory of a site of this host; `what` is to be done with it.

    Raises:
        InputError: it is on another host, or reached through a link. NotABalsamDB: it is gone. SiteUnreachable: its file
        system does not answer.
    """
    if entry.is_remote:
        raise InputError(f"Site {entry.name} lies on {entry.host} and can only be {what} there.", hint=f"ssh {entry.host}")
    fanout.refuse_unresponsive(entry)
    if not directories.is_db(entry.path):
        raise NotABalsamDB(
            f"No Balsam DB is in {entry.path}",
            hint=f"`balsam site forget {entry.name!r}` if it is gone for good. If a move was cut short, say it once more: "
            f"`balsam site mv {entry.name!r} DIRECTORY`.",
        )
    if os.path.islink(entry.path):
        raise InputError(
            f"{entry.path} is a link to {os.path.realpath(entry.path)}, and only the directory itself can be {what}.",
            hint=f"`balsam site forget {entry.number}`, and then name the directory.",
        )
    return entry.path


# --- removing ---------------------------------------------------------------------------------------------------------

#: A note in the directory of a DB that is being moved: where it was.
MOVING = "moving.json"

#: What belongs to a DB, in the order in which it goes: until its file is gone, the directory is known for one. What SQLite
#: has beside the file goes later, as its locks are there, and so does the lock of a session: nobody shall come in between.
_FOLDERS = (directories.DATA, directories.LOG, directories.QSUBMIT, script.TEMPLATES)
_FILES = (MOVING, SETTINGS_FILE, policy.TEMPLATE, service.LOCK, *connection.FILES, directories.MARKER, session.FILE_NAME)


def remove(entry: SiteEntry) -> list[str]:
    """Remove a DB of this host with all its jobs and their working directories, and forget it.

    Whatever else lies in its directory, such as the user's own scripts, is left; returns the names of that.

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
                os.rmdir(directory)  # which says why not
    except OSError as exc:
        raise DatabaseError(f"{directory} cannot be removed entirely: {exc}", hint="Mend that, and try again.") from exc
    if entry.number:
        registry.forget(entry.number)
    return left


def remove_empty(directory: str) -> bool:
    """Remove a directory in which a DB was, if it is empty; returns whether it is gone.

    Those who wait for a shared DB may each make a lock file there once more, before they hear that the DB is gone.
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
    """Remove a file, or a directory with all that it holds; of a link, the link."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)
