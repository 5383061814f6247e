"""`balsam queue`: the launches in the batch queue."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ..errors import BalsamError
from .common import count, open_db, say
from .group import BalsamCommand, CommandGroup, option
from .ls import LIMIT_HELP, Wanted, list_queues


@click.group(cls=CommandGroup)
def queue() -> None:
    """List the launches in the batch queue, or cancel them.

    \b
    Examples:
        balsam queue ls --all
        balsam queue rm qlaunch7
    """


@queue.command("ls", cls=BalsamCommand, short_help="list the launches, as `balsam ls queues` does")
@option("--all", "all_queues", is_flag=True, help="The launches that have ended, too.")
@option("--verbose", is_flag=True, help="Show every field.")
@option("--limit", type=int, callback=count, metavar="N", help=LIMIT_HELP)
@option("--json", is_flag=True, help="Print a list of objects, whose keys are the names of the fields.")
def list_(*, all_queues: bool, verbose: bool, limit: int | None, json: bool) -> None:
    """List the launches, as `balsam ls queues` does, with their states as the scheduler tells them now.

    \b
    Examples:
        balsam queue ls
        balsam queue ls --all --limit 5
    """
    list_queues(open_db(), Wanted(all_queues=all_queues, verbose=verbose, limit=limit, json=json))


@queue.command("rm", cls=BalsamCommand, short_help="cancel launches")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def remove(ids: Sequence[str]) -> int:
    """Cancel launches that wait or run. A launcher that runs hands its jobs back first, for the next one.

    ID is the scheduler's, or ours: 7 or qlaunch7. If one is unknown, none is cancelled.

    \b
    Examples:
        balsam queue rm 278079
        balsam queue rm qlaunch7 qlaunch8
    """
    from ..schedulers import base, submission
    from ..settings import Settings

    db = open_db()
    numbers = dict.fromkeys(submission.resolve(db, word)["id"] for word in ids)
    scheduler = base.select(Settings.load(db.directory))
    code = 0
    for number in numbers:
        try:
            row = submission.cancel(db, scheduler, number)
        except BalsamError as exc:  # the others are cancelled all the same
            say(f"Error: {exc}")
            code = exc.exit_code
            continue
        how = "is cancelled" if row["ended"] is not None else "is being cancelled"
        click.echo(f"qlaunch{number} ({row['scheduler_id']}) {how}")
    return code
