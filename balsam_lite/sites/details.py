"""Read all about single jobs, for people: for `local.LocalSite`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..core import field_specs, job_files
from ..core.errors import TemplateError
from ..core.settings import Settings
from ..db.engine import directories
from ..db.engine.connection import Connection, Database
from ..db.query import edits, queries, reasons, runs, select, text_forms
from ..db.store import remote_parents
from ..service.surroundings import surroundings
from .explain import of_reason_of_job
from .interface import Row

#: Maximum number of parents and of children to name.
_MAX_RELATIVES = 5
#: Columns that can be very long, or are shown otherwise.
_FIELDS = tuple(name for name in select.LISTED if name not in ("parent_ids", "remote_parents", "parents", "children"))


def read(db: Database, numbers: Sequence[int]) -> list[Row]:
    """Return all about these jobs, as `interface.SiteInterface.details` specifies, as of one moment."""
    settings = Settings.load(db.directory)
    with db.read() as cx:
        around = surroundings(cx, db, settings)
        found = select.jobs_page(cx, {"id": list(numbers)}, _FIELDS, 0, len(numbers))
        edited = edits.edits(cx, numbers)
        sources = queries.sources_of(cx, numbers)
        for row in found:
            row["edits"] = [edit for edit in edited if edit["job"] == row["id"]]
            row["source"] = sources.get(row["id"])
            row["reasons"] = list(map(of_reason_of_job, reasons.explain_job(cx, row["id"], around)))
            row["command"] = _command(cx, row)
            for key, kind in (("parent_jobs", "parent"), ("child_jobs", "child")):
                counts, some = queries.relatives_by_state(cx, row["id"], kind, _MAX_RELATIVES)
                row[key] = {"states": counts, "some": some}
            for there in remote_parents.of_child(cx, row["id"]):
                counts, some = row["parent_jobs"].values()
                counts[there.state] = counts.get(there.state, 0) + 1
                some.append({"id": there.number, "job_id": there.job_id, "name": there.name, "state": there.state})
                some[-1]["site"] = there.site
            del row["parent_jobs"]["some"][_MAX_RELATIVES:]
            row["attempts"] = [run.as_row() for run in runs.runs_of(cx, row["id"])]
            row["launchers"] = runs.launcher_records(cx, {run["launcher"] for run in row["attempts"]} - {None})
    for row in found:
        row["directory"] = os.path.join(db.directory, directories.DATA, row["workdir"])
        output = field_specs.output_name(row["name"])
        row["output"] = job_files.path_of(row["directory"], output, output, row["job_id"])
    return found


def _command(cx: Connection, row: Mapping[str, Any]) -> str | None:
    """Return the command line of a job without the MPI start command; None if it has no application."""
    (app, *_) = (*select.apps(cx, {"name": row["app"]}), None)
    if app is None:
        return None
    if app["command_template"]:
        from ..launcher import template

        optional = {name: about["default"] for name, about in app["parameters"].items() if "default" in about}
        try:
            return template.render(app["command_template"], {**optional, **row["parameters"]}, for_shell=True).text
        except TemplateError:
            return str(app["command_template"])
    return text_forms.executed_command(text_forms.program_of(app), row["args"])
