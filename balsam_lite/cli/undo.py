"""`balsam undo`: take back the last command that removed, changed, killed or put back jobs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from ..core.clock import iso_us, spoken
from . import listing, output
from .common import ask_all_sites, ask_sites, confirm_or_end, long_site_option, progress_of, say
from .group import BalsamCommand, option
from .selection import dry_run_option

_KEYS = ("id", "site", "time", "user", "host", "command", "kind", "jobs", "fields", "is_undone")
_ACTIONS = listing.ObjectKind(_KEYS, ("id", "time", "command", "jobs", "fields", "is_undone"))

#: The commands that carry out what was requested through ssh.
_FROM_AFAR = ("balsam serve-stdio", "balsam answer")


@click.command(cls=BalsamCommand)
@click.argument("number", type=int, required=False)
@option("--list", "is_list", is_flag=True, help="List your last commands and scripts' changes, newest first.")
@option("-y", "--yes", is_flag=True, help="Do not ask.")
@dry_run_option
@long_site_option
@listing.output_options
def undo(*, number: int | None, is_list: bool, yes: bool, dry_run: bool, site: str, **options: Any) -> None:
    """Take back your last rm, modify, rerun or killjob, as far as nothing has run since.

    Removed jobs return with their history, changed fields and states are as before, and children that failed by it wait again.
    Jobs that ran, or that another command has changed, stay as they are; their number is printed. NUMBER, from --list, takes
    back an earlier command, or a change by a script. Files are not restored. An undo cannot be taken back: give the command
    again.

    \b
    Examples:
        balsam undo --dry-run
        balsam undo --yes
        balsam undo --list
        balsam undo 17
    """
    look = listing.Look.of(options, _ACTIONS)
    if is_list:
        with listing.paged(look):
            number = listing.show(look, _objects(site))
        if not number and not look.is_whole:
            say("You have changed nothing.")
        return
    places = ask_all_sites(site, lambda one: (one, one.undo(number, dry_run=True)))
    for _, (there, would) in places:
        action = would["action"]
        what = _described(action)
        if dry_run:
            click.echo(f"Would take back {what}: {output.plural(would['taken'], 'job')} restored.")
            _tell_left(would["left"])
            continue
        if not yes:
            confirm_or_end(f"Take back {what}?", "Undo")
        with progress_of(action["jobs"]) as there.progress:
            done = there.undo(action["id"])
        click.echo(f"Took back {what}: {output.plural(done['taken'], 'job')} restored.")
        _tell_left(done["left"])
    if dry_run:
        click.echo("Nothing was changed.")


def _described(action: Mapping[str, Any]) -> str:
    ago = spoken(max(0.0, time.time() - action["time_us"] / 1e6))
    fields = [name for name in action["fields"] if name != "state"]
    named = f" ({', '.join(map(output.one_line, fields[:3]))}{', …' * (len(fields) > 3)})" if fields else ""
    command = action["command"]
    if command in _FROM_AFAR:
        command = f"balsam {action['kind']}"
    return f"`{output.one_line(command)}` of {output.plural(action['jobs'], 'job')}{named}, {ago} ago"


def _tell_left(left: Mapping[str, int]) -> None:
    from ..db.store.undo import REASONS

    for reason, jobs in left.items():
        say(f"{output.plural(jobs, 'job')} left alone: {REASONS[reason]}.")


def _objects(site: str) -> list[dict[str, Any]]:
    """Return the last actions at the sites that --site names, as listings print them."""
    found = []
    for entry, rows in ask_sites(site, lambda one: one.actions()):
        for row in rows:
            names = [name for name in row["fields"] if name != "state" or row["fields"]["state"]]
            shown = {**row, "site": entry.name, "time": iso_us(row["time_us"]), "fields": names}
            found.append({key: shown[key] for key in _KEYS})
    return found
