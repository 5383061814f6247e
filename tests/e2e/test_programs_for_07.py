"""What programs for Balsam 0.7 use of jobs and applications, through a launcher: transfers, clean-up, `self.job`, deletion."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from helpers import ROOT, wait_until

from balsam_lite.api import App, ApplicationDefinition, Job, Site
from balsam_lite.api.transfers import as_staging
from balsam_lite.core.errors import ApplicationLost, InvalidSpec
from balsam_lite.pyapps import class_loader, payload

APPS = '''
from balsam_lite.api import ApplicationDefinition, Site

class Copying(ApplicationDefinition):
    """Count the lines of a file."""
    site = Site.objects.get("here")
    command_template = "wc -l < {{ name }} > counted; touch scratch.tmp kept.tmp; cat counted"
    parameters = {"name": {"required": False, "default": "input.txt"}}
    transfers = {
        "input": {"required": True, "direction": "in", "local_path": "input.txt", "description": "lines", "recursive": False},
        "output": {"required": False, "direction": "out", "local_path": "counted"},
        "more": {"required": False, "direction": "out", "local_path": "kept.tmp"},
    }
    cleanup_files = ["*.tmp", "in*"]

class Seeing(ApplicationDefinition):
    site = "here"
    def run(self, x):
        job = self.job
        return [x, job.data, job.tags, sorted(job.parent_ids), job.launch_params, job.num_nodes, job.get_parameters()]

class Preambled(ApplicationDefinition):
    site = "here"
    command_template = "echo $SEEN"
    def shell_preamble(self):
        seen = self.job.data["x"], self.job.tags["k"], len(self.job.parent_ids), self.job.launch_params["mpi_flags"]
        return [f"export SEEN='{seen}'"]

if __name__ == "__main__":
    for app in (Copying, Seeing, Preambled):
        app.sync()
'''  # fmt: skip

Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(name="here", path=str(tmp_path / "here"))
    made.save()
    return made


@pytest.fixture
def launch(site: Site) -> Iterator[Run]:
    """Start a launcher of that site; it is ended with the test."""
    started = []

    def start(*words: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "balsam_lite.cli", "launcher", "--consume-all", "--job-mode=serial", "--nodes=1", *words]
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "BALSAM_DB_PATH": str(site.path)}
        started.append(subprocess.Popen(argv, env=environ, text=True, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.wait(60)


@pytest.fixture
def apps(site: Site, tmp_path: Path) -> None:
    (tmp_path / "apps.py").write_text(APPS, encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "apps.py"], cwd=tmp_path, env=environ, check=True, timeout=60)


def test_transfers_copy_and_cleanup_files_go(site: Site, apps: None, launch: Run, tmp_path: Path) -> None:
    (tmp_path / "data" / "out").mkdir(parents=True)
    (tmp_path / "data" / "input.txt").write_text("1\n2\n3\n")
    transfers = {
        "input": f"local:{tmp_path}/data/input.txt",
        "output": {"location_alias": "local", "path": f"{tmp_path}/data/out/counted"},
        "more": f"local:{tmp_path}/data/out/",
    }
    job = Job("copying", app_id="Copying", site_name="here", transfers=transfers)
    job.save()
    assert job.stage_out_files == "counted kept.tmp"
    with pytest.raises(InvalidSpec, match="'input', a required slot"):
        Job("none", app_id=ApplicationDefinition.load_by_name("Copying", "here"))
    assert launch().wait(60) == 0
    job.refresh_from_db()
    assert job.state == "JOB_FINISHED"
    assert (tmp_path / "data" / "out" / "counted").read_text().strip() == "3"
    assert (tmp_path / "data" / "out" / "kept.tmp").exists()
    workdir = job.resolve_workdir(site.path / "data")
    assert {path.name for path in workdir.iterdir() if path.name[0] != "."} == {
        "job.out",
        "counted",
        "kept.tmp",
        "postprocess.log",
    }
    assert (tmp_path / "data" / "input.txt").exists()


def test_functions_and_preambles_see_their_job(site: Site, apps: None, launch: Run) -> None:
    first = Job("first", app_id="Seeing", site_name="here", parameters={"x": 1}, data={"x": 2}, tags={"k": "v"})
    first.save()
    child = Job(
        "child", app_id="Preambled", site_name="here", data={"x": 3}, tags={"k": "w"}, parent_ids=[first.id],
        launch_params={"mpi_flags": "-l"},
    )  # fmt: skip
    child.save()
    assert launch().wait(60) == 0
    assert first.result() == [1, {"x": 2}, {"k": "v"}, [], {}, 1, {"x": 1}]
    assert (child.resolve_workdir(site.path / "data") / "job.out").read_text() == "(3, w, 1, -l)\n"


def test_deleting_a_job_that_runs_stops_it(site: Site, launch: Run, tmp_path: Path) -> None:
    App(site_name="here", name="sleeper", executable=f"bash -c 'echo $$ > {tmp_path}/pid; exec sleep 600'").save()
    job = Job("x", app_id="sleeper", site_name="here")
    job.save()
    launch("--persistent")
    pid = int(wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip()))
    assert job.done() is False
    job.delete()
    assert job.id is None and Job.objects.filter(site_name="here").count() == 0
    wait_until(lambda: not os.path.exists(f"/proc/{pid}") or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3])


def test_an_application_knows_its_numbers(site: Site) -> None:
    class Plain(ApplicationDefinition):
        site = "here"
        command_template = "true"

    assert Plain.resolve_site_id() == site.id
    assert Plain.__app_id__ is None
    Plain.sync()
    assert Plain.__app_id__ == App.objects.get(name="Plain", site_name="here").id
    assert ApplicationDefinition.load_by_name("Plain", "here").__app_id__ == Plain.__app_id__


def test_none_is_as_good_as_no_value(site: Site) -> None:
    class Plain(ApplicationDefinition):
        site = "here"
        command_template = "true"

    Plain.sync()
    job = Job("x", app_id=Plain, num_nodes=None, ranks_per_node=None, node_packing_count=None, transfers={}, tags=None)
    job.save()
    assert (job.num_nodes, job.ranks_per_node, job.node_packing_count, job.tags) == (1, 1, 1, {})
    for wrong, words in (({"workdir": None}, "workdir"), ({"app_id": None}, "app_id"), ({"num_nodes": 0}, "num_nodes")):
        with pytest.raises(InvalidSpec, match=words):
            Job(**{"workdir": "x", "app_id": Plain, **wrong})
    with pytest.raises(TypeError, match="nodes"):
        Job("x", app_id=Plain, nodes=None)


def test_a_reason_is_in_the_history(site: Site) -> None:
    App(site_name="here", name="plain", executable="true").save()
    job = Job("x", app_id="plain", site_name="here")
    job.save()
    job.state, job.state_data = "FAILED", {"reason": "the input is empty", "code": 3}
    job.save()
    argv = [sys.executable, "-m", "balsam_lite.cli", "--db", str(site.path), "ls", "--history"]
    done = subprocess.run(
        argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True
    )
    assert "FAILED] the input is empty" in done.stdout


def test_a_file_that_needs_the_names_of_balsam_in_its_jobs_is_told_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another test of this process may have imported them.
    monkeypatch.setattr(sys, "meta_path", [one for one in sys.meta_path if "compat" not in type(one).__module__])
    for name in [name for name in sys.modules if name.partition(".")[0] == "balsam"]:
        monkeypatch.delitem(sys.modules, name)
    file = tmp_path / "apps.py"
    file.write_text("from balsam.api import ApplicationDefinition\n", encoding="utf-8")
    with pytest.raises(ApplicationLost, match=r"No module named 'balsam' \(line 1\).\nPut `import balsam_lite.compat` before"):
        class_loader.load(payload.ClassRef(str(file), "App", "apps", (), sys.executable, False, False))


# --- transfers --------------------------------------------------------------------------------------------------------

IN = {"required": False, "direction": "in", "local_path": "a"}
OUT = {"required": False, "direction": "out", "local_path": "b"}


@pytest.mark.parametrize(
    ("given", "staging"),
    [
        ({}, {}),
        ({"i": "local:/x/a"}, {"stage_in_url": "local:/x/a"}),
        ({"i": "theta:/x/a"}, {"stage_in_url": "rsync:theta:/x/a"}),
        ({"o": "local:/y/b"}, {"stage_out_url": "local:/y", "stage_out_files": "b"}),
        ({"o": "theta:/y/"}, {"stage_out_url": "rsync:theta:/y", "stage_out_files": "b"}),
    ],
)
def test_places_of_slots_become_staging(given: Any, staging: dict[str, str]) -> None:
    assert as_staging({"i": IN, "o": OUT}, given) == staging


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"j": "local:/x/a"}, "no slot 'j'"),
        ({"i": "local:/x/c"}, "another name: slot i is a here and c there"),
        ({"i": "local:a"}, "an absolute path"),
        ({"i": "/x/a"}, "must be ALIAS:/PATH"),
        ({"i": "local:/x/a", "k": "local:/y/a"}, "a second place to copy from"),
        ("x", "must be a dict of slots"),
    ],
)
def test_transfers_that_cannot_be_done_are_refused(given: Any, words: str) -> None:
    with pytest.raises(InvalidSpec, match=words):
        as_staging({"i": IN, "k": IN, "o": OUT}, given)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"transfers": []}, "no dictionary of slots"),
        ({"transfers": {"i": {"direction": "in", "local_path": "a"}}}, "slot i of `transfers` has no 'required'"),
        ({"transfers": {"i": {**IN, "direction": "up"}}}, "in or out, not 'up'"),
        ({"transfers": {"i": {**IN, "local_path": "../a"}}}, "below the working directory"),
        ({"transfers": {"i": {**IN, "local_pat": "a"}}}, "unknown key 'local_pat'. Did you mean 'local_path'"),
        ({"transfers": {"i": {**IN, "required": "yes"}}}, "of type bool, not 'yes'"),
        ({"cleanup_files": "*.tmp"}, "no list of patterns"),
    ],
)
def test_wrong_slots_and_patterns_are_refused_where_the_class_is_defined(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(AttributeError, match=words):
        type("Wrong", (ApplicationDefinition,), {"site": "here", "command_template": "true", **attributes})
