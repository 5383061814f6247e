"""Which variables tell a job's program the GPUs of its place. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...core.errors import SettingsError
from ..placement import Placement

CUDA, LEVEL_ZERO = "CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"
DEFAULT = (CUDA,)
#: What a variable's numbers mean depends on another one: CUDA counts the fastest GPU first unless it is told to go by the bus
#: (CUDA C++ programming guide, version 12), and so does Level Zero (its specification, "Environment Variables").
_BESIDE = {CUDA: ("CUDA_DEVICE_ORDER", "PCI_BUS_ID"), LEVEL_ZERO: ("ZE_ENABLE_PCI_ID_DEVICE_ORDER", "1")}


def names(text: str) -> tuple[str, ...]:
    """The variables that the setting GPU_VARIABLES names, between blanks or commas.

    >>> names("ROCR_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES")
    ('ROCR_VISIBLE_DEVICES', 'HIP_VISIBLE_DEVICES')

    Raises:
        SettingsError: a word cannot be a variable's name.
    """
    found = tuple(dict.fromkeys(re.findall(r"[^\s,]+", text)))
    for name in found:
        if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise SettingsError(f"GPU_VARIABLES: {name!r} cannot be the name of a variable.")
    return found


def visible(place: Placement, shares_host: bool) -> tuple[str, ...] | None:
    """The GPUs that all nodes of a place call by these names; None where each calls its own otherwise.

    Nodes that are shares of one host have GPUs of their own each, and the job has all of these.
    """
    if shares_host:
        return tuple(dict.fromkeys(gpu for of_node in place.gpus for gpu in of_node))
    return place.gpus[0] if len(set(place.gpus)) == 1 else None


def variables(of: Sequence[str], gpus: Sequence[str]) -> dict[str, str]:
    """What tells a program that it has these GPUs.

    >>> variables(["ZE_AFFINITY_MASK"], ["0.0", "0.1"])
    {'ZE_ENABLE_PCI_ID_DEVICE_ORDER': '1', 'ZE_AFFINITY_MASK': '0.0,0.1'}
    """
    beside = dict(_BESIDE[name] for name in of if name in _BESIDE)
    return {**beside, **dict.fromkeys(of, ",".join(gpus))}
