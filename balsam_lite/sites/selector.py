"""Select sites: parse the value of `--site`, and arguments that name one site.

Functions here raise only BalsamError and open no transaction, except that `active` queries the sites themselves.
"""

from __future__ import annotations

import os

from ..core.errors import AmbiguousSite, NoDatabase, UnknownSite
from ..db.engine import directories, registry
from ..db.engine.registry import SiteEntry

_ALL, _ACTIVE, _THIS = "all", "active", "this"


def choose(text: str = "", db: str | None = None) -> list[SiteEntry]:
    """Return the sites that `--site TEXT` selects, ordered by number and without duplicates.

    Separate several with commas. Each is `all`, `active` (a service runs there), `this` (the active DB), a number, a name, the
    directory of a DB, or else a part of a name or directory, which selects every site that contains it. "" selects the active
    DB (`db` if given), or all known sites if no DB is active.

    Raises:
        UnknownSite: a part selects nothing. AmbiguousSite: two sites have that name. NoDatabase, NotABalsamDB: `this` or
        "" is given, and there is no such DB. BalsamError: the registry cannot be read.
    """
    if not text.strip():
        return _default(db)
    if "," in text and directories.is_db(_absolute(text)):  # a directory's name may contain a comma
        return [registry.at(text)]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UnknownSite(f"There is no site {text!r}.", hint=registry.hint())
    found = {(entry.host, entry.path): entry for part in parts for entry in _meant(part, db)}
    return sorted(found.values())


def choose_one(text: str = "", db: str | None = None) -> SiteEntry:
    """Return the one site that `--site TEXT` selects, for operations on a single site.

    Raises:
        UnknownSite, NoDatabase: no site matches. AmbiguousSite: more than one matches. Otherwise as `choose`.
    """
    if not text.strip():
        return _this(db, "No site is named, and this is outside of any.")
    return _only(choose(text, db), text)


def find(word: str) -> SiteEntry:
    """Return the one site that an argument names: a directory, a name, a number or an address.

    A part of a name is not accepted, because the site may be removed.

    Raises:
        UnknownSite, AmbiguousSite. BalsamError: the registry cannot be read.
    """
    return _only(_exactly(word), word)


def _default(db: str | None) -> list[SiteEntry]:
    try:
        return [registry.at(directories.find(db))]
    except NoDatabase:
        everything = registry.known(gone=True)
        if not everything:
            raise
        return everything


def _this(db: str | None, otherwise: str) -> SiteEntry:
    try:
        return registry.at(directories.find(db))
    except NoDatabase as exc:
        advice = "Go to a site's directory, or set BALSAM_SITE_PATH, or name a site with --site."
        raise NoDatabase(otherwise, hint=f"{advice}\n{registry.hint()}") from exc


def _meant(part: str, db: str | None) -> list[SiteEntry]:
    """Return the sites that one part of `--site` selects, at least one."""
    if part == _ACTIVE:
        return _active()
    if part == _THIS:
        return [_this(db, "Cannot use --site=this outside of a site.")]
    found = registry.known(gone=True) if part == _ALL else _named(part)
    if not found:
        raise UnknownSite(f"No site matches --site {part}", hint=registry.hint())
    return found


def _named(word: str) -> list[SiteEntry]:
    """Return the sites with that number, name or directory, or else those with `word` in the name or the address."""
    found = _exactly(word)
    if found or word.isdecimal():
        return found
    return [entry for entry in registry.known(gone=True) if word in entry.name or word in entry.address]


def _exactly(word: str) -> list[SiteEntry]:
    found = registry.matching(word)
    if found:
        return [found]
    directory = _absolute(word)
    if directories.is_db(directory):
        return [registry.at(directory)]
    return [entry for entry in registry.known(gone=True) if not entry.is_remote and entry.path == directory]


def _absolute(word: str) -> str:
    return os.path.abspath(os.path.expanduser(word))


def _only(found: list[SiteEntry], word: str) -> SiteEntry:
    if not found:
        raise UnknownSite(f"There is no site {word!r}.", hint=registry.hint())
    if len(found) > 1:
        raise AmbiguousSite(f"More than one site is meant by {word!r}:", hint=registry.choices(found))
    return found[0]


def _active() -> list[SiteEntry]:
    """Return the sites whose service had a heartbeat in the last two minutes; warn of each site that does not answer."""
    from . import fanout

    answers = fanout.query_all(
        registry.known(gone=True), lambda site: bool(site.about()["is_active"]), patience_s=fanout.PROBE_TIMEOUT_S
    )
    for entry, exc in answers.failed:
        fanout.warn_of(entry, exc)
    found = [entry for entry, is_active in answers.found if is_active]
    if not found:
        raise UnknownSite(
            "No site is active: nowhere did a service run in the last two minutes.",
            hint=registry.hint(),
        )
    return found
