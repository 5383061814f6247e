"""MPI jobs on several nodes of a real Slurm: where ranks run, side by side, killed, out of time; and mixed with serial ones."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from launching import Bench
from mpi import CAREFUL, with_mpi
from slurm_cluster import Cluster

import balsam_lite
from balsam_lite.db.query import queries
from balsam_lite.db.store import user_actions
from balsam_lite.schedulers import base, submission
from balsam_lite.schedulers.base import LaunchRequest

WHO = """
import socket
from mpi4py import MPI
world = MPI.COMM_WORLD
lines = world.gather(f"rank {world.rank} of {world.size} on {socket.gethostname()}")
if world.rank == 0:
    print("\\n".join(lines))
"""
#: Says on which host it is and goes on for ever, whatever it is asked; a file for each rank.
STUBBORN = """
import os, signal, socket, time
from mpi4py import MPI
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
open(f"rank{MPI.COMM_WORLD.rank}", "w").write(socket.gethostname())
time.sleep(600)
"""


#: Slurm 22.05 cuts a request of PMI-1 after 1024 bytes; what MPICH 5.0.2 sends with an address is sometimes longer, as it packs
#: memory that it has not initialised. Then MPI_Init fails in all ranks, before any job has started.
CUT_REQUEST = "mpi/pmi2: value not properly terminated in client request"


class Site:
    """A DB on a machine with Slurm, and launches there."""

    def __init__(self, slurm: Cluster, directory: Path) -> None:
        self.slurm, self.bench = slurm, Bench(directory)

    def launch(self, nodes: int, job_mode: str, **fields: Any) -> dict[str, Any]:
        request = LaunchRequest(nodes, 5, job_mode=job_mode, **fields)
        return submission.submit_launch(self.bench.db, self.bench.settings(), request)

    def template(self, *directives: str, **variables: str) -> None:
        """Give launches these #SBATCH lines, and set this process's variables again, whatever those do to them."""
        folder = Path(self.bench.directory, "job-templates")
        folder.mkdir(exist_ok=True)
        text = (Path(balsam_lite.__file__).parent / "templates" / "slurm.tmpl").read_text()
        own = {name: os.environ[name] for name in os.environ if name.startswith(("BALSAM_", "SLURM_")) or name == "PATH"}
        exports = [f"export {name}={shlex.quote(value)}\n" for name, value in {**own, **variables}.items()]
        options = [f"#SBATCH {directive}\n" for directive in directives]
        for before, lines in (("#SBATCH --nodes", options), ("exec balsam", exports)):
            text = text.replace(before, f"{''.join(lines)}{before}", 1)
        (folder / "slurm.tmpl").write_text(text)

    def ended(self, row: dict[str, Any], timeout: float = 90) -> dict[str, Any]:
        """The launch, as soon as it has ended."""

        def look() -> dict[str, Any] | None:
            submission.refresh(self.bench.db, base.select(self.bench.settings()))
            with self.bench.db.read() as cx:
                now = queries.batch_job(cx, row["id"])
            return now if now and now["ended"] is not None else None

        found = wait_until(look, timeout, 0.1)
        assert found is not None
        return found

    def run(self, nodes: int, job_mode: str, **fields: Any) -> str:
        """A launch from start to end; what it said."""
        for _ in range(3):
            row = self.launch(nodes, job_mode, **fields)
            try:
                row = self.ended(row)
            except AssertionError as exc:
                with self.bench.db.read() as cx:
                    row = queries.batch_job(cx, row["id"]) or row
                said = self.log_of(row)
                if CUT_REQUEST not in said:
                    raise AssertionError(f"{exc}\n{said}\n{self.slurm.run(['squeue', '--long']).stdout}") from None
                self.slurm.run(["scancel", row["scheduler_id"]])
            said = self.log_of(row)
            if CUT_REQUEST not in said:
                break
        assert row["state"] == "finished", said
        return said

    def log_of(self, row: dict[str, Any]) -> str:
        """Return the output of a launch up to now."""
        path = Path(row["log"])
        return path.read_text(errors="replace") if row["log"] and path.exists() else "It has no log."

    def output(self, job: int) -> str:
        return self.bench.path(job, f"{self.bench.job(job)['name']}.out").read_text()

    def hosts(self, job: int) -> dict[int, str]:
        """Where its ranks were, by rank."""
        return {int(rank): host for rank, host in re.findall(r"rank (\d+) of \d+ on (\S+)", self.output(job))}

    def processes(self, job: int) -> int:
        """How many processes of that job live on the nodes."""
        lines = [
            self.slurm.run(["pgrep", "-fc", f"{self.bench.directory}.*/stubborn.py|stubborn.py"], node=node).stdout
            for node in self.slurm.node_names
        ]
        return sum(int(line or 0) for line in lines)


@pytest.fixture
def site(slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    slurm.use(monkeypatch)
    for name, value in (("IDLE_TTL_S", "0.5"), ("KILL_GRACE_S", "1"), ("USER_KILL_GRACE_S", "0.5")):
        monkeypatch.setenv(f"BALSAM_{name}", value)  # sbatch hands the environment over
    monkeypatch.setenv("PATH", with_mpi(dict(os.environ))["PATH"])
    found = Site(slurm, tmp_path)
    yield found
    slurm.cancel_all()
    found.bench.close()


FLAVOURS = pytest.mark.parametrize("flavour", ["", "srun"], ids=["mpiexec", "srun"])


def use(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start MPI programs by Hydra's mpiexec, which is what is found, or by srun with the PMI that MPICH speaks."""
    monkeypatch.setenv("BALSAM_MPI_FLAVOUR", flavour)
    if flavour == "srun":
        monkeypatch.setenv("SLURM_MPI_TYPE", "pmi2")


@FLAVOURS
def test_a_job_of_two_nodes_and_four_ranks_each_is_one_program_on_both(
    site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    use(flavour, monkeypatch)
    site.bench.script("who", WHO)
    (job,) = site.bench.add([{"name": "j", "application": "who", "num_nodes": 2, "ranks_per_node": 4}])
    said = site.run(2, "mpi")
    assert site.bench.job(job)["state"] == "JOB_FINISHED", said + site.output(job)
    hosts = site.hosts(job)
    assert sorted(hosts) == list(range(8))
    assert sorted(Counter(hosts.values()).values()) == [4, 4]


#: What a program is given by its job, its application and its launch.
TELLS_ITS_ENVIRONMENT = 'echo "own $OWN job $BALSAM_JOB_ID attempt $BALSAM_ATTEMPT of $FROM_LAUNCH path $PATH"'
#: Options of a batch job that srun inside it would take for its own.
OPTIONS = ("--export=NONE", "--mem-per-cpu=10", "--hint=nomultithread", "--threads-per-core=1", "--ntasks-per-node=1")


def environment_told(site: Site, job: int) -> re.Match[str] | None:
    return re.search(r"own (\S*) job (\S*) attempt (\d*) of (\S*) path (\S+)", site.output(job))


@FLAVOURS
@pytest.mark.parametrize("job_mode", ["mpi", "serial"])
def test_options_of_the_batch_job_take_nothing_from_the_programs(
    site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str, job_mode: str
) -> None:
    use(flavour, monkeypatch)
    site.template(*OPTIONS, FROM_LAUNCH="yes", SRUN_CPUS_PER_TASK="2")
    site.bench.shell("tells", TELLS_ITS_ENVIRONMENT)
    nodes = 2 if job_mode == "mpi" else 1
    jobs = site.bench.add(
        [{"name": f"j{n}", "application": "tells", "environ_vars": {"OWN": "x"}, "num_nodes": nodes} for n in range(2)]
    )
    said = site.run(2, job_mode)
    assert site.bench.states() == {"JOB_FINISHED": 2}, said
    for job in jobs:
        told = environment_told(site, job)
        assert told, site.output(job) + said
        assert told.groups()[:4] == ("x", site.bench.job(job)["job_id"], "1", "yes")
        assert os.path.dirname(with_mpi({})["PATH"].split(":")[0]) in told[5]
        assert site.output(job).count("own x") == nodes


@FLAVOURS
def test_jobs_of_one_node_run_side_by_side_on_their_own(site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    use(flavour, monkeypatch)
    site.bench.script("who", WHO + "import time; time.sleep(3)\n")
    common = {"application": "who", "ranks_per_node": 2, "node_packing_count": 2}
    jobs = site.bench.add([{**common, "name": f"j{number}"} for number in range(4)])
    said = site.run(2, "mpi")
    assert site.bench.states() == {"JOB_FINISHED": 4}, said
    hosts = [set(site.hosts(job).values()) for job in jobs]
    assert all(len(of_job) == 1 for of_job in hosts)
    assert sorted(Counter(host for of_job in hosts for host in of_job).values()) == [2, 2]
    with site.bench.db.read() as cx:
        last_start = cx.execute("SELECT max(time) FROM event WHERE to_state = 'RUNNING'").fetchone()
        first_end = cx.execute("SELECT min(time) FROM event WHERE to_state = 'RUN_DONE'").fetchone()
    assert last_start < first_end, "all four ran at one time"


@FLAVOURS
def test_a_kill_ends_stubborn_ranks_on_all_nodes(site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    use(flavour, monkeypatch)
    site.bench.script("stubborn", STUBBORN)
    (job,) = site.bench.add([{"name": "j", "application": "stubborn", "num_nodes": 2, "ranks_per_node": 2}])
    row = site.launch(2, "mpi")
    wait_until(lambda: all(site.bench.path(job, f"rank{rank}").exists() for rank in range(4)), 60)
    assert site.processes(job) > 0
    user_actions.kill(site.bench.db, [job])
    wait_until(lambda: site.processes(job) == 0, 20, 0.2)
    assert site.ended(row)["state"] == "finished"
    assert site.bench.job(job)["state"] == "USER_KILLED"


@FLAVOURS
def test_ranks_on_all_nodes_get_the_grace_to_save_their_work(site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    use(flavour, monkeypatch)
    monkeypatch.setenv("BALSAM_USER_KILL_GRACE_S", "15")
    site.bench.script("careful", CAREFUL)
    (job,) = site.bench.add([{"name": "j", "application": "careful", "num_nodes": 2, "ranks_per_node": 2}])
    row = site.launch(2, "mpi")
    wait_until(lambda: all(site.bench.path(job, f"pid{rank}").exists() for rank in range(4)), 60)
    user_actions.kill(site.bench.db, [job])
    assert site.ended(row)["state"] == "finished"
    saved = [site.bench.path(job, f"saved{rank}").read_text() for rank in range(4)]
    assert saved == ["1"] * 4, "each was asked once"


@FLAVOURS
def test_scancel_ends_all_ranks_and_the_next_launch_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    use(flavour, monkeypatch)
    site.bench.script("stubborn", f"import os\nif os.environ['BALSAM_ATTEMPT'] == '1':\n    exec({STUBBORN!r})\n")
    (job,) = site.bench.add([{"name": "j", "application": "stubborn", "num_nodes": 2, "ranks_per_node": 2}])
    row = site.launch(2, "mpi")
    wait_until(lambda: all(site.bench.path(job, f"rank{rank}").exists() for rank in range(4)), 60)
    submission.cancel(site.bench.db, base.select(site.bench.settings()), row["id"])
    assert site.ended(row)["state"] == "cancelled"
    assert [state for state, _ in site.bench.history(job)][-2:] == ["RUN_TIMEOUT", "RESTART_READY"]
    wait_until(lambda: site.processes(job) == 0, 20, 0.2)
    site.run(2, "mpi")
    assert site.bench.job(job)["state"] == "JOB_FINISHED"


@FLAVOURS
def test_mixed_mode_packs_serial_jobs_beside_mpi_jobs(site: Site, monkeypatch: pytest.MonkeyPatch, flavour: str) -> None:
    use(flavour, monkeypatch)
    site.bench.script("who", WHO)
    site.bench.shell("where", "hostname; sleep 1")
    (large,) = site.bench.add([{"name": "large", "application": "who", "num_nodes": 2, "ranks_per_node": 2}])
    small = site.bench.add([{"name": f"s{n}", "application": "where", "node_packing_count": 4} for n in range(16)])
    packed = site.bench.add(
        [{"name": f"m{n}", "application": "who", "ranks_per_node": 2, "node_packing_count": 4} for n in range(4)]
    )
    said = site.run(2, "mixed")
    assert site.bench.states() == {"JOB_FINISHED": 21}, said
    assert len(set(site.hosts(large).values())) == 2
    assert len({site.output(job) for job in small}) == 2
    assert all(len(site.hosts(job)) == 2 for job in packed)


def test_what_is_too_large_for_the_launch_waits_and_the_reason_is_told(site: Site) -> None:
    site.bench.app("true", "true")
    site.bench.add(
        [
            {"name": "nodes", "application": "true", "num_nodes": 3},
            {"name": "ranks", "application": "true", "ranks_per_node": 5},
            {"name": "gpus", "application": "true", "gpus_per_rank": 5},
        ]
    )
    said = site.run(2, "mpi")
    for words in (
        "needs 3 nodes, this launcher has 2",
        "needs 5 ranks per node, the nodes of this launcher have 4 CPUs",
        "needs 5 GPUs per node, the nodes of this launcher have 4",
    ):
        assert words in said
    assert site.bench.states() == {"CREATED": 3}
