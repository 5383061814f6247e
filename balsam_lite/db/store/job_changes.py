"""Change jobs for a user inside the caller's write transaction: state, fields, kill, rerun, delete.

`ACTIONS` are called by `user_actions` for few jobs, in the one transaction of the change, and by `pieces` for each part of a
large write. An action gets the number of that write, which is 0 where there is none.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...core import causes, field_specs, states
from ...core.clock import SystemClock
from ...core.errors import LostLease, ParentInUse, StateError
from ..engine.schema import LARGE_WRITE_HOLD, sql_list
from ..query.edits import OF_STATE
from . import actions, claims, counters, exit_rules, graph, large_writes, remote_parents, tags, trash
from .transitions import Transition, apply, id_list

#: States from which a job will run, now or later.
_RUNS_AGAIN = (*states.UNPREPARED_STATES, states.AWAITING_PARENTS, *states.RUNNABLE_STATES)


#: Columns that a new start resets. A job that waits for the end of a large write goes on waiting.
_RESET = (
    "restarts = 0, retries = 0, launcher_deaths = 0, "
    f"start_after = CASE WHEN start_after >= {LARGE_WRITE_HOLD} THEN start_after END"
)


class Hook(NamedTuple):
    """The pre- or postprocess script that this process belongs to. A launcher holds the job while the script runs."""

    kind: str  # preprocess or postprocess
    job_id: str
    job: int
    lease: int
    attempt: int


class Annotation(NamedTuple):
    """The message, data and time that a user attaches to a change of state."""

    message: str = ""
    by: str = ""  # text in the history if there is no message and no script to name
    data: str | None = None  # JSON; see `transitions.with_payload`
    time_us: int | None = None  # None: now


def held_error(state: str, lease: int | None, job_id: str, name: str) -> StateError:
    return StateError(
        f"Job {name} [{job_id[:8]}] is {state} and held by launcher {lease}; its state cannot be changed now.",
        hint="`balsam killjob` stops it; wait until it has ended to do anything else with it.",
    )


def set_state(
    cx: sqlite3.Connection, ids: Sequence[int], state: str, annotation: Annotation, hook: Hook | None, action: int
) -> int:
    now = SystemClock.now_us()
    when = now if annotation.time_us is None else annotation.time_us
    query = f"""SELECT id, state, lease, attempt, job_id, name, {", ".join(OF_STATE)}
        FROM job WHERE id IN (SELECT value FROM json_each(?))"""
    rows = cx.execute(query, (id_list(ids),)).fetchall()
    own = [row for row in rows if hook and row[0] == hook.job and row[4] == hook.job_id]
    others = [row for row in rows if row not in own] if own else rows
    for _, old, lease, _, job_id, name, *_ in others:
        if lease is not None or old == states.RUNNING:
            raise held_error(old, lease, job_id, name)
    moves = [
        Transition(
            row[0], (row[1], state), when, (annotation.message or annotation.by,), (annotation.data,), causes.SET_BY_USER
        )
        for row in others
        if row[1] != state
    ]
    actions.note_states(cx, action, [(row[0], row[3], *row[6:]) for row in others if row[1] != state], state)
    apply(cx, moves, states.USER, _RESET if state not in states.END_STATES else "")
    changed = [m.job for m in moves]
    graph.reconsider_children(cx, changed, now)
    graph.settle(cx, changed, now)
    return len(moves) + sum(_set_own_state(cx, row, state, annotation, hook, when) for row in own if hook)


def _set_own_state(cx: sqlite3.Connection, row: Sequence[Any], state: str, annotation: Annotation, hook: Hook, now: int) -> int:
    """Set the state of a script's own job, which stays held.

    The launcher releases the job when the script has ended, and only then propagates its end, in any state, to its children.

    To keep scripts from repeating a job for ever, each return to an earlier state counts as a restart. A job can enter each
    handler's state only once between runs, since no run is needed to go from one handler to another.
    """
    job, old, lease, attempt, job_id, name = row[:6]
    if (lease, attempt) != (hook.lease, hook.attempt):
        raise LostLease(f"This {hook.kind} script belongs to an attempt of job {name} [{job_id[:8]}] that was given up.")
    if old == state:
        return 0
    if state not in states.targets(old, states.HOOK):
        raise StateError(f"Job {name} [{job_id[:8]}] is {old}; its {hook.kind} script cannot make it {state}.")
    message = annotation.message or f"Set by the {hook.kind} script"
    cause = f"set by the {hook.kind} script"
    moves, column = [Transition(job, (old, state), now, (message,), (annotation.data,), cause)], ""
    if _goes_back(old, state):
        (facts,) = claims.facts_of(cx, "job.id = ?", (job,))
        outcome = exit_rules.restart(facts, (old,))
        column = f"restarts = {outcome.restarts:d}"
        if outcome.path[-1] == states.FAILED:
            state, data = states.FAILED, (annotation.data,)
            moves = [Transition(job, outcome.path, now, outcome.messages, data, outcome.cause)]
    elif state in states.UNSETTLED_STATES and _was_handled(cx, job, state):
        reason = f"The job was {state} already since it was last to run; the {hook.kind} script made it so again"
        state, path = states.FAILED, (old, states.FAILED)
        moves = [Transition(job, path, now, (reason,), (annotation.data,), causes.REPEATED)]
    apply(cx, moves, states.HOOK, column)
    return 1


def _goes_back(old: str, state: str) -> bool:
    """Return whether the change takes a job back on its path to a run; RESTART_READY always does."""
    is_before = states.STATES.index(state) < states.STATES.index(old)
    return state == states.RESTART_READY or (state in _RUNS_AGAIN and is_before)


def _was_handled(cx: sqlite3.Connection, job: int, state: str) -> bool:
    """Return whether the job has been in that state since it was last put in line to run."""
    for (past,) in cx.execute("SELECT to_state FROM event WHERE job = ? ORDER BY id DESC", (job,)):
        if past == state:
            return True
        if past == states.RUNNING or past in _RUNS_AGAIN:
            break
    return False


def kill(
    cx: sqlite3.Connection, jobs: Sequence[int], message: str, data: str | None, when: int, action: int
) -> tuple[int, list[int]]:
    """Make those jobs USER_KILLED that have not ended. Return their number, and those of them that no launcher holds."""
    rows = cx.execute(
        f"""SELECT id, state, lease, attempt FROM job WHERE id IN (SELECT value FROM json_each(?))
            AND state NOT IN ({sql_list(states.END_STATES)})""",
        (id_list(jobs),),
    ).fetchall()
    moves = [Transition(job, (state, states.USER_KILLED), when, (message,), (data,)) for job, state, _, _ in rows]
    actions.note_states(cx, action, [(job, attempt, state) for job, state, _, attempt in rows], states.USER_KILLED)
    apply(cx, moves, states.USER)
    return len(moves), [job for job, _, lease, _ in rows if lease is None]


def update(
    cx: sqlite3.Connection, stored: Mapping[str, Any], jobs: Sequence[int], action: int, before: Mapping[str, str] = {}
) -> int:
    """Set these columns of the jobs, and return the number of jobs.

    `before` has the dicts, as JSON text, from which a user made those in `stored`: changes by others since then are kept.
    """
    if before:
        return sum(update(cx, {**stored, **merged}, some, action) for merged, some in _merged(cx, stored, jobs, before))
    listed = id_list(jobs)
    actions.note_fields(cx, action, stored, listed)
    changes = ", ".join(f"{column} = ?" for column in stored)
    sql = f"UPDATE job SET {changes} WHERE id IN (SELECT value FROM json_each(?))"
    if "tags" in stored:
        tags.remove(cx, "job.id IN (SELECT value FROM json_each(?))", (listed,))
        known = cx.execute("SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))", (listed,)).fetchall()
        tags.Tagger(cx).add((number, stored["tags"]) for (number,) in known)
    if "workflow" in stored:
        before_it = counters.counts_of(cx, "SELECT value FROM json_each(?)", (listed,))
        moved = Counter({(stored["workflow"], state): 0 for _, state in before_it})
        for (_, state), number in before_it.items():
            moved[stored["workflow"], state] += number
        moved.subtract(before_it)
        counters.count(cx, moved)
    changed = cx.execute(sql, (*stored.values(), listed)).rowcount
    if not stored.keys().isdisjoint(("run_when", "wait_for_parents")):
        graph.recount(cx, jobs)
        graph.settle(cx, jobs, SystemClock.now_us())
    return changed


def _merged(
    cx: sqlite3.Connection, stored: Mapping[str, Any], jobs: Sequence[int], before: Mapping[str, str]
) -> list[tuple[dict[str, Any], list[int]]]:
    """Return the merged dicts in stored form, and the jobs to which they belong."""
    sql = f"SELECT {', '.join(before)}, id FROM job WHERE id IN (SELECT value FROM json_each(?))"
    groups: dict[tuple[str, ...], list[int]] = {}
    for *present, number in cx.execute(sql, (id_list(jobs),)):
        groups.setdefault(tuple(present), []).append(number)
    found = []
    for texts, numbers in groups.items():
        merged = {name: field_specs.merge_texts(before[name], stored[name], text) for name, text in zip(before, texts)}
        found.append((field_specs.check_job(merged), numbers))
    return found


def free_of(cx: sqlite3.Connection, jobs: Sequence[int]) -> list[int]:
    query = f"SELECT id FROM job WHERE {_FREE} AND id IN (SELECT value FROM json_each(?))"
    return [row[0] for row in cx.execute(query, (id_list(jobs),))]


_FREE = f"lease IS NULL AND state <> '{states.RUNNING}'"


def put_back(cx: sqlite3.Connection, jobs: Sequence[int], target: str | None, action: int) -> None:
    """Put jobs back, starting with those that have run: this revives children that failed only because of them."""
    chosen = {states.RESTART_READY: "attempt > 0", states.CREATED: f"attempt = 0 AND state <> '{states.AWAITING_PARENTS}'"}
    for state, condition in chosen.items() if target is None else ((target, "1"),):
        query = f"SELECT id FROM job WHERE {condition} AND id IN (SELECT value FROM json_each(?))"
        chosen_jobs = [row[0] for row in cx.execute(query, (id_list(jobs),))]
        set_state(cx, chosen_jobs, state, Annotation("Put back by balsam rerun"), None, action)


def doom(cx: sqlite3.Connection, jobs: Sequence[int]) -> None:
    """Record the jobs to be deleted in a temporary table of this connection."""
    cx.execute("CREATE TEMP TABLE IF NOT EXISTS doomed (id INTEGER PRIMARY KEY)")
    cx.execute("DELETE FROM doomed")
    cx.execute("INSERT OR IGNORE INTO doomed SELECT value FROM json_each(?)", (id_list(jobs),))


def delete(cx: sqlite3.Connection, jobs: Sequence[int], force: bool, action: int, is_kept: bool) -> int:
    doom(cx, jobs)
    if not force:
        refuse_in_use(cx)
    if is_kept:
        trash.keep(cx, action, [row[0] for row in cx.execute("SELECT id FROM doomed WHERE id IN (SELECT id FROM job)")])
    _leave_children(cx)
    gone = counters.uncount(cx, "SELECT id FROM doomed")
    tags.remove(cx, "job.id IN (SELECT id FROM doomed)")
    trash.delete_rows(cx, "SELECT id FROM doomed")
    cx.execute("DELETE FROM job WHERE id IN (SELECT id FROM doomed)")
    actions.count(cx, action, gone)
    return gone


_FORCE = "Use --force to remove it all the same; for those jobs it has then failed."


def refuse_in_use(cx: sqlite3.Connection) -> None:
    """Raise ParentInUse if other jobs wait for the jobs to be deleted."""
    waiting = cx.execute(
        f"""SELECT child.job_id, child.name, count(*) OVER () FROM dependency
            JOIN job AS child ON child.id = dependency.child
            WHERE dependency.parent IN (SELECT id FROM doomed) AND child.id NOT IN (SELECT id FROM doomed)
                AND child.state = '{states.AWAITING_PARENTS}' LIMIT 1"""
    ).fetchone()
    if waiting:
        raise ParentInUse(
            f"{waiting[2]} job(s) wait for what is to be removed, for example {waiting[1]} [{waiting[0][:8]}].",
            hint=_FORCE,
        )
    site = remote_parents.waiting_site(cx, "SELECT id FROM doomed")
    if site:
        raise ParentInUse(f"Jobs of the site {site} wait for what is to be removed.", hint=_FORCE)


def _leave_children(cx: sqlite3.Connection) -> None:
    """Remove the edges of the jobs to be deleted, and fail or release their remaining children."""
    children = "SELECT DISTINCT child FROM dependency WHERE parent IN (SELECT id FROM doomed)"
    _leave(cx, [row[0] for row in cx.execute(f"{children} AND child NOT IN (SELECT id FROM doomed)")])
    cx.execute("DELETE FROM dependency WHERE parent IN (SELECT id FROM doomed) OR child IN (SELECT id FROM doomed)")


def _leave(cx: sqlite3.Connection, stay: Sequence[int]) -> None:
    """Remove the edges from deleted parents to these children, which fail or go on: a removed parent counts as failed."""
    if not stay:
        return
    now = SystemClock.now_us()
    others = "SELECT 1 FROM dependency d WHERE d.child = child.id AND d.parent NOT IN (SELECT id FROM doomed)"
    failed = cx.execute(
        f"""SELECT child.id, min(dependency.parent) FROM json_each(?) AS one CROSS JOIN job AS child ON child.id = one.value
            CROSS JOIN dependency ON dependency.child = child.id
            WHERE dependency.parent IN (SELECT id FROM doomed)
                AND child.state = '{states.AWAITING_PARENTS}' AND (child.run_when = 'all_finished'
                    OR child.run_when = 'any_finished' AND NOT EXISTS ({others})) GROUP BY child.id""",
        (id_list(stay),),
    ).fetchall()
    graph.fail(cx, failed, now, graph.PARENT_REMOVED)
    edges = "child IN (SELECT value FROM json_each(?)) AND parent IN (SELECT id FROM doomed)"
    cx.execute(f"DELETE FROM dependency WHERE {edges}", (id_list(stay),))
    graph.recount(cx, stay)
    graph.settle(cx, stay, now)


def hold(cx: sqlite3.Connection, number: int, jobs: Sequence[int]) -> None:
    """Keep launchers from taking these jobs before the end of that write. They have no holder and enter startable states."""
    if not number:
        return
    sql = "UPDATE job NOT INDEXED SET start_after = ? WHERE id IN (SELECT value FROM json_each(?))"
    cx.execute(sql, (large_writes.held_until(number), id_list(jobs)))


def _set_state_of_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    annotation = Annotation(*parameters["said"])
    action = parameters["by"]
    if not number:
        return Counter(changed=set_state(cx, jobs, parameters["state"], annotation, parameters["hook"], action))
    free = free_of(cx, jobs)
    if parameters["state"] not in states.END_STATES:
        hold(cx, number, free)
    return Counter(changed=set_state(cx, free, parameters["state"], annotation, None, action))


def _rerun_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    free = free_of(cx, jobs)
    hold(cx, number, free)
    if parameters["stored"]:
        update(cx, parameters["stored"], free, parameters["by"])
    put_back(cx, free, parameters["target"], parameters["by"])
    return Counter(jobs=len(free), held=len(jobs) - len(free))


def _kill_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    """Kill these jobs, and update children only when all are killed: else children that are to be killed, too, would fail."""
    message, data, when = parameters["said"]
    killed, free = kill(cx, jobs, message, data, when, parameters["by"])
    if number:
        large_writes.add(cx, number, large_writes.Part("tell_children", {}, free))
    else:
        graph.reconsider_children(cx, free, SystemClock.now_us())
    return Counter(killed=killed, running=killed - len(free))


def _propagate(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    graph.reconsider_children(cx, jobs, SystemClock.now_us())
    return Counter()


def _reconsider(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    graph.reconsider(cx, jobs, SystemClock.now_us())
    return Counter()


def _update_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    return Counter(fields=update(cx, parameters["stored"], jobs, parameters["by"], parameters["before"]))


def _leave_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    doom(cx, [parameters["parent"]])
    if parameters["is_kept"]:
        trash.keep_edges(cx, parameters["by"], parameters["parent"], jobs)
    _leave(cx, jobs)
    return Counter()


def _delete_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    force = number > 0 or parameters["force"]
    return Counter(removed=delete(cx, jobs, force, parameters["by"], parameters["is_kept"]))


#: By the name of the action; its parameter `by` is the number of the user's action that it is a part of.
ACTIONS: dict[str, large_writes.Action] = {
    "set_state": _set_state_of_part,
    "rerun": _rerun_part,
    "kill": _kill_part,
    "tell_children": _propagate,
    large_writes.CHILDREN: _reconsider,
    "fields": _update_part,
    "leave_children": _leave_part,
    "delete": _delete_part,
}
