"""What tests of the commands that look at jobs share: a DB, jobs whose launcher is the test, and the command as a process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import ROOT, wait_until

from balsam_lite.db.engine import directories
from balsam_lite.db.engine.connection import Database
from balsam_lite.db.store import apps, insert, user_actions

BALSAM = [sys.executable, "-c", "import sys; from balsam_lite.cli.main import main; sys.exit(main())"]


@contextmanager
def active_db(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """Make a DB with the application `sh`, the active one of this process and of those that it starts."""
    for name in [name for name in os.environ if name.startswith(("BALSAM_", "_BALSAM"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("BALSAM_HOME", str(place / "home"))
    monkeypatch.setenv("BALSAM_DB_PATH", str(place / "db"))
    found = directories.create(str(place / "db"))
    with found.write() as cx:
        apps.add_app(cx, {"name": "sh", "executable": "bash -c"})
    yield found
    found.close()


class Job:
    """A job whose launcher is the test."""

    def __init__(self, db: Database, name: str, **fields: object) -> None:
        self.db = db
        self.number = insert.add_jobs(db, [{"name": name, "workflow": "w", "application": "sh", **fields}]).first
        with db.read() as cx:
            sql = "SELECT workdir, job_id FROM job WHERE id = ?"
            workdir, self.job_id = cx.execute(sql, (self.number,)).fetchone()
        self.workdir = Path(db.directory, directories.DATA, workdir)
        self.output = self.workdir / f"{name}.out"

    def set(self, state: str, attempt: int = 1, message: str = "") -> None:
        with self.db.write() as cx:
            cx.execute("UPDATE job SET attempt = ? WHERE id = ?", (attempt, self.number))
        user_actions.set_state(self.db, [self.number], state, message)

    def write(self, data: bytes) -> None:
        self.workdir.mkdir(parents=True, exist_ok=True)
        with open(self.output, "ab") as file:
            file.write(data)


def run(*words: str, **environ: str) -> tuple[int, str, str]:
    """Run the command; return its exit code, stdout and stderr."""
    done = subprocess.run(
        [*BALSAM, *words], capture_output=True, stdin=subprocess.DEVNULL, timeout=60, env={**os.environ, **environ}
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Process:
    """A command that goes on, with pipes."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen([*BALSAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.out, self.err = b"", b""
        assert self.process.stdout
        assert self.process.stderr
        streams = {"out": self.process.stdout.fileno(), "err": self.process.stderr.fileno()}
        self.threads = [threading.Thread(target=self._read, args=stream, daemon=True) for stream in streams.items()]
        for thread in self.threads:
            thread.start()

    def _read(self, name: str, stream: int) -> None:
        while data := os.read(stream, 1 << 16):
            setattr(self, name, getattr(self, name) + data)

    def has(self, text: str) -> None:
        wait_until(lambda: text.encode() in self.out + b"\0" + self.err)

    def end(self) -> tuple[int, str, str]:
        code = self.process.wait(30)
        for thread in self.threads:
            thread.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()
        return code, self.out.decode(), self.err.decode()

    def idle_cpu_s(self, seconds: float) -> float:
        """Return the CPU time that it takes in that time."""

        def cpu_s() -> float:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before = cpu_s()
        with pytest.raises(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return cpu_s() - before
