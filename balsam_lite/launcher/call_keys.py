"""Keys of calls: two calls have the same key if they call the same code with the same arguments.

The key of a function is made of its module, its name, its code (comments and layout do not count), its default values, and the
values, when the call is submitted, of the variables that it closes over and of the global ones that its code names. Functions
and classes among these count in the same way, and so on; other modules of the program by the contents of their files; Python
and installed packages by their versions.

The key of an argument is made of its type and its value. Dicts and sets count regardless of their order; of an object what
pickle would store, and its class like a function. Data in files counts in neither: `version=` is for that.
"""

from __future__ import annotations

import ast
import copyreg
import functools
import hashlib
import inspect
import os
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from ..core.errors import InputError

_ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
#: Maximum depth of nested arguments.
_MAX_DEPTH = 100


class _Digested(threading.local):
    """The code that this thread digests."""

    named: list[Any] | None = None  # gets the functions and classes that it names; None: it digests something else


class KeyMaker:
    """Makes keys, in any thread.

    Args:
        known: returns what stands for a value in the key, or None: for futures, whose results are not known yet.
    """

    def __init__(self, version: Any, known: Callable[[Any], Any]) -> None:
        self._known = known
        self._codes: dict[types.CodeType, tuple[str, list[str]]] = {}  # described, with the names of global variables
        self._sources: dict[type, str] = {}
        self._digested = _Digested()
        self._version = self._digest_of(version)

    def key(self, fn: Any, args: Any, kwargs: Any) -> str:
        """Return the key of a call.

        Raises:
            InputError: an argument, or something that the function uses, has no key.
        """
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        try:
            code = self._digest_of(fn)
        except Exception as exc:
            raise InputError(f"{name} uses what cannot be compared with earlier calls: {exc}", hint=_HINT) from exc
        try:
            given = self._digest_of([list(args), kwargs])
        except Exception as exc:
            raise InputError(
                f"An argument of {name} cannot be compared with those of earlier calls: {exc}", hint=_HINT
            ) from exc
        return f"call:{hashlib.sha256(self._version + code + given).hexdigest()}"

    def _digest_of(self, value: Any) -> bytes:
        hashed = hashlib.sha256()
        for piece in self._pieces(value):
            hashed.update(b"%d:" % len(piece))  # so that ("ab", "c") is not ("a", "bc")
            hashed.update(piece)
        return hashed.digest()

    def _pieces(self, value: Any, depth: int = 0) -> Iterator[bytes]:
        """Yield what identifies a value."""
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply, or contains itself")
        known = self._known(value)
        if known is not None:
            yield from (b"known", repr(known).encode())
            return
        kind = type(value)
        yield f"{kind.__module__}.{kind.__qualname__}".encode()
        if kind in _ATOMS:
            yield value if kind is bytes else repr(value).encode("utf-8", "surrogatepass")
        elif kind in (list, tuple):
            for one in value:
                yield from self._pieces(one, depth + 1)
            yield b"end"
        elif kind in (set, frozenset):
            yield from sorted(self._joined(one, depth) for one in value)
            yield b"end"
        elif kind is dict:
            yield from sorted(self._joined(item, depth) for item in value.items())
            yield b"end"
        elif isinstance(value, types.ModuleType):
            yield _package(value.__name__) if _is_installed(value.__name__) else _contents(value)
        elif callable(value):
            yield from self._callable(value, depth)
        else:
            yield from self._object(value, depth)

    def _callable(self, value: Any, depth: int) -> Iterator[bytes]:
        """Yield what identifies a function, a class, or an object that can be called."""
        if isinstance(value, functools.partial):
            yield from self._pieces((value.func, value.args, value.keywords), depth + 1)
        elif isinstance(value, types.MethodType):
            yield from self._pieces((value.__func__, value.__self__), depth + 1)
        elif not hasattr(value, "__qualname__"):
            yield from self._pieces(type(value).__call__, depth + 1)
            yield from self._object(value, depth)
        elif isinstance(value, (types.FunctionType, type)) and not _is_installed(value.__module__):
            yield f"{value.__module__}.{value.__qualname__}".encode()
            if self._digested.named is None:
                yield self._code(value)
            else:
                self._digested.named.append(value)
        else:
            owner = getattr(value, "__self__", None)
            yield from (_package(getattr(value, "__module__", None) or "builtins"), value.__qualname__.encode())
            if not isinstance(owner, (types.ModuleType, type(None))):
                yield from self._pieces(owner, depth + 1)

    def _object(self, value: Any, depth: int) -> Iterator[bytes]:
        """Yield what identifies any other object: what pickle would store of it."""
        if _is_array(value):
            yield from (str(value.dtype).encode(), str(value.shape).encode(), value.tobytes())
            return
        reduce = copyreg.dispatch_table.get(type(value))
        found = value.__reduce_ex__(4) if reduce is None else reduce(value)
        if isinstance(found, str):  # the name of something global
            yield from (_package(value.__module__) if _is_installed(value.__module__) else b"", found.encode())
            return
        made_by, args, state, items, pairs = (*found, None, None, None)[:5]
        yield from self._pieces((made_by, args, state, list(items or ()), list(pairs or ())), depth + 1)

    def _joined(self, value: Any, depth: int) -> bytes:
        return b"".join(b"%d:%b" % (len(piece), piece) for piece in self._pieces(value, depth + 1))

    # --- code ---------------------------------------------------------------------------------------------------------

    def _code(self, root: Any) -> bytes:
        """Return the digest of a function or class with all that its code names."""
        found: dict[int, bytes] = {}
        left = [root]
        while left:
            value = left.pop()
            if id(value) not in found:
                found[id(value)], named = self._own_code(value)
                left += named
        return hashlib.sha256(found.pop(id(root)) + b"".join(sorted(found.values()))).digest()

    def _own_code(self, value: Any) -> tuple[bytes, list[Any]]:
        """Return the digest of a function or class, and the functions and classes that its code names."""
        named: list[Any] = []
        self._digested.named = named
        try:
            return self._digest_of(list(self._parts(value))), named
        finally:
            self._digested.named = None

    def _parts(self, value: Any) -> Iterator[Any]:
        """Yield what determines the effect of a function or class."""
        yield from (_PYTHON, value.__module__, value.__qualname__)
        functions = [value]
        if isinstance(value, type):
            functions = [one for _, one in sorted(vars(value).items()) if isinstance(one, types.FunctionType)]
            if value not in self._sources:
                self._sources[value] = _source(value)
            yield from (self._sources[value], value.__bases__)
        for function in functions:
            code = function.__code__
            if code not in self._codes:
                self._codes[code] = _described(code), sorted(_global_names(code))
            described, names = self._codes[code]
            yield from (described, function.__defaults__, function.__kwdefaults__)
            for name, cell in zip(code.co_freevars, function.__closure__ or ()):
                with suppress(ValueError):  # not assigned yet
                    yield from (name, cell.cell_contents)
            for name in names:
                if name in function.__globals__:
                    yield from (name, function.__globals__[name])


_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
_HINT = "Give plain values, arrays and functions, or use an executor without memoize=True."


def _global_names(code: types.CodeType) -> set[str]:
    """Return the names of global variables in that code, and in the functions inside of it."""
    import dis

    found = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _global_names(constant)
    return found


def _source(value: type) -> str:
    """Return the source of a class as a tree, so that comments and layout do not count; "" if it has none."""
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(value))))
    except (OSError, TypeError, SyntaxError, ValueError):
        return ""


def _described(code: types.CodeType) -> str:
    """Return what the code does. (Its source may have been edited since it was imported.)"""
    constants = [_constant(one) for one in code.co_consts]
    return repr((code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars, code.co_flags))


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _described(value)
    if isinstance(value, (tuple, frozenset)):
        parts = list(map(_constant, value))
        return repr((type(value).__name__, parts if isinstance(value, tuple) else sorted(parts)))
    return repr(value)


def _is_array(value: Any) -> bool:
    """Return whether this is an array or a number of numpy, without objects. Subclasses hold more: a unit, a mask."""
    return type(value).__module__ == "numpy" and hasattr(value, "tobytes") and not value.dtype.hasobject


def _is_installed(module: str | None) -> bool:
    """Return whether a module belongs to Python or an installed package, not to the user's program."""
    found = sys.modules.get(module or "")
    path = getattr(found, "__file__", None)
    return (
        found is not None
        and module != "__main__"
        and (path is None or "site-packages" in path or "dist-packages" in path or path.startswith(_STDLIB))
    )


_STDLIB = inspect.__file__.rpartition("/")[0]


def _contents(module: types.ModuleType) -> bytes:
    """Return the digest of the file of a module of the user's."""
    with open(module.__file__ or os.devnull, "rb") as file:
        return hashlib.sha256(file.read()).digest()


def _package(module: str) -> bytes:
    """Return a package's name and version."""
    top = module.partition(".")[0]
    version = getattr(sys.modules.get(top), "__version__", _PYTHON)
    return f"{module} {version}".encode()
