"""Remove the working directories of jobs that are removed: only those below `data/` that no other job has or needs."""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from ..db.engine import directories
from ..db.engine.connection import Connection, Database
from ..db.engine.schema import OWN_WORKDIR
from ..db.query import queries

#: Maximum number of errors to report.
_MAX_ERRORS = 5


def of_jobs(db: Database, jobs: Sequence[int], unheld: Sequence[int]) -> dict[str, Any]:
    """Return what to remove: {"paths": relative to `data/`, and the numbers of jobs whose directory stays, by the reason}.

    A directory stays that another job has or has its own below, that is outside of `data/`, or in which a launcher may still
    stop a run.
    """
    with db.read() as cx:
        found = {number: row[0] for number, row in queries.columns_of(cx, jobs, ("workdir",)).items()}
        free, gone = set(unheld), set(found)
        stays: Counter[str] = Counter()
        paths: dict[str, int] = {}
        for number, workdir in found.items():
            if os.path.isabs(workdir):
                stays["outside"] += 1
            elif number not in free:
                stays["running"] += 1
            else:
                paths[os.path.normpath(workdir)] = number
        # Below a generated directory only one that was chosen can be: then the few of these are read, else all.
        is_generated = all(path.endswith(found_id[:8]) for path, found_id in _ids(cx, paths))
        few = f"job INDEXED BY job_own_workdir WHERE {OWN_WORKDIR}" if is_generated else "job"
        for number, workdir in cx.execute(f"SELECT id, workdir FROM {few}"):
            if number in gone and number in free:
                continue
            for path in _with_ancestors(os.path.normpath(workdir)):
                if paths.pop(path, None) is not None:
                    stays["shared"] += 1
    return {"paths": sorted(paths), **stays}


def _ids(cx: Connection, paths: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield each directory with the UUID of its job."""
    ids = queries.columns_of(cx, list(paths.values()), ("job_id",))
    return ((path, ids[number][0]) for path, number in paths.items())


def _with_ancestors(path: str) -> Iterator[str]:
    while path and path != "/":
        yield path
        path = os.path.dirname(path)


def remove(db: Database, chosen: dict[str, Any]) -> dict[str, Any]:
    """Remove these directories, without following links. Return how many there were, their bytes, and the first errors.

    Goes on after errors. Directories of workflows that are empty then are removed, too.
    """
    data = os.path.realpath(os.path.join(db.directory, directories.DATA))
    errors: list[str] = []
    counted = Counter({name: number for name, number in chosen.items() if name != "paths"})
    for relative in chosen["paths"]:
        path = os.path.join(data, relative)
        if os.path.realpath(path) != path:  # it, or a directory above it, is a link
            counted["outside"] += os.path.lexists(path)
            continue
        if not os.path.lexists(path):
            continue
        size = _bytes_below(path)
        failed: list[str] = []

        def note(function: object, at: str, info: Any, failed: list[str] = failed) -> None:
            failed.append(f"{at}: {getattr(info[1], 'strerror', None) or info[1]}")

        shutil.rmtree(path, onerror=note)
        if failed:
            errors += failed[:1]
            continue
        counted["removed"] += 1
        counted["bytes"] += size
        _remove_empty(os.path.dirname(path), data)
    return {
        **{name: counted[name] for name in ("removed", "bytes", "shared", "outside", "running")},
        "failed": len(errors),
        "errors": errors[:_MAX_ERRORS],
    }


def _bytes_below(path: str) -> int:
    """Return the bytes that files below a directory take on the disk."""
    total = 0
    for top, _, names in os.walk(path, onerror=lambda exc: None):
        for name in names:
            try:
                found = os.lstat(os.path.join(top, name))
            except OSError:
                continue
            total += found.st_blocks * 512 if stat.S_ISREG(found.st_mode) else 0
    return total


def _remove_empty(path: str, data: str) -> None:
    while path != data:
        try:
            os.rmdir(path)
        except OSError:  # another job's directory is there
            return
        path = os.path.dirname(path)
