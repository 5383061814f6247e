"""Find round ticks for the axes of plots: values, times and logarithmic scales. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..core.clock import SECOND_US
from ..core.display import moment

#: Unit, its seconds, the longest span (in that unit) that is shown in it, and its round steps besides 1, 2, 5, 10, 20, 50, ….
_UNITS = (
    ("seconds", 1, 180, (15, 30, 60)), ("minutes", 60, 180, (15, 30, 60)), ("hours", 3600, 72, (3, 6, 12, 24)),
    ("days", 86400, math.inf, (7, 14)),
)  # fmt: skip
#: Round durations in seconds for logarithmic scales.
_DURATIONS = (
    *(digit * 10.0**power for power in range(-3, 1) for digit in (1, 2, 5)), 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600,
    7200, 18000, 43200, 86400, 172800, 432000, 864000, 1728000, 4320000, 8640000,
)  # fmt: skip


def round_step(least: float, others: Sequence[float] = ()) -> float:
    """Return the smallest round number that is not less than `least`: 1, 2, 5, 10, …, 0.1, 0.2, … or one of the others.

    >>> round_step(3), round_step(0.03), round_step(13, (15,)), round_step(0)
    (5.0, 0.05, 15, 1.0)
    """
    if least < 1e-12:
        return 1.0
    magnitude = 10.0 ** math.floor(math.log10(least))
    rounds = [float(f"{digit * magnitude:.1g}") for digit in (1, 2, 5, 10)]
    return min(step for step in (*rounds, *others) if step >= least * (1 - 1e-9))


def value_ticks(top: float, most: int = 5, is_whole: bool = False) -> list[float]:
    """Return round ticks from 0 to the first that is not below `top`, at most `most` + 1 of them.

    >>> value_ticks(7), value_ticks(0.3), value_ticks(0), value_ticks(2, is_whole=True)
    ([0.0, 2.0, 4.0, 6.0, 8.0], [0.0, 0.1, 0.2, 0.3], [0.0, 1.0], [0.0, 1.0, 2.0])
    """
    step = round_step(max(top / most, 1 if is_whole else 0))
    count = max(math.ceil(top / step * (1 - 1e-9)), 1)
    return [float(f"{step * place:.10g}") for place in range(count + 1)]


class TimeAxis(NamedTuple):
    """A span of time with its round ticks, each (microseconds since `first`, text)."""

    first: int
    last: int
    ticks: list[tuple[int, str]]
    label: str

    def place(self, time_us: float) -> float:
        """Return where that time is on the axis, from 0 to 1."""
        return (time_us - self.first) / (self.last - self.first)


def time_axis(first: int, last: int, most: int = 8) -> TimeAxis:
    """Return the axis for that span of time, which is at least a millisecond long.

    >>> axis = time_axis(0, 50 * SECOND_US)
    >>> [text for _, text in axis.ticks], axis.label
    (['0', '10', '20', '30', '40', '50'], 'Time since 1970-01-01 00:00:00 UTC (seconds)')
    """
    last = max(last, first + SECOND_US // 1000)
    name, unit_s, others = next(
        (name, unit_s, others) for name, unit_s, limit, others in _UNITS if last - first <= limit * unit_s * SECOND_US
    )
    unit_us = unit_s * SECOND_US
    step = round_step((last - first) / unit_us / most, others)
    count = math.floor((last - first) / unit_us / step * (1 + 1e-9))
    ticks = [(round(place * step * unit_us), f"{place * step:.6g}") for place in range(count + 1)]
    return TimeAxis(first, last, ticks, f"Time since {moment(first)} ({name})")


class LogScale(NamedTuple):
    """A logarithmic scale: `edges` of its bins, and round ticks."""

    edges: list[float]
    ticks: list[float]

    def place(self, value: float) -> float:
        """Return where that value is on the scale, from 0 to 1."""
        low, high = math.log(self.edges[0]), math.log(self.edges[-1])
        return min(max((math.log(max(value, self.edges[0])) - low) / (high - low), 0.0), 1.0)


def log_scale(low: float, high: float, bins: int, is_time: bool, most: int = 6) -> LogScale:
    """Return a scale from about `low` to about `high`: seconds with `is_time`, else bytes. Values of 0 count as very small.

    >>> log_scale(0.5, 700, 10, True).ticks
    [0.5, 2.0, 10, 30, 120, 600]
    """
    low = max(low, 1e-3 if is_time else 1.0)
    high = max(high, 2 * low)
    low, high = low / 1.15, high * 1.15
    edges = [low * (high / low) ** (place / bins) for place in range(bins + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    rounds = _DURATIONS if is_time else [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    inside = [tick for tick in rounds if low <= tick <= high]
    stride = -(-len(inside) // most) or 1
    return LogScale(edges, inside[::stride])
