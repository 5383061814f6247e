"""The Python interface of the workshop's page (Balsam 0.7): jobs, applications, batch jobs and events of one or more sites.

Importing it does nothing; each name is loaded when it is first asked for. `site_config` is looked up each time: it is that of
the active DB, or None.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import models
    from .application import ApplicationDefinition as ApplicationDefinition
    from .apps import App as App
    from .batch_jobs import BatchJob as BatchJob
    from .batch_jobs import BatchJobPartition as BatchJobPartition
    from .enums import BatchJobState as BatchJobState
    from .enums import JobMode as JobMode
    from .enums import JobState as JobState
    from .events import EventLog as EventLog
    from .jobs import Job as Job
    from .sites import Site as Site
    from .sites import SiteConfig

    site_config: SiteConfig | None

#: Name -> the module that has it.
_PLACES = {
    "App": "apps", "ApplicationDefinition": "application", "BatchJob": "batch_jobs", "BatchJobPartition": "batch_jobs",
    "BatchJobState": "enums", "EventLog": "events", "Job": "jobs", "JobMode": "enums", "JobState": "enums", "Site": "sites",
}  # fmt: skip

__all__ = [
    "App", "ApplicationDefinition", "BatchJob", "BatchJobPartition", "BatchJobState", "EventLog", "Job", "JobMode", "JobState",
    "Site", "models", "site_config",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "site_config":
        return import_module(f"{__name__}.sites").site_config()
    if name == "models":
        return import_module(f"{__name__}.models")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
