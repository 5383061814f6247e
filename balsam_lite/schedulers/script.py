"""The job script of a launch: its template, and the values that are put into it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..core.errors import InvalidSpec, SettingsError
from ..core.settings import HOME_VARIABLE, Settings, home
from ..db.engine.connection import Database
from .base import LaunchRequest, Scheduler, select

if TYPE_CHECKING:
    import jinja2
    from jinja2 import nodes

#: Followed by our number, the name of a batch job for the scheduler and for users.
NAME = "qlaunch"
#: Directory of templates in the DB and among the user's settings, as in Balsam 0.3.
TEMPLATES = "job-templates"
#: The templates of this package.
PACKAGED = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "templates")
#: The variable with the user's own values.
_OPTIONAL = "optional_params"


class _ShellText(str):
    """Text that is one shell word as it stands; `raw` is the value that the shell reads from it.

    Users' templates, written for Balsam 0.3, put values into command lines without quotes.
    """

    raw: str

    def __new__(cls, raw: str, prefix: str = "") -> _ShellText:
        text = super().__new__(cls, prefix + (shlex.quote(raw) if raw else raw))
        text.raw = prefix + raw
        return text


def _quoted(value: Any) -> str:
    """Quote any value as one shell word: the template filter `q`."""
    return shlex.quote(value.raw if isinstance(value, _ShellText) else str(value))


def render(db: Database, settings: Settings, scheduler: Scheduler, request: LaunchRequest, number: int) -> str:
    """Return the job script of that launch as `qlaunch<number>`. Writes nothing.

    Raises:
        InvalidSpec: the template has no use for a part of the request. SettingsError: the template is missing or broken,
        with file, line and reason.
    """
    import jinja2

    path = template_path(db, settings, scheduler)
    environment = _environment(path, db)
    try:
        _check_use(request, _Use(environment, os.path.basename(path)), path)
        return environment.get_template(os.path.basename(path)).render(_variables(db, request, number))
    except jinja2.TemplateSyntaxError as exc:
        raise SettingsError(f"{exc.filename or path}, line {exc.lineno}: {exc.message}") from exc
    except InvalidSpec:
        raise
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as exc:
        raise SettingsError(f"{path}{_line_of(exc, path)}: {exc}", hint=_hint(exc)) from exc


def _check_use(request: LaunchRequest, use: _Use, path: str) -> None:
    """Refuse parts of the request that the template does not use."""
    for name, word in (("filter_tags", "tag"), ("partitions", "part")):
        if getattr(request, name) and name not in use.variables:
            raise InvalidSpec(
                f"The job template {path} does not hand {name} on to the launcher.",
                hint=f"Put this after its command: {{% for {word} in {name} %}} --{word} {{{{ {word} | q }}}}{{% endfor %}}",
            )
    extra = sorted(set(request.optional_params) - use.optional)
    if extra and not use.takes_any:
        allowed = ", ".join(sorted(use.optional))
        raise InvalidSpec(
            f"Extraneous optional_params: {{{', '.join(extra)}}} (allowed extras: {{{allowed}}})",
            hint=f"{path} has to use them, as {{{{ {_OPTIONAL}.{extra[0]} }}}}.",
        )


def template_path(db: Database, settings: Settings, scheduler: Scheduler) -> str:
    """Return the path of the template: in the DB, else among the user's settings, else in this package."""
    name = os.path.expanduser(settings.JOB_TEMPLATE or scheduler.template)
    places = [os.path.join(folder, name) for folder in _template_folders(db)]
    for path in places:
        if os.path.isfile(path):
            return path
    looked = "".join(f"\n    {path}" for path in dict.fromkeys(places))
    raise SettingsError(f"JOB_TEMPLATE: there is no file {name}", hint=f"  Looked for:{looked}")


def _template_folders(db: Database) -> list[str]:
    own = [os.path.join(folder, below) for folder in (db.directory, home()) for below in ("", TEMPLATES)]
    return [*own, PACKAGED]


def copy_template(db: Database, settings: Settings, scheduler: Scheduler | None = None) -> str:
    """Copy the template in use into the DB, for the user to edit, unless the DB has one. Return the path that is in use.

    An existing file is never replaced. Opens no transaction.

    Raises:
        SettingsError: there is no such scheduler or template. OSError: the copy cannot be written.
    """
    scheduler = scheduler or select(settings)
    source = template_path(db, settings, scheduler)
    if not settings.JOB_TEMPLATE and not source.startswith(os.path.join(db.directory, "")):
        target = os.path.join(db.directory, TEMPLATES, scheduler.template)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        write_new(_read(source), target)
        return target
    return source


def packaged(name: str) -> bytes:
    """Return a template as it came with the package."""
    return _read(os.path.join(PACKAGED, name))


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def write_new(content: bytes, target: str) -> None:
    """Write a new file; an existing one stays as it is. Raises OSError."""
    try:
        made = open(target, "xb")
    except FileExistsError:  # another process was faster
        return
    try:
        with made:
            made.write(content)
    except OSError:
        os.unlink(target)
        raise


def _environment(path: str, db: Database) -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([os.path.dirname(path), *_template_folders(db)]),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters["q"] = _quoted
    return environment


class _Use:
    """The variables that a template and its includes use, and which of the user's own values it uses by name."""

    def __init__(self, environment: jinja2.Environment, name: str) -> None:
        self.variables: set[str] = set()
        self.optional: set[str] = set()
        self.takes_any = False  # it loops over all of them
        self._read(environment, name, set())

    def _read(self, environment: jinja2.Environment, name: str, known: set[str]) -> None:
        import jinja2
        from jinja2 import meta, nodes

        assert environment.loader is not None
        known.add(name)
        tree = environment.parse(environment.loader.get_source(environment, name)[0], filename=name)
        self.variables |= {found.name for found in tree.find_all(nodes.Name)}
        named = list(_named_values(tree))
        self.optional |= {found for found in named if found}
        whole = sum(found.name == _OPTIONAL for found in tree.find_all(nodes.Name))
        self.takes_any |= whole > len(named)
        for other in meta.find_referenced_templates(tree):
            if other is not None and other not in known:
                try:
                    self._read(environment, other, known)
                except jinja2.TemplateNotFound:  # rendering decides whether that matters, and knows the line
                    continue


def _named_values(tree: nodes.Template) -> Iterator[str]:
    """Yield the `x` of each `optional_params.x` and `optional_params["x"]`."""
    from jinja2 import nodes

    def is_ours(node: nodes.Expr) -> bool:
        return isinstance(node, nodes.Name) and node.name == _OPTIONAL

    for dotted in tree.find_all(nodes.Getattr):
        if is_ours(dotted.node) and dotted.attr not in dir(dict):
            yield dotted.attr
    for indexed in tree.find_all(nodes.Getitem):
        if is_ours(indexed.node) and isinstance(indexed.arg, nodes.Const):
            yield str(indexed.arg.value)


class _Optional(dict[str, _ShellText]):
    """The user's own values; one that was not given is empty, and `default()` recognises it as undefined."""

    def __missing__(self, name: str) -> Any:
        import jinja2

        return jinja2.Undefined(name=name)


def _variables(db: Database, request: LaunchRequest, number: int) -> dict[str, Any]:
    """Return the variables of a job template. `project` to `pg_bin` are those of Balsam 0.3; text needs no quotes."""
    balsam_bin = _ShellText(_balsam_bin())
    filters = _ShellText(request.wf_filter, "wf-filter=") if request.wf_filter else _ShellText("consume-all")
    return {
        "project": _ShellText(request.project),
        "queue": _ShellText(request.queue),
        "nodes": request.nodes,
        "time_minutes": request.wall_minutes,
        "job_mode": _ShellText(request.job_mode),
        "wf_filter": filters,
        "balsam_bin": balsam_bin,
        "balsam_db_path": _ShellText(db.directory),
        "balsam_home": _ShellText(home() if HOME_VARIABLE in os.environ else ""),
        "pg_bin": balsam_bin,  # formerly PostgreSQL's commands; templates put it on PATH
        "name": _ShellText(f"{NAME}{number}"),
        "filter_tags": [_ShellText(f"{key}={value}") for key, value in sorted(request.filter_tags.items())],
        "sched_flags": request.sched_flags,
        "partitions": [_ShellText(part.as_text()) for part in request.partitions],
        _OPTIONAL: _Optional({name: _ShellText(value) for name, value in request.optional_params.items()}),
    }


def _balsam_bin() -> str:
    """Return the directory of the `balsam` command that belongs to this process."""
    candidates = [os.path.abspath(sys.argv[0])] if os.path.basename(sys.argv[0]) == "balsam" else []
    candidates += [os.path.join(os.path.dirname(sys.executable), "balsam"), shutil.which("balsam") or ""]
    for path in candidates:
        if os.path.isfile(path):
            return os.path.dirname(path)
    return os.path.dirname(sys.executable)


def _line_of(exc: BaseException, path: str) -> str:
    """Return `, line N` of the template, from the traceback: jinja2 puts the template's lines there."""
    line, traceback = 0, exc.__traceback__
    while traceback:
        if traceback.tb_frame.f_code.co_filename == path:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return f", line {line}" if line else ""


def _hint(exc: BaseException) -> str:
    import jinja2

    if isinstance(exc, jinja2.UndefinedError):
        return (
            "A job template may use: project queue nodes time_minutes job_mode wf_filter balsam_bin balsam_db_path"
            " balsam_home pg_bin name filter_tags partitions optional_params sched_flags, and the filter q."
        )
    return ""
