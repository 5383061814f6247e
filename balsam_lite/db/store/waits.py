"""Processes that wait for jobs: registered as leases of the kind `wait`, so that launchers know that more jobs may come.

Such a lease holds no job, and its row is deleted at its end. The lease of a dead process is deleted when the next one is opened
on its host, or by a launcher that has watched it, and is ignored until then. All functions run inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import NamedTuple

from ...core.process_table import Holder
from . import leases

KIND = "wait"
IS_WAIT = f"kind = '{KIND}'"


class Wait(NamedTuple):
    """A process that waits, and the number of the job in which it runs, if any."""

    lease: leases.Lease
    job: int | None


def open_wait(cx: sqlite3.Connection, holder: Holder, job_id: str, now_us: int, expiry_s: float) -> int:
    """Register a process that waits for jobs, in the job with that UUID or ("") outside of jobs. Return the lease's number."""
    for lease in leases.open_leases(cx, IS_WAIT):
        if leases.is_dead(lease, expiry_s):
            close_wait(cx, lease.id)
    number = leases.open_lease(cx, KIND, holder, "", now_us)
    if job_id:
        mine = "SELECT id FROM job WHERE substr(job_id, 1, 8) = ? AND job_id = ?"
        cx.execute(f"UPDATE lease SET note = coalesce(({mine}), '') WHERE id = ?", (job_id[:8], job_id, number))
    return number


def close_wait(cx: sqlite3.Connection, lease: int) -> None:
    """Remove the registration of a process that waited."""
    cx.execute(f"DELETE FROM lease WHERE id = ? AND {IS_WAIT}", (lease,))


def living(cx: sqlite3.Connection, expiry_s: float, watch: leases.Watch | None = None) -> list[Wait]:
    """Return the waits whose processes are not certainly dead."""
    rows = cx.execute(f"SELECT id, note FROM lease WHERE closed IS NULL AND {IS_WAIT}")
    jobs = {number: int(note) if note else None for number, note in rows}
    if not jobs:
        return []
    found = leases.open_leases(cx, IS_WAIT)
    return [Wait(lease, jobs.get(lease.id)) for lease in found if not leases.is_dead(lease, expiry_s, watch)]


def remove_dead(cx: sqlite3.Connection, dead: Collection[leases.Lease]) -> None:
    """Remove the registrations that are still as they were when their processes were found to be dead."""
    for lease in leases.open_leases(cx, IS_WAIT):
        if lease in dead:
            close_wait(cx, lease.id)
