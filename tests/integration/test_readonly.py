"""A user who may only read a DB can read it: another user's, on a read-only mount, with and without a launcher at work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import BALSAM, as_reader, balsam, read_only, small_disk
from launching import Bench

from balsam_lite.core.errors import DatabaseBusy
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, insert

READING = (
    ("ls",), ("ls", "--history"), ("job", "ls"), ("queue", "ls", "--json"), ("db", "info"), ("db", "check"), ("which",),
    ("plot", "states"), ("plot", "dag"), ("report", "-o", "-"), ("results", "--format", "csv"),
    ("sql", "SELECT count(*) FROM jobs"),
)  # fmt: skip
WRITING = (
    ("app", "--name", "x", "--executable", "x"),
    ("job", "--name", "x", "--workflow", "w", "--app", "true", "--yes"),
    ("rm", "jobs", "--all", "--force"),
    ("db", "vacuum"),
    ("init", "."),
    ("launcher", "--consume-all", "--job-mode", "serial"),
)


@pytest.fixture(params=["local", "shared"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    made = filled(tmp_path / "db", request.param)
    yield made
    made.close()


def filled(directory: Path, access: str = "local") -> Database:
    made = directories.create(str(directory), access)
    with made.write() as cx:
        apps.add_app(cx, {"name": "true", "executable": "true"})
    insert.add_jobs(made, [{"application": "true", "name": f"job{number}"} for number in range(3)])
    made.close()
    return made


def reader(db: Database, *words: str) -> subprocess.CompletedProcess[str]:
    return as_reader([*BALSAM, "--db", db.directory, *words])


def names(db: Database) -> list[str]:
    done = reader(db, "job", "ls", "--json")
    assert done.returncode == 0, done.stderr
    return [job["name"] for job in json.loads(done.stdout)]


@pytest.mark.parametrize("words", READING, ids=" ".join)
def test_who_cannot_write_a_db_can_read_it(db: Database, words: tuple[str, ...]) -> None:
    with read_only(db.directory):
        before = sorted(os.listdir(db.directory))
        done = reader(db, *words)
        assert (done.returncode, done.stderr) == (0, ""), done
        if words[0] == "ls":
            assert "job2" in done.stdout
        assert sorted(os.listdir(db.directory)) == before


@pytest.mark.parametrize("words", WRITING, ids=" ".join)
def test_who_cannot_write_a_db_hears_that_when_writing(db: Database, words: tuple[str, ...]) -> None:
    with read_only(db.directory):
        done = as_reader([*BALSAM, "--db", db.directory, *(db.directory if word == "." else word for word in words)])
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "cannot be written" in done.stderr or "Permission denied" in done.stderr
        assert names(db) == ["job0", "job1", "job2"]


def test_who_can_only_read_reads_from_python_and_makes_a_backup(db: Database, tmp_path: Path) -> None:
    script = """
from balsam_lite.api import Job
from balsam_lite.core.errors import DatabaseReadOnly
from balsam_lite.launcher.dag import BalsamJob, add_job
print(BalsamJob.objects.count(), Job.objects.count(), BalsamJob.objects.filter(name="job1")[0].state)
try:
    add_job("late", "w", "true")
except DatabaseReadOnly as exc:
    print(exc.message)
print(BalsamJob.objects.count())
"""
    with read_only(db.directory):
        done = as_reader([sys.executable, "-c", script], BALSAM_DB_PATH=db.directory)
        counts, refusal, after = done.stdout.splitlines()
        assert (counts, after) == ("3 3 CREATED", "3")
        assert f"The DB {db.directory} cannot be written" in refusal
        assert reader(db, "db", "backup", str(tmp_path / "backup")).returncode == 0
    (tmp_path / "restored").mkdir()
    shutil.copy(tmp_path / "backup", tmp_path / "restored" / "balsam.sqlite3")
    assert balsam(None, "init", str(tmp_path / "restored"))[0] == 0


def test_a_reader_sees_what_a_launcher_has_just_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.app("sleep", "sleep 60")
    [job] = bench.add([{"application": "sleep", "name": "runs"}])
    bench.launch()
    bench.wait_for(job, "RUNNING")
    with read_only(bench.directory):
        done = reader(bench.db, "ls")
        assert done.returncode == 0 and "RUNNING" in done.stdout
        assert "launcher 1" in reader(bench.db, "db", "check", "--seconds", "0").stdout
    bench.close()


def test_what_a_killed_launcher_left_in_the_wal_is_read_where_it_cannot_be_merged(db: Database, tmp_path: Path) -> None:
    code = """
import os, signal, sys
from balsam_lite.db.engine import directories
from balsam_lite.db.store import insert
db = directories.open_database(sys.argv[1])
with db.session():
    insert.add_jobs(db, [{"name": "late"}])
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, db.directory])
    assert os.stat(f"{db.path}-wal").st_size
    for name in ("balsam.sqlite3-shm", "session.lock"):  # a copy of the directory would not have them
        if os.path.exists(os.path.join(db.directory, name)):
            os.unlink(os.path.join(db.directory, name))
    with read_only(db.directory):
        assert names(db) == ["job0", "job1", "job2", "late"]


@pytest.mark.parametrize("access", ["local", "shared"])
def test_a_db_on_a_read_only_mount_is_read_without_a_trace(tmp_path: Path, access: str) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        made = filled(disk / "db", access)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for words in READING:
            code, _, err = balsam(made.directory, *words)
            assert (code, err) == (0, ""), words
        code, _, err = balsam(made.directory, "app", "--name", "x", "--executable", "x")
        assert code == 1 and "cannot be written" in err


def test_a_copy_that_cannot_be_written_is_read_with_a_warning(tmp_path: Path) -> None:
    made = filled(tmp_path / "db")
    shutil.copytree(made.directory, tmp_path / "copy")
    with read_only(tmp_path / "copy"):
        done = as_reader([*BALSAM, "--db", str(tmp_path / "copy"), "ls"])
        assert done.returncode == 0 and "job2" in done.stdout
        assert "Warning: The DB" in done.stderr and "is a copy" in done.stderr


def test_a_reader_of_a_still_file_notices_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = filled(tmp_path / "db")
    monkeypatch.setattr("balsam_lite.db.engine.wal.is_refused", lambda *_: True)
    monkeypatch.setattr(Database, "_open_as", refusing(Database._open_as))
    still = Database(made.directory, "local")
    with still.read() as cx:
        assert cx.execute("SELECT count(*) FROM job").fetchone() == (3,)
    assert still.changed()
    monkeypatch.undo()
    insert.add_jobs(made, [{"name": "late"}])
    made.close()
    with still.read() as cx:
        assert cx.execute("SELECT count(*) FROM job").fetchone() == (4,)
    still.close()
    monkeypatch.setattr("balsam_lite.db.engine.wal.is_refused", lambda *_: True)
    monkeypatch.setattr(Database, "_open_as", refusing(Database._open_as))
    with pytest.raises(DatabaseBusy, match="was written while it was read"), still.read() as cx:  # noqa: PT012
        cx.execute("SELECT count(*) FROM job").fetchone()
        monkeypatch.undo()
        insert.add_jobs(Database(made.directory, "local"), [{"name": "later"}])
    still.close()


def refusing(open_as):  # type: ignore[no-untyped-def]
    """Let SQLite open the file only with immutable=1."""
    import sqlite3

    def opened(self, path, options, folder=""):  # type: ignore[no-untyped-def]
        if "immutable" not in options:
            raise sqlite3.OperationalError("unable to open database file")
        return open_as(self, path, options, folder)

    return opened
