"""Freeing what dead launchers held: first make sure that nothing of theirs runs, then give their jobs back."""

from __future__ import annotations

import logging

from ..clock import Clock
from ..db.connection import Database
from ..db.store import leases
from ..db.store.leases import Lease
from ..processes import with_mark
from ..settings import Settings
from .commands import lease_mark
from .process import end_orphans

log = logging.getLogger(__name__)

#: Run marks of launchers of which something could not be killed. Nobody waits for that a second time.
_stubborn: set[bytes] = set()


class Reaper:
    """Frees the jobs of dead holders, and watches those on other hosts. One for each launcher or service."""

    def __init__(self, db: Database, settings: Settings, clock: Clock) -> None:
        self._db, self._settings, self._clock = db, settings, clock
        self.watch = leases.Watch(clock.monotonic)
        #: Holders elsewhere that may be dead and have jobs, as of the last `reap`. Watching decides within LEASE_EXPIRY_S.
        self.doubtful: list[Lease] = []

    def reap(self) -> int:
        """Find leases whose holder is dead and free their jobs. Returns how many jobs were freed.

        On the holder's own host its orphaned processes are killed before the jobs can start again; a lease of which one
        cannot be killed is left as it is. On another host they cannot be killed: only the expiry of the lease counts. Each
        lease is freed in a separate write transaction.
        """
        now_us, expiry_s = self._clock.now_us(), self._settings.LEASE_EXPIRY_S
        with self._db.read() as cx:
            found = leases.open_leases(cx)
            dead = [lease for lease in found if leases.is_dead(lease, now_us, expiry_s, self.watch)]
            doubtful = [lease for lease in found if leases.is_doubtful(lease, now_us, expiry_s, self.watch)]
            doubtful = [lease for lease in doubtful if leases.holds_jobs(cx, lease)]
        for lease in doubtful:
            if lease.id not in (old.id for old in self.doubtful):
                age_s = (now_us - lease.heartbeat_us) / 1e6
                log.info("The %s has jobs, and its last heartbeat is %.0f s old. Watching it for %g s.", lease, age_s, expiry_s)
        self.doubtful = doubtful
        return sum(self._free(lease) for lease in dead)

    def _free(self, lease: Lease) -> int:
        mark = lease_mark(self._db.directory, lease.id)
        if lease.holder.is_here() and not _is_over(mark, self._settings.USER_KILL_GRACE_S):
            return 0
        with self._db.write() as cx:
            # Somebody else may have been faster, or a holder on another host may have come back to life.
            still = [found for found in leases.open_leases(cx) if found == lease]
            return sum(leases.reap(cx, found, self._clock.now_us()) for found in still)


def _is_over(mark: bytes, grace_s: float) -> bool:
    """End what has that run mark on this host; returns whether all of it has ended."""
    if mark in _stubborn and with_mark(mark):
        return False
    _stubborn.discard(mark)
    if end_orphans(mark, grace_s).left:
        _stubborn.add(mark)
    return mark not in _stubborn
