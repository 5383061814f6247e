"""ON_EVENT: what launchers and the service tell it, how often, and that it never holds them up."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from launching import Bench, alive

from balsam_lite.cli.main import main
from balsam_lite.core import event_hook
from balsam_lite.core.clock import SECOND_US
from balsam_lite.db.engine import connection
from balsam_lite.db.store import leases, notifications, user_actions
from balsam_lite.launcher.notifier import Notifier, composed, sample


class Hook:
    """A script for ON_EVENT that keeps what it gets."""

    def __init__(self, directory: Path, more: str = "") -> None:
        self.path = directory / "events"
        script = directory / "hook.sh"
        script.write_text(f'#!/bin/sh\ncat >> "{self.path}"; echo >> "{self.path}"\n{more}\n')
        script.chmod(0o755)
        self.command = str(script)

    def told(self, event: str) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [one for one in map(json.loads, filter(str.strip, lines)) if one["event"] == event]


@pytest.fixture
def hook(tmp_path: Path) -> Hook:
    return Hook(tmp_path)


@pytest.fixture
def bench(tmp_path: Path, hook: Hook) -> Iterator[Bench]:
    made = Bench(tmp_path, BALSAM_ON_EVENT=hook.command, BALSAM_HEARTBEAT_S="0.5", BALSAM_ON_EVENT_END_S="30")
    made.app("ok", "true")
    made.app("bad", "false")
    yield made
    made.close()


def log_of(bench: Bench) -> str:
    return "".join(path.read_text() for path in sorted(Path(bench.directory, "log").glob("launcher_*.log")))


def jobs(workflow: str, app: str, number: int) -> list[dict[str, Any]]:
    return [{"name": f"{workflow}{n}", "workflow": workflow, "application": app} for n in range(number)]


# --- what is told -----------------------------------------------------------------------------------------------------


def test_many_failures_are_one_notification_with_their_number_their_causes_and_some_examples(bench: Bench, hook: Hook):
    bench.add(jobs("w", "bad", 40))
    assert bench.run() == 0
    (told,) = hook.told("job-failed")
    assert told["count"] == sum(told["causes"].values()) == 40
    assert 1 <= len(told["jobs"]) <= 5
    assert told["jobs"][0]["workflow"] == "w"
    assert told["db"] == bench.directory
    assert told["text"].startswith("40 jobs failed: ")


def test_a_workflow_is_told_once_each_time_it_becomes_empty(bench: Bench, hook: Hook):
    bench.add([*jobs("one", "ok", 3), *jobs("one", "bad", 1), *jobs("two", "ok", 1)])
    assert bench.run() == 0
    (told,) = hook.told("workflow-finished")
    found = {one["workflow"]: one["states"] for one in told["workflows"]}
    assert found == {"one": {"JOB_FINISHED": 3, "FAILED": 1}, "two": {"JOB_FINISHED": 1}}
    bench.add(jobs("two", "ok", 1))
    assert bench.run() == 0
    assert [one["workflow"] for one in hook.told("workflow-finished")[1]["workflows"]] == ["two"]


def test_several_launchers_tell_each_workflow_and_each_failure_once(bench: Bench, hook: Hook):
    bench.environ["BALSAM_ON_EVENT_INTERVAL_S"] = "0.2"
    bench.app("short", "sleep 0.1")
    bench.add(job for n in range(12) for job in (*jobs(f"w{n:02}", "short", 4), *jobs(f"w{n:02}", "bad", 2)))
    running = [bench.launch("--nodes", "2") for _ in range(3)]
    assert [one.wait(60) for one in running] == [0, 0, 0]
    told = [one for notice in hook.told("workflow-finished") for one in notice["workflows"]]
    assert sum(notice["count"] for notice in hook.told("workflow-finished")) == 12
    assert max(Counter(one["workflow"] for one in told).values()) == 1
    assert sum(notice["count"] for notice in hook.told("job-failed")) == 24
    assert sum(notice["count"] for notice in hook.told("launch-ended")) == 3


def test_a_workflow_whose_last_job_the_user_kills_is_told(bench: Bench, hook: Hook):
    bench.app("long", "sleep 60")
    (job,) = bench.add(jobs("w", "long", 1))
    running = bench.launch()
    bench.wait_for(job, "RUNNING")
    user_actions.kill(bench.db, [job])
    assert running.wait(30) == 0
    assert hook.told("workflow-finished")[0]["workflows"] == [{"workflow": "w", "states": {"USER_KILLED": 1}}]


def test_start_and_end_of_a_launcher_are_told(bench: Bench, hook: Hook):
    bench.add(jobs("w", "ok", 2))
    assert bench.run("--nodes", "2") == 0
    (started,) = hook.told("launch-started")
    (ended,) = hook.told("launch-ended")
    assert started["launches"][0]["nodes"] == 2
    assert started["launches"][0]["job_mode"] == "serial"
    assert ended["launches"][0]["states"] == {"JOB_FINISHED": 2}
    assert ended["launches"][0]["reason"] == "every job has ended"


def test_the_end_of_a_launcher_that_was_killed_is_told_by_the_next_one(bench: Bench, hook: Hook):
    bench.app("long", "sleep 60")
    (job,) = bench.add(jobs("w", "long", 1))
    first = bench.launch()
    bench.wait_for(job, "RUNNING")
    first.kill()
    first.wait()
    user_actions.kill(bench.db, [job])
    assert bench.run() == 0
    reasons = [one["reason"] for notice in hook.told("launch-ended") for one in notice["launches"]]
    assert [reason for reason in reasons if reason.startswith("it died")]


def test_a_db_in_which_nothing_runs_though_jobs_wait_is_told_once(bench: Bench, hook: Hook):
    bench.environ.update(BALSAM_STUCK_AFTER_S="1", BALSAM_ON_EVENT_INTERVAL_S="0.2")
    bench.add([{**jobs("w", "ok", 1)[0], "num_nodes": 5, "ranks_per_node": 2}])
    running = bench.launch("--persistent")
    wait_until(lambda: hook.told("stuck"))
    time.sleep(2)
    assert len(hook.told("stuck")) == 1
    told = hook.told("stuck")[0]
    assert told["waiting"] == 1
    assert "needs" in told["reason"]
    assert told["text"].endswith(told["reason"])
    running.send_signal(signal.SIGTERM)
    running.wait(20)


# --- and how ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("/no/such/program", "exit code 127"),
        ("echo sorry >&2; exit 3", "exit code 3: sorry"),
        ("yes", "it printed more than 1 MiB, so it was killed"),
        ("exec 0<&- 1>&- 2>&-; kill -9 $$", "exit code -9"),
    ],
)
def test_a_hook_that_fails_is_one_log_line(bench: Bench, command: str, words: str):
    bench.add(jobs("w", "bad", 3))
    assert bench.run(BALSAM_ON_EVENT=command) == 0
    lines = [line for line in log_of(bench).splitlines() if "ON_EVENT failed for" in line and "job-failed" in line]
    assert len(lines) == 1
    assert words in lines[0]
    assert bench.states()["FAILED"] == 3


def test_the_passwords_in_urls_are_neither_logged_nor_recorded(bench: Bench):
    bench.add(jobs("w", "bad", 1))
    assert bench.run(BALSAM_ON_EVENT="nowhere://secret") == 0
    assert "secret" not in log_of(bench)
    assert b"secret" not in Path(bench.directory, connection.FILE_NAME).read_bytes()
    done = event_hook.call("nowhere://secret", [composed(sample("stuck", 0), bench.directory, 0)], timeout_s=60)
    assert done.failure == "exit code 1: apprise does not understand the URL that begins with nowhere://"
    assert "secret" not in done.stderr


def test_a_hook_that_hangs_delays_no_job_and_ends_with_the_launcher(bench: Bench, tmp_path: Path):
    pid_file = tmp_path / "pid"
    bench.environ.update(BALSAM_ON_EVENT=f"echo $$ > {pid_file}; exec sleep 600", BALSAM_ON_EVENT_END_S="2")
    bench.app("nap", "sleep 3")
    bench.add([*jobs("w", "bad", 1), *jobs("w", "nap", 1), *jobs("v", "ok", 200)])
    started = time.monotonic()
    assert bench.run("--nodes", "4") == 0
    assert bench.states()["JOB_FINISHED"] == 201
    assert time.monotonic() - started < 25  # 3 s of the nap, 3 s for calls at the end, and a busy machine
    assert not alive(int(pid_file.read_text()))
    assert "ON_EVENT was ended" in log_of(bench)


def test_a_hook_ends_when_its_launcher_is_killed(bench: Bench, tmp_path: Path):
    pid_file = tmp_path / "pid"
    bench.app("long", "sleep 60")
    bench.add([*jobs("w", "bad", 1), *jobs("w", "long", 1)])
    running = bench.launch(BALSAM_ON_EVENT=f"echo $$ > {pid_file}; exec sleep 600")
    wait_until(lambda: pid_file.exists() and pid_file.read_text().strip())
    running.kill()
    wait_until(lambda: not alive(int(pid_file.read_text())))


def test_a_hook_inherits_neither_descriptors_nor_blocked_or_ignored_signals(bench: Bench, tmp_path: Path):
    seen = tmp_path / "seen"
    command = f"ls /proc/$$/fd > {seen}.fd; grep -E 'Sig(Blk|Ign)' /proc/self/status > {seen}.sig; pwd > {seen}.pwd"
    bench.add(jobs("w", "ok", 1))
    assert bench.run(BALSAM_ON_EVENT=command) == 0
    assert set(Path(f"{seen}.fd").read_text().split()) <= {"0", "1", "2", "10", "255"}  # a shell opens its own
    ignored = {line.split()[0]: int(line.split()[1], 16) for line in Path(f"{seen}.sig").read_text().splitlines()}
    stops = sum(1 << (number - 1) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE))
    assert ignored == {"SigBlk:": 0, "SigIgn:": ignored["SigIgn:"] & ~stops}
    assert Path(f"{seen}.pwd").read_text().strip() == os.path.realpath(bench.directory)


def test_urls_are_called_by_apprise(bench: Bench):
    got: list[dict[str, Any]] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = event_hook.call(
            f"json://127.0.0.1:{server.server_port}/", [composed(sample("stuck", 0), bench.directory, 0)], timeout_s=60
        )
        server.shutdown()
    assert done.failure == ""
    (message,) = got
    assert message["title"] == "balsam: stuck"
    assert message["message"].startswith("Nothing has run for 60 min though 1 job(s) wait")


def test_notify_test_calls_the_hook_and_shows_what_came_back(bench: Bench, hook: Hook, monkeypatch, capfd):
    monkeypatch.setenv("BALSAM_DB_PATH", bench.directory)
    monkeypatch.setenv("BALSAM_ON_EVENT", "")
    assert main(["notify", "test"]) == 2
    assert "The setting ON_EVENT is empty" in capfd.readouterr().err
    monkeypatch.setenv("BALSAM_ON_EVENT", hook.command)
    for kind in notifications.KINDS:
        assert main(["notify", "test", "--event", kind]) == 0
        assert len(hook.told(kind)) == 1
    monkeypatch.setenv("BALSAM_ON_EVENT", "echo out; echo err >&2; exit 3")
    capfd.readouterr()
    assert main(["notify", "test", "--json"]) == 1
    result = json.loads(capfd.readouterr().out)
    assert (result["returncode"], result["stdout"], result["stderr"]) == (3, "out\n", "err\n")
    assert result["notification"]["event"] == "job-failed"


# --- when -------------------------------------------------------------------------------------------------------------


def test_a_kind_is_told_once_per_interval_and_nothing_is_left_out(bench: Bench):
    told: list[int] = []
    for second in range(100):
        now_us = (1000 + second) * SECOND_US
        with bench.db.write() as cx:
            notifications.add(cx, notifications.LAUNCH_STARTED, {"host": f"h{second}"}, now_us)
            told += [one.number for one in notifications.take(cx, now_us, 60 * SECOND_US).pending]
    assert told == [3, 60]  # after two seconds, and a minute after that
    with bench.db.write() as cx:
        last = notifications.take(cx, now_us, 60 * SECOND_US, ends=True).pending
    assert [(one.number, len(one.examples)) for one in last] == [(37, 5)]


def test_what_happened_while_nothing_looked_for_long_is_not_told(bench: Bench, hook: Hook):
    bench.add(jobs("old", "bad", 1))
    assert bench.run(BALSAM_ON_EVENT="") == 0
    bench.add(jobs("new", "bad", 1))
    assert bench.run() == 0
    assert [one["workflow"] for notice in hook.told("job-failed") for one in notice["jobs"]] == ["new"]


def test_a_copy_does_not_tell_what_its_original_tells(bench: Bench):
    with bench.db.write() as cx:
        notifications.add(cx, notifications.LAUNCH_STARTED, {"host": "h"}, 1)
        leases.make_own(cx, 2, is_in_place=False)
        assert notifications.take(cx, 2, 1, ends=True).pending == []


def test_no_failure_is_left_out_where_more_happens_than_is_looked_at_at_once(bench: Bench, hook: Hook, monkeypatch):
    monkeypatch.setattr(notifications, "_MAX_EVENTS", 50)
    with bench.db.write() as cx:
        notifications.look(cx, SECOND_US, 0)
    bench.add(jobs("w", "bad", 60))
    assert bench.run(BALSAM_ON_EVENT="") == 0
    looks = 1
    with bench.db.write() as cx:
        while notifications.look(cx, 2 * SECOND_US, 0):
            looks += 1
        (told,) = (one for one in notifications.take(cx, 9 * SECOND_US, 0).pending if one.kind == notifications.JOB_FAILED)
    assert (told.number, looks > 3) == (60, True)


def test_a_row_of_another_version_is_no_trouble(bench: Bench, hook: Hook):
    with bench.db.write() as cx:
        cx.execute("INSERT INTO meta VALUES ('notifications', '{\"pending\": [[1]], \"told\": 3}')")
    bench.add(jobs("w", "ok", 1))
    assert bench.run() == 0
    assert hook.told("workflow-finished")


def test_what_is_added_in_a_transaction_that_fails_or_between_two_looks_is_told_later(bench: Bench):
    clock = SteppedClock()
    notifier = Notifier(bench.db, bench.settings()._replace(ON_EVENT="true"), clock)
    notifier.add(notifications.LAUNCH_STARTED, {"host": "h"})
    with suppress(ZeroDivisionError), bench.db.write() as cx:
        notifier.look(cx)
        raise ZeroDivisionError
    with bench.db.write() as cx:
        notifier.look(cx)
    notifier.send()
    notifier.add(notifications.LAUNCH_STARTED, {"host": "i"})
    with bench.db.write() as cx:
        notifier.look(cx)  # too soon
    clock.now_s += 5
    notifier.send()
    with bench.db.write() as cx:
        notifier.look(cx)
    assert [one.number for one in notifier._taken] == [2]


class SteppedClock:
    """A clock that a test moves."""

    now_s = 1000.0

    def now_us(self) -> int:
        return int(self.now_s * SECOND_US)

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def test_a_service_tells_that_a_db_is_stuck(bench: Bench, hook: Hook):
    bench.environ.update(BALSAM_STUCK_AFTER_S="1", BALSAM_SERVICE_PERIOD="1", BALSAM_SCHEDULER_CLASS="LocalScheduler")
    bench.add([{**jobs("w", "ok", 1)[0], "num_nodes": 10_000, "ranks_per_node": 2}])
    ranges = '[{"min-nodes": 1, "max-nodes": 4, "min-time": 0, "max-time": 1}]'
    Path(bench.directory, "policy.ini").write_text(f"[debug]\nsubmit-jobs = off\nmax-queued = 1\npolicy = {ranges}\n")
    argv = [sys.executable, "-m", "balsam_lite.cli", "--db", bench.directory, "service"]
    service = subprocess.Popen(argv, env=bench.environ, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: hook.told("stuck"))
        assert hook.told("stuck")[0]["waiting"] == 1
        assert hook.told("stuck")[0]["reason"] == "no queue of the policy is switched on"
    finally:
        service.terminate()
        service.wait(20)


def test_a_hook_that_has_just_been_started_ends_with_its_launcher_too():
    code = """
import socket, subprocess
from balsam_lite.core import event_hook
print(subprocess.Popen(["sleep", "600"], start_new_session=True).pid, flush=True)
far, link = socket.socketpair()
far.close()
event_hook._end_with(link)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    wait_until(lambda: not alive(int(done.stdout)))
