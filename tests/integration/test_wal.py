"""The -wal or -shm of a local DB is deleted or replaced while programs have it open: nothing that was committed is lost."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import balsam
from helpers import wait_until
from launching import Bench

from balsam_lite.core.errors import DatabaseGone
from balsam_lite.db.engine import directories, wal
from balsam_lite.db.engine.connection import Database

VICTIMS = ["wal", "shm", "both", "wal by a copy", "shm by a copy", "both by copies"]


def separate(directory: Path | str, victims: str) -> None:
    """Delete, or replace by a copy."""
    for ending in ("wal", "shm"):
        if ending in victims or "both" in victims:
            path = Path(directory, f"balsam.sqlite3-{ending}")
            if "cop" in victims:
                shutil.copyfile(path, f"{path}.copy")
                os.replace(f"{path}.copy", path)
            else:
                path.unlink()


def plain(directory: str, statement: str) -> list[tuple[object, ...]]:
    """What a reader without any of our code finds, in a copy so that it repairs nothing."""
    code = (
        "import sqlite3, sys; cx = sqlite3.connect(sys.argv[1] + '/balsam.sqlite3');"
        "print([cx.execute('PRAGMA integrity_check').fetchall() == [('ok',)], *cx.execute(sys.argv[2])])"
    )
    argv = [sys.executable, "-c", code, directory, statement]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    sound, *rows = eval(done.stdout)
    assert sound
    return list(rows)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = directories.create(str(tmp_path / "db"))
    made.busy_timeout_s = 1
    with made.write() as cx:
        cx.execute("CREATE TABLE counter (n INTEGER)")
    yield made
    made.close()


def add(db: Database, number: int) -> None:
    with db.write() as cx:
        cx.execute("INSERT INTO counter VALUES (?)", (number,))


def numbers(db: Database) -> list[int]:
    with db.read() as cx:
        return [row[0] for row in cx.execute("SELECT n FROM counter ORDER BY n")]


ADD = """
import sys
from balsam_lite.db.engine import directories
from balsam_lite.core.settings import Settings
db = directories.open_database(sys.argv[1])
for n in map(int, sys.argv[2:]):
    with db.write() as cx:
        cx.execute("INSERT INTO counter VALUES (?)", (n,))
"""


def elsewhere(db: Database, *numbers: int, **environ: str) -> subprocess.CompletedProcess[str]:
    """Another process that writes these numbers."""
    argv = [sys.executable, "-c", ADD, db.directory, *map(str, numbers)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env={**os.environ, **environ})


@pytest.mark.parametrize("has_commands", [False, True], ids=["alone", "with commands"])
@pytest.mark.parametrize("victims", VICTIMS)
def test_no_job_that_ran_is_created_again_after_the_wal_was_separated_and_the_launcher_killed(tmp_path, victims, has_commands):
    bench = Bench(tmp_path)
    try:
        bench.app("nap", "sleep 0.02")
        bench.add({"name": str(n), "application": "nap"} for n in range(2000))
        launcher = bench.launch("--nodes", "2")
        wait_until(lambda: bench.states().get("JOB_FINISHED", 0) >= 20)
        finished = bench.states()["JOB_FINISHED"]
        bench.db.close()  # else this process would save it
        separate(bench.directory, victims)
        if has_commands:
            for name in "abc":
                code, _, err = balsam(bench.directory, "job", "--name", name, "--workflow", "w", "--app", "nap", "--yes")
                assert code == 0, err

        log = Path(bench.directory, "log")
        wait_until(lambda: any("has been saved" in path.read_text() for path in log.iterdir() if path.is_file()))
        wait_until(lambda: None not in wal.sides_of(bench.db.path))
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
        rows = dict(plain(bench.directory, "SELECT state, count(*) FROM job GROUP BY state"))  # type: ignore[arg-type]
        assert rows["JOB_FINISHED"] >= finished
        made = (
            len(os.listdir(Path(bench.directory, "data", "default")))
            if Path(bench.directory, "data", "default").exists()
            else 0
        )
        assert made <= sum(number for state, number in rows.items() if state != "CREATED")
        assert sum(rows.values()) == 2003 if has_commands else 2000
    finally:
        bench.close()


@pytest.mark.parametrize("victims", VICTIMS)
def test_two_programs_that_have_it_open_go_on_with_all_that_both_wrote(db, victims):
    code = f"import sys; {ADD}\nprint('open', flush=True)\nsys.stdin.readline()\n" + (
        "with db.write() as cx:\n    cx.execute('INSERT INTO counter VALUES (3)')\n"
        "print('done', flush=True)\nsys.stdin.readline()"
    )
    argv = [sys.executable, "-c", code, db.directory, "1"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.readline() == "open\n"
        add(db, 2)
        separate(db.directory, victims)
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.stdout.readline() == "done\n"
        add(db, 4)
        done = elsewhere(db, 5)
        assert done.returncode == 0, done.stderr
        assert numbers(db) == [1, 2, 3, 4, 5]
        other.kill()
    assert numbers(db) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("victims", VICTIMS)
def test_closing_it_saves_what_was_committed(db, victims):
    add(db, 1)
    separate(db.directory, victims)
    db.close()
    assert plain(db.directory, "SELECT n FROM counter") == [(1,)]


@pytest.mark.parametrize("victims", ["wal", "shm", "both"])
def test_another_program_does_not_build_on_the_file_without_its_wal(db, victims):
    add(db, 1)
    separate(db.directory, victims)
    done = elsewhere(db, 2, BALSAM_BUSY_TIMEOUT_S="0.3")
    assert done.returncode == 1
    assert f"was removed, while process {os.getpid()} has it open" in done.stderr
    assert numbers(db) == [1]
    assert elsewhere(db, 2).returncode == 0
    assert numbers(db) == [1, 2]


def test_what_a_stranger_wrote_to_the_new_wal_is_kept_and_the_loss_is_told(db):
    add(db, 1)
    separate(db.directory, "both by copies")
    add_one = (
        "import sqlite3, sys, os; cx = sqlite3.connect(sys.argv[1]); cx.execute('INSERT INTO counter VALUES (2)'); cx.commit()"
    )
    subprocess.run([sys.executable, "-c", f"{add_one}; os._exit(0)", db.path], check=True, timeout=60)
    with pytest.raises(DatabaseGone, match="another program has written to the new one"):
        add(db, 3)
    assert numbers(db) == [1, 2]
    assert plain(db.directory, "SELECT n FROM counter ORDER BY n") == [(1,), (2,)]


def test_threads_of_one_program_all_go_on_after_the_shm_was_removed(db):
    add(db, 1)
    go, done = threading.Event(), threading.Event()

    def other() -> None:
        add(db, 2)
        done.set()
        assert go.wait(20)
        add(db, 3)
        db.close()

    thread = threading.Thread(target=other)
    thread.start()
    assert done.wait(20)
    separate(db.directory, "both")
    db.busy_timeout_s = 20
    go.set()
    add(db, 4)
    thread.join(30)
    assert numbers(db) == [1, 2, 3, 4]
    assert elsewhere(db, 5).returncode == 0
    assert numbers(db) == [1, 2, 3, 4, 5]


def test_a_long_transaction_outlasts_the_loss_and_its_commit_is_saved(db):
    with db.write() as cx:
        cx.execute("INSERT INTO counter VALUES (1)")
        separate(db.directory, "both")
        cx.execute("INSERT INTO counter VALUES (2)")
    assert numbers(db) == [1, 2]
    assert plain(db.directory, "SELECT n FROM counter ORDER BY n") == [(1,), (2,)]


def test_the_wal_that_was_put_back_has_the_rights_of_the_file(db):
    add(db, 1)
    os.chmod(db.path, 0o640)
    separate(db.directory, "wal")
    add(db, 2)
    assert os.stat(f"{db.path}-wal").st_mode & 0o777 == 0o640


def test_only_a_process_that_has_the_db_open_counts_as_its_holder(db):
    add(db, 1)
    assert wal.holder_of(db.path) is None  # this process does not ask about itself
    code = "import sqlite3, sys; cx = sqlite3.connect(sys.argv[1]); cx.execute('SELECT * FROM counter'); print(1, flush=True)"
    code += "; input()"
    with subprocess.Popen([sys.executable, "-c", code, db.path], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert wal.holder_of(db.path) == other.pid
        other.kill()
    assert wal.holder_of(db.path) is None
    assert sqlite3.sqlite_version_info >= (3, 31)


def test_an_idle_db_is_opened_without_the_table_of_locks(db, monkeypatch):
    """Reading /proc/locks takes the first process 10 to 20 ms."""
    db.close()
    assert wal.sides_of(db.path) == (None, None)
    monkeypatch.setattr(wal, "holder_of", lambda path: pytest.fail("It was read"))
    with db.read() as cx:
        assert cx.execute("SELECT count(*) FROM job").fetchone() == (0,)
    db.close()


def test_on_a_shared_file_system_a_session_has_all_in_the_file_when_it_ends_without_its_wal(tmp_path):
    db = directories.create(str(tmp_path / "shared"), "shared")
    with db.session():
        with db.write() as cx:
            cx.execute("CREATE TABLE note (text)")
            cx.execute("INSERT INTO note VALUES ('committed')")
        os.unlink(f"{db.path}-wal")
        with db.write() as cx:
            cx.execute("INSERT INTO note VALUES ('and more')")
    assert not os.path.exists(f"{db.path}-wal")
    copy = sqlite3.connect(db.path)
    assert copy.execute("SELECT text FROM note").fetchall() == [("committed",), ("and more",)]
    copy.close()
