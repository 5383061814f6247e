"""The main module of the processes that `multiprocessing` spawns in a job of Python code, in place of the user's script.

With `spawn` and `forkserver` Python imports the parent's main module in each child, under the name `__mp_main__` (source:
`multiprocessing.spawn`). `class_loader` makes that module this one: it finds the script by a variable that the parent has set,
and imports it as in the job itself, only up to its first write.
"""

from __future__ import annotations

from typing import Any


def _begin() -> dict[str, Any]:
    """Return the contents of the main module. If it cannot be imported, its functions raise the reason when called.

    If the import failed, so would the process, and a Pool would start another one forever.
    """
    from balsam_lite.core.errors import BalsamError
    from balsam_lite.pyapps import class_loader

    try:
        return class_loader.main_of_child()
    except BalsamError as exc:
        lost = exc  # `exc` itself is gone after this block

    def found(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def fail(*_: Any, **__: Any) -> Any:
            raise lost

        return fail

    return {"__getattr__": found}


if __name__ == "__mp_main__":
    globals().update(_begin())
