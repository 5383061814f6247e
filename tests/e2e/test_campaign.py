"""Random campaigns (see `campaign`): on this host, and on a DB that two hosts share. Their seed is printed, and can be set."""

from __future__ import annotations

import os
import random

import pytest
from campaign import campaign
from mounts import need

#: Seconds of random actions in each world; as much again is needed for the calm afterwards.
_SECONDS = 35.0


# Read at once: no BALSAM_ variable of the developer reaches a test.
_SEED = int(os.environ.get("BALSAM_CAMPAIGN_SEED") or random.SystemRandom().randrange(10**6))
_LENGTH_S = float(os.environ.get("BALSAM_CAMPAIGN_SECONDS") or _SECONDS)


@pytest.mark.parametrize("world", ["local", "shared"])
def test_a_random_campaign_loses_doubles_and_leaves_nothing(world: str) -> None:
    if world == "shared":
        need()
    print(f"BALSAM_CAMPAIGN_SEED={_SEED} BALSAM_CAMPAIGN_SECONDS={_LENGTH_S:g}")
    result = campaign(_SEED, _LENGTH_S, world)
    print(dict(result.counts))
    assert not result.problems, "\n".join([f"BALSAM_CAMPAIGN_SEED={_SEED}", *result.problems])
    assert result.attempts > 50, "the campaign did next to nothing"
