"""What a command costs before it does anything, over an empty Python.

Whole commands, from before they are started to after they have ended, output thrown away: `balsam --version`, `balsam ls
--limit 20` and `balsam job ls --limit 20` (a DB of 20 jobs), `python -c "import balsam_lite.launcher.dag"` and `python -c pass`
of the same interpreter, in turn in `--rounds` rounds. `ratio` has medians and minima over those of `python -c pass`; `extra_ms`
is the difference of the minima.
"""

from __future__ import annotations

import os

import common

_BARE = "python -c pass"


def main() -> None:
    """Measure, one line."""
    parser = common.parser(__doc__)
    parser.add_argument("--rounds", type=common.at_least(1), default=30, metavar="R", help="(30)")
    arguments = parser.parse_args()
    with common.scratch(arguments.dir) as place:
        bench = common.Bench(place, arguments.balsam)
        directory = bench.new_directory()
        common.make_db_with_jobs(directory, common.TRUE, common.job_dicts(20))
        os.environ["BALSAM_DB_PATH"] = directory
        balsam, python = bench.commands
        commands = {
            _BARE: [python, "-c", "pass"],
            "balsam --version": [*balsam, "--version"],
            "balsam ls": [*balsam, "ls", "--limit", "20"],
            "balsam job ls": [*balsam, "job", "ls", "--limit", "20"],
            "import balsam_lite.launcher.dag": [python, "-c", "import balsam_lite.launcher.dag"],
        }
        measured = common.alternating(commands, arguments.rounds)
        bare_ms = measured[_BARE]["min_ms"]
        extra = {name: one["min_ms"] - bare_ms for name, one in measured.items() if name != _BARE}
        figures = {
            "rounds": arguments.rounds,
            "ratio": common.ratios(measured, _BARE),
            "extra_ms": extra,
            "measured": measured,
            "balsam": balsam,
        }
        common.emit("startup", figures, bench.machine)


if __name__ == "__main__":
    main()
