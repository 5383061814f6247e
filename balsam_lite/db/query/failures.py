"""Why jobs failed: the cause with the words of the history, the first cause up the graph, and the jobs that failed alike.

All functions only read, and run inside the caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from ...core import causes, states
from ...core.clock import format_us
from ..store import remote_parents
from . import queries, select
from .catalogue import Group, Reason, make
from .edits import edits

#: The reasons of failures by their causes; further ones begin with the name of what failed.
_CODES = {
    causes.PARENT_FAILED: "failed-with-parent",
    causes.PARENT_REMOVED: "failed-with-parent",
    causes.PARENT_LOST: "failed-with-parent",
    causes.RESTART_LIMIT: "failed-restarts",
    causes.TOLD_TO_STOP: "failed-stopped",
    causes.LAUNCHER_DIED: "failed-killer",
    causes.NO_RESULT: "failed-result",
    causes.SET_BY_USER: "failed-by-user",
}
_BEGINNINGS = {
    "exit code ": "failed-exit", "signal ": "failed-signal", causes.NOT_STARTED: "failed-start", "preprocess": "failed-hook",
    "postprocess": "failed-hook", "handle_": "failed-hook", "stage-": "failed-stage",
}  # fmt: skip
#: The cause of the end of a run (`run.cause`) that explains its exit code or signal.
_OUT_OF_MEMORY = "out of memory"
#: Maximum number of jobs that failed alike whose nodes are read, and of ancestors to walk up.
_MAX_ALIKE, _MAX_STEPS = 1000, 1000
#: Maximum number of edited fields to name.
_MAX_FIELDS = 5
#: Name a node if at least this part of the jobs that failed alike failed on it.
_MOST_OF_THEM = 0.5


class Relative(NamedTuple):
    """A parent of a job."""

    number: int
    name: str
    job_id: str
    state: str

    @property
    def short_id(self) -> str:
        return self.job_id[: queries.SHORT_ID]

    @property
    def label(self) -> str:
        """Return name and short id, as everywhere: `run_7 [7df86c8b]`."""
        return f"{self.name} [{self.short_id}]".lstrip()


#: The columns of a `Relative`.
RELATIVE = "job.id, job.name, job.job_id, job.state"


def code_of(cause: str) -> str:
    """Return the code of the reason in the catalogue for a cause of `core.causes`.

    >>> code_of("exit code 2"), code_of("could not start: No such file or directory"), code_of("unknown")
    ('failed-exit', 'failed-start', 'failed')
    """
    return _CODES.get(cause) or next((code for start, code in _BEGINNINGS.items() if cause.startswith(start)), "failed")


def failures(cx: sqlite3.Connection, where: Mapping[str, Any]) -> list[Group]:
    """Return the FAILED jobs that match by the causes of their failures, those with most jobs first."""
    found = []
    for cause, jobs in select.count_failures(cx, where).items():
        (example,) = select.job_ids(cx, {"$and": [where, {"failure": [cause]}]} if where else {"failure": [cause]}, most=1)
        reason = make(code_of(cause), why=f"{cause}{_where(cx, cause, jobs)}")
        root = _root(cx, example) if reason.code == "failed-with-parent" else None
        if root is not None:
            reason = make(reason.code, why=f"{cause}, such as {root.label}, which is {root.state}", job=root.short_id)
        found.append(Group(reason, jobs, example))
    return found


def explain_ended(cx: sqlite3.Connection, number: int) -> list[Reason]:
    """Return why a job that has ended is not finished, or that its result is stale; [] if all is well."""
    job = queries.job(cx, number)
    short_id = job["job_id"][: queries.SHORT_ID]
    if job["state"] == states.JOB_FINISHED:
        found = _stale(cx, job)
    elif job["state"] == states.USER_KILLED:
        message = _message(cx, number)
        found = [make("killed", why=f"{_by_whom(cx, number)}{f': {message}' if message else ''}", job=short_id)]
    else:
        found = _failed(cx, number, short_id)
    return found + _edited(cx, job, short_id)


def _failed(cx: sqlite3.Connection, number: int, short_id: str) -> list[Reason]:
    cause = _cause(cx, number)
    code = code_of(cause)
    if code == "failed-with-parent":
        root = _root(cx, number)
        if root is not None:
            why = f"{cause}: {root.label} is {root.state}"
            if root.state == states.USER_KILLED:
                killed = make("killed", root.label, why=_by_whom(cx, root.number), job=root.short_id)
                return [make(code, why=why, job=root.short_id), killed]
            own = [reason._replace(who=root.label) for reason in _failed(cx, root.number, root.short_id)]
            return [make(code, why=why, job=root.short_id), *own]
        sql = "SELECT json_extract(data, '$.parent') FROM event WHERE job = ? ORDER BY id DESC LIMIT 1"
        row = cx.execute(sql, (number,)).fetchone()
        there = remote_parents.find(cx, row[0]) if row and (row[0] or 0) < 0 else None
        if there is not None:
            about = {"parent": there.label, "state": there.state, "site": there.site, "number": there.number}
            return [make("failed-with-site-parent", **about)]
    run = cx.execute("SELECT nodes, cause FROM run WHERE job = ? ORDER BY attempt DESC LIMIT 1", (number,)).fetchone()
    if run and run[1] == _OUT_OF_MEMORY and code in ("failed-exit", "failed-signal"):
        code = "failed-memory"
    message = _message(cx, number)
    why = f"{cause} (on {run[0]})" if run and run[0] else cause
    by_whom = _by_whom(cx, number) if cause == causes.SET_BY_USER else ""
    reason = make(code, why=f"set{by_whom}" if by_whom else why, job=short_id)
    found = [reason._replace(text=f"{reason.text}\n{message}" if message else reason.text)]
    alike = cx.execute("SELECT jobs - 1 FROM failure WHERE cause = ?", (cause,)).fetchone()
    if alike and alike[0] > 0 and cause not in (causes.UNKNOWN, causes.OTHER):
        found.append(make("failed-alike", number=alike[0], where=_where(cx, cause, alike[0] + 1, besides=number)))
    return found


def _by_whom(cx: sqlite3.Connection, number: int) -> str:
    """Return who set the job's state, with which command and when; "" if that is not recorded."""
    sql = """SELECT author.user, author.host, author.command, action.time FROM edit
        JOIN action ON action.id = edit.action JOIN author ON author.id = action.author
        WHERE edit.job = ? AND edit.field = 'state' ORDER BY action.id DESC LIMIT 1"""
    row = cx.execute(sql, (number,)).fetchone()
    return f" by {row[0]} on {row[1]} ({row[2]}) at {format_us(row[3])[:-7]}" if row else ""


def _edited(cx: sqlite3.Connection, job: Mapping[str, Any], short_id: str) -> list[Reason]:
    """Return which fields have been changed since the job ran."""
    attempt = job["attempt"]
    fields = list(dict.fromkeys(one["field"] for one in edits(cx, [job["id"]]) if attempt and one["attempt"] >= attempt))
    more = f" and {len(fields) - _MAX_FIELDS} more" if len(fields) > _MAX_FIELDS else ""
    named = ", ".join(fields[:_MAX_FIELDS]) + more
    return [make("edited", fields=named, attempt=attempt, job=short_id)] if fields else []


def _cause(cx: sqlite3.Connection, number: int) -> str:
    row = cx.execute("SELECT cause FROM job JOIN failure ON failure.id = job.failure WHERE job.id = ?", (number,)).fetchone()
    return str(row[0]) if row else causes.UNKNOWN


def _message(cx: sqlite3.Connection, number: int) -> str:
    """Return the last message in a job's history that is not empty."""
    end = queries.end_of(cx, number)
    return end.message if end else ""


def _root(cx: sqlite3.Connection, number: int) -> Relative | None:
    """Return the ancestor whose failure or kill was the first cause of this job's failure; None if it is gone."""
    sql = f"""SELECT {RELATIVE} FROM job WHERE id = coalesce(
            (SELECT json_extract(data, '$.parent') FROM event WHERE event.job = ? ORDER BY id DESC LIMIT 1),
            (SELECT parent FROM dependency JOIN job ON job.id = parent WHERE child = ? AND state IN (?, ?) LIMIT 1))"""
    found = None
    for _ in range(_MAX_STEPS):
        row = cx.execute(sql, (number, number, states.FAILED, states.USER_KILLED)).fetchone()
        if row is None:
            break
        found = Relative._make(row)
        number = found.number
        if code_of(_cause(cx, number)) != "failed-with-parent":
            break
    return found


def _where(cx: sqlite3.Connection, cause: str, jobs: int, besides: int | None = None) -> str:
    """Return `, 40 of them on node17` if most jobs that failed for that cause failed on one node; else ""."""
    if jobs < 3:
        return ""
    rows = cx.execute(
        """SELECT job.id, (SELECT nodes FROM run WHERE run.job = job.id ORDER BY attempt DESC LIMIT 1)
            FROM failure JOIN job INDEXED BY job_failure ON job.failure = failure.id
            WHERE failure.cause = ? AND job.failure IS NOT NULL LIMIT ?""",
        (cause, _MAX_ALIKE),
    ).fetchall()
    nodes = Counter(node for job, node in rows if node and job != besides)
    if len(nodes) < 1 or len({node for _, node in rows if node}) < 2:
        return ""  # unknown, or there is only one node
    node, number = nodes.most_common(1)[0]
    read = sum(job != besides for job, _ in rows)
    of = "of them" if read >= jobs - (besides is not None) else f"of the first {read}"
    return f", {number} {of} on {node}" if number > _MOST_OF_THEM * read else ""


def _stale(cx: sqlite3.Connection, job: Mapping[str, Any]) -> list[Reason]:
    if not cx.execute(f"SELECT {queries.STALE} FROM job WHERE id = ?", (job["id"],)).fetchone()[0]:
        return []
    last = "(SELECT max(id) FROM event WHERE event.job = {} AND to_state = '{}')".format
    sql = f"""SELECT {RELATIVE} FROM dependency JOIN job ON job.id = parent WHERE child = ?
        AND {last("job.id", states.JOB_FINISHED)} > {last("child", states.RUNNING)} LIMIT 1"""
    parent = Relative._make(cx.execute(sql, (job["id"],)).fetchone())
    return [make("stale", parent=parent.label, job=job["job_id"][: queries.SHORT_ID])]
