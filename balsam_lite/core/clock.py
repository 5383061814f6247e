"""Time as the rest of the program sees it: integer microseconds UTC for the record, monotonic seconds for waiting.

Whatever needs the time takes a `Clock`, so that tests can hold it still.
"""

from __future__ import annotations

import time
from typing import Protocol

SECOND_US = 1_000_000


class Clock(Protocol):
    def now_us(self) -> int:
        """Wall-clock time in microseconds since the epoch, UTC."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; only differences mean anything."""

    def sleep(self, seconds: float) -> None:
        """Let that much time pass, signals or not."""


class SystemClock:
    """The machine's own clocks."""

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
    """The slides' history format, `10-03-2018 19:04:00.143928`, in UTC.

    >>> format_us(1538593440143928)
    '10-03-2018 19:04:00.143928'
    """
    seconds, micros = divmod(time_us, SECOND_US)
    return f"{time.strftime('%m-%d-%Y %H:%M:%S', time.gmtime(seconds))}.{micros:06d}"


def iso_us(time_us: int) -> str:
    """The same as ISO 8601 has it.

    >>> iso_us(1538593440143928)
    '2018-10-03T19:04:00.143928Z'
    """
    seconds, micros = divmod(time_us, SECOND_US)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{micros:06d}Z"
