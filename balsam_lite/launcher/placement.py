"""Place jobs on nodes with CPUs, GPUs and an occupancy. Pure; no process, no file, no clock.

A node takes `node_packing_count` jobs of a kind at once; kinds mix as long as their shares add up to one node. A job of
several nodes takes them whole. A GPU belongs to its jobs from start to end and is shared only by fractions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from heapq import nsmallest
from typing import NamedTuple

from ..db.query.catalogue import text_of
from ..db.query.takers import EPSILON, Cost, MpiRules, NodeKind, cost_of, nodes_obstacle
from ..db.store.claims import Shape
from ..schedulers.hostlist import compress


class Placement(NamedTuple):
    """Where a job runs: its nodes, and its GPUs on each node."""

    nodes: tuple[int, ...]
    gpus: tuple[tuple[str, ...], ...]
    shape: Shape


_NOTHING = Cost(0.0, 0.0)


class Node:
    """One node. Without a name it is a share of this host, where ranks may be more than CPUs.

    Args:
        label: the name in the record of runs, if it is not `name`.
    """

    __slots__ = ("cpus", "cpus_used", "gpu_load", "is_closed", "jobs", "label", "name", "used")

    def __init__(self, cpus: int, gpus: Sequence[str] = (), name: str = "", label: str = "") -> None:
        self.cpus, self.name, self.label = cpus, name, label or name
        self.gpu_load = dict.fromkeys(gpus, 0.0)
        self.used = 0.0
        self.cpus_used = 0
        self.jobs = 0
        self.is_closed = False

    @property
    def kind(self) -> NodeKind:
        """Return its CPUs and GPUs; on a share of a host ranks may be more than CPUs."""
        return NodeKind(1, self.cpus if self.name else None, len(self.gpu_load))

    def room_for(self, cost: Cost, besides: Cost = _NOTHING) -> int:
        """Return how many more jobs of that cost fit if `besides` stays reserved for another job."""
        room = 0 if self.is_closed else int((1.0 - besides.share - self.used + EPSILON) / cost.share)
        if cost.cpus and self.name:
            room = min(room, (self.cpus - besides.cpus - self.cpus_used) // cost.cpus)
        if cost.gpus and besides.gpus:
            return 0
        if room <= 0 or not cost.gpus:
            return max(room, 0)
        if cost.gpus < 1:
            by_gpu = sum(int((1.0 - load + EPSILON) / cost.gpus) for load in self.gpu_load.values())
        else:
            by_gpu = sum(load < EPSILON for load in self.gpu_load.values()) // int(cost.gpus)
        return min(room, by_gpu)

    def add(self, cost: Cost) -> tuple[str, ...]:
        """Add a job for which there is room. Return its GPUs."""
        self.used += cost.share
        self.cpus_used += cost.cpus
        self.jobs += 1
        if not cost.gpus:
            return ()
        if cost.gpus < 1:
            # The fullest that still has room: a GPU without jobs stays free for a job that wants it whole.
            fitting = [gpu for gpu, load in self.gpu_load.items() if load + cost.gpus <= 1.0 + EPSILON]
            chosen = (max(fitting, key=self.gpu_load.__getitem__),)
            self.gpu_load[chosen[0]] += cost.gpus
            return chosen
        free = [gpu for gpu, load in self.gpu_load.items() if load < EPSILON]
        taken = tuple(free[: int(cost.gpus)])
        self.gpu_load.update(dict.fromkeys(taken, 1.0))
        return taken

    def remove(self, cost: Cost, gpus: Sequence[str]) -> None:
        """Release the share and the GPUs that `add` took."""
        self.jobs -= 1
        self.used = self.used - cost.share if self.jobs else 0.0
        self.cpus_used -= cost.cpus
        for gpu in gpus:
            left = self.gpu_load[gpu] - cost.gpus
            self.gpu_load[gpu] = left if left > EPSILON else 0.0


class NodePool:
    """The nodes of a launcher.

    Args:
        mpi: the rules for jobs that the MPI command starts; None if there is no such command.
    """

    def __init__(self, nodes: Iterable[Node], mpi: MpiRules | None = None) -> None:
        self.nodes = list(nodes)
        self._mpi = mpi
        self._mpi_runs = self._closed = 0
        self._costs: dict[Shape, Cost] = {}
        self._never: dict[Shape, str] = {}  # why such jobs cannot run here
        self._start: dict[Shape, int] = {}  # the nodes before it are full for that shape
        self._reserved: frozenset[int] = frozenset()
        self._reserved_for: Shape | None = None

    @property
    def jobs(self) -> int:
        """Return how many jobs have a placement (a job of two nodes counts twice)."""
        return sum(node.jobs for node in self.nodes)

    @property
    def has_room(self) -> bool:
        """Return whether a part of any node is free."""
        return any(node.used < 1.0 - EPSILON and not node.is_closed for node in self.nodes)

    @property
    def is_reserving(self) -> bool:
        """Return whether nodes are reserved for a job that found no placement."""
        return self._reserved_for is not None

    def count(self, shape: Shape) -> int:
        """Return how many jobs of that shape fit now."""
        cost = self._cost_of(shape)
        free = sum(self._room(number, shape, cost) for number in range(len(self.nodes)))
        return min(free // shape.num_nodes, self._mpi_room(shape))

    def reserve(self, shape: Shape) -> Placement | None:
        """Take the first nodes with room and return the placement; None if there are not enough."""
        start = self._start.get(shape, 0)
        if start == len(self.nodes) or self._mpi_room(shape) <= 0:
            return None
        cost = self._cost_of(shape)
        chosen: list[int] = []
        for number in range(start, len(self.nodes)):
            if self._room(number, shape, cost) > 0:
                chosen.append(number)
                if len(chosen) == shape.num_nodes:
                    break
        self._start[shape] = chosen[0] if chosen else len(self.nodes)
        if len(chosen) < shape.num_nodes:
            return None
        if shape == self._reserved_for:
            self.reserve_for(None)
        if self._is_mpi(shape):
            self._mpi_runs += 1
        return Placement(tuple(chosen), tuple([self.nodes[number].add(cost) for number in chosen]), shape)

    def _room(self, number: int, shape: Shape, cost: Cost) -> int:
        """Return how many more jobs of that shape a node takes, apart from the job for which it is reserved."""
        if self._reserved_for is None or number not in self._reserved or shape == self._reserved_for:
            return self.nodes[number].room_for(cost)
        return self.nodes[number].room_for(cost, self._cost_of(self._reserved_for))

    def release(self, place: Placement) -> None:
        """Release a placement."""
        cost = self._cost_of(place.shape)
        for number, gpus in zip(place.nodes, place.gpus):
            self.nodes[number].remove(cost, gpus)
        if self._is_mpi(place.shape):
            self._mpi_runs -= 1
        first = place.nodes[0]
        for shape, start in self._start.items():
            if start > first:
                self._start[shape] = first

    def reserve_for(self, shape: Shape | None) -> None:
        """Reserve the emptiest nodes for a job of this shape, as many as it needs: no job of another shape starts there.

        Otherwise a large job would never find all its nodes free at one time while small jobs wait. None ends the reservation.
        """
        if shape is not None and self._mpi_room(shape) <= 0:
            return  # it waits for the end of another MPI run, wherever that is
        if shape == self._reserved_for:
            return
        self._reserved_for = shape
        self._start.clear()
        if shape is None:
            self._reserved = frozenset()
            return
        cost = self._cost_of(shape)
        fitting = [n for n, node in enumerate(self.nodes) if not (node.is_closed or node.kind.lacks(cost))]
        self._reserved = frozenset(nsmallest(shape.num_nodes, fitting, key=lambda number: self.nodes[number].used))

    def describe(self, nodes: tuple[int, ...], gpus: tuple[tuple[str, ...], ...]) -> tuple[str, str]:
        """Return the nodes of a placement as a compressed list, and the GPUs of each: `0,1`, or `0,1;2,3` where they differ."""
        if len(nodes) == 1:
            return self.nodes[nodes[0]].label, ",".join(gpus[0])
        labels = [self.nodes[number].label for number in nodes]
        words = [",".join(names) for names in gpus]
        return compress(labels) if all(labels) else "", words[0] if len(set(words)) == 1 else ";".join(words)

    def close(self, number: int) -> None:
        """Start nothing on a node any more, as it is lost. Its jobs are released as usual."""
        self.nodes[number].is_closed = True
        self._closed += 1
        self._never.clear()
        if number in self._reserved:
            self.reserve_for(None)

    def never_fits(self, shape: Shape) -> str:
        """Return why a job of that shape cannot run here even if all nodes are free; "" if it can."""
        reason = self._never.get(shape)
        if reason is None:
            obstacle = nodes_obstacle(self.kinds, shape, self._mpi)
            reason = self._never[shape] = text_of(obstacle) if obstacle else ""
        return reason

    @property
    def mpi(self) -> MpiRules | None:
        """Return the rules for jobs that the MPI command starts; None if there is no such command."""
        return self._mpi

    @property
    def closed(self) -> int:
        """Return how many nodes are closed."""
        return self._closed

    @property
    def kinds(self) -> tuple[NodeKind, ...]:
        """Return the nodes that are not closed, equal ones together."""
        counts = Counter(node.kind for node in self.nodes if not node.is_closed)
        return tuple(kind._replace(nodes=number) for kind, number in counts.items())

    def _cost_of(self, shape: Shape) -> Cost:
        cost = self._costs.get(shape)
        if cost is None:
            cost = self._costs[shape] = cost_of(shape, self._mpi)
        return cost

    def _is_mpi(self, shape: Shape) -> bool:
        return self._mpi is not None and self._mpi.starts(shape)

    def _mpi_room(self, shape: Shape) -> int:
        """Return how many more runs of the MPI command are allowed for jobs of that shape."""
        if self._mpi is None or not self._mpi.starts(shape):
            return len(self.nodes) * shape.node_packing_count
        return self._mpi.most - self._mpi_runs


def divide_host(nodes: int, cpus: int, gpus: Sequence[str], host: str = "") -> list[Node]:
    """Make `nodes` virtual nodes of one host, which share its CPUs and GPUs evenly; the first ones get the remainder.

    The second of them is recorded as `HOST/2`, a single one as `HOST`.

    >>> [(node.cpus, list(node.gpu_load)) for node in divide_host(2, 5, ["0", "1", "2"])]
    [(3, ['0', '1']), (2, ['2'])]
    """
    dealt = []
    given = 0
    for number in range(nodes):
        share = len(gpus) // nodes + (number < len(gpus) % nodes)
        label = f"{host}/{number + 1}" if host and nodes > 1 else host
        dealt.append(Node(max(1, cpus // nodes + (number < cpus % nodes)), gpus[given : given + share], label=label))
        given += share
    return dealt


# --- a tick -----------------------------------------------------------------------------------------------------------

#: Maximum number of ends and of claims in one transaction, so that other writers wait for a fraction of a second, and the first
#: of many thousand places is filled before the last one is asked for.
MAX_AT_ONCE = 1024

#: The placement of a claimed job that still waits for one.
AHEAD = object()


class TickCapacity:
    """The capacity of one tick: free placements, and claims ahead for placements that will soon be free."""

    def __init__(self, pool: NodePool, ahead_of: Callable[[Shape], int], preparations: int, starts: int = MAX_AT_ONCE) -> None:
        self._pool, self._ahead_of, self.preparations, self.starts = pool, ahead_of, preparations, starts
        self._ahead: dict[Shape, int] = {}
        self._reserved: list[Placement] = []
        self._left = starts
        self.keeps_nodes = False  # for a job that found no place

    @property
    def is_used_up(self) -> bool:
        """Return whether nothing is left in this tick; there may be more to claim in the next one."""
        return self._left <= 0

    def fits(self, shape: Shape) -> bool:
        return not self._pool.never_fits(shape)

    def count(self, shape: Shape) -> int:
        if shape not in self._ahead:
            self._ahead[shape] = max(0, self._ahead_of(shape))
        return min(self._pool.count(shape) + self._ahead[shape], self._left)

    def reserve(self, shape: Shape) -> object:
        if self.is_used_up:
            return None
        place = self._pool.reserve(shape)
        if place is not None:
            self._reserved.append(place)
            self._left -= 1
            return place
        if self._ahead.get(shape, 0) > 0 and not self._pool.is_reserving:
            self._ahead[shape] -= 1
            self._left -= 1
            return AHEAD
        if not self.keeps_nodes:
            self.keeps_nodes = True
            self._pool.reserve_for(shape)
        return None

    def describe(self, place: object) -> tuple[str, str]:
        return self._pool.describe(place.nodes, place.gpus) if isinstance(place, Placement) else ("", "")

    def undo(self) -> None:
        """Release the reserved places: the transaction failed, and nothing was claimed."""
        for place in self._reserved:
            self._pool.release(place)
