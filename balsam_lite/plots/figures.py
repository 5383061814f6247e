"""Write pictures as files: .svg, .dot and .mmd, and with matplotlib, which is imported when it is needed, .png and .pdf."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import BalsamError, InvalidSpec
from ..core.files import replacing
from ..db.engine.filesystem import failure
from .charts import Picture
from .drawing import FAINT, INK, Area, Boxes, Drawing, Line, drawing, is_hatched
from .graph import LANGUAGES, Graph
from .svg import svg, text_colour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_WITH_MATPLOTLIB = (".png", ".pdf")
_DPI = 200
#: Pixels of a drawing in an inch.
_PER_INCH = 100
_COLOURS = {INK: "#222222", FAINT: "#bbbbbb"}
_ANCHORS = {"start": "left", "middle": "center", "end": "right"}


def check_path(path: str, is_graph: bool = False) -> None:
    """Raise InvalidSpec unless the suffix is a known format, and BalsamError unless the directory is writable.

    Also raises BalsamError, with the command that installs it, if the format needs matplotlib, which cannot be imported.
    """
    suffix = os.path.splitext(path)[1].lower()
    known = (*SUFFIXES, *LANGUAGES) if is_graph else SUFFIXES
    if suffix not in known:
        raise InvalidSpec(f"{path!r} has none of the suffixes of figures.", hint=f"Possible are: {', '.join(known)}")
    check_writable(path)
    if suffix in _WITH_MATPLOTLIB:
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError as exc:
            raise BalsamError(
                f"A {suffix} is drawn by matplotlib, which cannot be imported: {exc}",
                hint="Install it with: pip install 'balsam_lite[plot]'\nA .svg needs none, and without -o a terminal neither.",
            ) from exc


def check_writable(path: str) -> None:
    """Raise BalsamError unless a file of that name can be written, as far as this is known before."""
    if os.path.isdir(path):
        raise BalsamError(f"{path} is a directory.")
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise BalsamError(f"{path} cannot be written: there is no directory {directory}.")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise BalsamError(f"{path} cannot be written: files cannot be made in {directory}.")


def save(picture: Picture, path: str) -> None:
    """Write the picture in the format of the path's suffix; an existing file is replaced once the new one is complete.

    Raises:
        InvalidSpec: the suffix is unknown. BalsamError: the file cannot be written.
    """
    suffix = os.path.splitext(path)[1].lower()
    check_path(path, isinstance(picture.charts[0], Graph))
    if suffix in LANGUAGES:
        graph: Any = picture.charts[0]
        write_text(path, "".join(f"{line}\n" for line in LANGUAGES[suffix](graph, picture.title)))
    elif suffix == ".svg":
        write_text(path, svg(drawing(picture), picture.title))
    else:
        _save_with_matplotlib(figure(drawing(picture)), path, suffix[1:])


def write_text(path: str, text: str) -> None:
    """Write a file of text; an existing one is replaced once the new one is complete. Raises BalsamError."""
    try:
        with replacing(path) as unfinished, open(unfinished, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as exc:
        raise cannot_write(path, exc) from exc


def cannot_write(path: str, exc: OSError) -> BalsamError:
    """Return the error that a file cannot be written, with the reason."""
    return BalsamError(f"{path} cannot be written: {failure(exc, path, exc.strerror)}")


def _save_with_matplotlib(made: Figure, path: str, kind: str) -> None:
    import matplotlib

    metadata = {"CreationDate": None} if kind == "pdf" else None
    try:
        with replacing(path) as unfinished, matplotlib.rc_context({"pdf.fonttype": 42}), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a name may contain letters that the font lacks
            made.savefig(unfinished, format=kind, dpi=_DPI, metadata=metadata)
    except OSError as exc:
        raise cannot_write(path, exc) from exc


def figure(of: Drawing) -> Figure:
    """Return the drawing as a figure of matplotlib. Opens no window, and does not change matplotlib's global state."""
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure

    made = Figure(figsize=(of.width / _PER_INCH, of.height / _PER_INCH))
    axes = made.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, of.width)
    axes.set_ylim(of.height, 0)
    point = 72 / _PER_INCH
    for order, shape in enumerate(of.shapes):
        if isinstance(shape, (Area, Boxes)):
            outlines: Sequence[Any] = [shape.points] if isinstance(shape, Area) else [*map(_corners, shape.boxes)]
            opacity = 1.0 if isinstance(shape, Area) else shape.opacity
            fill, hatch = (
                _COLOURS.get(shape.fill, shape.fill),
                "////" if is_hatched(shape.state) and not getattr(shape, "is_plain", False) else None,
            )
            axes.add_collection(
                PolyCollection(
                    outlines, facecolors=fill, edgecolors="#ffffff" if hatch else "none", linewidths=0, hatch=hatch,
                    alpha=opacity, zorder=order,
                )
            )  # fmt: skip
        elif isinstance(shape, Line):
            xs, ys = zip(*shape.points)
            style = (0, (4, 2)) if shape.is_dashed else "solid"
            colour = _COLOURS.get(shape.stroke, shape.stroke)
            axes.plot(xs, ys, color=colour, linewidth=shape.width * point, linestyle=style, zorder=order)
        else:
            axes.text(
                shape.x, shape.y, shape.text, fontsize=shape.size * point, ha=_ANCHORS[shape.anchor], va="baseline",
                rotation=90 if shape.is_turned else 0, color=_COLOURS.get(shape.colour, text_colour(shape.colour)),
                rotation_mode="anchor", parse_math=False, zorder=order,
            )  # fmt: skip
    return made


def _corners(box: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    x, y, width, height = box
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
