"""The workshop's interface at size: adding jobs, finding some by a tag, analytics, and a site that does not answer.

- `bulk_create`: `Job.objects.bulk_create` of `--create` jobs of a template, checked and saved: `per_s` (goal 15000), of its
  CPU time `per_cpu_s`, and `with_objects_per_s`, the making of the Job objects included. `ratio` is to an insert of the same
  jobs as dicts, which are not checked against their application.
- `job_ls_ms`: `balsam job ls --tag k=v` where 100 of `--jobs` jobs match, over `python -c pass` (goal 150), median and least.
- `claim_ms`: a launcher with that `--tag` takes those 100, all jobs waiting, in one transaction; `untagged` takes any 100.
- `analytics`: seconds for `--events` events (goal 5), from a query of the DB and from tuples in memory.
- `site_ls_s`: the whole `balsam site ls` with a site behind an ssh that connects and never says a word (goal 5 at most).
"""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import common

from balsam_lite import analytics
from balsam_lite.api import EventLog, Job
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.engine.connection import FILE_NAME
from balsam_lite.db.models import use
from balsam_lite.db.store import apps, claims, insert, leases

_MATCHES = 100
_BARE = "python -c pass"
_LS = "balsam job ls --tag"
_NAMES = {"name": {"required": True, "default": None, "help": ""}}
#: Events of a job in the DB for analytics.
_STATES = ("CREATED", "RUNNING", "RUN_DONE", "JOB_FINISHED")


def make_site(directory: str, name: str) -> None:
    """A registered site with an application that is a template, and one that is a program."""
    with closing(directories.create(directory)) as database, database.write() as cx:
        apps.add_app(cx, {"name": "task", "executable": common.TRUE})
        apps.add_app(cx, {"name": "Hello", "command_template": "echo Hello, {{ name }}!", "parameters": _NAMES})
    registry.add(directory, name)


# --- bulk_create ------------------------------------------------------------------------------------------------------


def hello_dicts(count: int) -> list[dict[str, Any]]:
    """The jobs of `bulk_create` as rows for the store."""
    fields = {"application": "Hello", "num_nodes": 1, "node_packing_count": 8}
    return [
        {**fields, "parameters": {"name": f"world {number}"}, "tags": {"workflow": "demo", "part": str(number % 10)}}
        for number in range(count)
    ]


def bulk_create(directory: str, count: int, rounds: int) -> dict[str, Any]:
    """Rates of it and of the plain insert, in turn on one DB."""
    make_site(directory, "create")
    seconds: dict[str, list[float]] = {"objects": [], "create": [], "dicts": [], "cpu": []}
    for turn in range(rounds):
        started = time.perf_counter()
        jobs = [
            Job(
                site_name="create", app_id="Hello", workdir=f"demo/{turn}-{number}", parameters={"name": f"world {number}"},
                tags={"workflow": "demo", "part": str(number % 10)}, node_packing_count=8,
            )
            for number in range(count)
        ]  # fmt: skip
        made, used = time.perf_counter(), time.process_time()
        saved = Job.objects.bulk_create(jobs)
        seconds["objects"].append(made - started)
        seconds["create"].append(time.perf_counter() - made)
        seconds["cpu"].append(time.process_time() - used)
        if len(saved) != count or any(job.id is None for job in saved):
            raise RuntimeError("bulk_create did not return what it made")
        del jobs, saved
        rows = hello_dicts(count)
        with closing(directories.open_database(directory)) as database:
            started = time.perf_counter()
            insert.add_jobs(database, rows)
            seconds["dicts"].append(time.perf_counter() - started)
        common.say(
            f"workshop: {count} jobs at {count / seconds['create'][-1]:.0f}/s, dicts {count / seconds['dicts'][-1]:.0f}/s"
        )
    created, plain = (statistics.median(seconds[name]) for name in ("create", "dicts"))
    return {
        "jobs": count,
        "per_s": count / created,
        "per_cpu_s": count / statistics.median(seconds["cpu"]),
        "with_objects_per_s": count / (created + statistics.median(seconds["objects"])),
        "dicts_per_s": count / plain,
        "ratio": plain / created,
    }


# --- a large DB of which few jobs match -------------------------------------------------------------------------------


def fill(directory: str, count: int, rare: int) -> None:
    """A site of waiting jobs with two tags each; a hundred each have one of the rare tags, spread over all."""
    make_site(directory, "large")
    every = max(count // (_MATCHES * rare), 1)

    def jobs() -> Iterator[dict[str, Any]]:
        for number, job in enumerate(common.job_dicts(count)):
            mark, rest = divmod(number, every)
            is_rare = rest == 0 and mark < _MATCHES * rare
            yield {**job, "tags": {"kind": f"rare{mark % rare}" if is_rare else "common", "part": str(number % 7)}}

    with closing(directories.open_database(directory)) as database:
        insert.add_jobs(database, jobs())


def time_job_ls(bench: common.Bench, directory: str, times: int) -> dict[str, Any]:
    """The whole command over a bare Python."""
    balsam, python = bench.commands
    commands = {
        _BARE: [python, "-c", "pass"],
        _LS: [*balsam, "--db", directory, "job", "ls", "--tag", "kind=rare0"],
        "balsam --version": [*balsam, "--version"],
    }
    measured = common.alternating(commands, times)
    return {
        "over_python": {name: measured[_LS][f"{name}_ms"] - measured[_BARE][f"{name}_ms"] for name in ("median", "min")},
        "measured": measured,
    }


def time_claims(directory: str, rare: int) -> dict[str, float]:
    """Milliseconds of a transaction that takes a hundred jobs: of a rare tag, and of all; each once per rare tag, medians."""
    taken: dict[str, list[float]] = {"tagged": [], "untagged": []}
    with closing(directories.open_database(directory)) as database:
        with database.write() as cx:
            lease = leases.open_lease(cx, "launcher", Holder.current(), "", SystemClock.now_us())
        for number in range(rare):
            for name, only in (("tagged", claims.Filter(tags=(("kind", f"rare{number}"),))), ("untagged", claims.Filter())):
                started = time.perf_counter()
                with database.write() as cx:
                    found = claims.take(cx, lease, common.FixedCapacity(_MATCHES), only, SystemClock.now_us()).to_run
                taken[name].append(1000 * (time.perf_counter() - started))
                if not 0 < len(found) <= _MATCHES:
                    raise RuntimeError(f"{len(found)} jobs were claimed instead of {_MATCHES}")
        with database.write() as cx:
            leases.close_lease(cx, lease, SystemClock.now_us(), "the benchmark is over")
    return {name: statistics.median(ms) for name, ms in taken.items()}


# --- analytics --------------------------------------------------------------------------------------------------------


def fill_with_events(directory: str, count: int) -> None:
    """A site with so many events: of each job three, in the order in which 512 places would have run them."""
    make_site(directory, "events")
    steps = len(_STATES) - 1
    jobs = -(-count // steps)
    with closing(directories.open_database(directory)) as database:
        insert.add_jobs(database, common.job_dicts(jobs, node_packing_count=8))
    now_us = SystemClock.now_us()

    def events() -> Iterator[tuple[int, int, str, str]]:
        for number in range(count):
            turn, place = divmod(number, 512 * steps)
            step, lane = divmod(place, 512)
            job = turn * 512 + lane + 1
            if job <= jobs:
                yield job, now_us + turn * 10_000_000 + step * 3_000_000 + lane * 1000, _STATES[step], _STATES[step + 1]

    with closing(sqlite3.connect(os.path.join(directory, FILE_NAME))) as cx, cx:
        cx.executemany("INSERT INTO event (job, time, from_state, to_state) VALUES (?, ?, ?, ?)", events())


def time_analytics(directory: str, count: int) -> dict[str, Any]:
    """Seconds of each report, read from the DB and from memory."""
    fill_with_events(directory, count)
    figures: dict[str, Any] = {}
    with closing(directories.open_database(directory)) as database, use(database):
        events = EventLog.objects.all()
        rows = list(events.tuples())
        figures["events"] = len(rows)
        in_memory = SimpleNamespace(tuples=lambda touching: iter(rows))
        for place, source in (("db", events), ("memory", in_memory)):
            for report in (analytics.utilization_report, analytics.throughput_report):
                started = time.perf_counter()
                times, _ = report(source)  # type: ignore[arg-type]
                figures[f"{report.__name__}_{place}_s"] = time.perf_counter() - started
                common.say(f"workshop: {report.__name__} from {place}: {len(times)} points")
    return figures


# --- a site that does not answer --------------------------------------------------------------------------------------


def time_site_ls(bench: common.Bench) -> float | None:
    """Seconds; None where there is no ssh."""
    if shutil.which("ssh") is None:
        return None
    with closing(socket.socket()) as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # the system accepts for it; nobody reads
        entry = registry.add("/nowhere", "silent", f"127.0.0.1:{silent.getsockname()[1]}")
        try:
            return common.seconds_of([*bench.commands.balsam, "site", "ls"])
        finally:
            registry.forget(entry.number)


# --- the whole --------------------------------------------------------------------------------------------------------


def run(bench: common.Bench, options: Any) -> dict[str, Any]:
    """Everything, in the order of the docstring above."""
    figures: dict[str, Any] = {"bulk_create": bulk_create(bench.new_directory(), options.create, options.rounds)}
    large = bench.new_directory()
    common.say(f"workshop: {options.jobs} jobs, of which few match")
    common.in_child(lambda: fill(large, options.jobs, options.rounds))
    figures["jobs"] = options.jobs
    figures["job_ls_ms"] = time_job_ls(bench, large, options.times)
    figures["claim_ms"] = time_claims(large, options.rounds)
    figures["analytics"] = time_analytics(bench.new_directory(), options.events)
    figures["site_ls_s"] = time_site_ls(bench)
    return figures


def main() -> None:
    """Everything, one line."""
    parser = common.parser(__doc__)
    for name, least, default, said in (
        ("--create", 1, 100_000, "jobs of bulk_create"),
        ("--jobs", 10_000, 1_200_000, "jobs of the large DB"),
        ("--events", 1, 1_000_000, "events of the reports"),
        ("--rounds", 1, 3, "bulk_creates, and claims"),
        ("--times", 1, 15, "calls of job ls"),
    ):
        parser.add_argument(name, type=common.at_least(least), default=default, metavar="N", help=f"{said} ({default})")
    options = parser.parse_args()
    with common.scratch(options.dir) as place:
        bench = common.Bench(place, options.balsam)
        common.emit("workshop", run(bench, options), bench.machine)


if __name__ == "__main__":
    main()
