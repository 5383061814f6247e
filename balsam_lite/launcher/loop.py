"""The launcher's loop: collect ended runs, record them and claim new jobs in one transaction, start these.

Intent is committed before the effect: a job is RUNNING in the database before its program starts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import NamedTuple

from ..core import states
from ..core.clock import SECOND_US, Clock
from ..core.errors import DatabaseError, DatabaseGone, LostLease, MachineTrouble, NotABalsamDB, SchemaMismatch
from ..core.settings import Settings
from ..db.engine.connection import Connection, Database
from ..db.engine.filesystem import LOCAL
from ..db.query import queries
from ..db.query.demand import FIRST_JOB, what_may_come
from ..db.query.takers import NO_JOB
from ..db.store import claims, held_back, large_writes, leases, pieces, runs
from ..db.store import steps as step_store
from ..db.store.claims import Claim, Filter, Shape
from ..db.store.runs import RunResult
from ..db.store.steps import StepEnd
from ..db.store.suspects import Suspect, next_group
from .exec.trouble import Pause, Setbacks
from .failpoints import failpoint
from .notifier import Notifier
from .pacing import EndRate, Quiet
from .placement import MAX_AT_ONCE, NodePool, Placement, TickCapacity
from .reaper import Reaper
from .reporting import Limits, Obstacles, Tally
from .runner import STOP_PERIOD_S, Runner
from .steps import Steps

log = logging.getLogger(__name__)

#: Check this often, in seconds, whether other processes wrote: kills and new jobs are noticed this fast, the latter also while
#: nothing runs.
_CHANGES_PERIOD_S, _IDLE_CHANGES_PERIOD_S = 0.02, 0.05
#: Maximum delay in seconds until ends are recorded, also when nothing new can start.
_RECORD_PERIOD_S = 0.1
#: On a shared file system every look costs a session, during which all others wait: keep its share of the time below 1/N; the
#: second N applies while placements are free. This is for the first of many short runs; later ones are claimed ahead.
_SHARED_SPACING, _STARVING_SPACING = 20, 5
#: Minimum interval of log lines about waiting jobs and the reasons, in seconds.
_EXPLAIN_PERIOD_S = 10.0
#: Minimum interval of log lines about a DB that cannot be used, in seconds.
_COMPLAINT_PERIOD_S = 60.0
#: An idle launcher checks at most this often, in seconds, whether jobs may come.
_OUTLOOK_PERIOD_S = 0.25
#: At the end, a DB that could not be written is tried again after this many seconds.
_RETRY_PERIOD_S = 1.0
#: A launcher at work looks for suspects at most this often, in seconds.
_SUSPECTS_PERIOD_S = 1.0
_TIME_IS_UP = "the time is up"
#: On a local disk the starts of programs are recorded after this many seconds if they still run, else with the next heartbeat.
_STARTS_S = 1.0
#: Queued jobs are withdrawn if none of them has got a place for this long, in seconds.
_QUEUE_TIMEOUT_S = 0.25


class Launcher:
    """Runs the jobs of one DB on the nodes of one pool until the work or the time is used up, or it is told to stop.

    Args:
        lease: opened by the caller, who also closes it.
        wait: sleeps for that number of seconds, less if a run ends or a signal arrives.
        on_beat: called when a heartbeat has been written.
        is_settled: called before the end of an idle phase, with its beginning: False as long as jobs may come from elsewhere.
    """

    def __init__(
        self,
        db: Database,
        settings: Settings,
        lease: int,
        pool: NodePool,
        runner: Runner,
        steps: Steps,
        limits: Limits,
        clock: Clock,
        wait: Callable[[float], object],
        reaper: Reaper | None = None,
        on_beat: Callable[[], object] = lambda: None,
        notifier: Notifier | None = None,
        is_settled: Callable[[float], bool] = lambda _: True,
    ) -> None:
        self._db, self._settings, self._lease, self._clock, self._wait = db, settings, lease, clock, wait
        self._reaper, self._on_beat = reaper or Reaper(db, settings, clock), on_beat
        self._is_settled, self._was_settled = is_settled, True
        self._notifier = notifier or Notifier(db, settings, clock)
        self._pool, self._runner, self._steps, self._limits = pool, runner, steps, limits
        self._claims: dict[int, Claim] = {}  # to be run, or running, by number, until the end is in the database
        self._exits: list[RunResult] = []  # ended, not yet in the database
        self._step_ends: list[StepEnd] = []  # likewise
        # Other launchers may take its jobs when its last heartbeat is this old: by then the jobs must be stopped. Another try
        # may take as long as the DB may be busy.
        db.busy_timeout_s = min(db.busy_timeout_s, settings.LEASE_EXPIRY_S / 6)
        self._silence_s = settings.LEASE_EXPIRY_S - db.busy_timeout_s - min(settings.KILL_GRACE_S, settings.LEASE_EXPIRY_S / 3)
        self._queue_moved_at, self._started_from_queue = 0.0, 0  # when a queued job got a place; how many have had one by then
        self._rate = EndRate(clock.monotonic)
        self.tally = Tally()
        self.stop_reason = ""
        self._is_urged = False  # it was told to stop again
        now = clock.monotonic()
        self._last_tick = self._last_heartbeat = self._last_reap = now
        self._starts_noted: set[int] = set()  # running jobs whose starts are recorded
        self._tick_costs = deque([0.001], maxlen=5)
        self._idle_since: float | None = None
        self._failing_since: float | None = None
        self._complain_at = 0.0  # when to log again that the DB cannot be used
        self._database_trouble = ""  # why it cannot be used
        self._look_at = self._explain_at = 0.0
        self.explained: list[str] = []  # why jobs wait though the launcher has nothing to do, as it was last logged
        self._outlook_at, self._started_us = 0.0, clock.now_us()
        #: Why jobs may still come while the launcher is idle, in words; "" while it is not idle.
        self.awaited = ""
        self._news = True  # another process wrote since the last tick
        self._quiet = Quiet(db)
        self._wants_more = False  # the last tick took all that one may
        self._has_freed = False  # a run left its place since the last tick, and its end is not to be recorded yet
        self._workflows: tuple[str, ...] | None = None
        self._next_start_us: int | None = None  # when the next job is due that is held back
        self._has_large_write = False  # something that changes many jobs is unfinished; see `store.pieces`
        self._has_lists = False  # likewise, and jobs are held for that long
        self._next_piece_at = 0.0  # when to do a piece of it, if no other process does
        self._suspects: list[Suspect] = []  # jobs that it could run, but only apart from others
        self._suspects_at = 0.0  # when to look for them, on the monotonic clock
        self._runs_suspects = False  # and nothing else
        self._drains = False  # starts nothing else, since suspects have waited for long
        self.pause = Pause()  # because of trouble of the machine
        self._setbacks = Setbacks()  # because of trouble of some jobs' own paths
        self.obstacles = Obstacles(db, pool, limits, self.pause, self._setbacks, clock, steps.room)
        self._steps_done = 0
        self._well_at = now  # when a run or step has ended, or the trouble began
        self._noted = self.obstacles.state  # the state that the lease's note reports

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Loop until there is a reason to stop, then end the remaining runs and release all jobs."""
        while not self.stop_reason:
            self.turn()
        log.info("Stopping: %s", self.stop_reason)
        self._shut_down()

    def stop(self, reason: str) -> None:
        """Make `run` end in good order; the second call skips the grace period. May be called by a signal handler.

        If the DB cannot be written for long after that, another call gives up recording the ends of runs, too.
        """
        if self.stop_reason:
            self._runner.kill_now()
            self._is_urged = True
        self.stop_reason = self.stop_reason or reason

    def turn(self) -> None:
        """Do everything that is due now, then sleep until something happens."""
        self._collect()
        self._look_after_the_machine()
        self._look_after_the_queue()
        self._look()
        now = self._clock.monotonic()
        if now >= self._due(now):
            self.tick()
        self._advance_large_write()
        self._check_the_end()
        if not self.stop_reason:
            self._wait(self._pause())

    def tick(self) -> None:
        """Record ends, claim jobs and find killed ones in one write transaction. A failing database is retried, not fatal."""
        started = self._clock.monotonic()
        starts = self.pause.allowed(started, MAX_AT_ONCE)
        room = TickCapacity(self._pool, self._may_take_ahead, min(self._steps.room, starts), starts)
        try:
            with self._db.session():
                self._reap_sometimes(started)
                news = self._news or self._start_in() <= 0
                work = TickWork(self._exits[:MAX_AT_ONCE], self._step_ends, news)
                to_run, steps, held = self._transaction(work, room)
        except DatabaseError as exc:
            room.undo()
            self._database_failed(exc, started)
            return
        except BaseException:
            room.undo()
            raise
        self._exits, self._step_ends = self._exits[len(work.exits) :], []
        for run in work.exits:
            self._claims.pop(run.job, None)
        self._claims.update((claim.job, claim) for claim in to_run)
        if work.exits or work.step_ends or to_run or steps or len(self._steps):
            self._idle_since, self.awaited = None, ""
        elif starts:
            self._be_idle(started)
        if starts:
            self.pause.try_again(started, len(to_run) + len(steps), self._good_starts)
        self._database_works(started)
        self._has_freed = False
        self._news, self._wants_more = False, room.is_used_up and not self.pause.reason
        self._last_tick = self._clock.monotonic()
        self._tick_costs.append(self._last_tick - started)
        happened = bool(work.exits or work.step_ends or to_run or steps)
        self._quiet.note(self._last_tick, happened or (held is not None and held != self._claims.keys()))
        failpoint("after-claim")
        self._notifier.send()
        if held is not None:
            self._stop_killed(held)
        for claim in steps:
            self._steps.start(claim)
        if not self._runner.queued:
            self._queue_moved_at = self._last_tick
        for claim in to_run:
            if isinstance(claim.place, Placement):
                self._runner.start(claim, claim.place)
            else:
                self._runner.queue(claim)

    def _transaction(self, work: TickWork, room: TickCapacity) -> tuple[list[Claim], list[Claim], set[int] | None]:
        """Return jobs to run, jobs that need a step, and the jobs that are still this launcher's; None: it was not asked."""
        now_us = self._clock.now_us()
        with self._db.write() as cx:
            before = queries.end_counts(cx)
            beat_at = self._beat(cx, now_us)
            self._write_note(cx, now_us)
            goes_on = not self.stop_reason
            reported = claims.finish(cx, self._lease, work.exits, now_us, goes_on, self._pool.describe)
            ended = step_store.finish(cx, self._lease, work.step_ends, now_us)
            self._has_large_write = large_writes.is_any(cx)
            self._has_lists = self._has_large_write and large_writes.has_lists(cx)
            if work.news:
                leases.refuse_lost(cx, self._lease)
            held = claims.still_held(cx, self._lease) if work.news else None
            next_start_us = self._next_start_us
            if work.news:
                held_back.release_due(cx, now_us)
                next_start_us = held_back.next_start(cx)
            room.preparations = max(0, room.preparations - len(reported.to_settle))
            to_run: list[Claim] = []
            steps: list[Claim] = []
            if not self.stop_reason and room.starts:
                is_empty = not (self._runs_anything or reported.to_settle or len(self._exits) > len(work.exits))
                to_run, steps = self._take(cx, work, room, now_us, is_empty)
            ended[states.USER_KILLED] += reported.killed
            ends = _entered(before, queries.end_counts(cx), ended)
            self._notifier.look(cx)
            failpoint("before-commit")
        self.tally.add(ends, reported.results)
        if beat_at != self._last_heartbeat:
            self._on_beat()
        if to_run and self._db.access == LOCAL:  # an early heartbeat records their starts
            beat_at = min(beat_at, self._clock.monotonic() + _STARTS_S - self._settings.beat_s)
        self._last_heartbeat, self._next_start_us = beat_at, next_start_us
        for job in reported.lost:
            log.warning("Job %s is not this launcher's any more; its end was not recorded.", self._label(job))
        return to_run, [*reported.to_settle, *steps], held

    def _beat(self, cx: Connection, now_us: int) -> float:
        """Write a heartbeat and the starts of running programs when due. Return when it last did, on the monotonic clock."""
        now = self._clock.monotonic()
        if now - self._last_heartbeat < self._settings.beat_s:
            return self._last_heartbeat
        leases.heartbeat(cx, self._lease, now_us)
        starts = self._runner.starts()
        runs.note_starts(cx, (one for one in starts if one.job not in self._starts_noted), self._pool.describe)
        self._starts_noted = {one.job for one in starts}
        self._db.own_checkpoints(leases.is_eldest(cx, self._lease, self._settings.LEASE_EXPIRY_S, self._reaper.watch))
        return now

    def _may_take_ahead(self, shape: Shape) -> int:
        """Return how many jobs of that shape to claim beyond the free places, for places freed before the next transaction."""
        if shape.num_nodes > 1 or self._pool.is_reserving or self.pause.reason:
            return 0
        waiting = self._runner.queued[shape]
        return self._rate.expected(max(_RECORD_PERIOD_S, 2 * self._spacing()), shape) - waiting

    def _take(
        self, cx: Connection, work: TickWork, room: TickCapacity, now_us: int, is_empty: bool
    ) -> tuple[list[Claim], list[Claim]]:
        """Return jobs to run, and jobs that need a step: either suspects or others. `is_empty`: nothing runs here.

        Suspects (`db.store.suspects`) run when there are no other jobs to start, or before others once they have waited for
        SUSPECT_WAIT_S. The launcher then starts nothing until it is empty, and nothing else until the suspects have ended.
        """
        self._runs_suspects = self._runs_suspects and not is_empty
        if self._runs_suspects:  # nothing together with them
            return [], []
        if self._limits.workflow is not None and (work.news or work.exits or work.step_ends):
            self._workflows = claims.matching_workflows(cx, self._limits.workflow)
        self._look_for_suspects(cx, room, now_us, is_empty)
        self._pool.reserve_for(None)  # `take` reserves anew
        to_run, steps = ([], []) if self._drains else self._take_others(cx, work, room, now_us)
        if self._suspects and is_empty and not to_run and not steps:
            group = next_group(self._suspects)
            to_run, to_prepare = claims.take_suspects(cx, self._lease, room, self.filter(), group, now_us)
            steps = [*step_store.settle_suspects(cx, self._lease, group, room.preparations, now_us), *to_prepare]
            self._runs_suspects = bool(to_run or steps)
        self.obstacles.is_apart = self._runs_suspects or self._drains
        if self._runs_suspects:
            log.info("Running %d job(s) apart from others: their launchers died while they ran.", len(to_run) + len(steps))
        return to_run, steps

    def _look_for_suspects(self, cx: Connection, room: TickCapacity, now_us: int, is_empty: bool) -> None:
        """Find the suspects that could run, and whether they are due: when the launcher is empty, and now and then."""
        now = self._clock.monotonic()
        if is_empty or now >= self._suspects_at:
            self._suspects_at = now + _SUSPECTS_PERIOD_S
            self._suspects = claims.fitting_suspects(cx, room, self.filter())
            waited_us = now_us - min((one.since_us for one in self._suspects), default=now_us)
            self._drains = waited_us > self._settings.SUSPECT_WAIT_S * SECOND_US

    def _take_others(self, cx: Connection, work: TickWork, room: TickCapacity, now_us: int) -> tuple[list[Claim], list[Claim]]:
        abandoned: list[Claim] = []
        if work.news or work.step_ends or self.pause.reason:
            abandoned = step_store.settle_abandoned(cx, self._lease, room.preparations, now_us)
            room.preparations = max(0, room.preparations - len(abandoned))
        to_run, to_prepare = claims.take(cx, self._lease, room, self.filter(), now_us)
        return to_run, [*abandoned, *to_prepare]

    # --- parts of a turn ----------------------------------------------------------------------------------------------

    def _collect(self) -> None:
        self._collect_steps()
        for finished in self._runner.poll():
            if finished.place is not None:
                self._pool.release(finished.place)
            if finished.lost_hosts:
                self._close_nodes(finished.lost_hosts, finished.exit.message)
            if finished.trouble is not None:
                job = finished.exit.job
                start_after = self._suffer(job, self._label(job), finished.trouble)
                self._exits.append(finished.exit._replace(start_after=start_after))
                continue
            if finished.exit.result != states.RESTART_READY:
                self._note_health(finished.exit.job)
                self.pause.hasten(self._well_at)
            claim = self._claims.get(finished.exit.job)
            if claim is not None and finished.exit.result != states.RESTART_READY and not finished.is_repeated:
                self._rate.add(finished.exit, claim.shape)
            if finished.is_doubted:
                self._has_freed = True
                continue
            self._exits.append(finished.exit)
            if finished.exit.result != states.RUN_DONE or finished.exit.told_us is not None:
                first_line = finished.exit.message.partition("\n")[0]
                # What was told to stop has a result when it is recorded; the job decides whether exit code 0 means done.
                result = "" if finished.exit.told_us is not None else f"{finished.exit.result} "
                log.info("Job %s: %s%s", self._label(finished.exit.job), result, first_line)

    @property
    def lost_nodes(self) -> list[str]:
        """Return the names of the nodes that do not answer any more."""
        return [node.name for node in self._pool.nodes if node.is_closed and node.name]

    def _close_nodes(self, hosts: Collection[str], why: str) -> None:
        """Start nothing more on nodes that do not answer, and end what runs there."""
        lost = [number for number, node in enumerate(self._pool.nodes) if node.name in hosts and not node.is_closed]
        for number in lost:
            self._pool.close(number)
            log.warning("Node %s is not used any more. %s", self._pool.nodes[number].name, why)
        self._runner.leave(lost, why)

    def _collect_steps(self) -> None:
        for end in self._steps.poll():
            if end.trouble is not None:
                start_after = self._suffer(end.claim.job, end.claim.label, end.trouble)
                self._step_ends.append(end._replace(start_after=start_after))
                continue
            self._step_ends.append(end)
            self._note_health(end.claim.job)
            self._steps_done += 1
            if end.failure and not end.interrupted:
                log.info("Job %s: %s step failed: %s", end.claim.label, end.claim.state, end.failure.partition("\n")[0])

    def _label(self, number: int) -> str:
        """Return the name of a claimed job for the log; `#37` if its end was recorded already."""
        claim = self._claims.get(number)
        return claim.label if claim else f"#{number}"

    # --- the machine's trouble ----------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """Return why nothing can start now; "" if it can."""
        return self._database_trouble or (f"No job can be started: {self.pause.reason}" if self.pause.reason else "")

    @property
    def _good_starts(self) -> int:
        return self._runner.started + self._steps_done

    def _suffer(self, job: int, label: str, trouble: MachineTrouble) -> int | None:
        """Pause all starts because of the machine's trouble, or hold back a job if only this job is affected.

        Return the time until which the job is held back, in microseconds; None if it is not held back.
        """
        now = self._clock.monotonic()
        if not self.pause.reason and not self._setbacks.reasons:
            self._well_at = now
        if trouble.scope in ("", MachineTrouble.HOST):
            self.pause.fail(trouble.message, now)
            return None
        self._news = True  # so that the next transaction looks when it is due
        seconds = self._setbacks.hold(job, trouble, now)
        log.warning("Job %s is held back for %.0f s: %s", label, seconds, trouble.message)
        return self._clock.now_us() + int(seconds * SECOND_US)

    def _note_health(self, job: int) -> None:
        """Record that the machine could run a step or a program of that job."""
        self._well_at = self._clock.monotonic()
        self._setbacks.release(job)

    def _look_after_the_machine(self) -> None:
        """Check whether a try succeeded, and log the state of the trouble."""
        if self.pause.reason:
            now = self._clock.monotonic()
            line = self.pause.listen(now, self._good_starts) or self.pause.line(now)
            if line:
                log.warning("%s", line)

    def _write_note(self, cx: Connection, now_us: int) -> None:
        """Write to the lease's note what the launcher takes, if that has changed: because of trouble, or of a lost node."""
        if self.obstacles.state != self._noted:
            leases.heartbeat(cx, self._lease, now_us, self.obstacles.note())
            self._noted = self.obstacles.state

    def _look_after_the_queue(self) -> None:
        """Start queued jobs at free placements. Withdraw them if none gets one: another launcher may be free."""
        queued, now = self._runner.queued, self._clock.monotonic()
        for shape, number in queued.items():
            while number and not self.pause.reason:
                place = self._pool.reserve(shape)
                if place is None:
                    break
                if not self._runner.start_queued(place):
                    self._pool.release(place)
                    break
                number -= 1
        if self._runner.started_from_queue != self._started_from_queue:
            self._started_from_queue, self._queue_moved_at = self._runner.started_from_queue, now
        if queued and (self.pause.reason or now - self._queue_moved_at > _QUEUE_TIMEOUT_S):
            self._runner.withdraw(self._runner.queued_jobs)
            self._queue_moved_at = now
        why = f"Not started: {self.pause.reason}" if self.pause.reason else "No place became free for it"
        self._exits += [claims.unstarted(claim, self._clock.now_us(), why) for claim in self._runner.withdrawn()]

    def _look(self) -> None:
        now = self._clock.monotonic()
        if now < self._look_at:
            return
        period_s = _CHANGES_PERIOD_S if len(self._runner) or len(self._steps) else _IDLE_CHANGES_PERIOD_S
        self._look_at = now + max(period_s, self._quiet.look_s)
        try:
            if self._quiet.has_news(now):
                self._news, self._outlook_at = True, min(self._outlook_at, now + _OUTLOOK_PERIOD_S)
        except DatabaseError as exc:
            self._database_failed(exc, now)

    def _due(self, now: float) -> float:
        """Return when the next transaction should be, on the monotonic clock."""
        soon = self._last_tick + self._spacing()
        if self._failing_since is not None:
            soon = self._last_tick + 1.0
        if self._failing_since is not None or self._step_ends:
            return soon
        if self._exits or self._has_freed:
            # With a free place and nothing ahead, only the transaction is between two jobs of a chain.
            if not self._runner.queued and self._pool.has_room:
                return self._last_tick + self._spacing(_STARVING_SPACING)
            return max(soon, self._last_tick + _RECORD_PERIOD_S / 2)
        beat = min(
            self._last_heartbeat + self._settings.beat_s, max(soon, min(now + self._start_in(), self._notifier.wakes_at))
        )
        if self.pause.reason:
            return soon if self._news else min(beat, max(soon, self.pause.next_try))
        if self._news or self._wants_more or (self._idle_since is None and not len(self._runner) and not len(self._steps)):
            return soon
        return beat

    def _start_in(self) -> float:
        """Return the seconds until the next job that is held back is due."""
        if self._next_start_us is None:
            return float("inf")
        return max(0.0, (self._next_start_us - self._clock.now_us()) / SECOND_US)

    def _pause(self) -> float:
        now = self._clock.monotonic()
        wakes = [self._look_at, self._due(now)]
        if self._runner.queued:
            wakes.append(max(now, self._queue_moved_at) + _QUEUE_TIMEOUT_S)
        if self._runner.is_busy:
            wakes.append(now + STOP_PERIOD_S)
        if self._limits.ends_at is not None:
            wakes.append(self._limits.ends_at)
        if self._has_large_write:
            wakes.append(self._next_piece_at)
        return min(wakes) - now

    def _spacing(self, shared: int = _SHARED_SPACING) -> float:
        """Return the seconds to leave the DB to others between two ticks: on a shared file system `shared` times their cost.

        There the cheapest of the last ticks counts, as the others include waiting for sessions of other processes.
        """
        return self._tick_costs[-1] if self._db.access == "local" else shared * min(self._tick_costs)

    def filter(self) -> Filter:
        """Return the filter for jobs to claim now."""
        minutes = None
        if self._limits.ends_at is not None:
            minutes = (self._limits.ends_at - self._clock.monotonic()) / 60
        limits = self._limits
        return Filter(self._workflows, limits.serial_only, minutes, limits.tags, limits.launch, limits.launch_only)

    def _reap_sometimes(self, now: float) -> None:
        """Free the jobs of dead launchers now and then."""
        if now - self._last_reap >= self._settings.beat_s:
            self._last_reap = now
            freed = self._reaper.reap()
            if freed:
                log.info("Freed %d job(s) of dead launchers.", freed)
                self._news = True

    def _advance_large_write(self) -> None:
        """Do a piece of a large write (such as updating very many children of a job) if no other process does."""
        if not self._has_large_write or self._clock.monotonic() < self._next_piece_at:
            return
        started = self._clock.monotonic()
        try:
            is_done = pieces.advance_abandoned(self._db)
        except DatabaseError:  # the next tick reports it
            is_done = False
        self._news = self._news or is_done
        took = self._clock.monotonic() - started
        self._next_piece_at = started + took + (max(pieces.PAUSE_S, took) if is_done else pieces.ABANDONED_S / 5)

    def _be_idle(self, now: float) -> None:
        if self._idle_since is None:
            self._idle_since, self._outlook_at = now, now
            self._explain_idleness(now)

    def _explain_idleness(self, now: float) -> None:
        """Log which jobs wait and why, when there is nothing to start. Reads all waiting jobs, so it is called rarely."""
        if now < self._explain_at:
            return
        self._explain_at = now + _EXPLAIN_PERIOD_S
        try:
            reasons = self.obstacles.survey(self.filter())
        except DatabaseError:  # the next tick reports it
            return
        if reasons != self.explained:
            for reason in reasons:
                log.info("Nothing to start: %s", reason)
        self.explained = reasons

    def _stop_killed(self, held: set[int]) -> None:
        self._steps.stop(self._steps.jobs - held, self._settings.USER_KILL_GRACE_S)
        gone = (self._runner.jobs | self._runner.queued_jobs) - held
        if gone:
            log.info("Killed by the user: %d job(s), the first is %s.", len(gone), self._label(min(gone)))
            self._runner.stop(gone, states.RUN_ERROR, self._settings.USER_KILL_GRACE_S)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _check_the_end(self) -> None:
        now = self._clock.monotonic()
        if self._limits.ends_at is not None and now >= self._limits.ends_at:
            self.stop(_TIME_IS_UP)
        elif (self.pause.reason or self._setbacks.reasons) and self._is_hopeless(now):
            self.stop(self.pause.reason or "nothing is left but jobs that cannot be started")
        elif self._failing_since is not None:
            is_over = now - self._failing_since >= self._settings.TROUBLE_TTL_S
            if is_over and not self._has_work and self._limits.idle_ttl_s is not None:
                self.stop(self._database_trouble)
        elif (
            self._has_work or self._idle_since is None or self._has_lists or self._reaper.doubtful
        ):  # whose jobs may be to be run here
            return
        elif self._limits.idle_ttl_s is not None and now - self._idle_since >= self._limits.idle_ttl_s:
            if self._has_setbacks() or self._awaits_start():
                self._idle_since = now
            elif not self._is_settled(self._idle_since):
                self._was_settled = False
            elif not self._was_settled or self._news:  # one more look before the end
                self._was_settled = self._news = True
            else:
                no_job = self.awaited.replace(FIRST_JOB, NO_JOB) + " came"
                self.stop(no_job if self.awaited.startswith(FIRST_JOB) else "nothing came that it can run")
        elif now >= self._outlook_at:
            self._look_ahead(now)

    def _look_ahead(self, now: float) -> None:
        """Leave at once, when idle, if no job can come; else log what the launcher waits for."""
        limits = self._limits
        scope = limits.scope
        try:
            with self._db.read() as cx:
                expiry_s, watch = self._settings.LEASE_EXPIRY_S, self._reaper.watch
                awaited = what_may_come(cx, scope, self._clock.now_us(), expiry_s, self._started_us, watch)
        except DatabaseError:  # the next tick reports it
            return
        cost_s = self._clock.monotonic() - now
        self._outlook_at = now + max(_OUTLOOK_PERIOD_S, _SHARED_SPACING * cost_s, self._quiet.interval_s)
        if not awaited and limits.idle_ttl_s is not None:
            self.stop("every job has ended" if self.tally.is_used else f"every job{scope} had ended before it started")
        elif (awaited or "new jobs") != self.awaited:
            at_most = "" if limits.idle_ttl_s is None else f" up to {limits.idle_ttl_s:g} s"
            log.info("Nothing to start; waiting%s for %s.", at_most, awaited or "new jobs")
        self.awaited = awaited or "new jobs"

    def _is_hopeless(self, now: float) -> bool:
        """Return whether nothing runs here and no start has succeeded for TROUBLE_TTL_S."""
        is_over = now - self._well_at >= self._settings.TROUBLE_TTL_S
        return not self._has_work and self._limits.idle_ttl_s is not None and is_over

    def _shut_down(self) -> None:
        """Send TERM to all runs, KILL after the grace period, and record everything before returning."""
        told, told_us = self._runner.jobs, self._clock.now_us()
        self._runner.stop(told | self._runner.queued_jobs, states.RUN_TIMEOUT, self._settings.KILL_GRACE_S)
        self._steps.stop(self._steps.jobs, self._settings.KILL_GRACE_S)
        if told or self._steps.jobs:
            log.info(
                "Told %d running job(s) and %d step(s) to end; what runs after %g s is killed.",
                len(told), len(self._steps.jobs), self._settings.KILL_GRACE_S,
            )  # fmt: skip
        deadline = self._clock.monotonic() + self._settings.KILL_GRACE_S + self._settings.BUSY_TIMEOUT_S
        retry_at, complaint, is_announced = self._clock.monotonic(), "", False
        while self._has_work:
            if self._is_urged and self._clock.monotonic() <= deadline:
                self._is_urged = False  # that was about the grace
            self._collect()
            for claim in self._runner.withdrawn():
                self._exits.append(claims.unstarted(claim, told_us, "Not started before the launcher's end"))
            now = self._clock.monotonic()
            if (self._has_ends or told) and now >= retry_at:
                try:
                    self._hand_back(told, told_us)
                    told = set()
                except DatabaseGone as exc:
                    raise _lost(exc) from exc
                except DatabaseError as exc:
                    may_wait = self._keeps_lease(exc) and not self._is_urged
                    if not len(self._runner) and now > deadline and not may_wait:
                        raise LostLease(f"The DB cannot be written, and the next launcher will free the jobs: {exc}") from exc
                    if str(exc) != complaint:
                        log.error("The DB cannot be written, still trying: %s", exc)
                    if now > deadline and not is_announced:
                        is_announced = True
                        log.error(
                            "Trying until it can be written: else the jobs that have ended run again. To give up, stop again."
                        )
                    retry_at, complaint = now + _RETRY_PERIOD_S, str(exc)
                    self._database_trouble = f"The DB cannot be written, still trying: {exc.message}"
            if not len(self._runner) and not self._runner.queued and not self._has_ends and self._clock.monotonic() > deadline:
                with suppress(DatabaseError):  # the next launcher frees them
                    self._leave_steps()
                return
            if self._has_work:
                self._wait(STOP_PERIOD_S)

    @property
    def _has_work(self) -> bool:
        return self._runs_anything or self._has_ends

    @property
    def _runs_anything(self) -> bool:
        return bool(len(self._runner) or self._runner.queued or len(self._steps))

    @property
    def _has_ends(self) -> bool:
        return bool(self._exits or self._step_ends)

    def _leave_steps(self) -> None:
        """Abandon steps whose threads hang in a file system. These end with this process, so their jobs are free."""
        with self._db.write() as cx:
            claims.release(cx, self._lease, self._steps.jobs, self._clock.now_us())

    def _hand_back(self, told: set[int], told_us: int) -> None:
        with self._db.write() as cx:
            now_us = self._clock.now_us()
            before = queries.end_counts(cx)
            if told:
                claims.tell_to_stop(cx, self._lease, told, told_us)
            stop_cause = runs.TIME_LIMIT if self.stop_reason == _TIME_IS_UP else runs.TOLD_TO_STOP
            reported = claims.finish(cx, self._lease, self._exits, now_us, False, self._pool.describe, stop_cause)
            ended = step_store.finish(cx, self._lease, self._step_ends, now_us)
            ended[states.USER_KILLED] += reported.killed
            ends = _entered(before, queries.end_counts(cx), ended)
        self.tally.add(ends, reported.results)
        self._exits, self._step_ends = [], []

    def _has_setbacks(self) -> bool:
        """Return whether a job is still held back because of trouble: it may have been killed or removed, or run elsewhere."""
        if not self._setbacks.reasons:
            return False
        try:
            with self._db.read() as cx:
                still = held_back.among(cx, self._setbacks.reasons)
        except DatabaseError:  # the next tick reports it
            return True
        for job in self._setbacks.reasons.keys() - still:
            self._setbacks.release(job)
        return bool(still)

    def _awaits_start(self) -> bool:
        """Return whether a job that this launcher takes is held back: it starts within seconds."""
        if self._next_start_us is None:
            return False
        try:
            with self._db.read() as cx:
                return self.obstacles.count_held_back(cx) > 0
        except DatabaseError:  # the next tick reports it
            return False

    def _database_failed(self, exc: DatabaseError, now: float) -> None:
        if isinstance(exc, DatabaseGone):
            raise _lost(exc) from exc
        self._last_tick = self._clock.monotonic()
        if self._failing_since is None:
            self._failing_since = self._complain_at = now
        self._database_trouble = f"The DB cannot be used, still trying: {exc.message}"
        failing_s = self._last_tick - self._failing_since
        if now >= self._complain_at:
            self._complain_at = now + _COMPLAINT_PERIOD_S
            log.error("The DB cannot be used%s, still trying: %s", f" for {failing_s:.0f} s" if failing_s >= 1 else "", exc)
        self._idle_since = None  # what came meanwhile cannot be seen
        if self._last_tick - self._last_heartbeat > self._silence_s and not self._keeps_lease(exc):
            raise LostLease(f"The DB could not be used for {failing_s:.0f} s: {exc}")

    def _database_works(self, now: float) -> None:
        if self._failing_since is not None:
            log.info("The DB can be used again, after %.0f s.", now - self._failing_since)
        self._failing_since, self._database_trouble = None, ""

    def _keeps_lease(self, exc: DatabaseError) -> bool:
        """Return whether the launcher keeps its jobs despite that error: on this host a living process keeps its lease."""
        return self._db.access == LOCAL and not isinstance(exc, (NotABalsamDB, SchemaMismatch))


def _lost(exc: DatabaseGone) -> LostLease:
    """Raise LostLease: its lease and its jobs went with the DB."""
    return LostLease(f"The lease is lost with its DB: {exc.message}")


def _entered(before: Mapping[str, int], after: Mapping[str, int], earlier: Mapping[str, int]) -> dict[str, int]:
    """Count the jobs that entered each final state: in one transaction, and `earlier` by their scripts or the user."""
    return {state: max(0, number - before[state]) + earlier.get(state, 0) for state, number in after.items()}


class TickWork(NamedTuple):
    """The work that one tick has to record."""

    exits: list[RunResult]
    step_ends: list[StepEnd]
    news: bool  # another process wrote, or a job that was held back is due
