"""Changes of very many jobs, which are carried out in pieces: by small thresholds, with crashes between any two pieces."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest
from helpers import Slots, db_with_app
from launching import Bench

from balsam_lite.cli.main import main
from balsam_lite.core import states
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import ParentInUse, StateError, UnknownApp
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import doctor, maintenance
from balsam_lite.db.manager import use
from balsam_lite.db.models import BalsamJob
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import claims, counters, graph, insert, large_writes, leases, pieces, runs, transitions, user_actions
from balsam_lite.launcher import reporting
from balsam_lite.launcher.exec.trouble import Pause, Setbacks
from balsam_lite.launcher.placement import Node, NodePool

JOBS = 60


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 20)
    monkeypatch.setattr(large_writes, "JOBS_PER_PART", 10)
    monkeypatch.setattr(pieces, "PIECE_S", 0)
    monkeypatch.setattr(pieces, "PAUSE_S", 0)


@pytest.fixture
def db(tmp_path):
    with db_with_app(tmp_path / "db") as made:
        yield made


def add(db, number=JOBS, **fields):
    return list(insert.add_jobs(db, [{"application": "a", **fields} for _ in range(number)]).ids)


def chain(db):
    """Add a chain of JOBS jobs, all finished."""
    rows = [{"application": "a", "parents": [insert.Position(n - 1)] if n else []} for n in range(JOBS)]
    jobs = list(insert.add_jobs(db, rows).ids)
    with db.write() as cx:
        cx.execute("UPDATE job SET state = 'JOB_FINISHED', unfinished_parents = 0")
        cx.execute("INSERT INTO event (job, time, from_state, to_state) SELECT id, 1, 'CREATED', 'JOB_FINISHED' FROM job")
        counters.recount(cx)
    return jobs


def open_lease(db):
    with db.write() as cx:
        return leases.open_lease(cx, "launcher", Holder.current(), "", 1)


def take(db, lease):
    with db.write() as cx:
        return [claim.job for claim in claims.take(cx, lease, Slots(1000), claims.Filter(), 2).to_run]


def counts(db):
    with db.read() as cx:
        return select.count_states(cx)


def check(db):
    """The rows agree with each other, and nothing is left of any large write."""
    found = [one for one in doctor.look_over(db, now_us=2, expiry_s=60) if one.topic == "rows"]
    assert [one.level for one in found] == ["ok"], found
    with db.read() as cx:
        assert cx.execute("SELECT count(*) FROM large_write").fetchone() == (0,)
        assert cx.execute("SELECT count(*) FROM large_write_part").fetchone() == (0,)
        assert cx.execute("SELECT count(*) FROM job WHERE start_after IS NOT NULL").fetchone() == (0,)


def run_alone(db, code, failpoint=""):
    """Run `code` in another process with the same thresholds; it has `db`, `jobs`, `user_actions` and `pieces`."""
    script = f"""
import sys
from balsam_lite.db.engine import directories; from balsam_lite.db.query import queries, select
from balsam_lite.db.store import large_writes, pieces, user_actions
large_writes.MAX_DIRECT_JOBS, large_writes.JOBS_PER_PART, pieces.PIECE_S, pieces.PAUSE_S = 20, 10, 0, 0
db = directories.open_database({db.directory!r})
with db.read() as cx:
    jobs = select.job_ids(cx)
{code}
db.close()
"""
    environ = {**os.environ, **({pieces.FAILPOINT: failpoint} if failpoint else {})}
    return subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60)


OPERATIONS = {
    "user_actions.rerun(db, jobs)": {"CREATED": 1, "AWAITING_PARENTS": JOBS - 1},
    "user_actions.kill(db, jobs)": {"JOB_FINISHED": JOBS},
    "user_actions.set_state(db, jobs, 'FAILED')": {"FAILED": JOBS},
    "user_actions.update_fields(db, jobs, {'args': 'new'})": {"JOB_FINISHED": JOBS},
    "user_actions.delete(db, jobs, force=True)": {},
}


@pytest.mark.parametrize("code", OPERATIONS)
def test_a_large_write_does_what_a_small_one_does(db, code, monkeypatch):
    jobs = chain(db)
    exec(code, {"db": db, "jobs": jobs, "user_actions": user_actions})
    assert {state: number for state, number in counts(db).items() if number} == OPERATIONS[code]
    check(db)


@pytest.mark.parametrize("code", OPERATIONS)
def test_the_next_command_completes_what_a_kill_at_any_piece_has_cut(db, code):
    jobs = chain(db)
    another = add(db, 1)[0]  # that the list does not name, for the next command
    died = 0
    for place in ("before-piece", "after-piece"):
        for number in (1, 3, 6):
            done = run_alone(db, f"jobs = {jobs}\n{code}", f"{place}:{number}")
            died += done.returncode == -signal.SIGKILL
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
            user_actions.update_fields(db, [another], {"args": f"{number}"})
            expected = {**OPERATIONS[code]}
            expected["CREATED"] = expected.get("CREATED", 0) + 1
            assert {state: jobs for state, jobs in counts(db).items() if jobs} == expected
            check(db)
            if code == "user_actions.delete(db, jobs, force=True)":
                return
    assert died >= 4


def test_no_job_of_an_unfinished_list_is_claimed_and_all_are_in_the_end(db, monkeypatch):
    jobs, lease = chain(db), open_lease(db)
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "complete", lambda *_: {"jobs": 0, "held": 0})
        user_actions.rerun(db, jobs)
    monkeypatch.setattr(pieces, "_is_abandoned", lambda *_: True)
    while pieces.advance_abandoned(db):
        with db.read() as cx:
            is_unfinished = cx.execute("SELECT count(*) FROM large_write_part").fetchone() > (0,)
        if is_unfinished:
            assert take(db, lease) == []
    assert take(db, lease) == jobs[:1]
    with db.write() as cx:
        claims.finish(cx, lease, [runs.RunResult(jobs[0], 1, states.RUN_DONE, 0, "", 3, 4)], 5)
    assert take(db, lease) == jobs[1:2]


def test_no_launcher_takes_a_job_whose_state_an_unfinished_list_has_yet_to_set(db, monkeypatch):
    jobs, lease = add(db), open_lease(db)
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "complete", lambda *_: {"changed": 0})
        user_actions.set_state(db, jobs, states.JOB_FINISHED)
    assert take(db, lease) == []
    other = add(db, 1, priority=-1)
    assert take(db, lease) == other
    monkeypatch.setattr(pieces, "_is_abandoned", lambda *_: True)
    pieces.complete(db)
    assert counts(db) == {states.JOB_FINISHED: JOBS, states.RUNNING: 1}


def test_a_kill_during_an_unfinished_rerun_stays(db, monkeypatch):
    jobs = chain(db)
    with monkeypatch.context() as patch:
        patch.setattr(pieces, "complete", lambda *_: {"jobs": 0, "held": 0})
        user_actions.rerun(db, jobs)
    victim = jobs[-1]
    assert user_actions.kill(db, [victim]).killed == 1
    monkeypatch.setattr(pieces, "_is_abandoned", lambda *_: True)
    pieces.complete(db)
    with db.read() as cx:
        assert queries.job(cx, victim)["state"] == states.USER_KILLED
    check(db)


def test_what_is_wrong_with_one_job_is_raised_before_any_is_changed(db):
    jobs, lease = add(db), open_lease(db)
    with db.write() as cx:
        running = claims.take(cx, lease, Slots(1), claims.Filter(), 2).to_run[0].job
    before = counts(db)
    with pytest.raises(StateError):
        user_actions.set_state(db, jobs, states.JOB_FINISHED)
    with pytest.raises(UnknownApp):
        user_actions.update_fields(db, jobs, {"application": "none"})
    with pytest.raises(StateError):
        user_actions.change(db, [user_actions.Change(jobs, {"args": "new"}, states.FAILED)])
    assert counts(db) == before
    with db.read() as cx:
        assert not large_writes.is_any(cx)
        assert queries.job(cx, running)["args"] == ""


def test_jobs_that_others_wait_for_are_not_removed(db):
    jobs = add(db)
    child = insert.add_jobs(db, [{"application": "a", "parents": jobs[-1:]}]).first
    with pytest.raises(ParentInUse):
        user_actions.delete(db, jobs)
    assert sum(counts(db).values()) == JOBS + 1
    assert user_actions.delete(db, jobs, force=True) == JOBS
    with db.read() as cx:
        assert queries.job(cx, child)["state"] == states.FAILED
    check(db)


def test_a_recursive_kill_of_many_kills_them_all(db):
    first = add(db, 1)[0]
    add(db, parents=[first])
    assert user_actions.kill(db, [first], recursive=True).killed == JOBS + 1
    assert counts(db) == {states.USER_KILLED: JOBS + 1}
    check(db)


def test_query_sets_and_batches_change_many_jobs_in_pieces(db):
    jobs = add(db)
    with use(db):
        assert BalsamJob.objects.filter(state="CREATED").update(state="JOB_FINISHED", args="x") == JOBS
        assert BalsamJob.objects.filter(args="x", state="JOB_FINISHED").count() == JOBS
        ids = list(BalsamJob.objects.values_list("job_id", flat=True))
        assert BalsamJob.batch_update_state(ids, "CREATED") == JOBS
        assert counts(db) == {"CREATED": JOBS}
        check(db)
        assert take(db, open_lease(db)) == jobs
        assert BalsamJob.objects.all().delete() == JOBS
    check(db)


@pytest.mark.parametrize("end", ["JOB_FINISHED", "FAILED"])
def test_the_end_of_a_parent_of_many_is_a_list_that_any_launcher_carries_out(db, end):
    parent = add(db, 1)[0]
    children = add(db, parents=[parent])
    now_us = SystemClock.now_us()
    with db.write() as cx:
        transitions.apply(cx, [transitions.Transition(parent, ("CREATED", end), now_us)], states.USER)
        graph.propagate(cx, *(([parent], []) if end == "JOB_FINISHED" else ([], [parent])), now_us)
        assert large_writes.is_any(cx)
    assert counts(db)[states.AWAITING_PARENTS] == JOBS
    turns = 0
    while pieces.advance_abandoned(db):
        turns += 1
    assert turns >= JOBS // large_writes.JOBS_PER_PART
    assert counts(db).get(states.READY if end == "JOB_FINISHED" else states.FAILED, 0) >= JOBS
    check(db)
    if end == "FAILED":
        user_actions.set_state(db, [parent], states.RESTART_READY)
        assert counts(db)[states.AWAITING_PARENTS] == JOBS
        check(db)
    else:
        assert take(db, open_lease(db)) == children


def test_an_interrupt_tells_what_is_left_and_who_completes_it(db, monkeypatch):
    chain(db)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pieces, "pause", interrupt)
    with db.read() as cx:
        jobs = select.job_ids(cx)
    with pytest.raises(KeyboardInterrupt, match=f"10 of {JOBS} done; the next balsam command or launcher completes it"):
        user_actions.rerun(db, jobs)


def test_the_owner_hears_how_far_it_is(db):
    jobs, seen = chain(db), []
    user_actions.rerun(db, jobs, progress=seen.append)
    assert sum(seen) == JOBS


@pytest.mark.parametrize(("run_when", "expected"), [("all_finished", "FAILED"), ("all_ended", "READY")])
def test_removing_a_parent_of_many_tells_its_children_in_pieces(db, run_when, expected):
    parent = add(db, 1)[0]
    add(db, parents=[parent], run_when=run_when)
    with pytest.raises(ParentInUse):
        user_actions.delete(db, [parent])
    seen = []
    assert user_actions.delete(db, [parent], force=True, progress=seen.append) == 1
    assert len(seen) > JOBS // large_writes.JOBS_PER_PART
    assert {state: jobs for state, jobs in counts(db).items() if jobs} == {expected: JOBS}
    check(db)


# --- launchers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.app("a", "true")
    yield made
    made.close()


def test_a_launcher_completes_what_a_killed_rerun_has_left_and_runs_all(bench):
    jobs = chain(bench.db)
    done = run_alone(bench.db, f"user_actions.rerun(db, {jobs})", "after-piece:2")
    assert done.returncode == -signal.SIGKILL
    with bench.db.read() as cx:
        assert large_writes.is_any(cx)
    assert bench.run() == 0
    assert counts(bench.db) == {states.JOB_FINISHED: JOBS}
    with bench.db.read() as cx:
        started = [job for (job,) in cx.execute("SELECT job FROM event WHERE to_state = 'RUNNING' ORDER BY id")]
    assert started == jobs
    check(bench.db)


def test_a_launcher_promotes_very_many_children_before_it_leaves(bench, monkeypatch):
    monkeypatch.undo()  # the launcher has the usual thresholds
    (parent,) = bench.add([{"application": "a", "workflow": "parent"}])
    many = large_writes.MAX_DIRECT_JOBS + 1
    bench.add({"application": "a", "workflow": "children", "parents": [parent]} for _ in range(many))
    assert bench.run("--wf-filter", "parent") == 0
    assert counts(bench.db) == {states.JOB_FINISHED: 1, states.READY: many}
    check(bench.db)


# --- who completes it, and who is told --------------------------------------------------------------------------------


def cut_rerun(db):
    """A rerun of all jobs of which nothing is done yet, and whose process is gone."""
    jobs = chain(db)
    done = run_alone(db, f"user_actions.rerun(db, {jobs})", "before-piece:1")
    assert done.returncode == -signal.SIGKILL
    return jobs


def test_db_info_and_db_check_tell_what_is_unfinished_and_who_completes_it(db):
    cut_rerun(db)
    text = "; the next command that changes jobs, a launcher or the service completes it"
    (told,) = maintenance.info(db, {})["unfinished_changes"]
    assert told.startswith(f"a change of {JOBS} job(s), 0 of them done by process ")
    assert told.endswith(text)
    (found,) = [one for one in doctor.look_over(db, now_us=2, expiry_s=60) if one.topic == "large write"]
    assert (found.level, found.text) == ("note", told)
    add(db, 1)
    assert maintenance.info(db, {})["unfinished_changes"] == []


def test_a_launcher_that_leaves_names_the_change_that_its_jobs_wait_for(db):
    jobs = cut_rerun(db)
    with db.write() as cx:
        cx.execute("UPDATE job SET state = 'CREATED', unfinished_parents = 0 WHERE id = ?", jobs[-1:])
        cx.execute("UPDATE job SET state = 'CREATED', start_after = ? WHERE id = ?", (large_writes.held_until(1), jobs[0]))
    limits = reporting.Limits(None, True, None, 1.0)
    seen = reporting.Obstacles(db, NodePool([Node(4)]), limits, Pause(), Setbacks(), SystemClock(), 4)
    told = seen.survey(claims.Filter())
    assert told[0].endswith("waits for the end of a change of very many jobs")
    assert "1 job(s) wait for the end of a change of very many jobs" in told
    assert seen.left == {"waits for the end of a change of very many jobs": 2}


def test_a_recursive_kill_shows_how_far_it_is(db, monkeypatch):
    jobs = chain(db)
    with db.write() as cx:
        cx.execute("UPDATE job SET state = 'CREATED'")
        counters.recount(cx)
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setenv("BALSAM_DB_PATH", db.directory)
    monkeypatch.setattr(sys, "stderr", shown)
    assert main(["killjob", "--id", f"#{jobs[0]}", "--recursive", "--yes"]) == 0
    assert " 50 %" in shown.getvalue()
    assert counts(db) == {"USER_KILLED": JOBS}
    check(db)
