"""Jobs that are pinned to CPUs, and the variables that tell jobs their GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import wait_until
from hypothesis import given
from hypothesis import strategies as st
from launching import Bench

from balsam_lite.cli.main import main
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import SettingsError, SpawnFailed
from balsam_lite.db.query import reasons
from balsam_lite.db.store.claims import Claim, Shape
from balsam_lite.launcher.exec import hardware, invocation, program
from balsam_lite.launcher.exec.program import Request
from balsam_lite.launcher.placement import Placement, divide_host

CPUS = st.sets(st.integers(0, 200), min_size=1, max_size=12).map(sorted)


def claim(**values: object) -> Claim:
    fields: dict[str, object] = dict.fromkeys(Claim._fields[: Claim._fields.index("mpi_flags")], "")
    fields.update(job=1, attempt=1, shape=Shape(1, 1, 1, 1), threads_per_rank=1, threads_per_core=1)
    return Claim(**{**fields, "environ_vars": "{}", "parents": "[]", **values})  # type: ignore[arg-type]


# --- which CPUs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ranks", "threads", "per_core", "affinity", "number"),
    [(1, 1, 1, "depth", 1), (2, 3, 1, "depth", 6), (1, 4, 2, "depth", 2), (1, 1, 4, "depth", 1), (2, 3, 1, "none", 0)],
)
def test_a_job_with_affinity_gets_a_cpu_for_each_core_its_threads_need(
    ranks: int, threads: int, per_core: int, affinity: str, number: int
) -> None:
    shape = Shape(1, ranks, 1, 0)
    job = claim(shape=shape, threads_per_rank=threads, threads_per_core=per_core, cpu_affinity=affinity)
    assert hardware.cpus_wanted(job) == number


@given(cpus=CPUS, steps=st.lists(st.tuples(st.booleans(), st.integers(1, 14)), max_size=40))
def test_jobs_share_a_cpu_only_when_there_are_too_few_and_then_evenly(cpus: list[int], steps: list[tuple[bool, int]]) -> None:
    free = hardware.CpuSet(cpus)
    held: list[tuple[int, ...]] = []
    for is_end, number in steps:
        if is_end and held:
            free.release(held.pop(number % len(held)))
            continue
        before = {cpu: sum(cpu in one for one in held) for cpu in cpus}
        taken = free.take(number)
        assert len(set(taken)) == len(taken) == min(number, len(cpus))
        # No job took a CPU while one with fewer jobs was left.
        assert max(before[cpu] for cpu in taken) <= min((before[cpu] for cpu in cpus if cpu not in taken), default=99)
        held.append(taken)
    for one in held:
        free.release(one)
    assert free.take(len(cpus)) == tuple(cpus)


@given(cpus=CPUS, nodes=st.integers(1, 15))
def test_shares_of_a_host_have_cpus_of_their_own_as_many_as_they_are_counted_to_have(cpus: list[int], nodes: int) -> None:
    shares = hardware.deal_cpus(cpus, nodes)
    assert [len(share) for share in shares] == [node.cpus for node in divide_host(nodes, len(cpus), [])]
    assert set().union(*shares) == set(cpus) or nodes < len(cpus)
    if nodes <= len(cpus):
        assert sorted(cpu for share in shares for cpu in share) == cpus


def test_where_nothing_can_be_pinned_nothing_is() -> None:
    assert hardware.CpuSet([]).take(3) == ()
    assert hardware.deal_cpus([], 2) == [(), ()]


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def output(bench: Bench, job: int) -> str:
    return next(bench.path(job).glob("*.out")).read_text()


@pytest.mark.skipif(len(hardware.cpu_numbers()) < 2, reason="one CPU only")
def test_jobs_with_affinity_run_on_cpus_of_their_own_and_others_on_all(bench: Bench) -> None:
    bench.script("where", "import os, time; print(*sorted(os.sched_getaffinity(0))); time.sleep(1)")
    pinned = {"application": "where", "cpu_affinity": "depth", "node_packing_count": 4}
    jobs = bench.add([pinned, pinned, {"application": "where", "node_packing_count": 4}])
    assert bench.run("--nodes", "1") == 0
    first, second, free = (set(map(int, output(bench, job).split())) for job in jobs)
    assert len(first) == len(second) == 1
    assert first != second
    assert free == set(hardware.cpu_numbers())


def test_the_helper_that_starts_a_pinned_program_keeps_its_own_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a helper goes to the directory of each program
    last = max(hardware.cpu_numbers())
    show = [b"sh", b"-c", b"grep Cpus_allowed_list /proc/self/status"]
    request = Request(1, "/bin/sh", show, {b"PATH": b"/bin:/usr/bin"}, str(tmp_path), "out", cpus=(last,))
    os.waitpid(program.spawn(request, {}), 0)
    assert (tmp_path / "out").read_text().split() == ["Cpus_allowed_list:", str(last)]
    assert tuple(sorted(os.sched_getaffinity(0))) == hardware.cpu_numbers()
    with pytest.raises(SpawnFailed) as caught:
        program.spawn(request._replace(cpus=(1000,)), {})
    assert caught.value.message == "it cannot be pinned to CPU 1000: Invalid argument"
    assert os.sched_getaffinity(0) == set(hardware.cpu_numbers())


@pytest.mark.parametrize("mode", ["serial", "mpi"])
def test_eight_jobs_on_a_node_with_eight_gpus_get_one_each_and_a_ninth_waits(bench: Bench, mode: str) -> None:
    bench.shell("hello", f"echo gpu $CUDA_VISIBLE_DEVICES; while [ ! -e {bench.directory}/go ]; do sleep 0.05; done")
    jobs = bench.add([{"application": "hello", "node_packing_count": 9, "gpus_per_rank": 1}] * 9)
    process = bench.launch("--nodes", "1", "--gpus-per-node", "8", "--job-mode", mode)
    wait_until(lambda: bench.states().get("RUNNING") == 8)
    assert bench.job(jobs[8])["state"] == "CREATED"
    Path(bench.directory, "go").touch()
    assert process.wait(30) == 0
    seen = [output(bench, job).split()[-1] for job in jobs]
    assert sorted(seen[:8]) == list("01234567")
    assert seen[8] in seen[:8]


# --- which variables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("CUDA_VISIBLE_DEVICES", {"CUDA_VISIBLE_DEVICES": "2,5", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}),
        ("ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES", {"ROCR_VISIBLE_DEVICES": "2,5", "HIP_VISIBLE_DEVICES": "2,5"}),
        ("ZE_AFFINITY_MASK", {"ZE_AFFINITY_MASK": "2,5", "ZE_ENABLE_PCI_ID_DEVICE_ORDER": "1"}),
        ("", {}),
    ],
)
def test_the_setting_says_which_variables_tell_a_job_its_gpus(setting: str, wanted: dict[str, str]) -> None:
    context = invocation.make_context("/db", b"id:1:", 1, "serial", {}, gpu_variables=hardware.gpu_variables(setting))
    own = invocation.environment(claim(), Placement((0,), (("2", "5"),), Shape(1, 1, 1, 2)), context)
    assert {name.decode(): value.decode() for name, value in own.items() if not name.startswith(b"BALSAM")} == wanted


def test_a_word_that_is_no_variable_is_refused() -> None:
    with pytest.raises(SettingsError, match="GPU_VARIABLES: '1GPU'"):
        hardware.gpu_variables("CUDA_VISIBLE_DEVICES, 1GPU")


def test_nodes_that_call_their_gpus_otherwise_have_no_variable_in_common() -> None:
    """Not that of the launcher's own node, either."""
    environ = {b"CUDA_VISIBLE_DEVICES": b"GPU-1", b"A": b"1"}
    context = invocation.make_context("/db", b"id:1:", 2, "mpi", environ, shares_host=False)
    place = Placement((0, 1), (("GPU-1",), ("0",)), Shape(2, 1, 1, 1))
    assert context.environ[b"A"] == b"1"
    assert invocation.environment(claim(shape=place.shape), place, context)[b"CUDA_VISIBLE_DEVICES"] == program.UNSET
    same = place._replace(gpus=(("0", "1"), ("0", "1")))
    assert invocation.environment(claim(shape=place.shape), same, context)[b"CUDA_VISIBLE_DEVICES"] == b"0,1"
    shares = context._replace(shares_host=True)
    assert invocation.environment(claim(shape=place.shape), place, shares)[b"CUDA_VISIBLE_DEVICES"] == b"GPU-1,0"


# --- nodes without GPUs -----------------------------------------------------------------------------------------------


def test_a_job_for_a_gpu_that_is_not_there_says_why_it_waits(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.app("true", "true")
    waiting, *_ = bench.add([{"application": "true", "gpus_per_rank": 1}, {"application": "true"}])

    def shown() -> list[str]:
        assert main(["--db", bench.directory, "job", "ls", "-v", "--id", str(waiting)]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("waits_for:")]

    assert shown() == ["waits_for: no launcher is alive for this DB"]
    assert bench.run("--gpus-per-node", "0") == 0
    with bench.db.read() as cx:
        said = reasons.explain_job(cx, waiting, reasons.surroundings(cx, SystemClock.now_us(), 120.0))
    assert [reason.code for reason in said] == ["no-launcher", "too-many-gpus"]
    assert said[1].text == "needs 1 GPUs per node, the nodes of this launcher have 0"
    assert re.match("launcher 1 on .*, the last one, which ended ", said[1].who)
    assert bench.run("--gpus-per-node", "1") == 0
    assert bench.job(waiting)["state"] == "JOB_FINISHED"
    assert shown() == []


def test_a_launcher_says_what_jobs_wait_for_while_it_runs(bench: Bench) -> None:
    bench.app("true", "true")
    (job,) = bench.add([{"application": "true", "gpus_per_rank": 1}])
    bench.launch("--gpus-per-node", "0", "--persistent")

    def reason() -> str:
        with bench.db.read() as cx:
            around = reasons.surroundings(cx, SystemClock.now_us(), 120.0)
            return reasons.first_reasons(cx, [bench.job(job)], around)[job]

    wait_until(lambda: reason().startswith("needs 1 GPUs per node"))
