"""How it goes at a site, in plain data: for `local.LocalSite`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..core import states
from ..core.clock import SECOND_US, SystemClock
from ..core.settings import Settings
from ..db.engine.connection import Connection, Database
from ..db.query import progress, reasons, select
from ..db.query.reasons import Surroundings
from ..db.store import leases
from ..service.surroundings import surroundings
from . import explain
from .interface import Row

#: Maximum number of workflows, nodes, causes, reasons and launches to name; others are counted.
_MAX_NAMED = 20
#: Seconds for reading waiting jobs.
_REASONS_BUDGET_S = 0.02


def status(db: Database, where: Mapping[str, Any]) -> Row:
    """Return what `interface.SiteInterface.status` specifies, as of one moment. One read transaction."""
    settings, now_us = Settings.load(db.directory), SystemClock.now_us()
    with db.read() as cx:
        workflows = select.count_workflows(cx, where)
        by_state: dict[str, int] = {}
        for counts in workflows.values():
            for state, jobs in counts.items():
                by_state[state] = by_state.get(state, 0) + jobs
        running, rate = progress.running_by_node(cx, where), progress.rate(cx, where, now_us)
        around = surroundings(cx, db, settings)
        waiting = reasons.explain_jobs(cx, where, around, _REASONS_BUDGET_S)
        failures = select.count_failures(cx, where)
        row: Row = {
            "time": now_us,
            "path": db.directory,
            "states": by_state,
            "workflows": _largest(workflows),
            "other_workflows": max(0, len(workflows) - _MAX_NAMED),
            "running": [{"node": node, "jobs": jobs} for node, jobs in running[:_MAX_NAMED]],
            "running_nodes": len(running),
            "ended_per_s": rate.per_s,
            "rate_window_s": rate.seconds,
            "left_s": progress.seconds_left(cx, where, by_state, sum(jobs for _, jobs in running)),
            "failures": [{"cause": cause, "jobs": jobs} for cause, jobs in [*failures.items()][:_MAX_NAMED]],
            "other_failures": sum([*failures.values()][_MAX_NAMED:]),
            "waiting": explain.as_rows(cx, waiting[:_MAX_NAMED]),
            "other_reasons": max(0, len(waiting) - _MAX_NAMED),
            **_launches(cx, around),
        }
    return {**row, "service": _service(around), "disk_free_bytes": _free_bytes(db.directory)}


def _largest(workflows: Mapping[str, Mapping[str, int]]) -> list[Row]:
    """Return the workflows with the most jobs that have not ended, then with the most jobs."""

    def size(counts: Mapping[str, int]) -> tuple[int, int]:
        total = sum(counts.values())
        return total - sum(counts.get(state, 0) for state in states.END_STATES), total

    named = sorted(workflows.items(), key=lambda item: size(item[1]), reverse=True)[:_MAX_NAMED]
    return [{"workflow": workflow, "states": counts} for workflow, counts in named]


def _launches(cx: Connection, around: Surroundings) -> Row:
    held = progress.jobs_held(cx)
    opened = leases.opened_us(cx)
    launchers = [
        {
            "launcher": taker.name,
            "nodes": sum(kind.nodes for kind in taker.nodes),
            "jobs": held.get(taker.lease or 0, 0),
            "used_s": (around.now_us - opened.get(taker.lease or 0, around.now_us)) / SECOND_US,
            "left_s": None if taker.minutes is None else max(0.0, taker.minutes * 60),
            "trouble": taker.trouble,
        }
        for taker in around.launchers
    ]
    fields = ("id", "scheduler_id", "state", "reason", "queue", "nodes", "wall_minutes", "created", "expected_start", "polled")
    queued = list({row["id"]: {name: row[name] for name in fields} for _, row in around.launches}.values())
    return {
        "launchers": launchers[:_MAX_NAMED],
        "other_launchers": max(0, len(launchers) - _MAX_NAMED),
        "starting": list(around.starting),
        "doubted": [f"{one.lease}: {'dead' if one.is_dead else one.sign}" for one in around.holders.values()],
        "queued": queued[:_MAX_NAMED],
        "other_queued": max(0, len(queued) - _MAX_NAMED),
    }


def _service(around: Surroundings) -> str | None:
    """Return the service that runs, in words."""
    if around.service is None:
        return None
    doubt = around.holders.get(around.service.id)
    return f"{around.service}{f': {doubt.sign}' if doubt else ''}"


def _free_bytes(directory: str) -> int | None:
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize
