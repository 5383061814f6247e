"""Programs that take a `concurrent.futures.Executor`, a pool or a map, unmodified over a BalsamExecutor: docs/clients."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from client_environments import EXAMPLES, ClientDB, clients
from helpers import ROOT


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientDB]:
    made = ClientDB(clients(), tmp_path_factory.mktemp("clients"))
    with made.launcher():
        yield made


#: For each example what it prints, and at least how many calls of which functions are jobs of it.
EXPECTED = {
    "scipy_minimum": (r"\d+ evaluations, minimum at \((0\.9\d|1\.0\d), (0\.9\d|1\.0\d)\)", 100),
    "emcee_sampler": (r"160 samples, acceptance 0\.\d\d", 150),
    "dask_delayed": ("sum of squares: 2470", 2),
    "joblib_parallel": (re.escape("roots: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0]"), 2),
    "optuna_study": ("40 trials, the best has kind a", 40),
    "adaptive_learner": (r"4\d points, [12]\d of them near the peak", 40),
}


@pytest.mark.parametrize("example", EXPECTED)
def test_a_program_that_takes_an_executor_runs_its_calls_as_jobs(db: ClientDB, example: str) -> None:
    expected, fewest = EXPECTED[example]
    assert re.fullmatch(expected, db.python(EXAMPLES / f"{example}.py").strip())
    workflow = example.partition("_")[0]
    jobs = json.loads(db.balsam("ls", "--wf", workflow, "--json"))
    assert len(jobs) >= fewest
    assert {job["state"] for job in jobs} <= {"JOB_FINISHED", "USER_KILLED"}


def test_each_example_is_run_and_has_a_page() -> None:
    pages = {path.stem for path in (ROOT / "docs" / "clients").glob("*.rst")}
    assert {example.partition("_")[0] for example in EXPECTED} <= pages
