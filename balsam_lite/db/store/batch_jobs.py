"""Every write to the table `batch_job`.

A row is open until `ended` is set. Later scheduler reports on an ended row are ignored, so that a wrong answer cannot reopen
it. The exception is a row with `absent` set: that end is a guess, made because the scheduler stopped listing the batch job, and
the scheduler may correct it. All functions run inside the caller's write transaction, on its connection `cx`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...core import field_specs, states
from ..engine.connection import Database
from ..engine.schema import VISIBLE, sql_list
from ..query import queries
from . import claims, suspects
from .claims import Shape, StartableIndex

PENDING = "pending-submission"
SUBMITTED = "submitted"
SUBMISSION_FAILED = "submission-failed"
#: Cancellation was requested, and the scheduler has not confirmed it yet.
CANCELLING = "cancelling"


#: Variables of a shell, of a batch job or of an MPI program, which differ each time.
_OF_EACH_SHELL = frozenset({"_", "SHLVL", "PWD", "OLDPWD", "HOSTNAME", "TERM", "TMPDIR", "WINDOWID"})
_OF_EACH_BATCH_JOB = (
    "SLURM", "SBATCH", "PBS", "COBALT", "LSB_", "LS_", "FLUX_", "SGE_", "PALS_", "PMI", "OMPI_", "SSH_", "XDG_",
    "BALSAM_LOCAL_", "BALSAM_DETACHED",
)  # fmt: skip


def kept_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables by which the environments of a submitter and its launcher are compared; secret values masked."""
    kept = {name: value for name, value in environ.items() if not name.startswith(_OF_EACH_BATCH_JOB)}
    return field_specs.masked({name: value for name, value in kept.items() if name not in _OF_EACH_SHELL})


def add(cx: sqlite3.Connection, values: Mapping[str, Any], now_us: int) -> int:
    """Insert a batch job that is about to be submitted and return its number. `values` are columns of the table."""
    row = {**values, "state": PENDING, "created": now_us}
    columns = ", ".join(row)
    marks = ", ".join("?" * len(row))
    cursor = cx.execute(f"INSERT INTO batch_job ({columns}) VALUES ({marks})", tuple(row.values()))
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def set_paths(cx: sqlite3.Connection, number: int, command: str, log: str) -> None:
    """Set the paths of the script and its output. Their names contain the number, so this follows `add`."""
    cx.execute("UPDATE batch_job SET command = ?, log = ? WHERE id = ?", (command, log, number))


#: A row whose state may still change.
_OPEN = "(ended IS NULL OR absent IS NOT NULL)"


def retry(cx: sqlite3.Connection, number: int, values: Mapping[str, Any], now_us: int) -> bool:
    """Make a row whose submission was refused pending again, with new `values`, and count the attempt.

    Return False if the row is gone, or its submission was not refused (or no longer counts as refused).
    """
    row = {**values, "state": PENDING, "created": now_us, "reason": "", "ended": None}
    changed = cx.execute(
        f"UPDATE batch_job SET tries = tries + 1, {', '.join(f'{name} = ?' for name in row)}"
        " WHERE id = ? AND state = ? AND scheduler_id = '' AND absent IS NULL",
        (*row.values(), number, SUBMISSION_FAILED),
    )
    return changed.rowcount == 1


def mark_submitted(cx: sqlite3.Connection, number: int, scheduler_id: str, cluster: str = "") -> bool:
    """Store the scheduler's id of a batch job. This reopens a row that was given up: its submitter was only slow.

    Return False if the row is gone, or another process has already found the same batch job by its name.
    """
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, scheduler_id = ?, cluster = ?, reason = '', ended = NULL, absent = NULL"
        " WHERE id = ? AND scheduler_id = '' AND state IN (?, ?)",
        (SUBMITTED, scheduler_id, cluster, number, PENDING, SUBMISSION_FAILED),
    )
    return changed.rowcount == 1


def mark_failed(cx: sqlite3.Connection, number: int, reason: str, now_us: int) -> bool:
    """End a row whose submission was refused. Return False if it became a batch job, or the row is gone."""
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, reason = ?, ended = ?, absent = NULL WHERE id = ? AND state = ?",
        (SUBMISSION_FAILED, reason, now_us, number, PENDING),
    )
    return changed.rowcount == 1


def mark_cancelling(cx: sqlite3.Connection, number: int) -> None:
    """Record that the scheduler was asked to cancel a batch job, unless it has ended."""
    cx.execute("UPDATE batch_job SET state = ? WHERE id = ? AND ended IS NULL", (CANCELLING, number))


def record(
    cx: sqlite3.Connection,
    number: int,
    *,
    state: str,
    reason: str,
    exit_code: int | None,
    started: int | None,
    ended: int | None,
    absent: int | None,
    expected_start: int | None = None,
    polled: int | None = None,
    was_absent: int | None = None,
) -> bool:
    """Write what the scheduler reported. Return False if the row has certainly ended, or is gone.

    Also return False if its `absent` is not `was_absent` any more: another process had a newer answer. Times are µs since
    the epoch; None for `started` and `polled` keeps the stored value.
    """
    changed = cx.execute(
        "UPDATE batch_job SET state = ?, reason = ?, exit_code = ?, started = coalesce(?, started), ended = ?, absent = ?,"
        f" expected_start = ?, polled = coalesce(?, polled) WHERE id = ? AND absent IS ? AND {_OPEN}",
        (state, reason, exit_code, started, ended, absent, expected_start, polled, number, was_absent),
    )
    return changed.rowcount == 1


def disown(cx: sqlite3.Connection, reason: str, now_us: int) -> int:
    """End the rows of all open batch jobs without asking a scheduler. Return their number."""
    query = f"UPDATE batch_job SET state = 'gone', reason = ?, ended = coalesce(ended, ?), absent = NULL WHERE {_OPEN}"
    return cx.execute(query, (reason, now_us)).rowcount


#: Jobs per transaction, which takes some milliseconds.
BATCH = 1000

_OF_LAUNCH = "FROM job INDEXED BY job_queued_launch WHERE queued_launch_id = ?"
_ENDS = sql_list(states.END_STATES)


def reserve(db: Database, launch: int, shape: Shape, longest_minutes: int, jobs: int) -> int:
    """Plan up to `jobs` jobs of a shape for a launch, in the order of claiming. Return the number of planned jobs.

    Considers only startable jobs that are planned for no other launch and whose estimate is at most `longest_minutes`.
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
    """Run `update` for each job, in several transactions. Return the number of changed rows."""
    changed = 0
    for start in range(0, len(ids), BATCH):
        with db.write() as cx:
            changed += cx.executemany(update, [(job,) for job in ids[start : start + BATCH]]).rowcount
    return changed


def orphaned(cx: sqlite3.Connection, open_launches: Iterable[int]) -> list[int]:
    """Return the launches that are not open but still have startable jobs planned. Runs inside the caller's transaction."""
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
    """End the reservations of a launch that is over, on all jobs that have not ended. Return the number of these jobs."""
    with db.read() as cx:
        ids = [row[0] for row in cx.execute(f"SELECT id {_OF_LAUNCH} AND state NOT IN ({_ENDS})", (launch,))]
    update = f"UPDATE job SET queued_launch_id = NULL WHERE id = ? AND queued_launch_id = {launch:d}"
    return _in_batches(db, ids, update)


def was_idle(cx: sqlite3.Connection, launch: int) -> bool:
    """Return whether no job planned for the launch has run since the launch was created. Runs inside the caller's transaction.

    If no job is planned for it, return whether no launcher has begun in it. So call this before `unclaim`.
    """
    row = cx.execute("SELECT created, scheduler_id FROM batch_job WHERE id = ?", (launch,)).fetchone()
    planned = cx.execute(f"SELECT 1 {_OF_LAUNCH} LIMIT 1", (launch,)).fetchone()
    begun = cx.execute(f"SELECT 1 {_OF_LAUNCH} AND (lease IS NOT NULL OR state IN ({_ENDS})) LIMIT 1", (launch,)).fetchone()
    if row is None or begun is not None:
        return False
    if planned is None:
        created_us, scheduler_id = row
        return not queries.launchers_in(cx, "id", scheduler_id, created_us)
    run = cx.execute(
        f"""SELECT 1 FROM (SELECT id {_OF_LAUNCH}) AS planned JOIN event ON event.job = planned.id
            WHERE event.time >= ? AND event.to_state = '{states.RUNNING}' LIMIT 1""",
        (launch, row[0]),
    ).fetchone()
    return run is None
