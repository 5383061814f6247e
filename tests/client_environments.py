"""The programs of others that use balsam_lite, each in an environment that `.ci/run` makes, and a DB for them.

`CLIENTS_VENV` and `OLD_CLIENTS_VENV` name virtual environments with the packages of `tests/clients/requirements.txt` and
`requirements_old.txt` and with this package:

    python3 -m venv V && V/bin/pip install -r tests/clients/requirements.txt && V/bin/pip install -e .
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import ROOT, wait_until

EXAMPLES = ROOT / "examples" / "clients"


def clients() -> Path:
    """Return the directory of programs of the environment with today's clients; skip the test where there is none."""
    return _programs("CLIENTS_VENV", "requirements.txt")


def old_clients() -> Path:
    """Return the directory of programs of the environment with clients of Balsam 0.3; skip the test where there is none."""
    return _programs("OLD_CLIENTS_VENV", "requirements_old.txt")


def _programs(variable: str, requirements: str) -> Path:
    venv = os.environ.get(variable, "")
    if not venv or not os.access(os.path.join(venv, "bin", "balsam"), os.X_OK):
        pytest.skip(f"no clients: install tests/clients/{requirements} and this package in a venv that {variable} names")
    return Path(venv, "bin")


class ClientDB:
    """A new Balsam DB `place/db`, and the programs of one environment that use it, started in `place`."""

    def __init__(self, programs: Path, place: Path) -> None:
        self.programs, self.place, self.directory = programs, place, place / "db"
        self.environ = {
            **os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "BALSAM_DB_PATH": str(self.directory),
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": "",
        }  # fmt: skip
        self.balsam("init", self.directory)

    def balsam(self, *words: object, timeout: float = 60) -> str:
        """Run a command of the environment's `balsam`, and return its stdout; fail unless it exits with 0."""
        return self._run("balsam", *words, timeout=timeout)

    def python(self, *words: object, timeout: float = 120, **variables: str) -> str:
        """Run the environment's Python with these arguments, and return its stdout; fail unless it exits with 0."""
        return self._run("python", *words, timeout=timeout, **variables)

    def _run(self, program: str, *words: object, timeout: float, **variables: str) -> str:
        done = subprocess.run(
            [str(self.programs / program), *map(str, words)], cwd=self.place, env={**self.environ, **variables},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        sys.stderr.write(done.stderr)  # pytest shows it if the test fails
        return done.stdout

    @contextmanager
    def launcher(self, *words: str) -> Iterator[None]:
        """Run a launcher until the block ends: for serial jobs on two nodes of this host, or with these options."""
        options = words or ("--consume-all", "--job-mode=serial", "--nodes=2", "--persistent")
        argv = [str(self.programs / "balsam"), "launcher", *options]
        log = self.place / "launcher.out"
        with open(log, "ab") as out:
            process = subprocess.Popen(argv, cwd=self.place, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise


__all__ = ["EXAMPLES", "ClientDB", "clients", "old_clients", "wait_until"]
