"""Freeing what dead launchers held: first make sure that nothing of theirs runs, then give their jobs back."""

from __future__ import annotations

from ..clock import Clock
from ..db.connection import Database
from ..db.store import leases
from ..settings import Settings
from .commands import lease_mark
from .process import end_orphans


def reap_dead(db: Database, settings: Settings, clock: Clock) -> int:
    """Find leases whose holder is dead and free their jobs. Returns how many jobs were freed.

    On the holder's own host its orphaned processes are killed before the jobs can start again; on another host there is
    no way to, and the expiry of the lease has to do. Each lease is freed in a write transaction of its own.
    """
    with db.read() as cx:
        dead = [lease for lease in leases.open_leases(cx) if leases.is_dead(lease, clock.now_us(), settings.LEASE_EXPIRY_S)]
    freed = 0
    for lease in dead:
        if lease.holder.is_here():
            end_orphans(lease_mark(db.directory, lease.id), settings.USER_KILL_GRACE_S)
        with db.write() as cx:
            # Somebody else may have been faster, or a holder on another host may have come back to life.
            still = [found for found in leases.open_leases(cx) if found == lease]
            freed += sum(leases.reap(cx, found, clock.now_us()) for found in still)
    return freed
