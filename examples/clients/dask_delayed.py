"""Compute a dask graph: its tasks are jobs."""

import dask

from balsam_lite.launcher.executor import BalsamExecutor


@dask.delayed
def square(x: int) -> int:
    """Return the square."""
    return x * x


if __name__ == "__main__":
    total = dask.delayed(sum)([square(n) for n in range(20)])
    with BalsamExecutor(max_workers=2, workflow="dask") as executor, dask.config.set(scheduler=executor):
        print("sum of squares:", total.compute())
