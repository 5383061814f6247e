"""Launchers in containers: without /proc, with one that hides others' processes, and as process 1 of a pid namespace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, wait_until
from launching import PYTHON, Bench, alive
from mounts import need

from balsam_lite.core.process_table import UNKNOWN_START, Holder, below
from balsam_lite.db.store import user_actions


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    need()
    made = Bench(tmp_path, BALSAM_USER_KILL_GRACE_S="0.3", BALSAM_KILL_GRACE_S="0.3")
    yield made
    made.close()


def enter(bench: Bench, tmp_path: Path, unshare: str, before: str = ":") -> None:
    """Have launchers run in namespaces of their own."""
    wrapper = tmp_path / "enter"
    wrapper.write_text(f'#!/bin/sh\nexec unshare {unshare} sh -c \'{before} && exec {PYTHON} "$@"\' sh "$@"\n')
    wrapper.chmod(0o755)
    bench.python = str(wrapper)


NO_PROC = ("--mount", "mount -t tmpfs none /proc")


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def log_of(bench: Bench) -> str:
    return Path(bench.directory, "log", "stderr").read_text()


def test_without_proc_a_job_that_ignores_term_is_killed_and_its_launcher_is_not_robbed(bench: Bench, tmp_path: Path) -> None:
    enter(bench, tmp_path, *NO_PROC)
    bench.shell("stubborn", f"trap '' TERM\necho $$ > {tmp_path}/pid\nwhile :; do sleep 0.05; done")
    (job,) = bench.add([{"application": "stubborn"}])
    launcher = bench.launch("--persistent")
    pid = pid_in(tmp_path / "pid")
    assert bench.run() == 0
    assert (bench.job(job)["state"], bench.job(job)["attempt"]) == ("RUNNING", 1)
    assert log_of(bench).count("/proc is not mounted here") == 2  # once for each launcher
    user_actions.kill(bench.db, [job])
    wait_until(lambda: not alive(pid))
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 0


def test_without_proc_runs_end_with_a_killed_launcher_and_background_processes_with_their_run(
    bench: Bench, tmp_path: Path
) -> None:
    enter(bench, tmp_path, *NO_PROC)
    bench.shell("leaves", f"sleep 4444 & echo $! > {tmp_path}/left")
    bench.shell("stays", f"trap '' TERM\necho $$ > {tmp_path}/pid\nwhile :; do sleep 0.05; done")
    first, _ = bench.add([{"application": name} for name in ("leaves", "stays")])
    launcher = bench.launch("--nodes", "2", "--persistent")
    pid = pid_in(tmp_path / "pid")
    bench.wait_for(first, "JOB_FINISHED")
    wait_until(lambda: not alive(pid_in(tmp_path / "left")))
    launcher.kill()
    launcher.wait()
    wait_until(lambda: not alive(pid))


def test_a_launcher_that_is_process_1_ends_what_its_jobs_leave(bench: Bench, tmp_path: Path) -> None:
    enter(bench, tmp_path, "--pid --fork --mount-proc --kill-child=KILL")
    bench.shell("leaves", f"(env -i setsid sh -c 'echo $$ > {tmp_path}/left; exec sleep 4444' &)\nsleep 0.5")
    (job,) = bench.add([{"application": "leaves"}])
    launcher = bench.launch("--persistent")
    bench.wait_for(job, "JOB_FINISHED")
    assert "Left 1 process running: sleep" in [message for _, message in bench.history(job)]
    (inner,) = [one.pid for one in below(launcher.pid) if one.parent == launcher.pid]
    assert [one for one in below(inner) if Path(f"/proc/{one.pid}/comm").read_text() == "sleep\n"]
    os.kill(inner, signal.SIGTERM)
    assert launcher.wait(30) == 0
    assert not alive(inner)
    assert list(os.listdir(Path(bench.directory) / "runs")) == []


def test_a_process_that_proc_hides_is_not_taken_for_dead() -> None:
    """With hidepid=2, as on some login nodes, users see their own processes only."""
    need()
    script = (
        f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
        "from balsam_lite.core.process_table import Holder, start_of\n"
        f"other = Holder.current()._replace(pid={os.getpid()}, started='1')\n"
        f"print(start_of({os.getpid()}), other.is_here(), other.is_provably_dead(), start_of(2**22 + 1) == '')"
    )
    words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-c", script]
    hide = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh"]
    done = subprocess.run([*hide, *words], capture_output=True, text=True, cwd="/", check=False)
    assert done.stdout == f"{UNKNOWN_START} True False True\n", done.stderr


def test_a_holder_whose_start_is_unknown_is_dead_only_without_a_process() -> None:
    me = Holder.current()
    assert not me._replace(started=UNKNOWN_START).is_provably_dead()
    assert me._replace(started=UNKNOWN_START, pid=2**22 + 1).is_provably_dead()
    assert me._replace(started=UNKNOWN_START, pid=-1).is_provably_dead()
