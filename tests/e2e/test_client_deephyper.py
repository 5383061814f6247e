"""DeepHyper 0.1's evaluator for Balsam 0.3, as it is on PyPI."""

from __future__ import annotations

from pathlib import Path

from client_environments import EXAMPLES, ClientDB, old_clients


def test_a_search_of_deephyper_0_1_evaluates_points_as_jobs(tmp_path: Path) -> None:
    db = ClientDB(old_clients(), tmp_path)
    with db.launcher():
        printed = db.python(EXAMPLES / "deephyper_balsam_03.py").splitlines()
    assert printed == [
        "Created new app",
        "12 evaluations, 1 of them known before",
        "failed: [{'x': 9, 'y': 0}]",
        "best: {'x': 1, 'y': -2} 0.0",
    ]
    jobs = [line.split("|") for line in db.balsam("ls", "--wf", "quadratic").splitlines() if "quadratic.run" in line]
    assert sorted(words[-1].strip() for words in jobs) == ["FAILED"] + ["JOB_FINISHED"] * 10
    (results,) = (tmp_path / "db" / "data" / "quadratic").glob("search_*/results.csv")
    lines = results.read_text().splitlines()
    assert lines[0] == "x,y,objective,elapsed_sec" and len(lines) == 12
