"""Files on their way: from parents' working directories by links, from and to other places by copies.

Everything here may run in any thread: it knows only what it is given, never changes the process's directory, and starts
programs (`scp`, `rsync`, `ssh`) through the caller's `Run`. What is copied gets its final name only when it is complete.

Places are written as

- `/path`, `~/path` or `path`, with or without `local:` before it; a relative one starts at the job's working directory;
- `file:///path`, percent-decoded;
- `scp:[user@]host:path` and `rsync:[user@]host:path`; a relative path starts at the user's home there;
- `scp://[user@]host[:port]/path` and `rsync://…` likewise (over ssh, never a daemon), percent-decoded. The path is absolute
  however many slashes follow the host; `/~/path` starts at the home.

Links that are given or matched themselves are followed. Those inside a directory stay links in local copies; scp and rsync
follow them, and fail at one that leads nowhere.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Callable, NamedTuple
from urllib.parse import unquote

from ..errors import BalsamError, StagingFailed
from ..spec import output_name, split_command

#: Runs a program without a prompt: (argv, directory) -> (exit code, the last of what it printed). May raise SpawnFailed.
Run = Callable[[Sequence[str], str], tuple[int, str]]
#: Whether to stop; asked between files.
Cancelled = Callable[[], bool]

#: What is not complete has a name that starts so; nothing ever matches it.
PART = ".balsam-part-"

#: Bytes of paths in one command line; the system's limit for all arguments and the environment is about 2 MB.
_COMMAND_LINE = 200_000


class Parent(NamedTuple):
    """A job whose files are wanted."""

    job_id: str
    name: str
    workdir: str


# --- linking ----------------------------------------------------------------------------------------------------------


def link_inputs(workdir: str, child_name: str, parents: Sequence[Parent], patterns: str) -> int:
    """Link what matches in the working directories of `parents` (in the order of the edges) into that of their child.

    Files and directories get links under their basenames, those found through `**` under their path in the parent's
    directory. Where the name is taken, or is one that Balsam writes to, the link is called `<name>_<id8 of the parent>`,
    and then `<name>_<id8>.2` and so on. Balsam's logs are never linked; what the parent printed only by a pattern that
    says more than `*`. Doing it again changes nothing.

    Returns:
        How many links there are now.

    Raises:
        StagingFailed: a pattern is none, matches in no parent (unless it is `*`, `**` or `**/*`), or links cannot be made.
    """
    if not parents:
        return 0
    with _explained(f"the parents' files cannot be linked into {shown(workdir)}"):
        globs = _globs(patterns)
        parents = [parent._replace(workdir=os.path.abspath(parent.workdir)) for parent in parents]
        found = [(parent, glob, _inputs(parent, glob)) for parent in parents for glob in globs]
        _check_that_none_is_missing(globs, parents, {glob for _, glob, paths in found if paths})
        links = _Links(workdir, output_name(child_name), parents)
        for parent, glob, paths in found:
            for path, target in paths.items():
                links.add(parent, path, target, path if glob.is_deep else os.path.basename(path))
        return len(links.made)


def _inputs(parent: Parent, glob: _Glob) -> dict[str, str]:
    """The paths in the parent's directory that match, and what to link to; without Balsam's logs and broken links."""
    output = output_name(parent.name) if glob.is_bare else ""
    found = {}
    for path in glob.expand(parent.workdir):
        if not (_is_log(path) or (output and _is_attempt(path, output))):
            target = _without_detour(os.path.join(parent.workdir, path))
            if target is not None:
                found[path] = target
    return found


def _check_that_none_is_missing(globs: list[_Glob], parents: Sequence[Parent], matched: set[_Glob]) -> None:
    for glob in globs:
        if not glob.is_bare and glob not in matched:
            names = ", ".join(f"{shown(parent.name)} ({shown(parent.workdir)})" for parent in parents)
            raise StagingFailed(f"missing parent file: {shown(glob.text)} matches nothing of {names}")


def _without_detour(path: str) -> str | None:
    """Where an absolute link leads, else the path: in a chain of jobs, links to links would soon be too many.

    None: it is a link that leads nowhere.
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
    """Whether it is that file of Balsam's, or the one that an earlier attempt left: `<output>.<number>`."""
    return name.startswith(output) and (name == output or (name[len(output)] == "." and name[len(output) + 1 :].isdigit()))


class _Links:
    """The links to parents' files in one working directory."""

    def __init__(self, workdir: str, output: str, parents: Sequence[Parent]) -> None:
        self._workdir = os.path.abspath(workdir)
        self._output = output
        self._parents = tuple(f"{parent.workdir}/" for parent in parents)
        self._same = {parent.workdir for parent in parents if _is_same(parent.workdir, workdir)}
        self.made: dict[str, str] = {}  # name: target

    def add(self, parent: Parent, path: str, target: str, name: str) -> None:
        """Link to `target`, which is `path` in the directory of `parent`, as `name` if that is free."""
        if parent.workdir in self._same or f"{self._workdir}/".startswith(f"{target}/"):
            return  # it is there; or it is a directory that the child's is in
        mark = parent.job_id[:8]
        folder, leaf = os.path.split(name)
        place = self._folder(parent.workdir, folder, mark) if folder else ""
        if place is not None:
            next(candidate for candidate in _names(os.path.join(place, leaf), mark) if self._place(candidate, target))

    def _place(self, name: str, target: str) -> bool:
        """Make that link unless something else has the name. True: it is there."""
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
        """Make the directory for links to files in `folder` of `root`. None: all of `folder` is linked already."""
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
        """Whether Balsam writes to that name: through a link it would be the parent's file."""
        return _is_attempt(name, self._output) or _is_log(name)


def _names(name: str, mark: str) -> Iterator[str]:
    """Names for a link, best first."""
    yield name
    yield f"{name}_{mark}"
    yield from (f"{name}_{mark}.{number}" for number in count(2))


def _made_directory(path: str) -> bool:
    """Whether there is a directory now, and no link to one."""
    try:
        os.mkdir(path)
    except FileExistsError:
        return _is_directory(path)
    return True


def _replace_link(target: str, path: str) -> None:
    fresh = os.path.join(os.path.dirname(path), _part_name())
    os.symlink(target, fresh)
    os.replace(fresh, path)


# --- bringing in ------------------------------------------------------------------------------------------------------


def stage_in(url: str, workdir: str, run: Run, cancelled: Cancelled) -> int:
    """Copy what `url` names, which may hold globs, into the working directory; mode and times are kept.

    A directory arrives as one, `/dir/*` brings what is in it. A file of the same name is replaced, directories are merged.

    Returns:
        How many files and directories arrived.

    Raises:
        StagingFailed: nothing matches, or it cannot be copied; or `cancelled()`. Nothing incomplete is left.
    """
    with _explained(f"stage-in from {shown(url)} failed"):
        place = _place_of(url, workdir)
        if isinstance(place, str):
            return _copy_all(_by_name(_local_sources(place, workdir)), workdir, cancelled)
        if place.path in ("/", "./"):
            raise StagingFailed("it names no file or directory")
        with _part_of(workdir) as part:
            _call(place.download(part), workdir, run, cancelled)
            _stop_if(cancelled)
            return _publish_all(part, workdir)


def _local_sources(path: str, workdir: str) -> Iterator[str]:
    """The files and directories that a path with globs names."""
    found = _expand_path(path)
    for source in found:
        if not os.path.exists(source):
            raise StagingFailed(f"{shown(source)} is a link that leads nowhere")
        if _contains(source, workdir):
            raise StagingFailed(f"{shown(source)} cannot be copied into itself: the working directory is {shown(workdir)}")
        yield source
    if not found:
        raise StagingFailed(f"nothing matches {shown(path)}" if _MAGIC.search(path) else f"there is no {shown(path)}")


def _expand_path(path: str) -> list[str]:
    if os.path.lexists(path):  # whatever is in its name
        return [os.path.normpath(path)]
    return [os.path.join("/", found) for found in _matching("/", _parts(path))]


# --- taking away ------------------------------------------------------------------------------------------------------


def stage_out(url: str, patterns: str, workdir: str, run: Run, cancelled: Cancelled) -> int:
    """Copy the files and directories that match in the working directory to the directory `url`, which is made if missing.

    They get their basenames there. A file of the same name is replaced, directories are merged. Links that lead nowhere,
    and what is at the destination already, are left out.

    Returns:
        How many were copied; matching nothing is fine.

    Raises:
        StagingFailed: two matches have one name, or they cannot be copied; or `cancelled()`. Nothing incomplete is left.
    """
    with _explained(f"stage-out to {shown(url)} failed"):
        place = _place_of(url, workdir)
        matches = dict.fromkeys(path for glob in _globs(patterns) for path in glob.expand(workdir))
        sources = [path for path in (os.path.join(workdir, match) for match in matches) if os.path.exists(path)]
        if isinstance(place, _Remote):
            named = _by_name(sources)
            if named:
                _upload(list(named.values()), place, workdir, run, cancelled)
            return len(named)
        named = _by_name(path for path in sources if not (_contains(path, place) or _is_at(path, place)))
        if named:
            os.makedirs(place, exist_ok=True)
        return _copy_all(named, place, cancelled) if named else 0


def _is_at(path: str, place: str) -> bool:
    """Whether its copy in directory `place` would be the file itself."""
    return _is_same(path, os.path.join(place, os.path.basename(path)))


def _by_name(paths: Iterable[str]) -> dict[str, str]:
    """The paths under their basenames.

    Raises:
        StagingFailed: two have the same.
    """
    named: dict[str, str] = {}
    for path in paths:
        other = named.setdefault(os.path.basename(path), path)
        if other != path:
            raise StagingFailed(f"{shown(other)} and {shown(path)} have the same name, and only one can have it")
    return named


# --- other machines ---------------------------------------------------------------------------------------------------


class _Remote(NamedTuple):
    """A place on another machine."""

    program: str  # scp or rsync
    host: str  # user@host as scp and rsync take it
    port: str  # or ""
    path: str  # starts with / or, from the home, with ./: so it is never taken for an option

    def download(self, directory: str) -> list[str]:
        """The command that copies it into a local directory."""
        path = _escaped(self.path) if self.program == "scp" else self.path
        return [*self._copying(), f"{self.host}:{path}", os.path.join(directory, "")]

    def upload(self, sources: Sequence[str]) -> list[str]:
        """The command that copies local files and directories into it."""
        # Before OpenSSH 9 a remote shell splits the path; then one with blanks fails. From 9 on, quoting it would fail.
        return [*self._copying(), *sources, f"{self.host}:{os.path.join(self.path, '')}"]

    def ssh(self, *words: str) -> list[str]:
        """A command that runs `words` there."""
        host = self.host.replace("[", "").replace("]", "")
        return [*self._ssh(), "--", host, shlex.join(words)]

    def _ssh(self) -> list[str]:
        return ["ssh", "-o", "BatchMode=yes", *(["-p", self.port] if self.port else [])]

    def _copying(self) -> list[str]:
        if self.program == "scp":
            # Not -q: that would silence the reason, too. There is no progress to see without a terminal.
            return ["scp", "-B", "-r", "-p", *(["-P", self.port] if self.port else []), "--"]
        # -I: a file of the same size and second is not the same file. -s: the path goes as it is, past the remote shell.
        return ["rsync", "-a", "-I", "-L", "-s", "-e", " ".join(self._ssh()), "--"]


def _escaped(path: str) -> str:
    """The path for `scp host:path`, where sftp's globs and (before OpenSSH 9) a shell read it: a backslash suits both."""
    return re.sub(r"([^\w@%+=:,./~*?\[\]^!-])", r"\\\1", path)


#: Moves all out of the directory $1 into that above it, then removes $1. Without `!` and newlines, for the sake of csh.
_PUBLISH = (
    'cd -- "$1" || exit; '
    "for f in * .*; do "
    'case "$f" in .|..) continue;; esac; [ -e "$f" ] || continue; '
    'if [ -d "$f" ] && [ -d "../$f" ]; then '
    'find "$f" -type d -exec sh -c \'for d; do mkdir -p -- "../$d" || exit; done\' sh {} + && '
    'find "$f" -type f -exec sh -c \'for x; do mv -f -- "$x" "../$x" || exit; done\' sh {} + || exit; '
    'elif [ -d "../$f" ]; then echo "$f is a directory there and a file here" >&2; exit 1; '
    'elif [ -d "$f" ] && [ -e "../$f" ]; then echo "$f is a file there and a directory here" >&2; exit 1; '
    'else mv -f -- "$f" "../$f" || exit; fi; '
    'done; cd .. && rm -rf -- "$1"'
)


def _upload(sources: list[str], place: _Remote, workdir: str, run: Run, cancelled: Cancelled) -> None:
    if place.program == "rsync":  # which itself writes under other names and renames
        _call(place.ssh("mkdir", "-p", "--", place.path), workdir, run, cancelled)
        _upload_to(place, sources, workdir, run, cancelled)
        return
    part = place._replace(path=os.path.join(place.path, _part_name()))
    try:
        _call(part.ssh("mkdir", "-p", "--", part.path), workdir, run, cancelled)
        _upload_to(part, sources, workdir, run, cancelled)
        _call(part.ssh("sh", "-c", _PUBLISH, "sh", part.path), workdir, run, cancelled)
    except StagingFailed:
        _try_to_remove(part, workdir, run)
        raise


def _upload_to(place: _Remote, sources: list[str], workdir: str, run: Run, cancelled: Cancelled) -> None:
    batch: list[str] = []
    room = _COMMAND_LINE
    for source in sources:
        room -= len(os.fsencode(source))
        if batch and room < 0:
            _call(place.upload(batch), workdir, run, cancelled)
            batch, room = [], _COMMAND_LINE
        batch.append(source)
    _call(place.upload(batch), workdir, run, cancelled)


def _try_to_remove(part: _Remote, workdir: str, run: Run) -> None:
    try:
        run(part.ssh("rm", "-rf", "--", part.path), workdir)
    except (BalsamError, OSError):  # what made the upload fail stands in the way of this, too
        pass


def _call(argv: list[str], workdir: str, run: Run, cancelled: Cancelled) -> None:
    """Run a program to its end.

    Raises:
        StagingFailed: with its words, if it is not there or fails.
    """
    _stop_if(cancelled)
    try:
        code, output = run(argv, workdir)
    except BalsamError as exc:
        raise StagingFailed(f"{argv[0]} cannot be run: {exc.message}") from exc
    except OSError as exc:
        raise StagingFailed(f"{argv[0]} cannot be run: {exc.strerror or exc}") from exc
    if code:
        _stop_if(cancelled)
        words = "; ".join([line.strip() for line in output.splitlines() if line.strip()][-3:])
        raise StagingFailed(f"{argv[0]} ended with code {code}: {words or 'it said nothing'}")


# --- places -----------------------------------------------------------------------------------------------------------

_HOST = r"(?P<host>(?:[^/:@]+@)?(?:\[[\w:.%]+\]|[^/:@\[\]]+))"
_REMOTE_URL = re.compile(rf"//{_HOST}(?::(?P<port>\d+))?(?P<path>/.*)?", re.DOTALL)
_REMOTE_PATH = re.compile(rf"(?://)?{_HOST}:(?P<path>.*)", re.DOTALL)
_FORMS = "a path, local:PATH, file:///PATH, scp:[USER@]HOST:PATH or rsync:[USER@]HOST:PATH"


def _place_of(url: str, workdir: str) -> str | _Remote:
    """The local path, absolute, or the remote one.

    Raises:
        StagingFailed: it is written in no known way.
    """
    scheme, colon, rest = url.partition(":")
    if colon and scheme in ("scp", "rsync"):
        return _remote(scheme, rest)
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


def _remote(program: str, rest: str) -> _Remote:
    as_url = _REMOTE_URL.fullmatch(rest)
    match = as_url or _REMOTE_PATH.fullmatch(rest)
    if not match:
        raise StagingFailed(f"write {program}:[USER@]HOST:PATH or {program}://[USER@]HOST[:PORT]/PATH")
    host, path, port = match["host"], match["path"] or "", ""
    if as_url:
        port = as_url["port"] or ""
        path = re.sub(r"\A/+", "/", unquote(path, errors="surrogateescape"))
        path = path[1:] if path[:3] in ("/~", "/~/") else path
    if not host.isprintable() or " " in host or any(word.startswith("-") for word in host.split("@")):
        raise StagingFailed(f"{host!r} is no name of a host")
    if "\0" in path:
        raise StagingFailed("the path holds a NUL byte")
    path = path[1:].lstrip("/") if path[:2] in ("~", "~/") else path
    path = path.rstrip("/") or path[:1]
    return _Remote(program, host, port, path if path.startswith("/") else f"./{path}")


# --- patterns ---------------------------------------------------------------------------------------------------------

_MAGIC = re.compile(r"[*?[]")


class _Glob(NamedTuple):
    """A pattern for paths in a directory, read as shells do: `**` is any number of directories, `*` no hidden name."""

    text: str
    parts: tuple[str, ...]

    @property
    def is_bare(self) -> bool:
        """Whether it says no more than "everything"."""
        return self.text in ("*", "**", "**/*")

    @property
    def is_deep(self) -> bool:
        """Whether its matches keep their paths."""
        return "**" in self.parts

    def expand(self, directory: str) -> list[str]:
        """The paths below `directory` that match; what is below a directory that matches by `**` is part of that."""
        return _matching(directory, self.parts)


def _globs(patterns: str) -> list[_Glob]:
    """The words of `patterns`, without repetitions.

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
        if not _parts(word):
            raise StagingFailed(f"the pattern {shown(word)!r} names no file")
    return [_Glob(word, _parts(word)) for word in dict.fromkeys(words)]


def _parts(pattern: str) -> tuple[str, ...]:
    """Its components. One `**` after another says nothing new, and one at the end means all that is there."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part not in ("", ".") and parts[-1:] + [part] != ["**", "**"]:
            parts.append(part)
    return (*parts, "*") if parts[-1:] == ["**"] else tuple(parts)


def _matching(directory: str, parts: tuple[str, ...]) -> list[str]:
    """The paths below `directory` that match, sorted in each directory."""
    part, rest = parts[0], parts[1:]
    if part == "**":
        return _matching_anywhere(directory, rest)
    if not _MAGIC.search(part):
        names = [part] if rest or os.path.lexists(os.path.join(directory, part)) else []
    else:
        names = [name for name in _visible(directory, part) if fnmatch.fnmatchcase(name, part)]
    names = [name for name in names if not name.startswith(PART)]
    if not rest:
        return names
    return [os.path.join(name, path) for name in names for path in _matching(os.path.join(directory, name), rest)]


def _matching_anywhere(directory: str, parts: tuple[str, ...]) -> list[str]:
    """What matches in `directory` or a directory below it that does not match itself; links are not entered."""
    here = _matching(directory, parts)
    found = dict.fromkeys(here)
    for name in _visible(directory, "*"):
        below = os.path.join(directory, name)
        if name not in here and _is_directory(below):
            found.update((os.path.join(name, path), None) for path in _matching_anywhere(below, parts))
    return list(found)


def _visible(directory: str, part: str) -> list[str]:
    """The names in it that a component may match: hidden ones only if it starts with a dot; none if it is no directory."""
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(names if part.startswith(".") else [name for name in names if not name.startswith(".")])


# --- copying ----------------------------------------------------------------------------------------------------------


def _copy_all(sources: dict[str, str], directory: str, cancelled: Cancelled) -> int:
    """Copy into a directory, under these names. Returns how many."""
    with _part_of(directory) as part:
        for name, source in sources.items():
            _copy(source, os.path.join(part, name), cancelled)
        return _publish_all(part, directory)


def _copy(source: str, target: str, cancelled: Cancelled) -> None:
    """Copy a file or a directory, or what a link leads to, with modes and times; links inside of it stay links."""
    _stop_if(cancelled)
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
def _part_of(directory: str) -> Iterator[str]:
    """A hidden directory in `directory`, for what is not complete; removed in the end with all that is still there."""
    path = os.path.join(directory, _part_name())
    os.mkdir(path)
    try:
        yield path
    finally:
        _remove(path)


def _part_name() -> str:
    return f"{PART}{os.urandom(8).hex()}"


def _publish_all(part: str, directory: str) -> int:
    """Give everything in `part` its name in `directory`. Returns how many."""
    names = os.listdir(part)
    for name in names:
        _publish(os.path.join(part, name), os.path.join(directory, name))
    return len(names)


def _publish(source: str, target: str) -> None:
    """Rename over a file or link; a directory that is there already gets what `source` holds."""
    if not _is_directory(source):
        os.replace(source, target)
        return
    if os.path.islink(target):
        os.unlink(target)  # as a file; what it leads to may be a parent's
    mode = stat.S_IMODE(os.stat(source).st_mode)
    os.chmod(source, mode | stat.S_IRWXU)  # a directory that cannot be written cannot be moved, either
    try:
        os.rename(source, target)
    except OSError:
        if not _is_directory(target):
            raise
        _publish_all(source, target)
    else:
        os.chmod(target, mode)


def _remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    if os.path.exists(directory):  # it holds directories that cannot be written
        for folder, _, _ in os.walk(directory):
            os.chmod(folder, stat.S_IRWXU)
        shutil.rmtree(directory, ignore_errors=True)


# --- helpers ----------------------------------------------------------------------------------------------------------


def _is_directory(path: str) -> bool:
    """Whether it is a directory, and no link to one."""
    return os.path.isdir(path) and not os.path.islink(path)


def _is_same(one: str, other: str) -> bool:
    """Whether both are there and are one file or directory."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _contains(directory: str, path: str) -> bool:
    """Whether `path` is `directory` or below it."""
    root = os.path.join(os.path.realpath(directory), "")
    return os.path.join(os.path.realpath(path), "").startswith(root)


def _stop_if(cancelled: Cancelled) -> None:
    if cancelled():
        raise StagingFailed("it was interrupted")


@contextmanager
def _explained(task: str) -> Iterator[None]:
    """Turn every error into a sentence that starts with the task."""
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
    """The text, or its repr if it holds newlines or what is no valid Unicode.

    >>> shown("a b"), shown("a" + chr(10))
    ('a b', "'a\\\\n'")
    """
    return text if text.isprintable() else repr(text)
