"""Command lines that start our Python programs in a job's working directory, whose files are data, not modules. Pure."""

from __future__ import annotations

from . import result_file

#: The programs of `entry_points`: hooks and preambles, functions of classes, and calls of a BalsamExecutor.
HOOK, FUNCTION, CALL = "hook", "function", "call"
#: `python -m` would look for modules in the working directory first, where a `json.py` or `balsam_lite.py` is data. So would
#: `-c`, but here that comes off sys.path before anything is looked for, as `-P` does since Python 3.11; `-I` would drop
#: PYTHONPATH and users' packages, too. An empty entry of PYTHONPATH (`$PYTHONPATH:/lib`) is the working directory as well.
#: Applications have this line stored.
_CODE = (
    "import os, sys; sys.path[:] = [entry for entry in sys.path if entry and entry != os.getcwd()]; "
    "from balsam_lite.pyapps.entry_points import {what}; {what}()"
)
#: Modules from which a stored line may import the program; the second one has those of earlier versions.
_MODULES = ("balsam_lite.pyapps.entry_points", "balsam_lite.launcher.start")
#: The file with the result of a call that an earlier version has added, in the job's own working directory.
OLD_RESULT = ".balsam-result.pkl"


def words(python: str, what: str, *arguments: str) -> list[str]:
    """Return the command line that starts HOOK, FUNCTION or CALL with these arguments.

    >>> words("python3", HOOK, "postprocess")[0], words("python3", HOOK, "postprocess")[-1]
    ('python3', 'postprocess')
    """
    return [python, "-c", _CODE.format(what=what), *arguments]


def is_hook(command: str) -> bool:
    """Return whether a script's command line starts HOOK: such a line tells a user nothing."""
    return any(f"{module} import {HOOK}" in command for module in _MODULES)


def result_name(executable: str | None, job_id: str) -> str:
    """Return the name of the file with the result, if an application's command line starts FUNCTION or CALL, else "".

    >>> result_name(" ".join(words("python3", CALL)), "7df86c8b-4")
    '.balsam-7df86c8b.pkl'
    """
    if executable is None:
        return ""
    if f"{_MODULES[1]} import {CALL};" in executable:
        return OLD_RESULT
    is_ours = any(f"{module} import {what};" in executable for module in _MODULES for what in (FUNCTION, CALL))
    return result_file.file_name(job_id) if is_ours else ""
