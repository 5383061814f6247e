"""One turn of the service over a large DB: how long it keeps launchers and the user waiting.

A DB of `--jobs` waiting jobs, once all alike and once of many shapes, estimates and priorities, with 20 launches open. The
scheduler is a stand-in that answers at once, so that the figures are the service's own. Measured, medians of `--rounds`:

- `idle_turn_ms`: a turn when every queue is full: refresh, reap, look for what is to be given back, demand, choice.
- `submitting_turn_ms`: a turn that plans jobs for a launch, writes its script and submits it.
- `longest_transaction_ms`: of such a turn, the longest time that the DB was locked for writing.
- `dry_run_ms`: what `balsam service --dry-run` computes.
"""

from __future__ import annotations

import logging
import os
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import common

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import Holder
from balsam_lite.core.settings import Settings
from balsam_lite.db.engine.connection import Connection, Database
from balsam_lite.db.store import insert, leases
from balsam_lite.schedulers import submission
from balsam_lite.schedulers.base import QUEUED, BatchStatus, Submission
from balsam_lite.schedulers.submission import LaunchRequest
from balsam_lite.service import loop
from balsam_lite.service.loop import Service
from balsam_lite.service.policy import Queue, Range

_OPEN = 20
_FULL = (Queue("full", True, _OPEN, (Range(1, 4392, 1, 1440),)),)
#: Launches of which one does so little of the work that there is always one more to submit.
_ENDLESS = (Queue("endless", True, 10**6, (Range(1, 256, 1, 180),)),)


class AtOnce:
    """A scheduler that takes everything and starts nothing."""

    name, template, domain = "AtOnce", "local.tmpl", "bench"

    def __init__(self) -> None:
        self._count = 0

    def submit(self, submission: Submission) -> str:
        self._count += 1
        return str(self._count)

    def poll(self, outputs: Mapping[str, str]) -> dict[str, BatchStatus]:
        return {native_id: BatchStatus(native_id, QUEUED) for native_id in outputs}

    def cancel(self, native_id: str) -> None:
        raise AssertionError

    def find(self, submission: Submission, since_us: int) -> str | None:
        return None


class Watched(Database):
    """A DB that knows how long its longest write transaction was."""

    longest_s = 0.0

    @contextmanager
    def write(self) -> Iterator[Connection]:
        with super().write() as cx:
            started = time.perf_counter()
            yield cx
        self.longest_s = max(self.longest_s, time.perf_counter() - started)


def alike(count: int) -> Iterator[dict[str, Any]]:
    """Jobs of one shape and one estimate."""
    return common.job_dicts(count, wall_time_minutes=10)


def mixed(count: int) -> Iterator[dict[str, Any]]:
    """Jobs of 24 shapes, 40 estimates and 3 priorities."""
    chance = random.Random(1)
    for job in common.job_dicts(count):
        yield {
            **job,
            "num_nodes": chance.choice((1, 1, 1, 2, 4, 16, 128)),
            "ranks_per_node": chance.choice((1, 16)),
            "node_packing_count": chance.choice((1, 4)),
            "wall_time_minutes": 5 * chance.randint(1, 40),
            "priority": chance.randint(0, 2),
        }


def measure(directory: str, jobs: Iterator[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """The figures of one DB."""
    common.make_db(directory, common.TRUE).close()
    database = Watched(directory, "local")
    count = len(insert.add_jobs(database, jobs).ids)
    common.say(f"{count} jobs in {directory}")
    scheduler, settings, clock = AtOnce(), Settings(), SystemClock()
    for _ in range(_OPEN):
        submission.submit_launch(database, settings, LaunchRequest(1, 60, queue="full"), scheduler)
    with database.write() as cx:
        lease = leases.open_lease(cx, loop.KIND, Holder.current(), "", clock.now_us())
    database.own_checkpoints(True)

    def turns(queues: tuple[Queue, ...], submits: bool) -> float:
        service = Service(database, settings, queues, scheduler, lease, clock)
        taken = []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            assert service.turn() is submits
            taken.append(1000 * (time.perf_counter() - started))
        return statistics.median(taken[1:])

    figures: dict[str, Any] = {"jobs": count, "idle_turn_ms": turns(_FULL, False)}
    started = time.perf_counter()
    loop.dry_run(database, settings, _FULL, scheduler.domain, clock.now_us())
    figures["dry_run_ms"] = 1000 * (time.perf_counter() - started)
    database.longest_s = 0.0
    figures["submitting_turn_ms"] = turns(_ENDLESS, True)
    figures["longest_transaction_ms"] = 1000 * database.longest_s
    database.close()
    return figures


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--jobs", type=common.at_least(50_000), default=1_200_000, help="waiting jobs (default: %(default)s)")
    parser.add_argument("--rounds", type=common.at_least(1), default=7, help="turns of each kind (default: %(default)s)")
    options = parser.parse_args()
    logging.getLogger("balsam_lite").setLevel(logging.CRITICAL)
    with common.scratch(options.dir) as place:
        machine = common.machine_at(place)
        figures = {
            kind: measure(os.path.join(place, kind), jobs(options.jobs), options.rounds)
            for kind, jobs in (("alike", alike), ("mixed", mixed))
        }
    common.emit("service", figures, machine)


if __name__ == "__main__":
    main()
