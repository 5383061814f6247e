"""`balsam plot`: pictures of what jobs did, in a file or in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from ..core import states
from ..core.clock import SECOND_US, SystemClock
from ..core.errors import InvalidSpec
from .common import NUMBER_OR_WORD, ask_sites, condition_of, long_site_option, pairs, say
from .group import Choice, ConditionOption, PathCommand, option
from .output import one_line

_KINDS = ("throughput", "utilization", "states", "gantt")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@click.command(cls=PathCommand)
@click.argument("kind", type=Choice(_KINDS), metavar="|".join(_KINDS))
@option("-o", "--output", metavar="FILE", help="Draw a figure into a .png, .svg or .pdf; without it, plot in the terminal.")
@option("-i", "--id", "ids", multiple=True, metavar="JOB", help=f"Only that job: {NUMBER_OR_WORD}; may be repeated.")
@option("-t", "--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Only jobs with that tag; may be repeated.")
@option(
    "-s", "--state", "wanted", multiple=True, metavar="STATE", help="Only jobs that are in that state now; may be repeated."
)
@option("--name", "names", multiple=True, metavar="NAME", help="Only jobs of that name; may be repeated.")
@option("--wf", "--workflow", "workflows", multiple=True, metavar="NAME", help="Only jobs of that workflow; may be repeated.")
@option("-a", "--app", "apps", multiple=True, metavar="NAME", help="Only jobs of that application; may be repeated.")
@option(
    "--after",
    cls=ConditionOption,
    metavar="TIME",
    help="Only from then on: 2026-05-31, '2026-05-31 14:00' (UTC), or 2h: two hours ago.",
)
@option("--before", cls=ConditionOption, metavar="TIME", help="Only until then.")
@long_site_option
def plot(kind: str, output: str | None, site: str, after: str | None, before: str | None, **filters: Sequence[Any]) -> None:
    """Draw what jobs did.

    \b
    throughput   jobs done over time
    utilization  nodes in use, and the nodes that batch jobs had beside them
    states       how many jobs were in each state
    gantt        each run as a bar, coloured by how it ended

    \b
    Examples:
        balsam plot throughput
        balsam plot utilization --tag workflow=hello -o hello.svg
        balsam plot states --site all --after 2h
    """
    from ..plots import figures, gather, kinds
    from ..plots.timeline import Window

    now_us = SystemClock.now_us()
    window = Window(*(limit if text is None else moment(text, now_us) for text, limit in zip((after, before), Window())))
    if window.start > window.end:
        raise InvalidSpec(f"--after {after} is later than --before {before}.")
    where = _where(**filters)
    if output is not None:
        figures.check_path(output)
        figures.check_matplotlib()
    found = ask_sites(site, lambda one: gather.read(one, kind, where))
    sites = ", ".join(entry.name for entry, _ in found)
    picture = kinds.prepared(
        kind, [one for _, one in found], sites if len(sites) <= 40 else f"{len(found)} sites", now_us, window
    )
    picture = picture._replace(title="\n".join([picture.title, *_described(where)]))
    if output is None:
        sys.stdout.writelines(f"{line}\n" for line in picture.lines(_style()))
    else:
        picture.save(output)
        say(f"Wrote {output}")


def _where(
    ids: Sequence[str], tags: Sequence[str], wanted: Sequence[str], names: Sequence[str], workflows: Sequence[str],
    apps: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """The conditions of `db.query.filters`. Raises InvalidSpec, InvalidStateError."""
    terms = {
        **condition_of(ids),
        "tags": pairs(tags, "--tag"),
        "state": [states.check_state(state) for state in wanted],
        "name": list(names),
        "workflow": list(workflows),
        "app": list(apps),
    }
    return {name: value for name, value in terms.items() if value}


def _described(where: dict[str, Any]) -> list[str]:
    """The conditions for a title: a line, or none."""
    words = []
    for name, value in where.items():
        listed = [f"{key}={word}" for key, word in value.items()] if isinstance(value, dict) else map(str, value)
        words.append(f"{name}: {', '.join(listed)}")
    line = "; ".join(words)
    return [one_line(line if len(line) <= 80 else f"{line[:79]}…")] if line else []


def _style() -> Any:
    """How the terminal wants its text."""
    import shutil

    from ..plots.text import Style

    try:
        "│█".encode(sys.stdout.encoding or "ascii")
        blocks = True
    except (UnicodeEncodeError, LookupError):
        blocks = False
    return Style(shutil.get_terminal_size((80, 24)).columns, blocks)


def moment(text: str, now_us: int) -> int:
    """A point in time that a user gave, in microseconds since the epoch: a date, a time (UTC, if it says no zone), or how
    long ago.

    >>> moment("1970-01-02", 0), moment("2m", 600_000_000)
    (86400000000, 480000000)

    Raises:
        InvalidSpec: it is none.
    """
    from datetime import datetime

    from ..analytics import microseconds

    ago = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)\s*([smhdw])(?: ago)?", text.strip())
    if ago:
        return now_us - round(float(ago[1]) * _UNITS_S[ago[2]] * SECOND_US)
    try:
        return microseconds(datetime.fromisoformat(re.sub("Z$", "+00:00", text.strip())))
    except ValueError:
        raise InvalidSpec(
            f"{text!r} is no time.",
            hint="Write 2026-05-31, '2026-05-31 14:00' (UTC), '2026-05-31T14:00+02:00', or 30m, 2h, 7d for ago.",
        ) from None
