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
    """Run calls of a BalsamExecutor, as a worker, or a single one."""
    if sys.argv[1:2] == ["--worker"]:
        from .worker import serve

        sys.exit(serve())
    from .run_call import run_call

    sys.exit(run_call())
