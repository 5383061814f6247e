"""`balsam job --sweep`, `--array`, `--from-file`, `--commands`: many jobs, all or none, and each once if asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from elsewhere import BALSAM, environment
from helpers import Balsam, wait_until
from launching import Bench

from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import select
from balsam_lite.db.store import large_writes, pieces

COMMON = ("--name", "run", "--workflow", "w", "--app", "sim")
SWEEP = (*COMMON, "--yes")
Write = Callable[..., str]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = directories.create(str(tmp_path / "db"))
    from balsam_lite.sites import apps

    apps.create(made, [{"name": "sim", "executable": "echo"}])
    apps.create(made, [{"name": "model", "command_template": "model -t {{T}} -p {{P}}", "parameters": {}}])
    yield made
    made.close()


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(content: str | bytes, name: str = "f.csv") -> str:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    return write


def jobs(db: Database) -> list[dict[str, Any]]:
    with db.read() as cx:
        return select.jobs(cx)


def column(db: Database, name: str) -> list[Any]:
    return [job[name] for job in jobs(db)]


# --- sweeps -----------------------------------------------------------------------------------------------------------


def test_a_sweep_adds_a_job_for_each_combination(balsam: Balsam, db: Database) -> None:
    words = ("--sweep", "T=100:500:200", "--sweep", "P=1,2", "--args", "-t {T} -p {P}")
    assert balsam("job", *SWEEP, *words) == (0, "Added 6 jobs to database: #1 to #6\n", "")
    assert column(db, "args")[:3] == ["-t 100 -p 1", "-t 100 -p 2", "-t 300 -p 1"]
    assert column(db, "name")[-1] == "run-T500-P2"
    assert column(db, "parameters")[-1] == {"T": 500, "P": 2}
    assert {job["workflow"] for job in jobs(db)} == {"w"}


def test_only_variables_are_replaced_and_everywhere(balsam: Balsam, db: Database) -> None:
    code, _, errors = balsam(
        "job", "--name", "x{T}", "--workflow", "w{T}", "--app", "sim", "--sweep", "T=5", "--args", "awk '{print $1}' {T} {P}",
        "--tag", "t={T}", "--env", "V={T}.{U}", "--data", '{"a": "{T}"}', "--num-nodes", "{T}", "--yes",
    )  # fmt: skip
    assert (code, errors) == (0, "")
    (job,) = jobs(db)
    assert (job["name"], job["workflow"], job["num_nodes"]) == ("x5", "w5", 5)
    assert job["args"] == "awk '{print $1}' 5 {P}"
    assert (job["tags"], job["environ_vars"], job["data"]) == ({"t": "5"}, {"V": "5.{U}"}, {"a": "5"})


def test_braces_stay_without_a_sweep(balsam: Balsam, db: Database) -> None:
    assert balsam("job", *SWEEP, "--args", "{i} {T}")[0] == 0
    assert column(db, "args") == ["{i} {T}"]


def test_an_array_gives_i(balsam: Balsam, db: Database) -> None:
    assert balsam("job", *SWEEP, "--array", "1-10:3", "--args", "in.{i}")[0] == 0
    assert column(db, "args") == ["in.1", "in.4", "in.7", "in.10"]
    assert column(db, "name") == ["run-1", "run-4", "run-7", "run-10"]


def test_variables_are_parameters_of_a_template(balsam: Balsam, db: Database) -> None:
    words = (
        "--name",
        "m",
        "--workflow",
        "w",
        "--app",
        "model",
        "--sweep",
        "T=1,2",
        "--param",
        "P={x}",
        "--sweep",
        "x=7",
        "--yes",
    )
    assert balsam("job", *words)[0] == 0
    assert column(db, "parameters") == [{"P": "7", "T": 1}, {"P": "7", "T": 2}]
    assert column(db, "data") == [{"sweep": {"x": 7}}] * 2  # which the template does not take
    code, _, errors = balsam("job", *words[:8], "--yes")
    assert (code, "Missing required parameters: {'P'}" in errors) == (2, True)


def test_zip_and_random(balsam: Balsam, db: Database) -> None:
    assert balsam("job", *SWEEP, "--sweep", "a=1:3", "--sweep", "b=x,y,z", "--zip", "--args", "{a}{b}")[0] == 0
    assert column(db, "args") == ["1x", "2y", "3z"]
    code, _, errors = balsam("job", *SWEEP, "--sweep", "a=1:1e9", "--sweep", "b=1:1e9", "--random", "5", "--args", "{a} {b}")
    assert code == 0
    assert "Drawn with --seed " in errors
    assert len(jobs(db)) == 8
    assert balsam("job", *SWEEP, "--sweep", "a=1:9", "--random", "10")[0] == 2


def test_values_come_from_a_file(balsam: Balsam, db: Database, write: Write) -> None:
    write("in/a.dat\n\nin/b c.dat\r\n", "list")
    assert balsam("job", *SWEEP, "--sweep", "f=@list", "--args", "'{f}'")[0] == 0
    assert column(db, "args") == ["'in/a.dat'", "'in/b c.dat'"]
    assert column(db, "name") == ["run-fin_a.dat", "run-fin_b_c.dat"]


def test_a_sweep_of_a_milliard_says_its_number_and_adds_nothing(balsam: Balsam, db: Database) -> None:
    code, out, errors = balsam("job", *SWEEP, "--sweep", "T=1:1000000000")
    assert (code, out) == (2, "")
    assert "The sweep has 1000000000 combinations; at most 10000000 jobs" in errors
    assert jobs(db) == []


def test_a_variable_that_nothing_uses_is_a_warning(balsam: Balsam, db: Database) -> None:
    assert "{T} is in none of the jobs' arguments" in balsam("job", *SWEEP, "--sweep", "T=1,2")[2]
    assert balsam("job", *SWEEP, "--array", "1-2")[2] == ""  # repetitions


def test_a_sweep_is_shown_before_it_is_added(balsam: Balsam, db: Database, answers: Callable[..., None]) -> None:
    code, out, errors = balsam("job", *COMMON, "--array", "1-500", "--args", "{i}", "--dry-run")
    assert (code, errors) == (0, "")
    assert out.splitlines() == [
        "first: run-1  workflow=w  application=sim  i=1  args: 1",
        "last:  run-500  workflow=w  application=sim  i=500  args: 500",
        "500 jobs would be added.",
    ]
    assert balsam("job", *COMMON, "--array", "1-5")[0] == 2  # no terminal to ask
    answers("n")
    assert balsam("job", *COMMON, "--array", "1-5")[0] == 1
    assert jobs(db) == []
    answers("y")
    code, out, _ = balsam("job", *COMMON, "--array", "1-5")
    assert (code, out.splitlines()[2:]) == (0, ["Add 5 jobs? [y/n]: Added 5 jobs to database: #1 to #5"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--sweep", "T=1", "--from-file", "x.csv"), "exclude each other"),
        (("--array", "1-3", "--commands", "x"), "exclude each other"),
        (("--zip",), "--zip goes with --sweep"),
        (("--random", "3"), "--random goes with --sweep"),
        (("--sweep", "T=1", "--seed", "3"), "--seed goes with --random"),
        (("--input-format", "csv"), "--input-format goes with --from-file"),
        (("--commands", "x"), "leave out --app"),
        (("--on-duplicate", "skip"), "--on-duplicate goes with --unique"),
        (("--sweep", "i=1", "--array", "1"), "The variable i is swept twice"),
        (("--sweep", "T=1,2,1"), "The sweep of T has 1 twice"),
        (("--array", "3,1-4"), "The sweep of i has 3 twice"),
    ],
)
def test_options_that_do_not_go_together(balsam: Balsam, db: Database, words: tuple[str, ...], message: str) -> None:
    code, _, errors = balsam("job", *SWEEP, *words)
    assert (code, message in errors) == (2, True), errors


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_table_adds_a_job_for_each_row(balsam: Balsam, db: Database, write: Write) -> None:
    path = write(
        "\ufeffname,num_nodes,T,parameters.P,tags.size,data.x,data.note,environ_vars.N,wall_time_min,parents\r\n"
        'a,2,1,x,big,0.5,"two\nlines",4,1h,\r\n'
        'b,,2,007,,,,,,"a, a2"\r\n'
        "a2,1,1,y,small,,,,3,\r\n"
    )
    code, out, errors = balsam("job", "--from-file", path, "--app", "model", "--workflow", "w", "--num-nodes", "3", "--yes")
    assert (code, out, errors) == (0, "Added 3 jobs to database: #1 to #3\n", "")
    a, b, _ = jobs(db)
    assert (a["num_nodes"], a["parameters"], a["tags"], a["wall_time_min"]) == (2, {"T": 1, "P": "x"}, {"size": "big"}, 60)
    assert (a["data"], a["environ_vars"]) == ({"x": 0.5, "note": "two\nlines"}, {"N": "4"})
    assert (b["num_nodes"], b["parameters"], b["tags"], b["data"], b["wall_time_min"]) == (
        3,
        {"T": 2, "P": "007"},
        {},
        {},
        1,
    )
    assert (b["state"], b["parent_ids"]) == ("AWAITING_PARENTS", [1, 3])


def test_json_lines_take_all_fields_and_parents_by_name_or_position(balsam: Balsam, db: Database, write: Write) -> None:
    rows = [
        {"name": "prep", "app": "sim", "workflow": "w", "args": "a 'b c'"},
        {"name": "run", "app": "model", "workflow": "w", "T": 1.5, "parameters.P": [1, 2], "parents": ["prep"]},
        {
            "name": "post",
            "application": "sim",
            "workflow": "w",
            "data": {"k": {"deep": None}},
            "parents": [1, 0],
            "tags.z": "1",
        },
    ]
    path = write("\n".join(map(json.dumps, rows)), "f.jsonl")
    assert balsam("job", "--from-file", path, "--yes") == (0, "Added 3 jobs to database: #1 to #3\n", "")
    assert column(db, "parent_ids") == [[], [1], [1, 2]]
    assert column(db, "parameters") == [{}, {"T": 1.5, "P": [1, 2]}, {}]
    assert column(db, "data")[2] == {"k": {"deep": None}}


def test_a_parent_that_is_not_in_the_file_is_a_job_of_the_db(balsam: Balsam, db: Database, write: Write) -> None:
    balsam("job", *COMMON, "--yes")
    path = write("name,parents\na,\nb,run\nc,#1\nd,a\n")
    assert balsam("job", "--from-file", path, "--app", "sim", "--yes")[0] == 0
    assert column(db, "parent_ids") == [[], [], [1], [1], [2]]
    for rows, message in (
        ("a,none\n", "f.csv, line 2, column 2: cannot have that parent: No job in local DB matched none"),
        ("a,\na,\nb,a\n", "f.csv, line 4, column 2: the parent 'a' is the name of several jobs: lines 2, 3."),
        ("a,b\nb,a\n", "f.csv, line 2: Detected circular dependency"),
    ):
        code, _, errors = balsam("job", "--from-file", write(f"name,parents\n{rows}"), "--app", "sim", "--yes")
        assert code != 0
        assert message in errors, errors
    assert len(jobs(db)) == 5


def test_names_and_workflow_come_from_the_name_of_the_file(balsam: Balsam, db: Database, write: Write) -> None:
    assert balsam("job", "--from-file", write("args\n1\n2\n", "scan.csv"), "--app", "sim", "--yes")[0] == 0
    assert [(job["workflow"], job["name"]) for job in jobs(db)] == [("scan", "scan-1"), ("scan", "scan-2")]


BAD = [
    ("name,nmu_nodes\na,1\n", "f.csv, line 1, column 2: there is no field or parameter 'nmu_nodes'. Did you mean 'num_nodes'?"),
    ("name,state\na,CREATED\n", "f.csv, line 1, column 2: state is kept by balsam_lite and cannot be set"),
    ("name,data,data.x\na,{},1\n", "f.csv, line 1, column 3: data is given as a whole and by its keys"),
    ("wall_time_min,wall_time_minutes\n1,1\n", "f.csv, line 1, column 2: wall_time_minutes is given twice"),
    ("name,num_nodes\na,1\nb,0\n", "f.csv, line 3, column 2: job num_nodes must be 1 or more, not 0"),
    ('name,num_nodes\n"a\nb",1\nb,1\n', "f.csv, line 2, column 1: job name must be one line of printable characters"),
    ("name,data\na,{}\nb,{\n", "f.csv, line 3, column 2: data: must be a JSON object"),
    ("name,parents\na,[0.5]\n", "f.csv, line 2, column 2: parents: must be a list of names of jobs"),
    ("name,parents\na,[7]\n", "f.csv, line 2: there is no position 7 in this batch of 1 job(s)"),
    ("name,app\na,sim\nb,smi\n", "f.csv, line 3: There is no application 'smi'"),
    (
        "name,unique_key\na,1\nb,2\nc,1\n",
        "f.csv, line 4, column 2: the unique_key '1' is that of line 2 already. Nothing was added.",
    ),
    ("name,workdir\na,x/1\nb,x/1\n", "f.csv, line 3: line 2 has the workdir x/1 too."),
    ("name,environ_vars.A=B\na,1\n", "f.csv, line 2, column 2: job environ_vars has an impossible variable name: 'A=B'"),
    ("", "f.csv is empty: its first line must name the columns."),
    ("name\n", "f.csv has no jobs; nothing was added."),
    ("name,num_nodes\na\n", "f.csv, line 2, column 2: there is 1 of 2 columns: num_nodes missing"),
    (b"name\n\xff\xfe\n", "f.csv, line 2, column 1: the byte 0xff is not UTF-8"),
    ("name\na\0\n", "f.csv, line 2, column 2: there is a NUL byte"),
    ("name,args\ra,1\r", "f.csv, line 1: there is a carriage return without a newline"),
    ('name,args\na,"' + "x" * 200_000, "f.csv, line 2: a cell is longer than 131072 characters; is a double quote not closed?"),
    ("name;args\na;1\n", "The header is one column. Commas separate the columns of CSV"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
@pytest.mark.parametrize("dry", [False, True])
def test_the_first_error_names_line_and_column_and_nothing_is_added(
    balsam: Balsam, db: Database, write: Write, content: str, message: str, dry: bool
) -> None:
    if "environ_vars" in str(content):
        message = message.replace(", column 2", "")
    words = ["--dry-run"] if dry else ["--yes"]
    code, out, errors = balsam("job", "--from-file", write(content), "--app", "sim", *words)
    assert code != 0
    assert out == ""
    assert message in errors, errors
    assert jobs(db) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"name": "a", "app": "sim"}\n{"name": "b", "app": "sim", "num_nodes": "x"}\n', "line 2: job num_nodes must be"),
        ('{"name": "a", "app": "sim"}\n\n{"name": "b", "nam": 1}\n', "line 3: there is no field or parameter 'nam'"),
        ('{"name": "a"}\n', "line 1: A job needs an app_id"),
        ('{"name": "a", "app": "sim", "parents": {"x": 1}}\n', "line 1: parents: must be a list"),
        ('{"name": "a", "app": "model", "T": 1}\n', "line 1: Missing required parameters: {'P'}"),
        ('{"name": "a"', "line 1, column 13: no JSON"),
        ('{"name": "a", "app": "sim", "data": {"x": -1e999}}\n', "line 1: the number -1e999 is too large"),
        ('{"name": "a", "app": "sim", "data": {"x": %s}}\n' % ("9" * 5000), "line 1: a whole number has too many digits"),
    ],
)
def test_errors_of_json_lines(balsam: Balsam, db: Database, write: Write, content: str, message: str) -> None:
    code, _, errors = balsam("job", "--from-file", write(content, "f.jsonl"), "--yes")
    assert code != 0
    assert f"f.jsonl, {message}" in errors, errors
    assert jobs(db) == []


def test_the_last_of_very_many_lines_is_wrong(
    balsam: Balsam, db: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 1000)
    path = write("args,num_nodes\n" + "1,1\n" * 20_000 + "2,x\n")
    code, _, errors = balsam("job", "--from-file", path, "--app", "sim", "--yes")
    assert (code, "f.csv, line 20002, column 2: job num_nodes" in errors) == (2, True)
    assert jobs(db) == []


def test_a_file_is_read_before_the_question_is_asked(
    balsam: Balsam, db: Database, write: Write, answers: Callable[..., None]
) -> None:
    path = write("name\na\nb\nc\n")
    answers("n")
    code, out, _ = balsam("job", "--from-file", path, "--app", "sim")
    assert (code, out.splitlines()[-1]) == (1, "Add 3 jobs? [y/n]: Add jobs aborted")
    answers("y")
    assert balsam("job", "--from-file", path, "--app", "sim")[0] == 0
    assert column(db, "name") == ["a", "b", "c"]


# --- commands ---------------------------------------------------------------------------------------------------------


def test_commands_run_by_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_balsam: Balsam) -> None:
    bench = Bench(tmp_path)
    monkeypatch.setenv("BALSAM_DB_PATH", bench.directory)
    lines = ["# a comment", "", """echo "it's" $((6 * 7)) '{T}' | tr a-z A-Z > out.txt""", "exit 3"]
    path = tmp_path / "cmds.txt"
    path.write_text("\n".join(lines))
    assert run_balsam("job", "--commands", str(path), "--yes")[1] == "Added 2 jobs to database: #1 to #2\n"
    bench.run()
    first, second = jobs(bench.db)
    assert (first["name"], first["workflow"], first["state"]) == ("cmds-1", "cmds", "JOB_FINISHED")
    assert Path(bench.directory, "data", first["workdir"], "out.txt").read_text() == "IT'S 42 {T}\n"
    assert (second["state"], second["return_code"]) == ("FAILED", 3)
    assert run_balsam("job", "--commands", str(path), "--name", "again", "--workflow", "x", "--yes")[0] == 0
    assert [job["name"] for job in jobs(bench.db)[2:]] == ["again-1", "again-2"]


def test_the_application_of_commands_must_be_free(balsam: Balsam, db: Database, write: Write) -> None:
    balsam("app", "--name", "commands", "--executable", "other")
    code, _, errors = balsam("job", "--commands", write("a\n", "c"), "--yes")
    assert (code, "is registered with another command line than bash -c: other" in errors) == (2, True)


def test_the_application_of_commands_comes_with_the_jobs_or_not_at_all(balsam: Balsam, db: Database, write: Write) -> None:
    assert balsam("job", "--commands", write("a\nb \\\n", "c"), "--yes")[0] == 2
    assert "c has no jobs; nothing was added" in balsam("job", "--commands", write("# none\n", "c"), "--yes")[2]
    assert [app["name"] for app in json.loads(balsam("app", "ls", "--json")[1])] == ["sim", "model"]
    assert balsam("job", "--commands", write("a\n", "c"), "--yes")[0] == 0
    assert balsam("job", "--commands", write("a\n", "c"), "--yes")[0] == 0
    assert [app["name"] for app in json.loads(balsam("app", "ls", "--json")[1])] == ["sim", "model", "commands"]


def test_a_dry_run_of_commands_writes_nothing(balsam: Balsam, db: Database, write: Write) -> None:
    code, out, _ = balsam("job", "--commands", write("a 1\nb\n", "c"), "--dry-run")
    assert (code, out.splitlines()[-1]) == (0, "2 jobs would be added.")
    assert [app["name"] for app in json.loads(balsam("app", "ls", "--json")[1])] == ["sim", "model"]


def feed(words: list[str], text: bytes, db: Database) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*BALSAM, *words], input=text, capture_output=True, env={**environment(), "BALSAM_DB_PATH": db.directory}, timeout=60
    )
    return subprocess.CompletedProcess(words, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_stdin_is_read_as_a_file_is(db: Database) -> None:
    done = feed(["job", "--commands", "-", "--yes"], b"echo 1\necho 2\n", db)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Added 2 jobs to database: #1 to #2\n", "")
    assert column(db, "name") == ["commands-1", "commands-2"]
    words = ["job", "--from-file", "-", "--app", "sim"]
    assert "Name the format of stdin" in feed([*words, "--yes"], b"", db).stderr
    assert "give --yes or --dry-run" in feed([*words, "--input-format", "csv"], b"", db).stderr
    assert "stdin, line 3" in feed([*words, "--input-format", "csv", "--yes"], b"name,args\na,1\nb", db).stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["job", "--from-file", "-", "--input-format", "csv", "--app", "sim", "--yes"], "name,args\na,1\nb,12"),
        (["job", "--from-file", "-", "--input-format", "csv", "--app", "sim", "--dry-run"], "name,args\na,1\nb,12"),
        (["job", "--from-file", "-", "--input-format", "jsonl", "--app", "sim", "--yes"], '{"name": "a"}\n\n{"name": "b"}'),
        (["job", "--commands", "-", "--yes"], "echo 1\n\nrm -r /tmp/a"),
        (["apply", "-"], "version: 1\ncampaign: c\ngroups: {a: {application: sim}}"),
    ],
)
def test_stdin_that_ends_within_a_line_adds_nothing(db: Database, words: list[str], text: str) -> None:
    done = feed(words, text.encode(), db)
    assert done.returncode == 2
    assert "stdin, line 3: the last line has no end, as if the program that wrote it was interrupted" in done.stderr
    assert jobs(db) == []


def test_stdin_that_is_closed_is_an_error(db: Database) -> None:
    words = [*BALSAM, "job", "--commands", "-", "--yes"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *words], capture_output=True, env={**environment(), "BALSAM_DB_PATH": db.directory}
    )
    assert (done.returncode, done.stderr) == (2, b"Error: stdin cannot be read: it is closed.\n")


def test_jobs_that_wait_for_each_other_are_named_by_their_lines(balsam: Balsam, db: Database, write: Write) -> None:
    _, _, err = balsam("job", "--from-file", write("name,parents\n\na,b\nb,a\n"), "--app", "sim", "--yes")
    assert "f.csv, line 3: Detected circular dependency" in err
    assert "2 jobs would wait for each other: lines 3, 4." in err


def test_an_existing_job_is_named_once(balsam: Balsam, db: Database, write: Write) -> None:
    words = ("job", "--from-file", write("name,unique_key\na,k\nb,k\n"), "--app", "sim", "--yes", "--on-duplicate", "skip")
    balsam(*words)
    assert "Skipped 2 jobs whose unique key is there already: #1\n" in balsam(*words)[1]


def test_ctrl_c_in_the_middle_adds_nothing(db: Database) -> None:
    words = [*BALSAM, "job", "--from-file", "-", "--input-format", "csv", "--app", "sim", "--yes"]
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={**environment(), "BALSAM_DB_PATH": db.directory}
    )
    assert process.stdin and process.stderr
    process.stdin.write(b"name\n" + b"a\n" * 20_000)
    process.stdin.flush()
    wait_until(lambda: "pipe" in os.readlink(f"/proc/{process.pid}/fd/0") and _is_reading(process.pid))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert jobs(db) == []


def test_ctrl_c_while_the_jobs_are_inserted_adds_nothing(db: Database, write: Write) -> None:
    path = write("args\n" + "1\n" * 60_000)
    words = [*BALSAM, "job", "--from-file", path, "--app", "sim", "--unique", "name", "--yes"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, env={**environment(), "BALSAM_DB_PATH": db.directory})

    def hidden() -> bool:
        with db.read() as cx:
            return bool(cx.execute("SELECT 1 FROM large_write WHERE has_keys AND done > 0").fetchone())

    wait_until(lambda: hidden() or process.poll() is not None, 120)
    assert process.poll() is None, "it was too quick"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert jobs(db) == []
    assert feed(["job", "--from-file", path, "--app", "sim", "--unique", "name", "--dry-run"], b"", db).returncode == 0


def _is_reading(pid: int) -> bool:
    return "pipe_read" in Path(f"/proc/{pid}/wchan").read_text() or Path(f"/proc/{pid}/stat").read_text().split()[2] == "S"


# --- once only --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["name", "workflow+name", "args", "hash"])
def test_the_same_command_again_adds_only_what_is_new(balsam: Balsam, db: Database, by: str) -> None:
    words = ("job", *SWEEP, "--args", "-t {T}", "--unique", by)
    assert balsam(*words, "--sweep", "T=1,2")[0] == 0
    code, _, errors = balsam(*words, "--sweep", "T=1,2,3")
    assert code == 2
    assert "is that of job run-T1 [" in errors
    assert "1 more of these jobs has the key of another one. Nothing was added" in errors
    assert balsam(*words, "--sweep", "T=1,2,3", "--on-duplicate", "skip")[1].splitlines() == [
        "Added 1 job to database: #3",
        "Skipped 2 jobs whose unique key is there already: #1, #2",
    ]
    assert balsam(*words, "--sweep", "T=1,2,3", "--on-duplicate", "skip", "--dry-run")[1].splitlines()[-1] == (
        "0 jobs would be added, 3 skipped."
    )
    assert column(db, "args") == ["-t 1", "-t 2", "-t 3"]


def test_one_job_is_unique_too(balsam: Balsam, db: Database) -> None:
    words = ("job", *SWEEP, "--unique", "hash", "--args", "1")
    assert balsam(*words)[0] == 0
    code, _, errors = balsam(*words)
    assert (code, "is that of job run [" in errors) == (2, True)
    code, out, _ = balsam(*words, "--on-duplicate", "skip")
    assert (code, out.splitlines()[-1]) == (0, "Skipped 1 job whose unique key is there already: #1")
    assert balsam(*words[:-1], "2")[0] == 0
    assert len(jobs(db)) == 2


def test_what_a_hash_is_made_of_stays(balsam: Balsam, db: Database) -> None:
    """A hash that changed with a version would add a campaign again."""
    balsam("job", *SWEEP, "--unique", "hash", "--args", "1", "--env", "A=1", "--tag", "x=y", "--priority", "3")
    balsam("job", *SWEEP, "--unique", "args", "--args", "1")
    balsam("job", *SWEEP, "--unique", "workflow+name")
    assert column(db, "unique_key") == [
        "hash:b3047a320d9d727d75aff2aabe695c6b",
        "args:dfe149029f3bc018b6b16b58a184790f",
        'workflow+name:["w","run"]',
    ]


def test_a_column_of_keys(balsam: Balsam, db: Database, write: Write) -> None:
    path = write("name,unique_key\na,k1\nb,\nc,k2\n")
    assert balsam("job", "--from-file", path, "--app", "sim", "--yes")[0] == 0
    assert column(db, "unique_key") == ["k1", None, "k2"]
    code, out, _ = balsam("job", "--from-file", path, "--app", "sim", "--yes", "--on-duplicate", "skip")
    assert (code, out.splitlines()) == (
        0, ["Added 1 job to database: #4", "Skipped 2 jobs whose unique key is there already: #1, #3"],
    )  # fmt: skip
    code, _, errors = balsam("job", "--from-file", path, "--app", "sim", "--yes", "--unique", "name")
    assert (code, "there are --unique and a unique_key" in errors) == (2, True)


def test_very_many_jobs_are_one_insert_with_parents_that_come_later(
    balsam: Balsam, db: Database, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_writes, "MAX_DIRECT_JOBS", 100)
    monkeypatch.setattr(pieces, "INSERT_UNIT", 50)
    rows = "".join(f"n{number},n{number + 1}\n" for number in range(399))
    path = write(f"name,parents\n{rows}n399,\n")
    words = ("job", "--from-file", path, "--app", "sim", "--yes", "--unique", "name")
    assert balsam(*words)[1] == "Added 400 jobs to database: #1 to #400\n"
    assert column(db, "parent_ids") == [*([number] for number in range(2, 401)), []]
    write(f"name,parents\n{rows}n399,\nnew,n0\n")
    assert balsam(*words, "--on-duplicate", "skip")[1].splitlines()[0] == "Added 1 job to database: #401"
    assert column(db, "parent_ids")[-1] == [1]
