"""What is checked of an application before it is stored, so that its jobs can run, and what its template adds to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.errors import InvalidSpec
from ..pyapps.payload import class_ref
from .interface import Row

#: The fields that decide whether jobs can run. An application that others stored may be odd, and keeps its other fields.
DECISIVE = frozenset({"command_template", "executable", "definition", "parameters"})

_KEYS_OF_RULES = frozenset({"required", "default", "help"})


def parameters_of(app: Row, are_given: bool) -> Row:
    """The parameters to store for an application with these fields: the names in its command template are among them.

    Those of which nothing is said are required. If the parameters were not given together with the template (`are_given`),
    names that it does not have any more are left out; else they are errors.

    Raises:
        InvalidSpec: it has no program or two, or a rule for a parameter is none. TemplateError.
    """
    _check_program(app)
    template, rules = app["command_template"], app["parameters"]
    for name, rule in rules.items():
        _check_rule(app["name"], name, rule, is_filled_in=bool(template))
    if not template:
        return dict(rules)
    from ..launcher.template.rendering import check

    names = check(template)
    extra = sorted(rules.keys() - set(names))
    if extra and are_given:
        known = f"It has: {', '.join(names)}" if names else "It has none."
        raise InvalidSpec(f"The command template of the App {app['name']} has no {', '.join(extra)}.", hint=known)
    return {name: rules.get(name, {"required": True}) for name in names}


def _check_program(app: Row) -> None:
    if app["command_template"] and app["executable"]:
        raise InvalidSpec(
            f"The App {app['name']} cannot have both a command_template and an executable.",
            hint="Give an empty text for the one that it shall not have.",
        )
    if not (app["command_template"] or app["executable"].strip() or app["definition"]):
        raise InvalidSpec(f"The App {app['name']} needs a command_template or an executable: the command line that it runs.")
    if app["definition"]:
        class_ref(json.dumps(app["definition"]))


def _check_rule(app: str, name: str, rule: Any, is_filled_in: bool) -> None:
    """A rule is {"required": bool, "default": any value, "help": text}; with a default where a template needs some value."""
    of = f"App {app}: the parameter {name}"
    if not name.isidentifier():
        raise InvalidSpec(f"App {app}: {name!r} cannot be a parameter's name.", hint="Names are as in Python.")
    if not isinstance(rule, Mapping) or not isinstance(rule.get("required"), bool):
        raise InvalidSpec(
            f"{of} must set 'required' to true or false, not {rule!r}", hint='For example {"required": false, "default": "1"}'
        )
    odd = sorted(map(str, rule.keys() - _KEYS_OF_RULES))
    if odd:
        raise InvalidSpec(f"{of} has unknown keys: {', '.join(odd)}", hint=f"Known are: {', '.join(sorted(_KEYS_OF_RULES))}")
    if not isinstance(rule.get("help"), (str, type(None))):
        raise InvalidSpec(f"{of} must have text for 'help', not {rule['help']!r}")
    if is_filled_in and not rule["required"] and "default" not in rule:
        raise InvalidSpec(f"{of} is not required, and must set a 'default'.")
