"""Draw the plots as lines of text for a terminal: with block characters, or in plain ASCII where the terminal has none."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence

from . import timeline
from .timeline import Counts, Curve, Runs

#: Rows of a chart, and the maximum number of rows of lanes.
_HEIGHT, _MAX_LANES = 15, 24
#: Characters to the left of a chart, including its axis.
_MARGIN = 10
#: Number of steps on the scale of a chart.
_STEPS = 3
_MIN_WIDTH = 30

#: The letter for a run that ended in this state, unless that is RUN_DONE.
_LETTERS = {"RUNNING": ">", "RUN_ERROR": "E", "RUN_TIMEOUT": "T", "RESTART_READY": "R", "USER_KILLED": "K", "FAILED": "F"}
_DONE, _OTHER = "RUN_DONE", "o"


class Style:
    """The characters of a terminal and its width."""

    def __init__(self, width: int = 80, blocks: bool = True) -> None:
        self.width = max(width, _MIN_WIDTH)
        self.levels = " ▁▂▃▄▅▆▇█" if blocks else " .:=#"  # by how much of a cell is filled from the bottom
        self.shades = " ░▒▓█" if blocks else " .:=#"
        self.bar, self.line, self.corner, self.limit = "│─└╌" if blocks else "|-+-"

    @property
    def columns(self) -> int:
        """Return the number of columns of a chart without its axis."""
        return self.width - _MARGIN

    def level(self, part: float) -> str:
        """Return the character for a cell that is filled to that part; a small part is never shown as empty."""
        steps = len(self.levels) - 1
        return self.levels[max(min(round(part * steps), steps), 1 if part > 0 else 0)]


def throughput(done: Curve, since: int, title: str, style: Style) -> list[str]:
    """Plot the number of jobs done over time, starting at `since`."""
    span = since, done.times[-1]
    edges = _edges(span, style.columns)[1:]
    values = [bisect_right(done.times, edge) for edge in edges]
    return [title, *_chart(values, [], style, "jobs done", 1), *_clock(span, style)]


def utilization(used: Curve, available: Curve, title: str, style: Style) -> list[str]:
    """Plot the mean number of nodes in use in each column, with a line at the number of available nodes above it."""
    span = min([used.times[0], *available.times[:1]]), max([used.times[-1], *available.times[-1:]])
    values, limits = (_means(curve, span, style.columns) for curve in (used, available))
    label = f"nodes in use, {style.limit} available" if available.times else "nodes in use"
    return [title, *_chart(values, limits if available.times else [], style, label), *_clock(span, style)]


def states(counts: Counts, title: str, style: Style) -> list[str]:
    """Plot the number of jobs in each state as one line per state, relative to the highest number of all."""
    span = counts.times[0], counts.times[-1]
    name_width = max(map(len, counts.by_state))
    columns = max(style.width - name_width - 25, 10)
    edges = _edges(span, columns)[1:]
    lines = [title, f"{'':{name_width}} {'':{columns}} {'at most':>11} {'at last':>11}"]
    for state, values in counts.by_state.items():
        most = max(values)
        shown = [values[max(bisect_right(counts.times, edge) - 1, 0)] for edge in edges]
        drawn = "".join(style.level(value / most) for value in shown)
        lines.append(f"{state:{name_width}} {drawn} {most:>11,} {values[-1]:>11,}")
    return [*lines, *_clock(span, style, name_width + 1, columns)]


def gantt(runs: Runs, title: str, style: Style) -> list[str]:
    """Plot the runs in lanes; if there are many, several lanes share a row, whose characters show how busy they were."""
    span = runs.starts[0], runs.until
    lanes = timeline.lanes(runs)
    count = max(lanes) + 1
    rows = min(count, _MAX_LANES)
    covered = _covered(runs, array("q", (lane * rows // count for lane in lanes)), rows, _edges(span, style.columns))
    lines = [title]
    for row in reversed(range(rows)):
        first = -(-row * count // rows)
        in_row = -(-(row + 1) * count // rows) - first
        shares = [sum(cell.values()) / in_row for cell in covered[row]]
        cells = "".join(_character(code, share, style) for code, share in zip(_chosen(covered[row]), shares))
        lines.append(f"{first:>{_MARGIN - 2},} {style.bar}{cells}".rstrip())
    shown = {timeline.state_name(code) for code in set(runs.codes)}
    marks = [f"{style.shades[1:]} {_DONE}"] if _DONE in shown else []
    marks += [f"{_LETTERS.get(state, _OTHER)} {state}" for state in sorted(shown - {_DONE})]
    return [*lines, *_clock(span, style), " " * _MARGIN + "Lanes of runs that ended in:  " + "   ".join(marks)]


# --- charts -----------------------------------------------------------------------------------------------------------


def _chart(values: Sequence[float], limits: Sequence[float], style: Style, label: str, least_step: float = 0) -> list[str]:
    """Draw columns from the bottom, a line at each column's limit, and a scale on the left in steps of `least_step` or more."""
    step = _step(max([*values, *limits]) / _STEPS, least_step)
    per_row = step * _STEPS / _HEIGHT
    lines = []
    for row in reversed(range(_HEIGHT)):
        cells = [style.level(min(max(value / per_row - row, 0), 1)) for value in values]
        for column, limit in enumerate(limits):
            if limit and cells[column] == " " and min(int(limit / per_row), _HEIGHT - 1) == row:
                cells[column] = style.limit
        steps, between = divmod((row + 1) * _STEPS, _HEIGHT)
        scale = "" if between else f"{steps * step:,.10g}"
        lines.append(f"{scale:>{_MARGIN - 2}} {style.bar}{''.join(cells)}".rstrip())
    return [f"{'':{_MARGIN}}{label}", *lines]


def _step(least: float, floor: float = 0) -> float:
    """Return the next round number that is not less than `least` and `floor`; a whole number from 1 on."""
    least = max(least, floor)
    if least < 1e-9:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(least))
    rounds = (factor * magnitude for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 20))
    return next(step for step in rounds if step >= least * (1 - 1e-9) and (step < 1 or step == int(step)))


def _clock(span: tuple[int, int], style: Style, margin: int = _MARGIN, columns: int = 0) -> list[str]:
    """Draw the time axis with its numbers and their meaning."""
    columns = columns or style.columns
    name, unit_us = timeline.unit(span[1] - span[0])
    numbers = [" "] * columns
    last = f"{(span[1] - span[0]) / unit_us:.3g}"
    numbers[columns - len(last) :] = last
    for part in range(4):
        text = f"{(span[1] - span[0]) * part / 4 / unit_us:.3g}"
        place = columns * part // 4
        if place + len(text) < columns - len(last):
            numbers[place : place + len(text)] = text
    axis = " " * (margin - 1) + style.corner + style.line * columns
    return [axis, " " * margin + "".join(numbers), f"{'':{margin}}Time since {timeline.moment(span[0])} ({name})"]


def _edges(span: tuple[int, int], columns: int) -> list[int]:
    """Return the times at which columns begin, and the end of the last one."""
    first, last = span
    return [first + (last - first) * column // columns for column in range(columns + 1)]


def _means(curve: Curve, span: tuple[int, int], columns: int) -> list[float]:
    """Return the mean of the curve in each column; if the span is a single moment, without columns, its highest value."""
    if span[0] == span[1]:
        return [max(curve.values, default=0.0)] * columns
    edges = _edges(span, columns)
    sums = [0.0] * columns
    for begin, end, value in zip(curve.times, curve.times[1:], curve.values):
        for column, part in _spread(begin, end, edges):
            sums[column] += part * value
    return [total / max(end - begin, 1) for total, begin, end in zip(sums, edges, edges[1:])]


def _spread(start: int, end: int, edges: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (column, time in it) for a span of time."""
    last = len(edges) - 2
    column = min(bisect_right(edges, start) - 1, last)
    while start < end:
        until = end if column == last else min(end, edges[column + 1])
        yield column, until - start
        start = until
        column += 1


# --- lanes ------------------------------------------------------------------------------------------------------------


def _covered(runs: Runs, row_of: Sequence[int], rows: int, edges: Sequence[int]) -> list[list[dict[int, float]]]:
    """Return how much of each cell the runs cover: [row][column] -> code of a state -> part of the cell."""
    width = max((edges[-1] - edges[0]) / (len(edges) - 1), 1e-9)
    covered: list[list[dict[int, float]]] = [[{} for _ in edges[1:]] for _ in range(rows)]
    for start, end, code, row in zip(runs.starts, runs.ends, runs.codes, row_of):
        # A run of length 0 is visible, too.
        for column, part in _spread(start, max(end, start + 1), edges):
            cell = covered[row][column]
            cell[code] = cell.get(code, 0.0) + part / width
    return covered


def _chosen(cells: Sequence[Mapping[int, float]]) -> Iterator[int | None]:
    """Yield one state for each cell of a row, so that a state's share of the cells equals its share of the time.

    Taking the state that covers most of a cell would entirely hide a tenth of errors. Instead, each state accumulates its
    part of every cell, and the state with the largest balance gets the cell.
    """
    owed: dict[int, float] = {}
    for parts in cells:
        for code, part in parts.items():
            owed[code] = owed.get(code, 0.0) + part / sum(parts.values())
        chosen = max(parts, key=owed.__getitem__, default=None)
        if chosen is not None:
            owed[chosen] -= 1
        yield chosen


def _character(code: int | None, share: float, style: Style) -> str:
    """Return the character for a cell of which that share is covered."""
    if code is None:
        return " "
    state = timeline.state_name(code)
    if state != _DONE:
        return _LETTERS.get(state, _OTHER)
    return style.shades[max(round(min(share, 1.0) * (len(style.shades) - 1)), 1)]
