"""`Job` and `Job.objects`; and `ApplicationDefinition`, the Python class of an application, whose `submit` makes jobs.

A class has a command template or a function to run. The site stores the location of the class, not its code: launchers import
its file again (`pyapps.class_loader`). A change of the code takes effect with the next job, a change of what `sync()` stores
with the next `sync()`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..core import field_specs, import_guard, pickling, states
from ..core import parameters as stored_parameters
from ..core.errors import ApplicationLost, BalsamError, InvalidSpec, NotFound, UnknownApp
from ..db import collected
from ..db.engine import directories
from ..db.query import results, runs
from ..db.query.fields import JOB
from ..db.query.filters import Q
from ..db.query.runs import WithAttempts
from . import application, site_handle, transfers, waiting
from .query import Manager, Query, of_kind
from .records import (
    AT_CREATION,
    NEVER,
    HiddenAttribute,
    RelatedNumber,
    SiteAttribute,
    SiteRecord,
    StateAttribute,
    Word,
    aware,
    column,
    known,
    listed,
    minutes0,
    site_id,
    site_name,
    to_us,
)  # fmt: skip
from .site_handle import SiteHandle
from .waiting import NoResult

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path


class JobState(Word):
    """The fourteen states of a job. Names in small letters work as well, as in Balsam 0.7: `JobState.job_finished`."""

    CREATED = created = states.CREATED
    AWAITING_PARENTS = awaiting_parents = states.AWAITING_PARENTS
    READY = ready = states.READY
    STAGED_IN = staged_in = states.STAGED_IN
    PREPROCESSED = preprocessed = states.PREPROCESSED
    RUNNING = running = states.RUNNING
    RUN_DONE = run_done = states.RUN_DONE
    POSTPROCESSED = postprocessed = states.POSTPROCESSED
    JOB_FINISHED = job_finished = states.JOB_FINISHED
    RUN_ERROR = run_error = states.RUN_ERROR
    RUN_TIMEOUT = run_timeout = states.RUN_TIMEOUT
    RESTART_READY = restart_ready = states.RESTART_READY
    FAILED = failed = states.FAILED
    USER_KILLED = user_killed = states.USER_KILLED


# --- what the fields take ---------------------------------------------------------------------------------------------


def _path(value: str | None) -> Path | None:
    from pathlib import Path

    return None if value is None else Path(value)


def _app(value: Any) -> Any:
    """Check the value that names an application: a number, a name, or a class."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, type) and hasattr(value, "site"):
        return value
    raise ValueError(f"must be the number or the name of an application, or an ApplicationDefinition, not {value!r}")


def _parents(value: Any) -> list[int]:
    if value is None:
        return []
    try:
        numbers = list(value)
    except TypeError:
        raise ValueError(f"must be a list of numbers, not {value!r}") from None
    for one in numbers:
        if one is None:
            raise ValueError("hold None: save the parents first")
        if not isinstance(one, int) or isinstance(one, bool):
            raise ValueError(f"must be numbers of jobs, not {one!r}")
    return sorted(dict.fromkeys(numbers))


class _Parents(SiteAttribute):
    """Numbers of jobs, each of its site; as a set that cannot be edited, because parents cannot be changed later."""

    def read(self, record: Any) -> frozenset[int]:
        numbers = super().read(record) or ()
        if record._handle is None:
            return frozenset(numbers)
        there = (site_handle.id_of_remote(one) for one in record._row.get("remote_parents", ()))
        return frozenset((*map(record._handle.id, numbers), *there))


class _Parameters(HiddenAttribute):
    instead = ": use get_parameters() and set_parameters()"


# --- the job ----------------------------------------------------------------------------------------------------------


class Job(SiteRecord, WithAttempts):
    """A job: one planned run of an application at a site.

    `Job(app_id=…, workdir=…, …)` makes one that `save()`, `objects.create` or `objects.bulk_create` adds. Its workdir must not
    be that of another job that has not ended, unless `allow_shared_workdir=True` is given. `app_id` is the number or the
    name of an application, or its ApplicationDefinition; `site_name` gives the site, if the application does not.
    """

    __slots__ = ()

    workdir: Path = SiteAttribute(field_specs.checked_workdir, show=_path, like="workdir")  # type: ignore[assignment]
    allow_shared_workdir: Any = HiddenAttribute(column("wait_for_parents").check, False, AT_CREATION)
    app_id: Any = RelatedNumber(_app, None, AT_CREATION)
    site_id: int | None = site_id()
    site_name: str | None = site_name()
    tags: dict[str, str] = column("tags")
    parameters: Any = _Parameters(stored_parameters.encoded, {}, AT_CREATION, like="parameters")
    data: dict[str, Any] = column("data")
    return_code: int | None = known()
    num_nodes: int = column("num_nodes")
    ranks_per_node: int = column("ranks_per_node")
    threads_per_rank: int = column("threads_per_rank")
    threads_per_core: int = column("threads_per_core")
    gpus_per_rank: float = column("gpus_per_rank")
    node_packing_count: int = column("node_packing_count")
    wall_time_min: int = minutes0(0)
    launch_params: dict[str, str] = column("tags")
    parent_ids: frozenset[int] = _Parents(_parents, [], AT_CREATION)  # type: ignore[assignment]
    state: JobState | None = StateAttribute(JobState)  # type: ignore[assignment]
    last_update: datetime | None = known(aware)
    batch_job_id: int | None = RelatedNumber(None, None, NEVER)  # type: ignore[assignment]
    state_data: Any = HiddenAttribute(column("data").check)
    state_timestamp: Any = HiddenAttribute(lambda value: to_us(value, "state_timestamp"))
    # Not in Balsam 0.7.
    name: str = column("name")
    workflow: str = column("workflow")
    description: str = column("description")
    args: str = column("args")
    environ_vars: dict[str, str] = column("environ_vars")
    priority: int = column("priority")
    cpu_affinity: str = column("cpu_affinity")
    mpi_flags: str = column("mpi_flags")
    restart_limit: int = column("restart_limit")
    unique_key: str | None = column("unique_key", when=AT_CREATION)
    max_retries: int = column("max_retries")
    retry_codes: str = column("retry_codes")
    input_files: str = column("input_files")
    stage_in_url: str = column("description")  # a relative path stays relative until the site is known
    stage_out_url: str = column("description")
    stage_out_files: str = column("stage_out_files")
    wait_for_parents: bool = column("wait_for_parents")
    run_when: str = column("run_when")
    auto_timeout_retry: bool = column("auto_timeout_retry")
    exit_0_is_done_after_stop: bool = column("exit_0_is_done_after_stop")
    keep_background: bool = column("keep_background")
    post_error_handler: bool = column("post_error_handler")
    post_timeout_handler: bool = column("post_timeout_handler")
    job_id: str | None = known()
    attempt: int = known(default=0)

    _KIND = "job"
    _SHOWN = ("id", "name", "workflow", "workdir", "tags", "state", "return_code", "attempt")
    _LEADING = SiteRecord._LEADING | {"stage_in_url", "stage_out_url"}
    _REQUIRED = ("workdir", "app_id")
    _MERGED = ("data", "tags", "environ_vars")
    _TABLE = JOB
    _ORDERS = ("id", "state", "workdir", "last_update", "name", "workflow", "priority")

    NoResult: ClassVar[type[NoResult]] = NoResult
    objects: ClassVar[JobManager]

    def __init__(self, *workdir: Any, **fields: Any) -> None:
        if workdir:
            if len(workdir) > 1 or "workdir" in fields:
                raise TypeError("A Job takes its workdir by position, and everything else by name.")
            fields["workdir"] = workdir[0]
        app = fields.get("app_id")
        if "transfers" in fields or (isinstance(app, type) and getattr(app, "transfers", None)):
            fields.update(_staging(app, fields.get("site_name"), fields.pop("transfers", None) or {}))
        super().__init__(**fields)

    # --- saving -------------------------------------------------------------------------------------------------------

    def _new_row(self) -> dict[str, Any]:
        """Return the fields of a job that was not saved yet."""
        if self._is_saved:
            raise InvalidSpec(f"{self._title()} is saved already; make a new Job to run it again.")
        return self._changes() if self._live else self._changed

    def _as_new(self) -> dict[str, Any]:
        given = {name: value for name, value in super()._as_new().items() if name not in _NOT_AS_NEW}
        return {**given, "app_id": self.app_id, "parent_ids": sorted(self.parent_ids)}

    def _create(self) -> None:
        collected.refuse("Saving an api.Job")
        handle, row = site_handle.resolve_site(self._new_row(), {})
        site_handle.name_remote_parents(handle, [row])
        self._created(handle.interface.create("job", [row])[0], handle)

    # --- parameters, places, relatives --------------------------------------------------------------------------------

    def get_parameters(self) -> dict[str, Any]:
        """Return the parameters for its application, as a copy.

        Raises:
            RemoteError: pickled values cannot be read here.
        """
        return stored_parameters.decoded(self._changed.get("parameters", self._row.get("parameters", {})))

    def set_parameters(self, values: dict[str, Any]) -> None:
        """Replace all parameters; `save()` writes them. Raises InvalidSpec."""
        self._changed = {**self._changed, "parameters": stored_parameters.encoded(values)}

    def resolve_workdir(self, data_path: str | Path) -> Path:
        """Return its working directory, where `data_path` is the site's `data` directory."""
        from pathlib import Path

        return Path(data_path) / self.workdir

    @property
    def app(self) -> Any:
        """Return the class of its application, an ApplicationDefinition. Raises as `ApplicationDefinition.load_by_id`."""
        return self.app_id if isinstance(self.app_id, type) else ApplicationDefinition.load_by_id(self.app_id)

    def parent_query(self) -> Query[Job]:
        """Return its parents."""
        return type(self).objects.filter(id=sorted(self.parent_ids))

    def _run_rows(self) -> list[dict[str, Any]]:
        """Ask the site; a job that was not saved has no runs."""
        if self._handle is None:
            return []
        return [run for row in self._handle.interface.page({"id": self._row["id"]}, ("attempts",)) for run in row["attempts"]]

    # --- what becomes of it -------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """Read the job again and return whether it is over: JOB_FINISHED, FAILED or USER_KILLED."""
        self.refresh_from_db()
        return self._row["state"] in states.END_STATES

    def _shown_fields(self) -> dict[str, Any]:
        from ..core.notebook import output_link

        shown = super()._shown_fields()
        if self._handle is None or self._handle.entry.is_remote:
            return shown
        row = self._row
        data = os.path.join(self._handle.entry.path, directories.DATA)
        return {**shown, "output": output_link(data, row["workdir"], row["name"], row["job_id"])}

    def result_nowait(self) -> Any:
        """Return the result of its function, or raise its exception; None for a job without a function.

        Raises:
            NoResult: it is not over yet. TaskFailed: it did not finish; with the reason. RemoteError: the result cannot be
            read here.
        """
        if not self.done():
            raise NoResult(f"{self._title()} is still {self.state}.")
        return waiting.result_of(self)

    def result(self, timeout: float | None = None, poll_interval: float = 1.0) -> Any:
        """Wait until it is over, then do as `result_nowait`.

        Raises:
            concurrent.futures.TimeoutError: it is not over after `timeout` seconds.
        """
        if not waiting.wait([self], timeout, poll_interval, waiting.ALL_COMPLETED)[0]:
            from concurrent.futures import TimeoutError as Overdue

            raise Overdue(f"Job is still {self.state} after {timeout or 0:g} sec timeout")
        if not self.done():  # it was started again meanwhile
            return self.result(timeout, poll_interval)
        return waiting.result_of(self)


def _staging(app: Any, site_name: str | None, given: Any) -> dict[str, str]:
    """Return the fields for what a job puts into the slots of its application's `transfers`."""
    if not isinstance(app, type):
        if not given:
            return {}
        load = ApplicationDefinition.load_by_id
        app = load(app) if isinstance(app, int) else ApplicationDefinition.load_by_name(app, site_name)
    return transfers.as_staging(app.transfers, given)


#: Fields that are not copied to a new job, or are also in its launch_params.
_NOT_AS_NEW = ("state", "mpi_flags", "cpu_affinity")


class JobQuery(Query[Job]):
    """A query of jobs."""

    def filter(self, *several: Q, **conditions: Any) -> JobQuery:
        """Filter as `Query.filter`; `app_id` may also be a name or an ApplicationDefinition."""
        if "app_id" in conditions:
            conditions = {**conditions, **_application(conditions["app_id"])}
        return super().filter(*several, **conditions)

    def _result_pages(self, names: tuple[str, ...]) -> tuple[Any, tuple[str, ...], bool]:
        from ..sites.results import SitePages

        if self._is_cut or self._order:
            groups = [(handle, [job._row["id"] for job in jobs]) for handle, jobs in groupby(self, lambda job: job._site)]
            pages = [SitePages([(handle.interface, {"id": ids})], numbers=[ids]) for handle, ids in groups]
            sites = {handle for handle, _ in groups}
        else:
            asked = self._questions()
            pages = [SitePages([(handle.interface, where)]) for handle, where in asked]
            sites = {handle for handle, _ in asked}
        return (lambda columns: chain.from_iterable(one(columns) for one in pages)), names, len(sites) > 1

    def _values(self, names: tuple[str, ...]) -> tuple[Sequence[str], Iterable[Mapping[str, Any]]]:
        """Add what is known of the last runs, which the jobs do not hold."""
        wanted = {name: runs.SHORT_NAMES.get(name, name) for name in names or (*self.model._columns(), *runs.OF_JOB)}
        of_run = {name: full for name, full in wanted.items() if full in runs.OF_JOB}
        columns, rows = super()._values(tuple(name for name in wanted if name not in of_run) or ("id",))
        return (tuple(wanted), self._with_runs(rows, of_run)) if of_run else (columns, rows)

    def _with_runs(self, rows: Iterable[Mapping[str, Any]], of_run: Mapping[str, str]) -> Iterator[Mapping[str, Any]]:
        """Add these columns of their last runs to rows of the jobs of this query, in their order."""
        jobs = list(self)
        found: dict[tuple[SiteHandle, int], Sequence[Any]] = {}
        for handle in {job._site for job in jobs}:
            numbers = [job._row["id"] for job in jobs if job._site is handle]
            for page in results.of_numbers(partial(_results_of, handle, tuple(of_run.values())), numbers):
                found.update({(handle, row[0]): row[1:] for row in page})
        unknown = (None,) * len(of_run)
        for job, row in zip(jobs, rows):
            known = dict(zip(of_run, found.get((job._site, job._row["id"]), unknown)))
            times = {name: aware(us) for name, us in known.items() if name in results.TIMES and us is not None}
            yield {**row, **known, **times}


def _results_of(handle: SiteHandle, fields: Sequence[str], numbers: list[int]) -> list[Sequence[Any]]:
    return handle.interface.results({"id": numbers}, fields, 0, len(numbers))


def _application(app: Any) -> dict[str, Any]:
    """Return the conditions for jobs of an application, which is given by number, name or class."""
    if isinstance(app, type) and hasattr(app, "site"):
        return {"app_id": None, "app": app.__name__, "site_id": site_handle.named(app.site).number}
    several = listed(app)
    if several and all(isinstance(one, str) for one in several):
        return {"app_id": None, "app": several}
    return {"app_id": app, "app": None} if app is not None else {"app_id": None}


class WaitResult(NamedTuple):
    """Jobs that have ended, and those that have not, each in the order in which they were given."""

    done: list[Job]
    not_done: list[Job]


class JobManager(Manager[Job]):
    """`Job.objects`."""

    def __init__(self, model: type[Job]) -> None:
        super().__init__(model, JobQuery)

    def results_df(self, *names: str) -> Any:
        """Return the results of all jobs as a data frame; see `LazySet.results_df`."""
        return self.all().results_df(*names)

    def bulk_create(self, jobs: list[Job], allow_shared_workdir: bool = False, on_duplicate: str = "refuse") -> list[Job]:
        """Add many jobs; return new objects in the same order, and leave the given ones unchanged.

        `allow_shared_workdir` lets them use the workdir of another job that has not ended. At each site all or
        none, in one write transaction. If the jobs go to several sites, each of them checks its jobs before the first one is
        written to; if a later one still refuses, the error lists the jobs that were created before.

        A job whose `unique_key` is that of a job of its site raises DuplicateKey. With `on_duplicate="skip"` that job is
        returned in its place, and nothing is added for it.

        Raises:
            TypeError: it is no list of jobs. InvalidSpec, UnknownApp, UnknownSite, UnknownJob, DuplicateKey: with the number of
            the job.
        """
        import_guard.check_writable()
        collected.refuse("Adding jobs by balsam_lite.api")
        of_kind(jobs, Job, "bulk_create")
        made: list[Any] = [None] * len(jobs)
        with _no_collection():
            fields = {"allow_shared_workdir": True} if allow_shared_workdir else {}
            for handle, places, created in site_handle.create_jobs(_by_site(jobs, fields), on_duplicate):
                for place, row in zip(places, created):
                    made[place] = self.model._of(row, handle)
        return made

    def bulk_refresh(self, jobs: Iterable[Job]) -> None:
        """Read all of them again, with one query for each site. Raises DoesNotExist: some are gone, or were never saved."""
        waiting.bulk_refresh(list(jobs))

    def wait(
        self,
        jobs: Iterable[Job],
        timeout: float | None = None,
        poll_interval: float = 1.0,
        return_when: str = waiting.ALL_COMPLETED,
        progress: bool | None = None,
    ) -> WaitResult:
        """Wait until all jobs are over, or the first one; return (done, not_done) after `timeout` seconds at the latest.

        A job is over if it is JOB_FINISHED, FAILED, USER_KILLED or deleted. The objects of jobs that are over are read again.

        Args:
            poll_interval: the longest pause between two queries to a site of another host or on a shared file system, in
                seconds. An end at a site of this host is noticed within 50 ms.
            return_when: "ALL_COMPLETED" or "FIRST_COMPLETED".
            progress: show a progress bar of tqdm; None: in a notebook, if tqdm is installed.
        """
        return WaitResult(*waiting.wait(list(jobs), timeout, poll_interval, return_when, progress))

    def as_completed(
        self, jobs: Iterable[Job], timeout: float | None = None, poll_interval: float = 1.0, progress: bool | None = None
    ) -> Iterator[Job]:
        """Yield each job as soon as it is over. `progress` is as in `wait`.

        Raises:
            concurrent.futures.TimeoutError: some are not over `timeout` seconds after the iteration began.
        """
        return waiting.as_completed(list(jobs), timeout, poll_interval, progress)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Suspend garbage collection, which would scan a million new objects repeatedly and take a fifth of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _by_site(jobs: list[Job], fields: dict[str, Any]) -> dict[SiteHandle, site_handle.JobsOfSite]:
    """Return for each site the rows to create, with `fields` added, and the positions of their jobs in the list."""
    known: dict[Any, site_handle.Resolved] = {}
    found: dict[SiteHandle, site_handle.JobsOfSite] = {}
    for place, job in enumerate(jobs):
        try:
            handle, row = site_handle.resolve_site({**job._new_row(), **fields} if fields else job._new_row(), known)
        except BalsamError as exc:
            exc.message = f"Job number {place + 1}: {exc.message}"
            raise
        of_site = found.get(handle) or found.setdefault(handle, site_handle.JobsOfSite([], []))
        of_site.rows.append(row)
        of_site.places.append(place)
    if len(found) > 1:  # a single site checks its own jobs, and its numbers are those of the user's list
        for of_site in found.values():
            _check_workdirs(of_site)
    return found


def _check_workdirs(jobs: site_handle.JobsOfSite) -> None:
    seen: dict[str, int] = {}
    for row, place in zip(*jobs):
        if row.get("allow_shared_workdir"):
            continue
        other = seen.setdefault(row["workdir"], place)
        if other != place:
            raise InvalidSpec(
                f"Job number {place + 1}: Workdirs must be unique for each call to bulk-create Jobs. "
                f"Job number {other + 1} has this one too: {row['workdir']}"
            )


Job.objects = JobManager(Job)


# --- applications as classes ------------------------------------------------------------------------------------------


class ApplicationDefinition:
    """The base of all applications. A subclass has a `site`, and either a `command_template` or a function `run`.

    Attributes:
        site: the name or the number of the site, or the Site itself.
        command_template: a jinja2 template of a command line. Each value is one word, whatever it contains; the shell expands
            $VAR. How `eval`, `sh -c` or a program interpret that word, or bash a variable in $((…)), is up to the template.
        parameters: name -> {"required": bool, "default": any JSON value, "help": str}. Names that only the template has are
            required.
        environment_variables: for the program; those of a job override them.
        transfers: slots of files to copy in and out, which jobs fill (see `transfers`).
        cleanup_files: patterns of files to remove from the working directory once the job has run and its postprocess hook is
            done, except the job's `stage_out_files`. The class has to be in a file.
        python_exe: the interpreter that runs functions and hooks, on the site's host; by default the one that runs
            here, or for a site reached by ssh the one that runs balsam there.
        exit_0_is_done_after_stop: count a run that exits with 0 after its launcher told it to stop as done, not as a timeout.
        keep_background: do not end processes that a run leaves in the background when it ends.

    The launcher creates the objects; `self.job` is the job. Hooks may assign `self.job.state` and `self.job.state_data`. In
    `run` and `shell_preamble` the fields of the job can be read, and no DB is opened: see `pyapps.run_class.JobView`.
    """

    site: ClassVar[Any]
    command_template: ClassVar[str | None] = None
    parameters: ClassVar[dict[str, dict[str, Any]]] = {}
    environment_variables: ClassVar[dict[str, str]] = {}
    python_exe: ClassVar[str] = ""
    exit_0_is_done_after_stop: ClassVar[bool] = False
    keep_background: ClassVar[bool] = False
    transfers: ClassVar[dict[str, Any]] = {}
    cleanup_files: ClassVar[list[str]] = []
    run: ClassVar[Callable[..., Any]]

    _is_synced: ClassVar[bool] = False
    __app_id__: ClassVar[int | None] = None  # its number at the site, once it was synced or loaded

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if pickling.is_loading():  # its attributes are set later; they were checked where it was defined
            return
        cls._is_synced, cls.__app_id__ = False, None
        cls.site = application.checked_site(cls)
        application.check_kind(cls)
        cls.parameters = application.parameters_of(cls)

    def __init__(self, job: Any) -> None:
        self.job = job

    @classmethod
    def _overrides(cls, name: str) -> bool:
        return getattr(cls, name) is not getattr(ApplicationDefinition, name)

    # --- what subclasses may override ---------------------------------------------------------------------------------

    def preprocess(self) -> None:
        """Prepare the first run; then the job is PREPROCESSED."""

    def postprocess(self) -> None:
        """Handle a run that succeeded; then the job is POSTPROCESSED, and finished."""

    def handle_error(self) -> None:
        """Handle a run that failed; then the job is FAILED."""

    def handle_timeout(self) -> None:
        """Handle a run that was stopped at the end of the launcher's time; then the job is RESTART_READY."""

    def shell_preamble(self) -> list[str] | str:
        """Return the commands for the shell before each run: a list of commands, or a text to be sourced."""
        return []

    # --- storing and loading ------------------------------------------------------------------------------------------

    @classmethod
    def sync(cls, rename_from: str | None = None) -> None:
        """Register the application at its site, or change its registration. One write transaction.

        With `rename_from` the application of that name gets the name of this class, and keeps its number and its jobs. Does
        nothing while a launcher imports the file.

        Raises:
            UnknownSite, InvalidSpec; InvalidApplication: it has functions, and is not in a file that can be imported.
        """
        if import_guard.is_importing():
            return
        handle = _handle(cls.site)
        row = application.row_of(cls, handle)
        if rename_from:
            row["rename_from"] = rename_from
        (made,) = handle.interface.create("app", [row])
        cls._is_synced, cls.__app_id__ = True, handle.id(made["id"])

    @classmethod
    def resolve_site_id(cls) -> int:
        """Return the number of its site. Raises UnknownSite."""
        return site_handle.named(cls.site).number

    @classmethod
    def submit(
        cls,
        workdir: str | os.PathLike[str],
        tags: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        num_nodes: int = 1,
        ranks_per_node: int = 1,
        threads_per_rank: int = 1,
        threads_per_core: int = 1,
        launch_params: Mapping[str, str] | None = None,
        gpus_per_rank: float = 0,
        node_packing_count: int = 1,
        wall_time_min: int = 0,
        parent_ids: Any = (),
        transfers: Mapping[str, Any] | None = None,
        save: bool = True,
        allow_shared_workdir: bool = False,
        **app_params: Any,
    ) -> Job:
        """Add a job of this application, whose parameters are `app_params`, and return the Job.

        The first call in a process runs `sync()`. With `save=False` the job is created but not added.

        Raises:
            as `Job.save` and `sync`.
        """
        import_guard.check_writable()
        if "transfers" in cls.parameters and transfers is not None:
            app_params["transfers"], transfers = transfers, None
        if not cls._is_synced:
            cls.sync()
        if cls.command_template is not None:
            app_params = {name: os.fspath(one) if isinstance(one, os.PathLike) else one for name, one in app_params.items()}
        job = Job(
            workdir=workdir, app_id=cls, tags=dict(tags or {}), parameters=app_params, data=dict(data or {}),
            num_nodes=num_nodes, ranks_per_node=ranks_per_node, threads_per_rank=threads_per_rank,
            threads_per_core=threads_per_core, launch_params=dict(launch_params or {}), gpus_per_rank=gpus_per_rank,
            node_packing_count=node_packing_count, wall_time_min=wall_time_min, parent_ids=parent_ids, transfers=transfers,
            **({"allow_shared_workdir": True} if allow_shared_workdir else {}),
        )  # fmt: skip
        if save:
            job.save()
        return job

    @classmethod
    def load_by_site(cls, site: Any) -> dict[str, type[ApplicationDefinition]]:
        """Return the classes of a site's applications by name; applications that are plain command lines have none.

        Raises:
            UnknownSite, ApplicationLost.
        """
        handle = _handle(site)
        rows = [row for row in handle.interface.select("app", order="name") if row["kind"] != "command"]
        return {row["name"]: _loaded(row, handle) for row in rows}

    @classmethod
    def load_by_name(cls, app_name: str, site_name: str | None = None) -> type[ApplicationDefinition]:
        """Return the class of the application of that name, at the active DB or the only known site that has one.

        Raises:
            UnknownSite, UnknownApp, ApplicationLost. MultipleObjectsReturned: several sites have one.
        """
        where = {"name": app_name, **({"site_name": site_name} if site_name else {})}
        return _of_record(where, f"{app_name!r}")

    @classmethod
    def load_by_id(cls, app_id: int) -> type[ApplicationDefinition]:
        """Return the class of the application with that number. Raises as `load_by_name`."""
        return _of_record({"id": app_id}, f"number {app_id}")


# --- finding classes --------------------------------------------------------------------------------------------------


def _handle(site: Any) -> SiteHandle:
    return site_handle.handle_of(site_handle.named(site))


def _of_record(where: dict[str, Any], title: str) -> type[ApplicationDefinition]:
    try:
        found = application.App.objects.get(**where)
    except application.App.DoesNotExist as exc:
        raise UnknownApp(f"No site has an application {title}.") from exc
    return _loaded(found._row, found._site)


def _loaded(row: Mapping[str, Any], handle: SiteHandle) -> type[ApplicationDefinition]:
    """Return the class of an application."""
    if row["kind"] == "command":
        raise NotFound(f"The application {row['name']} is a command line and has no class: {row['executable']}")
    if row["definition"].get("file") or row["definition"].get("pickled"):
        import json

        from ..pyapps import class_loader, payload

        found = class_loader.load(payload.class_ref(json.dumps(row["definition"])))
        if not issubclass(found, ApplicationDefinition):
            raise ApplicationLost(f"{row['name']} of {row['definition']['file']} is no ApplicationDefinition (any more).")
        found.__app_id__ = handle.id(row["id"])
        return found
    fields = {
        "site": handle.entry,
        "command_template": row["command_template"],
        "parameters": {name: one for name, one in row["parameters"].items() if not one.get("required", True) or "help" in one},
        "environment_variables": row["environ_vars"],
        "exit_0_is_done_after_stop": bool(row["exit_0_is_done_after_stop"]),
        "keep_background": bool(row["keep_background"]),
        "__doc__": row["description"],
        "__module__": __name__,
    }
    made: type[ApplicationDefinition] = type(row["name"], (ApplicationDefinition,), fields)
    made.__app_id__ = handle.id(row["id"])
    return made
