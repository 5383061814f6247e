"""The calls of executors: what is sent to a worker, and what the function returned or raised.

A job of the application `balsam-call` has a row in the table `call`, so that a call needs no directory and no file. Rows are
inserted with their jobs, read with the claim, and get their result in the transaction that ends the run. What is in them is
made and read by `pyapps.run_call`; here it is only bytes. All functions run inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, Union

from .transitions import id_list

#: The command line of an application that makes calls of executors contains this; see `pyapps.payload`.
CALL_MARK = "import call;"
#: A `result_file.Outcome` as bytes, or the path below `data/` of the file that has it.
Result = Union[bytes, str]


class ParentCall(NamedTuple):
    """The result of a call for a child of its job."""

    job: int
    job_id: str
    workdir: str
    result: Result | None


class ClaimedCall(NamedTuple):
    """What the launcher passes to the worker of a call."""

    context: int = 0  # 0: this job is no call, but has calls among its parents
    content: bytes = b""  # of the context
    payload: bytes = b""
    parents: tuple[ParentCall, ...] = ()


def context_number(cx: sqlite3.Connection, content: bytes) -> int:
    """Return the number of a context; insert it if it is new."""
    cx.execute("INSERT OR IGNORE INTO call_context (content) VALUES (?)", (content,))
    return int(cx.execute("SELECT id FROM call_context WHERE content = ?", (content,)).fetchone()[0])


def add(cx: sqlite3.Connection, calls: Iterable[tuple[int, int, bytes]]) -> None:
    """Insert calls, each as the number of its job and its context, and its payload."""
    cx.executemany("INSERT INTO call (job, context, payload) VALUES (?, ?, ?)", calls)


def read(cx: sqlite3.Connection, jobs: Collection[int], children: Collection[int]) -> dict[int, ClaimedCall]:
    """Return the calls among these jobs, and the results of calls that are parents of `children`, by job."""
    found: dict[int, ClaimedCall] = {}
    if jobs:
        sql = """SELECT job, context, content, payload FROM call JOIN call_context ON call_context.id = call.context
            WHERE job IN (SELECT value FROM json_each(?))"""
        found = {job: ClaimedCall(*others) for job, *others in cx.execute(sql, (id_list(jobs),))}
    if children:
        sql = """SELECT dependency.child, call.job, job.job_id, job.workdir, call.result FROM json_each(?) AS given
            CROSS JOIN dependency ON dependency.child = given.value
            JOIN call ON call.job = dependency.parent JOIN job ON job.id = call.job"""
        for child, *parent in cx.execute(sql, (id_list(children),)):
            before = found.get(child, ClaimedCall())
            found[child] = before._replace(parents=(*before.parents, ParentCall(*parent)))
    return found


def added_to(cx: sqlite3.Connection, to_run: list[Any]) -> list[Any]:
    """Return claims (`claims.Claim`) of jobs that are to run, with the calls of executors among them."""
    jobs = [claim.job for claim in to_run if CALL_MARK in (claim.executable or "")]
    children = [claim.job for claim in to_run if claim.parents != "[]"]
    found = read(cx, jobs, children) if jobs or children else {}
    return [claim._replace(call=found.get(claim.job)) for claim in to_run] if found else to_run


def store_results(cx: sqlite3.Connection, results: Iterable[tuple[Result | None, int]]) -> None:
    """Store what the last attempts of calls have returned or raised; b"": nothing. None: that is no call."""
    given = [(result or None, job) for result, job in results if result is not None]
    if given:
        cx.executemany("UPDATE call SET result = ? WHERE job = ?", given)


def results(cx: sqlite3.Connection, jobs: Collection[int]) -> dict[int, Any]:
    """Return the results of these calls, by job; None where a call has none."""
    sql = "SELECT job, result FROM call WHERE job IN (SELECT value FROM json_each(?))"
    return dict(cx.execute(sql, (id_list(jobs),)))
