"""The variables about a job's parents, BALSAM_PARENT_IDS and BALSAM_PARENT_STATES, or files where these are too long."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence

from .files import write_atomic

IDS, STATES = "BALSAM_PARENT_IDS", "BALSAM_PARENT_STATES"
#: Instead of a variable that would be too long: the path of a file with the same list.
IDS_FILE, STATES_FILE = f"{IDS}_FILE", f"{STATES}_FILE"
#: All variables about parents.
NAMES = (IDS, IDS_FILE, STATES, STATES_FILE)

#: Bytes of `NAME=value` and the NUL after it. Source: execve(2) of Linux man-pages 6.03, MAX_ARG_STRLEN.
MAX_VARIABLE_BYTES = 32 * os.sysconf("SC_PAGE_SIZE") if sys.platform.startswith("linux") else 128 * 1024
#: Bytes of all variables and words together, each with a pointer. Source: the same page; 6 MiB whatever the stack's limit.
_MAX_TOTAL_BYTES = 6 * 1024 * 1024
_POINTER_BYTES = 8


def total_bytes() -> int:
    """Return how many bytes a program's variables and words may have together."""
    limit = os.sysconf("SC_ARG_MAX")
    return min(limit, _MAX_TOTAL_BYTES) if limit > 0 else _MAX_TOTAL_BYTES


def size_of(variable: bytes) -> int:
    """Return how many of those bytes `NAME=value`, or a word, takes."""
    return len(variable) + 1 + _POINTER_BYTES


def variables(parents: Sequence[tuple[str, str]], workdir: str, job_id: str, room_bytes: int | None = None) -> dict[str, str]:
    """Return the variables for a job with these parents, given as (UUID, state).

    Args:
        room_bytes: what all variables and words may still take together; None: any of them may be as long as possible.
    """
    found: dict[str, str] = {}
    for name, values in zip((IDS, STATES), _columns(parents)):
        text = json.dumps(values)
        size = len(name) + len(text) + 2
        if size <= MAX_VARIABLE_BYTES and (room_bytes is None or size + _POINTER_BYTES <= room_bytes):
            found[name] = text
        else:
            found[f"{name}_FILE"] = f"{workdir}/.balsam-{job_id[:8]}.{name[len('BALSAM_') :].lower()}.json"
            size = len(name) + len(found[f"{name}_FILE"]) + 7
        if room_bytes is not None:
            room_bytes -= size + _POINTER_BYTES
    return found


def _columns(parents: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    return [job_id for job_id, _ in parents], [state for _, state in parents]


def write_files(parents: Sequence[tuple[str, str]], found: Mapping[str, str]) -> None:
    """Write the files that `variables` names; readers see a whole one or none. Raises OSError."""
    for name, values in zip((IDS_FILE, STATES_FILE), _columns(parents)):
        path = found.get(name)
        if path is not None:
            write_atomic(path, json.dumps(values))
