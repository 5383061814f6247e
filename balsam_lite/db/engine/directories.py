"""Find and create Balsam DB directories, know their contents, and list the DBs of this user."""

from __future__ import annotations

import json
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ...core.errors import (
    BalsamError,
    DatabaseBusy,
    DatabaseError,
    DatabaseFull,
    InputError,
    NoDatabase,
    NotABalsamDB,
    NotFound,
    did_you_mean,
)
from ...core.files import sync_directory, write_json_atomic
from ...core.settings import Settings, SettingsWarning
from . import binding, connection, filesystem, registry
from .connection import Database

if TYPE_CHECKING:
    from ..store.leases import Lease, Watch

DB_VARIABLE = "BALSAM_DB_PATH"
SITE_VARIABLE = "BALSAM_SITE_PATH"  # the equivalent variable of Balsam 0.7
MARKER = "balsam.json"  # how to open the database file, and the identity of this DB
DATA, LOG, QSUBMIT, RUNS = "data", "log", "qsubmit", "runs"
_SHARED_READ = "shared_read"  # a key of the marker


def is_db(directory: str) -> bool:
    """Return whether a Balsam DB is in exactly that directory."""
    return os.path.isfile(os.path.join(directory, connection.FILE_NAME))


def is_unfinished(directory: str) -> bool:
    """Return whether an interrupted `init` has left a file without tables there, which the next `init` completes."""
    import sqlite3  # here, not above: it is hardly ever needed

    try:
        cx = sqlite3.connect(f"file:{filesystem.quoted(os.path.join(directory, connection.FILE_NAME))}?mode=ro", uri=True)
        try:
            return cx.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        finally:
            cx.close()
    except sqlite3.Error:
        return False


def find(explicit: str | None = None, environ: Mapping[str, str] = os.environ) -> str:
    """Return the active DB's directory: `explicit`, else BALSAM_DB_PATH or BALSAM_SITE_PATH, else the one around the cwd.

    `explicit` is a path, the name of a known DB on this host, or the last part of its path.

    Raises:
        NotABalsamDB: the named path is no DB. NoDatabase: none is named and none contains the current directory.
    """
    if explicit == "":  # an unset variable of a script; using another DB instead could cost the user that one
        raise NotABalsamDB("The path of the DB is empty (from --db)", hint="`balsam which --list` shows the known ones.")
    for named, source in ((explicit, "--db"), *((environ.get(name), name) for name in (DB_VARIABLE, SITE_VARIABLE))):
        if named:
            directory = absolute(named)
            if is_db(directory):
                return directory
            if source == "--db" and not os.path.exists(directory):
                return _known_as(named, directory)
            what = "is a file, not a directory" if os.path.isfile(directory) else "holds no Balsam DB"
            raise NotABalsamDB(f"{directory} {what} (from {source})", hint="`balsam init PATH` creates one.")
    directory = absolute(".")
    while not is_db(directory):
        parent = os.path.dirname(directory)
        if parent == directory:
            raise NoDatabase("No Balsam DB is active.", hint=_advice())
        directory = parent
    return directory


def absolute(path: str) -> str:
    """Return the absolute path, with `~` expanded. Raise NoDatabase if the current directory is gone."""
    try:
        return os.path.abspath(os.path.expanduser(path))
    except FileNotFoundError as exc:
        raise NoDatabase("The current directory does not exist any more.", hint="Go to another one: `cd`.") from exc


def _advice() -> str:
    try:
        known = "".join(f"\n    {path}" for path in known_paths())
        listed = f"\n  Your DBs:{known}" if known else "\n  You have none yet: `balsam init PATH` creates one."
    except BalsamError as exc:
        listed = f"\n  {exc.message}"
    return (
        "  Use `source balsamactivate NAME_OR_PATH` to activate one,\n"
        "  or `balsam --db PATH …`, or go to a directory inside one;\n"
        f"  `balsam which --list` shows the known ones.{listed}"
    )


def open_database(directory: str, settings: Settings | None = None) -> Database:
    """Open the DB in that directory in the access mode for which it was set up.

    Raises:
        NotABalsamDB, UnsafeFilesystem, SettingsError. The file itself is opened by the first transaction.
    """
    settings = settings or Settings.load(directory)
    if not is_db(directory):
        raise NotABalsamDB(f"There is no Balsam DB in {directory}", hint="`balsam init PATH` creates one.")
    return Database(
        directory, _marked(directory)["access"], busy_timeout_s=settings.BUSY_TIMEOUT_S, expiry_s=settings.LEASE_EXPIRY_S
    )


def identity(directory: str) -> str:
    """Return a random text that distinguishes this DB from all others except its copies; "" if an older version created it.

    The same DB may be reached as several directories, and from hosts that have the same name.
    """
    try:
        return str(_marked(directory).get("id", ""))
    except DatabaseError:
        return ""


def is_shared_read(directory: str) -> bool:
    """Return whether others may read the files that contain environment variable values, as far as umask allows.

    `init --shared-read` records this. For a DB created by an older version, its file permissions decide.
    """
    try:
        recorded = _marked(directory).get(_SHARED_READ)
    except DatabaseError:
        recorded = False
    if recorded is None:
        try:
            return bool(os.stat(os.path.join(directory, connection.FILE_NAME)).st_mode & 0o044)
        except OSError:
            return False
    return bool(recorded)


def is_recorded_shared_read(directory: str) -> bool:
    """Return whether `init --shared-read` was given."""
    try:
        return bool(_marked(directory).get(_SHARED_READ))
    except DatabaseError:
        return False


def file_mode(directory: str) -> int:
    """Return the mode with which such a file is created, before umask is applied."""
    return 0o666 if is_shared_read(directory) else 0o600


def readable_by_others(directory: str) -> list[str]:
    """Return the paths of those files, relative to `directory`, that the group or everybody can read."""
    found = [name for name in connection.FILES if _mode_of(os.path.join(directory, name)) & 0o044]
    for folder in (QSUBMIT, RUNS):
        with suppress(OSError):
            names = sorted(os.listdir(os.path.join(directory, folder)))
            found += [f"{folder}/{name}" for name in names if _mode_of(os.path.join(directory, folder, name)) & 0o044]
    return found if all(_mode_of(above, stat.S_IFDIR) & 0o011 for above in _upwards(os.path.realpath(directory))) else []


def _mode_of(path: str, kind: int = stat.S_IFREG) -> int:
    """Return the permission bits of a file or directory; 0 if it does not exist."""
    try:
        found = os.lstat(path)
    except OSError:
        return 0
    return stat.S_IMODE(found.st_mode) if stat.S_IFMT(found.st_mode) == kind else 0


def _upwards(path: str) -> Iterator[str]:
    while True:
        yield path
        path, before = os.path.dirname(path), path
        if path == before:
            return


def _set_rights(directory: str, shared_read: bool) -> None:
    """Make the existing files readable by others, as far as umask allows, or by the owner alone. Raises OSError."""
    umask = os.umask(0o077)
    os.umask(umask)
    paths = [os.path.join(directory, name) for name in connection.FILES]
    for folder in (QSUBMIT, RUNS):
        with suppress(FileNotFoundError):
            paths += [os.path.join(directory, folder, name) for name in os.listdir(os.path.join(directory, folder))]
    for path in paths:
        mode = _mode_of(path)
        if mode:
            os.chmod(path, mode | (mode & 0o400 and 0o044 & ~umask) if shared_read else mode & 0o700)


def _marked(directory: str) -> dict[str, Any]:
    """Return the contents of the marker file. Raises DatabaseError."""
    path = os.path.join(directory, MARKER)
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        if found["access"] not in (filesystem.LOCAL, filesystem.SHARED):
            raise ValueError(f"access must be local or shared, not {found['access']!r}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DatabaseError(f"{path} cannot be read: {exc}", hint=f"`balsam init {directory}` writes it anew.") from exc
    return found


# --- creating ---------------------------------------------------------------------------------------------------------


def create(
    directory: str,
    access: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    shared_read: bool | None = None,
) -> Database:
    """Create a DB in `directory`, or upgrade the existing one, and register it as known.

    `access` is "local" or "shared"; None determines it from the file system. `say` is called with what was done to a copy.
    `shared_read` decides whether others may read the DB, as far as umask allows; None leaves an existing DB unchanged, and
    makes a new one unreadable to other users. Opens a write transaction.

    Raises:
        InputError: the path is a file. DatabaseError: the directory cannot be created or written. UnsafeFilesystem.
        DatabaseBusy: it has an older version, and is in use.
    """
    database = set_up(directory, access, say, shared_read)
    try:
        remember(database.directory)
    except BalsamError as exc:  # the DB exists anyway, and can be named by its path
        warnings.warn(f"The DB cannot be added to the known ones: {exc}", SettingsWarning, stacklevel=2)
    return database


def set_up(
    directory: str,
    access: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    shared_read: bool | None = None,
) -> Database:
    """Do what `create` does, without registering the DB as a site."""
    if not directory:
        raise InputError("The path of the new DB is empty")
    directory = absolute(directory)
    refuse_name(directory)
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise InputError(f"{directory} is not a directory")
    parent = os.path.dirname(directory)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    try:
        for folder in ("", DATA, LOG, QSUBMIT):
            os.makedirs(os.path.join(directory, folder), exist_ok=True)
        access = access or _recorded_access(directory) or filesystem.mount_of(directory).access
        if access == filesystem.LOCAL:
            connection.refuse_unsafe(directory)
        marker = {"access": access, "id": identity(directory) or os.urandom(16).hex(), **_rights(directory, shared_read)}
        write_json_atomic(os.path.join(directory, MARKER), marker)
        is_new = _create_empty(os.path.join(directory, connection.FILE_NAME), file_mode(directory))
        if shared_read is not None:
            _set_rights(directory, shared_read)
    except OSError as exc:
        kind = DatabaseFull if filesystem.is_lack(exc) else DatabaseError
        raise kind(f"Failed to create directory {directory}: {filesystem.failure(exc, directory)}") from exc
    database = Database(directory, access)
    said = _upgrade(database, is_new)
    if said:
        write_json_atomic(os.path.join(directory, MARKER), {**marker, "id": os.urandom(16).hex()})
        say(said)
    _sync_names(directory, parent)
    return database


def _sync_names(directory: str, top: str) -> None:
    """Wait until the names from `directory` up to those in `top` are on the disk: SQLite syncs only those of its files."""
    sync_directory(directory)
    while directory != top:
        directory = os.path.dirname(directory)
        sync_directory(directory)


def refuse_name(directory: str) -> None:
    """Raise InputError if a new DB may not have that name: `balsam which --list` and scripts have one path on a line."""
    if "\n" in directory and not is_db(directory):
        raise InputError(f"The path of a DB cannot hold a line break: {directory!r}", hint="Choose another one.")


class _Doubtful(Exception):
    """All holders of leases are on other hosts, and may be dead."""

    def __init__(self, found: list[Lease]) -> None:
        self.leases = found


def _upgrade(database: Database, is_new: bool) -> str:
    """Upgrade a DB once no launcher can be active. Return what was done to a copy, as text."""
    said: list[str] = []
    watches: list[Watch] = []

    def upgrade() -> list[Lease]:
        try:
            database.upgrade(
                lambda cx: _refuse_living(cx, database.directory, watches),
                lambda cx: said.append(_bind(cx, database)),
                is_new=is_new,
            )
        except _Doubtful as exc:
            return exc.leases
        return []

    if upgrade():
        from ..store.leases import await_certainty

        await_certainty(upgrade, Settings.load(database.directory).LEASE_EXPIRY_S)
    return said[0]


def _refuse_living(cx: connection.Connection, directory: str, watches: list[Watch]) -> None:
    """Raise while launchers are active: they run the older version, which does not know the new tables."""
    from ...core.clock import SystemClock  # here, not above: they take long to import, and are rarely needed
    from ..store import leases

    watches[:] = watches or [leases.Watch()]
    (watch,) = watches
    now_us, expiry_s = SystemClock.now_us(), Settings.load(directory).LEASE_EXPIRY_S
    # The doubtful ones first: one whose time runs out in between counts as dead then, not as alive.
    doubtful = [one for one in leases.open_leases(cx) if leases.is_doubtful(one, now_us, expiry_s, watch)]
    found = leases.living(cx, expiry_s, watch)
    if doubtful and doubtful == found:
        raise _Doubtful(doubtful)
    living = [str(one) for one in found]
    if living:
        raise DatabaseBusy(
            f"The DB {directory} is of an older version and in use, and cannot be brought up to date: {', '.join(living)}.",
            hint="Stop them (`balsam service stop`; a launcher ends with Ctrl-C) and all programs that have the DB open; then "
            "try again. One that has died on another host counts as dead after LEASE_EXPIRY_S.",
        )


def _bind(cx: connection.Connection, database: Database) -> str:
    """Bind the DB to its file, after making a copy a separate DB. Return what was done to a copy, as text."""
    bound, judged = binding.recorded(cx), binding.judge(cx, database.path)
    said = ""
    if (
        bound
        and judged == binding.COPY
        and (
            database.access == filesystem.LOCAL
            or bound.inode == binding.NO_INODE
            or _is_second_place(database.directory, bound.path)
        )
    ):
        from ...core.clock import SystemClock  # here, not above: see _refuse_living
        from ..store import leases

        jobs, launchers, batch_jobs = leases.make_own(cx, SystemClock.now_us(), bound.is_at(database.path))
        said = (
            f"It is a copy ({bound}) and has a new id now. Freed from the original: {jobs} job(s) of {launchers} "
            f"launcher(s) or service(s), {batch_jobs} batch job(s)."
        )
    if bound is None or judged != binding.SAME:
        binding.record(cx, database.path)
    return said


def _is_second_place(directory: str, bound_path: str) -> bool:
    """Return whether the DB with the same marker is also in another directory, where a file created here does not appear."""
    import tempfile

    first = os.path.dirname(bound_path)
    if not is_db(first) or not identity(directory) or identity(first) != identity(directory):
        return False
    handle, probe = tempfile.mkstemp(dir=directory, prefix=".balsam-probe-")
    os.close(handle)
    try:
        return not os.path.lexists(os.path.join(first, os.path.basename(probe)))
    finally:
        os.unlink(probe)


def _recorded_access(directory: str) -> str | None:
    """Return the access mode for which the DB there was set up; None if there is no DB, or the mode is unknown."""
    try:
        return str(_marked(directory)["access"]) if is_db(directory) else None
    except DatabaseError:
        return None


def _rights(directory: str, shared_read: bool | None) -> dict[str, bool]:
    """Return the marker's entry about reading by others; {} for a DB of an older version, whose files decide."""
    if shared_read is None and is_db(directory):
        try:
            recorded = _marked(directory).get(_SHARED_READ)
        except DatabaseError:
            recorded = None
        return {} if recorded is None else {_SHARED_READ: bool(recorded)}
    return {_SHARED_READ: bool(shared_read)}


def _create_empty(path: str, mode: int) -> bool:
    """Create the file; return whether it is new."""
    try:
        # Only a file that no connection has open yet: closing it would drop the locks of SQLite's connections.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))
    except FileExistsError:
        return False
    return True


# --- the DBs that this user knows -------------------------------------------------------------------------------------


def known_paths() -> list[str]:
    """Return the directories of the DBs on this host that this user has created or activated, without missing ones.

    Raises:
        BalsamError: the registry cannot be read.
    """
    return [entry.path for entry in registry.known() if not entry.is_remote]


def remember(directory: str) -> None:
    """Add a DB to the known ones. Safe when several processes call it concurrently."""
    registry.add(directory)


def _called(name: str, sites: Iterable[registry.SiteEntry]) -> list[str]:
    """Return the directories of the sites with that name, or else of those whose directory has it."""
    local = [entry for entry in sites if not entry.is_remote]
    by_name = [entry.path for entry in local if entry.name == name]
    return by_name or [entry.path for entry in local if os.path.basename(entry.path) == name]


def _known_as(name: str, directory: str) -> str:
    """Return the known DB with exactly that name, or directory name. Raises NotABalsamDB, InputError (ambiguous)."""
    sites = registry.known()
    found = _called(name, sites)
    if len(found) > 1:
        raise InputError(f"--db {name} is the name of several DBs.", hint="\n".join(f"    {path}" for path in found))
    if found:
        return found[0]
    meant = did_you_mean(name, [entry.name for entry in sites if not entry.is_remote])
    raise NotABalsamDB(
        f"{directory} holds no Balsam DB, and no known DB has the name {name!r} (from --db).{meant}",
        hint="`balsam which --list` shows the known ones; `balsam init PATH` creates one.",
    )


def resolve(name: str) -> str:
    """Return the directory of a known DB: by path, name, or a unique part of the path; its last component takes precedence.

    Raises:
        NotFound, InputError (ambiguous): with the candidates. InputError: it is on another host.
    """
    path = absolute(name)
    if is_db(path):
        return path
    if os.path.isdir(path) and os.sep in name:
        raise NotABalsamDB(f"No Balsam DB found in dir {path}", hint=f"`balsam init {name}` creates one.")
    sites = registry.known()
    known = [entry.path for entry in sites if not entry.is_remote]
    named = [entry for entry in sites if entry.name == name]
    if named and all(entry.is_remote for entry in named):
        raise InputError(f"{name} is on {named[0].host} and cannot be the active DB here.", hint=f"Use it with --site {name}.")
    matches = _called(name, sites) or [path for path in known if name in path]
    if len(matches) == 1:
        return matches[0]
    listed = "\n".join(f"    {path}" for path in matches or known) or "    (none)"
    if matches:
        raise InputError(f"DB name {name} is too ambiguous; multiple matches:", hint=f"{listed}\n  Give more of it.")
    raise NotFound(f"No DB matching {name} is cached.", hint=f"  The known ones are:\n{listed}")
