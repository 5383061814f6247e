"""The page's section on several sites, with two of them behind a real ssh. The other sections are in `test_examples`."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import ROOT, wait_until
from sshd import HOST, remote_host

PAGE = ROOT / "examples" / "workshop"
HERE, THERE = ("thetagpu_tutorial", "tom_laptop"), ("thetaknl_tutorial", "cooley_tutorial")

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="no bash")


class Desk(NamedTuple):
    """A user's desk: a directory, and the environment of a shell there."""

    place: Path
    environ: dict[str, str]

    def run(self, *words: str) -> str:
        """A command to its end, which must be good; what it printed."""
        done = subprocess.run(
            words, cwd=self.place, env=self.environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def jobs(self, *options: str) -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(self.run("balsam", "job", "ls", "--json", *options))
        return found


@pytest.fixture
def desk(tmp_path: Path, balsam_bin: str) -> Iterator[Desk]:
    """With an ssh that reaches `HOST`, where `balsam` has another home."""
    with remote_host(tmp_path) as remote:
        there = tmp_path / "balsam-there"
        settings = (
            f"BALSAM_HOME={shlex.quote(str(tmp_path / 'home there'))} BALSAM_SCHEDULER_CLASS=LocalScheduler BALSAM_IDLE_TTL_S=1"
        )
        command = f"PYTHONPATH={shlex.quote(str(ROOT))} {shlex.quote(sys.executable)} -m balsam_lite.cli"
        there.write_text(f'#!/bin/sh\nexport {settings}\n{command} "$@"\n')
        there.chmod(0o755)
        environ = {**os.environ, "PATH": f"{balsam_bin}:{remote.path}", "BALSAM_IDLE_TTL_S": "1"}
        (tmp_path / "here").mkdir()
        desk = Desk(tmp_path / "here", environ)
        for name in HERE:
            desk.run("balsam", "site", "init", "-n", name, name)
        for name in THERE:
            desk.run(str(there), "init", str(tmp_path / name))
            desk.run("balsam", "site", "add", name, f"ssh://{HOST}{tmp_path / name}", "--balsam", str(there))
        yield desk


def test_the_pages_jobs_run_at_two_sites_here_and_two_behind_ssh(desk: Desk) -> None:
    for name in (*HERE, *THERE):
        text = (PAGE / "hello.py").read_text().replace("thetagpu_tutorial", name)
        (desk.place / "hello_there.py").write_text(text)
        desk.run("python", "hello_there.py")
    printed = desk.run("bash", str(PAGE / "7_create_jobs_at_multiple_sites.sh"))
    for name in (*HERE, *THERE):
        assert printed.count(name) >= 3  # the new job's form, the list of jobs, the queue
    finished = ("--site", "all", "--tag", "workflow=hello_multisite", "--state", "JOB_FINISHED")
    wait_until(lambda: len(desk.jobs(*finished)) == 4, timeout=60, pause=0.5)
    folders = {
        "thetaknl_tutorial": "thetaknl",
        "cooley_tutorial": "cooleylogin2",
        "thetagpu_tutorial": "thetagpu",
        "tom_laptop": "tom_laptop",
    }
    for name, folder in folders.items():
        base = desk.place if name in HERE else desk.place.parent
        output = base / name / "data" / "multisite" / folder / "job.out"
        assert output.read_text() == f"Hello, {folder}! CUDA_VISIBLE_DEVICES=\n"
    everything = "from balsam_lite.api import Job, EventLog; jobs = Job.objects.filter(tags={'workflow': 'hello_multisite'})"
    shown = (
        "print(sorted((job.id.site.name, str(job.state)) for job in jobs), EventLog.objects.filter(to_state='RUNNING').count())"
    )
    said = desk.run("python", "-c", f"{everything}; {shown}")
    assert said == f"{sorted((name, 'JOB_FINISHED') for name in (*HERE, *THERE))} 4\n"
