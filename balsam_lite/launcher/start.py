"""Where programs begin that run in a job's working directory: see `python_argv`, which has their command lines."""

import sys


def hook() -> None:
    """Run a hook of a class, or what comes after a preamble: `hook.main`."""
    sys.path[:] = filter(None, sys.path)  # lines that older DBs have stored do not
    from ..pyapps.run_hook import main

    sys.exit(main())


def function() -> None:
    """Run a function of a class: `function.main`."""
    from ..pyapps.run_function import main

    sys.exit(main())


def call() -> None:
    """Run a call of a BalsamExecutor: `call.main`."""
    from ..pyapps.run_call import main

    sys.exit(main())
