"""Find out which GPUs each node of this batch job has. Only Slurm can be asked, by one or two short commands.

Nothing here raises on any output of a command: output that cannot be parsed counts as unknown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ..core.subprocess_run import run
from . import hostlist
from .environ import Allocation, NodeGpus


def ask_gpus(batch: Allocation, *, timeout_s: float = 20.0, environ: Mapping[str, str] = os.environ) -> NodeGpus | None:
    """Return the GPUs of each node of the batch job; None where it has none that Slurm knows of, or Slurm does not tell.

    Slurm numbers the GPUs of a node by their places in its configuration, and tells programs these numbers; where it fences
    devices off, programs see only their own and count these from 0. Source: scontrol(1), gres.conf(5), cgroup.conf(5), and
    https://slurm.schedmd.com/gres.html, version 22.05; tried without fences.
    """
    if batch.scheduler != "SlurmScheduler" or not batch.node_names:
        return None
    answer = run(["scontrol", "--details", "show", "job", batch.batch_id], timeout_s=timeout_s, environ=environ)
    numbers = parse_job(answer.stdout) if answer.ok else {}
    found = {name: numbers.get(name, ()) for name in batch.node_names}
    if not any(found.values()):
        return None
    counted = {name: tuple(map(str, range(len(gpus)))) for name, gpus in found.items()}
    if counted == found and len(set(found.values())) == 1:
        return NodeGpus(found)  # it makes no difference
    config = run(["scontrol", "show", "config"], timeout_s=timeout_s, environ=environ)
    are_fenced = bool(re.search(r"^ConstrainDevices\s*=\s*yes", config.stdout, re.MULTILINE | re.IGNORECASE))
    return NodeGpus(counted if are_fenced else found, are_fenced)


def parse_job(text: str) -> dict[str, tuple[str, ...]]:
    r"""Return the numbers of each node's GPUs in the text of `scontrol --details show job`. Nodes without GPUs may be missing.

    >>> parse_job("  Nodes=n[1-2] CPU_IDs=0 Mem=0 GRES=gpu:3(IDX:0,2-3)\n  Nodes=n3 CPU_IDs=0 Mem=0 GRES=gpu:a100:1(IDX:1)")
    {'n1': ('0', '2', '3'), 'n2': ('0', '2', '3'), 'n3': ('1',)}
    """
    found = {}
    for nodes, gres in re.findall(r"^\s*Nodes=(\S+) .*\bGRES(?:_IDX)?=(\S*)", text, re.MULTILINE):
        try:
            indices = ",".join(re.findall(r"\bgpu(?::[^:(,]+)*\(IDX:([0-9,-]+)\)", gres))
            gpus = tuple(sorted(hostlist.expand_numbers(indices), key=int)) if indices else ()
            found.update(dict.fromkeys(hostlist.expand(nodes), gpus))
        except ValueError:
            continue
    return found
