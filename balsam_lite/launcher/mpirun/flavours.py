"""The MPI start commands of the world: how each is told a `RankLayout`. Data and pure functions.

Each function names its source; "tried" means: with that version, on a real machine, by the tests or for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..exec.mpi_use import HYDRA, KILLS, PASSES_ON, SRUN, Diagnosis
from .layout import RankLayout

#: The name by which a host knows itself.
_THIS_HOST = "localhost"


def _nothing(layout: RankLayout) -> dict[str, str]:
    return {}


class Flavour(NamedTuple):
    """One kind of MPI start command."""

    name: str  # as in Settings.MPI_FLAVOUR
    commands: tuple[str, ...]  # to look for on PATH, the first that is there
    words: Callable[[RankLayout], list[str]]  # after the command, before the user's flags and the program
    one_per_host: Callable[[RankLayout], list[str]]  # the same for our own ranks, each with all of its host's CPUs
    #: For the command's own environment.
    variables: Callable[[RankLayout], Mapping[str, str]] = _nothing
    #: Whether a host takes several of its programs at once, or one together with programs that it did not start.
    shares_nodes: bool = True
    #: What it makes of SIGTERM.
    at_term: str = PASSES_ON
    #: Words that give a run a name, and a program that asks the ranks of the runs with those names to end.
    name_words: Callable[[str], list[str]] = lambda name: []
    end_words: Callable[[Sequence[str]], list[str]] = lambda names: []
    #: Whether it replaces CUDA_VISIBLE_DEVICES by what its scheduler gave to the whole job.
    chooses_gpus: bool = False
    #: How its messages are read when it started nothing or lost a node.
    diagnosis: Diagnosis | None = None
    #: Whether its options tell which GPUs a Slurm step has; the srun that another command starts is told by its environment.
    says_gpus: bool = False


# --- MPICH and its kin ------------------------------------------------------------------------------------------------


def _hydra_ranks(layout: RankLayout) -> list[str]:
    """Return how many, and where. Inside a batch job Hydra takes the batch job's hosts if it is not told otherwise, so it is.

    Source: mpiexec -help of MPICH 5.0.2; tried, also inside Slurm 22.05.
    """
    hosts = ["-hosts", ",".join(layout.hosts)] if layout.hosts else ["-hosts", _THIS_HOST, "-bootstrap", "fork"]
    return ["-n", str(layout.ranks), "-ppn", str(layout.ranks_per_host), *hosts]


def _mpich(layout: RankLayout) -> list[str]:
    """Return words that bind nothing: MPICH does not bind by itself, but HYDRA_BINDING may demand it. Tried with 5.0.2."""
    return [*_hydra_ranks(layout), "-bind-to", f"core:{layout.cores_per_rank}" if layout.is_bound else "none"]


def _mpich_one_per_host(layout: RankLayout) -> list[str]:
    """Survive a rank that exits. One that a signal ends takes those on its host along (tried with 5.0.2)."""
    return [*_hydra_ranks(layout), "-bind-to", "none", "-disable-auto-cleanup"]


def _intel(layout: RankLayout) -> list[str]:
    """Source: Intel MPI Library Developer Reference 2021.15, "Global Hydra Options"."""
    return _hydra_ranks(layout)


def _intel_variables(layout: RankLayout) -> dict[str, str]:
    """Intel MPI binds by variables, and by default. Inside a batch job it ignores -ppn unless it is told not to.

    Source: Intel MPI Library Developer Reference 2021.15, "Environment Variables for Process Pinning", "Hydra Environment
    Variables" (I_MPI_JOB_RESPECT_PROCESS_PLACEMENT).
    """
    found = {"I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "disable", "I_MPI_PIN": "enable" if layout.is_bound else "disable"}
    if layout.is_bound:
        found["I_MPI_PIN_DOMAIN"] = f"{layout.threads_per_rank}:compact"
    return found


# --- Open MPI ---------------------------------------------------------------------------------------------------------


def _openmpi_ranks(layout: RankLayout, width: str = "") -> list[str]:
    """-npernode is deprecated in 4 and leaves 5, `ppr` is understood by both. More ranks than slots are refused unless
    OVERSUBSCRIBE is given; with enough slots it changes nothing.

    Source: mpirun(1) of Open MPI 4.1 and 5.0; tried with 4.1.8 and 5.0.11, also inside Slurm 22.05.
    """
    hosts = ",".join(f"{host}:{layout.ranks_per_host}" for host in layout.hosts or (_THIS_HOST,))
    by = f"ppr:{layout.ranks_per_host}:node{width}:OVERSUBSCRIBE"
    return ["-n", str(layout.ranks), "--host", hosts, "--map-by", by]


def _openmpi(layout: RankLayout) -> list[str]:
    """Open MPI binds by default: the only rank of each of many packed programs to the first core.

    Version 5 also reads options that follow the program's name; a program's own --bind-to or --map-by suffers (tried
    with 5.0.11), and no order of words helps.
    """
    if layout.is_bound:
        return [*_openmpi_ranks(layout, f":PE={layout.cores_per_rank}"), "--bind-to", "core"]
    return [*_openmpi_ranks(layout), "--bind-to", "none"]


def _openmpi_one_per_host(layout: RankLayout) -> list[str]:
    """Survive a rank, however it ends. Tried with 4.1.8 and 5.0.11."""
    return [*_openmpi_ranks(layout), "--bind-to", "none", "--enable-recovery"]


# --- Slurm ------------------------------------------------------------------------------------------------------------


def _srun_ranks(layout: RankLayout) -> list[str]:
    """Start ranks by srun, with steps that never wait for one another (--overlap): the launcher decides what runs where.

    With --export=ALL they have the whole environment, also where SLURM_EXPORT_ENV or SRUN_EXPORT_ENV asks for less.

    Source: srun(1) of Slurm 22.05; tried with 22.05.8.
    """
    nodes = [f"--nodes={len(layout.hosts) or 1}", *([f"--nodelist={','.join(layout.hosts)}"] if layout.hosts else [])]
    ranks = [f"--ntasks={layout.ranks}", f"--ntasks-per-node={layout.ranks_per_host}", "--distribution=block"]
    gpus = ["--{}={}".format(*layout.step_gpus)] if layout.step_gpus else []
    return [*nodes, *ranks, "--overlap", "--export=ALL", *gpus]


def _srun(layout: RankLayout) -> list[str]:
    """Without --cpus-per-task, which implies --exact, a step has all CPUs of its nodes. A rank that fails ends the others,
    as everywhere else. Which PMI it speaks is the site's (MpiDefault) or the user's (SLURM_MPI_TYPE) choice.
    """
    words = [*_srun_ranks(layout), "--kill-on-bad-exit=1"]
    if layout.is_bound:
        return [*words, f"--cpus-per-task={layout.threads_per_rank}", "--cpu-bind=cores"]
    more = ["--overcommit"] if layout.cpus_per_host < layout.ranks_per_host else []
    return [*words, *more, "--cpu-bind=none"]


#: Asks the steps of this batch job by the names $1, $2 … to end. Source: squeue(1), scancel(1) of Slurm 22.05; tried.
_END_STEPS = """
for name in "$@"; do echo "$name"; done | awk '
    NR == FNR { wanted[$1]; next }
    $2 in wanted { print $1 }
' - <(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format="%i %j") | xargs -r scancel --signal=TERM
"""


def _srun_name(name: str) -> list[str]:
    return [f"--job-name={name}"]


def _srun_end(names: Sequence[str]) -> list[str]:
    return ["bash", "-c", _END_STEPS, "bash", *names]


def _srun_one_per_host(layout: RankLayout) -> list[str]:
    """stdin goes to rank 0 alone (by default to all), and the others go on without a rank or a node."""
    return [*_srun_ranks(layout), "--cpu-bind=none", "--input=0", "--kill-on-bad-exit=0", "--wait=0", "--no-kill"]


# --- Cray, IBM --------------------------------------------------------------------------------------------------------


def _aprun_ranks(layout: RankLayout) -> list[str]:
    hosts = ["-L", ",".join(layout.hosts)] if layout.hosts else []
    return ["-n", str(layout.ranks), "-N", str(layout.ranks_per_host), *hosts]


def _aprun(layout: RankLayout) -> list[str]:
    """Source: aprun(1), CLE 4.1 and later; the same words as Balsam 0.7's ThetaAprun. Whole nodes, one program each."""
    affinity = "depth" if layout.cpu_affinity == "depth" else "none"
    threads = ["-d", str(layout.threads_per_rank), "-j", str(layout.threads_per_core)]
    return [*_aprun_ranks(layout), "-cc", affinity, *threads]


def _aprun_one_per_host(layout: RankLayout) -> list[str]:
    return [*_aprun_ranks(layout), "-cc", "none"]


def _pals_ranks(layout: RankLayout) -> list[str]:
    hosts = ["--hosts", ",".join(layout.hosts)] if layout.hosts else []
    return ["-np", str(layout.ranks), "-ppn", str(layout.ranks_per_host), *hosts, "--envall"]


def _pals(layout: RankLayout) -> list[str]:
    """Source: mpiexec(1) of HPE Cray PALS 1.2; the same words as Balsam 0.7's AuroraRun."""
    return [*_pals_ranks(layout), "--cpu-bind", "depth" if layout.is_bound else "none", "-d", str(layout.threads_per_rank)]


def _pals_one_per_host(layout: RankLayout) -> list[str]:
    return [*_pals_ranks(layout), "--cpu-bind", "none"]


def _jsrun(layout: RankLayout) -> list[str]:
    """Return one resource set per rank. jsrun counts cores, and chooses the hosts itself among those with free cores and GPUs.

    Source: jsrun(1) of IBM Job Step Manager 10.3; the same words as Balsam 0.7's SummitJsrun.
    """
    cpus = layout.cores_per_rank
    words = ["--nrs", str(layout.ranks), "--tasks_per_rs", "1", "--rs_per_host", str(layout.ranks_per_host)]
    gpus = ["--gpu_per_rs", str(math.ceil(layout.gpus_per_rank))]
    return [*words, "--cpu_per_rs", str(cpus), *gpus, "--bind", f"packed:{cpus}" if layout.is_bound else "rs"]


def _jsrun_one_per_host(layout: RankLayout) -> list[str]:
    words = ["--nrs", str(layout.ranks), "--tasks_per_rs", "1", "--rs_per_host", "1"]
    return [*words, "--cpu_per_rs", "ALL_CPUS", "--gpu_per_rs", "ALL_GPUS", "--bind", "none"]


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("aprun", ("aprun",), _aprun, _aprun_one_per_host, shares_nodes=False),
        Flavour("mpich", ("mpiexec", "mpirun", "mpiexec.hydra"), _mpich, _mpich_one_per_host, diagnosis=HYDRA),
        Flavour("intel", ("mpiexec.hydra", "mpiexec", "mpirun"), _intel, _intel, _intel_variables, diagnosis=HYDRA),
        Flavour("openmpi", ("mpiexec", "mpirun"), _openmpi, _openmpi_one_per_host, at_term=KILLS),
        Flavour(
            "srun",
            ("srun",),
            _srun,
            _srun_one_per_host,
            chooses_gpus=True,
            says_gpus=True,
            diagnosis=SRUN,
            at_term=KILLS,
            name_words=_srun_name,
            end_words=_srun_end,
        ),
        Flavour("pals", ("mpiexec",), _pals, _pals_one_per_host),
        Flavour("jsrun", ("jsrun",), _jsrun, _jsrun_one_per_host),
    )
}
