"""GPUs of a real Slurm's nodes: asked for in total, and in different numbers on each node."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from mpi import with_mpi
from slurm_cluster import Cluster
from test_mpi_on_slurm import FLAVOURS, Site, use

#: So that the jobs of one launch run side by side, on all GPUs that it has.
SHOWS_ITS_GPUS = 'echo "on $(hostname) gpus <$CUDA_VISIBLE_DEVICES>"; sleep 2'


@pytest.fixture(scope="module")
def uneven() -> Iterator[Cluster]:
    """Start a Slurm whose first nodes have four, two and no GPUs."""
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running(nodes=3, gpus=(4, 2, 0), cpus=(4, 8, 4)) as cluster:
        yield cluster


@pytest.fixture
def site(uneven: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    uneven.use(monkeypatch)
    for name, value in (("IDLE_TTL_S", "0.5"), ("KILL_GRACE_S", "1"), ("USER_KILL_GRACE_S", "0.5")):
        monkeypatch.setenv(f"BALSAM_{name}", value)
    monkeypatch.setenv("PATH", with_mpi(dict(os.environ))["PATH"])
    found = Site(uneven, tmp_path)
    yield found
    uneven.cancel_all()
    found.bench.close()


def shown(site: Site, jobs: list[int]) -> list[tuple[str, str]]:
    """Return where each job ran and which GPUs it saw there."""
    return sorted(found for job in jobs for found in re.findall(r"on (\S+) gpus <(.*)>", site.output(job)))


@FLAVOURS
@pytest.mark.parametrize("job_mode", ["serial", "mpi", "mixed"])
def test_each_node_is_dealt_its_own_gpus_and_no_others(
    site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str, job_mode: str
) -> None:
    use(flavour, monkeypatch)
    site.bench.shell("shows", SHOWS_ITS_GPUS)
    jobs = site.bench.add(
        [{"name": f"j{n}", "application": "shows", "gpus_per_rank": 1, "node_packing_count": 4} for n in range(12)]
    )
    said = site.run(3, job_mode)
    assert site.bench.states() == {"JOB_FINISHED": 12}, said + "".join(site.output(job) for job in jobs)
    assert set(shown(site, jobs)) == {*(("node1", str(gpu)) for gpu in range(4)), ("node2", "0"), ("node2", "1")}


@FLAVOURS
@pytest.mark.parametrize("job_mode", ["serial", "mpi"])
def test_jobs_start_where_the_batch_job_asked_for_gpus_in_total(
    site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str, job_mode: str
) -> None:
    use(flavour, monkeypatch)
    site.template("--gpus=4", "--partition=shared", "--nodelist=node[1-2]")  # three on one node, one on the other
    site.bench.shell("shows", SHOWS_ITS_GPUS)
    with_gpu = site.bench.add(
        [{"name": f"g{n}", "application": "shows", "gpus_per_rank": 1, "node_packing_count": 4} for n in range(4)]
    )
    without = site.bench.add([{"name": f"c{n}", "application": "shows", "node_packing_count": 4} for n in range(2)])
    wide = site.bench.add([{"name": "wide", "application": "shows", "num_nodes": 2, "gpus_per_rank": 1}] * (job_mode == "mpi"))
    said = site.run(2, job_mode)
    assert site.bench.states() == {"JOB_FINISHED": 6 + len(wide)}, said + "".join(site.output(job) for job in with_gpu)
    of_nodes = {"node1": 0, "node2": 0}
    for host, gpus in shown(site, with_gpu):
        assert re.fullmatch("[0-2]", gpus)
        of_nodes[host] += 1
    assert sorted(of_nodes.values()) == [1, 3]
    assert len(set(shown(site, with_gpu))) == 4, "no two at one time had one GPU"
    assert len(shown(site, without)) == 2
    assert shown(site, wide) == [("node1", "0"), ("node2", "0")][: 2 * len(wide)]
