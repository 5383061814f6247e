"""The model of applications in the slides' interface."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ..core import command_line, field_specs
from ..core.errors import InputError, UnknownApp
from .engine.connection import Database
from .manager import QuerySet
from .query import queries, text_forms
from .record import NumberAttribute, Objects, StoredRecord, attributes
from .store import apps


class Application(StoredRecord):
    """An application: an executable under a name, with the scripts that belong to it."""

    _SPECS = field_specs.APP_FIELD
    _COLUMNS = queries.APP_COLUMNS
    _GIVEN = frozenset(field_specs.APP_FIELD)
    _QUERY_SET = QuerySet
    _what = "app"
    _SHOWN = ("id", "name", "description", "executable")
    DoesNotExist = UnknownApp
    MultipleObjectsReturned = InputError
    objects: ClassVar[QuerySet] = Objects()  # type: ignore[assignment]

    if TYPE_CHECKING:
        id: int | None
        name: str
        description: str
        executable: str
        preprocess: str
        envscript: str
        postprocess: str
        definition: dict[str, Any]
        command_template: str
        parameters: dict[str, Any]
        environ_vars: dict[str, str]
        handle_error: str
        handle_timeout: str
        exit_0_is_done_after_stop: bool
        keep_background: bool
    else:
        vars().update(id=NumberAttribute(), **attributes(field_specs.APP_FIELDS))

    def save(self) -> None:
        """Register a new application, or write the fields that were changed. One write transaction.

        Existing files of the current directory that command lines run are stored with their absolute paths. A command line that
        is probably wrong issues a CommandLineWarning.

        Raises:
            InvalidSpec, DuplicateApp; UnknownApp: it does not exist any more.
        """
        given = command_line.as_registered(self._changes())
        with self._db.write() as cx:
            if self.id is None:
                self._row = {**self._row, "id": apps.add_app(cx, given)}
            elif given:
                self._change_one(cx, self.id, given)
        self._database = self._db
        self._saved(given)

    @staticmethod
    def _change_one(cx: Any, number: int, fields: Mapping[str, Any]) -> None:
        found = queries.apps(cx, number=number)
        if not found:
            raise UnknownApp("The application is not in the DB any more.")
        apps.update_app(cx, found[0]["name"], fields)

    def delete(self) -> None:
        """Remove the application. Its jobs keep the name, and fail with the reason when they are run."""
        with self._db.write() as cx:
            apps.delete_apps(cx, [self._number()])

    @classmethod
    def _change(cls, database: Database, numbers: list[int], fields: Mapping[str, Any]) -> None:
        with database.write() as cx:
            for number in numbers:
                cls._change_one(cx, number, fields)

    @classmethod
    def _remove(cls, database: Database, numbers: list[int], force: bool) -> int:
        with database.write() as cx:
            return apps.delete_apps(cx, numbers) if numbers else 0

    @property
    def pk(self) -> int | None:
        """Return its number."""
        return self.id

    def _shown_row(self) -> dict[str, Any]:
        given = {**self._row, **self._changed}
        return {"id": self.id, **{field.name: given.get(field.name, "") for field in field_specs.APP_FIELDS}}

    def __repr__(self) -> str:
        return text_forms.app_form(self._shown_row())

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Application) and self.name == other.name)

    def __hash__(self) -> int:
        return hash(self.name)
