"""Run joblib.Parallel, as scikit-learn uses it, with jobs: a backend of ten lines over the executor."""

import math

import joblib
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

from balsam_lite.launcher.executor import BalsamExecutor


class BalsamBackend(AutoBatchingMixin, ParallelBackendBase):
    """Joblib's batches of calls are calls of a BalsamExecutor."""

    supports_retrieve_callback = True
    default_n_jobs = 2

    def effective_n_jobs(self, n_jobs: int) -> int:
        """Return how many batches are submitted at a time."""
        return n_jobs if n_jobs and n_jobs > 0 else self.default_n_jobs

    def configure(self, n_jobs: int = 1, parallel: object = None, **others: object) -> int:
        """Open the executor for one Parallel."""
        self.parallel = parallel
        self.executor = BalsamExecutor(workflow="joblib")
        return self.effective_n_jobs(n_jobs)

    def submit(self, func: object, callback: object = None) -> object:
        """Add the job of one batch."""
        future = self.executor.submit(func)
        future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: object) -> object:
        """Return the results of a batch, or raise its exception."""
        return future.result()

    def terminate(self) -> None:
        """Close the executor."""
        self.executor.shutdown()


joblib.register_parallel_backend("balsam", BalsamBackend)

if __name__ == "__main__":
    with joblib.parallel_config(backend="balsam", n_jobs=4):
        roots = joblib.Parallel()(joblib.delayed(math.sqrt)(n * n) for n in range(12))
    print("roots:", roots)
