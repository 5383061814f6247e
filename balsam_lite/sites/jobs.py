"""Creating, changing and deleting the jobs of a site in the workshop's words: for `local.LocalDesk`.

Functions with a `db` open their own write transaction, and write everything or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .. import states
from ..db import location, queries, selection
from ..db.connection import Connection, Database
from ..db.store import insert, user
from ..errors import BalsamError, InputError, RemoteError, UnknownJob
from ..settings import Settings
from . import job_rows
from .desk import Row

#: States in which a function has ended, so that the file with its result is the newest.
_ENDED = (states.RUN_DONE, states.RUN_ERROR, states.RUN_TIMEOUT, states.POSTPROCESSED, *states.END_STATES)
#: Where a function leaves its result. Source: `launcher.call`.
_RESULT = "result.pkl"
_LARGEST_RESULT_BYTES = 16 * 1024 * 1024
#: So many numbers are named in an error.
_NAMED = 5


# --- creating ---------------------------------------------------------------------------------------------------------


def create(db: Database, rows: Sequence[Row]) -> list[Row]:
    """Add jobs. Returns them as they are then, in order.

    Raises:
        UnknownField, InvalidSpec, UnknownApp, UnknownJob: with the number of the row if there are several.
    """
    gpus_per_node = Settings.load(db.directory).GPUS_PER_NODE
    with db.read() as cx:
        apps = job_rows.Apps(selection.apps(cx))
    new = job_rows.NewJobs(rows, apps, gpus_per_node)
    try:
        added = insert.add_jobs(db, _with_parents(db, new))
    except InputError as exc:
        if len(rows) == 1 and isinstance(exc.__cause__, BalsamError):
            raise exc.__cause__ from None  # without the number of the row
        raise
    with db.read() as cx:
        return selection.new_jobs(cx, added.first, added.first + added.number - 1, {name for row in rows for name in row})


def _with_parents(db: Database, new: job_rows.NewJobs) -> Iterable[Row]:
    """All of them; in the end, before any transaction begins, it is looked whether the parents that they name exist."""
    yield from new
    if not new.parents:
        return
    with db.read() as cx:
        missing = sorted(set(new.parents) - set(queries.states_of(cx, new.parents)))
    if missing:
        listed = ", ".join(map(str, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
        text = f"Could not find one or more Jobs set as parents: {listed}"
        raise new.numbered(UnknownJob(text, hint="Nothing was added."), new.parents[missing[0]])


# --- changing ---------------------------------------------------------------------------------------------------------


def update(db: Database, changes: Sequence[Mapping[str, Any]]) -> int:
    """Change jobs, each by its `id`. Returns how many there were.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError, StateError, UnknownJob.
    """
    groups = [(numbers, job_rows.change_of(values), values) for numbers, values in job_rows.grouped(changes)]
    with db.write() as cx:
        for numbers, change, values in groups:
            _refuse_missing(cx, numbers)
            _carry_out(db, cx, numbers, change, values)
    return len(changes)


def update_where(db: Database, where: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """The same change for all that match. Returns how many. Raises as `update`."""
    change = job_rows.change_of(values)
    with db.write() as cx:
        numbers = selection.job_ids(cx, where)
        _carry_out(db, cx, numbers, change, values)
    return len(numbers)


def _refuse_missing(cx: Connection, numbers: Sequence[int]) -> None:
    missing = sorted(set(numbers) - set(queries.states_of(cx, numbers)))
    if missing:
        raise UnknownJob(f"There is no job with the id {missing[0]} at this site (any more); nothing was changed.")


def _carry_out(
    db: Database, cx: Connection, numbers: Sequence[int], change: job_rows.Change, values: Mapping[str, Any]
) -> None:
    if "parameters" in change.fields:
        apps = job_rows.Apps(selection.apps(cx))
        for (name,) in set(queries.columns_of(cx, numbers, ("application",)).values()):
            apps.check_parameters(apps.find(name), values["parameters"])
    if change.fields or change.workdir is not None:
        user.update_fields(db, numbers, change.fields, workdir=change.workdir)
    if not {"gpus_per_rank", "ranks_per_node"}.isdisjoint(change.fields):
        gpus_per_node = Settings.load(db.directory).GPUS_PER_NODE
        for gpus, ranks in set(queries.columns_of(cx, numbers, ("gpus_per_rank", "ranks_per_node")).values()):
            job_rows.refuse_gpus(gpus, ranks, gpus_per_node)
    if change.state is not None:
        said = change.data.get("message")  # the history shows that one, too
        message = said if isinstance(said, str) else ""
        user.set_state(db, numbers, change.state, message, data=change.data, time_us=change.time_us)


# --- deleting ---------------------------------------------------------------------------------------------------------


def delete(db: Database, where: Mapping[str, Any], force: bool = False) -> Row:
    """Remove the jobs that match and that no launcher holds: {"deleted": how many, "held": how many it holds}.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError; ParentInUse: others wait for one of these, and `force` is not set.
    """
    with db.write() as cx:
        numbers = selection.job_ids(cx, where)
        leases = queries.columns_of(cx, numbers, ("lease",))
        free = [number for number in numbers if leases[number] == (None,)]
        deleted = user.delete(db, free, force=force) if free else 0
    return {"deleted": deleted, "held": len(numbers) - len(free)}


# --- results ----------------------------------------------------------------------------------------------------------


def result(db: Database, number: int) -> Row:
    """What became of a job, as `desk.Desk.result` says.

    Raises:
        UnknownJob; RemoteError: the result is too large to be handed over, or cannot be read.
    """
    with db.read() as cx:
        end = queries.end_of(cx, number)
        if end is None:
            raise UnknownJob(f"There is no job with the id {number} at this site (any more).")
        workdir = queries.job(cx, number)["workdir"]
    path = os.path.join(db.directory, location.DATA, workdir, _RESULT)
    outcome = _encoded(path) if end.state in _ENDED else None
    return {"state": end.state, "message": end.message, "outcome": outcome}


def _encoded(path: str) -> str | None:
    """The bytes of a result file as base64; None if there is none."""
    from base64 import b64encode

    try:
        size = os.path.getsize(path)
        if size > _LARGEST_RESULT_BYTES:
            raise RemoteError(
                f"The result of the job has {size} bytes; more than {_LARGEST_RESULT_BYTES} are not handed over.",
                hint=f"It is in {path}. Let the function write a file and return its path.",
            )
        with open(path, "rb") as file:
            return b64encode(file.read()).decode()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise RemoteError(f"The result of the job cannot be read: {exc}") from exc
