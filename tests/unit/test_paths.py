"""Paths that users give relative to where they are: what is stored, by whatever interface, and what another host refuses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from balsam_lite.api import Job
from balsam_lite.cli.main import main
from balsam_lite.core import field_specs
from balsam_lite.core.errors import InvalidSpec
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.engine.registry import SiteEntry
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.launcher import dag
from balsam_lite.sites.local import LocalSite
from balsam_lite.sites.rpc.remote import RemoteSite


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the current directory, in which the user calls everything."""
    found = tmp_path / "here"
    found.mkdir()
    monkeypatch.chdir(found)
    return found


@pytest.fixture
def db(tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "db"))
    directories.set_up(str(tmp_path / "db"))
    made = directories.open_database(str(tmp_path / "db"))
    LocalSite(registry.at(made.directory), made).create("app", [{"name": "a", "executable": "true"}])
    with use(made):
        yield made
    made.close()


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("data/*.in", "{here}/data/*.in"), ("./x", "{here}/x"), ("../x", "{above}/x"), ("local:x/y", "local:{here}/x/y"),
        ("res[T=300].dat", "{here}/res[T=300].dat"), ("two words", "{here}/two words"), ("ü", "{here}/ü"),
        ("a/b:c", "{here}/a/b:c"),
        ("", ""), ("/x/../y", "/x/../y"), ("~/x", "~/x"), ("local:/x", "local:/x"), ("local:~/x", "local:~/x"),
        ("scp:h:x", "scp:h:x"),
        ("rsync:u@h:x/y", "rsync:u@h:x/y"), ("scp://h/x", "scp://h/x"), ("file:///x", "file:///x"), ("host:/in", "host:/in"),
    ],
)  # fmt: skip
def test_a_relative_place_is_stored_absolute(here: Path, given: str, stored: str) -> None:
    expected = stored.format(here=here, above=here.parent)
    for field in ("stage_in_url", "stage_out_url"):
        assert field_specs.check_job({field: given}) == {field: expected}
    assert field_specs.check_job({"stage_in_url": expected}) == {"stage_in_url": expected}, "doing it again changes nothing"


def test_a_relative_path_in_a_directory_that_is_gone_is_refused(here: Path) -> None:
    here.rmdir()
    for field in ("stage_in_url", "user_workdir"):
        with pytest.raises(InvalidSpec, match=rf"{field} is relative, and the current directory cannot be read .*: x"):
            field_specs.check_job({field: "x"})
        assert field_specs.check_job({field: "/x"}) == {field: "/x"}


def _by_command() -> None:
    assert main(["job", "--name", "n", "--workflow", "w", "--app", "a", "--url-in", "in", "--url-out", "out", "--yes"]) == 0


def _by_modify() -> None:
    assert main(["job", "--name", "n", "--workflow", "w", "--app", "a", "--yes"]) == 0
    prefix = BalsamJob.objects.get().job_id[:8]
    assert main(["modify", prefix, "stage_in_url", "in"]) == main(["modify", prefix, "stage_out_url", "out"]) == 0


def _by_save() -> None:
    job = dag.add_job("n", "w", "a")
    job.stage_in_url, job.stage_out_url = "in", "out"
    job.save()
    assert job.stage_in_url == f"{os.getcwd()}/in"


def _by_api_save() -> None:
    job = Job(app_id="a", workdir="x", stage_in_url="in")
    job.save()
    assert job.stage_in_url == f"{os.getcwd()}/in"
    job.stage_out_url = "out"
    job.save()
    assert job.stage_out_url == f"{os.getcwd()}/out"


@pytest.mark.parametrize(
    "make",
    [
        _by_command, _by_modify, _by_save, _by_api_save,
        lambda: dag.add_job("n", "w", "a", stage_in_url="in", stage_out_url="out"),
        lambda: BalsamJob.objects.bulk_create([{"application": "a", "stage_in_url": "in", "stage_out_url": Path("out")}]),
        lambda: BalsamJob.objects.bulk_create([BalsamJob(application="a", stage_in_url="in", stage_out_url="out")]),
        lambda: Job.objects.bulk_create([Job(app_id="a", workdir="x", stage_in_url="in", stage_out_url="out")]),
        lambda: [Job(app_id="a", workdir="x").save(), Job.objects.filter().update(stage_in_url="in", stage_out_url="out")],
    ],
    ids=["command", "modify", "save", "api save", "add_job", "dicts", "objects", "api bulk_create", "api update"],
)  # fmt: skip
def test_every_interface_stores_a_relative_place_absolute(db: Database, here: Path, make: Callable[[], Any]) -> None:
    make()
    job = BalsamJob.objects.get()
    assert (job.stage_in_url, job.stage_out_url) == (f"{here}/in", f"{here}/out")


def test_a_relative_user_workdir_is_stored_absolute(db: Database, here: Path) -> None:
    job = dag.add_job("n", "w", "a", user_workdir="mine")
    assert job.user_workdir == job.working_directory == f"{here}/mine"


@pytest.mark.parametrize("field", ["stage_in_url", "stage_out_url"])
def test_a_relative_place_is_refused_for_another_host(field: str) -> None:
    there = RemoteSite(SiteEntry(1, "far", "/there", "far"))
    row = {"app": "a", "workdir": "x", field: "local:in"}
    for ask in (
        lambda: there.create("job", [row]),
        lambda: there.check_jobs([row]),
        lambda: there.update("job", [{"id": 1, field: "in"}]),
        lambda: there.update_where("job", {}, {field: "in"}),
    ):
        with pytest.raises(InvalidSpec, match=rf"{field} '(local:)?in' is a relative path, which means nothing at .*far"):
            ask()
