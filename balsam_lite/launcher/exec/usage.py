"""What the kernel reports of ended runs: their peak memory, and processes that it killed for lack of memory.

Spawn helpers import this module, so it imports little.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable

_LINUX = sys.platform.startswith("linux")
_KIB = 1024
#: The kernel counts resident pages per CPU, and its sums are off by up to 32 pages for each: lib/percpu_counter.c.
_MARGIN_KIB = 32 * (resource.getpagesize() // _KIB) * (os.cpu_count() or 1)


class PeakMemory:
    """Tells the peak memory of a child from the figure that it has inherited.

    In Linux, exec sets the peak of a process (ru_maxrss of getrusage(2)) to that of the memory that it gives up, which for a
    child of posix_spawn is this process's memory: `true` reports what its parent uses (fs/exec.c; tried with 6.18).
    """

    def __init__(self) -> None:
        self._inherited_kib: float = 0  # at most, by now

    def read(self, maxrss: int) -> int | None:
        """Return the peak in bytes of the largest process of a child that has been reaped; None: not known."""
        if not _LINUX or maxrss <= self._inherited_kib:
            return None
        if maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + _MARGIN_KIB:
            # This process has itself inherited that figure from its parent; its memory may never have been that large.
            self._inherited_kib = _high_water_kib() + _MARGIN_KIB
            if maxrss <= self._inherited_kib:
                return None
        return maxrss * _KIB


def _high_water_kib() -> float:
    """Return the most memory that this process has used; infinite where the system does not report it."""
    try:
        with open("/proc/self/status", "rb") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(b"VmHWM:"))
    except (OSError, StopIteration):
        return float("inf")


class OomKills:
    """Counts the processes of this control group, and of those below it, that the kernel has killed for lack of memory.

    Args:
        count: returns that number; None: unknown.
    """

    def __init__(self, count: Callable[[], int | None] | None = None) -> None:
        self._count = count or _counter_of(_control_group())
        self._before = self._now = self._count()

    def look(self) -> None:
        """Forget kills before the previous look: none of their processes ends after this one."""
        self._before, self._now = self._now, self._count()

    def take(self) -> bool:
        """Return whether there was a kill since the look before the last that is not taken yet, and take it."""
        self._now = self._count()
        if self._before is None or self._now is None or self._now <= self._before:
            return False
        self._before += 1
        return True


def _control_group() -> str:
    """Return the file in which the kernel counts; "" if there is none. Sources: cgroups(7), cgroup-v2.rst and v1/memory.rst."""
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return ""
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return f"/sys/fs/cgroup/memory{path}/memory.oom_control"
    return next((f"/sys/fs/cgroup{path}/memory.events" for _, controllers, path in lines if not controllers), "")


def _counter_of(path: str) -> Callable[[], int | None]:
    def count() -> int | None:
        try:
            with open(path, "rb") as file:
                return next((int(line.split()[1]) for line in file if line.startswith(b"oom_kill ")), None)
        except OSError:
            return None

    return count
