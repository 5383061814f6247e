"""Commands that get jobs to run: `launcher` and `submit-launch`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import click

from ..core import field_specs, states
from ..core.durations import FORMS
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.query import select
from ..db.query.filters import condition_on_text
from .common import Minutes, count, count0, number, open_db, pairs, warn
from .group import BalsamCommand, Choice, ConditionOption, WordsOption, option

_FILTER = "Run only jobs of that workflow; in quotes, * and ? match anything."

_TAG = "Run only jobs with that tag; may be repeated, all must be there."

_MODE = "serial: programs of one rank; mpi: all by the MPI start command; mixed: those of many ranks by it."

#: States of jobs for which a launcher has, or will have, something to do.
_WAITING = tuple(state for state in states.STATES if state not in (*states.END_STATES, states.RUNNING))


@click.command(cls=BalsamCommand)
@option("--consume-all", is_flag=True, help="Run all jobs; with --tag, all that have it, as without.")
@option("--wf-filter", cls=ConditionOption, metavar="NAME", help=_FILTER)
@option("--job-mode", type=Choice(field_specs.JOB_MODES), help=f"{_MODE} Needed, unless each --part says it.")
@option(
    "--time-limit-minutes", type=Minutes(is_whole=False), default=0, callback=number, metavar="TIME",
    help=f"Stop after this time: {FORMS}. 0: shortly before the batch job's own limit.",
)  # fmt: skip
@option(
    "--nodes",
    type=int,
    callback=count,
    metavar="N",
    help="Without a batch job: make N nodes of this host. [default: its cores]",
)
@option("--limit-nodes", type=int, callback=count, metavar="N", help="Use only N of the nodes.")
@option("--offset-nodes", type=int, callback=count0, default=0, metavar="N", help="Leave out the first N nodes.")
@option("--gpus-per-node", type=int, callback=count0, metavar="N", help="By default as the settings or the host say.")
@option("--persistent", is_flag=True, help="Stay when there is nothing to do.")
@option("--num-transition-threads", type=int, callback=count0, default=0, metavar="N", help="0: as the settings say.")
@option("--tag", multiple=True, metavar="KEY=VALUE", help=_TAG)
@option(
    "-p", "--part", "parts", multiple=True, metavar="MODE:NUM_NODES[:KEY=VALUE...]",
    help="A launcher of its own for so many of the nodes, in their order; may be repeated, until all nodes have one.",
)  # fmt: skip
@click.pass_context
def launcher(
    ctx: click.Context,
    *,
    consume_all: bool,
    wf_filter: str | None,
    job_mode: str | None,
    time_limit_minutes: float,
    nodes: int | None,
    limit_nodes: int | None,
    offset_nodes: int,
    gpus_per_node: int | None,
    persistent: bool,
    num_transition_threads: int,
    tag: Sequence[str],
    parts: Sequence[str],
) -> int:
    """Run jobs from here until none is left or the time is up: all, those of a workflow, or those with some tags.

    \b
    Examples:
        balsam launcher --consume-all --job-mode serial
        balsam launcher --tag kind=large --job-mode mpi
        balsam launcher --wf-filter test --job-mode serial --nodes 2 \\
            --time-limit-minutes 10
        balsam launcher --consume-all \\
            --part mpi:3:kind=large --part serial:1:kind=small
    """
    if consume_all and wf_filter is not None:
        raise click.UsageError("--consume-all means all jobs and --wf-filter some; give one of them.")
    if not consume_all and wf_filter is None and not tag:
        raise click.UsageError("Say which jobs to run: --consume-all, --wf-filter NAME or --tag KEY=VALUE.")
    if job_mode is None and not parts:
        raise click.MissingParameter(ctx=ctx, param=next(one for one in ctx.command.params if one.name == "job_mode"))
    if parts and (limit_nodes is not None or offset_nodes):
        raise click.UsageError("--part divides all nodes; it cannot be combined with --limit-nodes or --offset-nodes.")
    tags = pairs(tag, "--tag")
    directory = directories.find(ctx.find_root().obj)
    from ..launcher.main import LauncherOptions, run_launcher

    options = LauncherOptions(
        job_mode=job_mode or "serial",
        workflow_filter=wf_filter,
        time_limit_minutes=time_limit_minutes,
        nodes=nodes,
        limit_nodes=limit_nodes,
        offset_nodes=offset_nodes,
        gpus_per_node=gpus_per_node,
        persistent=persistent,
        transition_threads=num_transition_threads,
        tags=tuple(tags.items()),
    )
    if parts:
        from ..core.partitions import Partition
        from ..launcher.multinode.partitioned import run_parts

        return run_parts(directory, options, [Partition.parse(part) for part in parts])
    return run_launcher(directory, options)


@click.command("submit-launch", cls=BalsamCommand)
@option("-n", "--nodes", type=int, callback=count, required=True, metavar="N", help="How many nodes.")
@option("-t", "--time-minutes", type=Minutes(), callback=count, required=True, metavar="TIME", help=f"Wall time: {FORMS}.")
@option("-q", "--queue", default="", help="The queue.")
@option("-A", "--project", default="", help="The project that pays. [default: DEFAULT_PROJECT of the settings]")
@option("--job-mode", type=Choice(field_specs.JOB_MODES), required=True, help=_MODE)
@option("--wf-filter", cls=ConditionOption, default="", metavar="NAME", help=_FILTER)
@option("--tag", multiple=True, metavar="KEY=VALUE", help=_TAG)
@option("--sched-flags", cls=WordsOption, default="", metavar="FLAGS", help="More flags for the scheduler's command.")
@option("--dry-run", is_flag=True, help="Print the job script and submit nothing.")
def submit_launch(
    *,
    nodes: int,
    time_minutes: int,
    queue: str,
    project: str,
    job_mode: str,
    wf_filter: str,
    tag: Sequence[str],
    sched_flags: str,
    dry_run: bool,
) -> None:
    """Submit a launcher to the batch queue. On a machine without one it runs in the background here.

    It runs all jobs, unless --wf-filter or --tag say which.

    \b
    Examples:
        balsam submit-launch -n 2 -t 5 -q debug -A myproject --job-mode=serial
        balsam submit-launch -n 1 -t 60 --job-mode=mpi --wf-filter test --dry-run
    """
    from ..core.settings import Settings
    from ..db.query import batch_queries
    from ..schedulers import base, submission

    db = open_db()
    settings = Settings.load(db.directory)
    request = submission.LaunchRequest(
        nodes,
        time_minutes,
        queue,
        project,
        job_mode,
        wf_filter=wf_filter,
        filter_tags=pairs(tag, "--tag"),
        sched_flags=sched_flags,
    )
    if dry_run:
        with db.read() as cx:
            upcoming = batch_queries.next_number(cx)
        click.echo(submission.render_script(db, settings, request, upcoming), nl=False)
        return
    scheduler = base.select(settings)
    row = submission.submit_launch(db, settings, request, scheduler)
    from pprint import pformat

    click.echo(f"Submit OK: Qlaunch {pformat(submission.legacy_form(row), indent=4)}")
    _warn_if_idle(db, wf_filter, request.filter_tags)
    if nodes > 1 and job_mode != "mpi" and scheduler.name != "LocalScheduler":
        _warn_without_mpi4py(job_mode)


def _warn_without_mpi4py(job_mode: str) -> None:
    from importlib.util import find_spec

    if find_spec("mpi4py") is None:
        warn(
            f"A {job_mode} launcher on several nodes needs mpi4py, which {sys.executable} does not have here. "
            "Without it there, it fails at its start: `pip install mpi4py`, or load the module that has it in the job template."
        )


def _warn_if_idle(db: Database, wf_filter: str, tags: Mapping[str, str]) -> None:
    only = {"state": _WAITING, "tags": dict(tags)}
    with db.read() as cx:
        if wf_filter:
            only |= condition_on_text("workflow", wf_filter)
        if not select.job_ids(cx, only, 1):
            warn("No job waits that this launcher could run.")
