"""What the plots need of a site, read through its site in pages: a million events are never in memory as rows."""

from __future__ import annotations

from array import array
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..core.states import CREATED, JOB_FINISHED, RUNNING
from ..sites.interface import SiteInterface
from .timeline import Changes

#: Rows of jobs in a page.
_PAGE = 20_000
#: So many jobs are named in the question for events; of more, the others' events are left out here.
_FEW_JOBS = 10_000
#: Conditions on jobs that can be put to events as they are, and their names there.
_OF_EVENTS = {"id": "job_id", "tags": "tags"}

#: Which events a plot needs: those that leave or enter one of these states; () is all of them.
TOUCHING: dict[str, tuple[str, ...]] = {
    "throughput": (RUNNING, JOB_FINISHED),
    "utilization": (RUNNING,),
    "gantt": (RUNNING,),
    "states": (),
}


class PlotData(NamedTuple):
    """What was read of one site."""

    changes: Changes
    batch_jobs: list[tuple[int | None, int | None, int]]  # start, end, nodes


def read(site: SiteInterface, kind: str, where: Mapping[str, Any]) -> PlotData:
    """What that kind of plot needs of the jobs that match, and for a utilization of the site's batch jobs.

    Opens a transaction for each page. Jobs that are added meanwhile are left out.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError; SiteUnreachable and DatabaseError.
    """
    changes = Changes()
    by_event = {_OF_EVENTS[name]: value for name, value in where.items() if name in _OF_EVENTS}
    wanted: Container[int] | None = None
    if kind == "states" or len(by_event) < len(where):
        found = array("q")
        for page in _jobs(site, where):
            found.extend(row["id"] for row in page)
            if kind == "states":
                changes.add((row["created"], "", CREATED, row["id"], None) for row in page)
        if len(found) <= _FEW_JOBS:
            by_event = {"job_id": list(found)}
        wanted = set(found) if where else range(found[-1] + 1 if found else 0)
    for events in _events(site, by_event, TOUCHING[kind]):
        changes.add(event[:6] for event in events if wanted is None or event[3] in wanted)
    batch_jobs = site.select("batch_job") if kind == "utilization" else []
    return PlotData(changes, [(row["start_time"], row["end_time"], row["num_nodes"]) for row in batch_jobs])


def _jobs(site: SiteInterface, where: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    last = 0
    while True:
        page = site.page(where, ("id", "created"), last, _PAGE)
        yield page
        if len(page) < _PAGE:
            return
        last = page[-1]["id"]


def _events(site: SiteInterface, where: Mapping[str, Any], touching: Sequence[str]) -> Iterator[Sequence[Sequence[Any]]]:
    last = 0
    while True:
        page = site.event_tuples(where, last, touching)
        if not page:
            return
        yield page
        last = page[-1][-1]
