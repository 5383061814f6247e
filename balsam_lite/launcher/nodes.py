"""Placement: nodes with CPUs, GPUs and occupancy in, places out. Pure; no process, no file, no clock.

A node takes `node_packing_count` jobs of a kind at once; kinds mix as long as their shares add up to one node. A GPU belongs
to its jobs from start to end and is shared only where fractions say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..db.store.claims import Shape

#: Shares are sums of fractions such as 1/3; so much error is not a job.
_EPSILON = 1e-6


class Place(NamedTuple):
    """Where a job runs: nodes, and of each node the GPUs that it owns."""

    nodes: tuple[int, ...]
    gpus: tuple[tuple[str, ...], ...]
    shape: Shape


class Node:
    """One node, or a share of this host that stands for one."""

    __slots__ = ("cpus", "gpu_load", "jobs", "used")

    def __init__(self, cpus: int, gpus: Sequence[str] = ()) -> None:
        self.cpus = cpus
        self.gpu_load = dict.fromkeys(gpus, 0.0)
        self.used = 0.0
        self.jobs = 0

    def room_for(self, shape: Shape) -> int:
        """How many more jobs of one such node-share fit."""
        share = _share(shape)
        room = int((1.0 - self.used + _EPSILON) / share)
        need = shape.gpus_per_rank * shape.ranks_per_node
        if not need or room <= 0:
            return max(room, 0)
        if need < 1:
            by_gpu = sum(int((1.0 - load + _EPSILON) / need) for load in self.gpu_load.values())
        else:
            by_gpu = sum(load < _EPSILON for load in self.gpu_load.values()) // math.ceil(need - _EPSILON)
        return min(room, by_gpu)

    def add(self, shape: Shape) -> tuple[str, ...]:
        """Take a job for which there is room; returns its GPUs."""
        self.used += _share(shape)
        self.jobs += 1
        need = shape.gpus_per_rank * shape.ranks_per_node
        if not need:
            return ()
        if need < 1:
            # The fullest that still has room: a GPU nobody uses stays free for a job that wants it whole.
            fitting = [gpu for gpu, load in self.gpu_load.items() if load + need <= 1.0 + _EPSILON]
            chosen = (max(fitting, key=self.gpu_load.__getitem__),)
            self.gpu_load[chosen[0]] += need
            return chosen
        free = [gpu for gpu, load in self.gpu_load.items() if load < _EPSILON]
        taken = tuple(free[: math.ceil(need - _EPSILON)])
        self.gpu_load.update(dict.fromkeys(taken, 1.0))
        return taken

    def remove(self, shape: Shape, gpus: Sequence[str]) -> None:
        """Give back what `add` took."""
        self.jobs -= 1
        self.used = self.used - _share(shape) if self.jobs else 0.0
        need = shape.gpus_per_rank * shape.ranks_per_node
        for gpu in gpus:
            left = self.gpu_load[gpu] - need if need < 1 else 0.0
            self.gpu_load[gpu] = left if left > _EPSILON else 0.0


def _share(shape: Shape) -> float:
    # A job of several nodes takes them whole; packing is for what fits on one.
    return 1.0 if shape.num_nodes > 1 else 1.0 / shape.node_packing_count


class Pool:
    """The nodes of a launcher."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = list(nodes)
        self._start: dict[Shape, int] = {}  # the nodes before it are full for that shape

    @property
    def jobs(self) -> int:
        """How many jobs have a place (a job of two nodes counts twice)."""
        return sum(node.jobs for node in self.nodes)

    def count(self, shape: Shape) -> int:
        """How many jobs of that shape fit now."""
        return sum(node.room_for(shape) for node in self.nodes) // shape.num_nodes

    def reserve(self, shape: Shape) -> Place | None:
        """The first nodes that have room, taken; None when there are not enough."""
        chosen: list[int] = []
        for number in range(self._start.get(shape, 0), len(self.nodes)):
            if self.nodes[number].room_for(shape) > 0:
                chosen.append(number)
                if len(chosen) == shape.num_nodes:
                    break
        self._start[shape] = chosen[0] if chosen else len(self.nodes)
        if len(chosen) < shape.num_nodes:
            return None
        return Place(tuple(chosen), tuple(self.nodes[number].add(shape) for number in chosen), shape)

    def release(self, place: Place) -> None:
        """Give a place back."""
        for number, gpus in zip(place.nodes, place.gpus):
            self.nodes[number].remove(place.shape, gpus)
        first = place.nodes[0]
        for shape, start in self._start.items():
            if start > first:
                self._start[shape] = first

    def never_fits(self, shape: Shape) -> str:
        """Why a job of that shape cannot run here even when all is free; "" when it can."""
        if shape.num_nodes > len(self.nodes):
            return f"needs {shape.num_nodes} nodes, this launcher has {len(self.nodes)}"
        need = shape.gpus_per_rank * shape.ranks_per_node
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
