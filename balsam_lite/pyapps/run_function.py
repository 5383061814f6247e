"""The program of a job that is a Python function, started as `python_argv` says with ORDER: it calls the `run` of a class.

ORDER is the file that the launcher has written (see `order`). Under MPI every rank calls it; what rank 0 returns is the
result, in a file beside ORDER (see `report`). A rank that raises ends all, and the first exception is the result. Opens no DB:
only the launcher's head does, never a compute rank.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..core import field_specs, states
from ..core.errors import BalsamError
from . import class_loader, payload, result_file, run_call

#: What tells a process its rank, by the start commands that `mpirun.flavours` knows. Sources: PMI 1 and 2 (MPICH, Hydra, Intel
#: MPI, PALS), Open MPI's mpirun(1), PMIx, srun(1), aprun(1), jsrun(1).
_RANK_VARIABLES = (
    "PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PALS_RANKID", "ALPS_APP_PE", "JSM_NAMESPACE_RANK", "MV2_COMM_WORLD_RANK",
    "SLURM_PROCID",
)  # fmt: skip


class JobView(SimpleNamespace):
    """`self.job` of a class whose function runs: what the launcher knows of the job. A change of it changes nothing."""

    workdir: Path  # absolute

    def resolve_workdir(self, data_path: str | os.PathLike[str]) -> Path:
        """Its working directory, asked for as of the api's Job."""
        return Path(data_path) / self.workdir

    def get_parameters(self) -> dict[str, Any]:
        """The parameters with which `run` is called."""
        return dict(self.parameters)


def main() -> int:
    """Run the job whose order the command line names; the exit code."""
    path = sys.argv[1]
    given = payload.read(path)
    rank, pid = _rank(given, os.environ), os.getpid()
    outcome = _outcome(given, keeps_result=rank == 0)
    if os.getpid() != pid:  # forked by the function, and come back from it: what it returns is nobody's result
        run_call.tell(outcome.trace)
        return 0 if outcome.good else 1
    if rank == 0 or not outcome.good:
        _report(os.path.dirname(path), given.job, outcome)
    run_call.tell(outcome.trace)
    if not outcome.good and given.ranks > 1:
        _end_all_ranks()
    return 0 if outcome.good else 1


def _outcome(given: payload.Order, keeps_result: bool) -> run_call.Outcome:
    try:
        instance = instance_of(given, as_main=True)
    except BalsamError as exc:
        return run_call.failure(exc)._replace(trace=f"{exc}\n")  # where in our code that was found helps nobody

    def run() -> Any:
        value = instance.run(**{**_defaults(type(instance)), **instance.job.parameters})
        return value if keeps_result else None

    return run_call.outcome_of(run, result_file.LARGEST_OUTCOME_BYTES)


def instance_of(given: payload.Order, as_main: bool = False) -> Any:
    """An object of the job's class, with a view of the job.

    Raises:
        ApplicationLost. RemoteError: the job's parameters cannot be unpickled here.
    """
    made = class_loader.load(payload.source_of(given.definition), as_main)
    from ..api.parameters import decoded  # behind that, because they may be objects of the module's classes

    known = {**given.job, "workdir": Path(given.job["workdir"]), "state": states.RUNNING}
    return made(JobView(**known, parameters=decoded(field_specs.read_object(given.parameters))))


def _defaults(made: type[Any]) -> dict[str, Any]:
    """What the class says for parameters that are not given. The function's own defaults are the function's business."""
    return {name: one["default"] for name, one in made.parameters.items() if not one["required"] and "default" in one}


def _rank(given: payload.Order, environ: Mapping[str, str]) -> int:
    """This process's rank; 0 for a program of one rank, whatever program of many has started the launcher."""
    if given.ranks == 1:
        return 0
    for name in _RANK_VARIABLES:
        if environ.get(name, "").isdecimal():
            return int(environ[name])
    sys.exit(f"This is one of {given.ranks} ranks, and no variable says which: {' '.join(_RANK_VARIABLES)}")


def _report(directory: str, job: Mapping[str, Any], outcome: run_call.Outcome) -> None:
    path = os.path.join(directory, result_file.file_name(job["job_id"]))
    author = result_file.Author(job["job_id"], job["attempt"], outcome.good)
    result_file.leave(path, author, pickle.dumps(tuple(outcome), protocol=4))


def _end_all_ranks() -> None:
    """Else this one would wait at its end, in MPI_Finalize, for others that wait for it. Only where the function used MPI."""
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        sys.stdout.flush()
        mpi.COMM_WORLD.Abort(1)
