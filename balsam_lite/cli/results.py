"""`balsam results`: one row for each job, with its parameters and what came out of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any

import click

from . import listing, output
from .common import COUNT, ask_sites, long_site_option, say
from .group import BalsamCommand, FieldOption, option
from .selection import Selection, selection_options

_COLUMNS_HELP = "Columns, in this order: fields, data.KEY, parameters.KEY, tags.KEY; data alone means all its keys."
#: Columns of the table on a terminal that come before the keys of objects, and after them.
_FIRST, _LAST = ("site", "id", "name", "state"), ("runtime_s", "return_code", "max_memory_bytes", "node")


@click.command(cls=BalsamCommand)
@selection_options()
@long_site_option
@option("--columns", metavar="NAME,...", help=_COLUMNS_HELP)
@option("--sort", cls=FieldOption, default="", metavar="FIELD", help="Order by this field; -FIELD: in reverse.")
@option("--limit", type=COUNT, metavar="N", help="Maximum number of jobs. [default: the newest 50 on a terminal]")
@listing.format_options
def results(
    chosen: Selection, site: str, columns: str | None, sort: str, limit: int | None, **options: Any
) -> None:  # fmt: skip
    """Show or write one row for each job that matches: parameters, tags, data, state, run time, memory, node.

    Each key of parameters, tags and data is a column, of objects in them with dots: data.fit.slope. On a terminal the table has
    as many columns as fit, without those that are empty; a file and the other formats have all.

    \b
    Examples:
        balsam results --wf scan
        balsam results --wf scan -o results.csv
        balsam results --state JOB_FINISHED --sort data.energy \\
            --columns name,parameters.T,data.energy,runtime
        balsam results --site all -o results.parquet
    """
    from ..db.query.results import TIMES, ResultTable
    from ..sites.results import SitePages

    look = listing.Look.of_format(options)
    named = [name.strip() for name in columns.split(",")] if columns is not None else []
    asked = [found for _, found in ask_sites(site, lambda one: (one, one.count("job", chosen.conditions())))]
    sites = [one for one, number in asked if number]
    if not sites:
        if look.form not in ("", "table") or look.path:
            listing.write(look, ResultTable(lambda fields: iter(()), named).columns, (), TIMES, has_header=True)
        say(f"No job matches{f' {chosen}' * bool(chosen)}.")
        return
    is_table = look.form in ("", "table") and not look.path and sys.stdout.isatty()
    with listing.paged(look), ExitStack() as stack:
        for one in sites:
            stack.enter_context(one.at_one_moment())
        pages = SitePages([(one, chosen.conditions()) for one in sites], sort.replace(".", "__"), limit)
        more = pages.newest(listing.TERMINAL_LIMIT) if is_table and not sort and limit is None else 0
        found = ResultTable(pages, named, has_sites=len(sites) > 1)
        if is_table and not named:
            _show_table(look, found)
        else:
            listing.write(look._replace(is_fixed=bool(named)), found.columns, found.rows(), TIMES, has_header=True)
    for note in [*found.notes, *([f"{more} more jobs not shown; --limit N shows the first N"] if more > 0 else [])]:
        say(f"({note})")


def _show_table(look: listing.Look, found: Any) -> None:
    """Print the rows with the columns that have values in the first of them, those of the user's keys before the others."""
    rows = found.rows()
    first = list(islice(rows, output.ROWS_AT_ONCE))
    filled = [name for name, column in zip(found.columns, zip(*first)) if any(value not in (None, "") for value in column)]
    shown = _in_table_order(filled)
    places = [found.columns.index(name) for name in shown]
    listing.write(look, shown, ([row[place] for place in places] for row in chain(first, rows)), ())


def _in_table_order(names: Sequence[str]) -> list[str]:
    keys = sorted((name for name in names if "." in name), key=lambda name: name.startswith("tags."))
    known = [*_FIRST, *keys, *_LAST]
    return [name for name in known if name in names] + [name for name in names if name not in known]
