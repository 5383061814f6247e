"""How far the jobs are: what runs where, at which rate jobs end, and how long the others will take.

All functions only read, inside the caller's transaction, on its connection `cx`, and look at a bounded number of rows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...core import states
from ...core.clock import SECOND_US
from ..engine.schema import VISIBLE, sql_list
from .filters import Conditions
from .operators import Term, execute

#: The rate is that of this time, or of the newest events if there are more.
RATE_WINDOW_S = 300
_MAX_EVENTS = 10_000
#: Ended runs from which run times are learnt, and waiting jobs of each state whose applications are counted.
_MAX_RUNS, _MAX_WAITING = 1000, 500
#: Places of the table from which such jobs are taken.
_PLACES = 10


class Rate(NamedTuple):
    """The number of jobs that have ended within a time."""

    jobs: int
    seconds: float

    @property
    def per_s(self) -> float:
        """Return the rate per second; 0 if nothing has ended."""
        return self.jobs / self.seconds if self.jobs else 0.0


def _of_jobs(where: Mapping[str, Any]) -> Term:
    return Conditions(where).sql()


def running_by_node(cx: sqlite3.Connection, where: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the nodes of running jobs with the number of jobs there, most first; "" where they are not recorded."""
    term = _of_jobs({**where, "$and": [*where.get("$and", ()), {"state": states.RUNNING}]})
    sql = f"""SELECT coalesce((SELECT nodes FROM run WHERE run.job = job.id AND run.attempt = job.attempt), ''), count(*)
        FROM job INDEXED BY job_state WHERE {term.sql} GROUP BY 1 ORDER BY 2 DESC, 1"""
    return execute(cx, sql, term.parameters).fetchall()


def jobs_held(cx: sqlite3.Connection) -> dict[int, int]:
    """Return the number of jobs that each lease holds."""
    sql = "SELECT lease, count(*) FROM job INDEXED BY job_lease WHERE lease IS NOT NULL GROUP BY lease"
    return dict(cx.execute(sql))


def rate(cx: sqlite3.Connection, where: Mapping[str, Any], now_us: int) -> Rate:
    """Return how many matching jobs have ended in the last minutes, and in which time."""
    since_us = now_us - RATE_WINDOW_S * SECOND_US
    term = _of_jobs(where) if where else Term("1", [])
    joined = "JOIN job ON job.id = newest.job" if where else ""
    sql = f"""SELECT sum(to_state IN ({sql_list(states.END_STATES)}) AND {term.sql}), min(time)
        FROM (SELECT job, time, to_state FROM event ORDER BY id DESC LIMIT {_MAX_EVENTS}) AS newest {joined} WHERE time >= ?"""
    jobs, first_us = execute(cx, sql, [*term.parameters, since_us]).fetchone()
    return Rate(jobs or 0, max((now_us - (first_us or since_us)) / SECOND_US, 1.0))


def seconds_left(cx: sqlite3.Connection, where: Mapping[str, Any], pending: Mapping[str, int], running: int) -> float | None:
    """Return how long the matching jobs that have not ended will take if as many run at once as now.

    Run times are the means of recent runs of the same application. None: nothing runs, or one of the applications has no
    recent run.

    Args:
        pending: number of matching jobs by state. running: how many of them run.
    """
    if not running:
        return None
    jobs: dict[str, float] = {}
    for state, number in pending.items():
        if state in states.END_STATES or not number:
            continue
        some = _some_applications(cx, where, state)
        for application in some:
            jobs[application] = jobs.get(application, 0.0) + number / len(some)
    means = _mean_runtimes(cx)
    if not means.keys() >= jobs.keys():
        return None
    return sum(number * means[application] for application, number in jobs.items()) / running


def _some_applications(cx: sqlite3.Connection, where: Mapping[str, Any], state: str) -> list[str]:
    """Return the applications of some of the matching jobs in a state; without conditions of jobs from all over the table."""
    if where:
        term = _of_jobs({**where, "$and": [*where.get("$and", ()), {"state": state}]})
        rows = execute(cx, f"SELECT application FROM job WHERE {term.sql} LIMIT {_MAX_WAITING}", term.parameters)
        return [application for (application,) in rows]
    # Two subqueries, as SQLite would read all rows of the state for both ends in one.
    end = "(SELECT {}(id) FROM job INDEXED BY job_state WHERE state = ?)"
    first, last = cx.execute(f"SELECT {end.format('min')}, {end.format('max')}", (state, state)).fetchone()
    if first is None:
        return []
    sql = f"SELECT id, application FROM job INDEXED BY job_state WHERE state = ? AND id >= ? AND {VISIBLE} ORDER BY id LIMIT ?"
    found: dict[int, str] = {}
    for place in range(_PLACES):
        found.update(cx.execute(sql, (state, first + (last - first) * place // _PLACES, _MAX_WAITING // _PLACES)))
    return list(found.values())


def _mean_runtimes(cx: sqlite3.Connection) -> dict[str, float]:
    """Return the mean run time of each application in seconds, of its newest runs that ended well."""
    sql = f"""SELECT job FROM (SELECT job, to_state FROM event ORDER BY id DESC LIMIT {_MAX_EVENTS})
        WHERE to_state = '{states.RUN_DONE}' LIMIT {_MAX_RUNS}"""
    newest = json.dumps([job for (job,) in cx.execute(sql)])
    sql = """SELECT job.application, avg(run.ended - run.started) FROM json_each(?) AS one
        CROSS JOIN job ON job.id = one.value JOIN run ON run.job = job.id AND run.attempt = job.attempt
        WHERE run.started IS NOT NULL AND run.ended IS NOT NULL GROUP BY job.application"""
    return {application: mean_us / SECOND_US for application, mean_us in cx.execute(sql, (newest,))}
