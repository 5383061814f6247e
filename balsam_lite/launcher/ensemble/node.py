"""The side of the other ranks: run what rank 0 says on this node, and tell it how that ended. No DB, no lease."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ... import states
from ...clock import Clock
from ...db.store.claims import Claim, Exit
from ..nodes import Place
from ..runner import STOP_PERIOD_S, Runner
from . import words
from .post import Post, Words

log = logging.getLogger("balsam_lite.launcher")

HEAD = 0
#: A rank ends its jobs when it has not heard of rank 0 for so many heartbeats: before rank 0 gives them to others.
ALONE_AFTER_HEARTBEATS = 2.0
#: Programs are started for so long, in seconds, before messages are looked for again: a kill must not wait for them all.
_STARTING_S = 0.02
#: Without anything to do, the process looks so often whether its parent and rank 0 are there, in seconds.
_IDLE_PERIOD_S = 0.5


class Hands(Protocol):
    """What runs programs on this node."""

    @property
    def runner(self) -> Runner:
        """Whatever it is."""

    def abandon(self) -> None:
        """End whatever runs, and start nothing more."""


class Gone(Exception):
    """Rank 0 is gone, or the MPI program is being taken apart. The words say how that was seen."""


class NodeServer:
    """One node's rank.

    Args:
        make_hands: called when rank 0 has said what there is to know. OSError: this node cannot run jobs.
        nap: sleeps for so many seconds; returns at once, and True, when a child of this process has ended.
    """

    def __init__(
        self,
        post: Post,
        clock: Clock,
        heartbeat_s: float,
        make_hands: Callable[[words.Begin], Hands],
        nap: Callable[[float], bool],
    ) -> None:
        self._post, self._clock, self._make_hands, self._nap = post, clock, make_hands, nap
        self._alone_after_s = ALONE_AFTER_HEARTBEATS * heartbeat_s
        self._parent = os.getppid()
        self._hands: Hands | None = None
        self._to_start: deque[tuple[Claim, Place]] = deque()
        self._is_broken = False
        self._look_at = 0.0
        self._is_leaving = self.leaves_together = False

    def serve(self, hello: words.Hello) -> bool:
        """Until rank 0 says that it is over; returns whether all ranks leave together.

        Raises:
            Gone: nobody will say so any more. What ran here has been ended.
        """
        self._post.say(HEAD, words.HELLO, tuple(hello))
        try:
            while not self._is_leaving:
                self._turn()
            self._say_goodbye()
        except Gone:
            self._abandon()
            raise
        return self.leaves_together

    def _say_goodbye(self) -> None:
        """Until everything that was said has been heard."""
        self._post.say(HEAD, words.BYE)
        while self._post.has_unheard(HEAD):
            self._post.wait(_IDLE_PERIOD_S, self._nap)
            self._post.hear()
            self._look_around()

    def _turn(self) -> None:
        for _, said in self._post.hear():
            self._obey(said)
        try:
            self._work()
        except Exception as exc:  # noqa: BLE001  # the other nodes go on
            self._break_down(exc)
        self._look_around()
        if not self._is_leaving:
            self._post.wait(self._pause(), self._nap)

    def _obey(self, said: Words) -> None:
        kind, *rest = said
        if kind == words.LEAVE:
            self._is_leaving, self.leaves_together = True, rest[0]
        elif kind == words.ABANDON:
            self._abandon()
        elif kind == words.BEGIN:
            self._begin(words.Begin._make(rest[0]))
        elif self._hands is None or self._is_broken:
            return
        elif kind == words.START:
            self._to_start.append(words.read_start(*rest))
        elif kind == words.STOP:
            self._stop(*rest)
        elif kind == words.HURRY:
            self._hands.runner.kill_now()

    def _begin(self, orders: words.Begin) -> None:
        trouble = ""
        try:
            self._hands = self._make_hands(orders)
        except Exception as exc:  # noqa: BLE001  # this node cannot be used, the others can
            trouble = f"{type(exc).__name__}: {exc}"
        self._post.say(HEAD, words.READY, trouble)

    # --- work ---------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._hands is None or self._is_broken:
            return
        until = self._clock.monotonic() + _STARTING_S
        while self._to_start and self._clock.monotonic() < until:
            claim, place = self._to_start.popleft()
            try:
                self._hands.runner.start(claim, place)
            except Exception as exc:  # one bad job fails alone
                log.exception("Job number %d: unexpected error at its start.", claim.job)
                self._refuse(claim, states.RUN_ERROR, f"The job could not be started: unexpected {type(exc).__name__}: {exc}")
        for finished in self._hands.runner.poll():
            self._post.say(HEAD, *words.ended(finished.exit))

    def _stop(self, jobs: list[int], result: str, grace_s: float) -> None:
        assert self._hands is not None
        wanted = set(jobs)
        for claim, _ in self._to_start:
            if claim.job in wanted:
                self._refuse(claim, states.RESTART_READY, "Stopped before it was started")
        self._to_start = deque(one for one in self._to_start if one[0].job not in wanted)
        self._hands.runner.stop(wanted, result, grace_s)

    def _refuse(self, claim: Claim, result: str, message: str) -> None:
        run = Exit(claim.job, claim.attempt, result, None, message, None, self._clock.now_us())
        self._post.say(HEAD, *words.ended(run))

    def _pause(self) -> float:
        if self._to_start:
            return 0.0
        if self._hands is not None and self._hands.runner.is_busy:
            return STOP_PERIOD_S
        return _IDLE_PERIOD_S

    # --- trouble and end ----------------------------------------------------------------------------------------------

    def _look_around(self) -> None:
        now = self._clock.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _IDLE_PERIOD_S
        if os.getppid() != self._parent:
            self._post.say_first(HEAD, words.GONE, "the process that started it is gone")
            self._post.send()
            raise Gone("the MPI command's own process on this node is gone")
        silent_s = self._post.silent_s(HEAD)
        if silent_s > self._alone_after_s:
            raise Gone(f"nothing was heard of rank 0 for {silent_s:.0f} s")

    def _break_down(self, exc: Exception) -> None:
        """An error of our own: end what runs here, and leave the jobs to the others. The process stays, for MPI's sake."""
        log.exception("This node stops because of an error of its own.")
        self._abandon()
        self._post.say_first(HEAD, words.GONE, f"it stopped because of an error of its own: {type(exc).__name__}: {exc}")

    def _abandon(self) -> None:
        self._is_broken = True
        self._to_start.clear()
        if self._hands is not None:
            self._hands.abandon()
