"""The master job: an asynchronous evolutionary search that keeps a number of evaluations in flight.

It runs under the launcher like any other job, adds its evaluations while it runs, and decides on the next one as soon as
one is over. At first it draws points at random; then it takes the best of a few recent ones and changes that a little.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import NamedTuple

from balsam_lite.launcher import dag
from balsam_lite.launcher.futures import ANY_COMPLETED, FutureTask, wait

#: So many of our jobs share a node: the master itself, which mostly waits, has such a share too.
PACKING = 4
#: The next parent is the best of SAMPLE that are drawn from the last POPULATION.
POPULATION, SAMPLE = 20, 8


class Point(NamedTuple):
    """What is to be optimised, both as logarithms: a rate of 10 ** rate, 2 ** units units."""

    rate: float
    units: float


LOWEST, HIGHEST = Point(-5.0, 2.0), Point(-1.0, 10.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    random.seed(options.seed)
    in_flight = PACKING * dag.LAUNCHER_NODES - 1
    print(f"{options.evaluations} evaluations, {in_flight} at once", flush=True)

    # There are none, unless a launcher ended while the master ran and the next one has started it again.
    earlier = dag.BalsamJob.objects.filter(workflow=dag.current_job.workflow, application="train")
    futures = [FutureTask(job, result_of) for job in earlier]
    asked = len(futures)
    results: list[dict[str, float]] = []
    failed = 0
    while True:
        while asked < options.evaluations and len(futures) < in_flight:
            futures.append(evaluation(asked, next_point(results)))
            asked += 1
        if not futures:
            break
        over = wait(futures, return_when=ANY_COMPLETED)
        results += [future.result() for future in over.done]
        failed += len(over.failed) + len(over.cancelled)  # the search goes on without them
        futures = over.active

    with open("results.json", "w", encoding="utf-8") as file:
        json.dump({"evaluations": results, "failed": failed}, file, indent=1)
    best = min(results, key=lambda result: result["loss"])
    dag.current_job.data["best"] = best
    dag.current_job.save()
    print(f"The best loss is {best['loss']:.4f}, at a rate of {10 ** best['rate']:.5f} and {2 ** best['units']:.0f} units")


def evaluation(number: int, point: Point) -> FutureTask:
    """Add the job that evaluates `point`."""
    job = dag.add_job(
        name=f"eval{number}",
        workflow=dag.current_job.workflow,
        application="train",
        args=f"--rate {10**point.rate} --units {round(2**point.units)}",
        node_packing_count=PACKING,
        data=point._asdict(),
    )
    return FutureTask(job, result_of)


def result_of(job: dag.BalsamJob) -> dict[str, float]:
    return {**job.data, "loss": float(job.read_file_in_workdir(f"{job.name}.out"))}


def next_point(results: list[dict[str, float]]) -> Point:
    if len(results) < POPULATION:
        return Point(*map(random.uniform, LOWEST, HIGHEST))
    parent = min(random.sample(results[-POPULATION:], SAMPLE), key=lambda result: result["loss"])
    return Point(*map(changed, Point(parent["rate"], parent["units"]), LOWEST, HIGHEST))


def changed(value: float, lowest: float, highest: float) -> float:
    return min(max(random.gauss(value, 0.07 * (highest - lowest)), lowest), highest)


if __name__ == "__main__":
    main()
