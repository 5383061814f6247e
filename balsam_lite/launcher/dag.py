"""Balsam 0.3's Python interface: add, copy, link and kill jobs, add applications, look at the current job.

`current_job`, `parents`, `children`, `JOB_ID`, `TIMEOUT`, `ERROR` and `LAUNCHER_NODES` are looked up when they are used, so
importing this module works outside of any DB, takes little time and does nothing. `current_job` stays the same object.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Union

from ..core.errors import AmbiguousJobId, InputError, NoCurrentJob, NotFound, UnknownJob

if TYPE_CHECKING:
    import sqlite3
    from uuid import UUID

    from ..db.engine.connection import Database
    from ..db.manager import QuerySet
    from ..db.models import ApplicationDefinition, BalsamJob, JobSet

    #: A job: the object, its number (an int, or text such as "#37"), its UUID or a unique prefix of it, its name if no
    #: other job has it, or a query set of one job. Text that matches several jobs is refused.
    JobLike = Union[BalsamJob, UUID, str, int, JobSet]

__all__ = [  # noqa: F822  (`__getattr__` finds what is not defined here)
    "ERROR",
    "JOB_ID",
    "LAUNCHER_NODES",
    "TIMEOUT",
    "BalsamJob",
    "F",
    "Position",
    "Q",
    "add_app",
    "add_dependencies",
    "add_dependency",
    "add_job",
    "children",
    "clone",
    "current_job",
    "detect_circular",
    "get_active_database",
    "get_apps",
    "get_database_paths",
    "kill",
    "parents",
    "spawn_child",
    "submit",
    "transaction",
    "wf_from_template",
]  # fmt: skip


# --- adding -----------------------------------------------------------------------------------------------------------


def add_job(
    name: str,
    workflow: str = "",
    application: str = "",
    description: str = "",
    args: str = "",
    num_nodes: int = 1,
    ranks_per_node: int = 1,
    cpu_affinity: str = "none",
    threads_per_rank: int = 1,
    threads_per_core: int = 1,
    environ_vars: Mapping[str, Any] | str = "",
    data: Mapping[str, Any] | None = None,
    save: bool = True,
    *,
    parents: Iterable[JobLike] = (),
    on_duplicate: str = "refuse",
    **fields: Any,
) -> BalsamJob:
    """Add a job with its dependencies on `parents`, in one write transaction, and return it.

    `fields` are any other fields of a job. With `save=False` the job is checked in the same way and not added: its `save()`
    does that, or a `bulk_create`, which may hold its parents as well. Inside `with transaction()` it is written at the end of
    the block.

    Without `parents` the job may still get one by `add_dependency`. Therefore it starts START_DELAY_S (a setting: one second)
    after this process has last added a job or a dependency, at most ten seconds after it was added, and at once when the
    process ends, waits for jobs or reads them.

    A job that a running job adds shares the reservation of that job, unless `queued_launch_id` is given. For many jobs at
    once `BalsamJob.objects.bulk_create` is a hundred times faster.

    Two jobs cannot have the same `unique_key`. With `on_duplicate="skip"` the job that has it already is returned.

    Raises:
        UnknownField (a ValueError; names the nearest one), InvalidSpec, UnknownApp, DuplicateKey; UnknownJob: a parent does
        not exist.
    """
    from ..core import field_specs
    from ..db import models
    from ..db.query import queries

    given = {
        "name": name, "workflow": workflow, "application": application, "description": description, "args": args,
        "num_nodes": num_nodes, "ranks_per_node": ranks_per_node, "cpu_affinity": cpu_affinity,
        "threads_per_rank": threads_per_rank, "threads_per_core": threads_per_core, "environ_vars": environ_vars,
        "data": data,
    }  # fmt: skip
    given = {key: value for key, value in given.items() if value is not None and value != ""}
    job = models.BalsamJob(**given, **fields)
    database = models.active()
    field_specs.check_job({key: value for key, value in job._changed.items() if key != "job_id"})
    with database.session():
        if "queued_launch_id" not in job._changed and (current := _current_job()) is not None:
            job.queued_launch_id = current.queued_launch_id
        with database.read() as cx:
            queries.app(cx, application)
            job._parents = tuple(dict.fromkeys(_ref(database, cx, one, may_be_new=not save) for one in parents))
        job._database = database
        job._may_get_parents = job.wait_for_parents
        if save:
            job.save(on_duplicate)
    return job


def add_app(
    name: str,
    executable: str,
    description: str = "",
    envscript: str = "",
    preprocess: str = "",
    postprocess: str = "",
    checkexe: bool = False,
    *,
    exit_0_is_done_after_stop: bool = False,
    keep_background: bool = False,
) -> ApplicationDefinition:
    """Register an application, or overwrite all fields of the one of that name, and print which. One write transaction.

    `checkexe` checks that the first word of `executable` is a program that can be found and run. With
    `exit_0_is_done_after_stop` a run that exits with 0 after its launcher told it to stop counts as done, not as a timeout.
    With `keep_background` processes that a run leaves in the background are not ended with the launcher.

    Raises:
        InvalidSpec; NotFound: `checkexe`, and there is no such program.
    """
    from ..db.models import ApplicationDefinition, active

    if checkexe:
        _check_executable(executable)
    fields = {
        "executable": executable, "description": description, "envscript": envscript, "preprocess": preprocess,
        "postprocess": postprocess, "exit_0_is_done_after_stop": exit_0_is_done_after_stop, "keep_background": keep_background,
    }  # fmt: skip
    with active().write():
        app, is_new = ApplicationDefinition.objects.get_or_create(name=name, defaults=fields)
        if not is_new:
            for field, value in {**_NO_CLASS, **fields}.items():
                setattr(app, field, value)
            app.save()
    sys.stdout.write(f"{'Created new' if is_new else 'Updated existing'} app\n")
    return app


#: Values that remove from an application what it has as a Python class.
_NO_CLASS = {
    "definition": {}, "command_template": "", "parameters": {}, "environ_vars": {}, "handle_error": "", "handle_timeout": "",
}  # fmt: skip


def _check_executable(line: str) -> None:
    import shutil

    from ..core import field_specs

    words = field_specs.split_command(line)
    if not words or shutil.which(words[0]) is None:
        raise NotFound(f"{words[0] if words else 'An empty command'} is not on PATH, or cannot be run.")


def get_apps() -> QuerySet:
    """Return a lazy query set of all applications of the active DB."""
    from ..db.models import ApplicationDefinition

    return ApplicationDefinition.objects.all()


# --- copying ----------------------------------------------------------------------------------------------------------


def clone(job: JobLike, **fields: Any) -> BalsamJob:
    """Return a copy of a job, with these fields instead of the job's. It is not in the DB; `save()` adds it.

    The copy has no parents, no history and a separate working directory.

    Raises:
        UnknownField (a ValueError; names the nearest one), InvalidSpec; UnknownJob, AmbiguousJobId.
    """
    from ..db import models

    if isinstance(job, models.BalsamJob):
        return job._copy(fields)
    database = _database_of(job)
    with database.read() as cx:
        found: BalsamJob = models.BalsamJob.objects.using(database).get(id=_number(cx, job))
    return found._copy(fields)


def spawn_child(**fields: Any) -> BalsamJob:
    """Add a clone of the current job, with these fields instead, as a child of the current job and of its parents.

    One write transaction.

    Raises:
        NoCurrentJob (a RuntimeError): this process belongs to no job. UnknownField, InvalidSpec, UnknownApp.
    """
    current = _current_job()
    if current is None:
        raise NoCurrentJob("spawn_child() copies the current job, but this is no job's process: BALSAM_JOB_ID is not set.")
    fields.pop("clone", None)  # Balsam 0.3 did not always copy
    child = clone(current, **fields)
    child._origin = f"spawned by {current.cute_id}"
    with current._db.write():
        child._parents = (*current.get_parents().numbers(), current._number())
        child.save()
    return child


def wf_from_template(source_wf: str, new_wf: str, **changes: Mapping[str, Any]) -> JobSet:
    """Copy all jobs of the workflow `source_wf` and the dependencies among them as the workflow `new_wf`; return the copies.

    `changes` are fields of the copy of the job with that name, as in `wf_from_template("a", "b", run={"args": "2"})`.
    Reservations are not copied. One write transaction.

    Raises:
        NotFound: there is no job in `source_wf`. InputError: `new_wf` has jobs, two jobs of `source_wf` have the same name,
        or `changes` names a job that is not there. UnknownField, InvalidSpec, UnknownApp. Nothing is added then.
    """
    from ..db import models
    from ..db.query import queries

    database = models.active()
    with database.write() as cx:
        sources = list(models.BalsamJob.objects.filter(workflow=source_wf))
        _check_template(source_wf, [job.name for job in sources], changes)
        if models.BalsamJob.objects.filter(workflow=new_wf).exists():
            raise InputError(f"The workflow {new_wf!r} exists already.")
        copies = {}
        for job in sources:
            copy = job._copy({"queued_launch_id": None, **changes.get(job.name, {}), "workflow": new_wf})
            copy._origin = f"Copied from template workflow {source_wf}"
            copies[job._number()] = copy
        for parent, child in queries.edges_within(cx, source_wf):
            copies[child]._parents = (*copies[child]._parents, copies[parent].job_id)
        return models.JobSet(models.BalsamJob, database).bulk_create(copies.values())


def _check_template(workflow: str, names: list[str], changes: Mapping[str, Any]) -> None:
    if not names:
        raise NotFound(f"No workflow matching {workflow}")
    double = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if double:
        raise InputError(f"The names of the jobs in a template must be unique; {double[0]!r} is not.")
    unknown = sorted(set(changes) - set(names))
    if unknown:
        raise InputError(f"The workflow {workflow!r} has no job named {unknown[0]!r}.")


# --- linking and killing ----------------------------------------------------------------------------------------------


def add_dependency(parent: JobLike, child: JobLike) -> None:
    """Make `child` wait until `parent` is JOB_FINISHED. One write transaction; inside `with transaction()` at its end.

    Raises:
        UnknownJob, AmbiguousJobId, DuplicateDependency, DependencyCycle; StateError: the child has started, or a launcher
        prepares it.
    """
    from ..core.clock import SystemClock
    from ..db import models
    from ..db.store import graph, held_back

    if _collect([(parent, child)]):
        return
    database = _database_of(parent, child)
    with database.session():
        above, below = _numbers(database, parent, child)
        with held_back.graph_write(database) as (cx, _):
            graph.add_dependency(cx, above, below, SystemClock.now_us())
            for job in (parent, child):
                if isinstance(job, models.BalsamJob):
                    job._follow()


def add_dependencies(pairs: Iterable[tuple[JobLike, JobLike]]) -> None:
    """Add many dependencies, given as (parent, child): all or none, in one write transaction.

    Takes time linear in the number of dependencies: cycles are searched once.

    Raises:
        as `add_dependency`; InputError: an item is no pair.
    """
    from ..core.clock import SystemClock
    from ..db import models
    from ..db.store import graph, held_back

    wanted = [_pair(number, pair) for number, pair in enumerate(pairs, 1)]
    if not wanted or _collect(wanted):
        return
    database = _database_of(*(job for pair in wanted for job in pair))
    known: dict[Any, int] = {}
    with database.read() as cx:  # as `_numbers`
        for job in (job for pair in wanted for job in pair):
            if isinstance(job, models.BalsamJob):
                known[id(job)] = job._number()
            elif id(job) not in known:
                known[id(job)] = job if type(job) is int else _number(cx, job)
    with held_back.graph_write(database) as (cx, _):
        numbers = [(known[id(parent)], known[id(child)]) for parent, child in wanted]
        graph.add_dependencies(cx, numbers, SystemClock.now_us())
    for _, child in wanted:
        if isinstance(child, models.BalsamJob):
            child._forget_state()


def _pair(number: int, pair: Any) -> tuple[Any, Any]:
    if isinstance(pair, (tuple, list)) and len(pair) == 2:
        return pair[0], pair[1]
    raise InputError(f"Dependency number {number}: must be a pair (parent, child), not {pair!r}")


def _collect(pairs: list[tuple[JobLike, JobLike]]) -> bool:
    """Collect the dependencies, all or none, if this thread is inside `with transaction()`; return whether it is."""
    from ..db import collected as blocks
    from ..db import models

    block = blocks.current()
    if block is None:
        return False
    mark = block.mark
    try:
        database = block.use(_database_of(*(job for pair in pairs for job in pair))).database
        for parent, child in pairs:
            block.add_dependency(*(_ref(database, None, job) for job in (parent, child)))
            if isinstance(child, models.BalsamJob):
                block.followers.append(child)
    except BaseException:
        block.roll_back(mark)
        raise
    return True


@contextmanager
def transaction() -> Iterator[None]:
    """Write all jobs and dependencies that the block adds together, in one short transaction at its end, or none of them.

    `add_job`, `save()` of a new job, `spawn_child`, `bulk_create`, `add_dependency`, `add_dependencies`, and `set_parents` of
    a new job are collected in memory. Until the end of the block a new job has a `job_id` and no number, and queries do not
    find it. Applications are registered at once. Any other change of jobs is refused, and so is adding jobs by
    `balsam_lite.api` or an executor.

    An exception that leaves the block drops what the block has collected. A block inside another one is part of it: the
    outermost block writes. Each thread has a separate block; a process that is forked inside has none.

    Raises (at the end of the outermost block, which writes nothing then):
        UnknownJob, DependencyCycle, DuplicateDependency; StateError: a child in the DB has started.
    """
    from ..db import collected as blocks

    block = blocks.current()
    is_outermost = block is None
    if block is None:
        block = blocks.Transaction()
        blocks.set_current(block)
    mark = block.mark
    try:
        yield
    except BaseException:
        block.roll_back(mark)
        raise
    finally:
        if is_outermost:
            blocks.set_current(None)
    if is_outermost and block.batch is not None and block.process == os.getpid():
        from ..db.store import held_back, insert

        block.batch.added = insert.add_jobs(block.batch.database, block.rows(), dependencies=block.dependencies())
        held_back.move_on(block.batch.database)
        for job in block.followers:
            job._forget_state()


def kill(job: JobLike, recursive: bool = True) -> int:
    """Make a job USER_KILLED, with `recursive` all jobs below it too; return the number of those that had not ended.

    The launcher stops the processes of a running job. One write transaction.

    Raises:
        UnknownJob, AmbiguousJobId.
    """
    from ..db import models
    from ..db.store import user_actions

    database = _database_of(job)
    numbers = _numbers(database, job)
    with database.write():
        killed = user_actions.kill(database, numbers, recursive=recursive).killed
        if isinstance(job, models.BalsamJob):
            job._follow()
    return killed


def detect_circular(job: JobLike | None = None) -> list[str]:
    """Return the ids of the jobs on a cycle of dependencies, of any or of one above `job`; [] if there is none.

    `add_dependency` refuses a dependency that would close a cycle. One read transaction; linear in the number of dependencies.

    Raises:
        UnknownJob, AmbiguousJobId.
    """
    from ..db.query import queries
    from ..db.store import graph

    with _database_of(job).read() as cx:
        found = graph.find_cycle(queries.edges(cx), None if job is None else _number(cx, job))
        return [queries.job(cx, number)["job_id"] for number in found]


def _database_of(*jobs: Any) -> Database:
    """Return the DB of these jobs: that of the objects among them, else the active one."""
    from ..db import models

    known = {job._db for job in jobs if isinstance(job, models.BalsamJob)}
    if len(known) > 1:
        raise InputError(f"These jobs are in different DBs: {', '.join(sorted(home.directory for home in known))}")
    return known.pop() if known else models.active()


def _numbers(database: Database, *jobs: Any) -> list[int]:
    """Return the numbers of existing jobs. Called before a write transaction: a name takes a while among millions of jobs."""
    with database.read() as cx:
        return [_number(cx, job) for job in jobs]


def _number(cx: sqlite3.Connection, job: Any) -> int:
    """Return the number of the one job that is meant; it exists."""
    from ..db import models

    if isinstance(job, models.JobSet):
        numbers = list(job[:2].numbers())
        if len(numbers) != 1:
            error = AmbiguousJobId if numbers else UnknownJob
            raise error("The query must match exactly one job; it matches " + ("more." if numbers else "none."))
        return numbers[0]
    return models.BalsamJob._number_of(cx, job)


def _ref(database: Database, cx: sqlite3.Connection | None, job: Any, may_be_new: bool = False) -> int | str:
    """Return the job's number; its UUID if this thread's `transaction` has collected it, or if it may be new and is.

    The job exists, unless it was given as a number inside a block: the end of the block checks that.
    """
    from ..db import collected as blocks
    from ..db import models

    block = blocks.current()
    is_new = may_be_new and isinstance(job, models.BalsamJob) and job.id is None
    if is_new:
        return str(job.job_id)
    if block is not None and not isinstance(job, models.JobSet):
        return models.BalsamJob._ref_in(block, database, job)
    if cx is not None:
        return _number(cx, job)
    with database.read() as connection:
        return _number(connection, job)


# --- batch jobs and DBs -----------------------------------------------------------------------------------------------


def submit(
    project: str = "",
    queue: str = "",
    nodes: int = 1,
    wall_minutes: int | str = 30,
    job_mode: str = "mpi",
    wf_filter: str = "",
    sched_flags: str = "",
) -> dict[str, Any]:
    """Submit a launcher to the batch queue, as `balsam submit-launch` does; return the values that the command prints.

    `project` and `queue` default to those of the settings. Two short write transactions.

    Raises:
        InvalidSpec, SettingsError, SubmitFailed.
    """
    from ..core.settings import Settings
    from ..db import models
    from ..schedulers import base, submission

    database = models.active()
    request = base.LaunchRequest(nodes, wall_minutes, queue, project, job_mode, wf_filter=wf_filter, sched_flags=sched_flags)
    return submission.legacy_form(submission.submit_launch(database, Settings.load(database.directory), request))


def get_database_paths(verbose: bool = True) -> list[str]:
    """Return the directories of the DBs that this user has created or activated; with `verbose` print them, one per line."""
    from ..db.engine import directories

    return _printed(directories.known_paths(), verbose)


def get_active_database(verbose: bool = True) -> str:
    """Return the directory of the active DB; with `verbose` print it.

    Raises:
        NoDatabase, NotABalsamDB.
    """
    from ..db import models

    return _printed([models.active().directory], verbose)[0]


def _printed(paths: list[str], verbose: bool) -> list[str]:
    if verbose:
        sys.stdout.write("".join(f"{path}\n" for path in paths))
    return paths


# --- where this code runs ---------------------------------------------------------------------------------------------

#: (BALSAM_JOB_ID, DB directory) -> the job.
_current: dict[tuple[str, str], BalsamJob] = {}


def _current_job() -> BalsamJob | None:
    """Return the job to whose program or script this process belongs; None outside of any."""
    job_id = os.environ.get("BALSAM_JOB_ID", "")
    if not job_id:
        return None
    from ..db.models import BalsamJob, active

    place = (job_id, active().directory)
    if place not in _current:
        try:
            with active().read():  # no read of the user's, which would release what is held back
                _current[place] = BalsamJob.objects.get(job_id=job_id)
        except UnknownJob as exc:
            raise UnknownJob(
                f"BALSAM_JOB_ID is {job_id}, and there is no such job in the DB {place[1]}.",
                hint="If this is no running job, `unset BALSAM_JOB_ID`.",
            ) from exc
    return _current[place]


def _launcher_nodes() -> int:
    text = os.environ.get("BALSAM_LAUNCHER_NODES") or "0"
    try:
        return int(text)
    except ValueError:
        raise InputError(f"BALSAM_LAUNCHER_NODES must be a whole number, not {text!r}") from None


def _find(name: str) -> Any:  # noqa: PLR0911  # a table of names
    if name == "JOB_ID":
        return os.environ.get("BALSAM_JOB_ID", "")
    if name in ("TIMEOUT", "ERROR"):
        return os.environ.get(f"BALSAM_JOB_{name}") == "TRUE"
    if name == "LAUNCHER_NODES":
        return _launcher_nodes()
    if name == "Position":
        from ..db.store.insert import Position

        return Position
    if name in ("F", "Q"):
        from ..db.query import filters

        return getattr(filters, name)
    if name in ("current_job", "parents", "children"):
        job = _current_job()
        return job if name == "current_job" or job is None else getattr(job, f"get_{name}")()
    from ..db import models

    return models.BalsamJob


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _find(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
