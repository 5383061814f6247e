"""Weak scaling of a launcher over many nodes: the real loop, DB, placement and messages; time and the nodes are simulated.

1. For each of `--nodes`: `--slots` places per node, `--waves` tasks of `--minutes` minutes for each place. The launcher's own
   work takes the CPU time that it takes on this machine; while it sleeps, and for what the nodes do, the clock is set forward.
   `utilisation` is the ideal time, waves x minutes, over the time from the first RUNNING to the last end of a task;
   `weak_scaling` the utilisation with the most nodes over that with the fewest. `longest_write_s` is the longest transaction,
   for which other commands have to wait.
2. On the largest of them, so many tasks of one second that the launcher is hardly ever idle. `us_per_job` is how its time is
   spent per job, sleep left out: its transactions (`sql`), talking to nodes (`messages`), and with the rest of the loop `all`;
   `completions_per_s` how many it could do of those, `short_tasks_per_s` how many it did.
"""

from __future__ import annotations

import heapq
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import common

from balsam_lite.core import states
from balsam_lite.core.process_table import Holder
from balsam_lite.core.settings import Settings
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import leases
from balsam_lite.db.store.claims import Claim
from balsam_lite.db.store.runs import RunResult
from balsam_lite.launcher import loop
from balsam_lite.launcher.multinode import messages
from balsam_lite.launcher.multinode.coordinator import ClusterRunner, Workers
from balsam_lite.launcher.multinode.messages import Channel
from balsam_lite.launcher.placement import Node, NodePool, Placement
from balsam_lite.launcher.run_results import Finished

#: From node to node, in seconds. A rank looks for messages every millisecond or two while there are any.
_LATENCY_S = 0.002
#: Until a task's program runs.
_START_S = 0.002


class SimClock:
    """The CPU time of this process, without that of the simulation, and with the time that is skipped."""

    def __init__(self) -> None:
        self._shift_s = 1.6e9 - time.process_time()
        self.slept_s = 0.0

    def monotonic(self) -> float:
        return time.process_time() + self._shift_s

    def now_us(self) -> int:
        return int(self.monotonic() * 1e6)

    def sleep(self, seconds: float) -> None:
        self._shift_s += seconds
        self.slept_s += seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """The time that passes meanwhile does not count."""
        began = time.process_time()
        yield
        self._shift_s -= time.process_time() - began


class Tasks:
    """Simulated programs of one node: they take so long, and then `poll` tells of them. See `runner.Runner`."""

    is_busy = False

    def __init__(self, clock: SimClock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self._running: deque[tuple[float, Claim, Placement]] = deque()  # by end, as all take the same time
        self.started = 0

    @property
    def jobs(self) -> set[int]:
        return {claim.job for _, claim, _ in self._running}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def next_end(self) -> float:
        return self._running[0][0] if self._running else float("inf")

    def start(self, claim: Claim, place: Placement) -> None:
        self.started += 1
        self._running.append((self._clock.monotonic() + _START_S + self._seconds, claim, place))

    def poll(self) -> list[Finished]:
        found, now = [], self._clock.monotonic()
        while self._running and self._running[0][0] <= now:
            end, claim, place = self._running.popleft()
            run = RunResult(claim.job, claim.attempt, states.RUN_DONE, 0, "", int((end - self._seconds) * 1e6), int(end * 1e6))
            found.append(Finished(run, place))
        return found

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        assert not jobs

    def kill_now(self) -> None:
        pass


class _NodeTransport:
    """A node's end of the wire."""

    is_moving = is_for_threads = False

    def __init__(self, cluster: Cluster, rank: int) -> None:
        self.rank, self.size, self.broken = rank, cluster.size, set[int]()
        self._cluster = cluster
        self.box: deque[tuple[int, bytes]] = deque()

    def send(self, peer: int, frame: bytes) -> None:
        self._cluster.carry(self.rank, peer, frame)

    def poll(self) -> list[tuple[int, bytes]]:
        return [self.box.popleft() for _ in range(len(self.box))]


class Cluster:
    """All nodes but the first, and the wire between them. It is rank 0's transport."""

    rank = 0
    is_moving = is_for_threads = False

    def __init__(self, size: int, clock: SimClock, seconds: float) -> None:
        self.size, self._clock, self.broken = size, clock, set[int]()
        self._links = [_NodeTransport(self, rank) for rank in range(size)]
        self._channels = [Channel(transport, [0], clock, 1e9) for transport in self._links]
        self._tasks = [Tasks(clock, seconds) for _ in range(size)]
        self._events: list[tuple[float, int, int, bytes]] = []  # when, a number, whom it is for, the frame or b"" for an end
        self._number = 0
        self.spent_s = 0.0  # by rank 0, in sending
        for rank in range(1, size):
            self._channels[rank].send(0, messages.HELLO, (messages.VERSION, f"node{rank}", 64, ()))
            self._channels[rank].flush()

    def carry(self, sender: int, peer: int, frame: bytes) -> None:
        self._number += 1
        heapq.heappush(self._events, (self._clock.monotonic() + _LATENCY_S, self._number, peer << 32 | sender, frame))

    def send(self, peer: int, frame: bytes) -> None:
        with self._clock.stopped():
            self.carry(0, peer, frame)

    def poll(self) -> list[tuple[int, bytes]]:
        with self._clock.stopped():
            now = self._clock.monotonic()
            while self._events and self._events[0][0] <= now:
                _, _, route, frame = heapq.heappop(self._events)
                self._deliver(route >> 32, route & 0xFFFFFFFF, frame)
            return self._links[0].poll()

    def next_event(self) -> float:
        return self._events[0][0] if self._events else float("inf")

    def _deliver(self, peer: int, sender: int, frame: bytes) -> None:
        if frame:
            self._links[peer].box.append((sender, frame))
        if peer:
            self._node_turn(peer)

    def _node_turn(self, rank: int) -> None:
        channel, tasks = self._channels[rank], self._tasks[rank]
        before = tasks.next_end
        for _, said in channel.receive():
            if said[0] == messages.START:
                tasks.start(*messages.read_start(*said[1:]))
            elif said[0] == messages.BEGIN:
                channel.send(0, messages.READY, "")
        for finished in tasks.poll():
            channel.send(0, *messages.ended(finished.exit))
        channel.flush()
        if tasks.next_end != before and tasks.next_end < float("inf"):
            self._number += 1
            heapq.heappush(self._events, (tasks.next_end + 1e-6, self._number, rank << 32, b""))


class Meter:
    """Where the launcher's time goes."""

    def __init__(self, clock: SimClock) -> None:
        self._clock = clock
        self.spent: dict[str, float] = {}
        self.longest_write_s = 0.0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added up."""

        def call(*arguments: Any, **named: Any) -> Any:
            began = self._clock.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                took = self._clock.monotonic() - began
                self.spent[name] = self.spent.get(name, 0.0) + took
                if name == "sql":
                    self.longest_write_s = max(self.longest_write_s, took)

        return call


def run(database: Database, nodes: int, slots: int, seconds: float) -> tuple[Meter, float]:
    """A launcher over so many simulated nodes until all jobs are done; its meter, and the time that it was awake."""
    clock = SimClock()
    settings = Settings(IDLE_TTL_S=0.5)
    cluster = Cluster(nodes, clock, seconds)
    workers = Workers(cluster, clock, settings.HEARTBEAT_S)
    workers._lost_after_s = float("inf")  # nodes have nothing to say for minutes, and no thread to say so
    workers.gather()
    workers.begin(messages.Begin("/", b"", 1, nodes, "serial", {}, 16, 1.0, ()))
    pool = NodePool([Node(slots, (), f"node{rank}") for rank in range(nodes)])
    local = Tasks(clock, seconds)
    runner = ClusterRunner(local, workers, clock, lambda claim: False, pool.close)
    with database.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", clock.now_us())

    def nap(limit_s: float) -> bool:
        now = clock.monotonic()
        until = min(now + limit_s, max(now, cluster.next_event()), max(now, local.next_end))
        clock.sleep(until - now)
        return until >= local.next_end

    def wait(limit_s: float) -> None:
        # Naps as long as nothing happens: a real one looks every 20 ms, which is a hundredth of a core.
        workers.channel._nap_s = max(workers.channel._nap_s, limit_s)
        runner.wait(limit_s, nap)

    limits = loop.Limits(None, True, None, settings.IDLE_TTL_S)
    launcher = loop.Launcher(database, settings, lease, pool, runner, _NoSteps(), limits, clock, wait)  # type: ignore[arg-type]
    meter = Meter(clock)
    launcher._transaction = meter.timed("sql", launcher._transaction)  # type: ignore[method-assign]
    runner.poll = meter.timed("messages", runner.poll)  # type: ignore[method-assign]
    runner.start = meter.timed("messages", runner.start)  # type: ignore[method-assign]
    began, slept_s = clock.monotonic(), clock.slept_s
    launcher.run()
    awake_s = clock.monotonic() - began - (clock.slept_s - slept_s)
    with database.write() as cx:
        leases.close_lease(cx, lease, clock.now_us(), "done")
    return meter, awake_s


class _NoSteps:
    """Plain jobs have none."""

    jobs: frozenset[int] = frozenset()
    room = 0

    def __len__(self) -> int:
        return 0

    def poll(self) -> list[Any]:
        return []

    def stop(self, jobs: Collection[int], grace_s: float) -> None:
        pass


def measure(place: common.Bench, nodes: int, slots: int, jobs: int, seconds: float) -> dict[str, Any]:
    """One launcher on one fresh DB."""
    directory = place.new_directory()
    common.make_db_with_jobs(directory, common.TRUE, common.job_dicts(jobs, args="", node_packing_count=slots))
    database = common.directories.open_database(directory)
    meter, awake_s = run(database, nodes, slots, seconds)
    database.close()
    span = common.span_of(directory)
    if span.finished != jobs:
        raise RuntimeError(f"{span.finished} of {jobs} jobs finished; see {directory}")
    costs = {name: spent / jobs * 1e6 for name, spent in meter.spent.items()}
    return {
        "nodes": nodes,
        "jobs": jobs,
        "seconds": span.seconds,
        "utilisation": jobs * seconds / (nodes * slots * span.seconds),
        "longest_write_s": meter.longest_write_s,
        "us_per_job": {**costs, "all": awake_s / jobs * 1e6},
    }


def main() -> None:
    """Both parts, one line."""
    parser = common.parser(__doc__)
    parser.add_argument("--nodes", type=common.at_least(2), nargs="+", default=[128, 1024], metavar="N", help="(128 1024)")
    parser.add_argument("--slots", type=common.at_least(1), default=64, metavar="K", help="places of each node (64)")
    parser.add_argument("--waves", type=common.at_least(1), default=4, metavar="W", help="tasks for each place (4)")
    parser.add_argument("--minutes", type=common.at_least(1), default=10, metavar="M", help="that a task takes (10)")
    parser.add_argument("--short", type=common.at_least(100), default=100_000, metavar="J", help="tasks of a second (100000)")
    arguments = parser.parse_args()
    logging.getLogger("balsam_lite").setLevel(logging.ERROR)
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        rounds = []
        for nodes in sorted(arguments.nodes):
            common.say(f"weak_scaling: {nodes} nodes")
            jobs = nodes * arguments.slots * arguments.waves
            rounds.append(measure(bench, nodes, arguments.slots, jobs, 60.0 * arguments.minutes))
        common.say("weak_scaling: short tasks")
        short = measure(bench, rounds[-1]["nodes"], arguments.slots, arguments.short, 1.0)
        figures = {
            "utilisation": rounds[-1]["utilisation"],
            "weak_scaling": rounds[-1]["utilisation"] / rounds[0]["utilisation"],
            "completions_per_s": 1e6 / short["us_per_job"]["all"],
            "short_tasks_per_s": arguments.short / short["seconds"],
            "us_per_job": short["us_per_job"],
            "longest_write_s": max(one["longest_write_s"] for one in (*rounds, short)),
            "rounds": rounds,
        }
        common.emit("weak_scaling", figures, bench.machine)


if __name__ == "__main__":
    main()
