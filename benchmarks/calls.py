"""Calls of `BalsamExecutor` beside `ProcessPoolExecutor` and, where it is installed, executorlib, in the same run.

`root` is `math.sqrt`, `scipy` a function of a module that imports scipy (where that is installed, else one that imports
`decimal` and `email`), `sleep` sleeps for 10 ms. Each figure is the number of calls per second from the first `submit`
to the last result, workers being warm, as the median of `--rounds`; `first_s` is what the first call takes, with the start of
a worker.
"""

from __future__ import annotations

import importlib.util
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

import common

from balsam_lite.db.models import use
from balsam_lite.launcher.executor import BalsamExecutor

MODULE = """
try:
    import scipy.special as used
except ImportError:
    import decimal, email.message as used

import time

def nap(seconds):
    time.sleep(seconds)

def half(x):
    return x / 2
"""


def rate(executor: Executor, function: Callable[..., Any], arguments: list[Any]) -> float:
    """Return calls per second."""
    started = time.perf_counter()
    futures = [executor.submit(function, argument) for argument in arguments]
    for future in futures:
        future.result(120)
    return len(arguments) / (time.perf_counter() - started)


def measure(executor: Executor, kinds: dict[str, tuple[Callable[..., Any], list[Any]]], rounds: int) -> dict[str, Any]:
    """Return the figures of one executor."""
    found: dict[str, Any] = {}
    for name, (function, arguments) in kinds.items():
        started = time.perf_counter()
        executor.submit(function, arguments[0]).result(120)
        found[f"{name}_first_s"] = round(time.perf_counter() - started, 3)
        rate(executor, function, arguments[: max(8, len(arguments) // 10)])
        found[name] = round(statistics.median(rate(executor, function, arguments) for _ in range(rounds)))
    return found


def main() -> None:
    """Print the figures of all executors as JSON."""
    parser = common.parser(__doc__)
    parser.add_argument("--calls", type=int, default=4000)
    parser.add_argument("--slots", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="balsam, pool or executorlib")
    args = parser.parse_args()
    with common.scratch(args.dir) as directory:
        with open(os.path.join(directory, "their_module.py"), "w", encoding="utf-8") as file:
            file.write(MODULE)
        machine = common.machine_at(directory)
        sys.path.insert(0, directory)
        os.environ["PYTHONPATH"] = directory  # for executorlib, which sends no sys.path
        module = importlib.import_module("their_module")
        numbers = [float(n) for n in range(args.calls)]
        kinds: dict[str, tuple[Callable[..., Any], list[Any]]] = {
            "root": (math.sqrt, numbers),
            "scipy": (module.half, numbers[: args.calls // 2]),
            "sleep": (module.nap, [0.01] * (args.calls // 10)),
        }
        found: dict[str, Any] = {}
        if args.only in ("", "balsam"):
            database = common.make_db(os.path.join(directory, "db"), common.TRUE)
            with use(database), BalsamExecutor(launcher=args.slots) as executor:
                found["balsam"] = measure(executor, kinds, args.rounds)
            database.close()
        if args.only in ("", "pool"):
            with ProcessPoolExecutor(args.slots) as pool:
                found["ProcessPoolExecutor"] = measure(pool, kinds, args.rounds)
        if args.only in ("", "executorlib") and importlib.util.find_spec("executorlib"):
            from executorlib import SingleNodeExecutor

            with SingleNodeExecutor(max_workers=args.slots, block_allocation=True) as other:
                found["executorlib"] = measure(other, kinds, args.rounds)
        common.emit("calls", found, machine)


if __name__ == "__main__":
    main()
