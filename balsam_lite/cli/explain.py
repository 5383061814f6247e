"""`balsam explain`: why jobs wait or failed, and what to do about it."""

from __future__ import annotations

import json
import sys
import textwrap
from typing import TYPE_CHECKING

import click

from ..sites.interface import MAX_EXPLAINED, Row
from . import output
from .common import ask_sites, long_site_option
from .group import BalsamCommand, option
from .selection import ChosenJobs, Selection, selection_options

if TYPE_CHECKING:
    from collections.abc import Iterator

_MIN_WIDTH = 20


@click.command(cls=BalsamCommand)
@selection_options(without=("workdir",), has_jobs=True)
@option("--refresh", is_flag=True, help="Ask the scheduler about queued launches first; else its last answer is shown.")
@option("--json", "as_json", is_flag=True, help="Print JSON.")
@long_site_option
def explain(chosen: Selection, refresh: bool, as_json: bool, site: str) -> None:
    """Tell why jobs do not run or have failed, and what to do about it.

    Of each JOB (number, unique prefix of an id, or name; at most 100) every reason is shown, in the order in which they have
    to be dealt with. Of jobs that match conditions, and of all that wait or failed if there are none, the first reason of each
    counts, and jobs with the same reason are one group with an example. No launcher is asked: the reasons follow from the DB
    as it is.

    The exit code is 0 if nothing stands in the way, 1 if something does, 3 if no job matches.

    \b
    Examples:
        balsam explain 7df8
        balsam explain
        balsam explain --wf scan --state FAILED
        balsam explain --refresh --json
    """
    if chosen:
        found = ChosenJobs.find(site, chosen, ask_sites)
        each = found.total == 1 or (bool(chosen.ids) and found.total <= MAX_EXPLAINED)
        answers = [(there.entry, there.explain(found.where, each, refresh)) for there, _ in found.sites]
    else:
        answers = ask_sites(site, lambda there: there.explain({}, False, refresh))
    shown = [{"site": entry.name, **row} for entry, answer in answers for rows in answer.values() for row in rows]
    if as_json:
        click.echo("[" + ",\n".join(json.dumps(row) for row in shown) + "]")
    else:
        name, width = len(answers) > 1, output.terminal_width(sys.stdout)
        lines = [line for row in shown for line in lines_of(row, f" of {output.one_line(row['site'])}" if name else "", width)]
        click.echo("\n".join(lines) or f"Nothing stands in the way of {'these jobs' if chosen else 'any job'}.")
    stands = any(one for row in shown for one in row.get("reasons", [row]) if not one.get("is_note"))
    click.get_current_context().exit(int(stands))


def lines_of(row: Row, of_site: str, width: int | None) -> Iterator[str]:
    """Yield the lines for one job, or for one group of jobs, of that width; None: of any."""
    if "reasons" not in row:
        label = "" if row["example"] is None else output.cute_id(row["example_name"], row["example"])
        yield from _wrapped(f"{row['jobs']:>7}  ", output.reason_text(row) + of_site, width)
        if label:
            yield from _wrapped(" " * 9, f"such as {output.one_line(label)}", width)
        yield from _wrapped(
            " " * 9, f"To do: {row['remedy'].replace('JOB', (row['example'] or 'JOB')[: output.SHORT_ID])}", width
        )
        return
    label = output.one_line(output.cute_id(row["name"], row["job_id"]))
    if not row["reasons"]:
        yield f"{label}{of_site} is {row['state']}; nothing stands in its way."
        return
    yield f"{label}{of_site} is {row['state']}:"
    for number, reason in enumerate(row["reasons"], 1):
        yield from _wrapped(f"{number:>3}. ", output.reason_text(reason), width)
        yield from _wrapped(" " * 5, f"To do: {reason['remedy']}", width)


def _wrapped(start: str, text: str, width: int | None) -> Iterator[str]:
    """Yield a text that begins after `start`, in lines of that width; lines of an output are kept as they are."""
    first, *rest = text.split("\n")
    width = max(width or sys.maxsize, len(start) + _MIN_WIDTH)
    yield from textwrap.wrap(
        output.one_line(first), width, initial_indent=start, subsequent_indent=" " * len(start), break_on_hyphens=False
    )
    for line in rest:
        yield f"{' ' * len(start)}| {output.one_line(line)}"
