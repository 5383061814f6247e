"""Serial jobs over many nodes: the conversation of ranks in memory, and whole launchers with a real mpiexec."""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_until
from hypothesis import given
from hypothesis import strategies as st
from launching import alive
from mpi import mpiexec, openmpi
from ranks import Ensemble, Wire

from balsam_lite.core import field_specs, states
from balsam_lite.core.errors import MachineTrouble
from balsam_lite.core.process_table import Holder
from balsam_lite.db.models import use
from balsam_lite.db.store import claims, leases, user_actions
from balsam_lite.db.store.claims import Claim, Filter, Shape
from balsam_lite.db.store.runs import RunResult
from balsam_lite.launcher.futures import BalsamExecutor
from balsam_lite.launcher.multinode import messages
from balsam_lite.launcher.multinode import mpi_transport as mpi_transport_module
from balsam_lite.launcher.multinode.coordinator import ClusterRunner, Workers
from balsam_lite.launcher.multinode.messages import Channel
from balsam_lite.launcher.multinode.supervisor import RankPlan
from balsam_lite.launcher.multinode.worker import ConnectionLost, Worker
from balsam_lite.launcher.placement import Node, NodePool, Placement
from balsam_lite.launcher.resources import LauncherOptions
from balsam_lite.launcher.run_results import Finished
from balsam_lite.schedulers.environ import Allocation, NodeGpus

HEARTBEAT_S = 10.0
SHAPE = Shape(1, 1, 4, 0.0)


class Clock:
    """Stands still but for those who wait."""

    def __init__(self) -> None:
        self.now = 1000.0

    def now_us(self) -> int:
        return int(self.now * 1e6)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def claim(job: int, attempt: int = 1, **fields: Any) -> Claim:
    blank: dict[str, Any] = {**dict.fromkeys(Claim._fields, ""), "call": None}
    return Claim(**{**blank, "job": job, "attempt": attempt, "shape": SHAPE, "place": None, **fields})


def place(rank: int) -> Placement:
    return Placement((rank,), ((),), SHAPE)


# --- conversations ----------------------------------------------------------------------------------------------------


def channels(clock: Clock) -> tuple[Wire, Channel, Channel]:
    wire = Wire(2)
    first, second = wire.links()
    return wire, Channel(first, [1], clock, 5.0), Channel(second, [0], clock, 5.0)


def said(channel: Channel) -> list[Any]:
    return [word for _, (word, *_) in channel.receive()]


def test_only_one_batch_is_unanswered_and_what_is_said_meanwhile_goes_with_the_next() -> None:
    wire, head, node = channels(Clock())
    head.send(1, "a")
    head.flush()
    for word in ("b", "c"):
        head.send(1, word)
        head.flush()
    assert len(wire.sent) == 1
    assert said(node) == ["a"]  # and answers
    head.receive()
    assert said(node) == ["b", "c"]
    assert head.has_unanswered(1)
    head.receive()
    assert not head.has_unanswered(1)


def test_what_is_urgent_goes_before_everything_that_waits() -> None:
    _, head, node = channels(Clock())
    head.send(1, "on its way")
    head.flush()
    head.send(1, "waits")
    head.send_first(1, "urgent")
    head.flush()
    assert said(node) == ["on its way"]
    head.receive()
    assert said(node) == ["urgent", "waits"]


def test_what_was_not_sent_can_be_taken_back() -> None:
    _, head, node = channels(Clock())
    head.send(1, "sent", about=1)
    head.flush()
    for job in (2, 3):
        head.send(1, f"job {job}", about=job)
    assert head.withdraw(1, {1, 2}) == {2}
    assert said(node) == ["sent"]
    head.receive()
    assert said(node) == ["job 3"]


def test_batches_are_split_at_a_mebibyte_and_what_is_larger_goes_alone() -> None:
    wire, head, node = channels(Clock())
    for _ in range(3):
        head.send(1, b"x" * (messages.MAX_BATCH_BYTES - 1000))
    head.send(1, b"y" * 5 * messages.MAX_BATCH_BYTES)
    heard = 0
    while head.has_unanswered(1):
        head.flush()
        heard += len(said(node))
        head.receive()
    assert heard == 4
    batches = [len(frame) for sender, _, frame in wire.sent if sender == 0 and len(frame) > 1000]
    assert all(size <= messages.MAX_BATCH_BYTES + 100 for size in batches[:-1])
    assert len(batches) == 4


def test_what_is_too_large_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 100)
    _, head, node = channels(Clock())
    assert head.send(1, b"x" * 101) > 100
    head.flush()
    assert said(node) == []


@given(st.lists(st.tuples(st.sampled_from(["say", "urgent", "other", "hear"]), st.binary(max_size=40)), max_size=60))
def test_everything_arrives_once_and_in_order_whatever_is_said_when(steps: list[tuple[str, bytes]]) -> None:
    _, head, node = channels(Clock())
    wanted: dict[str, list[bytes]] = {"say": [], "urgent": [], "other": []}
    got: dict[str, list[bytes]] = {"say": [], "urgent": [], "other": []}

    def exchange() -> None:
        for channel in (node, head):
            for _, (kind, word) in channel.receive():
                got[kind].append(word)

    for step, word in steps:
        if step == "hear":
            exchange()
            continue
        wanted[step].append(word)
        if step == "urgent":
            head.send_first(1, step, word)
        else:
            (head if step == "say" else node).send(1 if step == "say" else 0, step, word)
    while head.has_unanswered(1) or node.has_unanswered(0):
        exchange()
    assert got == wanted


def test_a_silent_peer_is_sent_signs_of_life_and_that_they_count() -> None:
    clock = Clock()
    _, head, node = channels(clock)
    for _ in range(40):
        clock.now += 1
        head.receive(), node.receive()
    assert head.silent_s(1) <= 6
    assert node.silent_s(0) <= 6


def test_whoever_did_not_listen_does_not_take_others_for_silent() -> None:
    clock = Clock()
    _, head, _ = channels(clock)
    clock.now += 500
    head.receive()
    assert head.silent_s(1) <= 0
    for _ in range(40):
        clock.now += 1
        head.receive()
    assert head.silent_s(1) >= 35


def test_after_a_death_only_those_are_told_something_who_have_spoken_since() -> None:
    clock = Clock()
    wire = Wire(3)
    links = wire.links()
    head = Channel(links[0], [1, 2], clock, 5.0)
    node = Channel(links[1], [0], clock, 5.0)
    Channel(links[2], [0], clock, 5.0).send(0, "x")
    head.note_death()
    head.send(1, "a"), head.send(2, "b")
    for _ in range(20):
        clock.now += 1
        head.receive()
    assert not [frame for sender, _, frame in wire.sent if sender == 0]
    node.send(0, "here")
    node.flush()
    assert said(head) == ["here"]
    assert said(node) == ["a"]
    assert not [frame for sender, peer, frame in wire.sent if (sender, peer) == (0, 2)]


def test_waiting_ends_with_a_message_or_when_woken_and_naps_grow() -> None:
    clock = Clock()
    _, head, node = channels(clock)
    naps: list[float] = []

    def nap(seconds: float) -> bool:
        naps.append(seconds)
        clock.now += seconds
        if len(naps) == 10:
            node.send(0, "x")
            node.flush()
        return False

    head.wait(60, nap)
    assert naps[0] <= 0.002
    assert max(naps) == 0.02
    assert len(naps) == 10
    assert said(head) == ["x"]
    head.wait(60, lambda seconds: True)
    assert clock.now < 1001


# --- rank 0 -----------------------------------------------------------------------------------------------------------


class FakeRunner:
    """Remembers what it is told; jobs end when the test says so."""

    def __init__(self) -> None:
        self.started = 0
        self.runs: dict[int, tuple[Claim, Placement]] = {}
        self.stopped: list[tuple[set[int], str, float]] = []
        self.hurried = 0
        self.ended: list[Finished] = []
        self.is_busy = False

    @property
    def jobs(self) -> set[int]:
        return set(self.runs)

    def __len__(self) -> int:
        return len(self.runs) + len(self.ended)

    def start(self, claim: Claim, place: Placement) -> None:
        if claim.name == "bad":
            raise ValueError("no such thing")
        self.runs[claim.job] = (claim, place)

    def end(self, job: int, result: str = states.RUN_DONE) -> None:
        its, where = self.runs.pop(job)
        self.ended.append(Finished(RunResult(job, its.attempt, result, 0, "", 1, 2), where))

    def poll(self) -> list[Finished]:
        ended, self.ended = self.ended, []
        return ended

    def stop(self, jobs: Any, result: str, grace_s: float) -> None:
        if jobs:
            self.stopped.append((set(jobs), result, grace_s))

    def kill_now(self) -> None:
        self.hurried += 1


class FakeHands:
    """A node that can run anything."""

    def __init__(self) -> None:
        self.runner = FakeRunner()
        self.orders: messages.Begin | None = None
        self.abandoned = 0

    def begin(self, orders: messages.Begin) -> FakeRunner:
        self.orders = orders
        return self.runner

    def beat(self) -> None:
        pass

    def abandon(self) -> None:
        self.abandoned += 1


ORDERS = messages.Begin("/db", b"id:1:", 3, "serial", {b"A": b"1"}, 16, 0.7, ())


class Stage:
    """Rank 0 and two nodes in one process, with a clock of their own."""

    def __init__(self, begins: bool = True) -> None:
        self.clock = Clock()
        self.wire = Wire(3)
        links = self.wire.links()
        self.workers = Workers(links[0], self.clock, HEARTBEAT_S)
        self.executor = {rank: FakeHands() for rank in (1, 2)}
        self.channels = {rank: Channel(links[rank], [0], self.clock, 5.0) for rank in (1, 2)}
        self.servers = {
            rank: Worker(self.channels[rank], self.clock, HEARTBEAT_S, self.executor[rank], self.nap) for rank in (1, 2)
        }
        self.frozen: set[int] = set()
        self.local = FakeRunner()
        self.pool = NodePool([Node(4, (), f"n{rank}") for rank in range(3)])
        self.runner = ClusterRunner(self.local, self.workers, self.clock, lambda its: its.name == "mpi", self.pool.close)
        for rank in (1, 2):
            self.channels[rank].send(0, messages.HELLO, (messages.VERSION, f"host{rank}", 2, ("0",)))
        self.workers._nap = self.crew_nap  # type: ignore[method-assign]  # nothing else runs while rank 0 sleeps
        if begins:
            self.workers.gather()
            self.workers.begin(ORDERS)

    def nap(self, seconds: float) -> bool:
        return True

    def crew_nap(self, seconds: float) -> bool:
        self.clock.now += seconds
        self.turn()
        return False

    def turn(self) -> None:
        for rank, server in self.servers.items():
            if rank not in self.frozen:
                server._turn()

    def go(self, turns: int = 4, step_s: float = 0.0) -> list[Finished]:
        found = []
        for _ in range(turns):
            self.clock.now += step_s
            self.turn()
            found += self.runner.poll()
        return found

    def results(self, finished: list[Finished]) -> dict[int, tuple[str, str]]:
        return {one.exit.job: (one.exit.result, one.exit.message) for one in finished}


def test_jobs_run_where_their_place_is_and_mpi_jobs_from_rank_0() -> None:
    stage = Stage()
    for job in range(6):
        stage.runner.start(claim(job), place(job % 3))
    stage.runner.start(claim(6, name="mpi"), Placement((1, 2), ((), ()), Shape(2, 2, 1, 0.0)))
    stage.go()
    assert set(stage.local.runs) == {0, 3, 6}
    assert set(stage.executor[1].runner.runs) == {1, 4}
    its, where = stage.executor[2].runner.runs[2]
    assert (its, where) == (claim(2), place(2))
    assert isinstance(its.shape, Shape)
    assert len(stage.runner) == 7
    assert stage.runner.jobs == set(range(7))
    stage.executor[2].runner.end(2)
    stage.local.end(0)
    ended = {one.exit.job: one.place for one in stage.go()}
    assert ended == {2: place(2), 0: place(0)}
    assert len(stage.runner) == 5


def test_a_kill_overtakes_starts_and_a_job_never_started_says_so() -> None:
    stage = Stage()
    stage.runner.start(claim(1), place(1))
    stage.runner._channel.flush()
    for job in range(2, 50):
        stage.runner.start(claim(job), place(1))
    stage.runner.stop([1, 2, 3], states.RUN_ERROR, 0.7)
    assert stage.runner.jobs == set(range(4, 50))
    ended = stage.results(stage.go())
    assert {job: result for job, (result, _) in ended.items()} == {2: states.RESTART_READY, 3: states.RESTART_READY}
    assert stage.executor[1].runner.stopped == [({1}, states.RUN_ERROR, 0.7)]
    assert set(stage.executor[1].runner.runs) == {1, *range(4, 50)}
    stage.runner.kill_now()
    stage.go()
    assert stage.executor[1].runner.hurried == 1
    assert stage.executor[2].runner.hurried == 0


def test_a_silent_node_is_lost_and_its_jobs_come_back_but_those_never_sent_count_no_restart() -> None:
    stage = Stage()
    stage.runner.start(claim(1), place(1))
    stage.runner.start(claim(2), place(2))
    stage.go()
    stage.frozen.add(1)
    stage.runner.start(claim(3), place(1))
    stage.runner._channel.flush()  # is on its way, unanswered
    stage.runner.start(claim(4), place(1))
    assert stage.go(25, 1.0) == []
    ended = {one.exit.job: one.exit for one in stage.go(10, 1.0)}
    assert set(ended) == {1, 3, 4}
    assert {one.result for one in ended.values()} == {states.RESTART_READY}
    assert ended[1].message.startswith("Lost node 1 (host1): it was silent for 3")
    assert ended[1].has_started and ended[3].has_started
    assert not ended[4].has_started
    assert [node.is_closed for node in stage.pool.nodes] == [False, True, False]
    assert stage.runner.jobs == {2}
    # The node comes back: it ends what it runs, and its reports of jobs that another launcher has now are not believed.
    stage.frozen.clear()
    stage.executor[1].runner.end(1)
    assert stage.go() == []
    assert stage.executor[1].abandoned
    stage.runner.start(claim(5), place(1))
    assert stage.results(stage.go()) == {5: (states.RESTART_READY, "")}


def cannot_start(stage: Stage, rank: int, job: int) -> None:
    """Let the runner of that node report that its host could not start the job."""
    runner = stage.local if rank == 0 else stage.executor[rank].runner
    its, where = runner.runs.pop(job)
    trouble = MachineTrouble("no processes", MachineTrouble.HOST)
    runner.ended.append(Finished(claims.unstarted(its, 1, trouble.message), where, trouble=trouble))


def test_places_of_a_node_that_can_start_nothing_stay_empty_for_a_while_and_its_jobs_go_elsewhere() -> None:
    stage = Stage()
    for job in (1, 2):
        stage.runner.start(claim(job), place(1))
    stage.go()
    cannot_start(stage, 1, 1)
    (first,) = stage.go()
    assert first.exit.result == states.RESTART_READY
    assert first.exit.started_us is None
    assert (first.place, first.trouble) == (None, None)
    assert stage.go(turns=1, step_s=0.5) == []
    (freed,) = stage.go(turns=1, step_s=0.6)
    assert (freed.place, freed.is_doubted) == (place(1), True)
    cannot_start(stage, 1, 2)
    stage.go()
    assert stage.go(turns=1, step_s=1.5) == []
    assert len(stage.go(turns=1, step_s=0.6)) == 1


def test_the_launcher_pauses_when_no_node_can_start_anything() -> None:
    stage = Stage()
    for job in (0, 1, 2):
        stage.runner.start(claim(job), place(job))
    stage.go()
    for job in (0, 1, 2):
        cannot_start(stage, job, job)
    ends = stage.go(turns=2)
    assert [end.exit.result for end in ends] == [states.RESTART_READY] * 3
    (general,) = [end for end in ends if end.trouble]
    assert general.place is not None
    assert "no processes" in general.trouble.message


def test_a_rank_that_mpi_calls_dead_is_lost_only_after_its_guard_has_had_time_to_end_its_jobs() -> None:
    stage = Stage()
    stage.runner.start(claim(1), place(1))
    stage.go()
    stage.frozen.add(1)
    stage.workers.channel._transport.broken.add(1)
    assert stage.go(1, 1.0) == []
    stage.runner.start(claim(2), place(1))
    assert stage.go(6, 0.5) == []  # the grace is 0.7 s
    lost = {one.exit.job: one.exit for one in stage.go(2, 1.0)}
    assert lost[1].message == "Lost node 1 (host1): MPI reports that it is gone"
    assert {one.result for one in lost.values()} == {states.RESTART_READY}
    assert lost[2].started_us is None  # it was not even told
    assert stage.pool.nodes[1].is_closed


def test_a_rank_that_dies_before_it_has_jobs_is_lost_at_once() -> None:
    stage = Stage(begins=False)
    stage.frozen.add(1)
    stage.workers.channel._transport.broken.add(1)
    began = stage.clock.now
    stage.workers.gather()
    assert stage.workers.left_out == {1: "MPI reports that it is gone"}
    assert stage.clock.now - began < 2


def test_nobody_leaves_together_with_a_rank_that_has_just_died() -> None:
    stage = Stage()
    stage.frozen.add(1)
    stage.workers.channel._transport.broken.add(1)
    assert not stage.workers.dismiss(in_good_order=True)
    assert not stage.servers[2].leaves_together


def test_a_node_whose_mpi_process_is_gone_ends_its_jobs_before_it_says_so() -> None:
    stage = Stage()
    stage.go()
    server, executor, sent = stage.servers[1], stage.executor[1], stage.wire.sent
    server._parent = -1
    before = len(sent)
    told: list[int] = []
    executor.abandon = lambda: told.append(len(sent) - before)  # type: ignore[method-assign]
    stage.clock.now += 1
    with pytest.raises(ConnectionLost, match="on this node is gone"):
        server._look_around()
    assert told == [0]
    stage.runner.poll()
    assert stage.workers.left_out == {1: "the process that started it is gone"}


def test_a_node_that_hears_nothing_of_rank_0_ends_its_jobs_before_they_are_given_away() -> None:
    stage = Stage()
    stage.runner.start(claim(1), place(1))
    stage.go()
    stage.wire.cut.add(1)

    def wait_long() -> None:
        for _ in range(60):
            stage.clock.now += 0.5
            stage.servers[1]._turn()
            assert stage.runner.poll() == []

    with pytest.raises(ConnectionLost, match="rank 0 was silent"):
        wait_long()
    silent_s = stage.workers.channel.silent_s(1)
    assert silent_s < 25  # and rank 0 waits for 30


def test_a_bad_job_fails_alone_and_an_error_of_the_node_itself_gives_all_its_jobs_back() -> None:
    stage = Stage()
    stage.runner.start(claim(1, name="bad"), place(1))
    stage.runner.start(claim(2), place(1))
    result, message = stage.results(stage.go())[1]
    assert result == states.RUN_ERROR
    assert "unexpected ValueError: no such thing" in message
    stage.executor[1].runner.poll = None  # type: ignore[assignment]
    ended = stage.results(stage.go(6, 1.0))
    assert ended[2][0] == states.RESTART_READY
    assert "internal error: TypeError" in ended[2][1]
    assert stage.executor[1].abandoned
    assert stage.workers.left_out.keys() == {1}


def test_a_job_that_cannot_be_told_fails_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage()
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 5000)
    monkeypatch.setattr("balsam_lite.launcher.multinode.coordinator.MAX_MESSAGE_BYTES", 5000)
    stage.runner.start(claim(1, args="x" * 6000), place(1))
    (ended,) = stage.go()
    assert ended.exit.result == states.RUN_ERROR
    assert "bytes, more than 5000" in ended.exit.message


def test_ranks_that_do_not_answer_or_run_another_version_are_left_out() -> None:
    stage = Stage(begins=False)
    stage.channels[1].withdraw(0, {0})
    stage.channels[1].send(0, messages.HELLO, (("9.9", (3, 8)), "host1", 2, ()))
    stage.frozen.add(2)
    stage.wire.cut.add(2)
    stage.workers.gather(limit_s=20)
    stage.workers.begin(ORDERS, limit_s=5)
    assert stage.workers.left_out.keys() == {1, 2}
    assert "9.9" in stage.workers.left_out[1]
    assert "'hello' within 20 s" in stage.workers.left_out[2]


def test_a_node_that_cannot_run_jobs_is_left_out_with_its_reason() -> None:
    stage = Stage(begins=False)
    stage.executor[2].begin = None  # type: ignore[assignment]
    stage.workers.gather()
    stage.workers.begin(ORDERS)
    assert stage.workers.left_out.keys() == {2}
    assert "TypeError" in stage.workers.left_out[2]


def test_all_leave_together_only_if_nobody_is_missing() -> None:
    stage = Stage()
    assert stage.workers.dismiss(in_good_order=True)
    assert all(server.leaves_together for server in stage.servers.values())
    stage = Stage()
    stage.frozen.add(2)
    began = stage.clock.now
    assert not stage.workers.dismiss(in_good_order=True)
    assert stage.clock.now - began < 15
    stage = Stage()
    assert not stage.workers.dismiss(in_good_order=False)
    assert all(executor.abandoned for executor in stage.executor.values())


def test_the_plan_survives_the_command_line() -> None:
    options = LauncherOptions("mixed", "wf-*", 1.5, None, 2, 1, 4, True, 3, (("a", 'b"ü'), ("c", "")))
    batch = Allocation("SlurmScheduler", "12", 2, ("n1", "n2"), 5, 4, None, True)
    batch = batch._replace(node_cpus=(4, 8), node_gpus=NodeGpus({"n1": ("0", "1"), "n2": ()}, True))
    for plan in (RankPlan("/d b", 2, 10.0, options, batch), RankPlan("/d", 2, 10.0, LauncherOptions(), None)):
        assert RankPlan.from_text(plan.as_text()) == plan


def test_the_plan_of_ten_thousand_nodes_fits_into_one_argument() -> None:
    names = tuple(f"nid{number:06d}" for number in range(3, 30_003, 3))
    batch = Allocation("SlurmScheduler", "12", len(names), names)
    batch = batch._replace(node_cpus=(64,) * len(names), node_gpus=NodeGpus({name: tuple("0123") for name in names}, True))
    plan = RankPlan("/db", len(names), 10.0, LauncherOptions(), batch)
    assert RankPlan.from_text(plan.as_text()) == plan
    assert len(plan.as_text()) < 128 * 1024  # MAX_ARG_STRLEN of execve(2), Linux


# --- MPI that fails ---------------------------------------------------------------------------------------------------


class FakeMpi:
    """As much of mpi4py.MPI as `MpiTransport` needs, with a rank 2 that is gone."""

    Exception = ConnectionError

    ANY_SOURCE, BYTE, ERRORS_RETURN, THREAD_SERIALIZED = -1, "byte", "return", 2

    class Status:
        source = 0

        def Get_count(self, _: str) -> int:
            return 2

        def Get_source(self) -> int:
            return self.source

    class Request:
        def __init__(self, ok: bool = True) -> None:
            self.ok = ok

        def Test(self) -> bool:
            if not self.ok:
                raise FakeMpi.Exception
            return True

    def __init__(self) -> None:
        self.COMM_WORLD = self
        self.from_1 = [b"ab"]

    def Set_errhandler(self, _: str) -> None: ...
    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 3

    def Query_thread(self) -> int:
        return 1

    def Isend(self, _: Any, dest: int, tag: int) -> Request:
        return self.Request(ok=dest != 2)

    def Improbe(self, source: int, tag: int, status: Any) -> Any:
        if source in (self.ANY_SOURCE, 2):
            raise self.Exception
        if not self.from_1:
            return None
        status.source = source
        return self

    def Irecv(self, where: list[Any]) -> Request:
        where[0][:] = self.from_1.pop()
        return self.Request()


def test_the_living_are_heard_when_mpi_refuses_to_receive_from_anybody() -> None:
    transport = mpi_transport_module.MpiTransport(FakeMpi())
    assert transport.poll() == []
    assert transport.poll() == [(1, b"ab")]
    assert transport.broken == {2}
    assert not transport.is_for_threads


def test_a_send_that_fails_marks_the_rank_and_raises_nothing() -> None:
    transport = mpi_transport_module.MpiTransport(FakeMpi())
    transport.send(1, b"x")
    transport.send(2, b"x")
    transport.send(2, b"x")
    assert transport.broken == {2}
    assert not transport.is_moving


# --- the store --------------------------------------------------------------------------------------------------------


class _Room:
    preparations = 0

    def fits(self, shape: Shape) -> bool:
        return True

    def count(self, shape: Shape) -> int:
        return 100

    def reserve(self, shape: Shape) -> object:
        return True

    def describe(self, place: object) -> tuple[str, str]:
        return "node1", ""


def test_a_lost_run_restarts_counts_and_fails_at_the_limit_and_one_that_never_began_does_not_count(
    tmp_path: Path,
) -> None:
    bench = Ensemble(tmp_path, 2)
    bench.app("a", "true")
    lost, unsent, at_limit = bench.add([{"application": "a", "restart_limit": limit} for limit in (3, 3, 0)])
    with bench.db.write() as cx:
        lease = leases.open_lease(cx, "launcher", Holder.current(), "", 1)
        claims.take(cx, lease, _Room(), Filter(), 2)
        ends = [RunResult(lost, 1, states.RESTART_READY, None, "Lost node 1", 5, 9)]
        ends += [RunResult(unsent, 1, states.RESTART_READY, None, "", None, 9)]
        ends += [RunResult(at_limit, 1, states.RESTART_READY, None, "Lost node 1", 5, 9)]
        assert claims.finish(cx, lease, ends, 10)[:2] == ([], [])
    assert [bench.job(job)["state"] for job in (lost, unsent, at_limit)] == ["RESTART_READY", "RESTART_READY", "FAILED"]
    assert [bench.job(job)["restarts"] for job in (lost, unsent, at_limit)] == [1, 0, 0]
    assert [bench.job(job)["lease"] for job in (lost, unsent, at_limit)] == [None] * 3
    assert bench.history(lost)[-1] == ("RESTART_READY", "Lost node 1")
    assert "restart_limit" in bench.history(at_limit)[-1][1]
    bench.close()


# --- a real mpiexec ---------------------------------------------------------------------------------------------------

#: Says which rank has started it, notices another run of the same job at the same time, and takes its time.
ONCE = """
import os, pathlib, sys, time
attempt = int(os.environ["BALSAM_ATTEMPT"])
pathlib.Path("new").write_text(str(os.getpid()))
os.rename("new", f"pid.{attempt}")  # whole or not at all: an empty one would lead to /proc/stat
for earlier in range(1, attempt):
    path = pathlib.Path(f"pid.{earlier}")
    if path.exists() and pathlib.Path("/proc", path.read_text(), "stat").exists():
        state = pathlib.Path("/proc", path.read_text(), "stat").read_text().rpartition(")")[2].split()[0]
        if state not in "ZX":
            pathlib.Path("twice").write_text(str(earlier))
time.sleep(float(sys.argv[1]))
print("done by", os.getppid())
"""


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Ensemble]:
    bench = Ensemble(tmp_path, 2)
    yield bench
    bench.close()


def outputs(bench: Ensemble, jobs: list[int]) -> list[str]:
    return [bench.path(job, field_specs.output_name(bench.job(job)["name"])).read_text() for job in jobs]


def test_nothing_is_left_of_a_launcher_that_has_ended(two: Ensemble) -> None:
    two.app("hello", "echo Hello,")
    two.add([{"application": "hello"}])
    assert two.run() == 0
    wait_until(lambda: not two.processes())
    assert "Its last words" not in two.stderr()


@pytest.mark.parametrize("ranks", [2, 3])
def test_jobs_run_on_all_ranks_in_their_own_directories_with_the_right_history(tmp_path: Path, ranks: int) -> None:
    bench = Ensemble(tmp_path, ranks)
    bench.shell("who", 'echo "job $1 by $PPID"; env > environ; sleep 0.02')
    jobs = bench.add([{"name": f"j{n}", "application": "who", "args": str(n), "node_packing_count": 4} for n in range(200)])
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 200}
    texts = outputs(bench, jobs)
    assert [text.split()[1] for text in texts] == [str(n) for n in range(200)]
    assert len({text.split()[3] for text in texts}) == ranks
    plain = ["CREATED", "PREPROCESSED", "RUNNING", "RUN_DONE", "JOB_FINISHED"]
    assert all([state for state, _ in bench.history(job)] == plain for job in jobs)
    for job in jobs[:: 200 // 7]:
        environ = dict(line.partition("=")[::2] for line in bench.path(job, "environ").read_text().splitlines())
        assert not [name for name in environ if name.startswith(("PMI_", "PMIX_", "HYDRA_", "HYDI_", "MPI_LOCAL"))]
        assert environ["BALSAM_LAUNCHER_NODES"] == str(ranks)
        assert environ["BALSAM_JOB_ID"] == bench.job(job)["job_id"]
        assert environ["COBALT_JOBID"] == "7"
    bench.close()


def test_open_mpi_does_it_too(tmp_path: Path) -> None:
    bin_ = openmpi()
    words_ = "--allow-run-as-root --oversubscribe --enable-recovery -n {{ ranks }}"
    mpi = f"env -u COBALT_JOBID -u COBALT_NODEFILE {bin_}/mpiexec {words_}"
    bench = Ensemble(tmp_path, 2, mpi)
    bench.shell("who", 'echo "by $PPID"; sleep 0.02')
    jobs = bench.add([{"application": "who", "node_packing_count": 4} for _ in range(50)])
    bench.python = f"{bin_}/python"
    assert bench.run() == 0
    assert bench.states() == {"JOB_FINISHED": 50}
    assert len(set(outputs(bench, jobs))) == 2
    bench.close()


def test_failures_and_programs_that_are_not_there_are_told_from_any_rank(two: Ensemble) -> None:
    two.shell("fails", "echo went wrong; exit 3")
    two.app("missing", "/no/such/program")
    jobs = two.add([{"application": app, "node_packing_count": 4} for app in ("fails", "missing") * 8])
    assert two.run() == 0
    assert two.states() == {"FAILED": 16}
    for job, reason in zip(jobs, ("nonzero return 3: went wrong", "The job could not be started") * 8):
        assert dict(two.history(job))["RUN_ERROR"].startswith(reason)


def test_a_kill_reaches_a_job_on_any_rank_within_a_second(two: Ensemble) -> None:
    two.shell("sleeps", "echo $$ > pid.new; mv pid.new pid; sleep 600")
    jobs = two.add([{"application": "sleeps", "node_packing_count": 2} for _ in range(4)])
    launcher = two.launch()
    wait_until(lambda: all(two.path(job, "pid").exists() for job in jobs))
    pids = [int(two.path(job, "pid").read_text()) for job in jobs]
    for job, pid in zip(jobs, pids):
        user_actions.kill(two.db, [job])
        wait_until(lambda pid=pid: not alive(pid), 5)  # a second where the machine is idle
    assert launcher.wait(30) == 0
    assert two.states() == {"USER_KILLED": 4}


def test_gpus_of_each_node_belong_to_one_job_at_a_time(tmp_path: Path) -> None:
    bench = Ensemble(tmp_path, 2, BALSAM_GPUS_PER_NODE="2")
    bench.shell("gpu", 'echo "$PPID $CUDA_VISIBLE_DEVICES"; sleep 0.3')
    jobs = bench.add([{"application": "gpu", "gpus_per_rank": 1, "node_packing_count": 8} for _ in range(8)])
    assert bench.run() == 0
    used = [tuple(text.split()) for text in outputs(bench, jobs)]
    assert len(set(used)) == 4
    assert {gpu for _, gpu in used} == {"0", "1"}
    assert {used.count(one) for one in used} == {2}
    bench.close()


def test_a_megabyte_of_arguments_arrives_whole_on_any_rank(two: Ensemble) -> None:
    two.script("count", "import sys; print(len(sys.argv) - 1, sum(map(len, sys.argv[1:])))")
    args = " ".join(["x" * 99] * 10_000)
    jobs = two.add([{"name": f"j{n}", "application": "count", "args": args} for n in range(4)])
    assert two.run() == 0
    assert outputs(two, jobs) == ["10000 990000\n"] * 4


def test_a_signal_ends_all_ranks_in_good_order_and_the_next_launcher_finishes(two: Ensemble) -> None:
    two.script("once", ONCE)
    jobs = two.add([{"application": "once", "args": "2", "node_packing_count": 4} for _ in range(12)])
    launcher = two.launch()
    wait_until(lambda: two.states().get("RUNNING") == 8 and len(two.processes("once.py")) == 8)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(20) == 0
    assert not two.processes()
    assert two.states() == {"CREATED": 4, "RESTART_READY": 8}
    running = [job for job in jobs if two.job(job)["state"] == "RESTART_READY"]
    assert all("RUN_TIMEOUT" in dict(two.history(job)) for job in running)
    assert two.run() == 0
    assert two.states() == {"JOB_FINISHED": 12}
    assert not [job for job in jobs if two.path(job, "twice").exists()]


def test_a_stop_that_everybody_hears_at_once_still_leaves_the_jobs_their_grace(two: Ensemble) -> None:
    two.script(
        "saves",
        "import signal, sys, time\n"
        "def save(*_): time.sleep(1); print('saved'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save); open('ready', 'w'); time.sleep(600)",
    )
    rows = [{"exit_0_is_done_after_stop": is_done} for is_done in (0, 0, 1, 1)]
    jobs = two.add([{"application": "saves", "node_packing_count": 2, **row} for row in rows])
    launcher = two.launch()
    wait_until(lambda: all(two.path(job, "ready").exists() for job in jobs))
    for rank in two.ranks(2):
        rank.signal(signal.SIGTERM)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(20) == 0
    assert two.states() == {"RESTART_READY": 2, "JOB_FINISHED": 2}
    assert all("Told to stop at " in dict(two.history(job))["RUN_TIMEOUT"] for job in jobs[:2])
    assert all(two.path(job, "job.out").read_text() == "saved\n" for job in jobs)


def test_the_time_limit_ends_jobs_on_all_ranks(two: Ensemble) -> None:
    two.app("sleeps", "sleep 600")
    two.add([{"application": "sleeps"} for _ in range(2)])
    assert two.run("--time-limit-minutes", "0.08") == 0
    assert two.states() == {"RESTART_READY": 2}
    assert not two.processes()


def test_a_rank_killed_with_9_is_noticed_and_its_jobs_run_elsewhere(tmp_path: Path) -> None:
    bench = Ensemble(tmp_path, 3, BALSAM_HEARTBEAT_S="1")
    bench.script("once", ONCE)
    jobs = bench.add([{"application": "once", "args": "1", "node_packing_count": 2} for _ in range(18)])
    launcher = bench.launch()
    ranks = bench.ranks(3)
    wait_until(lambda: any(f.read_text() for f in Path(bench.directory).glob("data/*/pid.1")))
    wait_until(lambda: len(bench.processes("once.py")) == 6)
    ranks[1].signal(signal.SIGKILL)
    assert launcher.wait(60) == 0
    assert bench.states() == {"JOB_FINISHED": 18}
    again = [job for job in jobs if bench.job(job)["attempt"] > 1]
    assert len(again) == 2
    assert all("Lost node 1" in dict(bench.history(job))["RESTART_READY"] for job in again)
    assert not [job for job in jobs if bench.path(job, "twice").exists()]
    assert not {str(ranks[1].pid)} & {text.split()[-1] for text in outputs(bench, again)}
    wait_until(lambda: not bench.processes())
    bench.close()


@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "mpiexec"])
def test_a_program_killed_with_9_is_started_again_and_finishes_with_no_run_twice_at_once(tmp_path: Path, victim: str) -> None:
    mpi = f"{mpiexec()} -bootstrap fork -hosts localhost -n {{{{ ranks }}}}"  # whose ranks do not survive one another
    bench = Ensemble(tmp_path, 2, mpi)
    bench.script("once", ONCE)
    jobs = bench.add([{"application": "once", "args": "1", "node_packing_count": 2} for _ in range(8)])
    launcher = bench.launch()
    ranks = bench.ranks(2)
    wait_until(lambda: len(bench.processes("once.py")) == 4)
    if victim == "mpiexec":
        for process in bench.processes("mpiexec"):
            process.signal(signal.SIGKILL)
    else:
        ranks[int(victim[-1])].signal(signal.SIGKILL)
    assert launcher.wait(60) == 0, bench.stderr()
    assert bench.states() == {"JOB_FINISHED": 8}
    assert "broke down" in bench.stderr()
    assert not [job for job in jobs if bench.path(job, "twice").exists()]
    assert not bench.processes()
    bench.close()


def test_a_program_that_breaks_down_twice_ends_with_1_and_leaves_everything_to_the_next(two: Ensemble) -> None:
    two.script("once", ONCE)
    jobs = two.add([{"application": "once", "args": "1", "node_packing_count": 2} for _ in range(8)])
    launcher = two.launch()
    for attempt in (1, 2):
        wait_until(lambda a=attempt: len(list(Path(two.directory).glob(f"data/*/pid.{a}"))) >= 2)
        two.ranks(2)[0].signal(signal.SIGKILL)
        wait_until(lambda a=attempt: two.stderr().count("broke down") == a)
    assert launcher.wait(30) == 1
    assert not two.processes()
    assert "RESTART_READY as soon as the next launcher starts" in two.stderr()
    assert two.run() == 0
    assert two.states() == {"JOB_FINISHED": 8}
    assert not [job for job in jobs if two.path(job, "twice").exists()]


def test_killing_the_supervisor_stops_the_launcher_in_good_order(two: Ensemble) -> None:
    two.script("once", ONCE)
    two.add([{"application": "once", "args": "600", "node_packing_count": 2} for _ in range(8)])
    launcher = two.launch()
    wait_until(lambda: len(two.processes("once.py")) == 4)
    launcher.kill()
    launcher.wait(5)
    wait_until(lambda: not two.processes(), 15)
    assert two.states() == {"CREATED": 4, "RESTART_READY": 4}


def test_orphans_on_a_node_are_dead_before_their_jobs_start_again(tmp_path: Path) -> None:
    bench = Ensemble(tmp_path, 2)
    bench.script("once", ONCE)
    jobs = bench.add([{"application": "once", "args": "600", "node_packing_count": 2} for _ in range(4)])
    launcher = bench.launch()
    wait_until(lambda: len(bench.processes("once.py")) == 4)
    orphans = bench.processes("once.py")
    launcher.send_signal(signal.SIGSTOP)  # like the ranks, it would end the runs of a helper that dies
    for process in bench.ranks(2):
        process.signal(signal.SIGSTOP)
    for process in bench.processes(
        "balsam_lite.launcher.exec.spawn_helper"
    ):  # as if the whole node had been reset but for them
        process.signal(signal.SIGKILL)
    for process in (*bench.processes("mpiexec"), *bench.ranks(2)):
        process.signal(signal.SIGKILL)
    launcher.kill()
    launcher.wait(5)
    assert len(bench.processes("once.py")) == 4
    bench.script("quick", "print(1)")
    again = bench.launch()
    wait_until(lambda: len(list(Path(bench.directory).glob("data/*/pid.2"))) == 4)
    assert not any(alive(orphan.pid) for orphan in orphans)
    assert not [job for job in jobs if bench.path(job, "twice").exists()]
    again.send_signal(signal.SIGTERM)
    assert again.wait(20) == 0
    bench.close()


def wakeups(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep."""
    statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.MULTILINE)[0]) for text in statuses)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_idle_rank_wakes_sixty_times_a_second_at_most(two: Ensemble) -> None:
    two.app("sleeps", "sleep 600")
    two.add([{"application": "sleeps"} for _ in range(2)])
    launcher = two.launch()
    wait_until(lambda: len(two.processes("sleep")) == 2)
    rank = two.ranks(2)[1].pid
    time.sleep(1)  # whatever the start has left to do
    began, before, used = time.monotonic(), wakeups(rank), cpu_s(rank)
    time.sleep(8)
    seconds = time.monotonic() - began
    assert 1 < (wakeups(rank) - before) / seconds < 60
    assert (cpu_s(rank) - used) / seconds < 0.2  # MPI's own waiting would use a core; what a wakeup costs is the machine's
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(20) == 0


# --- what is missing --------------------------------------------------------------------------------------------------


def hide(directory: Path, what: str) -> dict[str, str]:
    """An environment in which mpi4py is "missing" or "broken"."""
    where = directory / "hidden"
    where.mkdir()
    if what == "missing":
        (where / "sitecustomize.py").write_text("import sys; sys.modules['mpi4py'] = None\n")
    else:
        (where / "mpi4py").mkdir()
        (where / "mpi4py" / "__init__.py").write_text("class rc: pass\n")
        (where / "mpi4py" / "MPI.py").write_text("raise RuntimeError('cannot load MPI library')\n")
    return {"PYTHONPATH": f"{where}:{os.environ.get('PYTHONPATH', '')}"}


@pytest.mark.parametrize(("what", "words_"), [("missing", "need mpi4py"), ("broken", "cannot load MPI library")])
def test_mpi4py_that_is_missing_or_broken_is_said_with_what_to_do(two: Ensemble, what: str, words_: str) -> None:
    two.app("hello", "echo")
    two.add([{"application": "hello"}])
    assert two.run(**hide(Path(two.directory).parent, what)) == 1
    assert words_ in two.stderr()
    assert "pip install mpi4py" in two.stderr()
    assert two.states() == {"CREATED": 1}
    assert not two.processes()


def test_ranks_that_do_not_see_one_another_are_refused(tmp_path: Path) -> None:
    mpi = f"{sys.executable} {tmp_path}/alone.py {{{{ ranks }}}}"
    bench = Ensemble(tmp_path, 2, mpi)
    code = "import subprocess, sys\nps = [subprocess.Popen(sys.argv[2:]) for _ in range(int(sys.argv[1]))]\n"
    (tmp_path / "alone.py").write_text(code + "sys.exit(max(p.wait() for p in ps))")
    assert bench.run() == 1
    assert "mpi4py sees 1 of them" in bench.stderr()
    bench.close()


def test_a_start_command_that_fails_is_quoted_and_started_once(tmp_path: Path) -> None:
    script = tmp_path / "fails"
    script.write_text("#!/bin/sh\necho no such host: n1 >&2\nexit 5\n")
    script.chmod(0o755)
    bench = Ensemble(tmp_path, 2, str(script))
    assert bench.run() == 1
    assert "nonzero return 5" in bench.stderr()
    assert "  no such host: n1" in bench.stderr()
    assert bench.stderr().count("broke down") == 1
    bench.close()


def test_garbage_on_the_programs_output_harms_nobody(tmp_path: Path) -> None:
    script = tmp_path / "noisy"
    noise = r"""printf '\377\000@balsam {\n@balsam []\n@balsam {"ended": 0}'"""
    script.write_text(f"#!/bin/sh\n{noise}\nhead -c 300000 /dev/urandom >&2\n")
    script.chmod(0o755)
    bench = Ensemble(tmp_path, 2, str(script))
    assert bench.run() == 0
    bench.close()


def test_a_start_command_that_hangs_is_ended_by_a_signal(tmp_path: Path) -> None:
    bench = Ensemble(tmp_path, 2, "sleep 600", BALSAM_BUSY_TIMEOUT_S="1", BALSAM_KILL_GRACE_S="0")
    script = tmp_path / "hangs"
    script.write_text("#!/bin/sh\ntrap '' TERM\nsleep 600 & wait\nsleep 600\n")
    script.chmod(0o755)
    launcher = bench.launch(BALSAM_MPI_RUN_TEMPLATE=str(script))
    wait_until(lambda: bench.processes("hangs"))
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(50) == 1
    assert not bench.processes()
    assert "did not end and was killed" in bench.stderr()
    bench.close()


def test_workers_on_all_ranks_make_the_calls_of_an_executor(two: Ensemble, tmp_path: Path) -> None:
    launcher = two.launch(BALSAM_IDLE_TTL_S="30")
    with use(two.db), BalsamExecutor(node_packing_count=2) as executor:
        first = list(executor.map(_rank_and_pid, [0.2] * 8, timeout=60))
        assert {rank for rank, _ in first} == {"0", "1"}
        assert len({pid for _, pid in first}) <= 4
        futures = [executor.submit(math.sqrt, number) for number in range(300)]
        assert [one.result(60) for one in futures] == [math.sqrt(number) for number in range(300)]
        text = executor.submit(str.upper, "x" * 100_000)  # goes by files
        assert executor.submit(len, text).result(60) == 100_000
    launcher.terminate()
    assert launcher.wait(60) == 0
    wait_until(lambda: not two.processes())


def _rank_and_pid(seconds: float) -> tuple[str, int]:
    time.sleep(seconds)
    mark = os.environ["BALSAM_RUN"].rpartition("@")
    return mark[2] if mark[1] else "0", os.getpid()
