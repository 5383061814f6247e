"""Commands about whole DBs: `init`, `which`, and two that have nothing to do: `login`, `server`."""

from __future__ import annotations

import os
import sys

import click

from ..core.errors import BalsamError
from ..db.engine import connection, directories
from . import output
from .common import say, warn
from .group import BalsamCommand, Choice, PathCommand, option


@click.command(cls=PathCommand)
@click.argument("path")
@option(
    "--access", type=Choice(["local", "shared"]),
    help="How to open the DB: local (one host) or shared (several hosts). By default as the file system demands.",
)  # fmt: skip
@option(
    "--shared-read/--no-shared-read", "shared_read", default=None,
    help="Let others read the database and job scripts, as umask allows, or no other user. Default: the latter, or as it was.",
)  # fmt: skip
def init(path: str, access: str | None, shared_read: bool | None) -> None:
    """Create a Balsam DB in the directory PATH, or bring the one that is there up to date.

    \b
    Examples:
        balsam init ~/my-db
        balsam init --shared-read /projects/us/db
        source balsamactivate my-db
    """
    is_new = not directories.is_db(os.path.expanduser(path))
    db = directories.create(path, access, say, shared_read)
    copy_templates(db)
    said = "Successfully created Balsam DB at:" if is_new else "Up to date is the Balsam DB at:"
    shown = output.one_line(db.directory)
    lines = [f"{said} {shown}", f"Use `source balsamactivate {os.path.basename(shown) or shown}` to begin working."]
    stars = "*" * max(map(len, lines))
    click.echo("\n".join([stars, *lines, stars]))


def copy_templates(db: connection.Database) -> None:
    """The job script of the scheduler in use and a queue policy, for the user to edit. Without them the DB is as good."""
    from ..core.settings import Settings
    from ..schedulers import script
    from ..service import policy

    try:
        settings = Settings.load(db.directory)
        policy.copy_template(db.directory, settings)
        script.copy_template(db, settings)
    except (BalsamError, OSError) as exc:
        warn(f"The templates cannot be copied into the DB: {exc}")


@click.command(cls=PathCommand)
@option("--list", "listed", is_flag=True, help="List the known DBs, one path per line.")
@option("--name", metavar="NAME", help="Print the path of the DB of that name: its path, or any part that only one has.")
@option("--json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def which(ctx: click.Context, listed: bool, name: str | None, json: bool) -> None:
    """Show the active Balsam DB, list the known ones, or find one by name.

    \b
    Examples:
        balsam which
        balsam which --list
        cd "$(balsam which --name my-db)"
    """
    if name is not None:
        paths = [directories.resolve(name)]
        _remember(paths[0])
    elif listed:
        paths = directories.known_paths()
    else:
        paths = [directories.find(ctx.find_root().obj)]
    if json:
        output.write_json(({"path": path, "access": directories.open_database(path).access} for path in paths), sys.stdout)
    elif name is not None or listed:
        sys.stdout.write("".join(f"{path}\n" for path in paths))
    else:
        _describe(paths[0])


def _remember(path: str) -> None:
    """Whoever activates a DB by its path may call it by its name the next time."""
    try:
        if path not in directories.known_paths():
            directories.remember(path)
    except BalsamError as exc:  # finding it is what was asked for
        warn(str(exc))


def _describe(path: str) -> None:
    db = directories.open_database(path)
    size = os.path.getsize(os.path.join(path, connection.FILE_NAME))
    click.echo(f"Current Balsam DB: {output.one_line(path)}")
    click.echo(f"    file:   {output.one_line(db.path)} ({size} bytes)")
    click.echo(f"    access: {db.access}")


@click.command(cls=PathCommand)
@option("--connect", is_flag=True, help="Nothing to connect to.")
@option("--reset", is_flag=True, help="Nothing to stop or start.")
@option("--list-active-connections", is_flag=True, help="Nothing to list.")
@option("--list-users", is_flag=True, help="Access is what the directory's permissions say.")
@option("--add-user", metavar="USER", help="Change the directory's permissions instead.")
@option("--drop-user", metavar="USER", help="Change the directory's permissions instead.")
def server(**options: object) -> None:
    """Kept for old scripts, which call it: there is no server.

    \b
    Example:
        balsam server --connect
    """
    click.echo("no server: this DB is a file")


@click.command(cls=BalsamCommand)
@option("-u", "--url", metavar="URL", help="There is no server to log in to.")
@option("-f", "--force", is_flag=True, help="There is no login to renew.")
def login(**options: object) -> None:
    """Kept for old scripts, which call it: there is no account, and no login is needed.

    \b
    Example:
        balsam login
    """
    click.echo("no login needed: there is no server, and each site is a file")
