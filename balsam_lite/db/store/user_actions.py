"""User actions on jobs: edit, set their state, kill, rerun, delete. Every function opens its own write transactions.

Jobs are given by their integer ids. Up to a few thousand change in one transaction, which joins an open one. More of them, if
none is open, change in many short transactions (see `pieces`): an error about any job is raised before the first.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import field_specs, states
from ...core.clock import SystemClock
from ...core.errors import InvalidSpec, StateError
from .. import collected
from ..engine.binding import id_of
from ..engine.connection import Database
from . import actions, graph, job_changes, large_writes, pieces, trash
from .large_writes import Part, Progress
from .transitions import id_list, with_payload

USER_CHANGED = "User mutated state from command line"


def _is_large(db: Database, jobs: int) -> bool:
    """Return whether to change that number of jobs in pieces."""
    return jobs > large_writes.MAX_DIRECT_JOBS and not db.is_in_transaction


def own_hook(db: Database, environ: Mapping[str, str] = os.environ) -> job_changes.Hook | None:
    """Return the calling script, from the environment; None outside of scripts, and in a script of another DB's job."""
    from ...core.process_table import HOOK_VARIABLE, RUN_VARIABLE  # here, not above: most commands change no state

    kind = environ.get(HOOK_VARIABLE, "")
    db_id, *numbers = environ.get(RUN_VARIABLE, "").rsplit(":", 3)
    if not kind or len(numbers) != 3 or not all(map(str.isdecimal, numbers)):
        return None
    with db.read() as cx:
        if db_id != id_of(cx):
            return None
    lease, job, attempt = map(int, numbers)
    return job_changes.Hook(kind, environ.get("BALSAM_JOB_ID", ""), job, lease, attempt)


def _carry_out(
    db: Database,
    kind: str,
    groups: Sequence[Sequence[Part]],
    progress: Progress | None = None,
    check: Callable[[sqlite3.Connection], None] = lambda cx: None,
) -> Counter[str]:
    """Apply these parts in one transaction if there are few jobs, else in pieces. Return their counts.

    Each group of parts is recorded as one action of this kind. Before the first part, in that transaction, call `check`,
    which may raise.
    """
    if _is_large(db, sum(len(part.jobs) for parts in groups for part in parts)):

        def begin(cx: sqlite3.Connection) -> list[int]:
            check(cx)
            begun = [(actions.begin(cx, kind), parts) for parts in groups]
            return [action for action, parts in begun for _ in parts]

        return pieces.run(db, [part for parts in groups for part in parts], begin, progress)
    counted: Counter[str] = Counter()
    with pieces.few(db, (job for parts in groups for part in parts for job in part.jobs)) as cx:
        check(cx)
        for parts in groups:
            action = actions.begin(cx, kind)
            for part in parts:
                parameters = {**part.parameters, "by": action}
                counted.update(pieces.ACTIONS[part.action](cx, 0, part.jobs, parameters))
            actions.end(cx, action)
    return counted


# --- edit -------------------------------------------------------------------------------------------------------------


class Change(NamedTuple):
    """New fields and a new state for some jobs."""

    jobs: Sequence[int]
    fields: Mapping[str, Any] = {}
    state: str | None = None
    annotation: job_changes.Annotation = job_changes.Annotation()  # of the state
    workdir: str | None = None
    before: Mapping[str, str] = {}  # dicts among the fields as the user has read them, in stored form


def change(db: Database, changes: Sequence[Change], progress: Progress | None = None) -> Counter[str]:
    """Change fields and states, as `update_fields` and `set_state` do: all or nothing. Return what was done, by kind."""
    collected.refuse("Changing jobs")
    groups: list[list[Part]] = []
    freed: list[int] = []  # that no launcher may hold
    for one in changes:
        parts: list[Part] = []
        groups.append(parts)
        if one.fields or one.workdir is not None or one.state is None:
            changed = {"stored": _stored(one.fields, one.workdir), "before": one.before}
            parts.append(Part("fields", changed, sorted(one.jobs)))
        if one.state is not None:
            parts.append(_state_part(db, one.jobs, one.state, one.annotation))
            freed += one.jobs if one.state != states.USER_KILLED else ()
    is_large = _is_large(db, sum(len(part.jobs) for parts in groups for part in parts))

    def check(cx: sqlite3.Connection) -> None:
        for part in (part for parts in groups for part in parts):
            _check_app(cx, part.parameters.get("stored", {}))
        for one in changes:
            if one.workdir is not None:
                _refuse_shared(cx, one.jobs, field_specs.checked_workdir(one.workdir))
        if freed and is_large:
            _refuse_held(cx, freed)

    return _carry_out(db, actions.MODIFY, groups, progress, check)


def update_fields(
    db: Database,
    ids: Iterable[int],
    values: Mapping[str, Any],
    *,
    workdir: str | None = None,
    before: Mapping[str, str] = {},
    progress: Progress | None = None,
) -> int:
    """Set fields other than the state to the same values in all jobs. Return the number of jobs.

    A running job uses the new values from its next attempt on. The working directory of a job stays where it is when its name
    or its workflow changes; `workdir` (below `data/`) sets a new one. Dicts are merged with changes since `before` (as JSON
    text); others replace what the jobs have.

    Raises:
        UnknownField, UnknownApp; InvalidSpec, for a workdir that is another job's too: nothing is changed.
    """
    return change(db, [Change(list(ids), values, workdir=workdir, before=before)], progress)["fields"]


def set_state(
    db: Database,
    ids: Iterable[int],
    state: str,
    message: str = "",
    *,
    by: str = "",
    data: Mapping[str, Any] = {},
    time_us: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Put jobs into `state` for the user, and revive children that failed only because of them. Return the number of jobs.

    Setting CREATED repeats everything, so such a job waits for its parents again. A new start has a new restart budget.
    A job's own script may set its state, too, although a launcher holds it; a return to an earlier state then counts as a
    restart, see `job_changes._set_own_state`. `by` is the text in the history if there is no `message` and no script.
    `data` and `time_us` become those of the event; children are updated now.

    Raises:
        InvalidStateError, InvalidSpec. StateError: a job is RUNNING or held by a launcher, or it was killed and its own
        script would revive it; LostLease: its own script belongs to an attempt that was given up. No job is changed then.
    """
    annotation = job_changes.Annotation(message, by, with_payload(data), time_us)
    counted = change(db, [Change(list(ids), state=state, annotation=annotation)], progress)
    return counted["killed" if state == states.USER_KILLED else "changed"]


def _state_part(db: Database, jobs: Iterable[int], state: str, annotation: job_changes.Annotation) -> Part:
    states.check_state(state)
    if state == states.RUNNING:
        raise StateError("Only a launcher makes a job RUNNING.", hint="Set RESTART_READY to let one run it.")
    if state == states.USER_KILLED:
        return _kill_part(jobs, annotation.message or annotation.by, annotation.data, annotation.time_us)
    return Part("set_state", {"state": state, "said": annotation, "hook": own_hook(db)}, sorted(jobs))


def _refuse_held(cx: sqlite3.Connection, jobs: Iterable[int]) -> None:
    """Raise StateError if one of very many jobs is RUNNING or held by a launcher. Takes time linear in those that are."""
    wanted = set(jobs)
    query = "SELECT id, state, lease, job_id, name FROM job INDEXED BY {} WHERE {}"
    held = cx.execute(query.format("job_lease", "lease IS NOT NULL")).fetchall()
    held += cx.execute(query.format("job_state", f"state = '{states.RUNNING}'")).fetchall()
    for job, state, lease, job_id, name in held:
        if job in wanted:
            raise job_changes.held_error(state, lease, job_id, name)


def _stored(values: Mapping[str, Any], workdir: str | None = None) -> dict[str, Any]:
    """Return the values as the columns hold them."""
    stored = field_specs.check_job(values)
    for name in stored:
        if field_specs.JOB_FIELD[name].is_fixed:
            raise InvalidSpec(
                f"job {name} is set when a job is added, and cannot be changed.", hint="Remove the job, and add another one."
            )
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


# --- kill -------------------------------------------------------------------------------------------------------------


class Killed(NamedTuple):
    """The result of a kill."""

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
    progress: Progress | None = None,
) -> Killed:
    """Make jobs USER_KILLED, with `recursive` all jobs below them too; jobs in an end state stay as they are.

    The launcher that runs a killed job stops its processes and releases it. Children that waited for a killed job become
    FAILED; those of a job that a launcher holds, when it is released.
    """
    collected.refuse("Killing jobs")
    jobs, payload = list(ids), with_payload(data)

    def carry_out(chosen: Iterable[int]) -> Counter[str]:
        return _carry_out(db, actions.KILL, [[_kill_part(chosen, message, payload, time_us)]], progress)

    if not recursive:
        counted = carry_out(jobs)
    else:
        with db.read() as cx:
            found = {*jobs, *graph.descendants(cx, jobs)}
        if _is_large(db, len(found)):
            counted = carry_out(found)
        else:
            with pieces.few(db) as cx:  # those that there are now
                counted = carry_out({*jobs, *graph.descendants(cx, jobs)})
    return Killed(counted["killed"], counted["running"])


def _kill_part(jobs: Iterable[int], message: str, data: str | None, time_us: int | None) -> Part:
    return Part("kill", {"said": (message, data, SystemClock.now_us() if time_us is None else time_us)}, sorted(jobs))


# --- rerun ------------------------------------------------------------------------------------------------------------


class Rerun(NamedTuple):
    """The result of putting jobs back."""

    jobs: int
    held: int  # left alone, because a launcher has them


def rerun(
    db: Database,
    ids: Iterable[int],
    target: str | None = None,
    values: Mapping[str, Any] = {},
    below: Iterable[int] = (),
    progress: Progress | None = None,
) -> Rerun:
    """Put jobs back to be run again, with the fields in `values` changed, and the jobs `below` them without such changes.

    `target` is RESTART_READY or CREATED; None selects the first for jobs that have run, the second for the others. Jobs
    that a launcher holds are not changed.

    Raises:
        UnknownField, InvalidSpec, UnknownApp: nothing is changed.
    """
    collected.refuse("Running jobs again")
    stored = _stored(values) if values else {}
    parts = [
        Part("rerun", {"target": target, "stored": stored}, sorted(ids)),
        Part("rerun", {"target": target, "stored": {}}, sorted(below)),
    ]
    counted = _carry_out(db, actions.RERUN, [parts], progress, lambda cx: _check_app(cx, stored))
    return Rerun(counted["jobs"], counted["held"])


# --- delete -----------------------------------------------------------------------------------------------------------


def delete(
    db: Database, ids: Iterable[int], *, force: bool = False, is_kept: bool | None = None, progress: Progress | None = None
) -> int:
    """Remove jobs with their history and dependencies; the working directories stay. Return the number of jobs.

    A launcher that runs one of them stops it. With `force` a deleted job counts as failed for its waiting children.
    `is_kept` tells whether `undo` can restore them; None: if the disk has the space (`trash.has_room`).

    Raises:
        ParentInUse: other jobs wait for one of these, and `force` is not set; nothing is removed.
    """
    collected.refuse("Removing jobs")
    jobs, parts = sorted(ids, reverse=True), []  # children are usually newer than their parents; deleted ones need no update
    is_kept = trash.has_room(db, len(jobs)) if is_kept is None else is_kept
    is_large = _is_large(db, len(jobs))
    if not db.is_in_transaction:
        with db.read() as cx:
            for parent in _parents_of_many(cx, jobs):
                children = graph.children_of(cx, [parent])
                parts.append(Part("leave_children", {"parent": parent, "is_kept": is_kept}, children))
        if parts or is_large:
            check_deletion(db, jobs, force)
    parts.append(Part("delete", {"force": force, "is_kept": is_kept}, jobs))
    return _carry_out(db, actions.REMOVE, [parts], progress, trash.empty_old)["removed"]


def check_deletion(db: Database, ids: Iterable[int], force: bool) -> None:
    """Raise ParentInUse if `delete` would: other jobs wait for one of these, and `force` is not set. One read transaction."""
    if not force:
        with db.read() as cx:
            job_changes.doom(cx, list(ids))
            job_changes.refuse_in_use(cx)


def _parents_of_many(cx: sqlite3.Connection, jobs: Sequence[int]) -> list[int]:
    """Return those of these jobs that have more children than one transaction may change."""
    query = """SELECT parent FROM dependency WHERE parent IN (SELECT value FROM json_each(?))
        GROUP BY parent HAVING count(*) > ?"""
    return [row[0] for row in cx.execute(query, (id_list(jobs), large_writes.MAX_DIRECT_JOBS))]
