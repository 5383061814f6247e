"""Who is this process, and is that other one provably dead?

A process is named by its host, its pid namespace, its pid and its start. Two containers may share a host name and two
hosts a boot id, so a pid means something only where host name *and* pid namespace are the same. Reads /proc on Linux;
elsewhere asks psutil.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import NamedTuple

_LINUX = sys.platform.startswith("linux")
#: The start of a process that lives, where nothing tells when it was started.
UNKNOWN_START = "?"


class Holder(NamedTuple):
    """A process that holds something, for as long as it lives."""

    host: str
    pid_namespace: str
    pid: int
    started: str  # opaque; equal for the same process, different for a recycled pid

    @classmethod
    def current(cls) -> Holder:
        """This very process."""
        return cls(os.uname().nodename, _pid_namespace(), os.getpid(), start_of(os.getpid()))

    def is_here(self) -> bool:
        """Whether this process can see that one's pid."""
        return self.host == os.uname().nodename and self.pid_namespace == _pid_namespace()

    def is_provably_dead(self) -> bool:
        """True only on proof: same host and pid namespace, and no such process, or another one under its pid."""
        if not self.is_here():
            return False
        started = start_of(self.pid)
        return started == "" or (UNKNOWN_START not in (started, self.started) and self.started not in ("", started))


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux, or /proc is hidden: one namespace is all that can be assumed
        return ""


def boot_id() -> str:
    """Return what tells this boot of the host from others, random(4); "" where that is unknown."""
    return read_proc("/proc/sys/kernel/random/boot_id").decode().strip()


def start_of(pid: int) -> str:
    """Return an opaque token for the start of process `pid`; "" when there is no such living process (a zombie is dead).

    UNKNOWN_START where it cannot be read: without /proc, or for another user's process on a /proc with hidepid=2 (proc(5)).
    """
    if not _LINUX:
        return _start_by_psutil(pid)
    stat = read_proc(f"/proc/{pid}/stat")
    if not stat:
        return _start_without_proc(pid)
    # proc_pid_stat(5): the 2nd field is the command in parentheses and may itself hold blanks and parentheses, so count
    # from behind it: state is the 3rd field, starttime (clock ticks since boot) the 22nd.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return "" if fields[0] in b"ZX" else fields[19].decode()


def _start_without_proc(pid: int) -> str:
    if pid <= 0:  # kill(2) would take it for a process group
        return ""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return UNKNOWN_START
    except (ProcessLookupError, OverflowError):
        return ""
    return UNKNOWN_START if not os.path.exists("/proc/self/stat") else ""


#: A lack of files or memory that may pass, how often to try again because of it, and the seconds between.
_LACKS, _MOST_TRIES, _RETRY_S = (errno.EMFILE, errno.ENFILE, errno.ENOMEM), 100, 0.05


def read_proc(path: str) -> bytes:
    """Return the contents of a file of /proc; b"" if its process has ended.

    Raises:
        OSError: for seconds this process or host has had too many files open. That does not prove the process dead.
    """
    for left in reversed(range(_MOST_TRIES)):
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as exc:
            if exc.errno not in _LACKS:
                return b""
            if not left:
                raise
        time.sleep(_RETRY_S)
    return b""


def _start_by_psutil(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return ""
