"""Compute the numbers of each kind of plot, as charts that `text`, `figures` and `svg` draw."""

from __future__ import annotations

import heapq
import re
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, Union

from ..core import states
from ..core.clock import SECOND_US, iso_us
from ..core.display import counted, duration, number, size
from ..core.errors import NotFound
from .campaign import CODES, Campaign, Names
from .graph import Graph, graph_of
from .scales import LogScale, TimeAxis, log_scale, time_axis

#: Maximum number of rows of bars and of distributions; the others are summed up in one.
MAX_BARS, MAX_SPREADS = 20, 12
#: Maximum number of runs, and of lanes, that a picture shows one by one.
MAX_RUNS, MAX_LANES = 2000, 60
#: Number of pieces of time for which a rate is computed, and of bins of a distribution.
_RATES, _BINS = 60, 40
_FAILING = (CODES[states.RUN_ERROR], CODES[states.RUN_TIMEOUT])
_RUNNING = CODES[states.RUNNING]
#: Outcomes of runs whose end is not known.
_UNENDED = (_RUNNING, CODES[states.RESTART_READY])


# --- charts -----------------------------------------------------------------------------------------------------------


class Series(NamedTuple):
    """Values in equal pieces of time, in the colour of a state; "" is none."""

    name: str
    state: str
    values: Sequence[float]


class TimeChart(NamedTuple):
    """Areas over time, stacked if they are several, and a line, such as a limit."""

    label: str
    axis: TimeAxis
    series: list[Series]
    line: Series | None = None
    is_whole: bool = True  # the values are whole numbers


class Cell(NamedTuple):
    """A part of a lane in a piece of time: the code of the state to show (None: no run), and the share that is covered."""

    code: int | None
    share: float


class Lanes(NamedTuple):
    """Runs by node. `bars` (row, start, end, code) if they are few; `cells` always, a list for each row of `names`."""

    label: str
    axis: TimeAxis
    names: list[str]  # from the top; "" continues the node above
    cells: list[list[Cell]]
    bars: list[tuple[int, int, int, int]]
    codes: list[int]


class Bar(NamedTuple):
    """A named value with its text, in the colour of a state; "" is none."""

    name: str
    value: float
    text: str
    state: str


class Bars(NamedTuple):
    """Bars on one scale, which ends at `top`."""

    label: str
    top: float
    rows: list[Bar]


class Spread(NamedTuple):
    """The distribution of a quantity: number of values; 10 %, median, 90 %, largest; and the number in each bin."""

    name: str
    total: int
    quantiles: tuple[float, ...]
    bins: list[int]


class Spreads(NamedTuple):
    """Distributions on one logarithmic scale; `shown` formats a value."""

    label: str
    scale: LogScale
    rows: list[Spread]
    shown: Callable[[float], str]


Chart = Union[TimeChart, Lanes, Bars, Spreads, Graph]


class Picture(NamedTuple):
    """What a plot shows: its title, and charts one below the other."""

    title: str
    charts: list[Chart]


class Size(NamedTuple):
    """How fine the charts are: pieces of time, and rows of lanes."""

    columns: int = 240
    rows: int = 100


def as_json(picture: Picture) -> dict[str, Any]:
    """Return the numbers of a picture as JSON knows them; `docs/json.rst` lists the keys."""
    return {"title": picture.title, "charts": [_chart_as_json(chart) for chart in picture.charts]}


def _chart_as_json(chart: Chart) -> dict[str, Any]:
    if isinstance(chart, Graph):
        nodes = [{"name": one.name, "below": one.below, "states": one.states} for one in chart.nodes]
        edges = [{"parent": parent, "child": child, "dependencies": count} for parent, child, count in chart.edges]
        return {"chart": "graph", "nodes": nodes, "edges": edges}
    if isinstance(chart, (Bars, Spreads)):
        named = [{name: value for name, value in row._asdict().items() if name not in ("bins", "state")} for row in chart.rows]
        if isinstance(chart, Bars):
            return {"chart": "bars", "label": chart.label, "rows": named}
        bins = [{**row, "bins": one.bins} for row, one in zip(named, chart.rows)]
        return {"chart": "distributions", "label": chart.label, "edges": chart.scale.edges, "rows": bins}
    head = {"label": chart.label, "start": iso_us(chart.axis.first), "end": iso_us(chart.axis.last)}
    if isinstance(chart, TimeChart):
        series = [*chart.series, *([chart.line] if chart.line else [])]
        return {"chart": "time", **head, "series": [{"name": one.name, "values": list(one.values)} for one in series]}
    runs = [
        {"row": row, "start": iso_us(start), "end": iso_us(end), "state": states.STATES[code]}
        for row, start, end, code in chart.bars
    ]
    busy = [[round(cell.share, 4) for cell in row] for row in chart.cells]
    return {
        "chart": "lanes",
        **head,
        "rows": [{"node": node, "busy": row} for node, row in zip(chart.names, busy)],
        "runs": runs,
    }


# --- kinds ------------------------------------------------------------------------------------------------------------

_IN_VAIN = " in the time that is asked for, so there is nothing to plot."


def throughput(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show the jobs done over time, and their rate."""
    code = CODES[states.JOB_FINISHED]
    bins = sorted((bin_, count) for (bin_, _, entered), count in of.changes.items() if entered == code)
    total = sum(count for _, count in bins)
    if not total:
        raise NotFound(f"No such job has finished{_IN_VAIN}")
    half = 1 << of.shift >> 1
    first, last = (bin_ << of.shift for bin_, _ in (bins[0], bins[-1]))
    if of.starts:
        first, last = min(first, max(min(of.starts), of.window.start)), min(max(last, *_ends(of)), of.window.end)
    axis = time_axis(first, last)

    def per_piece(pieces: int) -> list[int]:
        found = [0] * pieces
        for bin_, count in bins:
            found[_column(axis, (bin_ << of.shift) + half, pieces)] += count
        return found

    done = list(accumulate(per_piece(fineness.columns)))
    busy_us = of.busy_us or last - first
    unit, unit_s = _rate_unit(total, busy_us)
    pieces = min(_RATES, fineness.columns)
    width = (axis.last - axis.first) / pieces / unit_s / SECOND_US
    rates = [count / width for count in per_piece(pieces)]
    shown = [rates[column * pieces // fineness.columns] for column in range(fineness.columns)]
    title = f"{counted(total, 'job')} done at {place}"
    if busy_us:
        title += f", {number(total * unit_s * SECOND_US / busy_us)} per {unit}"
        if busy_us < 0.95 * (axis.last - axis.first):
            busy, span = duration(busy_us / SECOND_US), duration((axis.last - axis.first) / SECOND_US)
            title += f" while jobs ran ({busy} of {span})"
    return Picture(title, [
        TimeChart("Jobs done", axis, [Series("done", states.JOB_FINISHED, done)]),
        TimeChart(f"Jobs done per {unit}", axis, [Series("rate", states.JOB_FINISHED, shown)], is_whole=False),
    ])  # fmt: skip


def utilization(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show the nodes in use over time, and the available nodes where they are known."""
    _check_runs(of)
    start, end = _span_of_runs(of)
    # Leave out batch jobs that do not overlap the runs: they ran none of these jobs.
    overlapping = [one for one in of.batch_jobs if one[0] is not None and one[0] <= end and (one[1] or of.now_us) >= start]
    available = [
        (max(begin or 0, of.window.start), min(of.now_us if finish is None else finish, of.window.end), float(nodes))
        for begin, finish, nodes in overlapping
    ]
    first, last = min([start, *(one[0] for one in available)]), max([end, *(one[1] for one in available)])
    axis = time_axis(first, last)
    used = means(zip(of.starts, of.ends, of.weights), axis, fineness.columns)
    title = f"Nodes in use at {place}"
    line = None
    if available:
        limits = means(available, axis, fineness.columns)
        line = Series("available", "", limits)
        title += f", {100 * sum(used) / max(sum(limits), 1e-9):.3g} % of those available"
    return Picture(title, [TimeChart("Nodes", axis, [Series("in use", states.RUNNING, used)], line, is_whole=False)])


def states_over_time(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show the jobs in each state over time, those that run also on a scale of their own."""
    if not of.changes:
        raise NotFound(f"No such job has changed its state{_IN_VAIN}")
    shown = [time for time in of.created if of.window.start <= time <= of.window.end]
    bins = [bin_ for bin_, _, _ in of.changes]
    first = max(min(shown, default=min(bins) << of.shift), of.window.start)
    last = min(max([max(bins) << of.shift, first, *_ends(of)]), of.window.end)
    axis = time_axis(first, last)
    columns = fineness.columns
    grid: defaultdict[int, list[int]] = defaultdict(lambda: [0] * columns)
    steps: defaultdict[int, int] = defaultdict(int)  # bin -> change of the number of running jobs
    for (bin_, left, entered), count in of.changes.items():
        column = _column(axis, (bin_ << of.shift) + (1 << of.shift >> 1), columns)
        grid[left][column] -= count
        grid[entered][column] += count
        for state, change in ((left, -count), (entered, count)):
            if state == _RUNNING:
                steps[bin_] += change
    curves = {state: [max(0, value) for value in accumulate(grid[code])] for state, code in CODES.items() if code in grid}
    curves = {state: values for state, values in curves.items() if any(values)}
    series = [Series(state, state, values) for state, values in curves.items()]
    most = max(map(sum, zip(*curves.values())), default=0)
    charts: list[Chart] = [TimeChart("Jobs", axis, series)]
    if steps:
        running = Series(states.RUNNING, states.RUNNING, _peaks(of, axis, steps, columns))
        charts.append(TimeChart("Jobs running", axis, [running]))
    return Picture(f"{counted(most, 'job')} at {place} by state", charts)


def _peaks(of: Campaign, axis: TimeAxis, steps: Mapping[int, int], columns: int) -> list[int]:
    """Return the largest number of running jobs in each piece of time."""
    peaks, level, reached = [0] * columns, 0, 0
    for bin_ in sorted(steps):
        column = _column(axis, (bin_ << of.shift) + (1 << of.shift >> 1), columns)
        for between in range(reached, column + 1):
            peaks[between] = max(peaks[between], level)
        level, reached = max(level + steps[bin_], 0), column
        peaks[column] = max(peaks[column], level)
    for between in range(reached, columns):
        peaks[between] = max(peaks[between], level)
    return peaks


def gantt(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show the runs on each node; several nodes share a row where they are many."""
    _check_runs(of)
    first, last = _span_of_runs(of)
    axis = time_axis(first, last)
    runs, nodes_of, lanes_of, found = _placed(of)
    width = Counter(dict.fromkeys(range(len(found)), 0))  # lanes of each node
    for node, lane in zip(nodes_of, lanes_of):
        if lane >= width[node]:
            width[node] = lane + 1
    order = sorted(range(len(found)), key=lambda node: _by_number(found[node]))
    is_single = sum(width.values()) <= min(fineness.rows, MAX_LANES)
    row_of: dict[int, int] = {}
    names: list[str] = []
    capacity: list[int] = []  # lanes in each row
    for place_of_node, node in enumerate(order):
        if is_single:
            row_of[node] = len(names)
            names += [found[node], *[""] * (width[node] - 1)]
            capacity += [1] * width[node]
            continue
        row_of[node] = place_of_node * min(fineness.rows, len(order)) // len(order)
        if row_of[node] == len(names):
            names.append(found[node])
            capacity.append(0)
        capacity[-1] += width[node]
    rows = array("i", (row_of[node] + (lane if is_single else 0) for node, lane in zip(nodes_of, lanes_of)))
    cells = _cells(of, zip(runs, rows), capacity, axis, fineness.columns)
    bars = []
    if is_single and len(runs) <= MAX_RUNS:
        bars = [(row, of.starts[run], of.ends[run], of.outcomes[run]) for run, row in zip(runs, rows)]
    label = "Nodes" if len(names) >= len(order) else f"{len(order):,} nodes in {len(names)} rows"
    title = f"{counted(len(of.starts), 'run')} of jobs at {place}"
    return Picture(title, [Lanes(label, axis, names, cells, bars, sorted(set(of.outcomes)))])


def durations(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show how long the runs of each application took that have ended."""
    _check_runs(of)
    runs = zip(of.job, of.starts, of.ends, of.outcomes)
    values = ((job, (end - start) / SECOND_US) for job, start, end, code in runs if code not in _UNENDED)
    return _spreads(of, f"Durations of runs at {place}", "Duration", values, True, "No run of such a job has ended")


def waiting(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show how long the jobs waited for a launcher before each run."""
    _check_runs(of)
    values = ((job, wait / SECOND_US) for job, wait in zip(of.job, of.waits) if wait >= 0)
    return _spreads(of, f"Waiting times of jobs before their runs at {place}", "Waited", values, True, "No such job has waited")


def memory(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show the peak memory of the runs of each application, where it is known."""
    _check_runs(of)
    values = ((job, float(most)) for job, most in zip(of.job, of.memory) if most >= 0)
    return _spreads(of, f"Peak memory of runs at {place}", "Memory", values, False, "The memory of no such run is known")


def failures(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show the failed jobs by cause, and the failed runs by node."""
    failed = [job for job, code in enumerate(of.states) if code == CODES[states.FAILED]]
    if not failed:
        raise NotFound(f"No such job has failed, of {counted(len(of.jobs), 'job')}.")
    causes = Counter(of.failures.values[of.failure[job]] or "unknown" for job in failed)
    charts: list[Chart] = [_ranked("Failed jobs by cause", causes, states.FAILED)]
    nodes: Counter[str] = Counter()
    for run, code in enumerate(of.outcomes):
        if code in _FAILING:
            nodes.update(of.nodes[of.node_list[run]])
    if nodes:
        charts.append(_ranked("Failed runs by node", nodes, states.RUN_ERROR))
    return Picture(f"{len(failed):,} of {counted(len(of.jobs), 'job')} failed at {place}", charts)


def nodes(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show for each node how much of the time in which jobs ran it was busy, and its runs."""
    _check_runs(of)
    busy: Counter[str] = Counter()
    until: dict[str, int] = {}
    runs: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    first, last = _span_of_runs(of)
    for run in of.by_start:
        start, end = max(of.starts[run], first), min(of.ends[run], last)
        for node in of.nodes[of.node_list[run]]:
            runs[node] += 1
            failed[node] += of.outcomes[run] in _FAILING
            if end > until.get(node, 0):
                busy[node] += end - max(start, until.get(node, 0))
                until[node] = end
    whole = of.busy_us or 1
    listed = sorted(runs, key=_by_number)
    title = (
        f"{counted(len(listed), 'node')} at {place}, busy {100 * sum(busy.values()) / whole / len(listed):.3g} % of the time"
    )
    if len(listed) > 2 * MAX_BARS:
        by_use = sorted(listed, key=lambda node: busy[node])
        title += f"; the {MAX_BARS} least and most busy ones"
        listed = [*by_use[:MAX_BARS], *by_use[-MAX_BARS:]]
    rows = []
    for node in listed:
        share = min(busy[node] / whole, 1.0)
        text = f"{100 * share:.3g} %, {counted(runs[node], 'run')}" + (f", {failed[node]:,} failed" if failed[node] else "")
        rows.append(Bar(node, 100 * share, text, states.RUNNING))
    return Picture(title, [Bars("Busy, in percent of the time in which jobs ran", 100, rows)])


def dag(of: Campaign, place: str, fineness: Size) -> Picture:
    """Show the graph of the jobs by state; more than 500 jobs are condensed to their applications and workflows."""
    if not of.jobs:
        raise NotFound("There is no such job, so there is nothing to plot.")
    drawn = graph_of(of)
    edges = f"{len(of.parents):,} {'dependency' if len(of.parents) == 1 else 'dependencies'}"
    return Picture(f"{counted(len(of.jobs), 'job')} at {place}, {edges}", [drawn])


#: The kinds of plots, each with its function and what it needs besides the jobs with their runs.
KINDS: dict[str, tuple[Callable[[Campaign, str, Size], Picture], tuple[str, ...]]] = {
    "throughput": (throughput, ("changes",)),
    "utilization": (utilization, ("batch_jobs",)),
    "states": (states_over_time, ("changes",)),
    "gantt": (gantt, ()),
    "durations": (durations, ()),
    "waiting": (waiting, ()),
    "memory": (memory, ()),
    "failures": (failures, ()),
    "nodes": (nodes, ()),
    "dag": (dag, ("edges",)),
}


# --- time -------------------------------------------------------------------------------------------------------------


def _check_runs(of: Campaign) -> None:
    if not of.starts:
        raise NotFound(f"No such job has run{_IN_VAIN}")


def _ends(of: Campaign) -> Iterator[int]:
    """Yield the latest end of a run, if there is any."""
    if of.ends:
        yield max(of.ends)


def _span_of_runs(of: Campaign) -> tuple[int, int]:
    """Return the first start and the last end that the window shows."""
    return max(min(of.starts), of.window.start), min(max(of.ends), of.window.end)


def _column(axis: TimeAxis, time_us: int, columns: int) -> int:
    return min(max((time_us - axis.first) * columns // (axis.last - axis.first), 0), columns - 1)


def means(spans: Iterable[tuple[int, int, float]], axis: TimeAxis, columns: int) -> list[float]:
    """Return the mean of the sum of all weights in each piece of time, of (start, end, weight).

    A start adds the rest of the piece in which it is and all later ones, an end subtracts the same.
    """
    own, later = [0.0] * (columns + 1), [0.0] * (columns + 2)
    first, last, scale = axis.first, axis.last, columns / (axis.last - axis.first)
    for start, end, weight in spans:
        for time, signed in ((start, weight), (end, -weight)):
            at = 0.0 if time <= first else columns if time >= last else (time - first) * scale
            column = int(at)
            own[column] += signed * (column + 1 - at)
            later[column + 1] += signed
    return [max(round(mine + before, 9), 0.0) for mine, before in zip(own[:columns], accumulate(later))]


def _rate_unit(total: int, busy_us: int) -> tuple[str, int]:
    """Return the unit in which the rate of that many jobs is at least one, and its seconds."""
    for unit, unit_s in (("second", 1), ("minute", 60)):
        if total * unit_s * SECOND_US >= busy_us:
            return unit, unit_s
    return "hour", 3600


# --- lanes ------------------------------------------------------------------------------------------------------------


def _placed(of: Campaign) -> tuple[array[int], array[int], array[int], list[str]]:
    """Return for each run and each of its nodes: the run, the node's place in the list of names, its lane; and that list.

    The lane is the node's lowest one in which the run overlaps no other.
    """
    names = Names()
    numbers = [[names.number(node) for node in listed] for listed in of.nodes]
    free: list[list[int]] = [[] for _ in names.values]
    busy: list[list[tuple[int, int]]] = [[] for _ in names.values]  # (end, lane)
    runs, nodes_of, lanes_of = array("i"), array("i"), array("i")
    for run in of.by_start:
        start, end = of.starts[run], of.ends[run]
        for node in numbers[of.node_list[run]]:
            running, lanes = busy[node], free[node]
            while running and running[0][0] <= start:
                heapq.heappush(lanes, heapq.heappop(running)[1])
            lane = heapq.heappop(lanes) if lanes else len(running)
            heapq.heappush(running, (end, lane))
            runs.append(run)
            nodes_of.append(node)
            lanes_of.append(lane)
    return runs, nodes_of, lanes_of, names.values


def _cells(
    of: Campaign, runs: Iterable[tuple[int, int]], capacity: Sequence[int], axis: TimeAxis, columns: int
) -> list[list[Cell]]:
    """Return the cells of each row from (run, row); `capacity` is the number of lanes in each row."""
    covered: list[list[dict[int, float]]] = [[{} for _ in range(columns)] for _ in capacity]
    first, scale = axis.first, columns / (axis.last - axis.first)
    starts, ends, outcomes = of.starts, of.ends, of.outcomes
    for run, row in runs:
        code, cells = outcomes[run], covered[row]
        start, end = (starts[run] - first) * scale, (ends[run] - first) * scale
        column = int(start)
        if start >= 0 and end <= column + 1 and column < columns:  # nearly all runs, where they are many
            cell = cells[column]
            cell[code] = cell.get(code, 0.0) + (end - start if end > start + 1e-3 else 1e-3)  # one of length 0 is visible, too
            continue
        start = min(max(start, 0.0), columns - 1e-3)
        end = min(max(end, start + 1e-3), float(columns))
        for column in range(int(start), min(int(end), columns - 1) + 1):
            part = min(end, column + 1) - max(start, column)
            if part > 1e-6:
                cells[column][code] = cells[column].get(code, 0.0) + part
    return [
        [Cell(code, min(sum(cell.values()) / lanes, 1.0)) for code, cell in zip(_chosen(row), row)]
        for row, lanes in zip(covered, capacity)
    ]


def _chosen(cells: Sequence[Mapping[int, float]]) -> Iterator[int | None]:
    """Yield one state for each cell of a row, so that a state's share of the cells equals its share of the time.

    Taking the state that covers most of a cell would entirely hide a tenth of errors. Instead, each state accumulates its
    part of every cell, and the state with the largest balance gets the cell.
    """
    owed: dict[int, float] = {}
    for parts in cells:
        whole = sum(parts.values())
        for code, part in parts.items():
            owed[code] = owed.get(code, 0.0) + part / whole
        chosen = max(parts, key=owed.__getitem__, default=None)
        if chosen is not None:
            owed[chosen] -= 1
        yield chosen


def _by_number(name: str) -> list[Any]:
    """Return a key that sorts names with numbers by these.

    >>> sorted(["n10", "n9", "host/2"], key=_by_number)
    ['host/2', 'n9', 'n10']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name)]


# --- rows -------------------------------------------------------------------------------------------------------------


def _spreads(
    of: Campaign, title: str, label: str, values: Iterable[tuple[int, float]], is_time: bool, otherwise: str
) -> Picture:
    """Return the distributions of (place of a job, value) by application, the most frequent applications first."""
    by_name: dict[str, array[float]] = {}
    of_group = [by_name.setdefault(app, array("d")) for _, app in of.groups.values]
    group = of.group
    for job, value in values:
        of_group[group[job]].append(value)
    ranked = sorted((name for name in by_name if by_name[name]), key=lambda name: -len(by_name[name]))
    if not ranked:
        raise NotFound(f"{otherwise}{_IN_VAIN}")
    if len(ranked) > MAX_SPREADS:
        rest = array("d")
        for name in ranked[MAX_SPREADS - 1 :]:
            rest.extend(by_name.pop(name))
        others = f"{len(ranked) - MAX_SPREADS + 1} others"
        by_name[others] = rest
        ranked = [*ranked[: MAX_SPREADS - 1], others]
    ordered = {name: sorted(by_name[name]) for name in ranked}
    scale = log_scale(min(one[0] for one in ordered.values()), max(one[-1] for one in ordered.values()), _BINS, is_time)
    rows = []
    for name, its in ordered.items():
        below = [0, *(bisect_left(its, edge) for edge in scale.edges[1:-1]), len(its)]
        bins = [after - before for before, after in zip(below, below[1:])]
        quantiles = tuple(its[min(int(part * len(its)), len(its) - 1)] for part in (0.1, 0.5, 0.9, 1.0))
        rows.append(Spread(name, len(its), quantiles, bins))
    return Picture(title, [Spreads(label, scale, rows, duration if is_time else size)])


def _ranked(label: str, found: Counter[str], state: str) -> Bars:
    """Return bars of the largest numbers first; the others are summed up."""
    ranked = found.most_common()
    rows = [Bar(name, count, f"{count:,}", state) for name, count in ranked[:MAX_BARS]]
    if len(ranked) > MAX_BARS:
        rest = sum(count for _, count in ranked[MAX_BARS:])
        rows.append(Bar(f"{len(ranked) - MAX_BARS:,} others", rest, f"{rest:,}", ""))
    return Bars(label, max(row.value for row in rows), rows)
