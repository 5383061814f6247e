"""Take back what a user's command did, as far as nothing has run since and no other command has changed the same."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import caller, causes, field_specs, states
from ...core.clock import SystemClock
from ...core.errors import NotFound
from ..engine.connection import Database
from . import actions, graph, job_changes, large_writes, pieces
from .large_writes import Part, Progress
from .transitions import Transition, apply, id_list

MESSAGE = "Taken back by balsam undo"
#: The reason why a job cannot be restored -> in words, after "1 job" or "5 jobs".
REASONS = {
    "ran": "ran since",
    "held": "now with a launcher",
    "running": "running when killed",
    "changed": "changed since",
    "gone": "removed since",
    "conflict": "its id is that of a present one",
    "expired": "not in the trash any more",
}
_WAITING = (*states.UNPREPARED_STATES, states.AWAITING_PARENTS, *states.RUNNABLE_STATES)
_OLD = "coalesce(edit_text.text, edit.old)"


class Action(NamedTuple):
    """What a user did."""

    id: int
    time_us: int
    user: str
    host: str
    command: str
    kind: str
    jobs: int
    fields: dict[str, Any]  # the new values, in stored form
    is_undone: bool


def of_user(cx: sqlite3.Connection, user: str, most: int = 20) -> list[Action]:
    """Return the last actions of a user, newest first, without those of jobs' programs and hooks."""
    sql = """SELECT action.id, time, user, host, command, kind, jobs, fields, undone IS NOT NULL
        FROM action JOIN author ON author.id = action.author WHERE user = ? AND jobs > 0 AND command NOT LIKE 'a job''s %'
        ORDER BY action.id DESC LIMIT ?"""
    rows = cx.execute(sql, (user, most)).fetchall()
    return [Action._make((*who, json.loads(fields), bool(is_undone))) for *who, fields, is_undone in rows]


def find(cx: sqlite3.Connection, number: int | None = None) -> Action:
    """Return this user's action with that number, or the last one by a command that can be taken back.

    Raises:
        NotFound: there is none, or it was taken back already.
    """
    user = caller.current().user
    listed = of_user(cx, user, -1 if number is not None else 1000)
    for one in listed:
        is_wanted = one.id == number if number is not None else one.command.startswith("balsam ") and not one.is_undone
        if is_wanted and one.kind != actions.UNDO and not one.is_undone:
            return one
    if number is None:
        raise NotFound(f"There is no command of {user} to take back.", hint="`balsam undo --list` shows what was done.")
    known = [one for one in listed if one.id == number]
    reason = "was taken back already" if known and known[0].is_undone else "is no command of yours that can be taken back"
    hint = "`balsam undo --list` shows the numbers. To do something again, give its command again."
    raise NotFound(f"Number {number} {reason}.", hint=hint)


class Undone(NamedTuple):
    """How many jobs were, or would be, restored, and how many not, by the keys of `REASONS`."""

    taken: int
    left: dict[str, int]


def preview(db: Database, action: Action) -> Undone:
    """Return what `take_back` would do. Opens a read transaction."""
    with db.read() as cx:
        counted: Counter[str] = Counter()
        for jobs in _slices(_edited(cx, action.id)):
            counted.update(one.reason or "taken" for one in _changes(cx, action.id, action.fields, jobs))
        for _, jobs in _kept(cx, action.id):
            listed = id_list(jobs)
            present = "SELECT count(*) FROM job WHERE id IN (SELECT value FROM json_each(?))"
            clash = int(cx.execute(present, (listed,)).fetchone()[0])
            counted.update(taken=len(jobs) - clash, conflict=clash)
        return _undone(action, counted)


def take_back(db: Database, action: Action, progress: Progress | None = None) -> Undone:
    """Restore what an action changed or removed. A crash in the middle leaves the rest to the next command or launcher.

    Opens its own write transactions, many short ones for very many jobs.

    Raises:
        NotFound: another process has taken it back meanwhile.
    """
    with db.read() as cx:
        edited, kept = _edited(cx, action.id), _kept(cx, action.id)
    parts = [Part("restore", {"row": row}, jobs) for row, jobs in kept] + [Part("take_back", {"action": action.id}, edited)]

    def mark(cx: sqlite3.Connection) -> int:
        by = actions.begin(cx, actions.UNDO)
        if not cx.execute("UPDATE action SET undone = ? WHERE id = ? AND undone IS NULL", (by, action.id)).rowcount:
            raise NotFound("Another process has taken it back meanwhile.")
        return by

    if sum(len(part.jobs) for part in parts) > large_writes.MAX_DIRECT_JOBS:
        counted = pieces.run(db, parts, lambda cx: [mark(cx)] * len(parts), progress)
    else:
        counted = Counter()
        with pieces.few(db, edited) as cx:
            by = mark(cx)
            for part in parts:
                counted.update(job_changes.ACTIONS[part.action](cx, 0, part.jobs, {**part.parameters, "by": by}))
    return _undone(action, counted)


def _undone(action: Action, counted: Mapping[str, int]) -> Undone:
    left = {reason: counted[reason] for reason in REASONS if counted.get(reason)}
    missing = action.jobs - counted.get("taken", 0) - sum(left.values())
    if missing > 0:
        reason = "expired" if action.kind in (actions.REMOVE, actions.REMOVE_APPS) else "gone"
        left[reason] = left.get(reason, 0) + missing
    return Undone(counted.get("taken", 0), left)


def _edited(cx: sqlite3.Connection, action: int) -> list[int]:
    return [row[0] for row in cx.execute("SELECT DISTINCT job FROM edit WHERE action = ? ORDER BY job", (action,))]


def _kept(cx: sqlite3.Connection, action: int) -> list[tuple[int, list[int]]]:
    """Return the rows of the trash of an action, with their jobs, the last one first."""
    rows = cx.execute("SELECT id, jobs FROM trash INDEXED BY trash_action WHERE action = ? ORDER BY id DESC", (action,))
    return [(row, json.loads(jobs)) for row, jobs in rows]


def _slices(jobs: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(jobs), large_writes.JOBS_PER_PART):
        yield jobs[start : start + large_writes.JOBS_PER_PART]


# --- what to restore --------------------------------------------------------------------------------------------------


class _Change(NamedTuple):
    """What an action changed in a job, and why that cannot be restored."""

    job: int
    reason: str  # "": it can be
    now: str  # its state
    state: dict[str, Any]  # columns of `OF_STATE` -> value before
    fields: dict[str, Any]  # fields, or keys of objects, -> value before


def _changes(cx: sqlite3.Connection, action: int, new: Mapping[str, Any], jobs: Sequence[int]) -> list[_Change]:
    """Return what an action, which set the values in `new`, changed in each of these jobs."""
    rows = cx.execute(
        f"""SELECT edit.job, edit.field, edit.attempt, {_OLD} FROM edit LEFT JOIN edit_text ON edit_text.id = edit.shared
            WHERE edit.job IN (SELECT value FROM json_each(?)) AND edit.action = ?""",
        (id_list(jobs), action),
    ).fetchall()
    edits: dict[int, dict[str, Any]] = {}
    attempts: dict[int, int] = {}
    for job, field, attempt, old in rows:
        edits.setdefault(job, {})[field] = old
        attempts[job] = attempt
    plain = sorted({field.partition(".")[0] for of_job in edits.values() for field in of_job} - set(actions.OF_STATE))
    later = f"""SELECT 1 FROM edit JOIN action ON action.id = edit.action WHERE edit.job = job.id AND field = 'state'
        AND edit.action > {action:d} AND undone IS NULL AND kind <> '{actions.UNDO}'"""
    query = f"""SELECT id, state, lease, attempt, EXISTS ({later}), {graph.FAILED_WITH_PARENT}{"".join(f", {n}" for n in plain)}
        FROM job WHERE id IN (SELECT value FROM json_each(?))"""
    present = {row[0]: row[1:] for row in cx.execute(query, (id_list(edits),))}
    return [_change(new, job, edits[job], attempts[job], present.get(job), plain) for job in jobs if job in edits]


def _change(
    wanted: Mapping[str, Any],
    job: int,
    edits: dict[str, Any],
    attempt: int,
    present: Sequence[Any] | None,
    plain: Sequence[str],
) -> _Change:
    if present is None:
        return _Change(job, "gone", "", {}, {})
    now, lease, attempts, is_changed, is_with_parent, *values = present
    state = {name: edits[name] for name in actions.OF_STATE if name in edits}
    fields = {name: old for name, old in edits.items() if name not in state}
    current = _flat(dict(zip(plain, values)))
    reason = ""
    if attempts > attempt:
        reason = "ran"
    elif lease is not None and state:
        reason = "held"
    elif state.get("state") == states.RUNNING:
        reason = "running"
    elif any(current.get(name) != wanted.get(name) for name in fields):
        reason = "changed"
    elif state:
        new = wanted.get("state")
        is_as_left = now == new or (new in _WAITING and (now in _WAITING or is_with_parent))
        reason = "" if is_as_left and not is_changed else "changed"
    return _Change(job, reason, now, state, fields)


def _flat(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values in the form of edits: objects by key, each as JSON text."""
    found: dict[str, Any] = {}
    for name, value in columns.items():
        if name in actions.OBJECTS:
            found.update((f"{name}.{key}", text) for key, text in actions.texts_of(value).items())
        else:
            found[name] = value
    return found


# --- restoring --------------------------------------------------------------------------------------------------------


def take_back_part(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    """Restore what an action changed in these jobs. Runs inside the caller's write transaction."""
    (text,) = cx.execute("SELECT fields FROM action WHERE id = ?", (parameters["action"],)).fetchone()
    number_of, fields = parameters["action"], json.loads(text)
    counted: Counter[str] = Counter()
    for some in _slices(jobs):
        found = _changes(cx, number_of, fields, some)
        counted.update(one.reason or "taken" for one in found)
        able = [one for one in found if not one.reason]
        _restore_fields(cx, able, parameters["by"])
        _restore_states(cx, [one for one in able if one.state], number, parameters["by"])
    return counted


def _restore_fields(cx: sqlite3.Connection, changes: Sequence[_Change], by: int) -> None:
    alike: dict[str, list[int]] = {}
    names = {name.partition(".")[0] for one in changes for name in one.fields if "." in name}
    columns = {}
    if names:
        query = f"SELECT id, {', '.join(sorted(names))} FROM job WHERE id IN (SELECT value FROM json_each(?))"
        rows = cx.execute(query, (id_list(one.job for one in changes),))
        columns = {row[0]: dict(zip(sorted(names), row[1:])) for row in rows}
    for one in changes:
        stored: dict[str, Any] = {}
        objects: dict[str, dict[str, Any]] = {}
        for field, old in one.fields.items():
            name, dot, key = field.partition(".")
            if not dot:
                stored[name] = old
                continue
            present = objects.setdefault(name, json.loads(columns[one.job][name]))
            if old is None:
                present.pop(key, None)
            else:
                present[key] = json.loads(old)
        given = {name: field_specs.read_object(json.dumps(value)) for name, value in objects.items()}
        stored.update(field_specs.check_job(given))
        if stored:
            alike.setdefault(json.dumps(stored), []).append(one.job)
    for text, jobs in alike.items():
        job_changes.update(cx, json.loads(text), jobs, by)


def _restore_states(cx: sqlite3.Connection, changes: Sequence[_Change], number: int, by: int) -> None:
    if not changes:
        return
    now = SystemClock.now_us()
    listed = id_list(one.job for one in changes)
    texts = dict(cx.execute("SELECT id, cause FROM failure"))
    failed = f"""SELECT job, data FROM event
        WHERE to_state = '{states.FAILED}' AND job IN (SELECT value FROM json_each(?)) ORDER BY id"""
    reasons = dict(cx.execute(failed, (listed,)))
    columns = ", ".join(("id", "attempt", *actions.OF_STATE))
    query = f"SELECT {columns} FROM job WHERE id IN (SELECT value FROM json_each(?))"
    rows = {row[0]: row for row in cx.execute(query, (listed,)).fetchall()}
    moving = [one for one in changes if one.now != one.state["state"]]
    actions.note_states(cx, by, [rows[one.job] for one in moving])
    moves, values = [], []
    for one in moving:
        old = one.state["state"]
        cause = texts.get(one.state.get("failure"), causes.UNKNOWN)
        data = (reasons.get(one.job),) if old == states.FAILED else ()
        moves.append(Transition(one.job, (one.now, old), now, (MESSAGE,), data, cause))
        present = dict(zip(actions.OF_STATE, rows[one.job][2:]))
        values.append(tuple({**present, **one.state}[name] for name in actions.OF_STATE[1:4]))
    apply(cx, moves, states.USER, "restarts = ?, retries = ?, launcher_deaths = ?", values)
    jobs = [one.job for one in changes]
    job_changes.hold(cx, number, [one.job for one in changes if one.state["state"] in _WAITING])
    graph.reconsider_children(cx, jobs, now)
    graph.settle(cx, jobs, now)
