"""Leases: the right of one launcher or service to hold jobs, kept alive by one heartbeat row per process.

A holder on this host counts as dead when its process is proven gone. A holder on another host counts as dead when this process
has watched its heartbeat and seen no change for too long; clocks of hosts differ. `reap` frees the jobs of a dead holder. All
functions but `watch_the_doubtful` run inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from ...core import states
from ...core.clock import SECOND_US, SystemClock, spoken
from ...core.errors import LostLease
from ...core.process_table import Holder
from ...core.settings import SettingsWarning
from ..engine.binding import renew_id
from ..engine.connection import AT_WORK, Database
from ..engine.schema import sql_list
from ..query import queries
from . import batch_jobs, claims, notifications, runs
from .exit_rules import JobFacts


class Lease(NamedTuple):
    """One row: the holder and its last heartbeat."""

    id: int
    kind: str
    holder: Holder
    scheduler_id: str
    heartbeat_us: int

    def __str__(self) -> str:
        return f"{self.kind} {self.id} (pid {self.holder.pid} on {self.holder.host})"


def open_lease(cx: sqlite3.Connection, kind: str, holder: Holder, scheduler_id: str, now_us: int) -> int:
    """Start a lease for a launcher or a service. Return its number, which is never reused."""
    cursor = cx.execute(
        """INSERT INTO lease (kind, host, pid_namespace, pid, started, scheduler_id, opened, heartbeat)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
        (kind, *holder, scheduler_id, now_us, now_us),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def heartbeat(cx: sqlite3.Connection, lease: int, now_us: int, note: str | None = None) -> None:
    """Record that the holder is alive; `note` (JSON) describes its recent work.

    Raises:
        LostLease: another process took the holder for dead; the holder must stop its runs.
    """
    query = "UPDATE lease SET heartbeat = ?, note = coalesce(?, note) WHERE id = ? AND closed IS NULL"
    changed = cx.execute(query, (now_us, note, lease)).rowcount
    if not changed:
        raise _lost(cx, lease)


def record_environment(cx: sqlite3.Connection, lease: int, record: str) -> None:
    """Store the record of a launcher's environment, as JSON: see `launcher.environment`."""
    cx.execute("UPDATE lease SET environment = ? WHERE id = ?", (record, lease))


def refuse_lost(cx: sqlite3.Connection, lease: int) -> None:
    """Raise LostLease if another process took the holder for dead and freed its jobs: the user did not kill them."""
    if cx.execute("SELECT 1 FROM lease WHERE id = ? AND closed IS NULL", (lease,)).fetchone() is None:
        raise _lost(cx, lease)


def _lost(cx: sqlite3.Connection, lease: int) -> LostLease:
    found = cx.execute("SELECT end_reason, taken_by FROM lease WHERE id = ?", (lease,)).fetchone()
    if found is None:
        return LostLease(f"Lease {lease} is not in this DB any more.")
    how = f"taken away by {found[1]}" if found[1] else f"closed by another process ({found[0] or 'for no known reason'})"
    return LostLease(f"Lease {lease} was {how}; its jobs belong to another launcher now.")


def close_lease(
    cx: sqlite3.Connection, lease: int, now_us: int, reason: str, note: str | None = None, taken_by: str = ""
) -> None:
    """End a lease that holds no job any more, with an optional last note. Closing it twice has no effect.

    `taken_by` names the process that took the holder for dead, for the holder to report if it is alive after all.
    """
    query = """UPDATE lease SET closed = ?, end_reason = ?, note = coalesce(?, note), taken_by = ?
        WHERE id = ? AND closed IS NULL"""
    cx.execute(query, (now_us, reason, note, taken_by, lease))


def open_leases(cx: sqlite3.Connection, where: str = AT_WORK) -> list[Lease]:
    """Return the open leases of launchers and services for which that SQL condition holds, the oldest first."""
    rows = cx.execute(
        f"""SELECT id, kind, host, pid_namespace, pid, started, scheduler_id, heartbeat
        FROM lease WHERE closed IS NULL AND {where} ORDER BY id"""
    )
    return [_lease(row) for row in rows]


def opened_us(cx: sqlite3.Connection) -> dict[int, int]:
    """Return when each open lease was opened, by number."""
    return dict(cx.execute("SELECT id, opened FROM lease WHERE closed IS NULL"))


def _lease(row: Sequence[Any]) -> Lease:
    return Lease(row[0], row[1], Holder(*row[2:6]), row[6], row[7])


class LeaseRecord(NamedTuple):
    """An open or closed lease, for display. Times are microseconds since the epoch."""

    lease: Lease
    opened_us: int
    closed_us: int | None
    end_reason: str
    note: str  # JSON, or ""


def latest(cx: sqlite3.Connection, kind: str) -> LeaseRecord | None:
    """Return the newest lease of that kind; None if there is none."""
    row = cx.execute(
        """SELECT id, kind, host, pid_namespace, pid, started, scheduler_id, heartbeat, opened, closed, end_reason, note
        FROM lease WHERE kind = ? ORDER BY id DESC LIMIT 1""",
        (kind,),
    ).fetchone()
    return None if row is None else LeaseRecord(_lease(row[:8]), *row[8:])


#: Clocks of hosts may differ by this many seconds before it is worth mentioning.
CLOCKS_AGREE_S = 5.0


class Watch:
    """Heartbeats that this process has seen. Only a changed heartbeat proves that a holder is alive: hosts' clocks differ."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seen: dict[Lease, float] = {}  # a lease with its heartbeat -> when it was first seen so
        self._beating: set[int] = set()  # leases whose heartbeat has changed meanwhile

    def unchanged_s(self, lease: Lease) -> float:
        """Return for how many seconds this process has seen this heartbeat unchanged; 0.0 at the first look."""
        now = self._monotonic()
        if lease not in self._seen:
            others = {old: at for old, at in self._seen.items() if old.id != lease.id}
            if len(others) < len(self._seen):
                self._beating.add(lease.id)
            self._seen = others
        return now - self._seen.setdefault(lease, now)

    def has_beaten(self, lease: Lease) -> bool:
        """Return whether this process has seen the heartbeat of the lease change."""
        return lease.id in self._beating


def is_dead(lease: Lease, expiry_s: float, watch: Watch | None = None) -> bool:
    """Return whether the holder is certainly dead: its process on this host is gone, or its heartbeat elsewhere has stopped.

    A heartbeat has stopped when it has not changed for `expiry_s` seconds of watching, regardless of the hosts' clocks.
    Without `watch`, no holder on another host is certainly dead.
    """
    if lease.holder.is_here():
        return lease.holder.is_provably_dead()
    return watch is not None and watch.unchanged_s(lease) > expiry_s


def is_silent(lease: Lease, now_us: int, expiry_s: float) -> bool:
    """Return whether a holder on another host looks dead by the clocks, which may be wrong: a reason to watch, never to act."""
    return not lease.holder.is_here() and abs(now_us - lease.heartbeat_us) > expiry_s * 1e6


def is_doubtful(lease: Lease, now_us: int, expiry_s: float, watch: Watch) -> bool:
    """Return whether a holder on another host is silent, and watching has not shown yet whether it is alive."""
    return is_silent(lease, now_us, expiry_s) and not is_dead(lease, expiry_s, watch) and not watch.has_beaten(lease)


def living(cx: sqlite3.Connection, expiry_s: float, watch: Watch | None = None) -> list[Lease]:
    """Return the open leases whose holders are not certainly dead, the oldest first."""
    return [lease for lease in open_leases(cx) if not is_dead(lease, expiry_s, watch)]


def any_at_work(cx: sqlite3.Connection, now_us: int, expiry_s: float) -> bool:
    """Return whether a launcher or service is alive, by its process here or by the age of its heartbeat elsewhere."""
    return any(not is_silent(lease, now_us, expiry_s) for lease in living(cx, expiry_s))


def is_eldest(cx: sqlite3.Connection, lease: int, expiry_s: float, watch: Watch) -> bool:
    """Return whether no older launcher or service may be alive: the oldest one makes the checkpoints."""
    return next((one.id for one in open_leases(cx) if not is_dead(one, expiry_s, watch)), None) == lease


def dead(cx: sqlite3.Connection, expiry_s: float, watch: Watch) -> list[int]:
    """Return the leases with dead holders, including reaped ones: their processes may still run on other hosts."""
    reaped = [row[0] for row in cx.execute("SELECT id FROM lease WHERE end_reason = 'dead'")]
    return reaped + [lease.id for lease in open_leases(cx) if is_dead(lease, expiry_s, watch)]


def holds_jobs(cx: sqlite3.Connection, lease: Lease) -> bool:
    """Return whether any job is held by that lease."""
    query = "SELECT 1 FROM job INDEXED BY job_lease WHERE lease = ? LIMIT 1"
    return cx.execute(query, (lease.id,)).fetchone() is not None


def described(cx: sqlite3.Connection, lease: Lease, now_us: int, expiry_s: float) -> str:
    """Describe the holder in words: how many jobs it holds, and its last sign of life."""
    query = "SELECT count(*) FROM job INDEXED BY job_lease WHERE lease = ?"
    jobs = cx.execute(query, (lease.id,)).fetchone()[0]
    return f"{lease} has {jobs} job(s), {last_sign(lease, now_us, expiry_s)}"


def last_sign(lease: Lease, now_us: int, expiry_s: float) -> str:
    """Return in words when the holder last sent a heartbeat. For another host this relies on its clock, which may be wrong."""
    age_s = (now_us - lease.heartbeat_us) / 1e6
    if lease.holder.is_here():
        return f"last heard of {spoken(max(age_s, 0))} ago"
    if age_s < -CLOCKS_AGREE_S:
        return f"the clock of {lease.holder.host} is {spoken(-age_s)} ahead of this host's"
    silent = "no sign of life for" if is_silent(lease, now_us, expiry_s) else "last heard of"
    ago = "" if is_silent(lease, now_us, expiry_s) else " ago"
    return f"{silent} {spoken(max(age_s, 0))}{ago} by the clock of {lease.holder.host}"


#: States in which a job that a launcher holds is in a step.
_STEP_STATES = (*states.UNPREPARED_STATES, *states.UNSETTLED_STATES)


def reap(
    cx: sqlite3.Connection,
    lease: Lease,
    now_us: int,
    end_reason: str = "dead",
    cause: str = runs.LAUNCHER_DIED,
    watch: Watch | None = None,
    may_have_killed: Callable[[JobFacts], bool] = lambda facts: False,
) -> int:
    """Free the jobs of a dead holder: RUNNING jobs go to RESTART_READY, or to FAILED at their restart limit.

    `cause` ends the runs; with another one than the launcher's death this counts as no restart.

    The caller has made sure that no process of those jobs is alive on this host. A holder on another host may be alive; it then
    reads for how long `watch` saw no heartbeat. For jobs that `may_have_killed` the holder, its death is counted instead of a
    restart; see `suspects`. Return the number of freed jobs.
    """
    rows = claims.facts_of(cx, "job.lease = ?", (lease.id,), "INDEXED BY job_lease")
    note = f"The {lease} is gone" if end_reason == "dead" else f"Freed from {lease}: {end_reason}"
    running = [facts for facts in rows if facts.state == states.RUNNING]
    is_counted = cause == runs.LAUNCHER_DIED
    lost = [(facts, runs.lost_run(facts, note, now_us, cause, is_counted, may_have_killed(facts))) for facts in running]
    claims.requeue_lost(cx, lost, now_us)
    runs.end_unseen(cx, [facts.job for facts in rows if facts.state == states.USER_KILLED], now_us, runs.KILLED)
    in_step = [facts for facts in rows if facts.state in _STEP_STATES and may_have_killed(facts)]
    claims.count_step_deaths(cx, in_step, now_us, was_alone=len(rows) == 1)
    claims.release(cx, lease.id, [facts.job for facts in rows if facts.state != states.RUNNING], now_us)
    close_lease(cx, lease.id, now_us, end_reason, taken_by="" if watch is None else taker(lease, watch))
    return len(rows)


def taker(lease: Lease, watch: Watch) -> str:
    """Return in words that this process took a holder for dead, and why."""
    me, silent = Holder.current(), spoken(watch.unchanged_s(lease))
    return f"process {me.pid} on {me.host}, which had seen no heartbeat of it for {silent}"


# --- the cause of a death ----------------------------------------------------------------------------------------------

#: States in which a batch job has ended by itself, so that the death of its launcher may be the cause, and not the effect.
_ENDED_BY_ITSELF = ("finished", "failed")
#: A launcher that died less than this many microseconds before its batch job's time limit, or later, was ended by that limit.
_LIMIT_SLACK_US = 120 * SECOND_US


def outside_cause(cx: sqlite3.Connection, lease: Lease, now_us: int, living: Iterable[Lease]) -> str:
    """Return why the launcher with that lease died if its jobs are not the cause, or if the cause is unknown; else "".

    `living` are the leases with live holders. Without proof that the host and the batch job went on, the cause is unknown.
    """
    told = f"SELECT 1 FROM job INDEXED BY job_lease WHERE lease = ? AND told_to_stop IS NOT NULL AND state = '{states.RUNNING}'"
    if cx.execute(f"{told} LIMIT 1", (lease.id,)).fetchone():
        return "it had been told to stop"
    is_here = lease.holder.is_here()
    if is_here and lease.heartbeat_us < now_us - _uptime_us():
        return "its host was started again"
    if not lease.scheduler_id:
        return "" if is_here else "its host cannot be asked"
    if any(other.scheduler_id == lease.scheduler_id and other.id != lease.id for other in living):
        return ""  # the batch job goes on
    # Inside a PBS batch job its id ends in a dot and the server name; submission returns it without these.
    ids = dict.fromkeys((lease.scheduler_id, lease.scheduler_id.partition(".")[0]))
    row = next((row for row in (queries.batch_job_with_scheduler_id(cx, word) for word in ids if word) if row), None)
    return "its batch job is unknown" if row is None else _cause_of_end(cx, row, lease, is_here)


def _cause_of_end(cx: sqlite3.Connection, row: queries.BatchRow, lease: Lease, is_here: bool) -> str:
    if row["state"] == batch_jobs.CANCELLING or (row["ended"] is not None and row["state"] not in _ENDED_BY_ITSELF):
        return f"its batch job is {row['state']}"
    if row["ended"] is not None and "node" in row["reason"].lower():
        return row["reason"]
    opened_us = cx.execute("SELECT opened FROM lease WHERE id = ?", (lease.id,)).fetchone()[0]
    limit_us = (row["started"] or opened_us) + row["wall_minutes"] * 60 * SECOND_US
    if row["wall_minutes"] and lease.heartbeat_us > limit_us - _LIMIT_SLACK_US:
        return "the time of its batch job was up"
    return "" if is_here or row["ended"] is not None else "its host cannot be asked"


def _uptime_us() -> int:
    """Return for how many microseconds this host has been up; a very large number where the system does not report it."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)  # Linux (clock_gettime(2)): counts while the host sleeps, too
    return 2**62 if clock is None else time.clock_gettime_ns(clock) // 1000


# --- watching -----------------------------------------------------------------------------------------------------------


def await_certainty(look: Callable[[], Sequence[Lease]], expiry_s: float) -> None:
    """Call `look` until it returns no doubtful holder; warn the user once about the wait."""
    told = False
    while True:
        doubtful = look()
        if not doubtful:
            return
        if not told:
            names = ", ".join(map(str, doubtful))
            text = f"Watching for up to {expiry_s:g} s whether {names} still lives: its last sign of life is old by its clock."
            warnings.warn(text, SettingsWarning, stacklevel=3)
            told = True
        time.sleep(min(1.0, expiry_s / 4))


def watch_the_doubtful(db: Database, expiry_s: float, where: str = AT_WORK) -> Watch:
    """Wait until it is certain which holders on other hosts are alive, and free the jobs of the dead ones.

    Open read transactions, and a write transaction if a holder is dead. Return the watch with the heartbeats it has seen.
    """
    watch = Watch()

    def look() -> list[Lease]:
        with db.session(), db.read() as cx:
            now_us, found = SystemClock.now_us(), [one for one in open_leases(cx, where) if not one.holder.is_here()]
        dead = [one for one in found if is_dead(one, expiry_s, watch)]
        if dead:
            with db.session(), db.write() as cx:
                for lease in open_leases(cx, where):
                    if lease in dead:
                        reap(cx, lease, now_us, watch=watch)
        return [one for one in found if is_doubtful(one, now_us, expiry_s, watch)]

    await_certainty(look, expiry_s)
    return watch


# --- processes that wait for jobs -------------------------------------------------------------------------------------
# They are registered as leases of the kind `wait`, so that launchers know that more jobs may come. Such a lease holds no job,
# and its row is deleted at its end. That of a dead process is deleted when the next one is opened on its host, or by a
# launcher that has watched it, and is ignored until then.


WAIT = "wait"
IS_WAIT = f"kind = '{WAIT}'"


class Wait(NamedTuple):
    """A process that waits, and the number of the job in which it runs, if any."""

    lease: Lease
    job: int | None


def open_wait(cx: sqlite3.Connection, holder: Holder, job_id: str, now_us: int, expiry_s: float) -> int:
    """Register a process that waits for jobs, in the job with that UUID or ("") outside of jobs. Return the lease's number."""
    for lease in open_leases(cx, IS_WAIT):
        if is_dead(lease, expiry_s):
            close_wait(cx, lease.id)
    number = open_lease(cx, WAIT, holder, "", now_us)
    if job_id:
        mine = "SELECT id FROM job WHERE substr(job_id, 1, 8) = ? AND job_id = ?"
        cx.execute(f"UPDATE lease SET note = coalesce(({mine}), '') WHERE id = ?", (job_id[:8], job_id, number))
    return number


def close_wait(cx: sqlite3.Connection, lease: int) -> None:
    """Remove the registration of a process that waited."""
    cx.execute(f"DELETE FROM lease WHERE id = ? AND {IS_WAIT}", (lease,))


def living_waits(cx: sqlite3.Connection, expiry_s: float, watch: Watch | None = None) -> list[Wait]:
    """Return the waits whose processes are not certainly dead."""
    rows = cx.execute(f"SELECT id, note FROM lease WHERE closed IS NULL AND {IS_WAIT}")
    jobs = {number: int(note) if note else None for number, note in rows}
    if not jobs:
        return []
    found = open_leases(cx, IS_WAIT)
    return [Wait(lease, jobs.get(lease.id)) for lease in found if not is_dead(lease, expiry_s, watch)]


def remove_dead_waits(cx: sqlite3.Connection, dead: Collection[Lease]) -> None:
    """Remove the registrations that are still as they were when their processes were found to be dead."""
    for lease in open_leases(cx, IS_WAIT):
        if lease in dead:
            close_wait(cx, lease.id)


# --- copies of a DB -----------------------------------------------------------------------------------------------------

_ORIGINAL_GOES_ON = "this DB is a copy, and the original goes on"


class Freed(NamedTuple):
    """Numbers of the rows that were freed in a copy."""

    jobs: int
    launchers: int
    batch_jobs: int


def make_own(cx: sqlite3.Connection, now_us: int, is_in_place: bool) -> Freed:
    """Make a copy a separate DB: draw a new id, close the leases and batch jobs of the original, free the jobs.

    A backup that replaces the original (`is_in_place`) keeps its batch jobs, which will run launchers there. RUNNING jobs go to
    RESTART_READY, which does not count as a restart. Runs inside the caller's write transaction.
    """
    cx.execute(f"DELETE FROM lease WHERE {IS_WAIT}")  # those processes wait for the original's jobs
    cx.execute("UPDATE large_write SET pid = 0")  # their owners go on in the original
    notifications.forget(cx)  # the original tells them
    found = open_leases(cx)
    jobs = sum(reap(cx, lease, now_us, _ORIGINAL_GOES_ON, runs.UNKNOWN) for lease in found)
    renew_id(cx)
    if is_in_place:
        return Freed(jobs, len(found), 0)
    cx.execute(
        f"""UPDATE job SET queued_launch_id = NULL
            WHERE queued_launch_id IS NOT NULL AND state NOT IN ({sql_list(states.END_STATES)})"""
    )
    return Freed(jobs, len(found), batch_jobs.disown(cx, "it belongs to the DB of which this one is a copy", now_us))
