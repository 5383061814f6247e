"""Output files in working directories that jobs share: whose they are, that nothing is lost, and who may share."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from helpers import wait_until
from launching import Bench

from balsam_lite.cli import common
from balsam_lite.cli.main import main
from balsam_lite.core import job_files, states
from balsam_lite.core.errors import InvalidSpec
from balsam_lite.db.models import BalsamJob
from balsam_lite.db.query import select
from balsam_lite.db.store import insert, user_actions
from balsam_lite.launcher.staging.links import Parent, link_inputs

IDS = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(1, 9)]


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.close()


def texts(directory: Path) -> dict[str, str]:
    """Return the visible files and their contents."""
    return {path.name: path.read_text() for path in directory.iterdir() if not path.name.startswith(".")}


def read(bench: Bench, job: int, name: str = "job.out") -> str:
    return BalsamJob.objects.using(bench.db).get(id=job).read_file_in_workdir(name)


# --- putting aside ----------------------------------------------------------------------------------------------------


def test_a_file_is_put_aside_under_the_first_free_number(tmp_path):
    path = tmp_path / "f"
    for number in range(1, 40):
        path.write_text(str(number))
        assert job_files.put_aside(str(path)) == f"{path}.{number}"
    assert texts(tmp_path) == {f"f.{number}": str(number) for number in range(1, 40)}
    assert job_files.put_aside(str(path)) == ""


def test_a_wanted_number_that_is_taken_overwrites_nothing(tmp_path):
    path = tmp_path / "f"
    for name in ("f", "f.3", "f.4"):
        (tmp_path / name).write_text(name)
    assert job_files.put_aside(str(path), 3) == f"{path}.5"
    assert texts(tmp_path) == {"f.3": "f.3", "f.4": "f.4", "f.5": "f"}


def test_links_and_directories_stay_where_they_are(tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "dir").mkdir()
    assert job_files.put_aside(str(tmp_path / "link")) == job_files.put_aside(str(tmp_path / "dir")) == ""
    assert sorted(os.listdir(tmp_path)) == ["dir", "link"]


def test_many_who_put_files_aside_at_once_lose_none(tmp_path):
    path = str(tmp_path / "f")
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for turn in range(50):
            own = str(tmp_path / f".own-{number}")
            Path(own).write_text(f"{number}/{turn}")
            assert job_files.give_name(own, path)
            os.unlink(own)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = sorted(text for text in texts(tmp_path).values() if text)
    assert held == sorted(f"{number}/{turn}" for number in range(8) for turn in range(50))


# --- whose an output is -----------------------------------------------------------------------------------------------


def begin(directory: Path, job_id: str, text: str, attempt: int = 1) -> None:
    """Do what a start does in a directory that is in use."""
    name = job_files.renew(str(directory), "job.out", job_id, attempt, is_generated=False)
    with open(directory / name, "a") as file:
        file.write(text)


def found(directory: Path, job_id: str) -> str:
    return Path(job_files.find(str(directory), "job.out", job_id, is_generated=False)).read_text()


def test_each_job_of_a_shared_directory_finds_its_own_output(tmp_path):
    (tmp_path / "job.out").write_text("first")  # of the job that made the directory
    for job_id, text in zip(IDS[1:4], ("second", "third", "fourth")):
        begin(tmp_path, job_id, text)
    assert texts(tmp_path) == {"job.out.1": "first", "job.out.2": "second", "job.out.3": "third", "job.out": "fourth"}
    assert [found(tmp_path, job_id) for job_id in IDS[:4]] == ["first", "second", "third", "fourth"]


def test_a_retry_keeps_its_own_output_under_its_number_and_moves_nobody_elses_there(tmp_path):
    (tmp_path / "job.out").write_text("a1")
    begin(tmp_path, IDS[1], "b1")
    begin(tmp_path, IDS[1], "b2", attempt=2)
    begin(tmp_path, IDS[1], "b3", attempt=3)
    begin(tmp_path, IDS[0], "a2", attempt=2)
    begin(tmp_path, IDS[0], "a3", attempt=3)
    held = texts(tmp_path)
    assert held.pop("job.out") == "a3"
    assert sorted(held.values()) == ["a1", "a2", "b1", "b2", "b3"]
    assert held["job.out.1"] == "a1"
    assert [found(tmp_path, job_id) for job_id in IDS[:2]] == ["a3", "b3"]


def test_outputs_without_hard_links_are_put_aside_too(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "job.out").write_text("a")
    for job_id, text in zip(IDS[1:3], "bc"):
        begin(tmp_path, job_id, text)
    assert texts(tmp_path) == {"job.out.1": "a", "job.out.2": "b", "job.out": "c"}
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_a_child_gets_the_output_of_its_own_parent(tmp_path):
    shared, child = tmp_path / "shared", tmp_path / "child"
    shared.mkdir(), child.mkdir()
    for job_id, text in zip(IDS[:2], "ab"):
        begin(shared, job_id, text)
    link_inputs(str(child), "", [Parent(IDS[0], "", str(shared))], "*.out")
    assert (child / "job.out_00000001").read_text() == "a", "job.out is the child's own"
    assert len(os.listdir(child)) == 1


# --- real jobs --------------------------------------------------------------------------------------------------------


def test_jobs_that_run_at_once_in_one_directory_keep_all_lines(bench):
    bench.shell("talk", "for i in 1 2 3; do echo $1$i; sleep 0.2; done; exit $2")
    rows = [
        {"application": "talk", "args": f"{letter} {number}", "workdir": "clash", "allow_shared_workdir": True}
        for number, letter in enumerate("abc")
    ]
    jobs = bench.add(rows)
    bench.run("--nodes", "3")
    held = texts(Path(bench.directory, "data", "clash"))
    assert sorted(held) == ["job.out", "job.out.1", "job.out.2"]
    for job, letter in zip(jobs, "abc"):
        assert read(bench, job) == "".join(f"{letter}{number}\n" for number in (1, 2, 3))
    for job, letter in zip(jobs[1:], "bc"):
        assert f"{letter}1" in dict(bench.history(job))[states.RUN_ERROR]


def test_what_a_running_job_has_printed_is_found_under_its_new_name(bench):
    bench.shell("wait", "echo $1; until [ -e $2 ]; do sleep 0.02; done; echo $1 again; exit 3")
    gate = f"{bench.directory}/gate"
    (one,) = bench.add([{"application": "wait", "args": f"one {gate}", "user_workdir": f"{bench.directory}/mine"}])
    bench.launch("--nodes", "2")
    wait_until(lambda: Path(bench.directory, "mine", "job.out").exists() and read(bench, one) == "one\n")
    (two,) = bench.add([{"application": "wait", "args": f"two {gate}", "user_workdir": f"{bench.directory}/mine"}])
    wait_until(lambda: Path(bench.directory, "mine", "job.out.1").exists() and read(bench, two) == "two\n")
    assert read(bench, one) == "one\n"
    Path(gate).touch()
    for job, word in ((one, "one"), (two, "two")):
        bench.wait_for(job, states.FAILED)
        assert dict(bench.history(job))[states.RUN_ERROR] == f"nonzero return 3: {word}\n{word} again"
    assert texts(Path(bench.directory, "mine")) == {"job.out.1": "one\none again\n", "job.out": "two\ntwo again\n"}


def test_a_generated_directory_holds_the_output_and_nothing_else(bench):
    bench.app("hello", "echo hello")
    (job,) = bench.add([{"name": "j", "application": "hello"}])
    bench.run()
    assert os.listdir(bench.path(job)) == ["j.out"]


def test_the_first_job_of_a_chosen_directory_leaves_nothing_hidden(bench):
    bench.app("hello", "echo hello")
    bench.add([{"name": "j", "application": "hello", "workdir": "mine"}])
    bench.run()
    assert os.listdir(Path(bench.directory, "data", "mine")) == ["j.out"]


def test_a_file_with_the_name_of_the_output_is_put_aside_before_the_first_attempt(bench):
    bench.app("hello", "echo hello")
    (job,) = bench.add([{"name": "j", "application": "hello"}])
    bench.path(job).mkdir(parents=True)
    bench.path(job, "j.out").write_text("precious")
    bench.run()
    assert texts(bench.path(job)) == {"j.out.1": "precious", "j.out": "hello\n"}


def test_a_failed_script_tells_of_its_own_log_though_another_job_has_put_it_aside(bench):
    gate = f"{bench.directory}/gate"
    script = Path(bench.directory, "pre.sh")
    script.write_text(f"#!/bin/sh\necho $BALSAM_JOB_ID\nuntil [ -e {gate} ]; do sleep 0.02; done\nexit 1\n")
    script.chmod(0o755)
    bench.app("hello", "echo hello", preprocess=str(script))
    row = {"application": "hello", "workdir": "clash", "allow_shared_workdir": True}
    jobs = bench.add([row, row])
    bench.launch()
    directory = Path(bench.directory, "data", "clash")
    logs = [directory / "preprocess.log", directory / "preprocess.log.1"]
    wait_until(lambda: all(path.exists() and len(path.read_text().splitlines()) == 2 for path in logs))
    Path(gate).touch()
    for job in jobs:
        bench.wait_for(job, states.FAILED)
        assert bench.job(job)["job_id"] in dict(bench.history(job))[states.FAILED]
    assert sorted(os.listdir(directory)) == ["preprocess.log", "preprocess.log.1"]


# --- who may share ----------------------------------------------------------------------------------------------------


def shared(workdir: str = "here", **fields: object) -> dict[str, object]:
    return {"application": "hello", "workdir": workdir, **fields}


@pytest.fixture
def filled(bench):
    bench.app("hello", "echo hello")
    (bench.first,) = bench.add([shared()])
    return bench


def test_a_workdir_is_refused_while_the_job_that_has_it_has_not_ended(filled):
    with pytest.raises(InvalidSpec, match=r"workdir here is that of job #1 \[........\], which has not ended: it is CREATED"):
        filled.add([shared()])
    for end in states.END_STATES:
        user_actions.set_state(filled.db, [filled.first], states.CREATED)
        user_actions.set_state(filled.db, [filled.first], end)
        assert len(filled.add([shared()])) == 1
        with filled.db.read() as cx:
            last = max(select.job_ids(cx))
        user_actions.delete(filled.db, [last])


def test_a_workdir_may_be_shared_where_that_is_allowed(filled):
    assert len(filled.add([shared(allow_shared_workdir=True), shared(allow_shared_workdir=True)])) == 2


def test_jobs_of_one_call_share_a_workdir_only_where_that_is_allowed(bench):
    bench.app("hello", "echo hello")
    with pytest.raises(InvalidSpec, match="Job number 3: job number 2 has the workdir b too"):
        bench.add([shared("a"), shared("b"), shared("b")])
    assert sum(bench.states().values()) == 0
    many = insert._CHUNK + 1
    with pytest.raises(InvalidSpec, match=f"Job number {many}: The workdir 7 is that of job #8 "):
        bench.add(shared(str(number if number < many - 1 else 7)) for number in range(many))
    assert sum(bench.states().values()) == 0


def test_a_user_workdir_may_always_be_shared(filled):
    path = f"{filled.directory}/data/here"
    assert len(filled.add([{"application": "hello", "user_workdir": path}] * 2)) == 2


def test_the_generated_directory_of_a_waiting_job_cannot_be_chosen(filled):
    (other,) = filled.add([{"name": "n", "workflow": "w", "application": "hello"}])
    with pytest.raises(InvalidSpec, match=f"is that of job #{other} "):
        filled.add([shared(filled.job(other)["workdir"])])


def test_a_job_cannot_be_moved_into_the_workdir_of_another_one(filled):
    (other,) = filled.add([shared("there")])
    with pytest.raises(InvalidSpec, match="is that of job #1 "):
        user_actions.update_fields(filled.db, [other], {}, workdir="here")
    with pytest.raises(InvalidSpec, match="would be that of 2 jobs"):
        user_actions.update_fields(filled.db, [filled.first, other], {}, workdir="new")
    assert user_actions.update_fields(filled.db, [other], {}, workdir="there") == 1
    user_actions.set_state(filled.db, [filled.first], states.JOB_FINISHED)
    assert user_actions.update_fields(filled.db, [other], {}, workdir="here") == 1


def test_looking_for_a_workdir_in_use_reads_indexes_only_of_jobs_with_it(filled):
    for query, index in ((insert._CHOSEN_BY, "job_own_workdir"), (insert._GENERATED_FOR, "job_short_id")):
        with filled.db.read() as cx:
            plan = [row[3] for row in cx.execute(f"EXPLAIN QUERY PLAN {query}", ('["a"]', 0))]
        assert any(f"INDEX {index} (" in line for line in plan), plan


def test_the_command_refuses_a_workdir_in_use_before_it_asks(filled, capsys, monkeypatch):
    words = ["--db", filled.directory, "job", "create", "--app", "hello", "--workdir", "here"]
    monkeypatch.setattr(common, "confirm", lambda *_: pytest.fail("it asked"))
    assert main(words) == main([*words, "--yes"]) == 2
    assert capsys.readouterr().err.count("The workdir here is that of job #1 ") == 2
    assert main([*words, "--allow-shared-workdir", "--yes"]) == 0
