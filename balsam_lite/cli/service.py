"""`balsam service`: submit launchers as the queue policy allows, in the foreground or as a daemon."""

from __future__ import annotations

import sys
import time
from typing import Any

import click

from ..db.engine import directories
from . import output
from .common import say
from .group import BalsamCommand, Choice, option

_ACTIONS = ("start", "stop", "status")


@click.command(cls=BalsamCommand)
@click.argument("action", required=False, type=Choice(_ACTIONS), metavar="[start|stop|status]")
@option("--dry-run", is_flag=True, help="Print what would be submitted now and why, without any change.")
@option("--json", is_flag=True, help="Print an object (for status and --dry-run).")
@click.pass_context
def service(ctx: click.Context, action: str | None, *, dry_run: bool, json: bool) -> int:
    """Submit launchers for the waiting jobs of this DB, as the policy in policy.ini allows.

    Without an action it runs in the foreground, until Ctrl-C. `start` runs it in the background, independent of the terminal.

    \b
    Examples:
        balsam service --dry-run
        balsam service start
        balsam service status
    """
    if dry_run and action:
        raise click.UsageError(f"--dry-run does not go with {action}.")
    if json and action != "status" and not dry_run:
        raise click.UsageError("--json goes with status and --dry-run.")
    directory = directories.find(ctx.find_root().obj)
    if dry_run:
        return _dry_run(directory, json)
    from ..service import main

    if action == "status":
        return _status(main.status(directory), json)
    if action == "stop":
        say(main.stop(directory))
        return 0
    if action == "start":
        started = main.start(directory)
        click.echo(f"Starting Balsam service [{started.pid}], log in {output.one_line(started.log)}")
        return 0
    return main.run_service(directory)


# --- what it would do -------------------------------------------------------------------------------------------------


def _dry_run(directory: str, as_json: bool) -> int:
    from ..core.clock import SystemClock
    from ..core.settings import Settings
    from ..schedulers.base import select
    from ..service import loop, policy

    settings = Settings.load(directory)
    db = directories.open_database(directory, settings)
    queues = policy.load(directory, settings)
    found = loop.dry_run(db, settings, queues, select(settings).domain, SystemClock.now_us())
    if as_json:
        _print_object(_as_object(found, policy.find(directory, settings)))
        return 0
    click.echo(f"Policy: {output.one_line(policy.find(directory, settings))}")
    for launch in found.launches:
        click.echo(f"Would submit: {output.one_line(loop.described(launch))}")
    if not found.launches:
        click.echo("Would submit nothing" + ("." if found.waits or found.misfits else ": no job waits without a launch."))
    for what, lefts in (("Waits", found.waits), ("Fits nowhere", found.misfits)):
        for line in loop.reasons(lefts):
            click.echo(f"{what}: {output.one_line(line)}")
    return 0


def _print_object(found: dict[str, Any]) -> None:
    click.echo(output.json_encoder(sys.stdout)(found))


def _as_object(found: Any, policy: str) -> dict[str, Any]:
    return {
        "policy": policy,
        "launches": [{**launch._asdict(), "planned": [_work(work) for work in launch.planned]} for launch in found.launches],
        "waits": [{**_work(left.work), "reason": left.reason} for left in found.waits],
        "misfits": [{**_work(left.work), "reason": left.reason} for left in found.misfits],
    }


def _work(work: Any) -> dict[str, Any]:
    return {**work.shape._asdict(), "wall_time_minutes": work.minutes, "jobs": work.jobs}


# --- what it does -----------------------------------------------------------------------------------------------------


def _status(found: dict[str, Any], as_json: bool) -> int:
    """Print the status; exit code 0 only if a service is running."""
    if as_json:
        _print_object(found)
    elif found["state"] == "none":
        click.echo("No service has run on this Balsam DB.")
    else:
        for line in _described(found):
            click.echo(output.one_line(line))
    return 0 if found["state"] == "running" else 1


def _described(found: dict[str, Any]) -> list[str]:
    lines = [f"Service: {found['state']}" + (f" ({found['end_reason']})" if found["state"] == "stopped" else "")]
    lines.append(f"    process:     {found['pid']} on {found['host']}")
    lines.append(f"    heartbeat:   {found['last_sign']}")
    if found["state"] == "silent":
        lines.append("    It is dead, or the clocks differ: `balsam service start` and launchers watch it until they know.")
    for key in ("action", "error"):
        if found[f"last_{key}"]:
            first = found[f"last_{key}"].replace("\n", "; ")
            lines.append(f"    last {key}:{' ' * (8 - len(key))}{first} ({_when(found[f'last_{key}_at'])})")
    lines += [f"    not submitted: {reason}" for reason in found["reasons"]]
    lines.append(f"    log:         {found['log']}")
    return lines


def _when(seconds: float | None) -> str:
    return "at an unknown time" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
