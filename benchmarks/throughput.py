"""Short tasks through the real launcher, against a bare loop that spawns the same programs and records nothing.

1. N x /bin/true, each in its own directory with its own output file, by `balsam launcher --consume-all --job-mode serial
   --nodes <cores>` in a process of its own. `ratio` is tasks per second from the first RUNNING to the last JOB_FINISHED event
   over the mean of the bare loop's rate right before and right after; `ratio_whole` takes the whole time of the launcher's
   process instead, from before it is started to after it has ended, which it does when its last job has. `ratio_all` takes
   that and the time in which the DB was made and the jobs were put into it. The programs get no
   arguments, as in the bare loop: GNU `true` costs a third more with one, because it sets its locale. CPU milliseconds
   per task are the launcher's own and those of its children: its helpers' and the tasks' (in the bare loop they are one sum);
   `cpu_to_limit` is their sum over the bare loop's, which a busy machine changes least. Bytes per job are those of the
   database file after a WAL checkpoint, without those of the empty one.
   Each of `--slots-per-node` (node_packing_count) is tried `--repeat` times in turn; the one with the best median ratio is
   reported, the others are in `tried`.
2. `sleep 0.1` with 64 slots on 2 nodes (node_packing_count 32): `utilisation` is the ideal time, ceil(jobs / 64) x 0.1 s,
   over the time from first RUNNING to last JOB_FINISHED; `limit_utilisation` is the same of the bare loop (2 loops, 32 at
   once each), so with it the cost of starting `sleep` itself.
"""

from __future__ import annotations

import math
import shutil
import statistics
import time
from typing import Any

import common
from limit import Figure, Limit

_SLEEP_S, _SLEEP_NODES, _SLEEP_PACKING = 0.1, 2, 32


def true_round(bench: common.Bench, limit: Limit, jobs: int, packing: int) -> dict[str, Any]:
    """N x /bin/true with so many slots per node, the bare loop before and after."""
    directory = bench.new_directory()
    began = time.monotonic()
    common.make_db_with_jobs(directory, common.TRUE, common.job_dicts(jobs, args="", node_packing_count=packing))
    filling_s = time.monotonic() - began
    before = limit.measure(jobs)
    ended, span = common.run_launcher(bench.commands, directory, common.cores(), jobs, 60 + jobs / 20)
    after = limit.measure(jobs)
    bare = (before.spawns_per_s + after.spawns_per_s) / 2
    rate, whole = jobs / span.seconds, jobs / ended.seconds
    return {
        "slots_per_node": packing,
        "ratio": rate / bare,
        "ratio_whole": whole / bare,
        "ratio_all": jobs / (ended.seconds + filling_s) / bare,
        "tasks_per_s": rate,
        "tasks_per_s_whole": whole,
        "limit_per_s": [before.spawns_per_s, after.spawns_per_s],
        "cpu_ms_per_task": (ended.own_cpu_s + ended.children_cpu_s) / jobs * 1000,
        "cpu_to_limit": (ended.own_cpu_s + ended.children_cpu_s) / jobs * 1000 / _mean_cpu(before, after),
        "launcher_cpu_ms_per_task": ended.own_cpu_s / jobs * 1000,
        "helpers_cpu_ms_per_task": ended.helpers_cpu_s / jobs * 1000,
        "children_cpu_ms_per_task": ended.children_cpu_s / jobs * 1000,
        "limit_cpu_ms_per_spawn": _mean_cpu(before, after),
        "launcher_max_rss_mb": ended.max_rss_mb,
        "launcher_peak_rss_mb": ended.peak_rss_mb,
        "bytes_per_finished_job": (common.file_bytes(directory) - bench.empty_bytes) / jobs,
    }


def _mean_cpu(before: Figure, after: Figure) -> float:
    return (before.cpu_ms_per_spawn + after.cpu_ms_per_spawn) / 2


def best_of(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The round of the median ratio of the best number of slots, and a summary of all."""
    by_packing: dict[int, list[dict[str, Any]]] = {}
    for one in rounds:
        by_packing.setdefault(one["slots_per_node"], []).append(one)
    medians = {packing: statistics.median_low(r["ratio"] for r in them) for packing, them in by_packing.items()}
    winner = max(medians, key=lambda packing: medians[packing])
    chosen = next(one for one in by_packing[winner] if one["ratio"] == medians[winner])
    tried = {str(packing): [one["ratio"] for one in them] for packing, them in by_packing.items()}
    return {**chosen, "tried": tried}


def sleep_round(bench: common.Bench, limit: Limit, jobs: int) -> dict[str, Any]:
    """`sleep 0.1` in 64 slots, and the bare loop's before and after."""
    directory = bench.new_directory()
    sleep = shutil.which("sleep") or "/bin/sleep"
    fields = {"node_packing_count": _SLEEP_PACKING, "args": str(_SLEEP_S)}
    common.make_db_with_jobs(directory, sleep, ({**job, **fields} for job in common.job_dicts(jobs)))
    slots = _SLEEP_NODES * _SLEEP_PACKING
    ideal_s = math.ceil(jobs / slots) * _SLEEP_S

    def bare() -> float:
        return ideal_s / limit.measure(jobs, _SLEEP_NODES, _SLEEP_PACKING, (sleep, str(_SLEEP_S))).wall_s

    before = bare()
    ended, span = common.run_launcher(bench.commands, directory, _SLEEP_NODES, jobs, 60 + 20 * ideal_s)
    limits = (before, bare())
    return {
        "utilisation": ideal_s / span.seconds,
        "limit_utilisation": limits,
        "utilisation_to_limit": ideal_s / span.seconds / statistics.mean(limits),
        "sleeps": jobs,
        "slots": slots,
        "ideal_s": ideal_s,
        "seconds": span.seconds,
        "sleep_launcher_cpu_ms_per_task": ended.own_cpu_s / jobs * 1000,
        "sleep_cpu_ms_per_task": (ended.own_cpu_s + ended.children_cpu_s) / jobs * 1000,
    }


def main() -> None:
    """Both parts, one line."""
    parser = common.parser(__doc__)
    parser.add_argument("jobs", nargs="?", type=common.at_least(10), default=2000, metavar="N", help="how many true (2000)")
    parser.add_argument("--slots-per-node", type=common.at_least(1), nargs="+", default=[4, 8], metavar="K", help="(4 8)")
    parser.add_argument("--repeat", type=common.at_least(1), default=1, metavar="R", help="rounds of each K (1)")
    parser.add_argument("--sleeps", type=common.at_least(0), default=640, metavar="N", help="how many sleeps, or 0 (640)")
    arguments = parser.parse_args()
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        limit = Limit(place)
        limit.measure(min(arguments.jobs, 500))  # warms up what is cold at first
        rounds = []
        for number in range(arguments.repeat):
            for packing in arguments.slots_per_node:
                common.say(f"throughput: round {number + 1} of {arguments.repeat}, {packing} slots per node")
                rounds.append(true_round(bench, limit, arguments.jobs, packing))
        sleeps = sleep_round(bench, limit, arguments.sleeps) if arguments.sleeps else {}
        own = {"benchmark_rss_mb": common.own_rss_mb(), "limit_language": limit.language, "nodes": common.cores()}
        common.emit("throughput", {"jobs": arguments.jobs, **best_of(rounds), **sleeps, **own}, bench.machine)


if __name__ == "__main__":
    main()
