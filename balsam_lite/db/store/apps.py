"""Writing applications. Each function runs inside the caller's write transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ...core import field_specs
from ...core.errors import DuplicateApp, InvalidSpec, NotFound, UnknownApp
from . import journal


def add_app(cx: sqlite3.Connection, values: Mapping[str, Any]) -> int:
    """Register an application given by its fields. Return its number.

    Raises:
        UnknownField, InvalidSpec; DuplicateApp: the name is taken.
    """
    stored = field_specs.check_app(values)
    if not stored.get("name"):
        raise InvalidSpec("app name must not be empty")
    try:
        cursor = cx.execute(
            f"INSERT INTO app ({', '.join(stored)}) VALUES ({', '.join('?' * len(stored))})", tuple(stored.values())
        )
    except sqlite3.IntegrityError as exc:
        raise DuplicateApp(
            f"An application named {stored['name']} already exists",
            hint="Choose another name, or change the one that exists: `balsam modify --type apps NAME executable …`",
        ) from exc
    assert cursor.lastrowid is not None
    journal.note_new_app(cx, cursor.lastrowid, stored["name"])
    return cursor.lastrowid


def update_app(cx: sqlite3.Connection, name: str, values: Mapping[str, Any]) -> None:
    """Change fields of the application with that name; launchers use the new values from the next job they start.

    A renamed application keeps its jobs; renaming reads every job.

    Raises:
        UnknownField, InvalidSpec, DuplicateApp; UnknownApp: there is none.
    """
    stored = field_specs.check_app(values)
    changes = ", ".join(f"{column} = ?" for column in stored)
    journal.note_app(cx, "name = ?", name)
    try:
        changed = cx.execute(f"UPDATE app SET {changes} WHERE name = ?", (*stored.values(), name)).rowcount
    except sqlite3.IntegrityError as exc:
        raise DuplicateApp(f"An application named {stored['name']} already exists") from exc
    if not changed:
        raise UnknownApp.named(name, (row[0] for row in cx.execute("SELECT name FROM app ORDER BY name")))
    if stored.get("name", name) != name:
        cx.execute("UPDATE job SET application = ? WHERE application = ?", (stored["name"], name))


class AppChange(NamedTuple):
    """An application to be added or changed together with jobs."""

    fields: Mapping[str, Any]
    is_new: bool


def carry_out(cx: sqlite3.Connection, changes: Iterable[AppChange]) -> None:
    """Add or change applications. Raises what `add_app` and `update_app` raise."""
    for fields, is_new in changes:
        if is_new:
            add_app(cx, fields)
        else:
            update_app(cx, fields["name"], fields)


def delete_apps(cx: sqlite3.Connection, ids: list[int]) -> int:
    """Remove applications. Their jobs keep the name, and fail with the reason when a launcher takes them."""
    for app in ids:
        journal.note_app(cx, "id = ?", app)
    removed = sum(cx.execute("DELETE FROM app WHERE id = ?", (app,)).rowcount for app in ids)
    if not removed:
        raise NotFound("No apps match")
    return removed


def restore_app(cx: sqlite3.Connection, number: int, name: str, before: Mapping[str, Any] | None) -> None:
    """Put back an application as its row was; None: remove it."""
    if before is None:
        cx.execute("DELETE FROM app WHERE id = ? AND name = ?", (number, name))
        return
    now = cx.execute("SELECT name FROM app WHERE id = ?", (number,)).fetchone()
    if now is not None and now[0] != before["name"]:
        update_app(cx, now[0], {"name": before["name"]})
    marks = ", ".join("?" * len(before))
    cx.execute(f"INSERT OR REPLACE INTO app ({', '.join(before)}) VALUES ({marks})", tuple(before.values()))
