"""Causes of failures, and jobs counted by workflow: what a launcher records, and what queries tell."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import Bench

from balsam_lite.core import causes, states
from balsam_lite.db.query import select
from balsam_lite.db.store import insert, transitions, user_actions


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


def test_each_way_to_fail_has_a_cause_that_many_jobs_share(bench: Bench, tmp_path: Path) -> None:
    hook = tmp_path / "hook.sh"
    hook.write_text("#!/bin/sh\necho trouble of $BALSAM_JOB_ID\nexit 4\n")
    hook.chmod(0o755)
    bench.shell("exit3", "exit 3")
    bench.shell("segfault", "kill -SEGV $$")
    bench.app("nothing", str(tmp_path / "nothing"))
    bench.app("prepared", "true", preprocess=str(hook))
    bench.app("processed", "true", postprocess=str(hook))
    bench.app("no-hook", "true", postprocess=str(tmp_path / "no-hook.sh"))
    bench.app("handled", str(tmp_path / "exit3.sh"), handle_error="true")
    bench.app("true", "true")
    expected = {
        "exit3": "exit code 3", "segfault": "signal 11 (SIGSEGV)", "nothing": "could not start: No such file or directory",
        "prepared": "preprocess: exit code 4", "processed": "postprocess: exit code 4",
        "no-hook": "postprocess: No such file or directory", "handled": "exit code 3",
    }  # fmt: skip
    jobs = bench.add({"application": app, "workflow": app, "name": f"{app}{n}"} for app in expected for n in range(2))
    staged = bench.add([{"application": "true", "stage_in_url": f"{tmp_path}/missing{n}", "workflow": "st"} for n in range(2)])
    children = bench.add({"application": "true", "parents": [job], "workflow": "children"} for job in jobs)
    grandchild = bench.add([{"application": "true", "parents": [children[0]]}])
    assert bench.run() == 0
    found: dict[str, list[int]] = {"stage-in failed": staged, "parent failed": [*children, *grandchild]}
    for cause, place in zip(expected.values(), range(0, len(jobs), 2)):
        found.setdefault(cause, []).extend(jobs[place : place + 2])
    with bench.db.read() as cx:
        assert {cause: select.job_ids(cx, {"failure": cause}) for cause in found} == found
        assert select.count_failures(cx) == {cause: len(of) for cause, of in found.items()}
        assert select.count_failures(cx, {"state": "FAILED"}) == select.count_failures(cx)
        assert select.count_failures(cx, {"state": "CREATED"}) == {}
        assert select.count_failures(cx, {"workflow__in": ["exit3", "handled", "true"]}) == {"exit code 3": 4}
        plan = cx.execute(
            "EXPLAIN QUERY PLAN SELECT id FROM job WHERE job.failure IN (SELECT id FROM failure WHERE cause = 'x')"
        ).fetchall()
        assert "job_failure" in str(plan)
    user_actions.rerun(bench.db, jobs)
    with bench.db.read() as cx:
        assert select.count_failures(cx) == {"stage-in failed": 2}
        assert select.count_workflows(cx, {"workflow__in": ["exit3", "children"]}) == {
            "exit3": {"RESTART_READY": 2}, "children": {"AWAITING_PARENTS": len(jobs)},
        }  # fmt: skip


def test_a_restart_limit_and_a_users_word_are_causes(bench: Bench) -> None:
    bench.app("true", "true")
    limited, told, killed = bench.add([{"application": "true", "restart_limit": 0}, {}, {}])
    user_actions.set_state(bench.db, [told], states.FAILED)
    user_actions.kill(bench.db, [killed])
    with bench.db.read() as cx:
        assert select.count_failures(cx) == {causes.SET_BY_USER: 1}
    with bench.db.write() as cx:
        path = (states.CREATED, states.FAILED)
        transitions.apply(cx, [transitions.Transition(limited, path, 1, cause=causes.RESTART_LIMIT)], states.USER)
    with bench.db.read() as cx:
        assert select.count_failures(cx) == {causes.RESTART_LIMIT: 1, causes.SET_BY_USER: 1}
        assert select.job_rows(cx, {"id": limited}, ("failure",)) != []
    user_actions.delete(bench.db, [limited, told])
    with bench.db.read() as cx:
        assert select.count_failures(cx) == {}


def test_a_million_different_causes_are_one_after_the_first_few_hundred(bench: Bench) -> None:
    jobs = bench.add({} for _ in range(causes.MAX_CAUSES + 50))
    path = (states.CREATED, states.FAILED)
    moves = [transitions.Transition(job, path, 1, cause=f"cause {job}") for job in jobs]
    with bench.db.write() as cx:
        transitions.apply(cx, moves, states.USER)
    with bench.db.read() as cx:
        found = select.count_failures(cx)
    assert len(found) == causes.MAX_CAUSES + 1
    assert found[causes.OTHER] == 50


def test_counts_by_workflow_come_from_the_counters(bench: Bench) -> None:
    insert.add_jobs(bench.db, ({"workflow": f"w{n % 3}"} for n in range(30)))
    user_actions.update_fields(bench.db, range(1, 7), {"workflow": "other"})
    user_actions.set_state(bench.db, [7], states.JOB_FINISHED)
    user_actions.delete(bench.db, [8, 1])
    expected = {"other": {"CREATED": 5}, "w0": {"CREATED": 7, "JOB_FINISHED": 1}, "w1": {"CREATED": 7}, "w2": {"CREATED": 8}}
    with bench.db.read() as cx:
        assert select.count_workflows(cx) == expected
        assert select.count_workflows(cx, {"name": ""}) == expected  # row by row
        assert select.count_workflows(cx, {"workflow__glob": "w*", "state": "JOB_FINISHED"}) == {"w0": {"JOB_FINISHED": 1}}
        assert select.count_states(cx, {"workflow": "w0"}) == {"CREATED": 7, "JOB_FINISHED": 1}
    cx = sqlite3.connect(bench.db.path)
    cx.execute("UPDATE workflow_count SET jobs = 70 WHERE workflow = 'w0'")
    cx.commit()
    cx.close()
    with bench.db.read() as cx:
        assert select.count_states(cx, {"workflow": "w0"}) == {"CREATED": 70, "JOB_FINISHED": 70}


def test_counting_failures_reads_those_that_failed_where_these_are_fewer_than_the_jobs_that_match(bench: Bench) -> None:
    bench.app("bad", "false")
    bench.add([{"application": "bad", "workflow": "w"}] * 2)
    assert bench.run() == 0
    bench.add([{"application": "bad", "workflow": "w"}] * 30)
    with bench.db.read() as cx:
        asked: list[str] = []
        cx.set_trace_callback(asked.append)
        assert select.count_failures(cx, {"workflow__glob": "w*"}) == {"exit code 1": 2}
        assert any("INDEXED BY job_failure" in query for query in asked)
        assert select.count_failures(cx, {"workflow": "other"}) == {}
        cx.set_trace_callback(None)
