"""To which site new objects go, and what that site is told to create."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..core.errors import BalsamError, InputError, InvalidSpec, NotFound, UnknownApp
from ..db.engine import registry
from ..sites import fanout, selector
from . import site_handle
from .ids import Id, is_same_site
from .site_handle import Home, Question, home_at, home_of

_SITE = ("site_id", "site_name")


def site_of(given: Mapping[str, Any]) -> Home | None:
    """The site that `site_id` or `site_name` says; None if neither does.

    Raises:
        UnknownSite. InvalidSpec: they mean two sites.
    """
    named = [site_handle.named(given[key]) for key in _SITE if given.get(key) is not None]
    if len(named) == 2 and named[0] != named[1]:
        raise InvalidSpec(f"site_id={given['site_id']} and site_name={given['site_name']!r} are two different sites.")
    return home_of(named[0]) if named else None


def without_site(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the site itself is told."""
    return {name: value for name, value in given.items() if name not in _SITE}


class Placer:
    """Finds the sites of new jobs; each combination of names is looked up once, so one serves for many jobs.

    The site is the one that `site_name`, `site_id` or the class of the application says, or that of an Id (of the application
    or a parent). Else it is the one with that application: the active DB, or the only one of the known sites.
    """

    def __init__(self) -> None:
        self._found: dict[Any, tuple[Home, dict[str, Any]]] = {}

    def place(self, given: Mapping[str, Any]) -> tuple[Home, dict[str, Any]]:
        """The site of a job with these fields, and the row to create there.

        Raises:
            UnknownSite, UnknownApp. InvalidSpec: several sites could be meant, or parents are at another site.
        """
        app, parents = given["app_id"], given.get("parent_ids") or ()
        near = next((one.site for one in parents if isinstance(one, Id)), None)
        key = (given.get("site_id"), given.get("site_name"), type(app), app, near)
        if key not in self._found:
            self._found[key] = self._look_up(given, app, near)
        home, app_row = self._found[key]
        row = {name: value for name, value in given.items() if name not in _JOB_ONLY}
        row.update(app_row)
        if parents:
            row["parent_ids"] = [_number_at(home, one) for one in parents]
        return home, row

    def _look_up(self, given: Mapping[str, Any], app: Any, near: Any) -> tuple[Home, dict[str, Any]]:
        home = site_of(given)
        if isinstance(app, type):  # an ApplicationDefinition
            own = home_of(site_handle.named(app.site))  # type: ignore[attr-defined]
            if home not in (None, own):
                raise InvalidSpec(f"The application {app.__name__} belongs to the site {own.entry.name}.")
            return own, {"app": app.__name__}
        if home is None and isinstance(app, Id):
            home = home_at(app.site)
        if home is None and near is not None:
            home = home_at(near)
        if isinstance(app, str):
            return home or _home_with({"name": app}, f"{app!r}"), {"app": app}
        home = home or _home_with({"id": app}, f"number {app}")
        return home, {"app_id": _number_at(home, app)}


_JOB_ONLY = (*_SITE, "app_id", "parent_ids")


def _number_at(home: Home, number: int) -> int:
    if isinstance(number, Id) and not is_same_site(number.site, home.entry):
        raise InvalidSpec(f"{int(number)} is a number of the site {number.site.name}, and the job is for {home.entry.name}.")
    return int(number)


def _home_with(where: dict[str, Any], title: str) -> Home:
    """The active DB if it has such an application, else the only known site that has."""
    here = site_handle.active()
    if here is not None and home_of(here).desk.count("app", where):
        return home_of(here)
    others = [entry for entry in registry.known() if entry != here]
    found = [home for home, number in _counts(others, where) if number]
    if len(found) == 1:
        return found[0]
    asked = ", ".join(entry.name for entry in ([here] if here else []) + others) or "none"
    if not found:
        raise UnknownApp(f"No site has an application {title}.", hint=f"Asked were: {asked}")
    names = ", ".join(home.entry.name for home in found)
    raise InvalidSpec(f"Several sites have an application {title}: {names}", hint="Say which one with site_name.")


def _counts(entries: Iterable[Any], where: dict[str, Any]) -> list[tuple[Home, int]]:
    asked = [Question(home_of(entry), where) for entry in entries]
    return site_handle.ask(asked, lambda desk, where: desk.count("app", where)) if asked else []


class JobsOfSite(NamedTuple):
    """Jobs for one site of those that a user wants to create."""

    rows: list[dict[str, Any]]
    places: list[int]  # of each in the user's list, from 0


def create_jobs(jobs: dict[Home, JobsOfSite]) -> Iterator[tuple[Home, list[int], list[dict[str, Any]]]]:
    """Create them at each site, site after site; at each all or none. Tells the places of what was created, and the rows.

    Where there are several sites, all must find all of their jobs good before the first one is written to. `jobs` is used up,
    so that what was sent does not take memory beside what comes back.

    Raises:
        BalsamError: with the number of the job in the user's list. If a site refuses after others were written to, the
        message says how many jobs were created there.
    """
    are_several = len(jobs) > 1
    if are_several:
        _check_jobs(jobs)
    made: list[str] = []
    while jobs:
        home = next(iter(jobs))
        rows, places = jobs.pop(home)
        try:
            created = home.desk.create("job", rows)
        except BalsamError as exc:
            if are_several:
                _say_which(exc, home, places)
                exc.message += f"\nCreated were: {', '.join(made)}" if made else ""
            raise
        del rows
        made.append(f"{len(created)} at {home.entry.name}")
        yield home, places, created


def _check_jobs(jobs: Mapping[Home, JobsOfSite]) -> None:
    """Let all sites check their jobs."""
    homes = {home.entry: home for home in jobs}
    answers = fanout.ask(homes, lambda desk: desk.check_jobs(jobs[homes[desk.entry]].rows))
    for entry, exc in answers.failed:
        home = homes[entry]
        _say_which(exc, home, jobs[home].places)
        exc.message += "\nNothing was created."
        raise exc


_NUMBERED = re.compile(r"Job number (\d+): ")


def _say_which(exc: BalsamError, home: Home, places: list[int]) -> None:
    """Let an error of a site tell the number of its job in the user's list, instead of that among the site's, and the site."""
    found = _NUMBERED.match(exc.message)
    text = exc.message[found.end() :] if found else exc.message
    row = int(found[1]) if found else 1 if len(places) == 1 and isinstance(exc, (InputError, NotFound)) else 0
    job = f"Job number {places[row - 1] + 1}: " if row else ""
    exc.message = f"{job}At the site {home.entry.name}: {text}"


def one_site(given: Mapping[str, Any]) -> Home:
    """The site that is named, else the active DB's.

    Raises:
        UnknownSite, InvalidSpec; NoDatabase: there is no active DB.
    """
    home = site_of(given)
    if home is None:
        here = site_handle.active()
        home = home_of(selector.choose_one() if here is None else here)
    return home
