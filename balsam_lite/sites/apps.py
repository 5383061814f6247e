"""Register, change and remove the applications of a site, with the field names of Balsam 0.7: for `local.LocalSite`.

Functions with a `db` open their own write transaction and write everything or nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import BalsamError, InvalidSpec, NotFound, UnknownApp
from ..db.engine.connection import Connection, Database
from ..db.query import select
from ..db.store import actions, apps, trash
from ..pyapps.payload import class_ref
from . import jobs
from .interface import Row

#: The fields that decide whether jobs can run. An invalid application stored by others keeps its other fields.
DECISIVE = frozenset({"command_template", "executable", "definition", "parameters"})

_KEYS_OF_RULES = frozenset({"required", "default", "help"})


def parameters_of(app: Row, are_given: bool) -> Row:
    """Return the parameters to store for an application with these fields, including the names in its command template.

    Parameters without a rule are required. If the parameters were not given together with the template (`are_given`), names
    that it no longer has are dropped; otherwise they are errors.

    Raises:
        InvalidSpec: it has no program or two, or a parameter's rule is invalid. TemplateError.
    """
    _check_program(app)
    template, rules = app["command_template"], app["parameters"]
    for name, rule in rules.items():
        _check_rule(app["name"], name, rule, is_filled_in=bool(template))
    if not template:
        return dict(rules)
    from ..launcher.template import check

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
    """Check a rule: {"required": bool, "default": any value, "help": text}, with a default if a template needs a value."""
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


def create(db: Database, rows: Sequence[Row]) -> list[Row]:
    """Register applications; an existing one of that name is changed. Return them as stored, in order.

    Names in a command template that `parameters` lacks are required parameters. With `rename_from`, the application of that
    name, if it exists, is renamed; its number and its jobs stay.

    Raises:
        UnknownField, InvalidSpec (it could not run), DuplicateApp: with the number of the row if there are several rows.
    """
    with db.write() as cx:
        return [_put(cx, row, number if len(rows) > 1 else 0) for number, row in enumerate(rows, 1)]


def _put(cx: Connection, row: Row, number: int) -> Row:
    values = {name: value for name, value in row.items() if name != "rename_from"}
    try:
        name, before = values.get("name"), row.get("rename_from")
        if not isinstance(name, str) or not name.strip():
            raise InvalidSpec(f"An App needs a name, not {name!r}")
        if before and before != name:
            _rename(cx, before, name)
        if select.count_apps(cx, {"name": name}):
            apps.update_app(cx, name, values)
            _settle(cx, name, values)
        else:
            apps.add_app(cx, values)
            _settle(cx, name, {"executable": "", **values})
    except BalsamError as exc:
        if number:
            raise type(exc)(f"App number {number}: {exc.message}", hint=exc.hint) from exc
        raise
    return select.apps(cx, {"name": name})[0]


def _settle(cx: Connection, name: str, values: Mapping[str, Any]) -> None:
    """Check an application after these values were set, and add the names of its template to its parameters."""
    if DECISIVE.isdisjoint(values):
        return
    (row,) = select.apps(cx, {"name": name})
    parameters = parameters_of(row, are_given="parameters" in values)
    if parameters != row["parameters"]:
        apps.update_app(cx, name, {"parameters": parameters})


def _rename(cx: Connection, before: str, name: str) -> None:
    """Rename the application unless that was done already, as when the same script runs again."""
    if select.count_apps(cx, {"name": before}):
        apps.update_app(cx, before, {"name": name})
    elif not select.count_apps(cx, {"name": name}):
        raise UnknownApp(f"There is no App {before!r} to be renamed to {name!r}.")


def update(db: Database, changes: Sequence[Mapping[str, Any]]) -> int:
    """Change applications, each identified by its `id`; a renamed one keeps its jobs. Return the number of changes.

    Raises:
        UnknownField, InvalidSpec, DuplicateApp, NotFound.
    """
    with db.write() as cx:
        for change in changes:
            found = select.apps(cx, {"id": change.get("id", [])})
            if not found:
                raise NotFound(f"There is no App with the id {change.get('id')!r} at this site (any more).")
            values = {name: value for name, value in change.items() if name != "id"}
            name = found[0]["name"]
            if values:
                apps.update_app(cx, name, values)
                _settle(cx, str(values.get("name", name)), values)
    return len(changes)


def update_where(db: Database, where: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    """Apply one change to all matching applications. Return their number. Raises the same errors as `update`."""
    with db.write() as cx:
        return update(db, [{**values, "id": row["id"]} for row in select.apps(cx, where)])


def delete(db: Database, where: Mapping[str, Any], force: bool = False, keep_jobs: bool = False, no_trash: bool = False) -> Row:
    """Remove the matching applications, with their jobs unless `keep_jobs` is set: such jobs fail when a launcher takes them.

    Returns {"deleted": how many, "jobs": how many jobs were removed with them, "held": how many of their jobs a launcher
    holds}; an application with such a job stays.

    Raises:
        UnknownField, InvalidSpec; ParentInUse: other jobs wait for one of these, and `force` is not set.
    """
    with db.write() as cx, actions.as_one(cx, actions.REMOVE_APPS) as action:
        found = select.apps(cx, where)
        is_kept = not no_trash and trash.has_room(db, sum(select.count_jobs(cx, {"app": row["name"]}) for row in found))
        stays = {"deleted": 0, "held": 0}
        gone = {
            row["id"]: stays if keep_jobs else jobs.delete(db, {"app": row["name"]}, force, no_trash=not is_kept)
            for row in found
        }
        free = [number for number, done in gone.items() if not done["held"]]
        if free:
            if is_kept:
                trash.keep_apps(cx, action, free)
            apps.delete_apps(cx, free)
            actions.count(cx, action, len(free))
    return {
        "is_kept": is_kept,
        "deleted": len(free),
        "jobs": sum(done["deleted"] for done in gone.values()),
        "held": sum(done["held"] for done in gone.values()),
    }
