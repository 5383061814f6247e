"""The blocks of the README and of the pages of docs/ run from top to bottom, and print what the documents show."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from documents import Block, as_script, blocks_of, page, section, without_particulars

#: The pages whose blocks a test runs from top to bottom, and some more of what they print.
RUN = {
    "quickstart": (),
    "tutorial": ("AWAITING_PARENTS", "RUN_ERROR"),
    "guides/archives": ("Exported 1 application, 2 jobs", "Imported 2 jobs with 2 files"),
    "guides/campaign_files": (),
    "guides/dependencies_and_files": ("JOB_FINISHED (stale)",),
    "guides/executor": (),
    "guides/many_jobs": ("JOB_FINISHED",),
    "guides/hooks_and_retries": ("USER_KILLED", "POSTPROCESSED"),
    "guides/plots": ("jobs done", "Time since"),
    "guides/python_api": (),
    "guides/results": ("-150.0 UTC", "point-T500"),
    "guides/sites_and_ssh": ("demo/hello",),
}


def printed_by(blocks: list[Block], directory: Path, balsam_bin: str) -> str:
    """Run the blocks in an empty directory, which is also the home, and return what they print; compare what they show."""
    environ = {**os.environ, "PATH": f"{balsam_bin}:{os.environ['PATH']}", "HOME": str(directory), "BALSAM_IDLE_TTL_S": "1"}
    del environ["BALSAM_HOME"]  # the reader's is ~/.balsam
    done = subprocess.run(
        ["bash", "--norc", "-e", "-o", "pipefail", "-c", as_script(blocks)],
        cwd=directory, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    printed = without_particulars(done.stdout)
    shown = [line for block in blocks if block.language == "text" for line in without_particulars(block.text)]
    assert [line for line in shown if line not in printed] == [], done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_the_readmes_first_jobs_run_and_print_what_it_shows(tmp_path: Path, balsam_bin: str) -> None:
    look = Block("bash", "balsam ls --by-states\nbalsam launcher --consume-all --job-mode serial\nbalsam ls --by-states\n", "")
    printed = printed_by([*blocks_of(section("First jobs")), look], tmp_path, balsam_bin)
    for text in ("JOB_FINISHED (10 BalsamJobs)", "AWAITING_PARENTS (21 BalsamJobs)", "JOB_FINISHED (32 BalsamJobs)"):
        assert text in printed


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
@pytest.mark.parametrize("name", RUN)
def test_a_page_runs_and_prints_what_it_shows(tmp_path: Path, balsam_bin: str, name: str) -> None:
    blocks = blocks_of(page(name))
    assert [block.language for block in blocks].count("bash") >= 2
    printed = printed_by(blocks, tmp_path, balsam_bin)
    assert [text for text in RUN[name] if text not in printed] == []
