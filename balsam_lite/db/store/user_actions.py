"""What the user does to jobs: set their state, kill, edit, delete. Every function opens its own write transactions.

Jobs are named by their integer ids. A few thousand are changed by one transaction, which may be one that is open already; more
of them, unless one is open, by many short ones (see `pieces`): what is wrong with any of them is raised before the first.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import field_specs, states
from ...core.clock import SystemClock
from ...core.errors import InvalidSpec, LostLease, ParentInUse, StateError
from .. import collected
from ..engine.binding import id_of
from ..engine.connection import Database
from ..engine.schema import LARGE_WRITE_HOLD, PAYLOAD, sql_list
from . import claims, exit_rules, graph, pieces, tags
from .transitions import Transition, apply, count, id_list, with_payload

USER_CHANGED = "User mutated state from command line"

#: From these a job comes to run, if only later.
_RUNS_AGAIN = (*states.UNPREPARED_STATES, states.AWAITING_PARENTS, *states.RUNNABLE_STATES)
_PIECE = 10_000


def _pieces(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(ids), _PIECE):
        yield ids[start : start + _PIECE]


def _is_large(db: Database, jobs: int) -> bool:
    """Return whether to change that number of jobs in pieces."""
    return jobs > pieces.FEW and not db.is_in_transaction


#: What a new start resets. A job that waits for the end of a large write goes on waiting.
_ANEW = (
    "restarts = 0, retries = 0, launcher_deaths = 0, "
    f"start_after = CASE WHEN start_after >= {LARGE_WRITE_HOLD} THEN start_after END"
)


class Hook(NamedTuple):
    """The pre- or postprocess script that this process belongs to. A launcher holds the job for as long as it runs."""

    kind: str  # preprocess or postprocess
    job_id: str
    job: int
    lease: int
    attempt: int


def own_hook(db: Database, environ: Mapping[str, str] = os.environ) -> Hook | None:
    """What the environment says about the script that calls; None outside of any, and in one of another DB's job."""
    from ...core.process_table import HOOK_VARIABLE, RUN_VARIABLE  # here, not above: most commands change no state

    kind = environ.get(HOOK_VARIABLE, "")
    db_id, *numbers = environ.get(RUN_VARIABLE, "").rsplit(":", 3)
    if not kind or len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
        return None
    with db.read() as cx:
        if db_id != id_of(cx):
            return None
    lease, job, attempt = map(int, numbers)
    return Hook(kind, environ.get("BALSAM_JOB_ID", ""), job, lease, attempt)


class Annotation(NamedTuple):
    """What a user says with a change of state."""

    message: str = ""
    by: str = ""  # what the history says where there is no message, and no script that would be named
    data: str | None = None  # JSON; see `transitions.with_payload`
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
    progress: pieces.Progress | None = None,
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
    collected.refuse("Changing the state of jobs")
    states.check_state(state)
    if state == states.USER_KILLED:
        return kill(db, ids, message=message or by, data=data, time_us=time_us, progress=progress).killed
    _refuse_running(state)
    hook, annotation = own_hook(db), Annotation(message, by, with_payload(data), time_us)
    jobs = list(ids)
    if _is_large(db, len(jobs)):
        return pieces.run(db, [_state_part(jobs, state, annotation)], lambda cx: _refuse_held(cx, jobs), progress)["changed"]
    with pieces.few(db, jobs) as cx:
        return sum(_set_state(cx, piece, state, annotation, hook) for piece in _pieces(jobs))


def _refuse_running(state: str) -> None:
    if state == states.RUNNING:
        raise StateError("Only a launcher makes a job RUNNING.", hint="Set RESTART_READY to let one run it.")


def _state_part(jobs: Iterable[int], state: str, annotation: Annotation) -> pieces.Part:
    if state == states.USER_KILLED:
        when = SystemClock.now_us() if annotation.time_us is None else annotation.time_us
        return pieces.Part("kill", {"said": (annotation.message or annotation.by, annotation.data, when)}, sorted(jobs))
    return pieces.Part("set_state", {"state": state, "said": annotation}, sorted(jobs))


def _refuse_held(cx: sqlite3.Connection, jobs: Iterable[int]) -> None:
    """Raise StateError if one of very many jobs is RUNNING or held by a launcher. Takes time linear in those that are."""
    wanted = set(jobs)
    query = "SELECT id, state, lease, job_id, name FROM job INDEXED BY {} WHERE {}"
    held = cx.execute(query.format("job_lease", "lease IS NOT NULL")).fetchall()
    held += cx.execute(query.format("job_state", f"state = '{states.RUNNING}'")).fetchall()
    for job, state, lease, job_id, name in held:
        if job in wanted:
            raise _held_error(state, lease, job_id, name)


def _held_error(state: str, lease: int | None, job_id: str, name: str) -> StateError:
    return StateError(
        f"Job {name} [{job_id[:8]}] is {state} and held by launcher {lease}; its state cannot be changed now.",
        hint="`balsam killjob` stops it; wait until it has ended to do anything else with it.",
    )


def _set_state(cx: sqlite3.Connection, ids: Sequence[int], state: str, annotation: Annotation, hook: Hook | None) -> int:
    now = SystemClock.now_us()
    when = now if annotation.time_us is None else annotation.time_us
    query = "SELECT id, state, lease, attempt, job_id, name FROM job WHERE id IN (SELECT value FROM json_each(?))"
    rows = cx.execute(query, (id_list(ids),)).fetchall()
    own = [row for row in rows if hook and row[0] == hook.job and row[4] == hook.job_id]
    others = [row for row in rows if row not in own] if own else rows
    for _, old, lease, _, job_id, name in others:
        if lease is not None or old == states.RUNNING:
            raise _held_error(old, lease, job_id, name)
    moves = [
        Transition(row[0], (row[1], state), when, (annotation.message or annotation.by,), (annotation.data,))
        for row in others
        if row[1] != state
    ]
    apply(cx, moves, states.USER, _ANEW if state not in states.END_STATES else "")
    changed = [m.job for m in moves]
    graph.reconsider_children(cx, changed, now)
    graph.settle(cx, changed, now)
    return len(moves) + sum(_set_own_state(cx, row, state, annotation, hook, when) for row in own if hook)


def _set_own_state(cx: sqlite3.Connection, row: Sequence[Any], state: str, annotation: Annotation, hook: Hook, now: int) -> int:
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
    message = annotation.message or f"Set by the {hook.kind} script"
    moves, column = [Transition(job, (old, state), now, (message,), (annotation.data,))], ""
    if _goes_back(old, state):
        (facts,) = claims.facts_of(cx, "job.id = ?", (job,))
        outcome = exit_rules.restart(facts, (old,))
        column = f"restarts = {outcome.restarts:d}"
        if outcome.path[-1] == states.FAILED:
            state, moves = states.FAILED, [Transition(job, outcome.path, now, outcome.messages, (annotation.data,))]
    elif state in states.UNSETTLED_STATES and _was_handled(cx, job, state):
        reason = f"The job was {state} already since it was last to run; the {hook.kind} script made it so once more"
        state, moves = states.FAILED, [Transition(job, (old, states.FAILED), now, (reason,), (annotation.data,))]
    apply(cx, moves, states.HOOK, column)
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
    progress: pieces.Progress | None = None,
) -> Killed:
    """Make jobs USER_KILLED, with `recursive` all jobs below them too; jobs in an end state stay as they are.

    The launcher that runs one stops its processes and releases it. Children that waited for a killed job become FAILED; those
    of a job that a launcher holds, when it is released.
    """
    collected.refuse("Killing jobs")
    jobs = list(ids)
    now = SystemClock.now_us()
    annotation = (message, with_payload(data), now if time_us is None else time_us)
    below: list[int] = []
    if recursive and not db.is_in_transaction:
        with db.read() as cx:
            below = graph.descendants(cx, jobs)
    if _is_large(db, len(jobs) + len(below)):
        listed = sorted({*jobs, *below})
        counted = pieces.run(db, [pieces.Part("kill", {"said": annotation}, listed)], lambda cx: None, progress)
        return Killed(counted["killed"], counted["running"])
    with pieces.few(db) as cx:
        if recursive:
            jobs = list(dict.fromkeys([*jobs, *graph.descendants(cx, jobs)]))
        pieces.finish_first(cx, jobs)
        killed, free = _kill(cx, jobs, *annotation)
        graph.reconsider_children(cx, free, now)
        return Killed(killed, killed - len(free))


def _kill(cx: sqlite3.Connection, jobs: Sequence[int], message: str, data: str | None, when: int) -> tuple[int, list[int]]:
    """Make those USER_KILLED that have not ended. Return how many those were, and which of them no launcher holds."""
    moves: list[Transition] = []
    free: list[int] = []
    for piece in _pieces(jobs):
        rows = cx.execute(
            f"""SELECT id, state, lease FROM job WHERE id IN (SELECT value FROM json_each(?))
                AND state NOT IN ({sql_list(states.END_STATES)})""",
            (id_list(piece),),
        ).fetchall()
        moves += [Transition(job, (state, states.USER_KILLED), when, (message,), (data,)) for job, state, _ in rows]
        free += [job for job, _, lease in rows if lease is None]
    apply(cx, moves, states.USER)
    return len(moves), free


# --- edit -------------------------------------------------------------------------------------------------------------


def update_fields(
    db: Database,
    ids: Iterable[int],
    values: Mapping[str, Any],
    *,
    workdir: str | None = None,
    progress: pieces.Progress | None = None,
) -> int:
    """Set fields other than the state, in all jobs alike. Returns how many jobs there were.

    A running job takes note at its next attempt. The working directory of a job stays where it is when its name or its
    workflow changes; `workdir` (below `data/`) says where it is from now on.

    Raises:
        UnknownField, UnknownApp; InvalidSpec, for a workdir that is another job's too: nothing is changed.
    """
    collected.refuse("Changing jobs")
    stored, jobs = _stored(values, workdir), list(ids)
    if _is_large(db, len(jobs)):
        change(db, [Change(jobs, values, workdir=workdir)], progress)
        return len(jobs)
    with pieces.few(db, jobs) as cx:
        _check_app(cx, stored)
        if workdir is not None:
            _refuse_shared(cx, jobs, stored["workdir"])
        return sum(_update(cx, stored, piece) for piece in _pieces(jobs))


class Change(NamedTuple):
    """What is to become of some jobs."""

    jobs: Sequence[int]
    fields: Mapping[str, Any] = {}
    state: str | None = None
    annotation: Annotation = Annotation()  # of the state
    workdir: str | None = None


def change(db: Database, changes: Sequence[Change], progress: pieces.Progress | None = None) -> None:
    """Make changes of fields and states, as `update_fields` and `set_state` do: all or nothing."""
    total = sum(len(one.jobs) for one in changes)
    if not _is_large(db, total):
        with pieces.few(db, (job for one in changes for job in one.jobs)):
            for one in changes:
                if one.fields or one.workdir is not None or one.state is None:
                    update_fields(db, one.jobs, one.fields, workdir=one.workdir)
                if one.state is not None:
                    _set_state_of(db, one)
        return
    collected.refuse("Changing many jobs")
    parts: list[pieces.Part] = []
    applications: set[str] = set()
    freed: list[int] = []  # that no launcher may hold
    for one in changes:
        if one.fields or one.workdir is not None or one.state is None:
            parts.append(pieces.Part("fields", {"stored": _stored(one.fields, one.workdir)}, sorted(one.jobs)))
            applications.add(parts[-1].parameters["stored"].get("application", ""))
        if one.state is not None:
            states.check_state(one.state)
            _refuse_running(one.state)
            parts.append(_state_part(one.jobs, one.state, one.annotation))
            freed += one.jobs if one.state != states.USER_KILLED else ()

    def check(cx: sqlite3.Connection) -> None:
        for name in applications:
            _check_app(cx, {"application": name})
        for one in changes:
            if one.workdir is not None:
                _refuse_shared(cx, one.jobs, one.workdir)
        if freed:
            _refuse_held(cx, freed)

    pieces.run(db, parts, check, progress)


def _set_state_of(db: Database, one: Change) -> None:
    assert one.state is not None
    annotation = one.annotation
    data = json.loads(annotation.data)[PAYLOAD] if annotation.data else {}
    set_state(db, one.jobs, one.state, annotation.message, by=annotation.by, data=data, time_us=annotation.time_us)


def _stored(values: Mapping[str, Any], workdir: str | None = None) -> dict[str, Any]:
    """Return the values as the columns hold them."""
    stored = field_specs.check_job(values)
    if workdir is not None:
        stored["workdir"] = field_specs.checked_workdir(workdir)
    if not stored:
        raise InvalidSpec("There is nothing to change.")
    if stored.get("user_workdir"):
        stored["workdir"] = os.path.abspath(stored["user_workdir"])
    return stored


def _check_app(cx: sqlite3.Connection, stored: Mapping[str, Any]) -> None:
    if stored.get("application"):
        from .insert import _check_apps

        _check_apps(cx, {stored["application"]})


def _refuse_shared(cx: sqlite3.Connection, ids: Sequence[int], workdir: str) -> None:
    """Raise InvalidSpec if that working directory would be that of several jobs. A job's present one is allowed."""
    from .insert import workdir_in_use

    if len(set(ids)) > 1:
        raise InvalidSpec(f"The workdir {workdir} would be that of {len(set(ids))} jobs; each needs a different one.")
    found = ids and workdir_in_use(cx, [workdir], but=ids[0])
    if found:
        raise InvalidSpec(found[1], hint="Choose another workdir, or wait until that job has ended.")


def _update(cx: sqlite3.Connection, stored: Mapping[str, Any], jobs: Sequence[int]) -> int:
    listed = id_list(jobs)
    changes = ", ".join(f"{column} = ?" for column in stored)
    sql = f"UPDATE job SET {changes} WHERE id IN (SELECT value FROM json_each(?))"
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


def rerun(
    db: Database,
    ids: Iterable[int],
    target: str | None = None,
    values: Mapping[str, Any] = {},
    below: Iterable[int] = (),
    progress: pieces.Progress | None = None,
) -> Rerun:
    """Put jobs back to be run again, with the fields in `values` changed, and those `below` them as they are.

    `target` is RESTART_READY or CREATED; None chooses the first for jobs that have run, the second for the others. Jobs
    that a launcher holds are left alone.

    Raises:
        UnknownField, InvalidSpec, UnknownApp: nothing is changed.
    """
    collected.refuse("Running jobs again")
    matching, others = list(ids), list(below)
    if _is_large(db, len(matching) + len(others)):
        return _rerun_in_pieces(db, matching, others, target, values, progress)
    with pieces.few(db, [*matching, *others]) as cx:
        free = _free(cx, matching)
        if values:
            update_fields(db, free, values)
        _put_back(cx, free, target)
        more = _free(cx, others)
        _put_back(cx, more, target)
        jobs = len(free) + len(more)
        return Rerun(jobs, len(matching) + len(others) - jobs)


def _rerun_in_pieces(
    db: Database,
    matching: Sequence[int],
    below: Sequence[int],
    target: str | None,
    values: Mapping[str, Any],
    progress: pieces.Progress | None,
) -> Rerun:
    parts = [pieces.Part("rerun", {"target": target, "stored": {}}, sorted(below))]
    parts.insert(0, pieces.Part("rerun", {"target": target, "stored": _stored(values) if values else {}}, sorted(matching)))
    counted = pieces.run(db, parts, lambda cx: _check_app(cx, parts[0].parameters["stored"]), progress)
    return Rerun(counted["jobs"], counted["held"])


def _free(cx: sqlite3.Connection, jobs: Sequence[int]) -> list[int]:
    free: list[int] = []
    for piece in _pieces(jobs):
        query = f"SELECT id FROM job WHERE {_FREE} AND id IN (SELECT value FROM json_each(?))"
        free += [row[0] for row in cx.execute(query, (id_list(piece),))]
    return free


_FREE = f"lease IS NULL AND state <> '{states.RUNNING}'"


def _put_back(cx: sqlite3.Connection, free: Sequence[int], target: str | None) -> None:
    for piece in _pieces(free):
        _put_piece_back(cx, piece, target)


def _put_piece_back(cx: sqlite3.Connection, jobs: Sequence[int], target: str | None) -> None:
    """What has run first: that revives children that failed only because of it, and they have nothing left to be done."""
    chosen = {states.RESTART_READY: "attempt > 0", states.CREATED: f"attempt = 0 AND state <> '{states.AWAITING_PARENTS}'"}
    for state, condition in chosen.items() if target is None else ((target, "1"),):
        query = f"SELECT id FROM job WHERE {condition} AND id IN (SELECT value FROM json_each(?))"
        _set_state(
            cx, [row[0] for row in cx.execute(query, (id_list(jobs),))], state, Annotation("Put back by balsam rerun"), None
        )


# --- delete -----------------------------------------------------------------------------------------------------------


def delete(db: Database, ids: Iterable[int], *, force: bool = False, progress: pieces.Progress | None = None) -> int:
    """Remove jobs with their history and dependencies; the working directories stay. Returns how many there were.

    A launcher that runs one of them stops it. With `force` a deleted job counts as failed for its waiting children.

    Raises:
        ParentInUse: other jobs wait for one of these, and `force` is not set; nothing is removed.
    """
    collected.refuse("Removing jobs")
    jobs, is_inside = list(ids), db.is_in_transaction
    if not _is_large(db, len(jobs)):
        with pieces.few(db, jobs) as cx:
            if is_inside or not _parents_of_many(cx, jobs):
                return _delete(cx, jobs, force)
    return _delete_in_pieces(db, jobs, force, progress)


def _delete_in_pieces(db: Database, jobs: Sequence[int], force: bool, progress: pieces.Progress | None) -> int:
    """Children go before their parents, as far as they are the younger ones: those need not be told then."""
    with db.read() as cx:
        if not force:
            _doom(cx, jobs)
            _refuse_in_use(cx)
        parts = [
            pieces.Part("leave_children", {"parent": parent}, graph.children_of(cx, [parent]))
            for parent in _parents_of_many(cx, jobs)
        ]
    parts.append(pieces.Part("delete", {}, sorted(jobs, reverse=True)))
    return pieces.run(db, parts, lambda cx: None, progress)["removed"]


def _parents_of_many(cx: sqlite3.Connection, jobs: Sequence[int]) -> list[int]:
    """Return those of these jobs that have more children than one transaction may change."""
    query = """SELECT parent FROM dependency WHERE parent IN (SELECT value FROM json_each(?))
        GROUP BY parent HAVING count(*) > ?"""
    return [row[0] for row in cx.execute(query, (id_list(jobs), pieces.FEW))]


def _doom(cx: sqlite3.Connection, jobs: Sequence[int]) -> None:
    """Note the jobs in a table of this connection."""
    cx.execute("CREATE TEMP TABLE IF NOT EXISTS doomed (id INTEGER PRIMARY KEY)")
    cx.execute("DELETE FROM doomed")
    for piece in _pieces(jobs):
        cx.execute("INSERT OR IGNORE INTO doomed SELECT value FROM json_each(?)", (id_list(piece),))


def _delete(cx: sqlite3.Connection, jobs: Sequence[int], force: bool) -> int:
    _doom(cx, jobs)
    if not force:
        _refuse_in_use(cx)
    _leave_children(cx)
    states_of_doomed = "SELECT state, count(*) FROM job WHERE id IN (SELECT id FROM doomed) GROUP BY state"
    gone: Counter[tuple[str | None, str | None]] = Counter()
    for state, number in cx.execute(states_of_doomed):
        gone[state, None] = number
    tags.remove(cx, "job.id IN (SELECT id FROM doomed)")
    cx.execute("DELETE FROM event WHERE job IN (SELECT id FROM doomed)")
    cx.execute("DELETE FROM job WHERE id IN (SELECT id FROM doomed)")
    count(cx, gone)
    return sum(gone.values())


def _refuse_in_use(cx: sqlite3.Connection) -> None:
    """Raise ParentInUse if jobs that stay wait for the doomed ones."""
    waiting = cx.execute(
        f"""SELECT child.job_id, child.name, count(*) OVER () FROM dependency
            JOIN job AS child ON child.id = dependency.child
            WHERE dependency.parent IN (SELECT id FROM doomed) AND child.id NOT IN (SELECT id FROM doomed)
                AND child.state = '{states.AWAITING_PARENTS}' LIMIT 1"""
    ).fetchone()
    if waiting:
        raise ParentInUse(
            f"{waiting[2]} job(s) wait for what is to be removed, for example {waiting[1]} [{waiting[0][:8]}].",
            hint="Use --force to remove it all the same; for those jobs it has then failed.",
        )


def _leave_children(cx: sqlite3.Connection) -> None:
    """Drop the edges of the doomed jobs, and fail or release children that stay."""
    children = "SELECT DISTINCT child FROM dependency WHERE parent IN (SELECT id FROM doomed)"
    _leave(cx, [row[0] for row in cx.execute(f"{children} AND child NOT IN (SELECT id FROM doomed)")])
    cx.execute("DELETE FROM dependency WHERE parent IN (SELECT id FROM doomed) OR child IN (SELECT id FROM doomed)")


def _leave(cx: sqlite3.Connection, stay: Sequence[int]) -> None:
    """Drop the edges from the doomed jobs to these children, which fail or go on: a removed parent has ended badly."""
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
    graph.fail(cx, failed, now, "A parent job was removed from the DB")
    edges = "child IN (SELECT value FROM json_each(?)) AND parent IN (SELECT id FROM doomed)"
    cx.execute(f"DELETE FROM dependency WHERE {edges}", (id_list(stay),))
    graph.recount(cx, stay)
    graph.settle(cx, stay, now)


# --- what large writes do -----------------------------------------------------------------------------------------------


def _hold(cx: sqlite3.Connection, number: int, jobs: Sequence[int]) -> None:
    """Let no launcher take these jobs before the end of that write. They are free and go where they could start."""
    sql = "UPDATE job NOT INDEXED SET start_after = ? WHERE id IN (SELECT value FROM json_each(?))"
    cx.execute(sql, (pieces.held_until(number), id_list(jobs)))


def _set_state_of_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    free = _free(cx, jobs)
    if parameters["state"] not in states.END_STATES:
        _hold(cx, number, free)
    return Counter(changed=_set_state(cx, free, parameters["state"], Annotation(*parameters["said"]), None))


def _rerun_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    free = _free(cx, jobs)
    _hold(cx, number, free)
    if parameters["stored"]:
        _update(cx, parameters["stored"], free)
    _put_back(cx, free, parameters["target"])
    return Counter(jobs=len(free), held=len(jobs) - len(free))


def _kill_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    """Children are told when all are killed: else those that are to be killed, too, would fail."""
    killed, free = _kill(cx, jobs, *parameters["said"])
    pieces.add(cx, number, pieces.Part("tell_children", {}, free))
    return Counter(killed=killed, running=killed - len(free))


def _propagate(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    graph.reconsider_children(cx, jobs, SystemClock.now_us())
    return Counter()


def _reconsider(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    graph.reconsider(cx, jobs, SystemClock.now_us())
    return Counter()


def _update_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    return Counter(changed=_update(cx, parameters["stored"], jobs))


def _leave_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    _doom(cx, [parameters["parent"]])
    _leave(cx, jobs)
    return Counter()


def _delete_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    return Counter(removed=_delete(cx, jobs, force=True))


ACTIONS: dict[str, pieces.Action] = {
    "set_state": _set_state_of_part,
    "rerun": _rerun_part,
    "kill": _kill_part,
    "tell_children": _propagate,
    pieces.CHILDREN: _reconsider,
    "fields": _update_part,
    "leave_children": _leave_part,
    "delete": _delete_part,
}
