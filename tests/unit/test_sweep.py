"""Sweeps: exact ranges, combinations and samples that are never listed, and `{NAME}` of swept variables only."""

from __future__ import annotations

import pytest

from balsam_lite.campaigns import sweep
from balsam_lite.core.errors import InvalidSpec


def values(text):
    return list(sweep.parse(text, lambda path: ["one", "two"]).values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("T=0:1:0.1", ["0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
        ("T=100:510:200", ["100", "300", "500"]),
        ("T=3:1", ["3", "2", "1"]),
        ("T=1:0:-0.5", ["1", "0.5", "0"]),
        ("T=7:7", ["7"]),
        ("T=-1:1", ["-1", "0", "1"]),
        ("T=1e3:2e3:5e2", ["1000", "1500", "2000"]),
        ("T=1e-9:3e-9:1e-9", ["0.000000001", "0.000000002", "0.000000003"]),
        ("T=1,2,5", ["1", "2", "5"]),
        ("T= a , b c ", ["a", "b c"]),
        ('T="a,b",c,"say ""x"""', ["a,b", "c", 'say "x"']),
        ('T="1:3",1:3,007', ["1:3", "1", "2", "3", "007"]),
        ("T=10:30:00", []),
        ('T=""', [""]),
        ("T=x=1", ["x=1"]),
        ("T=@list", ["one", "two"]),
    ],
)
def test_values_of_a_variable(text, expected):
    if not expected:
        with pytest.raises(InvalidSpec, match="has the step 0"):
            values(text)
    else:
        assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("T", "must look like NAME=VALUES, not 'T'"),
        ("2T=1", "must look like NAME=VALUES"),
        ("T=", "there is an empty value"),
        ("T=1,,2", "there is an empty value"),
        ('T="a', "a double quote is not closed"),
        ('T="a"b,c', "a double quote is not closed, or not followed by a comma"),
        ("T=1:5:0", "The range 1:5:0 has the step 0"),
        ("T=1:5:-1", "its step must be positive"),
        ("T=5:1:1", "its step must be negative"),
        ("T=0:1e90:1", "'1e90' has too many digits"),
    ],
)
def test_what_is_no_variable_is_refused(text, message):
    with pytest.raises(InvalidSpec, match=message):
        values(text)


def test_a_file_without_lines_is_refused():
    with pytest.raises(InvalidSpec, match="The sweep of T has no values: x has no lines"):
        sweep.parse("T=@x", lambda path: [])


@pytest.mark.parametrize(
    ("text", "expected"), [("1-3", "1 2 3"), ("1-10:4", "1 5 9"), ("1,5,7-9", "1 5 7 8 9"), ("0", "0"), (" 2 - 3 ", "2 3")]
)
def test_arrays(text, expected):
    assert list(sweep.parse_array(text).values) == expected.split()
    assert sweep.parse_array(text).name == "i"


@pytest.mark.parametrize("text", ["", "a", "3-1", "1-2-3", "1:2", "-1", "1-10:0"])
def test_what_is_no_array_is_refused(text):
    with pytest.raises(InvalidSpec):
        sweep.parse_array(text)


def variables(*texts):
    return [sweep.parse(text, lambda path: []) for text in texts]


def test_the_last_variable_of_a_product_changes_fastest():
    found = sweep.Product(variables("T=1:2", "P=a,b"))
    assert found.total == 4
    assert [tuple(one.values()) for one in found] == [("1", "a"), ("1", "b"), ("2", "a"), ("2", "b")]
    assert found[2] == {"T": "2", "P": "a"}


def test_zipped_variables_go_together_and_need_as_many_values():
    assert [*sweep.Zip(variables("T=1:2", "P=a,b"))] == [{"T": "1", "P": "a"}, {"T": "2", "P": "b"}]
    with pytest.raises(InvalidSpec, match="need equally many values: T has 3, P has 2"):
        sweep.Zip(variables("T=1:3", "P=a,b"))


def test_a_variable_is_swept_once():
    for kind in (sweep.Product, sweep.Zip):
        with pytest.raises(InvalidSpec, match="The variable T is swept twice"):
            kind(variables("T=1:3", "T=1:3"))


def test_a_sample_of_a_product_that_no_memory_holds():
    whole = sweep.Product(variables("a=1:1e12", "b=1:1e12", "c=1:1e12"))
    assert whole.total == 10**36
    found = [*sweep.Sample(whole, 1000, 7)]
    assert len({tuple(one.values()) for one in found}) == 1000
    assert found == [*sweep.Sample(whole, 1000, 7)] != [*sweep.Sample(whole, 1000, 8)]
    assert found == sorted(found, key=lambda one: [int(value) for value in one.values()])
    assert found[3] == sweep.Sample(whole, 1000, 7)[3]


def test_a_sample_is_the_same_in_every_version_of_python():
    whole = sweep.Product(variables("a=1:100"))
    assert [one["a"] for one in sweep.Sample(whole, 5, 1)] == ["9", "18", "33", "73", "98"]


def test_a_sample_of_all_is_all():
    whole = sweep.Product(variables("a=1:5", "b=x,y"))
    assert [*sweep.Sample(whole, 10, 3)] == [*whole]
    with pytest.raises(InvalidSpec, match="There are 10 combinations, of which 11 different ones cannot be drawn"):
        sweep.Sample(whole, 11, 3)


def test_a_sweep_of_a_milliard_is_refused_with_its_number():
    with pytest.raises(InvalidSpec, match="The sweep has 1000000000 combinations; at most 10000000 jobs"):
        sweep.refuse_too_many(sweep.Product(variables("a=1:1000000000")).total)


def test_only_names_of_variables_are_replaced():
    replaced = sweep.replacer(["T", "P"])
    assert replaced("{T} {P}{T} {print $1} {t} ${T} {{T}}", {"T": "1", "P": "{T}"}) == "1 {T}1 {print $1} {t} $1 {1}"
    assert replaced({"a{T}": ["{P}", 3]}, {"T": "1", "P": "x"}) == {"a1": ["x", 3]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100", 100), ("-3", -3), ("0", 0), ("0.1", 0.1), ("-0.5", -0.5), ("1e-05", 1e-05), ("007", "007"), ("1.50", "1.50"),
        ("0.00001", "0.00001"), ("+1", "+1"), ("-0", "-0"), ("1e3", "1e3"), ("nan", "nan"), ("inf", "inf"), ("", ""),
        ("12345678901234567890", "12345678901234567890"), ("\u0663", "\u0663"), (True, True),
    ],
)  # fmt: skip
def test_a_number_is_stored_as_one_if_it_is_printed_as_it_was_typed(text, value):
    found = sweep.as_value(text)
    assert (type(found), found) == (type(value), value)


def test_names_of_jobs():
    assert sweep.name_of("sim", {"T": "0.5", "P": "-1"}) == "sim-T0.5-P-1"
    assert sweep.name_of("sim", {"i": "7"}) == "sim-7"
    assert sweep.name_of("sim", {"f": "in dir/a b.dat"}) == "sim-fin_dir_a_b.dat"
