"""What can be read in a damaged DB becomes a new one; the rest is reported."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from elsewhere import balsam
from launching import Bench

from balsam_lite.core.errors import BalsamError, DatabaseEmptied
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.engine.salvage import Image, salvage
from balsam_lite.db.store import apps, counters, graph, insert, leases

JOBS, CHAIN, PAGE = 300, 100, 4096
LARGE = 150  # a job whose data needs further pages


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    """Make a DB with a chain of jobs, of which the first is RUNNING, a job of large data, and many others."""
    made = directories.create(str(tmp_path / "db"))
    with made.write() as cx:
        apps.add_app(cx, {"name": "true", "executable": "true"})
    rows = [{"application": "true", "name": f"job{n}", "tags": {"n": str(n % 3)}} for n in range(1, JOBS + 1)]
    rows[LARGE - 1]["data"] = {"x": "y" * 20_000}
    insert.add_jobs(made, rows)
    with made.write() as cx:
        graph.add_edges(cx, [(n, n + 1) for n in range(1, CHAIN)], 1)
        lease = leases.open_lease(cx, "launcher", Holder("elsewhere", "", 1, "1"), "", 1)
        cx.execute("UPDATE job SET lease = ?, state = 'RUNNING', attempt = 1 WHERE id = 1", (lease,))
        counters.recount(cx)
    made.close()
    yield made
    made.close()


def zero(db: Database, *pages: int, by: bytes = b"\0") -> None:
    with open(db.path, "r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE)
            file.write(by * PAGE)


def roots(db: Database) -> dict[str, int]:
    cx = sqlite3.connect(db.path)
    found = dict(cx.execute("SELECT name, rootpage FROM sqlite_master"))
    cx.close()
    return found


def leaf_pages(db: Database, table: str) -> list[int]:
    with Image(db.path) as image:
        return list(image.leaves(roots(db)[table], [], set()))


def salvaged(db: Database, tmp_path: Path) -> tuple[str, Path]:
    """Salvage by the command, which leaves the damaged file as it is; return its output and the new DB."""
    before = Path(db.path).read_bytes()
    new = tmp_path / "new"
    code, out, err = balsam(db.directory, "db", "salvage", str(new))
    assert (code, err) == (0, ""), err
    assert Path(db.path).read_bytes() == before
    code, checked, _ = balsam(new, "db", "check", "--seconds", "0")
    assert code == 0, checked
    return out, new


def names(directory: Path) -> list[str]:
    made = directories.open_database(str(directory))
    with made.read() as cx:
        found = [row[0] for row in cx.execute("SELECT name FROM job ORDER BY id")]
    made.close()
    return found


ALL = [f"job{n}" for n in range(1, JOBS + 1)]


def test_the_db_is_told_to_be_salvaged_where_it_is_damaged(db: Database, tmp_path: Path) -> None:
    zero(db, 1)
    for words in (("ls",), ("db", "check", "--seconds", "0")):
        code, out, err = balsam(db.directory, *words)
        assert code == 1 and "db salvage NEW_DIR" in out + err


@pytest.mark.parametrize(
    "damaged", [(), ("sqlite_master",), ("job",), ("dependency",), ("job_short_id", "job_state", "event_time")]
)
def test_nothing_is_lost_where_the_leaves_of_the_tables_are_whole(
    db: Database, tmp_path: Path, damaged: tuple[str, ...]
) -> None:
    zero(db, *(1 if name == "sqlite_master" else roots(db)[name] for name in damaged))
    _, new = salvaged(db, tmp_path)
    assert names(new) == ALL
    made = directories.open_database(str(new))
    with made.read() as cx:
        assert cx.execute("SELECT count(*) FROM dependency").fetchone() == (CHAIN - 1,)
        assert cx.execute("SELECT count(*) FROM job_tag").fetchone() == (JOBS,)
        assert cx.execute("SELECT state, lease, restarts FROM job WHERE id = 1").fetchone() == ("RESTART_READY", None, 0)
        assert cx.execute("SELECT length(data) FROM job WHERE id = ?", (LARGE,)).fetchone()[0] > 20_000
        assert cx.execute("SELECT count(*) FROM event WHERE to_state = 'AWAITING_PARENTS'").fetchone() == (CHAIN - 1,)
        assert cx.execute("SELECT count(*) FROM lease WHERE closed IS NULL").fetchone() == (0,)
    made.close()


def test_jobs_on_a_lost_page_are_told_by_number_and_their_descendants_fail(db: Database, tmp_path: Path) -> None:
    page = leaf_pages(db, "job")[1]
    with Image(db.path) as image:
        numbers = [number for number, _ in image.rows(page, [])]
    zero(db, page)
    out, new = salvaged(db, tmp_path)
    low, high = numbers[0], numbers[-1]
    assert high < CHAIN
    assert f"{len(numbers)}, the numbers {low} to {high}" in out
    assert names(new) == [name for n, name in enumerate(ALL, 1) if n not in numbers]
    made = directories.open_database(str(new))
    with made.read() as cx:
        states = dict(cx.execute("SELECT id, state FROM job WHERE id <= ?", (CHAIN,)))
        assert {states[n] for n in range(2, low)} == {"AWAITING_PARENTS"}
        assert {states[n] for n in range(high + 1, CHAIN + 1)} == {"FAILED"}
        message = cx.execute("SELECT message FROM event WHERE job = ? ORDER BY id DESC LIMIT 1", (high + 1,)).fetchone()[0]
        assert message == "A parent was lost with a damaged DB"
    made.close()


def test_a_job_whose_data_is_lost_is_kept_without_it_and_told(db: Database, tmp_path: Path) -> None:
    with Image(db.path) as image:
        overflow = [n for n in range(1, image.pages + 1) if image.page(n)[4:].count(b"y") > PAGE - 100]
    assert overflow
    zero(db, overflow[-1])
    out, new = salvaged(db, tmp_path)
    assert str(LARGE) in out
    assert set(ALL) - set(names(new)) <= {f"job{LARGE}"}


@pytest.mark.parametrize("by", [b"\0", b"\xff", b"\x0d"])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_damaged_a_sound_db_or_an_error_comes_of_it(db: Database, tmp_path: Path, seed: int, by: bytes) -> None:
    dice = random.Random(seed)
    pages = os.stat(db.path).st_size // PAGE
    zero(db, *dice.sample(range(1, pages + 1), pages // dice.choice((2, 5, 20))), by=by)
    try:
        found = salvage(db.directory, str(tmp_path / "new"))
    except BalsamError as exc:
        assert "Nothing can be read" in exc.message
        return
    cx = sqlite3.connect(tmp_path / "new" / "balsam.sqlite3")
    assert cx.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert cx.execute("SELECT count(*) FROM job").fetchone() == (found.read["jobs"],) or found.notes
    counts = cx.execute("SELECT state, jobs FROM state_count WHERE jobs ORDER BY 1").fetchall()
    assert counts == cx.execute("SELECT state, count(*) FROM job GROUP BY state ORDER BY 1").fetchall()
    cx.close()


def test_a_launcher_runs_what_was_salvaged(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.app("true", "true")
    first, *others = bench.add([{"application": "true"}] * 40)
    for other in others[:5]:
        bench.depend(first, other)
    bench.db.close()
    zero(bench.db, 1)
    new = tmp_path / "new"
    assert balsam(bench.directory, "db", "salvage", str(new))[0] == 0
    bench.directory, bench.db = str(new), directories.open_database(str(new))
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 40}
    bench.close()


@pytest.mark.parametrize("access", ["local", "shared"])
def test_an_emptied_file_says_so_and_its_wal_is_kept_and_can_be_read(tmp_path: Path, access: str) -> None:
    made = directories.create(str(tmp_path / "db"), access)
    made.close()
    code = """
import os, signal, sys
from balsam_lite.db.engine import directories
from balsam_lite.db.store import insert
db = directories.open_database(sys.argv[1])
with db.session():
    insert.add_jobs(db, [{"name": f"job{n}"} for n in range(20)])
    db.execute_outside_transaction("PRAGMA wal_checkpoint(TRUNCATE)")
    db.execute_outside_transaction("VACUUM")  # every page is in the WAL now
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, made.directory])
    lock = Path(made.directory, "session.lock")
    lock.unlink(missing_ok=True)
    wal = Path(f"{made.path}-wal").read_bytes()
    os.truncate(made.path, 0)
    Path(f"{made.path}-shm").unlink(missing_ok=True)
    for words in (("--db", made.directory, "ls"), ("init", made.directory)):
        code_, _, err = balsam(None, *words)
        assert code_ == 1 and "is empty" in err and "Restore a backup" in err and "db salvage NEW_DIR" in err
        assert Path(f"{made.path}-wal").read_bytes() == wal
    assert balsam(made.directory, "db", "salvage", str(tmp_path / "new"))[0] == 0
    assert names(tmp_path / "new") == [f"job{n}" for n in range(20)]


def test_an_emptied_db_that_was_used_is_not_made_anew_by_init(db: Database) -> None:
    os.makedirs(os.path.join(db.directory, "data", "w"))
    os.truncate(db.path, 0)
    with pytest.raises(DatabaseEmptied), db.read():
        pass
    with pytest.raises(DatabaseEmptied):
        directories.create(db.directory)
    assert os.stat(db.path).st_size == 0
    os.unlink(db.path)
    directories.create(db.directory).close()


def test_salvage_refuses_a_place_that_is_taken_and_a_file_without_anything(db: Database, tmp_path: Path) -> None:
    code, _, err = balsam(db.directory, "db", "salvage", db.directory)
    assert code == 2 and "exists already" in err
    shutil.copy(db.path, tmp_path / "kept")
    Path(db.path).write_bytes(b"\0" * 50_000)
    code, _, err = balsam(db.directory, "db", "salvage", str(tmp_path / "new"))
    assert code == 1 and "Nothing can be read" in err and "Restore a backup" in err
    assert not (tmp_path / "new").exists()


def test_a_salvage_that_is_cut_short_leaves_no_half_of_a_db(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("balsam_lite.db.store.tags.note_anew", interrupted)
    with pytest.raises(KeyboardInterrupt):
        salvage(db.directory, str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
