"""The lock file of a shared DB: who holds it may open the database file, on whatever host.

filelock's SoftFileLock (O_EXCL) is the one primitive that held on every file system tried. A holder that died on this host
is recognised by filelock; one on another host by a lock file that nobody touches any more.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from types import TracebackType

from filelock import SoftFileLock, Timeout

from ..errors import DatabaseBusy, DatabaseError, DatabaseFull, DatabaseReadOnly

FILE_NAME = "session.lock"
#: So often the lock file may be refused without being there, before it is the directory that refuses.
_MOST_REFUSALS = 20


class SessionLock:
    """Held inside a `with` block. Not reentrant: `Database.session` counts.

    Args:
        patience_s: wait so long for the lock, then DatabaseBusy; longer for a holder that seems to be dead.
        expiry_s: a lock file unchanged for so long, by this host's clock, is a dead holder's. Holders touch theirs four
            times as often.
    """

    def __init__(self, directory: str, patience_s: float, expiry_s: float) -> None:
        self._directory = directory
        self._path = os.path.join(directory, FILE_NAME)
        self._patience_s, self._expiry_s = patience_s, expiry_s
        self._lock = SoftFileLock(self._path, thread_local=False)
        self._released = threading.Event()
        self._seen: tuple[object, float] = (None, time.monotonic())
        self._refusals = 0

    def __enter__(self) -> SessionLock:
        started = time.monotonic()
        pause = 0.002
        while not self._try():
            self._break_if_expired()
            waited = time.monotonic() - started
            if waited > self._patience_s and not self._seems_dead():
                raise DatabaseBusy(
                    f"{self._path} was held by another process for {waited:.0f} s.",
                    hint="Try again; BALSAM_BUSY_TIMEOUT_S sets how long to wait.",
                )
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(pause * 1.5, 0.1)
        threading.Thread(target=self._touch, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._released.set()
        self._lock.release()

    def _try(self) -> bool:
        if not os.path.isdir(self._directory):  # filelock would make it
            raise DatabaseError(f"The DB {self._directory} is not there any more.")
        try:
            self._lock.acquire(timeout=0)
            return True
        except Timeout:
            return False
        except PermissionError as exc:
            # sshfs answers EPERM, not EEXIST, to the loser of an O_EXCL race. The winner may have left meanwhile.
            self._refusals = 0 if os.path.lexists(self._path) else self._refusals + 1
            if self._refusals == 0 or (self._refusals < _MOST_REFUSALS and os.access(self._directory, os.W_OK)):
                return False
            raise DatabaseReadOnly(f"The DB {self._directory} cannot be locked: {exc}") from exc
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DatabaseFull(f"The disk of {self._directory} is full; nothing was written.") from exc
            raise DatabaseReadOnly(f"The DB {self._directory} cannot be locked: {exc}") from exc

    def _touch(self) -> None:
        while not self._released.wait(self._expiry_s / 4):
            try:
                os.utime(self._path)
            except OSError:  # a failing touch costs the holder its claim at worst; its transaction still ends by itself
                pass

    def _break_if_expired(self) -> None:
        try:
            found = os.lstat(self._path)
        except OSError:
            return
        marker = (found.st_mtime_ns, found.st_ino)
        if marker != self._seen[0]:
            self._seen = (marker, time.monotonic())
        elif time.monotonic() - self._seen[1] > self._expiry_s:
            self._take_away(marker)

    def _seems_dead(self) -> bool:
        """Whether the holder has missed a touch. Who went away now would never see the lock expire."""
        return self._expiry_s / 3 < time.monotonic() - self._seen[1] <= 2 * self._expiry_s

    def _take_away(self, marker: tuple[int, int]) -> None:
        """Remove the dead holder's file, and no other: rename it, look at what came along, put back what is alive."""
        aside = f"{self._path}.{os.getpid()}.{random.getrandbits(64):x}"
        try:
            os.rename(self._path, aside)
            moved = os.lstat(aside)
            if (moved.st_mtime_ns, moved.st_ino) != marker:
                os.link(aside, self._path)
            os.unlink(aside)
        except OSError:  # somebody else was faster
            pass
