"""PBS: what OpenPBS, Torque and Slurm's wrappers print, and the ends that the contract does not show."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import TESTS, wait_until
from sites import SITES, Site

from balsam_lite.core.errors import PollFailed
from balsam_lite.core.settings import Settings
from balsam_lite.core.subprocess_run import Completed
from balsam_lite.db.engine import directories
from balsam_lite.schedulers import base, submission
from balsam_lite.schedulers.base import BatchStatus, LaunchRequest, Submission
from balsam_lite.schedulers.pbs import TEXT, PBSAdapter, PBSScheduler, parse_list, parse_text, status_of

SUBMISSION = Submission("qlaunch7", "/db/qsubmit/qlaunch7.sh", "/db/qsubmit/qlaunch7.out", "/db/qsubmit", 2, 5)
ADAPTER = PBSAdapter("me")
#: As the manual pages and servers show them; the server's clock is this host's.
DATE, DATE_US = "Tue Mar 12 13:04:41 2024", int(time.mktime((2024, 3, 12, 13, 4, 41, 0, 0, -1))) * 1_000_000


@pytest.fixture
def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    kind = next(kind for kind in SITES if kind.name == getattr(request, "param", "pbs"))
    with contextmanager(kind.enter)(tmp_path, request, monkeypatch):
        monkeypatch.setenv("BALSAM_SCHEDULER_CLASS", kind.scheduler)
        yield Site(kind, tmp_path)


both = pytest.mark.parametrize("site", ["pbs", "torque"], indirect=True)


# --- command lines ----------------------------------------------------------------------------------------------------


def test_the_command_lines_are_those_of_the_manual() -> None:
    assert ADAPTER.submit_argv(SUBMISSION._replace(flags=("-l", "select=1:ncpus=4", "-v", "A=b c"))) == [
        "qsub", "-N", "qlaunch7", "-o", "/db/qsubmit/qlaunch7.out", "-j", "oe", "-l", "select=1:ncpus=4", "-v", "A=b c",
        "/db/qsubmit/qlaunch7.sh",
    ]  # fmt: skip
    assert ADAPTER.status_argv(["1.a", "2.a"]) == ["qstat", "-x", "-f", "-F", "json", "1.a", "2.a"]
    assert ADAPTER.status_argv(()) == ["qstat", "-x", "-u", "me"]
    old = PBSAdapter("me", "s", "q", "d", form=TEXT)
    assert (old.status_argv(["1"]), old.status_argv(())) == (["q", "-f", "1"], ["q", "-u", "me"])
    assert old.cancel_argv("1.a") == ["d", "1.a"]


@pytest.mark.parametrize(
    ("said", "native_id"),
    [
        ("123.server\n", "123.server"), ("123\n", "123"), ("123[].server\n", "123[].server"),
        ("Welcome to 7 days of maintenance\n  412020.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov \n\n",
         "412020.polaris-pbs-01.hsn.cm.polaris.alcf.anl.gov"),
        ("", ""), ("qsub: waiting", ""), ("12 jobs", ""), ("²", ""),
    ],
)  # fmt: skip
def test_the_id_is_the_line_that_is_one(said: str, native_id: str) -> None:
    assert ADAPTER.parse_id(said) == native_id


# --- JSON -------------------------------------------------------------------------------------------------------------


def job(**changes: Any) -> dict[str, Any]:
    """A batch job that ended well, as OpenPBS 20 told of it; None takes an attribute out."""
    values = {
        "Job_Name": "qlaunch7", "Job_Owner": "me@login01", "resources_used": {"cput": "00:00:00", "walltime": "00:04:00"},
        "job_state": "F", "queue": "workq", "server": "pbs", "ctime": "Tue Mar 12 10:27:52 2024", "exec_host": "n1/0",
        "mtime": "Tue Mar 12 13:08:50 2024", "Output_Path": "login01.example.org:/db/qsubmit/qlaunch7.out",
        "qtime": "Tue Mar 12 10:27:52 2024", "Resource_List": {"nodect": 2, "walltime": "100:00:00"}, "stime": DATE,
        "obittime": "Tue Mar 12 13:08:41 2024", "substate": 92, "Exit_status": 0, "Account_Name": None,
        "Variable_List": {"PBS_O_HOME": "/home/me", "ODD": {"a": [1, 2]}},
        "comment": "Job run at Tue Mar 12 at 13:04 on (n1:ncpus=48) and finished",
        "Submit_arguments": "-N qlaunch7 /db/qsubmit/qlaunch7.sh",
        **changes,
    }  # fmt: skip
    return {key: value for key, value in values.items() if value is not None}


def answer(jobs: dict[str, Any], *asked: str, returncode: int = 0, stderr: str = "") -> Completed:
    text = json.dumps({"timestamp": 1, "pbs_version": "20.0.1", "Jobs": jobs}).replace("/", "\\/")
    return Completed(["qstat", "-x", "-f", "-F", "json", *asked], returncode, text, stderr)


def told(**changes: Any) -> BatchStatus:
    found = ADAPTER.parse_statuses(answer({"7.pbs": job(**changes)}, "7.pbs"))
    assert found is not None
    return found["7.pbs"]


def test_a_finished_one_has_its_times_its_name_and_its_output() -> None:
    status = told()
    assert status[:6] == ("7.pbs", base.FINISHED, "", 0, DATE_US, DATE_US + 240_000_000)
    assert (status.name, status.output, status.command) == ("qlaunch7", "/db/qsubmit/qlaunch7.out", "")
    assert status.submitted_us is not None
    assert status.is_submission(SUBMISSION, status.submitted_us + 1_000_000)
    assert not status.is_submission(SUBMISSION, status.submitted_us + 3_600_000_000)
    assert not status.is_submission(SUBMISSION._replace(output="/another/db/qlaunch7.out"), 0)


@pytest.mark.parametrize(
    ("changes", "state", "exit_code", "reason"),
    [
        ({"Exit_status": 3, "substate": 93}, base.FAILED, 3, "exit code 3"),
        ({"Exit_status": 271, "substate": 91}, base.CANCELLED, 143, "cancelled; killed by signal 15 (SIGTERM)"),
        ({"Exit_status": None, "substate": 91, "stime": None}, base.CANCELLED, None, "cancelled"),
        ({"Exit_status": -29, "substate": 93}, base.TIMED_OUT, None, "its time limit was reached"),
        (
            {"Exit_status": 271, "resources_used": {"walltime": "100:00:09"}}, base.TIMED_OUT, 143,
            "its time limit was reached; killed by signal 15 (SIGTERM)",
        ),
        ({"Exit_status": 265}, base.FAILED, 137, "killed by signal 9 (SIGKILL)"),
        ({"Exit_status": 256 + 99}, base.FAILED, 227, "killed by signal 99"),
        ({"Exit_status": -3, "comment": "no home"}, base.FAILED, None, "PBS could not run it (its code -3); no home"),
        (
            {"Exit_status": None, "comment": "Job deleted as result of dependency"}, base.ENDED, None,
            "PBS does not tell its exit code; Job deleted as result of dependency",
        ),
        ({"Exit_status": "soon", "comment": None}, base.ENDED, None, "PBS does not tell its exit code"),
        ({"job_state": "C", "Exit_status": None, "exit_status": 2}, base.FAILED, 2, "exit code 2"),
        ({"job_state": "X"}, base.FINISHED, 0, ""),
    ],
)  # fmt: skip
def test_an_end_has_its_state_its_code_and_its_reason(
    changes: dict[str, Any], state: str, exit_code: int | None, reason: str
) -> None:
    status = told(**changes)
    assert (status.state, status.exit_code, status.reason) == (state, exit_code, reason)
    assert status.ended_us is not None


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({"job_state": "Q", "comment": "Not Running: Insufficient amount of resource"}, base.QUEUED, "Not Running: Insuff"),
        ({"job_state": "H", "comment": None}, base.QUEUED, "held"), ({"job_state": "R"}, base.RUNNING, ""),
        ({"job_state": "B"}, base.RUNNING, ""), ({"job_state": "E"}, base.RUNNING, "it has ended"),
        ({"job_state": "S", "comment": None}, base.QUEUED, "suspended"), ({"job_state": "W"}, base.QUEUED, ""),
        ({"job_state": "Z", "comment": None}, base.QUEUED, "state Z"), ({"job_state": None}, base.QUEUED, ""),
        ({"job_state": 7, "comment": None}, base.QUEUED, "state 7"),
    ],
)  # fmt: skip
def test_one_that_lives_is_never_gone_whatever_its_state(changes: dict[str, Any], state: str, reason: str) -> None:
    status = told(**{"Exit_status": None, **changes})
    assert (status.state, status.exit_code, status.ended_us) == (state, None, None)
    assert status.reason.startswith(reason)


def test_nonsense_in_attributes_is_not_known() -> None:
    status = told(
        stime="whenever", obittime="", mtime=5, qtime="Tue Mar 99 10:27:52 2024", Output_Path="nowhere", Resource_List=3
    )
    assert (status.started_us, status.ended_us, status.submitted_us, status.output) == (None, None, None, "")
    assert status_of("7", {}).state == base.QUEUED
    assert ADAPTER.parse_statuses(answer({"7": 5, "8": None}, "7", "8")) == {}


def test_ids_are_told_by_the_names_under_which_they_were_asked_for() -> None:
    found = ADAPTER.parse_statuses(answer({"7.pbs.example.org": job(), "8.pbs": job()}, "7", "8.pbs.example.org"))
    assert [(key, status.native_id) for key, status in found.items()] == [("7", "7"), ("8.pbs.example.org",) * 2]


def test_of_one_told_twice_the_living_one_counts() -> None:
    jobs = [f'"7.pbs": {json.dumps(job(job_state=state))}' for state in "FRF"]
    text = '{"Jobs": {' + ", ".join(jobs) + "}}"
    assert ADAPTER.parse_statuses(Completed(["qstat", "7.pbs"], 0, text, ""))["7.pbs"].state == base.RUNNING


@pytest.mark.parametrize("code", [153, 35])
def test_unknown_ids_hide_no_other_and_another_complaint_makes_the_answer_worthless(code: int) -> None:
    unknown = "qstat: Unknown Job Id 8.pbs\nqstat: 9.pbs Job has finished, use -x or -H to obtain historical job information\n"
    found = ADAPTER.parse_statuses(answer({"7.pbs": job()}, "7.pbs", "8.pbs", returncode=code, stderr=unknown))
    assert list(found) == ["7.pbs"]
    assert ADAPTER.parse_statuses(Completed(["qstat", "8.pbs"], code, "", unknown)) == {}
    trouble = unknown + "qstat: cannot connect to server pbs (errno=111)\n"
    assert ADAPTER.parse_statuses(answer({"7.pbs": job()}, "7.pbs", "8.pbs", returncode=code, stderr=trouble)) is None
    assert ADAPTER.parse_statuses(answer({"7.pbs": job()}, "7.pbs", returncode=1)) is None


# --- text -------------------------------------------------------------------------------------------------------------

LONG_FORM = """
Job Id: 7.pbs
    Job_Name = qlaunch7
    job_state = F
    Output_Path = login01.example.org:/a/very/long/path/that/is/cut/because/it/is/t
\too/long/for/a/line/db/qsubmit/qlaunch7.out
    Resource_List.walltime = 48:00:00
    Variable_List = PBS_O_HOME=/home/me,ODD=a = b,
\tPBS_O_PATH=/usr/bin,
\tMORE = 5
    comment = Job run at Sat Sep 14 at 08:37 on (n1:ncpus=1) and
\t finished
    stime = Tue Mar 12 13:04:41 2024
    Exit_status = 5

Job Id: 8.pbs
    job_state = R

"""

#: contribs/torque/qstat.pl of Slurm 22.05.
WRAPPER = """\
Job Id:\t12
\tJob_Name = qlaunch7
\tJob_Owner = root@vm
\tjob_state = C
\tqueue = debug
\tqtime = Tue Mar 12 13:04:41 2024
\tmtime = Tue Mar 12 13:04:42 2024
\tctime = Tue Mar 12 13:09:42 2024
\tResource_List.walltime = 00:05:00

"""


def test_the_text_form_is_read_with_its_broken_lines() -> None:
    jobs = dict(parse_text(LONG_FORM))
    assert list(jobs) == ["7.pbs", "8.pbs"]
    assert jobs["7.pbs"]["Output_Path"].endswith("/is/too/long/for/a/line/db/qsubmit/qlaunch7.out")
    assert jobs["7.pbs"]["comment"] == "Job run at Sat Sep 14 at 08:37 on (n1:ncpus=1) and finished"
    assert jobs["7.pbs"]["Variable_List"].endswith("MORE = 5")
    found = ADAPTER.parse_statuses(Completed(["qstat", "-f", "7.pbs"], 0, LONG_FORM, ""))
    assert (found["7.pbs"].exit_code, found["7.pbs"].started_us) == (5, DATE_US)
    assert found["8.pbs"].state == base.RUNNING


def test_slurms_wrapper_is_understood_as_far_as_it_tells() -> None:
    found = ADAPTER.parse_statuses(Completed(["qstat", "-f", "12"], 0, WRAPPER, ""))
    assert (found["12"].state, found["12"].exit_code, found["12"].name) == (base.ENDED, None, "qlaunch7")
    assert found["12"].submitted_us == DATE_US


def test_names_that_were_cut_short_are_candidates() -> None:
    names = {"1.a": "qlaunch123", "2.a": "qlaunch12*", "3.a": "qlaunch1", "4.long-server*": "qlaunch12345"}
    text = "".join(f"{native_id} me workq {name} --\n" for native_id, name in names.items())
    assert parse_list(text, "qlaunch12345") == ["1.a", "2.a", "4.long-server"]
    assert parse_list(text, "qlaunch1") == ["3.a"]
    assert parse_list("\nJob ID  Username\n-----  -----\n", "qlaunch1") == []


def test_no_garbage_makes_the_parsers_fail() -> None:
    draw = random.Random(7)
    pieces = [
        "Job Id:",
        " 7.pbs",
        "\n",
        "    ",
        "\t",
        "job_state = ",
        "R",
        "{",
        "}",
        '"Jobs":',
        "[",
        "\x00",
        "F",
        "Exit_status = ",
    ]
    pieces += ["99999999999999999999", "comment = é\u2028", "stime = ", DATE, '"7"', ":", ","]
    for _ in range(3000):
        text = "".join(draw.choices(pieces, k=draw.randrange(30)))
        ADAPTER.parse_statuses(Completed(["qstat", "7.pbs"], draw.choice((0, 1, 153)), text, text))
        ADAPTER.parse_id(text)
        parse_list(text, "R")
    for text in ("[" * 100_000, '{"Jobs": ' + "{" * 100_000, '{"Jobs": ' + '{"a":' * 5000 + "1" + "}" * 5001):
        ADAPTER.parse_statuses(Completed(["qstat", "7.pbs"], 0, text, ""))


# --- a whole life, by the fakes ---------------------------------------------------------------------------------------


@both
def test_the_limit_ends_it_and_the_row_says_so(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_BATCH_MINUTE_S", "2")
    monkeypatch.setenv("FAKE_BATCH_KILL_S", "1")
    stubborn = site.script("stubborn", "trap 'echo TERM' TERM; while :; do sleep 0.1; done", minutes=1)
    ended = site.ended(stubborn, site.submit(stubborn))
    assert ended.state == base.TIMED_OUT
    assert ended.reason.startswith("its time limit was reached")
    wait_until(lambda: Path(stubborn.output).exists(), 10)
    assert Path(stubborn.output).read_text().splitlines().count("TERM") == 1


@both
def test_one_that_waits_says_why(site: Site) -> None:
    held = site.waiting()._replace(flags=("-h",))
    status = site.status(held, site.submit(held))
    assert (status.state, status.reason) == (base.QUEUED, "Not Running: Not enough free nodes available")


@both
def test_one_that_ended_before_anybody_looked_is_found_by_name_and_output(site: Site) -> None:
    short = site.script("qlaunch12345", "exit 4")
    native_id = site.submit(short)
    assert site.ended(short, native_id).exit_code == 4
    assert site.scheduler().find(short, time.time_ns() // 1000) == native_id
    assert site.scheduler().find(short, time.time_ns() // 1000 + 10**9) is None  # an older one of the same name
    assert site.scheduler().find(short._replace(output="/another/qlaunch12345.out"), 0) is None
    assert site.scheduler().find(short._replace(name="qlaunch1"), 0) is None


def test_a_server_without_a_history_makes_it_gone_and_not_finished(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PBS_HISTORY", "off")
    short = site.script("short", "touch done")
    native_id = site.submit(short)
    wait_until(lambda: site.status(short, native_id) is None, 20, 0.1)
    assert (site.folder / "done").exists()


def test_broken_json_is_read_as_text_and_json_is_asked_for_again(site: Site) -> None:
    waiting = site.waiting()
    native_id = site.submit(waiting)
    site.wait_until_up()
    command = site.command(
        "qstat",
        f'echo "$*" >> {site.folder}/asked; case "$*" in *json*) echo \'{{"Jobs": {{"7": {{"ODD": "\\x"}}}}}}\';; *) exec '
        'command qstat "$@";; esac'.replace("command qstat", str(TESTS / "fakebin" / "pbs" / "qstat")),
    )
    scheduler = site.scheduler(SCHEDULER_STATUS_EXE=command)
    for _ in range(2):
        assert scheduler.poll({native_id: waiting.output})[native_id].state == base.RUNNING
    asked = (site.folder / "asked").read_text().splitlines()
    assert ["json" in line for line in asked] == [True, False, True, False]


BROKEN_JSON = '{"Jobs": {"7.pbs": {"ODD": "\\x"}}}\n'
UNKNOWN = "qstat: Unknown Job Id 9.pbs\n"


def test_broken_json_is_read_as_text_also_where_one_of_the_ids_is_unknown(tmp_path: Path) -> None:
    command = tmp_path / "qstat"
    (tmp_path / "json").write_text(BROKEN_JSON)
    (tmp_path / "text").write_text(LONG_FORM)
    command.write_text(
        f'#!/bin/sh\necho "{UNKNOWN.strip()}" >&2\n'
        f'case "$*" in *json*) cat {tmp_path}/json;; *) cat {tmp_path}/text;; esac\nexit 153\n'
    )
    command.chmod(0o755)
    scheduler = PBSScheduler(Settings(SCHEDULER_STATUS_EXE=str(command)))
    assert set(scheduler.poll({"7.pbs": "", "8.pbs": "", "9.pbs": ""})) == {"7.pbs", "8.pbs"}


def test_an_answer_that_cannot_be_read_is_none_also_where_one_of_the_ids_is_unknown() -> None:
    assert ADAPTER.parse_statuses(Completed(["qstat", "7.pbs", "9.pbs"], 153, BROKEN_JSON, UNKNOWN)) is None
    assert ADAPTER.parse_statuses(Completed(["qstat", "9.pbs"], 153, "", UNKNOWN)) == {}


@pytest.mark.parametrize("site", ["torque"], indirect=True)
def test_an_old_qstat_is_asked_for_json_once(site: Site) -> None:
    waiting = site.waiting()
    native_id = site.submit(waiting)
    asked = site.folder / "asked"
    qstat = TESTS / "fakebin" / "pbs" / "qstat"
    scheduler = site.scheduler(SCHEDULER_STATUS_EXE=site.command("qstat", f'echo "$*" >> {asked}; exec {qstat} "$@"'))
    for _ in range(3):
        assert native_id in scheduler.poll({native_id: waiting.output})
    assert ["json" in line for line in asked.read_text().splitlines()] == [True, False, False, False]


def test_a_list_that_fails_finds_nothing_out() -> None:
    with pytest.raises(PollFailed, match="did not list"):
        PBSScheduler(Settings(SCHEDULER_STATUS_EXE="/bin/false")).find(SUBMISSION, 0)


def test_the_lines_for_pbs_have_hours_without_end_and_leave_out_what_is_empty(tmp_path: Path) -> None:
    database = directories.create(str(tmp_path / "db"))
    settings = Settings(SCHEDULER_CLASS="PBSScheduler", DEFAULT_PROJECT="")
    try:
        text = submission.render_script(database, settings, LaunchRequest(3, 6005, queue="debug", project="mine"), 1)
        assert text.splitlines()[:6] == [
            "#!/bin/bash", "#PBS -A mine", "#PBS -l select=3", "#PBS -q debug", "#PBS -l walltime=100:05:00", "#PBS -k doe",
        ]  # fmt: skip
        text = submission.render_script(database, settings, LaunchRequest(1, 5), 1)
        assert text.splitlines()[:4] == ["#!/bin/bash", "#PBS -l select=1", "#PBS -l walltime=00:05:00", "#PBS -k doe"]
    finally:
        database.close()
