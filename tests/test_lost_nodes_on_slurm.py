"""Nodes of a real Slurm that die while a launcher runs jobs on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from helpers import wait_until
from mpi import with_mpi
from slurm_cluster import Cluster
from test_ensemble_on_slurm import hosts_of_attempt
from test_mpi_on_slurm import FLAVOURS, Site, use

#: Says where it is, and goes on until it is allowed to end.
WAITS = """
hostname > host.new; mv host.new "host.$BALSAM_ATTEMPT"
until [ -e "$(dirname "$BALSAM_DB_PATH")/go" ]; do sleep 0.2; done
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """One of this test's own: nodes that die do not come back."""
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running(nodes=3) as found:
        yield found


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    cluster.use(monkeypatch)
    for name, value in {"IDLE_TTL_S": "0.5", "KILL_GRACE_S": "1", "USER_KILL_GRACE_S": "0.5", "HEARTBEAT_S": "1"}.items():
        monkeypatch.setenv(f"BALSAM_{name}", value)
    monkeypatch.setenv("PATH", with_mpi(dict(os.environ))["PATH"])
    found = Site(cluster, tmp_path)
    yield found
    found.bench.close()


@FLAVOURS
def test_that_a_launcher_over_many_nodes_goes_on_without_those_that_die(
    site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    use(flavour, monkeypatch)
    site.bench.shell("waits", WAITS)
    jobs = site.bench.add([{"name": f"j{n}", "application": "waits", "node_packing_count": 4} for n in range(9)])
    launch = site.launch(3, "serial")
    wait_until(lambda: len(hosts_of_attempt(site, jobs, 1)) == 9, 60)
    on = hosts_of_attempt(site, jobs, 1)
    left = set(on.values())
    for victim in sorted(left - {on[jobs[0]]}):  # not the head
        left.remove(victim)
        before = {job: attempts(site, job) for job in jobs}
        site.slurm.kill_node(victim)
        wait_for_restarts(site, before, left)
    Path(site.bench.directory).with_name("go").touch()
    ended = site.ended(launch, 120)
    said = Path(ended["log"]).read_text(errors="replace")
    assert site.bench.states() == {"JOB_FINISHED": 9}, said
    assert ended["state"] == "finished", said


def attempts(site: Site, job: int) -> dict[int, str]:
    """On which host each attempt of a job began."""
    return {int(path.suffix[1:]): path.read_text().strip() for path in site.bench.path(job).glob("host.[0-9]*")}


def wait_for_restarts(site: Site, before: dict[int, dict[int, str]], left: set[str]) -> None:
    """Until as many jobs run again as there are places, all of them on nodes that are left."""

    def running() -> list[str]:
        rows = [site.bench.job(job) for job in before]
        known = [attempts(site, row["id"]).get(row["attempt"], "") for row in rows if row["state"] == "RUNNING"]
        return [host for host in known if host in left]

    def restarted() -> bool:
        return any(attempts(site, job).keys() - known.keys() for job, known in before.items())

    try:
        wait_until(lambda: restarted() and len(running()) == min(len(before), 4 * len(left)), 150)
    except AssertionError:
        raise AssertionError("".join(path.read_text() for path in Path(site.bench.directory, "log").iterdir())) from None
