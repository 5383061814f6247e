"""`balsam log`: follow the files in the DB's log directory, which launchers and commands write."""

from __future__ import annotations

import os
import sys
import time
from typing import Callable

import click

from ..core.growing_file import NOWHERE, Place, place_of_last_lines, read_on
from ..db.engine import directories
from . import output
from .common import COUNT0, say
from .group import BalsamCommand, option

_PAUSE_S = 0.25


@click.command(cls=BalsamCommand)
@option(
    "-n",
    "lines",
    type=COUNT0,
    default=10,
    show_default=True,
    metavar="LINES",
    help="Number of lines of each file to begin with.",
)
@option("--no-follow", is_flag=True, help="Show the last lines of each file and end.")
@click.pass_context
def log(ctx: click.Context, lines: int, no_follow: bool) -> None:
    """Follow all *.log files of the DB, new ones included, until Ctrl-C.

    \b
    Examples:
        balsam log
        balsam log --no-follow -n 100
    """
    folder = os.path.join(directories.find(ctx.find_root().obj), directories.LOG)
    show = _Shower()
    places = {path: _last_lines(path, lines, show) for path in log_files(folder)}
    if no_follow:
        if not places:
            say(f"There are no logs in {folder}")
        return
    sys.stdout.flush()
    while True:
        time.sleep(_PAUSE_S)
        follow_once(folder, places, show)


def log_files(folder: str) -> list[str]:
    """Return the paths of the logs in `folder`, by name."""
    try:
        return sorted(entry.path for entry in os.scandir(folder) if entry.name.endswith(".log") and entry.is_file())
    except OSError:
        return []


def follow_once(folder: str, places: dict[str, Place], show: Callable[[str, bytes], None]) -> None:
    """Show what was written since the last call. A file that was replaced or truncated is shown from its beginning."""
    for path in log_files(folder):
        places[path] = _news(path, places.get(path, NOWHERE), show)
    sys.stdout.flush()


def _news(path: str, place: Place, show: Callable[[str, bytes], None]) -> Place:
    try:
        while True:
            piece, place = read_on(path, place)
            if not piece:
                return place
            show(path, piece)
    except OSError:  # rotated meanwhile
        return place


def _last_lines(path: str, lines: int, show: Callable[[str, bytes], None]) -> Place:
    try:
        return _news(path, place_of_last_lines(path, lines), show)
    except OSError:
        return NOWHERE


class _Shower:
    """Print pieces of files, with the file's name wherever it changes."""

    def __init__(self) -> None:
        self._path = ""

    def __call__(self, path: str, piece: bytes) -> None:
        if path != self._path:
            sys.stdout.write(f"{chr(10) if self._path else ''}==> {output.one_line(os.path.basename(path))} <==\n")
            self._path = path
        sys.stdout.write(output.many_lines(piece.decode(errors="replace")))
