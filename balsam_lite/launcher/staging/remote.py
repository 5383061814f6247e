"""Places on other machines, and the command lines of the user's `scp`, `rsync` and `ssh` that copy from and to them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Callable, NamedTuple
from urllib.parse import unquote

from ...core.errors import BalsamError, StagingFailed
from .files import Cancelled, part_name, stop_if

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


def exists(place: Remote, workdir: str, run: Run, cancelled: Cancelled) -> bool:
    """Return whether the path exists, taken literally. False also where that is unknown: the copy then reports why."""
    stop_if(cancelled)
    try:
        return run(place.ssh("test", "-e", place.path), workdir)[0] == 0
    except (BalsamError, OSError):
        return False


def upload_all(sources: list[str], place: Remote, workdir: str, run: Run, cancelled: Cancelled) -> None:
    if place.program == "rsync":  # which itself writes under other names and renames
        call(place.ssh("mkdir", "-p", "--", place.path), workdir, run, cancelled)
        _upload_to(place, sources, workdir, run, cancelled)
        return
    part = place._replace(path=os.path.join(place.path, part_name()))
    try:
        call(part.ssh("mkdir", "-p", "--", part.path), workdir, run, cancelled)
        _upload_to(part, sources, workdir, run, cancelled)
        call(part.ssh("sh", "-c", _PUBLISH, "sh", part.path), workdir, run, cancelled)
    except StagingFailed:
        _try_to_remove(part, workdir, run)
        raise


def _upload_to(place: Remote, sources: list[str], workdir: str, run: Run, cancelled: Cancelled) -> None:
    batch: list[str] = []
    room = _COMMAND_LINE
    for source in sources:
        room -= len(os.fsencode(source))
        if batch and room < 0:
            call(place.upload(batch), workdir, run, cancelled)
            batch, room = [], _COMMAND_LINE
        batch.append(source)
    call(place.upload(batch), workdir, run, cancelled)


def _try_to_remove(part: Remote, workdir: str, run: Run) -> None:
    try:
        run(part.ssh("rm", "-rf", "--", part.path), workdir)
    except (BalsamError, OSError):  # what made the upload fail prevents this, too
        pass


def call(argv: list[str], workdir: str, run: Run, cancelled: Cancelled) -> None:
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


# --- how a place is written -------------------------------------------------------------------------------------------


_HOST = r"(?P<host>(?:[^/:@]+@)?(?:\[[\w:.%]+\]|[^/:@\[\]]+))"
_REMOTE_URL = re.compile(rf"//{_HOST}(?::(?P<port>\d+))?(?P<path>/.*)?", re.DOTALL)
_REMOTE_PATH = re.compile(rf"(?://)?{_HOST}:(?P<path>.*)", re.DOTALL)


def parse(program: str, rest: str) -> Remote:
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
