"""`balsam sql`: run a query over the documented views of the active DB. It only reads."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..core.errors import BalsamError
from . import listing
from .common import open_db
from .group import Option, PathCommand, option

#: Seconds that a query may take.
DEFAULT_TIMEOUT_S = 600.0

_VIEWS = listing.ObjectKind(("view", "column", "meaning"), ("view", "column", "meaning"))


class _Seconds(click.ParamType):  # type: ignore[type-arg]
    """A positive number of seconds, as the type of an option."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            found = float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return found if 0 < found < 1e9 else self.fail(f"It must be more than 0, not {value}.", param, ctx)


@click.command(cls=PathCommand)
@click.argument("query", required=False, metavar="[SQL]")
@option("-f", "--file", "file", cls=Option, metavar="FILE", help="Read the query from this file; -: from standard input.")
@option(
    "--timeout", "timeout_s", type=_Seconds(), default=DEFAULT_TIMEOUT_S, metavar="SECONDS",
    help=f"How long the query may take. [default: {DEFAULT_TIMEOUT_S:g}]",
)  # fmt: skip
@option("--views", is_flag=True, help="List the views and their columns.")
@listing.format_options
def sql(*, query: str | None, file: str | None, timeout_s: float, views: bool, **options: Any) -> None:
    """Run a query in SQLite's SQL over the views jobs, runs, events, results and failures of the active DB.

    It sees the DB as it is at one moment, and cannot change it. Times are text in ISO 8601, UTC. Keys of parameters, tags and
    data are read by json_extract(data, '$.energy').

    \b
    Examples:
        balsam sql --views
        balsam sql "SELECT state, count(*) FROM jobs GROUP BY state"
        balsam sql "SELECT node, avg(runtime_s) FROM runs GROUP BY node" \\
            -o nodes.csv
        balsam sql --file query.sql --format jsonl
    """
    look = listing.Look.of_format(options)
    if views:
        from ..db.query.views import VIEWS

        rows = ([view.name, column.name, column.description] for view in VIEWS for column in view.columns)
        with listing.paged(look):
            listing.write(look, _VIEWS.table, rows, ())
        return
    from ..db.query import user_sql
    from ..db.query.views import TIME_COLUMNS

    text = _query_of(query, file)
    with listing.paged(look), user_sql.opened(open_db()) as there:
        names, found = there.query(text, timeout_s)
        columns = user_sql.unique_names(names)
        listing.write(look, columns, found, TIME_COLUMNS, has_header=True)


def _query_of(query: str | None, file: str | None) -> str:
    """Return the query that was given as a word, in a file or on stdin."""
    if (query is None) == (file is None):
        raise click.UsageError('Give one query: as a word in quotes, or with --file; "-" reads standard input.')
    if query not in (None, "-"):
        return str(query)
    if file in (None, "-"):
        return sys.stdin.read()
    try:
        with open(str(file), encoding="utf-8") as opened:
            return opened.read()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise BalsamError(f"The file {file} cannot be read: {reason}") from exc
