"""The grammar of conditions: every face chooses what a plain filter in Python chooses, or refuses what has no meaning."""

from __future__ import annotations

import itertools
import json
import operator
import re
from datetime import datetime, timezone
from decimal import Decimal
from fnmatch import fnmatchcase

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from balsam_lite import api
from balsam_lite.core.errors import InvalidSpec, InvalidStateError, UnknownField
from balsam_lite.db import models
from balsam_lite.db.engine import directories
from balsam_lite.db.models import BalsamJob
from balsam_lite.db.query import filters, select
from balsam_lite.db.query.fields import APP, BATCH_JOB, EVENT, JOB, LOOKUPS
from balsam_lite.db.query.filters import Conditions, F, Q
from balsam_lite.db.store import counters, insert

NAMES = ["a1", "a2", "B1", "b_[1]", "É'%*", ""]
TAGS = [{}, {"k": "v"}, {"k": "10", "n": "1"}, {"k": "9", "n": "2"}, {"n": "x"}]
DATA = [
    {}, {"x": 1}, {"x": "1"}, {"x": 2.5, "y": None}, {"x": True, "y": [1, "a", 10]}, {"x": {"z": 3, "w": "deep"}},
    {"y": "a10b"},
    {"x": [1, 2], "y": {"z": 1}},
]  # fmt: skip
JOBS = 48


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    """Forty-eight jobs of all sorts, and as many that a large insert still hides."""
    db = directories.set_up(str(tmp_path_factory.mktemp("db")))
    insert.add_jobs(db, [
        {
            "name": NAMES[n % 6], "workflow": f"w{n % 4}", "num_nodes": 1 + n % 3, "ranks_per_node": 1 + n % 5,
            "priority": n % 7 - 3, "tags": TAGS[n % 5], "data": DATA[n % 8], "wait_for_parents": n % 2 == 0,
        }
        for n in range(JOBS)
    ])  # fmt: skip
    with db.write() as cx:
        cx.execute("UPDATE job SET return_code = id % 3 WHERE id % 4 = 0")
        cx.execute("UPDATE job SET created = 1000000 * id")
        cx.execute("UPDATE job SET state = 'JOB_FINISHED' WHERE id % 5 = 0")
        counters.recount(cx)
    insert.add_jobs(db, [{"name": "a1", "workflow": "w1", "tags": {"k": "v"}} for _ in range(5)])
    with db.write() as cx:  # as if their insert were not complete
        cx.execute(
            """INSERT INTO large_write (host, pid_namespace, pid, started, touched, total, counted, first, last)
            VALUES ('h', '', 1, '', 0, 5, '{}', ?, ?)""",
            (JOBS + 1, JOBS + 5),
        )
        counters.recount(cx)
    return db


@pytest.fixture(scope="module")
def rows(db):
    """What Python knows of each job."""
    names = ("id", *(name for name, column in JOB.columns.items() if column.is_stored and name != "id"))
    with db.read() as cx:
        found = [dict(zip(names, row)) for row in cx.execute(f"SELECT {', '.join(names)} FROM job WHERE id <= {JOBS}")]
    for row in found:
        for name in ("tags", "data", "environ_vars", "parameters"):
            row[name] = json.loads(row[name])
    return found


# --- the model --------------------------------------------------------------------------------------------------------

MISSING = None
_COMPARE = {"lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}


def is_number(value):
    return isinstance(value, (int, float))


def same(one, other):
    """Return whether two JSON values are equal; truth values are numbers."""
    if is_number(one) and is_number(other):
        return one == other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def value_of(row, path):
    head, *keys = path.split("__")
    value = row[head]
    for key in keys:
        if isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def leaf(row, path, lookup, wanted):  # noqa: PLR0911, PLR0912  # a branch a lookup
    """Return whether a row meets one condition."""
    if path == "tags" and lookup == "exact":
        return wanted.items() <= row["tags"].items()
    value = value_of(row, path)
    if isinstance(wanted, F):
        other = row[wanted.name]
        return value != other if lookup == "ne" else {**_COMPARE, "exact": operator.eq}[lookup](value, other)
    is_json, is_word = path.startswith("data__"), path.startswith("tags__")
    if lookup == "isnull":
        return (value is None) == wanted
    if lookup in ("exact", "ne"):
        if isinstance(wanted, list) and not is_json:
            found = value in wanted
        else:
            found = value is None if wanted is None else same(value, str(wanted) if is_word else wanted)
        return found if lookup == "exact" else not found
    if value is None and lookup != "in":
        return False
    if lookup == "in":
        return any(value is None if one is None else same(value, str(one) if is_word else one) for one in wanted)
    if lookup == "range":
        return leaf(row, path, "gte", wanted[0]) and leaf(row, path, "lte", wanted[1])
    if lookup in _COMPARE:
        if is_word and is_number(wanted):
            try:
                value = float(value)
            except ValueError:
                return False
        return (
            is_number(value) == is_number(wanted) and isinstance(value, (int, float, str)) and _COMPARE[lookup](value, wanted)
        )
    if lookup == "has_key":
        return isinstance(value, dict) and wanted in value
    if lookup in ("has_keys", "has_any_keys"):
        return isinstance(value, dict) and (all if lookup == "has_keys" else any)(one in value for one in wanted)
    if lookup == "contained_by":
        if isinstance(wanted, dict):
            return isinstance(value, dict) and all(key in wanted and same(one, wanted[key]) for key, one in value.items())
        items = value if isinstance(value, list) else [value]
        return not isinstance(value, dict) and all(any(same(one, other) for other in wanted) for one in items)
    if lookup == "contains" and (is_json or isinstance(wanted, (dict, list))):
        if isinstance(wanted, dict):
            return isinstance(value, dict) and all(key in value and same(value[key], one) for key, one in wanted.items())
        if isinstance(wanted, list):
            return isinstance(value, list) and all(any(same(one, other) for other in value) for one in wanted)
        if isinstance(value, list):
            return any(same(one, wanted) for one in value)
        return wanted in value if isinstance(value, str) and isinstance(wanted, str) else same(value, wanted)
    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) if is_json else str(value)
    if isinstance(value, bool):
        text = str(int(value))
    if lookup == "glob":
        return fnmatchcase(text, wanted.replace("[", "[[]"))
    if lookup.endswith("regex"):
        return re.search(wanted, text, re.IGNORECASE if lookup[0] == "i" else 0) is not None
    if lookup.startswith("i"):
        text, wanted, lookup = text.casefold(), wanted.casefold(), lookup[1:]
    return {"exact": text.__eq__, "contains": text.__contains__, "startswith": text.startswith, "endswith": text.endswith}[
        lookup
    ](wanted)


def meets(row, where):
    """Return whether a row meets conditions as JSON has them."""
    for name, value in where.items():
        if name == "$and":
            found = all(meets(row, one) for one in value)
        elif name == "$or":
            found = any(meets(row, one) for one in value)
        elif name == "$not":
            found = not meets(row, value)
        else:
            head, _, last = name.rpartition("__")
            path, lookup = (head, last) if head and last in LOOKUPS else (name, "exact")
            found = leaf(row, path, lookup, value)
        if not found:
            return False
    return True


# --- random conditions ------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["a1", "a", "1", "B", "b_", "[", "É", "é", "%", "*", "", "w1", "v", "10"])
GLOBS = st.sampled_from(["a*", "*1", "?1", "*[*", "a1", "*", "É*", "w?", ""])
REGEXES = st.sampled_from([r"^a\d$", "b", "1$", ".", "^$"])
NUMBERS = st.integers(-4, 6) | st.sampled_from([2.5, 1.0, 10**30, -(10**30)])
SCALARS = st.sampled_from([1, 2, "1", "a", "a10b", 2.5, True, 10, "deep", 3])
LISTS = st.lists(SCALARS, max_size=3)


def named(paths, lookups, values):
    names = st.tuples(st.sampled_from(paths), st.sampled_from(lookups)).map(lambda two: "__".join(filter(None, two)))
    return st.tuples(names, values)


TEXT_LOOKUPS = ["contains", "startswith", "endswith", "icontains", "istartswith", "iendswith", "iexact"]
LEAVES = st.one_of(
    named(["name", "workflow"], ["", "exact", "ne", *TEXT_LOOKUPS, "lt", "gte"], TEXTS),
    named(["name", "workflow", "tags__k"], ["glob"], GLOBS),
    named(["name", "tags__k"], ["regex", "iregex"], REGEXES),
    named(["name", "workflow"], ["", "in", "ne"], st.lists(TEXTS, max_size=3)),
    named(["num_nodes", "priority", "return_code", "id"], ["", "ne", "lt", "lte", "gt", "gte"], NUMBERS),
    named(["num_nodes", "priority", "return_code", "id"], ["in", ""], st.lists(st.integers(-4, 50), max_size=4)),
    named(["num_nodes", "id"], ["range"], st.tuples(st.integers(0, 9), st.integers(0, 20)).map(list)),
    named(["return_code", "data__x", "data__y", "tags__k", "data__x__z"], ["isnull"], st.booleans()),
    named(["return_code", "data__x", "data__y", "tags__n"], ["", "ne"], st.none()),
    named(["state"], ["", "ne"], st.sampled_from(["CREATED", "JOB_FINISHED", "FAILED"])),
    named(["state"], ["", "in"], st.lists(st.sampled_from(["CREATED", "JOB_FINISHED", "FAILED"]), max_size=2)),
    named(["tags__k", "tags__n"], ["", "ne", "contains"], st.sampled_from(["v", "10", "9", "1", "x"])),
    named(["tags__k", "tags__n"], ["lt", "lte", "gt", "gte"], st.sampled_from([9, 10, "9", "v", 1.5])),
    named(["tags__k"], ["in"], st.lists(st.sampled_from(["v", "10", 9]), max_size=2)),
    named(["tags"], ["", "contains"], st.sampled_from(TAGS)),
    named(["tags", "data", "data__x"], ["has_key"], st.sampled_from(["k", "x", "z", "nosuch"])),
    named(["tags", "data", "data__x"], ["has_keys", "has_any_keys"], st.lists(st.sampled_from([*"knxyzw"]), max_size=2)),
    named(["data__x", "data__y", "data__x__z", "data__y__0"], ["", "ne", "contains"], SCALARS),
    named(["data__x", "data__y", "data__x__z"], ["lt", "lte", "gt", "gte"], SCALARS),
    named(["data__x", "data__y"], ["in", "contains", "contained_by"], LISTS),
    named(["data__x", "data__y"], ["", "ne"], st.sampled_from([[1, 2], {"z": 1}, [1, "a", 10]])),
    named(["data__x", "data", "data__y"], ["contains", "contained_by"],
          st.sampled_from([{"x": 1}, {"z": 1}, {"z": 3, "w": "deep"}, *DATA])),
    named(["ranks_per_node", "priority"], ["", "ne", "lt", "lte", "gt", "gte"], st.just(F("num_nodes"))),
)  # fmt: skip
WHERE = st.recursive(
    st.lists(LEAVES, min_size=1, max_size=3).map(dict),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda several: {"$or": several}),
        st.lists(inner, max_size=3).map(lambda several: {"$and": several}),
        inner.map(lambda one: {"$not": one}),
    ),
    max_leaves=5,
)
_SETTINGS = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


def as_q(where):
    """Return the same conditions built of Q objects."""
    found = Q()
    for name, value in where.items():
        if name == "$and":
            one = Q(*map(as_q, value))
        elif name == "$or":
            one = Q(id__in=[])
            for member in value:
                one = one | as_q(member)
        else:
            one = ~as_q(value) if name == "$not" else Q(**{name: value})
        found = found & one
    return found


@_SETTINGS
@given(where=WHERE)
@example(where={"data__y__contains": 1})
@example(where={"$not": {"tags__k": "v", "data__x__gt": 1}})
def test_every_face_chooses_what_a_plain_filter_chooses(db, rows, where):
    expected = [row["id"] for row in rows if meets(row, where)]
    sent = json.loads(json.dumps(filters.as_json(where)))
    with db.read() as cx:
        assert select.job_ids(cx, sent) == expected
        assert select.count_jobs(cx, where) == sum(select.count_states(cx, where).values()) == len(expected)
        assert [row["id"] for row in select.jobs_page(cx, sent, ["id"], 0, 100)] == expected
        assert [row["id"] for row in select.jobs_page(cx, sent, ["id"], 20, 100)] == [one for one in expected if one > 20]
    with models.use(db):
        assert [job.id for job in api.Job.objects.filter(as_q(where))] == expected
        assert api.Job.objects.filter(as_q(where)).count() == len(expected)
        found = BalsamJob.objects.filter(as_q(where))
        assert [job.id for job in found] == expected and found.count() == len(expected)
        others = [row["id"] for row in rows if row["id"] not in expected]
        assert list(BalsamJob.objects.exclude(as_q(where)).values_list("id", flat=True)) == (others if where else [])


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "plain"), [
    ({"data__x": np.int64(1)}, {"data__x": 1}), ({"data__x__in": np.arange(3)}, {"data__x__in": [0, 1, 2]}),
    ({"num_nodes__gt": np.float32(1.5)}, {"num_nodes__gt": 1.5}), ({"data__x": np.bool_(True)}, {"data__x": True}),
    ({"wait_for_parents": np.bool_(False)}, {"wait_for_parents": False}), ({"data__x": Decimal("2.5")}, {"data__x": 2.5}),
    ({"num_nodes": np.array([1, 2])}, {"num_nodes": [1, 2]}), ({"num_nodes": np.array(2)}, {"num_nodes": 2}),
    ({"name": np.str_("a1")}, {"name": "a1"}), ({"tags__k": np.int64(10)}, {"tags__k": "10"}),
    ({"data__x": np.array([1, 2])}, {"data__x": [1, 2]}), ({"tags": {"n": 1}}, {"tags": {"n": "1"}}),
    ({"created__lt": datetime.fromtimestamp(20, timezone.utc)}, {"created__lt": 20_000_000}),
    ({"created__lt": "1970-01-01T00:00:20Z"}, {"created__lt": 20_000_000}),
    ({"app": "x", "wall_time_min": 1}, {"application": "x", "wall_time_minutes": 1}),
])  # fmt: skip
def test_values_of_other_packages_and_other_names_are_those_of_python(db, where, plain):
    with db.read() as cx:
        found = select.job_ids(cx, where)
        assert found == select.job_ids(cx, plain) == select.job_ids(cx, json.loads(json.dumps(filters.as_json(where))))
        negated = select.job_ids(cx, filters.negated(where))
    assert found or where.get("app")
    assert sorted(found + negated) == list(range(1, JOBS + 1))
    with models.use(db):
        assert [job.id for job in BalsamJob.objects.filter(**where)] == found


def test_nested_lists_and_objects_are_compared_by_their_values(tmp_path):
    db = directories.create(str(tmp_path / "db"))
    insert.add_jobs(db, [{"name": "one", "data": {"x": [[1.0], {"a": 1, "b": [True]}], "y": {"k": {"b": 2, "a": 1}}}}])
    found = [
        {"data__x__contains": [[1]]}, {"data__x__contains": [{"b": [1], "a": 1}]},
        {"data__x__contained_by": [{"b": [1], "a": 1}, [1], 7]}, {"data__y__contains": {"k": {"a": 1, "b": 2.0}}},
        {"data__y__contained_by": {"k": {"a": 1, "b": 2}, "z": 3}},
    ]  # fmt: skip
    others = [{"data__x__contains": [["1"]]}, {"data__y__contains": {"k": {"a": 1}}}, {"data__x__contained_by": [[1]]}]
    with db.read() as cx:
        assert [where for where in [*found, *others] if select.job_ids(cx, where)] == found
    db.close()


def test_a_place_may_be_a_number_of_numpy(db):
    with models.use(db):
        assert BalsamJob.objects.all()[np.int64(1)].id == 2
        assert [job.id for job in BalsamJob.objects.all()[np.int64(1) : np.int64(3)]] == [2, 3]


@pytest.mark.parametrize("value", [object(), 1j, np.complex64(1), {1: object()}])
@pytest.mark.parametrize("name", ["num_nodes", "name", "data__x", "data__x__in", "tags__k", "state", "id__in", "created__gt"])
def test_what_is_no_value_is_refused(name, value):
    with pytest.raises(InvalidSpec):
        Conditions({name: [value] if name.endswith("__in") else value})


@pytest.mark.parametrize(("name", "meant"), [
    ("data__x__iconatins", "icontains"), ("data__has_kye", "has_key"), ("data__x__le", "lte"), ("data__x__contain", "contains"),
    ("tags__k__startwith", "startswith"), ("tags__k__k2", ""), ("name__containz", "contains"), ("name__eq", "exact"),
    ("num_nodes__gtee", "gte"), ("state__inn", "in"), ("job_id__startwith", "startswith"), ("nmae", "name"),
    ("taggs__k", "tags"), ("queued_launch__sate", "state"), ("environ_vars__PATH__x", ""),
])  # fmt: skip
def test_an_unknown_word_is_an_error_with_the_nearest(name, meant):
    with pytest.raises(UnknownField) as caught:
        Conditions({name: "x"})
    assert f"Did you mean {meant!r}" in str(caught.value) if meant else caught.value.hint


@pytest.mark.parametrize("name", ["data__x__iconatins__exact", "data__min", "data__stage__step", "data__x__y", "data__net__n"])
def test_other_words_below_data_are_keys(name):
    assert not Conditions({name: 1}).is_empty


@pytest.mark.parametrize(("name", "value"), [
    ("name__has_key", "x"), ("num_nodes__contained_by", [1]), ("name__contains", ["x"]), ("data__x__has_keys", "x"),
    ("data__x__contained_by", 1), ("name__in", "abc"), ("name__regex", "("), ("name__range", [1]), ("uuid__gt", "x"),
    ("num_nodes", F("name")), ("num_nodes__in", F("priority")), ("num_nodes", F("data__x")), ("$or", {"a": 1}),
    ("name", "\ud800"), ("name__glob", "*" * 60_000), ("data__x", float("nan")),
])  # fmt: skip
def test_what_has_no_meaning_is_refused(name, value):
    if name == "data__x":  # is stored as a tagged value
        assert not Conditions({name: value}).is_empty
        return
    with pytest.raises(InvalidSpec):
        Conditions({name: value})


def test_unknown_fields_are_refused_for_every_table():
    for table, name in itertools.product((JOB, APP, EVENT, BATCH_JOB), ("nosuch", "", "id__nosuch", "$nor")):
        with pytest.raises(UnknownField):
            Conditions({name: 1}, table)


@pytest.mark.parametrize(("text", "where"), [
    ("num_nodes__lte=4", {"num_nodes__lte": "4"}), ("data__x=1", {"data__x": 1}), ("data__x=abc", {"data__x": "abc"}),
    ("data__x=[1, 2]", {"data__x": [1, 2]}), ("state__in=FAILED,READY", {"state__in": ["FAILED", "READY"]}),
    ("data__x__in=1,a", {"data__x__in": [1, "a"]}), ("data__x__isnull=true", {"data__x__isnull": True}),
    ("name=a=b", {"name": "a=b"}), ("name=", {"name": ""}), ("tags__k=10", {"tags__k": "10"}),
])  # fmt: skip
def test_a_condition_is_read_from_text(text, where):
    assert filters.condition_from_text(text) == where


@pytest.mark.parametrize("text", ["num_nodes", "=4", "num_nodes__lte=four", "data__x__isnull=1", "nam=x", "state=FALED"])
def test_text_that_is_no_condition_is_refused(text):
    with pytest.raises((InvalidSpec, InvalidStateError, UnknownField)):
        filters.condition_from_text(text)


def test_options_are_exact_globs_or_anywhere():
    assert filters.condition_on_text("name", "a") == {"name": "a"}
    assert filters.condition_on_text("name", "a[1]*") == {"name__glob": "a[1]*"}
    assert filters.condition_on_text("name", "a*", anywhere=True) == {"name__icontains": "a*"}
