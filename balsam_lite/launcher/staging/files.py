"""Inspect files, and copy them so that they get their final names only when they are complete.

`explained` turns each error into one sentence, a StagingFailed.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable, NamedTuple

from ...core.errors import StagingFailed
from ...core.field_specs import split_command

#: Whether to stop; asked between files.
Cancelled = Callable[[], bool]

#: Prefix of the names of incomplete files; no pattern ever matches these.
PART = ".balsam-part-"


def copy_all(sources: dict[str, str], directory: str, cancelled: Cancelled) -> int:
    """Copy sources, given as name -> path, into a directory. Return their number."""
    with part_of(directory) as part:
        for name, source in sources.items():
            _copy(source, os.path.join(part, name), cancelled)
        return publish_all(part, directory)


def _copy(source: str, target: str, cancelled: Cancelled) -> None:
    """Copy a file or a directory, or the target of a link, with modes and times; links inside a directory stay links."""
    stop_if(cancelled)
    if os.path.isdir(source):
        os.mkdir(target)
        for name in os.listdir(source):
            inner, copy = os.path.join(source, name), os.path.join(target, name)
            if os.path.islink(inner):
                os.symlink(os.readlink(inner), copy)
            elif not name.startswith(PART):
                _copy(inner, copy, cancelled)
        shutil.copystat(source, target)
    elif os.path.isfile(source):
        shutil.copy2(source, target)
    else:  # a pipe would wait for ever, a device might have no end
        raise StagingFailed(f"{shown(source)} is neither a file nor a directory, or has just been removed")


@contextmanager
def part_of(directory: str) -> Iterator[str]:
    """Yield a hidden directory in `directory` for incomplete files, and remove it with its remaining contents at the end."""
    path = os.path.join(directory, part_name())
    os.mkdir(path)
    try:
        yield path
    finally:
        _remove(path)


def part_name() -> str:
    return f"{PART}{os.urandom(8).hex()}"


def publish_all(part: str, directory: str) -> int:
    """Move all entries of `part` into `directory`. Return their number."""
    names = os.listdir(part)
    for name in names:
        _publish(os.path.join(part, name), os.path.join(directory, name))
    return len(names)


def _publish(source: str, target: str) -> None:
    """Rename over a file or link; merge the contents of `source` into a directory that exists already."""
    if not is_directory(source):
        os.replace(source, target)
        return
    if os.path.islink(target):
        os.unlink(target)  # as a file; its target may belong to a parent
    mode = stat.S_IMODE(os.stat(source).st_mode)
    os.chmod(source, mode | stat.S_IRWXU)  # a directory that cannot be written cannot be moved, either
    try:
        os.rename(source, target)
    except OSError:
        if not is_directory(target):
            raise
        publish_all(source, target)
    else:
        os.chmod(target, mode)


def _remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if os.path.exists(directory):  # it holds directories that cannot be written
        for folder, _, _ in os.walk(directory):
            os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(directory, ignore_errors=True)


# --- looking, and saying what is wrong --------------------------------------------------------------------------------


def is_directory(path: str) -> bool:
    """Return whether the path is a directory, and not a link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def is_same(one: str, other: str) -> bool:
    """Return whether both paths exist and are the same file or directory."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def contains(directory: str, path: str) -> bool:
    """Return whether `path` is `directory` or below it."""
    root = os.path.join(os.path.realpath(directory), "")
    return os.path.join(os.path.realpath(path), "").startswith(root)


def stop_if(cancelled: Cancelled) -> None:
    if cancelled():
        raise StagingFailed("it was interrupted")


@contextmanager
def explained(task: str) -> Iterator[None]:
    """Convert every error into a StagingFailed whose message starts with the task."""
    try:
        yield
    except StagingFailed as exc:
        raise StagingFailed(f"{task}: {exc.message}") from exc.__cause__
    except OSError as exc:
        paths = " to ".join(
            shown(os.fsdecode(path)) for path in (exc.filename, exc.filename2) if isinstance(path, (str, bytes))
        )
        reason = exc.strerror or str(exc)
        raise StagingFailed(f"{task}: {reason}: {paths}" if paths else f"{task}: {reason}") from exc


def shown(text: str) -> str:
    """Return the text, or its repr if it contains newlines or invalid Unicode.

    >>> shown("a b"), shown("a" + chr(10))
    ('a b', "'a\\\\n'")
    """
    return text if text.isprintable() else repr(text)


# --- patterns for paths in a directory, read as shells do, with `**`; a word that names an existing path exactly is that path

MAGIC = re.compile(r"[*?[]")


class Glob(NamedTuple):
    """A path or pattern in a directory, read as shells do: `**` is any number of directories, `*` no hidden name."""

    text: str
    parts: tuple[str, ...]

    @property
    def is_bare(self) -> bool:
        """Return whether the pattern matches everything."""
        return self.text in ("*", "**", "**/*")

    @property
    def is_deep(self) -> bool:
        """Return whether the matches keep their paths."""
        return "**" in self.parts

    def expand(self, directory: str) -> list[str]:
        """Return the matching paths below `directory`; a directory that matches by `**` includes everything below it."""
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
    """Return the components of a pattern. Repeated `**` are merged, and one at the end matches everything there."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part not in ("", ".") and parts[-1:] + [part] != ["**", "**"]:
            parts.append(part)
    return (*parts, "*") if parts[-1:] == ["**"] else tuple(parts)


def matching(directory: str, parts: tuple[str, ...]) -> list[str]:
    """Return the paths below `directory` that match, sorted in each directory.

    A component such as `res[T=300]` is a plain name if that name exists; else it is a pattern. `*` is always a pattern.
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
    """Return the matches in `directory` and in directories below it that do not match themselves; does not follow links."""
    here = matching(directory, parts)
    found = dict.fromkeys(here)
    for name in _visible(directory, "*"):
        below = os.path.join(directory, name)
        if name not in here and is_directory(below):
            found.update((os.path.join(name, path), None) for path in _matching_anywhere(below, parts))
    return list(found)


def _visible(directory: str, part: str) -> list[str]:
    """Return the names in a directory that `part` may match: hidden ones only if it starts with a dot; none for a file."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(names if part.startswith(".") else [name for name in names if not name.startswith(".")])
