"""Which MPI start command this machine has. The only part of `mpirun` that runs anything: `<command> --version`, once."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence

from ...core import field_specs
from ...core.errors import SettingsError
from ...core.settings import Settings
from ...core.subprocess_run import run
from ...schedulers.environ import NodeGpus
from ..exec.mpi_use import UNKNOWN
from .flavours import FLAVOURS, Flavour, make_render
from .starter import Starter

#: A command that does not tell its version within this many seconds is ignored.
_VERSION_TIMEOUT_S = 20.0
#: Commands whose name is enough, looked for first: where they are nothing else starts programs on the compute nodes.
_BY_NAME = ("aprun", "jsrun")
#: Commands that many MPIs have under the same name.
_BY_VERSION = ("mpiexec", "mpirun", "mpiexec.hydra")
#: What they print for `--version`, asked in this order: Intel MPI is a Hydra too. Sources: MPICH 5.0.2, Open MPI 4.1.8
#: (which prints OpenRTE) and 5.0.11 (tried); what users of Intel MPI 2019 and later and of IBM Spectrum MPI 10 show.
_VERSIONS = (
    ("intel", re.compile(r"Intel\(R\) MPI Library")),
    ("openmpi", re.compile(r"\((Open MPI|OpenRTE|PRRTE)\) +\d|\bSpectrum MPI\b")),
    ("pals", re.compile(r"\bPALS\b", re.IGNORECASE)),
    ("mpich", re.compile(r"\bHYDRA build details\b|\bMPICH Version\b|\bMVAPICH\b", re.IGNORECASE)),
)
#: PALS is at /opt/cray/pe/pals/VERSION/bin; not each of its versions names itself.
_PALS_PATH = re.compile(r"/(cray-)?pals/")
_WAY_OUT = "set MPI_FLAVOUR and MPI_RUN_EXE, or MPI_RUN_TEMPLATE"


def find(settings: Settings, environ: Mapping[str, str]) -> Starter | str:
    """Return the MPI start command of the settings, else the first of this machine's; or why there is none.

    Inside Slurm an mpiexec on PATH comes before srun: it fits the MPI that the user has loaded, and starts its ranks through
    srun itself, whereas srun with another PMI than the program's gives as many programs of one rank each (tried: Open MPI
    under --mpi=pmi2). May take some seconds, but ends.

    Raises:
        SettingsError: MPI_FLAVOUR, MPI_RUN_EXE or MPI_RUN_TEMPLATE makes no sense.
    """
    flavour = _named(settings.MPI_FLAVOUR) if settings.MPI_FLAVOUR else None
    if settings.MPI_RUN_TEMPLATE:
        render = make_render(settings.MPI_RUN_TEMPLATE)
        return Starter((), flavour or _UNKNOWN, template=render, evidence="MPI_RUN_TEMPLATE")
    if settings.MPI_RUN_EXE:
        return _of_settings(_words(settings.MPI_RUN_EXE), flavour, environ)
    if flavour:
        path = _first_on_path(flavour.commands, environ)
        if path is None:
            return f"looked for {_either(flavour.commands)} on PATH, because MPI_FLAVOUR is {flavour.name}"
        return _starter((path,), flavour, environ, f"MPI_FLAVOUR is {flavour.name}")
    return _of_machine(environ)


def one_rank_per_node(
    names: Sequence[str], settings: Settings, environ: Mapping[str, str], node_gpus: NodeGpus | None = None
) -> list[str] | str:
    """Return the words before a program of which one rank runs on each of those nodes; or why there are none.

    Each rank has all CPUs of its node, stdin goes to rank 0, and the others survive a rank that ends, where the MPI allows it.

    Args:
        node_gpus: the GPUs that Slurm gave to the batch job, if any.

    Raises:
        SettingsError: as `find`.
    """
    found = find(settings, environ)
    return found if isinstance(found, str) else found._replace(node_gpus=node_gpus).one_per_host(names)


# --- settings ---------------------------------------------------------------------------------------------------------

#: What a template starts when its flavour is not given.
_UNKNOWN = Flavour("template", (), lambda layout: [], lambda layout: [], at_term=UNKNOWN)


def _named(name: str) -> Flavour:
    if name.lower() not in FLAVOURS:
        raise SettingsError(f"MPI_FLAVOUR: there is no {name!r}", hint=f"There are: {', '.join(sorted(FLAVOURS))}.")
    return FLAVOURS[name.lower()]


def _words(text: str) -> list[str]:
    try:
        words = field_specs.split_command(text)
    except ValueError as exc:
        raise SettingsError(f"MPI_RUN_EXE cannot be split into words ({exc}): {text}") from exc
    if not words:
        raise SettingsError("MPI_RUN_EXE holds nothing but blanks")
    return words


def _of_settings(words: Sequence[str], flavour: Flavour | None, environ: Mapping[str, str]) -> Starter | str:
    path = _which(words[0], environ)
    if path is None:
        return f"looked for {words[0]}, which is MPI_RUN_EXE; it is not there, or cannot be executed"
    name, evidence = (flavour.name, f"MPI_FLAVOUR is {flavour.name}") if flavour else _recognised(path, environ)
    if not name:
        return f"looked at MPI_RUN_EXE: {path} {evidence}; set MPI_FLAVOUR or MPI_RUN_TEMPLATE"
    return _starter((path, *words[1:]), FLAVOURS[name], environ, evidence)


# --- what the machine has ---------------------------------------------------------------------------------------------


def _of_machine(environ: Mapping[str, str]) -> Starter | str:
    doubts = []
    for path in _candidates(environ):
        name, evidence = _recognised(path, environ)
        if name:
            return _starter((path,), FLAVOURS[name], environ, evidence)
        doubts.append(f"{path} {evidence}")
    in_slurm = "" if "SLURM_JOB_ID" in environ else " (and for srun in a Slurm job only)"
    looked = f"looked for {_either((*_BY_NAME, *_BY_VERSION))}{in_slurm} on PATH, which is {environ.get('PATH', '')!r}"
    return "; ".join([looked, *doubts, _WAY_OUT])


def _candidates(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths of commands to check, each file once."""
    seen = set()
    for name in (*_BY_NAME, *_BY_VERSION, *(("srun",) if "SLURM_JOB_ID" in environ else ())):
        path = _which(name, environ)
        if path is not None and os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            yield path


def _recognised(path: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the flavour ("" if none is known) and what speaks for it, or against."""
    if os.path.basename(path) in (*_BY_NAME, "srun"):
        return os.path.basename(path), "by its name"
    if _PALS_PATH.search(os.path.realpath(path)):
        return "pals", "by its path"
    answer = run([path, "--version"], timeout_s=_VERSION_TIMEOUT_S, environ=environ)
    text = f"{answer.stdout}\n{answer.stderr}"
    line = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
    told = f"reports as its version: {line[:80]!a}"
    return next((name for name, pattern in _VERSIONS if answer.ok and pattern.search(text)), ""), told


def _starter(argv: tuple[str, ...], flavour: Flavour, environ: Mapping[str, str], evidence: str) -> Starter:
    # Only srun must be told which of the batch job's nodes this is; it is slurmd's name for it (srun(1), Slurm 22.05).
    this_host = environ.get("SLURMD_NODENAME", "") if flavour.name == "srun" else ""
    return Starter(argv, flavour, this_host, evidence=evidence)


def _first_on_path(names: Sequence[str], environ: Mapping[str, str]) -> str | None:
    return next((path for path in (_which(name, environ) for name in names) if path is not None), None)


def _which(name: str, environ: Mapping[str, str]) -> str | None:
    path = shutil.which(name, path=environ.get("PATH", os.defpath))
    return None if path is None else os.path.abspath(path)


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
