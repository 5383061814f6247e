"""The parameters of a job for its application, stored as JSON if it preserves the values, else pickled; and `launch_params`.

Pickled parameters are `{"__pickled__": base64, "names": [...]}`; the names stay readable, so that missing ones are reported.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

from .errors import InvalidSpec, RemoteError

#: Maximum size of all parameters of a job, as stored.
MAX_BYTES = 512_000

PICKLED, NAMES = "__pickled__", "names"
_ATOMS = (str, int, bool, type(None))
BY_FILE = "Write large values to a file, and give the job its path."
#: Texts with fewer characters than this, in all, cannot become too large.
SMALL = 4096


def encoded(values: Any) -> dict[str, Any]:
    """Return parameters as a JSON object. Runs code of the values' classes if they must be pickled.

    Raises:
        InvalidSpec: names that are no text, values that cannot be pickled, or more than 512 000 bytes in total.
    """
    if not isinstance(values, Mapping):
        raise InvalidSpec(f"job parameters must be a dict, not {values!r}")
    if _are_few(values, only_texts=True):
        return dict(values)
    for name in values:
        if not isinstance(name, str):
            raise InvalidSpec(f"The names of job parameters must be text, not {name!r}")
    is_plain = PICKLED not in values and all(map(_is_json, values.values()))
    stored = dict(values) if is_plain else _pickled(dict(values))
    check_size(stored)
    return stored


def _are_few(values: Mapping[Any, Any], only_texts: bool = False) -> bool:
    """Return whether all are texts or numbers, and small: the usual case, which must be fast. `only_texts`: no numbers."""
    characters = 0
    for name, value in values.items():
        if type(name) is not str or name == PICKLED:
            return False
        if type(value) is str:
            characters += len(name) + len(value)
        elif only_texts or not isinstance(value, (int, float)):
            return False
    return characters < SMALL


def check_size(stored: Mapping[str, Any]) -> bool:
    """Return whether stored parameters may be large. Raise InvalidSpec if they are too large."""
    if len(stored) < SMALL // 64 and _are_few(stored):
        return False
    try:
        counted = stored[PICKLED] if PICKLED in stored else json.dumps(stored, ensure_ascii=False)
        size = len(str(counted).encode(errors="replace"))
    except (TypeError, ValueError, RecursionError):
        return False  # the code that stores them raises
    if size > MAX_BYTES:
        text = f"The parameters of a job must not be larger than {MAX_BYTES} bytes in all, these are {size}"
        raise InvalidSpec(text, hint=BY_FILE)
    return True


def decoded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of stored parameters.

    Raises:
        RemoteError: they were pickled, and cannot be unpickled here.
    """
    if PICKLED not in stored:
        return dict(stored)
    import base64

    from . import pickling

    try:
        found: dict[str, Any] = pickling.loads(base64.b64decode(stored[PICKLED]))
    except Exception as exc:
        raise RemoteError(f"The job's parameters {', '.join(names_of(stored))} cannot be read here: {exc!r}") from exc
    return found


def names_of(stored: Mapping[str, Any]) -> list[str]:
    """Return the names of stored parameters, without unpickling anything."""
    return list(stored[NAMES]) if PICKLED in stored else list(stored)


def _is_json(value: Any, depth: int = 50) -> bool:
    """Return whether JSON preserves the value exactly: no tuple, no numeric key, no NaN."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is float:
        return math.isfinite(value)
    if depth == 0:  # perhaps it contains itself, which pickle can write
        return False
    if kind is list:
        return all(_is_json(one, depth - 1) for one in value)
    return kind is dict and all(type(key) is str and _is_json(one, depth - 1) for key, one in value.items())


def _pickled(values: dict[str, Any]) -> dict[str, Any]:
    import base64

    from . import pickling

    try:
        text = base64.b64encode(pickling.dumps(values)).decode()
    except Exception as exc:
        raise InvalidSpec(f"The job's parameters {', '.join(values)} cannot be serialised: {exc}") from exc
    return {PICKLED: text, NAMES: list(values)}


# --- launch_params ----------------------------------------------------------------------------------------------------
# The workshop's `launch_params` of a job are a dict of text; our columns hold flags of the MPI command and the CPU affinity.
# The round trip loses only the difference between `--key=value` and `--key value`.


#: The only key that is not a flag: the binding of ranks to CPUs.
AFFINITY = "cpu_affinity"

#: A value that reads as a flag, unless it is a negative number.
_FLAG = re.compile(r"-(?!\d)")


def fields_of_launch_params(params: Any) -> dict[str, str]:
    """Return the fields `mpi_flags` and `cpu_affinity` of a job with these launch parameters.

    >>> fields_of_launch_params({"depth": "4", "d": "2", "exclusive": "", "cpu_affinity": "depth"})
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


def launch_params_of(mpi_flags: str, cpu_affinity: str) -> dict[str, str]:
    """Return the launch parameters of a job with these fields.

    >>> launch_params_of("--depth 4 -d 2 --exclusive", "none")
    {'depth': '4', 'd': '2', 'exclusive': ''}
    """
    params: dict[str, str] = {}
    key = ""
    for word in _split_flags(mpi_flags):
        if _FLAG.match(word):
            key, _, value = word.lstrip("-").partition("=")
            params[key] = value
        elif key:
            params[key], key = word, ""
    if cpu_affinity != "none":
        params[AFFINITY] = cpu_affinity
    params.pop("", None)
    return params


def _split_flags(flags: str) -> list[str]:
    try:
        return shlex.split(flags)
    except ValueError:
        return flags.split()
