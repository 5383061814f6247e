"""The way to the SQLite file: transactions, forks, threads, other processes, and disks that fail."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from elsewhere import balsam, environment, fill, python, small_disk
from helpers import wait_until
from launching import Bench

from balsam_lite.core.errors import (
    DatabaseBusy,
    DatabaseError,
    DatabaseFull,
    DatabaseGone,
    DatabaseReadOnly,
    InputError,
    NoDatabase,
    NotABalsamDB,
    SchemaMismatch,
    UnsafeFilesystem,
)
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import connection, directories, filesystem, migrations, schema
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import select
from balsam_lite.db.store import apps, insert, leases

# A child of a test forks while other tests' threads may live; it only uses what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(params=["local", "shared"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A DB of either kind with a counter in it."""
    made = directories.create(str(tmp_path / "db"), request.param)
    with made.write() as cx:
        cx.execute("CREATE TABLE counter (n INTEGER)")
        cx.execute("INSERT INTO counter VALUES (0)")
    yield made
    made.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Database]:
    made = directories.create(str(tmp_path / "local"), "local")
    yield made
    made.close()


def add_one(db: Database) -> None:
    with db.write() as cx:
        (n,) = cx.execute("SELECT n FROM counter").fetchone()
        cx.execute("UPDATE counter SET n = ?", (n + 1,))


def counter(db: Database) -> int:
    with db.read() as cx:
        return int(cx.execute("SELECT n FROM counter").fetchone()[0])


def same_way(db: Database, **options: float) -> Database:
    """Another Database of that directory."""
    return Database(db.directory, db.access, **options)


# --- transactions -----------------------------------------------------------------------------------------------------


def test_a_write_is_there_for_others_when_its_block_ends(db: Database) -> None:
    add_one(db)
    assert counter(same_way(db)) == 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_any_exception_takes_the_whole_write_back(db: Database, error: type[BaseException]) -> None:
    with pytest.raises(error), db.write() as cx:  # noqa: PT012
        cx.execute("UPDATE counter SET n = 7")
        raise error
    assert counter(db) == 0
    add_one(db)
    assert counter(db) == 1


def test_a_write_inside_a_write_joins_it_and_falls_with_it(db: Database) -> None:
    with pytest.raises(ValueError), db.write() as outer:  # noqa: PT012
        with db.write() as inner:
            assert inner is outer
            inner.execute("UPDATE counter SET n = 7")
        assert counter(db) == 7
        raise ValueError
    assert counter(db) == 0


def test_a_read_inside_a_read_sees_the_same_moment(local: Database) -> None:
    with local.read() as cx:
        assert select.count_states(cx) == {}
        insert.add_jobs(same_way(local), [{"name": "later"}])
        with local.read() as inner:
            assert select.count_states(inner) == {}
    with local.read() as cx:
        assert select.count_states(cx) == {"CREATED": 1}


def test_a_write_inside_a_read_is_refused_and_the_read_goes_on(db: Database) -> None:
    with db.read() as cx:
        with pytest.raises(RuntimeError, match="inside a read"), db.write():
            pass
        assert cx.execute("SELECT n FROM counter").fetchone() == (0,)
    add_one(db)
    assert counter(db) == 1


def test_a_read_writes_nothing_even_if_it_tries(db: Database) -> None:
    with db.read() as cx:
        cx.execute("UPDATE counter SET n = 7")
    assert counter(db) == 0


def test_transactions_of_one_session_are_separate(db: Database) -> None:
    with db.session():
        add_one(db)
        with pytest.raises(ValueError), db.write() as cx:  # noqa: PT012
            cx.execute("UPDATE counter SET n = 7")
            raise ValueError
        with db.session():
            add_one(db)
        assert counter(db) == 2
    assert counter(db) == 2


def test_a_closed_database_opens_again(db: Database) -> None:
    add_one(db)
    db.close()
    db.close()
    add_one(db)
    assert counter(db) == 2


def test_a_bad_statement_is_not_taken_for_a_failing_disk(db: Database) -> None:
    with db.write() as cx:
        cx.execute("CREATE UNIQUE INDEX one ON counter (n)")
    with pytest.raises(sqlite3.IntegrityError), db.write() as cx:
        cx.execute("INSERT INTO counter VALUES (0)")


def test_nothing_is_left_beside_the_file_after_a_shared_session(tmp_path: Path) -> None:
    db = directories.create(str(tmp_path / "db"), "shared")
    insert.add_jobs(db, [{"name": "a"}])
    assert [name for name in os.listdir(db.directory) if "lock" in name or "-wal" in name or "-shm" in name] == []


# --- forks and threads ------------------------------------------------------------------------------------------------


def in_a_child(action: Any) -> int:
    """Run `action` in a forked child; its exit code, which is what `action` returns."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(action() or 0)
        except DatabaseError as exc:
            os._exit(exc.exit_code)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_parent_and_forked_child_both_go_on(db: Database) -> None:
    add_one(db)
    assert in_a_child(lambda: add_one(db)) == 0
    add_one(db)
    assert in_a_child(lambda: counter(db)) == 3
    assert counter(db) == 3


def test_a_child_forked_inside_a_transaction_is_outside_of_it(db: Database) -> None:
    db = same_way(db, busy_timeout_s=0.1)
    with db.write() as cx:
        cx.execute("UPDATE counter SET n = 7")
        assert in_a_child(lambda: add_one(db)) == DatabaseBusy.exit_code
        cx.execute("UPDATE counter SET n = n + 1")
    assert counter(db) == 8
    with same_way(db).read() as cx:
        assert cx.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_child_forked_inside_a_session_does_not_hold_it(tmp_path: Path) -> None:
    db = directories.create(str(tmp_path / "db"), "shared")
    db = same_way(db, busy_timeout_s=0.1)
    with db.session():
        insert.add_jobs(db, [{"name": "a"}])
        assert in_a_child(lambda: insert.add_jobs(db, [{"name": "b"}]).number) == DatabaseBusy.exit_code
        insert.add_jobs(db, [{"name": "c"}])
    assert in_a_child(lambda: insert.add_jobs(db, [{"name": "d"}]).number) == 1
    with db.read() as cx:
        assert select.count_states(cx) == {"CREATED": 3}


def test_threads_lose_no_write(db: Database) -> None:
    errors = []

    def work() -> None:
        try:
            for _ in range(10):
                add_one(db)
        except BaseException as exc:  # noqa: BLE001
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert counter(db) == 40


# --- other processes --------------------------------------------------------------------------------------------------

_HOLD = """
with db.write() as cx:
    cx.execute("UPDATE counter SET n = n + 1")
    say("held")
    time.sleep(float(sys.stdin.readline()))
"""


def holder(db: Database, seconds: float) -> subprocess.Popen[str]:
    """Start a process that keeps all others from writing for this long, beginning now."""
    process = python(_HOLD, db.directory)
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "held\n"
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return process


def test_a_writer_waits_for_another_process_and_loses_neither_write(db: Database) -> None:
    with holder(db, 0.5):
        started = time.monotonic()
        add_one(db)
        assert 0.3 < time.monotonic() - started < 10
    assert counter(db) == 2


def test_a_writer_gives_up_after_its_patience_and_says_so(db: Database) -> None:
    impatient = same_way(db, busy_timeout_s=0.2)
    with holder(db, 60) as other:
        started = time.monotonic()
        with pytest.raises(DatabaseBusy, match="another process") as caught:
            add_one(impatient)
        assert 0.2 <= time.monotonic() - started < 30
        other.kill()
    assert caught.value.exit_code == 75
    assert "BALSAM_BUSY_TIMEOUT_S" in caught.value.hint
    add_one(db)
    assert counter(db) == 1  # what the killed one had not committed is gone


def test_a_command_gives_up_with_the_code_of_a_temporary_failure(db: Database) -> None:
    with holder(db, 60) as other:
        code, out, err = balsam(db.directory, "make_dummies", "3", BALSAM_BUSY_TIMEOUT_S="0.2")
        other.kill()
    assert (code, out) == (75, "")
    assert "busy" in err or "held by another process" in err
    assert "Traceback" not in err


def test_on_a_local_disk_reading_waits_for_no_writer(local: Database) -> None:
    with local.write():
        code, _, err = balsam(local.directory, "ls", BALSAM_BUSY_TIMEOUT_S="0.2")
    assert (code, err) == (0, "No jobs found matching query\n")


def test_changed_tells_of_others_writes_and_not_of_ones_own(local: Database) -> None:
    local.changed()
    assert not local.changed()
    insert.add_jobs(local, [{"name": "own"}])
    assert not local.changed()
    assert balsam(local.directory, "make_dummies", "1")[0] == 0
    assert local.changed()
    assert not local.changed()


def checkpoint_pages(db: Database) -> int:
    """Return after how many pages in the WAL a process that writes to the DB moves them into the file; 0: never."""
    other = same_way(db)
    with other.write() as cx:
        pages = int(cx.execute("PRAGMA wal_autocheckpoint").fetchone()[0])
    other.close()
    return pages


def test_checkpoints_are_left_to_launchers_and_services_and_to_nobody_else(local: Database) -> None:
    assert checkpoint_pages(local) > 0
    with local.write() as cx:
        leases.open_lease(cx, "wait", Holder.current(), "", 1)
    assert checkpoint_pages(local) > 0
    for kind in ("launcher", "service"):
        with local.write() as cx:
            lease = leases.open_lease(cx, kind, Holder.current(), "", 1)
            assert leases.is_eldest(cx, lease, 120, leases.Watch())
        assert checkpoint_pages(local) == 0
        with local.write() as cx:
            leases.close_lease(cx, lease, 1, "")


def test_on_a_shared_file_system_a_change_is_always_possible(tmp_path: Path) -> None:
    db = directories.create(str(tmp_path / "db"), "shared")
    assert db.changed()
    assert db.changed()


# --- no database ------------------------------------------------------------------------------------------------------


def test_a_path_that_is_a_file_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(NotABalsamDB, match=r"is a file, not a directory \(from --db"):
        directories.find(str(path))
    with pytest.raises(InputError, match="is not a directory"):
        directories.create(str(path))
    assert path.read_text() == "precious"


def test_a_db_below_a_file_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DatabaseError, match="Failed to create directory"):
        directories.create(str(tmp_path / "file" / "db"))


def test_a_directory_without_a_db_is_told_so_and_stays_as_it_is(tmp_path: Path) -> None:
    for source, environ in (("--db", {}), ("BALSAM_DB_PATH", {"BALSAM_DB_PATH": str(tmp_path)})):
        with pytest.raises(NotABalsamDB, match=rf"holds no Balsam DB \(from {source}"):
            directories.find(str(tmp_path) if source == "--db" else None, environ)
    with pytest.raises(NotABalsamDB):
        directories.open_database(str(tmp_path))
    with pytest.raises(NotABalsamDB):
        Database(str(tmp_path), "local")
    assert os.listdir(tmp_path) == []


def test_without_any_db_around_the_error_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoDatabase, match="No Balsam DB is active"):
        directories.find(None, {})


@pytest.mark.parametrize("text", [None, "", "{}", "[]", "null", '{"access": 3}', '{"access": "both"}', "\ufffd{", "[" * 99_999])
def test_a_missing_or_broken_marker_is_named_and_init_mends_it(local: Database, text: str | None) -> None:
    insert.add_jobs(local, [{"name": "kept"}])
    local.close()
    marker = Path(local.directory, directories.MARKER)
    marker.unlink()
    if text is not None:
        marker.write_text(text)
    with pytest.raises(DatabaseError, match=r"balsam\.json") as caught:
        directories.open_database(local.directory)
    assert f"balsam init {local.directory}" in str(caught.value)
    directories.create(local.directory).close()
    with directories.open_database(local.directory).read() as cx:
        assert select.count_states(cx) == {"CREATED": 1}


def test_init_keeps_the_way_a_db_was_set_up_for_unless_told_otherwise(tmp_path: Path) -> None:
    directory = str(tmp_path / "db")
    for asked, access in (("shared", "shared"), (None, "shared"), ("local", "local"), (None, "local")):
        assert directories.create(directory, asked).access == access
        assert directories.open_database(directory).access == access


@pytest.mark.parametrize("access", ["local", "shared"])
@pytest.mark.parametrize("content", [b"no database " * 1000, b"x" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_told_so_and_left_alone(tmp_path: Path, access: str, content: bytes) -> None:
    directory = directories.create(str(tmp_path / "db"), access).directory
    path = Path(directory, connection.FILE_NAME)
    path.write_bytes(content)
    with pytest.raises(NotABalsamDB, match="damaged or no database"), directories.open_database(directory).read():
        pass
    with pytest.raises(NotABalsamDB, match="damaged or no database"):
        directories.create(directory)
    assert path.read_bytes() == content


@pytest.mark.parametrize("access", ["local", "shared"])
def test_an_empty_file_is_told_so_and_made_a_db_in_wal_mode_by_init(tmp_path: Path, access: str) -> None:
    """This is what `init` leaves behind when it dies early."""
    directory = directories.create(str(tmp_path / "db"), access).directory
    Path(directory, connection.FILE_NAME).write_bytes(b"")
    with pytest.raises(NotABalsamDB, match="no tables") as caught, directories.open_database(directory).read():
        pass
    assert f"balsam init {directory}" in caught.value.hint
    db = directories.create(directory)
    with db.read() as cx:
        assert cx.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert select.count_states(cx) == {}
    db.close()


def test_a_file_that_cannot_have_a_wal_is_no_db(local: Database) -> None:
    memory = sqlite3.connect(":memory:")
    with pytest.raises(DatabaseError, match="journal mode is memory"):
        local._use_wal(memory)
    memory.close()


def test_a_db_that_is_removed_while_open_is_an_error_and_not_made_anew(db: Database) -> None:
    counter(db)
    db.close()
    shutil.rmtree(db.directory)
    with pytest.raises(DatabaseError), db.write():
        pass
    assert not os.path.exists(db.directory)


def removed(db: Database) -> None:
    shutil.rmtree(db.directory)


def moved(db: Database) -> None:
    os.rename(db.directory, f"{db.directory}.moved")


def replaced(db: Database) -> None:
    removed(db)
    directories.set_up(db.directory).close()


@pytest.mark.parametrize("fate", [removed, moved, replaced])
def test_what_is_open_says_that_the_db_is_gone_and_touches_no_other(local: Database, fate: Any) -> None:
    insert.add_jobs(local, [{"name": "before"}])
    fate(local)
    said = "was replaced by another one" if fate is replaced else "is not there any more"
    asks: list[Callable[[], Any]] = [local.changed, lambda: local.execute_outside_transaction("VACUUM")]
    asks += [lambda: local.read().__enter__(), lambda: local.write().__enter__()]
    for ask in asks * 2:
        with pytest.raises(DatabaseGone, match=said):
            ask()
    assert os.path.exists(local.path) == (fate is replaced)
    local.close()
    if fate is replaced:
        with local.read() as cx:
            assert select.count_states(cx) == {}
    else:
        with pytest.raises(DatabaseGone, match="is not there any more"), local.read():
            pass


def test_a_db_that_is_open_nowhere_yet_is_not_taken_for_gone(local: Database) -> None:
    for ask in (local.changed, lambda: local.execute_outside_transaction("PRAGMA user_version")):
        local.close()
        assert ask()


def test_who_waits_for_the_db_while_it_is_removed_hears_of_it(local: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[BaseException] = []
    waits = threading.Event()
    monkeypatch.setattr(connection.sqlite_errors, "is_busy", lambda exc: waits.set() or "locked" in str(exc))

    def add() -> None:
        try:
            insert.add_jobs(local, [{"name": "late"}])
        except DatabaseGone as exc:
            heard.append(exc)

    other = same_way(local)
    with other.write():
        thread = threading.Thread(target=add)
        thread.start()
        assert waits.wait(10)
        os.unlink(local.path)
    thread.join(10)
    assert len(heard) == 1
    other.close()


def test_a_launcher_ends_with_a_sentence_when_its_db_is_gone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, BALSAM_IDLE_TTL_S="60")
    bench.app("sleep", "sleep 60")
    [job] = bench.add([{"application": "sleep"}])
    launcher = bench.launch()
    bench.wait_for(job, "RUNNING")
    moved(bench.db)
    assert launcher.wait(20) == 1
    log = Path(f"{bench.directory}.moved", "log", "stderr").read_text()
    assert f"The lease is lost with its DB: The DB {bench.directory} is not there any more." in log
    assert "Traceback" not in log
    assert not os.path.exists(bench.directory)
    bench.close()


# --- versions ---------------------------------------------------------------------------------------------------------


def picture(db: Database) -> dict[str, object]:
    """All tables with their columns, all indexes and views with their text, all rows of `state_count`, the version."""
    with db.read() as cx:
        found: dict[str, object] = {}
        for kind, name, sql in cx.execute("SELECT type, name, sql FROM sqlite_master").fetchall():
            found[name] = cx.execute(f"PRAGMA table_xinfo({name})").fetchall() if kind == "table" else sql
        found["counts"] = cx.execute("SELECT * FROM state_count").fetchall()
        found["version"] = migrations.version_of(cx)
    return found


@pytest.fixture
def next_version(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a program of the next schema version would be."""
    column = "colour TEXT NOT NULL DEFAULT 'red'"
    index = "CREATE INDEX job_colour ON job (colour)"
    step = [f"ALTER TABLE job ADD COLUMN {column}", index]
    job, *others = schema.STATEMENTS
    assert job.startswith("CREATE TABLE job") and job.endswith("\n)")
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    monkeypatch.setattr(schema, "STATEMENTS", (f"{job[:-2]},\n    {column}\n)", *others, index))
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, step))
    return step


@pytest.mark.parametrize("access", ["local", "shared"])
def test_an_upgraded_file_equals_a_fresh_one_and_keeps_its_jobs(
    tmp_path: Path, access: str, request: pytest.FixtureRequest
) -> None:
    old = directories.create(str(tmp_path / "old"), access)
    insert.add_jobs(old, [{"name": "kept"}])
    old.close()
    request.getfixturevalue("next_version")
    with pytest.raises(SchemaMismatch, match=f"schema version {schema.VERSION - 1};") as caught, same_way(old).read():
        pass
    assert f"balsam init {old.directory}" in caught.value.hint
    upgraded = directories.create(old.directory)
    with upgraded.write() as cx:
        assert cx.execute("SELECT name, colour FROM job").fetchall() == [("kept", "red")]
        cx.execute("UPDATE state_count SET jobs = 0")
    assert picture(upgraded) == picture(directories.create(str(tmp_path / "fresh"), access))


def test_a_db_that_was_upgraded_while_open_is_used_no_more(local: Database) -> None:
    insert.add_jobs(local, [{"name": "before"}])
    with sqlite3.connect(local.path) as other:
        other.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    other.close()
    for begin in (local.read, local.write):
        with pytest.raises(SchemaMismatch, match=f"schema version {schema.VERSION + 1};"), begin():
            pass


def test_nobody_at_work_has_his_db_upgraded_below_him(local: Database, request: pytest.FixtureRequest) -> None:
    with local.write() as cx:
        number = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
    local.close()
    directories.create(local.directory).close()  # there is nothing to upgrade
    request.getfixturevalue("next_version")
    with pytest.raises(
        DatabaseBusy, match=rf"of an older version and in use.*launcher {number} \(pid {os.getpid()} on"
    ) as caught:
        directories.create(local.directory)
    assert "Stop them" in caught.value.hint
    with sqlite3.connect(local.path) as other:
        assert other.execute("PRAGMA user_version").fetchone() == (schema.VERSION - 1,)
        other.execute("UPDATE lease SET closed = 1")
    other.close()
    directories.create(local.directory).close()


def test_a_step_that_fails_leaves_the_old_version_whole(local: Database, next_version: list[str]) -> None:
    local.close()
    next_version.append("CREATE INDEX job_shape ON job (no_such_column)")
    with pytest.raises(DatabaseError, match="no_such_column"):
        directories.create(local.directory)
    other = sqlite3.connect(local.path)
    assert other.execute("PRAGMA user_version").fetchone() == (schema.VERSION - 1,)
    assert "colour" not in [row[1] for row in other.execute("PRAGMA table_info(job)")]
    other.close()


@pytest.mark.parametrize("access", ["local", "shared"])
def test_a_newer_schema_is_refused_by_every_door_and_left_alone(tmp_path: Path, access: str) -> None:
    db = directories.create(str(tmp_path / "db"), access)
    with db.write() as cx:
        cx.execute("PRAGMA user_version = 999")
    db.close()
    for door in (lambda: db.read().__enter__(), lambda: db.write().__enter__(), lambda: directories.create(db.directory)):
        with pytest.raises(SchemaMismatch, match="999"):
            door()
    other = sqlite3.connect(db.path)
    assert other.execute("PRAGMA user_version").fetchone() == (999,)
    other.close()


# --- the end of a process ----------------------------------------------------------------------------------------------


def states_in_the_file_alone(db: Database, tmp_path: Path) -> dict[str, int]:
    """Count the jobs of each state in a copy of the one file, as a user makes it."""
    copy = tmp_path / "copy"
    copy.unlink(missing_ok=True)
    shutil.copy(db.path, copy)
    cx = sqlite3.connect(copy)
    found = dict(cx.execute("SELECT state, count(*) FROM job GROUP BY state"))
    cx.close()
    return found


def wal_bytes(db: Database) -> int:
    return os.stat(f"{db.path}-wal").st_size if os.path.exists(f"{db.path}-wal") else 0


@pytest.mark.parametrize("others", [False, True])
def test_when_a_launcher_has_ended_the_one_file_holds_everything(tmp_path: Path, others: bool) -> None:
    bench = Bench(tmp_path)
    bench.app("true", "true")
    bench.add([{"application": "true"}] * 20)
    bench.db.close()
    if others:  # such as a notebook, which holds the DB open and is not at it
        bench.states()
    assert bench.run() == 0
    assert wal_bytes(bench.db) == 0
    assert states_in_the_file_alone(bench.db, tmp_path) == {"JOB_FINISHED": 20}
    bench.close()


def test_when_a_service_has_ended_the_one_file_holds_everything(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.close()
    assert balsam(None, "init", bench.directory, BALSAM_SCHEDULER_CLASS="LocalScheduler")[0] == 0  # which makes a policy
    assert balsam(bench.directory, "service", "start", BALSAM_SCHEDULER_CLASS="LocalScheduler")[0] == 0
    insert.add_jobs(bench.db, [{}])
    bench.db.close()
    assert wal_bytes(bench.db) > 0  # the service is to move them
    assert balsam(bench.directory, "service", "stop", BALSAM_SCHEDULER_CLASS="LocalScheduler")[0] == 0
    assert wal_bytes(bench.db) == 0
    assert states_in_the_file_alone(bench.db, tmp_path) == {"CREATED": 1}


def test_when_a_users_script_has_ended_the_one_file_holds_everything(local: Database, tmp_path: Path) -> None:
    script = """
from balsam_lite.launcher.dag import BalsamJob
BalsamJob.objects.bulk_create([BalsamJob(name="a"), BalsamJob(name="b")])
held = BalsamJob.objects.all()
len(held)
"""
    subprocess.run([sys.executable, "-c", script], check=True, env={**environment(), "BALSAM_DB_PATH": local.directory})
    assert not os.path.exists(f"{local.path}-wal")
    assert states_in_the_file_alone(local, tmp_path) == {"CREATED": 2}


@pytest.mark.parametrize("words", [("ls",), ("app", "--name", "a", "--executable", "true"), ("db", "info"), ("ls", "--help")])
def test_a_command_leaves_nothing_beside_the_file(local: Database, words: tuple[str, ...]) -> None:
    assert balsam(local.directory, *words)[0] == 0
    assert [name for name in os.listdir(local.directory) if name.startswith("balsam.sqlite3")] == ["balsam.sqlite3"]


# --- disks that fail --------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as point:
        yield point


def remount(point: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(point)], check=True)


@pytest.mark.parametrize("access", ["local", "shared"])
def test_a_read_only_disk_is_told_and_everything_works_when_it_can_be_written_again(disk: Path, access: str) -> None:
    db = directories.create(str(disk / "db"), access)
    insert.add_jobs(db, [{"name": "kept"}])
    db.close()
    remount(disk, "ro")
    with pytest.raises(DatabaseReadOnly):
        insert.add_jobs(db, [{"name": "lost"}])
    db.close()
    for words in (["make_dummies", "3"], ["app", "--name", "a", "--executable", "true"]):
        code, out, err = balsam(db.directory, *words)
        assert (code, out) == (1, "")
        assert err.startswith(f"Error: The DB {db.directory} cannot be")
        assert "Traceback" not in err
    code, _, err = balsam(None, "init", str(disk / "other"))
    assert code == 1
    assert "Read-only file system" in err
    remount(disk, "rw")
    with db.read() as cx:
        assert select.count_states(cx) == {"CREATED": 1}


def integrity(db: Database) -> str:
    with db.read() as cx:
        return str(cx.execute("PRAGMA integrity_check").fetchone()[0])


@pytest.mark.parametrize("access", ["local", "shared"])
def test_a_full_disk_takes_nothing_of_a_bulk_insert_and_leaves_the_db_whole(disk: Path, access: str) -> None:
    db = directories.create(str(disk / "db"), access)
    insert.add_jobs(db, [{"name": "kept"}])
    with pytest.raises(DatabaseFull, match="nothing was written"):
        insert.add_jobs(db, ({"name": f"job{n}", "args": "x" * 200} for n in range(9000)))
    with db.read() as cx:
        assert select.count_states(cx) == {"CREATED": 1}
    assert integrity(db) == "ok"
    insert.add_jobs(db, [{"name": "later"}])
    with same_way(db).read() as cx:
        assert select.count_states(cx) == {"CREATED": 2}
    db.close()


@pytest.mark.parametrize("access", ["local", "shared"])
def test_on_a_disk_without_a_free_block_writing_is_refused_until_there_is_one(disk: Path, access: str) -> None:
    db = directories.create(str(disk / "db"), access)
    insert.add_jobs(db, [{"name": "kept"}])
    filler = fill(disk)
    code, out, err = balsam(db.directory, "make_dummies", "100")
    assert (code, out) == (1, "")
    assert f"The disk of {db.directory} is full" in err
    with pytest.raises(DatabaseFull):
        insert.add_jobs(db, [{"name": "x", "args": "x" * 100_000}])
    filler.unlink()
    with db.read() as cx:
        assert select.count_states(cx) == {"CREATED": 1}
    assert integrity(db) == "ok"
    assert balsam(db.directory, "make_dummies", "100")[0] == 0
    db.close()


def test_a_db_that_could_not_be_created_for_want_of_space_is_created_later(disk: Path) -> None:
    filler = fill(disk)
    code, _, err = balsam(None, "init", str(disk / "db"))
    assert code == 1
    assert "full" in err or "No space left" in err
    filler.unlink()
    assert balsam(None, "init", str(disk / "db"))[0] == 0
    assert balsam(disk / "db", "make_dummies", "3")[0] == 0


def test_a_launcher_on_a_full_disk_goes_on_and_finishes_when_there_is_space(disk: Path, tmp_path: Path) -> None:
    bench = Bench(disk)
    shutil.rmtree(f"{bench.directory}/log")
    (tmp_path / "log").mkdir()
    os.symlink(tmp_path / "log", f"{bench.directory}/log")
    log = tmp_path / "log" / "stderr"
    with bench.db.write() as cx:
        script = tmp_path / "wait.sh"
        script.write_text(f"#!/bin/sh\necho x >> {tmp_path}/runs\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.05; done\n")
        script.chmod(0o755)
        apps.add_app(cx, {"name": "wait", "executable": str(script)})
    bench.add([{"application": "wait"} for _ in range(5)])
    try:
        launcher = bench.launch("--nodes", "2")
        wait_until(lambda: bench.states().get("RUNNING") == 2)
        filler = fill(disk)
        (tmp_path / "go").touch()
        wait_until(lambda: "The DB cannot be used" in log.read_text())
        assert bench.states() == {"RUNNING": 2, "CREATED": 3}
        assert launcher.poll() is None
        filler.unlink()
        assert launcher.wait(30) == 0
        assert bench.states() == {"JOB_FINISHED": 5}
        assert (tmp_path / "runs").read_text() == "x\n" * 5
        assert integrity(bench.db) == "ok"
    finally:
        bench.close()


def test_a_launcher_that_ends_on_a_full_disk_says_so_once(disk: Path, tmp_path: Path) -> None:
    bench = Bench(disk, BALSAM_KILL_GRACE_S="0.2", BALSAM_BUSY_TIMEOUT_S="0.5")
    shutil.rmtree(f"{bench.directory}/log")
    (tmp_path / "log").mkdir()
    os.symlink(tmp_path / "log", f"{bench.directory}/log")
    bench.app("sleep", "sleep 60")
    bench.add([{"application": "sleep"}])
    try:
        launcher = bench.launch("--nodes", "1")
        wait_until(lambda: bench.states().get("RUNNING") == 1)
        fill(disk)
        launcher.terminate()
        wait_until(lambda: "To give up, stop again" in (tmp_path / "log" / "stderr").read_text(), 30)
        wait_until(lambda: launcher.poll() is not None or launcher.terminate(), 30, 1.5)
        assert launcher.returncode == 1
        said = (tmp_path / "log" / "stderr").read_text()
        assert said.count("cannot be written, still trying") == 1
        assert "the next launcher will free the jobs" in said
        assert "Traceback" not in said
    finally:
        bench.close()


# --- where it lies ----------------------------------------------------------------------------------------------------

_MOUNTS = r"""
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:40 / /tmp rw shared:5 master:2 propagate_from:1 - tmpfs tmpfs rw,size=1024k
41 27 0:41 / /home rw,relatime shared:1 - nfs4 server:/export/home rw,vers=4.2,addr=10.0.0.1
42 41 8:1 / /home/me/scratch rw - xfs /dev/sda1 rw
43 27 0:43 / /lus/theta-fs0 rw,flock - lustre 10.1.1.1@o2ib:/theta rw
44 27 0:44 / /gpfs/mira rw - gpfs mira-fs0 rw
45 27 0:45 / /mnt/site rw,nosuid - fuse.sshfs me@host:/data rw,user_id=0
46 27 0:46 / /mnt/plain rw - fuse bindfs rw
47 27 254:0 /srv/data /mnt/bound rw - ext4 /dev/vda rw
48 27 0:48 /export/home/x /mnt/bound-nfs rw - nfs server:/export/home rw
49 27 0:49 / /mnt/with\040blank\134and\011tab rw - beegfs beegfs_nodev rw
50 27 0:50 / /mnt/strange rw - neverheardof thing rw
51 27 0:51 / /over rw - nfs old:/ rw
52 51 0:52 / /over rw - tmpfs new rw
53 27 0:53 / /auto rw - autofs /etc/auto.misc rw
54 53 0:54 / /auto rw - cifs //server/share rw
garbage
55 27 0:55 / /broken rw nfs server:/ rw
56 27 0:56 / /short - nfs
57 27

- - -
"""


@pytest.mark.parametrize(
    ("path", "point", "kind", "access"),
    [
        ("/var/db", "/", "ext4", "local"),
        ("/", "/", "ext4", "local"),
        ("/tmp", "/tmp", "tmpfs", "local"),
        ("/tmpfile/x", "/", "ext4", "local"),
        ("/home/me/db", "/home", "nfs4", "shared"),
        ("/home", "/home", "nfs4", "shared"),
        ("/homes/me", "/", "ext4", "local"),
        ("/home/me/scratch/db", "/home/me/scratch", "xfs", "local"),
        ("/home/me/scratch2/db", "/home", "nfs4", "shared"),
        ("/lus/theta-fs0/projects/p/db", "/lus/theta-fs0", "lustre", "shared"),
        ("/gpfs/mira/x", "/gpfs/mira", "gpfs", "shared"),
        ("/mnt/site/x", "/mnt/site", "fuse.sshfs", "shared"),
        ("/mnt/plain/x", "/mnt/plain", "fuse", "shared"),
        ("/mnt/bound/x", "/mnt/bound", "ext4", "local"),
        ("/mnt/bound-nfs/x", "/mnt/bound-nfs", "nfs", "shared"),
        ("/mnt/with blank\\and\ttab/x", "/mnt/with blank\\and\ttab", "beegfs", "shared"),
        ("/mnt/strange", "/mnt/strange", "neverheardof", "shared"),
        ("/over/x", "/over", "tmpfs", "local"),
        ("/auto/x", "/auto", "cifs", "shared"),
        ("/broken/x", "/", "ext4", "local"),
        ("/short/x", "/", "ext4", "local"),
    ],
)
def test_the_mount_table_says_whether_hosts_share_a_directory(path: str, point: str, kind: str, access: str) -> None:
    found = filesystem.mount_of(path, _MOUNTS)
    assert (found.point, found.kind, found.access) == (point, kind, access)


def test_a_form_feed_in_a_mount_point_ends_no_line() -> None:
    table = "1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /mnt/a\x0c\u2028b rw - nfs s:/ rw\n"
    assert filesystem.mount_of("/mnt/a\x0c\u2028b/db", table).kind == "nfs"


@pytest.mark.parametrize("table", ["", "garbage\n", " - \n"])
def test_without_a_readable_table_a_directory_counts_as_shared(table: str) -> None:
    assert filesystem.mount_of("/x", table).access == "shared"


def test_links_are_followed_to_the_mount_below(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    table = f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {tmp_path}/there rw - nfs s:/ rw\n"
    assert filesystem.mount_of(str(tmp_path / "link"), table).kind == "nfs"


@pytest.fixture
def nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A directory that seems to lie on NFS."""
    mount = filesystem.Mount(str(tmp_path / "nfs"), "nfs4", "server:/export")
    real = filesystem.mount_of

    def mount_of(directory: str, table: str | None = None) -> filesystem.Mount:
        return mount if os.path.realpath(directory).startswith(mount.point) else real(directory, table)

    monkeypatch.setattr(filesystem, "mount_of", mount_of)
    return mount.point


def test_init_asks_the_file_system(nfs: str, tmp_path: Path) -> None:
    assert directories.create(f"{nfs}/db").access == "shared"
    assert directories.create(str(tmp_path / "here")).access == "local"


def test_a_local_db_moved_to_a_network_is_refused_with_the_mounts_name_until_init(nfs: str, tmp_path: Path) -> None:
    made = directories.create(str(tmp_path / "here"))
    insert.add_jobs(made, [{"name": "kept"}])
    made.close()
    os.rename(made.directory, nfs)
    with pytest.raises(UnsafeFilesystem, match=f"nfs4 file system server:/export mounted on {nfs}") as caught:
        directories.open_database(nfs)
    assert f"balsam init --access shared {nfs}" in caught.value.hint
    assert directories.create(nfs, "shared").access == "shared"
    with directories.open_database(nfs).read() as cx:
        assert select.count_states(cx) == {"CREATED": 1}


def test_init_for_a_local_disk_is_refused_on_a_network_and_a_shared_db_stays_usable(nfs: str) -> None:
    with pytest.raises(UnsafeFilesystem):
        directories.create(nfs, "local")
    assert not directories.is_db(nfs)
    directories.create(nfs).close()
    with pytest.raises(UnsafeFilesystem):
        directories.create(nfs, "local")
    assert directories.open_database(nfs).access == "shared"


def test_no_new_db_has_a_line_break_in_its_path_but_one_that_has_can_be_used(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line break"):
        directories.create(f"{tmp_path}/two\nlines/db")
    assert os.listdir(tmp_path) == []
    directories.create(str(tmp_path / "one"))
    os.rename(tmp_path / "one", tmp_path / "two\nlines")
    assert directories.create(f"{tmp_path}/two\nlines").directory == f"{tmp_path}/two\nlines"


def test_a_transaction_that_fails_before_its_first_statement_leaves_no_lock(tmp_path: Path) -> None:
    db = directories.create(str(tmp_path / "db"))
    with db.read() as cx:
        pass

    def deny(action: int, table: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if (action, table) == (sqlite3.SQLITE_READ, "lease") else sqlite3.SQLITE_OK

    cx.set_authorizer(deny)
    with pytest.raises(DatabaseError), db.write():
        pass
    cx.set_authorizer(None)
    with closing(sqlite3.connect(db.path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    with db.write() as cx:
        cx.execute("DELETE FROM job")
    db.close()


def test_threads_open_and_close_dbs_while_others_look_whether_they_are_open(tmp_path: Path) -> None:
    first, *paths = [directories.create(str(tmp_path / f"db{number}")).directory for number in range(4)]
    kept = [directories.open_database(first) for _ in range(150)]  # they make the look take long
    for one in kept:
        with one.read():
            pass
    failed: list[BaseException] = []

    def work(path: str) -> None:
        try:
            for _ in range(250):
                db = directories.open_database(path)
                with db.read() as cx:
                    cx.execute("SELECT count(*) FROM job").fetchone()
                db.close()
        except BaseException as exc:  # noqa: BLE001
            failed.append(exc)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(path,)) for path in paths]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
        for one in kept:
            one.close()
    assert not failed
