"""The import hook: find the modules of Balsam, and those of Django that came with it, in this package."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import decode_source
from types import ModuleType
from typing import Any, NamedTuple

from ..core.errors import did_you_mean


class Source(NamedTuple):
    """The module of this package that has the names of a module of Balsam: all that it exports, or only these."""

    module: str = ""
    names: tuple[str, ...] = ()

    def exported(self) -> list[str]:
        """Return the names that it provides, sorted."""
        if self.names or not self.module:
            return sorted(self.names)
        found = importlib.import_module(self.module)
        public = [name for name in vars(found) if name[0] != "_" and getattr(found, name).__class__.__name__ == "function"]
        return sorted(getattr(found, "__all__", public))


_ROOT = __package__.rpartition(".")[0]
_ERRORS = ("DatabaseError", "IntegrityError", "OperationalError")

#: Module of Balsam, or of Django -> where its names are.
MODULES = {
    "balsam": Source(f"{_ROOT}.compat.basics", ("config_logging", "setup", "site_config")),
    "balsam.analytics": Source(f"{_ROOT}.analytics"),
    "balsam.api": Source(f"{_ROOT}.compat.api"),
    "balsam.api.models": Source(f"{_ROOT}.compat.api"),
    "balsam.config": Source(f"{_ROOT}.compat.basics", ("SiteConfig", "site_config")),
    "balsam.core": Source(),
    "balsam.core.models": Source(f"{_ROOT}.compat.models"),
    "balsam.launcher": Source(),
    "balsam.launcher.async": Source(f"{_ROOT}.launcher.futures"),
    "balsam.launcher.dag": Source(f"{_ROOT}.compat.dag"),
    "balsam.launcher.futures": Source(f"{_ROOT}.launcher.futures"),
    "balsam.service": Source(),
    "balsam.service.models": Source(f"{_ROOT}.compat.models"),
    "balsam.util": Source(f"{_ROOT}.compat.basics", ("config_root_logger",)),
    "django": Source(f"{_ROOT}.compat.basics", ("setup",)),
    "django.core": Source(),
    "django.core.exceptions": Source(
        f"{_ROOT}.compat.basics", ("FieldError", "MultipleObjectsReturned", "ObjectDoesNotExist", "ValidationError")
    ),
    "django.db": Source(f"{_ROOT}.compat.basics", ("close_old_connections", "connection", "connections", *_ERRORS)),
    "django.db.models": Source(f"{_ROOT}.compat.models", ("F", "Q")),
    "django.db.transaction": Source(f"{_ROOT}.compat.transaction"),
    "django.db.utils": Source(f"{_ROOT}.compat.basics", _ERRORS),
}  # fmt: skip

#: `balsam.launcher.async` was a module when `async` was a name. What Python cannot compile any more is read as `futures`.
_ASYNC = re.compile(r"\bbalsam\.launcher\.async\b|(?<=\bfrom balsam\.launcher import )async\b")


class Facade(ModuleType):
    """A module of Balsam. It looks up each name, at each use, in the module of this package that has it."""

    def __getattr__(self, name: str) -> Any:
        source = MODULES[self.__name__]
        if name == "__version__" and "." not in self.__name__:
            return importlib.import_module(_ROOT).__version__
        exported = source.exported() if name == "__all__" or name[:2] != "__" else []
        if name == "__all__":
            return exported
        if name in exported:
            return getattr(importlib.import_module(source.module), name)
        raise AttributeError(_no_name(self.__name__, name))

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *MODULES[self.__name__].exported()})


def _no_name(module: str, name: str) -> str:
    below = [one[len(module) + 1 :] for one in MODULES if one.startswith(f"{module}.") and "." not in one[len(module) + 1 :]]
    known = sorted({*MODULES[module].exported(), *below})
    return f"{module} has no {name!r} in balsam_lite.compat.{did_you_mean(name, known)} It has: {', '.join(known)}"


class _Finder(MetaPathFinder, Loader):
    """Find the modules in `MODULES`, and refuse others of the same packages: half of a real Balsam would be worse than none."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = frozenset(roots)

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the spec of a module of Balsam. Raises ImportError: it is none that this package provides."""
        if fullname.partition(".")[0] not in self._roots:
            return None
        if fullname in MODULES:
            return ModuleSpec(fullname, self, origin=MODULES[fullname].module or _ROOT, is_package=True)
        parent, _, name = fullname.rpartition(".")
        hint = " Import it before balsam_lite.compat to use Django itself." if parent.startswith("django") else ""
        raise ImportError(f"{_no_name(parent, name)}.{hint}", name=fullname)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the empty module."""
        return Facade(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: names are looked up when they are used."""


class _AsyncFinder(MetaPathFinder):
    """Find user's modules that import `balsam.launcher.async`, which Python since 3.7 cannot compile."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return what Python's own finder does, with another loader where the source needs one."""
        spec = PathFinder.find_spec(fullname, path, target)
        if (
            spec is None
            or type(spec.loader) is not SourceFileLoader
            or spec.loader.path.startswith((sys.prefix, sys.base_prefix))
        ):
            return spec
        if b"balsam.launcher" in spec.loader.get_data(spec.loader.path):
            spec.loader = _AsyncLoader(fullname, spec.loader.path)
        return spec


class _AsyncLoader(SourceFileLoader):
    def get_data(self, path: str) -> bytes:
        data = super().get_data(path)
        return without_async(data).encode() if path == self.path else data

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write no bytecode: it would be that of another source."""


def without_async(source: bytes) -> str:
    """Return source code with `balsam.launcher.futures` instead of `balsam.launcher.async`, its older name."""
    return _ASYNC.sub(lambda found: "futures" if found[0] == "async" else "balsam.launcher.futures", decode_source(source))


def install() -> None:
    """Let `import` find the modules of Balsam in this package, from now on. Does nothing the second time.

    Raises:
        ImportError: another `balsam` was imported before.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    other = sys.modules.get("balsam")
    if other is not None:
        place = getattr(other, "__file__", None) or "its directory"
        raise ImportError(f"Another balsam ({place}) was imported before balsam_lite.compat. Import balsam_lite.compat first.")
    roots = [root for root in ("balsam", "django") if root not in sys.modules]
    sys.meta_path.insert(0, _Finder(roots))
    place_of_paths = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
    sys.meta_path.insert(place_of_paths, _AsyncFinder())
