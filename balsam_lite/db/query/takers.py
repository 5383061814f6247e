"""What could run jobs: live launchers, launches in a batch queue, and the queues of the service's policy, as plain records.

A launcher records its own in the note of its lease (`as_note`), so that other processes can evaluate, offline, the predicates
by which it claims jobs: the filter, the job mode, the nodes, the remaining time. These are the functions that the claim
(`store.claims`), the placement (`launcher.placement`) and the service (`service.packer`) call, too. Pure, but for the reading
of a connection `cx` inside the caller's transaction.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..store.claims import SHORT, Shape
from . import demand, queries
from .demand import Scope

#: Shares are sums of fractions such as 1/3; ignore rounding errors of this size.
EPSILON = 1e-6


# --- nodes ------------------------------------------------------------------------------------------------------------


class Cost(NamedTuple):
    """The share, GPUs and CPUs that a job of some shape takes of each of its nodes."""

    share: float  # of the node
    gpus: float  # below 1: a part of one GPU; else whole ones
    cpus: int = 0  # 0: those of its share of the node


class MpiRules(NamedTuple):
    """The abilities of the machine's MPI start command."""

    starts_all: bool = False  # it also starts jobs of one rank
    shares_nodes: bool = True  # several of its runs may be on one node
    most: int = 1000  # runs at once

    def starts(self, shape: Shape) -> bool:
        """Return whether jobs of that shape are started by the MPI command."""
        return self.starts_all or not shape.is_serial


def cost_of(shape: Shape, mpi: MpiRules | None = None) -> Cost:
    """Return the cost of a job on each of its nodes. A job of several nodes takes all of each; packing is for one node.

    >>> cost_of(Shape(1, 1, 4, 0.5))
    Cost(share=0.25, gpus=0.5, cpus=0)
    >>> cost_of(Shape(1, 8, 4, 0), MpiRules(shares_nodes=False))
    Cost(share=1.0, gpus=0, cpus=8)
    """
    gpus = shape.gpus_per_rank * shape.ranks_per_node
    alone = shape.num_nodes > 1 or (mpi is not None and mpi.starts(shape) and not mpi.shares_nodes)
    share = 1.0 if alone else 1.0 / shape.node_packing_count
    cpus = shape.ranks_per_node if shape.ranks_per_node > 1 else 0
    return Cost(share, gpus if gpus < 1 else float(math.ceil(gpus - EPSILON)), cpus)


class NodeKind(NamedTuple):
    """A number of equal nodes. None: unlimited or unknown, as the ranks on a share of a host and the nodes of a queue are."""

    nodes: int
    cpus: int | None
    gpus: float | None

    def lacks(self, cost: Cost) -> str:
        """Return which of "gpus" and "cpus" such a node does not have enough of for a job of that cost; "" if none."""
        if self.gpus is not None and cost.gpus > self.gpus + EPSILON:
            return "gpus"
        return "cpus" if self.cpus is not None and cost.cpus > self.cpus else ""


class Obstacle(NamedTuple):
    """A predicate that does not hold: the code of a reason in `catalogue.CATALOGUE`, and the values in its sentence."""

    code: str
    values: Mapping[str, object]


def nodes_obstacle(kinds: Sequence[NodeKind], shape: Shape, mpi: MpiRules | None) -> Obstacle | None:
    """Return why a job of that shape could not be placed on these nodes even if all were free; None if it could."""
    total = sum(kind.nodes for kind in kinds)
    values: dict[str, object] = {"nodes": shape.num_nodes, "total": total}
    if shape.num_nodes > total:
        return Obstacle("too-many-nodes", values)
    cost = cost_of(shape, mpi)
    lacking = [(kind.lacks(cost), kind.nodes) for kind in kinds]
    fitting = sum(nodes for lack, nodes in lacking if not lack)
    if fitting >= shape.num_nodes:
        return None
    what = max(lack for lack, _ in lacking)
    most = max((kind.gpus if what == "gpus" else kind.cpus) or 0 for kind in kinds)
    few = f", and only {fitting} of {total} have enough, it needs {shape.num_nodes}" if fitting else ""
    wanted = f"{cost.gpus:g}" if what == "gpus" else cost.cpus
    return Obstacle(
        "too-many-gpus" if what == "gpus" else "too-many-ranks", {**values, "wanted": wanted, "most": most, "few": few}
    )


# --- a launcher, or a launch ------------------------------------------------------------------------------------------


class Taker(NamedTuple):
    """A launcher, or a launch in a batch queue: which jobs it takes."""

    name: str  # "launcher 3 on nid01", "qlaunch7"; "" while it speaks of itself
    scope: Scope
    nodes: tuple[NodeKind, ...]
    serial_only: bool = True
    no_mpi: str = "needs --job-mode=mpi or mixed"  # the reason to leave jobs of many ranks under `serial_only`
    mpi: MpiRules | None = None
    minutes: float | None = None  # for which it runs jobs, from now on or from its start; None: no limit
    launch: int | None = None  # its batch job: what is planned for that comes first
    trouble: str = ""  # why it starts nothing at all at the moment
    apart: bool = False  # it starts nothing beside what it runs: suspects
    steps: int | None = None  # how many jobs it holds at once for steps before and after their runs; None: unknown
    lease: int | None = None

    @property
    def what(self) -> str:
        """Return "this launcher" or "this launch"."""
        return "this launch" if self.lease is None and self.launch is not None else "this launcher"

    def scope_obstacles(self, workflow: str, tags: Mapping[str, str], launch: int | None) -> list[Obstacle]:
        """Return why it takes no job of that workflow, with these tags, planned for that launch."""
        scope, found = self.scope, []
        if not scope.takes_workflow(workflow):
            found.append(Obstacle("other-workflow", {"filter": scope.workflow, "workflow": workflow}))
        missing = [f"{key}={value}" for key, value in scope.tags if tags.get(key) != value]
        if missing:
            found.append(Obstacle("other-tags", {"tags": ", ".join(missing)}))
        if scope.launch is not None and launch != scope.launch:
            found.append(Obstacle("planned-only", {"launch": scope.launch}))
        return found

    def size_obstacles(self, shape: Shape) -> list[Obstacle]:
        """Return why it can never run a job of that shape."""
        if self.serial_only and not shape.is_serial:
            return [Obstacle("job-mode", {"no_mpi": self.no_mpi})]
        found = nodes_obstacle(self.nodes, shape, self.mpi)
        return [found] if found else []

    def time_obstacles(self, minutes: int) -> list[Obstacle]:
        """Return why a job with that estimate, in minutes, does not start in the time that is left."""
        if self.minutes is None or (minutes <= SHORT and self.minutes > 0):
            return []
        if minutes <= SHORT:
            return [Obstacle("time-is-up", {})]
        left = {"minutes": minutes, "left": f"{max(self.minutes, 0):.1f}"}
        return [Obstacle("time-left", left)] if minutes > self.minutes else []

    def as_note(self, ends_us: int | None) -> str:
        """Return the record as JSON, for the note of the launcher's lease. `ends_us`: when its time is up."""
        return json.dumps({
            "workflow": self.scope.workflow, "tags": self.scope.tags, "launch": self.launch,
            "launch_only": self.scope.launch is not None, "nodes": self.nodes, "serial_only": self.serial_only,
            "no_mpi": self.no_mpi, "mpi": self.mpi, "ends_us": ends_us, "trouble": self.trouble, "apart": self.apart,
            "steps": self.steps,
        })  # fmt: skip

    @classmethod
    def of_note(cls, note: str, name: str, lease: int, now_us: int) -> Taker | None:
        """Return what a launcher recorded with `as_note`; None if it has recorded nothing yet."""
        try:
            found = json.loads(note)
            ends_us, launch = found["ends_us"], found["launch"]
            tags = tuple((str(key), str(value)) for key, value in found["tags"])
            return cls(
                name,
                Scope(found["workflow"], tags, launch if found["launch_only"] else None),
                tuple(NodeKind(*kind) for kind in found["nodes"]),
                found["serial_only"],
                found["no_mpi"],
                None if found["mpi"] is None else MpiRules(*found["mpi"]),
                None if ends_us is None else (ends_us - now_us) / 60e6,
                launch,
                found["trouble"],
                found["apart"],
                found["steps"],
                lease,
            )
        except (ValueError, TypeError, KeyError):  # of a launcher of another version
            return None

    @classmethod
    def of_batch_job(cls, row: Mapping[str, Any], margin: float) -> list[Taker]:
        """Return the launchers that a batch job will have, from its row: one, or one for each of its partitions.

        Args:
            margin: minutes of the launch that no job can use.
        """
        name, tags = f"qlaunch{row['id']}", json.loads(row["filter_tags"])
        whole = {"num_nodes": row["nodes"], "job_mode": row["job_mode"], "filter_tags": {}}
        launch = row["id"] if row["prescheduled_only"] else None
        return [
            cls(
                name,
                Scope(row["wf_filter"] or None, tuple({**tags, **(part.get("filter_tags") or {})}.items()), launch),
                (NodeKind(part["num_nodes"], None, None),),
                serial_only=part["job_mode"] == "serial",
                minutes=max(0.0, row["wall_minutes"] - margin) if row["wall_minutes"] else None,
                launch=row["id"],
            )
            for part in json.loads(row["partitions"]) or [whole]
        ]


# --- the service's policy ---------------------------------------------------------------------------------------------


class Range(NamedTuple):
    """The minutes that launches of some numbers of nodes may last; both ends are allowed."""

    min_nodes: int
    max_nodes: int
    min_minutes: int
    max_minutes: int


class Queue(NamedTuple):
    """What the service may do in one queue."""

    name: str
    is_on: bool
    max_queued: int  # launches at once, queued and running together, including those that users submit to this queue by name
    ranges: tuple[Range, ...]  # by nodes, without overlap


def policy_obstacle(on: Sequence[Queue], nodes: int, minutes: int, margin: int) -> Obstacle | None:
    """Return why no queue allows a launch for a job of that many nodes and minutes; None if one does.

    Args:
        on: the queues that are switched on.
        margin: minutes of each launch that no job can use: for its start and its end.
    """
    if not on:
        return Obstacle("policy-off", {})
    wide = [limits for queue in on for limits in queue.ranges if limits.max_nodes >= nodes]
    if not wide:
        most = max(limits.max_nodes for queue in on for limits in queue.ranges)
        return Obstacle("policy-nodes", {"nodes": nodes, "most": most})
    longest = max(limits.max_minutes for limits in wide)
    if minutes + margin > longest:
        values = {"most": max(0, longest - margin), "longest": longest, "nodes": nodes, "margin": margin}
        return Obstacle("policy-time", values)
    return None


def full(queues: Iterable[Queue], launches: Mapping[str, int]) -> dict[str, str]:
    """Return the queues that have as many launches as the policy allows, with that reason."""
    return {
        queue.name: f"{launches[queue.name]} of {queue.max_queued} launches are queued or running"
        for queue in queues
        if launches.get(queue.name, 0) >= queue.max_queued
    }


# --- the end of a launcher --------------------------------------------------------------------------------------------

_LEFT = " job(s) left: "
#: Before the nodes that did not answer any more, in the same reason.
_LOST = "lost node(s): "
#: The beginning of a launcher's end reason if no job matched; its filter in words follows.
NO_JOB = "no job"


def as_end_reason(why: str, left: Mapping[str, int], lost: Sequence[str] = ()) -> str:
    """Return the end reason of a launcher's lease: why it ended, how many jobs it left, and why each.

    `left` counts the jobs by reason. `lost` names the nodes that the launcher lost.

    >>> as_end_reason("the time is up", {"needs --job-mode=mpi": 2, "waits for a free place": 9})
    'the time is up; 11 job(s) left: needs --job-mode=mpi (2), waits for a free place (9)'
    """
    listed = ", ".join(f"{reason} ({number})" for reason, number in left.items())
    parts = [why, *([f"{_LOST}{', '.join(lost)}"] if lost else []), *([f"{sum(left.values())}{_LEFT}{listed}"] if left else [])]
    return "; ".join(parts)


def left_in(cx: sqlite3.Connection, scheduler_id: str, since_us: int) -> str:
    """Return the end reasons of the launchers in that batch job which left jobs, found none or lost nodes; else "".

    The batch job was submitted at `since_us`.
    """
    ends = queries.launchers_in(cx, "end_reason", scheduler_id, since_us)
    found = [reason for reason in ends if _LEFT in reason or _LOST in reason or reason.startswith(NO_JOB)]
    return "; ".join(dict.fromkeys(found))


def refusals_in(
    cx: sqlite3.Connection, scheduler_id: str, since_us: int, works: Iterable[demand.Work]
) -> dict[Shape, Obstacle]:
    """Return by shape why no launcher in the batch job with that id, submitted at `since_us`, could take such work."""
    rows = zip(*(queries.launchers_in(cx, column, scheduler_id, since_us) for column in ("id", "opened", "note")))
    takers = [Taker.of_note(note, "", number, opened) for number, opened, note in rows]
    known = [taker for taker in takers if taker is not None]
    found = {}
    for work in works:
        obstacles = [[*taker.size_obstacles(work.shape), *taker.time_obstacles(work.minutes)] for taker in known]
        if obstacles and all(obstacles):
            found[work.shape] = obstacles[-1][0]
    return found


def trouble_in(cx: sqlite3.Connection, scheduler_id: str, since_us: int) -> str:
    """Return why the newest launcher in that batch job started nothing at its end, if its machine was in trouble; else ""."""
    notes = queries.launchers_in(cx, "note", scheduler_id, since_us)
    taker = Taker.of_note(notes[-1], "", 0, 0) if notes else None
    return taker.trouble if taker else ""
