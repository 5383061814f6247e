"""The commands that create and change things: what they write, print and refuse."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, NamedTuple

import pytest
from helpers import Balsam

from balsam_lite.cli import common
from balsam_lite.core import states
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import queries
from balsam_lite.db.store import counters, graph, insert, user_actions
from balsam_lite.schedulers import base, submission


@pytest.fixture
def db(tmp_path: Path, balsam: Balsam) -> Iterator[Database]:
    """The same DB through a second connection."""
    found = directories.open_database(str(tmp_path / "db"))
    yield found
    found.close()


@pytest.fixture
def say(balsam: Balsam) -> str:
    assert balsam("app", "--name", "say", "--executable", "echo Hello,")[0] == 0
    return "say"


def add(balsam: Balsam, name: str, *more: str) -> str:
    """Add a job of app `say`; returns its UUID."""
    code, out, err = balsam("job", "--name", name, "--workflow", "w", "--application", "say", *more, "--yes")
    assert (code, err) == (0, "")
    return out.split()[1]


def jobs(balsam: Balsam, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(balsam("ls", "--json", *more)[1])
    return found


def job(balsam: Balsam, job_id: str) -> dict[str, Any]:
    (found,) = jobs(balsam, "--id", job_id)
    return found


# --- init, which, server ----------------------------------------------------------------------------------------------


def test_init_prints_the_slides_lines_between_asterisks(balsam: Balsam, tmp_path: Path) -> None:
    code, out, err = balsam("init", str(tmp_path / "new db"))
    stars, created, use, last = out.splitlines()
    assert (code, err) == (0, "")
    assert set(stars) == set(last) == {"*"}
    assert created == f"Successfully created Balsam DB at: {tmp_path}/new db"
    assert use == "Use `source balsamactivate new db` to begin working."
    assert sorted(p.name for p in (tmp_path / "new db").iterdir() if p.is_dir()) == ["data", "job-templates", "log", "qsubmit"]


def test_init_makes_every_directory_above_and_expands_home(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert balsam("init", "~/a/b/")[0] == 0
    assert directories.is_db(str(tmp_path / "a" / "b"))


def test_init_keeps_the_jobs_of_a_db_that_is_there(balsam: Balsam, tmp_path: Path, say: str) -> None:
    add(balsam, "kept")
    code, out, _ = balsam("init", str(tmp_path / "db"))
    assert code == 0
    assert "Successfully created" not in out
    assert [found["name"] for found in jobs(balsam)] == ["kept"]


def test_init_refuses_a_file(balsam: Balsam, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    code, out, err = balsam("init", str(tmp_path / "file"))
    assert (code, out) == (2, "")
    assert "is not a directory" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_init_can_prepare_for_a_shared_file_system(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert balsam("init", "--access", "shared", str(tmp_path / "nfs"))[0] == 0
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "nfs"))
    assert json.loads(balsam("which", "--json")[1]) == [{"path": str(tmp_path / "nfs"), "access": "shared"}]
    balsam("app", "--name", "say", "--executable", "echo")
    add(balsam, "one")
    assert [found["name"] for found in jobs(balsam)] == ["one"]
    assert [found["name"] for found in json.loads(balsam("ls", "--hist", "--json")[1])] == ["one"]


def test_which_shows_the_active_db_and_lists_the_known_ones(balsam: Balsam, tmp_path: Path) -> None:
    balsam("init", str(tmp_path / "other"))
    assert f"Current Balsam DB: {tmp_path / 'db'}\n" in balsam("which")[1]
    assert balsam("which", "--list")[1] == f"{tmp_path / 'db'}\n{tmp_path / 'other'}\n"


def test_which_finds_a_db_by_part_of_its_path(balsam: Balsam, tmp_path: Path) -> None:
    balsam("init", str(tmp_path / "other"))
    assert balsam("which", "--name", "othe") == (0, f"{tmp_path / 'other'}\n", "")
    assert balsam("which", "--name", "nowhere")[0] == 3
    code, _, err = balsam("which", "--name", tmp_path.name)
    assert code == 2
    assert str(tmp_path / "db") in err


def test_a_db_activated_by_its_path_is_known_by_its_name_afterwards(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "another home"))
    assert balsam("which", "--name", "db")[1] == f"{tmp_path / 'db'}\n"  # the path ./db
    monkeypatch.chdir("/")
    assert balsam("which", "--name", "db")[1] == f"{tmp_path / 'db'}\n"


@pytest.mark.parametrize(
    "words",
    [["--connect"], ["--reset"], ["--list-active-connections"], ["--list-users"], ["--add-user", "u"], ["--drop-user", "u"]],
)
def test_server_answers_harmlessly(balsam: Balsam, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALSAM_DB_PATH")
    assert balsam("server", *words) == (0, "no server: this DB is a file\n", "")


# --- app --------------------------------------------------------------------------------------------------------------


def test_app_prints_the_slides_form(balsam: Balsam) -> None:
    code, out, err = balsam("app", "--name", "say-hello", "--executable", "echo Hello,")
    assert (code, err) == (0, "")
    assert out == (
        "Application 1:\n"
        "-----------------------\n"
        "Name:          say-hello\n"
        "Description:\n"
        "Executable:    echo Hello,\n"
        "Preprocess:\n"
        "Postprocess:\n"
        "Added app to database\n"
    )


def test_a_python_script_gets_its_interpreter_and_absolute_path(balsam: Balsam, tmp_path: Path) -> None:
    (tmp_path / "fail.py").write_text("")
    _, out, err = balsam("app", "--name", "failer", "--exec", "fail.py -v 'x y'")
    assert f"Executable:    {sys.executable} {tmp_path}/fail.py -v 'x y'\n" in out
    assert err == ""


def test_an_envscript_is_kept_with_its_absolute_path(balsam: Balsam, tmp_path: Path) -> None:
    _, out, err = balsam("app", "--name", "a", "--exec", "echo", "--envscript", "env.sh")
    assert f"Envscript:     {tmp_path}/env.sh\n" in out
    assert err == f"Warning: envscript: {tmp_path}/env.sh does not exist\n"
    (tmp_path / "env.sh").touch()
    assert balsam("app", "--name", "b", "--exec", "echo", "--envscript", "env.sh")[2] == ""


def test_a_missing_program_is_a_warning(balsam: Balsam, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    plain.chmod(stat.S_IRUSR)
    for command, trouble in (
        ("no-such-program x", "no-such-program is not found on PATH"),
        ("/no/such/program", "does not exist"),
        (str(plain), "is not executable"),
        ("gone.py", f"{tmp_path}/gone.py does not exist"),
        ("./here", "is looked up in each job's working directory"),
    ):
        code, _, err = balsam("app", "--name", command[:9], "--exec", command)
        assert code == 0
        assert err.startswith("Warning: executable: ")
        assert trouble in err


def test_exit_0_after_a_stop_can_be_declared_done_for_an_application(balsam: Balsam, db: Database) -> None:
    code, out, err = balsam("app", "--name", "saver", "--executable", "echo x", "--exit-0-is-done-after-stop")
    assert (code, err) == (0, "") and "After a stop:  exit code 0 is done\n" in out
    with db.read() as cx:
        assert queries.app(cx, "saver")["exit_0_is_done_after_stop"] == 1
    assert balsam("modify", "--type", "apps", "saver", "exit_0_is_done_after_stop", "False")[0] == 0
    assert "After a stop" not in balsam("ls", "apps", "--verbose")[1]


def test_an_app_of_a_name_that_is_taken_is_refused(balsam: Balsam, say: str) -> None:
    code, out, err = balsam("app", "--name", "say", "--executable", "cat")
    assert (code, out) == (2, "")
    assert "An application named say already exists" in err


@pytest.mark.parametrize(
    ("name", "executable"),
    [("", "x"), (" ", "x"), ("a\nb", "x"), ("a", ""), ("a", "  "), ("a", "echo 'x"), ("a" * 1_000_001, "x")],
)
def test_an_app_without_sense_is_refused_and_not_stored(balsam: Balsam, name: str, executable: str) -> None:
    code, out, err = balsam("app", "--name", name, "--executable", executable)
    assert (code, out) == (2, "")
    assert err.startswith("Error: app ")
    assert balsam("ls", "apps", "--json")[1] == "[]\n"


# --- job --------------------------------------------------------------------------------------------------------------

FORM = """\
BalsamJob {id}
----------------------------------------------
workflow:                       test
name:                           test1
description:
lock:
parents:                        []
input_files:                    *
stage_in_url:
stage_out_files:
stage_out_url:
wall_time_minutes:              1
num_nodes:                      1
coschedule_num_nodes:           0
ranks_per_node:                 1
cpu_affinity:                   none
threads_per_rank:               1
threads_per_core:               1
node_packing_count:             1
environ_vars:
application:                    say
args:                           world!
user_workdir:
wait_for_parents:               True
post_error_handler:             False
post_timeout_handler:           False
auto_timeout_retry:             True
state:                          CREATED
queued_launch_id:               None
data:                           {{}}
  *** Executed command:         echo Hello, world!
  *** Working directory:        {db}/data/test/test1_{id8}
"""


def test_job_prints_the_slides_form_of_what_it_stores(balsam: Balsam, db: Database, say: str) -> None:
    code, out, err = balsam("job", "--name", "test1", "--workflow", "test", "--app", "say", "--args", "world!", "--yes")
    (stored,) = jobs(balsam)
    form = FORM.format(id=stored["job_id"], id8=stored["job_id"][:8], db=db.directory)
    assert (code, out, err) == (0, f"{form}Added job to database\n", "")
    assert stored["workdir"] == f"test/test1_{stored['job_id'][:8]}"
    assert balsam("ls", "--verbose")[1] == f"{form}\n"


def test_every_option_of_job_reaches_its_field(balsam: Balsam, say: str, tmp_path: Path) -> None:
    first, second = add(balsam, "first"), add(balsam, "second")
    words = (
        "--wall-time-minutes 7 --num-nodes 2 --coschedule-num-nodes 1 --node-packing-count 3 --ranks-per-node 4"
        " --threads-per-rank 5 --threads-per-core 6 --gpus-per-rank 0.5 --cpu-affinity depth"
        " --post_handle_error --post_handle_timeout --disable_auto_timeout_retry --restart-limit 0 --max-retries 2"
        " --exit-0-is-done-after-stop --keep-background"
        " --url-in host:/in --url-out host:/out --env A=1 --env B=x:y=z --tag k=v --tag t=a=b --priority -3 --user-workdir wd"
        f" --parent {first} --parent {second[:9]} --no-wait-for-parents"
    ).split()
    words += [
        "--input-files",
        "*.in",
        "a b",
        "--retry-codes",
        "75",
        "-9",
        "--stage-out-files",
        "*.out",
        "--data",
        '{"x": [1]}',
        "--description",
        "one",
        "job",
    ]
    found = job(balsam, add(balsam, "third", *words))
    expected = {
        "wall_time_minutes": 7, "num_nodes": 2, "coschedule_num_nodes": 1, "node_packing_count": 3, "ranks_per_node": 4,
        "threads_per_rank": 5, "threads_per_core": 6, "gpus_per_rank": 0.5, "cpu_affinity": "depth", "post_error_handler": True,
        "post_timeout_handler": True, "auto_timeout_retry": False, "restart_limit": 0, "stage_in_url": "host:/in",
        "stage_out_url": "host:/out", "environ_vars": {"A": "1", "B": "x:y=z"}, "tags": {"k": "v", "t": "a=b"}, "priority": -3,
        "user_workdir": str(tmp_path / "wd"), "workdir": str(tmp_path / "wd"), "wait_for_parents": False,
        "input_files": "*.in 'a b'",
        "stage_out_files": "*.out", "data": {"x": [1]}, "description": "one job", "state": "CREATED", "unfinished_parents": 0,
        "max_retries": 2, "retry_codes": "-9 75", "exit_0_is_done_after_stop": True, "keep_background": True,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    parents = f'parents:                        ["{first}", "{second}"]\n'
    assert parents in balsam("ls", "--verbose", "--name", "third")[1]


def test_a_job_with_a_parent_waits_for_it(balsam: Balsam, say: str) -> None:
    parent = add(balsam, "parent")
    assert job(balsam, add(balsam, "child", "--parent", parent))["state"] == states.AWAITING_PARENTS


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--num-nodes", "0", "num_nodes must be 1 or more"), ("--num-nodes", "-1", "num_nodes must be 1 or more"),
        ("--num-nodes", "two", "num_nodes must be a whole number"), ("--ranks-per-node", "nan", "must be a whole number"),
        ("--num-nodes", "9" * 30, "num_nodes is out of range"), ("--gpus-per-rank", "nan", "gpus_per_rank must be"),
        ("--gpus-per-rank", "-1", "gpus_per_rank must be"), ("--wall-time-minutes", "1.5", "must be a whole number"),
        ("--restart-limit", "-1", "must be 0 or more"), ("--cpu-affinity", "all", "must be none or depth"),
        ("--env", "NOVALUE", "--env must look like NAME=VALUE"), ("--env", "=x", "--env must look like"),
        ("--tag", "word", "--tag must look like"), ("--data", "{", "must be a JSON object"),
        ("--data", "[1]", "must be a JSON object"),
        ("--args", "it's", "cannot be split into words"), ("--name", "a\nb", "must be one line"),
        ("--workflow", "\x1b[31m", "one line"),
    ],
)  # fmt: skip
def test_a_job_without_sense_is_refused_and_not_stored(balsam: Balsam, say: str, option: str, value: str, said: str) -> None:
    code, out, err = balsam("job", "--name", "j", "--workflow", "w", "--application", "say", option, value, "--yes")
    assert (code, out) == (2, "")
    assert said in err
    assert jobs(balsam) == []


def test_a_job_of_an_unknown_app_or_parent_is_refused(balsam: Balsam, say: str) -> None:
    code, out, err = balsam("job", "--name", "j", "--workflow", "w", "--application", "sya", "--yes")
    assert (code, out) == (3, "")
    assert "There is no application 'sya' in this DB. Did you mean 'say'?" in err
    code, out, _ = balsam("job", "--name", "j", "--workflow", "w", "--application", "say", "--parent", "ffff", "--yes")
    assert (code, out) == (3, "")
    assert jobs(balsam) == []


@pytest.mark.parametrize("name", ["", "é🎉" * 300, "a/../../b", "..", " "])
def test_a_strange_name_stays_as_it_is_and_leads_nowhere_else(balsam: Balsam, db: Database, say: str, name: str) -> None:
    found = job(balsam, add(balsam, name, "--workflow", name))
    assert found["name"] == found["workflow"] == name
    data = os.path.join(db.directory, "data")
    path = os.path.normpath(os.path.join(data, found["workdir"]))
    assert os.path.dirname(path).startswith(data)
    assert all(len(part.encode()) <= 255 for part in path.split("/"))


def test_a_job_is_added_only_after_the_form_and_a_yes(balsam: Balsam, say: str, answers: Callable[..., None]) -> None:
    words = ("job", "--name", "j", "--workflow", "w", "--application", "say")
    answers("", "yes", "n")
    code, out, err = balsam(*words)
    assert (code, err) == (1, "")
    assert out.startswith("BalsamJob ")
    assert out.endswith("\n" + "Confirm adding job to DB [y/n]: " * 3 + "Add job aborted\n")
    assert jobs(balsam) == []
    answers("Y")
    code, out, _ = balsam(*words)
    assert code == 0
    assert out.endswith("Confirm adding job to DB [y/n]: Added job to database\n")
    assert len(jobs(balsam)) == 1


def test_the_end_of_the_input_is_a_no(balsam: Balsam, say: str, answers: Callable[..., None]) -> None:
    answers()
    assert balsam("job", "--name", "j", "--workflow", "w", "--application", "say")[0] == 1
    assert jobs(balsam) == []


@pytest.mark.parametrize(("words", "option"), [(["killjob", "--id"], "--yes"), (["rm", "jobs", "--id"], "--force")])
def test_nobody_is_asked_without_a_terminal(balsam: Balsam, say: str, words: list[str], option: str) -> None:
    job_id = add(balsam, "j")
    code, out, err = balsam(*words, job_id)
    assert (code, out) == (2, "")
    assert option in err
    assert job(balsam, job_id)["state"] == states.CREATED


def test_a_closed_stdin_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(Exception, match="--yes"):
        common.confirm("Really?", "--yes")


def test_make_dummies_adds_what_the_old_one_added(balsam: Balsam) -> None:
    assert balsam("make_dummies", "3") == (0, "Added 3 dummy jobs to the DB\n", "")
    assert balsam("make_dummies", "1")[0] == 0
    found = jobs(balsam)
    assert [entry["name"] for entry in found] == ["dummy0", "dummy1", "dummy2", "dummy0"]
    assert {(entry["workflow"], entry["application"], entry["args"], entry["node_packing_count"]) for entry in found} == {
        ("dummy", "dummy", "hello", 64)
    }
    assert [app["executable"] for app in json.loads(balsam("ls", "apps", "--json")[1])] == ["echo"]


@pytest.mark.parametrize("num", ["0", "-1", "x", "1e3", "9" * 40, ""])
def test_make_dummies_needs_a_count(balsam: Balsam, num: str) -> None:
    assert balsam("make_dummies", num)[0] == 2
    assert balsam("ls", "apps", "--json")[1] == "[]\n"


# --- dep --------------------------------------------------------------------------------------------------------------


def test_dep_links_two_jobs_by_unique_prefixes(balsam: Balsam, say: str) -> None:
    parent, child = add(balsam, "A"), add(balsam, "B")
    code, out, err = balsam("dep", parent[:8], child)
    assert (code, out, err) == (0, f"Created link [A | {parent[:8]}] --> [B | {child[:8]}]\n", "")
    assert job(balsam, child)["state"] == states.AWAITING_PARENTS


def test_dep_refuses_doubles_cycles_and_a_job_as_its_own_parent(balsam: Balsam, say: str) -> None:
    parent, child = add(balsam, "A"), add(balsam, "B")
    balsam("dep", parent, child)
    for words in ((parent, child), (child, parent), (parent, parent)):
        code, out, err = balsam("dep", *words)
        assert (code, out) == (2, "")
        assert "Dependency already exists" in err or "circular dependency" in err
    assert job(balsam, parent)["state"] == states.CREATED


def test_an_ambiguous_id_lists_the_candidates(balsam: Balsam, db: Database, say: str) -> None:
    ids = [add(balsam, f"j{n}") for n in range(17)]  # of 17, two begin alike
    prefix = next(one[0] for one in ids if sum(other[0] == one[0] for other in ids) > 1)
    code, out, err = balsam("modify", prefix, "name", "x")
    assert (code, out) == (2, "")
    assert all(one[:8] in err for one in ids if one[0] == prefix)


# --- modify -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attr", "value", "stored", "shown"),
    [
        ("auto_timeout_retry", "False", False, "False"), ("post_error_handler", "true", True, "True"),
        ("data", '{"a": {"b": 1}}', {"a": {"b": 1}}, '{"a": {"b": 1}}'), ("tags", '{"k": "v"}', {"k": "v"}, '{"k": "v"}'),
        ("num_nodes", "4", 4, "4"), ("priority", "-5", -5, "-5"), ("gpus_per_rank", "0.25", 0.25, "0.25"),
        ("name", "new", "new", "new"),
        ("args", "a 'b c'", "a 'b c'", "a 'b c'"), ("environ_vars", "A=1:B=2", {"A": "1", "B": "2"}, '{"A": "1", "B": "2"}'),
    ],
)  # fmt: skip
def test_modify_sets_a_field_by_its_kind(balsam: Balsam, say: str, attr: str, value: str, stored: object, shown: str) -> None:
    job_id = add(balsam, "j")
    assert balsam("modify", job_id[:8], attr, value) == (0, f"job {attr} changed to:  {shown}\n", "")
    assert job(balsam, job_id)[attr] == stored


@pytest.mark.parametrize(
    ("attr", "value"),
    [
        ("num_nodes", "0"), ("num_nodes", "x"), ("post_error_handler", "maybe"), ("data", "x"), ("data", "[]"),
        ("tags", '["a"]'),
        ("lease", "1"), ("lock", "x"), ("workdir", "/"), ("id", "7"), ("job_id", "7"), ("parents", "[]"), ("colour", "red"),
        ("", "x"),
        ("state", "FINISHED"), ("args", "it's"), ("name", "a\nb"),
    ],
)  # fmt: skip
def test_modify_refuses_what_makes_no_sense(balsam: Balsam, say: str, attr: str, value: str) -> None:
    job_id = add(balsam, "j")
    before = job(balsam, job_id)
    code, out, err = balsam("modify", job_id, attr, value)
    assert (code, out) == (2, "")
    assert err.startswith("Error: ")
    assert job(balsam, job_id) == before


def test_modify_names_the_nearest_field_and_state(balsam: Balsam, say: str) -> None:
    job_id = add(balsam, "j")
    assert "'num_nodes'" in balsam("modify", job_id, "num_node", "2")[2]
    assert "Did you mean 'RESTART_READY'?" in balsam("modify", job_id, "state", "restart-ready")[2]


def test_modify_of_a_state_is_recorded_as_the_users_doing(balsam: Balsam, db: Database, say: str) -> None:
    job_id = add(balsam, "j")
    assert balsam("modify", job_id[:8], "state", "USER_KILLED")[0] == 0
    assert balsam("modify", job_id[:8], "state", "RESTART_READY") == (0, "job state changed to:  RESTART_READY\n", "")
    with db.read() as cx:
        events = queries.history(cx, 1)
    message = "User mutated state from command line"
    assert [(old, new, said) for _, old, new, said in events[1:]] == [
        ("CREATED", "USER_KILLED", message), ("USER_KILLED", "RESTART_READY", message),
    ]  # fmt: skip


def test_modify_does_not_claim_a_change_of_state_that_did_not_happen(balsam: Balsam, say: str) -> None:
    job_id = add(balsam, "j")
    balsam("modify", job_id, "state", "FAILED")
    code, out, err = balsam("modify", job_id, "state", "USER_KILLED")
    assert (code, out) == (1, "")
    assert "is FAILED already" in err
    assert balsam("modify", job_id, "state", "RUNNING")[0] == 1


def test_modify_changes_an_app_by_name_or_number(balsam: Balsam, say: str, tmp_path: Path) -> None:
    assert balsam("modify", "say", "description", "-v", "--type", "apps") == (0, "app description changed to:  -v\n", "")
    assert balsam("modify", "1", "name", "tell", "--type", "apps")[0] == 0
    (tmp_path / "x.py").write_text("")
    shown = f"app executable changed to:  {sys.executable} {tmp_path}/x.py\n"
    assert balsam("modify", "--type=apps", "tell", "executable", "x.py") == (0, shown, "")
    assert balsam("modify", "--type=apps", "say", "name", "x")[0] == 3
    assert balsam("modify", "--type=apps", "tell", "colour", "x")[0] == 2


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("executable", " ", "needs a command_template or an executable"),
        ("command_template", "echo {{ x }}", "cannot have both"),
        ("command_template", "echo {{ x ", "cannot"),
        ("parameters", '{"x": 3}', "must set 'required'"),
        ("definition", '{"file": "/x.py"}', "not the definition of an application"),
        ("definition", '{"file": 3, "class": "X"}', "not the definition of an application"),
    ],
)
def test_modify_refuses_an_app_that_could_not_run(balsam: Balsam, say: str, field: str, value: str, words: str) -> None:
    before = balsam("app", "ls", "--json")
    code, out, err = balsam("modify", "--type", "apps", "say", field, value)
    assert (code, out) == (2, "") and words in err
    assert balsam("app", "ls", "--json") == before


def test_jobs_stay_with_an_app_that_is_renamed(balsam: Balsam, say: str) -> None:
    job_id = add(balsam, "j")
    balsam("modify", "--type", "apps", "say", "name", "tell")
    assert job(balsam, job_id)["application"] == "tell"


# --- killjob and rm ---------------------------------------------------------------------------------------------------


def test_killjob_kills_after_a_yes(balsam: Balsam, say: str, answers: Callable[..., None]) -> None:
    job_id = add(balsam, "j")
    question = f"Really kill job j [j | {job_id[:8]}] ?? [y/n]: "
    answers("n")
    assert balsam("killjob", "--id", job_id[:8]) == (1, f"{question}Kill aborted\n", "")
    assert job(balsam, job_id)["state"] == states.CREATED
    answers("y")
    assert balsam("killjob", "--id", job_id[:8]) == (0, f"{question}Job killed\n", "")
    assert job(balsam, job_id)["state"] == states.USER_KILLED


def test_killjob_takes_several_ids_and_says_how_many_died(balsam: Balsam, say: str) -> None:
    ids = [add(balsam, f"j{n}") for n in range(4)]
    assert balsam("killjob", "--id", *ids[:2], "--id", ids[2], "--yes") == (0, "3 jobs killed\n", "")
    assert [found["state"] for found in jobs(balsam)] == [states.USER_KILLED] * 3 + [states.CREATED]
    assert balsam("killjob", "--id", ids[0], "--yes")[1].startswith("No job killed")


def test_killjob_kills_children_when_it_is_told_to(balsam: Balsam, say: str) -> None:
    parent = add(balsam, "p")
    child = add(balsam, "c", "--parent", parent)
    assert balsam("killjob", "--id", parent, "--recursive", "--yes")[1] == "2 jobs killed\n"
    assert job(balsam, child)["state"] == states.USER_KILLED


def test_killjob_says_how_many_a_launcher_has_to_stop(balsam: Balsam, db: Database, say: str) -> None:
    job_id = add(balsam, "j")
    with db.write() as cx:
        cx.execute("UPDATE job SET lease = 1, state = 'RUNNING'")
        counters.recount(cx)
    code, out, _ = balsam("killjob", "--id", job_id, "--yes")
    assert (code, out) == (0, "Job killed\nIt still runs until its launcher has stopped it.\n")


def test_killjob_of_nothing_is_not_found_and_kills_none(balsam: Balsam, say: str) -> None:
    job_id = add(balsam, "j")
    assert balsam("killjob", "--id", job_id, "ffff-none", "--yes")[0] == 3
    assert job(balsam, job_id)["state"] == states.CREATED


# --- mkchild ----------------------------------------------------------------------------------------------------------


def test_mkchild_adds_a_child_of_the_job_that_calls_it(
    balsam: Balsam, db: Database, say: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = add(balsam, "p")
    user_actions.update_fields(db, [1], {"queued_launch_id": 3})
    monkeypatch.setenv("BALSAM_JOB_ID", parent)
    code, out, err = balsam("mkchild", "--name", "c", "--application", "say", "--args=-x", "--max-retries", "2", "--yes")
    child = out.split()[1]
    assert (code, err) == (0, "")
    assert out.endswith(f"Added job to database\nCreated link [p | {parent[:8]}] --> [c | {child[:8]}]\n")
    found = job(balsam, child)
    expected = {"workflow": "w", "state": "AWAITING_PARENTS", "queued_launch_id": 3, "args": "-x", "max_retries": 2}
    assert {name: found[name] for name in expected} == expected
    assert f'parents:                        ["{parent}"]' in out
    assert f"spawned by [p | {parent[:8]}]" in balsam("ls", "--id", child, "--history")[1]


def test_mkchild_takes_another_parent_and_needs_one(balsam: Balsam, say: str, answers: Callable[..., None]) -> None:
    parent = add(balsam, "p")
    words = ("mkchild", "--name", "c", "--application", "say")
    code, _, err = balsam(*words, "--yes")
    assert (code, "BALSAM_JOB_ID" in err) == (2, True)
    assert balsam(*words, "--parent", "0000", "--yes")[0] == 3
    answers("n")
    assert balsam(*words, "--parent", parent[:8])[1].endswith("[y/n]: Add job aborted\n")
    assert len(jobs(balsam)) == 1
    assert balsam(*words, "--parent", parent[:8], "--yes")[0] == 0
    assert balsam(*words, "--workflow", "w", "--parent", parent[:8], "--yes")[0] == 2
    assert [found["unfinished_parents"] for found in jobs(balsam)] == [0, 1]


# --- rerun ------------------------------------------------------------------------------------------------------------


def test_rerun_puts_jobs_back_with_changed_fields(balsam: Balsam, db: Database, say: str) -> None:
    ran, fresh, held, other = (add(balsam, name) for name in ("ran", "fresh", "held", "other"))
    child = add(balsam, "child", "--parent", ran)
    user_actions.set_state(db, [1, 2, 3], states.FAILED)
    with db.write() as cx:
        cx.execute("UPDATE job SET attempt = 2, restarts = 3, retries = 1 WHERE id = 1")
        cx.execute("UPDATE job SET lease = 7 WHERE id = 3")
    assert job(balsam, child)["state"] == "FAILED"
    words = ("rerun", "--state", "FAILED", "--set", "wall_time_minutes=30", "--set", 'data={"a": 1}', "--yes")
    assert balsam(*words) == (
        0, "3 jobs run again, 1 of them after their parents\n1 left alone: a launcher holds them\n", ""
    )  # fmt: skip
    fields = ("name", "state", "wall_time_minutes", "restarts", "retries")
    assert [tuple(found[name] for name in fields) for found in jobs(balsam)] == [
        ("ran", "RESTART_READY", 30, 0, 0), ("fresh", "CREATED", 30, 0, 0), ("held", "FAILED", 1, 0, 0),
        ("other", "CREATED", 1, 0, 0), ("child", "AWAITING_PARENTS", 30, 0, 0),
    ]  # fmt: skip
    assert job(balsam, ran)["data"] == {"a": 1}
    assert balsam("rerun", "--id", ran[:8], "--to", "CREATED", "--yes")[1] == "1 job runs again\n"
    assert job(balsam, ran)["state"] == "CREATED"
    assert "Put back by balsam rerun" in balsam("ls", "--history", "--id", ran)[1]
    assert fresh != held != other


def test_rerun_chooses_as_ls_does(balsam: Balsam, say: str) -> None:
    add(balsam, "a", "--tag", "k=v")
    add(balsam, "b")
    for words in (("--tag", "k=v"), ("--name", "a"), ("--name", "A", "--wf", "W", "--app", "SA", "--contains", "-s", "CR*")):
        assert balsam("rerun", *words, "--yes")[1] == "1 job runs again\n"
    assert balsam("rerun", "--wf", "w", "--yes")[1] == "2 jobs run again\n"
    assert balsam("rerun", "--state", "CREATED", "--state", "FAILED", "--yes")[1] == "2 jobs run again\n"


def test_rerun_asks_first_and_needs_a_condition(balsam: Balsam, db: Database, say: str, answers: Callable[..., None]) -> None:
    add(balsam, "a")
    user_actions.set_state(db, [1], states.USER_KILLED)
    assert balsam("rerun", "--name", "", "--yes")[0] == 2
    for words in ((), ("--yes",), ("--to", "CREATED", "--yes")):
        code, _, err = balsam("rerun", *words)
        assert (code, "at least one" in err) == (2, True)
    code, _, err = balsam("rerun", "--name", "a")
    assert (code, "--yes" in err) == (2, True)
    answers("n")
    assert balsam("rerun", "--name", "a") == (1, "Run 1 job again? [y/n]: Rerun aborted\n", "")
    assert jobs(balsam)[0]["state"] == "USER_KILLED"
    answers("y")
    assert balsam("rerun", "--name", "a")[0] == 0
    assert jobs(balsam)[0]["state"] == "CREATED"
    assert balsam("rerun", "--name", "nosuch", "--yes")[0] == 3


@pytest.mark.parametrize("change", ["state=READY", "nam=x", "num_nodes=0", "application=no", "num_nodes"])
def test_rerun_with_a_change_that_makes_no_sense_changes_nothing(balsam: Balsam, db: Database, say: str, change: str) -> None:
    add(balsam, "a")
    user_actions.set_state(db, [1], states.FAILED)
    code, out, err = balsam("rerun", "--name", "a", "--set", change, "--yes")
    assert (code in (2, 3), out) == (True, "")
    assert change.partition("=")[0] in err or "no" in err
    assert jobs(balsam)[0]["state"] == "FAILED"


# --- trees ------------------------------------------------------------------------------------------------------------


def test_a_tree_of_ten_thousand_jobs_takes_less_than_a_second_and_the_same_few_queries(
    balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    plain = sqlite3.connect

    def traced(*args: Any, **options: Any) -> sqlite3.Connection:
        cx = plain(*args, **options)
        cx.set_trace_callback(lambda sql: asked.append(sql) if "SELECT" in sql and "FROM" in sql else None)
        return cx

    insert.add_jobs(db, ({"name": f"j{n}"} for n in range(10_000)))
    with db.write() as cx:
        graph.add_edges(cx, [(max(n // 3, 1), n) for n in range(2, 10_001)], 1)
    monkeypatch.setattr(sqlite3, "connect", traced)
    for words in (("--limit", "10000"), ("--json",)):
        asked.clear()
        started = time.process_time()
        code, out, _ = balsam("ls", "--tree", *words)
        assert time.process_time() - started < 5
        assert (code, out.count(" [j") if words[0] == "--limit" else len(json.loads(out))) == (0, 10_000)
        assert len([sql for sql in asked if "lease" not in sql]) <= 8  # JSON has the reasons of each page of 5000 jobs


# --- rm ---------------------------------------------------------------------------------------------------------------


def test_rm_removes_what_matches_after_a_yes(balsam: Balsam, say: str, answers: Callable[..., None]) -> None:
    ids = [add(balsam, name) for name in ("alpha", "beta", "alphabet")]
    for words, question in (
        (["--name", "alpha*"], "Remove 2 jobs matching --name alpha*?"),
        (["--id", ids[1][:9]], f"Remove 1 job matching --id {ids[1][:9]}?"),
        (["--all"], "Remove ALL 3 jobs?"),
        (["--all", "--no-trash"], "PERMANENTLY remove ALL 3 jobs?"),
    ):
        answers("n")
        assert balsam("rm", "jobs", *words) == (1, f"{question} [y/n]: Delete aborted\n", "")
    assert len(jobs(balsam)) == 3
    answers("y")
    code, out, _ = balsam("rm", "jobs", "--name", "alpha", "--contains")
    assert (code, out.rpartition(": ")[2]) == (0, "Removed 2 jobs.\n")
    assert [found["name"] for found in jobs(balsam)] == ["beta"]
    assert balsam("rm", "jobs", "--all", "--force") == (0, "Removed 1 job.\n", "")
    assert balsam("rm", "jobs", "--all", "--force") == (0, "There are no jobs to remove.\n", "")


@pytest.mark.parametrize("words", [[], ["--name", "x", "--all"], ["--name", ""], ["--tag", ""], ["--tag", "x"]])
def test_rm_needs_conditions_that_have_a_meaning(balsam: Balsam, say: str, words: list[str]) -> None:
    add(balsam, "x")
    assert balsam("rm", "jobs", *words, "--force")[0] == 2
    assert len(jobs(balsam)) == 1


@pytest.mark.parametrize(
    "words", [["jobs", "--name", "zzz"], ["jobs", "--id", "zzz"], ["apps", "--name", "zzz"], ["apps", "--id", "9"]]
)
def test_rm_of_nothing_is_not_found(balsam: Balsam, say: str, words: list[str]) -> None:
    assert balsam("rm", *words, "--force")[0] == 3


def test_rm_keeps_a_parent_that_others_wait_for_unless_forced(balsam: Balsam, say: str, answers: Callable[..., None]) -> None:
    parent = add(balsam, "p")
    child = add(balsam, "c", "--parent", parent)
    answers("y")
    code, _, err = balsam("rm", "jobs", "--id", parent)
    assert code == 1
    assert "--force" in err
    assert balsam("rm", "jobs", "--id", parent, "--force")[0] == 0
    assert job(balsam, child)["state"] == states.FAILED
    assert "FAILED] A parent job was removed from the DB" in balsam("ls", "--history", "--id", child)[1]


def test_rm_removes_apps_by_name_number_and_all(balsam: Balsam) -> None:
    for name in ("one", "two", "three", "four"):
        balsam("app", "--name", name, "--executable", "echo")
    assert balsam("rm", "apps", "--name", "t?o", "--force")[0] == 0
    assert balsam("rm", "apps", "--id", "1", "--force")[0] == 0
    assert [app["name"] for app in json.loads(balsam("ls", "apps", "--json")[1])] == ["three", "four"]
    assert balsam("rm", "apps", "--all", "--force")[0] == 0


# --- submit-launch and launcher ---------------------------------------------------------------------------------------


class FakeScheduler:
    """Accepts everything and remembers it."""

    template, domain, name = "local.tmpl", "fake", "fake"

    def __init__(self) -> None:
        self.submitted: list[base.Submission] = []

    def submit(self, submitted: base.Submission) -> str:
        self.submitted.append(submitted)
        return "278079"

    def poll(self, ids: object) -> dict[str, base.BatchStatus]:
        return {"278079": base.BatchStatus("278079", base.QUEUED)}


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    fake = FakeScheduler()
    for module in (base, submission):
        monkeypatch.setattr(module, "select", lambda settings: fake)
    return fake


SLIDES = [
    "submit-launch",
    "-n",
    "2",
    "-t",
    "5",
    "-q",
    "debug-cache-quad",
    "-A",
    "SDL_Workshop",
    "-q",
    "training",
    "--job-mode=serial",
]


def test_submit_launch_prints_what_the_slides_print(balsam: Balsam, db: Database, say: str, scheduler: FakeScheduler) -> None:
    add(balsam, "j")
    code, out, err = balsam(*SLIDES)
    assert (code, err) == (0, "")
    assert out == (
        f"Submit OK: Qlaunch {{   'command': '{db.directory}/qsubmit/qlaunch1.sh',\n"
        "    'from_balsam': True,\n"
        "    'id': 1,\n"
        "    'job_mode': 'serial',\n"
        "    'nodes': 2,\n"
        "    'prescheduled_only': False,\n"
        "    'project': 'SDL_Workshop',\n"
        "    'queue': 'training',\n"
        "    'scheduler_id': 278079,\n"
        "    'state': 'submitted',\n"
        "    'wall_minutes': 5,\n"
        "    'wf_filter': ''}\n"
    )
    assert [(s.nodes, s.minutes, s.queue) for s in scheduler.submitted] == [(2, 5, "training")]


def test_submit_launch_warns_when_nothing_waits(balsam: Balsam, say: str, scheduler: FakeScheduler) -> None:
    add(balsam, "j", "--workflow", "this")
    assert "Warning: No waiting job" in balsam(*SLIDES, "--wf-filter", "that")[2]
    assert "Warning: No waiting job" in balsam(*SLIDES, "--wf-filter", "thi")[2]
    assert balsam(*SLIDES, "--wf-filter", "this")[2] == balsam(*SLIDES, "--wf-filter", "t*s")[2] == balsam(*SLIDES)[2] == ""
    balsam("modify", jobs(balsam)[0]["job_id"], "state", "JOB_FINISHED")
    assert "Warning: No waiting job" in balsam(*SLIDES)[2]


def test_a_dry_run_prints_the_script_and_submits_nothing(balsam: Balsam, scheduler: FakeScheduler, tmp_path: Path) -> None:
    code, out, err = balsam(*SLIDES, "--dry-run", "--wf-filter", "my flow")
    assert (code, err) == (0, "")
    assert out.startswith("#!")
    assert "--wf-filter='my flow'" in out
    assert not scheduler.submitted
    assert list((tmp_path / "db" / "qsubmit").iterdir()) == []
    assert balsam("ls", "queues", "--json")[1] == "[]\n"


@pytest.mark.parametrize(
    "words",
    [["-n", "0"], ["-n", "-1"], ["-t", "0"], ["-n", "x"], ["--job-mode", "other"], ["-q", "a\nb"], ["--sched-flags", "it's"]],
)
def test_a_launch_without_sense_is_refused(balsam: Balsam, scheduler: FakeScheduler, words: list[str]) -> None:
    code, out, _ = balsam(*SLIDES, *words)
    assert (code, out) == (2, "")
    assert not scheduler.submitted


@pytest.mark.parametrize("missing", ["-n", "-t"])
def test_a_launch_needs_nodes_and_minutes(balsam: Balsam, missing: str) -> None:
    words = list(SLIDES)
    place = words.index(missing)
    del words[place : place + 2]
    code, _, err = balsam(*words)
    assert code == 2
    assert missing in err


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The calls of the launcher, which is not really started and ends with 7."""
    calls: list[tuple[str, Any]] = []

    class LauncherOptions(NamedTuple):
        job_mode: str
        workflow_filter: str | None
        time_limit_minutes: float
        nodes: int | None
        limit_nodes: int | None
        offset_nodes: int
        gpus_per_node: int | None
        persistent: bool
        transition_threads: int
        tags: tuple[tuple[str, str], ...]

    module = ModuleType("balsam_lite.launcher.main")
    module.LauncherOptions = LauncherOptions  # type: ignore[attr-defined]
    module.run_launcher = lambda directory, options: calls.append((directory, options)) or 7  # type: ignore[attr-defined,func-returns-value]
    monkeypatch.setitem(sys.modules, "balsam_lite.launcher.main", module)
    return calls


def test_launcher_hands_its_options_on_and_exits_with_its_code(
    balsam: Balsam, tmp_path: Path, launched: list[tuple[str, Any]]
) -> None:
    assert balsam("launcher", "--consume", "--job-mode", "serial")[0] == 7
    words = "launcher --wf-filter=w --job-mode=mpi --time-limit-minutes=2.5 --nodes 3 --gpus-per-node 0 --persistent"
    words += " --limit-nodes 2 --offset-nodes 1"
    assert balsam(*words.split(), "--num-tr", "2", "--tag", "k=v")[0] == 7
    assert [directory for directory, _ in launched] == [str(tmp_path / "db")] * 2
    assert [tuple(options) for _, options in launched] == [
        ("serial", None, 0, None, None, 0, None, False, 0, ()), ("mpi", "w", 2.5, 3, 2, 1, 0, True, 2, (("k", "v"),)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        [], ["--consume-all", "--wf-filter", "x"], ["--consume-all", "--time-limit-minutes", "nan"],
        ["--consume-all", "--time-limit-minutes", "-1"], ["--consume-all", "--time-limit-minutes", "inf"],
        ["--consume-all", "--nodes", "0"], ["--consume-all", "--gpus-per-node", "-1"],
        ["--consume-all", "--num-transition-threads", "-1"], ["--consume-all", "--tag", "no-pair"],
    ],
)  # fmt: skip
def test_launcher_refuses_what_makes_no_sense(balsam: Balsam, launched: list[tuple[str, Any]], words: list[str]) -> None:
    code, _, err = balsam("launcher", "--job-mode", "serial", *words)
    assert code == 2
    assert launched == []
    assert "range from 1" not in err or "--nodes" in words  # of the others, 0 makes sense


def test_tags_alone_say_which_jobs_a_launcher_runs(balsam: Balsam, launched: list[tuple[str, Any]]) -> None:
    assert balsam("launcher", "--job-mode", "serial", "--tag", "k=v", "--tag", "n=1")[0] == 7
    assert (launched[0][1].workflow_filter, launched[0][1].tags) == (None, (("k", "v"), ("n", "1")))


def test_a_launcher_without_jobs_to_choose_is_told_the_ways_to_choose_them(balsam: Balsam) -> None:
    code, _, err = balsam("launcher", "--job-mode", "serial")
    assert code == 2
    assert all(name in err for name in ("--consume-all", "--wf-filter", "--tag"))


# --- a DB that cannot be written --------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_db_is_told_and_left_alone(balsam: Balsam, tmp_path: Path) -> None:
    path = tmp_path / "db" / "balsam.sqlite3"
    path.chmod(0o400)
    (tmp_path / "db").chmod(0o500)
    code, out, err = balsam("make_dummies", "1")
    (tmp_path / "db").chmod(0o700)
    assert (code, out) == (1, "")
    assert "cannot be" in err


def test_a_damaged_db_is_told(balsam: Balsam, tmp_path: Path) -> None:
    path = tmp_path / "db" / "balsam.sqlite3"
    for extra in path.parent.glob("balsam.sqlite3-*"):
        extra.unlink()
    path.write_bytes(b"no database at all " * 500)
    code, out, err = balsam("ls")
    assert (code, out) == (1, "")
    assert "damaged or no database" in err
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(path).execute("SELECT * FROM job")
