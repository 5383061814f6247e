"""Jobs of `dag.add_job` wait for a moment, as a dependency may follow, however fast a launcher is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import Slots, wait_until
from launching import Bench

from balsam_lite.api import Job
from balsam_lite.core.clock import SECOND_US, SystemClock
from balsam_lite.core.errors import WaitTimeout
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.store import apps, claims, held_back, leases
from balsam_lite.launcher import dag, futures

PYTHON = sys.executable


@pytest.fixture(params=["local", "shared"])
def db(tmp_path, request):
    database = directories.create(str(tmp_path / "db"), request.param)
    with database.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    with use(database):
        yield database
    held_back._held.clear()
    database.close()


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.app("a", "true")
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock by one that stands still; [0] sets its seconds."""
    now = [1000.0]
    monkeypatch.setattr(SystemClock, "now_us", staticmethod(lambda: int(now[0] * SECOND_US)))
    return now


def starts(db):
    """Return by name for how many seconds each job is held back from the clock's beginning on; None: not at all."""
    other = Database(db.directory, db.access)
    with other.read() as cx:
        found = dict(cx.execute("SELECT name, start_after FROM job"))
    other.close()
    return {name: None if time_us is None else round(time_us / SECOND_US - 1000, 1) for name, time_us in found.items()}


def take(db):
    """Return the names of the jobs that a launcher would start now."""
    with db.write() as cx:
        held_back.release_due(cx, SystemClock.now_us())
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        return sorted(claim.name for claim in claims.take(cx, lease, Slots(1000), claims.Filter(), 1).to_run)


def run_python(db, code):
    environ = {**os.environ, "BALSAM_DB_PATH": db.directory}
    subprocess.run([PYTHON, "-c", code], env=environ, check=True, timeout=60)


# --- what is held back, and for how long ------------------------------------------------------------------------------


def test_each_addition_holds_back_what_was_added_before_for_ten_seconds_at_most(db, clock):
    a = dag.add_job(name="a", application="a")
    assert starts(db) == {"a": 1.0} and take(db) == []
    for n in range(12):
        clock[0] += 0.9
        dag.add_job(name=str(n), application="a", parents=[a])
        assert starts(db)["a"] == pytest.approx(min(10.0, 0.9 * (n + 1) + 1.0), abs=0.11)
        assert take(db) == ([] if clock[0] < 1010 else ["a"])


@pytest.mark.parametrize(
    "write",
    [
        dag.add_dependency,
        lambda a, b: dag.add_dependencies([(a, b)]),
        lambda a, b: b.set_parents([a]),
        lambda a, b: BalsamJob(name="c", application="a").save(),
        lambda a, b: BalsamJob.objects.bulk_create([{"name": "c", "application": "a"}]),
    ],
)
def test_dependencies_and_other_jobs_hold_back_longer_too(db, clock, write):
    a, b = (dag.add_job(name=name, application="a") for name in "ab")
    clock[0] += 0.5
    write(a, b)
    assert starts(db)["a"] == starts(db)["b"] == pytest.approx(1.5, abs=0.11)
    clock[0] += 0.5
    with dag.transaction():
        dag.add_job(name="d", application="a")
    assert starts(db)["a"] == pytest.approx(2.0, abs=0.11) and starts(db)["d"] is None


def test_a_refused_dependency_holds_nothing_back(db, clock):
    a = dag.add_job(name="a", application="a")
    clock[0] += 0.5
    with pytest.raises(ValueError, match="itself"):
        dag.add_dependency(a, a)
    assert starts(db) == {"a": 1.0}
    clock[0] += 0.1
    b = dag.add_job(name="b", application="a")
    assert starts(db)["a"] == starts(db)["b"] == pytest.approx(1.6, abs=0.11)
    clock[0] += 3
    assert take(db) == ["a", "b"]
    dag.add_job(name="c", application="a")
    assert starts(db) == {"a": None, "b": None, "c": pytest.approx(4.6, abs=0.11)} and b.id == 2


def test_only_a_job_of_add_job_without_parents_is_held_back(db, monkeypatch):
    a = dag.add_job(name="a", application="a", save=False)
    a.save()
    others = [
        dag.add_job(name="b", application="a", parents=[a]),
        dag.add_job(name="c", application="a", wait_for_parents=False),
        BalsamJob(name="d", application="a"),
        dag.clone(a, name="e"),
    ]
    for other in others[2:]:
        other.save()
    BalsamJob.objects.bulk_create([{"name": "f", "application": "a"}])
    monkeypatch.setenv("BALSAM_JOB_ID", a.job_id)
    dag.spawn_child(name="g")
    monkeypatch.delenv("BALSAM_JOB_ID")
    with dag.transaction():
        dag.add_job(name="h", application="a")
    words = ["job", "--name", "i", "--workflow", "w", "--application", "a", "--yes"]
    argv = [PYTHON, "-m", "balsam_lite.cli", "--db", db.directory, *words]
    subprocess.run(argv, check=True, capture_output=True)
    found = starts(db)
    assert sorted(found) == list("abcdefghi") and [name for name in found if found[name] is not None] == ["a"]


def test_without_a_delay_nothing_is_held_back(db, monkeypatch):
    monkeypatch.setenv("BALSAM_START_DELAY_S", "0")
    a, b = (dag.add_job(name=name, application="a") for name in "ab")
    dag.add_dependency(a, b)
    assert starts(db) == {"a": None, "b": None} and take(db) == ["a"]


def test_a_user_cannot_set_when_a_job_starts(db):
    for given in ({"start_after": 1}, {"start_after": None}):
        with pytest.raises(ValueError, match="start_after"):
            BalsamJob.objects.bulk_create([{"application": "a", **given}])
        with pytest.raises(ValueError, match="start_after"):
            dag.add_job(name="a", application="a", **given)
    assert starts(db) == {}


# --- what releases it -------------------------------------------------------------------------------------------------


def _wait(job):
    with pytest.raises(WaitTimeout):
        futures.wait([futures.FutureTask(job)], timeout=0.01)


def _as_completed(job):
    with pytest.raises(WaitTimeout):
        list(futures.as_completed([futures.FutureTask(job)], timeout=0.01))


def _result(job):
    with pytest.raises(WaitTimeout):
        futures.FutureTask(job).result(timeout=0.01)


@pytest.mark.parametrize(
    "look",
    [
        _wait,
        _as_completed,
        _result,
        lambda job: futures.FutureTask(job).done,
        lambda job: job.refresh_from_db(),
        lambda job: job.state_history,
        lambda job: job.get_children().count(),
        lambda job: BalsamJob.objects.get(name="a"),
        lambda job: list(BalsamJob.objects.filter(state="CREATED")),
        lambda job: BalsamJob.objects.exists(),
        lambda job: list(BalsamJob.objects.all().iterator()),
    ],
)
def test_waiting_for_jobs_and_reading_them_releases_at_once(db, look):
    dag.add_job(name="b", application="a")
    job = dag.add_job(name="a", application="a")
    assert None not in starts(db).values()
    look(job)
    assert starts(db) == {"a": None, "b": None}
    dag.add_job(name="c", application="a")
    assert starts(db)["c"] is not None and starts(db)["a"] is None


def test_reading_by_the_newer_interface_releases_too(db):
    registry.add(db.directory, "here")
    dag.add_job(name="a", application="a")
    assert Job.objects.filter(site_name="here").count() == 1
    assert starts(db) == {"a": None}


def test_nothing_else_releases(db):
    a, b, c = (dag.add_job(name=name, application="a") for name in "abc")
    dag.add_dependency(BalsamJob.objects.filter(name="a"), BalsamJob.objects.filter(name="b"))
    dag.add_dependency(a, c)
    assert b.workdir and c.state == "AWAITING_PARENTS" and a.cute_id and list(dag.get_apps())
    assert None not in starts(db).values()


def test_the_end_of_a_process_releases_and_its_death_does_not(db):
    add = "from balsam_lite.launcher import dag; dag.add_job(name={!r}, application='a')"
    run_python(db, add.format("ended"))
    run_python(db, add.format("killed") + "; import os; os._exit(0)")
    found = starts(db)
    assert found["ended"] is None and found["killed"] is not None
    wait_until(lambda: take(db) == ["ended"], 1)
    wait_until(lambda: take(db) == ["killed"])


def test_a_forked_child_neither_holds_nor_releases_its_parents_jobs(db):
    code = """
import os, sys
from balsam_lite.launcher import dag
from balsam_lite.launcher.dag import BalsamJob
dag.add_job(name="a", application="a")
child = os.fork()
if not child:
    BalsamJob.objects.count()
    dag.add_job(name="b", application="a")
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""
    run_python(db, code)
    found = starts(db)
    assert found["a"] is not None and found["b"] is None


def test_a_job_that_is_held_back_may_be_changed_killed_removed_and_put_back(db):
    jobs = {name: dag.add_job(name=name, application="a") for name in ("changed", "killed", "removed", "set")}
    jobs["changed"].args = "x"
    jobs["changed"].save()
    assert dag.kill(jobs["killed"]) == 1
    jobs["removed"].delete()
    jobs["set"].update_state("READY")
    found = starts(db)
    assert found["set"] is None and found["changed"] is not None and "removed" not in found
    assert take(db) == ["set"]


def test_adding_very_many_jobs_moves_their_times_on_once_in_a_while(db, clock, monkeypatch):
    moved = []
    whole = held_back.json.dumps
    monkeypatch.setattr(held_back.json, "dumps", lambda numbers: moved.append(len(numbers)) or whole(numbers))
    count = 300
    for n in range(count):
        clock[0] += 0.001
        dag.add_job(name=str(n), application="a")
    assert sum(moved) < 20 * count  # were it each time, it would be 150
    ends = set(starts(db).values())
    assert min(ends) >= 1.2 and max(ends) <= 2.4


# --- launchers and the service ----------------------------------------------------------------------------------------


def test_a_held_job_starts_on_time_although_nobody_writes_then(bench):
    bench.launch("--persistent")
    wait_until(lambda: "launcher" in "".join(os.listdir(f"{bench.directory}/log")))
    with use(bench.db):
        job = dag.add_job(name="a", application="a")
        held_back._held.clear()  # as if this process had died
        wait_until(lambda: bench.job(job.id)["state"] == "JOB_FINISHED")
    with bench.db.read() as cx:
        ran_us, created_us = cx.execute(
            "SELECT time, job.created FROM event JOIN job ON job.id = event.job WHERE to_state = 'RUNNING'"
        ).fetchone()
    assert ran_us - created_us >= 0.9 * SECOND_US


def test_a_launcher_does_not_leave_while_a_job_of_its_filter_is_held_back(bench):
    with use(bench.db):
        for workflow in ("w", "other"):
            dag.add_job(name=workflow, workflow=workflow, application="a")
        held_back._held.clear()
    started = time.monotonic()
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET start_after = ?", (SystemClock.now_us() + 3600 * SECOND_US,))
    assert bench.run("--wf-filter", "none") == 0
    assert time.monotonic() - started < 3600
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET start_after = ? WHERE name = 'w'", (SystemClock.now_us() + 3 * SECOND_US,))
    assert bench.run("--wf-filter", "w*") == 0
    assert bench.job(1)["state"] == "JOB_FINISHED" and bench.job(2)["state"] == "CREATED"
    log = "".join(path.read_text() for path in Path(bench.directory, "log").glob("launcher*"))
    assert "1 new job(s) are held back" in log


def test_the_slides_snippet_is_right_however_quick_a_launcher_is(bench):
    bench.launch("--persistent")
    snippet = """
import time
from balsam_lite.launcher.dag import add_dependency, add_job
A = add_job(name="A", application="a")
B, C, D = [add_job(name=name, application="a") for name in "BCD"]
E = add_job(name="E", application="a")
for job in B, C, D:
    time.sleep(0.1)
    add_dependency(A, job)
    add_dependency(job, E)
"""
    for _ in range(3):
        run_python(bench.db, snippet)
    wait_until(lambda: bench.states() == {"JOB_FINISHED": 15}, 60)
    with bench.db.read() as cx:
        early = cx.execute(
            """SELECT p.name, c.name FROM dependency d JOIN job p ON p.id = d.parent JOIN job c ON c.id = d.child
            WHERE (SELECT min(time) FROM event WHERE job = c.id AND to_state = 'RUNNING')
                < (SELECT max(time) FROM event WHERE job = p.id AND to_state = 'JOB_FINISHED')"""
        ).fetchall()
        assert early == [] and cx.execute("SELECT count(*) FROM dependency").fetchone() == (18,)
