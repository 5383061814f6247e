"""Archives: how long do `balsam export` and `balsam import` of a campaign take, and in how much memory?

The DB is that of `answers.py`: most jobs have ended, some failed, each with its events and attempts. Times whole commands: the
export to a plain, a gzip and a zstd archive, the import into an empty DB, the same import again, which skips all jobs, and
`diff` of two of them. Goal for 100 000 jobs: at most 20 s for an export and for an import.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import answers
import common


def run(bench: common.Bench, options: argparse.Namespace) -> dict[str, Any]:
    """Time the commands one after the other."""
    balsam, _ = bench.commands
    source, target = os.path.join(bench.place, "source"), os.path.join(bench.place, "target")
    common.say(f"archives: making {options.jobs} jobs")
    answers.make(source, options.jobs)
    common.make_db(target, common.TRUE).close()
    archive = os.path.join(bench.place, "all.tar")
    words = {
        "export": ["--db", source, "export", archive],
        "export_gzip": ["--db", source, "export", f"{archive}.gz"],
        "export_zstd": ["--db", source, "export", f"{archive}.zst"],
        "import": ["--db", target, "import", f"{archive}.gz", "--rename-apps"],
        "import_again": ["--db", target, "import", f"{archive}.gz", "--rename-apps"],
        "diff": ["--db", source, "diff", archive, f"{archive}.gz"],
    }
    figures: dict[str, Any] = {"jobs": options.jobs}
    for name, command in words.items():
        common.say(f"archives: {name}")
        ended = common.Running([*balsam, *command]).wait(1800)
        figures[name] = {"s": ended.seconds, "cpu_s": ended.own_cpu_s, "peak_mb": ended.peak_rss_mb}
    return figures


def main() -> None:
    """Print everything as one line."""
    parser = common.parser(__doc__)
    parser.add_argument("--jobs", type=common.at_least(1000), default=100_000, metavar="N", help="(100000)")
    options = parser.parse_args()
    with common.scratch(options.dir) as place:
        bench = common.Bench(place, options.balsam)
        common.emit("archives", run(bench, options), bench.machine)


if __name__ == "__main__":
    main()
