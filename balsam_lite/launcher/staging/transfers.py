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
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Callable, NamedTuple
from urllib.parse import unquote

from ...core.errors import BalsamError, StagingFailed
from .files import (
    MAGIC,
    Cancelled,
    contains,
    copy_all,
    explained,
    globs,
    is_same,
    matching,
    part_name,
    part_of,
    parts_of,
    publish_all,
    shown,
    stop_if,
)


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
        if "[" in place.path and _exists(place, workdir, run, cancelled):
            place = place.literal()
        with part_of(workdir) as part:
            _call(place.download(part), workdir, run, cancelled)
            stop_if(cancelled)
            return publish_all(part, workdir)


def why_missing(url: str) -> str:
    """Return why there is nothing here to stage in from `url`; "" if there is, or the place is on another machine."""
    try:
        place = _place_of(url, "/")
        if isinstance(place, str):
            list(_local_sources(place, "/"))
    except StagingFailed as exc:
        return exc.message
    return ""


def _local_sources(path: str, workdir: str) -> Iterator[str]:
    """Yield the files and directories that a path with globs names."""
    if os.path.lexists(path):  # with any characters in its name
        found = [os.path.normpath(path)]
    else:
        found = [os.path.join("/", name) for name in matching("/", parts_of(path))]
    for source in found:
        if not os.path.exists(source):
            raise StagingFailed(f"{shown(source)} is a link that leads nowhere")
        if contains(source, workdir):
            raise StagingFailed(f"{shown(source)} cannot be copied into itself: the working directory is {shown(workdir)}")
        yield source
    if not found:
        raise StagingFailed(f"nothing matches {shown(path)}" if MAGIC.search(path) else f"there is no {shown(path)}")


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
                _upload_all(list(named.values()), place, workdir, run, cancelled)
            return StagedOut(len(named), unmatched)
        there = {path: os.path.join(place, os.path.basename(path)) for path in sources}
        named = _by_name(path for path in sources if not (contains(path, place) or is_same(path, there[path])))
        if named:
            os.makedirs(place, exist_ok=True)
        return StagedOut(copy_all(named, place, cancelled) if named else 0, unmatched)


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
        return _parse_remote(scheme, rest)
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


# --- places on other machines, and the command lines of the user's scp, rsync and ssh ---------------------------------

#: Runs a program without a prompt: (argv, directory) -> (exit code, the last of what it printed). May raise SpawnFailed.
Run = Callable[[Sequence[str], str], tuple[int, str]]

#: Bytes of paths in one command line; the system's limit for all arguments and the environment is about 2 MB.
_COMMAND_LINE = 200_000


class Remote(NamedTuple):
    """A place on another machine."""

    program: str  # scp or rsync
    host: str  # user@host as scp and rsync take it
    port: str  # or ""
    path: str  # starts with / or, from the home, with ./: so it is never taken for an option

    def literal(self) -> Remote:
        """Return the place with each wildcard of its path in brackets, where every glob takes it literally."""
        return self._replace(path=re.sub(r"[*?[]", r"[\g<0>]", self.path))

    def download(self, directory: str) -> list[str]:
        """Return the command that copies it into a local directory."""
        path = _escaped(self.path) if self.program == "scp" else self.path
        return [*self._copying(), f"{self.host}:{path}", os.path.join(directory, "")]

    def upload(self, sources: Sequence[str]) -> list[str]:
        """Return the command that copies local files and directories into it."""
        # Before OpenSSH 9 a remote shell splits the path; then one with blanks fails. From 9 on, quoting it would fail.
        return [*self._copying(), *sources, f"{self.host}:{os.path.join(self.path, '')}"]

    def ssh(self, *words: str) -> list[str]:
        """Return a command that runs `words` there."""
        host = self.host.replace("[", "").replace("]", "")
        return [*self._ssh(), "--", host, shlex.join(words)]

    def _ssh(self) -> list[str]:
        return ["ssh", "-o", "BatchMode=yes", *(["-p", self.port] if self.port else [])]

    def _copying(self) -> list[str]:
        if self.program == "scp":
            # Not -q: that would silence the reason, too. There is no progress to see without a terminal.
            return ["scp", "-B", "-r", "-p", *(["-P", self.port] if self.port else []), "--"]
        # -I: a file with the same size and time may differ. -s: the path bypasses the remote shell.
        return ["rsync", "-a", "-I", "-L", "-s", "-e", " ".join(self._ssh()), "--"]


def _escaped(path: str) -> str:
    """Return the path for `scp host:path`, which sftp's globs and (before OpenSSH 9) a shell read: a backslash suits both."""
    return re.sub(r"([^\w@%+=:,./~*?\[\]^!-])", r"\\\1", path)


#: Moves everything in the directory $1 to its parent directory, then removes $1. Without `!` and newlines, because of csh.
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


def _exists(place: Remote, workdir: str, run: Run, cancelled: Cancelled) -> bool:
    """Return whether the path exists, taken literally. False also where that is unknown: the copy then reports why."""
    stop_if(cancelled)
    try:
        return run(place.ssh("test", "-e", place.path), workdir)[0] == 0
    except (BalsamError, OSError):
        return False


def _upload_all(sources: list[str], place: Remote, workdir: str, run: Run, cancelled: Cancelled) -> None:
    if place.program == "rsync":  # which itself writes under other names and renames
        _call(place.ssh("mkdir", "-p", "--", place.path), workdir, run, cancelled)
        _upload_to(place, sources, workdir, run, cancelled)
        return
    part = place._replace(path=os.path.join(place.path, part_name()))
    try:
        _call(part.ssh("mkdir", "-p", "--", part.path), workdir, run, cancelled)
        _upload_to(part, sources, workdir, run, cancelled)
        _call(part.ssh("sh", "-c", _PUBLISH, "sh", part.path), workdir, run, cancelled)
    except StagingFailed:
        _try_to_remove(part, workdir, run)
        raise


def _upload_to(place: Remote, sources: list[str], workdir: str, run: Run, cancelled: Cancelled) -> None:
    batch: list[str] = []
    room = _COMMAND_LINE
    for source in sources:
        room -= len(os.fsencode(source))
        if batch and room < 0:
            _call(place.upload(batch), workdir, run, cancelled)
            batch, room = [], _COMMAND_LINE
        batch.append(source)
    _call(place.upload(batch), workdir, run, cancelled)


def _try_to_remove(part: Remote, workdir: str, run: Run) -> None:
    with suppress(BalsamError, OSError):  # what made the upload fail prevents this, too
        run(part.ssh("rm", "-rf", "--", part.path), workdir)


def _call(argv: list[str], workdir: str, run: Run, cancelled: Cancelled) -> None:
    """Run a program to its end.

    Raises:
        StagingFailed: the program is missing or fails; the message contains its output.
    """
    stop_if(cancelled)
    try:
        code, output = run(argv, workdir)
    except BalsamError as exc:
        raise StagingFailed(f"{argv[0]} cannot be run: {exc.message}") from exc
    except OSError as exc:
        raise StagingFailed(f"{argv[0]} cannot be run: {exc.strerror or exc}") from exc
    if code:
        stop_if(cancelled)
        words = "; ".join([line.strip() for line in output.splitlines() if line.strip()][-3:])
        raise StagingFailed(f"{argv[0]} ended with code {code}: {words or 'it printed nothing'}")


_HOST = r"(?P<host>(?:[^/:@]+@)?(?:\[[\w:.%]+\]|[^/:@\[\]]+))"
_REMOTE_URL = re.compile(rf"//{_HOST}(?::(?P<port>\d+))?(?P<path>/.*)?", re.DOTALL)
_REMOTE_PATH = re.compile(rf"(?://)?{_HOST}:(?P<path>.*)", re.DOTALL)


def _parse_remote(program: str, rest: str) -> Remote:
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
    return Remote(program, host, port, path if path.startswith("/") else f"./{path}")
