"""Find the sites that a query refers to, and the conditions for each of them.

Ids, `site_id` and `site_name` specify them. Without these it is the active DB (that of `db.models.use`, BALSAM_DB_PATH or the
current directory), and if there is none all sites that the user knows. Opens no transaction itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from ..core.errors import BalsamError, NoDatabase, UnknownSite
from ..db.engine import registry
from ..db.engine.registry import SiteEntry
from ..sites import fanout, selector
from ..sites.interface import SiteInterface

T = TypeVar("T")


class Id(int):
    """The number of a job, an application or a batch job at `site`.

    It equals the plain number, and has the same hash; it does not equal an Id of another site. So it can be used in JSON, file
    names and arithmetic like any number, and a plain number refers to a row of any queried site.
    """

    __slots__ = ()
    site: SiteEntry  # an attribute of the class from `maker`, not of each number, since there may be a million of them

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Id) and not is_same_site(self.site, other.site):
            return False
        return int.__eq__(self, other) if isinstance(other, int) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __reduce__(self) -> Any:
        return _restored, (int(self), tuple(self.site))


def is_same_site(one: SiteEntry, other: SiteEntry) -> bool:
    """Return whether both are the same DB, regardless of their current names."""
    return one.path == other.path and one.host == other.host


@lru_cache(maxsize=1024)
def maker(entry: SiteEntry) -> type[Id]:
    """Return the class of a site's Ids: `maker(entry)(7)`."""
    return type("Id", (Id,), {"__slots__": (), "site": entry, "__module__": __name__, "__qualname__": "Id"})


def _restored(number: int, site: tuple[Any, ...]) -> Id:
    """Return an Id from its pickle."""
    return maker(SiteEntry(*site))(number)


class SiteHandle:
    """A site as seen by its objects; there is one for each path, so that objects keep their site when it is renamed."""

    __slots__ = ("_interface", "entry", "id")

    def __init__(self, entry: SiteEntry) -> None:
        self.know(entry)

    def know(self, entry: SiteEntry) -> None:
        """Take over the registry's current entry of the site."""
        self.entry = entry
        self.id = maker(entry)
        self._interface: SiteInterface | None = None

    @property
    def interface(self) -> SiteInterface:
        """Return the site's interface; it is kept, with its connections."""
        if self._interface is None:
            self._interface = fanout.open_site(self.entry)
        return self._interface


_handles: dict[tuple[str, str], SiteHandle] = {}  # by host and path


def handle_of(entry: SiteEntry) -> SiteHandle:
    """Return the one SiteHandle of a site, whose current entry in the registry is `entry`."""
    found = handle_at(entry)
    if found.entry != entry:
        found.know(entry)
    return found


def handle_at(entry: SiteEntry) -> SiteHandle:
    """Return the SiteHandle for an entry that may be outdated: that of an Id, or of a pickle."""
    place = entry.host, entry.path
    return _handles.get(place) or _handles.setdefault(place, SiteHandle(entry))


# --- sites ------------------------------------------------------------------------------------------------------------


def active() -> SiteEntry | None:
    """Return the active DB's site, None if there is none. Raises NotABalsamDB: one is named, but is not a Balsam DB."""
    manager = sys.modules.get("balsam_lite.db.manager")  # importing it would import peewee; without it `use` was not called
    chosen = manager.chosen_directory() if manager else None
    if chosen:
        return registry.at(chosen)
    try:
        return selector.choose_one()
    except NoDatabase:
        return None


def default() -> list[SiteEntry]:
    """Return the active DB's site, else all known ones. Raises NoDatabase: there is none at all."""
    here = active()
    return selector.choose() if here is None else [here]


def named(site: Any) -> SiteEntry:
    """Return the site with that number or name, or of that api.Site. A site outside of the registry can be named if active.

    Raises:
        UnknownSite.
    """
    if isinstance(site, SiteEntry):
        return handle_at(site).entry
    word = str(getattr(site, "name", site))
    try:
        return registry.named(word)
    except UnknownSite:
        here = active()
        if here is not None and word in (here.name, str(here.number)):
            return here
        raise


# --- questions --------------------------------------------------------------------------------------------------------


class Question(NamedTuple):
    """The conditions for one site."""

    handle: SiteHandle
    where: dict[str, Any]


def questions(where: Mapping[str, Any]) -> list[Question]:
    """Return the conditions for each site that can have matching rows, by number of the site.

    Args:
        where: conditions, including `site_id`, `site_name` (one or a list) and `site_path` (a part of it). An Id in them
            is a row of its site only, a plain number a row of any site.

    Raises:
        UnknownSite: there is no site of that name or number. NoDatabase: no site is named, active or known.
    """
    rest = {key: value for key, value in where.items() if key not in SITE_KEYS}
    ids = [
        key for key, value in rest.items() if not key.endswith("__ne") and any(isinstance(one, Id) for one in _listed(value))
    ]
    found = []
    for entry in _entries(where, [_listed(rest[key]) for key in ids]):
        own = _at(entry, rest)
        if all(own[key] != [] for key in ids):
            found.append(Question(handle_of(entry), own))
    return found


SITE_KEYS = ("site_id", "site_name", "site_path")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _at(entry: SiteEntry, value: Any) -> Any:
    """Return conditions with plain numbers instead of that site's Ids, and without Ids of other sites."""
    if isinstance(value, Mapping):
        return {key: _at(entry, one) for key, one in value.items()}
    if isinstance(value, list):
        return [_at(entry, one) for one in value if not isinstance(one, Id) or _is_there(one, entry)]
    if not isinstance(value, Id):
        return value
    return int(value) if _is_there(value, entry) else []


def _is_there(one: Id, entry: SiteEntry) -> bool:
    return type(one) is maker(entry) or is_same_site(one.site, entry)


def _entries(where: Mapping[str, Any], numbers: Iterable[list[Any]]) -> list[SiteEntry]:
    """Return the sites that are given by name, else those of the Ids, else the default ones."""
    chosen: list[SiteEntry] | None = None
    for key in ("site_id", "site_name"):
        if where.get(key) is not None:
            meant = [named(site) for site in _listed(where[key])]
            chosen = meant if chosen is None else [entry for entry in chosen if entry in meant]
    if where.get("site_path") is not None:
        among = registry.known() if chosen is None else chosen
        chosen = [entry for entry in among if str(where["site_path"]) in entry.path]
    if chosen is None:
        of_ids = [_sites_of(given) for given in numbers]
        chosen = next((sites for sites in of_ids if sites), None)
    return list(dict.fromkeys(default() if chosen is None else chosen))


def _sites_of(given: list[Any]) -> list[SiteEntry]:
    """Return the sites of Ids; [] if plain numbers are among them, which can be of any site."""
    kinds = {type(one) for one in given}
    if not all(issubclass(kind, Id) for kind in kinds):
        return []
    return sorted({handle_at(kind.site).entry for kind in kinds})


# --- asking -----------------------------------------------------------------------------------------------------------


def ask(asked: list[Question], question: Callable[[SiteInterface, dict[str, Any]], T]) -> list[tuple[SiteHandle, T]]:
    """Return the answer of each site; warn (`sites.fanout.SiteWarning`) of one that cannot be read, if another can be.

    Raises:
        BalsamError: none answers. If only one site is asked, its error is raised.
    """
    if len(asked) == 1:
        handle, where = asked[0]
        return [(handle, question(handle.interface, where))]
    wanted = {handle.entry: where for handle, where in asked}
    answers = fanout.query_all(wanted, lambda site: question(site, wanted[site.entry]))
    if answers.failed and not answers.found:
        raise answers.failed[0][1]
    for entry, exc in answers.failed:
        fanout.warn_of(entry, exc)
    return [(handle_of(entry), answer) for entry, answer in answers.found]


def write(asked: list[Question], kind: str, change: Callable[[SiteInterface, dict[str, Any]], T]) -> list[T]:
    """Change the matching rows, site after site; none is changed unless all can be read.

    Raises:
        BalsamError: a site cannot be read, or refuses; then the message names the sites that were changed before.
    """
    if len(asked) > 1:
        wanted = {handle.entry: where for handle, where in asked}
        counts = fanout.query_all(wanted, lambda site: site.count(kind, wanted[site.entry]))
        for entry, exc in counts.failed:
            exc.message = f"Nothing was changed: {fanout.failure(entry, exc)}"
            raise exc
        found = {entry for entry, number in counts.found if number}
        asked = [one for one in asked if one.handle.entry in found]
    done: list[T] = []
    for handle, where in asked:
        try:
            done.append(change(handle.interface, where))
        except BalsamError as exc:
            if done:
                before = ", ".join(one.handle.entry.name for one in asked[: len(done)])
                exc.message += f"\nIt is done at {before}, and not at {handle.entry.name}."
            raise
    return done
