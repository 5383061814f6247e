"""Draw the plots as figures (.png, .svg or .pdf) with matplotlib, which is imported when a figure is drawn.

Every plot function takes data from `timeline` and a title, and returns a matplotlib Figure; `save` writes it. No window
is opened, and matplotlib's global state is not changed.
"""

from __future__ import annotations

import os
import warnings
from array import array
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import BalsamError, InvalidSpec
from ..core.files import replacing
from ..db.engine.filesystem import failure
from . import timeline
from .timeline import Counts, Curve, Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

#: Distinguishable with every kind of colour vision (after Paul Tol's schemes), and in grey where they often touch.
COLOURS = {
    "CREATED": "#DDDDDD", "AWAITING_PARENTS": "#AAAAAA", "READY": "#99DDFF", "STAGED_IN": "#BBCC33",
    "PREPROCESSED": "#EEDD88", "RUNNING": "#4477AA", "RUN_DONE": "#44BB99", "POSTPROCESSED": "#AAAA00",
    "JOB_FINISHED": "#117733", "RUN_ERROR": "#CC3311", "RUN_TIMEOUT": "#EE8866", "RESTART_READY": "#AA4499",
    "FAILED": "#882255", "USER_KILLED": "#222222",
}  # fmt: skip
_SIZE_INCHES = (7.2, 3.8)
_DPI = 200
#: Maximum number of runs that are drawn one by one; more are drawn as an image with this many rows and columns.
_MAX_BARS = 2000
_ROWS, _COLUMNS = 400, 1200
#: Width and height in pixels of the axes of a timeline, without the legend and the title.
_PIXELS = (1080, 600)
#: Minimum width and height in pixels of a bar with a white rim; a smaller one would be all rim. The thickness of the rim is
#: in points (of 2.8 pixels); bars of less than 10 pixels get a thinner one.
_RIMMED, _RIM = 3.0, 0.4
#: A state with less than this part of the picture is not visible, and is left out of the legend.
_FAINTEST = 0.0005


def check_path(path: str) -> None:
    """Raise InvalidSpec unless the suffix is a known format, and BalsamError unless the directory is writable."""
    if os.path.splitext(path)[1].lower() not in SUFFIXES:
        raise InvalidSpec(f"{path!r} has none of the suffixes of figures.", hint=f"Possible are: {', '.join(SUFFIXES)}")
    if os.path.isdir(path):
        raise BalsamError(f"{path} is a directory.")
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise BalsamError(f"{path} cannot be written: there is no directory {directory}.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise BalsamError(f"{path} cannot be written: files cannot be made in {directory}.")


def check_matplotlib() -> None:
    """Raise BalsamError, with the command that installs it, unless matplotlib can be imported."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as exc:
        raise BalsamError(
            f"A figure is drawn by matplotlib, which cannot be imported: {exc}",
            hint="Install it with: pip install 'balsam_lite[plot]'\nWithout -o the plot is shown in the terminal.",
        ) from exc


def save(figure: Figure, path: str) -> None:
    """Write the figure in the format given by the path's suffix; an existing file is replaced once the new one is complete.

    Raises:
        InvalidSpec: the suffix is unknown. BalsamError: the file cannot be written.
    """
    import matplotlib

    check_path(path)
    kind = os.path.splitext(path)[1].lower()[1:]
    # Keep text as text, so that it can be searched and edited before it goes into a paper.
    settings: Any = {"svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "balsam"}
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    try:
        with replacing(path) as unfinished, matplotlib.rc_context(settings), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a name may contain letters that the font lacks
            figure.savefig(unfinished, format=kind, dpi=_DPI, metadata=metadata)
    except OSError as exc:
        raise BalsamError(f"{path} cannot be written: {failure(exc, path, exc.strerror)}") from exc


# --- the plots --------------------------------------------------------------------------------------------------------


def throughput(done: Curve, since: int, title: str) -> Figure:
    """Plot the number of jobs done over time, starting at `since`."""
    clock = _TimeAxis(since, done.times[-1])
    figure, axes = _canvas(title, clock, "Jobs done")
    curve = timeline.thinned(done)
    times, (values,) = _to_the_edge(clock, curve.times, [curve.values])
    axes.step(clock.read([since, *times]), [0, *values], where="post", color=COLOURS["JOB_FINISHED"], linewidth=1.5)
    axes.set_ylim(0, 1.05 * done.values[-1])
    _whole_numbers(axes.yaxis)
    return figure


def utilization(used: Curve, available: Curve, title: str) -> Figure:
    """Plot the nodes in use over time, and the available nodes where they are known."""
    clock = _TimeAxis(min([used.times[0], *available.times[:1]]), max([used.times[-1], *available.times[-1:]]))
    figure, axes = _canvas(title, clock, "Nodes")
    if available.times:
        curve = timeline.thinned(available)
        times, values = [curve.times[0], *curve.times], [0, *curve.values]
        axes.step(clock.read(times), values, where="post", color="#222222", linewidth=1.2, label="available")
    curve = timeline.thinned(used)
    axes.fill_between(
        clock.read(curve.times), curve.values, label="in use", step="post", color=COLOURS["RUNNING"], alpha=0.85, linewidth=0
    )
    axes.set_ylim(0, 1.05 * max([*curve.values, *available.values]) or 1)
    _thousands(axes.yaxis)
    _legend(axes, "Nodes")
    return figure


def states(counts: Counts, title: str) -> Figure:
    """Plot the jobs in each state over time, stacked from the final states at the bottom to the initial states at the top."""
    clock = _TimeAxis(counts.times[0], counts.times[-1])
    figure, axes = _canvas(title, clock, "Jobs")
    names = [*reversed(counts.by_state)]
    times, rows = _to_the_edge(clock, counts.times, [counts.by_state[name] for name in names])
    areas = axes.stackplot(clock.read(times), *rows, colors=[COLOURS[name] for name in names], step="post", linewidth=0)
    axes.set_ylim(0, max(map(sum, zip(*rows))))
    _whole_numbers(axes.yaxis)
    sums = [timeline.mean(Curve(times, row), times[0], times[-1]) for row in rows]
    seen = []
    for area, name, total in zip(areas, names, sums):
        if total >= _FAINTEST * sum(sums):
            area.set_label(name)
            seen.append(area)
    _legend(axes, "State", seen[::-1])
    return figure


def gantt(runs: Runs, title: str) -> Figure:
    """Draw one bar per run, in the lowest free lane, coloured by how the run ended; draw very many runs as an image."""
    clock = _TimeAxis(runs.starts[0], runs.until)
    figure, axes = _canvas(title, clock, "Lane (runs side by side)")
    lanes = timeline.lanes(runs)
    count = max(lanes) + 1
    draw = _bars if len(runs.starts) <= _MAX_BARS else _image
    draw(axes, clock, runs, lanes)
    axes.set_ylim(0, count)
    _whole_numbers(axes.yaxis)
    from matplotlib.patches import Patch

    shown = {timeline.state_name(code) for code in set(runs.codes)}
    _legend(axes, "Run ended in", [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in shown])
    return figure


# --- runs -------------------------------------------------------------------------------------------------------------


def _bars(axes: Axes, clock: _TimeAxis, runs: Runs, lanes: array[int]) -> None:
    from matplotlib.collections import PolyCollection

    pixel, height = clock.length / _PIXELS[0], _PIXELS[1] / (max(lanes) + 1)
    gap = 0.08 if height >= _RIMMED else 0.0
    corners, rims = [], []
    for left, right, lane in zip(clock.read(runs.starts), clock.read(runs.ends), lanes):
        right = max(right, left + pixel)
        low, high = lane + gap, lane + 1 - gap
        corners.append(((left, low), (right, low), (right, high), (left, high)))
        rims.append(_rim(min((right - left) / pixel, height)))
    colours = [COLOURS[timeline.state_name(code)] for code in runs.codes]
    axes.add_collection(PolyCollection(corners, facecolors=colours, edgecolors="white", linewidths=rims))


def _rim(pixels: float) -> float:
    """Return the width of the rim of a bar whose shorter side has that many pixels.

    >>> _rim(100), _rim(5), _rim(2.9)
    (0.4, 0.2, 0.0)
    """
    return min(_RIM, _RIM * pixels / 10) if pixels >= _RIMMED else 0.0


def _image(axes: Axes, clock: _TimeAxis, runs: Runs, lanes: array[int]) -> None:
    """Draw an image in which each pixel has the colour of a final state of its runs, paler where runs cover less of it.

    The state of a pixel is drawn at random, weighted by how much of the pixel each state covers. So each state has the same
    share of the picture as of the time; the state that covers most would entirely hide a tenth of errors. The seed is fixed.
    """
    import numpy
    from matplotlib.colors import to_rgb

    lane = numpy.asarray(lanes)
    count = int(lane.max()) + 1
    rows = min(count, _ROWS)
    codes = numpy.asarray(runs.codes)
    row = lane * rows // count
    starts, ends = (numpy.asarray(clock.read(times)) / clock.length * _COLUMNS for times in (runs.starts, runs.ends))
    covered = {
        code: _coverage(starts[codes == code], ends[codes == code], row[codes == code], rows) for code in set(runs.codes)
    }
    known = sorted(covered)
    layers = numpy.stack([covered[code] for code in known])
    colours = numpy.array([to_rgb(COLOURS[timeline.state_name(code)]) for code in known])
    lanes_in_row = numpy.bincount(numpy.arange(count) * rows // count, minlength=rows)[:, None]
    lots = numpy.random.default_rng(0).random((rows, _COLUMNS)) * layers.sum(axis=0)
    picture = numpy.empty((rows, _COLUMNS, 4))
    picture[..., :3] = colours[(lots < layers.cumsum(axis=0)).argmax(axis=0)]
    picture[..., 3] = (layers.sum(axis=0) / lanes_in_row).clip(0, 1)
    extent = (0, clock.length, 0, count)
    axes.imshow(picture, extent=extent, origin="lower", aspect="auto", interpolation="nearest")


def _coverage(starts: Any, ends: Any, row: Any, rows: int) -> Any:
    """Return how much of each pixel these runs cover, with times counted in columns.

    Integrate the contributions of the starts: the rest of the start's own pixel, and all later ones; an end subtracts the same.
    """
    import numpy

    own = numpy.zeros(rows * (_COLUMNS + 2))
    after = numpy.zeros_like(own)
    for times, sign in ((starts, 1.0), (ends, -1.0)):
        column = times.astype(int).clip(0, _COLUMNS)
        place = row * (_COLUMNS + 2) + column
        own += sign * numpy.bincount(place, 1 - (times - column), len(own))
        after += sign * numpy.bincount(place + 1, minlength=len(own))
    shape = (rows, _COLUMNS + 2)
    return (own.reshape(shape) + after.reshape(shape).cumsum(axis=1))[:, :_COLUMNS].clip(0, None)


# --- axes -------------------------------------------------------------------------------------------------------------


class _TimeAxis:
    """The time axis: time since `first`, in the unit that is easiest to read."""

    def __init__(self, first: int, last: int) -> None:
        self._first = first
        self.unit, self._unit_us = timeline.unit(last - first)
        #: Length of the axis, with some room for the last step; not 0 even if everything happened at one moment.
        self.length = max(1.01 * (last - first) / self._unit_us, 1e-3)
        #: The end of the axis as a time.
        self.end = first + round(self.length * self._unit_us)
        self.label = f"Time since {timeline.moment(first)} ({self.unit})"

    def read(self, times: Any) -> list[float]:
        """Return those times as positions on the axis."""
        return [(time - self._first) / self._unit_us for time in times]


def _canvas(title: str, clock: _TimeAxis, label: str) -> tuple[Figure, Axes]:
    check_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE_INCHES, constrained_layout=True)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.set_xlabel(clock.label)
    axes.set_ylabel(label)
    axes.set_xlim(0, clock.length)
    axes.spines["top"].set_visible(False)
    axes.spines["right"].set_visible(False)
    return figure, axes


def _to_the_edge(clock: _TimeAxis, times: Sequence[int], rows: list[Any]) -> tuple[list[int], list[list[float]]]:
    """Repeat the last values at the end of the axis, so that a single moment has some width."""
    return [*times, max(clock.end, times[-1])], [[*values, values[-1]] for values in rows]


def _whole_numbers(axis: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    _thousands(axis)


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _legend(axes: Axes, title: str, handles: list[Any] | None = None) -> None:
    """Place the legend to the right of the axes, so that it covers nothing."""
    if handles is None:
        handles, _ = axes.get_legend_handles_labels()
    place: Mapping[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0}
    axes.legend(handles=handles, title=title, frameon=False, fontsize=8, title_fontsize=8, **place)
