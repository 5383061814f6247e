"""One DB on a file system that hosts share as they share NFS or Lustre: a real Slurm, whose nodes have their own mounts.

Nothing that one node has mapped or cached is known to another, and locks of fcntl end at the node: what a DB can suffer.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import slurm_cluster
from elsewhere import environment, python_argv
from helpers import wait_until
from mounts import bindfs, need

from balsam_lite.db.engine.connection import Database
from balsam_lite.db.engine.session import FILE_NAME as LOCK
from balsam_lite.db.query import queries

BALSAM = [sys.executable, "-m", "balsam_lite.cli"]


class Site(NamedTuple):
    """A cluster and its file system."""

    cluster: slurm_cluster.Cluster
    back: Path  # the directory itself, which no node sees
    point: Path  # where each node has its own mount of it

    def on(self, node: str, *words: str, **environ: str) -> str:
        """What a command printed on that node."""
        done = self.cluster.run(list(words), node=node, timeout_s=120, **{**environment(), **environ})
        assert done.returncode == 0, f"{words} on {node}: {done.stdout}{done.stderr}"
        return done.stdout

    def is_idle(self) -> bool:
        """Whether Slurm says that there is no batch job. Now and then it does not answer."""
        answer = self.cluster.run(["squeue", "--noheader"])
        return answer.returncode == 0 and not answer.stdout.strip()


class SharedDB:
    """A DB on that file system."""

    def __init__(self, site: Site, name: str, **settings: object) -> None:
        self.site, self.directory, self.back = site, str(site.point / name), site.back / name
        self.balsam("node1", "init", self.directory)
        quick = {"LEASE_EXPIRY_S": 3, "HEARTBEAT_S": 0.5, "IDLE_TTL_S": 3, "SCHEDULER_CLASS": "SlurmScheduler"}
        (self.back / "settings.json").write_text(json.dumps({**quick, **settings}))

    def balsam(self, node: str, *words: str) -> str:
        options = [] if words[0] == "init" else ["--db", self.directory]
        return self.site.on(node, *BALSAM, *options, *words)

    def add(self, node: str, number: int, code: str, **fields: object) -> None:
        """An application that runs that shell code, and jobs of it."""
        script = self.site.back / f"{Path(self.directory).name}.sh"
        script.write_text(f"#!/bin/sh\n{code}\n")
        script.chmod(0o755)
        job = {"application": "work", "workflow": "w", **fields}
        adding = f"""
from balsam_lite.db.store import apps, insert
with db.write() as cx:
    apps.add_app(cx, {{"name": "work", "executable": {str(self.site.point / script.name)!r}}})
insert.add_jobs(db, [{job!r} for _ in range({number})])
"""
        self.site.on(node, *python_argv(adding, self.directory))

    def states(self) -> dict[str, int]:
        """The number of jobs in each state, as a node sees it."""
        found: dict[str, int] = json.loads(self.balsam("node2", "db", "info", "--json"))[0]["states"]
        return found

    def launch(self, node: str, *, minutes: int = 10) -> None:
        """A launcher in a batch job of its own, submitted on that node."""
        words = ["submit-launch", "-n", "1", "-t", str(minutes), "-q", "debug", "-A", "x", "--job-mode", "serial"]
        self.balsam(node, *words)

    def kill_in_a_session(self) -> str:
        """Kill a launcher with -9 while it has the DB; returns where it ran."""

        def caught() -> str:
            try:
                host, namespace, pid, _, _ = json.loads((self.back / LOCK).read_bytes())
            except (OSError, ValueError):
                return ""
            outer = _outer(namespace, pid)
            if not outer or b"launcher" not in _read(f"/proc/{outer}/cmdline"):
                return ""
            try:
                os.kill(outer, signal.SIGKILL)
            except ProcessLookupError:
                return ""
            return str(host)

        return wait_until(caught, 60, 0.0005)

    def opened(self) -> Database:
        """Return the DB below the mounts, once no process is at work."""
        return Database(str(self.back), "shared")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _outer(namespace: str, pid: int) -> int:
    """The pid that a process of another pid namespace has here; 0 if there is none."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and re.search(rb"^NSpid:.*\s%d$" % pid, _read(f"/proc/{entry}/status"), re.MULTILINE):
            try:
                if os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                    return int(entry)
            except OSError:
                pass
    return 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need()
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("site")
    back, point = folder / "back", folder / "shared"
    back.mkdir()
    point.mkdir()
    with slurm_cluster.running(node_command=bindfs(back, point, locks=False)) as cluster:
        yield Site(cluster, back, point)


@pytest.fixture(autouse=True)
def _no_batch_job_is_left(site: Site) -> Iterator[None]:
    yield
    site.cluster.cancel_all()


# --- what must hold at the end ----------------------------------------------------------------------------------------


def assert_nothing_is_lost_doubled_or_stuck(db: SharedDB, jobs: int) -> Counter[str]:
    """Each job finished once; each attempt began once; counters are counts. Returns how many events of each state are there."""
    assert db.states() == {"JOB_FINISHED": jobs}
    db.balsam("node3", "db", "check", "--seconds", "0")
    opened = db.opened()
    events: Counter[str] = Counter()
    with opened.read() as cx:
        assert cx.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert cx.execute("SELECT count(*) FROM job WHERE lease IS NOT NULL").fetchone() == (0,)
        rows = cx.execute("SELECT id, attempt, workdir FROM job").fetchall()
        histories = {job: [state for _, _, state, _ in queries.history(cx, job)] for job, _, _ in rows}
    opened.close()
    assert len(rows) == jobs
    for job, attempts, workdir in rows:
        seen = Counter(histories[job])
        assert seen["JOB_FINISHED"] == 1
        assert seen["RUN_DONE"] == 1
        # A run that never started gives back its attempt number: the job goes from RUNNING to the state it had before.
        given_back = seen["PREPROCESSED"] - 1 + seen["RESTART_READY"] - (attempts - 1)
        assert seen["RUNNING"] == attempts + given_back
        assert given_back >= 0
        runs = _read(str(db.back / "data" / workdir / "runs")).count(b"\n")
        assert 1 <= runs <= attempts, f"job {job} ran {runs} times in {attempts} attempts"
        events += seen
    return events


def test_a_launcher_killed_in_a_session_loses_doubles_and_blocks_nothing(site: Site) -> None:
    """Two launchers in two batch jobs, six of them killed while they have the DB, and ten who look and write meanwhile."""
    db = SharedDB(site, "killed")
    db.add("node1", 150, "echo $$ >> runs\nsleep 0.1", node_packing_count=4)
    commands = (
        ["ls", "--by-states"],
        ["ls", "--json"],
        ["ls", "--history", "--limit", "3"],
        ["ls", "apps"],
        ["db", "info"],
    )

    def visit(number: int) -> int:
        """One of ten users, at one of the nodes; the first thing they do is a change. Returns how often they came."""
        node, visits = f"node{number % 4 + 1}", 1
        db.balsam(node, "app", "--name", f"app{number}", "--executable", "true")
        while not done:
            db.balsam(node, *commands[number % len(commands)])
            visits += 1
            time.sleep(1)
        return visits

    done: list[bool] = []
    with ThreadPoolExecutor(10) as users:
        visits = [users.submit(visit, number) for number in range(10)]
        try:
            for node in ("node3", "node4"):
                db.launch(node)
            hit = []
            for number in range(6):
                hit.append(db.kill_in_a_session())
                db.launch(f"node{number % 4 + 1}")
            wait_until(lambda: db.states() == {"JOB_FINISHED": 150}, 300, 1)
        finally:
            done.append(True)
        assert all(visit.result() > 1 for visit in visits)
    assert len(hit) == 6
    wait_until(site.is_idle, 60, 0.5)
    events = assert_nothing_is_lost_doubled_or_stuck(db, 150)
    assert events["JOB_FINISHED"] == 150
    assert len(json.loads(db.balsam("node4", "ls", "apps", "--json"))) == 11


def test_two_launchers_on_two_nodes_run_each_job_once(site: Site) -> None:
    db = SharedDB(site, "twice")
    # The first one waits for the other one, in a directory that both see as it is.
    met = f"touch {site.back}/met-$(hostname); until [ $(ls -d {site.back}/met-* | wc -l) = 2 ]; do sleep 0.1; done"
    db.add("node2", 100, f"hostname >> runs\n{met}\nsleep 0.1", node_packing_count=4)
    for node in ("node1", "node2"):
        db.launch(node)
    wait_until(lambda: db.states() == {"JOB_FINISHED": 100}, 100, 1)
    wait_until(site.is_idle, 60, 0.5)
    events = assert_nothing_is_lost_doubled_or_stuck(db, 100)
    assert events["RUNNING"] == 100
    hosts = Counter(path.read_text().strip() for path in (db.back / "data").rglob("runs"))
    assert len(hosts) == 2, f"one launcher did all: {hosts}"


def test_a_db_set_up_for_a_local_disk_is_refused_there(site: Site) -> None:
    db = SharedDB(site, "local")
    marker = db.back / "balsam.json"
    assert json.loads(marker.read_text())["access"] == "shared"
    marker.write_text('{"access": "local"}')
    for words in (["ls"], ["launcher", "--consume-all", "--job-mode", "serial"], ["db", "info"]):
        done = site.cluster.run([*BALSAM, "--db", db.directory, *words], node="node1", **environment())
        assert done.returncode == 1
        assert f"is on a fuse file system {db.site.back} mounted on {site.point}" in done.stderr
    checked = site.cluster.run([*BALSAM, "--db", db.directory, "db", "check"], node="node1", **environment())
    assert (checked.returncode, "wrong  access: " in checked.stdout) == (1, True)
    again = site.cluster.run([*BALSAM, "init", "--access", "local", db.directory], node="node2", **environment())
    assert again.returncode == 1


def test_the_locks_of_two_nodes_are_tested_inside_a_batch_job(site: Site) -> None:
    db = SharedDB(site, "check")
    command = "srun -N1 -n1 --overlap -w {host}"
    script = f"{' '.join(BALSAM)} --db {db.directory} db check --seconds 1 --peer $PEER --peer-command '{command}'"
    body = f"#!/bin/sh\nfor PEER in $(scontrol show hostnames); do [ $PEER = $(hostname) ] || exec {script}; done\n"
    path = site.back / "check.sh"
    path.write_text(body)
    output = site.back / "check.out"
    job = site.cluster.sbatch("--nodes=2", "--partition=debug", f"--output={site.point}/check.out", str(path))
    wait_until(lambda: site.cluster.job(job).get("JobState") in ("COMPLETED", "FAILED"), 90, 0.3)
    said = output.read_text()
    assert site.cluster.job(job)["JobState"] == "COMPLETED", said
    assert "2 processes on 2 host(s)" in said
    assert "none was lost" in said
