"""The ranks of an MPI program that runs Python code: which one a process is, and how one ends all."""

from __future__ import annotations

import sys
from collections.abc import Mapping

#: Variables that hold a process's rank, of the start commands in `mpirun.flavours`. Sources: PMI 1 and 2 (MPICH, Hydra, Intel
#: MPI, PALS), Open MPI's mpirun(1), PMIx, srun(1), aprun(1), jsrun(1).
_RANK_VARIABLES = (
    "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PALS_RANKID", "ALPS_APP_PE", "JSM_NAMESPACE_RANK", "MV2_COMM_WORLD_RANK",
    "SLURM_PROCID",
)  # fmt: skip


def rank_of(ranks: int, environ: Mapping[str, str]) -> int:
    """Return this process's rank; 0 for a program of one rank, even if an MPI program has started the launcher."""
    if ranks == 1:
        return 0
    for name in _RANK_VARIABLES:
        if environ.get(name, "").isdecimal():
            return int(environ[name])
    sys.exit(f"This is one of {ranks} ranks, and no variable holds its number: {' '.join(_RANK_VARIABLES)}")


def end_all_ranks() -> None:
    """End all ranks if the function used MPI: this rank would wait in MPI_Finalize for others that wait for it."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        sys.stdout.flush()
        mpi.COMM_WORLD.Abort(1)
