"""The limit: a bare loop that starts /bin/true with its output in a fresh file in a fresh directory, and records nothing.

One loop per core, each with `--in-flight` programs at a time, in C (limit.c, compiled into a temporary directory) or, where
there is no C compiler, in Python with os.posix_spawn. Prints the spawns per second of wall time and the CPU milliseconds
per spawn (loops and programs together, from rusage). The other benchmarks call `Limit.measure` right before and right after
what they measure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import common

_SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "limit.c")


class Figure(NamedTuple):
    """What one measurement gave."""

    spawns_per_s: float
    cpu_ms_per_spawn: float
    wall_s: float


class Limit:
    """The bare loop, ready to be measured in sub-directories of `directory`, which it does not clean up.

    `language` is "c" or "python"; None takes C if it can be compiled.
    """

    def __init__(self, directory: str, language: str | None = None) -> None:
        self._directory, self._rounds = directory, 0
        self._argv = [] if language == "python" else _compiled(directory)
        if language == "c" and not self._argv:
            raise RuntimeError("There is no C compiler (`cc`), or it failed.")
        self.language = "c" if self._argv else "python"
        if not self._argv:
            self._argv = [sys.executable, os.path.abspath(__file__), "--loop"]

    def measure(
        self, count: int, processes: int | None = None, in_flight: int = 2, program: Sequence[str] = (common.TRUE,)
    ) -> Figure:
        """Start `program` that many times; `process_table` None is one loop per core."""
        self._rounds += 1
        place = os.path.join(self._directory, f"limit_{self._rounds}")
        os.mkdir(place)
        loops = processes or common.cores()
        argv = [*self._argv, place, str(count), str(loops), str(in_flight), *program]
        answer = json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)
        return Figure(count / answer["wall_s"], answer["cpu_s"] / count * 1000, answer["wall_s"])


def _compiled(directory: str) -> list[str]:
    """The compiled loop as a command; [] where it cannot be made."""
    compiler = shutil.which("cc")
    if compiler is None:
        return []
    program = os.path.join(tempfile.mkdtemp(dir=directory), "limit")
    made = subprocess.run([compiler, "-O2", "-o", program, _SOURCE], check=False)
    return [program] if made.returncode == 0 else []


# --- the same in Python -----------------------------------------------------------------------------------------------


def _loop(place: str, first: int, end: int, in_flight: int, program: Sequence[str]) -> None:
    running = 0
    for number in range(first, end):
        if running == in_flight:
            _reap()
        else:
            running += 1
        folder = f"{place}/job_{number}"
        os.mkdir(folder)
        actions = (
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, f"{folder}/job.out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        )
        os.posix_spawn(program[0], program, os.environ, file_actions=actions)
    for _ in range(running):
        _reap()


def _reap() -> None:
    _, status = os.wait()
    if status:
        raise RuntimeError(f"a program ended with status {status}")


def _loops(place: str, count: int, processes: int, in_flight: int, program: Sequence[str]) -> None:
    """What limit.c does, with the same output."""
    started = time.monotonic()
    for process in range(processes):
        if os.fork() == 0:
            code = 1
            try:
                _loop(place, count * process // processes, count * (process + 1) // processes, in_flight, program)
                code = 0
            finally:
                os._exit(code)
    for _ in range(processes):
        _reap()
    wall_s = time.monotonic() - started
    used = os.times()
    print(json.dumps({"wall_s": wall_s, "cpu_s": sum(used[:4])}))


# --- the command ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure it three times, print the fastest and all."""
    if sys.argv[1:2] == ["--loop"]:
        place, count, processes, in_flight, *program = sys.argv[2:]
        _loops(place, int(count), int(processes), int(in_flight), program)
        return
    parser = common.parser(__doc__)
    parser.add_argument("count", nargs="?", type=common.at_least(1), default=2000, metavar="N", help="spawns (default: 2000)")
    parser.add_argument("--in-flight", type=common.at_least(1), default=2, metavar="K", help="programs at once per loop (2)")
    parser.add_argument("--processes", type=common.at_least(1), metavar="P", help="loops (default: one per core)")
    parser.add_argument("--language", choices=["c", "python"], help="default: c if it can be compiled")
    arguments = parser.parse_args()
    with common.scratch(arguments.dir) as place:
        machine = common.machine_at(place)
        bare = Limit(place, arguments.language)
        found = [bare.measure(arguments.count, arguments.processes, arguments.in_flight) for _ in range(3)]
        best = max(found)
        figures = {
            "spawns": arguments.count,
            "language": bare.language,
            "in_flight_per_loop": arguments.in_flight,
            "spawns_per_s": best.spawns_per_s,
            "cpu_ms_per_spawn": best.cpu_ms_per_spawn,
            "all_spawns_per_s": [one.spawns_per_s for one in found],
            "slowest_to_fastest": min(found).spawns_per_s / best.spawns_per_s,
        }
        common.emit("limit", figures, machine)


if __name__ == "__main__":
    main()
