"""Placement as properties: nothing is ever oversubscribed, and what is given back can be taken again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_lite.db.store.claims import Shape
from balsam_lite.launcher.placement import MpiRules, Node, NodePool, cost_of, divide_host

SHAPES = st.builds(
    Shape,
    num_nodes=st.sampled_from([1, 1, 1, 2]),
    ranks_per_node=st.sampled_from([1, 2]),
    node_packing_count=st.sampled_from([1, 2, 3, 7, 64]),
    gpus_per_rank=st.sampled_from([0, 0.25, 1 / 3, 0.5, 1, 2]),
)


@given(st.integers(1, 3), st.integers(0, 4), st.lists(st.tuples(SHAPES, st.integers(0, 9)), max_size=60))
def test_no_node_and_no_gpu_is_oversubscribed_and_a_freed_pool_is_as_new(nodes, gpus, steps):
    pool = NodePool([Node(4, [str(n) for n in range(gpus)]) for _ in range(nodes)])
    places = []
    for shape, action in steps:
        if action < 6:
            room = pool.count(shape)
            place = pool.reserve(shape)
            assert (place is not None) == (room > 0)
            if place:
                assert len(set(place.nodes)) == shape.num_nodes
                places.append(place)
        elif places:
            pool.release(places.pop(action % len(places)))
        for number, node in enumerate(pool.nodes):
            here = [(p, gpu) for p in places for n, gpu in zip(p.nodes, p.gpus) if n == number]
            assert sum(cost_of(p.shape).share for p, _ in here) <= 1 + 1e-5
            for gpu in node.gpu_load:
                assert sum(min(cost_of(p.shape).gpus, 1) for p, taken in here if gpu in taken) <= 1 + 1e-5
    for place in places:
        pool.release(place)
    assert all(node.used == 0 and not any(node.gpu_load.values()) for node in pool.nodes)


def test_whole_gpus_go_to_one_job_each_and_the_next_waits():
    pool = NodePool([Node(8, ["0", "1", "2", "3"])])
    shape = Shape(1, 1, 8, 1)
    assert [pool.reserve(shape).gpus for _ in range(4)] == [(("0",),), (("1",),), (("2",),), (("3",),)]
    assert pool.reserve(shape) is None


def test_halves_share_a_gpu_and_leave_the_others_free():
    pool = NodePool([Node(8, ["0", "1"])])
    assert [pool.reserve(Shape(1, 1, 8, 0.5)).gpus[0] for _ in range(2)] == [("0",), ("0",)]
    assert pool.reserve(Shape(1, 1, 8, 1)).gpus[0] == ("1",)


def test_a_job_of_two_nodes_takes_both_whole():
    pool = NodePool(divide_host(2, 4, []))
    place = pool.reserve(Shape(2, 4, 8, 0))
    assert place.nodes == (0, 1)
    assert pool.reserve(Shape(1, 1, 64, 0)) is None


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(3, 1, 1, 0), "needs 3 nodes, this launcher has 2"),
        (Shape(1, 2, 1, 1), "needs 2 GPUs per node, the nodes of this launcher have 1"),
        (Shape(2, 1, 1, 1), ""),
    ],
)
def test_what_can_never_fit_is_told_with_the_numbers(shape, reason):
    assert NodePool(divide_host(2, 2, ["0", "1"])).never_fits(shape) == reason


def test_jobs_fill_a_thousand_nodes_without_looking_at_the_full_ones_again():
    pool = NodePool([Node(64) for _ in range(1000)])
    shape = Shape(1, 1, 4, 0)
    places = [pool.reserve(shape) for _ in range(4000)]
    assert [place.nodes[0] for place in places] == [n // 4 for n in range(4000)]
    pool.release(places[400])
    assert pool.reserve(shape).nodes == (100,)


def test_a_large_job_gets_its_nodes_while_small_ones_wait_for_them():
    pool = NodePool([Node(4, name=f"n{number}") for number in range(4)])
    small, large = Shape(1, 1, 2, 0), Shape(2, 1, 1, 0)
    places = [pool.reserve(small) for _ in range(8)]
    assert pool.reserve(large) is None
    pool.reserve_for(large)
    for place in [place for place in places if place.nodes[0] < 2]:
        pool.release(place)
        assert pool.reserve(small) is None
        assert pool.count(small) == 0
    assert pool.reserve(large).nodes == (0, 1)
    pool.release(places[-1])
    assert pool.reserve(small).nodes == (3,)


def test_a_lost_node_takes_no_job_and_counts_no_more():
    pool = NodePool([Node(4, ["0"]), Node(4)])
    assert pool.never_fits(Shape(1, 1, 1, 1)) == ""
    pool.close(0)
    assert pool.reserve(Shape(1, 1, 1, 0)).nodes == (1,)
    assert pool.reserve(Shape(1, 1, 1, 0)) is None
    assert pool.never_fits(Shape(1, 1, 1, 1)) == "needs 1 GPUs per node, the nodes of this launcher have 0"
    assert pool.never_fits(Shape(2, 1, 1, 0)) == "needs 2 nodes, this launcher has 1"


def test_named_nodes_take_no_more_ranks_than_they_have_cpus():
    pool = NodePool([Node(4, name="n1")])
    shape = Shape(1, 2, 8, 0)
    assert pool.count(shape) == 2
    assert [bool(pool.reserve(shape)) for _ in range(3)] == [True, True, False]
    assert pool.never_fits(Shape(1, 5, 1, 0)) == "needs 5 ranks per node, the nodes of this launcher have 4 CPUs"
    assert NodePool(divide_host(1, 2, [])).never_fits(Shape(1, 64, 1, 0)) == ""


def test_runs_of_the_mpi_command_are_limited_and_alone_where_it_must_be():
    pool = NodePool([Node(4, name=f"n{number}") for number in range(3)], MpiRules(starts_all=False, shares_nodes=False, most=2))
    assert [pool.reserve(Shape(1, 2, 4, 0)).nodes for _ in range(2)] == [(0,), (1,)]
    assert pool.reserve(Shape(1, 2, 4, 0)) is None  # two run already
    assert [pool.reserve(Shape(1, 1, 4, 0)).nodes for _ in range(2)] == [(2,), (2,)]


def test_a_job_that_waits_for_a_gpu_keeps_the_gpu_and_not_the_whole_node():
    pool = NodePool([Node(64, ["0"])])
    with_gpu, without, other = Shape(1, 1, 64, 1), Shape(1, 1, 64, 0), Shape(1, 1, 32, 0.5)
    running = pool.reserve(with_gpu)
    pool.reserve_for(with_gpu)
    assert pool.count(without) == 62  # one share runs, one is kept
    assert all(pool.reserve(without) for _ in range(62))
    assert pool.reserve(without) is None
    pool.release(running)
    assert pool.reserve(other) is None
    assert pool.reserve(with_gpu).gpus == (("0",),)


def test_no_node_is_kept_for_a_job_that_waits_for_another_mpi_run():
    pool = NodePool([Node(4), Node(4)], MpiRules(most=1))
    assert pool.reserve(Shape(1, 2, 1, 0))
    pool.reserve_for(Shape(1, 2, 1, 0))
    assert not pool.is_reserving
