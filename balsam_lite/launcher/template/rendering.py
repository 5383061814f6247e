"""Render command templates: jinja2 text in which each value becomes a word of the command line, or a part of one. Pure.

jinja2 puts each value between two marks that neither a value nor a template can contain; `quoting` finds from the text around
them how they are quoted. jinja2 is imported when the first template is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core.errors import TemplateError
from . import quoting

if TYPE_CHECKING:
    import jinja2

_MARK = quoting.PLACEHOLDER
_HALF_OPEN = re.compile(r"(?<![{$])\{\s*[A-Za-z_]\w*\s*\}\}")
_INSIDE_A_VALUE = (
    "A value holds a NUL character, or the template prints what it has captured with a macro, a call or a set block."
)


class Command(NamedTuple):
    """The command of a job: one of the two is set."""

    argv: list[str]  # of a program that needs no shell
    text: str  # for `bash -c`


class _Compiled(NamedTuple):
    template: jinja2.Template
    variables: frozenset[str]
    fixed: (
        tuple[str, ...] | None
    )  # the texts between the names, if there is nothing else; filled without jinja2, ten times as fast
    names: tuple[str, ...]  # in order


def render(text: str, values: Mapping[str, Any], for_shell: bool = False) -> Command:
    """Return the command of a job with these values. Values that the template does not use are ignored.

    Values other than text are converted by `str`. Blanks and line breaks around the line are removed.

    Args:
        for_shell: always return a text for a shell, which may have functions with the names of programs.

    Raises:
        TemplateError: a value is missing or cannot be quoted in its position; the template fails for these values.
    """
    compiled = _compiled(text)
    if not compiled.variables <= values.keys():
        missing = compiled.variables - values.keys()
        raise TemplateError(f"Missing required args: {listed(missing)} (only got: {listed(values)})")
    if compiled.fixed is not None:
        return _command(compiled.fixed, [_text(values[name]) for name in compiled.names], for_shell)
    try:
        line = compiled.template.render(values)
    except TemplateError:
        raise
    except Exception as exc:  # the expressions of a template may raise anything
        raise _broken(text, exc) from exc
    return _command(*_taken_apart(line), for_shell)


def check(text: str) -> list[str]:
    """Return the sorted names of the values that a template needs.

    Raises:
        TemplateError: it cannot be parsed, gives no command, or has a value in a position that cannot be quoted.
    """
    compiled = _compiled(text)
    try:
        line = _environment(strict=False).from_string(text).render()
    except TemplateError:
        raise
    except Exception:  # noqa: BLE001  # the template computes with values, which are not known yet
        return sorted(compiled.variables)
    _command(*_taken_apart(line))
    return sorted(compiled.variables)


def listed(names: Iterable[str]) -> str:
    """Format names as Python prints a set, sorted.

    >>> listed(["b", "a"])
    "{'a', 'b'}"
    """
    return f"{{{', '.join(map(repr, sorted(names)))}}}"


# --- jinja2 -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=256)
def _compiled(text: str) -> _Compiled:
    import jinja2.meta

    if _MARK in text:
        raise TemplateError("A command template must not hold a NUL character.")
    half_open = _HALF_OPEN.search(text)
    if half_open:  # for jinja2 it is text, and the value would not be filled in
        line = text.count("\n", 0, half_open.start()) + 1
        raise TemplateError(f"The command template lacks a brace {{ (line {line}): {half_open[0]}")
    environment = _environment(strict=True)
    try:
        tree = environment.parse(text)
        variables = jinja2.meta.find_undeclared_variables(tree) - environment.globals.keys()
        fixed, names = _plain_parts(tree, variables)
        return _Compiled(environment.from_string(text), frozenset(variables), fixed, names)
    except (jinja2.TemplateError, RecursionError) as exc:
        raise _broken(text, exc) from exc


def _plain_parts(tree: jinja2.nodes.Template, variables: set[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the texts and the names of a template that consists of nothing else, otherwise (None, ())."""
    from jinja2 import nodes

    fixed, names = [""], []
    for statement in tree.body:
        for node in statement.nodes if isinstance(statement, nodes.Output) else (statement,):
            if isinstance(node, nodes.TemplateData):
                fixed[-1] += node.data
            elif isinstance(node, nodes.Name) and node.name in variables:
                names.append(node.name)
                fixed.append("")
            else:
                return None, ()
    return _stripped(fixed), tuple(names)


@lru_cache(maxsize=2)
def _environment(strict: bool) -> jinja2.Environment:
    import jinja2

    undefined = jinja2.StrictUndefined if strict else jinja2.ChainableUndefined
    return jinja2.Environment(undefined=undefined, finalize=_marked, autoescape=False)


def _marked(value: Any) -> str:
    """Return the marked text that jinja2 inserts for a value."""
    return f"{_MARK}{_text(value)}{_MARK}"


def _text(value: Any) -> str:
    text = str(value)
    if _MARK in text:
        raise TemplateError(_INSIDE_A_VALUE)
    return text


def _taken_apart(line: str) -> tuple[tuple[str, ...], list[str]]:
    """Split a rendered line into the texts between the values, and the values."""
    parts = line.split(_MARK)
    return _stripped(parts[::2]), parts[1::2]


def _stripped(fixed: list[str]) -> tuple[str, ...]:
    """Strip the blanks around the line, but not those of a value at either end."""
    fixed[0], fixed[-1] = fixed[0].lstrip(), fixed[-1].rstrip()
    return tuple(fixed)


def _command(fixed: tuple[str, ...], values: list[str], for_shell: bool = False) -> Command:
    words, positions = quoting.plan(fixed, for_shell)
    if words is None:
        return Command([], quoting.fill(fixed, positions, values))
    argv = quoting.join(words, values)
    if not argv:
        raise TemplateError("The command template gives an empty command line.")
    return Command(argv, "")


def _broken(text: str, exc: Exception) -> TemplateError:
    line = getattr(exc, "lineno", None)
    where = f" (line {line})" if line else ""
    return TemplateError(f"The command template cannot be used: {exc}{where}\n    {text.strip()}")
