"""The record of runs, of real programs: where, when, with what result and cause each attempt ran, and what it used."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from helpers import Slots, db_with_app, wait_until
from launching import PYTHON, Bench

from balsam_lite.api import EventLog, Job
from balsam_lite.cli.main import main
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import doctor, maintenance
from balsam_lite.db.engine.salvage import salvage
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.query import select
from balsam_lite.db.query.runs import Run, launcher_records, runs_of
from balsam_lite.db.store import claims, insert, leases, user_actions
from balsam_lite.db.store.runs import RunResult
from balsam_lite.launcher.exec import usage
from balsam_lite.launcher.exec.program import Request, spawn
from balsam_lite.launcher.exec.usage import OomKills, PeakMemory
from balsam_lite.launcher.placement import Node, NodePool, divide_host

HOST = os.uname().nodename
#: Bytes of memory that a program takes.
TAKEN = 200_000_000


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def runs(bench: Bench, job: int) -> list[Run]:
    with bench.db.read() as cx:
        return runs_of(cx, job)


def findings(bench: Bench) -> list[str]:
    """What `db check` finds wrong or notable in the rows."""
    found = doctor.look_over(bench.db, now_us=0, expiry_s=60)
    return [one.text for one in found if one.topic == "rows" and one.level != doctor.OK]


def test_memory_and_cpu_time_are_those_of_the_program_and_never_the_helpers(bench: Bench) -> None:
    bench.script("large", f"x = bytearray({TAKEN})")
    bench.script("busy", "import time\nwhile time.process_time() < 0.5: pass")
    bench.script("parent", f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = bytearray({TAKEN})'])")
    bench.app("small", "true")
    large, busy, parent, small = bench.add([{"application": name} for name in ("large", "busy", "parent", "small")])
    assert bench.run("--nodes", "2") == 0
    (run,) = runs(bench, large)
    assert TAKEN < run.max_memory < 1.5 * TAKEN
    (run,) = runs(bench, busy)
    assert 480_000 <= run.user_us + run.system_us < 5_000_000
    assert run.runtime_us >= 480_000
    assert runs(bench, parent)[0].max_memory > TAKEN, "a process for which the program has waited counts"
    (run,) = runs(bench, small)
    assert run.max_memory is None, "its memory is below what it has inherited from the spawn helper"
    assert run.user_us + run.system_us < 100_000


def test_where_and_when_it_ran_agrees_with_its_history(bench: Bench) -> None:
    bench.app("small", "true")
    jobs = bench.add([{"application": "small"} for _ in range(30)])
    assert bench.run("--nodes", "2") == 0
    with bench.db.read() as cx:
        ends = dict(cx.execute("SELECT job, time FROM event WHERE from_state = 'RUNNING'"))
        claimed = dict(cx.execute("SELECT job, time FROM event WHERE to_state = 'RUNNING'"))
    for job in jobs:
        (run,) = runs(bench, job)
        assert run.nodes in (f"{HOST}/1", f"{HOST}/2"), "of those that were claimed ahead, too"
        assert (run.attempt, run.lease, run.return_code, run.cause) == (1, 1, 0, "")
        assert run.ended_us == ends[job]
        assert claimed[job] <= run.started_us <= run.ended_us
    assert findings(bench) == []


def test_a_signal_is_negative_and_each_attempt_has_a_row(bench: Bench) -> None:
    bench.shell("once", 'test "$BALSAM_ATTEMPT" = 2 && exit 0; kill -SEGV $$')
    (job,) = bench.add([{"application": "once", "max_retries": 1}])
    assert bench.run("--nodes", "1") == 0
    first, second = runs(bench, job)
    assert (first.attempt, first.return_code, second.attempt, second.return_code) == (1, -signal.SIGSEGV, 2, 0)
    assert first.nodes == second.nodes == HOST, "a launcher with one node has the whole host"
    assert first.ended_us <= second.started_us


def test_a_program_that_could_not_start_has_a_row_without_a_start(bench: Bench) -> None:
    bench.app("missing", "/no/such/program")
    (job,) = bench.add([{"application": "missing"}])
    assert bench.run("--nodes", "1") == 0
    (run,) = runs(bench, job)
    assert (run.started_us, run.return_code, run.runtime_us, run.nodes) == (None, None, None, HOST)
    assert run.ended_us is not None


def test_a_killed_run_ends_killed_when_its_program_is_gone(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.shell("long", "sleep 600")
    (job,) = bench.add([{"application": "long"}])
    launcher = bench.launch("--nodes", "1")
    bench.wait_for(job, "RUNNING")
    wait_until(lambda: runs(bench, job)[0].started_us)  # a heartbeat soon records it while it runs
    (run,) = runs(bench, job)
    assert (run.ended_us, run.nodes, run.cause) == (None, HOST, "")
    user_actions.kill(bench.db, [job])
    (run,) = wait_until(lambda: [run for run in runs(bench, job) if run.ended_us])
    assert (run.cause, run.return_code) == ("killed", -signal.SIGTERM)
    assert launcher.wait(30) == 0
    main(["--db", bench.directory, "ls", "--history"])
    assert f"USER_KILLED] on {HOST}, " in capsys.readouterr().out
    assert findings(bench) == []


@pytest.mark.parametrize(("options", "cause"), [(["-t", "0.03"], "limit"), ([], "told to stop")])
def test_a_run_that_is_cut_has_the_cause(bench: Bench, options: list[str], cause: str) -> None:
    bench.shell("long", "sleep 600")
    (job,) = bench.add([{"application": "long"}])
    launcher = bench.launch("--nodes", "1", *(["--time-limit-minutes", options[1]] if options else []))
    bench.wait_for(job, "RUNNING")
    wait_until(lambda: options or bench.path(job).exists())
    if not options:
        launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 0
    (run,) = runs(bench, job)
    assert (run.cause, run.return_code) == (cause, -signal.SIGTERM)
    assert run.runtime_us > 0


def test_a_run_whose_launcher_died_has_its_start_and_no_run_time(bench: Bench) -> None:
    bench.shell("long", "sleep 600")
    (job,) = bench.add([{"application": "long", "restart_limit": 5}])
    first = bench.launch("--nodes", "1")
    bench.wait_for(job, "RUNNING")
    wait_until(lambda: runs(bench, job)[0].started_us)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    bench.launch("--nodes", "1")
    wait_until(lambda: len(runs(bench, job)) == 2)
    lost, again = runs(bench, job)
    assert (lost.cause, lost.return_code, lost.max_memory, lost.user_us) == ("launcher died", None, None, None)
    assert lost.started_us and lost.ended_us >= lost.started_us and lost.runtime_us is None
    assert (again.attempt, again.lease, again.ended_us) == (2, 2, None)
    assert findings(bench) == []


def test_a_claim_that_never_started_leaves_no_row_and_its_number_is_used_again(tmp_path: Path) -> None:
    with db_with_app(tmp_path / "db") as db:
        insert.add_jobs(db, [{"application": "a"}])
        with db.write() as cx:
            lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
            (claim,) = claims.take(cx, lease, Slots(1), claims.Filter(), 2).to_run
            assert runs_of(cx, 1) == [Run(1, 1, lease, "", "", "", None, None, None, None, None, None, "")]
            claims.finish(cx, lease, [claims.unstarted(claim, 3, "No place")], 3)
            assert runs_of(cx, 1) == []
            (claim,) = claims.take(cx, lease, Slots(1), claims.Filter(), 4).to_run
            end = RunResult(
                1, claim.attempt, "RUN_DONE", 0, "", 5, 9, nodes=(0, 1), gpus=(("0",), ("1",)), user_us=7, system_us=8
            )
            pool = NodePool([Node(1, ["0"], "n1"), Node(1, ["1"], "n2")])
            claims.finish(cx, lease, [end], 9, describe=pool.describe)
            assert runs_of(cx, 1) == [Run(1, 1, lease, "n[1-2]", "0;1", "", 5, 9, 0, 7, 8, None, "")]
            starts = [row[5] for row in select.event_page(cx, {"from_state": "RUNNING"})]
            assert starts == [0, 5], "the first one never ran"


def test_a_removed_job_takes_its_runs_along(bench: Bench) -> None:
    bench.app("small", "true")
    job, other = bench.add([{"application": "small"}] * 2)
    assert bench.run("--nodes", "1") == 0
    user_actions.delete(bench.db, [job])
    assert (runs(bench, job), len(runs(bench, other))) == ([], 1)
    assert findings(bench) == []


def test_check_finds_runs_that_should_not_be(bench: Bench) -> None:
    bench.add([{"application": "", "name": "one"}])
    with bench.db.write() as cx:
        cx.execute("INSERT INTO run (job, attempt, ended) VALUES (7, 1, 1)")
        cx.execute("INSERT INTO run (job, attempt) VALUES (1, 1)")
        cx.execute("UPDATE job SET state = 'RUNNING', attempt = 2, lease = 1")
    found = "\n".join(findings(bench))
    assert "1 job(s) are RUNNING without a record of the run" in found
    assert "1 run(s) are of jobs that are not there" in found
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET state = 'CREATED', lease = NULL")
    assert "1 run(s) have no recorded end" in "\n".join(findings(bench))


def test_a_backup_has_the_runs_and_a_damaged_db_gives_them_back(bench: Bench, tmp_path: Path) -> None:
    bench.app("small", "true")
    (job,) = bench.add([{"application": "small"}])
    assert bench.run("--nodes", "1") == 0
    (run,) = runs(bench, job)
    maintenance.backup(bench.db, str(tmp_path / "copy"))
    cx = sqlite3.connect(tmp_path / "copy")
    assert cx.execute("SELECT started, nodes FROM run").fetchall() == [(run.started_us, run.nodes)]
    cx.close()
    salvage(bench.directory, str(tmp_path / "salvaged"))
    cx = sqlite3.connect(tmp_path / "salvaged" / "balsam.sqlite3")
    assert cx.execute("SELECT job, attempt, started, ended, nodes FROM run").fetchall() == [
        (job, 1, run.started_us, run.ended_us, run.nodes)
    ]
    cx.close()


# --- faces ------------------------------------------------------------------------------------------------------------


def test_python_shows_the_attempts_in_both_faces(bench: Bench) -> None:
    bench.shell("fails", "sleep 0.2; exit 3")
    (job,) = bench.add([{"application": "fails", "name": "one", "workflow": "w", "max_retries": 1}])
    assert bench.run("--nodes", "1") == 0
    bench.add([{"application": "fails", "name": "waits"}])
    with use(bench.db):
        one = BalsamJob.objects.get(name="one")
        first, second = one.attempts
        assert (first.attempt, second.attempt, second.return_code, second.node) == (1, 2, 3, HOST)
        assert first.ended <= second.started <= datetime.now(timezone.utc)
        assert one.runtime == second.runtime_s >= 0.2
        same = Job.objects.get(name="one")
        assert (same.attempts, same.runtime) == (one.attempts, one.runtime)
        assert (BalsamJob.objects.get(name="waits").attempts, BalsamJob.objects.get(name="waits").runtime) == ([], None)
        assert Job(workdir="x", app_id="fails").attempts == []
        assert [found.name for found in BalsamJob.objects.filter(runtime__gt=0.1, node=HOST)] == ["one"]
        assert [found.name for found in BalsamJob.objects.order_by("-runtime")] == ["one", "waits"]
        assert [found.name for found in BalsamJob.objects.order_by("runtime")] == ["one", "waits"], "what never ran comes last"
        ends = [event.data for event in EventLog.objects.filter(job_id=job, to_state="RUN_ERROR").order_by("timestamp")]
        assert [(end["returncode"], end["started"]) for end in ends] == [(3, run.started_us) for run in runs(bench, job)]


def test_a_history_tells_where_each_attempt_ran_and_how_long(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.script("large", f"x = bytearray({TAKEN})\nraise SystemExit(3)")
    bench.add([{"application": "large", "name": "one"}])
    assert bench.run("--nodes", "2") == 0
    for words in (["ls"], ["job", "ls"]):
        main(["--db", bench.directory, *words, "--history"])
        error = capsys.readouterr().out.partition("RUN_ERROR] nonzero return 3\n")[2].splitlines()[0]
        assert error.startswith(f"    on {HOST}/1, ") and error.endswith(" MB")
    main(["--db", bench.directory, "ls", "--columns", "name,max_memory,runtime"])
    assert capsys.readouterr().out.splitlines()[0] == "name  max_memory_bytes  runtime_s"


# --- the launcher's environment ---------------------------------------------------------------------------------------


def test_a_launcher_records_modules_versions_and_what_differs_from_its_submitter(bench: Bench) -> None:
    bench.app("small", "true")
    bench.add([{"application": "small"}])
    assert bench.run("--nodes", "1", LOADEDMODULES="gcc/12.1:cray-mpich/8") == 0
    assert bench.run("--nodes", "1", BALSAM_IDLE_TTL_S="0.1") == 0
    with bench.db.read() as cx:
        first, second = launcher_records(cx, [1, 2])
    assert (first["modules"], first["host"], first["environment_difference"]) == (["gcc/12.1", "cray-mpich/8"], HOST, {})
    assert {"balsam_lite", "Python", os.uname().sysname} <= first["versions"].keys()
    assert first["environment_hash"] != second["environment_hash"], "the modules differ"


def test_the_difference_masks_secrets_and_leaves_out_what_differs_each_time() -> None:
    from balsam_lite.db.store.batch_jobs import kept_variables
    from balsam_lite.launcher.environment import record_of

    submitted = {"PATH": "/a", "HF_TOKEN": "one", "GONE": "x", "PWD": "/home", "SLURM_JOB_ID": "1"}
    here = {"PATH": "/b", "HF_TOKEN": "two", "NEW": "y" * 5000, "PWD": "/tmp", "SLURM_JOB_ID": "2", "API_KEY": "secret"}
    text = record_of(json.dumps(kept_variables(submitted)), here)
    found = json.loads(text)["environment_difference"]
    assert found == {"API_KEY": [None, "***"], "GONE": ["x", None], "NEW": [None, "y" * 1000 + "…"], "PATH": ["/a", "/b"]}
    assert "secret" not in text and "two" not in text
    assert "environment_difference" not in json.loads(record_of("", here))
    assert "environment_difference" not in json.loads(record_of("{damaged", here))
    many = json.loads(record_of('{"V0": "x"}', {f"V{n}": "x" for n in range(251)}))
    assert (len(many["environment_difference"]), many["further_differences"]) == (200, 50)


# --- placements and figures of the kernel -----------------------------------------------------------------------------


def test_placements_are_named_by_hosts_or_shares_of_one() -> None:
    pool = NodePool(divide_host(3, 6, ["0", "1", "2"], "vm"))
    assert pool.describe((1,), (("1",),)) == ("vm/2", "1")
    assert pool.describe((0, 1, 2), (("0",), ("1",), ("2",))) == ("vm/[1-3]", "0;1;2")
    assert NodePool(divide_host(1, 6, [], "vm")).describe((0,), ((),)) == ("vm", "")
    pool = NodePool([Node(4, ["0", "1"], name) for name in ("nid001", "nid002", "login")])
    assert pool.describe((0, 1, 2), (("0", "1"),) * 3) == ("nid[001-002],login", "0,1")


def test_a_child_of_a_large_process_has_no_peak_unless_it_is_above_its_parents(tmp_path: Path) -> None:
    """In a child, so that no test before has made the process large; it takes memory, and gives it back."""
    code = f"""if True:
        import os, sys
        from balsam_lite.launcher.exec.usage import PeakMemory
        held = bytearray({TAKEN}); del held
        peak = PeakMemory()
        def child(program, *words):
            pid = os.posix_spawn(program, [program, *words], os.environ)
            return peak.read(os.wait4(pid, 0)[2].ru_maxrss)
        assert child("/bin/true") is None
        assert child(sys.executable, "-c", "x = bytearray({TAKEN // 2})") is None, "below what the parent had: unknown"
        assert {2 * TAKEN} < child(sys.executable, "-c", "x = bytearray({2 * TAKEN})") < {3 * TAKEN}
        held = bytearray({3 * TAKEN}); del held
        assert child(sys.executable, "-c", "x = bytearray({2 * TAKEN})") is None, "the parent has grown"
    """
    request = Request(1, PYTHON, [PYTHON.encode(), b"-c", code.encode()], {}, str(tmp_path), "out")
    pid = spawn(request, dict(os.environb))
    assert os.wait4(pid, 0)[1] == 0, (tmp_path / "out").read_text()


def test_where_the_kernel_does_not_report_it_the_peak_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_high_water_kib", lambda: float("inf"))
    assert PeakMemory().read(1) is None
    monkeypatch.setattr(usage, "_LINUX", False)
    assert PeakMemory().read(10**12) is None


def test_a_kill_for_lack_of_memory_is_taken_once_and_not_long_after() -> None:
    number: list[int | None] = [5]
    kills = OomKills(lambda: number[0])
    assert not kills.take(), "those before the start are of others"
    number[0] = 6
    assert (kills.take(), kills.take()) == (True, False)
    number[0] = 7
    kills.look()
    assert kills.take(), "it was noticed just before the end of its program"
    number[0] = 8
    kills.look()
    kills.look()
    assert not kills.take(), "its program would have ended by now"
    number[0] = None
    assert not kills.take()
    assert not OomKills(lambda: None).take()


def limited_group() -> Path | None:
    """A control group in which two times TAKEN can be used; None where none can be made."""
    for parent, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        group = Path(parent, f"balsam-test-{os.getpid()}")
        try:
            group.mkdir()
            (group / limit).write_text(str(2 * TAKEN))
        except OSError:
            continue
        return group
    return None


def test_a_program_that_the_kernel_kills_for_lack_of_memory_has_that_cause_and_others_have_not(
    bench: Bench, tmp_path: Path
) -> None:
    bench.shell("itself", "kill -KILL $$")
    bench.script("large", f"x = bytearray({8 * TAKEN})")
    group = limited_group()
    (itself,) = bench.add([{"application": "itself"}])
    large = bench.add([{"application": "large"}]) if group else []
    if group:
        wrapper = tmp_path / "python"
        wrapper.write_text(f'#!/bin/sh\necho $$ > {group}/cgroup.procs\nexec {PYTHON} "$@"\n')
        wrapper.chmod(0o755)
        bench.python = str(wrapper)
    assert bench.run("--nodes", "1") == 0
    found = {run.job: (run.return_code, run.cause) for job in (itself, *large) for run in runs(bench, job)}
    assert found == {itself: (-signal.SIGKILL, ""), **dict.fromkeys(large, (-signal.SIGKILL, "out of memory"))}
    if group:
        wait_until(lambda: not (group / "cgroup.procs").read_text().split())
        group.rmdir()
