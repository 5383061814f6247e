"""`balsam serve-stdio`: what the balsam of another host runs here through ssh. Its former name is `balsam answer`."""

from __future__ import annotations

import contextlib
import sys

import click

from .group import BalsamCommand, option


@click.command(cls=BalsamCommand)
@option("--json", is_flag=True, help="Ignored: the response is always JSON.")
@click.pass_context
def serve_stdio(ctx: click.Context, *, json: bool) -> int:
    """Read one request about this DB from stdin, as JSON, and print the response as one line of JSON.

    For programs: --site of a balsam on another host runs it through ssh, as `balsam answer`, the name that older versions
    have, too. An error is part of the response; the exit code is 0.

    \b
    Example:
        balsam serve-stdio < request.json > response.json
    """
    from ..sites.rpc.server import respond

    line = sys.stdin.buffer.read() if sys.stdin else b""  # it may be closed
    with contextlib.redirect_stdout(sys.stderr):  # users' modules may print, and stdout is for the response
        words = respond(line, ctx.find_root().obj)
    click.echo(words)
    return 0
