"""Record which processes a launcher starts, so that the next one finds and ends them even if they change their environment.

Each spawn helper has a file `runs/LEASE-RANK-NUMBER` below the DB's directory: a header in JSON, then a line for the helper
itself and for each session leader that it has started, appended by single writes, and a line for each whose processes are gone.
Readers ignore incomplete lines. Spawn helpers import this module, so it imports little.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ...core.process_table import Belonging, Holder, Process, belonging, boot_id, living, signal_all

#: A file that is larger, in bytes, is rewritten without the programs that have ended.
MAX_BYTES = 1 << 20
#: After a failed write the next one is tried this much later, in seconds.
RETRY_S = 10.0
_NEW = ".new"


class RunEntry(NamedTuple):
    """The start of a program, which opened a session; job 0: of a spawn helper, or of a program that is no job's."""

    job: int
    attempt: int
    pid: int
    started: str  # as identity.start_of has it


class RunFile(NamedTuple):
    """The file in which a spawn helper records the programs that it starts."""

    path: str
    header: bytes
    mode: int


class RunFiles(NamedTuple):
    """The run files of one launcher on one node.

    Attributes:
        directory: of the files, `directories.RUNS` below the DB's.
        db_id: as `binding.id_of` has it.
        rank: of the node in the launcher; 0 for a launcher on one host.
        mode: of the files, as `directories.file_mode` has it.
    """

    directory: str
    db_id: str
    lease: int
    rank: int
    mode: int

    @classmethod
    def of(cls, db_directory: str, lease_mark: bytes, rank: int = 0) -> RunFiles:
        """Return the run files of the launcher with that `invocation.lease_mark`."""
        from ...db.engine import directories

        db_id, lease = os.fsdecode(lease_mark).split(":")[:2]
        return cls(os.path.join(db_directory, directories.RUNS), db_id, int(lease), rank, directories.file_mode(db_directory))

    def file(self, number: int) -> RunFile:
        """Return the file of the spawn helper with that number."""
        import json

        holder = Holder.current()
        head = {"db": self.db_id, "lease": self.lease, "rank": self.rank, **holder._asdict(), "boot": boot_id()}
        path = os.path.join(self.directory, f"{self.lease}-{self.rank}-{number}")
        return RunFile(path, json.dumps(head).encode() + b"\n", self.mode)


class Writer:
    """Appends to a run file, as long as its disk allows. The first record creates the file."""

    def __init__(self, file: RunFile) -> None:
        self._file = file
        self._fd = -1
        self._size = 0
        self._living: dict[int, bytes] = {}
        self._ends = b""
        self._retry_at = 0.0

    def start(self, pid: int, started: str, mark: bytes) -> str:
        """Record the start of a program with that run mark, at once. Return the problem with the file, or ""."""
        if not started:  # without /proc: the process could not be told from another one
            return ""
        run = mark.split(b":", 2)[2] if mark.count(b":") > 2 else b"0:0"
        self._living[pid] = line = b"+%d %b %b\n" % (pid, started.encode(), run)
        data, self._ends = self._ends + line, b""
        try:
            if self._fd < 0 or self._size > MAX_BYTES:
                if time.monotonic() < self._retry_at:
                    return ""
                self._write_anew()
                return ""
            if os.write(self._fd, data) < len(data):
                raise OSError(f"only a part of {len(data)} bytes could be written")
        except OSError as exc:
            self._give_up()
            return f"{self._file.path}: {exc.strerror or exc}"
        self._size += len(data)
        return ""

    def end(self, pid: int) -> None:
        """Record that no process of a program is left. This is written together with the next start."""
        if self._living.pop(pid, None) is not None:
            self._ends += b"-%d\n" % pid

    def _write_anew(self) -> None:
        directory, new = os.path.dirname(self._file.path), self._file.path + _NEW
        with suppress(FileExistsError):
            os.mkdir(directory)  # but never the DB's directory, which may have been removed
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, self._file.mode)
        data = b"".join([self._file.header, *self._living.values()])
        try:
            if os.write(fd, data) < len(data):
                raise OSError(f"only a part of {len(data)} bytes could be written")
            os.replace(new, self._file.path)
        except OSError:
            os.close(fd)
            with suppress(OSError):
                os.unlink(new)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, min(len(data), MAX_BYTES // 2)

    def _give_up(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._retry_at = -1, time.monotonic() + RETRY_S


def read(directory: str, db_id: str, lease: int, rank: int | None = None, anywhere: bool = False) -> list[RunEntry]:
    """Return the programs started on this host, in this boot, under that lease, whose end is not recorded.

    Ignores files that cannot be read, or belong to another DB. With `rank`, only programs started by that rank; with
    `anywhere`, also programs started elsewhere, whose pids mean nothing here.
    """
    found: list[RunEntry] = []
    for path in _paths(directory, lease, rank):
        head, lines = _contents(path, anywhere=anywhere)
        if head == (db_id, lease):
            found += _records(lines)
    return found


def leases_here(directory: str, db_id: str) -> set[int]:
    """Return the leases of that DB under which programs were started on this host, in this boot."""
    heads = (_contents(path, records=False)[0] for path in _paths(directory))
    return {head[1] for head in heads if head is not None and head[0] == db_id}


def remove(directory: str, lease: int, rank: int | None = None, host: str = "") -> None:
    """Remove the files of a lease without running processes, or those of one of its nodes.

    With `host`, files of other hosts stay: processes there are still to be ended.
    """
    for path in _paths(directory, lease, rank, suffixes=("", _NEW)):
        with suppress(OSError):
            if not host or _parts(path, records=False)[0].get("host", host) == host:  # or it is damaged, or no run file
                os.unlink(path)


def _paths(
    directory: str, lease: int | None = None, rank: int | None = None, suffixes: tuple[str, ...] = ("",)
) -> Iterator[str]:
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        stem = name.partition(".")[0]
        numbers = stem.split("-")
        if len(numbers) != 3 or not all(map(str.isdecimal, numbers)) or name[len(stem) :] not in suffixes:
            continue
        if lease in (None, int(numbers[0])) and rank in (None, int(numbers[1])):
            yield os.path.join(directory, name)


def _parts(path: str, records: bool = True) -> tuple[dict[str, Any], list[bytes]]:
    """Return the header of a file, {} if it has none, and its lines. Raises OSError."""
    import json

    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
        head, text = file.readline(4096), file.read(64 * MAX_BYTES) if records else b""
    try:
        found = json.loads(head)
    except ValueError:
        found = {}
    return found if isinstance(found, dict) else {}, text.split(b"\n")[:-1]


def _contents(path: str, records: bool = True, anywhere: bool = False) -> tuple[tuple[str, int] | None, list[bytes]]:
    """Return DB id and lease of a file whose pids are valid on this host (or `anywhere`), else None; and its lines."""
    try:
        found, lines = _parts(path, records)
        holder = Holder(found["host"], found["pid_namespace"], found["pid"], found["started"])
        is_valid = anywhere or (found["boot"] == boot_id() and holder.is_here())
        return ((str(found["db"]), int(found["lease"])) if is_valid else None), lines
    except (OSError, ValueError, KeyError, TypeError):
        return None, []


def _records(lines: list[bytes]) -> list[RunEntry]:
    living: dict[int, RunEntry] = {}
    for line in lines:
        words = line[1:].replace(b"@", b" ").replace(b":", b" ").split(b" ")
        if line[:1] == b"-" and line[1:].isdigit():
            living.pop(int(line[1:]), None)
        elif line[:1] == b"+" and len(words) in (4, 5) and all(word.replace(b".", b"", 1).isdigit() for word in words):
            with suppress(ValueError):
                pid, job, attempt = int(words[0]), int(words[2]), int(words[3])
                if 1 < pid < 1 << 31:
                    living[pid] = RunEntry(job, attempt, pid, words[1].decode())
    return list(living.values())


# --- processes of attempts on this host, by session leaders, sessions, run marks and descent --------------------------

#: A process that has not ended this many seconds after SIGKILL waits for a file system, or now belongs to another user.
UNKILLABLE_S = 30.0
#: Seconds for which a process with an unreadable environment may belong to a run. During execve(2) that lasts milliseconds.
MAX_UNKNOWN_S = 10.0
_PERIOD_S = 0.01


def node_mark(rank: int) -> bytes:
    """Return the end of the run marks of all runs that this rank has started; "" for rank 0, the launcher."""
    return b"@%d" % rank if rank else b""


class Orphans(NamedTuple):
    """The result of `end_runs`."""

    number: int
    left: tuple[int, ...] = ()  # the pids of those that cannot be killed


def runs_of(db_directory: str, leases: Collection[bytes]) -> Belonging:
    """Return the processes on this host of the attempts that were started under leases, in the form of `lease_mark`."""
    return belonging(leaders_of(db_directory, leases), (), tuple(leases), node_mark(0))


def leaders_of(db_directory: str, marks: Iterable[bytes], rank: int | None = None) -> list[tuple[int, str]]:
    """Return pid and start of each session leader that was recorded here under those leases or for those runs.

    For leases these include the spawn helpers, which may still be alive: everything that they have started is below them.
    """
    from ...db.engine.directories import RUNS

    found: set[tuple[int, str]] = set()
    cache: dict[tuple[str, int], list[RunEntry]] = {}
    for mark in marks:
        db_id, lease, *run = os.fsdecode(mark).partition("@")[0].rstrip(":").split(":")
        if not lease.isdecimal() or not all(map(str.isdecimal, run)):
            continue
        key = (db_id, int(lease))
        if key not in cache:
            cache[key] = read(os.path.join(db_directory, RUNS), *key, rank)
        wanted = tuple(map(int, run))
        found.update((one.pid, one.started) for one in cache[key] if not wanted or wanted == (one.job, one.attempt))
    return sorted(found)


def end_runs(
    db_directory: str,
    grace_s: float,
    leases: Collection[bytes] = (),
    runs: Collection[bytes] = (),
    rank: int | None = None,
) -> Orphans:
    """End the processes that `runs_of` finds: TERM, grace, KILL. Wait for their end for a limited time.

    For launchers that are provably dead, for one that gives up, and for single attempts whose end no spawn helper reports.
    """
    if not leases and not runs:
        return Orphans(0)
    known_at = time.monotonic() + MAX_UNKNOWN_S
    kill_at = float("inf")  # until something has been told to end
    found: set[Process] = set()
    number = signal.SIGTERM
    leaders = leaders_of(db_directory, [*leases, *runs], rank)
    while True:
        members, unknown = belonging(leaders, runs, tuple(leases), node_mark(rank or 0))
        members = list({*members, *living(found)})  # one may have left its session since
        now = time.monotonic()
        if not members and (not unknown or now > known_at):
            known, leaders = leaders, leaders_of(db_directory, [*leases, *runs], rank)
            if leaders == known:
                return Orphans(len(found))
        if members and (number == signal.SIGKILL or not found.issuperset(members)):
            signal_all(members, number)
            kill_at = min(kill_at, now + grace_s)
        found.update(members)
        if members and now > kill_at + UNKILLABLE_S:
            return _report_stubborn(len(found), members)
        if now > kill_at:
            number = signal.SIGKILL
        time.sleep(_PERIOD_S)


def end_own_runs(db_directory: str, lease_mark: bytes, grace_s: float, rank: int | None = None) -> None:
    """End the processes of a launcher that gives up on this host. Remove its run files if no process is left then."""
    if not end_runs(db_directory, grace_s, [lease_mark], rank=rank).left:
        forget(db_directory, lease_mark, rank)


def forget(db_directory: str, lease_mark: bytes, rank: int | None = None) -> None:
    """Remove the run files of a launcher, or of one of its ranks, that has no running process any more."""
    files = RunFiles.of(db_directory, lease_mark)
    remove(files.directory, files.lease, rank)


def _report_stubborn(number: int, members: Sequence[Process]) -> Orphans:
    import logging  # not needed in spawn helpers

    pids = tuple(member.pid for member in members)
    log = logging.getLogger(__name__)
    log.warning("Killed, but not gone after %g s: process(es) %s", UNKILLABLE_S, ", ".join(map(str, pids)))
    return Orphans(number, pids)
