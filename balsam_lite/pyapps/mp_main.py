"""The main module of the processes that `multiprocessing` spawns in a job of a class: the file of that class once more.

With `spawn` and `forkserver` Python imports the parent's main module in each child, under the name `__mp_main__` (source:
`multiprocessing.spawn`). `application` makes that this one: the file is found by what the parent has left in the environment,
and read as the job itself reads it, only up to where it writes.
"""

from __future__ import annotations

from typing import Any


def _begin() -> dict[str, Any]:
    """What the main module has. One that cannot be imported has functions that say so when they are called.

    If the import failed, so would the process, and a Pool starts another one in its place for ever.
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
