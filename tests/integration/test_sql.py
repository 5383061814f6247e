"""`balsam sql`: documented views, read-only, for a limited time, with errors that help."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from elsewhere import environment
from helpers import Balsam, wait_until

from balsam_lite.core import field_specs
from balsam_lite.core.errors import InputError
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import user_sql, views
from balsam_lite.db.store import apps, claims, insert, leases, runs

#: The columns of each view that scripts rely on: none may go or change its meaning without a new `views.VERSION`.
_OF_RUN = " node started ended runtime_s user_cpu_s system_cpu_s max_memory_bytes"
_JOB = "id job_id name workflow application return_code attempt"
KEPT = {
    "jobs": f"{_JOB} state description args parameters tags data environ_vars num_nodes ranks_per_node created parents"
    f" last_update failure app_id{_OF_RUN}",
    "runs": f"job attempt return_code cause gpus cpus launcher{_OF_RUN}",
    "events": "id job time from_state to_state message data",
    "results": f"{_JOB} state parameters tags data created failure{_OF_RUN}",
    "failures": f"{_JOB} failure message{_OF_RUN}",
}


@pytest.fixture
def db(tmp_path: Path):
    """Three jobs, of which one has run and one has failed, and one that has a secret."""
    found = directories.create(str(tmp_path / "db"))
    fill(found)
    yield found
    found.close()


def fill(db: Database) -> None:
    with db.write() as cx:
        apps.add_app(cx, {"name": "say", "executable": "echo"})
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
    insert.add_jobs(
        db,
        [
            {
                "name": "good",
                "workflow": "w",
                "application": "say",
                "data": {"energy": -1.5, "n": {"x": 1}},
                "tags": {"k": "v"},
            },
            {"name": "bad", "workflow": "w", "application": "say"},
            {"name": "new", "workflow": "v", "application": "say", "environ_vars": {"API_TOKEN": "hush", "A": "b"}},
        ],
    )
    with db.write() as cx:
        cx.execute("UPDATE job SET state = 'RUNNING', attempt = 1, lease = ? WHERE id < 3", (lease,))
        cx.execute(
            "INSERT INTO run (job, attempt, lease, nodes, started) VALUES (1, 1, 1, 'n1', 1000000), (2, 1, 1, 'n2', 1000000)"
        )
        ended = [
            runs.RunResult(1, 1, "RUN_DONE", 0, "", 1_000_000, 3_500_000),
            runs.RunResult(2, 1, "RUN_ERROR", 2, "Exit code 2", 1_000_000, 2_000_000),
        ]
        claims.finish(cx, lease, ended, 3_500_000)


def rows(balsam: Balsam, query: str, *words: str) -> list[dict[str, str]]:
    code, out, err = balsam("sql", query, "--format", "csv", *words)
    assert code == 0, err
    return list(csv.DictReader(io.StringIO(out)))


def test_the_views_have_the_columns_on_which_scripts_rely() -> None:
    assert views.VERSION == 1
    for name, columns in KEPT.items():
        assert set(columns.split()) <= {column.name for column in views.BY_NAME[name].columns}
    assert set(views.BY_NAME) == set(KEPT)
    assert {field.name for field in field_specs.JOB_FIELDS} <= {column.name for column in views.BY_NAME["jobs"].columns}


def test_every_column_can_be_read_and_has_a_meaning(balsam: Balsam, db: Database) -> None:
    for view in views.VIEWS:
        assert all(column.meaning for column in view.columns)
        code, out, err = balsam("sql", f"SELECT * FROM {view.name}", "--format", "jsonl")
        assert (code, err) == (0, "")
        assert list(json.loads(out.splitlines()[0])) == [column.name for column in view.columns]


def test_a_query_joins_counts_and_reads_json(balsam: Balsam, db: Database) -> None:
    found = rows(balsam, "SELECT name, state, runtime_s, started, json_extract(data, '$.energy') AS e FROM results ORDER BY id")
    assert found[0] == {
        "name": "good", "state": "JOB_FINISHED", "runtime_s": "2.5", "started": "1970-01-01T00:00:01.000000Z", "e": "-1.5",
    }  # fmt: skip
    assert found[2]["started"] == "" and found[2]["runtime_s"] == ""
    joined = rows(balsam, "SELECT j.name, count(*) AS n FROM events e JOIN jobs j ON j.id = e.job GROUP BY 1 ORDER BY 1")
    assert [row["name"] for row in joined] == ["bad", "good", "new"]
    assert rows(balsam, "SELECT value FROM results, json_each(results.tags) WHERE results.id = 1") == [{"value": "v"}]
    assert rows(balsam, "SELECT job FROM runs WHERE node = 'n2'") == [{"job": "2"}]


def test_failures_tell_the_cause(balsam: Balsam, db: Database) -> None:
    assert rows(balsam, "SELECT name, failure, node FROM failures") == [{"name": "bad", "failure": "exit code 2", "node": "n2"}]


def test_a_query_is_read_from_a_file_and_from_stdin(balsam: Balsam, db: Database, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "q.sql").write_text("-- how many\nSELECT count(*) AS n\nFROM jobs;\n")
    assert balsam("sql", "--file", "q.sql", "--format", "csv")[:2] == (0, "n\n3\n")
    for words in (["-"], ["--file", "-"]):
        monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1 AS one"))
        assert balsam("sql", *words, "--format", "csv")[:2] == (0, "one\n1\n")
    assert balsam("sql", "--file", "none.sql")[0] == 1
    assert balsam("sql")[0] == balsam("sql", "SELECT 1", "--file", "q.sql")[0] == 2


def test_a_result_without_rows_has_its_header(balsam: Balsam, db: Database, tmp_path: Path) -> None:
    assert balsam("sql", "SELECT id FROM jobs WHERE id = 9", "--format", "csv")[:2] == (0, "id\n")
    assert balsam("sql", "SELECT id FROM jobs WHERE id = 9", "--json")[:2] == (0, "[]\n")


def test_two_columns_of_one_name_are_both_there(balsam: Balsam, db: Database) -> None:
    assert rows(balsam, "SELECT id, id, name AS id FROM jobs LIMIT 1") == [{"id": "1", "id_2": "1", "id_3": "good"}]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("DELETE FROM job", "remove rows of job"),
        ("UPDATE job SET name = 'x'", "change job"), ("DROP TABLE job", "only reads"),
        ("INSERT INTO job (job_id) VALUES ('x')", "add rows to job"), ("DELETE FROM jobs", "is a view"),
        ("WITH x AS (SELECT 1) DELETE FROM job", "only reads"), ("ATTACH '/tmp/x' AS y", "attach"),
        ("PRAGMA journal_mode = DELETE", "PRAGMA"), ("SELECT * FROM pragma_table_info('job')", "more than the views"),
        ("SELECT load_extension('x')", "load_extension"), ("BEGIN", "transaction"), ("SAVEPOINT s", "savepoint"),
        ("VACUUM INTO '/tmp/y'", "VACUUM"), ("CREATE TEMP TABLE t (x)", "only reads"), ("SELECT 1; SELECT 2", "more than one"),
        ("SELECT 1; DELETE FROM job", "more than one"), ("", "is empty"), ("/* nothing */ ;", "is empty"),
        ("SELECT nmae FROM jobs", "column 'nmae' (line 1, column 8). Did you mean 'name'?"),
        ("SELECT id,\n nmae FROM jobs", "(line 2, column 2)"), ('SELECT "nmae" FROM jobs', "Did you mean 'name'?"),
        ("SELECT name FROM job", "Did you mean 'jobs'?"), ("SELECT * FROM sqlite_master", "no view 'sqlite_master'"),
        ("SELEC 1", "near 'SELEC' (line 1, column 1)"), ("SELECT foo(1)", "no function 'foo'"),
        ("SELECT id FROM jobs j JOIN results r ON j.id = r.id", "several columns 'id'"),
    ],
)  # fmt: skip
def test_what_is_no_query_is_refused_with_words(balsam: Balsam, db: Database, query: str, said: str) -> None:
    before = Path(db.path).stat().st_mtime_ns
    code, out, err = balsam("sql", query)
    assert (code, out) == (2, ""), err
    assert said in err
    assert Path(db.path).stat().st_mtime_ns == before
    with db.read() as cx:
        assert cx.execute("SELECT count(*) FROM job").fetchone()[0] == 3


def test_names_in_double_quotes_are_columns_or_aliases(balsam: Balsam, db: Database) -> None:
    query = """SELECT "name" AS "the name", 'a "text"' AS t FROM "jobs" ORDER BY "the name" LIMIT 1"""
    assert rows(balsam, query) == [{"the name": "bad", "t": 'a "text"'}]


def test_secret_variables_are_masked_whatever_the_query_calls_itself(balsam: Balsam, db: Database) -> None:
    assert [json.loads(row["e"]) for row in rows(balsam, "SELECT environ_vars AS e FROM jobs WHERE id = 3")] == [
        {"API_TOKEN": "***", "A": "b"}
    ]
    for query in (
        "SELECT environ_vars FROM jobs", "SELECT * FROM jobs", "WITH jobs AS (SELECT environ_vars FROM job) SELECT * FROM jobs",
        "SELECT e FROM (SELECT environ_vars AS e FROM jobs)", "SELECT max(environ_vars) FROM jobs GROUP BY environ_vars",
    ):  # fmt: skip
        _, out, err = balsam("sql", query, "--format", "jsonl")
        assert "hush" not in out + err


def test_jobs_that_are_still_being_added_are_in_no_view(balsam: Balsam, db: Database) -> None:
    with db.write() as cx:
        names = "host, pid_namespace, pid, started, touched, total, first, last"
        cx.execute(f"INSERT INTO large_write ({names}) VALUES ('h', 'n', 1, 's', 1, 1, 1, 2)")
    for view, number in (("jobs", 1), ("results", 1), ("runs", 0), ("failures", 0)):
        assert rows(balsam, f"SELECT count(*) AS n FROM {view}") == [{"n": str(number)}]
    assert rows(balsam, "SELECT DISTINCT job FROM events") == [{"job": "3"}]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT {} FROM n"


@pytest.mark.parametrize("what", ["max(i)", "i"])
def test_a_query_that_never_ends_is_ended(balsam: Balsam, db: Database, tmp_path: Path, what: str) -> None:
    started = time.monotonic()
    code, _, err = balsam("sql", ENDLESS.format(what), "--timeout", "0.3", "-o", "out.csv")
    assert code == 1 and "took longer than 0.3 s" in err
    assert time.monotonic() - started < 30
    assert not list(tmp_path.glob("out.csv*"))


def test_ctrl_c_ends_a_query(db: Database) -> None:
    argv = [sys.executable, "-m", "balsam_lite.cli", "sql", ENDLESS.format("max(i)")]
    environ = {**environment(), "BALSAM_DB_PATH": db.directory}
    with subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: _has_run_for(process.pid, 0.5))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b""), err
    assert b"Traceback" not in err


def _has_run_for(pid: int, seconds: float) -> bool:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK") > seconds


def test_a_query_on_a_shared_db_does_not_keep_it_locked(tmp_path: Path) -> None:
    db = directories.create(str(tmp_path / "db"), access="shared")
    fill(db)
    with user_sql.opened(db) as there:
        names, found = there.query("SELECT name FROM jobs ORDER BY id", 60)
        assert next(found)[0] == "good"
        with Database(db.directory, "shared", busy_timeout_s=5).write() as cx:
            cx.execute("UPDATE job SET name = 'other'")
        assert [row[0] for row in found] == ["bad", "new"], "it sees the DB as it was"
    assert names == ["name"]
    db.close()


def test_an_error_in_the_middle_leaves_the_db_usable(db: Database) -> None:
    with user_sql.opened(db) as there, pytest.raises(InputError):
        there.query("SELECT nothing", 60)
    with user_sql.opened(db) as there:
        assert list(there.query("SELECT count(*) FROM jobs", 60)[1]) == [(3,)]
    with db.write() as cx:
        cx.execute("UPDATE job SET name = 'x'")


def test_the_list_of_views_is_a_listing(balsam: Balsam, db: Database) -> None:
    code, out, _ = balsam("sql", "--views", "--json")
    assert code == 0
    assert {"view": "results", "column": "state"}.items() <= [one for one in json.loads(out) if one["column"] == "state"][
        1
    ].items()
