"""The variables about parents that programs and scripts get: for few parents, very many, and a nearly full environment."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

import pytest
from launching import Bench

from balsam_lite.core import job_files
from balsam_lite.db.models import BalsamJob, use
from balsam_lite.launcher import dag

NAMES = ("BALSAM_PARENT_IDS", "BALSAM_PARENT_STATES")
_LOOK = """
import json, os, sys
seen = {name: os.environ[name] for name in os.environ if name.startswith("BALSAM_PARENT")}
seen.update((name, json.load(open(path))) for name, path in list(seen.items()) if name.endswith("_FILE"))
json.dump(seen, open(sys.argv[1], "w"))
"""


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    made.app("a", "true")
    yield made
    made.close()


def finished(bench, number):
    """Add jobs that are JOB_FINISHED, and one that FAILED; return their numbers."""
    jobs = bench.add({"application": "a"} for _ in range(number + 1))
    with use(bench.db):
        BalsamJob.objects.filter(id__lte=jobs[-2]).update(state="JOB_FINISHED")
        BalsamJob.objects.filter(id=jobs[-1]).update(state="FAILED")
    return jobs


@pytest.mark.parametrize(("number", "in_file"), [(1, []), (2000, []), (3500, ["IDS"]), (9000, ["IDS", "STATES"])])
def test_a_child_is_told_all_its_parents_and_by_a_file_only_what_a_variable_cannot_hold(bench, number, in_file):
    bench.script("look", _LOOK)
    bench.script("hook", _LOOK)
    with bench.db.write() as cx:
        cx.execute("UPDATE app SET postprocess = executable || ' hook.json' WHERE name = 'hook'")
        cx.execute("UPDATE app SET postprocess = (SELECT postprocess FROM app WHERE name = 'hook') WHERE name = 'look'")
    parents = finished(bench, number)
    child = {"application": "look", "args": "seen.json", "parents": parents, "run_when": "all_ended"}
    (job,) = bench.add([child])
    assert bench.run() == 0
    with use(bench.db):
        ids = list(BalsamJob.objects.filter(id__in=parents).values_list("job_id", flat=True))
        expected_variables = BalsamJob.objects.get(id=job).get_envs()
    wanted = {"IDS": ids, "STATES": ["JOB_FINISHED"] * number + ["FAILED"]}
    for name in ("seen.json", "hook.json"):
        seen = json.loads(bench.path(job, name).read_text())
        assert seen == {
            f"BALSAM_PARENT_{key}" + "_FILE" * (key in in_file): value if key in in_file else json.dumps(value)
            for key, value in wanted.items()
        }
    assert set(seen) == {name for name in expected_variables if name.startswith("BALSAM_PARENT")}
    visible = {"seen.json", "hook.json", "postprocess.log"}
    left = {path.name for path in bench.path(job).iterdir()} - visible
    assert len([name for name in left if name.endswith(".json")]) == len(in_file)
    assert all(name.startswith(".") for name in left if name.endswith(".json"))


def test_the_files_are_not_linked_into_children(bench):
    bench.script("look", _LOOK)
    (job,) = bench.add([{"application": "look", "args": "seen.json", "parents": finished(bench, 9000)[:-1]}])
    (child,) = bench.add([{"application": "a", "parents": [job]}])
    assert bench.run() == 0
    assert len([name for name in os.listdir(bench.path(job)) if name.startswith(".balsam-")]) == 2
    assert "seen.json" in os.listdir(bench.path(child))
    assert not [name for name in os.listdir(bench.path(child)) if name.startswith(".")]


def test_a_job_starts_though_the_environment_is_almost_full(bench):
    bench.script("look", _LOOK)
    parents = finished(bench, 2500)
    (job,) = bench.add([{"application": "look", "args": "seen.json", "parents": parents[:-1]}])
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    launcher = [sys.executable, "-m", "balsam_lite.cli", "--db", bench.directory, "launcher", "--consume-all", "--job-mode"]
    environ = {**bench.environ, **{f"FULL_{n}": "x" * 1000 for n in range(60)}}
    # A quarter of the stack's limit is what variables and words may take: 160 000 bytes, of which 60 000 are taken.
    limit = (640_000, hard)
    subprocess.run(
        [*launcher, "serial"], env=environ, check=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, limit),
    )  # fmt: skip
    assert bench.job(job)["state"] == "JOB_FINISHED"
    seen = json.loads(bench.path(job, "seen.json").read_text())
    assert len(seen["BALSAM_PARENT_IDS_FILE"]) == 2500 and "BALSAM_PARENT_IDS" not in seen


def test_a_launcher_inside_a_job_passes_none_of_it_on(bench):
    bench.script("look", _LOOK)
    (job,) = bench.add([{"application": "look", "args": "seen.json"}])
    assert bench.run(**dict.fromkeys(job_files.NAMES, "stale")) == 0
    assert json.loads(bench.path(job, "seen.json").read_text()) == dict.fromkeys(NAMES, "[]")


def test_dag_gives_a_job_all_its_parents(bench, monkeypatch):
    parents = finished(bench, 3500)
    (job,) = bench.add([{"application": "a", "parents": parents}])
    with use(bench.db):
        monkeypatch.setenv("BALSAM_JOB_ID", bench.job(job)["job_id"])
        assert dag.parents.count() == 3501 == len(dag.current_job.get_parents_by_id())
