"""The kinds of sources that `balsam import --from` reads."""

from __future__ import annotations

from collections.abc import Callable

from ...core.errors import InvalidSpec, did_you_mean
from .source_content import SourceContent, SourceOptions


def read(kind: str, path: str, options: SourceOptions) -> SourceContent:
    """Return the content of a source of that kind. The jobs are read while they are iterated.

    Raises:
        InvalidSpec: there is no such kind, or the source cannot be read; also while jobs are iterated.
    """
    return reader_of(kind)(path, options)


def reader_of(kind: str) -> Callable[[str, SourceOptions], SourceContent]:
    """Return the function that reads sources of that kind. Raises InvalidSpec: there is no such kind."""
    if kind == "joblog":
        from . import joblog

        return joblog.read
    if kind == "balsam03":
        from . import balsam03

        return balsam03.read
    raise InvalidSpec(f"There is no kind of source {kind!r}.{did_you_mean(kind, KINDS)}", hint=f"Known are: {', '.join(KINDS)}")


#: Kind -> what it is, for the help text.
KINDS = {
    "balsam03": "a DB of Balsam 0.3: its directory, a postgresql:// URL, an SQLite file, or the JSON of Django's dumpdata",
    "joblog": "the file that GNU parallel writes with --joblog",
}
