"""Find and end the remaining processes of attempts on this host: by session leaders, sessions, run marks and descent."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ...core.process_table import Belonging, Process, belonging, living, signal_all
from ...db.engine.directories import RUNS
from . import run_file
from .invocation import Context, node_mark

log = logging.getLogger(__name__)

#: A process that has not ended this many seconds after SIGKILL waits for a file system, or now belongs to another user.
_UNKILLABLE_S = 30.0
#: Seconds for which a process with an unreadable environment may belong to a run. During execve(2) that lasts milliseconds.
_MAX_UNKNOWN_S = 10.0
_PERIOD_S = 0.01


class Orphans(NamedTuple):
    """The result of `end_runs`."""

    number: int
    left: tuple[int, ...] = ()  # the pids of those that cannot be killed


def runs_of(
    db_directory: str, leases: Collection[bytes] = (), runs: Collection[bytes] = (), rank: int | None = None
) -> Belonging:
    """Return the processes on this host of the attempts that were started under leases, and of single attempts.

    Args:
        leases: in the form of `invocation.lease_mark`.
        runs: in the form of `invocation.mark`.
        rank: only those of the leases' runs that this rank has started; None: all.
    """
    leaders = leaders_of(db_directory, [*leases, *runs], rank)
    return belonging(leaders, runs, tuple(leases), node_mark(rank or 0))


def leaders_of(db_directory: str, marks: Iterable[bytes], rank: int | None = None) -> list[tuple[int, str]]:
    """Return pid and start of each session leader that was recorded here under those leases or for those runs.

    For leases these include the spawn helpers, which may still be alive: everything that they have started is below them.
    """
    found: set[tuple[int, str]] = set()
    cache: dict[tuple[str, int], list[run_file.RunEntry]] = {}
    for mark in marks:
        db_id, lease, *run = os.fsdecode(mark).partition("@")[0].rstrip(":").split(":")
        if not lease.isdecimal() or not all(map(str.isdecimal, run)):
            continue
        key = (db_id, int(lease))
        if key not in cache:
            cache[key] = run_file.read(os.path.join(db_directory, RUNS), *key, rank)
        wanted = tuple(map(int, run))
        found.update((one.pid, one.started) for one in cache[key] if not wanted or wanted == (one.job, one.attempt))
    return sorted(found)


def end_runs(
    db_directory: str,
    grace_s: float,
    leases: Collection[bytes] = (),
    runs: Collection[bytes] = (),
    rank: int | None = None,
) -> Orphans:
    """End the processes that `runs_of` finds: TERM, grace, KILL. Wait for their end for a limited time.

    For launchers that are provably dead, for one that gives up, and for single attempts whose end no spawn helper reports.
    """
    if not leases and not runs:
        return Orphans(0)
    known_at = time.monotonic() + _MAX_UNKNOWN_S
    kill_at = float("inf")  # until something has been told to end
    found: set[Process] = set()
    number = signal.SIGTERM
    leaders = leaders_of(db_directory, [*leases, *runs], rank)
    while True:
        members, unknown = belonging(leaders, runs, tuple(leases), node_mark(rank or 0))
        members = list({*members, *living(found)})  # one may have left its session since
        now = time.monotonic()
        if not members and (not unknown or now > known_at):
            known, leaders = leaders, leaders_of(db_directory, [*leases, *runs], rank)
            if leaders == known:
                return Orphans(len(found))
        if members and (number == signal.SIGKILL or not found.issuperset(members)):
            signal_all(members, number)
            kill_at = min(kill_at, now + grace_s)
        found.update(members)
        if members and now > kill_at + _UNKILLABLE_S:
            return _give_up(len(found), members)
        if now > kill_at:
            number = signal.SIGKILL
        time.sleep(_PERIOD_S)


def end_own_runs(context: Context, grace_s: float, rank: int | None = None) -> None:
    """End the processes of a launcher that gives up on this host. Remove its run files if no process is left then."""
    if not end_runs(context.db_directory, grace_s, [context.mark], rank=rank).left:
        forget(context, rank)


def forget(context: Context, rank: int | None = None) -> None:
    """Remove the run files of a launcher, or of one of its ranks, that has no running process any more."""
    files = run_file.RunFiles.of(context.db_directory, context.mark)
    run_file.remove(files.directory, files.lease, rank)


def _give_up(number: int, members: Sequence[Process]) -> Orphans:
    pids = tuple(member.pid for member in members)
    log.warning("Killed, but not gone after %g s: process(es) %s", _UNKILLABLE_S, ", ".join(map(str, pids)))
    return Orphans(number, pids)
