"""A DB and real launchers for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from helpers import wait_until

from balsam_lite.core.settings import Settings
from balsam_lite.db.engine import directories
from balsam_lite.db.query import queries, select
from balsam_lite.db.store import apps, graph, insert

PYTHON = sys.executable


class Bench:
    """A fresh DB in a directory, and launchers that are gone when the test is."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.directory = str(directory / "db")
        self.db = directories.create(self.directory)
        self.environ = {**os.environ, "BALSAM_IDLE_TTL_S": "0.3", "BALSAM_KILL_GRACE_S": "2", **settings}
        self.launchers: list[subprocess.Popen[bytes]] = []
        self.python = PYTHON  # of the launchers

    def app(self, name: str, executable: str, **fields: str) -> None:
        with self.db.write() as cx:
            apps.add_app(cx, {"name": name, "executable": executable, **fields})

    def script(self, name: str, code: str) -> None:
        """An application that runs Python code."""
        path = Path(self.directory).parent / f"{name}.py"
        path.write_text(code)
        self.app(name, f"{PYTHON} {path}")

    def shell(self, name: str, code: str) -> None:
        path = Path(self.directory).parent / f"{name}.sh"
        path.write_text(f"#!/bin/sh\n{code}\n")
        path.chmod(0o755)
        self.app(name, str(path))

    def add(self, jobs: Iterable[Mapping[str, Any]]) -> list[int]:
        return list(insert.add_jobs(self.db, jobs).ids)

    def depend(self, parent: int, child: int) -> None:
        with self.db.write() as cx:
            graph.add_dependency(cx, parent, child, 1)

    def launch(self, *options: str, **environ: str) -> subprocess.Popen[bytes]:
        argv = [self.python, "-m", "balsam_lite.cli", "--db", self.directory, "launcher", "--job-mode", "serial", *options]
        if "--wf-filter" not in options:
            argv.append("--consume-all")
        log = open(f"{self.directory}/log/stderr", "ab")
        process = subprocess.Popen(argv, stderr=log, env={**self.environ, **environ}, start_new_session=True)
        log.close()
        self.launchers.append(process)
        return process

    def run(self, *options: str, timeout: float = 60, **environ: str) -> int:
        """A launcher from start to end; its exit code."""
        return self.launch(*options, **environ).wait(timeout)

    def close(self) -> None:
        for process in self.launchers:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.db.close()

    # --- looking ------------------------------------------------------------------------------------------------------

    def states(self) -> dict[str, int]:
        with self.db.read() as cx:
            return select.count_states(cx)

    def job(self, number: int) -> dict[str, Any]:
        with self.db.read() as cx:
            return queries.job(cx, number)

    def history(self, number: int) -> list[tuple[str, str]]:
        """(state entered, message)."""
        with self.db.read() as cx:
            return [(new, message) for _, _, new, message in queries.history(cx, number)]

    def path(self, number: int, name: str = "") -> Path:
        return Path(self.directory, "data", self.job(number)["workdir"], name)

    def wait_for(self, number: int, *states: str, timeout: float = 30) -> None:
        wait_until(lambda: self.job(number)["state"] in states, timeout)

    def settings(self) -> Settings:
        return Settings.load(self.directory, self.environ)


def alive(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    from balsam_lite.core.process_table import start_of

    return start_of(pid) != ""
