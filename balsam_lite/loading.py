"""While the module of an application is imported once more, to find its class, nothing may be written.

Whoever writes for a user calls `refuse`; `launcher.application` does the importing. The module is often the very script that
defined the application and then went on to add jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


class StopLoading(BaseException):
    """The module has come to where it writes: it is read no further. No Exception, so that scripts do not catch it."""


def is_going_on() -> bool:
    """Whether the module of an application is being imported to find its class."""
    return _depth > 0


def refuse() -> None:
    """Raise StopLoading if the module of an application is being imported to find its class."""
    if _depth:
        raise StopLoading


@contextmanager
def going_on() -> Iterator[None]:
    """For as long as this lasts, `refuse` refuses."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
