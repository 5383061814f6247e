"""What the program expects of every scheduler, tried on all of them: the local queue, a real Slurm, the same through PBS's
commands, and the fakes of Cobalt (as on a cluster and as on a Cray), of OpenPBS, of Torque and of Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import slurm_cluster
from helpers import wait_until
from sites import SITES, Kind, Site

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import PollFailed, SubmitFailed, SubmitUncertain
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import apps, insert, leases
from balsam_lite.schedulers import base, submission
from balsam_lite.schedulers.base import LaunchRequest
from balsam_lite.schedulers.submission import cancel, refresh, submit_launch
from balsam_lite.service import loop
from balsam_lite.service.policy import Queue, Range


@pytest.fixture(scope="session")
def slurm_with_wrappers() -> Iterator[slurm_cluster.Cluster]:
    """A Slurm that is spoken to with PBS's commands."""
    reason = slurm_cluster.why_not(pbs=True)
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running(pbs=True) as cluster:
        yield cluster


WITH_COMMANDS = tuple(kind for kind in SITES if kind.status_command)


@pytest.fixture(params=SITES, ids=lambda kind: kind.name)
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    kind: Kind = request.param
    with contextmanager(kind.enter)(tmp_path, request, monkeypatch):
        monkeypatch.setenv("BALSAM_SCHEDULER_CLASS", kind.scheduler)
        yield Site(kind, tmp_path)


with_commands = pytest.mark.parametrize("site", WITH_COMMANDS, indirect=True, ids=lambda kind: kind.name)


# --- a batch job's life -----------------------------------------------------------------------------------------------


def test_a_batch_job_is_followed_from_its_submission_to_its_end(site: Site) -> None:
    waiting = site.waiting()
    native_id = site.submit(waiting)
    assert isinstance(native_id, str)
    assert native_id
    first = site.status(waiting, native_id)
    assert first is not None
    assert first.state in (base.QUEUED, base.RUNNING)
    site.wait_until_up()
    wait_until(lambda: site.status(waiting, native_id).state == base.RUNNING, 30, 0.1)
    site.release()
    ended = site.ended(waiting, native_id)
    assert (ended.native_id, ended.state in (base.FINISHED, base.ENDED)) == (native_id, True)
    assert ended.exit_code == (0 if site.kind.tells_exit_code else None)
    if site.kind.tells_exit_code:
        assert (ended.state, ended.reason) == (base.FINISHED, "")
        assert abs(ended.started_us / 1e6 - time.time()) < 300
        assert ended.started_us <= ended.ended_us + 1_000_000


def test_an_exit_code_and_the_output_come_back(site: Site) -> None:
    failing = site.script("fail", "echo out; echo err >&2; exit 3")
    native_id = site.submit(failing)
    ended = site.ended(failing, native_id)
    if site.kind.tells_exit_code:
        assert (ended.state, ended.exit_code) == (base.FAILED, 3)
        assert ended.reason in ("", "exit code 3")
    wait_until(lambda: os.path.exists(failing.output) and "err" in Path(failing.output).read_text(), 20)
    assert sorted(Path(failing.output).read_text().split()) == ["err", "out"]


def test_a_running_and_a_queued_batch_job_can_be_cancelled(site: Site) -> None:
    body = "trap 'echo got TERM; exit 0' TERM; touch wait.up; while :; do sleep 0.1; done"
    running = site.script("running", body, nodes=site.kind.nodes)
    queued = site.script("queued", "touch never", nodes=site.kind.nodes)
    ids = [site.submit(each) for each in (running, queued)]
    site.wait_until_up()
    assert site.status(queued, ids[1]).state == base.QUEUED
    for native_id in reversed(ids):
        site.scheduler().cancel(native_id)
    states = [site.ended(each, native_id).state for each, native_id in zip((running, queued), ids)]
    if site.kind.tells_exit_code:
        assert states[1] == base.CANCELLED
    if site.kind.tells_cancelled:
        assert states[0] == base.CANCELLED
    assert not (site.folder / "never").exists()
    wait_until(lambda: "got TERM" in Path(running.output).read_text(), 20)


def test_an_id_which_the_scheduler_does_not_know_is_gone_and_hides_no_other(site: Site) -> None:
    waiting = site.waiting()
    native_id = site.submit(waiting)
    unknown = native_id.replace(native_id.partition(".")[0], "999999")
    polled = site.scheduler().poll({unknown: str(site.folder / "unknown.out"), native_id: waiting.output})
    assert list(polled) == [native_id]
    assert site.scheduler().poll({unknown: str(site.folder / "unknown.out")}) == {}


def test_a_wall_time_of_more_than_a_day_is_nothing_special(site: Site) -> None:
    waiting = site.waiting(minutes=25 * 60 + 5)
    native_id = site.submit(waiting)
    site.wait_until_up()
    wait_until(lambda: site.status(waiting, native_id).state == base.RUNNING, 30, 0.1)
    site.release()
    assert site.ended(waiting, native_id).is_ended


@with_commands
def test_a_script_which_the_scheduler_refuses_is_refused_with_its_words(site: Site) -> None:
    nothing = site.script("nothing", "true")._replace(script=str(site.folder / "none.sh"))
    with pytest.raises(SubmitFailed) as caught:
        site.scheduler().submit(nothing)
    assert not isinstance(caught.value, SubmitUncertain)
    words = (caught.value.stderr + caught.value.stdout).strip().splitlines()
    assert words
    assert words[-1] in str(caught.value)


# --- rows of the DB ---------------------------------------------------------------------------------------------------


@pytest.fixture
def db(site: Site) -> Iterator[directories.Database]:
    database = directories.create(str(site.folder / "db"))
    header = "\n".join(site.header("{{ nodes }}", "{{ time_minutes }}"))
    body = f"cd {site.folder}\ntouch launch.up\nwhile [ ! -e launch.go ]; do sleep 0.1; done"
    Path(database.directory, "contract.tmpl").write_text(f"#!/bin/bash\n{header}\n{body}\n")
    site.settings = site.settings._replace(JOB_TEMPLATE="contract.tmpl")
    yield database
    database.close()


def request(site: Site) -> LaunchRequest:
    return LaunchRequest(1, 5, queue=site.kind.queue)


def rows(db: directories.Database) -> list[queries.BatchRow]:
    with db.read() as cx:
        return select.batch_job_rows(cx)


class Crash(BaseException):
    """The process dies here."""


def test_a_crash_after_the_submission_is_found_again_by_its_name_and_submits_nothing_twice(
    site: Site, db: directories.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = site.scheduler()
    with monkeypatch.context() as patch:
        patch.setattr(submission.batch_jobs, "mark_submitted", lambda *args: (_ for _ in ()).throw(Crash()))
        with pytest.raises(Crash):
            submit_launch(db, site.settings, request(site), scheduler)
    assert [(row["state"], row["scheduler_id"]) for row in rows(db)] == [("pending-submission", "")]
    site.wait_until_up("launch")
    row = wait_until(
        lambda: next((row for row in refresh(db, site.scheduler()) if row["state"] == base.RUNNING), None), 30, 0.2
    )
    assert row["scheduler_id"]
    site.release("launch")
    wait_until(lambda: refresh(db, site.scheduler()) == [], 60, 0.2)
    assert rows(db)[0]["state"] == (base.FINISHED if site.kind.tells_exit_code else base.ENDED)


def test_cancelling_a_row_ends_its_batch_job(site: Site, db: directories.Database) -> None:
    row = submit_launch(db, site.settings, request(site), site.scheduler())
    site.wait_until_up("launch")
    cancel(db, site.scheduler(), row["id"])
    wait_until(lambda: refresh(db, site.scheduler()) == [], 60, 0.2)
    if site.kind.tells_cancelled:
        assert rows(db)[0]["state"] == base.CANCELLED
        assert "cancelled" in rows(db)[0]["reason"]


TROUBLE = {
    "hangs": "sleep 1000",
    "fails": "echo 'cannot connect to server' >&2; exit 1",
    "dies": "kill -9 $$",
    "prints garbage": "head -c 100000 /dev/urandom; echo; echo 1001 what 7.server running; exit 0",
    "prints nothing": "exit 0",
    "prints 100 MB": "head -c 100000000 /dev/zero | tr '\\0' '7'",
    "is not there": "",
}


@with_commands
@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_status_command_in_trouble_changes_nothing(site: Site, db: directories.Database, trouble: str) -> None:
    submit_launch(db, site.settings, request(site), site.scheduler())
    before = rows(db)
    command = site.command("trouble", TROUBLE[trouble]) if TROUBLE[trouble] else "/nonexistent/status"
    started = time.monotonic()
    troubled = site.scheduler(SCHEDULER_STATUS_EXE=command, SCHEDULER_TIMEOUT_S=2.0)
    if trouble == "prints nothing" and site.kind.scheduler == "SlurmScheduler":
        # squeue without a heading says so where there is nothing; its past is asked for, and then it is gone
        troubled.poll({"999999": ""})
        return
    with pytest.raises(PollFailed) as caught:
        refresh(db, troubled)
    assert time.monotonic() - started < 15
    assert len(str(caught.value)) < 20_000
    assert rows(db) == before


@with_commands
def test_an_id_that_is_told_twice_is_one_batch_job(site: Site) -> None:
    waiting = site.waiting()
    native_id = site.submit(waiting)
    site.wait_until_up()
    wait_until(lambda: site.status(waiting, native_id).state == base.RUNNING, 30, 0.1)
    plain = site.status(waiting, native_id)
    script = site.folder / "twice.py"
    script.write_text(f"import json, sys\ntext = sys.stdin.read()\n{site.kind.doubled}\n")
    command = site.command("twice", f'set -o pipefail; {site.kind.status_command} "$@" | {sys.executable} {script}')
    assert site.scheduler(SCHEDULER_STATUS_EXE=command).poll({native_id: waiting.output}) == {native_id: plain}


@with_commands
def test_flags_reach_the_command_word_by_word_and_before_the_script(site: Site, db: directories.Database) -> None:
    command = site.command("submit", f'printf "%s\\0" "$@" > {site.folder}/argv; echo 4711')
    flags = "--comment 'two words' -x \"it's\" '' 'é*$HOME'"
    row = submit_launch(
        db, site.settings, request(site)._replace(sched_flags=flags), site.scheduler(SCHEDULER_SUBMIT_EXE=command)
    )
    words = (site.folder / "argv").read_text().split("\0")[:-1]
    assert words[-7:] == ["--comment", "two words", "-x", "it's", "", "é*$HOME", row["command"]]
    assert (row["scheduler_id"], row["state"]) == ("4711", "submitted")


@with_commands
def test_a_submission_whose_command_hangs_after_it_was_accepted_is_found_by_its_name(
    site: Site, db: directories.Database
) -> None:
    command = site.command("submit", f'{site.kind.submit_command} "$@" > {site.folder}/said; sleep 1000')
    with pytest.raises(SubmitUncertain, match="killed"):
        submit_launch(db, site.settings, request(site), site.scheduler(SCHEDULER_SUBMIT_EXE=command, SCHEDULER_TIMEOUT_S=3.0))
    assert rows(db)[0]["state"] == "pending-submission"
    site.wait_until_up("launch")
    refresh(db, site.scheduler())
    assert rows(db)[0]["scheduler_id"] == (site.folder / "said").read_text().strip()


# --- a batch system that behaves badly --------------------------------------------------------------------------------

with_knobs = pytest.mark.parametrize(
    "site", [kind for kind in SITES if kind.is_fake], indirect=True, ids=lambda kind: kind.name
)
slurm_fake = pytest.mark.parametrize(
    "site", [kind for kind in SITES if kind.name == "slurm-fake"], indirect=True, ids=lambda kind: kind.name
)
ABSENCE_US = submission.ABSENCE_TIMEOUT_S * 1_000_000


def now_us() -> int:
    return time.time_ns() // 1000


@with_knobs
def test_a_batch_job_that_is_listed_late_is_open_all_the_time(site: Site, db: directories.Database) -> None:
    site.turn("LAG", 3)
    site.turn("FAIL", "sacct")  # where it has the batch job, nothing is missing
    submit_launch(db, site.settings, request(site), site.scheduler())
    row = refresh(db, site.scheduler())[0]
    assert (row["state"], row["ended"], row["absent"] is None) == ("submitted", None, False)
    row = wait_until(
        lambda: next((row for row in refresh(db, site.scheduler()) if row["state"] == base.RUNNING), None), 30, 0.2
    )
    assert (row["reason"], row["absent"]) == ("", None)
    site.release("launch")
    wait_until(lambda: refresh(db, site.scheduler()) == [], 60, 0.2)


@with_knobs
def test_a_batch_job_that_one_answer_leaves_out_is_not_gone_and_can_be_cancelled(site: Site, db: directories.Database) -> None:
    row = submit_launch(db, site.settings, request(site), site.scheduler())
    site.wait_until_up("launch")
    wait_until(lambda: refresh(db, site.scheduler())[0]["state"] == base.RUNNING, 30, 0.2)
    site.turn("FAIL", "sacct")
    site.turn("OMIT", 1)
    (left_out,) = refresh(db, site.scheduler())
    assert (left_out["state"], left_out["ended"]) == (base.RUNNING, None)
    assert left_out["absent"] is not None
    (listed,) = refresh(db, site.scheduler())
    assert (listed["state"], listed["absent"], listed["reason"]) == (base.RUNNING, None, "")
    site.turn("OMIT", 1)
    cancel(db, site.scheduler(), row["id"])
    site.turn("OMIT", 0)
    wait_until(lambda: refresh(db, site.scheduler()) == [], 60, 0.2)


@with_knobs
def test_one_that_was_left_out_for_two_minutes_comes_back(site: Site, db: directories.Database) -> None:
    row = submit_launch(db, site.settings, request(site), site.scheduler())
    site.wait_until_up("launch")
    site.turn("OMIT", f"1000 {row['scheduler_id'].partition('.')[0]}")
    site.turn("FAIL", "sacct")
    refresh(db, site.scheduler(), now_us())
    assert refresh(db, site.scheduler(), now_us() + ABSENCE_US)[0]["state"] == base.GONE
    site.turn("OMIT", 0)
    (back,) = refresh(db, site.scheduler(), now_us() + 2 * ABSENCE_US)
    assert (back["state"], back["ended"]) == (base.RUNNING, None)


@with_knobs
def test_a_refused_submission_and_one_too_many_say_why_and_are_one_row_when_tried_again(
    site: Site, db: directories.Database
) -> None:
    site.turn("REFUSE", "no allocation for you")
    for _ in range(2):
        with pytest.raises(SubmitFailed, match="no allocation for you"):
            submit_launch(db, site.settings, request(site), site.scheduler())
    site.turn("REFUSE", "")
    site.turn("LIMIT", 1)
    first = submit_launch(db, site.settings, request(site), site.scheduler())
    with pytest.raises(SubmitFailed, match="limit"):
        submit_launch(db, site.settings, request(site), site.scheduler())
    assert [(row["state"], row["tries"]) for row in rows(db)] == [("submitted", 3), ("submission-failed", 1)]
    assert first["reason"] == ""


@with_knobs
def test_a_command_that_hangs_or_finds_no_server_leaves_everything_as_it_was(site: Site, db: directories.Database) -> None:
    row = submit_launch(db, site.settings, request(site), site.scheduler())
    site.wait_until_up("launch")
    refresh(db, site.scheduler())
    before = rows(db)
    scheduler = site.scheduler(SCHEDULER_TIMEOUT_S=5.0)
    cancel_command = "scancel" if site.kind.scheduler == "SlurmScheduler" else "qdel"
    for knob in ("HANG", "FAIL"):
        site.turn(knob, cancel_command)
        with pytest.raises(base.CancelFailed):
            cancel(db, scheduler, row["id"])
        site.turn(knob, site.kind.status_command)
        with pytest.raises(PollFailed):
            refresh(db, scheduler, now_us() + 10 * ABSENCE_US)
        site.turn(knob, "")
    assert rows(db) == before


@with_knobs
def test_a_service_with_one_launch_at_most_submits_one_whatever_the_listings_leave_out(
    site: Site, db: directories.Database
) -> None:
    with db.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
        lease = leases.open_lease(cx, loop.KIND, Holder.current(), "", now_us())
    insert.add_jobs(db, [{"application": "a", "wall_time_minutes": 50} for _ in range(100)])
    site.turn("LAG", 2)
    site.turn("FAIL", "sacct")
    queue = Queue(site.kind.queue, True, 1, (Range(1, 1, 1, 60),))
    service = loop.Service(db, site.settings, (queue,), site.scheduler(), lease, SystemClock())
    assert service.turn()
    assert not service.turn()
    site.wait_until_up("launch")
    wait_until(lambda: not service.turn() and rows(db)[0]["state"] == base.RUNNING, 30, 0.2)
    site.turn("OMIT", 3)
    assert [service.turn() for _ in range(5)] == [False] * 5
    assert [(row["state"], row["ended"]) for row in rows(db)] == [(base.RUNNING, None)]
    with db.read() as cx:
        assert cx.execute("SELECT count(*) FROM job WHERE queued_launch_id = 1").fetchone()[0] >= 1


@slurm_fake
def test_the_end_is_learned_from_an_accounting_that_hung_when_it_came(
    site: Site, db: directories.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SLURM_LISTED_S", "0")
    Path(db.directory, "contract.tmpl").write_text("#!/bin/bash\nexit 3\n")
    site.turn("HANG", "sacct")
    submit_launch(db, site.settings, request(site), site.scheduler())
    scheduler = site.scheduler(SCHEDULER_TIMEOUT_S=5.0)
    row = wait_until(lambda: next((row for row in refresh(db, scheduler) if row["absent"]), None), 30, 0.2)
    assert row["ended"] is None
    refresh(db, scheduler, now_us() + ABSENCE_US)
    assert rows(db)[0]["state"] == base.GONE
    site.turn("HANG", "")
    refresh(db, scheduler, now_us() + 2 * ABSENCE_US)
    (row,) = rows(db)
    assert (row["state"], row["exit_code"], row["absent"]) == (base.FAILED, 3, None)
    assert row["started"] <= row["ended"] <= now_us()


@slurm_fake
def test_a_launch_on_another_cluster_is_followed_and_cancelled_there(site: Site, db: directories.Database) -> None:
    here = submit_launch(db, site.settings, request(site), site.scheduler())
    site.wait_until_up("launch")
    there = submit_launch(db, site.settings, request(site)._replace(sched_flags="-M red"), site.scheduler())
    assert (here["scheduler_id"], here["cluster"]) == (there["scheduler_id"], "") == ("1001", "")
    assert there["cluster"] == "red"
    wait_until(lambda: {row["state"] for row in refresh(db, site.scheduler())} == {base.RUNNING}, 30, 0.2)
    with db.read() as cx:  # what a launcher in each of them takes for its own
        launches = [queries.launch_of(cx, "SlurmScheduler", "1001", name) for name in ("batch", "red")]
    assert [row["id"] for row in launches] == [here["id"], there["id"]]
    cancel(db, site.scheduler(), there["id"])
    wait_until(lambda: len(refresh(db, site.scheduler())) == 1, 60, 0.2)
    assert [row["state"] for row in rows(db)] == [base.RUNNING, base.CANCELLED]


@slurm_fake
def test_a_submission_to_another_cluster_whose_command_hangs_is_found_there(site: Site, db: directories.Database) -> None:
    site.turn("HANG_AFTER", "sbatch")
    with pytest.raises(SubmitUncertain):
        submit_launch(
            db,
            site.settings,
            request(site)._replace(sched_flags="--clusters=blue,red"),
            site.scheduler(SCHEDULER_TIMEOUT_S=3.0),
        )
    site.turn("HANG_AFTER", "")
    site.wait_until_up("launch")
    refresh(db, site.scheduler())
    assert (rows(db)[0]["scheduler_id"], rows(db)[0]["cluster"]) == ("1001", "blue")


# --- the slides -------------------------------------------------------------------------------------------------------


class Terminal:
    """A user's shell at a site. Its launchers leave a second after their last job."""

    def __init__(self, site: Site, balsam_bin: str) -> None:
        self._place = site.folder
        self._environ = {**os.environ, "PATH": f"{balsam_bin}:{os.environ['PATH']}"}
        home = Path(self._environ["BALSAM_HOME"])
        home.mkdir(exist_ok=True)
        (home / "settings.json").write_text(json.dumps({"IDLE_TTL_S": 1, "KILL_GRACE_S": 2}))

    def type(self, line: str, active: bool = True) -> str:
        """What the line prints on stdout; it must succeed."""
        before = "source balsamactivate test-db > /dev/null\n" if active else ""
        argv = ["bash", "--norc", "-c", before + line]
        done = subprocess.run(argv, cwd=self._place, env=self._environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def states(self) -> list[str]:
        return [job["state"] for job in json.loads(self.type("balsam ls --json"))]

    def launches(self, *options: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.type(" ".join(["balsam ls queues --json", *options])))
        return found


def test_the_slides_submit_launch_runs_the_jobs(site: Site, balsam_bin: str) -> None:
    terminal = Terminal(site, balsam_bin)
    terminal.type("balsam init test-db", active=False)
    terminal.type('balsam app --name say-hello --executable "echo Hello,"')
    job = 'balsam job --name test$i --workflow test --application say-hello --args "world!" --yes'
    terminal.type(f"for i in 1 2 3; do {job}; done")
    said = terminal.type(f"balsam submit-launch -n 1 -t 5 -q {site.kind.queue} --job-mode=serial")
    assert said.startswith("Submit OK: Qlaunch {   'command': ")
    assert "'state': 'submitted'" in said
    wait_until(lambda: terminal.states() == ["JOB_FINISHED"] * 3, 90, 0.5)
    wait_until(lambda: terminal.launches() == [], 60, 0.5)
    (ended,) = terminal.launches("--all")
    assert ended["scheduler_state"] == (base.FINISHED if site.kind.tells_exit_code else base.ENDED), ended
    outputs = [path.read_text() for path in sorted((site.folder / "test-db" / "data").rglob("*.out"))]
    assert outputs == ["Hello, world!\n"] * 3


@pytest.mark.parametrize(
    "site", [kind for kind in SITES if kind.name in ("cobalt", "pbs", "slurm")], indirect=True, ids=lambda kind: kind.name
)
def test_a_cancelled_launcher_hands_its_job_back_and_the_next_one_finishes_it(site: Site, balsam_bin: str) -> None:
    terminal = Terminal(site, balsam_bin)
    terminal.type("balsam init test-db", active=False)
    wait = site.folder / "wait.sh"
    wait.write_text(f"#!/bin/sh\ntouch {site.folder}/job.up\nwhile [ ! -e {site.folder}/job.go ]; do sleep 0.1; done\n")
    wait.chmod(0o755)
    terminal.type(f"balsam app --name wait --executable {wait}; balsam job --name j --workflow w --application wait --yes")
    launch = f"balsam submit-launch -n 1 -t 5 -q {site.kind.queue} --job-mode=serial"
    terminal.type(launch)
    site.wait_until_up("job")
    terminal.type("balsam queue rm qlaunch1")
    wait_until(lambda: terminal.launches() == [], 60, 0.5)
    assert terminal.launches("--all")[0]["scheduler_state"] == base.CANCELLED
    assert terminal.states() == ["RESTART_READY"]
    site.release("job")
    terminal.type(launch)
    wait_until(lambda: terminal.states() == ["JOB_FINISHED"], 60, 0.5)
