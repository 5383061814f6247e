"""The entry points of programs that run in a job's working directory: see `payload`."""

import sys


def hook() -> None:
    """Run a hook of a class, or the commands of its `shell_preamble` and then the program."""
    from .run_class import run_hook

    sys.exit(run_hook())


def function() -> None:
    """Run the `run` function of a class."""
    from .run_class import run_function

    sys.exit(run_function())


def call() -> None:
    """Run a call of a BalsamExecutor."""
    from .run_call import run_call

    sys.exit(run_call())
