"""`App` and `App.objects`: what is stored of applications, be they command lines, templates or Python functions."""

from __future__ import annotations

from typing import Any, ClassVar

from ..core import command_line
from ..core.errors import DuplicateApp
from . import routing
from .query import Manager
from .records import SiteRecord, column, known, site_id, site_name


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
    _LEADING = frozenset({"command_template", "parameters", "executable"})  # these lead to the kind and to more parameters
    _REQUIRED = ("name",)
    _CONDITIONS = {"id": "ids", "name": "words", "site_id": "site", "site_name": "site", "site_path": "text"}
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
