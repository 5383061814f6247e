"""What tests of several files share."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Callable, TypeVar

if TYPE_CHECKING:
    from balsam_lite.db.engine.connection import Database

T = TypeVar("T")

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

#: A call of the command: its words in, its exit code, stdout and stderr out.
Balsam = Callable[..., "tuple[int, str, str]"]


@contextmanager
def db_with_app(directory: Path) -> Iterator[Database]:
    """Make a DB with the application `a`, and close it at the end."""
    # `slurm_cluster.py` needs this file where the package is not installed yet.
    from balsam_lite.db.engine import directories
    from balsam_lite.db.store import apps

    made = directories.create(str(directory))
    with made.write() as cx:
        apps.add_app(cx, {"name": "a", "executable": "true"})
    try:
        yield made
    finally:
        made.close()


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
    """A Capacity with a number of free places for any shape, and for preparations."""

    def __init__(self, free, preparations=0):
        self.free, self.preparations = free, preparations

    def fits(self, shape):
        return True

    def count(self, shape):
        return self.free

    def reserve(self, shape):
        self.free -= 1
        return object() if self.free >= 0 else None

    def describe(self, place):
        return "", ""
