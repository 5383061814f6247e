"""`balsam watch`: what goes on in a DB, live in a terminal."""

from __future__ import annotations

import sys

import click

from .common import long_site_option, one_site
from .group import BalsamCommand, option
from .selection import Selection, selection_options

_MISSING = "`balsam watch` needs the Python package textual: pip install 'balsam_lite[ui]'. Without it: balsam status --watch 2"
_MIN_INTERVAL_S, _MAX_INTERVAL_S = 0.2, 3600.0


@click.command(cls=BalsamCommand)
@option(
    "--interval",
    type=click.FloatRange(_MIN_INTERVAL_S, _MAX_INTERVAL_S),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Pause between two looks; longer where a look takes long.",
)
@selection_options(without=("ids",))
@long_site_option
def watch(interval: float, chosen: Selection, site: str) -> None:
    """Show live how the jobs of a DB go: states, rate, launches, what runs where, failures by cause.

    It only reads, until you press a key that kills a job or runs one again. `?` lists the keys.

    \b
    Examples:
        balsam watch
        balsam watch --wf scan
        balsam watch --site theta
    """
    try:
        from .watch_screens import WatchApp
    except ImportError as exc:
        if (exc.name or "").partition(".")[0] != "textual":
            raise
        raise click.ClickException(_MISSING) from exc
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.ClickException("`balsam watch` needs a terminal. Without one: balsam status")
    where = chosen.conditions()
    there = one_site(site)
    there.overview(where, 0)  # errors are reported here, not on the screen
    WatchApp(there, where, interval).run()
