"""`balsam queue`, and how a list of launches asks the scheduler."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import Balsam, wait_until
from sites import SITES, Site

from balsam_lite.cli.main import main
from balsam_lite.db.engine import directories
from balsam_lite.schedulers import base


@pytest.fixture(params=["cobalt", "pbs"])
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    kind = next(kind for kind in SITES if kind.name == request.param)
    with contextmanager(kind.enter)(tmp_path, request, monkeypatch):
        monkeypatch.setenv("BALSAM_SCHEDULER_CLASS", kind.scheduler)
        yield Site(kind, tmp_path)


@pytest.fixture
def balsam(site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Balsam:
    """Runs the command in a DB whose launches wait for the file `go` instead of running jobs."""
    database = directories.create(str(site.folder / "db"))
    header = "\n".join(site.header("{{ nodes }}", "{{ time_minutes }}"))
    body = f"while [ ! -e {site.folder}/go ]; do sleep 0.1; done"
    Path(database.directory, "wait.tmpl").write_text(f"#!/bin/bash\n{header}\n{body}\n")
    Path(database.directory, "settings.json").write_text('{"JOB_TEMPLATE": "wait.tmpl"}')
    monkeypatch.setenv("BALSAM_DB_PATH", database.directory)
    database.close()

    def call(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def launch(balsam: Balsam, nodes: int) -> None:
    code, _, err = balsam("submit-launch", "-n", str(nodes), "-t", "5", "-q", "training", "--job-mode", "serial")
    assert code == 0, err


def states(balsam: Balsam) -> list[str]:
    return [row["scheduler_state"] for row in json.loads(balsam("ls", "queues", "--all", "--json")[1])]


def test_launches_are_cancelled_by_our_number_and_by_the_schedulers_id(balsam: Balsam) -> None:
    for _ in range(3):
        launch(balsam, 4)
    ids = [row["scheduler_id"] for row in json.loads(balsam("ls", "queues", "--json")[1])]
    code, out, err = balsam("queue", "rm", "qlaunch3", ids[1], "2")
    assert (code, err) == (0, "")
    assert [line.partition(" is ")[0] for line in out.splitlines()] == [f"qlaunch3 ({ids[2]})", f"qlaunch2 ({ids[1]})"]
    wait_until(lambda: states(balsam)[1:] == ["cancelled"] * 2, 30, 0.2)
    assert states(balsam)[0] in (base.QUEUED, base.RUNNING)
    assert ids[0] in balsam("queue", "ls")[1]
    assert balsam("queue", "rm", ids[0])[0] == 0
    wait_until(lambda: states(balsam) == ["cancelled"] * 3, 30, 0.2)
    none = "No active batch jobs.  Use --history option to list completed batch jobs.\n"
    assert balsam("queue", "ls") == (0, "", none)


@pytest.mark.parametrize("scheduler", ["SlurmScheduler", "LocalScheduler"])
def test_a_submission_for_several_hosts_says_that_mpi4py_is_missing(
    balsam: Balsam, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheduler: str
) -> None:
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    monkeypatch.setenv("BALSAM_SCHEDULER_CLASS", scheduler)
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for nodes, mode, needs_it in (("2", "mixed", True), ("2", "mpi", False), ("1", "serial", False)):
        code, _, err = balsam("submit-launch", "-n", nodes, "-t", "5", "-q", "training", "--job-mode", mode)
        # The local scheduler's nodes are shares of this host.
        is_warned = needs_it and scheduler != "LocalScheduler"
        assert code == 0 and ("on several nodes needs mpi4py" in err) == is_warned


def test_an_unknown_id_cancels_none_and_a_failure_stops_no_other(balsam: Balsam) -> None:
    launch(balsam, 4)
    launch(balsam, 1)
    code, out, err = balsam("queue", "rm", "1", "qlaunch9")
    assert (code, out) == (3, "")
    assert "no batch job qlaunch9" in err
    assert set(states(balsam)) <= {base.QUEUED, base.RUNNING}
    assert balsam("queue", "rm", "2")[0] == 0
    wait_until(lambda: states(balsam)[1] == "cancelled", 30, 0.2)
    code, out, err = balsam("queue", "rm", "2", "1")
    assert code == 1
    assert "qlaunch2 has ended already (cancelled)" in err
    assert out.startswith("qlaunch1 (")
    assert balsam("queue", "rm")[0] == 2


def test_a_list_asks_the_scheduler_once_and_shows_reasons(balsam: Balsam, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(balsam, 4)
    launch(balsam, 1)
    wait_until(lambda: states(balsam) == [base.RUNNING, base.QUEUED], 30, 0.2)
    real = f"{os.environ['PATH'].split(':')[0]}/qstat"
    command = site.command("qstat", f'echo "$*" >> {site.folder}/asked; exec {real} "$@"')
    monkeypatch.setenv("BALSAM_SCHEDULER_STATUS_EXE", command)
    out = balsam("ls", "queues")[1]
    assert len((site.folder / "asked").read_text().splitlines()) == 1
    assert len(out.splitlines()) == 4
    if site.kind.name == "pbs":
        assert "Not Running: Not enough free nodes available" in out
    (site.folder / "go").touch()
    wait_until(lambda: states(balsam) == [base.FINISHED] * 2, 30, 0.2)
    (site.folder / "asked").unlink()
    assert balsam("ls", "queues")[1:] == ("", "No queued jobs detected\n")
    assert not (site.folder / "asked").exists()
    balsam("submit-launch", "-n", "1", "-t", "5", "-q", "none", "--job-mode", "serial", "--sched-flags=-q no-such-queue")
    shown = balsam("queue", "ls", "--all", "--limit", "1", "-v")[1]
    assert "submit_failed" in shown
    assert "refused the batch job" in shown


def test_a_launch_that_was_refused_several_times_is_one_line_with_the_number_of_tries(balsam: Balsam, site: Site) -> None:
    site.turn("REFUSE", "no")
    for _ in range(3):
        assert balsam("submit-launch", "-n", "1", "-t", "5", "-q", "training", "--job-mode", "serial")[0] == 1
    lines = balsam("queue", "ls", "--history")[1].splitlines()
    assert len(lines) == 3
    assert "submit_failed (3 tries)" in lines[2]
    assert "submission-failed (3 tries)" in balsam("ls", "queues", "--all")[1]
    assert json.loads(balsam("queue", "ls", "--history", "--json")[1])[0]["status_info"]["tries"] == 3
