"""CPUs and GPUs of this host, their assignment to jobs, and the variables that tell a job its GPUs.

Detection reads the environment and asks `nvidia-smi`; the rest is pure. `spawner` pins.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from heapq import nsmallest
from typing import TYPE_CHECKING

from ...core.errors import SettingsError

if TYPE_CHECKING:
    from ...db.store.claims import Claim
    from ..placement import Placement


def cpus() -> int:
    """Return the number of CPUs on which this process may run."""
    return len(cpu_numbers()) or os.cpu_count() or 1


def cpu_numbers() -> tuple[int, ...]:
    """Return the numbers of these CPUs; () where processes cannot be pinned (macOS)."""
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except AttributeError:
        return ()


#: Which GPUs a process may use: of CUDA, of ROCm, of HIP on top of it, of oneAPI's Level Zero. Slurm sets the first two at
#: once, to the same numbers.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def gpus(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the GPUs that this process may use, by the names that the GPU variables use.

    These variables take precedence, regardless of who set them; then Slurm's number; then the list of `nvidia-smi -L`.
    """
    visible = next((environ[variable] for variable in _VISIBLE if variable in environ), None)
    if visible is not None:
        return parse_visible(visible)
    on_node = environ.get("SLURM_GPUS_ON_NODE", "")  # sbatch(1), version 22.05
    if re.fullmatch("[0-9]{1,4}", on_node):
        return tuple(map(str, range(int(on_node))))
    if shutil.which("nvidia-smi") is None:
        return ()
    from ...core.subprocess_run import run

    return parse_gpu_list(run(["nvidia-smi", "-L"], timeout_s=20).stdout)


def parse_visible(text: str) -> tuple[str, ...]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES or a variable like it: numbers, UUIDs, or tiles such as 0.1.

    Entries after a -1 are not visible (CUDA C++ programming guide, version 12, "CUDA environment variables"). Slurm writes
    NoDevFiles if there is no GPU.

    >>> parse_visible("2, 3,2"), parse_visible("GPU-8932f937"), parse_visible("0,-1,1"), parse_visible("NoDevFiles")
    (('2', '3'), ('GPU-8932f937',), ('0',), ())
    """
    found: dict[str, None] = {}
    for gpu in map(str.strip, text.split(",")):
        if gpu in ("-1", "NoDevFiles"):
            break
        if gpu:
            found[gpu] = None
    return tuple(found)


def parse_gpu_list(text: str) -> tuple[str, ...]:
    """Return the indices in the output of `nvidia-smi -L` (nvidia-smi(1)); other lines are ignored.

    >>> parse_gpu_list("GPU 0: NVIDIA A100 (UUID: GPU-1)\\nGPU 1: NVIDIA A100 (UUID: GPU-2)\\n")
    ('0', '1')
    """
    found = []
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        number = rest.partition(":")[0]
        if word == "GPU" and number.isdigit():
            found.append(number)
    return tuple(found)


# --- GPUs of a job ----------------------------------------------------------------------------------------------------

CUDA, LEVEL_ZERO = "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"
DEFAULT_GPU_VARIABLES = (CUDA,)
#: The meaning of a variable's numbers depends on another one: CUDA counts the fastest GPU first unless told to use the order on
#: the bus (CUDA C++ programming guide, version 12), and so does Level Zero (its specification, "Environment Variables").
_COMPANIONS = {CUDA: ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), LEVEL_ZERO: ("ZE_ENABLE_PCI_ID_DEVICE_ORDER", "1")}


def gpu_variables(text: str) -> tuple[str, ...]:
    """Return the variables that the setting GPU_VARIABLES names, between blanks or commas.

    >>> gpu_variables("ROCR_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES")
    ('ROCR_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES')

    Raises:
        SettingsError: a word cannot be a variable's name.
    """
    found = tuple(dict.fromkeys(re.findall(r"[^\s,]+", text)))
    for name in found:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise SettingsError(f"GPU_VARIABLES: {name!r} cannot be the name of a variable.")
    return found


def visible_gpus(place: Placement, shares_host: bool) -> tuple[str, ...] | None:
    """Return the GPUs of a placement if all its nodes use the same names for them; else None.

    Nodes that are shares of one host have separate GPUs, and the job gets all of these.
    """
    if shares_host:
        return tuple(dict.fromkeys(gpu for of_node in place.gpus for gpu in of_node))
    return place.gpus[0] if len(set(place.gpus)) == 1 else None


def gpu_environment(of: Sequence[str], gpus: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that give a program these GPUs.

    >>> gpu_environment(["ZE_AFFINITY_MASK"], ["0.0", "0.1"])
    {'ZE_ENABLE_PCI_ID_DEVICE_ORDER': '1', 'ZE_AFFINITY_MASK': '0.0,0.1'}
    """
    companions = dict(_COMPANIONS[name] for name in of if name in _COMPANIONS)
    return {**companions, **dict.fromkeys(of, ",".join(gpus))}


# --- CPUs of a job ----------------------------------------------------------------------------------------------------


def cpus_wanted(claim: Claim) -> int:
    """Return the number of CPUs requested by a job that is started without an MPI command; 0: do not pin it.

    This is the number of threads of its ranks on this node, divided by the threads per core (source: Balsam 0.7).
    """
    if claim.cpu_affinity != "depth":
        return 0
    return max(1, claim.shape.ranks_per_node * claim.threads_per_rank // claim.threads_per_core)


class CpuSet:
    """The CPUs of one launcher on one host, and how many jobs are pinned to each."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._jobs = dict.fromkeys(cpus, 0)

    def take(self, number: int) -> tuple[int, ...]:
        """Take up to this number of CPUs: those with the fewest jobs, the first of equals. () where pinning is impossible."""
        taken = tuple(nsmallest(number, self._jobs, key=self._jobs.__getitem__))
        for cpu in taken:
            self._jobs[cpu] += 1
        return taken

    def release(self, cpus: Sequence[int]) -> None:
        """Release CPUs at the end of a job that had taken them."""
        for cpu in cpus:
            self._jobs[cpu] -= 1


def deal_cpus(cpus: Sequence[int], nodes: int) -> list[tuple[int, ...]]:
    """Return the CPUs of each of `nodes` shares of a host, with the same numbers as `placement.divide_host`.

    >>> deal_cpus([4, 5, 6, 7, 8], 2), deal_cpus([4, 5], 3)
    ([(4, 5, 6), (7, 8)], [(4,), (5,), (4,)])
    """
    if len(cpus) < nodes:
        return [(cpus[number % len(cpus)],) if cpus else () for number in range(nodes)]
    size, rest = divmod(len(cpus), nodes)
    ends = [size * number + min(number, rest) for number in range(nodes + 1)]
    return [tuple(cpus[start:end]) for start, end in zip(ends, ends[1:])]
