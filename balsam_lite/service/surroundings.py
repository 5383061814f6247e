"""What could run the jobs of a DB at this moment, with what only this host can tell: the policy, the disk, the files."""

from __future__ import annotations

import errno
import os
import shlex
import warnings
from contextlib import suppress

from ..core.clock import SystemClock
from ..core.errors import SettingsError
from ..core.settings import Settings, SettingsWarning
from ..db.engine import filesystem
from ..db.engine.connection import Connection, Database
from ..db.query import reasons
from ..db.query.catalogue import Reason, make
from ..db.query.reasons import Policy, Surroundings
from ..db.store.leases import Watch


def surroundings(cx: Connection, db: Database, settings: Settings, watch: Watch | None = None) -> Surroundings:
    """Return what could run the jobs of a DB, and what keeps all of them from running. Reads the policy file and looks at the
    disk; runs inside the caller's transaction.

    Args:
        watch: the heartbeats seen by this process.
    """
    margin = settings.end_margin_s / 60
    found = reasons.surroundings(cx, SystemClock.now_us(), settings.LEASE_EXPIRY_S, watch, margin)
    found = found._replace(
        policy=_policy(db, settings) if found.service is not None else None,
        machine=_of_machine(db, is_alive=bool(found.launchers or found.starting)),
    )
    if found.is_elsewhere:
        return found
    return found._replace(missing_program=_missing_program, missing_source=_missing_source)


def _policy(db: Database, settings: Settings) -> Policy:
    from . import policy  # here, as the other one below: most commands do not need it

    margin = policy.margin_minutes(settings)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SettingsWarning)
            return Policy(policy.load(db.directory, settings), margin)
    except SettingsError as exc:
        return Policy((), margin, exc.message)


def _of_machine(db: Database, is_alive: bool) -> tuple[Reason, ...]:
    """Return what keeps this host from running jobs; with a live launcher, which may be on another host, only a full disk."""
    found = []
    if not is_alive and not os.access(db.path, os.W_OK):
        found.append(make("db-read-only", why=os.strerror(errno.EROFS if _is_read_only(db.path) else errno.EACCES)))
    with suppress(OSError):
        directories = (db.directory, os.path.join(db.directory, "data"))
        short = next((one for one in directories if os.path.isdir(one) and filesystem.is_short(one)), "")
        if short:
            found.append(make("disk-full", why=filesystem.why_full(short, errno.ENOSPC)))
    return tuple(found)


def _is_read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def _missing_source(url: str) -> str:
    from ..launcher.staging import transfers

    return transfers.why_missing(url)


def _missing_program(executable: str) -> str:
    """Return the absolute path of a program that is not on this host; "" if it is, or is looked for on PATH."""
    try:
        words = shlex.split(executable)
    except ValueError:
        return ""  # the launcher says what is wrong with it
    path = words[0] if words else ""
    return path if os.path.isabs(path) and not os.path.exists(path) else ""
