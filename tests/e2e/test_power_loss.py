"""What a power cut or a kernel panic may take: nothing that was acknowledged, and no attempt number that was given out.

A campaign runs under strace, which tells how much of the WAL was synced when something took effect: a program was started, a
command ended with 0, the launcher ended. After a power cut then the WAL holds that much, or more. So it is cut at all these
places, and a plain sqlite3 looks what the DB then holds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import wait_until
from launching import Bench

_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24  # https://sqlite.org/fileformat2.html#the_write_ahead_log
_CALLS = "pwrite64,fdatasync,fsync,execve"
_LINE = re.compile(r"(?P<pid>\d+) +(?P<time>\d+\.\d+) (?P<text>.*)")
_SECONDS = re.compile(r"<(\d+\.\d+)>$")
_PWRITE = re.compile(r"pwrite64\(\d+<[^>]*-wal>, .*, (\d+), (\d+)")


class Effect(NamedTuple):
    """Something that took effect when that much of the WAL was synced, and what the DB must hold because of it."""

    synced: int
    what: str
    holds: Callable[[sqlite3.Connection], bool]


class Moment(NamedTuple):
    """An end of a system call, or of a process."""

    time: float
    order: int
    kind: str  # write, sync begins, sync, exec, exit
    pid: int
    number: int  # of bytes that the WAL has; the exit code


def moments(log: Path, first: int) -> list[Moment]:
    """Read what strace has written, with the times at which calls ended."""
    found: list[Moment] = []
    begun: dict[int, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        pid, time, text = int(match["pid"]), float(match["time"]), match["text"]

        def add(kind: str, at: float, number: int = 0, pid: int = pid) -> None:
            found.append(Moment(at, first + len(found), kind, pid, number))

        if text.endswith("<unfinished ...>"):
            begun[pid] = text
            if text.startswith("execve("):
                add("exec", time)
            elif "-wal>" in text and "sync(" in text:
                add("sync begins", time)
            continue
        resumed = text.startswith("<... ")
        call = begun.pop(pid, "") if resumed else text
        seconds = _SECONDS.search(text)
        end = time if resumed or not seconds else time + float(seconds[1])
        if call.startswith("execve(") and not resumed:
            add("exec", time)
        elif "-wal>" in call and "sync(" in call:
            if not resumed:
                add("sync begins", time)
            add("sync", end)
        elif call.startswith("pwrite64(") and "-wal>" in call:
            written = _PWRITE.match(call + text)
            assert written, line
            add("write", end, int(written[1]) + int(written[2]))
        elif text.startswith("+++ exited with"):
            add("exit", time, int(text.split()[3]))
    return found


class Campaign:
    """A DB whose WAL only grows, a launcher, and commands, all of them watched."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path
        self.bench = Bench(tmp_path, BALSAM_IDLE_TTL_S="60")
        self.starts = tmp_path / "starts"
        line = f'echo "$$ $BALSAM_JOB_ID ${{BALSAM_RUN##*:}}" >> {self.starts}'
        self.bench.shell("good", line)
        self.bench.shell("flaky", f'{line}; [ "${{BALSAM_RUN##*:}}" -ge 3 ]')
        self.bench.shell("long", f"{line}; sleep 60")
        self.bench.db.close()
        shutil.copy(self.bench.db.path, tmp_path / "base")  # before this process has a connection, whose locks that would drop
        # A reader that sees the empty WAL: no process can move the WAL into the file, nor begin it anew.
        self.reader = sqlite3.connect(self.bench.db.path, isolation_level=None)
        self.reader.execute("BEGIN")
        self.reader.execute("SELECT count(*) FROM job").fetchone()
        self.commands: list[tuple[str, Path, Callable[[sqlite3.Connection], bool]]] = []
        self.running: subprocess.Popen[bytes] | None = None

    def traced(self, log: Path, *words: str) -> list[str]:
        balsam = [sys.executable, "-m", "balsam_lite.cli", "--db", self.bench.directory]
        return ["strace", "-f", "-ttt", "-T", "-y", "-s", "0", "-e", f"trace={_CALLS}", "-o", str(log), *balsam, *words]

    def command(self, *words: str, shows: Callable[[str], Callable[[sqlite3.Connection], bool]]) -> None:
        """Run a command; `shows` makes of its output what the DB has to hold from then on."""
        log = self.path / f"command{len(self.commands)}"
        done = subprocess.run(self.traced(log, *words), env=self.bench.environ, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        self.commands.append((" ".join(words), log, shows(done.stdout)))

    def launch(self) -> None:
        words = self.traced(self.path / "launcher", "launcher", "--job-mode", "serial", "--consume-all")
        with open(self.path / "said", "wb") as said:
            self.running = subprocess.Popen(words, env=self.bench.environ, stderr=said, start_new_session=True)

    def end(self) -> None:
        """Let the launcher end, as it does when all jobs have."""
        assert self.running is not None
        assert self.running.wait(120) == 0, (self.path / "said").read_text()

    def close(self) -> None:
        if self.running is not None and self.running.poll() is None:
            os.killpg(self.running.pid, 9)
            self.running.wait()
        self.reader.close()
        self.bench.close()

    # --- what came of it ----------------------------------------------------------------------------------------------

    def effects(self, final: sqlite3.Connection) -> list[Effect]:
        started = [line.split() for line in self.starts.read_text().splitlines()]
        by_pid = {int(pid): (job, int(attempt)) for pid, job, attempt in started}
        parents = {}
        for child, parent in final.execute(
            "SELECT c.job_id, p.job_id FROM dependency JOIN job c ON c.id = child JOIN job p ON p.id = parent"
        ):
            parents.setdefault(child, []).append(parent)
        ended = final.execute("SELECT job, time FROM event WHERE to_state IN ('JOB_FINISHED', 'FAILED')").fetchall()
        all_moments = moments(self.path / "launcher", 0)
        launcher = all_moments[0].pid
        ends = {launcher: ("the launcher ended", lambda cx: has_events(cx, ended))}
        for what, log, holds_then in self.commands:
            more = moments(log, len(all_moments))
            ends[more[0].pid] = (f"`balsam {what}` ended", holds_then)
            all_moments += more
        written = synced = 0
        begun: dict[int, int] = {}
        found = []
        for one in sorted(all_moments):
            if one.kind == "write":
                written = max(written, one.number)
            elif one.kind == "sync begins":
                begun[one.pid] = written
            elif one.kind == "sync":
                synced = max(synced, begun.pop(one.pid))
            elif one.kind == "exec" and one.pid in by_pid:
                job, attempt = by_pid.pop(one.pid)
                what = f"attempt {attempt} of {job} was started"
                found.append(Effect(synced, what, lambda cx, job=job, attempt=attempt: has_attempt(cx, job, attempt)))
                for parent in parents.get(job, []):
                    found.append(Effect(synced, f"{what} after {parent}", lambda cx, job=parent: has_finished(cx, job)))
            elif one.kind == "exit" and one.number == 0 and one.pid in ends:
                found.append(Effect(synced, *ends.pop(one.pid)))
        assert not by_pid and not ends, "strace has missed something"
        return found

    def cuts(self) -> list[int]:
        """Return all places between two frames, and some inside of each."""
        size = os.stat(self.wal).st_size
        with sqlite3.connect(self.path / "base") as cx:
            frame = _FRAME_HEADER_BYTES + int(cx.execute("PRAGMA page_size").fetchone()[0])
        cx.close()
        inside = (0, 1, _FRAME_HEADER_BYTES, frame - 1)
        return [at + more for at in range(_HEADER_BYTES, size + 1, frame) for more in inside if at + more <= size]

    @property
    def wal(self) -> str:
        return f"{self.bench.db.path}-wal"

    def after_power_cut(self, size: int) -> sqlite3.Connection:
        """Open what is there after the power cut."""
        copy = self.path / "after"
        for ending in ("", "-wal", "-shm"):
            if os.path.exists(f"{copy}{ending}"):
                os.unlink(f"{copy}{ending}")
        shutil.copy(self.path / "base", copy)
        with open(self.wal, "rb") as whole, open(f"{copy}-wal", "wb") as part:
            part.write(whole.read(size))
        return sqlite3.connect(copy, isolation_level=None)


def has_attempt(cx: sqlite3.Connection, job: str, attempt: int) -> bool:
    row = cx.execute("SELECT attempt FROM job WHERE job_id = ?", (job,)).fetchone()
    return row is not None and row[0] >= attempt


def has_finished(cx: sqlite3.Connection, job: str) -> bool:
    query = "SELECT 1 FROM event JOIN job ON job.id = event.job WHERE job_id = ? AND to_state = 'JOB_FINISHED'"
    return cx.execute(query, (job,)).fetchone() is not None


def has_events(cx: sqlite3.Connection, wanted: list[tuple[int, int]]) -> bool:
    return set(wanted) <= set(cx.execute("SELECT job, time FROM event"))


def holds(query: str, *values: object) -> Callable[[str], Callable[[sqlite3.Connection], bool]]:
    return lambda text: lambda cx: (cx.execute(query, values).fetchone() or (False,))[0]


def finished_ones(text: str) -> Callable[[sqlite3.Connection], bool]:
    """What `ls` has shown as finished has to be."""
    jobs = [job["job_id"] for job in json.loads(text) if job["state"] == "JOB_FINISHED"]
    assert jobs
    return lambda cx: all(has_finished(cx, job) for job in jobs)


@pytest.fixture
def campaign(tmp_path):
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    made = Campaign(tmp_path)
    yield made
    made.close()


def test_a_power_cut_takes_nothing_that_was_acknowledged_and_no_attempt_number(campaign):
    jobs = (
        ("first", "good"),
        ("second", "good"),
        ("retried", "flaky", "--max-retries", "3"),
        ("endless", "long"),
        ("needless", "good"),
    )
    for count, (name, app, *more) in enumerate(jobs, start=1):
        words = ("job", "--name", name, "--app", app, "--workflow", "w", *more, "--yes")
        campaign.command(*words, shows=holds("SELECT seq >= ? FROM sqlite_sequence WHERE name = 'job'", count))
    campaign.command("dep", "first", "second", shows=holds("SELECT count(*) FROM dependency"))
    removed = holds("SELECT NOT EXISTS (SELECT 1 FROM job WHERE name = 'needless')")
    campaign.command("rm", "jobs", "--name", "needless", "--force", shows=removed)
    campaign.launch()

    def state(name: str) -> str:
        cx = sqlite3.connect(campaign.bench.db.path)
        try:
            return str(cx.execute("SELECT state FROM job WHERE name = ?", (name,)).fetchone()[0])
        finally:
            cx.close()

    wait_until(lambda: state("second") == state("retried") == "JOB_FINISHED" and state("endless") == "RUNNING", 60, 0.2)
    campaign.command("ls", "jobs", "--json", shows=finished_ones)
    again = "SELECT count(*) FROM event JOIN job ON job.id = job WHERE name = 'first' AND from_state = 'JOB_FINISHED'"
    campaign.command("rerun", "--name", "first", "--yes", shows=holds(again))
    priority = holds("SELECT priority = 7 FROM job WHERE name = 'second'")
    campaign.command("modify", "second", "priority", "7", shows=priority)
    wait_until(lambda: state("first") == "JOB_FINISHED", 60, 0.2)
    killed = "SELECT count(*) FROM job WHERE name = 'endless' AND state = 'USER_KILLED'"
    campaign.command("killjob", "--id", "endless", "--yes", shows=holds(killed))
    campaign.end()

    last = campaign.after_power_cut(os.stat(campaign.wal).st_size)
    effects = campaign.effects(last)
    last.close()
    assert len(effects) >= 18
    broken, noticed = [], set()
    for size in campaign.cuts():
        cx = campaign.after_power_cut(size)
        try:
            assert cx.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            for effect in effects:
                if not effect.holds(cx):
                    noticed.add(effect)
                    if effect.synced <= size:
                        broken.append(f"cut at {size}: {effect.what} when {effect.synced} bytes were synced")
        finally:
            cx.close()
    assert not broken, "\n".join(broken[:20])
    assert noticed == set(effects), "these are never seen to fail, so they prove nothing"
