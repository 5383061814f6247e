"""`balsam.api`: that of `balsam_lite.api`, with jobs whose working directory may be that of another one, as in Balsam 0.7."""

from __future__ import annotations

from typing import Any

from .. import api
from ..api import jobs
from ..core.errors import InvalidSpec

__all__ = [*api.__all__]  # noqa: PLE0604


class Job(jobs.Job):
    """A job as Balsam 0.7 had it: several of one site may have the same `workdir`, unless they are added in one call."""

    __slots__ = ()

    def __init__(self, *workdir: Any, **fields: Any) -> None:
        super().__init__(*workdir, **{"allow_shared_workdir": True, **fields})


class _SharingManager(jobs.JobManager):
    def bulk_create(self, jobs: list[Any], allow_shared_workdir: bool = False, on_duplicate: str = "refuse") -> list[Any]:
        """Add many jobs; see `api.jobs.JobManager.bulk_create`. Raises InvalidSpec: two of them have the same workdir."""
        seen: dict[tuple[str, str], int] = {}
        for place, job in enumerate(jobs, 1):
            key = str(job.site_name or job.site_id or job.app_id), str(job.workdir)
            if seen.setdefault(key, place) != place and not allow_shared_workdir:
                first = seen[key]
                raise InvalidSpec(
                    f"Job number {place}: Workdirs must be unique for each call to bulk-create Jobs. "
                    f"Job number {first} has this one too: {job.workdir}"
                )
        return super().bulk_create(jobs, allow_shared_workdir, on_duplicate)


Job.objects = _SharingManager(Job)


def __getattr__(name: str) -> Any:
    if name == "models":
        import sys

        return sys.modules[__name__]
    if name in __all__:
        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
