"""`balsam app`: register an application; and `make_dummies`, which registers one and adds many jobs of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import click

from ..core import command_line, field_specs
from ..core.errors import DuplicateApp, InvalidSpec
from ..db.query import queries, text_forms
from ..db.store import apps as store
from ..db.store import insert
from . import output
from .common import COUNT, open_db, progress_of, warn
from .group import BalsamCommand, SentenceOption, option


@click.command(cls=BalsamCommand)
@option("--name", required=True, help="Name for use by jobs; must be new.")
@option("--executable", required=True, metavar="COMMAND", help="Command line; the arguments of a job are appended.")
@option("--preprocess", default="", metavar="COMMAND", help="Command to run before each job.")
@option("--postprocess", default="", metavar="COMMAND", help="Command to run after each job.")
@option("--envscript", default="", metavar="FILE", help="Shell script to source before each job.")
@option(
    "--exit-0-is-done-after-stop", is_flag=True, help="Count exit code 0 as success even after the launcher told it to stop."
)
@option("--keep-background", is_flag=True, help="Keep processes that its jobs leave in the background.")
@option("--description", cls=SentenceOption, default="", metavar="WORDS...", help="Free text.")
def app(**values: Any) -> None:
    """Register an application: a program that jobs run.

    Programs and scripts of the current directory are kept with their absolute paths; a Python script (*.py) is run by the
    Python that runs this command. No shell reads the line: for | > $HOME and the like, make it bash -c '...'.

    \b
    Examples:
        balsam app --name say-hello --executable "echo Hello,"
        balsam app --name count --executable "bash -c 'ls | wc -l > n.txt'"
        balsam app --name fit --executable fit.py --postprocess check.py \\
            --description fits one curve
    """
    if values["envscript"]:
        values["envscript"] = os.path.abspath(os.path.expanduser(values["envscript"]))
    if not values["executable"].strip():
        raise InvalidSpec("app executable must not be empty")
    values = field_specs.check_app(values)
    lines = {field: as_program(values[field]) for field in command_line.FIELDS if values.get(field)}
    values.update(lines)
    db = open_db()
    with db.write() as cx:
        store.add_app(cx, values)
        found = queries.app(cx, values["name"])
    for field, line in lines.items():
        warn_of_line(field, line)
    if values["envscript"]:
        warn_of("envscript", command_line.problems_of_script(values["envscript"]))
    click.echo(f"{output.many_lines(text_forms.app_form(found))}\nAdded app to database")


def as_program(line: str) -> str:
    """Return the command line to store: existing files of the current directory with their absolute paths."""
    return command_line.as_program(line, sys.executable, os.getcwd())


def warn_of_line(field: str, line: str) -> None:
    """Warn of problems of a command line; the program may exist only where the jobs run."""
    warn_of(field, command_line.problems(line, command_line.current_directory()))


def warn_of(field: str, problems: Iterable[str]) -> None:
    """Warn of problems of a field."""
    for text in problems:
        warn(f"{field}: {output.many_lines(text)}")


# --- many at once -----------------------------------------------------------------------------------------------------

_DUMMY_APP = {"name": "dummy", "executable": "echo", "description": "Added by balsam make_dummies"}


@click.command(cls=BalsamCommand)
@click.argument("num", type=COUNT)
def make_dummies(num: int) -> None:
    """Add NUM jobs that print "hello", to measure the throughput.

    \b
    Example:
        balsam make_dummies 1000
    """
    db = open_db()
    try:
        with db.write() as cx:
            store.add_app(cx, _DUMMY_APP)
    except DuplicateApp:  # of an earlier call
        pass
    with progress_of(2 * num) as progress:  # a job counts twice: once read, once inserted
        insert.add_jobs(db, _dummies(num), progress)
    click.echo(f"Added {num} dummy jobs to the DB")


def _dummies(num: int) -> Iterator[dict[str, Any]]:
    for n in range(num):
        yield {
            "name": f"dummy{n}", "workflow": "dummy", "application": "dummy", "args": "hello", "node_packing_count": 64,
            "description": "Added by balsam make_dummies",
        }  # fmt: skip
