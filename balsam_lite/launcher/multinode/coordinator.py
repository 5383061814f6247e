"""Rank 0: the other ranks as workers, and a runner that gives jobs to them.

Only this rank has the DB. `poll` reports the end of a job whose node is lost like any other end.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from typing import NamedTuple

from ...core import states
from ...core.clock import Clock
from ...core.errors import MachineTrouble
from ...db.store import runs
from ...db.store.claims import Claim
from ...db.store.runs import ProgramStart, RunResult
from ..exec.trouble import Setbacks
from ..placement import Placement
from ..run_results import Finished
from ..runner import Runner
from . import messages
from .messages import MAX_MESSAGE_BYTES, Channel, Message
from .mpi_transport import MpiTransport

log = logging.getLogger(__name__)

#: Limit for all nodes to start Python from a file system that they read at the same time, in seconds.
_HELLO_LIMIT_S = 120.0
#: Limit for nodes to confirm the end, in seconds.
_BYE_LIMIT_S = 10.0
#: A node that is silent for this many heartbeats is lost. Unlike the holder of a lease, a rank ends its jobs itself when
#: rank 0 is silent, and does so in less time than this; so its jobs may run elsewhere before any lease expires.
LOST_AFTER_HEARTBEATS = 3.0
#: A rank that has sent no message for this many heartbeat intervals sends a heartbeat.
ALIVE_HEARTBEATS = 0.5
#: The guard of a dead rank ends its jobs within their grace period; this many seconds later none of them runs.
_GUARD_GRACE_S = 3.0
#: Interval of checks for silent ranks, in seconds.
_SILENCE_PERIOD_S = 0.5


class Workers:
    """The other ranks, from their first message to their last.

    Args:
        heartbeat_s: all limits of silence are multiples of it.
    """

    def __init__(self, transport: MpiTransport, clock: Clock, heartbeat_s: float) -> None:
        self._clock = clock
        self.size = transport.size
        self._others = range(1, transport.size)
        self.channel = Channel(transport, self._others, clock, ALIVE_HEARTBEATS * heartbeat_s)
        self._lost_after_s = LOST_AFTER_HEARTBEATS * heartbeat_s
        self.members: dict[int, messages.Hello] = {}  # as they introduced themselves
        self.left_out: dict[int, str] = {}  # why: it never answered, was lost, or cannot run jobs
        self._newly_left_out: dict[int, str] = {}
        self._broken_since: dict[int, float] = {}  # ranks that MPI reports as gone
        self._ending_s = 0.0  # for how long the jobs of such a rank may still run
        self._look_at = 0.0
        self.channel.start_heartbeat()

    def gather(self, limit_s: float = _HELLO_LIMIT_S) -> None:
        """Wait until all have introduced themselves; leave out those that have not within the limit."""
        self._wait_for(messages.HELLO, limit_s)

    def begin(self, orders: messages.Begin, limit_s: float = _HELLO_LIMIT_S) -> None:
        """Make the ranks end processes of dead launchers on their nodes and prepare to run jobs. Wait until they are ready."""
        self._ending_s = orders.grace_s + _GUARD_GRACE_S
        for rank in self.members:
            self.channel.send(rank, messages.BEGIN, tuple(orders))
        self._wait_for(messages.READY, limit_s + orders.grace_s)

    def _wait_for(self, kind: str, limit_s: float) -> None:
        missing = {rank for rank in self._others if rank not in self.left_out}
        deadline = self._clock.monotonic() + limit_s
        while self._is_waiting_for(missing, deadline):
            for rank, message in self.channel.receive():
                self.note(rank, message)
                if message[0] == kind:
                    missing.discard(rank)
            missing -= self.newly_left_out().keys()
        for rank in missing:
            self.leave_out(rank, f"it did not send {kind!r} within {limit_s:.0f} s")

    def _is_waiting_for(self, missing: set[int], deadline: float) -> bool:
        """Sleep until something arrives. Return False if none is missing any more or it is too late."""
        left_s = deadline - self._clock.monotonic()
        if not missing or left_s <= 0:
            return False
        self.channel.wait(min(left_s, _SILENCE_PERIOD_S), self._nap)
        return True

    def _nap(self, seconds: float) -> bool:
        self._clock.sleep(seconds)
        return False

    def _greet(self, rank: int, fields: tuple[object, ...]) -> None:
        hello = messages.Hello._make(fields)
        if hello.version == messages.VERSION:
            self.members[rank] = hello
        else:
            self.leave_out(rank, f"on {hello.host} runs {hello.version} instead of {messages.VERSION}")

    def note(self, rank: int, message: Message) -> None:
        """Act on a message about the rank itself, not about a job."""
        if message[0] == messages.LOG:
            log.log(message[1], "%s: %s", self.name(rank), message[2])
        elif message[0] == messages.HELLO and rank not in self.left_out:
            self._greet(rank, message[1])
        elif message[0] == messages.GONE or (message[0] == messages.READY and message[1]):  # it cannot run jobs
            self.leave_out(rank, message[1])

    def name(self, rank: int) -> str:
        """Return the name of a rank for the log."""
        member = self.members.get(rank)
        return f"node {rank} ({member.host})" if member else f"node {rank}"

    def leave_out(self, rank: int, reason: str) -> None:
        """Stop using a rank, and tell it to end its runs, in case it still receives messages."""
        if rank not in self.left_out:
            self.left_out[rank] = self._newly_left_out[rank] = reason
            log.warning("Lost %s: %s", self.name(rank), reason)
            self.channel.send_first(rank, messages.ABANDON)
            if self.channel.silent_s(rank) > self._lost_after_s:
                self.channel.suspend(rank)

    def newly_left_out(self) -> dict[int, str]:
        """Return the ranks that were left out since the last call, and why; check for silent ones."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + _SILENCE_PERIOD_S
            for rank in self._others:
                self._judge(rank, self.channel.silent_s(rank), now)
        lost, self._newly_left_out = self._newly_left_out, {}
        return lost

    def _judge(self, rank: int, silent_s: float, now: float) -> None:
        if math.isinf(silent_s):
            self._wait_for_its_guard(rank, now)
        elif silent_s > self._lost_after_s:
            self.leave_out(rank, f"it was silent for {silent_s:.0f} s")

    def _wait_for_its_guard(self, rank: int, now: float) -> None:
        """Leave out a rank that is gone, once its jobs have ended: they must not run elsewhere before that."""
        if rank not in self._broken_since:
            self._broken_since[rank] = now
            self.channel.suspend(rank)  # a job sent to it now never starts
        if now - self._broken_since[rank] >= self._ending_s:
            self.leave_out(rank, "MPI reports that it is gone")

    def abandon(self) -> None:
        """Make all ranks end their runs at once, without reports."""
        for rank in self._others:
            self.channel.send_first(rank, messages.ABANDON)
        self.channel.flush()

    def dismiss(self, in_good_order: bool) -> bool:
        """Tell all ranks to leave. Return whether all confirmed, so that they can finalize MPI together."""
        missing = {rank for rank in self._others if rank not in self.left_out and not math.isinf(self.channel.silent_s(rank))}
        together = in_good_order and len(missing) == len(self._others)
        if not in_good_order:
            self.abandon()
        for rank in self._others:
            self.channel.send_first(rank, messages.LEAVE, together)
        deadline = self._clock.monotonic() + _BYE_LIMIT_S
        while self._is_waiting_for(missing, deadline):
            missing -= {rank for rank, message in self.channel.receive() if message[0] in (messages.BYE, messages.GONE)}
            missing -= self.newly_left_out().keys()
        self.channel.close()
        return together and not missing and not self.left_out


class ClusterRunner(Runner):
    """Runs jobs at their placement: on this node by a local runner, elsewhere by messages to the rank there.

    The number of a node is the number of its rank.

    Args:
        is_own: returns whether a job is started from here for any placement, because the MPI command takes them there.
        on_lost: called with the number of a node that is lost.
    """

    def __init__(
        self, local: Runner, workers: Workers, clock: Clock, is_own: Callable[[Claim], bool], on_lost: Callable[[int], object]
    ) -> None:
        super().__init__()
        self._local, self._workers, self._clock, self._is_own, self._on_lost = local, workers, clock, is_own, on_lost
        self._channel = workers.channel
        self._away: dict[int, _RemoteRun] = {}  # by job
        self._stopping: set[int] = set()  # of those
        self._finished: list[Finished] = []
        self._is_in_a_hurry = False
        self._started_away = 0  # of the programs on other nodes those that have ended
        self._setbacks = Setbacks()
        self._blocked: list[tuple[float, Finished]] = []  # places on nodes in trouble, and until when they stay empty

    # --- runs ---------------------------------------------------------------------------------------------------------

    def _refill(self, finished: Finished) -> Finished:
        """Start a queued job at the placement of a run that ended with exit code 0."""
        place, ended = finished.place, finished.exit
        is_good = ended.result == states.RUN_DONE and ended.told_us is None
        if place is None or not is_good or not self.start_queued(place):
            return finished
        return finished._replace(place=None)

    @property
    def jobs(self) -> set[int]:
        """Return the jobs that hold a placement here and are not being stopped."""
        return self._local.jobs | (self._away.keys() - self._stopping)

    def __len__(self) -> int:
        return len(self._local) + len(self._away) + len(self._finished)

    def starts(self) -> list[ProgramStart]:
        """Return when and where the running programs started; of other nodes' only where."""
        return [
            *self._local.starts(),
            *(ProgramStart(job, away.attempt, None, away.place.nodes, away.place.gpus, "") for job, away in self._away.items()),
        ]

    @property
    def is_busy(self) -> bool:
        """Return whether something is going on that causes no signal and no message."""
        return self._local.is_busy or bool(self._finished)

    def start(self, claim: Claim, place: Placement) -> None:
        """Start a job at its placement. One that cannot be started is reported by `poll`."""
        rank = place.nodes[0]
        if rank == 0 or self._is_own(claim):
            self._local.start(claim, place)
            return
        self._away[claim.job] = _RemoteRun(claim.attempt, claim.state, place)
        if rank in self._workers.left_out:
            self._give_up({claim.job}, "")
            return
        size = self._channel.send(rank, *messages.start(claim, place), about=claim.job)
        if size > MAX_MESSAGE_BYTES:
            message = f"The job could not be started: the message to its node has {size} bytes, more than {MAX_MESSAGE_BYTES}"
            self._end(claim.job, states.RUN_ERROR, message)

    def poll(self) -> list[Finished]:
        """Return the runs that ended since the last call, with true start and end times."""
        if self._is_in_a_hurry:
            self._is_in_a_hurry = False
            for rank in {self._away[job].place.nodes[0] for job in self._stopping}:
                self._channel.send_first(rank, messages.HURRY)
        for rank, message in self._channel.receive():
            if message[0] == messages.ENDED:
                self._hear_of_end(rank, *messages.read_ended(*message[1:]))
            else:
                self._workers.note(rank, message)
        for rank, reason in self._workers.newly_left_out().items():
            self._lose(rank, reason)
        finished, self._finished = self._finished, []
        ends = [*self._free_places(), *map(self._without_node, [*self._local.poll(), *finished])]
        self.started = self._local.started + self._started_away
        return list(map(self._refill, ends)) if self._queue else ends

    def _without_node(self, finished: Finished) -> Finished:
        """Keep the placement empty for a while on a node that could not start a job, unless all nodes are such nodes."""
        trouble, place = finished.trouble, finished.place
        if trouble is None or trouble.scope != MachineTrouble.HOST or place is None or len(place.nodes) > 1:
            return finished
        name = self._workers.name(place.nodes[0])
        blocked = {entry.place.nodes[0] for _, entry in self._blocked if entry.place} | {
            place.nodes[0],
            *self._workers.left_out,
        }
        if len(blocked) == self._workers.size:
            return finished._replace(trouble=MachineTrouble(f"{name}: {trouble.message}", trouble.scope))
        now = self._clock.monotonic()
        seconds = self._setbacks.hold(finished.exit.job, MachineTrouble(trouble.message, name), now)
        self._setbacks.release(finished.exit.job)  # it goes elsewhere
        log.warning("%s could not start a job, and a place there stays empty for %.0f s: %s", name, seconds, trouble.message)
        self._blocked.append((now + seconds, finished._replace(is_doubted=True, trouble=None)))
        return finished._replace(place=None, trouble=None)

    def _free_places(self) -> list[Finished]:
        now = self._clock.monotonic()
        due = [finished for until, finished in self._blocked if until <= now]
        if due:
            self._blocked = [entry for entry in self._blocked if entry[0] > now]
        return due

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End the process trees of those jobs: TERM now, KILL after the grace. Returns at once; `poll` reports the end."""
        self.withdraw(jobs)
        self._local.stop(jobs, result, grace_s)
        by_rank: dict[int, list[int]] = {}
        for job in self._away.keys() & set(jobs) - self._stopping:
            by_rank.setdefault(self._away[job].place.nodes[0], []).append(job)
        for rank, its in by_rank.items():
            unsent = self._channel.withdraw(rank, set(its))
            self._give_up(unsent, "Stopped before it was started")
            started = [job for job in its if job not in unsent]
            if started:
                self._stopping.update(started)
                self._channel.send_first(rank, messages.STOP, started, result, grace_s)
        self._channel.flush()

    def leave(self, nodes: Collection[int], why: str) -> None:
        """End the MPI jobs that run on a node which does not answer. They go back, uncounted."""
        self._local.leave(nodes, why)

    def kill_now(self) -> None:
        """End the grace period of all process trees that are being stopped. May be called by a signal handler."""
        self._local.kill_now()
        self._is_in_a_hurry = True

    def wait(self, seconds: float, nap: Callable[[float], bool]) -> None:
        """Sleep until a message arrives, the time is up, or `nap` was woken."""
        self._channel.wait(seconds, nap)

    # --- the end of a job ---------------------------------------------------------------------------------------------

    def _hear_of_end(self, rank: int, run: RunResult, trouble: MachineTrouble | None) -> None:
        away = self._away.get(run.job)
        # A node that was given up may come back with the end of a run that was given to another one meanwhile.
        if away is not None and away.attempt == run.attempt and away.place.nodes[0] == rank:
            self._started_away += run.started_us is not None
            self._settle(run, trouble)

    def _end(self, job: int, result: str, message: str, cause: str = "") -> None:
        run = RunResult(job, self._away[job].attempt, result, None, message, None, self._clock.now_us(), cause=cause)
        self._settle(run._replace(may_have_started=bool(cause)))

    def _settle(self, run: RunResult, trouble: MachineTrouble | None = None) -> None:
        self._stopping.discard(run.job)
        place = self._away.pop(run.job).place
        self._finished.append(Finished(run._replace(nodes=place.nodes, gpus=place.gpus), place, trouble=trouble))

    def _give_up(self, jobs: Collection[int], message: str) -> None:
        """Report jobs that no rank was told to start."""
        for job in jobs:
            away = self._away[job]
            ended = RunResult(job, away.attempt, states.RESTART_READY, None, message, None, self._clock.now_us())
            self._settle(ended._replace(former=away.former))

    def _lose(self, rank: int, reason: str) -> None:
        self._on_lost(rank)
        here = {job for job, away in self._away.items() if away.place.nodes[0] == rank}
        unsent = self._channel.withdraw(rank, here)
        self._give_up(unsent, "")
        for job in here - unsent:
            self._end(job, states.RESTART_READY, f"Lost {self._workers.name(rank)}: {reason}", runs.NODE_LOST)


class _RemoteRun(NamedTuple):
    """A job on another node."""

    attempt: int
    former: str  # the state in which it was claimed
    place: Placement
