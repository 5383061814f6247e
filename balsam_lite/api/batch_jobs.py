"""`BatchJob` and `BatchJob.objects`: launchers in the queues of schedulers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..core import field_specs
from ..db.query.fields import BATCH_JOB_OF_SITE
from ..schedulers.base import Partition
from . import site_handle
from .query import Manager
from .records import (
    AT_CREATION,
    SiteAttribute,
    SiteRecord,
    StateAttribute,
    Word,
    column,
    known,
    naive,
    site_id,
    site_name,
    word,
)

if TYPE_CHECKING:
    from datetime import datetime


class JobMode(Word):
    """How a launcher starts jobs."""

    serial, mpi, mixed = field_specs.JOB_MODES


class BatchJobState(Word):
    """The state of a batch job."""

    pending_submission = "pending_submission"
    queued = "queued"
    running = "running"
    finished = "finished"
    submit_failed = "submit_failed"
    pending_deletion = "pending_deletion"


#: A part of a batch job's nodes: BatchJobPartition(job_mode=…, num_nodes=…, filter_tags={}).
BatchJobPartition = Partition


def _partitions(value: Any) -> list[dict[str, Any]] | None:
    """Convert partitions, or dicts with their fields, to dicts."""
    if value is None:
        return None
    try:
        parts = [one if isinstance(one, Partition) else Partition.from_fields(one) for one in value]
    except TypeError:
        raise ValueError(f"must be a list of BatchJobPartition, not {value!r}") from None
    return [Partition.from_fields(part.as_fields()).as_fields() for part in parts]


def _shown_partitions(value: list[dict[str, Any]] | None) -> list[Partition] | None:
    return None if value is None else [Partition.from_fields(one) for one in value]


class BatchJob(SiteRecord):
    """A batch job of a site. `save()` and `objects.create` submit it at once."""

    __slots__ = ()

    num_nodes: int = column("num_nodes", None, AT_CREATION)
    wall_time_min: int = column("wall_time_minutes", None, AT_CREATION)
    job_mode: JobMode = word(JobMode, AT_CREATION)
    site_id: int | None = site_id()
    site_name: str | None = site_name()
    project: str = column("name", "", AT_CREATION)
    queue: str = column("name", "", AT_CREATION)
    optional_params: dict[str, Any] = column("data", when=AT_CREATION)
    filter_tags: dict[str, str] = column("tags", when=AT_CREATION)
    partitions: list[BatchJobPartition] | None = SiteAttribute(  # type: ignore[assignment]
        _partitions, None, AT_CREATION, _shown_partitions
    )
    scheduler_id: Any = known()
    # Can be set to pending_deletion, which cancels the batch job.
    state: BatchJobState | None = StateAttribute(BatchJobState)  # type: ignore[assignment]
    status_info: dict[str, Any] = known(default={})
    start_time: datetime | None = known(naive)
    end_time: datetime | None = known(naive)

    _KIND = "batch_job"
    _SHOWN = ("id", "scheduler_id", "queue", "project", "num_nodes", "wall_time_min", "state", "start_time", "end_time")
    _REFUSED: ClassVar = {
        "delete": (
            NotImplementedError,
            'Batch jobs are not deleted by query: cancel them with update(state="pending_deletion"), or one with its delete().',
        )
    }
    _REQUIRED = ("num_nodes", "wall_time_min", "job_mode")
    _TABLE = BATCH_JOB_OF_SITE
    _ORDERS = ("start_time", "end_time", "id", "state", "queue", "num_nodes", "wall_time_min")

    objects: ClassVar[Manager[BatchJob]]

    def _create(self) -> None:
        handle = site_handle.one_site(self._changed)
        self._created(handle.interface.create("batch_job", [site_handle.without_site(self._changed)])[0], handle)

    def delete(self) -> None:
        """Cancel it; the row stays, with the way it ended. A batch job that has ended is left unchanged.

        Raises:
            DoesNotExist: it was never submitted. CancelFailed, PollFailed: the scheduler does not cancel it.
        """
        handle = self._site
        handle.interface.delete("batch_job", {"id": self._row["id"]})
        self.refresh_from_db()


BatchJob.objects = Manager(BatchJob)
