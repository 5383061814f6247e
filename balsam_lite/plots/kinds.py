"""The four plots, from what was gathered to a figure or lines of text, with their titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..core.clock import SECOND_US
from ..core.errors import NotFound
from . import figures, text, timeline
from .gather import PlotData
from .timeline import Changes, Curve, Runs, Window

KINDS = ("throughput", "utilization", "states", "gantt")
#: The end of a sentence that says of which jobs nothing is known.
_IN_VAIN = " in the time that is asked for, so there is nothing to plot."


class Plot(NamedTuple):
    """One plot, not yet drawn: what draws it as a figure or as text, what of, and its title."""

    as_figure: Callable[..., Any]
    as_text: Callable[..., list[str]]
    content: tuple[Any, ...]
    title: str

    def save(self, path: str) -> None:
        """Write it as a figure. Raises InvalidSpec, BalsamError."""
        figures.save(self.as_figure(*self.content, self.title), path)

    def lines(self, style: text.Style) -> list[str]:
        """As text."""
        return self.as_text(*self.content, self.title, style)


def prepared(kind: str, found: Sequence[PlotData], where: str, now_us: int, window: Window = timeline.ALL) -> Plot:
    """The plot of that kind; `where` names the sites in its title.

    Raises:
        NotFound: there is nothing to be seen in it.
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
    # Batch jobs in which nothing ran are not of these jobs.
    beside = [one for one in batch_jobs if one[0] is not None and one[0] <= runs.until and (one[1] or now_us) >= runs.starts[0]]
    available = timeline.available(beside, now_us, window)
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
