"""Lists of node names: what they expand to, and that nothing makes the reader hang, swallow memory or raise anything odd."""

from __future__ import annotations

import itertools
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_lite.schedulers.hostlist import MAX_NAME, MAX_NAMES, compress, expand, expand_numbers

#: Lists that Slurm writes or reads, and what `scontrol show hostnames` of version 22.05 made of them.
REAL = {
    "node1": "node1",
    "login1,node7": "login1 node7",
    "node[1-3,07,10-12]": "node1 node2 node3 node07 node10 node11 node12",
    "node[1-3],login1": "node1 node2 node3 login1",
    "gnode[10,20,25,37]": "gnode10 gnode20 gnode25 gnode37",
    "nid[00008-00011]": "nid00008 nid00009 nid00010 nid00011",
    "n[09-11]": "n09 n10 n11",
    "n[08-10]": "n08 n09 n10",
    "n[8-10]": "n8 n9 n10",
    "n[1-03]": "n1 n2 n3",
    "n[001-2]": "n001 n002",
    "n[00-2]": "n00 n01 n02",
    "node[1-2][3-4]": "node13 node14 node23 node24",
    "[1-3]": "1 2 3",
    "1001-1005": "1001-1005",
    "n[1]": "n1",
    "n1,n1,n[1,1]": "n1 n1 n1 n1",
    "c-12.cluster.example,c-13.cluster.example": "c-12.cluster.example c-13.cluster.example",
    "ü[1-2]": "ü1 ü2",
    "rack[1-2]node[01-02]": "rack1node01 rack1node02 rack2node01 rack2node02",
}
#: The same, of which Slurm 22.05 knows nothing: text behind the brackets.
MORE = {
    "node[1-3]-ib": "node1-ib node2-ib node3-ib",
    "a[1-2]b[3-4]c[5-6]": "a1b3c5 a1b3c6 a1b4c5 a1b4c6 a2b3c5 a2b3c6 a2b4c5 a2b4c6",
    "n[1-2].a,m": "n1.a n2.a m",
}

#: Broken lists, at which character, and a word of why.
BROKEN = [
    ("", 1, "missing"),
    (",", 1, "missing"),
    ("a,", 3, "missing"),
    (",a", 1, "missing"),
    ("a,,b", 3, "missing"),
    ("a b", 2, "blank"),
    ("a,\tb", 3, "blank"),
    ("a\n", 2, "blank"),
    ("n[1-3", 2, "bracket"),
    ("n1-3]", 5, "bracket"),
    ("n]1[", 2, "bracket"),
    ("n[1-[2-3]]", 2, "bracket"),
    ("n[1-2]]", 7, "bracket"),
    ("n[]", 3, "number"),
    ("n[1,,2]", 5, "number"),
    ("n[1,2,]", 7, "number"),
    ("n[-3]", 3, "number"),
    ("n[3-]", 3, "number"),
    ("n[1-2-3]", 3, "number"),
    ("n[a-c]", 3, "number"),
    ("n[1:2]", 3, "number"),
    ("n[0x1]", 3, "number"),
    ("n[1 -3]", 3, "number"),
    ("n[1,+2]", 5, "number"),
    ("n[1,²]", 5, "number"),
    ("n[１]", 3, "number"),
    (f"n[{'9' * 5000}]", 3, "number"),
    ("n[3-1]", 3, "reversed"),
    ("n[1,10-09]", 5, "reversed"),
    ("x" * 256, 1, "longer"),
    ("ok," + "x" * 255 + "[1-2]", 4, "longer"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "names"), [*REAL.items(), *MORE.items()])
def test_a_list_expands_to_its_names_in_order(text, names):
    assert expand(text) == tuple(names.split())


@pytest.mark.parametrize(("text", "character", "why"), BROKEN, ids=lambda value: str(value)[:20])
def test_a_broken_list_is_refused_with_place_and_reason(text, character, why):
    with pytest.raises(ValueError, match=rf"at character {character}: ") as caught:
        expand(text)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
    "text", ["n[1-1000000000]", "n[0-999999999999999999]", "n[1-1001][1-1000]", "n[1-600000],m[1-600000]", "n" + "[1-9]" * 90]
)
def test_a_list_of_more_than_a_million_names_is_refused_at_once(text):
    begun = time.process_time()
    with pytest.raises(ValueError, match=f"more than {MAX_NAMES} names"):
        expand(text)
    assert time.process_time() - begun < 5


def test_a_list_of_a_million_names_expands():
    names = expand("n[0-999999]")
    assert len(names) == MAX_NAMES
    assert names[-1] == "n999999"
    assert compress(names) == "n[0-999999]"


@pytest.mark.parametrize(
    ("text", "names"),
    [("1001-1003,1030", "1001 1002 1003 1030"), ("0-3,7", "0 1 2 3 7"), ("12", "12"), ("08-10", "08 09 10")],
)
def test_cobalts_compact_list_expands_to_numbers(text, names):
    assert expand_numbers(text) == tuple(names.split())


@pytest.mark.parametrize(
    "text", ["", ",", "1,,2", "1-", "-1", "5-1", "a", "n[1-2]", "1]-[2", "MIR-00000-33331-512", "1-9999999"]
)
def test_no_other_text_is_a_compact_list(text):
    with pytest.raises(ValueError, match=r"at character|more than"):
        expand_numbers(text)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["n1"], "n1"),
        (["n1", "n2"], "n[1-2]"),
        (["n9", "n10", "n11"], "n[9-11]"),
        (["n09", "n10"], "n[09-10]"),
        (["n9", "n010"], "n[9,010]"),
        (["n99", "n100", "n0101"], "n[99-100,0101]"),
        (["n3", "n2", "n1"], "n[3,2,1]"),
        (["n1", "n1"], "n[1,1]"),
        (["n1", "m2", "n3"], "n1,m2,n3"),
        (["a", "b", "1", "2"], "a,b,[1-2]"),
        (["r1n1", "r1n2", "r2n1"], "r1n[1-2],r2n1"),
        (["n1-ib", "n2-ib"], "n1-ib,n2-ib"),
        (["n²", "n１"], "n²,n１"),
    ],
)
def test_neighbours_share_brackets(names, text):
    assert compress(names) == text
    assert expand(text) == tuple(names) if names else text == ""


@pytest.mark.parametrize("name", ["", "a,b", "a b", "n[1]", "n]", "a\n", "a\x85", "x" * (MAX_NAME + 1)])
def test_a_name_that_no_list_can_hold_is_refused(name):
    with pytest.raises(ValueError, match="not a name"):
        compress(["ok", name])


# --- properties -------------------------------------------------------------------------------------------------------

NAMES = st.one_of(
    st.from_regex(r"[a-z]{0,3}[0-9]{1,4}", fullmatch=True),
    st.from_regex(r"[^\s\[\],]{1,8}", fullmatch=True),
    st.builds("{}{}".format, st.sampled_from(["n", "n0", "", "node-"]), st.integers(0, 10**30)),
)
RANGES = st.one_of(
    st.from_regex(r"[0-9]{1,3}", fullmatch=True),
    st.tuples(st.integers(0, 120), st.integers(0, 30), st.integers(1, 4)).map(lambda t: f"{t[0]:0{t[2]}}-{t[0] + t[1]}"),
)
BRACKETS = st.lists(RANGES, min_size=1, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
WORDS = st.lists(st.one_of(st.from_regex(r"[a-z.-]{1,4}", fullmatch=True), BRACKETS), min_size=1, max_size=3).map("".join)


def naive(text):
    """The same in another way: word by word, one pair of brackets after the other."""
    inside = itertools.accumulate((character == "[") - (character == "]") for character in text)
    cut = next((at for at, (character, depth) in enumerate(zip(text, inside)) if character == "," and not depth), len(text))
    word, others = text[:cut], text[cut + 1 :]
    brackets = re.search(r"\[(.*?)\]", word)
    if brackets is None:
        names = [word]
    else:
        ends = naive(word[brackets.end() :])
        names = [word[: brackets.start()] + number + end for number in numbers(brackets[1]) for end in ends]
    return names + (naive(others) if others else [])


def numbers(ranges):
    for part in ranges.split(","):
        low, _, high = part.partition("-")
        yield from (format(number, f"0{len(low)}") for number in range(int(low), int(high or low) + 1))


@given(st.lists(NAMES, min_size=1, max_size=40))
def test_what_was_compressed_expands_to_the_same_names(names):
    assert expand(compress(names)) == tuple(names)


@given(st.lists(WORDS, min_size=1, max_size=4).map(",".join))
def test_every_well_formed_list_expands_as_in_a_naive_reading(text):
    assert list(expand(text)) == naive(text)


@given(st.one_of(st.text(), st.text(alphabet="[]n,-0129 ", max_size=60)))
def test_any_text_gives_names_or_a_value_error(text):
    for read in (expand, expand_numbers):
        try:
            names = read(text)
        except ValueError as exc:
            assert len(str(exc)) < 400  # never the whole text
        else:
            assert names
            assert all(names)


# --- the real one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "names"), REAL.items())
def test_slurm_reads_a_list_in_the_same_way(slurm, text, names):
    assert slurm.run(["scontrol", "show", "hostnames", text]).stdout.split() == names.split()


def test_slurm_reads_what_was_compressed(slurm):
    names = ["n9", "n10", "n11", "n011", "login", "r1n08", "r1n09", "r1n10", "r2n1", "7", "8", "n3", "n2"]
    assert slurm.run(["scontrol", "show", "hostnames", compress(names)]).stdout.split() == names
