"""A user's own MPI start command: a command line as a jinja2 template (Settings.MPI_RUN_TEMPLATE). Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...core import field_specs
from ...core.errors import SettingsError
from .layout import RankLayout

if TYPE_CHECKING:
    import jinja2

_FLAGS = "flags"
_VARIABLES = (
    "ranks", "ranks_per_node", "nodes", "hosts", "threads_per_rank", "threads_per_core", "cpu_affinity", "gpus_per_rank",
    _FLAGS,
)  # fmt: skip
#: What templates are tried with before any job is.
_EXAMPLES = (RankLayout(), RankLayout(("host-1", "host-2"), num_nodes=2, ranks_per_node=4, threads_per_rank=2))

#: All that stands before the program, from a layout and the job's own flags.
Render = Callable[[RankLayout, Sequence[str]], list[str]]


def make_render(text: str) -> Render:
    """Read a template and try it.

    The program's words follow what it gives; the job's own flags stand in between, unless it uses `flags`. These and `hosts`
    are quoted by the shell's rules, by which the line is split into words; no shell reads it. `Render` may raise the same
    error for a job.

    Raises:
        SettingsError: it cannot be read, or it fails for a simple job.
    """
    import jinja2
    import jinja2.meta

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        template = environment.from_string(text)
        places_flags = _FLAGS in jinja2.meta.find_undeclared_variables(environment.parse(text))
    except (jinja2.TemplateError, RecursionError) as exc:
        raise _broken(text, exc) from exc

    def render(layout: RankLayout, flags: Sequence[str]) -> list[str]:
        line = _line(template, text, _variables(layout, flags))
        try:
            words = field_specs.split_command(line)
        except ValueError as exc:
            raise _broken(text, f"{exc} in: {line}") from exc
        if not words:
            raise _broken(text, "it gives no words")
        return words if places_flags else [*words, *flags]

    for example in _EXAMPLES:
        render(example, ())
    return render


def _variables(layout: RankLayout, flags: Sequence[str]) -> dict[str, Any]:
    return {
        "ranks": layout.ranks,
        "ranks_per_node": layout.ranks_per_node,
        "nodes": layout.num_nodes,
        "hosts": [shlex.quote(host) for host in layout.hosts or ("localhost",)],
        "threads_per_rank": layout.threads_per_rank,
        "threads_per_core": layout.threads_per_core,
        "cpu_affinity": layout.cpu_affinity,
        "gpus_per_rank": layout.gpus_per_rank,
        _FLAGS: [shlex.quote(flag) for flag in flags],
    }


def _line(template: jinja2.Template, text: str, variables: dict[str, Any]) -> str:
    import jinja2

    try:
        return template.render(variables)
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as exc:
        raise _broken(text, exc) from exc


def _broken(text: str, why: object) -> SettingsError:
    return SettingsError(f"MPI_RUN_TEMPLATE: {why}\n    {text}", hint=f"It may use: {' '.join(_VARIABLES)}.")
