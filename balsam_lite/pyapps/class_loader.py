"""Find the Python class of an application, or the script of a call of a BalsamExecutor, by importing the file again.

Only the location of the code is stored (see `payload.ClassRef`), so the present contents of the file run. The file is often the
script that also calls `sync()`, adds jobs and submits a batch job. During its import `sync()` does nothing, and the first other
write ends its execution at that point (`balsam_lite.core.import_guard`). Needs no DB.
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
from ..core.pickling import MAIN
from .payload import ClassRef, class_ref, definition_of

#: The module that processes spawned by `multiprocessing` import instead of the script, and the variable that names the script.
_MAIN_OF_CHILDREN = "balsam_lite.pyapps.mp_main"
_REF_VARIABLE = "BALSAM_CLASS"
_BY_FILE = "__balsam_main__"
_STOPPED = "__balsam_stopped__"


# --- finding the class ------------------------------------------------------------------------------------------------


def load(ref: ClassRef, as_main: bool = False) -> type[Any]:
    """Return the class. Import its module unless that has been done, and extend sys.path as it needs.

    With `as_main` this is a separate process for that class: a module that was a script becomes its `__main__`, so that
    pickled objects of its classes can be read here.

    Raises:
        ApplicationLost: the file or the class is gone, or the file raises; names file, class and reason.
    """
    if ref.pickled:
        return _unpickled(ref)
    if not os.path.isfile(ref.file):
        raise _lost(ref, "there is no such file any more", "Was it moved? `sync()` it where it is now.")
    sys.path += [entry for entry in ref.path if entry not in sys.path]
    if as_main:
        _tell_children(sys.modules["__main__"], ref)
    module = _module(ref, as_main)
    found = vars(module).get(ref.name)
    if isinstance(found, type) and hasattr(found, "sync"):
        return found
    if stopped_at(module):
        raise _lost(
            ref,
            "the file adds jobs, or changes something else, before it comes to this class",
            'Put what shall happen only when the file is run under `if __name__ == "__main__":`.',
        )
    raise _lost(ref, "the file has no application of that name at its top level", "`balsam app rm` forgets the application.")


def _unpickled(ref: ClassRef) -> type[Any]:
    from base64 import b64decode

    from ..core import pickling

    sys.path += [entry for entry in ref.path if entry not in sys.path]
    try:
        found: type[Any] = pickling.loads(b64decode(ref.pickled))
    except Exception as exc:  # unpickling runs the code of any class
        raise _lost(ref, f"it was synced from a notebook or an interactive session: {exc}") from exc
    return found


def load_main(kind: str, which: str) -> ModuleType:
    """Import a script by its "path", or a "module" that was run by `python -m`, as `__main__` of this process.

    Raises:
        ApplicationLost: it is gone, or raises.
    """
    if kind == "path":
        ref = ClassRef(which, "", "__main__")
        spec = importlib.util.spec_from_file_location(MAIN, which)
    else:
        with import_guard.importing():
            spec = importlib.util.find_spec(which)  # imports the packages around it
        ref = ClassRef(str(spec.origin) if spec else which, "", which)
    if spec is None or not os.path.isfile(ref.file):
        raise _lost(ref, "there is no such file any more")
    return _executed(ref, spec, is_main=True)


def main_of_child() -> dict[str, Any]:
    """Return the contents of the main module in a process that `multiprocessing` has spawned in a job. Raises as `load`."""
    before = sys.modules["__main__"]
    ref = class_ref(os.environ[_REF_VARIABLE])
    if ref.name:
        load(ref, as_main=True)
    else:
        load_main(*(("path", ref.file) if ref.module == "__main__" else ("module", ref.module)))
    main = sys.modules["__main__"]
    return {} if main is before else vars(main)


def stopped_at(module: ModuleType) -> int:
    """Return the line at which the import of the module was stopped because it tried to write; 0: it is complete."""
    return int(getattr(module, _STOPPED, 0))


def _tell_children(main: ModuleType, ref: ClassRef) -> None:
    """Make processes spawned by `multiprocessing` import `mp_main` for this main module, by the name in its spec."""
    os.environ[_REF_VARIABLE] = json.dumps(definition_of(ref))
    main.__spec__ = importlib.machinery.ModuleSpec(_MAIN_OF_CHILDREN, None)


def _lost(ref: ClassRef, reason: str, hint: str = "") -> ApplicationLost:
    if ref.pickled:
        what = f"The class {ref.name}"
    else:
        what = f"The class {ref.name} of {ref.file}" if ref.name else f"The script {ref.file}"
    return ApplicationLost(f"{what} cannot be used: {reason}.", hint=hint)


def _module(ref: ClassRef, as_main: bool) -> ModuleType:
    """Return the module with the class; see `stopped_at`."""
    spec = _spec_by_name(ref)
    if spec is not None and spec.name in sys.modules:
        return sys.modules[spec.name]
    if spec is None:
        main = sys.modules.get("__main__")
        if main is not None and _is_file(getattr(main, "__file__", None), ref.file):
            return main
        is_script = as_main and ref.module == "__main__"
        name = MAIN if is_script else f"{_BY_FILE}{crc32(os.path.realpath(ref.file).encode()):08x}"
        if name in sys.modules and not is_script:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, ref.file)
    return _executed(ref, spec, is_main=as_main and spec is not None and spec.name == MAIN)


def _spec_by_name(ref: ClassRef) -> Any:
    """Return the spec to import the module by its name; None if that name is not this file (any more)."""
    if ref.module in ("", "__main__"):
        return None
    try:
        with import_guard.importing():
            spec = importlib.util.find_spec(ref.module)  # imports the packages around it
    except (Exception, import_guard.StopImport):  # noqa: BLE001  # whatever a package does; the file itself is still there
        return None
    return spec if spec is not None and _is_file(spec.origin, ref.file) else None


def _is_file(path: str | None, file: str) -> bool:
    return bool(path) and os.path.realpath(str(path)) == os.path.realpath(file)


# --- importing --------------------------------------------------------------------------------------------------------


def _executed(ref: ClassRef, spec: Any, is_main: bool) -> ModuleType:
    """Import a module up to its first write; with `is_main` as the main module, regardless of its name."""
    if spec is None or spec.loader is None:
        raise _lost(ref, "it is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[MAIN if is_main else spec.name] = module
    if is_main:
        sys.modules["__main__"] = module
        _tell_children(module, ref)
        module.__name__ = MAIN
    try:
        with import_guard.importing(), _arguments_of(ref.file), _staying_alive():
            exec(spec.loader.get_code(spec.name), vars(module))
    except import_guard.StopImport as stop:
        setattr(module, _STOPPED, _line(stop, ref.file))
    except BaseException as exc:  # SystemExit and KeyboardInterrupt too
        del sys.modules[MAIN if is_main else spec.name]
        if isinstance(exc, KeyboardInterrupt):
            raise
        line = _line(exc, ref.file)
        where = f" (line {line})" if line else ""
        is_for_balsam = isinstance(exc, ModuleNotFoundError) and str(exc.name).partition(".")[0] == "balsam"
        hint = "Put `import balsam_lite.compat` before the line that imports balsam." if is_for_balsam else ""
        raise _lost(ref, f"importing the file raises {type(exc).__name__}: {exc}{where}", hint) from exc
    return module


@contextmanager
def _arguments_of(file: str) -> Iterator[None]:
    """Hide the arguments of the program that imports the script."""
    before, sys.argv = sys.argv, [file]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _staying_alive() -> Iterator[None]:
    """Make `os._exit` raise SystemExit, except in children: a process that it ends with 0 would count as successful."""
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


def _line(exc: BaseException, file: str) -> int:
    """Return the last line of the user's file in the traceback, for a message; 0 if there is none."""
    import traceback

    lines = [frame.lineno for frame in traceback.extract_tb(exc.__traceback__) if _is_file(frame.filename, file)]
    return (lines[-1] or 0) if lines else 0
