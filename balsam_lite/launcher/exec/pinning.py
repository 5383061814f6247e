"""Which CPUs of this host a job is pinned to. Pure; `spawner` does it."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest

from ...db.store.claims import Claim


def wanted(claim: Claim) -> int:
    """How many CPUs a job asks for that is started without an MPI command; 0: to be pinned to none.

    The threads of its ranks on this node, so many on a core (source: Balsam 0.7).
    """
    if claim.cpu_affinity != "depth":
        return 0
    return max(1, claim.shape.ranks_per_node * claim.threads_per_rank // claim.threads_per_core)


class CpuSet:
    """The CPUs of one launcher on one host, and how many jobs are pinned to each."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._jobs = dict.fromkeys(cpus, 0)

    def take(self, number: int) -> tuple[int, ...]:
        """So many CPUs, or all, those with the fewest jobs; of equal ones the first. None at all where pinning is unknown."""
        taken = tuple(nsmallest(number, self._jobs, key=self._jobs.__getitem__))
        for cpu in taken:
            self._jobs[cpu] += 1
        return taken

    def release(self, cpus: Sequence[int]) -> None:
        """The end of a job that had taken these."""
        for cpu in cpus:
            self._jobs[cpu] -= 1


def dealt(cpus: Sequence[int], nodes: int) -> list[tuple[int, ...]]:
    """The CPUs of each of `nodes` shares of a host, as even as `nodes.divide_host` counts them.

    >>> dealt([4, 5, 6, 7, 8], 2), dealt([4, 5], 3)
    ([(4, 5, 6), (7, 8)], [(4,), (5,), (4,)])
    """
    if len(cpus) < nodes:
        return [(cpus[number % len(cpus)],) if cpus else () for number in range(nodes)]
    size, rest = divmod(len(cpus), nodes)
    ends = [size * number + min(number, rest) for number in range(nodes + 1)]
    return [tuple(cpus[start:end]) for start, end in zip(ends, ends[1:])]
