"""The table of tags: it says what the column of each job says, whoever wrote that, and queries start from it."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_lite.api.fields import checked_words
from balsam_lite.db import location, queries
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.db.queries import JobFilter
from balsam_lite.db.store import insert, user
from balsam_lite.errors import InvalidSpec


@pytest.fixture
def db(tmp_path):
    return location.set_up(str(tmp_path / "db"))


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
def test_that_the_table_says_what_the_columns_say(tmp_path_factory, steps):
    db = location.set_up(str(tmp_path_factory.mktemp("db")))
    for verb, what in steps:
        if verb == "add":
            insert.add_jobs(db, [{"tags": tags} for tags in what])
        elif verb == "set":
            user.update_fields(db, what[0], {"tags": what[1]})
        else:
            user.delete(db, what)
        assert as_table(db) == as_columns(db)
    db.close()


def test_that_saving_a_model_keeps_both(db):
    with use(db):
        job = BalsamJob(tags={"k": "v"})
        job.save()
        job.tags["k"] = "w"
        job.save()
        assert as_table(db) == as_columns(db) == [("k", "w", job.id)]
        assert [found.id for found in BalsamJob.objects.filter(tags__k="w")] == [job.id]
        assert not BalsamJob.objects.filter(tags__k="v")


def test_that_jobs_with_all_tags_are_found_without_reading_the_others(db):
    insert.add_jobs(db, ({"tags": {"n": str(n % 3), "even": str(n % 2)}} for n in range(60)))
    with db.read() as cx:
        wanted = JobFilter(tags={"n": "1", "even": "0"})
        assert queries.count_jobs(cx, wanted) == 10
        where, parameters = wanted.where()
        plan = cx.execute(f"EXPLAIN QUERY PLAN SELECT id FROM job WHERE {where} ORDER BY id LIMIT 5", parameters).fetchall()
    assert "SEARCH job USING INTEGER PRIMARY KEY (rowid=?)" in [row[3] for row in plan]


@pytest.mark.parametrize("tags", [{"k\0x": "v"}, {"k": "v\0x"}, {"k": "\0"}])
def test_that_a_tag_with_a_nul_is_refused_which_the_table_could_not_follow(db, tags):
    for refused in (lambda: insert.add_jobs(db, [{"tags": tags}]), lambda: insert.add_jobs(db, [{"tags": json.dumps(tags)}])):
        with pytest.raises(InvalidSpec, match="must not hold a NUL byte"):
            refused()
    with pytest.raises(ValueError, match="must not hold a NUL byte"):
        checked_words(tags)
    insert.add_jobs(db, [{"tags": {"k": "\\u0000"}}])  # these are six plain characters
    assert as_table(db) == as_columns(db) == [("k", "\\u0000", 1)]
