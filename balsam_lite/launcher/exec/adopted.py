"""Processes left by runs that a spawn helper, as a subreaper, has adopted; the same for the launcher.

Finding that nothing was left costs one read of a file in /proc for many ended runs. Spawn helpers import this module, so it
imports little.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress

from ...core.process_table import Process, command_of, is_detached, process_of, run_mark_of

_PAGE_BYTES = 4096


class HelperRun:
    """A running program, which a spawn helper has started as the leader of a session."""

    __slots__ = ("directory", "end", "is_kept", "key", "lane", "mark", "pid")

    def __init__(self, key: int, lane: int, pid: int, directory: str, mark: bytes, is_kept: bool) -> None:
        self.key, self.lane, self.pid, self.directory = key, lane, pid, directory
        self.mark = mark  # its BALSAM_RUN; b"" if it has none
        self.is_kept = is_kept  # what it leaves is detached
        self.end = 0  # how it ends; see `program.BY_ITSELF`


#: The pids of adopted processes that are gone, and of ended runs of which nothing is left; and adopted processes that are not
#: detached, with their run marks as far as known.
Changes = tuple[list[int], list[tuple[Process, bytes]]]


def _is_child(pid: int) -> bool:
    process = process_of(pid)
    return process is not None and process.parent == os.getpid()


class Adopted:
    """The children of this process that it has not started; unknown where /proc does not list children."""

    def __init__(self) -> None:
        self._fd = -1
        with suppress(OSError):  # proc_pid_children(5): not in all kernels; the main thread has the number of the process
            self._fd = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
        self._owners: dict[int, int] = {}  # of each that is known, the pid of the run that has left it; 0: unknown
        self._ended: dict[int, HelperRun] = {}  # runs that have left something, by pid

    def look(self, living: Mapping[int, HelperRun], ended: Iterable[HelperRun]) -> Changes:
        """Look for processes adopted since the last call, and for those that are gone.

        Args:
            living: the runs of this process that have not been reaped, by pid.
            ended: those that have been reaped since the last call.
        """
        if self._fd < 0:
            return [], []
        just_ended = {run.pid: run for run in ended}
        adopted = self._children() - living.keys()
        if not adopted and not self._owners:  # the usual case
            return list(just_ended), []
        # The kernel's list may lack a child if another one ends while it is read, proc_pid_children(5).
        over = [pid for pid in self._owners.keys() - adopted if pid in living or not _is_child(pid)]
        for pid in over:
            del self._owners[pid]
        over += self._forget_gone()
        self._ended.update(just_ended)
        fresh = []
        for pid in adopted - self._owners.keys():
            process = process_of(pid)
            if process is not None:
                owner = self._owners[pid] = self._owner_of(process, living)
                run = living.get(owner) or self._ended.get(owner)
                if not is_detached(pid) and not (run is not None and run.is_kept):
                    fresh.append((process, run.mark if run is not None else b""))
        return over + self._forget_gone(), fresh

    def _forget_gone(self) -> list[int]:
        """Forget the ended runs without remaining processes, and return their pids."""
        owners = set(self._owners.values())
        over = [pid for pid in self._ended if pid not in owners]
        for pid in over:
            del self._ended[pid]
        return over

    def of(self, run: int) -> list[tuple[str | int, ...]] | None:
        """Return name and `Process` of each process left by the reaped run with that pid; None: unknown."""
        if self._fd < 0:
            return None
        if run not in self._ended:
            return []
        found = [process_of(pid) for pid, owner in self._owners.items() if owner == run]
        return [(command_of(one.pid), *one) for one in found if one is not None]

    def _children(self) -> set[int]:
        text = b""
        while True:
            piece = os.pread(self._fd, 1 << 16, len(text))
            text += piece
            if len(piece) < _PAGE_BYTES // 2:
                return set(map(int, text.split()))

    def orphans(self, own: Collection[int]) -> list[Process]:
        """Return the living processes that the main thread of this process has adopted, without detached ones.

        Args:
            own: the pids of the children that this process has started.
        """
        adopted = self._children() - set(own) if self._fd >= 0 else set()
        found = [process_of(pid) for pid in adopted if not is_detached(pid)]
        return [one for one in found if one is not None]

    def _owner_of(self, process: Process, living: Mapping[int, HelperRun]) -> int:
        """Return the run that has left a process: by session, run mark or, if neither is known, working directory."""
        for pid in (process.session, process.group):
            if pid in living or pid in self._ended:
                return pid
        runs = [*living.values(), *self._ended.values()]
        mark = run_mark_of(process.pid)
        if mark:
            return next((run.pid for run in runs if run.mark == mark), 0)
        if is_detached(process.pid):
            return 0
        try:
            directory = os.readlink(f"/proc/{process.pid}/cwd")
        except OSError:
            return 0
        at = [run.pid for run in runs if os.path.realpath(run.directory) == directory]
        return at[0] if len(at) == 1 else 0
