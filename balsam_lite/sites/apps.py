"""Registering, changing and removing the applications of a site in the workshop's words: for `local.LocalSite`.

Functions with a `db` open their own write transaction, and write everything or nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import BalsamError, InvalidSpec, NotFound, UnknownApp
from ..db.engine.connection import Connection, Database
from ..db.query import select
from ..db.store import apps
from . import app_rows, jobs
from .interface import Row


def create(db: Database, rows: Sequence[Row]) -> list[Row]:
    """Register applications; one that exists under that name is changed. Returns them as they are then, in order.

    Names that a command template has and `parameters` has not are required parameters. With `rename_from` the application
    of that name, if there is one, gets the new name; its number and its jobs stay.

    Raises:
        UnknownField, InvalidSpec (it could not run), DuplicateApp: with the number of the row if there are several.
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
    """Check an application to which these values were just given, and add to its parameters what its template has."""
    if app_rows.DECISIVE.isdisjoint(values):
        return
    (row,) = select.apps(cx, {"name": name})
    parameters = app_rows.parameters_of(row, are_given="parameters" in values)
    if parameters != row["parameters"]:
        apps.update_app(cx, name, {"parameters": parameters})


def _rename(cx: Connection, before: str, name: str) -> None:
    """Rename it unless that was done already, as when a script that does so runs once more."""
    if select.count_apps(cx, {"name": before}):
        apps.update_app(cx, before, {"name": name})
    elif not select.count_apps(cx, {"name": name}):
        raise UnknownApp(f"There is no App {before!r} to be renamed to {name!r}.")


def update(db: Database, changes: Sequence[Mapping[str, Any]]) -> int:
    """Change applications, each by its `id`; under a new name it keeps its jobs. Returns how many there were.

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
    """The same change for all that match. Returns how many. Raises as `update`."""
    with db.write() as cx:
        return update(db, [{**values, "id": row["id"]} for row in select.apps(cx, where)])


def delete(db: Database, where: Mapping[str, Any], force: bool = False, keep_jobs: bool = False) -> Row:
    """Remove the applications that match, with their jobs unless `keep_jobs` is set: those fail when a launcher takes them.

    {"deleted": how many, "jobs": how many jobs went with them, "held": how many of their jobs a launcher holds}; an
    application with such a job stays.

    Raises:
        UnknownField, InvalidSpec; ParentInUse: other jobs wait for one of these, and `force` is not set.
    """
    with db.write() as cx:
        found = select.apps(cx, where)
        stays = {"deleted": 0, "held": 0}
        gone = {row["id"]: stays if keep_jobs else jobs.delete(db, {"app": row["name"]}, force) for row in found}
        free = [number for number, done in gone.items() if not done["held"]]
        if free:
            apps.delete_apps(cx, free)
    return {
        "deleted": len(free),
        "jobs": sum(done["deleted"] for done in gone.values()),
        "held": sum(done["held"] for done in gone.values()),
    }
