"""Whatever a killed launcher has started is found and ended before the attempt is given out again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT, wait_until
from launching import Bench

from balsam_lite.core import process_table
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import RUN_VARIABLE, Holder, belonging, read_proc, start_of
from balsam_lite.core.settings import Settings
from balsam_lite.db.engine import directories, maintenance
from balsam_lite.db.engine.binding import id_of
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import leases
from balsam_lite.launcher.exec import program, run_file
from balsam_lite.launcher.exec.invocation import lease_mark
from balsam_lite.launcher.exec.run_file import Orphans, RunFiles, Writer, end_runs, runs_of
from balsam_lite.launcher.reaper import Reaper

ID, LEASE = f"{os.getpid():016x}", 3  # tests that run side by side leave each other alone
MARK = lease_mark(ID, LEASE)


class Runs:
    """Starts programs as a launcher does, and records them."""

    def __init__(self, directory: str, db_id: str = ID, lease: int = LEASE) -> None:
        self.directory, self.mark = directory, lease_mark(db_id, lease)
        self.files = RunFiles.of(directory, self.mark)
        self.writer = Writer(self.files.file(0))
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *argv: str, is_recorded: bool = True, **variables: str) -> subprocess.Popen[bytes]:
        environ = {**os.environ, RUN_VARIABLE: f"{self.mark.decode()}1:1", **variables}
        made = subprocess.Popen(argv, env=environ, start_new_session=True)
        self.started.append(made)
        if is_recorded:
            self.record(made.pid, program.start_of_child(made.pid))
        return made

    def record(self, pid: int, started: str) -> None:
        assert self.writer.start(pid, started, self.mark + b"1:1") == ""

    def end(self) -> Orphans:
        return end_runs(self.directory, 0.2, [self.mark])


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(str(tmp_path))
    yield made
    for one in made.started:
        one.kill()
        one.wait()


def pid_in(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


HIDDEN = {
    "no environment": 'exec env -i sleep 4444',
    "renamed": "exec env -i bash -c 'exec -a kworker sleep 4444'",
    "child of a shell that ignores TERM": "trap '' TERM; env -i sleep 4444; sleep 4444",
    "no descriptors": "exec env -i bash -c 'exec 0<&- 1>&- 2>&-; exec sleep 4444'",
    "own session below its leader": "env -i setsid sleep 4444; true",
}  # fmt: skip


@pytest.mark.parametrize("how", HIDDEN)
def test_programs_that_hide_their_environment_are_ended(runs: Runs, how: str) -> None:
    leader = runs.start("bash", "-c", HIDDEN[how])
    holder = Holder("", "", leader.pid, start_of(leader.pid))
    wait_until(lambda: any(process_table.command_of(one.pid) == "sleep" for one in process_table.family(holder)), 30)
    family = process_table.family(holder)
    assert runs.end().left == ()
    assert process_table.living(family) == []


def test_what_a_dead_leader_left_in_its_session_is_ended(runs: Runs, tmp_path: Path) -> None:
    leader = runs.start("bash", "-c", f"(env -i sleep 4444 & echo $! > {tmp_path}/pid) & wait %1")
    pid = pid_in(tmp_path / "pid")
    leader.wait()
    assert start_of(pid)
    assert runs.end().number == 1
    assert start_of(pid) == ""


def test_a_double_fork_into_another_session_is_found_by_its_mark(runs: Runs, tmp_path: Path) -> None:
    leader = runs.start("bash", "-c", f"(setsid sh -c 'echo $$ > {tmp_path}/pid; exec sleep 4444' &)")
    pid = pid_in(tmp_path / "pid")
    leader.wait()
    assert runs.end().number == 1
    assert start_of(pid) == ""


def test_a_session_of_thousands_that_ignore_term_is_ended(runs: Runs, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "never")
    child = f"(trap '' TERM; read x < {tmp_path}/never) &"
    loop = f"i=0; while [ $i -lt 1500 ]; do {child} i=$((i+1)); done; touch {tmp_path}/done"
    leader = runs.start("sh", "-c", f"trap '' TERM; {loop}; read x < {tmp_path}/never")
    wait_until((tmp_path / "done").exists, 60)
    assert runs.end().number == 1501
    assert leader.wait() == -signal.SIGKILL


@pytest.mark.skipif(os.getuid() != 0 and "BALSAM_CI" not in os.environ, reason="changes the user")
def test_a_program_of_another_uid_is_ended(runs: Runs) -> None:
    leader = runs.start("setpriv", "--reuid", "65534", "--clear-groups", "env", "-i", "sleep", "4444")
    wait_until(lambda: os.stat(f"/proc/{leader.pid}").st_uid == 65534)
    assert runs.end().number == 1
    assert leader.wait() == -signal.SIGTERM


@pytest.mark.skipif(os.getuid() != 0 and "BALSAM_CI" not in os.environ, reason="becomes an ordinary user")
def test_an_ordinary_user_ends_a_program_that_only_root_can_look_into(tmp_path: Path) -> None:
    top = Path("/tmp") / f"balsam-{os.getpid()}-{tmp_path.name}"  # the directories above tmp_path are closed to others
    top.mkdir()
    try:
        code = Path(shutil.copy(shutil.which("sleep") or "", top / "licensed"))
        code.chmod(0o711)
        os.chown(top, 65534, 65534)
        script = (
            f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
            "import os\n"
            "from balsam_lite.launcher.exec.run_file import RunFiles, Writer\n"
            "from balsam_lite.core.process_table import start_of\n"
            "from balsam_lite.launcher.exec.run_file import Orphans, end_runs, runs_of\n"
            "from balsam_lite.core.process_table import _environ_of\n"
            f"pid = os.posix_spawn({str(code)!r}, ['licensed', '4444'], {{'BALSAM_RUN': '{MARK.decode()}1:1'}}, setsid=True)\n"
            f"writer = Writer(RunFiles.of({str(top)!r}, {MARK!r}).file(0))\n"
            f"assert not writer.start(pid, start_of(pid), {MARK + b'1:1'!r})\n"
            f"print(_environ_of(pid), end_runs({str(top)!r}, 0.2, [{MARK!r}]), os.waitpid(pid, 0)[1])\n"
        )
        words = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-c", script]
        done = subprocess.run(words, capture_output=True, text=True, cwd="/", check=False)
        if "Permission denied" in done.stderr and "python" in done.stderr and os.environ.get("BALSAM_CI") != "1":
            pytest.skip("the interpreter is closed to other users")
        assert done.stdout == "b'' Orphans(number=1, left=()) 15\n", done.stderr
    finally:
        shutil.rmtree(top)


def test_a_program_that_got_the_pid_of_a_run_is_never_signalled(runs: Runs) -> None:
    stranger = subprocess.Popen(["env", "-i", "sleep", "4444"], start_new_session=True)
    runs.started.append(stranger)
    runs.record(stranger.pid, "1")
    assert runs.end().number == 0
    assert stranger.poll() is None


def test_runs_of_a_copy_or_of_another_lease_are_left_alone(runs: Runs) -> None:
    mine = runs.start("sleep", "4444")
    assert end_runs(runs.directory, 0.2, [lease_mark("fedcba", LEASE)]).number == 0
    assert end_runs(runs.directory, 0.2, [lease_mark(ID, LEASE + 1)]).number == 0
    assert end_runs(runs.directory, 0.2, [lease_mark(ID, LEASE * 10)]).number == 0
    assert mine.poll() is None


def test_a_program_in_the_middle_of_execve_is_waited_for(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel shows no environment during execve; the double fork of a run may be there during each look."""
    runs.start("true").wait()
    hidden = runs.start("sleep", "4444", is_recorded=False)
    look, looks = process_table._environ_of, [0]
    monkeypatch.setattr(process_table, "_hides_its_environment", lambda pid: pid == hidden.pid)

    def environ_of(pid: int) -> bytes:
        looks[0] += pid == hidden.pid
        return b"" if pid == hidden.pid and looks[0] <= 3 else look(pid)

    monkeypatch.setattr(process_table, "_environ_of", environ_of)
    assert runs.end().number == 1
    assert hidden.wait() == -signal.SIGTERM


def test_a_program_that_stays_unreadable_is_not_waited_for_for_ever(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.start("true").wait()
    agent = subprocess.Popen(["env", "-i", "sleep", "4444"], start_new_session=True)
    runs.started.append(agent)
    wait_until(lambda: process_table._environ_of(agent.pid) == b"")
    monkeypatch.setattr(process_table, "_hides_its_environment", lambda pid: True)
    assert agent.pid in [one.pid for one in runs_of(runs.directory, [MARK]).unknown]
    monkeypatch.setattr(run_file, "MAX_UNKNOWN_S", 0.1)
    assert runs.end().number == 0
    assert agent.poll() is None


def test_a_program_whose_environment_is_known_to_be_empty_is_not_waited_for(runs: Runs) -> None:
    runs.start("true").wait()
    other = subprocess.Popen(["env", "-i", "sleep", "4444"], start_new_session=True)
    runs.started.append(other)
    wait_until(lambda: process_table._environ_of(other.pid) == b"")
    assert other.pid not in [one.pid for one in runs_of(runs.directory, [MARK]).unknown]


def test_older_programs_without_an_environment_are_left_alone(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = subprocess.Popen(["env", "-i", "sleep", "4444"], start_new_session=True)
    runs.started.append(agent)
    monkeypatch.setattr(process_table, "_hides_its_environment", lambda pid: True)
    began = int(start_of(agent.pid))
    for start, is_unknown in ((began + 1, False), (began, True)):
        found = belonging([(2**22 + 1, str(start))], prefix=MARK)
        assert (agent.pid in [one.pid for one in found.unknown]) == is_unknown


def test_the_reaper_ends_hidden_runs_before_it_frees_their_jobs_and_removes_the_file(tmp_path: Path) -> None:
    db: Database = directories.create(str(tmp_path / "db"))
    with db.write() as cx:
        dead = Holder.current()._replace(started="another process's")
        lease, db_id = leases.open_lease(cx, "launcher", dead, "", 1), id_of(cx)
    runs = Runs(db.directory, db_id, lease)
    run = runs.start("env", "-i", "sleep", "4444")
    wait_until(lambda: process_table._environ_of(run.pid) == b"")
    file = Path(runs.files.file(0).path)
    assert file.exists()
    Reaper(db, Settings(USER_KILL_GRACE_S=0.2), SystemClock()).reap()
    assert run.wait() == -signal.SIGTERM
    with db.read() as cx:
        assert leases.open_leases(cx) == []
    assert not file.exists()
    db.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def helpers_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    table = process_table.below(launcher.pid)
    return [one.pid for one in table if one.parent == launcher.pid and b"spawn_helper" in read_proc(f"/proc/{one.pid}/cmdline")]


def start_hidden(bench: Bench, tmp_path: Path, *options: str) -> tuple[int, subprocess.Popen[bytes], int]:
    """Launch a job that hides its first attempt, and whose second one sees whether that lives; its number, and its pid."""
    pids = tmp_path / "pids"
    bench.shell(
        "hides",
        f"""
        if [ -e {pids} ]; then grep -q "^[0-9]* (.*) [RSDT]" /proc/$(cat {pids})/stat && touch {tmp_path}/overlap; exit 0; fi
        echo $$ > {pids}
        exec env -i sleep 4444""",
    )
    (job,) = bench.add([{"name": "j", "workflow": "w", "application": "hides"}])
    launcher = bench.launch(*options)
    pid = pid_in(pids)
    wait_until(lambda: read_proc(f"/proc/{pid}/comm") == b"sleep\n")
    return job, launcher, pid


@pytest.mark.parametrize("helpers", ["work", "are stopped", "are killed", "are killed first"])
def test_a_hidden_run_of_a_killed_launcher_has_ended_before_its_job_runs_again(
    bench: Bench, tmp_path: Path, helpers: str
) -> None:
    job, launcher, pid = start_hidden(bench, tmp_path)
    helper_pids = helpers_of(launcher)
    assert helper_pids
    launcher.send_signal(signal.SIGSTOP)
    for one in helper_pids if helpers != "work" else ():
        os.kill(one, signal.SIGSTOP if helpers == "are stopped" else signal.SIGKILL)
    if helpers == "are killed first":
        wait_until(lambda: not any(map(start_of, helper_pids)))
    launcher.kill()
    launcher.wait()
    assert start_of(pid) or helpers == "work"
    assert bench.run() == 0
    assert start_of(pid) == ""
    assert not any(map(start_of, helper_pids))
    assert not (tmp_path / "overlap").exists()
    assert (bench.job(job)["state"], bench.job(job)["attempt"]) == ("JOB_FINISHED", 2)
    assert os.listdir(Path(bench.directory) / directories.RUNS) == []


def test_a_hidden_run_of_a_killed_helper_has_ended_before_its_job_runs_again(bench: Bench, tmp_path: Path) -> None:
    job, launcher, pid = start_hidden(bench, tmp_path)
    for one in helpers_of(launcher):
        os.kill(one, signal.SIGKILL)
    assert launcher.wait(60) == 0
    assert start_of(pid) == ""
    assert not (tmp_path / "overlap").exists()
    assert bench.job(job)["state"] == "JOB_FINISHED"


def kill_all(launcher: subprocess.Popen[bytes]) -> None:
    """Kill a launcher and its helpers, so that what they run lives on."""
    pids = [*helpers_of(launcher), launcher.pid]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, number)
    launcher.wait()
    wait_until(lambda: not any(map(start_of, pids)))


@pytest.mark.parametrize("is_hidden", [True, False], ids=["hidden", "marked"])
def test_a_db_that_was_moved_after_a_crash_ends_what_ran(tmp_path: Path, is_hidden: bool) -> None:
    bench = Bench(tmp_path)
    try:
        if is_hidden:
            job, launcher, pid = start_hidden(bench, tmp_path)
        else:
            bench.shell("runs", f"[ -e {tmp_path}/pid ] && exit 0; echo $$ > {tmp_path}/pid; exec sleep 4444")
            (job,) = bench.add([{"name": "j", "workflow": "w", "application": "runs"}])
            launcher, pid = bench.launch(), pid_in(tmp_path / "pid")
        kill_all(launcher)
        bench.db.close()
        assert start_of(pid)
        os.rename(bench.directory, tmp_path / "elsewhere")
        bench.directory = str(tmp_path / "elsewhere")
        bench.db = directories.create(bench.directory)  # `balsam init`, which is not needed
        assert bench.run() == 0
        assert start_of(pid) == ""
        assert (bench.job(job)["state"], bench.job(job)["attempt"]) == ("JOB_FINISHED", 2)
    finally:
        bench.close()


def test_the_launcher_of_a_copy_leaves_what_the_original_runs(bench: Bench, tmp_path: Path) -> None:
    _, launcher, pid = start_hidden(bench, tmp_path)
    backup = tmp_path / "copy"
    backup.mkdir()
    maintenance.backup(bench.db, str(backup / "balsam.sqlite3"))
    shutil.copytree(Path(bench.directory) / directories.RUNS, backup / directories.RUNS)
    for name in ("data", "log", directories.MARKER):
        path = Path(bench.directory) / name
        (shutil.copytree if path.is_dir() else shutil.copy)(path, backup / name)
    directories.create(str(backup)).close()
    argv = [sys.executable, "-m", "balsam_lite.cli", "--db", str(backup), "launcher", "--job-mode", "serial", "--consume-all"]
    assert subprocess.run(argv, env=bench.environ, check=False, timeout=60).returncode == 0
    assert start_of(pid)
    assert launcher.poll() is None


def test_runs_of_a_lease_that_another_host_has_closed_are_ended_by_the_next_launcher_here(bench: Bench, tmp_path: Path) -> None:
    job, launcher, pid = start_hidden(bench, tmp_path)
    kill_all(launcher)
    with bench.db.write() as cx:  # as a launcher elsewhere does when the lease has expired
        (lease,) = leases.open_leases(cx)
        assert leases.reap(cx, lease, 1) == 1
    assert start_of(pid)
    assert bench.run() == 0
    assert start_of(pid) == ""
    assert not (tmp_path / "overlap").exists()
    assert bench.job(job)["state"] == "JOB_FINISHED"
