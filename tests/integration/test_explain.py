"""`balsam explain`: each reason of the catalogue, set up in a DB with what a user would have there; groups; the command."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from launching import Bench
from sshd import far_site

from balsam_lite.cli.main import main
from balsam_lite.core import causes, states
from balsam_lite.core.clock import SystemClock
from balsam_lite.core.errors import PollFailed
from balsam_lite.core.process_table import Holder
from balsam_lite.db.engine.schema import LARGE_WRITE_HOLD
from balsam_lite.db.query import queries, reasons
from balsam_lite.db.query.catalogue import CATALOGUE
from balsam_lite.db.query.demand import Scope
from balsam_lite.db.query.takers import MpiRules, NodeKind, Taker
from balsam_lite.db.store import batch_jobs, claims, graph, insert, large_writes, leases, remote_parents, user_actions
from balsam_lite.db.store.claims import Filter
from balsam_lite.db.store.transitions import Transition, apply
from balsam_lite.schedulers import base, submission
from balsam_lite.schedulers.base import BatchStatus

MINUTE_US = 60_000_000
POLICY = """[debug]
submit-jobs = {on}
max-queued = 1
policy = [{{"min-nodes": 1, "max-nodes": 2, "min-time": 0, "max-time": 1}}]
"""

Explain = Callable[..., "list[dict[str, Any]]"]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    made.app("true", "true")
    made.app("long", "sleep 600")
    yield made
    made.close()


@pytest.fixture
def balsam(bench: Bench, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main(["--db", bench.directory, "explain", *words])
        except SystemExit as ended:
            code = int(ended.code or 0)
        return (code, *capsys.readouterr())

    return call


@pytest.fixture
def explain(balsam: Callable[..., tuple[int, str, str]]) -> Explain:
    """Return the objects that the command prints."""

    def call(*words: str) -> list[dict[str, Any]]:
        return list(json.loads(balsam("--json", *words)[1]))

    return call


def job(bench: Bench, **fields: Any) -> int:
    return bench.add([{"name": "one", "application": "true", **fields}])[0]


def now_us() -> int:
    return SystemClock.now_us()


def lease_of(bench: Bench, kind: str = "launcher", note: str = "", holder: Holder | None = None, opened_us: int = 0) -> int:
    """Open a lease of this process, which is alive, or of another holder."""
    with bench.db.write() as cx:
        number = leases.open_lease(cx, kind, holder or Holder.current(), "", opened_us or now_us())
        leases.heartbeat(cx, number, opened_us or now_us(), note)
    return number


def launcher(bench: Bench, ends_us: int | None = None, **fields: Any) -> int:
    """Add a live launcher that takes those jobs."""
    values: dict[str, Any] = {"scope": Scope(), "nodes": (NodeKind(2, 4, 1),), "serial_only": False, "mpi": MpiRules()}
    return lease_of(bench, note=Taker("", **{**values, **fields}).as_note(ends_us))


def service(bench: Bench, policy: str = POLICY.format(on="on"), **note: Any) -> None:
    Path(bench.directory, "policy.ini").write_text(policy)
    Path(bench.directory, "settings.json").write_text('{"QUEUE_POLICY": "policy.ini"}')
    lease_of(bench, "service", json.dumps(note))


def launch(bench: Bench, **given: Any) -> int:
    """Add a batch job that was submitted."""
    with bench.db.write() as cx:
        number = batch_jobs.add(cx, {"scheduler": "x", "nodes": 2, "wall_minutes": 60, "job_mode": "mpi"}, now_us())
        values = {"state": "queued", "scheduler_id": "77", **given}
        columns = ", ".join(f"{name} = ?" for name in values)
        cx.execute(f"UPDATE batch_job SET {columns} WHERE id = {number}", (*values.values(),))
    return number


def holds(bench: Bench, lease: int, *numbers: int, began_us: int = 0) -> None:
    """Let a launcher run those jobs."""

    class Everything:
        preparations = 0
        fits = staticmethod(lambda shape: True)
        count = staticmethod(lambda shape: 100)
        reserve = staticmethod(lambda shape: object())
        describe = staticmethod(lambda place: ("", ""))

    with bench.db.write() as cx:
        kept = f"id NOT IN ({', '.join(map(str, numbers))})"
        cx.execute(f"UPDATE job SET start_after = 1 WHERE {kept}")
        claims.take(cx, lease, Everything(), Filter(serial_only=False), began_us or now_us())
        cx.execute(f"UPDATE job SET start_after = NULL WHERE {kept}")


def failed(bench: Bench, cause: str, message: str = "") -> int:
    number = job(bench)
    with bench.db.write() as cx:
        apply(cx, [Transition(number, (states.CREATED, states.FAILED), 1, (message,), cause=cause)], states.USER)
    return number


# --- the cases --------------------------------------------------------------------------------------------------------

Case = Callable[[Bench, pytest.MonkeyPatch], "tuple[int, str]"]
CASES: dict[str, Case] = {}


def case(code: str) -> Callable[[Case], Case]:
    def register(function: Case) -> Case:
        assert code not in CASES
        CASES[code] = function
        return function

    return register


@case("db-read-only")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr("balsam_lite.service.surroundings.os.access", lambda *_: False)  # root may write everything
    return job(bench), "the DB cannot be written from here: Permission denied"


@case("disk-full")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setattr("balsam_lite.db.engine.filesystem.is_short", lambda directory: directory.endswith("data"))
    return job(bench), "The disk of .*/data is .*, so that nothing can start"


@case("parent-failed")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    parent, child = job(bench, name="root"), job(bench)
    bench.depend(parent, child)
    with bench.db.write() as cx:  # very many children are failed in pieces, after their parent
        apply(cx, [Transition(parent, (states.CREATED, states.FAILED), 1)], states.USER)
        large_writes.defer_children(cx, [child])
    return child, r"its parent root \[\w+\] is FAILED, and it needs that one"


@case("waits-for-parents")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    first, second, child, grandchild = (job(bench, name=name) for name in ("first", "second", "child", "grandchild"))
    for edge in ((first, child), (second, child), (child, grandchild)):
        bench.depend(*edge)
    root = r"the first one in turn waits for first \[\w+\] CREATED"
    return grandchild, rf"waits for 1 of its 1 parent\(s\): child \[\w+\] AWAITING_PARENTS; {root}"


@case("large-write")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET start_after = ?", (LARGE_WRITE_HOLD + 1,))
    return number, "waits for the end of a change of very many jobs"


@case("held-back")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    (number,) = insert.add_jobs(bench.db, [{"application": "true"}], start_after=4102444800000000).ids
    return number, "is held back until 01-01-2100 00:00:00.000000, as dependencies may follow"


@case("held-by-trouble")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    holds(bench, launcher(bench), number)
    with bench.db.write() as cx:
        facts = claims.facts_of(cx, "job.id = ?", (number,))
        run = claims.RunResult(number, 1, "RESTART_READY", None, "Not started: /x: Stale file handle", None, now_us())
        claims.requeue_lost(cx, [(facts[0], run._replace(start_after=4102444800000000))], now_us())
    return number, "is held back until 01-01-2100 00:00:00.000000: Not started: /x: Stale file handle"


@case("runs-apart")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET launcher_deaths = 2")
    return number, "its launcher died 2 times while it ran; it will be run apart from other jobs"


@case("no-application")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    with bench.db.write() as cx:
        cx.execute("DELETE FROM app WHERE name = 'true'")
    return number, "its application 'true' is not registered, so that it would fail"


@case("no-program")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    bench.shell("script", "true")
    number = job(bench, application="script")
    os.unlink(Path(bench.directory).parent / "script.sh")
    return number, "the program of its application 'script' is not on this host: .*script.sh"


@case("no-stage-in")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return job(bench, stage_in_url="/nowhere/in.dat"), "there is nothing to stage in: there is no /nowhere/in.dat"


@case("holder-silent")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    holds(bench, lease_of(bench, holder=Holder("far", "1", 7, "1"), opened_us=now_us() - 10 * MINUTE_US), number)
    return number, r"launcher 1 \(pid 7 on far\) holds it: no sign of life for 10 min by the clock of far"


@case("clock-ahead")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    holds(bench, lease_of(bench, holder=Holder("far", "1", 7, "1"), opened_us=now_us() + 10 * MINUTE_US), number)
    return number, r"launcher 1 .* holds it, and the clock of far is (9|10) min ahead of this host's"


@case("holder-dead")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench, application="long")
    process = bench.launch("--nodes", "1")
    bench.wait_for(number, "RUNNING")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return number, r"launcher 1 \(pid \d+ on .*\), which held it, is dead"


@case("no-holder")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    holds(bench, launcher(bench), number)
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET lease = NULL")
    return number, "is RUNNING, and no launcher holds it"


@case("launcher-starting")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    lease_of(bench)
    return job(bench), "the launcher is getting ready"


@case("other-workflow")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench, scope=Scope("a*"))
    return job(bench, workflow="b"), "it takes only jobs of workflow a*, and this is one of b".replace("*", r"\*")


@case("other-tags")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench, scope=Scope(tags=(("kind", "large"), ("x", "1"))))
    return job(bench, tags={"kind": "small", "x": "1"}), "it takes only jobs with kind=large$"


@case("planned-only")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench, scope=Scope(launch=4), launch=4)
    return job(bench), "it takes only jobs that are planned for qlaunch4"


@case("job-mode")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench, serial_only=True)
    return job(bench, ranks_per_node=2), "needs --job-mode=mpi or mixed"


@case("too-many-nodes")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench)
    return job(bench, num_nodes=3), "needs 3 nodes, this launcher has 2"


@case("too-many-gpus")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench)
    return job(bench, gpus_per_rank=2), "needs 2 GPUs per node, the nodes of this launcher have 1"


@case("too-many-ranks")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench)
    return job(bench, ranks_per_node=5), "needs 5 ranks per node, the nodes of this launcher have 4 CPUs"


@case("time-is-up")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench, ends_us=now_us() - MINUTE_US)
    return job(bench), "the launcher's time is up"


@case("time-left")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench, ends_us=now_us() + 10 * MINUTE_US + MINUTE_US // 2)
    return job(bench, wall_time_minutes=30), "wall_time_minutes is 30, 10.[45] minutes are left"


@case("in-trouble")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench, trouble="The disk of /d is full")
    return job(bench), "The disk of /d is full"


@case("apart")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launcher(bench, apart=True)
    return job(bench), "waits until jobs have ended that run apart from others"


@case("nested")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    outer = job(bench, num_nodes=2)
    holds(bench, launcher(bench), outer)
    with bench.db.write() as cx:
        leases.open_wait(cx, Holder.current(), bench.job(outer)["job_id"], now_us(), 120.0)
    return job(bench), r"every job that runs \(1\) waits for other jobs itself, and no place is free for those"


@case("no-place")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    running = [job(bench, num_nodes=2, wall_time_minutes=30)]
    holds(bench, launcher(bench), *running, began_us=now_us() - 10 * MINUTE_US)
    return job(bench), r"waits for a free place: 1 job\(s\) run, the first should end in about (19|20) min"


@case("no-step")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    lease = launcher(bench, steps=2)
    with bench.db.write() as cx:
        claims.hold_for_step(cx, lease, bench.add([{"application": "true", "stage_in_url": "scp:far:x"}] * 2))
    return job(bench, stage_in_url="scp:far:x"), r"waits to be prepared, as 2 other job\(s\) are in their steps"


@case("priority")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    running = job(bench, num_nodes=2)
    holds(bench, launcher(bench), running)
    bench.add([{"application": "true", "priority": 1}] * 3 + [{"application": "true", "num_nodes": 2}])
    return job(bench), r"4 other job\(s\) come first"


@case("launch-queued")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launch(bench, reason="it waits for nodes", expected_start=4102444800000000, polled=now_us() - 5 * MINUTE_US)
    plan = r"it waits for nodes; it should start at 01-01-2100 00:00:00 UTC \(as of 5 min ago\)"
    return job(bench), f"no launcher runs yet, qlaunch1 is queued in the batch queue: {plan}"


@case("launch-starting")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launch(bench, state="running", started=now_us())
    return job(bench), "no launcher runs yet, qlaunch1 is running, but its launcher has not begun"


@case("launch-submitting")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    launch(bench, state="pending-submission", scheduler_id="")
    return job(bench), "no launcher runs yet, qlaunch1 is pending-submission"


@case("policy-broken")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    service(bench, "[debug]\n")
    return job(bench), "the queue policy cannot be used: .*submit-jobs is missing"


@case("policy-off")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    service(bench, POLICY.format(on="off"))
    return job(bench), "no queue of the policy is switched on"


@case("policy-nodes")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    service(bench)
    return job(bench, num_nodes=3), "needs 3 nodes; the policy allows 2 at most"


@case("policy-time")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    service(bench)
    return job(bench, wall_time_minutes=60), r"wall_time_minutes is above 5\d: the policy allows 60 minutes at most for 1 node"


@case("max-queued")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    service(bench)
    launch(bench, queue="debug", wf_filter="other")
    return job(bench), "debug: 1 of 1 launches are queued or running"


@case("queue-paused")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    service(bench, paused={"debug": ["after 2 failure(s), sbatch: error: invalid account", now_us() + MINUTE_US]})
    return job(bench), r"debug: after 2 failure\(s\), sbatch: error: invalid account"


@case("service-waits")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    service(bench)
    return job(bench), "no launcher runs; the service submits one when its policy allows"


@case("service-silent")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    lease_of(bench, "service", holder=Holder("far", "1", 7, "1"), opened_us=now_us() - 10 * MINUTE_US)
    return job(bench), r"service 1 \(pid 7 on far\) submits launchers: no sign of life for 10 min"


@case("launcher-silent")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    lease_of(bench, holder=Holder("far", "1", 7, "1"), opened_us=now_us() - 10 * MINUTE_US)
    return job(bench), r"no launcher is certainly alive; launcher 1 \(pid 7 on far\): no sign of life for 10 min"


@case("no-launcher")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return job(bench), "no launcher is alive for this DB"


@case("unsettled")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    user_actions.set_state(bench.db, [number], "RUN_DONE")
    return number, "has run, and waits for its postprocess script or stage-out"


@case("failed-with-parent")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    bench.shell("bad", "echo sorry; exit 3")
    first, child, grandchild = job(bench, name="first", application="bad"), job(bench), job(bench)
    bench.depend(first, child)
    bench.depend(child, grandchild)
    assert bench.run() == 0
    return grandchild, r"parent failed: first \[\w+\] is FAILED"


@case("failed-exit")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    bench.shell("bad", "echo sorry; exit 3")
    number = job(bench, application="bad")
    assert bench.run() == 0
    return number, r"(?s)its program failed, exit code 3.*nonzero return 3: sorry"


@case("failed-signal")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    bench.shell("bad", "kill -SEGV $$")
    number = job(bench, application="bad")
    assert bench.run() == 0
    return number, r"its program was ended by signal 11 \(SIGSEGV\)"


@case("failed-memory")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = failed(bench, "signal 9 (SIGKILL)", "killed by signal 9 (SIGKILL)")
    with bench.db.write() as cx:
        cx.execute("INSERT INTO run (job, attempt, nodes, cause) VALUES (?, 1, 'n1', 'out of memory')", (number,))
    return number, r"its program ran out of memory, signal 9 \(SIGKILL\) \(on n1\)"


@case("failed-start")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    bench.app("nothing", "/nowhere/program")
    number = job(bench, application="nothing")
    assert bench.run() == 0
    return number, "its program could not start: No such file or directory"


@case("failed-result")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return failed(bench, causes.NO_RESULT), "its program left no result, exit code 0, but no result"


@case("failed-hook")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    bench.shell("hook", "exit 4")
    bench.app("hooked", "true", preprocess=str(Path(bench.directory).parent / "hook.sh"))
    number = job(bench, application="hooked")
    assert bench.run() == 0
    return number, "its script failed, preprocess: exit code 4"


@case("failed-stage")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench, stage_in_url="/nowhere/in.dat")
    assert bench.run() == 0
    return number, r"(?s)its files could not be copied, stage-in failed.*there is no /nowhere/in.dat"


@case("failed-stopped")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench, application="long", auto_timeout_retry=False)
    process = bench.launch()
    bench.wait_for(number, "RUNNING")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    return number, r"it was told to stop \(on .*\) at the end of a launcher and is not started again"


@case("failed-restarts")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench, application="long", restart_limit=0)
    process = bench.launch()
    bench.wait_for(number, "RUNNING")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    return number, "(?s)it reached its restart limit.*its restart_limit is 0"


@case("failed-killer")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return failed(bench, causes.LAUNCHER_DIED), "it kills its launchers: its launcher died while it ran alone"


@case("failed-by-user")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    user_actions.set_state(bench.db, [number], "FAILED")
    return number, r"it is FAILED, set by \w+ on "


@case("failed")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return failed(bench, causes.UNKNOWN, "who knows"), "(?s)it failed, cause unknown.*who knows"


@case("failed-alike")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    numbers = [failed(bench, "exit code 7") for _ in range(5)]
    with bench.db.write() as cx:
        runs = [(number, "node1" if number == numbers[-1] else "node17") for number in numbers[1:]]
        cx.executemany("INSERT INTO run (job, attempt, nodes) VALUES (?, 1, ?)", runs)
    return numbers[0], r"4 other\(s\) failed alike, 3 of them on node17"


@case("killed")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    user_actions.kill(bench.db, [number])
    return number, r"was killed by \w+ on \S+ \(.+\) at \d\d-\d\d-\d{4} "


@case("stale")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    parent, child = job(bench, name="root"), job(bench)
    bench.depend(parent, child)
    assert bench.run() == 0
    user_actions.set_state(bench.db, [parent], "CREATED")
    assert bench.run() == 0
    return child, r"its result is older than that of its parent root \[\w+\], which ran again later"


@case("edited")
def _(bench: Bench, _monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    number = job(bench)
    assert bench.run() == 0
    assert main(["--db", bench.directory, "modify", f"#{number}", "args", "other"]) == 0
    return number, "args changed since attempt 1, and the next one has the new values"


# --- parents at other sites


def at_other_site(bench: Bench, site: str = "", **parent: Any) -> int:
    """Add a job with a parent at the site `far`, of which that is known."""
    child = job(bench, input_files="")
    about = {"db_id": "f" * 32, "name": "far", "host": "", "path": "/nowhere", "balsam": "balsam"}
    with bench.db.write() as cx:
        number = remote_parents.add_site(cx, about)
        row = {"id": 12, "job_id": str(uuid.uuid4()), "name": "there", "state": states.RUNNING}
        (own,) = remote_parents.add_parents(cx, number, [row])
        graph.add_dependency(cx, own, child, SystemClock.now_us())
        if site:
            cx.execute(f"UPDATE remote_site SET {site}")
        values = {"state": states.RUNNING, "pending": None, **parent}
        cx.execute("UPDATE remote_parent SET state = ?, pending = ?", (values["state"], values["pending"]))
    return child


@case("site-parent-failed")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return at_other_site(bench, state=states.USER_KILLED), "its parent far#12 at another site is USER_KILLED"


@case("files-not-copied")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    child = at_other_site(bench, state=states.JOB_FINISHED, pending="rsync: No space left")
    return child, "files of its parent far#12 could not be copied: rsync: No space left"


@case("site-unreachable")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return at_other_site(bench, "error = 'No route to host'"), "far cannot be reached: No route to host; it has not answered"


@case("site-unasked")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return at_other_site(bench), "waits for far#12, and nothing runs here that asks the site far"


@case("site-reports")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    return at_other_site(bench, "path = ''"), "the site far cannot be reached from here and reports it itself"


@case("waits-for-site")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    child = at_other_site(bench, f"answered = {SystemClock.now_us() - 8_000_000}")
    return child, "waits for far#12 at another site, RUNNING as of [89] s ago"


@case("failed-with-site-parent")
def _(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    child = at_other_site(bench, state=states.FAILED)
    with bench.db.write() as cx:
        graph.settle(cx, [child], SystemClock.now_us())
    return child, "its parent far#12 at another site is FAILED"


#: No reason of one job.
OF_SETS = {"unexamined"}


@pytest.mark.parametrize("code", [code for code in CATALOGUE if code not in OF_SETS])
def test_each_reason_of_the_catalogue_is_found(
    code: str, bench: Bench, explain: Explain, monkeypatch: pytest.MonkeyPatch
) -> None:
    number, words = CASES[code](bench, monkeypatch)
    (found,) = explain(f"#{number}")
    texts = {one["code"]: one["reason"] for one in found["reasons"]}
    assert re.search(words, texts[code])
    assert all(one["remedy"] for one in found["reasons"])
    assert "{" not in json.dumps([list(one.values()) for one in found["reasons"]])


def test_there_is_a_case_for_each_reason() -> None:
    assert CASES.keys() | OF_SETS == CATALOGUE.keys()
    assert len(CASES) >= 50


# --- real launchers ---------------------------------------------------------------------------------------------------


def test_a_real_launcher_records_what_it_takes(bench: Bench, explain: Explain) -> None:
    fitting, *others = bench.add([
        {"application": "long", "workflow": "w", "wall_time_minutes": 5},
        {"application": "long", "workflow": "v", "wall_time_minutes": 5},
        {"application": "long", "workflow": "w", "gpus_per_rank": 3},
        {"application": "long", "workflow": "w", "wall_time_minutes": 600},
        {"application": "long", "workflow": "w", "num_nodes": 2},
        {"application": "long", "workflow": "w", "wall_time_minutes": 4},
    ])  # fmt: skip
    bench.launch("--nodes", "1", "--persistent", "--wf-filter", "w", "--gpus-per-node", "2", "--time-limit-minutes", "30")
    bench.wait_for(fitting, "RUNNING")
    codes = {row["id"]: [one["code"] for one in row["reasons"]] for row in explain(*(f"#{n}" for n in (fitting, *others)))}
    assert list(codes.values()) == [[], ["other-workflow"], ["too-many-gpus"], ["time-left"], ["job-mode"], ["no-place"]]


def test_a_short_job_outside_of_a_filter_is_not_told_the_reason_of_a_long_one_inside(bench: Bench, explain: Explain) -> None:
    short = job(bench, workflow="v")
    job(bench, workflow="w", wall_time_minutes=600)
    bench.launch("--nodes", "1", "--persistent", "--wf-filter", "w", "--time-limit-minutes", "3")
    (row,) = wait_until(lambda: [one for one in explain(f"#{short}") if one["reasons"][0]["code"] == "other-workflow"])
    assert [one["code"] for one in row["reasons"]] == ["other-workflow"]


def test_files_are_looked_for_here_only_if_jobs_run_here(bench: Bench, explain: Explain) -> None:
    bench.app("away", "/nowhere/program")
    number = job(bench, application="away", stage_in_url="/nowhere/in.dat")
    assert [one["code"] for one in explain(f"#{number}")[0]["reasons"]][:2] == ["no-program", "no-stage-in"]
    note = Taker("", Scope(), (NodeKind(1, 4, 0),)).as_note(None)
    lease_of(bench, holder=Holder("far", "1", 7, "1"), note=note)
    assert explain(f"#{number}")[0]["reasons"] == []


def test_a_launch_whose_launcher_has_ended_brings_no_other(bench: Bench, explain: Explain) -> None:
    launch(bench, state="running", started=now_us())
    number = job(bench)
    with bench.db.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "77.server", now_us())
        leases.close_lease(cx, lease, now_us(), "test")
    assert [one["code"] for one in explain(f"#{number}")[0]["reasons"]] == ["no-launcher"]


def test_listings_have_the_first_reason_of_each_job(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    lease = launcher(bench, scope=Scope("w"), ends_us=now_us() + 20 * MINUTE_US)
    bench.app("gone", "true")
    held, *_ = bench.add([
        {"application": "true", "workflow": "w", "num_nodes": 2, "priority": 1},
        {"application": "true", "workflow": "w", "wall_time_minutes": 30},
        {"application": "gone", "workflow": "w"},
        {"application": "true", "workflow": "v", "tags": {"a": "b"}},
    ])  # fmt: skip
    with bench.db.write() as cx:
        cx.execute("DELETE FROM app WHERE name = 'gone'")
    holds(bench, lease, held)
    silent = lease_of(bench, holder=Holder("far", "1", 7, "1"), opened_us=now_us() - 10 * MINUTE_US)
    holds(bench, silent, job(bench, workflow="v"))
    for words in (("ls",), ("job", "ls")):
        assert main(["--db", bench.directory, *words, "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert [row["waits_for"].partition(" (")[0] for row in rows] == [
            "",
            "wall_time_minutes is 30 or more, 20.0 minutes are left",
            "its application 'gone' is not registered, so that it would fail",
            "it takes only jobs of workflow w, and this is one of v",
            "launcher 2",
        ]


# --- sets -------------------------------------------------------------------------------------------------------------


def test_jobs_with_one_reason_are_one_group_with_an_example(bench: Bench, explain: Explain) -> None:
    launcher(bench, scope=Scope("w"), ends_us=now_us() + 20 * MINUTE_US)
    bench.add([{"application": "true", "workflow": "v"}] * 5)
    bench.add([{"application": "true", "workflow": "w", "wall_time_minutes": minutes} for minutes in (90, 60, 30)])
    bench.add([{"application": "true", "workflow": "w"}] * 4)  # which it is about to take
    parent = job(bench, workflow="w", num_nodes=7)
    for child in bench.add([{"application": "true", "workflow": "w"}] * 2):
        bench.depend(parent, child)
    failed(bench, "exit code 3")
    groups = {one["code"]: (one["jobs"], one["reason"]) for one in explain()}
    assert groups == {
        "other-workflow": (5, "it takes only jobs of workflow w, and this is one of v"),
        "time-left": (3, "wall_time_minutes is 30 or more, 20.0 minutes are left"),
        "waits-for-parents": (2, "waits for its parents"),
        "too-many-nodes": (1, "needs 7 nodes, this launcher has 2"),
        "failed-exit": (1, "its program failed, exit code 3"),
    }
    assert [one["code"] for one in explain("--wf", "v", "--where", "num_nodes=1")] == ["other-workflow"]


def test_a_group_of_jobs_with_a_failed_parent_names_the_job_to_run_again(bench: Bench, explain: Explain) -> None:
    bench.shell("bad", "exit 3")
    first, *below = job(bench, name="first", application="bad"), job(bench), job(bench)
    for parent, child in zip([first, *below], below):
        bench.depend(parent, child)
    assert bench.run() == 0
    (group,) = [one for one in explain() if one["code"] == "failed-with-parent"]
    assert group["jobs"] == 2 and group["reason"].startswith("parent failed, such as first [")
    with bench.db.read() as cx:
        assert f"balsam rerun --id {queries.job(cx, first)['job_id'][:8]}" in group["remedy"]


def test_groups_agree_with_the_first_reason_of_each_job(bench: Bench) -> None:
    draw = random.Random(3)
    launcher(bench, scope=Scope("w*", (("t", "1"),)), ends_us=now_us() + 20 * MINUTE_US)
    launcher(bench, scope=Scope(launch=3), launch=3, serial_only=True)
    launch(bench, wf_filter="x", nodes=1)
    rows = [
        {
            "application": draw.choice(("true", "long")), "workflow": draw.choice(("w1", "w2", "x", "y")),
            "num_nodes": draw.choice((1, 1, 2, 9)), "wall_time_minutes": draw.choice((1, 10, 60)),
            "tags": draw.choice(({}, {"t": "1"}, {"t": "2"})), "gpus_per_rank": draw.choice((0, 0, 4)),
        }
        for _ in range(300)
    ]  # fmt: skip
    numbers = bench.add(rows)
    for child in numbers[200:]:
        if draw.random() < 0.4:
            bench.depend(draw.choice(numbers[:200]), child)
    with bench.db.write() as cx:
        cx.execute("UPDATE job SET queued_launch_id = 3 WHERE id % 5 = 0")
        cx.execute("UPDATE job SET launcher_deaths = 2 WHERE id % 17 = 0")
    with bench.db.read() as cx:
        around = reasons.surroundings(cx, now_us(), 120.0)
        one_by_one: dict[str, int] = {}
        for number in numbers:
            for reason in reasons.explain_job(cx, number, around)[:1]:
                one_by_one[reason.code] = one_by_one.get(reason.code, 0) + 1
        grouped: dict[str, int] = {}
        for group in reasons.explain_jobs(cx, {}, around):
            grouped[group.reason.code] = grouped.get(group.reason.code, 0) + group.jobs
            assert group.example in numbers
        assert grouped == one_by_one
        assert len(grouped) > 4


def test_what_is_not_read_in_time_is_counted(bench: Bench) -> None:
    bench.add([{"application": "true"}] * 7)
    with bench.db.read() as cx:
        around = reasons.surroundings(cx, now_us(), 120.0)
        (group,) = reasons.explain_jobs(cx, {}, around, budget_s=0.0)
        assert (group.reason.code, group.jobs, group.example) == ("unexamined", 7, None)
        (group,) = reasons.explain_jobs(cx, {"workflow": "nothing"}, around, budget_s=9.0) or [None]
        assert group is None


def test_the_claim_takes_exactly_the_jobs_that_have_no_reason(bench: Bench) -> None:
    """The predicates are those of the claim: what it takes had no reason to wait, and what it leaves has one."""
    from balsam_lite.launcher.placement import Node, NodePool, TickCapacity

    draw = random.Random(5)
    for _ in range(300):
        bench.add([{
            "application": "true", "workflow": draw.choice(("w", "x")), "num_nodes": draw.choice((1, 2, 5)),
            "ranks_per_node": draw.choice((1, 2, 9)), "wall_time_minutes": draw.choice((1, 5, 50)),
            "gpus_per_rank": draw.choice((0, 1, 3)), "node_packing_count": 4, "tags": draw.choice(({}, {"t": "1"})),
        }])  # fmt: skip
    pool = NodePool([Node(4, ("0", "1"), f"n{number}") for number in range(3)], MpiRules())
    scope = Scope("w", (("t", "1"),))
    lease = launcher(bench, scope=scope, nodes=pool.kinds, ends_us=now_us() + 20 * MINUTE_US)
    with bench.db.read() as cx:
        around = reasons.surroundings(cx, now_us(), 120.0)
        free = {n for (n,) in cx.execute("SELECT id FROM job").fetchall() if not reasons.explain_job(cx, n, around)}
    taken: set[int] = set()
    while True:
        with bench.db.write() as cx:
            room = TickCapacity(pool, lambda shape: 0, 0)
            got = claims.take(cx, lease, room, Filter(("w",), False, 19.9, scope.tags), now_us()).to_run
            taken |= {claim.job for claim in got}
            claims.finish(cx, lease, [claims.RunResult(c.job, c.attempt, "RUN_DONE", 0, "", 1, 2) for c in got], now_us())
        for claim in got:
            pool.release(claim.place)
        if not got:
            break
    assert taken == free
    assert 5 < len(taken) < 200


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_exit_code_tells_whether_something_stands_in_the_way(bench: Bench, balsam: Callable[..., Any]) -> None:
    assert balsam() == (0, "Nothing stands in the way of any job.\n", "")
    assert balsam("nothing")[0] == 3
    number = job(bench)
    assert balsam()[0] == 1
    assert balsam(f"#{number}")[0] == 1
    assert bench.run() == 0
    code, out, _ = balsam("one")
    assert code == 0
    assert out.endswith("is JOB_FINISHED; nothing stands in its way.\n")
    assert balsam("--state", "JOB_FINISHED")[0] == 0
    assert balsam("--wf", "nothing")[0] == 3


def test_more_jobs_than_can_be_read_are_grouped(bench: Bench, explain: Explain) -> None:
    numbers = bench.add([{"application": "true"}] * 101)
    assert len(explain(*(f"#{number}" for number in numbers[:100]))) == 100
    (group,) = explain(*(f"#{number}" for number in numbers))
    assert group["jobs"] == 101


def test_a_note_is_shown_and_is_nothing_in_the_way(bench: Bench, balsam: Callable[..., Any], monkeypatch: Any) -> None:
    number, _ = CASES["stale"](bench, monkeypatch)
    code, out, _ = balsam(f"#{number}")
    assert code == 0
    assert "its result is older" in out


def test_hostile_names_and_outputs_stay_on_their_lines(bench: Bench, balsam: Callable[..., Any]) -> None:
    bench.shell("bad", r"printf 'a\033[31m\nb\n'; exit 1")
    number = job(bench, application="bad", name="x y")
    assert bench.run() == 0
    out = balsam(f"#{number}")[1]
    assert "\033" not in out
    assert out.count("\n     | ") >= 2


def test_a_reason_fits_the_terminal(bench: Bench, balsam: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("balsam_lite.cli.output.terminal_width", lambda file: 40)
    job(bench)
    assert max(map(len, balsam("one")[1].splitlines())) <= 40
    monkeypatch.setattr("balsam_lite.cli.output.terminal_width", lambda file: 20)
    assert balsam("one")[0] == 1


class Batch:
    """A scheduler that answers what the test sets."""

    name, template, domain, timeout_s = "FakeScheduler", "local.tmpl", "x", 60.0
    answer: BatchStatus | None = None

    def poll(self, outputs: dict[str, str]) -> dict[str, BatchStatus]:
        if self.answer is None:
            raise PollFailed("no answer")
        return dict.fromkeys(outputs, self.answer)


def test_refresh_asks_the_scheduler_and_without_an_answer_shows_the_last_one(
    bench: Bench, balsam: Callable[..., Any], explain: Explain, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = Batch()
    monkeypatch.setattr("balsam_lite.sites.batch_jobs.base.select", lambda settings: batch)
    launch(bench)
    job(bench)
    assert explain()[0]["reason"] == "no launcher runs yet, qlaunch1 is queued in the batch queue"
    batch.answer = BatchStatus("77", base.QUEUED, "held by its owner", expected_us=4102444800000000)
    assert explain()[0]["reason"] == "no launcher runs yet, qlaunch1 is queued in the batch queue"
    told = "held by its owner; it should start at 01-01-2100 00:00:00 UTC (as of 0 s ago)"
    assert told in explain("--refresh")[0]["reason"]
    batch.answer = None
    code, out, err = balsam("--refresh")
    assert code == 1
    assert "held by its owner" in out
    assert "Scheduler is not reachable: no answer" in err


def test_the_time_of_a_poll_that_tells_nothing_new_is_kept_to_the_minute(bench: Bench) -> None:
    number, batch, start_us = launch(bench), Batch(), now_us()
    batch.answer = BatchStatus("77", base.QUEUED)

    def polled() -> int:
        with bench.db.read() as cx:
            return int(cx.execute("SELECT polled FROM batch_job WHERE id = ?", (number,)).fetchone()[0])

    for seconds, expected in ((0, 0), (30, 0), (61, 61), (90, 61)):
        submission.refresh(bench.db, batch, start_us + seconds * 1_000_000)
        assert polled() == start_us + expected * 1_000_000


def test_sites_are_explained_here_and_behind_ssh(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BALSAM_HOME", str(tmp_path / "home"))
    number = job(bench, workflow="w")
    with far_site(bench.directory) as remote:
        monkeypatch.setenv("PATH", remote.path)
        for words in (("--site", "far", f"#{number}"), ("--site", "far", "--wf", "w"), ("--site", "far")):
            argv = [sys.executable, "-m", "balsam_lite.cli", "explain", "--json", *words]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
            (row,) = json.loads(done.stdout)
            assert (done.returncode, row["site"]) == (1, "far")
            assert row.get("reasons", [row])[0]["code"] == "no-launcher"
