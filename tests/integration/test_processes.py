"""`balsam_lite.core.process_table`: who is told to end first."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import wait_until

from balsam_lite.core import process_table
from balsam_lite.core.process_table import Process, descendants, signal_all

FAMILY = [Process(pid, parent, 40, 40, "1") for pid, parent in ((40, 1), (39, 40), (41, 39), (42, 40), (7, 41), (90, 1))]


def test_parents_are_told_before_their_children_however_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(process_table, "start_of", lambda pid: "1")
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append(pid))
    for members in itertools.permutations(FAMILY, 4):
        told.clear()
        signal_all([*members, *members[:2]], signal.SIGKILL)  # twice in the list, told once
        assert sorted(told) == sorted(member.pid for member in members)
        assert all(told.index(m.parent) < told.index(m.pid) for m in members if m.parent in told), members


def test_pids_that_were_used_anew_make_no_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(process_table, "start_of", lambda pid: "1")
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append(pid))
    signal_all([Process(5, 6, 5, 5, "1"), Process(6, 5, 5, 5, "1"), Process(8, 8, 8, 8, "1")], signal.SIGTERM)
    assert sorted(told) == [5, 6, 8]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_a_shell_is_killed_before_it_could_go_on(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = os.kill

    def slowly(pid: int, number: int) -> None:
        """Time enough for a shell that outlives its child to go on; one that is killed first takes none."""
        kill(pid, number)
        give_up = time.monotonic() + 5
        while shell.poll() is None and time.monotonic() < give_up:
            time.sleep(0.005)

    script = "trap '' TERM; sh -c 'while :; do sleep 0.01; done'; touch went-on"
    with subprocess.Popen(["/bin/sh", "-c", script], cwd=tmp_path, start_new_session=True) as shell:
        wait_until(lambda: len(descendants([(shell.pid, "")], [])) >= 2)
        monkeypatch.setattr(os, "kill", slowly)
        signal_all(reversed(descendants([(shell.pid, "")], [])), signal.SIGKILL)
        assert shell.wait(20) == -signal.SIGKILL
        wait_until(lambda: not signal_all(left := descendants([(shell.pid, "")], []), signal.SIGKILL) and not left)
    assert not (tmp_path / "went-on").exists()
