"""How this machine starts MPI programs: which command, its words, and what a program must not inherit of an outer one.

`flavours` holds the layout of a program's ranks, the known commands as data and pure functions of it, and the template that a
user writes instead; `starter` finds which of them this machine has, gives the rest of the launcher what it needs, and cleans
the environment of a launcher that MPI or Slurm has started itself.
"""

from .starter import find, one_rank_per_node, scrubbed, use

__all__ = ["find", "one_rank_per_node", "scrubbed", "use"]
