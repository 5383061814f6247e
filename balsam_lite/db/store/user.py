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
from ...errors import InvalidSpec, LostLease, ParentInUse, StateError
from .. import transaction
from ..connection import Database
from ..schema import sql_list
from . import claims, graph, outcomes, tags
from .moves import Move, count, id_list, move, with_payload

USER_CHANGED = "User mutated state from command line"

#: From these a job comes to run, if only later.
_RUNS_AGAIN = (*states.UNPREPARED_STATES, states.AWAITING_PARENTS, *states.RUNNABLE_STATES)
_PIECE = 10_000


def _pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), _PIECE):
        yield ids[start : start + _PIECE]


class Hook(NamedTuple):
    """The pre- or postprocess script that this process belongs to. A launcher holds the job for as long as it runs."""

    kind: str  # preprocess or postprocess
    job_id: str
    job: int
    lease: int
    attempt: int


def own_hook(db: Database, environ: Mapping[str, str] = os.environ) -> Hook | None:
    """What the environment says about the script that calls; None outside of any, and in one of another DB's job."""
    from ...processes import HOOK_VARIABLE, RUN_VARIABLE  # here, not above: most commands change no state

    kind = environ.get(HOOK_VARIABLE, "")
    directory, *numbers = environ.get(RUN_VARIABLE, "").rsplit(":", 3)
    if not kind or len(numbers) != 3 or not all(map(str.isdecimal, numbers)) or directory != os.path.realpath(db.directory):
        return None
    lease, job, attempt = map(int, numbers)
    return Hook(kind, environ.get("BALSAM_JOB_ID", ""), job, lease, attempt)


class Said(NamedTuple):
    """What a user says with a change of state."""

    message: str = ""
    by: str = ""  # what the history says where there is no message, and no script that would be named
    data: str | None = None  # JSON; see `moves.with_payload`
    time_us: int | None = None  # None: now


def set_state(
    db: Database,
    ids: Iterable[int],
    state: str,
    message: str = "",
    *,
    by: str = "",
    data: Mapping[str, Any] = {},
    time_us: int | None = None,
) -> int:
    """Put jobs into `state` as the user's doing, children included that failed only because of them. Returns how many.

    Setting CREATED repeats everything, so such a job waits for its parents again. A new start has a new restart budget.
    A job's own script may set its state too, although a launcher holds it. What lets the job go again where it has been then
    counts as a restart; see `_set_own_state`. `by` is what the history says where there is no `message` and no script.
    `data` and `time_us` become those of the event; what follows for children happens now.

    Raises:
        InvalidStateError, InvalidSpec. StateError: a job is RUNNING or held by a launcher, or it was killed and its own
        script would revive it; LostLease: its own script is that of an attempt that was given up. None is changed then.
    """
    transaction.refuse("Changing the state of jobs")
    states.check_state(state)
    if state == states.USER_KILLED:
        return kill(db, ids, message=message or by, data=data, time_us=time_us).killed
    if state == states.RUNNING:
        raise StateError("Only a launcher makes a job RUNNING.", hint="Set RESTART_READY to let one run it.")
    hook, said = own_hook(db), Said(message, by, with_payload(data), time_us)
    with db.write() as cx:
        return sum(_set_state(cx, piece, state, said, hook) for piece in _pieces(list(ids)))


def _set_state(cx: sqlite3.Connection, ids: Sequence[int], state: str, said: Said, hook: Hook | None) -> int:
    now = SystemClock.now_us()
    when = now if said.time_us is None else said.time_us
    query = "SELECT id, state, lease, attempt, job_id, name FROM job WHERE id IN (SELECT value FROM json_each(?))"
    rows = cx.execute(query, (id_list(ids),)).fetchall()
    own = [row for row in rows if hook and row[0] == hook.job and row[4] == hook.job_id]
    others = [row for row in rows if row not in own] if own else rows
    for _, old, lease, _, job_id, name in others:
        if lease is not None or old == states.RUNNING:
            raise StateError(
                f"Job {name} [{job_id[:8]}] is {old} and held by launcher {lease}; its state cannot be changed now.",
                hint="`balsam killjob` stops it; wait until it has ended to do anything else with it.",
            )
    moves = [Move(row[0], (row[1], state), when, (said.message or said.by,), (said.data,)) for row in others if row[1] != state]
    move(cx, moves, states.USER, "restarts = 0, retries = 0, start_after = NULL" if state not in states.END_STATES else "")
    changed = [m.job for m in moves]
    graph.reconsider_children(cx, changed, now)
    graph.settle(cx, changed, now)
    return len(moves) + sum(_set_own_state(cx, row, state, said, hook, when) for row in own if hook)


def _set_own_state(cx: sqlite3.Connection, row: Sequence[Any], state: str, said: Said, hook: Hook, now: int) -> int:
    """Set the state of a script's own job, which stays held.

    The launcher releases it when the script has ended, and only then propagates its end to children, whatever state that is.

    Scripts must not keep a job going for ever: each return to an earlier state counts as a restart, and between handlers, which
    need no run for that, a job goes to each once.
    """
    job, old, lease, attempt, job_id, name = row
    if (lease, attempt) != (hook.lease, hook.attempt):
        raise LostLease(f"This {hook.kind} script belongs to an attempt of job {name} [{job_id[:8]}] that was given up.")
    if old == state:
        return 0
    if state not in states.targets(old, states.HOOK):
        raise StateError(f"Job {name} [{job_id[:8]}] is {old}; its {hook.kind} script cannot make it {state}.")
    message = said.message or f"Set by the {hook.kind} script"
    moves, column = [Move(job, (old, state), now, (message,), (said.data,))], ""
    if _goes_back(old, state):
        (facts,) = claims.facts_of(cx, "job.id = ?", (job,))
        outcome = outcomes.restart(facts, (old,))
        column = f"restarts = {outcome.restarts:d}"
        if outcome.path[-1] == states.FAILED:
            state, moves = states.FAILED, [Move(job, outcome.path, now, outcome.messages, (said.data,))]
    elif state in states.UNSETTLED_STATES and _was_handled(cx, job, state):
        reason = f"The job was {state} already since it was last to run; the {hook.kind} script made it so once more"
        state, moves = states.FAILED, [Move(job, (old, states.FAILED), now, (reason,), (said.data,))]
    move(cx, moves, states.HOOK, column)
    return 1


def _goes_back(old: str, state: str) -> bool:
    """Whether that takes a job back on its way to a run; RESTART_READY always does."""
    is_before = states.STATES.index(state) < states.STATES.index(old)
    return state == states.RESTART_READY or (state in _RUNS_AGAIN and is_before)


def _was_handled(cx: sqlite3.Connection, job: int, state: str) -> bool:
    """Whether the job has been in that state since it last was to run."""
    for (past,) in cx.execute("SELECT to_state FROM event WHERE job = ? ORDER BY id DESC", (job,)):
        if past == state:
            return True
        if past == states.RUNNING or past in _RUNS_AGAIN:
            break
    return False


# --- kill -------------------------------------------------------------------------------------------------------------


class Killed(NamedTuple):
    """What a kill did."""

    killed: int
    running: int  # of those, how many a launcher has yet to stop


def kill(
    db: Database,
    ids: Iterable[int],
    *,
    recursive: bool = False,
    message: str = "",
    data: Mapping[str, Any] = {},
    time_us: int | None = None,
) -> Killed:
    """Make jobs USER_KILLED, with `recursive` all jobs below them too; jobs in an end state stay as they are.

    The launcher that runs one stops its processes and releases it. Children that waited for a killed job become FAILED; those
    of a job that a launcher holds, when it is released.
    """
    transaction.refuse("Killing jobs")
    jobs = list(ids)
    now = SystemClock.now_us()
    when = now if time_us is None else time_us
    said = with_payload(data)
    moves: list[Move] = []
    free: list[int] = []
    with db.write() as cx:
        if recursive:
            jobs = list(dict.fromkeys([*jobs, *graph.descendants(cx, jobs)]))
        for piece in _pieces(jobs):
            rows = cx.execute(
                f"""SELECT id, state, lease FROM job WHERE id IN (SELECT value FROM json_each(?))
                    AND state NOT IN ({sql_list(states.END_STATES)})""",
                (id_list(piece),),
            ).fetchall()
            moves += [Move(job, (state, states.USER_KILLED), when, (message,), (said,)) for job, state, _ in rows]
            free += [job for job, _, lease in rows if lease is None]
        move(cx, moves, states.USER)
        graph.reconsider_children(cx, free, now)
    return Killed(len(moves), len(moves) - len(free))


# --- edit -------------------------------------------------------------------------------------------------------------


def update_fields(db: Database, ids: Iterable[int], values: Mapping[str, Any], *, workdir: str | None = None) -> int:
    """Set fields other than the state, in all jobs alike. Returns how many jobs there were.

    A running job takes note at its next attempt. The working directory of a job stays where it is when its name or its
    workflow changes; `workdir` (below `data/`) says where it is from now on.

    Raises:
        UnknownField, UnknownApp; InvalidSpec, for a workdir that is another job's too: nothing is changed.
    """
    transaction.refuse("Changing jobs")
    stored = spec.check_job(values)
    if workdir is not None:
        stored["workdir"] = spec.checked_workdir(workdir)
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
        if workdir is not None:
            ids = list(ids)
            _refuse_shared(cx, ids, stored["workdir"])
        return sum(_update(cx, sql, stored, piece) for piece in _pieces(list(ids)))


def _refuse_shared(cx: sqlite3.Connection, ids: Sequence[int], workdir: str) -> None:
    """Raise InvalidSpec if that working directory would be that of several jobs. A job's present one is allowed."""
    from .insert import workdir_in_use

    if len(set(ids)) > 1:
        raise InvalidSpec(f"The workdir {workdir} would be that of {len(set(ids))} jobs; each needs a different one.")
    found = ids and workdir_in_use(cx, [workdir], but=ids[0])
    if found:
        raise InvalidSpec(found[1], hint="Choose another workdir, or wait until that job has ended.")


def _update(cx: sqlite3.Connection, sql: str, stored: Mapping[str, Any], jobs: Sequence[int]) -> int:
    listed = id_list(jobs)
    if "tags" in stored:
        tags.remove(cx, "job.id IN (SELECT value FROM json_each(?))", (listed,))
        known = cx.execute("SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))", (listed,)).fetchall()
        tags.Tagger(cx).add((number, stored["tags"]) for (number,) in known)
    changed = cx.execute(sql, (*stored.values(), listed)).rowcount
    if not stored.keys().isdisjoint(("run_when", "wait_for_parents")):
        graph.recount(cx, jobs)
        graph.settle(cx, jobs, SystemClock.now_us())
    return changed


# --- rerun ------------------------------------------------------------------------------------------------------------


class Rerun(NamedTuple):
    """What putting jobs back did."""

    jobs: int
    held: int  # left alone, because a launcher has them


def rerun(db: Database, ids: Iterable[int], target: str | None = None, values: Mapping[str, Any] = {}) -> Rerun:
    """Put jobs back to be run once more, with the fields in `values` changed, in one transaction.

    `target` is RESTART_READY or CREATED; None chooses the first for jobs that have run, the second for the others. Jobs
    that a launcher holds are left alone.

    Raises:
        UnknownField, InvalidSpec, UnknownApp: nothing is changed.
    """
    transaction.refuse("Running jobs again")
    with db.write() as cx:
        free: list[int] = []
        asked = list(ids)
        for piece in _pieces(asked):
            query = f"SELECT id FROM job WHERE {_FREE} AND id IN (SELECT value FROM json_each(?))"
            free += [row[0] for row in cx.execute(query, (id_list(piece),))]
        if values:
            update_fields(db, free, values)
        for piece in _pieces(free):
            _put_back(cx, piece, target)
        return Rerun(len(free), len(asked) - len(free))


_FREE = f"lease IS NULL AND state <> '{states.RUNNING}'"


def _put_back(cx: sqlite3.Connection, jobs: Sequence[int], target: str | None) -> None:
    """What has run first: that revives children that failed only because of it, and they have nothing left to be done."""
    chosen = {states.RESTART_READY: "attempt > 0", states.CREATED: f"attempt = 0 AND state <> '{states.AWAITING_PARENTS}'"}
    for state, condition in chosen.items() if target is None else ((target, "1"),):
        query = f"SELECT id FROM job WHERE {condition} AND id IN (SELECT value FROM json_each(?))"
        _set_state(cx, [row[0] for row in cx.execute(query, (id_list(jobs),))], state, Said("Put back by balsam rerun"), None)


# --- delete -----------------------------------------------------------------------------------------------------------


def delete(db: Database, ids: Iterable[int], *, force: bool = False) -> int:
    """Remove jobs with their history and dependencies; the working directories stay. Returns how many there were.

    A launcher that runs one of them stops it. With `force` a deleted job counts as failed for its waiting children.

    Raises:
        ParentInUse: other jobs wait for one of these, and `force` is not set; nothing is removed.
    """
    transaction.refuse("Removing jobs")
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
        tags.remove(cx, "job.id IN (SELECT id FROM doomed)")
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
            hint="Use --force to remove it all the same; for those jobs it has then failed.",
        )
    orphans = "SELECT DISTINCT child FROM dependency WHERE parent IN (SELECT id FROM doomed)"
    children = [row[0] for row in cx.execute(orphans)]
    now = SystemClock.now_us()
    if waiting:  # a removed parent has ended badly
        others = "SELECT 1 FROM dependency d WHERE d.child = child.id AND d.parent NOT IN (SELECT id FROM doomed)"
        failed = cx.execute(
            f"""SELECT child.id, min(dependency.parent) FROM dependency JOIN job AS child ON child.id = dependency.child
                WHERE dependency.parent IN (SELECT id FROM doomed) AND child.id NOT IN (SELECT id FROM doomed)
                    AND child.state = '{states.AWAITING_PARENTS}' AND (child.run_when = 'all_finished'
                        OR child.run_when = 'any_finished' AND NOT EXISTS ({others})) GROUP BY child.id"""
        ).fetchall()
        graph.fail(cx, failed, now, "A parent job was removed from the DB")
    cx.execute("DELETE FROM dependency WHERE parent IN (SELECT id FROM doomed) OR child IN (SELECT id FROM doomed)")
    graph.recount(cx, children)
    graph.settle(cx, children, now)
