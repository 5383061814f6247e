"""The slides' transcript, word for word where it can be, with real shells, launchers and jobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
TIME = r"\d\d-\d\d-\d{4} \d\d:\d\d:\d\d\.\d{6}"

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="no bash")

#: In the order in which the slides print them.
FIELDS = (
    "workflow", "name", "description", "lock", "parents", "input_files", "stage_in_url", "stage_out_files", "stage_out_url",
    "wall_time_minutes", "num_nodes", "coschedule_num_nodes", "ranks_per_node", "cpu_affinity", "threads_per_rank",
    "threads_per_core", "node_packing_count", "environ_vars", "application", "args", "user_workdir", "wait_for_parents",
    "post_error_handler", "post_timeout_handler", "auto_timeout_retry", "state", "queued_launch_id", "data",
)  # fmt: skip


class Terminal:
    """A user's shell and home; each `type` is a fresh bash in which the DB is active."""

    def __init__(self, place: Path, balsam_bin: str) -> None:
        self.place = place
        self.db = place / "test-db"
        (place / "balsam-home").mkdir()
        # A launcher leaves a second after its last job, so that the next one can start.
        (place / "balsam-home" / "settings.json").write_text(json.dumps({"IDLE_TTL_S": 1, "SCHEDULER_CLASS": "LocalScheduler"}))
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(("BALSAM_", "_BALSAM"))}
        self.environ.update(
            HOME=str(place), BALSAM_HOME=str(place / "balsam-home"), PATH=f"{balsam_bin}:{self.environ['PATH']}"
        )

    def type(self, lines: str, active: bool = True) -> str:
        """Run lines of a transcript; returns what they print on stdout. They must succeed."""
        before = "source balsamactivate test-db > /dev/null\n" if active else ""
        done = subprocess.run(
            ["bash", "--norc", "-eu", "-o", "pipefail", "-c", before + lines], cwd=self.place, env=self.environ,
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, f"{lines}\n{done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self) -> dict[str, dict[str, str]]:
        return {job["name"]: job for job in json.loads(self.type("balsam ls --json"))}

    def shortest_id(self, name: str) -> str:
        """Four characters of the job's id, as on the slides, or what it takes to tell it from the others."""
        ids = {job["name"]: job["job_id"] for job in self.jobs().values()}
        return next(
            ids[name][:length] for length in range(4, 37) if sum(i.startswith(ids[name][:length]) for i in ids.values()) == 1
        )

    def queue(self) -> list[dict[str, str]]:
        return json.loads(self.type("balsam ls queues --json"))

    def launch(self) -> str:
        """As on the slides, with the option -q twice; returns when every job has come to its end and the launcher too."""
        said = self.type("balsam submit-launch -n 2 -t 5 -q debug-cache-quad \\\n-A SDL_Workshop -q training --job-mode=serial")
        wait_until(
            lambda: all(job["state"] in ("JOB_FINISHED", "FAILED") for job in self.jobs().values()), timeout=60, pause=0.2
        )
        wait_until(lambda: self.queue() == [], timeout=60, pause=0.2)
        return said


Said = dict[str, str]


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory, balsam_bin: str) -> Iterator[Terminal]:
    made = Terminal(tmp_path_factory.mktemp("transcript"), balsam_bin)
    yield made
    if made.db.exists():  # a test failed half-way: the launcher ends by itself, but not before the directory goes
        wait_until(lambda: made.queue() == [], timeout=60, pause=0.2)


@pytest.fixture(scope="module")
def hello(terminal: Terminal) -> Said:
    """Hello World: from an empty directory to ten finished jobs. What each command said."""
    said = {"init": terminal.type("balsam init ~/test-db", active=False)}
    said["activate"] = terminal.type(
        "PS1='$ '; . balsamactivate test-db; printf '%s\\n' \"prompt=$PS1\" \"db=$BALSAM_DB_PATH\"", active=False
    )
    said["app"] = terminal.type('balsam app --name say-hello --executable "echo Hello,"')
    said["job"] = terminal.type('balsam job --name test1 --workflow test \\\n--app say-hello --args "world!" --yes')
    terminal.type(
        'for i in {2..10}\ndo\nbalsam job --name test${i} --workflow test --app say-hello \\\n--args "world ${i}!" --yes\ndone'
    )
    said["ls before"] = terminal.type("balsam ls")
    said["submit"] = terminal.launch()
    said["ls after"] = terminal.type("balsam ls")
    said["history"] = terminal.type("balsam ls --name test5 --history")
    said["hist"] = terminal.type("balsam ls --name test5 --hist")
    said["files"] = terminal.type("ls test-db; ls test-db/data/test; ls test-db/qsubmit; cat test-db/data/test/test5_*/*")
    return said


@pytest.fixture(scope="module")
def failed(terminal: Terminal, hello: Said) -> Said:
    """Error States: a Python script that raises."""
    (terminal.place / "fail.py").write_text(
        'import sys\n\nprint("Hello from the script", flush=True)\nif sys.argv:\n    raise RuntimeError("simulated error")\n'
    )
    said = {"app": terminal.type("balsam app --name failer --exec fail.py")}
    terminal.type("balsam job --name testfail --workflow test --app failer --yes")
    terminal.launch()
    said["ls"] = terminal.type("balsam ls")
    said["history"] = terminal.type("balsam ls --state FAILED --history")
    return said


@pytest.fixture(scope="module")
def restarted(terminal: Terminal, failed: Said) -> Said:
    """Modifying Tasks: one from the command line, ten from Python, and all of them run again."""
    short = terminal.shortest_id("testfail")
    said = {"modify": terminal.type(f"balsam modify {short} state RESTART_READY")}
    said["python"] = terminal.type(
        "python - << 'EOF'\n"
        "from balsam_lite.launcher.dag import BalsamJob\n"
        'print(BalsamJob.objects.filter(num_nodes__lte=128, name__contains="test", state="JOB_FINISHED").update(\n'
        '    state="RESTART_READY"))\nEOF'
    )
    said["by states"] = terminal.type("BALSAM_LS_LIMIT=2 balsam ls --by-states")
    terminal.launch()
    said["history"] = terminal.type("balsam ls --history")
    return said


def table(text: str) -> list[list[str]]:
    """The cells of a printed table, its header first."""
    return [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "|" in line]


def events(history: str) -> dict[str, list[tuple[str, str]]]:
    """Of each job, the states that its printed history shows, with the first line of their messages."""
    found: dict[str, list[tuple[str, str]]] = {}
    of_job: list[tuple[str, str]] = []
    for line in history.splitlines():
        job = re.fullmatch(rf"Job (\S+) \[{UUID}\]", line)
        event = re.fullmatch(rf"\[{TIME} ([A-Z_]+)\](?: (.*))?", line)
        if job:
            of_job = found.setdefault(job[1], [])
        elif event:
            of_job.append((event[1], event[2] or ""))
    return found


# --- Hello World ------------------------------------------------------------------------------------------------------


def test_init_says_where_the_db_is_and_how_to_activate_it(terminal: Terminal, hello: Said) -> None:
    stars, created, use, last = hello["init"].splitlines()
    assert created == f"Successfully created Balsam DB at: {terminal.db}"
    assert use == "Use `source balsamactivate test-db` to begin working."
    assert stars == last == "*" * len(stars)


def test_activating_sets_the_prompt_and_the_db(terminal: Terminal, hello: Said) -> None:
    assert "prompt=[BalsamDB: test-db] $ \n" in hello["activate"]
    assert f"db={terminal.db}\n" in hello["activate"]


def test_app_shows_the_application(hello: Said) -> None:
    shown = [line.rstrip() for line in hello["app"].splitlines() if line.strip("-")]
    assert shown == [
        "Application 1:", "Name:          say-hello", "Description:", "Executable:    echo Hello,", "Preprocess:",
        "Postprocess:", "Added app to database",
    ]  # fmt: skip


def test_job_shows_every_field_of_the_slides_in_their_order(terminal: Terminal, hello: Said) -> None:
    first, dashes, *lines = hello["job"].splitlines()
    job_id = re.fullmatch(rf"BalsamJob ({UUID})", first)[1]
    assert dashes == "-" * len(first)
    fields = dict(re.fullmatch(r"(?:\*\*\* )?([A-Za-z_ ]+):\s*(.*)", line.strip()).groups() for line in lines if ":" in line)
    assert list(fields) == [*FIELDS, "Executed command", "Working directory"]
    assert fields["args"] == "world!"
    assert fields["parents"] == "[]"
    assert (fields["state"], fields["queued_launch_id"], fields["data"]) == ("CREATED", "None", "{}")
    assert (fields["wait_for_parents"], fields["post_error_handler"]) == ("True", "False")
    assert fields["Executed command"] == "echo Hello, world!"
    assert fields["Working directory"] == f"{terminal.db}/data/test/test1_{job_id[:8]}"


def test_ls_shows_ten_created_jobs_in_the_columns_of_the_slides(hello: Said) -> None:
    header, *rows = table(hello["ls before"])
    assert header == ["job_id", "name", "workflow", "application", "state"]
    assert [row[1:] for row in rows] == [[f"test{n}", "test", "say-hello", "CREATED"] for n in range(1, 11)]
    assert all(re.fullmatch(UUID, row[0]) for row in rows)


def test_submit_launch_takes_the_last_queue_and_prints_the_launch_as_the_slides_do(terminal: Terminal, hello: Said) -> None:
    said = hello["submit"]
    assert said.startswith("Submit OK: Qlaunch {")
    shown = dict(re.findall(r"'(\w+)': ('[^']*'|\w+)", said))
    assert shown == {
        "command": f"'{terminal.db}/qsubmit/qlaunch1.sh'", "from_balsam": "True", "id": "1", "job_mode": "'serial'",
        "nodes": "2", "prescheduled_only": "False", "project": "'SDL_Workshop'", "queue": "'training'",
        "scheduler_id": "1", "state": "'submitted'", "wall_minutes": "5", "wf_filter": "''",
    }  # fmt: skip
    assert list(shown) == sorted(shown)


def test_all_ten_jobs_finish(hello: Said) -> None:
    _, *rows = table(hello["ls after"])
    assert sorted(row[1] for row in rows) == sorted(f"test{n}" for n in range(1, 11))
    assert {row[4] for row in rows} == {"JOB_FINISHED"}


def test_a_plain_job_has_the_five_events_of_the_slides(hello: Said) -> None:
    title, dashes, *lines = hello["history"].rstrip().splitlines()
    assert re.fullmatch(rf"Job test5 \[{UUID}\]", title)
    assert re.fullmatch("-+", dashes)
    expected = ["CREATED", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    assert [re.fullmatch(rf"\[({TIME}) (\w+)\](.*)", line)[2] for line in lines] == expected
    assert lines[2].endswith("RUNNING] Not scheduled by Balsam service")
    times = [line[1:27] for line in lines]
    assert times == sorted(times)
    assert hello["hist"] == hello["history"]


def test_everything_lies_in_the_db_directory(terminal: Terminal, hello: Said) -> None:
    ids = {name: row[0][:8] for row in table(hello["ls after"])[1:] for name in [row[1]]}
    lines = hello["files"].splitlines()
    assert {"data", "log", "qsubmit", "balsam.sqlite3"} <= set(lines)
    assert {f"test{n}_{ids[f'test{n}']}" for n in range(1, 11)} <= set(lines)
    assert "qlaunch1.sh" in lines
    assert lines[-1] == "Hello, world 5!"
    for name, short in ids.items():
        number = "" if name == "test1" else f" {name[4:]}"
        assert (terminal.db / "data" / "test" / f"{name}_{short}" / f"{name}.out").read_text() == f"Hello, world{number}!\n"


# --- Error States -----------------------------------------------------------------------------------------------------


def test_a_python_file_is_registered_with_its_interpreter_and_absolute_path(terminal: Terminal, failed: Said) -> None:
    assert "Application 2:" in failed["app"]
    (line,) = (line for line in failed["app"].splitlines() if line.startswith("Executable:"))
    assert re.fullmatch(rf"Executable:    /\S*python\S* {re.escape(str(terminal.place))}/fail\.py", line)


def test_a_job_that_fails_is_failed_and_the_others_stay_finished(failed: Said) -> None:
    states = {row[1]: row[4] for row in table(failed["ls"])[1:]}
    assert states.pop("testfail") == "FAILED"
    assert len(states) == 10
    assert set(states.values()) == {"JOB_FINISHED"}


def test_the_history_of_a_failed_job_shows_its_return_code_and_the_end_of_its_output(failed: Said) -> None:
    found = events(failed["history"])
    assert list(found) == ["testfail"]
    assert [state for state, _ in found["testfail"]] == ["CREATED", "PREPROCESSED", "RUNNING", "RUN_ERROR", "FAILED"]
    error = failed["history"].partition("RUN_ERROR]")[2].partition(" FAILED]")[0]
    assert re.search(r"\b1\b", error.splitlines()[0])
    assert "Traceback (most recent call last):" in error
    assert re.search(r'File "/\S+/fail\.py", line 5, in <module>', error)
    assert "RuntimeError: simulated error" in error


# --- Modifying Tasks --------------------------------------------------------------------------------------------------


def test_modify_accepts_the_beginning_of_an_id_and_the_state_of_the_slides(restarted: Said) -> None:
    assert re.fullmatch(r"job state changed to:\s+RESTART_READY\n", restarted["modify"])


def test_update_in_python_answers_with_the_number_of_jobs(restarted: Said) -> None:
    assert restarted["python"] == "10\n"


def test_modified_jobs_run_again_and_their_histories_say_who_did_it(terminal: Terminal, restarted: Said) -> None:
    found = events(restarted["history"])
    again = ["RESTART_READY", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    for number in range(1, 11):
        assert [state for state, _ in found[f"test{number}"]][-4:] == again
    assert [state for state, _ in found["testfail"]][-4:] == ["RESTART_READY", "RUNNING", "RUN_ERROR", "FAILED"]
    assert ("RESTART_READY", "User mutated state from command line") in found["testfail"]
    assert {job["attempt"] for job in terminal.jobs().values()} == {2}


# --- Monitoring Progress ----------------------------------------------------------------------------------------------


def test_by_states_shows_headings_tables_and_what_is_left_out(terminal: Terminal, restarted: Said) -> None:
    lines = restarted["by states"].splitlines()
    assert lines[0] == "RESTART_READY (11 BalsamJobs)"
    header, *rows = table(restarted["by states"])
    assert header == ["job_id", "name", "workflow", "application", "state"]
    assert len(rows) == 2
    assert {row[4] for row in rows} == {"RESTART_READY"}
    assert "(9 more BalsamJobs not shown...)" in lines


def test_by_states_has_one_table_for_each_state(terminal: Terminal, restarted: Said) -> None:
    shown = terminal.type("BALSAM_LS_LIMIT=2 balsam ls -by-states")
    headings = [line for line in shown.splitlines() if line.endswith("BalsamJobs)")]
    assert sorted(headings) == ["FAILED (1 BalsamJobs)", "JOB_FINISHED (10 BalsamJobs)"]
    assert shown.count("(8 more BalsamJobs not shown...)") == 1
