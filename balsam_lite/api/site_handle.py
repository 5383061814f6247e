"""Find the sites that a query refers to, and the conditions for each of them; and the site of a new object.

Ids, `site_id` and `site_name` specify them. Without these it is the active DB (that of `db.models.use`, BALSAM_DB_PATH or the
current directory), and if there is none all sites that the user knows. Opens no transaction itself.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from ..core.errors import BalsamError, InputError, InvalidSpec, NoDatabase, NotFound, UnknownApp, UnknownSite
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


# --- sites of new objects --------------------------------------------------------------------------------------------

_SITE = ("site_id", "site_name")


def site_of(given: Mapping[str, Any]) -> SiteHandle | None:
    """Return the site that `site_id` or `site_name` names; None if neither is given.

    Raises:
        UnknownSite. InvalidSpec: they refer to two sites.
    """
    sites = [named(given[key]) for key in _SITE if given.get(key) is not None]
    if len(sites) == 2 and sites[0] != sites[1]:
        raise InvalidSpec(f"site_id={given['site_id']} and site_name={given['site_name']!r} are two different sites.")
    return handle_of(sites[0]) if sites else None


def without_site(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are sent to the site itself."""
    return {name: value for name, value in given.items() if name not in _SITE}


#: The site of a job, and the application in the form for that site.
Resolved = tuple[SiteHandle, dict[str, Any]]


def resolve_site(given: Mapping[str, Any], known: dict[Any, Resolved]) -> Resolved:
    """Return the site of a new job with these fields, and the row to create there.

    The site is the one given by `site_name`, `site_id` or the class of the application, or that of an Id (of the application
    or a parent). Else it is the one with that application: the active DB, or the only one of the known sites.

    Args:
        known: earlier results; each combination of names is looked up once, so pass the same dict for many jobs.

    Raises:
        UnknownSite, UnknownApp. InvalidSpec: several sites could be meant.
    """
    app, parents = given["app_id"], given.get("parent_ids") or ()
    near = next((one.site for one in parents if isinstance(one, Id)), None)
    key = (given.get("site_id"), given.get("site_name"), type(app), app, near)
    if key not in known:
        known[key] = _look_up(given, app, near)
    handle, app_row = known[key]
    row = {name: value for name, value in given.items() if name not in _JOB_ONLY}
    row.update(app_row)
    if parents:
        row["parent_ids"] = [one if _is_of_other(one, handle) else int(one) for one in parents]
    return handle, row


def _is_of_other(number: int, handle: SiteHandle) -> bool:
    return isinstance(number, Id) and not is_same_site(number.site, handle.entry)


def name_remote_parents(handle: SiteHandle, rows: Iterable[dict[str, Any]]) -> None:
    """Replace the Ids of jobs of other sites among `parent_ids` by the numbers that the site itself has for these jobs.

    Raises:
        UnknownJob: one does not exist. BalsamError: its site does not answer.
    """
    concerned = [row for row in rows if any(isinstance(one, Id) for one in row.get("parent_ids", ()))]
    wanted: dict[SiteHandle, set[int]] = {}
    for one in (one for row in concerned for one in row["parent_ids"] if isinstance(one, Id)):
        wanted.setdefault(handle_at(one.site), set()).add(int(one))
    if not wanted:
        return
    from ..sites import remote_parents

    known: dict[tuple[SiteHandle, int], int] = {}
    for there, numbers in wanted.items():
        ordered = sorted(numbers)
        found = remote_parents.numbers_for(handle.interface, there.interface, ordered)
        known.update(((there, number), own) for number, own in zip(ordered, found))
    for row in concerned:
        row["parent_ids"] = [known[handle_at(one.site), int(one)] if isinstance(one, Id) else one for one in row["parent_ids"]]


def id_of_remote(parent: Mapping[str, Any]) -> Id:
    """Return the Id of one of a row's `remote_parents`."""
    address = parent["address"]
    entry = (registry.matching(address) if address else None) or registry.matching(parent["site"])
    if entry is None:
        host, slash, path = address.removeprefix("ssh://").partition("/") if address.startswith("ssh://") else ("", "", address)
        entry = SiteEntry(0, parent["site"], slash + path, host)
    return handle_at(entry).id(parent["id"])


def _look_up(given: Mapping[str, Any], app: Any, near: Any) -> tuple[SiteHandle, dict[str, Any]]:
    handle = site_of(given)
    if isinstance(app, type):  # an ApplicationDefinition
        own = handle_of(named(app.site))  # type: ignore[attr-defined]
        if handle not in (None, own):
            raise InvalidSpec(f"The application {app.__name__} belongs to the site {own.entry.name}.")
        return own, {"app": app.__name__}
    if handle is None and isinstance(app, Id):
        handle = handle_at(app.site)
    if handle is None and near is not None:
        handle = handle_at(near)
    if isinstance(app, str):
        return handle or _handle_with({"name": app}, f"{app!r}"), {"app": app}
    handle = handle or _handle_with({"id": app}, f"number {app}")
    return handle, {"app_id": _number_at(handle, app)}


_JOB_ONLY = (*_SITE, "app_id", "parent_ids")


def _number_at(handle: SiteHandle, number: int) -> int:
    if isinstance(number, Id) and not is_same_site(number.site, handle.entry):
        raise InvalidSpec(f"{int(number)} is a number of the site {number.site.name}, and the job is for {handle.entry.name}.")
    return int(number)


def _handle_with(where: dict[str, Any], title: str) -> SiteHandle:
    """Return the active DB if it has such an application, else the only known site that has one."""
    here = active()
    if here is not None and handle_of(here).interface.count("app", where):
        return handle_of(here)
    others = [entry for entry in registry.known() if entry != here]
    found = [handle for handle, number in _counts(others, where) if number]
    if len(found) == 1:
        return found[0]
    asked = ", ".join(entry.name for entry in ([here] if here else []) + others) or "none"
    if not found:
        raise UnknownApp(f"No site has an application {title}.", hint=f"Asked were: {asked}")
    names = ", ".join(handle.entry.name for handle in found)
    raise InvalidSpec(f"Several sites have an application {title}: {names}", hint="Choose one with site_name.")


def _counts(entries: Iterable[Any], where: dict[str, Any]) -> list[tuple[SiteHandle, int]]:
    asked = [Question(handle_of(entry), where) for entry in entries]
    return ask(asked, lambda site, where: site.count("app", where)) if asked else []


class JobsOfSite(NamedTuple):
    """The jobs to create at one site."""

    rows: list[dict[str, Any]]
    places: list[int]  # the position of each in the user's list, from 0


def create_jobs(
    jobs: dict[SiteHandle, JobsOfSite], on_duplicate: str
) -> Iterator[tuple[SiteHandle, list[int], list[dict[str, Any]]]]:
    """Create jobs at each site in turn; at each site all or none. Yield the positions of the created jobs, and the rows.

    With several sites, all must accept all of their jobs before the first one is written to. `jobs` is emptied on the way,
    so that the sent jobs do not take memory in addition to the created rows.

    Raises:
        BalsamError: with the number of the job in the user's list. If a site refuses after others were written to, the
        message gives the number of jobs that were created there.
    """
    are_several = len(jobs) > 1
    for handle, of_site in jobs.items():
        name_remote_parents(handle, of_site.rows)
    if are_several:
        _check_jobs(jobs)
    made: list[str] = []
    while jobs:
        handle = next(iter(jobs))
        rows, places = jobs.pop(handle)
        try:
            created = handle.interface.create("job", rows, on_duplicate)
        except BalsamError as exc:
            if are_several:
                _say_which(exc, handle, places)
                exc.message += f"\nCreated were: {', '.join(made)}" if made else ""
            raise
        del rows
        made.append(f"{len(created)} at {handle.entry.name}")
        yield handle, places, created


def _check_jobs(jobs: Mapping[SiteHandle, JobsOfSite]) -> None:
    """Let all sites check their jobs."""
    handles = {handle.entry: handle for handle in jobs}
    answers = fanout.query_all(handles, lambda site: site.check_jobs(jobs[handles[site.entry]].rows))
    for entry, exc in answers.failed:
        handle = handles[entry]
        _say_which(exc, handle, jobs[handle].places)
        exc.message += "\nNothing was created."
        raise exc


_NUMBERED = re.compile(r"Job number (\d+): ")


def _say_which(exc: BalsamError, handle: SiteHandle, places: list[int]) -> None:
    """Add the number of the job in the user's list, and the site, to an error of a site."""
    found = _NUMBERED.match(exc.message)
    text = exc.message[found.end() :] if found else exc.message
    row = int(found[1]) if found else 1 if len(places) == 1 and isinstance(exc, (InputError, NotFound)) else 0
    job = f"Job number {places[row - 1] + 1}: " if row else ""
    exc.message = f"{job}At the site {handle.entry.name}: {text}"


def one_site(given: Mapping[str, Any]) -> SiteHandle:
    """Return the named site, else the active DB's.

    Raises:
        UnknownSite, InvalidSpec; NoDatabase: there is no active DB.
    """
    handle = site_of(given)
    if handle is None:
        here = active()
        handle = handle_of(selector.choose_one() if here is None else here)
    return handle
