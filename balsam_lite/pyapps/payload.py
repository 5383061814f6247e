"""How jobs of Python code are started: the class of an application, the payload file, and the command lines of our programs.

The launcher writes a `TaskPayload` into the job's working directory just before it starts a job whose application is a
class with a `run` function or a `shell_preamble`: compute ranks open no DB. A command line starts one of our programs in a
job's working directory, whose files are data, not modules.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

from ..core import files
from ..core.errors import InvalidSpec
from . import result_file


class ClassRef(NamedTuple):
    """The location of a class; as a JSON object the `definition` of an application. Without a name: a script or module.

    A class that no file defines at its top level is stored itself, in `pickled`.
    """

    file: str  # absolute; "" if it is pickled
    name: str  # of the class, at the top level of the file
    module: str = ""  # under which it was imported; "__main__": it was a script
    path: tuple[str, ...] = ()  # what sys.path had where it was defined
    python: str = ""  # the interpreter
    is_open: bool = False  # its `run` accepts any parameters (**kwargs)
    has_preamble: bool = False  # it overrides `shell_preamble`
    pickled: str = ""  # the class by value (see `core.pickling`), as base64


_KEYS = {"name": "class", "is_open": "open", "has_preamble": "preamble"}


def definition_of(ref: ClassRef) -> dict[str, Any]:
    """Return the `definition` of the application with that class."""
    return {_KEYS.get(field, field): value for field, value in ref._asdict().items() if field != "pickled" or value}


@lru_cache(maxsize=64)
def class_ref(definition: str) -> ClassRef:
    """Return the reference in a `definition`, which is JSON text.

    Raises:
        InvalidSpec: it is no such object.
    """
    try:
        found = json.loads(definition)
        known = {field: found[_KEYS.get(field, field)] for field in ClassRef._fields if _KEYS.get(field, field) in found}
        ref = ClassRef(**known)
        if not all(isinstance(text, str) for text in (ref.file, ref.name, ref.module, ref.python, ref.pickled)):
            raise TypeError("a value is not text")
        return ref._replace(path=tuple(map(str, ref.path)))
    except (TypeError, ValueError, AttributeError) as exc:
        raise InvalidSpec(f"This is not the definition of an application ({exc}): {definition}") from None


class TaskPayload(NamedTuple):
    """A job of an application that is a class; a JSON object in the file."""

    definition: str  # JSON
    parameters: str  # JSON, as the job has them
    ranks: int  # of the MPI program; 1: it is none, or might as well be none
    job: dict[str, Any]  # what `self.job` shows


def file_name(job_id: str) -> str:
    """Return the name of a job's TaskPayload; jobs that share a directory have one each."""
    return f".balsam-{job_id[:8]}.json"


def call_name(job_id: str) -> str:
    """Return the name of the file that gives a call of an executor to a program that makes only this call."""
    return f".balsam-{job_id[:8]}.call"


def arguments_name(job_id: str) -> str:
    """Return the name of the file with a large call of an executor; see `run_call.CallPayload`."""
    return f".balsam-{job_id[:8]}.args"


def write(path: str, payload: TaskPayload) -> None:
    """Write a payload, which only this user can read, so that readers see the whole file or none. Raises OSError."""
    files.write_atomic(path, json.dumps(payload._asdict()), 0o600)


def read(path: str) -> TaskPayload:
    """Return the TaskPayload in that file. Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        return TaskPayload(**json.load(file))


# --- command lines ----------------------------------------------------------------------------------------------------

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


def program_words(python: str, what: str, *arguments: str) -> list[str]:
    """Return the command line that starts HOOK, FUNCTION or CALL with these arguments.

    >>> program_words("python3", HOOK, "postprocess")[0], program_words("python3", HOOK, "postprocess")[-1]
    ('python3', 'postprocess')
    """
    return [python, "-c", _CODE.format(what=what), *arguments]


def is_hook(command: str) -> bool:
    """Return whether a script's command line starts HOOK: such a line tells a user nothing."""
    return any(f"{module} import {HOOK}" in command for module in _MODULES)


def result_name(executable: str | None, job_id: str) -> str:
    """Return the name of the file with the result, if an application's command line starts FUNCTION or CALL, else "".

    >>> result_name(" ".join(program_words("python3", CALL)), "7df86c8b-4")
    '.balsam-7df86c8b.pkl'
    """
    if executable is None:
        return ""
    if f"{_MODULES[1]} import {CALL};" in executable:
        return OLD_RESULT
    is_ours = any(f"{module} import {what};" in executable for module in _MODULES for what in (FUNCTION, CALL))
    return result_file.file_name(job_id) if is_ours else ""
