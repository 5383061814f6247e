"""The lock file of a shared DB: its holder may open the database file, on any host.

Creating a file with O_EXCL is the one primitive that worked on every file system tested. The file names its creator, so that
a holder that died on this host is replaced at once; a holder on another host is replaced when its lock file has not been
touched for a while. That holder may only have been asleep, so a holder checks that the lock is still its own before it commits.
"""

from __future__ import annotations

import errno
import json
import os
import random
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from ...core.errors import DatabaseBusy, DatabaseError, DatabaseFull, DatabaseReadOnly
from ...core.process_table import Holder
from . import filesystem

FILE_NAME = "session.lock"
#: Its holder may remove a dead holder's lock file. One at a time, else the second removes the first one's new lock.
_BREAKER = f"{FILE_NAME}.break"
#: Number of refusals without an existing lock file after which the directory itself counts as unwritable.
_MAX_REFUSALS = 20
#: Errors for the loser of a race: sshfs raises EPERM where others raise EEXIST, NFS may know the directory by an old handle.
_LOST_RACE = (errno.EPERM, errno.EACCES, errno.ESTALE)
#: Seconds. Creating a lock file and writing a name to it are two steps; a process killed in between leaves a nameless one.
#: A live holder is faster, and if not, does without the lock.
_NAMELESS_EXPIRY_S = 3.0
#: Bytes; a lock file is far smaller.
_MAX_READ = 4096


class _Seen(NamedTuple):
    """The state of a lock file at one moment."""

    content: bytes
    touched_ns: int

    def holder(self) -> Holder | None:
        """Return the creator of the file; None if it is not recorded, or not yet."""
        try:
            host, namespace, pid, started, _ = json.loads(self.content)
            return Holder(str(host), str(namespace), int(pid), str(started))
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            return None


class LockFile:
    """A file that one process at a time can create, containing its name, which shows when a dead process created it."""

    def __init__(self, path: str, expiry_s: float) -> None:
        self.path = path
        self._expiry_s = expiry_s
        self._mine = b""  # its content while it is ours: no other lock has the same content
        self._last: _Seen | None = None
        self._unchanged_since = time.monotonic()

    def take(self) -> bool:
        """Create the file. Return False if another process has it. Raises OSError if the file system refuses."""
        # Random enough for consecutive locks of one process.
        content = json.dumps([*Holder.current(), f"{random.getrandbits(64):x}"]).encode()
        started = time.monotonic()
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return False
        try:
            try:
                os.write(handle, content)
            finally:
                os.close(handle)  # NFS writes here, and may report a full disk here
        except OSError:
            os.unlink(self.path)
            raise
        self._mine = content
        return time.monotonic() - started < _NAMELESS_EXPIRY_S / 2 or self.is_mine()

    def is_mine(self) -> bool:
        """Return whether this is still the file that this process created. An unreadable file counts as lost."""
        seen = self.look() if self._mine else None
        return seen is not None and seen.content == self._mine

    def touch(self) -> None:
        """Show other processes that the creator is alive."""
        try:
            if self.is_mine():
                os.utime(self.path)
        except OSError:  # at worst others take the lock, and the creator notices before it commits
            pass

    def release(self) -> None:
        """Remove the file if it is still ours."""
        try:
            if self.is_mine():
                os.unlink(self.path)
        except OSError:  # others find that its creator is dead, or that it is not touched
            pass
        self._mine = b""

    def look(self) -> _Seen | None:
        """Return the current state; None if there is no file, or if it cannot be read.

        The file is opened because NFS asks the server for opened files, but may not for stat(2).
        """
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return _Seen(os.read(handle, _MAX_READ), os.fstat(handle).st_mtime_ns)
            finally:
                os.close(handle)
        except OSError:
            return None

    def dead(self) -> _Seen | None:
        """Return the file if its creator is dead: on this host by proof, elsewhere if it has not changed for too long."""
        seen = self.look()
        if seen != self._last:
            self._last, self._unchanged_since = seen, time.monotonic()
        if seen is None:
            return None
        holder = seen.holder()
        if holder and holder.is_here():
            return seen if holder.is_provably_dead() else None
        expiry_s = self._expiry_s if seen.content else min(_NAMELESS_EXPIRY_S, self._expiry_s)
        return seen if self.age_s > expiry_s else None

    @property
    def age_s(self) -> float:
        """Return for how many seconds `dead` has seen no change."""
        return time.monotonic() - self._unchanged_since


class SessionLock:
    """Hold a lock within a `with` block. Not reentrant: `Database.session` ensures that.

    Args:
        patience_s: seconds to wait for the lock before DatabaseBusy; longer for a holder that seems to be dead.
        expiry_s: seconds, by this host's clock, after which an unchanged lock file belongs to a dead holder. Holders touch
            theirs four times as often.
    """

    def __init__(self, directory: str, patience_s: float, expiry_s: float) -> None:
        self._directory = directory
        self._patience_s, self._expiry_s = patience_s, expiry_s
        self._lock = LockFile(os.path.join(directory, FILE_NAME), expiry_s)
        self._breaker = LockFile(os.path.join(directory, _BREAKER), expiry_s)
        self._released = threading.Event()
        self._process = os.getpid()
        self._refusals = 0

    def __enter__(self) -> SessionLock:
        started = time.monotonic()
        pause = 0.002
        while not self._try():
            if self._free_from_the_dead():
                continue
            waited = time.monotonic() - started
            if waited > self._patience_s and not self._seems_dead():
                raise self._busy(waited)
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 1.5, 0.1)
        with suppress(RuntimeError):  # too few threads for this user: a session takes far less time than its lock may
            threading.Thread(target=self._keep_touching, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._released.set()
        if self._process == os.getpid():  # a forked child keeps its parent's lock
            self._lock.release()

    def is_lost(self) -> bool:
        """Return whether others took this process for dead, so that the database file may belong to another by now."""
        return not self._lock.is_mine()

    def _try(self) -> bool:
        try:
            return self._lock.take()
        except OSError as exc:
            if exc.errno in _LOST_RACE:
                # The winner may have released it meanwhile.
                self._refusals = 0 if os.path.lexists(self._lock.path) else self._refusals + 1
                if self._refusals == 0 or (self._refusals < _MAX_REFUSALS and os.access(self._directory, os.W_OK)):
                    return False
            raise self._refused(exc) from exc

    def _refused(self, exc: OSError) -> DatabaseError:
        full = filesystem.why_full(self._directory, exc.errno)
        if full:
            return DatabaseFull(f"{full}; nothing was written.", hint="Free some space, try again.")
        if not os.path.isdir(self._directory):
            return DatabaseError(f"The DB {self._directory} is not there any more.")
        return DatabaseReadOnly(f"The DB {self._directory} cannot be written: {exc}", hint="See the directory's permissions.")

    def _busy(self, waited_s: float) -> DatabaseBusy:
        seen = self._lock.look()
        holder = seen and seen.holder()
        who = f"another process (pid {holder.pid} on {holder.host})" if holder else "another process"
        return DatabaseBusy(
            f"{self._lock.path} was held by {who} for {waited_s:.0f} s.",
            hint="Try again; BALSAM_BUSY_TIMEOUT_S sets how long to wait.",
        )

    def _keep_touching(self) -> None:
        while not self._released.wait(self._expiry_s / 4):
            self._lock.touch()

    def _seems_dead(self) -> bool:
        """Return whether the holder has missed a touch. A process that stopped waiting now would never see the lock expire."""
        return self._expiry_s / 3 < self._lock.age_s <= 2 * self._expiry_s

    def _free_from_the_dead(self) -> bool:
        """Remove a dead holder's lock file. Return False if there is none, or another process does so."""
        dead = self._lock.dead()
        if dead is None:
            return False
        try:
            if not self._breaker.take():
                if self._breaker.dead():
                    os.unlink(self._breaker.path)
                return False
            try:
                still_there = self._lock.look() == dead
                if still_there:
                    os.unlink(self._lock.path)
                return still_there
            finally:
                self._breaker.release()
        except OSError:  # another process was faster, or the directory refuses, as `_try` will then report
            return False
