"""Serial jobs over the nodes of a real Slurm, which have their own host names and process ids; ranks that die there."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from mpi import with_mpi
from slurm_cluster import Cluster
from test_mpi_on_slurm import WHO, Site

from balsam_lite.db.query.runs import Run, runs_of
from balsam_lite.db.store import user_actions
from balsam_lite.schedulers import base, hostlist, submission
from balsam_lite.schedulers.base import Partition

#: Says where it is, as soon as it is there, and goes on for ever.
LOOPS = 'hostname > "host.new"; mv host.new "host.$BALSAM_ATTEMPT"; exec sleep 600'


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    slurm.use(monkeypatch)
    for name, value in with_mpi({}).items():
        monkeypatch.setenv(name, value + ":/usr/local/bin:/usr/bin:/bin")
    for name, value in {"IDLE_TTL_S": "0.5", "KILL_GRACE_S": "1", "HEARTBEAT_S": "1"}.items():
        monkeypatch.setenv(f"BALSAM_{name}", value)
    site = Site(slurm, tmp_path)
    yield site
    site.bench.close()


def hosts_of_attempt(site: Site, jobs: list[int], attempt: int) -> dict[int, str]:
    """Return the hosts on which they have started until now."""
    files = {job: site.bench.path(job, f"host.{attempt}") for job in jobs}
    return {job: file.read_text().strip() for job, file in files.items() if file.exists()}


def attempts_of(site: Site, job: int) -> list[Run]:
    with site.bench.db.read() as cx:
        return runs_of(cx, job)


def sleepers(site: Site, node: str) -> int:
    return int(site.slurm.run(["pgrep", "-xc", "sleep"], node=node).stdout or 0)


@pytest.mark.parametrize("flavour", ["mpich", "srun"])
def test_jobs_run_on_all_nodes_of_the_batch_job(site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    monkeypatch.setenv("BALSAM_MPI_FLAVOUR", flavour)
    monkeypatch.setenv("SLURM_MPI_TYPE", "pmi2")
    site.bench.shell("where", "hostname; sleep 0.2")
    jobs = site.bench.add([{"name": f"j{n}", "application": "where", "node_packing_count": 4} for n in range(40)])
    said = site.run(4, "serial")
    assert site.bench.states() == {"JOB_FINISHED": 40}, said
    assert len(Counter(site.output(job) for job in jobs)) == 4
    for job in jobs:
        (run,) = attempts_of(site, job)
        assert run.nodes == site.output(job).strip()
        assert run.user_us is not None and run.cause == "", "each rank reports what its programs used"


def test_serial_and_mpi_jobs_share_the_nodes_in_mixed_mode(site: Site) -> None:
    site.bench.shell("where", "hostname")
    site.bench.script("who", WHO)
    serial = site.bench.add([{"name": f"j{n}", "application": "where", "node_packing_count": 2} for n in range(12)])
    (wide,) = site.bench.add([{"name": "wide", "application": "who", "num_nodes": 2, "ranks_per_node": 2}])
    said = site.run(4, "mixed")
    assert site.bench.states() == {"JOB_FINISHED": 13}, said
    assert len(site.hosts(wide)) == 4
    assert len(set(site.hosts(wide).values())) == 2
    assert len({site.output(job) for job in serial}) > 1
    (run,) = attempts_of(site, wide)
    assert set(hostlist.expand(run.nodes)) == set(site.hosts(wide).values())
    assert (run.user_us, run.max_memory) == (None, None), "its ranks are no children of the launcher's"


def test_a_rank_killed_on_its_node_takes_its_jobs_along_and_they_run_elsewhere(site: Site) -> None:
    site.bench.shell("loops", LOOPS)
    jobs = site.bench.add([{"name": f"j{n}", "application": "loops", "node_packing_count": 4} for n in range(8)])
    launch = site.launch(3, "serial")
    wait_until(lambda: len(hosts_of_attempt(site, jobs, 1)) == 8, 60)
    first = hosts_of_attempt(site, jobs, 1)
    head = first[jobs[0]]  # the first jobs are on the first node
    victim = next(host for host in first.values() if host != head)
    lost = [job for job, host in first.items() if host == victim]
    killed = time.monotonic()
    site.slurm.run(["pkill", "-9", "-f", "balsam_lite.launcher.multinode.rank"], node=victim)
    wait_until(lambda: not sleepers(site, victim), 5)
    assert time.monotonic() - killed < 3  # and rank 0 gives them to others only then
    wait_until(lambda: len(hosts_of_attempt(site, lost, 2)) == len(lost), 30)
    assert victim not in hosts_of_attempt(site, lost, 2).values()
    assert all(site.bench.job(job)["attempt"] == 1 for job in jobs if job not in lost)
    assert {(run.nodes, run.cause) for job in lost for run in attempts_of(site, job)[:1]} == {(victim, "node lost")}
    user_actions.kill(site.bench.db, jobs)
    assert site.ended(launch)["state"] in ("finished", "failed")
    assert site.bench.states() == {"USER_KILLED": 8}


def test_a_cancelled_launch_gives_everything_back_and_the_next_one_finishes(site: Site) -> None:
    site.bench.shell("slow", 'hostname > host.new; mv host.new "host.$BALSAM_ATTEMPT"; [ $BALSAM_ATTEMPT = 2 ] || sleep 600')
    jobs = site.bench.add([{"name": f"j{n}", "application": "slow", "node_packing_count": 4} for n in range(12)])
    launch = site.launch(3, "serial")
    wait_until(lambda: len(hosts_of_attempt(site, jobs, 1)) == 12, 60)
    submission.cancel(site.bench.db, base.select(site.bench.settings()), launch["id"])
    site.ended(launch)
    assert site.bench.states() == {"RESTART_READY": 12}
    assert all("RUN_TIMEOUT" in dict(site.bench.history(job)) for job in jobs)
    wait_until(lambda: not any(sleepers(site, node) for node in site.slurm.node_names), 5)
    said = site.run(2, "serial")
    assert site.bench.states() == {"JOB_FINISHED": 12}, said


def test_the_parts_of_a_batch_job_run_their_jobs_on_their_own_nodes(site: Site) -> None:
    site.bench.shell("where", "hostname; sleep 0.5")
    site.bench.script("who", WHO)
    small = {"application": "where", "node_packing_count": 4, "tags": {"kind": "small"}}
    serial = site.bench.add([{"name": f"j{n}", **small} for n in range(12)])
    (wide,) = site.bench.add([{"name": "wide", "application": "who", "num_nodes": 2, "tags": {"kind": "wide"}}])
    parts = [Partition("mpi", 2, {"kind": "wide"}), Partition("serial", 2, {"kind": "small"})]
    said = site.run(4, "mixed", partitions=parts)
    assert site.bench.states() == {"JOB_FINISHED": 13}, said
    of_serial = {site.output(job).strip() for job in serial}
    assert len(of_serial) == len(set(site.hosts(wide).values())) == 2
    assert of_serial.isdisjoint(site.hosts(wide).values())
