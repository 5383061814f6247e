"""Which processes of this host belong together: by session, by descent, by a mark in their environment.

Looks and signals; keeps nothing. A pid is believed only together with the process's start.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from . import parent_variables
from .identity import Holder, read_proc, start_of
from .loading import LOADING_VARIABLE

#: Names the run that a process belongs to. Children inherit it, whatever session they open.
RUN_VARIABLE = "BALSAM_RUN"
#: Set for a job's own scripts, which may move their job while the launcher holds it: "preprocess" or "postprocess".
HOOK_VARIABLE = "BALSAM_HOOK"
#: Set for what a job starts that is no part of it, such as the batch jobs that it submits here. It outlives the launcher.
DETACHED_VARIABLE = "BALSAM_DETACHED"
#: What says to which job, run or launcher a process belongs. Whoever starts something that is no part of it leaves them out.
JOB_VARIABLES = (
    RUN_VARIABLE,
    HOOK_VARIABLE,
    "BALSAM_JOB_ID",
    "BALSAM_ATTEMPT",
    *parent_variables.NAMES,
    "BALSAM_JOB_TIMEOUT",
    "BALSAM_JOB_ERROR",
    "BALSAM_LAUNCHER_NODES",
    "BALSAM_JOB_MODE",
    DETACHED_VARIABLE,
    LOADING_VARIABLE,
)

_MARK = RUN_VARIABLE.encode() + b"="
_DETACHED = DETACHED_VARIABLE.encode() + b"="
_LINUX = sys.platform.startswith("linux")


class Process(NamedTuple):
    """A living process (a zombie is none)."""

    pid: int
    parent: int
    group: int
    session: int
    started: str  # as identity.start_of has it

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended or its pid is another process's now."""
        if start_of(self.pid) == self.started:
            try:
                os.kill(self.pid, number)
            except (ProcessLookupError, PermissionError):  # it has ended; or it became another user's, who looks after it
                pass


def family(leader: Holder, seen: Iterable[Process] = ()) -> list[Process]:
    """The living processes of the session that `leader` opened, their descendants, and those of `seen` that still live.

    A leader that is dead leaves its session behind; a stranger that got its pid is recognised by its start.
    """
    table = {process.pid: process for process in _table()}
    found = {process.pid for process in seen if table.get(process.pid, process).started == process.started} & set(table)
    stranger = leader.pid in table and table[leader.pid].started != leader.started
    if not stranger:
        found |= {p.pid for p in table.values() if leader.pid in (p.pid, p.session, p.group)}
    return [table[pid] for pid in _with_descendants(found, table.values()) - {os.getpid()}]


def _with_descendants(pids: set[int], table: Iterable[Process]) -> set[int]:
    children: dict[int, list[int]] = {}
    for process in table:
        children.setdefault(process.parent, []).append(process.pid)
    found, to_visit = set(pids), list(pids)
    while to_visit:
        fresh = [pid for pid in children.get(to_visit.pop(), ()) if pid not in found]
        found.update(fresh)
        to_visit += fresh
    return found


def descendants(leaders: Iterable[tuple[int, str]], marks: Iterable[bytes]) -> list[Process]:
    """Return all living processes below or in the sessions of `leaders`, and those whose run mark is one of `marks`.

    A leader is the pid of a process that opened a session, and its start. Where another process has that pid now, nothing of
    the session lives: no pid is given out anew that is still the number of a session or a group.
    """
    table = {process.pid: process for process in _table()}
    wanted = {pid for pid, start in leaders if pid not in table or start in ("", table[pid].started)}
    found = {p.pid for p in table.values() if not wanted.isdisjoint((p.pid, p.session, p.group))}
    exact = set(marks)
    if exact:
        found |= {pid for pid in table if _mark_of(pid) in exact}
    return [table[pid] for pid in _with_descendants(found, table.values()) - {os.getpid()}]


def below(pid: int) -> list[Process]:
    """Return all living processes below that one in the tree of processes, but those that are detached."""
    table = {process.pid: process for process in _table()}
    found = _with_descendants({pid}, table.values()) - {pid}  # that one may itself be detached from what started it
    detached = {one for one in found if _variable(one, _DETACHED) is not None}
    return [table[one] for one in found - _with_descendants(detached, table.values()) if one in table]


def state_of(pid: int) -> str:
    """Return the state of a process as proc_pid_stat(5) has it, T if it is stopped; "" where that is unknown."""
    stat = read_proc(f"/proc/{pid}/stat") if _LINUX else b""
    return stat[stat.rfind(b")") + 2 :][:1].decode()


def with_mark(prefix: bytes | tuple[bytes, ...], suffix: bytes = b"") -> list[Process]:
    """All living processes whose run mark starts with `prefix`, or with one of these, and ends with `suffix`."""
    found = ((process, _mark_of(process.pid) or b"") for process in _table() if process.pid != os.getpid())
    return [process for process, mark in found if mark.startswith(prefix) and mark.endswith(suffix)]


def signal_all(processes: Iterable[Process], number: int) -> None:
    """Send a signal to each that still lives, parents first.

    A shell that outlived its child by a moment would start its next command, or say by itself how it ended.
    """
    for process in _parents_first(processes):
        process.signal(number)


def _parents_first(processes: Iterable[Process]) -> Iterator[Process]:
    waiting = {process.pid: process for process in processes}
    while waiting:
        line = [waiting.popitem()[1]]
        while line[-1].parent in waiting:
            line.append(waiting.pop(line[-1].parent))
        yield from reversed(line)


def signal_child(pid: int, number: int) -> None:
    """Send a signal to a child that has not been waited for, alone."""
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def signal_group(leader: int, number: int) -> None:
    """Send a signal to the whole process group of a child that has not been waited for."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        pass


def terminate_session(leader: Holder, members: Iterable[Process]) -> None:
    """SIGTERM, once, to each member of the leader's session. Other sessions belong to whoever opened them."""
    signal_all([p for p in members if leader.pid in (p.session, p.group)], signal.SIGTERM)


def reap_adopted(pids: Iterable[int]) -> None:
    """Collect those that have ended and are children of this process, which has not started them but is a subreaper."""
    for pid in pids:
        if pid > 0:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def living(processes: Iterable[Process]) -> list[Process]:
    """Those that have not ended."""
    return [process for process in processes if start_of(process.pid) == process.started]


def _mark_of(pid: int) -> bytes | None:
    return _variable(pid, _MARK)


def _variable(pid: int, begin: bytes) -> bytes | None:
    """Return a variable of the environment with which a process was started; `begin` is NAME=."""
    if not _LINUX:
        return _variable_by_psutil(pid, os.fsdecode(begin[:-1]))
    for entry in read_proc(f"/proc/{pid}/environ").split(b"\0"):
        if entry.startswith(begin):
            return entry[len(begin) :]
    return None


def _variable_by_psutil(pid: int, name: str) -> bytes | None:
    import psutil

    try:
        value = psutil.Process(pid).environ().get(name)
    except psutil.Error:
        return None
    return None if value is None else os.fsencode(value)


def _table() -> Iterator[Process]:
    if not _LINUX:
        yield from _table_by_psutil()
        return
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = _parse(int(name), read_proc(f"/proc/{name}/stat"))
            if process:
                yield process


def _parse(pid: int, stat: bytes) -> Process | None:
    """Read a line of /proc/PID/stat, proc_pid_stat(5); None for a zombie and for anything unreadable.

    >>> _parse(7, b"7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0")
    Process(pid=7, parent=1, group=7, session=7, started='4711')
    """
    fields = stat[stat.rfind(b")") + 2 :].split()
    if len(fields) < 20 or fields[0] in b"ZX":
        return None
    return Process(pid, int(fields[1]), int(fields[2]), int(fields[3]), fields[19].decode())


def _table_by_psutil() -> Iterator[Process]:
    import psutil

    for found in psutil.process_iter(["pid", "ppid", "status", "create_time"]):
        pid, info = found.info["pid"], found.info
        try:
            if info["status"] != psutil.STATUS_ZOMBIE:
                yield Process(pid, info["ppid"], os.getpgid(pid), os.getsid(pid), str(info["create_time"]))
        except OSError:  # it has ended, or is none of ours
            continue
