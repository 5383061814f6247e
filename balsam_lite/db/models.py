"""The models of the slides' interface: BalsamJob and ApplicationDefinition, each with `objects` (see `manager`).

Rows are read through `Database` and written through `db.store`. `save` writes what was changed since the row was read and
nothing else, so two writers of different fields do not undo each other; a job's state and its holder are never written by it.

Attributes take what `field_specs` takes and give Python's own values: dicts for JSON, bool for flags. Ids are text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from operator import index
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

from ..core import field_specs, job_files, states
from ..core.clock import SECOND_US, SystemClock, format_us
from ..core.display import duration
from ..core.errors import (
    AmbiguousJobId,
    BalsamError,
    InputError,
    InvalidParentsError,
    InvalidSpec,
    InvalidStateError,
    StateError,
    UnknownApp,
    UnknownJob,
)
from . import collected
from .applications import Application
from .collected import Batch, JobRef
from .engine import directories
from .engine.connection import Database
from .manager import JobSource, QuerySet, active, use
from .query import queries, runs, text_forms
from .query.runs import WithAttempts
from .record import JobIdAttribute, NumberAttribute, Objects, StoredRecord, attributes, set_row
from .store import graph, held_back, insert, job_changes, unique_keys, user_actions

if TYPE_CHECKING:
    from uuid import UUID

    from ..core.notebook import FileLink

__all__ = ["ApplicationDefinition", "BalsamJob", "InvalidParentsError", "InvalidStateError", "JobSet", "active", "use"]

#: The slides' name.
ApplicationDefinition = Application

#: Message in the history for a change that came from Python without one.
_BY_PYTHON = "User mutated state from Python"

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


# --- jobs -------------------------------------------------------------------------------------------------------------


class JobSet(QuerySet):
    """A query set of jobs."""

    #: After `bulk_create(on_duplicate="skip")`: the jobs that exist already, in the place of which none was added.
    skipped: Sequence[int] = ()

    def bulk_create(
        self,
        jobs: Iterable[BalsamJob | Mapping[str, Any]],
        allow_shared_workdir: bool = False,
        on_duplicate: str = unique_keys.REFUSE,
    ) -> JobSet:
        """Add BalsamJob objects or dicts of fields, from any iterable, in constant memory and one write transaction.

        All of them or none, with their dependencies: a whole graph can be one call. Objects know their `id` afterwards. A
        dict may also give `job_id`, `workdir` (below `data/`), which no other job that has not ended may have unless
        `allow_shared_workdir` is set, here or in the dict, and `parents`, a list of jobs: those in the DB by object, number or
        UUID, those of the same batch by object, UUID or `dag.Position(n)`, counted from 0. The iterable is used up before the
        transaction begins. Returns a query set of the new jobs, in the order in which they came.

        A job whose `unique_key` is that of a job in the DB, or of an earlier one of `jobs`, raises DuplicateKey. With
        `on_duplicate="skip"` it is left out, its object becomes that job, and jobs of the batch that depend on it depend on
        that job. `skipped` of the returned set has the numbers of those jobs, one for each that was left out.

        Raises:
            UnknownField, InvalidSpec, UnknownJob, DependencyCycle, DuplicateKey (with the number of the job, counted from 1);
            UnknownApp.
        """
        if allow_shared_workdir:
            jobs = ({**job, "allow_shared_workdir": True} if isinstance(job, Mapping) else job for job in jobs)
        unique_keys.check_mode(on_duplicate)
        block = collected.current()
        if block is not None:
            if on_duplicate != unique_keys.REFUSE:
                collected.refuse("bulk_create(on_duplicate=…)")
            return self._collect(block, jobs)
        batch = Batch(self.database)
        batch.added = added = insert.add_jobs(batch.database, _rows_of(jobs, batch), on_duplicate=on_duplicate)
        held_back.move_on(batch.database)
        whole = type(self)(self.model, batch.database)
        made = whole.filter(id__range=(added.first, added.first + added.number - 1)) if added.number else whole.none()
        made.skipped = added.skipped_ids
        return made

    def _collect(self, block: collected.Transaction, jobs: Iterable[BalsamJob | Mapping[str, Any]]) -> JobSet:
        """Collect the jobs for the end of a `dag.transaction`; all of them or none."""
        database, mark = block.use(self.database).database, block.mark
        rows: list[tuple[str, list[insert.Ref]]] = []
        try:
            for place, job in enumerate(jobs):
                try:
                    rows.append(_collected(job, block, database))
                except InputError as exc:
                    raise type(exc)(f"Job number {place + 1}: {exc.message}", hint=exc.hint) from exc
            job_ids = [job_id for job_id, _ in rows]
            for place, (job_id, parents) in enumerate(rows):
                if parents:
                    at = {one: insert.position(one, len(rows), place) for one in parents if isinstance(one, insert.Position)}
                    block.set_parents(
                        job_id, [job_ids[at[one]] if isinstance(one, insert.Position) else one for one in parents]
                    )
        except BaseException:
            block.roll_back(mark)
            raise
        return type(self)(self.model, database).filter(job_id__in=job_ids)

    def _run(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        held_back.release(self.database)
        return super()._run(sql, parameters)

    def get_or_create(self, defaults: Mapping[str, Any] | None = None, **fields: Any) -> tuple[Any, bool]:
        """Get or create a job as `QuerySet.get_or_create` does."""
        collected.refuse("get_or_create()")  # it would not find what was collected
        return super().get_or_create(defaults, **fields)


def _rows_of(jobs: Iterable[BalsamJob | Mapping[str, Any]], batch: Batch) -> Iterator[Mapping[str, Any]]:
    for place, job in enumerate(jobs):
        if isinstance(job, BalsamJob):
            yield job._row_for(batch, place)
        elif isinstance(job, Mapping):
            row = {**job, "parents": _refs(job["parents"])} if "parents" in job else job
            yield {**row, "given_id": row["job_id"]} if "job_id" in row else row
        else:
            raise InvalidSpec(f"Job number {place + 1}: must be a BalsamJob or a dict, not {job!r}")


def _refs(jobs: Any) -> Any:
    """Return parents as `insert.refs` expects them, which checks them: objects by their number or UUID."""
    if isinstance(jobs, (str, bytes, Mapping, insert.Position)) or not isinstance(jobs, Iterable):
        return jobs
    return [job._ref() if isinstance(job, BalsamJob) else job for job in jobs]


def _collected(
    job: BalsamJob | Mapping[str, Any], block: collected.Transaction, database: Database
) -> tuple[str, list[insert.Ref]]:
    """Collect a new job for the end of a `dag.transaction`. Return its UUID, and the parents that it will be given there."""
    if isinstance(job, BalsamJob):
        if job._is_collected(block):
            raise InvalidSpec(f"{job.cute_id} is given twice")
        return job._collect(block, database), []
    if not isinstance(job, Mapping):
        raise InvalidSpec(f"must be a BalsamJob or a dict, not {job!r}")
    row = field_specs.check_job({name: value for name, value in job.items() if name not in insert.EXTRA})
    row.update((name, job[name]) for name in insert.EXTRA if name in job and name != "parents")
    if "job_id" in job:
        row["given_id"] = row["job_id"] = field_specs.checked_job_id(job["job_id"])
    else:
        row["job_id"] = field_specs.new_job_id()
    parents = [block.find(one) or one if isinstance(one, str) else one for one in insert.refs(_refs(job.get("parents") or ()))]
    block.add_job(row, ())
    return row["job_id"], parents


class BalsamJob(StoredRecord, WithAttempts):
    """A job: one planned run of an application.

    `BalsamJob(name=…, application=…)` makes one that `save()` or `objects.bulk_create` adds to the DB, where its values are
    checked. Two objects are equal if they are copies of the same job.

    Raises:
        UnknownField: (a ValueError) there is no field of that name; the nearest one is named.
    """

    _SPECS = {**field_specs.JOB_FIELD, "job_id": JobIdAttribute.SPEC}
    _COLUMNS = queries.JOB_COLUMNS
    _GIVEN = frozenset(("job_id", *field_specs.JOB_FIELD))
    _QUERY_SET = JobSet
    _what = "job"
    _SHOWN = ("name", "workflow", "application", "state", "args", "attempt", "return_code")
    _batch: tuple[Batch, int] | None = None
    _parents: tuple[JobRef, ...] = ()
    _may_get_parents = False  # it is held back for a moment when it is added, see `store.held_back`
    _origin = ""  # message in the history for its creation
    DoesNotExist = UnknownJob
    MultipleObjectsReturned = AmbiguousJobId
    objects: ClassVar[JobSet] = Objects()  # type: ignore[assignment]
    source: ClassVar[JobSource]

    if TYPE_CHECKING:
        id: int | None
        job_id: str
        workflow: str
        name: str
        description: str
        lease: int | None
        input_files: str
        stage_in_url: str
        stage_out_files: str
        stage_out_url: str
        wall_time_minutes: int
        num_nodes: int
        coschedule_num_nodes: int
        ranks_per_node: int
        cpu_affinity: str
        threads_per_rank: int
        threads_per_core: int
        node_packing_count: int
        environ_vars: dict[str, str]
        application: str
        args: str
        user_workdir: str
        wait_for_parents: bool
        post_error_handler: bool
        post_timeout_handler: bool
        auto_timeout_retry: bool
        state: str
        queued_launch_id: int | None
        data: dict[str, Any]
        tags: dict[str, str]
        parameters: dict[str, Any]
        gpus_per_rank: float
        priority: int
        restart_limit: int
        max_retries: int
        retry_codes: str
        retries: int
        workdir: str
        return_code: int | None
        attempt: int
        restarts: int
        unfinished_parents: int
        mpi_flags: str
        run_when: str
        exit_0_is_done_after_stop: bool
        start_after: int | None
        told_to_stop: int | None
        keep_background: bool
        launcher_deaths: int
        unique_key: str | None
        created: int
        origin: str
    else:
        vars().update(id=NumberAttribute(), job_id=JobIdAttribute(), **attributes(field_specs.JOB_FIELDS))

    # --- adding and saving --------------------------------------------------------------------------------------------

    def _row_for(self, batch: Batch, place: int) -> dict[str, Any]:
        """Return the row to insert, and bind the object to `batch` so that it finds its number there."""
        if self._batch is not None:
            if self._batch[0] is batch:
                raise InvalidSpec(f"Job number {place + 1}: {self.cute_id} is given twice")
            self._settle()
        if "id" in self._row:
            raise InvalidSpec(f"Job number {place + 1}: {self.cute_id} is in the DB already")
        self._drawn_id()
        object.__setattr__(self, "_batch", (batch, place))  # past the check of names: this runs for each of a million jobs
        return self._new_row()

    def _new_row(self) -> dict[str, Any]:
        """Return the given fields of a job that is not in the DB yet."""
        row = {**self._row, **self._changed}
        if self._live:
            row.update(self._live)
        if "job_id" in self._changed:  # the user chose it
            row["given_id"] = row["job_id"]
        if row.get("state") == states.CREATED:
            del row["state"]
        if self._parents:
            row["parents"] = self._parents
        if self._origin:
            row["origin"] = self._origin
        return row

    def _drawn_id(self) -> str:
        """Return the UUID, drawn if there is none yet."""
        job_id: str | None = self._row.get("job_id")
        if job_id is None:
            chosen = self._changed.get("job_id")
            job_id = field_specs.new_job_id() if chosen is None else field_specs.checked_job_id(chosen)
            set_row(self, {**self._row, "job_id": job_id} if self._row else {"job_id": job_id})
        return job_id

    def _settle(self) -> None:
        batch = self._batch
        if batch is None or batch[0].added is None:
            return
        self._batch = None
        group, place = batch
        assert group.added is not None
        number = group.added.id_of(place)
        self._database = group.database
        if not group.added.is_new(place):  # the object of the job with its unique_key, then
            with group.database.read() as cx:
                found = queries.columns_of(cx, [number], ("job_id",)).get(number)
            self._row, self._changed, self._live = {"id": number, **({"job_id": found[0]} if found else {})}, {}, {}
            self._follow()
            return
        if not group.is_block:
            self._saved({**self._changed, **self._live})
        kept = {} if self._parents or group.is_block else {"state": states.CREATED}
        self._row = {**self._row, **kept, "id": number, "job_id": group.added.renamed.get(number, self._row["job_id"])}

    def save(self, on_duplicate: str = unique_keys.REFUSE) -> None:
        """Add a new job to the DB, or write the fields that were changed since it was read, edits in a dict included.

        Where others have changed another key of the same dict meanwhile, both changes stay. One write transaction;
        none if nothing was changed. With `on_duplicate="skip"` a new job whose `unique_key` exists already becomes the object
        of the job with that key, and nothing is added.

        Raises:
            InvalidSpec, UnknownApp; UnknownJob: the job is gone. DuplicateKey. StateError: `state` was assigned; only
            `update_state` and `objects.update` change it, because a state has a history and children.
        """
        block = collected.current()
        if self.id is None:
            if block is None:
                self._add(on_duplicate)
            else:
                if on_duplicate != unique_keys.REFUSE:
                    collected.refuse("save(on_duplicate=…)")
                self._draw_free_id(block)
                self._collect(block, self._db)
            return
        given = self._changes()
        if "state" in given:
            raise StateError(
                f"save() does not write the state of job {self.cute_id}; nothing was saved.",
                hint=f"Use job.update_state({given['state']!r}); job.refresh_from_db() forgets what was assigned.",
            )
        if not given:
            return
        collected.refuse("save() of a job that is in the DB already")
        dicts = [name for name in given if self._FIELDS[name].is_dict]
        with self._db.write() as cx:
            row = cx.execute(f"SELECT {', '.join(['id', *dicts])} FROM job WHERE id = ?", (self.id,)).fetchone()
            if row is None:
                raise UnknownJob(f"Job {self.cute_id} is not in the DB any more.")
            self._merge(dict(zip(dicts, row[1:])))
            given = self._changes()
            if given:
                user_actions.update_fields(self._db, [self.id], given)
        self._saved(given)
        if "user_workdir" in given:  # then the store has chosen another working directory
            self.refresh_from_db()

    def _is_collected(self, block: collected.Transaction | None) -> bool:
        return block is not None and self._batch is not None and self._batch[0] is block.batch

    def _draw_free_id(self, block: collected.Transaction) -> None:
        """Draw an id that the end of the block can keep, because code in the block may already use it."""
        if self._is_collected(block) or "job_id" in self._changed:
            return
        with self._db.read() as cx:
            while block.has_short_id(self._drawn_id()) or queries.short_id_holder(cx, self._drawn_id()):
                self._row = {**self._row, "job_id": field_specs.new_job_id()}

    def _collect(self, block: collected.Transaction, database: Database) -> str:
        """Collect a new job, as it is now, for the end of a `dag.transaction`. Return its UUID."""
        if self.id is not None:
            raise InvalidSpec(f"{self.cute_id} is in the DB already")
        batch = block.use(database)
        job_id = self._drawn_id()
        row = {name: value for name, value in self._new_row().items() if name not in insert.EXTRA}
        row = {**field_specs.check_job(row), "job_id": job_id, "origin": self._origin}
        if "job_id" in self._changed:
            row["given_id"] = job_id
        if self._is_collected(block):
            block.replace_job(row)
        else:
            self._batch = (batch, block.add_job(row, self._parents))
            block.on_roll_back(lambda: setattr(self, "_batch", None))
            self._database = database
        self._saved({**self._changed, **self._live})
        return job_id

    def _add(self, on_duplicate: str) -> None:
        batch = Batch(self._db)
        try:
            row = self._row_for(batch, 0)
            with held_back.graph_write(batch.database) as (_, held_until):
                start_after = held_until if self._may_get_parents and not self._parents else None
                batch.added = insert.add_jobs(batch.database, [row], start_after=start_after, on_duplicate=on_duplicate)
        except BalsamError as exc:
            if isinstance(exc.__cause__, BalsamError):  # without the number of the job, where there is only one
                raise exc.__cause__ from None
            raise
        self._settle()
        if start_after is not None and batch.added.number:
            held_back.hold(self._db, self._number(), SystemClock.now_us())
        self._follow()

    def _follow(self) -> None:
        """Read the values that the store has just set, and keep the user's unsaved changes."""
        with self._db.read():  # the store's own read: it releases nothing that is held back
            found = type(self).objects.using(self._db).get(id=self._number())
        self._merge({name: found._row[name] for name, field in self._FIELDS.items() if field.is_dict})
        self._row = found._row
        self._changed = {name: value for name, value in self._changed.items() if name != "state"}

    def delete(self, force: bool = False) -> None:
        """Remove the job with its history; its working directory stays. A launcher that runs it stops it.

        Raises:
            ParentInUse: jobs wait for it and `force` is not set. UnknownJob: it is not there.
        """
        if not user_actions.delete(self._db, [self._number()], force=force):
            raise UnknownJob(f"Job {self.cute_id} is not in the DB any more.")

    @classmethod
    def _change(cls, database: Database, numbers: list[int], fields: Mapping[str, Any]) -> None:
        """Do the store's part of `update`; of few jobs inside the caller's write transaction."""
        rest = {name: getattr(value, "id", value) for name, value in fields.items() if name != "state"}
        user_actions.change(
            database, [user_actions.Change(numbers, rest, fields.get("state"), job_changes.Annotation(by=_BY_PYTHON))]
        )

    @classmethod
    def _remove(cls, database: Database, numbers: list[int], force: bool) -> int:
        return user_actions.delete(database, numbers, force=force)

    # --- the state ----------------------------------------------------------------------------------------------------

    def update_state(self, new_state: str, message: str = "") -> None:
        """Put the job into that state for the user at once, and update its history, its children and this object.

        The job's own pre- or postprocess script may do so while the launcher holds the job. One write transaction.

        Raises:
            InvalidStateError; UnknownJob: it is not in the DB. StateError: a launcher holds it (USER_KILLED is possible).
        """
        number = self._number()
        with self._db.write():
            user_actions.set_state(self._db, [number], new_state, message, by=_BY_PYTHON)
            self._follow()

    @classmethod
    def batch_update_state(cls, ids: Iterable[Any], new_state: str, message: str = "") -> int:
        """Put the jobs with these UUIDs into that state, except those that the user killed. Return their number."""
        chosen = cls.objects.filter(job_id__in=ids).exclude(state=states.USER_KILLED)
        return int(
            chosen._write(lambda ids: user_actions.set_state(chosen.database, ids, new_state, message, by=_BY_PYTHON))[1]
        )

    def _events(self) -> list[tuple[int, str, str, str]]:
        held_back.release(self._db)
        with self._db.read() as cx:
            found = queries.history(cx, self._number())
        if not found:
            raise UnknownJob(f"Job {self.cute_id} is not in the DB any more.")
        return found

    @property
    def state_history(self) -> str:
        """Return one line `[MM-DD-YYYY HH:MM:SS.ffffff STATE] message` for each state it has been in, in UTC."""
        return "\n".join(f"[{format_us(time)} {state}] {message}".rstrip() for time, _, state, message in self._events())

    @property
    def edits(self) -> list[dict[str, Any]]:
        """Return what users and scripts changed in its fields, oldest first: see `db.query.edits`."""
        from .query import edits

        with self._db.read() as cx:
            return edits.edits(cx, [self._number()])

    def get_recent_state_str(self) -> str:
        """Return the last line of its history."""
        time, _, state, message = self._events()[-1]
        return f"[{format_us(time)} {state}] {message}".rstrip()

    def get_state_times(self) -> dict[str, datetime]:
        """Return when it last entered each state it has been in, in UTC."""
        return {state: _EPOCH + timedelta(microseconds=time) for time, _, state, _ in self._events()}

    @property
    def runtime_seconds(self) -> float | None:
        """Return the seconds from its last RUNNING to the RUN_DONE after that (as Balsam 0.3); None if there is none."""
        times = {state: time for time, _, state, _ in self._events()}
        started, ended = times.get(states.RUNNING), times.get(states.RUN_DONE)
        return None if started is None or ended is None or ended < started else (ended - started) / SECOND_US

    def _run_rows(self) -> list[dict[str, Any]]:
        with self._db.read() as cx:
            return [run.as_row() for run in runs.runs_of(cx, self._number())]

    # --- relatives ----------------------------------------------------------------------------------------------------

    def get_parents(self) -> JobSet:
        """Return the jobs it waits for."""
        return type(self).objects.using(self._db).filter(child_id=self._number())

    def get_children(self) -> JobSet:
        """Return the jobs that wait for it."""
        return type(self).objects.using(self._db).filter(parent_id=self._number())

    def get_parents_by_id(self) -> list[str]:
        """Return the UUIDs of the jobs it waits for."""
        return list(self.get_parents().values_list("job_id", flat=True))

    def get_children_by_id(self) -> list[str]:
        """Return the UUIDs of the jobs that wait for it."""
        return list(self.get_children().values_list("job_id", flat=True))

    def get_child_by_name(self, name: str) -> BalsamJob:
        """Return its one child of that name; InputError (a ValueError) if it has none or several."""
        found = list(self.get_children().filter(name=name)[:2])
        if len(found) != 1:
            raise InputError(f"Job {self.cute_id} has {'more than one child' if found else 'no child'} named {name!r}.")
        return found[0]

    def set_parents(self, parents: Iterable[BalsamJob | UUID | str | int]) -> None:
        """Let the job wait for `parents` (jobs, ids, numbers or names) and for no others. One write transaction.

        A job that failed only because of a parent waits again, or goes on if nothing is left to wait for.

        Raises:
            InvalidParentsError: one is not in the DB; DependencyCycle; StateError: the job has started, or a launcher
            prepares it. Nothing is changed.
        """
        block = collected.current()
        if block is not None:
            if not self._is_collected(block):
                collected.refuse("set_parents() of a job that is in the DB already")
            block.set_parents(self.job_id, [self._ref_in(block, self._db, one) for one in parents])
            return
        with held_back.graph_write(self._db) as (cx, _):
            queries.job(cx, self._number())
            try:
                wanted = [self._number_of(cx, one) for one in parents]
            except (UnknownJob, AmbiguousJobId) as exc:
                text = f"Job {self.cute_id} cannot have that parent: {exc.message}"
                raise InvalidParentsError(text, hint=exc.hint) from exc
            graph.set_parents(cx, self._number(), wanted, SystemClock.now_us())
            self._follow()

    @staticmethod
    def _number_of(cx: Any, job: BalsamJob | UUID | str | int) -> int:
        if isinstance(job, BalsamJob):
            job = job._number()
        if isinstance(job, SupportsIndex):  # a number, numpy's included; text is a word as commands take it
            return int(queries.job(cx, index(job))["id"])
        return queries.find_job(cx, str(job))

    def _ref(self) -> JobRef:
        """Return its number, or its UUID until it is in the DB."""
        return self.job_id if self.id is None else self.id

    @staticmethod
    def _ref_in(block: collected.Transaction, database: Database, job: BalsamJob | UUID | str | int) -> JobRef:
        """Return the job as a `dag.transaction` refers to it: by UUID if it was collected there, else by number."""
        if isinstance(job, BalsamJob):
            return job.job_id if job._is_collected(block) else job._number()
        if isinstance(job, int):
            return job
        found = block.find(str(job))
        if found is not None:
            return found
        with database.read() as cx:
            return queries.find_job(cx, str(job))

    def _number(self) -> int:
        if self.id is None and self._is_collected(collected.current()):
            raise UnknownJob(
                f"Job {self.cute_id} has no number before the end of its `with dag.transaction()`.",
                hint="Inside the block jobs and dependencies can be added, nothing else. Do this after it.",
            )
        return super()._number()

    def _forget_state(self) -> None:
        """Drop the cached state, so that its next use reads it again."""
        self._row = {name: value for name, value in self._row.items() if name not in ("state", "unfinished_parents")}

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def pk(self) -> str:
        """Return its UUID, as in Balsam 0.3; the integer is `id`."""
        return self.job_id

    @property
    def cute_id(self) -> str:
        """`[name | id8]`."""
        short = self.job_id[: queries.SHORT_ID]
        return f"[{self.name} | {short}]" if self.name else f"[{short}]"

    @property
    def num_ranks(self) -> int:
        """Return the number of ranks on all nodes together."""
        return self.num_nodes * self.ranks_per_node

    @property
    def lock(self) -> str:
        """Return `host:pid` of the launcher that holds it, "" if none does."""
        if self.lease is None:
            return ""
        with self._db.read() as cx:
            row = cx.execute("SELECT host, pid FROM lease WHERE id = ?", (self.lease,)).fetchone()
        return f"{row[0]}:{row[1]}" if row else str(self.lease)

    @property
    def queued_launch(self) -> SimpleNamespace | None:
        """Return the batch job it is reserved for, with the columns of table batch_job as attributes."""
        if self.queued_launch_id is None:
            return None
        with self._db.read() as cx:
            found = queries.batch_job(cx, self.queued_launch_id)
        return SimpleNamespace(**found, pk=found["id"]) if found else None

    @queued_launch.setter
    def queued_launch(self, launch: Any) -> None:
        self.queued_launch_id = getattr(launch, "id", launch)

    @property
    def working_directory(self) -> str:
        """Return where it runs: below the DB's `data`, or its `user_workdir`. It may not exist yet."""
        return os.path.join(self._db.directory, directories.DATA, self._stored_row()["workdir"])

    @property
    def app_cmd(self) -> str:
        """Return its command line, with the quotes that were typed. UnknownApp if its application is not registered."""
        return text_forms.executed_command(text_forms.program_of(self.get_application()._shown_row()), self.args)

    def get_envs(self, timeout: bool = False, error: bool = False) -> dict[str, str]:
        """Return the variables that its program or script gets in addition to the launcher's.

        `timeout` and `error` are: as its postprocess script that handles that. One read transaction.
        """
        with self._db.read() as cx:
            parents = queries.parents(cx, self._number())
        own = {"OMP_NUM_THREADS": str(self.threads_per_rank)} if self.threads_per_rank > 1 else {}
        flags = {"BALSAM_JOB_TIMEOUT": timeout, "BALSAM_JOB_ERROR": error}
        return {
            **own,
            **json.loads(field_specs.checked(field_specs.JOB_FIELD["environ_vars"], self.environ_vars)),
            directories.DB_VARIABLE: self._db.directory,
            "BALSAM_JOB_ID": self.job_id,
            "BALSAM_ATTEMPT": str(self.attempt),
            **job_files.variables(parents, self.working_directory, self.job_id),
            **{name: "TRUE" for name, wanted in flags.items() if wanted},
        }

    def get_application(self) -> Application:
        """Return its application, as it is defined now.

        Raises:
            UnknownApp: there is none of that name; the registered ones are listed.
        """
        with self._db.read() as cx:
            found = queries.app(cx, self.application)
        return Application._load(tuple(found.values()), self._db)

    def read_file_in_workdir(self, fname: str) -> str:
        """Return the text of a file in its working directory; bytes that are no UTF-8 are replaced.

        Its own output is found even after another job in the same directory has renamed it.

        Raises:
            InputError: (a ValueError) there is no such file, or `fname` leads out of the directory.
        """
        path = job_files.path_of(self.working_directory, fname, field_specs.output_name(self.name), self.job_id)
        if path is None:
            raise InputError(f"{fname} is not in the working directory of job {self.cute_id}.")
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except (OSError, ValueError) as exc:
            raise InputError(f"{path} cannot be read: {exc}") from exc

    # --- copies -------------------------------------------------------------------------------------------------------

    def serialize(self) -> str:
        """Return all fields as JSON text, for `deserialize` in another process."""
        return json.dumps(self.to_dict())

    @classmethod
    def deserialize(cls, text: str | bytes) -> BalsamJob:
        """Return the job that `serialize` wrote; see `from_dict`."""
        return cls.from_dict(json.loads(text))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> BalsamJob:
        """Return the job of which `to_dict` made this. With an `id` it is that row of the active DB as it was; else a new job.

        A new job takes what users may set, and its `job_id` if there is one.

        Raises:
            UnknownField, InvalidSpec.
        """
        known = {name: field_specs.known_field(name, cls._SPECS).name if name != "id" else name for name in fields}
        given = {known[name]: value for name, value in fields.items()}
        if given.get("id") is None:
            return cls(**{name: value for name, value in given.items() if name != "id" and cls._SPECS[name].settable})
        defaults = {field.name: field.default for field in field_specs.JOB_FIELDS}
        made = cls()
        made._row = {**defaults, **{name: cls._FIELDS[name].stored(value) for name, value in given.items()}}
        return made

    def _copy(self, changes: Mapping[str, Any]) -> BalsamJob:
        """Return a new job with what users may set of this one, but its working directory and key, and `changes` over that."""
        changed = self._by_field(changes)
        row = self._stored_row()
        copied = [
            field for field in field_specs.JOB_FIELDS if field.settable and not field.is_fixed and field.name != "user_workdir"
        ]
        kept = {field.name: row[field.name] for field in copied if row[field.name] != field.default}
        made = type(self)(**{**kept, **changed})
        made._database = self._db
        field_specs.check_job({name: value for name, value in made._changed.items() if name != "job_id"})
        return made

    def _stored_row(self) -> dict[str, Any]:
        """Return all columns in stored form, with what was changed and not saved; also of a job that is not in the DB yet."""
        if self.id is not None and "state" not in self._row:
            self._follow()
        changed = {name: self._FIELDS[name].stored(value) for name, value in {**self._changed, **self._live}.items()}
        row = {field.name: field.default for field in field_specs.JOB_FIELDS}
        row.update({**self._row, **changed, "job_id": self.job_id})
        if self.id is not None:
            row["workdir"] = self.workdir
        else:
            default = field_specs.workdir_name(row["workflow"], row["name"], row["job_id"])
            row["workdir"] = (row["user_workdir"] and os.path.abspath(row["user_workdir"])) or default
        return row

    def __repr__(self) -> str:
        home = self._database or (active() if self.id is not None else None)
        parents: list[str] = []
        executable = None
        if home is not None:
            with home.read() as cx:
                parents = queries.relatives(cx, self.id)[0] if self.id is not None else []
                with suppress(UnknownApp):
                    executable = text_forms.program_of(queries.app(cx, self.application))
        data_directory = os.path.join(home.directory, directories.DATA) if home else directories.DATA
        return text_forms.job_form(self._stored_row(), parents, executable, data_directory)

    def _shown_fields(self) -> dict[str, Any]:
        shown = {"id": self.id, "job": self.job_id[:8], **super()._shown_fields()}
        runs = self.attempts if self._database is not None and self.attempt else []
        run = runs[-1] if runs else None
        runtime_s = run.runtime_s if run else None
        shown |= {"node": run.node if run else None, "run time": None if runtime_s is None else duration(runtime_s)}
        return {**shown, "output": self._output()}

    def _output(self) -> FileLink | None:
        """Return the file of the program's output; None if there is none yet."""
        from ..core.notebook import output_link

        if self._database is None:
            return None
        row = self._stored_row()
        return output_link(os.path.join(self._database.directory, directories.DATA), row["workdir"], row["name"], row["job_id"])

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, BalsamJob) and self.job_id == other.job_id)

    def __hash__(self) -> int:
        return hash(self.job_id)


BalsamJob.source = JobSource(BalsamJob)
