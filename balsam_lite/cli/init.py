"""`balsam init` and `which`: create or find a DB; `completion`; and `login` and `server`, which do nothing."""

from __future__ import annotations

import os
import sys

import click

from ..core.errors import BalsamError
from ..db.engine import connection, directories
from . import output
from .common import say, warn
from .completion import COMPLETION_VARIABLE
from .group import BalsamCommand, Choice, PathCommand, option


@click.command(cls=PathCommand)
@click.argument("path")
@option(
    "--access", type=Choice(["local", "shared"]),
    help="How to open the DB: local (one host) or shared (several hosts). [default: by the file system]",
)  # fmt: skip
@option(
    "--shared-read/--no-shared-read", "shared_read", default=None,
    help="Let other users read the database and job scripts, as far as umask allows. [default: no, or as it was]",
)  # fmt: skip
def init(path: str, access: str | None, shared_read: bool | None) -> None:
    """Create a Balsam DB in the directory PATH, or bring an existing one up to date.

    \b
    Examples:
        balsam init ~/my-db
        balsam init --shared-read /projects/us/db
        source balsamactivate my-db
    """
    is_new = not directories.is_db(os.path.expanduser(path))
    db = directories.create(path, access, say, shared_read)
    copy_templates(db)
    said = "Successfully created Balsam DB at:" if is_new else "The Balsam DB is up to date at:"
    shown = output.one_line(db.directory)
    lines = [f"{said} {shown}", f"Use `source balsamactivate {os.path.basename(shown) or shown}` to begin working."]
    stars = "*" * max(map(len, lines))
    click.echo("\n".join([stars, *lines, stars]))


def copy_templates(db: connection.Database) -> None:
    """Copy the job script of the scheduler in use and a queue policy into the DB, to be edited. A failure is a warning only."""
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
@option("--name", metavar="NAME", help="Print the path of a known DB, given its name, path or a unique part of it.")
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
    """Add a DB that was found by its path to the known ones, so that its name finds it next time."""
    try:
        if path not in directories.known_paths():
            directories.remember(path)
    except BalsamError as exc:  # it was found nevertheless
        warn(str(exc))


def _describe(path: str) -> None:
    db = directories.open_database(path)
    size = os.path.getsize(os.path.join(path, connection.FILE_NAME))
    click.echo(f"Current Balsam DB: {output.one_line(path)}")
    click.echo(f"    file:   {output.one_line(db.path)} ({size} bytes)")
    click.echo(f"    access: {db.access}")


@click.command(cls=BalsamCommand)
@click.argument("shell", type=Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which a shell completes commands, options, and what is in the DB.

    Put the line for your shell into its start-up file. Bash has to be 4.4 or newer.

    \b
    Examples:
        eval "$(balsam completion bash)"      # ~/.bashrc
        eval "$(balsam completion zsh)"       # ~/.zshrc, after compinit
        balsam completion fish | source       # ~/.config/fish/config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(click.get_current_context().find_root().command, {}, "balsam", COMPLETION_VARIABLE)
    click.echo(made.source_template % made.source_vars())  # `source()` would start bash to learn its version


@click.command(cls=PathCommand)
@option("--connect", is_flag=True, help="Ignored.")
@option("--reset", is_flag=True, help="Ignored.")
@option("--list-active-connections", is_flag=True, help="Ignored.")
@option("--list-users", is_flag=True, help="Ignored: the directory's permissions decide.")
@option("--add-user", metavar="USER", help="Ignored: change the directory's permissions.")
@option("--drop-user", metavar="USER", help="Ignored: change the directory's permissions.")
def server(**options: object) -> None:
    """Do nothing: there is no server. For scripts written for Balsam 0.3.

    \b
    Example:
        balsam server --connect
    """
    click.echo("no server: this DB is a file")


@click.command(cls=BalsamCommand)
@option("-u", "--url", metavar="URL", help="Ignored.")
@option("-f", "--force", is_flag=True, help="Ignored.")
def login(**options: object) -> None:
    """Do nothing: there is no account. For scripts written for Balsam 0.7.

    \b
    Example:
        balsam login
    """
    click.echo("no login needed: there is no server, and each site is a file")
