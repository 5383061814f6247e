"""Waiting for jobs to which nothing happens: what is printed on stderr, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
from helpers import wait_until
from launching import Bench

from balsam_lite.core import import_guard
from balsam_lite.core.process_table import Holder
from balsam_lite.db.query import reasons
from balsam_lite.db.store import batch_jobs, leases
from balsam_lite.launcher import waiter
from balsam_lite.launcher.dag import BalsamJob
from balsam_lite.launcher.futures import BalsamExecutor, FutureTask, wait


@pytest.fixture
def bench(tmp_path, monkeypatch):
    made = Bench(tmp_path)
    made.app("good", "true")
    monkeypatch.setenv("BALSAM_DB_PATH", made.directory)
    monkeypatch.setattr(waiter, "QUIET_S", 0.2)
    monkeypatch.setattr(waiter, "LINGER_S", 0.1)
    yield made
    made.close()


def registered(bench):
    with bench.db.read() as cx:
        return cx.execute("SELECT count(*) FROM lease WHERE kind = 'wait'").fetchone()[0]


def test_an_executor_without_a_launcher_says_once_that_none_is_alive_and_what_to_do(bench, capsys):
    with BalsamExecutor() as executor:
        future = executor.submit(abs, -1)
        said = []
        wait_until(lambda: said.append(capsys.readouterr().err) or "no launcher is alive for this DB" in "".join(said))
        assert "`balsam launcher --consume-all --job-mode serial`" in "".join(said)
        assert f"waiting for a job of {bench.directory} " in "".join(said)
        time.sleep(1)  # five more looks or so
        assert capsys.readouterr().err == ""
        assert registered(bench) == 1
        bench.launch()
        assert future.result(30) == 1
    wait_until(lambda: registered(bench) == 0)


def test_nothing_is_said_while_a_job_runs(bench, capsys):
    bench.shell("long", "until [ -e $BALSAM_DB_PATH/go ]; do sleep 0.05; done")
    jobs = bench.add([{"application": "long"} for _ in range(2)])
    bench.launch("--nodes", "1")
    bench.wait_for(jobs[0], "RUNNING")
    with pytest.raises(TimeoutError):
        wait([FutureTask(BalsamJob.objects.get(id=job)) for job in jobs], timeout=1.5)
    assert capsys.readouterr().err == ""
    open(f"{bench.directory}/go", "w").close()
    assert len(wait([FutureTask(BalsamJob.objects.get(id=job)) for job in jobs], 30, "ALL_COMPLETED").done) == 2


def test_one_who_may_only_read_can_wait(bench, monkeypatch):
    (job,) = bench.add([{"application": "good"}])
    monkeypatch.setattr(waiter.Registration, "_write", lambda *_: None)
    with pytest.raises(TimeoutError):
        wait([FutureTask(BalsamJob.objects.get(id=job))], timeout=0.5)
    assert registered(bench) == 0


def why(bench, *jobs):
    with bench.db.read() as cx:
        return reasons.why_nothing_happens(cx, jobs, reasons.surroundings(cx, 1, 120.0))


def test_what_is_missing_is_told_from_what_is_on_its_way(bench):
    large, small = bench.add([{"application": "good", "num_nodes": 4}, {"application": "good"}])
    assert why(bench, small).startswith("no launcher is alive for this DB. Start one: ")
    with bench.db.write() as cx:
        service = leases.open_lease(cx, "service", Holder.current(), "", 1)
    assert why(bench, small).startswith("no launcher runs; the service submits one when its policy allows. ")
    with bench.db.write() as cx:
        number = batch_jobs.add(cx, {"scheduler": "x", "state": "queued", "nodes": 4}, 1)
    assert why(bench, small).startswith(f"no launcher runs yet, qlaunch{number} is ")
    bench.launch("--nodes", "2", "--persistent", "--wf-filter", "other")
    with bench.db.write() as cx:
        batch_jobs.mark_failed(cx, number, "test", 1)
        leases.close_lease(cx, service, 1, "test")
    wait_until(lambda: why(bench, small).startswith("it takes only jobs of workflow other, and this is one of"))
    bench.launch("--nodes", "2", "--persistent")
    wait_until(lambda: "needs --job-mode=mpi" in why(bench, large))


NESTED = """
from balsam_lite.launcher.futures import BalsamExecutor

def outer():
    with BalsamExecutor() as executor:
        return executor.submit(abs, -5).result(60)

if __name__ == "__main__":
    with BalsamExecutor() as executor:
        print(executor.submit(outer).result(120))
"""


def test_a_nested_call_on_one_place_says_that_all_places_are_taken_by_jobs_that_wait(bench, tmp_path):
    (tmp_path / "nested.py").write_text(NESTED)
    environ = {**bench.environ, "BALSAM_DB_PATH": bench.directory}
    bench.launch("--nodes", "1", "--persistent")
    with open(tmp_path / "err", "wb") as err:
        script = subprocess.Popen(
            [sys.executable, str(tmp_path / "nested.py")], env=environ, stderr=err, stdout=subprocess.PIPE
        )
    bench.launchers.append(script)
    said = "every job that runs (1) waits for other jobs itself, and no place is free for those."
    wait_until(lambda: said in (tmp_path / "err").read_text(), 40)
    output = bench.path(1, "outer.out")  # which a call has only if it prints something
    wait_until(lambda: output.exists() and said in output.read_text(), 40)
    bench.launch("--nodes", "1")  # what it says to do
    assert script.communicate(timeout=60)[0] == b"5\n"
    assert os.path.getsize(tmp_path / "err") < 1000


def test_the_timer_of_a_waiting_program_outlives_an_import_in_another_thread(bench, monkeypatch):
    registration, found = waiter.registration_of(bench.directory), []
    monkeypatch.setattr(import_guard, "_depth", 1)
    timer = threading.Timer(0, lambda: found.append(registration._write(lambda cx, expiry_s: 1)))
    timer.start()
    timer.join()
    assert found == [None]
    with pytest.raises(import_guard.StopImport):
        registration._write(lambda cx, expiry_s: 1)
