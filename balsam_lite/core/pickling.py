"""Pickle values for another process: by name where that works, else by value with `cloudpickle`, which is optional.

Functions and classes are pickled by name if the other process can import them: from a module, or from the script that runs
here (see `source_of_main`). Those without such a name (lambdas, functions inside of functions, definitions of a notebook or an
interactive session) are pickled by value: their code travels, so only the same minor version of Python can read it. Bytes
pickled by value start with a line that names both versions.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import Any

from .errors import RemoteError

#: Name of a user's script that is imported in a job, so that its `if __name__ == "__main__":` part does not run. Python's own
#: `multiprocessing` uses it in the processes that it spawns, which therefore find the script's functions, too.
MAIN = "__mp_main__"

_BY_VALUE = b"balsam: by value "
_loads = 0
_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def dumps(value: Any) -> bytes:
    """Return a value as bytes for `loads` of another process. Raises whatever pickling raises."""
    try:
        pickled = pickle.dumps(value, protocol=4)
    except Exception as exc:  # noqa: BLE001  # pickling runs the code of any class
        return dumps_by_value(value, exc)
    if b"__main__" in pickled and source_of_main() is None:
        return dumps_by_value(value, pickle.PicklingError("it is defined in an interactive session, which is no file"))
    return pickled


def dumps_by_value(value: Any, why_not_by_name: Exception | str) -> bytes:
    """Return a value as bytes for `loads`, with the code of what a job cannot import. Raises as `dumps`."""
    try:
        import cloudpickle
    except ImportError as exc:
        text = f"{why_not_by_name}; cloudpickle, which could send it by value, is not installed (pip install cloudpickle)"
        raise pickle.PicklingError(text) from exc
    return b"%b%b %b\n%b" % (_BY_VALUE, _PYTHON.encode(), cloudpickle.__version__.encode(), cloudpickle.dumps(value))


def loads(content: bytes) -> Any:
    """Return the value that `dumps` has written. Raises whatever unpickling raises.

    Raises:
        RemoteError: it was pickled by value, by another Python or another cloudpickle.
    """
    if not content.startswith(_BY_VALUE):
        return pickle.loads(content)
    first, _, pickled = content.partition(b"\n")
    python, version = first[len(_BY_VALUE) :].decode().split()
    if python != _PYTHON:
        raise RemoteError(
            f"It was pickled by value in Python {python} and cannot be read by Python {_PYTHON} ({sys.executable}).",
            hint="Use the same minor version on both sides, or define functions and classes at the top level of a module.",
        )
    try:
        import cloudpickle
    except ImportError as exc:
        raise RemoteError(
            f"It was pickled by value, and {sys.executable} has no cloudpickle to read it.", hint="pip install cloudpickle"
        ) from exc
    global _loads
    _loads += 1
    try:
        return pickle.loads(pickled)
    except Exception as exc:
        if version == cloudpickle.__version__:
            raise
        raise RemoteError(
            f"It was pickled by value with cloudpickle {version}, and cannot be read by {sys.executable} with "
            f"{cloudpickle.__version__}: {exc!r}",
            hint="Install the same version of cloudpickle on both sides.",
        ) from exc
    finally:
        _loads -= 1


def is_loading() -> bool:
    """Return whether classes are being made from what was pickled by value: bare ones, whose attributes are set later."""
    return _loads > 0


def needs_main(pickled: bytes) -> bool:
    """Return whether `loads` needs the script that runs here, as its `__main__`."""
    is_named = MAIN.encode() in pickled or b"__main__" in pickled
    return is_named and not (pickled.startswith(_BY_VALUE) and MAIN.encode() not in pickled)


def source_of_main() -> tuple[str, str] | None:
    """Return where a job can import the script that runs here: ("path" or "module", which); None if it is in no file."""
    main = sys.modules["__main__"]
    named = getattr(main, "__spec__", None)
    if named is not None and main.__name__ != MAIN:
        return "module", named.name
    path = getattr(main, "__file__", None) or ""
    return ("path", os.path.abspath(path)) if os.path.isfile(path) and not path.endswith(".ipynb") else None
