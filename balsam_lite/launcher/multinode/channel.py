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
from .mpi_transport import Transport

#: A message: its kind and what belongs to it, of what marshal knows.
Message = tuple[Any, ...]

#: A batch is not larger than this, unless it is a single thing.
MAX_BATCH_BYTES = 1 << 20
#: The largest thing that can be said. MPI counts in 31 bits, and no program could be started with words that long.
MAX_MESSAGE_BYTES = 256 << 20

#: While messages come and go they are looked for so often, in seconds, and ever less often when none comes. (At 20 ms an
#: idle rank uses about 0.2 % of a core.)
_SHORTEST_NAP_S, _LONGEST_NAP_S = 0.001, 0.02

_NO_NEWS = marshal.dumps((False, []))


class _Peer:
    """One conversation, this side."""

    __slots__ = ("is_suspended", "is_unanswered", "owes_answer", "received_at", "sent_at", "urgent", "waiting")

    def __init__(self, now: float) -> None:
        self.received_at = self.sent_at = now
        self.urgent: deque[bytes] = deque()
        self.waiting: deque[tuple[int, bytes]] = deque()  # with the job that it is about, or 0
        self.is_unanswered = self.owes_answer = self.is_suspended = False

    def next_frame(self, now: float) -> bytes | None:
        """What can be sent now; None: nothing."""
        batch = [] if self.is_unanswered else self._next_batch()
        if not batch and not self.owes_answer:
            return None
        frame = marshal.dumps((self.owes_answer, batch))
        self.is_unanswered |= bool(batch)
        self.owes_answer, self.sent_at = False, now
        return frame

    def _next_batch(self) -> list[bytes]:
        batch: list[bytes] = []
        room = MAX_BATCH_BYTES
        while self.urgent or self.waiting:
            room -= len(self.urgent[0] if self.urgent else self.waiting[0][1])
            if batch and room < 0:
                break
            batch.append(self.urgent.popleft() if self.urgent else self.waiting.popleft()[1])
        return batch

    def receive(self, frame: bytes, now: float) -> list[Message]:
        """What the other side said."""
        is_answer, batch = marshal.loads(frame)
        self.received_at, self.is_suspended = now, False
        self.is_unanswered &= not is_answer
        self.owes_answer |= bool(batch)
        return [marshal.loads(words) for words in batch]


class Channel:
    """The conversations of one rank with some others.

    Args:
        alive_s: a peer that was told nothing for so long is sent a sign of life.
    """

    def __init__(self, transport: Transport, peers: Iterable[int], clock: Clock, alive_s: float) -> None:
        self._transport, self._clock, self._alive_s = transport, clock, alive_s
        now = clock.monotonic()
        self._peers = {peer: _Peer(now) for peer in peers}
        self._to_send: set[int] = set()  # who may have something to send
        self._arrived: list[tuple[int, bytes]] = []
        self._nap_s = _SHORTEST_NAP_S
        self._polled_at = now  # when anything was looked for
        self._is_over = threading.Event()
        self._has_death = False

    # --- speaking -----------------------------------------------------------------------------------------------------

    def send(self, peer: int, *words: Any, about: int = 0) -> int:
        """Tell a peer something, soon. Returns its size in bytes; what is larger than MAX_MESSAGE_BYTES is not said.

        `about` is the job that it is about: see `withdraw`.
        """
        packed = marshal.dumps(words)
        if len(packed) <= MAX_MESSAGE_BYTES:
            self._peers[peer].waiting.append((about, packed))
            self._to_send.add(peer)
        return len(packed)

    def send_first(self, peer: int, *words: Any) -> None:
        """The same, before everything that waits."""
        self._peers[peer].urgent.append(marshal.dumps(words))
        self._to_send.add(peer)

    def withdraw(self, peer: int, jobs: Collection[int]) -> set[int]:
        """Take back what was said about those jobs and has not been sent. Returns the jobs about which something was."""
        channel = self._peers[peer]
        withdrawn = {job for job, _ in channel.waiting if job in jobs}
        if withdrawn:
            channel.waiting = deque(one for one in channel.waiting if one[0] not in withdrawn)
        return withdrawn

    def has_unanswered(self, peer: int) -> bool:
        """Whether something was said that the peer has not answered yet."""
        channel = self._peers[peer]
        return bool(channel.is_unanswered or channel.urgent or channel.waiting)

    def flush(self) -> None:
        """Send what can be sent now."""
        if self._has_death:
            return
        now = self._clock.monotonic()
        for peer in self._to_send:
            if self._peers[peer].is_suspended:
                continue
            frame = self._peers[peer].next_frame(now)
            if frame is not None:
                self._transport.send(peer, frame)
                self._nap_s = _SHORTEST_NAP_S
        self._to_send.clear()  # whoever has not been answered, or is in doubt, comes back with what it says next
        if not self._transport.is_for_threads:
            self._send_heartbeats()

    # --- hearing ------------------------------------------------------------------------------------------------------

    def receive(self) -> list[tuple[int, Message]]:
        """What peers have said since the last call, in order; answers them and sends what waits."""
        self._look()
        if self._arrived:
            now = self._clock.monotonic()
            frames, self._arrived = self._arrived, []
            heard = []
            for peer, frame in frames:
                channel = self._peers.get(peer)
                if channel is not None:
                    heard += [(peer, words) for words in channel.receive(frame, now)]
                    self._to_send.add(peer)
        else:
            heard = []
        if self._has_death:
            self.suspend(*self._peers)
            self._has_death = False
        self.flush()
        return heard

    def note_death(self) -> None:
        """Some peer has died, nobody knows which: tell nothing to any until it has said something.

        May be called by a signal handler. MPICH crashes when it is to send to the dead over a network (tried with 5.0.2).
        """
        self._has_death = True

    def suspend(self, *peers: int) -> None:
        """Tell those nothing until they have said something."""
        for peer in peers:
            self._peers[peer].is_suspended = True

    def _look(self) -> None:
        now = self._clock.monotonic()
        away_s = now - self._polled_at
        if away_s > self._alive_s:
            # Whoever did not listen cannot say that others were silent.
            for channel in self._peers.values():
                channel.received_at += away_s
        self._polled_at = now
        found = self._transport.poll()
        if found:
            self._arrived += found
            self._nap_s = _SHORTEST_NAP_S

    def silent_s(self, peer: int) -> float:
        """For how long nothing was heard of a peer; infinite if MPI says that it is gone."""
        if peer in self._transport.broken:
            return float("inf")
        return self._clock.monotonic() - self._peers[peer].received_at

    def wait(self, seconds: float, nap: Callable[[float], bool]) -> None:
        """Let so many seconds pass, less if something arrives, or `nap`, which sleeps for some time, says that it was woken."""
        end = self._clock.monotonic() + seconds
        self.flush()
        while True:
            self._look()
            left = end - self._clock.monotonic()
            if self._arrived or left <= 0 or nap(min(left, self._nap_s)):
                return
            if not self._transport.is_moving:
                self._nap_s = min(2 * self._nap_s, _LONGEST_NAP_S)

    # --- signs of life ------------------------------------------------------------------------------------------------

    def start_heartbeat(self) -> None:
        """From now on give a sign of life to every peer that would else hear nothing, also while the main thread is busy.

        File systems and databases can take minutes; a node that waits for them is not dead, and its jobs run.
        """
        if self._transport.is_for_threads:
            threading.Thread(target=self._run_heartbeat, name="alive", daemon=True).start()

    def close(self) -> None:
        """No more signs of life: MPI is about to end."""
        self._is_over.set()

    def _run_heartbeat(self) -> None:
        while not self._is_over.wait(self._alive_s / 4):
            self._send_heartbeats()

    def _send_heartbeats(self) -> None:
        now = self._clock.monotonic()
        for peer, channel in self._peers.items():
            if self._has_death:
                return
            if now - channel.sent_at >= self._alive_s and not channel.is_suspended:
                channel.sent_at = now
                self._transport.send(peer, _NO_NEWS)
