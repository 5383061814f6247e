"""Where the Python class of an application is, and what a program needs that runs a job of it: without any DB.

The launcher writes an `Order` into the job's working directory just before it starts the program: for `run()` functions, and
for classes with a `shell_preamble`. Compute ranks read that, and nothing else of Balsam's.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any, NamedTuple

from ..core.errors import InvalidSpec
from ..core.files import write_atomic


class Source(NamedTuple):
    """Where a class is; as a JSON object it is the `definition` of an application."""

    file: str  # absolute
    name: str  # of the class, at the top level of the file
    module: str = ""  # under which it was imported; "__main__": it was a script
    path: tuple[str, ...] = ()  # what sys.path had where it was defined
    python: str = ""  # the interpreter
    is_open: bool = False  # its `run` takes whatever parameters a job has (**kwargs)
    has_preamble: bool = False  # it says what a shell shall do before the program starts


_KEYS = {"name": "class", "is_open": "open", "has_preamble": "preamble"}


def definition_of(source: Source) -> dict[str, Any]:
    """The `definition` of an application whose class is there."""
    return {_KEYS.get(field, field): value for field, value in source._asdict().items()}


@lru_cache(maxsize=64)
def source_of(definition: str) -> Source:
    """The opposite, from JSON text.

    Raises:
        InvalidSpec: it is no such object.
    """
    try:
        found = json.loads(definition)
        known = {field: found[_KEYS.get(field, field)] for field in Source._fields if _KEYS.get(field, field) in found}
        source = Source(**known)
        if not all(isinstance(text, str) for text in (source.file, source.name, source.module, source.python)):
            raise TypeError("its texts are none")
        return source._replace(path=tuple(map(str, source.path)))
    except (TypeError, ValueError, AttributeError) as exc:
        raise InvalidSpec(f"That is no definition of an application ({exc}): {definition}") from None


class Order(NamedTuple):
    """A job of an application that is a class."""

    definition: str  # JSON
    parameters: str  # JSON, as the job has them
    ranks: int  # of the MPI program; 1 is: it is none, or might as well be none
    job: dict[str, Any]  # what `self.job` shows


def file_name(job_id: str) -> str:
    """How the file is called; jobs that share a directory have one each."""
    return f".balsam-{job_id[:8]}.json"


def write(path: str, order: Order) -> None:
    """Write it so that readers see the whole file or none. Raises OSError."""
    write_atomic(path, json.dumps(order._asdict()))


def read(path: str) -> Order:
    """Raises OSError, ValueError."""
    with open(path, encoding="utf-8") as file:
        return Order(**json.load(file))
