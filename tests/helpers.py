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


class Slots:
    """A Room with so many places for whatever comes, and for so many preparations."""

    def __init__(self, free, preparations=0):
        self.free, self.preparations = free, preparations

    def fits(self, shape):
        return True

    def count(self, shape):
        return self.free

    def reserve(self, shape):
        self.free -= 1
        return object() if self.free >= 0 else None
