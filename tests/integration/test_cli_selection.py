"""The options that choose jobs mean the same in every command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Balsam

from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, insert, user_actions

JOBS: tuple[dict[str, Any], ...] = (
    {"name": "test", "workflow": "test", "application": "say", "tags": {"run": "7"}},
    {"name": "test2", "workflow": "test2", "application": "say-more", "tags": {"run": "8", "kind": "x"}},
    {"name": "a[1]", "workflow": "scan", "application": "say"},
    {"name": "a1", "workflow": "Scan", "application": "say"},
)


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A DB with the jobs above; the first is FAILED."""
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BALSAM_DB_PATH", str(tmp_path / "db"))
    made = directories.create(str(tmp_path / "db"))
    with made.write() as cx:
        for name in ("say", "say-more"):
            apps.add_app(cx, {"name": name, "executable": "echo"})
    insert.add_jobs(made, JOBS)
    user_actions.set_state(made, [1], "FAILED")
    yield made
    made.close()


@pytest.fixture
def balsam(db: Database, run_balsam: Balsam) -> Balsam:
    return run_balsam


CHOICES: list[tuple[list[str], list[int]]] = [
    (["--wf", "test"], [1]),
    (["--workflow", "test*"], [1, 2]),
    (["--wf", "t?st"], [1]),
    (["--wf", "test", "--wf", "scan"], [1, 3]),
    (["--wf", "test", "--wf", "s*"], [1, 3]),
    (["-wf", "TEST", "--contains"], [1, 2]),
    (["--name", "a[1]"], [3]),
    (["--name", "a[1*"], [3]),
    (["--name", "a*"], [3, 4]),
    (["--app", "say"], [1, 3, 4]),
    (["--app", "say", "--contains"], [1, 2, 3, 4]),
    (["--application", "2"], [2]),
    (["--tag", "run=7"], [1]),
    (["-t", "run=8", "-tag", "kind=x"], [2]),
    (["-t", "run=7", "-t", "kind=x"], []),
    (["--state", "FAILED"], [1]),
    (["-s", "FAILED", "-s", "CREATED", "--wf", "test*"], [1, 2]),
    (["--state", "FAIL*"], [1]),
    (["--exclude-state", "FAILED"], [2, 3, 4]),
    (["--id", "test2"], [2]),
    (["-i", "#3", "-i", "test"], [1, 3]),
    (["--workdir", "test2_"], [2]),
    (["--tag", "run=*"], [1, 2]),
    (["--where", "tags__run__gt=7"], [2]),
    (["--where", "workflow__startswith=test", "--where", "id__lte=1"], [1]),
    (["--where", "wall_time_min=1", "--where", "name__in=a1,test"], [1, 4]),
]


@pytest.mark.parametrize(("words", "chosen"), CHOICES, ids=lambda value: " ".join(map(str, value)))
def test_all_commands_choose_the_same_jobs(balsam: Balsam, db: Database, words: list[str], chosen: list[int]) -> None:
    assert [job["id"] for job in json.loads(balsam("job", "ls", "--json", *words)[1])] == chosen
    number = len(chosen)
    jobs = "1 job" if number == 1 else f"{number} jobs"
    code = 0 if chosen else 3
    assert balsam("modify", *words, "priority", "5")[:2] == (
        code, f"priority of {jobs} of db changed to 5.\n" if chosen else "",
    )  # fmt: skip
    assert balsam("job", "modify", *without_states(words), "description", "--x y")[0] == code
    with db.read() as cx:
        changed = [row[0] for row in cx.execute("SELECT id FROM job WHERE priority = 5")]
    assert changed == chosen
    assert balsam("plot", "states", *words)[0] == code
    assert balsam("rerun", *words, "--yes")[0] == code
    user_actions.set_state(db, [1], "FAILED")
    if not any(word.endswith("state") or word == "-s" for word in words):
        assert balsam("killjob", *words, "--yes")[0] == code
    else:
        assert balsam("rm", "jobs", *words, "--force")[:2] == (code, f"Removed {jobs}.\n")
        return
    assert balsam("job", "rm", *words, "--yes")[:2] == (code, f"Removed {jobs}.\n" if chosen else "")


def without_states(words: list[str]) -> list[str]:
    """`job modify --state` is the new state, so its jobs are chosen by something else."""
    if not any(word in ("-s", "--state") for word in words):
        return words
    return ["--id", "test"]


def test_a_name_that_is_unknown_is_an_error_with_the_nearest_one(balsam: Balsam) -> None:
    for words in (("rerun", "--yes"), ("killjob", "--yes")):
        assert balsam(*words, "--wf", "tset2") == (
            3, "", "Error: No job matches --wf tset2. Did you mean 'test2'?\n`balsam ls` shows the jobs.\n"
        )  # fmt: skip
        assert "Did you mean 'say'?" in balsam(*words, "--app", "sya")[2]
    for words, nearest in (
        (("--state", "FAILD"), "FAILED"),
        (("--where", "num_node__lte=4"), "num_nodes"),
        (("--where", "num_nodes__ltee=4"), "lte"),
        (("--where", "state=FAILD"), "FAILED"),
    ):
        code, _, err = balsam("rm", "jobs", *words, "--force")
        assert (code, f"Did you mean '{nearest}'?" in err) == (2, True), err


def test_an_empty_text_is_refused_as_it_would_mean_any(balsam: Balsam) -> None:
    for option in ("--name", "--wf", "--app", "--workdir"):
        for words in (("rm", "jobs", "--force"), ("rerun", "--yes"), ("killjob", "--yes"), ("job", "ls"), ("plot", "states")):
            code, _, err = balsam(*words, option, "")
            assert (code, f"{option} must not be empty" in err) == (2, True), words


def test_a_value_after_attr_may_look_like_an_option(balsam: Balsam, db: Database) -> None:
    for words, stored in (
        (("modify", "#2", "args", "--name=x"), "--name=x"),
        (("modify", "#2", "args", "--wf"), "--wf"),
        (("modify", "--name", "test2", "args", "--state"), "--state"),
        (("modify", "--type", "jobs", "test2", "args", "-x 3"), "-x 3"),
        (("modify", "test2", "args", "-5", "--type=jobs"), "-5"),
    ):
        code, _, err = balsam(*words)
        assert (code, err) == (0, "")
        with db.read() as cx:
            assert cx.execute("SELECT args FROM job WHERE id = 2").fetchone()[0] == stored


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ls", "--w", "test"], 0), (["ls", "--t"], 0), (["ls", "-tree"], 0), (["rm", "jobs", "--n", "a1", "--f"], 0),
        (["rm", "jobs", "--a", "--f"], 0), (["modify", "--t", "apps", "say", "description", "x"], 0),
        (["rm", "jobs", "--na", "none", "--forc"], 3), (["killjob", "--i", "#1", "--r", "--y"], 0),
    ],
)  # fmt: skip
def test_abbreviations_of_balsam_0_3_are_not_ambiguous_with_later_options(balsam: Balsam, words: list[str], code: int) -> None:
    assert balsam(*words)[0] == code


def test_modify_takes_an_id_or_conditions_and_not_both(balsam: Balsam) -> None:
    for words in (
        ("modify", "test", "--name", "x", "args", "v"), ("modify", "--name", "x", "args"), ("modify", "test", "args"),
        ("modify", "--type", "apps", "--name", "say", "description", "x"), ("modify", "--nmae", "x", "args", "v"),
    ):  # fmt: skip
        assert balsam(*words)[0] == 2, words
    assert "Did you mean '--name'?" in balsam("modify", "--nmae", "x", "args", "v")[2]


def test_nothing_is_removed_outside_of_a_db_unless_a_site_is_named(
    balsam: Balsam, db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BALSAM_DB_PATH")
    monkeypatch.chdir(tmp_path)
    for words in (("rm", "jobs", "--all"), ("rm", "apps", "--all")):
        code, _, err = balsam(*words, "--force")
        assert (code, "No Balsam DB is active" in err) == (1, True)
    assert balsam("rm", "jobs", "--all", "--site", "db", "--force") == (0, "Removed 4 jobs of db.\n", "")
    assert balsam("rm", "apps", "--name", "say*", "--site", "db", "--force") == (0, "Removed 2 apps of db.\n", "")
