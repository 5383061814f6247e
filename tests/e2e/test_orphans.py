"""What dead launchers leave behind, and what a launcher does before it takes jobs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.process_table import RUN_VARIABLE, Holder, belonging
from balsam_lite.core.settings import Settings
from balsam_lite.db.engine import directories
from balsam_lite.db.engine.binding import id_of
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import leases
from balsam_lite.launcher import logs, main
from balsam_lite.launcher.exec import run_file
from balsam_lite.launcher.exec.invocation import NO_MPI, lease_mark
from balsam_lite.launcher.placement import Node
from balsam_lite.launcher.reaper import Reaper
from balsam_lite.launcher.resources import LauncherOptions, Resources


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    made = directories.create(str(tmp_path / "db"))
    yield made
    made.close()


class SlowNodes(main.Nodes):
    """Nodes that need longer than a lease lasts."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def begin(self, *_: Any) -> None:
        with self._db.write() as cx:
            cx.execute("UPDATE lease SET heartbeat = 1")


def test_a_launcher_is_heard_of_again_when_its_nodes_are_ready_and_before_it_reaps(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int] = []
    opened: set[Database] = set()

    def look(its: Database, *_: Any) -> int:
        opened.add(its)
        with db.read() as cx:
            heard.extend(lease.heartbeat_us for lease in leases.open_leases(cx))
        with db.write() as cx:
            cx.execute("UPDATE lease SET heartbeat = 1")
        return 0

    monkeypatch.setattr(logs, "set_up", lambda *_: "no log")
    monkeypatch.setattr(Reaper, "reap", lambda reaper: look(reaper._db))
    monkeypatch.setattr(main._Setup, "_run", lambda *_: 0)  # which begins with another heartbeat
    began_us = SystemClock.now_us()
    found = Resources([Node(1)], None, None, "", NO_MPI)
    assert main.run_on(found, db.directory, Settings.load(db.directory), LauncherOptions(), SlowNodes(db)) == 0
    for its in opened:
        its.close()
    assert len(heard) == 1
    assert heard[0] >= began_us


def test_an_orphan_that_cannot_be_killed_keeps_the_jobs_of_its_launcher_alone(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(USER_KILL_GRACE_S=0.1)
    dead = Holder.current()._replace(started="another process's")
    with db.write() as cx:
        db_id = id_of(cx)
        held, _ = (leases.open_lease(cx, "launcher", dead, "", 1) for _ in range(2))
    mark = os.fsdecode(lease_mark(db_id, held))
    orphan = subprocess.Popen(["sleep", "60"], env={**os.environ, RUN_VARIABLE: mark})

    def reap() -> list[int]:
        Reaper(db, settings, SystemClock()).reap()
        with db.read() as cx:
            return [lease.id for lease in leases.open_leases(cx)]

    try:
        wait_until(lambda: belonging(prefix=os.fsencode(mark)).members)
        with monkeypatch.context() as patch, caplog.at_level("WARNING", "balsam_lite.launcher"):
            patch.setattr(run_file, "signal_all", lambda *_: None)  # as if it waited for a file system
            patch.setattr(run_file, "UNKILLABLE_S", 0.2)
            assert reap() == [held]
            assert f"process(es) {orphan.pid}" in caplog.text
            patch.setattr(run_file, "UNKILLABLE_S", 60)
            began = time.monotonic()
            assert reap() == [held]
            assert time.monotonic() - began < 10  # it is not waited for again
    finally:
        orphan.kill()
        orphan.wait()
    assert reap() == []
