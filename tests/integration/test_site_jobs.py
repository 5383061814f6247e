"""`balsam job create|ls|modify|rm` and `balsam app ls|rm`: what they print, refuse and leave in the DBs of the sites."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from helpers import ROOT, Balsam

from balsam_lite.cli import listing, output
from balsam_lite.core import states
from balsam_lite.core.subprocess_run import Completed
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, insert
from balsam_lite.sites.rpc.protocol import respond
from balsam_lite.sites.rpc.remote import RemoteSite

TEMPLATE = "echo Hello, {{ say_hello_to }}! CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
HELLO = {
    "name": "Hello", "description": "Greets.", "command_template": TEMPLATE,
    "parameters": {"say_hello_to": {"required": True, "default": None, "help": "whom"}},
    "definition": {"file": "/apps/hello.py", "class": "Hello", "module": "__main__"},
}  # fmt: skip
SUM = {
    "name": "Sum", "parameters": {"a": {"required": True}, "b": {"required": False, "default": "1"}},
    "definition": {"file": "/apps/sums.py", "class": "Sum"},
}  # fmt: skip


@pytest.fixture
def balsam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_balsam: Balsam) -> Balsam:
    """Calls a command outside of any site."""
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return run_balsam


def make_site(tmp_path: Path, name: str) -> Database:
    db = directories.set_up(str(tmp_path / name), "local")
    registry.add(str(tmp_path / name), name)
    with db.write() as cx:
        for app in (HELLO, SUM, {"name": "say", "executable": "/bin/echo hi"}):
            apps.add_app(cx, app)
    return db


@pytest.fixture
def alpha(tmp_path: Path, balsam: Balsam) -> Iterator[Database]:
    """A site with three applications."""
    db = make_site(tmp_path, "alpha")
    yield db
    db.close()


@pytest.fixture
def beta(tmp_path: Path, alpha: Database) -> Iterator[Database]:
    """Another one."""
    db = make_site(tmp_path, "beta")
    yield db
    db.close()


HELLO_JOB = ("job", "create", "--app", "Hello", "--param", "say_hello_to=world")


def add(balsam: Balsam, workdir: str, *more: str, site: str = "alpha") -> int:
    """Adds a job of Hello; its number."""
    code, out, err = balsam(*HELLO_JOB, "--workdir", workdir, "--site", site, "--yes", *more)
    assert (code, err) == (0, "")
    return int(out.splitlines()[-1].partition("Added Job id=")[2])


def jobs(balsam: Balsam, *more: str) -> list[dict[str, Any]]:
    sites = () if "--site" in more else ("--site", "all")
    found: list[dict[str, Any]] = json.loads(balsam("job", "ls", "--json", *sites, *more)[1])
    return found


def put(db: Database, sql: str, *parameters: Any) -> None:
    """Past the store."""
    with db.write() as cx:
        cx.execute(sql, parameters)


def hold(db: Database, job: int) -> None:
    """Let a launcher have the job."""
    put(db, "UPDATE job SET lease = 7, state = 'RUNNING' WHERE id = ?", job)


# --- job create -------------------------------------------------------------------------------------------------------


def test_the_workshops_command_adds_the_job_and_prints_it_as_yaml(balsam: Balsam, alpha: Database) -> None:
    code, out, err = balsam(
        "job", "create", "--site", "alpha", "--app", "Hello", "--workdir=demo/hello", "--param", "say_hello_to=world",
        "--tag", "workflow=hello", "--yes",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out == (
        "workdir: demo/hello\ntags:\n    workflow: hello\ndata: {}\nreturn_code: null\nnum_nodes: 1\nranks_per_node: 1\n"
        "threads_per_rank: 1\nthreads_per_core: 1\nlaunch_params: {}\ngpus_per_rank: 0\nnode_packing_count: 1\n"
        "wall_time_min: 1\napp_id: 1\nsite_name: alpha\nparameters:\n    say_hello_to: world\nparent_ids: []\n"
        "Added Job id=1\n"
    )
    (job,) = jobs(balsam)
    assert (job["site"], job["app"], job["workdir"], job["tags"]) == ("alpha", "Hello", "demo/hello", {"workflow": "hello"})
    assert job["parameters"] == {"say_hello_to": "world"}


def test_each_short_option_sets_its_field(balsam: Balsam, alpha: Database) -> None:
    parent = add(balsam, "parent")
    code, out, err = balsam(
        "job", "create", "-a", "1", "-w", "x/y", "-p", "say_hello_to=a=b", "-tag", "k=v", "-tag", "l=w", "-n", "2", "-rpn", "4",
        "-tpr", "3", "-tpc", "2", "-g", "0.5", "-npc", "1", "-t", "30", "-pid", str(parent), "--name", "sim", "--workflow", "w",
        "--env", "A=1", "--priority", "-3", "--site", "alpha", "-y",
    )  # fmt: skip
    assert (code, err) == (0, "")
    job = jobs(balsam)[-1]
    expected = {
        "app": "Hello", "workdir": "x/y", "parameters": {"say_hello_to": "a=b"}, "tags": {"k": "v", "l": "w"}, "num_nodes": 2,
        "ranks_per_node": 4, "threads_per_rank": 3, "threads_per_core": 2, "gpus_per_rank": 0.5, "node_packing_count": 1,
        "wall_time_min": 30, "parent_ids": [parent], "name": "sim", "workflow": "w", "environ_vars": {"A": "1"}, "priority": -3,
    }  # fmt: skip
    assert {name: job[name] for name in expected} == expected
    assert 'name: sim\nworkflow: w\nenviron_vars:\n    A: "1"\npriority: -3\nAdded Job id=2\n' in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-w", "x", "-a", "Hello"], "Missing required parameters: {'say_hello_to'}"),
        (["-w", "x", "-a", "Hello", "-p", "say_hello_to=x", "-p", "z=", "-p", "y=1"], "Extraneous parameters: {'y', 'z'}"),
        (["-w", "x", "-a", "Sum", "-p", "b=1"], "Missing required parameters: {'a'}"),
        (["-w", "/abs", "-a", "say"], "Cannot use absolute path: /abs"),
        (["-w", "a/../../x", "-a", "say"], "below the data directory"),
        (["-w", ".", "-a", "say"], "below the data directory"),
        (["-w", "x", "-a", "say", "-tag", "novalue"], "--tag must look like NAME=VALUE, not 'novalue'"),
        (["-w", "x", "-a", "Hello", "-p", "world"], "--param must look like NAME=VALUE, not 'world'"),
        (["-w", "x", "-a", "say", "-n", "0"], "must be 1 or more, not 0"),
        (["-w", "x", "-a", "say", "-g", "-1"], "must be a number of 0 or more, not -1"),
    ],
)
def test_a_job_that_cannot_be_is_refused_before_anything_is_shown(
    balsam: Balsam, alpha: Database, words: list[str], said: str
) -> None:
    code, out, err = balsam("job", "create", *words, "--site", "alpha", "--yes")
    assert (code, out) == (2, "")
    assert said in err
    assert jobs(balsam) == []


def test_odd_rules_that_others_stored_are_no_traceback(balsam: Balsam, alpha: Database) -> None:
    with alpha.write() as cx:
        cx.execute("""UPDATE app SET parameters = '{"x": 5}' WHERE name = 'Hello'""")
    code, _, err = balsam("job", "create", "-a", "Hello", "-w", "x", "-p", "y=1", "--site", "alpha", "-y")
    assert (code, "Extraneous parameters: {'y'}" in err, "are: x" in err) == (2, True, True), err


def test_parameters_that_no_command_line_has_a_place_for_are_told(balsam: Balsam, alpha: Database) -> None:
    code, out, err = balsam("job", "create", "-a", "say", "-w", "x", "-p", "args=hello", "--site", "alpha", "--yes")
    assert (code, out.splitlines()[-1]) == (0, "Added Job id=1")  # its scripts may read them
    assert err == "Warning: The command line of say has no parameters: {'args'} will not be passed to it.\n"


def test_an_unknown_app_or_parent_is_named_with_what_there_is(balsam: Balsam, alpha: Database) -> None:
    code, out, err = balsam("job", "create", "-a", "Nope", "-w", "x", "--site", "alpha", "-y")
    assert (code, out) == (3, "")
    assert "There is no application 'Nope' on site alpha." in err
    assert "Hello, Sum, say" in err
    assert (
        "There is no application '99' on site alpha."
        in balsam("job", "create", "-a", "99", "-w", "x", "--site", "alpha", "-y")[2]
    )
    code, out, err = balsam(*HELLO_JOB, "-w", "x", "-pid", "5", "-pid", "4", "--site", "alpha", "-y")
    assert (code, out) == (3, "")
    assert "Could not find one or more Jobs set as parents: 4, 5" in err
    assert jobs(balsam) == []


def test_both_names_of_the_command_take_the_options_of_both(balsam: Balsam, alpha: Database) -> None:
    more = ("--description", "of", "both", "--max-retries", "2", "-p", "say_hello_to=you", "--site", "alpha", "--yes")
    code, out, err = balsam("job", "--app", "Hello", "--workdir", "there", "-rpn", "2", *more)
    assert (code, err) == (0, "")
    assert f"Working directory:        {alpha.directory}/data/there\n" in out
    assert out.endswith("Added job to database\n")
    code, out, err = balsam("job", "create", "-a", "Hello", "--name", "sim", "--workflow", "w", "--ranks-per-node", "2", *more)
    assert (code, err) == (0, "")
    assert out.endswith("name: sim\nworkflow: w\ndescription: of both\nmax_retries: 2\nAdded Job id=2\n")
    first, second = jobs(balsam)
    assert first["workdir"] == "there"
    assert out.startswith(f"workdir: {second['workdir']}\n")
    assert second["workdir"] == f"w/sim_{second['job_id'][:8]}"
    shared = ("app", "ranks_per_node", "description", "max_retries", "parameters")
    assert [first[name] for name in shared] == [second[name] for name in shared]
    assert [first[name] for name in shared] == ["Hello", 2, "of both", 2, {"say_hello_to": "you"}]


def test_a_new_job_needs_a_name_and_a_workflow_or_a_workdir(balsam: Balsam, alpha: Database) -> None:
    for words, missing in ((("job",), "--name"), (("job", "--name", "n"), "--workflow"), (("job", "create"), "--workdir"),
                           (("job", "create", "--name", "n"), "--workflow")):  # fmt: skip
        code, out, err = balsam(*words, "--app", "say", "--site", "alpha", "--yes")
        assert (code, out) == (2, "")
        assert missing in err.splitlines()[-1]


def test_a_new_job_needs_exactly_one_site(balsam: Balsam, beta: Database) -> None:
    create = (*HELLO_JOB, "-w", "x", "-y")
    code, out, err = balsam(*create, "--site", "a")  # a part of both names
    assert (code, out) == (2, "")
    assert "More than one site" in err
    assert "alpha" in err
    assert "beta" in err
    assert balsam(*create, "--site", "gamma")[0] == 3
    code, _, err = balsam(*create)
    assert code != 0
    assert "BALSAM_SITE_PATH" in err
    assert jobs(balsam) == []


def test_without_site_the_active_db_is_meant(balsam: Balsam, beta: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAM_SITE_PATH", beta.directory)
    assert "site_name: beta\n" in balsam(*HELLO_JOB, "-w", "x", "-y")[1]
    assert "site_name: alpha\n" in balsam("--db", os.path.dirname(beta.directory) + "/alpha", *HELLO_JOB, "-w", "x", "-y")[1]
    assert [job["site"] for job in jobs(balsam)] == ["alpha", "beta"]


def test_a_no_leaves_everything_as_it_was(balsam: Balsam, alpha: Database, answers: Callable[..., None]) -> None:
    for lines in (["perhaps", "n"], []):
        answers(*lines)
        code, out, err = balsam(*HELLO_JOB, "-w", "x", "--site", "alpha")
        assert (code, err) == (1, "")
        assert "Do you want to create this Job?" in out
        assert "Added" not in out
    assert jobs(balsam) == []
    answers("y")
    assert balsam(*HELLO_JOB, "-w", "x", "--site", "alpha")[1].endswith("Added Job id=1\n")


@pytest.mark.parametrize(
    "words", [["job", "create", "-a", "say", "-w", "y"], ["job", "rm", "--all"], ["app", "rm", "-n", "Hello"]]
)
def test_with_a_closed_stdin_nothing_is_asked_and_nothing_done(
    balsam: Balsam, alpha: Database, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    add(balsam, "x")
    monkeypatch.setattr(sys, "stdin", None)
    code, _, err = balsam(*words, "--site", "alpha")
    assert code == 2
    assert "no terminal to ask" in err
    assert "--yes" in err
    assert len(jobs(balsam)) == 1


# --- job ls -----------------------------------------------------------------------------------------------------------


def test_the_table_is_the_workshops(balsam: Balsam, beta: Database) -> None:
    add(balsam, "demo/hello", "--tag", "workflow=hello")
    add(balsam, "w", "--tag", "workflow=hello", "--tag", "it's=1", site="beta")
    code, out, err = balsam("job", "ls", "--tag", "workflow=hello")
    assert (code, err) == (0, "")
    assert out == (
        "id  site   app    workdir     state    tags\n"
        "--  -----  -----  ----------  -------  ---------------------\n"
        "1   alpha  Hello  demo/hello  CREATED  workflow=hello\n"
        "1   beta   Hello  w           CREATED  workflow=hello it's=1\n"
    )


def test_what_would_break_a_line_is_escaped_and_wide_letters_count_twice(balsam: Balsam, alpha: Database) -> None:
    add(balsam, "日本", "--tag", 'q="a\nb\x1b[2J', "--param", "say_hello_to=a\nb")
    out = balsam("job", "ls", "--site", "alpha")[1]
    header, _, row = out.splitlines()
    assert row == '1   alpha  Hello  日本     CREATED  q="a\\nb\\x1b[2J'
    assert header == "id  site   app    workdir  state    tags"
    form = balsam("job", "ls", "--site", "alpha", "-v")[1]
    assert "\x1b" not in form
    assert '    q: "\\"a\\nb\\x1b[2J"\n' in form
    assert "deserialized parameters: {'say_hello_to': 'a\\nb'}\n---\n\n" in form


def test_without_matches_stdout_is_empty_and_stderr_says_where_was_looked(balsam: Balsam, beta: Database) -> None:
    for more in ([], ["-v"], ["--history"], ["--by-state"]):
        assert balsam("job", "ls", "--tag", "a=b", *more) == (0, "", "No job matches on alpha, beta.\n")
    assert balsam("job", "ls", "--site", "beta", "--app", "Nope") == (0, "", "No job matches on beta.\n")
    assert balsam("job", "ls", "--json") == (0, "[]\n", "")


@pytest.fixture
def some(balsam: Balsam, beta: Database) -> None:
    """Four jobs: three of alpha, one of them FAILED, and one of beta."""
    add(balsam, "runs/1", "--tag", "n=1")
    add(balsam, "runs/2", "--tag", "n=2", "--tag", "k=v")
    add(balsam, "runs/2", "--tag", "k=v", site="beta")
    assert balsam("job", "create", "-a", "Sum", "-w", "sums/1", "-p", "a=1", "--site", "alpha", "-y")[0] == 0
    assert balsam("job", "modify", "--id", "2", "--state", "FAILED", "--site", "alpha")[0] == 0


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], ["alpha 1", "alpha 2", "alpha 3", "beta 1"]),
        (["--site", "alpha"], ["alpha 1", "alpha 2", "alpha 3"]),
        (["--tag", "k=v"], ["alpha 2", "beta 1"]),
        (["-t", "k=v", "-t", "n=2"], ["alpha 2"]),
        (["--id", "1"], ["alpha 1", "beta 1"]),
        (["--id", "1", "--id", "3"], ["alpha 1", "alpha 3", "beta 1"]),
        (["-s", "FAILED"], ["alpha 2"]),
        (["-s", "FAILED", "-s", "CREATED"], ["alpha 1", "alpha 2", "alpha 3", "beta 1"]),
        (["-ns", "FAILED", "--site", "alpha"], ["alpha 1", "alpha 3"]),
        (["-w", "runs/2"], ["alpha 2", "beta 1"]),
        (["-a", "Sum"], ["alpha 3"]),
        (["-a", "2"], ["alpha 3"]),
        (["-a", "Hello", "--workdir", "2", "--exclude-state", "FAILED"], ["beta 1"]),
        (["--limit", "2"], ["alpha 1", "alpha 2"]),
    ],
)
def test_all_conditions_must_hold(balsam: Balsam, some: None, words: list[str], found: list[str]) -> None:
    assert [f"{job['site']} {job['id']}" for job in jobs(balsam, *words)] == found


def test_states_are_counted_over_all_sites_in_their_order(balsam: Balsam, some: None) -> None:
    head = "state    jobs\n-------  ----\n"
    assert balsam("job", "ls", "--by-state") == (0, f"{head}CREATED  3\nFAILED   1\n", "")
    assert balsam("job", "ls", "--by-state", "--tag", "k=v", "--site", "beta")[1] == f"{head}CREATED  1\n"
    everything = balsam("job", "ls", "--by-state", "-v")[1].splitlines()
    assert [line.split()[0] for line in everything[2:]] == list(states.STATES)
    assert json.loads(balsam("job", "ls", "--by-state", "--json")[1]) == [
        {"state": "CREATED", "jobs": 3}, {"state": "FAILED", "jobs": 1},
    ]  # fmt: skip


def test_the_history_of_each_job_begins_with_its_creation(balsam: Balsam, some: None) -> None:
    out = balsam("job", "ls", "--history", "--site", "alpha", "--tag", "n=2")[1]
    heading, _, created, failed, *rest = out.splitlines()
    assert heading.startswith("Job runs/2 [")
    assert created.endswith(" CREATED]")
    assert failed.endswith(" FAILED] User mutated state from command line")
    assert rest == [""]
    (found,) = json.loads(balsam("job", "ls", "--history", "--site", "alpha", "--tag", "n=2", "--json")[1])
    assert [event["to_state"] for event in found["history"]] == ["CREATED", "FAILED"]


def test_a_form_says_until_when_a_job_is_held_back(balsam: Balsam, alpha: Database) -> None:
    add(balsam, "x")
    with alpha.write() as cx:
        cx.execute("UPDATE job SET start_after = 4102444800000000")
    lines = balsam("job", "ls", "-v")[1].splitlines()
    assert 'start_after: "2100-01-01T00:00:00.000000Z"' in lines
    assert "waits_for: is held back until 01-01-2100 00:00:00.000000" in lines


def test_a_form_ends_with_three_dashes_and_has_the_workshops_fields(balsam: Balsam, some: None) -> None:
    out = balsam("job", "ls", "-v", "--tag", "n=1")[1]
    lines = out.splitlines()
    assert lines[:4] == ["site: alpha", "workdir: runs/1", "tags:", '    "n": "1"']
    assert lines[-3:] == ["deserialized parameters: {'say_hello_to': 'world'}", "---", ""]
    keys = [line.partition(":")[0] for line in lines if line[:1].isalpha()]
    assert keys[3:21] == [
        "data", "return_code", "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core", "launch_params",
        "gpus_per_rank", "node_packing_count", "wall_time_min", "id", "app_id", "parent_ids", "batch_job_id", "last_update",
        "state", *keys[19:21],
    ]  # fmt: skip
    assert len(keys) == len(set(keys))


def test_a_long_list_comes_in_pages_without_a_gap(balsam: Balsam, alpha: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        add(balsam, f"w{number}")
    for name in ("PAGE", "HISTORY_PAGE"):
        monkeypatch.setattr(listing, name, 3)
    assert [line.split()[3] for line in balsam("job", "ls")[1].splitlines()[2:]] == [f"w{n}" for n in range(7)]
    assert balsam("job", "ls", "--history")[1].count("Job w") == 7
    assert len(jobs(balsam, "--limit", "4")) == 4


def test_a_long_table_has_one_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "ROWS_AT_ONCE", 2)
    file = io.StringIO()
    rows = ({"a": n, "b": "x"} for n in range(5))
    assert output.write_tables("table", ["a", "b"], rows, file, None, is_fixed=False) == (5, [])
    assert file.getvalue() == "a  b\n-  -\n0  x\n1  x\n2  x\n3  x\n4  x\n"


@pytest.mark.parametrize("verb", [["ls", "-s"], ["ls", "-ns"], ["rm", "-s"], ["modify", "-i", "1", "-s"]])
def test_an_unknown_state_is_told_with_the_nearest(balsam: Balsam, alpha: Database, verb: list[str]) -> None:
    code, out, err = balsam("job", *verb, "FINISHED")
    assert (code, out) == (2, "")
    assert "Did you mean 'JOB_FINISHED'?" in err


def test_an_unknown_site_is_an_error_with_the_known_ones(balsam: Balsam, beta: Database) -> None:
    for words in (["job", "ls"], ["app", "ls"], ["job", "rm", "--all"], ["job", "modify", "-i", "1", "-s", "READY"]):
        code, out, err = balsam(*words, "--site", "gamma")
        assert (code, out) == (3, "")
        assert "alpha, beta" in err


def test_a_site_that_is_gone_leaves_the_others_to_be_listed(balsam: Balsam, some: None, beta: Database) -> None:
    beta.close()
    os.rename(beta.directory, beta.directory + "-away")
    code, out, err = balsam("job", "ls", "--site", "alpha,beta")
    assert code == 0
    assert len(out.splitlines()) == 5
    assert err.startswith("Warning: site beta could not be read: ")


@pytest.mark.parametrize("words", [
    ["job", "modify", "-t", "k=v", "-s", "FAILED"], ["job", "rm", "--all", "-y"], ["app", "rm", "-n", "say", "-y"],
    ["app", "rm", "--all", "-y"], ["queue", "rm", "7"], ["queue", "term", "7"],
])  # fmt: skip
def test_nothing_is_changed_where_one_of_several_sites_cannot_be_read(
    balsam: Balsam, some: None, beta: Database, words: list[str]
) -> None:
    before = jobs(balsam, "--site", "alpha"), balsam("app", "ls", "-s", "alpha")
    beta.close()
    os.rename(beta.directory, beta.directory + "-away")
    code, out, err = balsam(*words, "--site", "alpha,beta")
    assert (code, out) == (1, "")
    assert "Nothing was changed: site beta could not be read: " in err and "--site" in err
    assert (jobs(balsam, "--site", "alpha"), balsam("app", "ls", "-s", "alpha")) == before


# --- job rerun, job kill ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [("rerun",), ("job", "rerun")])
def test_rerun_puts_jobs_of_several_sites_back(balsam: Balsam, some: None, name: tuple[str, ...]) -> None:
    balsam("job", "modify", "--app", "Hello", "--site", "all", "--state", "FAILED")
    failed = len(jobs(balsam, "--state", "FAILED", "--site", "alpha")), len(jobs(balsam, "--state", "FAILED", "--site", "beta"))
    code, out, err = balsam(*name, "--state", "FAILED", "--site", "all", "--set", "priority=3", "--yes")
    assert (code, err) == (0, "")
    words = [f"{number} jobs of {site} run again" if number > 1 else f"1 job of {site} runs again"
             for site, number in zip(("alpha", "beta"), failed)]  # fmt: skip
    assert out.splitlines() == words
    assert [job["priority"] for job in jobs(balsam) if job["app"] == "Hello"] == [3] * sum(failed)
    assert jobs(balsam, "--state", "FAILED") == []


@pytest.mark.parametrize("name", [("killjob",), ("job", "kill")])
def test_kill_ends_jobs_of_several_sites(balsam: Balsam, some: None, name: tuple[str, ...]) -> None:
    before = {site: len(jobs(balsam, "--site", site, "--state", "CREATED")) for site in ("alpha", "beta")}
    code, out, err = balsam(*name, "--where", "id__gte=1", "--site", "all", "--yes")
    assert (code, err) == (0, "")
    killed = [f"{number} jobs of {site} killed" if number > 1 else f"Job of {site} killed" for site, number in before.items()]
    assert out.splitlines() == killed
    assert {job["state"] for job in jobs(balsam)} == {"USER_KILLED", "FAILED"}


def test_digits_are_the_number_in_the_second_names(balsam: Balsam, some: None) -> None:
    code, out, _ = balsam("job", "kill", "--id", "1", "--site", "alpha", "--yes")
    assert (code, out) == (0, "Job of alpha killed\n")
    assert balsam("job", "rerun", "--id", "1", "--site", "alpha", "--yes")[:2] == (0, "1 job of alpha runs again\n")
    for words in (("kill", "--yes"), ("rerun", "--yes"), ("rm", "--yes"), ("modify", "--state", "READY")):
        code, out, err = balsam("job", words[0], "--id", "1", "--id", "99", "--site", "alpha", *words[1:])
        assert (code, out) == (3, "")
        assert "99" in err


@pytest.mark.parametrize("words", [("rerun", "--state", "FAILED"), ("killjob", "--name", "x"), ("rm", "jobs", "--all")])
def test_the_older_names_mean_the_active_db_and_never_all_sites(balsam: Balsam, some: None, words: tuple[str, ...]) -> None:
    code, out, err = balsam(*words, "--yes")
    assert (code, out) == (1, "")
    assert "balsamactivate" in err


# --- job modify -------------------------------------------------------------------------------------------------------


def test_modify_says_what_it_did_and_tells_the_children(balsam: Balsam, alpha: Database) -> None:
    parent = add(balsam, "p", "--tag", "k=v")
    add(balsam, "c", "-pid", str(parent))
    assert balsam("job", "modify", "-t", "k=v", "-s", "FAILED") == (0, "1 job of alpha put into FAILED.\n", "")
    assert [job["state"] for job in jobs(balsam)] == ["FAILED", "FAILED"]
    assert balsam("job", "modify", "-i", "1", "-s", "RESTART_READY")[0] == 0
    assert [job["state"] for job in jobs(balsam)] == ["RESTART_READY", "AWAITING_PARENTS"]


def test_modify_needs_to_know_which_jobs(balsam: Balsam, some: None) -> None:
    code, out, err = balsam("job", "modify", "-s", "FAILED")
    assert (code, out) == (2, "")
    assert "Which jobs? Give conditions" in err
    assert balsam("job", "modify", "-i", "1")[0] == 2
    assert balsam("job", "modify", "-i", "1", "-s", "FAILED", "priority", "3")[0] == 2
    assert balsam("job", "modify", "-i", "77", "-s", "FAILED") == (
        3, "", "Error: No job matches --id 77.\n`balsam ls` shows the jobs.\n"
    )  # fmt: skip
    assert balsam("job", "modify", "-t", "k=v", "priority", "3")[:2] == (
        0, "priority of 1 job of alpha changed to 3.\npriority of 1 job of beta changed to 3.\n"
    )  # fmt: skip
    assert [job["priority"] for job in jobs(balsam)] == [0, 3, 0, 3]


def test_a_number_that_two_sites_have_needs_a_site(balsam: Balsam, some: None) -> None:
    for words in (["modify", "-s", "FAILED"], ["rm", "--yes"]):
        code, out, err = balsam("job", *words, "-i", "1")
        assert (code, out) == (2, "")
        assert "alpha, beta" in err
        assert "--site" in err
    assert len(jobs(balsam, "-s", "CREATED")) == 3
    assert balsam("job", "modify", "-i", "1", "-s", "FAILED", "--site", "beta")[0] == 0
    assert [job["site"] for job in jobs(balsam, "-s", "CREATED")] == ["alpha", "alpha"]


def test_a_job_that_a_launcher_has_is_not_modified(balsam: Balsam, alpha: Database) -> None:
    hold(alpha, add(balsam, "x"))
    code, out, err = balsam("job", "modify", "-i", "1", "-s", "RESTART_READY")
    assert (code, out) == (1, "")
    assert "held by launcher 7" in err


# --- job rm -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["-i", "1", "--site", "alpha"], ["alpha 2", "alpha 3", "beta 1"]),
        (["-t", "k=v"], ["alpha 1", "alpha 3"]),
        (["-t", "k=v", "-s", "FAILED"], ["alpha 1", "alpha 3", "beta 1"]),
        (["-ns", "FAILED"], ["alpha 2"]),
        (["-w", "sums", "-a", "Sum"], ["alpha 1", "alpha 2", "beta 1"]),
        (["--site", "alpha"], ["beta 1"]),
        (["--all", "--site", "beta"], ["alpha 1", "alpha 2", "alpha 3"]),
        (["--all"], []),
    ],
)
def test_rm_removes_what_is_meant_and_nothing_else(balsam: Balsam, some: None, words: list[str], left: list[str]) -> None:
    code, out, err = balsam("job", "rm", *words, "-y")
    assert (code, err) == (0, "")
    assert sum(int(line.split()[1]) for line in out.splitlines()) == 4 - len(left)
    assert [f"{job['site']} {job['id']}" for job in jobs(balsam)] == left


def test_rm_asks_with_the_number_and_a_no_removes_nothing(balsam: Balsam, some: None, answers: Callable[..., None]) -> None:
    answers("n")
    code, out, err = balsam("job", "rm", "--tag", "k=v")
    question = "Remove 2 jobs of alpha, beta matching --tag k=v?"
    assert (code, out, err) == (1, f"{question} [y/n]: Delete aborted\n", "")
    assert len(jobs(balsam)) == 4


def test_rm_without_conditions_or_matches_says_so(balsam: Balsam, some: None) -> None:
    code, out, err = balsam("job", "rm", "--yes")
    assert (code, out) == (2, "")
    assert "Which jobs to delete? Give conditions" in err
    assert balsam("job", "rm", "-t", "no=such", "--yes")[:2] == (3, "")
    assert balsam("job", "rm", "--all", "-t", "k=v", "--yes")[0] == 2
    assert balsam("job", "rm", "-t", "novalue", "--yes")[0] == 2
    assert len(jobs(balsam)) == 4


@pytest.mark.parametrize("words", [["-w", ""], ["-a", ""], ["--app", "0"], ["--app", "9" * 5000], ["-i", "9" * 30]])
def test_rm_takes_nothing_odd_for_everything(balsam: Balsam, some: None, words: list[str]) -> None:
    code, _, err = balsam("job", "rm", "--site", "all", "--yes", *words)
    assert code in (0, 2, 3)
    assert "unexpected" not in err
    assert len(jobs(balsam)) == 4


def test_rm_leaves_held_jobs_and_says_how_many(balsam: Balsam, alpha: Database) -> None:
    for n in range(3):
        add(balsam, f"w{n}")
    hold(alpha, 2)
    code, out, err = balsam("job", "rm", "--all", "--yes")
    assert (code, out) == (0, "Removed 2 jobs.\n")
    assert err == "Warning: 1 job left alone, as a launcher runs it. --running removes it, too.\n"
    assert [job["id"] for job in jobs(balsam)] == [2]
    assert balsam("job", "rm", "--all", "--running", "--yes") == (0, "Removed 1 job.\n", "")


def test_a_parent_is_removed_by_force_alone(balsam: Balsam, alpha: Database) -> None:
    add(balsam, "c", "-pid", str(add(balsam, "p")))
    code, _, err = balsam("job", "rm", "-i", "1", "--yes")
    assert code == 1
    assert "--force" in err
    assert balsam("job", "rm", "-i", "1", "--yes", "--force")[0] == 0
    assert [(job["id"], job["state"]) for job in jobs(balsam)] == [(2, "FAILED")]


# --- sites on other hosts ---------------------------------------------------------------------------------------------


@pytest.fixture
def omega(alpha: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A site on another host. All but the ssh is real, which has tests of its own."""

    def run(self: RemoteSite, request: bytes, timeout_s: float) -> Completed:
        return Completed([], 0, respond(request), "")

    monkeypatch.setattr(RemoteSite, "_run", run)
    db = directories.set_up(str(tmp_path / "omega"), "local")
    with db.write() as cx:
        apps.add_app(cx, HELLO)
    registry.add(str(tmp_path / "omega"), "omega", host="far")
    yield db
    db.close()


def test_all_commands_work_alike_on_a_site_of_another_host(balsam: Balsam, omega: Database) -> None:
    add(balsam, "here")
    code, out, err = balsam(*HELLO_JOB, "-w", "there", "-tag", "k=v", "--site", "omega", "-y")
    assert (code, err) == (0, "")
    assert "site_name: omega\n" in out
    assert out.endswith("Added Job id=1\n")
    assert "Missing required parameters" in balsam("job", "create", "-a", "Hello", "-w", "x", "--site", "omega", "-y")[2]
    for name in ("--url-in", "--url-out", "--user-workdir"):
        code, out, err = balsam(*HELLO_JOB, "-w", "y", name, "here/there", "--site", "omega", "-y")
        assert (code, out) == (2, "")
        assert "is a relative path, which means nothing at " in err
    listed = balsam("job", "ls")[1].splitlines()
    assert [line.split()[1:5] for line in listed[2:]] == [
        ["alpha", "Hello", "here", "CREATED"], ["omega", "Hello", "there", "CREATED"],
    ]  # fmt: skip
    assert balsam("job", "modify", "-t", "k=v", "-s", "FAILED")[1] == "1 job of omega put into FAILED.\n"
    assert balsam("job", "ls", "--by-state")[1].split()[4:] == ["CREATED", "1", "FAILED", "1"]
    assert " FAILED] User mutated" in balsam("job", "ls", "--history", "--site", "omega")[1]
    assert "site: omega\nworkdir: there\n" in balsam("job", "ls", "-v", "-t", "k=v")[1]
    assert [app["site"] for app in json.loads(balsam("app", "ls", "--json")[1])] == ["alpha"] * 3 + ["omega"]
    hold(omega, 1)
    assert "left alone" in balsam("job", "rm", "--all", "--yes")[2]
    assert [job["site"] for job in jobs(balsam)] == ["omega"]
    assert "A launcher runs 1 job of omega, which stays" in balsam("app", "rm", "-n", "Hello", "-s", "omega", "--yes")[2]
    put(omega, "UPDATE job SET lease = NULL")
    assert balsam("app", "rm", "-n", "Hello", "-s", "omega", "--yes")[0] == 0
    assert jobs(balsam) == []


# --- apps -------------------------------------------------------------------------------------------------------------


def test_app_ls_has_the_workshops_columns_for_all_kinds_of_apps(balsam: Balsam, beta: Database) -> None:
    code, out, err = balsam("app", "ls", "--site", "all")
    assert (code, err) == (0, "")
    assert out == (
        "id  name   site   kind      description\n"
        "--  -----  -----  --------  -----------\n"
        "1   Hello  alpha  template  Greets.\n"
        "2   Sum    alpha  function\n"
        "3   say    alpha  command\n"
        "1   Hello  beta   template  Greets.\n"
        "2   Sum    beta   function\n"
        "3   say    beta   command\n"
    )


def test_the_form_of_an_app_has_its_template_or_its_file_and_class(balsam: Balsam, alpha: Database) -> None:
    hello, sums, say, rest = balsam("app", "ls", "-v")[1].split("----\n")
    assert rest == ""
    assert hello == (
        "id: 1\nname: Hello\nsite: alpha\ndescription: Greets.\nkind: template\n"
        f"command_template: {TEMPLATE}\nsource: /apps/hello.py:Hello\n"
        "parameters:\n    say_hello_to:\n        required: true\n        default: null\n        help: whom\n"
    )
    assert "kind: function\nsource: /apps/sums.py:Sum\n" in sums
    assert "kind: command\nexecutable: /bin/echo hi\n" in say
    assert [(app["site"], app["name"]) for app in json.loads(balsam("app", "ls", "--json")[1])] == [
        ("alpha", "Hello"), ("alpha", "Sum"), ("alpha", "say"),
    ]  # fmt: skip


def test_a_site_without_apps_is_not_passed_over_in_silence(balsam: Balsam, tmp_path: Path) -> None:
    directories.create(str(tmp_path / "empty")).close()
    assert balsam("app", "ls", "--site", "empty") == (0, "", "No application is on empty.\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-n", "Hello", "--all", "-s", "alpha"], "Specify app name or --all, but not both"),
        ([], "Which applications? Specify app name with --name, or --id, or --all."),
        (["--all"], "balsam app rm --all requires that you specify --site to remove jobs"),
    ],
)
def test_app_rm_says_what_it_needs(balsam: Balsam, alpha: Database, words: list[str], said: str) -> None:
    code, out, err = balsam("app", "rm", *words)
    assert (code, out) == (2, "")
    assert said in err


def test_an_app_goes_with_its_jobs_after_a_question(balsam: Balsam, alpha: Database, answers: Callable[..., None]) -> None:
    add(balsam, "x")
    add(balsam, "y", "-pid", "1")
    answers("n")
    question = "Remove 1 app: Hello of alpha? Their 2 jobs will be removed, too."
    assert balsam("app", "rm", "-n", "Hello") == (1, f"{question} [y/n]: Delete aborted\n", "")
    assert len(jobs(balsam)) == 2
    assert balsam("app", "rm", "--name", "Hello", "--site", "alpha", "--yes")[0] == 0
    assert jobs(balsam) == []
    code, out, err = balsam("app", "rm", "-n", "say")
    assert (code, out, err) == (0, "Removed 1 app and 0 jobs of alpha.\n", "")
    assert [app["name"] for app in json.loads(balsam("app", "ls", "--json")[1])] == ["Sum"]
    assert "There is no application 'say' on alpha." in balsam("app", "rm", "-n", "say")[2]


def test_an_app_of_two_sites_is_removed_from_the_named_one_alone(balsam: Balsam, beta: Database) -> None:
    code, out, err = balsam("app", "rm", "-n", "Hello", "--yes")
    assert (code, out) == (2, "")
    assert "alpha, beta" in err
    code, _, err = balsam("app", "rm", "--all", "-s", "beta", "--yes")
    assert code == 0
    assert {app["site"] for app in json.loads(balsam("app", "ls", "--json")[1])} == {"alpha"}


def test_an_app_whose_job_runs_stays(balsam: Balsam, alpha: Database) -> None:
    hold(alpha, add(balsam, "x"))
    add(balsam, "y")
    code, out, err = balsam("app", "rm", "-n", "Hello", "--yes")
    assert (code, out) == (0, "Removed 0 apps and 1 job of alpha.\n")
    assert "A launcher runs 1 job of alpha, which stays with its application." in err
    assert [job["id"] for job in jobs(balsam)] == [1]
    assert "Hello" in balsam("app", "ls")[1]


# --- the same applications and jobs with the slides' commands ---------------------------------------------------------


def test_the_slides_commands_show_what_python_apps_run(balsam: Balsam, alpha: Database, tmp_path: Path) -> None:
    db = ("--db", str(tmp_path / "alpha"))
    table = balsam(*db, "ls", "apps")[1]
    assert TEMPLATE in table
    assert "sums.py:Sum" in table
    assert "echo hi" in table
    forms = balsam(*db, "ls", "apps", "--verbose")[1]
    assert f"Template:      {TEMPLATE}\n" in forms
    assert "Python class:  /apps/sums.py:Sum\n" in forms
    job = (*db, "job", "--name", "j", "--workflow", "w", "--application", "Hello", "--yes")
    assert balsam(*job)[:2] == (2, "")  # it lacks a parameter
    code, out, _ = balsam(*job, "--param", "say_hello_to=you")
    assert code == 0
    assert f"Executed command:         {TEMPLATE}\n" in out
    assert f"Executed command:         {TEMPLATE}\n" in balsam(*db, "ls", "--verbose")[1]
    assert json.loads(balsam(*db, "ls", "apps", "--json", "--name", "Hello")[1])[0]["definition"]["class"] == "Hello"


def test_the_slides_commands_change_and_remove_python_apps(balsam: Balsam, alpha: Database, tmp_path: Path) -> None:
    db = ("--db", str(tmp_path / "alpha"))
    assert balsam(*db, "modify", "--type", "apps", "Hello", "description", "new")[0] == 0
    assert json.loads(balsam("app", "ls", "--json")[1])[0]["description"] == "new"
    assert balsam(*db, "rm", "apps", "--name", "Hello", "--force")[0] == 0
    assert [app["name"] for app in json.loads(balsam("app", "ls", "--json")[1])] == ["Sum", "say"]


@pytest.mark.parametrize("name", ["job", "app"])
def test_the_help_of_the_slides_command_lists_the_workshops_verbs(balsam: Balsam, name: str) -> None:
    out = balsam(name, "--help")[1]
    assert all(f"  {name} {verb} " in out for verb in ("ls", "rm"))


# --- YAML -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain words", "plain words"), ("1", '"1"'), ("1.5", '"1.5"'), ("-", '"-"'), ("yes", '"yes"'), ("Null", '"Null"'),
        ("", '""'), (" x", '" x"'), ("x ", '"x "'), ("a: b", '"a: b"'), ("a:", '"a:"'), ("a #b", '"a #b"'), ("{x}", '"{x}"'),
        ("*.py", '"*.py"'), ("a\nb", '"a\\nb"'), ('a"b\\', 'a"b\\'), ('"', '"\\""'), ("é 日", "é 日"), ("\u202e", '"\\u202e"'),
        ("a\u2028b", '"a\\u2028b"'), ("\x00", '"\\x00"'), (None, "null"), (True, "true"), (0.5, "0.5"), ([], "[]"), ({}, "{}"),
    ],
)  # fmt: skip
def test_yaml_gives_back_the_value_that_was_written(value: Any, written: str) -> None:
    assert list(output.yaml_lines({"key": value})) == [f"key: {written}"]


# --- speed ------------------------------------------------------------------------------------------------------------

_IMPORTED = """
import sys
before = set(sys.modules)
from balsam_lite.cli.main import main
main({words!r})
loaded = (name for name in set(sys.modules) - before if type(sys.modules[name]).__name__ != "_Postponed")
sys.stderr.write("\\n".join(sorted(loaded)))
"""


@pytest.mark.parametrize("words", [["job", "ls", "--tag", "k=v"], ["app", "ls"]])
def test_listing_imports_nothing_that_reading_does_not_need(balsam: Balsam, alpha: Database, words: list[str]) -> None:
    add(balsam, "x", "--tag", "k=v")
    done = subprocess.run(
        [sys.executable, "-S", "-c", _IMPORTED.format(words=words)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )  # fmt: skip
    imported = set(done.stderr.split())
    assert "Hello" in done.stdout
    heavy = {"peewee", "jinja2", "psutil", "filelock", "logging", "pathlib", "subprocess", "importlib.metadata", "random"}
    heavy |= {"tempfile", "wcwidth"}
    heavy |= {
        "difflib",
        "dis",
        "shutil",
        "balsam_lite.db.store.claims",
        "balsam_lite.schedulers",
        "balsam_lite.launcher",
        "balsam_lite.cli.create",
    }
    assert not imported & heavy


@pytest.mark.parametrize("tags", [{"k": "v"}, {"common": "1", "k": "v"}, {"k": "v", "common": "1"}])
def test_a_page_of_jobs_with_tags_is_read_by_the_rarest_tag(alpha: Database, tags: dict[str, str]) -> None:
    """What makes it fast, however many jobs there are."""
    from balsam_lite.db.query import select

    common = [{"application": "say", "workdir": f"w{n}", "tags": {"common": "1"}} for n in range(9)]
    insert.add_jobs(alpha, [{**job, "tags": {"common": "1", "k": "v"}} for job in common[:2]] + common[2:])
    with alpha.read() as cx:
        assert [row["id"] for row in select.jobs_page(cx, {"tags": tags}, ["id"], 1, 5)] == [2]
        sql, parameters = select.statement(cx, "job.id", {"tags": tags, "state": "CREATED"}, after=1)
        plan = [row[3] for row in cx.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    assert tuple(parameters[:2]) == ("k", "v")
    assert plan[0].startswith("SEARCH given USING PRIMARY KEY (tag=? AND job>?)")
    assert "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)" in plan
    assert not any("TEMP B-TREE" in step for step in plan)


@pytest.mark.parametrize(
    "where", [{}, {"state": "CREATED"}, {"state": ["CREATED", "FAILED"]}, {"app": "say", "state": ["CREATED"]}]
)
def test_no_page_but_the_first_needs_sorting(alpha: Database, where: dict[str, Any]) -> None:
    from balsam_lite.db.query import select

    insert.add_jobs(alpha, [{"application": "say", "workdir": f"w{n}"} for n in range(9)])
    with alpha.read() as cx:
        assert [row["id"] for row in select.jobs_page(cx, where, ["id"], 4, 3)] == [5, 6, 7]
        sql, parameters = select.statement(cx, "job.id", where, after=4)
        plan = [row[3] for row in cx.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]
    assert "rowid>?" in plan[0]
    assert not any("TEMP B-TREE" in step for step in plan)
