"""`balsam launcher`: run jobs here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ..core import field_specs
from ..core.clock import FORMS
from ..db.engine import directories
from .common import COUNT, COUNT0, Minutes, number, pairs
from .group import BalsamCommand, Choice, option
from .selection import JOB_MODE_HELP, PART_HELP, launch_filter_options


@click.command(cls=BalsamCommand)
@option("--consume-all", is_flag=True, help="Run jobs of every workflow.")
@launch_filter_options
@option("--job-mode", type=Choice(field_specs.JOB_MODES), help=f"{JOB_MODE_HELP} Required unless each --part has one.")
@option(
    "--time-limit-minutes", type=Minutes(is_whole=False), default=0, callback=number, metavar="TIME",
    help=f"Stop after this time: {FORMS}. 0: shortly before the batch job's own limit. [default: 0]",
)  # fmt: skip
@option(
    "--nodes",
    type=COUNT,
    metavar="N",
    help="Outside of a batch job: number of nodes to divide this host into. [default: its cores]",
)
@option("--limit-nodes", type=COUNT, metavar="N", help="Maximum number of nodes to use.")
@option("--offset-nodes", type=COUNT0, default=0, metavar="N", help="Number of nodes to leave out, from the first on.")
@option("--gpus-per-node", type=COUNT0, metavar="N", help="GPUs per node. [default: from the settings, else detected]")
@option("--persistent", is_flag=True, help="Keep running when no job waits.")
@option(
    "--num-transition-threads",
    "transition_threads",
    type=COUNT0,
    default=0,
    metavar="N",
    help="Threads for scripts and staging. [default: from the settings]",
)
@option("-p", "--part", "parts", multiple=True, metavar="MODE:NUM_NODES[:KEY=VALUE...]", help=PART_HELP)
@click.pass_context
def launcher(
    ctx: click.Context, /, *, consume_all: bool, workflow_filter: str | None, job_mode: str | None, tags: Sequence[str],
    parts: Sequence[str], **options: Any,
) -> int:  # fmt: skip
    """Run jobs here until none is left or the time is up: all jobs, those of a workflow, or those with some tags.

    \b
    Examples:
        balsam launcher --consume-all --job-mode serial
        balsam launcher --tag kind=large --job-mode mpi
        balsam launcher --wf-filter test --job-mode serial --nodes 2 \\
            --time-limit-minutes 10
        balsam launcher --consume-all \\
            --part mpi:3:kind=large --part serial:1:kind=small
    """
    if consume_all and workflow_filter is not None:
        raise click.UsageError("--consume-all means every workflow and --wf-filter some; give one of them.")
    if not consume_all and workflow_filter is None and not tags:
        raise click.UsageError("Which jobs? Give --consume-all, --wf-filter NAME or --tag KEY=VALUE.")
    if job_mode is None and not parts:
        raise click.MissingParameter(ctx=ctx, param=next(one for one in ctx.command.params if one.name == "job_mode"))
    if parts and (options["limit_nodes"] is not None or options["offset_nodes"]):
        raise click.UsageError("--part divides all nodes; it cannot be combined with --limit-nodes or --offset-nodes.")
    options.update(job_mode=job_mode or "serial", workflow_filter=workflow_filter, tags=tuple(pairs(tags, "--tag").items()))
    directory = directories.find(ctx.find_root().obj)
    from ..launcher.main import LauncherOptions, run_launcher

    if parts:
        from ..launcher.multinode.supervisor import run_parts
        from ..schedulers.base import Partition

        return run_parts(directory, LauncherOptions(**options), [Partition.parse(part) for part in parts])
    return run_launcher(directory, LauncherOptions(**options))
