"""Learn a function with adaptive: the points that it chooses are jobs."""

import adaptive

from balsam_lite.launcher.executor import BalsamExecutor


def peak(x: float) -> float:
    """Return a function that is flat but for a peak at 0."""
    return 1e-2 / (1e-2 + x**2)


if __name__ == "__main__":
    learner = adaptive.Learner1D(peak, bounds=(-1, 1))
    with BalsamExecutor(workflow="adaptive") as executor:
        adaptive.BlockingRunner(learner, npoints_goal=40, executor=executor, ntasks=4)
    near = sum(abs(x) < 0.25 for x in learner.data)
    print(f"{learner.npoints} points, {near} of them near the peak")
