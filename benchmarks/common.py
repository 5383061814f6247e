"""What the benchmarks share: a scratch directory, the machine, whole commands with their time, CPU and memory.

Every benchmark prints one JSON line on stdout; what it is doing goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from balsam_lite.db.engine import directories, filesystem
from balsam_lite.db.engine.connection import FILE_NAME, Database
from balsam_lite.db.store import apps, claims, insert

#: How long a launcher waits for more work where other programs may add some.
IDLE_TTL_S = 1.0
TRUE = shutil.which("true") or "/bin/true"
_TICKS = os.sysconf("SC_CLK_TCK")
#: Source: prctl(2), Linux 3.4 and later.
_PR_SET_CHILD_SUBREAPER = 36
_ORPHANS_END_S = 30.0


# --- the command line, the result -------------------------------------------------------------------------------------


def parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have; `--help` shows the script's docstring."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--dir", help="where to work (default: a tmpfs, /dev/shm, if there is one, else the temp directory)")
    made.add_argument("--balsam", metavar="PATH", help="the `balsam` to time (default: beside this Python, else on PATH)")
    return made


def at_least(least: int) -> Callable[[str], int]:
    """A whole number of `least` or more, for argparse."""

    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, not {value}")
        return value

    return whole_number


def say(text: str) -> None:
    """What goes on, for who watches."""
    print(text, file=sys.stderr, flush=True)


def emit(name: str, figures: dict[str, Any], machine: dict[str, Any]) -> None:
    """The one line of the result."""
    print(json.dumps({"benchmark": name, **_rounded(figures), "machine": machine}), flush=True)


def _rounded(value: Any) -> Any:
    """Four significant digits are more than any of these figures has."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, (list, tuple)) else value


def cores() -> int:
    """The cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def machine_at(directory: str) -> dict[str, Any]:
    """What the figures depend on. Call it before the work: it holds the load average."""
    return {
        "cores": cores(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "kernel": f"{platform.system()} {platform.release()}",
        "file_system": filesystem.mount_of(directory).kind,
        "load_before": list(os.getloadavg()),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


@contextmanager
def scratch(wanted: str | None) -> Iterator[str]:
    """A new directory that is removed at the very end, and not a part of it sooner.

    Deleting large trees makes the next `mkdir` on ext4 many times slower. The user's own settings and list of DBs are kept
    out of it.
    """
    base = wanted or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
    os.makedirs(base, exist_ok=True)
    made = tempfile.mkdtemp(prefix="balsam-bench-", dir=base)
    for variable in [name for name in os.environ if name.startswith("BALSAM_")]:
        del os.environ[variable]
    os.environ["BALSAM_HOME"] = os.path.join(made, "home")
    os.environ["BALSAM_IDLE_TTL_S"] = str(IDLE_TTL_S)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


# --- a DB -------------------------------------------------------------------------------------------------------------


def job_dicts(count: int, application: str = "task", **fields: Any) -> Iterator[dict[str, Any]]:
    """Jobs as a user's script makes them: a name, a workflow, an application, arguments, and `fields`."""
    for number in range(count):
        yield {"name": f"task-{number:07d}", "workflow": "bench", "application": application, "args": str(number), **fields}


def make_db(directory: str, command: str) -> Database:
    """A new DB whose application `task` is `command`."""
    database = directories.create(directory)
    with database.write() as cx:
        apps.add_app(cx, {"name": "task", "executable": command})
    return database


def make_db_with_jobs(directory: str, command: str, jobs: Iterable[dict[str, Any]]) -> None:
    """The same with jobs, in a child: its memory would count as that of the launchers which this process starts."""

    def fill() -> None:
        database = make_db(directory, command)
        insert.add_jobs(database, jobs)
        database.close()

    in_child(fill)


class FixedCapacity:
    """A capacity for a number of jobs of any shape, once."""

    preparations = 0

    def __init__(self, places: int) -> None:
        self._places = places

    def fits(self, shape: claims.Shape) -> bool:
        return True

    def count(self, shape: claims.Shape) -> int:
        return self._places

    def reserve(self, shape: claims.Shape) -> object:
        self._places -= 1
        return self if self._places >= 0 else None

    def describe(self, place: object) -> tuple[str, str]:
        return "host/1", ""


def in_child(work: Callable[[], None]) -> None:
    """Do it in a forked process; RuntimeError if it fails there."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001  # a child must not go on as a second benchmark
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError("the preparation failed, see above")


def file_bytes(directory: str) -> int:
    """The size of the database file with everything that was in the WAL. Nobody else may have it open."""
    cx = sqlite3.connect(os.path.join(directory, FILE_NAME))
    cx.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    cx.close()
    return os.path.getsize(os.path.join(directory, FILE_NAME))


class Span(NamedTuple):
    """What the history of a DB says of a run, in seconds since the epoch."""

    first_running: float
    last_finished: float
    finished: int

    @property
    def seconds(self) -> float:
        return self.last_finished - self.first_running


def span_of(directory: str) -> Span:
    """First RUNNING and last JOB_FINISHED of all events."""
    cx = sqlite3.connect(os.path.join(directory, FILE_NAME))
    try:
        started = cx.execute("SELECT min(time) FROM event WHERE to_state = 'RUNNING'").fetchone()[0]
        ended, count = cx.execute("SELECT max(time), count(*) FROM event WHERE to_state = 'JOB_FINISHED'").fetchone()
    finally:
        cx.close()
    return Span((started or 0) / 1e6, (ended or 0) / 1e6, count)


# --- whole commands ---------------------------------------------------------------------------------------------------


class Commands(NamedTuple):
    """How to call what is timed."""

    balsam: list[str]
    python: str  # the one that `balsam` runs on

    @classmethod
    def find(cls, named: str | None) -> Commands:
        """The `balsam` named, else the one beside this Python, else on PATH, else the package that this Python sees."""
        beside = os.path.join(os.path.dirname(sys.executable), "balsam")
        path = named or (beside if os.path.exists(beside) else shutil.which("balsam"))
        if path is None:
            code = "import sys; from balsam_lite.cli.main import main; sys.exit(main())"
            return cls([sys.executable, "-c", code], sys.executable)
        with open(path, "rb") as file:
            words = file.readline().decode(errors="replace").rstrip().split()
        is_script = len(words) == 1 and words[0].startswith("#!/")
        return cls([path], words[0][2:] if is_script else sys.executable)


class Ended(NamedTuple):
    """A process that is over."""

    code: int
    seconds: float
    own_cpu_s: float
    children_cpu_s: float  # of the children that it waited for
    helpers_cpu_s: float  # in that, what lasting children used themselves, without their own children; as last seen
    max_rss_mb: float  # ru_maxrss; Linux never gives less than its parent had when it was started
    peak_rss_mb: float  # the highest VmHWM that was seen, which is its own; 0 where there is none


class Running:
    """A child process whose end is waited for with everything that the system knows about it."""

    def __init__(self, argv: Sequence[str], output: str = os.devnull) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = ((os.POSIX_SPAWN_OPEN, 1, output, flags, 0o666), (os.POSIX_SPAWN_DUP2, 1, 2))
        self.argv, self._output, self._peak = list(argv), output, 0.0
        self._children: dict[int, list[float]] = {}  # pid -> its own CPU seconds, each time it was seen
        self.started_at = time.time()
        self._started = time.monotonic()
        self.pid = os.posix_spawn(argv[0], list(argv), os.environ, file_actions=actions)

    def sample(self) -> None:
        """Remember the process's peak so far, and what its children have used. At its end it is too late to ask."""
        try:
            with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as file:
                found = [line.split()[1] for line in file if line.startswith("VmHWM:")]
        except OSError:
            return
        self._peak = max([self._peak, *(int(kib) / 1024 for kib in found)])
        for child in _children_of(self.pid):
            self._children.setdefault(child, []).append(sum(_times_of(child)[:2]))

    def wait(self, limit_s: float, sample_every_s: float = 0.25) -> Ended:
        """Wait for the end; at `limit_s` kill it and raise RuntimeError, also if its exit code is not 0."""
        handle = os.pidfd_open(self.pid) if hasattr(os, "pidfd_open") else None
        try:
            while not self._has_ended(handle, sample_every_s):
                self.sample()
                if time.monotonic() - self._started > limit_s:
                    os.kill(self.pid, 9)
                    os.waitpid(self.pid, 0)
                    raise RuntimeError(f"{self.argv} did not end within {limit_s:.0f} s\n{self._said()}")
        finally:
            if handle is not None:
                os.close(handle)
        seconds = time.monotonic() - self._started
        ended = self._reaped(seconds)
        if ended.code:
            raise RuntimeError(f"{self.argv} ended with code {ended.code}\n{self._said()}")
        return ended

    def _has_ended(self, handle: int | None, patience_s: float) -> bool:
        if handle is not None:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return bool(poll.poll(patience_s * 1000))
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return True
        time.sleep(min(patience_s, 0.005))
        return False

    def _reaped(self, seconds: float) -> Ended:
        # A zombie still has its times, its own and its children's apart; after wait4 only the sum is left.
        times = _times_of(self.pid)
        _, status, used = os.wait4(self.pid, 0)
        if not times:
            times = [used.ru_utime, used.ru_stime, 0.0, 0.0]
        unit = 1024 if sys.platform.startswith("linux") else 1024 * 1024
        helpers_s = sum(seen[-1] for seen in self._children.values() if len(seen) > 1)
        code = os.waitstatus_to_exitcode(status)
        return Ended(code, seconds, sum(times[:2]), sum(times[2:]), helpers_s, used.ru_maxrss / unit, self._peak)

    def _said(self) -> str:
        try:
            with open(self._output, encoding="utf-8", errors="replace") as file:
                return file.read()[-2000:]
        except OSError:
            return ""


def _times_of(pid: int) -> list[float]:
    """CPU seconds of a process: user, system, and the same of the children that it waited for; [] where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return [int(ticks) / _TICKS for ticks in file.read().rpartition(b") ")[2].split()[11:15]]
    except (OSError, ValueError):
        return []


def _children_of(pid: int) -> list[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _adopt_orphans() -> None:
    """Let what the children of this process leave running be this process's, so that its time is counted (Linux only)."""
    import ctypes

    if hasattr(ctypes.CDLL(None), "prctl"):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _orphans_cpu_s() -> float:
    """Wait for what a child has left to this process: the CPU seconds of that. RuntimeError if it does not end in time."""
    used_s, give_up_at = 0.0, time.monotonic() + _ORPHANS_END_S
    while True:
        try:
            pid, _, used = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return used_s
        used_s += used.ru_utime + used.ru_stime if pid else 0.0
        if not pid:
            if time.monotonic() > give_up_at:
                raise RuntimeError(f"processes that the launcher left did not end within {_ORPHANS_END_S:.0f} s")
            time.sleep(0.01)


def seconds_of(argv: Sequence[str]) -> float:
    """The wall time of a command, from before it is started to after it has ended, output thrown away."""
    actions = tuple((os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3))
    started = time.perf_counter()
    pid = os.posix_spawn(argv[0], list(argv), os.environ, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise RuntimeError(f"{list(argv)} failed with status {status}")
    return seconds


def alternating(commands: dict[str, list[str]], times: int) -> dict[str, dict[str, float]]:
    """Run each of the commands in turn, `times` rounds, after one round that does not count: {name: median_ms, min_ms}."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(times + 1):
        for name, argv in commands.items():
            seconds = seconds_of(argv)
            if turn:
                taken[name].append(seconds * 1000)
    return {name: {"median_ms": statistics.median(ms), "min_ms": min(ms)} for name, ms in taken.items()}


def ratios(measured: dict[str, dict[str, float]], over: str) -> dict[str, dict[str, float]]:
    """Each command's median and minimum over those of the command `over`."""
    base = measured[over]
    return {
        name: {"median": one["median_ms"] / base["median_ms"], "min": one["min_ms"] / base["min_ms"]}
        for name, one in measured.items()
        if name != over
    }


def launcher_argv(commands: Commands, directory: str, nodes: int, job_mode: str = "serial") -> list[str]:
    """`balsam launcher` for all jobs of a DB."""
    options = ["--consume-all", "--job-mode", job_mode, "--nodes", str(nodes)]
    return [*commands.balsam, "--db", directory, "launcher", *options]


def run_launcher(
    commands: Commands, directory: str, nodes: int, jobs: int, limit_s: float, job_mode: str = "serial"
) -> tuple[Ended, Span]:
    """Let a launcher do all of the jobs; RuntimeError unless all of them finished. Nothing else may run meanwhile.

    What it leaves running is waited for, and counts as its children.
    """
    _adopt_orphans()
    ended = Running(launcher_argv(commands, directory, nodes, job_mode), f"{directory}.launcher").wait(limit_s)
    ended = ended._replace(children_cpu_s=ended.children_cpu_s + _orphans_cpu_s())
    span = span_of(directory)
    if span.finished != jobs:
        raise RuntimeError(f"{span.finished} of {jobs} jobs finished; see {directory}")
    return ended, span


def own_peak_rss_mb() -> float:
    """The most memory that this process has had."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM:"))
    except OSError:  # macOS: in bytes, and with what the parent had
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024


def own_rss_mb() -> float:
    """The memory that this process has now, below which no `max_rss_mb` of a child can be."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024 / 1024
    except OSError:
        return 0.0


class Bench:
    """One run of a benchmark in a scratch directory: the machine before it, the commands to time, a place for each DB."""

    def __init__(self, place: str, balsam: str | None) -> None:
        self.machine = machine_at(place)
        self.commands = Commands.find(balsam)
        self.place = place
        self._made = 0
        empty = self.new_directory()
        make_db_with_jobs(empty, TRUE, ())
        self.empty_bytes = file_bytes(empty)

    def new_directory(self) -> str:
        """A path for one more DB."""
        self._made += 1
        return os.path.join(self.place, f"db_{self._made}")
