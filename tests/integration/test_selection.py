"""Conditions in the workshop's words: they choose what a plain filter in Python chooses, by the indexes meant for them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from balsam_lite.core import parameters, states
from balsam_lite.core.errors import InvalidSpec, InvalidStateError, UnknownField
from balsam_lite.db.engine import directories
from balsam_lite.db.query import select
from balsam_lite.db.store import counters, insert, user_actions

TAGS = [{}, {"k": "v"}, {"k": "v", "n": "1"}, {"n": "1", "q\"'": "ü%_"}, {"k": "w"}]
STATES = [states.CREATED, states.PREPROCESSED, states.RUNNING, states.JOB_FINISHED, states.FAILED]
JOBS = 40


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Forty jobs of all sorts, some with runs in two batch jobs, and what is known of each of them."""
    db = directories.set_up(str(tmp_path_factory.mktemp("db")))
    with db.write() as cx:
        cx.executemany("INSERT INTO app (name) VALUES (?)", [("Hello",), ("Other",)])
        cx.executemany("INSERT INTO batch_job (scheduler_id) VALUES (?)", [("77",), ("78",), ("77",), ("",)])
        leases = [("77", 0, 500), ("78.server", 100, None), ("", 0, None)]
        sql = """INSERT INTO lease (kind, host, pid_namespace, pid, started, scheduler_id, opened, heartbeat, closed)
            VALUES ('launcher', 'h', '', 1, '', ?, ?, 0, ?)"""
        cx.executemany(sql, leases)
    for n in range(JOBS):
        insert.add_jobs(db, [{
            "application": ["Hello", "Other", ""][n % 3], "name": f"n{n % 4}", "workflow": f"w{n % 5}", "tags": TAGS[n % 5],
            "workdir": f"demo_{n % 7}/100%/{n}", "parents": [n // 2] if n > 1 and n % 2 else [],
            "num_nodes": 1 + n % 2, "node_packing_count": 1 + n % 4,
        }])  # fmt: skip
    with db.write() as cx:
        for n in range(1, JOBS + 1):
            cx.execute("UPDATE job SET created = ?, state = ? WHERE id = ?", (n * 3, STATES[n % 5], n))
            if n % 2:
                lease = 1 + n % 3
                cx.execute("UPDATE job SET attempt = 1 WHERE id = ?", (n,))
                run = (n, 150 + n % 6, states.PREPROCESSED, states.RUNNING, "")
                end = (n, 200 + n % 6, states.RUNNING, states.RUN_ERROR, f"bad {n % 3}")
                cx.executemany(
                    "INSERT INTO event (job, time, from_state, to_state, message) VALUES (?, ?, ?, ?, ?)", [run, end]
                )
                sql = "INSERT INTO run (job, attempt, lease, started, ended, return_code) VALUES (?, 1, ?, 151, ?, ?)"
                cx.execute(sql, (n, lease, end[1], n % 4))
            if n % 4 == 0:
                cx.execute("UPDATE job SET queued_launch_id = 2 WHERE id = ?", (n,))
        counters.recount(cx)
    return db


@pytest.fixture(scope="module")
def rows(db):
    """What Python knows of each job, read column by column."""
    with db.read() as cx:
        found = {n: SimpleNamespace(id=n, parents=[], batch_job_id=None) for n in range(1, JOBS + 1)}
        columns = ("job_id", "state", "application", "name", "workflow", "workdir", "tags", "created", "queued_launch_id")
        for number, *values in cx.execute(f"SELECT id, {', '.join(columns)} FROM job"):
            vars(found[number]).update(zip(columns, values))
        for parent, child in cx.execute("SELECT parent, child FROM dependency"):
            found[child].parents.append(parent)
        for job, time, to_state in cx.execute("SELECT job, time, to_state FROM event ORDER BY id"):
            found[job].created = time
            if to_state == states.RUNNING:
                # Of two batch jobs 77 the newer one; the launcher of lease 3 ran outside of any.
                found[job].batch_job_id = {1: 3, 2: 2, 3: None}[1 + job % 3]
    for row in found.values():
        row.tags = json.loads(row.tags)
        row.batch_job_id = row.batch_job_id or row.queued_launch_id
    return list(found.values())


def _in(value):
    return value if isinstance(value, list) else [value]


#: condition -> whether a job meets it
BRUTE = {
    "id": lambda job, v: job.id in _in(v),
    "parent_id": lambda job, v: not set(job.parents).isdisjoint(_in(v)),
    "app_id": lambda job, v: {"Hello": 1, "Other": 2}.get(job.application) in _in(v),
    "app": lambda job, v: job.application in _in(v),
    "batch_job_id": lambda job, v: job.batch_job_id in _in(v),
    "state": lambda job, v: job.state in _in(v),
    "state__ne": lambda job, v: job.state not in _in(v),
    "tags": lambda job, v: v.items() <= job.tags.items(),
    "name": lambda job, v: job.name in _in(v),
    "workflow": lambda job, v: job.workflow in _in(v),
    "workdir": lambda job, v: job.workdir in _in(v),
    "workdir__contains": lambda job, v: v in job.workdir,
    "last_update_before": lambda job, v: job.created <= v,
    "last_update_after": lambda job, v: job.created >= v,
}


def one_or_more(values):
    return values | st.lists(values, max_size=4)


_NUMBERS = one_or_more(st.integers(-1, JOBS + 2))
WHERE = st.fixed_dictionaries({}, optional={
    "id": _NUMBERS, "parent_id": _NUMBERS, "app_id": one_or_more(st.integers(0, 3)),
    "app": one_or_more(st.sampled_from(["Hello", "Other", "", "x"])), "batch_job_id": one_or_more(st.integers(0, 4)),
    "state": one_or_more(st.sampled_from(STATES)), "state__ne": one_or_more(st.sampled_from(STATES)),
    "tags": st.sampled_from([*TAGS, {"n": "1"}, {"q\"'": "ü%_"}, {"nobody": "has"}, {"n": "1", "k": "v"}]),
    "name": one_or_more(st.sampled_from(["n1", "n2", "N1", ""])), "workflow": one_or_more(st.sampled_from(["w1", "w2"])),
    "workdir": one_or_more(st.sampled_from(["demo_1/100%/1", "demo_2/100%/2", "demo"])),
    "workdir__contains": st.sampled_from(["_1/", "100%/3", "%", "DEMO", ""]),
    "last_update_before": st.integers(0, 210), "last_update_after": st.integers(0, 210),
})  # fmt: skip

_QUICK = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@_QUICK
@given(where=WHERE, order=st.sampled_from(["", "id", "-id", "state", "-state", "workdir", "-last_update", "last_update"]),
       start=st.integers(0, 5), length=st.none() | st.integers(0, 9))  # fmt: skip
@example(where={"batch_job_id": 3}, order="", start=0, length=None)
@example(where={"batch_job_id": [2], "tags": {"k": "v"}}, order="", start=0, length=None)
@example(where={"tags": {"k": "v", "n": "1"}, "state": "FAILED"}, order="-id", start=0, length=None)
def test_conditions_choose_what_a_plain_filter_chooses(db, rows, where, order, start, length):
    expected = [job for job in rows if all(BRUTE[name](job, value) for name, value in where.items())]
    key = {"": "id", "last_update": "created"}.get(order.lstrip("-"), order.lstrip("-"))
    expected.sort(key=lambda job: job.id)
    expected.sort(key=lambda job: getattr(job, key), reverse=order.startswith("-"))
    stop = None if length is None else start + length
    with db.read() as cx:
        assert [row["id"] for row in select.jobs(cx, where, order, start, stop)] == [job.id for job in expected[start:stop]]
        assert select.count_jobs(cx, where) == len(expected)
        assert select.job_ids(cx, where) == sorted(job.id for job in expected)
        counts = {}
        for job in expected:
            counts[job.state] = counts.get(job.state, 0) + 1
        assert select.count_states(cx, where) == counts


def test_a_row_says_in_the_workshops_words_what_the_tables_say(db, rows):
    with db.read() as cx:
        found = select.jobs(cx)
    for row, job in zip(found, rows):
        assert (row["tags"], row["parent_ids"], row["last_update"]) == (job.tags, job.parents, job.created)
        assert (row["app"], row["batch_job_id"]) == (job.application, job.batch_job_id)
        assert row["app_id"] == {"Hello": 1, "Other": 2}.get(job.application)
    json.dumps(found)


def test_a_job_is_found_by_its_uuid_or_the_beginning_of_it(db, rows):
    job, other = rows[3], rows[8]
    with db.read() as cx:
        for uuid in (job.job_id, job.job_id[:8], job.job_id.upper(), job.job_id[:20]):
            assert [row["id"] for row in select.jobs(cx, {"uuid": uuid})] == [job.id]
        found = select.jobs(cx, {"uuid": [job.job_id, other.job_id, "no such"]})
        assert [row["id"] for row in found] == [job.id, other.id]


@pytest.mark.parametrize(("given_tags", "same"), [("k:v", {"k": "v"}), (["k:v", "n:1"], {"k": "v", "n": "1"}), ([], {})])
def test_tags_may_be_given_as_text(db, given_tags, same):
    with db.read() as cx:
        assert select.job_ids(cx, {"tags": given_tags}) == select.job_ids(cx, {"tags": same})


def test_none_is_a_missing_value_and_an_empty_list_matches_nothing(db):
    with db.read() as cx:
        assert (
            select.count_jobs(cx, {"queued_launch_id": None}) == select.count_jobs(cx, {"queued_launch_id__isnull": True}) > 0
        )
        assert select.count_jobs(cx, {"state": None}) == 0
        assert select.count_jobs(cx, {"tags": {}}) == JOBS
        for name in ("id", "state", "app_id", "parent_id", "app", "uuid", "batch_job_id"):
            assert select.count_jobs(cx, {name: []}) == 0, name


@pytest.mark.parametrize(("where", "kind", "said"), [
    ({"stat": "FAILED"}, UnknownField, "A job has no field 'stat'. Did you mean 'state'?"),
    ({"pending_file_cleanup": True}, UnknownField, "A job has no field 'pending_file_cleanup'."),
    ({"state": "FINISHED"}, InvalidStateError, "Did you mean 'JOB_FINISHED'?"),
    ({"state__ne": ["FAILED", 3]}, InvalidStateError, "There is no state '3'"),
    ({"id": "x"}, InvalidSpec, "Condition id: A number cannot be compared with 'x'"),
    ({"id": True}, InvalidSpec, "not True"),
    ({"id": [1, object]}, InvalidSpec, "Condition id: A number cannot be compared with"),
    ({"tags": "novalue"}, InvalidSpec, "Condition tags: must be a mapping or look like KEY:VALUE, not 'novalue'"),
    ({"tags": {"k": [1]}}, InvalidSpec, "Condition tags: Text cannot be compared with [1]"),
    ({"workdir__contains": [3]}, InvalidSpec, "Condition workdir__contains: Text cannot be compared with [3]"),
    ({"last_update_after": "now"}, InvalidSpec, "microseconds since the epoch or ISO 8601, not 'now'"),
    ({"uuid": ""}, InvalidSpec, "Condition uuid: must not be empty"),
])  # fmt: skip
def test_what_cannot_be_asked_is_an_error_that_says_why(db, where, kind, said):
    with db.read() as cx, pytest.raises(kind) as caught:
        select.jobs(cx, where)
    assert said in str(caught.value)


@pytest.mark.parametrize("kind", ["job", "event"])
def test_half_a_character_is_no_condition(db, kind):
    half = "x\udce4"
    count, wheres = {
        "job": (select.count_jobs, [{name: half} for name in ("uuid", "name", "app", "workdir", "workdir__contains")]),
        "event": (
            select.count_events,
            [{"scheduler_id": half}, {"data": {half: 1}}, {"data": {"k": half}}, {"data": f"{half}:"}],
        ),
    }[kind]
    for where in (*wheres, {"tags": {half: "v"}}, {"tags": f"k:{half}"}, {"tags": {"k": "v", "l": half}}):
        with db.read() as cx, pytest.raises(InvalidSpec, match="must be valid Unicode"):
            count(cx, where)


def test_numbers_beyond_those_of_sqlite_are_as_good_as_its_last(db):
    far = 10**30
    with db.read() as cx:
        assert len(select.jobs(cx, {}, "", 1, far)) == JOBS - 1 and select.jobs(cx, {}, "", far) == []
        assert select.count_jobs(cx, {"last_update_after": -far, "last_update_before": far, "state__ne": []}) == JOBS
        assert select.count_jobs(cx, {"id": [far, -far, 1]}) == 1


def test_rows_cannot_be_sorted_or_cut_by_nonsense(db):
    with db.read() as cx:
        with pytest.raises(UnknownField, match=r"A job has no field 'workdirs'.* mean 'workdir'"):
            select.jobs(cx, {}, "workdirs")
        for start, stop in ((-1, None), (0, -3), (0, 1.5), (True, None)):
            with pytest.raises(InvalidSpec, match="A place among the rows"):
                select.jobs(cx, {}, "", start, stop)
        assert select.jobs(cx, {}, "", 5, 3) == []


def test_apps_are_found_by_name_and_number(db):
    with db.read() as cx:
        assert [app["id"] for app in select.apps(cx, {"name": ["Other", "Hello"]}, "-name")] == [2, 1]
        assert select.count_apps(cx, {"id": 2, "name": "Hello"}) == 0
        with pytest.raises(UnknownField, match="Did you mean 'name'"):
            select.apps(cx, {"nam": "x"})


# --- events -----------------------------------------------------------------------------------------------------------

EVENT_BRUTE = {
    "id": lambda e, job, v: e["id"] in _in(v),
    "job_id": lambda e, job, v: e["job_id"] in _in(v),
    "batch_job_id": lambda e, job, v: job.batch_job_id in _in(v),
    "tags": lambda e, job, v: v.items() <= job.tags.items(),
    "from_state": lambda e, job, v: e["from_state"] in _in(v),
    "to_state": lambda e, job, v: e["to_state"] in _in(v),
    "timestamp_before": lambda e, job, v: e["timestamp"] <= v,
    "timestamp_after": lambda e, job, v: e["timestamp"] >= v,
    "data": lambda e, job, v: all(k in e["data"] and str(e["data"][k]) == str(w) for k, w in v.items()),
}
EVENT_WHERE = st.fixed_dictionaries({}, optional={
    "id": _NUMBERS, "job_id": _NUMBERS, "batch_job_id": one_or_more(st.integers(0, 4)), "tags": st.sampled_from(TAGS),
    "from_state": one_or_more(st.sampled_from([states.RUNNING, states.PREPROCESSED])),
    "to_state": one_or_more(st.sampled_from([states.RUNNING, states.RUN_ERROR])),
    "timestamp_before": st.integers(148, 210), "timestamp_after": st.integers(148, 210),
    "data": st.sampled_from([{}, {"returncode": 1}, {"returncode": "1", "error": "bad 1"}, {"num_nodes": 0.5}, {"message": "x"},
                             {"num_nodes": "0.25"}, {"lease": 1}, {"error": "bad 2"}]),
})  # fmt: skip


def all_events(db):
    with db.read() as cx:
        return select.events(cx)


def event_tuples(db, where, touching=()):
    """Yield the events of all pages."""
    after = 0
    with db.read() as cx:
        while page := select.event_page(cx, where, after, touching):
            yield from page
            after = page[-1][-1]


@_QUICK
@given(where=EVENT_WHERE, order=st.sampled_from(["", "timestamp", "-timestamp"]), size=st.integers(1, 9), few=st.booleans())
def test_pages_of_events_hold_what_a_plain_filter_chooses(db, rows, where, order, size, few):
    jobs = {job.id: job for job in rows}
    expected = [e for e in all_events(db) if all(EVENT_BRUTE[k](e, jobs[e["job_id"]], v) for k, v in where.items())]
    if order == "timestamp":
        expected.reverse()
    pages, after = [], None
    with pytest.MonkeyPatch.context() as patch, db.read() as cx:
        patch.setattr(select, "FEW_JOBS", 10_000 if few else 0)
        while page := select.events(cx, {**where, "after": after}, order, 0, size):
            pages += page
            after = [page[-1]["timestamp"], page[-1]["id"]]
        assert select.count_events(cx, where) == len(expected)
    assert pages == expected


@_QUICK
@given(where=EVENT_WHERE, touching=st.sampled_from([(), ("RUNNING",), ("RUN_ERROR",)]), size=st.integers(1, 9))
def test_tuples_of_events_are_those_that_a_plain_filter_chooses(db, rows, where, touching, size):
    jobs = {job.id: job for job in rows}
    expected = [
        (e["timestamp"], e["from_state"], e["to_state"], e["job_id"], e["data"].get("num_nodes"), e["id"])
        for e in sorted(all_events(db), key=lambda e: e["id"])
        if all(EVENT_BRUTE[k](e, jobs[e["job_id"]], v) for k, v in where.items())
        and (not touching or not {e["from_state"], e["to_state"]}.isdisjoint(touching))
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "EVENTS_PER_PAGE", size)
        found = list(event_tuples(db, where, touching))
    assert [(*row[:5], row[6]) for row in found] == expected


def test_the_tuple_of_an_end_tells_when_its_program_was_started(tmp_path):
    db = directories.create(str(tmp_path / "db"))
    insert.add_jobs(db, [{"name": "one"}])
    with db.write() as cx:
        cx.executemany(
            "INSERT INTO event (job, time, from_state, to_state) VALUES (1, ?, ?, ?)",
            [
                (10, "RUNNING", "RUN_DONE"),
                (20, "RUNNING", "RUN_ERROR"),
                (30, "RUNNING", "PREPROCESSED"),  # given back before its program started
                (40, "RUNNING", "RESTART_READY"),
                (50, "RUNNING", "RUN_DONE"),
                (60, "CREATED", "FAILED"),
            ],
        )
        runs = [(1, 9, 10), (2, 7, 20), (3, None, 40)]
        cx.executemany("INSERT INTO run (job, attempt, started, ended) VALUES (1, ?, ?, ?)", runs)
    assert [row[5] for row in event_tuples(db, {})] == [9, 7, 0, None, None, None]
    db.close()


def test_events_come_newest_first_and_say_what_balsam_07_said(db):
    found = all_events(db)
    assert [(e["timestamp"], e["id"]) for e in found] == sorted([(e["timestamp"], e["id"]) for e in found], reverse=True)
    start = next(e for e in found if e["to_state"] == states.RUNNING and e["job_id"] == 1)
    end = next(e for e in found if e["to_state"] == states.RUN_ERROR and e["job_id"] == 1)
    assert (start["data"], end["data"]) == ({"num_nodes": 1.0}, {"returncode": 1, "error": "bad 1", "started": 151})
    assert (end["from_state"], end["timestamp"]) == (states.RUNNING, 201)


def test_events_of_a_scheduler_id_are_those_of_its_batch_jobs(db):
    with db.read() as cx:
        by_number = select.events(cx, {"batch_job_id": [1, 3]})
        assert by_number
        assert select.events(cx, {"scheduler_id": "77"}) == select.events(cx, {"scheduler_id": [77]}) == by_number
        assert select.events(cx, {"scheduler_id": "none"}) == []


def test_what_a_user_said_with_a_state_is_in_the_events_data(tmp_path):
    db = directories.set_up(str(tmp_path))
    insert.add_jobs(db, [{}])
    said = {"k": "ü'\"", "n": {"deep": [1]}, "flag": True, "lease": "mine", "parent": 7}
    user_actions.set_state(db, [1], "JOB_FINISHED", "by hand", data=said, time_us=12)
    with db.read() as cx:
        (event,) = select.events(cx)
        assert event["data"] == {"message": "by hand", **said}
        assert event["timestamp"] == 12
        for condition in ("k:ü'\"", {"flag": True}, {"message": "by hand"}, {"parent": 7}, ["k:ü'\"", "parent:7"]):
            assert select.count_events(cx, {"data": condition}) == 1, condition
        for condition in ("k:u", {"flag": False}, {"message": "x"}, {"nothing": "here"}):
            assert select.count_events(cx, {"data": condition}) == 0, condition


def test_a_place_among_events_needs_the_order_of_time(db):
    with db.read() as cx:
        for after, order in (([1, 2], "job_id"), ([1], ""), ("x", ""), ([1, "2"], "timestamp")):
            with pytest.raises(InvalidSpec):
                select.events(cx, {"after": after}, order)
        with pytest.raises(UnknownField, match=r"An event has no field 'timestamp_befor'\. Did you mean 'timestamp_before'"):
            select.events(cx, {"timestamp_befor": 3})


# --- plans ------------------------------------------------------------------------------------------------------------


def plan(db, run):
    """How SQLite carries out the last statement that `run` executes, one line per step."""
    asked = []
    with db.read() as cx:
        cx.set_trace_callback(asked.append)
        run(cx)
        cx.set_trace_callback(None)
        return " | ".join(row[3] for row in cx.execute(f"EXPLAIN QUERY PLAN {asked[-1]}"))


_BY_NUMBER = "SEARCH job USING INTEGER PRIMARY KEY"


@pytest.mark.parametrize(("where", "order"), [
    ({"tags": {"k": "v"}}, ""), ({"tags": {"k": "v"}, "state": "FAILED"}, ""), ({"tags": {"k": "v"}, "workflow": "w1"}, "-id"),
    ({"tags": {"k": "v", "n": "1"}, "state": ["FAILED", "CREATED"]}, "-state"),
    ({"tags": {"k": "v"}, "app": "Hello"}, "workdir"),
])  # fmt: skip
def test_jobs_with_tags_are_read_from_the_index_of_tags(db, where, order):
    steps = plan(db, lambda cx: select.jobs(cx, where, order))
    assert _BY_NUMBER in steps
    assert "SEARCH job_tag USING PRIMARY KEY (tag=?" in steps.replace("SEARCH given", "SEARCH job_tag")
    assert "SCAN job" not in steps.replace("SCAN job_tag", "") and "job_state" not in steps and "job_workflow" not in steps


@pytest.mark.parametrize("order", ["", "id", "-id"])
@pytest.mark.parametrize("more", [{}, {"state": "FAILED"}, {"state": ["FAILED", "CREATED"], "workflow": "w1"}])
def test_the_first_jobs_with_a_tag_are_read_without_all_the_others(db, order, more):
    where = {"tags": {"k": "v", "n": "1"}, **more}
    steps = plan(db, lambda cx: cx.execute(*select.statement(cx, "job.id", where, order, 0, 5)))
    assert "SEARCH given USING PRIMARY KEY (tag=?)" in steps and "job_tag USING PRIMARY KEY (tag=? AND job=?)" in steps
    assert "TEMP B-TREE" not in steps


def test_of_several_tags_the_rarest_is_read_and_the_others_are_looked_up(db):
    asked = []
    with db.read() as cx:
        cx.set_trace_callback(asked.append)
        select.count_jobs(cx, {"tags": {"n": "1", "q\"'": "ü%_"}})
        cx.set_trace_callback(None)
    assert asked[-1].index("ü%_") < asked[-1].index("'n'")
    steps = plan(db, lambda cx: select.count_jobs(cx, {"tags": {"n": "1", "k": "w"}}))
    assert "job_tag USING PRIMARY KEY (tag=? AND job=?)" in steps


@pytest.mark.parametrize("where", [
    {"id": list(range(1, 30)), "state": ["FAILED"]}, {"parent_id": 1, "state": "FAILED"}, {"batch_job_id": 2, "workflow": "w1"},
])  # fmt: skip
def test_jobs_that_are_named_are_read_by_number(db, where):
    steps = plan(db, lambda cx: select.jobs(cx, where))
    assert _BY_NUMBER in steps and "job_state" not in steps and "job_workflow" not in steps


def test_of_jobs_that_are_named_the_tags_are_looked_up(db):
    for run in (select.jobs, select.count_jobs, select.count_states):
        steps = plan(db, lambda cx, run=run: run(cx, {"id": [1, 2], "tags": {"k": "v"}}))
        assert _BY_NUMBER in steps and "job_tag USING PRIMARY KEY (tag=? AND job=?)" in steps, run


def test_other_reads_use_their_indexes(db):
    assert "job_state" in plan(db, lambda cx: select.jobs(cx, {"state": "FAILED"}))
    assert "job_short_id" in plan(db, lambda cx: select.jobs(cx, {"uuid": "0" * 8}))
    assert "TEMP B-TREE" not in plan(db, lambda cx: cx.execute(*select.statement(cx, "job.id", {}, "-id", 0, 10)))
    assert "event_job" in plan(db, lambda cx: select.jobs(cx, {"last_update_after": 1}))
    assert "SCAN state_count" in plan(db, lambda cx: select.count_jobs(cx, {"state": ["FAILED"]}))


@pytest.mark.parametrize("where", [{"job_id": [1, 2]}, {"tags": {"k": "v"}}, {"batch_job_id": 2, "to_state": "RUNNING"}])
def test_events_of_few_jobs_are_read_by_job(db, where):
    for steps in (
        plan(db, lambda cx: select.events(cx, where)),
        plan(db, lambda cx: select.event_page(cx, where)),
    ):
        assert "SEARCH event USING INDEX event_job (job=?" in steps


@pytest.mark.parametrize("where", [{}, {"job_id": [1, 2]}, {"tags": {"k": "v"}}, {"to_state": "RUNNING"}])
def test_events_of_many_jobs_are_walked_without_sorting(db, where, monkeypatch):
    monkeypatch.setattr(select, "FEW_JOBS", 0)
    for order, after in (("", None), ("", [170, 3]), ("timestamp", [170, 3])):
        steps = plan(db, lambda cx, order=order, after=after: select.events(cx, {**where, "after": after}, order, 0, 5))
        assert "event USING INDEX event_time" in steps
        assert "TEMP B-TREE" not in steps
        if "tags" in where:
            assert "job_tag USING PRIMARY KEY (tag=? AND job=?)" in steps
    steps = plan(db, lambda cx: select.event_page(cx, where, 17))
    assert "SEARCH event USING INTEGER PRIMARY KEY (rowid>?)" in steps and "TEMP B-TREE" not in steps


# --- launch parameters ------------------------------------------------------------------------------------------------


@given(st.dictionaries(st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,6}", fullmatch=True), st.text(max_size=6), max_size=4))
@example({"cc": "-1", "d": "-x", "e": "", "map-by": "a b'\"", "m": "=="})
def test_launch_params_come_back_from_the_flags(params):
    params.pop(parameters.AFFINITY, None)
    fields = parameters.fields_of_launch_params(params)
    # A value of a one-letter flag that looks like a flag is written as one word, which reads the same.
    assert parameters.launch_params_of(fields["mpi_flags"], "none") == params


@pytest.mark.parametrize("params", ["d 3", {"": "x"}, {"--": "x"}, {1: "x"}, {"k": None}, {"k": ["a"]}])
def test_launch_params_that_are_no_texts_are_refused(params):
    with pytest.raises(InvalidSpec, match="launch_params must map"):
        parameters.fields_of_launch_params(params)
