"""What makes one doubt that a launch will run anything: said when it is submitted, not found out hours later."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..core import states
from ..core.partitions import Partition
from ..core.settings import Settings
from ..db.engine.connection import Database
from ..db.query import select
from ..db.store import claims
from ..db.store.claims import Shape
from ..launcher.exec import hardware
from ..launcher.placement import cost_of
from ..schedulers.request import LaunchRequest

#: States of jobs for which a launcher has, or will have, something to do.
WAITING = tuple(state for state in states.STATES if state not in (*states.END_STATES, states.RUNNING))


def warnings_for(db: Database, settings: Settings, request: LaunchRequest, scheduler_name: str) -> list[str]:
    """A sentence each. Reads what waits; without GPUS_PER_NODE, where nodes are shares of this host, asks for its GPUs."""
    whole = Partition(request.job_mode, request.nodes)
    found: list[str] = []
    matches = False
    for part in request.partitions or (whole,):
        tags = {**request.filter_tags, **part.filter_tags}
        matches = matches or _has_any(db, tags)
        with db.read() as cx:
            waiting = claims.waiting(cx, claims.Filter(serial_only=False, tags=tuple(tags.items())))
        gpus = _gpus_per_node(settings, request.nodes, scheduler_name) if waiting else None
        for shape, jobs, _ in waiting:
            found += [f"{jobs} matching job(s) {reason}." for reason in _obstacles(shape, part, gpus)]
    return list(dict.fromkeys(found)) if matches else ["No job waits that this launcher could run."]


def _has_any(db: Database, tags: Mapping[str, str]) -> bool:
    with db.read() as cx:
        return bool(select.job_ids(cx, {"state": WAITING, "tags": dict(tags)}, 1))


def _obstacles(shape: Shape, part: Partition, gpus: float | None) -> Iterator[str]:
    """Why that launcher will never run such jobs."""
    if part.job_mode == "serial" and not shape.is_serial:
        yield "have several ranks: they need --job-mode=mpi or mixed"
    if shape.num_nodes > part.num_nodes:
        yield f"need {shape.num_nodes} nodes, the launcher has {part.num_nodes}"
    wanted = cost_of(shape).gpus
    if gpus is not None and wanted > gpus:
        yield f"need {wanted:g} GPU(s) per node, the nodes have {gpus:g} (GPUS_PER_NODE of the settings says how many)"


def _gpus_per_node(settings: Settings, nodes: int, scheduler_name: str) -> float | None:
    """None where only the nodes themselves could tell."""
    if settings.GPUS_PER_NODE >= 0:
        return settings.GPUS_PER_NODE
    if scheduler_name != "LocalScheduler":
        return None
    return -(-len(hardware.gpus()) // nodes)  # dealt out evenly; of what is left over the first ones have one more
