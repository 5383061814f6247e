"""Spawn helpers: they own the programs, and end them when the launcher is gone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from launching import Bench, alive

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import DETACHED_VARIABLE, Process, below, read_proc, start_of, state_of
from balsam_lite.core.subprocess_run import module_words, python_path
from balsam_lite.db.store.claims import Claim, Shape
from balsam_lite.launcher.exec import invocation, program, run_file, spawn_helper
from balsam_lite.launcher.exec.program import Request
from balsam_lite.launcher.exec.spawner import Ended, FailedStart, HelperChannel, Lost, Spawner, Started, Withdrawn
from balsam_lite.launcher.placement import Placement
from balsam_lite.launcher.run_results import Finished
from balsam_lite.launcher.runner import LocalRunner


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def spawner() -> Iterator[Spawner]:
    made = Spawner({b"PATH": b"/usr/bin:/bin"}, 1.0)
    yield made
    made.abandon()


def request(tmp_path: Path, key: int, line: str, **fields: object) -> Request:
    made = Request(key, "/bin/sh", [b"sh", b"-c", line.encode()], {}, str(tmp_path), f"{key}.out")
    return made._replace(**fields)  # type: ignore[arg-type]


def sleeps(pid: int) -> list[Process]:
    """Return the programs named sleep below a process."""
    return [one for one in below(pid) if read_proc(f"/proc/{one.pid}/comm").startswith(b"sleep")]


def answers(spawner: Spawner, channel: HelperChannel, number: int) -> list[object]:
    """Wait for this number of answers."""
    found: list[object] = []

    def enough() -> bool:
        spawner.poll()
        found.extend(channel.answers())
        return len(found) >= number

    wait_until(enough)
    return found


def test_a_program_gets_a_session_where_the_c_library_cannot_open_one_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise NotImplementedError

    monkeypatch.chdir("/")
    monkeypatch.setattr(os, "posix_spawn", refuse)
    made = request(tmp_path, 1, 'echo "$A$B"; cut -d" " -f1,6 /proc/$$/stat', own={b"B": program.UNSET})
    pid = program.spawn(made, {b"PATH": b"/usr/bin:/bin", b"A": b"a", b"B": b"b"})
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "1.out").read_text() == f"a\n{pid} {pid}\n"


def test_a_signal_to_a_helper_that_is_only_starting_costs_no_program(tmp_path: Path, spawner: Spawner) -> None:
    """As of a batch system that signals every process of a job."""
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, "kill -TERM $$"))  # the helper leaves no signal blocked in its programs
    for number in spawn_helper.IGNORED:
        os.kill(spawner.pids[0], number)
    started, ended = answers(spawner, channel, 2)
    assert isinstance(started, Started)
    assert isinstance(ended, Ended) and ended.returncode == -signal.SIGTERM


def test_a_queued_program_takes_the_place_of_one_that_ends_well(tmp_path: Path, spawner: Spawner) -> None:
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done", lane=1))
    channel.queue(request(tmp_path, 2, "exit 3", lane=1))
    channel.queue(request(tmp_path, 3, "exit 0", lane=1))
    other = spawner.channel()
    other.start(request(tmp_path, 1, "exit 0", output="other.out"))  # without a lane: nothing takes its place
    other.start(request(tmp_path, 2, "exit 0", output="other2.out", lane=2))
    assert {answer.successor for answer in answers(spawner, other, 4) if isinstance(answer, Ended)} == {None}
    (first,) = answers(spawner, channel, 1)
    assert isinstance(first, Started)
    (tmp_path / "go").touch()
    second, ended, failed = answers(spawner, channel, 3)
    assert isinstance(second, Started) and second.key == 2
    assert isinstance(ended, Ended) and (ended.key, ended.returncode, ended.successor) == (1, 0, 2)
    assert isinstance(failed, Ended) and (failed.key, failed.returncode, failed.successor) == (2, 3, None)
    channel.withdraw([3])
    assert answers(spawner, channel, 1) == [Withdrawn(3)]
    assert not (tmp_path / "3.out").exists()


def test_the_start_of_a_program_is_the_one_that_the_system_tells(tmp_path: Path, spawner: Spawner) -> None:
    channel = spawner.channel()
    for key in range(20):
        channel.start(request(tmp_path, key, "exec sleep 600"))
    for started in answers(spawner, channel, 20):
        assert isinstance(started, Started) and started.start == start_of(started.pid)


def test_a_program_that_cannot_be_started_is_told_with_its_error(tmp_path: Path, spawner: Spawner) -> None:
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, "", program="/bin/no-such-program"))
    channel.start(request(tmp_path, 2, "", argv=[b"sh", *[b"x" * 100_000] * 100]))
    channel.start(request(tmp_path, 3, "", directory=str(tmp_path / "gone")))
    for answer, code in zip(answers(spawner, channel, 3), (2, 7, 2)):
        assert isinstance(answer, FailedStart)
        assert isinstance(answer.error.__cause__, OSError) and answer.error.__cause__.errno == code, answer.error
    channel.start(request(tmp_path, 4, "exit 0"))
    assert isinstance(answers(spawner, channel, 2)[1], Ended)


def test_a_helper_that_is_killed_is_replaced_and_its_programs_are_lost(tmp_path: Path, spawner: Spawner) -> None:
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, "exec sleep 600"))
    answers(spawner, channel, 1)
    os.kill(spawner.pids[0], signal.SIGKILL)
    assert answers(spawner, channel, 1) == [Lost(1)]
    channel.start(request(tmp_path, 2, "exit 0"))
    assert isinstance(answers(spawner, channel, 2)[1], Ended)
    for left in sleeps(os.getpid()):
        left.signal(signal.SIGKILL)


def test_what_a_killed_helper_had_just_started_is_known(tmp_path: Path) -> None:
    files = run_file.RunFiles(str(tmp_path / "runs"), "id", 7, 0, 0o600)
    spawner = Spawner({b"PATH": b"/usr/bin:/bin"}, 1.0, run_files=files)
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, "exec env -i sleep 600"))
    (started,) = answers(spawner, channel, 1)
    assert isinstance(started, Started)
    os.kill(spawner.pids[0], signal.SIGKILL)
    shutil.rmtree(tmp_path / "runs")  # as if it had not come to record it
    assert answers(spawner, channel, 1) == [Lost(1)]
    orphans = spawner.take_orphans()
    assert [one.pid for one in orphans] == [started.pid]
    assert [one.pid for one in run_file.read(files.directory, "id", 7) if one.job == 0] == [started.pid]
    orphans[0].signal(signal.SIGKILL)
    os.waitpid(started.pid, 0)
    spawner.abandon()


def test_a_helper_that_was_stopped_is_continued(tmp_path: Path, spawner: Spawner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balsam_lite.launcher.exec.spawner.PING_S", 0.05)
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, f"while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"))
    answers(spawner, channel, 1)
    os.kill(spawner.pids[0], signal.SIGSTOP)
    (tmp_path / "go").touch()
    (ended,) = answers(spawner, channel, 1)
    assert isinstance(ended, Ended) and ended.returncode == 0


@pytest.mark.parametrize(
    "line",
    [
        "exec env -i sleep 600",
        "env -i setsid sleep 600 & exit 0",
        "exec 0<&- 1>&- 2>&- 3<&- env -i sleep 600",
        "trap '' TERM; env -i sh -c 'setsid sh -c \"sleep 600 & sleep 600\" & sleep 600'",
    ],
)
def test_nothing_runs_on_after_the_launcher_is_killed(bench: Bench, tmp_path: Path, line: str) -> None:
    bench.shell("hides", line)
    (job,) = bench.add([{"application": "hides"}])
    launcher = bench.launch("--persistent")
    started = wait_until(lambda: sleeps(launcher.pid))
    launcher.kill()
    launcher.wait(10)
    wait_until(lambda: not any(alive(one.pid) for one in started), 30)
    bench.wait_for(job, "RUNNING", "JOB_FINISHED")


def test_a_helper_of_a_launcher_in_a_local_batch_job_ends_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DETACHED_VARIABLE, "1")
    spawner = Spawner({b"PATH": b"/usr/bin:/bin"}, 1.0)
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, "exec sleep 600"))
    (started,) = answers(spawner, channel, 1)
    assert isinstance(started, Started)
    spawner.abandon()
    assert not alive(started.pid)


def test_a_helper_starts_nothing_for_a_launcher_that_is_gone(tmp_path: Path) -> None:
    own, link = socket.socketpair()
    large = (program.BEGIN, {b"X": b"x" * 100_000}, None)  # its messages come in several pieces
    own.sendall(program.framed([large, (program.START, *request(tmp_path, 1, "exec sleep 600"))]))
    own.close()
    words = module_words("balsam_lite.launcher.exec.spawn_helper", "0", "1")
    assert subprocess.run(words, stdin=link.fileno(), env={"PYTHONPATH": python_path()}, timeout=60).returncode == 0
    link.close()
    assert not (tmp_path / "1.out").exists()


def test_a_launcher_gives_back_what_a_killed_helper_ran_and_goes_on(bench: Bench, tmp_path: Path) -> None:
    bench.shell("once", f"test $BALSAM_ATTEMPT -gt 1 || exec sleep 600; until test -e {tmp_path}/go; do sleep 0.05; done")
    (job,) = bench.add([{"application": "once"}])
    launcher = bench.launch()

    def helpers() -> list[int]:
        return [one.pid for one in below(launcher.pid) if b"spawn_helper" in read_proc(f"/proc/{one.pid}/cmdline")]

    (run,) = wait_until(lambda: sleeps(launcher.pid))
    os.kill(helpers()[0], signal.SIGKILL)
    # Not even as a zombie: the launcher has adopted it.
    wait_until(lambda: not os.path.exists(f"/proc/{run.pid}") and bench.job(job)["attempt"] == 2)
    (tmp_path / "go").touch()
    assert launcher.wait(60) == 0
    row = bench.job(job)
    assert (row["state"], row["attempt"], row["restarts"], row["launcher_deaths"]) == ("JOB_FINISHED", 2, 0, 0)


def test_a_launcher_continues_a_helper_that_is_stopped_again_and_again_and_loses_no_run(bench: Bench) -> None:
    bench.shell("short", "sleep 0.3")
    bench.add([{"name": f"j{number}", "application": "short"} for number in range(24)])
    launcher = bench.launch("--nodes", "2")
    stopped: list[int] = []

    def stop_one() -> bool:
        for one in below(launcher.pid):
            if b"spawn_helper" in read_proc(f"/proc/{one.pid}/cmdline") and state_of(one.pid) != "T":
                os.kill(one.pid, signal.SIGSTOP)
                stopped.append(one.pid)
        return len(stopped) >= 2

    wait_until(lambda: bench.states().get("JOB_FINISHED"))
    wait_until(stop_one, 30, 0.2)
    assert launcher.wait(60) == 0
    assert bench.states() == {"JOB_FINISHED": 24}
    with bench.db.read() as cx:
        assert cx.execute("SELECT max(attempt), max(restarts) FROM job").fetchone() == (1, 0)
    assert "was stopped and is continued" in Path(bench.directory, "log", "stderr").read_text()


def test_a_run_killed_at_the_launchers_end_has_not_failed_even_if_its_helper_was_stopped(bench: Bench) -> None:
    """The launcher kills the run itself then, and the helper reaps it before it reads that the run was told to stop."""
    bench.environ["BALSAM_KILL_GRACE_S"] = "0.2"
    bench.shell("long", "sleep 600")
    (job,) = bench.add([{"application": "long"}])
    launcher = bench.launch("--nodes", "1")
    wait_until(lambda: sleeps(launcher.pid))
    for one in below(launcher.pid):
        if b"spawn_helper" in read_proc(f"/proc/{one.pid}/cmdline"):
            os.kill(one.pid, signal.SIGSTOP)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    assert bench.job(job)["state"] == "RESTART_READY"


def test_a_helper_that_is_stopped_again_before_it_could_answer_is_continued_again(tmp_path: Path, monkeypatch) -> None:
    spawner = Spawner({b"PATH": b"/usr/bin:/bin"}, 0.2)
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, "exec sleep 600"))
    answers(spawner, channel, 1)
    (helper,) = spawner.pids
    continued: list[int] = []
    send = subprocess.Popen.send_signal

    def send_later(process: subprocess.Popen[bytes], number: int) -> None:
        continued.append(number)
        if len(continued) > 1:  # the first one is as if another SIGSTOP had followed it at once
            send(process, number)

    monkeypatch.setattr(subprocess.Popen, "send_signal", send_later)
    os.kill(helper, signal.SIGSTOP)
    wait_until(lambda: state_of(helper) == "T")
    try:
        wait_until(lambda: spawner.poll() or state_of(helper) not in ("T", "t"))
        assert continued[:2] == [signal.SIGCONT, signal.SIGCONT]
    finally:
        spawner.abandon(0.1)


def test_a_helper_ends_its_runs_when_the_launcher_gives_no_sign_of_life(tmp_path: Path) -> None:
    spawner = Spawner({b"PATH": b"/usr/bin:/bin"}, 0.2, silence_s=1.0)
    channel = spawner.channel()
    channel.start(request(tmp_path, 1, "exec sleep 600"))
    until = time.monotonic() + 2
    while time.monotonic() < until:  # it lives for longer than that as long as there are signs
        spawner.beat()
        spawner.poll()
        time.sleep(0.05)
    (started,) = channel.answers()
    assert isinstance(started, Started) and alive(started.pid)
    (ended,) = answers(spawner, channel, 1)
    assert isinstance(ended, Ended) and ended.end == program.ABANDONED
    spawner.abandon()


def test_what_a_helper_drops_from_its_queue_for_lack_of_heartbeats_goes_back(tmp_path: Path) -> None:
    """A launcher that was stopped for longer than a lease waited for these jobs forever."""
    (tmp_path / "data").mkdir()
    spawner = Spawner({b"PATH": b"/usr/bin:/bin"}, 0.2, silence_s=0.5)
    context = invocation.make_context(str(tmp_path), b"id:1:", 1, "serial", {b"PATH": b"/usr/bin:/bin"})
    runner = LocalRunner(context, SystemClock(), 10, spawner)
    shape = Shape(1, 1, 1, 0)
    place = Placement((0,), ((),), shape)
    known = {"state": "PREPROCESSED", "attempt": 1, "environ_vars": "{}", "parents": "[]", "definition": "{}", "shape": shape}
    known |= {"threads_per_rank": 1, "threads_per_core": 1, "cpu_affinity": "none", "executable": "sleep", "args": "600"}
    known |= dict.fromkeys(("app_environ", "app_parameters", "parameters"), "{}")
    claims = [
        Claim(**{**dict.fromkeys(Claim._fields, ""), **known, "job": number, "job_id": f"{number}", "workdir": f"w{number}"})
        for number in (1, 2, 3)
    ]
    runner.start(claims[0], place)
    for claim in claims[1:]:
        runner.queue(claim)
    spawner.flush()
    wait_until(lambda: sleeps(os.getpid()))
    wait_until(lambda: not sleeps(os.getpid()))  # the helper has ended it
    assert runner.start_queued(place)  # of the second job; the answers have not been read yet
    found: list[Finished] = []
    wait_until(lambda: found.extend(runner.poll()) or len(found) >= 2)
    back = {one.exit.job: (one.exit.result, one.exit.started_us is not None, one.place) for one in found}
    assert back == {1: ("RESTART_READY", True, place), 2: ("RESTART_READY", False, place)}
    assert [claim.job for claim in runner.withdrawn()] == [3]
    assert len(runner) == 0 and not runner.queued
    spawner.abandon()
