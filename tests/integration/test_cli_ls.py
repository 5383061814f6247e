"""`balsam ls`: what the slides show, filters, order, limits, JSON."""

from __future__ import annotations

import io
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Balsam

from balsam_lite.cli import listing, output
from balsam_lite.core import field_specs, states
from balsam_lite.core.errors import PollFailed
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import apps, batch_jobs, insert, user_actions
from balsam_lite.schedulers import submission

NONE = "No jobs found matching query\n"  # on stderr


@pytest.fixture
def db(tmp_path: Path, balsam: Balsam) -> Iterator[Database]:
    """The same DB through the library, with the apps `say` and `sim`."""
    found = directories.open_database(str(tmp_path / "db"))
    with found.write() as cx:
        apps.add_app(cx, {"name": "say", "executable": "echo Hello,"})
        apps.add_app(cx, {"name": "sim", "executable": "/opt/bin/python /home/me/sim.py -v", "description": "simulates"})
    yield found
    found.close()


def add(db: Database, *jobs: dict[str, Any]) -> list[str]:
    """Add jobs; returns their UUIDs."""
    added = insert.add_jobs(db, [{"workflow": "w", "application": "say", **job} for job in jobs])
    with db.read() as cx:
        return [queries.job(cx, number)["job_id"] for number in added.ids]


def names(balsam: Balsam, *words: str) -> list[str]:
    return [found["name"] for found in json.loads(balsam("ls", "--json", *words)[1])]


# --- the table --------------------------------------------------------------------------------------------------------


def test_ls_prints_the_slides_columns_in_the_order_of_creation(balsam: Balsam, db: Database) -> None:
    first, second = add(db, {"name": "test10"}, {"name": "t1", "workflow": "a longer one", "application": "sim"})
    assert balsam("ls") == balsam("ls", "jobs")
    assert balsam("ls") == (
        0,
        "                              job_id |   name |     workflow | application |   state\n"
        "------------------------------------------------------------------------------------\n"
        f"{first} | test10 | w            | say         | CREATED\n"
        f"{second} | t1     | a longer one | sim         | CREATED\n",
        "",
    )


def test_no_match_is_said_on_stderr_and_is_no_error(balsam: Balsam, db: Database) -> None:
    for words in ((), ("--verbose",), ("--history",), ("--tree",), ("--by-states",), ("--format", "csv")):
        assert balsam("ls", *words) == (0, "", NONE)
    for words in (("--json",), ("--json", "--history"), ("--json", "--tree"), ("--json", "--by-states")):
        assert balsam("ls", *words) == (0, "[]\n", "")


def test_columns_line_up_under_wide_characters(balsam: Balsam, db: Database) -> None:
    add(db, {"name": "計算"}, {"name": "e\u0301"}, {"name": "plain"})
    lines = balsam("ls")[1].splitlines()
    assert "|  name |" in lines[0]
    assert "| 計算  |" in lines[2]
    assert "| e\u0301     |" in lines[3]


def test_nothing_in_a_cell_can_steer_the_terminal(balsam: Balsam, db: Database) -> None:
    add(db, {"name": "x"})
    with db.write() as cx:
        cx.execute("UPDATE job SET name = ?, description = ?", ("a\x1b[31m\nb", "\x1b]0;title\x07two\nlines"))
        cx.execute(
            "INSERT INTO event (job, time, from_state, to_state, message) VALUES (1, 0, '', 'FAILED', 'one\x1b[2J\ntwo\n')"
        )
    for words in ((), ("--verbose",), ("--history",), ("--tree",)):
        out = balsam("ls", *words)[1]
        assert "\x1b" not in out
        assert "\x07" not in out
        assert "\\x1b" in out
    assert "two\nlines" in balsam("ls", "--verbose")[1]


def test_the_variable_adds_columns(balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    add(db, {"name": "j", "num_nodes": 4})
    monkeypatch.setenv("BALSAM_LS_FIELDS", "num_nodes: state :lock")
    header, _, row = balsam("ls")[1].splitlines()
    assert header.split(" | ")[-3:] == ["  state", "num_nodes", "lease"]
    assert row.split("|")[-2].strip() == "4"
    assert "num_nodes" in balsam("ls", "--by-states")[1]


def test_an_unknown_column_is_named_with_the_nearest(balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALSAM_LS_FIELDS", "num_node")
    code, out, err = balsam("ls")
    assert (code, out) == (2, "")
    assert "BALSAM_LS_FIELDS" in err
    assert "'num_nodes'" in err


# --- limits and order -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["--limit", "2"], []])
def test_more_rows_than_the_limit_are_counted(
    balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    add(db, *({"name": f"j{n}"} for n in range(5)))
    if not words:
        monkeypatch.setenv("BALSAM_LS_LIMIT", "2")
    for more in ((), ("--verbose",), ("--history",), ("--name", "j")):
        out = balsam("ls", *more, *words)[1]
        assert out.endswith("(3 more BalsamJobs not shown...)\n")
    assert "not shown" not in balsam("ls", "--limit", "5")[1]
    assert balsam("ls", "--tree", *words)[1].endswith("(Omitted 3 jobs from display...)\n")


@pytest.mark.parametrize("text", ["0", "-3", "many", "1.5", "9" * 30, "٣"])
def test_a_limit_in_the_environment_that_is_none_is_a_warning(
    balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    add(db, {"name": "j"})
    monkeypatch.setenv("BALSAM_LS_LIMIT", text)
    code, out, err = balsam("ls")
    assert code == 0
    assert "CREATED" in out
    assert err.startswith("Warning: BALSAM_LS_LIMIT")


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "9" * 30, ""])
def test_a_limit_option_that_is_none_is_refused(balsam: Balsam, db: Database, text: str) -> None:
    code, out, err = balsam("ls", "--limit", text)
    assert (code, out) == (2, "")
    assert "--limit" in err


def test_json_is_whole_unless_a_limit_is_given(balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    add(db, *({"name": f"j{n}"} for n in range(5)))
    monkeypatch.setenv("BALSAM_LS_LIMIT", "2")
    assert len(names(balsam)) == 5
    assert len(json.loads(balsam("ls", "--json", "--history")[1])) == 5
    assert names(balsam, "--limit", "3") == ["j0", "j1", "j2"]


def test_jobs_are_sorted_by_any_field_both_ways(balsam: Balsam, db: Database) -> None:
    add(db, {"name": "b", "priority": 1}, {"name": "a", "priority": 3}, {"name": "c", "priority": 2})
    assert names(balsam, "--sort", "name") == ["a", "b", "c"]
    assert names(balsam, "--sort=-priority") == ["a", "c", "b"]
    assert [line.split()[0] for line in balsam("ls", "--tree", "--sort", "-name")[1].splitlines()] == ["c", "b", "a"]
    code, _, err = balsam("ls", "--sort", "priorty")
    assert code == 2
    assert "'priority'" in err


# --- filters ----------------------------------------------------------------------------------------------------------


def test_filters_hold_all_at_once(balsam: Balsam, db: Database) -> None:
    add(
        db, {"name": "Alpha", "workflow": "one", "tags": {"k": "v"}}, {"name": "alphabet", "workflow": "ONE two"},
        {"name": "beta", "workflow": "one", "application": "sim", "tags": {"k": "v", "run 7": "x=y"}},
    )  # fmt: skip
    assert names(balsam, "--name", "ALPHA") == ["Alpha", "alphabet"]
    assert names(balsam, "--wf", "one", "--name", "alpha", "--tag", "k=v") == ["Alpha"]
    assert names(balsam, "--workflow", "*two") == names(balsam, "--workflow", "TWO", "--contains") == ["alphabet"]
    assert names(balsam, "--wf", "one", "--wf", "ONE two") == ["Alpha", "alphabet", "beta"]
    assert names(balsam, "--app", "si*") == names(balsam, "--application", "sim") == ["beta"]
    assert names(balsam, "--app", "si") == []
    assert names(balsam, "--tag", "k=v", "--tag", "run 7=x=y") == ["beta"]
    assert names(balsam, "--tag", "k=w") == names(balsam, "--name", "100%") == names(balsam, "--name", "a_p") == []
    assert balsam("ls", "--tag", "k")[0] == 2


def test_ids_are_found_by_prefix_whatever_the_case(balsam: Balsam, db: Database) -> None:
    first, _ = add(db, {"name": "a", "job_id": "abcdef01-0000-4000-8000-000000000000"}, {"name": "b"})
    for text in (first, first[:8], first[:8].upper(), "abcdef0", first[:13]):
        assert names(balsam, "--id", text) == ["a"]
    assert names(balsam, "--id", first[:13] + "f") == []


def test_jobs_are_filtered_by_state(balsam: Balsam, db: Database) -> None:
    add(db, {"name": "a"}, {"name": "b"})
    user_actions.set_state(db, [2], states.FAILED)
    assert names(balsam, "--state", "FAILED") == ["b"]
    code, out, err = balsam("ls", "--state", "FAILD")
    assert (code, out) == (2, "")
    assert "Did you mean 'FAILED'?" in err
    assert balsam("ls", "--state", "")[0] == 2


# --- history and states -----------------------------------------------------------------------------------------------


def test_a_history_has_the_slides_lines(balsam: Balsam, db: Database) -> None:
    (job_id,) = add(db, {"name": "testfail"})
    with db.write() as cx:
        cx.execute("UPDATE job SET created = 1538593440143928")
        message = "Traceback (most recent call last):\n[not a state]\nRuntimeError: simulated error\n"
        for old, new, text in (("CREATED", "RUNNING", ""), ("RUNNING", "RUN_ERROR", message), ("RUN_ERROR", "FAILED", "")):
            sql = "INSERT INTO event (job, time, from_state, to_state, message) VALUES (1, 1538593441000000, ?, ?, ?)"
            cx.execute(sql, (old, new, text))
    assert balsam("ls", "--history")[1] == (
        f"Job testfail [{job_id}]\n"
        "------------------------------------------------\n"
        "[10-03-2018 19:04:00.143928 CREATED]\n"
        "[10-03-2018 19:04:01.000000 RUNNING] Not scheduled by Balsam service\n"
        "[10-03-2018 19:04:01.000000 RUN_ERROR] Traceback (most recent call last):\n"
        "    [not a state]\n"
        "    RuntimeError: simulated error\n"
        "[10-03-2018 19:04:01.000000 FAILED]\n"
        "\n"
    )
    (found,) = json.loads(balsam("ls", "--history", "--json")[1])
    assert (found["job_id"], found["name"]) == (job_id, "testfail")
    assert [(event["from_state"], event["to_state"]) for event in found["history"]] == [
        ("", "CREATED"), ("CREATED", "RUNNING"), ("RUNNING", "RUN_ERROR"), ("RUN_ERROR", "FAILED"),
    ]  # fmt: skip
    created, running, *_ = found["history"]
    assert created["time"] == created["timestamp"] == "2018-10-03T19:04:00.143928Z"
    assert (created["id"], created["job"], created["job_id"]) == (None, 1, job_id)
    assert (running["id"], running["job"], running["job_id"]) == (1, 1, job_id)


def test_history_wins_over_tree_over_by_states(balsam: Balsam, db: Database) -> None:
    add(db, {"name": "j"})
    assert balsam("ls", "--by-states", "--tree", "--history")[1].startswith("Job j [")
    assert balsam("ls", "--by-states", "--tree", "--verbose")[1].startswith("j          [j | ")
    assert balsam("ls", "--by-states", "--verbose")[1].startswith("CREATED (1 BalsamJobs)")


def test_by_states_prints_headings_tables_and_what_is_not_shown(
    balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = add(db, *({"name": f"j{n}"} for n in range(4)))
    user_actions.set_state(db, [2], states.RUN_DONE)
    user_actions.set_state(db, [3, 4], states.JOB_FINISHED)
    monkeypatch.setenv("BALSAM_LS_LIMIT", "1")
    header = "                              job_id | name | workflow | application |        state\n"
    assert balsam("ls", "--by-states")[1] == (
        "CREATED (1 BalsamJobs)\n"
        "----------------------\n"
        f"{header.replace('       state', '  state')}{'-' * 78}\n"
        f"{ids[0]} | j0   | w        | say         | CREATED\n"
        "\n"
        "JOB_FINISHED (2 BalsamJobs)\n"
        "---------------------------\n"
        f"{header}{'-' * 83}\n"
        f"{ids[2]} | j2   | w        | say         | JOB_FINISHED\n"
        "(1 more BalsamJobs not shown...)\n"
        "\n"
        "RUN_DONE (1 BalsamJobs)\n"
        "-----------------------\n"
        f"{header.replace('       state', '   state')}{'-' * 79}\n"
        f"{ids[1]} | j1   | w        | say         | RUN_DONE\n"
        "\n"
    )
    assert json.loads(balsam("ls", "--by-states", "--json")[1]) == [
        {"state": "CREATED", "jobs": 1}, {"state": "RUN_DONE", "jobs": 1}, {"state": "JOB_FINISHED", "jobs": 2},
    ]  # fmt: skip
    assert balsam("ls", "--by-states", "--state", "RUN_DONE")[1].startswith("RUN_DONE (1")
    assert "(1 BalsamJobs)" in balsam("ls", "--by-states", "--name", "j3")[1]


def test_by_states_reads_a_few_rows_of_each_state_by_its_index(balsam: Balsam, db: Database) -> None:
    # What `--by-states` asks, as SQLite sees it: an index search and no sorting, however many jobs there are.
    add(db, {"name": "j"})
    asked: list[str] = []
    with db.read() as cx:
        cx.set_trace_callback(asked.append)
        select.count_states(cx)
        select.job_rows(cx, {"state": "CREATED"}, ("job_id",), "id", 2)
        cx.set_trace_callback(None)
        plans = [row[3] for sql in asked for row in cx.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert len(asked) == 2
    assert not any("TEMP B-TREE" in plan for plan in plans)
    assert any("SEARCH" in plan and "job USING INDEX job_state" in plan for plan in plans)
    assert not any("job" in plan.split() and "SCAN" in plan for plan in plans)


# --- trees ------------------------------------------------------------------------------------------------------------


def test_a_tree_shows_children_below_every_parent(balsam: Balsam, db: Database) -> None:
    add(db, {"name": "A"})
    add(db, {"name": "B", "parents": [1]}, {"name": "C", "parents": [1]})
    add(db, {"name": "D", "parents": [2, 3]})
    add(db, {"name": "E", "parents": [4]}, {"name": "lonely"})
    lines = [line.split(" [")[0].rstrip() for line in balsam("ls", "--tree")[1].splitlines()]
    assert lines == ["A", "|     B", "|     |     D", "|     |     |     E", "|     C", "|     |     D", "lonely"]
    assert "(its children: see above)" in balsam("ls", "--tree")[1]
    assert balsam("ls", "--tree", "--name", "D")[1].startswith("D          [D | ")


def test_a_deep_and_a_wide_tree_are_no_trouble(balsam: Balsam, db: Database) -> None:
    add(db, {"name": "j0"})
    for layer in range(30):  # 2 ** 30 ways from the top to the bottom
        top = [1] if layer == 0 else [2 * layer, 2 * layer + 1]
        add(db, {"name": "l", "parents": top}, {"name": "r", "parents": top})
    code, out, _ = balsam("ls", "--tree")
    assert code == 0
    assert out.count("\n") == 1 + 2 + 29 * 4


def test_a_tree_as_json_names_parents_and_children(balsam: Balsam, db: Database) -> None:
    (parent,) = add(db, {"name": "A"})
    (child,) = add(db, {"name": "B", "parents": [1]})
    found = json.loads(balsam("ls", "--tree", "--json")[1])
    assert [(entry["job_id"], entry["parents"], entry["children"]) for entry in found] == [
        (parent, [], [child]), (child, [parent], []),
    ]  # fmt: skip


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_has_every_field_under_its_name(balsam: Balsam, db: Database) -> None:
    add(db, {"name": "é\n"[0], "data": {"a": [1]}, "environ_vars": {"A": "b:c"}, "tags": {"k": "v"}, "wait_for_parents": False})
    (found,) = json.loads(balsam("ls", "--json")[1])
    assert set(found) == set(listing.JOB_KEYS) > {"id", "job_id", *field_specs.JOB_FIELD}
    (same,) = json.loads(balsam("job", "ls", "--json")[1])
    assert same == found
    assert (found["name"], found["data"], found["environ_vars"], found["tags"]) == ("é", {"a": [1]}, {"A": "b:c"}, {"k": "v"})
    assert (found["wait_for_parents"], found["auto_timeout_retry"], found["lease"]) == (False, True, None)


@pytest.mark.parametrize("number", [0, 1, 199, 200, 201, 401])
def test_json_is_valid_for_any_number_of_objects(number: int) -> None:
    file = io.StringIO()
    output.write_json(({"n": n} for n in range(number)), file)
    assert json.loads(file.getvalue()) == [{"n": n} for n in range(number)]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_is_valid_in_a_terminal_of_any_encoding(encoding: str) -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    output.write_json([{"name": "\xfc \u2603"}], file)
    file.seek(0)
    assert json.loads(file.read()) == [{"name": "\xfc \u2603"}]


# --- apps, workflows, queues ------------------------------------------------------------------------------------------


def test_ls_apps_lists_them(balsam: Balsam, db: Database) -> None:
    assert balsam("ls", "apps")[1] == (
        "id | name |       executable | description\n"
        "------------------------------------------\n"
        "1  | say  | echo Hello,      |\n"
        "2  | sim  | python sim.py -v | simulates\n"
    )
    assert [app["name"] for app in json.loads(balsam("ls", "apps", "--json", "--id", "2")[1])] == ["sim"]
    assert "Application 2:\n" in balsam("ls", "apps", "--verbose", "--name", "SIM")[1]
    assert balsam("ls", "apps", "--name", "zzz") == (0, "", "No apps found matching query\n")
    assert balsam("ls", "apps", "--id", "two")[0] == 2
    found = json.loads(balsam("ls", "apps", "--json")[1])
    assert set(found[0]) == {"id", "site", "kind", *field_specs.APP_FIELD}
    assert found == json.loads(balsam("app", "ls", "--json")[1])


def test_ls_wf_lists_workflows_and_the_jobs_of_one(balsam: Balsam, db: Database) -> None:
    assert balsam("ls", "wf") == (0, "", "No workflows found\n")
    add(db, {"name": "a", "workflow": "one"}, {"name": "b", "workflow": "two"}, {"name": "c", "workflow": "one more"})
    assert balsam("ls", "wf")[1] == "Workflows\n---------\none\none more\ntwo\n"
    out = balsam("ls", "wf", "--wf", "one")[1]
    assert out.startswith("one\n---\n")
    assert " a " in out
    assert " c " not in out
    assert balsam("ls", "wf", "--wf", "thr") == (0, "", "No workflow matching thr\n")
    assert balsam("ls", "wf", "--name", "on")[1] == "Workflows\n---------\none\none more\n"
    assert balsam("ls", "wf", "--verbose")[1].count("BalsamJob ") == 3
    assert "c          [c | " in balsam("ls", "wf", "--tree")[1]
    assert json.loads(balsam("ls", "wf", "--json")[1]) == [{"workflow": name} for name in ("one", "one more", "two")]


@pytest.fixture
def launches(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch job in the queue and one that has ended; the scheduler has nothing to add."""
    monkeypatch.setattr(submission, "refresh", lambda db, scheduler: [])
    values = {"project": "p", "queue": "debug", "nodes": 2, "wall_minutes": 5, "job_mode": "serial"}
    with db.write() as cx:
        for number in (1, 2):
            assert batch_jobs.add(cx, values, 0) == number
            batch_jobs.set_paths(cx, number, f"/q/qlaunch{number}.sh", f"/q/qlaunch{number}.out")
            batch_jobs.mark_submitted(cx, number, f"77{number}")
        batch_jobs.record(cx, 2, state="failed", reason="too slow", exit_code=9, started=1, ended=2, absent=None)


def test_ls_queues_lists_what_is_in_the_queue(balsam: Balsam, launches: None) -> None:
    assert balsam("ls", "queues")[1] == (
        "scheduler_id | project | queue | nodes | wall_minutes |     state | job_mode |     Command | Submitted from Balsam?\n"
        "-------------------------------------------------------------------------------------------------------------------\n"
        "771          | p       | debug | 2     | 5            | submitted | serial   | qlaunch1.sh | True\n"
    )


def test_ls_queues_shows_the_first_line_of_a_long_reason(balsam: Balsam, db: Database, launches: None) -> None:
    with db.write() as cx:
        cx.execute("UPDATE batch_job SET reason = 'too slow\nstderr: words' WHERE id = 2")
    out = balsam("ls", "queues", "--all")[1]
    assert "too slow … |" in out
    assert "stderr" not in out
    assert "stderr: words" in balsam("ls", "queues", "--all", "--verbose")[1]


def test_ls_queues_all_shows_how_a_launch_ended_and_where_its_log_is(balsam: Balsam, launches: None) -> None:
    row = balsam("ls", "queues", "--all")[1].splitlines()[-1]
    assert [cell.strip() for cell in row.split(" | ")][-3:] == ["9", "too slow", "/q/qlaunch2.out"]
    found = json.loads(balsam("ls", "queues", "--all", "--json")[1])
    assert [(entry["scheduler_id"], entry["from_balsam"], entry["filter_tags"]) for entry in found] == [
        ("771", True, {}), ("772", True, {}),
    ]  # fmt: skip
    assert [(entry["state"], entry["scheduler_state"], entry["ended"]) for entry in found] == [
        ("queued", "submitted", None), ("finished", "failed", "1970-01-01T00:00:00.000002Z"),
    ]  # fmt: skip
    assert found == json.loads(balsam("queue", "ls", "--history", "--json")[1])
    assert "Qlaunch {" in balsam("ls", "queues", "--verbose")[1]


def test_a_silent_scheduler_is_a_warning(balsam: Balsam, launches: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(db: Database, scheduler: object) -> None:
        raise PollFailed(argv=["qstat"], returncode=1)

    monkeypatch.setattr(submission, "refresh", refuse)
    code, out, err = balsam("ls", "queues")
    assert code == 0
    assert "771" in out
    assert err.startswith("Warning: Scheduler is not reachable: ")


def test_an_empty_queue_is_said(balsam: Balsam, db: Database) -> None:
    assert balsam("ls", "queues") == (0, "", "No queued jobs detected\n")


# --- while others write -----------------------------------------------------------------------------------------------


def test_ls_needs_no_write_lock(balsam: Balsam, db: Database, tmp_path: Path) -> None:
    add(db, {"name": "j"})
    other = sqlite3.connect(tmp_path / "db" / "balsam.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for words in ((), ("--history",), ("--by-states",), ("--json",)):
        assert balsam("ls", *words)[0] == 0
    other.close()
