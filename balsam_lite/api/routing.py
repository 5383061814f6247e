"""Find the site of new objects, and the form in which that site is told to create them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..core.errors import BalsamError, InputError, InvalidSpec, NotFound, UnknownApp
from ..db.engine import registry
from ..sites import fanout, selector
from . import site_handle
from .site_handle import Id, Question, SiteHandle, handle_at, handle_of, is_same_site

_SITE = ("site_id", "site_name")


def site_of(given: Mapping[str, Any]) -> SiteHandle | None:
    """Return the site that `site_id` or `site_name` names; None if neither is given.

    Raises:
        UnknownSite. InvalidSpec: they refer to two sites.
    """
    named = [site_handle.named(given[key]) for key in _SITE if given.get(key) is not None]
    if len(named) == 2 and named[0] != named[1]:
        raise InvalidSpec(f"site_id={given['site_id']} and site_name={given['site_name']!r} are two different sites.")
    return handle_of(named[0]) if named else None


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
        UnknownSite, UnknownApp. InvalidSpec: several sites could be meant, or parents are at another site.
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
        row["parent_ids"] = [_number_at(handle, one) for one in parents]
    return handle, row


def _look_up(given: Mapping[str, Any], app: Any, near: Any) -> tuple[SiteHandle, dict[str, Any]]:
    handle = site_of(given)
    if isinstance(app, type):  # an ApplicationDefinition
        own = handle_of(site_handle.named(app.site))  # type: ignore[attr-defined]
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
    here = site_handle.active()
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
    return site_handle.ask(asked, lambda site, where: site.count("app", where)) if asked else []


class JobsOfSite(NamedTuple):
    """The jobs to create at one site."""

    rows: list[dict[str, Any]]
    places: list[int]  # the position of each in the user's list, from 0


def create_jobs(jobs: dict[SiteHandle, JobsOfSite]) -> Iterator[tuple[SiteHandle, list[int], list[dict[str, Any]]]]:
    """Create jobs at each site in turn; at each site all or none. Yield the positions of the created jobs, and the rows.

    With several sites, all must accept all of their jobs before the first one is written to. `jobs` is emptied on the way,
    so that the sent jobs do not take memory in addition to the created rows.

    Raises:
        BalsamError: with the number of the job in the user's list. If a site refuses after others were written to, the
        message gives the number of jobs that were created there.
    """
    are_several = len(jobs) > 1
    if are_several:
        _check_jobs(jobs)
    made: list[str] = []
    while jobs:
        handle = next(iter(jobs))
        rows, places = jobs.pop(handle)
        try:
            created = handle.interface.create("job", rows)
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
        here = site_handle.active()
        handle = handle_of(selector.choose_one() if here is None else here)
    return handle
