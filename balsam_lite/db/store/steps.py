"""Steps in the store: preparing jobs and settling results, which take time and so hold a job between transactions.

A job that is held for a step keeps its state until the step has ended; then `finish` moves it on, unless the job's own
script or the user has done so. All functions run inside the caller's write transaction.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ...core import causes, states
from ...core.errors import MachineTrouble
from ..engine.schema import UNSETTLED
from . import claims, exit_rules, graph, large_writes
from .claims import Claim
from .exit_rules import JobFacts
from .suspects import Suspect
from .transitions import Transition, apply, id_list


class StepEnd(NamedTuple):
    """How a step ended."""

    claim: Claim
    reached: tuple[str, ...]  # the states that it has earned the job: STAGED_IN, PREPROCESSED, POSTPROCESSED, JOB_FINISHED
    failure: str = ""  # why it failed
    cause: str = ""  # the same in one of few texts, see `core.causes`
    interrupted: bool = False  # the next launcher has to do it again
    trouble: MachineTrouble | None = None  # because of which it was interrupted
    note: str = ""  # on its success, for the job's history
    start_after: int | None = None  # then in microseconds: it is held back until then
    is_death: bool = False  # the spawn helper of its script died


def finish(cx: sqlite3.Connection, lease: int, ended: Iterable[StepEnd], now_us: int) -> Counter[str]:
    """Move jobs on whose step has ended, and release them.

    A job in another state than at the step's start was moved by its script or the user, and keeps that state. Return the number
    of these jobs by final state.
    """
    ends = {end.claim.job: end for end in ended}
    if not ends:
        return Counter()
    query = "SELECT id, state, return_code FROM job WHERE lease = ? AND id IN (SELECT value FROM json_each(?))"
    held, moves = {}, []
    for job, state, return_code in cx.execute(query, (lease, id_list(ends))).fetchall():
        held[job], end = state, ends[job]
        if state == end.claim.state and not end.interrupted:
            moves.append(_move(end, return_code, now_us))
    apply(cx, moves, states.STEP, "launcher_deaths = 0")
    dead = id_list(job for job, state in held.items() if ends[job].is_death and state == ends[job].claim.state)
    if dead != "[]":
        was_alone = cx.execute("SELECT count(*) FROM job INDEXED BY job_lease WHERE lease = ?", (lease,)).fetchone()[0] == 1
        facts = claims.facts_of(cx, "job.id IN (SELECT value FROM json_each(?))", (dead,))
        claims.count_step_deaths(cx, facts, now_us, was_alone)
    later = [(ends[job].start_after, job) for job in held if ends[job].start_after is not None]
    cx.executemany("UPDATE job SET start_after = ? WHERE id = ?", later)
    claims.release(cx, lease, held, now_us)
    return Counter(state for job, state in held.items() if state != ends[job].claim.state and state in states.END_STATES)


def _move(end: StepEnd, return_code: int | None, now_us: int) -> Transition:
    path = (end.claim.state, *end.reached)
    if not end.failure and path[-1] in (states.RUN_ERROR, states.RUN_TIMEOUT):
        cause = causes.of_exit(return_code) if path[-1] == states.RUN_ERROR else causes.TOLD_TO_STOP
        end = end._replace(failure=exit_rules.UNHANDLED, cause=cause)
    if end.failure:
        # A job cannot fail from where it is ready to run, but it never got there.
        path = (*(state for state in path if state != states.PREPROCESSED), states.FAILED)
    return Transition(end.claim.job, path, now_us, (*[""] * (len(path) - 2), end.failure or end.note), cause=end.cause)


def settle_abandoned(cx: sqlite3.Connection, lease: int, capacity: int, now_us: int) -> list[Claim]:
    """Settle jobs whose program ended but whose holder left before settling them.

    Claim and return up to `capacity` of those that need a step for this.
    """
    limit = 1000 + capacity
    facts = claims.facts_of(cx, f"{_UNSETTLED_JOB} LIMIT ?", (limit,), "INDEXED BY job_unsettled")
    return _settle(cx, lease, facts, capacity, now_us)


def settle_suspects(cx: sqlite3.Connection, lease: int, group: Iterable[Suspect], capacity: int, now_us: int) -> list[Claim]:
    """Settle those of the suspects whose program has ended, like `settle_abandoned`."""
    jobs = [one.entry.job for one in group if one.is_unsettled]
    facts = claims.facts_of(cx, "job.id IN (SELECT value FROM json_each(?))", (id_list(jobs),)) if jobs else []
    return _settle(cx, lease, facts, capacity, now_us)


def _settle(cx: sqlite3.Connection, lease: int, facts: Sequence[JobFacts], capacity: int, now_us: int) -> list[Claim]:
    unfinished = large_writes.unfinished(cx, (fact.job for fact in facts)) if facts else ()
    found = [(fact.job, exit_rules.settle(fact, fact.state)) for fact in facts if fact.job not in unfinished]
    settled = [(job, outcome) for job, outcome in found if not outcome.needs_step]
    moves = [Transition(job, outcome.path, now_us, outcome.messages, cause=outcome.cause) for job, outcome in settled]
    used_up = [(outcome.restarts, outcome.retries) for _, outcome in settled]
    apply(cx, moves, states.STEP, "restarts = ?, retries = ?", used_up)
    graph.released(cx, [(m.job, m.path[-1]) for m in moves], now_us)
    taken = [job for job, outcome in found if outcome.needs_step][:capacity]
    claims.hold_for_step(cx, lease, taken)
    return claims.claims_of(cx, taken) if taken else []


_UNSETTLED_JOB = (
    UNSETTLED.replace("lease IS", "job.lease IS").replace("state IN", "job.state IN") + " AND job.start_after IS NULL"
)
