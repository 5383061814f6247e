"""`balsam_lite.launcher.futures`: waiting for jobs, with real launchers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time

import pytest
from helpers import wait_until
from launching import PYTHON, Bench

from balsam_lite.core.errors import InputError, TaskFailed, UnknownJob, WaitTimeout
from balsam_lite.db.engine import directories
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.query import queries
from balsam_lite.db.store import apps, user_actions
from balsam_lite.launcher import dag, waiter
from balsam_lite.launcher.futures import FutureTask, as_completed, wait


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.app("say-hello", "echo Hello,")
    made.app("sleep", "sleep")
    made.app("fail", "sh -c 'echo it broke; exit 3'")
    with use(made.db):
        yield made
    made.close()


@pytest.fixture(params=["local", "shared"])
def db(tmp_path, request):
    database = directories.create(str(tmp_path / "db"), request.param)
    with database.write() as cx:
        apps.add_app(cx, {"name": "x", "executable": "true"})
    with use(database):
        yield database
    database.close()


def task(*callbacks, **fields) -> FutureTask:
    return FutureTask(dag.add_job("t", application="x", **fields), *callbacks)


def end(future: FutureTask, state: str = "JOB_FINISHED") -> None:
    """As a launcher or another process does; through the active DB, which is another connection than the watch's."""
    user_actions.set_state(future.job._db, [future.job.id], state, f"{state} for the test")


def later(seconds: float, *calls) -> threading.Thread:
    """Run those calls one after the other in a thread, that many seconds apart."""

    def do() -> None:
        for call in calls:
            threading.Event().wait(seconds)
            call()

    thread = threading.Thread(target=do)
    thread.start()
    return thread


# --- with a launcher --------------------------------------------------------------------------------------------------


def test_the_snippet_of_the_slides_works(bench):
    from balsam_lite.launcher.dag import add_job

    def on_done(job):
        return job.read_file_in_workdir(f'{job.name}.out')  # fmt: skip

    bench.launch()
    futures = []
    for i in range(10):
        j = add_job(name=f'task{i}',
                    application='say-hello',
                    args=f'world {i}!'
                    )  # fmt: skip
        futures.append(FutureTask(j, on_done))

    results = wait(futures, return_when='ANY_COMPLETED', timeout=30)  # fmt: skip
    assert results.done
    assert (results.failed, results.cancelled) == ([], [])
    assert results.done[0].result() == f"Hello, world {futures.index(results.done[0])}!\n"
    assert wait(futures, 30, "ALL_COMPLETED").done == futures
    assert [one.result() for one in futures] == [f"Hello, world {i}!\n" for i in range(10)]


def test_a_failed_job_raises_with_its_history_and_its_child_names_it(bench):
    parent = dag.add_job("p", application="fail")
    child = dag.add_job("c", application="say-hello", parents=[parent])
    futures = [FutureTask(parent), FutureTask(child)]
    bench.launch()
    assert wait(futures, 30, "ALL_COMPLETED").failed == futures
    with pytest.raises(TaskFailed, match=rf"\[p | {parent.job_id[:8]}\] is FAILED: nonzero return 3: it broke"):
        futures[0].result()
    with pytest.raises(TaskFailed, match=r"(?s)\[c .* parent jobs failed.*\[p .*nonzero return 3: it broke"):
        futures[1].result()


def test_cancel_stops_a_running_job_and_those_below(bench):
    first = FutureTask(dag.add_job("a", application="sleep", args="60"))
    second = FutureTask(dag.add_job("b", application="sleep", args="60", parents=[first.job]))
    bench.launch()
    bench.wait_for(first.job.id, "RUNNING")
    assert first.cancel()
    assert (first.cancelled, second.cancelled, first.active) == (True, True, False)
    assert (first.result(), second.result(0)) == (None, None)
    assert not first.cancel()
    wait_until(lambda: bench.job(first.job.id)["lease"] is None)


def test_a_waiter_gets_the_truth_when_the_launcher_is_killed(bench):
    waiting = FutureTask(dag.add_job("a", application="sleep", args="1"), lambda job: job.state_history)
    launcher = bench.launch()
    bench.wait_for(waiting.job.id, "RUNNING")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(waiting.result(30)))
    thread.start()
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    with pytest.raises(WaitTimeout, match="is still R"):
        waiting.result(0.1)
    bench.launch()
    thread.join(40)
    assert "RESTART_READY" in found[0]
    assert found[0].rpartition("\n")[2].endswith("JOB_FINISHED]")


MASTER = """
import json
from balsam_lite.launcher import dag
from balsam_lite.launcher.futures import FutureTask, as_completed, wait

def on_done(job, factor, plus=0):
    return factor * int(job.read_file_in_workdir("t.out").split()[1]) + plus

tasks = []
for i in range(5):
    job = dag.add_job("t", dag.current_job.workflow, "say-hello", args=str(i))
    tasks.append(FutureTask(job, on_done, None, 10, plus=1))
first = wait(tasks, timeout=30)
assert first.done and not first.failed
seen = [task.result() for task in as_completed(tasks, 30)]
json.dump(sorted(seen), open("seen.json", "w"))
"""


def test_a_master_job_spawns_tasks_and_waits_for_them(bench):
    bench.script("master", MASTER)
    (master,) = bench.add([{"name": "m", "workflow": "search", "application": "master"}])
    assert bench.run("--nodes", "2") == 0
    assert bench.states() == {"JOB_FINISHED": 6}, bench.history(master)
    assert json.loads(bench.path(master, "seen.json").read_text()) == [1, 11, 21, 31, 41]


def test_an_end_is_noticed_soon(bench):
    bench.launch(BALSAM_IDLE_TTL_S="30")
    delays = []
    for _ in range(5):
        one = FutureTask(dag.add_job("a", application="say-hello"))
        one.result(30)
        noticed = time.time()
        ended = one.job._events()[-1][0] / 1e6
        delays.append(noticed - ended)
    assert min(delays) < 0.1
    assert max(delays) < 0.5


# --- without ----------------------------------------------------------------------------------------------------------


def test_wait_returns_at_once_if_there_is_nothing_to_wait_for(db):
    assert wait([]) == wait([], return_when="ALL_COMPLETED") == ([], [], [], [])
    assert list(as_completed([])) == []
    futures = [task() for _ in range(3)]
    end(futures[1])
    assert wait(futures, 0) == ([futures[0], futures[2]], [futures[1]], [], [])
    with pytest.raises(InputError, match="FIRST"):
        wait(futures, return_when="FIRST")


def test_wait_sorts_what_became_of_them_in_the_order_given(db):
    tasks = [task() for _ in range(6)]
    for one, state in zip(tasks, ("FAILED", "JOB_FINISHED", "USER_KILLED", "JOB_FINISHED", "CREATED")):
        end(one, state)
    tasks[5].job.delete()
    assert wait(tasks) == ([tasks[4]], [tasks[1], tasks[3]], [tasks[0], tasks[5]], [tasks[2]])
    assert [(one.active, one.done, one.failed, one.cancelled) for one in tasks[:3]] == [
        (False, False, True, False), (False, True, False, False), (False, False, False, True)]  # fmt: skip


def test_a_timeout_loses_nothing(db):
    tasks = [task() for _ in range(3)]
    end(tasks[0])
    with pytest.raises(TimeoutError, match=r"2 of 3 jobs were not completed after 0\.05 s") as caught:
        wait(tasks, 0.05, "ALL_COMPLETED")
    assert caught.value.partial == ([tasks[1], tasks[2]], [tasks[0]], [], [])
    assert tasks[0].result(0) is None
    with pytest.raises(WaitTimeout, match=rf"Job {tasks[1].job.cute_id[:4].replace('[', '.')}.* is still CREATED after 0"):
        tasks[1].result(0)


@pytest.mark.parametrize("when", ["ANY_COMPLETED", "ALL_COMPLETED"])
def test_wait_wakes_when_any_or_all_are_completed(db, when):
    tasks = [task() for _ in range(3)]
    thread = later(0.05, lambda: end(tasks[2]), lambda: end(tasks[0], "FAILED"), lambda: end(tasks[1]))
    found = wait(tasks, 30, when)
    if when == "ALL_COMPLETED":
        assert found == ([], [tasks[1], tasks[2]], [tasks[0]], [])
    else:
        assert tasks[2] in found.done
    thread.join()


def test_as_completed_yields_each_when_it_is_time_though_others_look_meanwhile(db):
    tasks = [task() for _ in range(4)]
    end(tasks[3])
    twin = FutureTask(tasks[1].job)
    seen = []
    for one in as_completed([*tasks, twin, tasks[0]], 30):
        seen.append(one)
        if len(seen) == 1:
            thread = later(0.02, *(lambda n=n: end(tasks[n]) for n in (1, 0, 2)))
        assert not one.active
        assert len([other for other in tasks if other.done]) >= 1  # takes the news that the loop waits for
    thread.join()
    assert seen[0] is tasks[3]
    assert set(seen) == {*tasks, twin}
    assert len(seen) == 5
    left = [task()]
    with pytest.raises(TimeoutError) as caught:
        list(as_completed(left, 0.01))
    assert caught.value.partial.active == left


def test_callbacks_are_called_once_and_their_values_and_errors_are_kept(db):
    calls = []

    def done(job, *args, **kwargs):
        calls.append((job.state, args, kwargs))
        return len(calls)

    def broken(job):
        calls.append(job.state)
        raise KeyError("mine")

    one = FutureTask(dag.add_job("t", application="x"), done, None, 1, b=2)
    bad = task(None, broken)
    end(one)
    end(bad, "FAILED")
    wait([one, bad])
    assert calls == []
    threads = [threading.Thread(target=one.result) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (one.result(), one.result(), calls) == (1, 1, [("JOB_FINISHED", (1,), {"b": 2})])
    for _ in range(2):
        with pytest.raises(KeyError, match="mine"):
            bad.result()
    assert calls[1:] == ["FAILED"]


def test_the_end_is_final_here_and_a_new_task_looks_anew(db):
    one = task()
    end(one, "FAILED")
    assert one.failed
    end(one, "CREATED")
    assert one.failed
    again = FutureTask(one.job)
    assert again.active
    end(again)
    assert again.result(30) is None


def test_deleted_jobs_count_as_failed_whatever_happens_to_the_numbers_of_events(db):
    keep, lost, other = task(), task(), task()
    with pytest.raises(WaitTimeout):
        wait([keep, lost, other], 0)
    end(lost, "STAGED_IN")

    def swap() -> None:
        with db.write():
            lost.job.delete()
            end(keep)  # its event has the number of one that is gone

    thread = later(0.1, swap)
    assert wait([keep, lost, other], 30) == ([other], [keep], [lost], [])
    thread.join()
    assert not lost.cancel()
    with pytest.raises(TaskFailed, match=f"{lost.job.job_id[:8]}.* was deleted"):
        lost.result()


def test_threads_see_the_same(db):
    tasks = [task() for _ in range(20)]
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(wait(tasks, 30, "ALL_COMPLETED").done))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for one in tasks:
        end(one)
    for thread in threads:
        thread.join(40)
    assert found == [20] * 4


def test_a_thread_that_read_too_early_does_not_undo_an_end(db, monkeypatch):
    """Several threads share what is known of a job, and the one that writes it down last may have read it first."""
    one = task()
    states_of = queries.states_of
    read, go_on = threading.Event(), threading.Event()

    def late(cx, numbers):
        found = states_of(cx, numbers)
        if threading.current_thread() is thread:
            read.set()
            assert go_on.wait(30)
        return found

    def follow():
        waiter.feed_of(one._database).follow([one._status])
        seen.append(one._status.state)

    monkeypatch.setattr(queries, "states_of", late)
    seen: list[str] = []
    thread = threading.Thread(target=follow)
    thread.start()
    assert read.wait(30)
    if db.access == "local":  # a shared DB is this thread's own until it has read
        end(one)
        assert wait([one], 30).done == [one]
    else:
        one._status.learn("JOB_FINISHED")
    go_on.set()
    thread.join(30)
    assert (seen, one.done) == (["JOB_FINISHED"], True)


def test_futures_of_several_dbs_are_waited_for_together(db, tmp_path):
    one = task()
    other_db = directories.create(str(tmp_path / "other"), "local")
    with use(other_db):
        with other_db.write() as cx:
            apps.add_app(cx, {"name": "x", "executable": "true"})
        two = task()
    thread = later(0.05, lambda: end(two), lambda: end(one))
    assert wait([one, two], 30, "ALL_COMPLETED").done == [one, two]
    thread.join()
    other_db.close()


def test_only_saved_jobs_are_taken(db):
    with pytest.raises(UnknownJob, match="not in the DB yet"):
        FutureTask(BalsamJob(name="a", application="x"))
    for wrong in (3, "abc", None):
        with pytest.raises(InputError, match="BalsamJob"):
            FutureTask(wrong)


def test_watching_does_not_take_changes_from_others(db):
    """`Database.changed` has one memory; a launcher or a user's own loop asks it too."""
    one = task()
    db.changed()
    end(one)
    assert one.done
    thread = later(0, lambda: end(one, "CREATED"))
    thread.join()
    assert db.changed()


def test_nothing_is_kept_of_futures_that_are_gone(db):
    import gc

    tasks = [task() for _ in range(10)]
    with pytest.raises(WaitTimeout):
        wait(tasks, 0)
    assert len(waiter._statuses) >= 10
    del tasks
    gc.collect()
    assert not waiter._statuses
    assert not waiter._feeds.by_place


def test_a_forked_child_waits_for_itself(db):
    one = task()
    assert one.active
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if one.result(20) is None and one.done else 1
        finally:
            os._exit(code)
    end(one)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert wait([one], 20).done == [one]


def test_importing_loads_little():
    code = """
import sys
from balsam_lite.launcher import futures
assert not {"peewee", "sqlite3", "concurrent.futures", "json"} & set(sys.modules)
from balsam_lite.launcher.futures import BalsamExecutor
"""
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
