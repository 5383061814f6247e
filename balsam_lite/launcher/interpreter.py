"""How our Python programs are started in a job's working directory, whose files are data and no modules. Pure."""

from __future__ import annotations

#: What can be started: hooks and preambles, and functions.
HOOK, FUNCTION = "hook", "function"
#: `python -m` would look for modules in the working directory first, where a `json.py` may lie. `start` takes it off sys.path,
#: as `-P` does since Python 3.11; `-I` would drop PYTHONPATH and users' packages, too. Applications have this line stored.
_CODE = "from balsam_lite.launcher.start import {what}; {what}()"


def words(python: str, what: str, *arguments: str) -> list[str]:
    """The command line that starts HOOK or FUNCTION with these arguments.

    >>> words("python3", HOOK, "postprocess")
    ['python3', '-c', 'from balsam_lite.launcher.start import hook; hook()', 'postprocess']
    """
    return [python, "-c", _CODE.format(what=what), *arguments]
