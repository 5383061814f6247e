"""What rows keep of the values that they are given, in both faces: `BalsamJob` and `api.Job`."""

from __future__ import annotations

import json
import math
import pydoc
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from balsam_lite.api import App, ApplicationDefinition, Job
from balsam_lite.core import field_specs
from balsam_lite.core.errors import DuplicateJobId, InvalidSpec, UnknownAttribute, UnknownField
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.models import ApplicationDefinition as StoredApplication
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.store import apps, large_writes, pieces
from balsam_lite.launcher.dag import add_job

_numbers = count()


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = directories.create(str(tmp_path / "db"))
    with database.write() as cx:
        apps.add_app(cx, {"name": "app", "executable": "true"})
    with use(database):
        yield database
    database.close()


def add_balsam_job(**fields: Any) -> BalsamJob:
    return add_job(name="job", application="app", **fields)


def add_api_job(**fields: Any) -> Job:
    return Job.objects.create(workdir=f"w/{next(_numbers)}", app_id="app", **fields)


FACES = pytest.mark.parametrize("add", [add_balsam_job, add_api_job], ids=["BalsamJob", "api.Job"])
Add = Callable[..., Any]


def read(job: Any) -> Any:
    """Another object for the same row."""
    return type(job).objects.get(id=job.id)


# --- numbers that JSON does not have ----------------------------------------------------------------------------------


@FACES
def test_floats_that_json_does_not_have_are_given_back_and_printed_as_null(db, balsam_argv, add: Add) -> None:
    job = add(data={"loss": float("nan"), "bounds": [-math.inf, math.inf], "x": 1.5})
    found = read(job).data
    assert math.isnan(found["loss"]) and found["bounds"] == [-math.inf, math.inf] and found["x"] == 1.5
    for command in (["ls", "--json"], ["job", "ls", "--json"]):
        argv = [*balsam_argv, "--db", db.directory, *command]
        out = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
        (listed,) = json.loads(out, parse_constant=pytest.fail)
        assert listed["data"] == {"loss": None, "bounds": [None, None], "x": 1.5}
    with db.read() as cx:
        assert cx.execute("SELECT json_extract(data, '$.x') FROM job").fetchall() == [(1.5,)]


@FACES
def test_an_edit_beside_a_nan_keeps_it(db, add: Add) -> None:
    job = read(add(data={"loss": float("nan")}))
    job.data["step"] = 3
    job.save()
    found = read(job).data
    assert math.isnan(found.pop("loss")) and found == {"step": 3}


@FACES
def test_numpy_values_in_data_become_numbers_and_lists(db, add: Add) -> None:
    job = add(
        data={"n": np.int64(3), "is_good": np.bool_(True), "f": np.float32(1.5), "a": np.arange(3), "deep": [{"m": np.eye(2)}]}
    )
    expected = {"n": 3, "is_good": True, "f": 1.5, "a": [0, 1, 2], "deep": [{"m": [[1.0, 0.0], [0.0, 1.0]]}]}
    assert read(job).data == expected
    job.data["later"] = np.float64("nan")
    job.save()
    assert math.isnan(read(job).data.pop("later"))


@FACES
def test_the_dict_that_was_given_is_the_one_that_is_edited(db, add: Add) -> None:
    given: dict[str, Any] = {"a": 1}
    job = add(data=given)
    given["b"] = 2
    job.save()
    assert read(job).data == job.data == {"a": 1, "b": 2}


@FACES
def test_a_value_that_has_no_form_in_json_is_named_by_its_key(db, add: Add) -> None:
    with pytest.raises(InvalidSpec, match=r"job data cannot be written as JSON: fit\.steps\[1\] is <object"):
        add(data={"fit": {"steps": [1, object()]}})
    loop: dict[str, Any] = {}
    loop["me"] = loop
    with pytest.raises(InvalidSpec, match="contains itself"):
        add(data=loop)


# --- names and edits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "nearest"), [("wall_time_min", "wall_time_minutes"), ("nodes", "num_nodes"), ("tag", "tags")])
def test_a_balsam_job_refuses_an_attribute_that_is_no_field_and_names_the_nearest(db, name: str, nearest: str) -> None:
    for job in (BalsamJob(), add_balsam_job()):
        with pytest.raises(AttributeError, match=f"A job has no field '{name}'. Did you mean '{nearest}'?") as caught:
            setattr(job, name, 4)
        assert isinstance(caught.value, UnknownField)
        assert not hasattr(job, name)
    with pytest.raises(UnknownField, match=f"no field '{name}'. Did you mean '{nearest}'?"):
        BalsamJob(**{name: 4})


def test_an_application_refuses_an_attribute_that_is_no_field(db) -> None:
    app = StoredApplication.objects.get(name="app")
    with pytest.raises(UnknownAttribute, match="An app has no field 'executabel'"):
        app.executabel = "true"


def test_help_lists_the_fields_and_nothing_of_peewee() -> None:
    for model, fields in ((BalsamJob, field_specs.JOB_FIELDS), (StoredApplication, field_specs.APP_FIELDS)):
        text = pydoc.plain(pydoc.render_doc(model))
        assert "peewee" not in text
        for field in fields:
            assert f" {field.name}\n" in text and field_specs.describe(field) in " ".join(text.replace("|", "").split())


@FACES
def test_two_objects_of_one_row_edit_two_keys_and_both_edits_stay(db, add: Add) -> None:
    first = add(data={"a": 1, "gone": 1}, tags={"k": "1"})
    second = read(first)
    first.data["x"] = 1
    first.tags["x"] = "1"
    del second.data["gone"]
    second.data["y"] = 2
    second.tags = {"k": "2"}
    first.save()
    second.save()
    found = read(first)
    assert found.data == {"a": 1, "x": 1, "y": 2} and found.tags == {"k": "2", "x": "1"}
    first.data["z"] = 3
    first.save()
    assert read(first).data == {"a": 1, "x": 1, "y": 2, "z": 3}


def test_two_lists_of_jobs_that_are_updated_together_keep_the_edits_of_both(db) -> None:
    jobs = [add_api_job(data={"n": number}) for number in range(3)]
    others = [read(job) for job in jobs]
    for job, other in zip(jobs, others):
        job.data["mine"] = job.data["n"]
        other.data["theirs"] = np.int64(7)
    Job.objects.bulk_update(others)
    Job.objects.bulk_update(jobs)
    assert [read(job).data for job in jobs] == [{"n": n, "mine": n, "theirs": 7} for n in range(3)]


def test_edits_of_very_many_jobs_are_merged_when_they_are_written(db, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program saves another key after the jobs were checked, and before the pieces are written."""
    jobs = [add_api_job(data={"n": number}) for number in range(3)]
    other = read(jobs[1])
    for job in jobs:
        job.data["mine"] = True
    run = pieces.run

    def after_another_program(*args: Any) -> Any:
        other.data["theirs"] = True
        other.save()
        return run(*args)

    monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 2)
    monkeypatch.setattr(pieces, "run", after_another_program)
    Job.objects.bulk_update(jobs)
    assert [read(job).data for job in jobs] == [
        {"n": 0, "mine": True},
        {"n": 1, "mine": True, "theirs": True},
        {"n": 2, "mine": True},
    ]


def test_an_api_job_refuses_an_attribute_that_is_no_field(db) -> None:
    for job in (Job(workdir="w", app_id="app"), add_api_job()):
        with pytest.raises(UnknownAttribute, match="A job has no field 'nodes'"):
            job.nodes = 4


# --- tags, ids and defaults -------------------------------------------------------------------------------------------


@FACES
def test_numbers_in_tags_become_text(db, add: Add) -> None:
    job = add(tags={"n": 3, "x": 0.5, "is_good": True, "word": "w"})
    assert job.tags == read(job).tags == {"n": "3", "x": "0.5", "is_good": "True", "word": "w"}
    job.tags["n"] = 4
    job.save()
    assert job.tags == read(job).tags and job.tags["n"] == "4"
    with pytest.raises(InvalidSpec, match=r"job tags must map text to text, not 'n' to \[3\]"):
        add(tags={"n": [3]})
    with pytest.raises(InvalidSpec, match="job tags must map text to text, not 'n' to None"):
        add(tags={"n": None})


def test_a_job_id_that_exists_is_refused(db) -> None:
    job = add_balsam_job()
    with pytest.raises(DuplicateJobId, match=f"The job_id {job.job_id} is that of job job"):
        add_balsam_job(job_id=job.job_id)
    assert BalsamJob.objects.count() == 1


@pytest.mark.parametrize("default", [False, 3, 2.5, None, [1, 2], {"a": 1}, "text"])
def test_the_default_of_an_optional_parameter_may_be_any_json_value(db, default: Any) -> None:
    class Optional(ApplicationDefinition):
        site = "db"
        command_template = "echo {% if verbose %}{{ verbose }}{% endif %}"
        parameters = {"verbose": {"required": False, "default": default}}

    Optional.sync()
    assert App.objects.get(name="Optional").parameters == {"verbose": {"required": False, "default": default}}
