"""Messages between ranks, in tuples that marshal knows, and the `Channel` that carries them.

Rank 0 to node: BEGIN, START, STOP, HURRY, ABANDON, LEAVE. Node to rank 0: HELLO, READY, ENDED, LOG, GONE, BYE. All ranks run
one installation; `VERSION` makes sure.

A channel sends batches with flow control and heartbeats, and sleeps until a message arrives. Each side has at most one
unanswered batch in transit to the other; messages sent meanwhile go with the next one. So even if a peer is slow, no messages
pile up in MPI, and urgent ones go next.
"""

from __future__ import annotations

import marshal
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from ... import __version__
from ...core.clock import Clock
from ...core.errors import MachineTrouble
from ...db.store.calls import ClaimedCall, ParentCall
from ...db.store.claims import Claim, Shape
from ...db.store.runs import RunResult
from ..exec.hardware import DEFAULT_GPU_VARIABLES
from ..placement import Placement
from .mpi_transport import MpiTransport

#: marshal's format is the interpreter's own.
VERSION = (__version__, sys.version_info[:2])

BEGIN, START, STOP, HURRY, ABANDON, LEAVE = "begin", "start", "stop", "hurry", "abandon", "leave"
HELLO, READY, ENDED, LOG, GONE, BYE = "hello", "ready", "ended", "log", "gone", "bye"

_SHAPE, _PLACE, _CALL = map(Claim._fields.index, ("shape", "place", "call"))


class Hello(NamedTuple):
    """The first message of a node."""

    version: tuple[Any, ...]
    host: str
    cpus: int
    gpus: tuple[str, ...]


class Begin(NamedTuple):
    """The data that a node needs to run jobs."""

    db_directory: str
    run_mark: bytes  # with which those of its runs begin
    nodes: int
    job_mode: str
    environ: dict[bytes, bytes]  # what jobs inherit; where the node has such a variable too, the node's own counts
    tail_lines: int
    grace_s: float  # between TERM and KILL for what has no launcher
    dead_marks: tuple[bytes, ...]  # run marks of dead launchers, whose processes are to end first
    gpu_variables: tuple[str, ...] = DEFAULT_GPU_VARIABLES  # these tell jobs their GPUs
    worker_limits: tuple[int, int] = (0, 0)  # see `invocation.Context`


def start(claim: Claim, place: Placement) -> tuple[Any, ...]:
    """Return the message that starts a job."""
    plain = list(claim)
    plain[_SHAPE] = plain[_PLACE] = None
    if claim.call is not None:
        plain[_CALL] = (*claim.call[:-1], [tuple(parent) for parent in claim.call.parents])
    return START, plain, tuple(claim.shape), place.nodes, place.gpus


def read_start(
    claim: list[Any], shape: tuple[Any, ...], nodes: tuple[int, ...], gpus: tuple[tuple[str, ...], ...]
) -> tuple[Claim, Placement]:
    """Return the claim and the placement from the data of a `start` message (without START)."""
    made = Shape._make(shape)
    if claim[_CALL] is not None:
        *plain, parents = claim[_CALL]
        claim[_CALL] = ClaimedCall._make((*plain, tuple(map(ParentCall._make, parents))))
    return Claim._make(claim)._replace(shape=made), Placement(nodes, gpus, made)


def ended(run: RunResult, trouble: MachineTrouble | None = None) -> tuple[Any, ...]:
    """Return the message for a run that has ended, or that the node could not start because of `trouble`."""
    return ENDED, tuple(run), trouble and (trouble.message, trouble.scope)


def read_ended(run: tuple[Any, ...], trouble: tuple[str, str] | None) -> tuple[RunResult, MachineTrouble | None]:
    """Return the result and the trouble from the data of an `ended` message (without ENDED)."""
    return RunResult._make(run), trouble and MachineTrouble(*trouble)


# --- the channel ------------------------------------------------------------------------------------------------------

#: A message: its kind and its data, of types that marshal knows.
Message = tuple[Any, ...]

#: A batch is not larger than this, unless it is a single message.
MAX_BATCH_BYTES = 1 << 20
#: Maximum size of a message. MPI counts in 31 bits, and no program could be started with arguments that long.
MAX_MESSAGE_BYTES = 256 << 20

#: Interval of polls in seconds while messages come and go, and its maximum when none comes. (At 20 ms an idle rank uses about
#: 0.2 % of a core.)
_MIN_NAP_S, _MAX_NAP_S = 0.001, 0.02

_HEARTBEAT = marshal.dumps((False, []))


class _Peer:
    """The state of the exchange with one peer."""

    __slots__ = ("is_suspended", "is_unanswered", "owes_answer", "received_at", "sent_at", "urgent", "waiting")

    def __init__(self, now: float) -> None:
        self.received_at = self.sent_at = now
        self.urgent: deque[bytes] = deque()
        self.waiting: deque[tuple[int, bytes]] = deque()  # with the job that it is about, or 0
        self.is_unanswered = self.owes_answer = self.is_suspended = False

    def next_frame(self, now: float) -> bytes | None:
        """Return the next frame that can be sent now; None: none."""
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
        """Return the messages in a frame of the peer."""
        is_answer, batch = marshal.loads(frame)
        self.received_at, self.is_suspended = now, False
        self.is_unanswered &= not is_answer
        self.owes_answer |= bool(batch)
        return [marshal.loads(packed) for packed in batch]


class Channel:
    """The messages of one rank to and from some others.

    Args:
        alive_s: interval in seconds after which a peer without messages is sent a heartbeat.
    """

    def __init__(self, transport: MpiTransport, peers: Iterable[int], clock: Clock, alive_s: float) -> None:
        self._transport, self._clock, self._alive_s = transport, clock, alive_s
        now = clock.monotonic()
        self._peers = {peer: _Peer(now) for peer in peers}
        self._to_send: set[int] = set()  # peers for which something may wait
        self._arrived: list[tuple[int, bytes]] = []
        self._nap_s = _MIN_NAP_S
        self._polled_at = now  # when `_look` was last called
        self._is_over = threading.Event()
        self._has_death = False

    # --- sending ------------------------------------------------------------------------------------------------------

    def send(self, peer: int, *message: Any, about: int = 0) -> int:
        """Queue a message for a peer. Return its size in bytes; one larger than MAX_MESSAGE_BYTES is not sent.

        Args:
            about: the job of the message, for `withdraw`; 0: none.
        """
        packed = marshal.dumps(message)
        if len(packed) <= MAX_MESSAGE_BYTES:
            self._peers[peer].waiting.append((about, packed))
            self._to_send.add(peer)
        return len(packed)

    def send_first(self, peer: int, *message: Any) -> None:
        """Queue a message before all other queued ones."""
        self._peers[peer].urgent.append(marshal.dumps(message))
        self._to_send.add(peer)

    def withdraw(self, peer: int, jobs: Collection[int]) -> set[int]:
        """Remove the queued messages about those jobs. Return the jobs that had any."""
        state = self._peers[peer]
        withdrawn = {job for job, _ in state.waiting if job in jobs}
        if withdrawn:
            state.waiting = deque(one for one in state.waiting if one[0] not in withdrawn)
        return withdrawn

    def has_unanswered(self, peer: int) -> bool:
        """Return whether there are messages that the peer has not answered yet."""
        state = self._peers[peer]
        return bool(state.is_unanswered or state.urgent or state.waiting)

    def flush(self) -> None:
        """Send all messages that can be sent now."""
        if self._has_death:
            return
        now = self._clock.monotonic()
        for peer in self._to_send:
            if self._peers[peer].is_suspended:
                continue
            frame = self._peers[peer].next_frame(now)
            if frame is not None:
                self._transport.send(peer, frame)
                self._nap_s = _MIN_NAP_S
        self._to_send.clear()  # a peer with an unanswered batch, or suspended, is added again by its next frame
        if not self._transport.is_for_threads:
            self._send_heartbeats()

    # --- receiving ----------------------------------------------------------------------------------------------------

    def receive(self) -> list[tuple[int, Message]]:
        """Return the messages since the last call with their senders, in order; answer them and send queued messages."""
        self._look()
        if self._arrived:
            now = self._clock.monotonic()
            frames, self._arrived = self._arrived, []
            received = []
            for peer, frame in frames:
                state = self._peers.get(peer)
                if state is not None:
                    received += [(peer, message) for message in state.receive(frame, now)]
                    self._to_send.add(peer)
        else:
            received = []
        if self._has_death:
            self.suspend(*self._peers)
            self._has_death = False
        self.flush()
        return received

    def note_death(self) -> None:
        """Send nothing to any peer until it has sent something, because an unknown peer has died.

        May be called by a signal handler. MPICH crashes when it sends to a dead rank over a network (tried with 5.0.2).
        """
        self._has_death = True

    def suspend(self, *peers: int) -> None:
        """Send nothing to those peers until they have sent something."""
        for peer in peers:
            self._peers[peer].is_suspended = True

    def _look(self) -> None:
        now = self._clock.monotonic()
        away_s = now - self._polled_at
        if away_s > self._alive_s:
            # While this rank did not poll, silence of its peers proves nothing.
            for state in self._peers.values():
                state.received_at += away_s
        self._polled_at = now
        found = self._transport.poll()
        if found:
            self._arrived += found
            self._nap_s = _MIN_NAP_S

    def silent_s(self, peer: int) -> float:
        """Return the seconds since the last frame of a peer; infinite if MPI reports that it is gone."""
        if peer in self._transport.broken:
            return float("inf")
        return self._clock.monotonic() - self._peers[peer].received_at

    def wait(self, seconds: float, nap: Callable[[float], bool]) -> None:
        """Sleep for that number of seconds, less if something arrives, or if `nap`, which sleeps, returns that it was woken."""
        end = self._clock.monotonic() + seconds
        self.flush()
        while True:
            self._look()
            left = end - self._clock.monotonic()
            if self._arrived or left <= 0 or nap(min(left, self._nap_s)):
                return
            if not self._transport.is_moving:
                self._nap_s = min(2 * self._nap_s, _MAX_NAP_S)

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def start_heartbeat(self) -> None:
        """Send heartbeats from now on to each peer without other messages, also while the main thread is busy.

        File systems and databases can take minutes; a node that waits for them is not dead, and its jobs run.
        """
        if self._transport.is_for_threads:
            threading.Thread(target=self._run_heartbeat, name="alive", daemon=True).start()

    def close(self) -> None:
        """Stop the heartbeats, because MPI is about to be finalized."""
        self._is_over.set()

    def _run_heartbeat(self) -> None:
        while not self._is_over.wait(self._alive_s / 4):
            self._send_heartbeats()

    def _send_heartbeats(self) -> None:
        now = self._clock.monotonic()
        for peer, state in self._peers.items():
            if self._has_death:
                return
            if now - state.sent_at >= self._alive_s and not state.is_suspended:
                state.sent_at = now
                self._transport.send(peer, _HEARTBEAT)
