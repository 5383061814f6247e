"""What each node of a batch job is taken to have."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import LaunchError
from balsam_lite.core.settings import Settings
from balsam_lite.launcher import main, resources
from balsam_lite.launcher.exec import hardware
from balsam_lite.launcher.exec.invocation import NO_MPI
from balsam_lite.launcher.multinode import messages, rank
from balsam_lite.launcher.placement import Node
from balsam_lite.launcher.resources import LauncherOptions, Resources
from balsam_lite.schedulers.environ import Allocation, NodeGpus, allocation, ask_gpus

BATCH = Allocation("SlurmScheduler", "7", 3, ("n1", "n2", "n3"), cpus_per_node=4)
FENCED = "ConstrainDevices        = yes\n"
MPI = Settings(MPI_RUN_TEMPLATE="mpiexec -n {{ ranks }}")


@pytest.mark.parametrize(
    ("this_node", "here", "elsewhere"),
    [("", ("GPU-a", "GPU-b"), ("0", "1")), ("n2", ("GPU-a", "GPU-b"), ("0", "1")), ("", ("2", "3"), ("2", "3"))],
)
def test_names_of_this_hosts_gpus_are_not_taken_for_those_of_other_nodes(
    monkeypatch: pytest.MonkeyPatch, this_node: str, here: tuple[str, ...], elsewhere: tuple[str, ...]
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: here)
    batch = BATCH._replace(this_node=this_node)
    found = resources.survey(LauncherOptions("mpi"), MPI, batch, {})
    wanted = {"n1": elsewhere, "n2": elsewhere, "n3": elsewhere, this_node or "n1": here}
    assert {node.name: tuple(node.gpu_load) for node in found.nodes} == wanted


@pytest.mark.parametrize(
    ("there", "nodes", "batch", "dealt"),
    [
        ((), None, None, [("0", "1"), ("2",)]),  # the host is the node
        ((), 2, None, [("0", "1", "2"), ("3", "4", "5")]),
        ((), None, Allocation("LocalScheduler", "7", 2), [("0", "1", "2"), ("3", "4", "5")]),
        (("4", "5"), None, None, [("4",), ("5",)]),
        (("4", "5"), 2, None, [("4",), ("5",)]),
        (("4", "5", "6", "7"), 1, None, [("4", "5", "6")]),
    ],
)
def test_shares_of_a_host_have_together_no_more_gpus_than_it_is_said_to_have_or_has(
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[str, ...],
    nodes: int | None,
    batch: Allocation | None,
    dealt: list[tuple[str, ...]],
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: there)
    monkeypatch.setattr(hardware, "cpu_numbers", lambda: (0, 1))
    found = resources.survey(LauncherOptions(nodes=nodes), Settings(GPUS_PER_NODE=3), batch, {})
    assert [tuple(node.gpu_load) for node in found.nodes] == dealt


@pytest.mark.parametrize("of_batch", [None, 0, 2])
def test_a_node_that_finds_no_gpu_is_dealt_none_of_those_that_others_have(of_batch: int | None) -> None:
    nodes = [Node(4, ("GPU-a",), name) for name in BATCH.node_names]
    found = Resources(nodes, BATCH._replace(gpus_per_node=of_batch), None, "", NO_MPI)
    hellos = {
        number: messages.Hello(messages.VERSION, f"n{number + 1}", 4, gpus) for number, gpus in enumerate([("GPU-a",), ()])
    }
    made = rank._nodes(found, hellos, Settings(), LauncherOptions())
    assert [tuple(node.gpu_load) for node in made[:2]] == [("GPU-a",), ()]
    assert [node.is_closed for node in made] == [False, False, True]


@pytest.mark.parametrize(
    ("shown", "settings", "of_batch", "dealt"),
    [
        ((("0", "1", "2"), ("0",)), Settings(), None, [("0", "1", "2"), ("0",)]),
        ((("0", "1", "2"), ("0",)), Settings(GPUS_PER_NODE=2), None, [("0", "1"), ("0",)]),
        (((), ()), Settings(GPUS_PER_NODE=2), None, [("0", "1"), ("0", "1")]),  # no node can tell: the user is believed
        (((), ()), Settings(), 1, [("0",), ("0",)]),
        ((("0",), ("0",)), Settings(GPUS_PER_NODE=0), 1, [(), ()]),
    ],
)
def test_what_a_node_does_not_have_is_not_dealt_out_there(
    shown: tuple[tuple[str, ...], ...], settings: Settings, of_batch: int | None, dealt: list[tuple[str, ...]]
) -> None:
    batch = BATCH._replace(num_nodes=2, node_names=("n1", "n2"), gpus_per_node=of_batch)
    found = Resources([Node(4, ("0", "1", "2", "3"), name) for name in batch.node_names], batch, None, "", NO_MPI)
    hellos = {number: messages.Hello(messages.VERSION, f"n{number + 1}", 4, gpus) for number, gpus in enumerate(shown)}
    made = rank._nodes(found, hellos, settings, LauncherOptions())
    assert [tuple(node.gpu_load) for node in made] == dealt


#: As Slurm 22.05.8 prints it, for `sbatch --nodes=2 --gpus=4` on nodes that others use too.
SCONTROL = """\
   JOB_GRES=gpu:4
     Nodes=n1 CPU_IDs=0 Mem=0 GRES=gpu:3(IDX:0-2)
     Nodes=n2 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:{})
"""


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], dict[str, str]]:
    """Make an scontrol that prints these texts of a job and of the configuration; return the environment that finds it."""

    def write(job: str, config: str) -> dict[str, str]:
        (tmp_path / "job").write_text(job)
        (tmp_path / "config").write_text(config)
        program = tmp_path / "scontrol"
        program.write_text(
            f'#!/bin/sh\n[ "$*" = "--details show job 7" ] && exec cat {tmp_path}/job\nexec cat {tmp_path}/config\n'
        )
        program.chmod(0o755)
        return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return write


@pytest.mark.parametrize(
    ("index", "config", "second"),
    [("0", "", "0"), ("2", "TaskPlugin = task/none\n", "2"), ("2", "ConstrainDevices = no\n", "2"), ("2", FENCED, "0")],
)
def test_slurm_is_asked_which_gpus_each_node_has(
    scontrol: Callable[[str, str], dict[str, str]], index: str, config: str, second: str
) -> None:
    batch = BATCH._replace(num_nodes=2, node_names=("n1", "n2"), this_node="n1")
    known = ask_gpus(batch, environ=scontrol(SCONTROL.format(index), config))
    assert known == NodeGpus({"n1": ("0", "1", "2"), "n2": (second,)}, config == FENCED)
    assert known.step_gpus(["n1", "n2"]) == ("gres", "gpu:1" if config == FENCED else "none")
    found = resources.survey(LauncherOptions("mpi", gpus_per_node=2), MPI, batch._replace(node_gpus=known), {})
    assert [tuple(node.gpu_load) for node in found.nodes] == [("0", "1"), (second,)]
    if config == FENCED:
        hellos = {number: messages.Hello(messages.VERSION, name, 4, ("0",)) for number, name in enumerate(batch.node_names)}
        made = rank._nodes(found, hellos, Settings(), LauncherOptions())
        assert [tuple(node.gpu_load) for node in made] == [("0",), ("0",)], "each rank's step was given one"


@pytest.mark.parametrize(
    "text", ["", "slurm_load_jobs error: Invalid job id specified", "Nodes=n1 GRES=", SCONTROL.format("x")[:60]]
)
def test_a_scheduler_that_does_not_tell_changes_nothing(scontrol: Callable[[str, str], dict[str, str]], text: str) -> None:
    assert ask_gpus(BATCH, environ=scontrol(text, "")) is None
    assert ask_gpus(BATCH._replace(scheduler="PBSScheduler"), environ=scontrol(SCONTROL, "")) is None
    assert ask_gpus(BATCH, environ={"PATH": "/nowhere"}) is None


def test_nodes_of_a_batch_job_have_their_own_cpus() -> None:
    environ = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_CPUS_PER_NODE": "4,8,2", "SLURMD_NODENAME": "n1"}
    batch = allocation(environ)
    assert batch is not None
    found = resources.survey(LauncherOptions("mpi", limit_nodes=2, offset_nodes=1), MPI, batch, {})
    assert [(node.name, node.cpus) for node in found.nodes] == [("n2", 8), ("n3", 2)]
    found = resources.survey(LauncherOptions("mpi"), MPI._replace(CPUS_PER_NODE=3), batch, {})
    assert [node.cpus for node in found.nodes] == [3, 3, 3]
    other = allocation({**environ, "SLURM_JOB_CPUS_PER_NODE": "4(x2),8(x2)"})  # of more nodes than there are
    assert other is not None
    assert (other.node_cpus, other.cpus_per_node) == ((), 4)


# --- ranks ------------------------------------------------------------------------------------------------------------

SLURM_2 = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.mark.parametrize(
    "variables", [{"SLURM_PROCID": "1"}, {"PMI_RANK": "1", "PMI_SIZE": "2"}, {"PMI_RANK": "0", "PMI_SIZE": "2"}]
)
def test_one_of_several_launchers_is_refused_unless_it_divides_its_own_host(variables: dict[str, str]) -> None:
    with pytest.raises(LaunchError, match=r"This is rank [01].*would use all nodes") as caught:
        resources.where_am_i(LauncherOptions(), Settings(), variables)
    assert "without srun or mpiexec" in caught.value.hint
    assert resources.where_am_i(LauncherOptions(nodes=2), Settings(), variables) is None


@pytest.mark.parametrize(
    "variables", [{"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, {"PMI_RANK": "0", "PMI_SIZE": "1"}, {}]
)
def test_a_launcher_that_may_be_alone_runs(variables: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    assert resources.where_am_i(LauncherOptions(), Settings(), variables) is None
    assert ("rank 0 of 2" in caplog.text) == ("SLURM_PROCID" in variables)


def test_a_launcher_whose_end_nobody_tells_has_the_time_that_its_launch_asked_for() -> None:
    clock = SystemClock()
    found = main._with_end(BATCH, {"wall_minutes": 30}, clock)
    assert found is not None
    assert found.ends_us is not None
    assert 29 * 60 < (found.ends_us - clock.now_us()) / 1e6 <= 30 * 60
    told = BATCH._replace(ends_us=5)
    assert main._with_end(told, {"wall_minutes": 30}, clock) == told
    assert main._with_end(BATCH, None, clock) == BATCH
    assert main._with_end(None, None, clock) is None
