"""Why nothing happens to jobs that a program waits for, in words. Runs inside the caller's transaction; reads only."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ...core import field_specs
from ..store import leases
from . import batch_queries, queries, wait_reasons

#: Maximum number of jobs to look at, of those that launchers hold and of those that are waited for.
_MAX_HELD, _MAX_AWAITED = 1000, 200

_START = "Start one: `balsam launcher --consume-all --job-mode serial`, or submit one: `balsam submit-launch`."
_NESTED = (
    "every job that runs ({}) waits for other jobs itself, and no place is free for those. Give them more places: another "
    "launcher, more --nodes, or a larger node_packing_count of the jobs."
)
_NOT_TAKEN = (
    "{} is alive and does not take them: it may take other workflows or tags only. `balsam log` and `balsam ls` tell more."
)
_SILENT = "{}: {}. It is dead, or the clocks differ; the next launcher watches it, and takes its jobs if it is dead. {}"


def why_nothing_happens(cx: sqlite3.Connection, jobs: Sequence[int], now_us: int, expiry_s: float, watch: leases.Watch) -> str:
    """Return why these jobs do not run, and what to do; "" if that is unknown, or a running job may still lead to them."""
    at_work = leases.living(cx, expiry_s, watch)
    silent = [lease for lease in at_work if lease.kind == "launcher" and leases.is_doubtful(lease, now_us, expiry_s, watch)]
    launchers = {lease.id: lease for lease in at_work if lease.kind == "launcher" and lease not in silent}
    held = cx.execute("SELECT id, lease FROM job INDEXED BY job_lease WHERE lease IS NOT NULL LIMIT ?", (_MAX_HELD,)).fetchall()
    waiting = {wait.job for wait in leases.living_waits(cx, expiry_s, watch)}
    if any(lease in launchers and job not in waiting for job, lease in held):
        return ""
    if not launchers and silent:
        return _SILENT.format(silent[0], leases.last_sign(silent[0], now_us, expiry_s), _START)
    if not launchers:
        return _no_launcher(cx, any(lease.kind == "service" for lease in at_work))
    fields = ("state", "launcher_deaths", *field_specs.SHAPE_FIELDS)
    found = queries.columns_of(cx, jobs[:_MAX_AWAITED], fields)
    rows = [dict(zip(("id", *fields), (number, *row))) for number, row in found.items()]
    told = wait_reasons.waits_for(cx, rows)
    if told:
        return f"{next(iter(told.values()))}."
    stuck = sum(lease in launchers for _, lease in held)
    return _NESTED.format(stuck) if stuck else _NOT_TAKEN.format(f"The {next(iter(launchers.values()))}")


def _no_launcher(cx: sqlite3.Connection, has_service: bool) -> str:
    launches = batch_queries.unended_rows(cx)
    if launches:
        row = launches[0]
        return f"no launcher runs yet, qlaunch{row['id']} is {row['state']} in the batch queue (`balsam queue ls`)."
    if has_service:
        return "no launcher runs; the service submits one when its policy allows (`balsam service status`)."
    return f"no launcher is alive for this DB. {_START}"
