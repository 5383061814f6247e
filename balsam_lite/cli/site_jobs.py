"""`balsam job ls`: list the jobs of one or more sites."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Callable, TypeVar

import click

from ..core import states
from . import listing, output
from .common import (
    ask_sites,
    count,
    long_site_option,
    say,
)
from .group import BalsamCommand, option
from .selection import Selection, selection_options

_Function = TypeVar("_Function", bound=Callable[..., Any])

# --- ls ---------------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@selection_options()
@long_site_option
@option("--by-state", is_flag=True, help="Count the jobs of each state. With -v: of those without jobs, too.")
@option("--history", is_flag=True, help="Show when each job entered each state.")
@option("-v", "--verbose", is_flag=True, help="Show every field.")
@option("--limit", type=int, callback=count, metavar="N", help="Show N jobs at most.")
@listing.output_options
def ls(chosen: Selection, site: str, by_state: bool, history: bool, verbose: bool, limit: int | None, **options: Any) -> None:
    """List jobs of one or more sites.

    All conditions must hold; of several values of one option one must, or all tags.

    \b
    Examples:
        balsam job ls --tag workflow=hello
        balsam job ls --site all --by-state
        balsam job ls --app Hello --state FAILED --history
        balsam job ls --format csv --columns id,name,state
    """
    look = listing.Look.of(options, listing.COUNT_KEYS if by_state else listing.JOB_KEYS, history)
    where = chosen.conditions(is_digits_number=True)
    if by_state:
        names = _count_states(look, site, where, verbose)
    else:
        names = _list_jobs(look, site, where, history, verbose, limit)
    if names and not look.is_whole:
        say(f"No job matches on {', '.join(names)}.")


def _list_jobs(
    look: listing.Look, site: str, where: Mapping[str, Any], history: bool, verbose: bool, limit: int | None
) -> list[str]:
    """Print the jobs; return the names of the sites that were asked if none has any."""
    columns = listing.JOB_KEYS if verbose else listing.JOB_TABLE
    is_plain = not look.form
    fields = () if history or (verbose and is_plain) else listing.fields_of((*look.shown(listing.JOB_KEYS, columns), "stale"))
    size = min(listing.HISTORY_PAGE if history else listing.PAGE, limit or listing.PAGE)
    answers = ask_sites(site, lambda one: one.page(where, fields, size=size))
    jobs = islice(listing.every(answers, where, fields, size), limit)
    if history:
        number = _show_histories(look, jobs)
    elif verbose and is_plain:
        number = sum(_print_form(entry.name, job) for entry, job in jobs)
    else:
        objects = (listing.job_object(job, entry.name) for entry, job in jobs)
        number = listing.show(look, listing.JOB_KEYS, columns, objects)
    return [] if number else [entry.name for entry, _ in answers]


def _show_histories(look: listing.Look, jobs: Iterable[listing.Found]) -> int:
    told = ((entry.name, job, events) for entry, job, events in listing.with_events(jobs))
    if look.form:
        return listing.show_histories(look, told)
    return sum(_print_history(job, events) for _, job, events in told)


def _print_form(site: str, job: Mapping[str, Any]) -> bool:
    return bool(sys.stdout.write("".join(f"{line}\n" for line in listing.form(site, job))))


def _print_history(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> bool:
    lines = [(one["timestamp"], "", one["to_state"], listing.message_of(one)) for one in events]
    return bool(sys.stdout.write(output.history(job["name"] or job["workdir"], job["job_id"], lines) + "\n"))


def _count_states(look: listing.Look, site: str, where: Mapping[str, Any], everything: bool) -> list[str]:
    answers = ask_sites(site, lambda one: one.count_states(where))
    found = dict.fromkeys(states.STATES, 0) if everything else {}
    for _, numbers in answers:
        for state, jobs in numbers.items():
            found[state] = found.get(state, 0) + jobs
    rows = ({"state": state, "jobs": found[state]} for state in states.STATES if state in found)
    number = listing.show(look, listing.COUNT_KEYS, listing.COUNT_KEYS, rows)
    return [] if number else [entry.name for entry, _ in answers]
