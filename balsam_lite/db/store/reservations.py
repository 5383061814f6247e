"""Reservations: which jobs are planned for which launch (`job.queued_launch_id`, the number of the batch job's row).

A reservation is a plan, not a lock: the launch's own launcher takes these jobs first, any other takes them as well. It ends
with the job, and with the launch: then jobs that have not ended are given back. All functions open their own write
transactions, short ones, so that launchers do not wait for ten thousand jobs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from ...core import field_specs, states
from ..engine.connection import Database
from ..engine.schema import VISIBLE, sql_list
from . import claims, suspects
from .claims import Shape, StartableIndex

#: Jobs in one transaction; so many take some milliseconds.
_BATCH = 1000

_OF_LAUNCH = "FROM job INDEXED BY job_queued_launch WHERE queued_launch_id = ?"
_ENDS = sql_list(states.END_STATES)


def reserve(db: Database, launch: int, shape: Shape, longest_minutes: int, jobs: int) -> int:
    """Plan up to `jobs` jobs of a shape for a launch, in the order of claiming; returns how many there were.

    Only startable ones that are planned for no other launch, with an estimate of `longest_minutes` or less.
    """
    with db.read() as cx:
        among = [*claims.sources(), claims.source_of_suspects()]
        ids = [job for source in among for job in _unplanned(cx, source, shape, longest_minutes, jobs)][:jobs]
    free = "queued_launch_id IS NULL AND lease IS NULL"
    return _in_batches(db, ids, f"UPDATE job SET queued_launch_id = {launch:d} WHERE id = ? AND {free}")


def _unplanned(cx: sqlite3.Connection, source: StartableIndex, shape: Shape, longest_minutes: int, most: int) -> list[int]:
    fields = " AND ".join(f"{field} = ?" for field in field_specs.SHAPE_FIELDS)
    query = f"""SELECT id FROM job INDEXED BY {source.index_name}
        WHERE {source.condition} AND {fields} AND wall_time_minutes <= ? AND queued_launch_id IS NULL AND {VISIBLE}
        ORDER BY priority DESC, wall_time_minutes DESC, id LIMIT ?"""
    return [row[0] for row in cx.execute(query, (*source.parameters, *shape, longest_minutes, most))]


def _in_batches(db: Database, ids: Sequence[int], update: str) -> int:
    """Carry out `update` for each job, in several transactions; returns how many rows changed."""
    changed = 0
    for start in range(0, len(ids), _BATCH):
        with db.write() as cx:
            changed += cx.executemany(update, [(job,) for job in ids[start : start + _BATCH]]).rowcount
    return changed


def orphaned(cx: sqlite3.Connection, open_launches: Iterable[int]) -> list[int]:
    """Launches that are not open and still have startable jobs planned for them. Inside the caller's transaction."""
    is_open = set(open_launches)
    found = set(suspects.launches(cx))
    for source in claims.sources():
        query = f"""SELECT min(queued_launch_id) FROM job INDEXED BY {source.index_name}_of_launch
            WHERE {source.condition} AND queued_launch_id > ?"""
        launch = cx.execute(query, (-(2**63),)).fetchone()[0]
        while launch is not None:
            found.add(launch)
            launch = cx.execute(query, (launch,)).fetchone()[0]
    return sorted(found - is_open)


def unclaim(db: Database, launch: int) -> int:
    """End the reservations of a launch that is over, on all jobs that have not ended; returns how many these are."""
    with db.read() as cx:
        ids = [row[0] for row in cx.execute(f"SELECT id {_OF_LAUNCH} AND state NOT IN ({_ENDS})", (launch,))]
    update = f"UPDATE job SET queued_launch_id = NULL WHERE id = ? AND queued_launch_id = {launch:d}"
    return _in_batches(db, ids, update)


def was_idle(cx: sqlite3.Connection, launch: int) -> bool:
    """Whether no job that is planned for the launch has been run since that was made. Inside the caller's transaction.

    Where none is planned: whether no launcher has begun in it. So ask before `unclaim`.
    """
    row = cx.execute("SELECT created, scheduler_id FROM batch_job WHERE id = ?", (launch,)).fetchone()
    planned = cx.execute(f"SELECT 1 {_OF_LAUNCH} LIMIT 1", (launch,)).fetchone()
    begun = cx.execute(f"SELECT 1 {_OF_LAUNCH} AND (lease IS NOT NULL OR state IN ({_ENDS})) LIMIT 1", (launch,)).fetchone()
    if row is None or begun is not None:
        return False
    if planned is None:
        return not _had_launcher(cx, *row)
    run = cx.execute(
        f"""SELECT 1 FROM (SELECT id {_OF_LAUNCH}) AS planned JOIN event ON event.job = planned.id
            WHERE event.time >= ? AND event.to_state = '{states.RUNNING}' LIMIT 1""",
        (launch, row[0]),
    ).fetchone()
    return run is None


def _had_launcher(cx: sqlite3.Connection, created_us: int, scheduler_id: str) -> bool:
    """Whether a launcher has begun in the batch job of that id. PBS leaves the server behind the dot out, or does not."""
    found = cx.execute("SELECT scheduler_id FROM lease WHERE kind = 'launcher' AND opened >= ?", (created_us,))
    number = scheduler_id.partition(".")[0]
    return number != "" and any(row[0].partition(".")[0] == number for row in found)
