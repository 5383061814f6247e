"""From a launch request to a batch job: the row, the script, the scheduler's answer, and what becomes of it."""

from __future__ import annotations

import json
import os
import pprint
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers import ROOT, wait_until

from balsam_lite.core.errors import (
    AmbiguousJobId,
    CancelFailed,
    InvalidSpec,
    PollFailed,
    SettingsError,
    SubmitFailed,
    SubmitUncertain,
    UnknownBatchJob,
)
from balsam_lite.core.settings import Settings
from balsam_lite.db.engine import directories
from balsam_lite.db.query import queries
from balsam_lite.db.query.select import batch_job_rows
from balsam_lite.schedulers import submission
from balsam_lite.schedulers.base import BatchStatus, LaunchRequest, Partition, select
from balsam_lite.schedulers.local import LocalScheduler
from balsam_lite.schedulers.script import copy_template
from balsam_lite.schedulers.submission import (
    cancel,
    legacy_form,
    refresh,
    render_script,
    resolve,
    submit_launch,
)

TEMPLATES = ROOT / "balsam_lite" / "templates"
#: Whatever batch system this machine has.
LOCAL = Settings(SCHEDULER_CLASS="LocalScheduler")
REQUEST = LaunchRequest(2, 5, queue="training", project="SDL_Workshop")

#: Stands for the command: says where the DB is, and notes how it was called as a launcher.
FAKE_BALSAM = """#!/bin/sh
if [ "$1" = which ]; then printf '%s\\n' "$3"; exit 0; fi
if [ "$1" = launcher ]; then
    for word in "$@"; do printf '%s\\0' "$word"; done > "$BALSAM_DB_PATH/argv"
    echo "launcher of $BALSAM_DB_PATH"
    exit ${FAKE_EXIT:-0}
fi
exit 9
"""


class FakeScheduler:
    """Answers what the test says."""

    name, template, domain, timeout_s = "FakeScheduler", "local.tmpl", "fake", 60.0

    def __init__(self) -> None:
        self.submitted, self.statuses, self.cancelled = [], {}, []
        self.refuses, self.silent, self.finds = "", False, None

    def submit(self, what):
        if self.refuses:
            raise SubmitFailed(self.refuses)
        self.submitted.append(what)
        return "278079"

    def poll(self, ids):
        if self.silent:
            raise PollFailed("no answer")
        return {key: value for key, value in self.statuses.items() if key in ids}

    def cancel(self, native_id):
        self.cancelled.append(native_id)

    def find(self, what, since_us):
        return self.finds


@pytest.fixture
def db(tmp_path, monkeypatch):
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    database = directories.create(str(tmp_path / "my 'own' db"))
    yield database
    database.close()


@pytest.fixture
def balsam_bin(tmp_path, monkeypatch):
    """A directory with the commands that job scripts call, where submission looks for them."""
    folder = tmp_path / "bin with blank"
    folder.mkdir()
    (folder / "balsam").write_text(FAKE_BALSAM)
    (folder / "balsam").chmod(0o755)
    for name in ("balsamactivate", "balsamdeactivate"):
        (folder / name).symlink_to(TEMPLATES / name)
    monkeypatch.setattr("sys.argv", [str(folder / "balsam")])
    return folder


@pytest.fixture
def local(db):
    scheduler = LocalScheduler(LOCAL)
    yield scheduler
    for row in rows(db):
        if row["scheduler_id"] and scheduler.poll([row["scheduler_id"]])[row["scheduler_id"]].ended_us is None:
            scheduler.cancel(row["scheduler_id"])
            wait_until(lambda row=row: scheduler.poll([row["scheduler_id"]])[row["scheduler_id"]].ended_us)


def rows(db):
    with db.read() as cx:
        return batch_job_rows(cx)


def template(db, text, name="mine.tmpl"):
    Path(db.directory, name).write_text(text)
    return Settings(SCHEDULER_CLASS="LocalScheduler", JOB_TEMPLATE=name)


def argv_of_launcher(db):
    return Path(db.directory, "argv").read_bytes().decode().split("\0")[:-1]


def run_script(text, **environ):
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, text=True, timeout=30,
        env={"PATH": os.environ["PATH"], "HOME": "/", **environ},
    )  # fmt: skip


# --- the whole road ---------------------------------------------------------------------------------------------------


def test_a_launch_goes_through_the_local_scheduler_to_its_end(db, balsam_bin, local):
    row = submit_launch(db, LOCAL, REQUEST, local)
    assert (row["state"], row["scheduler_id"]) == ("submitted", "1")
    wait_until(lambda: refresh(db, local) == [])
    ended = rows(db)[0]
    assert (ended["state"], ended["exit_code"], ended["reason"]) == ("finished", 0, "")
    assert row["created"] <= ended["started"] <= ended["ended"]
    assert argv_of_launcher(db) == ["launcher", "--consume-all", "--job-mode=serial"]
    assert Path(ended["log"]).read_text() == f"launcher of {db.directory}\n"


def test_the_launchers_exit_code_is_the_batch_jobs(db, balsam_bin, local, monkeypatch):
    monkeypatch.setenv("FAKE_EXIT", "4")
    submit_launch(db, LOCAL, REQUEST, LocalScheduler(LOCAL))
    wait_until(lambda: refresh(db, local) == [])
    assert [(row["state"], row["exit_code"]) for row in rows(db)] == [("failed", 4)]


def test_the_launcher_itself_gets_the_signal_when_it_is_cancelled(db, balsam_bin, local):
    (balsam_bin / "balsam").write_text(
        '#!/bin/sh\nif [ "$1" = which ]; then echo "$3"; exit; fi\n'
        'trap \'echo TERM >> "$BALSAM_DB_PATH/log/signals"; exit 0\' TERM\ntouch "$BALSAM_DB_PATH/log/up"\n'
        "while :; do sleep 0.05; done\n"
    )
    row = submit_launch(db, LOCAL, REQUEST, local)
    wait_until(Path(db.directory, "log", "up").exists)
    assert refresh(db, local)[0]["state"] == "running"
    cancel(db, local, row["id"])
    wait_until(lambda: refresh(db, local) == [])
    assert Path(db.directory, "log", "signals").read_text() == "TERM\n"
    assert [(row["state"], row["exit_code"]) for row in rows(db)] == [("cancelled", 0)]


def test_the_row_prints_as_on_the_slides(db):
    form = legacy_form(submit_launch(db, LOCAL, REQUEST, FakeScheduler()))
    assert form == {
        "command": os.path.join(db.directory, "qsubmit", "qlaunch1.sh"), "from_balsam": True, "id": 1,
        "job_mode": "serial", "nodes": 2, "prescheduled_only": False, "project": "SDL_Workshop", "queue": "training",
        "scheduler_id": 278079, "state": "submitted", "wall_minutes": 5, "wf_filter": "",
    }  # fmt: skip
    assert pprint.pformat(form, indent=4).startswith("{   'command': ")
    assert legacy_form({**form, "scheduler_id": "12.host", "from_balsam": 1})["scheduler_id"] == "12.host"


def test_the_scheduler_gets_an_executable_script_and_the_flags_word_by_word(db):
    scheduler = FakeScheduler()
    submit_launch(db, LOCAL, REQUEST._replace(sched_flags="--mail 'a b'"), scheduler)
    what = scheduler.submitted[0]
    assert (what.name, what.nodes, what.minutes, what.queue, what.project) == ("qlaunch1", 2, 5, "training", "SDL_Workshop")
    assert what.flags == ("--mail", "a b")
    assert what.directory == os.path.join(db.directory, "qsubmit")
    assert os.access(what.script, os.X_OK)
    assert os.listdir(what.directory) == ["qlaunch1.sh"]


def test_the_project_is_the_one_of_the_settings_where_none_is_given(db):
    row = submit_launch(db, LOCAL._replace(DEFAULT_PROJECT="mine"), LaunchRequest(1, 1), FakeScheduler())
    assert row["project"] == "mine"


# --- what goes wrong on the way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"nodes": 0}, {"nodes": -1}, {"nodes": 1.5}, {"nodes": True}, {"nodes": 10**12}, {"wall_minutes": 0},
        {"job_mode": "both"}, {"queue": "a\nb"}, {"project": "a\rb"}, {"wf_filter": "\x1b[2J"}, {"queue": None},
        {"sched_flags": "'open"}, {"filter_tags": {"a": "b\n"}}, {"filter_tags": {"a\n": "b"}},
    ],
)  # fmt: skip
def test_a_request_that_makes_no_sense_leaves_no_row(db, change):
    with pytest.raises(InvalidSpec, match=next(iter(change))):
        submit_launch(db, LOCAL, REQUEST._replace(**change), FakeScheduler())
    assert rows(db) == []


def test_a_refused_submission_stays_with_the_schedulers_words(db):
    scheduler = FakeScheduler()
    scheduler.refuses = "queue training is closed"
    with pytest.raises(SubmitFailed, match="closed"):
        submit_launch(db, LOCAL, REQUEST, scheduler)
    row = rows(db)[0]
    assert (row["state"], row["reason"], row["scheduler_id"]) == ("submission-failed", "queue training is closed", "")
    assert row["ended"] is not None
    assert refresh(db, scheduler) == []


def test_a_submission_nobody_knows_the_end_of_waits_to_be_found(db):
    scheduler = FakeScheduler()

    def submit(what):
        raise SubmitUncertain("qsub was killed")

    scheduler.submit = submit
    with pytest.raises(SubmitUncertain):
        submit_launch(db, LOCAL, REQUEST, scheduler)
    assert [(row["state"], row["ended"]) for row in rows(db)] == [("pending-submission", None)]
    scheduler.finds, scheduler.statuses = "77", {"77": BatchStatus("77", "running")}
    assert [(row["state"], row["scheduler_id"]) for row in refresh(db, scheduler)] == [("running", "77")]


def test_a_script_is_not_written_through_a_link(db, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("qlaunch1.sh", "qlaunch2.sh.new"):
        Path(db.directory, "qsubmit", name).symlink_to(victim)
        scheduler = FakeScheduler()
        with pytest.raises(SubmitFailed, match="link"):
            submit_launch(db, LOCAL, REQUEST, scheduler)
        assert scheduler.submitted == []
    assert victim.read_text() == "precious"
    assert {row["state"] for row in rows(db)} == {"submission-failed"}


def test_qsubmit_is_created_again_where_somebody_removed_it(db):
    os.rmdir(os.path.join(db.directory, "qsubmit"))
    assert os.path.exists(submit_launch(db, LOCAL, REQUEST, FakeScheduler())["command"])


class Crash(BaseException):
    """The process dies here."""


def test_a_crash_after_submitting_is_found_again_by_its_script(db, balsam_bin, local, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(submission.batch_jobs, "mark_submitted", lambda *args: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            submit_launch(db, LOCAL, REQUEST, local)
    row = rows(db)[0]
    assert (row["state"], row["scheduler_id"]) == ("pending-submission", "")
    wait_until(lambda: refresh(db, local) == [])
    row = rows(db)[0]
    assert (row["state"], row["scheduler_id"]) == ("finished", "1")
    assert list(local.poll(["1", "2"])) == ["1"]  # and it was submitted once


def test_a_crash_before_submitting_is_given_up_after_the_patience_and_not_before(db, local, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(local, "submit", lambda what: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            submit_launch(db, LOCAL, REQUEST, local)
    created = rows(db)[0]["created"]
    patience_us = submission.SUBMISSION_TIMEOUT_S * 1_000_000
    refresh(db, local, now_us=created)
    assert refresh(db, local, now_us=created + patience_us)[0]["state"] == "pending-submission"
    row = refresh(db, local, now_us=created + patience_us + 1)[0]
    assert (row["state"], row["ended"]) == ("submission-failed", created + patience_us + 1)
    assert "died" in row["reason"]


def test_a_slow_submitter_that_was_given_up_for_dead_is_believed_in_the_end(db):
    scheduler = FakeScheduler()
    slow_submit = scheduler.submit

    def submit(what):
        for wait_us in (0, 10**12):
            refresh(db, scheduler, now_us=time.time_ns() // 1000 + wait_us)
        assert rows(db)[0]["state"] == "submission-failed"
        return slow_submit(what)

    scheduler.submit = submit
    row = submit_launch(db, LOCAL, REQUEST, scheduler)
    assert (row["state"], row["scheduler_id"], row["reason"], row["ended"]) == ("submitted", "278079", "", None)


# --- afterwards -------------------------------------------------------------------------------------------------------


def test_a_failed_poll_changes_nothing(db):
    scheduler = FakeScheduler()
    before = submit_launch(db, LOCAL, REQUEST, scheduler)
    scheduler.silent = True
    with pytest.raises(PollFailed):
        refresh(db, scheduler)
    assert rows(db) == [before]


ABSENCE_US = submission.ABSENCE_TIMEOUT_S * 1_000_000
RUNNING = {"278079": BatchStatus("278079", "running", started_us=5)}


def gone(db, scheduler, now_us=1):
    """Submit, and let the scheduler leave it out for two minutes; it counts as gone at `now_us` + 2 min."""
    number = submit_launch(db, LOCAL, REQUEST, scheduler)["id"]
    scheduler.statuses = {}
    for wait_us in (0, ABSENCE_US):
        refresh(db, scheduler, now_us=now_us + wait_us)
    return number


def test_a_batch_job_is_gone_only_after_two_minutes_of_answers_without_it(db):
    scheduler = FakeScheduler()
    submit_launch(db, LOCAL, REQUEST, scheduler)
    for now_us in (77, 78, 77 + ABSENCE_US - 1):
        row = refresh(db, scheduler, now_us=now_us)[0]
        assert (row["state"], row["ended"], row["absent"]) == ("submitted", None, 77)
        assert "does not list it at the moment" in row["reason"]
    row = refresh(db, scheduler, now_us=77 + ABSENCE_US)[0]
    assert (row["state"], row["ended"], row["exit_code"]) == ("gone", 77 + ABSENCE_US, None)
    assert "does not know it" in row["reason"]


def test_a_sign_of_life_begins_the_two_minutes_anew_and_that_no_answer_does_not_count(db):
    scheduler = FakeScheduler()
    submit_launch(db, LOCAL, REQUEST, scheduler)
    refresh(db, scheduler, now_us=0)
    scheduler.statuses = RUNNING
    row = refresh(db, scheduler, now_us=ABSENCE_US)[0]
    assert (row["state"], row["reason"], row["absent"]) == ("running", "", None)
    scheduler.silent = True
    with pytest.raises(PollFailed):
        refresh(db, scheduler, now_us=9 * ABSENCE_US)
    scheduler.silent, scheduler.statuses = False, {}
    assert refresh(db, scheduler, now_us=9 * ABSENCE_US)[0]["state"] == "running"  # once, after hours without a question
    assert refresh(db, scheduler, now_us=10 * ABSENCE_US)[0]["state"] == "gone"


def test_one_that_was_gone_is_asked_about_again_and_open_when_it_shows_up(db):
    scheduler = FakeScheduler()
    gone(db, scheduler)
    ended_us = rows(db)[0]["ended"]
    scheduler.statuses = RUNNING
    assert refresh(db, scheduler, now_us=ended_us + 10**6) == []  # not at every look
    row = refresh(db, scheduler, now_us=ended_us + 60 * 10**6)[0]
    assert (row["state"], row["ended"], row["reason"], row["absent"]) == ("running", None, "", None)
    assert cancel(db, scheduler, row["id"])["state"] == "cancelling"


def test_the_end_of_one_that_was_gone_is_learned_later_once_and_for_all(db):
    scheduler = FakeScheduler()
    gone(db, scheduler)
    ended_us = rows(db)[0]["ended"]
    scheduler.statuses = {"278079": BatchStatus("278079", "timeout", "it reached its time limit", 143, 5, 6)}
    refresh(db, scheduler, now_us=ended_us + 10**9)
    row = rows(db)[0]
    assert (row["state"], row["reason"], row["exit_code"]) == ("timeout", "it reached its time limit", 143)
    assert (row["started"], row["ended"], row["absent"]) == (5, 6, None)
    scheduler.statuses = RUNNING
    assert refresh(db, scheduler, now_us=ended_us + 10**11) == []
    assert rows(db)[0] == row


def test_the_questions_about_one_that_is_gone_become_rarer_and_end(db):
    scheduler, asked = FakeScheduler(), []
    gone(db, scheduler)
    ended_us = rows(db)[0]["ended"]
    scheduler.poll = lambda outputs: asked.append(outputs) or {}
    for minute in range(24 * 60):
        refresh(db, scheduler, now_us=ended_us + minute * 60 * 10**6)
    assert 10 < len(asked) < 60
    refresh(db, scheduler, now_us=ended_us + (submission.REVIEW_PERIOD_S + 1) * 10**6)
    count = len(asked)
    refresh(db, scheduler, now_us=ended_us + 2 * submission.REVIEW_PERIOD_S * 10**6)
    assert len(asked) == count


def test_one_that_is_gone_can_be_cancelled_if_it_lives(db):
    scheduler = FakeScheduler()
    number = gone(db, scheduler, now_us=time.time_ns() // 1000 - ABSENCE_US)
    with pytest.raises(CancelFailed, match="ended already"):
        cancel(db, scheduler, number)
    scheduler.statuses = RUNNING
    assert cancel(db, scheduler, number)["state"] == "cancelling"
    assert scheduler.cancelled == ["278079"]


def test_an_id_that_a_later_launch_has_now_is_not_taken_for_that_of_one_that_is_gone(db):
    scheduler = FakeScheduler()
    gone(db, scheduler)
    submit_launch(db, LOCAL, REQUEST, scheduler)
    scheduler.statuses = RUNNING
    refresh(db, scheduler, now_us=10**12)
    assert [row["state"] for row in rows(db)] == ["gone", "running"]


def test_a_submission_given_up_for_lost_is_looked_for_again_and_found(db):
    scheduler = FakeScheduler()
    scheduler.submit = lambda what: (_ for _ in ()).throw(SubmitUncertain("qsub was killed"))
    with pytest.raises(SubmitUncertain):
        submit_launch(db, LOCAL, REQUEST, scheduler)
    now_us = rows(db)[0]["created"]
    for _ in range(2):
        now_us += ABSENCE_US + 1
        refresh(db, scheduler, now_us=now_us)
    assert rows(db)[0]["state"] == "submission-failed"
    scheduler.finds, scheduler.statuses = "278079", RUNNING
    row = refresh(db, scheduler, now_us=now_us + 60 * 10**6)[0]
    assert (row["state"], row["scheduler_id"], row["ended"], row["absent"]) == ("running", "278079", None, None)


def test_the_cluster_is_kept_with_the_id_and_told_to_the_scheduler(db):
    scheduler, asked = FakeScheduler(), []
    scheduler.submit = lambda what: "17;red"
    scheduler.poll = lambda outputs: asked.append(dict(outputs)) or {"17;red": BatchStatus("17;red", "running")}
    row = submit_launch(db, LOCAL, REQUEST, scheduler)
    assert (row["scheduler_id"], row["cluster"]) == ("17", "red")
    assert refresh(db, scheduler)[0]["state"] == "running"
    cancel(db, scheduler, row["id"])
    assert {*asked[0]} == {"17;red"}
    assert scheduler.cancelled == ["17;red"]


# --- tries ------------------------------------------------------------------------------------------------------------


def refuse(db, scheduler, request=REQUEST, **more):
    scheduler.refuses = "qsub: no"
    with pytest.raises(SubmitFailed):
        submit_launch(db, LOCAL, request, scheduler, **more)
    scheduler.refuses = ""


def test_a_refused_submission_that_is_made_again_is_one_row_with_the_number_of_tries(db):
    scheduler = FakeScheduler()
    for _ in range(3):
        refuse(db, scheduler)
    (row,) = rows(db)
    assert (row["state"], row["tries"], row["reason"]) == ("submission-failed", 3, "qsub: no")
    row = submit_launch(db, LOCAL, REQUEST, scheduler)
    assert (row["id"], row["state"], row["tries"], row["reason"], row["ended"]) == (1, "submitted", 4, "", None)
    assert submit_launch(db, LOCAL, REQUEST, scheduler)["tries"] == 1
    assert [row["id"] for row in rows(db)] == [1, 2]


def test_another_request_has_a_row_of_its_own_unless_it_says_which_one_it_replaces(db):
    scheduler = FakeScheduler()
    refuse(db, scheduler)
    refuse(db, scheduler, REQUEST._replace(nodes=3))
    refuse(db, scheduler, REQUEST._replace(nodes=4), again=2)
    assert [(row["nodes"], row["tries"]) for row in rows(db)] == [(2, 1), (4, 2)]


def test_a_submission_that_may_still_turn_up_is_not_tried_again_in_its_row(db):
    scheduler = FakeScheduler()
    scheduler.submit = lambda what: (_ for _ in ()).throw(SubmitUncertain("qsub was killed"))
    with pytest.raises(SubmitUncertain):
        submit_launch(db, LOCAL, REQUEST, scheduler)
    now_us = rows(db)[0]["created"]
    for _ in range(2):
        now_us += ABSENCE_US + 1
        refresh(db, scheduler, now_us=now_us)
    del scheduler.submit
    assert submit_launch(db, LOCAL, REQUEST, scheduler)["id"] == 2


# --- a machine that has the commands of a scheduler, and no scheduler --------------------------------------------------


def commands_in(folder, **texts):
    for name, text in texts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)


REFUSAL = "echo 'fatal: Could not establish a configuration source' >&2; exit 1"
HOW = "export BALSAM_SCHEDULER_CLASS=LocalScheduler"


@pytest.mark.parametrize("names", [("sbatch", "squeue"), ("qsub", "qstat"), ("qsub", "qstat", "cqwait")])
def test_a_refusal_by_commands_that_reach_no_scheduler_ends_with_how_to_run_here(db, tmp_path, monkeypatch, names):
    commands_in(tmp_path, **dict.fromkeys(names, REFUSAL))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.delenv("BALSAM_SCHEDULER_CLASS")
    settings = Settings.load(db.directory)
    with pytest.raises(SubmitFailed, match="Could not establish") as caught:
        submit_launch(db, settings, REQUEST)
    assert str(caught.value).splitlines()[-1].endswith(HOW)
    assert rows(db)[0]["state"] == "submission-failed"
    assert refresh(db, select(settings)) == []
    with pytest.raises(SubmitFailed) as chosen:
        submit_launch(db, settings._replace(SCHEDULER_CLASS=select(settings).name), REQUEST)
    assert HOW not in str(chosen.value)


def test_a_refusal_by_a_scheduler_that_answers_says_nothing_of_another_one(db, tmp_path, monkeypatch):
    commands_in(tmp_path, sbatch="echo 'invalid account' >&2; exit 1", squeue="exit 0")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(SubmitFailed, match="invalid account") as caught:
        submit_launch(db, Settings(), REQUEST)
    assert HOW not in str(caught.value)


# --- what an answer may be of -----------------------------------------------------------------------------------------


ANOTHERS = [{"command": "/another/db/qsubmit/qlaunch1.sh"}, {"output": "/another/db/qsubmit/qlaunch1.out"}]


@pytest.mark.parametrize("other", ANOTHERS)
def test_ours_is_gone_when_its_number_is_another_batch_jobs(db, other):
    scheduler = FakeScheduler()
    submit_launch(db, LOCAL, REQUEST, scheduler)
    scheduler.statuses = {"278079": BatchStatus("278079", "finished", exit_code=0, **other)}
    row = refresh(db, scheduler, now_us=77)[0]
    assert (row["state"], row["ended"], row["exit_code"]) == ("gone", 77, None)
    assert "another batch job of that number" in row["reason"]


@pytest.mark.parametrize("other", ANOTHERS)
def test_another_batch_job_under_our_number_is_not_cancelled(db, other):
    scheduler = FakeScheduler()
    number = submit_launch(db, LOCAL, REQUEST, scheduler)["id"]
    scheduler.statuses = {"278079": BatchStatus("278079", "running", **other)}
    with pytest.raises(CancelFailed, match=r"another one now.*/another/db"):
        cancel(db, scheduler, number)
    assert scheduler.cancelled == []
    assert rows(db)[0]["state"] == "gone"


def test_an_output_that_the_users_flags_may_have_moved_proves_nothing(db):
    scheduler = FakeScheduler()
    before = submit_launch(db, LOCAL, REQUEST._replace(sched_flags="-o /elsewhere"), scheduler)
    scheduler.statuses = {"278079": BatchStatus("278079", "running", output="/elsewhere")}
    assert refresh(db, scheduler) == [before]


def test_a_launch_whose_output_the_users_flags_have_moved_is_followed_and_cancelled_by_its_name(db):
    scheduler = FakeScheduler()
    row = submit_launch(db, LOCAL, REQUEST._replace(sched_flags="-o /elsewhere"), scheduler)
    scheduler.statuses = {"278079": BatchStatus("278079", "running", name="qlaunch1", output="/elsewhere")}
    assert refresh(db, scheduler)[0]["state"] == "running"
    assert cancel(db, scheduler, row["id"])["state"] == "cancelling"
    scheduler.statuses = {"278079": BatchStatus("278079", "finished", name="qlaunch1", output="/elsewhere", exit_code=0)}
    assert refresh(db, scheduler)[0]["state"] == "finished"


def test_an_answer_without_it_does_not_undo_what_another_process_has_heard_meanwhile(db):
    scheduler = FakeScheduler()
    submit_launch(db, LOCAL, REQUEST, scheduler)
    refresh(db, scheduler, now_us=0)

    def poll(outputs):  # an answer that is slow to arrive
        other = FakeScheduler()
        other.statuses = RUNNING
        refresh(db, other, now_us=ABSENCE_US)
        return {}

    scheduler.poll = poll
    refresh(db, scheduler, now_us=ABSENCE_US)
    assert [(row["state"], row["ended"], row["absent"]) for row in rows(db)] == [("running", None, None)]


def test_a_slow_scheduler_is_given_twice_its_time_to_accept_a_submission(db):
    scheduler = FakeScheduler()
    scheduler.timeout_s = 300.0
    scheduler.submit = lambda what: (_ for _ in ()).throw(SubmitUncertain("qsub was killed"))
    with pytest.raises(SubmitUncertain):
        submit_launch(db, LOCAL, REQUEST, scheduler)
    created = rows(db)[0]["created"]
    refresh(db, scheduler, now_us=created)
    assert refresh(db, scheduler, now_us=created + 600_000_000)[0]["state"] == "pending-submission"
    assert refresh(db, scheduler, now_us=created + 600_000_001)[0]["state"] == "submission-failed"
    local = Settings(SCHEDULER_CLASS="LocalScheduler", SCHEDULER_TIMEOUT_S=300)
    assert {select(local._replace(SCHEDULER_CLASS=f"{name}Scheduler")).timeout_s for name in ("Local", "Slurm", "PBS")} == {300}


def test_a_db_that_was_removed_does_not_come_back_with_a_script(db):
    row = submit_launch(db, LOCAL, REQUEST, FakeScheduler())
    os.rename(db.directory, f"{db.directory}.removed")
    with pytest.raises(FileNotFoundError):
        submission._write_script(row["command"], "", 0o700)
    assert not os.path.exists(db.directory)


def test_an_ended_batch_job_does_not_come_back(db):
    scheduler = FakeScheduler()
    submit_launch(db, LOCAL, REQUEST, scheduler)
    scheduler.statuses = {"278079": BatchStatus("278079", "failed", "node down", 1, 10, 20)}
    ended = refresh(db, scheduler)[0]
    assert (ended["state"], ended["started"], ended["ended"], ended["exit_code"]) == ("failed", 10, 20, 1)
    scheduler.statuses = {"278079": BatchStatus("278079", "running", "", None, 10)}
    assert refresh(db, scheduler) == []
    assert rows(db) == [ended]


def test_a_refresh_without_news_writes_nothing(db):
    scheduler = FakeScheduler()
    submit_launch(db, LOCAL, REQUEST, scheduler)
    scheduler.statuses = {"278079": BatchStatus("278079", "running", "", None, 10)}
    refresh(db, scheduler)
    other = directories.open_database(db.directory)
    other.changed()
    assert refresh(db, scheduler)[0]["state"] == "running"
    assert not other.changed()
    other.close()


def test_cancelling_says_why_it_cannot_be_done(db):
    scheduler = FakeScheduler()
    with pytest.raises(UnknownBatchJob, match="qlaunch7"):
        cancel(db, scheduler, 7)
    number = submit_launch(db, LOCAL, REQUEST, scheduler)["id"]
    scheduler.statuses = {"278079": BatchStatus("278079", "running")}
    assert cancel(db, scheduler, number)["state"] == "cancelling"
    assert [row["state"] for row in refresh(db, scheduler)] == ["cancelling"]  # until the scheduler says how it ended
    assert scheduler.cancelled == ["278079"]
    scheduler.statuses = {"278079": BatchStatus("278079", "cancelled")}
    refresh(db, scheduler)
    with pytest.raises(CancelFailed, match="ended already"):
        cancel(db, scheduler, number)


def test_the_batch_job_of_another_scheduler_is_not_cancelled_here(db):
    scheduler, other = FakeScheduler(), FakeScheduler()
    number = submit_launch(db, LOCAL, REQUEST, scheduler)["id"]
    other.domain = "fake@elsewhere"
    with pytest.raises(CancelFailed, match="fake, not fake@elsewhere"):
        cancel(db, other, number)
    assert other.cancelled == []


def test_users_name_a_batch_job_as_they_like(db):
    scheduler = FakeScheduler()
    scheduler.submit = lambda what: {"qlaunch1": "12.host", "qlaunch2": "1", "qlaunch3": "12.host"}[what.name]
    for _ in range(3):
        submit_launch(db, LOCAL, REQUEST, scheduler)
    assert [resolve(db, word)["id"] for word in ("qlaunch1", "2", "3", "12.host", "qlaunch02")] == [1, 2, 3, 3, 2]
    with pytest.raises(AmbiguousJobId, match="qlaunch1 or qlaunch2, which the scheduler calls 1"):
        resolve(db, "1")
    for word in ("", "4", "0", "-1", "qlaunch", "qlaunch4", "12", "12.hos", "9" * 30, "²", "1; DROP TABLE batch_job", "%"):
        with pytest.raises(UnknownBatchJob):
            resolve(db, word)


def test_batch_jobs_are_found_by_number_by_the_schedulers_id_and_by_what_comes_next(db):
    with db.read() as cx:
        assert queries.next_batch_job(cx) == 1
    for _ in range(3):
        submit_launch(db, LOCAL, REQUEST, FakeScheduler())
    with db.read() as cx:
        assert queries.next_batch_job(cx) == 4
        assert queries.batch_job_with_scheduler_id(cx, "278079")["id"] == 3
        assert queries.batch_job_with_scheduler_id(cx, "1") is None
        assert [row["id"] for row in batch_job_rows(cx)] == [1, 2, 3]
        assert [row["id"] for row in queries.unended_batch_jobs(cx)] == [1, 2, 3]


# --- the job script ---------------------------------------------------------------------------------------------------

LEGACY = """#!/bin/bash -x
#COBALT -A {{ project }}
#COBALT -n {{ nodes }}
#COBALT -q {{ queue }}
#COBALT -t {{ time_minutes }}
export PATH={{ balsam_bin }}:{{ pg_bin }}:$PATH

source balsamactivate {{ balsam_db_path }}

balsam launcher --{{ wf_filter }} --job-mode={{ job_mode }} --time-limit-minutes={{ time_minutes-2 }}
source balsamdeactivate
"""

ODD_NAMES = ["plain", "two words", "it's", 'say "hi"', "$(touch pwned)", "`id`", "a;b|c&d", "*", "über", "-dash", "a\\b"]


@pytest.mark.parametrize("workflow", ODD_NAMES)
def test_a_users_old_template_runs_the_launcher_with_the_workflow_as_typed(db, balsam_bin, workflow):
    request = LaunchRequest(2, 1, wf_filter=workflow)
    done = run_script(render_script(db, template(db, LEGACY), request, 1))
    assert done.returncode == 0, done.stderr
    assert argv_of_launcher(db) == [
        "launcher", f"--wf-filter={workflow}", "--job-mode=serial", "--time-limit-minutes=-1"
    ]  # fmt: skip


@pytest.mark.parametrize("workflow", ODD_NAMES)
def test_our_template_runs_the_launcher_with_workflow_and_tags_as_typed(db, balsam_bin, workflow):
    request = LaunchRequest(2, 1, wf_filter=workflow, filter_tags={"b": workflow, "a": "1"}, job_mode="mpi")
    done = run_script(render_script(db, LOCAL, request, 1))
    assert (done.returncode, done.stderr) == (0, "")
    assert argv_of_launcher(db) == [
        "launcher", f"--wf-filter={workflow}", "--job-mode=mpi", "--tag", "a=1", "--tag", f"b={workflow}"
    ]  # fmt: skip


def test_the_users_path_stays_in_front_where_it_finds_this_balsam_anyway(db, balsam_bin):
    text = render_script(db, LOCAL, REQUEST, 1).replace("exec balsam", 'echo "$PATH"; exec balsam')
    path = f"/usr/bin:/bin:{balsam_bin}"
    assert run_script(text, PATH=path).stdout.splitlines()[0] == path
    assert run_script(text, PATH="/usr/bin:/bin").stdout.splitlines()[0] == f"{balsam_bin}:/usr/bin:/bin"


def test_a_launch_in_a_db_that_is_gone_fails_and_does_not_run_elsewhere(db, balsam_bin):
    (balsam_bin / "balsam").write_text("#!/bin/sh\n[ $1 = launcher ] && touch ran; exit 1\n")
    assert run_script(render_script(db, LOCAL, REQUEST, 1)).returncode == 1


def test_templates_are_looked_for_in_the_db_then_at_home_then_in_the_package(db):
    home = Path(os.environ["BALSAM_HOME"])
    home.mkdir(exist_ok=True)
    settings = Settings(SCHEDULER_CLASS="LocalScheduler", JOB_TEMPLATE="local.tmpl")
    assert "balsam launcher" in render_script(db, settings, REQUEST, 1)
    (home / "local.tmpl").write_text("home {{ name }}")
    assert render_script(db, settings, REQUEST, 1) == "home qlaunch1"
    Path(db.directory, "local.tmpl").write_text("db {{ name }}")
    assert render_script(db, settings, REQUEST, 1) == "db qlaunch1"


def test_the_template_in_use_is_copied_into_the_db_and_the_copy_is_used(db):
    copied = Path(copy_template(db, LOCAL))
    assert copied == Path(db.directory, "job-templates", "local.tmpl")
    assert copied.read_text() == (TEMPLATES / "local.tmpl").read_text()
    copied.write_text("mine {{ name }}")
    assert render_script(db, LOCAL, REQUEST, 1) == "mine qlaunch1"
    assert copy_template(db, LOCAL) == str(copied)
    assert copied.read_text() == "mine {{ name }}"


def test_the_users_own_template_is_the_one_that_is_copied_and_a_chosen_one_is_left_where_it_is(db):
    home = Path(os.environ["BALSAM_HOME"], "job-templates")
    home.mkdir(parents=True)
    (home / "local.tmpl").write_text("home {{ name }}")
    assert copy_template(db, LOCAL._replace(JOB_TEMPLATE="job-templates/local.tmpl")) == str(home / "local.tmpl")
    assert not Path(db.directory, "job-templates").exists()
    assert Path(copy_template(db, LOCAL)).read_text() == "home {{ name }}"
    Path(db.directory, "local.tmpl").write_text("beside the database")
    assert render_script(db, LOCAL, REQUEST, 1) == "beside the database"
    with pytest.raises(SettingsError, match="JOB_TEMPLATE"):
        copy_template(db, LOCAL._replace(JOB_TEMPLATE="none.tmpl"))


def test_a_template_may_take_in_others_that_lie_beside_it_or_at_home(db):
    home = Path(os.environ["BALSAM_HOME"], "job-templates")
    home.mkdir(parents=True)
    (home / "modules.sh").write_text("module load conda\n")
    assert render_script(db, template(db, "{% include 'modules.sh' %}"), REQUEST, 1) == "module load conda\n"


def test_the_settings_directory_goes_along_where_the_environment_does_not(db, monkeypatch):
    monkeypatch.setenv("BALSAM_HOME", "/my own/settings")
    for scheduler in ("CobaltScheduler", "PBSScheduler"):
        settings = Settings(SCHEDULER_CLASS=scheduler)
        assert "export BALSAM_HOME='/my own/settings'\n" in render_script(db, settings, REQUEST, 1)
        with monkeypatch.context() as patch:
            patch.delenv("BALSAM_HOME")
            assert "BALSAM_HOME" not in render_script(db, settings, REQUEST, 1)


@pytest.mark.parametrize("scheduler", ["CobaltScheduler", "PBSScheduler", "SlurmScheduler"])
@pytest.mark.parametrize("workflow", ODD_NAMES)
def test_every_schedulers_template_runs_the_launcher_with_workflow_and_tags_as_typed(db, balsam_bin, scheduler, workflow):
    parts = [Partition("mpi", 1, {"k": workflow}), Partition("serial", 1)]
    request = LaunchRequest(2, 1, wf_filter=workflow, filter_tags={"b": workflow}, job_mode="mixed", partitions=parts)
    done = run_script(render_script(db, Settings(SCHEDULER_CLASS=scheduler), request, 1))
    assert (done.returncode, done.stderr) == (0, "")
    assert argv_of_launcher(db) == [
        "launcher", f"--wf-filter={workflow}", "--job-mode=mixed", "--tag", f"b={workflow}", "--part", parts[0].as_text(),
        "--part", "serial:1",
    ]  # fmt: skip


def test_every_variable_of_old_and_new_templates_is_there_and_can_be_quoted(db, balsam_bin):
    text = (
        "{{ project }} {{ queue }} {{ nodes + 1 }} {{ time_minutes - 2 }} {{ job_mode }} {{ wf_filter | q }} "
        "{{ balsam_bin | q }} {{ balsam_db_path | q }} {{ name }} {{ filter_tags | length }} {{ sched_flags }}"
    )
    request = LaunchRequest(3, 9, "my queue", "p", "mpi", "a b", sched_flags="-x")
    words = shlex.split(render_script(db, template(db, text), request, 5))
    assert words == [
        "p", "my queue", "4", "7", "mpi", "wf-filter=a b", str(balsam_bin), db.directory, "qlaunch5", "0", "-x"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("one\ntwo {{ nodse }}\n", ["line 2", "'nodse' is undefined", "balsam_db_path"]),
        ("one\n\n{% if %}\n", ["line 3", "Expected an expression"]),
        ("{{ nodes + queue }}", ["line 1", "unsupported operand"]),
        ("\n{{ nodes // 0 }}", ["line 2", "zero"]),
        ("{% include 'none.tmpl' %}", ["line 1", "none.tmpl"]),
    ],
)
def test_a_broken_template_is_an_error_with_file_line_and_reason_and_leaves_no_row(db, text, words):
    settings = template(db, text)
    with pytest.raises(SettingsError) as caught:
        submit_launch(db, settings, REQUEST, FakeScheduler())
    for word in ["mine.tmpl", *words]:
        assert word in str(caught.value)
    assert rows(db) == []


def test_a_template_that_is_no_text_or_is_missing_is_an_error_that_names_it(db):
    Path(db.directory, "binary.tmpl").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"binary\.tmpl"):
        render_script(db, Settings(SCHEDULER_CLASS="LocalScheduler", JOB_TEMPLATE="binary.tmpl"), REQUEST, 1)
    with pytest.raises(SettingsError, match="Looked for") as caught:
        render_script(db, Settings(SCHEDULER_CLASS="LocalScheduler", JOB_TEMPLATE="none.tmpl"), REQUEST, 1)
    assert os.path.join(db.directory, "none.tmpl") in str(caught.value)


def test_filter_tags_are_kept_as_json(db):
    row = submit_launch(db, LOCAL, REQUEST._replace(filter_tags={"b": "2", "a": "é"}), FakeScheduler())
    assert json.loads(row["filter_tags"]) == {"a": "é", "b": "2"}


@pytest.mark.parametrize("scheduler", ["LocalScheduler", "CobaltScheduler", "PBSScheduler", "SlurmScheduler"])
def test_no_signal_is_lost_on_the_launcher_when_only_the_script_is_signalled(db, balsam_bin, tmp_path, scheduler):
    """Cobalt and PBS signal the script's shell and not its children."""
    (balsam_bin / "balsam").write_text(
        '#!/bin/sh\nif [ "$1" = which ]; then echo "$3"; exit; fi\n'
        'trap "exit 42" TERM\ntouch up\nwhile :; do sleep 0.05; done\n'
    )
    script = tmp_path / "script.sh"
    script.write_text(render_script(db, Settings(SCHEDULER_CLASS=scheduler), REQUEST, 1))
    with subprocess.Popen(["bash", str(script)], cwd=tmp_path) as process:
        wait_until((tmp_path / "up").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 42
