"""MPI jobs through the real launcher: a real mpiexec, and a thousand that only sleep.

1. N jobs of two ranks of `sleep 0.01` by the machine's own MPI command, `--at-once` of them packed on one node, by `balsam
   launcher --job-mode mpi` in a process of its own. `ratio` is jobs per second from the first RUNNING to the last
   JOB_FINISHED event over the mean rate of a bare loop, right before and right after, that starts the same command lines, as
   many at once, and records nothing.
2. `--sleepers` jobs of two ranks at once, whose MPI command is a stand-in that sleeps: `starts_per_s` from the first true
   start to the last, `cpu_percent_while_running` what the launcher uses of one core when all of them run.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Any

import common
from dataflow import cpu_s
from limit import Limit

from balsam_lite.core.settings import Settings
from balsam_lite.db.engine.connection import FILE_NAME
from balsam_lite.launcher.mpirun import find
from balsam_lite.launcher.mpirun.flavours import RankLayout
from balsam_lite.launcher.mpirun.starter import Starter

_RANKS = 2
#: MPICH's mpiexec dies of SIGPIPE in one of a hundred runs of programs that end at once, such as true, in a shell as well.
_NAP = (shutil.which("sleep") or "/bin/sleep", "0.01")
_MARGIN_S = 15.0  # for starting the sleepers
_LOOK_S = 5.0


def real_round(bench: common.Bench, limit: Limit, starter: Starter, jobs: int, at_once: int) -> dict[str, Any]:
    """Jobs by a real mpiexec, the bare loop before and after."""
    directory = bench.new_directory()
    fields = {"ranks_per_node": _RANKS, "node_packing_count": at_once, "args": _NAP[1]}
    common.make_db_with_jobs(directory, _NAP[0], ({**job, **fields} for job in common.job_dicts(jobs)))
    words = [*starter.prefix(RankLayout(ranks_per_node=_RANKS)), *_NAP]

    def bare() -> float:
        return limit.measure(jobs, 1, at_once, words).spawns_per_s

    before = bare()
    ended, span = common.run_launcher(bench.commands, directory, 1, jobs, 60 + jobs, "mpi")
    limits = (before, bare())
    rate = jobs / span.seconds
    return {
        "ratio": rate / statistics.mean(limits),
        "jobs_per_s": rate,
        "limit_per_s": limits,
        "launcher_cpu_ms_per_job": ended.own_cpu_s / jobs * 1000,
    }


def sleepers_round(bench: common.Bench, sleepers: int) -> dict[str, Any]:
    """Many at once, each a stand-in for mpiexec that sleeps until all are started and looked at."""
    directory = bench.new_directory()
    command = Path(bench.place, "mpiexec-stand-in")
    command.write_text(f"#!/bin/sh\nexec sleep {_MARGIN_S + 2 * _LOOK_S + sleepers / 100:g}\n")
    command.chmod(0o755)
    os.environ.update(BALSAM_MPI_FLAVOUR="mpich", BALSAM_MPI_RUN_EXE=str(command), BALSAM_MAX_CONCURRENT_MPIRUNS=str(sleepers))
    common.make_db_with_jobs(directory, common.TRUE, common.job_dicts(sleepers, args="", ranks_per_node=_RANKS))
    running = common.Running(common.launcher_argv(bench.commands, directory, sleepers, "mpi"), f"{directory}.launcher")
    try:
        give_up = time.monotonic() + 60 + sleepers / 10
        while _in_state(directory, "RUNNING") < sleepers:
            if time.monotonic() > give_up:
                raise RuntimeError(f"only {_in_state(directory, 'RUNNING')} of {sleepers} run; see {directory}.launcher")
            time.sleep(0.25)
        time.sleep(2)
        used, begun = cpu_s(running.pid), time.monotonic()
        time.sleep(_LOOK_S)
        share = 100 * (cpu_s(running.pid) - used) / (time.monotonic() - begun)
    finally:
        ended = running.wait(300)
    starts = _true_starts(directory)
    return {
        "sleepers": sleepers,
        "starts_per_s": (len(starts) - 1) / (max(starts) - min(starts)),
        "cpu_percent_while_running": share,
        "sleepers_cpu_ms_per_job": ended.own_cpu_s / sleepers * 1000,
        "sleepers_peak_rss_mb": ended.peak_rss_mb,
    }


def _in_state(directory: str, state: str) -> int:
    cx = sqlite3.connect(os.path.join(directory, FILE_NAME), timeout=30)
    try:
        return int(cx.execute("SELECT count(*) FROM job WHERE state = ?", (state,)).fetchone()[0])
    finally:
        cx.close()


def _true_starts(directory: str) -> list[float]:
    """When each program was really started, in seconds."""
    cx = sqlite3.connect(os.path.join(directory, FILE_NAME))
    try:
        rows = cx.execute("SELECT started FROM run WHERE started IS NOT NULL").fetchall()
    finally:
        cx.close()
    return [started / 1e6 for (started,) in rows]


def main() -> None:
    """Both parts, one line."""
    parser = common.parser(__doc__)
    parser.add_argument("jobs", nargs="?", type=common.at_least(2), default=64, metavar="N", help="of a real mpiexec (64)")
    parser.add_argument("--at-once", type=common.at_least(1), default=4, metavar="K", help="of these (4)")
    parser.add_argument("--repeat", type=common.at_least(1), default=3, metavar="R", help="rounds (3)")
    parser.add_argument("--sleepers", type=common.at_least(0), default=1000, metavar="N", help="stand-ins, or 0 (1000)")
    arguments = parser.parse_args()
    starter = find(Settings(), os.environ)
    if isinstance(starter, str):
        parser.error(f"there is no MPI command: {starter}")
    with common.scratch(arguments.dir) as place:
        bench, limit = common.Bench(place, arguments.balsam), Limit(place)
        rounds = []
        for number in range(arguments.repeat):
            common.say(f"mpi: round {number + 1} of {arguments.repeat}")
            rounds.append(real_round(bench, limit, starter, arguments.jobs, arguments.at_once))
        median = statistics.median_low(one["ratio"] for one in rounds)
        chosen = next(one for one in rounds if one["ratio"] == median)
        common.say(f"mpi: {arguments.sleepers} at once")
        sleepers = sleepers_round(bench, arguments.sleepers) if arguments.sleepers else {}
        own = {"flavour": starter.flavour.name, "at_once": arguments.at_once, "tried": [one["ratio"] for one in rounds]}
        common.emit("mpi", {"jobs": arguments.jobs, **chosen, **sleepers, **own}, bench.machine)


if __name__ == "__main__":
    main()
