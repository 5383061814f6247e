"""A chain of dependent jobs: how long from one job's end to the next one's.

`--hops` jobs of /bin/true, each the child of the one before, by `balsam launcher` in a process of its own. `ms_per_hop` is the
time from the first RUNNING to the last JOB_FINISHED event over the number of hops, the spawn included; `median_ms` and
`p95_ms` are those of the times between two JOB_FINISHED events. `spawn_ms` is what a bare loop needs to start /bin/true in a
fresh directory and to wait for it, one at a time, right before and right after; `ratio` is `ms_per_hop` over their mean.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
from typing import Any

import common
from limit import Limit

from balsam_lite.core.clock import SystemClock
from balsam_lite.db.engine.connection import FILE_NAME
from balsam_lite.db.store import graph, insert


def make_chain(directory: str, hops: int) -> None:
    """A DB with that chain, made in a child process."""

    def fill() -> None:
        database = common.make_db(directory, common.TRUE)
        ids = insert.add_jobs(database, common.job_dicts(hops, args="")).ids
        with database.write() as cx:
            graph.add_edges(cx, list(zip(ids, ids[1:])), SystemClock.now_us())
        database.close()

    common.in_child(fill)


def gaps_ms(directory: str) -> list[float]:
    """The times between the ends of two jobs that follow each other."""
    cx = sqlite3.connect(os.path.join(directory, FILE_NAME))
    try:
        ends = [row[0] for row in cx.execute("SELECT time FROM event WHERE to_state = 'JOB_FINISHED' ORDER BY job")]
    finally:
        cx.close()
    return sorted((after - before) / 1000 for before, after in zip(ends, ends[1:]))


def chain(bench: common.Bench, limit: Limit, hops: int) -> dict[str, Any]:
    """One chain, and the bare spawns before and after."""
    directory = bench.new_directory()
    make_chain(directory, hops)
    before = limit.measure(hops, processes=1, in_flight=1)
    ended, span = common.run_launcher(bench.commands, directory, common.cores(), hops, 60 + hops / 2)
    after = limit.measure(hops, processes=1, in_flight=1)
    spawn_ms = [one.wall_s / hops * 1000 for one in (before, after)]
    ms_per_hop = span.seconds / hops * 1000
    gaps = gaps_ms(directory)
    return {
        "hops": hops,
        "ms_per_hop": ms_per_hop,
        "median_ms": statistics.median(gaps),
        "p95_ms": gaps[int(0.95 * len(gaps))],
        "spawn_ms": spawn_ms,
        "ratio": ms_per_hop / statistics.mean(spawn_ms),
        "launcher_cpu_ms_per_hop": ended.own_cpu_s / hops * 1000,
    }


def main() -> None:
    """`--repeat` chains; the one with the median time is printed, with the times of all."""
    parser = common.parser(__doc__)
    parser.add_argument("--hops", type=common.at_least(3), default=200, metavar="N", help="jobs in the chain (200)")
    parser.add_argument("--repeat", type=common.at_least(1), default=3, metavar="R", help="chains (3)")
    arguments = parser.parse_args()
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        limit = Limit(place)
        rounds = sorted((chain(bench, limit, arguments.hops) for _ in range(arguments.repeat)), key=lambda r: r["ms_per_hop"])
        every = {"all_ms_per_hop": [one["ms_per_hop"] for one in rounds], "limit_language": limit.language}
        common.emit("latency", {**rounds[(len(rounds) - 1) // 2], **every}, bench.machine)


if __name__ == "__main__":
    main()
