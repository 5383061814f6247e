"""`self.job` of a class whose `run` or `shell_preamble` is called in a job, where no DB is opened."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..core import field_specs, parameters, states
from ..core.errors import BalsamError, did_you_mean
from . import class_loader, payload


class NeedsDatabase(BalsamError, AttributeError):
    """An attribute of a job needs the DB, which is not opened here."""


class JobView(SimpleNamespace):
    """`self.job` where `run` and `shell_preamble` are called: the fields of an `api.Job` as they were when the job was claimed.

    Assigning a field changes nothing in the DB. `workdir` is absolute, `state` is RUNNING, `app` is the application's name.

    Raises:
        NeedsDatabase: (an AttributeError) for other attributes of `api.Job`, such as `save`.
    """

    parameters: dict[str, Any]
    workdir: Path

    def resolve_workdir(self, data_path: str | os.PathLike[str]) -> Path:
        """Return the job's working directory, as `api.Job.resolve_workdir` does."""
        return Path(data_path) / self.workdir

    def get_parameters(self) -> dict[str, Any]:
        """Return the parameters with which `run` is called."""
        return dict(self.parameters)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        from ..api.jobs import Job

        if hasattr(Job, name):
            raise NeedsDatabase(
                f"self.job.{name} needs the DB, which `run` and `shell_preamble` do not open: compute ranks never do.",
                hint="Use it in a hook such as `postprocess`, or in the script that adds the jobs. What `run` returns is the "
                "job's result, and files in the working directory stay.",
            )
        raise AttributeError(f"self.job has no attribute {name!r}.{did_you_mean(name, vars(self))}")


def instance_of(given: payload.TaskPayload) -> Any:
    """Return an object of the job's class, with a view of the job.

    Raises:
        ApplicationLost. RemoteError: the job's parameters cannot be unpickled here.
    """
    made = class_loader.load(payload.class_ref(given.definition), as_main=True)
    found = parameters.decoded(
        field_specs.read_object(given.parameters)
    )  # after that, as they may be objects of the module's classes
    known = {**given.job, "workdir": Path(given.job["workdir"]), "state": states.RUNNING}
    known["parent_ids"] = frozenset(known.get("parent_ids", ()))
    known.pop("parameters", None)
    return made(JobView(**known, parameters=found))
