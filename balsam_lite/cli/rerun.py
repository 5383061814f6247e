"""`balsam rerun`: put jobs back, to be run once more."""

from __future__ import annotations

from collections.abc import Sequence

import click

from .. import spec, states
from ..db import queries
from ..db.store import user
from ..errors import NotFound
from .common import confirm, open_db, pairs
from .group import BalsamCommand, option


@click.command(cls=BalsamCommand)
@option("--state", "names", multiple=True, metavar="STATE", help="Only jobs in that state; may be repeated.")
@option("--name", default="", metavar="TEXT", help="Only jobs with TEXT in their name.")
@option("--id", "prefix", default="", metavar="PREFIX", help="Only jobs whose id starts so.")
@option("--wf", "--workflow", "workflow", default="", metavar="TEXT", help="Only jobs of workflows with TEXT in the name.")
@option("--app", "--application", "app", default="", metavar="TEXT", help="Only jobs of apps with TEXT in the name.")
@option("--tag", multiple=True, metavar="KEY=VALUE", help="Only jobs with that tag; may be repeated.")
@option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Change a field of all of them; may be repeated.")
@option(
    "--to", type=click.Choice([states.CREATED, states.RESTART_READY]),
    help="The state to put them into. [default: RESTART_READY what has run before, CREATED the others]",
)  # fmt: skip
@option("--yes", is_flag=True, help="Do not ask.")
def rerun(
    *,
    names: Sequence[str],
    name: str,
    prefix: str,
    workflow: str,
    app: str,
    tag: Sequence[str],
    changes: Sequence[str],
    to: str | None,
    yes: bool,
) -> None:
    """Put all jobs that match back, with changed fields if you like, so that a launcher runs them once more.

    All conditions must hold at once. What a launcher holds is left alone. CREATED repeats the staging and the scripts,
    too; RESTART_READY runs only the program.

    \b
    Examples:
        balsam rerun --state FAILED --set wall_time_minutes=30
        balsam rerun --state FAILED --wf test --tag size=big --to CREATED --yes
    """
    only = queries.JobFilter(
        name=name,
        id_prefix=prefix.strip(),
        states=tuple(map(states.check_state, names)),
        workflow=workflow,
        application=app,
        tags=pairs(tag, "--tag"),
    )
    if only == queries.JobFilter():
        raise click.UsageError("Say which jobs: at least one of --state, --name, --id, --wf, --app and --tag is needed.")
    values = pairs(changes, "--set")
    spec.check_job(values)
    db = open_db()
    if not yes:
        with db.read() as cx:
            number = queries.count_jobs(cx, only)
        if number and not confirm(f"Run {number} job{'s' * (number != 1)} once more?", "--yes"):
            click.echo("Rerun aborted")
            click.get_current_context().exit(1)
    with db.write() as cx:
        done = user.rerun(db, queries.job_ids(cx, only), to, values)
    if done == (0, 0):
        raise NotFound("No jobs found matching query")
    click.echo(f"{done.jobs} jobs run again" if done.jobs != 1 else "1 job runs again")
    if done.held:
        click.echo(f"{done.held} left alone: a launcher holds them")
