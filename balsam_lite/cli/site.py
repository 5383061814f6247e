"""`balsam site`: sites are Balsam DBs with a name, here or on a host that ssh reaches."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import BalsamError, NotABalsamDB
from . import listing, output
from .common import confirm, say, warn, warn_of_sites
from .group import BalsamCommand, Choice, CommandGroup, PathCommand, option

if TYPE_CHECKING:
    from ..db.engine.registry import SiteEntry


@click.group(cls=CommandGroup)
def site() -> None:
    """Create, list and change sites: Balsam DBs with a name, in a directory here or on a host that ssh reaches.

    \b
    Examples:
        balsam site init -n my-site ~/my-site
        balsam site start my-site
        balsam site add cluster ssh://me@login.example.org/home/me/my-db
        balsam site ls
    """


# --- adding -----------------------------------------------------------------------------------------------------------


@site.command(cls=PathCommand, short_help="create a new site")
@click.argument("path")
@option("-n", "--name", metavar="NAME", help="Name of the site. [default: that of its directory]")
@option(
    "--access", type=Choice(["local", "shared"]),
    help="How to open the DB: local (one host) or shared (several hosts). [default: by the file system]",
)  # fmt: skip
def init(path: str, name: str | None, access: str | None) -> None:
    """Create a Balsam DB in the directory PATH and give it a name, by which it is found from anywhere.

    \b
    Example:
        balsam site init -n my-site ~/my-site
    """
    from ..sites import lifecycle
    from .init import copy_templates

    entry, db = lifecycle.create(path, name or _asked_name(path), access)
    copy_templates(db)
    click.echo(f"New Balsam site set up at {output.one_line(entry.path)}")


def _asked_name(path: str) -> str:
    """Return the name that the user types at a terminal; without one that of the directory."""
    if sys.stdin is None or not sys.stdin.isatty():
        return os.path.basename(os.path.abspath(os.path.expanduser(path)))
    import socket

    answer: str = click.prompt("Enter Site Name", default=socket.gethostname())
    return answer


@site.command(cls=BalsamCommand, short_help="register a site on another host")
@click.argument("name")
@click.argument("address", metavar="ssh://[USER@]HOST[:PORT]/PATH")
@option("--balsam", default="balsam", metavar="COMMAND", help="Command that runs balsam there. [default: balsam]")
@option("--force", is_flag=True, help="Register it even if it cannot be reached now.")
def add(name: str, address: str, balsam: str, *, force: bool) -> None:
    """Register a DB on another host, which is reached through your own ssh: its configuration, keys and agent.

    The address is tried at once. ssh cannot ask for a password meanwhile; if it must, set up a key or a shared connection
    first. The host must have the same version of balsam_lite.

    \b
    Examples:
        balsam site add cluster ssh://me@login.example.org/home/me/my-db
        balsam site add cluster ssh://cluster/~/my-db \\
            --balsam /opt/balsam/bin/balsam
    """
    from ..db.engine import registry
    from ..sites.rpc import ssh

    host, path = ssh.parse_address(address)
    ssh.shell_line(balsam)  # or say that it cannot be one
    registry.check_new(name, path, host)
    try:
        there = _about(registry.SiteEntry(0, name, path, host, balsam), patience_s=30.0)
    except BalsamError as exc:
        if not force:
            raise
        warn(f"{exc.message}\n{exc.hint}".strip())
        there = None
    entry = registry.add(path, name, host, balsam)
    found = f" (balsam_lite {there['version']}, {output.plural(there['jobs'], 'job')})" if there else " (not reached yet)"
    click.echo(f"Added site {entry.number}, {output.one_line(name)}: {output.one_line(entry.address)}{found}")
    if there:
        _warn_if_twice(entry, there.get("db_id", ""))


def _warn_if_twice(added: SiteEntry, db_id: str) -> None:
    """Warn if another site that answers is the same DB under another address."""
    from ..db.engine import registry
    from ..sites import fanout

    others = [entry for entry in registry.known() if entry.number != added.number] if db_id else []
    for entry, about in fanout.query_all(others, lambda one: one.about(), fanout.PROBE_TIMEOUT_S).found:
        if about.get("db_id") == db_id:
            warn(
                f"This is the DB of site {output.one_line(entry.name)} ({output.one_line(entry.address)}), or a copy of it.\n"
                f"If it is the same, its jobs count twice with --site all; `balsam site forget {added.number}` undoes this."
            )


def _about(entry: SiteEntry, patience_s: float) -> dict[str, Any]:
    from ..sites import fanout

    answers = fanout.query_all([entry], lambda one: one.about(), patience_s)
    for _, exc in answers.failed:
        raise exc
    found: dict[str, Any] = answers.found[0][1]
    return found


# --- the service ------------------------------------------------------------------------------------------------------


@site.command(cls=PathCommand, short_help="start a site's service, which submits launchers")
@click.argument("site", required=False, metavar="[SITE]")
@click.pass_context
def start(ctx: click.Context, site: str | None) -> None:
    """Start the service of a site, which submits launchers as the queue policy allows, in the background.

    SITE is its directory, its name or its number; by default it is the active DB.

    \b
    Examples:
        balsam site start
        balsam site start my-site
    """
    entry = _meant(ctx, site)
    say(f"Starting Balsam site at {output.one_line(entry.address)}")
    _serve(entry, "start")


@site.command(cls=PathCommand, short_help="stop a site's service")
@click.argument("site", required=False, metavar="[SITE]")
@click.pass_context
def stop(ctx: click.Context, site: str | None) -> None:
    """Stop the service of a site. What it has submitted stays in the queue.

    SITE is its directory, its name or its number; by default it is the active DB.

    \b
    Examples:
        balsam site stop
        balsam site stop my-site
    """
    entry = _meant(ctx, site)
    say(f"Waiting for site {output.one_line(entry.address)} to shutdown...")
    _serve(entry, "stop")


def _meant(ctx: click.Context, word: str | None) -> SiteEntry:
    from ..sites import selector

    return selector.choose_one("", ctx.find_root().obj) if word is None else selector.find(word)


def _serve(entry: SiteEntry, verb: str) -> None:
    from ..sites import fanout

    for line in fanout.open_site(entry).service(verb)["said"]:
        click.echo(output.one_line(line))


# --- listing ----------------------------------------------------------------------------------------------------------


@site.command("ls", cls=BalsamCommand, short_help="list the known sites")
@option("-v", "--verbose", is_flag=True, help="Show every field.")
@listing.output_options
def list_(*, verbose: bool, **options: Any) -> None:
    """List the known sites, and on which of them a service is running: active.

    yes: a service has sent a heartbeat in the last two minutes. unknown: the site does not answer. gone: its directory does
    not exist any more.

    \b
    Examples:
        balsam site ls
        balsam site ls --json
    """
    look = listing.Look.of(options, listing.SITES, verbose=verbose, verbose_form="yaml")
    with listing.paged(look):
        number = listing.show(look, _found_sites())
    if not number and not look.is_whole:
        from ..db.engine import registry

        say(registry.hint())


def _found_sites() -> Iterator[dict[str, Any]]:
    """Yield each known site as an object; warn of those that do not answer."""
    from ..db.engine import registry
    from ..sites import fanout

    entries = registry.known(gone=True)
    answers = fanout.query_all(entries, lambda one: one.about(), fanout.PROBE_TIMEOUT_S)
    found, failed = dict(answers.found), {entry: exc for entry, exc in answers.failed if entry.is_there}
    warn_of_sites(failed.items())
    for entry in entries:
        one: dict[str, Any] = {"id": entry.number, "name": entry.name, "path": entry.address, "active": "gone"}
        if entry in found:
            one["active"] = {True: "yes", False: "no", None: "unknown"}[found[entry]["is_active"]]
            one.update({key: found[entry].get(key) for key in ("jobs", "version")})
        elif entry in failed:
            one.update(active="unknown", error=fanout.reason(failed[entry]))
        yield one


# --- changing ---------------------------------------------------------------------------------------------------------


@site.command(cls=PathCommand, short_help="give a site another name")
@click.argument("site")
@click.argument("name")
def rename(site: str, name: str) -> None:
    """Give a site another name. SITE is its directory, its name or its number.

    \b
    Example:
        balsam site rename my-site tutorial
    """
    from ..db.engine import registry
    from ..sites import selector

    entry = selector.find(site)
    renamed = registry.rename(entry.number, name) if entry.number else registry.add(entry.path, name)
    click.echo(f"Renamed site {renamed.number} to {output.one_line(renamed.name)}")


@site.command(cls=PathCommand, short_help="move a site to another directory")
@click.argument("site")
@click.argument("destination")
def mv(site: str, destination: str) -> None:
    """Move a site with everything in its directory. SITE is its directory, its name or its number.

    No launcher or service may run there. DESTINATION is the new path of the directory itself and must not exist.

    \b
    Example:
        balsam site mv my-site /big/disk/my-site
    """
    from ..sites import lifecycle, selector

    entry = selector.find(site)
    moved = lifecycle.move(entry, destination)
    click.echo(f"Moved site to new path {output.one_line(moved.entry.path)}")
    if moved.apps:
        names = ", ".join(map(output.one_line, moved.apps))
        warn(f"These applications name the old directory: {names}. `balsam modify` changes them.")
    if moved.is_left:
        warn(f"The site was copied, and not all of its old directory could be removed: {output.one_line(entry.path)}")


@site.command(cls=PathCommand, short_help="remove a site with all its jobs")
@click.argument("site")
@option("-f", "--force", is_flag=True, help="Do not ask; forget a site whose directory is gone.")
@option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(site: str, *, force: bool, yes: bool) -> None:
    """Remove a site: its DB, its jobs and their working directories. SITE is its directory, its name or its number.

    Other files in its directory are left. A site on another host is only forgotten here; nothing happens there.

    \b
    Examples:
        balsam site rm my-site
        balsam site rm --force my-site
    """
    from ..db.engine import registry
    from ..sites import lifecycle, selector

    entry = selector.find(site)
    if entry.is_remote:
        registry.forget(entry.number)
        click.echo(f"Forgot site {output.one_line(entry.name)}; nothing was changed on {entry.host}.")
        return
    if not entry.is_there:
        _forget_gone(entry, force)
        return
    lifecycle.refuse_busy(lifecycle.directory_of(entry, "removed"), "removed")
    jobs = output.plural(lifecycle.jobs_in(entry.path), "job")
    question = f"Do you really want to destroy {output.one_line(entry.name)}? This will wipe out {jobs} inside!"
    if not (force or yes or confirm(question, "--yes")):
        return
    left = lifecycle.remove(entry)
    click.echo(f"Deleted site {output.one_line(entry.path)}")
    if left:
        say(f"Left there, because it is not Balsam's: {', '.join(map(output.one_line, left))}")


def _forget_gone(entry: SiteEntry, force: bool) -> None:
    from ..db.engine import registry

    if not force:
        raise NotABalsamDB(f"No Balsam DB is in {entry.path} any more", hint="--force forgets the site.")
    registry.forget(entry.number)
    click.echo(f"Forgot site {output.one_line(entry.name)}, of which no DB is in {output.one_line(entry.path)} any more.")


@site.command(cls=PathCommand, short_help="forget a site and leave its DB as it is")
@click.argument("sites", nargs=-1, metavar="SITE...")
@option("--gone", is_flag=True, help="All sites whose directories are gone.")
def forget(sites: tuple[str, ...], *, gone: bool) -> None:
    """Forget sites, and leave their DBs as they are. SITE is a directory, a name or a number.

    \b
    Examples:
        balsam site forget cluster
        balsam site forget --gone
    """
    from ..db.engine import registry
    from ..sites import selector

    entries = [selector.find(word) for word in sites]
    if gone:
        entries += [entry for entry in registry.known(gone=True) if not entry.is_there]
    elif not sites:
        raise click.UsageError("Name a site, or give --gone.")
    registry.forget(*(entry.number for entry in entries))
    for entry in entries:
        click.echo(f"Forgot site {output.one_line(entry.name)}")


# --- settings ---------------------------------------------------------------------------------------------------------


@site.command(cls=PathCommand, short_help="check a site's settings, and restart its service with them")
@click.argument("site", required=False, metavar="[SITE]")
@click.pass_context
def sync(ctx: click.Context, site: str | None) -> None:
    """Check the settings and the queue policy of a site, and restart its service if one is running.

    All other commands read the settings whenever they start. SITE is its directory, its name or its number; by default it is
    the active DB.

    \b
    Example:
        balsam site sync my-site
    """
    from ..sites import fanout

    entry = _meant(ctx, site)
    target = fanout.open_site(entry)
    target.service("check")  # before a service is stopped that could not start again
    is_running = target.about()["is_active"]
    click.echo("Updated site.")
    if is_running:
        say(f"Restarting Site {output.one_line(entry.address)}")
        target.service("stop")
        _serve(entry, "start")


@site.command("sample-settings", cls=BalsamCommand, short_help="print a settings file with all keys")
def sample_settings() -> None:
    """Print a settings.json with all keys and their defaults; the documentation explains them.

    \b
    Example:
        balsam site sample-settings > ~/my-site/settings.json
    """
    import json

    from ..core.settings import Settings

    click.echo(json.dumps(Settings()._asdict(), indent=4))


# --- for other hosts --------------------------------------------------------------------------------------------------


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
    from ..sites.rpc.protocol import respond

    line = sys.stdin.buffer.read() if sys.stdin else b""  # it may be closed
    with contextlib.redirect_stdout(sys.stderr):  # users' modules may print, and stdout is for the response
        words = respond(line, ctx.find_root().obj)
    click.echo(words)
    return 0
