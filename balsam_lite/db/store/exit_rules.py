"""Rules for the states that follow when a job's program has ended. Pure.

Nothing here accesses the database; `claims`, `steps` and `leases` call these functions.
"""

from __future__ import annotations

from typing import NamedTuple

from ...core import causes, states

UNHANDLED = "Error handling didn't fix job state: marking FAILED"


class JobFacts(NamedTuple):
    """The input of the rules, read in the transaction that applies them."""

    job: int
    state: str
    lease: int | None
    attempt: int
    restarts: int
    restart_limit: int
    auto_timeout_retry: int
    return_code: int | None
    max_retries: int
    retry_codes: str  # as `field_specs` stores them; "": any
    retries: int
    post_error_handler: int
    post_timeout_handler: int
    stages_out: int
    has_postprocess: int
    has_handle_error: int = 0
    has_handle_timeout: int = 0
    exit_0_is_done_after_stop: int = 0  # of the job or its application
    told_to_stop: int | None = None


#: The columns of `job`, with `app` joined to it, that make a `JobFacts`.
FACTS = (
    "job.id, job.state, job.lease, job.attempt, job.restarts, job.restart_limit, job.auto_timeout_retry, job.return_code, "
    "job.max_retries, job.retry_codes, job.retries, job.post_error_handler, job.post_timeout_handler, "
    "job.stage_out_url <> '' AND job.stage_out_files <> '', coalesce(app.postprocess, '') <> '', "
    "coalesce(app.handle_error, '') <> '', coalesce(app.handle_timeout, '') <> '', "
    "job.exit_0_is_done_after_stop OR coalesce(app.exit_0_is_done_after_stop, 0), job.told_to_stop"
)


class NextStates(NamedTuple):
    """The states that follow, a message for each, and the restarts and retries used up by then."""

    path: tuple[str, ...]
    messages: tuple[str, ...]
    restarts: int
    retries: int
    needs_step: bool = False  # a script or a copy has to decide what comes after the last state of the path
    cause: str = ""  # of a path that ends in FAILED, see `core.causes`


def result_of(facts: JobFacts, result: str, told_us: int | None) -> str:
    """Return the result of a run that may have been told to stop, at `told_us`.

    A run that was cut short never counts as complete: even with exit code 0 it is a RUN_TIMEOUT, unless the job or its
    application declares that exit code 0 means done.
    """
    is_cut_short = result == states.RUN_DONE and told_us is not None and not facts.exit_0_is_done_after_stop
    return states.RUN_TIMEOUT if is_cut_short else result


def after_run(facts: JobFacts, result: str, return_code: int | None) -> NextStates:
    """Return the path from RUNNING through `result` (RUN_DONE, RUN_ERROR or RUN_TIMEOUT) to the state where the job stays."""
    follow = settle(facts._replace(return_code=return_code), result)
    return follow._replace(path=(states.RUNNING, *follow.path))


def settle(facts: JobFacts, result: str) -> NextStates:
    """Return the path from a result to the state where the job stays; `result` is the first state of the path."""
    if result == states.RUN_DONE:
        return _settled(facts, result, states.JOB_FINISHED, facts.has_postprocess or facts.stages_out)
    if result == states.POSTPROCESSED:
        return _settled(facts, result, states.JOB_FINISHED, facts.stages_out)
    if result == states.RUN_ERROR:
        return _after_error(facts)
    handled = facts.has_handle_timeout or (facts.post_timeout_handler and facts.has_postprocess)
    if facts.auto_timeout_retry and not handled:
        return restart(facts, (result,))
    return _settled(facts, result, states.FAILED, handled, causes.TOLD_TO_STOP)


def _after_error(facts: JobFacts) -> NextStates:
    """Return the path after an error or a timeout: retries first, then a script once these are used up.

    The application's handle_error and handle_timeout are always called, its postprocess only if the job's flags request it.
    """
    if _is_retried(facts):
        note = f"Retry {facts.retries + 1} of {facts.max_retries}"
        return NextStates((states.RUN_ERROR, states.RESTART_READY), (note,), facts.restarts, facts.retries + 1)
    handled = facts.has_handle_error or (facts.post_error_handler and facts.has_postprocess)
    return _settled(facts, states.RUN_ERROR, states.FAILED, handled, causes.of_exit(facts.return_code))


def _settled(facts: JobFacts, result: str, end: str, needs_step: object, cause: str = "") -> NextStates:
    path = (result,) if needs_step else (result, end)
    return NextStates(path, ("",), facts.restarts, facts.retries, bool(needs_step), cause)


def _is_retried(facts: JobFacts) -> bool:
    codes = facts.retry_codes.split()
    return facts.retries < facts.max_retries and (not codes or str(facts.return_code) in codes)


def after_lost_holder(facts: JobFacts, has_started: bool = True) -> NextStates:
    """Return the path of a RUNNING job whose launcher or node died."""
    if not has_started:
        return NextStates((states.RUNNING, states.RESTART_READY), ("",), facts.restarts, facts.retries)
    return restart(facts, (states.RUNNING,))


def after_death(facts: JobFacts, deaths: int, was_alone: bool) -> NextStates:
    """Return the path of a job that was running when its launcher died; `deaths` includes this death.

    This counts as no restart. A job that ran alone (`suspects`) has caused the death.
    """
    if was_alone:
        reason = f"Its launcher died {deaths} times while it ran, the last time with no other job beside it"
        path = (states.RUNNING, states.FAILED)
        return NextStates(path, (reason,), facts.restarts, facts.retries, cause=causes.LAUNCHER_DIED)
    return NextStates((states.RUNNING, states.RESTART_READY), ("",), facts.restarts, facts.retries)


def restart(facts: JobFacts, path: tuple[str, ...]) -> NextStates:
    """Return `path` (one state) followed by RESTART_READY, which counts as one restart, or by FAILED at the job's limit."""
    if facts.restarts >= facts.restart_limit:
        reason = f"Restarted {facts.restarts} times already; its restart_limit is {facts.restart_limit}"
        path = (*path, states.FAILED)
        return NextStates(path, (reason,), facts.restarts, facts.retries, cause=causes.RESTART_LIMIT)
    return NextStates((*path, states.RESTART_READY), ("",), facts.restarts + 1, facts.retries)
