"""`balsam plot`: draw what jobs did, into a file or in the terminal."""

from __future__ import annotations

import re
import sys
from typing import Any

import click

from ..core.clock import SECOND_US, SystemClock
from ..core.errors import InvalidSpec
from .common import ask_sites, long_site_option, say
from .group import Choice, ConditionOption, Option, PathCommand, option
from .output import one_line
from .selection import Selection, selection_options

_KINDS = ("throughput", "utilization", "states", "gantt")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.command(cls=PathCommand)
@click.argument("kind", type=Choice(_KINDS), metavar="|".join(_KINDS))
@option("-o", "--output", metavar="FILE", help="Figure to draw: .png, .svg or .pdf. [default: plot in the terminal]")
@selection_options(ids=Option)
@option(
    "--after",
    cls=ConditionOption,
    metavar="TIME",
    help="Start of the plot: 2026-05-31, '2026-05-31 14:00' (UTC), or 2h: two hours ago.",
)
@option("--before", cls=ConditionOption, metavar="TIME", help="End of the plot, likewise.")
@long_site_option
def plot(kind: str, output: str | None, site: str, after: str | None, before: str | None, chosen: Selection) -> None:
    """Draw the jobs that match: all conditions must hold.

    \b
    throughput   jobs done over time
    utilization  nodes in use, and the nodes that batch jobs had
    states       how many jobs were in each state
    gantt        each run as a bar, coloured by how it ended

    \b
    Examples:
        balsam plot throughput
        balsam plot utilization --tag workflow=hello -o hello.svg
        balsam plot states --site all --after 2h
    """
    from ..plots import figures, kinds
    from ..plots.timeline import Window

    now_us = SystemClock.now_us()
    window = Window(*(limit if text is None else moment(text, now_us) for text, limit in zip((after, before), Window())))
    if window.start > window.end:
        raise InvalidSpec(f"--after {after} is later than --before {before}.")
    where = chosen.conditions()
    if output is not None:
        figures.check_path(output)
        figures.check_matplotlib()
    found = ask_sites(site, lambda one: kinds.read(one, kind, where))
    sites = ", ".join(entry.name for entry, _ in found)
    picture = kinds.prepared(
        kind, [one for _, one in found], sites if len(sites) <= 40 else f"{len(found)} sites", now_us, window
    )
    picture = picture._replace(title="\n".join([picture.title, *([_shortened(str(chosen))] if chosen else [])]))
    if output is None:
        sys.stdout.writelines(f"{line}\n" for line in picture.lines(_style()))
    else:
        picture.save(output)
        say(f"Wrote {output}")


def _shortened(line: str) -> str:
    return one_line(line if len(line) <= 80 else f"{line[:79]}…")


def _style() -> Any:
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
