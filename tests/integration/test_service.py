"""The service: what it submits, when it does not, what it survives; against fake schedulers, and whole with the local one."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import Slots, wait_until
from launching import Bench

from balsam_lite.core.clock import SECOND_US, SystemClock
from balsam_lite.core.errors import (
    AnotherService,
    DatabaseReadOnly,
    LostLease,
    PollFailed,
    SettingsError,
    SubmitFailed,
    SubmitUncertain,
)
from balsam_lite.core.process_table import Holder
from balsam_lite.core.settings import Settings, SettingsWarning
from balsam_lite.db.engine import directories, filesystem
from balsam_lite.db.query import demand, queries, select
from balsam_lite.db.query.takers import NodeKind, Taker
from balsam_lite.db.store import actions, apps, claims, insert, large_writes, leases, pieces, user_actions
from balsam_lite.db.store.claims import Filter, Shape
from balsam_lite.schedulers import base, submission
from balsam_lite.schedulers.base import BatchStatus, LaunchRequest
from balsam_lite.schedulers.submission import ABSENCE_TIMEOUT_S, SUBMISSION_TIMEOUT_S
from balsam_lite.service import loop, main, packer
from balsam_lite.service.loop import Service
from balsam_lite.service.policy import PolicyFile, Queue, Range

SETTINGS = Settings(SCHEDULER_CLASS="LocalScheduler", SERVICE_PERIOD=10)
DEBUG = Queue("debug", True, 2, (Range(1, 4, 1, 60),))
WIDE = Queue("wide", True, 1, (Range(8, 64, 30, 180),))


class FakeScheduler:
    """Answers what the test says."""

    name, template, domain, timeout_s = "FakeScheduler", "local.tmpl", "fake", 60.0

    def __init__(self):
        self.submitted, self.statuses, self.asked = [], {}, 0
        self.refuses, self.silent, self.uncertain, self.hides = set(), False, False, False

    def submit(self, what):
        if what.queue in self.refuses:
            raise SubmitFailed(f"{what.queue} refuses", argv=["qsub"], returncode=1, stderr="no such queue")
        self.submitted.append(what)
        if self.uncertain:
            raise SubmitUncertain("no answer in time")
        native_id = str(1000 + len(self.submitted))
        self.says(native_id, base.QUEUED)
        return native_id

    def says(self, native_id, state, **values):
        self.statuses[native_id] = BatchStatus(native_id, state, **values)

    def poll(self, ids):
        self.asked += 1
        if self.silent:
            raise PollFailed("no answer")
        return {key: value for key, value in self.statuses.items() if key in ids}

    def cancel(self, native_id):
        raise AssertionError("the service cancels nothing")

    def find(self, what, since_us):
        if self.silent:
            raise PollFailed("no answer")
        names = [one.name for one in self.submitted]
        return str(1001 + names.index(what.name)) if what.name in names and not self.hides else None


class Hand:
    """A clock that the test moves."""

    def __init__(self):
        self.now = 1_700_000_000.0

    def now_us(self):
        return int(self.now * SECOND_US)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Desk:
    """A DB, a fake scheduler and a service whose turns the test takes."""

    def __init__(self, directory, monkeypatch, queues=(DEBUG,), settings=SETTINGS):
        self.settings = settings
        self.db = directories.create(str(directory / "db"))
        with self.db.write() as cx:
            apps.add_app(cx, {"name": "a", "executable": "true"})
        self.clock, self.scheduler = Hand(), FakeScheduler()
        monkeypatch.setattr("balsam_lite.schedulers.submission.SystemClock", self.clock)
        self.queues = queues
        self.service = self.another()

    def another(self):
        with self.db.write() as cx:
            self.lease = leases.open_lease(cx, loop.KIND, Holder.current(), "", self.clock.now_us())
        return Service(self.db, self.settings, self.queues, self.scheduler, self.lease, self.clock, "/the/log")

    def add(self, number=1, **fields):
        return list(insert.add_jobs(self.db, [{"application": "a", **fields} for _ in range(number)]).ids)

    def turns(self, most=20):
        """Turns until nothing more is submitted; how many launches were."""
        before = len(self.scheduler.submitted)
        while self.service.turn():
            most -= 1
            assert most, "it goes on submitting"
        return len(self.scheduler.submitted) - before

    def rows(self):
        with self.db.read() as cx:
            return select.batch_job_rows(cx)

    def planned(self):
        with self.db.read() as cx:
            query = "SELECT queued_launch_id, count(*) FROM job WHERE queued_launch_id IS NOT NULL GROUP BY 1"
            return dict(cx.execute(query).fetchall())

    def note(self):
        with self.db.read() as cx:
            return json.loads(leases.latest(cx, loop.KIND).note)

    def run_some(self, number, scheduler_id, minutes_ago=0.0):
        """Let a launcher inside that batch job take jobs."""

        with self.db.write() as cx:
            lease = leases.open_lease(cx, "launcher", Holder.current(), scheduler_id, self.clock.now_us())
            began = self.clock.now_us() - int(minutes_ago * 60 * SECOND_US)
            return lease, claims.take(cx, lease, Slots(number), Filter(serial_only=False), began).to_run


@pytest.fixture
def desk(tmp_path, monkeypatch):
    made = Desk(tmp_path, monkeypatch)
    yield made
    made.db.close()


# --- what is submitted ------------------------------------------------------------------------------------------------


def test_work_gets_one_launch_with_its_jobs_planned_and_no_second(desk):
    desk.add(6, wall_time_minutes=10)
    assert desk.turns() == 1
    (row,) = desk.rows()
    assert (row["queue"], row["nodes"], row["wall_minutes"], row["job_mode"]) == ("debug", 3, 22, "serial")
    assert (row["state"], row["prescheduled_only"], row["project"]) == ("queued", 0, SETTINGS.DEFAULT_PROJECT)
    assert desk.planned() == {row["id"]: 6}
    for _ in range(5):
        desk.clock.sleep(60)
        assert desk.turns() == 0
    assert "submitted qlaunch1" in desk.note()["action"]


def test_without_work_nothing_is_submitted_and_the_scheduler_is_left_in_peace(desk):
    desk.add(wait_for_parents=1)
    user_actions.set_state(desk.db, [1], "JOB_FINISHED")
    assert desk.turns() == 0
    assert desk.scheduler.asked == 0


def test_more_work_gets_more_launches_up_to_max_queued(desk):
    desk.add(1000, wall_time_minutes=50)
    assert desk.turns() == 2
    assert [row["nodes"] for row in desk.rows()] == [4, 4]
    assert desk.planned() == {1: 4, 2: 4}
    assert desk.turns() == 0
    assert desk.note()["reasons"] == [
        "wait for a launch: jobs like num_nodes=1 ranks_per_node=1 node_packing_count=1 gpus_per_rank=0:"
        " debug: 2 of 2 launches are queued or running"
    ]
    desk.run_some(4, "1001")
    desk.scheduler.says("1001", base.FINISHED)
    assert desk.turns() == 1


def test_launches_of_the_users_count_against_max_queued_and_for_the_work(desk):
    submission.submit_launch(desk.db, SETTINGS, LaunchRequest(4, 60, queue="debug"), desk.scheduler)
    desk.add(4, wall_time_minutes=50)
    assert desk.turns() == 0
    desk.add(40, wall_time_minutes=50)
    assert desk.turns() == 1


@pytest.mark.parametrize(
    ("values", "more"),
    [({}, 0), ({"wf_filter": "mine"}, 0), ({"wf_filter": "other"}, 1), ({"filter_tags": {"k": "v"}}, 1), ({"nodes": 1}, 1),
     ({"wall_minutes": 40}, 1), ({"prescheduled_only": True}, 1)],
)  # fmt: skip
def test_a_users_launch_counts_only_for_jobs_that_it_would_take(desk, values, more):
    request = LaunchRequest(**{"nodes": 4, "wall_minutes": 60, "queue": "debug", **values})
    submission.submit_launch(desk.db, SETTINGS, request, desk.scheduler)
    desk.add(4, wall_time_minutes=50, workflow="mine")
    assert desk.turns() == more


def test_jobs_of_other_launchers_are_no_demand(desk):
    desk.add(4, wall_time_minutes=50)
    desk.run_some(3, "")
    assert desk.turns() == 1
    assert desk.rows()[0]["nodes"] == 1


def test_a_running_launch_covers_only_what_it_still_has_time_for(desk):
    desk.add(8, wall_time_minutes=25)
    assert desk.turns() == 1
    assert (desk.rows()[0]["nodes"], desk.rows()[0]["wall_minutes"]) == (4, 52)
    desk.scheduler.says("1001", base.RUNNING, started_us=desk.clock.now_us())
    desk.service.turn()
    desk.run_some(4, "1001")
    desk.clock.sleep(5 * 60)
    desk.add(1, wall_time_minutes=25)
    assert desk.turns() == 1, "its nodes are taken until its time is up"
    desk.add(1, wall_time_minutes=1)
    assert desk.turns() == 0, "a short one fits behind the others"


def test_jobs_that_nobody_settles_get_a_launch(desk):
    desk.add(2)
    user_actions.set_state(desk.db, [1, 2], "JOB_FINISHED")
    assert desk.turns() == 0
    user_actions.set_state(desk.db, [1], "RUN_DONE")
    assert desk.turns() == 1
    assert desk.turns() == 0


def test_mpi_jobs_are_launched_in_mpi_mode(desk):
    desk.add(1, num_nodes=2, ranks_per_node=4)
    assert desk.turns() == 1
    assert (desk.rows()[0]["job_mode"], desk.rows()[0]["nodes"]) == ("mpi", 2)
    desk.add(3, ranks_per_node=1, wall_time_minutes=30)
    assert desk.turns() == 1
    assert desk.rows()[1]["job_mode"] == "serial"


def test_what_fits_nowhere_is_said_once_and_again_when_the_reason_is_another(desk, caplog):
    caplog.set_level(logging.INFO, "balsam_lite.service")
    desk.add(1, num_nodes=99)
    for _ in range(3):
        assert desk.turns() == 0
    reason = "needs 99 nodes; the policy allows 4 at most"
    assert [reason in record.message for record in caplog.records] == [True]
    assert reason in desk.note()["reasons"][0]
    desk.add(5, num_nodes=99)
    assert desk.turns() == 0
    assert len(caplog.records) == 1
    user_actions.set_state(desk.db, range(1, 7), "USER_KILLED")
    desk.turns()
    assert desk.note()["reasons"] == []
    desk.add(1, num_nodes=99)
    desk.turns()
    assert len(caplog.records) == 2


def test_a_reason_is_not_said_again_with_each_launch(desk, caplog):
    desk.add(1, num_nodes=99)
    desk.add(1000, wall_time_minutes=50)
    assert desk.turns() == 2
    assert sum("needs 99 nodes" in record.message for record in caplog.records) == 1


def test_a_turn_with_nothing_new_writes_nothing_but_heartbeats(desk):
    desk.add(2)
    desk.turns()
    with desk.db.read() as cx:
        before = cx.execute("PRAGMA data_version").fetchone()
    desk.turns()
    with desk.db.read() as cx:
        assert cx.execute("PRAGMA data_version").fetchone() == before


# --- the policy file --------------------------------------------------------------------------------------------------


def policy_text(most, name="debug", more=""):
    ranges = '[{"min-nodes": 1, "max-nodes": 4, "min-time": 0, "max-time": 1}]'
    return f"[{name}]\nsubmit-jobs = on\npolicy = {ranges}\nmax-queued = {most}\n{more}"


class PolicyDesk(Desk):
    """A service whose policy is in a file."""

    def __init__(self, directory, monkeypatch, most):
        super().__init__(directory, monkeypatch)
        self.path = Path(self.db.directory, "policy.ini")
        self.path.write_text(policy_text(most))
        self.file = PolicyFile(self.db.directory, SETTINGS)
        self.service = Service(
            self.db, SETTINGS, self.file.queues, self.scheduler, self.lease, self.clock, "/the/log", self.file
        )


@pytest.fixture
def edited(tmp_path, monkeypatch):
    made = PolicyDesk(tmp_path, monkeypatch, 1)
    made.add(1000, wall_time_minutes=50)
    yield made
    made.db.close()


def test_a_changed_policy_holds_from_the_next_turn_on(edited):
    assert edited.turns() == 1
    edited.path.write_text(policy_text(3))
    assert edited.turns() == 2
    edited.path.write_text(policy_text(1))
    edited.scheduler.says("1001", base.FINISHED)
    edited.run_some(4, "1001")
    assert edited.turns() == 0
    edited.path.write_text(policy_text(9).replace("= on", "= off"))
    assert edited.turns() == 0


@pytest.mark.parametrize(
    "broken",
    [
        "", "\n", policy_text(9)[:-3], policy_text(9)[:60], policy_text("many"), "{}",
        policy_text(9).replace("max-nodes", "most"),
        policy_text(9, more="[debug]\n"), "\0", policy_text(9) + "[next]\nsubmit-jobs = on\n",
    ],
)  # fmt: skip
def test_the_last_good_policy_holds_while_the_file_is_broken_and_that_is_said_once(edited, caplog, broken):
    caplog.set_level(logging.INFO)
    edited.path.write_text(broken)
    for _ in range(3):
        edited.turns()
        edited.clock.sleep(60)
    assert len(edited.rows()) == 1
    said = [record.message for record in caplog.records if "last good policy" in record.message]
    assert len(said) == 1
    assert str(edited.path) in said[0]
    assert "last good policy" in edited.note()["error"]
    edited.path.write_text(policy_text(2))
    assert edited.turns() == 1
    assert "can be read again" in caplog.text


def test_the_policy_of_the_home_does_not_stand_in_for_a_file_that_is_being_replaced(edited, caplog):
    home = Path(os.environ["BALSAM_HOME"])
    home.mkdir(exist_ok=True)
    (home / "policy.ini").write_text(policy_text(9))
    edited.path.unlink()
    assert edited.turns() == 1
    assert "not there any more" in edited.note()["error"]
    edited.path.with_suffix(".new").write_text(policy_text(2))
    edited.path.with_suffix(".new").rename(edited.path)
    assert edited.turns() == 1


@pytest.mark.parametrize("what", ["directory", "dangling link", "bytes"])
def test_what_is_no_text_file_is_no_policy(edited, what):
    edited.path.unlink()
    if what == "directory":
        edited.path.mkdir()
    elif what == "dangling link":
        edited.path.symlink_to("nowhere")
    else:
        edited.path.write_bytes(b"\xff\xfe" + policy_text(9).encode("utf-16-le"))
    assert edited.turns() == 1
    assert "last good policy" in edited.note()["error"]


def test_every_half_of_a_policy_that_is_written_in_place_allows_no_more_than_the_whole(edited):
    whole = policy_text(2, more=policy_text(20, "wide"))
    for length in range(len(whole) + 1):
        edited.path.write_text(whole[:length])
        edited.service.reread_policy()
        assert {queue.name: queue.max_queued for queue in edited.service._queues if queue.name == "debug"}["debug"] <= 2
    assert [queue.max_queued for queue in edited.service._queues] == [2, 20]


# --- when it goes wrong -----------------------------------------------------------------------------------------------


def test_a_scheduler_that_does_not_answer_changes_nothing(desk):
    desk.add(1)
    assert desk.turns() == 1
    before = desk.rows()
    desk.scheduler.silent = True
    desk.add(1000, wall_time_minutes=50)
    assert desk.turns() == 0
    assert desk.rows() == before
    assert desk.note()["error"].startswith("no answer")
    desk.scheduler.silent = False
    assert desk.turns() == 1


def test_a_refused_launch_is_tried_again_after_longer_and_longer_pauses(desk):
    desk.scheduler.refuses = {"debug"}
    desk.add(1)
    times = []
    for _ in range(4000):
        before = [row["tries"] for row in desk.rows()]
        desk.turns()
        if [row["tries"] for row in desk.rows()] != before:
            times.append(desk.clock.now)
        desk.clock.sleep(1)
    assert [round(b - a) for a, b in zip(times, times[1:])][:8] == [20, 40, 80, 160, 320, 600, 600, 600]
    assert [(row["state"], row["tries"]) for row in desk.rows()] == [("submission-failed", len(times))]
    assert desk.planned() == {}
    assert "debug refuses" in desk.note()["error"]
    assert "no such queue" in desk.note()["error"]
    assert "debug refuses" in desk.note()["reasons"][0]


def test_another_queue_is_taken_while_one_refuses(tmp_path, monkeypatch):
    desk = Desk(tmp_path, monkeypatch, (DEBUG, WIDE))
    desk.scheduler.refuses = {"debug"}
    desk.add(1)
    assert desk.turns() == 0
    desk.clock.sleep(1)
    assert desk.turns() == 1
    assert [row["queue"] for row in desk.rows()] == ["debug", "wide"]
    desk.db.close()


def test_a_broken_job_template_costs_no_row_and_is_told(desk):
    Path(desk.db.directory, "local.tmpl").write_text("#!/bin/sh\n{{ nonsense }}\n")
    desk.add(1)
    assert desk.turns() == 0
    assert desk.rows() == []
    assert "nonsense" in desk.note()["error"]


def test_launches_that_do_nothing_are_not_repeated_without_end(desk):
    desk.add(1)
    submitted = 0
    for _ in range(3600):
        submitted += desk.turns()
        desk.scheduler.statuses = {key: BatchStatus(key, base.FAILED) for key in desk.scheduler.statuses}
        desk.clock.sleep(1)
    assert 6 <= submitted <= 12
    assert "ended without a run of any job planned for it" in desk.note()["error"]
    assert desk.planned() in ({}, {submitted: 1})


def test_jobs_that_no_launcher_can_take_get_few_launches_and_keep_no_others_waiting(desk):
    desk.add(1, gpus_per_rank=8)
    note = Taker("", demand.Scope(), (NodeKind(1, None, 0),)).as_note(None)

    def pass_hours(hours):
        submitted = 0
        for _ in range(hours * 120):
            submitted += desk.turns()
            for number in desk.scheduler.statuses:
                with desk.db.write() as cx:
                    lease = leases.open_lease(cx, "launcher", Holder.current(), number, desk.clock.now_us())
                    leases.close_lease(cx, lease, desk.clock.now_us(), "nothing to do", note)
            desk.scheduler.statuses = {key: BatchStatus(key, base.FINISHED) for key in desk.scheduler.statuses}
            desk.clock.sleep(30)
        return submitted

    assert 4 <= pass_hours(2) <= 9
    assert "needs 8 GPUs per node" in desk.note()["reasons"][0]
    desk.add(1)
    assert desk.turns() == 1
    assert list(desk.planned().values()) == [1]


def test_a_launch_that_did_something_ends_the_pauses(desk):
    desk.add(3)
    assert desk.turns() == 1
    desk.scheduler.says("1001", base.FAILED)
    assert desk.turns() == 0
    desk.clock.sleep(21)
    assert desk.turns() == 1
    lease, _ = desk.run_some(1, "1002")
    desk.scheduler.says("1002", base.TIMED_OUT)
    with desk.db.write() as cx:
        leases.close_lease(cx, lease, 1, "")
    assert desk.turns() == 1


def test_launches_that_do_not_even_tidy_up_are_not_repeated_without_end(desk):
    desk.add(1)
    user_actions.set_state(desk.db, [1], "RUN_DONE")
    submitted = 0
    for _ in range(120):
        submitted += desk.turns()
        desk.scheduler.statuses = {key: BatchStatus(key, base.FAILED) for key in desk.scheduler.statuses}
        desk.clock.sleep(1)
    assert submitted == 3
    assert desk.planned() == {}


def test_a_launch_that_tidied_up_ends_the_pauses(desk):
    desk.add(1)
    user_actions.set_state(desk.db, [1], "RUN_DONE")
    assert desk.turns() == 1
    desk.run_some(0, "1001.host")
    desk.scheduler.says("1001", base.FINISHED)
    assert desk.turns() == 1, "it is not left alone, though the work is still there"


def test_pauses_stay_as_long_as_they_are_after_a_thousand_failures(desk):
    for _ in range(1100):
        desk.service._pause("debug", "it fails")
    assert desk.service._pauses["debug"].until == desk.clock.monotonic() + 600


def test_a_setting_that_turns_out_wrong_at_submission_is_a_pause_and_not_the_end(desk, monkeypatch):
    monkeypatch.setattr(desk.service, "_may_mix", lambda: (_ for _ in ()).throw(SettingsError("MPIRUN makes no sense")))
    launch = packer.Launch("debug", 2, 30, "mixed", ())
    assert not desk.service.submit(launch)
    assert "MPIRUN makes no sense" in desk.service._note["error"]


def test_a_launch_that_is_queued_again_has_all_its_time(desk):
    desk.add(4, wall_time_minutes=25)
    assert desk.turns() == 1
    with desk.db.read() as cx:
        (row,) = queries.open_batch_jobs(cx, "fake")
        row.update(state=base.QUEUED, started=desk.clock.now_us() - 20 * 60 * SECOND_US)
        supply = loop._supply(cx, row, [], [], 2, desk.clock.now_us())
    assert supply.minutes == row["wall_minutes"] - 2


def test_a_vanished_launch_gives_its_jobs_back_once_and_they_get_another(desk):
    desk.add(4)
    assert desk.turns() == 1
    user_actions.set_state(desk.db, [1], "JOB_FINISHED")
    del desk.scheduler.statuses["1001"]
    assert desk.turns() == 0
    desk.clock.sleep(ABSENCE_TIMEOUT_S)
    assert desk.turns() == 1
    assert [row["state"] for row in desk.rows()] == ["gone", "queued"]
    assert desk.planned() == {1: 1, 2: 3}


ONE = DEBUG._replace(max_queued=1)


@pytest.mark.parametrize("listed_after_s", [3, 110])
def test_a_launch_that_the_scheduler_lists_late_is_submitted_once(tmp_path, monkeypatch, listed_after_s):
    desk = Desk(tmp_path, monkeypatch, (ONE,))
    desk.add(1000, wall_time_minutes=50)
    submitted = {}
    poll = desk.scheduler.poll

    def lagging(ids):
        for native_id in ids:
            submitted.setdefault(native_id, desk.clock.now)
        return {key: it for key, it in poll(ids).items() if desk.clock.now - submitted[key] >= listed_after_s}

    desk.scheduler.poll = lagging
    for _ in range(40):
        desk.turns()
        desk.clock.sleep(8)
    assert [(row["state"], row["absent"]) for row in desk.rows()] == [("queued", None)]


def test_a_running_launch_that_one_answer_leaves_out_goes_on_to_count_and_keeps_its_jobs(tmp_path, monkeypatch):
    desk = Desk(tmp_path, monkeypatch, (ONE,))
    desk.add(1000, wall_time_minutes=50)
    assert desk.turns() == 1
    desk.scheduler.says("1001", base.RUNNING, started_us=desk.clock.now_us())
    assert desk.turns() == 0
    planned = desk.planned()
    status = desk.scheduler.statuses.pop("1001")
    for _ in range(4):
        desk.clock.sleep(10)
        assert desk.turns() == 0
    assert (desk.rows()[0]["state"], desk.planned()) == ("running", planned)
    assert "1 of 1 launches are queued or running" in desk.note()["reasons"][0]
    desk.scheduler.statuses["1001"] = status
    assert desk.turns() == 0
    assert [(row["state"], row["ended"], row["absent"]) for row in desk.rows()] == [("running", None, None)]
    desk.db.close()


def test_a_launch_that_was_gone_counts_again_when_it_shows_up(tmp_path, monkeypatch):
    desk = Desk(tmp_path, monkeypatch, (ONE,))
    desk.add(1000, wall_time_minutes=50)
    assert desk.turns() == 1
    desk.run_some(1, "1001")
    status = desk.scheduler.statuses.pop("1001")
    desk.turns()
    desk.clock.sleep(ABSENCE_TIMEOUT_S)
    assert desk.turns() == 1
    desk.scheduler.statuses["1001"] = status
    desk.scheduler.says("1002", base.FINISHED)
    desk.clock.sleep(300)
    assert desk.turns() == 0
    assert [row["state"] for row in desk.rows()] == ["queued", "finished"]
    desk.db.close()


def test_a_refused_launch_is_one_row_also_when_it_has_grown_meanwhile(desk):
    desk.scheduler.refuses = {"debug"}
    desk.add(1)
    desk.turns()
    desk.add(100, wall_time_minutes=50)
    desk.clock.sleep(60)
    desk.turns()
    assert [(row["nodes"], row["tries"]) for row in desk.rows()] == [(4, 2)]
    desk.scheduler.refuses = set()
    desk.clock.sleep(60)
    assert desk.turns() == 2
    assert [(row["id"], row["tries"]) for row in desk.rows()] == [(1, 3), (2, 1)]


def test_jobs_of_dead_launchers_are_freed(desk):
    desk.add(1)
    _, (claim,) = desk.run_some(1, "")
    with desk.db.write() as cx:
        cx.execute("UPDATE lease SET started = '1' WHERE kind = 'launcher'")  # another process has its pid now
    assert desk.turns() == 1
    with desk.db.read() as cx:
        assert cx.execute("SELECT state, lease FROM job WHERE id = ?", (claim.job,)).fetchone() == ("RESTART_READY", None)


def test_an_uncertain_submission_is_found_again_or_given_up_but_never_doubled(desk):
    desk.scheduler.uncertain = True
    desk.add(4)
    assert desk.turns() == 1
    assert desk.rows()[0]["state"] == "pending-submission"
    desk.scheduler.uncertain = False
    desk.scheduler.says("1001", base.QUEUED)
    assert desk.turns() == 0
    assert desk.rows()[0]["scheduler_id"] == "1001"


def test_a_submission_that_never_arrived_is_given_up_and_made_anew(desk):
    desk.scheduler.uncertain = desk.scheduler.hides = True
    desk.add(4)
    assert desk.turns() == 1
    desk.scheduler.uncertain = False
    assert desk.turns() == 0
    desk.clock.sleep(SUBMISSION_TIMEOUT_S - 1)
    assert desk.turns() == 0
    desk.clock.sleep(2)
    assert desk.turns() == 1
    assert [row["state"] for row in desk.rows()] == ["submission-failed", "queued"]
    assert desk.planned() == {2: 4}


def test_a_service_whose_lease_was_taken_submits_nothing(desk):
    desk.add(1)
    asked = desk.service.refresh
    successor = []

    def and_then_sleep_too_long():
        found = asked()
        with desk.db.write() as cx:
            leases.close_lease(cx, desk.lease, 1, "dead")
        successor.append(1)
        return found

    desk.service.refresh = and_then_sleep_too_long
    with pytest.raises(LostLease):
        desk.service.turn()
    assert successor
    assert desk.scheduler.submitted == []


def test_the_service_lets_jobs_start_that_were_held_back_as_no_launcher_may_be_there(desk):
    desk.add()
    with desk.db.write() as cx:
        cx.execute("UPDATE job SET start_after = ?", (desk.clock.now_us() + 60 * SECOND_US,))
    assert desk.turns() == 0
    desk.clock.sleep(61)
    assert desk.turns() == 1


def test_the_service_completes_what_a_process_that_is_gone_has_left_of_a_large_write(desk, monkeypatch):
    monkeypatch.setattr(large_writes, "JOBS_PER_PART", 1)
    monkeypatch.setattr(pieces, "PIECE_S", 0)
    desk.add(6, wait_for_parents=1)
    with desk.db.write() as cx:
        parameters = {"state": "JOB_FINISHED", "said": ("", "", None, None), "by": actions.begin(cx, actions.MODIFY)}
        part = large_writes.Part("set_state", parameters, list(range(1, 7)))
        large_writes.store(cx, large_writes.rows_of([part]), 6, None)
    assert desk.turns() == 0
    with desk.db.read() as cx:
        assert select.count_states(cx) == {"JOB_FINISHED": 6}
        assert not large_writes.is_any(cx)
    assert "completed a change of very many jobs" in desk.note()["action"]


def test_the_service_ends_when_a_shared_db_is_gone_for_long(desk, monkeypatch):
    from balsam_lite.core.errors import DatabaseBusy

    def broken():
        raise DatabaseBusy("busy")

    monkeypatch.setattr(desk.db, "write", broken)
    monkeypatch.setattr(desk.db, "access", "shared")
    started = desk.clock.now
    with pytest.raises(LostLease, match="could not be used"):
        desk.service.run(desk.clock.sleep)
    assert SETTINGS.LEASE_EXPIRY_S <= desk.clock.now - started < SETTINGS.LEASE_EXPIRY_S + 30


def test_the_service_goes_on_while_the_disk_of_a_local_db_is_full(desk, monkeypatch):
    from balsam_lite.core.errors import DatabaseFull

    def full():
        raise DatabaseFull("The disk is full")

    write = desk.db.write
    monkeypatch.setattr(desk.db, "write", full)
    end = desk.clock.now + 5 * SETTINGS.LEASE_EXPIRY_S

    def wait(seconds):
        desk.clock.sleep(seconds)
        if desk.clock.now > end:
            monkeypatch.setattr(desk.db, "write", write)
            desk.service.stop("told to")

    desk.service.run(wait)
    with desk.db.read() as cx:
        assert "The disk is full" in cx.execute("SELECT note FROM lease").fetchone()[0]


def test_the_service_stops_when_the_db_was_removed(desk):
    desk.add(1)
    os.rename(desk.db.directory, f"{desk.db.directory}.removed")
    with pytest.raises(LostLease, match="removed"):
        desk.service.turn()
    assert not os.path.exists(desk.db.directory)
    assert desk.scheduler.submitted == []


def test_the_service_ends_quietly_when_the_db_is_gone_before_its_last_word(desk):
    desk.service.stop("signal SIGTERM")
    desk.add(1)
    os.rename(desk.db.directory, f"{desk.db.directory}.removed")
    assert main._run(desk.service) == 1
    assert not desk.service.holds_lease


def test_the_service_stops_when_another_db_lies_there_and_leaves_that_ones_leases_alone(desk):
    os.rename(desk.db.directory, f"{desk.db.directory}.removed")
    other = directories.create(desk.db.directory)
    with other.write() as cx:
        assert leases.open_lease(cx, "launcher", Holder("elsewhere", "", 1, "1"), "", 1) == desk.lease
    with pytest.raises(LostLease, match="replaced"):
        desk.service.turn()
    assert main._run(desk.service) == 1
    assert not desk.service.holds_lease
    with other.read() as cx:
        assert [lease.heartbeat_us for lease in leases.open_leases(cx)] == [1]
    other.close()


def test_a_db_that_only_has_another_number_is_used_on(desk):
    copy = f"{desk.db.path}.copy"
    desk.db.close()
    Path(copy).write_bytes(Path(desk.db.path).read_bytes())
    os.replace(copy, desk.db.path)
    desk.db.access = filesystem.SHARED  # on a local disk it is a copy
    desk.add(1)
    assert desk.turns() == 1


def test_the_eldest_living_one_keeps_the_checkpoints(desk, monkeypatch):
    kept = []
    monkeypatch.setattr(desk.db, "own_checkpoints", kept.append)
    with desk.db.write() as cx:
        cx.execute("UPDATE lease SET id = 9")
        elder = leases.open_lease(cx, "launcher", Holder.current(), "", desk.clock.now_us())
        cx.execute("UPDATE lease SET id = 5 WHERE id = ?", (elder,))
    desk.service._lease = 9
    desk.service.beat(even_if_early=True)
    with desk.db.write() as cx:
        leases.close_lease(cx, 5, desk.clock.now_us(), "")
    desk.service.beat(even_if_early=True)
    assert kept == [False, True]


def test_a_lock_file_that_cannot_be_made_is_a_db_that_cannot_be_written(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(DatabaseReadOnly), main._alone(str(tmp_path)):
        pass


def test_it_rests_between_turns_and_beats_meanwhile(desk):
    rests = []

    def wait(seconds):
        rests.append(seconds)
        desk.clock.sleep(seconds)
        if len(rests) == 3:
            desk.service.stop("the test is over")

    desk.add(1)
    desk.service.run(wait)
    assert rests == [10.0, 10.0, 10.0]
    with desk.db.read() as cx:
        record = leases.latest(cx, loop.KIND)
    assert record.lease.heartbeat_us == desk.clock.now_us()
    assert desk.service.stop_reason == "the test is over"


#: A service whose scheduler keeps its queue in a directory, and dies where the test says.
CRASHING = """
import os, sys
from balsam_lite.core.clock import SystemClock
from balsam_lite.db.engine import directories
from balsam_lite.db.store import leases
from balsam_lite.core.process_table import Holder
from balsam_lite.schedulers.base import BatchStatus, QUEUED
from balsam_lite.service.loop import Service
from balsam_lite.service.policy import PolicyFile, Queue, Range
from balsam_lite.core.settings import Settings, SettingsWarning

directory, queue, moment = sys.argv[1:]

class Scheduler:
    name, template, domain, timeout_s = "FakeScheduler", "local.tmpl", "fake", 60.0
    def submit(self, what):
        if moment == "before": os.kill(os.getpid(), 9)
        with open(os.path.join(queue, what.name), "x"): pass
        if moment == "after": os.kill(os.getpid(), 9)
        return what.name
    def poll(self, ids): return {one: BatchStatus(one, QUEUED) for one in ids if one in os.listdir(queue)}
    def find(self, what, since_us): return what.name if what.name in os.listdir(queue) else None

db = directories.open_database(directory)
with db.write() as cx:
    lease = leases.open_lease(cx, "service", Holder.current(), "", SystemClock.now_us())
queues = (Queue("debug", True, 2, (Range(1, 4, 1, 60),)),)
service = Service(db, Settings(), queues, Scheduler(), lease, SystemClock())
while service.turn(): pass
"""


@pytest.mark.parametrize(("moment", "at_once"), [("after", 1), ("before", 0)])
def test_kill_9_around_the_submission_neither_loses_nor_doubles_it(desk, tmp_path, moment, at_once):
    queue = tmp_path / "queue"
    queue.mkdir()
    desk.add(4)

    def run(when):
        return subprocess.run([sys.executable, "-c", CRASHING, desk.db.directory, str(queue), when], timeout=60).returncode

    assert run(moment) == -signal.SIGKILL
    assert desk.rows()[0]["state"] == "pending-submission"
    assert desk.planned() == {1: 4}
    for _ in range(2):
        assert run("never") == 0
        assert len(os.listdir(queue)) == at_once, "what may be on its way is not submitted again"
    late_us = (SUBMISSION_TIMEOUT_S + 1) * SECOND_US
    if moment == "before":  # two minutes later no process is submitting it any more
        with desk.db.write() as cx:
            cx.execute("UPDATE batch_job SET created = created - :us, absent = absent - :us", {"us": late_us})
        assert run("never") == 0
    assert len(os.listdir(queue)) == 1
    assert [row["state"] for row in desk.rows() if row["ended"] is None] == ["queued"] or moment == "before"
    assert sum(desk.planned().values()) == 4


# --- what it would do -------------------------------------------------------------------------------------------------


def test_a_rehearsal_is_what_the_service_then_does(tmp_path, monkeypatch):
    desk = Desk(tmp_path, monkeypatch, (DEBUG, WIDE))
    desk.add(30, wall_time_minutes=50)
    desk.add(2, num_nodes=99)
    desk.add(8, num_nodes=2, ranks_per_node=3, wall_time_minutes=7)
    planned = loop.dry_run(desk.db, SETTINGS, desk.queues, "fake", desk.clock.now_us())
    assert desk.rows() == []
    assert desk.planned() == {}
    desk.turns()
    done = [(row["queue"], row["nodes"], row["wall_minutes"], row["job_mode"]) for row in desk.rows()]
    assert [launch[:4] for launch in planned.launches] == done
    assert loop.reasons(planned.misfits)[0].endswith("needs 99 nodes; the policy allows 64 at most")
    desk.db.close()


# --- the command ------------------------------------------------------------------------------------------------------

POLICY = """[local]
submit-jobs = on
max-queued = 2
policy = [{"min-nodes": 1, "max-nodes": 2, "min-time": 0, "max-time": 1}]
"""


@pytest.fixture
def bench(tmp_path, balsam_argv):
    made = CommandBench(tmp_path, balsam_argv)
    yield made
    made.balsam("service", "stop")
    made.close()


class CommandBench(Bench):
    """A bench with the `balsam` command."""

    def __init__(self, directory, argv):
        super().__init__(directory, BALSAM_SERVICE_PERIOD="1", BALSAM_SCHEDULER_CLASS="LocalScheduler")
        self.argv = argv
        Path(self.directory, "policy.ini").write_text(POLICY)
        self.app("hello", "echo hello")

    def balsam(self, *words, **environ):
        command = [*self.argv, "--db", self.directory, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=90, env={**self.environ, **environ})

    def status(self):
        return json.loads(self.balsam("service", "status", "--json").stdout)

    def rows(self):
        with self.db.read() as cx:
            return select.batch_job_rows(cx)


def test_the_service_runs_the_jobs_and_then_submits_nothing_more(bench):
    started = bench.balsam("service", "start")
    assert started.returncode == 0, started.stderr
    pid = bench.status()["pid"]
    assert started.stdout.startswith(f"Starting Balsam service [{pid}], log in {bench.directory}/log/service_")
    assert os.getsid(pid) == pid, "it has left the terminal"
    second = bench.balsam("service", "start")
    assert second.returncode == 1
    assert second.stderr.startswith("Error: Another service is currently running on this Balsam DB\n")
    assert bench.balsam("service").returncode == 1
    bench.add([{"application": "hello", "name": f"j{n}"} for n in range(20)])
    wait_until(lambda: bench.states().get("JOB_FINISHED") == 20, 60)
    wait_until(lambda: all(row["ended"] for row in bench.rows()), 60)
    launches = len(bench.rows())
    assert 1 <= launches <= 2
    seen = bench.status()
    wait_until(lambda: bench.status()["heartbeat_age_s"] < 5)
    assert (seen["state"], seen["host"], seen["last_error"]) == ("running", os.uname().nodename, "")
    bench.add([{"application": "hello"}])
    wait_until(lambda: bench.states().get("JOB_FINISHED") == 21, 60)
    assert len(bench.rows()) == launches + 1
    shown = bench.balsam("service", "status")
    assert shown.returncode == 0
    assert "Service: running\n" in shown.stdout
    stopped = bench.balsam("service", "stop")
    assert stopped.stderr == f"Stopped the service (pid {pid}).\n"
    after = bench.status()
    assert (after["state"], after["end_reason"]) == ("stopped", "signal SIGTERM")
    assert bench.balsam("service", "status").returncode == 1
    log = Path(after["log"]).read_text()
    assert "Submitted qlaunch1" in log
    assert "Traceback" not in log


def test_a_killed_service_is_told_as_dead_and_another_can_start(bench):
    assert bench.status() == {"state": "none"}
    assert bench.balsam("service", "stop").stderr == "No service is running on this Balsam DB.\n"
    assert bench.balsam("service", "start").returncode == 0
    pid = bench.status()["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: bench.status()["state"] == "dead")
    assert bench.balsam("service", "start").returncode == 0
    assert bench.status()["state"] == "running"
    assert bench.status()["pid"] != pid


def test_it_does_not_start_with_a_broken_policy_and_says_why(bench):
    Path(bench.directory, "policy.ini").write_text(POLICY.replace("on", "perhaps"))
    for words in (("service", "start"), ("service",), ("service", "--dry-run")):
        done = bench.balsam(*words)
        assert done.returncode in (1, 2)
        assert f"Error: {bench.directory}/policy.ini, [local]: submit-jobs must be on or off, not 'perhaps'" in done.stderr
    assert bench.status() == {"state": "none"}


def test_the_foreground_service_logs_to_stderr_and_ends_with_a_signal(bench):
    log = open(f"{bench.directory}/stderr", "wb")
    process = subprocess.Popen([*bench.argv, "--db", bench.directory, "service"], stderr=log, env=bench.environ)
    log.close()
    try:
        wait_until(lambda: b"Lease 1: the service for" in Path(bench.directory, "stderr").read_bytes())
        wait_until(lambda: bench.status()["state"] == "running")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert bench.status()["end_reason"] == "signal SIGINT"
    assert b"The service ends: signal SIGINT" in Path(bench.directory, "stderr").read_bytes()


def test_a_service_started_inside_a_job_is_no_part_of_it(bench):
    assert bench.balsam("service", "start", BALSAM_RUN="/db:1:1:1", BALSAM_JOB_ID="x").returncode == 0
    environ = Path(f"/proc/{bench.status()['pid']}/environ").read_bytes()
    assert b"BALSAM_RUN=" not in environ
    assert b"BALSAM_JOB_ID=" not in environ


def test_a_dry_run_says_what_would_be_submitted_and_changes_nothing(bench):
    bench.add([{"application": "hello", "wall_time_minutes": 9}, {"application": "hello", "num_nodes": 7}])
    before = content(bench)
    done = bench.balsam("service", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"Policy: {bench.directory}/policy.ini",
        "Would submit: 1 node(s) for 11 minutes in queue local, serial mode, for 1 job(s)",
        "Fits nowhere: jobs like num_nodes=7 ranks_per_node=1 node_packing_count=1 gpus_per_rank=0:"
        " needs 7 nodes; the policy allows 2 at most",
    ]
    found = json.loads(bench.balsam("service", "--dry-run", "--json").stdout)
    assert [(launch["queue"], launch["nodes"], launch["minutes"]) for launch in found["launches"]] == [("local", 1, 11)]
    assert found["misfits"][0]["reason"] == "needs 7 nodes; the policy allows 2 at most"
    assert bench.rows() == []
    assert bench.status() == {"state": "none"}
    assert not Path(bench.directory, main.LOCK).exists()
    assert content(bench) == before


def content(bench):
    """The whole DB as text."""
    with bench.db.read() as cx:
        return list(cx.iterdump())


@pytest.mark.parametrize("words", [("status", "--dry-run"), ("--json",), ("start", "--json"), ("restart",)])
def test_words_that_make_no_sense_together_are_refused(bench, words):
    assert bench.balsam("service", *words).returncode == 2


# --- one for each DB --------------------------------------------------------------------------------------------------


def test_of_two_at_the_same_moment_one_is_refused(bench):
    commands = [
        subprocess.Popen([*bench.argv, "--db", bench.directory, "service", "start"], stdout=-3, stderr=-3, env=bench.environ)
        for _ in range(4)
    ]
    assert sorted(command.wait(60) for command in commands) == [0, 1, 1, 1]


def test_a_service_of_another_host_keeps_a_second_one_out_until_its_lease_expires(desk):
    with desk.db.write() as cx:
        leases.close_lease(cx, desk.lease, 1, "")
        elsewhere = leases.open_lease(cx, loop.KIND, Holder("elsewhere", "", 1, "1"), "", SystemClock.now_us())
    with pytest.raises(AnotherService) as caught:
        main._open_lease(desk.db, SETTINGS, desk.clock)
    assert "process 1 on elsewhere" in caught.value.hint
    settings, stop = SETTINGS._replace(LEASE_EXPIRY_S=3.0), threading.Event()

    def live() -> None:
        while True:
            with desk.db.write() as cx:
                leases.heartbeat(cx, elsewhere, SystemClock.now_us() - 600 * SECOND_US)
            if stop.wait(0.2):
                desk.db.close()
                return

    holder = threading.Thread(target=live)
    holder.start()
    try:
        wait_until(lambda: main.status(desk.db.directory)["state"] == "silent")
        with pytest.raises(AnotherService), pytest.warns(SettingsWarning, match="whether service 2 .* still lives"):
            main._open_lease(desk.db, settings, desk.clock)
    finally:
        stop.set()
        holder.join()
    assert main.status(desk.db.directory)["last_sign"] == "no sign of life for 10 min by the clock of elsewhere"
    with pytest.warns(SettingsWarning):
        assert main._open_lease(desk.db, settings, desk.clock) > elsewhere


def test_stop_takes_the_lease_of_a_service_on_another_host(desk):
    with desk.db.write() as cx:
        leases.open_lease(cx, loop.KIND, Holder("elsewhere", "", 1, "1"), "", desk.clock.now_us())
    assert main.stop(desk.db.directory).startswith("The service on elsewhere (pid 1) is to end")
    with desk.db.read() as cx:
        assert leases.latest(cx, loop.KIND).end_reason == "stopped by the user"


def test_init_gives_a_policy_that_works_and_keeps_the_users_own(tmp_path, balsam_argv):
    directory = str(tmp_path / "new")
    for _ in range(2):
        assert subprocess.run([*balsam_argv, "init", directory], capture_output=True, timeout=60).returncode == 0
    found = Path(directory, "policy.ini")
    assert "[local]" in found.read_text()
    found.write_text(POLICY)
    assert subprocess.run([*balsam_argv, "init", directory], capture_output=True, timeout=60).returncode == 0
    assert found.read_text() == POLICY
    found.unlink()
    with pytest.raises(SettingsError):
        main.run_service(directory)


def test_the_index_of_held_jobs_is_what_a_survey_reads(desk):
    """A survey must not read waiting rows one by one: it takes the same steps for thirty times the jobs."""

    def steps():
        counted = []
        with desk.db.read() as cx:
            cx.set_progress_handler(lambda: counted.append(1) and None, 10)
            demand.held_node_minutes(cx, [desk.lease], 5)
            demand.of_launch(cx, 1)
            demand.has_unsettled(cx)
            cx.set_progress_handler(None, 10)
        return len(counted)

    desk.add(100, wall_time_minutes=3)
    few = steps()
    desk.add(3000, wall_time_minutes=3)
    assert steps() <= few + 5
    with desk.db.read() as cx:
        assert demand.startable(cx)[0].shape == Shape(1, 1, 1, 0)


def test_the_end_of_a_launch_without_a_launcher_is_told(tmp_path, monkeypatch):
    told = tmp_path / "told"
    desk = Desk(tmp_path, monkeypatch, settings=SETTINGS._replace(ON_EVENT=f"cat >> {told}; echo >> {told}"))
    desk.add(1)
    assert desk.turns() == 1
    desk.scheduler.statuses = {key: BatchStatus(key, base.FAILED, reason="no such account") for key in desk.scheduler.statuses}

    def is_told():
        desk.clock.sleep(3)
        desk.turns()
        return told.exists() and told.read_text().strip()

    notification = json.loads(wait_until(is_told).splitlines()[0])
    assert notification["event"] == "launch-ended"
    assert notification["launches"][0]["launch"] == "qlaunch1"
    assert notification["launches"][0]["nodes"] >= 1
    assert notification["launches"][0]["reason"].startswith("no launcher started; failed")
    desk.service.notifier.close()
    desk.db.close()
