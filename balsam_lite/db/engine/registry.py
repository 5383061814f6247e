"""The registry of this user's sites: Balsam DBs with a name and a number, on this host or on one that ssh reaches.

One JSON file, ~/.balsam/databases.json, modified under a lock and replaced as a whole. Older versions stored a list of paths.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core import files
from ...core.errors import AmbiguousSite, BalsamError, DuplicateSite, InvalidSpec, SiteUnreachable, UnknownSite
from ...core.settings import home
from . import connection, filesystem
from .filesystem import failure

if TYPE_CHECKING:
    import queue

FILE_NAME = "databases.json"
#: Seconds to wait for others that modify the file.
_LOCK_TIMEOUT_S = 10
#: Seconds to wait for file systems that may know a DB's name. Short, because a DB has a name without them.
_NAME_TIMEOUT_S = 1.0


class SiteEntry(NamedTuple):
    """A site that this user knows."""

    number: int  # never reused; 0: a site that is not in the registry
    name: str
    path: str  # absolute, on its host
    host: str = ""  # as ssh knows it (user@host:port); "" means this host
    balsam: str = "balsam"  # the command on that host

    @property
    def is_remote(self) -> bool:
        """Whether the site is reached through ssh."""
        return bool(self.host)

    @property
    def address(self) -> str:
        """The path of the site; for one on another host the URL with which it was added."""
        return f"ssh://{self.host}{self.path}" if self.host else self.path

    @property
    def is_there(self) -> bool:
        """Return whether a DB is in its directory; True if that is unknown: another host, or an unresponsive file system."""
        return self.is_remote or self.is_unresponsive or os.path.isfile(os.path.join(self.path, connection.FILE_NAME))

    @property
    def is_unresponsive(self) -> bool:
        """Whether the site is on a file system of this host that does not answer; checking this takes a few seconds."""
        return not self.is_remote and bool(unresponsive([self.path]))


# --- reading ----------------------------------------------------------------------------------------------------------


def refuse_unresponsive(entry: SiteEntry) -> None:
    """Raise SiteUnreachable if the site is on a file system of this host that does not answer: it would block this process."""
    if entry.is_unresponsive:
        raise SiteUnreachable(
            f"The file system of {entry.path} does not answer", hint=f"`df {entry.path}` would wait as well. Try again later."
        )


def known(*, gone: bool = False) -> list[SiteEntry]:
    """Return the sites ordered by number; with `gone`, include those whose directory no longer exists.

    Raises:
        BalsamError: the file cannot be read.
    """
    entries = _read().entries()
    if gone:
        return entries
    unresponsive(entry.path for entry in entries if not entry.is_remote)  # all at once; cached for `is_there`
    return [entry for entry in entries if entry.is_there]


def at(path: str) -> SiteEntry:
    """Return the site in that directory of this host; an unregistered one has the number 0 and its directory's name.

    A directory may be reachable by several paths. An unreadable registry counts as empty: the DB exists anyway, as the caller
    has seen.
    """
    directory = os.path.abspath(os.path.expanduser(path))
    mark_responsive(directory)
    try:
        entries = [entry for entry in known(gone=True) if not entry.is_remote]
    except BalsamError:
        entries = []
    for entry in entries:
        if entry.path == directory:
            return entry
    real, silent = os.path.realpath(directory), unresponsive((entry.path for entry in entries), _NAME_TIMEOUT_S)
    for entry in entries:
        if entry.path not in silent and os.path.realpath(entry.path) == real:
            return entry
    return SiteEntry(0, os.path.basename(directory) or directory, directory)


def matching(word: str) -> SiteEntry | None:
    """Return the site with exactly that name or address, or with that number; None if there is none.

    Raises:
        AmbiguousSite: an imported file has two of that name. BalsamError: the file cannot be read.
    """
    number = int(word) if word.isdecimal() and len(word) < 20 else 0
    found = [entry for entry in known(gone=True) if word in (entry.name, entry.address) or entry.number == number > 0]
    if len(found) > 1:
        raise AmbiguousSite(f"{len(found)} sites have the name {word!r}:", hint=choices(found))
    return found[0] if found else None


def named(name: str) -> SiteEntry:
    """Return the site that `matching` finds.

    Raises:
        UnknownSite: there is none; the known ones are listed. AmbiguousSite, BalsamError: as `matching`.
    """
    found = matching(name)
    if found is None:
        raise UnknownSite(f"There is no site {name!r}.", hint=hint())
    return found


def choices(entries: Iterable[SiteEntry]) -> str:
    """Return the hint for a word that could mean each of these sites."""
    lines = [f"    {entry.number}  {entry.name}  {entry.address}" for entry in entries]
    return "\n".join([*lines, "  The number names one of them."])


def hint() -> str:
    """Return the hint for a user who named no site, or an unknown one. Raises BalsamError."""
    names = [entry.name for entry in known(gone=True)]
    more = f" and {len(names) - _MAX_NAMES} more: see `balsam site ls`" if len(names) > _MAX_NAMES else ""
    if names:
        return f"Known are: {', '.join(names[:_MAX_NAMES])}{more}"
    return "None is known yet: `balsam site init -n NAME DIR` makes one."


#: Maximum number of names in a hint.
_MAX_NAMES = 30


# --- changing ---------------------------------------------------------------------------------------------------------


def add(path: str, name: str = "", host: str = "", balsam: str = "balsam") -> SiteEntry:
    """Register a site, or give a registered one that name, if there is one.

    Without a name the site gets that of its directory, with a number appended if it is taken.

    Raises:
        DuplicateSite: another site has the name. InvalidSpec: it is not a valid name. BalsamError: the file cannot be written.
    """

    def change(entries: list[SiteEntry], number: int) -> list[SiteEntry]:
        there = next((entry for entry in entries if (entry.host, entry.path) == (host, path)), None)
        others = [entry for entry in entries if entry is not there]
        if there and not name:
            return entries
        chosen = _checked(name, others) if name else _free_name(os.path.basename(path), others)
        return [*others, SiteEntry(there.number if there else number, chosen, path, host, balsam)]

    return next(entry for entry in _changed(change) if (entry.host, entry.path) == (host, path))


def check_new(name: str, path: str, host: str) -> None:
    """Raise DuplicateSite or InvalidSpec if `add` would, before much work is done for it. Raises BalsamError."""
    _checked(name, [entry for entry in known(gone=True) if (entry.host, entry.path) != (host, path)])


def rename(number: int, name: str) -> SiteEntry:
    """Rename a site. Raises DuplicateSite, InvalidSpec, SiteUnreachable, UnknownSite, BalsamError."""
    return _replaced(number, lambda entry, others: entry._replace(name=_checked(name, others)))


def move(number: int, path: str) -> SiteEntry:
    """Record the new directory of a site. Raises UnknownSite, BalsamError."""
    return _replaced(number, lambda entry, others: entry._replace(path=path))


def _replaced(number: int, change: Callable[[SiteEntry, list[SiteEntry]], SiteEntry]) -> SiteEntry:
    """Replace the site of that number by what `change` makes of it and the other sites; return that."""

    def replace(entries: list[SiteEntry], _: int) -> list[SiteEntry]:
        found = next((entry for entry in entries if entry.number == number), None)
        if found is None:
            raise UnknownSite(f"There is no site with the number {number} (any more).")
        others = [entry for entry in entries if entry is not found]
        return [*others, change(found, others)]

    return next(entry for entry in _changed(replace) if entry.number == number)


def forget(*numbers: int) -> None:
    """Remove sites from the registry; the DBs themselves stay. A missing one is no error. Raises BalsamError."""
    _changed(lambda entries, _: [entry for entry in entries if entry.number not in numbers])


_NAME = re.compile(r"[^\s,/][^,/\n]*\Z")
_WORDS = ("all", "active", "this")


def _checked(name: str, others: list[SiteEntry]) -> str:
    if not _NAME.match(name) or not name.isprintable() or name.isdecimal() or name in _WORDS or len(name) > 255:
        raise InvalidSpec(
            f"A site cannot be called {name!r}.",
            hint=f"A name has no comma or slash, is no number, and none of: {', '.join(_WORDS)}.",
        )
    if any(entry.name == name for entry in others):
        raise DuplicateSite(f"A site with this name already exists: {name}", hint="`balsam site ls` shows them.")
    return name


def _free_name(wanted: str, others: list[SiteEntry]) -> str:
    plain = re.sub(r"[\s,/]+", "_", wanted) or "site"
    taken = {entry.name for entry in others}
    for number in range(1, len(taken) + 3):
        name = plain if number == 1 else f"{plain}-{number}"
        if name not in taken and not name.isdecimal() and name not in _WORDS:
            return name
    return f"{plain}-site"


# --- the file ---------------------------------------------------------------------------------------------------------


def _path() -> str:
    return os.path.join(home(), FILE_NAME)


class _File(NamedTuple):
    """The contents of the file."""

    sites: dict[int, dict[str, Any]]  # by number; each with its fields of newer versions, which are preserved
    last: int  # the largest number ever given
    more: dict[str, Any]  # further fields of newer versions

    def entries(self) -> list[SiteEntry]:
        """Return the sites in order of their numbers. Raise ValueError, KeyError or TypeError if one is invalid."""
        return sorted(map(_entry, self.sites.values()))


def _read() -> _File:
    try:
        with open(_path(), encoding="utf-8") as file:
            found = json.load(file)
        if isinstance(found, list):  # of paths, as older versions stored it
            found = _of_paths(found)
        if not isinstance(found, dict) or not isinstance(found["sites"], list):
            raise ValueError("it holds no sites")
        sites = {one["id"]: one for one in found["sites"]}
        if len(sites) < len(found["sites"]):
            raise ValueError("two sites have one number")
        more = {key: value for key, value in found.items() if key not in ("last", "sites")}
        contents = _File(
            sites, max([int(found.get("last", 0)), *(entry.number for entry in map(_entry, sites.values()))]), more
        )
    except FileNotFoundError:
        return _File({}, 0, {})
    except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as exc:
        said = f"there is no {exc}" if isinstance(exc, KeyError) else exc
        raise BalsamError(
            f"{_path()} cannot be read: {said}", hint="Fix the file, or move it away and `balsam init` its DBs again."
        ) from exc
    return contents


def _of_paths(found: list[Any]) -> dict[str, Any]:
    entries: list[SiteEntry] = []
    for number, path in enumerate(found, 1):
        if not isinstance(path, str):
            raise ValueError(f"{path!r} is no path")
        entries.append(SiteEntry(number, _free_name(os.path.basename(path), entries), path))
    return {"sites": list(map(_plain, entries))}


def _entry(one: dict[str, Any]) -> SiteEntry:
    entry = SiteEntry(one["id"], one["name"], one["path"], one.get("host", ""), one.get("balsam", "balsam"))
    if type(entry.number) is not int or not all(isinstance(text, str) for text in entry[1:]):
        raise ValueError(f"{one!r} is no site")
    try:
        is_path = bool(entry.path) and b"\0" not in os.fsencode(entry.path)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise ValueError(f"{entry.path!r} is no path")
    return entry


def _plain(entry: SiteEntry) -> dict[str, Any]:
    there = {"host": entry.host, "balsam": entry.balsam} if entry.is_remote else {}
    return {"id": entry.number, "name": entry.name, "path": entry.path, **there}


def _changed(change: Callable[[list[SiteEntry], int], list[SiteEntry]]) -> list[SiteEntry]:
    """Let `change` return the new sites, from the present ones and the next number; write them, under the lock.

    Raises:
        BalsamError: the file cannot be read or written.
    """
    try:
        os.makedirs(home(), exist_ok=True)
        with files.locked(_path() + ".lock", _LOCK_TIMEOUT_S):
            found = _read()
            before = found.entries()
            after = sorted(change(before, found.last + 1))
            if after != before:
                sites = [{**found.sites.get(entry.number, {}), **_plain(entry)} for entry in after]
                last = max(found.last, *(entry.number for entry in after)) if after else found.last
                files.write_json_atomic(_path(), {**found.more, "last": last, "sites": sites})
            return after
    except TimeoutError as exc:
        raise BalsamError(f"{_path()} is locked by another process for more than {_LOCK_TIMEOUT_S} s.") from exc
    except files.LocksUnsupported as exc:
        raise BalsamError(f"{home()} is on a file system without locks.", hint="Set BALSAM_HOME to another place.") from exc
    except OSError as exc:
        raise BalsamError(f"{home()} cannot be written: {failure(exc, home())}") from exc


# --- unresponsive file systems ----------------------------------------------------------------------------------------
# If the server of a file system is gone, a process that touches it is blocked, often beyond any signal. So a DB that is not on
# a disk of this host is touched first by another program, which can be abandoned. The file system with the user's own registry
# is exempt, as it has just been read.


#: Seconds for a file system to answer; equal to the time for connecting to another host.
PROBE_TIMEOUT_S = 4.0
#: How long a result is cached: an answer in seconds, a timeout in multiples of the timeout that was allowed.
#: Not shorter, as each program that hangs stays for as long as the file system does.
_HEARD_S, _SILENT_TIMES = 5.0, 15.0
#: Maximum number of concurrent probes; with more directories each probes neighbours, mostly on one file system.
_MAX_PROGRAMS = 32

#: Directory -> (whether it is unresponsive, until when that is cached).
_found: dict[str, tuple[bool, float]] = {}


def unresponsive(directories: Iterable[str], patience_s: float | None = None) -> set[str]:
    """Return the directories on unresponsive file systems. Takes at most PROBE_TIMEOUT_S, whatever their number."""
    directories, now = list(directories), time.monotonic()
    unknown = [one for one in dict.fromkeys(directories) if _found.get(one, (False, 0.0))[1] <= now]
    if unknown:
        _look(unknown, min(PROBE_TIMEOUT_S, patience_s or PROBE_TIMEOUT_S))
    return {one for one in directories if _found[one][0]}


def mark_responsive(directory: str) -> None:
    """Record that a file in the directory was just accessed, so that it need not be probed."""
    _note(directory)


def _note(directory: str, silent_for_s: float = 0.0) -> None:
    _found[directory] = silent_for_s > 0, time.monotonic() + (silent_for_s or _HEARD_S)


def _look(directories: list[str], patience_s: float) -> None:
    table = filesystem.mount_points()
    trusted = {mount.point for mount in filesystem.mounts_on_the_way(os.path.abspath(home()), table)}
    doubtful = []
    for directory in directories:
        mounts = filesystem.mounts_on_the_way(directory, table)
        if any(mount.access != filesystem.LOCAL and mount.point not in trusted for mount in mounts):
            doubtful.append(directory)
        else:
            _note(directory)
    if doubtful:
        _touch(doubtful, patience_s)


def _touch(directories: list[str], patience_s: float) -> None:
    import queue
    import threading

    came: queue.SimpleQueue[tuple[tuple[str, ...], bool]] = queue.SimpleQueue()
    each = -(-len(directories) // _MAX_PROGRAMS)
    ordered = sorted(directories)
    waiting = {tuple(ordered[first : first + each]) for first in range(0, len(ordered), each)}
    for neighbours in waiting:
        threading.Thread(target=_touched, args=(came, neighbours, patience_s), daemon=True).start()
    give_up = time.monotonic() + patience_s + 0.1
    silent_for_s = dict.fromkeys(directories, _SILENT_TIMES * patience_s)
    while waiting:
        try:
            neighbours, is_silent = came.get(timeout=max(give_up - time.monotonic(), 0.001))
        except queue.Empty:
            break
        waiting.discard(neighbours)
        if not is_silent:
            silent_for_s.update(dict.fromkeys(neighbours, 0.0))
    for directory, seconds in silent_for_s.items():
        _note(directory, seconds)


def _touched(came: queue.SimpleQueue[tuple[tuple[str, ...], bool]], directories: tuple[str, ...], patience_s: float) -> None:
    from ...core import subprocess_run

    paths = [os.path.join(directory, connection.FILE_NAME) for directory in directories]
    done = subprocess_run.run(["head", "-c", "1", *paths], timeout_s=patience_s, directory="/")
    came.put((directories, done.was_killed))
