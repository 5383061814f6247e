"""Read plain values out of pickled results without running code: numbers, text, lists and dicts of these, numbers of numpy."""

from __future__ import annotations

import io
import json
import pickle
from typing import Any

from .field_specs import to_json

#: Bytes of a result that is read; others are no values for a table.
MAX_BYTES = 4096
#: The only names that a pickle may import: those of a number of numpy, before and since its version 2.
_NUMPY = {("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar")}


class _PlainUnpickler(pickle.Unpickler):
    """Refuses to import, so that nothing but plain values can be read."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def json_of_result(result: Any) -> str | None:
    """Return as JSON what a call has returned; None if it failed, or if that is not plain, too large or None.

    Args:
        result: a pickled `result_file.Outcome`, which is a plain tuple; anything else gives None.
    """
    if type(result) is not bytes or len(result) > MAX_BYTES:
        return None
    try:
        is_good, pickled, _ = _plain(result)
        value = _plain(pickled) if is_good else None
        return None if value is None else json.dumps(to_json(value), ensure_ascii=False)
    except Exception:  # noqa: BLE001  # whatever is wrong with a pickle, it holds no plain value
        return None


def _plain(pickled: bytes) -> Any:
    return _PlainUnpickler(io.BytesIO(pickled)).load()


def json_in_file(path: str, job_id: str, attempt: int) -> str | None:
    """Return the same for the result file of that attempt (see `pyapps.result_file`); None if it has left none."""
    try:
        with open(path, "rb") as file:
            header = json.loads(file.readline(1000))
            if (header["job_id"], header["attempt"]) != (job_id, attempt):
                return None
            return json_of_result(file.read(MAX_BYTES + 1))
    except (OSError, ValueError, KeyError, TypeError):
        return None
