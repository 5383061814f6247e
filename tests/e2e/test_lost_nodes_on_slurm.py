"""Nodes of a real Slurm that die while a launcher runs jobs on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from helpers import wait_until
from launching import Bench
from mpi import with_mpi
from slurm_cluster import Cluster
from test_ensemble_on_slurm import hosts_of_attempt
from test_mpi_on_slurm import FLAVOURS, Site, use

from balsam_lite.db.query.runs import runs_of
from balsam_lite.db.store import runs

#: Says where it is, and goes on until it is allowed to end.
WAITS = """
hostname > host.new; mv host.new "host.$BALSAM_ATTEMPT"
until [ -e "$(dirname "$BALSAM_DB_PATH")/go" ]; do sleep 0.2; done
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Start a separate cluster for each test: nodes that die do not come back."""
    reason = slurm_cluster.why_not()
    if reason:
        pytest.skip(reason)
    with slurm_cluster.running(nodes=3, slurmd_timeout_s=15) as found:
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
def test_a_launcher_over_many_nodes_goes_on_without_those_that_die(
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
    """Return on which host each attempt of a job began."""
    return {int(path.suffix[1:]): path.read_text().strip() for path in site.bench.path(job).glob("host.[0-9]*")}


def wait_for_restarts(site: Site, before: dict[int, dict[int, str]], left: set[str]) -> None:
    """Wait until as many jobs run again as there are places, all of them on the nodes that are left."""

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


@FLAVOURS
@pytest.mark.parametrize("is_told", [True, False], ids=["slurm is told", "slurm has to notice"])
def test_mpi_jobs_of_a_node_that_dies_run_on_the_others_uncounted(
    site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str, is_told: bool
) -> None:
    use(flavour, monkeypatch)
    site.bench.shell("waits", WAITS)
    jobs = site.bench.add([{"name": f"j{n}", "application": "waits", "node_packing_count": 2} for n in range(4)])
    launch = site.launch(3, "mpi")
    wait_until(lambda: len(hosts_of_attempt(site, jobs, 1)) == 4, 60)
    lost = [job for job, host in hosts_of_attempt(site, jobs, 1).items() if host == "node2"]
    assert len(lost) == 2
    site.slurm.kill_node("node2")
    if is_told:
        site.slurm.run(["scontrol", "update", "nodename=node2", "state=down", "reason=dead"])
    try:
        wait_until(lambda: all(set(attempts(site, job).values()) & {"node1", "node3"} for job in lost), 180)
    except AssertionError:
        raise AssertionError("".join(path.read_text() for path in Path(site.bench.directory, "log").iterdir())) from None
    Path(site.bench.directory).with_name("go").touch()
    ended = site.ended(launch, 120)
    said = Path(ended["log"]).read_text(errors="replace")
    assert site.bench.states() == {"JOB_FINISHED": 4}, said
    assert ended["state"] == "finished", said
    assert "lost node(s): node2" in ended["reason"]
    for job in jobs:
        assert site.bench.job(job)["restarts"] == 0, site.bench.history(job)
        assert site.bench.job(job)["attempt"] == 1 or job in lost
    if flavour == "srun":
        assert "Node node2 is not used any more. Lost its node: srun: error: Node failure on node2" in said


def test_a_job_whose_own_words_are_refused_fails_with_the_reason_and_others_run(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("srun", monkeypatch)
    site.bench.shell("true", "true")
    job, with_variable, good = site.bench.add(
        [
            {"name": "flags", "application": "true", "mpi_flags": "--gres=gpu:99"},
            {
                "name": "variable",
                "application": "true",
                "environ_vars": {"SLURM_GRES": "gpu:99"},
                "mpi_flags": "--gpus-per-node=9",
            },
            {"name": "good", "application": "true"},
        ]
    )
    said = site.run(2, "mpi")
    assert site.bench.states() == {"JOB_FINISHED": 1, "FAILED": 2}, said
    for number in (job, with_variable):
        told = [message for state, message in site.bench.history(number) if state == "RUN_ERROR"]
        assert len(told) == 1
        assert "Invalid generic resource" in told[0] or "gres_per_node" in told[0]
    assert site.bench.job(good)["state"] == "JOB_FINISHED"


@FLAVOURS
def test_a_job_which_the_mpi_command_does_not_start_goes_back_and_fails_after_a_while(
    site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    use(flavour, monkeypatch)
    site.bench.shell("true", "true")
    site.template()
    (job,) = site.bench.add([{"name": "j", "application": "true"}])
    template = Path(site.bench.directory, "job-templates", "slurm.tmpl")
    shim = Path(site.bench.directory).with_name("bin")
    shim.mkdir()
    # As Slurm refuses what the launcher itself asks for, and Hydra's mpiexec waits for ever then.
    words = "srun: error: Unable to create step for job 1: Invalid generic resource (gres) specification"
    (shim / "srun").write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    (shim / "srun").chmod(0o755)
    template.write_text(template.read_text().replace("exec balsam", f"export PATH={shim}:$PATH\nexec balsam"))
    said = site.run(2, "mpi")
    assert site.bench.states() == {"FAILED": 1}, said
    history = site.bench.history(job)
    assert [state for state, _ in history].count("RUNNING") == 4
    assert "The MPI command did not run it 4 times: srun: error: Unable to create step" in history[-2][1]
    assert site.bench.job(job)["restarts"] == 0


#: An srun whose step on node2 does not end when that node dies; only the first one of these is told of it.
HALF_TOLD_SRUN = r"""#!/bin/bash
for word; do case "$word" in --nodelist=*) node="${word#*=}" ;; esac; done
until [ "$1" = sh ]; do shift; done
if [ "$node" != node2 ]; then exec "$@"; fi
touch "started.$BALSAM_ATTEMPT"
if mkdir "$BALSAM_DB_PATH/told" 2> /dev/null; then
    until [ -e "$BALSAM_DB_PATH/dead" ]; do sleep 0.05; done
    echo "srun: error: Node failure on node2" >&2
    exit 1
fi
exec sleep 600
"""


def test_all_runs_on_a_lost_node_go_back_when_one_mpi_command_tells_of_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path, IDLE_TTL_S="0.5", KILL_GRACE_S="1")
    srun, nodes = tmp_path / "srun", tmp_path / "nodes"
    srun.write_text(HALF_TOLD_SRUN)
    srun.chmod(0o755)
    nodes.write_text("node1\nnode2\n")
    bench.app("sh", "sh -c")
    jobs = bench.add([{"name": f"j{n}", "application": "sh", "args": "true", "node_packing_count": 2} for n in range(4)])
    process = bench.launch(
        "--job-mode", "mpi", PBS_JOBID="1.s", PBS_NODEFILE=str(nodes), BALSAM_MPI_FLAVOUR="srun", BALSAM_MPI_RUN_EXE=str(srun)
    )
    wait_until(lambda: len([job for job in jobs if bench.path(job, "started.1").exists()]) == 2, 60)
    on_node2 = [job for job in jobs if bench.path(job, "started.1").exists()]
    Path(bench.directory, "dead").touch()
    assert process.wait(60) == 0
    assert bench.states() == {"JOB_FINISHED": 4}
    for job in jobs:
        row = bench.job(job)
        assert (row["attempt"], row["restarts"]) == (2 if job in on_node2 else 1, 0), bench.history(job)
    with bench.db.read() as cx:
        assert [runs_of(cx, job)[0].cause for job in on_node2] == [runs.NODE_LOST] * 2
    bench.close()
