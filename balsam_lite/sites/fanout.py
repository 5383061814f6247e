"""Query several sites at once: those of this host in turn, and meanwhile those reached through ssh in a thread each."""

from __future__ import annotations

import queue
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from ..core.errors import BalsamError, NotABalsamDB, SiteUnreachable
from ..core.settings import Settings, SettingsWarning
from ..db.engine import directories, registry
from ..db.engine.registry import SiteEntry
from .interface import SiteInterface

T = TypeVar("T")

#: Seconds to wait for remote sites when all sites are probed: with the start of a command it stays below five.
PROBE_TIMEOUT_S = 4.0
#: Minimum seconds for a local site to get a lock, even if others have used up the time for all.
_MIN_LOCK_TIMEOUT_S = 0.5
#: Seconds to wait for a thread beyond the time limit of its site.
_THREAD_SLACK_S = 0.3


class SiteWarning(SettingsWarning):
    """One of several sites could not be read; the others were."""


class Answers(NamedTuple):
    """The answers of several sites, in the order of the requests."""

    found: list[tuple[SiteEntry, Any]]
    failed: list[tuple[SiteEntry, BalsamError]]


def open_site(entry: SiteEntry, patience_s: float | None = None) -> SiteInterface:
    """Return the interface to a site. It fails after `patience_s` seconds of waiting for an answer or a lock (None: defaults).

    Raises:
        NotABalsamDB: its directory is gone. SiteUnreachable: its file system does not answer.
    """
    if entry.is_remote:
        from .rpc.remote import RemoteSite

        return RemoteSite(entry) if patience_s is None else RemoteSite(entry, timeout_s=patience_s)
    registry.refuse_unresponsive(entry)
    if not entry.is_there:
        raise NotABalsamDB(
            f"No Balsam DB is in {entry.path} any more",
            hint=f"`balsam site forget {entry.name}` forgets it; "
            "repeat a `balsam site mv` that was interrupted, and it continues.",
        )
    from .local import LocalSite

    if patience_s is None:
        return LocalSite(entry)
    settings = Settings.load(entry.path)
    hasty = settings._replace(BUSY_TIMEOUT_S=min(settings.BUSY_TIMEOUT_S, patience_s))
    return LocalSite(entry, directories.open_database(entry.path, hasty))


def query_all(entries: Iterable[SiteEntry], question: Callable[[SiteInterface], T], patience_s: float | None = None) -> Answers:
    """Put a question to each site; one that raises a BalsamError has failed, without affecting the others.

    With `patience_s`, a site reached through ssh that has not answered by then counts as unreachable, and a site on this host
    whose DB another process keeps locked also fails. Without it, the limits of each site apply: an unreachable site is given up
    soon, and a slow one may take its time. A site on a file system that does not answer is given up as soon as an unreachable
    one. The question is called in several threads at once.
    """
    entries = list(entries)
    distant = [entry for entry in entries if entry.is_remote]
    came: queue.SimpleQueue[tuple[SiteEntry, Any]] = queue.SimpleQueue()
    give_up = None if patience_s is None else time.monotonic() + patience_s + _THREAD_SLACK_S
    for entry in distant:
        # A daemon, unlike the threads of concurrent.futures: one that hangs must not keep this process from ending.
        threading.Thread(target=_put, args=(came, entry, question, patience_s), daemon=True).start()
    near = [entry for entry in entries if not entry.is_remote]
    registry.unresponsive((entry.path for entry in near), patience_s)  # all at once
    outcomes = {
        entry: _outcome(entry, question, give_up and max(give_up - time.monotonic(), _MIN_LOCK_TIMEOUT_S)) for entry in near
    }
    for _ in distant:
        try:
            entry, outcome = came.get(timeout=None if give_up is None else max(give_up - time.monotonic(), 0.001))
        except queue.Empty:
            break
        outcomes[entry] = outcome
    return _sorted_out(entries, outcomes, patience_s)


def _put(
    came: queue.SimpleQueue[tuple[SiteEntry, Any]],
    entry: SiteEntry,
    question: Callable[[SiteInterface], T],
    patience_s: float | None,
) -> None:
    came.put((entry, _outcome(entry, question, patience_s)))


class _Raised(NamedTuple):
    error: BaseException


def _outcome(entry: SiteEntry, question: Callable[[SiteInterface], T], patience_s: float | None) -> T | _Raised:
    try:
        return question(open_site(entry, patience_s))
    except BaseException as exc:  # it is raised again in the thread that asked
        if not entry.is_remote and not isinstance(exc, BalsamError):
            raise
        return _Raised(exc)


def _sorted_out(entries: list[SiteEntry], outcomes: dict[SiteEntry, Any], patience_s: float | None) -> Answers:
    answers = Answers([], [])
    for entry in entries:
        late = _Raised(SiteUnreachable(f"{entry.host} did not answer within {patience_s or 0:g} s"))
        outcome = outcomes.get(entry, late)
        if not isinstance(outcome, _Raised):
            answers.found.append((entry, outcome))
        elif isinstance(outcome.error, BalsamError):
            answers.failed.append((entry, outcome.error))
        else:
            raise outcome.error
    return answers


def reason(exc: BalsamError) -> str:
    """Return an error as a part of one line."""
    return "; ".join(line.strip() for line in exc.message.splitlines() if line.strip())


def failure(entry: SiteEntry, exc: BalsamError) -> str:
    """Return the message about a site that failed, in one line."""
    return f"site {entry.name} could not be read: {reason(exc)}"


def warn_of(entry: SiteEntry, exc: BalsamError) -> None:
    """Issue a SiteWarning about a site that failed."""
    warnings.warn(failure(entry, exc), SiteWarning, stacklevel=3)
