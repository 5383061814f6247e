"""What the user does to jobs: set their state, kill, edit, delete. Every function opens its own write transaction.

Jobs are named by their integer ids, of which there may be a million; they are handled in pieces of one transaction.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ... import spec, states
from ...clock import SystemClock
from ...errors import InvalidSpec, ParentInUse, StateError
from ..connection import Database
from ..schema import sql_list
from . import graph
from .moves import Move, count, id_list, move

USER_CHANGED = "User mutated state from command line"

_PIECE = 10_000


def _pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), _PIECE):
        yield ids[start : start + _PIECE]


def set_state(db: Database, ids: Iterable[int], state: str, message: str = "") -> int:
    """Put jobs into `state` as the user's doing, children included that failed only because of them. Returns how many.

    Setting CREATED repeats everything, so such a job waits for its parents again. A new start has a new restart budget.

    Raises:
        InvalidStateError. StateError: a job is RUNNING or held by a launcher; then none is changed.
    """
    states.check_state(state)
    if state == states.USER_KILLED:
        return kill(db, ids, message=message).killed
    if state == states.RUNNING:
        raise StateError("Only a launcher makes a job RUNNING.", hint="Set RESTART_READY to let one run it.")
    with db.write() as cx:
        return sum(_set_state(cx, piece, state, message) for piece in _pieces(list(ids)))


def _set_state(cx: sqlite3.Connection, ids: Sequence[int], state: str, message: str) -> int:
    now = SystemClock.now_us()
    rows = cx.execute(
        "SELECT id, state, lease, job_id, name FROM job WHERE id IN (SELECT value FROM json_each(?))", (id_list(ids),)
    ).fetchall()
    for _, old, lease, job_id, name in rows:
        if lease is not None or old == states.RUNNING:
            raise StateError(
                f"Job {name} [{job_id[:8]}] is {old} and held by launcher {lease}; its state cannot be changed now.",
                hint="`balsam killjob` stops it; wait until it has ended to do anything else with it.",
            )
    moves = [Move(job, (old, state), now, (message,)) for job, old, *_ in rows if old != state]
    move(cx, moves, states.USER, "restarts = 0" if state not in states.END_STATES else "")
    _tell_children(cx, moves, now)
    if state in (states.CREATED, states.AWAITING_PARENTS):
        graph.wait_for_parents(cx, [m.job for m in moves], now)
    return len(moves)


def _tell_children(cx: sqlite3.Connection, moves: Sequence[Move], now: int) -> None:
    if not moves:
        return
    target = moves[0].path[-1]
    jobs = [m.job for m in moves]
    was_finished = [m.job for m in moves if m.path[0] == states.JOB_FINISHED]
    was_lost = [m.job for m in moves if m.path[0] in (states.FAILED, states.USER_KILLED)]
    graph.parents_unfinished(cx, was_finished)
    if target not in (states.FAILED, states.USER_KILLED):
        graph.revive_children(cx, was_lost, now)
    if target == states.JOB_FINISHED:
        graph.parents_finished(cx, jobs, now)
    elif target in (states.FAILED, states.USER_KILLED):
        graph.parents_failed(cx, jobs, now)


# --- kill -------------------------------------------------------------------------------------------------------------


class Killed(NamedTuple):
    """What a kill did."""

    killed: int
    running: int  # of those, how many a launcher has yet to stop


def kill(db: Database, ids: Iterable[int], *, recursive: bool = False, message: str = "") -> Killed:
    """Make jobs USER_KILLED, with `recursive` all jobs below them too; jobs in an end state stay as they are.

    The launcher that runs one stops its processes and lets go of it. Children that waited for a killed job become FAILED.
    """
    jobs = list(ids)
    now = SystemClock.now_us()
    moves: list[Move] = []
    running = 0
    with db.write() as cx:
        if recursive:
            jobs = list(dict.fromkeys([*jobs, *graph.descendants(cx, jobs)]))
        for piece in _pieces(jobs):
            rows = cx.execute(
                f"""SELECT id, state, lease FROM job WHERE id IN (SELECT value FROM json_each(?))
                    AND state NOT IN ({sql_list(states.END_STATES)})""",
                (id_list(piece),),
            ).fetchall()
            moves += [Move(job, (state, states.USER_KILLED), now, (message,)) for job, state, _ in rows]
            running += sum(lease is not None for _, _, lease in rows)
        move(cx, moves, states.USER)
        graph.parents_failed(cx, [m.job for m in moves], now)
    return Killed(len(moves), running)


# --- edit -------------------------------------------------------------------------------------------------------------


def update_fields(db: Database, ids: Iterable[int], values: Mapping[str, Any]) -> int:
    """Set fields other than the state, in all jobs alike. Returns how many jobs there were.

    A running job takes note at its next attempt. The working directory of a job stays where it is when its name or its
    workflow changes.

    Raises:
        UnknownField, InvalidSpec, UnknownApp: nothing is changed.
    """
    stored = spec.check_job(values)
    if not stored:
        raise InvalidSpec("There is nothing to change.")
    if stored.get("user_workdir"):
        stored["workdir"] = os.path.abspath(stored["user_workdir"])
    changes = ", ".join(f"{column} = ?" for column in stored)
    sql = f"UPDATE job SET {changes} WHERE id IN (SELECT value FROM json_each(?))"
    with db.write() as cx:
        if stored.get("application"):
            from .insert import _check_apps

            _check_apps(cx, {stored["application"]})
        return sum(cx.execute(sql, (*stored.values(), id_list(piece))).rowcount for piece in _pieces(list(ids)))


# --- delete -----------------------------------------------------------------------------------------------------------


def delete(db: Database, ids: Iterable[int], *, force: bool = False) -> int:
    """Remove jobs with their history and dependencies; the working directories stay. Returns how many there were.

    A launcher that runs one of them stops it. With `force` waiting children of a deleted job become FAILED.

    Raises:
        ParentInUse: other jobs wait for one of these, and `force` is not set; nothing is removed.
    """
    pieces = list(_pieces(list(ids)))
    with db.write() as cx:
        cx.execute("CREATE TEMP TABLE IF NOT EXISTS doomed (id INTEGER PRIMARY KEY)")
        cx.execute("DELETE FROM doomed")
        for piece in pieces:
            cx.execute("INSERT OR IGNORE INTO doomed SELECT value FROM json_each(?)", (id_list(piece),))
        _leave_children(cx, force)
        states_of_doomed = "SELECT state, count(*) FROM job WHERE id IN (SELECT id FROM doomed) GROUP BY state"
        gone: Counter[tuple[str | None, str | None]] = Counter()
        for state, jobs in cx.execute(states_of_doomed):
            gone[state, None] = jobs
        cx.execute("DELETE FROM event WHERE job IN (SELECT id FROM doomed)")
        cx.execute("DELETE FROM job WHERE id IN (SELECT id FROM doomed)")
        count(cx, gone)
        return sum(gone.values())


def _leave_children(cx: sqlite3.Connection, force: bool) -> None:
    """Drop the edges of the doomed jobs and say what that means for the children that stay."""
    waiting = cx.execute(
        f"""SELECT child.job_id, child.name, count(*) OVER () FROM dependency
            JOIN job AS child ON child.id = dependency.child
            WHERE dependency.parent IN (SELECT id FROM doomed) AND child.id NOT IN (SELECT id FROM doomed)
                AND child.state = '{states.AWAITING_PARENTS}' LIMIT 1"""
    ).fetchone()
    if waiting and not force:
        raise ParentInUse(
            f"{waiting[2]} job(s) wait for what is to be removed, for example {waiting[1]} [{waiting[0][:8]}].",
            hint="Use --force to remove it all the same; those jobs become FAILED.",
        )
    orphans = "SELECT DISTINCT child FROM dependency WHERE parent IN (SELECT id FROM doomed)"
    children = [row[0] for row in cx.execute(orphans)]
    if waiting:
        doomed = [row[0] for row in cx.execute("SELECT id FROM doomed")]
        graph.parents_failed(cx, doomed, SystemClock.now_us(), "A parent job was removed from the DB")
    cx.execute("DELETE FROM dependency WHERE parent IN (SELECT id FROM doomed) OR child IN (SELECT id FROM doomed)")
    graph.recount(cx, children)
