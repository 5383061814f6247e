"""Change states: guarded update, event and counters, for any number of jobs at once. No other module writes `job.state`.

All functions run inside the caller's write transaction. The caller has read the jobs in that same transaction, so the
guards in the updates cannot fail; if one fails nevertheless, the transaction is rolled back.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, NamedTuple

from ...core import field_specs, states
from ...core.errors import IllegalTransition
from ..engine.schema import PAYLOAD
from . import large_writes

#: Minimum number of jobs whose events are inserted by one statement for each step; executemany is as fast for fewer.
_MIN_ALIKE = 4


def with_payload(said: Mapping[str, Any]) -> str | None:
    """Return the data of an event with this payload as JSON; None if it is empty. Raises InvalidSpec: it is no JSON object."""
    return f'{{"{PAYLOAD}":{field_specs.checked(field_specs.JOB_FIELD["data"], said)}}}' if said else None


class Transition(NamedTuple):
    """One job's path through one or more states, each recorded as an event at `time_us`; the job stays in the last one."""

    job: int
    path: tuple[str, ...]  # the state it is in, then each state it enters
    time_us: int
    messages: tuple[str, ...] = ()  # one for each step; missing ones are empty
    data: tuple[str | None, ...] = ()  # JSON, likewise


def apply(
    cx: sqlite3.Connection,
    moves: Sequence[Transition],
    actor: str,
    columns: str = "",
    values: Iterable[tuple[object, ...]] = (),
    only_if: str = "",
) -> None:
    """Apply the transitions in `moves`, all by the same actor, and set further `columns` ("lease = NULL") of each job.

    `values` holds the parameters of `columns` for each transition; `only_if` is a condition that each job must meet. Steps
    before and after the actor's are the program's own (STEP). Jobs with the same path and values change in one UPDATE.

    Raises:
        IllegalTransition: the state table has no such edge; nothing was written.
        RuntimeError: a job is not in the first state of its path, or does not meet `only_if`; roll back the transaction.
    """
    if not moves:
        return
    alike: dict[tuple[tuple[str, ...], tuple[object, ...]], list[int]] = {}
    for m, extra in zip(moves, values or repeat(())):
        alike.setdefault((m.path, extra), []).append(m.job)
    for path, _ in alike:
        _check(path, actor)
    columns, only_if = f", {columns}" if columns else "", f" AND {only_if}" if only_if else ""
    changed = 0
    for (path, extra), jobs in alike.items():
        which, ids = ("= ?", jobs[0]) if len(jobs) == 1 else ("IN (SELECT value FROM json_each(?))", id_list(jobs))
        # NOT INDEXED allows the primary key alone. SQLite cannot tell that an index of `state` or `lease` finds more rows.
        update = f"UPDATE job NOT INDEXED SET state = ?{columns} WHERE id {which} AND state = ?{only_if}"
        changed += cx.execute(update, (path[-1], *extra, ids, path[0])).rowcount
    if changed != len(moves):
        raise RuntimeError(f"{len(moves)} jobs were to change their state, {changed} did; nothing was written")
    _record(cx, moves)
    among = large_writes.hidden_ranges(cx)
    if among:
        large_writes.count_hidden(cx, {m.job: (m.path[0], m.path[-1]) for m in moves}, among)
        moves = [m for m in moves if not any(first <= m.job <= last for _, first, last in among)]
    count(cx, Counter((m.path[0], m.path[-1]) for m in moves))


def _check(path: tuple[str, ...], actor: str) -> None:
    for source, target in zip(path, path[1:]):
        if target not in states.targets(source, actor) and target not in states.targets(source, states.STEP):
            raise IllegalTransition(f"A {actor} cannot move a job from {source} to {target}.")


def _record(cx: sqlite3.Connection, moves: Sequence[Transition]) -> None:
    """Insert the events of the transitions in `moves`: for each job in the order of its path."""
    if len(moves) < _MIN_ALIKE or len({m[1:] for m in moves}) > 1:
        cx.executemany(
            "INSERT INTO event (job, time, from_state, to_state, message, data) VALUES (?, ?, ?, ?, ?, ?)",
            ((m.job, *step) for m in moves for step in _steps(m)),
        )
        return
    jobs = id_list(m.job for m in moves)
    for step in _steps(moves[0]):
        cx.execute(
            """INSERT INTO event (job, time, from_state, to_state, message, data)
            SELECT value, ?, ?, ?, ?, ? FROM json_each(?)""",
            (*step, jobs),
        )


def _steps(m: Transition) -> Iterator[tuple[object, ...]]:
    """Yield the columns of each event of a transition, among them its time, states, message and data."""
    for step, source in enumerate(m.path[:-1]):
        message = m.messages[step] if step < len(m.messages) else ""
        yield m.time_us, source, m.path[step + 1], message, m.data[step] if step < len(m.data) else None


def count(cx: sqlite3.Connection, moved: Counter[tuple[str | None, str | None]]) -> None:
    """Update the number of jobs per state from (source, target) -> number of jobs. Source None: new; target None: deleted."""
    change: Counter[str] = Counter()
    for (source, target), jobs in moved.items():
        if source is not None:
            change[source] -= jobs
        if target is not None:
            change[target] += jobs
    cx.executemany("UPDATE state_count SET jobs = jobs + ? WHERE state = ?", [(n, state) for state, n in change.items() if n])


def id_list(ids: Iterable[int]) -> str:
    """Return ids as the parameter of `IN (SELECT value FROM json_each(?))`: one statement for any number of ids."""
    return json.dumps(list(ids))
