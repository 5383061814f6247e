"""Whether jobs may still come for an idle launcher, and why. Runs inside the caller's transaction; reads only.

The cost is small regardless of the number of ended jobs: it reads the counters, or, with a filter, a bounded number of the
jobs that have not ended.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from typing import NamedTuple

from ...core import states
from ...core.clock import SECOND_US
from ..engine.schema import VISIBLE, sql_list
from ..store import large_writes, leases
from ..store.leases import Watch
from . import queries, select

_UNENDED = tuple(state for state in states.STATES if state not in states.END_STATES)
#: Loops in shells and scripts add jobs in shorter intervals than this, in seconds.
_ADDING_S = 2.0
#: Rows that are read to find one that matches a filter. Beyond that there may be one.
_MAX_ROWS = 20_000

#: The reason to wait while the launcher's scope has never had a job; the scope in words follows.
FIRST_JOB = "a first job"


class Scope(NamedTuple):
    """The jobs that a launcher takes."""

    workflow: str | None = None  # exact name or glob; None: all
    tags: tuple[tuple[str, str], ...] = ()  # all of these
    launch: int | None = None  # only those planned for this launch

    def __str__(self) -> str:
        """Return the scope as words that follow "a job"; "" for all jobs."""
        words = [f"of workflow {self.workflow}"] if self.workflow is not None else []
        words += [f"with the tag {key}={value}" for key, value in self.tags]
        words += ["planned for this launch"] if self.launch is not None else []
        return " " + " ".join(words) if words else ""


def what_may_come(
    cx: sqlite3.Connection, scope: Scope, now_us: int, expiry_s: float, since_us: int | None = None, watch: Watch | None = None
) -> str:
    """Return in words why there may be jobs to run later, or "" if there can be none.

    There can be none when every job in the scope has ended, no hook of an ended job runs, and no process is registered as
    waiting for jobs. In a scope that never had a job the first one may come; and when one was added a moment ago, but after
    `since_us` (the launcher's start), the next one may.
    """
    if large_writes.hidden_ranges(cx):
        return "jobs that are being added"
    unended = _unended(cx, scope)
    if unended:
        return unended
    # A hook may have set the final state of its job, and go on: it can still add jobs.
    held = (
        f"SELECT 1 FROM job INDEXED BY job_lease WHERE lease IS NOT NULL AND state IN ({sql_list(states.END_STATES)}) LIMIT 1"
    )
    if cx.execute(held).fetchone():
        return "a script of a job that has ended"
    waiting = leases.living_waits(cx, expiry_s, watch)
    if waiting:
        holder = waiting[0].lease.holder
        more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
        return f"jobs of a program that waits for jobs (pid {holder.pid} on {holder.host}{more})"
    if not _has_any(cx, scope):
        return FIRST_JOB + str(scope)
    newest_us = cx.execute("SELECT created FROM job ORDER BY id DESC LIMIT 1").fetchone()[0]
    is_adding = since_us is not None and newest_us > since_us and now_us - newest_us < _ADDING_S * SECOND_US
    return "the next job of a program that has just added one" if is_adding else ""


def state_counts(cx: sqlite3.Connection, scope: Scope, wanted: tuple[str, ...]) -> Counter[str]:
    """Return how many jobs in the scope are in each of the states `wanted`; with a filter, read every such job."""
    if scope == Scope():
        counts = select.count_states(cx)
        return Counter({state: counts[state] for state in wanted if counts.get(state)})
    launch = "" if scope.launch is None else f" AND queued_launch_id = {scope.launch:d}"
    where = f"state IN ({sql_list(wanted)}){launch} AND {VISIBLE}"
    query = f"SELECT state, workflow, tags FROM job INDEXED BY job_state WHERE {where}"
    return Counter(state for state, workflow, tags in cx.execute(query) if _matches(scope, workflow, tags))


def _unended(cx: sqlite3.Connection, scope: Scope) -> str:
    if scope.launch is not None:
        query = f"""SELECT 1 FROM job INDEXED BY job_queued_launch
            WHERE queued_launch_id = ? AND state IN ({sql_list(_UNENDED)}) LIMIT 1"""
        return "jobs planned for this launch that have not ended" if cx.execute(query, (scope.launch,)).fetchone() else ""
    counts = select.count_states(cx)
    found = {state: counts[state] for state in _UNENDED if counts.get(state)}
    if not found:
        return ""
    if scope.workflow is None and not scope.tags:
        return "jobs that have not ended: " + ", ".join(f"{number} {state}" for state, number in found.items())
    query = f"SELECT workflow, tags FROM job INDEXED BY job_state WHERE state IN ({sql_list(_UNENDED)}) LIMIT ?"
    number = 0
    for workflow, tags in cx.execute(query, (_MAX_ROWS,)):
        number += 1
        if _matches(scope, workflow, tags):
            return "jobs of its filter that have not ended"
    return "jobs that have not ended, too many to look at" if number == _MAX_ROWS else ""


def _matches(scope: Scope, workflow: str, tags: str) -> bool:
    if scope.workflow is not None and not queries.matches_workflow(workflow, scope.workflow):
        return False
    return not scope.tags or dict(scope.tags).items() <= json.loads(tags).items()


def _has_any(cx: sqlite3.Connection, scope: Scope) -> bool:
    """Return whether a job is in the scope; False also where the search would take too long."""
    if scope.launch is not None:
        return cx.execute("SELECT 1 FROM job WHERE queued_launch_id = ? LIMIT 1", (scope.launch,)).fetchone() is not None
    if scope.tags:
        with_tag = f"SELECT job FROM job_tag WHERE tag = {queries.TAG} LIMIT ?"
        rows = cx.execute(f"SELECT workflow, tags FROM job WHERE id IN ({with_tag})", (*scope.tags[0], _MAX_ROWS))
        return any(_matches(scope, workflow, tags) for workflow, tags in rows)
    if scope.workflow is None:
        return bool(select.count_states(cx))
    return any(queries.matches_workflow(name, scope.workflow) for name in queries.workflows(cx))
