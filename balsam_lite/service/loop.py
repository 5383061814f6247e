"""The service's turns: refresh the state of its launches, survey the waiting jobs, submit the next launch.

A launch's row is written to the DB before the scheduler is called. After a crash between the two, the launch is found by its
name, and no submission is lost or doubled. What a scheduler does not report is unknown, and nothing is submitted because of it.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..core.clock import SECOND_US, Clock
from ..core.errors import (
    DatabaseError,
    InputError,
    LostLease,
    NotABalsamDB,
    PollFailed,
    SchedulerError,
    SchemaMismatch,
    SettingsError,
)
from ..core.process_table import Holder
from ..core.settings import Settings, SettingsWarning
from ..db.engine import connection
from ..db.engine.connection import Connection, Database
from ..db.engine.filesystem import LOCAL
from ..db.query import demand, queries, takers
from ..db.query.catalogue import text_of
from ..db.query.demand import Work
from ..db.query.queries import BatchRow
from ..db.query.takers import Queue, full
from ..db.store import batch_jobs, held_back, leases, notifications, pieces
from ..db.store.claims import Shape
from ..db.store.leases import Lease
from ..launcher import mpirun
from ..launcher.notifier import Notifier
from ..launcher.parents_exchange import ParentsExchange
from ..launcher.reaper import Reaper
from ..schedulers import base, submission
from ..schedulers.base import LaunchRequest, Scheduler
from . import packer
from .packer import Launch, LaunchCapacity, LaunchChoice, UnplacedWork
from .policy import PolicyFile, margin_minutes
from .surroundings import surroundings

log = logging.getLogger(__name__)

KIND = "service"
#: Maximum number of jobs that are planned for one launch. It runs more if it can; a longer plan only costs time.
_MAX_PLANNED = 2000
#: Maximum pause of a queue that fails, seconds; each pause is longer than the one before.
_MAX_PAUSE_S = 600.0
#: The same for jobs that launchers in a queue cannot take, such as those with more GPUs than its nodes have.
_MAX_REFUSAL_S = 6 * 3600.0
#: Seconds of a turn in which large writes of other processes are completed.
_LARGE_WRITES_S = 2.0
#: Number of doublings after which even the shortest period exceeds these limits; 2.0**1024 overflows.
_MAX_DOUBLINGS = 20
#: Work for finishing what a dead launcher left: it takes no time, but needs a launcher.
_TIDYING = Work(Shape(1, 1, 1, 0), 1, 1)
#: Maximum number of lines of reasons that `status` keeps.
_MAX_REASONS = 20


class Survey(NamedTuple):
    """The state of the jobs and launches at one moment."""

    left: list[Work]  # neither planned for a launch nor expected to be done by the open ones
    launches: Counter[str]  # open ones, by queue


class SubmissionPause(NamedTuple):
    """Why, and until when, nothing is submitted to a queue."""

    failures: int
    until: float  # on the monotonic clock
    until_us: int  # by the wall clock, for other processes
    reason: str


def survey(cx: Connection, rows: Sequence[BatchRow], margin: int, now_us: int) -> Survey:
    """Return the work that waits without a launch, given these open launches. Reads only."""
    planned = {row["id"]: demand.of_launch(cx, row["id"]) for row in rows}
    holders = leases.open_leases(cx)
    waiting = demand.startable(cx) + ([_TIDYING] if demand.has_unsettled(cx) else [])
    capacities = [_supply(cx, row, planned[row["id"]], holders, margin, now_us) for row in rows]
    all_planned = [work for works in planned.values() for work in works]
    return Survey(packer.uncovered(waiting, all_planned, capacities), Counter(str(row["queue"]) for row in rows))


def _supply(
    cx: Connection, row: BatchRow, planned: Iterable[Work], holders: Iterable[Lease], margin: int, now_us: int
) -> LaunchCapacity:
    minutes = 0.0 if row["state"] == batch_jobs.CANCELLING else float(row["wall_minutes"] - margin)
    promised = sum(packer.cost(work) * work.jobs for work in planned)
    if row["state"] == base.RUNNING and row["started"] is not None:  # a launch that is queued again has all its time
        minutes = row["wall_minutes"] - (now_us - row["started"]) / (60 * SECOND_US)
        own = [lease.id for lease in holders if lease.scheduler_id == row["scheduler_id"] != ""]
        promised += demand.held_node_minutes(cx, own, now_us)
    return LaunchCapacity(row["nodes"], max(0.0, minutes), promised, row["job_mode"] == "serial", _taken_by(cx, row))


def _taken_by(cx: Connection, row: BatchRow) -> tuple[Work, ...] | None:
    """Return the jobs that a launch takes besides its planned ones; None: all. (): none, or selected by tags (uncounted)."""
    if row["prescheduled_only"] or row["filter_tags"] != "{}" or row["partitions"] != "[]":
        return ()
    return tuple(demand.of_workflows(cx, row["wf_filter"])) if row["wf_filter"] else None


class Rehearsal(NamedTuple):
    """What the service would do."""

    launches: list[Launch]
    misfits: tuple[UnplacedWork, ...]
    waits: tuple[UnplacedWork, ...]


def dry_run(db: Database, settings: Settings, queues: Sequence[Queue], domain: str, now_us: int) -> Rehearsal:
    """Return which launches the service would submit now, and why no more. Change nothing and ask no scheduler."""
    margin = margin_minutes(settings)
    with db.read() as cx:
        left, launches = survey(cx, queries.open_batch_jobs(cx, domain), margin, now_us)
    chosen: list[Launch] = []
    while True:
        choice = packer.choose(queues, full(queues, launches), left, margin)
        if choice.launch is None:
            return Rehearsal(chosen, choice.misfits, choice.waits)
        chosen.append(choice.launch)
        launches[choice.launch.queue] += 1
        capacity = LaunchCapacity(choice.launch.nodes, choice.launch.minutes - margin, 0.0, choice.launch.job_mode == "serial")
        left = packer.uncovered(left, (), [capacity])


class Service:
    """Takes turns until it is told to stop. The caller has opened its lease, and closes it.

    Args:
        log_path: the path that `status` reports.
        policy: the file that defines the queues; it is read again in each turn.
    """

    def __init__(
        self,
        db: Database,
        settings: Settings,
        queues: Sequence[Queue],
        scheduler: Scheduler,
        lease: int,
        clock: Clock,
        log_path: str = "",
        policy: PolicyFile | None = None,
    ) -> None:
        self._db, self._settings, self._scheduler = db, settings, scheduler
        self._queues, self._lease, self._clock = queues, lease, clock
        self._policy, self._policy_trouble = policy, ""
        self._reaper = Reaper(db, settings, clock)
        self.notifier = Notifier(db, settings, clock, lambda cx: surroundings(cx, db, settings, self._reaper.watch))
        self._exchange = ParentsExchange(db, settings, clock, is_service=True)
        self._margin = margin_minutes(settings)
        self._pauses: dict[str, SubmissionPause] = {}
        self._refusals: dict[tuple[str, Shape], SubmissionPause] = {}  # for jobs of one shape alone
        self._open: dict[int, BatchRow] = {}  # the launches that were open a turn ago
        self._refused: dict[str, int] = {}  # by queue, the launch that was refused last; its row has the time of the next try
        self._said: set[str] = set()
        self._note: dict[str, Any] = {"log": log_path}
        self._noted, self._last_heartbeat = "", -math.inf
        self._failing_since: float | None = None
        self._file = connection.file_at(db.path)
        self.holds_lease = True
        self.stop_reason = ""

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self, wait: Callable[[float], object]) -> None:
        """Take turns until there is a reason to stop. `wait` sleeps for at most that many seconds."""
        while not self.stop_reason:
            if not self._guarded_turn():
                self._rest(wait)
        self._finish_note()

    def stop(self, reason: str) -> None:
        """Make `run` end after the current step. May be called by a signal handler."""
        self.stop_reason = self.stop_reason or reason

    def _rest(self, wait: Callable[[float], object]) -> None:
        end = self._clock.monotonic() + self._settings.SERVICE_PERIOD
        while not self.stop_reason and self._clock.monotonic() < end:
            wait(min(end - self._clock.monotonic(), self._settings.beat_s))
            try:
                self.beat()
            except DatabaseError as exc:
                self._database_failed(exc)

    def _guarded_turn(self) -> bool:
        try:
            again = self.turn()
        except DatabaseError as exc:
            self._database_failed(exc)
            return False
        self._failing_since = None
        return again

    def _database_failed(self, exc: DatabaseError) -> None:
        now = self._clock.monotonic()
        self._failed(f"The DB cannot be used, still trying: {exc.message}")
        self._failing_since = now if self._failing_since is None else self._failing_since
        # On this host a living process keeps its lease.
        may_pass = self._db.access == LOCAL and not isinstance(exc, (NotABalsamDB, SchemaMismatch))
        if now - self._failing_since > self._settings.LEASE_EXPIRY_S and not may_pass:
            raise LostLease(f"The DB could not be used for {now - self._failing_since:.0f} s: {exc.message}")

    def turn(self) -> bool:
        """Take one turn. Return whether the next may follow at once: a launch was submitted, or a large write is unfinished.

        Raises:
            LostLease: another service may be running, or the DB is not there any more. DatabaseError.
        """
        self.refuse_other_db()
        self.beat()
        self._exchange.start_due()
        answered = self.refresh()
        self.reap()
        self.release_due()
        self.unclaim()
        is_unfinished = self.advance_large_writes()
        submitted = False
        if answered and not self.stop_reason:
            self.reread_policy()
            choice = self.choose()
            self.report(choice)
            submitted = choice.launch is not None and self.submit(choice.launch)
        self.beat()
        return submitted or is_unfinished

    def refuse_other_db(self) -> None:
        """Raise LostLease if the DB was removed or replaced by another one: no other process sees the file that is open here.

        Some network file systems give a file a new inode number now and then, so the lease decides.
        """
        file = connection.file_at(self._db.path)
        if file == self._file:
            return
        if file is None:
            raise LostLease(f"The DB {self._db.directory} was removed.")
        self._db.close()
        with self._db.read() as cx:
            is_ours = any(lease.id == self._lease and lease.holder == Holder.current() for lease in leases.open_leases(cx))
        if not is_ours:
            raise LostLease(f"The DB {self._db.directory} was replaced by another one.")
        self._file = file

    # --- the steps ----------------------------------------------------------------------------------------------------

    def beat(self, even_if_early: bool = False) -> None:
        """Renew the heartbeat and note what was done. Opens a write transaction if one is due or there is news."""
        now, note = self._clock.monotonic(), json.dumps(self._note)
        if (
            even_if_early
            or now >= self.notifier.wakes_at
            or note != self._noted
            or now - self._last_heartbeat >= self._settings.beat_s
        ):
            with self._db.write() as cx:
                leases.heartbeat(cx, self._lease, self._clock.now_us(), note)
                eldest = leases.is_eldest(cx, self._lease, self._settings.LEASE_EXPIRY_S, self._reaper.watch)
                self.notifier.look(cx)
            self.notifier.send()
            self._db.own_checkpoints(eldest)
            self._noted, self._last_heartbeat = note, now

    def refresh(self) -> bool:
        """Update the launches from the scheduler. Return False if it did not answer: then nothing has changed."""
        try:
            rows = submission.refresh(self._db, self._scheduler, self._clock.now_us())
        except PollFailed as exc:
            self._failed(exc.message)
            return False
        now_open = {row["id"]: row for row in rows if row["ended"] is None}
        for number in self._open.keys() - now_open.keys():
            self._ended(number)
        self._open = now_open
        return True

    def _ended(self, number: int) -> None:
        """Pause the queue if that launch did nothing: the next one would do nothing either."""
        with self._db.read() as cx:
            row = queries.batch_job(cx, number)
            was_idle = batch_jobs.was_idle(cx, number)
            had_launcher = row is not None and queries.launchers_in(cx, "id", row["scheduler_id"], row["created"])
            planned = demand.of_launch(cx, number)
            refused = takers.refusals_in(cx, row["scheduler_id"], row["created"], planned) if row else {}
            trouble = takers.trouble_in(cx, row["scheduler_id"], row["created"]) if row else ""
        if row is None or row["state"] == batch_jobs.SUBMISSION_FAILED:
            return
        how = f"{row['state']}: {row['reason']}" if row["reason"] else row["state"]
        log.info("qlaunch%d in queue %s has ended (%s).", number, row["queue"], how)
        if not had_launcher:  # a launcher tells its own end
            asked = {"nodes": row["nodes"], "job_mode": row["job_mode"], "reason": f"no launcher started; {how}"}
            ended = {"launcher": None, "host": "", "launch": f"qlaunch{number}", **asked}
            self.notifier.add(notifications.LAUNCH_ENDED, ended)
        if was_idle and planned and refused.keys() == {work.shape for work in planned}:
            self._refuse(row["queue"], {shape: text_of(obstacle) for shape, obstacle in refused.items()})
        elif was_idle:
            why = f": {trouble}" if trouble else f"; see {row['log']}"
            self._pause(row["queue"], f"qlaunch{number} ended without a run of any job planned for it{why}")
        else:
            self._pauses.pop(row["queue"], None)

    def _refuse(self, queue: str, said: Mapping[Shape, str]) -> None:
        """Submit no launch for such jobs alone: the last launcher reported why it cannot take them. Other jobs may run."""
        for shape, reason in said.items():
            text = f"launch(es) in vain, {reason}"
            self._refusals[queue, shape] = self._longer(self._refusals.get((queue, shape)), _MAX_REFUSAL_S, text)

    def reap(self) -> None:
        """Free the jobs of launchers that died."""
        freed = self._reaper.reap()
        if freed:
            self._did(f"freed {freed} job(s) of dead launchers")

    def release_due(self) -> None:
        """Let jobs start that were held back until now, as there may be no launcher that does it."""
        now_us = self._clock.now_us()
        with self._db.read() as cx:
            next_start_us = held_back.next_start(cx)
        if next_start_us is not None and next_start_us <= now_us:
            with self._db.write() as cx:
                held_back.release_due(cx, now_us)

    def advance_large_writes(self) -> bool:
        """Continue large writes whose processes are gone, for a moment. Return whether there is more to do."""
        until = self._clock.monotonic() + _LARGE_WRITES_S
        is_done = False
        while pieces.advance_abandoned(self._db):
            is_done = True
            if self._clock.monotonic() >= until:
                return True
            pieces.pause(self._db, 0)
        if is_done:
            self._did("completed a change of very many jobs whose process is gone")
        return False

    def unclaim(self) -> None:
        """End the reservations of launches that are over."""
        with self._db.read() as cx:
            numbers = batch_jobs.orphaned(cx, (row["id"] for row in queries.unended_batch_jobs(cx)))
        for number in numbers:
            jobs = batch_jobs.unclaim(self._db, number)
            self._did(f"gave back {jobs} job(s) that were planned for qlaunch{number}")

    def reread_policy(self) -> None:
        """Read the policy file again. If it cannot be used, keep the last good policy and log that once."""
        if self._policy is None:
            return
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", SettingsWarning)
                is_other = self._policy.reread()
        except SettingsError as exc:
            if exc.message != self._policy_trouble:
                self._failed(f"The last good policy holds until this is corrected: {exc.message}")
            self._policy_trouble = exc.message
            return
        for one in said:
            log.warning("%s", one.message)
        if self._policy_trouble:
            log.info("The policy can be read again.")
        self._queues, self._policy_trouble = self._policy.queues, ""
        if is_other:
            on = ", ".join(f"{queue.name} (max-queued {queue.max_queued})" for queue in self._queues if queue.is_on)
            self._did(f"took over the changed policy {self._policy.path}, queues: {on or 'none'}")

    def choose(self) -> LaunchChoice:
        """Return the launch to submit next, if any. Reads only."""
        now = self._clock.monotonic()
        with self._db.read() as cx:
            rows = queries.open_batch_jobs(cx, self._scheduler.domain)
            left, launches = survey(cx, rows, self._margin, self._clock.now_us())
        paused = {name: pause.reason for name, pause in self._pauses.items() if pause.until > now}
        self._note["paused"] = {name: (self._pauses[name].reason, self._pauses[name].until_us) for name in paused}
        refused: dict[str, dict[Shape, str]] = {}
        self._note["refused"] = []
        for (queue, shape), refusal in self._refusals.items():
            if refusal.until > now:
                refused.setdefault(queue, {})[shape] = refusal.reason
                self._note["refused"].append((queue, shape, refusal.reason, refusal.until_us))
        return packer.choose(self._queues, {**paused, **full(self._queues, launches)}, left, self._margin, refused)

    def report(self, choice: LaunchChoice) -> None:
        """Log what has no launch and why: once, and again when it changes."""
        kinds = ((logging.WARNING, "no launch is allowed", choice.misfits), (logging.INFO, "wait for a launch", choice.waits))
        said = {}
        for level, what, lefts in kinds:
            for line in reasons(lefts):
                said[f"{what}: {line}"] = level
        for line, level in said.items():
            if line not in self._said:
                log.log(level, "%s", line)
        # After a launch was chosen, not all waiting work was examined, so a reason that is missing now may still hold.
        self._said = set(said) | (self._said if choice.launch else set())
        self._note["reasons"] = list(said)[:_MAX_REASONS]

    def submit(self, launch: Launch) -> bool:
        """Plan jobs for the launch and submit it. If that fails, pause the queue and return False."""
        try:
            mode = "mpi" if launch.job_mode == "mixed" and not self._may_mix() else launch.job_mode
            request = LaunchRequest(launch.nodes, launch.minutes, queue=launch.queue, job_mode=mode)
            row = submission.submit_launch(
                self._db, self._settings, request, self._scheduler, lambda row: self._plan(row["id"], launch),
                self._refused.get(launch.queue),
            )  # fmt: skip
        except (SchedulerError, InputError) as exc:
            self._pause(launch.queue, f"a launch could not be submitted: {exc}")
            return False
        self._open[row["id"]] = row
        self._did(f"submitted qlaunch{row['id']}, the scheduler's {row['scheduler_id']}, {described(launch)}")
        return True

    def _may_mix(self) -> bool:
        """Return whether a mixed launcher is possible, as far as this host can tell; with aprun it is not."""
        starter = mpirun.find(self._settings, os.environ)
        return isinstance(starter, str) or starter.shares_nodes

    def _plan(self, number: int, launch: Launch) -> None:
        self._refused[launch.queue] = number
        self.beat(even_if_early=True)  # another service may have taken over while this one was suspended
        rest, planned = _MAX_PLANNED, 0
        for shape, minutes, jobs in _by_shape(launch.planned):
            planned += batch_jobs.reserve(self._db, number, shape, minutes, min(jobs, rest - planned))
        log.info("Planned %d job(s) for qlaunch%d.", planned, number)

    # --- what is remembered -------------------------------------------------------------------------------------------

    def _pause(self, queue: str, reason: str) -> None:
        text = f"failure(s), {reason.partition(chr(10))[0]}"
        pause = self._pauses[queue] = self._longer(self._pauses.get(queue), _MAX_PAUSE_S, text)
        seconds = pause.until - self._clock.monotonic()
        self._failed(f"{queue}: {reason}\nThe next try in this queue is in {seconds:.0f} s.")

    def _longer(self, last: SubmissionPause | None, longest_s: float, reason: str) -> SubmissionPause:
        """Return a pause that is twice as long as the last one, from now."""
        failures = last.failures + 1 if last else 1
        seconds = min(longest_s, self._settings.SERVICE_PERIOD * 2.0 ** min(failures, _MAX_DOUBLINGS))
        until_us = self._clock.now_us() + int(seconds * SECOND_US)
        return SubmissionPause(failures, self._clock.monotonic() + seconds, until_us, f"after {failures} {reason}")

    def _did(self, what: str) -> None:
        log.info("%s", what[:1].upper() + what[1:])
        self._note.update(action=what, action_us=self._clock.now_us())

    def _failed(self, what: str) -> None:
        if what != self._note.get("error"):
            log.error("%s", what)
        self._note.update(error=what, error_us=self._clock.now_us())

    def _finish_note(self) -> None:
        self._note.update(reasons=[])
        self.beat(even_if_early=True)


def _by_shape(planned: Iterable[Work]) -> list[Work]:
    """Return one entry for each shape, with its longest estimate."""
    found: dict[Shape, Work] = {}
    for work in planned:
        known = found.get(work.shape, work._replace(jobs=0))
        found[work.shape] = Work(work.shape, max(work.minutes, known.minutes), work.jobs + known.jobs)
    return list(found.values())


# --- words ------------------------------------------------------------------------------------------------------------


def reasons(lefts: Iterable[UnplacedWork]) -> list[str]:
    """Return a line for each shape and reason."""
    different = dict.fromkeys((left.work.shape, left.reason) for left in lefts)
    return [f"{_like(shape)}: {reason}" for shape, reason in different]


def _like(shape: Shape) -> str:
    return "jobs like " + " ".join(f"{name}={value:g}" for name, value in zip(shape._fields, shape))


def described(launch: Launch) -> str:
    """Describe a launch in words.

    >>> described(Launch("debug", 2, 60, "serial", (Work(Shape(1, 1, 1, 0), 10, 9),)))
    '2 node(s) for 60 minutes in queue debug, serial mode, for 9 job(s)'
    """
    where = f"in queue {launch.queue}, {launch.job_mode} mode"
    return f"{launch.nodes} node(s) for {launch.minutes} minutes {where}, for {launch.jobs} job(s)"
