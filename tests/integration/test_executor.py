"""`BalsamExecutor`, with a real launcher; the calls are functions of a module that is made for each test."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import importlib
import os
import pickle
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from helpers import wait_until
from launching import PYTHON, Bench, alive
from mpi import openmpi, with_mpi

from balsam_lite.core import pickling
from balsam_lite.core.errors import InputError, RemoteError, TaskFailed, UnknownApp, UnknownField
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.query import queries
from balsam_lite.launcher.call_keys import KeyMaker
from balsam_lite.launcher.futures import BalsamExecutor, FutureTask
from balsam_lite.pyapps import result_file, run_call

MODULE = """
import os, sys, threading, time

def wander(directory):
    assert not os.path.exists("result.pkl")
    for path, text in (("result.pkl", "mine"), (os.path.join(directory, "result.pkl"), "mine too")):
        with open(path, "w") as file:
            file.write(text)
    os.chdir(directory)
    return "came back"

def vanish():
    os._exit(0)

def become_another():
    os.execvp("true", ["true"])

class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")

class Bad(Exception):
    pass

def square(x): return x * x
def add(*numbers, **named): return sum(numbers) + sum(named.values())
def concat(a, b, c="."): return f"{a}{b}{c}"
def fail(x): raise Bad(x)
def odd(): raise Odd(1, 2)
def leave(): sys.exit(7)
def die(): os._exit(9)
def lock(): return threading.Lock()
def ident(x): return x
def counted(path, x):
    with open(path, "a") as file:
        file.write(f"{x}\\n")
    return 2 * x
def gathered(x):
    from mpi4py import MPI
    return MPI.COMM_WORLD.gather(x + MPI.COMM_WORLD.rank)
def failing_rank(rank):
    from mpi4py import MPI
    if MPI.COMM_WORLD.rank == rank:
        raise Bad(f"rank {rank}")
    MPI.COMM_WORLD.barrier()
def remember(x):
    global kept
    kept = x
def recall(x): return kept + x
def wait_for(path):
    while not os.path.exists(path): time.sleep(0.01)
    return os.environ["BALSAM_JOB_ID"]
"""


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path, BALSAM_IDLE_TTL_S="20")
    with use(made.db):
        yield made
    made.close()


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A module that only this process, and what it sends there, can import."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "their_calls.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    importlib.invalidate_caches()
    yield importlib.import_module("their_calls")
    del sys.modules["their_calls"]


@pytest.fixture
def executor(bench):
    bench.launch("--nodes", "2")
    with BalsamExecutor() as made:
        yield made


# --- results ----------------------------------------------------------------------------------------------------------


def test_results_come_back_and_nothing_is_left_behind(bench, executor, calls):
    future = executor.submit(calls.square, 7)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(30) == 49
    assert (future.done(), future.running(), future.cancelled(), future.exception(0)) == (True, False, False, None)
    assert (future.job.name, future.job.workflow, future.job.application) == ("square", "executor", "balsam-call")
    assert executor.submit(calls.add, 1, 2, x=3).result(30) == 6
    assert executor.submit(len, [1, 2]).result(30) == 2


def test_the_functions_of_concurrent_futures_work_with_them(executor, calls):
    futures = [executor.submit(calls.square, n) for n in range(6)]
    heard: list[int] = []
    futures[0].add_done_callback(lambda one: heard.append(one.result()))
    assert {one.result() for one in concurrent.futures.as_completed(futures, 30)} == {n * n for n in range(6)}
    assert concurrent.futures.wait(futures, 1).not_done == set()
    wait_until(lambda: heard == [0])


def test_a_map_of_200_is_one_transaction_and_comes_back_in_order(bench, executor, calls):
    with bench.db.read() as cx:
        before = queries.mark(cx)
    results = executor.map(calls.square, range(200), timeout=60)
    with bench.db.read() as cx:
        created = [row[0] for row in cx.execute("SELECT DISTINCT created FROM job")]
    assert before == (0, 0)
    assert len(created) == 1
    assert list(results) == [n * n for n in range(200)]


def test_chunks_share_a_job(bench, executor, calls):
    assert list(executor.map(calls.concat, "abcdefg", "1234567", timeout=60, chunksize=3)) == [
        f"{a}{b}." for a, b in zip("abcdefg", "1234567")
    ]
    assert BalsamJob.objects.filter(name="concat").count() == 3
    with pytest.raises(InputError, match="chunksize"):
        executor.map(calls.square, [1], chunksize=0)
    assert list(executor.map(calls.square, [])) == []


def test_an_application_gets_words_and_gives_its_output(bench):
    bench.app("say", "echo Hello,")
    bench.app("cat", "cat")
    bench.app("fail", "false")
    bench.launch()
    with BalsamExecutor("say", name="s", node_packing_count=4) as executor:
        first = executor.submit("big  world", 3)
        assert first.result(30) == "Hello, big  world 3\n"
        assert list(executor.map("x", "ab", timeout=30)) == ["Hello, x a\n", "Hello, x b\n"]
        with pytest.raises(InputError, match="words"):
            executor.submit("a", b=1)
    with BalsamExecutor("cat") as second:
        assert second.submit(first).result(30) == "Hello, big  world 3\n"
        assert [one.id for one in second.submit(first).job.get_parents()] == [first.number]
    with BalsamExecutor("fail") as third, pytest.raises(TaskFailed, match="nonzero return 1"):
        third.submit("a").result(30)
    assert {job.node_packing_count for job in BalsamJob.objects.filter(application="say")} == {4}


SCRIPT = """
import sys
from balsam_lite.launcher.futures import BalsamExecutor

class Point:
    def __init__(self, x): self.x = x

class Wrong(Exception): pass

def twice(point):
    if point.x > 5:
        raise Wrong(point.x)
    return Point(2 * point.x)

if __name__ == "__main__":
    with BalsamExecutor() as executor:
        assert type(executor.submit(twice, Point(4)).result(30)) is Point
        try:
            executor.submit(twice, Point(6)).result(30)
        except Wrong as exc:
            print([point.x for point in executor.map(twice, map(Point, range(3)), timeout=30)], exc)
"""


@pytest.mark.parametrize("how", ["script.py", "-m"])
def test_a_script_sends_its_own_functions_and_classes(bench, tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    bench.launch()
    words = ["script.py"] if how == "script.py" else ["-m", "script"]
    environ = {**bench.environ, "BALSAM_DB_PATH": bench.directory}
    done = subprocess.run([PYTHON, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("[0, 2, 4] 6\n", 0), done.stderr


INTERACTIVE = """
from balsam_lite.launcher.futures import BalsamExecutor
import math

class Point:
    def __init__(self, x): self.x = x

class Wrong(Exception): pass

FACTOR = 3

def scaled(point):
    if point.x > 5:
        raise Wrong(point.x)
    return Point(FACTOR * math.floor(point.x))

executor = BalsamExecutor()
found = executor.submit(scaled, Point(4.5)).result(30)
assert type(found) is Point
try:
    executor.submit(scaled, Point(6)).result(30)
except Wrong as exc:
    print(found.x, exc, list(executor.map(lambda x: x + FACTOR, range(3), chunksize=2, timeout=30)))
function = executor.submit(lambda n: lambda: n + 1, 41).result(30)
print(function())
executor.shutdown()
"""


@pytest.mark.parametrize("how", ["-", "-c"])
def test_functions_and_classes_of_an_interactive_session_are_sent_by_value(bench, tmp_path, how):
    pytest.importorskip("cloudpickle")
    bench.launch()
    words, given = ([PYTHON, "-"], INTERACTIVE) if how == "-" else ([PYTHON, "-c", INTERACTIVE], None)
    environ = {**bench.environ, "BALSAM_DB_PATH": bench.directory}
    done = subprocess.run(words, input=given, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("12 6 [3, 4, 5]\n42\n", 0), done.stderr


NESTING = """
from balsam_lite.launcher.futures import BalsamExecutor

def inner(x):
    return 10 * x

def outer(x):
    with BalsamExecutor() as executor:
        by_name = executor.submit(inner, x)
        by_value = executor.submit(lambda: inner(x) + 1)
        return by_name.result(30), by_value.result(30)

if __name__ == "__main__":
    with BalsamExecutor() as executor:
        print(executor.submit(outer, 4).result(40), executor.submit(lambda: outer(5)).result(40))
"""


@pytest.mark.parametrize("words", [["script.py"], ["-m", "script"]])
def test_a_call_submits_functions_of_the_script_that_submitted_it(bench, tmp_path, words):
    pytest.importorskip("cloudpickle")
    (tmp_path / "script.py").write_text(NESTING)
    bench.launch("--nodes", "2")
    environ = {**bench.environ, "BALSAM_DB_PATH": bench.directory}
    done = subprocess.run([PYTHON, *words], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=80)
    assert (done.stdout, done.returncode) == ("(40, 41) (50, 51)\n", 0), done.stderr


def test_by_value_needs_the_same_python_at_both_ends(monkeypatch):
    cloudpickle = pytest.importorskip("cloudpickle")
    value = pickling.dumps(lambda: 42)
    assert pickling.loads(value)() == 42 and pickling.dumps(len) == pickle.dumps(len, protocol=4)
    other = value.replace(b"%d.%d" % sys.version_info[:2], b"3.4", 1)
    with pytest.raises(RemoteError, match=r"in Python 3\.4 and cannot be read by Python 3\."):
        pickling.loads(other)
    older = value.replace(cloudpickle.__version__.encode(), b"0.1", 1)
    assert pickling.loads(older)() == 42
    with pytest.raises(RemoteError, match=r"with cloudpickle 0\.1, and cannot be read by"):
        pickling.loads(older[:-9])
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(RemoteError, match="has no cloudpickle"):
        pickling.loads(value)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_exceptions_come_back_as_themselves_with_the_remote_traceback(bench, executor, calls):
    future = executor.submit(calls.fail, "mine")
    with pytest.raises(calls.Bad, match="mine") as caught:
        future.result(30)
    assert isinstance(caught.value.__cause__, RemoteError)
    assert "their_calls.py" in str(caught.value.__cause__)
    assert future.job.state == "FAILED"
    assert "Bad: mine" in future.job.state_history
    with pytest.raises(SystemExit, match="7"):
        executor.submit(calls.leave).result(30)


def test_what_cannot_be_read_here_comes_back_as_text(executor, calls):
    with pytest.raises(RemoteError, match=r"(?s)their_calls.py.*1 and 2"):
        executor.submit(calls.odd).result(30)
    with pytest.raises(RemoteError, match="type lock and cannot be serialised"):
        executor.submit(calls.lock).result(30)
    with pytest.raises(TaskFailed, match=r"\[die .* is FAILED: nonzero return 9"):
        executor.submit(calls.die).result(30)


def test_what_cannot_be_sent_is_refused_at_once(bench, executor, calls, monkeypatch):
    def local():
        pass

    lock = threading.Lock()
    with pytest.raises(InputError, match=r"(?s)lambda.*cannot be sent to another process.*lock"):
        executor.submit(lambda: lock)
    monkeypatch.setitem(sys.modules, "cloudpickle", None)  # cannot be imported
    for wrong in (lambda: 0, local, type("T", (), {})().__class__):
        with pytest.raises(InputError, match=r"(?s)cloudpickle.* is not installed.*top level of a module"):
            executor.submit(wrong)
        with pytest.raises(InputError, match="cloudpickle"):
            executor.map(wrong, [1, 2], chunksize=2)
    with pytest.raises(InputError, match=r"argument of square.*lambda.*cloudpickle"):
        executor.submit(calls.square, lambda: 0)
    with pytest.raises(InputError, match="cannot be called"):
        executor.submit("square", 3)
    with pytest.raises(InputError, match="argument of square"):
        executor.map(calls.square, [1, 2, lambda: 0])
    monkeypatch.setattr(calls, "square", calls.add)
    with pytest.raises(TypeError, match="only in the arguments of a call"):
        pickle.dumps(executor.submit(calls.add))
    assert BalsamJob.objects.exclude(name="add").count() == 0


def test_fields_are_checked_when_the_executor_is_made(bench):
    with pytest.raises(UnknownField, match="num_nodes"):
        BalsamExecutor(num_node=3)
    for own in ("args", "parents"):
        with pytest.raises(InputError, match=own):
            BalsamExecutor(**{own: "x"})
    with pytest.raises(UnknownApp, match="nosuch"):
        BalsamExecutor("nosuch")
    for wrong in (len, 2.0, b"2", True):
        with pytest.raises(InputError, match="max_workers must be greater than 0"):
            BalsamExecutor(wrong)
    with pytest.raises(InputError, match="launcher must be"):
        BalsamExecutor(launcher=0)
    with pytest.raises(TypeError, match="initargs"):
        BalsamExecutor(initializer=len, initargs=5)


def test_a_deleted_job_is_told(bench, calls):
    with BalsamExecutor() as executor:
        future = executor.submit(calls.square, 1)
        child = executor.submit(calls.square, future)
        future.job.delete(force=True)
        with pytest.raises(TaskFailed, match="was deleted"):
            future.result(20)
        with pytest.raises(TaskFailed, match=r"\[square"):
            child.result(20)


# --- dataflow ---------------------------------------------------------------------------------------------------------


def test_a_future_as_an_argument_is_a_dependency(bench, executor, calls):
    started = time.monotonic()
    a = executor.submit(calls.add, 1, 2)
    b = executor.submit(calls.square, a)
    c = executor.submit(calls.add, a, 100, b, x=b)
    assert time.monotonic() - started < 15
    assert c.result(30) == 3 + 100 + 9 + 9
    assert [one.id for one in c.job.get_parents()] == [a.number, b.number]
    assert list(executor.map(calls.add, [a, 1], [b, c], timeout=30)) == [12, 122]


@dataclasses.dataclass
class Pair:
    one: object
    two: object


def test_futures_inside_of_arguments_are_dependencies(bench, executor, calls):
    a, b = executor.submit(calls.add, 1, 2), executor.submit(calls.square, 4)
    nested = executor.submit(calls.ident, {"list": [a, (b, {a}), {"deep": [[b]]}], "pair": Pair(a, b)})
    assert nested.result(30) == {"list": [3, (16, {3}), {"deep": [[16]]}], "pair": Pair(3, 16)}
    assert [one.id for one in nested.job.get_parents()] == [a.number, b.number]
    found = executor.submit(calls.ident, {"x": [nested, nested]}).result(30)
    assert found["x"][0] is found["x"][1]
    pytest.importorskip("cloudpickle")
    assert executor.submit(lambda *numbers, **named: [*numbers, named], a, x=[b]).result(30) == [3, {"x": [16]}]
    assert executor.submit(lambda: a).result(30) == 3
    assert list(executor.map(calls.ident, [a, [b], 5], chunksize=2, timeout=30)) == [3, [16], 5]


def test_a_future_of_another_db_is_refused(bench, executor, calls, tmp_path):
    future = executor.submit(calls.square, 2)
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other")
    with use(other.db), BalsamExecutor() as second:
        with pytest.raises(InputError, match=r"(?s)argument of ident.*in another DB"):
            second.submit(calls.ident, [future])
    other.close()


def test_calls_run_in_the_directory_of_the_caller_or_of_their_jobs(bench, executor, calls, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    assert executor.submit(os.getcwd).result(30) == str(tmp_path / "mine")
    with BalsamExecutor(cwd="job") as second:
        future = second.submit(os.getcwd)
        assert future.result(30) == os.path.dirname(future.path)
    with pytest.raises(InputError, match="cwd must be"):
        BalsamExecutor(cwd="here")


def test_a_caller_directory_that_is_gone_is_a_clear_failure(bench, calls, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with BalsamExecutor() as executor:
        future = executor.submit(calls.square, 2)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "gone").rmdir()
        bench.launch()
        with pytest.raises(RemoteError, match=r"(?s)from which the call was submitted cannot be entered on .*cwd="):
            future.result(30)


def test_an_initializer_runs_before_the_calls_of_a_process(bench, calls, tmp_path):
    bench.launch()
    with BalsamExecutor(None, None, calls.remember, (7,), max_tasks_per_child=2) as executor:
        assert list(executor.map(calls.recall, range(3), timeout=30)) == [7, 8, 9]
    with BalsamExecutor(initializer=calls.fail, initargs=("early",)) as executor:
        with pytest.raises(concurrent.futures.BrokenExecutor, match="initializer of the executor has raised Bad: early"):
            executor.submit(calls.square, 2).result(30)
    with pytest.raises(TypeError, match="initializer"):
        BalsamExecutor(initializer=3)
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="max_tasks_per_child must be greater than 0"):
            BalsamExecutor(max_tasks_per_child=wrong)


def test_a_failed_parent_fails_its_children_and_is_named(executor, calls):
    parent = executor.submit(calls.fail, "deep down")
    child = executor.submit(calls.square, parent)
    grandchild = executor.submit(calls.square, child)
    for future in (child, grandchild):
        with pytest.raises(TaskFailed, match=r"(?s)\[square .*\[fail \| .*deep down"):
            future.result(30)
    with pytest.raises(TaskFailed, match="fail"):
        executor.submit(calls.ident, parent).result(30)


# --- how many run at once ----------------------------------------------------------------------------------------------


def test_no_more_calls_run_at_once_than_max_workers(bench, calls, tmp_path):
    bench.launch("--nodes", "4")
    with BalsamExecutor(2) as executor:
        held = [executor.submit(calls.wait_for, str(tmp_path / f"gate{n}")) for n in range(5)]
        child = executor.submit(calls.ident, held[3])
        wait_until(lambda: held[0].running() and held[1].running())
        assert bench.states() == {"RUNNING": 2}
        assert not held[2].running() and held[4].cancel() and held[4].cancelled()
        grandchild = executor.submit(calls.ident, held[4])
        (tmp_path / "gate1").touch()
        wait_until(held[2].running)
        assert bench.states() == {"RUNNING": 2, "JOB_FINISHED": 1}
        for n in (0, 2, 3):
            (tmp_path / f"gate{n}").touch()
        assert child.result(60) == held[3].job.job_id
        with pytest.raises(TaskFailed, match="was cancelled, or could not be added"):
            grandchild.result(60)
    assert bench.states() == {"JOB_FINISHED": 5}
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            BalsamExecutor(wrong)


def test_a_map_with_max_workers_or_a_buffer_adds_what_is_needed(bench, calls):
    bench.launch("--nodes", "2")
    with BalsamExecutor(max_workers=3) as executor:
        assert list(executor.map(calls.square, range(10), timeout=60)) == [n * n for n in range(10)]
    with BalsamExecutor() as executor:
        taken = []
        results = executor.map(calls.square, iter(lambda: taken.append(1) or len(taken), 0), buffersize=3)
        assert [next(results), next(results)] == [1, 4] and len(taken) == 5
        results.close()
        with pytest.raises(ValueError, match="buffersize must be greater than 0"):
            executor.map(calls.square, [1], buffersize=0)


def test_shutdown_cancels_what_max_workers_has_kept_back(bench, calls):
    executor = BalsamExecutor(max_workers=1)
    futures = [executor.submit(calls.square, n) for n in range(4)]
    wait_until(lambda: bench.states() == {"CREATED": 1})
    executor.shutdown(cancel_futures=True)
    assert all(one.cancelled() for one in futures) and bench.states() == {"USER_KILLED": 1}


# --- MPI --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "mpi"), [(1, "mpich"), (3, "mpich"), (3, "openmpi")])
def test_all_ranks_call_the_function_and_rank_0_gives_the_result(bench, calls, ranks, mpi):
    python = PYTHON
    if mpi == "openmpi":
        python = str(openmpi() / "python")
        bench.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        bench.environ["PATH"] = f"{openmpi()}:{bench.environ['PATH']}"
    else:
        bench.environ = with_mpi(bench.environ)
    bench.launch("--nodes", "1", "--job-mode", "mixed")
    with BalsamExecutor(mpi=ranks, python=python) as executor:
        assert executor.submit(calls.gathered, 5).result(60) == [5 + rank for rank in range(ranks)]
        with pytest.raises(calls.Bad, match=f"rank {ranks - 1}"):
            executor.submit(calls.failing_rank, ranks - 1).result(60)
    with pytest.raises(InputError, match="multiple of num_nodes=2"):
        BalsamExecutor(mpi=3, num_nodes=2)


# --- calls that were made already -----------------------------------------------------------------------------------------


def test_a_call_is_not_repeated(bench, calls, tmp_path):
    bench.launch("--nodes", "2")
    count = tmp_path / "count"
    with BalsamExecutor(memoize=True) as executor:
        first = [executor.submit(calls.counted, str(count), x) for x in (1, 2, 1)]
        assert [one.result(60) for one in first] == [2, 4, 2]
        assert executor.memoized == 1 and first[0].number == first[2].number
        nested = executor.submit(calls.add, first[0], first[1])
        assert nested.result(60) == 6
    with BalsamExecutor(memoize=True) as executor:
        again = executor.submit(calls.counted, str(count), 2)
        assert again.result(60) == 4 and again.number == first[1].number and not again.cancel()
        assert executor.submit(calls.add, again, first[1]).result(60) == 8
        assert executor.submit(calls.add, executor.submit(calls.counted, str(count), 1), again).result(60) == 6
        assert list(executor.map(calls.counted, [str(count)] * 3, [1, 2, 3], timeout=60)) == [2, 4, 6]
        assert executor.memoized == 5
    assert sorted(count.read_text().split()) == ["1", "2", "3"]
    with BalsamExecutor(memoize=True, version=2) as executor:
        assert executor.submit(calls.counted, str(count), 1).result(60) == 2
    assert sorted(count.read_text().split()) == ["1", "1", "2", "3"]


def test_a_failed_call_is_repeated_and_a_waiting_one_is_shared(bench, calls, tmp_path):
    gate = str(tmp_path / "gate")
    with BalsamExecutor(memoize=True) as executor, BalsamExecutor(memoize=True) as other:
        waiting = executor.submit(calls.wait_for, gate)
        assert waiting.number and other.submit(calls.wait_for, gate).number == waiting.number
        assert (executor.memoized, other.memoized) == (0, 1)
        bench.launch()
        failed = executor.submit(calls.fail, 1)
        Path(gate).touch()
        assert waiting.result(60) == waiting.job.job_id
        with pytest.raises(calls.Bad):
            failed.result(60)
        repeated = other.submit(calls.fail, 1)
        with pytest.raises(calls.Bad):
            repeated.result(60)
        assert repeated.number != failed.number and repeated.job.unique_key and failed.job.unique_key is None
        told = executor.submit(calls.square, 12)
        assert told.result(60) == 144
        with bench.db.write() as cx:  # as a call that was not made, but said to be finished
            cx.execute("UPDATE call SET result = NULL WHERE job = ?", (told.number,))
        assert other.submit(calls.square, 12).result(60) == 144
    with BalsamExecutor(memoize=True) as executor, pytest.raises(InputError, match="cannot be serialised"):
        executor.submit(calls.ident, threading.Lock())
    with pytest.raises(InputError, match="memoize= is for calls of functions"):
        BalsamExecutor("a", memoize=True)


# --- cancelling and the end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_workers", [None, 1])
def test_callbacks_may_submit_and_cancel_calls(executor, bench, calls, max_workers):
    """They are called by the thread that adds jobs."""
    seen: list[object] = []
    done = threading.Event()

    def act(future):
        try:
            new = second.submit(calls.square, future.result())
            seen.append(second.submit(calls.ident, [new]) if max_workers is None else new)
            other = second.submit(calls.square, 5)
            seen.append(other.cancel())
            seen.append(new.number > 0)
        finally:
            done.set()

    with BalsamExecutor(max_workers=max_workers, name="second") as second:
        second.submit(calls.square, 2).add_done_callback(act)
        assert done.wait(30)
        assert seen[1:] == [True, True]
        assert seen[0].result(30) == ([16] if max_workers is None else 16)


def test_what_has_not_started_can_be_cancelled_and_what_runs_cannot(bench, calls, tmp_path):
    executor = BalsamExecutor()
    gate = str(tmp_path / "gate")
    running = executor.submit(calls.wait_for, gate)
    waiting = executor.submit(calls.ident, running)
    other = executor.submit(calls.ident, waiting)
    bench.launch()
    wait_until(running.running)
    assert not running.cancel()
    assert waiting.cancel()
    assert waiting.cancelled()
    assert waiting.cancel()
    assert concurrent.futures.wait([waiting, other], 20).not_done == set()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result()
    with pytest.raises(TaskFailed):
        other.result()
    Path(gate).touch()
    assert running.result(30) == running.job.job_id
    assert not running.cancel()
    executor.shutdown()
    assert waiting.job.state == "USER_KILLED"


def test_a_killed_job_is_a_cancelled_future(bench, calls, tmp_path):
    with BalsamExecutor() as executor:
        bench.launch()
        future = executor.submit(calls.wait_for, str(tmp_path / "never"))
        wait_until(future.running)
        assert FutureTask(future.job).cancel()
        assert concurrent.futures.wait([future], 20).done == {future}
        assert future.cancelled()


def test_shutdown_waits_or_cancels(bench, calls):
    executor = BalsamExecutor()
    futures = [executor.submit(calls.square, n) for n in range(50)]
    executor.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(calls.square, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(calls.square, [1])
    assert not any(one.done() for one in futures)
    executor.shutdown(wait=True, cancel_futures=True)
    assert all(one.cancelled() for one in futures)
    assert bench.states() == {"USER_KILLED": 50}


def test_leaving_a_map_cancels_the_rest(bench, calls):
    with BalsamExecutor() as executor:
        results = executor.map(calls.square, range(20), timeout=0.05)
        with pytest.raises(concurrent.futures.TimeoutError):
            next(results)
    assert bench.states() == {"USER_KILLED": 20}


# --- a launcher of the executor -----------------------------------------------------------------------------------------

POOL = """
import os, sys, time
from balsam_lite.launcher.futures import BalsamExecutor

def work(x, seconds=0.0):
    time.sleep(seconds)
    return x * x

def touch(path):
    time.sleep(0.5)
    open(path, "w").close()

def hold(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    how, *rest = sys.argv[1:]
    if how == "with":
        with BalsamExecutor(launcher=2) as executor:
            print(list(executor.map(work, range(4))), executor.submit(work, 5).job.workflow[:9])
            print(executor.database.directory)
    elif how == "leave":  # without shutdown
        BalsamExecutor(launcher=1).submit(touch, rest[0])
    else:
        executor = BalsamExecutor(launcher=1)
        executor.submit(hold, rest[0])
        print(executor.database.directory, executor._launcher._process.pid, flush=True)
        if how == "within":
            with executor:
                time.sleep(600)
        time.sleep(600)
"""


@pytest.fixture
def pool(tmp_path, monkeypatch):
    """Runs POOL where no DB is active."""
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "pool.py").write_text(POOL)
    monkeypatch.chdir(tmp_path / "pool")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    started = []

    def start(*words, **environ):
        process = subprocess.Popen(
            [PYTHON, "pool.py", *words], stdout=subprocess.PIPE, text=True, env={**os.environ, **environ}
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def temporary(tmp_path):
    return list(tmp_path.glob("balsam-executor-*"))


def test_an_executor_starts_and_ends_a_launcher_in_a_temporary_db(pool, tmp_path):
    process = pool("with")
    first, directory = process.communicate(timeout=60)[0].splitlines()
    assert (first, process.returncode) == ("[0, 1, 4, 9] executor-", 0)
    assert directory.startswith(str(tmp_path)) and temporary(tmp_path) == []


def test_an_executor_with_a_launcher_uses_the_active_db(bench, pool, tmp_path, calls):
    first, directory = pool("with", BALSAM_DB_PATH=bench.directory).communicate(timeout=60)[0].splitlines()
    assert (first, directory) == ("[0, 1, 4, 9] executor-", bench.directory)
    assert temporary(tmp_path) == [] and bench.states() == {"JOB_FINISHED": 5}
    (other,) = bench.add([{"name": "o", "workflow": "executor", "application": "balsam-call", "args": "x"}])
    with BalsamExecutor(launcher=True) as executor:
        future = executor.submit(calls.square, 3)
        assert future.result(60) == 9
        assert future.job.workflow == executor._fields["workflow"] != "executor"
    assert bench.job(other)["state"] == "CREATED"


def test_a_program_that_ends_waits_for_the_calls_of_its_launcher(pool, tmp_path):
    assert pool("leave", str(tmp_path / "done")).wait(60) == 0
    assert (tmp_path / "done").exists() and temporary(tmp_path) == []


@pytest.mark.parametrize(("how", "end"), [("hold", signal.SIGKILL), ("hold", signal.SIGINT), ("within", signal.SIGINT)])
def test_a_program_that_is_killed_leaves_no_launcher_and_no_temporary_db(pool, tmp_path, how, end):
    process = pool(how, str(tmp_path / "pid"))
    directory, launcher = process.stdout.readline().split()
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60)
    call = int((tmp_path / "pid").read_text())
    assert alive(call) and alive(int(launcher)) and os.path.exists(directory)
    process.send_signal(end)
    wait_until(lambda: not (alive(call) or alive(int(launcher)) or os.path.exists(directory)), 60)
    assert process.wait(60) != 0


def test_the_end_of_its_launcher_fails_the_calls_of_an_executor(bench, calls, tmp_path, capsys):
    with BalsamExecutor(launcher=1) as executor:
        future = executor.submit(calls.wait_for, str(tmp_path / "never"))
        wait_until(future.running, 60)
        os.kill(executor._launcher._process.pid, signal.SIGKILL)
        with pytest.raises(concurrent.futures.BrokenExecutor, match="The launcher of this executor has ended"):
            future.result(60)
        with pytest.raises(concurrent.futures.BrokenExecutor):
            executor.submit(calls.square, 2)
    with BalsamExecutor(launcher=1) as executor:  # before it can use the DB
        os.rename(f"{bench.directory}/log", f"{bench.directory}/log2")
        Path(bench.directory, "log").touch()
        with pytest.raises(concurrent.futures.BrokenExecutor, match=r"(?s)has ended.*log"):
            executor.submit(calls.square, 2).result(60)
    assert "balsam: launcher of this executor: The log" in capsys.readouterr().err
    for wrong in (0, -1, 1.5, "2"):
        with pytest.raises(InputError, match="launcher must be greater than 0"):
            BalsamExecutor(launcher=wrong)


def test_an_executor_that_cannot_start_leaves_no_temporary_db(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownApp):
        BalsamExecutor("nosuch", launcher=1)
    assert temporary(tmp_path) == []


# --- the application --------------------------------------------------------------------------------------------------


def test_each_python_has_its_application(bench, calls, tmp_path):
    other = tmp_path / "a b" / "python"
    other.parent.mkdir()
    other.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    other.chmod(0o755)
    bench.launch()
    for python in (PYTHON, str(other), PYTHON, str(other)):
        with BalsamExecutor(python=python) as executor:
            assert executor.submit(calls.square, 3).result(30) == 9
    with bench.db.read() as cx:
        assert [app["name"] for app in queries.apps(cx)] == ["balsam-call", "balsam-call-2"]


def test_calls_of_a_job_belong_to_its_workflow(bench, tmp_path):
    code = """
from balsam_lite.launcher.futures import BalsamExecutor
import math
with BalsamExecutor() as executor:
    print(list(executor.map(math.sqrt, [4, 9], timeout=30)))
"""
    bench.script("master", code)
    (master,) = bench.add([{"name": "m", "workflow": "search", "application": "master"}])
    assert bench.run("--nodes", "2", "--wf-filter", "search", BALSAM_IDLE_TTL_S="0.3") == 0
    assert bench.path(master, "m.out").read_text() == "[2.0, 3.0]\n"


def test_large_calls_and_results_go_by_files(bench, executor, calls):
    text = "x" * 2 * run_call.MAX_INLINE_BYTES
    future = executor.submit(calls.ident, text)
    assert future.result(30) == text
    assert Path(future.path).stat().st_size > len(text)
    assert executor.submit(len, future).result(30) == len(text)


def test_an_unreadable_call_says_so(bench, calls):
    with BalsamExecutor() as executor:
        future = executor.submit(calls.ident, "x" * 2 * run_call.MAX_INLINE_BYTES)
        assert future.number
        (file,) = Path(bench.directory).glob("data/*/*/.balsam-*.args")
        os.unlink(file)
        bench.launch()
        with pytest.raises(OSError, match="No such file"):
            future.result(30)


def test_a_call_may_change_its_directory_and_have_a_result_of_its_own(bench, calls, tmp_path):
    bench.launch()
    with BalsamExecutor(cwd="job") as executor:
        future = executor.submit(calls.wander, str(tmp_path))
        assert future.result(30) == "came back"
    own = Path(future.path).with_name("result.pkl")
    assert (own.read_text(), (tmp_path / "result.pkl").read_text()) == ("mine", "mine too")


def test_calls_may_share_a_directory(bench, calls, tmp_path):
    bench.launch()
    with BalsamExecutor(user_workdir=str(tmp_path / "here"), node_packing_count=4) as executor:
        assert list(executor.map(calls.square, range(5), timeout=30)) == [0, 1, 4, 9, 16]
        assert executor.submit(os.getcwd).result(30) == str(tmp_path / "here")


@pytest.mark.parametrize("how", ["vanish", "become_another"])
def test_a_call_that_ends_without_a_result_has_failed_and_says_why(bench, executor, calls, how):
    future = executor.submit(getattr(calls, how))
    with pytest.raises(TaskFailed, match="ended with exit code 0 before its function returned"):
        future.result(30)
    assert future.job.state == "FAILED" and future.job.return_code == 0


def test_a_call_can_be_rerun(bench, calls, tmp_path, monkeypatch):
    """What an earlier attempt has left is not taken for the result of a later one."""
    monkeypatch.chdir(tmp_path)
    name = result_file.file_name("12345678-9")
    result_file.write(name, result_file.ResultHeader("12345678-9", 1, True), result_file.Outcome(True, b"old"))
    outcome = run_call.outcome_of(run_call.CallContext(()), run_call.dump(run_call.CallPayload(b"nonsense")), ())
    assert not outcome.good
    assert "UnpicklingError" in outcome.trace
    monkeypatch.setattr(sys, "argv", ["call", "nosuch"])
    monkeypatch.delenv("BALSAM_JOB_ID", raising=False)
    with pytest.raises(SystemExit, match="run by the launcher"):
        run_call.run_call()
    monkeypatch.setenv("BALSAM_JOB_ID", "12345678-9")
    monkeypatch.setenv("BALSAM_ATTEMPT", "2")
    with pytest.raises(SystemExit, match="nosuch"):
        run_call.run_call()
    assert not os.path.exists(name)


def test_a_call_that_an_earlier_version_has_added_gets_the_results_of_its_parents(calls, tmp_path):
    """Its payload names their places among the arguments."""
    file = str(tmp_path / "parent.pkl")
    result_file.write(file, result_file.ResultHeader("12345678-9", 1, True), result_file.Outcome(True, pickle.dumps(3)))
    pickled = pickle.dumps((calls.add, [1, None], {}))
    given = run_call.CallFile([], None, pickled, {1: file, "x": file})
    assert run_call.outcome_of_file(given) == result_file.Outcome(True, pickle.dumps(7, protocol=4))


def test_calls_that_an_earlier_version_has_added_run_beside_new_ones(bench, calls, tmp_path):
    """A stored command line tells the launcher and the program where the result is to go."""
    code = "import os, sys; from balsam_lite.launcher.start import call; call()"
    bench.app("balsam-call", shlex.join([PYTHON, "-c", code]))
    files = [tmp_path / "parent.pkl", tmp_path / "child.pkl"]
    parent, vanishing, child = bench.add({"application": "balsam-call", "args": str(file)} for file in [*files, files[0]])
    bench.depend(parent, child)
    result = bench.path(parent, ".balsam-result.pkl")
    files[0].write_bytes(pickle.dumps((list(sys.path), None, pickle.dumps((calls.square, (7,), {})))))
    files[1].write_bytes(pickle.dumps((list(sys.path), None, pickle.dumps((calls.vanish, (), {})))))
    bench.launch()
    with BalsamExecutor() as executor:
        future = executor.submit(calls.square, 8)
        assert future.result(30) == 64 and future.job.application == "balsam-call-2"
    bench.wait_for(child, "JOB_FINISHED")
    bench.wait_for(vanishing, "FAILED")
    assert result_file.read_outcome(str(result)).value == pickle.dumps(49, protocol=4)
    assert "ended with exit code 0 before its function returned" in str(bench.history(vanishing))


def test_numbers_of_numpy_are_numbers(bench, calls):
    import numpy  # not in the environments of the unit tests

    bench.launch()
    two = numpy.int64(2)
    with BalsamExecutor(two, max_tasks_per_child=two, launcher=False) as executor:
        assert list(executor.map(calls.square, range(3), chunksize=two, buffersize=two, timeout=30)) == [0, 1, 4]


def test_arrays_count_by_their_numbers():
    import numpy  # not in the environments of the unit tests

    def key(fn, *args):
        return KeyMaker(None, lambda value: None).key(fn, args, {})

    one = numpy.arange(6.0)
    keys = [key(pow, some) for some in (one, one.reshape(2, 3), one.astype("f4"), one + 1, numpy.float64(1), 1.0, one[::2])]
    assert len(set(keys)) == len(keys)
    assert key(pow, one[::2]) == key(pow, numpy.array([0.0, 2.0, 4.0]))
    assert key(pow, numpy.array([{"a": 1}], dtype=object))
    masked = numpy.ma.array([1, 2], mask=[False, True], fill_value=9)
    assert key(pow, masked) != key(pow, numpy.ma.array([1, 9], fill_value=9))
    assert key(pow, masked) == key(pow, numpy.ma.array([1, 2], mask=[False, True], fill_value=9))

    class Quantity(numpy.ndarray):
        def __reduce__(self):
            return (type(self), self.shape, {"values": bytes(self), "unit": self.unit})

    units = [numpy.arange(2.0).view(Quantity) for _ in range(3)]
    for some, unit in zip(units, ("m", "km", "m")):
        some.unit = unit
    assert key(pow, units[0]) == key(pow, units[2]) != key(pow, units[1])
