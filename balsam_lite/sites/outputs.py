"""Read the outputs of jobs, and other files in their working directories, in pieces: for `local.LocalSite`.

An attempt has a new file; the one before is put aside under another name. What is read goes on in the renamed file, then in
those of later attempts, in order.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..core import field_specs, growing_file, job_files, states
from ..core.errors import InputError
from ..core.growing_file import Place
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.query import queries
from .interface import Row

_COLUMNS = ("job_id", "name", "workdir", "state", "attempt", "lease")


class _Output(NamedTuple):
    """A job, and the file of it that is read."""

    attempt: int
    path: str  # of the output or the file now
    renewed: str  # the path from which the outputs of earlier attempts were put aside, as `.N`; "" for other files


def read(db: Database, places: Sequence[Sequence[int]], file: str, lines: int) -> list[Row]:
    """Return a piece for each job, as `interface.SiteInterface.outputs` specifies.

    Raises:
        InputError: `file` is not in the working directory.
    """
    with db.read() as cx:  # before the files: a job that has ended writes no more
        found = queries.columns_of(cx, [place[0] for place in places], _COLUMNS)
    return [
        _row(db, number, dict(zip(_COLUMNS, found[number])), place, file, lines) for number, *place in places if number in found
    ]


def _row(db: Database, number: int, columns: dict[str, Any], place: Sequence[int], file: str, lines: int) -> Row:
    directory = os.path.join(db.directory, directories.DATA, columns["workdir"])
    output = field_specs.output_name(columns["name"])
    path = job_files.path_of(directory, file or output, output, columns["job_id"])
    if path is None:
        raise InputError(f"{file} is not in the job's working directory.", hint="Name a file below it, such as out/run.log.")
    is_output = not file or os.path.normpath(file) == output
    job = _Output(columns["attempt"], path, os.path.join(directory, output) if is_output else "")
    error, data = "", b""
    try:
        data, place = _next(job, place) if place else _first(job, lines)
    except FileNotFoundError:
        error = f"there is no {path} yet"
    except OSError as exc:
        error = f"{path} cannot be read: {exc.strerror}"
    return {
        **{name: columns[name] for name in ("job_id", "name", "state", "attempt")},
        "id": number,
        "path": path,
        "has_ended": columns["state"] in states.END_STATES and columns["lease"] is None,
        "place": [number, *place],
        "data": b64encode(data).decode(),
        "error": error,
    }


def _first(job: _Output, lines: int) -> tuple[bytes, list[int]]:
    """Return the last lines, and the place after them."""
    data, after = growing_file.read_on(job.path, growing_file.place_of_last_lines(job.path, lines))
    return data, [job.attempt, *after]


def _next(job: _Output, place: Sequence[int]) -> tuple[bytes, list[int]]:
    """Return the piece at a place, which is (attempt, inode, offset), and the place after it."""
    attempt, at = place[0], Place(*place[1:])
    old = job_files.path_of_inode(job.path, at.inode)
    if old is None and job.renewed:
        old = job_files.path_of_inode(job.renewed, at.inode)
    if old is not None:
        data, after = growing_file.read_on(old, at)
        if data or old == job.path:
            is_same = job.renewed and at.offset > 0  # an empty output is not renewed
            return data, [attempt if is_same else job.attempt, *after]
    later, path = job.attempt, job.path
    for number in range(attempt + 1, job.attempt) if job.renewed else ():
        if os.path.lexists(f"{job.renewed}.{number}"):
            later, path = number, f"{job.renewed}.{number}"
            break
    data, after = growing_file.read_on(path, growing_file.NOWHERE)
    return data, [later, *after]
