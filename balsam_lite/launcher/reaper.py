"""Free the jobs of dead launchers, after making sure that none of their processes runs any more."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection

from ..core import states
from ..core.clock import Clock
from ..core.settings import Settings
from ..db.engine.binding import id_of
from ..db.engine.connection import Connection, Database
from ..db.engine.directories import RUNS
from ..db.query import queries
from ..db.store import leases, notifications
from ..db.store.exit_rules import JobFacts
from ..db.store.leases import Lease
from .exec import run_file
from .exec.invocation import lease_mark
from .exec.run_file import end_runs, runs_of

log = logging.getLogger(__name__)

#: Run marks of launchers with processes that could not be killed. These are not waited for again.
_stubborn: set[bytes] = set()


class Reaper:
    """Frees the jobs of dead holders, and watches holders on other hosts. One for each launcher or service.

    `lost_lease` is the lease of a launcher that ended because of a lost node: none of its jobs has killed it.
    """

    def __init__(self, db: Database, settings: Settings, clock: Clock, lost_lease: int | None = None) -> None:
        self._db, self._settings, self._clock, self._lost_lease = db, settings, clock, lost_lease
        self.watch = leases.Watch(clock.monotonic)
        #: Holders elsewhere that may be dead and have jobs, as of the last `reap`. Watching decides within LEASE_EXPIRY_S.
        self.doubtful: list[Lease] = []
        self._is_first = True

    def reap(self) -> int:
        """Find leases whose holder is dead and free their jobs. Return the number of freed jobs.

        On the holder's own host its orphaned processes are killed before the jobs can start again; if one cannot be killed, the
        lease stays as it is. On another host they cannot be killed: only the expiry of the lease counts. Each lease is freed in
        a separate write transaction.
        """
        now_us, expiry_s = self._clock.now_us(), self._settings.LEASE_EXPIRY_S
        with self._db.read() as cx:
            found, db_id = leases.open_leases(cx), id_of(cx)
            dead = [lease for lease in found if leases.is_dead(lease, expiry_s, self.watch)]
            gone = [lease for lease in leases.open_leases(cx, leases.IS_WAIT) if leases.is_dead(lease, expiry_s, self.watch)]
            doubtful = [lease for lease in found if leases.is_doubtful(lease, now_us, expiry_s, self.watch)]
            doubtful = [lease for lease in doubtful if leases.holds_jobs(cx, lease)]
        for lease in doubtful:
            if lease.id not in (old.id for old in self.doubtful):
                sign = leases.last_sign(lease, now_us, expiry_s)
                log.info("The %s has jobs: %s. Watching it for %g s.", lease, sign, expiry_s)
        self.doubtful = doubtful
        if self._is_first:
            self._is_first = False
            self._end_forgotten([lease.id for lease in found], db_id)
        if gone:
            with self._db.write() as cx:
                leases.remove_dead_waits(cx, gone)
        living = [lease for lease in found if lease not in dead]
        return sum(self._free(lease, db_id, living) for lease in dead)

    def _free(self, lease: Lease, db_id: str, living: Collection[Lease]) -> int:
        directory = self._db.directory
        # Before what is left is ended: a run that is not recorded as living had ended or not started when its launcher died.
        ran = {(one.job, one.attempt) for one in run_file.read(os.path.join(directory, RUNS), db_id, lease.id, anywhere=True)}
        if lease.holder.is_here() and not _is_over(directory, lease_mark(db_id, lease.id), self._settings.USER_KILL_GRACE_S):
            return 0
        with self._db.write() as cx:
            # Another process may have been faster, or a holder on another host may have come back to life.
            still = [found for found in leases.open_leases(cx) if found == lease]
            freed = sum(self._reap(cx, found, living, ran) for found in still)
        if lease.holder.is_here():  # the host of another holder has yet to end what runs there
            run_file.remove(os.path.join(directory, RUNS), lease.id, host=os.uname().nodename)
        return freed

    def _reap(self, cx: Connection, lease: Lease, living: Collection[Lease], ran: Collection[tuple[int, int]]) -> int:
        now_us = self._clock.now_us()
        cause = leases.outside_cause(cx, lease, now_us, living)

        def may_have_killed(facts: JobFacts) -> bool:
            return (
                not cause
                and lease.id != self._lost_lease
                and (facts.state != states.RUNNING or (facts.job, facts.attempt) in ran)
            )

        freed = leases.reap(cx, lease, now_us, watch=self.watch, may_have_killed=may_have_killed)
        if self._settings.ON_EVENT and lease.kind == "launcher":
            row = queries.batch_job_with_scheduler_id(cx, lease.scheduler_id) if lease.scheduler_id else None
            asked = {
                "launch": f"qlaunch{row['id']}" if row else "",
                "nodes": row["nodes"] if row else None,
                "job_mode": row["job_mode"] if row else None,
            }
            reason = f"it died{cause and f': {cause}'}; {freed} job(s) were freed"
            ended = {"launcher": lease.id, "host": lease.holder.host, **asked, "reason": reason}
            notifications.add(cx, notifications.LAUNCH_ENDED, ended, now_us)
        return freed

    def _end_forgotten(self, open_leases: Collection[int], db_id: str) -> None:
        """End programs started on this host under leases that another host has closed: a new attempt may run already."""
        directory = self._db.directory
        for lease in run_file.leases_here(os.path.join(directory, RUNS), db_id) - set(open_leases):
            if _is_over(directory, lease_mark(db_id, lease), self._settings.USER_KILL_GRACE_S):
                run_file.remove(os.path.join(directory, RUNS), lease, host=os.uname().nodename)


def _is_over(directory: str, mark: bytes, grace_s: float) -> bool:
    """End the programs started under that lease on this host; return whether all have ended."""
    if mark in _stubborn and runs_of(directory, [mark]).members:
        return False
    _stubborn.discard(mark)
    if end_runs(directory, grace_s, [mark]).left:
        _stubborn.add(mark)
    return mark not in _stubborn
