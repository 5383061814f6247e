"""Applications of a site: `ApplicationDefinition`, a Python class, and `App`, the row that the site has of any application.

A class has a command template or a function to run. The site stores the location of the class, not its code: launchers import
its file again (`pyapps.class_loader`). A change of the code takes effect with the next job, a change of what `sync()` stores
with the next `sync()`.
"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NoReturn

from ..core import command_line, import_guard
from ..core.errors import ApplicationLost, DuplicateApp, InvalidApplication, InvalidRun, NotFound, UnknownApp
from ..db.engine.registry import SiteEntry
from ..db.query.fields import APP
from ..pyapps import class_loader, payload
from ..sites import fanout
from . import routing, site_handle
from .query import Manager
from .records import SiteRecord, column, known, site_id, site_name
from .site_handle import SiteHandle, handle_of

#: Seconds that a site reached by ssh may take to report its interpreter.
_ABOUT_TIMEOUT_S = 60.0
#: The hooks that run as scripts around a job, named as the columns of an application that hold their command lines.
_SCRIPTS = ("preprocess", "postprocess", "handle_error", "handle_timeout")


class ApplicationDefinition:
    """The base of all applications. A subclass has a `site`, and either a `command_template` or a function `run`.

    Attributes:
        site: the name or the number of the site, or the Site itself.
        command_template: a jinja2 template of a command line. Each value is one word, whatever it contains; the shell expands
            $VAR. How `eval`, `sh -c` or a program interpret that word, or bash a variable in $((…)), is up to the template.
        parameters: name -> {"required": bool, "default": any JSON value, "help": str}. Names that only the template has are
            required.
        environment_variables: for the program; those of a job override them.
        python_exe: the interpreter that runs functions and hooks, on the site's host; by default the one that runs
            here, or for a site reached by ssh the one that runs balsam there.
        exit_0_is_done_after_stop: count a run that exits with 0 after its launcher told it to stop as done, not as a timeout.
        keep_background: do not end processes that a run leaves in the background when it ends.

    The launcher creates the objects; `self.job` is the job. Hooks may assign `self.job.state` and `self.job.state_data`. In
    `run` and `shell_preamble` the fields of the job can be read, and no DB is opened: see `pyapps.run_class.JobView`.
    """

    site: ClassVar[Any]
    command_template: ClassVar[str | None] = None
    parameters: ClassVar[dict[str, dict[str, Any]]] = {}
    environment_variables: ClassVar[dict[str, str]] = {}
    python_exe: ClassVar[str] = ""
    exit_0_is_done_after_stop: ClassVar[bool] = False
    keep_background: ClassVar[bool] = False
    transfers: ClassVar[dict[str, Any]] = {}
    cleanup_files: ClassVar[list[str]] = []
    run: ClassVar[Callable[..., Any]]

    _is_synced: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._is_synced = False
        cls.site = _checked_site(cls)
        _check_kind(cls)
        cls.parameters = _parameters(cls)

    def __init__(self, job: Any) -> None:
        self.job = job

    # --- what subclasses may override ---------------------------------------------------------------------------------

    def preprocess(self) -> None:
        """Prepare the first run; then the job is PREPROCESSED."""

    def postprocess(self) -> None:
        """Handle a run that succeeded; then the job is POSTPROCESSED, and finished."""

    def handle_error(self) -> None:
        """Handle a run that failed; then the job is FAILED."""

    def handle_timeout(self) -> None:
        """Handle a run that was stopped at the end of the launcher's time; then the job is RESTART_READY."""

    def shell_preamble(self) -> list[str] | str:
        """Return the commands for the shell before each run: a list of commands, or a text to be sourced."""
        return []

    # --- storing and loading ------------------------------------------------------------------------------------------

    @classmethod
    def sync(cls, rename_from: str | None = None) -> None:
        """Register the application at its site, or change its registration. One write transaction.

        With `rename_from` the application of that name gets the name of this class, and keeps its number and its jobs. Does
        nothing while a launcher imports the file.

        Raises:
            UnknownSite, InvalidSpec; InvalidApplication: it has functions, and is not in a file that can be imported.
        """
        if import_guard.is_importing():
            return
        handle = _handle(cls.site)
        row = _row(cls, handle)
        if not handle.entry.is_remote:
            row = command_line.as_registered(row)
        if rename_from:
            row["rename_from"] = rename_from
        handle.interface.create("app", [row])
        cls._is_synced = True

    @classmethod
    def submit(
        cls,
        workdir: str | os.PathLike[str],
        tags: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        num_nodes: int = 1,
        ranks_per_node: int = 1,
        threads_per_rank: int = 1,
        threads_per_core: int = 1,
        launch_params: Mapping[str, str] | None = None,
        gpus_per_rank: float = 0,
        node_packing_count: int = 1,
        wall_time_min: int = 0,
        parent_ids: Any = (),
        save: bool = True,
        allow_shared_workdir: bool = False,
        **app_params: Any,
    ) -> Any:
        """Add a job of this application, whose parameters are `app_params`, and return the Job.

        The first call in a process runs `sync()`. With `save=False` the job is created but not added.

        Raises:
            as `Job.save` and `sync`.
        """
        from .jobs import Job, refuse_transfers

        import_guard.check_writable()
        if "transfers" not in cls.parameters:
            refuse_transfers(app_params.pop("transfers", None))
        if not cls._is_synced:
            cls.sync()
        if cls.command_template is not None:
            app_params = {name: os.fspath(one) if isinstance(one, os.PathLike) else one for name, one in app_params.items()}
        job = Job(
            workdir=workdir, app_id=cls, tags=dict(tags or {}), parameters=app_params, data=dict(data or {}),
            num_nodes=num_nodes, ranks_per_node=ranks_per_node, threads_per_rank=threads_per_rank,
            threads_per_core=threads_per_core, launch_params=dict(launch_params or {}), gpus_per_rank=gpus_per_rank,
            node_packing_count=node_packing_count, wall_time_min=wall_time_min, parent_ids=parent_ids,
            **({"allow_shared_workdir": True} if allow_shared_workdir else {}),
        )  # fmt: skip
        if save:
            job.save()
        return job

    @classmethod
    def load_by_site(cls, site: Any) -> dict[str, type[ApplicationDefinition]]:
        """Return the classes of a site's applications by name; applications that are plain command lines have none.

        Raises:
            UnknownSite, ApplicationLost.
        """
        handle = _handle(site)
        rows = [row for row in handle.interface.select("app", order="name") if row["kind"] != "command"]
        return {row["name"]: _loaded(row, handle) for row in rows}

    @classmethod
    def load_by_name(cls, app_name: str, site_name: str | None = None) -> type[ApplicationDefinition]:
        """Return the class of the application of that name, at the active DB or the only known site that has one.

        Raises:
            UnknownSite, UnknownApp, ApplicationLost. MultipleObjectsReturned: several sites have one.
        """
        where = {"name": app_name, **({"site_name": site_name} if site_name else {})}
        return _of_record(App.objects, where, f"{app_name!r}")

    @classmethod
    def load_by_id(cls, app_id: int) -> type[ApplicationDefinition]:
        """Return the class of the application with that number. Raises as `load_by_name`."""
        return _of_record(App.objects, {"id": app_id}, f"number {app_id}")


# --- checking a class -------------------------------------------------------------------------------------------------


def _invalid(cls: type, words: str, hint: str = "") -> NoReturn:
    raise InvalidApplication(f"The ApplicationDefinition {cls.__name__} {words}", hint=hint)


def _checked_site(cls: type[ApplicationDefinition]) -> Any:
    site = getattr(cls, "site", None)
    name = getattr(site, "name", site)
    if isinstance(site, SiteEntry):
        return site
    if not name or isinstance(name, bool) or not isinstance(name, (str, int)):
        _invalid(cls, "must contain the `site` attribute, set to a site id, name, or Site object")
    return name


def _check_kind(cls: type[ApplicationDefinition]) -> None:
    run = getattr(cls, "run", None)
    if run is not None and cls.command_template is not None:
        _invalid(cls, "must not define both a `run` function and a `command_template`")
    if run is None and cls.command_template is None:
        _invalid(cls, "must define either a `run` function or a `command_template`")
    if cls.command_template is not None and not isinstance(cls.command_template, str):
        _invalid(cls, f"has a command_template that is no text: {cls.command_template!r}")
    for name in ("transfers", "cleanup_files"):
        if getattr(cls, name):
            _invalid(
                cls,
                f"sets {name}, which belongs to Balsam's servers.",
                "Files are copied by a job's stage_in_url and stage_out_url, and linked from its parents by input_files.",
            )


def _parameters(cls: type[ApplicationDefinition]) -> dict[str, dict[str, Any]]:
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


def _signature(cls: type[ApplicationDefinition]) -> tuple[dict[str, dict[str, Any]], bool]:
    """Return the parameters of `run`, and whether it accepts any others."""
    plain = inspect.getattr_static(cls, "run")
    if isinstance(plain, (staticmethod, classmethod)) or not callable(plain):
        raise InvalidRun(f"{cls.__name__}.run must be a plain function of the class, with `self`.")
    first, *rest = [*inspect.signature(plain).parameters.values(), None]
    if first is None or first.name != "self":
        listed = ", ".join(inspect.signature(plain).parameters)
        raise InvalidRun(f"{cls.__name__}.run({listed}) is missing the `self` argument")
    found: dict[str, dict[str, Any]] = {}
    for one in rest[:-1]:
        assert one is not None
        if one.kind in (one.POSITIONAL_ONLY, one.VAR_POSITIONAL):
            raise InvalidRun(f"{cls.__name__}.run takes {one.name} by position; the parameters of a job have names.")
        if one.kind != one.VAR_KEYWORD:
            found[one.name] = {"required": one.default is one.empty}
    return found, any(one is not None and one.kind == one.VAR_KEYWORD for one in rest)


# --- what is stored ---------------------------------------------------------------------------------------------------


def _row(cls: type[ApplicationDefinition], handle: SiteHandle) -> dict[str, Any]:
    """Return all fields of the application, so that those of an earlier version are replaced."""
    python = _python(cls, handle)
    own = [name for name in _SCRIPTS if getattr(cls, name) is not getattr(ApplicationDefinition, name)]
    has_preamble = cls.shell_preamble is not ApplicationDefinition.shell_preamble
    ref = _class_ref(cls, python, has_preamble, needs_file=bool(own) or has_preamble or cls.command_template is None)
    return {
        "name": cls.__name__,
        "description": inspect.cleandoc(cls.__doc__ or ""),
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


def _python(cls: type[ApplicationDefinition], handle: SiteHandle) -> str:
    """Return the interpreter on the site's host. A site reached by ssh reports it: its `balsam` may be a script."""
    if cls.python_exe or not handle.entry.is_remote:
        return cls.python_exe or sys.executable
    return str(fanout.open_site(handle.entry, _ABOUT_TIMEOUT_S).about()["python"])


def _class_ref(cls: type[ApplicationDefinition], python: str, has_preamble: bool, needs_file: bool) -> payload.ClassRef | None:
    """Return the location of the class; None if it is in no file and need not be."""
    module = sys.modules.get(cls.__module__)
    file = os.path.abspath(getattr(module, "__file__", None) or "")
    trouble = ""
    if not getattr(module, "__file__", None) or not os.path.isfile(file):
        trouble = "is defined in an interactive session, and launchers could not import it."
    elif "." in cls.__qualname__:
        trouble = f"is defined inside of something else ({cls.__qualname__}), and launchers could not import it."
    if trouble and needs_file:
        _invalid(cls, trouble, "Put it at the top level of a file. (One with a command_template alone need not be there.)")
    if trouble:
        return None
    if cls.__module__ == "__main__":
        sys.modules.setdefault(payload.MAIN, sys.modules["__main__"])  # the module name that classes of results have in the job
    named = getattr(getattr(module, "__spec__", None), "name", None) if cls.__module__ == "__main__" else cls.__module__
    is_open = cls.command_template is None and _signature(cls)[1]
    return payload.ClassRef(file, cls.__name__, named or "__main__", _own_path(), python, is_open, has_preamble)


def _own_path() -> tuple[str, ...]:
    """Return the entries of sys.path that are not the interpreter's."""
    own = tuple({os.path.join(os.path.abspath(prefix), "") for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)})
    entries = [os.path.abspath(entry) for entry in sys.path]
    return tuple(dict.fromkeys(entry for entry in entries if os.path.isdir(entry) and not entry.startswith(own)))


# --- finding classes --------------------------------------------------------------------------------------------------


def _handle(site: Any) -> SiteHandle:
    return handle_of(site_handle.named(site))


def _of_record(apps: Any, where: dict[str, Any], title: str) -> type[ApplicationDefinition]:
    try:
        found = apps.get(**where)
    except App.DoesNotExist as exc:
        raise UnknownApp(f"No site has an application {title}.") from exc
    return _loaded(found._row, found._site)


def _loaded(row: Mapping[str, Any], handle: SiteHandle) -> type[ApplicationDefinition]:
    """Return the class of an application."""
    if row["kind"] == "command":
        raise NotFound(f"The application {row['name']} is a command line and has no class: {row['executable']}")
    if row["definition"].get("file"):
        import json

        found = class_loader.load(payload.class_ref(json.dumps(row["definition"])))
        if not issubclass(found, ApplicationDefinition):
            raise ApplicationLost(f"{row['name']} of {row['definition']['file']} is no ApplicationDefinition (any more).")
        return found
    fields = {
        "site": handle.entry,
        "command_template": row["command_template"],
        "parameters": {name: one for name, one in row["parameters"].items() if not one.get("required", True) or "help" in one},
        "environment_variables": row["environ_vars"],
        "exit_0_is_done_after_stop": bool(row["exit_0_is_done_after_stop"]),
        "keep_background": bool(row["keep_background"]),
        "__doc__": row["description"],
        "__module__": __name__,
    }
    return type(row["name"], (ApplicationDefinition,), fields)


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
    _LEADING = frozenset({"command_template", "parameters", "executable"})  # these determine the kind and further parameters
    _REQUIRED = ("name",)
    _TABLE = APP
    _ORDERS = ("id", "name")

    objects: ClassVar[Manager[App]]

    def _create(self) -> None:
        given = self._changed
        handle = routing.one_site(given)
        if handle.interface.count("app", {"name": given["name"]}):
            raise DuplicateApp(f"The site {handle.entry.name} has an App {given['name']!r} already.")
        if not handle.entry.is_remote:
            given = command_line.as_registered(given)
        made = handle.interface.create("app", [routing.without_site(given)])[0]
        self._changed = {name: value for name, value in given.items() if name != "parameters"}  # the template has added to them
        self._created(made, handle)

    def save(self) -> None:
        """Save as `SiteRecord.save` does; command lines that run files of the current directory get their absolute paths."""
        if self._is_saved and not self._site.entry.is_remote:
            self._changed = command_line.as_registered(self._changed)
        super().save()

    def delete(self) -> None:
        """Remove it with all its jobs. Raises DoesNotExist, StateError: a launcher holds one of them; ParentInUse."""
        super().delete()


App.objects = Manager(App)
