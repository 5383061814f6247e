"""Conversations between ranks: batches with flow control, signs of life, and sleep until something arrives.

Each side has at most one batch on its way to the other that was not answered yet; what is said meanwhile goes with the next
one. So however slow a peer is, no messages pile up in MPI, and what is urgent is next.
"""

from __future__ import annotations

import marshal
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from ...core.clock import Clock
from .mpi_transport import Link

#: A message: its kind and what belongs to it, of what marshal knows.
Words = tuple[Any, ...]

#: A batch is not larger than this, unless it is a single thing.
BATCH_BYTES = 1 << 20
#: The largest thing that can be said. MPI counts in 31 bits, and no program could be started with words that long.
MOST_BYTES = 256 << 20

#: While messages come and go they are looked for so often, in seconds, and ever less often when none comes. (At 20 ms an
#: idle rank uses about 0.2 % of a core.)
_SHORTEST_NAP_S, _LONGEST_NAP_S = 0.001, 0.02

_NO_NEWS = marshal.dumps((False, []))


class _Channel:
    """One conversation, this side."""

    __slots__ = ("heard_at", "is_in_doubt", "is_unanswered", "owes_answer", "spoke_at", "urgent", "waiting")

    def __init__(self, now: float) -> None:
        self.heard_at = self.spoke_at = now
        self.urgent: deque[bytes] = deque()
        self.waiting: deque[tuple[int, bytes]] = deque()  # with the job that it is about, or 0
        self.is_unanswered = self.owes_answer = self.is_in_doubt = False

    def next_frame(self, now: float) -> bytes | None:
        """What can be sent now; None: nothing."""
        batch = [] if self.is_unanswered else self._next_batch()
        if not batch and not self.owes_answer:
            return None
        frame = marshal.dumps((self.owes_answer, batch))
        self.is_unanswered |= bool(batch)
        self.owes_answer, self.spoke_at = False, now
        return frame

    def _next_batch(self) -> list[bytes]:
        batch: list[bytes] = []
        room = BATCH_BYTES
        while self.urgent or self.waiting:
            room -= len(self.urgent[0] if self.urgent else self.waiting[0][1])
            if batch and room < 0:
                break
            batch.append(self.urgent.popleft() if self.urgent else self.waiting.popleft()[1])
        return batch

    def hear(self, frame: bytes, now: float) -> list[Words]:
        """What the other side said."""
        is_answer, batch = marshal.loads(frame)
        self.heard_at, self.is_in_doubt = now, False
        self.is_unanswered &= not is_answer
        self.owes_answer |= bool(batch)
        return [marshal.loads(words) for words in batch]


class Post:
    """The conversations of one rank with some others.

    Args:
        alive_s: a peer that was told nothing for so long is sent a sign of life.
    """

    def __init__(self, link: Link, peers: Iterable[int], clock: Clock, alive_s: float) -> None:
        self._link, self._clock, self._alive_s = link, clock, alive_s
        now = clock.monotonic()
        self._channels = {peer: _Channel(now) for peer in peers}
        self._to_send: set[int] = set()  # who may have something to send
        self._arrived: list[tuple[int, bytes]] = []
        self._nap_s = _SHORTEST_NAP_S
        self._heard_at = now  # when anything was looked for
        self._is_over = threading.Event()
        self._somebody_died = False

    # --- speaking -----------------------------------------------------------------------------------------------------

    def say(self, peer: int, *words: Any, about: int = 0) -> int:
        """Tell a peer something, soon. Returns its size in bytes; what is larger than MOST_BYTES is not said.

        `about` is the job that it is about: see `withdraw`.
        """
        packed = marshal.dumps(words)
        if len(packed) <= MOST_BYTES:
            self._channels[peer].waiting.append((about, packed))
            self._to_send.add(peer)
        return len(packed)

    def say_first(self, peer: int, *words: Any) -> None:
        """The same, before everything that waits."""
        self._channels[peer].urgent.append(marshal.dumps(words))
        self._to_send.add(peer)

    def withdraw(self, peer: int, jobs: Collection[int]) -> set[int]:
        """Take back what was said about those jobs and has not been sent. Returns the jobs about which something was."""
        channel = self._channels[peer]
        withdrawn = {job for job, _ in channel.waiting if job in jobs}
        if withdrawn:
            channel.waiting = deque(one for one in channel.waiting if one[0] not in withdrawn)
        return withdrawn

    def has_unheard(self, peer: int) -> bool:
        """Whether something was said that the peer has not answered yet."""
        channel = self._channels[peer]
        return bool(channel.is_unanswered or channel.urgent or channel.waiting)

    def send(self) -> None:
        """Send what can be sent now."""
        if self._somebody_died:
            return
        now = self._clock.monotonic()
        for peer in self._to_send:
            if self._channels[peer].is_in_doubt:
                continue
            frame = self._channels[peer].next_frame(now)
            if frame is not None:
                self._link.send(peer, frame)
                self._nap_s = _SHORTEST_NAP_S
        self._to_send.clear()  # whoever has not been answered, or is in doubt, comes back with what it says next
        if not self._link.is_for_threads:
            self._show_life()

    # --- hearing ------------------------------------------------------------------------------------------------------

    def hear(self) -> list[tuple[int, Words]]:
        """What peers have said since the last call, in order; answers them and sends what waits."""
        self._look()
        if self._arrived:
            now = self._clock.monotonic()
            frames, self._arrived = self._arrived, []
            heard = []
            for peer, frame in frames:
                channel = self._channels.get(peer)
                if channel is not None:
                    heard += [(peer, words) for words in channel.hear(frame, now)]
                    self._to_send.add(peer)
        else:
            heard = []
        if self._somebody_died:
            self.doubt(*self._channels)
            self._somebody_died = False
        self.send()
        return heard

    def note_death(self) -> None:
        """Some peer has died, nobody knows which: tell nothing to any until it has said something.

        May be called by a signal handler. MPICH crashes when it is to send to the dead over a network (tried with 5.0.2).
        """
        self._somebody_died = True

    def doubt(self, *peers: int) -> None:
        """Tell those nothing until they have said something."""
        for peer in peers:
            self._channels[peer].is_in_doubt = True

    def _look(self) -> None:
        now = self._clock.monotonic()
        away_s = now - self._heard_at
        if away_s > self._alive_s:
            # Whoever did not listen cannot say that others were silent.
            for channel in self._channels.values():
                channel.heard_at += away_s
        self._heard_at = now
        found = self._link.poll()
        if found:
            self._arrived += found
            self._nap_s = _SHORTEST_NAP_S

    def silent_s(self, peer: int) -> float:
        """For how long nothing was heard of a peer; infinite if MPI says that it is gone."""
        if peer in self._link.broken:
            return float("inf")
        return self._clock.monotonic() - self._channels[peer].heard_at

    def wait(self, seconds: float, nap: Callable[[float], bool]) -> None:
        """Let so many seconds pass, less if something arrives, or `nap`, which sleeps for some time, says that it was woken."""
        end = self._clock.monotonic() + seconds
        self.send()
        while True:
            self._look()
            left = end - self._clock.monotonic()
            if self._arrived or left <= 0 or nap(min(left, self._nap_s)):
                return
            if not self._link.is_moving:
                self._nap_s = min(2 * self._nap_s, _LONGEST_NAP_S)

    # --- signs of life ------------------------------------------------------------------------------------------------

    def show_life(self) -> None:
        """From now on give a sign of life to every peer that would else hear nothing, also while the main thread is busy.

        File systems and databases can take minutes; a node that waits for them is not dead, and its jobs run.
        """
        if self._link.is_for_threads:
            threading.Thread(target=self._go_on_showing_life, name="alive", daemon=True).start()

    def close(self) -> None:
        """No more signs of life: MPI is about to end."""
        self._is_over.set()

    def _go_on_showing_life(self) -> None:
        while not self._is_over.wait(self._alive_s / 4):
            self._show_life()

    def _show_life(self) -> None:
        now = self._clock.monotonic()
        for peer, channel in self._channels.items():
            if self._somebody_died:
                return
            if now - channel.spoke_at >= self._alive_s and not channel.is_in_doubt:
                channel.spoke_at = now
                self._link.send(peer, _NO_NEWS)
