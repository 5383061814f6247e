"""Write drawings as SVG. In a page, colours follow its style sheet; alone, an SVG is dark on white."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from ..core.display import ink
from .drawing import FAINT, INK, Area, Boxes, Drawing, Line, Point, Shape, is_hatched

#: What colours are without a style sheet.
_PLAIN = {INK: "#222222", FAINT: "#bbbbbb"}
_HATCH = (
    '<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="1.6" height="5" fill="#fff" fill-opacity=".75"/></pattern></defs>'
)


def svg(of: Drawing, label: str, is_alone: bool = True) -> str:
    """Return the text of the SVG. `label` names it for screen readers."""
    size = f'viewBox="0 0 {_n(of.width)} {_n(of.height)}" width="{_n(of.width)}" height="{_n(of.height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="sans-serif" aria-label="{_safe(label)}">'
    back = [f'<rect width="{_n(of.width)}" height="{_n(of.height)}" fill="#fff"/>'] if is_alone else []
    return "\n".join([head, _HATCH, *back, *(text for shape in of.shapes for text in _written(shape)), "</svg>\n"])


def _written(shape: Shape) -> Iterator[str]:
    if isinstance(shape, Area):
        path = f'd="{_path(shape.points)}z"'
        yield f"<path {path} {_fill(shape.fill, shape.state)}/>"
        if is_hatched(shape.state):
            yield f'<path {path} fill="url(#hatch)"/>'
    elif isinstance(shape, Line):
        dash = ' stroke-dasharray="5 3"' * shape.is_dashed
        colour = f'class="{shape.stroke}" stroke="{_PLAIN.get(shape.stroke, shape.stroke)}"'
        yield f'<path d="{_path(shape.points)}" fill="none" {colour} stroke-width="{_n(shape.width)}"{dash}/>'
    elif isinstance(shape, Boxes):
        path = "".join(f"M{_n(x)} {_n(y)}h{_n(width)}v{_n(height)}h{_n(-width)}z" for x, y, width, height in shape.boxes)
        opacity = f' fill-opacity="{_n(shape.opacity)}"' if shape.opacity < 1 else ""
        title = f"><title>{_safe(shape.title)}</title></path>" if shape.title else "/>"
        yield f'<path d="{path}" {_fill(shape.fill, shape.state)}{opacity}{title}'
        if is_hatched(shape.state) and not shape.is_plain:
            yield f'<path d="{path}" fill="url(#hatch)" pointer-events="none"/>'
    else:
        turned = f' transform="rotate(-90 {_n(shape.x)} {_n(shape.y)})"' * shape.is_turned
        anchor = f' text-anchor="{shape.anchor}"' if shape.anchor != "start" else ""
        colour = text_colour(shape.colour)
        style = f'class="{INK}" fill="{_PLAIN[INK]}"' if colour == INK else f'fill="{colour}" pointer-events="none"'
        place = f'x="{_n(shape.x)}" y="{_n(shape.y)}" font-size="{_n(shape.size)}"'
        yield f"<text {place}{anchor}{turned} {style}>{_safe(shape.text)}</text>"


def text_colour(colour: str) -> str:
    """Return the colour of a text; "on COLOUR" is the ink that can be read on it."""
    return ink(colour[3:]) if colour.startswith("on ") else colour


def _fill(colour: str, state: str) -> str:
    name = f"s-{state}" if state.isupper() else f"{colour}-fill" if colour in _PLAIN else ""
    return f'{f"class={chr(34)}{name}{chr(34)} " if name else ""}fill="{_PLAIN.get(colour, colour)}"'


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points)


def _n(value: float) -> str:
    """Return a number with two digits after the point at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


def _safe(text: str) -> str:
    """Return text for XML, which has no control characters."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))
