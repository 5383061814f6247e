"""Workers, which make calls of executors one after the other: with a real launcher, and calls that spoil their process."""

from __future__ import annotations

import importlib
import marshal
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import pytest
from elsewhere import balsam
from helpers import wait_until
from launching import Bench, alive

from balsam_lite.core.errors import TaskFailed
from balsam_lite.core.process_table import below
from balsam_lite.db.models import use
from balsam_lite.db.query import runs
from balsam_lite.db.store import calls as store
from balsam_lite.launcher import dag
from balsam_lite.launcher.futures import BalsamExecutor
from balsam_lite.pyapps import result_file

MODULE = """
import atexit, os, signal, subprocess, sys, threading, time
from balsam_lite.launcher import dag

def pid(*_): return os.getpid()
def say(text, stream="stdout"):
    print(text, file=getattr(sys, stream))
    return os.getpid()
def say_by_child(text):
    subprocess.run(["echo", text])
    return os.getpid()
def die(number):
    if number < 0: os.kill(os.getpid(), -number)
    os._exit(number)
def spoil():
    os.chdir("/usr"); os.environ["SPOILT"] = "1"; os.environ["HOME"] = "/spoilt"; os.umask(0o777)
    sys.argv[:] = ["spoilt"]; sys.stdout = sys.stderr = None
    return os.getpid()
def state():
    mask = os.umask(0); os.umask(mask)
    return (os.getcwd(), "SPOILT" in os.environ, os.environ.get("HOME"), mask, len(sys.argv), sys.stdout is None)
def leave(seconds):
    child = subprocess.Popen(["sleep", str(seconds)], start_new_session=True)
    return os.getpid(), child.pid
def leave_thread(path):
    def work():
        time.sleep(0.3); open(path, "w").close()
    threading.Thread(target=work).start()
    return os.getpid()
def write(content):
    os.write(99, content)
    time.sleep(30)
def block():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    return os.getpid()
def close():
    os.closerange(3, 256)
    return os.getpid()
def redirect(path):
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 1); print("into a file", flush=True)
    return os.getpid()
def at_exit(path):
    atexit.register(lambda: open(path, "w").close())
    return os.getpid()
def fork():
    if os.fork() == 0: return "child"
    os.wait()
    return "parent"
def wait_for(path):
    while not os.path.exists(path): time.sleep(0.01)
    return os.getpid()
def ignore(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return wait_for(path)
def whoami(): return os.environ["BALSAM_JOB_ID"], os.environ["BALSAM_ATTEMPT"], dag.current_job.name
def burn():
    end = time.process_time() + 0.2
    while time.process_time() < end: pass
    return len(bytearray(100 << 20))
def print_slowly(path):
    print("early", flush=True)
    return wait_for(path)
def unpicklable(): return threading.Lock()
def set_up(directory):
    os.environ["SET_UP"] = "1"; os.chdir(directory); os.umask(0o027); signal.signal(signal.SIGUSR1, lambda *_: None)
    threading.Thread(target=threading.main_thread().join).start()
def seen():
    mask = os.umask(0); os.umask(mask)
    return os.getpid(), os.environ.get("SET_UP"), os.environ.get("IMPORTED"), os.getcwd(), mask
"""
#: A module that sets a variable, as many do for the libraries that they import.
SETTING = """
import os
os.environ["IMPORTED"] = "1"
from spoilers import seen
class Seen:
    def __call__(self): return seen()
"""


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path, BALSAM_IDLE_TTL_S="30")
    with use(made.db):
        yield made
    made.close()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "spoilers.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    importlib.invalidate_caches()
    yield importlib.import_module("spoilers")
    del sys.modules["spoilers"]


@pytest.fixture
def executor(bench, calls):
    """An executor with one slot, so that one worker makes all calls."""
    bench.launch("--nodes", "1")
    with BalsamExecutor() as made:
        yield made


def output(bench, future):
    path = Path(bench.directory, "data", future.job.working_directory, f"{future.job.name}.out")
    return path.read_text() if path.exists() else None


def test_one_worker_makes_the_calls_and_no_directory_is_made(bench, executor, calls):
    futures = [executor.submit(calls.pid) for _ in range(200)]
    assert len({one.result(30) for one in futures}) == 1
    assert not any(os.path.exists(one.job.working_directory) for one in futures[::50])
    job = futures[70].job
    assert (job.state, job.attempt) == ("JOB_FINISHED", 1)
    with bench.db.read() as cx:
        (run,) = runs.runs_of(cx, job.id)
    assert run.return_code == 0 and run.started_us <= run.ended_us and run.user_us is not None
    assert [to for to, _ in bench.history(job.id)] == ["CREATED", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]


def test_each_call_knows_its_job(executor, calls):
    futures = [executor.submit(calls.whoami) for _ in range(3)]
    assert [one.result(30) for one in futures] == [(one.job.job_id, "1", "whoami") for one in futures]


def test_a_call_is_restored_after(executor, calls):
    before = executor.submit(calls.state).result(30)
    assert before[0] == os.getcwd()
    worker = executor.submit(calls.spoil).result(30)
    assert executor.submit(calls.state).result(30) == before
    assert executor.submit(calls.pid).result(30) == worker


def test_what_an_initializer_and_imports_change_stays(bench, calls, tmp_path):
    (tmp_path / "lib" / "setting.py").write_text(SETTING)
    (tmp_path / "elsewhere").mkdir()
    bench.launch("--nodes", "1")
    with BalsamExecutor(initializer=calls.set_up, initargs=(str(tmp_path / "elsewhere"),)) as executor:
        worker, *first = executor.submit(calls.seen).result(30)
        assert first == ["1", None, str(tmp_path / "elsewhere"), 0o027]
        assert executor.submit(calls.spoil).result(30) == worker
        function = importlib.import_module("setting").Seen()
        for _ in range(3):
            assert executor.submit(function).result(30) == (worker, "1", "1", str(tmp_path / "elsewhere"), 0o027)
    del sys.modules["setting"], os.environ["IMPORTED"]


@pytest.mark.parametrize("content", [b"garbage", marshal.dumps([(1, 10**6, 0)], 2), marshal.dumps(7, 2)])
def test_a_call_that_writes_to_the_socket_of_its_worker_costs_only_itself(executor, calls, content):
    with pytest.raises(TaskFailed, match="SIGKILL"):
        executor.submit(calls.write, content).result(30)
    assert executor.submit(abs, -1).result(30) == 1


@pytest.mark.parametrize("number", [0, 3, -signal.SIGKILL, -signal.SIGSEGV])
def test_a_call_that_ends_its_worker_costs_only_itself(executor, calls, number):
    first = executor.submit(calls.pid).result(30)
    futures = [executor.submit(calls.pid), executor.submit(calls.die, number), *(executor.submit(calls.pid) for _ in range(20))]
    with pytest.raises(TaskFailed, match=r"before its function returned|nonzero return 3|killed by signal"):
        futures[1].result(30)
    others = {one.result(30) for one in futures if one is not futures[1]}
    assert len(others) == 2 and first in others
    assert {one.job.attempt for one in futures} == {1}


def test_what_a_call_prints_is_its_jobs_output(bench, executor, calls):
    quiet = executor.submit(calls.pid)
    said = [
        executor.submit(calls.say, "one"),
        executor.submit(calls.say, "two", "stderr"),
        executor.submit(calls.say_by_child, "3"),
    ]
    assert len({one.result(30) for one in [quiet, *said]}) == 1
    assert [output(bench, one) for one in [quiet, *said]] == [None, "one\n", "two\n", "3\n"]


def test_the_output_of_a_long_call_can_be_read_while_it_runs(bench, executor, calls, tmp_path):
    future = executor.submit(calls.print_slowly, str(tmp_path / "gate"))
    wait_until(lambda: output(bench, future) == "early\n", 20)
    (tmp_path / "gate").touch()
    worker = future.result(30)
    assert executor.submit(calls.say, "next").result(30) == worker
    assert output(bench, future) == "early\n"


def test_processes_and_threads_that_a_call_leaves_end_its_worker(bench, executor, calls, tmp_path):
    future = executor.submit(calls.leave, 600)
    worker, child = future.result(30)
    assert "Left 1 process running: sleep" in str(future.job.state_history)
    assert executor.submit(calls.pid).result(30) != worker
    future = executor.submit(calls.leave_thread, str(tmp_path / "by_thread"))
    worker = future.result(30)
    assert (tmp_path / "by_thread").exists()  # as with any program, the call ends when its threads have
    assert executor.submit(calls.pid).result(30) != worker
    bench.close()
    wait_until(lambda: not alive(child))


@pytest.mark.parametrize("how", ["block", "close"])
def test_a_worker_that_cannot_be_restored_makes_no_other_call(executor, calls, how):
    worker = executor.submit(getattr(calls, how)).result(30)
    assert executor.submit(calls.pid).result(30) != worker


def test_streams_and_forks_of_a_call_do_not_matter_to_the_next(bench, executor, calls, tmp_path):
    executor.submit(calls.redirect, str(tmp_path / "own")).result(30)
    assert (tmp_path / "own").read_text() == "into a file\n"
    said = executor.submit(calls.say, "again")
    said.result(30)
    assert output(bench, said) == "again\n"
    assert executor.submit(calls.fork).result(30) == "parent"
    with pytest.raises(Exception, match="cannot be serialised"):
        executor.submit(calls.unpicklable).result(30)


def test_a_worker_ends_after_its_number_of_calls_and_runs_its_exit_hooks(bench, calls, tmp_path):
    bench.launch("--nodes", "1")
    with BalsamExecutor(max_tasks_per_child=3) as executor:
        pids = [executor.submit(calls.pid) for _ in range(7)]
        assert len({one.result(30) for one in pids}) == 3
        executor.submit(calls.at_exit, str(tmp_path / "hook")).result(30)
        for _ in range(3):
            executor.submit(calls.pid).result(30)
    wait_until((tmp_path / "hook").exists)


@pytest.mark.parametrize("how", ["wait_for", "ignore"])
def test_a_kill_reaches_a_call_and_another_worker_goes_on(executor, calls, tmp_path, how):
    future = executor.submit(getattr(calls, how), str(tmp_path / "never"))
    after = [executor.submit(calls.pid) for _ in range(3)]
    wait_until(future.running)
    dag.kill(future.job)
    assert len({one.result(30) for one in after}) == 1
    assert future.job.state == "USER_KILLED"


def test_what_a_call_uses_is_recorded(bench, executor, calls):
    executor.submit(calls.pid).result(30)
    futures = [executor.submit(calls.burn), executor.submit(calls.pid)]
    assert [one.exception(30) for one in futures] == [None, None]
    with bench.db.read() as cx:
        burnt, idle = (
            cx.execute("SELECT user_us + system_us, max_memory FROM run WHERE job = ?", (f.number,)).fetchone() for f in futures
        )
    assert burnt[0] > 150_000 and idle[0] < 100_000
    assert burnt[1] is not None and burnt[1] > 100 << 20


def test_the_directory_of_the_caller_may_be_missing_where_the_call_runs(executor, calls, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    future = executor.submit(calls.pid)
    assert future.number
    os.rmdir(tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    if future.exception(30) is not None:
        with pytest.raises(Exception, match="cannot be entered"):
            future.result()


def test_idle_workers_end_with_their_launcher(bench, executor, calls):
    worker = executor.submit(calls.pid).result(30)
    assert alive(worker)
    bench.close()
    wait_until(lambda: not alive(worker))


@pytest.mark.parametrize("victim", ["launcher", "helper", "worker"])
def test_nothing_is_lost_or_made_twice_when_a_process_is_killed(bench, calls, victim, tmp_path):
    """A call in the middle of many is interrupted; those that had ended stay, the others run."""
    log = tmp_path / "made"
    launcher = bench.launch("--nodes", "2")
    executor = BalsamExecutor()
    try:
        futures = [executor.submit(_note, str(log), n) for n in range(400)]
        wait_until(lambda: log.exists() and log.stat().st_size > 300)
        pids = {one.pid for one in below(launcher.pid)}
        names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if Path(f"/proc/{pid}/cmdline").exists()}
        marks = {"launcher": None, "helper": b"spawn_helper", "worker": b"--worker"}
        chosen = [launcher.pid] if victim == "launcher" else [pid for pid, name in names.items() if marks[victim] in name][:1]
        for pid in chosen:
            os.kill(pid, signal.SIGKILL)
        if victim == "launcher":
            launcher.wait()
            bench.launch("--nodes", "2")
        ends = [one.exception(60) for one in futures]
        assert sum(one is not None for one in ends) <= (2 if victim == "worker" else 0)
        attempts = {one.number: one.job.attempt for one in futures}
    finally:  # if the test fails there may be no launcher that ends the calls
        executor.shutdown(wait=False, cancel_futures=True)
    made = [int(word) for word in log.read_text().split()]
    for n, future in enumerate(futures):
        assert 1 <= made.count(n) <= attempts[future.number]


def _note(path, number):
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{number}\n".encode())
    os.close(descriptor)
    time.sleep(0.002)


def test_a_removed_call_comes_back_with_its_result_and_runs_again(bench, executor, calls):
    future = executor.submit(calls.pid)
    worker = future.result(30)
    assert balsam(bench.directory, "rm", "jobs", "--id", f"#{future.number}", "--force")[0] == 0
    assert balsam(bench.directory, "undo", "--yes")[0] == 0
    with bench.db.read() as cx:
        assert pickle.loads(result_file.unpickled(store.results(cx, [future.number])[future.number]).value) == worker
    assert balsam(bench.directory, "rerun", "--id", f"#{future.number}", "--yes")[0] == 0
    bench.wait_for(future.number, "JOB_FINISHED")
    assert bench.job(future.number)["attempt"] == 2
    assert balsam(bench.directory, "db", "check", "--seconds", "0")[0] == 0
