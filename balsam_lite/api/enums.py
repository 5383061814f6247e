"""Words of the workshop's interface that have a fixed choice; each is equal to its plain text, and prints as that."""

from __future__ import annotations

from enum import Enum

from ..core import field_specs, states


class _Word(str, Enum):
    """Python's own str enums print as `JobState.RUNNING` in one version and as `RUNNING` in the next."""

    def __str__(self) -> str:
        return str(self.value)

    def __format__(self, how: str) -> str:
        return format(str(self.value), how)


class JobState(_Word):
    """The fourteen states of a job. Each has its name in small letters, too, as Balsam 0.7 has it: `JobState.job_finished`."""

    CREATED = created = states.CREATED
    AWAITING_PARENTS = awaiting_parents = states.AWAITING_PARENTS
    READY = ready = states.READY
    STAGED_IN = staged_in = states.STAGED_IN
    PREPROCESSED = preprocessed = states.PREPROCESSED
    RUNNING = running = states.RUNNING
    RUN_DONE = run_done = states.RUN_DONE
    POSTPROCESSED = postprocessed = states.POSTPROCESSED
    JOB_FINISHED = job_finished = states.JOB_FINISHED
    RUN_ERROR = run_error = states.RUN_ERROR
    RUN_TIMEOUT = run_timeout = states.RUN_TIMEOUT
    RESTART_READY = restart_ready = states.RESTART_READY
    FAILED = failed = states.FAILED
    USER_KILLED = user_killed = states.USER_KILLED


class JobMode(_Word):
    """How a launcher starts jobs."""

    serial, mpi, mixed = field_specs.JOB_MODES


class BatchJobState(_Word):
    """What is known of a batch job."""

    pending_submission = "pending_submission"
    queued = "queued"
    running = "running"
    finished = "finished"
    submit_failed = "submit_failed"
    pending_deletion = "pending_deletion"
