"""Convert the workshop's `launch_params` of a job, a dict of text, to flags of the MPI command and CPU affinity, and back.

Pure. The round trip loses only the difference between `--key=value` and `--key value`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

from ..core.errors import InvalidSpec

#: The only key that is not a flag: the binding of ranks to CPUs.
AFFINITY = "cpu_affinity"

#: A value that reads as a flag, unless it is a negative number.
_FLAG = re.compile(r"-(?!\d)")


def as_fields(params: Any) -> dict[str, str]:
    """Return the fields `mpi_flags` and `cpu_affinity` of a job with these launch parameters.

    >>> as_fields({"depth": "4", "d": "2", "exclusive": "", "cpu_affinity": "depth"})
    {'mpi_flags': '--depth 4 -d 2 --exclusive', 'cpu_affinity': 'depth'}

    Raises:
        InvalidSpec: they do not map text to text or numbers.
    """
    if not isinstance(params, Mapping):
        raise InvalidSpec(f"job launch_params must map names to values, not {params!r}")
    words: list[str] = []
    fields = {"mpi_flags": ""}
    for key, value in params.items():
        if not isinstance(key, str) or not key.strip("-") or not isinstance(value, (str, int, float)):
            raise InvalidSpec(f"job launch_params must map text to text, not {key!r} to {value!r}")
        if key == AFFINITY:
            fields[AFFINITY] = str(value)
        else:
            words += _words(key, str(value))
    fields["mpi_flags"] = shlex.join(words)
    return fields


def _words(key: str, value: str) -> list[str]:
    flag = key if key.startswith("-") else f"-{key}" if len(key) == 1 else f"--{key}"
    if not value:
        return [flag]
    return [f"{flag}={value}"] if _FLAG.match(value) else [flag, value]


def from_fields(mpi_flags: str, cpu_affinity: str) -> dict[str, str]:
    """Return the launch parameters of a job with these fields.

    >>> from_fields("--depth 4 -d 2 --exclusive", "none")
    {'depth': '4', 'd': '2', 'exclusive': ''}
    """
    params: dict[str, str] = {}
    key = ""
    for word in _split(mpi_flags):
        if _FLAG.match(word):
            key, _, value = word.lstrip("-").partition("=")
            params[key] = value
        elif key:
            params[key], key = word, ""
    if cpu_affinity != "none":
        params[AFFINITY] = cpu_affinity
    params.pop("", None)
    return params


def _split(flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError:
        return flags.split()
