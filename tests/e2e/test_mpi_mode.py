"""MPI and mixed mode on this host, with a real mpiexec: ranks, placement, packing, kills, and what cannot run."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from launching import PYTHON, Bench, alive
from mpi import CAREFUL, mpiexec, openmpi, with_mpi

from balsam_lite.db.query import runs
from balsam_lite.db.store import user_actions

#: Says who it is, and where; under MPI each rank says so.
WHO = """
import os
from mpi4py import MPI
world = MPI.COMM_WORLD
lines = world.gather(f"rank {world.rank} of {world.size} {os.environ.get('BALSAM_ATTEMPT')} {os.environ.get('MARK')}")
if world.rank == 0:
    print("\\n".join(lines))
"""
#: Ranks that do not end by SIGTERM, and say who they are.
STUBBORN = """
import os, signal, time
from mpi4py import MPI
signal.signal(signal.SIGTERM, signal.SIG_IGN)
rank = MPI.COMM_WORLD.rank
open(f"pid{rank}.new", "w").write(str(os.getpid()))
os.rename(f"pid{rank}.new", f"pid{rank}")
time.sleep(600)
"""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.environ = with_mpi(bench.environ)
    yield bench
    bench.close()


def output(bench: Bench, job: int) -> str:
    return bench.path(job, f"{bench.job(job)['name']}.out").read_text()


def ranks(bench: Bench, job: int) -> list[tuple[int, int]]:
    return sorted((int(rank), int(size)) for rank, size in re.findall(r"rank (\d+) of (\d+)", output(bench, job)))


def ranks_of(bench: Bench, job: int) -> list[int]:
    """The pids of the two ranks of a stubborn job."""
    files = [bench.path(job, f"pid{rank}") for rank in (0, 1)]
    wait_until(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def test_a_job_of_two_nodes_and_two_ranks_each_is_one_mpi_program(bench: Bench) -> None:
    bench.script("who", WHO)
    (job,) = bench.add(
        [{"name": "j", "application": "who", "num_nodes": 2, "ranks_per_node": 2, "environ_vars": {"MARK": "a b"}}]
    )
    assert bench.run("--job-mode", "mpi", "--nodes", "2") == 0
    assert bench.job(job)["state"] == "JOB_FINISHED"
    assert ranks(bench, job) == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert "1 a b" in output(bench, job)
    assert [state for state, _ in bench.history(job)] == ["CREATED", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]


def test_mixed_mode_starts_programs_of_one_rank_as_they_are(bench: Bench) -> None:
    bench.script("who", "import os; print('PMI_RANK' in os.environ)\n" + WHO)
    one, two = bench.add([{"name": "one", "application": "who"}, {"name": "two", "application": "who", "ranks_per_node": 2}])
    assert bench.run("--job-mode", "mixed", "--nodes", "2") == 0
    assert output(bench, one).startswith("False\nrank 0 of 1")
    assert output(bench, two).startswith("True")
    assert ranks(bench, two) == [(0, 2), (1, 2)]


def test_mpi_mode_starts_programs_of_one_rank_by_the_mpi_command_too(bench: Bench) -> None:
    bench.script("who", "import os; print('PMI_RANK' in os.environ)")
    (job,) = bench.add([{"name": "one", "application": "who"}])
    assert bench.run("--job-mode", "mpi") == 0
    assert output(bench, job) == "True\n"


def test_flags_for_the_mpi_command_arrive_word_by_word(bench: Bench) -> None:
    bench.script("show", "import os; print(os.environ.get('A'), os.environ.get('B'))")
    (job,) = bench.add([{"name": "j", "application": "show", "mpi_flags": "-env A 'two words' -env B x"}])
    assert bench.run("--job-mode", "mpi") == 0
    assert output(bench, job) == "two words x\n"


def test_a_kill_ends_ranks_that_ignore_it(bench: Bench) -> None:
    bench.script("stubborn", STUBBORN)
    (job,) = bench.add([{"name": "j", "application": "stubborn", "ranks_per_node": 2}])
    launcher = bench.launch("--job-mode", "mpi", "--nodes", "1", BALSAM_USER_KILL_GRACE_S="0.5")
    bench.wait_for(job, "RUNNING")
    pids = ranks_of(bench, job)
    user_actions.kill(bench.db, [job])
    wait_until(lambda: not any(map(alive, pids)), 10)
    assert launcher.wait(30) == 0
    assert bench.job(job)["state"] == "USER_KILLED"


def test_the_end_of_the_time_ends_all_ranks_and_the_job_can_start_again(bench: Bench) -> None:
    bench.script("stubborn", STUBBORN)
    (job,) = bench.add([{"name": "j", "application": "stubborn", "ranks_per_node": 2}])
    launcher = bench.launch("--job-mode", "mpi", "--nodes", "1", BALSAM_KILL_GRACE_S="0.5")
    bench.wait_for(job, "RUNNING")
    pids = ranks_of(bench, job)
    launcher.terminate()
    assert launcher.wait(30) == 0
    assert not any(map(alive, pids))
    assert bench.job(job)["state"] == "RESTART_READY"


def test_a_failing_rank_fails_the_job_with_its_words(bench: Bench) -> None:
    bench.script(
        "fail", WHO + "\nif world.rank == 1:\n    print('simulated error', flush=True)\n    world.Abort(9)\nworld.Barrier()\n"
    )
    (job,) = bench.add([{"name": "j", "application": "fail", "ranks_per_node": 2}])
    assert bench.run("--job-mode", "mpi") == 0
    assert bench.job(job)["state"] == "FAILED"
    assert "simulated error" in dict(bench.history(job))["RUN_ERROR"]


def test_a_large_job_runs_although_small_ones_never_end(bench: Bench) -> None:
    bench.app("nap", "sleep 0.3")
    bench.app("true", "true")
    bench.add([{"name": f"s{n}", "application": "nap", "node_packing_count": 2} for n in range(40)])
    launcher = bench.launch("--job-mode", "mixed", "--nodes", "2")
    wait_until(lambda: bench.states().get("JOB_FINISHED", 0) >= 2)
    (large,) = bench.add([{"name": "large", "application": "true", "num_nodes": 2}])
    bench.wait_for(large, "JOB_FINISHED")
    assert bench.states()["JOB_FINISHED"] < 30, "the large one came in between"
    assert launcher.wait(60) == 0


def test_no_more_than_the_allowed_runs_of_the_mpi_command_are_started(bench: Bench) -> None:
    bench.script(
        "count",
        "import os, time, glob\nopen(os.path.join('..', os.getcwd().rsplit('/')[-1] + '.on'), 'w').close()\n"
        "print(len(glob.glob('../*.on')))\ntime.sleep(0.3)\nos.remove(os.getcwd() + '.on')",
    )
    jobs = bench.add([{"name": f"j{n}", "application": "count", "node_packing_count": 8} for n in range(6)])
    assert bench.run("--job-mode", "mpi", "--nodes", "1", BALSAM_MAX_CONCURRENT_MPIRUNS="2") == 0
    assert max(int(output(bench, job)) for job in jobs) == 2


def test_without_an_mpi_command_jobs_of_many_ranks_wait_and_the_reason_is_told(bench: Bench, tmp_path: Path) -> None:
    bench.app("true", "/bin/true")
    one, many = bench.add(
        [{"name": "one", "application": "true"}, {"name": "many", "application": "true", "ranks_per_node": 2}]
    )
    assert bench.run("--job-mode", "mpi", PATH="/nonexistent") == 0
    assert (bench.job(one)["state"], bench.job(many)["state"]) == ("JOB_FINISHED", "CREATED")
    log = Path(bench.directory, "log", "stderr").read_text()
    assert re.search(r"1 waiting job\(s\) like .*ranks_per_node=2.*: needs an MPI start command: looked for", log)


def test_a_template_of_the_users_starts_jobs(bench: Bench) -> None:
    bench.app("hello", "echo hello")
    (job,) = bench.add([{"name": "j", "application": "hello", "num_nodes": 2, "ranks_per_node": 3, "mpi_flags": "'x y'"}])
    template = f"{PYTHON} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' n={{{{ ranks }}}} ppn={{{{ ranks_per_node }}}}"
    assert bench.run("--job-mode", "mpi", "--nodes", "2", BALSAM_MPI_RUN_TEMPLATE=template) == 0
    assert json.loads(output(bench, job)) == ["n=6", "ppn=3", "x y", "echo", "hello"]


def test_a_broken_template_is_told_at_the_start(bench: Bench) -> None:
    assert bench.run("--job-mode", "mpi", BALSAM_MPI_RUN_TEMPLATE="mpirun {{ rank") == 2
    assert "MPI_RUN_TEMPLATE" in Path(bench.directory, "log", "stderr").read_text()


def test_limits_and_offsets_that_leave_no_node_are_refused(bench: Bench) -> None:
    assert bench.run("--nodes", "2", "--offset-nodes", "2") == 2
    assert "leave no node of 2" in Path(bench.directory, "log", "stderr").read_text()
    assert os.path.exists(bench.directory)


def test_mixed_mode_is_refused_where_the_mpi_command_shares_no_node(bench: Bench, tmp_path: Path) -> None:
    aprun = tmp_path / "bin" / "aprun"
    aprun.parent.mkdir()
    aprun.write_text("#!/bin/sh\nexit 1\n")
    aprun.chmod(0o755)
    cray = {"COBALT_JOBID": "7", "COBALT_PARTNAME": "1001-1002", "PATH": f"{aprun.parent}:{bench.environ['PATH']}"}
    bench.app("true", "true")
    (job,) = bench.add([{"name": "j", "application": "true"}])
    assert bench.run("--job-mode", "mixed", BALSAM_MPI_FLAVOUR="aprun", **cray) == 1
    log = Path(bench.directory, "log", "stderr").read_text()
    assert "aprun runs one program at a time on a node" in log
    assert "--limit-nodes" in log
    assert bench.job(job)["state"] == "CREATED"


@pytest.mark.parametrize("mpi", ["mpich", "openmpi"])
def test_ranks_have_the_grace_to_save_their_work(bench: Bench, tmp_path: Path, mpi: str) -> None:
    if mpi == "openmpi":  # its mpiexec kills ranks soon after a SIGTERM of its own
        folder = openmpi()
        bench.environ.update(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
        bench.environ["PATH"] = f"{folder}:{bench.environ['PATH']}"
        (tmp_path / "careful.py").write_text(CAREFUL)
        bench.app("careful", f"{folder / 'python'} {tmp_path / 'careful.py'}")
    else:
        bench.script("careful", CAREFUL)
    fields = {"name": "j", "application": "careful", "ranks_per_node": 2, "exit_0_is_done_after_stop": True}
    (job,) = bench.add([fields])
    launcher = bench.launch("--job-mode", "mpi", "--nodes", "1", BALSAM_KILL_GRACE_S="15")
    ranks_of(bench, job)
    launcher.terminate()
    assert launcher.wait(60) == 0
    assert [bench.path(job, f"saved{rank}").read_text() for rank in (0, 1)] == ["1", "1"]
    assert bench.job(job)["state"] in ("RUN_DONE", "JOB_FINISHED")


def test_launchers_that_mpiexec_starts_are_refused_and_one_alone_is_not(bench):
    bench.app("a", "true")
    bench.add([{"application": "a"}])
    argv = [PYTHON, "-m", "balsam_lite.cli", "--db", bench.directory, "launcher", "--consume-all", "--job-mode=serial"]

    def mpi(ranks):
        words, environ = [mpiexec(), "-n", str(ranks), *argv], with_mpi(bench.environ)
        return subprocess.run(words, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90)

    done = mpi(2)
    assert done.returncode != 0
    assert "This is rank 1 of 2 (PMI_RANK=1)" in done.stderr
    assert bench.states() == {"CREATED": 1}
    with bench.db.read() as cx:
        assert cx.execute("SELECT count(*) FROM lease").fetchone() == (0,)
    done = mpi(1)
    assert done.returncode == 0, done.stderr
    assert bench.states() == {"JOB_FINISHED": 1}


def test_the_record_has_the_time_of_all_ranks_on_this_host_and_the_memory_of_the_largest(bench):
    bench.script(
        "large",
        "import time\nfrom mpi4py import MPI\n"
        "x = bytearray(200_000_000 if MPI.COMM_WORLD.rank else 1)\n"
        "while time.process_time() < 1.5: pass",
    )
    (job,) = bench.add([{"application": "large", "ranks_per_node": 2}])
    assert bench.run("--job-mode", "mpi", "--nodes", "1", BALSAM_CPUS_PER_NODE="2") == 0
    with bench.db.read() as cx:
        (run,) = runs.runs_of(cx, job)
    assert 3_000_000 <= run.user_us + run.system_us < 30_000_000
    assert 200_000_000 < run.max_memory < 400_000_000
