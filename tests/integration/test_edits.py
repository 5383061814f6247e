"""What users and scripts change in jobs is recorded, and shown in histories."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elsewhere import balsam
from launching import Bench

from balsam_lite.db.query import edits
from balsam_lite.db.store import user_actions

USER = pwd.getpwuid(os.getuid()).pw_name


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.shell("says", 'echo "attempt $BALSAM_ATTEMPT had $*"')
    yield bench
    bench.close()


def edits_of(bench: Bench, *jobs: int) -> list[tuple[Any, ...]]:
    with bench.db.read() as cx:
        return [tuple(row[key] for key in ("job", "field", "old", "new", "attempt")) for row in edits.edits(cx, jobs)]


def test_the_arguments_of_every_attempt_are_known(bench: Bench) -> None:
    (job,) = bench.add([{"application": "says", "args": "-n 5", "name": "j"}])
    bench.run()
    assert balsam(bench.directory, "modify", "j", "args", "-n 6")[0] == 0
    assert balsam(bench.directory, "rerun", "--name", "j", "--set", "args=-n 7", "--yes")[0] == 0
    bench.run()
    assert edits_of(bench, job) == [(job, "args", "-n 5", "-n 6", 1), (job, "args", "-n 6", "-n 7", 1)]
    code, out, _ = balsam(bench.directory, "ls", "--history")
    assert code == 0
    words = [line.partition(" ")[2].partition(" ")[2] for line in out.splitlines()[2:] if line]
    edited = [
        f"EDITED] args: '-n 5' -> '-n 6' ({USER}, balsam modify; from attempt 2)",
        f"EDITED] args: '-n 6' -> '-n 7' ({USER}, balsam rerun; from attempt 2)",
    ]
    assert words[words.index("JOB_FINISHED]") + 1 :][:2] == edited
    assert [line for line in words if line.startswith("EDITED")] == edited
    assert bench.history(job)[-1][0] == "JOB_FINISHED"  # no edit among the events


def test_objects_are_recorded_key_by_key_and_secrets_are_masked(bench: Bench) -> None:
    (job,) = bench.add([{"name": "j", "data": {"a": 1, "b": [2]}, "tags": {"k": "v"}}])
    change = {"data": {"a": 1, "c": {"x": None}}, "tags": {"k": "w"}, "environ_vars": {"MY_TOKEN": "geheim"}, "priority": 0}
    user_actions.update_fields(bench.db, [job], change)
    assert edits_of(bench, job) == [
        (job, "data.b", [2], None, 0),
        (job, "data.c", None, {"x": None}, 0),
        (job, "environ_vars.MY_TOKEN", None, "***", 0),
        (job, "tags.k", "v", "w", 0),
    ]
    for command in (("job", "ls"), ("ls",)):
        code, out, _ = balsam(bench.directory, *command, "--history", "--json")
        assert code == 0
        (shown,) = json.loads(out)
        assert [edit["field"] for edit in shown["edits"]] == ["data.b", "data.c", "environ_vars.MY_TOKEN", "tags.k"]
        assert {edit["job_id"] for edit in shown["edits"]} == {shown["job_id"]}
        assert "geheim" not in out
        assert "EDITED" not in [event["to_state"] for event in shown["history"]]


def test_a_script_and_a_hook_are_named(bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "my_script.py"
    script.write_text(
        "from balsam_lite.launcher.dag import BalsamJob\n"
        "job = BalsamJob.objects.get(name='j')\njob.data['x'] = 1\njob.save()\n"
        "BalsamJob.objects.filter(name='j').update(priority=3)\n"
    )
    hook = tmp_path / "hook.py"
    hook.write_text(
        f"#!{sys.executable}\nfrom balsam_lite.launcher.dag import current_job\ncurrent_job.data['y'] = 2\ncurrent_job.save()\n"
    )
    hook.chmod(0o755)
    bench.app("hooked", "true", postprocess=str(hook))
    (job,) = bench.add([{"name": "j", "application": "hooked"}])
    subprocess.run([sys.executable, script], check=True, env={**os.environ, "BALSAM_DB_PATH": bench.directory})
    bench.run()
    with bench.db.read() as cx:
        found = [(row["field"], row["command"], row["attempt"]) for row in edits.edits(cx, [job])]
    assert found == [("data.x", "my_script.py", 0), ("priority", "my_script.py", 0), ("data.y", "a job's postprocess", 1)]


def test_a_change_of_very_many_jobs_costs_few_bytes_and_nothing_where_nothing_changes(bench: Bench) -> None:
    size = 12_000
    text = "--an-option " * 30
    jobs = bench.add({"name": f"j{n}", "args": text, "priority": n % 2} for n in range(size))

    def allocated() -> int:
        with bench.db.read() as cx:
            pages, free = (int(cx.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count"))
            return (pages - free) * 4096

    before = allocated()
    user_actions.update_fields(bench.db, jobs, {"args": text.upper()})
    assert (allocated() - before) / size < 80
    with bench.db.read() as cx:
        assert cx.execute("SELECT jobs, count(*) FROM action").fetchone() == (size, 1)
    before = allocated()
    user_actions.update_fields(bench.db, jobs, {"args": text.upper()})
    assert allocated() - before < 20_000
    with bench.db.read() as cx:
        assert cx.execute("SELECT jobs, count(*) FROM action").fetchone() == (size, 1)
        assert cx.execute("SELECT count(*) FROM edit").fetchone() == (size,)
    assert edits_of(bench, jobs[7]) == [(jobs[7], "args", text, text.upper(), 0)]
    user_actions.update_fields(bench.db, jobs, {"priority": 1})
    with bench.db.read() as cx:
        assert cx.execute("SELECT jobs FROM action ORDER BY id DESC").fetchone() == (size // 2,)
