"""What all schedulers share: running commands, three-valued polls, which one is meant, which batch job this is."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from helpers import ROOT, wait_until

from balsam_lite.core import process_table, subprocess_run
from balsam_lite.core.clock import SECOND_US, SystemClock
from balsam_lite.core.errors import BalsamError, CancelFailed, PollFailed, SettingsError, SubmitFailed, SubmitUncertain
from balsam_lite.core.process_table import Holder, start_of
from balsam_lite.core.settings import Settings
from balsam_lite.core.subprocess_run import MAX_OUTPUT_BYTES, run
from balsam_lite.schedulers import base, pbs, slurm
from balsam_lite.schedulers.base import BatchStatus, CommandScheduler, Submission, select
from balsam_lite.schedulers.environ import Allocation, allocation
from balsam_lite.schedulers.local import LocalQueue, LocalScheduler

SUBMISSION = Submission("qlaunch1", "/db/qlaunch1.sh", "/db/qlaunch1.out", "/", 2, 5)


class ShellAdapter:
    """An adapter whose commands are shell text."""

    name, template = "ShellScheduler", "local.tmpl"

    def __init__(self, submit="echo 12.host", status="", cancel="true"):
        self._submit, self._status, self._cancel = submit, status, cancel

    def submit_argv(self, submission):
        return ["sh", "-c", self._submit, submission.name]

    def parse_id(self, stdout):
        return stdout.strip()

    def status_argv(self, ids):
        return ["sh", "-c", self._status]

    def parse_statuses(self, answer):
        if not answer.ok:
            return None
        lines = [line.split() for line in answer.stdout.splitlines()]
        return {words[0]: BatchStatus(words[0], words[1], name=words[2]) for words in lines if len(words) == 3}

    def cancel_argv(self, native_id):
        return ["sh", "-c", self._cancel, native_id]

    def environ(self):
        return {}

    def past_argv(self, ids):
        return []

    def parse_past(self, answer):
        return {}

    def read_past(self, native_id, output):
        return None


def scheduler(**commands):
    return CommandScheduler(ShellAdapter(**commands), timeout_s=1)


def test_whatever_a_command_prints_comes_back_as_text():
    answer = run(["sh", "-c", "printf 'a\\377\\0b'; echo bad >&2; exit 5"])
    assert answer[1:] == (5, "a\ufffd\0b", "bad\n")
    assert not answer.ok


def test_a_command_that_is_missing_or_impossible_is_an_answer():
    assert run(["/nonexistent/qsub"]).returncode is None
    assert "/nonexistent/qsub could not be started" in run(["/nonexistent/qsub"]).stderr
    assert "could not be started" in run(["echo", "a\0b"]).stderr


def test_a_command_that_takes_too_long_is_killed_with_its_children():
    started = time.monotonic()
    answer = run(["sh", "-c", "echo early; sleep 100 & echo $!; wait"], timeout_s=0.5)
    assert time.monotonic() - started < 10
    assert answer.returncode is None
    assert "no answer within 0.5 s" in answer.stderr
    early, child = answer.stdout.split()
    assert early == "early"
    wait_until(lambda: not start_of(int(child)))


def test_a_command_that_prints_without_end_is_killed_and_its_words_are_bounded():
    started = time.monotonic()
    answer = run(["yes", "x" * 1000], timeout_s=60)
    assert time.monotonic() - started < 20
    assert answer.returncode is None
    assert answer.was_killed
    assert "it printed more than 16 MiB, so it was killed" in answer.stderr
    assert MAX_OUTPUT_BYTES < len(answer.stdout) < MAX_OUTPUT_BYTES + 10**6
    assert len(str(PollFailed("?", **answer._asdict()))) < 10_000


@pytest.mark.parametrize("line", ["yes {} >&2; true", "exec yes {} >&2"], ids=["stdout-open", "stdout-closed"])
def test_stderr_into_a_file_fills_no_disk(monkeypatch, line):
    monkeypatch.setattr(subprocess_run, "MAX_FILE_BYTES", 10 * 1024**2)
    answer = run(["sh", "-c", line.format("x" * 1000)], timeout_s=60, leaves_some=True)
    assert answer.was_killed
    assert "it printed more than 10 MiB" in answer.stderr


def test_a_submission_whose_command_was_killed_or_gave_no_id_is_uncertain_and_not_refused():
    for command in ("echo 12.host; sleep 100", "kill -KILL $$", "true"):
        with pytest.raises(SubmitUncertain, match="did not say whether"):
            scheduler(submit=command).submit(SUBMISSION)
    with pytest.raises(SubmitFailed) as caught:
        CommandScheduler(ShellAdapter(), timeout_s=1).submit(SUBMISSION._replace(directory="/dev/null/nowhere"))
    assert not isinstance(caught.value, SubmitUncertain)


def test_a_refused_submission_carries_the_commands_words():
    assert scheduler().submit(SUBMISSION) == "12.host"
    with pytest.raises(SubmitFailed, match="queue closed") as caught:
        scheduler(submit="echo queue closed >&2; exit 2").submit(SUBMISSION)
    assert caught.value.returncode == 2
    assert not isinstance(caught.value, SubmitUncertain)


def test_a_poll_knows_known_gone_and_unknown_apart():
    polled = scheduler(status="echo 1 running a; echo; echo strange line of words; echo 3 queued c").poll({"1": "", "2": ""})
    assert polled == {"1": BatchStatus("1", "running", name="a")}
    with pytest.raises(PollFailed, match="qstat is down"):
        scheduler(status="echo qstat is down >&2; exit 1").poll({"1": ""})
    with pytest.raises(PollFailed, match="no answer within"):
        scheduler(status="sleep 100").poll({"1": ""})
    assert scheduler(status="exit 1").poll({}) == {}


def test_a_batch_job_is_found_by_its_name_and_a_refused_cancel_says_so():
    assert scheduler(status="echo 7 queued qlaunch1").find(SUBMISSION, 0) == "7"
    assert scheduler(status="echo 7 queued qlaunch11").find(SUBMISSION, 0) is None
    scheduler().cancel("7")
    with pytest.raises(CancelFailed, match="not yours"):
        scheduler(cancel="echo not yours >&2; exit 1").cancel("7")


def test_the_scheduler_is_the_one_of_the_settings_and_an_unknown_one_lists_those_there_are(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert select(Settings()).name == "LocalScheduler"
    assert select(Settings(SCHEDULER_CLASS="LocalScheduler")).name == "LocalScheduler"
    with pytest.raises(SettingsError, match="LocalScheduler") as caught:
        select(Settings(SCHEDULER_CLASS="CobaltSheduler"))
    assert "'CobaltSheduler'" in str(caught.value)


def test_importing_the_schedulers_loads_no_adapter_and_no_template_engine():
    code = (
        "import sys, balsam_lite.schedulers.submission as s, balsam_lite.schedulers.environ\n"
        "print([m for m in sys.modules if m in ('jinja2', 'psutil', 'balsam_lite.schedulers.local')])"
    )
    root = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    assert done.stdout.strip() == "[]", done.stderr


def test_an_environment_tells_its_batch_job():
    assert allocation({"BALSAM_JOB_ID": "x"}) is None
    environ = {"BALSAM_LOCAL_JOBID": "7", "BALSAM_LOCAL_NODES": "2", "BALSAM_LOCAL_ENDTIME": "1795321296"}
    assert allocation(environ) == Allocation("LocalScheduler", "7", 2, (), 1795321296_000000)
    assert allocation({"BALSAM_LOCAL_JOBID": "7"}) == Allocation("LocalScheduler", "7", 1, (), None)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JOBID", ""), ("JOBID", "x"), ("JOBID", "²"), ("NODES", ""), ("NODES", "0"), ("NODES", "1.5"), ("NODES", "nan"),
        ("ENDTIME", "soon"), ("ENDTIME", "inf"), ("ENDTIME", "-5"),
    ],
)  # fmt: skip
def test_garbage_in_the_environment_is_an_error_with_variable_and_value(variable, value):
    environ = {"BALSAM_LOCAL_JOBID": "7", "BALSAM_LOCAL_NODES": "2", f"BALSAM_LOCAL_{variable}": value}
    with pytest.raises(BalsamError) as caught:
        allocation(environ)
    assert f"BALSAM_LOCAL_{variable}" in str(caught.value)
    assert repr(value) in str(caught.value)


def test_a_stranger_under_a_dead_leaders_pid_is_not_family():
    with subprocess.Popen(["sh", "-c", "sleep 100 & wait"], start_new_session=True) as process:
        try:
            leader = Holder.current()._replace(pid=process.pid, started=start_of(process.pid))
            assert process.pid in [member.pid for member in process_table.family(leader)]
            assert process_table.family(leader._replace(started="1")) == []
        finally:
            os.killpg(process.pid, 9)


@pytest.mark.parametrize("stat", [b"", b"7 (x) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711", b"7 (x) S 1", b")"])
def test_a_zombie_or_an_unreadable_line_is_no_process(stat):
    assert process_table._parse(7, stat) is None


# --- local batch jobs of a container that is gone ---------------------------------------------------------------------


def of_a_container(home, state, **values):
    """The local scheduler, with a batch job that a container with this host's name had."""
    scheduler = LocalScheduler(Settings(KILL_GRACE_S=5), {"BALSAM_HOME": str(home)})
    queue = LocalQueue(str(home / "local-scheduler"))
    queue.create()
    with queue.locked():
        record = queue.add(SUBMISSION, 1, 10.0, {})
        submitter = record.submitter._replace(pid_namespace="pid:[1]")
        queue.write(record._replace(submitter=submitter, state=state, **values))
    return scheduler


@pytest.mark.parametrize(("late_s", "state"), [(60, base.RUNNING), (100, base.ENDED)])
def test_a_local_batch_job_whose_container_is_gone_ends_some_time_after_its_limit(tmp_path, late_s, state):
    started_us = SystemClock.now_us() - (SUBMISSION.minutes * 60 + late_s) * SECOND_US
    status = of_a_container(tmp_path, base.RUNNING, started_us=started_us).poll({"1": ""})["1"]
    assert status.state == state
    if state == base.ENDED:
        assert status.reason == "its host or container is gone"
        assert status.ended_us == started_us + SUBMISSION.minutes * 60 * SECOND_US


def test_a_local_batch_job_that_waits_for_a_container_that_is_gone_can_be_cancelled(tmp_path):
    scheduler = of_a_container(tmp_path, base.QUEUED)
    assert scheduler.poll({"1": ""})["1"].state == base.QUEUED
    scheduler.cancel("1")
    assert scheduler.poll({"1": ""})["1"].state == base.CANCELLED


def test_a_running_local_batch_job_of_another_host_is_cancelled_there(tmp_path):
    scheduler = of_a_container(tmp_path, base.RUNNING, started_us=SystemClock.now_us())
    with pytest.raises(CancelFailed, match="go there"):
        scheduler.cancel("1")


def test_the_start_that_a_scheduler_expects_is_known_while_a_batch_job_waits():
    fields = ["7", "PENDING", "0", "Priority", "1795342663", "1795352664", "1795362665", "qlaunch1", "/a.sh"]
    line = slurm._SEPARATOR.join(fields)
    waiting = slurm.parse_squeue(f"{line}\n")["7"]
    assert (waiting.expected_us, waiting.started_us) == (1795352664 * 1_000_000, None)
    running = slurm.parse_squeue(f"{line}\n".replace("PENDING", "RUNNING"))["7"]
    assert (running.expected_us, running.started_us) == (None, 1795352664 * 1_000_000)
    text = "Job Id: 9.host\n    job_state = {}\n    estimated.start_time = 1795352664\n    comment = Not Running: no nodes\n"
    for letter, expected_us in (("Q", 1795352664 * 1_000_000), ("R", None)):
        ((native_id, values),) = pbs.parse_text(text.format(letter))
        assert pbs.status_of(native_id, values).expected_us == expected_us
