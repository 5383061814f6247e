"""Copies of files into a job's working directory and out of it.

All functions may run in any thread: they use only their arguments, never change the process's directory, and start programs
(`scp`, `rsync`, `ssh`) through the caller's `Run`. A copy gets its final name only when it is complete.

Places are written as

- `/path` or `~/path`, with or without `local:` before it; where a job is made or changed, relative paths are made absolute
  against the current directory (those of older DBs start at the job's working directory);
- `file:///path`, percent-decoded;
- `scp:[user@]host:path` and `rsync:[user@]host:path`; a relative path starts at the user's home there;
- `scp://[user@]host[:port]/path` and `rsync://…` likewise (over ssh, never a daemon), percent-decoded. The path is absolute
  however many slashes follow the host; `/~/path` starts at the home.

Links that are given or matched themselves are followed. Those inside a directory stay links in local copies; scp and rsync
follow them, and fail at one that leads nowhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import unquote

from ...core.errors import StagingFailed
from . import remote
from .files import (
    MAGIC,
    Cancelled,
    contains,
    copy_all,
    explained,
    globs,
    is_same,
    matching,
    part_of,
    parts_of,
    publish_all,
    shown,
    stop_if,
)
from .remote import Remote, Run


def stage_in(url: str, workdir: str, run: Run, cancelled: Cancelled) -> int:
    """Copy the files that `url` names, possibly by globs, into the working directory, with modes and times.

    `/dir` copies the directory itself, `/dir/*` its contents. A file of the same name is replaced, directories are merged.

    Returns:
        The number of copied files and directories.

    Raises:
        StagingFailed: nothing matches, or it cannot be copied; or `cancelled()`. Nothing incomplete is left.
    """
    with explained(f"stage-in from {shown(url)} failed"):
        place = _place_of(url, workdir)
        if isinstance(place, str):
            return copy_all(_by_name(_local_sources(place, workdir)), workdir, cancelled)
        if place.path in ("/", "./"):
            raise StagingFailed("it names no file or directory")
        if "[" in place.path and remote.exists(place, workdir, run, cancelled):
            place = place.literal()
        with part_of(workdir) as part:
            remote.call(place.download(part), workdir, run, cancelled)
            stop_if(cancelled)
            return publish_all(part, workdir)


def _local_sources(path: str, workdir: str) -> Iterator[str]:
    """Yield the files and directories that a path with globs names."""
    found = _expand_path(path)
    for source in found:
        if not os.path.exists(source):
            raise StagingFailed(f"{shown(source)} is a link that leads nowhere")
        if contains(source, workdir):
            raise StagingFailed(f"{shown(source)} cannot be copied into itself: the working directory is {shown(workdir)}")
        yield source
    if not found:
        raise StagingFailed(f"nothing matches {shown(path)}" if MAGIC.search(path) else f"there is no {shown(path)}")


def _expand_path(path: str) -> list[str]:
    if os.path.lexists(path):  # with any characters in its name
        return [os.path.normpath(path)]
    return [os.path.join("/", found) for found in matching("/", parts_of(path))]


# --- taking away ------------------------------------------------------------------------------------------------------


class StagedOut(NamedTuple):
    """The result of a stage-out."""

    number: int  # of files and directories that were copied
    unmatched: tuple[str, ...]  # the words that match nothing


def stage_out(url: str, patterns: str, workdir: str, run: Run, cancelled: Cancelled) -> StagedOut:
    """Copy the files and directories that match in the working directory to the directory `url`, which is made if missing.

    They get their basenames there. A file of the same name is replaced, directories are merged. Broken links, and files that
    are at the destination already, are skipped. Matching nothing is no failure.

    Raises:
        StagingFailed: two matches have the same name, or they cannot be copied; or `cancelled()`. Nothing incomplete is left.
    """
    with explained(f"stage-out to {shown(url)} failed"):
        place = _place_of(url, workdir)
        found = {glob.text: [os.path.join(workdir, path) for path in glob.expand(workdir)] for glob in globs(patterns)}
        found = {word: [path for path in paths if os.path.exists(path)] for word, paths in found.items()}
        unmatched = tuple(word for word, paths in found.items() if not paths)
        sources = list(dict.fromkeys(path for paths in found.values() for path in paths))
        if isinstance(place, Remote):
            named = _by_name(sources)
            if named:
                remote.upload_all(list(named.values()), place, workdir, run, cancelled)
            return StagedOut(len(named), unmatched)
        named = _by_name(path for path in sources if not (contains(path, place) or _is_at(path, place)))
        if named:
            os.makedirs(place, exist_ok=True)
        return StagedOut(copy_all(named, place, cancelled) if named else 0, unmatched)


def _is_at(path: str, place: str) -> bool:
    """Return whether the copy of `path` in directory `place` would be the file itself."""
    return is_same(path, os.path.join(place, os.path.basename(path)))


def _by_name(paths: Iterable[str]) -> dict[str, str]:
    """Return the paths under their basenames.

    Raises:
        StagingFailed: two have the same.
    """
    named: dict[str, str] = {}
    for path in paths:
        other = named.setdefault(os.path.basename(path), path)
        if other != path:
            raise StagingFailed(f"{shown(other)} and {shown(path)} have the same name, and only one can have it")
    return named


# --- how a place is written -------------------------------------------------------------------------------------------


_FORMS = "a path, local:PATH, file:///PATH, scp:[USER@]HOST:PATH or rsync:[USER@]HOST:PATH"


def _place_of(url: str, workdir: str) -> str | Remote:
    """Return the local path, absolute, or the remote one.

    Raises:
        StagingFailed: it is written in no known way.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme in ("scp", "rsync"):
        return remote.parse(scheme, rest)
    if colon and scheme == "file":
        path = unquote(re.sub(r"\A//(localhost(?=/))?(?=/)", "", rest), errors="surrogateescape")
        if not path.startswith("/") or (path == rest and rest.startswith("//")):
            raise StagingFailed("a file: place is written file:///PATH")
    elif scheme != "local" and re.match(r"gsiftp:|[A-Za-z][\w+.-]*://", url):
        raise StagingFailed(f"{scheme}: is not supported; write {_FORMS}")
    else:
        path = url.removeprefix("local:")
    if not path or "\0" in path:
        raise StagingFailed(f"it names no path; write {_FORMS}")
    return os.path.join(os.path.abspath(workdir), os.path.expanduser(path))
