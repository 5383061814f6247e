"""BalsamJob, ApplicationDefinition and their query sets, on real files, in both ways of opening them."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import threading
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from helpers import ROOT
from peewee import SQL

from balsam_lite.core import field_specs, states
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import (
    AmbiguousJobId,
    DependencyCycle,
    DuplicateApp,
    InputError,
    InvalidParentsError,
    InvalidSpec,
    InvalidStateError,
    NoDatabase,
    ParentInUse,
    StateError,
    UnknownApp,
    UnknownField,
    UnknownJob,
)
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.models import ApplicationDefinition, BalsamJob, use
from balsam_lite.db.query import queries
from balsam_lite.db.query.fields import BATCH_JOB
from balsam_lite.db.store import apps, batch_jobs, graph, insert, user_actions

APPS = ("say-hello", "fhi-aims")


@pytest.fixture(params=["local", "shared"])
def access(request):
    return request.param


@pytest.fixture
def db(tmp_path, monkeypatch, access):
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    for variable in ("BALSAM_DB_PATH", "BALSAM_JOB_ID"):
        monkeypatch.delenv(variable, raising=False)
    database = directories.create(str(tmp_path / "db"), access)
    with database.write() as cx:
        for name in APPS:
            apps.add_app(cx, {"name": name, "executable": f"echo {name}"})
    with use(database):
        yield database
    database.close()


def seen(db: Database, sql: str, *parameters: object) -> list[tuple]:
    """What another connection reads."""
    other = Database(db.directory, db.access)
    with other.read() as cx:
        rows = cx.execute(sql, parameters).fetchall()
    other.close()
    return rows


def names(jobs) -> list[str]:
    return [job.name for job in jobs]


def add(*given: str, **fields: object) -> list[BalsamJob]:
    jobs = [BalsamJob(name=name, **fields) for name in given]
    BalsamJob.objects.bulk_create(jobs)
    return jobs


# --- the slides -------------------------------------------------------------------------------------------------------


def test_the_slides_update_resets_ten_jobs(db):
    BalsamJob.objects.bulk_create(
        BalsamJob(name=f"test{i}", workflow="test", application="say-hello", args=f"world {i}!") for i in range(1, 11)
    )
    add("other", "testbig", num_nodes=256)
    BalsamJob.objects.exclude(name="other").update(state="JOB_FINISHED")

    changed = BalsamJob.objects.filter(num_nodes__lte=128, name__contains="test", state="JOB_FINISHED").update(
    state="RESTART_READY")  # fmt: skip

    assert changed == 10
    assert seen(db, "SELECT state, count(*) FROM job GROUP BY state ORDER BY state") == [
        ("CREATED", 1), ("JOB_FINISHED", 1), ("RESTART_READY", 10)]  # fmt: skip
    assert seen(db, "SELECT from_state, to_state, message FROM event WHERE job = 1") == [
        ("CREATED", "JOB_FINISHED", "User mutated state from Python"),
        ("JOB_FINISHED", "RESTART_READY", "User mutated state from Python"),
    ]


def prep_job(name, workflow, xyz_path):
    return BalsamJob(name=name,
                    workflow = workflow,
                    stage_in_url = xyz_path,
                    application = 'fhi-aims',
                    ranks_per_node=64,
                    cpu_affinity='depth',
                    environ_vars="OMP_NUM_THREADS=1",
                    )  # fmt: skip


def test_the_slides_campaign_is_populated(db, tmp_path, capsys):
    inbox_path = tmp_path / "inbox"
    for path in ("m1/a.xyz", "m1/b.xyz", "m2/c.xyz", "m2/notes.txt"):
        (inbox_path / path).parent.mkdir(parents=True, exist_ok=True)
        (inbox_path / path).touch()
    for dirpath, dirnames, filenames in os.walk(inbox_path):  # noqa: B007
        xyz_files = [f for f in filenames if f.endswith(".xyz")]
        new_jobs = []
        for f in xyz_files:
            name = os.path.splitext(f)[0]
            workflow = os.path.basename(dirpath)
            xyz_path = os.path.join(dirpath, f)
            job = prep_job(name, workflow, xyz_path)
            new_jobs.append(job)
        BalsamJob.objects.bulk_create(new_jobs)
    rows = seen(db, "SELECT workflow, name, ranks_per_node, cpu_affinity, environ_vars FROM job ORDER BY workflow, name")
    assert rows == [(w, n, 64, "depth", '{"OMP_NUM_THREADS": "1"}') for w, n in (("m1", "a"), ("m1", "b"), ("m2", "c"))]


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ["local"])
def test_the_fields_are_the_columns_of_the_tables(db):
    columns = [row[1] for row in seen(db, "PRAGMA table_info(job)") if row[1] != "failure"]  # which conditions show as text
    assert list(BalsamJob._FIELDS) == columns == list(queries.JOB_COLUMNS)
    columns = [row[1] for row in seen(db, "PRAGMA table_info(app)")]
    assert list(ApplicationDefinition._FIELDS) == columns == list(queries.APP_COLUMNS)
    assert list(BATCH_JOB.columns) == [row[1] for row in seen(db, "PRAGMA table_info(batch_job)")]


@pytest.mark.parametrize("access", ["local"])
def test_every_attribute_is_declared_for_type_checkers(db):
    text = (ROOT / "balsam_lite" / "db" / "models.py").read_text() + (
        ROOT / "balsam_lite" / "db" / "applications.py"
    ).read_text()
    for name in (*field_specs.JOB_FIELD, *field_specs.APP_FIELD):
        assert f"        {name}: " in text


def test_a_new_job_has_a_uuid_and_the_defaults_before_it_is_saved(db):
    job = BalsamJob(name="a")
    assert uuid.UUID(job.job_id).version == 4
    assert job.job_id == job.pk == job.job_id
    assert job.id is None
    assert (job.state, job.num_nodes, job.wait_for_parents, job.data, job.environ_vars) == ("CREATED", 1, True, {}, {})
    assert seen(db, "SELECT count(*) FROM job") == [(0,)]


def test_an_unknown_keyword_names_the_nearest_field(db):
    with pytest.raises(UnknownField, match="num_nodes"):
        BalsamJob(num_node=3)
    assert issubclass(UnknownField, ValueError)


def test_a_saved_job_reads_back_as_it_was_given(db):
    job = BalsamJob(
        name="näme 'q\"", workflow="w/f", application="say-hello", data={"a": [1, None, {"b": "ü"}]}, tags={"k": "v"},
        environ_vars={"PATH": "/a:/b", "N": 3}, post_error_handler=True, auto_timeout_retry="no", gpus_per_rank=0.5,
        job_id=uuid.UUID(int=5),
    )  # fmt: skip
    job.save()
    again = BalsamJob.objects.get(pk=job.pk)
    assert again == job
    assert again is not job
    assert hash(again) == hash(job)
    job.refresh_from_db()
    assert again.to_dict() == job.to_dict()
    assert again.data == {"a": [1, None, {"b": "ü"}]}
    assert again.environ_vars == {"PATH": "/a:/b", "N": "3"}
    assert again.post_error_handler is True
    assert again.auto_timeout_retry is False
    assert again.job_id == "00000000-0000-0000-0000-000000000005"
    assert seen(db, "SELECT name, gpus_per_rank FROM job") == [("näme 'q\"", 0.5)]


def test_a_bad_value_is_refused_when_the_job_is_saved_and_nothing_is_added(db):
    for fields, word in (
        ({"name": "two\nlines"}, "printable"), ({"name": "\ud800"}, "Unicode"), ({"args": "a\0b"}, "NUL"),
        ({"node_packing_count": 0}, "node_packing_count"), ({"num_nodes": -1}, "num_nodes"), ({"data": [1]}, "data"),
        ({"state": "READY"}, "state"), ({"attempt": 3}, "attempt"), ({"job_id": "x"}, "UUID"),
    ):  # fmt: skip
        with pytest.raises(InvalidSpec, match=word) as caught:
            BalsamJob(**{"name": "a", **fields}).save()
        assert "Job number" not in str(caught.value)
    with pytest.raises(UnknownApp, match="nosuch"):
        BalsamJob(application="nosuch").save()
    assert seen(db, "SELECT count(*) FROM job") == [(0,)]


def test_save_writes_only_what_was_changed(db):
    (job,) = add("a", args="1")
    one, other = BalsamJob.objects.get(name="a"), BalsamJob.objects.get(name="a")
    one.args = "2"
    other.description = "d"
    other.data["x"] = 1
    one.save()
    other.save()
    assert seen(db, "SELECT args, description, data FROM job") == [("2", "d", '{"x": 1}')]


def test_an_edit_inside_a_dict_is_saved_and_a_look_at_it_is_not(db):
    add("a", data={"x": {"y": 1}}, tags={"k": "v"})
    reader, writer = BalsamJob.objects.get(), BalsamJob.objects.get()
    assert reader.data["x"]["y"] == 1
    writer.data["x"]["y"] = True
    writer.save()
    reader.args = "new"
    reader.save()
    assert seen(db, "SELECT args, data, tags FROM job") == [("new", '{"x": {"y": true}}', '{"k": "v"}')]
    writer.data["x"]["z"] = 2
    writer.save()
    assert BalsamJob.objects.get().data == {"x": {"y": True, "z": 2}}


def test_a_dict_edited_after_it_was_assigned_and_saved_is_saved_again(db):
    given = {"n": 1}
    job = BalsamJob(name="a", data=given)
    job.save()
    job.data["n"] = 2
    job.save()
    job.data = {"n": 3}
    job.save()
    job.data["n"] = 4
    job.save()
    assert seen(db, "SELECT data FROM job") == [('{"n": 4}',)]


@pytest.mark.parametrize("assigned", [False, True])
def test_two_writers_of_different_keys_of_a_dict_undo_nothing(db, assigned):
    (job,) = add("a", data={"mine": 1, "both": 1, "theirs": 1, "dropped": 1, "gone": 1}, tags={"t": "1"})
    ours, theirs = (BalsamJob.objects.get(name="a") for _ in range(2))
    held = ours.data
    if assigned:
        ours.data = {"mine": 2, "both": 2, "theirs": 1, "gone": 1}
    else:
        held.update(mine=2, both=2)
        del held["dropped"]
    theirs.data.update(both=3, theirs=3, dropped=3, new=[1])
    del theirs.data["gone"]
    theirs.save()
    ours.save()
    merged = {"mine": 2, "both": 2, "theirs": 3, "new": [1]}
    assert json.loads(seen(db, "SELECT data FROM job")[0][0]) == merged
    assert ours.data == merged
    assert (ours.data is held) is not assigned
    ours.data["again"] = True
    ours.save()
    theirs.refresh_from_db()
    assert theirs.data == {**merged, "again": True}


def test_a_change_of_state_keeps_edits_that_are_not_saved_and_takes_over_the_others(db):
    (job,) = add("a", data={"x": 1})
    other = BalsamJob.objects.get(name="a")
    job.data["mine"], other.data["theirs"] = 1, 1
    looked_at = job.tags
    other.tags["t"] = "1"
    other.save()
    job.update_state("READY")
    assert (job.data, looked_at) == ({"x": 1, "mine": 1, "theirs": 1}, {"t": "1"})
    job.save()
    assert seen(db, "SELECT tags FROM job") == [('{"t": "1"}',)]
    assert json.loads(seen(db, "SELECT data FROM job")[0][0]) == {"x": 1, "mine": 1, "theirs": 1}


def test_the_same_change_by_two_writers_is_one(db):
    add("a")
    first, second = (BalsamJob.objects.get(name="a") for _ in range(2))
    for job in (first, second):
        job.data["x"] = 1
        job.save()
    assert seen(db, "SELECT data FROM job") == [('{"x": 1}',)]


def test_save_without_a_change_opens_no_transaction(db, monkeypatch):
    (job,) = add("a")
    assert job.data == {}
    monkeypatch.setattr(Database, "write", None)
    job.save()


def test_save_never_writes_the_state(db):
    add("a")
    job = BalsamJob.objects.get()
    user_actions.set_state(db, [job.id], "USER_KILLED")
    job.description = "after the kill"
    job.save()
    assert seen(db, "SELECT state, description FROM job") == [("USER_KILLED", "after the kill")]
    job.state = "RESTART_READY"
    job.args = "x"
    with pytest.raises(StateError, match="update_state"):
        job.save()
    assert seen(db, "SELECT state, args FROM job") == [("USER_KILLED", "")]


def test_a_deleted_job_cannot_be_saved_refreshed_or_moved(db):
    (job,) = add("a")
    BalsamJob.objects.get().delete()
    job.args = "x"
    actions = (job.save, job.refresh_from_db, job.get_recent_state_str, lambda: job.update_state("FAILED"), job.delete)
    for action in actions:
        with pytest.raises(UnknownJob):
            action()


def test_refresh_forgets_what_was_not_saved(db):
    (job,) = add("a")
    BalsamJob.objects.update(args="theirs")
    job.args, job.data["x"], job.state = "mine", 1, "FAILED"
    job.refresh_from_db()
    assert (job.args, job.data, job.state) == ("theirs", {}, "CREATED")


def test_update_state_writes_history_and_the_object_follows(db):
    (job,) = add("a")
    job.args = "unsaved"
    job.update_state("RESTART_READY", "once more")
    assert (job.state, job.args) == ("RESTART_READY", "unsaved")
    job.save()
    assert seen(db, "SELECT state, args FROM job") == [("RESTART_READY", "unsaved")]
    assert seen(db, "SELECT to_state, message FROM event") == [("RESTART_READY", "once more")]
    with pytest.raises(InvalidStateError, match="RUNNING"):
        job.update_state("RUNNIN")
    with pytest.raises(UnknownJob, match="save"):
        BalsamJob(name="new").update_state("FAILED")


def test_the_history_is_given_in_the_slides_form(db):
    (job,) = add("a")
    started = 1538594547183762
    with db.write() as cx:
        for offset, (old, new) in enumerate(
            [("CREATED", "PREPROCESSED"), ("PREPROCESSED", "RUNNING"), ("RUNNING", "RUN_DONE")]
        ):
            cx.execute(
                "INSERT INTO event (job, time, from_state, to_state) VALUES (?, ?, ?, ?)",
                (job.id, started + (offset - 1) * 1_500_000, old, new),
            )
    assert job.state_history.splitlines()[1:] == [
        "[10-03-2018 19:22:25.683762 PREPROCESSED]",
        "[10-03-2018 19:22:27.183762 RUNNING] Not scheduled by Balsam service",
        "[10-03-2018 19:22:28.683762 RUN_DONE]",
    ]
    assert job.get_recent_state_str() == "[10-03-2018 19:22:28.683762 RUN_DONE]"
    assert job.get_state_times()["RUNNING"] == datetime(2018, 10, 3, 19, 22, 27, 183762, tzinfo=timezone.utc)
    assert job.runtime_seconds == 1.5


def test_runtime_is_unknown_until_the_job_is_done(db):
    (job,) = add("a")
    assert job.runtime_seconds is None


def test_a_job_knows_its_command_ranks_directory_and_batch_job(db):
    with db.write() as cx:
        launch = batch_jobs.add(cx, {"queue": "debug", "nodes": 2}, 1)
        batch_jobs.mark_submitted(cx, launch, "278079")
    job = BalsamJob(
        name="my run", workflow="test", application="say-hello", args="'a  b'", num_nodes=2, ranks_per_node=3,
        queued_launch=launch,
    )  # fmt: skip
    before = job.working_directory
    job.save()
    assert job.app_cmd == "echo say-hello 'a  b'"
    assert job.num_ranks == 6
    assert job.working_directory == before == f"{db.directory}/data/test/my_run_{job.pk[:8]}"
    assert job.cute_id == f"[my run | {job.pk[:8]}]"
    assert job.queued_launch.scheduler_id == "278079"
    assert job.lock == ""
    assert names(BalsamJob.objects.filter(queued_launch__scheduler_id=278079)) == ["my run"]
    assert names(BalsamJob.objects.filter(queued_launch__scheduler_id="1")) == []
    assert names(BalsamJob.objects.filter(queued_launch=job.queued_launch, queued_launch__queue__contains="bug")) == ["my run"]
    assert BalsamJob(queued_launch=job.queued_launch).queued_launch_id == launch
    assert list(BalsamJob.objects.values_list("queued_launch__nodes", flat=True)) == [2]
    assert names(BalsamJob.objects.filter(queued_launch__isnull=True)) == []
    with pytest.raises(UnknownField, match="scheduler"):
        BalsamJob.objects.filter(queued_launch__schedule=1)


def test_a_user_workdir_is_where_the_job_runs(db, tmp_path):
    job = BalsamJob(name="a", user_workdir=str(tmp_path / "mine"))
    assert job.working_directory == str(tmp_path / "mine")
    job.save()
    assert BalsamJob.objects.get().working_directory == str(tmp_path / "mine")
    job.user_workdir = str(tmp_path / "yours")
    job.save()
    assert job.working_directory == str(tmp_path / "yours")


def test_a_file_is_read_from_the_workdir_and_from_nowhere_else(db, tmp_path):
    (job,) = add("a")
    directory = Path(job.working_directory)
    (directory / "sub").mkdir(parents=True)
    (directory / "a.out").write_bytes(b"Hello, \xff\n")
    (directory / "sub" / "b").write_text("deep")
    (directory.parent / "secret").write_text("no")
    assert job.read_file_in_workdir("a.out") == "Hello, \ufffd\n"
    assert job.read_file_in_workdir("sub/b") == "deep"
    for path in ("nosuch", "../secret", "sub/../../secret", str(directory / "a.out"), "", ".", "sub", "a\0b"):
        with pytest.raises(ValueError):
            job.read_file_in_workdir(path)


def test_the_printed_form_is_the_slides(db):
    job = BalsamJob(name="test1", workflow="test", application="say-hello", args="world!", environ_vars="A=1:B=2")
    unsaved = repr(job)
    job.save()
    lines = repr(job).splitlines()
    assert unsaved.replace("echo say-hello world!", "") in (repr(job).replace("echo say-hello world!", ""), unsaved)
    assert lines[:2] == [f"BalsamJob {job.pk}", "-" * 46]
    assert "workflow:                       test" in lines
    assert "parents:                        []" in lines
    assert "environ_vars:                   A=1:B=2" in lines
    assert "wait_for_parents:               True" in lines
    assert lines[-3:] == [
        "data:                           {}",
        "  *** Executed command:         echo say-hello world!",
        f"  *** Working directory:        {db.directory}/data/test/test1_{job.pk[:8]}",
    ]
    shown = [line.split(":")[0] for line in lines[2:-2]]
    assert shown == [
        "workflow", "name", "description", "lock", "parents", "input_files", "stage_in_url", "stage_out_files",
        "stage_out_url", "wall_time_minutes", "num_nodes", "coschedule_num_nodes", "ranks_per_node", "cpu_affinity",
        "threads_per_rank", "threads_per_core", "node_packing_count", "environ_vars", "application", "args", "user_workdir",
        "wait_for_parents", "post_error_handler", "post_timeout_handler", "auto_timeout_retry", "state", "queued_launch_id",
        "data",
    ]  # fmt: skip


def test_relatives_are_found(db):
    a, b, c, d = add("a", "b", "c", "c")
    with db.write() as cx:
        for parent, child in ((a, b), (a, c), (a, d), (b, d)):
            graph.add_dependency(cx, parent.id, child.id, SystemClock.now_us())
    assert names(a.get_children()) == ["b", "c", "c"]
    assert d.get_parents_by_id() == [a.pk, b.pk]
    assert a.get_children_by_id() == [b.pk, c.pk, d.pk]
    assert names(a.get_children().filter(name="c", state="AWAITING_PARENTS")) == ["c", "c"]
    assert a.get_child_by_name("b") == b
    for name in ("c", "nosuch"):
        with pytest.raises(ValueError, match=name):
            a.get_child_by_name(name)
    b.refresh_from_db()
    assert f'parents:                        ["{a.pk}"]' in repr(b)


def test_set_parents_replaces_the_edges_or_does_nothing(db):
    a, b, c = add("a", "b", "c")
    c.set_parents([a])
    c.set_parents([a, b.pk])
    assert (c.get_parents_by_id(), c.state, c.unfinished_parents) == ([a.pk, b.pk], "AWAITING_PARENTS", 2)
    c.set_parents([b.id])
    assert (c.get_parents_by_id(), c.unfinished_parents) == ([b.pk], 1)
    for job, parents, error in ((b, [c], DependencyCycle), (b, [a, b], DependencyCycle), (c, ["0123"], InvalidParentsError)):
        with pytest.raises(error):
            job.set_parents(parents)
    assert seen(db, "SELECT parent, child FROM dependency") == [(b.id, c.id)]
    c.set_parents([])
    assert (c.get_parents_by_id(), c.state) == ([], "READY")


def test_a_parent_is_not_deleted_from_under_its_children_unless_forced(db):
    a, b = add("a", "b")
    b.set_parents([a])
    for delete in (a.delete, BalsamJob.objects.filter(name="a").delete):
        with pytest.raises(ParentInUse):
            delete()
    assert seen(db, "SELECT count(*) FROM job") == [(2,)]
    a.delete(force=True)
    assert seen(db, "SELECT name, state FROM job") == [("b", "FAILED")]


def test_a_job_travels_as_json(db):
    (job,) = add("a", data={"k": [1]}, environ_vars={"A": "b"}, num_nodes=3)
    again = BalsamJob.deserialize(job.serialize())
    assert (again, again.id, again.to_dict()) == (job, job.id, job.to_dict())
    again.save()  # nothing was changed
    again.data["x"] = 1
    again.save()
    job.refresh_from_db()
    assert job.data == {"k": [1], "x": 1}
    fresh = BalsamJob.from_dict({**job.to_dict(), "id": None, "job_id": field_specs.new_job_id(), "name": "b"})
    fresh.save()
    assert (fresh.num_nodes, fresh.environ_vars, BalsamJob.objects.count()) == (3, {"A": "b"}, 2)
    with pytest.raises(UnknownField, match="num_nodes"):
        BalsamJob.from_dict({"num_node": 1})


def test_the_variables_of_a_job_are_known(db):
    a, b = add("a", "b", environ_vars={"X": "1", "BALSAM_JOB_ID": "no"}, threads_per_rank=4)
    b.set_parents([a])
    expected = {
        "OMP_NUM_THREADS": "4", "X": "1", "BALSAM_DB_PATH": db.directory, "BALSAM_JOB_ID": b.pk, "BALSAM_ATTEMPT": "0",
        "BALSAM_PARENT_IDS": f'["{a.pk}"]', "BALSAM_PARENT_STATES": '["CREATED"]',
    }  # fmt: skip
    assert b.get_envs() == expected
    assert b.get_envs(timeout=True) == {**expected, "BALSAM_JOB_TIMEOUT": "TRUE"}
    assert b.get_envs(error=True) == {**expected, "BALSAM_JOB_ERROR": "TRUE"}


def test_the_old_job_source_asks_and_locks_nothing(db, monkeypatch):
    add("big", num_nodes=4, wall_time_minutes=60)
    add("mpi", num_nodes=2, workflow="w1")
    add("serial", workflow="w1", wall_time_minutes=5)
    add("done")[0].update_state("JOB_FINISHED")
    source = BalsamJob.source
    assert names(source.by_states("JOB_FINISHED")) == ["done"]
    assert names(source.by_states(["CREATED", "JOB_FINISHED"])) == ["big", "mpi", "serial", "done"]
    assert names(source.get_runnable(2, order_by="-name")) == ["serial", "mpi"]
    assert names(source.get_runnable(9, remaining_minutes=4)) == ["mpi"]
    assert names(source.get_runnable(9, mpi_only=True)) == ["big", "mpi"]
    assert names(source.get_runnable(9, serial_only=True, order_by=["name"])) == ["serial"]
    monkeypatch.setattr(source, "workflow", "w1")
    assert names(source.get_runnable(9)) == ["mpi", "serial"]
    for call in (source.acquire, source.release):
        with pytest.raises(StateError, match="lease"):
            call([])
    with pytest.raises(InvalidSpec):
        source.get_runnable(1, mpi_only=True, serial_only=True)


def test_a_pickled_job_is_the_same_job(db):
    job = add("a", data={"x": 1})[0]
    again = pickle.loads(pickle.dumps(job))
    assert again == job
    again.data["x"] = 2
    again.save()
    assert seen(db, "SELECT data FROM job") == [('{"x": 2}',)]


def test_an_application_stands_for_its_name(db):
    add("a", application="say-hello")
    assert names(BalsamJob.objects.filter(application=ApplicationDefinition.objects.get(name="say-hello"))) == ["a"]


# --- bulk_create ------------------------------------------------------------------------------------------------------


def test_bulk_create_gives_objects_their_ids_from_a_list_or_a_generator(db):
    listed = [BalsamJob(name=f"l{i}", data={"i": i}) for i in range(5)]
    streamed = [BalsamJob(name=f"g{i}", application="say-hello") for i in range(5)]
    BalsamJob.objects.bulk_create(listed)
    BalsamJob.objects.bulk_create(job for job in streamed)
    for job in listed + streamed:
        assert seen(db, "SELECT name, job_id FROM job WHERE id = ?", job.id) == [(job.name, job.job_id)]
        job.description = "edited"
        job.data["more"] = True
        job.save()
    assert seen(db, "SELECT count(*) FROM job WHERE description = 'edited' AND data LIKE '%true%'") == [(10,)]
    assert seen(db, "SELECT count(*) FROM job") == [(10,)]


def test_what_is_assigned_right_after_bulk_create_is_saved(db):
    (job,) = add("a")
    fresh = BalsamJob(name="b")
    BalsamJob.objects.bulk_create([fresh])
    fresh.name = "c"
    fresh.save()
    assert seen(db, "SELECT name FROM job ORDER BY id") == [("a",), ("c",)]


def test_bulk_create_returns_a_lazy_query_set_of_the_new_jobs(db):
    add("before")
    created = BalsamJob.objects.bulk_create({"name": f"j{i}", "application": "say-hello"} for i in range(20))
    add("after")
    assert len(created) == 20
    assert names(created) == [f"j{i}" for i in range(20)]
    assert (created[0].name, created[-1].name, names(created[3:5])) == ("j0", "j19", ["j3", "j4"])
    assert created.filter(name="j7").count() == 1
    assert len(BalsamJob.objects.bulk_create([])) == 0
    assert len(BalsamJob.objects.bulk_create(iter(()))) == 0


def failing():
    for i in range(12_000):
        yield {"name": f"j{i}"}
    raise RuntimeError("the disk with the inputs is gone")


def test_bulk_create_from_a_failing_generator_adds_nothing(db):
    with pytest.raises(RuntimeError, match="inputs"):
        BalsamJob.objects.bulk_create(failing())
    with pytest.raises(InvalidSpec, match="number 3"):
        BalsamJob.objects.bulk_create([{"name": "a"}, BalsamJob(name="b"), {"name": "c", "num_nodes": 0}])
    with pytest.raises(UnknownField, match="num_nodes"):
        BalsamJob.objects.bulk_create([{"name": "a"}, {"num_nods": 1}])
    with pytest.raises(InvalidSpec, match="number 2"):
        BalsamJob.objects.bulk_create([{"name": "a"}, 5])
    assert seen(db, "SELECT count(*) FROM job") == [(0,)]
    assert seen(db, "SELECT sum(jobs) FROM state_count") == [(0,)]


def test_an_object_of_a_failed_bulk_create_can_be_added_afterwards(db):
    jobs = [BalsamJob(name="a"), BalsamJob(name="b", num_nodes=0)]
    with pytest.raises(InvalidSpec):
        BalsamJob.objects.bulk_create(jobs)
    assert jobs[0].id is None
    jobs[1].num_nodes = 1
    BalsamJob.objects.bulk_create(jobs)
    assert [job.id for job in jobs] == [row[0] for row in seen(db, "SELECT id FROM job ORDER BY id")]


def test_bulk_create_refuses_jobs_that_are_there_and_jobs_given_twice(db):
    (old,) = add("a")
    new = BalsamJob(name="b")
    with pytest.raises(InvalidSpec, match="already"):
        BalsamJob.objects.bulk_create([new, old])
    with pytest.raises(InvalidSpec, match="twice"):
        BalsamJob.objects.bulk_create([new, new])
    assert seen(db, "SELECT count(*) FROM job") == [(1,)]


def test_a_uuid_drawn_anew_by_the_store_reaches_the_object(db, monkeypatch):
    taken = "12345678-0000-4000-8000-000000000000"
    first, second = BalsamJob(name="a", job_id=taken), BalsamJob(name="b")
    drawn_first = taken.replace("0000-4", "0001-4")
    with monkeypatch.context() as patch:
        patch.setattr(field_specs, "new_job_id", lambda: drawn_first)
        assert second.job_id[:8] == "12345678"
    BalsamJob.objects.bulk_create([first, BalsamJob(name="x"), second])
    assert first.job_id == taken
    assert second.job_id[:8] != "12345678"
    for job in (first, second):
        assert seen(db, "SELECT job_id, workdir FROM job WHERE id = ?", job.id) == [(job.job_id, f"{job.name}_{job.pk[:8]}")]
        assert job.working_directory.endswith(f"_{job.pk[:8]}")


def test_jobs_beyond_the_chunks_in_memory_come_out_of_the_file_as_they_went_in(db):
    number = 2 * insert._CHUNK + 1500
    created = BalsamJob.objects.bulk_create({"name": f"ä{i}", "gpus_per_rank": i / 7} for i in range(number))
    assert created.count() == number
    assert seen(db, "SELECT name, gpus_per_rank FROM job ORDER BY id DESC LIMIT 1") == [(f"ä{number - 1}", (number - 1) / 7)]


def test_a_dict_may_name_its_parents(db):
    (a,) = add("a")
    BalsamJob.objects.bulk_create([{"name": "b", "parents": [a]}, {"name": "c", "parents": [a.id]}])
    assert seen(db, "SELECT name, state FROM job WHERE id > 1") == [("b", "AWAITING_PARENTS"), ("c", "AWAITING_PARENTS")]


def test_names_given_as_paths_are_text_everywhere(db):
    BalsamJob.objects.bulk_create([{"name": Path("in/put"), "workflow": Path("w")}])
    job = BalsamJob(name=Path("x"))
    job.save()
    assert seen(db, "SELECT name, substr(workdir, 1, 8) FROM job") == [("in/put", "w/in_put"), ("x", f"x_{job.pk[:6]}")]


def test_jobs_added_in_a_batch_know_what_the_store_has_filled_in(db):
    a, b = BalsamJob(name="a"), BalsamJob(name="b")
    a.save()
    b._parents = (a.id,)
    BalsamJob.objects.bulk_create([b])
    assert (a.state, b.state, b.unfinished_parents) == ("CREATED", "AWAITING_PARENTS", 1)
    assert a.created <= b.created
    assert b.workdir == f"b_{b.pk[:8]}"


# --- query sets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def five(db):
    return BalsamJob.objects.bulk_create(
        [
            {"name": "a1", "workflow": "w1", "num_nodes": 4, "data": {"x": 1, "n": {"y": [5, 6]}}, "priority": 2},
            {"name": "a2", "workflow": "w1", "num_nodes": 2, "data": {"x": "1"}, "tags": {"k": "10"}},
            {"name": "B3", "workflow": "w2", "num_nodes": 8, "data": {"x": None, "f": True}, "tags": {"k": "9", "a b": "c"}},
            {"name": "b_4%", "workflow": "w2", "num_nodes": 1, "environ_vars": {"PATH": "/a:/b", "OMP_NUM_THREADS": "16"}},
            {"name": "É5'\"", "workflow": "w1%", "num_nodes": 1, "wait_for_parents": False},
        ]
    )


def test_chaining_makes_new_query_sets_and_leaves_the_old_ones(five):
    every = BalsamJob.objects.all()
    some = every.filter(workflow="w1")
    fewer = some.filter(num_nodes__gt=2)
    assert (every.count(), some.count(), fewer.count()) == (5, 2, 1)
    assert names(BalsamJob.objects.exclude(workflow="w1").filter(num_nodes=1)) == ["b_4%", "É5'\""]
    assert list(BalsamJob.objects.none()) == []
    assert BalsamJob.objects.none().filter(name="a1").count() == 0
    assert BalsamJob.objects.none().update(args="x") == 0
    assert not BalsamJob.objects.none()


def test_a_query_set_asks_once_and_when_it_is_first_needed(five, db, monkeypatch):
    found = BalsamJob.objects.filter(name__startswith="a")
    add("a9")
    assert len(found) == 3
    monkeypatch.setattr(Database, "read", None)
    assert names(found) == ["a1", "a2", "a9"]
    assert (found[1].name, names(found[1:]), found.count(), bool(found)) == ("a2", ["a2", "a9"], 3, True)


def test_order_slices_and_ends_are_right(five):
    by_size = BalsamJob.objects.order_by("-num_nodes", "name")
    assert names(by_size) == ["B3", "a1", "a2", "b_4%", "É5'\""]
    assert (by_size.first().name, by_size.last().name, by_size[1].name, by_size[-2].name) == ("B3", "É5'\"", "a1", "b_4%")
    assert names(by_size[1:3]) == ["a1", "a2"]
    assert names(by_size[1:4][1:]) == ["a2", "b_4%"]
    assert names(by_size[:-3]) == ["B3", "a1"]
    assert names(by_size[::2]) == ["B3", "a2", "É5'\""]
    assert names(by_size[::-1]) == names(by_size)[::-1]
    assert (by_size[1:3].count(), by_size[4:9].count(), by_size[9:].exists(), by_size[3:3].count()) == (2, 1, False, 0)
    assert names(by_size[:3].filter(num_nodes__lt=8)) == ["a1", "a2"]
    assert by_size[1:3].last().name == "a2"
    assert names(by_size.reverse())[0] == "É5'\""
    assert BalsamJob.objects.filter(name="x").first() is None
    with pytest.raises(IndexError):
        by_size[5]
    with pytest.raises(UnknownField, match="num_nodes"):
        BalsamJob.objects.order_by("-num_node")


def test_a_slice_can_be_updated(five, db):
    assert BalsamJob.objects.order_by("num_nodes")[:2].update(description="small") == 2
    assert seen(db, "SELECT name FROM job WHERE description = 'small'") == [("b_4%",), ("É5'\"",)]


def test_get_wants_exactly_one(five):
    assert BalsamJob.objects.get(name="B3").num_nodes == 8
    with pytest.raises(BalsamJob.DoesNotExist, match="nosuch"):
        BalsamJob.objects.get(name="nosuch")
    with pytest.raises(BalsamJob.MultipleObjectsReturned):
        BalsamJob.objects.get(workflow="w1")
    assert (BalsamJob.DoesNotExist, BalsamJob.MultipleObjectsReturned) == (UnknownJob, AmbiguousJobId)


def test_values_give_python_values(five):
    assert list(BalsamJob.objects.values_list("name", "num_nodes")[:2]) == [("a1", 4), ("a2", 2)]
    assert list(BalsamJob.objects.values_list("name", flat=True).order_by("-name")[:1]) == ["É5'\""]
    assert list(BalsamJob.objects.filter(name="B3").values("data", "wait_for_parents", "data__f", "tags__a b")) == [
        {"data": {"x": None, "f": True}, "wait_for_parents": True, "data__f": 1, "tags__a b": "c"}
    ]
    assert list(BalsamJob.objects.order_by("data__n__y__0").values_list("data__n", flat=True))[-1] == {"y": [5, 6]}
    assert set(BalsamJob.objects.values()[0]) == set(queries.JOB_COLUMNS)
    assert list(BalsamJob.objects.values_list("workflow", flat=True).distinct()) == ["w1", "w1%", "w2"]
    assert BalsamJob.objects.values_list("workflow", flat=True).distinct().count() == 3
    assert BalsamJob.objects.distinct().count() == len(BalsamJob.objects.distinct()) == BalsamJob.objects.count()
    with pytest.raises(UnknownField):
        BalsamJob.objects.values("nme")
    with pytest.raises(UnknownField):
        BalsamJob.objects.values("name__contains")


@pytest.mark.parametrize(
    ("lookup", "value", "expected"),
    [
        ("name", "a1", "a1"), ("name__exact", "A1", ""), ("name__iexact", "A1", "a1"), ("name__ne", "a1", "a2 B3 b_4% É5'\""),
        ("name__contains", "b", "b_4%"), ("name__icontains", "b", "B3 b_4%"), ("name__contains", "%", "b_4%"),
        ("name__contains", "_", "b_4%"), ("name__contains", "'", "É5'\""), ("name__contains", '"', "É5'\""),
        ("name__contains", "", "a1 a2 B3 b_4% É5'\""), ("name__contains", "é", ""), ("name__icontains", "é", "É5'\""),
        ("name__iexact", "é5'\"", "É5'\""), ("name__contains", "*", ""), ("name__contains", "x" * 100_000, ""),
        ("name__startswith", "a", "a1 a2"), ("name__startswith", "A", ""), ("name__istartswith", "A", "a1 a2"),
        ("name__startswith", "É", "É5'\""), ("name__startswith", "\ud7ff", ""), ("name__startswith", "\U0010ffff", ""),
        ("name__istartswith", "é", "É5'\""), ("workflow__startswith", "w1%", "É5'\""),
        ("name__startswith", "", "a1 a2 B3 b_4% É5'\""),
        ("name__endswith", "%", "b_4%"), ("name__endswith", "", "a1 a2 B3 b_4% É5'\""), ("name__iendswith", "B3", "B3"),
        ("name__regex", r"^[ab]\d$", "a1 a2"), ("name__iregex", r"^[ab]\d$", "a1 a2 B3"),
        ("name__in", ["a1", "É5'\"", "x"], "a1 É5'\""), ("name__in", {"a1"}, "a1"), ("name__in", [], ""),
        ("num_nodes__lt", 2, "b_4% É5'\""), ("num_nodes__lte", 2, "a2 b_4% É5'\""), ("num_nodes__gt", "4", "B3"),
        ("num_nodes__gte", 4.0, "a1 B3"), ("num_nodes__range", (2, 4), "a1 a2"), ("num_nodes__in", range(3, 9), "a1 B3"),
        ("num_nodes__lt", 10**30, "a1 a2 B3 b_4% É5'\""), ("num_nodes__in", [10**30, float("nan")], ""),
        ("num_nodes__contains", "8", "B3"), ("wait_for_parents", False, "É5'\""), ("wait_for_parents", "no", "É5'\""),
        ("wait_for_parents__in", [False], "É5'\""), ("return_code", None, "a1 a2 B3 b_4% É5'\""),
        ("return_code__isnull", False, ""), ("return_code__ne", 0, "a1 a2 B3 b_4% É5'\""),
        ("return_code__in", [None, 3], "a1 a2 B3 b_4% É5'\""),
        ("lock", "", "a1 a2 B3 b_4% É5'\""), ("lock__ne", "", ""), ("lease__isnull", True, "a1 a2 B3 b_4% É5'\""),
        ("data__x", 1, "a1"), ("data__x", "1", "a2"), ("data__x__gte", 0, "a1"), ("data__x__lte", "2", "a2"),
        ("data__x__isnull", False, "a1 a2"), ("data__x", None, "B3 b_4% É5'\""), ("data__f", True, "B3"),
        ("data__n__y__1", 6, "a1"), ("data__n__y", [5, 6], "a1"), ("data__n", {"y": [5, 6]}, "a1"),
        ("data__x__in", [1, "1"], "a1 a2"),
        ("data", {}, "b_4% É5'\""), ("data__contains", {"x": 1}, "a1"), ("data__contains", '"n"', "a1"),
        ('data__"odd\\', 1, ""), ("data__n__it's", 1, ""), ("data__x__deeper", 1, ""),
        ("tags__k", "10", "a2"), ("tags__k", 10, "a2"), ("tags__k__gte", 9, "a2 B3"), ("tags__k__in", ["9"], "B3"),
        ("tags__a b", "c", "B3"), ("tags__k__isnull", True, "a1 b_4% É5'\""), ("tags__k__ne", "9", "a1 a2 b_4% É5'\""),
        ("tags__contains", {"k": "9", "a b": "c"}, "B3"), ("environ_vars__PATH", "/a:/b", "b_4%"),
        ("environ_vars__OMP_NUM_THREADS__lte", 16, "b_4%"), ("environ_vars__OMP_NUM_THREADS", 16, "b_4%"),
        ("environ_vars", "", "a1 a2 B3 É5'\""),
        ("state", "CREATED", "a1 a2 B3 b_4% É5'\""), ("state__in", ("READY", "FAILED"), ""), ("state__startswith", "RUN", ""),
        ("id__lte", 2, "a1 a2"), ("pk", 3, "B3"), ("pk__in", [3, 4], "B3 b_4%"),
    ],
)  # fmt: skip
def test_lookups_find_what_they_say(five, lookup, value, expected):
    assert names(BalsamJob.objects.filter(**{lookup: value})) == expected.split()
    others = [name for name in ("a1", "a2", "B3", "b_4%", "É5'\"") if name not in expected.split()]
    assert names(BalsamJob.objects.exclude(**{lookup: value})) == others


def test_ids_are_found_as_text_uuid_object_and_prefix(five):
    job = BalsamJob.objects.get(name="B3")
    for value in (job.pk, uuid.UUID(job.pk), job.pk.upper(), job):
        assert BalsamJob.objects.get(pk=value) == BalsamJob.objects.get(job_id=value) == job
    assert BalsamJob.objects.get(job_id__startswith=job.pk[:6]) == job
    assert BalsamJob.objects.get(job_id__startswith=job.pk[:20]) == job
    assert names(BalsamJob.objects.filter(pk__in=(uuid.UUID(one.pk) for one in five[2:4]))) == ["B3", "b_4%"]
    assert names(BalsamJob.objects.filter(pk__in=five[:2])) == ["a1", "a2"]
    assert names(BalsamJob.objects.filter(id__in=BalsamJob.objects.filter(num_nodes=1).values_list("id", flat=True))) == [
        "b_4%", "É5'\""]  # fmt: skip
    assert BalsamJob.objects.filter(pk="nonsense").count() == 0


def test_times_are_compared_with_the_creation(five):
    now = datetime.now(timezone.utc)
    assert BalsamJob.objects.filter(created__lte=now, created__gt=now - timedelta(hours=1)).count() == 5
    assert BalsamJob.objects.filter(created__gt=(now + timedelta(hours=1)).replace(tzinfo=None)).count() == 0
    assert BalsamJob.objects.filter(created__gte=now.date()).count() in (0, 5)
    assert BalsamJob.objects.filter(created__gte=(now - timedelta(days=1)).date()).count() == 5


def test_a_hundred_thousand_values_can_be_asked_for(five):
    assert names(BalsamJob.objects.filter(num_nodes__in=range(2, 100_002))) == ["a1", "a2", "B3"]
    many = [str(uuid.uuid4()) for _ in range(100_000)]
    assert BalsamJob.objects.filter(job_id__in=[*many, five[0].pk]).get().name == "a1"


@pytest.mark.parametrize(
    ("lookup", "value", "error", "word"),
    [
        ("nam", "a", UnknownField, "name"), ("name__containz", "a", UnknownField, "contains"),
        ("name__exact__in", "a", UnknownField, "lookup"),
        ("state", "NOPE", InvalidStateError, "NOPE"), ("state__in", ["FAILD"], InvalidStateError, "FAILED"),
        ("name__in", "abc", InvalidSpec, "list"), ("name__regex", "(", InvalidSpec, "regular"),
        ("num_nodes__gt", "many", InvalidSpec, "many"),
        ("num_nodes", ["x"], InvalidSpec, "number"), ("name", {"a": 1}, InvalidSpec, "Text"),
        ("name", "\ud800", InvalidSpec, "Unicode"),
        ("wait_for_parents", "maybe", InvalidSpec, "True"), ("name__contains", None, InvalidSpec, "None"),
    ],
)  # fmt: skip
def test_a_lookup_without_a_meaning_is_refused(db, lookup, value, error, word):
    with pytest.raises(error, match=word) as caught:
        BalsamJob.objects.filter(**{lookup: value})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("access", ["local"])
@pytest.mark.parametrize(
    ("conditions", "index"),
    [
        ({"pk": str(uuid.uuid4())}, "job_short_id"), ({"pk__in": [uuid.uuid4()]}, "job_short_id"),
        ({"job_id__startswith": "ab"}, "job_short_id"), ({"state": "FAILED"}, "job_state"),
        ({"state__in": ["FAILED"]}, "job_state"),
        ({"workflow": "w"}, "job_workflow"), ({"workflow__startswith": "w"}, "job_workflow"), ({"id__in": [3]}, "PRIMARY KEY"),
        ({"queued_launch__scheduler_id": "3"}, "job_queued_launch"), ({"tags__k": "v"}, "job_tag"),
        ({"tags__k__startswith": "v"}, "job_tag"),
        ({"id__range": (3, 4)}, "PRIMARY KEY"),
    ],
)  # fmt: skip
def test_these_lookups_use_an_index(db, conditions, index):
    sql, parameters = BalsamJob.objects.filter(**conditions)._select([SQL("job.name")]).sql()
    plan = seen(db, f"EXPLAIN QUERY PLAN {sql}", *parameters)
    assert any(index in row[3] for row in plan), plan


def test_update_changes_all_or_nothing(five, db):
    assert BalsamJob.objects.filter(workflow="w1").update(num_nodes=16, tags={"t": "1"}, application="fhi-aims") == 2
    assert seen(db, "SELECT count(*) FROM job WHERE num_nodes = 16 AND application = 'fhi-aims'") == [(2,)]
    for fields, error in (
        ({"num_nodes": 3, "nosuch": 1}, UnknownField), ({"num_nodes": 0}, InvalidSpec),
        ({"num_nodes": 3, "state": "NOPE"}, InvalidStateError),
        ({"num_nodes": 3, "state": "RUNNING"}, StateError), ({"application": "nosuch"}, UnknownApp), ({}, InvalidSpec),
        ({"lock": ""}, InvalidSpec),
    ):  # fmt: skip
        with pytest.raises(error):
            BalsamJob.objects.update(**fields)
    assert seen(db, "SELECT count(*) FROM job WHERE num_nodes = 3") == [(0,)]
    assert seen(db, "SELECT count(*) FROM event") == [(0,)]


def test_a_job_held_by_a_launcher_keeps_its_state(five, db):
    with db.write() as cx:
        cx.execute(
            "INSERT INTO lease (kind, host, pid_namespace, pid, started, opened, heartbeat)"
            " VALUES ('launcher', 'nid1', '', 7, '', 1, 1)"
        )
        cx.execute("UPDATE job SET lease = 1, state = 'RUNNING' WHERE name = 'B3'")
    with pytest.raises(StateError):
        BalsamJob.objects.update(state="RESTART_READY", description="x")
    assert seen(db, "SELECT count(*) FROM job WHERE description = 'x' OR state = 'RESTART_READY'") == [(0,)]
    assert BalsamJob.objects.get(name="B3").lock == "nid1:7"
    assert names(BalsamJob.objects.exclude(lock="")) == names(BalsamJob.objects.filter(lock__startswith="nid1:")) == ["B3"]


def test_a_finished_parent_by_update_promotes_its_children(db):
    a, b = add("a", "b")
    b.set_parents([a])
    assert BalsamJob.objects.filter(name="a").update(state="JOB_FINISHED") == 1
    assert seen(db, "SELECT state FROM job WHERE name = 'b'") == [("READY",)]


def test_update_counts_jobs_that_were_in_that_state_already(five):
    assert BalsamJob.objects.update(state="CREATED") == 5


def test_delete_removes_what_matches(five, db):
    assert BalsamJob.objects.filter(workflow="w1").delete() == 2
    assert seen(db, "SELECT name FROM job ORDER BY id") == [("B3",), ("b_4%",), ("É5'\"",)]
    assert BalsamJob.objects.filter(workflow="w1").delete() == 0


def test_create_and_get_or_create_add_once(db):
    job = BalsamJob.objects.create(name="a", num_nodes=2)
    again, added = BalsamJob.objects.get_or_create(name="a", defaults={"num_nodes": 5})
    assert (again, again.num_nodes, added) == (job, 2, False)
    new, added = BalsamJob.objects.get_or_create(name="b", num_nodes__gte=5, defaults={"num_nodes": 5})
    assert (new.num_nodes, added) == (5, True)
    assert seen(db, "SELECT count(*) FROM job") == [(2,)]


def test_iterator_pages_and_lets_the_loop_write(five, db):
    order = []
    for job in BalsamJob.objects.order_by("-num_nodes").iterator(chunk_size=2):
        order.append(job.name)
        job.description = "seen"
        job.save()
        if job.name == "B3":
            BalsamJob.objects.filter(name="b_4%").delete()
    assert order == ["B3", "a1", "a2", "É5'\""]
    assert seen(db, "SELECT count(*) FROM job WHERE description = 'seen'") == [(4,)]
    assert list(BalsamJob.objects.values_list("name", flat=True)[1:3].iterator(1)) == ["a2", "B3"]
    assert list(BalsamJob.objects.values_list("workflow", flat=True).distinct().iterator()) == ["w1", "w1%", "w2"]


def test_a_query_set_prints_short(five):
    assert repr(BalsamJob.objects.filter(name="a1")) == f"<QuerySet [{five[0].cute_id}]>"
    add(*(f"x{i}" for i in range(30)))
    assert repr(BalsamJob.objects.all()).endswith(", …]>")


def test_batch_update_leaves_killed_jobs_alone(five, db):
    five[0].update_state("USER_KILLED")
    assert BalsamJob.batch_update_state([job.pk for job in five], "RESTART_READY", "all") == 4
    assert seen(db, "SELECT name FROM job WHERE state = 'USER_KILLED'") == [("a1",)]


# --- applications -----------------------------------------------------------------------------------------------------


def test_applications_are_added_changed_found_and_removed(db):
    app = ApplicationDefinition(name="new", executable="true")
    app.save()
    app.description = "d"
    app.save()
    assert seen(db, "SELECT description FROM app WHERE name = 'new'") == [("d",)]
    assert ApplicationDefinition.objects.get(name="new") == app
    assert ApplicationDefinition.objects.filter(executable__startswith="echo").count() == 2
    assert ApplicationDefinition.objects.filter(pk=app.pk).update(executable="false") == 1
    app.refresh_from_db()
    assert app.executable == "false"
    BalsamJob.objects.create(name="renamed", application="new")
    app.name = "newer"
    app.save()
    assert seen(db, "SELECT application FROM job WHERE name = 'renamed'") == [("newer",)]
    app.name = "new"
    app.save()
    with pytest.raises(DuplicateApp):
        ApplicationDefinition.objects.create(name="new", executable="x")
    with pytest.raises(UnknownField, match="executable"):
        ApplicationDefinition(name="x", executabl="y")
    with pytest.raises(ApplicationDefinition.DoesNotExist):
        ApplicationDefinition.objects.get(name="nosuch")
    with pytest.raises(ApplicationDefinition.MultipleObjectsReturned):
        ApplicationDefinition.objects.get(executable__startswith="echo")
    with pytest.raises(AttributeError):
        app.objects  # noqa: B018
    app.delete()
    assert seen(db, "SELECT count(*) FROM app") == [(2,)]
    app.description = "too late"
    with pytest.raises(UnknownApp):
        app.save()
    assert ApplicationDefinition.objects.all().delete() == 2
    assert ApplicationDefinition.objects.all().delete() == 0


def test_a_job_gets_its_application_as_it_is_now(db):
    job = BalsamJob.objects.create(name="a", application="say-hello")
    ApplicationDefinition.objects.filter(name="say-hello").update(executable="date")
    assert job.get_application().executable == "date"
    assert repr(job.get_application()) == (
        "Application 1:\n-----------------------\nName:          say-hello\nDescription:\n"
        "Executable:    date\nPreprocess:\nPostprocess:"
    )
    ApplicationDefinition.objects.filter(name="say-hello").delete()
    with pytest.raises(UnknownApp, match="fhi-aims"):
        job.get_application()
    assert "NO APPLICATION MATCHING say-hello" in repr(job)


# --- which DB, threads, forks -----------------------------------------------------------------------------------------


def test_the_active_db_is_found_at_first_use(db, tmp_path, monkeypatch, access):
    other = directories.create(str(tmp_path / "other"), access)
    add("in-db")
    from balsam_lite.db import manager

    with monkeypatch.context() as patch:
        patch.setattr(manager, "_chosen", [])
        patch.chdir(tmp_path)
        with pytest.raises(NoDatabase):
            BalsamJob.objects.count()
        patch.setenv("BALSAM_DB_PATH", str(tmp_path / "db"))
        assert names(BalsamJob.objects.all()) == ["in-db"]
        assert manager.active() is manager.active()
        patch.setenv("BALSAM_DB_PATH", other.directory)
        assert BalsamJob.objects.count() == 0


def test_an_object_stays_with_the_db_it_came_from(db, tmp_path, access):
    job = BalsamJob.objects.create(name="a")
    elsewhere = directories.create(str(tmp_path / "other"), access)
    with use(elsewhere):
        assert BalsamJob.objects.using(db).get() == job
        assert BalsamJob.objects.count() == 0
        job.description = "d"
        job.save()
        job.refresh_from_db()
        job.update_state("FAILED")
    assert seen(db, "SELECT description, state FROM job") == [("d", "FAILED")]


def test_threads_save_different_fields_of_one_job(db):
    add("a")
    fields = ["args", "description", "stage_out_files", "input_files"]
    errors = []

    def edit(field):
        try:
            for turn in range(5):
                job = BalsamJob.objects.get()
                setattr(job, field, f"{field}{turn}")
                job.save()
        except BaseException as exc:  # noqa: BLE001
            errors.append(exc)

    threads = [threading.Thread(target=edit, args=(field,)) for field in fields]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert seen(db, f"SELECT {', '.join(fields)} FROM job") == [tuple(f"{field}4" for field in fields)]


def _add_in_child(number):
    BalsamJob.objects.bulk_create([BalsamJob(name=f"child{number}-{i}") for i in range(20)])
    os._exit(0 if BalsamJob.objects.filter(name__startswith=f"child{number}-").count() == 20 else 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_threads_save_different_keys_of_one_dict(db):
    add("a")

    def work(number):
        for n in range(10):
            job = BalsamJob.objects.get(name="a")
            job.data[f"{number}-{n}"] = n
            job.save()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(json.loads(seen(db, "SELECT data FROM job")[0][0])) == 40


def test_forked_processes_go_on_with_the_same_models(db):
    add("parent")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_add_in_child, args=(number,)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert BalsamJob.objects.count() == 61
    ids = [row[0] for row in seen(db, "SELECT job_id FROM job")]
    assert len({job_id[:8] for job_id in ids}) == 61


def test_writes_inside_an_open_transaction_join_it(db):
    def add_and_fail():
        with db.write():
            add("a")
            BalsamJob.objects.update(state="FAILED")
            assert BalsamJob.objects.get().state == "FAILED"
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        add_and_fail()
    assert seen(db, "SELECT count(*) FROM job") == [(0,)]


@pytest.mark.parametrize("access", ["local"])
def test_peewee_never_opens_the_database(db):
    add("a")
    with pytest.raises(Exception, match="database"):
        BalsamJob.objects.all()._select([SQL("1")]).execute()


@pytest.mark.parametrize("access", ["local"])
def test_every_state_can_be_asked_for(db):
    assert [BalsamJob.objects.filter(state=state).count() for state in states.STATES] == [0] * 14
    with pytest.raises(InputError):
        BalsamJob.objects.filter(state__ne="X")


@pytest.mark.parametrize("codes", [75, "x", [None], 1.5, "999"])
def test_retry_codes_that_are_none_are_refused_with_the_fields_name(codes: object) -> None:
    with pytest.raises(InvalidSpec, match="retry_codes"):
        field_specs.check_job({"retry_codes": codes})
