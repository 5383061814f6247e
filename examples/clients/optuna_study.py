"""Search parameters with optuna's ask and tell: the trials of a round are jobs."""

import optuna

from balsam_lite.launcher.executor import BalsamExecutor


def loss(x: float, kind: str) -> float:
    """Return what is to be as small as possible: 0 at x = 2 of the kind "a"."""
    return (x - 2) ** 2 + (kind != "a")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=3))
    with BalsamExecutor(workflow="optuna") as executor:
        for _ in range(5):
            trials = [study.ask() for _ in range(8)]
            futures = [
                executor.submit(loss, trial.suggest_float("x", -10, 10), trial.suggest_categorical("kind", ["a", "b"]))
                for trial in trials
            ]
            for trial, future in zip(trials, futures):
                study.tell(trial, future.result())
    print(f"{len(study.trials)} trials, the best has kind {study.best_params['kind']}")
