"""One benchmark with two versions of balsam_lite in turn, in the same run: how much did a change gain or cost?

    python benchmarks/pairs.py [--rounds R] OTHER throughput.py 4000 --sleeps 0

OTHER is a checkout with a `.venv`, or the Python of an environment in which the other version is installed. Both versions run
this checkout's benchmark with these words, one after the other and each first in every second round. Of each figure that is a
number: the median and all values with the `other` version and with `this`, and in `this_to_other` the median of the rounds'
ratios, which a machine that becomes slower between rounds does not change.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from typing import Any

import common

_HERE = os.path.dirname(os.path.abspath(__file__))


def python_of(other: str) -> str:
    """The interpreter of a checkout, or `other` itself."""
    python = os.path.join(other, ".venv", "bin", "python") if os.path.isdir(other) else other
    if not os.access(python, os.X_OK):
        raise SystemExit(f"There is no Python at {python}: name a checkout after `make venv`, or an interpreter.")
    return os.path.abspath(python)


def figures_of(python: str, words: list[str]) -> dict[str, float]:
    """Run the benchmark once: its figures that are numbers, those inside of others as `outer.inner`."""
    answer = subprocess.run([python, os.path.join(_HERE, words[0]), *words[1:]], stdout=subprocess.PIPE, check=True).stdout
    return dict(_numbers(json.loads(answer.splitlines()[-1])))


def _numbers(figures: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for key, value in figures.items():
        if isinstance(value, dict) and key != "machine":
            found += _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)):
            found.append((prefix + key, float(value)))
    return found


def compared(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Each figure that all rounds have and that is not the same in all of them."""
    names = [name for name in rounds[0]["this"] if all(name in one for pair in rounds for one in pair.values())]
    table: dict[str, dict[str, Any]] = {}
    for name in names:
        values = {side: [pair[side][name] for pair in rounds] for side in ("other", "this")}
        if len({*values["other"], *values["this"]}) > 1:
            ratios = [this / other for this, other in zip(values["this"], values["other"]) if other]
            medians = {side: statistics.median(them) for side, them in values.items()}
            table[name] = {**medians, "this_to_other": statistics.median(ratios) if ratios else None, "all": values}
    return table


def main() -> None:
    """All rounds, one line; the medians on stderr, too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=python_of, metavar="OTHER")
    parser.add_argument("--rounds", type=common.at_least(1), default=5, metavar="R", help="(5)")
    parser.add_argument("benchmark", nargs=argparse.REMAINDER, metavar="SCRIPT …", help="a benchmark, with its words")
    arguments = parser.parse_args()
    if not arguments.benchmark:
        parser.error("name a benchmark, such as throughput.py")
    sides = {"other": arguments.other, "this": sys.executable}
    machine = common.machine_at(os.getcwd())
    rounds = []
    for number in range(arguments.rounds):
        order = list(sides) if number % 2 == 0 else list(reversed(sides))
        common.say(f"pairs: round {number + 1} of {arguments.rounds}")
        rounds.append({side: figures_of(sides[side], arguments.benchmark) for side in order})
    table = compared(rounds)
    for name, row in table.items():
        ratio = "-" if row["this_to_other"] is None else f"{row['this_to_other']:.3f}"
        common.say(f"{name:34} other {row['other']:10.4g}   this {row['this']:10.4g}   ratio {ratio}")
    common.emit("pairs", {"of": arguments.benchmark, "rounds": arguments.rounds, "figures": table}, machine)


if __name__ == "__main__":
    main()
