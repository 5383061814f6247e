"""Why jobs wait: the reasons that launchers have reported for jobs they could not take, kept in the notes of their leases; and
why nothing happens to jobs that a program waits for.

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
from ..store import leases
from ..store.suspects import describe
from . import queries

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

    The batch job was submitted at `since_us`.
    """
    ends = queries.launchers_in(cx, "end_reason", scheduler_id, since_us)
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
    notes = [json.loads(note) for note in queries.launchers_in(cx, "note", scheduler_id, since_us) if note]
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


# --- waiting for jobs -------------------------------------------------------------------------------------------------

#: Maximum number of jobs to look at, of those that launchers hold and of those that are waited for.
_MAX_HELD, _MAX_AWAITED = 1000, 200

_START = "Start one: `balsam launcher --consume-all --job-mode serial`, or submit one: `balsam submit-launch`."
_NESTED = (
    "every job that runs ({}) waits for other jobs itself, and no place is free for those. Give them more places: another "
    "launcher, more --nodes, or a larger node_packing_count of the jobs."
)
_NOT_TAKEN = (
    "{} is alive and does not take them: it may take other workflows or tags only. `balsam log` and `balsam ls` tell more."
)
_SILENT = "{}: {}. It is dead, or the clocks differ; the next launcher watches it, and takes its jobs if it is dead. {}"


def why_nothing_happens(cx: sqlite3.Connection, jobs: Sequence[int], now_us: int, expiry_s: float, watch: leases.Watch) -> str:
    """Return why these jobs do not run, and what to do; "" if that is unknown, or a running job may still lead to them."""
    at_work = leases.living(cx, expiry_s, watch)
    silent = [lease for lease in at_work if lease.kind == "launcher" and leases.is_doubtful(lease, now_us, expiry_s, watch)]
    launchers = {lease.id: lease for lease in at_work if lease.kind == "launcher" and lease not in silent}
    held = cx.execute("SELECT id, lease FROM job INDEXED BY job_lease WHERE lease IS NOT NULL LIMIT ?", (_MAX_HELD,)).fetchall()
    waiting = {wait.job for wait in leases.living_waits(cx, expiry_s, watch)}
    if any(lease in launchers and job not in waiting for job, lease in held):
        return ""
    if not launchers and silent:
        return _SILENT.format(silent[0], leases.last_sign(silent[0], now_us, expiry_s), _START)
    if not launchers:
        return _no_launcher(cx, any(lease.kind == "service" for lease in at_work))
    fields = ("state", "launcher_deaths", *field_specs.SHAPE_FIELDS)
    found = queries.columns_of(cx, jobs[:_MAX_AWAITED], fields)
    rows = [dict(zip(("id", *fields), (number, *row))) for number, row in found.items()]
    told = waits_for(cx, rows)
    if told:
        return f"{next(iter(told.values()))}."
    stuck = sum(lease in launchers for _, lease in held)
    return _NESTED.format(stuck) if stuck else _NOT_TAKEN.format(f"The {next(iter(launchers.values()))}")


def _no_launcher(cx: sqlite3.Connection, has_service: bool) -> str:
    launches = queries.unended_batch_jobs(cx)
    if launches:
        row = launches[0]
        return f"no launcher runs yet, qlaunch{row['id']} is {row['state']} in the batch queue (`balsam queue ls`)."
    if has_service:
        return "no launcher runs; the service submits one when its policy allows (`balsam service status`)."
    return f"no launcher is alive for this DB. {_START}"
