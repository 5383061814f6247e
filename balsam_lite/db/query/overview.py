"""What goes on in a DB at one moment, from the counters and a bounded number of rows: for `balsam watch`.

All functions only read, and run inside the caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from ...core import states
from . import demand, select
from .filters import Conditions, all_of
from .operators import execute
from .reasons import Surroundings, surroundings

#: Maximum number of workflows and of causes of failures.
_MAX_GROUPS = 50

Row = dict[str, Any]


def overview(cx: sqlite3.Connection, where: Mapping[str, Any], now_us: int, expiry_s: float, size: int) -> Row:
    """Return what goes on, as plain data. Without conditions, or with those on workflows, the jobs are counted by the counters.

    time; states: {state: jobs}; workflows: [[name, {state: jobs}], …], those with most unfinished jobs first; failures: {cause:
    jobs}; running: `size` jobs, see `_running`; launches: see `_launches`; service: the lease of a service in words, or "".
    """
    around = surroundings(cx, now_us, expiry_s)
    workflows = select.count_workflows(cx, where).items()
    return {
        "time": now_us,
        "states": select.count_states(cx, where),
        "workflows": [list(one) for one in sorted(workflows, key=lambda one: -_unended(one[1]))[:_MAX_GROUPS]],
        "failures": dict(list(select.count_failures(cx, where).items())[:_MAX_GROUPS]),
        "running": _running(cx, where, size),
        "launches": _launches(cx, around),
        "service": str(around.service or ""),
    }


def _unended(counts: Mapping[str, int]) -> int:
    return sum(jobs for state, jobs in counts.items() if state not in states.END_STATES)


def _running(cx: sqlite3.Connection, where: Mapping[str, Any], size: int) -> list[Row]:
    """Return running jobs: id, job_id, name, workflow, state, attempt, nodes (names, "" if unknown), since."""
    condition, parameters = Conditions(all_of(where, {"state": states.RUNNING})).sql()
    names = ("id", "job_id", "name", "workflow", "state", "attempt", "nodes", "since")
    rows = execute(
        cx,
        f"""SELECT job.id, job.job_id, job.name, job.workflow, job.state, job.attempt, coalesce(run.nodes, ''),
            (SELECT max(time) FROM event WHERE event.job = job.id AND to_state = '{states.RUNNING}')
            FROM job LEFT JOIN run ON run.job = job.id AND run.attempt = job.attempt
            WHERE {condition} LIMIT {size:d}""",
        parameters,
    )
    return [dict(zip(names, row)) for row in rows]


def _launches(cx: sqlite3.Connection, around: Surroundings) -> list[Row]:
    """Return launchers that run and launches that wait:

    name, state (`running`, `getting ready`, `dead`, or a scheduler's state), nodes, used (how many of these have jobs), jobs,
    minutes (left, or asked for; None: no limit), words (why it starts nothing, what its queue says, its last sign of life).
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
    return found


def _launch(
    name: str, state: str, nodes: int = 0, used: float = 0.0, jobs: int = 0, minutes: float | None = None, words: str = ""
) -> Row:
    return {"name": name, "state": state, "nodes": nodes, "used": used, "jobs": jobs, "minutes": minutes, "words": words}
