"""The other ranks: run the jobs that rank 0 sends to this node, and report their ends. No DB, no lease."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable

from ...core import states
from ...core.clock import Clock
from ...db.store.claims import Claim, unstarted
from ...db.store.runs import RunResult
from .. import mpirun
from ..exec import hardware, invocation
from ..exec.run_file import RunFiles, end_own_runs, end_runs, forget
from ..exec.spawner import Alarm, Spawner
from ..placement import Placement
from ..runner import STOP_PERIOD_S, LocalRunner, Runner
from . import messages
from .messages import Channel, Message

log = logging.getLogger(__name__)

HEAD = 0
#: A rank ends its jobs when rank 0 is silent for this many heartbeats: before rank 0 gives them to others.
ALONE_AFTER_HEARTBEATS = 2.0
#: Start programs for at most this long, in seconds, before the next poll for messages: a kill must not wait for all of them.
_STARTING_S = 0.02
#: Interval at which an idle process checks whether its parent and rank 0 are there, in seconds.
_IDLE_PERIOD_S = 0.5


class LocalExecutor:
    """Runs programs on this node."""

    def __init__(self, rank: int, clock: Clock, alarm: Alarm, silence_s: float) -> None:
        self._rank, self._clock, self._alarm, self._silence_s = rank, clock, alarm, silence_s
        self._orders: messages.Begin | None = None

    def begin(self, orders: messages.Begin) -> Runner:
        """End processes that dead launchers left here, and get ready. Raise OSError, SpawnFailed: no jobs can run here."""
        end_runs(orders.db_directory, orders.grace_s, orders.dead_marks)
        environ = {**orders.environ, **mpirun.scrubbed(os.environb)}
        context = invocation.make_context(
            orders.db_directory,
            orders.run_mark,
            orders.nodes,
            orders.job_mode,
            environ,
            rank=self._rank,
            gpu_variables=orders.gpu_variables,
            shares_host=False,
            worker_limits=orders.worker_limits,
        )
        if not os.path.isdir(context.data_directory):
            raise NotADirectoryError(f"{context.data_directory} cannot be seen from {os.uname().nodename}")
        run_files = RunFiles.of(orders.db_directory, orders.run_mark, self._rank)
        self._spawner = Spawner(context.environ, orders.grace_s, self._silence_s, run_files)
        self._alarm.attach(self._spawner)
        self._orders = orders
        return LocalRunner(context, self._clock, orders.tail_lines, self._spawner, hardware.cpu_numbers())

    def beat(self) -> None:
        """Tell the spawn helpers that this process works: they end the runs here when it has been silent for too long."""
        if self._orders is not None:
            self._spawner.beat()

    def abandon(self) -> None:
        """End all runs, and start nothing more."""
        if self._orders is not None:
            self._spawner.abandon()
            end_own_runs(self._orders.db_directory, self._orders.run_mark, self._orders.grace_s, self._rank)

    def close(self) -> None:
        """End the spawn helpers and their remaining programs."""
        if self._orders is not None:
            self._spawner.abandon()
            forget(self._orders.db_directory, self._orders.run_mark, self._rank)


class ConnectionLost(Exception):
    """Rank 0 is gone, or the MPI program is breaking down. The message gives the evidence."""


class Worker:
    """One node's rank.

    Args:
        nap: sleeps for that number of seconds; returns at once, and True, when a child of this process has ended.
    """

    def __init__(
        self,
        channel: Channel,
        clock: Clock,
        heartbeat_s: float,
        executor: LocalExecutor,
        nap: Callable[[float], bool],
    ) -> None:
        self._channel, self._clock, self._executor, self._nap = channel, clock, executor, nap
        self._alone_after_s = ALONE_AFTER_HEARTBEATS * heartbeat_s
        self._parent = os.getppid()
        self._runner: Runner | None = None
        self._to_start: deque[tuple[Claim, Placement]] = deque()
        self._is_broken = False
        self._look_at = 0.0
        self._is_leaving = self.leaves_together = False

    def serve(self, hello: messages.Hello) -> bool:
        """Serve until rank 0 sends LEAVE. Return whether all ranks leave together.

        Raises:
            ConnectionLost: rank 0 cannot send LEAVE any more. All runs here have been ended.
        """
        self._channel.send(HEAD, messages.HELLO, tuple(hello))
        try:
            while not self.is_over:
                self._turn()
        except ConnectionLost:
            self._abandon()
            raise
        return self.leaves_together

    @property
    def is_over(self) -> bool:
        """Return whether rank 0 has sent LEAVE, and has answered all messages."""
        return self._is_leaving and not self._channel.has_unanswered(HEAD)

    def _turn(self) -> None:
        received = self._channel.receive()
        try:
            for _, message in received:
                self._obey(message)
            self._work()
        except Exception as exc:  # noqa: BLE001  # the other nodes go on
            self._break_down(exc)
        self._look_around()
        if not self.is_over:
            self._channel.wait(self._pause(), self._nap)

    def _obey(self, message: Message) -> None:
        kind, *rest = message
        if kind == messages.LEAVE:
            self._is_leaving, self.leaves_together = True, rest[0]
            self._channel.send(HEAD, messages.BYE)
        elif kind == messages.ABANDON:
            self._abandon()
        elif kind == messages.BEGIN:
            self._begin(messages.Begin._make(rest[0]))
        elif self._runner is None or self._is_broken:
            return
        elif kind == messages.START:
            self._to_start.append(messages.read_start(*rest))
        elif kind == messages.STOP:
            self._stop(*rest)
        elif kind == messages.HURRY:
            self._runner.kill_now()

    def _begin(self, orders: messages.Begin) -> None:
        trouble = ""
        try:
            self._runner = self._executor.begin(orders)
        except Exception as exc:  # noqa: BLE001  # this node cannot be used, the others can
            trouble = f"{type(exc).__name__}: {exc}"
        self._channel.send(HEAD, messages.READY, trouble)

    # --- work ---------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._runner is None or self._is_broken:
            return
        until = self._clock.monotonic() + _STARTING_S
        while self._to_start and self._clock.monotonic() < until:
            claim, place = self._to_start.popleft()
            try:
                self._runner.start(claim, place)
            except Exception as exc:  # one bad job fails alone
                log.exception("Job %s: unexpected error at its start.", claim.label)
                message = f"The job could not be started: unexpected {type(exc).__name__}: {exc}"
                now_us = self._clock.now_us()
                run = RunResult(claim.job, claim.attempt, states.RUN_ERROR, None, message, None, now_us)
                self._channel.send(HEAD, *messages.ended(run))
        for finished in self._runner.poll():
            self._channel.send(HEAD, *messages.ended(finished.exit, finished.trouble))

    def _stop(self, jobs: list[int], result: str, grace_s: float) -> None:
        assert self._runner is not None
        wanted = set(jobs)
        for claim, _ in self._to_start:
            if claim.job in wanted:
                self._channel.send(
                    HEAD, *messages.ended(unstarted(claim, self._clock.now_us(), "Stopped before it was started"))
                )
        self._to_start = deque(one for one in self._to_start if one[0].job not in wanted)
        self._runner.stop(wanted, result, grace_s)

    def _pause(self) -> float:
        if self._to_start:
            return 0.0
        if self._runner is not None and self._runner.is_busy:
            return STOP_PERIOD_S
        return _IDLE_PERIOD_S

    # --- trouble and end ----------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        now = self._clock.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _IDLE_PERIOD_S
        self._executor.beat()
        if os.getppid() != self._parent:
            self._abandon()  # before rank 0 hears of it, and gives the jobs to others
            self._channel.send_first(HEAD, messages.GONE, "the process that started it is gone")
            self._channel.flush()
            raise ConnectionLost("the MPI command's own process on this node is gone")
        silent_s = self._channel.silent_s(HEAD)
        if silent_s > self._alone_after_s:
            raise ConnectionLost(f"rank 0 was silent for {silent_s:.0f} s")

    def _break_down(self, exc: Exception) -> None:
        """End the runs here after an internal error, and leave the jobs to other nodes. The process stays, as MPI needs it."""
        log.exception("This node stops because of an internal error.")
        self._abandon()
        self._channel.send_first(HEAD, messages.GONE, f"it stopped because of an internal error: {type(exc).__name__}: {exc}")

    def _abandon(self) -> None:
        self._is_broken = True
        self._to_start.clear()
        self._executor.abandon()
