"""A launcher on a file system that hosts share, while somebody on another host looks every second.

Two hosts are made of namespaces, each with a bindfs mount of its own of one directory: what one maps or caches the other does
not see, as on NFS or Lustre, so that the DB is opened in sessions. On one of them `balsam launcher` runs `--jobs` times
`sleep 0.2` in 8 slots; on the other, `balsam ls` and `balsam ls --by-states` run in turn, one a second. `utilisation` is the
time that this takes at best over the time from the first RUNNING to the last JOB_FINISHED event; `ls_ms` the median and the
most that a whole command took, Python's own start included (`python_ms`, in turn with them); `session_ms` what an empty
transaction takes, while nobody else is there. Needs root, bindfs and FUSE.
"""

from __future__ import annotations

import math
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import common

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import mounts  # the hosts of the tests

from balsam_lite.db.engine import directories, filesystem
from balsam_lite.db.store import apps, insert

_SLEEP_S, _NODES, _SLOTS_PER_NODE = 0.2, 2, 4

_SESSIONS = """
import sys, time
from balsam_lite.db.engine import directories
db = directories.open_database(sys.argv[1])
for kind in ("read", "write"):
    taken = []
    for _ in range(100):
        started = time.perf_counter()
        with getattr(db, kind)() as cx:
            cx.execute("SELECT 1" if kind == "read" else "UPDATE state_count SET jobs = jobs")
        taken.append(time.perf_counter() - started)
    print(sorted(taken)[50] * 1000)
"""


class Visitor(threading.Thread):
    """Looks at the DB from a host, once a second, until told to stop."""

    def __init__(self, host: mounts.Host, balsam: list[str], python: str) -> None:
        super().__init__(daemon=True)
        self._host = host
        self._commands = {"ls": [*balsam, "ls"], "by_states": [*balsam, "ls", "--by-states"], "python": [python, "-c", "pass"]}
        self.taken_ms: dict[str, list[float]] = {name: [] for name in self._commands}
        self.failed = ""
        self._over = threading.Event()

    def run(self) -> None:
        turn = 0
        while not self._over.wait(1.0):
            for name in (("ls", "by_states")[turn % 2], "python"):
                started = time.perf_counter()
                done = self._host.run(*self._commands[name])
                self.taken_ms[name].append((time.perf_counter() - started) * 1000)
                if done.returncode:
                    self.failed = done.stderr
            turn += 1

    def stop(self) -> dict[str, list[float]]:
        """What it saw; RuntimeError if a command failed."""
        self._over.set()
        self.join()
        if self.failed:
            raise RuntimeError(f"a visitor's command failed: {self.failed}")
        return self.taken_ms


def make_db(directory: str, jobs: int) -> None:
    """The DB and its jobs, made where the mounts come from."""
    database = directories.create(directory, filesystem.SHARED)
    with database.write() as cx:
        apps.add_app(cx, {"name": "task", "executable": shutil.which("sleep") or "/bin/sleep"})
    fields = {"node_packing_count": _SLOTS_PER_NODE, "args": str(_SLEEP_S)}
    insert.add_jobs(database, ({**job, **fields} for job in common.job_dicts(jobs)))
    database.close()


def one_round(bench: common.Bench, hosts: list[mounts.Host], back: Path, number: int, jobs: int) -> dict[str, Any]:
    """One launcher from start to end, watched."""
    make_db(str(back / f"db{number}"), jobs)
    first, second = hosts
    directory = str(first.point / f"db{number}")
    session_ms = [float(text) for text in first.run(bench.commands.python, "-c", _SESSIONS, directory).stdout.split()]
    visitor = Visitor(second, [*bench.commands.balsam, "--db", directory], bench.commands.python)
    visitor.start()
    ideal_s = math.ceil(jobs / (_NODES * _SLOTS_PER_NODE)) * _SLEEP_S
    words = common.launcher_argv(bench.commands, directory, _NODES)
    launcher = first.start(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    launcher.wait(60 + 20 * ideal_s)
    taken = visitor.stop()
    span = common.span_of(str(back / f"db{number}"))
    if span.finished != jobs:
        raise RuntimeError(f"{span.finished} of {jobs} jobs finished")
    return {
        "utilisation": ideal_s / span.seconds,
        "seconds": span.seconds,
        "ideal_s": ideal_s,
        "ls_ms": _median_and_most(taken["ls"]),
        "by_states_ms": _median_and_most(taken["by_states"]),
        "python_ms": _median_and_most(taken["python"]),
        "session_ms": dict(zip(("read", "write"), session_ms)),
    }


def _median_and_most(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "most": max(values)} if values else {}


def main() -> None:
    """`--repeat` launchers; the one with the median utilisation is printed, with the figures of all."""
    parser = common.parser(__doc__)
    parser.add_argument("--jobs", type=common.at_least(8), default=200, metavar="N", help="how many sleeps (200)")
    parser.add_argument("--repeat", type=common.at_least(1), default=3, metavar="R", help="launchers (3)")
    arguments = parser.parse_args()
    reason = mounts.why_not()
    if reason:
        common.say(f"shared: {reason}")
        return
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        with mounts.hosts(2, Path(place)) as hosts:
            rounds = [one_round(bench, hosts, Path(place, "back"), n, arguments.jobs) for n in range(arguments.repeat)]
        rounds.sort(key=lambda one: one["utilisation"])
        every = {"all_utilisations": [one["utilisation"] for one in rounds], "slots": _NODES * _SLOTS_PER_NODE}
        common.emit("shared", {"jobs": arguments.jobs, **rounds[(len(rounds) - 1) // 2], **every}, bench.machine)


if __name__ == "__main__":
    main()
