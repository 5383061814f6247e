"""Campaigns in: how many jobs a second does one `balsam job` add, and in how much memory?

Times whole commands with `--jobs` jobs each: `make_dummies` (rows from a generator: what adding jobs takes without reading
them), `--from-file` of a CSV and of JSON lines with six columns, `--sweep` of two variables, `--commands`, `--from-file` with
`--unique name`, and the same again with `--on-duplicate skip`, which adds nothing. Of each: jobs a second by the wall clock
(goal: 20 000), jobs a second of CPU time, and peak memory. `memory` has the peak of the CSV with `--memory` jobs, and how many
bytes each job beyond `--jobs` added to it. Goal: less than 20.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import common


def write_csv(path: str, jobs: int) -> str:
    """Write a table of jobs."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("name,workflow,num_nodes,args,data.x,tags.k\n")
        file.writelines(f"run{number},scan,1,-t {number},{number / 2},{number % 7}\n" for number in range(jobs))
    return path


def write_json(path: str, jobs: int) -> str:
    """Write the same as JSON lines."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(jobs):
            row = f'"name": "run{number}", "workflow": "scan", "num_nodes": 1, "args": "-t {number}"'
            file.write(f'{{{row}, "data": {{"x": {number / 2}}}, "tags": {{"k": "{number % 7}"}}}}\n')
    return path


def write_commands(path: str, jobs: int) -> str:
    """Write lines of commands."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"./sim -t {number} > out.{number}\n" for number in range(jobs))
    return path


def run(bench: common.Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Time the commands, each on the DB with the jobs of those before it."""
    balsam, _ = bench.commands
    jobs = options.jobs
    common.say(f"intake: writing files of {jobs} jobs")
    table = write_csv(os.path.join(bench.place, "runs.csv"), jobs)
    lines = write_json(os.path.join(bench.place, "runs.jsonl"), jobs)
    commands = write_commands(os.path.join(bench.place, "commands.txt"), jobs)
    each = jobs // 100
    of_app = ["--app", "task", "--yes"]
    words = {
        "make_dummies": ["make_dummies", str(jobs)],
        "csv": ["job", "--from-file", table, *of_app],
        "jsonl": ["job", "--from-file", lines, *of_app],
        "sweep": ["job", "--name", "s", "--workflow", "s", *of_app, "--sweep", f"T=1:{each}", "--sweep", "P=0.01:1:0.01",
                  "--args", "-t {T} -p {P}"],
        "commands": ["job", "--commands", commands, "--yes"],
        "unique": ["job", "--from-file", table, *of_app, "--unique", "name"],
        "skipped": ["job", "--from-file", table, *of_app, "--unique", "name", "--on-duplicate", "skip"],
    }  # fmt: skip
    directory = bench.new_directory()
    common.make_db(directory, common.TRUE).close()
    os.environ["BALSAM_DB_PATH"] = directory
    figures: dict[str, Any] = {"jobs": jobs}
    for name, command in words.items():
        common.say(f"intake: {name}")
        figures[name] = _timed([*balsam, *command], jobs)
    if options.memory > jobs:
        common.say(f"intake: {options.memory} jobs")
        many = _timed([*balsam, "job", "--from-file", write_csv(table, options.memory), *of_app], options.memory)
        added = (many["peak_mb"] - figures["csv"]["peak_mb"]) * 1024 * 1024 / (options.memory - jobs)
        figures["memory"] = {"jobs": options.memory, **many, "bytes_per_job": max(added, 0.0)}
    return figures


def _timed(argv: list[str], jobs: int) -> dict[str, float]:
    ended = common.Running(argv).wait(1800)
    return {"per_s": jobs / ended.seconds, "per_cpu_s": jobs / ended.own_cpu_s, "peak_mb": ended.peak_rss_mb}


def main() -> None:
    """Print everything as one line."""
    parser = common.parser(__doc__)
    parser.add_argument("--jobs", type=common.at_least(1000), default=100_000, metavar="N", help="(100000)")
    parser.add_argument("--memory", type=common.at_least(0), default=1_000_000, metavar="N", help="(1000000)")
    options = parser.parse_args()
    with common.scratch(options.dir) as place:
        bench = common.Bench(place, options.balsam)
        common.emit("intake", run(bench, options), bench.machine)


if __name__ == "__main__":
    main()
