"""The state machine: fourteen states and the one table of who may move a job from which state to which.

`db.store` builds its `WHERE state IN (…)` from this table; `--help` and the documentation print it. No other module lists
states.
"""

from __future__ import annotations

from .errors import InvalidStateError, did_you_mean

CREATED = "CREATED"
AWAITING_PARENTS = "AWAITING_PARENTS"
READY = "READY"
STAGED_IN = "STAGED_IN"
PREPROCESSED = "PREPROCESSED"
RUNNING = "RUNNING"
RUN_DONE = "RUN_DONE"
POSTPROCESSED = "POSTPROCESSED"
JOB_FINISHED = "JOB_FINISHED"
RUN_ERROR = "RUN_ERROR"
RUN_TIMEOUT = "RUN_TIMEOUT"
RESTART_READY = "RESTART_READY"
FAILED = "FAILED"
USER_KILLED = "USER_KILLED"

#: One sentence for each state, in the order in which a job enters them.
DESCRIPTIONS = {
    CREATED: "added; nothing has been done with it yet",
    AWAITING_PARENTS: "waits until its parents let it run, see run_when",
    READY: "its parents let it run; its files can be staged in",
    STAGED_IN: "its input files are in its working directory",
    PREPROCESSED: "ready to run",
    RUNNING: "held by a launcher, which runs it",
    RUN_DONE: "the program ended with exit code 0",
    POSTPROCESSED: "its postprocess script is done",
    JOB_FINISHED: "done, its results are where they belong",
    RUN_ERROR: "the program ended with another exit code, or could not be started",
    RUN_TIMEOUT: "the launcher's time ran out, or it was stopped, while the program ran",
    RESTART_READY: "ready to run again",
    FAILED: "given up; its history has the reason",
    USER_KILLED: "killed by the user; stays so until the user puts it back",
}

STATES = tuple(DESCRIPTIONS)
ACTIVE_STATES = (RUNNING,)
RUNNABLE_STATES = (PREPROCESSED, RESTART_READY)
END_STATES = (JOB_FINISHED, FAILED, USER_KILLED)
PROCESSABLE_STATES = tuple(s for s in STATES if s not in ACTIVE_STATES + RUNNABLE_STATES + END_STATES)

#: A job without a holder in one of these can be taken by a launcher, which first runs its preparation steps, if any.
UNPREPARED_STATES = (CREATED, READY, STAGED_IN)
#: The program has ended, but a step has to process the result.
UNSETTLED_STATES = (RUN_DONE, POSTPROCESSED, RUN_ERROR, RUN_TIMEOUT)

STEP, LAUNCHER, REAPER, HOOK, USER = "step", "launcher", "reaper", "hook", "user"
ACTORS = (STEP, LAUNCHER, REAPER, HOOK, USER)

_ANY = STATES
_NOT_RUNNING = tuple(s for s in STATES if s != RUNNING)

#: actor -> source -> targets. A user's change is refused anyway while a launcher holds the job (`db.store.advance`).
_EDGES: dict[str, dict[str, tuple[str, ...]]] = {
    STEP: {
        CREATED: (AWAITING_PARENTS, READY, STAGED_IN, PREPROCESSED, FAILED),
        AWAITING_PARENTS: (READY, FAILED),
        READY: (AWAITING_PARENTS, STAGED_IN, PREPROCESSED, FAILED),
        STAGED_IN: (AWAITING_PARENTS, PREPROCESSED, FAILED),
        PREPROCESSED: (AWAITING_PARENTS,),
        RESTART_READY: (AWAITING_PARENTS,),
        RUN_DONE: (POSTPROCESSED, JOB_FINISHED, FAILED),
        RUN_ERROR: (RESTART_READY, FAILED),
        RUN_TIMEOUT: (RESTART_READY, FAILED),
        POSTPROCESSED: (JOB_FINISHED, FAILED),
    },
    LAUNCHER: {
        PREPROCESSED: (RUNNING,),
        RESTART_READY: (RUNNING,),
        RUNNING: (RUN_DONE, RUN_ERROR, RUN_TIMEOUT),
    },
    # The others: the job has certainly not been started, and returns to the state from which it was claimed.
    REAPER: {RUNNING: (RESTART_READY, FAILED, *UNPREPARED_STATES, PREPROCESSED)},
    HOOK: dict.fromkeys((*UNPREPARED_STATES, RUN_DONE, RUN_ERROR, RUN_TIMEOUT), _NOT_RUNNING),
    USER: dict.fromkeys(_ANY, _NOT_RUNNING),
}


def check_state(state: str) -> str:
    """Return `state`, or raise InvalidStateError with the nearest state's name."""
    if state in DESCRIPTIONS:
        return state
    meant = did_you_mean(str(state).upper(), STATES)
    raise InvalidStateError(f"There is no state {state!r}.{meant}", hint=f"The states are: {' '.join(STATES)}")


def targets(source: str, actor: str) -> tuple[str, ...]:
    """Return the states to which `actor` may move a job that is in `source`."""
    return _EDGES[actor].get(source, ())


def sources(target: str, actor: str) -> tuple[str, ...]:
    """Return the states from which `actor` may move a job to `target`, for a `WHERE state IN (…)`."""
    return tuple(source for source in STATES if target in targets(source, actor))


def is_edge(source: str, target: str) -> bool:
    """Return whether any actor may move a job from `source` to `target`."""
    return any(target in targets(source, actor) for actor in ACTORS)
