"""`balsam answer`: what the balsam of another host runs here through ssh."""

from __future__ import annotations

import contextlib
import sys

import click

from .group import BalsamCommand, option


@click.command(cls=BalsamCommand)
@option("--json", is_flag=True, help="The answer is always JSON.")
@click.pass_context
def answer(ctx: click.Context, *, json: bool) -> int:
    """Read one question about this DB from stdin, as JSON, and print the answer as one line of JSON.

    This is for programs: `--site` of a balsam on another host runs it through ssh. What goes wrong is part of the answer,
    and the exit code 0.

    \b
    Example:
        balsam answer < question.json > answer.json
    """
    from ..sites.rpc.server import respond

    line = sys.stdin.buffer.read() if sys.stdin else b""  # it may be closed
    with contextlib.redirect_stdout(sys.stderr):  # stdout is the answer's, whatever users' modules print
        words = respond(line, ctx.find_root().obj)
    click.echo(words)
    return 0
