"""`balsam app`: register an application."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import click

from .. import spec
from ..db import forms, queries
from ..db.store import apps as store
from ..errors import InvalidSpec
from . import layout
from .common import open_db, warn
from .group import BalsamCommand, SentenceOption, option

#: The fields that hold a program, which may be a Python script.
PROGRAMS = ("executable", "preprocess", "postprocess")


@click.command(cls=BalsamCommand)
@option("--name", required=True, help="The name by which jobs call it; it must be new.")
@option("--executable", required=True, metavar="COMMAND", help="The command line; a job's args come behind it.")
@option("--preprocess", default="", metavar="COMMAND", help="Run before each job.")
@option("--postprocess", default="", metavar="COMMAND", help="Run after each job.")
@option("--envscript", default="", metavar="FILE", help="A shell script to source before each job.")
@option("--exit-0-is-done-after-stop", is_flag=True, help="A run that exits with 0 after it was told to stop is done.")
@option("--description", cls=SentenceOption, default="", metavar="WORDS...", help="What it does.")
def app(
    *,
    name: str,
    executable: str,
    preprocess: str,
    postprocess: str,
    envscript: str,
    exit_0_is_done_after_stop: bool,
    description: str,
) -> None:
    """Register an application: a program that jobs run.

    A Python script (*.py) is kept with its absolute path, and run by the Python that runs this command.

    \b
    Examples:
        balsam app --name say-hello --executable "echo Hello,"
        balsam app --name fit --executable fit.py --postprocess check.py \\
            --description fits one curve
    """
    values: dict[str, Any] = {
        "name": name, "executable": executable, "preprocess": preprocess, "postprocess": postprocess,
        "exit_0_is_done_after_stop": exit_0_is_done_after_stop,
    }  # fmt: skip
    values.update(description=description, envscript=os.path.abspath(os.path.expanduser(envscript)) if envscript else "")
    if not executable.strip():
        raise InvalidSpec("app executable must not be empty")
    values = spec.check_app(values)
    values.update({field: as_program(values[field]) for field in PROGRAMS})
    db = open_db()
    with db.write() as cx:
        store.add_app(cx, values)
        found = queries.app(cx, values["name"])
    for field in PROGRAMS:
        warn_if_missing(field, values[field])
    if values["envscript"] and not os.path.isfile(values["envscript"]):
        warn(f"envscript: {layout.one_line(values['envscript'])} does not exist")
    click.echo(f"{layout.many_lines(forms.app_form(found))}\nAdded app to database")


def as_program(line: str) -> str:
    """The command line to store: a Python script with its interpreter and its absolute path."""
    return spec.as_program(line, sys.executable, os.getcwd())


def warn_if_missing(field: str, line: str) -> None:
    """Say so when the program cannot be run from here; it may well exist where the jobs run."""
    words = spec.split_command(line)
    script = len(words) > 1 and words[0] == sys.executable and words[1].endswith(".py")
    for word in words[: 2 if script else 1]:
        if os.sep not in word:
            trouble = "" if shutil.which(word) else "is not found on PATH"
        elif not os.path.isabs(word):
            trouble = "is looked up in each job's working directory, not here; an absolute path is safer"
        elif not os.path.isfile(word):
            trouble = "does not exist"
        else:
            trouble = "" if os.access(word, os.R_OK if script else os.X_OK) else "is not executable"
        if trouble:
            warn(f"{field}: {layout.one_line(word)} {trouble}")
