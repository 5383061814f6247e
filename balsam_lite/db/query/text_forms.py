"""The printed forms of a job and of an application, as the slides show them. Pure: rows in, text out.

Here rather than with the commands because `repr(job)` prints the same form. What prints to a terminal escapes the text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...core import field_specs

#: Width of the labels of a job's and of an application's form, and the lines below their headings.
_JOB_LABEL, _APP_LABEL = 32, 15
_JOB_DASHES, _APP_DASHES = "-" * 46, "-" * 23

#: The job form ends with this field; those after it are shown where they differ from their defaults.
_LAST_FIELD = "data"
_LABELS = {"lease": "lock"}


def source_of(definition: str | Mapping[str, Any]) -> str:
    """Return `FILE:CLASS`, the location of an application's Python class; "" if it has none."""
    found = json.loads(definition or "{}") if isinstance(definition, str) else definition
    return f"{found.get('file') or '(pickled)'}:{found.get('class', '')}" if found else ""


def program_of(app: Mapping[str, Any]) -> str:
    """Return the program of an application: its command line or template, or the class whose `run` is called."""
    return str(app["executable"] or app["command_template"] or source_of(app["definition"]))


def executed_command(executable: str, args: str) -> str:
    """Return the command line of a job, as it was typed."""
    return " ".join(filter(None, (executable, args)))


def job_form(job: Mapping[str, Any], parents: Sequence[str], executable: str | None, data_directory: str) -> str:
    """Return all fields of one job.

    Args:
        job: its columns in stored form. parents: UUIDs. executable: the `program_of` its application, None if there is none.
    """
    missing = f"NO APPLICATION MATCHING {job['application']}"
    command = missing if executable is None else executed_command(executable, job["args"])
    lines = [f"BalsamJob {job['job_id']}", _JOB_DASHES]
    lines += [f"{label + ':':{_JOB_LABEL}}{value}".rstrip() for label, value in _job_values(job, parents)]
    lines.append(f"{'  *** Executed command:':{_JOB_LABEL}}{command}".rstrip())
    lines.append(f"{'  *** Working directory:':{_JOB_LABEL}}{os.path.join(data_directory, job['workdir'])}")
    return "\n".join(lines)


def _job_values(job: Mapping[str, Any], parents: Sequence[str]) -> Iterable[tuple[str, str]]:
    in_form = True
    for field in field_specs.JOB_FIELDS:
        value = job[field.name]
        if in_form or (field.settable and value != field.default):
            yield _LABELS.get(field.name, field.name), _job_value(field, value)
        if field.name == "lease":
            yield "parents", json.dumps(list(parents))
        in_form = in_form and field.name != _LAST_FIELD


def _job_value(field: field_specs.Field, value: Any) -> str:
    if field.kind == "flag":
        return str(bool(value))
    if field.kind == "environ":
        return ":".join(f"{name}={word}" for name, word in field_specs.masked(json.loads(value)).items())
    return "" if value is None and field.name == "lease" else str(value)


def app_form(app: Mapping[str, Any]) -> str:
    """Return all fields of one application; fields that are not on the slides only if they are set."""
    values = [("Name", app["name"]), ("Description", app["description"]), ("Executable", app["executable"])]
    values += [("Template", app["command_template"])] if app["command_template"] else []
    source = source_of(app["definition"])
    values += [("Python class", source)] if source else []
    values += [("Preprocess", app["preprocess"]), ("Postprocess", app["postprocess"])]
    values += [("Envscript", app["envscript"])] if app["envscript"] else []
    values += [("After a stop", "exit code 0 is done")] if app["exit_0_is_done_after_stop"] else []
    values += [("Background", "processes that a run leaves are kept")] if app["keep_background"] else []
    lines = [f"{label + ':':{_APP_LABEL}}{value}".rstrip() for label, value in values]
    return "\n".join([f"Application {app['id']}:", _APP_DASHES, *lines])
