"""`balsam notify test`: call the setting ON_EVENT once, and show what came back."""

from __future__ import annotations

import sys

import click

from ..core.errors import SettingsError
from ..db.engine import directories
from . import output
from .common import say
from .group import BalsamCommand, Choice, option

_KINDS = ("job-failed", "workflow-finished", "launch-started", "launch-ended", "stuck")
_INDENT = "    "


@click.command(cls=BalsamCommand)
@click.argument("action", type=Choice(("test",)), metavar="test")
@option(
    "--event",
    type=Choice(_KINDS),
    default=_KINDS[0],
    show_default=True,
    help="Kind of notification to send, with made-up facts.",
)
@option("--json", is_flag=True, help="Print an object: the notification, and what came of it.")
@click.pass_context
def notify(ctx: click.Context, action: str, *, event: str, json: bool) -> int:
    """Call the command or the URLs of the setting ON_EVENT with an example, as launchers and the service do.

    \b
    Examples:
        balsam notify test
        BALSAM_ON_EVENT='tee event.json' balsam notify test --event stuck
    """
    from ..core import event_hook
    from ..core.clock import SystemClock
    from ..core.settings import Settings
    from ..launcher.notifier import composed, sample

    directory = directories.find(ctx.find_root().obj)
    settings = Settings.load(directory)
    if not settings.ON_EVENT:
        raise SettingsError(
            "The setting ON_EVENT is empty, so there are no notifications.",
            hint=f"Set it in {directory}/settings.json, or in the variable BALSAM_ON_EVENT.",
        )
    now_us = SystemClock.now_us()
    notification = composed(sample(event, now_us), directory, now_us)
    done = event_hook.call(settings.ON_EVENT, [notification], settings.ON_EVENT_TIMEOUT_S)
    called = event_hook.described(settings.ON_EVENT)
    encode = output.json_encoder(sys.stdout)
    if json:
        result = {"called": called, "notification": notification, **done._asdict()}
        del result["event"]
        click.echo(encode(result))
        return int(bool(done.failure))
    click.echo(f"Called: {output.one_line(called)}")
    click.echo("With, on stdin:")
    for key, value in notification.items():
        click.echo(f"{_INDENT}{key}: {encode(value)}")
    for name, text in (("stdout", done.stdout), ("stderr", done.stderr)):
        if text.strip():
            click.echo(f"It printed to {name}:")
            click.echo("\n".join(_INDENT + line for line in output.many_lines(text).rstrip().splitlines()))
    if not done.failure:
        click.echo("It ended with exit code 0.")
        return 0
    say(f"Error: ON_EVENT failed: {output.one_line(done.failure)}")
    return 1
