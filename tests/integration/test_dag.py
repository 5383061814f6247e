"""`balsam_lite.launcher.dag`, as scripts and hooks use it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid

import pytest
from helpers import ROOT

from balsam_lite.core.errors import (
    AmbiguousJobId,
    DependencyCycle,
    DuplicateDependency,
    InputError,
    InvalidSpec,
    NotFound,
    StateError,
    UnknownApp,
    UnknownField,
    UnknownJob,
)
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.store import apps, batch_jobs
from balsam_lite.launcher import dag

ROOT = str(ROOT)


@pytest.fixture(params=["local", "shared"])
def access(request):
    return request.param


@pytest.fixture
def db(tmp_path, monkeypatch, access):
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    for variable in list(os.environ):
        if variable.startswith("BALSAM_") and variable != "BALSAM_HOME":
            monkeypatch.delenv(variable)
    database = directories.create(str(tmp_path / "db"), access)
    with database.write() as cx:
        for name in ("generate", "simulate", "reduce", "say-hello"):
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


def edges(db: Database) -> list[str]:
    sql = """SELECT p.name || c.name FROM dependency JOIN job p ON p.id = parent JOIN job c ON c.id = child ORDER BY 1"""
    return [row[0] for row in seen(db, sql)]


def run_as(db: Database, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """What a program of a job does with `dag`."""
    here = {name: value for name, value in os.environ.items() if not name.startswith("BALSAM_")}
    environ = {**here, "PYTHONPATH": ROOT, "BALSAM_DB_PATH": db.directory, **environ}
    return subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)


# --- adding -----------------------------------------------------------------------------------------------------------


def test_the_slides_diamond_is_built(db):
    from balsam_lite.launcher.dag import (  # noqa: I001
        add_job, add_dependency)  # fmt: skip

    A = add_job(name="A", application="generate")
    B,C,D = [
        add_job(
            name=name,
            application="simulate",
            input_files=name+".inp"
        )
        for name in "BCD"
    ]  # fmt: skip
    E = add_job(name="E", application="reduce", input_files="*.out")

    for job in B,C,D:  # fmt: skip
        add_dependency(A, job)
        add_dependency(job, E)

    assert edges(db) == ["AB", "AC", "AD", "BE", "CE", "DE"]
    assert seen(db, "SELECT name, state, input_files FROM job ORDER BY name") == [
        ("A", "CREATED", "*"), ("B", "AWAITING_PARENTS", "B.inp"), ("C", "AWAITING_PARENTS", "C.inp"),
        ("D", "AWAITING_PARENTS", "D.inp"), ("E", "AWAITING_PARENTS", "*.out")]  # fmt: skip
    assert E.state == "AWAITING_PARENTS"


def test_the_slides_tasks_are_added(db):
    jobs = [
        dag.add_job(name=f'task{i}',
                    application='say-hello',
                    args=f'world {i}!'
                    )
        for i in range(10)
    ]  # fmt: skip
    assert [job.app_cmd for job in jobs[:2]] == ["echo say-hello world 0!", "echo say-hello world 1!"]
    assert seen(db, "SELECT count(*) FROM job WHERE workflow = ''") == [(10,)]


def test_the_legacy_order_of_arguments_holds(db):
    job = dag.add_job("n", "w", "simulate", "d", "-x", 2, 3, "depth", 4, 5, {"A": "b:c"}, {"k": [1]}, True)
    columns = (
        "name, workflow, application, description, args, num_nodes, ranks_per_node, cpu_affinity, threads_per_rank,"
        " threads_per_core, environ_vars, data"
    )
    assert seen(db, f"SELECT {columns} FROM job WHERE job_id = ?", job.pk) == [
        ("n", "w", "simulate", "d", "-x", 2, 3, "depth", 4, 5, '{"A": "b:c"}', '{"k": [1]}')
    ]


def test_a_plain_job_has_the_defaults_of_every_field(db):
    by_dag, by_hand = dag.add_job("n", application="simulate"), BalsamJob(name="n", application="simulate")
    by_hand.save()
    unlike = {"id", "job_id", "workdir", "created", "start_after"}
    ours, theirs = by_dag.to_dict(), by_hand.to_dict()
    assert {key for key in ours if ours[key] != theirs[key]} == unlike
    assert seen(db, "SELECT DISTINCT environ_vars, data FROM job") == [("{}", "{}")]


@pytest.mark.parametrize(
    ("fields", "error", "word"),
    [
        ({"wall_time_minute": 5}, UnknownField, "wall_time_minutes"), ({"procs_per_node": 4}, UnknownField, "procs_per_node"),
        ({"num_nodes": 0}, InvalidSpec, "num_nodes"), ({"environ_vars": "nonsense"}, InvalidSpec, "environ_vars"),
        ({"application": "simulat"}, UnknownApp, "simulate"), ({"application": ""}, UnknownApp, "Registered are"),
        ({"state": "READY"}, InvalidSpec, "state"), ({"parents": ["abc"]}, UnknownJob, "abc"),
        ({"parents": [99]}, UnknownJob, "99"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("save", [True, False])
def test_a_job_that_makes_no_sense_is_refused_at_once(db, fields, error, word, save):
    with pytest.raises(error, match=word):
        dag.add_job(**{"name": "n", "application": "simulate", **fields}, save=save)
    assert seen(db, "SELECT count(*) FROM job") == [(0,)]


def test_a_job_can_be_made_now_and_saved_later(db):
    parent = dag.add_job("p", application="generate")
    job = dag.add_job("n", application="simulate", save=False, parents=[parent])
    assert seen(db, "SELECT count(*) FROM job") == [(1,)]
    job.save()
    assert edges(db) == ["pn"]
    assert job.state == "AWAITING_PARENTS"


def test_a_child_never_exists_without_its_edges(db):
    a, b = (dag.add_job(name, application="generate") for name in "ab")
    child = dag.add_job("c", application="reduce", parents=[a, b.pk, uuid.UUID(a.pk), b.id, BalsamJob.objects.filter(name="a")])
    assert edges(db) == ["ac", "bc"]
    assert (child.state, child.unfinished_parents) == ("AWAITING_PARENTS", 2)
    assert seen(db, "SELECT unfinished_parents FROM job WHERE name = 'c'") == [(2,)]


# --- linking ----------------------------------------------------------------------------------------------------------


def test_jobs_are_named_by_object_uuid_text_prefix_number_and_query(db):
    jobs = [dag.add_job(name, application="simulate") for name in "abcdef"]
    parent = jobs[0]
    forms = [jobs[1], uuid.UUID(jobs[2].pk), jobs[3].pk.upper(), jobs[4].pk[:8], BalsamJob.objects.filter(name="f")]
    for child in forms:
        dag.add_dependency(parent, child)
    assert edges(db) == ["ab", "ac", "ad", "ae", "af"]
    assert jobs[1].state == "AWAITING_PARENTS"


def test_a_bad_dependency_is_refused_and_leaves_nothing(db):
    a, b, c = (dag.add_job(name, application="simulate") for name in "abc")
    dag.add_dependency(a, b)
    dag.add_dependency(b, c)
    unsaved = dag.add_job("x", application="simulate", save=False)
    gone = dag.add_job("y", application="simulate")
    BalsamJob.objects.filter(name="y").delete()
    every, none = BalsamJob.objects.all(), BalsamJob.objects.filter(name="nosuch")
    for parent, child, error in (
        (a, b, DuplicateDependency), (c, a, DependencyCycle), (a, a, DependencyCycle), (a, unsaved, UnknownJob),
        (gone, a, UnknownJob),
        (a, gone, UnknownJob), (every, a, AmbiguousJobId), (none, a, UnknownJob), ("", a, UnknownJob),
        (str(uuid.uuid4()), a, UnknownJob),
    ):  # fmt: skip
        with pytest.raises(error):
            dag.add_dependency(parent, child)
    a.update_state("JOB_FINISHED")
    with pytest.raises(StateError, match="started"):
        dag.add_dependency(dag.add_job("z", application="simulate"), a)
    assert edges(db) == ["ab", "bc"]


def test_jobs_of_two_dbs_are_not_linked(db, tmp_path, access):
    a = dag.add_job("a", application="simulate")
    other = directories.create(str(tmp_path / "other"), access)
    with use(other):
        b = BalsamJob.objects.create(name="b")
        with pytest.raises(InputError, match="other"):
            dag.add_dependency(a, b)
        dag.kill(a)
    assert seen(db, "SELECT state FROM job") == [("USER_KILLED",)]


def test_concurrent_dependencies_lose_no_edge(db):
    parents = [dag.add_job(f"p{i}", application="simulate") for i in range(8)]
    child = dag.add_job("c", application="reduce")
    threads = [threading.Thread(target=dag.add_dependency, args=(parent, child.pk)) for parent in parents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert edges(db) == [f"p{i}c" for i in range(8)]
    assert seen(db, "SELECT unfinished_parents FROM job WHERE name = 'c'") == [(8,)]


def test_kill_takes_the_jobs_below_along_unless_told_not_to(db):
    a, b, c, d, e = (dag.add_job(name, application="simulate") for name in "abcde")
    for parent, child in ((a, b), (b, c), (d, e)):
        dag.add_dependency(parent, child)
    assert dag.kill(a) == 3
    assert a.state == "USER_KILLED"
    assert dag.kill(d.pk[:8], recursive=False) == 1
    assert dag.kill(a) == 0
    assert seen(db, "SELECT name, state FROM job ORDER BY name") == [
        ("a", "USER_KILLED"), ("b", "USER_KILLED"), ("c", "USER_KILLED"), ("d", "USER_KILLED"), ("e", "FAILED")]  # fmt: skip
    with pytest.raises(UnknownJob):
        dag.kill("0123")


# --- applications -----------------------------------------------------------------------------------------------------


def test_add_app_registers_and_overwrites(db, capsys):
    app = dag.add_app("new", "echo 1", description="d", preprocess="pre")
    again = dag.add_app("new", "echo 2", postprocess="post")
    assert capsys.readouterr().out == "Created new app\nUpdated existing app\n"
    assert again == app
    assert seen(db, "SELECT executable, description, preprocess, postprocess FROM app WHERE name = 'new'") == [
        ("echo 2", "", "", "post")
    ]
    with pytest.raises(NotFound, match="nosuch-program"):
        dag.add_app("x", "nosuch-program -v", checkexe=True)
    with pytest.raises(InvalidSpec):
        dag.add_app(" ", "true")
    dag.add_app("sh", "sh -c true", checkexe=True)
    assert seen(db, "SELECT count(*) FROM app WHERE name IN ('x', ' ')") == [(0,)]


# --- where the code runs ----------------------------------------------------------------------------------------------


def test_outside_of_a_job_there_is_no_current_one(db):
    assert (dag.current_job, dag.parents, dag.children) == (None, None, None)
    assert (dag.JOB_ID, dag.TIMEOUT, dag.ERROR, dag.LAUNCHER_NODES) == ("", False, False, 0)
    assert dag.BalsamJob is BalsamJob
    assert {"current_job", "add_job", "BalsamJob"} <= set(dir(dag))
    with pytest.raises(AttributeError, match="nosuch"):
        dag.nosuch  # noqa: B018


def test_a_job_sees_itself_its_relatives_and_why_it_was_called(db, monkeypatch):
    a, b = (dag.add_job(name, application="simulate") for name in "ab")
    c = dag.add_job("c", application="reduce", parents=[b])
    dag.add_dependency(a, b)
    for variable, value in (("JOB_ID", b.pk), ("JOB_TIMEOUT", "TRUE"), ("LAUNCHER_NODES", "4")):
        monkeypatch.setenv(f"BALSAM_{variable}", value)
    assert dag.current_job == b
    again = dag.current_job
    assert again is dag.current_job
    assert (list(dag.parents), list(dag.children)) == ([a], [c])
    found = (dag.JOB_ID, dag.TIMEOUT, dag.ERROR, dag.LAUNCHER_NODES)
    assert found == (b.pk, True, False, 4)
    monkeypatch.setenv("BALSAM_LAUNCHER_NODES", "four")
    with pytest.raises(InputError, match="four"):
        dag.LAUNCHER_NODES  # noqa: B018


def test_an_unknown_current_job_gets_advice(db, monkeypatch):
    monkeypatch.setenv("BALSAM_JOB_ID", str(uuid.uuid4()))
    for use_it in (lambda: dag.current_job, lambda: dag.add_job("a", application="simulate")):
        with pytest.raises(UnknownJob, match="unset BALSAM_JOB_ID"):
            use_it()
    assert seen(db, "SELECT count(*) FROM job") == [(0,)]


def test_a_hook_saves_its_notes_without_undoing_what_others_did(db):
    job = dag.add_job("a", application="simulate")
    code = """
from balsam_lite.launcher import dag
from balsam_lite.launcher.dag import current_job
from balsam_lite.db.store import user_actions
from balsam_lite.db.models import active
current_job.data["steps"] = 3
user_actions.set_state(active(), [current_job.id], "USER_KILLED")
user_actions.update_fields(active(), [current_job.id], {"args": "theirs"})
assert dag.current_job is current_job
current_job.save()
"""
    done = run_as(db, code, BALSAM_JOB_ID=job.pk)
    assert done.returncode == 0, done.stderr
    assert seen(db, "SELECT state, args, data FROM job") == [("USER_KILLED", "theirs", '{"steps": 3}')]


def test_jobs_added_by_a_running_job_share_its_reservation(db, monkeypatch):
    with db.write() as cx:
        first, second = (batch_jobs.add(cx, {"queue": "debug"}, 1) for _ in range(2))
    job = dag.add_job("a", application="simulate", queued_launch_id=first)
    monkeypatch.setenv("BALSAM_JOB_ID", job.pk)
    dag.add_job("b", application="simulate")
    dag.add_job("c", application="simulate", queued_launch=second)
    dag.add_job("d", application="simulate", queued_launch=None)
    assert seen(db, "SELECT name, queued_launch_id FROM job ORDER BY name") == [
        ("a", first), ("b", first), ("c", second), ("d", None)]  # fmt: skip


@pytest.mark.parametrize("access", ["local"])
def test_importing_works_anywhere_and_loads_little(db, tmp_path):
    code = """
import sys
from balsam_lite.launcher import dag
assert not {"peewee", "sqlite3", "click", "json"} & set(sys.modules), sys.modules.keys()
assert dag.JOB_ID == "nonsense"
try:
    dag.current_job
except Exception as exc:
    print(type(exc).__name__)
"""
    done = run_as(db, code, BALSAM_DB_PATH=str(tmp_path / "nosuch"), BALSAM_JOB_ID="nonsense")
    assert (done.returncode, done.stdout) == (0, "NotABalsamDB\n"), done.stderr
