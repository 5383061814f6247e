"""`balsam plot`: draw what jobs did, into a file or in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.clock import SECOND_US, SystemClock
from ..core.errors import InvalidSpec
from .common import ask_sites, long_site_option, say
from .group import Choice, ConditionOption, Option, PathCommand, option
from .output import json_encoder, one_line
from .selection import Selection, selection_options

if TYPE_CHECKING:
    from ..plots.campaign import Window
    from ..plots.text import Style

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: As in `plots.charts.KINDS`, which takes long to import.
KINDS = ("throughput", "utilization", "states", "gantt", "nodes", "durations", "waiting", "memory", "failures", "dag")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def window_options(function: _Function) -> _Function:
    """Give a command --after and --before as its parameters `after` and `before`; see `window_of`."""
    after = option(
        "--after", cls=ConditionOption, metavar="TIME",
        help="Start of what is shown: 2026-05-31, '2026-05-31 14:00' (UTC), or 2h: two hours ago.",
    )  # fmt: skip
    before = option("--before", cls=ConditionOption, metavar="TIME", help="End of what is shown, likewise.")
    return after(before(function))


def window_of(after: str | None, before: str | None, now_us: int) -> Window:
    """Return the span of time that --after and --before select. Raises InvalidSpec."""
    from ..plots.campaign import Window

    window = Window(*(limit if text is None else moment(text, now_us) for text, limit in zip((after, before), Window())))
    if window.start > window.end:
        raise InvalidSpec(f"--after {after} is later than --before {before}.")
    return window


@click.command(cls=PathCommand)
@click.argument("kind", type=Choice(KINDS), metavar="KIND")
@option(
    "-o", "--output", metavar="FILE",
    help="Figure to draw: .png, .svg or .pdf; dag also .dot or .mmd. [default: plot in the terminal]",
)  # fmt: skip
@option("--json", "as_json", is_flag=True, help="Print the numbers as a JSON object.")
@selection_options(ids=Option)
@window_options
@long_site_option
def plot(
    kind: str, output: str | None, as_json: bool, site: str, after: str | None, before: str | None, chosen: Selection
) -> None:
    """Draw the jobs that match: all conditions must hold.

    \b
    throughput   jobs done over time, and the rate
    utilization  nodes in use, and the nodes that batch jobs had
    states       how many jobs were in each state
    gantt        the runs on each node, coloured by how they ended
    nodes        how busy each node was, and its failed runs
    durations    how long runs took, by application
    waiting      how long jobs waited before their runs, by application
    memory       peak memory of runs, by application
    failures     failed jobs by cause, failed runs by node
    dag          the graph of jobs by state

    \b
    Examples:
        balsam plot throughput
        balsam plot utilization --tag workflow=hello -o hello.svg
        balsam plot states --site all --after 2h
        balsam plot dag --wf scan -o scan.dot
    """
    from ..plots import campaign, charts, figures, text

    now_us = SystemClock.now_us()
    window = window_of(after, before, now_us)
    where = chosen.conditions()
    if output is not None:
        if as_json:
            raise InvalidSpec("--json prints to standard output; leave out -o, or redirect the output.")
        figures.check_path(output, kind == "dag")
    draw, parts = charts.KINDS[kind]
    found = ask_sites(site, lambda one: campaign.read(one, where, parts, now_us, window))
    sites = one_line(", ".join(entry.name for entry, _ in found))
    style = _style()
    fineness = charts.Size() if output or as_json else style.fineness
    picture = draw(campaign.merged([one for _, one in found]), sites if len(sites) <= 40 else f"{len(found)} sites", fineness)
    picture = picture._replace(title="\n".join([picture.title, *([_shortened(str(chosen))] if chosen else [])]))
    if as_json:
        sys.stdout.write(json_encoder(sys.stdout)(charts.as_json(picture)) + "\n")
    elif output is None:
        sys.stdout.writelines(f"{line}\n" for line in text.lines(picture, style))
    else:
        figures.save(picture, output)
        say(f"Wrote {output}")


def _shortened(line: str) -> str:
    return one_line(line if len(line) <= 80 else f"{line[:79]}…")


def _style() -> Style:
    """Return the width of the terminal and whether it can show block characters."""
    import shutil

    from ..plots.text import Style

    try:
        "│█".encode(sys.stdout.encoding or "ascii")
        blocks = True
    except (UnicodeEncodeError, LookupError):
        blocks = False
    return Style(shutil.get_terminal_size((80, 24)).columns, blocks)


def moment(text: str, now_us: int) -> int:
    """Parse a date, a time (UTC unless it has a zone) or an age such as 2h, into microseconds since the epoch.

    >>> moment("1970-01-02", 0), moment("2m", 600_000_000)
    (86400000000, 480000000)

    Raises:
        InvalidSpec: it is none of these.
    """
    from datetime import datetime

    from ..core.clock import us_of

    ago = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*([smhdw])(?: ago)?", text.strip())
    if ago:
        return now_us - round(float(ago[1]) * _UNITS_S[ago[2]] * SECOND_US)
    try:
        return us_of(datetime.fromisoformat(re.sub("Z$", "+00:00", text.strip())))
    except ValueError:
        raise InvalidSpec(
            f"{text!r} is not a time.",
            hint="Write 2026-05-31, '2026-05-31 14:00' (UTC), '2026-05-31T14:00+02:00', or an age: 30m, 2h, 7d.",
        ) from None
