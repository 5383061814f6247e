"""Merge jobs of another DB or program, with their whole history, into a DB that is at work.

The jobs are read and checked first, outside of any transaction, and put aside in a file. Then they are inserted in pieces that
stay hidden until all are inserted (`pieces.HiddenInsert`): other processes see all of them or none, and a crash leaves nothing.
Memory holds a number for each job and each dependency.

What becomes of a job:

- Its UUID is kept, so that the same job is recognized when it comes again, and skipped. If the short id is that of another job,
  a new UUID is drawn; the table `imported` keeps the former one. Numbers are always new.
- A job that has ended stays as it is. One that has not arrives as USER_KILLED, so that nothing starts by itself and `balsam
  rerun` puts it to work; with `MergeOptions.is_runnable` it arrives in its state, or as RESTART_READY if it was RUNNING.
- No launcher, launch or batch job of the other DB is taken over; runs name their nodes, but no launcher.
- A parent that does not come along is found by its UUID if it is here. Otherwise the dependency is dropped, and a job that
  still waits for it arrives as USER_KILLED.
- A job whose `unique_key` is that of a job here counts as that job, and is skipped; a copy of it (`new_ids`) loses the key.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from ...core import causes, field_specs, job_files, states
from ...core.clock import SystemClock
from ...core.errors import DependencyCycle, DuplicateApp, DuplicateJobId, InvalidSpec, UnknownJob
from ...core.plain_values import json_of_result
from ..collected import Added
from ..engine.connection import Database
from ..engine.directories import DATA
from ..engine.schema import HAS_KEY, OWN_WORKDIR, VISIBLE, visible
from ..query import queries
from . import apps as applications
from . import calls, counters, graph, large_writes, pieces, runs, unique_keys
from .blocks import Blocks
from .large_writes import Progress
from .tags import Tagger
from .transitions import id_list

#: Jobs that are read and checked at once.
_CHUNK = 2500
#: Seconds between two signs of life while files are copied.
_TOUCH_INTERVAL_S = 20.0


class Origin(NamedTuple):
    """Where jobs come from; `balsam show` names it."""

    kind: str  # "archive", or the name of an importer
    file: str = ""  # absolute path of what was imported
    host: str = ""
    directory: str = ""  # of the DB there
    db: str = ""  # id of that DB
    written_us: int | None = None  # when the file was written


class ForeignEvent(NamedTuple):
    """A change of a job's state, but not its creation, which the fields `created` and `origin` record."""

    time_us: int
    from_state: str
    to_state: str
    message: str = ""
    data: Mapping[str, Any] | None = None


class ForeignEdit(NamedTuple):
    """A change of a field by a user: `old` and `new` as `actions.Edit` has them."""

    time_us: int
    user: str
    host: str
    command: str
    kind: str
    field: str
    attempt: int
    old: Any
    new: Any


class ForeignCall(NamedTuple):
    """A call of an executor; see `calls`."""

    context: bytes
    payload: bytes
    result: bytes | None = None  # kept only if it is plain: who reads another one runs what is in it


class ForeignJob(NamedTuple):
    """A job as it comes from elsewhere."""

    number: int  # in its source, where no other job has it
    job_id: str  # a UUID, by which it is recognized when it comes again: draw it from what identifies the job (`uuid.uuid5`)
    #: By the names of `field_specs.JOB_FIELDS`, including those that users cannot set (`state`, `created`, `attempt`, …).
    #: Missing ones have their defaults; values are as users give them, times in microseconds UTC.
    fields: Mapping[str, Any]
    failure: str = ""  # of a FAILED job: the cause, see `core.causes`
    events: Sequence[ForeignEvent] = ()  # oldest first
    #: By the columns of the table `run` (`query.runs.Run`): `attempt`, `nodes`, `started`, `ended`, `return_code`, `user_us`,
    #: `system_us`, `max_memory`, `cause`, …; `lease` is ignored.
    runs: Sequence[Mapping[str, Any]] = ()
    edits: Sequence[ForeignEdit] = ()
    parents: Sequence[int] = ()  # numbers of jobs that come along, before or after this one
    absent_parents: Sequence[str] = ()  # UUIDs of parents that do not come along
    folder: str = ""  # where its files are, as `place_files` knows it; "": none come along
    call: ForeignCall | None = None


class MergeOptions(NamedTuple):
    """How to merge."""

    new_ids: bool = False  # draw a UUID for every job: add copies, also of jobs that are here
    workflow: str = ""  # put all jobs into this workflow
    is_runnable: bool = False  # jobs that have not ended may run here
    on_differing_app: str = "refuse"  # "keep" the one that is here, or "rename" the one that comes
    files_to: str = ""  # directory to put the jobs' directories into; "": data/
    dry_run: bool = False


class Merged(NamedTuple):
    """What was merged, or would be."""

    added: Added
    already_here: int  # jobs that were skipped
    same_key: int  # jobs that were skipped, as a job here has their unique_key
    redrawn: int  # jobs whose short id was that of another job
    stopped: Mapping[str, int]  # state -> jobs that had not ended, and are USER_KILLED
    orphaned: int  # jobs that have lost a parent
    moved: int  # jobs whose directory was outside of data/, and is not here
    new_apps: Sequence[str]
    kept_apps: Sequence[str]  # names of applications that differ here, and stay
    renamed_apps: Mapping[str, str]
    unknown_apps: Sequence[str]  # names that jobs have, of no application


#: Puts the files of the jobs in place, before these become visible: from `ForeignJob.folder` to the directory of the job. Call
#: its second argument now and then.
PlaceFiles = Callable[[Mapping[str, str], Callable[[], None]], None]


def merge(
    db: Database,
    jobs: Iterable[ForeignJob],
    origin: Origin,
    apps: Iterable[Mapping[str, Any]] = (),
    options: MergeOptions = MergeOptions(),
    *,
    place_files: PlaceFiles | None = None,
    progress: Progress | None = None,
) -> Merged:
    """Add foreign jobs and their applications, all or nothing. Opens read transactions, and short write transactions.

    Args:
        apps: applications by the names of `field_specs.APP_FIELDS`; those that no job has are added, too.
        progress: called with the number of jobs read or inserted since the last call.

    Raises:
        InvalidSpec, UnknownField, InvalidStateError: with the number of the job in its source. DependencyCycle. DuplicateKey:
        another process has meanwhile added a job with that key. DatabaseBusy: another one adds very many jobs with keys.
        DuplicateApp: an application of that name is here and differs. DuplicateJobId: another process adds the same job.
        UnknownJob: a parent that is here was removed meanwhile. What `place_files` raises.
    """
    if not options.dry_run:
        pieces.complete(db)  # what an import that was killed has left
    with Blocks() as blocks:
        reader = _Reader(db, blocks, origin, options, list(apps))
        given = iter(jobs)
        while chunk := list(islice(given, _CHUNK)):
            reader.read(chunk)
            if progress:
                progress(len(chunk))
        links = reader.resolved()
        if options.dry_run or not (reader.rows or reader.new_apps):
            return reader.report(Added(0, reader.rows))
        if not reader.rows:
            with pieces.few(db) as cx:
                reader.add_apps(cx)
            return reader.report(Added(0, 0))
        return reader.report(_Merging(db, reader, links, place_files, progress).carry_out())


# --- reading and checking ---------------------------------------------------------------------------------------------

_NAMES = tuple(field.name for field in field_specs.JOB_FIELDS)
_PLACE = {name: place for place, name in enumerate(_NAMES, 1)}  # in a row, which begins with the UUID
_KEY = _PLACE["unique_key"]
_COLUMNS = ("job_id", *_NAMES, "failure")
_DEFAULTS = ["", *(field.default for field in field_specs.JOB_FIELDS), None]
#: What belongs to the DB that a job comes from: it has the default here.
_LEFT_BEHIND = frozenset(("lease", "queued_launch_id", "unfinished_parents", "start_after", "told_to_stop"))
_RUN_COLUMNS = (
    "attempt", "nodes", "gpus", "cpus", "started", "ended", "return_code", "user_us", "system_us", "max_memory", "cause"
)  # fmt: skip
_TEXT_COLUMNS = ("nodes", "gpus", "cpus", "cause")


class _Block(NamedTuple):
    """Rows of checked jobs; each begins with the position of its job among those to be added, counted from 0."""

    first: int  # position of the first job
    jobs: list[tuple[Any, ...]]  # as `_COLUMNS`, with the cause of a failure in words
    sources: list[tuple[int, int, str | None]]  # number in the source; UUID there, if it differs
    events: list[tuple[Any, ...]]  # as the table has them, and the number of the parent there that the data names
    runs: list[tuple[Any, ...]]
    edits: list[tuple[Any, ...]]
    calls: list[tuple[int, int, bytes, bytes | None]]  # position; place of the context in `_Reader.contexts`; payload; result


class _Reader:
    """Checks foreign jobs, decides what becomes of each, and puts the rows aside."""

    def __init__(
        self, db: Database, blocks: Blocks, origin: Origin, options: MergeOptions, apps: Sequence[Mapping[str, Any]]
    ) -> None:
        self.db, self.blocks, self.origin, self.options = db, blocks, origin, options
        self.now_us = SystemClock.now_us()
        self.rows = 0  # jobs to be added
        self.has_keys = False  # whether one of these has a unique_key
        self.folders: dict[str, str] = {}  # of these, for `PlaceFiles`
        self.links: list[tuple[int, int]] = []  # (number of the parent in the source, position of the child)
        self.outer: list[tuple[int, int]] = []  # (number of a parent that is here, position of the child)
        self.places: dict[int, int] = {}  # number in the source -> position; of a job that is here: -number - 1
        self.contexts: dict[bytes, int] = {}  # of calls -> their places
        self._other_jobs: set[int] = set()  # numbers in the source for which another job with the same key is here
        self._parents_of_calls: dict[int, list[int]] = {}  # position -> numbers in the source
        self.without_payload: set[int] = set()  # positions of calls that cannot be made here
        self._short_ids: set[int] = set()
        self._workdirs: dict[str, str] = {}  # that users chose, there -> here
        self._used_apps: set[str] = set()
        self._found: Counter[str] = Counter()
        self.stopped: Counter[str] = Counter()
        self.workflow = field_specs.checked(field_specs.JOB_FIELD["workflow"], options.workflow)
        self.new_apps: dict[str, dict[str, Any]] = {}
        self.kept_apps: list[str] = []
        self.renamed_apps: dict[str, str] = {}
        self._plan_apps(apps)

    # - applications -

    def _plan_apps(self, apps: Sequence[Mapping[str, Any]]) -> None:
        with self.db.read() as cx:
            here = _stored_apps(cx)
        self._apps_here = set(here)
        for app in apps:
            stored = {field.name: field.default for field in field_specs.APP_FIELDS} | field_specs.check_app(app)
            name = stored["name"]
            if not name or name in self.new_apps:
                raise InvalidSpec(f"The application {name!r} is given twice." if name else "An application has no name.")
            other = here.get(name)
            if other is None:
                self.new_apps[name] = stored
                continue
            differing = [key for key, value in stored.items() if value != other[key] and key != "description"]
            if not differing:
                continue
            if self.options.on_differing_app == "keep":
                self.kept_apps.append(name)
            elif self.options.on_differing_app == "rename":
                taken = {*here, *self.new_apps, *(str(one.get("name")) for one in apps)}
                new = next(f"{name}-{n}" for n in range(2, len(taken) + 3) if f"{name}-{n}" not in taken)
                # A former import may have brought the same one.
                same = (one for one in here if one.startswith(f"{name}-") and _is_same(here[one], stored))
                self.renamed_apps[name] = next(same, new)
                if self.renamed_apps[name] == new:
                    self.new_apps[new] = {**stored, "name": new}
            else:
                shown = "\n".join(f"  {key}: here {other[key]!r}, there {stored[key]!r}" for key in differing)
                raise DuplicateApp(
                    f"The application {name} is here, and differs from the one that comes with the jobs; nothing was added.\n"
                    f"{shown}",
                    hint="--keep-apps uses the one that is here; --rename-apps adds the other one with another name.",
                )

    def add_apps(self, cx: sqlite3.Connection) -> None:
        """Add the new applications. Raises DuplicateApp: another process was first."""
        for app in self.new_apps.values():
            applications.add_app(cx, app)

    # - jobs -

    def read(self, jobs: Sequence[ForeignJob]) -> None:
        """Check jobs and put aside the rows of those that are to be added."""
        ids = {job.number: self._checked_id(job) for job in jobs}
        absent = {field_specs.checked_job_id(job_id) for job in jobs for job_id in job.absent_parents}
        block = _Block(self.rows, [], [], [], [], [], [])
        with self.db.read() as cx:
            dry_run = self.options.dry_run
            taken = _taken(
                cx, {*ids.values(), *absent}, {key for job in jobs if (key := job.fields.get("unique_key"))}, dry_run
            )
            self._workdirs.update(self._choose_workdirs(cx, jobs, ids))
            for job in jobs:
                if job.number in self.places:
                    raise InvalidSpec(f"{_named(job)}: two jobs have the number {job.number}")
                same = taken.same.get(ids[job.number])
                kind = "already_here"
                if same is None and (key := job.fields.get("unique_key")) in taken.keys:
                    same, kind = taken.keys[key], "same_key"
                if same is not None and not self.options.new_ids:
                    self.places[job.number] = -same - 1
                    self._found[kind] += 1
                    if kind == "same_key":
                        self._other_jobs.add(job.number)
                    continue
                self.places[job.number] = self.rows
                try:
                    self._put(cx, block, job, ids[job.number], taken)
                except ValueError as exc:
                    raise type(exc)(f"{_named(job)}: {exc}") from exc
                self.rows += 1
        if block.jobs:
            self.blocks.put(tuple(block))

    def _checked_id(self, job: ForeignJob) -> str:
        if type(job.number) is not int or not 0 < job.number < 2**53:
            raise InvalidSpec(f"The number of a job must be a whole number above 0, not {job.number!r}")
        try:
            return field_specs.checked_job_id(job.job_id)
        except ValueError as exc:
            raise type(exc)(f"{_named(job)}: {exc}") from exc

    def _choose_workdirs(self, cx: sqlite3.Connection, jobs: Sequence[ForeignJob], ids: Mapping[int, str]) -> dict[str, str]:
        """Return where the directories are that users chose: jobs that share one there share one here."""
        query = f"SELECT 1 FROM job INDEXED BY job_own_workdir WHERE {OWN_WORKDIR} AND workdir = ? LIMIT 1"
        found: dict[str, str] = {}
        for job in jobs:
            workdir = job.fields.get("workdir") or ""
            if not workdir or workdir in self._workdirs or job_files.is_generated(workdir, ids[job.number]):
                continue
            if job.fields.get("user_workdir"):
                continue
            path = field_specs.checked_workdir(workdir)
            is_used = cx.execute(query, (path,)).fetchone() or os.path.lexists(os.path.join(self.db.directory, DATA, path))
            found.setdefault(workdir, f"{path}_{ids[job.number][:8]}" if is_used else path)
        return found

    def _put(self, cx: sqlite3.Connection, block: _Block, job: ForeignJob, there: str, taken: _Taken) -> None:
        position, job_id = self.rows, there
        is_new = self.options.new_ids
        if not is_new and (int(there[:8], 16) in self._short_ids or there[:8] in taken.short):
            is_new = True
            self._found["redrawn"] += 1
        while is_new and (job_id == there or int(job_id[:8], 16) in self._short_ids or queries.short_id_holder(cx, job_id)):
            job_id = field_specs.new_job_id()
        self._short_ids.add(int(job_id[:8], 16))
        row = list(_DEFAULTS)
        row[0] = job_id
        for name, value in job.fields.items():
            field = field_specs.known_field(name)
            if field.name not in _LEFT_BEHIND:
                row[_PLACE[field.name]] = field_specs.checked(field, value)
        if self.workflow:
            row[_PLACE["workflow"]] = self.workflow
        if row[_KEY] in taken.keys:
            row[_KEY] = None
        self.has_keys = self.has_keys or row[_KEY] is not None
        app = row[_PLACE["application"]]
        self._used_apps.add(app)
        row[_PLACE["application"]] = self.renamed_apps.get(app, app)
        self._place_workdir(row, job, there)
        events = [_checked_event(event) for event in job.events]
        self._link(job, position, taken)
        was, is_orphaned = row[_PLACE["state"]], bool(job.absent_parents) and not taken.same.keys() >= set(job.absent_parents)
        self._found["orphaned"] += is_orphaned
        now, message = self._state_here(was, row, job, is_orphaned)
        if now != was:
            row[_PLACE["state"]] = now
            events.append((self.now_us, was, now, message, None, None))
        if now == states.FAILED:
            row[-1] = field_specs.checked(field_specs.JOB_FIELD["origin"], job.failure) or causes.UNKNOWN
        block.jobs.append(tuple(row))
        block.sources.append((position, job.number, there if is_new else None))
        block.events.extend((position, *event) for event in events)
        block.runs.extend((position, *run) for run in self._checked_runs(job))
        block.edits.extend((position, *_checked_edit(edit)) for edit in job.edits)
        if job.call is not None:
            self._put_call(block, job, job.call, position)

    def _put_call(self, block: _Block, job: ForeignJob, call: ForeignCall, position: int) -> None:
        result = call.result if json_of_result(call.result) is not None else None
        block.calls.append((position, self.contexts.setdefault(call.context, len(self.contexts)), call.payload, result))
        self._parents_of_calls[position] = sorted(job.parents)
        if job.absent_parents:
            self.without_payload.add(position)

    def _state_here(self, state: str, row: Sequence[Any], job: ForeignJob, is_orphaned: bool) -> tuple[str, str]:
        """Return the state in which a job arrives, and the message of the event that leads there."""
        if state in states.END_STATES:
            return state, ""
        waits = is_orphaned and row[_PLACE["wait_for_parents"]] and not row[_PLACE["attempt"]]
        if waits or not self.options.is_runnable:
            self.stopped[state] += 1
            why = "a parent of it was not imported" if waits else "`balsam rerun` lets it run here"
            return states.USER_KILLED, f"It was {state} where it comes from; {why}"
        if state == states.RUNNING:
            return states.RESTART_READY, "It was RUNNING where it comes from"
        if state == states.AWAITING_PARENTS and not (job.parents or job.absent_parents):
            return states.READY, "It has no parents here"
        return str(state), ""

    def _place_workdir(self, row: list[Any], job: ForeignJob, there: str) -> None:
        """Set the working directory of a job, and where its files come to: never into one that is here and that it names."""
        workdir, own, job_id = row[_PLACE["workdir"]], row[_PLACE["user_workdir"]], row[0]
        here = field_specs.workdir_name(row[_PLACE["workflow"]], row[_PLACE["name"]], job_id)
        if own and job.folder and (self.options.files_to or not os.path.isdir(own)):
            self._found["moved"] += 1
            own = ""
        elif own:
            here = os.path.abspath(own)
        if workdir and not os.path.isabs(workdir) and not row[_PLACE["user_workdir"]]:
            if not job_files.is_generated(workdir, there):
                here = self._workdirs[workdir]
            elif not self.workflow:
                here = field_specs.checked_workdir(workdir.replace(there[:8], job_id[:8]))
        if self.options.files_to and job.folder:
            own = here = os.path.join(self.options.files_to, here)
        row[_PLACE["workdir"]], row[_PLACE["user_workdir"]] = here, own
        if job.folder and (self.options.files_to or not own):
            self.folders[job.folder] = here

    def _link(self, job: ForeignJob, position: int, taken: _Taken) -> None:
        for parent in dict.fromkeys(job.parents):
            if parent == job.number:
                raise DependencyCycle("a job cannot wait for itself")
            self.links.append((parent, position))
        for job_id in job.absent_parents:
            if job_id in taken.same:
                self.outer.append((taken.same[job_id], position))

    def _checked_runs(self, job: ForeignJob) -> Iterator[tuple[Any, ...]]:
        seen = set()
        for run in job.runs:
            values = {"cause": "", **run}
            if values.get("ended") is None:
                values.update(ended=self.origin.written_us or self.now_us, cause=runs.UNKNOWN)
            texts, numbers = field_specs.JOB_FIELD["description"], field_specs.JOB_FIELD["return_code"]
            row = tuple(
                field_specs.checked(texts, values.get(name) or "", f"run's {name}, as")
                if name in _TEXT_COLUMNS
                else field_specs.checked(numbers, values.get(name), f"run's {name}, as")
                for name in _RUN_COLUMNS
            )
            if not row[0] or row[0] < 1 or row[0] in seen:
                raise InvalidSpec(f"the attempt of a run must be a number that no other one has, not {row[0]!r}")
            seen.add(row[0])
            yield row

    def resolved(self) -> list[tuple[int, int]]:
        """Return the dependencies within the jobs to be added, by position; those on jobs that are here go to `outer`.

        Raises:
            InvalidSpec: a parent is not among the jobs. DependencyCycle.
        """
        inner = []
        for parent, child in self.links:
            place = self.places.get(parent)
            if place is None:
                raise InvalidSpec(f"A job has a parent with the number {parent}, which is not among the jobs.")
            if place < 0:
                self.outer.append((-place - 1, child))
            else:
                inner.append((place, child))
        # A call names its parents by their order among those that are calls, which may be another one here.
        for position, parents in self._parents_of_calls.items():
            here = [(self.places[one] >= 0, abs(self.places[one])) for one in parents]
            if here != sorted(here) or self._other_jobs.intersection(parents):
                self.without_payload.add(position)
        cycle = graph.find_cycle(inner) if any(parent >= child for parent, child in inner) else []
        if cycle:
            raise DependencyCycle(f"{len(cycle)} of the jobs would wait for each other; nothing was added.")
        return inner

    def report(self, added: Added) -> Merged:
        """Return what was done, or would be."""
        known = {*self._apps_here, *self.new_apps, *self.renamed_apps, ""}
        return Merged(
            added, self._found["already_here"], self._found["same_key"], self._found["redrawn"], dict(self.stopped),
            self._found["orphaned"], self._found["moved"], list(self.new_apps), self.kept_apps, self.renamed_apps,
            sorted(self._used_apps - known),
        )  # fmt: skip


class _Taken(NamedTuple):
    """Which of some UUIDs are in use."""

    same: dict[str, int]  # of jobs that are here, or came with it -> their numbers
    short: set[str]  # short ids of other jobs
    keys: dict[str, int]  # unique_key -> number of the job here


def _taken(cx: sqlite3.Connection, ids: set[str], keys: set[str], is_preview: bool = False) -> _Taken:
    """Return which of these UUIDs, their short ids and keys are in use. Raises DuplicateJobId: a job is just being added."""
    found = _Taken({}, set(), {})
    query = f"""SELECT id, job_id, {VISIBLE} FROM job
        WHERE substr(job_id, 1, 8) IN (SELECT value FROM json_each(?))"""
    for number, job_id, is_visible in cx.execute(query, (json.dumps([one[:8] for one in ids]),)):
        found.short.add(job_id[:8])
        if job_id in ids:
            if not is_visible and not is_preview:
                raise DuplicateJobId(f"Another process is just adding the job {job_id}; nothing was added.", hint="Try again.")
            if is_visible:
                found.same[job_id] = number
    query = f"""SELECT job_id, job FROM imported INDEXED BY imported_job_id
        WHERE job_id IN (SELECT value FROM json_each(?)) AND {visible("job")}"""
    for job_id, number in cx.execute(query, (json.dumps(list(ids)),)):
        found.same.setdefault(job_id, number)
    query = f"SELECT unique_key, id FROM job WHERE {HAS_KEY} AND {VISIBLE} AND unique_key IN (SELECT value FROM json_each(?))"
    found.keys.update(cx.execute(query, (json.dumps(list(keys)),)) if keys else ())
    return found


def _stored_apps(cx: sqlite3.Connection) -> dict[str, dict[str, Any]]:
    names = [field.name for field in field_specs.APP_FIELDS]
    return {row[names.index("name")]: dict(zip(names, row)) for row in cx.execute(f"SELECT {', '.join(names)} FROM app")}


def _is_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[key] == other[key] for key in one if key not in ("name", "description"))


def _named(job: ForeignJob) -> str:
    return f"Job #{job.number} of the source"


def _checked_event(event: ForeignEvent) -> tuple[Any, ...]:
    time_us, from_state, to_state, message, data = event
    for state in (from_state, to_state):
        states.check_state(state)
    text, parent = None, None
    if data:
        text = field_specs.checked(field_specs.JOB_FIELD["data"], data, "event's")
        parent = data.get("parent")
    return (
        field_specs.checked(field_specs.JOB_FIELD["created"], time_us, "event's time, as"), from_state, to_state,
        field_specs.checked(field_specs.JOB_FIELD["description"], message, "event's message, as"), text,
        parent if type(parent) is int else None,
    )  # fmt: skip


def _checked_edit(edit: ForeignEdit) -> tuple[Any, ...]:
    for value in (edit.old, edit.new):
        if not isinstance(value, (str, int, float, type(None))):
            raise InvalidSpec(f"the value of an edit must be text or a number, not {value!r}")
    words = (edit.user, edit.host, edit.command, edit.kind, edit.field)
    return (
        field_specs.checked(field_specs.JOB_FIELD["created"], edit.time_us, "edit's time, as"),
        *(field_specs.checked(field_specs.JOB_FIELD["description"], word, "edit's") for word in words),
        field_specs.checked(field_specs.JOB_FIELD["attempt"], edit.attempt, "edit's"), edit.old, edit.new,
    )  # fmt: skip


# --- inserting --------------------------------------------------------------------------------------------------------


class _Merging(pieces.HiddenInsert):
    """The insert of foreign jobs that were checked."""

    def __init__(
        self,
        db: Database,
        reader: _Reader,
        links: list[tuple[int, int]],
        place_files: PlaceFiles | None,
        progress: Progress | None,
    ) -> None:
        self._reader, self._links, self._place_files, self._progress = reader, links, place_files, progress
        self._source = 0
        self._actions: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}
        with unique_keys.when_free(db, reader.has_keys) as cx:
            hidden = large_writes.hide(cx, reader.rows, reader.has_keys)
        super().__init__(db, hidden)

    def _all_units(self) -> Iterator[Callable[[sqlite3.Connection], None]]:
        for block in self._reader.blocks:
            yield partial(self._add_block, _Block(*block))
        first = self.hidden.first
        edges = [(first + parent, first + child) for parent, child in self._links]
        edges += [(parent, first + child) for parent, child in self._reader.outer]
        for start in range(0, len(edges), pieces.INSERT_UNIT):
            yield partial(self._add_edges, edges[start : start + pieces.INSERT_UNIT])

    def _add_block(self, block: _Block, cx: sqlite3.Connection) -> None:
        first = self.hidden.first
        if not self._source:
            names = ("time", "kind", "file", "host", "directory", "db", "written")
            sql = f"INSERT INTO source ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
            self._source = cx.execute(sql, (self._reader.now_us, *self._reader.origin)).lastrowid or 0
        taken = _taken(cx, {row[0] for row in block.jobs}, {row[_KEY] for row in block.jobs} - {None})
        if taken.keys:
            raise unique_keys.taken(cx, min(taken.keys))
        if taken.short:
            short = min(taken.short)
            raise DuplicateJobId(f"Another process has just added a job {short}; nothing was added.", hint="Try again.")
        causes_here = {cause: counters.number_of_cause(cx, cause) for cause in {row[-1] for row in block.jobs} - {None}}
        rows = [(*row[:-1], causes_here.get(row[-1]), number) for number, row in enumerate(block.jobs, first + block.first)]
        sql = f"INSERT INTO job ({', '.join(_COLUMNS)}, id) VALUES ({', '.join('?' * (len(_COLUMNS) + 1))})"
        try:
            cx.executemany(sql, rows)
        except sqlite3.IntegrityError as exc:
            raise InvalidSpec(f"Two of the jobs have one unique_key; nothing was added: {exc}") from exc
        Tagger(cx).add((row[-1], row[_PLACE["tags"]]) for row in rows)
        cx.executemany(
            "INSERT INTO imported (job, source, number, job_id) VALUES (?, ?, ?, ?)",
            ((first + position, self._source, *there) for position, *there in block.sources),
        )
        cx.executemany(
            "INSERT INTO event (job, time, from_state, to_state, message, data) VALUES (?, ?, ?, ?, ?, ?)",
            (
                (first + position, *event, text if parent is None else self._with_parent(text, parent))
                for position, *event, text, parent in block.events
            ),
        )
        cx.executemany(
            f"INSERT INTO run (job, {', '.join(_RUN_COLUMNS)}) VALUES (?, {', '.join('?' * len(_RUN_COLUMNS))})",
            ((first + position, *run) for position, *run in block.runs),
        )
        cx.executemany(
            "INSERT OR IGNORE INTO edit (job, action, field, attempt, old) VALUES (?, ?, ?, ?, ?)",
            (
                (first + position, self._action(cx, tuple(action), field, new), field, attempt, old)
                for position, *action, field, attempt, old, new in block.edits
            ),
        )
        contexts = list(self._reader.contexts)
        numbers = {place: calls.context_number(cx, contexts[place]) for place in {call[1] for call in block.calls}}
        without = self._reader.without_payload
        calls.add(
            cx,
            (
                (first + position, numbers[context], b"" if position in without else payload)
                for position, context, payload, _ in block.calls
            ),
        )
        calls.store_results(cx, ((result, first + position) for position, *_, result in block.calls))
        places = _PLACE["workflow"], _PLACE["state"]
        large_writes.count_hidden(cx, self.hidden.write, Counter((row[places[0]], row[places[1]]) for row in rows))
        self._written += len(rows)
        if self._progress:
            self._progress(len(rows))

    def _with_parent(self, data: str, parent: int) -> str:
        """Return the data of an event with the number of a parent here; 0 if it is not here."""
        place = self._reader.places.get(parent)
        number = 0 if place is None else -place - 1 if place < 0 else self.hidden.first + place
        return json.dumps({**json.loads(data), "parent": number})

    def _action(self, cx: sqlite3.Connection, key: tuple[Any, ...], field: str, new: Any) -> int:
        """Return the number of an action there. It has no jobs, so that `undo` does not offer it."""
        if key not in self._actions:
            time_us, *who, kind = key
            cx.execute("INSERT OR IGNORE INTO author (user, host, command) VALUES (?, ?, ?)", who)
            author = "SELECT id FROM author WHERE user = ? AND host = ? AND command = ?"
            sql = f"INSERT INTO action (time, author, kind) VALUES (?, ({author}), ?)"
            self._actions[key] = (cx.execute(sql, (time_us, *who, kind)).lastrowid or 0, {})
        number, fields = self._actions[key]
        if field not in fields:
            fields[field] = new
            cx.execute("UPDATE action SET fields = ? WHERE id = ?", (json.dumps(fields), number))
        return number

    def _add_edges(self, edges: Sequence[tuple[int, int]], cx: sqlite3.Connection) -> None:
        outer = {parent for parent, _ in edges if parent < self.hidden.first}
        if outer:
            sql = "SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))"
            outer -= {row[0] for row in cx.execute(sql, (id_list(outer),))}
        if outer:
            raise UnknownJob(f"The parent #{min(outer)} was removed meanwhile; nothing was added.")
        graph.add_edges(cx, edges, self._reader.now_us)

    def release(self) -> Added:
        """Put the files in place, and make the jobs visible, in one short transaction."""
        if self._place_files:
            touched = time.monotonic()

            def touch() -> None:
                nonlocal touched
                if time.monotonic() - touched > _TOUCH_INTERVAL_S:
                    with self._db.write() as cx:
                        large_writes.touch(cx, self.hidden.write, self._written)
                    touched = time.monotonic()

            self._place_files(self._reader.folders, touch)
        return super().release()

    def _complete(self, cx: sqlite3.Connection) -> None:
        self._reader.add_apps(cx)
        counters.count(cx, large_writes.unhide(cx, self.hidden))
