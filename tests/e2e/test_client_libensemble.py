"""libEnsemble's executors for Balsam, as they are on PyPI: that of 0.8 for Balsam 0.3, and that of 1.5 for Balsam 0.7."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from client_environments import EXAMPLES, ClientDB, clients, old_clients


def test_an_ensemble_of_libensemble_0_8_runs_its_simulations_as_jobs(tmp_path: Path) -> None:
    db = ClientDB(old_clients(), tmp_path)
    with db.launcher():
        printed = db.python(EXAMPLES / "libensemble_balsam_03.py").splitlines()
    check_ensemble(printed)
    states = [line.split("|")[-1].strip() for line in db.balsam("ls").splitlines() if "libe_task_norm" in line]
    assert sorted(states) == ["JOB_FINISHED"] * 8 + ["USER_KILLED"]
    outputs = sorted(path.name for path in (tmp_path / "ensemble").glob("sim*/libe_task_norm_*.out"))
    assert len(outputs) == 8  # in the directories that libEnsemble made for its simulations


def test_an_ensemble_of_libensemble_1_5_runs_its_simulations_at_a_site(tmp_path: Path) -> None:
    db = ClientDB(clients(), tmp_path)
    shutil.rmtree(db.directory)
    del db.environ["BALSAM_DB_PATH"]
    db.balsam("site", "init", "-n", "laptop", "laptop")
    printed = db.python(EXAMPLES / "libensemble_balsam_07.py").splitlines()
    check_ensemble(printed)
    assert printed[3:] == ["revoked: True"]
    listed = db.balsam("job", "ls", "--site", "laptop")
    assert listed.count("JOB_FINISHED") == 8
    assert "libe_workflow/point7" in listed
    assert "USER_KILLED" not in listed  # a kill of this executor deletes the job


def check_ensemble(printed: list[str]) -> None:
    found = re.fullmatch(r"8 simulations, exit flag 0, largest error (\S+)", printed[0])
    assert found is not None and float(found[1]) < 1e-4
    assert printed[1:3] == ["started: RUNNING", "killed: USER_KILLED True"]
