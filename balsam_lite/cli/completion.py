"""Shell completion of what is in the DB: states, workflows, applications, tags, sites and job ids.

Completion never disturbs: an error offers nothing, and a DB that is busy for half a second is given up.
`balsam completion` prints the script that makes a shell ask.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..db.engine.connection import Connection

_Complete = Callable[[click.Context, click.Parameter, str], list[str]]

#: The variable by which a shell's script asks for completions.
COMPLETION_VARIABLE = "_BALSAM_COMPLETE"
_BUSY_TIMEOUT_S = 0.5


def _quietly(function: _Complete) -> _Complete:
    """Offer nothing where `function` fails, and print no warning."""

    @wraps(function)
    def offered(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return function(ctx, parameter, incomplete)
            except Exception:  # noqa: BLE001  # a shell shows an error in the middle of the user's line
                return []

    return offered


def _from_db(read: Callable[[Any, Connection, str], Iterable[str]]) -> _Complete:
    """Return a completion by the words that `read` finds in the active DB; it gets `db.query.queries` and the text typed."""

    @_quietly
    def offered(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from ..core.settings import Settings
        from ..db.engine import directories
        from ..db.query import queries

        root = ctx.find_root()
        directory = directories.find(root.obj or root.params.get("db"))
        settings = Settings.load(directory)._replace(BUSY_TIMEOUT_S=_BUSY_TIMEOUT_S)
        with directories.open_database(directory, settings).read() as cx:
            return list(read(queries, cx, incomplete))

    return offered


def _starting(names: Iterable[str], start: str) -> list[str]:
    return [name for name in names if name.startswith(start)]


workflows = _from_db(lambda queries, cx, start: _starting(queries.workflows(cx), start))
applications = _from_db(lambda queries, cx, start: _starting((app["name"] for app in queries.apps(cx)), start))
tags = _from_db(lambda queries, cx, start: queries.tags_from(cx, start))
jobs = _from_db(lambda queries, cx, start: queries.short_ids_from(cx, start))


@_quietly
def states(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Offer the states of jobs; typed in lower case they are found, too."""
    from ..core.states import STATES

    return _starting(STATES, incomplete.upper())


@_quietly
def sites(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Offer the names of the known sites, for the last of several words with commas between them."""
    from ..db.engine import registry

    before, comma, last = incomplete.rpartition(",")
    names = [entry.name for entry in registry.known(gone=True)] + ([] if comma else ["all", "active", "this"])
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


@_quietly
def databases(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Offer the names of the known DBs on this host."""
    from ..db.engine import registry

    return _starting((entry.name for entry in registry.known(gone=True) if not entry.is_remote), incomplete)
