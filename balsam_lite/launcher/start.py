"""Forwards for command lines that DBs of earlier versions have stored; new ones name `pyapps.entry_points`."""

import sys

from ..pyapps.entry_points import function

__all__ = ["call", "function", "hook"]


def hook() -> None:
    """Run a hook of a class. The lines of the earliest versions leave the working directory on sys.path."""
    sys.path[:] = filter(None, sys.path)
    from ..pyapps.entry_points import hook as run

    run()


def call() -> None:
    """Run a call of a BalsamExecutor, whose result has the name and the form that the earlier version looks for."""
    from ..pyapps.run_call import run_old_call

    sys.exit(run_old_call())
