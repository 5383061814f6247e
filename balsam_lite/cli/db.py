"""`balsam db`: is everything in order with the DB, a copy of it, a smaller file, what it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import click

from ..core.clock import SystemClock
from ..core.errors import BalsamError, DatabaseError, DatabaseReadOnly
from ..core.settings import Settings
from ..db.engine import directories, doctor, maintenance, selftest
from ..db.engine.doctor import Finding
from . import output
from . import selftest as runner
from .common import count, number, open_db, say
from .group import BalsamCommand, CommandGroup, PathCommand, option

#: Seconds; longer says nothing more.
_LONGEST_TEST_S = 15.0


@click.group(cls=CommandGroup)
def db() -> None:
    """Look after the database of the active DB.

    \b
    Examples:
        balsam db check
        balsam db check --peer node2
        balsam db backup ~/backups/today.sqlite3
        balsam db vacuum
        balsam db info --json
        balsam --db ~/my-db db salvage ~/my-new-db
    """


# --- check ------------------------------------------------------------------------------------------------------------


def _test_seconds(ctx: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 <= value <= _LONGEST_TEST_S:
        raise click.BadParameter(f"{value} is not in the range from 0 to {_LONGEST_TEST_S:g}.", ctx, parameter)
    return value


@db.command(cls=BalsamCommand, short_help="look for faults of the DB, and test the locks of its file system")
@option("--peer", "peers", metavar="HOST", multiple=True, help="Test the locks against this host too; may be repeated.")
@option("--peer-command", metavar="WORDS", default=runner.PEER_COMMAND, show_default=True,
        help="How to run a command there. Without {command} the words follow as they are.")  # fmt: skip
@option("--seconds", type=float, default=2.0, show_default=True, callback=_test_seconds, help="Test so long; 0: do not.")
@option("--quick", is_flag=True, help="Do not compare each index with its table.")
@option("--json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def check(ctx: click.Context, peers: tuple[str, ...], peer_command: str, seconds: float, quick: bool, json: bool) -> None:
    """Look for what is wrong with the DB, and test whether the locks of its file system hold.

    Says where the DB lies and how it is opened, what SQLite finds in the file, whether the rows agree with each other,
    who is at work, and whether clocks differ. Then some processes count in a scratch database beside it for two seconds;
    with --peer, one of them on each of those hosts, which must see the DB and this Python under the same paths. Exit code
    1 if anything is
    wrong.

    \b
    Examples:
        balsam db check
        balsam db check --peer node2
        balsam db check --peer nid00012 --peer-command "srun -N1 -n1 -w {host}"
    """
    wrong = 0
    found: list[dict[str, Any]] = []
    for finding in _findings(ctx, peers, peer_command, seconds, quick):
        wrong += finding.level == doctor.WRONG
        found.append(finding._asdict())
        if not json:
            click.echo(f"{finding.level:>5}  {finding.topic}: {output.one_line(finding.text)}")
    if json:
        output.write_json(found, sys.stdout)
    if wrong:
        sys.stdout.flush()
        raise DatabaseError(f"{wrong} thing(s) are wrong with this DB.", hint="See the lines that begin with `wrong`.")


def _findings(ctx: click.Context, peers: tuple[str, ...], peer_command: str, seconds: float, quick: bool) -> Iterator[Finding]:
    directory = directories.find(ctx.find_root().obj)
    settings = Settings.load(directory)
    try:
        database = directories.open_database(directory, settings)
    except BalsamError as exc:  # to say so is what the command is for
        yield doctor.refused(exc)
        return
    ctx.call_on_close(database.close)
    yield from doctor.look_over(database, now_us=SystemClock().now_us(), expiry_s=settings.LEASE_EXPIRY_S, quick=quick)
    if seconds or peers:
        try:
            yield from runner.run(database, peers, peer_command, seconds or 1.0)
        except DatabaseReadOnly as exc:
            yield Finding("locks", doctor.NOTE, f"not tested: {exc.message}")


@db.command("count", cls=PathCommand, hidden=True)
@click.argument("directory")
@click.argument("name")
@click.argument("testers", type=int, callback=count)
@click.argument("seconds", type=float, callback=number)
def count_(directory: str, name: str, testers: int, seconds: float) -> None:
    """Be one of the testers of `balsam db check`, which starts this."""
    click.echo(selftest.count(directory, name, testers, seconds).as_text())


# --- backup, vacuum, info ---------------------------------------------------------------------------------------------


@db.command(cls=PathCommand, short_help="copy the database to a file, while launchers go on")
@click.argument("path")
@option("--force", is_flag=True, help="Replace PATH if it exists.")
def backup(path: str, force: bool) -> None:
    """Copy the database to the file PATH, while launchers go on.

    Never copy the file by other means: what was committed last is in another file, and copying one that is in use may
    damage it. To use a copy, put it into a new directory as balsam.sqlite3 and say `balsam init` to that directory; the
    working directories of the jobs are not in it.

    \b
    Example:
        balsam db backup ~/backups/today.sqlite3
    """
    size = maintenance.backup(open_db(), path, force=force)
    say(f"{output.one_line(path)}: {output.size(size)}")


@db.command(cls=PathCommand, short_help="make a new DB of what can be read in a damaged one")
@click.argument("new_dir")
def salvage(new_dir: str) -> None:
    """Make a new DB in the directory NEW_DIR of what can be read in the active one, which is damaged and stays as it is.

    Reads jobs, applications, events, dependencies, tags and batch jobs, page by page, and prints what could not be read. Jobs
    that launchers had are RESTART_READY in the new DB; jobs whose parents are lost are FAILED. The working directories stay
    where they are: move `data` into the new directory afterwards. A recent backup may hold more.

    \b
    Example:
        balsam --db ~/my-db db salvage ~/my-new-db
    """
    from ..db.engine.salvage import salvage as read_what_can_be_read

    directory = directories.find(click.get_current_context().find_root().obj)
    found = read_what_can_be_read(directory, new_dir)
    click.echo(f"Read: {', '.join(f'{rows} {kind}' for kind, rows in found.read.items())}")
    for text in found.lost:
        click.echo(f"Lost: {text}")
    for text in found.notes:
        click.echo(f"Note: {text}")
    if not found.lost:
        click.echo("Nothing was found to be lost.")
    new, old = output.one_line(found.directory), output.one_line(directory)
    click.echo(f"The new DB is {new}.")
    click.echo(f"Still in {old}: the working directories (move `data` to {new}), settings, policy and job templates.")


@db.command(cls=BalsamCommand, short_help="write the database anew, without unused room")
@option("--force", is_flag=True, help="Do it though launchers are at work; they wait meanwhile.")
def vacuum(force: bool) -> None:
    """Write the database anew, without the room that removed jobs have left, and mend the tags by which jobs are found.

    Refused while a launcher or the service is at work: it could not show that it lives, and if it took longer than
    LEASE_EXPIRY_S, others would take it for dead. Needs twice the size of the database in free room.

    \b
    Example:
        balsam db vacuum
    """
    database = open_db()
    expiry_s = Settings.load(database.directory).LEASE_EXPIRY_S
    before, after, mended = maintenance.vacuum(database, expiry_s=expiry_s, force=force)
    if mended:
        say(f"The tags of {mended} job(s) were noted wrongly, and are right now.")
    say(f"{output.size(before)} before, {output.size(after)} now")


@db.command(cls=BalsamCommand, short_help="show how large the DB is, how it is opened and its settings")
@option("--json", is_flag=True, help="Print a list of one object.")
def info(json: bool) -> None:
    """Show how large the database is, what it holds, how it is opened and which settings hold.

    \b
    Example:
        balsam db info
    """
    found = maintenance.info(open_db())
    if json:
        output.write_json((found,), sys.stdout)
        return
    for name, value in found.items():
        click.echo(f"{name.replace('_', ' ')}: {_shown(name, value)}")


def _shown(name: str, value: Any) -> str:
    if name.endswith("bytes"):
        return output.size(value)
    if isinstance(value, dict):
        value = [f"{count} {key}" for key, count in value.items() if count]
    if isinstance(value, list):
        return output.one_line(", ".join(value)) or "none"
    return output.one_line(str(value))
