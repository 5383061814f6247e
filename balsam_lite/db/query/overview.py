"""What goes on in a DB at one moment, from the counters and a bounded number of rows: for `balsam watch`.

All functions only read, and run inside the caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ...core import states
from . import demand, select
from .filters import all_of
from .reasons import Surroundings, surroundings

#: Maximum number of workflows and of causes of failures.
_MAX_GROUPS = 50

#: What is told of a running job; its last update is when it began to run.
RUNNING_FIELDS = ("id", "job_id", "name", "workflow", "attempt", "node", "last_update")

Row = dict[str, Any]


def overview(cx: sqlite3.Connection, where: Mapping[str, Any], now_us: int, expiry_s: float, size: int) -> Row:
    """Return what goes on, as plain data. Without conditions, or with those on workflows, the jobs are counted by the counters.

    time; states: {state: jobs}; workflows: [[name, {state: jobs}], …], those with most unfinished jobs first; failures: {cause:
    jobs}; running: `size` jobs with `RUNNING_FIELDS`; launches: see `_launches`.
    """
    workflows = select.count_workflows(cx, where)
    by_state: Counter[str] = Counter()
    for counts in workflows.values():
        by_state.update(counts)
    running = all_of(where, {"state": states.RUNNING})
    named = sorted(workflows.items(), key=lambda one: -_unended(one[1]))[:_MAX_GROUPS]
    return {
        "time": now_us,
        "states": dict(by_state),
        "workflows": [list(one) for one in named],
        "failures": dict(list(select.count_failures(cx, where).items())[:_MAX_GROUPS]),
        "running": select.jobs_page(cx, running, RUNNING_FIELDS, 0, size) if by_state[states.RUNNING] else [],
        "launches": _launches(cx, surroundings(cx, now_us, expiry_s)),
    }


def _unended(counts: Mapping[str, int]) -> int:
    return sum(jobs for state, jobs in counts.items() if state not in states.END_STATES)


def _launches(cx: sqlite3.Connection, around: Surroundings) -> list[Row]:
    """Return launchers that run, launches that wait, and the service:

    name, state (`running`, `getting ready`, `silent`, `dead`, or a scheduler's state), nodes, used (how many of these have
    jobs), jobs, minutes (left, or asked for; None: no limit), words (why it starts nothing, what its queue says, its last sign
    of life).
    """
    found = []
    for taker in around.launchers:
        held = demand.held(cx, taker.lease) if taker.lease is not None else demand.HeldJobs(0, [])
        widths = [demand.width(run.shape.num_nodes, run.shape.node_packing_count) for run in held.runs]
        used = sum(widths) * held.jobs / max(len(widths), 1)
        nodes = sum(kind.nodes for kind in taker.nodes)
        found.append(_launch(taker.name, "running", nodes, min(used, nodes), held.jobs, taker.minutes, taker.trouble))
    found += [_launch(name, "getting ready") for name in around.starting]
    found += [
        _launch(str(one.lease), "dead" if one.is_dead else "silent", words=one.sign)
        for one in around.holders.values()
        if one.lease.kind == "launcher"
    ]
    for row in {row["id"]: row for _, row in around.launches}.values():
        name, minutes = f"qlaunch{row['id']}", float(row["wall_minutes"])
        found.append(_launch(name, row["state"], row["nodes"], minutes=minutes or None, words=row["reason"]))
    if around.service is not None:
        found.append(_launch(str(around.service), "submits launches"))
    return found


def _launch(
    name: str, state: str, nodes: int = 0, used: float = 0.0, jobs: int = 0, minutes: float | None = None, words: str = ""
) -> Row:
    return {"name": name, "state": state, "nodes": nodes, "used": used, "jobs": jobs, "minutes": minutes, "words": words}
