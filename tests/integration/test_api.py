"""The Python interface of the workshop: models and queries over several sites, on real DBs."""

from __future__ import annotations

import concurrent.futures
import copy
import json
import pickle
import re
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
from datetime import date, datetime, timedelta, timezone
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from balsam_lite import api
from balsam_lite.api import (
    App,
    ApplicationDefinition,
    BatchJob,
    BatchJobPartition,
    BatchJobState,
    EventLog,
    Job,
    JobMode,
    JobState,
    Site,
    models,
    records,
)
from balsam_lite.api.site_handle import Id, maker
from balsam_lite.core import errors, import_guard, parameters
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.query import queries
from balsam_lite.launcher import waiter
from balsam_lite.launcher.futures import FutureTask
from balsam_lite.pyapps import result_file
from balsam_lite.sites import fanout
from balsam_lite.sites.local import LocalSite
from balsam_lite.sites.rpc.remote import RemoteSite

WORKSHOP = ROOT / "examples" / "workshop"
_number = count()


@pytest.fixture(autouse=True)
def _outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any site."""
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)


def new_site(path: Path, name: str) -> Site:
    site = Site(name=name, path=path)
    site.save()
    App(site_name=name, name="Hello", command_template="echo {{ to }}", parameters={"to": {"required": True}}).save()
    App(site_name=name, name="Plain", executable="true").save()
    return site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return new_site(tmp_path / "a", "a")


@pytest.fixture
def two(tmp_path: Path, site: Site) -> tuple[Site, Site]:
    return site, new_site(tmp_path / "b", "b")


def job(site: str = "a", **fields: Any) -> Job:
    given = {"site_name": site, "app_id": "Plain", "workdir": f"w/{next(_number)}", **fields}
    return Job(**given)


def saved(site: str = "a", **fields: Any) -> Job:
    made = job(site, **fields)
    made.save()
    return made


def put(one: Job, state: str, **fields: Any) -> None:
    one.state = state
    for name, value in fields.items():
        setattr(one, name, value)
    one.save()


class Writes:
    """Counts the questions to the desks of a kind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *methods: str) -> None:
        self.calls: list[str] = []
        for method in methods:
            self._watch(monkeypatch, method)

    def _watch(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        real = getattr(LocalSite, method)

        def watched(there: LocalSite, *args: Any, **kwargs: Any) -> Any:
            self.calls.append(method)
            return real(there, *args, **kwargs)

        monkeypatch.setattr(LocalSite, method, watched)


# --- importing --------------------------------------------------------------------------------------------------------


def test_importing_the_interface_is_light_and_does_nothing(tmp_path: Path) -> None:
    code = """
import sys
import balsam_lite.api
assert not [name for name in sys.modules if name.startswith("balsam_lite.") and not name.startswith("balsam_lite.api")]
from balsam_lite.api import Job, Site, EventLog, BatchJob, models
heavy = {"peewee", "click", "jinja2", "psutil", "logging", "subprocess", "concurrent.futures"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "outside"]


def test_every_name_of_the_interface_is_there() -> None:
    for name in api.__all__:
        assert name in dir(api)
        assert name in ("site_config", "ApplicationDefinition") or getattr(api, name) is not None
    with pytest.raises(AttributeError, match="nothing_such"):
        api.nothing_such  # noqa: B018


def test_site_config_is_that_of_the_active_db(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.site_config is None
    monkeypatch.setenv("BALSAM_DB_PATH", str(site.path))
    found = api.site_config
    assert found is not None
    assert (found.site_id, found.name, found.site_path) == (site.id, "a", site.path)
    assert (found.data_path, found.log_path) == (site.path / "data", site.path / "log")
    assert found.settings.MAX_CONCURRENT_MPIRUNS > 0


# --- ids, words, times, parameters ------------------------------------------------------------------------------------


def test_an_id_is_a_number_that_knows_its_site() -> None:
    here, there = registry.SiteEntry(1, "here", "/here"), registry.SiteEntry(2, "there", "/there", "host")
    one, other = maker(here)(7), maker(there)(7)
    assert one == 7 and hash(one) == hash(7) and one != 8
    assert one != other and one == maker(here._replace(name="renamed"))(7)
    assert {7: "seven"}[one] == "seven" and json.dumps([one]) == "[7]" and str(one) == repr(one) == "7"
    again = pickle.loads(pickle.dumps(one))
    assert isinstance(again, Id) and again == one and again.site == here


def test_words_are_equal_to_their_text_and_print_as_that() -> None:
    assert JobState.JOB_FINISHED == "JOB_FINISHED" and JobState.job_finished is JobState.JOB_FINISHED
    assert f"{JobState.FAILED}" == str(JobState.FAILED) == "FAILED"
    assert len(JobState) == 14 and JobMode("mpi") == "mpi" and BatchJobState.queued == "queued"
    assert json.dumps(JobState.FAILED) == '"FAILED"'


PLAIN = [{}, {"a": "b"}, {"n": 1, "x": 1.5, "t": True, "nothing": None}, {"list": [1, {"deep": ["x"]}]}, {"long": "ä" * 5000}]
STRANGE = [
    {"t": (1, 2)}, {"keys": {1: 2}}, {"when": datetime(2022, 1, 1)}, {"__pickled__": "x"}, {"inf": float("inf")},  # noqa: DTZ001
    {"set": {1, 2}}, {"bytes": b"\0\xff"},
]  # fmt: skip


@pytest.mark.parametrize("values", PLAIN, ids=repr)
def test_plain_parameters_are_kept_as_json(values: dict[str, Any]) -> None:
    assert parameters.encoded(values) == values
    assert parameters.decoded(json.loads(json.dumps(parameters.encoded(values)))) == values


@pytest.mark.parametrize("values", STRANGE, ids=repr)
def test_other_parameters_come_back_as_they_were(values: dict[str, Any]) -> None:
    stored = json.loads(json.dumps(parameters.encoded(values)))
    assert set(stored) == {"__pickled__", "names"} and parameters.names_of(stored) == list(values)
    assert parameters.decoded(stored) == values


@pytest.mark.parametrize("values", [{"x": "y" * 600_000}, {"x": b"y" * 400_000}, {"x": ["y" * 300_000] * 2}])
def test_parameters_that_are_too_large_are_refused_before_anything_is_written(values: dict[str, Any], site: Site) -> None:
    with pytest.raises(errors.InvalidSpec, match="512000"):
        job(parameters=values)
    one = saved()
    with pytest.raises(errors.InvalidSpec, match="512000"):
        one.set_parameters(values)


@pytest.mark.parametrize("values", ["text", [1], {1: 2}, {"f": threading.Lock()}])
def test_parameters_that_cannot_be_kept_are_refused(values: Any) -> None:
    with pytest.raises(errors.InvalidSpec):
        job(parameters=values)


# --- objects ----------------------------------------------------------------------------------------------------------


def test_a_new_object_is_in_memory_only(site: Site) -> None:
    one = job()
    assert one.id is None and one.state is None and Job.objects.count() == 0
    assert "id=None" in repr(one) and one.site_name == "a" and one.tags == {}


def test_an_unknown_field_is_a_type_error_that_names_the_nearest() -> None:
    with pytest.raises(TypeError, match="'num_nodes'"):
        job(num_node=1)
    with pytest.raises(AttributeError):
        job().num_node = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_nodes": 0}, "num_nodes"), ({"num_nodes": "x"}, "num_nodes"), ({"gpus_per_rank": -1}, "gpus_per_rank"),
        ({"tags": {"a": [1]}}, "tags"), ({"tags": "a:b"}, "tags"), ({"data": {"x": object()}}, "data"),
        ({"app_id": 1.5}, "app_id"),
        ({"workdir": "/abs"}, "Cannot use absolute path"), ({"workdir": "../x"}, "workdir"),
        ({"workdir": "a/../../x"}, "workdir"),
        ({"parent_ids": [None]}, "save the parents first"), ({"parent_ids": 3}, "parent_ids"),
        ({"parent_ids": ["x"]}, "parent_ids"),
        ({"wall_time_min": -1}, "wall_time_min"), ({"state": "READY"}, "Cannot set state when creating Job"),
        ({"launch_params": {"a": [2]}}, "launch_params"), ({"site_id": "x"}, "site_id"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_a_value_error_that_names_the_field(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        job(**fields)


def test_scripts_of_balsam_0_7_may_give_the_workdir_by_position_and_empty_transfers(site: Site) -> None:
    one = Job("here/1", app_id="Plain", transfers={})
    one.save()
    assert str(one.workdir) == "here/1"
    with pytest.raises(TypeError, match="by position"):
        Job("a", "b", app_id="Plain")
    with pytest.raises(TypeError, match="by position"):
        Job("a", workdir="b", app_id="Plain")
    with pytest.raises(LookupError, match="is a command line and has no class"):
        Job("a", app_id="Plain", transfers={"in": "x:y"})


def test_what_a_job_needs_is_said() -> None:
    with pytest.raises(ValueError, match="workdir"):
        Job(app_id="Hello")
    with pytest.raises(ValueError, match="app_id"):
        Job(workdir="x")


def test_saving_creates_and_then_writes_changed_fields_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Writes(monkeypatch, "create", "update")
    one = job(tags={"a": "b"}, data={"x": 1})
    one.save()
    assert one.id == 1 and one.state == "CREATED" and asked.calls == ["create"]
    one.save()
    one.num_nodes = one.num_nodes
    one.save()
    assert asked.calls == ["create"]
    one.num_nodes = 4
    one.save()
    one.save()
    assert asked.calls == ["create", "update"] and Job.objects.get(id=one.id).num_nodes == 4


def test_only_changed_fields_are_written(site: Site) -> None:
    one = saved(num_nodes=1, priority=1)
    other = Job.objects.get(id=one.id)
    one.num_nodes, other.priority = 2, 9
    one.save()
    other.save()
    found = Job.objects.get(id=one.id)
    assert (found.num_nodes, found.priority) == (2, 9)


@pytest.mark.parametrize("is_read", [False, True])
def test_edits_in_a_dict_are_saved(site: Site, is_read: bool) -> None:
    one = saved(tags={"a": "b"}, data={"list": [1]})
    if is_read:
        one = Job.objects.get(id=one.id)
    one.tags["c"] = "d"
    one.data["list"].append(2)
    one.save()
    assert Job.objects.get(id=one.id).tags == {"a": "b", "c": "d"}
    one.data["list"].append(3)
    one.save()
    assert Job.objects.get(id=one.id).data == {"list": [1, 2, 3]}


def test_edits_in_a_dict_of_a_new_object_are_saved_with_it(site: Site) -> None:
    one = job()
    one.tags["a"] = "b"
    one.save()
    assert Job.objects.get(id=one.id).tags == {"a": "b"}
    one.tags["bad"] = [3]  # type: ignore[assignment]
    with pytest.raises(errors.InvalidSpec, match="tags"):
        one.save()


def test_refreshing_forgets_what_was_not_saved(site: Site) -> None:
    one = saved(data={"a": 1})
    one.num_nodes = 7
    one.data["b"] = 2
    one.refresh_from_db()
    assert one.num_nodes == 1 and one.data == {"a": 1}
    with pytest.raises(Job.DoesNotExist):
        job().refresh_from_db()


def test_a_deleted_object_is_one_that_was_never_saved(site: Site) -> None:
    one = saved(tags={"a": "b"})
    one.delete()
    assert one.id is None and one.tags == {"a": "b"} and Job.objects.count() == 0
    for method in (one.delete, one.refresh_from_db):
        with pytest.raises(Job.DoesNotExist):
            method()
    one.save()
    assert Job.objects.get().id == one.id and one.id is not None


def test_what_is_gone_cannot_be_refreshed(site: Site) -> None:
    one, same = saved(), Job.objects.get()
    one.delete()
    with pytest.raises(Job.DoesNotExist):
        same.refresh_from_db()
    same.num_nodes = 3
    with pytest.raises(errors.NotFound):
        same.save()


def test_objects_are_equal_if_they_hold_the_same_unchanged(site: Site) -> None:
    one = saved()
    one.refresh_from_db()
    same = Job.objects.get(id=one.id)
    assert one == same and len({one, same}) == 1 and one != saved() and one != 1
    same.num_nodes = 5
    assert one != same
    same.save()
    assert one != same
    one.refresh_from_db()
    assert one == same
    with pytest.raises(TypeError):
        hash(job())


def test_objects_can_be_pickled_and_copied(site: Site) -> None:
    one = saved(tags={"a": "b"})
    for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert again == one
        again.tags["c"] = "d"
        again.save()
    assert one.tags == {"a": "b"}


def test_display_dict_is_plain_and_repr_short(site: Site) -> None:
    one = saved(parent_ids=[saved().id], tags={"a": "b"})
    shown = one.display_dict()
    assert json.loads(json.dumps(shown)) == shown
    assert (
        shown["id"] == 2 and shown["parent_ids"] == [1] and shown["site_name"] == "a" and shown["state"] == "AWAITING_PARENTS"
    )
    assert repr(one).startswith("Job(id=2, workdir='w/") and "num_nodes" not in repr(one)


@pytest.mark.parametrize("name", ["app_id", "id", "parent_ids"])
def test_what_cannot_change_is_refused(site: Site, name: str) -> None:
    with pytest.raises(ValueError, match=f"Cannot set {name} when updating Job"):
        setattr(saved(), name, 1 if name != "parent_ids" else [1])


def test_what_the_site_keeps_cannot_be_set(site: Site) -> None:
    with pytest.raises(AttributeError, match="return_code"):
        saved().return_code = 3


# --- jobs -------------------------------------------------------------------------------------------------------------


def test_a_job_has_all_fields_of_the_workshop(site: Site) -> None:
    parent = saved()
    given: dict[str, Any] = {
        "tags": {"a": "b"}, "data": {"x": [1]}, "num_nodes": 2, "ranks_per_node": 3, "threads_per_rank": 4,
        "threads_per_core": 2,
        "gpus_per_rank": 0.5, "node_packing_count": 1, "wall_time_min": 7, "launch_params": {"depth": "4"}, "name": "n",
        "workflow": "f", "description": "two\nlines", "priority": -3, "environ_vars": {"A": "1"}, "max_retries": 2,
    }  # fmt: skip
    one = saved(app_id="Hello", parameters={"to": "x y"}, workdir="demo/one", parent_ids=[parent.id], **given)
    found = Job.objects.get(id=one.id)
    assert {name: getattr(found, name) for name in given} == given
    assert found.workdir == Path("demo/one") and found.get_parameters() == {"to": "x y"}
    assert found.parent_ids == {parent.id} and found.site_id == site.id and found.batch_job_id is None
    assert found.app_id == App.objects.get(name="Hello").id and found.return_code is None
    assert found.last_update is not None and found.last_update.tzinfo is timezone.utc
    assert found.resolve_workdir(site.path / "data") == site.path / "data/demo/one"
    assert [parent] == list(found.parent_query()) and not parent.parent_query()
    assert not hasattr(found, "parameters")


def test_parameters_are_read_and_written_by_methods(site: Site) -> None:
    one = saved(parameters={"when": (1, 2)})
    found = Job.objects.get(id=one.id)
    assert found.get_parameters() == {"when": (1, 2)}
    found.set_parameters({"n": 3})
    found.save()
    one.refresh_from_db()
    assert one.get_parameters() == {"n": 3}


def test_a_change_of_state_has_a_payload_and_a_time(site: Site) -> None:
    one = saved()
    moment = datetime.now(timezone.utc).replace(microsecond=0)
    put(one, "FAILED", state_data={"why": "because"}, state_timestamp=moment)
    assert one.state is JobState.FAILED and one.last_update == moment
    event = EventLog.objects.get(job_id=one.id)
    assert (event.from_state, event.to_state, event.timestamp) == ("CREATED", "FAILED", moment.replace(tzinfo=None))
    assert event.data["why"] == "because"
    with pytest.raises(AttributeError):
        one.state_data  # noqa: B018
    with pytest.raises(ValueError):
        put(one, "NOWHERE")


def test_an_application_is_found_by_number_and_name_at_its_site(two: tuple[Site, Site]) -> None:
    app = App.objects.get(site_name="b", name="Plain")
    assert isinstance(app.id, Id) and app.id.site.name == "b" and app.site_name == "b"
    assert Job.objects.create(app_id=app.id, workdir="x").site_name == "b"
    assert Job.objects.create(app_id=int(app.id), site_id=two[0].id, workdir="x").site_name == "a"
    with pytest.raises(errors.InvalidSpec, match="a, b"):
        Job.objects.create(app_id="Plain", workdir="x")
    with pytest.raises(errors.UnknownApp, match="nothing"):
        Job.objects.create(app_id="nothing", workdir="x")
    with pytest.raises(errors.UnknownSite, match="nowhere"):
        saved("nowhere")
    with pytest.raises(errors.InvalidSpec, match="site"):
        Job.objects.create(app_id=app.id, site_name="a", workdir="x")
    App.objects.get(site_name="a", name="Plain").delete()
    assert Job.objects.create(app_id="Plain", workdir="y").site_name == "b"


def test_parents_say_which_site_is_meant_and_may_be_of_another_one(two: tuple[Site, Site]) -> None:
    parent = saved("b")
    assert Job.objects.create(app_id="Plain", workdir="x", parent_ids=[parent.id]).site_name == "b"
    child = saved("a", parent_ids=[parent.id])
    assert [one.site.name for one in child.parent_ids] == ["b"] and child.state == "AWAITING_PARENTS"
    with pytest.raises(errors.BalsamError, match="99"):
        saved("a", parent_ids=[99])


def test_the_site_of_an_application_may_be_a_site_that_is_assigned_later(site: Site) -> None:
    class Later(ApplicationDefinition):
        site = 17
        command_template = "echo {{ a }}"

    Later.site = site
    assert Later.submit("w/later", a="1").site_name == site.name
    assert Job.objects.filter(app_id=Later).count() == 1


def test_an_application_is_given_as_a_class(site: Site) -> None:
    class Hello:
        site = "a"

    made = Job.objects.create(app_id=Hello, workdir="x", parameters={"to": "y"})
    assert made.app_id == App.objects.get(name="Hello").id and list(Job.objects.filter(app_id=Hello)) == [made]


def test_wrong_parameters_are_refused_where_the_user_stands(site: Site) -> None:
    with pytest.raises(errors.InvalidSpec, match=re.escape("Missing required parameters: {'to'}")):
        saved(app_id="Hello")
    with pytest.raises(errors.InvalidSpec, match=re.escape("Extraneous parameters: {'x'}")):
        saved(app_id="Hello", parameters={"to": "y", "x": "z"})
    assert Job.objects.count() == 0


# --- many at once -----------------------------------------------------------------------------------------------------


def test_bulk_create_returns_new_objects_in_order_and_leaves_the_others(two: tuple[Site, Site]) -> None:
    given = [job("b" if n % 3 else "a", tags={"n": str(n)}) for n in range(30)]
    made = Job.objects.bulk_create(given)
    assert [one.tags["n"] for one in made] == [str(n) for n in range(30)]
    assert [one.site_name for one in made] == [one.site_name for one in given]
    assert all(one.id is None for one in given) and all(one.id is not None for one in made)
    assert made == [Job.objects.get(id=one.id) for one in made]
    assert Job.objects.bulk_create([]) == []


def test_a_created_job_shows_all_that_one_read_from_the_db_does(site: Site) -> None:
    flags, others = {"wall_time_min": 0, "launch_params": {"d": "2"}}, {"num_nodes": 2, "tags": {"a": "b"}, "data": {"x": 1}}
    for given in ({}, flags, others):
        (made,) = Job.objects.bulk_create([job(**given)])
        found = Job.objects.get(id=made.id)
        assert made.display_dict() == found.display_dict() and repr(made) == repr(found) and made == found == made
        found.priority = 5
        found.save()
        assert made != found


def test_assigning_a_default_to_a_created_job_changes_nothing(site: Site) -> None:
    (made,) = Job.objects.bulk_create([job()])
    Job.objects.filter(id=made.id).update(priority=7)
    made.priority = 0
    made.save()
    assert Job.objects.get(id=made.id).priority == 7


def test_created_jobs_take_little_memory(site: Site) -> None:
    given = [job(tags={"workflow": "demo", "part": str(n % 10)}) for n in range(1000)]
    Job.objects.bulk_create([job(tags={"workflow": "demo"}) for n in range(100)])
    tracemalloc.start()
    try:
        made = Job.objects.bulk_create(given)
        size = tracemalloc.get_traced_memory()[0] / len(made)
    finally:
        tracemalloc.stop()
    assert size < 1300  # bytes; with rows of all fields it was 2900


def test_bulk_create_takes_a_list_of_jobs_only(site: Site) -> None:
    for given in ((job(),), iter([job()]), job(), [job(), 3], [{"workdir": "x"}]):
        with pytest.raises(TypeError, match="bulk_create"):
            Job.objects.bulk_create(given)  # type: ignore[arg-type]
    with pytest.raises(errors.InvalidSpec, match="saved already"):
        Job.objects.bulk_create([saved()])


def test_of_many_jobs_with_a_bad_one_none_is_created_and_it_is_named(two: tuple[Site, Site]) -> None:
    given = [job(app_id="Hello", parameters={"to": "x"}) for _ in range(2000)]
    given[1234] = job(app_id="Hello")
    with pytest.raises(errors.InvalidSpec, match=r"Job number 1235: .*Missing"):
        Job.objects.bulk_create(given)
    with pytest.raises(errors.InvalidSpec, match=r"Workdirs must be unique for each call to bulk-create Jobs\..*same/one"):
        Job.objects.bulk_create([job(workdir="same/one"), job(), job(workdir="same/one")])
    with pytest.raises(errors.InvalidSpec, match=r"Workdirs must be unique .*same/one"):
        Job.objects.bulk_create([job("b"), job(workdir="same/one"), job(workdir="same/one")])
    with pytest.raises(errors.UnknownApp, match="Job number 2"):
        Job.objects.bulk_create([job(), job(site_name=None, app_id="nothing")])
    assert Job.objects.count() == 0


def test_jobs_share_a_workdir_only_where_that_is_allowed_or_the_other_one_has_ended(two: tuple[Site, Site]) -> None:
    first = saved("a", workdir="same/one")
    for again in (
        lambda: saved("a", workdir="same/one"),
        lambda: Job.objects.bulk_create([job("a", workdir="same/one")]),
        lambda: Job.objects.bulk_create([job("b"), job("a", workdir="same/one")]),  # nothing is created at b either
    ):
        with pytest.raises(errors.InvalidSpec, match=r"workdir same/one is that of job #1 .*has not ended: it is CREATED"):
            again()
    assert Job.objects.count() == 1
    saved("a", workdir="same/one", allow_shared_workdir=True)
    Job.objects.bulk_create([job("a", workdir="same/one") for _ in range(2)], allow_shared_workdir=True)
    Job.objects.filter(workdir="same/one").update(state="FAILED")
    saved("a", workdir="same/one")
    assert Job.objects.filter(workdir="same/one").count() == 5 and "allow" not in repr(first)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"app_id": "nothing"}, "There is no application 'nothing'"),
        ({"app_id": "Hello"}, "Missing required parameters"),
        ({"parent_ids": [77]}, "Could not find one or more Jobs set as parents: 77"),
        ({"launch_params": {"cpu_affinity": "sideways"}}, "sideways"),
    ],
)
@pytest.mark.parametrize("others", [0, 2])
def test_no_site_is_written_to_before_all_have_checked_their_jobs(
    two: tuple[Site, Site], wrong: dict[str, Any], said: str, others: int
) -> None:
    given = [job("a"), job("a"), *(job("b") for _ in range(others)), job("b", **wrong)]
    with pytest.raises(errors.BalsamError) as caught:
        Job.objects.bulk_create(given)
    assert caught.value.message.startswith(f"Job number {len(given)}: At the site b: ")
    assert said in caught.value.message and caught.value.message.endswith("\nNothing was created.")
    assert Job.objects.count() == 0


def test_a_site_that_refuses_all_the_same_says_where_jobs_were_created(
    two: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalSite, "check_jobs", lambda there, rows: None)  # as if the parent were deleted right now
    with pytest.raises(errors.UnknownJob) as caught:
        Job.objects.bulk_create([job("a"), job("b"), job("a"), job("b", parent_ids=[77])])
    said = "Job number 4: At the site b: Could not find one or more Jobs set as parents: 77\nCreated were: 2 at a"
    said += "\n`balsam job ls` shows the jobs."
    assert str(caught.value) == said
    assert (Job.objects.filter(site_name="a").count(), Job.objects.filter(site_name="b").count()) == (2, 0)


def test_bulk_update_writes_what_was_changed(two: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [saved("a"), saved("b"), saved("a"), saved("a")]
    jobs[0].num_nodes, jobs[1].priority = 3, 4
    jobs[2].tags["x"] = "y"
    asked = Writes(monkeypatch, "update")
    assert Job.objects.bulk_update(jobs) is None  # type: ignore[func-returns-value]
    assert asked.calls == ["update", "update"]
    Job.objects.bulk_update(jobs)
    assert len(asked.calls) == 2
    found = [Job.objects.get(id=one.id) for one in jobs]
    assert (found[0].num_nodes, found[1].priority, found[2].tags) == (3, 4, {"x": "y"})
    with pytest.raises(Job.DoesNotExist):
        Job.objects.bulk_update([job()])
    with pytest.raises(TypeError):
        Job.objects.bulk_update(iter(jobs))  # type: ignore[arg-type]


# --- queries ----------------------------------------------------------------------------------------------------------


def test_a_query_is_read_once_and_when_it_is_needed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(), saved()
    asked = Writes(monkeypatch, "select", "count")
    query = Job.objects.filter(state="CREATED")
    more = query.filter(id=[1, 2]).order_by("-id")
    assert asked.calls == []
    assert [one.id for one in more] == [2, 1] and len(more) == 2 and more and more[0].id == 2 and more.count() == 2
    assert asked.calls == ["select"]
    assert len(more.all()) == 2 and asked.calls == ["select", "select"]
    assert query.count() == 2 and asked.calls[-1] == "count"


def test_the_rules_of_queries_hold(site: Site) -> None:
    jobs = Job.objects.bulk_create([job(tags={"n": str(n), "all": "yes"}, priority=n % 2) for n in range(6)])
    query = Job.objects.all()
    assert [one.id for one in query] == [1, 2, 3, 4, 5, 6] and query[3] == jobs[3]
    assert Job.objects.first().id == 1 and query.first() == jobs[0]
    assert [one.id for one in Job.objects.order_by("-id")[1:4]] == [5, 4, 3]
    assert [one.id for one in Job.objects.order_by("-id")[1:4][1:]] == [4, 3]
    assert [one.id for one in Job.objects.all()[4:]] == [5, 6] and len(Job.objects.all()[4:][5:]) == 0
    assert Job.objects.all()[1:4].count() == 3 and Job.objects.all()[4:99].count() == 2
    assert [one.id for one in query[::2]] == [1, 3, 5] and query[2:4][0] == jobs[2]  # type: ignore[union-attr]
    assert Job.objects.all()[5].id == 6
    for place in (6, 99):
        with pytest.raises(IndexError):
            Job.objects.all()[place]
    with pytest.raises(IndexError):
        Job.objects.all()[1:2][1]
    with pytest.raises(IndexError):
        Job.objects.filter(name="nobody").first()
    for bad in (-1, slice(-2, None), slice(0, -1)):
        with pytest.raises(ValueError, match="end"):
            query[bad]
    cut = Job.objects.all()[:2]
    for change in (lambda: cut.filter(id=1), lambda: cut.order_by("id")):
        with pytest.raises(AttributeError, match="sliced"):
            change()
    assert not hasattr(query, "exclude")
    assert not Job.objects.filter(name="nobody") and Job.objects.filter(name="nobody").count() == 0
    assert "Job(id=1" in repr(query)


def test_get_wants_exactly_one(site: Site) -> None:
    with pytest.raises(Job.DoesNotExist, match="id=3"):
        Job.objects.get(id=3)
    saved(), saved()
    with pytest.raises(Job.MultipleObjectsReturned):
        Job.objects.get()
    assert Job.objects.filter(id=1).get().id == Job.objects.get(id=1).id == 1
    assert issubclass(Job.DoesNotExist, LookupError) and not issubclass(App.DoesNotExist, Job.DoesNotExist)


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({}, [1, 2, 3, 4]), ({"id": 2}, [2]), ({"id": [1, 4, 9]}, [1, 4]), ({"id": {3}}, [3]), ({"id": range(2, 4)}, [2, 3]),
        ({"id": []}, []), ({"id": None}, [1, 2, 3, 4]), ({"tags": {}}, [1, 2, 3, 4]), ({"tags": {"k": "1"}}, [1, 2]),
        ({"tags": "k:1"}, [1, 2]), ({"tags": ["k:1", "x:y"]}, [2]), ({"tags": {"k": "1", "x": "y"}}, [2]),
        ({"tags": "k:7"}, []),
        ({"state": "FAILED"}, [3]), ({"state": JobState.FAILED}, [3]), ({"state": {"FAILED", JobState.CREATED}}, [1, 2, 3]),
        ({"state": []}, []), ({"state__ne": "FAILED"}, [1, 2, 4]), ({"state__ne": [JobState.FAILED, "CREATED"]}, [4]),
        ({"parent_id": 1}, [4]), ({"parent_id": [2, 3]}, []), ({"workdir__contains": "o/x"}, [1]),
        ({"workdir": Path("demo/x")}, [1]),
        ({"app_id": "Hello"}, [2]), ({"app_id": 1}, [2]), ({"app_id": ["Hello", "Plain"]}, [1, 2, 3, 4]), ({"app_id": []}, []),
        ({"site_name": "a"}, [1, 2, 3, 4]), ({"site_id": 1, "id": [1, 2], "state": "CREATED"}, [1, 2]),
        ({"batch_job_id": 5}, []),
        ({"name": "n"}, [3]),
    ],
)  # fmt: skip
def test_jobs_are_found_by(jobs_of_all_kinds: None, conditions: dict[str, Any], found: list[int]) -> None:
    query = Job.objects.filter(**conditions)
    assert [one.id for one in query] == found and query.all().count() == len(found)


@pytest.fixture
def jobs_of_all_kinds(site: Site) -> None:
    saved(workdir="demo/x", tags={"k": "1"})
    saved(app_id="Hello", parameters={"to": "x"}, tags={"k": "1", "x": "y"})
    put(saved(tags={"k": "2"}, name="n"), "FAILED")
    child = saved(parent_ids=[1])
    assert child.state == "AWAITING_PARENTS"


def test_the_same_condition_again_replaces_the_first(jobs_of_all_kinds: None) -> None:
    query = Job.objects.filter(id=1, state="CREATED")
    assert [one.id for one in query.filter(id=2)] == [2]
    assert [one.id for one in query.filter(id=None)] == [1, 2]
    assert [one.id for one in Job.objects.filter(app_id="Hello").filter(app_id=2)] == [1, 3, 4]


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"stat": "FAILED"}, "'state'"), ({"state": "NOWHERE"}, "NOWHERE"), ({"id": "x"}, "id"),
        ({"tags": "no-colon"}, "KEY:VALUE"),
        ({"tags": ["a:b", "a:c"]}, "tags"), ({"last_update_after": "2022-01-01"}, "last_update_after"), ({"state": 3}, "state"),
        ({"last_update_before": date(2022, 1, 1)}, "datetime"), ({"id": True}, "id"),
    ],
)  # fmt: skip
def test_a_wrong_condition_is_a_value_error(site: Site, conditions: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(Job.objects.filter(**conditions))


@pytest.mark.parametrize("are_several", [False, True])
def test_no_slice_is_too_far(two: tuple[Site, Site], are_several: bool) -> None:
    for one in Job.objects.bulk_create([job(), job(), job()]):
        put(one, "FAILED")
    far = 10**30
    for manager in (Job.objects, EventLog.objects):
        query = manager.all() if are_several else manager.filter(site_name="a")  # type: ignore[attr-defined]
        assert [len(query[0:far]), len(query[1:][:far]), len(query[far:]), len(query[1:far][far:][far : 2 * far])] == [
            3,
            2,
            0,
            0,
        ]
        assert query[:far].count() == 3 and len(query[0:far:2]) == 2
        for place in (far, sys.maxsize - 1, sys.maxsize):
            with pytest.raises(IndexError):
                query[1:][place]


ENDS = (datetime.min, datetime.max)  # noqa: DTZ901


def test_the_ends_of_time_have_no_zone(site: Site) -> None:
    put(saved(), "FAILED")
    for hours in (-14, 0, 14):
        first, last = (end.replace(tzinfo=timezone(timedelta(hours=hours))) for end in ENDS)
        assert EventLog.objects.filter(timestamp_after=first, timestamp_before=last).count() == 1
        assert Job.objects.filter(last_update_after=last).count() == Job.objects.filter(last_update_before=first).count() == 0
        assert records.naive(records.to_us(first, "")).year == 1 and records.naive(records.to_us(last, "")).year == 9999  # type: ignore[union-attr]


def test_sorting_by_nonsense_is_refused(site: Site) -> None:
    for field in ("tags", "--id", "", "nothing"):
        with pytest.raises(errors.UnknownField):
            Job.objects.order_by(field)


def test_dates_of_the_last_change_select_whatever_their_zone(site: Site) -> None:
    one = saved()
    assert one.last_update is not None
    naive = one.last_update.replace(tzinfo=None)
    elsewhere = one.last_update.astimezone(timezone(timedelta(hours=-7)))
    for moment in (naive, one.last_update, elsewhere):
        assert Job.objects.filter(last_update_after=moment, last_update_before=moment).count() == 1
        assert Job.objects.filter(last_update_after=moment + timedelta(microseconds=1)).count() == 0


def test_update_and_delete_take_all_that_match_whatever_was_sliced(site: Site) -> None:
    Job.objects.bulk_create([job(tags={"k": str(n % 2)}) for n in range(6)])
    assert Job.objects.filter(tags={"k": "1"})[:1].update(num_nodes=5, tags={"k": "3"}) == 3
    assert [one.num_nodes for one in Job.objects.filter(tags={"k": "3"})] == [5, 5, 5]
    assert Job.objects.filter(id=1).update(state="FAILED") == 1 and Job.objects.get(id=1).state == "FAILED"
    with pytest.raises(TypeError, match="num_nodes"):
        Job.objects.all().update(num_node=3)
    with pytest.raises(ValueError):
        Job.objects.all().update(num_nodes=0)
    assert Job.objects.filter(tags={"k": "3"})[1:2].delete() == 3 and Job.objects.count() == 3
    assert Job.objects.filter(id=[]).delete() == 0 and Job.objects.filter(id=[]).update(num_nodes=2) == 0
    assert Job.objects.count() == 3


def test_parents_are_deleted_only_by_force(site: Site) -> None:
    parent = saved()
    saved(parent_ids=[parent.id])
    with pytest.raises(errors.ParentInUse):
        parent.delete()
    with pytest.raises(errors.ParentInUse):
        Job.objects.filter(id=parent.id).delete()
    assert parent.id == 1 and Job.objects.filter(id=1).delete(force=True) == 1


# --- several sites ----------------------------------------------------------------------------------------------------


def test_a_query_reads_all_sites_and_numbers_do_not_get_mixed(two: tuple[Site, Site]) -> None:
    of_a, of_b = saved("a", priority=5), saved("b", priority=9)
    assert of_a.id == 1 and of_b.id == 1 and of_a.id != of_b.id and of_a != of_b
    assert (
        list(Job.objects.all()) == [of_a, of_b] and Job.objects.count() == 2 and list(Job.objects.filter(id=1)) == [of_a, of_b]
    )
    assert list(Job.objects.filter(id=of_b.id)) == [of_b] and list(Job.objects.filter(id=[of_b.id, 7])) == [of_b]
    assert list(Job.objects.filter(site_id=two[1].id)) == [of_b] and list(Job.objects.filter(site_name=["b", "a"], id=1)) == [
        of_b,
        of_a,
    ]
    assert Job.objects.filter(id=of_a.id, site_name="b").count() == 0
    assert Job.objects.order_by("-priority").first() == of_b and [
        one.site_name for one in Job.objects.order_by("priority")
    ] == ["a", "b"]
    assert Job.objects.filter(id=1).update(num_nodes=2) == 2
    of_b.refresh_from_db()
    of_a.refresh_from_db()
    assert of_a.num_nodes == of_b.num_nodes == 2
    with pytest.raises(errors.UnknownSite, match="c"):
        list(Job.objects.filter(site_name="c"))


def test_slices_and_orders_hold_over_several_sites(two: tuple[Site, Site]) -> None:
    for n in range(10):
        saved("a" if n in (0, 3, 4, 9) else "b", priority=n)
    assert [one.priority for one in Job.objects.order_by("priority")] == list(range(10))
    assert [one.priority for one in Job.objects.order_by("-priority")[2:6]] == [7, 6, 5, 4]
    assert [one.site_name for one in Job.objects.all()[3:6]] == ["a", "b", "b"]
    assert Job.objects.order_by("priority")[4].priority == 4 and Job.objects.all()[3:].count() == 7


def test_the_active_db_is_asked_first(two: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch) -> None:
    saved("a"), saved("b"), saved("b")
    assert Job.objects.count() == 3
    monkeypatch.setenv("BALSAM_DB_PATH", str(two[1].path))
    assert Job.objects.count() == 2 and Job.objects.filter(site_name="a").count() == 1
    assert Job.objects.create(app_id="Plain", workdir="here").site_name == "b"
    monkeypatch.delenv("BALSAM_DB_PATH")
    monkeypatch.chdir(two[0].path / "data")
    assert Job.objects.count() == 1
    with use(directories.open_database(str(two[1].path))):
        assert Job.objects.count() == 3


def test_a_db_outside_of_the_registry_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directories.set_up(str(tmp_path / "lonely"))
    assert registry.known() == []
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "lonely"))
    App(name="Plain", executable="true").save()
    made = Job.objects.create(app_id="Plain", workdir="x")
    assert made.site_id == 0 and made.site_name == "lonely" and list(Job.objects.all()) == [made]
    found = Site.objects.get("lonely")
    assert found.id == 0 and Job.objects.filter(site_id=found.id).count() == Job.objects.filter(site_name="lonely").count() == 1
    assert Job.objects.create(site_name="lonely", app_id="Plain", workdir="y").id == 2
    monkeypatch.delenv("BALSAM_DB_PATH")
    with pytest.raises(errors.NoDatabase):
        Job.objects.count()


class FarSite(LocalSite):
    """As one behind ssh: everything goes through JSON."""

    is_reachable = True

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in (
            "select",
            "count",
            "create",
            "check_jobs",
            "page",
            "update",
            "update_where",
            "delete",
            "result",
            "event_tuples",
            "about",
        ):
            return found

        def ask(*args: Any, **kwargs: Any) -> Any:
            if not FarSite.is_reachable:
                raise errors.SiteUnreachable("far away")
            args, kwargs = json.loads(json.dumps([args, kwargs]))
            return json.loads(json.dumps(found(*args, **kwargs)))

        return ask


@pytest.fixture
def far(two: tuple[Site, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> registry.SiteEntry:
    """A third site, as if it were on another host."""
    directories.set_up(str(tmp_path / "far"))
    entry = registry.add(str(tmp_path / "far"), "far", host="elsewhere")
    near = fanout.open_site
    monkeypatch.setattr(FarSite, "is_reachable", True)

    def open_site(entry: registry.SiteEntry, patience_s: float | None = None) -> Any:
        return FarSite(entry) if entry.is_remote else near(entry, patience_s)

    monkeypatch.setattr(fanout, "open_site", open_site)
    App(name="Far", site_name="far", executable="true").save()
    return entry


def test_a_site_on_another_host_is_a_site(far: registry.SiteEntry) -> None:
    one = Job.objects.create(app_id="Far", workdir="x", tags={"a": "b"}, parameters={"t": (1,)})
    assert one.site_name == "far" and one.id.site == far
    one.tags["c"] = "d"
    one.save()
    put(one, "JOB_FINISHED", state_data={"n": 1})
    made = Job.objects.bulk_create([job("a"), job("far", app_id="Far", parent_ids=[one.id]), job("b")])
    assert [made_one.site_name for made_one in made] == ["a", "far", "b"] and Job.objects.count() == 4
    found = Job.objects.get(tags={"c": "d"})
    assert found.get_parameters() == {"t": (1,)} and found.result_nowait() is None
    assert [event.data["n"] for event in EventLog.objects.filter(job_id=one.id, to_state="JOB_FINISHED")] == [1]
    assert Job.objects.wait([one, *made], timeout=0).done == [one]
    assert Site.objects.get("far").host == "elsewhere" and Job.objects.filter(site_name="far").update(num_nodes=2) == 2


def test_functions_run_with_the_interpreter_that_their_site_names(
    far: registry.SiteEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = LocalSite.about
    monkeypatch.setattr(LocalSite, "about", lambda there: {**about(there), "python": "/there/bin/python3"})
    body = {"run": lambda self: 1, "preprocess": lambda self: None, "__module__": __name__}
    for site, more, python in (
        ("far", {}, "/there/bin/python3"),
        ("far", {"python_exe": "/mine/python"}, "/mine/python"),
        ("a", {}, sys.executable),
    ):
        type("Function", (api.ApplicationDefinition,), {**body, "site": site, **more}).sync()
        stored = App.objects.get(site_name=site, name="Function")
        assert stored.executable.startswith(f"{python} ") and stored.preprocess.startswith(f"{python} ")


def test_a_site_that_cannot_be_read_is_a_warning_unless_it_was_meant(far: registry.SiteEntry) -> None:
    saved("a")
    put(saved("b"), "FAILED")
    FarSite.is_reachable = False
    for question in (lambda: len(Job.objects.all()), Job.objects.count, lambda: len(Job.objects.order_by("state"))):
        with pytest.warns(fanout.SiteWarning, match="far could not be read: far away"):
            assert question() == 2
    with pytest.warns(fanout.SiteWarning, match="far"):
        assert len(list(EventLog.objects.all())) == 1
    for meant in (lambda: len(Job.objects.filter(site_name="far")), lambda: Job.objects.filter(site_id=far.number).count()):
        with pytest.raises(errors.SiteUnreachable):
            meant()


def test_nothing_is_written_unless_all_sites_answer(far: registry.SiteEntry) -> None:
    saved("a")
    FarSite.is_reachable = False
    for change in (lambda: Job.objects.all().update(num_nodes=3), lambda: Job.objects.all().delete()):
        with pytest.raises(errors.SiteUnreachable, match="Nothing was changed: site far"):
            change()
    with pytest.raises(errors.SiteUnreachable):
        Job.objects.bulk_create([job("a"), job("far", app_id="Far")])
    assert [one.num_nodes for one in Job.objects.filter(site_name="a")] == [1]


# --- applications and sites -------------------------------------------------------------------------------------------


def test_applications_are_found_and_changed(two: tuple[Site, Site]) -> None:
    assert [app.name for app in models.App.objects.filter(site_id=two[1].id)] == ["Hello", "Plain"]
    app = models.App.objects.get(site_name="b", name="Hello")
    assert app.kind == "template" and app.parameters == {"to": {"required": True}} and app.site_id == two[1].id
    assert App.objects.filter(name="Hello").count() == 2 and App.objects.filter(site_path="/b").count() == 2
    app.description = "says hello"
    app.save()
    assert App.objects.get(id=app.id).description == "says hello"
    with pytest.raises(App.DoesNotExist):
        App.objects.get(name="nothing")
    with pytest.raises(errors.DuplicateApp):
        App(name="Hello", site_name="a").save()
    saved("b", app_id=app.id, parameters={"to": "x"})
    app.delete()
    assert Job.objects.count() == 0 and App.objects.filter(name="Hello").count() == 1


def test_an_application_shows_what_its_template_needs(site: Site) -> None:
    rules = {"b": {"required": False, "default": "x"}}
    app = App.objects.create(site_name="a", name="new", command_template="echo {{ a }} {{ b }}", parameters=rules)
    assert app.parameters == {"a": {"required": True}, **rules} and rules.keys() == {"b"}
    app.command_template = "echo {{ b }} {{ c }}"
    app.save()
    assert app.parameters == {**rules, "c": {"required": True}} and app == App.objects.get(name="new")
    app.command_template, app.executable = "", "true"
    app.save()
    assert app.kind == "command"
    app.command_template = "echo {{"
    with pytest.raises(errors.InvalidSpec):
        app.save()
    with pytest.raises(errors.InvalidSpec, match="needs a command_template or an executable"):
        App.objects.create(site_name="a", name="nothing")
    assert App.objects.count() == 3


def test_objects_know_their_site_under_its_new_name(two: tuple[Site, Site]) -> None:
    before, pickled = saved("a"), pickle.dumps(saved("a"))
    two[0].name = "renamed"
    two[0].save()
    assert before.site_name == "renamed" and before.id.site.name == "renamed" and before == Job.objects.get(id=before.id)
    child = job(None, app_id=before.app_id, parent_ids=[before.id])
    assert Job.objects.bulk_create([job("renamed"), child])[1].site_name == "renamed"
    assert pickle.loads(pickled).site_name == "renamed" and before.site_name == "renamed"
    registry.rename(1, "again")  # by another process
    assert Job.objects.filter(site_name="again").first() == before and before.site_name == "again"
    for one in (before, pickle.loads(pickled)):
        put(one, "FAILED")
    assert Job.objects.wait([before, *Job.objects.filter(id=before.id)], timeout=0).not_done == []


@pytest.mark.parametrize("name", ["a", "all", "7", "x/y"])
def test_a_site_whose_name_is_refused_leaves_no_db(site: Site, tmp_path: Path, name: str) -> None:
    with pytest.raises((errors.DuplicateSite, errors.InvalidSpec)):
        Site(name=name, path=tmp_path / "new").save()
    assert not (tmp_path / "new").exists() and Site.objects.count() == 1
    Site(name="b", path=tmp_path / "new").save()
    site.delete()
    site.save()  # a DB that is there is registered
    assert Site.objects.count() == 2 and App.objects.filter(site_name="a").count() == 2


def test_sites_are_found_by_name_first(two: tuple[Site, Site]) -> None:
    assert Site.objects.get("b") == two[1] and Site.objects.get(name="a").id == 1 and Site.objects.get(id=2).name == "b"
    assert type(two[1].id) is int and two[1].is_active is False and two[1].path.is_dir()
    assert two[1].last_refresh is None
    assert [site.name for site in Site.objects.order_by("-name")] == ["b", "a"] and Site.objects.count() == 2
    assert Site.objects.filter(path="/b").first().name == "b" and len(Site.objects.filter(name=["a", "x"])) == 1
    with pytest.raises(Site.DoesNotExist, match="Known are: a, b"):
        Site.objects.get("c")
    two[1].name = "a"
    with pytest.raises(errors.DuplicateSite):
        two[1].save()
    two[1].refresh_from_db()
    two[1].name = "better"
    two[1].save()
    assert Site.objects.get("better").id == 2 and App.objects.filter(site_name="better").count() == 2
    two[1].delete()
    assert Site.objects.count() == 1 and directories.is_db(str(Path(two[0].path).parent / "b"))
    with pytest.raises(ValueError):
        Site(name="x")


# --- batch jobs -------------------------------------------------------------------------------------------------------


def test_a_batch_job_is_checked_where_the_user_stands(two: tuple[Site, Site]) -> None:
    given: dict[str, Any] = {"num_nodes": 1, "wall_time_min": 10, "job_mode": "mpi"}
    with pytest.raises(ValueError, match="job_mode"):
        BatchJob(**{**given, "job_mode": "parallel"})
    with pytest.raises(ValueError, match="num_nodes"):
        BatchJob(wall_time_min=10, job_mode="mpi")
    with pytest.raises(TypeError, match="'filter_tags'"):
        BatchJob(**given, filter_tag={})
    with pytest.raises(ValueError):
        BatchJob(**given, partitions=[{"job_mode": "mpi"}])
    with pytest.raises(ValueError, match="Cannot set state"):
        BatchJob(**given).state = "queued"
    with pytest.raises(errors.NoDatabase):
        BatchJob.objects.create(**given)
    with pytest.raises(errors.BalsamError):
        BatchJob.objects.create(
            **given, site_id=two[0].id, partitions=[BatchJobPartition(job_mode="serial", num_nodes=2, filter_tags={"a": "b"})]
        )
    assert BatchJob.objects.count() == 0
    with pytest.raises(NotImplementedError):
        BatchJob.objects.all().delete()


def test_a_batch_job_is_submitted_at_once_and_can_be_cancelled(site: Site) -> None:
    made = BatchJob.objects.create(
        num_nodes=1,
        wall_time_min=10,
        queue="local",
        project="local",
        site_id=site.id,
        filter_tags={"k": "none"},
        job_mode="serial",
    )
    try:
        assert made.id == 1 and made.scheduler_id is not None and made.state in ("queued", "running")
        assert made.filter_tags == {"k": "none"} and made.job_mode is JobMode.serial and made.site_id == site.id
        assert BatchJob.objects.get(scheduler_id=made.scheduler_id).id == made.id
        assert [one.id for one in BatchJob.objects.filter(filter_tags={"k": "none"}).order_by("-start_time")] == [1]
        assert BatchJob.objects.filter(queue="other").count() == 0
    finally:
        made.delete()
    assert made.state in ("pending_deletion", "finished") and made.id == 1


# --- events -----------------------------------------------------------------------------------------------------------


def test_events_come_newest_first_over_several_sites(two: tuple[Site, Site]) -> None:
    jobs = [saved("b" if n % 2 else "a") for n in range(6)]
    for one in jobs:
        put(one, "FAILED")
    events = list(EventLog.objects.all())
    assert [event.job_id for event in events] == [one.id for one in reversed(jobs)]
    assert [event.job_id for event in EventLog.objects.order_by("timestamp")] == [one.id for one in jobs]
    assert len(EventLog.objects.all()) == 6 and EventLog.objects.all()[1].job_id == jobs[4].id
    assert [event.job_id for event in EventLog.objects.all()[2:4]] == [jobs[3].id, jobs[2].id]
    assert [event.job_id for event in EventLog.objects.filter(job_id=[one.id for one in jobs[:2]])] == [jobs[1].id, jobs[0].id]
    assert not EventLog.objects.filter(job_id=[]) and EventLog.objects.filter(to_state={"FAILED"}).count() == 6
    assert EventLog.objects.filter(site_name="a").count() == 3
    rows = sorted(EventLog.objects.all().tuples())
    assert [(row[1], row[2], row[4]) for row in rows] == [("CREATED", "FAILED", None)] * 6
    assert [row[3] for row in rows] == [one.id for one in jobs]
    assert sorted(EventLog.objects.all()[:2].tuples()) == rows[4:]


def test_a_site_slow_to_begin_is_waited_for(far: registry.SiteEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    put(saved("a"), "FAILED")
    put(Job.objects.create(app_id="Far", workdir="x"), "FAILED")

    def about(there: LocalSite) -> Any:
        raise errors.SiteUnreachable("no answer within 4.5 s")

    monkeypatch.setattr(LocalSite, "about", about)
    assert [event.job_id.site.name for event in EventLog.objects.all()] == ["far", "a"]  # type: ignore[attr-defined]


def test_a_list_of_few_events_takes_one_query_and_len_counts_anew(
    two: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        put(saved("a"), "FAILED")
    query = EventLog.objects.filter(site_name="a")
    asked = Writes(monkeypatch, "select", "count")
    assert [len(list(one)) for one in (query, query[1:], query[:2], query[1:2], query[7:])] == [3, 2, 2, 1, 0]
    if sys.version_info >= (3, 10):  # before that, a list asks for the length before it asks for the first
        assert asked.calls == ["select"] * 5
    put(saved("a"), "FAILED")
    assert len(query) == query.count() == 4


def test_events_are_read_only(site: Site) -> None:
    put(saved(), "FAILED")
    event = EventLog.objects.first()
    for write in (
        lambda: setattr(event, "to_state", "READY"), event.save, event.delete, lambda: EventLog.objects.all().delete(),
        lambda: EventLog.objects.all().update(to_state="READY"), EventLog.objects.create,
    ):  # fmt: skip
        with pytest.raises(AttributeError, match="EventLog is read-only"):
            write()


def test_events_are_found_by_time_whatever_the_zone(site: Site) -> None:
    one = saved(tags={"k": "v"})
    put(one, "FAILED")
    event = EventLog.objects.get()
    assert event.timestamp.tzinfo is None
    assert abs(event.timestamp - datetime.now(timezone.utc).replace(tzinfo=None)) < timedelta(minutes=1)
    for zone in (timezone.utc, timezone(timedelta(hours=9))):
        aware = event.timestamp.replace(tzinfo=timezone.utc).astimezone(zone)
        assert EventLog.objects.filter(timestamp_after=aware, timestamp_before=aware, tags="k:v").count() == 1
        assert EventLog.objects.filter(timestamp_after=aware + timedelta(microseconds=1)).count() == 0
    for wrong in (date(2022, 1, 1), "2022-01-01", 1640995200):
        with pytest.raises(ValueError, match="timestamp_after must be a datetime"):
            EventLog.objects.filter(timestamp_after=wrong)


def test_events_are_read_in_pages(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    Job.objects.bulk_create([job() for _ in range(3000)])
    Job.objects.all().update(state="FAILED")  # all at one moment
    asked = Writes(monkeypatch, "select")
    events = iter(EventLog.objects.all())
    next(events)
    assert asked.calls == ["select"]
    assert len({event.id for event in events}) == 2999 and 3 <= len(asked.calls) <= 5
    many_ids = list(range(1, 100_001))
    assert EventLog.objects.filter(job_id=many_ids).count() == 3000
    assert sum(1 for _ in EventLog.objects.filter(job_id=many_ids)) == 3000


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_waiting_ends_when_jobs_are_over(two: tuple[Site, Site]) -> None:
    jobs = [saved("a"), saved("b"), saved("a")]
    assert Job.objects.wait(jobs, timeout=0) == ([], jobs)
    put(jobs[1], "FAILED")
    assert Job.objects.wait(jobs, return_when="FIRST_COMPLETED") == ([jobs[1]], [jobs[0], jobs[2]])
    result = Job.objects.wait(jobs, timeout=0.05, poll_interval=0.01)
    assert result.done == [jobs[1]] and result.not_done == [jobs[0], jobs[2]]
    put(Job.objects.get(id=jobs[0].id), "JOB_FINISHED")
    Job.objects.get(id=jobs[2].id).delete()
    assert Job.objects.wait(jobs, timeout=10) == (jobs, [])
    assert jobs[0].state == "JOB_FINISHED" and Job.objects.wait([]) == ([], [])
    with pytest.raises(ValueError, match="FIRST_COMPLETED"):
        Job.objects.wait(jobs, return_when="SOMETIMES")
    with pytest.raises(Job.DoesNotExist):
        Job.objects.wait([job()])


def test_the_first_look_notices_what_was_deleted_or_runs_once_more(
    two: tuple[Site, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [saved("a"), saved("b"), saved("b")]
    Job.objects.get(id=jobs[1].id).delete()
    assert Job.objects.wait(jobs, timeout=0).done == [jobs[1]]
    assert next(Job.objects.as_completed(jobs, timeout=0)) is jobs[1]
    with pytest.raises(Job.DoesNotExist, match="not in the DB any more"):
        jobs[1].result(timeout=0)
    put(Job.objects.get(id=jobs[2].id), "FAILED")
    select = LocalSite.select

    def run_again(there: LocalSite, *args: Any) -> Any:  # between the look and the reading
        there.update("job", [{"id": jobs[2].id, "state": "RESTART_READY"}])
        return select(there, *args)

    monkeypatch.setattr(LocalSite, "select", run_again)
    assert Job.objects.wait([jobs[2]], timeout=0).done == []


def test_jobs_come_as_they_are_completed(two: tuple[Site, Site]) -> None:
    jobs = [saved("a"), saved("b"), saved("a")]
    coming = Job.objects.as_completed(jobs, timeout=10)
    for one in (jobs[1], jobs[2], jobs[0]):
        put(Job.objects.get(id=one.id), "JOB_FINISHED")
        assert next(coming) is one and one.state == "JOB_FINISHED"
    assert list(coming) == []
    late = saved("a")
    with pytest.raises(concurrent.futures.TimeoutError, match="1 Jobs are still pending after 0 sec timeout"):
        list(Job.objects.as_completed([*jobs, late], timeout=0))


def test_a_look_at_many_jobs_is_one_query(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Job.objects.bulk_create([job() for _ in range(500)])
    asked = Writes(monkeypatch, "select", "count", "page")
    states_of, read = queries.states_of, []
    monkeypatch.setattr(queries, "states_of", lambda cx, numbers: read.append(len(numbers)) or states_of(cx, numbers))
    Job.objects.wait(jobs, timeout=0.3)
    assert (asked.calls, read) == ([], [500]), "later looks read nothing while the DB does not change"
    Job.objects.bulk_refresh(jobs)
    assert asked.calls == ["select"]
    Job.objects.filter(id=[3, 4]).delete()
    with pytest.raises(Job.DoesNotExist, match="3, 4"):
        Job.objects.bulk_refresh(jobs)


def test_an_end_at_a_site_of_this_host_is_noticed_whatever_the_poll_interval_is(site: Site) -> None:
    """The DB is looked at every 30 ms at most: `poll_interval` is for other hosts and shared file systems."""
    assert waiter.MAX_PAUSE_S < 0.05
    jobs = [saved() for _ in range(3)]
    copies = [Job.objects.get(id=one.id) for one in jobs]
    timers = [threading.Timer(0.1 * number, put, (one, "JOB_FINISHED")) for number, one in enumerate(copies, 1)]
    for timer in timers:
        timer.start()
    began = time.monotonic()
    assert jobs[0].result(timeout=120, poll_interval=100) is None
    assert next(Job.objects.as_completed(jobs[1:2], timeout=120, poll_interval=100)) is jobs[1]
    assert Job.objects.wait(jobs, timeout=120, poll_interval=100) == (jobs, [])
    assert time.monotonic() - began < 50


def test_a_site_on_a_shared_file_system_is_looked_at_as_rarely_as_poll_interval_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = directories.create(str(tmp_path / "shared"), "shared")
    monkeypatch.setenv("BALSAM_DB_PATH", shared.directory)
    LocalSite(registry.at(shared.directory), shared).create("app", [{"name": "A", "executable": "true"}])
    one = Job(app_id="A", workdir="x")
    one.save()
    mark, looks = queries.mark, []
    monkeypatch.setattr(queries, "mark", lambda cx: looks.append(1) or mark(cx))
    assert Job.objects.wait([one], timeout=1.5, poll_interval=60).done == []
    assert len(looks) == 1
    assert Job.objects.wait([one], timeout=2.5, poll_interval=0.1).done == []
    assert 1 < len(looks) <= 4
    shared.close()


def test_a_waiter_of_the_interface_and_a_future_share_what_is_known(site: Site) -> None:
    """One process reads the events of a DB once for all that wait there."""
    one = saved()
    with use(directories.open_database(str(site.path))):
        future = FutureTask(BalsamJob.objects.get(id=int(one.id)))
        assert future.active
        put(Job.objects.get(id=one.id), "FAILED")
        assert Job.objects.wait([one], timeout=20).done == [one]
        assert future.failed and not Job.objects.wait([one], timeout=20).not_done


def test_waiting_outlives_a_site_that_is_away_for_a_moment(far: registry.SiteEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Job.objects.create(app_id="Far", workdir="x")
    put(one, "JOB_FINISHED")
    FarSite.is_reachable = False
    back = threading.Timer(0.03, lambda: setattr(FarSite, "is_reachable", True))
    back.start()
    with pytest.warns(UserWarning, match="trying again: far away") as warned:
        assert Job.objects.wait([one], timeout=20).done == [one]
    assert len(warned) == 1
    back.join()
    FarSite.is_reachable = False
    monkeypatch.setattr(waiter, "MAX_OUTAGE_S", 0.05)
    with pytest.warns(UserWarning, match="trying again"), pytest.raises(errors.SiteUnreachable):
        Job.objects.wait([one], timeout=20)


def test_a_result_is_waited_for(site: Site) -> None:
    one = saved()
    assert not one.done()
    with pytest.raises(Job.NoResult, match="CREATED"):
        one.result_nowait()
    with pytest.raises(concurrent.futures.TimeoutError, match=r"Job is still CREATED after 0\.05 sec timeout"):
        one.result(timeout=0.05)
    other = Job.objects.get(id=one.id)
    thread = threading.Timer(0.1, lambda: put(other, "JOB_FINISHED"))
    thread.start()
    assert one.result(timeout=20) is None and one.done()
    thread.join()


def of_function(site: Site) -> Job:
    """A job whose program is a function."""
    app = {"name": "F", "definition": {"file": "/f.py", "class": "F", "open": True}}
    LocalSite(registry.at(str(site.path))).create("app", [app])
    return saved(site.name, app_id="F")


def outcome_of(site: Site, one: Job, outcome: result_file.Outcome) -> None:
    """As if its function had ended so."""
    folder = one.resolve_workdir(site.path / "data")
    folder.mkdir(parents=True)
    name = one._row["job_id"]
    header = result_file.ResultHeader(name, 0, outcome.good)
    result_file.write(str(folder / result_file.file_name(name)), header, outcome)
    put(one, "JOB_FINISHED" if outcome.good else "FAILED")


def test_a_function_s_value_and_exception_come_back(site: Site) -> None:
    good, bad = of_function(site), of_function(site)
    outcome_of(site, good, result_file.Outcome(True, pickle.dumps({"answer": (4, 2)})))
    assert good.result() == good.result_nowait() == {"answer": (4, 2)}
    outcome_of(site, bad, result_file.Outcome(False, pickle.dumps(ZeroDivisionError("of its own")), "Traceback: there"))
    with pytest.raises(ZeroDivisionError, match="of its own") as raised:
        bad.result()
    assert "Traceback: there" in str(raised.value.__cause__)


@pytest.mark.parametrize("value", [None, b"not a pickle"])
def test_a_result_that_cannot_be_read_says_so(site: Site, value: bytes | None) -> None:
    one = of_function(site)
    outcome_of(site, one, result_file.Outcome(False, value, "Traceback: there"))
    with pytest.raises(errors.RemoteError, match="Traceback: there"):
        one.result()


def test_a_job_that_failed_without_a_result_says_why(site: Site) -> None:
    one, killed = saved(), saved()
    put(one, "FAILED", state_data={"message": "out of luck"})
    with pytest.raises(errors.TaskFailed, match="FAILED"):
        one.result()
    put(killed, "USER_KILLED")
    with pytest.raises(errors.TaskFailed, match="USER_KILLED"):
        killed.result()
    same = Job.objects.get(id=one.id)
    one.delete()
    with pytest.raises(Job.DoesNotExist):
        same.result(timeout=5)


# --- while an application is loaded -----------------------------------------------------------------------------------


def test_nothing_is_written_while_an_application_is_loaded(far: registry.SiteEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    one = saved("far", app_id="Far")
    with import_guard.importing():
        for write in (
            lambda: saved("a"), lambda: saved("far", app_id="Far"), lambda: put(one, "FAILED"), one.delete,
            lambda: Job.objects.bulk_create([job()]), lambda: Job.objects.all().update(num_nodes=2), Job.objects.all().delete,
            lambda: Job.objects.bulk_update([one]),
            lambda: BatchJob.objects.create(num_nodes=1, wall_time_min=1, job_mode="mpi"),
            lambda: Site(name="new", path="new").save(),
        ):  # fmt: skip
            with pytest.raises(import_guard.StopImport):
                write()
        assert Job.objects.count() == 1
    monkeypatch.setenv(import_guard.IMPORTING_VARIABLE, "1")  # as in a program that its file starts
    with pytest.raises(errors.BalsamError, match="imported only for its class"):
        one.delete()
    with pytest.raises(errors.BalsamError, match="imported only for its class"):
        RemoteSite(far._replace(host="nowhere.invalid")).delete("job", {})


# --- the workshop's page ----------------------------------------------------------------------------------------------


def run_example(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """A script of the page as it stands there."""
    text = (WORKSHOP / name).read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # datetime.utcnow, which the page calls
        exec(compile(text, name, "exec"), {"__name__": "__main__"})
    return capsys.readouterr().out


def test_the_page_s_scripts_do_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Site(name="thetagpu_tutorial", path=tmp_path / "thetagpu_tutorial").save()
    template = "echo Hello, {{ say_hello_to }}!"
    App(
        site_name="thetagpu_tutorial", name="Hello", command_template=template, parameters={"say_hello_to": {"required": True}}
    ).save()

    run_example("3_create_multiple_jobs.py", capsys)
    multi = list(Job.objects.filter(tags={"workflow": "hello_multi"}))
    assert [one.get_parameters()["say_hello_to"] for one in multi] == [f"world {n}!" for n in range(8)]
    assert {(one.node_packing_count, one.gpus_per_rank) for one in multi} == {(8, 1)}

    run_example("4_create_multiple_jobs_with_deps.py", capsys)
    chain = list(Job.objects.filter(tags={"workflow": "hello_deps"}))
    assert [one.parent_ids for one in chain] == [frozenset(), *({one.id} for one in chain[:-1])]
    batch_job = BatchJob.objects.get()
    assert batch_job.filter_tags == {"workflow": "hello_deps"} and batch_job.job_mode == "mpi"
    batch_job.delete()

    put(multi[0], "JOB_FINISHED", state_data={"note": "done"})
    printed = run_example("5_monitor_jobs.py", capsys)
    assert f"Job: {multi[0].id}\n" in printed and "JOB_FINISHED\n" in printed and "{'note': 'done'}" in printed


def test_adding_jobs_costs_little_more_than_the_store(site: Site) -> None:
    """A ratio, as this machine may be busy; figures are in the README."""
    from balsam_lite.db.store import insert

    number = 3000
    database = directories.open_database(str(site.path))
    plain = [{"application": "Hello", "parameters": {"to": "x"}, "tags": {"k": "v"}} for _ in range(number)]
    for _ in range(3):
        began = time.process_time()
        insert.add_jobs(database, plain)
        of_store = time.process_time() - began
        began = time.process_time()
        jobs = [job(app_id="Hello", parameters={"to": "x"}, tags={"k": "v"}) for _ in range(number)]
        assert len(Job.objects.bulk_create(jobs)) == number
        ratio = (time.process_time() - began) / of_store
        if ratio < 4:
            return
    raise AssertionError(f"bulk_create takes {ratio:.1f} times what insert.add_jobs takes")


def test_a_job_with_the_unique_key_of_another_one_is_refused_or_that_one_is_returned(site: Site) -> None:
    first = Job("x/1", app_id="Plain", unique_key="k")
    first.save()
    assert (Job.objects.get(unique_key="k").id, first.unique_key) == (first.id, "k")
    jobs = [Job("x/2", app_id="Plain"), Job("x/3", app_id="Plain", unique_key="k"), Job("x/4", app_id="Plain", unique_key="l")]
    with pytest.raises(errors.DuplicateKey, match="Job number 2: the unique_key 'k' is that of job"):
        Job.objects.bulk_create(jobs)
    with pytest.raises(errors.DuplicateKey):
        jobs[1].save()
    assert Job.objects.count() == 1
    made = Job.objects.bulk_create(jobs, on_duplicate="skip")
    assert [str(job.workdir) for job in made] == ["x/2", "x/1", "x/4"]
    assert made[1].id == first.id
    with pytest.raises(errors.InvalidSpec, match="Cannot set unique_key when updating Job"):
        first.unique_key = "m"
