"""`balsam rerun`: put jobs back, to be run again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..core import field_specs, states
from ..core.errors import NotFound
from ..db.query import queries
from ..db.store import graph, pieces, user_actions
from . import output
from .common import A_JOB, confirm, open_db, pairs, progress_of, say
from .group import BalsamCommand, Choice, ConditionOption, SeparateOption, option

if TYPE_CHECKING:
    from ..db.engine.connection import Connection


@click.command(cls=BalsamCommand)
@option("--state", "names", multiple=True, metavar="STATE", help="Only jobs in that state; may be repeated.")
@option("--name", cls=ConditionOption, default="", metavar="TEXT", help="Only jobs with TEXT in their name.")
@option("--id", "ids", cls=SeparateOption, multiple=True, metavar="ID...", help=f"Only that job: {A_JOB}; '#37' is a number.")
@option(
    "--wf",
    "--workflow",
    "workflow",
    cls=ConditionOption,
    default="",
    metavar="TEXT",
    help="Only jobs of workflows with TEXT in the name.",
)
@option(
    "--app",
    "--application",
    "app",
    cls=ConditionOption,
    default="",
    metavar="TEXT",
    help="Only jobs of apps with TEXT in the name.",
)
@option("--tag", multiple=True, metavar="KEY=VALUE", help="Only jobs with that tag; may be repeated.")
@option("--downstream", is_flag=True, help="Also all jobs that depend on those: their children, and so on.")
@option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Change a field of all that match; may be repeated.")
@option(
    "--to", type=Choice([states.CREATED, states.RESTART_READY]),
    help="The state to put them into. [default: RESTART_READY what has run before, CREATED the others]",
)  # fmt: skip
@option("--yes", is_flag=True, help="Do not ask.")
def rerun(
    *,
    names: Sequence[str],
    name: str,
    ids: Sequence[str],
    workflow: str,
    app: str,
    tag: Sequence[str],
    downstream: bool,
    changes: Sequence[str],
    to: str | None,
    yes: bool,
) -> None:
    """Put all matching jobs back, with changed fields if you like, so that a launcher runs them again.

    All conditions must hold at once; of several --state, or several --id, one must. Jobs held by a launcher stay as they are.
    CREATED repeats the staging and the scripts, too; RESTART_READY runs only the program. A job waits for those of its parents
    that run again. Children that are JOB_FINISHED stay so unless they match or --downstream is given; `balsam ls` marks them as
    stale.

    \b
    Examples:
        balsam rerun --state FAILED --set wall_time_minutes=30
        balsam rerun --state FAILED --wf test --tag size=big --to CREATED --yes
        balsam rerun --id prepare --downstream
    """
    only = queries.JobFilter(
        name=name,
        which=tuple(ids),
        states=tuple(map(states.check_state, names)),
        workflow=workflow,
        application=app,
        tags=pairs(tag, "--tag"),
    )
    if only == queries.JobFilter():
        raise click.UsageError("Say which jobs: at least one of --state, --name, --id, --wf, --app and --tag is needed.")
    values = pairs(changes, "--set")
    field_specs.check_job(values)
    db = open_db()
    with db.read() as cx:
        only = only._replace(which=tuple(f"#{queries.find_job(cx, word)}" for word in ids))
        matching, below = _chosen(cx, only, downstream)
    number = 0 if yes else len(matching) + len(below)
    if number and not confirm(f"Run {number} job{'s' * (number != 1)} again?", "--yes"):
        click.echo("Rerun aborted")
        click.get_current_context().exit(1)
    if len(matching) + len(below) > pieces.FEW:
        with progress_of(len(matching) + len(below)) as progress:
            done = user_actions.rerun(db, matching, to, values, below, progress)
        with db.read() as cx:
            waiting, failed, parent = _outcome(cx, [*matching, *below])
    else:
        with pieces.few(db) as cx:
            matching, below = _chosen(cx, only, downstream)
            done = user_actions.rerun(db, matching, to, values, below)
            waiting, failed, parent = _outcome(cx, [*matching, *below])
    if not matching:
        raise NotFound("No jobs found matching query")
    jobs, held = done.jobs - failed, done.held
    wait = f", {waiting} of them after their parents" if waiting else ""
    click.echo(f"{jobs} jobs run again{wait}" if jobs != 1 else f"1 job runs again{', after its parents' * waiting}")
    if held:
        click.echo(f"{held} left alone: a launcher holds them")
    if failed:
        say(f"{failed} FAILED again at once, as their run_when cannot hold{parent and f': parent {output.one_line(parent)}'}.")
        say("Once their parents are put back, they run too; --downstream puts back all jobs below a parent.")
        click.get_current_context().exit(0 if jobs else 1)


def _outcome(cx: Connection, numbers: Sequence[int]) -> tuple[int, int, str]:
    """Return how many of these wait for parents, how many have failed at once, and by which parent."""
    return queries.count_waiting(cx, numbers), *queries.failed_with_parent(cx, numbers)


def _chosen(cx: Connection, only: queries.JobFilter, downstream: bool) -> tuple[list[int], list[int]]:
    """Return the numbers of the matching jobs, and with `downstream` those of the other jobs that depend on them."""
    matching = queries.job_ids(cx, only)
    known = set(matching)
    return matching, [number for number in graph.descendants(cx, matching) if number not in known] if downstream else []
