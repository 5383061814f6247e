"""The queue policy: what a file says, and what is said of a file that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from balsam_lite.core.errors import SettingsError
from balsam_lite.core.settings import Settings, SettingsWarning
from balsam_lite.service import policy
from balsam_lite.service.policy import Queue, Range

#: As it stands on the slides of Balsam 0.3: the last bracket is not indented.
SLIDE = """[debug-flat-quad]
submit-jobs = on
max-queued = 1
policy = [
    {
        "min-nodes": 1,
        "max-nodes": 16,
        "min-time": 0,
        "max-time": 1
    }
]
"""


def one(**fields: object) -> str:
    """A policy of one queue and one range, with other values."""
    item = {"min-nodes": 1, "max-nodes": 16, "min-time": 0, "max-time": 1}
    item.update({key.replace("_", "-"): value for key, value in fields.items()})
    return section([{key: value for key, value in item.items() if value is not None}])


def section(ranges: object, name: str = "debug", on: str = "on", most: str = "2") -> str:
    return f"[{name}]\nsubmit-jobs = {on}\nmax-queued = {most}\npolicy = {json.dumps(ranges)}\n"


def complaint(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        policy.parse(text, "/db/policy.ini")
    return caught.value.message


def test_the_slides_policy_is_read_as_it_stands() -> None:
    assert policy.parse(SLIDE, "p") == (Queue("debug-flat-quad", True, 1, (Range(1, 16, 1, 60),)),)


def test_the_shipped_policy_has_the_local_queue_on_and_the_slides_queues_off() -> None:
    path = ROOT / "balsam_lite" / "templates" / "policy.ini"
    queues = {queue.name: queue for queue in policy.parse(path.read_text(), str(path))}
    assert {name: queue.is_on for name, queue in queues.items()} == {"local": True, "debug-flat-quad": False, "default": False}
    assert queues["debug-flat-quad"].ranges == (Range(1, 16, 1, 60),)
    assert queues["default"].ranges[0] == Range(128, 255, 30, 180)
    assert queues["default"].ranges[-1] == Range(802, 4392, 30, 1440)


def test_sections_may_be_written_in_other_ways() -> None:
    text = (
        "# a remark [with a bracket\n\n[a queue]\nSubmit-Jobs = yes\n"
        'max-queued=3\npolicy = [\n{"min-nodes": 5,\n"max-nodes": 6, "min-time": 0.5,\n\n"max-time": 1.5},\n'
        '{"min-nodes": 1, "max-nodes": 4, "min-time": 0.1, "max-time": 0.1}\n]\n[DEFAULT]\nsubmit-jobs = 0\nmax-queued = 1\n'
        'policy = [{"min-nodes": 1, "max-nodes": 1, "min-time": 0, "max-time": 24}]\n'
    )
    assert policy.parse(text, "p") == (
        Queue("a queue", True, 3, (Range(1, 4, 6, 6), Range(5, 6, 30, 90))),
        Queue("DEFAULT", False, 1, (Range(1, 1, 1, 1440),)),
    )


WRONG = {
    "": "has no section",
    "# only a remark\n": "has no section",
    "submit-jobs = on\n": "line 1: expected a section",
    "[debug]\nsubmit-jobs\n": "line 2: expected KEY = VALUE",
    "[debug]\nmax-queued = 1\nmax-queued = 2\n": "line 3, [debug]: max-queued is given twice",
    SLIDE + SLIDE: "line 12: there are two sections [debug-flat-quad]",
    "[debug]\nsubmit-jobs = on\nmax-queued = 1\n": "[debug]: policy is missing",
    section([], on="maybe"): "[debug]: submit-jobs must be on or off, not 'maybe'",
    section([], most="0"): "[debug]: max-queued must be a whole number of 1 or more, not '0'",
    section([], most="-1"): "not '-1'",
    section([], most="1.5"): "not '1.5'",
    section([], most="\N{ARABIC-INDIC DIGIT THREE}"): "max-queued must be",
    section([], most="9" * 5000): "max-queued must be",
    section([]): "[debug], policy must be a JSON list of one or more objects, not '[]'",
    section({}): "must be a JSON list",
    section([1]): "must be a JSON list",
    SLIDE.replace("16,", "16"): "[debug-flat-quad], policy: Expecting ',' delimiter (line 5, column 1 of the value)",
    SLIDE.replace("]\n", "", 2) + "[next]\nsubmit-jobs = on\n": "line 1: expected a section",
    "[debug]\nsubmit-jobs = on\nmax-queued = 1\npolicy = [{\n[next]\nsubmit-jobs = on\n": "policy: Expecting property name",
    "[debug]\nsubmit-jobs = on\nmax-queued = 1\npolicy = " + "[" * 100_000 + "\n": "policy",
    one(min_nodes=None): "policy, object 1: min-nodes is missing",
    one(max_time=None): "max-time is missing",
    one(min_nodes=17): "min-nodes is 17 and max-nodes is 16; the range is reversed",
    one(min_time=2): "min-time is 2.0 and max-time is 1.0; the range is reversed",
    one(min_nodes=0): "min-nodes must be a whole number from 1 to 10000000, not 0",
    one(min_nodes=-1): "not -1",
    one(min_nodes=1.0): "not 1.0",
    one(min_nodes=True): "not True",
    one(max_nodes="16"): "not '16'",
    one(max_nodes=10**30): "max-nodes must be",
    one(min_time=-1): "min-time must be a number of hours from 0",
    one(max_time=float("nan")): "max-time must be a number of hours from 0 to 166666, not nan",
    one(max_time=float("inf")): "not inf",
    one(max_time=None, min_time=False): "max-time is missing",
    one(min_time=False): "not False",
    one(max_time=0): "there is no whole minute from min-time 0.0 to max-time 0.0 hours",
    one(min_time=0.011, max_time=0.012): "no whole minute",
    section(
        [
            {"min-nodes": 1, "max-nodes": 8, "min-time": 0, "max-time": 1},
            {"min-nodes": 8, "max-nodes": 9, "min-time": 0, "max-time": 1},
        ]
    ): "[debug], policy: the node ranges 1 to 8 and 8 to 9 overlap",
    '[debug]\nsubmit-jobs = on\nmax-queued = 1\npolicy = [{"min-nodes": 1, "min-nodes": 2}]\n': "a key is given twice",
    section([], name="a\tb"): "the name of a queue is printable",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_an_error_names_the_file_and_what_is_wrong_in_it(text: str) -> None:
    said = complaint(text)
    assert said.startswith("/db/policy.ini")
    assert WRONG[text] in said


def test_unknown_keys_are_a_warning() -> None:
    text = one(backfill=1).replace("max-queued", "project = a\nmax-queued")
    with pytest.warns(SettingsWarning) as caught:
        policy.parse(text, "p")
    assert [str(warning.message) for warning in caught] == [
        "p, [debug]: unknown keys are ignored: project",
        "p, [debug], policy, object 1: unknown keys are ignored: backfill",
    ]


@pytest.mark.filterwarnings("ignore::balsam_lite.core.settings.SettingsWarning")  # keys that no queue has
@settings(deadline=None)
@given(st.text(max_size=200))
@example("\x1e0=")
def test_any_text_is_read_or_refused(text: str) -> None:
    for whole in (text, f"[q]\nsubmit-jobs = on\nmax-queued = 1\npolicy = {text}"):
        try:
            assert policy.parse(whole, "p")
        except SettingsError as exc:
            assert exc.message.startswith("p")


# --- where it lies ----------------------------------------------------------------------------------------------------


def test_the_dbs_own_policy_wins_over_the_users(tmp_path: Path) -> None:
    db, user = tmp_path / "db", tmp_path / "home"
    environ = {"BALSAM_HOME": str(user)}
    for folder, name in ((user, "users"), (db, "dbs")):
        folder.mkdir()
        (folder / "policy.ini").write_text(section([{"min-nodes": 1, "max-nodes": 1, "min-time": 0, "max-time": 1}], name))
        assert [queue.name for queue in policy.load(str(db), Settings(), environ)] == [name]
    (tmp_path / "elsewhere.ini").write_text(f"\ufeff{SLIDE}")  # as some editors begin a file
    elsewhere = Settings(QUEUE_POLICY=str(tmp_path / "elsewhere.ini"))
    assert policy.load(str(db), elsewhere, environ)[0].name == "debug-flat-quad"


def test_a_missing_policy_says_where_it_was_looked_for_and_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="QUEUE_POLICY: there is no file 'mine") as caught:
        policy.load(str(tmp_path), Settings(QUEUE_POLICY="mine.ini"), {"BALSAM_HOME": "/nowhere"})
    assert f"{tmp_path}/mine.ini\n    /nowhere/mine.ini" in caught.value.hint
    assert "balsam init" in caught.value.hint
    with pytest.raises(SettingsError):
        policy.load(str(tmp_path), Settings(QUEUE_POLICY=""), {})


def test_bytes_that_are_no_text_are_an_error_with_the_path(tmp_path: Path) -> None:
    (tmp_path / "policy.ini").write_bytes(b"[\xff]\n")
    with pytest.raises(SettingsError, match=f"{tmp_path}/policy.ini cannot be read"):
        policy.load(str(tmp_path), Settings())


def test_the_template_is_copied_once_and_not_where_the_user_has_a_policy(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path))
    db = tmp_path / "db"
    db.mkdir()
    policy.copy_template(str(db), Settings(SCHEDULER_CLASS="LocalScheduler"))
    assert [queue.name for queue in policy.load(str(db), Settings()) if queue.is_on] == ["local"]
    (db / "policy.ini").write_text(SLIDE)
    policy.copy_template(str(db), Settings())
    assert (db / "policy.ini").read_text() == SLIDE
    (db / "policy.ini").rename(tmp_path / "policy.ini")
    policy.copy_template(str(db), Settings())
    assert list(db.iterdir()) == []


def test_nothing_is_on_in_the_template_of_a_cluster(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    policy.copy_template(str(tmp_path), Settings(SCHEDULER_CLASS="SlurmScheduler"))
    queues = policy.load(str(tmp_path), Settings())
    assert queues[0].name == "local"
    assert not any(queue.is_on for queue in queues)


def test_a_bracket_in_a_queues_name_is_part_of_it() -> None:
    text = section([{"min-nodes": 1, "max-nodes": 1, "min-time": 0, "max-time": 1}], name="a[b")
    assert [queue.name for queue in policy.parse(text, "p")] == ["a[b"]
