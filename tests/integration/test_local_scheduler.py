"""The local scheduler with real scripts, and with shepherds that are killed."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import ROOT, wait_until

from balsam_lite.core.clock import SECOND_US
from balsam_lite.core.errors import CancelFailed, PollFailed, SubmitFailed
from balsam_lite.core.process_table import start_of
from balsam_lite.core.settings import Settings
from balsam_lite.schedulers.base import BatchStatus, Submission
from balsam_lite.schedulers.local import LocalQueue, LocalScheduler, QueueRecord

ROOT = str(ROOT)


class Bed:
    """A queue of its own, in a directory of its own."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.work = directory / "home", directory / "work place"
        self.work.mkdir()
        monkeypatch.setenv("BALSAM_HOME", str(self.home))
        self.scheduler = self.new_scheduler()
        self.queue = LocalQueue(str(self.home / "local-scheduler"))

    def new_scheduler(self, limit: int = 1, grace_s: float = 1.0) -> LocalScheduler:
        return LocalScheduler(Settings(MAX_LOCAL_LAUNCHES=limit, KILL_GRACE_S=grace_s / 2))

    def submission(self, name: str, body: str, minutes: int = 5) -> Submission:
        script = self.work / f"{name}.sh"
        script.write_text(f"#!/bin/sh\ncd '{self.work}'\n{body}\n")
        script.chmod(0o755)
        return Submission(name, str(script), str(self.work / f"{name}.out"), str(self.work), 2, minutes)

    def submit(self, name: str, body: str, scheduler: LocalScheduler | None = None, minutes: int = 5) -> str:
        return (scheduler or self.scheduler).submit(self.submission(name, body, minutes))

    def status(self, native_id: str) -> BatchStatus:
        return self.scheduler.poll([native_id])[native_id]

    def ended(self, native_id: str, timeout: float = 30) -> BatchStatus:
        wait_until(lambda: self.status(native_id).is_ended, timeout)
        return self.status(native_id)

    def running(self, native_id: str) -> QueueRecord:
        """Its record, as soon as it runs and has a shepherd. Looks at the files only: nothing is healed on the way."""
        return wait_until(lambda: (r := self.record(native_id)).runner and r.shepherd and r, 20)

    def record(self, native_id: str) -> QueueRecord:
        found = self.queue.read(native_id)
        assert found is not None
        return found

    def shepherd_of(self, native_id: str) -> int:
        """The pid of its living shepherd, once there is one."""

        def alive() -> int:
            holder = self.record(native_id).shepherd
            return holder.pid if holder and not holder.is_provably_dead() else 0

        return wait_until(alive)

    def kill_shepherd(self, native_id: str) -> int:
        pid = self.shepherd_of(native_id)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not start_of(pid))
        return pid

    def let_time_pass(self, native_id: str, minutes: float) -> None:
        """Make a running batch job look as if it had been started this much earlier."""
        with self.queue.locked():
            record = self.record(native_id)
            assert record.started_us
            self.queue.write(record._replace(started_us=record.started_us - int(minutes * 60 * SECOND_US)))

    def read(self, name: str) -> str:
        path = self.work / name
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for record in list(self.queue.newest_first()) if self.home.exists() else []:
            for holder in (record.shepherd, record.runner):
                if record.ended_us is None and holder and not holder.is_provably_dead():
                    os.killpg(holder.pid, signal.SIGKILL)


@pytest.fixture
def bed(tmp_path, monkeypatch):
    bed = Bed(tmp_path, monkeypatch)
    yield bed
    bed.close()


UNTIL_RELEASED = "while [ ! -e release ]; do sleep 0.05; done"


def test_a_script_runs_with_its_output_exit_code_and_times_kept(bed):
    before = time.time_ns() // 1000
    native_id = bed.submit("one", "echo out; echo err >&2; printf '\\377'; exit 3")
    status = bed.ended(native_id)
    assert (status.state, status.exit_code, status.reason) == ("failed", 3, "exit code 3")
    assert before <= status.started_us <= status.ended_us <= time.time_ns() // 1000
    assert (bed.work / "one.out").read_bytes() == b"out\nerr\n\xff"


def test_a_script_which_ends_with_0_is_finished_and_one_killed_by_a_signal_failed(bed):
    good, bad = bed.submit("good", "true"), bed.submit("bad", "kill -9 $$")
    assert bed.ended(good)[1:4] == ("finished", "", 0)
    assert bed.ended(bad)[1:4] == ("failed", "killed by signal 9", 137)


def test_the_script_gets_the_submitters_environment_without_the_job_it_came_from(bed, monkeypatch):
    for variable in ("BALSAM_JOB_ID", "BALSAM_ATTEMPT", "BALSAM_JOB_MODE", "BALSAM_LAUNCHER_NODES"):
        monkeypatch.setenv(variable, "of another job")
    monkeypatch.setenv("COLONS", "a:b='c'\nd")
    monkeypatch.setenv("BYTES", os.fsdecode(b"\xff"))
    native_id = bed.submit("env", "env -0", minutes=5)
    status = bed.ended(native_id)
    found = dict(line.split("=", 1) for line in os.fsdecode((bed.work / "env.out").read_bytes()).split("\0") if line)
    assert found["COLONS"] == "a:b='c'\nd"
    assert os.fsencode(found["BYTES"]) == b"\xff"
    assert found["BALSAM_LOCAL_JOBID"] == native_id
    assert found["BALSAM_LOCAL_NODES"] == "2"
    assert int(found["BALSAM_LOCAL_ENDTIME"]) == (status.started_us + 300 * SECOND_US) // SECOND_US
    assert not {"BALSAM_JOB_ID", "BALSAM_ATTEMPT", "BALSAM_JOB_MODE", "BALSAM_LAUNCHER_NODES"} & set(found)
    assert not list((bed.home / "local-scheduler" / "active").iterdir())  # the environment is not kept


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_script_starts_with_no_signal_ignored_or_blocked(bed):
    bed.ended(bed.submit("signals", "exec grep -E 'SigIgn|SigBlk' /proc/self/status"))
    threading = 0b11 << 31  # signals 32 and 33 are glibc's own; a make that started us may have left them ignored
    assert [int(line.split()[1], 16) & ~threading for line in bed.read("signals.out").splitlines()] == [0, 0]


def test_batch_jobs_start_in_order_and_no_more_at_once_than_the_limit(bed):
    scheduler = bed.new_scheduler(limit=2)
    body = "echo start $BALSAM_LOCAL_JOBID >> log; sleep 0.4; echo stop $BALSAM_LOCAL_JOBID >> log"
    ids = [bed.submit(f"n{number}", body, scheduler) for number in range(5)]
    for native_id in ids:
        assert bed.ended(native_id).state == "finished"
    words = [line.split() for line in bed.read("log").splitlines()]
    running, most = 0, 0
    for word, _ in words:
        running += 1 if word == "start" else -1
        most = max(most, running)
    assert most == 2
    # Two may start at one moment, and then write in either order.
    started = [int(native_id) for word, native_id in words if word == "start"]
    assert all(abs(position - native_id) <= 1 for position, native_id in enumerate(started, 1))


def test_only_running_batch_jobs_and_the_first_waiting_one_have_a_process(bed):
    ids = [bed.submit(f"n{number}", UNTIL_RELEASED) for number in range(6)]
    bed.shepherd_of(ids[1])
    bed.running(ids[0])
    bed.scheduler.poll(ids)
    assert [bool(bed.record(native_id).shepherd) for native_id in ids] == [True, True, False, False, False, False]
    (bed.work / "release").touch()
    assert bed.ended(ids[-1]).state == "finished"


def test_the_time_limit_ends_the_whole_group_even_where_it_ignores_sigterm(bed):
    native_id = bed.submit("stubborn", "trap '' TERM; sh -c 'echo $$ > child; while :; do sleep 0.1; done'", minutes=1)
    record = bed.running(native_id)
    child = int(wait_until(lambda: bed.read("child").strip()))
    bed.let_time_pass(native_id, 1)
    status = bed.ended(native_id)
    assert (status.state, status.reason) == ("timeout", "time limit of 1 min reached; killed by signal 9")
    assert not start_of(child)
    assert not start_of(record.runner.pid)


def test_a_script_has_the_grace_period_to_end_by_itself(bed):
    native_id = bed.submit("tidy", "trap 'echo tidy > tidied; exit 0' TERM; while :; do sleep 0.05; done", minutes=1)
    bed.running(native_id)
    bed.let_time_pass(native_id, 1)
    status = bed.ended(native_id)
    assert (status.state, status.exit_code, bed.read("tidied")) == ("timeout", 0, "tidy\n")


def test_the_limit_also_reaches_a_descendant_in_a_session_of_its_own(bed):
    command = "import os,time; os.setsid(); open('child','w').write(str(os.getpid())); time.sleep(100)"
    native_id = bed.submit("mpi", f'{sys.executable} -c "{command}" & wait', minutes=1)
    child = int(wait_until(lambda: bed.read("child")))
    bed.let_time_pass(native_id, 1)
    assert bed.ended(native_id).state == "timeout"
    assert not start_of(child)


def test_what_a_script_leaves_in_the_background_ends_with_it(bed):
    native_id = bed.submit("leaver", "sleep 1000 & echo $! > child")
    assert bed.ended(native_id).state == "finished"
    assert not start_of(int(bed.read("child")))


def test_a_running_and_a_waiting_batch_job_can_be_cancelled(bed):
    first, second, third = (bed.submit(name, "sleep 100") for name in ("first", "second", "third"))
    bed.running(first)
    bed.scheduler.cancel(second)
    assert bed.status(second)[1:4] == ("cancelled", "cancelled before it started", None)
    cancelled_at = time.monotonic()
    bed.scheduler.cancel(first)
    assert bed.ended(first).state == "cancelled"
    assert time.monotonic() - cancelled_at < 5
    assert bed.running(third).state == "running"
    with pytest.raises(CancelFailed, match="has ended already"):
        bed.scheduler.cancel(first)
    with pytest.raises(CancelFailed, match="knows no batch job 999"):
        bed.scheduler.cancel("999")


def test_a_batch_job_survives_its_submitter_and_its_terminal(bed):
    submission = bed.submission("orphan", f"{UNTIL_RELEASED}; echo done")
    code = (
        "import sys, json; from balsam_lite.schedulers.local import LocalScheduler\n"
        "from balsam_lite.schedulers.base import Submission; from balsam_lite.core.settings import Settings\n"
        "print(LocalScheduler(Settings()).submit(Submission(*json.loads(sys.argv[1]))), flush=True)\n"
        "sys.stdin.read()\n"
    )
    submitter = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(submission)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT}, start_new_session=True,
    )  # fmt: skip
    with submitter:
        native_id = submitter.stdout.readline().decode().strip()
        bed.running(native_id)
        os.killpg(submitter.pid, signal.SIGHUP)
    (bed.work / "release").touch()
    assert bed.ended(native_id).state == "finished"
    assert bed.read("orphan.out") == "done\n"


def test_ten_submitters_at_once_get_ten_numbers(bed):
    submission = bed.submission("many", "true")
    code = (
        "import sys, json; from balsam_lite.schedulers.local import LocalScheduler\n"
        "from balsam_lite.schedulers.base import Submission; from balsam_lite.core.settings import Settings\n"
        "sys.stdin.read()\n"
        "print(LocalScheduler(Settings(MAX_LOCAL_LAUNCHES=4)).submit(Submission(*json.loads(sys.argv[1]))))\n"
    )
    submitters = [
        subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(submission)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": ROOT},
        )
        for _ in range(10)
    ]  # fmt: skip
    for submitter in submitters:
        submitter.stdin.close()
    ids = []
    for submitter in submitters:
        with submitter.stdout:
            ids.append(submitter.stdout.read().decode().strip())
        assert submitter.wait(60) == 0
    assert sorted(ids, key=int) == [str(number) for number in range(1, 11)]
    for native_id in ids:
        assert bed.ended(native_id, 60).state == "finished"


def test_numbers_are_not_used_again_when_old_records_are_dropped(bed, monkeypatch):
    monkeypatch.setattr("balsam_lite.schedulers.local.KEEP_ENDED", 2)
    ids = []
    for number in range(5):
        ids.append(bed.submit(f"n{number}", "true"))
        bed.ended(ids[-1])
    assert ids == ["1", "2", "3", "4", "5"]
    assert sorted(bed.scheduler.poll(ids)) == ["3", "4", "5"]


# --- shepherds that are killed ----------------------------------------------------------------------------------------


def test_a_waiting_batch_job_whose_shepherd_is_killed_still_starts_once(bed):
    first = bed.submit("first", UNTIL_RELEASED)
    second = bed.submit("second", "echo $BALSAM_LOCAL_JOBID >> log")
    bed.running(first)
    killed = bed.kill_shepherd(second)
    assert bed.shepherd_of(second) != killed  # the first one's shepherd has sent for another
    (bed.work / "release").touch()
    assert bed.ended(second).state == "finished"
    assert bed.read("log") == f"{second}\n"


def test_a_script_whose_shepherd_is_killed_runs_on_and_its_end_is_recorded(bed):
    native_id = bed.submit("script", f"echo $$ >> log; {UNTIL_RELEASED}; exit 7")
    runner = bed.running(native_id).runner
    bed.kill_shepherd(native_id)
    assert bed.status(native_id).state == "running"  # looking at it sends for a shepherd
    bed.shepherd_of(native_id)
    assert bed.record(native_id).runner == runner
    (bed.work / "release").touch()
    status = bed.ended(native_id)
    assert (status.state, status.exit_code) == ("ended", None)
    assert status.reason.startswith("exit code unknown: its shepherd process was killed")
    assert bed.read("log") == f"{runner.pid}\n"


def test_a_new_shepherd_enforces_the_limit_of_a_script_it_did_not_start(bed):
    native_id = bed.submit("script", "sleep 1000", minutes=1)
    runner = bed.running(native_id).runner
    bed.kill_shepherd(native_id)
    bed.let_time_pass(native_id, 1)
    status = bed.ended(native_id)
    assert (status.state, status.exit_code) == ("timeout", None)
    assert not start_of(runner.pid)


def test_a_shepherd_killed_in_the_grace_period_is_followed_by_one_that_ends_the_script(bed):
    native_id = bed.submit("stubborn", "trap '' TERM; while :; do sleep 0.1; done", bed.new_scheduler(grace_s=2))
    runner = bed.running(native_id).runner
    bed.scheduler.cancel(native_id)
    wait_until(lambda: bed.record(native_id).stopping)
    bed.kill_shepherd(native_id)
    assert bed.ended(native_id).state == "cancelled"
    assert not start_of(runner.pid)


def test_a_script_which_ends_without_a_shepherd_is_noticed_and_the_next_one_starts(bed):
    first, second, third = bed.submit("first", UNTIL_RELEASED), bed.submit("second", "true"), bed.submit("third", "true")
    runner = bed.running(first).runner
    bed.shepherd_of(second)
    bed.kill_shepherd(second)
    bed.kill_shepherd(first)
    (bed.work / "release").touch()
    wait_until(runner.is_provably_dead)
    assert bed.status(first).state in ("running", "ended")
    assert bed.ended(first).state == "ended"
    assert bed.ended(third).state == "finished"


def test_an_end_which_was_recorded_just_before_the_shepherd_died_stays_as_recorded(bed):
    native_id = bed.submit("script", UNTIL_RELEASED)
    bed.running(native_id)
    bed.kill_shepherd(native_id)
    ended = bed.record(native_id).ended("finished", "", 0)
    (bed.home / "local-scheduler" / "ended" / f"{native_id}.json").write_text(ended.to_json())
    bed.scheduler.poll([native_id])
    assert bed.status(native_id)[1:4] == ("finished", "", 0)
    (bed.work / "release").touch()


def test_no_kill_of_a_shepherd_at_any_moment_starts_a_script_twice_or_never(bed):
    for number in range(10):
        native_id = bed.submit(f"n{number}", f"echo {number} >> log; sleep 0.2")
        pid = bed.shepherd_of(native_id)
        time.sleep(random.uniform(0, 0.03))
        if start_of(pid):
            os.kill(pid, signal.SIGKILL)
        assert bed.ended(native_id).state in ("ended", "finished")
    assert bed.read("log").split() == [str(number) for number in range(10)]


def test_a_child_forked_by_a_shepherd_that_was_replaced_does_not_become_the_script(bed):
    first, second = bed.submit("first", UNTIL_RELEASED), bed.submit("second", "echo once >> log")
    bed.running(first)
    shepherd = bed.shepherd_of(second)
    with bed.queue.locked():  # so that it is not stopped while it holds the lock itself
        os.kill(shepherd, signal.SIGSTOP)  # the second one's turn comes, and no process takes it
        wait_until(lambda: psutil.Process(shepherd).status() == psutil.STATUS_STOPPED)
    (bed.work / "release").touch()
    assert bed.ended(first).state == "finished"
    code = (
        "import sys; from balsam_lite.schedulers.shepherd import LocalQueue, Shepherd\n"
        "Shepherd(LocalQueue(sys.argv[1]), sys.argv[2])._become_script()\n"
    )
    argv = [sys.executable, "-c", code, bed.queue.directory, second]
    late_child = subprocess.run(argv, env={**os.environ, "PYTHONPATH": ROOT}, timeout=30)
    assert late_child.returncode == 0
    assert (bed.record(second).state, bed.read("log")) == ("queued", "")
    os.kill(shepherd, signal.SIGCONT)
    assert bed.ended(second).state == "finished"
    assert bed.read("log") == "once\n"


def test_a_second_shepherd_leaves_at_once(bed):
    native_id = bed.submit("script", UNTIL_RELEASED)
    record = bed.running(native_id)
    assert bed.queue._spawn_shepherd(native_id) == ""
    assert not bed.queue.heal()
    assert bed.record(native_id).shepherd == record.shepherd
    (bed.work / "release").touch()
    assert bed.ended(native_id).state == "finished"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_waiting_shepherd_sleeps(bed):
    first = bed.submit("first", UNTIL_RELEASED)
    bed.running(first)
    waiting = bed.shepherd_of(bed.submit("second", "true"))

    def wakeups() -> int:
        lines = Path(f"/proc/{waiting}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    before, started = wakeups(), time.monotonic()
    wait_until(lambda: time.monotonic() - started > 2)
    assert wakeups() - before < 60


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_output_is_not_written_through_a_link(bed):
    victim = bed.work / "victim"
    victim.write_text("precious")
    (bed.work / "sly.out").symlink_to(victim)
    status = bed.ended(bed.submit("sly", "echo overwritten"))
    assert status.state == "failed"
    assert "not started" in status.reason
    assert "sly.out" in status.reason
    assert victim.read_text() == "precious"


def test_a_pipe_in_place_of_the_output_does_not_stop_the_queue(bed):
    os.mkfifo(bed.work / "pipe.out")
    assert bed.ended(bed.submit("pipe", "true")).state == "failed"
    assert bed.ended(bed.submit("next", "true")).state == "finished"


def test_a_script_that_is_gone_fails_and_the_queue_goes_on(bed):
    first = bed.submit("first", UNTIL_RELEASED)
    second = bed.submit("second", "true")
    (bed.work / "second.sh").unlink()
    (bed.work / "release").touch()
    assert bed.ended(first).state == "finished"
    assert bed.ended(second)[1:4] == ("failed", "exit code 127", 127)
    assert "could not be started" in bed.read("second.out")


def test_a_script_without_an_interpreter_line_runs_in_a_shell(bed):
    submission = bed.submission("plain", "")
    Path(submission.script).write_text("echo plain\n")
    assert bed.ended(bed.scheduler.submit(submission)).state == "finished"
    assert bed.read("plain.out") == "plain\n"


def test_nothing_is_known_and_nobody_gone_where_there_is_no_queue(bed):
    with pytest.raises(PollFailed, match="There is no local queue"):
        bed.scheduler.poll(["1"])
    assert bed.scheduler.poll([]) == {}
    assert not bed.home.exists()


def test_a_submission_fails_with_the_reason_where_nothing_can_be_written(bed):
    bed.home.write_text("a file, not a directory")
    with pytest.raises(SubmitFailed, match=r"Not a directory|File exists"):
        bed.submit("one", "true")
    bed.home.unlink()


def test_a_full_disk_refuses_a_batch_job_whole_and_hides_nothing(bed, monkeypatch):
    first = bed.submit("first", UNTIL_RELEASED)
    bed.running(first)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalQueue, "write", full)
        with pytest.raises(SubmitFailed, match="No space left"):
            bed.submit("second", "echo >> log")
        with pytest.raises(CancelFailed, match="No space left"):
            bed.scheduler.cancel(first)
        assert bed.status(first).state == "running"
    assert sorted(path.name for path in (bed.home / "local-scheduler" / "active").iterdir()) == ["1.environ", "1.json"]
    (bed.work / "release").touch()
    assert bed.ended(first).state == "finished"
    assert bed.read("log") == ""


def test_a_batch_job_that_is_in_the_queue_is_accepted_even_if_its_shepherd_has_to_wait(bed, monkeypatch):
    def full(queue: LocalQueue) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalQueue, "heal", full)
        native_id = bed.submit("patient", "true")
        assert bed.status(native_id).state == "queued"
    assert bed.ended(native_id).state == "finished"


def test_a_submission_fails_and_never_runs_where_no_shepherd_can_be_started(bed, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(SubmitFailed, match="/nonexistent/python could not be started"):
        bed.submit("one", "echo >> log")
    monkeypatch.undo()
    monkeypatch.setenv("BALSAM_HOME", str(bed.home))
    assert bed.ended(bed.submit("two", "true")).state == "finished"
    assert bed.read("log") == ""


def test_unreadable_records_and_odd_ids_are_gone_and_not_in_the_way(bed):
    native_id = bed.submit("one", UNTIL_RELEASED)
    active = bed.home / "local-scheduler" / "active"
    (active / "7.json").write_text('{"id": ')
    (active / "8.json").write_text("[]")
    (active / "note.txt").write_text("")
    assert set(bed.scheduler.poll(["7", "8", "../active/1", "", "x", native_id])) == {native_id}
    assert bed.submit("nine", "true") == "9"
    (bed.work / "release").touch()
    assert bed.ended("9").state == "finished"


def test_a_batch_job_is_found_by_its_script_if_it_is_new_enough(bed):
    submission = bed.submission("named", "true")
    before = time.time_ns() // 1000
    assert bed.scheduler.find(submission, before) is None
    native_id = bed.scheduler.submit(submission)
    assert bed.scheduler.find(submission, before) == native_id
    assert bed.scheduler.find(submission._replace(script="/other"), before) is None
    assert bed.scheduler.find(submission, time.time_ns() // 1000) is None
    bed.ended(native_id)
    assert bed.scheduler.find(submission, before) == native_id
