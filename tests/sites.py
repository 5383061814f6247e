"""Machine rooms for tests: a scheduler each, real or faked, that really runs scripts.

`SITES` are all that the program knows, by name. A site has the settings and the environment with which the program finds its
scheduler, and knows the few words in which the schedulers differ for a test.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import slurm_cluster
from helpers import wait_until

from balsam_lite.core.settings import Settings
from balsam_lite.schedulers import base
from balsam_lite.schedulers.base import BatchStatus, Scheduler, Submission

FAKES = Path(__file__).resolve().parent / "fakebin"


class Site:
    """One machine room. `folder` is where the test's scripts lie; all nodes of the site see it."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        self.settings = Settings(SCHEDULER_CLASS=kind.scheduler, SCHEDULER_TIMEOUT_S=30.0)
        self._made: list[str] = []

    def scheduler(self, **settings: object) -> Scheduler:
        return base.select(self.settings._replace(**settings))

    def script(self, name: str, body: str, nodes: int = 1, minutes: int = 5) -> Submission:
        """A script, with the header of this scheduler, on its way."""
        path = self.folder / f"{name}.sh"
        path.write_text(
            "\n".join(["#!/bin/bash", *self.header(nodes, minutes), f"cd {shlex.quote(str(self.folder))}", body, ""])
        )
        path.chmod(0o755)
        return Submission(name, str(path), str(self.folder / f"{name}.out"), str(self.folder), nodes, minutes)

    def header(self, nodes: object, minutes: object) -> list[str]:
        """The lines that tell the scheduler what is wanted; also for a template, with its variables for the numbers."""
        return [line.format(nodes=nodes, minutes=minutes) for line in self.kind.header]

    def waiting(self, name: str = "wait", **more: int) -> Submission:
        """A script that says that it runs, and goes on when `release` is called."""
        return self.script(name, f"touch {name}.up\nwhile [ ! -e {name}.go ]; do sleep 0.1; done", **more)

    def wait_until_up(self, name: str = "wait") -> None:
        wait_until((self.folder / f"{name}.up").exists, 60)

    def release(self, name: str = "wait") -> None:
        (self.folder / f"{name}.go").touch()

    def submit(self, submission: Submission) -> str:
        native_id = self.scheduler().submit(submission)
        self._made.append(native_id)
        return native_id

    def status(self, submission: Submission, native_id: str) -> BatchStatus | None:
        return self.scheduler().poll({native_id: submission.output}).get(native_id)

    def ended(self, submission: Submission, native_id: str) -> BatchStatus:
        """Its status, as soon as it has ended."""

        def look() -> BatchStatus | None:
            status = self.status(submission, native_id)
            assert status is not None, f"{native_id} is gone"
            return status if status.is_ended else None

        found = wait_until(look, 60, 0.1)
        assert found is not None
        return found

    def turn(self, knob: str, value: object) -> None:
        """Set a knob of a fake; see `fakebin/batch.py`. "" unsets it."""
        folder = Path(os.environ["FAKE_BATCH"], "knobs")
        folder.mkdir(exist_ok=True)
        (folder / knob).write_text(str(value))

    def command(self, name: str, shell_text: str) -> str:
        """A program to be used instead of one of the scheduler's."""
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{shell_text}\n")
        path.chmod(0o755)
        return str(path)


class Kind(NamedTuple):
    """What a site is. `enter` prepares the environment, and cleans up afterwards."""

    name: str
    scheduler: str
    header: tuple[str, ...]
    status_command: str  # "" where there is none
    submit_command: str
    doubled: str  # Python code that prints what the status command prints, from `text`, with everything told twice
    enter: Callable[[Path, pytest.FixtureRequest, pytest.MonkeyPatch], Iterator[None]]
    nodes: int = 4  # the number of all
    tells_cancelled: bool = True  # that it was cancelled, of one that ran
    tells_exit_code: bool = True
    queue: str = "debug"
    is_fake: bool = False  # one that has knobs; see `fakebin/batch.py`


_TWICE = "print(text * 2)"
_JOBS_TWICE = """
jobs = json.dumps(json.loads(text)["Jobs"])[1:-1]
print('{"timestamp": 1, "Jobs": {' + jobs + ", " + jobs + "}}")
"""


def _fake(folder: str, **variables: str) -> Callable[..., Iterator[None]]:
    def enter(place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        batch = place / "batch"
        batch.mkdir()
        monkeypatch.setenv("PATH", f"{FAKES / folder}:{os.path.dirname(sys.executable)}:/usr/bin:/bin")
        monkeypatch.setenv("FAKE_BATCH", str(batch))
        # What a login shell in a batch job finds: on a Cray the starter of MPI programs.
        bin_folders = [str(FAKES / "cray")] if variables.get("FAKE_COBALT_MACHINE") == "cray" else []
        path = ":".join([*bin_folders, os.path.dirname(sys.executable)])
        (batch / ".bash_profile").write_text(f'export PATH={shlex.quote(path)}:"$PATH"\n')
        monkeypatch.setenv("FAKE_BATCH_KILL_S", "3")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield
        for path in batch.rglob("*.json"):
            with open(path.parent / "lock", "w") as lock:  # else a process that has just read its file writes it anew
                fcntl.flock(lock, fcntl.LOCK_EX)
                path.unlink()  # its process sees it, ends what runs, and leaves
        wait_until(lambda: not _processes_of(batch), 20, 0.05)

    return enter


def _processes_of(batch: Path) -> list[str]:
    """The processes of the batch jobs in that directory, by their environment."""
    mark = f"FAKE_BATCH={batch}".encode()
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            if b"run" in words and mark in (place / "environ").read_bytes():
                found.append(place.name)
        except OSError:
            continue
    return found


def _local(place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield
    scheduler = base.select(Settings(SCHEDULER_CLASS="LocalScheduler"))
    home = Path(os.environ["BALSAM_HOME"], "local-scheduler", "active")
    for path in home.glob("*.json"):
        try:
            scheduler.cancel(path.stem)
        except base.CancelFailed:
            continue
    wait_until(lambda: not list(home.glob("*.json")), 30)


def _slurm(place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cluster: slurm_cluster.Cluster = request.getfixturevalue("slurm")
    cluster.use(monkeypatch)
    yield
    cluster.cancel_all()


def _wrappers(place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cluster: slurm_cluster.Cluster = request.getfixturevalue("slurm_with_wrappers")
    for name, value in cluster.environ.items():
        monkeypatch.setenv(name, value)
    yield
    cluster.cancel_all()


_COBALT_HEADER = ("#COBALT -n {nodes}", "#COBALT -t {minutes}", "#COBALT -q training")
_SLURM_HEADER = ("#SBATCH --nodes={nodes}", "#SBATCH --time={minutes}")
_PBS_HEADER = ("#PBS -l select={nodes}", "#PBS -l walltime={minutes}:00", "#PBS -q training")

SITES = (
    Kind("local", "LocalScheduler", (), "", "", "", _local, nodes=1, queue="training"),
    Kind(
        "cobalt", "CobaltScheduler", _COBALT_HEADER, "qstat", "qsub", _TWICE,
        _fake("cobalt", FAKE_COBALT_MACHINE="cluster"), queue="training", is_fake=True,
    ),
    Kind(
        "theta", "CobaltScheduler", _COBALT_HEADER, "qstat", "qsub", _TWICE,
        _fake("cobalt", FAKE_COBALT_MACHINE="cray"), queue="training", is_fake=True,
    ),
    Kind(
        "pbs", "PBSScheduler", _PBS_HEADER, "qstat", "qsub", _JOBS_TWICE, _fake("pbs"), queue="training", is_fake=True,
    ),
    Kind(
        "torque", "PBSScheduler", _PBS_HEADER, "qstat", "qsub", _TWICE, _fake("pbs", FAKE_PBS="torque"),
        tells_cancelled=False, queue="training", is_fake=True,
    ),
    Kind(
        "slurm-fake", "SlurmScheduler", _SLURM_HEADER, "squeue", "sbatch", _TWICE,
        _fake("slurm", FAKE_SLURM_CLUSTERS="red blue"), is_fake=True,
    ),
    Kind(
        "slurm", "SlurmScheduler", _SLURM_HEADER, "squeue", "sbatch", _TWICE, _slurm,
    ),
    Kind(
        "wrappers", "PBSScheduler", ("#PBS -l nodes={nodes}", "#PBS -l walltime={minutes}:00"), "qstat", "qsub", _TWICE,
        _wrappers, tells_cancelled=False, tells_exit_code=False,
    ),
)  # fmt: skip
