"""Short tasks over several ranks of an MPI program, against one launcher alone, on this machine.

N x /bin/true, each in its own directory with its own output file: by `balsam launcher` on one host with as many virtual nodes
as there are ranks, and in a batch job of `--ranks` nodes, whose ranks a real mpiexec starts, all on this host; in turn,
`--repeat` times. `ratio` is tasks per second, from the first RUNNING to the last JOB_FINISHED event, of the ensemble over those
of the one launcher, the median of the rounds. `head_us_per_job` is the CPU time of rank 0 alone, with R ranks of which it
gives all jobs but its own node's to others: what it costs to claim, tell, hear and record, and its share of starting.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import common

_MPI = "-bootstrap fork -hosts {{ hosts | join(',') }} -ppn 1 -n {{ ranks }}"


def single_round(bench: common.Bench, jobs: int, nodes: int, packing: int) -> dict[str, Any]:
    """One launcher on this host."""
    directory = _fresh(bench, jobs, packing)
    ended, span = common.run_launcher(bench.commands, directory, nodes, jobs, 60 + jobs / 20)
    return {"tasks_per_s": jobs / span.seconds, "launcher_us_per_job": ended.own_cpu_s / jobs * 1e6}


def ensemble_round(bench: common.Bench, mpiexec: str, jobs: int, ranks: int, packing: int) -> dict[str, Any]:
    """One rank per node of a batch job."""
    directory = _fresh(bench, jobs, packing)
    nodes = Path(f"{directory}.nodes")
    nodes.write_text("".join(f"n{number}\n" for number in range(ranks)))
    os.environ.update(COBALT_JOBID="1", COBALT_NODEFILE=str(nodes), COBALT_PARTSIZE=str(ranks))
    os.environ["BALSAM_MPI_RUN_TEMPLATE"] = f"{mpiexec} {_MPI}"
    argv = [*bench.commands.balsam, "--db", directory, "launcher", "--consume-all", "--job-mode", "serial"]
    try:
        head_cpu_s = _run(argv, directory, 60 + jobs / 20)
    finally:
        for name in ("COBALT_JOBID", "COBALT_NODEFILE", "COBALT_PARTSIZE", "BALSAM_MPI_RUN_TEMPLATE"):
            del os.environ[name]
    span = common.span_of(directory)
    if span.finished != jobs:
        raise RuntimeError(f"{span.finished} of {jobs} jobs finished; see {directory}")
    return {"tasks_per_s": jobs / span.seconds, "head_us_per_job": head_cpu_s / jobs * 1e6}


def _fresh(bench: common.Bench, jobs: int, packing: int) -> str:
    directory = bench.new_directory()
    common.make_db_with_jobs(directory, common.TRUE, common.job_dicts(jobs, args="", node_packing_count=packing))
    return directory


def _run(argv: list[str], directory: str, limit_s: float) -> float:
    """Run it to its end; the CPU time of rank 0 after its start, without that of the programs."""
    running = common.Running(argv, f"{directory}.launcher")
    give_up = time.monotonic() + limit_s
    head: int | None = None
    first = last = 0.0
    while os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > give_up:
            os.kill(running.pid, 15)
            give_up = float("inf")
        if head is None:
            head = _pid_of_head(directory)
            first = _cpu_s(head) if head else 0.0
        else:
            last = max(last, _cpu_s(head))
        time.sleep(0.02)
    running.wait(1.0)
    return last - first


def _pid_of_head(directory: str) -> int | None:
    """The launcher's log has its pid in its name, and is opened when it is about to begin."""
    found = sorted(Path(directory, "log").glob("launcher_*.log"))
    return int(found[0].stem.rpartition("_")[2]) if found else None


def _cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _mpiexec() -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "mpiexec")
    if not os.path.exists(beside):
        raise SystemExit(f"There is no {beside}: `pip install mpich mpi4py` into this Python's environment.")
    return beside


def main() -> None:
    """The rounds, one line."""
    parser = common.parser(__doc__)
    parser.add_argument("jobs", nargs="?", type=common.at_least(10), default=2000, metavar="N", help="how many true (2000)")
    parser.add_argument("--ranks", type=common.at_least(2), default=2, metavar="R", help="of the MPI program (2)")
    parser.add_argument("--packing", type=common.at_least(1), default=8, metavar="K", help="places per node (8)")
    parser.add_argument("--repeat", type=common.at_least(1), default=3, metavar="T", help="rounds (3)")
    arguments = parser.parse_args()
    mpiexec = _mpiexec()
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        singles, ensembles = [], []
        for number in range(arguments.repeat):
            common.say(f"ensemble: round {number + 1} of {arguments.repeat}")
            singles.append(single_round(bench, arguments.jobs, arguments.ranks, arguments.packing))
            ensembles.append(ensemble_round(bench, mpiexec, arguments.jobs, arguments.ranks, arguments.packing))
        ratios = [ours["tasks_per_s"] / alone["tasks_per_s"] for ours, alone in zip(ensembles, singles)]
        figures = {
            "jobs": arguments.jobs,
            "ranks": arguments.ranks,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "head_us_per_job": statistics.median(one["head_us_per_job"] for one in ensembles),
            "launcher_us_per_job": statistics.median(one["launcher_us_per_job"] for one in singles),
            "tasks_per_s": [one["tasks_per_s"] for one in ensembles],
            "alone_tasks_per_s": [one["tasks_per_s"] for one in singles],
        }
        common.emit("ensemble", figures, bench.machine)


if __name__ == "__main__":
    main()
