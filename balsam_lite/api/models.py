"""The models under one name: `models.App.objects.get(site_name=…, name=…)`."""

from __future__ import annotations

from .apps import App
from .batch_jobs import BatchJob
from .events import EventLog
from .jobs import Job
from .sites import Site

__all__ = ["App", "BatchJob", "EventLog", "Job", "Site"]
