"""Creating, changing and deleting the jobs of a site in the workshop's words: for `local.LocalSite`.

Functions with a `db` open their own write transaction, and write everything or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from ..core import field_specs, states
from ..core.clock import SECOND_US, SystemClock
from ..core.errors import BalsamError, InputError, InvalidSpec, UnknownJob
from ..core.settings import Settings
from ..db.engine import directories
from ..db.engine.connection import Connection, Database
from ..db.query import queries, select
from ..db.record import merge_texts
from ..db.store import insert, job_changes, large_writes, pieces, user_actions
from ..db.store.transitions import with_payload
from . import job_rows
from .interface import Row

#: States in which a function has ended, so that there may be its result.
_ENDED = (states.RUN_DONE, states.RUN_ERROR, states.RUN_TIMEOUT, states.POSTPROCESSED, *states.END_STATES)
#: Clocks of hosts differ, and many give a time in whole seconds.
_CLOCKS_DIFFER_US = 60 * SECOND_US
#: So many numbers are named in an error.
_NAMED = 5


# --- creating ---------------------------------------------------------------------------------------------------------


def create(db: Database, rows: Sequence[Row]) -> list[Row]:
    """Add jobs. Returns them as they are then, in order.

    Raises:
        UnknownField, InvalidSpec, UnknownApp, UnknownJob: with the number of the row if there are several.
    """
    with _numbered_if_several(rows):
        added = insert.add_jobs(db, _checked(db, rows))
    with db.read() as cx:
        return select.new_jobs(cx, added.first, added.first + added.number - 1, {name for row in rows for name in row})


def check(db: Database, rows: Sequence[Row]) -> None:
    """Raise what `create` would, and write nothing."""
    with _numbered_if_several(rows):
        insert.check_jobs(db, _checked(db, rows))


@contextmanager
def _numbered_if_several(rows: Sequence[Row]) -> Iterator[None]:
    """Errors tell the number of their row; not so that of the only one."""
    try:
        yield
    except InputError as exc:
        if len(rows) == 1 and isinstance(exc.__cause__, BalsamError):
            raise exc.__cause__ from None
        raise


def _checked(db: Database, rows: Sequence[Row]) -> Iterator[Row]:
    """The jobs in our words; in the end it is looked whether the parents that they name exist. Opens no write transaction."""
    gpus_per_node = Settings.load(db.directory).GPUS_PER_NODE
    with db.read() as cx:
        apps = job_rows.Apps(select.apps(cx))
    new = job_rows.NewJobs(rows, apps, gpus_per_node)
    yield from new
    if not new.parents:
        return
    with db.read() as cx:
        missing = sorted(set(new.parents) - set(queries.states_of(cx, new.parents)))
    if missing:
        listed = ", ".join(map(str, missing[:_NAMED])) + (", …" if len(missing) > _NAMED else "")
        raise new.numbered(UnknownJob(f"Could not find one or more Jobs set as parents: {listed}"), new.parents[missing[0]])


# --- changing ---------------------------------------------------------------------------------------------------------


def update(db: Database, changes: Sequence[Mapping[str, Any]]) -> int:
    """Change jobs, each by its `id`. Returns how many there were.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError, StateError, UnknownJob.
    """
    if len(changes) > large_writes.FEW:
        with db.read() as cx:  # no writer waits for that
            stored = _prepared(db, cx, changes)
        user_actions.change(db, stored)
    else:
        with pieces.few(db) as cx:
            user_actions.change(db, _prepared(db, cx, changes))
    return len(changes)


def _prepared(db: Database, cx: Connection, changes: Sequence[Mapping[str, Any]]) -> list[user_actions.Change]:
    """Return checked changes in our words, those that say the same put together."""
    stored = []
    for numbers, values in job_rows.grouped(_merged(cx, changes)):
        change = job_rows.change_of(values)
        _refuse_missing(cx, numbers)
        _check(db, cx, numbers, change, values)
        stored.append(_stored(numbers, change))
    return stored


def _merged(cx: Connection, changes: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Return the changes with each dict whose value before is given merged with what others have made of it since."""
    editing = [change for change in changes if change.get("before")]
    if not editing:
        return changes
    names = list(dict.fromkeys(name for change in editing for name in change["before"]))
    text = {name: partial(field_specs.checked, field_specs.known_field(name)) for name in names}
    present = queries.columns_of(cx, [change["id"] for change in editing], names)
    found = []
    for change in changes:
        row = {name: value for name, value in change.items() if name != "before"}
        theirs = dict(zip(names, present.get(change["id"], ()))) if "before" in change else {}
        for name in change.get("before") or () if theirs else ():
            row[name] = merge_texts(text[name](change["before"][name]), text[name](row[name]), theirs[name])
        found.append(row)
    return found


def update_where(db: Database, where: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """The same change for all that match. Returns how many. Raises as `update`."""
    change = job_rows.change_of(values)

    def carry_out(numbers: list[int]) -> None:
        with db.read() as cx:
            _check(db, cx, numbers, change, values)
        user_actions.change(db, [_stored(numbers, change)])

    return len(pieces.find_and_change(db, lambda cx, most: select.job_ids(cx, where, most), carry_out)[0])


def _refuse_missing(cx: Connection, numbers: Sequence[int]) -> None:
    missing = sorted(set(numbers) - set(queries.states_of(cx, numbers)))
    if missing:
        raise UnknownJob(f"There is no job with the id {missing[0]} at this site (any more); nothing was changed.")


def _check(db: Database, cx: Connection, numbers: Sequence[int], change: job_rows.JobChange, values: Mapping[str, Any]) -> None:
    """Raise if these jobs cannot be changed in that way."""
    if "parameters" in change.fields:
        apps = job_rows.Apps(select.apps(cx))
        for (name,) in set(queries.columns_of(cx, numbers, ("application",)).values()):
            apps.check_parameters(apps.find(name), values["parameters"])
    if not {"gpus_per_rank", "ranks_per_node"}.isdisjoint(change.fields):
        gpus_per_node = Settings.load(db.directory).GPUS_PER_NODE
        for gpus, ranks in set(queries.columns_of(cx, numbers, ("gpus_per_rank", "ranks_per_node")).values()):
            wanted = field_specs.check_job({"gpus_per_rank": gpus, "ranks_per_node": ranks, **change.fields})
            job_rows.refuse_gpus(wanted["gpus_per_rank"], wanted["ranks_per_node"], gpus_per_node)
    if change.state is not None and change.time_us is not None:
        _refuse_time(cx, numbers, change.time_us)


def _stored(numbers: Sequence[int], change: job_rows.JobChange) -> user_actions.Change:
    message = change.data.get("message")  # the history shows that one, too
    said = job_changes.Annotation(message if isinstance(message, str) else "", "", with_payload(change.data), change.time_us)
    return user_actions.Change(numbers, change.fields, change.state, said, change.workdir)


def _refuse_time(cx: Connection, numbers: Sequence[int], time_us: int) -> None:
    """Raises InvalidSpec if a state cannot have been entered at that time: it would spoil histories and plots."""
    if time_us > SystemClock.now_us() + _CLOCKS_DIFFER_US:
        raise InvalidSpec(f"state_timestamp must not lie in the future, as {_shown(time_us)} does")
    created = queries.columns_of(cx, numbers, ("created",))
    early = [number for number in numbers if time_us < created[number][0] - _CLOCKS_DIFFER_US]
    if early:
        raise InvalidSpec(
            f"state_timestamp must not lie before the job was created: {_shown(time_us)} is, "
            f"job {early[0]} was created at {_shown(created[early[0]][0])}"
        )


def _shown(time_us: int) -> str:
    from datetime import datetime, timedelta, timezone

    try:
        moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=time_us)
    except OverflowError:
        return f"{time_us} µs since 1970"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


# --- deleting ---------------------------------------------------------------------------------------------------------


def delete(
    db: Database,
    where: Mapping[str, Any],
    force: bool = False,
    running: bool = False,
    progress: large_writes.Progress | None = None,
) -> Row:
    """Remove the jobs that match, those that a launcher holds only if `running` is set; {"deleted": …, "held": …} are counts.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError; ParentInUse: others wait for one of these, and `force` is not set.
    """

    def remove(numbers: list[int]) -> int:
        with db.read() as cx:
            leases = queries.columns_of(cx, numbers, ("lease",))
        free = numbers if running else [number for number in numbers if leases[number] == (None,)]
        return user_actions.delete(db, free, force=force, progress=progress) if free else 0

    numbers, deleted = pieces.find_and_change(db, lambda cx, most: select.job_ids(cx, where, most), remove)
    return {"deleted": deleted, "held": len(numbers) - deleted}


# --- results ----------------------------------------------------------------------------------------------------------


def result(db: Database, number: int) -> Row:
    """What became of a job, as `interface.SiteInterface.result` says.

    Raises:
        UnknownJob; RemoteError: the result is too large to be handed over, or cannot be read.
    """
    with db.read() as cx:
        end = queries.end_of(cx, number)
        if end is None:
            raise UnknownJob(f"There is no job with the id {number} at this site (any more).")
        job = queries.job(cx, number)
        is_function = any(app["kind"] == "function" for app in select.apps(cx, {"name": job["application"]}))
    row: Row = {"state": end.state, "message": end.message, "is_function": is_function, "outcome": None}
    if is_function and end.state in _ENDED:
        row["outcome"] = _outcome(db, job)
    return row


def _outcome(db: Database, job: Mapping[str, Any]) -> str | None:
    """What the last attempt of a job has left, as base64; None if that is nothing."""
    from base64 import b64encode

    from ..pyapps import result_file

    path = os.path.join(db.directory, directories.DATA, job["workdir"], result_file.file_name(job["job_id"]))
    found = result_file.read(path, job["job_id"], job["attempt"])
    return None if found is None else b64encode(found).decode()
