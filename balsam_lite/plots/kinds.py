"""Read the data for a kind of plot, and prepare the plot."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..core.clock import SECOND_US
from ..core.errors import NotFound
from ..core.states import CREATED, JOB_FINISHED, RUNNING
from ..sites.interface import SiteInterface
from . import figures, text, timeline
from .timeline import Changes, Curve, Runs, Window

#: Maximum number of jobs per page.
PAGE = 20_000
#: Maximum number of jobs that a query for events names; above it, read all events and drop those of other jobs here.
MAX_NAMED_JOBS = 10_000
#: Conditions on jobs that also apply to events, and their names there.
_OF_EVENTS = {"id": "job_id", "tags": "tags"}

#: Which events a plot needs: those that leave or enter one of these states; () means all of them.
TOUCHING: dict[str, tuple[str, ...]] = {
    "throughput": (RUNNING, JOB_FINISHED),
    "utilization": (RUNNING,),
    "gantt": (RUNNING,),
    "states": (),
}


class PlotData(NamedTuple):
    """The data that was read from one site."""

    changes: Changes
    batch_jobs: list[tuple[int | None, int | None, int]]  # start, end, nodes


def read(site: SiteInterface, kind: str, where: Mapping[str, Any]) -> PlotData:
    """Read the data of matching jobs for that kind of plot; for a utilization, also the site's batch jobs.

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
        if len(found) <= MAX_NAMED_JOBS:
            by_event = {"job_id": list(found)}
        wanted = set(found) if where else range(found[-1] + 1 if found else 0)
    for events in _events(site, by_event, TOUCHING[kind]):
        changes.add(event[:6] for event in events if wanted is None or event[3] in wanted)
    batch_jobs = site.select("batch_job") if kind == "utilization" else []
    return PlotData(changes, [(row["start_time"], row["end_time"], row["num_nodes"]) for row in batch_jobs])


def _jobs(site: SiteInterface, where: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    last = 0
    while True:
        page = site.page(where, ("id", "created"), last, PAGE)
        yield page
        if len(page) < PAGE:
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


KINDS = ("throughput", "utilization", "states", "gantt")
#: The end of a sentence that names the jobs without data.
_IN_VAIN = " in the time that is asked for, so there is nothing to plot."


class Plot(NamedTuple):
    """One plot, not yet drawn: the functions that draw it as a figure or as text, its data and its title."""

    as_figure: Callable[..., Any]
    as_text: Callable[..., list[str]]
    content: tuple[Any, ...]
    title: str

    def save(self, path: str) -> None:
        """Write the plot as a figure. Raises InvalidSpec, BalsamError."""
        figures.save(self.as_figure(*self.content, self.title), path)

    def lines(self, style: text.Style) -> list[str]:
        """Return the plot as lines of text."""
        return self.as_text(*self.content, self.title, style)


def prepared(kind: str, found: Sequence[PlotData], where: str, now_us: int, window: Window = timeline.ALL) -> Plot:
    """Prepare the plot of that kind; `where` names the sites in its title.

    Raises:
        NotFound: there is nothing to plot.
    """
    changes = found[0].changes if len(found) == 1 else Changes()
    if len(found) > 1:
        for site, one in enumerate(found):
            changes.extend(one.changes, site)
    if kind == "utilization":
        batch_jobs = [batch_job for one in found for batch_job in one.batch_jobs]
        return _utilization(_runs(changes, now_us, window), batch_jobs, where, now_us, window)
    if kind == "gantt":
        runs = _runs(changes, now_us, window)
        return Plot(figures.gantt, text.gantt, (runs,), f"{_counted(len(runs.starts), 'run')} of jobs at {where}")
    return (_throughput if kind == "throughput" else _states)(changes, where, window)


def _throughput(changes: Changes, where: str, window: Window) -> Plot:
    done = timeline.finished(changes, window)
    if not done.times:
        raise NotFound(f"No such job has finished{_IN_VAIN}")
    started = timeline.first_start(changes, window)
    since = done.times[0] if started is None else min(started, done.times[0])
    title = f"{_counted(len(done.times), 'job')} done at {where}"
    span = done.times[-1] - since
    return Plot(
        figures.throughput, text.throughput, (done, since), f"{title}, {_rate(len(done.times), span)}" if span else title
    )


def _utilization(runs: Runs, batch_jobs: Sequence[Any], where: str, now_us: int, window: Window) -> Plot:
    used = timeline.in_use(runs)
    # Leave out batch jobs that do not overlap the runs: they ran none of these jobs.
    overlapping = [
        one for one in batch_jobs if one[0] is not None and one[0] <= runs.until and (one[1] or now_us) >= runs.starts[0]
    ]
    available = timeline.available(overlapping, now_us, window)
    title = f"Nodes in use at {where}"
    nodes = [timeline.mean(curve, *_span(used, available)) for curve in (used, available)]
    if available.times and nodes[1]:
        title = f"{title}, {100 * nodes[0] / nodes[1]:.3g} % of those available"
    return Plot(figures.utilization, text.utilization, (used, available), title)


def _states(changes: Changes, where: str, window: Window) -> Plot:
    counts = timeline.counts(changes, window)
    if not counts.by_state:
        raise NotFound(f"No such job has changed its state{_IN_VAIN}")
    most = max(map(sum, zip(*counts.by_state.values())))
    return Plot(figures.states, text.states, (counts,), f"{_counted(most, 'job')} at {where} by state")


def _runs(changes: Changes, now_us: int, window: Window) -> Runs:
    runs = timeline.runs(changes, now_us, window)
    if not runs.starts:
        raise NotFound(f"No such job has run{_IN_VAIN}")
    return runs


def _span(*curves: Curve) -> tuple[int, int]:
    return min(c.times[0] for c in curves if c.times), max(c.times[-1] for c in curves if c.times)


# --- words ------------------------------------------------------------------------------------------------------------


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _rate(count: int, span_us: int) -> str:
    """
    >>> _rate(90, 3600 * SECOND_US), _rate(1000, 4 * SECOND_US)
    ('1.5 per minute', '250 per second')
    """
    for unit, seconds in (("second", 1), ("minute", 60)):
        if count * seconds * SECOND_US >= span_us:
            return f"{count * seconds * SECOND_US / span_us:,.3g} per {unit}"
    return f"{count * 3600 * SECOND_US / span_us:,.3g} per hour"
