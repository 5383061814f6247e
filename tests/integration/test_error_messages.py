"""Every error of a command is a sentence that quotes the value it is about and tells what to do next."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from helpers import Balsam

from balsam_lite.cli.main import main
from balsam_lite.core import field_specs
from balsam_lite.db.engine import directories
from balsam_lite.db.store import apps, graph, insert

JOB = ("job", "--name", "n", "--workflow", "w", "--yes")
CREATE = ("job", "create", "-w", "d", "--yes")
SUBMIT = ("submit-launch", "-n", "1", "-t", "5")

#: The words of a command, the value that its error quotes, and the nearest name or "" where there is none.
CASES: list[tuple[tuple[str, ...], str, str]] = [
    (("lss",), "lss", "ls"),
    (("job", "lss"), "job lss", "job ls"),
    (("queue", "sumbit"), "queue sumbit", "queue submit"),
    (("site", "remove"), "site remove", "site rename"),
    (("ls", "--nmae", "x"), "--nmae", "--name"),
    (("job", "ls", "--exclude-sate", "x"), "--exclude-sate", "--exclude-state"),
    (("ls", "jobz"), "jobz", "jobs"),
    (("ls", "--limit", "0"), "0", ""),
    (("ls", "--sort", "nmae"), "nmae", "name"),
    (("ls", "--format", "cvs"), "cvs", "csv"),
    (("ls", "--format", "csv", "--columns", "nmae"), "nmae", "name"),
    (("ls", "--state", "FAILD"), "FAILD", "FAILED"),
    (("ls", "--tag", "run"), "run", ""),
    (("job", "ls", "--where", "num_node__lte=4"), "num_node__lte", "num_nodes"),
    (("job", "ls", "--where", "num_nodes__lteq=4"), "lteq", "lte"),
    (("job", "ls", "--where", "num_nodes"), "num_nodes", ""),
    (("job", "ls", "--where", "num_nodes=many"), "many", ""),
    (("job", "ls", "--where", "data__x__iconatins=4"), "iconatins", "icontains"),
    (("rerun", "--wf", "tset", "--yes"), "tset", "test"),
    (("rerun", "--name", "alone", "--set", "num_node=2", "--yes"), "num_node", "num_nodes"),
    (("rerun", "--name", "alone", "--set", "num_nodes", "--yes"), "num_nodes", ""),
    (("rerun", "--name", "alone", "--to", "READY", "--yes"), "READY", ""),
    (("modify", "alone", "num_node", "2"), "num_node", "num_nodes"),
    (("modify", "alone", "state", "FINISHED"), "FINISHED", "JOB_FINISHED"),
    (("modify", "alone", "num_nodes", "0"), "0", ""),
    (("modify", "nosuch", "num_nodes", "2"), "nosuch", ""),
    (("modify", "twice", "num_nodes", "2"), "twice", ""),
    (("modify", "--type", "apps", "sya", "executable", "echo"), "sya", "say"),
    (("modify", "alone", "application", "sya"), "sya", "say"),
    (("modify", "alone", "data", "{"), "{", ""),
    (("killjob", "--id", "nosuch", "--yes"), "nosuch", ""),
    (("rm", "jobs", "--name", "alnoe", "--force"), "alnoe", ""),
    (("rm", "apps", "--name", "sya", "--force"), "sya", "say"),
    (("rm", "job",), "job", "jobs"),
    (("app", "rm", "--name", "sya"), "sya", "say"),
    (("dep", "alone", "alone"), "#1", ""),
    (("app", "--name", "say", "--executable", "echo"), "say", ""),
    (("app", "--name", "new", "--executable", "echo 'x"), "echo 'x", ""),
    ((*JOB, "--application", "sya"), "sya", "say"),
    ((*JOB, "--application", "say", "--num-nodes", "x"), "x", ""),
    ((*JOB, "--application", "say", "--run-when", "all_endd"), "all_endd", "all_ended"),
    ((*JOB, "--application", "say", "--cpu-affinity", "deep"), "deep", ""),
    ((*JOB, "--application", "say", "--parent", "nosuch"), "nosuch", ""),
    ((*JOB, "--application", "say", "--env", "X"), "X", ""),
    ((*JOB, "--application", "say", "--retry-codes", "x"), "x", ""),
    ((*CREATE, "--app", "sya"), "sya", "say"),
    ((*CREATE, "--app", "say", "--wall-time-min", "soon"), "soon", ""),
    ((*CREATE, "--app", "say", "-pid", "77"), "77", ""),
    ((*SUBMIT, "--job-mode", "seral"), "seral", "serial"),
    ((*SUBMIT, "--job-mode", "mpi", "--part", "mpi"), "mpi", ""),
    (("queue", "rm", "qlaunch9"), "qlaunch9", ""),
    (("job", "ls", "--site", "nowhere"), "nowhere", ""),
    (("site", "rename", "nowhere", "x"), "nowhere", ""),
    (("site", "add", "far", "http://x"), "http://x", ""),
    (("which", "--name", "nowhere"), "nowhere", ""),
    (("--db", "nowhere", "ls"), "nowhere", ""),
    (("plot", "gant"), "gant", "gantt"),
    (("plot", "gantt", "--after", "yesterday"), "yesterday", ""),
    (("plot", "gantt", "-o", "x.gif"), "x.gif", ""),
    (("service", "strat"), "strat", "start"),
    (("db", "check", "--seconds", "99"), "99.0", ""),
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DB with two applications and some jobs, none of which the tests change."""
    folder = tmp_path_factory.mktemp("messages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BALSAM_HOME", str(folder / "home"))
        db = directories.create(str(folder / "db"))
        with db.write() as cx:
            for name in ("say", "fit"):
                apps.add_app(cx, {"name": name, "executable": "echo"})
        names = ("alone", "twice", "twice", "above", "below")
        insert.add_jobs(db, [{"name": name, "workflow": "test", "application": "say"} for name in names])
        with db.write() as cx:
            graph.add_dependency(cx, 4, 5, 1)
        db.close()
    return folder


@pytest.fixture
def balsam(directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Balsam:
    for name in [name for name in os.environ if name.startswith("BALSAM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("BALSAM_HOME", str(directory / "home"))
    monkeypatch.setenv("BALSAM_DB_PATH", str(directory / "db"))
    monkeypatch.chdir(directory)

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(words))
        return (code, *capsys.readouterr())

    return call


#: What a message may begin with that is no capital letter: a field, an option, a path, a quoted value.
NAMES = {*field_specs.JOB_FIELD, *field_specs.APP_FIELD, "job", "app"}
#: What tells the user how to go on where there is no second line.
ADVICE = re.compile(
    r"Did you mean '|must |needs to be |as a shell does|for itself|is not one of|There (is|are): |Try '|`balsam|Give |Use |"
    r"is not in the range"
)
UNWANTED = re.compile(
    r"whoever|nobody|somebody|anybody|so (many|much|long|far|often)|once more|of its own|\bmend", re.IGNORECASE
)


@pytest.mark.parametrize(
    ("words", "value", "near"), CASES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_an_error_is_a_sentence_with_its_value_and_what_to_do(
    balsam: Balsam, words: tuple[str, ...], value: str, near: str
) -> None:
    code, out, err = balsam(*words)
    assert code in (1, 2, 3), err
    assert out == ""
    usage, found, message = err.rpartition("Error: ")
    assert found, err
    first = message.split()[0]
    assert first[0].isupper() or first[0].isdigit() or first[0] in "'-/`" or re.split("__|:", first)[0] in NAMES, message
    line, _, hint = message.strip().partition("\n")
    assert f"{value!r}" in message or f"'{value}" in message or f'"{value}' in message or f" {value}" in message, message
    assert hint or usage or ADVICE.search(line), message
    if near:
        assert f"Did you mean {near!r}?" in message
    assert not UNWANTED.search(message)
    assert "Traceback" not in err and "unexpected" not in err
