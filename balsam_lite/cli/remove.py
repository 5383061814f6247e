"""`balsam rm`, `balsam job rm` and `balsam app rm`: remove jobs or applications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..core.errors import AmbiguousSite, UnknownApp
from ..db.engine import directories
from ..db.query.filters import all_of
from . import completion, output
from .common import ask_all_sites, confirm_or_end, long_site_option, row_number, site_option, warn
from .group import BalsamCommand, Choice, LaterOption, Option, option
from .selection import ChosenJobs, Selection, selection_options

if TYPE_CHECKING:
    from ..sites.interface import Row

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ALL = option("--all", "everything", is_flag=True, help="All of them.")
_YES = option("-y", "--yes", is_flag=True, help="Do not ask.")
_FORCE = option("--force", is_flag=True, help="Do not ask; remove jobs that others wait for, too: those become FAILED.")


def _running(default: bool) -> Callable[[_Function], _Function]:
    text = f"Remove jobs that a launcher runs, too, which then stops them. [default: {'' if default else 'no '}running]"
    return option("--running/--no-running", cls=LaterOption, default=default, help=text.replace("no running", "no-running"))


def _with_jobs(default: bool) -> Callable[[_Function], _Function]:
    text = "Remove the jobs of the applications, too; else they stay, and fail when a launcher takes them."
    return option(
        "--with-jobs/--keep-jobs",
        cls=LaterOption,
        default=default,
        help=f"{text} [default: {'with' if default else 'keep'}-jobs]",
    )


# --- the commands -----------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@click.argument("what", type=Choice(["jobs", "apps"]))
@selection_options(ids=Option)
@_ALL
@long_site_option
@_running(True)
@_with_jobs(False)
@_YES
@_FORCE
def rm(
    what: str, chosen: Selection, site: str, everything: bool, running: bool, with_jobs: bool, yes: bool, force: bool
) -> None:
    """Remove jobs with their history, or applications. Working directories stay.

    All conditions must hold. A launcher that runs a removed job stops it. Applications are chosen by --name, --id (their
    number) or --all.

    \b
    Examples:
        balsam rm jobs --name 'test*'
        balsam rm jobs --id 7df8 --force
        balsam rm jobs --state FAILED --wf scan
        balsam rm apps --all
    """
    if what == "jobs":
        _remove_jobs(chosen, site, everything, running, yes, force)
    else:
        if not site:
            directories.find(click.get_current_context().find_root().obj)  # or raise: never remove from all known DBs
        _remove_apps(chosen, everything, site, with_jobs, yes or force)


@click.command(cls=BalsamCommand)
@selection_options()
@_ALL
@long_site_option
@_running(False)
@_YES
@_FORCE
def job_rm(chosen: Selection, site: str, everything: bool, running: bool, yes: bool, force: bool) -> None:
    """Remove jobs of one or more sites with their history. Working directories stay.

    All conditions must hold. --site alone means all jobs of that site. Jobs that a launcher runs are left alone. Another name
    of `balsam rm jobs`.

    \b
    Examples:
        balsam job rm --id 5 --id 6
        balsam job rm --tag workflow=hello --state FAILED --yes
        balsam job rm --site thetagpu_tutorial --all
    """
    _remove_jobs(chosen, site, everything or (bool(site) and not chosen), running, yes, force)


@click.command(cls=BalsamCommand)
@option(
    "-n", "--name", "names", multiple=True, metavar="NAME", shell_complete=completion.applications,
    help="Application of this name.",
)  # fmt: skip
@option("-i", "--id", "ids", multiple=True, metavar="NUMBER", help="Application with this number.")
@option("-a", "--all", "everything", is_flag=True, help="All applications of the sites that --site names.")
@site_option
@_with_jobs(True)
@_YES
@option("--force", is_flag=True, help="Do not ask.")
def app_rm(
    names: Sequence[str], ids: Sequence[str], everything: bool, site: str, with_jobs: bool, yes: bool, force: bool
) -> None:
    """Remove applications and all of their jobs. Jobs that a launcher runs stay, and so does their application.

    Another name of `balsam rm apps`, which leaves the jobs.

    \b
    Examples:
        balsam app rm --name Hello
        balsam app rm --all --site thetagpu_tutorial
    """
    chosen = Selection({"name": names, "ids": ids})
    if everything and not (chosen or site):
        raise click.UsageError("balsam app rm --all requires that you specify --site to remove jobs")
    _remove_apps(chosen, everything, site, with_jobs, yes or force)


# --- jobs -------------------------------------------------------------------------------------------------------------


def _remove_jobs(chosen: Selection, site: str, everything: bool, running: bool, yes: bool, force: bool) -> None:
    if chosen and everything:
        raise click.UsageError("--all leaves nothing to choose; give it or conditions, but not both.")
    if not (chosen or everything):
        raise click.UsageError("Which jobs to delete? Give conditions, such as --name, --id, --state and --tag, or --all.")
    found = ChosenJobs.find(site, chosen)
    if not found.sites:
        click.echo("There are no jobs to remove.")
        return
    if not (yes or force):
        which = f"{output.plural(found.total, 'job')}{found.of_sites}"
        which = f"{which} matching {chosen}" if chosen else f"ALL {which}"
        confirm_or_end(f"PERMANENTLY remove {output.one_line(which)}?", "Delete", "--yes or --force")
    for _, of_site, gone in found.act(lambda one: one.delete("job", found.where, force=force, running=running)):
        click.echo(f"Removed {output.plural(gone['deleted'], 'job')}{of_site}.")
        if gone["held"]:
            them, held = ("it" if gone["held"] == 1 else "them"), output.plural(gone["held"], "job")
            warn(f"{held}{of_site} left alone, as a launcher runs {them}. --running removes {them}, too.")


# --- applications -----------------------------------------------------------------------------------------------------


def _app_condition(chosen: Selection, everything: bool) -> Row:
    """Return the condition for the applications. Raises UsageError: by something else than --name, --id or --all."""
    numbers = [row_number(word) for word in chosen.ids]
    if None in numbers:
        raise click.UsageError(f"An application has a number, not {chosen.ids[numbers.index(None)]!r}.")
    if not chosen.has_only("ids", "name"):
        raise click.UsageError("Applications are chosen by --name, --id or --all.")
    where = all_of(chosen.conditions(ids=()), {"id": numbers} if numbers else {})
    if where and everything:
        raise click.UsageError("Specify app name or --all, but not both")
    if not (where or everything):
        raise click.UsageError("Which applications? Specify app name with --name, or --id, or --all.")
    return where


def _remove_apps(chosen: Selection, everything: bool, site: str, with_jobs: bool, yes: bool) -> None:
    where = _app_condition(chosen, everything)
    asked = [answer for _, answer in ask_all_sites(site, lambda one: (one, one.select("app", where)))]
    found = [(there, apps) for there, apps in asked if apps]
    sites = ", ".join(output.one_line(there.entry.name) for there, _ in found or asked)
    if not found and where:
        known = [app["name"] for there, _ in asked for app in there.select("app", stop=21)]
        raise UnknownApp.named(chosen.first, known, f"on {sites}")
    if not found:
        click.echo("There are no Apps to delete.")
        return
    if where and len(found) > 1:
        raise AmbiguousSite(f"More than one site has an App matching {chosen}: {sites}", hint="Choose one of them with --site.")
    jobs = sum(there.count("job", {"app": [app["name"] for app in apps]}) for there, apps in found)
    if not yes and (jobs or not with_jobs or not where):
        number = sum(len(apps) for _, apps in found)
        names = ", ".join(f"{output.one_line(app['name'])} of {there.entry.name}" for there, apps in found for app in apps[:5])
        named = output.plural(number, "app") + (f": {names}" if number <= 5 else f" of {sites}")
        theirs = f" Their {output.plural(jobs, 'job')}"
        lost = f"{theirs} will be ERASED!" if with_jobs else f"{theirs} stay." if jobs else ""
        confirm_or_end(f"PERMANENTLY remove {named}?{lost}", "Delete", "--yes or --force")
    for there, apps in found:
        gone = there.delete("app", {"id": [app["id"] for app in apps]}, force=True, keep_jobs=not with_jobs)
        went = f" and {output.plural(gone['jobs'], 'job')}" if with_jobs else ""
        click.echo(f"Removed {output.plural(gone['deleted'], 'app')}{went} of {output.one_line(there.entry.name)}.")
        if gone["held"]:
            them = "which stays with its application" if gone["held"] == 1 else "which stay with their applications"
            warn(f"A launcher runs {output.plural(gone['held'], 'job')} of {there.entry.name}, {them}.")
