"""Maintain the database file: back it up, return unused space, report its size and check it.

No function here reads or copies the file itself: a process that opens and closes it outside SQLite drops SQLite's locks
(https://sqlite.org/howtocorrupt.html, 2.2), and a copy without its WAL lacks the latest commits.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...core import files
from ...core.clock import SystemClock
from ...core.errors import DatabaseBusy, DatabaseEmptied, DatabaseError, DatabaseFull, InputError, NotABalsamDB
from ...core.settings import ENVIRONMENT_PREFIX, FILE_NAME, Settings, home
from ..query import select
from ..store import counters, leases, pieces, tags, trash
from ..store.leases import watch_the_doubtful
from . import binding, connection, directories, filesystem, migrations, sqlite_errors
from .connection import Database

# --- backup -----------------------------------------------------------------------------------------------------------


def backup(db: Database, path: str, *, force: bool = False, replaces: bool = False) -> int:
    """Copy the database, as it is at one moment, to the file `path`; return its size in bytes.

    The copy is marked as a copy, so that it cannot be used together with the original before `init`, unless it `replaces` it.

    The copy has a temporary name until it is complete, checked and on the disk. On a local disk other processes continue; on a
    shared file system they wait until the database is read. Opens its own read transaction.

    Raises:
        InputError: `path` exists and `force` is not given, is a directory, is in no existing directory, or belongs to the DB.
        DatabaseFull, DatabaseError: it cannot be written.
    """
    path = os.path.abspath(os.path.expanduser(path))
    _refuse_path(db, path, force)
    try:
        with files.replacing(path, is_durable=True) as temporary:
            files.write_new(temporary, b"", 0o600)
            _copy(db, temporary, path, replaces)
            os.chmod(temporary, os.stat(db.path).st_mode & 0o777)
            _refuse_path(db, path, force)  # another process may have created it meanwhile
    except OSError as exc:
        raise _unwritten(path, exc) from exc
    return os.stat(path).st_size


def _refuse_path(db: Database, path: str, force: bool) -> None:
    if os.path.isdir(path):
        raise InputError(f"{path} is a directory; give the name of a file.")
    if not os.path.isdir(os.path.dirname(path)):
        raise InputError(f"There is no directory {os.path.dirname(path)} for the backup.")
    is_of_db = os.path.basename(path).startswith(connection.FILE_NAME) and os.path.samefile(os.path.dirname(path), db.directory)
    if is_of_db or (os.path.exists(path) and os.path.samefile(path, db.path)):
        raise InputError(f"{path} belongs to the DB itself; give another name for the backup.")
    if os.path.lexists(path) and not force:
        raise InputError(f"{path} exists already.", hint="Give another name, or --force to replace it.")


def _unwritten(path: str, exc: OSError) -> DatabaseError:
    kind = DatabaseFull if filesystem.is_lack(exc) else DatabaseError
    return kind(f"The backup {path} cannot be written: {filesystem.failure(exc, path)}")


def _copy(db: Database, temporary: str, path: str, replaces: bool) -> None:
    target = sqlite3.connect(temporary, isolation_level=None)
    try:
        # Safe on any file system: opened exclusively, and in one file.
        target.execute("PRAGMA locking_mode = EXCLUSIVE")
        with db.read() as cx:
            try:
                cx.backup(target)
            except sqlite3.Error as exc:  # else it would count as an error of the source DB
                full = sqlite_errors.why_full(str(exc), os.path.dirname(path))
                if not full:
                    raise
                raise DatabaseFull(f"The backup {path} cannot be written: {full}") from exc
        binding.record(target, temporary if replaces else db.path, None if replaces else binding.NO_INODE)
        target.execute("PRAGMA journal_mode = DELETE")
        found = target.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.Error as exc:
        full = sqlite_errors.why_full(str(exc), os.path.dirname(path))
        kind = DatabaseFull if full else DatabaseError
        raise kind(f"The backup {path} cannot be written: {full or exc}") from exc
    finally:
        target.close()
    if found != "ok":
        raise DatabaseError(f"The DB {db.directory} is damaged, and so would be its backup: {found}", hint=_SEE_CHECK)


_SEE_CHECK = "`balsam db check` tells more; `balsam db salvage NEW_DIR` reads what can be read."


# --- vacuum -----------------------------------------------------------------------------------------------------------


class Vacuumed(NamedTuple):
    """The result of `vacuum`."""

    bytes_before: int
    bytes_after: int
    fixed: int  # jobs whose tag index was wrong
    emptied: int  # removed jobs that were in the trash


def vacuum(db: Database, *, expiry_s: float, force: bool = False, empties_trash: bool = False) -> Vacuumed:
    """Rewrite the database without its free pages, after correcting wrong entries of the tag index and counting all jobs anew.

    Removed jobs are deleted for good after thirty days, with `empties_trash` now.

    No other process can write meanwhile, and a launcher cannot even send its heartbeat: after a long time others would take it
    for dead. So the call is refused while a launcher or a service is active, unless `force` confirms that it will be short. The
    directory and SQLite's temporary directory (SQLITE_TMPDIR, /var/tmp) each need space for another copy.

    Raises:
        DatabaseBusy: another process is active. DatabaseFull.
    """
    watch = None if force else watch_the_doubtful(db, expiry_s)
    with db.session():
        with db.read() as cx:
            living = [str(lease) for lease in leases.living(cx, expiry_s, watch)]
        if living and not force:
            raise DatabaseBusy(
                f"The DB {db.directory} is in use: {', '.join(living)}. While it is written anew they could not show that "
                "they live.",
                hint="Try again when they have ended. A small DB takes a second or so; then --force does no harm.",
            )
        before = _bytes(db)
        with db.write() as cx:
            fixed = tags.differing(cx)
            if fixed:
                tags.note_anew(cx)
            counters.recount(cx)
            trash.empty_old(cx)
            emptied = trash.empty(cx) if empties_trash else 0
        db.execute_outside_transaction("VACUUM")
        if db.access == filesystem.LOCAL:
            db.execute_outside_transaction("PRAGMA wal_checkpoint(TRUNCATE)")
        return Vacuumed(before, _bytes(db), fixed, emptied)


def _bytes(db: Database) -> int:
    with db.read() as cx:
        return _pragma(cx, "page_count") * _pragma(cx, "page_size")


def _pragma(cx: sqlite3.Connection, name: str) -> int:
    return int(cx.execute(f"PRAGMA {name}").fetchone()[0])


# --- information ------------------------------------------------------------------------------------------------------


def info(db: Database, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return how the DB is opened, its size, its contents and the settings in force. Opens a read transaction."""
    expiry_s = Settings.load(db.directory, environ).LEASE_EXPIRY_S
    with db.session(), db.read() as cx:
        pages, free, size = (_pragma(cx, name) for name in ("page_count", "freelist_count", "page_size"))
        found = {
            "directory": db.directory,
            "access": db.access,
            "shared_read": directories.is_shared_read(db.directory),
            "file_system": str(filesystem.mount_of(db.directory)),
            "schema_version": migrations.version_of(cx),
            "sqlite_version": sqlite3.sqlite_version,
            "bytes": pages * size,
            "free_bytes": free * size,
            "page_bytes": size,
            "pages": pages,
            "free_pages": free,
            "wal_bytes": _size_of(f"{db.path}-wal"),
            **_counts(cx, expiry_s),
            "unfinished_changes": [one.text for one in pieces.described(cx)],
        }
    return {**found, "settings": settings_in_force(db.directory, environ)}


def _size_of(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _counts(cx: sqlite3.Connection, expiry_s: float) -> dict[str, Any]:
    states = select.count_states(cx)
    tables = {
        "applications": "app",
        "events": "event",
        "dependencies": "dependency",
        "leases": "lease",
        "batch_jobs": "batch_job",
    }
    counts = {name: cx.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for name, table in tables.items()}
    holders = [leases.described(cx, lease, SystemClock.now_us(), expiry_s) for lease in leases.open_leases(cx)]
    return {"jobs": sum(states.values()), "states": states, **counts, "open_leases": len(holders), "holders": holders}


def settings_in_force(directory: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the files and environment variables that change a setting for this DB; for one setting the last one wins."""
    settings_files = [os.path.join(folder, FILE_NAME) for folder in (home(environ), directory)]
    variables = [ENVIRONMENT_PREFIX + key for key in Settings._fields]
    return [path for path in settings_files if os.path.isfile(path)] + [name for name in variables if name in environ]


# --- integrity --------------------------------------------------------------------------------------------------------

#: Maximum number of faults of a damaged file to report.
_MAX_FAULTS = 20


def damage(db: Database, *, quick: bool = False) -> list[str]:
    """Return the faults that SQLite finds in the file; [] if none. `quick` skips the comparison of indexes with tables.

    On a shared file system all other processes wait meanwhile. Takes a few seconds for a million jobs.

    Raises:
        DatabaseError: the file cannot be used for another reason: CopiedDatabase, SchemaMismatch, DatabaseBusy …
    """
    try:
        rows = db.execute_outside_transaction(f"PRAGMA {'quick' if quick else 'integrity'}_check({_MAX_FAULTS})")
    except DatabaseError as exc:
        if type(exc) not in (DatabaseError, NotABalsamDB, DatabaseEmptied):
            raise
        return [f"{exc.message.rstrip('.')}. {exc.hint}".rstrip()]
    return [] if rows == [("ok",)] else [line for row in rows for line in str(row[0]).splitlines()]
