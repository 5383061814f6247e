"""A large campaign: how long do the commands take that tell how it goes, and why jobs wait or failed?

Makes a DB of `--jobs` in 40 workflows, as launchers and users leave it: 60 % have run, a twelfth of those failed with five
exit codes and signals; a tenth waits for a parent, of which some have failed; of the others some need 512 nodes or GPUs, and
a launch is queued for some. Then it times, in turn:

- `commands`: whole commands, medians and minima of `--rounds`, and `over_python_ms`, what each takes beyond `python -c pass`.
  Goals: `status` 150 ms, `show` and `explain` of one job 120 ms.
- `explain_all_s`: `balsam explain` of everything that waits or failed, once. Goal: 5 s.
- `report`: seconds, peak memory and size of the file of `balsam report`. Goals: 30 s, 500 MB, 3 MB, at a million jobs.
- `results`: seconds of wall and CPU time and peak memory of `balsam results` of all jobs to CSV: `fields` alone (goal 15 s at a
  million jobs), and `all`, with parameters and the keys of `data` as columns (goal 30 s); and of `balsam sql` of all jobs.

`--make DIRECTORY` only makes the DB there and keeps it.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import Any

import common

from balsam_lite.core.clock import SECOND_US, SystemClock
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, claims, insert, leases, runs

_BARE = "python -c pass"
_APPS = {"task": common.TRUE, "relax": "/bin/sh relax.sh", "fit": "/bin/sh fit.sh"}
_BATCH = 1000
#: The result of one run in twelve, by its place among the runs.
_FAILURES = (1, 1, 1, 2, 127, -9, -11)
_FAILS_EVERY = 12


def jobs(count: int) -> Iterator[dict[str, Any]]:
    """Yield the jobs of the campaign: every tenth is the child of the one before it, which is old enough to run first."""
    names = list(_APPS)
    for number in range(count):
        job: dict[str, Any] = {
            "name": f"task-{number:07d}",
            "workflow": f"series-{number % 40:02d}",
            "application": names[number % len(names)],
            "args": str(number),
            "wall_time_minutes": (1, 5, 30, 120)[number % 4],
        }
        if number % 10 == 9:
            job["parents"] = [insert.Position(number - 1)]
        elif number % 1000 == 1:
            job |= {"num_nodes": 512, "priority": -1}
        elif number % 1000 == 2:
            job |= {"gpus_per_rank": 1, "priority": -1}
        yield job


def make(directory: str, count: int) -> None:
    """Make the DB in a directory that does not exist yet."""
    database = directories.create(directory)
    with database.write() as cx:
        for name, executable in _APPS.items():
            apps.add_app(cx, {"name": name, "executable": executable})
    insert.add_jobs(database, jobs(count))
    run_most(database, count * 6 // 10)
    database.close()


def run_most(database: Database, count: int) -> None:
    """Take and end that number of jobs, without their programs: three in four of those that are ready, a thousand a time."""
    chance = random.Random(0)
    database.own_checkpoints(True)
    with database.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", SystemClock.now_us())
    ended: list[runs.RunResult] = []
    done = 0
    while True:
        now_us = SystemClock.now_us()
        with database.write() as cx:
            claims.finish(cx, lease, ended, now_us)
            taken = claims.take(cx, lease, common.FixedCapacity(_BATCH), claims.Filter(), now_us).to_run
        done += len(taken)
        if done >= count or not taken:
            break
        ended = [_result(claim, done + place, now_us, chance) for place, claim in enumerate(taken)]
    with database.write() as cx:
        claims.finish(cx, lease, [_result(claim, 0, now_us, chance) for claim in taken], SystemClock.now_us())
        leases.close_lease(cx, lease, SystemClock.now_us(), "the time is up")


def _result(claim: claims.Claim, place: int, now_us: int, chance: random.Random) -> runs.RunResult:
    code = _FAILURES[place // _FAILS_EVERY % len(_FAILURES)] if place % _FAILS_EVERY == 0 else 0
    state, message = ("RUN_ERROR", f"Exit code {code}") if code else ("RUN_DONE", "")
    took_us = int(chance.lognormvariate(3, 1) * SECOND_US)
    return runs.RunResult(claim.job, claim.attempt, state, code, message, now_us, now_us + took_us)


def time_commands(commands: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """Run each in turn; return the times of each, and the milliseconds beyond the bare Python's. `explain` ends with 1."""
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, argv in commands.items():
            started = time.perf_counter()
            ended = subprocess.run(argv, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            seconds = time.perf_counter() - started
            if ended.returncode not in (0, 1):
                raise RuntimeError(f"{argv} ended with code {ended.returncode}\n{ended.stderr.decode()}")
            if turn:
                taken[name].append(seconds * 1000)
    bare = statistics.median(taken[_BARE])
    return {
        "measured": {name: {"median_ms": statistics.median(ms), "min_ms": min(ms)} for name, ms in taken.items()},
        "over_python_ms": {name: statistics.median(ms) - bare for name, ms in taken.items() if name != _BARE},
    }


def time_report(balsam: Sequence[str], place: str) -> dict[str, Any]:
    """Write the report of all jobs once."""
    path = os.path.join(place, "campaign.html")
    ended = common.Running([*balsam, "report", "-o", path], f"{place}/report.log").wait(600)
    return {"seconds": ended.seconds, "peak_mb": ended.peak_rss_mb, "file_mb": os.path.getsize(path) / 1e6}


_DATA = """UPDATE job SET parameters = json_object('T', id % 400 + 100, 'P', id % 7 * 0.5), data = CASE
    WHEN id % 20 = 0 THEN '{}'
    WHEN id % 3 = 0 THEN json_object('energy', -id * 0.37, 'fit', json_object('a', id, 'b', 'x' || id))
    ELSE json_object('energy', -id * 0.37, 'steps', id % 1000, 'note', 'n ' || id) END"""
_FIELDS = "id,name,workflow,application,state,return_code,attempt,runtime_s,user_cpu_s,max_memory_bytes,node,started,ended"


def give_data(directory: str) -> None:
    """Give the jobs parameters and `data` of different keys, nested in a third of them."""
    database = directories.open_database(directory)
    with database.write() as cx:
        cx.execute(_DATA)
    database.close()


def time_results(balsam: Sequence[str], place: str) -> dict[str, Any]:
    """Write the results of all jobs to CSV."""
    commands = {
        "fields": ["results", "--columns", _FIELDS],
        "all": ["results"],
        "sql": ["sql", "SELECT id, name, state, runtime_s, data FROM results"],
    }
    found = {}
    for name, words in commands.items():
        path = os.path.join(place, f"{name}.csv")
        ended = common.Running([*balsam, *words, "-o", path], f"{place}/results.log").wait(600)
        size_mb = os.path.getsize(path) / 1e6
        found[name] = {"seconds": ended.seconds, "cpu_s": ended.own_cpu_s, "peak_mb": ended.peak_rss_mb, "file_mb": size_mb}
    return found


def run(bench: common.Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Make the DB, and time everything."""
    directory = bench.new_directory()
    common.say(f"answers: making {options.jobs} jobs")
    common.in_child(lambda: make(directory, options.jobs))
    os.environ["BALSAM_DB_PATH"] = directory
    balsam, python = bench.commands
    common.say("answers: commands")
    last = f"#{options.jobs - 1}"
    commands = {
        _BARE: [python, "-c", "pass"],
        "status": [*balsam, "status"],
        "show #1": [*balsam, "show", "#1"],
        "explain #1": [*balsam, "explain", "#1"],
        "explain of a waiting job": [*balsam, "explain", last],
    }
    figures: dict[str, Any] = {"jobs": options.jobs, "commands": time_commands(commands, options.rounds)}
    common.say("answers: explain of all, report")
    explained = time_commands({_BARE: [python, "-c", "pass"], "all": [*balsam, "explain"]}, 1)
    figures["explain_all_s"] = explained["over_python_ms"]["all"] / 1000
    figures["report"] = time_report(balsam, bench.place)
    common.say("answers: results")
    common.in_child(lambda: give_data(directory))
    figures["results"] = time_results(balsam, bench.place)
    return figures


def main() -> None:
    """Print everything as one line."""
    parser = common.parser(__doc__)
    parser.add_argument("--jobs", type=common.at_least(2000), default=1_200_000, metavar="N", help="(1200000)")
    parser.add_argument("--rounds", type=common.at_least(1), default=9, metavar="R", help="of each command (9)")
    parser.add_argument("--make", metavar="DIRECTORY", help="only make the DB, there")
    options = parser.parse_args()
    if options.make:
        make(options.make, options.jobs)
        return
    with common.scratch(options.dir) as place:
        bench = common.Bench(place, options.balsam)
        common.emit("answers", run(bench, options), bench.machine)


if __name__ == "__main__":
    main()
