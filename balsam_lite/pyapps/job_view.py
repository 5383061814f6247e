"""`self.job` of a class whose `run` or `shell_preamble` is called in a job, where no DB is opened."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..core import states
from . import class_loader, payload


class JobView(SimpleNamespace):
    """`self.job` of a class whose function runs: what the launcher knows of the job. A change of it changes nothing."""

    workdir: Path  # absolute

    def resolve_workdir(self, data_path: str | os.PathLike[str]) -> Path:
        """Return its working directory, as `api.Job.resolve_workdir` does."""
        return Path(data_path) / self.workdir

    def get_parameters(self) -> dict[str, Any]:
        """Return the parameters with which `run` is called."""
        return dict(self.parameters)


def instance_of(given: payload.TaskPayload) -> Any:
    """Return an object of the job's class, with a view of the job.

    Raises:
        ApplicationLost. RemoteError: the job's parameters cannot be unpickled here.
    """
    made = class_loader.load(payload.class_ref(given.definition), as_main=True)
    from ..api.parameters import decoded  # after that, because they may be objects of the module's classes

    known = {**given.job, "workdir": Path(given.job["workdir"]), "state": states.RUNNING}
    return made(JobView(**known, parameters=decoded(json.loads(given.parameters))))
