"""A search with DeepHyper 0.1 whose evaluations are jobs of a Balsam DB: python deephyper_balsam_03.py

Started by hand, it adds itself as a job, as DeepHyper 0.1 expects, and prints what that job has found.
"""

import os
import sys

import balsam_lite.compat  # noqa: F401  # before anything that imports balsam
from balsam.launcher import dag
from balsam.launcher.futures import FutureTask

import quadratic


def search():
    """Evaluate a grid in two batches; this runs in a job."""
    from deephyper.evaluator.evaluate import Evaluator

    evaluator = Evaluator.create(quadratic.run, method="balsam")
    grid = [{"x": x, "y": y} for x in range(3) for y in range(-3, 0)]

    evaluator.add_eval_batch(grid)
    found = list(evaluator.await_evals([evaluator.encode(point) for point in grid]))

    more = [{"x": 5, "y": 5}, grid[0], {"x": 9, "y": 0}]
    evaluator.add_eval_batch(more)  # the second one is known already
    while evaluator.pending_evals:
        found += evaluator.get_finished_evals(timeout=10)

    best, objective = max(found, key=lambda one: one[1])
    print(len(found), "evaluations,", evaluator.stats["num_cache_used"], "of them known before")
    print("failed:", [point for point, value in found if value == Evaluator.FAIL_RETURN_VALUE])
    print("best:", best, objective)
    evaluator.dump_evals()


def main():
    dag.add_app("search", f"{sys.executable} {os.path.abspath(__file__)}")
    job = dag.add_job(name="search", workflow="quadratic", application="search")
    output = FutureTask(job, lambda job: job.read_file_in_workdir("search.out")).result(timeout=100)
    print(output, end="")


if __name__ == "__main__":
    main() if dag.current_job is None else search()
