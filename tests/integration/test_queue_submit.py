"""`balsam queue` and the batch jobs of a site, in the workshop's words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import Balsam

from balsam_lite.core.errors import (
    CancelFailed,
    DatabaseReadOnly,
    InvalidSpec,
    PollFailed,
    SubmitFailed,
    UnknownBatchJob,
    UnknownField,
)
from balsam_lite.db.engine import directories, registry
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.query import select
from balsam_lite.db.store import apps, insert
from balsam_lite.schedulers import base
from balsam_lite.schedulers.base import BatchStatus, Submission
from balsam_lite.sites import batch_jobs

ROW = {"num_nodes": 1, "wall_time_min": 10, "job_mode": "mpi", "queue": "training-gpu", "project": "training-gpu"}


class FakeScheduler:
    """Numbers what is submitted, and says of each what the test says."""

    name, template, domain, timeout_s = "FakeScheduler", "local.tmpl", "fake", 60.0

    def __init__(self) -> None:
        self.submitted: list[Submission] = []
        self.states: dict[str, str] = {}
        self.refuses = self.is_silent = False

    def submit(self, submission: Submission) -> str:
        if self.refuses:
            raise SubmitFailed("no such project")
        self.submitted.append(submission)
        number = str(278078 + len(self.submitted))
        self.states[number] = base.QUEUED
        return number

    def poll(self, ids: Mapping[str, str]) -> dict[str, BatchStatus]:
        if self.is_silent:
            raise PollFailed("no answer")
        started = {base.RUNNING: 5_000_000, base.CANCELLED: 5_000_000}
        return {one: BatchStatus(one, self.states[one], started_us=started.get(self.states[one])) for one in ids}

    def cancel(self, native_id: str) -> None:
        if self.states[native_id] not in (base.QUEUED, base.RUNNING):
            raise CancelFailed("it is over")

    def find(self, submission: Submission, since_us: int) -> str | None:
        return None


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> FakeScheduler:
    made = FakeScheduler()
    monkeypatch.setattr(base, "select", lambda settings: made)
    monkeypatch.setattr("balsam_lite.schedulers.submission.select", lambda settings: made)
    monkeypatch.setattr("balsam_lite.schedulers.script.select", lambda settings: made)
    return made


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: FakeScheduler) -> Iterator[Database]:
    made = directories.create(str(tmp_path / "laptop"))
    with made.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    monkeypatch.setenv("BALSAM_DB_PATH", made.directory)
    yield made
    made.close()


@pytest.fixture
def balsam(db: Database, run_balsam: Balsam) -> Balsam:
    return run_balsam


SUBMIT = (
    *("queue", "submit", "-n", "1", "-t", "10", "-q", "training-gpu", "-A", "training-gpu"),
    *("--tag", "workflow=hello", "--job-mode", "mpi"),
)


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_workshops_command_submits_at_once_and_shows_the_batch_job(
    db: Database, balsam: Balsam, scheduler: FakeScheduler
) -> None:
    registry.add(db.directory, "thetagpu_tutorial")
    insert.add_jobs(db, [{"application": "a", "tags": {"workflow": "hello"}}])
    code, out, err = balsam(*SUBMIT, "--site", "thetagpu_tutorial")
    assert (code, err) == (0, "")
    path = Path(db.directory, "qsubmit/qlaunch1")
    assert out.splitlines() == [
        "num_nodes: 1", "wall_time_min: 10", "job_mode: mpi", "optional_params: {}", "filter_tags:", "    workflow: hello",
        "partitions: null", "id: 1", "site_id: 1", "scheduler_id: 278079", "project: training-gpu", "queue: training-gpu",
        "state: queued", "status_info:", f"    submit_script: {path}.sh", f"    log: {path}.out", "start_time: null",
        "end_time: null",
    ]  # fmt: skip
    assert "--tag workflow=hello" in Path(scheduler.submitted[0].script).read_text()


def test_the_table_has_the_columns_of_the_workshop(balsam: Balsam) -> None:
    assert balsam(*SUBMIT)[0] == 0
    header, _, row = balsam("queue", "ls")[1].splitlines()
    assert header.split() == [
        "id", "site", "scheduler_id", "state", "filter_tags", "project", "queue", "num_nodes", "wall_time_min", "job_mode",
        "reason",
    ]  # fmt: skip
    assert row.split() == [
        "1", "laptop", "278079", "queued", "workflow=hello", "training-gpu", "training-gpu", "1", "10", "mpi",
    ]  # fmt: skip
    assert header.index("wall_time_min") == row.index("10 ")


def test_what_has_ended_is_listed_only_where_it_is_asked_for(balsam: Balsam, scheduler: FakeScheduler) -> None:
    for _ in range(3):
        balsam(*SUBMIT)
    scheduler.states.update({"278079": base.TIMED_OUT, "278081": base.FINISHED})

    def listed(*words: str) -> list[int]:
        return [row["id"] for row in json.loads(balsam("queue", "ls", "--json", *words)[1])]

    assert listed() == [2]
    assert listed("-h") == listed("--all") == [1, 2, 3]
    assert listed("-n", "2") == listed("--all", "--limit", "2") == [2, 3]
    assert listed("--scheduler_id", "278081") == [3]
    assert [line.split()[0] for line in balsam("queue", "ls", "-n", "2")[1].splitlines()] == ["id", "--", "2", "3"]
    assert "    ended_as: timeout\n" in balsam("queue", "ls", "-h", "-v")[1]
    scheduler.states["278080"] = base.FINISHED
    none = "No active batch jobs.  Use --history option to list completed batch jobs.\n"
    assert balsam("queue", "ls") == (0, "", none)


@pytest.mark.parametrize("word", ["278079", "1", "qlaunch1"])
def test_term_cancels_by_any_number_and_the_state_says_so_until_it_is_over(
    balsam: Balsam, scheduler: FakeScheduler, word: str
) -> None:
    balsam(*SUBMIT)
    scheduler.states["278079"] = base.RUNNING
    assert balsam("queue", "term", word) == (0, "Marked BatchJob for deletion\n", "")
    assert " pending_deletion " in balsam("queue", "ls")[1]
    scheduler.states["278079"] = base.CANCELLED
    assert balsam("queue", "term", word)[1:] == ("", "BatchJob is not queued or running\n")
    assert balsam("queue", "term", "9")[0] == 3


def test_a_refused_submission_fails_at_once_and_stays_listed_with_the_reason(balsam: Balsam, scheduler: FakeScheduler) -> None:
    scheduler.refuses = True
    code, out, err = balsam(*SUBMIT)
    assert (code, out) == (1, "")
    assert "no such project" in err
    (row,) = json.loads(balsam("queue", "ls", "-h", "--json")[1])
    assert (row["state"], row["status_info"]["error"]) == ("submit_failed", "no such project")


def test_a_silent_scheduler_is_a_warning_and_the_list_is_the_last_known(balsam: Balsam, scheduler: FakeScheduler) -> None:
    balsam(*SUBMIT)
    scheduler.is_silent = True
    code, out, err = balsam("queue", "ls")
    assert code == 0
    assert " queued " in out
    assert "Scheduler is not reachable: no answer" in err


def test_a_db_that_can_only_be_read_shows_the_batch_jobs_that_it_knows(
    db: Database, balsam: Balsam, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    balsam(*SUBMIT)
    scheduler.states["278079"] = base.RUNNING

    def refuse(db: Database) -> None:
        raise DatabaseReadOnly(f"The DB {db.directory} cannot be written: attempt to write a readonly database")

    monkeypatch.setattr(Database, "write", refuse)
    code, out, err = balsam("queue", "ls")
    assert code == 0
    assert " queued " in out
    assert "as they were last noted" in err and "cannot be written" in err
    with pytest.warns(batch_jobs.SchedulerWarning, match="cannot be written"):
        assert batch_jobs.count(db, {"scheduler_id": 278079}) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "mpi:2"], "Sum of partition sizes must equal batchjob num_nodes"),
        (["-p", "mpi"], "needs to be in format MODE:NUM_NODES[:KEY=VALUE]"),
        (["-x", "colour=red"], "Extraneous optional_params: {colour} (allowed extras: {persistent})"),
        (["-x", "colour"], "--extra-param must look like NAME=VALUE"),
        (["--tag", "hello"], "--tag must look like NAME=VALUE"),
        (["-t", "0"], "must be 1 or more, not 0"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    db: Database, balsam: Balsam, words: list[str], said: str
) -> None:
    code, out, err = balsam(*SUBMIT, *words)
    assert (code, out) == (2, "")
    assert said in err
    with db.read() as cx:
        assert select.batch_job_rows(cx) == []


# --- doubts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "words", "said"),
    [
        ({"tags": {"workflow": "other"}}, [], "No waiting job matches this launch."),
        ({"num_nodes": 3}, [], "1 matching job(s): needs 3 nodes, this launch has 1."),
        (
            {"gpus_per_rank": 4, "ranks_per_node": 4},
            [],
            "needs 16 GPUs per node, the nodes of this launch have 4.",
        ),
        ({"ranks_per_node": 2}, ["--job-mode", "serial"], "1 matching job(s): needs --job-mode=mpi or mixed."),
        ({"num_nodes": 2}, ["-n", "3", "-p", "mpi:2:k=v", "-p", "mpi:1"], "needs 2 nodes, this launch has 1."),
        ({}, [], ""),
    ],
)
def test_a_launch_that_will_run_nothing_is_doubted_when_it_is_submitted(
    db: Database, balsam: Balsam, job: dict[str, Any], words: list[str], said: str
) -> None:
    Path(db.directory, "settings.json").write_text('{"GPUS_PER_NODE": 4}')
    insert.add_jobs(db, [{"application": "a", "tags": {"workflow": "hello"}, **job}])
    code, _, err = balsam(*SUBMIT, *words)
    assert code == 0
    assert [line.startswith("Warning: ") for line in err.splitlines()] == [True] * bool(said)
    assert said in err


# --- the library ------------------------------------------------------------------------------------------------------


def test_parts_and_values_reach_the_job_script_and_come_back(db: Database, scheduler: FakeScheduler) -> None:
    Path(db.directory, "mine.tmpl").write_text(
        "{{ optional_params.disk }} {{ optional_params['kind'] | default('none') }}"
        "{% if optional_params.more %} more{% endif %}\n"
        "balsam launcher{% for tag in filter_tags %} --tag {{ tag }}{% endfor %}"
        "{% for part in partitions %} --part {{ part | q }}{% endfor %}\n"
    )
    Path(db.directory, "settings.json").write_text('{"JOB_TEMPLATE": "mine.tmpl"}')
    parts = [{"job_mode": "mpi", "num_nodes": 2, "filter_tags": {"k": "a b"}}, {"job_mode": "serial", "num_nodes": 1}]
    (made,) = batch_jobs.create(db, [{**ROW, "num_nodes": 3, "partitions": parts, "optional_params": {"disk": "x y"}}])
    script = Path(scheduler.submitted[0].script).read_text()
    assert script == "'x y' none\nbalsam launcher --part 'mpi:2:k=a b' --part serial:1\n"
    assert made["partitions"] == [parts[0], {**parts[1], "filter_tags": {}}]
    assert made["optional_params"] == {"disk": "x y"}
    with pytest.raises(InvalidSpec, match=r"Extraneous optional_params: \{size\} \(allowed extras: \{disk, kind, more\}\)"):
        batch_jobs.create(db, [{**ROW, "optional_params": {"size": "1"}}])


def test_a_template_that_would_ignore_tags_or_parts_is_refused(db: Database) -> None:
    Path(db.directory, "old.tmpl").write_text("balsam launcher --{{ wf_filter }} --job-mode={{ job_mode }}\n")
    Path(db.directory, "settings.json").write_text('{"JOB_TEMPLATE": "old.tmpl"}')
    for more in ({"filter_tags": {"a": "b"}}, {"partitions": [{"job_mode": "mpi", "num_nodes": 1}]}):
        with pytest.raises(InvalidSpec, match=f"does not hand {next(iter(more))} on to the launcher") as caught:
            batch_jobs.create(db, [{**ROW, **more}])
        assert "| q }}" in caught.value.hint
    assert batch_jobs.create(db, [ROW])[0]["state"] == "queued"


def test_one_bad_batch_job_of_several_submits_none_and_is_named(db: Database, scheduler: FakeScheduler) -> None:
    with pytest.raises(InvalidSpec, match="Batch job 2 of 2: job_mode must be one of"):
        batch_jobs.create(db, [ROW, {**ROW, "job_mode": "parallel"}])
    with pytest.raises(InvalidSpec, match="needs num_nodes"):
        batch_jobs.create(db, [{"wall_time_min": 1, "job_mode": "mpi"}])
    with pytest.raises(UnknownField, match="colour"):
        batch_jobs.create(db, [{**ROW, "colour": 1}])
    assert scheduler.submitted == []


def test_batch_jobs_are_found_by_every_condition(db: Database, scheduler: FakeScheduler) -> None:
    batch_jobs.create(db, [{**ROW, "filter_tags": {"a": "1", "b": "2"}}, {**ROW, "queue": "other"}, ROW])
    scheduler.states.update({"278080": base.RUNNING, "278081": base.FINISHED})

    def found(**where: Any) -> list[int]:
        return [row["id"] for row in batch_jobs.select(db, where)]

    assert found() == found(id__gt=0, project__ne="none") == [1, 2, 3]
    assert found(state="running") == found(queue="other") == found(scheduler_id=278080) == [2]
    assert found(state=["queued", "finished"]) == found(queue=["training-gpu"]) == [1, 3]
    assert found(filter_tags={"a": "1"}) == found(filter_tags__b="2") == [1]
    assert found(id=[]) == []
    assert found(start_time_after=5_000_000) == found(start_time_before=5_000_000) == [2]
    assert found(end_time_after=0) == [3]
    assert [row["id"] for row in batch_jobs.select(db, {}, "-start_time", 0, 2)] == [2, 1]
    assert batch_jobs.count(db, {"state": "queued"}) == 1
    for wrong, error in (({"state": "lost"}, InvalidSpec), ({"colour": 1}, UnknownField)):
        with pytest.raises(error):
            batch_jobs.select(db, wrong)


def test_only_the_end_of_a_batch_job_can_be_written(db: Database) -> None:
    batch_jobs.create(db, [ROW] * 3)
    assert batch_jobs.update(db, [{"id": 1, "state": "pending_deletion"}]) == 1
    assert batch_jobs.delete(db, {"id": [2]}) == {"deleted": 1, "held": 0}
    assert [row["state"] for row in batch_jobs.select(db)] == ["pending_deletion", "pending_deletion", "queued"]
    for change, error in (
        ({"id": 3, "state": "running"}, InvalidSpec),
        ({"id": 3, "queue": "x"}, UnknownField),
        ({"id": 9, "state": "pending_deletion"}, UnknownBatchJob),
    ):
        with pytest.raises(error):
            batch_jobs.update(db, [change])
