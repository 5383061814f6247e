"""Show numbers, durations, sizes, times and states to people: the one place for their words and colours."""

from __future__ import annotations

import time

from .clock import SECOND_US
from .states import STATES

#: Distinguishable with every kind of colour vision (after Paul Tol's schemes), and in grey where they often touch.
COLOURS = {
    "CREATED": "#DDDDDD", "AWAITING_PARENTS": "#AAAAAA", "READY": "#99DDFF", "STAGED_IN": "#BBCC33",
    "PREPROCESSED": "#EEDD88", "RUNNING": "#4477AA", "RUN_DONE": "#44BB99", "POSTPROCESSED": "#AAAA00",
    "JOB_FINISHED": "#117733", "RUN_ERROR": "#CC3311", "RUN_TIMEOUT": "#EE8866", "RESTART_READY": "#AA4499",
    "FAILED": "#882255", "USER_KILLED": "#222222",
}  # fmt: skip
#: A sign for each state, so that it can be told without colours.
SIGNS = dict.fromkeys(STATES, "·") | {
    "RUNNING": "▶", "RUN_DONE": "✓", "POSTPROCESSED": "✓", "JOB_FINISHED": "✓", "RUN_ERROR": "✗", "FAILED": "✗",
    "RUN_TIMEOUT": "⌛", "RESTART_READY": "↻", "USER_KILLED": "■", "AWAITING_PARENTS": "…",
}  # fmt: skip


def ink(colour: str) -> str:
    """Return black or white, whichever is easier to read on that colour (relative luminance as in WCAG 2.1).

    >>> ink("#EEDD88"), ink("#117733")
    ('#000', '#fff')
    """
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return "#000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#fff"


def number(value: float) -> str:
    """Return a number with separators of thousands, and at most three significant digits after the point.

    >>> number(1234567), number(2.5), number(0.12345), number(1234.5)
    ('1,234,567', '2.5', '0.123', '1,234')
    """
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def counted(count: int, noun: str) -> str:
    """Return a number of things in words.

    >>> counted(1, "job"), counted(2000, "job")
    ('1 job', '2,000 jobs')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Return a duration with its unit, to two or three digits.

    >>> duration(0.0123), duration(1.5), duration(90), duration(754), duration(7200), duration(86400 * 40)
    ('12 ms', '1.5 s', '90 s', '12.6 min', '2 h', '40 days')
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms" if seconds else "0 s"
    for unit_s, most, unit in ((1, 120, "s"), (60, 7200, "min"), (3600, 172_800, "h")):
        if seconds < most:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds / 86400:.3g} days"


def size(number: float) -> str:
    """Return a number of bytes with its unit.

    >>> size(999), size(1500), size(2_000_000_000)
    ('999 bytes', '1.5 kB', '2.0 GB')
    """
    if number < 1000:
        return f"{number:.0f} bytes"
    value, units = number / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.95 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.1f} {unit}"


def moment(time_us: int) -> str:
    """Return a time to the second, in UTC.

    >>> moment(1538593440143928)
    '2018-10-03 19:04:00 UTC'
    """
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time_us // SECOND_US))
