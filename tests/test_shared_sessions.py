"""Shared DBs: one process at a time opens the file, whoever dies is succeeded, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from elsewhere import balsam, python
from helpers import wait_until
from launching import Bench

from balsam_lite.db import location, queries, session
from balsam_lite.db.connection import Database
from balsam_lite.db.session import SessionLock
from balsam_lite.errors import DatabaseBusy, DatabaseReadOnly

#: From here on filelock sees that a holder on this host is dead.
_PROVES_DEATH = tuple(map(int, version("filelock").split(".")[:2])) >= (3, 29)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = location.create(str(tmp_path / "db"), "shared")
    with made.write() as cx:
        cx.execute("CREATE TABLE counter (n INTEGER)")
        cx.execute("INSERT INTO counter VALUES (0)")
    yield made
    made.close()


@pytest.fixture
def lock_file(db: Database) -> Path:
    return Path(db.directory, session.FILE_NAME)


def counter(db: Database) -> int:
    with db.read() as cx:
        assert cx.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return int(cx.execute("SELECT n FROM counter").fetchone()[0])


def no_lock_is_left(db: Database) -> bool:
    return not [name for name in os.listdir(db.directory) if "lock" in name]


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# --- many at once -----------------------------------------------------------------------------------------------------


def test_that_eight_processes_lose_no_write(db: Database) -> None:
    workers = [python("for _ in range(50): add_one()", db.directory) for _ in range(8)]
    for worker in workers:
        worker.communicate(timeout=120)
    assert [worker.returncode for worker in workers] == [0] * 8
    assert counter(db) == 400
    assert no_lock_is_left(db)


def test_that_nobody_sees_half_of_a_session(db: Database) -> None:
    """A session is one go: others see its first transaction only together with its last."""
    with python("with db.session():\n add_one(); say('half'); sys.stdin.readline(); add_one()", db.directory) as other:
        assert line_of(other) == "half"
        seen: list[int] = []
        reader = threading.Thread(target=lambda: seen.append(counter(db)))
        reader.start()
        reader.join(0.3)
        assert seen == []
        other.communicate("\n")
        reader.join(30)
    assert seen == [2]


def test_that_a_session_shares_no_memory(db: Database) -> None:
    """Memory is what two hosts do not share: https://sqlite.org/wal.html#noshm."""
    with db.session(), db.write() as cx:
        cx.execute("UPDATE counter SET n = 1")
        assert os.path.exists(f"{db.path}-wal")
        assert not os.path.exists(f"{db.path}-shm")


def test_that_two_launchers_and_commands_run_each_job_once(tmp_path: Path) -> None:
    location.create(str(tmp_path / "db"), "shared").close()
    bench = Bench(tmp_path)
    try:
        bench.shell("once", "echo x >> runs")
        jobs = bench.add([{"application": "once", "node_packing_count": 4} for _ in range(40)])
        launchers = [bench.launch("--nodes", "2", "--persistent") for _ in range(2)]
        for words in (["ls", "--by-states"], ["ls", "--json"], ["make_dummies", "2"]):
            assert balsam(bench.directory, *words)[0] == 0
        wait_until(lambda: bench.states() == {"JOB_FINISHED": 42}, 60)
        for launcher in launchers:
            launcher.send_signal(signal.SIGTERM)
        assert [launcher.wait(30) for launcher in launchers] == [0, 0]
        assert all(bench.path(job, "runs").read_text() == "x\n" for job in jobs)
        assert all(bench.job(job)["attempt"] == 1 for job in jobs)
        assert no_lock_is_left(bench.db)
    finally:
        bench.close()


def test_that_an_idle_launcher_leaves_a_shared_db(tmp_path: Path) -> None:
    location.create(str(tmp_path / "db"), "shared").close()
    bench = Bench(tmp_path)
    try:
        bench.app("quick", "true")
        bench.add([{"application": "quick"}])
        assert bench.run(timeout=8) == 0
        assert bench.states() == {"JOB_FINISHED": 1}
    finally:
        bench.close()


# --- the dead ---------------------------------------------------------------------------------------------------------


def test_that_a_holder_killed_in_the_middle_is_succeeded_and_its_half_write_is_gone(db: Database) -> None:
    half = "with db.write() as cx:\n  cx.execute('UPDATE counter SET n = 99')\n  say('in'); time.sleep(60)"
    with python(f"with db.session():\n add_one()\n {half}", db.directory) as other:
        assert line_of(other) == "in"
        other.kill()
    successor = Database(db.directory, "shared", busy_timeout_s=20, expiry_s=120 if _PROVES_DEATH else 1)
    started = time.monotonic()
    assert counter(successor) == 1
    assert time.monotonic() - started < 10
    assert no_lock_is_left(db)


def test_that_many_killed_holders_leave_the_file_whole(db: Database) -> None:
    """Killed at moments of chance: the counter is what was committed, which the dead have told or had no time to tell."""
    told = 0
    for number in range(6):
        with python("while True: add_one(); say('one')", db.directory) as other:
            assert line_of(other) == "one"
            told += 1
            for _ in range(number):
                told += line_of(other) == "one"
            other.kill()
            assert other.stdout is not None
            told += other.stdout.read().count("one")
    successor = Database(db.directory, "shared", busy_timeout_s=20, expiry_s=120 if _PROVES_DEATH else 1)
    assert told <= counter(successor) <= told + 6


@pytest.mark.parametrize("content", ["4242\nanother-host\n", "4242\nanother-host\n99\n", ""])
def test_that_a_dead_holder_on_another_host_is_succeeded_after_the_expiry_and_not_before(
    db: Database, lock_file: Path, content: str
) -> None:
    lock_file.write_text(content)
    patient = Database(db.directory, "shared", busy_timeout_s=20, expiry_s=1)
    started = time.monotonic()
    assert counter(patient) == 0
    assert 1 <= time.monotonic() - started < 5
    assert no_lock_is_left(db)


def test_that_a_holder_on_another_host_that_still_touches_its_lock_keeps_it(db: Database, lock_file: Path) -> None:
    lock_file.write_text("4242\nanother-host\n")
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(0.1):
            os.utime(lock_file)

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        with pytest.raises(DatabaseBusy, match="held by another process"):
            counter(Database(db.directory, "shared", busy_timeout_s=2, expiry_s=0.5))
        assert lock_file.read_text() == "4242\nanother-host\n"
    finally:
        ended.set()
        toucher.join()


def test_that_a_dead_holder_is_waited_for_even_if_the_expiry_is_longer_than_the_patience(db: Database, lock_file: Path) -> None:
    """As it is by default. Else each command would give up before, and the next begin to wait anew."""
    lock_file.write_text("4242\nanother-host\n")
    assert counter(Database(db.directory, "shared", busy_timeout_s=0.6, expiry_s=1.2)) == 0


def test_that_a_long_session_is_not_taken_for_dead(db: Database) -> None:
    """Its holder touches the lock; others, whose host cannot see it, believe that."""
    held = Database(db.directory, "shared", expiry_s=0.4)
    lock = Path(db.directory, session.FILE_NAME)
    with held.session():
        touched = {os.lstat(lock).st_mtime_ns}
        wait_until(lambda: touched.add(os.lstat(lock).st_mtime_ns) or len(touched) >= 4, 10)


def test_that_the_lock_of_the_living_is_put_back(db: Database, lock_file: Path) -> None:
    """Between the look and the taking away, the dead holder's file was replaced by a living one's."""
    lock_file.write_text("4242\nanother-host\n")
    SessionLock(db.directory, 0, 1)._take_away((1, 1))
    assert lock_file.read_text() == "4242\nanother-host\n"
    assert [name for name in os.listdir(db.directory) if "lock" in name] == [session.FILE_NAME]


# --- file systems with answers of their own ---------------------------------------------------------------------------


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch, lock_file: Path) -> Callable[[Callable[[], bool]], list[bool]]:
    """Let creating the lock file fail with EPERM, as on sshfs, for as long as a function says so."""

    def install(refuses: Callable[[], bool]) -> list[bool]:
        refusals: list[bool] = []
        real = os.open

        def fake(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if os.fspath(path) == str(lock_file) and flags & os.O_EXCL and refuses():
                refusals.append(True)
                raise PermissionError(1, "Operation not permitted", path)
            return real(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", fake)
        return refusals

    return install


def test_that_eperm_on_a_lock_that_is_there_means_held(db: Database, lock_file: Path, refusing: Any) -> None:
    refusals = refusing(lock_file.exists)
    code = "with db.write() as cx:\n cx.execute('UPDATE counter SET n = 7')\n say('in'); time.sleep(0.4)"
    with python(code, db.directory) as other:
        assert line_of(other) == "in"
        assert counter(db) == 7
    assert refusals


def test_that_eperm_on_a_lock_whose_holder_has_just_left_means_try_again(db: Database, refusing: Any) -> None:
    answers = [True, True, True]
    refusing(lambda: bool(answers) and answers.pop())
    assert counter(db) == 0


def test_that_eperm_without_end_is_an_error_soon(db: Database, refusing: Any) -> None:
    refusing(lambda: True)
    started = time.monotonic()
    with pytest.raises(DatabaseReadOnly, match="cannot be locked"):
        counter(db)
    assert time.monotonic() - started < 10


def test_that_reading_and_writing_agree_with_queries(db: Database) -> None:
    assert balsam(db.directory, "make_dummies", "3")[0] == 0
    with db.read() as cx:
        assert queries.state_counts(cx) == {"CREATED": 3}
