"""A batch system in a directory, for the fakes of Cobalt's, PBS's and Slurm's commands. It really runs the scripts.

FAKE_BATCH names the directory. There is no daemon: each batch job has a process from its submission to its end, which waits
for free nodes, runs the script, ends it at its limit or when it is deleted, and leaves when the directory has gone. The
commands themselves are in `fake_cobalt`, `fake_pbs` and `fake_slurm`; this holds what has no dialect.

FAKE_BATCH_NODES      how many nodes there are [4]
FAKE_BATCH_MINUTE_S   how many seconds a minute of wall time takes [60]
FAKE_BATCH_KILL_S     seconds between SIGTERM and SIGKILL [5]

Knobs make it behave badly. Each is a file FAKE_BATCH/knobs/NAME, which a test may change at any time, else a variable
FAKE_BATCH_NAME, and means the same for all dialects:

LAG          a new batch job is listed this many seconds after its submission
OMIT         "COUNT [ID…]": that many answers leave those batch jobs out, or all; an answer counts the file down
REFUSE       submissions are refused with this text
LIMIT        a submission is refused while this many batch jobs have not ended
HANG         these commands hang and do nothing
HANG_AFTER   these commands hang when they have done what they were asked to
FAIL         these commands fail with exit code 1 and report that there is no server
"""

from __future__ import annotations

import fcntl
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable

QUEUED, HELD, STARTING, RUNNING, KILLING, ENDED = "queued", "held", "starting", "running", "killing", "ended"
#: Why a batch job is being ended.
DELETED, TIME_IS_UP = "deleted", "time is up"

_PAUSE_S = 0.05
_LONGEST_LIFE_S = 600.0  # whatever a test has forgotten

Job = dict[str, Any]


def user() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def shell() -> str:
    """The user's login shell; where he has none that could run a script, bash."""
    found = pwd.getpwuid(os.getuid()).pw_shell
    return found if os.path.basename(found) in ("sh", "bash", "dash", "zsh") else "/bin/bash"


def home() -> str:
    """Where login shells look for their files: the tester's own are none of the test's business."""
    return os.environ.get("FAKE_BATCH_HOME", os.environ["FAKE_BATCH"])


def number_from(variable: str, default: float) -> float:
    return float(os.environ.get(variable, default))


# --- knobs ------------------------------------------------------------------------------------------------------------


def _knobs() -> Path:
    return Path(os.environ.get("FAKE_BATCH_KNOBS") or Path(os.environ["FAKE_BATCH"], "knobs"))


def knob(name: str) -> str:
    """Return the knob's value; "" where it is not set."""
    try:
        return (_knobs() / name).read_text().strip()
    except FileNotFoundError:
        return os.environ.get(f"FAKE_BATCH_{name}", "")


class Refused(Exception):
    """The submission is refused with these words; "" where the limit of batch jobs is reached."""


def command(function: Callable[[Sequence[str]], int]) -> Callable[[Sequence[str]], int]:
    """Run a command, which hangs or fails if a knob is set so."""
    name = function.__name__

    def run(argv: Sequence[str]) -> int:
        if name in knob("FAIL").split():
            print(f"{name}: cannot connect to server", file=sys.stderr)
            return 1
        if name in knob("HANG").split():
            time.sleep(_LONGEST_LIFE_S)
        code = function(argv)
        sys.stdout.flush()
        if name in knob("HANG_AFTER").split():
            time.sleep(_LONGEST_LIFE_S)
        return code

    return run


# --- the queue --------------------------------------------------------------------------------------------------------


class Queue:
    """The batch jobs, a JSON file each."""

    def __init__(self) -> None:
        self.directory = Path(os.environ["FAKE_BATCH"])
        self.nodes = [f"node{number}" for number in range(1, int(number_from("FAKE_BATCH_NODES", 4)) + 1)]

    @contextmanager
    def locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with open(self.directory / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def all(self) -> list[Job]:
        paths = sorted(self.directory.glob("*.json"), key=lambda path: int(path.stem))
        return [json.loads(path.read_text()) for path in paths]

    def listed(self) -> list[Job]:
        """Return the batch jobs that a status command reports, in one answer."""
        words = knob("OMIT").split()
        if words:
            with self.locked():
                file = _knobs() / "OMIT"
                if file.exists():
                    file.write_text(" ".join([str(int(words[0]) - 1), *words[1:]]))
        omits, lag_s = bool(words) and int(words[0]) > 0, float(knob("LAG") or 0)
        return [
            job for job in self.all()
            if time.time() - job["submitted"] >= lag_s and not (omits and (not words[1:] or str(job["id"]) in words[1:]))
        ]  # fmt: skip

    def get(self, number: int) -> Job | None:
        try:
            found: Job = json.loads((self.directory / f"{number}.json").read_text())
        except FileNotFoundError:
            return None
        return found

    def write(self, job: Job) -> None:
        path = self.directory / f"{job['id']}.json"
        path.with_suffix(".new").write_text(json.dumps(job))
        path.with_suffix(".new").rename(path)

    def change(self, number: int, **values: Any) -> Job:
        with self.locked():
            job = self.get(number)
            assert job is not None
            self.write({**job, **values})
        return {**job, **values}

    def add(self, job: Job) -> Job:
        """Add a batch job and give it a number. Raises Refused."""
        if knob("REFUSE"):
            raise Refused(knob("REFUSE"))
        if knob("LIMIT") and sum(other["state"] != ENDED for other in self.all()) >= int(knob("LIMIT")):
            raise Refused("")
        with self.locked():
            number = int((self.directory / "next").read_text()) if (self.directory / "next").exists() else 1001
            (self.directory / "next").write_text(str(number + 1))
            state = HELD if job["held"] else QUEUED
            job = {**job, "id": number, "user": user(), "state": state, "submitted": time.time(), "hosts": []}
            job.update(started=None, ended=None, stopping="", exit=None, signal=None)
            self.write(job)
        return job

    def start_runner(self, job: Job) -> None:
        """The process that looks after it, detached: `python fake_….py run ID`."""
        log = open(self.directory / "runner.log", "ab")
        subprocess.Popen(
            [sys.executable, sys.modules[job["dialect"]].__file__ or "", "run", str(job["id"])],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
        log.close()

    def delete(self, number: int) -> None:
        """What qdel asks for; its process does it."""
        with self.locked():
            job = self.get(number)
            if job and job["state"] != ENDED and not job["stopping"]:
                self.write({**job, "stopping": DELETED})


class Runner:
    """The process of one batch job. `argv` and `environ` say how its script is started, `note` hears of what happens."""

    def __init__(self, number: int, start: Callable[[Job], tuple[list[str], dict[str, str]]], note: Callable[[Job, str], None]):
        self._queue, self._id = Queue(), number
        self._start, self._note = start, note
        self._give_up = time.monotonic() + _LONGEST_LIFE_S

    def run(self) -> None:
        try:
            job = self._wait_for_nodes()
            if job["state"] != ENDED:
                self._run(job)
        except FileNotFoundError:  # the test is over, and the directory gone
            pass

    def _job(self) -> Job:
        if time.monotonic() > self._give_up:
            raise FileNotFoundError
        job = self._queue.get(self._id)
        if job is None:
            raise FileNotFoundError
        return job

    def _wait_for_nodes(self) -> Job:
        while True:
            with self._queue.locked():
                job = self._job()
                if job["stopping"]:
                    job.update(state=ENDED, ended=time.time())
                elif job["state"] == QUEUED and self._is_turn(job):
                    job.update(state=STARTING, hosts=self._free()[: job["nodes"]])
                self._queue.write(job)
            if job["state"] in (STARTING, ENDED):
                if job["state"] == ENDED:
                    self._note(job, "deleted in the queue")
                return job
            time.sleep(_PAUSE_S)

    def _free(self) -> list[str]:
        busy = {host for job in self._queue.all() if job["state"] not in (QUEUED, HELD, ENDED) for host in job["hosts"]}
        return [node for node in self._queue.nodes if node not in busy]

    def _is_turn(self, job: Job) -> bool:
        before = [other for other in self._queue.all() if other["state"] == QUEUED and other["id"] < job["id"]]
        return not before and len(self._free()) >= job["nodes"]

    def _run(self, job: Job) -> None:
        started = time.time()
        seconds = job["minutes"] * number_from("FAKE_BATCH_MINUTE_S", 60)
        job = self._queue.change(self._id, state=RUNNING, started=started, ends=started + seconds)
        argv, environ = self._start(job)
        self._note(job, "started")
        with open(job["output"], "ab") as output, open(job["error"] or job["output"], "ab") as error:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=error, env=environ, cwd=job["cwd"],
                start_new_session=True,
            )  # fmt: skip
        try:
            self._watch(process, started + seconds)
        finally:
            _signal(process, signal.SIGKILL)  # whatever the script has left behind
        code = process.wait()
        job = self._queue.get(self._id) or job
        job.update(exit=code if code >= 0 else None, signal=-code if code < 0 else None)
        self._note(job, "ended")
        self._queue.change(self._id, state=ENDED, ended=time.time(), exit=job["exit"], signal=job["signal"])

    def _watch(self, process: subprocess.Popen[bytes], ends: float) -> None:
        kill_at = None
        while process.poll() is None:
            job = self._job()
            if kill_at is None and (job["stopping"] or time.time() >= ends):
                kill_at = time.monotonic() + number_from("FAKE_BATCH_KILL_S", 5)
                job = self._queue.change(self._id, state=KILLING, stopping=job["stopping"] or TIME_IS_UP)
                self._note(job, job["stopping"])
                _signal(process, signal.SIGTERM)
            elif kill_at is not None and time.monotonic() > kill_at:
                _signal(process, signal.SIGKILL)
            time.sleep(_PAUSE_S)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the whole process group, as both systems do."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def host() -> str:
    return socket.gethostname()
