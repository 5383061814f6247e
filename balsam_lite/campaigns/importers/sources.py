"""The kinds of sources that `balsam import --from` reads, and their import."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from ...core.errors import InputError, InvalidSpec, did_you_mean
from ...db.engine.connection import Database
from ...db.engine.directories import DATA
from ...db.store.large_writes import Progress
from ...db.store.merge import Merged, MergeOptions, PlaceFiles, merge
from .source_content import SourceContent, SourceOptions

#: Kind -> what it is, for the help text.
KINDS = {
    "balsam03": "a DB of Balsam 0.3: its directory, a postgresql:// URL, an SQLite file, or the JSON of Django's dumpdata",
    "joblog": "the file that GNU parallel writes with --joblog",
}


def import_source(
    db: Database,
    kind: str,
    path: str,
    source: SourceOptions = SourceOptions(),
    options: MergeOptions = MergeOptions(),
    progress_of: Callable[[int], AbstractContextManager[Progress | None]] = lambda total: nullcontext(),
) -> Merged:
    """Merge the jobs of a source into a DB that is at work, all or nothing; see `store.merge`.

    Args:
        progress_of: takes a number of steps; its context gives what to call with each further number done.

    Raises:
        InvalidSpec: there is no such kind. InputError: the source, or the files of its jobs, cannot be read; a directory is in
        the way. What `merge` raises.
    """
    content = read(kind, path, source)
    copy = _copying(db.directory) if source.copies_files else None
    with progress_of(2 * content.total) as progress:
        return merge(db, content.jobs, content.origin, content.apps, options, place_files=copy, progress=progress)


def read(kind: str, path: str, options: SourceOptions) -> SourceContent:
    """Return the content of a source of that kind. The jobs are read while they are iterated.

    Raises:
        InvalidSpec: there is no such kind. InputError: the source cannot be read; also while the jobs are iterated.
    """
    if kind == "joblog":
        from . import joblog

        return joblog.read(path, options)
    if kind == "balsam03":
        from . import balsam03

        return balsam03.read(path, options)
    raise InvalidSpec(f"There is no kind of source {kind!r}.{did_you_mean(kind, KINDS)}", hint=f"Known are: {', '.join(KINDS)}")


def _copying(directory: str) -> PlaceFiles:
    """Return the function that copies the directories of the jobs of a DB."""

    def copy(folders: Mapping[str, str], touch: Callable[[], None]) -> None:
        made: list[str] = []
        try:
            for source, here in folders.items():
                target = os.path.join(directory, DATA, here)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.mkdir(target)
                made.append(target)
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
                touch()
        except BaseException as exc:
            for target in made:
                shutil.rmtree(target, ignore_errors=True)
            if isinstance(exc, OSError):  # shutil.Error is one
                raise InputError(f"The files of the jobs cannot be copied; nothing was added: {exc}") from exc
            raise

    return copy
