"""`balsam job ls|modify|rm`: jobs in the words of the workshop, on any site that is known."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Callable, TypeVar

import click

from ..core import states
from ..core.errors import AmbiguousSite, InvalidSpec
from ..db.engine.registry import SiteEntry
from . import listing, output
from .common import (
    NUMBER_OR_WORD,
    ask_all_sites,
    ask_sites,
    condition_of,
    confirm,
    count,
    jobs_fitting,
    long_site_option,
    pairs,
    row_number,
    say,
    warn,
)
from .group import BalsamCommand, ConditionOption, option

_Function = TypeVar("_Function", bound=Callable[..., Any])

# --- which jobs -------------------------------------------------------------------------------------------------------

_FILTERS = (
    option("-i", "--id", "ids", multiple=True, metavar="JOB", help=f"Only that job: {NUMBER_OR_WORD}; may be repeated."),
    option("-t", "--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Only jobs with that tag; may be repeated."),
    option("-s", "--state", "wanted", multiple=True, metavar="STATE", help="Only jobs in that state; may be repeated."),
    option("-ns", "--exclude-state", "unwanted", multiple=True, metavar="STATE", help="Only jobs in other states."),
    option("-w", "--workdir", cls=ConditionOption, metavar="TEXT", help="Only jobs with TEXT in the path of their directory."),
    option("-a", "--app", cls=ConditionOption, metavar="NAME", help="Only jobs of that application, by its name or number."),
)


def _choosing_options(command: _Function) -> _Function:
    for decorate in reversed(_FILTERS):
        command = decorate(command)
    return command


def _where(
    ids: Sequence[str] = (),
    tags: Sequence[str] = (),
    wanted: Sequence[str] = (),
    unwanted: Sequence[str] = (),
    workdir: str | None = None,
    app: str | None = None,
) -> dict[str, Any]:
    """The conditions of `db.query.filters`; all that are given must hold.

    Raises:
        InvalidSpec: a tag without `=`; an empty text, as of an unset variable: it would mean everything. InvalidStateError.
    """
    if "" in (workdir, app):
        raise InvalidSpec("--workdir and --app must not be empty; leave them out to mean any.")
    number = row_number(app or "")
    terms = {
        **condition_of(ids),
        "tags": pairs(tags, "--tag") or None,
        "state": [states.check_state(state) for state in wanted] or None,
        "state__ne": [states.check_state(state) for state in unwanted] or None,
        "workdir__contains": workdir,
        "app_id": number,
        "app": app if number is None else None,
    }
    return {name: value for name, value in terms.items() if value is not None}


# --- ls ---------------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@_choosing_options
@long_site_option
@option("--by-state", is_flag=True, help="Count the jobs of each state. With -v: of those without jobs, too.")
@option("--history", is_flag=True, help="Show when each job entered each state.")
@option("-v", "--verbose", is_flag=True, help="Show every field.")
@option("--limit", type=int, callback=count, metavar="N", help="Show N jobs at most.")
@listing.output_options
def ls(site: str, by_state: bool, history: bool, verbose: bool, limit: int | None, **options: Any) -> None:
    """List jobs of one or more sites.

    All conditions must hold at once; of several --state one must.

    \b
    Examples:
        balsam job ls --tag workflow=hello
        balsam job ls --site all --by-state
        balsam job ls --app Hello --state FAILED --history
        balsam job ls --format csv --columns id,name,state
    """
    look = listing.Look.of(options, listing.COUNT_KEYS if by_state else listing.JOB_KEYS, history)
    where = _where(**options)
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


# --- modify and rm ----------------------------------------------------------------------------------------------------

_NOTHING_CHOSEN = "Provide either list of Job ids or tags to"


@click.command(cls=BalsamCommand)
@option("-i", "--id", "ids", multiple=True, metavar="JOB", help=f"The job: {NUMBER_OR_WORD}; may be repeated.")
@option("-t", "--tag", "tags", multiple=True, metavar="KEY=VALUE", help="All jobs with that tag; may be repeated.")
@option("-s", "--state", required=True, metavar="STATE", help="The state to put them into.")
@long_site_option
def modify(ids: Sequence[str], tags: Sequence[str], state: str, site: str) -> None:
    """Put jobs into another state, RESTART_READY most of the time.

    What waits for them, or failed because of them, goes on accordingly. A job that a launcher holds is left alone, and so
    are all others of its site then.

    \b
    Examples:
        balsam job modify --id 5 --id 6 --state RESTART_READY
        balsam job modify --tag workflow=hello --state RESTART_READY --site all
    """
    from ..db.store.user_actions import USER_CHANGED
    from ..sites import fanout

    if not ids and not tags:
        raise click.UsageError(f"{_NOTHING_CHOSEN} modify")
    states.check_state(state)
    where = _where(_unique(site, ids), tags)
    matching = _matching(site, where)
    if not matching:
        say("No jobs match modification query")
    changes = {"state": state, "state_data": {"message": USER_CHANGED}}
    for entry, _ in matching:
        target = fanout.open_site(entry)
        changed = target.update_where("job", where, changes)
        waiting = target.count("job", {**where, "state": states.AWAITING_PARENTS}) if state != states.AWAITING_PARENTS else 0
        say(f"{changed} {_jobs(changed)} of {entry.name} put into {state}{f'; {waiting} waiting for parents' * bool(waiting)}.")


def _unique(site: str, words: Iterable[str]) -> list[str]:
    """Resolve words that name jobs, each of one job in all these sites, to numbers or else whole UUIDs.

    Raises:
        UnknownJob, AmbiguousJobId: a word that is no number. BalsamError: a site cannot be read.
    """
    from ..db.query import queries

    found = []
    for word in words:
        if row_number(word.removeprefix("#")) is None:
            answers = ask_all_sites(site, lambda one, word=word: jobs_fitting(one, word))  # type: ignore[misc]
            rows = [row for _, fitting in answers for row in fitting]
            queries.the_one(word, rows)
            word = rows[0][queries.CANDIDATE.index("job_id")]
        found.append(word)
    return found


def _matching(site: str, where: Mapping[str, Any]) -> list[tuple[SiteEntry, int]]:
    """The sites with jobs that match, and how many those are.

    Raises:
        AmbiguousSite: jobs are meant by numbers, which several sites have. BalsamError: a site cannot be read.
    """
    found = [(entry, jobs) for entry, jobs in ask_all_sites(site, lambda one: one.count("job", where)) if jobs]
    if len(found) > 1 and ("id" in where or any(word.startswith("#") for word in where.get("which", ()))):
        names = ", ".join(entry.name for entry, _ in found)
        raise AmbiguousSite(
            f"More than one site has jobs of these numbers: {names}", hint="Say with --site which one is meant."
        )
    return found


def _jobs(number: int) -> str:
    return "job" if number == 1 else "jobs"


@click.command(cls=BalsamCommand)
@_choosing_options
@long_site_option
@option("--all", "everything", is_flag=True, help="All jobs.")
@option("-y", "--yes", is_flag=True, help="Do not ask.")
@option("--force", is_flag=True, help="Remove jobs that others wait for, too; those become FAILED.")
def rm(site: str, everything: bool, yes: bool, force: bool, **filters: Any) -> None:
    """Remove jobs with their history. Their working directories stay.

    All conditions must hold at once. --site alone means all jobs of that site. Jobs that a launcher has are left alone.

    \b
    Examples:
        balsam job rm --id 5 --id 6
        balsam job rm --tag workflow=hello --state FAILED --yes
        balsam job rm --site thetagpu_tutorial --all
    """
    from ..sites import fanout

    where = _where(_unique(site, filters.pop("ids")), **filters)
    if where and everything:
        raise click.UsageError("--all leaves nothing to choose; give it or conditions, but not both.")
    if not (where or everything or site):
        raise click.UsageError(f"{_NOTHING_CHOSEN} delete")
    if everything:
        say("THIS WILL DELETE ALL JOBS! CAUTION!")
    matching = _matching(site, where)
    total = sum(jobs for _, jobs in matching)
    if not total:
        click.echo("No jobs match deletion query")
        return
    if len(matching) > 1:
        say("These are: " + ", ".join(f"{jobs} of {entry.name}" for entry, jobs in matching))
    if not yes and not confirm(f"Really delete {total} {_jobs(total)}?", "--yes"):
        return
    for entry, _ in matching:
        gone = fanout.open_site(entry).delete("job", where, force=force)
        say(f"{gone['deleted']} {_jobs(gone['deleted'])} of {entry.name} deleted.")
        if gone["held"]:
            them = "it" if gone["held"] == 1 else "them"
            warn(f"{gone['held']} {_jobs(gone['held'])} of {entry.name} left alone, because a launcher has {them}.")
