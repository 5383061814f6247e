"""Commands that put work into the DB: `job`, `mkchild`, `dep`, `make_dummies`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core import command_line, field_specs
from ..core.clock import FORMS, SystemClock
from ..core.errors import DuplicateApp, InvalidSpec
from ..db.engine.connection import Database
from ..db.query import queries
from ..db.query.text_forms import program_of
from ..db.store import apps, graph, insert
from . import completion, output
from .apps import warn_of
from .common import RUN_WHEN_EPILOG, RUN_WHEN_HELP, confirm, count, given, open_db, pairs, progress_of, warn
from .group import BalsamCommand, SentenceOption, SeparateOption, WordsOption, option
from .ls import form
from .selection import A_JOB

if TYPE_CHECKING:
    import sqlite3


_Function = TypeVar("_Function", bound=Callable[..., Any])

#: The options of every new job, in the order of the help text.
_OPTIONS = (
    option(
        "--application", required=True, shell_complete=completion.applications, help="Application to run (`balsam ls apps`)."
    ),
    option(
        "--wall-time-minutes", metavar="TIME", help=f"Longest expected run time: {FORMS}. [default: 1, which means unknown]"
    ),
    option("--num-nodes", metavar="N", help="Number of nodes. [default: 1]"),
    option("--coschedule-num-nodes", metavar="N", help="Stored, without effect. [default: 0]"),
    option("--node-packing-count", metavar="N", help="Maximum number of these jobs per node. [default: 1]"),
    option("--ranks-per-node", metavar="N", help="MPI ranks per node. [default: 1]"),
    option("--threads-per-rank", metavar="N", help="Threads per rank. [default: 1]"),
    option("--threads-per-core", metavar="N", help="Threads per core. [default: 1]"),
    option("--gpus-per-rank", metavar="N", help="GPUs per rank; with a fraction, ranks share one. [default: 0]"),
    option("--cpu-affinity", metavar="none|depth", help="depth: bind each rank to separate cores. [default: none]"),
    option("--description", cls=SentenceOption, metavar="WORDS...", help="Free text."),
    option("--args", cls=WordsOption, metavar="WORDS...", help="Arguments, appended to the application's command line."),
    option("--post_handle_error", "--post-handle-error", is_flag=True, help="Run the postprocess script after an error, too."),
    option(
        "--post_handle_timeout", "--post-handle-timeout", is_flag=True, help="Run the postprocess script after a timeout, too."
    ),
    option(
        "--disable_auto_timeout_retry",
        "--disable-auto-timeout-retry",
        is_flag=True,
        help="Fail after a timeout instead of running again.",
    ),
    option(
        "--exit-0-is-done-after-stop",
        is_flag=True,
        help="Count exit code 0 as success even after the launcher told it to stop.",
    ),
    option("--keep-background", is_flag=True, help="Keep processes that it leaves in the background."),
    option("--restart-limit", metavar="N", help="Maximum number of restarts after timeouts. [default: 10]"),
    option("--max-retries", metavar="N", help="Maximum number of retries after errors. [default: 0]"),
    option(
        "--retry-codes",
        cls=WordsOption,
        metavar="CODES...",
        help="Return codes after which to retry; signal 9 is -9. [default: all but 0]",
    ),
    option("--mpi-flags", cls=WordsOption, metavar="FLAGS", help="Additional flags for the MPI start command."),
    option(
        "--input-files",
        cls=WordsOption,
        metavar="GLOBS...",
        help="Files of its parents to link into its directory. [default: *]",
    ),
    option("--url-in", metavar="URL", help="Copy from there to its directory before it starts."),
    option("--url-out", metavar="URL", help="Copy results to there after it has ended."),
    option(
        "--stage-out-files",
        cls=WordsOption,
        metavar="GLOBS...",
        help="Results to copy with --url-out, by patterns of their names.",
    ),
    option("--env", multiple=True, metavar="VAR=VALUE", help="Environment variable; may be repeated."),
    option("--tag", multiple=True, metavar="KEY=VALUE", help="Tag; may be repeated."),
    option("--data", metavar="JSON", help="JSON object for your own use."),
    option("--priority", metavar="N", help="Priority; jobs with a higher one start first. [default: 0]"),
    option("--user-workdir", metavar="DIR", help="Working directory, instead of a new one below data/."),
    option("--run-when", metavar="WHEN", help=RUN_WHEN_HELP),
    option("--no-wait-for-parents", is_flag=True, help="Start without waiting for the parents."),
    option("--yes", is_flag=True, help="Do not ask."),
)


def _describing_options(command: _Function) -> _Function:
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


@click.command(cls=BalsamCommand, epilog=RUN_WHEN_EPILOG)
@option("--name", required=True, help="Name, also of the output file and the working directory.")
@option(
    "--workflow",
    required=True,
    shell_complete=completion.workflows,
    help="A label that jobs share; also the directory above theirs.",
)
@option(
    "--parent", "parents", cls=SeparateOption, multiple=True, metavar="JOB...", shell_complete=completion.jobs,
    help=f"Jobs to wait for: {A_JOB}.",
)  # fmt: skip
@_describing_options
def job(parents: Sequence[str], yes: bool, **options: Any) -> None:
    """Add a job: one planned run of an application, whose program gets the job's arguments.

    Of an application with parameters, as those in Python are, `balsam job create` adds one.

    \b
    Examples:
        balsam job --name test1 --workflow test --application say-hello \\
            --args "world!"
        balsam job --name big --workflow test --application sim \\
            --num-nodes 2 --ranks-per-node 8 \\
            --env OMP_NUM_THREADS=4 --tag size=big --parent 7df8 --yes
    """
    stored = field_specs.check_job(_values(options))
    db = open_db()
    with db.read() as cx:
        numbers = list(dict.fromkeys(queries.find_job(cx, parent) for parent in parents))
        above = [queries.job(cx, number) for number in numbers]
    _add(db, stored, above, yes)


@click.command(cls=BalsamCommand)
@option("--name", required=True, help="Name, also of the output file and the working directory.")
@option("--parent", metavar="JOB", help=f"The job to wait for: {A_JOB}. [default: the one that calls this]")
@_describing_options
def mkchild(parent: str | None, yes: bool, **options: Any) -> None:
    """Add a job that waits for the one whose program or script calls this, in the same workflow.

    \b
    Examples:
        balsam mkchild --name check --application verify --yes
        balsam mkchild --parent 7df8 --name check --application verify
    """
    caller = os.environ.get("BALSAM_JOB_ID", "")
    if not (parent or caller):
        raise click.UsageError("No job calls this: BALSAM_JOB_ID is not set. Name the parent with --parent.")
    stored = field_specs.check_job(_values(options))
    db = open_db()
    with db.read() as cx:
        above = queries.job(cx, queries.find_job(cx, parent or caller))
    stored.update(workflow=above["workflow"], queued_launch_id=above["queued_launch_id"])
    job_id = _add(db, stored, [above], yes, f"spawned by {output.cute_id(above['name'], above['job_id'])}")
    _say_linked(above, {**stored, "job_id": job_id})


def _add(db: Database, stored: dict[str, Any], parents: Sequence[Mapping[str, Any]], yes: bool, origin: str = "") -> str:
    """Show the job, ask, and add it with its edges; return its UUID. The answer "no" ends the command."""
    with db.read() as cx:
        app = queries.app(cx, stored["application"])
        executable = program_of(app)
        job_id = _unused_id(cx)
    click.echo(form(db, _preview(stored, job_id), [parent["job_id"] for parent in parents], executable))
    warn_of("args", command_line.problems_of_args(stored.get("args", ""), app["executable"]))
    if bool(stored.get("stage_out_files")) != bool(stored.get("stage_out_url")):
        warn("results are copied only where both --stage-out-files and --url-out are given")
    if not yes and not confirm("Confirm adding job to DB", "--yes"):
        click.echo("Add job aborted")
        click.get_current_context().exit(1)
    numbers = [parent["id"] for parent in parents]
    insert.add_jobs(db, [{**stored, "job_id": job_id, "parents": numbers, "origin": origin}])
    click.echo("Added job to database")
    return job_id


def _values(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the job for options, some of which have other names or the opposite meaning."""
    values = given(options)
    values.update({"environ_vars": pairs(values.pop("env"), "--env"), "tags": pairs(values.pop("tag"), "--tag")})
    for given_as, field in (("url_in", "stage_in_url"), ("url_out", "stage_out_url")):
        if given_as in values:
            values[field] = values.pop(given_as)
    values["post_error_handler"] = values.pop("post_handle_error")
    values["post_timeout_handler"] = values.pop("post_handle_timeout")
    values["auto_timeout_retry"] = not values.pop("disable_auto_timeout_retry")
    values["wait_for_parents"] = not values.pop("no_wait_for_parents")
    if not values["application"]:
        raise InvalidSpec("job application must not be empty")
    return values


def _preview(stored: dict[str, Any], job_id: str) -> dict[str, Any]:
    """Return the job as it will be in the DB."""
    (row,) = field_specs.rows_with_defaults([stored])
    own = row["user_workdir"] and os.path.abspath(row["user_workdir"])
    return {**row, "job_id": job_id, "workdir": own or field_specs.workdir_name(row["workflow"], row["name"], job_id)}


def _unused_id(cx: sqlite3.Connection) -> str:
    """Return a new id whose first 8 characters are free. Otherwise the store draws another one, and the form is wrong."""
    while True:
        job_id = field_specs.new_job_id()
        if queries.short_id_holder(cx, job_id) is None:
            return job_id


@click.command(cls=BalsamCommand)
@click.argument("parent", shell_complete=completion.jobs)
@click.argument("child", shell_complete=completion.jobs)
def dep(parent: str, child: str) -> None:
    """Let the job CHILD wait until the job PARENT is finished.

    Both are numbers, prefixes of ids, or names; each must fit one job only. '#37' is always a number.

    \b
    Examples:
        balsam dep 7df8 ab58
        balsam dep prepare simulate
    """
    db = open_db()
    with db.read() as cx:  # a name may take a while to find: not in a write transaction
        above, below = (queries.job(cx, queries.find_job(cx, word)) for word in (parent, child))
    with db.write() as cx:
        graph.add_dependency(cx, above["id"], below["id"], SystemClock.now_us())
    _say_linked(above, below)


def _say_linked(*jobs: Mapping[str, Any]) -> None:
    click.echo(f"Created link {' --> '.join(output.cute_id(job['name'], job['job_id']) for job in jobs)}")


# --- many at once -----------------------------------------------------------------------------------------------------

_DUMMY_APP = {"name": "dummy", "executable": "echo", "description": "Added by balsam make_dummies"}


@click.command(cls=BalsamCommand)
@click.argument("num", type=int, callback=count)
def make_dummies(num: int) -> None:
    """Add NUM jobs that print "hello", to measure the throughput.

    \b
    Example:
        balsam make_dummies 1000
    """
    db = open_db()
    _ensure_dummy_app(db)
    with progress_of(2 * num) as progress:  # a job counts twice: once read, once inserted
        insert.add_jobs(db, _dummies(num), progress)
    click.echo(f"Added {num} dummy jobs to the DB")


def _ensure_dummy_app(db: Database) -> None:
    with db.read() as cx:
        if any(found["name"] == "dummy" for found in queries.apps(cx, "dummy")):
            return
    try:
        with db.write() as cx:
            apps.add_app(cx, _DUMMY_APP)
    except DuplicateApp:  # another process was faster
        pass


def _dummies(num: int) -> Iterator[dict[str, Any]]:
    for n in range(num):
        yield {
            "name": f"dummy{n}", "workflow": "dummy", "application": "dummy", "args": "hello", "node_packing_count": 64,
            "description": "Added by balsam make_dummies",
        }  # fmt: skip
