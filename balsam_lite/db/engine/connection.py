"""Access to the SQLite file: read and write transactions, on a local disk and on a shared file system.

*local*: ordinary WAL; each thread keeps a connection, and many processes work concurrently.
*shared*: sessions. WAL shares memory between processes, which separate hosts cannot do; so each session takes a lock file,
opens the file exclusively, closes it, and releases the lock. Reading takes a session too.

Code that uses a `Database` does not know which of the two it has. No table except `lease` is used here.
"""

from __future__ import annotations

import atexit
import os
import sqlite3
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ...core import import_guard
from ...core.errors import (
    BalsamError,
    CopiedDatabase,
    DatabaseBusy,
    DatabaseEmptied,
    DatabaseError,
    DatabaseFull,
    DatabaseGone,
    DatabaseReadOnly,
    LostSession,
    NotABalsamDB,
    UnsafeFilesystem,
)
from ...core.settings import SettingsWarning
from . import binding, filesystem, migrations, schema, sqlite_errors, wal

if TYPE_CHECKING:
    from .session import SessionLock

_T = TypeVar("_T")

FILE_NAME = "balsam.sqlite3"
#: The database file and what SQLite puts beside it (https://sqlite.org/tempfiles.html).
FILES = tuple(FILE_NAME + ending for ending in ("", "-wal", "-shm", "-journal"))

#: Directories next to the file that are empty only if the DB has never been used.
USED_FOLDERS = ("data", "log")

#: The type that `read` and `write` yield, for callers that only pass it on.
Connection = sqlite3.Connection

#: Leases of long-running programs, one of which moves the WAL into the file (SQL condition).
AT_WORK = "kind IN ('launcher', 'service')"

#: Pages; 16 MB of WAL. A larger one makes reading slower, a smaller one makes a launcher wait for the disk more often.
_CHECKPOINT_PAGES = 4000
#: How long network file systems remember names that are gone, in seconds: NFS 3 to 60 (acdirmin and acdirmax of nfs(5)).
_STALE_NAMES_S = 5.0
#: How long another process may take to notice that its open WAL was removed, in seconds. A launcher checks twenty times a
#: second.
_UNNOTICED_S = 10.0

#: Connections of a parent process, present after a fork. Closing them here would drop the parent's locks, so they are kept.
_of_the_parent: list[sqlite3.Connection] = []


#: The open connections of this process by their ids, to be closed at its end. Not a WeakSet: threads change it meanwhile.
_open_connections: dict[int, weakref.ref[_Connection]] = {}
#: DBs whose `-shm` was removed while threads of this process had it open.
_separated: set[str] = set()


class _Connection(sqlite3.Connection):
    """A connection, with the process and the thread that may close it."""

    is_open = False

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.owner = (os.getpid(), threading.get_ident())
        self.folder = ""  # of the private copy that it has open, which is removed with it
        self.path = ""  # of the database
        self.is_open = True
        _close_at_exit()
        _open_connections[id(self)] = weakref.ref(self)

    def close(self) -> None:
        super().close()
        self.is_open = False
        _open_connections.pop(id(self), None)
        if self.folder:
            import shutil

            shutil.rmtree(self.folder, ignore_errors=True)

    def __del__(self) -> None:
        """Close the connection of a Database that was dropped: Python 3.13 warns of one that is left open."""
        if self.is_open and self.owner == (os.getpid(), threading.get_ident()):
            self.close()
            return
        _open_connections.pop(id(self), None)
        if sys.version_info >= (3, 13):
            super().__del__()  # type: ignore[misc]  # it closes for any thread


def open_connections() -> list[_Connection]:
    """Return the connections that this process has open, in any thread."""
    found = (reference() for reference in list(_open_connections.values()))  # list() of it is one step for other threads
    return [cx for cx in found if cx is not None]


#: Number of write transactions that this process has committed, and that were not taken back.
commits = 0


def forget_commits(since: int) -> None:
    """Count no more than the first `since` commits of this process: the others were taken back."""
    global commits
    commits = min(commits, since)


def _note_commit() -> None:
    global commits
    commits += 1


def close_all() -> None:
    """Close this thread's connections to all DBs. The last process to close a local DB moves its WAL into the file.

    Called when the process ends: SQLite does not do so by itself, and the newest commits would be only in the WAL.
    """
    for cx in open_connections():
        if cx.owner == (os.getpid(), threading.get_ident()):
            try:
                cx.close()
            except sqlite3.Error:  # the next connection finds everything in the WAL
                pass


@cache
def _close_at_exit() -> None:
    atexit.register(close_all)


def at_exit(function: Callable[[], object]) -> None:
    """Call `function` when the process ends, before its connections are closed."""
    _close_at_exit()
    atexit.register(function)  # functions run in reverse order of registration


class _ThreadState(threading.local):
    """The state of one thread."""

    connection: _Connection | None = None
    file: tuple[int, int] | None = None  # the file that the connection has open, as `file_at` returns it
    sides: wal.Sides | None = None  # the open WAL and its index, if others use them, too
    has_saved = False  # content that was only in a removed WAL was saved
    has_chosen = False  # whether the connection moves the WAL into the file
    transaction = ""  # "", "read" or "write"
    lock: SessionLock | None = None  # of the session that is open on a shared file system
    unlocked: DatabaseReadOnly | None = None  # why the open session has no lock: it can only read
    read_as: wal.State | None = None  # the state of the file that the connection sees, without later changes
    is_immutable = False  # must not be used when the file has changed

    def __init__(self) -> None:
        self.process = os.getpid()

    def after_fork(self) -> None:
        """Forget the parent's connection, transaction and session."""
        if self.connection is not None:
            _of_the_parent.append(self.connection)
        self.connection, self.transaction, self.lock, self.process = None, "", None, os.getpid()
        self.unlocked = self.read_as = None


class Database:
    """The database of one directory, in either access mode.

    Safe to share between threads, each of which gets its own connection, and across a fork, after which the child opens a new
    one. All methods raise DatabaseError or a subclass when SQLite fails. On a local disk a connection stays open, so each
    transaction checks that the file is still in place: if not, it raises DatabaseGone until `close`.
    """

    def __init__(self, directory: str, access: str, *, busy_timeout_s: float = 60.0, expiry_s: float = 120.0) -> None:
        self.directory = os.path.abspath(directory)
        self.path = os.path.join(self.directory, FILE_NAME)
        self.access = access
        self.busy_timeout_s = busy_timeout_s
        self._expiry_s = expiry_s
        self._state = _ThreadState()
        self._seen_version = -1
        self._keeps_checkpoints: bool | None = None
        self._is_upgrading = False
        if not os.path.isfile(self.path):
            raise NotABalsamDB(f"There is no Balsam DB in {self.directory}", hint="`balsam init PATH` creates one.")
        if access == filesystem.LOCAL:
            refuse_unsafe(self.directory)

    @property
    def is_in_transaction(self) -> bool:
        """Return whether this thread has a transaction open."""
        return bool(self._thread().transaction)

    # --- transactions -------------------------------------------------------------------------------------------------

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection in a read transaction: all queries see one moment. Joins a transaction that is open already."""
        thread = self._thread()
        if thread.transaction:
            assert thread.connection is not None
            yield thread.connection
            return
        with self.session(), sqlite_errors.translated(self.path):
            cx = self._patiently(self._begin, "BEGIN")
            thread.transaction = "read"
            try:
                yield cx
                if thread.lock is not None:
                    self._refuse_if_lost()
                if thread.is_immutable and thread.read_as != self._state_there():
                    raise DatabaseBusy(f"The DB {self.directory} was written while it was read.", hint="Try again.")
            finally:
                thread.transaction = ""
                if cx.in_transaction:  # an I/O error can make SQLite roll back by itself
                    cx.execute("ROLLBACK")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection in a write transaction: committed at the end of the block, rolled back by any exception.

        Keep the block short and free of slow work, because all other processes wait. Joins a write transaction that is open.
        """
        thread = self._thread()
        if thread.transaction == "write":
            assert thread.connection is not None
            yield thread.connection
            return
        if thread.transaction:
            raise RuntimeError("a write transaction cannot start inside a read transaction")
        import_guard.check_writable()
        with self.session(), sqlite_errors.translated(self.path):
            self._connection()
            if thread.read_as or thread.unlocked:
                raise thread.unlocked or DatabaseReadOnly(
                    f"The DB {self.directory} cannot be written: you can only read it", hint="See the directory's permissions."
                )
            cx = self._patiently(self._begin, "BEGIN IMMEDIATE")
            thread.transaction = "write"
            try:
                if not thread.has_chosen:
                    self._choose_checkpoints(cx)
                yield cx
                self._refuse_if_lost()
                cx.execute("COMMIT")
                _note_commit()
            except BaseException:
                if cx.in_transaction:  # a full disk makes SQLite roll back by itself
                    cx.execute("ROLLBACK")
                raise
            finally:
                thread.transaction = ""

    @contextmanager
    def session(self) -> Iterator[None]:
        """Combine several transactions: free on a local disk; on a shared file system they open the file only once.

        Raises:
            LostSession: others took this process for dead because it slept in the middle. Earlier commits stay; nothing was
                written since, and data read since cannot be trusted.
        """
        thread = self._thread()
        if self.access == filesystem.LOCAL or thread.lock is not None or thread.unlocked is not None:
            yield
            return
        from .session import SessionLock

        with ExitStack() as stack:
            try:
                lock = stack.enter_context(SessionLock(self.directory, self.busy_timeout_s, self._expiry_s))
            except DatabaseReadOnly as exc:
                thread.unlocked = exc
            else:
                thread.lock = lock
            try:
                yield
            except DatabaseGone:  # the lock file was removed with the DB
                raise
            except DatabaseError:
                self._refuse_if_lost()  # then raise that as the cause
                raise
            finally:
                if thread.lock is not None and thread.lock.is_lost():
                    self._abandon()
                thread.lock = thread.unlocked = None
                self.close()

    @contextmanager
    def quiesced(self) -> Iterator[Database]:
        """Keep all other processes from writing inside the block, which may remove the files. Yield a Database to read with.

        Waiting processes get DatabaseGone if the file is missing at the end, else their turn.
        """
        if self.access != filesystem.LOCAL:
            with self.session():
                yield self
            return
        with sqlite_errors.translated(self.path):
            cx = self._patiently(self._begin, "BEGIN IMMEDIATE")
        reader = Database(self.directory, self.access, busy_timeout_s=self.busy_timeout_s, expiry_s=self._expiry_s)
        try:
            yield reader
        finally:
            reader.close()
            cx.execute("ROLLBACK")

    def execute_outside_transaction(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement that SQLite refuses inside a transaction, such as VACUUM; return its rows."""
        if self._thread().transaction:
            raise RuntimeError(f"{statement} cannot run inside a transaction")
        with self.session(), sqlite_errors.translated(self.path):
            self._connection()
            self._refuse_if_lost()
            self._refuse_if_gone()
            self._patiently(self._save_the_wal)
            cx = self._connection()
            self._choose_checkpoints(cx)
            return self._patiently(lambda: cx.execute(statement).fetchall())

    def changed(self) -> bool:
        """Return whether another process may have written since the last call: exact and cheap on a local disk.

        On a shared file system only opening the file would show it, so the answer is always True.
        """
        if self.access != filesystem.LOCAL:
            return True
        with sqlite_errors.translated(self.path):
            self._connection()
            self._refuse_if_gone()
            if self._is_separated():
                self._patiently(self._save_the_wal)
            if self._thread().read_as:
                return True
            cx = self._connection()
            version = int(cx.execute("PRAGMA data_version").fetchone()[0])
        changed, self._seen_version = version != self._seen_version, version
        return changed

    def own_checkpoints(self, mine: bool) -> None:
        """Set whether this process moves the WAL into the database file. Others leave this to the launcher or the service.

        SQLite before 3.51.3 has a rare fault when two connections write and checkpoint at the same instant
        (https://sqlite.org/wal.html#walresetbug), so as few as possible do it.
        """
        self._keeps_checkpoints = mine
        if self.access == filesystem.LOCAL:
            with sqlite_errors.translated(self.path):
                self._connection().execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES if mine else 0}")

    def upgrade(
        self,
        allow: Callable[[Connection], None] = lambda cx: None,
        then: Callable[[Connection], None] = lambda cx: None,
        *,
        is_new: bool = False,
    ) -> None:
        """Initialize an empty file as a database, and bring an older one to this program's schema version.

        Both callbacks run inside the transaction: `allow`, which may raise, if there is an older one, and `then` at the end.
        Pass `is_new` if the caller has just created the file; otherwise an empty file is refused if the DB has been used.
        """
        self.close()
        if not is_new and not os.path.getsize(self.path):
            self._refuse_if_emptied()
        self._is_upgrading = True
        try:
            with self.session(), sqlite_errors.translated(self.path):
                cx = self._connection()
                self._patiently(self._use_wal, cx)
                with self.write():
                    if 0 < migrations.version_of(cx) < schema.VERSION:
                        allow(cx)
                    migrations.migrate(cx)
                    then(cx)
        finally:
            self._is_upgrading = False
            self.close()

    def _use_wal(self, cx: sqlite3.Connection) -> None:
        # WAL is a property of the file and cannot be set inside a transaction.
        mode = cx.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise DatabaseError(f"The DB {self.directory} cannot use SQLite's WAL; its journal mode is {mode}.")

    def close(self) -> None:
        """Close this thread's connection. The database can be used again afterwards.

        The process that keeps the checkpoints of a local DB moves the WAL into the file first, even if others have it open.
        """
        thread = self._thread()
        if thread.connection is not None and self._is_separated():
            with suppress(BalsamError, sqlite3.Error):  # all possible work was done, and nothing more is written
                self._save_the_wal()
        if thread.connection is not None:
            if self._keeps_checkpoints and self.access == filesystem.LOCAL:
                self._empty_the_wal(thread.connection)
            thread.connection.close()
        thread.connection = thread.sides = None

    def _empty_the_wal(self, cx: sqlite3.Connection) -> None:
        try:
            self._refuse_if_gone()
            cx.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except (BalsamError, sqlite3.Error):  # another process uses the file, and moves the WAL when it closes
            pass

    # --- connections --------------------------------------------------------------------------------------------------

    def _refuse_if_gone(self) -> None:
        """Raise DatabaseGone if the file is missing or not the open one: no process would see what is written.

        The file is not opened: closing it again would drop SQLite's locks. Network file systems may give a file a new inode,
        but there each session opens it anew.
        """
        if self.access != filesystem.LOCAL:
            return
        if self._file_there() != self._thread().file:
            raise DatabaseGone(
                f"The DB {self.directory} was replaced by another one; the one that this program has open is gone.",
                hint="Start the program again to use the new one.",
            )

    def _is_separated(self) -> bool:
        """Return whether the WAL or the `-shm` that is open here was removed or replaced."""
        sides = self._thread().sides
        return sides is not None and wal.sides_of(self.path) != sides

    def _save_the_wal(self) -> None:
        """Restore a WAL that was separated from the file while open, and close the connection; otherwise do nothing.

        Raises:
            DatabaseGone: others have written since to its replacement. sqlite3.OperationalError: another process is writing.
        """
        thread = self._thread()
        cx, mine = thread.connection, thread.sides
        if cx is None or mine is None or not self._is_separated():
            return
        if wal.is_refused(self.directory, self.path):  # it has written nothing
            self._abandon()
            return
        cx.execute("BEGIN IMMEDIATE")
        try:
            self._refuse_if_gone()
            lost = wal.put_back(self.path, mine)
        except OSError as exc:
            full = filesystem.why_full(self.directory, exc.errno)
            if full:
                raise DatabaseFull(
                    f"{full}; the DB's WAL, which was removed, could not be put back.", hint="Free some space."
                ) from exc
            raise DatabaseError(f"The WAL of the DB {self.directory} was removed and cannot be put back: {exc}") from exc
        finally:
            cx.execute("ROLLBACK")
        if lost:
            self._abandon()
            raise DatabaseGone(
                f"{self.path}-wal or -shm was removed or replaced while this program had it open, and {lost}. What was "
                "committed here since the last checkpoint is lost.",
                hint="Never remove these files while a program uses the DB. `balsam db check` tells what state it is in.",
            )
        if wal.sides_of(self.path).shm != mine.shm:
            # Others with the same -shm then find nothing to save. FULL, not TRUNCATE, which would have that effect even if one
            # of them has already done this and written on.
            if cx.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0]:
                raise sqlite3.OperationalError("the WAL is locked by another process")
            _separated.add(self.path)
            thread.has_saved = True
        self._abandon()
        import logging  # here, not above: hardly any command needs it

        logging.getLogger(__name__).warning(
            "%s-wal or -shm was removed or replaced while this program had it open; what was in it has been saved.", self.path
        )

    def _is_open_here(self) -> bool:
        return any(one.is_open and one.path == self.path and one.owner[0] == os.getpid() for one in open_connections())

    def _await_own_threads(self) -> None:
        """Raise sqlite3.OperationalError while a thread has an open `-shm` that was removed: a new connection would use it."""
        if self.path in _separated and self._is_open_here():  # else another thread has waited, and opened the new one
            raise sqlite3.OperationalError("the WAL is locked: another thread has it open")
        _separated.discard(self.path)

    def _refuse_if_separated(self) -> None:
        """Raise DatabaseError if another process has an open WAL that was removed: this process would not see its content."""
        sides = wal.sides_of(self.path)
        if None not in sides or self._is_open_here() or (not any(sides) and wal.is_unused(self.path)):
            return
        if wal.is_refused(self.directory, self.path):
            return
        started, pause = time.monotonic(), 0.001
        while True:  # one that has just begun to open or to close the DB has none either
            holder = wal.holder_of(self.path)
            if holder is None or None not in wal.sides_of(self.path):
                return
            if time.monotonic() - started > min(_UNNOTICED_S, self.busy_timeout_s):
                raise DatabaseError(
                    f"{self.path}-wal or -shm was removed, while process {holder} has it open. What that process has written "
                    "may be nowhere else.",
                    hint=f"End that process in good order (not by kill -9): it then moves what it has into {FILE_NAME}. Copy "
                    "the directory before.",
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def _state_there(self) -> wal.State:
        try:
            return wal.state_of(self.path)
        except OSError as exc:
            raise DatabaseError(f"{self.path} cannot be read: {exc.strerror or exc}") from exc

    def _refuse_if_lost(self) -> None:
        lock = self._thread().lock
        if lock is not None and lock.is_lost():
            raise LostSession(
                f"The DB {self.directory} was given to another process, because this one did nothing for too long "
                "while it had it. Nothing was written.",
                hint="Try again. LEASE_EXPIRY_S sets how long is too long; it must be the same on all hosts.",
            )

    def _file_there(self) -> tuple[int, int]:
        file = file_at(self.path)
        if file is None:
            raise DatabaseGone(
                f"The DB {self.directory} is not there any more.",
                hint="It was removed or moved; `balsam site ls` shows the known ones.",
            )
        return file

    def _abandon(self) -> None:
        """Close without touching the file, which belongs to another process: no checkpoint, as SQLite makes on closing."""
        thread = self._thread()
        cx, thread.connection, thread.sides = thread.connection, None, None
        if cx is None:
            return
        if cx.in_transaction:
            cx.execute("ROLLBACK")
        if sys.version_info >= (3, 12):
            cx.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        else:
            cx.interrupt()  # a checkpoint checks for it at every page, and only the next statement clears it
        cx.close()

    def _thread(self) -> _ThreadState:
        if self._state.process != os.getpid():
            self._state.after_fork()
        return self._state

    def _connection(self) -> _Connection:
        thread = self._thread()
        if thread.connection is not None and thread.read_as and not thread.unlocked and thread.read_as != self._state_there():
            self.close()
        if thread.connection is None:
            thread.connection = self._open()
        return thread.connection

    def _open(self) -> _Connection:
        thread = self._thread()
        thread.file, thread.read_as, thread.is_immutable = self._file_there(), None, False
        thread.sides, thread.has_chosen = None, False
        if not self._is_upgrading and not os.path.getsize(self.path):
            self._refuse_if_emptied()
        if thread.unlocked:
            return self._open_copy()
        if self.access == filesystem.LOCAL:
            if self.path in _separated:
                self._patiently(self._await_own_threads)
            if not thread.has_saved:  # else all is in the file, also what others had written who have not noticed yet
                self._refuse_if_separated()
            thread.has_saved = False
        try:
            cx = self._open_as(self.path, "mode=rw")
            if self.access == filesystem.LOCAL and not self._is_upgrading:
                thread.sides = wal.sides_of(self.path)  # open since the connection read the version
            return cx
        except sqlite3.OperationalError as exc:
            if self._is_upgrading or sqlite_errors.is_busy(exc) or not wal.is_refused(self.directory, self.path):
                raise
        state = self._state_there()
        if state.wal[0]:
            return self._open_copy()
        thread.read_as, thread.is_immutable = state, True
        return self._open_as(self.path, "mode=ro&immutable=1")

    def _refuse_if_emptied(self) -> None:
        """Raise DatabaseEmptied if the DB of an empty file was used; SQLite would take it for a new one, and remove its WAL."""
        wal = self._state_there().wal[0]
        if wal or any(map(_has_entries, (os.path.join(self.directory, name) for name in USED_FOLDERS))):
            also = f" Its WAL still holds {wal} bytes: `balsam db salvage NEW_DIR` reads them." if wal else ""
            raise DatabaseEmptied(
                f"{self.path} is empty, though this DB has been used: something has emptied it.{also}",
                hint=f"Restore a backup: copy it to that place, and then `balsam init {self.directory}`. To begin anew, remove "
                "the file first.",
            )

    def _open_copy(self) -> _Connection:
        """Open a private copy of the file, which is removed when it is closed."""
        from . import session

        lock = session.LockFile(os.path.join(self.directory, session.FILE_NAME), self._expiry_s)
        self._thread().read_as = self._state_there()
        copy = wal.private_copy(self.path, lambda: lock.look() is None or lock.dead() is not None, self.busy_timeout_s)
        return self._open_as(copy, "mode=rw", os.path.dirname(copy))

    def _open_as(self, path: str, options: str, folder: str = "") -> _Connection:
        uri = f"file:{filesystem.quoted(path)}?{options}"
        connect = partial(sqlite3.connect, uri, uri=True, timeout=0, isolation_level=None, factory=_Connection)
        try:
            cx = cast(_Connection, self._patiently(connect))
        except sqlite3.Error as exc:
            raise sqlite_errors.translation(exc, self.path) from exc
        cx.folder, cx.path = folder, path
        try:
            self._patiently(self._prepare, cx)
        except BaseException:
            cx.close()
            raise
        return cx

    def _prepare(self, cx: sqlite3.Connection) -> None:
        if self.access != filesystem.LOCAL:
            cx.execute("PRAGMA locking_mode = EXCLUSIVE")  # before the first access: then WAL needs no shared memory
        # Committed data survives a power failure, so that no attempt number is used twice. (NORMAL syncs the WAL at checkpoints
        # only: https://sqlite.org/pragma.html#pragma_synchronous.) On a shared file system another host may open the file after
        # any commit, so each commit has to be in the file, not in this host's memory.
        cx.execute("PRAGMA synchronous = FULL")
        if self._is_upgrading:
            cx.execute("PRAGMA wal_autocheckpoint = 0")  # a launcher may be checkpointing
            return
        version = migrations.version_of(cx)
        if version != schema.VERSION:
            migrations.refuse_unready(version, self.directory)
        if self.access == filesystem.LOCAL:
            self._refuse_copy(cx)

    def _refuse_copy(self, cx: sqlite3.Connection) -> None:
        """Raise CopiedDatabase; only warn if `init` cannot help, because nothing can be written. Rebind a moved DB."""
        judged = binding.judge(cx, self.path)
        if judged == binding.SAME:
            return
        can_write = not wal.is_refused(self.directory, self.path)
        if judged == binding.MOVED:
            with suppress(sqlite3.OperationalError):  # then the next process that opens it does
                if can_write:
                    binding.record(cx, self.path)
            return
        what = f"The DB {self.directory} is a copy: its file is not {binding.recorded(cx)}."
        lacks = "Unless it is a backup by `balsam db backup`, it may lack what was written last."
        if not can_write:
            warnings.warn(f"{what} {lacks}", SettingsWarning, stacklevel=2)
            return
        hint = f"`balsam init {self.directory}` makes it a separate DB, and frees the jobs that launchers had."
        raise CopiedDatabase(what, hint=f"{hint}\n{lacks}")

    def _choose_checkpoints(self, cx: sqlite3.Connection) -> None:
        """Set whether commits of this connection move the WAL into the file: not while a launcher or the service lives."""
        if self.access == filesystem.LOCAL and not self._is_upgrading:
            mine = self._keeps_checkpoints
            if mine is None:
                query = f"SELECT 1 FROM lease WHERE closed IS NULL AND {AT_WORK} LIMIT 1"
                mine = cx.execute(query).fetchone() is None
            cx.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES if mine else 0}")
        self._thread().has_chosen = True

    def _begin(self, statement: str) -> sqlite3.Connection:
        """Begin a transaction with that statement; return the connection, which may be a new one."""
        cx = self._connection()
        cx.execute(statement)
        try:
            self._refuse_if_gone()  # the process that removes it may have held the lock until now
            if self._is_separated():
                cx.execute("ROLLBACK")
                self._save_the_wal()
                raise sqlite3.OperationalError("the WAL that was locked was removed")  # again, with the new one
            version = migrations.version_of(cx)  # takes the read lock, which may be busy for a moment
            if version != schema.VERSION and not self._is_upgrading:  # another process has upgraded it meanwhile
                migrations.refuse_unready(version, self.directory)
        except BaseException:
            if cx.is_open and cx.in_transaction:
                cx.execute("ROLLBACK")
            raise
        return cx

    def _patiently(self, action: Callable[..., _T], *arguments: Any) -> _T:
        """Return the result of the action; repeat it while the file is busy.

        SQLite's own waiting is unfair, so wait a random, slowly growing time.
        On a shared file system the name of a WAL that another host has just removed can stay in this host's cache for a
        moment, so that the file cannot be opened. Retry on that error there, too.
        """
        started = time.monotonic()
        pause = 0.001
        while True:
            try:
                return action(*arguments)
            except sqlite3.OperationalError as exc:
                waited = time.monotonic() - started
                if not sqlite_errors.is_busy(exc) and not (self._may_be_stale(exc) and waited < _STALE_NAMES_S):
                    raise
                if waited > self.busy_timeout_s:
                    raise DatabaseBusy(
                        f"The DB {self.directory} was kept busy by another process for {waited:.0f} s.",
                        hint="Try again; BALSAM_BUSY_TIMEOUT_S sets how long to wait.",
                    ) from exc
            from random import uniform  # here, not above: most commands never wait

            time.sleep(uniform(0, pause))
            pause = min(pause * 1.5, 0.02)

    def _may_be_stale(self, exc: sqlite3.Error) -> bool:
        is_shared = self.access != filesystem.LOCAL and not self._thread().unlocked
        return is_shared and "unable to open" in str(exc) and not wal.is_refused(self.directory, self.path)


def refuse_unsafe(directory: str) -> None:
    """Raise UnsafeFilesystem if a DB in that directory must not be opened as on a local disk."""
    mount = filesystem.mount_of(directory)
    if mount.access != filesystem.LOCAL:
        raise UnsafeFilesystem(
            f"The DB {directory} is to be opened as on a local disk, but is on a {mount}.",
            hint="Opened this way from several hosts it would lose jobs. `balsam init --access shared "
            f"{directory}` sets it up for a shared file system.",
        )


def _has_entries(folder: str) -> bool:
    try:
        with os.scandir(folder) as found:
            return next(found, None) is not None
    except OSError:
        return False


def file_at(path: str) -> tuple[int, int] | None:
    """Return what distinguishes a file from another one of that name; None if it does not exist. Raises DatabaseError."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise DatabaseError(f"{path} cannot be looked at: {exc}") from exc
    return found.st_dev, found.st_ino
