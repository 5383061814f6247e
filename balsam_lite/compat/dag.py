"""`balsam.launcher.dag`: that of `launcher.dag`, with the models, the keywords and the ids of Balsam 0.3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..launcher import dag
from ..launcher.dag import (
    add_dependencies,
    add_dependency,
    detect_circular,
    get_active_database,
    get_database_paths,
    kill,
    submit,
    transaction,
)
from .models import ApplicationDefinition, BalsamJob, F, JobId, Q, by_present_name

if TYPE_CHECKING:
    from .models import _ApplicationSet, _OldJobSet

__all__ = [  # noqa: F822  (`__getattr__` finds what is not defined here)
    "ERROR", "JOB_ID", "LAUNCHER_NODES", "TIMEOUT", "ApplicationDefinition", "BalsamJob", "F", "Q", "add_app",
    "add_dependencies", "add_dependency", "add_job", "children", "clone", "current_job", "detect_circular",
    "get_active_database", "get_apps", "get_database_paths", "kill", "parents", "spawn_child", "submit", "transaction",
    "wf_from_template",
]  # fmt: skip


def add_job(name: str, workflow: str = "", application: str = "", *positional: Any, **fields: Any) -> BalsamJob:
    """Add a job as `launcher.dag.add_job` does; fields may have the names of Balsam 0.3, such as `procs_per_node`.

    None is as good as no value.
    """
    given = {field: value for field, value in fields.items() if value is not None}
    return BalsamJob.of(dag.add_job(name, workflow, application, *positional, **by_present_name(given)))


def clone(job: Any, **fields: Any) -> BalsamJob:
    """Return a copy of a job that is not in the DB; see `launcher.dag.clone`."""
    return BalsamJob.of(dag.clone(job, **by_present_name(fields)))


def spawn_child(**fields: Any) -> BalsamJob:
    """Add a copy of the current job as its child; see `launcher.dag.spawn_child`."""
    return BalsamJob.of(dag.spawn_child(**by_present_name(fields)))


def wf_from_template(source_wf: str, new_wf: str, **changes: Mapping[str, Any]) -> _OldJobSet:
    """Copy a workflow; see `launcher.dag.wf_from_template`."""
    copies = dag.wf_from_template(source_wf, new_wf, **{name: by_present_name(one) for name, one in changes.items()})
    return BalsamJob.objects.using(copies.database).filter(id__in=list(copies.numbers()))


def add_app(name: str, executable: str, *positional: Any, **fields: Any) -> ApplicationDefinition:
    """Register an application, or overwrite it; see `launcher.dag.add_app`."""
    return ApplicationDefinition.of(dag.add_app(name, executable, *positional, **fields))


def get_apps() -> _ApplicationSet:
    """Return all applications of the active DB."""
    return ApplicationDefinition.objects.all()


#: The current job, which stays the same object.
_current: dict[str, BalsamJob] = {}


def __getattr__(name: str) -> Any:
    if name in ("current_job", "parents", "children"):
        native = dag.current_job
        if native is None:
            return None
        job = _current.get(native.job_id) or _current.setdefault(native.job_id, BalsamJob.of(native))
        return job if name == "current_job" else getattr(job, f"get_{name}")()
    if name == "JOB_ID":
        return JobId(dag.JOB_ID) if dag.JOB_ID else ""
    if name in ("ERROR", "LAUNCHER_NODES", "TIMEOUT"):
        return getattr(dag, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
