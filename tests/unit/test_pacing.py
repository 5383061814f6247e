"""How many jobs to claim ahead."""

from __future__ import annotations

import pytest

from balsam_lite.db.store.claims import Shape
from balsam_lite.db.store.runs import RunResult
from balsam_lite.launcher.pacing import EndRate


@pytest.mark.parametrize("set_by_s", [0, 3600, -3600])
def test_the_rate_of_ends_does_not_depend_on_the_hosts_clock(set_by_s: int) -> None:
    now, wall_us, shape = 100.0, 10**15, Shape(1, 1, 1, 0.0)
    rate = EndRate(lambda: now)
    for number in range(20):
        now += 0.05
        started_us = wall_us
        wall_us += 50_000 + (set_by_s * 10**6 if number == 10 else 0)
        rate.add(RunResult(number, 1, "RUN_DONE", 0, "", started_us, wall_us), shape)
    assert rate.expected(1.0, shape) in (20, 21)
    now += 1.5
    assert rate.expected(1.0, shape) == 0, "the runs may be long ones"
