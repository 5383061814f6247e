"""Changes of very many jobs: how long do they take, and how long does another writer wait meanwhile?

Each operation works on a DB of `--jobs` jobs: `insert` (bulk_create of dicts), `update` (`update(state="JOB_FINISHED")`),
`rerun` (a tenth of them depends on another tenth), `kill`, `rm`; and `parent`: the end of a parent of `--children` children,
carried out as a launcher does, with the longest transaction in place of the other writer's wait.

A second process meanwhile commits one row every few milliseconds. For each operation: seconds, and that one's longest wait.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

import common

from balsam_lite.core import states
from balsam_lite.core.clock import SystemClock
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.manager import use
from balsam_lite.db.models import BalsamJob
from balsam_lite.db.store import graph, insert, pieces, transitions, user_actions

_PERIOD_S = 0.005


def write_often(directory: str, is_over: Event, answer: Any) -> None:
    """Commit a row every few milliseconds. Send the longest that one took, in seconds."""
    db = directories.open_database(directory)
    longest = 0.0
    while not is_over.is_set():
        started = time.perf_counter()
        with db.write() as cx:
            cx.execute("INSERT OR REPLACE INTO meta VALUES ('benchmark', ?)", (str(started),))
        longest = max(longest, time.perf_counter() - started)
        time.sleep(_PERIOD_S)
    answer.send(longest)


def measured(db: Database, operation: Callable[[], object]) -> dict[str, float]:
    """Seconds of the operation, and of the longest wait beside it."""
    context = multiprocessing.get_context("spawn")
    is_over = context.Event()
    receive, send = context.Pipe()
    other = context.Process(target=write_often, args=(db.directory, is_over, send))
    other.start()
    time.sleep(1.0)  # until it is at it
    common.say(f"{time.strftime('%H:%M:%S')} begins")
    started = time.perf_counter()
    operation()
    took = time.perf_counter() - started
    is_over.set()
    longest = receive.recv()
    other.join()
    return {"seconds": round(took, 2), "longest_wait": round(longest, 3)}


def end_of_parent(db: Database, children: int) -> dict[str, float]:
    """A parent of many children ends, without another writer."""
    parent = insert.add_jobs(db, [{"application": "task", "workflow": "parent"}]).first
    one = {"application": "task", "workflow": "children", "parents": [parent]}
    insert.add_jobs(db, (dict(one) for _ in range(children)))
    started = time.perf_counter()
    with db.write() as cx:
        now_us = SystemClock.now_us()
        transitions.apply(cx, [transitions.Transition(parent, ("CREATED", "JOB_FINISHED"), now_us)], states.USER)
        graph.propagate(cx, [parent], [], now_us)
    longest = time.perf_counter() - started
    while True:
        before = time.perf_counter()
        is_done = pieces.advance_abandoned(db)
        longest = max(longest, time.perf_counter() - before)
        if not is_done:
            break
        pieces.pause(db, 0)
    return {"seconds": round(time.perf_counter() - started, 2), "longest_transaction": round(longest, 3)}


def main() -> None:
    """Print one JSON line."""
    parser = common.parser(__doc__)
    parser.add_argument("--jobs", type=common.at_least(10), default=400_000, metavar="N", help="(400000)")
    parser.add_argument("--children", type=common.at_least(1), default=300_000, metavar="N", help="(300000)")
    options = parser.parse_args()
    with common.scratch(options.dir) as place:
        machine = common.machine_at(place)
        common.emit("large_writes", run(place, options.jobs, options.children), machine)


def run(place: str, number: int, children: int) -> dict[str, Any]:
    """All operations, one after the other."""
    db = common.make_db(os.path.join(place, "db"), common.TRUE)
    jobs, tenth = range(1, number + 1), number // 10
    found: dict[str, Any] = {"jobs": number, "children": children}
    with use(db):
        found["insert"] = measured(db, lambda: BalsamJob.objects.bulk_create(common.job_dicts(number)))
        with db.write() as cx:
            graph.add_edges(cx, [(job, job + tenth) for job in range(1, tenth + 1)], SystemClock.now_us())
        found["update"] = measured(db, lambda: BalsamJob.objects.all().update(state="JOB_FINISHED"))
        found["rerun"] = measured(db, lambda: user_actions.rerun(db, jobs))
        found["kill"] = measured(db, lambda: user_actions.kill(db, jobs))
        found["rm"] = measured(db, lambda: user_actions.delete(db, jobs))
    found["parent"] = end_of_parent(db, children)
    db.close()
    return found


if __name__ == "__main__":
    main()
