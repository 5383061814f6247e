"""The Python interface of the workshop's page (Balsam 0.7): jobs, applications, batch jobs and events of one or more sites.

Importing it does nothing; each name is loaded when it is first used. `site_config` is looked up each time: it is that of
the active DB, or None.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..db.query.filters import F as F
    from ..db.query.filters import Q as Q
    from .application import App as App
    from .batch_jobs import BatchJob as BatchJob
    from .batch_jobs import BatchJobPartition as BatchJobPartition
    from .batch_jobs import BatchJobState as BatchJobState
    from .batch_jobs import JobMode as JobMode
    from .events import EventLog as EventLog
    from .jobs import ApplicationDefinition as ApplicationDefinition
    from .jobs import Job as Job
    from .jobs import JobState as JobState
    from .sites import Site as Site
    from .sites import SiteConfig

    models: Any
    site_config: SiteConfig | None

#: Name -> the module that defines it.
_PLACES = {
    "App": "application", "ApplicationDefinition": "jobs", "BatchJob": "batch_jobs", "BatchJobPartition": "batch_jobs",
    "BatchJobState": "batch_jobs", "EventLog": "events", "Job": "jobs", "JobMode": "batch_jobs", "JobState": "jobs",
    "Site": "sites", "F": ".db.query.filters", "Q": ".db.query.filters",
}  # fmt: skip

__all__ = [
    "App", "ApplicationDefinition", "BatchJob", "BatchJobPartition", "BatchJobState", "EventLog", "F", "Job", "JobMode",
    "JobState", "Q", "Site", "models", "site_config",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "site_config":
        return import_module(f"{__name__}.sites").site_config()
    if name == "models":  # `models.App` is `App`
        return sys.modules[__name__]
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
