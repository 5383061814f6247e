"""What an importer is given, and what it returns."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any, NamedTuple

from ...core.errors import InvalidSpec
from ...db.store.merge import ForeignJob, Origin


class SourceOptions(NamedTuple):
    """What a source does not tell itself."""

    directory: str = ""  # of the old DB, or in which the jobs ran; "": as the kind of source has it
    workflow: str = ""  # of jobs that have none
    zone: tzinfo | None = None  # of times without one; None: UTC
    copies_files: bool = False  # else jobs keep the directories in which they ran


class SourceContent(NamedTuple):
    """What a source has, for `merge.merge`."""

    jobs: Iterable[ForeignJob]
    apps: Sequence[Mapping[str, Any]]
    origin: Origin
    total: int  # jobs, or a little more


def zone_of(name: str) -> tzinfo | None:
    """Return a time zone by its name; None for "". Raises InvalidSpec: there is none."""
    if not name:
        return None
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise InvalidSpec(
            f"There is no time zone {name!r}.", hint="For example UTC, Europe/Berlin or America/Chicago."
        ) from None


def origin_of(kind: str, path: str, directory: str = "", host: str = "") -> Origin:
    """Return the origin of jobs that come from a file."""
    try:
        written = int(os.stat(path).st_mtime * 1e6)
    except OSError:
        written = None
    return Origin(kind, os.path.abspath(path) if written is not None else path, host, directory, "", written)
