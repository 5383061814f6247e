"""When to look into the DB for what others wrote: at once on a local disk, ever more rarely on a quiet shared file system."""

from __future__ import annotations

import os

from ..db.engine.connection import Database
from ..db.engine.filesystem import LOCAL


class Quiet:
    """Whether others wrote, without a session on a shared file system as long as nothing happens.

    There only opening the file tells what is in it, which costs the lock file, the opening and two syncs. So the interval grows
    with each transaction that brings nothing, up to `LONGEST_S`, and begins anew with one that does. Meanwhile size and time of
    the file are a hint, which a client of NFS may have from its cache for `acregmin` to `acregmax` seconds (3 to 60 by default,
    nfs(5)); other file systems show them at once. So a new job or a kill is noticed after `HINT_S` in general, and after
    `LONGEST_S` in any case. Times are seconds on the monotonic clock.
    """

    FIRST_S, LONGEST_S = 0.1, 3.0
    #: How often the hint is looked at.
    HINT_S = 0.25

    def __init__(self, db: Database) -> None:
        self._db = db
        self.interval_s = 0.0
        self._next = float("-inf")
        self._file: tuple[int, int, int] | None = None

    @property
    def look_s(self) -> float:
        """Return how long not to look again, at least."""
        return self.HINT_S if self.interval_s else 0.0

    def has_news(self, now: float) -> bool:
        """Return whether others may have written since the last transaction."""
        changed = self._db.changed()
        return changed if self._db.access == LOCAL else now >= self._next or self._seen() != self._file

    def note(self, now: float, brought_something: bool) -> None:
        """Record that there was a transaction."""
        if self._db.access == LOCAL:
            return
        self.interval_s = 0.0 if brought_something else min(self.LONGEST_S, max(self.FIRST_S, 1.5 * self.interval_s))
        self._next, self._file = now + self.interval_s, self._seen()

    def _seen(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._db.path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
