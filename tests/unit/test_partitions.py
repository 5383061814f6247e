"""Parts of a batch job's nodes: their text, and the launchers that run on them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launching import Bench

from balsam_lite.core.errors import InvalidSpec
from balsam_lite.db.store import leases
from balsam_lite.launcher.multinode.supervisor import part_words
from balsam_lite.launcher.resources import LauncherOptions
from balsam_lite.schedulers.base import Partition, check_sum

TAGS = st.dictionaries(st.text(min_size=1).filter(lambda key: "=" not in key), st.text(), max_size=3)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mode=st.sampled_from(["serial", "mpi", "mixed"]), nodes=st.integers(1, 10**7), tags=TAGS)
def test_a_part_is_read_as_it_was_written_whatever_is_in_its_tags(mode: str, nodes: int, tags: dict[str, str]) -> None:
    part = Partition(mode, nodes, tags)
    assert Partition.parse(part.as_text()) == part
    assert Partition.from_fields(part.as_fields()) == part


@pytest.mark.parametrize("text", ["", "mpi", "mpi:", "mpi:x", "mpi:-1", "mpi:1:k", "mpi:1:=v", "mpi:1:", "mpi:²"])
def test_a_part_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"needs to be in format MODE:NUM_NODES\[:KEY=VALUE\]"):
        Partition.parse(text)


@pytest.mark.parametrize("text", ["parallel:1", "mpi:0"])
def test_a_part_that_makes_no_sense_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(InvalidSpec, match=r"'parallel'|not 0"):
        Partition.parse(text)


def test_parts_must_be_all_of_the_nodes() -> None:
    check_sum([], 5)
    check_sum([Partition("mpi", 2), Partition("serial", 3)], 5)
    with pytest.raises(InvalidSpec, match="Sum of partition sizes must equal batchjob num_nodes"):
        check_sum([Partition("mpi", 2)], 3)


def test_the_launcher_of_a_part_has_its_nodes_and_the_tags_of_both() -> None:
    options = LauncherOptions("serial", "w", 10, 4, gpus_per_node=2, persistent=True, tags=(("a", "1"), ("b", "2")))
    assert part_words(options, Partition("mpi", 3, {"b": "3"}), 1) == [
        "launcher", "--wf-filter=w", "--nodes=4", "--gpus-per-node=2", "--time-limit-minutes=10", "--limit-nodes=3",
        "--offset-nodes=1", "--job-mode=mpi", "--persistent", "--tag=a=1", "--tag=b=3",
    ]  # fmt: skip
    assert "--consume-all" in part_words(LauncherOptions(), Partition("mpi", 1), 0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def test_each_part_runs_its_jobs_on_its_own_nodes_cpus_and_gpus(bench: Bench) -> None:
    bench.shell("show", "echo $BALSAM_LAUNCHER_NODES $CUDA_VISIBLE_DEVICES; sleep 0.5")
    small = bench.add([{"application": "show", "tags": {"kind": "small"}, "gpus_per_rank": 1}])
    large = bench.add([{"application": "show", "tags": {"kind": "large"}, "gpus_per_rank": 1}] * 2)
    parts = ("--part", "serial:1:kind=small", "--part", "serial:2:kind=large")
    assert bench.run(*parts, "--gpus-per-node", "1") == 0
    shown = [(bench.path(job) / f"{bench.job(job)['name'] or 'job'}.out") for job in (*small, *large)]
    assert [path.read_text().split() for path in shown[:1]] == [["1", "0"]]
    assert sorted(path.read_text().split() for path in shown[1:]) == [["2", "1"], ["2", "2"]]


def test_a_signal_reaches_all_parts_and_the_worst_exit_code_is_told(bench: Bench) -> None:
    bench.shell("long", "sleep 60")
    jobs = bench.add([{"application": "long", "tags": {"n": str(n)}} for n in range(2)])
    process = bench.launch("--part", "serial:1:n=0", "--part", "serial:1:n=1", "--persistent")
    for job in jobs:
        bench.wait_for(job, "RUNNING")
    process.send_signal(signal.SIGTERM)  # to it alone
    assert process.wait(20) == 0
    assert [bench.job(job)["state"] for job in jobs] == ["RESTART_READY"] * 2

    more = bench.add([{"application": "long", "tags": {"n": str(n)}} for n in (3, 4)])
    process = bench.launch("--part", "serial:1:n=3", "--part", "serial:1:n=4", "--persistent")
    for job in more:
        bench.wait_for(job, "RUNNING")  # from then on both launchers know what to do at a signal

    def holders() -> list[int]:
        with bench.db.read() as cx:
            return [lease.holder.pid for lease in leases.open_leases(cx)]

    killed = wait_until(lambda: len(holders()) == 2 and holders())[0]
    os.kill(killed, signal.SIGKILL)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGKILL


def test_parts_that_are_not_all_nodes_are_refused_before_anything_starts(bench: Bench) -> None:
    assert bench.run("--part", "serial:1", "--nodes", "2") == 2
    assert "Sum of partition sizes" in Path(bench.directory, "log/stderr").read_text()
    assert not list(Path(bench.directory, "log").glob("launcher_*"))
