"""How our Python programs are started in a job's working directory, whose files are data and no modules. Pure."""

from __future__ import annotations

#: What can be started: hooks and preambles, functions of classes, and calls of a BalsamExecutor.
HOOK, FUNCTION, CALL = "hook", "function", "call"
#: `python -m` would look for modules in the working directory first, where a `json.py` or a `balsam_lite.py` may lie. So would
#: `-c`, but here that comes off sys.path before anything is looked for, as `-P` does since Python 3.11; `-I` would drop
#: PYTHONPATH and users' packages, too. An empty entry of PYTHONPATH (`$PYTHONPATH:/lib`) is the working directory as well.
#: Applications have this line stored.
_CODE = (
    "import os, sys; sys.path[:] = [entry for entry in sys.path if entry and entry != os.getcwd()]; "
    "from balsam_lite.launcher.start import {what}; {what}()"
)
_HOOKS = "balsam_lite.launcher.start import hook"
#: The file with the result of a call, in the job's own working directory; hidden, so that the call does not overwrite it.
RESULT = ".balsam-result.pkl"


def words(python: str, what: str, *arguments: str) -> list[str]:
    """The command line that starts HOOK, FUNCTION or CALL with these arguments.

    >>> words("python3", HOOK, "postprocess")[0], words("python3", HOOK, "postprocess")[-1]
    ('python3', 'postprocess')
    """
    return [python, "-c", _CODE.format(what=what), *arguments]


def starts(line: str | None, what: str) -> bool:
    """Return whether the command line of an application starts FUNCTION or CALL."""
    return line is not None and f"balsam_lite.launcher.start import {what};" in line


def is_hook(command: str) -> bool:
    """Whether the command line of a script is one of ours, which tells a user nothing."""
    return _HOOKS in command
