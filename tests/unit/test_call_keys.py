"""Keys of calls: which calls count as the same."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import math
import os
import re
import subprocess
import sys
import threading
import types
from array import array
from collections import Counter, OrderedDict, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import ROOT

from balsam_lite.core.errors import InputError
from balsam_lite.launcher.call_keys import KeyMaker

MODULE = """
import math
import {helper} as other
from {helper} import helped

FACTOR = 2

class Shape:
    size = 1
    def area(self): return self.size * FACTOR

def deep(x): return x * FACTOR

def work(x, y=1):
    return deep(x) + y

def even(x): return x == 0 or odd(x - 1)
def odd(x): return x != 0 and even(x - 1)

def shapes(): return Shape().area()
def helping(x): return helped(x)
def by_module(x): return other.helped(x)
def closing(n): return lambda x: x + n
def unused(x): return math.sqrt(x)
"""
HELPER = "def helped(x): return x\n"


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes the module, with changes; a new process would read it so."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def make(*changes, helper=HELPER):
        text = MODULE.format(helper="their_helper")
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        for name, source in (("their_helper", helper), ("their_code", text)):
            path = tmp_path / f"{name}.py"
            path.write_text(source)
            module = types.ModuleType(name)
            module.__file__ = str(path)
            monkeypatch.setitem(sys.modules, name, module)
            exec(compile(source, str(path), "exec"), vars(module))
        import linecache

        linecache.checkcache()
        linecache.clearcache()
        return module

    return make


def key(fn, *args, version=None, known=lambda value: None, **kwargs):
    return KeyMaker(version, known).key(fn, args, kwargs)


@pytest.mark.parametrize(
    ("change", "same", "different"),
    [
        (("def deep(x): return x * FACTOR", "def deep(x):\n    # as before\n    return (x *\n        FACTOR)"), "all", ()),
        (("return x * FACTOR", "return x * FACTOR + 1"), ("shapes", "even", "helping"), ("work", "deep")),
        (("FACTOR = 2", "FACTOR = 3"), ("even", "helping"), ("work", "deep", "shapes")),
        (("y=1", "y=2"), ("deep",), ("work",)),
        (("size = 1", "size = 2"), ("deep",), ("shapes",)),
        (("x != 0 and", "x > 0 and"), ("work",), ("even", "odd")),
    ],
)
def test_a_key_depends_on_the_code_that_a_function_uses(made, change, same, different):
    names = ("work", "deep", "even", "odd", "shapes", "helping", "by_module", "unused")
    before = {name: key(getattr(made(), name), 1) for name in names}
    module = made(change)
    after = {name: key(getattr(module, name), 1) for name in names}
    for name in names if same == "all" else same:
        assert after[name] == before[name], name
    for name in different:
        assert after[name] != before[name], name


def test_other_modules_of_the_program_count(made):
    module = made()
    before = [key(module.helping, 1), key(module.by_module, 1), key(module.work, 1)]
    module = made(helper="def helped(x): return x + 1\n")
    after = [key(module.helping, 1), key(module.by_module, 1), key(module.work, 1)]
    assert [old == new for old, new in zip(before, after)] == [False, False, True]


def test_the_order_in_which_functions_are_seen_does_not_matter(made):
    module = made()
    one, two = KeyMaker(None, lambda value: None), KeyMaker(None, lambda value: None)
    assert [one.key(module.even, [1], {}), one.key(module.odd, [1], {})] == list(
        reversed([two.key(module.odd, [1], {}), two.key(module.even, [1], {})])
    )


class Point:
    def __init__(self, x):
        self.x = x


ARGUMENTS = [
    1, 1.0, True, "1", b"1", None, (1,), [1], {1}, frozenset({1}), {1: 1}, {"1": 1}, [[1], [2]], [[1, 2]], [1, [2]],
    ("ab", "c"), ("a", "bc"), Path("x"), datetime.date(2026, 1, 1), datetime.date(2026, 1, 2), Point(1), Point(2), Point("1"),
    math.sqrt,
    math.sin, len, "".join, "x".join, functools.partial(pow, 2), functools.partial(pow, 3), functools.partial(pow, b=2), Point,
    math, float("nan"), float("inf"), 1j, range(3), range(4), Point(1).__init__,
]  # fmt: skip


def test_arguments_count_by_type_and_value():
    keys = [key(pow, one) for one in ARGUMENTS]
    assert len(set(keys)) == len(ARGUMENTS)
    assert [key(pow, one) for one in ARGUMENTS] == keys
    assert key(pow, {"a": 1, "b": {3, 1, 2}}) == key(pow, {"b": {2, 3, 1}, "a": 1})
    assert key(pow, Point([1])) == key(pow, Point([1]))
    assert key(pow, 1, 2) != key(pow, (1, 2)) and key(pow, x=1) != key(pow, y=1) and key(pow, 1, x=2) != key(pow, 2, x=1)
    assert key(pow, 1) != key(pow, 1, version=2) != key(pow, 1, version="2")


def test_closures_and_lambdas_count_by_what_they_close_over(made):
    module = made()
    assert key(module.closing(1), 1) == key(module.closing(1), 1) != key(module.closing(2), 1)
    assert key(lambda x: x + 1, 1) != key(lambda x: x + 2, 1)
    assert key(made().closing(1), 1) == key(made(("x + n", "x + n  # ")).closing(1), 1)


class Words(list):
    """A list with attributes."""


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


@dataclasses.dataclass
class Data:
    x: object


def test_objects_count_by_all_that_they_hold():
    words = Words("ab")
    words.kind = "x"
    objects = [Words("ab"), Words("ac"), words, Slotted(1), Slotted(2), Data(1), Data({1, 2}), OrderedDict(a=1, b=2)]
    objects += [
        OrderedDict(b=2, a=1),
        defaultdict(list, a=[1]),
        defaultdict(list),
        defaultdict(int),
        re.compile("a"),
        Colour.RED,
    ]
    objects += [re.compile("a", re.IGNORECASE), Colour.BLUE, Counter("ab"), Counter("abb"), array("d", [1]), array("d", [2])]
    objects += [decimal.Decimal("1.0"), decimal.Decimal("1.00"), fractions.Fraction(1, 2), ValueError("a"), ValueError("b")]
    keys = [key(pow, one) for one in objects]
    assert len(set(keys)) == len(objects)
    assert key(pow, Data({"a", "b", "c"})) == key(pow, Data({"c", "b", "a"}))


class Colour(enum.Enum):
    RED, BLUE = 1, 2


def test_values_of_variables_count_as_they_are_at_each_call(made):
    module = made()
    maker = KeyMaker(None, lambda value: None)
    kept = [1]
    by_closure, by_global = (lambda: kept), module.deep
    before = [maker.key(fn, [], {}) for fn in (by_closure, by_global, module.even)]
    kept.append(2)
    module.FACTOR = 5
    after = [maker.key(fn, [], {}) for fn in (by_closure, by_global, module.even)]
    assert [old == new for old, new in zip(before, after)] == [False, False, True]


def test_keys_are_the_same_in_another_process(tmp_path):
    """Hashes of text differ from process to process, and with them the order of sets, also of constants."""
    (tmp_path / "code_with_sets.py").write_text("def f(x): return x in {'a', 'b', 'c', 'd'}, {'x': 1}.get(x)\n")
    code = (
        "import code_with_sets as c; from balsam_lite.launcher.call_keys import KeyMaker; "
        "print(KeyMaker(None, lambda value: None).key(c.f, [{'p', 'q', 'r'}, {'a': 1, 'b': 2}], {}))"
    )
    environ = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    found = {
        subprocess.run(
            [sys.executable, "-c", code], env={**environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1 and found.pop().startswith("call:")


def test_threads_make_the_same_keys(made):
    module = made()
    maker = KeyMaker(None, lambda value: None)
    functions = [module.work, module.even, module.shapes, module.helping] * 20
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda fn: maker.key(fn, [1], {}), functions))
    assert keys == [key(fn, 1) for fn in functions]


def test_what_is_known_stands_for_a_value():
    future = object()
    seen = [key(pow, [future], known=lambda value, n=n: n if value is future else None) for n in (1, 2, 1)]
    assert seen[0] == seen[2] != seen[1]


def test_what_has_no_key_is_an_error(monkeypatch):
    with pytest.raises(InputError, match=r"(?s)argument of pow cannot be compared.*lock.*memoize"):
        key(pow, threading.Lock())
    lock = threading.Lock()
    with pytest.raises(InputError, match=r"(?s)lambda.* uses what cannot be compared"):
        key(lambda: lock)
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InputError, match="contains itself"):
        key(pow, endless)
