"""Draw charts as lines of text for a terminal: with block characters, or in plain ASCII where the terminal has none."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from ..core import states
from ..core.display import SIGNS, counted
from .charts import Bars, Cell, Lanes, Picture, Size, Spreads, TimeChart
from .graph import Graph, layers
from .scales import TimeAxis, value_ticks

#: Rows of a chart, of one of several, and the maximum number of rows of lanes and of a graph.
_HEIGHT, _LOW, _MAX_LANES, _MAX_NODES = 15, 8, 24, 40
#: Characters to the left of a chart, including its axis, and the longest name of a row.
_MARGIN, _MAX_NAME = 10, 24
_MIN_WIDTH = 30
#: Blanks between two ticks of the time axis, at least.
_GAP = 3

#: The letter for a run that ended in this state, unless that is RUN_DONE.
_LETTERS = {"RUNNING": ">", "RUN_ERROR": "E", "RUN_TIMEOUT": "T", "RESTART_READY": "R", "USER_KILLED": "K", "FAILED": "F"}
_DONE, _OTHER = "RUN_DONE", "o"


class Style:
    """The characters of a terminal and its width."""

    def __init__(self, width: int = 80, blocks: bool = True) -> None:
        self.width = max(width, _MIN_WIDTH)
        self.levels = " ▁▂▃▄▅▆▇█" if blocks else " .:=#"  # by how much of a cell is filled from the bottom
        self.shades = " ░▒▓█" if blocks else " .:=#"
        self.full = "█" if blocks else "#"
        self.bar, self.line, self.corner, self.limit, self.more = "│─└╌…" if blocks else "|-+-~"
        self.has_signs = blocks

    @property
    def columns(self) -> int:
        """Return the number of columns of a chart without its axis."""
        return self.width - _MARGIN

    @property
    def fineness(self) -> Size:
        """Return how fine the charts have to be."""
        return Size(self.columns, _MAX_LANES)

    def level(self, part: float) -> str:
        """Return the character for a cell that is filled to that part; a small part is never shown as empty."""
        steps = len(self.levels) - 1
        return self.levels[max(min(round(part * steps), steps), 1 if part > 0 else 0)]

    def name(self, text: str, width: int) -> str:
        """Return a name on one line of that width."""
        shown = text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)
        if not self.has_signs:
            shown = shown.encode("ascii", "replace").decode()
        return f"{shown if len(shown) <= width else f'{shown[: width - 1]}{self.more}':{width}}"


def lines(picture: Picture, style: Style) -> list[str]:
    """Return the picture as lines of text."""
    found = [picture.title]
    height = _HEIGHT if len(picture.charts) == 1 else _LOW
    for place, chart in enumerate(picture.charts):
        found += [""] * (place > 0 and not isinstance(chart, TimeChart))
        if isinstance(chart, TimeChart):
            is_last = place == len(picture.charts) - 1
            found += _stack(chart, style, is_last) if len(chart.series) > 1 else _area(chart, style, height, is_last)
        else:
            draw: Callable[[Any, Style], list[str]] = _DRAWN[type(chart)]
            found += draw(chart, style)
    return [line.rstrip() for line in found]


# --- over time --------------------------------------------------------------------------------------------------------


def _area(chart: TimeChart, style: Style, height: int, has_clock: bool) -> list[str]:
    """Draw columns from the bottom, a line at each column's limit, and a scale on the left with round numbers."""
    values = chart.series[0].values
    limits = chart.line.values if chart.line else []
    ticks = value_ticks(max([*values, *limits]), 3, chart.is_whole)
    per_row = ticks[-1] / height
    marked = {math.ceil(tick / per_row - 1e-6) - 1: f"{tick:,.10g}" for tick in ticks[1:]}
    drawn = []
    for row in reversed(range(height)):
        cells = [style.level(min(max(value / per_row - row, 0), 1)) for value in values]
        for column, limit in enumerate(limits):
            if limit and cells[column] == " " and min(int(limit / per_row), height - 1) == row:
                cells[column] = style.limit
        drawn.append(f"{marked.get(row, ''):>{_MARGIN - 2}} {style.bar}{''.join(cells)}")
    label = chart.label + (f" {chart.series[0].name}, {style.limit} {chart.line.name}" if chart.line else "")
    axis = _clock(chart.axis, style) if has_clock else [" " * (_MARGIN - 1) + style.corner + style.line * style.columns]
    return [f"{'':{_MARGIN}}{label}", *drawn, *axis]


def _stack(chart: TimeChart, style: Style, has_clock: bool) -> list[str]:
    """Draw a row for each series, all on one scale, which ends at the largest value."""
    width = max(len(series.name) for series in chart.series)
    columns = max(style.width - width - 25, 10)
    top = max(max(series.values) for series in chart.series) or 1
    drawn = [f"{chart.label:{width}} {'':{columns}} {'at most':>11} {'at last':>11}"]
    for series in chart.series:
        values = [
            series.values[min((2 * column + 1) * len(series.values) // (2 * columns), len(series.values) - 1)]
            for column in range(columns)
        ]
        values[-1] = series.values[-1]
        cells = "".join(style.level(value / top) for value in values)
        drawn.append(f"{series.name:{width}} {cells} {max(series.values):>11,} {series.values[-1]:>11,}")
    return [*drawn, *(_clock(chart.axis, style, width + 1, columns) if has_clock else [])]


def _lanes(chart: Lanes, style: Style) -> list[str]:
    """Draw the cells of each lane; the character of a cell that is done shows how busy it was."""
    width = min(max(map(len, chart.names)), _MAX_NAME)
    margin = width + 2
    columns = style.width - margin
    drawn = []
    for name, cells in zip(chart.names, chart.cells):
        shown = [cells[column * len(cells) // columns] for column in range(columns)]
        drawn.append(f"{style.name(name, width)} {style.bar}{''.join(_character(cell, style) for cell in shown)}")
    known = [states.STATES[code] for code in chart.codes]
    marks = [f"{style.shades[1:]} {_DONE}"] if _DONE in known else []
    marks += [f"{_LETTERS.get(state, _OTHER)} {state}" for state in known if state != _DONE]
    return [
        chart.label,
        *drawn,
        *_clock(chart.axis, style, margin, columns),
        f"{'':{margin}}Runs that ended in:  {'   '.join(marks)}",
    ]


def _character(cell: Cell, style: Style) -> str:
    if cell.code is None:
        return " "
    state = states.STATES[cell.code]
    if state != _DONE:
        return _LETTERS.get(state, _OTHER)
    return style.shades[max(round(cell.share * (len(style.shades) - 1)), 1)]


def _clock(axis: TimeAxis, style: Style, margin: int = _MARGIN, columns: int = 0) -> list[str]:
    """Draw the time axis with its round numbers and their meaning."""
    columns = columns or style.columns
    stride = -(-len(axis.ticks) * (_GAP + max(len(text) for _, text in axis.ticks)) // columns)
    stride = next(step for step in (1, 2, 5, 10, 20, 50, 100) if step >= stride)
    numbers = [" "] * (columns + 1)
    for time_us, text in axis.ticks[::stride]:
        place = min(time_us * columns // (axis.last - axis.first), columns)
        place = min(place, columns + 1 - len(text))
        numbers[place : place + len(text)] = text
    line = " " * (margin - 1) + style.corner + style.line * columns
    return [line, " " * (margin - 1) + "".join(numbers), f"{'':{margin}}{axis.label}"]


# --- rows -------------------------------------------------------------------------------------------------------------


def _bars(chart: Bars, style: Style) -> list[str]:
    """Draw a bar for each row, with its text to the right."""
    width = min(max(len(row.name) for row in chart.rows), _MAX_NAME)
    right = max(len(row.text) for row in chart.rows)
    columns = max(style.width - width - right - 3, 8)
    drawn = []
    for row in chart.rows:
        filled = row.value / chart.top * columns
        bar = style.full * int(filled)
        if not bar and row.value:
            bar = style.shades[1]
        drawn.append(f"{style.name(row.name, width)} {style.bar}{bar:{columns}} {row.text}")
    return [chart.label, *drawn]


def _spreads(chart: Spreads, style: Style) -> list[str]:
    """Draw a row with quantiles and a distribution for each name, all on one scale."""
    width = max(min(max(len(row.name) for row in chart.rows), _MAX_NAME, style.width - 66), 8)
    numbers = [[f"{row.total:,}", *map(chart.shown, row.quantiles)] for row in chart.rows]
    titles = ["runs", "10 %", "median", "90 %", "longest" if chart.label != "Memory" else "largest"]
    widths = [max(len(title), *(len(row[place]) for row in numbers)) for place, title in enumerate(titles)]
    margin = width + sum(widths) + len(widths) + 2
    columns = max(style.width - margin, 8)
    drawn = [f"{'':{width}} " + " ".join(f"{title:>{size}}" for title, size in zip(titles, widths)) + f" {style.bar}"]
    for row, texts in zip(chart.rows, numbers):
        bins = [0] * columns
        for place, count in enumerate(row.bins):
            bins[place * columns // len(row.bins)] += count
        cells = "".join(style.level(count / max(bins)) for count in bins)
        shown = " ".join(f"{text:>{size}}" for text, size in zip(texts, widths))
        drawn.append(f"{style.name(row.name, width)} {shown} {style.bar}{cells}")
    labels = [" "] * columns
    free = 0
    for tick in chart.scale.ticks:
        text = chart.shown(tick)
        place = min(int(chart.scale.place(tick) * columns), columns - len(text))
        if place >= free:
            labels[place : place + len(text)] = text
            free = place + len(text) + 1
    return [*drawn, " " * (margin - 1) + style.corner + style.line * columns, " " * margin + "".join(labels)]


def _graph(graph: Graph, style: Style) -> list[str]:
    """Draw a line for each node, with its parents, indented by the number of generations before it."""
    parents: defaultdict[int, list[int]] = defaultdict(list)
    for parent, child, _ in graph.edges:
        parents[child].append(parent)
    drawn = []
    ordered = [(depth, node) for depth, level in enumerate(layers(len(graph.nodes), graph.edges)) for node in level]
    for depth, number in ordered[:_MAX_NODES]:
        node = graph.nodes[number]
        sign = (
            SIGNS[node.state] if style.has_signs else _LETTERS.get(node.state, "*" if node.state == "JOB_FINISHED" else _OTHER)
        )
        what = node.state if node.jobs == 1 else ", ".join(f"{count:,} {state}" for state, count in node.states.items())
        name = f"{node.name} ({node.below})" if node.below else node.name
        after = [graph.nodes[parent].name for parent in parents[number]]
        relatives = f", after {', '.join(after[:3])}{f' and {len(after) - 3} others' * (len(after) > 3)}" if after else ""
        line = f"{'  ' * min(depth, 8)}{sign} {name}: {what}{relatives}"
        drawn.append(style.name(line, style.width).rstrip())
    if len(ordered) > _MAX_NODES:
        counts = Counter[str]()
        for _, number in ordered[_MAX_NODES:]:
            counts.update(graph.nodes[number].states)
        rest = ", ".join(f"{count:,} {state}" for state, count in counts.items())
        drawn.append(
            f"and {counted(len(ordered) - _MAX_NODES, 'other')} ({rest}); -o FILE.svg, FILE.dot or FILE.mmd has them all"
        )
    return drawn


_DRAWN: dict[type, Callable[[Any, Style], list[str]]] = {Lanes: _lanes, Bars: _bars, Spreads: _spreads, Graph: _graph}
