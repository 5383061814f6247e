"""`balsam show` as a process: what it shows of a job, on any terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from looking import BALSAM, Job, active_db, run
from sshd import far_site

from balsam_lite.core import field_specs
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import user_actions
from balsam_lite.sites import details


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    with active_db(tmp_path, monkeypatch) as found:
        yield found


def attempt(db: Database, job: Job, number: int, code: int | None) -> None:
    """Record an attempt of three seconds, or one that still runs."""
    ended = None if code is None else 4_000_000
    row = (job.number, number, "nid[1-2]", "0,1", 1_000_000, ended, code, 2_500_000, 0, 3 * 10**9, "limit" if code else "")
    with db.write() as cx:
        cx.execute(
            "INSERT INTO run (job, attempt, nodes, gpus, started, ended, return_code, user_us, system_us, max_memory, cause) "
            f"VALUES ({', '.join('?' * len(row))})",
            row,
        )


def facts(screen: str) -> dict[str, str]:
    """Return what follows each label; lines without one belong to the label before."""
    found: dict[str, str] = {}
    label = ""
    for line in screen.splitlines()[1:]:
        label = line[:13].strip() or label
        found[label] = f"{found[label]}\n{line[14:]}" if label in found else line[14:]
    return found


def test_all_of_a_job_is_on_the_screen(db: Database) -> None:
    parents = [Job(db, f"parent{number}") for number in range(7)]
    environ = {"X": "1", "MY_TOKEN": "s"}
    above = [one.number for one in parents]
    job = Job(db, "main", args="'exit $X'", parents=above, num_nodes=2, environ_vars=environ, tags={"k": "v"})
    child = Job(db, "child", parents=[job.number])
    for parent in parents[:6]:
        parent.set("JOB_FINISHED")
    job.set("FAILED", 2, "nonzero return 1")
    parents[6].set("USER_KILLED")
    attempt(db, job, 1, -9)
    attempt(db, job, 2, 1)
    job.write(b"".join(b"line %d\n" % number for number in range(20)))
    user_actions.update_fields(db, [job.number], {"priority": 7})
    code, out, err = run("show", "main")
    assert (code, err) == (0, "")
    assert out.startswith(f"Job [main | {job.job_id[:8]}], #{job.number}, {job.job_id}\n")
    found = facts(out)
    assert found["State"].startswith("FAILED since ")
    assert "nonzero return 1" in found["Why"]
    assert "balsam rerun" in found["Why"]
    assert found["Application"] == "sh"
    assert "priority: 0 -> 7 (" in found["Edited"]
    assert found["Command"] == "bash -c 'exit $X'"
    assert found["Directory"] == str(job.workdir)
    assert (found["num_nodes"], found["workflow"], found["tags"]) == ("2", "w", "k=v")
    assert "MY_TOKEN" in found["environ_vars"]
    assert "MY_TOKEN=s" not in out
    states, first, *_ = found["Parents"].splitlines()
    assert states == "7: 6 JOB_FINISHED, 1 USER_KILLED"
    assert first == f"[parent6 | {parents[6].job_id[:8]}] USER_KILLED"
    assert found["Parents"].endswith("... and 2 more")
    assert f"[child | {child.job_id[:8]}] FAILED" in found["Children"]
    header, line, first, second = out[out.index("Attempts\n") :].splitlines()[1:5]
    assert header.split() == ["attempt", "started", "ran", "node", "exit", "memory", "CPU", "GPUs", "end"]
    assert " ".join(first.split()) == "1 1970-01-01 00:00:01 3 s nid[1-2] signal 9 3.0 GB 2.5 s 0,1 limit"
    assert second.split()[6:8] == ["1", "3.0"]
    assert out.endswith("\n".join(["", *(f"  line {number}" for number in range(10, 20)), ""]))


def test_paths_alone_serve_other_commands(db: Database) -> None:
    job = Job(db, "one two")
    assert run("show", "one two", "--workdir") == (0, f"{job.workdir}\n", "")
    assert run("show", job.job_id[:8], "--output") == (0, f"{job.output}\n", "")
    assert run("show", "one two", "--workdir", "--output")[0] == 2


def test_several_jobs_and_none(db: Database) -> None:
    for name in ("one", "two"):
        Job(db, name)
    code, out, _ = run("show", "--wf", "w")
    assert code == 0
    assert out.count("\nJob [") == 1
    assert out.startswith("Job [one")
    assert run("show", "nothing")[0] == 3
    assert run("show", "--wf", "x")[0] == 3
    assert run("show")[0] == 2


def test_text_of_others_cannot_steer_the_terminal(db: Database) -> None:
    job = Job(db, "one", args="\x1b]0;x\x07", description="a\nb")
    evil = "evil\x1b[2J\nname \N{GREEK SMALL LETTER MU}"
    with db.write() as cx:  # an older version, or another program
        cx.execute("UPDATE job SET name = ?", (evil,))
    job.workdir.mkdir(parents=True)
    name = field_specs.output_name(evil)
    (job.workdir / name).write_bytes(b"\x1b[2Jtext\xff\r50 %\n")
    for environ in ({}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}):
        code, out, err = run("show", f"#{job.number}", **environ)
        assert (code, err) == (0, "")
        assert "\x1b" not in out
        assert "\\x1b[2Jtext" in out
        assert out.isascii() == bool(environ)


@pytest.mark.parametrize("columns", [20, 80])
def test_the_screen_fits_the_terminal(db: Database, columns: int) -> None:
    job = Job(db, "one", args="word " * 50)
    attempt(db, job, 1, None)
    job.write(b"x" * 300 + b"\n")
    primary, secondary = pty.openpty()
    environ = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1"}
    process = subprocess.Popen([*BALSAM, "show", "one"], stdout=secondary, env=environ)
    assert process.wait(30) == 0
    shown = os.read(primary, 100_000).decode().splitlines()
    os.close(primary)
    os.close(secondary)
    words = [line for line in shown[1:] if len(line) > columns]
    assert all(
        "/" in line and " " not in line.strip().removeprefix("Directory").removeprefix("Output").strip() for line in words
    )
    assert ("State" in shown) == (columns == 20)
    assert any(line.strip() == "x" * (columns - 2) for line in shown)


def test_a_job_that_vanishes_meanwhile_is_not_found(db: Database, monkeypatch: pytest.MonkeyPatch, balsam) -> None:
    job = Job(db, "one")
    read = details.read

    def gone(database: Database, numbers: list[int]) -> list[dict[str, object]]:
        user_actions.delete(db, [job.number])
        return read(database, numbers)

    monkeypatch.setattr(details, "read", gone)
    code, out, err = balsam("show", "one")
    assert (code, out) == (3, "")
    assert "was removed" in err


def test_json_has_the_documented_keys(db: Database) -> None:
    job = Job(db, "one")
    attempt(db, job, 1, 0)
    job.write(b"text")
    code, out, err = run("show", "one", "--json")
    assert (code, err) == (0, "")
    (found,) = json.loads(out)
    (listed,) = json.loads(run("ls", "--json")[1])
    document = (ROOT / "docs" / "json.rst").read_text().partition("\nOne job\n")[2].partition("\nOutputs\n")[0]
    own = {line.split("``")[1] for line in document.splitlines() if line.startswith("``") and "show" not in line}
    assert set(found) == {*listed, *own}
    assert {key: found[key] for key in listed} == listed
    assert found["attempts"][0]["ended"] == "1970-01-01T00:00:04.000000Z"
    (listed_with_history,) = json.loads(run("ls", "--json", "--history")[1])
    assert found["attempts"] == listed_with_history["attempts"]
    assert found["output_lines"] == ["text"]
    assert found["edits"] == []
    assert run("modify", "one", "args", "two words")[0] == 0
    ((edit,),) = (row["edits"] for row in json.loads(run("show", "one", "--json")[1]))
    assert (edit["field"], edit["old"], edit["new"]) == ("args", "", "two words")
    assert edit.keys() == json.loads(run("ls", "--json", "--history")[1])[0]["edits"][0].keys()
    assert found["reasons"][0].keys() == {"code", "reason", "of", "remedy", "is_note"}


def test_a_job_of_another_host_is_shown(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(db, "one")
    job.write(b"far\n")
    with far_site(db.directory) as remote:
        monkeypatch.setenv("PATH", remote.path)
        code, out, err = run("show", "one", "--site", "far")
    assert (code, err) == (0, "")
    assert out.startswith(f"Job [one | {job.job_id[:8]}] of far, #")
    assert out.endswith("\n  far\n")
