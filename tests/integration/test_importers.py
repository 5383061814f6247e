"""Jobs that other programs have kept arrive with their history: from files that these programs have made."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from glob import glob
from pathlib import Path

import pytest
from helpers import TESTS

from balsam_lite.campaigns.importers import sources
from balsam_lite.campaigns.importers.source_content import SourceOptions
from balsam_lite.core.errors import BalsamError
from balsam_lite.db.engine import directories
from balsam_lite.db.store import merge

DATA = TESTS / "data"
DUMP, JOBLOG = DATA / "balsam03.json", DATA / "parallel.joblog"


@pytest.fixture
def db(tmp_path):
    found = directories.create(str(tmp_path / "db"))
    yield found
    found.close()


def imported(db, kind, path, **options):
    content = sources.read(kind, str(path), SourceOptions(**options))
    return merge.merge(db, content.jobs, content.origin, content.apps)


def rows(db, sql):
    with db.read() as cx:
        return [tuple(row) for row in cx.execute(sql)]


def history(db, name):
    sql = f"SELECT to_state, message FROM event JOIN job ON job.id = event.job WHERE job.name = '{name}' ORDER BY event.id"
    return rows(db, sql)


# --- Balsam 0.3 -------------------------------------------------------------------------------------------------------


def test_a_dump_of_balsam_03_arrives_with_applications_jobs_and_dependencies(db):
    done = imported(db, "balsam03", DUMP)
    assert done.added.number == 11
    assert done.new_apps == ["say-hello", "fit", "fail"]
    assert list(done.unknown_apps) == ["gone"]
    assert rows(db, "SELECT name, executable, postprocess, description FROM app WHERE name = 'fit'") == [
        ("fit", "bash -c", "/projects/alloy/check.sh", "fits a curve")
    ]
    found = dict(rows(db, "SELECT name, state FROM job"))
    assert found == {
        "test1": "JOB_FINISHED", "test2": "JOB_FINISHED", "my fit": "JOB_FINISHED", "child": "JOB_FINISHED",
        "broken": "FAILED", "orphan": "FAILED", "killed": "USER_KILLED", "dangling": "USER_KILLED", "own": "USER_KILLED",
        "mpi": "USER_KILLED", "running": "USER_KILLED",
    }  # fmt: skip
    edges = "SELECT p.name, c.name FROM dependency d JOIN job p ON p.id = d.parent JOIN job c ON c.id = d.child ORDER BY 1"
    assert rows(db, edges) == [("broken", "orphan"), ("mpi", "own"), ("my fit", "child")]
    assert done.orphaned == 1  # dangling
    assert dict(done.stopped) == {"CREATED": 3, "RUNNING": 1}


def test_fields_of_balsam_03_keep_their_values(db):
    imported(db, "balsam03", DUMP)
    ((args, nodes, ranks, threads, minutes, environ, data),) = rows(
        db,
        "SELECT args, num_nodes, ranks_per_node, threads_per_rank, wall_time_minutes, environ_vars, data FROM job"
        " WHERE name = 'mpi'",
    )
    assert (args, nodes, ranks, threads, minutes) == ("'a  b' \"c\"", 2, 4, 2, 20)
    assert json.loads(environ) == {"PATH": "/a:/b", "API_KEY": "secret", "EMPTY": ""}
    assert json.loads(data) == {"x": [1, 2.5, None], "text": "Zürich\nβ"}
    assert rows(db, "SELECT job_id, wait_for_parents FROM job WHERE name = 'own'") == [
        ("55089e6d-4c32-469d-ba01-3bc16bb9c6f3", 0)
    ]


def test_the_text_of_a_history_becomes_events_and_runs(db):
    imported(db, "balsam03", DUMP)
    assert [state for state, _ in history(db, "test1")] == ["PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    assert history(db, "broken") == [
        ("PREPROCESSED", ""),
        ("RUNNING", "Not scheduled by service"),
        (
            "RUN_ERROR",
            "ls: cannot access '/nowhere': No such file or directory\n    ls: cannot access 'x': No such file or directory",
        ),
        ("FAILED", ""),
        ("RESTART_READY", "User mutated state from command line"),
        ("RUNNING", "Batch Scheduler ID: 4711"),
        ("RUN_TIMEOUT", "timed out in MPI Ensemble"),
        ("FAILED", ""),
    ]  # fmt: skip
    sql = "SELECT run.attempt, run.return_code, cause FROM run JOIN job ON job.id = run.job WHERE name = 'broken'"
    assert rows(db, sql) == [(1, None, ""), (2, None, "told to stop")]
    assert rows(db, "SELECT attempt, return_code, created FROM job WHERE name = 'test1'") == [(1, 0, 1796073723377243)]
    assert rows(db, "SELECT started, ended, run.return_code FROM run JOIN job ON job.id = run.job WHERE name = 'test1'") == [
        (1796073740652824, 1796073740668638, 0)
    ]


def test_times_are_utc_unless_another_zone_is_named(db):
    from zoneinfo import ZoneInfo

    imported(db, "balsam03", DUMP, zone=ZoneInfo("America/Chicago"))
    assert rows(db, "SELECT created FROM job WHERE name = 'test1'") == [(1796073723377243 + 6 * 3600 * 1_000_000,)]


def test_a_parent_that_runs_again_revives_the_imported_child_that_failed_by_it(db, balsam):
    imported(db, "balsam03", DUMP)
    assert balsam("rerun", "--name", "broken", "--yes")[0] == 0
    assert rows(db, "SELECT state FROM job WHERE name = 'orphan'") == [("AWAITING_PARENTS",)]


def test_jobs_keep_the_directories_in_which_they_ran(db, tmp_path):
    folder = tmp_path / "old" / "data" / "fits" / "my_fit_ac9247b5"
    folder.mkdir(parents=True)
    imported(db, "balsam03", DUMP, directory=str(tmp_path / "old"))
    assert rows(db, "SELECT user_workdir, workdir FROM job WHERE name = 'my fit'") == [(str(folder), str(folder))]
    assert rows(db, "SELECT user_workdir, workdir FROM job WHERE name = 'test1'") == [("", "test/test1_0d87fcfd")]


def test_an_sqlite_file_has_the_same_jobs_which_are_recognized(db, tmp_path):
    path = tmp_path / "old.sqlite3"
    cx = sqlite3.connect(path)
    cx.executescript((DATA / "balsam03_sqlite.sql").read_text(encoding="utf-8"))
    cx.close()
    assert imported(db, "balsam03", path).added.number == 11
    before = rows(db, "SELECT name, job_id, data, environ_vars, created FROM job ORDER BY id")
    assert imported(db, "balsam03", DUMP).already_here == 11
    assert rows(db, "SELECT name, job_id, data, environ_vars, created FROM job ORDER BY id") == before


def as_other_user(directory):
    """Return the words that start a program as a user who may run a PostgreSQL server, which root may not."""
    if os.geteuid():
        return []
    os.chown(directory, 65534, 65534)
    return ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


@pytest.fixture
def server(monkeypatch):
    """A PostgreSQL server with the tables of a DB of Balsam 0.3; gives the directory of that DB."""
    programs = sorted(glob("/usr/lib/postgresql/*/bin")) or [os.path.dirname(shutil.which("initdb") or "")]
    if not os.path.exists(f"{programs[-1]}/initdb") or not shutil.which("psql"):
        pytest.skip("no PostgreSQL server is installed")
    with tempfile.TemporaryDirectory(prefix="balsam-pg-") as place:
        user, data = as_other_user(place), f"{place}/balsamdb"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]

        def run(*words, **more):
            subprocess.run([*user, *words], check=True, cwd=place, stdout=subprocess.DEVNULL, timeout=60, **more)

        run(f"{programs[-1]}/initdb", "-D", data, "-U", "balsam", "-A", "trust", "-E", "UTF8", "--no-sync")
        options = f"-k {place} -p {port} -c listen_addresses=127.0.0.1 -c shared_buffers=1MB -c fsync=off"
        run(f"{programs[-1]}/pg_ctl", "-w", "-D", data, "-l", f"{place}/log", "-o", options, "start")
        try:
            monkeypatch.setenv("PGUSER", "balsam")
            monkeypatch.setenv("PATH", f"{programs[-1]}:{os.environ['PATH']}")
            run("createdb", "-h", place, "-p", str(port), "balsam")
            with open(DATA / "balsam03_postgresql.sql", "rb") as dump:
                run("psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", place, "-p", str(port), "balsam", stdin=dump)
            Path(place, "server-info").write_text(json.dumps({"host": "127.0.0.1", "port": port}), encoding="utf-8")
            yield Path(place)
        finally:
            run(f"{programs[-1]}/pg_ctl", "-w", "-D", data, "-m", "immediate", "stop")


def test_a_postgresql_server_has_the_same_jobs(db, server):
    assert imported(db, "balsam03", server).added.number == 11
    before = rows(db, "SELECT name, job_id, data, environ_vars, created FROM job ORDER BY id")
    assert imported(db, "balsam03", DUMP).already_here == 11
    assert {row[0] for row in before} >= {"mpi", "my fit", "dangling"}
    ((data,),) = rows(db, "SELECT data FROM job WHERE name = 'mpi'")
    assert json.loads(data) == {"x": [1, 2.5, None], "text": "Zürich\nβ"}
    info = json.loads((server / "server-info").read_text(encoding="utf-8"))
    url = f"postgresql://balsam:secret@{info['host']}:{info['port']}/none"
    with pytest.raises(BalsamError, match='database "none" does not exist') as caught:
        imported(db, "balsam03", url)
    assert "secret" not in str(caught.value)


def changed_dump(tmp_path, **fields):
    """Return a dump whose first job has these fields."""
    objects = json.loads(DUMP.read_text(encoding="utf-8"))
    first = next(one for one in objects if one["model"] == "core.balsamjob")
    first["fields"].update(fields)
    path = tmp_path / "dump.json"
    path.write_text(json.dumps(objects), encoding="utf-8")
    return path


def test_values_that_balsam_03_did_not_check_become_valid(db, tmp_path):
    path = changed_dump(
        tmp_path, num_nodes=0, wall_time_minutes=-5, cpu_affinity="core", args="it's -x", environ_vars="junk:A=1", name="a\nb",
        data=[1],
    )  # fmt: skip
    imported(db, "balsam03", path)
    found = rows(
        db,
        "SELECT name, num_nodes, wall_time_minutes, cpu_affinity, args, environ_vars, data FROM job"
        " WHERE job_id LIKE '0d87fcfd%'",
    )
    assert found == [("a_b", 1, 1, "none", "'it'\"'\"'s' -x", '{"A": "1"}', '{"data": [1]}')]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"state": "HAPPY"}, r"The job test1 \[0d87fcfd\] cannot be imported: "),
        ({"state_history": "\n[13-77-2018 10:00:00.0 CREATED]"}, "does not match format"),
        ({"data": "{"}, "JSONDecodeError"),
    ],
)
def test_a_job_that_cannot_be_read_is_named_and_nothing_is_added(db, tmp_path, fields, said):
    with pytest.raises(BalsamError, match=said):
        imported(db, "balsam03", changed_dump(tmp_path, **fields))
    assert rows(db, "SELECT (SELECT count(*) FROM job) + (SELECT count(*) FROM app)") == [(0,)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no output of dumpdata, which begins with \\["),
        ("{}", "no output of dumpdata, which begins with \\["),
        ("[1]", "is no output of dumpdata"),
        ('[{"model": "core.balsamjob"', "is cut off, or no JSON"),
        ('[{"model": "core.balsamjob", "pk": 5, "fields": {}}]', "A job has the id 5, which is no UUID"),
        (DUMP.read_text(encoding="utf-8")[:5000], "is cut off, or no JSON"),
    ],
)
def test_files_that_are_no_dump_are_refused(db, tmp_path, content, said):
    (tmp_path / "dump.json").write_text(content, encoding="utf-8")
    with pytest.raises(BalsamError, match=said):
        imported(db, "balsam03", tmp_path / "dump.json")


def test_sources_that_are_not_there_are_refused(db, tmp_path):
    with pytest.raises(BalsamError, match="no-such-file cannot be read: No such file"):
        imported(db, "balsam03", "no-such-file")
    with pytest.raises(BalsamError, match=r"is no DB of Balsam 0\.3"):
        imported(db, "balsam03", tmp_path)
    (tmp_path / "server-info").write_text('{"host": "", "port": ""}', encoding="utf-8")
    with pytest.raises(BalsamError, match=r"The server of the Balsam DB .* does not run"):
        imported(db, "balsam03", tmp_path)
    cx = sqlite3.connect(tmp_path / "other.sqlite3")
    cx.execute("CREATE TABLE t (a)")
    cx.close()
    with pytest.raises(BalsamError, match="has no table balsamjob; its tables are: t"):
        imported(db, "balsam03", tmp_path / "other.sqlite3")
    with pytest.raises(BalsamError, match=r"There is no kind of source 'balsam3'. Did you mean 'balsam03'\?"):
        imported(db, "balsam3", DUMP)


# --- GNU parallel -----------------------------------------------------------------------------------------------------


def test_the_commands_of_a_joblog_become_jobs_with_their_runs(db, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert imported(db, "joblog", JOBLOG).added.number == 8
    found = rows(db, "SELECT name, state, attempt, return_code FROM job ORDER BY id")
    assert found == [
        ("joblog-1", "JOB_FINISHED", 1, 0),
        ("joblog-2", "JOB_FINISHED", 2, 0),
        ("joblog-3", "FAILED", 2, -9),
        ("joblog-4", "JOB_FINISHED", 1, 0),
        ("joblog-1", "JOB_FINISHED", 1, 0),
        ("joblog-2", "FAILED", 1, -15),
        ("joblog-1", "JOB_FINISHED", 1, 0),
        ("joblog-2", "JOB_FINISHED", 1, 0),
    ]  # fmt: skip
    assert rows(db, "SELECT attempt, return_code, ended - started FROM run WHERE job = 2") == [(1, 7, 65000), (2, 0, 65000)]
    assert rows(db, "SELECT args, user_workdir, application FROM job WHERE id = 7") == [
        ("'echo '\"'\"'a\nb'\"'\"''", str(tmp_path), "commands")
    ]
    assert rows(db, "SELECT cause FROM failure WHERE jobs > 0 ORDER BY 1") == [("--timeout",), ("signal 9 (SIGKILL)",)]
    assert imported(db, "joblog", JOBLOG).already_here == 8


def test_a_command_of_a_joblog_runs_again(db, balsam, tmp_path):
    imported(db, "joblog", JOBLOG, workflow="old", directory=str(tmp_path))
    assert balsam("rerun", "--workflow", "old", "--state", "FAILED", "--where", "return_code=-15", "--yes")[0] == 0
    assert balsam("launcher", "--wf-filter", "old", "--job-mode", "serial")[0] == 0
    assert rows(db, "SELECT state, attempt FROM job WHERE return_code = 0 AND attempt = 2 AND id = 6") == [("JOB_FINISHED", 2)]
    assert (tmp_path / "old-2.out").read_text() == "x\ty 3\n"


HEADER = "Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; a joblog has a line of column names"),
        (b"hello\n", "line 1: this is no joblog of GNU parallel"),
        (HEADER.encode() + b"1\t:\t1.0\n", "line 2: this is no line of a joblog: '1"),
        (HEADER.encode() + b"1\t:\t5\tnan\t0\t0\t0\t0\ttrue\n", "line 2: this is no line of a joblog"),
        (HEADER.encode() + b"1\t:\t5\t1e400\t0\t0\t0\t0\ttrue\n", "line 2: this is no line of a joblog"),
        (HEADER.encode() + b"1\t:\t5\t1\t0\t0\t0\t0\t\xff\n", "line 2: the command is not valid UTF-8"),
    ],
)
def test_files_that_are_no_joblog_are_refused(db, tmp_path, content, said):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(BalsamError, match=said):
        imported(db, "joblog", tmp_path / "log")
    assert rows(db, "SELECT count(*) FROM job") == [(0,)]


def test_the_host_of_a_joblog_is_the_node_of_the_run(db, tmp_path):
    (tmp_path / "log").write_text(HEADER + "1\tme@node7\t1796074984.877\t2.5\t0\t5\t0\t0\ttrue\n" + HEADER)
    imported(db, "joblog", tmp_path / "log")
    assert rows(db, "SELECT nodes, started, ended FROM run") == [("me@node7", 1796074984877000, 1796074987377000)]


# --- the command ------------------------------------------------------------------------------------------------------


def test_balsam_import_tells_what_it_would_import_and_then_does(db, balsam):
    words = ("import", "--from", "balsam03", str(DUMP))
    code, out, err = balsam(*words, "--dry-run")
    assert code == 0
    assert out == f"Would import 11 jobs from {DUMP}.\nNothing was changed.\n"
    assert "3 CREATED, 1 RUNNING" in err
    assert rows(db, "SELECT count(*) FROM job") == [(0,)]
    code, out, err = balsam(*words, "--into-workflow", "all", "--runnable")
    assert out == f"Imported 11 jobs from {DUMP} as #1 to #11.\n"
    assert rows(db, "SELECT DISTINCT workflow FROM job") == [("all",)]
    assert rows(db, "SELECT state FROM job WHERE name = 'running'") == [("RESTART_READY",)]
    assert f"Imported      {'2'}" in balsam("show", "broken")[1]
    assert balsam("import", "--from", "joblog", str(JOBLOG), "--json")[1].startswith('[\n{"jobs": 8, ')


def test_files_are_copied_if_asked_all_or_none(db, balsam, tmp_path):
    old = tmp_path / "old"
    for name in ("my_fit_ac9247b5", "child_ad825898"):
        (old / "data" / "fits" / name / "deep").mkdir(parents=True)
        (old / "data" / "fits" / name / "deep" / "x").write_text(name)
    (old / "data" / "fits" / "child_ad825898" / "link").symlink_to("deep/x")
    words = ("import", "--from", "balsam03", str(DUMP), "--directory", str(old), "--copy-files")
    (tmp_path / "db" / "data" / "fits" / "child_ad825898").mkdir(parents=True)
    code, _, err = balsam(*words)
    assert code == 2
    assert "The files of the jobs cannot be copied; nothing was added" in err
    assert rows(db, "SELECT count(*) FROM job") == [(0,)]
    assert [path.name for path in (tmp_path / "db" / "data" / "fits").iterdir()] == ["child_ad825898"]
    (tmp_path / "db" / "data" / "fits" / "child_ad825898").rmdir()
    assert balsam(*words)[0] == 0
    assert (tmp_path / "db" / "data" / "fits" / "my_fit_ac9247b5" / "deep" / "x").read_text() == "my_fit_ac9247b5"
    assert (tmp_path / "db" / "data" / "fits" / "child_ad825898" / "link").readlink() == Path("deep/x")
    assert rows(db, "SELECT user_workdir, workdir FROM job WHERE name = 'child'") == [("", "fits/child_ad825898")]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--from", "balsam3", "x"], "There is no kind of source 'balsam3'. Did you mean 'balsam03'?"),
        (["--timezone", "UTC", "x"], "--timezone goes with --from KIND."),
        (["--copy-files", "x"], "--copy-files goes with --from KIND."),
        (["--from", "joblog", "--env", "A=b", "x"], "it does not go with --from"),
        (["--from", "balsam03", "--timezone", "Mars", "x"], "There is no time zone 'Mars'."),
    ],
)
def test_words_that_do_not_fit_are_refused(balsam, words, said):
    code, _, err = balsam("import", *words)
    assert code == 2
    assert said in err
