"""`balsam diff`: what is matched, what differs, and what the exit code tells."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Balsam, db_with_app

from balsam_lite.campaigns import comparison, exports
from balsam_lite.campaigns.comparison import ComparedJob, chance, compare
from balsam_lite.core import states
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import insert, user_actions


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """Workflows `one` and `two` of six jobs of equal names and parameters."""
    with db_with_app(tmp_path / "db") as made:
        for workflow in ("one", "two"):
            insert.add_jobs(made, [
                {"application": "a", "workflow": workflow, "name": f"n{n}", "args": str(n), "tags": {"of": workflow},
                 "data": {"x": {"y": 1.5 * n, "z": math.nan}}, "environ_vars": {"API_KEY": workflow, "N": str(n)}}
                for n in range(6)
            ])  # fmt: skip
        yield made


def change(db: Database, number: int, **fields: Any) -> None:
    user_actions.update_fields(db, [number], fields)


def ran(db: Database, number: int, seconds: float) -> None:
    with db.write() as cx:
        cx.execute("UPDATE job SET attempt = 1 WHERE id = ?", (number,))
        cx.execute("INSERT INTO run (job, attempt, started, ended) VALUES (?, 1, 1, ?)", (number, 1 + int(seconds * 1e6)))


def run(balsam: Balsam, db: Database, *words: str) -> tuple[int, str, str]:
    code, out, err = balsam("--db", db.directory, "diff", *words)
    return code, out, err


def compared(balsam: Balsam, db: Database, *words: str) -> tuple[int, dict[str, Any]]:
    code, out, err = run(balsam, db, *words, "--json")
    assert err == ""
    return code, json.loads(out)[0]


def test_equal_sets_are_equal_and_secrets_and_labels_do_not_count(balsam: Balsam, db: Database) -> None:
    code, found = compared(balsam, db, "one", "two")
    assert code == 0 and found["is_same"]
    assert found["matched"] == {"unique_key": 0, "name and parameters": 6, "name": 0}
    code, out, err = run(balsam, db, "one", "two")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "A: one, 6 jobs", "B: two, 6 jobs", "Matched: 6 (6 by name and parameters)", "Parameters: equal", "Results: equal",
        "States: equal", "Run times: none to compare",
    ]  # fmt: skip


def test_all_that_differs_is_told(balsam: Balsam, db: Database) -> None:
    change(db, 7, num_nodes=2, environ_vars={"N": "9"})
    change(db, 8, data={"x": {"y": 1.6, "z": math.nan}, "new": [1]})
    user_actions.set_state(db, [9], states.FAILED)
    change(db, 10, name="other")
    code, found = compared(balsam, db, "one", "two")
    assert code == 1 and not found["is_same"]
    assert found["matched"] == {"unique_key": 0, "name and parameters": 4, "name": 1}
    assert [one["name"] for one in found["only_a"]] == ["n3"] and [one["name"] for one in found["only_b"]] == ["other"]
    assert found["parameters"] == {"environ_vars.N": 1, "num_nodes": 1}
    assert found["results"] == {"data.x.y": 1, "data.new": 1}
    assert {"a": "CREATED", "b": "FAILED", "jobs": 1} in found["states"]
    fields = {
        one["name"]: {field["field"]: (field["a"], field["b"]) for field in one["fields"]} for one in found["differences"]
    }
    assert fields == {
        "n0": {"environ_vars.N": ("0", "9"), "num_nodes": (1, 2)},
        "n1": {"data.x.y": (1.5, 1.6), "data.new": (None, [1])},
        "n2": {"state": ("CREATED", "FAILED")},
    }
    code, out, err = run(balsam, db, "one", "two")
    assert "Only in A: 1 job: n3" in out and "States: 1 differ: CREATED -> FAILED (1)" in out
    assert "n1   data.x.y        1.5      1.6" in out
    code, found = compared(balsam, db, "one", "two", "--rtol", "0.1")
    assert found["results"] == {"data.new": 1}


def test_keys_match_whatever_else_differs(balsam: Balsam, db: Database) -> None:
    insert.add_jobs(db, [{"application": "a", "workflow": "k", "unique_key": "k1", "name": "x", "args": "1"}])
    archive = Path(db.directory).parent / "k.tar"
    exports.export(db, str(archive), {"workflow": "k"})
    change(db, 13, name="renamed", args="2")
    code, found = compared(balsam, db, "k", str(archive))
    assert code == 1 and found["matched"]["unique_key"] == 1 and found["parameters"] == {"args": 1}


def test_an_export_equals_what_it_was_made_of_and_two_exports_need_no_db(balsam: Balsam, db: Database, tmp_path: Path) -> None:
    for number in range(1, 7):
        ran(db, number, 0.5 * number)
    exports.export(db, str(tmp_path / "one.tar.gz"), {"workflow": "one"})
    exports.export(db, str(tmp_path / "folder"), {"workflow": "one"})
    code, found = compared(balsam, db, "one", str(tmp_path / "one.tar.gz"))
    assert code == 0 and found["run_times"] == {
        "pairs": 6, "median_a_s": 1.75, "median_b_s": 1.75, "ratio": 1.0, "p": 1.0, "is_significant": False,
    }  # fmt: skip
    code, out, err = balsam("diff", str(tmp_path / "folder"), str(tmp_path / "one.tar.gz"), "--json")
    assert (code, err) == (0, "") and json.loads(out)[0]["jobs_b"] == 6


def test_run_times_are_told_and_do_not_count(balsam: Balsam, db: Database) -> None:
    for number in range(1, 7):
        ran(db, number, 10 + number)
        ran(db, number + 6, 2 * (10 + number))
    code, out, err = run(balsam, db, "one", "two")
    assert code == 0
    assert "Run times: median 13.5 s -> 27 s, B / A = 2 (6 pairs, significant, p = 0.02)" in out


def test_conditions_choose_the_sets(balsam: Balsam, db: Database) -> None:
    code, found = compared(balsam, db, "workflow=one name=n1", "tags__of=two name=n1")
    assert code == 0 and (found["jobs_a"], found["jobs_b"]) == (1, 1)


def test_names_that_several_jobs_have_are_not_guessed(balsam: Balsam, db: Database) -> None:
    insert.add_jobs(
        db, [{"application": "a", "workflow": w, "args": a} for w, a in (("p", "1"), ("p", "2"), ("q", "3"), ("q", "2"))]
    )
    code, found = compared(balsam, db, "p", "q")
    assert found["matched"] == {"unique_key": 0, "name and parameters": 1, "name": 0}
    assert len(found["only_a"]) == len(found["only_b"]) == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("one", "tow"), 3, "Did you mean 'two'?"),
        (("one", "no.tar"), 3, "no archive"),
        (("one", "state=NONE"), 2, "no state"),
        (("one", "unknown=1"), 2, "unknown"),
        (("one",), 2, "Missing argument"),
        (("one", "two", "--rtol", "-1"), 2, "0 or more"),
        (("workflow=x", "workflow=y"), 3, "Neither set"),
    ],
)
def test_errors_are_no_differences(balsam: Balsam, db: Database, words: tuple[str, ...], code: int, text: str) -> None:
    found, out, err = run(balsam, db, *words)
    assert (found, out) == (code, "") and text in err


def test_a_damaged_archive_is_an_error_and_no_difference(balsam: Balsam, db: Database, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(b"x" * 5000)
    code, out, err = run(balsam, db, "one", str(tmp_path / "bad.tar"))
    assert code == 2 and "damaged" in err


def test_the_test_of_run_times_finds_what_is_there_and_no_more() -> None:
    dice = random.Random(1)
    noise = [[dice.gauss(0, 1) for _ in range(30)] for _ in range(400)]
    assert 0.02 < sum(chance(one) < 0.05 for one in noise) / 400 < 0.08
    assert all(chance([value + 2 for value in one]) < 0.05 for one in noise)
    assert chance([]) == chance([1.0] * 5) == 1.0 and chance([0.0] * 50) == 1.0


def test_comparing_takes_time_linear_in_the_jobs() -> None:
    def jobs() -> Iterator[ComparedJob]:
        for number in range(20_000):
            yield ComparedJob(number, "same", None, {"args": str(number % 7)}, "CREATED", 1.0, {})

    found = compare(jobs(), jobs())
    assert found.is_same and found.matched[comparison.SAME] == 20_000
