"""The clock of the program, and durations in the notations of users.

Stored times are integer microseconds UTC; waiting uses monotonic seconds. Code that needs the time takes a `Clock`, so that
tests can control it.

Schedulers read a two-part time differently: `1:30` is a minute and a half to Slurm (sbatch(1), 22.05: minutes:seconds) and
PBS (pbs_resources(7B), 23.06: [[HH:]MM:]SS), an hour and a half to Cobalt (qsub 1.0.33: [[DD:]HH:]MM). So it is rejected.
"""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import datetime

SECOND_US = 1_000_000


class Clock(Protocol):
    def now_us(self) -> int:
        """Return the wall-clock time in microseconds since the epoch, UTC."""

    def monotonic(self) -> float:
        """Return seconds on a clock that never goes back; only differences are meaningful."""

    def sleep(self, seconds: float) -> None:
        """Wait for that time, regardless of signals."""


class SystemClock:
    """The clocks of the machine."""

    @staticmethod
    def now_us() -> int:
        return time.time_ns() // 1000

    @staticmethod
    def monotonic() -> float:
        return time.monotonic()

    @staticmethod
    def sleep(seconds: float) -> None:
        time.sleep(seconds)


def format_us(time_us: int) -> str:
    """Format a time as in Balsam's slides, `10-03-2018 19:04:00.143928`, in UTC.

    >>> format_us(1538593440143928)
    '10-03-2018 19:04:00.143928'
    """
    seconds, micros = divmod(time_us, SECOND_US)
    return f"{time.strftime('%m-%d-%Y %H:%M:%S', time.gmtime(seconds))}.{micros:06d}"


def iso_us(time_us: int) -> str:
    """Format a time as in ISO 8601.

    >>> iso_us(1538593440143928)
    '2018-10-03T19:04:00.143928Z'
    """
    seconds, micros = divmod(time_us, SECOND_US)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06d}Z"


def us_of(moment: datetime) -> int:
    """Return a datetime as microseconds since the epoch; one without a time zone is UTC.

    >>> from datetime import datetime
    >>> us_of(datetime(1970, 1, 1, 0, 0, 1))
    1000000
    """
    from datetime import datetime, timedelta

    # Not by `astimezone`, which fails in the first and last hours that a datetime can represent.
    since = moment.replace(tzinfo=None) - datetime(1970, 1, 1) - (moment.utcoffset() or timedelta())  # noqa: DTZ001
    return since // timedelta(microseconds=1)


FORMS = "minutes, or a time such as 90m, 1h30m, 01:30:00 or 2-00:00:00"
#: Maximum number of seconds; thirty thousand years, and far from where floating-point numbers lose whole seconds.
_MAX_S = 10**12
# Text, compiled on first use: every command imports this module, and few parse a time.
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{0,30})?(?:e-[0-9]{1,2})?"
_UNITS = r"\s*".join(
    rf"(?:([0-9]{{1,15}}(?:\.[0-9]{{1,9}})?)\s*(?:{names}))?"
    for names in ("d|days?", "h|hrs?|hours?", "m|mins?|minutes?", "s|secs?|seconds?")
)
_DAYS = r"([0-9]{1,12})-([0-9]{1,2})(?::([0-9]{1,2}))?(?::([0-9]{1,2}))?"
_COLONS = r"(?:([0-9]{1,12}):)?([0-9]{1,12}):([0-9]{1,2}):([0-9]{1,2})"
_TWO_PARTS = r"([0-9]{1,12}):([0-9]{1,12})"
_PARTS_S = (86400, 3600, 60, 1)


def minutes(text: str) -> float:
    """Return the minutes that a text specifies. Raise ValueError, with a message to follow the name of the field.

    >>> minutes("90"), minutes("1h30m"), minutes("01:30:00"), minutes("1-00:00:00"), minutes("2d"), minutes("90s")
    (90.0, 90.0, 90.0, 1440.0, 2880.0, 1.5)
    """
    text = text.strip()
    if re.fullmatch(_NUMBER, text):
        return _checked(60 * float(text), text) / 60
    two = re.fullmatch(_TWO_PARTS, text)
    if two:
        first, second = (int(part) for part in two.groups())
        raise ValueError(
            f"must not be {text}: that is {first} h {second} min to some schedulers, and {first} min {second} s to others."
            f" Write {first}h{second}m or {first}m{second}s"
        )
    with_units = re.fullmatch(_UNITS, text, re.IGNORECASE) if text else None
    found = with_units or re.fullmatch(_DAYS, text) or re.fullmatch(_COLONS, text)
    if found is None:
        raise ValueError(f"must be {FORMS}, not {text!r:.60}")
    parts = [float(part or 0) for part in found.groups()]
    if not with_units and max(parts[2:]) >= 60:
        raise ValueError(f"must not be {text}: there are 60 minutes in an hour and 60 seconds in a minute")
    return _checked(sum(part * unit for part, unit in zip(parts, _PARTS_S)), text) / 60


def whole_minutes(text: str) -> int:
    """Return the minutes that a text specifies, rounded up to whole ones, as schedulers count them. Raise ValueError.

    A number without a unit must be whole: a fraction of a minute is probably a mistake.

    >>> whole_minutes("61s"), whole_minutes("01:00:00"), whole_minutes("0.5h")
    (2, 60, 30)
    """
    if re.fullmatch(_NUMBER, text.strip()) and not text.strip().isdigit():
        raise ValueError(f"must be a whole number of {FORMS}, not {text!r:.60}")
    return math.ceil(round(minutes(text), 6))


def spoken(seconds: float) -> str:
    """Return a duration as text, in the largest unit of which it has at least two.

    >>> spoken(7.3), spoken(119), spoken(754), spoken(7200), spoken(86400 * 40)
    ('7 s', '119 s', '12 min', '2 h', '40 days')
    """
    for unit_s, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _checked(seconds: float, text: str) -> float:
    if seconds > _MAX_S:
        raise ValueError(f"is out of range: {text:.60}")
    return seconds
