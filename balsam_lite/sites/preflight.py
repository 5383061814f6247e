"""Reasons why a launch will probably run nothing: warn the user at submission, not hours later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..core import states
from ..core.settings import Settings
from ..db.engine.connection import Connection, Database
from ..db.query import filters, select
from ..db.store import claims
from ..db.store.claims import Shape
from ..launcher.exec import hardware
from ..launcher.placement import cost_of
from ..schedulers.request import LaunchRequest, Partition

#: States of jobs that a launcher will process.
WAITING = tuple(state for state in states.STATES if state not in (*states.END_STATES, states.RUNNING))


def warnings_for(db: Database, settings: Settings, request: LaunchRequest, scheduler_name: str) -> list[str]:
    """Return the warnings about a launch for the waiting jobs. Detects the GPUs of this host if the launch runs here."""
    whole = Partition(request.job_mode, request.nodes)
    found: list[str] = []
    matches = False
    for part in request.partitions or (whole,):
        tags = {**request.filter_tags, **part.filter_tags}
        with db.read() as cx:
            matches = matches or _has_any(cx, request.wf_filter, tags)
            workflows = claims.matching_workflows(cx, request.wf_filter) if request.wf_filter else None
            waiting = claims.waiting(cx, claims.Filter(workflows, serial_only=False, tags=tuple(tags.items())))
        gpus = _gpus_per_node(settings, request.nodes, scheduler_name) if waiting else None
        for shape, jobs, _ in waiting:
            found += [f"{jobs} matching job(s) {reason}." for reason in _obstacles(shape, part, gpus)]
    found += _missing_mpi4py(request, scheduler_name)
    return list(dict.fromkeys(found if matches else ["No waiting job matches this launch.", *found]))


def _has_any(cx: Connection, wf_filter: str, tags: Mapping[str, str]) -> bool:
    where: dict[str, Any] = {"state": list(WAITING), "tags": dict(tags)}
    if wf_filter:
        where.update(filters.condition_on_text("workflow", wf_filter))
    return bool(select.job_ids(cx, where, most=1))


def _missing_mpi4py(request: LaunchRequest, scheduler_name: str) -> list[str]:
    if request.nodes == 1 or request.job_mode == "mpi" or request.partitions or scheduler_name == "LocalScheduler":
        return []
    import sys
    from importlib.util import find_spec

    if find_spec("mpi4py") is not None:
        return []
    return [
        f"A {request.job_mode} launcher on several nodes needs mpi4py, which {sys.executable} does not have here. "
        "Without it there, it fails at its start: `pip install mpi4py`, or load the module that has it in the job template."
    ]


def _obstacles(shape: Shape, part: Partition, gpus: float | None) -> Iterator[str]:
    """Yield the reasons why the launcher will never run such jobs."""
    if part.job_mode == "serial" and not shape.is_serial:
        yield "have several ranks: they need --job-mode=mpi or mixed"
    if shape.num_nodes > part.num_nodes:
        yield f"need {shape.num_nodes} nodes, the launcher has {part.num_nodes}"
    wanted = cost_of(shape).gpus
    if gpus is not None and wanted > gpus:
        yield f"need {wanted:g} GPU(s) per node, the nodes have {gpus:g} (GPUS_PER_NODE of the settings says how many)"


def _gpus_per_node(settings: Settings, nodes: int, scheduler_name: str) -> float | None:
    """Return the GPUs of each node; None if only the nodes themselves know."""
    if settings.GPUS_PER_NODE >= 0:
        return settings.GPUS_PER_NODE
    if scheduler_name != "LocalScheduler":
        return None
    return -(-len(hardware.gpus()) // nodes)  # distributed evenly; the first nodes have one more if a remainder is left
