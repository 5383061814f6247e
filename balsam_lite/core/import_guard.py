"""While the module of an application is imported once more, to find its class, nothing may be written.

Whoever writes for a user calls `refuse`; `pyapps.class_loader` does the importing. The module is often the very script that
defined the application and then went on to add jobs: itself, or by commands that it starts. Those know by their environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import BalsamError

#: Set while it goes on, for the programs that the module starts.
LOADING_VARIABLE = "BALSAM_LOADING"

_depth = 0


class StopLoading(BaseException):
    """The module has come to where it writes: it is read no further. No Exception, so that scripts do not catch it."""


def is_going_on() -> bool:
    """Whether the module of an application is being imported to find its class, here or by whoever started this process."""
    return _depth > 0 or LOADING_VARIABLE in os.environ


def refuse() -> None:
    """Raise StopLoading if the module of an application is being imported to find its class.

    Raises:
        BalsamError: that is done by another process, and the module has started this one.
    """
    if _depth:
        raise StopLoading
    if LOADING_VARIABLE in os.environ:
        raise BalsamError(
            "Nothing is changed: what started this program is the file of an application, imported only for its class now.",
            hint='Put what shall happen only when the file is run under `if __name__ == "__main__":`.',
        )


@contextmanager
def going_on() -> Iterator[None]:
    """For as long as this lasts, `refuse` refuses, here and in programs that are started meanwhile."""
    global _depth
    _depth += 1
    before = os.environ.get(LOADING_VARIABLE)
    os.environ[LOADING_VARIABLE] = "1"
    try:
        yield
    finally:
        _depth -= 1
        if before is None:
            os.environ.pop(LOADING_VARIABLE, None)
