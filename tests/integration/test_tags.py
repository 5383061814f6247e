"""The table of tags: it agrees with the column of each job, whichever way that was written, and queries start from it."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_lite.api import Job
from balsam_lite.core.errors import InvalidSpec
from balsam_lite.db.engine import directories, doctor, maintenance
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.query import select
from balsam_lite.db.query.filters import Conditions
from balsam_lite.db.store import insert, tags, user_actions


@pytest.fixture
def db(tmp_path):
    return directories.set_up(str(tmp_path / "db"))


def as_columns(db):
    with db.read() as cx:
        rows = cx.execute("SELECT id, tags FROM job").fetchall()
    return sorted((key, value, job) for job, tags in rows for key, value in json.loads(tags).items())


def as_table(db):
    with db.read() as cx:
        rows = cx.execute("SELECT key, value, job FROM job_tag JOIN tag ON tag.id = tag").fetchall()
        assert cx.execute("SELECT count(*) FROM tag WHERE id NOT IN (SELECT tag FROM job_tag)").fetchone() == (0,)
    return sorted(rows)


_TAGS = st.dictionaries(st.sampled_from(["a", "b", "q\"'", "ü"]), st.sampled_from(["1", "2", "", "x y"]), max_size=3)
_JOBS = st.lists(st.integers(1, 12), max_size=5)
_STEPS = st.one_of(
    st.tuples(st.just("add"), st.lists(_TAGS, max_size=4)), st.tuples(st.just("set"), st.tuples(_JOBS, _TAGS)),
    st.tuples(st.just("delete"), _JOBS),
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEPS, max_size=8))
def test_the_table_says_what_the_columns_say(tmp_path_factory, steps):
    db = directories.set_up(str(tmp_path_factory.mktemp("db")))
    for verb, what in steps:
        if verb == "add":
            insert.add_jobs(db, [{"tags": tags} for tags in what])
        elif verb == "set":
            user_actions.update_fields(db, what[0], {"tags": what[1]})
        else:
            user_actions.delete(db, what)
        assert as_table(db) == as_columns(db)
    db.close()


def test_saving_a_model_keeps_both(db):
    with use(db):
        job = BalsamJob(tags={"k": "v"})
        job.save()
        job.tags["k"] = "w"
        job.save()
        assert as_table(db) == as_columns(db) == [("k", "w", job.id)]
        assert [found.id for found in BalsamJob.objects.filter(tags__k="w")] == [job.id]
        assert not BalsamJob.objects.filter(tags__k="v")


def test_jobs_with_all_tags_are_found_without_reading_the_others(db):
    insert.add_jobs(db, ({"tags": {"n": str(n % 3), "even": str(n % 2)}} for n in range(60)))
    with db.read() as cx:
        wanted = Conditions({"tags": {"n": "1", "even": "0"}})
        assert select.count_jobs(cx, wanted) == 10
        where, parameters = wanted.sql()
        plan = cx.execute(f"EXPLAIN QUERY PLAN SELECT id FROM job WHERE {where} ORDER BY id LIMIT 5", parameters).fetchall()
    assert "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)" in [row[3] for row in plan]


@pytest.mark.parametrize("wrong", [{"k\0x": "v"}, {"k": "v\0x"}, {"k": "\0"}])
def test_a_tag_with_a_nul_is_refused_which_the_table_could_not_follow(db, wrong):
    for refused in (lambda: insert.add_jobs(db, [{"tags": wrong}]), lambda: insert.add_jobs(db, [{"tags": json.dumps(wrong)}])):
        with pytest.raises(InvalidSpec, match="must not hold a NUL byte"):
            refused()
    with pytest.raises(ValueError, match="must not hold a NUL byte"):
        Job(workdir="w", app_id="a", tags=wrong)
    insert.add_jobs(db, [{"tags": {"k": "\\u0000"}}])  # these are six plain characters
    assert as_table(db) == as_columns(db) == [("k", "\\u0000", 1)]


_SPOILERS = [
    "UPDATE job SET tags = '{\"k\": \"other\"}' WHERE id = 1", "DELETE FROM job WHERE id = 1",
    "DELETE FROM job_tag WHERE job = 1",
    "UPDATE job SET tags = '{}' WHERE id = 1", "INSERT INTO job_tag SELECT tag, 3 FROM job_tag WHERE job = 1",
    "UPDATE tag SET value = 'other' WHERE id = (SELECT tag FROM job_tag WHERE job = 1)",
]  # fmt: skip


@pytest.mark.parametrize("spoiler", _SPOILERS)
def test_tags_that_were_changed_past_the_table_are_found_and_mended_by_vacuum(db, spoiler):
    insert.add_jobs(db, [{"tags": {"k": "v", "ü\"'.$": ""}}, {"tags": {"k": "w"}}, {}])
    with db.write() as cx:
        assert tags.differing(cx) == 0
        cx.execute(spoiler)
        assert tags.differing(cx) == 1
    found = [finding for finding in doctor.look_over(db, now_us=1, expiry_s=1) if "found by the tags" in finding.text]
    assert [finding.level for finding in found] == [doctor.WRONG]
    assert maintenance.vacuum(db, expiry_s=1).fixed == 1
    assert as_table(db) == as_columns(db)
    assert maintenance.vacuum(db, expiry_s=1).fixed == 0
