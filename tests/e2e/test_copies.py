"""A copy of a DB is recognised and trusts none of the original's launchers; a DB that was moved goes on."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import balsam, small_disk
from launching import Bench

from balsam_lite.core.errors import DatabaseGone
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import binding, directories, schema
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import batch_jobs, counters, leases, runs

ELSEWHERE = Holder("elsewhere", "pid:[1]", 7, "9")


def of(directory: Path | str, key: str) -> str:
    """What the DB in that directory says of itself."""
    db = directories.open_database(str(directory))
    with db.read() as cx:
        found = cx.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]
    db.close()
    return str(found)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Make a DB with a RUNNING job that a live launcher has, one that is prepared by it, and one that waits."""
    bench = Bench(tmp_path)
    bench.app("true", "true")
    running, prepared, _ = bench.add([{"application": "true", "name": name} for name in ("running", "prepared", "waits")])
    with bench.db.write() as cx:
        lease = leases.open_lease(cx, "launcher", ELSEWHERE, "", 4_000_000_000_000_000)  # its clock is far ahead
        cx.execute("UPDATE job SET lease = ? WHERE id IN (?, ?)", (lease, running, prepared))
        cx.execute("UPDATE job SET state = 'RUNNING', attempt = 1 WHERE id = ?", (running,))
        runs.begin(cx, lease, [(running, 1, "elsewhere", "")])
        counters.recount(cx)
        launch = batch_jobs.add(cx, {"scheduler": "slurm"}, 1)
        cx.execute("UPDATE job SET queued_launch_id = ? WHERE name = 'waits'", (launch,))
    bench.db.close()
    yield bench
    bench.close()


def is_free_of_the_original(directory: Path, original: Bench) -> None:
    assert of(directory, "id") != of(original.directory, "id")
    assert directories.identity(str(directory)) not in ("", directories.identity(original.directory))
    db = directories.open_database(str(directory))
    with db.read() as cx:
        assert leases.open_leases(cx) == []
        assert "copy" in cx.execute("SELECT end_reason FROM lease").fetchone()[0]
        rows = cx.execute("SELECT name, state, lease, restarts, queued_launch_id FROM job ORDER BY id").fetchall()
        assert rows == [
            ("running", "RESTART_READY", None, 0, None),
            ("prepared", "CREATED", None, 0, None),
            ("waits", "CREATED", None, 0, None),
        ]
        assert cx.execute("SELECT attempt, cause FROM run WHERE ended IS NOT NULL").fetchall() == [(1, "unknown")]
        message = cx.execute("SELECT message FROM event WHERE to_state = 'RESTART_READY'").fetchone()[0]
        assert "copy" in message and "launcher 1 (pid 7 on elsewhere)" in message
        assert cx.execute("SELECT count(*) FROM batch_job WHERE ended IS NULL").fetchone() == (0,)
    db.close()
    code, out, _ = balsam(directory, "db", "check", "--seconds", "0")
    assert code == 0, out
    with original.db.read() as cx:
        assert [lease.holder for lease in leases.open_leases(cx)] == [ELSEWHERE]  # which has lost nothing


def test_db_check_takes_no_copy_and_no_older_or_busy_db_for_damaged(bench: Bench, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bench.directory, copy)
    code, out, err = balsam(copy, "db", "check", "--seconds", "0")
    assert code == 1 and "wrong" not in out and f"The DB {copy} is a copy" in err and "salvage" not in err
    other = sqlite3.connect(bench.db.path, isolation_level=None)
    other.execute("PRAGMA user_version = 4")
    code, out, err = balsam(bench.directory, "db", "check", "--seconds", "0")
    assert code == 1 and "wrong" not in out and "schema version 4" in err
    other.execute(f"PRAGMA user_version = {schema.VERSION}")
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    code, out, err = balsam(bench.directory, "db", "check", "--seconds", "0", BALSAM_BUSY_TIMEOUT_S="0.2")
    other.close()
    assert code == 75 and "wrong" not in out and "busy" in err


def test_a_copied_directory_is_refused_until_init_makes_it_a_db_of_its_own(bench: Bench, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bench.directory, copy)
    for words in (
        ("ls",),
        ("app", "--name", "x", "--executable", "x"),
        ("db", "backup", str(tmp_path / "b")),
        ("launcher", "--consume-all", "--job-mode", "serial"),
    ):
        code, out, err = balsam(copy, *words)
        assert code == 1 and out == "" and f"The DB {copy} is a copy: its file is not {bench.db.path} on" in err
        assert f"balsam init {copy}" in err
    code, out, err = balsam(None, "init", str(copy))
    assert code == 0 and "2 job(s) of 1 launcher(s) or service(s), 1 batch job(s)" in err
    is_free_of_the_original(copy, bench)
    assert balsam(None, "init", str(copy))[2] == ""  # once
    assert subprocess.run(["cmp", "-s", bench.db.path, str(copy / "balsam.sqlite3")]).returncode == 1
    assert balsam(bench.directory, "ls")[0] == 0


@pytest.mark.parametrize("access", ["local", "shared"])
def test_a_backup_beside_its_original_frees_what_it_believed(bench: Bench, tmp_path: Path, access: str) -> None:
    directories.create(bench.directory, access).close()
    copy = tmp_path / "restored"
    copy.mkdir()
    assert balsam(bench.directory, "db", "backup", str(copy / "balsam.sqlite3"))[0] == 0
    assert balsam(None, "init", "--access", access, str(copy))[0] == 0
    is_free_of_the_original(copy, bench)


def test_a_backup_put_in_the_place_of_its_original_needs_init(bench: Bench, tmp_path: Path) -> None:
    before = of(bench.directory, "id")
    assert balsam(bench.directory, "db", "backup", str(tmp_path / "backup"))[0] == 0
    for put in (shutil.copy, os.replace):  # into the old file, and as a new one
        put(tmp_path / "backup", bench.db.path)
        code, _, err = balsam(bench.directory, "ls")
        assert code == 1 and "a backup of" in err
        assert put is os.replace or (tmp_path / "backup").exists()
    assert balsam(None, "init", bench.directory)[0] == 0
    assert of(bench.directory, "id") != before
    with bench.db.read() as cx:  # its batch jobs are still its own
        assert cx.execute("SELECT ended FROM batch_job").fetchall() == [(None,)]
        assert cx.execute("SELECT queued_launch_id FROM job WHERE name = 'waits'").fetchone() == (1,)


def test_a_db_that_was_renamed_goes_on_with_its_launchers(bench: Bench, tmp_path: Path) -> None:
    before = of(bench.directory, "id")
    os.rename(bench.directory, tmp_path / "renamed")
    assert of(tmp_path / "renamed", "id") == before
    code, _, err = balsam(None, "init", str(tmp_path / "renamed"))
    assert (code, err) == (0, "")
    assert of(tmp_path / "renamed", "id") == before


def test_a_db_moved_to_another_file_system_goes_on_and_stays_the_same(bench: Bench, tmp_path: Path) -> None:
    before = of(bench.directory, "id")
    with small_disk(tmp_path / "disk", "4m") as disk:
        there = disk / "db"
        subprocess.run(["mv", bench.directory, there], check=True)
        assert of(there, "id") == before
        assert balsam(there, "ls")[0] == 0
        directories.create(bench.directory).close()  # another one, where it was
        assert of(there, "id") == before
        code, _, err = balsam(None, "init", str(there))
        assert (code, err) == (0, "")
        assert of(there, "id") == before and str(there) in of(there, "file")
        db = directories.open_database(str(there))
        with db.read() as cx:
            assert [lease.holder for lease in leases.open_leases(cx)] == [ELSEWHERE]
        db.close()


def test_site_mv_keeps_a_db_what_it_is(tmp_path: Path) -> None:
    db = directories.create(str(tmp_path / "db"))
    db.close()
    before = of(db.directory, "id")
    with small_disk(tmp_path / "disk", "4m") as disk:
        for source, target in ((tmp_path / "db", tmp_path / "near"), (tmp_path / "near", disk / "far")):
            code, _, err = balsam(None, "site", "mv", str(source), str(target))
            assert code == 0, err
            assert of(target, "id") == before and str(target) in of(target, "file")
            assert balsam(target, "ls")[0] == 0


def test_a_new_db_that_has_the_inode_of_a_moved_one_does_not_make_that_a_copy(bench: Bench, tmp_path: Path) -> None:
    copy = tmp_path / "moved"
    shutil.copytree(bench.directory, copy)
    with bench.db.write() as cx:
        binding.renew_id(cx)
    bench.db.close()
    assert balsam(copy, "ls")[0] == 0


def test_a_shared_db_is_never_refused_for_the_number_of_its_file(bench: Bench, tmp_path: Path) -> None:
    shared = directories.create(bench.directory, "shared")
    with shared.write() as cx:
        binding.record(cx, shared.path, 12345)  # fuse gives a file another number with each mount
    directories.create(bench.directory).close()
    with shared.read() as cx:
        assert [lease.holder for lease in leases.open_leases(cx)] == [ELSEWHERE]
    copy = tmp_path / "copy"
    shutil.copytree(bench.directory, copy)
    code, _, err = balsam(None, "init", str(copy))
    assert code == 0 and "It is a copy" in err
    is_free_of_the_original(copy, bench)


def test_a_process_that_runs_hears_when_a_copy_takes_the_place_of_its_db(bench: Bench, tmp_path: Path) -> None:
    with bench.db.read():
        pass
    shutil.copy(bench.db.path, tmp_path / "copy")
    os.replace(tmp_path / "copy", bench.db.path)
    with pytest.raises(DatabaseGone), bench.db.read():
        pass
    bench.db.close()


def test_a_db_restored_in_its_place_goes_on(bench: Bench, tmp_path: Path) -> None:
    before = of(bench.directory, "id")
    subprocess.run(["tar", "-C", bench.directory, "-cf", tmp_path / "db.tar", "."], check=True)
    shutil.rmtree(bench.directory)
    os.mkdir(bench.directory)
    occupied = (tmp_path / "occupied").open("w")  # so that the inode is another one
    subprocess.run(["tar", "-C", bench.directory, "-xf", tmp_path / "db.tar"], check=True)
    occupied.close()
    code, _, err = balsam(bench.directory, "ls")
    assert (code, err) == (0, "")
    assert of(bench.directory, "id") == before
    with Database(bench.directory, "local").read() as cx:
        assert binding.judge(cx, bench.db.path) == binding.SAME


def test_a_copy_of_a_db_that_was_moved_is_one_too(bench: Bench, tmp_path: Path) -> None:
    os.rename(bench.directory, tmp_path / "moved")
    assert balsam(tmp_path / "moved", "ls")[0] == 0
    shutil.copytree(tmp_path / "moved", tmp_path / "copy")
    code, _, err = balsam(tmp_path / "copy", "ls")
    assert code == 1 and f"is a copy: its file is not {tmp_path}/moved" in err
    assert balsam(tmp_path / "moved", "ls")[0] == 0


def test_a_copy_with_the_same_inode_is_known_as_one(bench: Bench, tmp_path: Path) -> None:
    """A snapshot of btrfs has the inodes of what it was made of, and another device."""
    copy = tmp_path / "copy"
    shutil.copytree(bench.directory, copy)
    path = str(copy / "balsam.sqlite3")
    cx = sqlite3.connect(path)
    with cx:
        bound = binding.recorded(cx)
        assert bound is not None
        cx.execute("UPDATE meta SET value = ? WHERE key = 'file'", (json.dumps(bound._replace(inode=os.stat(path).st_ino)),))
    cx.close()
    assert balsam(copy, "ls")[0] == 1


def test_a_db_may_be_opened_at_the_place_of_a_bind_mount(bench: Bench, tmp_path: Path) -> None:
    before = of(bench.directory, "file")
    place = tmp_path / "place"
    place.mkdir()
    mounted = subprocess.run(["mount", "--bind", bench.directory, place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"root alone can mount here: {mounted.stderr}")
    try:
        assert balsam(place, "ls")[0] == 0
        assert of(place, "file") == before
    finally:
        subprocess.run(["umount", place], check=True)
