"""Shared DBs: one process at a time opens the file, another one takes over when it dies, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elsewhere import balsam, environment, python, python_argv
from helpers import wait_until
from launching import Bench
from mounts import Host, hosts, need

from balsam_lite.core.errors import DatabaseBusy, DatabaseGone, DatabaseReadOnly, LostSession
from balsam_lite.db.engine import directories, session
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.engine.session import LockFile, SessionLock
from balsam_lite.db.query import select


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = directories.create(str(tmp_path / "db"), "shared")
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


def test_eight_processes_lose_no_write(db: Database) -> None:
    workers = [python("for _ in range(50): add_one()", db.directory) for _ in range(8)]
    for worker in workers:
        worker.communicate(timeout=120)
    assert [worker.returncode for worker in workers] == [0] * 8
    assert counter(db) == 400
    assert no_lock_is_left(db)


def test_nobody_sees_half_of_a_session(db: Database) -> None:
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


def test_a_session_shares_no_memory(db: Database) -> None:
    """Memory is what two hosts do not share: https://sqlite.org/wal.html#noshm."""
    with db.session(), db.write() as cx:
        cx.execute("UPDATE counter SET n = 1")
        assert os.path.exists(f"{db.path}-wal")
        assert not os.path.exists(f"{db.path}-shm")


def test_two_launchers_and_commands_run_each_job_once(tmp_path: Path) -> None:
    directories.create(str(tmp_path / "db"), "shared").close()
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


def test_an_idle_launcher_leaves_a_shared_db(tmp_path: Path) -> None:
    directories.create(str(tmp_path / "db"), "shared").close()
    bench = Bench(tmp_path)
    try:
        bench.app("quick", "true")
        bench.add([{"application": "quick"}])
        assert bench.run(timeout=8) == 0
        assert bench.states() == {"JOB_FINISHED": 1}
    finally:
        bench.close()


COUNTING = """
import sys
from balsam_lite.db.engine.session import SessionLock
enter = SessionLock.__enter__
def counted(lock):
    open(sys.argv[1], "ab").write(b".")
    return enter(lock)
SessionLock.__enter__ = counted
from balsam_lite.cli.main import main
main(sys.argv[2:])
"""


def test_a_launcher_opens_a_quiet_shared_db_rarely_and_notices_a_kill_all_the_same(tmp_path: Path) -> None:
    directories.create(str(tmp_path / "db"), "shared").close()
    bench = Bench(tmp_path)
    try:
        bench.app("long", "sleep 300")
        bench.add([{"application": "long"}])
        count = tmp_path / "sessions"
        words = ["--db", bench.directory, "launcher", "--consume-all", "--job-mode", "serial"]
        launcher = subprocess.Popen(
            [sys.executable, "-c", COUNTING, str(count), *words], env=bench.environ, start_new_session=True
        )
        bench.launchers.append(launcher)
        bench.wait_for(1, "RUNNING")

        def sessions_in(seconds: float) -> int:
            before = count.stat().st_size
            time.sleep(seconds)
            return count.stat().st_size - before

        wait_until(lambda: sessions_in(3) <= 2, timeout=60)  # about 18 before
        assert balsam(bench.directory, "killjob", "--id", "#1", "--yes")[0] == 0
        assert launcher.wait(30) == 0
    finally:
        bench.close()


# --- the dead ---------------------------------------------------------------------------------------------------------


def test_a_holder_killed_in_the_middle_is_succeeded_and_its_half_write_is_gone(db: Database) -> None:
    half = "with db.write() as cx:\n  cx.execute('UPDATE counter SET n = 99')\n  say('in'); time.sleep(60)"
    with python(f"with db.session():\n add_one()\n {half}", db.directory) as other:
        assert line_of(other) == "in"
        other.kill()
    successor = Database(db.directory, "shared", busy_timeout_s=20)
    started = time.monotonic()
    assert counter(successor) == 1
    assert time.monotonic() - started < 10
    assert no_lock_is_left(db)


def test_many_killed_holders_leave_the_file_whole(db: Database) -> None:
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
    successor = Database(db.directory, "shared", busy_timeout_s=20)
    assert told <= counter(successor) <= told + 6


@pytest.mark.parametrize("content", ["4242\nanother-host\n", "4242\nanother-host\n99\n", ""])
def test_a_dead_holder_on_another_host_is_succeeded_after_the_expiry_and_not_before(
    db: Database, lock_file: Path, content: str
) -> None:
    lock_file.write_text(content)
    patient = Database(db.directory, "shared", busy_timeout_s=20, expiry_s=1)
    started = time.monotonic()
    assert counter(patient) == 0
    assert 1 <= time.monotonic() - started < 15
    assert no_lock_is_left(db)


def test_a_holder_killed_before_it_could_say_its_name_is_succeeded_soon(db: Database, lock_file: Path) -> None:
    lock_file.touch()
    started = time.monotonic()
    assert counter(Database(db.directory, "shared", busy_timeout_s=30, expiry_s=120)) == 0
    assert 2 < time.monotonic() - started < 10


def test_a_holder_on_another_host_that_still_touches_its_lock_keeps_it(db: Database, lock_file: Path) -> None:
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


def test_a_dead_holder_is_waited_for_even_if_the_expiry_is_longer_than_the_patience(db: Database, lock_file: Path) -> None:
    """As it is by default. Else each command would give up before, and the next begin to wait anew."""
    lock_file.write_text("4242\nanother-host\n")
    assert counter(Database(db.directory, "shared", busy_timeout_s=0.6, expiry_s=1.2)) == 0


def test_a_long_session_is_not_taken_for_dead(db: Database) -> None:
    """Its holder touches the lock; others, whose host cannot see it, believe that."""
    held = Database(db.directory, "shared", expiry_s=0.4)
    lock = Path(db.directory, session.FILE_NAME)
    with held.session():
        touched = {os.lstat(lock).st_mtime_ns}
        wait_until(lambda: touched.add(os.lstat(lock).st_mtime_ns) or len(touched) >= 4, 10)


def test_a_lock_that_changed_hands_is_not_taken_away(db: Database, lock_file: Path) -> None:
    """Between the look and the taking away, the dead holder's file was replaced by a living one's."""
    lock_file.write_text("4242\nanother-host\n")
    lock = SessionLock(db.directory, 0, 1)
    stale = lock._lock.look()
    lock_file.write_text("4343\na-third-host\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock._lock, "dead", lambda: stale)
        assert not lock._free_from_the_dead()
    assert lock_file.read_text() == "4343\na-third-host\n"
    assert [name for name in os.listdir(db.directory) if "lock" in name] == [session.FILE_NAME]


def test_one_at_a_time_takes_a_dead_holders_lock_away(db: Database, lock_file: Path) -> None:
    lock_file.write_text("4242\nanother-host\n")
    breaker = LockFile(f"{lock_file}.break", 120)
    assert breaker.take()
    try:
        with pytest.raises(DatabaseBusy):
            counter(Database(db.directory, "shared", busy_timeout_s=0.5, expiry_s=0.2))
    finally:
        breaker.release()
    assert counter(Database(db.directory, "shared", busy_timeout_s=5, expiry_s=0.2)) == 0


def test_who_died_while_taking_a_lock_away_is_no_obstacle(db: Database, lock_file: Path) -> None:
    lock_file.write_text("4242\nanother-host\n")
    Path(f"{lock_file}.break").write_text("4343\na-third-host\n")
    assert counter(Database(db.directory, "shared", busy_timeout_s=10, expiry_s=0.5)) == 0
    assert no_lock_is_left(db)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"[" * 4000,
        b'["a", "b"]',
        b'["h", "n", "x", "s", "t"]',
        b"9" * 10000,
        b"[1, 2, 1e999, null, {}]",
        b"null",
    ],
)
def test_garbage_in_the_lock_file_is_waited_for_like_a_stranger(db: Database, lock_file: Path, content: bytes) -> None:
    lock_file.write_bytes(content)
    assert counter(Database(db.directory, "shared", busy_timeout_s=20, expiry_s=0.5)) == 0


def test_the_one_who_holds_the_lock_is_named(db: Database) -> None:
    with python("with db.session():\n say('in'); sys.stdin.readline()", db.directory) as other:
        assert line_of(other) == "in"
        with pytest.raises(DatabaseBusy, match=rf"\(pid {other.pid} on {os.uname().nodename}\) for"):
            counter(Database(db.directory, "shared", busy_timeout_s=0.2))
        other.communicate("\n")


def test_a_forked_child_leaves_its_parents_lock_alone(db: Database, lock_file: Path) -> None:
    code = """
with db.session():
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        say(os.path.exists(os.path.join(db.directory, 'session.lock')))
"""
    with python(code, db.directory) as other:
        assert line_of(other) == "True"
    assert no_lock_is_left(db)


def test_a_db_that_was_removed_with_its_lock_file_is_gone_not_lost(db: Database, lock_file: Path) -> None:
    with pytest.raises(LostSession), db.session(), db.write():
        lock_file.unlink()

    def write_after_the_removal() -> None:
        with db.session():
            os.unlink(db.path)
            lock_file.unlink()  # as `balsam site mv` and `rm` do for those who still wait
            with db.write():
                raise AssertionError("it was opened")

    with pytest.raises(DatabaseGone, match="is not there any more"):
        write_after_the_removal()


# --- the sleepers -----------------------------------------------------------------------------------------------------


SLEEPER = """
from balsam_lite.core.errors import LostSession
def sleep_in_the_middle(kind):
    with getattr(db, kind)() as cx:
        found = cx.execute('SELECT n FROM counter').fetchone()[0]
        if kind == 'write':
            cx.execute('UPDATE counter SET n = ?', (found + 100,))
        say('in')
        sys.stdin.readline()
def told(kind):
    try:
        sleep_in_the_middle(kind)
        say('done')
    except LostSession as exc:
        say(f'lost: {exc.message}')
"""


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_holder_that_slept_too_long_neither_commits_nor_believes_what_it_read(tmp_path: Path, kind: str) -> None:
    """Each host has locks of its own, so that nothing but the look at the lock file can stop it."""
    need()
    with hosts(2, tmp_path, locks=False) as (first, second):
        directory = shared_db(first)
        code = f"{SLEEPER}\ntold('{kind}')\nadd_one()\nsay('went on')"
        sleeper = first.start(*python_argv(code, directory), stdin=subprocess.PIPE, env=environment())
        assert line_of(sleeper) == "in"
        sleeper.signal_inside(signal.SIGSTOP)
        assert on(second, "for _ in range(5): add_one()", directory, BALSAM_LEASE_EXPIRY_S="1") == ""
        sleeper.signal_inside(signal.SIGCONT)
        assert sleeper.stdin is not None
        sleeper.stdin.write("\n")
        sleeper.stdin.flush()
        assert line_of(sleeper).startswith("lost: The DB")
        assert line_of(sleeper) == "went on"
        assert sleeper.wait(20) == 0
        assert on(second, COUNTED, directory) == "6 ok"


def test_a_holder_that_slept_before_it_closed_writes_nothing_into_the_file(tmp_path: Path) -> None:
    """SQLite copies the log into the file when it closes: an old log into a file that others have written since."""
    need()
    with hosts(2, tmp_path, locks=False) as (first, second):
        directory = shared_db(first)
        code = "with db.session():\n add_one()\n say('in')\n sys.stdin.readline()\nsay('out')"
        sleeper = first.start(*python_argv(code, directory), stdin=subprocess.PIPE, env=environment())
        assert line_of(sleeper) == "in"
        sleeper.signal_inside(signal.SIGSTOP)
        assert on(second, "for _ in range(5): add_one()", directory, BALSAM_LEASE_EXPIRY_S="1") == ""
        sleeper.signal_inside(signal.SIGCONT)
        sleeper.communicate("\n", timeout=20)
        assert sleeper.returncode == 0
        assert on(second, COUNTED, directory) == "6 ok"


def test_a_sleeper_whose_lock_on_the_file_reaches_all_hosts_is_waited_for(tmp_path: Path) -> None:
    """There its successor cannot open the file before it wakes up; then it goes out of the way."""
    need()
    with hosts(2, tmp_path) as (first, second):
        directory = shared_db(first)
        code = f"{SLEEPER}\ntold('write')"
        sleeper = first.start(*python_argv(code, directory), stdin=subprocess.PIPE, env=environment())
        assert line_of(sleeper) == "in"
        sleeper.signal_inside(signal.SIGSTOP)
        short = {"BALSAM_LEASE_EXPIRY_S": "0.5", "BALSAM_BUSY_TIMEOUT_S": "2"}
        refused = second.run(*python_argv("add_one()", directory), **{**environment(), **short})
        assert "DatabaseBusy" in refused.stderr
        sleeper.signal_inside(signal.SIGCONT)
        said, _ = sleeper.communicate("\n", timeout=20)
        assert said.startswith("lost: ")
        assert on(second, f"add_one()\n{COUNTED}", directory) == "1 ok"


def test_pids_of_another_host_prove_nothing(tmp_path: Path) -> None:
    """Two hosts have the same pids and the same boot id. One's process is not dead because the other has none of that pid."""
    need()
    with hosts(2, tmp_path) as (first, second):
        directory = shared_db(first)
        holder = first.start(*python_argv("with db.session():\n say('in'); time.sleep(60)", directory), env=environment())
        assert line_of(holder) == "in"
        impatient = {**environment(), "BALSAM_BUSY_TIMEOUT_S": "0.5"}
        assert "held by another process (pid " in second.run(*python_argv("add_one()", directory), **impatient).stderr
        holder.signal_inside(signal.SIGKILL)
        holder.wait(20)
        started = time.monotonic()
        assert "DatabaseBusy" in second.run(*python_argv("add_one()", directory), **impatient).stderr
        assert on(first, COUNTED, directory) == "0 ok"  # its own host sees at once that it is dead
        assert time.monotonic() - started < 20


def test_hosts_lose_no_write(tmp_path: Path) -> None:
    need()
    with hosts(3, tmp_path, locks=False) as everybody:
        directory = shared_db(everybody[0])
        code = "for _ in range(40): add_one()"
        workers = [host.start(*python_argv(code, directory), env=environment()) for host in everybody for _ in range(2)]
        for worker in workers:
            worker.communicate(timeout=120)
        assert [worker.returncode for worker in workers] == [0] * 6
        assert on(everybody[0], COUNTED, directory) == "240 ok"


COUNTED = """
with db.read() as cx:
    print(cx.execute('SELECT n FROM counter').fetchone()[0], cx.execute('PRAGMA integrity_check').fetchone()[0])
"""


def shared_db(host: Host) -> str:
    """A DB with a counter on what all hosts share."""
    directory = str(host.point / "db")
    code = """
import sys
from balsam_lite.db.engine import directories
db = directories.create(sys.argv[1])
assert db.access == 'shared'
with db.write() as cx:
    cx.execute('CREATE TABLE counter (n INTEGER)')
    cx.execute('INSERT INTO counter VALUES (0)')
"""
    done = host.run(sys.executable, "-c", code, directory, **environment())
    assert done.returncode == 0, done.stderr
    return directory


def on(host: Host, code: str, directory: str, **environ: str) -> str:
    """What `code` printed on that host."""
    done = host.run(*python_argv(code, directory), **{**environment(), **environ})
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


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


def test_eperm_on_a_lock_that_is_there_means_held(db: Database, lock_file: Path, refusing: Any) -> None:
    refusals = refusing(lock_file.exists)
    code = "with db.write() as cx:\n cx.execute('UPDATE counter SET n = 7')\n say('in'); time.sleep(0.4)"
    with python(code, db.directory) as other:
        assert line_of(other) == "in"
        assert counter(db) == 7
    assert refusals


def test_eperm_on_a_lock_whose_holder_has_just_left_means_try_again(db: Database, refusing: Any) -> None:
    answers = [True, True, True]
    refusing(lambda: bool(answers) and answers.pop())
    assert counter(db) == 0


def test_eperm_without_end_is_an_error_soon(db: Database, refusing: Any) -> None:
    refusing(lambda: True)
    started = time.monotonic()
    with pytest.raises(DatabaseReadOnly, match="cannot be written"), db.write():
        pass
    assert counter(db) == 0  # read without the lock
    assert time.monotonic() - started < 10


def test_a_wal_that_cannot_be_opened_for_a_moment_is_tried_again(db: Database) -> None:
    """As where another host has removed it, and this one still remembers the name."""
    in_the_way = Path(f"{db.path}-wal")
    assert not in_the_way.exists()
    in_the_way.mkdir()
    timer = threading.Timer(0.5, in_the_way.rmdir)
    timer.start()
    assert counter(db) == 0
    timer.join()


def test_reading_and_writing_agree_with_queries(db: Database) -> None:
    assert balsam(db.directory, "make_dummies", "3")[0] == 0
    with db.read() as cx:
        assert select.count_states(cx) == {"CREATED": 3}
