"""The beginning of programs that run in a job's working directory: see `interpreter`, which has their command lines.

Imports nothing but `sys` before that directory is off sys.path.
"""

import sys


def hook() -> None:
    """Run a hook of a class, or what comes after a preamble: `hook.main`."""
    _leave_out_data()
    from .hook import main

    sys.exit(main())


def function() -> None:
    """Run a function of a class: `function.main`."""
    _leave_out_data()
    from .function import main

    sys.exit(main())


def _leave_out_data() -> None:
    """`python -c` has put the working directory first, as an empty entry; `-P` and PYTHONSAFEPATH keep it from that."""
    sys.path[:] = filter(None, sys.path)
