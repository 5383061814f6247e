"""Lay out charts as shapes in pixels, once for all pictures: `svg` and `figures` (matplotlib) only draw the shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Union

from ..core import states
from ..core.display import COLOURS, SIGNS, number
from .charts import Bars, Lanes, Picture, Series, Spreads, TimeChart
from .graph import MAX_NAMED, Graph
from .scales import TimeAxis, value_ticks

#: Colours that follow the page, which may be dark: text and lines, and faint lines.
INK, FAINT = "ink", "faint"
WIDTH = 760
_LEFT, _RIGHT, _TOP, _BOTTOM = 74.0, 140.0, 14.0, 44.0
#: Height of a chart over time, of one lane, and of one row of bars and of a distribution.
_HEIGHT, _ROW, _BAR, _SPREAD = 190.0, 12.0, 19.0, 30.0
_FONT, _SMALL = 12.0, 11.0
#: Estimated width of a character, in its size.
_CHARACTER = 0.58
#: States that are hatched, so that they can be told without colours.
_HATCHED = ("FAILED", "RUN_ERROR", "RUN_TIMEOUT", "USER_KILLED")
#: A state with less than this part of the picture is not visible, and is left out of the legend.
_FAINTEST = 0.0005
#: Number of shades of a cell, by how much of it is covered.
_SHADES = 4
#: A node of a graph with its name, and a small one without.
_NODE, _DOT = (132.0, 40.0), (18.0, 18.0)
#: Maximum number of lanes with a name each.
_MAX_NAMES = 40

Point = tuple[float, float]


class Area(NamedTuple):
    """A filled polygon; `state` is the name of its colour."""

    points: Sequence[Point]
    fill: str
    state: str = ""


class Line(NamedTuple):
    """A line through points."""

    points: Sequence[Point]
    stroke: str = INK
    width: float = 1.0
    is_dashed: bool = False


class Boxes(NamedTuple):
    """Rectangles (x, y, width, height) of one colour."""

    boxes: Sequence[tuple[float, float, float, float]]
    fill: str
    state: str = ""
    opacity: float = 1.0
    title: str = ""  # shown where the mouse is
    is_plain: bool = False  # not hatched, to have text on it


class Text(NamedTuple):
    """A line of text; `y` is its baseline. `colour` may be INK."""

    x: float
    y: float
    text: str
    anchor: str = "start"  # or "middle" or "end"
    size: float = _SMALL
    colour: str = INK
    is_turned: bool = False


Shape = Union[Area, Line, Boxes, Text]


class Drawing(NamedTuple):
    """Shapes on a canvas of that size."""

    width: float
    height: float
    shapes: list[Shape]


def drawing(picture: Picture, has_title: bool = True) -> Drawing:
    """Return the shapes of a picture."""
    shapes: list[Shape] = []
    top, width = 6.0, float(WIDTH)
    for line in picture.title.split("\n") if has_title else ():
        top += 16
        shapes.append(Text(10, top, line, size=_FONT + 1))
    for chart in picture.charts:
        draw: Callable[[Any, float, list[Shape]], tuple[float, float]] = _DRAWN[type(chart)]
        chart_width, top = draw(chart, top + _TOP, shapes)
        width = max(width, chart_width)
    return Drawing(width, top + 4, shapes)


def is_hatched(state: str) -> bool:
    """Return whether areas of that state are hatched."""
    return state in _HATCHED


# --- axes -------------------------------------------------------------------------------------------------------------


def _right() -> float:
    return WIDTH - _RIGHT


def _time_axis(axis: TimeAxis, left: float, bottom: float, shapes: list[Shape]) -> None:
    """Draw the time axis below a chart."""
    width = _right() - left
    shapes.append(Line([(left, bottom), (_right(), bottom)]))
    for time_us, text in axis.ticks:
        x = left + width * time_us / (axis.last - axis.first)
        shapes += [Line([(x, bottom), (x, bottom + 4)]), Text(x, bottom + 16, text, "middle")]
    shapes.append(Text(left + width / 2, bottom + 33, axis.label, "middle"))


def _value_axis(ticks: Sequence[float], peak: float, label: str, top: float, shapes: list[Shape]) -> None:
    """Draw the axis to the left of a chart up to `peak`, with faint lines across it."""
    for tick in ticks:
        if tick > peak:
            break
        y = top + _HEIGHT * (1 - tick / peak)
        if tick:
            shapes.append(Line([(_LEFT, y), (_right(), y)], FAINT, 0.7))
        shapes.append(Text(_LEFT - 6, y + 4, number(tick), "end"))
    shapes.append(Text(14, top + _HEIGHT / 2, label, "middle", is_turned=True))


def _legend(entries: Sequence[tuple[str, str]], top: float, shapes: list[Shape]) -> None:
    """Draw (name, state) to the right of a chart, so that it covers nothing; without a state it is a line."""
    for place, (name, state) in enumerate(entries):
        y = top + 15 * place
        if not state:
            shapes.append(Line([(_right() + 14, y + 5), (_right() + 26, y + 5)], INK, 1.5, True))
        else:
            x = _right() + 14
            shapes.append(Area([(x, y), (x + 12, y), (x + 12, y + 10), (x, y + 10)], COLOURS[state], state))
        shapes.append(Text(_right() + 31, y + 9, name, size=10))


def _fitted(text: str, width: float, size: float = _SMALL) -> str:
    """Return the beginning of a text that has about that width."""
    most = max(int(width / size / _CHARACTER), 1)
    return text if len(text) <= most else f"{text[: most - 1]}…"


# --- charts -----------------------------------------------------------------------------------------------------------


def _steps(values: Sequence[float], height: Callable[[float], float]) -> list[Point]:
    """Return the corners of steps at these values."""
    width = (_right() - _LEFT) / len(values)
    return [(_LEFT + width * (column + side), height(value)) for column, value in enumerate(values) for side in (0, 1)]


def _time_chart(chart: TimeChart, top: float, shapes: list[Shape]) -> tuple[float, float]:
    sums = [sum(values) for values in zip(*(series.values for series in chart.series))]
    most = max([*sums, *(chart.line.values if chart.line else [])])
    ticks = value_ticks(most, is_whole=chart.is_whole)
    peak = min(1.04 * most or ticks[-1], ticks[-1])

    def height(value: float) -> float:
        return top + _HEIGHT * (1 - value / peak)

    _value_axis(ticks, peak, chart.label, top, shapes)
    base = [0.0] * len(sums)
    seen: list[Series] = []
    for series in reversed(chart.series):  # from the final states at the bottom to the initial states at the top
        upper = [below + value for below, value in zip(base, series.values)]
        if any(series.values):
            if sum(series.values) >= _FAINTEST * sum(sums):
                seen.append(series)
            points = [*_steps(upper, height), *reversed(_steps(base, height))]
            shapes.append(Area(_without_repeats(points), COLOURS[series.state], series.state))
        base = upper
    if chart.line:
        shapes.append(Line(_without_repeats(_steps(chart.line.values, height)), INK, 1.5, True))
    entries = [(series.name, series.state) for series in reversed(seen)]
    if chart.line:
        entries.append((chart.line.name, ""))
    if len(entries) > 1:
        _legend(entries, top, shapes)
    _time_axis(chart.axis, _LEFT, top + _HEIGHT, shapes)
    return WIDTH, max(top + _HEIGHT + _BOTTOM, top + 15 * len(entries))


def _without_repeats(points: Sequence[Point]) -> list[Point]:
    """Return the points without those inside of horizontal lines."""
    kept: list[Point] = []
    for place, point in enumerate(points):
        if kept and place + 1 < len(points) and kept[-1][1] == point[1] == points[place + 1][1]:
            continue
        kept.append(point)
    return kept


def _lanes(chart: Lanes, top: float, shapes: list[Shape]) -> tuple[float, float]:
    row = min(_ROW, max(4.0, 480 / len(chart.names)))
    left = min(max(_CHARACTER * _SMALL * max(map(len, chart.names)) + 12, _LEFT), 200)
    width, bottom = _right() - left, top + row * len(chart.names)
    stride = -(-len(chart.names) // _MAX_NAMES)
    for place, name in enumerate(chart.names):
        if name and place % stride == 0:
            y = top + row * place
            shapes.append(Text(left - 6, y + min(row / 2 + 4, 10), _fitted(name, left - 12), "end", 10))
            if place and row > 6:
                shapes.append(Line([(left, y), (_right(), y)], FAINT, 0.5))
    if chart.bars:
        for code in chart.codes:
            boxes = []
            for at, start, end, its in chart.bars:
                if its == code:
                    x, until = (left + width * chart.axis.place(time) for time in (start, end))
                    rim = 0.6 if until - x > 3 else 0.0
                    boxes.append((x, top + row * at + 1, max(until - x - rim, 0.8), row - 2))
            state = states.STATES[code]
            shapes.append(Boxes(boxes, COLOURS[state], state))
    else:
        shapes += _shaded(chart, top, row, left, width)
    _time_axis(chart.axis, left, bottom, shapes)
    entries = [(states.STATES[code], states.STATES[code]) for code in chart.codes]
    shapes.append(Text(_right() + 14, top + 6, "Run ended in", size=10))
    _legend(entries, top + 14, shapes)
    shapes.append(Text(14, (top + bottom) / 2, chart.label, "middle", is_turned=True))
    return WIDTH, max(bottom + _BOTTOM, top + 14 + 15 * len(entries))


def _shaded(chart: Lanes, top: float, row: float, left: float, width: float) -> list[Shape]:
    """Return the cells of all lanes, neighbours of one state and shade as one, by state and shade."""
    found: dict[tuple[int, int], list[tuple[float, float, float, float]]] = {}
    for place, cells in enumerate(chart.cells):
        step = width / len(cells)
        last, begin = None, 0
        for column in range(len(cells) + 1):
            key = None
            if column < len(cells) and cells[column].code is not None:
                key = cells[column].code, max(round(cells[column].share * _SHADES), 1)
            if key != last:
                if last is not None:
                    box = left + step * begin, top + row * place + 0.5, step * (column - begin), row - 1
                    found.setdefault(last, []).append(box)  # type: ignore[arg-type]
                last, begin = key, column
    return [
        Boxes(boxes, COLOURS[states.STATES[code]], states.STATES[code], shade / _SHADES)
        for (code, shade), boxes in sorted(found.items())
    ]


def _bars(chart: Bars, top: float, shapes: list[Shape]) -> tuple[float, float]:
    top += 12
    shapes.append(Text(10, top, chart.label, size=_FONT))
    top += 8
    left = min(max(len(row.name) for row in chart.rows) * _CHARACTER * _SMALL + 20, 280)
    right = WIDTH - 20 - max(len(row.text) for row in chart.rows) * _CHARACTER * _SMALL
    for place, row in enumerate(chart.rows):
        y = top + _BAR * place
        width = max((right - left) * row.value / chart.top, 0.8 if row.value else 0)
        colour = COLOURS.get(row.state, "#888888")
        shapes += [
            Text(left - 8, y + 13, _fitted(row.name, left - 12), "end"),
            Boxes([(left, y + 2, right - left, _BAR - 5)], FAINT, opacity=0.35),
            Boxes([(left, y + 2, width, _BAR - 5)], colour, row.state, title=f"{row.name}: {row.text}"),
            Text(right + 8, y + 13, row.text),
        ]
    return WIDTH, top + _BAR * len(chart.rows)


def _spreads(chart: Spreads, top: float, shapes: list[Shape]) -> tuple[float, float]:
    left = min(max(max(len(row.name) for row in chart.rows) * _CHARACTER * _SMALL + 20, _LEFT), 240)
    texts = [" · ".join(map(chart.shown, row.quantiles)) for row in chart.rows]
    right = WIDTH - max(190.0, max(map(len, texts)) * _CHARACTER * _SMALL + 14)
    bottom = top + _SPREAD * len(chart.rows)
    shapes.append(Text(right + 10, top - 2, "10 % · median · 90 % · largest", size=10))
    for tick in chart.scale.ticks:
        x = left + (right - left) * chart.scale.place(tick)
        shapes += [Line([(x, top), (x, bottom + 4)], FAINT, 0.7), Text(x, bottom + 16, chart.shown(tick), "middle")]
    step = (right - left) / len(chart.rows[0].bins)
    for place, row in enumerate(chart.rows):
        base, most = top + _SPREAD * (place + 1), max(row.bins)
        boxes = [
            (left + step * column, base - 22 * count / most, step - 0.5, 22 * count / most)
            for column, count in enumerate(row.bins)
            if count
        ]
        median = left + (right - left) * chart.scale.place(row.quantiles[1])
        shapes += [
            Text(left - 8, base - 12, _fitted(row.name, left - 12), "end"),
            Text(left - 8, base - 1, f"{row.total:,}", "end", 9),
            Boxes(boxes, COLOURS[states.RUNNING], states.RUNNING, title=f"{row.name}: {row.total:,} runs"),
            Line([(median, base - 25), (median, base)], INK, 1.5),
            Line([(left, base), (right, base)]),
            Text(right + 10, base - 6, texts[place]),
        ]
    shapes.append(Text((left + right) / 2, bottom + 33, chart.label, "middle"))
    return WIDTH, bottom + _BOTTOM


def _graph(graph: Graph, top: float, shapes: list[Shape]) -> tuple[float, float]:
    is_named = len(graph.nodes) <= MAX_NAMED
    width, height = _NODE if is_named else _DOT
    across, down = (width + 46, height + 12) if is_named else (width + 20, height + 6)
    corners = [(14 + across * node.x, top + down * node.y) for node in graph.nodes]
    for parent, child, _ in graph.edges:
        (x, y), (to_x, to_y) = corners[parent], corners[child]
        start, end = (x + width, y + height / 2), (to_x, to_y + height / 2)
        shapes.append(Line([start, (start[0] + 8, start[1]), (end[0] - 8, end[1]), end], FAINT, 1.2))
    for node, (x, y) in zip(graph.nodes, corners):
        what = ", ".join(f"{count:,} {state}" for state, count in node.states.items()) if node.jobs > 1 else node.state
        title = " · ".join(part for part in (node.name, node.below, what) if part)
        done = 0.0
        for state, count in node.states.items():
            part = count / node.jobs * width
            low = 0.0 if not is_named or node.jobs == 1 else height - 8  # a bar with all states below the names
            if low == 0:
                shapes.append(Boxes([(x, y, width, height)], COLOURS[node.state], node.state, title=title, is_plain=True))
                break
            shapes.append(Boxes([(x + done, y + low, part, 8)], COLOURS[state], state, title=title))
            done += part
        colour = COLOURS[node.state]
        if not is_named:
            shapes.append(Text(x + width / 2, y + height / 2 + 4, SIGNS[node.state], "middle", 10, f"on {colour}"))
            continue
        is_filled = node.jobs == 1
        ink = f"on {colour}" if is_filled else INK
        if not is_filled:
            box = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
            shapes.append(Line(box, INK, 0.8))
        shapes.append(Text(x + 6, y + 14, _fitted(f"{SIGNS[node.state]} {node.name}", width - 8), colour=ink))
        below = node.below if is_filled else f"{number(node.jobs)} jobs{f' of {node.below}' * bool(node.below)}"
        shapes.append(Text(x + 6, y + 27, _fitted(below, width - 8, 10), size=10, colour=ink))
    columns, rows = graph.size
    used = {state: None for node in graph.nodes for state in node.states}
    bottom = top + down * rows + 6
    x = 14.0
    for state in states.STATES:
        if state in used:
            shapes.append(Area([(x, bottom), (x + 12, bottom), (x + 12, bottom + 10), (x, bottom + 10)], COLOURS[state], state))
            shapes.append(Text(x + 17, bottom + 9, f"{SIGNS[state]} {state}", size=10))
            x += 34 + 10 * _CHARACTER * (len(state) + 2)
    return max(14 + across * columns, x), bottom + 18


_DRAWN: dict[type, Callable[[Any, float, list[Shape]], tuple[float, float]]] = {
    TimeChart: _time_chart, Lanes: _lanes, Bars: _bars, Spreads: _spreads, Graph: _graph,
}  # fmt: skip
