"""Placement: nodes with CPUs, GPUs and occupancy in, places out. Pure; no process, no file, no clock.

A node takes `node_packing_count` jobs of a kind at once; kinds mix as long as their shares add up to one node. A GPU belongs
to its jobs from start to end and is shared only where fractions say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ..db.store.claims import Shape

#: Shares are sums of fractions such as 1/3; so much error is not a job.
_EPSILON = 1e-6


class Place(NamedTuple):
    """Where a job runs: nodes, and of each node the GPUs that it owns."""

    nodes: tuple[int, ...]
    gpus: tuple[tuple[str, ...], ...]
    shape: Shape


class Cost(NamedTuple):
    """What a job of some shape takes of each of its nodes."""

    share: float  # of the node
    gpus: float  # below 1: a part of one GPU; else whole ones


@lru_cache(maxsize=1024)
def cost_of(shape: Shape) -> Cost:
    """A job of several nodes takes them whole; packing is for what fits on one.

    >>> cost_of(Shape(1, 1, 4, 0.5))
    Cost(share=0.25, gpus=0.5)
    """
    gpus = shape.gpus_per_rank * shape.ranks_per_node
    share = 1.0 if shape.num_nodes > 1 else 1.0 / shape.node_packing_count
    return Cost(share, gpus if gpus < 1 else float(math.ceil(gpus - _EPSILON)))


class Node:
    """One node, or a share of this host that stands for one."""

    __slots__ = ("cpus", "gpu_load", "jobs", "used")

    def __init__(self, cpus: int, gpus: Sequence[str] = ()) -> None:
        self.cpus = cpus
        self.gpu_load = dict.fromkeys(gpus, 0.0)
        self.used = 0.0
        self.jobs = 0

    def room_for(self, cost: Cost) -> int:
        """How many more jobs of that cost fit."""
        room = int((1.0 - self.used + _EPSILON) / cost.share)
        if room <= 0 or not cost.gpus:
            return room
        if cost.gpus < 1:
            by_gpu = sum(int((1.0 - load + _EPSILON) / cost.gpus) for load in self.gpu_load.values())
        else:
            by_gpu = sum(load < _EPSILON for load in self.gpu_load.values()) // int(cost.gpus)
        return min(room, by_gpu)

    def add(self, cost: Cost) -> tuple[str, ...]:
        """Take a job for which there is room; returns its GPUs."""
        self.used += cost.share
        self.jobs += 1
        if not cost.gpus:
            return ()
        if cost.gpus < 1:
            # The fullest that still has room: a GPU nobody uses stays free for a job that wants it whole.
            fitting = [gpu for gpu, load in self.gpu_load.items() if load + cost.gpus <= 1.0 + _EPSILON]
            chosen = (max(fitting, key=self.gpu_load.__getitem__),)
            self.gpu_load[chosen[0]] += cost.gpus
            return chosen
        free = [gpu for gpu, load in self.gpu_load.items() if load < _EPSILON]
        taken = tuple(free[: int(cost.gpus)])
        self.gpu_load.update(dict.fromkeys(taken, 1.0))
        return taken

    def remove(self, cost: Cost, gpus: Sequence[str]) -> None:
        """Give back what `add` took."""
        self.jobs -= 1
        self.used = self.used - cost.share if self.jobs else 0.0
        for gpu in gpus:
            left = self.gpu_load[gpu] - cost.gpus
            self.gpu_load[gpu] = left if left > _EPSILON else 0.0


class Pool:
    """The nodes of a launcher."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self._start: dict[Shape, int] = {}  # the nodes before it are full for that shape

    @property
    def jobs(self) -> int:
        """How many jobs have a place (a job of two nodes counts twice)."""
        return sum(node.jobs for node in self.nodes)

    @property
    def has_room(self) -> bool:
        """Whether a part of any node is free."""
        return any(node.used < 1.0 - _EPSILON for node in self.nodes)

    def count(self, shape: Shape) -> int:
        """How many jobs of that shape fit now."""
        cost = cost_of(shape)
        return sum(node.room_for(cost) for node in self.nodes) // shape.num_nodes

    def reserve(self, shape: Shape) -> Place | None:
        """The first nodes that have room, taken; None when there are not enough."""
        start = self._start.get(shape, 0)
        if start == len(self.nodes):
            return None
        cost = cost_of(shape)
        chosen: list[int] = []
        for number in range(start, len(self.nodes)):
            if self.nodes[number].room_for(cost) > 0:
                chosen.append(number)
                if len(chosen) == shape.num_nodes:
                    break
        self._start[shape] = chosen[0] if chosen else len(self.nodes)
        if len(chosen) < shape.num_nodes:
            return None
        return Place(tuple(chosen), tuple([self.nodes[number].add(cost) for number in chosen]), shape)

    def release(self, place: Place) -> None:
        """Give a place back."""
        cost = cost_of(place.shape)
        for number, gpus in zip(place.nodes, place.gpus):
            self.nodes[number].remove(cost, gpus)
        first = place.nodes[0]
        for shape, start in self._start.items():
            if start > first:
                self._start[shape] = first

    def never_fits(self, shape: Shape) -> str:
        """Why a job of that shape cannot run here even when all is free; "" when it can."""
        if shape.num_nodes > len(self.nodes):
            return f"needs {shape.num_nodes} nodes, this launcher has {len(self.nodes)}"
        need = cost_of(shape).gpus
        most = max(len(node.gpu_load) for node in self.nodes)
        if need > most + _EPSILON:
            return f"needs {need:g} GPUs per node, the nodes of this launcher have {most}"
        return ""


def divide_host(nodes: int, cpus: int, gpus: Sequence[str]) -> list[Node]:
    """Make `nodes` virtual nodes of one host: its CPUs and GPUs are dealt out evenly, the first ones get what is left over.

    >>> [(node.cpus, list(node.gpu_load)) for node in divide_host(2, 5, ["0", "1", "2"])]
    [(3, ['0', '1']), (2, ['2'])]
    """
    dealt = []
    given = 0
    for number in range(nodes):
        share = len(gpus) // nodes + (number < len(gpus) % nodes)
        dealt.append(Node(max(1, cpus // nodes + (number < cpus % nodes)), gpus[given : given + share]))
        given += share
    return dealt
