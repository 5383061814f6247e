"""`balsam app ls|rm`: the applications of any site that is known, be they command lines or Python classes."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import click

from ..db.engine.registry import SiteEntry
from ..db.query import text_forms
from ..sites.interface import Row
from . import listing, output
from .common import ask_sites, say, site_option
from .group import BalsamCommand, option

if TYPE_CHECKING:
    pass

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
