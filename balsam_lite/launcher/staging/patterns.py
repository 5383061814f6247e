"""Patterns for paths in a directory, read as shells do, with `**`. A word that names an existing path exactly is that path."""

from __future__ import annotations

import fnmatch
import os
import re
from typing import NamedTuple

from ...core.errors import StagingFailed
from ...core.field_specs import split_command
from .files import PART, is_directory, shown

MAGIC = re.compile(r"[*?[]")


class Glob(NamedTuple):
    """A path or pattern in a directory, read as shells do: `**` is any number of directories, `*` no hidden name."""

    text: str
    parts: tuple[str, ...]

    @property
    def is_bare(self) -> bool:
        """Return whether it matches everything."""
        return self.text in ("*", "**", "**/*")

    @property
    def is_deep(self) -> bool:
        """Return whether its matches keep their paths."""
        return "**" in self.parts

    def expand(self, directory: str) -> list[str]:
        """Return the paths below `directory` that match; what is below a directory that matches by `**` is part of that."""
        return matching(directory, self.parts)


def globs(patterns: str) -> list[Glob]:
    """Return the words of `patterns`, without repetitions.

    Raises:
        StagingFailed: one of them is no relative pattern.
    """
    try:
        words = split_command(patterns)
    except ValueError as exc:
        raise StagingFailed(f"the patterns {shown(patterns)} cannot be split into words: {exc}") from None
    for word in words:
        if os.path.isabs(word) or ".." in word.split("/"):
            raise StagingFailed(f"the pattern {shown(word)} leads out of the working directory")
        if not parts_of(word):
            raise StagingFailed(f"the pattern {shown(word)!r} names no file")
    return [Glob(word, parts_of(word)) for word in dict.fromkeys(words)]


def parts_of(pattern: str) -> tuple[str, ...]:
    """Return its components. One `**` after another adds nothing, and one at the end means all that is there."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part not in ("", ".") and parts[-1:] + [part] != ["**", "**"]:
            parts.append(part)
    return (*parts, "*") if parts[-1:] == ["**"] else tuple(parts)


def matching(directory: str, parts: tuple[str, ...]) -> list[str]:
    """Return the paths below `directory` that match, sorted in each directory.

    A component such as `res[T=300]` that exists exactly so is that name; else it is a pattern. `*` is always a pattern.
    """
    part, rest = parts[0], parts[1:]
    if part == "**":
        return _matching_anywhere(directory, rest)
    if not MAGIC.search(part) or (part != "*" and os.path.lexists(os.path.join(directory, part))):
        names = [part] if rest or os.path.lexists(os.path.join(directory, part)) else []
    else:
        names = [name for name in _visible(directory, part) if fnmatch.fnmatchcase(name, part)]
    names = [name for name in names if not name.startswith(PART)]
    if not rest:
        return names
    return [os.path.join(name, path) for name in names for path in matching(os.path.join(directory, name), rest)]


def _matching_anywhere(directory: str, parts: tuple[str, ...]) -> list[str]:
    """Return what matches in `directory` or a directory below it that does not match itself; links are not entered."""
    here = matching(directory, parts)
    found = dict.fromkeys(here)
    for name in _visible(directory, "*"):
        below = os.path.join(directory, name)
        if name not in here and is_directory(below):
            found.update((os.path.join(name, path), None) for path in _matching_anywhere(below, parts))
    return list(found)


def _visible(directory: str, part: str) -> list[str]:
    """Return the names in it that a component may match: hidden ones only if it starts with a dot; none in a file."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(names if part.startswith(".") else [name for name in names if not name.startswith(".")])
