"""Applications of a site: `App`, the row that the site has of any application, and how a class becomes such a row.

The classes are those of `jobs.ApplicationDefinition`, which are checked here when they are defined.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from ..core import pickling
from ..core.errors import DuplicateApp, InvalidApplication, InvalidRun
from ..db.engine.registry import SiteEntry
from ..db.query.fields import APP
from ..pyapps import payload
from ..sites import fanout
from . import site_handle, transfers
from .query import Manager
from .records import SiteRecord, column, known, site_id, site_name
from .site_handle import SiteHandle

#: Seconds that a site reached by ssh may take to report its interpreter.
_ABOUT_TIMEOUT_S = 60.0
#: The hooks that run as scripts around a job, named as the columns of an application that hold their command lines.
_SCRIPTS = ("preprocess", "postprocess", "handle_error", "handle_timeout")


# --- checking a class -------------------------------------------------------------------------------------------------


def _invalid(cls: type, words: str, hint: str = "") -> NoReturn:
    raise InvalidApplication(f"The ApplicationDefinition {cls.__name__} {words}", hint=hint)


def checked_site(cls: type[Any]) -> Any:
    site = getattr(cls, "site", None)
    name = getattr(site, "name", site)
    if isinstance(site, SiteEntry):
        return site
    if not name or isinstance(name, bool) or not isinstance(name, (str, int)):
        _invalid(cls, "must contain the `site` attribute, set to a site id, name, or Site object")
    return name


def check_kind(cls: type[Any]) -> None:
    run = getattr(cls, "run", None)
    if run is not None and cls.command_template is not None:
        _invalid(cls, "must not define both a `run` function and a `command_template`")
    if run is None and cls.command_template is None:
        _invalid(cls, "must define either a `run` function or a `command_template`")
    if cls.command_template is not None and not isinstance(cls.command_template, str):
        _invalid(cls, f"has a command_template that is no text: {cls.command_template!r}")
    wrong = transfers.check_slots(cls.transfers)
    if wrong:
        _invalid(cls, wrong)
    patterns = cls.cleanup_files
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(one, str) and one for one in patterns):
        _invalid(cls, f"has `cleanup_files` that are no list of patterns: {patterns!r}")


def parameters_of(cls: type[Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters that the class declares, with those that only the template or the function has."""
    given = cls.parameters
    if not isinstance(given, dict):
        _invalid(cls, f"has `parameters` that are no dictionary: {given!r}")
    if not all(isinstance(name, str) and name.isidentifier() for name in given):
        _invalid(
            cls, f"has odd names in `parameters`; command_template parameters must be valid Python identifiers: {[*given]}"
        )
    if cls.command_template is not None:
        from ..launcher import template

        found = {name: {"required": True} for name in template.check(cls.command_template)}
        takes_more = False
    else:
        found, takes_more = _signature(cls)
    extra = [] if takes_more else sorted(given.keys() - found.keys())
    if extra:
        _invalid(cls, f"has extraneous keys in the `parameters` dictionary: {', '.join(extra)}")
    for name, one in given.items():
        _check_parameter(cls, name, one, found.get(name, {}))
    return {**found, **{name: dict(one) for name, one in given.items()}}


def _check_parameter(cls: type, name: str, one: Any, found: Mapping[str, Any]) -> None:
    if not isinstance(one, dict) or not isinstance(one.get("required"), bool):
        _invalid(cls, f"is wrong: parameter {name} must set 'required' key as True/False")
    has_own = found.get("required") is False
    if not one["required"] and "default" not in one and not has_own:
        _invalid(cls, f"is wrong: optional parameter {name} must set a 'default' value")
    odd = sorted(one.keys() - {"required", "default", "help"})
    if odd:
        _invalid(cls, f"is wrong: parameter {name} has unknown keys: {', '.join(map(str, odd))}")


def _signature(cls: type[Any]) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return the parameters of `run`, and whether it accepts any others."""
    import inspect

    plain = inspect.getattr_static(cls, "run")
    if isinstance(plain, (staticmethod, classmethod)) or not callable(plain):
        raise InvalidRun(f"{cls.__name__}.run must be a plain function of the class, with `self`.")
    names = inspect.signature(plain).parameters
    if next(iter(names), "") != "self":
        raise InvalidRun(f"{cls.__name__}.run({', '.join(names)}) is missing the `self` argument")
    found: dict[str, dict[str, Any]] = {}
    for one in [*names.values()][1:]:
        if one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL):
            raise InvalidRun(f"{cls.__name__}.run takes {one.name} by position; the parameters of a job have names.")
        if one.kind != one.VAR_KEYWORD:
            found[one.name] = {"required": one.default is one.empty}
    return found, any(one.kind == one.VAR_KEYWORD for one in names.values())


# --- what is stored ---------------------------------------------------------------------------------------------------


def row_of(cls: type[Any], handle: SiteHandle) -> dict[str, Any]:
    """Return all fields of the application, so that those of an earlier version are replaced."""
    from inspect import cleandoc

    python = _python(cls, handle)
    own = [name for name in _SCRIPTS if cls._overrides(name) or (name == "postprocess" and cls.cleanup_files)]
    has_preamble = cls._overrides("shell_preamble")
    ref = _class_ref(cls, python, has_preamble, needs_file=bool(own) or has_preamble or cls.command_template is None)
    row = {
        "name": cls.__name__,
        "description": cleandoc(cls.__doc__ or ""),
        "command_template": cls.command_template or "",
        "executable": "" if cls.command_template is not None else shlex.join(payload.program_words(python, payload.FUNCTION)),
        "parameters": cls.parameters,
        "environ_vars": cls.environment_variables,
        "exit_0_is_done_after_stop": cls.exit_0_is_done_after_stop,
        "keep_background": cls.keep_background,
        "definition": {} if ref is None else payload.definition_of(ref),
        "envscript": "",
        **{name: shlex.join(payload.program_words(python, payload.HOOK, name)) if name in own else "" for name in _SCRIPTS},
    }
    return _as_registered(row, handle)


def _as_registered(row: dict[str, Any], handle: SiteHandle) -> dict[str, Any]:
    """Return the fields; at a site of this host with absolute paths of files of the current directory that are run."""
    if handle.entry.is_remote:
        return row
    from ..core import command_line  # here, not above: jobs need none of it

    return command_line.as_registered(row)


def _python(cls: type[Any], handle: SiteHandle) -> str:
    """Return the interpreter on the site's host. A site reached by ssh reports it: its `balsam` may be a script."""
    if cls.python_exe or not handle.entry.is_remote:
        return cls.python_exe or sys.executable
    return str(fanout.open_site(handle.entry, _ABOUT_TIMEOUT_S).about()["python"])


def _class_ref(cls: type[Any], python: str, has_preamble: bool, needs_file: bool) -> payload.ClassRef | None:
    """Return the location of the class; None if it is in no file and need not be."""
    module = sys.modules.get(cls.__module__)
    file = os.path.abspath(getattr(module, "__file__", None) or "")
    trouble = ""
    if not getattr(module, "__file__", None) or not os.path.isfile(file):
        trouble = "is defined in an interactive session, and launchers could not import it."
    elif "." in cls.__qualname__:
        trouble = f"is defined inside of something else ({cls.__qualname__}), and launchers could not import it."
    if trouble and not needs_file:
        return None
    is_open = cls.command_template is None and _signature(cls)[1]
    if trouble:
        value = _by_value(cls, trouble)
        return payload.ClassRef("", cls.__name__, "", _own_path(), python, is_open, has_preamble, value)
    if cls.__module__ == "__main__":
        sys.modules.setdefault(pickling.MAIN, sys.modules["__main__"])  # the module name in the job of the classes of results
    named = getattr(getattr(module, "__spec__", None), "name", None) if cls.__module__ == "__main__" else cls.__module__
    return payload.ClassRef(file, cls.__name__, named or "__main__", _own_path(), python, is_open, has_preamble)


def _by_value(cls: type[Any], trouble: str) -> str:
    """Return the class itself, pickled by value, as base64."""
    from base64 import b64encode

    try:
        pickled = pickling.dumps_by_value(cls, "It has no name to be found by")
    except Exception as exc:  # noqa: BLE001  # pickling runs the code of any class
        hint = "Put it at the top level of a file. (One with a command_template alone need not be there.)"
        _invalid(cls, f"{trouble} {exc}", hint)
    return b64encode(pickled).decode()


def _own_path() -> tuple[str, ...]:
    """Return the entries of sys.path that are not the interpreter's."""
    own = tuple({os.path.join(os.path.abspath(prefix), "") for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)})
    entries = [os.path.abspath(entry) for entry in sys.path]
    return tuple(dict.fromkeys(entry for entry in entries if os.path.isdir(entry) and not entry.startswith(own)))


# --- applications as rows -----------------------------------------------------------------------------------------------


class App(SiteRecord):
    """An application of a site. Those with a Python class are made by `ApplicationDefinition.sync()`."""

    __slots__ = ()

    name: str = column("name")
    site_id: int | None = site_id()
    site_name: str | None = site_name()
    description: str = column("description")
    kind: str = known()
    parameters: dict[str, Any] = column("data")
    command_template: str = column("description")
    executable: str = column("args")
    environ_vars: dict[str, str] = column("environ_vars")
    preprocess: str = column("args")
    postprocess: str = column("args")
    envscript: str = column("description")
    handle_error: str = column("args")
    handle_timeout: str = column("args")
    exit_0_is_done_after_stop: bool = column("exit_0_is_done_after_stop")
    keep_background: bool = column("keep_background")
    definition: dict[str, Any] = known(default={})

    _KIND = "app"
    _SHOWN = ("id", "name", "description", "kind")
    _LEADING = frozenset({"command_template", "parameters", "executable"})  # these determine the kind and further parameters
    _REQUIRED = ("name",)
    _TABLE = APP
    _ORDERS = ("id", "name")

    objects: ClassVar[Manager[App]]

    def _create(self) -> None:
        given = self._changed
        handle = site_handle.one_site(given)
        if handle.interface.count("app", {"name": given["name"]}):
            raise DuplicateApp(f"The site {handle.entry.name} has an App {given['name']!r} already.")
        given = _as_registered(given, handle)
        made = handle.interface.create("app", [site_handle.without_site(given)])[0]
        self._changed = {name: value for name, value in given.items() if name != "parameters"}  # the template has added to them
        self._created(made, handle)

    def save(self) -> None:
        """Save as `SiteRecord.save` does; command lines that run files of the current directory get their absolute paths."""
        if self._is_saved:
            self._changed = _as_registered(self._changed, self._site)
        super().save()

    def delete(self) -> None:
        """Remove it with all its jobs. Raises DoesNotExist, StateError: a launcher holds one of them; ParentInUse."""
        super().delete()


App.objects = Manager(App)
