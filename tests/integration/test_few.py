"""Claiming by a rare tag: the same jobs as row by row, and fast however many others wait."""

from __future__ import annotations

import pytest
from helpers import Slots
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_lite.db.engine import directories
from balsam_lite.db.store import apps, claims, counters, insert, tags, user_actions

RARE = {"kind": "rare"}


@pytest.fixture
def db(tmp_path):
    made = directories.create(str(tmp_path / "db"))
    with made.write() as cx:
        apps.add_app(cx, {"name": "plain", "executable": "true"})
        apps.add_app(cx, {"name": "prepared", "executable": "true", "preprocess": "true"})
    yield made
    made.close()


class Undo(Exception):
    """Nothing was claimed."""


def taken(db, room, only):
    """What a launcher would take: jobs to run and jobs to prepare."""
    found = []
    with pytest.raises(Undo), db.write() as cx:  # noqa: PT012
        given = claims.take(cx, 1, room, only, 2)
        found = [[claim.job for claim in one] for one in given], claims.waiting(cx, only)
        raise Undo
    return found


JOBS = st.fixed_dictionaries(
    {
        "application": st.sampled_from(["plain", "plain", "prepared"]),
        "tags": st.sampled_from([{}, RARE, {**RARE, "also": "1"}, {"kind": "other"}]),
        "priority": st.integers(0, 2),
        "wall_time_minutes": st.integers(1, 9),
        "node_packing_count": st.integers(1, 2),
        "num_nodes": st.integers(1, 2),
        "workflow": st.sampled_from(["v", "w"]),
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    jobs=st.lists(JOBS, max_size=25),
    ready=st.sets(st.integers(0, 24)),
    places=st.integers(0, 12),
    preparations=st.integers(0, 3),
    both=st.booleans(),
    workflows=st.sampled_from([None, ("w",)]),
    minutes=st.sampled_from([None, 4.5]),
)
def test_the_index_over_tags_gives_the_jobs_that_a_look_at_each_row_gives(
    db, jobs, ready, places, preparations, both, workflows, minutes
):
    with db.write() as cx:
        cx.execute("DELETE FROM job")
        cx.execute("DELETE FROM job_tag")
        cx.execute("DELETE FROM tag")
        counters.recount(cx)
    numbers = list(insert.add_jobs(db, jobs).ids)
    user_actions.set_state(db, [job for place, job in enumerate(numbers) if place in ready], "PREPROCESSED")
    tags = tuple({**RARE, **({"also": "1"} if both else {})}.items())
    only = claims.Filter(workflows, serial_only=False, minutes_left=minutes, tags=tags)
    found = []
    for way in (lambda cx, tags: None, lambda cx, tags: tags[0]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(claims, "rarest", way)
            found.append(taken(db, Slots(places, preparations), only))
    assert found[0] == found[1]
    matching = [job for job, values in zip(numbers, jobs) if set(tags) <= set(values["tags"].items())]
    assert {job for one in found[1][0] for job in one} <= set(matching)


def test_the_cost_of_a_claim_by_a_rare_tag_does_not_grow_with_what_else_waits(db):
    def cost(number):
        """SQLite's steps of a claim of eight of a hundred jobs, with this number of others before them."""
        insert.add_jobs(db, ({"application": "plain", "priority": 1, "tags": {"n": str(n % 7)}} for n in range(number)))
        counted = []
        with pytest.raises(Undo), db.write() as cx:  # noqa: PT012
            cx.set_progress_handler(lambda: counted.append(1), 10)
            assert len(claims.take(cx, 1, Slots(8), only, 2).to_run) == 8
            cx.set_progress_handler(None, 10)
            raise Undo
        return len(counted)

    only = claims.Filter(tags=tuple(RARE.items()))
    insert.add_jobs(db, [{"application": "plain", "tags": RARE}] * 100)
    few_others = cost(200)
    assert cost(4000) < 1.2 * few_others + 10


def test_a_tag_of_many_finished_jobs_is_not_looked_for_behind_all_that_wait(db, monkeypatch):
    monkeypatch.setattr(tags, "MAX_JOBS", 8)
    monkeypatch.setattr(tags, "SAMPLE_ROWS", 50)
    done = insert.add_jobs(db, [{"application": "plain", "tags": RARE}] * 30).ids
    user_actions.set_state(db, done, "JOB_FINISHED")
    others = insert.add_jobs(db, [{"application": "plain", "tags": {"kind": "other"}}] * 200).ids
    last = insert.add_jobs(db, [{"application": "plain", "priority": n % 2, "tags": RARE} for n in range(8)]).ids
    only = claims.Filter(tags=tuple(RARE.items()))
    with db.read() as cx:
        assert [len(one.entries) for one in claims._with_rare_tag(cx, only)] == [0, 8]
        assert claims._with_rare_tag(cx, claims.Filter(tags=(("kind", "other"),))) is None  # the first have it
    found = taken(db, Slots(6), only)
    assert found[0][0] == [*last[1::2], *last[0:4:2]]
    user_actions.set_state(db, others[60:], "JOB_FINISHED")
    insert.add_jobs(db, [{"application": "plain", "priority": -1, "tags": RARE}])
    with db.read() as cx:
        assert claims._with_rare_tag(cx, only) is None  # nine can be started, which are not few
    assert taken(db, Slots(6), only)[0][0] == found[0][0]


def test_a_common_tag_is_looked_for_row_by_row(db, monkeypatch):
    insert.add_jobs(db, ({"application": "plain", "tags": {**RARE, "n": str(n)}} for n in range(30)))
    with db.read() as cx:
        assert tags.rarest(cx, (("kind", "rare"), ("n", "7"))) == ("n", "7")
        assert tags.rarest(cx, (("no", "such"), ("kind", "rare"))) == ("no", "such")
        monkeypatch.setattr(tags, "MAX_JOBS", 29)
        assert tags.rarest(cx, (("kind", "rare"),)) is None
    user_actions.set_state(db, range(1, 30), "JOB_FINISHED")
    monkeypatch.setattr(tags, "MAX_JOBS", 100)
    with db.read() as cx:
        assert tags.rarest(cx, (("kind", "rare"),)) is None  # one waits: the index of what waits is shorter


def test_the_plan_leads_from_the_tag_to_its_jobs(db):
    with db.read() as cx:
        plan = cx.execute(f"EXPLAIN QUERY PLAN {tags.query_of_tagged('1', '')}", ("k", "v")).fetchall()
    steps = [row[3] for row in plan]
    assert any(step.startswith("SEARCH job_tag USING PRIMARY KEY (tag=?)") for step in steps)
    assert "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)" in steps
