"""What an action changed in jobs, why it may be too late to restore that, and how to restore it.

`ACTIONS` are parts of `undo`, called as those of `job_changes` are.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import causes, field_specs, states
from ...core.clock import SystemClock
from ..query.edits import OF_STATE
from . import actions, graph, job_changes, large_writes, trash
from .transitions import Transition, apply, id_list

MESSAGE = "Taken back by balsam undo"
_WAITING = (*states.UNPREPARED_STATES, states.AWAITING_PARENTS, *states.RUNNABLE_STATES)
_OLD = "coalesce(edit_text.text, edit.old)"


def slices(jobs: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(jobs), large_writes.JOBS_PER_PART):
        yield jobs[start : start + large_writes.JOBS_PER_PART]


# --- what to restore --------------------------------------------------------------------------------------------------


class Reversal(NamedTuple):
    """What an action changed in a job, and why that cannot be restored."""

    job: int
    reason: str  # "": it can be
    now: str  # its state
    state: dict[str, Any]  # columns of `OF_STATE` -> value before
    fields: dict[str, Any]  # fields, or keys of objects, -> value before


def reversals(cx: sqlite3.Connection, action: int, new: Mapping[str, Any], jobs: Sequence[int]) -> list[Reversal]:
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
    plain = sorted({field.partition(".")[0] for of_job in edits.values() for field in of_job} - set(OF_STATE))
    later = f"""SELECT 1 FROM edit JOIN action ON action.id = edit.action WHERE edit.job = job.id AND field = 'state'
        AND edit.action > {action:d} AND undone IS NULL AND kind <> '{actions.UNDO}'"""
    query = f"""SELECT id, state, lease, attempt, EXISTS ({later}), {graph.FAILED_WITH_PARENT}{"".join(f", {n}" for n in plain)}
        FROM job WHERE id IN (SELECT value FROM json_each(?))"""
    present = {row[0]: row[1:] for row in cx.execute(query, (id_list(edits),))}
    return [_reversal(new, job, edits[job], attempts[job], present.get(job), plain) for job in jobs if job in edits]


def _reversal(
    wanted: Mapping[str, Any],
    job: int,
    edits: dict[str, Any],
    attempt: int,
    present: Sequence[Any] | None,
    plain: Sequence[str],
) -> Reversal:
    if present is None:
        return Reversal(job, "gone", "", {}, {})
    now, lease, attempts, is_changed, is_with_parent, *values = present
    state = {name: edits[name] for name in OF_STATE if name in edits}
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
    return Reversal(job, reason, now, state, fields)


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


def _take_back(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    """Restore what an action changed in these jobs. Runs inside the caller's write transaction."""
    (text,) = cx.execute("SELECT fields FROM action WHERE id = ?", (parameters["action"],)).fetchone()
    number_of, fields = parameters["action"], json.loads(text)
    counted: Counter[str] = Counter()
    for some in slices(jobs):
        found = reversals(cx, number_of, fields, some)
        counted.update(one.reason or "taken" for one in found)
        able = [one for one in found if not one.reason]
        _restore_fields(cx, able, parameters["by"])
        _restore_states(cx, [one for one in able if one.state], number, parameters["by"])
    return counted


def _restore_fields(cx: sqlite3.Connection, changes: Sequence[Reversal], by: int) -> None:
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


def _restore_states(cx: sqlite3.Connection, changes: Sequence[Reversal], number: int, by: int) -> None:
    if not changes:
        return
    now = SystemClock.now_us()
    listed = id_list(one.job for one in changes)
    texts = dict(cx.execute("SELECT id, cause FROM failure"))
    failed = f"""SELECT job, data FROM event
        WHERE to_state = '{states.FAILED}' AND job IN (SELECT value FROM json_each(?)) ORDER BY id"""
    reasons = dict(cx.execute(failed, (listed,)))
    columns = ", ".join(("id", "attempt", *OF_STATE))
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
        present = dict(zip(OF_STATE, rows[one.job][2:]))
        values.append(tuple({**present, **one.state}[name] for name in OF_STATE[1:4]))
    apply(cx, moves, states.USER, "restarts = ?, retries = ?, launcher_deaths = ?", values)
    jobs = [one.job for one in changes]
    job_changes.hold(cx, number, [one.job for one in changes if one.state["state"] in _WAITING])
    graph.reconsider_children(cx, jobs, now)
    graph.settle(cx, jobs, now)


def _restore(cx: sqlite3.Connection, number: int, jobs: Sequence[int], parameters: Mapping[str, Any]) -> Counter[str]:
    return trash.restore(cx, parameters["row"], number, parameters["by"])


ACTIONS: dict[str, large_writes.Action] = {"restore": _restore, "take_back": _take_back}
