"""`balsam app ls|rm`: the applications of any site that is known, be they command lines or Python classes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import AmbiguousSite, UnknownApp
from ..db.engine.registry import SiteEntry
from ..db.query import text_forms
from ..sites.interface import Row
from . import listing, output
from .common import ask_all_sites, ask_sites, confirm, say, site_option, warn
from .group import BalsamCommand, option

if TYPE_CHECKING:
    from ..sites.interface import SiteInterface

#: An application, and the site that has it.
_Found = tuple[SiteEntry, Row]

_KEYS_OF_OTHERS = ("preprocess", "postprocess", "envscript", "handle_error", "handle_timeout")


# --- ls ---------------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@site_option
@option("-v", "--verbose", is_flag=True, help="Show every field, the template or where the Python class is among them.")
@listing.output_options
def ls(site: str, verbose: bool, **options: Any) -> None:
    """List the applications of one or more sites: those of `balsam app` and those in Python alike.

    \b
    Examples:
        balsam app ls
        balsam app ls --site all --verbose
        balsam app ls --json
    """
    look = listing.Look.of(options, listing.APP_KEYS)
    answers = ask_sites(site, lambda one: one.select("app"))
    found = [(entry, app) for entry, apps in answers for app in apps]
    if verbose and not look.form:
        sys.stdout.writelines(f"{line}\n" for line in _forms(found))
    else:
        objects = (listing.app_object(app, entry.name) for entry, app in found)
        listing.show(look, listing.APP_KEYS, listing.APP_KEYS if verbose else listing.APP_TABLE, objects)
    if not found and not look.is_whole:
        say(f"No application is on {', '.join(entry.name for entry, _ in answers)}.")


def _forms(found: Iterable[_Found]) -> Iterator[str]:
    for entry, app in found:
        shown = {"id": app["id"], "name": app["name"], "site": entry.name, "description": app["description"]}
        shown.update({"kind": app["kind"], **_program(app), "parameters": app["parameters"]})
        shown.update({"environment_variables": app["environ_vars"]} if app["environ_vars"] else {})
        shown.update({name: app[name] for name in _KEYS_OF_OTHERS if app[name]})
        yield from output.yaml_lines(shown)
        yield "----"


def _program(app: Row) -> Row:
    """What it runs, and where its Python class is, if it is one."""
    kind = app["kind"]
    runs = {"executable": app["executable"]} if kind == "command" else {}
    runs.update({"command_template": app["command_template"]} if kind == "template" else {})
    return {**runs, **({"source": text_forms.source_of(app["definition"])} if app["definition"] else {})}


# --- rm ---------------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@option("-n", "--name", default="", metavar="NAME", help="The application of exactly that name.")
@option("-a", "--all", "everything", is_flag=True, help="All applications of the sites that --site names.")
@site_option
@option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(name: str, everything: bool, site: str, yes: bool) -> None:
    """Remove applications and all of their jobs. Jobs that a launcher has stay, and so does their application.

    \b
    Examples:
        balsam app rm --name Hello
        balsam app rm --all --site thetagpu_tutorial
    """
    if name and everything:
        raise click.UsageError("Specify app name or --all, but not both")
    if not (name or everything):
        raise click.UsageError("Specify app name with -n or specify --all")
    if everything and not site:
        raise click.UsageError("balsam app rm --all requires that you specify --site to remove jobs")
    if everything:
        _remove_all(site, yes)
    else:
        _remove_one(name, site, yes)


def _remove_one(name: str, site: str, yes: bool) -> None:
    entry, (app, jobs) = _the_one(name, ask_all_sites(site, lambda site: _with_jobs(site, name)))
    shown = f"App(id={app['id']}, name={output.one_line(name)}, site={entry.name})"
    if jobs and not yes and not confirm(f"Really Delete {shown}?? There are {jobs} Jobs that will be ERASED!", "--yes"):
        return
    held = _remove(entry, [app["id"]])
    if held:
        warn(f"{shown} stays: a launcher has {held} of its jobs. The others are deleted.")
    else:
        click.echo(f"Deleted {shown}: there were {jobs or 'no'} associated jobs.")


def _with_jobs(site: SiteInterface, name: str) -> list[tuple[Row, int]]:
    return [(app, site.count("job", {"app_id": app["id"]})) for app in site.select("app", {"name": name})]


def _the_one(name: str, answers: list[tuple[SiteEntry, list[tuple[Row, int]]]]) -> tuple[SiteEntry, tuple[Row, int]]:
    found = [(entry, one) for entry, some in answers for one in some]
    if not found:
        sites = ", ".join(entry.name for entry, _ in answers)
        raise UnknownApp(f"No App matching criteria {{'name': {name!r}}} on {sites}", hint="`balsam app ls` lists them.")
    if len(found) > 1:
        sites = ", ".join(entry.name for entry, _ in found)
        raise AmbiguousSite(f"More than one site has an App {name}: {sites}", hint="Say with --site which one is meant.")
    return found[0]


def _remove_all(site: str, yes: bool) -> None:
    answers = ask_all_sites(site, lambda site: ([app["id"] for app in site.select("app")], site.count("job")))
    apps, jobs = sum(len(numbers) for _, (numbers, _) in answers), sum(number for _, (_, number) in answers)
    if not apps:
        click.echo("There are no Apps to delete.")
        return
    say("THIS WILL DELETE ALL APPS IN SITE! CAUTION!")
    names = ", ".join(entry.name for entry, _ in answers)
    if not yes and not confirm(
        f"Really delete all {apps} Apps of {names}? There are {jobs} Jobs that will be ERASED!", "--yes"
    ):
        return
    for entry, (numbers, _) in answers:
        held = _remove(entry, numbers) if numbers else 0
        if held:
            warn(f"A launcher has {held} jobs of {entry.name}; they and their applications stay.")
    click.echo(f"Deleted the Apps of {names}.")


def _remove(entry: SiteEntry, numbers: list[int]) -> int:
    """Remove applications with their jobs; returns how many of those were left alone."""
    from ..sites import fanout

    held: int = fanout.open_site(entry).delete("app", {"id": numbers}, force=True)["held"]
    return held
