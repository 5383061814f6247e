"""Find unresponsive file systems. If the server is gone, a process that touches one is blocked, often beyond any signal.

So a DB that is not on a disk of this host is touched first by another program, which can be abandoned. The file system with the
user's own registry is exempt, as it has just been read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...core.settings import home
from . import connection, filesystem

if TYPE_CHECKING:
    import queue

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

    files = [os.path.join(directory, connection.FILE_NAME) for directory in directories]
    done = subprocess_run.run(["head", "-c", "1", *files], timeout_s=patience_s, directory="/")
    came.put((directories, done.was_killed))
