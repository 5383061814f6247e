"""Identify processes, prove that one is dead, and find processes of this host that belong together.

A process is identified by its host, its pid namespace, its pid and its start. Two containers may share a host name and two
hosts a boot id, so a pid is meaningful only if host name *and* pid namespace are the same, and together with the start of
the process. Processes belong together by session, by descent, or by a mark in their environment.
Reads /proc on Linux, uses psutil elsewhere; stores nothing.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from . import job_files
from .import_guard import IMPORTING_VARIABLE

_LINUX = sys.platform.startswith("linux")
#: The start of a living process if nothing tells when it was started.
UNKNOWN_START = "?"


class Holder(NamedTuple):
    """A process that holds something, for as long as it lives."""

    host: str
    pid_namespace: str
    pid: int
    started: str  # opaque; equal for the same process, different for a recycled pid

    @classmethod
    def current(cls) -> Holder:
        """Return this process."""
        return cls(os.uname().nodename, _pid_namespace(), os.getpid(), start_of(os.getpid()))

    def is_here(self) -> bool:
        """Return whether this process can see the pid of that one."""
        return self.host == os.uname().nodename and self.pid_namespace == _pid_namespace()

    def is_provably_dead(self) -> bool:
        """Return True only by proof: same host and pid namespace, and no such process, or another one with its pid."""
        if not self.is_here():
            return False
        started = start_of(self.pid)
        return started == "" or (UNKNOWN_START not in (started, self.started) and self.started not in ("", started))


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux, or /proc is hidden: assume one namespace
        return ""


def boot_id() -> str:
    """Return what distinguishes this boot of the host from others, random(4); "" if that is unknown."""
    return read_proc("/proc/sys/kernel/random/boot_id").decode().strip()


def start_of(pid: int) -> str:
    """Return an opaque token for the start of process `pid`; "" if there is no such living process (a zombie is dead).

    UNKNOWN_START if it cannot be read: without /proc, or for another user's process on a /proc with hidepid=2 (proc(5)).
    """
    if not _LINUX:
        return _start_by_psutil(pid)
    stat = read_proc(f"/proc/{pid}/stat")
    if not stat:
        return _start_without_proc(pid)
    # proc_pid_stat(5): the 2nd field is the command in parentheses and may itself contain blanks and parentheses, so count
    # from the last one: state is the 3rd field, starttime (clock ticks since boot) the 22nd.
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


#: A shortage of files or memory that may pass, how often to try again because of it, and the seconds between.
_LACKS, _MAX_TRIES, RETRY_S = (errno.EMFILE, errno.ENFILE, errno.ENOMEM), 100, 0.05


def read_proc(path: str) -> bytes:
    """Return the contents of a file of /proc; b"" if its process has ended.

    Raises:
        OSError: for seconds this process or host has had too many open files. That does not prove the process dead.
    """
    for left in reversed(range(_MAX_TRIES)):
        try:
            with open(path, "rb") as file:
                return file.read()
        except OSError as exc:
            if exc.errno not in _LACKS:
                return b""
            if not left:
                raise
        time.sleep(RETRY_S)
    return b""


def _start_by_psutil(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.Error:
        return ""


#: Identifies the run to which a process belongs. Children inherit it, whatever session they open.
RUN_VARIABLE = "BALSAM_RUN"
#: Set for a job's own scripts, which may change their job's state while the launcher holds it: "preprocess" or "postprocess".
HOOK_VARIABLE = "BALSAM_HOOK"
#: Set for processes that a job starts but that are not part of it, such as local batch jobs. They outlive the launcher.
DETACHED_VARIABLE = "BALSAM_DETACHED"
#: Variables that name the job, run and launcher of a process. Code that starts something else removes them.
JOB_VARIABLES = (
    RUN_VARIABLE,
    HOOK_VARIABLE,
    "BALSAM_JOB_ID",
    "BALSAM_ATTEMPT",
    *job_files.NAMES,
    "BALSAM_JOB_TIMEOUT",
    "BALSAM_JOB_ERROR",
    "BALSAM_LAUNCHER_NODES",
    "BALSAM_JOB_MODE",
    DETACHED_VARIABLE,
    IMPORTING_VARIABLE,
)

_MARK = RUN_VARIABLE.encode() + b"="
_DETACHED = DETACHED_VARIABLE.encode() + b"="
#: The index of env_end among the fields of /proc/PID/stat after the name, proc_pid_stat(5).
_ENV_END = 48


class Process(NamedTuple):
    """A living process (zombies are excluded)."""

    pid: int
    parent: int
    group: int
    session: int
    started: str  # as `start_of` returns it

    def signal(self, number: int) -> None:
        """Send the process a signal, unless it has ended or its pid belongs to another process now."""
        signal_process(self.pid, self.started, number)


def family(leader: Holder, seen: Iterable[Process] = ()) -> list[Process]:
    """Return living processes of the session that `leader` opened, their descendants, and those of `seen` that still live.

    A dead leader leaves its session running; another process that got its pid is recognized by its start.
    """
    table = {process.pid: process for process in _table()}
    found = {process.pid for process in seen if table.get(process.pid, process).started == process.started} & set(table)
    stranger = leader.pid in table and table[leader.pid].started != leader.started
    if not stranger:
        found |= {p.pid for p in table.values() if leader.pid in (p.pid, p.session, p.group)}
    return [table[pid] for pid in _with_descendants(found, table.values()) - {os.getpid()}]


def _with_descendants(pids: set[int], table: Iterable[Process], but: Collection[int] = ()) -> set[int]:
    """Return these pids, and those of all their descendants, but not through one of `but`."""
    children: dict[int, list[int]] = {}
    for process in table:
        children.setdefault(process.parent, []).append(process.pid)
    found, to_visit = set(pids), list(pids)
    while to_visit:
        fresh = [pid for pid in children.get(to_visit.pop(), ()) if pid not in found and pid not in but]
        found.update(fresh)
        to_visit += fresh
    return found


class Belonging(NamedTuple):
    """The processes that `belonging` found."""

    members: list[Process]
    unknown: list[Process]  # may belong to it: their environment cannot be read now


def belonging(
    leaders: Iterable[tuple[int, str]] = (),
    marks: Collection[bytes] = (),
    prefix: bytes | tuple[bytes, ...] = (),
    suffix: bytes = b"",
) -> Belonging:
    """Return the living processes of runs on this host: by session leaders, sessions, groups, run marks and descent.

    A process with another run mark belongs to another run, even in such a session. A detached one (BALSAM_DETACHED) is omitted
    unless it has one of `marks` or is in the process group of a leader that lives. Opens files of /proc; signals nothing.

    Args:
        leaders: pid and start of processes that opened a session. One that has ended may have left its session running. If
            another process has its pid, nothing of that session lives: the kernel does not reuse the number of a session.
        marks: run marks, one of which they must have.
        prefix, suffix: alternatively, the prefix and suffix of their run mark.
    """
    table = {process.pid: process for process in _table()}
    starts = {pid: start for pid, start in leaders if pid not in table or start in ("", table[pid].started)}
    oldest = min((_ticks(start) for start in starts.values() if start), default=float("inf"))
    exact = marks if isinstance(marks, (set, frozenset)) else set(marks)
    by_mark = bool(exact or prefix)
    found, unknown, detached = set(), [], set()
    for process in table.values():
        leader = next((one for one in (process.pid, process.group, process.session) if one in starts), None)
        if leader is None and not by_mark:
            continue
        environ = _environ_of(process.pid)
        mark = _value(environ, _MARK)
        if mark in exact:
            found.add(process.pid)
        elif _value(environ, _DETACHED) is not None and not (process.group in starts and process.group in table):
            detached.add(process.pid)
        elif mark is not None and by_mark:
            if prefix and mark.startswith(prefix) and mark.endswith(suffix):
                found.add(process.pid)
        elif leader is not None:
            if is_younger(process.started, starts[leader]):
                found.add(process.pid)
        elif not environ and _may_be_younger(process, oldest, table) and _hides_its_environment(process.pid):
            unknown.append(process)
    if found:
        found = _with_descendants(found, table.values(), detached)
    found.discard(os.getpid())
    return Belonging([table[pid] for pid in found], [one for one in unknown if one.pid not in found])


def _may_be_younger(process: Process, oldest: float, table: Mapping[int, Process]) -> bool:
    """Return whether a process can be part of a run that began then: an older session cannot gain a process of the run."""
    leader = table.get(process.session, process)
    return min(_ticks(process.started), _ticks(leader.started)) >= oldest


def is_younger(start: str, other: str) -> bool:
    """Return whether a process with that start is not older than one with the other, as `start_of` returns them."""
    return _ticks(start) >= _ticks(other)


def _ticks(start: str) -> float:
    try:
        return float(start)
    except ValueError:
        return 0.0


def _hides_its_environment(pid: int) -> bool:
    """Return whether it is a program of this user whose environment is not known to be empty.

    proc_pid_stat(5): env_end is 0 in the middle of execve(2), and for a process that this one may not trace. A kernel thread
    has no memory.
    """
    status = read_proc(f"/proc/{pid}/status")
    uid = next((line.split()[1] for line in status.splitlines() if line.startswith(b"Uid:")), b"")
    if uid != b"%d" % os.getuid() or b"\nVmSize:" not in status:
        return False
    stat = read_proc(f"/proc/{pid}/stat")
    fields = stat[stat.rfind(b")") + 2 :].split()
    return len(fields) <= _ENV_END or fields[_ENV_END] == b"0"


def descendants(leaders: Iterable[tuple[int, str]], marks: Iterable[bytes]) -> list[Process]:
    """Return the members of those runs; see `belonging`."""
    return belonging(leaders, set(marks)).members


def below(pid: int) -> list[Process]:
    """Return all living descendants of that process, except detached ones."""
    table = {process.pid: process for process in _table()}
    found = _with_descendants({pid}, table.values()) - {pid}  # that one may itself be detached from what started it
    detached = {one for one in found if _value(_environ_of(one), _DETACHED) is not None}
    return [table[one] for one in found - _with_descendants(detached, table.values()) if one in table]


def sees_processes() -> bool:
    """Return whether the process table can be read: not in a container without /proc."""
    return not _LINUX or os.path.exists("/proc/self/stat")


def process_of(pid: int) -> Process | None:
    """Return a living process; None if it has ended."""
    return _parse(pid, read_proc(f"/proc/{pid}/stat")) if _LINUX else None


def run_mark_of(pid: int) -> bytes:
    """Return the run mark in the environment of a process; b"" if it has none, or it cannot be seen."""
    return _value(_environ_of(pid), _MARK) or b""


def is_detached(pid: int) -> bool:
    """Return whether a process is not part of the job that has started it."""
    return _value(_environ_of(pid), _DETACHED) is not None


def command_of(pid: int) -> str:
    """Return the name of a process, proc_pid_comm(5); "" if unknown."""
    return read_proc(f"/proc/{pid}/comm").decode(errors="replace").rstrip("\n") if _LINUX else ""


def state_of(pid: int) -> str:
    """Return the state of a process as in proc_pid_stat(5), T if it is stopped; "" if unknown."""
    stat = read_proc(f"/proc/{pid}/stat") if _LINUX else b""
    return stat[stat.rfind(b")") + 2 :][:1].decode()


def signal_all(processes: Iterable[Process], number: int) -> None:
    """Send a signal to each process that still lives, parents first.

    A shell that outlived its child for a moment would start its next command, or report how the child ended.
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


def signal_process(pid: int, started: str, number: int, is_group: bool = False) -> None:
    """Send a signal to a process, or to the group that it leads, unless it has ended or its pid is another process's now."""
    if start_of(pid) == started:
        try:
            (os.killpg if is_group else os.kill)(pid, number)
        except (ProcessLookupError, PermissionError):  # it has ended; or it became another user's, who handles it
            pass


def terminate_session(leader: Holder, members: Iterable[Process]) -> None:
    """Send SIGTERM, once, to each member of the leader's session. Other sessions belong to the processes that opened them."""
    signal_all([p for p in members if leader.pid in (p.session, p.group)], signal.SIGTERM)


def reap_adopted(pids: Iterable[int]) -> None:
    """Reap ended children of this process that it did not start but adopted as a subreaper."""
    for pid in pids:
        if pid > 0:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def living(processes: Iterable[Process]) -> list[Process]:
    """Return the processes that have not ended."""
    return [process for process in processes if start_of(process.pid) == process.started]


def _value(environ: bytes, begin: bytes) -> bytes | None:
    """Return a variable of an environment; `begin` is NAME=."""
    for entry in environ.split(b"\0"):
        if entry.startswith(begin):
            return entry[len(begin) :]
    return None


def _environ_of(pid: int) -> bytes:
    """Return the environment with which a process was started, proc_pid_environ(5); b"" if it cannot be seen."""
    return read_proc(f"/proc/{pid}/environ") if _LINUX else _environ_by_psutil(pid)


def _environ_by_psutil(pid: int) -> bytes:
    import psutil

    try:
        return b"\0".join(os.fsencode(f"{name}={value}") for name, value in psutil.Process(pid).environ().items())
    except psutil.Error:
        return b""


def _table() -> Iterator[Process]:
    if not _LINUX:
        yield from _table_by_psutil()
        return
    try:
        names = os.listdir("/proc")
    except OSError:  # it is not mounted; see `sees_processes`
        return
    for name in names:
        if name.isdigit():
            process = _parse(int(name), read_proc(f"/proc/{name}/stat"))
            if process:
                yield process


def _parse(pid: int, stat: bytes) -> Process | None:
    """Parse a line of /proc/PID/stat, proc_pid_stat(5); return None for a zombie and for anything unreadable.

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
        except OSError:  # it has ended, or belongs to another user
            continue
