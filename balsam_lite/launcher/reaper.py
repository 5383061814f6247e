"""Freeing what dead launchers held: first make sure that nothing of theirs runs, then give their jobs back."""

from __future__ import annotations

from ..clock import Clock
from ..db.connection import Database
from ..db.store import leases
from ..processes import with_mark
from ..settings import Settings
from .commands import lease_mark
from .process import end_orphans

#: Run marks of launchers of which something could not be killed. Nobody waits for that a second time.
_stubborn: set[bytes] = set()


def reap_dead(db: Database, settings: Settings, clock: Clock) -> int:
    """Find leases whose holder is dead and free their jobs. Returns how many jobs were freed.

    On the holder's own host its orphaned processes are killed before the jobs can start again; a lease of which one cannot
    be killed is left as it is. On another host there is no way to, and the expiry of the lease has to do. Each lease is freed
    in a write transaction of its own.
    """
    with db.read() as cx:
        dead = [lease for lease in leases.open_leases(cx) if leases.is_dead(lease, clock.now_us(), settings.LEASE_EXPIRY_S)]
    freed = 0
    for lease in dead:
        if lease.holder.is_here() and not _is_over(lease_mark(db.directory, lease.id), settings.USER_KILL_GRACE_S):
            continue
        with db.write() as cx:
            # Somebody else may have been faster, or a holder on another host may have come back to life.
            still = [found for found in leases.open_leases(cx) if found == lease]
            freed += sum(leases.reap(cx, found, clock.now_us()) for found in still)
    return freed


def _is_over(mark: bytes, grace_s: float) -> bool:
    """End what has that run mark on this host; returns whether all of it has ended."""
    if mark in _stubborn and with_mark(mark):
        return False
    _stubborn.discard(mark)
    if end_orphans(mark, grace_s).left:
        _stubborn.add(mark)
    return mark not in _stubborn
