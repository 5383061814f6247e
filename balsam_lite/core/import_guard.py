"""Keep a script from writing to a DB while it is imported only to find the class of an application.

Every function that writes for a user calls `check_writable`; `pyapps.class_loader` imports. The module is often the script
that defined the application and then added jobs, directly or with commands that it runs. Such commands detect the import by
their environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import BalsamError

#: Set during the import, for the programs that the module starts.
IMPORTING_VARIABLE = "BALSAM_IMPORTING"

_depth = 0


class StopImport(BaseException):
    """The module has reached a statement that writes: stop its import. Not an Exception, so that scripts do not catch it."""


def is_importing() -> bool:
    """Return whether an application's module is being imported to find its class, by this process or one that started it."""
    return _depth > 0 or IMPORTING_VARIABLE in os.environ


def check_writable() -> None:
    """Raise StopImport if the module of an application is being imported to find its class.

    Raises:
        BalsamError: another process does that, and the module has started this one.
    """
    if _depth:
        raise StopImport
    if IMPORTING_VARIABLE in os.environ:
        raise BalsamError(
            "Nothing is changed: what started this program is the file of an application, imported only for its class now.",
            hint='Put what shall happen only when the file is run under `if __name__ == "__main__":`.',
        )


@contextmanager
def importing() -> Iterator[None]:
    """Make `check_writable` raise inside the block, in this process and in programs that it starts."""
    global _depth
    _depth += 1
    before = os.environ.get(IMPORTING_VARIABLE)
    os.environ[IMPORTING_VARIABLE] = "1"
    try:
        yield
    finally:
        _depth -= 1
        if before is None:
            os.environ.pop(IMPORTING_VARIABLE, None)
