"""`Site` and `Site.objects`: the Balsam DBs that this user knows; and `site_config`, the site of this process."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..core.errors import UnknownField
from ..db.engine import directories, registry
from ..db.engine.registry import SiteEntry
from . import site_handle
from .query import Manager, Query
from .records import AT_CREATION, SiteRecord, column, known, listed, naive
from .site_handle import handle_of

if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path

    from ..core.settings import Settings


def _path(value: str | None) -> Path | None:
    from pathlib import Path

    return None if value is None else Path(value)


class Site(SiteRecord):
    """A Balsam DB with a name and a number, on this host or on another one that ssh reaches."""

    __slots__ = ()

    name: str = column("name", None)
    path: Path = column("user_workdir", None, AT_CREATION, _path)
    host: str = known(default="")

    _KIND = "site"
    _REFUSED: ClassVar = {
        "update": (NotImplementedError, "Sites are changed one by one: site.name = …; site.save()"),
        "delete": (NotImplementedError, "Sites are deleted one by one: site.delete()"),
    }
    _REQUIRED = ("name", "path")
    _ORDERS = ("id", "name", "path")

    objects: ClassVar[SiteManager]

    @property  # type: ignore[misc]
    def id(self) -> int | None:  # type: ignore[override]
        """Return its number, which commands and `site_id` take; 0: a DB that is not registered; None: not saved yet."""
        return self._row.get("id")

    @property
    def is_active(self) -> bool:
        """Return whether a service runs there; False also if one on another host was silent for two minutes. Asks the site."""
        return bool(self._site.interface.about()["is_active"])

    @property
    def last_refresh(self) -> datetime | None:
        """Return the time of a service's last heartbeat there, in UTC; None: there never was any. Asks the site."""
        return naive(self._site.interface.about().get("last_refresh"))

    def save(self) -> None:
        """Register it, creating a DB in its directory if there is none; or store its new name.

        Raises:
            DuplicateSite, InvalidSpec, UnknownSite: no DB was made; InputError, DatabaseError: the DB cannot be created.
        """
        from ..core import import_guard

        import_guard.check_writable()
        if not self._is_saved:
            self._create()
        elif "name" in self._changes():
            self._adopt(registry.rename(self._row["id"], self._changed["name"]))

    def _create(self) -> None:
        from ..sites import lifecycle

        path, name = self._changed["path"], self._changed["name"]
        directory = directories.absolute(path)
        if path and not directories.is_db(directory):
            self._adopt(lifecycle.create(directory, name)[0])
        else:
            self._adopt(registry.add(directories.set_up(path).directory, name))

    def _adopt(self, entry: SiteEntry) -> None:
        self._fill(_row(entry), handle_of(entry))

    def refresh_from_db(self) -> None:
        """Read it again. Raises DoesNotExist: it is not known any more."""
        number = self._site.entry.number
        entry = next((entry for entry in _entries() if entry.number == number), None)
        if entry is None:
            raise Site.DoesNotExist(f"{self._title()} is not known any more.")
        self._adopt(entry)

    def delete(self) -> None:
        """Remove it from the registry: it cannot be found by name or number any more. Its directory stays, with all jobs."""
        registry.forget(self._site.entry.number)
        self._changed = {name: self._row[name] for name in ("name", "path")}
        self._row, self._handle = {}, None


def _row(entry: SiteEntry) -> dict[str, Any]:
    return {"id": entry.number, "name": entry.name, "path": entry.path, "host": entry.host}


def _entries() -> list[SiteEntry]:
    """Return the known sites, and the active DB if it is not one of them."""
    found = registry.known()
    here = site_handle.active()
    return found if here is None or here in found else [here, *found]


#: Fields by which sites can be filtered; the path matches in part.
_CONDITIONS = ("id", "name", "host", "path")


class SiteQuery(Query[Site]):
    """A query of sites; it reads only the registry."""

    def _read(self) -> list[Site]:
        found = [entry for entry in _entries() if self._matches(entry)]
        field = {"name": "name", "path": "path"}.get(self._order.lstrip("-"), "number")
        found.sort(key=attrgetter(field), reverse=self._order.startswith("-"))
        return [Site._of(_row(entry), handle_of(entry)) for entry in found[self._start : self._stop]]

    def _checked(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        for name in conditions:
            if name not in _CONDITIONS:
                raise UnknownField.named("site", name, _CONDITIONS)
        return dict(conditions)

    def _matches(self, entry: SiteEntry) -> bool:
        has = {"id": entry.number, "name": entry.name, "host": entry.host}
        where = {name: wanted for name, wanted in self._where.items() if wanted is not None}
        if str(where.pop("path", "")) not in entry.path:
            return False
        return all(has[name] in listed(wanted) for name, wanted in where.items())

    def _count(self) -> int:
        return len(self._fetch())


class SiteManager(Manager[Site]):
    """`Site.objects`."""

    def __init__(self) -> None:
        super().__init__(Site, SiteQuery)

    def get(self, name: str | None = None, **conditions: Any) -> Site:
        """Return the site with that name, or with these conditions. Raises DoesNotExist (the known sites are listed)."""
        try:
            return super().get(**conditions, **({} if name is None else {"name": name}))
        except Site.DoesNotExist as exc:
            exc.hint = f"Known are: {', '.join(entry.name for entry in _entries()) or 'none'}"
            raise


Site.objects = SiteManager()


# --- where this process is --------------------------------------------------------------------------------------------


class SiteConfig(NamedTuple):
    """The site of the active DB."""

    site_id: int
    name: str
    site_path: Path
    settings: Settings

    @property
    def data_path(self) -> Path:
        """Return the directory that contains the working directories of jobs."""
        return self.site_path / directories.DATA

    @property
    def log_path(self) -> Path:
        """Return the directory that contains the logs of launchers and the service."""
        return self.site_path / directories.LOG


def site_config() -> SiteConfig | None:
    """Return the site of the active DB; None if none is active.

    Raises:
        NotABalsamDB: BALSAM_DB_PATH names no DB. SettingsError.
    """
    from ..core.settings import Settings

    here = site_handle.active()
    path = _path(here.path) if here else None
    return None if here is None or path is None else SiteConfig(here.number, here.name, path, Settings.load(here.path))
