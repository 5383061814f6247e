"""Sites: their registry, which ones a word means, asking several at once, and `balsam site`."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from elsewhere import ROOT, environment
from helpers import TESTS, Balsam, wait_until
from sshd import HOST, remote_host

from balsam_lite import __version__
from balsam_lite.cli import common, group
from balsam_lite.core import subprocess_run
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import (
    AmbiguousSite,
    BalsamError,
    DatabaseError,
    DuplicateSite,
    InvalidSpec,
    NoDatabase,
    NotABalsamDB,
    SiteUnreachable,
    UnknownSite,
)
from balsam_lite.core.process_table import Holder
from balsam_lite.core.settings import Settings, SettingsWarning
from balsam_lite.db.engine import directories, filesystem, maintenance, registry
from balsam_lite.db.engine.registry import SiteEntry
from balsam_lite.db.store import batch_jobs, insert, leases
from balsam_lite.sites import fanout, lifecycle, selector
from balsam_lite.sites.rpc import remote


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home and a current directory that belong to no DB."""
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def balsam(run_balsam: Balsam) -> Balsam:
    return run_balsam


def make(path: Path, name: str = "") -> SiteEntry:
    """A site."""
    directories.set_up(str(path)).close()
    return registry.add(str(path), name)


def registry_file() -> Path:
    return Path(os.environ["BALSAM_HOME"]) / "databases.json"


def names(entries: list[SiteEntry]) -> list[str]:
    return [entry.name for entry in entries]


class Far:
    """Stands for RemoteSite: what the host `h` says of itself; `dead` does not answer, `slow` takes its time."""

    asked: list[str] = []

    def __init__(self, entry: SiteEntry, timeout_s: float | None = None) -> None:
        self.entry = entry

    def about(self) -> dict[str, Any]:
        self.asked.append(self.entry.host)
        if self.entry.host == "dead":
            raise SiteUnreachable("dead did not answer", hint="Is it up?")
        if self.entry.host == "hangs":
            threading.Event().wait(30)
        if self.entry.host == "breaks":
            raise ZeroDivisionError
        return {"version": "1.2.3", "path": self.entry.path, "db_id": "7f", "is_active": True, "jobs": 7}

    def service(self, verb: str) -> dict[str, Any]:
        self.asked.append(f"{verb} {self.entry.host}")
        if (verb, self.entry.host) == ("check", "misset"):
            raise BalsamError("policy.ini is broken")
        return {"said": [f"{verb} on {self.entry.host}"]}


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> type[Far]:
    """Sites on other hosts without other hosts."""
    monkeypatch.setattr(remote, "RemoteSite", Far)
    monkeypatch.setattr(Far, "asked", [])
    return Far


@pytest.fixture
def hung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteEntry:
    """A site, reached through a link, on a file system that does not answer: no process can open its file."""
    make(tmp_path / "good")
    (tmp_path / "nfs/db").mkdir(parents=True)
    os.mkfifo(tmp_path / "nfs/db/balsam.sqlite3")
    (tmp_path / "link").symlink_to("nfs")
    mounts = {
        "/": filesystem.Mount("/", "ext4", "x"),
        str(tmp_path / "nfs"): filesystem.Mount(str(tmp_path / "nfs"), "nfs4", "x"),
    }
    monkeypatch.setattr(filesystem, "mount_points", lambda table=None: mounts)
    monkeypatch.setattr(registry, "PROBE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(registry, "_found", {})
    return registry.add(str(tmp_path / "link/db"), "hung")


@pytest.mark.parametrize(
    "words", [["job", "rm", "--all", "--yes"], ["job", "ls"], ["queue", "ls"], ["app", "ls"]], ids=" ".join
)
def test_an_empty_site_is_no_other(balsam: Balsam, tmp_path: Path, words: list[str]) -> None:
    make(tmp_path / "a")
    for empty in ("", " "):
        code, _, err = balsam(*words, "--site", empty)
        assert code == 2 and err.startswith("Error: --site must not be empty")


def test_many_sites_are_forgotten_at_once(balsam: Balsam, monkeypatch: pytest.MonkeyPatch) -> None:
    registry_file().parent.mkdir()
    registry_file().write_text(json.dumps([f"/gone/{number}" for number in range(100)]))
    assert registry.hint().endswith(" 29-2 and 70 more: see `balsam site ls`")
    written: list[Any] = []
    write = registry.files.write_json_atomic
    monkeypatch.setattr(registry.files, "write_json_atomic", lambda path, value: (written.append(value), write(path, value)))
    code, out, _ = balsam("site", "forget", "--gone")
    assert (code, len(out.splitlines()), len(written), registry.known(gone=True)) == (0, 100, 1, [])


# --- file systems that do not answer ----------------------------------------------------------------------------------


def test_a_site_on_a_hung_file_system_does_not_keep_the_others_from_answering(balsam: Balsam, hung: SiteEntry) -> None:
    code, out, err = balsam("site", "ls", "--json")
    assert (code, [one["active"] for one in json.loads(out)]) == (0, ["no", "unknown"])
    assert err == f"Warning: site hung could not be read: The file system of {hung.path} does not answer\n"
    code, out, err = balsam("job", "ls", "--site", "all")
    assert code == 0 and "does not answer" in err


def test_few_programs_look_at_many_directories(hung: SiteEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[list[str]] = []

    def run(argv: list[str], **_: Any) -> Any:
        looks.append(argv)
        return SimpleNamespace(was_killed=f"{hung.path}/balsam.sqlite3" in argv)

    monkeypatch.setattr(subprocess_run, "run", run)
    silent = registry.unresponsive([*(str(tmp_path / f"nfs/{number:03}") for number in range(100)), hung.path])
    assert hung.path in silent and len(silent) <= 4
    assert len(looks) <= 32 and sum(len(argv) - 3 for argv in looks) == 101


def test_a_site_on_a_hung_file_system_is_neither_gone_nor_touched(balsam: Balsam, hung: SiteEntry, tmp_path: Path) -> None:
    assert balsam("site", "forget", "--gone")[:2] == (0, "")
    for words in (["rm", "--yes", "hung"], ["mv", "hung", "there"], ["stop", "hung"]):
        code, _, err = balsam("site", *words)
        assert code == 1 and "does not answer" in err, words
    assert registry.at(str(tmp_path / "link/../other")).number == 0
    assert names(registry.known()) == ["good", "hung"]


def test_nothing_on_the_way_is_touched_behind_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a/b", "nfs/c"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "a/b/link").symlink_to("../../nfs/c")
    (tmp_path / "circle").symlink_to("circle")
    mounts = {
        "/": filesystem.Mount("/", "ext4", "x"),
        str(tmp_path / "nfs"): filesystem.Mount(str(tmp_path / "nfs"), "nfs4", "x"),
    }
    touched, readlink = [], os.readlink
    monkeypatch.setattr(os, "readlink", lambda path: touched.append(path) or readlink(path))
    for mount in filesystem.mounts_on_the_way(str(tmp_path / "a/./b/link/d"), mounts):
        if mount.kind == "nfs4":
            break
    assert mount.kind == "nfs4"
    assert str(tmp_path / "a/b/link") in touched and not any("nfs" in path for path in touched)
    assert [mount.kind for mount in filesystem.mounts_on_the_way(str(tmp_path / "circle/x"), mounts)] == ["ext4"]


def test_a_look_at_all_sites_waits_for_no_lock_for_long(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("locked", "other"):
        directories.set_up(str(tmp_path / name), "shared").close()
        registry.add(str(tmp_path / name), name)
    (tmp_path / "locked/session.lock").write_text(json.dumps([*Holder.current(), "x"]))  # which lives
    monkeypatch.setattr(fanout, "PROBE_TIMEOUT_S", 0.2)
    began = time.monotonic()
    code, out, err = balsam("site", "ls", "--json")
    assert time.monotonic() - began < 20
    assert (code, [one["active"] for one in json.loads(out)]) == (0, ["unknown", "no"])
    assert err.startswith("Warning: site locked could not be read:") and "was held by another process" in err


# --- the registry -----------------------------------------------------------------------------------------------------


def test_a_registry_of_old_is_read_and_keeps_its_order(tmp_path: Path) -> None:
    for folder in ("a/db", "b/db", "c d"):
        directories.set_up(str(tmp_path / folder)).close()
    registry_file().parent.mkdir()
    paths = [str(tmp_path / folder) for folder in ("a/db", "b/db", "c d")]
    registry_file().write_text(json.dumps([*paths, "/gone"]))
    assert [(one.number, one.name, one.path) for one in registry.known()] == [
        (1, "db", paths[0]), (2, "db-2", paths[1]), (3, "c_d", paths[2])
    ]  # fmt: skip
    assert names(registry.known(gone=True))[3] == "gone"
    registry.rename(2, "other")
    assert [(one.number, one.name) for one in registry.known(gone=True)] == [(1, "db"), (2, "other"), (3, "c_d"), (4, "gone")]
    assert registry.add("/new").number == 5


@pytest.mark.parametrize(
    "text",
    ["", "{", '"text"', "[1]", '[""]', "{}", '{"sites": 3}', '{"sites": [{"id": 1, "name": "x"}]}', "[" * 100_000,
     '{"sites": [{"id": "1", "name": "x", "path": "/x"}]}', '{"sites": ["x"]}', '{"last": "x", "sites": []}',
     '{"sites": [{"id": 1, "name": "x", "path": "/x"}, {"id": 1, "name": "y", "path": "/y"}]}', '["/x\\u0000y"]',
     '{"sites": [{"id": 1, "name": "x", "path": "/x\\u0000y"}]}', '{"sites": [{"id": 1, "name": "x", "path": "/\\ud800"}]}'],
)  # fmt: skip
def test_a_broken_registry_is_named_and_left_as_it_is(balsam: Balsam, text: str, tmp_path: Path) -> None:
    registry_file().parent.mkdir()
    registry_file().write_text(text)
    for words in (["site", "ls"], ["which", "--list"], ["site", "init", "-n", "new", "new"]):
        code, out, err = balsam(*words)
        assert (code, out) == (1, "")
        assert str(registry_file()) in err
        assert "unexpected" not in err
    assert registry_file().read_text() == text
    assert not (tmp_path / "new").exists()


def test_a_db_can_be_used_and_made_with_a_broken_registry(balsam: Balsam, tmp_path: Path) -> None:
    registry_file().parent.mkdir()
    registry_file().write_text("{")
    code, out, err = balsam("init", "db")
    assert code == 0
    assert str(registry_file()) in err
    assert balsam("which", "--name", "db")[:2] == (0, f"{tmp_path / 'db'}\n")
    assert names(selector.choose(db=str(tmp_path / "db"))) == ["db"]
    assert "databases.json" in balsam("ls")[2]  # outside of any DB the known ones would be listed


def test_what_a_newer_version_wrote_is_kept(tmp_path: Path) -> None:
    registry_file().parent.mkdir()
    site = {"id": 4, "name": "x", "path": "/x", "colour": "red"}
    registry_file().write_text(json.dumps({"last": 6, "sites": [site], "theme": "dark"}))
    registry.rename(4, "y")
    assert registry.add("/z").number == 7
    found = json.loads(registry_file().read_text())
    assert found["theme"] == "dark"
    assert found["sites"][0] == {**site, "name": "y"}


def test_a_number_is_never_used_twice(tmp_path: Path) -> None:
    first = registry.add("/a")
    registry.forget(first.number)
    assert registry.add("/a").number == first.number + 1


@pytest.mark.parametrize("name", ["", " ", "a,b", "a/b", "12", "all", "this", "active", "a\nb", "\x1b[1m", " a", "x" * 256])
def test_a_name_that_the_selector_could_not_find_is_refused(balsam: Balsam, name: str, tmp_path: Path) -> None:
    site = make(tmp_path / "db")
    with pytest.raises(InvalidSpec):
        registry.rename(site.number, name)
    if name:
        assert balsam("site", "init", "-n", name, "new")[0] == 2
        assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["Übung", "two words", "サイト", "a.b-c_d", "x" * 255, "it's", '"', "-n"])
def test_a_name_of_any_language_finds_its_site(name: str, tmp_path: Path) -> None:
    site = make(tmp_path / "db", name)
    make(tmp_path / "other")
    assert selector.choose(name) == [site]
    assert registry.named(name) == site


def test_names_are_unique(tmp_path: Path) -> None:
    make(tmp_path / "a", "one")
    second = make(tmp_path / "b", "two")
    with pytest.raises(DuplicateSite, match="one"):
        registry.rename(second.number, "one")
    with pytest.raises(DuplicateSite):
        registry.add("/c", "two")
    assert make(tmp_path / "sub" / "a").name == "a"
    assert make(tmp_path / "sub2" / "a").name == "a-2"
    assert make(tmp_path / "all").name == "all-2"  # the word means something else


#: Registers and forgets, as fast as it can.
WRITER = """
import sys
from balsam_lite.db.engine import registry
who = sys.argv[1]
for number in range(8):
    registry.add(f"/p/{who}-{number}", f"{who}-{number}")
    gone = registry.add(f"/q/{who}-{number}")
    registry.forget(gone.number)
    assert registry.rename(registry.named(f"{who}-{number}").number, f"{who}.{number}").path == f"/p/{who}-{number}"
"""


def test_of_concurrent_writers_none_loses_anything() -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, who], env=environment()) for who in "abcd"]
    while any(writer.poll() is None for writer in writers):
        registry.known(gone=True)  # a reader never sees half a file
        time.sleep(0.002)
    assert [writer.returncode for writer in writers] == [0] * 4
    found = registry.known(gone=True)
    assert sorted(names(found)) == [f"{who}.{number}" for who in "abcd" for number in range(8)]
    assert len({entry.number for entry in found}) == 32
    assert max(entry.number for entry in found) <= 64


def test_of_two_that_want_a_name_at_once_one_gets_it(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "balsam_lite.cli", "site", "init", "-n", "wanted"]
    both = [
        subprocess.Popen([*words, f"db{n}"], env=environment(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    ends = [(one.communicate()[1], one.returncode) for one in both]
    assert sorted(code for _, code in ends) == [0, 2]
    assert any("A site with this name already exists: wanted" in err for err, _ in ends)
    assert [directories.is_db(str(tmp_path / f"db{n}")) for n in range(2)] == [code == 0 for _, code in ends]


def test_a_directory_is_found_through_a_link(tmp_path: Path) -> None:
    site = make(tmp_path / "db", "mine")
    (tmp_path / "link").symlink_to(tmp_path / "db")
    assert registry.at(str(tmp_path / "link")) == site
    assert selector.choose("link") == [site]


# --- which sites are meant --------------------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> list[SiteEntry]:
    """Sites 1 to 3."""
    return [make(tmp_path / "x" / "alpha", "theta"), make(tmp_path / "x" / "beta", "thetagpu"), make(tmp_path / "gamma")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("all", [1, 2, 3]), ("theta", [1]), ("thetagpu", [2]), ("thet", [1, 2]), ("2", [2]), ("3,1", [1, 3]),
        (" 3 , thetagpu,gamma ", [2, 3]),
        ("x/alpha", [1]), ("./x/beta", [2]), ("/x/", [1, 2]), ("alpha", [1]), ("all,1", [1, 2, 3]),
    ],
)  # fmt: skip
def test_the_words_of_site_mean(three: list[SiteEntry], text: str, found: list[int]) -> None:
    assert [entry.number for entry in selector.choose(text)] == found


@pytest.mark.parametrize("text", ["nowhere", "4", "1,nowhere", ",", "this,nowhere"])
def test_a_word_that_means_nothing_is_an_error_that_lists_the_known(three: list[SiteEntry], text: str) -> None:
    os.environ["BALSAM_DB_PATH"] = three[0].path
    with pytest.raises(UnknownSite) as caught:
        selector.choose(text)
    assert caught.value.hint == "Known are: theta, thetagpu, gamma"
    del os.environ["BALSAM_DB_PATH"]


def test_the_active_db_is_meant_where_nothing_is_said(
    three: list[SiteEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert selector.choose() == three
    monkeypatch.chdir(three[1].path)
    assert selector.choose() == selector.choose("this") == [three[1]] == [selector.choose_one()]
    monkeypatch.setenv("BALSAM_SITE_PATH", three[2].path)
    assert selector.choose() == [three[2]]
    monkeypatch.setenv("BALSAM_DB_PATH", three[0].path)
    assert selector.choose() == [three[0]]
    assert selector.choose(db=three[1].path) == [three[1]]
    with pytest.raises(NotABalsamDB):
        selector.choose(db=str(tmp_path / "none"))


def test_outside_of_any_site_one_must_be_named(three: list[SiteEntry]) -> None:
    for ask in (lambda: selector.choose("this"), selector.choose_one):
        with pytest.raises(NoDatabase) as caught:
            ask()
        assert "BALSAM_SITE_PATH" in caught.value.hint
    with pytest.raises(AmbiguousSite) as ambiguous:
        selector.choose_one("thet")
    assert "thetagpu" in ambiguous.value.hint
    assert selector.choose_one("gpu") == three[1]


def test_without_any_site_there_is_advice() -> None:
    with pytest.raises(NoDatabase, match="No Balsam DB is active"):
        selector.choose()
    with pytest.raises(UnknownSite) as caught:
        selector.choose("all")
    assert "balsam site init" in caught.value.hint


def test_an_unregistered_db_is_meant_by_its_path(tmp_path: Path) -> None:
    directories.set_up(str(tmp_path / "a,b")).close()
    assert selector.choose("a,b") == [SiteEntry(0, "a,b", str(tmp_path / "a,b"))]


def test_two_sites_of_one_name_are_told_apart_by_number() -> None:
    registry_file().parent.mkdir()
    sites = [{"id": n, "name": "same", "path": f"/p{n}"} for n in (1, 2)]
    registry_file().write_text(json.dumps({"last": 2, "sites": sites}))
    for find in (selector.choose, selector.find, registry.named):
        with pytest.raises(AmbiguousSite, match="same") as caught:
            find("same")
        assert "/p2" in caught.value.hint
    assert [entry.path for entry in selector.choose("2")] == ["/p2"]


def test_an_argument_is_no_part_of_a_name(three: list[SiteEntry]) -> None:
    assert selector.find("theta") == selector.find("1") == selector.find("x/alpha") == three[0]
    with pytest.raises(UnknownSite):
        selector.find("thet")


def test_active_asks_all_and_warns_of_those_that_do_not_answer(three: list[SiteEntry], far: type[Far]) -> None:
    with pytest.raises(UnknownSite, match="No site is active"):
        selector.choose("active")
    there = registry.add("/far", "far", "h")
    registry.add("/far", "silent", "dead")
    beats(three[1], age_s=60)
    with pytest.warns(SettingsWarning, match="site silent could not be read: dead did not answer"):
        assert selector.choose("active") == [three[1], there]


def beats(site: SiteEntry, age_s: float) -> None:
    """Make a service on another host send its last heartbeat this long ago."""
    lease(site, "service", age_s, Holder("elsewhere", "ns", 1, "1"))


def lease(site: SiteEntry, kind: str, age_s: float, holder: Holder) -> None:
    db = directories.open_database(site.path)
    with db.write() as cx:
        leases.open_lease(cx, kind, holder, "", SystemClock.now_us() - int(age_s * 1e6))
    db.close()


#: What takes long to import, or what costs more than finding a site may.
HEAVY = {"peewee", "jinja2", "psutil", "logging", "pathlib", "dataclasses", "subprocess", "filelock", "tempfile"}


def test_finding_a_site_imports_nothing_that_takes_long() -> None:
    code = f"import sys, balsam_lite.sites.selector, balsam_lite.sites.fanout; print({HEAVY} & set(sys.modules))"
    words = [sys.executable, "-S", "-c", code]
    done = subprocess.run(words, env={**environment(), "PYTHONNOUSERSITE": "1"}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


# --- asking several ---------------------------------------------------------------------------------------------------


def test_sites_are_asked_at_once_and_answer_in_order(three: list[SiteEntry], far: type[Far]) -> None:
    entries = [SiteEntry(9, "b", "/b", "h"), three[2], SiteEntry(8, "bad", "/x", "dead"), three[0]]
    answers = fanout.query_all(entries, lambda site: site.about()["path"])
    assert answers.found == [(entries[0], "/b"), (three[2], three[2].path), (three[0], three[0].path)]
    assert [(entry.name, str(exc)) for entry, exc in answers.failed] == [("bad", "dead did not answer\nIs it up?")]


def test_one_that_hangs_is_given_up_and_the_others_answer(three: list[SiteEntry], far: type[Far]) -> None:
    began = time.monotonic()
    answers = fanout.query_all([SiteEntry(9, "b", "/b", "hangs"), three[0]], lambda site: site.about()["jobs"], patience_s=0.2)
    assert time.monotonic() - began < 15
    assert answers.found == [(three[0], 0)]
    assert "hangs did not answer within 0.2 s" in str(answers.failed[0][1])


#: Its last thread would go on for half a minute.
HANGING = """
import sys
sys.path[:0] = sys.argv[1:]
from balsam_lite.db.engine.registry import SiteEntry
from balsam_lite.sites import fanout; from balsam_lite.sites.rpc import remote
from test_sites import Far
remote.RemoteSite = Far
assert fanout.query_all([SiteEntry(1, "x", "/x", "hangs")], lambda site: site.about(), 0.1).failed
"""


def test_one_that_hangs_does_not_keep_the_process_from_ending() -> None:
    words = [sys.executable, "-c", HANGING, str(TESTS / "integration"), str(TESTS)]
    assert subprocess.run(words, env=environment(), timeout=15).returncode == 0


def test_an_error_of_the_program_is_not_taken_for_the_sites(three: list[SiteEntry], far: type[Far]) -> None:
    for entry in (SiteEntry(9, "b", "/b", "breaks"), three[0]):
        with pytest.raises(ZeroDivisionError):
            fanout.query_all([entry], lambda site: 1 // (0 if not site.entry.is_remote else site.about()["jobs"]))


def test_a_site_whose_directory_is_gone_is_an_error_with_advice(tmp_path: Path) -> None:
    with pytest.raises(NotABalsamDB) as caught:
        fanout.open_site(SiteEntry(5, "x", str(tmp_path / "none")))
    assert "balsam site forget x" in caught.value.hint


@click.command(cls=group.BalsamCommand)
@common.site_option
def number_of_jobs(site: str) -> None:
    for entry, jobs in common.ask_sites(site, lambda site: int(site.about()["jobs"])):
        click.echo(f"{entry.name} {jobs}")


@pytest.fixture
def asking(balsam: Balsam, monkeypatch: pytest.MonkeyPatch) -> Balsam:
    """The command above as a part of `balsam`."""
    monkeypatch.setattr(group.LazyGroup, "get_command", lambda *_: number_of_jobs)
    return lambda *words: balsam("plot", *words)


def test_a_command_says_which_sites_could_not_be_read(asking: Balsam, three: list[SiteEntry], far: type[Far]) -> None:
    registry.add("/far", "far", "h")
    registry.add("/far", "silent", "dead")
    registry.add("/nowhere/at/all", "lost")
    code, out, err = asking("--site", "all")
    assert (code, out) == (0, "theta 0\nthetagpu 0\ngamma 0\nfar 7\n")
    assert err == (
        "Warning: 2 of 6 sites did not answer: silent (dead did not answer), "
        "lost (No Balsam DB is in /nowhere/at/all any more). See `balsam site ls -v`.\n"
    )


def test_verbose_says_why_each_site_could_not_be_read(balsam: Balsam, three: list[SiteEntry]) -> None:
    registry.add("/nowhere/at/all", "lost")
    registry.add("/nowhere/else", "gone")
    code, _, err = balsam("app", "ls", "--site", "all", "-v")
    assert code == 0
    assert err.splitlines()[:2] == [
        "Warning: site lost could not be read: No Balsam DB is in /nowhere/at/all any more",
        "Warning: site gone could not be read: No Balsam DB is in /nowhere/else any more",
    ]


def test_a_command_fails_where_no_site_could_be_read(asking: Balsam, far: type[Far]) -> None:
    registry.add("/far", "silent", "dead")
    assert asking("-s", "silent") == (1, "", "Error: dead did not answer\nIs it up?\n")
    registry.add("/gone", "lost")
    code, out, err = asking("-s", "all")
    assert (code, out) == (1, "")
    assert err.count("Warning: ") == 1
    assert err.endswith("Error: None of the 2 sites could be read.\n")


def test_the_db_of_the_command_line_is_the_default(balsam: Balsam, asking: Balsam, three: list[SiteEntry]) -> None:
    assert balsam("--db", three[1].path, "plot") == (0, "thetagpu 0\n", "")
    assert balsam("--db", three[1].path, "plot", "-s", "theta")[1] == "theta 0\n"


# --- balsam site: making ----------------------------------------------------------------------------------------------


def test_init_makes_a_site_with_a_name(balsam: Balsam, tmp_path: Path) -> None:
    assert balsam("site", "init", "-n", "tutorial", "thetagpu") == (
        0,
        f"New Balsam site set up at {tmp_path / 'thetagpu'}\n",
        "",
    )
    assert registry.known() == [SiteEntry(1, "tutorial", str(tmp_path / "thetagpu"))]
    assert {"policy.ini", "job-templates"} <= set(os.listdir("thetagpu"))
    code, out, err = balsam("site", "init", "-n", "other", "thetagpu")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'thetagpu'} already exists" in err
    assert names(registry.known()) == ["tutorial"]


def test_init_without_a_terminal_takes_the_directory_for_the_name(balsam: Balsam) -> None:
    assert balsam("site", "init", "some/where/mine")[0] == 0
    assert names(registry.known()) == ["mine"]


class Terminal(io.StringIO):
    """A user who types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("typed", "name"), [("mine\n", "mine"), ("\n", socket.gethostname())])
def test_init_asks_for_the_name_at_a_terminal(balsam: Balsam, monkeypatch: pytest.MonkeyPatch, typed: str, name: str) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert balsam("site", "init", "db")[0] == 0
    assert names(registry.known()) == [name]


def test_no_answer_at_the_terminal_makes_nothing(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    assert balsam("site", "init", "db")[0] != 0
    assert not (tmp_path / "db").exists()


def test_a_name_that_is_taken_makes_nothing(balsam: Balsam, tmp_path: Path) -> None:
    make(tmp_path / "a", "one")
    code, out, err = balsam("site", "init", "-n", "one", "b")
    assert (code, out) == (2, "")
    assert "A site with this name already exists: one" in err
    assert not (tmp_path / "b").exists()


def test_a_site_that_cannot_be_made_leaves_its_name_free(balsam: Balsam, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert balsam("site", "init", "-n", "one", "file/db")[0] == 1
    assert registry.known(gone=True) == []
    lost = registry.add(str(tmp_path / "file"), "lost")
    assert balsam("site", "init", "-n", "one", "file")[0] == 2
    assert registry.known(gone=True) == [lost]


def test_init_of_old_registers_under_the_name_of_the_directory(balsam: Balsam, tmp_path: Path) -> None:
    for folder in ("a/db", "b/db"):
        assert balsam("init", folder)[0] == 0
    assert names(registry.known()) == ["db", "db-2"]
    balsam("site", "rename", "a/db", "first")
    assert balsam("init", "a/db")[0] == 0  # brings it up to date, and leaves its name
    assert names(registry.known()) == ["first", "db-2"]
    assert balsam("which", "--name", "first")[:2] == (0, f"{tmp_path / 'a/db'}\n")
    assert json.loads(balsam("which", "--list", "--json")[1])[1] == {"path": str(tmp_path / "b/db"), "access": "local"}


# --- balsam site ls ---------------------------------------------------------------------------------------------------


def test_ls_prints_a_table(balsam: Balsam, tmp_path: Path, far: type[Far]) -> None:
    one, two = make(tmp_path / "one"), make(tmp_path / "two", "サ")
    beats(one, age_s=119)
    beats(two, age_s=121)
    registry.add("/" + "long/" * 10 + "path", "x" * 30, "h")
    registry.add("/far", "silent", "dead")
    registry.add("/gone", "lost")
    code, out, err = balsam("site", "ls")
    assert code == 0
    assert err == "Warning: site silent could not be read: dead did not answer\n"

    width = max(map(len, (one.path, two.path, "ssh://h/" + "long/" * 10 + "path")))
    assert [line for line in out.splitlines() if "---" not in line] == [
        f"id  name{' ' * 26}  {'path':{width}}  active",
        f"1   one{' ' * 27}  {one.path:{width}}  yes",
        f"2   サ{' ' * 28}  {two.path:{width}}  unknown",  # one look cannot tell
        f"3   {'x' * 30}  {'ssh://h/' + 'long/' * 10 + 'path':{width}}  yes",
        f"4   silent{' ' * 24}  {'ssh://dead/far':{width}}  unknown",
        f"5   lost{' ' * 26}  {'/gone':{width}}  gone",
    ]


def test_ls_without_any_site_says_how_to_make_one(balsam: Balsam) -> None:
    code, out, err = balsam("site", "ls")
    assert (code, out) == (0, "")
    assert "balsam site init -n NAME DIR" in err
    assert balsam("site", "ls", "--json") == (0, "[]\n", "")


def test_ls_as_json_has_all_of_it(balsam: Balsam, tmp_path: Path, far: type[Far]) -> None:
    make(tmp_path / "one")
    registry.add("/far", "far", "h")
    registry.add("/far", "silent", "dead")
    registry.add("/gone", "lost")
    unknown = {"jobs": None, "version": None, "error": None}
    assert json.loads(balsam("site", "ls", "--json")[1]) == [
        {**unknown, "id": 1, "name": "one", "path": str(tmp_path / "one"), "active": "no", "jobs": 0, "version": __version__},
        {**unknown, "id": 2, "name": "far", "path": "ssh://h/far", "active": "yes", "jobs": 7, "version": "1.2.3"},
        {**unknown, "id": 3, "name": "silent", "path": "ssh://dead/far", "active": "unknown", "error": "dead did not answer"},
        {**unknown, "id": 4, "name": "lost", "path": "/gone", "active": "gone"},
    ]
    out = balsam("site", "ls", "-v")[1]
    assert 'name: far\npath: ssh://h/far\nactive: "yes"\njobs: 7\n' in out
    assert out.count("---\n") == 4


def test_ls_does_not_wait_for_one_that_hangs(
    balsam: Balsam, tmp_path: Path, far: type[Far], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "one")
    registry.add("/far", "silent", "hangs")
    assert fanout.PROBE_TIMEOUT_S <= 4
    monkeypatch.setattr(fanout, "PROBE_TIMEOUT_S", 0.2)
    began = time.monotonic()
    code, out, err = balsam("site", "ls")
    assert time.monotonic() - began < 15
    assert (code, [line.split()[-1] for line in out.splitlines()[2:]]) == (0, ["no", "unknown"])
    assert "hangs did not answer" in err


def test_a_db_that_cannot_be_read_does_not_hide_the_others(balsam: Balsam, tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    (tmp_path / "one" / "balsam.sqlite3").write_text("not a database, but long enough to be taken for one " * 100)
    code, out, err = balsam("site", "ls")
    assert (code, [line.split()[-1] for line in out.splitlines()[2:]]) == (0, ["unknown", "no"])
    assert "Warning: site one could not be read: " in err


# --- balsam site: changing --------------------------------------------------------------------------------------------


def test_a_site_is_renamed_by_path_name_or_number(balsam: Balsam, tmp_path: Path) -> None:
    make(tmp_path / "db")
    for word, name in (("db", "b"), (str(tmp_path / "db"), "two words"), ("two words", "d"), ("1", "e")):
        assert balsam("site", "rename", word, name) == (0, f"Renamed site 1 to {name}\n", "")
    assert balsam("site", "rename", "none", "x")[0] == 3
    directories.set_up(str(tmp_path / "unknown")).close()
    assert balsam("site", "rename", "unknown", "known")[0] == 0
    assert names(registry.known()) == ["e", "known"]


def add_job(balsam: Balsam, site: Path, *words: str) -> dict[str, Any]:
    """A job of an app that is made for it; its row."""
    balsam("--db", str(site), "app", "--name", "say", "--executable", f"{site}/run.sh")
    balsam("--db", str(site), "job", "--name", "j", "--workflow", "w", "--application", "say", *words, "--yes")
    found: dict[str, Any] = json.loads(balsam("--db", str(site), "ls", "--json")[1])[-1]
    return found


def test_a_site_that_is_moved_takes_its_jobs_along(balsam: Balsam, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new place"
    make(old, "mine")
    row = add_job(
        balsam, old, "--user-workdir", str(old / "own"), "--url-in", str(old / "in" / "*"), "--url-out", str(old / "out")
    )
    assert row["user_workdir"] == str(old / "own")
    (old / "run.sh").write_text("mine")
    (old / "data" / "w").mkdir()
    (old / "data" / "w" / "inside").symlink_to(old / "data" / "target")
    (old / "data" / "w" / "outside").symlink_to("/etc/passwd")
    code, out, err = balsam("site", "mv", "mine", str(new))
    assert (code, out) == (0, f"Moved site to new path {new}\n")
    assert err == "Warning: These applications name the old directory: say. `balsam modify` changes them.\n"
    assert not old.exists()
    assert registry.known(gone=True) == [SiteEntry(1, "mine", str(new))]
    moved = json.loads(balsam("--db", str(new), "ls", "--json")[1])[0]
    assert (moved["job_id"], moved["user_workdir"]) == (row["job_id"], str(new / "own"))
    assert (moved["stage_in_url"], moved["stage_out_url"]) == (str(new / "in" / "*"), str(new / "out"))
    assert os.readlink(new / "data" / "w" / "inside") == str(new / "data" / "target")
    assert os.readlink(new / "data" / "w" / "outside") == "/etc/passwd"
    assert (new / "run.sh").read_text() == "mine"


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first directory that is to be renamed would have to go to another file system; which one that was."""
    rename, refused = os.rename, []

    def refuse(source: str, target: str) -> None:
        if not refused:
            refused.append(source)
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    return refused


def test_a_move_over_file_systems_copies_everything(balsam: Balsam, tmp_path: Path, other_device: list[str]) -> None:
    make(tmp_path / "old")
    add_job(balsam, tmp_path / "old", "--user-workdir", str(tmp_path / "old" / "own"))
    (tmp_path / "old" / "data" / "file").write_text("mine")
    assert balsam("site", "mv", "old", "new")[0] == 0
    assert other_device == [str(tmp_path / "old")]
    [job] = json.loads(balsam("--db", "new", "ls", "--json")[1])
    assert job["user_workdir"] == str(tmp_path / "new" / "own")
    assert (tmp_path / "new" / "data" / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "new"]


class Adder:
    """Adds jobs to a DB, one after the other, until that is refused."""

    def __init__(self, directory: Path) -> None:
        self._db = directories.open_database(str(directory))
        self.added, self.refused = 0, ""
        self._thread = threading.Thread(target=self._add, daemon=True)
        self._thread.start()
        wait_until(lambda: self.added > 3, 10)

    def _add(self) -> None:
        while not self.refused:
            try:
                insert.add_jobs(self._db, [{"name": str(self.added)}])
                self.added += 1
                time.sleep(0.002)  # the lock of a shared DB is not fair
            except DatabaseError as exc:
                self.refused = str(exc)
        self._db.close()

    def end(self) -> str:
        """What stopped it."""
        self._thread.join(20)
        return self.refused


@pytest.mark.parametrize("access", ["local", "shared"])
@pytest.mark.parametrize("with_copy", [False, True])
def test_no_job_is_lost_that_others_add_during_a_move(
    balsam: Balsam, tmp_path: Path, access: str, with_copy: bool, request: pytest.FixtureRequest
) -> None:
    old = tmp_path / "old"
    directories.create(str(old), access).close()
    adder = Adder(old)
    if with_copy:
        request.getfixturevalue("other_device")
    assert balsam("site", "mv", "old", "new") == (0, f"Moved site to new path {tmp_path / 'new'}\n", "")
    assert f"The DB {old} is not there any more" in adder.end()
    assert len(json.loads(balsam("--db", "new", "ls", "--json")[1])) == adder.added
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "new"]
    assert not (tmp_path / "new" / "session.lock").exists()


@pytest.mark.parametrize("access", ["local", "shared"])
def test_who_adds_jobs_hears_that_the_site_is_removed(balsam: Balsam, tmp_path: Path, access: str) -> None:
    directories.create(str(tmp_path / "db"), access).close()
    adder = Adder(tmp_path / "db")
    assert balsam("site", "rm", "-f", "db") == (0, f"Deleted site {tmp_path / 'db'}\n", "")
    assert f"The DB {tmp_path / 'db'} is not there any more" in adder.end()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]


def test_a_launcher_that_begins_after_all_was_found_free_keeps_the_site(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_device: list[str]
) -> None:
    lease(make(tmp_path / "db"), "launcher", 0, Holder.current())
    monkeypatch.setattr(lifecycle, "refuse_busy", lambda *_: None)
    for words in (["mv", "db", "new"], ["rm", "-f", "db"]):
        code, out, err = balsam("site", *words)
        assert (code, out) == (75, "")
        assert "is in use and cannot be" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db", "home"]
    assert (tmp_path / "db" / "data").is_dir()


def test_an_old_db_that_cannot_be_given_up_stays_the_one(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_device: list[str]
) -> None:
    make(tmp_path / "old")
    unlink = os.unlink

    def refuse(path: Any, **more: Any) -> None:
        if str(path) == str(tmp_path / "old" / "balsam.sqlite3"):
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, **more)

    monkeypatch.setattr(os, "unlink", refuse)
    code, _, err = balsam("site", "mv", "old", "new")
    assert code == 1
    assert "cannot be removed: Operation not permitted" in err
    assert registry.known(gone=True) == [SiteEntry(1, "old", str(tmp_path / "old"))]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "old"]


def fail(*_: object, **options: object) -> None:
    raise BalsamError("the disk is full")


def test_no_site_is_moved_to_a_path_with_a_line_break(balsam: Balsam, tmp_path: Path) -> None:
    balsam("site", "init", "-n", "here", str(tmp_path / "here"))
    code, _, err = balsam("site", "mv", "here", f"{tmp_path}/two\nlines")
    assert code == 2 and "line break" in err
    assert (tmp_path / "here" / "balsam.sqlite3").exists()


def test_a_move_that_fails_leaves_all_as_it_was(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "old")
    row = add_job(balsam, tmp_path / "old", "--user-workdir", str(tmp_path / "old" / "own"))
    (tmp_path / "old" / "data" / "link").symlink_to(tmp_path / "old" / "data" / "target")
    (tmp_path / "there").mkdir()
    for target in ("there", "old/inside", "no/such/place"):
        assert balsam("site", "mv", "old", target)[0] != 0
    monkeypatch.setattr(registry, "move", fail)
    assert "the disk is full" in balsam("site", "mv", "old", "new")[2]
    assert registry.known() == [SiteEntry(1, "old", str(tmp_path / "old"))]
    assert json.loads(balsam("--db", "old", "ls", "--json")[1]) == [row]
    assert os.readlink(tmp_path / "old" / "data" / "link") == str(tmp_path / "old" / "data" / "target")
    assert not (tmp_path / "new").exists()


def test_a_copy_that_fails_leaves_all_as_it_was(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_device: list[str]
) -> None:
    make(tmp_path / "old")
    row = add_job(balsam, tmp_path / "old", "--user-workdir", str(tmp_path / "old" / "own"))
    for module, name in ((registry, "move"), (maintenance, "backup")):
        other_device.clear()
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            assert "the disk is full" in balsam("site", "mv", "old", "new")[2]
        assert json.loads(balsam("--db", "old", "ls", "--json")[1]) == [row]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "old"]


@pytest.mark.parametrize("is_removed", [False, True])
def test_ctrl_c_leaves_one_whole_db_when_the_copied_one_is_removed(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_device: list[str], is_removed: bool
) -> None:
    make(tmp_path / "old")
    row = add_job(balsam, tmp_path / "old")
    unlink = os.unlink

    def interrupted(path: str, **more: Any) -> None:
        if path != str(tmp_path / "old/balsam.sqlite3"):
            unlink(path, **more)
            return
        if is_removed:
            unlink(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", interrupted)
        assert balsam("site", "mv", "old", "new")[0] == 130
    where = tmp_path / ("new" if is_removed else "old")
    assert registry.known() == [SiteEntry(1, "old", str(where))]
    assert json.loads(balsam("--db", str(where), "ls", "--json")[1])[0]["job_id"] == row["job_id"]


def test_a_move_that_was_killed_goes_on_when_it_is_said_again(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "old")
    add_job(balsam, tmp_path / "old", "--user-workdir", str(tmp_path / "old/own"))
    (tmp_path / "old/data/link").symlink_to(tmp_path / "old/data/target")
    rename = lifecycle._is_renamed

    def killed(source: str, target: str) -> bool:
        rename(source, target)
        raise SystemExit(137)  # no block that cleans up surrounds it, as if it were SIGKILL

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "_is_renamed", killed)
        with pytest.raises(SystemExit):
            balsam("site", "mv", "old", "new")
    (tmp_path / "new/data/link.moved").symlink_to(tmp_path / "new/data/target")  # as a kill between two calls leaves it
    assert "repeat a `balsam site mv` that was interrupted" in balsam("job", "ls", "--site", "old")[2]
    assert balsam("site", "mv", "old", "elsewhere")[0] != 0
    assert balsam("site", "mv", "old", "new")[0] == 0
    assert registry.known() == [SiteEntry(1, "old", str(tmp_path / "new"))]
    [job] = json.loads(balsam("--db", "new", "ls", "--json")[1])
    assert job["user_workdir"] == str(tmp_path / "new/own")
    assert os.readlink(tmp_path / "new/data/link") == str(tmp_path / "new/data/target")
    assert os.listdir(tmp_path / "new/data") == ["link"]
    assert not (tmp_path / "new/moving.json").exists()


def test_a_move_leaves_alone_what_lies_where_it_would_copy(balsam: Balsam, tmp_path: Path, other_device: list[str]) -> None:
    make(tmp_path / "old")
    (tmp_path / "new.part").mkdir()
    (tmp_path / "new.part/precious").write_text("mine")
    code, _, err = balsam("site", "mv", "old", "new")
    assert code == 2 and f"{tmp_path}/new.part exists" in err
    assert (tmp_path / "new.part/precious").read_text() == "mine"
    assert names(registry.known()) == ["old"]


def test_a_site_in_use_is_neither_moved_nor_removed(balsam: Balsam, tmp_path: Path) -> None:
    site = make(tmp_path / "db")
    lease(site, "launcher", 0, Holder.current())
    for words in (["mv", "db", "new"], ["rm", "-f", "db"]):
        code, out, err = balsam("site", *words)
        assert (code, out) == (75, "")
        assert f"launcher 1 (pid {os.getpid()} on " in err
    assert directories.is_db(site.path)
    assert not (tmp_path / "new").exists()


def test_a_site_behind_a_link_is_not_taken_apart(balsam: Balsam, tmp_path: Path) -> None:
    directories.set_up(str(tmp_path / "real")).close()
    (tmp_path / "link").symlink_to("real")
    registry.add(str(tmp_path / "link"), "mine")
    for words in (["rm", "-f", "mine"], ["mv", "mine", "new"], ["rm", "-f", "real"]):
        code, _, err = balsam("site", *words)
        assert code == 2
        assert f"is a link to {tmp_path / 'real'}" in err
    balsam("site", "forget", "mine")
    assert balsam("site", "mv", "real", "new")[0] == 0
    assert names(registry.known()) == ["new"]


def test_a_launcher_that_is_dead_keeps_no_site(balsam: Balsam, tmp_path: Path) -> None:
    lease(make(tmp_path / "db"), "launcher", 0, Holder.current()._replace(started="0"))
    assert balsam("site", "rm", "-f", "db")[0] == 0


def test_a_batch_job_in_the_queue_keeps_its_site(balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = make(tmp_path / "db")
    db = directories.open_database(site.path)
    with db.write() as cx:
        batch_jobs.add(cx, {"scheduler": "another scheduler"}, SystemClock.now_us())
    db.close()
    code, _, err = balsam("site", "mv", "db", "new")
    assert code == 75
    assert "batch job 1 (" in err


def test_rm_asks_and_removes_what_is_balsams(
    balsam: Balsam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "db", "mine")
    add_job(balsam, tmp_path / "db")
    balsam("init", str(tmp_path / "db"))  # a policy and templates
    (tmp_path / "db" / "settings.json").write_text("{}")
    (tmp_path / "db" / "run.sh").write_text("")
    code, out, err = balsam("site", "rm", "mine")
    assert code == 2
    assert "--yes" in err
    asked: list[str] = []
    monkeypatch.setattr(common, "confirm", lambda question, _: asked.append(question))
    monkeypatch.setattr("balsam_lite.cli.site.confirm", lambda question, _: asked.append(question))
    assert balsam("site", "rm", "mine") == (0, "", "")
    assert asked == ["Do you really want to destroy mine? This will wipe out 1 job inside!"]
    assert directories.is_db(str(tmp_path / "db"))
    code, out, err = balsam("site", "rm", "--yes", "mine")
    assert (code, out) == (0, f"Deleted site {tmp_path / 'db'}\n")
    assert err == "Left there, because it is not Balsam's: run.sh\n"
    assert os.listdir(tmp_path / "db") == ["run.sh"]
    assert registry.known(gone=True) == []


def test_rm_takes_the_directory_where_nothing_else_is_in_it(balsam: Balsam, tmp_path: Path) -> None:
    make(tmp_path / "db")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("")
    (tmp_path / "db" / "data" / "link").symlink_to(tmp_path / "precious")
    assert balsam("site", "rm", "-f", "db") == (0, f"Deleted site {tmp_path / 'db'}\n", "")
    assert not (tmp_path / "db").exists()
    assert (tmp_path / "precious" / "file").exists()


def test_rm_takes_nothing_that_is_no_db(balsam: Balsam, tmp_path: Path) -> None:
    (tmp_path / "precious" / "data").mkdir(parents=True)
    assert balsam("site", "rm", "-f", "precious")[0] == 3
    assert balsam("site", "rm", "-f", "preci")[0] == 3
    site = registry.add(str(tmp_path / "precious"), "gone")
    code, _, err = balsam("site", "rm", "--yes", "gone")
    assert code == 1
    assert "--force forgets the site" in err
    assert registry.known(gone=True) == [site]
    assert balsam("site", "rm", "--force", "gone")[0] == 0
    assert registry.known(gone=True) == []
    assert (tmp_path / "precious" / "data").exists()


def test_sites_can_be_forgotten_without_harm(balsam: Balsam, tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    registry.add("/gone/1")
    registry.add("/gone/2")
    assert balsam("site", "forget", "a", "none")[0] == 3
    assert balsam("site", "forget")[0] == 2
    assert balsam("site", "forget", "a") == (0, "Forgot site a\n", "")
    assert balsam("site", "forget", "--gone") == (0, "Forgot site 1-2\nForgot site 2-2\n", "")
    assert names(registry.known(gone=True)) == ["b"]
    assert directories.is_db(str(tmp_path / "a"))


# --- other hosts ------------------------------------------------------------------------------------------------------


def test_add_tries_a_host_before_it_is_registered(balsam: Balsam, far: type[Far]) -> None:
    added = balsam("site", "add", "cluster", "ssh://h/home/me/db", "--balsam", "/opt/balsam")
    assert added == (0, "Added site 1, cluster: ssh://h/home/me/db (balsam_lite 1.2.3, 7 jobs)\n", "")
    assert registry.known() == [SiteEntry(1, "cluster", "/home/me/db", "h", "/opt/balsam")]
    assert balsam("site", "add", "other", "ssh://dead/db") == (1, "", "Error: dead did not answer\nIs it up?\n")
    assert len(registry.known()) == 1
    code, out, err = balsam("site", "add", "other", "ssh://dead/db", "--force")
    assert (code, out) == (0, "Added site 2, other: ssh://dead/db (not reached yet)\n")
    assert "dead did not answer" in err


def test_add_warns_of_a_db_that_is_known_by_another_address(balsam: Balsam, far: type[Far]) -> None:
    registry.add("/db", "first", "h")
    registry.add("/other", "silent", "dead")
    code, out, err = balsam("site", "add", "second", "ssh://alias/db")
    assert (code, len(registry.known())) == (0, 3)
    assert "This is the DB of site first (ssh://h/db), or a copy of it" in err and "silent" not in err


def test_a_db_keeps_what_tells_it_from_others(tmp_path: Path, three: list[SiteEntry]) -> None:
    found = [directories.identity(entry.path) for entry in three]
    assert all(found) and len(set(found)) == 3
    directories.set_up(three[0].path, "shared").close()
    assert directories.identity(three[0].path) == found[0]
    os.symlink(three[1].path, tmp_path / "link")
    assert directories.identity(str(tmp_path / "link")) == found[1]
    Path(three[2].path, directories.MARKER).write_text('{"access": "local"}')  # as of older versions
    assert directories.identity(three[2].path) == ""
    directories.set_up(three[2].path).close()
    assert directories.identity(three[2].path)


def test_a_name_or_an_address_that_cannot_be_is_refused_before_anybody_is_asked(
    balsam: Balsam, far: type[Far], tmp_path: Path
) -> None:
    make(tmp_path / "db", "taken")
    for name, address in (("taken", "ssh://h/db"), ("all", "ssh://h/db"), ("x", "ssh://-oProxyCommand=true/db"), ("x", "/db")):
        assert balsam("site", "add", name, address, "--force")[0] == 2
    assert far.asked == []
    assert len(registry.known()) == 1


def test_a_site_on_another_host_is_only_forgotten(balsam: Balsam, far: type[Far]) -> None:
    registry.add("/db", "cluster", "h")
    assert balsam("site", "mv", "cluster", "/new")[0] == 2
    assert balsam("site", "rm", "ssh://h/db") == (0, "Forgot site cluster; nothing was changed on h.\n", "")
    assert registry.known() == []


def test_a_site_on_another_host_cannot_be_activated(balsam: Balsam) -> None:
    registry.add("/db", "cluster", "h")
    assert balsam("which", "--name", "cluster") == (
        2, "", "Error: cluster is on h and cannot be the active DB here.\nUse it with --site cluster.\n"
    )  # fmt: skip
    assert balsam("which", "--list")[1] == ""


def test_the_service_of_another_host_is_started_there(balsam: Balsam, far: type[Far]) -> None:
    registry.add("/db", "cluster", "h")
    for verb in ("start", "stop"):
        code, out, err = balsam("site", verb, "cluster")
        assert (code, out) == (0, f"{verb} on h\n")
        assert "ssh://h/db" in err
    assert balsam("site", "sync", "cluster")[:2] == (0, "Updated site.\nstart on h\n")


@pytest.fixture
def real_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An sshd on this host; gives the command `balsam` there, which has a home of its own."""
    with remote_host(tmp_path) as there, tempfile.TemporaryDirectory(dir="/tmp", prefix="t") as sockets:
        monkeypatch.setenv("PATH", there.path)
        monkeypatch.setattr(tempfile, "tempdir", sockets)
        command = tmp_path / "balsam there"
        home = shlex.quote(str(tmp_path / "home there"))
        line = f"BALSAM_HOME={home} PYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m balsam_lite.cli"
        command.write_text(f'#!/bin/sh\n{line} "$@"\n')
        command.chmod(0o755)
        yield str(command)
        for path in Path(sockets).glob("balsam-ssh-*/*"):
            subprocess.run(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "x"], capture_output=True, timeout=10)


def test_sites_behind_a_real_ssh_are_listed_within_five_seconds_of_one_that_is_silent(
    balsam: Balsam, tmp_path: Path, real_host: str
) -> None:
    make(tmp_path / "here")
    directories.set_up(str(tmp_path / "far db")).close()
    code, out, err = balsam("site", "add", "far", f"ssh://{HOST}{tmp_path}/far db", "--balsam", real_host)
    assert (code, err) == (0, "")
    assert out == f"Added site 2, far: ssh://{HOST}{tmp_path}/far db (balsam_lite {__version__}, 0 jobs)\n"
    assert balsam("site", "add", "none", f"ssh://{HOST}{tmp_path}/none", "--balsam", real_host)[0] == 1
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        registry.add("/db", "silent", f"127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        code, out, err = balsam("site", "ls")
        assert time.monotonic() - began < 20
    assert (code, [line.split()[-1] for line in out.splitlines()[2:]]) == (0, ["no", "no", "unknown"])
    assert err.startswith("Warning: site silent could not be read: ")


# --- the service, settings, login -------------------------------------------------------------------------------------


def test_a_site_is_active_from_start_to_stop(balsam: Balsam, tmp_path: Path) -> None:
    balsam("site", "init", "-n", "mine", "db")

    def active() -> str:
        return str(json.loads(balsam("site", "ls", "--json")[1])[0]["active"])

    try:
        code, out, err = balsam("site", "start", "mine")
        assert (code, err) == (0, f"Starting Balsam site at {tmp_path / 'db'}\n")
        started = re.match(r"Started Balsam site daemon \[pid (\d+)\] on \S+\n", out)
        assert started
        assert active() == "yes"
        code, _, err = balsam("site", "start", "db")
        assert code == 1
        assert f"[PID {started[1]}]" in err
        assert balsam("site", "mv", "mine", "new")[0] == 75
        code, out, err = balsam("site", "sync", "mine")
        assert (code, err) == (0, f"Restarting Site {tmp_path / 'db'}\n")
        again = re.match(r"Updated site.\nStarted Balsam site daemon \[pid (\d+)\] on \S+\n", out)
        assert again
        assert again[1] != started[1]
    finally:
        code, out, err = balsam("site", "stop", "mine")
    assert code == 0
    assert "Site daemon shutdown OK" in out
    assert active() == "no"


def test_sync_stops_no_service_on_another_host_that_could_not_start_again(balsam: Balsam, far: type[Far]) -> None:
    registry.add("/db", "cluster", "misset")
    code, out, err = balsam("site", "sync", "cluster")
    assert (code, out) == (1, "") and "policy.ini is broken" in err
    assert far.asked == ["check misset"]


def test_sync_names_what_is_wrong_with_the_settings(balsam: Balsam, tmp_path: Path) -> None:
    balsam("site", "init", "db")
    (tmp_path / "db" / "settings.json").write_text('{"SERVICE_PERIOD": "x"}')
    code, out, err = balsam("site", "sync", "db")
    assert (code, out) == (2, "")
    assert "SERVICE_PERIOD must be a whole number" in err


def test_the_sample_of_settings_can_be_used_and_changes_nothing(balsam: Balsam, tmp_path: Path) -> None:
    sample = balsam("site", "sample-settings")[1]
    (tmp_path / "settings.json").write_text(sample)
    assert Settings.load(str(tmp_path), {"BALSAM_HOME": "/nowhere"}) == Settings()


@pytest.mark.parametrize("words", [[], ["-f"], ["--force", "--url", "https://example.org"], ["-u", "x"]])
def test_login_answers_that_none_is_needed(balsam: Balsam, words: list[str]) -> None:
    assert balsam("login", *words) == (0, "no login needed: there is no server, and each site is a file\n", "")
