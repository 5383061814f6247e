"""`dag` beyond adding and linking: hooks that change their own job, copies, other parents, listings, and its speed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from helpers import ROOT

from balsam_lite.core import states
from balsam_lite.core.errors import (
    DependencyCycle,
    InputError,
    InvalidSpec,
    LostLease,
    NoDatabase,
    NotFound,
    StateError,
    UnknownApp,
    UnknownField,
    UnknownJob,
)
from balsam_lite.db.engine import binding, directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import apps, batch_jobs, claims, graph, insert, user_actions
from balsam_lite.launcher import dag
from balsam_lite.schedulers import base, submission

ROOT = str(ROOT)


def id_of(db: Database) -> str:
    with db.read() as cx:
        return binding.id_of(cx)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    database = directories.create(str(tmp_path / "db"), "local")
    with database.write() as cx:
        for name in ("simulate", "reduce"):
            apps.add_app(cx, {"name": name, "executable": f"echo {name}"})
    with use(database):
        yield database
    database.close()


def seen(db: Database, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
    """What another connection reads."""
    other = Database(db.directory, db.access)
    with other.read() as cx:
        rows = cx.execute(sql, parameters).fetchall()
    other.close()
    return rows


def add(name: str, **fields: Any) -> BalsamJob:
    return dag.add_job(name, application="simulate", **fields)


def edges(db: Database) -> list[str]:
    sql = "SELECT p.name || c.name FROM dependency JOIN job p ON p.id = parent JOIN job c ON c.id = child ORDER BY 1"
    return [row[0] for row in seen(db, sql)]


def hold(db: Database, job: BalsamJob, state: str, lease: int = 7) -> None:
    """Let a launcher hold the job in that state, in its first attempt."""
    user_actions.set_state(db, [job.id], state)
    with db.write() as cx:
        cx.execute("UPDATE job SET lease = ?, attempt = 1 WHERE id = ?", (lease, job.id))
    job.refresh_from_db()


Hook = Callable[..., BalsamJob]


@pytest.fixture
def hook(db: Database, monkeypatch: pytest.MonkeyPatch) -> Hook:
    """Makes this process the script of a job that is held in `state`."""

    def become(state: str, kind: str = "postprocess", job: BalsamJob | None = None) -> BalsamJob:
        monkeypatch.delenv("BALSAM_HOOK", raising=False)
        job = job or add("own")
        hold(db, job, state)
        monkeypatch.setenv("BALSAM_JOB_ID", job.pk)
        monkeypatch.setenv("BALSAM_RUN", f"{id_of(db)}:7:{job.id}:1")
        monkeypatch.setenv("BALSAM_HOOK", kind)
        return job

    return become


# --- a script changes its own job -------------------------------------------------------------------------------------

HOOK_STATES = ("CREATED", "READY", "STAGED_IN", "RUN_DONE", "RUN_ERROR", "RUN_TIMEOUT")


@pytest.mark.parametrize("state", HOOK_STATES)
@pytest.mark.parametrize("wanted", [name for name in states.STATES if name != "RUNNING"])
def test_a_script_may_set_its_jobs_state_and_the_launcher_keeps_it(db: Database, hook: Hook, state: str, wanted: str) -> None:
    job = hook(state, "postprocess" if state.startswith("RUN") else "preprocess")
    job.update_state(wanted)
    assert (job.state, job.lease) == (wanted, 7)
    if wanted not in (state, "USER_KILLED"):
        kind = os.environ["BALSAM_HOOK"]
        assert [event[1:] for event in job._events()][-1] == (state, wanted, f"Set by the {kind} script")


def release(db: Database, job: BalsamJob) -> None:
    """Release the job as its launcher does at the end of the step whose script moved it."""
    with db.write() as cx:
        claims.release(cx, 7, [job.id], 1)


def test_a_script_says_why_and_its_jobs_children_hear_of_it_when_it_has_ended(db: Database, hook: Hook) -> None:
    job = hook("RUN_ERROR")
    child = add("child", parents=[job])
    job.update_state("JOB_FINISHED", "good enough")
    child.refresh_from_db()
    assert (child.state, job.get_recent_state_str()[28:]) == ("AWAITING_PARENTS", "JOB_FINISHED] good enough")
    release(db, job)
    child.refresh_from_db()
    assert child.state == "READY"
    other = add("other")
    below = add("below", parents=[other])
    hook("RUN_DONE", job=other).update_state("FAILED")
    below.refresh_from_db()
    assert below.state == "AWAITING_PARENTS"
    release(db, other)
    below.refresh_from_db()
    assert below.state == "FAILED"


def test_a_job_whose_script_lets_it_wait_for_no_parents_goes_on_when_the_script_has_ended(db: Database, hook: Hook) -> None:
    job = hook("CREATED", "preprocess")
    job.update_state("AWAITING_PARENTS")
    release(db, job)
    job.refresh_from_db()
    assert job.state == "READY"


def test_a_script_may_give_the_children_of_its_finished_job_another_parent(db: Database, hook: Hook) -> None:
    job = add("own")
    child = add("child", parents=[job])
    hook("RUN_DONE", job=job).update_state("JOB_FINISHED")
    rescue = add("rescue")
    child.set_parents([rescue])
    release(db, job)
    child.refresh_from_db()
    assert (child.state, child.unfinished_parents) == ("AWAITING_PARENTS", 1)
    rescue.update_state("JOB_FINISHED")
    child.refresh_from_db()
    assert child.state == "READY"


def test_a_restart_by_a_script_counts_and_ends_at_the_limit(db: Database, hook: Hook) -> None:
    job = add("own", restart_limit=1)
    hook("RUN_TIMEOUT", job=job).update_state("RESTART_READY")
    assert (job.state, job.restarts, job.lease) == ("RESTART_READY", 1, 7)
    with db.write() as cx:
        cx.execute("UPDATE job SET lease = NULL")
    hook("RUN_TIMEOUT", job=job)
    with db.write() as cx:  # `hold` was the user's doing, which gives a new budget
        cx.execute("UPDATE job SET restarts = 1")
    job.update_state("RESTART_READY")
    assert (job.state, job.restarts) == ("FAILED", 1)
    assert job.get_recent_state_str().endswith("Restarted 1 times already; its restart_limit is 1")


def test_a_killed_job_is_not_revived_by_its_script(db: Database, hook: Hook) -> None:
    job = hook("RUN_DONE")
    dag.kill(job)
    with pytest.raises(StateError, match="is USER_KILLED; its postprocess script cannot make it JOB_FINISHED"):
        job.update_state("JOB_FINISHED")
    assert seen(db, "SELECT state, lease FROM job") == [("USER_KILLED", 7)]


def test_only_the_script_of_this_very_attempt_may_do_so(db: Database, hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    job = hook("RUN_DONE")
    run = os.environ["BALSAM_RUN"]
    of_another = f"{id_of(db)}:7:{job.id + 1}:1"
    for variable, value in (
        ("BALSAM_HOOK", ""), ("BALSAM_RUN", ""), ("BALSAM_RUN", "x"), ("BALSAM_RUN", f"/other{run}"),
        ("BALSAM_RUN", of_another), ("BALSAM_JOB_ID", "x"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            with pytest.raises(StateError, match="held by launcher"):
                job.update_state("JOB_FINISHED")
    for lease, attempt in ((8, 1), (7, 2), (None, 1)):
        with db.write() as cx:
            cx.execute("UPDATE job SET lease = ?, attempt = ?", (lease, attempt))
        with pytest.raises(LostLease, match="given up"):
            job.update_state("JOB_FINISHED")
    other = add("other")
    hold(db, other, "RUN_DONE")
    with pytest.raises(StateError, match="held by launcher"):
        other.update_state("FAILED")
    assert seen(db, "SELECT DISTINCT state FROM job") == [("RUN_DONE",)]


def test_assigning_the_state_and_saving_is_refused_with_the_way_out(db: Database, hook: Hook) -> None:
    job = hook("RUN_ERROR")
    job.state = "RESTART_READY"
    with pytest.raises(StateError, match="update_state"):
        job.save()
    job.update_state("RESTART_READY")
    assert seen(db, "SELECT state FROM job") == [("RESTART_READY",)]


def test_a_script_edits_adds_links_and_kills(db: Database, hook: Hook) -> None:
    waiting = add("c", parents=[add("p")])
    victim = add("v")
    job = hook("RUN_DONE")
    job.args, job.data["x"], job.wall_time_minutes = "new", 1, 9
    job.save()
    rescue = add("r", parents=[job])
    dag.add_dependency(rescue, waiting)
    dag.kill(victim)
    assert seen(db, "SELECT args, data, wall_time_minutes, lease FROM job WHERE name = 'own'") == [("new", '{"x": 1}', 9, 7)]
    assert edges(db) == ["ownr", "pc", "rc"]
    assert victim.refresh_from_db() is None and victim.state == "USER_KILLED"


def test_a_shell_script_may_use_the_command_and_python_another_process(db: Database, hook: Hook) -> None:
    job = hook("RUN_TIMEOUT")
    code = "from balsam_lite.launcher import dag; dag.current_job.update_state('RESTART_READY')"
    environ = {**os.environ, "PYTHONPATH": ROOT, "BALSAM_DB_PATH": db.directory}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert seen(db, "SELECT state, restarts, lease FROM job") == [("RESTART_READY", 1, 7)]
    with db.write() as cx:
        cx.execute("UPDATE job SET lease = NULL")
    hook("RUN_DONE", job=job)
    words = [sys.executable, "-m", "balsam_lite.cli", "modify", job.pk[:8], "state", "JOB_FINISHED"]
    done = subprocess.run(words, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    job.refresh_from_db()
    assert (job.state, job.lease) == ("JOB_FINISHED", 7)
    assert job.get_recent_state_str().endswith("Set by the postprocess script")


# --- dependencies -----------------------------------------------------------------------------------------------------


def test_a_child_that_has_started_or_is_held_gets_no_parent(db: Database) -> None:
    parent, started, held = add("p"), add("s"), add("h")
    started.update_state("RUN_ERROR")
    with db.write() as cx:
        cx.execute("UPDATE job SET lease = 3 WHERE name = 'h'")
    with pytest.raises(StateError, match="already started"):
        dag.add_dependency(parent, started)
    with pytest.raises(StateError, match="being prepared by launcher 3"):
        dag.add_dependency(parent, held)
    for child in (started, held):
        with pytest.raises(StateError):
            child.set_parents([parent])
    assert edges(db) == []


def test_a_job_that_is_gone_or_itself_is_no_parent(db: Database) -> None:
    a, b, gone = add("a"), add("b"), add("gone")
    BalsamJob.objects.filter(name="gone").delete()
    with pytest.raises(DependencyCycle, match="wait for itself"):
        dag.add_dependency(a, a)
    with db.write() as cx:
        for pair in ((gone.id, a.id), (a.id, gone.id)):
            with pytest.raises(UnknownJob):
                graph.add_dependency(cx, *pair, 1)
            with pytest.raises(UnknownJob):
                graph.set_parents(cx, pair[1], [pair[0]], 1)
    b.set_parents([a])
    with pytest.raises(DependencyCycle):
        a.set_parents([b])
    with pytest.raises(UnknownJob):
        gone.set_parents([a])
    assert edges(db) == ["ab"]


def test_children_are_given_to_a_rescue_job(db: Database, hook: Hook) -> None:
    job = hook("RUN_TIMEOUT", job=add("own", args="long", tags={"t": "1"}))
    waiting = add("w", parents=[job])
    below = add("b", parents=[waiting])
    rescue = dag.spawn_child(name="rescue", wall_time_minutes=60)
    waiting.set_parents([rescue])
    rescue.set_parents([])
    job.update_state("FAILED", "see the rescue job")
    rescue.refresh_from_db()
    waiting.refresh_from_db()
    assert (rescue.state, rescue.args, rescue.tags, waiting.state) == ("READY", "long", {"t": "1"}, "AWAITING_PARENTS")
    rescue.update_state("JOB_FINISHED")
    waiting.refresh_from_db()
    below.refresh_from_db()
    assert (waiting.state, below.state) == ("READY", "AWAITING_PARENTS")


def test_children_that_failed_with_a_parent_wait_again_for_another(db: Database) -> None:
    parent, other = add("p"), add("o")
    child = add("c", parents=[parent])
    below = add("b", parents=[child])
    parent.update_state("FAILED")
    for job in (child, below):
        job.refresh_from_db()
        assert job.state == "FAILED"
    child.set_parents([other])
    below.refresh_from_db()
    assert (child.state, below.state) == ("AWAITING_PARENTS", "AWAITING_PARENTS")
    child.set_parents([parent])  # which has failed
    assert child.state == "FAILED"
    child.set_parents([])
    assert child.state == "READY"
    own_fault = add("x")
    own_fault.update_state("FAILED")
    with pytest.raises(StateError, match="started"):
        own_fault.set_parents([other])


def test_children_of_a_removed_parent_fail_with_the_reason_and_can_be_given_another(db: Database) -> None:
    parent, other = add("p"), add("o")
    child = add("c", parents=[parent])
    parent.delete(force=True)
    child.refresh_from_db()
    assert child.get_recent_state_str().endswith("FAILED] A parent job was removed from the DB")
    child.set_parents([other])
    assert (child.state, edges(db)) == ("AWAITING_PARENTS", ["oc"])


def test_circles_are_found_in_what_the_store_would_refuse(db: Database) -> None:
    a, b, c, d = (add(name) for name in "abcd")
    dag.add_dependency(a, b)
    dag.add_dependency(b, c)
    assert dag.detect_circular() == dag.detect_circular(c) == []
    with db.write() as cx:
        cx.execute("INSERT INTO dependency VALUES (?, ?)", (c.id, b.id))
    assert set(dag.detect_circular()) == set(dag.detect_circular(c.pk)) == {b.pk, c.pk}
    assert not dag.detect_circular(a) and not dag.detect_circular(d)


def test_looking_for_circles_is_linear() -> None:
    layers = [(10 * n + i, 10 * (n + 1) + k) for n in range(5_000) for i in range(4) for k in range(4)]  # 4 ** 5000 ways
    started = time.process_time()
    assert graph.find_cycle(layers) == []
    assert graph.find_cycle([*layers, (50_000, 0)])
    assert time.process_time() - started < 2
    assert graph.find_cycle([(1, 2), (2, 3), (3, 1), (3, 4)], of=4) in ([3, 2, 1], [2, 1, 3], [1, 3, 2])
    assert graph.find_cycle([(1, 1)]) == [1]


# --- copies -----------------------------------------------------------------------------------------------------------


def test_spawn_child_copies_the_current_job_and_waits_for_it_and_its_parents(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with db.write() as cx:
        launch = batch_jobs.add(cx, {"queue": "debug"}, 1)
    parent = add("p")
    given = {"args": "-x", "environ_vars": {"A": "b:c"}, "data": {"k": [1]}, "tags": {"t": "1"}, "num_nodes": 2}
    job = add("own", workflow="w", parents=[parent], queued_launch_id=launch, user_workdir="/tmp/x", **given)
    monkeypatch.setenv("BALSAM_JOB_ID", job.pk)
    child = dag.spawn_child(clone=True, name="child", num_nodes=3)
    assert child.get_parents_by_id() == [parent.pk, job.pk]
    expected = {**given, "num_nodes": 3, "workflow": "w", "name": "child", "application": "simulate", "user_workdir": ""}
    assert {name: getattr(child, name) for name in expected} == expected
    assert (child.state, child.queued_launch_id, child.pk != job.pk) == ("AWAITING_PARENTS", launch, True)
    assert child.workdir == f"w/child_{child.pk[:8]}"
    assert child.state_history.splitlines()[0].endswith(f"CREATED] spawned by [own | {job.pk[:8]}]")
    child.data["k"].append(2)
    assert job.data == {"k": [1]}


def test_spawn_child_needs_a_job_and_known_fields(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="BALSAM_JOB_ID"):
        dag.spawn_child(name="x")
    job = add("own")
    monkeypatch.setenv("BALSAM_JOB_ID", job.pk)
    for fields, error, word in (
        ({"walltime_minutes": 5}, UnknownField, "wall_time_minutes"), ({"state": "READY"}, InvalidSpec, "state"),
        ({"num_nodes": 0}, InvalidSpec, "num_nodes"), ({"application": "no"}, UnknownApp, "no"),
    ):  # fmt: skip
        with pytest.raises(error, match=word):
            dag.spawn_child(**fields)
    assert seen(db, "SELECT count(*) FROM job") == [(1,)]


def test_a_clone_is_not_in_the_db_until_it_is_saved(db: Database) -> None:
    job = add("a", data={"k": 1}, parents=[add("p")])
    for source in (job, job.pk, job.id):
        copy = dag.clone(source, name="b")
        assert (copy.id, copy.name, copy.data, copy.state) == (None, "b", {"k": 1}, "CREATED")
    with pytest.raises(ValueError, match="nam"):
        dag.clone(job, nam="b")
    with pytest.raises(UnknownJob):
        dag.clone("0123")
    assert seen(db, "SELECT count(*) FROM job") == [(2,)]
    copy.save()
    assert copy.get_parents_by_id() == []


def test_a_workflow_is_copied_with_its_inner_edges(db: Database) -> None:
    outside = add("outside", workflow="elsewhere")
    a = add("A", workflow="w", parents=[outside], args="1")
    b, c = (add(name, workflow="w", parents=[a]) for name in "BC")
    add("D", workflow="w", parents=[b, c])
    a.update_state("JOB_FINISHED")
    copies = dag.wf_from_template("w", "new", A={"args": "2", "num_nodes": 3})
    assert [(job.name, job.args, job.num_nodes, job.workflow, job.state) for job in copies] == [
        ("A", "2", 3, "new", "CREATED"), ("B", "", 1, "new", "AWAITING_PARENTS"), ("C", "", 1, "new", "AWAITING_PARENTS"),
        ("D", "", 1, "new", "AWAITING_PARENTS"),
    ]  # fmt: skip
    inside = (
        "SELECT p.name || c.name FROM dependency JOIN job p ON p.id = parent JOIN job c ON c.id = child WHERE c.workflow = ?"
    )
    assert sorted(row[0] for row in seen(db, inside, "new")) == ["AB", "AC", "BD", "CD"]
    assert copies[0].state_history.endswith("CREATED] Copied from template workflow w")


def test_a_template_without_sense_adds_nothing(db: Database) -> None:
    add("A", workflow="w")
    add("X", workflow="twice")
    add("X", workflow="twice")
    for source, target, changes, error in (
        ("no", "new", {}, NotFound), ("w", "twice", {}, InputError), ("w", "w", {}, InputError),
        ("twice", "new", {}, InputError), ("w", "new", {"B": {}}, InputError), ("w", "new", {"A": {"nam": 1}}, UnknownField),
        ("w", "new", {"A": {"application": "no"}}, UnknownApp),
    ):  # fmt: skip
        with pytest.raises(error):
            dag.wf_from_template(source, target, **changes)
    assert seen(db, "SELECT count(*) FROM job") == [(3,)]


# --- listings and launches --------------------------------------------------------------------------------------------


def test_apps_and_dbs_are_listed(db: Database, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [app.name for app in dag.get_apps()] == ["simulate", "reduce"]
    assert dag.get_active_database() == db.directory
    assert dag.get_database_paths() == [db.directory]
    assert capsys.readouterr().out == f"{db.directory}\n" * 2
    assert dag.get_active_database(verbose=False) == dag.get_database_paths(verbose=False)[0]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("balsam_lite.db.manager._chosen", [])
    monkeypatch.setattr("balsam_lite.db.manager._found", {})
    monkeypatch.chdir("/")
    with pytest.raises(NoDatabase):
        dag.get_active_database()


def test_submit_is_submit_launch(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[base.LaunchRequest] = []

    def take(database: Database, settings: object, request: base.LaunchRequest) -> dict[str, Any]:
        asked.append(request)
        with database.write() as cx:
            number = batch_jobs.add(cx, {"queue": request.queue, "nodes": request.nodes, "scheduler_id": "12"}, 1)
        with database.read() as cx:
            return next(iter([submission.queries.batch_job(cx, number)]))

    monkeypatch.setattr(submission, "submit_launch", take)
    row = dag.submit("proj", "debug", 2, 5, job_mode="serial", wf_filter="w")
    assert asked == [base.LaunchRequest(2, 5, "debug", "proj", "serial", wf_filter="w")]
    assert (row["scheduler_id"], row["queue"], row["nodes"], row["id"]) == (12, "debug", 2, 1)
    monkeypatch.undo()
    with pytest.raises(InvalidSpec, match="nodes"), use(db):
        dag.submit(nodes=0)


# --- speed ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["star", "chain"])
def test_ten_thousand_waiting_jobs_are_killed_in_one_quick_transaction(
    db: Database, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = add("top")
    first = insert.add_jobs(db, ({"name": "j"} for _ in range(10_000))).first
    pairs = [(top.id if shape == "star" else first - 1 + n, first + n) for n in range(10_000)]
    pairs[0] = (top.id, first)
    with db.write() as cx:
        graph.add_edges(cx, pairs, 1)
    begun: list[str] = []
    with db.read() as cx:
        cx.set_trace_callback(lambda sql: begun.append(sql) if sql.startswith(("BEGIN I", "COMMIT")) else None)
    started = time.process_time()  # whatever else this machine does meanwhile
    assert dag.kill(top, recursive=True) == 10_001
    took = time.process_time() - started
    with db.read() as cx:
        cx.set_trace_callback(None)
    assert len([sql for sql in begun if sql.startswith("BEGIN")]) == 1
    assert seen(db, "SELECT state, jobs FROM state_count WHERE jobs > 0") == [("USER_KILLED", 10_001)]
    assert took < 5  # less than a second on a machine that does nothing else


def test_importing_dag_costs_little() -> None:
    def least(code: str) -> float:
        """CPU seconds, which depend less on what else the machine does."""
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    bare, with_it = least("pass"), least("import balsam_lite.launcher.dag")
    assert with_it < 4 * bare, f"{with_it:.3f} s, a bare Python {bare:.3f} s"


def test_queries_of_relatives_read_many_jobs_at_once(db: Database) -> None:
    a, b = add("a"), add("b")
    dag.add_dependency(a, b)
    with db.read() as cx:
        assert queries.columns_of(cx, [a.id, b.id, 99], ("name", "state")) == {
            a.id: ("a", "CREATED"), b.id: ("b", "AWAITING_PARENTS")}  # fmt: skip
        assert select.job_rows(cx, columns=("name", *queries.RELATIVES)) == [
            ("a", "[]", f'["{b.pk}"]'), ("b", f'["{a.pk}"]', "[]")]  # fmt: skip
