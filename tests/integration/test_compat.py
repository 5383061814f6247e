"""`balsam_lite.compat`: programs for Balsam 0.3 and 0.7 find its modules, its models and Django's transactions here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, Balsam, db_with_app

from balsam_lite.compat import importer
from balsam_lite.compat import models as compat
from balsam_lite.compat.transaction import atomic, on_commit
from balsam_lite.core.errors import InputError, InvalidSpec, NotFound, StateError, UnknownField
from balsam_lite.db import models
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import journal
from balsam_lite.launcher import dag as native_dag


@pytest.fixture
def database(tmp_path: Path) -> Any:
    with db_with_app(tmp_path / "db") as made, models.use(made):
        yield made


def python(place: Path, *words: str, code: int = 0, **variables: str) -> str:
    """Run Python in `place`, and return stdout, or stderr if it is to fail."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "BALSAM_DB_PATH": str(place / "db"), **variables}
    done = subprocess.run([sys.executable, *words], cwd=place, env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stderr if code else done.stdout


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


# --- modules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(importer.MODULES))
def test_each_name_of_each_module_can_be_imported(tmp_path: Path, name: str) -> None:
    code = f"""
        import importlib, balsam_lite.compat
        module = importlib.import_module({name!r})
        for one in module.__all__:
            getattr(module, one)
            assert one in dir(module)
        print(len(module.__all__))
    """
    (tmp_path / "db").mkdir()
    printed = python(tmp_path, "-c", textwrap.dedent(code), BALSAM_DB_PATH="")
    assert (int(printed) > 0) is bool(importer.MODULES[name].module)


OF_03 = """
    from balsam import setup
    setup()
    import balsam.launcher.dag as dag
    from balsam.launcher import futures
    from balsam.launcher.dag import *
    from balsam.core.models import BalsamJob, END_STATES
    from balsam.service import models
    from django.db import connection, transaction
    from django.core.exceptions import ObjectDoesNotExist
    assert models.BalsamJob is BalsamJob is dag.BalsamJob
    connection.close()
    with transaction.atomic():
        add_job(name="x", application="a", procs_per_node=2)
    try:
        BalsamJob.objects.get(name="y")
    except ObjectDoesNotExist:
        print(BalsamJob.objects.get().ranks_per_node, END_STATES[0])
"""
OF_07 = """
    import balsam
    from balsam import util
    util.config_root_logger("ERROR")
    from balsam.api import Job, models, site_config, ApplicationDefinition
    from balsam.analytics import throughput_report
    from balsam.config import SiteConfig
    assert models.Job is Job and isinstance(site_config, SiteConfig)
    for _ in range(2):
        Job("same", app_id="a", num_nodes=None, transfers={}).save()
    print(len({job.workdir for job in Job.objects.all()}), throughput_report([]), balsam.__version__ != "")
"""


@pytest.mark.parametrize(("script", "printed"), [(OF_03, "2 JOB_FINISHED\n"), (OF_07, "1 ([], []) True\n")])
def test_a_script_runs_with_that_import_or_through_the_module(tmp_path: Path, script: str, printed: str) -> None:
    with db_with_app(tmp_path / "db"):
        pass
    path = write(tmp_path / "script.py", script)
    assert python(tmp_path, "-m", "balsam_lite.compat", str(path)) == printed
    path.write_text(f"import balsam_lite.compat\n{textwrap.dedent(script)}")
    with db_with_app(tmp_path / "db2"):
        pass
    assert python(tmp_path, str(path), BALSAM_DB_PATH=str(tmp_path / "db2")) == printed


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("from balsam.core.models import BalsamJop", "Did you mean 'BalsamJob'? It has: ACTIVE_STATES, "),
        ("import balsam.launcher.dax", "Did you mean 'dag'? It has: async, dag, futures"),
        ("import balsam.site.service", "balsam has no 'site'"),
        ("import balsam.launcher.dag as d; d.add_jop", "Did you mean 'add_job'?"),
        ("from django.contrib import auth", "Import it before balsam_lite.compat to use Django itself"),
    ],
)
def test_a_name_that_is_not_there_is_an_error_that_says_what_is(tmp_path: Path, line: str, words: str) -> None:
    assert words in python(tmp_path, "-c", f"import balsam_lite.compat; {line}", code=1)


def test_this_package_wins_over_another_balsam_unless_that_was_imported_first(tmp_path: Path) -> None:
    for name in ("balsam", "django"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("OTHER = True\n")
    (tmp_path / "django" / "db.py").write_text("transaction = 'real'\n")
    code = "import balsam_lite.compat, balsam.launcher.dag as d, balsam; print(hasattr(balsam, 'OTHER'), d.add_job.__module__)"
    assert python(tmp_path, "-c", code) == "False balsam_lite.compat.dag\n"
    wrong = python(tmp_path, "-c", "import balsam, balsam_lite.compat", code=1)
    assert "was imported before balsam_lite.compat" in wrong and str(tmp_path / "balsam") in wrong
    code = "import django, balsam_lite.compat; from django.db import transaction; print(transaction)"
    assert python(tmp_path, "-c", code) == "real\n"


def test_the_module_async_is_read_where_python_cannot(tmp_path: Path) -> None:
    write(tmp_path / "helper.py", "from balsam.launcher import async as tasks\nwait = tasks.wait\n")
    script = write(
        tmp_path / "script.py",
        "from balsam.launcher.async import wait\nimport helper, sys\nprint(wait is helper.wait, sys.argv[1:])\n",
    )
    assert python(tmp_path, "-m", "balsam_lite.compat", str(script), "-x", "1") == "True ['-x', '1']\n"
    assert python(tmp_path, "-m", "balsam_lite.compat", "-m", "helper") == ""
    code = "import balsam.launcher.async as a, sys; print(a.FutureTask.__name__, sys.argv)"
    assert python(tmp_path, "-m", "balsam_lite.compat", "-c", code, "x") == "FutureTask ['-c', 'x']\n"
    assert not list(tmp_path.glob("__pycache__/helper*"))
    assert (
        python(tmp_path, "-c", "import balsam_lite.compat, helper; print(helper.wait.__module__)")
        == "balsam_lite.launcher.futures\n"
    )


def test_the_runner_behaves_as_python_does(tmp_path: Path) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import os, sys, pickle
        class A: pass
        pickle.loads(pickle.dumps(A()))
        print(__name__, __file__, sys.argv, os.path.samefile(sys.path[0], os.path.dirname(__file__)))
        sys.exit(3)
        """,
    )
    done = subprocess.run(
        [sys.executable, "-m", "balsam_lite.compat", str(script), "a"], cwd=tmp_path.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == f"__main__ {script} {[str(script), 'a']} True\n"
    for words in ([], ["-x"], ["-m"], [str(tmp_path / "none.py")]):
        assert python(tmp_path, "-m", "balsam_lite.compat", *words, code=2)
    assert "usage" in python(tmp_path, "-m", "balsam_lite.compat", "--help")


# --- models -----------------------------------------------------------------------------------------------------------


def job(**fields: Any) -> compat.BalsamJob:
    made = compat.BalsamJob(**{"name": "j", "workflow": "w", "application": "a", **fields})
    made.save()
    return made


def test_ids_are_text_with_the_attributes_of_a_uuid(database: Database) -> None:
    made = job()
    from uuid import UUID

    assert made.job_id == made.pk == UUID(made.job_id) and made.job_id.hex == UUID(made.job_id).hex
    assert json.loads(json.dumps({"id": made.pk})) == {"id": str(made.job_id)}
    ids = compat.BalsamJob.objects.filter(job_id__in=[made.job_id.hex]).values_list("job_id", flat=True)
    assert [one.hex for one in ids] == [made.job_id.hex]
    assert compat.BalsamJob.objects.values("pk", "name")[0]["pk"].int == made.job_id.int
    assert compat.BalsamJob.objects.values_list("name", "job_id")[0][1].bytes == made.job_id.bytes
    assert not hasattr(made.job_id, "hexx")


def test_rows_have_the_names_that_were_asked_for(database: Database) -> None:
    job(application_args="x", procs_per_node=3)
    jobs = compat.BalsamJob.objects.order_by("-procs_per_node")
    assert list(jobs.values("procs_per_node", "args")) == [{"procs_per_node": 3, "args": "x"}]
    assert jobs.values("application_args").distinct().get() == {"application_args": "x"}
    names, rows = jobs.values("name", "application_args")._values(())
    assert [set(row) for row in rows] == [set(names)] == [{"name", "application_args"}]
    apps = compat.ApplicationDefinition.objects.order_by("default_preprocess").values("default_preprocess")
    assert {"default_preprocess": ""} in list(apps)


def test_a_part_of_an_id_names_no_parent(database: Database) -> None:
    with pytest.raises(InvalidSpec, match="whole id"):
        compat.BalsamJob.objects.filter(parents__contains=job().job_id[:8]).count()


def test_parents_are_text(database: Database) -> None:
    one, two = job(name="one"), job(name="two")
    child = job(name="child", parents=json.dumps([str(one.pk)]))
    assert json.loads(child.parents) == child.get_parents_by_id() == [one.job_id]
    assert json.loads(one.parents) == []
    child.parents = json.dumps([two.job_id.hex])
    assert json.loads(compat.BalsamJob.objects.get(name="child").parents) == [one.job_id]
    child.save()
    assert [parent.name for parent in compat.BalsamJob.objects.get(name="child").get_parents()] == ["two"]
    assert list(compat.BalsamJob.objects.filter(parents__icontains=str(two.pk))) == [child]
    assert list(compat.BalsamJob.objects.filter(parents__contains=one.pk)) == []
    with pytest.raises(ValueError, match="must be a list of ids"):
        child.parents = "one"


def test_save_writes_only_the_given_fields(database: Database) -> None:
    made = job(data={"a": 1})
    made.args, made.description = "x", "y"
    made.data["b"] = 2
    made.save(update_fields=["args"])
    stored = models.BalsamJob.objects.get(id=made.id)
    assert (stored.args, stored.description, stored.data) == ("x", "", {"a": 1})
    made.save()
    stored.refresh_from_db()
    assert (stored.description, stored.data) == ("y", {"a": 1, "b": 2})
    with pytest.raises(UnknownField, match="Did you mean 'args'"):
        made.save(update_fields=["argss"])


def test_save_changes_the_state_as_the_user_does(database: Database) -> None:
    made = job()
    made.state, made.args = "FAILED", "x"
    made.save()
    assert [made.state, made.args] == ["FAILED", "x"]
    stored = models.BalsamJob.objects.get(id=made.id)
    assert stored.state == "FAILED" and "FAILED]" in stored.state_history
    made.state = "CREATED"
    made.save(update_fields=["args"])
    stored.refresh_from_db()
    assert stored.state == "FAILED" and made.state == "CREATED"


def test_older_names_of_fields_work_everywhere(database: Database) -> None:
    made = job(application_args="x y", procs_per_node=4)
    assert (made.application_args, made.args, made.procs_per_node, made.ranks_per_node) == ("x y", "x y", 4, 4)
    made.application_args = "z"
    made.save(update_fields=["application_args"])
    jobs = compat.BalsamJob.objects
    assert jobs.filter(application_args="z", procs_per_node__gte=4).exclude(application_args__contains="q").count() == 1
    assert jobs.order_by("-procs_per_node").values_list("procs_per_node", flat=True)[0] == 4
    assert jobs.filter(compat.Q(lock="") & ~compat.Q(procs_per_node=1)).update(procs_per_node=2) == 1
    with pytest.raises(InvalidSpec, match="procs_per_node is the older name of ranks_per_node"):
        job(procs_per_node=1, ranks_per_node=1)
    app = compat.ApplicationDefinition(name="b", executable="true", default_preprocess="/bin/true")
    app.save()
    assert app.preprocess == compat.ApplicationDefinition.objects.get(default_preprocess="/bin/true").default_preprocess
    with pytest.raises(AttributeError):  # only there
        models.BalsamJob(application="a").application_args = "x"


def test_values_are_computed_from_fields(database: Database) -> None:
    jobs, F = compat.BalsamJob.objects, compat.F
    for number in (1, 2, 2):
        job(num_nodes=number, ranks_per_node=4)
    assert jobs.update(wall_time_minutes=F("num_nodes") * 10 + F("procs_per_node") - 1, args="x") == 3
    assert sorted(jobs.values_list("wall_time_minutes", flat=True)) == [13, 23, 23]
    assert jobs.filter(num_nodes=1).update(num_nodes=10 - F("num_nodes") // 1, priority=2 * F("priority")) == 1
    assert sorted(jobs.values_list("num_nodes", "args")) == [(2, "x"), (2, "x"), (9, "x")]
    assert jobs.filter(num_nodes__gt=F("ranks_per_node")).count() == 1
    with pytest.raises(InvalidSpec):
        jobs.update(num_nodes=F("num_nodes") / 4)
    with pytest.raises(InputError):
        list(jobs.filter(num_nodes__gt=F("ranks_per_node") + 1))


def test_delete_returns_what_django_does(database: Database) -> None:
    job(), job()
    assert job().delete() == (1, {"core.BalsamJob": 1})
    number, _ = compat.BalsamJob.objects.all().delete()
    assert number == 2
    assert compat.ApplicationDefinition.objects.filter(name="a").delete() == (1, {"core.ApplicationDefinition": 1})
    assert compat.BalsamJob.objects.all().delete() == (0, {})


def test_times_are_local_and_have_no_zone(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        made = job()
        (moment,) = made.get_state_times().values()
        assert abs(datetime.now() - moment) < timedelta(minutes=1)  # noqa: DTZ005  # as libEnsemble does
        assert compat.process_job_times()["CREATED"] == [moment]
        assert models.BalsamJob.objects.get().get_state_times()["CREATED"].tzinfo is not None
    finally:
        monkeypatch.undo()
        time.tzset()


def test_reports_take_the_times_of_states_or_nothing(database: Database, run_balsam: Balsam, monkeypatch: Any) -> None:
    monkeypatch.setenv("BALSAM_DB_PATH", database.directory)
    job(), job()
    monkeypatch.setenv("BALSAM_IDLE_TTL_S", "0")
    code = subprocess.run(
        [sys.executable, "-m", "balsam_lite.cli", "launcher", "--consume-all", "--job-mode=serial"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60,
    ).returncode  # fmt: skip
    assert code == 0
    times = compat.process_job_times()
    assert len(times["RUNNING"]) == len(times["RUN_DONE"]) == 2
    for report in (compat.utilization_report(), compat.utilization_report(times)):
        moments, running = report
        assert moments == sorted(moments) and moments[0].tzinfo is None
        assert max(running) in (1, 2) and running[-1] == 0
    assert compat.throughput_report(times) == compat.throughput_report() == (times["RUN_DONE"], [1, 2])
    assert compat.error_report() == ([], [])


def test_functions_of_dag_give_jobs_of_this_kind(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from balsam_lite.compat import dag

    made = dag.add_job("x", "w", "a", procs_per_node=2, mpi_flags=None, description=None)
    assert isinstance(made, compat.BalsamJob) and made.ranks_per_node == 2
    assert dag.clone(made, application_args="y").application_args == "y"
    assert isinstance(dag.add_app("b", "true"), compat.ApplicationDefinition)
    copies = dag.wf_from_template("w", "w2", x={"application_args": "z"})
    assert [one.application_args for one in copies] == ["z"]
    assert dag.current_job is None and dag.parents is None and dag.JOB_ID == ""
    monkeypatch.setenv("BALSAM_JOB_ID", made.job_id)
    assert dag.current_job == made and dag.current_job is dag.current_job
    assert dag.JOB_ID.hex == made.job_id.hex
    child = dag.spawn_child(application_args="c")
    assert json.loads(child.parents) == [made.job_id]
    assert dag.current_job.get_children_by_id() == [child.job_id]
    assert type(native_dag.current_job) is models.BalsamJob


# --- transactions -----------------------------------------------------------------------------------------------------


class Trouble(Exception):
    pass


def rows(database: Database) -> dict[str, Any]:
    """Return jobs, dependencies and applications. READY, after a wait for a parent, is as good as CREATED."""
    with database.read() as cx:
        columns = (
            "id, job_id, name, replace(state, 'READY', 'CREATED'), args, data, tags, num_nodes, unfinished_parents, start_after"
        )
        return {
            "job": cx.execute(f"SELECT {columns} FROM job ORDER BY id").fetchall(),
            "dependency": cx.execute("SELECT * FROM dependency ORDER BY parent, child").fetchall(),
            "app": cx.execute("SELECT * FROM app ORDER BY id").fetchall(),
        }


def test_a_block_reads_its_own_writes_and_its_jobs_start_after_it(database: Database) -> None:
    from balsam_lite.compat import dag

    with atomic():
        parent = dag.add_job("x", "w", "a")
        assert compat.BalsamJob.objects.get(name="x") == parent
        child = job(name="y")
        dag.add_dependency(parent, child)
        compat.BalsamJob.objects.bulk_create([compat.BalsamJob(name=f"b{i}", application="a") for i in range(3)])
        compat.BalsamJob.objects.filter(name__startswith="b").update(args="1")
        assert child.get_parents_by_id() == [parent.job_id]
        assert not database.is_in_transaction
        held = models.BalsamJob.objects.all().values_list("start_after", flat=True)
        assert all(one is not None for one in held)
    assert all(one is None for one in models.BalsamJob.objects.all().values_list("start_after", flat=True))
    assert compat.BalsamJob.objects.filter(args="1").count() == 3
    assert journal.current() is None


def test_a_block_that_fails_leaves_everything_as_it_was(database: Database) -> None:
    from balsam_lite.compat import dag

    one, two, three = job(name="one", data={"x": 1}), job(name="two"), job(name="three", tags={"k": "v"})
    dag.add_dependency(one, two)
    before = rows(database)
    with pytest.raises(Trouble), atomic():
        new = dag.add_job("new", "w", "a")
        dag.add_dependency(new, two)
        dag.add_dependency(one, three)
        one.data["x"] = 2
        one.save()
        compat.BalsamJob.objects.filter(name="three").update(args="changed", tags={})
        two.set_parents([])
        three.update_state("FAILED")
        dag.kill(one)
        two.delete()
        compat.BalsamJob.objects.bulk_create([compat.BalsamJob(name="b", application="a")])
        compat.ApplicationDefinition(name="new", executable="true").save()
        compat.ApplicationDefinition.objects.filter(name="a").update(executable="false", name="renamed")
        assert compat.BalsamJob.objects.get(name="three").application == "renamed"
        compat.ApplicationDefinition.objects.all().delete()
        assert len(compat.BalsamJob.objects.all()) == 4
        raise Trouble
    assert rows(database) == before


def test_a_block_inside_another_one_takes_back_only_its_own_writes(database: Database) -> None:
    called: list[str] = []

    @atomic
    def add(name: str, trouble: bool = False) -> None:
        """Add a job."""
        job(name=name)
        on_commit(lambda: called.append(name))
        if trouble:
            raise Trouble

    assert (add.__name__, add.__doc__) == ("add", "Add a job.")
    with atomic():
        add("one")
        with pytest.raises(Trouble):
            add("two", trouble=True)
        job(name="three")
        assert called == []
    assert list(compat.BalsamJob.objects.values_list("name", flat=True)) == ["one", "three"]
    assert called == ["one"]
    with pytest.raises(Trouble), atomic():
        add("four")
        raise Trouble
    assert called == ["one"] and compat.BalsamJob.objects.count() == 2
    on_commit(lambda: called.append("now"))
    assert called == ["one", "now"]


def test_a_wait_for_a_job_of_the_open_block_is_refused(database: Database) -> None:
    from balsam_lite.launcher.futures import FutureTask, wait

    before = FutureTask(job())
    with atomic():
        task = FutureTask(job())
        with pytest.raises(StateError, match="starts when the block ends"):
            task.result(timeout=5)
        with pytest.raises(StateError, match="starts when the block ends"):
            wait([before, task], timeout=5)
        with pytest.raises(TimeoutError):
            wait([before], timeout=0.01)
    with pytest.raises(TimeoutError):
        task.result(timeout=0.01)


def test_what_others_wrote_meanwhile_stays(database: Database) -> None:
    mine = job(name="mine")
    with pytest.raises(Trouble), pytest.warns(RuntimeWarning, match="1 job changed since"), atomic():
        compat.BalsamJob.objects.filter(name="mine").update(args="x")
        journal_of_block = journal.current()
        journal.set_current(None)
        other = job(name="other")
        models.BalsamJob.objects.filter(name="mine").update(args="theirs")
        journal.set_current(journal_of_block)
        raise Trouble
    mine.refresh_from_db()
    assert mine.args == "theirs"
    assert list(compat.BalsamJob.objects.filter(name="other")) == [other]


def test_a_statement_that_fails_and_is_caught_leaves_nothing_to_take_back(database: Database) -> None:
    with pytest.raises(Trouble), atomic():
        with pytest.raises(NotFound):
            job(name="x", application="none")
        with pytest.raises(InvalidSpec):
            compat.BalsamJob.objects.bulk_create([{"name": "ok", "application": "a"}, {"name": "bad", "num_nodes": 0}])
        raise Trouble
    assert compat.BalsamJob.objects.count() == 0


def test_what_the_newer_interface_writes_is_part_of_the_block(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from balsam_lite.api import Job

    monkeypatch.setenv("BALSAM_DB_PATH", database.directory)
    kept = job(name="kept")
    with pytest.raises(Trouble), atomic():
        Job("x", app_id="a").save()
        assert models.BalsamJob.objects.get(workdir="x").start_after is not None
        found = Job.objects.get(name="kept")
        found.num_nodes = 2
        found.save()
        raise Trouble
    kept.refresh_from_db()
    assert kept.num_nodes == 1 and compat.BalsamJob.objects.count() == 1


def test_a_forked_child_has_no_part_in_the_block(database: Database) -> None:
    with pytest.raises(Trouble), atomic():
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                job(name="child's")
                code = 0 if journal.current() is None else 2
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        job(name="mine")
        raise Trouble
    assert [one.name for one in compat.BalsamJob.objects.all()] == ["child's"]


def test_many_jobs_in_a_block_are_held_and_taken_back(database: Database) -> None:
    with pytest.raises(Trouble), atomic():
        made = compat.BalsamJob.objects.bulk_create({"name": f"j{i}", "application": "a"} for i in range(6000))
        assert made.count() == 6000 == made.filter(start_after__isnull=False).count()
        raise Trouble
    assert compat.BalsamJob.objects.count() == 0
    with atomic():
        compat.BalsamJob.objects.bulk_create({"name": f"j{i}", "application": "a"} for i in range(6000))
    assert compat.BalsamJob.objects.filter(start_after__isnull=True).count() == 6000
