"""Run the service: one for each DB, with its log, lease and signals; in the foreground or as a daemon.

    python -m balsam_lite.service.main DIRECTORY

runs it as a daemon; `start` does that.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, NamedTuple

from ..core import daemon, files, subprocess_run
from ..core.clock import SECOND_US, SystemClock
from ..core.daemon import Ready
from ..core.errors import AnotherService, BalsamError, DatabaseGone, DatabaseReadOnly, LaunchError, LostLease
from ..core.process_table import Holder
from ..core.settings import Settings
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.engine.filesystem import failure
from ..db.store import leases
from ..db.store.leases import LeaseRecord, watch_the_doubtful
from ..launcher import logs
from ..launcher.exec.spawner import Alarm
from ..launcher.reaper import Reaper
from ..schedulers import base
from . import policy
from .loop import KIND, Service

log = logging.getLogger(__name__)

LOCK = "service.lock"
_IS_SERVICE = f"kind = '{KIND}'"
#: Seconds that `stop` waits in addition to the limit of one command of the scheduler.
_STOP_TIMEOUT_S = 10.0


def run_service(db_directory: str, ready: Ready | None = None) -> int:
    """Run the service of a DB on this host until a signal arrives. Return the exit code: 1 if its lease was lost.

    `ready` is called once the service has begun, with its pid and its log as JSON, and with a file for its stderr.

    Raises:
        AnotherService. SettingsError: the policy is missing or broken. DatabaseError. BalsamError: no log can be written.
    """
    settings = Settings.load(db_directory)
    db = directories.open_database(db_directory, settings)
    file = policy.PolicyFile(db.directory, settings)
    scheduler = base.select(settings)
    clock = SystemClock()
    with _alone(db.directory):
        lease = _open_lease(db, settings, clock)
        log_path = logs.set_up(db.directory, settings, KIND, echo=ready is None)
        on = [queue.name for queue in file.queues if queue.is_on]
        log.info("Lease %d: the service for %s, %s, queues: %s", lease, db.directory, scheduler.name, ", ".join(on) or "none")
        if ready:
            ready(json.dumps({"pid": os.getpid(), "log": log_path}), "")
        service = Service(db, settings, file.queues, scheduler, lease, clock, log_path, file)
        try:
            return _run(service)
        finally:
            if service.holds_lease:  # otherwise its number may belong to another lease, in another DB at this path
                with db.write() as cx:
                    leases.close_lease(cx, lease, clock.now_us(), service.stop_reason or "an internal error; see the log")
                    service.notifier.look(cx, ends=True)
                service.notifier.send()
            service.notifier.close()
            db.close()  # so that the one file holds everything


def _run(service: Service) -> int:
    def stop(number: int, _: FrameType | None) -> None:
        service.stop(f"signal {signal.Signals(number).name}")

    with Alarm() as alarm:
        before = daemon.handle_stop_signals(stop)
        try:
            service.run(alarm.wait)
        except (LostLease, DatabaseGone) as exc:
            service.holds_lease = False
            log.error("%s", exc.message)
            return 1
        except BaseException:
            log.exception("The service stops because of an internal error.")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    log.info("The service ends: %s", service.stop_reason)
    return 0


@contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Hold the service's lock file, whose lock ends with its process.

    Where the file system has no locks, only the lease prevents a second service.
    """
    path = os.path.join(directory, LOCK)
    with ExitStack() as held:
        try:
            held.enter_context(files.locked(path))
        except TimeoutError:
            raise AnotherService(hint="`balsam service status` shows it, `balsam service stop` ends it.") from None
        except files.LocksUnsupported as exc:
            log.debug("no lock file: %s", exc)
        except OSError as exc:
            raise DatabaseReadOnly(
                f"{path} cannot be written: {failure(exc, path, exc.strerror)}", hint="The service needs a DB of your own."
            ) from exc
        yield


def _open_lease(db: Database, settings: Settings, clock: SystemClock) -> int:
    """Open a lease for this process; if two start at the same moment, one is refused.

    A lease held on another host is watched first if its last heartbeat is old by the clocks.
    """
    expiry_s = settings.LEASE_EXPIRY_S
    watch = watch_the_doubtful(db, expiry_s, _IS_SERVICE)
    Reaper(db, settings, clock).reap()
    with db.write() as cx:
        for other in leases.open_leases(cx, _IS_SERVICE):
            if not leases.is_dead(other, expiry_s, watch):
                where = f"It is process {other.holder.pid} on {other.holder.host}."
                raise AnotherService(hint=f"{where} `balsam service stop` ends it.")
            leases.close_lease(cx, other.id, clock.now_us(), "dead", taken_by=leases.taker(other, watch))
        lease = leases.open_lease(cx, KIND, Holder.current(), "", clock.now_us())
        eldest = leases.is_eldest(cx, lease, expiry_s, watch)
    db.own_checkpoints(eldest)
    return lease


# --- as a daemon ------------------------------------------------------------------------------------------------------


class ServiceStarted(NamedTuple):
    """A service that has begun."""

    pid: int
    log: str


def start(db_directory: str) -> ServiceStarted:
    """Start the service as a daemon, which outlives this process and its terminal. Return once it has begun.

    Raises:
        AnotherService. LaunchError: it did not begin; the message contains its output.
    """
    settings = Settings.load(db_directory)
    db = directories.open_database(db_directory, settings)
    watch_the_doubtful(db, settings.LEASE_EXPIRY_S, _IS_SERVICE)  # this may take longer than the daemon's start may take
    db.close()
    answer = subprocess_run.run_module(__name__, os.path.abspath(db_directory))
    if answer.returncode == _ANOTHER:
        raise AnotherService(hint="`balsam service status` shows it, `balsam service stop` ends it.")
    if not answer.ok:
        said = answer.stderr.strip().removeprefix("Error: ")
        raise LaunchError(said or f"The service ended at once with exit code {answer.returncode}.")
    return ServiceStarted(**json.loads(answer.stdout))


#: The daemon's exit code if another service is running.
_ANOTHER = 17


def main(argv: list[str]) -> int:
    """Become a daemon and run the service of the DB `argv[0]`; report errors before becoming one."""
    ready = daemon.detach()
    try:
        return run_service(argv[0], ready)
    except AnotherService:
        return _ANOTHER
    except BalsamError as exc:
        sys.stderr.write(f"Error: {exc}\n")
        return 1


def stop(db_directory: str) -> str:
    """End the DB's service, and wait for its end if it is on this host. Return what was done, in words.

    On another host it loses its lease, which it notices at its next heartbeat.

    Raises:
        LaunchError: it is still busy; it will end when it has finished.
    """
    settings = Settings.load(db_directory)
    db = directories.open_database(db_directory, settings)
    record = _latest(db)
    if record is None or record.closed_us is not None:
        return "No service is running on this Balsam DB."
    holder = record.lease.holder
    if holder.is_provably_dead():
        Reaper(db, settings, SystemClock()).reap()
        return f"The service was dead already (pid {holder.pid})."
    if not holder.is_here():
        with db.write() as cx:
            leases.close_lease(cx, record.lease.id, SystemClock.now_us(), "stopped by the user")
        return f"The service on {holder.host} (pid {holder.pid}) is to end; it hears of it within {settings.beat_s:g} s."
    _terminate(holder)
    give_up = time.monotonic() + settings.SCHEDULER_TIMEOUT_S + _STOP_TIMEOUT_S
    while not holder.is_provably_dead():
        if time.monotonic() > give_up:
            raise LaunchError(f"The service (pid {holder.pid}) is still busy; it ends when it is done with that.")
        time.sleep(0.05)
    return f"Stopped the service (pid {holder.pid})."


def _terminate(holder: Holder) -> None:
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError as exc:
        raise LaunchError(f"The service (pid {holder.pid}) is another user's: {exc.strerror}.") from exc


def _latest(db: Database) -> LeaseRecord | None:
    with db.read() as cx:
        return leases.latest(cx, KIND)


# --- what it is doing -------------------------------------------------------------------------------------------------


def status(db_directory: str) -> dict[str, Any]:
    """Return the status of the DB's service, for display and `--json`. Times are seconds since the epoch or None.

    `state` is running, dead (it ended without closing its lease), silent (on another host, and dead if the clocks agree, which
    a single check cannot establish), stopped, or none (there never was a service).
    """
    settings = Settings.load(db_directory)
    db = directories.open_database(db_directory, settings)
    record = _latest(db)
    if record is None:
        return {"state": "none"}
    now_us = SystemClock.now_us()
    lease, note = record.lease, _note(record)
    if record.closed_us is not None:
        state = "dead" if record.end_reason == "dead" else "stopped"
    else:
        is_silent = leases.is_silent(lease, now_us, settings.LEASE_EXPIRY_S)
        state = "dead" if lease.holder.is_provably_dead() else "silent" if is_silent else "running"
    return {
        "state": state,
        "host": lease.holder.host,
        "pid": lease.holder.pid,
        "started": record.opened_us / SECOND_US,
        "ended": None if record.closed_us is None else record.closed_us / SECOND_US,
        "end_reason": record.end_reason,
        "heartbeat_age_s": (now_us - lease.heartbeat_us) / SECOND_US,
        "last_sign": leases.last_sign(lease, now_us, settings.LEASE_EXPIRY_S),
        "last_action": note.get("action", ""),
        "last_action_at": _seconds(note.get("action_us")),
        "last_error": note.get("error", ""),
        "last_error_at": _seconds(note.get("error_us")),
        "reasons": note.get("reasons", []),
        "log": note.get("log", ""),
    }


def _note(record: LeaseRecord) -> dict[str, Any]:
    try:
        found = json.loads(record.note or "{}")
    except ValueError:  # written by another version, or by hand
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(time_us: int | None) -> float | None:
    return None if time_us is None else time_us / SECOND_US


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
