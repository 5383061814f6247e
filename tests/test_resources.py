"""What each node of a batch job is taken to have."""

from __future__ import annotations

import pytest

from balsam_lite.launcher import machine, rank, resources
from balsam_lite.launcher.commands import NO_MPI
from balsam_lite.launcher.ensemble import words
from balsam_lite.launcher.nodes import Node
from balsam_lite.launcher.resources import LauncherOptions, Resources
from balsam_lite.schedulers.environ import Allocation
from balsam_lite.settings import Settings

BATCH = Allocation("SlurmScheduler", "7", 3, ("n1", "n2", "n3"), cpus_per_node=4)
MPI = Settings(MPI_RUN_TEMPLATE="mpiexec -n {{ ranks }}")


@pytest.mark.parametrize(
    ("this_node", "here", "elsewhere"),
    [("", ("GPU-a", "GPU-b"), ("0", "1")), ("n2", ("GPU-a", "GPU-b"), ("0", "1")), ("", ("2", "3"), ("2", "3"))],
)
def test_that_names_of_this_hosts_gpus_are_not_taken_for_those_of_other_nodes(
    monkeypatch: pytest.MonkeyPatch, this_node: str, here: tuple[str, ...], elsewhere: tuple[str, ...]
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: here)
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
def test_that_shares_of_a_host_have_together_no_more_gpus_than_it_is_said_to_have_or_has(
    monkeypatch: pytest.MonkeyPatch,
    there: tuple[str, ...],
    nodes: int | None,
    batch: Allocation | None,
    dealt: list[tuple[str, ...]],
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: there)
    monkeypatch.setattr(machine, "cpu_numbers", lambda: (0, 1))
    found = resources.survey(LauncherOptions(nodes=nodes), Settings(GPUS_PER_NODE=3), batch, {})
    assert [tuple(node.gpu_load) for node in found.nodes] == dealt


@pytest.mark.parametrize(("of_batch", "elsewhere"), [(None, ()), (0, ()), (2, ("0", "1"))])
def test_that_a_node_that_finds_no_gpu_has_what_the_batch_job_says_and_not_those_of_rank_0(
    of_batch: int | None, elsewhere: tuple[str, ...]
) -> None:
    nodes = [Node(4, ("GPU-a",), name) for name in BATCH.node_names]
    found = Resources(nodes, BATCH._replace(gpus_per_node=of_batch), None, "", NO_MPI)
    hellos = {number: words.Hello(words.VERSION, f"n{number + 1}", 4, gpus) for number, gpus in enumerate([("GPU-a",), ()])}
    made = rank._nodes(found, hellos, Settings(), LauncherOptions())
    assert [tuple(node.gpu_load) for node in made[:2]] == [("GPU-a",), elsewhere]
    assert [node.is_closed for node in made] == [False, False, True]
