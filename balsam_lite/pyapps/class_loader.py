"""The Python class of an application, found again by importing its file once more.

An application is stored as a file and the name of a class in it (see `order.Source`), so what the file says today is what runs.
It is often the very script that went on to `sync()`, to add jobs and to submit a batch job. While it is imported for its class,
`sync()` does nothing, and the first other write ends its execution there (`balsam_lite.core.import_guard`). Needs no DB.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn
from zlib import crc32

from ..core import import_guard
from ..core.errors import ApplicationLost
from .payload import Source, definition_of, source_of
from .run_call import MAIN

#: What processes that `multiprocessing` spawns import in place of the script, and the variable that tells it which class.
_OF_CHILDREN = "balsam_lite.pyapps.mp_main"
_CLASS_VARIABLE = "BALSAM_CLASS"
_BY_FILE = "__balsam_main__"
_STOPPED = "__balsam_stopped__"


# --- finding the class ------------------------------------------------------------------------------------------------


def load(source: Source, as_main: bool = False) -> type[Any]:
    """The class. Imports its module unless that has been done, and puts what it needs on sys.path.

    With `as_main` this is a process of our own for that class: a module that was a script becomes its `__main__`, so that
    objects of its classes which were pickled there can be read here.

    Raises:
        ApplicationLost: the file or the class is gone, or the file raises; with file, class and reason.
    """
    if not os.path.isfile(source.file):
        raise _lost(source, "there is no such file any more", "Was it moved? `sync()` it where it is now.")
    sys.path += [entry for entry in source.path if entry not in sys.path]
    if as_main:
        os.environ[_CLASS_VARIABLE] = json.dumps(definition_of(source))
        _tell_children(sys.modules["__main__"])
    module = _module(source, as_main)
    found = vars(module).get(source.name)
    if isinstance(found, type) and hasattr(found, "sync"):
        return found
    if hasattr(module, _STOPPED):
        raise _lost(
            source,
            "the file adds jobs, or changes something else, before it comes to this class",
            'Put what shall happen only when the file is run under `if __name__ == "__main__":`.',
        )
    raise _lost(source, "the file has no application of that name at its top level", "`balsam app rm` forgets the application.")


def main_of_child() -> dict[str, Any]:
    """What the main module of a process has that `multiprocessing` has spawned in a job whose class was loaded `as_main`.

    Raises as `load`.
    """
    before = sys.modules["__main__"]
    load(source_of(os.environ[_CLASS_VARIABLE]), as_main=True)
    main = sys.modules["__main__"]
    return {} if main is before else vars(main)


def _tell_children(main: ModuleType) -> None:
    """Let processes that `multiprocessing` spawns import `mp_main` for this main module. It goes by the name in the spec."""
    main.__spec__ = importlib.machinery.ModuleSpec(_OF_CHILDREN, None)


def _lost(source: Source, reason: str, hint: str = "") -> ApplicationLost:
    return ApplicationLost(f"The class {source.name} of {source.file} cannot be used: {reason}.", hint=hint)


def _module(source: Source, as_main: bool) -> ModuleType:
    """The module with the class; it has the attribute _STOPPED if it was stopped at something that it wanted to write."""
    spec = _spec_by_name(source)
    if spec is not None and spec.name in sys.modules:
        return sys.modules[spec.name]
    if spec is None:
        main = sys.modules.get("__main__")
        if main is not None and _is_file(getattr(main, "__file__", None), source.file):
            return main
        is_script = as_main and source.module == "__main__"
        name = MAIN if is_script else f"{_BY_FILE}{crc32(os.path.realpath(source.file).encode()):08x}"
        if name in sys.modules and not is_script:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, source.file)
    if spec is None or spec.loader is None:
        raise _lost(source, "it is no Python file")
    return _executed(source, spec, as_main and spec.name == MAIN)


def _spec_by_name(source: Source) -> Any:
    """How the module is imported by its name; None if that is not this file (any more)."""
    if source.module in ("", "__main__"):
        return None
    try:
        with import_guard.importing():
            spec = importlib.util.find_spec(source.module)  # imports the packages around it
    except (Exception, import_guard.StopImport):  # noqa: BLE001  # whatever a package does; the file itself is still there
        return None
    return spec if spec is not None and _is_file(spec.origin, source.file) else None


def _is_file(path: str | None, file: str) -> bool:
    return bool(path) and os.path.realpath(str(path)) == os.path.realpath(file)


def _executed(source: Source, spec: Any, is_main: bool) -> ModuleType:
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    if is_main:
        sys.modules["__main__"] = module
        _tell_children(module)
    try:
        with import_guard.importing(), _arguments_of(source.file), _staying_alive():
            spec.loader.exec_module(module)
    except import_guard.StopImport:
        setattr(module, _STOPPED, True)
    except BaseException as exc:  # SystemExit and KeyboardInterrupt too
        del sys.modules[spec.name]
        if isinstance(exc, KeyboardInterrupt):
            raise
        raise _lost(source, f"importing the file raises {type(exc).__name__}: {exc}{_where(exc, source.file)}") from exc
    return module


@contextmanager
def _arguments_of(file: str) -> Iterator[None]:
    """The script does not see the arguments of the program that imports it."""
    before, sys.argv = sys.argv, [file]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _staying_alive() -> Iterator[None]:
    """`os._exit` raises SystemExit, but in children: a process that ends so with 0 would pass for one that did its work."""
    end, pid, is_over = os._exit, os.getpid(), False

    def raising(status: int) -> NoReturn:
        if is_over or os.getpid() != pid:
            end(status)
        raise SystemExit(f"os._exit({status})")

    os._exit = raising
    try:
        yield
    finally:
        os._exit, is_over = end, True


def _where(exc: BaseException, file: str) -> str:
    """The last line of the user's file that took part, for a message."""
    import traceback

    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if _is_file(frame.filename, file)]
    return f" (line {lines[-1]})" if lines else ""
