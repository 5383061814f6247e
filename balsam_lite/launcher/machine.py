"""What this host has: CPUs that this process may use, and GPUs."""

from __future__ import annotations

import os
import shutil


def cpus() -> int:
    """The CPUs that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use: those of CUDA_VISIBLE_DEVICES, else those that `nvidia-smi -L` lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1", "NoDevFiles"))
    if shutil.which("nvidia-smi") is None:
        return ()
    from ..schedulers.base import run

    return parse_gpu_list(run(["nvidia-smi", "-L"], timeout_s=20).stdout)


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
