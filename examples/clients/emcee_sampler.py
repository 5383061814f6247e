"""Sample a distribution with emcee: the walkers' log-probabilities are jobs."""

import emcee
import numpy as np

from balsam_lite.launcher.executor import BalsamExecutor


def log_probability(x: np.ndarray) -> float:
    """Return the logarithm of a normal distribution's density, without the constant."""
    return float(-0.5 * np.sum(x**2))


if __name__ == "__main__":
    np.random.seed(7)
    start = np.random.normal(size=(16, 2))
    with BalsamExecutor(workflow="emcee") as executor:
        sampler = emcee.EnsembleSampler(16, 2, log_probability, pool=executor)
        sampler.run_mcmc(start, 10)
    print(f"{sampler.get_chain(flat=True).shape[0]} samples, acceptance {np.mean(sampler.acceptance_fraction):.2f}")
