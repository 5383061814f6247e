"""Find a minimum with scipy's differential_evolution: each generation's evaluations are jobs."""

import numpy as np
from scipy.optimize import differential_evolution

from balsam_lite.launcher.executor import BalsamExecutor


def energy(x: np.ndarray) -> float:
    """Return Rosenbrock's function, whose minimum of 0 is at (1, 1)."""
    return float(100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2)


if __name__ == "__main__":
    with BalsamExecutor(workflow="scipy") as executor:
        found = differential_evolution(
            energy, [(-2, 2), (-2, 2)], workers=executor.map, updating="deferred", popsize=8, maxiter=12, rng=1
        )
    print(f"{found.nfev} evaluations, minimum at ({found.x[0]:.2f}, {found.x[1]:.2f})")
