"""The desk of a site of this host: what it creates, changes, deletes and refuses, all or nothing."""

from __future__ import annotations

import base64
import json
import os
import pickle
import sys
import time

import pytest

from balsam_lite.core import states
from balsam_lite.core.clock import SECOND_US, SystemClock
from balsam_lite.core.errors import (
    DuplicateApp,
    InvalidSpec,
    InvalidStateError,
    NotFound,
    ParentInUse,
    RemoteError,
    StateError,
    UnknownApp,
    UnknownField,
    UnknownJob,
)
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.store import claims, insert, leases
from balsam_lite.pyapps import result_file
from balsam_lite.sites.interface import KINDS
from balsam_lite.sites.local import LocalSite

HELLO = {
    "name": "Hello", "command_template": "echo {{ a }} {{ b }}",
    "parameters": {"a": {"required": True, "help": ""}, "b": {"required": False, "default": "x", "help": ""}},
}  # fmt: skip


def a_site(path):
    directories.set_up(str(path))
    desk = LocalSite(registry.at(str(path)))
    desk.create("app", [HELLO, {"name": "plain", "executable": "/bin/true"}])
    return desk


@pytest.fixture
def desk(tmp_path):
    return a_site(tmp_path / "site")


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A site where nothing is ever created, for all tests of refusals."""
    return a_site(tmp_path_factory.mktemp("sites") / "site")


def job(n=0, **fields):
    return {"app_id": "Hello", "workdir": f"demo/{n}", "parameters": {"a": f"w {n}"}, **fields}


def ids(rows):
    return [row["id"] for row in rows]


def by_id(desk, number):
    return desk.select("job", {"id": number})[0]


def hold(desk, number):
    """As a launcher does that runs the job."""
    with desk.database.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", SystemClock.now_us())
        claims.hold_for_step(cx, lease, [number])


# --- creating jobs ----------------------------------------------------------------------------------------------------


def test_created_jobs_come_back_in_order_as_they_are_in_the_db(desk):
    rows = [job(n, tags={"n": str(n)}, **({"num_nodes": 2} if n % 2 else {"wall_time_min": 5})) for n in range(7)]
    made = desk.create("job", rows)
    assert [row["tags"]["n"] for row in made] == [str(n) for n in range(7)]
    assert made == [{name: row[name] for name in made[0]} for row in desk.select("job")]
    assert [row["num_nodes"] for row in made] == [1, 2, 1, 2, 1, 2, 1]
    assert made[0]["wall_time_min"] == 5 and made[0]["app_id"] == 1 and made[0]["app"] == "Hello"
    assert [row["workdir"] for row in made] == [f"demo/{n}" for n in range(7)]
    assert made[0]["state"] == states.CREATED and made[0].get("batch_job_id") is None
    json.dumps(made)


def test_tags_of_created_jobs_are_of_their_own(desk):
    one, other = desk.create("job", [job(n, tags={"same": "for both"}) for n in range(2)])
    one["tags"]["more"] = "x"
    assert other["tags"] == {"same": "for both"}


def test_every_field_that_a_job_is_given_is_kept(desk):
    given = {
        "name": "n", "workflow": "w", "description": "two\nlines", "tags": {"k ü": "q\"'\\"},
        "data": {"deep": [1, {"x": None}]}, "num_nodes": 3, "ranks_per_node": 4, "threads_per_rank": 5, "threads_per_core": 2,
        "gpus_per_rank": 0.5, "node_packing_count": 1, "wall_time_min": 60, "args": "a 'b c'", "environ_vars": {"A": "1"},
        "launch_params": {"d": "2", "cpu_affinity": "depth"}, "priority": -3, "restart_limit": 2, "max_retries": 1,
        "retry_codes": "1 75",
    }  # fmt: skip
    (made,) = desk.create("job", [job(parameters={"a": "'; rm -rf $(x)\n ü"}, **given)])
    assert {name: made[name] for name in given} == given
    assert made["parameters"] == {"a": "'; rm -rf $(x)\n ü"}
    assert (made["mpi_flags"], made["cpu_affinity"]) == ("-d 2", "depth")


def test_an_unknown_wall_time_is_our_least(desk):
    assert desk.create("job", [job(wall_time_min=0)])[0]["wall_time_min"] == 1


def test_an_app_is_named_by_number_or_name(desk):
    assert [row["app_id"] for row in desk.create("job", [job(0, app_id=1), job(1, app_id="Hello")])] == [1, 1]
    assert desk.create("job", [{"app": "plain", "workdir": "p"}])[0]["app_id"] == 2


def test_checking_jobs_writes_nothing_and_says_what_creating_them_would(empty):
    empty.check_jobs([job(0), job(1)])
    for rows in ([job(0), job(1, num_nodes=0)], [job(0, priority="x")], [job(0, parent_ids=[5])], [job(0), job(0)], [job(x=1)]):
        said = []
        for method in (empty.check_jobs, lambda rows: empty.create("job", rows)):
            with pytest.raises((InvalidSpec, UnknownField, UnknownJob)) as caught:
                method(rows)
            said.append((type(caught.value), str(caught.value)))
        assert said[0] == said[1]
    assert empty.count("job") == 0


def test_parents_make_a_job_wait(desk):
    first, second = ids(desk.create("job", [job(0), job(1)]))
    (child,) = desk.create("job", [job(2, parent_ids=[second, first])])
    assert (child["state"], child["parent_ids"]) == (states.AWAITING_PARENTS, [first, second])
    assert [e["to_state"] for e in desk.select("event", {"job_id": child["id"]})] == [states.AWAITING_PARENTS]
    assert ids(desk.select("job", {"parent_id": first})) == [child["id"]]


def test_jobs_of_two_calls_may_share_a_directory_where_that_is_allowed(desk):
    (one,) = desk.create("job", [job()])
    with pytest.raises(InvalidSpec, match="workdir demo/0 is that of job #1 "):
        desk.create("job", [job(workdir="./demo//0/")])
    with pytest.raises(InvalidSpec, match="workdir demo/0 is that of job #1 "):
        desk.check_jobs([job(workdir="./demo//0/")])
    (other,) = desk.create("job", [job(workdir="./demo//0/", allow_shared_workdir=True)])
    assert one["workdir"] == other["workdir"] == "demo/0" and one["id"] != other["id"]


def test_no_rows_are_no_work(desk):
    assert desk.create("job", []) == [] and desk.update("job", []) == 0


BAD = {
    "absolute": ({"workdir": "/tmp/x"}, InvalidSpec, "Cannot use absolute path: /tmp/x"),
    "leaves": ({"workdir": "a/../../x"}, InvalidSpec, "must be a directory below the data directory"),
    "itself": ({"workdir": "a/.."}, InvalidSpec, "must be a directory below the data directory"),
    "empty": ({"workdir": ""}, InvalidSpec, "must be a path of printable characters, not ''"),
    "NUL": ({"workdir": "a\0b"}, InvalidSpec, "must not hold a NUL byte"),
    "newline": ({"workdir": "a\nb"}, InvalidSpec, "printable"),
    "long": ({"workdir": "x" * 256}, InvalidSpec, "too long for a file system"),
    "wide": ({"workdir": "字" * 100}, InvalidSpec, "too long for a file system"),
    "deep": ({"workdir": "x/" * 2000}, InvalidSpec, "too long for a file system"),
    "number": ({"workdir": 3}, InvalidSpec, "workdir must be text, not 3"),
    "no workdir": ({"workdir": None}, InvalidSpec, "must be text, not None"),
    "unknown app": (
        {"app_id": "Nope"},
        UnknownApp,
        "There is no application 'Nope' at this site.\nRegistered are: Hello, plain",
    ),
    "unknown app number": ({"app_id": 77}, UnknownApp, "There is no application 77"),
    "app is a list": ({"app_id": []}, UnknownApp, "There is no application []"),
    "missing": ({"parameters": {}}, InvalidSpec, "Missing required parameters: {'a'}"),
    "extra": ({"parameters": {"a": "", "z": "", "c": ""}}, InvalidSpec, "Extraneous parameters: {'c', 'z'}"),
    "parameters": ({"parameters": "a=1"}, InvalidSpec, "job parameters must map names to values, not 'a=1'"),
    "large": ({"parameters": {"a": "ü" * 300_000}}, InvalidSpec, "must not be larger than 512000 bytes in all, these are 600"),
    "NUL in a value": ({"parameters": {"a": "x", "b": "y\0"}}, InvalidSpec, "The parameter b holds a NUL character"),
    "NUL in a list": ({"parameters": {"a": ["x", {"k\0": 1}]}}, InvalidSpec, "The parameter a holds a NUL character"),
    "long word": (
        {"parameters": {"a": "ü" * 65_536}},
        InvalidSpec,
        "The parameter a is too large: it makes a word of 131072 byt",
    ),
    "no JSON": ({"parameters": {"a": {1, 2}}}, InvalidSpec, "cannot be written as JSON"),
    "state": ({"state": "READY"}, InvalidSpec, "Cannot set state when creating Job"),
    "id": ({"id": 3}, InvalidSpec, "Cannot set id when creating Job"),
    "no parent": ({"parent_ids": [1, 4711]}, UnknownJob, "Could not find one or more Jobs set as parents: 1, 4711"),
    "parents": ({"parent_ids": "1"}, InvalidSpec, "parent_ids must be a list of job ids, not '1'"),
    "parent is text": ({"parent_ids": ["1"]}, InvalidSpec, "parent_ids must be whole numbers"),
    "nodes": ({"num_nodes": 0}, InvalidSpec, "num_nodes must be 1 or more, not 0"),
    "nodes are text": ({"num_nodes": "two"}, InvalidSpec, "num_nodes must be a whole number, not 'two'"),
    "time": ({"wall_time_min": -1}, InvalidSpec, "must be 1 or more, not -1"),
    "tags": ({"tags": {"k": [1]}}, InvalidSpec, "tags must map text to text, not 'k' to [1]"),
    "empty tag": ({"tags": {"": "v"}}, InvalidSpec, "tags must map text to text, not '' to 'v'"),
    "gpus": ({"gpus_per_rank": 2, "ranks_per_node": 3}, InvalidSpec, "asks for 6 GPUs on each node"),
    "affinity": ({"launch_params": {"cpu_affinity": "core"}}, InvalidSpec, "cpu_affinity must be none or depth"),
    "twice": ({"launch_params": {"d": "1"}, "mpi_flags": "-d 1"}, InvalidSpec, "say the same"),
    "field": ({"numnodes": 3}, UnknownField, "Did you mean 'num_nodes'?"),
    "kept": ({"lease": 3}, InvalidSpec, "is kept by balsam_lite and cannot be set"),
}


@pytest.mark.parametrize(
    ("template", "said"),
    [("x {{ a }} {{ a }}", ""), ("x -n{{ a }}", "a word of 131073 bytes"), ("{{ a }}; x", "a line for the shell of 1310")],
)
def test_a_job_may_have_what_a_program_can_be_given_in_one_word(desk, template, said):
    desk.create("app", [{"name": "Long", "command_template": template}])
    large = job(app_id="Long", parameters={"a": "x" * 131_071})
    if said:
        with pytest.raises(InvalidSpec, match=f"The parameter a is too large: it makes {said}"):
            desk.create("job", [large])
    else:
        desk.create("job", [large])


@pytest.mark.parametrize("what", BAD)
def test_a_job_that_cannot_be_is_refused_with_the_reason(empty, what, monkeypatch):
    fields, kind, said = BAD[what]
    monkeypatch.setenv("BALSAM_GPUS_PER_NODE", "4")
    with pytest.raises(kind) as caught:
        empty.create("job", [job(**fields)])
    assert said in str(caught.value)
    assert "Job number" not in str(caught.value)
    with pytest.raises(kind) as caught:
        empty.create("job", [job(1), job(2), job(3, **fields), job(4)])
    assert said in str(caught.value) and "Job number 3: " in str(caught.value)
    assert empty.count("job") == 0


@pytest.mark.parametrize("missing", ["workdir", "app_id"])
def test_a_job_needs(empty, missing):
    row = job()
    del row[missing]
    with pytest.raises(InvalidSpec, match=f"A job needs an? {missing}"):
        empty.create("job", [row])


def test_of_ten_thousand_jobs_one_bad_one_is_named_and_none_created(empty):
    rows = [job(n) for n in range(10_000)]
    rows[6789]["parameters"] = {}
    with pytest.raises(InvalidSpec, match=r"Job number 6790: Missing required parameters: \{'a'\}"):
        empty.create("job", rows)
    rows[6789] = job(6789, num_nodes=-1)
    with pytest.raises(InvalidSpec, match="Job number 6790: job num_nodes must be 1 or more"):
        empty.create("job", rows)
    assert empty.count("job") == 0 and empty.select("job") == []


def test_two_jobs_of_one_call_cannot_share_a_directory(empty):
    said = r"Workdirs must be unique for each call to bulk-create Jobs. Job number 2 has this one too: demo/1"
    with pytest.raises(InvalidSpec, match=f"Job number 4: {said}"):
        empty.create("job", [job(0), job(1), job(2), job(3, workdir="demo/./1")])
    assert empty.count("job") == 0


def test_gpus_are_not_checked_where_nobody_knows_the_nodes(desk, monkeypatch):
    assert desk.create("job", [job(0, gpus_per_rank=64)])[0]["gpus_per_rank"] == 64
    monkeypatch.setenv("BALSAM_GPUS_PER_NODE", "0")
    assert desk.create("job", [job(1, gpus_per_rank=0)])
    with pytest.raises(InvalidSpec, match="but a node has 0"):
        desk.create("job", [job(2, gpus_per_rank=0.5)])


def test_a_command_takes_what_it_is_given_and_pickled_parameters_are_known_by_their_names(desk):
    desk.create("job", [{"app_id": "plain", "workdir": "x", "parameters": {"whatever": 1}}])
    desk.create("app", [{"name": "F", "definition": {"file": "/f.py", "class": "F"}, "parameters": HELLO["parameters"]}])
    pickled = {"__pickled__": base64.b64encode(pickle.dumps({"a": {1, 2}})).decode()}
    made = desk.create("job", [job(app_id="F", parameters={**pickled, "names": ["a"]})])
    assert made[0]["parameters"] == {**pickled, "names": ["a"]}
    with pytest.raises(InvalidSpec, match=r"Extraneous parameters: \{'c'\}"):
        desk.create("job", [job(app_id="F", parameters={**pickled, "names": ["a", "c"]})])
    with pytest.raises(InvalidSpec, match="must be text, numbers, lists or dicts"):
        desk.create("job", [job(parameters={**pickled, "names": ["a"]})])


def test_a_function_that_takes_any_parameter_is_given_any(desk):
    definition = {"file": "/x.py", "class": "F", "open": True}
    desk.create("app", [{"name": "F", "definition": definition, "parameters": {"n": {"required": True}}}])
    assert desk.create("job", [{"app_id": "F", "workdir": "f", "parameters": {"n": 1, "more": [2]}}])
    with pytest.raises(InvalidSpec, match=r"Missing required parameters: \{'n'\}"):
        desk.create("job", [{"app_id": "F", "workdir": "g", "parameters": {"more": 1}}])


# --- changing jobs ----------------------------------------------------------------------------------------------------


def test_each_change_reaches_its_job(desk):
    one, two, three = ids(desk.create("job", [job(n) for n in range(3)]))
    moment = SystemClock.now_us() // SECOND_US * SECOND_US
    changes = [
        {
            "id": one,
            "tags": {"k": "ü'\""},
            "state": states.JOB_FINISHED,
            "state_data": {"why": "so"},
            "state_timestamp": moment,
        },
        {"id": two, "num_nodes": 4, "launch_params": {"d": "3"}, "wall_time_min": 0, "workdir": "other/place"},
        {"id": three, "parameters": {"a": "new", "b": "y"}, "data": {"x": 1}},
    ]
    assert desk.update("job", changes) == 3
    assert desk.select("job", {"tags": {"k": "ü'\""}}) == [by_id(desk, one)]
    (event,) = desk.select("event")
    assert (event["job_id"], event["to_state"], event["data"], event["timestamp"]) == (
        one,
        "JOB_FINISHED",
        {"why": "so"},
        moment,
    )
    assert by_id(desk, one)["last_update"] == moment
    changed = by_id(desk, two)
    assert (changed["num_nodes"], changed["mpi_flags"], changed["wall_time_min"]) == (4, "-d 3", 1)
    assert changed["workdir"] == "other/place"
    assert (by_id(desk, three)["parameters"], by_id(desk, three)["data"]) == ({"a": "new", "b": "y"}, {"x": 1})


@pytest.mark.parametrize(("change", "kind", "said"), [
    ({"app_id": 2}, InvalidSpec, "Cannot set app_id when updating Job"),
    ({"parent_ids": []}, InvalidSpec, "Cannot set parent_ids when updating Job"),
    ({"last_update": 1}, InvalidSpec, "Cannot set last_update when updating Job"),
    ({"return_code": 1}, InvalidSpec, "is kept by balsam_lite"),
    ({"state": "DONE"}, InvalidStateError, "There is no state 'DONE'"),
    ({"state": "RUNNING"}, StateError, "Only a launcher makes a job RUNNING"),
    ({"state_data": {"x": 1}}, InvalidSpec, "state_data and state_timestamp go with a new state"),
    ({"state": "FAILED", "state_timestamp": 253402300799999999}, InvalidSpec, "in the future, as 9999-12-31 23:59:59 UTC"),
    ({"state": "USER_KILLED", "state_timestamp": 2**63}, InvalidSpec, "not lie in the future, as 9223372036854775808 µs"),
    ({"state": "FAILED", "state_timestamp": -62135596800000000}, InvalidSpec, "must not lie before the job was created"),
    ({"state": "FAILED", "state_data": "x"}, InvalidSpec, "state_data must be a mapping"),
    ({"parameters": {}}, InvalidSpec, "Missing required parameters: {'a'}"),
    ({"workdir": "../x"}, InvalidSpec, "below the data directory"),
    ({"gpus_per_rank": 5}, InvalidSpec, "asks for 5 GPUs on each node"),
    ({"ranks": 5}, UnknownField, "A job has no field 'ranks'"),
    ({"num_nodes": 0}, InvalidSpec, "must be 1 or more"),
])  # fmt: skip
def test_a_change_that_cannot_be_leaves_all_jobs_as_they_were(desk, change, kind, said, monkeypatch):
    desk.create("job", [job(0), job(1)])
    made = desk.select("job")
    monkeypatch.setenv("BALSAM_GPUS_PER_NODE", "4")
    with pytest.raises(kind) as caught:
        desk.update("job", [{"id": 1, "tags": {"k": "v"}, "state": "FAILED"}, {"id": 2, **change}])
    assert said in str(caught.value)
    with pytest.raises(kind):
        desk.update_where("job", {}, change)
    assert desk.select("job") == made and desk.count("event") == 0


def test_what_is_said_with_a_kill_is_kept(desk):
    desk.create("job", [job()])
    said, moment = {"message": "no use", "by": "me"}, SystemClock.now_us() - 1
    desk.update("job", [{"id": 1, "state": "USER_KILLED", "state_data": said, "state_timestamp": moment}])
    (event,) = desk.select("event")
    assert (event["data"], event["timestamp"]) == (said, moment)
    assert desk.result(1)["message"] == "no use"


def test_children_follow_now_whatever_time_is_given_for_their_parent(desk):
    (parent,) = ids(desk.create("job", [job(0)]))
    moment = SystemClock.now_us() - 1
    desk.create("job", [{**job(1), "parent_ids": [parent]}])
    desk.update("job", [{"id": parent, "state": "FAILED", "state_timestamp": moment}])
    at, of_child = (event["timestamp"] for event in desk.select("event", {"to_state": "FAILED"}, "timestamp"))
    assert at == moment < by_id(desk, parent + 1)["created"] < of_child


def test_changes_need_jobs_that_exist_once(desk):
    desk.create("job", [job()])
    for changes, kind, said in (
        ([{"id": 1, "num_nodes": 2}, {"id": 9, "num_nodes": 2}], UnknownJob, "no job with the id 9"),
        ([{"id": 1, "num_nodes": 2}, {"id": 1, "num_nodes": 3}], InvalidSpec, "two changes for the id 1"),
        ([{"num_nodes": 2}], InvalidSpec, "needs the id of what is to be changed, not None"),
    ):
        with pytest.raises(kind, match=said):
            desk.update("job", changes)
    assert by_id(desk, 1)["num_nodes"] == 1


def test_a_held_job_keeps_its_state_and_all_others_theirs(desk):
    desk.create("job", [job(0), job(1)])
    hold(desk, 2)
    with pytest.raises(StateError, match="held by launcher"):
        desk.update("job", [{"id": 1, "state": "FAILED"}, {"id": 2, "state": "FAILED", "state_data": {"x": 1}}])
    assert desk.count("job", {"state": "CREATED"}) == 2


def test_all_that_match_are_changed(desk):
    desk.create("job", [job(n, tags={"k": "v"} if n % 2 else {}) for n in range(6)])
    assert desk.update_where("job", {"tags": {"k": "v"}}, {"state": "JOB_FINISHED", "tags": {"k": "w"}}) == 3
    assert ids(desk.select("job", {"tags": {"k": "w"}, "state": "JOB_FINISHED"})) == [2, 4, 6]
    assert desk.count("job", {"tags": {"k": "v"}}) == 0
    assert desk.update_where("job", {"id": []}, {"num_nodes": 2}) == 0


def test_many_changes_that_say_the_same_take_few_statements(desk):
    desk.create("job", [job(n) for n in range(300)])
    asked = []
    with desk.database.write() as cx:
        cx.set_trace_callback(asked.append)
        desk.update("job", [{"id": n, "num_nodes": 1 + n % 2} for n in range(1, 301)])
        cx.set_trace_callback(None)
    assert (
        len([sql for sql in asked if "INTO edit " not in sql]) < 30
    )  # a row of `edit` for each changed job, in one executemany
    assert desk.count("job", {"id": list(range(1, 301))}) == 300
    assert [row["num_nodes"] for row in desk.select("job", {}, "", 0, 3)] == [2, 1, 2]


# --- deleting ---------------------------------------------------------------------------------------------------------


def test_deleted_jobs_go_with_their_events_and_tags(desk):
    desk.create("job", [job(n, tags={"k": str(n % 2)}) for n in range(4)])
    desk.update_where("job", {}, {"state": "FAILED"})
    assert desk.delete("job", {"tags": {"k": "1"}}) == {"deleted": 2, "held": 0, "is_kept": True}
    assert ids(desk.select("job")) == [1, 3]
    assert {e["job_id"] for e in desk.select("event")} == {1, 3}
    assert desk.delete("job", {"tags": {"k": "1"}}) == {"deleted": 0, "held": 0, "is_kept": True}


def test_a_held_job_is_left_alone_and_counted(desk):
    desk.create("job", [job(0), job(1)])
    hold(desk, 1)
    assert desk.delete("job", {}) == {"deleted": 1, "held": 1, "is_kept": True}
    assert ids(desk.select("job")) == [1]


def test_a_parent_is_deleted_only_by_force(desk):
    desk.create("job", [job(0)])
    desk.create("job", [job(1, parent_ids=[1])])
    with pytest.raises(ParentInUse):
        desk.delete("job", {"id": 1})
    assert desk.count("job") == 2
    assert desk.delete("job", {"id": 1}, force=True) == {"deleted": 1, "held": 0, "is_kept": True}
    assert by_id(desk, 2)["state"] == states.FAILED


# --- applications -----------------------------------------------------------------------------------------------------


def test_an_app_of_a_known_name_is_changed_and_keeps_its_number(desk):
    made = desk.create(
        "app", [{**HELLO, "description": "new"}, {"name": "third", "definition": {"file": "/c.py", "class": "C"}}]
    )
    assert [(app["id"], app["kind"], app["description"]) for app in made] == [(1, "template", "new"), (3, "function", "")]
    assert made[0]["parameters"] == HELLO["parameters"]
    assert desk.count("app") == 3
    assert desk.select("app", {"name": "plain"})[0]["kind"] == "command"


def test_a_renamed_app_keeps_its_number_and_its_jobs(desk):
    desk.create("job", [job(0), job(1)])
    (made,) = desk.create("app", [{**HELLO, "name": "Hi", "rename_from": "Hello"}])
    assert (made["id"], made["name"]) == (1, "Hi")
    assert [row["app_id"] for row in desk.select("job", {"app": "Hi"})] == [1, 1]
    assert desk.create("app", [{**HELLO, "name": "Hi", "rename_from": "Hello"}])[0]["id"] == 1  # the script runs once more
    assert desk.update("app", [{"id": 1, "name": "Ho", "description": "d"}]) == 1
    assert desk.count("job", {"app": "Ho"}) == 2
    with pytest.raises(DuplicateApp):
        desk.create("app", [{"name": "plain", "rename_from": "Ho"}])
    with pytest.raises(UnknownApp, match="There is no App 'gone'"):
        desk.create("app", [{"name": "new", "rename_from": "gone"}])
    assert [app["name"] for app in desk.select("app")] == ["Ho", "plain"]


OPTIONAL = {"required": False, "default": "1"}
APPS_THAT_CANNOT_RUN = [
    ({}, "needs a command_template or an executable"),
    ({"command_template": "echo", "executable": "echo"}, "cannot have both a command_template and an executable"),
    ({"command_template": "echo {{ a"}, "command template cannot be used"),
    ({"command_template": " "}, "gives an empty command line"),
    ({"command_template": "echo {{ a }}", "parameters": {"a": OPTIONAL, "b": OPTIONAL}}, "has no b"),
    ({"command_template": "echo {{ a }}", "parameters": {"a": 5}}, "parameter a must set 'required' to true or false, not 5"),
    ({"command_template": "echo {{ a }}", "parameters": {"a": {"required": 1}}}, "must set 'required'"),
    ({"command_template": "echo {{ a }}", "parameters": {"a": {"required": False}}}, "must set a 'default'"),
    (
        {"command_template": "echo {{ a }}", "parameters": {"a": {"required": True, "help": 1}}},
        "must have text for 'help'",
    ),
    ({"executable": "echo", "parameters": {"a b": OPTIONAL}}, "'a b' cannot be a parameter's name"),
    ({"executable": "echo", "parameters": {"a": {**OPTIONAL, "defualt": "x"}}}, "unknown keys: defualt"),
]


@pytest.mark.parametrize(("fields", "said"), APPS_THAT_CANNOT_RUN, ids=[said for _, said in APPS_THAT_CANNOT_RUN])
def test_an_app_that_could_not_run_is_refused(empty, fields, said):
    with pytest.raises(InvalidSpec, match=said):
        empty.create("app", [{"name": "x", **fields}])
    with pytest.raises(InvalidSpec):
        empty.update("app", [{"id": 2, "executable": "", **fields}])
    assert [app["executable"] for app in empty.select("app")] == ["", "/bin/true"]


def test_what_a_template_needs_is_among_the_parameters(desk):
    (made,) = desk.create("app", [{"name": "new", "command_template": "echo {{ a }} {{ b }}", "parameters": {"b": OPTIONAL}}])
    assert made["parameters"] == {"a": {"required": True}, "b": OPTIONAL}
    with pytest.raises(InvalidSpec, match=r"Missing required parameters: \{'a'\}"):
        desk.create("job", [{"app": "new", "workdir": "n", "parameters": {"b": "2"}}])
    desk.update("app", [{"id": made["id"], "command_template": "echo {{ b }} {{ c }}"}])
    assert desk.select("app", {"name": "new"})[0]["parameters"] == {"b": OPTIONAL, "c": {"required": True}}
    desk.update("app", [{"id": made["id"], "command_template": "", "executable": "true"}])
    assert desk.select("app", {"name": "new"})[0]["kind"] == "command"


def test_an_odd_app_that_others_stored_can_be_described(desk):
    with desk.database.write() as cx:
        cx.execute("INSERT INTO app (name, command_template) VALUES ('odd', 'echo {{')")
    assert desk.create("app", [{"name": "odd", "description": "mend me"}])[0]["description"] == "mend me"


def test_apps_that_cannot_be_are_refused_together(desk):
    for rows, kind, said in (
        ([{"name": "x", "executable": "true"}, {"name": ""}], InvalidSpec, "App number 2: An App needs a name, not ''"),
        ([{"name": "x", "exe": "/bin/true"}], UnknownField, "has no field 'exe'"),
        ([{"executable": "/bin/true"}], InvalidSpec, "An App needs a name, not None"),
    ):
        with pytest.raises(kind, match=said):
            desk.create("app", rows)
    with pytest.raises(NotFound, match="no App with the id 9"):
        desk.update("app", [{"id": 1, "description": "x"}, {"id": 9, "description": "x"}])
    assert desk.count("app") == 2 and desk.select("app", {"id": 1})[0]["description"] == ""


def test_an_app_goes_with_its_jobs_unless_one_is_held(desk):
    desk.create("job", [job(0), job(1), {"app": "plain", "workdir": "p"}])
    hold(desk, 1)
    assert desk.delete("app", {}) == {"deleted": 1, "jobs": 2, "held": 1, "is_kept": True}
    assert [app["name"] for app in desk.select("app")] == ["Hello"]
    assert ids(desk.select("job")) == [1]


# --- results, service -------------------------------------------------------------------------------------------------


def write_result(desk, number, outcome):
    one = by_id(desk, number)
    directory = os.path.join(desk.database.directory, "data", one["workdir"])
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, result_file.file_name(one["job_id"]))
    result_file.write(path, result_file.ResultHeader(one["job_id"], 0, True), outcome)


def test_a_result_is_handed_over_when_its_function_has_ended(desk, monkeypatch):
    desk.create("app", [{"name": "F", "definition": {"file": "/f.py", "class": "F", "open": True}}])
    desk.create("job", [job(app_id="F")])
    write_result(desk, 1, result_file.Outcome(True, b"value"))
    assert desk.result(1) == {"state": "CREATED", "message": "", "is_function": True, "outcome": None}
    desk.update("job", [{"id": 1, "state": "FAILED", "state_data": {"message": "it broke"}}])
    assert result_file.unpickled(base64.b64decode(desk.result(1)["outcome"])) == (True, b"value", "")
    monkeypatch.setattr(result_file, "MAX_BYTES", 10)
    with pytest.raises(RemoteError, match=r"has \d+ bytes; the most that is sent is 10"):
        desk.result(1)


def test_a_job_without_a_result_says_how_it_ended(desk):
    desk.create("job", [job()])
    desk.create("job", [job(1, parent_ids=[1])])
    desk.update("job", [{"id": 1, "state": "USER_KILLED"}])
    expected = {"state": "FAILED", "message": "One or more parent jobs failed", "is_function": False, "outcome": None}
    assert desk.result(2) == expected
    with pytest.raises(UnknownJob, match="no job with the id 5"):
        desk.result(5)


def test_a_site_is_active_as_long_as_its_service_is_heard_of(desk):
    assert desk.about() == {
        "version": desk.about()["version"], "path": desk.database.directory, "is_active": False,
        "python": sys.executable, "db_id": directories.identity(desk.database.directory),
        "last_refresh": None, "jobs": 0,
    }  # fmt: skip
    desk.create("job", [job()])
    now = SystemClock.now_us()
    for holder, age_s, active in (
        (Holder.current(), 1, True), (Holder.current(), 200, False), (Holder.current()._replace(started="0"), 1, False),
        (Holder("far", "x", 1, "2"), 100, True), (Holder("far", "x", 1, "2"), 200, None),
    ):  # fmt: skip
        with desk.database.write() as cx:
            lease = leases.open_lease(cx, "service", holder, "", now - age_s * 1_000_000)
        assert (desk.about()["is_active"], desk.about()["jobs"]) == (active, 1), "None: one look cannot tell"
        assert desk.about()["last_refresh"] == now - age_s * 1_000_000
        with desk.database.write() as cx:
            leases.close_lease(cx, lease, now, "stopped")
        assert desk.about()["is_active"] is False


def test_the_service_is_asked_through_the_desk(desk):
    assert desk.service("status") == {"said": ["No service has run at this site."], "state": "none"}
    assert desk.service("stop") == {"said": ["No service is running on this Balsam DB."]}
    with pytest.raises(InvalidSpec, match="start, stop, status and check, not 'pause'"):
        desk.service("pause")


def test_what_is_no_kind_of_rows_is_an_error(desk):
    with pytest.raises(InvalidSpec, match="There is no kind of rows 'jobs'") as caught:
        desk.select("jobs")
    assert ", ".join(KINDS) in str(caught.value)
    for change in (lambda: desk.create("event", [{}]), lambda: desk.update("event", [{}]), lambda: desk.delete("event", {})):
        with pytest.raises(InvalidSpec, match="Events are what happened"):
            change()
    assert desk.select("event") == [] and desk.count("batch_job") == 0


# --- speed ------------------------------------------------------------------------------------------------------------


def test_checking_and_reading_back_cost_less_than_storing_jobs(tmp_path):
    """So that 15 000 jobs in a second, objects and all, are possible where `add_jobs` stores 60 000."""
    directories.set_up(str(tmp_path))
    desk = LocalSite(registry.at(str(tmp_path)))
    desk.create("app", [HELLO])
    size = 2000
    rows = [job(n, tags={"k": "v"}, allow_shared_workdir=True) for n in range(size)]
    plain = [{"application": row["app_id"], **{k: v for k, v in row.items() if k != "app_id"}} for row in rows]
    costs = []
    for _ in range(4):
        start = time.process_time()
        insert.add_jobs(desk.database, plain)
        middle = time.process_time()
        desk.create("job", rows)
        costs.append((time.process_time() - middle) / (middle - start))
    assert min(costs) < 2.5, costs
