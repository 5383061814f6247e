"""Trouble of the machine, on real full disks, under real limits: jobs use up no restart, the launcher pauses and goes on."""

from __future__ import annotations

import errno
import os
import pty
import resource
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from elsewhere import balsam
from helpers import wait_until
from launching import Bench, alive

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import DatabaseFull, LaunchError, MachineTrouble, SpawnFailed
from balsam_lite.db.engine import directories, filesystem
from balsam_lite.db.query import reasons
from balsam_lite.db.store import user_actions
from balsam_lite.launcher.exec.trouble import Machine, Pause, Setbacks


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


@contextmanager
def small_disk(point: Path | str, size: str = "1m", inodes: int = 10_000) -> Iterator[Path]:
    """Mount a small separate file system there."""
    if os.geteuid() != 0:
        pytest.skip("mounting needs root")
    Path(point).mkdir(parents=True, exist_ok=True)
    options = f"size={size},nr_inodes={inodes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(point)], check=True)
    try:
        yield Path(point)
    finally:
        subprocess.run(["umount", "--lazy", str(point)], check=True)


def fill(directory: Path | str) -> Path:
    """Take all the space that is left on a file system; return the file that holds it."""
    ballast = Path(directory, "ballast")
    with open(ballast, "wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                size = size if file.write(b"x" * size) == size else size // 2
            except OSError as exc:
                assert exc.errno == errno.ENOSPC
                size //= 2
    return ballast


def messages_of(bench: Bench) -> list[str]:
    with bench.db.read() as cx:
        return [row[0] for row in cx.execute("SELECT message FROM event")]


def uncounted(bench: Bench, jobs: list[int]) -> bool:
    """Return whether no job has used up a restart or a retry."""
    return all(bench.job(job)["restarts"] == bench.job(job)["retries"] == 0 for job in jobs)


def log_of(bench: Bench) -> str:
    return "".join(path.read_text() for path in Path(bench.directory, "log").glob("launcher_*.log"))


def note_of(bench: Bench) -> str:
    with bench.db.read() as cx:
        return str((cx.execute("SELECT note FROM lease ORDER BY id DESC LIMIT 1").fetchone() or [""])[0])


# --- full disks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["blocks", "inodes"])
def test_jobs_wait_while_data_is_full_and_all_finish_when_there_is_space_again(bench, kind):
    bench.app("hello", "echo hello")
    with small_disk(f"{bench.directory}/data", inodes=10_000 if kind == "blocks" else 120) as data:
        if kind == "blocks":
            ballast = [fill(data)]
        else:
            ballast = [data / f"{number}" for number in range(118)]
            for path in ballast:
                path.touch()
        jobs = bench.add([{"name": f"j{number}", "application": "hello", "max_retries": 1} for number in range(50)])
        launcher = bench.launch("--nodes", "8")
        wait_until(lambda: ("inodes" if kind == "inodes" else "is full") in note_of(bench))
        assert "FAILED" not in bench.states()
        for path in ballast:
            path.unlink()
        if kind == "inodes":
            subprocess.run(["mount", "-o", "remount,nr_inodes=10000", str(data)], check=True)
        assert launcher.wait(60) == 0
        assert bench.states() == {"JOB_FINISHED": 50}
        assert uncounted(bench, jobs)
        assert "is full" not in note_of(bench)
        assert "inodes" not in note_of(bench)
        log = log_of(bench)
        assert log.count("The machine is in trouble") == 1
        assert log.count("Jobs can be started again") <= 1
        assert "RESTART_READY" not in log


def test_a_launcher_that_can_start_nothing_for_long_ends_with_the_reason_and_says_what_is_left(bench):
    bench.app("hello", "echo hello")
    with small_disk(f"{bench.directory}/data") as data:
        fill(data)
        bench.add([{"application": "hello"}] * 3)
        assert bench.run(BALSAM_TROUBLE_TTL_S="1.5") == 1
        assert bench.states() == {"CREATED": 3}
        with bench.db.read() as cx:
            assert "data is full" in cx.execute("SELECT end_reason FROM lease").fetchone()[0]
            around = reasons.surroundings(cx, SystemClock.now_us(), 120.0)
        assert around.last is not None
        assert "data is full" in around.last.trouble
    assert "gpus_per_rank=0: The disk of" in log_of(bench)


def test_a_launcher_on_a_terminal_says_there_why_it_starts_nothing(bench, balsam_argv):
    bench.app("hello", "echo hello")
    with small_disk(f"{bench.directory}/data") as data:
        ballast = fill(data)
        bench.add([{"application": "hello"}] * 3)
        side, terminal = pty.openpty()
        argv = [*balsam_argv, "--db", bench.directory, "launcher", "--consume-all", "--job-mode", "serial"]
        launcher = subprocess.Popen(argv, stderr=terminal, env=bench.environ, start_new_session=True)
        bench.launchers.append(launcher)
        os.close(terminal)
        shown = b""

        def is_told() -> bool:
            nonlocal shown
            shown += os.read(side, 4096)
            return f"No job can be started: The disk of {data} is full\r\n".encode() in shown

        wait_until(is_told)
        ballast.unlink()
        with suppress(OSError):  # the other side is closed
            while os.read(side, 4096):
                pass
        os.close(side)
        assert launcher.wait(30) == 0
        assert bench.states() == {"JOB_FINISHED": 3}


def test_the_steps_of_a_job_are_done_again_when_there_is_space(bench, tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    bench.app("hello", "true", preprocess="true", postprocess="cp big copied")
    with small_disk(f"{bench.directory}/data", size="256k") as data:
        ballast = fill(data)
        (job,) = bench.add([{"application": "hello", "stage_in_url": str(tmp_path / "big")}])
        launcher = bench.launch()
        wait_until(lambda: "data is full" in note_of(bench))
        assert bench.job(job)["state"] == "CREATED"
        ballast.unlink()
        assert launcher.wait(60) == 0
        assert [state for state, _ in bench.history(job)][-1] == "JOB_FINISHED"
        assert bench.path(job, "copied").stat().st_size == 100_000


# --- the DB's own disk ------------------------------------------------------------------------------------------------


def test_runs_outlast_a_full_disk_of_the_db_and_their_ends_are_recorded_when_there_is_space(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        bench = Bench(disk)
        log = Path(bench.directory, "log")
        log.rmdir()
        (tmp_path / "log").mkdir()
        log.symlink_to(tmp_path / "log")
        go_on = tmp_path / "go on"
        bench.shell("long", f"while ! [ -e '{go_on}' ]; do echo >> {tmp_path}/pulse; sleep 0.05; done")
        (job,) = bench.add([{"application": "long"}])
        # Elsewhere others could take the lease of one that is silent for 1.5 s, so there it gives up after these.
        launcher = bench.launch(BALSAM_LEASE_EXPIRY_S="3", BALSAM_KILL_GRACE_S="1")
        bench.wait_for(job, "RUNNING")
        wait_until((tmp_path / "pulse").exists)
        ballast = fill(disk)
        beats = (tmp_path / "pulse").stat().st_size
        wait_until(lambda: (tmp_path / "pulse").stat().st_size > beats + 60)
        go_on.touch()
        wait_until(lambda: "The DB cannot be used" in log_of(bench))
        assert launcher.poll() is None
        ballast.unlink()
        assert launcher.wait(30) == 0
        assert bench.job(job)["attempt"] == 1
        assert bench.states() == {"JOB_FINISHED": 1}
        assert "The DB can be used again" in log_of(bench)
        assert log_of(bench).count(f"The disk of {bench.directory} is full") == 1
        bench.close()


def test_on_a_shared_file_system_a_launcher_stops_its_runs_before_others_may_take_them(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        bench = Bench(disk)
        bench.db = directories.create(bench.directory, "shared")
        pid = tmp_path / "pid"
        bench.shell("long", f"echo $$ > {pid}; exec sleep 100")
        (job,) = bench.add([{"application": "long"}])
        launcher = bench.launch(BALSAM_LEASE_EXPIRY_S="6", BALSAM_KILL_GRACE_S="1")
        bench.wait_for(job, "RUNNING")
        number = int(wait_until(lambda: pid.exists() and pid.read_text()))
        fill(disk)
        assert launcher.wait(60) == 1
        assert not alive(number)
        bench.close()


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC])
@pytest.mark.parametrize("text", ["database or disk is full", "disk I/O error", "unable to open database file"])
def test_the_db_says_whether_the_disk_or_the_quota_is_used_up(bench, monkeypatch, code, text):
    monkeypatch.setattr(filesystem, "try_to_write", lambda directory: OSError(code, os.strerror(code)))
    with pytest.raises(DatabaseFull, match="quota for" if code == errno.EDQUOT else "nothing was written"):
        with bench.db.write():
            raise sqlite3.OperationalError(text)


def test_a_command_on_a_full_disk_fails_with_the_reason_and_adds_nothing(tmp_path, balsam_argv):
    with small_disk(tmp_path / "disk", inodes=40) as disk:
        bench = Bench(disk)
        bench.app("hello", "echo hello")
        bench.db.close()
        words = ["job", "--name", "x", "--workflow", "w", "--application", "hello", "--yes"]
        ballast = fill(disk)
        full = subprocess.run([*balsam_argv, "--db", bench.directory, *words], capture_output=True, text=True)
        ballast.unlink()
        assert full.returncode == 1
        assert f"The disk of {bench.directory} is full; nothing was written." in full.stderr
        assert full.stdout == ""
        assert bench.states() == {}
        bench.close()


# --- data/ is not there ----------------------------------------------------------------------------------------------


def test_jobs_wait_while_data_is_away_and_it_is_never_made_anew(bench):
    bench.app("hello", "echo hello")
    data = Path(bench.directory, "data")
    jobs = bench.add([{"application": "hello"}] * 20)
    data.rename(f"{bench.directory}/elsewhere")
    launcher = bench.launch()
    wait_until(lambda: "is its file system mounted?" in note_of(bench))
    assert not data.exists()
    Path(f"{bench.directory}/elsewhere").rename(data)
    assert launcher.wait(60) == 0
    assert bench.states() == {"JOB_FINISHED": 20}
    assert uncounted(bench, jobs)


def test_nothing_runs_in_the_directory_below_a_mount_that_has_gone(bench):
    bench.app("hello", "echo hello")
    data = Path(bench.directory, "data")
    with small_disk(data):
        (first,) = bench.add([{"application": "hello"}])
        launcher = bench.launch("--persistent")
        bench.wait_for(first, "JOB_FINISHED")
    (second,) = bench.add([{"application": "hello"}])
    wait_until(lambda: "not the one that this launcher began with" in note_of(bench))
    assert (bench.job(second)["state"], bench.job(second)["attempt"]) == ("CREATED", 0)
    assert list(data.iterdir()) == []
    with small_disk(data):  # another device, the same inode: what a file system that is mounted again looks like
        bench.wait_for(second, "JOB_FINISHED")
        launcher.terminate()
        assert launcher.wait(30) == 0


# --- too few processes -----------------------------------------------------------------------------------------------


def as_user_with_few_processes(uid: int, processes: int) -> list[str]:
    """Return words that run a command as a user with a limit of processes, unlike root. It may still read all files."""
    may_read = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    user_actions = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *may_read]
    return [*user_actions, "prlimit", f"--nproc={processes}:{processes}"]


def test_a_limit_of_processes_fails_no_job(bench, balsam_argv):
    if os.geteuid() != 0:
        pytest.skip("another user's process needs root")
    bench.app("nap", "sleep 0.2")
    jobs = bench.add([{"application": "nap"}] * 60)
    uid = 50_000 + os.getpid() % 10_000  # the limit counts all processes of a user
    argv = [*balsam_argv, "--db", bench.directory, "launcher", "--consume-all", "--job-mode", "serial", "--nodes", "40"]
    launcher = subprocess.run(
        [*as_user_with_few_processes(uid, 20), *argv], env=bench.environ, capture_output=True, text=True, timeout=120
    )
    assert launcher.returncode == 0, launcher.stderr
    assert bench.states() == {"JOB_FINISHED": 60}
    assert uncounted(bench, jobs)
    assert any("no more processes" in message for message in messages_of(bench))


def test_a_launcher_that_can_start_no_spawn_helper_blames_the_machine(bench, monkeypatch):
    from balsam_lite.core.errors import SpawnFailed
    from balsam_lite.launcher.exec import spawner

    def refuse(*words: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(spawner.subprocess, "Popen", refuse)
    with pytest.raises(SpawnFailed, match="cannot be started") as caught:
        spawner.Spawner({}, 1.0)
    assert isinstance(Machine(f"{bench.directory}/data").trouble_behind(caught.value), MachineTrouble)


def test_no_process_counts_as_dead_because_too_many_files_are_open(monkeypatch):
    from balsam_lite.core import process_table

    monkeypatch.setattr(process_table, "RETRY_S", 0.001)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            process_table.start_of(os.getpid())
        with pytest.raises(OSError, match="Too many open files"):
            process_table.living([process_table.Process(os.getpid(), 1, 1, 1, "1")])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


# --- some jobs only ---------------------------------------------------------------------------------------------------


def test_jobs_of_a_program_that_is_being_written_wait_and_others_run(bench, tmp_path):
    program = tmp_path / "prog"
    shutil.copy("/bin/true", program)
    bench.app("busy", str(program))
    bench.app("hello", "echo hello")
    with open(program, "r+b"):
        busy = bench.add([{"application": "busy"}] * 3)
        others = bench.add([{"application": "hello"}] * 20)
        launcher = bench.launch("--nodes", "2")
        for job in others:
            bench.wait_for(job, "JOB_FINISHED")
        wait_until(lambda: "open for writing (Text file busy)" in log_of(bench))
        assert {bench.job(job)["state"] for job in busy} <= {"CREATED", "RUNNING", "RESTART_READY"}
    # The first of them tries again within seconds, the others after a minute at most.
    wait_until(lambda: bench.states().get("JOB_FINISHED", 0) > 20, timeout=60)
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET start_after = 1 WHERE start_after IS NOT NULL")
    assert launcher.wait(60) == 0
    assert bench.states() == {"JOB_FINISHED": 23}
    assert uncounted(bench, busy)


def test_jobs_whose_own_directory_is_on_a_full_disk_are_left_with_the_reason_and_others_run(bench, tmp_path):
    bench.app("hello", "echo hello")
    with small_disk(tmp_path / "scratch", inodes=40) as scratch:
        fill(scratch)
        for number in range(60):
            with suppress(OSError):
                (scratch / str(number)).touch()
        full = bench.add([{"application": "hello", "user_workdir": f"{scratch}/a/b"}])
        bench.add([{"application": "hello"}] * 20)
        assert bench.run("--nodes", "2", BALSAM_TROUBLE_TTL_S="2") == 0
        assert bench.states() == {"JOB_FINISHED": 20, "CREATED": 1}
        assert uncounted(bench, full)
        assert f"Left: 1 job(s) are held back: The disk of {scratch} is out of inodes" in log_of(bench)


def test_a_launcher_does_not_wait_for_a_job_that_is_killed_while_it_is_held_back(bench, tmp_path):
    program = tmp_path / "prog"
    shutil.copy("/bin/true", program)
    bench.app("busy", str(program))
    with open(program, "r+b"):
        (job,) = bench.add([{"application": "busy"}])
        launcher = bench.launch()
        wait_until(lambda: "is held back for 4 s" in log_of(bench))
        user_actions.kill(bench.db, [job])
        assert launcher.wait(60) == 0  # TROUBLE_TTL_S is ten minutes
    assert bench.states() == {"USER_KILLED": 1}


def test_a_stage_out_to_a_full_disk_is_done_again_and_keeps_no_other_job_from_running(bench, tmp_path):
    bench.app("big", "dd if=/dev/zero of=big bs=1k count=300")
    bench.app("hello", "echo hello")
    with small_disk(tmp_path / "archive") as archive:
        ballast = fill(archive)
        url = {"stage_out_url": f"{archive}/out", "stage_out_files": "big"}
        (job,) = bench.add([{"application": "big", **url}])
        others = bench.add([{"application": "hello"}] * 20)
        launcher = bench.launch("--nodes", "2")
        for other in others:
            bench.wait_for(other, "JOB_FINISHED")
        wait_until(lambda: f"The disk of {archive}/out is full" in log_of(bench))
        assert bench.job(job)["state"] == "RUN_DONE"
        ballast.unlink()
        assert launcher.wait(60) == 0
        assert bench.states() == {"JOB_FINISHED": 21}
        assert (archive / "out" / "big").stat().st_size == 300 * 1024


def test_jobs_of_one_scope_wait_longer_and_longer_and_those_of_another_do_not():
    setbacks, busy = Setbacks(), MachineTrouble("busy", "/prog")
    assert [setbacks.hold(1, busy, now) for now in (10, 11, 13, 17)] == [1, 2, 4, 8]
    assert [round(setbacks.hold(job, busy, 20), 2) for job in (2, 3)] == [60.05, 60.1]
    assert setbacks.hold(4, MachineTrouble("full", "/scratch"), 20) == 1
    assert setbacks.summary == ["3 job(s) are held back: busy", "1 job(s) are held back: full"]
    setbacks.release(4)
    assert setbacks.summary == ["3 job(s) are held back: busy"]
    now = 25
    for _ in range(12):
        now += setbacks.hold(1, busy, now)
    assert setbacks.hold(1, busy, now) == 600


# --- whose fault ------------------------------------------------------------------------------------------------------


def caused(code: int, path: str) -> LaunchError:
    """Return a failed start with that errno as its cause, as the spawner raises it."""
    failure = SpawnFailed("it cannot be started")
    failure.__cause__ = OSError(code, os.strerror(code), path)
    return failure


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_lack_of_processes_memory_or_files_keeps_all_jobs_from_starting(bench, code):
    trouble = Machine(f"{bench.directory}/data").trouble_behind(caused(code, "/bin/true"))
    assert trouble is not None
    assert trouble.scope == MachineTrouble.HOST
    assert os.strerror(code) in trouble.message


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EACCES, errno.E2BIG, errno.ENOEXEC, errno.ENAMETOOLONG, errno.ELOOP])
@pytest.mark.parametrize("path", ["/no/such/program", "data/job/prog"])
def test_what_is_wrong_with_one_program_is_its_jobs_own_fault(bench, code, path):
    path = os.path.join(bench.directory, path)
    assert Machine(f"{bench.directory}/data").trouble_behind(caused(code, path)) is None


def test_a_data_directory_that_only_others_may_write_is_no_trouble(bench, monkeypatch):
    monkeypatch.setattr(filesystem, "try_to_write", lambda directory: OSError(errno.EACCES, "Permission denied"))
    assert Machine(f"{bench.directory}/data").why_data_fails() == ""


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_one_unusable_directory_keeps_no_other_job_from_starting(bench, code):
    path = Path(bench.directory, "data", "job")
    path.mkdir()
    trouble = Machine(f"{bench.directory}/data").trouble_behind(caused(code, str(path)))
    assert trouble is not None
    assert trouble.scope == str(path)


def test_a_full_disk_of_a_job_s_own_directory_is_told_by_its_mount_point(bench, tmp_path):
    with small_disk(tmp_path / "scratch") as scratch:
        trouble = Machine(f"{bench.directory}/data").trouble_behind(caused(errno.ENOSPC, f"{scratch}/a/b"))
    assert trouble is not None
    assert trouble.scope == str(scratch)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ENOENT, errno.EIO])
def test_any_error_in_data_is_the_machines_if_data_itself_is_away(bench, code):
    data = Path(bench.directory, "data")
    machine = Machine(str(data))
    data.rename(tmp := f"{bench.directory}/away")
    trouble = machine.trouble_behind(caused(code, f"{data}/job"))
    Path(tmp).rename(data)
    assert trouble is not None
    assert trouble.scope == MachineTrouble.HOST


def why_unwritable(directory: Path) -> str:
    error = filesystem.try_to_write(str(directory))
    return filesystem.why_full(str(directory), error.errno) if error else ""


def test_a_full_disk_a_lack_of_inodes_and_a_quota_are_told_apart(tmp_path):
    assert filesystem.try_to_write(str(tmp_path)) is None
    assert list(tmp_path.iterdir()) == []
    assert "quota" in filesystem.why_full(str(tmp_path), errno.EDQUOT)
    with small_disk(tmp_path / "disk", inodes=20) as disk:
        for number in range(19):
            (disk / str(number)).touch()
        assert "out of inodes (it has 20" in why_unwritable(disk)
        (disk / "0").unlink()
        assert why_unwritable(disk) == ""
        ballast = fill(disk)
        (disk / "1").unlink()
        assert why_unwritable(disk) == f"The disk of {disk} is full"
        ballast.unlink()


# --- the pause --------------------------------------------------------------------------------------------------------


def test_the_pause_grows_to_a_minute_and_many_failures_of_one_moment_count_once():
    pause, now, started = Pause(), 100.0, 0
    assert pause.allowed(now, 1000) == 1000
    waits = []
    for _ in range(9):
        for _ in range(50):
            pause.fail("no processes", now)
        assert pause.allowed(now, 1000) == 0
        waits.append(pause.next_try - now)
        now = pause.next_try
        assert pause.allowed(now, 1000) == 1
        pause.try_again(now, 1, started)
        assert pause.listen(now, started) == ""
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_starts_double_after_a_good_one_until_the_trouble_is_over():
    pause, now = Pause(), 100.0
    pause.fail("no processes", now)
    assert "no processes" in pause.line(now)
    now, allowed = pause.next_try, []
    while pause.reason:
        allowed.append(pause.allowed(now, 1000))
        pause.try_again(now, allowed[-1], sum(allowed[:-1]))
        said = pause.listen(now, sum(allowed))
    assert allowed == [1, 2, 4, 8, 16, 32, 64]
    assert said == "Jobs can be started again, after 1 s."


def test_a_start_of_which_nothing_is_heard_is_good_after_a_while_and_an_end_hastens_the_next_try():
    pause, now = Pause(), 100.0
    pause.fail("no processes", now)
    pause.hasten(now)
    assert pause.allowed(now, 9) == 1
    pause.try_again(now, 1, 7)
    pause.listen(now + 2, 7)
    assert pause.allowed(now + 2, 9) == 0
    pause.listen(now + 3, 7)
    assert pause.allowed(now + 3, 9) == 2


def test_the_log_has_a_line_a_minute_at_most():
    pause = Pause()
    for second in range(300):
        pause.fail("the disk is full", second)
        line = pause.line(second)
        assert bool(line) == (second % 60 == 0)
        assert not line or f"{1 if second == 0 else 60} start(s)" in line


# --- words of a full disk ---------------------------------------------------------------------------------------------


@pytest.fixture(params=["blocks", "inodes"])
def full_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Make a file system without a free block or without a free inode; with the words that tell which."""
    with small_disk(tmp_path / "full", "400k", 20) as disk:
        if request.param == "blocks":
            fill(disk)
            yield disk, "is full"
        else:
            for number in range(19):
                with suppress(OSError):
                    (disk / str(number)).touch()
            yield disk, "is out of inodes (it has 20, one for each file and directory)"


def test_every_command_tells_what_the_disk_lacks(bench: Bench, full_disk: tuple[Path, str], tmp_path: Path) -> None:
    disk, lack = full_disk
    assert balsam(bench.directory, "make_dummies", "3000")[0] == 0
    for words in (
        ("init", f"{disk}/db"),
        ("--db", bench.directory, "db", "backup", f"{disk}/backup"),
        ("--db", bench.directory, "db", "salvage", f"{disk}/new"),
    ):
        done = balsam(None, *words)
        assert done[0] == 1
        assert lack in done[2] and str(disk) in done[2], done[2]
        assert bench.directory not in done[2] and "Errno" not in done[2] and "I/O" not in done[2], done[2]
    code, _, err = balsam(None, "init", str(tmp_path / "other"), BALSAM_HOME=f"{disk}/home")
    assert code == 0
    if lack != "is full":  # a small file has room in what is left of a block
        assert lack in err and "cannot be added to the known ones" in err


def test_a_db_on_a_full_disk_tells_it_when_it_is_opened_and_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", inodes=40) as disk:
        assert balsam(None, "init", f"{disk}/db")[0] == 0
        for number in range(40):
            with suppress(OSError):
                (disk / str(number)).touch()
        launcher = ("launcher", "--consume-all", "--job-mode", "serial")
        for words in (("ls",), ("app", "--name", "a", "--executable", "true"), ("db", "vacuum"), launcher):
            code, _, err = balsam(f"{disk}/db", *words)
            assert code == 1 and "is out of inodes" in err and "I/O" not in err, (words, err)
