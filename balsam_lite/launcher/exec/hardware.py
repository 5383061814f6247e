"""What this host has: CPUs that this process may use, and GPUs."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping


def cpus() -> int:
    """How many CPUs this process may run on."""
    return len(cpu_numbers()) or os.cpu_count() or 1


def cpu_numbers() -> tuple[int, ...]:
    """Which ones; none where a process cannot be pinned to any (macOS)."""
    try:
        return tuple(sorted(os.sched_getaffinity(0)))
    except AttributeError:
        return ()


#: Which GPUs a process may use: of CUDA, of ROCm, of HIP on top of it, of oneAPI's Level Zero. Slurm sets the first two at
#: once, to the same numbers.
_VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def gpus(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs that this process may use, as the variables name them that tell programs of theirs.

    Those variables say it, whoever set them; else Slurm does, by their number; else `nvidia-smi -L` lists them.
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
    """The GPUs in CUDA_VISIBLE_DEVICES or a variable like it: numbers, UUIDs, or tiles such as 0.1.

    What follows a -1 is not visible (CUDA C++ programming guide, version 12, "CUDA environment variables"); NoDevFiles is
    what Slurm writes where there is none.

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
    """The indices in the output of `nvidia-smi -L` (nvidia-smi(1)); other lines are passed over.

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
