"""Long-running programs without the terminal, or with the ignored signals, that they were started with."""

from __future__ import annotations

import os
import pty
import select
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import wait_until
from launching import Bench
from ranks import Ensemble

from balsam_lite.core import daemon
from balsam_lite.db.store import leases

REAL_POLL = select.poll


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.shell("wait", "grep SigIgn /proc/$$/status; touch up; until [ -e $BALSAM_DB_PATH/go ]; do sleep 0.05; done")
    yield made
    made.close()


def words(bench, *options):
    return [sys.executable, "-m", "balsam_lite.cli", "--db", bench.directory, *options]


LAUNCHER = ("launcher", "--consume-all", "--job-mode", "serial")


def finish(bench):
    Path(bench.directory, "go").touch()


def end_reason(bench, kind="launcher"):
    with bench.db.read() as cx:
        found = leases.latest(cx, kind)
    return found and found.closed_us and found.end_reason


def test_a_closed_terminal_costs_the_progress_line_and_no_job(bench, tmp_path):
    (job,) = bench.add([{"application": "wait"}])
    script = (
        f"set -m; {shlex.join(words(bench, *LAUNCHER))} & echo $! > {tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid"
    )
    shell, screen = pty.fork()
    if shell == 0:
        os.chdir(tmp_path)
        os.execvpe("bash", ["bash", "-c", script], bench.environ)
    wait_until(lambda: "1 running" in os.read(screen, 4096).decode())
    launcher = int((tmp_path / "pid").read_text())
    os.close(screen)
    os.waitpid(shell, 0)  # the terminal's end reaches it as SIGHUP
    wait_until(lambda: os.readlink(f"/proc/{launcher}/fd/2") == os.devnull)  # it has tried to write there
    finish(bench)
    wait_until(lambda: end_reason(bench))
    assert (bench.job(job)["state"], bench.job(job)["attempt"]) == ("JOB_FINISHED", 1)


def test_the_last_words_on_a_terminal_follow_the_progress_line_and_do_not_share_its_line(bench):
    bench.add([{"application": "wait"}])
    launcher, screen = pty.fork()
    if launcher == 0:
        os.execvpe(sys.executable, words(bench, *LAUNCHER), bench.environ)
    text = ""
    while "1 running" not in text:
        text += os.read(screen, 4096).decode()
    finish(bench)
    while "attempt" not in text:
        text += os.read(screen, 4096).decode()
    os.close(screen)
    os.waitpid(launcher, 0)
    ends = next(line for line in text.split("\n") if "Launcher ends" in line)
    before, last = ends.rstrip("\r").split("\r")[-2:]
    assert (before.strip(), last) == ("", "Launcher ends (every job has ended): 1 JOB_FINISHED; 1 attempt: 1 done")


def test_a_reader_that_leaves_costs_the_words_and_no_job(bench):
    (job,) = bench.add([{"application": "wait"}])
    launcher = subprocess.Popen(words(bench, *LAUNCHER), stderr=subprocess.PIPE, env=bench.environ)
    bench.launchers.append(launcher)
    assert launcher.stderr.readline()
    launcher.stderr.close()
    wait_until(bench.path(job, "up").exists)
    finish(bench)
    assert launcher.wait(30) == 0
    assert (bench.job(job)["state"], bench.job(job)["attempt"]) == ("JOB_FINISHED", 1)


def test_a_pipe_that_nobody_reads_costs_the_words_and_no_job(bench):
    read, write = os.pipe()
    os.set_blocking(write, False)
    with suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)  # as a launcher gets it
    bench.add([{"application": "wait"}])
    finish(bench)
    launcher = subprocess.Popen(
        words(bench, *LAUNCHER), env=bench.environ, stdin=subprocess.DEVNULL, stdout=write, stderr=write
    )
    bench.launchers.append(launcher)
    assert launcher.wait(60) == 0
    assert set(bench.states()) == {"JOB_FINISHED"}
    os.close(write)
    with open(read, "rb") as pipe:
        assert not pipe.read().strip(b"x"), "it was left out, and is in the log"


def test_what_was_left_out_is_counted_when_somebody_reads_again(monkeypatch):
    read, write = os.pipe()
    monkeypatch.setattr(daemon, "STALL_TIMEOUT_S", 0.01)
    monkeypatch.setattr(os, "write", lambda fd, data, real=os.write: real(write if fd == 2 else fd, data))
    monkeypatch.setattr(daemon.select, "poll", lambda: Poll(write))
    line = b"a line\n" * 100
    written = 0
    while daemon._Stalled.lines < 3:
        assert daemon.write_stderr(line)
        written += 1
    before = os.read(read, 1 << 20)
    assert before == line * (written - 3)
    assert daemon.write_stderr("again\n")
    assert os.read(read, 1 << 20) == b"[3 line(s) left out: there was no reader]\nagain\n"
    os.close(read)
    os.close(write)


class Poll:
    """A poll object that looks at another descriptor than stderr."""

    def __init__(self, instead):
        self._instead, self._poll = instead, REAL_POLL()

    def register(self, _, events):
        self._poll.register(self._instead, events)

    def poll(self, timeout):
        return self._poll.poll(timeout)


def test_a_full_disk_under_stderr_costs_the_words_and_no_job(bench):
    (job,) = bench.add([{"application": "wait"}])
    finish(bench)
    with open("/dev/full", "wb") as full:
        launcher = subprocess.Popen(words(bench, *LAUNCHER), stderr=full, env=bench.environ)
    bench.launchers.append(launcher)
    assert launcher.wait(30) == 0
    assert bench.job(job)["state"] == "JOB_FINISHED"


def start_ignoring(bench, *options):
    """Start as nohup and a shell without job control do."""
    command = f'trap "" HUP INT; exec {shlex.join(words(bench, *options))}'
    log = open(f"{bench.directory}/log/stderr", "ab")
    started = subprocess.Popen(["sh", "-c", command], stderr=log, env=bench.environ, start_new_session=True)
    log.close()
    bench.launchers.append(started)
    return started


@pytest.mark.parametrize("parts", [(), ("--part", "serial:1", "--part", "serial:1")])
def test_a_launcher_and_its_parts_go_on_ignoring_what_was_ignored_at_their_start_and_programs_do_not(bench, parts):
    jobs = bench.add([{"application": "wait"} for _ in range(2)])
    launcher = start_ignoring(bench, "launcher", "--consume-all", *(parts or ("--job-mode", "serial", "--nodes", "2")))
    wait_until(lambda: all(bench.path(job, "up").exists() for job in jobs))
    for job in jobs:
        ignored = int(bench.path(job, "job.out").read_text().split()[1], 16)
        assert not [number for number in daemon.STOP_SIGNALS if ignored & 1 << (number - 1)]
    for number in (signal.SIGHUP, signal.SIGINT):
        os.killpg(launcher.pid, number)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(30) == 0
    assert end_reason(bench).startswith("signal SIGTERM; ")
    assert bench.states() == {"RESTART_READY": 2}


def test_a_service_goes_on_ignoring_what_was_ignored_at_its_start(bench):
    rule = '[{"min-nodes": 1, "max-nodes": 1, "min-time": 0, "max-time": 1}]'
    Path(bench.directory, "policy.ini").write_text(f"[debug]\nsubmit-jobs = on\nmax-queued = 1\npolicy = {rule}\n")
    service = start_ignoring(bench, "service")
    wait_until(lambda: _handles(service.pid, signal.SIGTERM))
    for number in (signal.SIGHUP, signal.SIGINT):
        service.send_signal(number)
    service.send_signal(signal.SIGTERM)
    assert service.wait(30) == 0
    assert end_reason(bench, "service") == "signal SIGTERM"


def _handles(pid, number):
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return int(caught.split()[1], 16) & 1 << (number - 1)


def test_a_supervisor_of_many_nodes_goes_on_ignoring_what_was_ignored_at_its_start(tmp_path):
    two = Ensemble(tmp_path, 2)
    two.shell("wait", "grep SigIgn /proc/$$/status; touch up; sleep 600")
    jobs = two.add([{"application": "wait"} for _ in range(2)])
    launcher = start_ignoring(two, *LAUNCHER)
    wait_until(lambda: all(two.path(job, "up").exists() for job in jobs), 40)
    assert {int(two.path(job, "job.out").read_text().split()[1], 16) & 0b11 for job in jobs} == {0}
    for number in (signal.SIGHUP, signal.SIGINT):
        launcher.send_signal(number)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(40) == 0
    assert end_reason(two) == "signal SIGTERM; 2 job(s) left: waits for a free place (2)"
    two.close()
