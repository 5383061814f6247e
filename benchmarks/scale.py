"""A large DB: does anything get slower, larger or hungrier with the number of jobs, waiting or finished?

Two DBs: a large one of `--jobs` and a small one of 10 000 (or as many). Measured, in this order:

- `insert_memory`: peak memory (VmHWM) of a process that does nothing but one bulk_create of dicts from a generator, of a tenth
  of the jobs and of all of them, each into a DB of its own; also its rate without the imports.
- `insert`: bulk_create of dicts, then of `--objects` BalsamJob objects, from a generator, in `--rounds` calls each. Right after
  each call the rows that it made are read back and given, with all their columns and as they are stored, to a raw executemany
  in one transaction on an equal table with equal indexes in another file. `ratio` is the median of the calls' rates over
  the raw ones'; only the executemany and its commit are timed of the raw one, all of bulk_create, the making of the
  dicts or objects included. This makes the large DB.
- `bytes_per_waiting_job`: of the file after a WAL checkpoint.
- `commands`: wall time of whole commands on the large DB, one after the other in 15 rounds, medians and minima. (`balsam ls`
  shows up to 5000 jobs, `balsam ls --by-states` as many of each state.)
- `claim`: `claims.finish` and `claims.take` of 64 jobs in one transaction, in this process, on either DB in turn. `ratio` is
  the large DB's rate over the small one's.
- `first_start`: seconds from starting `balsam launcher` to the first RUNNING event, median of `--starts` launchers, on either
  DB in turn, and the launcher's peak memory (VmHWM) after half a second of work.
- `finished`: `--finished` jobs of the large DB are taken and finished in the same way, 1000 at a time: the rate of the last
  tenth of the transactions over that of the first; then all of the above once more, against a new small DB. As many jobs as
  the small DB has are left waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import common

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import Holder
from balsam_lite.db import models
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import FILE_NAME, Database
from balsam_lite.db.manager import use
from balsam_lite.db.store import claims, leases, runs

_BARE, _VERSION, _BY_STATES = "python -c pass", "balsam --version", "balsam ls --by-states"
_BATCH, _LARGE_BATCH = 64, 1000
_PIECE = 10_000  # rows that the raw insert holds in memory
_CACHE = "PRAGMA cache_size = -65536"  # as bulk_create has it for many rows
_WORK_S = 0.5
_SMALL = 10_000
_FEWEST = 20_000


# --- inserting --------------------------------------------------------------------------------------------------------


def objects(count: int) -> Iterator[models.BalsamJob]:
    """The same jobs as `common.job_dicts`, as objects."""
    return (models.BalsamJob(**job) for job in common.job_dicts(count))


class Pair:
    """The DB that bulk_create fills, and a file with the same tables for the raw inserts."""

    def __init__(self, directory: str, raw_directory: str) -> None:
        self._database = common.make_db(directory, common.TRUE)
        common.make_db(raw_directory, common.TRUE).close()
        self._raw = sqlite3.connect(os.path.join(raw_directory, FILE_NAME), isolation_level=None)
        self._raw.execute("PRAGMA synchronous = NORMAL")
        self._raw.execute("PRAGMA wal_autocheckpoint = 4000")
        self._raw.execute(_CACHE)
        self._last = 0

    def insert(self, jobs: Iterable[Any]) -> tuple[int, float, float]:
        """One bulk_create and its raw counterpart: how many rows, seconds of the one, seconds of the other."""
        started = time.perf_counter()
        with use(self._database):
            models.BalsamJob.objects.bulk_create(jobs)
        seconds = time.perf_counter() - started
        rows, raw_seconds = self._insert_raw()
        return rows, seconds, raw_seconds

    def _insert_raw(self) -> tuple[int, float]:
        raw = self._raw
        columns = [row[1] for row in raw.execute("PRAGMA table_info(job)")]
        sql = f"INSERT INTO job ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        count = 0
        started = time.perf_counter()
        raw.execute("BEGIN IMMEDIATE")
        seconds = time.perf_counter() - started
        for rows in self._pieces(columns):
            started = time.perf_counter()
            raw.executemany(sql, rows)
            seconds += time.perf_counter() - started
            count += len(rows)
        started = time.perf_counter()
        raw.execute("COMMIT")
        return count, seconds + time.perf_counter() - started

    def _pieces(self, columns: list[str]) -> Iterator[list[tuple[Any, ...]]]:
        query = f"SELECT {', '.join(columns)} FROM job WHERE id > ? ORDER BY id LIMIT {_PIECE}"
        while True:
            with self._database.read() as cx:
                rows = cx.execute(query, (self._last,)).fetchall()
            if not rows:
                return
            self._last = rows[-1][0]
            yield rows

    def close(self) -> None:
        self._raw.close()
        self._database.close()


def shares(count: int, rounds: int) -> list[int]:
    """`count` in `rounds` nearly equal parts, none of them 0."""
    parts = [count * (n + 1) // rounds - count * n // rounds for n in range(rounds)]
    return [part for part in parts if part]


def insert_in_rounds(pair: Pair, count: int, rounds: int, kind: str) -> dict[str, float]:
    """Rates of bulk_create of `kind` ("dicts" or "objects") and of the raw inserts."""
    make = common.job_dicts if kind == "dicts" else objects
    found = []
    for part in shares(count, rounds):
        found.append(pair.insert(make(part)))
        rows, seconds, raw_seconds = found[-1]
        common.say(f"scale: {rows} {kind} at {rows / seconds:.0f}/s, raw {rows / raw_seconds:.0f}/s")
    total, seconds, raw_seconds = (sum(column) for column in zip(*found))
    return {
        "rows": total,
        "per_s": total / seconds,
        "raw_per_s": total / raw_seconds,
        "ratio": statistics.median(raw / own for _, own, raw in found),
        "ratio_of_totals": raw_seconds / seconds,
    }


def insert_and_report(directory: str, count: int) -> None:
    """What the child process of `insert_memory` does: one bulk_create, then one JSON line."""
    database = common.make_db(directory, common.TRUE)
    started = time.perf_counter()
    with use(database):
        models.BalsamJob.objects.bulk_create(common.job_dicts(count))
    seconds = time.perf_counter() - started
    print(json.dumps({"rss_mb": common.own_peak_rss_mb(), "per_s": count / seconds}))


def insert_memory(bench: common.Bench, jobs: int) -> dict[str, Any]:
    """Peak memory of one bulk_create of a tenth and of all."""
    found = []
    for count in (jobs // 10, jobs):
        common.say(f"scale: one bulk_create of {count}")
        argv = [sys.executable, os.path.abspath(__file__), "--insert-into", bench.new_directory(), "--jobs", str(count)]
        found.append({"rows": count, **json.loads(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout)})
    return {"tenth": found[0], "all": found[1], "memory_ratio": found[1]["rss_mb"] / found[0]["rss_mb"]}


# --- commands and launchers -------------------------------------------------------------------------------------------


def time_commands(bench: common.Bench, directory: str) -> dict[str, Any]:
    """`balsam ls` in its forms on that DB."""
    os.environ["BALSAM_DB_PATH"] = directory
    balsam, python = bench.commands
    commands = {
        _BARE: [python, "-c", "pass"],
        _VERSION: [*balsam, "--version"],
        _BY_STATES: [*balsam, "ls", "--by-states"],
        "balsam ls": [*balsam, "ls"],
        "balsam ls --limit 20": [*balsam, "ls", "--limit", "20"],
    }
    measured = common.alternating(commands, 15)
    del os.environ["BALSAM_DB_PATH"]
    return {
        "measured": measured,
        "over_python": common.ratios(measured, _BARE),
        "by_states_over_version": common.ratios(measured, _VERSION)[_BY_STATES],
    }


def first_start(bench: common.Bench, directory: str) -> tuple[float, float]:
    """Start a launcher, stop it after a moment of work: seconds to the first new RUNNING event, its peak memory in MiB."""
    query = "SELECT min(time) FROM event WHERE id > ? AND to_state = 'RUNNING'"
    with closing(sqlite3.connect(os.path.join(directory, FILE_NAME), timeout=60)) as cx:
        cx.execute("PRAGMA wal_autocheckpoint = 0")
        before = cx.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0]
        launcher = common.Running(common.launcher_argv(bench.commands, directory, common.cores()), f"{directory}.launcher")
        deadline = time.monotonic() + 120
        found = None
        while found is None and time.monotonic() < deadline:
            time.sleep(0.02)
            found = cx.execute(query, (before,)).fetchone()[0]
        time.sleep(_WORK_S)
        launcher.sample()
        os.kill(launcher.pid, signal.SIGTERM)
        ended = launcher.wait(60)
    if found is None:
        raise RuntimeError(f"the launcher started nothing within 120 s, see {directory}.launcher")
    return found / 1e6 - launcher.started_at, ended.peak_rss_mb


def first_starts(bench: common.Bench, small: str, large: str, times: int) -> dict[str, Any]:
    """The same, alternating between both DBs."""
    found: dict[str, list[tuple[float, float]]] = {small: [], large: []}
    for _ in range(times):
        for directory, them in found.items():
            them.append(first_start(bench, directory))
    seconds = {directory: statistics.median(s for s, _ in them) for directory, them in found.items()}
    memory = {directory: max(mb for _, mb in them) for directory, them in found.items()}
    return {
        "small_s": seconds[small],
        "large_s": seconds[large],
        "ratio": seconds[large] / seconds[small],
        "small_launcher_rss_mb": memory[small],
        "large_launcher_rss_mb": memory[large],
    }


# --- claiming ---------------------------------------------------------------------------------------------------------


class Claimer:
    """A launcher's transactions without the launcher: finish what was taken, take the next jobs."""

    def __init__(self, directory: str, batch: int) -> None:
        self._database: Database = directories.open_database(directory)
        self._batch = batch
        self._exits: list[runs.RunResult] = []
        self.seconds: list[float] = []
        with self._database.write() as cx:
            self._lease = leases.open_lease(cx, "launcher", Holder.current(), "", SystemClock.now_us())
        self._database.own_checkpoints(True)

    def step(self) -> int:
        """One transaction, timed. Returns how many jobs it took."""
        now_us = SystemClock.now_us()
        started = time.perf_counter()
        with self._database.write() as cx:
            claims.finish(cx, self._lease, self._exits, now_us)
            taken = claims.take(cx, self._lease, common.FixedCapacity(self._batch), claims.Filter(), now_us).to_run
        self.seconds.append(time.perf_counter() - started)
        self._exits = [runs.RunResult(one.job, one.attempt, "RUN_DONE", 0, "", now_us, now_us + 1) for one in taken]
        return len(taken)

    def close(self) -> None:
        """Finish the last ones, give back the lease."""
        with self._database.write() as cx:
            claims.finish(cx, self._lease, self._exits, SystemClock.now_us())
            leases.close_lease(cx, self._lease, SystemClock.now_us(), "the benchmark is over")
        self._database.close()


def claim_rates(small: str, large: str, batches: int) -> dict[str, Any]:
    """Claims on both DBs in turn. The first transaction of each only takes, and does not count."""
    claimers = Claimer(small, _BATCH), Claimer(large, _BATCH)
    taken = [one.step() for _ in range(batches + 1) for one in claimers]
    if min(taken) < _BATCH:
        raise RuntimeError("there were not enough jobs for so many --batches")
    for one in claimers:
        one.close()
    of_small, of_large = (one.seconds[1:] for one in claimers)
    return {
        "batches": batches,
        "small_jobs_per_s": _BATCH * batches / sum(of_small),
        "large_jobs_per_s": _BATCH * batches / sum(of_large),
        "ratio": sum(of_small) / sum(of_large),
        "ratio_of_medians": statistics.median(of_small) / statistics.median(of_large),
        "large_median_ms": statistics.median(of_large) * 1000,
    }


def finish_many(directory: str, jobs: int) -> dict[str, Any]:
    """Take and finish `jobs` of the DB in large transactions: the last tenth's rate over the first one's."""
    claimer = Claimer(directory, _LARGE_BATCH)
    done = 0
    while done < jobs:
        done += claimer.step()
    seconds = claimer.seconds[1:]
    claimer.close()
    tenth = max(len(seconds) // 10, 1)
    first, last = statistics.median(seconds[:tenth]), statistics.median(seconds[-tenth:])
    return {"finished": done, "jobs_per_s": _LARGE_BATCH * len(seconds) / sum(seconds), "last_over_first": first / last}


# --- the whole --------------------------------------------------------------------------------------------------------


def waiting(directory: str) -> int:
    """How many jobs a launcher could take."""
    with closing(sqlite3.connect(os.path.join(directory, FILE_NAME))) as cx:
        query = "SELECT sum(jobs) FROM state_count WHERE state IN ('CREATED', 'RESTART_READY')"
        return int(cx.execute(query).fetchone()[0])


def measure(bench: common.Bench, options: argparse.Namespace, large: str) -> dict[str, Any]:
    """All that is measured of a large DB, next to a new small one."""
    common.say("scale: commands, claims, first start")
    small = bench.new_directory()
    common.make_db_with_jobs(small, common.TRUE, common.job_dicts(_SMALL))
    batches = min(options.batches, min(_SMALL, waiting(large)) // 3 // _BATCH)
    return {
        "waiting": waiting(large),
        "commands": time_commands(bench, large),
        "claim": claim_rates(small, large, batches),
        "first_start": first_starts(bench, small, large, options.starts),
    }


def run(bench: common.Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Everything, in the order of the docstring above."""
    jobs = options.jobs
    count_objects = jobs // 10 if options.objects is None else min(options.objects, jobs)
    figures: dict[str, Any] = {"jobs": jobs, "small_jobs": _SMALL, "insert_memory": insert_memory(bench, jobs)}
    large = bench.new_directory()
    pair = Pair(large, bench.new_directory())
    figures["insert_dicts"] = insert_in_rounds(pair, jobs - count_objects, options.rounds, "dicts")
    figures["insert_objects"] = insert_in_rounds(pair, count_objects, options.rounds, "objects")
    pair.close()
    figures["bytes_per_waiting_job"] = (common.file_bytes(large) - bench.empty_bytes) / jobs
    figures.update(measure(bench, options, large))
    finished = min(jobs // 2 if options.finished is None else options.finished, waiting(large) - _SMALL)
    if finished > 0:
        common.say(f"scale: finishing {finished} jobs")
        figures["finished"] = {**finish_many(large, finished), **measure(bench, options, large)}
        figures["finished"]["bytes_per_job"] = (common.file_bytes(large) - bench.empty_bytes) / jobs
    return figures


def main() -> None:
    """Everything, one line."""
    parser = common.parser(__doc__)
    parser.add_argument("--jobs", type=common.at_least(1), default=1_200_000, metavar="N", help="(1200000)")
    parser.add_argument("--objects", type=common.at_least(1), metavar="N", help="so many of them as objects (a tenth)")
    parser.add_argument("--rounds", type=common.at_least(1), default=10, metavar="R", help="calls of bulk_create (10)")
    parser.add_argument("--starts", type=common.at_least(1), default=5, metavar="R", help="launchers started on each DB (5)")
    parser.add_argument("--batches", type=common.at_least(1), default=50, metavar="R", help="claims of 64 on each DB (50)")
    parser.add_argument("--finished", type=common.at_least(0), metavar="N", help="(half of the jobs; 0: leave that out)")
    parser.add_argument("--insert-into", help="(for its own child process)")
    options = parser.parse_args()
    if options.insert_into:
        insert_and_report(options.insert_into, options.jobs)
        return
    if options.jobs < _FEWEST:
        parser.error(f"--jobs must be {_FEWEST} or more")
    with common.scratch(options.dir) as place:
        bench = common.Bench(place, options.balsam)
        common.emit("scale", run(bench, options), bench.machine)


if __name__ == "__main__":
    main()
