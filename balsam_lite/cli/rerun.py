"""`balsam rerun` and `balsam killjob`: run jobs again that have ended, or stop jobs for good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ..core import field_specs, states
from ..db.query import queries
from ..db.store import graph, large_writes, pieces, user_actions
from . import output
from .common import confirm, open_db, pairs, progress_of, say
from .group import BalsamCommand, Choice, option
from .selection import Selection, jobs, numbers_of, selection_options

if TYPE_CHECKING:
    from ..db.engine.connection import Connection


@click.command(cls=BalsamCommand)
@selection_options()
@option("--downstream", is_flag=True, help="Also all jobs that depend on those: their children, and so on.")
@option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Change a field of all that match; may be repeated.")
@option(
    "--to", type=Choice([states.CREATED, states.RESTART_READY]),
    help="State to put them into. [default: RESTART_READY if it has run before, else CREATED]",
)  # fmt: skip
@option("--yes", is_flag=True, help="Do not ask.")
def rerun(*, chosen: Selection, downstream: bool, changes: Sequence[str], to: str | None, yes: bool) -> None:
    """Put all matching jobs back so that a launcher runs them again, with changed fields if --set is given.

    All conditions must hold; of several values of one option one must, or all tags. Jobs held by a launcher are left alone.
    CREATED repeats the staging and the scripts, too; RESTART_READY runs only the program. A job waits for those of its parents
    that run again. Children that are JOB_FINISHED stay so unless they match or --downstream is given; `balsam ls` marks them as
    stale.

    \b
    Examples:
        balsam rerun --state FAILED --set wall_time_minutes=30
        balsam rerun --state FAILED --wf test --tag size=big --to CREATED --yes
        balsam rerun --id prepare --downstream
    """
    if not chosen:
        raise click.UsageError("Which jobs? Give at least one condition, such as --state, --name, --id, --wf, --app and --tag.")
    values = pairs(changes, "--set")
    field_specs.check_job(values)
    db = open_db()
    with db.read() as cx:
        matching, below = _jobs_of(cx, chosen, downstream)
    if not matching:
        raise chosen.refuse_none(db)
    if not yes and not confirm(f"Run {jobs(len(matching) + len(below))} again?", "--yes"):
        click.echo("Rerun aborted")
        click.get_current_context().exit(1)
    if len(matching) + len(below) > large_writes.MAX_DIRECT_JOBS:
        with progress_of(len(matching) + len(below)) as progress:
            done = user_actions.rerun(db, matching, to, values, below, progress)
        with db.read() as cx:
            waiting, failed, parent = _outcome(cx, [*matching, *below])
    else:
        with pieces.few(db) as cx:
            matching, below = _jobs_of(cx, chosen, downstream)
            done = user_actions.rerun(db, matching, to, values, below)
            waiting, failed, parent = _outcome(cx, [*matching, *below])
    put_back, held = done.jobs - failed, done.held
    wait = f", {waiting} of them after their parents" if waiting else ""
    click.echo(f"{put_back} jobs run again{wait}" if put_back != 1 else f"1 job runs again{', after its parents' * waiting}")
    if held:
        click.echo(f"{held} left alone: a launcher holds them")
    if failed:
        say(f"{failed} FAILED again at once, as their run_when cannot hold{parent and f': parent {output.one_line(parent)}'}.")
        say("Once their parents are put back, they run too; --downstream puts back all jobs below a parent.")
        click.get_current_context().exit(0 if put_back else 1)


def _outcome(cx: Connection, numbers: Sequence[int]) -> tuple[int, int, str]:
    """Return how many of these wait for parents, how many have failed at once, and by which parent."""
    return queries.count_waiting(cx, numbers), *queries.failed_with_parent(cx, numbers)


def _jobs_of(cx: Connection, chosen: Selection, downstream: bool) -> tuple[list[int], list[int]]:
    """Return the numbers of the matching jobs, and with `downstream` those of the other jobs that depend on them."""
    matching = numbers_of(cx, chosen)
    known = set(matching)
    return matching, [number for number in graph.descendants(cx, matching) if number not in known] if downstream else []


# --- kill -------------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@selection_options()
@option("--recursive", is_flag=True, help="Kill all jobs that depend on them, too.")
@option("-y", "--yes", is_flag=True, help="Do not ask.")
def killjob(chosen: Selection, recursive: bool, yes: bool) -> None:
    """Kill jobs: they become USER_KILLED and stay so. The launcher that runs one stops its processes.

    \b
    Examples:
        balsam killjob --id 7df8
        balsam killjob --id 7df8 ab58 --recursive --yes
        balsam killjob --wf scan --state 'RUN*'
    """
    if not chosen:
        raise click.UsageError("Which jobs? Give at least one condition, such as --id, --name, --state, --wf, --app and --tag.")
    db = open_db()
    with db.read() as cx:
        numbers = numbers_of(cx, chosen)
        named = [queries.job(cx, number) for number in numbers] if len(chosen.ids) == len(numbers) else []
        below = graph.descendants(cx, numbers) if recursive else []
    if not numbers:
        raise chosen.refuse_none(db)
    questions = [f"job {output.one_line(job['name'])} {output.cute_id(job['name'], job['job_id'])}" for job in named]
    for what in [] if yes else questions or [jobs(len(numbers))]:
        if not confirm(f"Really kill {what} ??", "--yes"):
            click.echo("Kill aborted")
            click.get_current_context().exit(1)
    with progress_of(len({*numbers, *below})) as progress:
        result = user_actions.kill(db, numbers, recursive=recursive, progress=progress)
    click.echo(_killed(result.killed))
    if result.running:
        one = "It still runs" if result.killed == 1 else "1 still runs"
        one += " until its launcher has stopped it."
        click.echo(one if result.running == 1 else f"{result.running} still run until their launchers have stopped them.")


def _killed(number: int) -> str:
    if number == 0:
        return "No job killed: there was nothing left to kill"
    return "Job killed" if number == 1 else f"{number} jobs killed"
