"""The Slurm of the tests is one: nodes that are apart, several clusters at once, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import slurm_cluster
from helpers import wait_until

SCRIPT = slurm_cluster.__file__


def processes(folder: Path) -> list[str]:
    """The processes that have that directory on their command line or in their environment; zombies have neither."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (place / "cmdline").read_bytes() + (place / "environ").read_bytes():
                found.append(f"{place.name}: {(place / 'cmdline').read_bytes()!r}")
        except OSError:
            pass
    return [line for line in found if not line.startswith(f"{os.getpid()}:")]


@pytest.fixture(autouse=True)
def _can_run(slurm):
    """Skips where there is no Slurm."""


def test_each_node_has_its_own_name_and_process_ids(slurm):
    done = slurm.run(["srun", "--nodes=4", "sh", "-c", "echo $(hostname) $(readlink /proc/self/ns/pid /proc/self/ns/mnt)"])
    lines = [line.split() for line in done.stdout.splitlines()]
    assert sorted(name for name, *_ in lines) == ["node1", "node2", "node3", "node4"]
    assert len({word for _, *spaces in lines for word in spaces}) == 8
    assert slurm.run(["hostname"], node="node2").stdout == "node2\n"


def test_two_clusters_run_beside_one_another_and_leave_nothing(slurm):
    with slurm_cluster.running(nodes=2) as other:
        assert other.environ["SLURM_CONF"] != slurm.environ["SLURM_CONF"]
        other.sbatch("--output=/dev/null", "--wrap=sleep 100")
        wait_until(lambda: other.job("1")["JobState"] == "RUNNING")
        assert "sleep" not in slurm.run(["squeue", "--noheader", "--format=%o"]).stdout
        assert processes(other.directory)
    assert processes(other.directory) == []
    assert not other.directory.exists()


def test_a_cluster_ends_with_whoever_started_it_however_that_one_ends(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {os.path.dirname(SCRIPT)!r})\nimport slurm_cluster, pathlib, time\n"
        f"with slurm_cluster.running(pathlib.Path({str(tmp_path / 'c')!r}), nodes=2) as cluster:\n"
        "    cluster.sbatch('--output=/dev/null', '--wrap=sleep 100')\n"
        "    print('up', flush=True)\n    time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"up\n"
        assert processes(tmp_path / "c")
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not processes(tmp_path / "c"))


def test_a_node_that_lost_its_power_is_down_and_the_others_go_on(tmp_path):
    with slurm_cluster.running(nodes=2) as cluster:
        job = cluster.sbatch("--nodelist=node2", "--no-requeue", "--output=/dev/null", "--wrap=sleep 100")
        wait_until(lambda: cluster.job(job)["JobState"] == "RUNNING")
        cluster.kill_node("node2")
        cluster.run(["scontrol", "update", "nodename=node2", "state=down", "reason=power"])
        wait_until(lambda: cluster.job(job)["JobState"] == "NODE_FAIL")
        assert cluster.run(["srun", "--nodelist=node1", "hostname"]).stdout == "node1\n"


def test_a_nodes_own_mount_is_seen_there_only(tmp_path):
    back, front = tmp_path / "back", tmp_path / "front"
    back.mkdir()
    front.mkdir()
    (back / "file").write_text("x")
    command = f"bindfs --enable-lock-forwarding --multithreaded {back} {front}"
    with slurm_cluster.running(nodes=2, node_command=command) as cluster:
        assert cluster.run(["ls", str(front)], node="node1").stdout == "file\n"
        assert list(front.iterdir()) == []
        types = cluster.run(["srun", "--nodes=2", "stat", "--file-system", "--format=%T\n", str(front)]).stdout.split()
        assert types == ["fuseblk", "fuseblk"]


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="node1 ended with code 3"):
        with slurm_cluster.running(tmp_path / "c", nodes=1, node_command="exit 3"):
            pass
    assert processes(tmp_path / "c") == []


def test_a_cluster_can_be_started_and_stopped_by_hand(tmp_path):
    folder = tmp_path / "c"
    started = subprocess.run([sys.executable, SCRIPT, "start", str(folder), "--nodes=1"], capture_output=True, text=True)
    assert started.stdout == f"export SLURM_CONF={folder}/etc/slurm.conf\n", started.stderr
    again = subprocess.run([sys.executable, SCRIPT, "start", str(folder)], capture_output=True, text=True)
    assert (again.returncode, "there is a cluster" in again.stderr) == (1, True)
    hosts = subprocess.run(["bash", "-c", f"{started.stdout} srun hostname"], capture_output=True, text=True, timeout=60)
    assert hosts.stdout == "node1\n"
    subprocess.run([sys.executable, SCRIPT, "stop", str(folder)], check=True)
    assert processes(folder) == []


def test_pbs_commands_submit_to_it_and_its_jobs_have_pbs_variables(tmp_path):
    reason = slurm_cluster.why_not(pbs=True)
    if reason:
        pytest.skip(reason)
    (tmp_path / "job.sh").write_text("#!/bin/sh\n#PBS -l nodes=2:ppn=2,walltime=0:05:00\nenv\n")
    with slurm_cluster.running(nodes=2, pbs=True) as cluster:
        number = cluster.run(["sh", "-c", f"cd {tmp_path}; exec qsub -N red job.sh"]).stdout.strip()
        assert number == "1"
        wait_until(lambda: cluster.job(number)["JobState"] == "COMPLETED")
        columns = cluster.run(["qstat", number]).stdout.splitlines()[-1].split()
        assert columns[:3] + columns[4:] == [number, "red", "root", "C", "debug"]
    variables = next(tmp_path.glob("*.o1")).read_text().splitlines()
    assert {"PBS_JOBID=1", "PBS_JOBNAME=red", f"PBS_O_WORKDIR={tmp_path}"} <= set(variables)
