"""Why jobs wait: the reasons that launchers have reported for jobs they could not take, kept in the notes of their leases.

Users see these reasons without reading a launcher's log. All functions run inside the caller's transaction, on its connection
`cx`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...core import field_specs, states
from ...core.clock import format_us
from ..engine.schema import LARGE_WRITE_HOLD, SUSPECT_DEATHS
from ..store.suspects import describe

#: Maximum number of launchers whose notes are read, the newest ones, and of reasons in a note.
_LAUNCHERS, _MOST = 20, 200
_WAITING = frozenset((*states.RUNNABLE_STATES, *states.UNPREPARED_STATES))


def as_note(obstacles: Iterable[tuple[Sequence[float], str]], trouble: str = "") -> str:
    """Return the note of a launcher's lease: (a shape, why jobs of that shape are not taken); "" where there is none.

    With `trouble` (why the launcher starts no job at all) the first entry has the empty shape, which means every job.
    """
    said: list[list[object]] = [[[], trouble]] if trouble else []
    said += [[list(shape), reason] for shape, reason in obstacles]
    return json.dumps(said[:_MOST]) if said else ""


_LEFT = " job(s) left: "


#: Before the nodes that did not answer any more, in the same reason.
_LOST = "lost node(s): "
#: The beginning of a launcher's end reason if no job matched; its filter in words follows.
NO_JOB = "no job"


def as_end_reason(why: str, left: Mapping[str, int], lost: Sequence[str] = ()) -> str:
    """Return the end reason of a launcher's lease: why it ended, how many jobs it left, and why each.

    `left` counts the jobs by reason. `lost` names the nodes that the launcher lost.

    >>> as_end_reason("the time is up", {"needs --job-mode=mpi": 2, "waits for a free place": 9})
    'the time is up; 11 job(s) left: needs --job-mode=mpi (2), waits for a free place (9)'
    """
    listed = ", ".join(f"{reason} ({number})" for reason, number in left.items())
    parts = [why, *([f"{_LOST}{', '.join(lost)}"] if lost else []), *([f"{sum(left.values())}{_LEFT}{listed}"] if left else [])]
    return "; ".join(parts)


def left_in(cx: sqlite3.Connection, scheduler_id: str, since_us: int) -> str:
    """Return the end reasons of the launchers in that batch job which left jobs, found none or lost nodes; else "".

    The batch job was submitted at `since_us`. It has several launchers if it has partitions.
    """
    number = scheduler_id.partition(".")[0]  # see `said_in`
    rows = cx.execute(
        "SELECT scheduler_id, end_reason FROM lease WHERE kind = 'launcher' AND scheduler_id <> '' AND opened >= ? ORDER BY id",
        (since_us,),
    )
    ends = [reason for other, reason in rows if other.partition(".")[0] == number]
    found = [reason for reason in ends if _LEFT in reason or _LOST in reason or reason.startswith(NO_JOB)]
    return "; ".join(dict.fromkeys(found))


def waits_for(cx: sqlite3.Connection, jobs: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Return by number why startable jobs do not start, as last reported for their shape, with the time of that report.

    `jobs` have the fields id, state and those of `SHAPE_FIELDS`; optional fields are start_after and launcher_deaths.
    """
    waiting = [job for job in jobs if job["state"] in _WAITING]
    said = _said(cx) if waiting else {}
    shapes = {job["id"]: tuple(job[field] for field in field_specs.SHAPE_FIELDS) for job in waiting} if said else {}
    found = {number: said.get(shape) or said.get(()) for number, shape in shapes.items()}
    held = {job["id"]: _held(job["start_after"]) for job in waiting if job.get("start_after")}
    apart = {job["id"]: _apart(job["launcher_deaths"]) for job in waiting if job.get("launcher_deaths", 0) >= SUSPECT_DEATHS}
    return {**apart, **held, **{number: reason for number, reason in found.items() if reason}}


def _apart(deaths: int) -> str:
    return f"{describe(deaths)}; it will be run apart from other jobs"


def _held(start_after: int) -> str:
    if start_after >= LARGE_WRITE_HOLD:
        return "waits until all jobs that were changed together with it are"
    return f"is held back until {format_us(start_after)}"


def said_in(cx: sqlite3.Connection, scheduler_id: str, since_us: int) -> dict[tuple[float, ...], str]:
    """Return by shape the reasons that launchers in the batch job with that id, submitted at `since_us`, have reported."""
    number = scheduler_id.partition(".")[0]  # PBS appends a dot and the server, or does not
    rows = cx.execute(
        "SELECT scheduler_id, note FROM lease WHERE kind = 'launcher' AND note <> '' AND opened >= ? ORDER BY id", (since_us,)
    )
    notes = [json.loads(note) for other, note in rows if other.partition(".")[0] == number != ""]
    return {tuple(shape): reason for note in notes for shape, reason in note}


def _said(cx: sqlite3.Connection) -> dict[tuple[float, ...], str]:
    """Return by shape the reason reported by the newest launcher that reported one for it."""
    rows = cx.execute(
        """SELECT id, host, coalesce(closed, heartbeat), note FROM lease WHERE kind = 'launcher' AND note <> ''
        ORDER BY id DESC LIMIT ?""",
        (_LAUNCHERS,),
    )
    newest = cx.execute("SELECT max(id) FROM lease WHERE kind = 'launcher'").fetchone()[0]
    found: dict[tuple[float, ...], str] = {}
    for lease, host, time_us, note in rows:
        for shape, reason in json.loads(note):
            if not shape and lease != newest:
                continue  # a machine that was in trouble; another launcher has come since
            found.setdefault(tuple(shape), f"{reason} (launcher {lease} on {host}, {format_us(time_us)})")
    return found
