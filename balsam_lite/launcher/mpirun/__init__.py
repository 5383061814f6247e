"""How this machine starts MPI programs: which command, its words, and what a program must not inherit of an outer one.

`flavours` holds the commands as data and pure functions of a `output`, `template` one that a user writes instead; `detect`
finds out which of them this machine has; `starter` gives the rest of the launcher what it needs; `inherited` cleans the
environment of a launcher that MPI or Slurm has started itself.
"""

from .detect import find, one_rank_per_node
from .inherited import scrubbed
from .starter import use

__all__ = ["find", "one_rank_per_node", "scrubbed", "use"]
