"""What becomes of a job when its program has ended: pure rules, the table of spec 3.3.

Nothing here touches the database; `claims`, `leases` and the steps of the launcher ask.
"""

from __future__ import annotations

from typing import NamedTuple

from ... import states


class JobFacts(NamedTuple):
    """What the rules look at, read in the transaction that applies them."""

    job: int
    state: str
    lease: int | None
    attempt: int
    restarts: int
    restart_limit: int
    auto_timeout_retry: int


class Outcome(NamedTuple):
    """The states that follow, with a message for each, and how many automatic restarts the job has used up then."""

    path: tuple[str, ...]
    messages: tuple[str, ...]
    restarts: int


def after_run(facts: JobFacts, result: str) -> Outcome:
    """The way from RUNNING through `result` (RUN_DONE, RUN_ERROR or RUN_TIMEOUT) to where the job stays."""
    follow = settle(facts, result)
    return follow._replace(path=(states.RUNNING, *follow.path))


def settle(facts: JobFacts, result: str) -> Outcome:
    """The way from a result, in which somebody left the job, to where it stays."""
    if result == states.RUN_TIMEOUT and facts.auto_timeout_retry:
        return _restart(facts, (states.RUN_TIMEOUT,))
    end = states.FAILED if result in (states.RUN_ERROR, states.RUN_TIMEOUT) else states.JOB_FINISHED
    return Outcome((result, end), ("",), facts.restarts)


def after_lost_holder(facts: JobFacts) -> Outcome:
    """The way of a RUNNING job whose launcher died."""
    return _restart(facts, (states.RUNNING,))


def _restart(facts: JobFacts, path: tuple[str, ...]) -> Outcome:
    if facts.restarts >= facts.restart_limit:
        reason = f"Restarted {facts.restarts} times already; its restart_limit is {facts.restart_limit}"
        return Outcome((*path, states.FAILED), (reason,), facts.restarts)
    return Outcome((*path, states.RESTART_READY), ("",), facts.restarts + 1)
