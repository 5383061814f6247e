"""The payload of a job of a Python class: a file that its program reads, as compute ranks open no DB.

The launcher writes a `TaskPayload` into the job's working directory just before it starts a job whose application is a
class with a `run` function or a `shell_preamble`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

from ..core import files
from ..core.errors import InvalidSpec

#: Name of a user's script that is imported in a job, so that its `if __name__ == "__main__":` part does not run. Python's own
#: `multiprocessing` uses it in the processes that it spawns, which therefore find the script's functions, too.
MAIN = "__mp_main__"


class ClassRef(NamedTuple):
    """The location of a class; as a JSON object the `definition` of an application. Without a name: a script or module."""

    file: str  # absolute
    name: str  # of the class, at the top level of the file
    module: str = ""  # under which it was imported; "__main__": it was a script
    path: tuple[str, ...] = ()  # what sys.path had where it was defined
    python: str = ""  # the interpreter
    is_open: bool = False  # its `run` accepts any parameters (**kwargs)
    has_preamble: bool = False  # it overrides `shell_preamble`


_KEYS = {"name": "class", "is_open": "open", "has_preamble": "preamble"}


def definition_of(ref: ClassRef) -> dict[str, Any]:
    """Return the `definition` of the application with that class."""
    return {_KEYS.get(field, field): value for field, value in ref._asdict().items()}


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
        if not all(isinstance(text, str) for text in (ref.file, ref.name, ref.module, ref.python)):
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


def write(path: str, payload: TaskPayload) -> None:
    """Write a payload, which only this user can read, so that readers see the whole file or none. Raises OSError."""
    files.write_atomic(path, json.dumps(payload._asdict()), 0o600)


def read(path: str) -> TaskPayload:
    """Return the TaskPayload in that file. Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        return TaskPayload(**json.load(file))
