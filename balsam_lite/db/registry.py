"""Which sites this user has: Balsam DBs with a name and a number, here or on a host that ssh reaches.

One JSON file, ~/.balsam/databases.json, changed under a lock and replaced whole. That of older versions was a list of paths.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..errors import BalsamError, DuplicateSite, InvalidSpec, UnknownSite
from ..settings import home
from . import connection

FILE_NAME = "databases.json"
#: How long to wait for others that change the file, in seconds.
_PATIENCE_S = 10


class Entry(NamedTuple):
    """A site that this user knows."""

    number: int  # never used twice; 0: one that is not in the registry
    name: str
    path: str  # absolute, on its host
    host: str = ""  # as ssh knows it (user@host:port); "" is: this one
    balsam: str = "balsam"  # the command there

    @property
    def is_remote(self) -> bool:
        """Whether it is reached through ssh."""
        return bool(self.host)

    @property
    def address(self) -> str:
        """Its path; of one on another host the URL by which it was added."""
        return f"ssh://{self.host}{self.path}" if self.host else self.path

    @property
    def is_there(self) -> bool:
        """Whether a DB lies in its directory; True of one on another host, of which only ssh could tell."""
        return self.is_remote or os.path.isfile(os.path.join(self.path, connection.FILE_NAME))


# --- reading ----------------------------------------------------------------------------------------------------------


def known(*, gone: bool = False) -> list[Entry]:
    """The sites by number; with `gone` also those whose directory is not there any more. [] where the file is broken."""
    try:
        entries = _read().entries
    except BalsamError:
        return []
    return [entry for entry in entries if gone or entry.is_there]


def at(path: str) -> Entry:
    """The site in that directory of this host; one that is not registered has the number 0 and its directory's name."""
    directory = os.path.abspath(os.path.expanduser(path))
    for entry in known():
        if not entry.is_remote and entry.path == directory:
            return entry
    return Entry(0, os.path.basename(directory) or directory, directory)


def named(name: str) -> Entry:
    """The site of exactly that name, or with that number.

    Raises:
        UnknownSite: there is none; the known ones are listed.
    """
    entries = known(gone=True)
    for entry in entries:
        if entry.name == name or (name.isdecimal() and entry.number == int(name)):
            return entry
    listed = ", ".join(entry.name for entry in entries) or "none yet: `balsam site init -n NAME DIR` makes one"
    raise UnknownSite(f"There is no site {name!r}.", hint=f"Known are: {listed}")


# --- changing ---------------------------------------------------------------------------------------------------------


def add(path: str, name: str = "", host: str = "", balsam: str = "balsam") -> Entry:
    """Register a site; one that is registered already is given that name, if there is one.

    Without a name it gets that of its directory, with a number behind it where that is taken.

    Raises:
        DuplicateSite: another one has the name. InvalidSpec: it cannot be one. BalsamError: the file cannot be written.
    """

    def change(found: _File) -> Entry:
        there = next((entry for entry in found.entries if (entry.host, entry.path) == (host, path)), None)
        others = [entry for entry in found.entries if entry is not there]
        if there and not name:
            return there
        chosen = _checked(name, others) if name else _free_name(os.path.basename(path), others)
        made = Entry(there.number if there else found.next_number(), chosen, path, host, balsam)
        found.put(made)
        return made

    return _changed(change)


def rename(number: int, name: str) -> Entry:
    """Give a site another name. Raises DuplicateSite, InvalidSpec, UnknownSite, BalsamError."""
    return _changed(lambda found: found.replace(number, lambda entry, others: entry._replace(name=_checked(name, others))))


def move(number: int, path: str) -> Entry:
    """Note that a site lies in another directory now. Raises UnknownSite, BalsamError."""
    return _changed(lambda found: found.replace(number, lambda entry, others: entry._replace(path=path)))


def forget(number: int) -> None:
    """Remove a site from the registry; the DB itself stays. One that is not there is no error. Raises BalsamError."""

    def change(found: _File) -> None:
        found.entries = [entry for entry in found.entries if entry.number != number]

    _changed(change)


_NAME = re.compile(r"[^\s,/][^,/\n]*\Z")
_WORDS = ("all", "active", "this")


def _checked(name: str, others: list[Entry]) -> str:
    if not _NAME.match(name) or not name.isprintable() or name.isdecimal() or name in _WORDS or len(name) > 255:
        raise InvalidSpec(
            f"A site cannot be called {name!r}.",
            hint=f"A name has no comma or slash, is no number, and none of: {', '.join(_WORDS)}.",
        )
    if any(entry.name == name for entry in others):
        raise DuplicateSite(f"A site with this name already exists: {name}", hint="`balsam site ls` shows them.")
    return name


def _free_name(wanted: str, others: list[Entry]) -> str:
    plain = re.sub(r"[\s,/]+", "_", wanted) or "site"
    taken = {entry.name for entry in others}
    for number in range(1, len(taken) + 3):
        name = plain if number == 1 else f"{plain}-{number}"
        if name not in taken and not name.isdecimal() and name not in _WORDS:
            return name
    return f"{plain}-site"


# --- the file ---------------------------------------------------------------------------------------------------------


class _File:
    """What the file holds."""

    def __init__(self, entries: list[Entry], last: int) -> None:
        self.entries, self.last = entries, last

    def next_number(self) -> int:
        self.last += 1
        return self.last

    def put(self, made: Entry) -> None:
        self.entries = sorted([*(entry for entry in self.entries if entry.number != made.number), made])

    def replace(self, number: int, change: Callable[[Entry, list[Entry]], Entry]) -> Entry:
        for entry in self.entries:
            if entry.number == number:
                made = change(entry, [other for other in self.entries if other is not entry])
                self.put(made)
                return made
        raise UnknownSite(f"There is no site with the number {number} (any more).")


def _path() -> str:
    return os.path.join(home(), FILE_NAME)


def _read() -> _File:
    try:
        with open(_path(), encoding="utf-8") as file:
            found = json.load(file)
    except FileNotFoundError:
        return _File([], 0)
    except (OSError, ValueError, RecursionError) as exc:
        raise BalsamError(f"{_path()} cannot be read: {exc}", hint="Mend the file, or move it away.") from exc
    entries = list(_entries(found))
    last = found.get("last", 0) if isinstance(found, dict) else 0
    return _File(entries, max([last if isinstance(last, int) else 0, *(entry.number for entry in entries)]))


def _entries(found: Any) -> Iterator[Entry]:
    """Whatever in the file makes sense."""
    listed = found.get("sites", []) if isinstance(found, dict) else found
    seen: list[Entry] = []
    for place, one in enumerate(listed if isinstance(listed, list) else [], 1):
        if isinstance(one, str):
            seen.append(Entry(place, _free_name(os.path.basename(one), seen), one))
        elif isinstance(one, dict):
            try:
                seen.append(Entry(int(one["id"]), str(one["name"]), str(one["path"]), *_where(one)))
            except (KeyError, TypeError, ValueError):
                continue
        else:
            continue
        yield seen[-1]


def _where(one: dict[str, Any]) -> tuple[str, str]:
    return str(one.get("host", "")), str(one.get("balsam", "balsam"))


def _changed(change: Callable[[_File], Any]) -> Any:
    """Let `change` change what the file holds, alone; returns what that returns."""
    from filelock import FileLock, Timeout

    from .location import write_json

    try:
        os.makedirs(home(), exist_ok=True)
        with FileLock(_path() + ".lock", timeout=_PATIENCE_S):
            found = _read()
            before = (list(found.entries), found.last)
            answer = change(found)
            if (found.entries, found.last) != before:
                write_json(_path(), {"last": found.last, "sites": [_plain(entry) for entry in found.entries]})
            return answer
    except Timeout as exc:
        raise BalsamError(f"{_path()} is locked by another process for more than {_PATIENCE_S} s.") from exc
    except OSError as exc:
        raise BalsamError(f"{home()} cannot be written: {exc}") from exc


def _plain(entry: Entry) -> dict[str, Any]:
    there = {"host": entry.host, "balsam": entry.balsam} if entry.is_remote else {}
    return {"id": entry.number, "name": entry.name, "path": entry.path, **there}
