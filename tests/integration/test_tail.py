"""`balsam tail` as a process: last lines, later attempts, several jobs, odd files, and the ways in which it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT
from looking import BALSAM, Job, Process, active_db
from sshd import far_site

from balsam_lite.core import growing_file
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import user_actions


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    with active_db(tmp_path, monkeypatch) as found:
        yield found


def tail(*words: str) -> tuple[int, bytes, str]:
    done = subprocess.run([*BALSAM, "tail", *words], capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    return done.returncode, done.stdout, done.stderr.decode()


def follow(*words: str) -> Process:
    return Process("tail", "-f", *words)


def test_the_last_lines_of_the_output_are_printed_byte_by_byte(db: Database) -> None:
    job = Job(db, "one")
    job.write(b"".join(b"line %d\n" % n for n in range(100)) + b"\xff\x1b[31m no end")
    assert tail("one") == (0, b"".join(b"line %d\n" % n for n in range(91, 100)) + b"\xff\x1b[31m no end", "")
    assert tail("one", "-n", "1") == (0, b"\xff\x1b[31m no end", "")
    assert tail("one", "-n", "0") == (0, b"", "")
    assert tail("one", "-n", "1000")[1].count(b"\n") == 100


def test_lines_of_several_jobs_begin_with_their_names(db: Database) -> None:
    for name in ("one", "two"):
        Job(db, name).write(f"of {name}\nlast".encode())
    twin = Job(db, "two")
    twin.write(b"of twin\n")
    assert tail("--name", "one", "--name", "t*", "--workflow", "w")[1] == (
        b"one | of one\none | last\n"
        + b"".join(b"[two | %s] | %s\n" % (line) for line in _with_ids(db, [(2, b"of two"), (2, b"last"), (3, b"of twin")]))
    )


def _with_ids(db: Database, lines: list[tuple[int, bytes]]) -> list[tuple[bytes, bytes]]:
    with db.read() as cx:
        ids = {number: job_id[:8].encode() for number, job_id in cx.execute("SELECT id, job_id FROM job")}
    return [(ids[number], line) for number, line in lines]


def test_another_file_of_the_working_directory_is_shown_and_none_outside_of_it(db: Database) -> None:
    job = Job(db, "one")
    job.write(b"output")
    (job.workdir / "sub").mkdir()
    (job.workdir / "sub" / "log").write_bytes(b"log")
    os.mkfifo(job.workdir / "pipe")
    assert tail("one", "--file", "sub/log")[1] == b"log"
    code, out, err = tail("one", "--file", "../../../settings.json")
    assert (code, out) == (2, b"")
    assert "is not in the job's working directory" in err
    code, out, err = tail("one", "--file", "absent")
    assert (code, out) == (1, b"")
    assert "is CREATED, there is no " in err
    assert "absent" in err
    code, out, err = tail("one", "--file", "pipe")
    assert (code, out) == (1, b"")
    assert "not a regular file" in err


def test_json_has_the_documented_keys(db: Database) -> None:
    one, two = Job(db, "one"), Job(db, "two")
    one.write(b"first\n\xffsecond\n" + b"x" * (growing_file.PIECE_BYTES + 10))
    code, out, _ = tail("--wf", "w", "--json", "-n", "2")
    assert code == 0
    found = json.loads(out)
    document = (ROOT / "docs" / "json.rst").read_text().partition("\nOutputs\n")[2].partition("\nStatus\n")[0]
    assert set(found[0]) == {
        line.split("``")[1] for line in document.splitlines() if line.startswith("``") and "tail" not in line
    }
    assert found[0]["lines"] == ["\N{REPLACEMENT CHARACTER}second", "x" * (growing_file.PIECE_BYTES + 10)]
    assert (found[0]["path"], found[0]["error"]) == (str(one.output), "")
    assert (found[1]["path"], found[1]["lines"]) == (str(two.output), [])
    assert found[1]["error"].startswith("there is no ")
    assert tail("one", "-f", "--json")[0] == 2


def test_what_names_no_job_is_an_error(db: Database) -> None:
    assert tail("nothing")[0] == 3
    assert tail("--state", "FAILED")[0] == 3
    code, _, err = tail()
    assert code == 2
    assert "Which jobs?" in err


def test_a_file_of_ten_gigabytes_is_read_from_its_end(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(db, "one")
    job.write(b"")
    with open(job.output, "r+b") as file:
        file.truncate(10 * 10**9)
        file.seek(0, os.SEEK_END)
        file.write(b"\nlast line\n")
    limited = f"ulimit -v 1000000; exec {sys.executable} -m balsam_lite.cli tail one -n 1"
    assert subprocess.run(["bash", "-c", limited], capture_output=True, timeout=60).stdout == b"last line\n"
    monkeypatch.setattr(growing_file, "_MAX_SEARCH_BYTES", 1000)
    assert growing_file.place_of_last_lines(str(job.output), 5).offset == job.output.stat().st_size - 1000


def test_later_attempts_are_followed_each_from_the_file_that_was_put_aside(db: Database) -> None:
    job = Job(db, "one")
    job.set("RUN_ERROR", 1)
    job.write(b"first ")
    follower = follow("one")
    follower.has("first ")
    job.write(b"end\n")
    job.output.rename(f"{job.output}.1")
    job.write(b"second\n")
    job.output.rename(f"{job.output}.2")
    job.write(b"third\n")
    job.set("RUN_ERROR", 3)
    follower.has("third")
    job.set("JOB_FINISHED", 3)
    code, out, err = follower.end()
    assert (code, out) == (0, "first end\nsecond\nthird\n")
    told = [line.partition("] ")[2] for line in err.splitlines()]
    assert told == ["attempt 2", "attempt 3", "is JOB_FINISHED"]


def test_the_output_of_a_shared_directory_is_followed_after_another_job_has_renamed_it(db: Database) -> None:
    job = Job(db, "one", workdir="shared")
    job.write(b"mine ")
    follower = follow("one")
    follower.has("mine ")
    job.output.rename(f"{job.output}.1")
    os.link(f"{job.output}.1", job.workdir / ".balsam-first-one.out")
    job.write(b"not mine")
    with open(f"{job.output}.1", "ab") as file:
        file.write(b"still mine\n")
    follower.has("still mine")
    job.set("JOB_FINISHED", 1)
    assert follower.end()[:2] == (0, "mine still mine\n")


def test_a_job_without_output_is_waited_for(db: Database) -> None:
    job = Job(db, "one")
    follower = follow("one", "-n", "1")
    follower.has("is CREATED, there is no ")
    job.write(b"one\ntwo\n")
    job.set("JOB_FINISHED", 1)
    code, out, err = follower.end()
    assert (code, out) == (0, "one\ntwo\n")
    assert err.count("there is no") == 1


def test_a_truncated_file_is_shown_from_its_beginning(db: Database) -> None:
    job = Job(db, "one")
    job.write(b"a long line that goes\n")
    follower = follow("one")
    follower.has("goes")
    job.output.write_bytes(b"new\n")
    follower.has("new")
    job.set("FAILED", 1)
    assert follower.end()[1] == "a long line that goes\nnew\n"


def test_a_job_that_is_removed_while_it_is_followed_is_reported(db: Database) -> None:
    job = Job(db, "one")
    job.write(b"text\n")
    follower = follow("one")
    follower.has("text")
    user_actions.delete(db, [job.number])
    code, _, err = follower.end()
    assert code == 1
    assert "was removed" in err


def test_it_ends_when_the_reader_of_the_pipe_has_gone_and_on_ctrl_c(db: Database) -> None:
    Job(db, "one").write(b"text\n")
    process = subprocess.Popen([*BALSAM, "tail", "-f", "one"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert os.read(process.stdout.fileno(), 100) == b"text\n"
    process.stdout.close()
    assert process.wait(20) == 141
    process.communicate()
    follower = follow("one")
    follower.has("text")
    follower.process.send_signal(signal.SIGINT)
    code, _, err = follower.end()
    assert (code, err) == (130, "")


def test_a_terminal_gets_escapes_for_what_would_steer_it(db: Database) -> None:
    Job(db, "one").write("10 %\r20 %\r\n\x1b]0;title\x07 \N{GREEK SMALL LETTER MU}".encode() + b"\xff\x00")
    primary, secondary = pty.openpty()
    process = subprocess.Popen([*BALSAM, "tail", "one"], stdout=secondary, stderr=subprocess.PIPE)
    assert process.communicate(timeout=30) == (None, b"")
    shown = os.read(primary, 10_000).decode()
    os.close(primary)
    os.close(secondary)
    assert shown == "10 %\r\n20 %\r\n\\x1b]0;title\\x07 \N{GREEK SMALL LETTER MU}\N{REPLACEMENT CHARACTER}\\x00"


def test_a_follower_that_has_nothing_to_do_takes_less_than_two_percent_of_a_core(db: Database) -> None:
    Job(db, "one").write(b"text\n")
    follower = follow("one")
    follower.has("text")
    assert follower.idle_cpu_s(3) <= 0.06
    follower.process.kill()
    follower.end()


def test_a_site_on_another_host_is_followed(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(db, "one")
    job.write(b"here\n")
    with far_site(db.directory) as remote:
        monkeypatch.setenv("PATH", remote.path)
        assert tail("--site", "far", "one") == (0, b"here\n", "")
        follower = follow("--site", "far", "one")
        follower.has("here")
        moved = Path(f"{db.path}.moved")
        db.close()
        os.rename(db.path, moved)
        follower.has("trying again")
        os.rename(moved, db.path)
        job.write(b"there\n")
        job.set("JOB_FINISHED", 1)
        code, out, err = follower.end()
        assert (code, out) == (0, "here\nthere\n")
        assert err.endswith("is JOB_FINISHED\n")
