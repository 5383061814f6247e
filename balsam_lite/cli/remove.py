"""`balsam rm`, `balsam job rm` and `balsam app rm`: remove jobs or applications."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ..core import display
from ..core.errors import AmbiguousSite, UnknownApp
from ..db.engine import directories
from ..db.query.filters import all_of
from . import completion, output
from .common import ask_all_sites, confirm_or_end, long_site_option, row_number, say, site_option, warn
from .group import BalsamCommand, Choice, LaterOption, Option, option
from .selection import MAX_EXAMPLES, ChosenJobs, Selection, dry_run_option, selection_options

if TYPE_CHECKING:
    from ..sites.interface import Row

_Function = TypeVar("_Function", bound=Callable[..., Any])

_ALL = option("--all", "everything", is_flag=True, help="All of them.")
_YES = option("-y", "--yes", is_flag=True, help="Do not ask.")
_FORCE = option("--force", is_flag=True, help="Do not ask; remove jobs that others wait for, too: those become FAILED.")


def _running(default: bool) -> Callable[[_Function], _Function]:
    text = f"Remove jobs that a launcher runs, too, which then stops them. [default: {'' if default else 'no '}running]"
    return option("--running/--no-running", cls=LaterOption, default=default, help=text.replace("no running", "no-running"))


_NO_TRASH = option(
    "--no-trash", cls=LaterOption, is_flag=True, help="Remove for good: else `balsam undo` can take it back for thirty days."
)
_WORKDIRS = option(
    "--workdirs",
    cls=LaterOption,
    is_flag=True,
    help="Also remove the working directories, for good; not those outside of data/ or shared.",
)


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
@_NO_TRASH
@_WORKDIRS
@dry_run_option
@_YES
@_FORCE
def rm(what: str, chosen: Selection, site: str, everything: bool, with_jobs: bool, **how: bool) -> None:
    """Remove jobs with their history, or applications. Working directories stay, unless --workdirs is given.

    All conditions must hold. A launcher that runs a removed job stops it. Applications are chosen by --name, --id (their
    number) or --all. `balsam undo` takes a removal back.

    \b
    Examples:
        balsam rm jobs --name 'test*'
        balsam rm jobs --id 7df8 --force
        balsam rm jobs --state FAILED --wf scan --workdirs --dry-run
        balsam rm apps --all
    """
    if what == "jobs":
        _remove_jobs(chosen, site, everything, _How(**how))
    else:
        if how["workdirs"]:
            raise click.UsageError(
                "--workdirs goes with jobs. Remove those of the application first: balsam rm jobs --app NAME"
            )
        if not site:
            directories.find(click.get_current_context().find_root().obj)  # or raise: never remove from all known DBs
        _remove_apps(chosen, everything, site, with_jobs, _How(**how))


@click.command(cls=BalsamCommand)
@selection_options()
@_ALL
@long_site_option
@_running(False)
@_NO_TRASH
@_WORKDIRS
@dry_run_option
@_YES
@_FORCE
def job_rm(chosen: Selection, site: str, everything: bool, **how: bool) -> None:
    """Remove jobs of one or more sites with their history. Working directories stay, unless --workdirs is given.

    All conditions must hold. --site alone means all jobs of that site. Jobs that a launcher runs are left alone. Another name
    of `balsam rm jobs`.

    \b
    Examples:
        balsam job rm --id 5 --id 6
        balsam job rm --tag workflow=hello --state FAILED --yes
        balsam job rm --site thetagpu_tutorial --all
    """
    _remove_jobs(chosen, site, everything or (bool(site) and not chosen), _How(**how))


@click.command(cls=BalsamCommand)
@option(
    "-n", "--name", "names", multiple=True, metavar="NAME", shell_complete=completion.applications,
    help="Application of this name.",
)  # fmt: skip
@option("-i", "--id", "ids", multiple=True, metavar="NUMBER", help="Application with this number.")
@option("-a", "--all", "everything", is_flag=True, help="All applications of the sites that --site names.")
@site_option
@_with_jobs(True)
@_NO_TRASH
@dry_run_option
@_YES
@option("--force", is_flag=True, help="Do not ask.")
def app_rm(names: Sequence[str], ids: Sequence[str], everything: bool, site: str, with_jobs: bool, **how: bool) -> None:
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
    _remove_apps(chosen, everything, site, with_jobs, _How(**how))


# --- jobs -------------------------------------------------------------------------------------------------------------


class _How(NamedTuple):
    """The options about the way in which something is removed."""

    yes: bool
    force: bool
    no_trash: bool
    dry_run: bool
    running: bool = False
    workdirs: bool = False


def _remove_jobs(chosen: Selection, site: str, everything: bool, how: _How) -> None:
    if chosen and everything:
        raise click.UsageError("--all leaves nothing to choose; give it or conditions, but not both.")
    if not (chosen or everything):
        raise click.UsageError("Which jobs to delete? Give conditions, such as --name, --id, --state and --tag, or --all.")
    found = ChosenJobs.find(site, chosen)
    if not found.sites:
        click.echo("There are no jobs to remove.")
        return
    if how.dry_run:
        which = "remove for good" if how.no_trash else "remove"
        with_them = " with their working directories" * how.workdirs
        for there, _ in found.sites:  # or raise what the removal would
            there.delete("job", found.where, force=how.force, running=how.running, dry_run=True)
        found.say_dry_run(which, {} if how.running else {"lease__isnull": True}, with_them)
        return
    if not (how.yes or how.force):
        which = f"{output.plural(found.total, 'job')}{found.of_sites}"
        which = f"{which} matching {chosen}" if chosen else f"ALL {which}"
        for_good = "PERMANENTLY remove" if how.no_trash else "Remove"
        files = " AND THEIR WORKING DIRECTORIES, which nothing brings back" * how.workdirs
        confirm_or_end(f"{for_good} {output.one_line(which)}{files}?", "Delete", "--yes or --force")
    code = 0
    for _, of_site, gone in found.act(
        lambda one: one.delete(
            "job", found.where, force=how.force, running=how.running, no_trash=how.no_trash, workdirs=how.workdirs
        )
    ):
        click.echo(f"Removed {output.plural(gone['deleted'], 'job')}{of_site}.")
        if not (gone["is_kept"] or how.no_trash):
            warn(_NO_ROOM)
        if how.workdirs:
            code = max(code, _tell_workdirs(gone["workdirs"], of_site))
        if gone["held"]:
            them, held = ("it" if gone["held"] == 1 else "them"), output.plural(gone["held"], "job")
            warn(f"{held}{of_site} left alone, as a launcher runs {them}. --running removes {them}, too.")
    click.get_current_context().exit(code)


_NO_ROOM = "The disk is short of space, so they were removed for good: `balsam undo` cannot take this back."
_STAY = {
    "shared": "that another job has, too",
    "outside": "outside of data/",
    "running": "in which a launcher stops a run",
}


def _tell_workdirs(gone: dict[str, Any], of_site: str) -> int:
    """Print what became of the working directories, and return the exit code."""
    number = gone["removed"]
    directories_gone = f"{number} working director{'y' if number == 1 else 'ies'}"
    click.echo(f"Removed {directories_gone}{of_site} with {display.size(gone['bytes'])} of files.")
    for reason, words in _STAY.items():
        if gone[reason]:
            say(f"{gone[reason]} left alone {words}.")
    for line in gone["errors"]:
        warn(f"Cannot be removed: {output.one_line(line)}")
    if gone["failed"] > len(gone["errors"]):
        warn(f"… and {gone['failed'] - len(gone['errors'])} more.")
    return 1 if gone["failed"] else 0


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


def _remove_apps(chosen: Selection, everything: bool, site: str, with_jobs: bool, how: _How) -> None:
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
    if how.dry_run:
        for there, apps in found:
            named = ", ".join(output.one_line(app["name"]) for app in apps[:MAX_EXAMPLES]) + ", …" * (len(apps) > MAX_EXAMPLES)
            theirs = f" with {output.plural(jobs, 'job')}" * with_jobs
            click.echo(f"Would remove {output.plural(len(apps), 'app')} of {there.entry.name}{theirs}: {named}.")
        click.echo("Nothing was changed.")
        return
    if not (how.yes or how.force) and (jobs or not with_jobs or not where):
        number = sum(len(apps) for _, apps in found)
        names = ", ".join(f"{output.one_line(app['name'])} of {there.entry.name}" for there, apps in found for app in apps[:5])
        named = output.plural(number, "app") + (f": {names}" if number <= 5 else f" of {sites}")
        theirs = f" Their {output.plural(jobs, 'job')}"
        lost = f"{theirs} will be removed, too." if with_jobs else f"{theirs} stay." if jobs else ""
        for_good = "PERMANENTLY remove" if how.no_trash else "Remove"
        confirm_or_end(f"{for_good} {named}?{lost}", "Delete", "--yes or --force")
    for there, apps in found:
        numbers = [app["id"] for app in apps]
        gone = there.delete("app", {"id": numbers}, force=True, keep_jobs=not with_jobs, no_trash=how.no_trash)
        if not (gone["is_kept"] or how.no_trash):
            warn(_NO_ROOM)
        went = f" and {output.plural(gone['jobs'], 'job')}" if with_jobs else ""
        click.echo(f"Removed {output.plural(gone['deleted'], 'app')}{went} of {output.one_line(there.entry.name)}.")
        if gone["held"]:
            them = "which stays with its application" if gone["held"] == 1 else "which stay with their applications"
            warn(f"A launcher runs {output.plural(gone['held'], 'job')} of {there.entry.name}, {them}.")
