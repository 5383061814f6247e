"""Ranks, threads and hosts of one MPI program: what each MPI start command is told in its own words. Pure."""

from __future__ import annotations

import math
from typing import NamedTuple


class RankLayout(NamedTuple):
    """Where the ranks of a program go. Without hosts all are on this host, of which each node is a share."""

    hosts: tuple[str, ...] = ()
    num_nodes: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    threads_per_core: int = 1
    cpu_affinity: str = "none"  # none or depth
    gpus_per_rank: float = 0.0
    cpus_per_node: int = 0  # of each node's CPUs the job's own; 0: unknown
    shares_nodes: bool = False  # others run on the same host or hosts at the same time
    step_gpus: tuple[str, str] | None = None  # the GPUs that a Slurm step has to ask for: an option of srun and its value

    @property
    def ranks(self) -> int:
        """Return the number of ranks on all hosts.

        >>> RankLayout(num_nodes=2, ranks_per_node=4).ranks
        8
        """
        return self.num_nodes * self.ranks_per_node

    @property
    def ranks_per_host(self) -> int:
        """On each host. Shares of one host are one host.

        >>> RankLayout(num_nodes=2, ranks_per_node=4).ranks_per_host
        8
        >>> RankLayout(("a", "b"), num_nodes=2, ranks_per_node=4).ranks_per_host
        4
        """
        return self.ranks // (len(self.hosts) or 1)

    @property
    def cpus_per_host(self) -> int:
        """Return the job's CPUs on each node; 0 where unknown."""
        return self.cpus_per_node * self.num_nodes // (len(self.hosts) or 1)

    @property
    def cores_per_rank(self) -> int:
        """Cores for its threads.

        >>> RankLayout(threads_per_rank=5, threads_per_core=2).cores_per_rank
        3
        """
        return math.ceil(self.threads_per_rank / self.threads_per_core)

    @property
    def is_bound(self) -> bool:
        """Return whether each rank is bound to separate CPUs, in order.

        Only on request, where the host is the job's alone (each MPI start command begins with the first CPU, so programs side
        by side would all get the same ones), and where there are CPUs enough (most commands refuse to start otherwise).

        >>> RankLayout(cpu_affinity="depth", cpus_per_node=4).is_bound
        True
        >>> RankLayout(cpu_affinity="depth", cpus_per_node=4, threads_per_rank=5).is_bound
        False
        """
        fits = self.cpus_per_host == 0 or self.ranks_per_host * self.threads_per_rank <= self.cpus_per_host
        return self.cpu_affinity == "depth" and not self.shares_nodes and fits
