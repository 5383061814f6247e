"""The JSON of listings: docs/json.rst has the keys that commands print, and every command prints the same."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from helpers import ROOT, Balsam

from balsam_lite.core import field_specs, states
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, batch_jobs, insert, user_actions
from balsam_lite.schedulers import submission

DOCUMENT = (ROOT / "docs" / "json.rst").read_text(encoding="utf-8")
ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def documented(title: str) -> list[dict[str, str]]:
    """Return the tables of a section, each as key -> type."""
    text = re.search(rf"^{title}\n-+\n(.*?)(?=^[^\n]+\n---+\n|\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert text, f"docs/json.rst has no section {title}"
    tables = re.split(r"^key .*$", text[1], flags=re.MULTILINE)[1:]
    return [dict(re.findall(r"^``(\w+)``  +(.*?)  ", table, re.MULTILINE)) for table in tables]


@pytest.fixture
def db(tmp_path: Path, balsam: Balsam, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A DB with everything that is listed."""
    monkeypatch.setattr(submission, "refresh", lambda db, scheduler: [])
    found = directories.create(str(tmp_path / "db"))
    registry.add(found.directory, "here")
    with found.write() as cx:
        apps.add_app(cx, {"name": "say", "executable": "echo Hello,"})
        batch_jobs.add(cx, {"project": "p", "queue": "debug", "nodes": 2, "wall_minutes": 5, "job_mode": "mpi"}, 0)
        batch_jobs.mark_submitted(cx, 1, "771")
    job = {"workflow": "w", "application": "say", "data": {"loss": math.nan, "list": [math.inf, 1.5]}, "tags": {"k": "v"}}
    insert.add_jobs(found, [{**job, "name": "a"}])
    insert.add_jobs(found, [{**job, "name": "b, c", "parents": [1]}])
    user_actions.set_state(found, [1], states.FAILED)
    yield found
    found.close()


def listed(balsam: Balsam, *words: str) -> list[dict[str, Any]]:
    code, out, err = balsam(*words, "--json")
    assert (code, err) == (0, "")
    objects: list[dict[str, Any]] = json.loads(out)
    assert len(out.splitlines()) == len(objects) + 2, "one object a line"
    return objects


COMMANDS = [
    ("Jobs", 0, field_specs.JOB_FIELD, ["ls"], ["job", "ls"], ["job", "ls", "--site", "all"], ["ls", "--verbose"]),
    ("Counts of states", 0, {}, ["ls", "--by-states"], ["job", "ls", "--by-state"]),
    ("Applications", 0, field_specs.APP_FIELD, ["ls", "apps"], ["app", "ls"], ["app", "ls", "-v"]),
    ("Workflows", 0, {}, ["ls", "wf"]),
    ("Batch jobs", 0, {}, ["ls", "queues"], ["queue", "ls"], ["queue", "ls", "-v"]),
    ("Sites", 0, {}, ["site", "ls"]),
    ("Actions", 0, {}, ["undo", "--list"]),
]


@pytest.mark.parametrize(("title", "table", "fields", "commands"), [(t, n, f, c) for t, n, f, *c in COMMANDS])
def test_every_command_prints_the_documented_keys(
    balsam: Balsam, db: Database, title: str, table: int, fields: dict[str, Any], commands: list[list[str]]
) -> None:
    keys = documented(title)[table]
    answers = [listed(balsam, *words) for words in commands]
    for found in answers:
        assert found
        for one in found:
            assert set(one) == {*keys, *fields}
        assert {json.dumps(one, sort_keys=True) for one in found} == {json.dumps(one, sort_keys=True) for one in answers[0]}


TYPES: dict[str, Callable[[Any], bool]] = {
    "number": lambda value: isinstance(value, (int, float)) and not isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
    "list of numbers": lambda value: isinstance(value, list),
    "list of text": lambda value: isinstance(value, list),
    "list of objects": lambda value: isinstance(value, list),
    "time": lambda value: isinstance(value, str) and ISO_TIME.fullmatch(value) is not None,
    "null": lambda value: value is None,
}


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Jobs", ["ls", "--tree"]), ("Jobs", ["job", "ls", "--history"]), ("Counts of states", ["ls", "--by-states"]),
        ("Applications", ["app", "ls"]), ("Batch jobs", ["queue", "ls"]), ("Sites", ["site", "ls"]),
        ("Actions", ["undo", "--list"]),
    ],
)  # fmt: skip
def test_values_have_the_documented_types(balsam: Balsam, db: Database, title: str, words: list[str]) -> None:
    types = {key: kind for table in documented(title) for key, kind in table.items()}
    for one in listed(balsam, *words):
        for key in types.keys() & one.keys():
            kinds = [types[key]] if types[key] in TYPES else types[key].split(" or ")
            assert any(TYPES[kind](one[key]) for kind in kinds), f"{key}: {one[key]!r} is no {types[key]}"
        for key in ("created", "start_after", "told_to_stop"):
            assert one.get(key) is None or ISO_TIME.fullmatch(one[key])


def test_a_history_adds_the_documented_events(balsam: Balsam, db: Database) -> None:
    (events,), (edits,) = documented("Events"), documented("Edits")
    jobs, history = documented("Jobs")
    assert balsam("modify", "--where", "id=1", "priority", "7")[0] == 0
    answers = [listed(balsam, *words, "--history") for words in (["ls"], ["job", "ls"])]
    assert answers[0] == answers[1]
    for job in answers[0]:
        assert set(job) == {*jobs, *field_specs.JOB_FIELD, *history}
        assert [set(event) for event in job["history"]] == [set(events)] * len(job["history"])
        assert [set(edit) for edit in job["edits"]] == [set(edits)] * (job["id"] == 1)
        assert {(one["job"], one["job_id"]) for one in (*job["history"], *job["edits"])} == {(job["id"], job["job_id"])}
        assert job["attempts"] == []
    failed = answers[0][0]["history"]
    assert [event["to_state"] for event in failed] == ["CREATED", "FAILED"]
    assert failed[0]["id"] is None and failed[1]["id"] > 0
    assert {event["time"] == event["timestamp"] for event in failed} == {True}


def test_a_history_adds_the_documented_attempts(balsam: Balsam, db: Database) -> None:
    (types,) = documented("Attempts")
    with db.write() as cx:
        cx.executemany("UPDATE job SET attempt = ? WHERE id = ?", [(2, 1), (1, 2)])
        cx.execute(
            "INSERT INTO run VALUES (1, 1, 1, 'n[1-2]', '0', '0-3', 5000000, 7500000, -9, 1500000, 250000, 4096, 'killed')"
        )
        cx.execute("INSERT INTO run (job, attempt, started, ended, cause) VALUES (1, 2, 8000000, 9000000, 'launcher died')")
        cx.execute("INSERT INTO run (job, attempt, nodes) VALUES (2, 1, 'host/1')")
    for words in (["ls"], ["job", "ls"]):
        first, second = listed(balsam, *words, "--history")
        for one in (*first["attempts"], *second["attempts"]):
            assert set(one) == set(types)
            for key, value in one.items():
                assert any(TYPES[kind](value) for kind in types[key].split(" or ")), (key, value)
        known, unseen = first["attempts"]
        assert known == {
            "attempt": 1, "launcher": 1, "node": "n[1-2]", "gpus": "0", "cpus": "0-3", "started": "1970-01-01T00:00:05.000000Z",
            "ended": "1970-01-01T00:00:07.500000Z", "runtime_s": 2.5, "return_code": -9, "user_cpu_s": 1.5,
            "system_cpu_s": 0.25, "max_memory_bytes": 4096, "cause": "killed",
        }  # fmt: skip
        assert unseen["runtime_s"] is None, "when it ended is not known"
        assert (first["started"], first["runtime_s"]) == (unseen["started"], None)
        assert (second["node"], second["started"], second["ended"]) == ("host/1", None, None)


def test_jobs_name_their_relatives(balsam: Balsam, db: Database) -> None:
    parent, child = listed(balsam, "ls", "--tree")
    assert (parent["children"], child["parents"]) == ([child["job_id"]], [parent["job_id"]])


def test_numbers_that_json_does_not_know_are_null(balsam: Balsam, db: Database) -> None:
    for words in (["ls"], ["job", "ls"]):
        assert listed(balsam, *words)[0]["data"] == {"loss": None, "list": [None, 1.5]}
        assert "NaN" not in balsam(*words, "--format", "csv", "--columns", "data")[1]


# --- other formats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["ls"], ["job", "ls"]])
def test_columns_are_the_keys_that_are_named(balsam: Balsam, db: Database, words: list[str]) -> None:
    out = balsam(*words, "--columns", "name, state,tags", "--format", "csv")[1]
    assert list(csv.reader(io.StringIO(out))) == [
        ["name", "state", "tags"], ["a", "FAILED", '{"k": "v"}'], ["b, c", "FAILED", '{"k": "v"}'],
    ]  # fmt: skip
    assert [list(one) for one in listed(balsam, *words, "--columns", "state,name")] == [["state", "name"]] * 2
    assert balsam(*words, "--columns", "name,state")[1].splitlines()[:3] == ["name  state", "----  ------", "a     FAILED"]


@pytest.mark.parametrize("form", ["plain", "github", "html", "latex", "tsv", "csv", "jsonl", "yaml", "table", "json"])
@pytest.mark.parametrize("words", [
    ["ls"], ["ls", "--history"], ["ls", "--by-states"], ["ls", "apps"], ["ls", "wf"], ["ls", "queues"], ["job", "ls"],
    ["job", "ls", "--history"], ["job", "ls", "--by-state"], ["app", "ls"], ["queue", "ls"], ["site", "ls"],
])  # fmt: skip
def test_every_listing_has_every_format(balsam: Balsam, db: Database, words: list[str], form: str) -> None:
    code, out, err = balsam(*words, "--format", form)
    assert (code, err) == (0, "")
    assert out.endswith("\n") and len(out) > 5
    marks = {"html": "<table>", "latex": r"\begin{tabular}", "github": "| ", "yaml": "---\n", "json": "[\n{"}
    assert out.startswith(marks.get(form, ""))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["ls", "--format", "githb"], "'github'"), (["app", "ls", "--format", "jsn"], "'json'"),
        (["ls", "--columns", "nam"], "'name'"), (["job", "ls", "--columns", "num_node"], "'num_nodes'"),
        (["queue", "ls", "--columns", "scheduler_ids"], "'scheduler_id'"), (["ls", "--history", "--columns", "tim"], "'time'"),
        (["ls", "--json", "--format", "csv"], "--json and --format csv exclude each other"),
    ],
)  # fmt: skip
def test_an_unknown_format_or_column_is_told_with_the_nearest(
    balsam: Balsam, db: Database, words: list[str], said: str
) -> None:
    code, out, err = balsam(*words)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("words", [["ls"], ["job", "ls"], ["ls", "--history"], ["job", "ls", "--history"]])
@pytest.mark.parametrize("form", ["csv", "github", "table"])
def test_a_listing_of_nothing_prints_nothing(balsam: Balsam, db: Database, words: list[str], form: str) -> None:
    for more, out in ((["--format", form], ""), (["--json"], "[]\n")):
        assert balsam(*words, "--state", "RUNNING", *more)[:2] == (0, out)
