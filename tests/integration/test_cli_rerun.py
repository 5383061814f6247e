"""`balsam rerun --downstream`, stale jobs in `balsam ls`, `run_when` on the command line, and options given twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Balsam

from balsam_lite.core import field_specs
from balsam_lite.core.states import STEP
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import apps, graph, insert, user_actions
from balsam_lite.db.store.transitions import Transition, apply

pytestmark = pytest.mark.usefixtures("db")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """Make a DB of #1 a -> #2 b -> #3 c, and #4 alone."""
    made = directories.create(str(tmp_path / "db"))
    with made.write() as cx:
        apps.add_app(cx, {"name": "say", "executable": "echo Hello,"})
    rows = [{"name": name, "workflow": "w", "application": "say"} for name in ("first", "second", "third", "alone")]
    insert.add_jobs(made, rows)
    with made.write() as cx:
        graph.add_dependency(cx, 1, 2, 1)
        graph.add_dependency(cx, 2, 3, 1)
    yield made
    made.close()


def run(db: Database, *numbers: int) -> None:
    """Run jobs as a launcher does, one after the other."""
    for number in numbers:
        with db.write() as cx:
            before = queries.job(cx, number)["state"]
            apply(cx, [Transition(number, (before, "PREPROCESSED"), 1)], "user")
            apply(cx, [Transition(number, ("PREPROCESSED", "RUNNING"), 1)], "launcher", "attempt = attempt + 1")
            apply(cx, [Transition(number, ("RUNNING", "RUN_DONE"), 1)], "launcher")
            apply(cx, [Transition(number, ("RUN_DONE", "JOB_FINISHED"), 1)], STEP)
            graph.propagate(cx, [number], [], 1)


def states_of(db: Database) -> list[str]:
    with db.read() as cx:
        return [row[0] for row in select.job_rows(cx, columns=("state",))]


def stale(balsam: Balsam, *words: str) -> list[int]:
    return [job["id"] for job in json.loads(balsam("ls", "--json", *words)[1]) if job["stale"]]


# --- rerun ------------------------------------------------------------------------------------------------------------


def test_rerun_leaves_finished_descendants_and_ls_shows_as_stale_what_ran_before_its_parent(
    balsam: Balsam, db: Database
) -> None:
    run(db, 1, 2, 3, 4)
    assert balsam("rerun", "--id", "first", "--yes") == (0, "1 job runs again\n", "")
    assert states_of(db) == ["RESTART_READY", *["JOB_FINISHED"] * 3]
    assert stale(balsam) == []  # the parent has yet to finish
    run(db, 1)
    assert stale(balsam) == [2]
    code, out, err = balsam("ls")
    assert (code, [line.split(" | ")[-1] for line in out.splitlines()[2:]]) == (
        0, ["JOB_FINISHED", "JOB_FINISHED (stale)", "JOB_FINISHED", "JOB_FINISHED"]
    )  # fmt: skip
    assert err.startswith("1 job is stale: a parent finished again after the start.")
    assert "JOB_FINISHED (stale)" in balsam("ls", "--by-states")[1]
    assert "JOB_FINISHED (stale)" in balsam("ls", "--id", "second", "--verbose")[1]
    assert balsam("ls", "--id", "third")[2] == ""
    run(db, 2)
    assert stale(balsam) == [3]
    run(db, 3)
    assert (stale(balsam), balsam("ls")[2]) == ([], "")


def test_rerun_downstream_takes_all_descendants_along_in_the_order_of_the_graph(balsam: Balsam, db: Database) -> None:
    run(db, 1, 2, 3, 4)
    words = ("rerun", "--id", "first", "--downstream", "--set", "priority=5", "--yes")
    assert balsam(*words) == (0, "3 jobs run again, 2 of them after their parents\n", "")
    assert states_of(db) == ["RESTART_READY", "AWAITING_PARENTS", "AWAITING_PARENTS", "JOB_FINISHED"]
    with db.read() as cx:
        assert [row[0] for row in select.job_rows(cx, columns=("priority",))] == [5, 0, 0, 0]
    run(db, 1)
    assert states_of(db)[1:3] == ["READY", "AWAITING_PARENTS"]
    run(db, 2, 3)
    assert stale(balsam) == []
    assert balsam("rerun", "--id", "third", "--id", "second", "--downstream", "--yes")[1] == (
        "2 jobs run again, 1 of them after their parents\n"
    )


def failed(db: Database, *numbers: int) -> None:
    for number in numbers:
        with db.write() as cx:
            apply(cx, [Transition(number, (queries.job(cx, number)["state"], "FAILED"), 1)], "user")
            graph.propagate(cx, [], [number], 1)


def test_rerun_and_modify_say_when_a_job_fails_again_because_of_a_parent(balsam: Balsam, db: Database) -> None:
    failed(db, 1, 4)
    assert states_of(db) == ["FAILED"] * 4
    code, out, err = balsam("rerun", "--id", "second", "--yes")
    assert (code, out) == (1, "0 jobs run again\n")
    assert err.startswith("1 FAILED again at once, as their run_when cannot hold: parent first [")
    code, out, err = balsam("modify", "second", "state", "RESTART_READY")
    assert (code, out) == (
        1,
        "",
    ) and "FAILED again at once: its run_when (all_finished) cannot hold, as its parent first [" in err
    code, out, err = balsam("rerun", "--id", "second", "--id", "alone", "--yes")
    assert (code, out) == (0, "1 job runs again\n") and err.startswith("1 FAILED again at once")
    assert states_of(db) == ["FAILED", "FAILED", "FAILED", "CREATED"]
    assert balsam("modify", "second", "state", "FAILED")[0] == 0  # what was asked for
    assert balsam("rerun", "--wf", "w", "--yes") == (0, "4 jobs run again, 2 of them after their parents\n", "")


def test_rerun_asks_for_the_descendants_too(balsam: Balsam, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from balsam_lite.cli import common

    run(db, 1, 2, 3, 4)
    asked: list[str] = []
    monkeypatch.setattr(common, "confirm", lambda question, option: asked.append(question))
    assert balsam("rerun", "--id", "second", "--downstream")[0] == 1
    assert asked == ["Run 2 jobs again?"]
    assert states_of(db) == ["JOB_FINISHED"] * 4


def test_a_job_that_need_not_wait_for_all_parents_is_never_stale(balsam: Balsam, db: Database) -> None:
    run(db, 2, 1)
    assert stale(balsam) == [2]
    user_actions.update_fields(db, [2], {"run_when": "any_finished"})
    assert stale(balsam) == []
    user_actions.update_fields(db, [2], {"run_when": "all_ended"})
    assert stale(balsam) == [2]
    user_actions.update_fields(db, [2], {"wait_for_parents": False})
    assert stale(balsam) == []


def test_modify_says_that_the_job_waits_for_its_parents(balsam: Balsam, db: Database) -> None:
    for words in (("modify", "second", "state", "RESTART_READY"), ("modify", "second", "state", "READY")):
        code, out, err = balsam(*words)
        assert (code, out) == (0, "job state changed to:  AWAITING_PARENTS\n")
        assert err == "The job waits for its parents first, until its run_when (all_finished) holds.\n"
    assert balsam("modify", "first", "state", "READY") == (0, "job state changed to:  READY\n", "")
    code, out, _ = balsam("job", "modify", "--id", "first", "--id", "second", "--state", "READY")
    assert (code, out) == (0, "2 jobs of db put into READY; 1 waiting for parents.\n")


# --- run_when ---------------------------------------------------------------------------------------------------------


def test_every_way_to_add_and_change_a_job_takes_run_when(balsam: Balsam, db: Database) -> None:
    for value in field_specs.RUN_WHEN:
        job = ("job", "--name", value, "--workflow", "w", "--app", "say", "--parent", "first", "--run-when", value, "--yes")
        create = ("job", "create", "-a", "say", "-w", value, "-pid", "1", "--run-when", value, "--name", f"c-{value}", "--yes")
        for words in (job, create):
            code, out, _ = balsam(*words)
            assert (code, "run_when" in out) == (0, value != "all_finished")
        for name in (value, f"c-{value}"):
            for command in (("ls",), ("job", "ls")):
                (found,) = json.loads(balsam(*command, "--json", "--id", name)[1])
                assert (found["name"], found["run_when"]) == (name, value)
    assert balsam("modify", "second", "run_when", "all_ended") == (0, "job run_when changed to:  all_ended\n", "")
    for words in (
        ("job", "--name", "x", "--workflow", "w", "--app", "say", "--run-when", "all_endd", "--yes"),
        ("job", "create", "-a", "say", "-w", "x", "--run-when", "all_endd", "--yes"),
        ("modify", "first", "run_when", "all_endd"),
    ):  # fmt: skip
        code, _, err = balsam(*words)
        assert (code, "Did you mean 'all_ended'?" in err) == (2, True)
    for words in (("job", "--help"), ("job", "create", "--help")):
        out = balsam(*words)[1]
        assert all(value in out for value in field_specs.RUN_WHEN)


def test_python_takes_run_when(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    from balsam_lite.api import Job
    from balsam_lite.db.models import BalsamJob, use
    from balsam_lite.launcher import dag

    monkeypatch.setenv("BALSAM_DB_PATH", db.directory)
    with use(db):
        job = dag.add_job("x", application="say", parents=[1], run_when="all_ended")
        assert BalsamJob.objects.get(run_when="all_ended") == job
        job.run_when = "any_finished"
        job.save()
        with pytest.raises(ValueError, match="Did you mean 'all_ended'"):
            dag.add_job("y", application="say", run_when="all_endd")
        new = Job(app_id="say", workdir="there", parent_ids=[1], run_when="all_ended")
        new.save()
        assert Job.objects.get(id=new.id).run_when == "all_ended"
        new.run_when = "any_finished"
        new.save()
        with pytest.raises(ValueError, match="Did you mean 'all_ended'"):
            new.run_when = "all_endd"
    with db.read() as cx:
        assert [row[0] for row in select.job_rows(cx, columns=("run_when",))][4:] == ["any_finished", "any_finished"]


# --- options given twice ----------------------------------------------------------------------------------------------


def test_ls_takes_several_states_and_ids(balsam: Balsam, db: Database) -> None:
    def numbers(*words: str) -> list[int]:
        return [job["id"] for job in json.loads(balsam("ls", "--json", *words)[1])]

    user_actions.set_state(db, [4], "FAILED")
    assert numbers("--state", "CREATED", "--state", "FAILED") == [1, 4]
    assert numbers("--state", "CREATED", "--state", "FAILED", "--id", "#1", "--id", "#2") == [1]
    code, _, err = balsam("ls", "--state", "CREATED", "--state", "FAILD")
    assert (code, "Did you mean 'FAILED'?" in err) == (2, True)
    out = balsam("ls", "--by-states", "--state", "CREATED", "--state", "FAILED")[1]
    assert [line for line in out.splitlines() if "BalsamJobs)" in line] == ["CREATED (1 BalsamJobs)", "FAILED (1 BalsamJobs)"]


@pytest.mark.parametrize(
    "words",
    [
        ("job", "ls", "--site", "a", "--site", "b"), ("rm", "jobs", "--id", "1", "--site", "a", "--site", "b", "--force"),
        ("launcher", "--wf-filter", "a", "--wf-filter", "b", "--job-mode", "serial"),
    ],
)  # fmt: skip
def test_a_condition_of_one_value_given_twice_is_refused(balsam: Balsam, db: Database, words: tuple[str, ...]) -> None:
    code, out, err = balsam(*words)
    assert (code, out) == (2, "")
    assert "is given twice, and takes one value." in err
    assert states_of(db) == ["CREATED", "AWAITING_PARENTS", "AWAITING_PARENTS", "CREATED"]


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "--json", "--json"),
        ("ls", "--wf", "a", "--workflow", "b", "--name", "a", "--name=b"),
        ("job", "ls", "-t", "a=b", "-t", "c=d"),
        ("killjob", "--id", "#1", "--id", "alone", "--yes"),
    ],
)
def test_flags_and_options_of_several_values_may_be_given_twice(balsam: Balsam, words: tuple[str, ...]) -> None:
    assert balsam(*words)[0] == 0


def test_ids_of_jobs_are_as_quick_to_show_with_the_mark_for_stale_jobs(db: Database) -> None:
    """Independent jobs cost a look into an empty index each: the steps of SQLite's machine are counted, not the time."""

    def steps(columns: tuple[Any, ...]) -> int:
        counted: list[int] = []
        with db.read() as cx:
            cx.set_progress_handler(lambda: counted.append(1) and None, 10)
            select.job_rows(cx, {}, columns)
            cx.set_progress_handler(None, 10)
        return len(counted)

    insert.add_jobs(db, [{"name": f"j{n}", "workflow": "v", "application": "say"} for n in range(2000)])
    with db.write() as cx:
        cx.execute("UPDATE job SET state = 'JOB_FINISHED'")
    columns = ("job_id", "name", "workflow", "application", "state")
    assert steps((*columns, queries.STALE)) <= 5 * steps(columns)
