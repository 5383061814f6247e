"""The command as a process, given bad input: a clear message, nothing half-done, nothing hung."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest
from elsewhere import BALSAM, balsam, environment
from helpers import wait_until
from launching import Bench

from balsam_lite.core import states
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import apps, insert


def make_db(directory: Path) -> str:
    """A DB with the apps `say` and `dummy`, and two jobs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAM_HOME", str(directory / "home"))
        db = directories.create(str(directory / "db"))
    with db.write() as cx:
        for name in ("say", "dummy"):
            apps.add_app(cx, {"name": name, "executable": "echo"})
    insert.add_jobs(db, [{"name": name, "application": "say"} for name in ("one", "two")])
    db.close()
    return db.directory


@pytest.fixture
def directory(tmp_path: Path) -> str:
    """A DB of the test's own."""
    return make_db(tmp_path)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A DB for tests that change nothing in it."""
    return make_db(tmp_path_factory.mktemp("untouched"))


def open_db(directory: str) -> Database:
    return directories.open_database(directory)


def contents(directory: str) -> tuple[object, ...]:
    """All that users have put into it."""
    with open_db(directory).read() as cx:
        assert cx.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        tables = ("job", "app", "dependency", "event", "batch_job", "state_count")
        return tuple(cx.execute(f"SELECT * FROM {table}").fetchall() for table in tables)


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*BALSAM, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """The exit code and stderr of each."""
    found = []
    for process in processes:
        _, err = process.communicate(timeout=60)
        found.append((process.returncode, err))
    return found


# --- words ------------------------------------------------------------------------------------------------------------

_HUGE = "1" + "0" * 30
_JOB = ["job", "--name", "j", "--workflow", "w", "--application", "say", "--yes"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        # unknown
        (["nonsense"], 2, "nonsense"),
        (["job", "--name", "j", "--workflow", "w", "--application", "sai", "--yes"], 3, "sai"),
        (["modify", "dead", "state", "FAILED"], 3, "dead"),
        (["ls", "--state", "FNISHED"], 2, "JOB_FINISHED"),
        (["ls", "--sort", "nmae"], 2, "'name'"),
        (["ls", "--id", "zzzz", "--json"], 0, ""),
        (["killjob", "--id", "ffffffffffff", "--yes"], 3, "ffffffffffff"),
        (["rm", "jobs", "--id", "*", "--force"], 3, "*"),
        (["rm", "jobs", "--id", "%", "--force"], 3, "%"),
        (["dep", "_", "_"], 3, "_"),
        # empty
        (["killjob", "--id", "", "--yes"], 2, "--id must not be empty"),
        (["modify", "", "description", "x"], 3, "job"),
        (["dep", "", ""], 3, "job"),
        (["rm", "jobs", "--id", "", "--force"], 2, "--id must not be empty"),
        (["rm", "jobs", "--name", "", "--force"], 2, "--name must not be empty"),
        (["app", "--name", "", "--executable", "x"], 2, "name"),
        # numbers
        (["make_dummies", "-1"], 2, ""),
        (["make_dummies", _HUGE], 2, _HUGE),
        (["make_dummies", "nan"], 2, "nan"),
        (["make_dummies", "1e3"], 2, "1e3"),
        (["ls", "--limit", "0"], 2, "0"),
        (["ls", "--limit", "-1"], 2, "-1"),
        (["ls", "--limit", _HUGE], 2, _HUGE),
        ([*_JOB, "--num-nodes", "0"], 2, "num_nodes"),
        ([*_JOB, "--num-nodes", "-1"], 2, "num_nodes"),
        ([*_JOB, "--num-nodes", "nan"], 2, "num_nodes"),
        ([*_JOB, "--num-nodes", "inf"], 2, "num_nodes"),
        ([*_JOB, "--num-nodes", _HUGE], 2, "num_nodes"),
        ([*_JOB, "--num-nodes", "9" * 5000], 2, "num_nodes"),
        ([*_JOB, "--gpus-per-rank", "nan"], 2, "gpus_per_rank"),
        ([*_JOB, "--gpus-per-rank", "-0.5"], 2, "gpus_per_rank"),
        ([*_JOB, "--gpus-per-rank", "1e400"], 2, "gpus_per_rank"),
        ([*_JOB, "--gpus-per-rank", "1e-309"], 2, "gpus_per_rank must be 0 or at least 0.001, not 1e-309"),
        ([*_JOB, "--priority", "1.5"], 2, "priority"),
        ([*_JOB, "--restart-limit", "-1"], 2, "restart_limit"),
        ([*_JOB, "--wall-time-minutes", "0"], 2, "wall_time_minutes"),
        (["launcher", "--job-mode", "serial", "--consume-all", "--nodes", "0"], 2, "nodes"),
        (["launcher", "--job-mode", "serial", "--consume-all", "--nodes", "1000000000"], 2, "nodes"),
        (["launcher", "--job-mode", "serial", "--consume-all", "--nodes", _HUGE], 2, "nodes"),
        (["launcher", "--job-mode", "serial", "--consume-all", "--gpus-per-node", "1000000000"], 2, "GPUs"),
        (["launcher", "--job-mode", "serial", "--consume-all", "--time-limit-minutes", "nan"], 2, "nan"),
        (["submit-launch", "-n", _HUGE, "-t", "1", "-q", "q", "-A", "a", "--job-mode", "serial"], 2, _HUGE),
        (["submit-launch", "-n", "1", "-t", "-5", "-q", "q", "-A", "a", "--job-mode", "serial"], 2, "-5"),
        # objects
        ([*_JOB, "--data", "{"], 2, "data"),
        ([*_JOB, "--data", "[1]"], 2, "data"),
        ([*_JOB, "--data", "[" * 20_000], 2, "data"),
        ([*_JOB, "--data", '{"x": ' + "9" * 5000 + "}"], 2, "data"),
        ([*_JOB, "--env", "novalue"], 2, "novalue"),
        ([*_JOB, "--tag", "=x"], 2, "--tag"),
        ([*_JOB, "--args", "it's"], 2, "args"),
    ],
)
def test_nonsense_is_refused_with_a_word_about_it_and_changes_nothing(
    untouched: str, words: list[str], code: int, said: str
) -> None:
    before = contents(untouched)
    found, out, err = balsam(untouched, *words, timeout=20)
    assert (found, "Traceback" in err, "unexpected" in err) == (code, False, False), err
    assert said in err
    assert code == 0 or (out == "" and err.strip())
    assert contents(untouched) == before


@pytest.mark.parametrize("name", ["two\nlines", "tab\there", "esc\x1b[31m", "\u2028", "rtl\u202e"])
def test_a_name_that_could_spoil_a_listing_is_refused(directory: str, name: str) -> None:
    before = contents(directory)
    for words in (
        ["job", "--name", name, "--workflow", "w", "--application", "say", "--yes"],
        ["job", "--name", "j", "--workflow", name, "--application", "say", "--yes"],
        ["app", "--name", name, "--executable", "true"],
    ):
        code, _, err = balsam(directory, *words)
        assert code == 2
        assert "printable" in err
        assert name not in err
    assert contents(directory) == before


@pytest.mark.parametrize("name", ["a/b", "..", ".", "🚀", "x" * 300, "-dash", " ", "$(touch x)", "%s", "'\""])
def test_an_odd_name_is_kept_as_typed_and_found_again(directory: str, name: str) -> None:
    job = ["job", f"--name={name}", f"--workflow={name}", "--application", "say", "--yes"]
    assert balsam(directory, *job)[0] == 0
    code, out, _ = balsam(directory, "ls", "--json", f"--name={name}")
    assert code == 0
    (found,) = [row for row in json.loads(out) if row["workflow"] == name]
    assert found["name"] == name
    data = os.path.join(directory, "data") + os.sep
    assert os.path.normpath(data + found["workdir"]).startswith(data)


# --- where the DB is --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "with blank",
        "quote's\"",
        "ünïcödé 🚀",
        "100%?x=1&y#z",
        "-dash",
        "$(touch x)`id`;",
        "\udcff\udcfe",
        "file:x",
    ],
)
def test_a_db_in_an_odd_directory_works_from_init_to_the_end(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name / "db")
    words = ["--name", "j", "--workflow", "w", "--application", "a", "--yes"]
    assert balsam(None, "init", path)[0] == 0
    assert balsam(path, "app", "--name", "a", "--executable", "pwd")[0] == 0
    assert balsam(None, "job", *words, BALSAM_DB_PATH=path)[0] == 0
    code, _, err = balsam(path, "launcher", "--consume-all", "--job-mode", "serial", BALSAM_IDLE_TTL_S="0.05")
    assert code == 0, err
    (job,) = json.loads(balsam(path, "ls", "--json")[1])
    assert job["state"] == "JOB_FINISHED"
    output = os.path.join(path, "data", job["workdir"], "j.out")
    with open(output, "rb") as file:
        assert file.read() == os.fsencode(os.path.dirname(os.path.realpath(output))) + b"\n"
    assert sorted(os.listdir(tmp_path)) == [name]


def test_a_name_that_the_locale_cannot_write_fails_its_job_alone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", PYTHONIOENCODING="utf-8")
    bench.app("say", "echo")
    bad, good = bench.add({"name": name, "application": "say"} for name in ("日本", "plain"))
    try:
        assert bench.run() == 0
        assert bench.job(good)["state"] == states.JOB_FINISHED
        assert bench.job(bad)["state"] == states.FAILED
        assert "cannot be started: 'ascii' codec can't encode" in dict(bench.history(bad))[states.RUN_ERROR]
    finally:
        bench.close()


def test_an_empty_path_names_no_db_not_the_one_around(directory: str) -> None:
    """As `balsam --db "$UNSET" rm jobs --all --force` would."""
    before = contents(directory)
    for words in (["--db", "", "rm", "jobs", "--all", "--force"], ["--db=", "rm", "jobs", "--all", "--force"]):
        code, _, err = balsam(None, *words, BALSAM_DB_PATH=directory)
        assert code == 1
        assert "empty" in err
    assert contents(directory) == before
    assert balsam(None, "init", "")[0] == 2


def test_an_empty_variable_is_as_good_as_none(directory: str) -> None:
    code, _, err = balsam(None, "ls", BALSAM_DB_PATH="")
    assert code == 1
    assert "No Balsam DB is active" in err


def test_a_current_directory_that_is_gone_is_told(tmp_path: Path, directory: str) -> None:
    words = f'ls "--db x ls" "init x" "--db {directory} app --name p --executable p.py"'
    each = f"for words in {words}; do {' '.join(BALSAM)} $words; echo $?; done"
    script = f"mkdir gone; cd gone; rmdir ../gone; {each}"
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert done.stdout == "1\n" * 4
    assert done.stderr.count("The current directory does not exist any more") == 4
    assert "unexpected" not in done.stderr


def test_a_link_that_leads_nowhere_is_no_db(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("loop", "dangling"):
        for words in (["--db", str(tmp_path / name), "ls"], ["init", str(tmp_path / name)]):
            code, _, err = balsam(None, *words)
            if (name, words[0]) != ("dangling", "init"):
                assert code in (1, 2)
                assert name in err
            assert "unexpected" not in err


# --- many at once, and in the middle ----------------------------------------------------------------------------------


@pytest.mark.parametrize("access", ["local", "shared"])
def test_inits_at_once_make_one_good_db(tmp_path: Path, access: str) -> None:
    path = tmp_path / "db"
    found = ends([start("init", str(path), "--access", access) for _ in range(8)])
    assert found == [(0, "")] * 8
    expected = ["balsam.json", "balsam.sqlite3", "data", "job-templates", "log", "policy.ini", "qsubmit"]
    assert sorted(os.listdir(path)) == expected
    db = open_db(str(path))
    assert db.access == access
    with db.read() as cx:
        assert cx.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert cx.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert select.count_states(cx) == {}
    db.close()
    assert directories.known_paths() == [str(path)]


def test_inits_of_different_dbs_at_once_are_all_remembered(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"db{number}") for number in range(8)]
    assert ends([start("init", path) for path in paths]) == [(0, "")] * 8
    assert sorted(directories.known_paths()) == paths


def test_of_ten_apps_of_one_name_at_once_exactly_one_is_added(directory: str) -> None:
    words = [["--db", directory, "app", "--name", "wanted", "--executable", f"echo {number}"] for number in range(10)]
    found = ends([start(*word) for word in words])
    assert sorted(code for code, _ in found) == [0] + [2] * 9
    assert all("already exists" in err for code, err in found if code)
    with open_db(directory).read() as cx:
        (app,) = [app for app in queries.apps(cx) if app["name"] == "wanted"]
    (winner,) = [number for number, (code, _) in enumerate(found) if code == 0]
    assert app["executable"] == f"echo {winner}"


def is_being_written(probe: sqlite3.Connection) -> bool:
    try:
        probe.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return True
    probe.execute("ROLLBACK")
    return False


def lock_of(db: Database) -> Path:
    return Path(db.directory, "session.lock")


def inode_of(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_a_bulk_insert_that_is_stopped_in_the_middle_leaves_nothing(directory: str, number: int, code: int) -> None:
    before = contents(directory)
    process = start("--db", directory, "make_dummies", "60000")
    probe = sqlite3.connect(Path(directory, "balsam.sqlite3"), timeout=0, isolation_level=None)
    wait_until(lambda: is_being_written(probe), 60, 0.1)
    probe.close()
    assert process.poll() is None
    process.send_signal(number)
    ((found, err),) = ends([process])
    assert (found, err) == (code, "")
    assert contents(directory) == before
    assert balsam(directory, "make_dummies", "3")[0] == 0
    with open_db(directory).read() as cx:
        assert select.count_states(cx) == {"CREATED": 5}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_shared_db_is_free_again_after_a_command_was_stopped(tmp_path: Path, number: int) -> None:
    db = directories.create(str(tmp_path / "db"), "shared")
    process = start("--db", db.directory, "make_dummies", "60000")
    holders = [0, 0, 0]
    wait_until(lambda: holders.append(inode_of(lock_of(db))) or (holders[-1] and len(set(holders[-3:])) == 1), 60, 0.1)
    process.send_signal(number)
    assert ends([process])[0][0] != 0
    code, out, err = balsam(db.directory, "ls", BALSAM_BUSY_TIMEOUT_S="20", BALSAM_LEASE_EXPIRY_S="2")
    assert (code, out, err) == (0, "", "No jobs found matching query\n")


# --- limits of the user, and odd programs -----------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "values"), [("n", (5, 6, 8, 10, 12, 14, 16, 24, 48)), ("v", (20_000, 30_000, 60_000))])
def test_a_launcher_with_small_limits_works_or_says_which_and_loses_nothing(tmp_path: Path, limit: str, values) -> None:
    bench = Bench(tmp_path)
    try:
        bench.app("closes", "bash -c 'exec 0<&- 1>&- 2>&-; sleep 0.1'")
        for value in values:
            jobs = bench.add([{"name": f"{value}-{number}", "application": "closes"} for number in range(3)])
            words = f'ulimit -{limit} {value}; exec "$@"'
            launcher = [*BALSAM, "--db", bench.directory, "launcher", "--consume-all", "--job-mode", "serial"]
            environ = {**environment(), "BALSAM_TROUBLE_TTL_S": "1", "BALSAM_LEASE_EXPIRY_S": "10"}
            done = subprocess.run(
                ["bash", "-c", words, "bash", *launcher], env=environ, capture_output=True, text=True, timeout=60
            )
            found = {bench.job(job)["state"] for job in jobs}
            if done.returncode:
                assert found <= {"CREATED", "PREPROCESSED", "RESTART_READY", "JOB_FINISHED"}, (value, found, done.stderr)
                told = ("open files", "files open", "memory", "Memory")
                assert any(words in done.stderr for words in told), (value, done.stderr)
            else:
                assert found == {"JOB_FINISHED"}, (value, found, done.stderr)
        assert done.returncode == 0, done.stderr
        assert bench.run() == 0
        assert set(bench.states()) == {"JOB_FINISHED"}
        with bench.db.read() as cx:
            assert cx.execute("SELECT max(attempt) FROM job").fetchone() == (1,), "none ran twice"
    finally:
        bench.close()
