"""Why the jobs of a site wait or failed, in plain data: for `local.LocalSite`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core import states
from ..core.settings import Settings
from ..db.engine.connection import Connection, Database
from ..db.query import queries, reasons, select
from ..db.query.catalogue import NOTES, Group, Reason, make
from ..db.query.failures import failures
from ..db.query.filters import all_of
from ..service.surroundings import surroundings
from .interface import MAX_EXPLAINED, Row


def explain(db: Database, where: Mapping[str, Any], each: bool, budget_s: float | None) -> Row:
    """Return what `interface.SiteInterface.explain` specifies. One read transaction."""
    settings = Settings.load(db.directory)
    with db.read() as cx:
        around = surroundings(cx, db, settings)
        if each:
            return {"jobs": [_of_job(cx, number, around) for number in select.job_ids(cx, where, most=MAX_EXPLAINED)]}
        groups = reasons.explain_jobs(cx, where, around, budget_s) + failures(cx, where)
        groups += _killed(cx, where) if where else []
        return {"groups": as_rows(cx, sorted(groups, key=lambda group: -group.jobs))}


def as_rows(cx: Connection, groups: Sequence[Group]) -> list[Row]:
    """Return groups of jobs in plain data; see `interface.SiteInterface.explain`."""
    examples = queries.columns_of(cx, [one.example for one in groups if one.example is not None], ("job_id", "name"))
    return [_of_group(group, examples) for group in groups]


def _of_job(cx: Connection, number: int, around: reasons.Surroundings) -> Row:
    fields = ("job_id", "name", "workflow", "state")
    row = dict(zip(fields, queries.columns_of(cx, [number], fields)[number]))
    found = reasons.explain_job(cx, number, around)
    return {"id": number, **row, "reasons": list(map(of_reason_of_job, found))}


def of_reason_of_job(reason: Reason) -> Row:
    """Return a reason of one job in plain data; see `interface.SiteInterface.explain`."""
    return {**_of_reason(reason), "is_note": reason.code in NOTES}


def _of_reason(reason: Reason) -> Row:
    return {"code": reason.code, "reason": reason.text, "of": reason.who, "remedy": reason.remedy}


def _of_group(group: Group, examples: Mapping[int, tuple[Any, ...]]) -> Row:
    job_id, name = (None, "") if group.example is None else examples[group.example]
    return {**_of_reason(group.reason), "jobs": group.jobs, "example": job_id, "example_name": name}


def _killed(cx: Connection, where: Mapping[str, Any]) -> list[Group]:
    """Return the matching jobs that were killed; the user knows, so they are shown only where conditions are given."""
    only = all_of(dict(where), {"state": [states.USER_KILLED]})
    number = select.count_jobs(cx, only)
    return [Group(make("killed", why=""), number, select.job_ids(cx, only, most=1)[0])] if number else []
