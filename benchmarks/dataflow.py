"""What files, scripts and waiting children cost beside the programs themselves.

`chain`: `--hops` jobs of /bin/true, each the child of the one before, as in latency.py, by `balsam launcher` in a process of
its own. In `linked` each finds its parent's output linked into its working directory, in `plain` none wants a file, in
`hooked` each has /bin/true as its postprocess script. The figures are milliseconds per hop, from the first RUNNING to the last
JOB_FINISHED event. `spawn_ms` is what a bare loop needs to start /bin/true in a fresh directory and to wait for it, right
before and right after the three. `link_ms` is linked - plain; `hook_overhead_ms` is hooked - plain - spawn, what a script
costs a job beyond its own process.

`crowd`: the same with `--crowd` jobs that do not depend on one another, on all cores: milliseconds of wall time per job,
`plain` and `hooked`, and `two_spawns_ms`, which is what the bare loops need for two programs. `hook_overhead_ms` is hooked -
plain - half of that.

`fan_out_s`: the transaction that finishes a parent of `--children` children, commit included.

`waiting`: a launcher that stays and has nothing to do for `--idle` seconds, while `--waiting` children wait for a job that is
too large for it: `cpu_percent` of one core, and that of a launcher of an empty DB. `busy`: launcher CPU milliseconds for each
of the crowd's plain jobs, with and without as many waiting children in the same DB.

`import_ms`: `import balsam_lite.launcher.dag` over `python -c pass`, medians and minima of whole processes; `first_use` is the
same with a look at `dag.BalsamJob`, which loads the models.
"""

from __future__ import annotations

import glob
import os
import signal
import statistics
import time
from collections.abc import Iterator
from typing import Any

import common
from limit import Limit

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.store import apps, claims, graph, insert, leases, runs

_BARE, _IMPORT, _USE = "pass", "import balsam_lite.launcher.dag", "import balsam_lite.launcher.dag as d; d.BalsamJob"
#: Before the launcher is measured at rest it has started, claimed nothing and said why.
_SETTLE_S = 2.0


# --- DBs --------------------------------------------------------------------------------------------------------------


def make_jobs(directory: str, count: int, *, links: bool = False, hook: str = "", chained: bool = False) -> None:
    """A DB with that many jobs of /bin/true, made in a child process."""

    def jobs() -> Iterator[dict[str, Any]]:
        for number, job in enumerate(common.job_dicts(count)):
            wanted = f"task-{number - 1:07d}.out" if links and number else ""
            yield {**job, "args": "", "input_files": wanted}

    def fill() -> None:
        database = common.make_db(directory, common.TRUE)
        ids = insert.add_jobs(database, jobs()).ids
        with database.write() as cx:
            if hook:
                apps.add_app(cx, {"name": "hooked", "executable": common.TRUE, "postprocess": hook})
                cx.execute("UPDATE job SET application = 'hooked'")
            if chained:
                graph.add_edges(cx, list(zip(ids, ids[1:])), SystemClock.now_us())
        database.close()

    common.in_child(fill)


def add_waiting(directory: str, count: int) -> None:
    """Add a job that no launcher here can run, and its children."""

    def fill() -> None:
        database = directories.open_database(directory)
        (parent,) = insert.add_jobs(database, [{"application": "task", "num_nodes": 60_000}]).ids
        children = insert.add_jobs(database, common.job_dicts(count)).ids
        with database.write() as cx:
            graph.add_edges(cx, [(parent, child) for child in children], SystemClock.now_us())
        database.close()

    common.in_child(fill)


# --- what is measured -------------------------------------------------------------------------------------------------


def chain(bench: common.Bench, limit: Limit, hops: int) -> dict[str, Any]:
    """The three chains, and the bare spawns before and after."""
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "linked": {"links": True}, "hooked": {"hook": common.TRUE}}
    before = limit.measure(hops, processes=1, in_flight=1)
    ms: dict[str, float] = {}
    for name, how in kinds.items():
        directory = bench.new_directory()
        make_jobs(directory, hops, chained=True, **how)
        _, span = common.run_launcher(bench.commands, directory, common.cores(), hops, 60 + hops)
        ms[name] = span.seconds / hops * 1000
    after = limit.measure(hops, processes=1, in_flight=1)
    spawn_ms = [one.wall_s / hops * 1000 for one in (before, after)]
    return {
        "hops": hops,
        "spawn_ms": spawn_ms,
        "plain_ms_per_hop": ms["plain"],
        "linked_ms_per_hop": ms["linked"],
        "hooked_ms_per_hop": ms["hooked"],
        "link_ms": ms["linked"] - ms["plain"],
        "hook_overhead_ms": ms["hooked"] - ms["plain"] - statistics.mean(spawn_ms),
    }


def crowd(bench: common.Bench, limit: Limit, jobs: int) -> dict[str, Any]:
    """Jobs with and without a script, and two bare spawns for each before and after."""
    spawns = [limit.measure(2 * jobs)]
    ms: dict[str, float] = {}
    for name, hook in (("plain", ""), ("hooked", common.TRUE)):
        directory = bench.new_directory()
        make_jobs(directory, jobs, hook=hook)
        _, span = common.run_launcher(bench.commands, directory, common.cores(), jobs, 60 + jobs / 5)
        ms[name] = span.seconds / jobs * 1000
    spawns.append(limit.measure(2 * jobs))
    two_ms = [one.wall_s / jobs * 1000 for one in spawns]
    return {
        "jobs": jobs,
        "two_spawns_ms": two_ms,
        "plain_ms_per_job": ms["plain"],
        "hooked_ms_per_job": ms["hooked"],
        "hook_overhead_ms": ms["hooked"] - ms["plain"] - statistics.mean(two_ms) / 2,
    }


class _OnePlace:
    """What a launcher with one free place offers."""

    preparations = 0

    def __init__(self) -> None:
        self._free = 1

    def fits(self, shape: claims.Shape) -> bool:
        return True

    def count(self, shape: claims.Shape) -> int:
        return self._free

    def reserve(self, shape: claims.Shape) -> object:
        self._free -= 1
        return self if self._free >= 0 else None

    def describe(self, place: object) -> tuple[str, str]:
        return "host/1", ""


def fan_out_s(directory: str, children: int) -> float:
    """How long it takes to finish one job that so many wait for."""
    database = common.make_db(directory, common.TRUE)
    parent, *rest = insert.add_jobs(database, common.job_dicts(children + 1)).ids
    with database.write() as cx:
        graph.add_edges(cx, [(parent, child) for child in rest], SystemClock.now_us())
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", SystemClock.now_us())
        (claim,) = claims.take(cx, lease, _OnePlace(), claims.Filter(), SystemClock.now_us()).to_run
    started = time.perf_counter()
    with database.write() as cx:
        now_us = SystemClock.now_us()
        claims.finish(cx, lease, [runs.RunResult(claim.job, claim.attempt, "RUN_DONE", 0, "", now_us, now_us)], now_us)
    seconds = time.perf_counter() - started
    with database.read() as cx:
        (ready,) = cx.execute("SELECT count(*) FROM job WHERE state = 'READY'").fetchone()
    database.close()
    if ready != children:
        raise RuntimeError(f"{ready} of {children} children were released; see {directory}")
    return seconds


def idle_percent(bench: common.Bench, directory: str, seconds: float) -> float:
    """The share of one core that a launcher takes which stays and can start nothing."""
    argv = [*common.launcher_argv(bench.commands, directory, common.cores()), "--persistent"]
    launcher = common.Running(argv, f"{directory}.launcher")
    time.sleep(_SETTLE_S)
    before, started = cpu_s(launcher.pid), time.monotonic()
    time.sleep(seconds)
    share = 100 * (cpu_s(launcher.pid) - before) / (time.monotonic() - started)
    os.kill(launcher.pid, signal.SIGTERM)
    launcher.wait(60)
    return share


def cpu_s(pid: int) -> float:
    """The processor time of all its threads so far, more finely than in ticks. Linux only."""
    nanoseconds = 0
    for path in glob.glob(f"/proc/{pid}/task/*/schedstat"):
        with open(path, encoding="ascii") as file:
            nanoseconds += int(file.read().split()[0])
    return nanoseconds / 1e9


def waiting(bench: common.Bench, children: int, idle_s: float, jobs: int) -> dict[str, Any]:
    """A launcher at rest and one at work, with many children that wait and with none."""
    figures: dict[str, Any] = {"children": children}
    for key, count in (("empty", 0), ("waiting", children)):
        directory = bench.new_directory()
        common.make_db_with_jobs(directory, common.TRUE, ())
        if count:
            add_waiting(directory, count)
        figures[f"cpu_percent_{key}"] = idle_percent(bench, directory, idle_s)
        busy = bench.new_directory()
        make_jobs(busy, jobs)
        if count:
            add_waiting(busy, count)
        ended, span = common.run_launcher(bench.commands, busy, common.cores(), jobs, 120 + jobs / 5)
        figures[f"busy_cpu_ms_per_task_{key}"] = ended.own_cpu_s / jobs * 1000
        figures[f"busy_ms_per_task_{key}"] = span.seconds / jobs * 1000
    return figures


def import_ms(bench: common.Bench, rounds: int) -> dict[str, dict[str, float]]:
    """Over an empty Python."""
    measured = common.alternating({code: [bench.commands.python, "-c", code] for code in (_BARE, _IMPORT, _USE)}, rounds)
    bare = measured[_BARE]
    wanted = (("import", _IMPORT), ("first_use", _USE))
    return {name: {key: value - bare[key] for key, value in measured[code].items()} for name, code in wanted}


def main() -> None:
    """Everything once, the chains and the fan-out `--repeat` times."""
    parser = common.parser(__doc__)
    number = common.at_least
    parser.add_argument("--hops", type=number(3), default=200, metavar="N", help="jobs in each chain (200)")
    parser.add_argument("--crowd", type=number(10), default=1000, metavar="N", help="jobs beside one another (1000)")
    parser.add_argument("--children", type=number(1), default=10_000, metavar="N", help="of the fan-out (10000)")
    parser.add_argument("--waiting", type=number(1), default=100_000, metavar="N", help="children that wait (100000)")
    parser.add_argument("--idle", type=number(1), default=10, metavar="S", help="seconds of a launcher at rest (10)")
    parser.add_argument("--repeat", type=number(1), default=3, metavar="R", help="chains of each kind, fan-outs (3)")
    arguments = parser.parse_args()
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        limit = Limit(place)
        common.say("chains")
        chains = [chain(bench, limit, arguments.hops) for _ in range(arguments.repeat)]
        chains.sort(key=lambda one: one["linked_ms_per_hop"])
        common.say("crowd")
        together = crowd(bench, limit, arguments.crowd)
        common.say("waiting children")
        at_rest = waiting(bench, arguments.waiting, arguments.idle, arguments.crowd)
        common.say("fan-out")
        released = [fan_out_s(bench.new_directory(), arguments.children) for _ in range(arguments.repeat)]
        figures = {
            "chain": chains[(len(chains) - 1) // 2],
            "all_linked_ms_per_hop": [one["linked_ms_per_hop"] for one in chains],
            "all_hook_overhead_ms": [one["hook_overhead_ms"] for one in chains],
            "crowd": together,
            "fan_out_children": arguments.children,
            "fan_out_s": statistics.median(released),
            "all_fan_out_s": released,
            "waiting": at_rest,
            "import_ms": import_ms(bench, 20),
            "limit_language": limit.language,
        }
        common.emit("dataflow", figures, bench.machine)


if __name__ == "__main__":
    main()
