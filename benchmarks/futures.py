"""Waiting for `--futures` jobs: how soon an end is noticed, and what the waiting costs.

Another process ends `--ends` of the jobs, a `--batch` in each transaction, 10 transactions in a second, as a busy launcher
does. `notice_ms` is the time from right before the transaction to when `as_completed` hands out the future. `cpu_percent` is
the share of one core that waiting takes meanwhile, `idle_cpu_percent` that of waiting while nobody writes; `start_ms` is what
`wait` does before it sleeps for the first time.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import common

from balsam_lite.db import location
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.store import insert, user
from balsam_lite.errors import WaitTimeout
from balsam_lite.launcher.futures import FutureTask, as_completed, wait

_PERIOD_S = 0.1


def end_jobs(directory: str, numbers: list[int], batch: int) -> None:
    """In a child: end the jobs bit by bit. The time of the event is taken right before it is written."""
    database = location.open_database(directory)
    for start in range(0, len(numbers), batch):
        time.sleep(_PERIOD_S)
        user.set_state(database, numbers[start : start + batch], "JOB_FINISHED")
    database.close()


def measure(directory: str, futures: int, ends: int, batch: int) -> dict[str, Any]:
    """The figures of one DB."""
    database = common.make_db(directory, common.TRUE)
    insert.add_jobs(database, common.job_dicts(futures))
    with use(database):
        tasks = [FutureTask(job) for job in BalsamJob.objects.all()]
        started = time.perf_counter()
        expect_timeout(tasks, 0)
        start_ms = (time.perf_counter() - started) * 1000
        idle = cpu_share(lambda: expect_timeout(tasks, 3.0))
        noticed: dict[int, float] = {}
        chosen = [task.job.id for task in tasks[:: max(1, futures // ends)]][:ends]
        pid = os.fork()
        if pid == 0:
            try:
                end_jobs(directory, chosen, batch)
            finally:
                os._exit(0)
        busy = cpu_share(lambda: notice(tasks, noticed, len(chosen)))
        os.waitpid(pid, 0)
        with database.read() as cx:
            ended = dict(cx.execute("SELECT job, time FROM event WHERE to_state = 'JOB_FINISHED'"))
    database.close()
    ms = sorted(at * 1000 - ended[job] / 1000 for job, at in noticed.items())
    return {
        "futures": futures,
        "ends": len(ms),
        "notice_ms": {"median": statistics.median(ms), "p95": ms[int(0.95 * len(ms))], "max": ms[-1]},
        "cpu_percent": busy,
        "idle_cpu_percent": idle,
        "start_ms": start_ms,
    }


def expect_timeout(tasks: list[FutureTask], seconds: float) -> None:
    """Wait in vain."""
    try:
        wait(tasks, seconds)
    except WaitTimeout:
        return
    raise RuntimeError("a job has ended by itself")


def notice(tasks: list[FutureTask], noticed: dict[int, float], count: int) -> None:
    """Write down when `count` of them were handed out."""
    for task in as_completed(tasks):
        assert task.job.id is not None
        noticed[task.job.id] = time.time()
        if len(noticed) == count:
            return


def cpu_share(work: Any) -> float:
    """What it takes of a core, in percent."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return 100 * (time.process_time() - cpu) / (time.perf_counter() - wall)


def main() -> None:
    """One DB."""
    parser = common.parser(__doc__)
    parser.add_argument("--futures", type=common.at_least(1), default=10_000, metavar="N", help="jobs waited for (10000)")
    parser.add_argument("--ends", type=common.at_least(1), default=500, metavar="N", help="of which so many end (500)")
    parser.add_argument("--batch", type=common.at_least(1), default=5, metavar="N", help="so many in a transaction (5)")
    arguments = parser.parse_args()
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        figures = measure(bench.new_directory(), arguments.futures, arguments.ends, arguments.batch)
        common.emit("futures", figures, bench.machine)


if __name__ == "__main__":
    main()
