"""Slurm: what its commands are told, what is made of their answers, and launchers in batch jobs of a real one."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest
from helpers import ROOT, wait_until
from hypothesis import given
from hypothesis import strategies as st
from launching import PYTHON, Bench

from balsam_lite.core.errors import CancelFailed, PollFailed, SubmitFailed, SubmitUncertain
from balsam_lite.core.settings import Settings
from balsam_lite.core.subprocess_run import Completed
from balsam_lite.db.query import queries
from balsam_lite.db.store import apps
from balsam_lite.schedulers import base, submission
from balsam_lite.schedulers.base import BatchStatus, LaunchRequest, Submission
from balsam_lite.schedulers.slurm import SlurmAdapter, SlurmScheduler, parse_sacct, parse_squeue

SLURM = Settings(SCHEDULER_CLASS="SlurmScheduler")
SUBMISSION = Submission("qlaunch1", "/db/qlaunch1.sh", "/db/qlaunch1.out", "/db", 2, 5)
SEPARATOR = "\x1f"


def line(*fields: str) -> str:
    return SEPARATOR.join(fields) + "\n"


def squeue_line(native_id="7", state="RUNNING", code="0", reason="None", start="1795342664", end="1795346264") -> str:
    return line(native_id, state, code, reason, "1795342663", start, end, "qlaunch1", "/db/qlaunch1.sh")


# --- what squeue and sacct print --------------------------------------------------------------------------------------

#: Answers of Slurm 22.05, and what they mean: state, reason, exit code, start, end.
RECORDED = {
    "1 PENDING 0 None N/A N/A": ("queued", "", None, None, None),
    "5 PENDING 0 PartitionConfig N/A N/A": (
        "queued", "the queue does not have what it asks for (PartitionConfig)", None, None, None
    ),
    "11 PENDING 0 Resources 1795346265 1795530165": (
        "queued", "it waits for nodes to become free (Resources)", None, None, None
    ),
    "12 PENDING 0 QOSMaxJobsPerUserLimit N/A N/A": ("queued", "QOSMaxJobsPerUserLimit", None, None, None),
    "1 CONFIGURING 0 None 1795342664 1795346264": ("queued", "its nodes are being made ready", None, None, None),
    "1 RUNNING 0 None 1795342664 1795346264": ("running", "", None, 1795342664, None),
    "1 COMPLETING 0 None 1795342664 1795342828": ("running", "it is ending", None, 1795342664, None),
    "1 SUSPENDED 0 None 1795342664 1795346264": ("running", "suspended by Slurm", None, 1795342664, None),
    "4 COMPLETED 0 None 1795342664 1795342664": ("finished", "", 0, 1795342664, 1795342664),
    "2 FAILED 768 NonZeroExitCode 1795342664 1795342665": ("failed", "", 3, 1795342664, 1795342665),
    "3 FAILED 9 JobLaunchFailure 1795342664 1795342664": ("failed", "JobLaunchFailure", 137, 1795342664, 1795342664),
    "1 CANCELLED 15 None 1795342664 1795342828": ("cancelled", "cancelled", 143, 1795342664, 1795342828),
    "12 CANCELLED 36608 None 1795342664 1795342828": ("cancelled", "cancelled", 143, 1795342664, 1795342828),
    "8 CANCELLED 0 JobHeldUser 1795342828 1795342828": ("cancelled", "cancelled", None, None, 1795342828),
    "18 TIMEOUT 9 TimeLimit 1795342833 1795342846": ("timeout", "it reached its time limit", 137, 1795342833, 1795342846),
    "19 NODE_FAIL 1 NodeDown 1795342833 1795342846": ("failed", "a node failed", 129, 1795342833, 1795342846),
    "20 OUT_OF_MEMORY 0 OutOfMemory 1795342833 1795342846": (
        "failed", "it used more memory than it had", 0, 1795342833, 1795342846
    ),
    "21 PREEMPTED 15 None 1795342833 1795342846": (
        "cancelled", "it had to make room for a job of higher priority", 143, 1795342833, 1795342846
    ),
    "22 BOOT_FAIL 0 None 1795342833 1795342846": ("failed", "its nodes could not be booted", 0, 1795342833, 1795342846),
    "23 DEADLINE 0 DeadLine N/A 1795342846": ("failed", "it could not be done before its deadline", 0, None, 1795342846),
    "24 POWERING_UP 0 None 1795342833 1795342846": ("queued", "Slurm calls it POWERING_UP", None, None, None),
}  # fmt: skip


@pytest.mark.parametrize("answer", RECORDED)
def test_an_answer_of_squeue_means_what_slurm_means(answer):
    native_id, state, code, reason, start, end = answer.split()
    meaning, words, exit_code, started, ended = RECORDED[answer]
    expected_us = int(start) * 10**6 if meaning == "queued" and start.isdecimal() else None  # when Slurm means to start it
    assert parse_squeue(squeue_line(native_id, state, code, reason, start, end)) == {
        native_id: BatchStatus(
            native_id, meaning, words, exit_code, started and started * 10**6, ended and ended * 10**6,
            "qlaunch1", "/db/qlaunch1.sh", submitted_us=1795342663 * 10**6, expected_us=expected_us or None,
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "garbage\n", squeue_line()[:-1], squeue_line()[:-5], squeue_line() + squeue_line("8")[:30], "\0\n", "7\n",
        squeue_line("7_[2-3%2]"), squeue_line("7+1"), squeue_line("-7"), squeue_line("²"), squeue_line(""),
        squeue_line(state=" "),
        "slurm_load_jobs error: Socket timed out on send/recv operation\n", "x" * 10**7 + "\n",
    ],
    ids=lambda text: repr(text[:30]),
)  # fmt: skip
def test_an_answer_that_says_nothing_is_none(text):
    assert parse_squeue(text) is None
    assert parse_sacct(text) == {}


def test_no_batch_job_is_an_answer_and_odd_lines_hide_no_other():
    assert parse_squeue("") == parse_squeue("\n") == parse_squeue("CLUSTER: red\n") == {}
    odd = f"CLUSTER: red\nNote: maintenance on Monday\n{squeue_line()}{line('8', 'RUNNING')}{line('9', *'abcdefgh', 'i', 'j')}"
    assert list(parse_squeue(odd)) == ["7"]
    assert parse_squeue(squeue_line(state="COMPLETED") + squeue_line()) == parse_squeue(squeue_line())
    unicode = line("7", "RUNNING", "?", "", "soon", "1" * 30, "-1", "näme|x\u2028y", "/d\x85b/'q'.sh")
    assert parse_squeue(unicode)["7"] == BatchStatus("7", "running", name="näme|x\u2028y", command="/d\x85b/'q'.sh")


PIECES = st.sampled_from(["\x1f", "\n", "7", "RUNNING", "COMPLETED", "CANCELLED by 0", " ", "0:9", "ü", "\r", "1795342664"])


@given(st.lists(PIECES | st.text(max_size=3)).map("".join))
def test_no_text_is_too_odd_to_be_looked_at(text):
    for status in [*(parse_squeue(text) or {}).values(), *parse_sacct(text).values()]:
        assert status.native_id.isdigit()
        assert status.state in (base.QUEUED, base.RUNNING, *base.ENDED_STATES)


@given(st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ_", min_size=1))
def test_a_state_that_nobody_has_heard_of_is_no_end(word):
    status = parse_squeue(squeue_line(state=f"{word}_"))["7"]
    assert not status.is_ended


def test_a_long_answer_is_read_within_seconds():
    text = "".join(squeue_line(str(number)) for number in range(20_000))
    started = time.process_time()
    assert len(parse_squeue(text)) == 20_000
    assert time.process_time() - started < 5


def test_sacct_tells_how_forgotten_batch_jobs_ended():
    text = (
        line("2", "FAILED", "5:0", "1795342663", "1795342664", "1795342665", "qlaunch1")
        + line("2.batch", "FAILED", "5:0", "1795342663", "1795342664", "1795342665", "batch")
        + line("3", "CANCELLED by 1000", "0:15", "1795342663", "Unknown", "Unknown", "qlaunch2")
        + line("4", "TIMEOUT", "0:0", "1795342663", "1795342664", "1795342665", "qlaunch3")
    )
    times = (1795342664_000000, 1795342665_000000)
    assert parse_sacct(text) == {
        "2": BatchStatus("2", "failed", "", 5, *times, "qlaunch1", submitted_us=1795342663_000000),
        "3": BatchStatus("3", "cancelled", "cancelled", None, name="qlaunch2", submitted_us=1795342663_000000),
        "4": BatchStatus("4", "timeout", "it reached its time limit", 0, *times, "qlaunch3", submitted_us=1795342663_000000),
    }
    disabled = Completed(["sacct"], 1, "", "Slurm accounting storage is disabled\n")
    assert SlurmAdapter(0).parse_past(disabled) == {}


# --- what its commands are told ---------------------------------------------------------------------------------------


def words_of(submission_: Submission, **environ: str) -> list[str]:
    return SlurmAdapter(0, environ=environ).submit_argv(submission_)


def test_sbatch_is_told_everything_and_the_users_flags_word_by_word_behind_it():
    assert words_of(SUBMISSION._replace(queue="debug", project="x y", flags=("-C", "knl & flat"))) == [
        "sbatch", "--parsable", "--job-name=qlaunch1", "--chdir=/db", "--output=/db/qlaunch1.out", "--error=/db/qlaunch1.out",
        "--open-mode=append", "--nodes=2", "--time=5", "--partition=debug", "--account=x y", "-C", "knl & flat",
        "/db/qlaunch1.sh",
    ]  # fmt: skip


def test_no_queue_and_the_built_in_project_are_not_passed_on():
    assert not [word for word in words_of(SUBMISSION) if word.startswith(("--partition", "--account"))]
    assert not [word for word in words_of(SUBMISSION._replace(project="datascience")) if word.startswith("--account")]


def test_a_batch_job_inherits_nothing_from_the_job_that_submits_it():
    outside = words_of(SUBMISSION, SLURM_CONF="/etc/x", SLURM_NTASKS="4")
    assert outside[0] == "sbatch"  # it is the user's own
    inside = words_of(SUBMISSION, SLURM_JOB_ID="7", SLURM_CONF="/x", SLURM_NTASKS="4", SLURMD_NODENAME="n", BALSAM_RUN="r")
    unset = ["--unset=BALSAM_RUN", "--unset=SLURMD_NODENAME", "--unset=SLURM_JOB_ID", "--unset=SLURM_NTASKS"]
    assert inside[:6] == ["env", *unset, "sbatch"]
    rank = words_of(SUBMISSION, SLURM_JOB_ID="7", SLURM_PROCID="3", PMI_RANK="3", PMI_SIZE="4", OMPI_COMM_WORLD_RANK="3")
    assert rank[1:6] == [
        f"--unset={name}" for name in sorted(("SLURM_JOB_ID", "SLURM_PROCID", "PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK"))
    ]


def command(path, text):
    """A command that prints that text."""
    path.with_name(f"{path.name}.text").write_text(text)
    path.write_text(f"#!/bin/sh\nexec cat {path}.text\n")
    path.chmod(0o755)
    return str(path)


def test_a_batch_job_that_only_sacct_has_and_calls_running_lives(tmp_path):
    status = command(tmp_path / "squeue", squeue_line("8"))
    command(tmp_path / "sacct", line("7", "RUNNING", "0:0", "1795342663", "1795342664", "Unknown", "qlaunch1"))
    scheduler = SlurmScheduler(SLURM._replace(SCHEDULER_STATUS_EXE=status))
    assert scheduler.poll({"7": ""})["7"].state == base.RUNNING


def test_a_line_that_cannot_be_read_does_not_make_its_batch_job_absent(tmp_path):
    status = command(tmp_path / "squeue", squeue_line("8") + line("7", "RUNNING", "0"))
    command(tmp_path / "sacct", "")
    scheduler = SlurmScheduler(SLURM._replace(SCHEDULER_STATUS_EXE=status))
    with pytest.raises(PollFailed):
        scheduler.poll({"7": "", "8": ""})
    assert set(scheduler.poll({"8": ""})) == {"8"}


@pytest.mark.parametrize(
    ("says", "is_open"),
    [
        ("Socket timed out on send/recv operation", True),
        ("Zero Bytes were transmitted or received", True),
        ("Unable to contact slurm controller (receive failure)", True),
        ("Unable to contact slurm controller (connect failure)", False),
        ("Invalid account specified", False),
    ],
)
def test_a_controller_that_did_not_answer_may_have_the_batch_job(tmp_path, says, is_open):
    sbatch = tmp_path / "sbatch"
    sbatch.write_text(f"#!/bin/sh\necho 'sbatch: error: Batch job submission failed: {says}' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    with pytest.raises(SubmitFailed, match=re.escape(says)) as caught:
        SlurmScheduler(SLURM._replace(SCHEDULER_SUBMIT_EXE=str(sbatch))).submit(SUBMISSION._replace(directory="/"))
    assert isinstance(caught.value, SubmitUncertain) == is_open


def test_the_settings_name_the_commands_and_sacct_lies_beside_squeue():
    adapter = SlurmAdapter(1000, "/s/sbatch", "/q/squeue", "/c/scancel", environ={})
    assert adapter.submit_argv(SUBMISSION)[0] == "/s/sbatch"
    assert adapter.status_argv(["7"])[:3] == ["env", "SLURM_TIME_FORMAT=%s", "/q/squeue"]
    assert "--user=1000" in adapter.status_argv(["7"])
    assert adapter.past_argv(["7", "8"])[2] == "/q/sacct"
    assert adapter.past_argv(["7", "8"])[-1] == "--jobs=7,8"
    assert adapter.cancel_argv("7") == ["/c/scancel", "7"]


def test_many_ids_make_no_command_line_that_is_too_long():
    ids = [str(number) for number in range(10**6, 10**6 + 50_000)]
    adapter = SlurmAdapter(0, environ={})
    assert all(len(word) < 100_100 for argv in (adapter.status_argv(ids), adapter.past_argv(ids)) for word in argv)


@pytest.mark.parametrize(
    ("text", "native_id"),
    [
        ("17\n", "17"), ("17;red\n", "17;red"), ("Welcome to Red!\n\n17\n", "17"), ("Submitted batch job 17\n", "17"),
        ("Submitted batch job 17 on cluster red\n", "17;red"), ("", ""), ("17 jobs\n", ""), ("-17\n", ""), ("\0\n", ""),
    ],
)  # fmt: skip
def test_the_id_is_found_in_what_sbatch_prints(text, native_id):
    assert SlurmAdapter(0).parse_id(text) == native_id


#: Commands of a Slurm with two other clusters; each notes how it was called. sacct hears of red alone.
CLUSTERS = {
    "squeue": """case "$*" in
        *--clusters=red*) cat {0}/red;; *--clusters=*) echo "CLUSTER: blue"; cat {0}/blue;; *) cat {0}/here;; esac""",
    "sacct": """case "$*" in *--clusters=red*) cat {0}/past;; esac""",
    "scancel": ":",
    "sbatch": "echo 'Socket timed out' >&2; exit 1",
}


@pytest.fixture
def clusters(tmp_path):
    """Make three clusters, each with a batch job 7 in another state; return the settings that name the commands."""
    for name, text in CLUSTERS.items():
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n{text.format(tmp_path)}\n')
        (tmp_path / name).chmod(0o755)
    for name, state in (("here", "PENDING"), ("red", "RUNNING"), ("blue", "FAILED")):
        (tmp_path / name).write_text(squeue_line("7", state))
    (tmp_path / "past").write_text(line("8", "TIMEOUT", "0:0", "1795342663", "1795342664", "1795342665", "qlaunch1"))
    paths = {
        f"SCHEDULER_{what}_EXE": str(tmp_path / name)
        for what, name in zip(("SUBMIT", "STATUS", "CANCEL"), ("sbatch", "squeue", "scancel"))
    }
    return SLURM._replace(**paths)


def test_each_cluster_is_asked_for_its_own_batch_jobs(clusters, tmp_path):
    found = SlurmScheduler(clusters, {}).poll(dict.fromkeys(("7", "7;red", "7;blue", "8;red", "8;blue"), ""))
    states = {"7": base.QUEUED, "7;red": base.RUNNING, "7;blue": base.FAILED, "8;red": base.TIMED_OUT}
    assert {native_id: status.state for native_id, status in found.items()} == states
    assert {status.native_id for status in found.values()} == set(found)
    SlurmScheduler(clusters, {}).cancel("7;red")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[-1] == "scancel --clusters=red 7"
    assert [call.endswith("--jobs=8") for call in calls if call.startswith("sacct --clusters=red")] == [True]


def test_a_line_of_another_cluster_that_cannot_be_read_is_no_absence(clusters, tmp_path):
    (tmp_path / "red").write_text(line("7", "RUNNING", "0"))
    with pytest.raises(PollFailed):
        SlurmScheduler(clusters, {}).poll({"7;red": ""})
    assert set(SlurmScheduler(clusters, {}).poll({"7;blue": ""})) == {"7;blue"}


@pytest.mark.parametrize("environ", [{}, {"SLURM_CLUSTERS": "blue,red"}])
def test_an_uncertain_submission_is_looked_for_on_the_clusters_that_it_named(clusters, environ):
    flags = () if environ else ("-M", "blue,red")
    sent = SUBMISSION._replace(name="qlaunch1", script="/db/qlaunch1.sh", flags=flags)
    found = SlurmScheduler(clusters, environ).find(sent, 0)
    assert found == "7;blue"


def test_clusters_are_told_apart_without_a_command(tmp_path):
    def domain(**environ: str) -> str:
        return SlurmScheduler(SLURM, environ).domain

    conf = tmp_path / "slurm.conf"
    conf.write_text("# ClusterName=old\nSlurmctldHost=a\n clustername = red # it is\nClusterName=blue\n")
    assert domain(SLURM_CONF=str(conf)) == "SlurmScheduler@red"
    assert domain(SLURM_CONF=str(conf), SLURM_CLUSTERS="green") == "SlurmScheduler@green"
    conf.write_bytes(b"\xff\0nothing")
    assert domain(SLURM_CONF=str(conf)) == domain(SLURM_CONF=str(tmp_path)) == domain(SLURM_CONF="/a\0b") == "SlurmScheduler"


# --- a real Slurm -----------------------------------------------------------------------------------------------------


class Site:
    """A DB on a machine with Slurm."""

    def __init__(self, slurm, directory: Path) -> None:
        (directory / "a 'db' 100%j ü").mkdir()
        self.slurm, self.directory, self.bench = slurm, directory, Bench(directory / "a 'db' 100%j ü")
        self.db = self.bench.db

    def shell(self, name: str, code: str) -> None:
        """An application that is a shell script, at a plain path."""
        script = self.directory / f"{name}.sh"
        script.write_text(f"#!/bin/sh\n{code}\n")
        script.chmod(0o755)
        self.bench.app(name, str(script))

    @property
    def scheduler(self):
        return base.select(self.bench.settings())

    def launch(self, nodes: int = 1, minutes: int = 5, **fields: str) -> dict:
        return submission.submit_launch(self.db, self.bench.settings(), LaunchRequest(nodes, minutes, **fields))

    def row(self, number: int) -> dict:
        submission.refresh(self.db, self.scheduler)
        with self.db.read() as cx:
            return queries.batch_job(cx, number)

    def wait_for(self, row: dict, *states: str, timeout: float = 60) -> dict:
        return wait_until(lambda: (now := self.row(row["id"]))["state"] in states and now, timeout, 0.1)

    def ended(self, row: dict, timeout: float = 60) -> dict:
        return wait_until(lambda: (now := self.row(row["id"]))["ended"] is not None and now, timeout, 0.1)

    def jobs(self, count: int, application: str, **fields) -> list[int]:
        common = {"workflow": "w", "application": application, "node_packing_count": 8, **fields}
        return self.bench.add({**common, "name": f"j{number}"} for number in range(count))

    def template(self, lines: str, header: str = "") -> None:
        """The template in the DB is the shipped one, with a user's lines in their places."""
        path = ROOT / "balsam_lite" / "templates" / "slurm.tmpl"
        text = path.read_text().replace("#SBATCH --signal", f"{header}\n#SBATCH --signal" if header else "#SBATCH --signal")
        text = text.replace("# Your own lines go here", f"{lines}\n# Your own lines go here")
        Path(self.bench.directory, "mine.tmpl").write_text(text)
        Path(self.bench.directory, "settings.json").write_text(json.dumps({"JOB_TEMPLATE": "mine.tmpl"}))


@pytest.fixture
def site(slurm, tmp_path, monkeypatch):
    slurm.use(monkeypatch)
    for name, value in (("IDLE_TTL_S", "0.3"), ("KILL_GRACE_S", "1"), ("HEARTBEAT_S", "0.5"), ("LEASE_EXPIRY_S", "3")):
        monkeypatch.setenv(f"BALSAM_{name}", value)  # sbatch hands the environment over
    found = Site(slurm, tmp_path)
    yield found
    slurm.cancel_all()
    found.bench.close()


def batch_script(tmp_path: Path, text: str, name: str = "job") -> Submission:
    script = tmp_path / f"{name}.sh"
    script.write_text(f"#!/bin/bash\n{text}\n")
    return Submission(name, str(script), str(tmp_path / f"{name}.out"), str(tmp_path), 1, 2, "shared")


def poll_until_ended(scheduler, native_id: str) -> BatchStatus:
    def ended():
        status = scheduler.poll({native_id: ""})[native_id]
        return status if status.is_ended else None

    return wait_until(ended, 30, 0.1)


@pytest.mark.parametrize(
    ("text", "state", "exit_code", "reason"),
    [
        ("echo hello", "finished", 0, ""),
        ("exit 7", "failed", 7, ""),
        ("kill -9 $$", "failed", 137, "JobLaunchFailure"),
    ],
)
def test_a_batch_jobs_end_is_told_with_its_exit_code_and_its_times(site, tmp_path, text, state, exit_code, reason):
    before_us = time.time_ns() // 1000 - 10**6
    scheduler = site.scheduler
    native_id = scheduler.submit(batch_script(tmp_path, text))
    status = poll_until_ended(scheduler, native_id)
    assert (status.state, status.exit_code, status.reason) == (state, exit_code, reason)
    assert before_us <= status.submitted_us <= status.started_us <= status.ended_us <= time.time_ns() // 1000


def test_slurm_hands_over_the_environment_but_nothing_of_the_job_that_submits(site, tmp_path, monkeypatch):
    for name, value in (
        ("SLURM_JOB_ID", "1"),
        ("SLURM_NTASKS", "77"),
        ("SLURM_PROCID", "5"),
        ("BALSAM_RUN", "r"),
        ("MINE", "1"),
    ):
        monkeypatch.setenv(name, value)
    scheduler = site.scheduler
    native_id = scheduler.submit(batch_script(tmp_path, "env"))
    poll_until_ended(scheduler, native_id)
    variables = dict(line.split("=", 1) for line in (tmp_path / "job.out").read_text().splitlines() if "=" in line)
    assert (variables["SLURM_JOB_ID"], variables["SLURM_PROCID"], variables["MINE"]) == (native_id, "0", "1")
    assert not {"SLURM_NTASKS", "BALSAM_RUN", "SLURM_TIME_FORMAT"} & set(variables)


def test_the_users_defaults_for_squeue_hide_nothing(site, tmp_path, monkeypatch):
    scheduler = site.scheduler
    native_id = scheduler.submit(batch_script(tmp_path, "sleep 60"))
    for name in ("PARTITION", "ACCOUNT", "NAMES", "STATES", "USERS", "QOS", "LICENSES", "FORMAT", "FORMAT2", "SORT"):
        monkeypatch.setenv(f"SQUEUE_{name}", "nothing")
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    scheduler = site.scheduler
    started_us = wait_until(lambda: scheduler.poll({native_id: ""})[native_id].started_us)
    assert abs(time.time() - started_us / 1e6) < 60


def test_an_unknown_id_is_gone_and_hides_no_other_and_a_dead_controller_is_no_answer(site, tmp_path, monkeypatch):
    scheduler = site.scheduler
    native_id = scheduler.submit(batch_script(tmp_path, "sleep 60"))
    assert set(scheduler.poll({native_id: "", "999999": "", "x y": ""})) == {native_id}
    assert scheduler.poll({"999999": ""}) == {}
    conf = tmp_path / "slurm.conf"
    text = Path(os.environ["SLURM_CONF"]).read_text()
    conf.write_text(re.sub(r"SlurmctldPort=\d+", "SlurmctldPort=1", text) + "\nMessageTimeout=2\nSlurmctldTimeout=2\n")
    monkeypatch.setenv("SLURM_CONF", str(conf))
    impatient = SlurmScheduler(SLURM._replace(SCHEDULER_TIMEOUT_S=3.0))
    with pytest.raises(PollFailed):
        impatient.poll({native_id: ""})
    with pytest.raises(CancelFailed):
        impatient.cancel(native_id)


def test_a_held_batch_job_says_so_and_can_be_cancelled(site):
    row = site.launch(sched_flags="--hold")
    assert site.wait_for(row, "queued")["reason"] == "held by its owner (JobHeldUser)"
    submission.cancel(site.db, site.scheduler, row["id"])
    ended = site.ended(row)
    assert (ended["state"], ended["exit_code"], ended["started"]) == ("cancelled", None, None)
    with pytest.raises(CancelFailed, match="has ended already"):
        submission.cancel(site.db, site.scheduler, row["id"])


def test_a_refusal_has_slurms_words(site):
    with pytest.raises(SubmitFailed, match="invalid partition specified: nope"):
        site.launch(queue="nope")
    with pytest.raises(SubmitFailed, match="--no-such-flag"):
        site.launch(sched_flags="--no-such-flag")
    assert [site.row(number)["state"] for number in (1, 2)] == ["submission-failed"] * 2


@pytest.mark.parametrize("queue", ["it's", "a b", "$(touch /tmp/x)", "#", "\\", "\\'", '"', "ü,'"])
def test_an_odd_queue_is_refused_by_its_name_and_breaks_nothing(site, queue):
    with pytest.raises(SubmitFailed) as caught:
        site.launch(queue=queue)
    assert "artition" in caught.value.stderr


def test_a_launch_that_is_too_large_waits_with_the_reason(site):
    row = site.launch(99, queue="shared")
    reason = "the queue does not have what it asks for (PartitionConfig)"
    wait_until(lambda: site.row(row["id"])["reason"] == reason, 20, 0.1)
    assert site.row(row["id"])["state"] == "queued"


def test_a_batch_job_that_slurm_does_not_know_is_gone(site):
    row = site.launch(sched_flags="--hold")
    site.slurm.run(["scancel", row["scheduler_id"]])
    with sqlite3.connect(f"{site.bench.directory}/balsam.sqlite3") as cx:
        cx.execute("UPDATE batch_job SET scheduler_id = '999999'")
    cx.close()
    assert "does not list it at the moment" in site.row(row["id"])["reason"]
    submission.refresh(site.db, site.scheduler, time.time_ns() // 1000 + submission.ABSENCE_TIMEOUT_S * 10**6)
    ended = site.row(row["id"])
    assert ended["state"] == "gone"
    assert "does not know it any more" in ended["reason"]


def test_a_submission_whose_submitter_died_is_found_again_and_not_another_dbs(site, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    other = Site(site.slurm, tmp_path / "other")
    other.launch(sched_flags="--hold")  # of the same name
    with monkeypatch.context() as patch:
        patch.setattr("balsam_lite.db.store.batch_jobs.mark_submitted", lambda *_: os._exit(1))
        child = os.fork()
        if not child:
            site.launch(sched_flags="--hold")
        assert os.waitpid(child, 0)[1] == 256
    with site.db.read() as cx:
        lost = queries.batch_job(cx, 1)
    assert (lost["state"], lost["scheduler_id"]) == ("pending-submission", "")
    found = site.row(1)
    assert found["state"] == "queued"
    assert site.slurm.job(found["scheduler_id"])["JobName"] == "qlaunch1"
    other.bench.close()


# --- launchers in it --------------------------------------------------------------------------------------------------


needs_mpi = pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="many nodes need mpi4py")
one_node_and_two = pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=needs_mpi)])


@one_node_and_two
def test_the_slides_lines_run_ten_jobs(slurm, tmp_path, monkeypatch, balsam_bin, nodes):
    slurm.use(monkeypatch)
    monkeypatch.setenv("PATH", f"{balsam_bin}:{os.environ['PATH']}")
    monkeypatch.setenv("BALSAM_IDLE_TTL_S", "0.3")
    lines = f"""
        balsam init test-db; source balsamactivate test-db
        balsam app --name say-hello --executable "echo hello,"
        for i in {{1..10}}; do balsam job --name hi-$i --workflow test --app say-hello --args "world!" --yes; done
        balsam submit-launch -n {nodes} -t 5 -q debug -A x --job-mode=serial
        balsam ls queues
        while balsam ls queues | grep -q qlaunch1; do sleep 0.2; done
        balsam ls; balsam ls queues --all
    """
    done = subprocess.run(["bash", "--norc", "-eu", "-c", lines], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Submit OK: Qlaunch {   'command': " in done.stdout
    assert done.stdout.count("JOB_FINISHED") == 10
    assert re.search(rf"\| debug +\| {nodes} +\| 5 +\| finished +\| serial", done.stdout)
    output = next(tmp_path.glob("test-db/data/test/hi-1_*/hi-1.out")).read_text()
    assert output == "hello, world!\n"


def test_the_states_of_a_launch_are_those_of_its_batch_job(site):
    go = site.directory / "go"
    site.shell("wait", f"while [ ! -e {go} ]; do sleep 0.05; done")
    site.jobs(1, "wait")
    row = site.launch()
    running = site.wait_for(row, "running")
    assert (running["exit_code"], running["ended"]) == (None, None)
    go.touch()
    ended = site.ended(row)
    assert (ended["state"], ended["exit_code"], ended["reason"]) == ("finished", 0, "")
    assert row["created"] - 10**6 <= ended["started"] <= ended["ended"]
    assert site.bench.states() == {"JOB_FINISHED": 1}


def test_the_jobs_run_on_the_node_and_the_users_lines_before_them(site):
    site.template("export FROM_TEMPLATE='it is'\nsleep 0.1", header="#SBATCH --comment='a#comment'")
    site.shell("where", 'echo "$(hostname) $FROM_TEMPLATE"')
    (job,) = site.jobs(1, "where")
    row = site.launch(sched_flags="--nodelist=node3")
    site.ended(row)
    assert site.bench.path(job, "j0.out").read_text() == "node3 it is\n"
    assert site.slurm.job(row["scheduler_id"])["Comment"] == "a#comment"


def test_a_launcher_that_cannot_start_is_a_failed_batch_job_with_its_words_in_the_log(site):
    site.template("export BALSAM_KILL_GRACE_S=never")
    ended = site.ended(site.launch())
    assert (ended["state"], ended["exit_code"]) == ("failed", 2)
    assert "BALSAM_KILL_GRACE_S" in Path(ended["log"]).read_text()


@one_node_and_two
def test_jobs_of_a_cancelled_launch_have_run_out_of_time_and_the_next_launch_finishes_them(site, nodes):
    # Slurm's SIGTERM reaches the programs first, and they end with a code that looks like a failure.
    site.shell("twice", '[ "$BALSAM_ATTEMPT" = 2 ] && exit\ntouch up; for i in 1 2 3 4 5 6; do sleep 60 & done; wait; exit 3')
    ids = site.jobs(40, "twice", node_packing_count=40 // nodes)
    row = site.launch(nodes)
    wait_until(lambda: all(site.bench.path(job, "up").exists() for job in ids))
    submission.cancel(site.db, site.scheduler, row["id"])
    ended = site.ended(row)
    assert ended["state"] == "cancelled"
    assert site.bench.states() == {"RESTART_READY": 40}
    assert [state for state, _ in site.bench.history(ids[0])][-2:] == ["RUN_TIMEOUT", "RESTART_READY"]
    site.ended(site.launch())
    assert site.bench.states() == {"JOB_FINISHED": 40}


def test_a_script_that_its_batch_job_ended_is_run_again_by_the_next_launch(site):
    # Slurm's SIGTERM reaches the script first.
    go = site.directory / "go"
    script = site.directory / "pre.sh"
    script.write_text(f"trap 'exit 3' TERM\n[ -e {go} ] && exit\ntouch up; sleep 60 & wait\n")
    with site.bench.db.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true", "preprocess": f"bash {script}"})
    (job,) = site.jobs(1, "a")
    row = site.launch()
    wait_until(site.bench.path(job, "up").exists)
    submission.cancel(site.db, site.scheduler, row["id"])
    assert site.ended(row)["state"] == "cancelled"
    assert site.bench.states() == {"CREATED": 1}
    go.touch()
    site.ended(site.launch())
    assert site.bench.states() == {"JOB_FINISHED": 1}


def test_a_launcher_hears_of_an_end_that_came_nearer(site):
    site.bench.app("nap", "sleep 300")
    site.jobs(2, "nap")
    row = site.launch(sched_flags="--signal=B:TERM@25")  # looked at every 30 seconds
    wait_until(lambda: site.bench.states() == {"RUNNING": 2})
    site.slurm.end_in(row["scheduler_id"], 40)
    ended = site.ended(row, timeout=90)
    assert (ended["state"], ended["exit_code"]) == ("finished", 0)  # it left by itself
    assert site.bench.states() == {"RESTART_READY": 2}
    assert "signal SIGTERM" in Path(ended["log"]).read_text()


def test_two_launchers_on_two_nodes_share_the_jobs(site):
    runs = site.directory / "runs"
    site.shell("note", f"echo $(hostname) $BALSAM_JOB_ID >> {runs}; sleep 0.2")
    site.jobs(60, "note", node_packing_count=4)
    rows = [site.launch(sched_flags=f"--nodelist=node{number}") for number in (1, 2)]
    for row in rows:
        assert site.ended(row)["state"] == "finished"
    assert site.bench.states() == {"JOB_FINISHED": 60}
    lines = [entry.split() for entry in runs.read_text().splitlines()]
    assert len(lines) == len({job for _, job in lines}) == 60
    assert {node for node, _ in lines} == {"node1", "node2"}


def test_jobs_of_a_killed_launcher_are_finished_by_one_on_another_node(site, monkeypatch):
    site.shell("twice", '[ "$BALSAM_ATTEMPT" = 2 ] && exit\nsleep 60')
    site.jobs(3, "twice")
    row = site.launch(sched_flags="--nodelist=node1")
    wait_until(lambda: site.bench.states() == {"RUNNING": 3})
    killed = site.slurm.run(["pkill", "-9", "--full", "balsam launcher"], node="node1")
    assert killed.returncode == 0, killed.stderr
    ended = site.ended(row)
    assert (ended["state"], ended["exit_code"]) == ("failed", 128 + signal.SIGKILL)
    monkeypatch.setenv("BALSAM_IDLE_TTL_S", "6")  # it has nothing to do until the lease has run out
    site.ended(site.launch(sched_flags="--nodelist=node2"))
    assert site.bench.states() == {"JOB_FINISHED": 3}


@needs_mpi
def test_one_launcher_runs_serial_jobs_on_two_nodes(site):
    runs = site.directory / "runs"
    site.shell("note", f"echo $(hostname) >> {runs}; sleep 1")
    site.jobs(16, "note", node_packing_count=4)
    row = site.launch(2)
    ended = site.ended(row)
    assert ended["state"] == "finished", Path(ended["log"]).read_text()
    assert site.bench.states() == {"JOB_FINISHED": 16}
    assert set(runs.read_text().split()) == {"node1", "node2"}


def test_srun_on_two_nodes_makes_one_launcher_and_the_other_says_why_it_is_none(site):
    site.shell("note", f"echo x >> {site.directory}/runs")
    site.jobs(4, "note")
    words = ["launcher", "--consume-all", "--job-mode=serial"]
    argv = [PYTHON, "-m", "balsam_lite.cli", "--db", site.bench.directory, *words]
    limit = "--limit-nodes=1"  # what it does with more is another test's
    two = site.slurm.run(["srun", "-N2", "-t2", *argv, limit], timeout_s=90)
    assert two.returncode == 1
    assert "This is rank 1 of 2 (SLURM_PROCID=1): srun or mpiexec has started a launcher for each rank" in two.stderr
    assert "Warning: this is rank 0 of 2" in two.stderr
    with site.db.read() as cx:
        assert cx.execute("SELECT count(*) FROM lease").fetchone() == (1,)
    assert site.bench.states() == {"JOB_FINISHED": 4}
    assert (site.directory / "runs").read_text() == "x\n" * 4
    site.jobs(1, "note")
    one = site.slurm.run(["srun", "-N1", "-n1", "-t2", *argv], timeout_s=90)
    assert one.returncode == 0, one.stderr
    assert "rank" not in one.stderr
    assert site.bench.states() == {"JOB_FINISHED": 5}
