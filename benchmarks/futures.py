"""Waiting for `--futures` jobs: how soon an end is noticed, and what the waiting costs.

Another process ends `--ends` of the jobs, a `--batch` in each transaction, 10 transactions in a second, as a busy launcher
does. `notice_ms` is the time from right before the transaction to when `as_completed` hands out the future. `cpu_percent` is
the share of one core that waiting takes meanwhile, `idle_cpu_percent` that of waiting while nobody writes, without the call's
beginning and end. `first_ms` and `again_ms` are those: what `wait` takes that need not sleep.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import common

from balsam_lite.core.errors import WaitTimeout
from balsam_lite.db.engine import directories
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.store import insert, user_actions
from balsam_lite.launcher.futures import FutureTask, as_completed, wait

_PERIOD_S, _IDLE_S = 0.1, 3.0


def end_jobs(directory: str, numbers: list[int], batch: int) -> None:
    """In a child: end the jobs bit by bit. The time of the event is taken right before it is written."""
    database = directories.open_database(directory)
    for start in range(0, len(numbers), batch):
        time.sleep(_PERIOD_S)
        user_actions.set_state(database, numbers[start : start + batch], "JOB_FINISHED")
    database.close()


def measure(directory: str, futures: int, ends: int, batch: int) -> dict[str, Any]:
    """The figures of one DB."""
    database = common.make_db(directory, common.TRUE)
    insert.add_jobs(database, common.job_dicts(futures))
    with use(database):
        tasks = [FutureTask(job) for job in BalsamJob.objects.all()]
        first, again = (cpu_s(lambda: expect_timeout(tasks, 0)) for _ in range(2))
        idle = 100 * (cpu_s(lambda: expect_timeout(tasks, _IDLE_S)) - again) / _IDLE_S
        noticed: dict[int, float] = {}
        chosen = [task.job.id for task in tasks[:: max(1, futures // ends)]][:ends]
        pid = os.fork()
        if pid == 0:
            try:
                end_jobs(directory, chosen, batch)
            finally:
                os._exit(0)
        started = time.perf_counter()
        busy_s = cpu_s(lambda: notice(tasks, noticed, len(chosen)))
        busy = 100 * busy_s / (time.perf_counter() - started)
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
        "first_ms": first * 1000,
        "again_ms": again * 1000,
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


def cpu_s(work: Callable[[], None]) -> float:
    """The processor time that it takes."""
    before = time.process_time()
    work()
    return time.process_time() - before


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
