"""Links to the files of parents, in the working directory of their child."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

from ...core import job_files
from ...core.errors import StagingFailed
from ...core.field_specs import output_name
from .files import Glob, explained, globs, is_directory, is_same, part_name, shown


class Parent(NamedTuple):
    """A parent job whose files are to be linked."""

    job_id: str
    name: str
    workdir: str


def link_inputs(workdir: str, child_name: str, parents: Sequence[Parent], patterns: str) -> int:
    """Link matching files in the working directories of `parents` (in the order of the edges) into that of their child.

    Files and directories get links under their basenames, those found through `**` under their path in the parent's
    directory. If the name is taken, or is one that Balsam writes to, the link is called `<name>_<id8 of the parent>`, and
    then `<name>_<id8>.2` and so on. Balsam's logs are never linked, and the parent's output only by a pattern more specific
    than `*`. Calling this again changes nothing.

    Returns:
        The number of links that exist now.

    Raises:
        StagingFailed: a pattern is invalid, matches in no parent (unless it is `*`, `**` or `**/*`), or links cannot be made.
    """
    if not parents:
        return 0
    with explained(f"the parents' files cannot be linked into {shown(workdir)}"):
        wanted = globs(patterns)
        parents = [parent._replace(workdir=os.path.abspath(parent.workdir)) for parent in parents]
        found = [(parent, glob, _inputs(parent, glob)) for parent in parents for glob in wanted]
        _check_that_none_is_missing(wanted, parents, {glob for _, glob, paths in found if paths})
        links = _Links(workdir, output_name(child_name), parents)
        for parent, glob, paths in found:
            for path, target in paths.items():
                links.add(parent, path, target, path if glob.is_deep else os.path.basename(path))
        return len(links.made)


def _inputs(parent: Parent, glob: Glob) -> dict[str, str]:
    """Return the matching paths in the parent's directory and the link targets, without Balsam's logs and broken links."""
    output = output_name(parent.name) if glob.is_bare else ""
    found = {}
    for path in glob.expand(parent.workdir):
        if not (_is_log(path) or (output and _is_attempt(path, output))):
            target = _without_detour(_place_of(parent, path))
            if target is not None:
                found[path] = target
    return found


def _place_of(parent: Parent, path: str) -> str:
    """Return the path of a parent's file; another job in the same directory may have renamed the parent's output."""
    if path == output_name(parent.name):
        is_generated = job_files.is_generated(parent.workdir, parent.job_id)
        return job_files.find(parent.workdir, path, parent.job_id, is_generated)
    return os.path.join(parent.workdir, path)


def _check_that_none_is_missing(wanted: list[Glob], parents: Sequence[Parent], matched: set[Glob]) -> None:
    for glob in wanted:
        if not glob.is_bare and glob not in matched:
            names = ", ".join(f"{shown(parent.name)} ({shown(parent.workdir)})" for parent in parents)
            raise StagingFailed(f"missing parent file: {shown(glob.text)} matches nothing of {names}")


def _without_detour(path: str) -> str | None:
    """Return the target of an absolute link, else the path: in a chain of jobs, links to links would soon be too many.

    Return None for a broken link.
    """
    try:
        target = os.readlink(path)
    except OSError:  # no link
        return path
    if not os.path.exists(path):
        return None
    return target if os.path.isabs(target) else path


def _is_log(name: str) -> bool:
    return _is_attempt(name, "preprocess.log") or _is_attempt(name, "postprocess.log")


def _is_attempt(name: str, output: str) -> bool:
    """Return whether the name is that of the output file, or that of an earlier attempt: `<output>.<number>`."""
    return name.startswith(output) and (name == output or (name[len(output)] == "." and name[len(output) + 1 :].isdigit()))


class _Links:
    """The links to parents' files in one working directory."""

    def __init__(self, workdir: str, output: str, parents: Sequence[Parent]) -> None:
        self._workdir = os.path.abspath(workdir)
        self._output = output
        self._parents = tuple(f"{parent.workdir}/" for parent in parents)
        self._same = {parent.workdir for parent in parents if is_same(parent.workdir, workdir)}
        self.made: dict[str, str] = {}  # name: target

    def add(self, parent: Parent, path: str, target: str, name: str) -> None:
        """Link to `target`, which is `path` in the directory of `parent`, as `name` if that is free."""
        if parent.workdir in self._same or f"{self._workdir}/".startswith(f"{target}/"):
            return  # the link exists; or the target is a directory that contains the child's
        mark = parent.job_id[:8]
        folder, leaf = os.path.split(name)
        place = self._folder(parent.workdir, folder, mark) if folder else ""
        if place is not None:
            next(candidate for candidate in _names(os.path.join(place, leaf), mark) if self._place(candidate, target))

    def _place(self, name: str, target: str) -> bool:
        """Make that link unless the name is taken. Return whether the link exists now."""
        if name in self.made:
            return self.made[name] == target
        if self._is_balsams(name):
            return False
        path = os.path.join(self._workdir, name)
        try:
            os.symlink(target, path)
        except FileExistsError:
            if not os.path.islink(path):
                return False
            old = os.readlink(path)
            if old != target:
                if os.path.exists(path) and not old.startswith(self._parents):
                    return False  # the user's
                _replace_link(target, path)
        self.made[name] = target
        return True

    def _folder(self, root: str, folder: str, mark: str) -> str | None:
        """Make the directory for links to files in `folder` of `root`. Return None if `folder` itself is linked already."""
        made = source = ""
        for part in folder.split("/"):
            source = os.path.join(source, part)
            for name in _names(os.path.join(made, part), mark):
                path = os.path.join(self._workdir, name)
                if os.path.islink(path) and os.readlink(path) == _without_detour(os.path.join(root, source)):
                    return None
                if not self._is_balsams(name) and _made_directory(path):
                    made = name
                    break
        return made

    def _is_balsams(self, name: str) -> bool:
        """Return whether Balsam writes to that name: through a link it would be the parent's file."""
        return _is_attempt(name, self._output) or _is_log(name)


def _names(name: str, mark: str) -> Iterator[str]:
    """Yield names for a link, best first."""
    yield name
    yield f"{name}_{mark}"
    yield from (f"{name}_{mark}.{number}" for number in count(2))


def _made_directory(path: str) -> bool:
    """Make a directory if it is missing. Return whether it exists now and is not a link."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return is_directory(path)
    return True


def _replace_link(target: str, path: str) -> None:
    fresh = os.path.join(os.path.dirname(path), part_name())
    os.symlink(target, fresh)
    os.replace(fresh, path)
