"""How a job carries the parameters of its application: as JSON where that gives the same values back, else pickled.

Pickled ones are `{"__pickled__": base64, "names": [...]}`; the names stay readable, so that missing ones can be told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ..core.errors import InvalidSpec

#: Of all parameters of a job, as they are stored.
LARGEST_BYTES = 512_000

_PICKLED, _NAMES = "__pickled__", "names"
_ATOMS = (str, int, bool, type(None))
#: Texts of fewer characters than that cannot become too large.
_SMALL = 4096


def encoded(values: Any) -> dict[str, Any]:
    """Parameters as a JSON object. Runs code of the values' classes, if they have to be pickled.

    Raises:
        InvalidSpec: names that are no text, values that cannot be pickled, or more than 512 000 bytes in all.
    """
    if not isinstance(values, Mapping):
        raise InvalidSpec(f"job parameters must be a dict, not {values!r}")
    if _are_few_texts(values):
        return dict(values)
    for name in values:
        if not isinstance(name, str):
            raise InvalidSpec(f"The names of job parameters must be text, not {name!r}")
    is_plain = _PICKLED not in values and all(map(_is_json, values.values()))
    stored = dict(values) if is_plain else _pickled(dict(values))
    size = len(stored[_PICKLED]) if _PICKLED in stored else len(json.dumps(stored, ensure_ascii=False).encode(errors="replace"))
    if size > LARGEST_BYTES:
        raise InvalidSpec(
            f"The parameters of a job must not be larger than {LARGEST_BYTES} bytes in all, these are {size}",
            hint="Write large values to a file, and give the job its path.",
        )
    return stored


def _are_few_texts(values: Mapping[Any, Any]) -> bool:
    """Whether there is nothing to look at, as nearly always: adding a hundred thousand jobs comes here as often."""
    characters = 0
    for name, value in values.items():
        if type(name) is not str or type(value) is not str or name == _PICKLED:
            return False
        characters += len(name) + len(value)
    return characters < _SMALL


def decoded(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The values of stored parameters.

    Raises:
        RemoteError: they were pickled, and cannot be unpickled here.
    """
    if _PICKLED not in stored:
        return dict(stored)
    import base64
    import pickle

    try:
        found: dict[str, Any] = pickle.loads(base64.b64decode(stored[_PICKLED]))
    except Exception as exc:
        from ..core.errors import RemoteError

        raise RemoteError(f"The job's parameters {', '.join(names_of(stored))} cannot be read here: {exc!r}") from exc
    return found


def names_of(stored: Mapping[str, Any]) -> list[str]:
    """The names of stored parameters, without unpickling anything."""
    return list(stored[_NAMES]) if _PICKLED in stored else list(stored)


def _is_json(value: Any, depth: int = 50) -> bool:
    """Whether JSON gives back exactly this: no tuple, no key that is a number, no NaN."""
    kind = type(value)
    if kind in _ATOMS:
        return True
    if kind is float:
        return math.isfinite(value)
    if depth == 0:  # perhaps it holds itself; pickle knows how to write that
        return False
    if kind is list:
        return all(_is_json(one, depth - 1) for one in value)
    return kind is dict and all(type(key) is str and _is_json(one, depth - 1) for key, one in value.items())


def _pickled(values: dict[str, Any]) -> dict[str, Any]:
    import base64
    import pickle

    try:
        text = base64.b64encode(pickle.dumps(values, protocol=4)).decode()
    except Exception as exc:
        raise InvalidSpec(f"The job's parameters {', '.join(values)} cannot be serialised: {exc}") from exc
    return {_PICKLED: text, _NAMES: list(values)}
