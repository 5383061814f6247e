"""Cobalt: what its commands print, what its log says, and the ends that the contract does not show."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import wait_until
from sites import SITES, Site

from balsam_lite.core.errors import SettingsError, SubmitFailed
from balsam_lite.core.settings import Settings
from balsam_lite.core.subprocess_run import Completed
from balsam_lite.db.engine import directories
from balsam_lite.db.query import select
from balsam_lite.schedulers import base, cobalt, submission
from balsam_lite.schedulers.base import BatchStatus, LaunchRequest, Submission
from balsam_lite.schedulers.cobalt import CobaltAdapter, CobaltScheduler, parse_log, parse_submission, parse_table
from balsam_lite.schedulers.submission import refresh, submit_launch

SUBMISSION = Submission("qlaunch7", "/db/qsubmit/qlaunch7.sh", "/db/qsubmit/qlaunch7.out", "/db/qsubmit", 2, 5)
ADAPTER = CobaltAdapter("land")
#: 2018-01-12 23:21:16 UTC.
STAMP, STAMP_US = "Fri Jan 12 23:21:16 2018 +0000 (UTC)", 1515799276_000000


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    kind = next(kind for kind in SITES if kind.name == "cobalt")
    with contextmanager(kind.enter)(tmp_path, request, monkeypatch):
        monkeypatch.setenv("BALSAM_SCHEDULER_CLASS", kind.scheduler)
        yield Site(kind, tmp_path)


# --- command lines ----------------------------------------------------------------------------------------------------


def test_qsub_is_told_where_everything_goes_and_the_users_flags_come_last_before_the_script() -> None:
    assert ADAPTER.submit_argv(SUBMISSION._replace(flags=("--attrs", "a=b:c=d", "-q", "x y"))) == [
        "qsub", "--mode", "script", "--cwd", "/db/qsubmit", "--jobname", "qlaunch7",
        "-o", "/db/qsubmit/qlaunch7.out", "-e", "/db/qsubmit/qlaunch7.out", "--debuglog", "/db/qsubmit/qlaunch7.cobaltlog",
        "--attrs", "a=b:c=d", "-q", "x y", "/db/qsubmit/qlaunch7.sh",
    ]  # fmt: skip


def test_one_qstat_asks_for_all_however_many_there_are() -> None:
    assert ADAPTER.status_argv([str(number) for number in range(100_000)]) == ADAPTER.status_argv(())
    assert ADAPTER.status_argv(()) == ["qstat", "--header", "JobID:State:StartTime:JobName:Command", "-u", "land"]
    assert ADAPTER.past_argv(["1"]) == []


def test_the_settings_name_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(SCHEDULER_SUBMIT_EXE="/a/qsub", SCHEDULER_STATUS_EXE="/b/qstat", SCHEDULER_CANCEL_EXE="/c/qdel")
    adapter = CobaltScheduler(settings)._adapter
    assert adapter.submit_argv(SUBMISSION)[0] == "/a/qsub"
    assert adapter.status_argv(())[0] == "/b/qstat"
    assert adapter.cancel_argv("7") == ["/c/qdel", "7"]


@pytest.mark.parametrize(
    ("said", "native_id"),
    [
        ("278079\n", "278079"), ("Job routed to queue \"debug-cache-quad\"\nMemory mode set to cache quad\n278079\n", "278079"),
        ("278079 your project will be charged twice\n", "278079"), ("  12  \n", "12"), ("your job is 278079\n", "278079"),
        ("", ""), ("no number", ""), ("12.5 hours left", ""), ("²\n", ""),
    ],
)  # fmt: skip
def test_the_number_is_found_among_notes_of_the_site(said: str, native_id: str) -> None:
    assert ADAPTER.parse_id(said) == native_id


def test_a_script_whose_path_cobalt_would_break_is_refused_before_it_is_submitted() -> None:
    for path in ("/my db/qsubmit/qlaunch1.sh", "/it's/qlaunch1.sh", "/a;b/qlaunch1.sh"):
        with pytest.raises(SubmitFailed, match="means something to shells"):
            CobaltScheduler(Settings(SCHEDULER_SUBMIT_EXE="/bin/false")).submit(SUBMISSION._replace(script=path))


# --- qstat ------------------------------------------------------------------------------------------------------------

#: As Cobalt lays it out: two blanks behind each cell, also the last; ids at the right.
TABLE = """\
JobID  State        StartTime                             JobName   Command                  
=============================================================================================
   99  queued       N/A                                   N/A       /home/land/run me.sh     
10432  running      Fri Jan 12 23:21:16 2018 +0000 (UTC)  qlaunch7  /db/qsubmit/qlaunch7.sh  
10433  maxrun_hold  N/A                                   qlaunch8  /db/qsubmit/qlaunch8.sh  
"""  # noqa: W291


def test_a_table_is_read_by_its_columns() -> None:
    assert parse_table(TABLE) == {
        "99": BatchStatus("99", base.QUEUED, name="N/A", command="/home/land/run me.sh"),
        "10432": BatchStatus(
            "10432", base.RUNNING, started_us=STAMP_US, name="qlaunch7", command="/db/qsubmit/qlaunch7.sh"
        ),
        "10433": BatchStatus(
            "10433", base.QUEUED, "as many batch jobs run as are allowed to at once (maxrun_hold)", name="qlaunch8",
            command="/db/qsubmit/qlaunch8.sh",
        ),
    }  # fmt: skip


def test_an_empty_table_is_an_answer_and_no_table_is_none() -> None:
    header = "".join(TABLE.splitlines(True)[:2])
    assert parse_table(header) == {}
    assert ADAPTER.parse_statuses(Completed([], 0, header, "")) == {}
    for answer in (Completed([], 0, "", ""), Completed([], 1, TABLE, ""), Completed([], 0, "welcome\n1 2 3\n", "")):
        assert ADAPTER.parse_statuses(answer) is None


@pytest.mark.parametrize(
    ("row", "state"),
    [
        ("7  user_hold", base.QUEUED), ("7  dep_fail  N/A", base.QUEUED), ("7  starting", base.QUEUED),
        ("7  preempted", base.QUEUED), ("7  killing  x  y  z  more", base.RUNNING), ("7  exiting", base.RUNNING),
        ("7  RUNNING", base.RUNNING), ("7  new_state", base.QUEUED), ("7", base.QUEUED), ("7  -", base.QUEUED),
    ],
)  # fmt: skip
def test_every_row_with_a_number_is_a_batch_job_that_is_there(row: str, state: str) -> None:
    header = "\n".join(TABLE.splitlines()[:2])
    found = parse_table(f"{header}\nNote: the machine is down on Monday\n\n{row}\n-5  running\nx  y\n")
    assert list(found) == ["7"]
    assert found["7"].state == state
    assert (found["7"].reason == "") == (state == base.RUNNING and "running" in row.lower())


def test_one_that_is_done_is_left_to_its_log() -> None:
    assert parse_table("\n".join([*TABLE.splitlines()[:2], "7  done  N/A  x  /y"])) == {}


def test_missing_columns_and_odd_characters_are_harmless() -> None:
    assert parse_table("JobID  State  \n====\n7  running  \n") == {"7": BatchStatus("7", base.RUNNING)}
    table = TABLE.replace("N/A       /home", "läuft \N{SNOWMAN}  /home").replace("2018 +0000", "99999 +0000")
    assert parse_table(table)["99"].state == base.QUEUED
    assert parse_table(table)["10432"].started_us is None


def test_no_garbage_makes_the_parsers_fail() -> None:
    draw = random.Random(7)
    pieces = [
        "JobID",
        "State",
        "  ",
        "\n",
        "=",
        "7",
        "running",
        "Jobid: 7\n",
        "\x00",
        "\u2028",
        STAMP,
        "user delete requested",
        "é",
    ]
    pieces += ["task completed normally with an exit code of 3", "submitted with cwd set to", "user delete requested"]
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randrange(30)))
        parse_table(text)
        parse_log(text, "7")
        parse_submission(text, 0)
        ADAPTER.parse_id(text)


def test_a_large_table_is_read_in_a_moment() -> None:
    rows = "".join(f"{number}  running  N/A  job  /x\n" for number in range(200_000))
    started = time.process_time()
    assert len(parse_table("".join(TABLE.splitlines(True)[:2]) + rows)) == 200_000
    assert time.process_time() - started < 20


# --- the log ----------------------------------------------------------------------------------------------------------

LOG = f"""\
Jobid: 10432
qsub -n 2 -t 5 /db/qsubmit/qlaunch7.sh
{STAMP} submitted with cwd set to: /db/qsubmit
jobid 10432 submitted from terminal /dev/pts/0
{STAMP.replace("21:16", "21:26")} Command: '/db/qsubmit/qlaunch7.sh'
{STAMP.replace("21:16", "21:26")} Environment:
COBALT_JOBID=10432
COBALT_STARTTIME=1515799285

{STAMP.replace("21:16", "21:26")} Info: stdin received from /dev/null
"""
END = STAMP.replace("21:16", "22:16")


@pytest.mark.parametrize(
    ("line", "state", "exit_code", "reason"),
    [
        ("Info: task completed normally with an exit code of 0; initiating job cleanup and removal", base.FINISHED, 0, ""),
        ("Info: task completed normally with an exit code of 3; initiating job cleanup", base.FAILED, 3, "exit code 3"),
        (
            "Info: task completed normally with an exit code of None; initiating", base.ENDED, None,
            "Cobalt has not learned its exit code",
        ),
        ("Info: maximum execution time exceeded; initiating job", base.TIMED_OUT, None, "its time limit was reached"),
        ("Info: user delete requested with signal SIGTERM by user land", base.CANCELLED, None, "cancelled by land"),
        ("Info: user delete requested; removing job from the queue", base.CANCELLED, None, "cancelled"),
    ],
)  # fmt: skip
def test_the_log_tells_how_a_batch_job_ended(line: str, state: str, exit_code: int | None, reason: str) -> None:
    status = parse_log(f"{LOG}{END} {line}\n", "10432")
    assert status == BatchStatus(
        "10432", state, reason, exit_code, started_us=1515799285_000000, ended_us=STAMP_US + 60_000_000
    )


def test_a_log_without_an_end_or_of_another_batch_job_tells_nothing() -> None:
    ended = f"{END} Info: task completed normally with an exit code of 0; initiating job cleanup and removal\n"
    assert parse_log("", "10432") is None
    assert parse_log(LOG, "10432") is None
    assert parse_log(LOG + ended, "10433") is None
    assert parse_log(LOG + ended, "1043") is None
    assert parse_log(ended, "10432") is None


def test_of_two_in_one_log_the_own_one_counts() -> None:
    ended = f"{END} Info: task completed normally with an exit code of 3; initiating job cleanup and removal\n"
    both = LOG.replace("10432", "9") + ended + LOG
    assert parse_log(both, "10432") is None
    assert parse_log(both, "9").exit_code == 3
    assert parse_submission(both, 0) == "10432"
    assert parse_submission(both, STAMP_US + 1) == ""


def test_a_log_that_is_no_file_or_very_large_keeps_nobody_waiting(tmp_path: Path) -> None:
    output = str(tmp_path / "qlaunch7.out")
    log = Path(cobalt.log_path(output))
    assert ADAPTER.read_past("10432", output) is None
    os.mkfifo(log)
    assert ADAPTER.read_past("10432", output) is None
    log.unlink()
    log.mkdir()
    assert ADAPTER.read_past("10432", output) is None
    log.rmdir()
    ended = f"{END} Info: task completed normally with an exit code of 3; initiating job cleanup and removal\n"
    log.write_bytes(b"\xff\0x" * 10_000_000 + f"\n{LOG}{ended}".encode())
    assert ADAPTER.read_past("10432", output).exit_code == 3


# --- which Cobalt -----------------------------------------------------------------------------------------------------


def test_two_cobalts_are_told_apart_by_their_configuration(tmp_path: Path) -> None:
    config = tmp_path / "cobalt.conf"
    config.write_text("[components]\nservice-location=https://theta:8256\n[cqm]\nlog_dir: ./log%s\n")
    found = CobaltScheduler(Settings(), {"COBALT_CONFIG_FILES": f"/nonexistent:{config}"})
    assert found.domain == "CobaltScheduler@https://theta:8256"
    for text in (b"", b"\xff\xfe", b"no section", b"[components"):
        config.write_bytes(text)
        assert CobaltScheduler(Settings(), {"COBALT_CONFIG_FILES": str(config)}).domain == "CobaltScheduler"


# --- a whole life, by the fakes ---------------------------------------------------------------------------------------


def test_the_limit_sends_term_then_kill_and_the_row_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_BATCH_MINUTE_S", "2")
    monkeypatch.setenv("FAKE_BATCH_KILL_S", "1")
    stubborn = site.script("stubborn", "trap 'echo TERM' TERM; while :; do sleep 0.1; done", minutes=1)
    ended = site.ended(stubborn, site.submit(stubborn))
    assert (ended.state, ended.exit_code) == (base.TIMED_OUT, None)
    assert "time limit" in ended.reason
    assert Path(stubborn.output).read_text().splitlines().count("TERM") == 1


def test_a_held_batch_job_waits_and_says_why(site: Site) -> None:
    held = site.waiting()._replace(flags=("-h",))
    native_id = site.submit(held)
    status = site.status(held, native_id)
    assert (status.state, status.reason) == (base.QUEUED, "held by its owner (user_hold)")


def test_a_batch_job_that_ended_before_anybody_looked_is_found_by_its_log(site: Site) -> None:
    short = site.script("qlaunch1", "exit 4")
    native_id = site.submit(short)
    wait_until(lambda: parse_log(Path(cobalt.log_path(short.output)).read_text(), native_id), 20)
    assert site.scheduler().find(short, time.time_ns() // 1000) == native_id
    assert site.scheduler().find(short._replace(name="other", output="/other.out"), 0) is None
    assert site.ended(short, native_id).exit_code == 4


def test_the_environment_of_the_users_qstat_changes_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = site.waiting()
    native_id = site.submit(waiting)
    monkeypatch.setenv("QSTAT_HEADER", "User:Queue")
    monkeypatch.setenv("CQSTAT_HEADER", "Score")
    assert site.status(waiting, native_id) is not None


#: As users of Balsam 0.3 have it in ~/.balsam/job-templates.
OLD_TEMPLATE = """#!/bin/bash -x
#COBALT -A {{ project }}
#COBALT -n {{ nodes }}
#COBALT -q {{ queue }}
#COBALT -t {{ time_minutes }}
#COBALT --attrs ssds=required:ssd_size=128

export PATH={{ balsam_bin }}:{{ pg_bin }}:$PATH

source balsamactivate {{ balsam_db_path }}
sleep 0.2

balsam launcher --{{ wf_filter }} --job-mode={{ job_mode }} --time-limit-minutes={{ time_minutes-2 }}

source balsamdeactivate
"""


def test_an_old_template_runs_its_launcher_under_cobalt(site: Site, balsam_bin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(os.environ["BALSAM_HOME"])
    (home / "job-templates").mkdir(parents=True)
    (home / "job-templates" / "theta.cobaltscheduler.tmpl").write_text(OLD_TEMPLATE)
    monkeypatch.setattr("sys.argv", [f"{balsam_bin}/balsam"])
    settings = site.settings._replace(JOB_TEMPLATE="job-templates/theta.cobaltscheduler.tmpl")
    database = directories.create(str(site.folder / "db"))
    try:
        Path(database.directory, "settings.json").write_text('{"IDLE_TTL_S": 0.3}')
        submit_launch(database, settings, LaunchRequest(1, 5, queue="training", project="SDL_Workshop"), site.scheduler())
        wait_until(lambda: refresh(database, site.scheduler()) == [], 60, 0.2)
        with database.read() as cx:
            (row,) = select.batch_job_rows(cx)
        assert (row["state"], row["exit_code"]) == (base.FINISHED, 0)
        assert "Launcher ends (no job came)" in Path(row["log"]).read_text()
    finally:
        database.close()


def test_the_lines_for_cobalt_stand_together_from_the_second_line_on(tmp_path: Path) -> None:
    database = directories.create(str(tmp_path / "db"))
    settings = Settings(SCHEDULER_CLASS="CobaltScheduler", DEFAULT_PROJECT="")
    try:
        request = LaunchRequest(3, 1505, queue="debug", project="mine")
        text = submission.render_script(database, settings, request, 1)
        assert text.splitlines()[:6] == [
            "#!/bin/bash", "#COBALT -A mine", "#COBALT -n 3", "#COBALT -q debug", "#COBALT -t 1505", "",
        ]  # fmt: skip
        text = submission.render_script(database, settings, LaunchRequest(3, 5), 1)
        assert text.splitlines()[:4] == ["#!/bin/bash", "#COBALT -n 3", "#COBALT -t 5", ""]
        with pytest.raises(SettingsError):
            submission.render_script(database, settings._replace(JOB_TEMPLATE="none"), request, 1)
    finally:
        database.close()
