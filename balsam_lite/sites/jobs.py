"""Create, change and delete the jobs of a site, with the field names of Balsam 0.7: for `local.LocalSite`.

Functions with a `db` open their own write transaction and write everything or nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..core import field_specs, states
from ..core.clock import SECOND_US, SystemClock
from ..core.errors import BalsamError, InputError, InvalidSpec, UnknownApp, UnknownField, UnknownJob
from ..core.parameters import BY_FILE, MAX_BYTES, PICKLED, check_size, fields_of_launch_params, names_of
from ..core.settings import Settings
from ..db.engine import directories
from ..db.engine.connection import Connection, Database
from ..db.query import queries, select
from ..db.store import graph, insert, job_changes, large_writes, pieces, remote_parents, trash, unique_keys, user_actions
from ..db.store.apps import AppChange
from ..db.store.transitions import with_payload
from . import workdirs
from .interface import Row

#: Fields that the DB maintains; they may be given, but empty, when a job is created.
_KEPT = ("id", "state", "last_update", "batch_job_id", "return_code", "state_data", "state_timestamp")
#: Extra keys accepted besides the fields when a job is created.
_EXTRA = ("workdir", "allow_shared_workdir", "job_id", "origin", "parents")
_APP_NAMES = ("app_id", "app", "application")

#: States in which a function has ended, so that its result may exist.
_ENDED = (states.RUN_DONE, states.RUN_ERROR, states.RUN_TIMEOUT, states.POSTPROCESSED, *states.END_STATES)
#: Clocks of hosts differ, and many callers give a time in whole seconds.
_CLOCKS_DIFFER_US = 60 * SECOND_US
#: Bytes of one word of a command line. Source: execve(2) of Linux, MAX_ARG_STRLEN; other systems limit only the total.
_MAX_WORD = 32 * os.sysconf("SC_PAGE_SIZE") - 1 if sys.platform.startswith("linux") else MAX_BYTES


class AppSpec(NamedTuple):
    """The properties of an application that its jobs depend on."""

    name: str
    kind: str
    required: frozenset[str]
    known: frozenset[str]
    is_open: bool  # accepts parameters of any name
    template: str  # of its command line, if it has one
    defaults: dict[str, Any]
    has_preamble: bool


def app_of(row: Row) -> AppSpec:
    """Return the application described by a row of `select.apps`."""
    parameters = row["parameters"]
    required = frozenset(name for name, about in parameters.items() if isinstance(about, dict) and about.get("required"))
    definition = row["definition"]
    is_open = row["kind"] == "command" or bool(definition.get("open"))
    defaults = {name: one["default"] for name, one in parameters.items() if isinstance(one, dict) and "default" in one}
    text, has_preamble = row["command_template"] or "", bool(definition.get("preamble"))
    return AppSpec(row["name"], row["kind"], required, frozenset(parameters), is_open, text, defaults, has_preamble)


class Apps:
    """The applications of a DB by name and by number."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._found: dict[Any, AppSpec] = {}
        for row in rows:
            self._found[row["id"]] = self._found[row["name"]] = app_of(row)
        self._good: set[tuple[str, tuple[str, ...]]] = set()

    def find(self, key: Any) -> AppSpec:
        """Return an application; raise UnknownApp, which lists the registered ones, if there is none."""
        try:
            return self._found[key]
        except (KeyError, TypeError):
            names = [name for name in self._found if isinstance(name, str)]
            raise UnknownApp.named(key, names, "at this site") from None

    def check_parameters(self, app: AppSpec, parameters: Any) -> None:
        """Raise InvalidSpec if parameters are missing, extraneous, too large, or cannot be part of a command line."""
        if not isinstance(parameters, Mapping):
            raise InvalidSpec(f"job parameters must map names to values, not {parameters!r}")
        if app.kind == "template" and PICKLED in parameters:
            raise InvalidSpec(
                f"The parameters of the command template of {app.name} must be text, numbers, lists or dicts of these.",
                hint=f"Among {', '.join(names_of(parameters))} is something else.",
            )
        names = tuple(names_of(parameters))
        if (app.name, names) not in self._good:
            _check_names(app, names)
            if len(self._good) < 10_000:
                self._good.add((app.name, names))
        is_large = check_size(parameters)
        if app.kind == "template":
            _check_words(app, parameters, is_large)


def _check_names(app: AppSpec, names: Sequence[str]) -> None:
    if app.kind == "command":
        return
    missing = app.required.difference(names)
    if missing:
        raise InvalidSpec(f"Missing required parameters: {_set(missing)}", hint=f"The App {app.name} needs them.")
    extra = set(names) - app.known
    if extra and not app.is_open:
        known = f"are: {', '.join(sorted(app.known))}" if app.known else "are none"
        raise InvalidSpec(f"Extraneous parameters: {_set(extra)}", hint=f"Those of the App {app.name} {known}")


def _set(names: Iterable[str]) -> str:
    """Format names as Python prints a set, in order."""
    return "{" + ", ".join(map(repr, sorted(names))) + "}"


def _check_words(app: AppSpec, parameters: Mapping[str, Any], are_large: bool) -> None:
    for name, value in parameters.items():
        if _holds_nul(value):
            raise InvalidSpec(f"The parameter {name} holds a NUL character, which no command line can hold.")
    if not are_large:
        return
    from ..core.errors import TemplateError
    from ..launcher import template

    try:
        command = template.render(app.template, {**app.defaults, **parameters}, app.has_preamble)
    except TemplateError:
        return  # with these values; the error names the job, as for small values
    longest = max(len(word.encode(errors="replace")) for word in [*command.argv, command.text])
    if longest > _MAX_WORD:
        name = max(parameters, key=lambda name: len(str(parameters[name])))
        what = "a word" if command.argv else "a line for the shell"
        raise InvalidSpec(
            f"The parameter {name} is too large: it makes {what} of {longest} bytes, and {_MAX_WORD} are what a program "
            "can be given in one word",
            hint=BY_FILE,
        )


def _holds_nul(value: Any) -> bool:
    """Return whether a value is, or contains, a text with a NUL character."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Mapping):
        return any(_holds_nul(one) for pair in value.items() for one in pair)
    return isinstance(value, (list, tuple)) and any(map(_holds_nul, value))


def refuse_gpus(gpus_per_rank: Any, ranks_per_node: Any, gpus_per_node: int) -> None:
    """Raise InvalidSpec if a job requests more GPUs than a node has; never if the number of GPUs is unknown (-1)."""
    if gpus_per_node < 0 or not gpus_per_rank:
        return
    wanted = field_specs.checked(field_specs.JOB_FIELD["gpus_per_rank"], gpus_per_rank)
    wanted *= field_specs.checked(field_specs.JOB_FIELD["ranks_per_node"], ranks_per_node)
    if wanted > gpus_per_node:
        raise InvalidSpec(
            f"The job asks for {wanted:g} GPUs on each node (gpus_per_rank {gpus_per_rank} x ranks_per_node {ranks_per_node}), "
            f"but a node has {gpus_per_node}",
            hint="GPUS_PER_NODE in settings.json sets how many GPUs a node has.",
        )


# --- creating ---------------------------------------------------------------------------------------------------------


class JobMaker:
    """Converts rows with the field names of Balsam 0.7 to jobs for `insert.add_jobs`. Called with one row after the other."""

    def __init__(self, apps: Apps, gpus_per_node: int) -> None:
        self._apps, self._gpus_per_node = apps, gpus_per_node
        self._names: tuple[str, ...] | None = None
        self._make: Callable[[Row], Row] = dict

    def __call__(self, row: Row) -> Row:
        """Return the job.

        Raises:
            UnknownField, UnknownApp. InvalidSpec: fields are missing, or cannot be set; or the parameters do not fit the App.
        """
        if tuple(row) != self._names:
            self._make = self._maker(tuple(row))
            self._names = tuple(row)
        return self._make(row)

    def _maker(self, names: tuple[str, ...]) -> Callable[[Row], Row]:
        """Return a function that converts a row with these fields to a job."""
        if "workdir" not in names and not {"workflow", "name"} <= set(names):  # which name its directory
            raise InvalidSpec("A job needs a workdir, a path below the data directory of its site.")
        app_names = [name for name in names if name in _APP_NAMES]
        if not app_names:
            raise InvalidSpec("A job needs an app_id: the number or the name of an App.")
        copied = [(name, field_specs.OUR_NAMES.get(name, name)) for name in names if _is_copied(name)]
        field_specs.job_columns(tuple(field for _, field in copied if field not in _EXTRA))  # raises UnknownField
        kept = [name for name in names if name in _KEPT]
        has_parameters, has_launch_params, has_parents = (
            name in names for name in ("parameters", "launch_params", "parent_ids")
        )
        looks_at_gpus = self._gpus_per_node >= 0 and "gpus_per_rank" in names
        has_time = "wall_time_min" in names
        app_name = app_names[0]
        find, check_parameters = self._apps.find, self._apps.check_parameters

        def make(row: Row) -> Row:
            job = {field: row[name] for name, field in copied}
            for name in kept:
                if row[name] is not None:
                    raise InvalidSpec(f"Cannot set {name} when creating Job")
            app = find(row[app_name])
            job["application"] = app.name
            check_parameters(app, row["parameters"] if has_parameters else {})
            if has_time and job["wall_time_minutes"] == 0:
                job["wall_time_minutes"] = 1  # Balsam 0.7's "unknown"; our minimum
            if has_launch_params and row["launch_params"]:
                _set_flags(job, row["launch_params"])
            if has_parents and row["parent_ids"]:
                job["parents"] = _parents(row["parent_ids"])
            if looks_at_gpus:
                refuse_gpus(row["gpus_per_rank"], row.get("ranks_per_node", 1), self._gpus_per_node)
            return job

        return make


class NewJobs:
    """Rows to be passed to `insert.add_jobs`; can be iterated once."""

    def __init__(self, rows: Sequence[Row], apps: Apps, gpus_per_node: int) -> None:
        self._rows, self._make = rows, JobMaker(apps, gpus_per_node)
        self.parents: dict[int, int] = {}  # parents named by the rows -> number of the first row that names them
        self._workdirs: dict[str, int] = {}

    def __iter__(self) -> Iterator[Row]:
        for number, row in enumerate(self._rows, 1):
            try:
                job = self._make(row)
                self._note(number, job)
            except BalsamError as exc:
                raise self.numbered(exc, number) from exc
            yield job

    def numbered(self, exc: BalsamError, number: int) -> BalsamError:
        """Return the error with the number of its row, if there are several rows."""
        return exc if len(self._rows) == 1 else type(exc)(f"Job number {number}: {exc.message}", hint=exc.hint)

    def _note(self, number: int, job: Row) -> None:
        if "workdir" in job and not job.get("allow_shared_workdir"):
            path = field_specs.checked_workdir(job["workdir"])
            other = self._workdirs.setdefault(path, number)
            if other != number:
                raise InvalidSpec(
                    f"Workdirs must be unique for each call to bulk-create Jobs. Job number {other} has this one too: {path}",
                    hint="allow_shared_workdir=True allows it.",
                )
        for parent in job.get("parents", ()):
            self.parents.setdefault(parent, number)


def _is_copied(name: str) -> bool:
    return name not in _KEPT and name not in _APP_NAMES and name not in ("launch_params", "parent_ids")


def _set_flags(job: Row, params: Any) -> None:
    for field, value in fields_of_launch_params(params).items():
        if job.get(field):
            raise InvalidSpec(f"A job's launch_params and {field} say the same; give one of them.")
        job[field] = value


def _parents(value: Any) -> list[int]:
    if not isinstance(value, (list, tuple, set, frozenset)):
        raise InvalidSpec(f"job parent_ids must be a list of job ids, not {value!r}")
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in value):
        raise InvalidSpec(f"job parent_ids must be whole numbers, not {value!r}")
    return sorted(value)


def create(db: Database, rows: Sequence[Row], on_duplicate: str = unique_keys.REFUSE) -> list[Row]:
    """Add jobs. Return them as stored, in order; with `on_duplicate="skip"` also those that have the key of a row already.

    Raises:
        UnknownField, InvalidSpec, UnknownApp, UnknownJob, DuplicateKey: with the number of the row if there are several rows.
    """
    with _numbered_if_several(rows):
        added = insert.add_jobs(db, _checked(db, rows), on_duplicate=on_duplicate)
    fields = {name for row in rows for name in row}
    with db.read() as cx:
        made = select.new_jobs(cx, added.first, added.first + added.number - 1, fields) if added.number else []
        if not added.skipped:
            return made
        known = {row["id"]: row for row in (*made, *select.jobs(cx, {"id": added.skipped_ids}))}
    return [known[added.id_of(position)] for position in range(len(rows))]


#: Jobs whose ids `add` returns of those that were skipped.
_MAX_NAMED = 20


def add(
    db: Database,
    rows: Iterable[Row],
    on_duplicate: str = unique_keys.REFUSE,
    dry_run: bool = False,
    new_app: Row | None = None,
    progress: large_writes.Progress | None = None,
) -> Row:
    """Add jobs, in constant memory; see `SiteInterface.add_jobs`."""
    with db.read() as cx:
        known = select.apps(cx)
    changes = []
    for app in [new_app] if new_app else ():
        found = next((row for row in known if row["name"] == app["name"]), None)
        if found is None:
            changes.append(AppChange(app, is_new=True))
            known.append({"id": None, "kind": "command", "parameters": {}, "definition": {}, "command_template": "", **app})
        elif found["executable"] != app["executable"]:
            raise InvalidSpec(
                f"The application {app['name']!r} is registered with another command line than {app['executable']}: "
                f"{found['executable'] or 'a Python class'}",
                hint=f"Rename it, for example `balsam modify --type apps {app['name']} name my-{app['name']}`.",
            )
    make = JobMaker(Apps(known), Settings.load(db.directory).GPUS_PER_NODE)

    def jobs() -> Iterator[Row]:
        for number, row in enumerate(rows, 1):
            try:
                job = make(row)
            except BalsamError as exc:
                raise type(exc)(f"Job number {number}: {exc.message}", hint=exc.hint) from exc
            if row.get("parents"):
                given = [insert.Named(one) if isinstance(one, str) else insert.Position(one) for one in row["parents"]]
                job["parents"] = [*row.get("parent_ids", ()), *given]
            yield job

    added = insert.add_jobs(db, jobs(), progress, on_duplicate=on_duplicate, dry_run=dry_run, apps=changes)
    if not added.skipped:
        return {"first": added.first, "jobs": added.number, "skipped": 0, "existing": []}
    return {
        "first": added.first,
        "jobs": added.number,
        "skipped": len(added.skipped.positions),
        "existing": [added.id_of(position) for position in added.skipped.positions[:_MAX_NAMED]],
    }


def check(db: Database, rows: Sequence[Row]) -> None:
    """Raise the errors that `create` would, without writing anything."""
    with _numbered_if_several(rows):
        insert.check_jobs(db, _checked(db, rows))


@contextmanager
def _numbered_if_several(rows: Sequence[Row]) -> Iterator[None]:
    """Add the number of the row to errors, unless there is only one row."""
    try:
        yield
    except InputError as exc:
        if len(rows) == 1 and isinstance(exc.__cause__, BalsamError):
            raise exc.__cause__ from None
        raise


def _checked(db: Database, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the jobs with our field names, then check that the parents they name exist. Opens no write transaction."""
    gpus_per_node = Settings.load(db.directory).GPUS_PER_NODE
    with db.read() as cx:
        apps = Apps(select.apps(cx))
    new = NewJobs(rows, apps, gpus_per_node)
    yield from new
    if not new.parents:
        return
    with db.read() as cx:
        missing = sorted(set(new.parents) - set(queries.states_of(cx, new.parents)) - remote_parents.existing(cx, new.parents))
    if missing:
        text = f"Could not find one or more Jobs set as parents: {graph.listed(missing)}"
        unknown = UnknownJob(text, hint="`balsam job ls` shows the jobs.")
        raise new.numbered(unknown, new.parents[missing[0]])


# --- changing ---------------------------------------------------------------------------------------------------------

#: Fields that cannot be changed once a job exists.
_FIXED = ("id", "app_id", "app", "parent_ids", "job_id", "origin", "last_update", "batch_job_id")
_STATE_FIELDS = ("state", "state_data", "state_timestamp")


def change_of(values: Mapping[str, Any]) -> user_actions.Change:
    """Return a change with our field names, for no jobs yet.

    Raises:
        UnknownField, InvalidSpec.
    """
    fields: Row = {}
    for name, value in values.items():
        if name in _FIXED:
            raise InvalidSpec(f"Cannot set {name} when updating Job")
        if name == "launch_params":
            _set_flags(fields, value or {})
        elif name not in ("workdir", "before", *_STATE_FIELDS):
            fields[field_specs.OUR_NAMES.get(name, name)] = value
    if fields.get("wall_time_minutes") == 0:
        fields["wall_time_minutes"] = 1
    state, data, time_us = (values.get(name) for name in _STATE_FIELDS)
    if state is None and not (data is None and time_us is None):
        raise InvalidSpec("state_data and state_timestamp go with a new state")
    if not isinstance(data or {}, Mapping) or not isinstance(time_us or 0, int):
        raise InvalidSpec(f"state_data must be a mapping and state_timestamp microseconds, not {data!r} and {time_us!r}")
    workdir = field_specs.checked_workdir(values["workdir"]) if values.get("workdir") is not None else None
    before = field_specs.check_job(values.get("before") or {})
    texts = [(data or {}).get(name) for name in ("message", "reason")]
    shown = next((text for text in texts if text and isinstance(text, str)), "")  # the history shows it, too
    annotation = job_changes.Annotation(shown, "", with_payload(data or {}), time_us)
    return user_actions.Change((), field_specs.check_job(fields), state, annotation, workdir, before)


def grouped(changes: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], Row]]:
    """Group equal changes: return (numbers of the jobs, their change) pairs.

    Raises:
        InvalidSpec: a change has no id, or two have the same id. UnknownField.
    """
    groups: dict[str, tuple[list[int], Row]] = {}
    seen: set[int] = set()
    for change in changes:
        number = change.get("id")
        if not isinstance(number, int) or isinstance(number, bool):
            raise InvalidSpec(f"A change needs the id of what is to be changed, not {number!r}")
        if number in seen:
            raise InvalidSpec(f"There are two changes for the id {number}")
        seen.add(number)
        rest = {name: value for name, value in change.items() if name != "id"}
        try:
            key = json.dumps(rest)
        except (TypeError, ValueError, RecursionError) as exc:
            raise InvalidSpec(f"The change of {number} cannot be written as JSON: {exc}") from None
        groups.setdefault(key, ([], rest))[0].append(number)
    return list(groups.values())


def update(db: Database, changes: Sequence[Mapping[str, Any]]) -> int:
    """Change jobs, each identified by its `id`. Return the number of changes.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError, StateError, UnknownJob.
    """
    if len(changes) > large_writes.MAX_DIRECT_JOBS:
        with db.read() as cx:  # does not block writers
            stored = _prepared(db, cx, changes)
        user_actions.change(db, stored)
    else:
        with pieces.few(db) as cx:
            user_actions.change(db, _prepared(db, cx, changes))
    return len(changes)


def _prepared(db: Database, cx: Connection, changes: Sequence[Mapping[str, Any]]) -> list[user_actions.Change]:
    """Return checked changes with our field names, equal changes grouped."""
    stored = []
    for numbers, values in grouped(changes):
        change = change_of(values)
        _refuse_missing(cx, numbers)
        _check(db, cx, numbers, change, values)
        stored.append(change._replace(jobs=numbers))
    return stored


def update_where(db: Database, where: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Apply one change to all matching jobs. Return their number. Raises the same errors as `update`."""
    change = change_of(values)

    def carry_out(numbers: list[int]) -> None:
        with db.read() as cx:
            _check(db, cx, numbers, change, values)
        user_actions.change(db, [change._replace(jobs=numbers)])

    return len(pieces.find_and_change(db, lambda cx, most: select.job_ids(cx, where, most), carry_out)[0])


def _refuse_missing(cx: Connection, numbers: Sequence[int]) -> None:
    missing = sorted(set(numbers) - set(queries.states_of(cx, numbers)))
    if missing:
        raise UnknownJob(f"There is no job with the id {missing[0]} at this site (any more); nothing was changed.")


def _check(
    db: Database, cx: Connection, numbers: Sequence[int], change: user_actions.Change, values: Mapping[str, Any]
) -> None:
    """Raise if these jobs cannot be changed in this way."""
    if "parameters" in change.fields:
        apps = Apps(select.apps(cx))
        for (name,) in set(queries.columns_of(cx, numbers, ("application",)).values()):
            apps.check_parameters(apps.find(name), values["parameters"])
    if not {"gpus_per_rank", "ranks_per_node"}.isdisjoint(change.fields):
        gpus_per_node = Settings.load(db.directory).GPUS_PER_NODE
        for gpus, ranks in set(queries.columns_of(cx, numbers, ("gpus_per_rank", "ranks_per_node")).values()):
            wanted = field_specs.check_job({"gpus_per_rank": gpus, "ranks_per_node": ranks, **change.fields})
            refuse_gpus(wanted["gpus_per_rank"], wanted["ranks_per_node"], gpus_per_node)
    if change.annotation.time_us is not None:
        _refuse_time(cx, numbers, change.annotation.time_us)


def _refuse_time(cx: Connection, numbers: Sequence[int], time_us: int) -> None:
    """Raise InvalidSpec if the state cannot have been entered at that time, which would distort histories and plots."""
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


# --- rerunning and killing --------------------------------------------------------------------------------------------


def _with_downstream(cx: Connection, where: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the numbers of the matching jobs, and of the other jobs that depend on them."""
    matching = select.job_ids(cx, where)
    known = set(matching)
    return matching, [number for number in graph.descendants(cx, matching) if number not in known]


def count_downstream(db: Database, where: Mapping[str, Any]) -> int:
    """Return the number of other jobs that depend on matching ones."""
    with db.read() as cx:
        return len(_with_downstream(cx, where)[1])


def rerun(
    db: Database,
    where: Mapping[str, Any],
    to: str | None = None,
    changes: Mapping[str, Any] = {},
    downstream: bool = False,
    progress: large_writes.Progress | None = None,
) -> Row:
    """Put the jobs that match back to be run again, as `interface.SiteInterface.rerun` specifies.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError, UnknownApp.
    """
    if to not in (None, states.CREATED, states.RESTART_READY):
        raise InvalidSpec(f"Jobs are put back into {states.CREATED} or {states.RESTART_READY}, not {to!r}.")
    for name in ("workdir", *_STATE_FIELDS):
        if name in changes:
            raise UnknownField(f"A job that is put back cannot be given a new {name}.")
    change = change_of(changes)

    def find(cx: Connection) -> tuple[list[int], list[int]]:
        return _with_downstream(cx, where) if downstream else (select.job_ids(cx, where), [])

    def put_back(matching: list[int], below: list[int]) -> Row:
        with db.read() as cx:
            _check(db, cx, matching, change, changes)
        done = user_actions.rerun(db, matching, to, change.fields, below, progress)
        with db.read() as cx:
            waiting = queries.count_waiting(cx, [*matching, *below])
            failed, parent = queries.failed_with_parent(cx, [*matching, *below])
        return {"jobs": done.jobs - failed, "held": done.held, "waiting": waiting, "failed": failed, "parent": parent}

    with db.read() as cx:
        matching, below = find(cx)
    if len(matching) + len(below) > large_writes.MAX_DIRECT_JOBS:
        return put_back(matching, below)
    with pieces.few(db) as cx:  # those that match now
        return put_back(*find(cx))


def kill(db: Database, where: Mapping[str, Any], recursive: bool = False, progress: large_writes.Progress | None = None) -> Row:
    """Kill the jobs that match, as `interface.SiteInterface.kill` specifies.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError.
    """
    with db.read() as cx:
        numbers = select.job_ids(cx, where)
    return user_actions.kill(db, numbers, recursive=recursive, progress=progress)._asdict()


# --- deleting ---------------------------------------------------------------------------------------------------------


def delete(
    db: Database,
    where: Mapping[str, Any],
    force: bool = False,
    running: bool = False,
    no_trash: bool = False,
    with_workdirs: bool = False,
    progress: large_writes.Progress | None = None,
    dry_run: bool = False,
) -> Row:
    """Remove the jobs that match; jobs held by a launcher only if `running` is set. Return what `interface` specifies.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError; ParentInUse: other jobs wait for one of these, and `force` is not set.
    """

    def unheld(numbers: list[int]) -> list[int]:
        with db.read() as cx:
            leases = queries.columns_of(cx, numbers, ("lease",))
        return [number for number in numbers if leases[number] == (None,)]

    def remove(numbers: list[int]) -> int:
        safe = unheld(numbers)
        free = numbers if running else safe
        done["is_kept"] = not no_trash and trash.has_room(db, len(free))
        if with_workdirs:
            done["workdirs"] = workdirs.of_jobs(db, free, safe)
        return user_actions.delete(db, free, force=force, is_kept=done["is_kept"], progress=progress) if free else 0

    if dry_run:
        with db.read() as cx:
            numbers = select.job_ids(cx, where)
        free = numbers if running else unheld(numbers)
        user_actions.check_deletion(db, free, force)
        return {"is_kept": not no_trash, "deleted": len(free), "held": len(numbers) - len(free)}
    done: Row = {"is_kept": True}
    numbers, deleted = pieces.find_and_change(db, lambda cx, most: select.job_ids(cx, where, most), remove)
    if with_workdirs:  # now that no job has them any more
        done["workdirs"] = workdirs.remove(db, done["workdirs"])
    return {**done, "deleted": deleted, "held": len(numbers) - deleted}


# --- results ----------------------------------------------------------------------------------------------------------


def result(db: Database, number: int) -> Row:
    """Return the outcome of a job, as `interface.SiteInterface.result` specifies.

    Raises:
        UnknownJob; RemoteError: the result is too large to transfer, or cannot be read.
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
    """Return what the last attempt of a job has stored, as base64; None if it has stored nothing."""
    from base64 import b64encode

    from ..pyapps import result_file

    path = os.path.join(db.directory, directories.DATA, job["workdir"], result_file.file_name(job["job_id"]))
    found = result_file.read(path, job["job_id"], job["attempt"])
    return None if found is None else b64encode(found).decode()
