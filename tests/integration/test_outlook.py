"""When a launcher ends, what it waits for before that, and what it prints at its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import Slots, db_with_app, wait_until
from launching import Bench

from balsam_lite.core import states
from balsam_lite.core.process_table import Holder, start_of
from balsam_lite.core.settings import Settings
from balsam_lite.db.query import demand, queries
from balsam_lite.db.query.demand import Scope, what_may_come
from balsam_lite.db.store import batch_jobs, claims, counters, insert, leases, user_actions
from balsam_lite.db.store.claims import Filter
from balsam_lite.launcher import reporting
from balsam_lite.launcher.reporting import Limits, Progress, RecentRate, Tally
from balsam_lite.schedulers import base, submission
from balsam_lite.schedulers.base import LaunchRequest


@pytest.fixture
def db(tmp_path):
    with db_with_app(tmp_path / "db") as made:
        yield made


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def add(db, *rows):
    return list(insert.add_jobs(db, [{"application": "a", **row} for row in rows]).ids)


def outlook_of(db, *scope, **more):
    with db.read() as cx:
        return what_may_come(cx, Scope(*scope, **more), 1, 120.0)


def dead_process():
    process = subprocess.Popen(["sleep", "600"])
    holder = Holder.current()._replace(pid=process.pid, started=start_of(process.pid))
    process.kill()
    process.wait()
    return holder


# --- what may come ----------------------------------------------------------------------------------------------------


def test_nothing_can_come_where_every_job_has_ended(db):
    assert outlook_of(db) == "a first job"
    jobs = add(db, {}, {}, {})
    assert outlook_of(db) == "jobs that have not ended: 3 CREATED"
    for job, state in zip(jobs, states.END_STATES):
        user_actions.set_state(db, [job], state)
    assert outlook_of(db) == ""


@pytest.mark.parametrize("state", [state for state in states.STATES if state not in (*states.END_STATES, states.RUNNING)])
def test_a_job_in_any_other_state_is_waited_for_in_its_own_filter_only(db, state):
    a, b = add(db, {"workflow": "a1", "tags": {"k": "1"}}, {"workflow": "b", "tags": {"k": "2", "l": "x"}})
    user_actions.set_state(db, [a], states.JOB_FINISHED)
    user_actions.set_state(db, [b], state)
    for theirs in (("b",), ("b*",), (None, (("k", "2"),)), (None, (("k", "2"), ("l", "x"))), ("b", (("l", "x"),))):
        assert outlook_of(db, *theirs) == "jobs of its filter that have not ended"
    for ours in (("a1",), ("a*",), (None, (("k", "1"),)), ("a1", (("k", "1"),))):
        assert outlook_of(db, *ours) == ""
    for nobodys in (("c",), ("c*",), (None, (("k", "3"),)), ("a1", (("k", "2"),))):
        assert outlook_of(db, *nobodys) == f"a first job{Scope(*nobodys)}"


def test_too_many_jobs_to_look_at_may_hold_one(db, monkeypatch):
    jobs = add(db, *({"workflow": "b"} for _ in range(5)), {"workflow": "a"})
    user_actions.set_state(db, jobs[-1:], states.JOB_FINISHED)
    assert outlook_of(db, "a") == ""
    monkeypatch.setattr(demand, "MAX_ROWS", 5)
    assert outlook_of(db, "a") == "jobs that have not ended, too many to look at"


def test_a_launch_that_takes_nothing_else_waits_for_what_is_planned_for_it(db):
    with db.write() as cx:
        launch = batch_jobs.add(cx, {"scheduler": "x"}, 1)
    (job, _) = add(db, {"queued_launch_id": launch}, {})
    assert outlook_of(db, launch=launch) == "jobs planned for this launch that have not ended"
    user_actions.set_state(db, [job], states.FAILED)
    assert outlook_of(db, launch=launch) == ""
    assert outlook_of(db, launch=launch + 1) == "a first job planned for this launch"


def test_a_script_that_goes_on_after_it_has_set_the_final_state_is_waited_for(db):
    (job,) = add(db, {})
    with db.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        claims.take(cx, lease, Slots(1), Filter(), 2)
        cx.execute("UPDATE job SET state = 'JOB_FINISHED' WHERE id = ?", (job,))
        counters.recount(cx)
    assert outlook_of(db) == "a script of a job that has ended"


def test_a_process_that_waits_is_waited_for_while_it_lives(db):
    (job,) = add(db, {})
    user_actions.set_state(db, [job], states.JOB_FINISHED)
    with db.write() as cx:
        lease = leases.open_wait(cx, Holder.current(), "", 1, 120.0)
    assert outlook_of(db) == f"jobs of a program that waits for jobs (pid {os.getpid()} on {os.uname().nodename})"
    with db.write() as cx:
        leases.close_wait(cx, lease)
        leases.open_wait(cx, dead_process(), "", 1, 120.0)
    assert outlook_of(db) == ""


def test_waits_are_no_launchers_and_leave_nothing_behind(db):
    with db.write() as cx:
        leases.open_wait(cx, dead_process(), "", 1, 120.0)
        assert leases.open_leases(cx) == [] == leases.living(cx, 120.0) == leases.dead(cx, 120.0, leases.Watch())
        launcher = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        assert leases.is_eldest(cx, launcher, 120.0, leases.Watch())
        mine = leases.open_wait(cx, Holder.current(), "", 1, 120.0)
        assert [one.lease.id for one in leases.living_waits(cx, 120.0)] == [mine]
        assert cx.execute("SELECT count(*) FROM lease WHERE kind = 'wait'").fetchone() == (1,)
        leases.close_wait(cx, launcher)  # is none
        leases.close_wait(cx, mine)
        assert cx.execute("SELECT kind FROM lease").fetchall() == [("launcher",)]


def test_whoever_has_just_added_a_job_to_a_running_launcher_may_add_another(db):
    (job,) = add(db, {})
    user_actions.set_state(db, [job], states.JOB_FINISHED)
    with db.read() as cx:
        added_us = cx.execute("SELECT created FROM job").fetchone()[0]
        for started_us, later_s, comes in ((added_us - 1, 1.9, True), (added_us - 1, 2.1, False), (added_us + 1, 0.1, False)):
            found = what_may_come(cx, Scope(), added_us + int(later_s * 1e6), 120.0, started_us)
            assert found == ("the next job of a program that has just added one" if comes else "")


# --- a launcher's end -------------------------------------------------------------------------------------------------


def said(bench):
    return Path(bench.directory, "log", "stderr").read_text()


def end_reason(bench):
    with bench.db.read() as cx:
        found = leases.latest(cx, "launcher")
    return found and found.closed_us and found.end_reason


def test_a_launcher_leaves_at_once_when_every_job_of_its_filter_has_ended(bench):
    bench.app("good", "true")
    bench.app("bad", "false")
    first, second = bench.add(
        [{"application": "bad", "workflow": "w", "max_retries": 2}, {"application": "good", "workflow": "w"}]
    )
    bench.add([{"application": "good", "workflow": "w", "parents": [first]}, {"application": "good", "workflow": "other"}])
    assert bench.run("--wf-filter", "w", BALSAM_IDLE_TTL_S="600") == 0
    assert end_reason(bench) == "every job has ended"
    # Of the three attempts of one job none is a job that failed; its child is, without an attempt.
    assert "Launcher ends (every job has ended): 1 JOB_FINISHED, 2 FAILED; 4 attempts: 1 done, 3 failed\n" in said(bench)


def test_a_launcher_without_a_first_job_waits_for_it_and_says_so(bench):
    bench.app("good", "true")
    bench.launch(BALSAM_IDLE_TTL_S="600")
    wait_until(lambda: "Nothing to start; waiting up to 600 s for a first job." in said(bench))
    bench.add([{"application": "good"}])
    wait_until(lambda: end_reason(bench) == "every job has ended")


def test_a_launcher_says_that_no_job_matches_its_filter_or_that_all_had_ended(bench):
    bench.app("good", "true")
    bench.add([{"application": "good", "workflow": "w"}])
    assert bench.run("--wf-filter", "typo", BALSAM_IDLE_TTL_S="0.3") == 0
    assert end_reason(bench) == "no job of workflow typo came"
    assert bench.run("--tag", "a=b", BALSAM_IDLE_TTL_S="0.3") == 0
    assert end_reason(bench) == "no job with the tag a=b came"
    assert bench.run("--wf-filter", "w") == bench.run("--wf-filter", "w", BALSAM_IDLE_TTL_S="600") == 0
    assert end_reason(bench) == "every job of workflow w had ended before it started"


def test_a_launch_whose_filter_matches_nothing_has_that_as_its_reason(bench, monkeypatch):
    bench.app("good", "true")
    bench.add([{"application": "good", "workflow": "w"}])
    assert launched(bench, monkeypatch, wf_filter="typo")["reason"] == "no job of workflow typo came"


def test_a_bracket_in_a_workflow_filter_stands_for_itself(bench):
    bench.app("good", "true")
    jobs = bench.add([{"application": "good", "workflow": name} for name in ("w[1]", "w1", "v[1]x", "v1x")])
    bench.run("--wf-filter", "w[1]")
    bench.run("--wf-filter", "v[1]?")
    assert [bench.job(job)["state"] for job in jobs] == ["JOB_FINISHED", "CREATED", "JOB_FINISHED", "CREATED"]


SCRIPT = """
import sys
from balsam_lite.launcher.dag import BalsamJob, add_job
from balsam_lite.launcher.futures import BalsamExecutor, FutureTask, as_completed, wait
from balsam_lite.api import Job

def after(found, file):  # what a script does between two waits
    print("waited", flush=True)
    sys.stdin.readline()
    return found

def by_wait():
    for _ in range(2):
        after(wait([FutureTask(add_job(name="x", application="good"))]), None)

def by_api():
    for n in range(2):
        job = Job(workdir=f"j/{n}", app_id="good")
        job.save()
        after(Job.objects.wait([job]), None)

def by_executor():
    with BalsamExecutor("good") as executor:
        for _ in range(2):
            after(executor.submit("").result(), None)

globals()[sys.argv[1]]()
"""


@pytest.mark.parametrize("way", ["by_wait", "by_api", "by_executor"])
def test_a_launcher_stays_for_a_program_that_adds_jobs_when_it_has_results(bench, tmp_path, way):
    bench.app("good", "true")
    (tmp_path / "script.py").write_text(SCRIPT)
    environ = {**bench.environ, "BALSAM_DB_PATH": bench.directory, "BALSAM_SITE_PATH": bench.directory}
    pipe = subprocess.PIPE
    launcher = bench.launch(BALSAM_IDLE_TTL_S="600")
    script = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), way], env=environ, stdin=pipe, stdout=pipe)
    bench.launchers.append(script)
    assert script.stdout.readline() == b"waited\n"
    wait_until(lambda: f"a program that waits for jobs (pid {script.pid} " in said(bench))
    script.stdin.write(b"\n")
    script.stdin.flush()
    assert script.stdout.readline() == b"waited\n"
    script.communicate(timeout=30)
    assert script.returncode == 0
    assert launcher.wait(30) == 0
    assert end_reason(bench) == "every job has ended"
    with bench.db.read() as cx:
        assert cx.execute("SELECT count(*) FROM lease WHERE kind = 'wait'").fetchone() == (0,)


def test_the_last_line_tells_jobs_and_attempts_apart():
    tally = Tally()
    assert str(tally) == "no job ended; 0 attempts"
    tally.add({states.JOB_FINISHED: 993, states.FAILED: 7}, {states.RUN_DONE: 993, states.RUN_ERROR: 81})
    tally.add({states.USER_KILLED: 1}, {states.RUN_TIMEOUT: 7})
    assert str(tally) == "993 JOB_FINISHED, 7 FAILED, 1 USER_KILLED; 1081 attempts: 993 done, 81 failed, 7 timed out"
    one = Tally()
    one.add({}, {states.RUN_TIMEOUT: 1})
    assert str(one) == "no job ended; 1 attempt: 1 timed out"


def test_a_killed_job_is_counted_as_killed(bench):
    bench.shell("long", "touch up; exec sleep 600")
    (job,) = bench.add([{"application": "long"}])
    launcher = bench.launch()
    wait_until(bench.path(job, "up").exists)
    user_actions.kill(bench.db, [job])
    assert launcher.wait(30) == 0
    assert "(every job has ended): 1 USER_KILLED; 0 attempts\n" in said(bench)


def test_jobs_that_their_scripts_or_the_user_ended_are_counted(bench):
    scripts = {
        "ends": "from balsam_lite.launcher import dag; dag.current_job.update_state('JOB_FINISHED')",
        "hangs": "import pathlib, time; pathlib.Path('up').touch(); time.sleep(600)",
    }
    for name, code in scripts.items():
        path = Path(bench.directory, f"{name}.py")
        path.write_text(code)
        bench.app(name, "true", postprocess=f"{sys.executable} {path}")
    _, job = bench.add([{"application": "ends"}, {"application": "hangs"}])
    launcher = bench.launch()
    wait_until(bench.path(job, "up").exists)
    user_actions.kill(bench.db, [job])
    assert launcher.wait(30) == 0
    assert "(every job has ended): 1 JOB_FINISHED, 1 USER_KILLED; 2 attempts: 2 done\n" in said(bench)


def test_the_rate_is_that_of_the_last_minute():
    rate = RecentRate(100.0)
    rate.note(110.0, 50)
    assert rate.per_s == 5.0
    for second in range(111, 400):
        rate.note(float(second), 50 + (second >= 380) * 12)
    assert rate.per_s == pytest.approx(0.2)
    for second in range(400, 500):
        rate.note(float(second), 62)
    assert rate.per_s == 0.0


def launched(bench, monkeypatch, **only):
    """Return what became of a launch."""
    monkeypatch.setenv("BALSAM_SCHEDULER_CLASS", "LocalScheduler")
    monkeypatch.setenv("BALSAM_IDLE_TTL_S", "0.3")
    settings = Settings.load(bench.directory)
    row = submission.submit_launch(bench.db, settings, LaunchRequest(1, 5, job_mode="serial", **only))
    wait_until(lambda: submission.refresh(bench.db, base.select(settings)) == [], 60, 0.2)
    with bench.db.read() as cx:
        return queries.batch_job(cx, row["id"])


def test_the_reason_of_a_launch_tells_how_many_jobs_it_left_and_why(bench, monkeypatch):
    bench.app("good", "true")
    jobs = bench.add([{"application": "good"}, *({"application": "good", "ranks_per_node": 2} for _ in range(2))])
    bench.add([{"application": "good", "parents": jobs}])
    ended = launched(bench, monkeypatch)
    assert (ended["state"], ended["exit_code"]) == ("finished", 0)
    assert ended["reason"] == (
        "nothing came that it can run; 3 job(s) left: needs --job-mode=mpi or mixed (2), waits for its parents (1)"
    )
    # The next one finds nothing else, and says so for itself.
    assert launched(bench, monkeypatch)["reason"] == ended["reason"]


def test_a_launch_that_left_no_job_has_no_reason(bench, monkeypatch):
    bench.app("good", "true")
    bench.add([{"application": "good"}])
    ended = launched(bench, monkeypatch)
    assert (ended["state"], ended["exit_code"], ended["reason"]) == ("finished", 0, "")


# --- progress and last words ------------------------------------------------------------------------------------------


class StandIn:
    """A launcher that waits for something."""

    awaited, trouble, explained = "", "", ()


def progress_of(db, **limits):
    fields = {"workflow": None, "serial_only": True, "ends_at": None, "idle_ttl_s": 1.0}
    made = Progress(db, Limits(**{**fields, **limits}))
    made.watch(StandIn(), [1, 2])
    return made


def test_progress_has_total_percent_rate_and_time_left_of_the_jobs_of_the_filter(db):
    add(db, *[{"workflow": "w1"}] * 2, *[{"workflow": "w2", "tags": {"k": "v"}}] * 6)
    of_all, of_one, of_tag = progress_of(db), progress_of(db, workflow="w1*"), progress_of(db, tags=(("k", "v"),))
    assert of_all.line(100.0) == "0 of 8 ended (0 %), 2 running, 0.0 jobs/s"
    user_actions.kill(db, [1, 2, 3, 4])
    assert of_all.line(140.0) == "4 of 8 ended (50 %), 4 killed, 2 running, 0.1 jobs/s, about 40 s left"
    assert of_one.line(140.0) == "2 of 2 ended (100 %), 2 killed, 2 running, 0.0 jobs/s"
    assert of_tag.line(140.0) == "2 of 6 ended (33 %), 2 killed, 2 running, 0.0 jobs/s"
    of_all._launcher.awaited = "new jobs"
    assert of_all.line(141.0) == "4 of 8 ended (50 %), 4 killed, 2 running; waits for new jobs"


def test_progress_is_logged_at_growing_intervals_also_without_a_terminal(db, monkeypatch, caplog):
    now = [1000.0]
    monkeypatch.setattr(reporting.time, "monotonic", lambda: now[0])
    progress = progress_of(db)
    logged = []
    with caplog.at_level("INFO", "balsam_lite"):

        def nap(seconds):
            if len(caplog.records) > len(logged):
                logged.append(now[0] - 1000)
            now[0] += seconds

        wait = progress.around(nap)
        while now[0] < 1500:
            wait(1.0)
    assert logged == [30, 90, 210, 450]


def test_the_last_words_are_jobs_then_attempts_then_failures_by_cause_then_what_is_left(bench):
    bench.app("good", "true")
    bench.app("bad", "sh -c 'exit 3'")
    bench.add([{"application": "good"}, {"application": "bad", "max_retries": 1}, {"application": "good", "num_nodes": 99}])
    assert bench.run("--nodes", "1") == 0
    lines = [line.partition("] ")[2] for line in said(bench).splitlines()]
    last = lines[lines.index(next(line for line in lines if line.startswith("Launcher ends"))) :]
    assert last[0].endswith("): 1 JOB_FINISHED, 1 FAILED; 3 attempts: 1 done, 2 failed")
    assert last[1] == "FAILED jobs by cause: exit code 3 (1)"
    assert last[2].startswith("Left: 1 waiting job(s)")


def test_what_is_left_is_grouped_by_reason(bench):
    bench.app("good", "true")
    bench.add({"application": "good", "num_nodes": nodes} for nodes in range(2, 40))
    bench.add([{"application": "good"}] * 2)
    assert bench.run("--nodes", "1") == 0
    lines = [line.partition("] ")[2] for line in said(bench).splitlines()]
    (left,) = (line for line in lines if line.startswith("Left: "))
    assert left.startswith("Left: 38 waiting job(s) like num_nodes=39 ")
    assert " and 37 other kind(s): needs --job-mode=mpi" in left
