"""`balsam report`: write what became of the jobs as one HTML file."""

from __future__ import annotations

import sys

import click

from ..core.clock import SystemClock
from .common import ask_sites, long_site_option, say
from .group import Option, PathCommand, option
from .plot import window_of, window_options
from .selection import Selection, selection_options


@click.command(cls=PathCommand)
@option("-o", "--output", metavar="FILE", required=True, help="File to write, such as campaign.html; - is standard output.")
@selection_options(ids=Option)
@window_options
@long_site_option
def report(output: str, site: str, after: str | None, before: str | None, chosen: Selection) -> None:
    """Write a report of the jobs that match as one HTML file, which needs no network and may be sent by mail.

    It has the plots of `balsam plot`, a record of launchers and applications, and a table of at most 5,000 jobs that can be
    sorted and filtered. Values of secret environment variables are masked.

    \b
    Examples:
        balsam report -o campaign.html
        balsam report --wf scan --after 7d -o scan.html
        balsam report --site all -o - | mail -a ...
    """
    from ..plots import figures
    from ..plots import report as reports

    now_us = SystemClock.now_us()
    window = window_of(after, before, now_us)
    where = chosen.conditions()
    if output != "-":
        figures.check_writable(output)
    found = ask_sites(site, lambda one: (one, reports.read(one, where, now_us, window)))
    if chosen and not any(data.campaign.jobs for _, (_, data) in found):
        raise chosen.refuse_none([one for _, (one, _) in found])
    limits = [f"--{name} {text}" for name, text in (("after", after), ("before", before)) if text]
    conditions = " ".join([str(chosen), *limits]).strip()
    page = reports.render([data for _, (_, data) in found], conditions, now_us)
    if output == "-":
        sys.stdout.buffer.write(page.encode("utf-8", "replace"))
        return
    figures.write_text(output, page)
    say(f"Wrote {output}")
