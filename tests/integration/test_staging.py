"""Files between parents and children, and from and to other places, a real sshd among them."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elsewhere import fill, small_disk
from sshd import HOST, Remote, remote_host

from balsam_lite.core.errors import SpawnFailed, StagingFailed
from balsam_lite.launcher.staging.files import PART
from balsam_lite.launcher.staging.links import Parent, link_inputs
from balsam_lite.launcher.staging.transfers import stage_in, stage_out

ODD_NAMES = ["ünï €.dat", "two words", 'it\'s "q" $HOME `x`', "a\nb", "-rf", "a[1].x", "back\\slash", "a:b", "{1,2}"]


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or path.name)
    return path


def tree(directory: Path) -> dict[str, str]:
    """Every file in it with its text; links to directories are not entered."""
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


def links(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): os.readlink(p) for p in directory.rglob("*") if p.is_symlink()}


def parts(*directories: Path) -> list[Path]:
    """What was not complete, and is still there."""
    return [path for directory in directories for path in directory.rglob(f"{PART}*")]


def never() -> bool:
    return False


def after(number: int) -> Callable[[], bool]:
    """Cancelled, once asked more than `number` times."""
    asked = iter(range(number))
    return lambda: next(asked, None) is None


def no_program(argv, directory):
    raise AssertionError(f"{argv} was started")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


# --- linking ----------------------------------------------------------------------------------------------------------


class Family:
    """Parents `p`, `q`, … and the directory of their child `c`."""

    def __init__(self, place: Path, count: int = 1) -> None:
        self.places = [place / name for name in "pqrs"[:count]]
        self.parents = [Parent(f"{name}1234567-9abc", name, str(place / name)) for name in "pqrs"[:count]]
        self.child = place / "c"
        for directory in (*self.places, self.child):
            directory.mkdir()

    def link(self, patterns: str = "*") -> int:
        return link_inputs(str(self.child), "c", self.parents, patterns)


@pytest.fixture
def one(tmp_path: Path) -> Family:
    return Family(tmp_path)


@pytest.fixture
def two(tmp_path: Path) -> Family:
    return Family(tmp_path, 2)


@pytest.mark.parametrize("pattern", ["*", "**", "**/*"])
def test_a_star_links_files_and_directories_but_nothing_of_balsams_and_nothing_hidden(one, pattern):
    (p,) = one.places
    for name in ("x.dat", "d/e/y.dat", "p.out", "p.out.1", "preprocess.log", "postprocess.log", "postprocess.log.2", ".h"):
        write(p / name)
    write(p / "p.outline")
    write(p / f"{PART}1")
    assert one.link(pattern) == 3
    assert links(one.child) == {name: str(p / name) for name in ("x.dat", "d", "p.outline")}


def test_an_explicit_pattern_links_what_the_parents_printed_but_never_their_logs(two):
    for place in two.places:
        write(place / f"{place.name}.out")
        write(place / "preprocess.log")
    assert two.link("*.out") == 2
    assert sorted(links(two.child)) == ["p.out", "q.out"]
    with pytest.raises(StagingFailed, match=r"missing parent file: preprocess\.log matches nothing of p .*, q "):
        two.link("preprocess.log")


def test_a_hidden_name_needs_a_dot_and_one_that_is_not_complete_never_matches(one):
    (p,) = one.places
    for name in (".hidden", f"{PART}x", "seen"):
        write(p / name)
    one.link(".* *")
    assert sorted(links(one.child)) == [".hidden", "seen"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_is_linked(one, name):
    (p,) = one.places
    write(p / name)
    assert one.link() == 1
    assert (one.child / name).read_text() == name


def test_a_name_that_is_no_unicode_is_linked(one):
    name = os.fsdecode(b"\xff.dat")
    write(one.places[0] / name, "x")
    one.link()
    assert (one.child / name).read_text() == "x"


def test_quotes_keep_a_pattern_with_blanks_together(one):
    for name in ("a b.dat", "a", "b.dat"):
        write(one.places[0] / name)
    assert one.link("'a b*'") == 1
    assert list(links(one.child)) == ["a b.dat"]


def test_two_stars_keep_the_path_and_other_patterns_do_not(one):
    (p,) = one.places
    for name in ("t.dat", "d/x.dat", "d/e/y.dat", "d/e/z.txt", "all.dat/inner.dat"):
        write(p / name)
    assert one.link("**/*.dat d/e/*.txt") == 5
    assert links(one.child) == {
        "t.dat": str(p / "t.dat"), "d/x.dat": str(p / "d/x.dat"), "d/e/y.dat": str(p / "d/e/y.dat"),
        "all.dat": str(p / "all.dat"), "z.txt": str(p / "d/e/z.txt"),
    }  # fmt: skip


def test_deep_links_of_two_parents_meet_in_one_directory_and_never_in_a_parents(two):
    p, q = two.places
    for name in ("d/x.dat", "d/own.dat"):
        write(p / name)
        write(q / name.replace("own", "other"))
    two.link("**/*.dat")
    assert sorted(links(two.child)) == ["d/other.dat", "d/own.dat", "d/x.dat", "d/x.dat_q1234567"]
    before = tree(p), tree(q)
    for link in two.child.rglob("*"):
        if link.is_symlink():
            link.unlink()
    (two.child / "d").rmdir()
    two.link("d **/*.dat")
    assert (tree(p), tree(q)) == before
    assert links(two.child)["d"] == str(p / "d")
    assert links(two.child)["d_q1234567"] == str(q / "d")


def test_the_first_parent_keeps_a_name_and_doing_it_again_changes_nothing(two):
    p, q = two.places
    for place in (p, q):
        write(place / "x.dat", place.name)
    assert two.link() == 2
    expected = {"x.dat": str(p / "x.dat"), "x.dat_q1234567": str(q / "x.dat")}
    assert links(two.child) == expected
    inodes = [(two.child / name).lstat().st_ino for name in expected]
    assert two.link() == 2
    assert links(two.child) == expected
    assert [(two.child / name).lstat().st_ino for name in expected] == inodes


def test_files_of_one_name_in_one_parent_all_get_links(one):
    (p,) = one.places
    for name in "abc":
        write(p / name / "x", name)
    assert one.link("*/x") == one.link("*/x") == 3
    assert tree(one.child) == {"x": "a", "x_p1234567": "b", "x_p1234567.2": "c"}


def test_a_broken_link_and_one_to_another_parents_file_are_replaced_and_what_is_the_users_is_not(two):
    p, q = two.places
    for name in ("broken", "stale", "real", "elsewhere"):
        write(p / name)
    (two.child / "broken").symlink_to("/nowhere")
    (two.child / "stale").symlink_to(write(q / "old"))
    write(two.child / "real", "mine")
    (two.child / "elsewhere").symlink_to(write(two.child.parent / "users", "mine"))
    assert two.link() == 5
    assert links(two.child)["broken"] == str(p / "broken")
    assert links(two.child)["stale"] == str(p / "stale")
    assert (two.child / "real").read_text() == (two.child / "elsewhere").read_text() == "mine"
    assert (two.child / "real_p1234567").read_text() == "real"
    assert (two.child / "elsewhere_p1234567").read_text() == "elsewhere"
    assert not parts(two.child)


def test_no_link_has_a_name_to_which_balsam_writes_for_the_child(one):
    (p,) = one.places
    for name in ("c.out", "c.out.1", "d/preprocess.log", "d/postprocess.log", "d/preprocess.log.1"):
        write(p / name)
    one.link("*.out* d/*")
    assert set(links(one.child)) == {
        f"{name}_p1234567" for name in ("c.out", "c.out.1", "postprocess.log", "preprocess.log", "preprocess.log.1")
    }


def test_a_clone_of_the_parents_name_does_not_get_its_output_by_the_default(tmp_path):
    family = Family(tmp_path)
    write(family.places[0] / "p.out")
    assert link_inputs(str(family.child), "p", family.parents, "*") == 0
    assert link_inputs(str(family.child), "p", family.parents, "*.out") == 1
    assert list(links(family.child)) == ["p.out_p1234567"]


def test_a_chain_of_links_stays_one_link_long(tmp_path):
    first = tmp_path / "0"
    write(first / "x", "x")
    (first / "latest").symlink_to("x")
    for number in range(1, 60):
        child = tmp_path / str(number)
        child.mkdir()
        link_inputs(str(child), "c", [Parent("1" * 36, "p", str(tmp_path / str(number - 1)))], "*")
    assert links(child) == {"x": str(first / "x"), "latest": str(first / "latest")}


def test_a_link_that_leads_nowhere_matches_nothing(one):
    (one.places[0] / "x").symlink_to("/nowhere")
    assert one.link() == 0
    with pytest.raises(StagingFailed, match="missing parent file"):
        one.link("x")


def test_a_shared_directory_needs_no_links_and_the_childs_own_place_gets_none(tmp_path):
    place = tmp_path / "shared"
    write(place / "x")
    (place / "inner").mkdir()
    parents = [Parent("1" * 36, "p", str(place))]
    assert link_inputs(str(place), "c", parents, "* x") == 0
    assert link_inputs(str(place / "inner"), "c", parents, "*") == 1
    assert list(links(place)) == ["inner/x"]


def test_without_parents_or_patterns_there_is_nothing_to_do(one):
    write(one.places[0] / "x")
    assert link_inputs(str(one.child), "c", [], "x.dat") == 0
    assert one.link("") == 0
    assert not list(one.child.iterdir())


def test_a_pattern_needs_a_match_in_one_parent_only_and_makes_no_link_before_that_is_known(two):
    write(two.places[1] / "x.dat")
    with pytest.raises(StagingFailed, match=r"cannot be linked into .*: missing parent file: \*\.txt matches nothing of p"):
        two.link("*.dat *.txt")
    assert not list(two.child.iterdir())
    assert two.link("*.dat") == 1


def test_a_missing_directory_of_a_parent_holds_no_files(one):
    one.places[0].rmdir()
    assert one.link() == 0
    with pytest.raises(StagingFailed, match="missing parent file"):
        one.link("x")


@pytest.mark.parametrize("pattern", ["/etc/*", "../*", "a/../../b", "~/x", "'a", "''", ".", "./"])
def test_a_pattern_that_is_none_or_leads_out_is_refused(one, pattern):
    with pytest.raises(StagingFailed, match="the pattern"):
        one.link(pattern)


def test_a_missing_directory_of_the_child_is_told(one):
    write(one.places[0] / "x")
    one.child.rmdir()
    with pytest.raises(StagingFailed, match=r"cannot be linked into .*/c: No such file or directory"):
        one.link()


# --- bringing in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "local:{}", "file://{}", "file://localhost{}", "file:{}"])
def test_a_file_arrives_by_every_form_with_its_mode_and_times(tmp_path, work, form):
    source = write(tmp_path / "in" / "x.sh", "x")
    source.chmod(0o750)
    os.utime(source, (1, 1_000_000))
    assert stage_in(form.format(source), str(work), no_program, never) == 1
    found = (work / "x.sh").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o750, 1_000_000)
    assert tree(work) == {"x.sh": "x"} and not parts(work)


def test_a_relative_place_starts_at_the_workdir_and_a_tilde_at_home(tmp_path, work, monkeypatch):
    write(tmp_path / "in" / "x")
    write(tmp_path / "y")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert stage_in("../in/x", str(work), no_program, never) == stage_in("local:~/y", str(work), no_program, never) == 1
    assert tree(work) == {"x": "x", "y": "y"}


def test_a_file_url_is_percent_decoded(tmp_path, work):
    write(tmp_path / "a b%", "x")
    assert stage_in(f"file://{tmp_path}/a%20b%25", str(work), no_program, never) == 1
    assert tree(work) == {"a b%": "x"}


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_arrives(tmp_path, work, name):
    write(tmp_path / "in" / name)
    assert stage_in(str(tmp_path / "in" / name), str(work), no_program, never) == 1
    assert tree(work) == {name: name}


def test_a_directory_arrives_as_one_and_with_a_star_what_is_in_it(tmp_path, work):
    source = tmp_path / "in"
    for name in ("x", "d/y", "d/.hidden", ".hidden"):
        write(source / name)
    (source / "d" / "link").symlink_to("y")
    (source / "d").chmod(0o500)
    assert stage_in(f"{source}/", str(work), no_program, never) == 1
    assert tree(work) == {f"in/{name}": Path(name).name if name != "d/link" else "y" for name in tree(source)}
    assert links(work) == {"in/d/link": "y"}
    assert stage_in(f"{source}/*", str(work), no_program, never) == 2
    assert {path.name for path in work.iterdir()} == {"in", "x", "d"}
    assert stat.S_IMODE((work / "d").stat().st_mode) == stat.S_IMODE((work / "in" / "d").stat().st_mode) == 0o500
    assert not parts(work)


def test_files_are_replaced_directories_merged_and_links_not_followed(tmp_path, work):
    for name in ("f", "d/new", "d/both", "l/x"):
        write(tmp_path / "in" / name, "new")
    for name in ("f", "d/old", "d/both"):
        write(work / name, "old")
    kept = write(tmp_path / "parents" / "y").parent
    (work / "l").symlink_to(kept)
    assert stage_in(f"{tmp_path}/in/*", str(work), no_program, never) == 3
    assert tree(work) == {"f": "new", "d/old": "old", "d/new": "new", "d/both": "new", "l/x": "new"}
    assert tree(kept) == {"y": "y"}


def test_a_link_given_itself_is_followed(tmp_path, work):
    write(tmp_path / "run3" / "x")
    (tmp_path / "latest").symlink_to("run3")
    assert stage_in(str(tmp_path / "latest"), str(work), no_program, never) == 1
    assert tree(work) == {"latest/x": "x"} and not links(work)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{}/none", "there is no .*/none"),
        ("{}/*.none", r"nothing matches .*/\*\.none"),
        ("local:", "names no path"),
        ("file:none", "file:///PATH"),
        ("file://host/x", "file:///PATH"),
        ("file:///a%00b", "names no path"),
        ("gsiftp:x/y", "gsiftp: is not supported; write a path, local:PATH"),
        ("https://a/b", "https: is not supported"),
        ("scp:nowhere", r"write scp:\[USER@\]HOST:PATH"),
        ("scp:-oProxyCommand=x:/y", "no name of a host"),
        ("scp:u@-x:/y", "no name of a host"),
        ("rsync://-x/y", "no name of a host"),
        ("scp:host:", "names no file"),
        ("scp:host:/", "names no file"),
        ("{}", "cannot be copied into itself"),
        ("{}/*/x", "and .*/b/x have the same name"),
        ("{}/broken", "leads nowhere"),
        ("{}/pipe", "neither a file nor a directory"),
    ],
)
def test_what_cannot_be_brought_in_is_told_in_one_sentence(tmp_path, work, url, reason):
    write(tmp_path / "a" / "x")
    write(tmp_path / "b" / "x")
    (tmp_path / "broken").symlink_to("none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StagingFailed, match=rf"^stage-in from .* failed: .*{reason}") as caught:
        stage_in(url.format(tmp_path), str(work), no_program, never)
    assert "\n" not in str(caught.value)
    assert not list(work.iterdir())


def test_a_directory_does_not_take_the_place_of_a_file_nor_a_file_that_of_a_directory(tmp_path, work):
    write(tmp_path / "in" / "x" / "y")
    write(tmp_path / "in2" / "x")
    write(work / "x")
    with pytest.raises(StagingFailed, match="Not a directory"):
        stage_in(f"{tmp_path}/in/x", str(work), no_program, never)
    assert tree(work) == {"x": "x"}
    (work / "x").unlink()
    write(work / "x" / "z")
    with pytest.raises(StagingFailed, match="Is a directory"):
        stage_in(f"{tmp_path}/in2/x", str(work), no_program, never)
    assert tree(work) == {"x/z": "z"}


@pytest.mark.parametrize("asked", range(5))
def test_nothing_is_visible_when_it_is_cancelled_half_way(tmp_path, work, asked):
    for number in range(4):
        write(tmp_path / "in" / f"d{number % 2}" / str(number))
    with pytest.raises(StagingFailed, match="interrupted"):
        stage_in(f"{tmp_path}/in", str(work), no_program, after(asked))
    assert not list(work.iterdir())


def test_a_copy_is_invisible_under_its_name_until_all_are_complete(tmp_path, work):
    for name in "abc":
        write(tmp_path / "in" / name)
    seen = []

    def look() -> bool:
        seen.append([path.name for path in work.iterdir() if not path.name.startswith(PART)])
        return False

    assert stage_in(f"{tmp_path}/in/*", str(work), no_program, look) == 3
    assert seen == [[]] * 3


# --- taking away ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "local:{}", "file://{}"])
def test_files_and_directories_go_to_a_directory_that_is_made(tmp_path, work, form):
    for name in ("x.dat", "sub/y.dat", "results/z/w", "other", f"{PART}1"):
        write(work / name)
    target = tmp_path / "far" / "away"
    assert stage_out(form.format(target), "*.dat 'results' sub/*.dat *.none", str(work), no_program, never).number == 3
    assert tree(target) == {"x.dat": "x.dat", "y.dat": "y.dat", "results/z/w": "w"}
    assert stage_out(form.format(target), f"{PART}* .*", str(work), no_program, never).number == 0


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("res[T=300].dat", ["res[T=300].dat"]), ("run[1].dat", ["run[1].dat"]), ("run[2].dat", ["run2.dat"]),
        ("d[1]/x.dat", ["x.dat"]), ("d[1]/*.dat", ["x.dat"]), ("./run[1].dat", ["run[1].dat"]), ("what?", ["what?"]),
        ("*", ["*", "d1", "d[1]", "res[T=300].dat", "run1.dat", "run2.dat", "run[1].dat", "what?", "whats"]),
        ("**/x.dat", ["x.dat"]), ("'run[1].dat'", ["run[1].dat"]),
    ],
)  # fmt: skip
def test_a_word_that_names_a_path_exactly_is_that_path_else_a_pattern(tmp_path, work, word, expected):
    for name in ("res[T=300].dat", "run1.dat", "run2.dat", "run[1].dat", "d[1]/x.dat", "d1/y.dat", "what?", "whats", "*"):
        write(work / name)
    assert stage_out(str(tmp_path / "out"), word, str(work), no_program, never) == (len(expected), ())
    assert sorted(os.listdir(tmp_path / "out")) == expected
    if "?" not in word and "*" not in word:
        link_inputs(str(tmp_path), "c", [Parent("1" * 36, "p", str(work))], word)
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_symlink()) == expected


def test_words_that_match_nothing_are_told(tmp_path, work):
    write(work / "a.dat")
    (work / "broken").symlink_to("nowhere")
    done = stage_out(str(tmp_path / "out"), "*.dat *.none broken 'two words'", str(work), no_program, never)
    assert done == (1, ("*.none", "broken", "two words"))


def test_a_directory_with_brackets_in_its_name_is_a_place_to_copy_patterns_from(tmp_path, work):
    for name in ("in[1]/a.dat", "in1/b.dat"):
        write(tmp_path / name)
    assert stage_in(f"{tmp_path}/in[1]/*.dat", str(work), no_program, never) == 1
    assert tree(work) == {"a.dat": "a.dat"}


def test_two_stars_find_files_at_any_depth_and_they_arrive_side_by_side(tmp_path, work):
    for name in ("a.dat", "d/b.dat", "d/e/c.dat"):
        write(work / name)
    assert stage_out(str(tmp_path / "out"), "**/*.dat", str(work), no_program, never).number == 3
    assert sorted(tree(tmp_path / "out")) == ["a.dat", "b.dat", "c.dat"]


@pytest.mark.parametrize("patterns", ["", "*.none", "broken"])
def test_where_nothing_matches_nothing_is_done(tmp_path, work, patterns):
    (work / "broken").symlink_to("none")
    for url in (str(tmp_path / "out"), "scp:host:/x", "rsync:host:/x"):
        assert stage_out(url, patterns, str(work), no_program, never).number == 0
    assert not (tmp_path / "out").exists()


def test_what_a_linked_input_leads_to_is_copied(tmp_path, work):
    (work / "x").symlink_to(write(tmp_path / "parent" / "x"))
    (work / "d").symlink_to(write(tmp_path / "parent" / "d" / "y").parent)
    assert stage_out(str(tmp_path / "out"), "*", str(work), no_program, never).number == 2
    assert tree(tmp_path / "out") == {"x": "x", "d/y": "y"} and not links(tmp_path / "out")


def test_files_there_are_replaced_and_directories_merged(tmp_path, work):
    for name in ("f", "d/new", "d/both"):
        write(work / name, "new")
    for name in ("f", "d/old", "d/both", "mine"):
        write(tmp_path / "out" / name, "old")
    assert stage_out(str(tmp_path / "out"), "*", str(work), no_program, never).number == 2
    assert tree(tmp_path / "out") == {"f": "new", "d/new": "new", "d/both": "new", "d/old": "old", "mine": "old"}


def test_two_files_of_one_name_are_an_error_that_names_both_and_one_matched_twice_is_none(tmp_path, work):
    for name in ("a/x", "b/x"):
        write(work / name)
    with pytest.raises(StagingFailed, match=r"/a/x and .*/b/x have the same name"):
        stage_out(str(tmp_path / "out"), "*/x", str(work), no_program, never)
    assert not (tmp_path / "out").exists()
    assert stage_out(str(tmp_path / "out"), "a/x a/*", str(work), no_program, never).number == 1


def test_a_destination_inside_of_the_workdir_is_not_copied_into_itself(work):
    write(work / "x")
    for _ in range(2):
        assert stage_out("out/deep", "*", str(work), no_program, never).number == 1
    assert tree(work) == {"x": "x", "out/deep/x": "x"}
    assert stage_out(".", "*", str(work), no_program, never).number == 0


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../x", "'"])
def test_only_files_of_the_workdir_are_taken_away(tmp_path, work, pattern):
    with pytest.raises(StagingFailed, match=r"^stage-out to .* failed: the pattern"):
        stage_out(str(tmp_path / "out"), pattern, str(work), no_program, never)


def test_a_destination_that_cannot_be_is_told(tmp_path, work):
    write(work / "x")
    write(tmp_path / "file")
    with pytest.raises(StagingFailed, match=r"^stage-out to .*/file/out failed: Not a directory: .*/file/out"):
        stage_out(str(tmp_path / "file" / "out"), "x", str(work), no_program, never)
    write(tmp_path / "out" / "x" / "y")
    with pytest.raises(StagingFailed, match="Is a directory"):
        stage_out(str(tmp_path / "out"), "x", str(work), no_program, never)
    assert not parts(tmp_path)


def test_a_full_disk_is_told_and_keeps_nothing_of_it(tmp_path, work):
    (work / "big").write_bytes(b"x" * 100_000)
    with small_disk(tmp_path / "disk") as disk:
        write(disk / "big", "old")
        filler = fill(disk)
        with pytest.raises(StagingFailed, match="No space left on device"):
            stage_out(str(disk), "big", str(work), no_program, never)
        assert sorted(os.listdir(disk)) == ["big", filler.name]
        assert (disk / "big").read_text() == "old"
        with pytest.raises(StagingFailed, match="No space left on device"):
            stage_in(str(work / "big"), str(disk), no_program, never)


def test_a_read_only_disk_is_told(tmp_path, work):
    write(work / "x")
    with small_disk(tmp_path / "disk") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for target in (disk, disk / "new"):
            with pytest.raises(StagingFailed, match="Read-only file system"):
                stage_out(str(target), "x", str(work), no_program, never)


@pytest.mark.parametrize("asked", range(3))
def test_nothing_arrives_when_it_is_cancelled_half_way(tmp_path, work, asked):
    for name in "abc":
        write(work / name)
    write(tmp_path / "out" / "a", "old")
    with pytest.raises(StagingFailed, match="interrupted"):
        stage_out(str(tmp_path / "out"), "*", str(work), no_program, after(asked))
    assert tree(tmp_path / "out") == {"a": "old"} and not parts(tmp_path)


def test_many_threads_stage_out_to_one_directory(tmp_path):
    def work_of(number: int) -> None:
        work = tmp_path / str(number)
        for name in ("same/x", f"same/{number}", f"own{number}"):
            write(work / name, "text")
        stage_out(str(tmp_path / "out"), "*", str(work), no_program, never)

    threads = [threading.Thread(target=work_of, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tree(tmp_path / "out")) == 33 and not parts(tmp_path)


# --- other machines ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    with remote_host(tmp_path_factory.mktemp("sshd")) as made:
        yield made


PROGRAMS = ["scp", "rsync"]
FORMS = ["{program}:{host}:{path}", "{program}://{host}{path}", "{program}://{host}:{port}/{path}"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("form", FORMS)
def test_files_come_from_and_go_to_another_machine_by_every_form(tmp_path, work, remote, program, form):
    source = write(tmp_path / "in" / "d" / "x")
    source.chmod(0o640)
    os.utime(source, (1, 1_000_000))
    write(tmp_path / "in" / "d" / "sub" / "y")

    def place(path: Path) -> str:
        return form.format(program=program, host=HOST, port=remote.port, path=path)

    assert stage_in(place(tmp_path / "in" / "d"), str(work), remote.run, never) == 1
    assert tree(work) == {"d/x": "x", "d/sub/y": "y"}
    assert stat.S_IMODE((work / "d" / "x").stat().st_mode) == 0o640
    assert (work / "d" / "x").stat().st_mtime == 1_000_000
    out = tmp_path / "far" / "away"
    assert stage_out(place(out), "d d/x", str(work), remote.run, never).number == 2
    assert tree(out) == {"d/x": "x", "d/sub/y": "y", "x": "x"}
    assert not parts(tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_any_name_comes_and_goes(tmp_path, work, remote, program):
    for name in ODD_NAMES:
        write(tmp_path / "o'n e $x" / "in" / name)
    expected = {name: name for name in ODD_NAMES}
    assert stage_in(f"{program}:{HOST}:{tmp_path}/o'n e $x/in/*", str(work), remote.run, never) == len(ODD_NAMES)
    assert tree(work) == expected
    out = tmp_path / "o'n e $x" / "out\nput ü"
    assert stage_out(f"{program}:{HOST}:{out}", "*", str(work), remote.run, never).number == len(ODD_NAMES)
    assert tree(out) == expected
    (work / "two words").unlink()
    assert stage_in(f"{program}:{HOST}:{tmp_path}/o'n e $x/in/two words", str(work), remote.run, never) == 1
    assert tree(work) == expected and not parts(tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_exact_name_there_is_that_file_and_no_pattern(tmp_path, work, remote, program):
    for name in ("run[1].dat", "run1.dat", "sub[2]/x", "sub2/x"):
        write(tmp_path / "in" / name)
    for name in ("run[1].dat", "sub[2]"):
        assert stage_in(f"{program}:{HOST}:{tmp_path}/in/{name}", str(work), remote.run, never) == 1
    assert tree(work) == {"run[1].dat": "run[1].dat", "sub[2]/x": "x"}
    assert stage_in(f"{program}:{HOST}:{tmp_path}/in/run[0-9].dat", str(work), remote.run, never) == 1
    assert (work / "run1.dat").exists()
    done = stage_out(f"{program}:{HOST}:{tmp_path}/out", "run[1].dat", str(work), remote.run, never)
    assert (done.number, tree(tmp_path / "out")) == (1, {"run[1].dat": "run[1].dat"})


@pytest.mark.parametrize("program", PROGRAMS)
def test_there_files_are_replaced_directories_merged_and_links_followed(tmp_path, work, remote, program):
    for name in ("f", "d/new", "d/e/both", "h/.x"):
        write(work / name, "new")
    (work / "linked").symlink_to(write(tmp_path / "parent" / "x", "new"))
    (work / "broken").symlink_to("none")
    out = tmp_path / "out"
    for name in ("f", "d/old", "d/e/both", "mine"):
        write(out / name, "old")
    write(work / ".hidden", "new")
    assert stage_out(f"{program}:{HOST}:{out}/", "* .hidden", str(work), remote.run, never).number == 5
    assert tree(out) == {
        "f": "new", "d/new": "new", "d/e/both": "new", "h/.x": "new", "linked": "new", ".hidden": "new",
        "d/old": "old", "mine": "old",
    }  # fmt: skip
    assert not links(out) and not parts(out)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_failure_is_told_with_the_programs_words_and_leaves_nothing(tmp_path, work, remote, program):
    write(work / "x")
    before = list(work.iterdir())
    place = f"{program}:{HOST}:{tmp_path}"
    with pytest.raises(StagingFailed, match=rf"{program} ended with code \d+: .*none.*No such file") as caught:
        stage_in(f"{place}/none", str(work), remote.run, never)
    assert "\n" not in str(caught.value)
    with pytest.raises(StagingFailed, match=r"^stage-out to .* failed: ssh ended with code 1: mkdir.*Not a directory"):
        stage_out(f"{place}/work/x/out", "x", str(work), remote.run, never)
    with pytest.raises(StagingFailed, match=r"Could not resolve|not known|failure in name"):
        stage_in(f"{program}:no-such-host.invalid:/x", str(work), remote.run, never)
    with pytest.raises(StagingFailed, match="Connection refused"):
        stage_in(f"{program}://{HOST}:1/x", str(work), remote.run, never)
    assert list(work.iterdir()) == before


def test_a_file_does_not_go_into_a_directory_of_its_name_there(tmp_path, work, remote):
    write(work / "x")
    write(tmp_path / "out" / "x" / "y")
    with pytest.raises(StagingFailed, match="x is a directory there and a file here"):
        stage_out(f"scp:{HOST}:{tmp_path}/out", "x", str(work), remote.run, never)
    assert tree(tmp_path / "out") == {"x/y": "y"} and not parts(tmp_path)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_full_disk_there_is_told(tmp_path, work, remote, program):
    (work / "big").write_bytes(b"x" * 100_000)
    with small_disk(tmp_path / "disk") as disk:
        filler = fill(disk)
        filler.write_bytes(b"x" * (filler.stat().st_size - 40_000))  # room for a directory and a part
        with pytest.raises(StagingFailed, match=rf"{program} ended with code \d+: .*"):
            stage_out(f"{program}:{HOST}:{disk}", "big", str(work), remote.run, never)
        assert os.listdir(disk) == [filler.name]


@pytest.mark.parametrize("program", PROGRAMS)
def test_cancelling_between_programs_leaves_nothing_there(tmp_path, work, remote, program):
    write(work / "x")
    for asked in range(2 if program == "rsync" else 3):
        with pytest.raises(StagingFailed, match="interrupted"):
            stage_out(f"{program}:{HOST}:{tmp_path}/out", "x", str(work), remote.run, after(asked))
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    with pytest.raises(StagingFailed, match="interrupted"):
        stage_in(f"{program}:{HOST}:{tmp_path}/work/x", str(work), remote.run, after(1))
    assert tree(work) == {"x": "x"} and not parts(work)


def test_a_missing_program_is_told(work):
    def missing(argv, directory):
        raise SpawnFailed(f"{argv[0]}: command not found (PATH is /bin)")

    def vanished(argv, directory):
        raise FileNotFoundError(2, "No such file or directory", argv[0])

    write(work / "x")
    with pytest.raises(StagingFailed, match=r"^stage-in from scp:h:x failed: scp cannot be run: scp: command not found"):
        stage_in("scp:h:x", str(work), missing, never)
    with pytest.raises(StagingFailed, match=r"^stage-out to rsync:h:x failed: ssh cannot be run: No such file"):
        stage_out("rsync:h:x", "x", str(work), vanished, never)
    assert tree(work) == {"x": "x"} and not parts(work)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("scp:h:/a b/c*", ["scp", "-B", "-r", "-p", "--", "h:/a\\ b/c*"]),
        ("scp:u@h:a", ["scp", "-B", "-r", "-p", "--", "u@h:./a"]),
        ("scp:h:-a", ["scp", "-B", "-r", "-p", "--", "h:./-a"]),
        ("scp:h:~/a/", ["scp", "-B", "-r", "-p", "--", "h:./a"]),
        ("scp://u@h:22/a%20b", ["scp", "-B", "-r", "-p", "-P", "22", "--", "u@h:/a\\ b"]),
        ("scp://h//a", ["scp", "-B", "-r", "-p", "--", "h:/a"]),
        ("scp://h/~/a", ["scp", "-B", "-r", "-p", "--", "h:./a"]),
        ("scp://h:a", ["scp", "-B", "-r", "-p", "--", "h:./a"]),
        ("scp:u@[::1]:/a", ["scp", "-B", "-r", "-p", "--", "u@[::1]:/a"]),
        ("rsync:h:a b", ["rsync", "-a", "-I", "-L", "-s", "-e", "ssh -o BatchMode=yes", "--", "h:./a b"]),
        ("rsync://h:22/a", ["rsync", "-a", "-I", "-L", "-s", "-e", "ssh -o BatchMode=yes -p 22", "--", "h:/a"]),
        ("rsync:h::module/a", ["rsync", "-a", "-I", "-L", "-s", "-e", "ssh -o BatchMode=yes", "--", "h:./:module/a"]),
    ],
)
def test_the_command_is_written_without_a_prompt_and_no_path_is_an_option(work, url, expected):
    seen = []

    def run(argv, directory):
        assert directory == str(work)
        seen.append(list(argv))
        return 1, ""

    with pytest.raises(StagingFailed, match="it printed nothing"):
        stage_in(url, str(work), run, never)
    assert seen[0][:-1] == expected
    assert seen[0][-1].startswith(f"{work}/{PART}")


def test_a_host_of_colons_reaches_ssh_without_brackets(work):
    seen = []

    def run(argv, directory):
        seen.append(argv)
        return 255, "refused"

    write(work / "x")
    with pytest.raises(StagingFailed, match="ssh ended with code 255: refused"):
        stage_out("rsync://u@[::1]:22/a b", "x", str(work), run, never)
    assert seen == [["ssh", "-o", "BatchMode=yes", "-p", "22", "--", "u@::1", "mkdir -p -- '/a b'"]]


def test_thousands_of_long_paths_go_in_several_commands(work):
    for number in range(1000):
        write(work / f"{number:0200}", "x")
    sizes = []

    def run(argv, directory):
        if argv[0] == "rsync":
            sizes.append(sum(map(len, argv)))
        return 0, ""

    assert stage_out("rsync:h:x", "*", str(work), run, never).number == 1000
    assert len(sizes) > 1 and max(sizes) < 210_000
