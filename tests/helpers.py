"""What tests of several files share."""

from __future__ import annotations

import time
from typing import Callable, TypeVar

T = TypeVar("T")


def wait_until(predicate: Callable[[], T], timeout: float = 20.0, pause: float = 0.02) -> T:
    """Call `predicate` until it says something true, and return that; fail after `timeout` seconds."""
    give_up = time.monotonic() + timeout
    while True:
        found = predicate()
        if found:
            return found
        if time.monotonic() > give_up:
            raise AssertionError(f"not within {timeout:g} s: {getattr(predicate, '__name__', predicate)} said {found!r}")
        time.sleep(pause)
