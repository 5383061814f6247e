"""`balsam db`: check, back up, salvage, shrink or describe the database of a DB."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import click

from ..core import display, field_specs, subprocess_run
from ..core.clock import SystemClock
from ..core.errors import BalsamError, DatabaseError, DatabaseReadOnly, InputError
from ..core.settings import Settings
from ..db.engine import directories, doctor, maintenance
from ..db.engine.connection import Database
from ..db.engine.doctor import Finding, TesterReport
from . import output
from .common import COUNT, number, open_db, say
from .group import BalsamCommand, CommandGroup, PathCommand, option

#: ssh(1): its words go through the shell of the other host, and it must not ask for a password.
_PEER_COMMAND = "ssh -o BatchMode=yes -o ConnectTimeout=15 {host} {command}"
_MODULE = "balsam_lite.cli"
_TOPIC = "locks"
#: Seconds for the command that starts a tester elsewhere, and for ending.
_SLACK_S = 15.0
#: A longer test finds nothing more.
_MAX_TEST_S = 15.0


@click.group(cls=CommandGroup)
def db() -> None:
    """Check, back up or shrink the database of the active DB.

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
    if not 0 <= value <= _MAX_TEST_S:
        raise click.BadParameter(f"{value} is not in the range from 0 to {_MAX_TEST_S:g}.", ctx, parameter)
    return value


@db.command(cls=BalsamCommand, short_help="find faults of the DB, and test the locks of its file system")
@option("--peer", "peers", metavar="HOST", multiple=True, help="Host to test the locks with; may be repeated.")
@option("--peer-command", metavar="WORDS", default=_PEER_COMMAND, show_default=True,
        help="Command that runs another one on HOST; {command} is replaced by it, else it is appended.")  # fmt: skip
@option(
    "--seconds", type=float, default=2.0, show_default=True, callback=_test_seconds, help="Duration of the test; 0: no test."
)
@option("--quick", is_flag=True, help="Skip the comparison of each index with its table.")
@option("--json", is_flag=True, help="Print a list of objects.")
@click.pass_context
def check(ctx: click.Context, peers: tuple[str, ...], peer_command: str, seconds: float, quick: bool, json: bool) -> None:
    """Find faults of the DB, and test whether the locks of its file system hold.

    Reports the DB's path and access, SQLite's own check of the file, whether the rows agree with each other, the launchers
    at work, and whether clocks differ. Then some processes count in a scratch database next to it for two seconds; with
    --peer, one of them on each of those hosts, which must see the DB and this Python under the same paths. Exit code 1 if
    anything is wrong.

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
    except BalsamError as exc:  # which is a finding of this command
        yield doctor.refused(exc)
        return
    ctx.call_on_close(database.close)
    yield from doctor.look_over(database, now_us=SystemClock().now_us(), expiry_s=settings.LEASE_EXPIRY_S, quick=quick)
    if seconds or peers:
        try:
            yield from _test_locks(database, peers, peer_command, seconds or 1.0)
        except DatabaseReadOnly as exc:
            yield Finding("locks", doctor.NOTE, f"not tested: {exc.message}")


def _test_locks(database: Database, peers: Sequence[str], peer_command: str, seconds: float) -> list[Finding]:
    """Let two testers here, or one here and one on each peer, count for this number of seconds. Compares their clocks, too.

    Args:
        peer_command: starts a command on a peer. {host} is the peer; {command} is the command as one word for a shell, and
            where it does not occur, the words of the command are appended, after ssh as one word for its shell.

    Raises:
        InputError: `peer_command` cannot be split into words.
    """
    prefix = _split_command(peer_command)
    places = ["", *peers] if peers else ["", ""]
    with doctor.scratch(database) as scratch:
        jobs: list[Callable[[], subprocess_run.Completed]] = []
        for number, peer in enumerate(places):
            words = ["db", "count", scratch, f"tester{number + 1}", str(len(places)), str(seconds)]
            jobs.append(_tester_elsewhere(prefix, peer, words, seconds) if peer else _tester_here(words))
        done = _run_testers(jobs, scratch)
        if isinstance(done, _FailedTester):
            place = places[done.number] or "this host"
            return [Finding(_TOPIC, doctor.WRONG, f"the tester on {place} failed: {_why_it_failed(done.answer)}")]
        return [_judged(scratch, done, bool(peers)), *_clocks(done)]


def _split_command(peer_command: str) -> list[str]:
    try:
        words = field_specs.split_command(peer_command)
    except ValueError as exc:
        raise InputError(f"--peer-command {peer_command!r} cannot be read: {exc}") from exc
    if not words:
        raise InputError("--peer-command is empty")
    return words


def _tester_here(words: list[str]) -> Callable[[], subprocess_run.Completed]:
    return lambda: subprocess_run.run_module(_MODULE, *words)


def _tester_elsewhere(prefix: list[str], peer: str, words: list[str], seconds: float) -> Callable[[], subprocess_run.Completed]:
    command = ["env", f"PYTHONPATH={subprocess_run.python_path()}", *subprocess_run.module_words(_MODULE, *words)]
    argv = [word.replace("{host}", peer).replace("{command}", shlex.join(command)) for word in prefix]
    if not any("{command}" in word for word in prefix):
        argv += [shlex.join(command)] if os.path.basename(prefix[0]) == "ssh" else command
    return lambda: subprocess_run.run(argv, timeout_s=doctor.GATHERING_S + seconds + _SLACK_S)


class _FailedTester(NamedTuple):
    """The first tester that did not do its part."""

    number: int
    answer: subprocess_run.Completed


def _run_testers(jobs: Sequence[Callable[[], subprocess_run.Completed]], scratch: str) -> list[TesterReport] | _FailedTester:
    """Run the testers at once and return their reports in order; if one fails, the others stop waiting for it."""
    from concurrent.futures import ThreadPoolExecutor

    failed: list[_FailedTester] = []

    def tally(number: int) -> TesterReport | None:
        answer = jobs[number]()
        found = TesterReport.parsed(answer.stdout) if answer.ok else None
        if found is None:
            failed.append(_FailedTester(number, answer))
            doctor.call_off(scratch)
        return found

    with ThreadPoolExecutor(len(jobs)) as pool:
        tallies = list(pool.map(tally, range(len(jobs))))
    return failed[0] if failed else [found for found in tallies if found is not None]


def _judged(scratch: str, tallies: list[TesterReport], has_peers: bool) -> Finding:
    faults = doctor.faults(scratch, tallies)
    if faults:
        return Finding(_TOPIC, doctor.WRONG, f"the locks of this file system do not hold: {'; '.join(faults)}")
    hosts = {(tally.host, tally.pid_namespace) for tally in tallies}
    total, slowest_s = sum(tally.commits for tally in tallies), max(tally.slowest_s for tally in tallies)
    did = f"{len(tallies)} processes on {len(hosts)} host(s) made {total} transactions"
    text = f"{did}, the slowest in {slowest_s} s; none was lost"
    if has_peers and len(hosts) < 2:
        return Finding(_TOPIC, doctor.NOTE, f"{text}. But all of them ran on this host, so other hosts are not tested")
    return Finding(_TOPIC, doctor.OK, text)


def _clocks(tallies: list[TesterReport]) -> list[Finding]:
    """Compare the clocks of the peers with this host's, by the moment at which the testers met."""
    here, peers = tallies[0], [tally for tally in tallies if tally.host != tallies[0].host]
    return [doctor.compared_clock(tally.host, tally.met_s - here.met_s, tally.slowest_s + here.slowest_s) for tally in peers]


def _why_it_failed(answer: subprocess_run.Completed) -> str:
    said = answer.stderr.strip().splitlines() or answer.stdout.strip().splitlines()
    return f"exit code {answer.returncode}, {said[-1][:300]}" if said else f"exit code {answer.returncode}"


@db.command("count", cls=PathCommand, hidden=True)
@click.argument("directory")
@click.argument("name")
@click.argument("testers", type=COUNT)
@click.argument("seconds", type=float, callback=number)
def count_(directory: str, name: str, testers: int, seconds: float) -> None:
    """Be one of the testers that `balsam db check` starts."""
    click.echo(doctor.count(directory, name, testers, seconds).as_text())


# --- backup, vacuum, info ---------------------------------------------------------------------------------------------


@db.command(cls=PathCommand, short_help="copy the database to a file, while launchers go on")
@click.argument("path")
@option("--force", is_flag=True, help="Replace PATH if it exists.")
def backup(path: str, force: bool) -> None:
    """Copy the database to the file PATH, while launchers go on.

    Never copy the file by other means: the last commits are in another file, and copying a file in use may damage it. To
    use a copy, put it into a new directory as balsam.sqlite3 and run `balsam init` on that directory. Working directories
    of jobs are not part of it.

    \b
    Example:
        balsam db backup ~/backups/today.sqlite3
    """
    size = maintenance.backup(open_db(), path, force=force)
    say(f"{output.one_line(path)}: {display.size(size)}")


@db.command(cls=PathCommand, short_help="make a new DB from what is readable in a damaged one")
@click.argument("new_dir")
def salvage(new_dir: str) -> None:
    """Make a new DB in the directory NEW_DIR from what is readable in the active one, which is damaged and stays as it is.

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


@db.command(cls=BalsamCommand, short_help="rewrite the database without unused space")
@option("--force", is_flag=True, help="Do it while launchers are at work; they wait meanwhile.")
@option("--trash", "empties_trash", is_flag=True, help="Delete removed jobs for good, which `balsam undo` could take back.")
def vacuum(force: bool, empties_trash: bool) -> None:
    """Rewrite the database without unused space, count all jobs anew, and repair the index of tags.

    Removed jobs are kept for thirty days, so that `balsam undo` can take them back; --trash deletes all of them now.

    Refused while a launcher or the service is at work: it could not renew its lease, and after LEASE_EXPIRY_S others would
    take it for dead. Needs free disk space of twice the size of the database.

    \b
    Example:
        balsam db vacuum
        balsam db vacuum --trash
    """
    database = open_db()
    expiry_s = Settings.load(database.directory).LEASE_EXPIRY_S
    before, after, repaired, emptied = maintenance.vacuum(database, expiry_s=expiry_s, force=force, empties_trash=empties_trash)
    if empties_trash:
        say(f"{emptied} removed job(s) deleted for good.")
    if repaired:
        say(f"The index of tags was wrong for {repaired} job(s), and is repaired.")
    say(f"{display.size(before)} before, {display.size(after)} now")


@db.command(cls=BalsamCommand, short_help="show the DB's size, contents, access and settings")
@option("--json", is_flag=True, help="Print a list of one object.")
def info(json: bool) -> None:
    """Show the size, contents and access of the database, and the settings in effect.

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
        return display.size(value)
    if isinstance(value, dict):
        value = [f"{count} {key}" for key, count in value.items() if count]
    if isinstance(value, list):
        return output.one_line(", ".join(value)) or "none"
    return output.one_line(str(value))
