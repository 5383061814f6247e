"""Start the processes that exchange the states of parents with other sites, in the turns of a launcher or the service."""

from __future__ import annotations

import logging
import os
import threading

from ..core import subprocess_run
from ..core.clock import Clock
from ..core.errors import DatabaseError
from ..core.process_table import JOB_VARIABLES
from ..core.settings import Settings
from ..db.engine.connection import Database
from ..db.store import leases, remote_parents

log = logging.getLogger(__name__)

#: Above the launcher in the house, hence only its name: this also keeps its ssh and its files out of this process.
_MODULE = "balsam_lite.sites.remote_parents"
#: Seconds after which an exchange is ended. It may copy files; an ssh or rsync that hangs is ended much earlier.
_TIMEOUT_S = 24 * 3600.0


class ParentsExchange:
    """The exchanges of one DB that this launcher or service has started, at most one for each site at a time.

    Args:
        is_service: a launcher leaves the exchanges to a service, if one has a lease.
    """

    def __init__(self, db: Database, settings: Settings, clock: Clock, is_service: bool = False) -> None:
        self._db, self._settings, self._clock, self._is_service = db, settings, clock, is_service
        self._running: dict[int, threading.Thread] = {}  # by number of the site

    def start_due(self) -> None:
        """Start the exchanges that are due, without waiting for them. Opens a read transaction."""
        try:
            with self._db.read() as cx:
                due = remote_parents.due(cx, self._clock.now_us(), self._settings.SERVICE_PERIOD)
                if due and not self._is_service and leases.open_leases(cx, "kind = 'service'"):
                    return
        except DatabaseError:  # the next turn tells
            return
        self._running = {site: thread for site, thread in self._running.items() if thread.is_alive()}
        for site in due:
            if site not in self._running:
                self._running[site] = threading.Thread(target=self._run, args=(site,), name="exchange", daemon=True)
                self._running[site].start()

    def _run(self, site: int) -> None:
        environ = {name: value for name, value in os.environ.items() if name not in JOB_VARIABLES}
        done = subprocess_run.run(
            subprocess_run.module_words(_MODULE, self._db.directory, str(site)),
            timeout_s=_TIMEOUT_S,
            environ={**environ, "PYTHONPATH": subprocess_run.python_path()},
            directory="/",
            leaves_some=True,  # the shared connection of ssh
        )
        if not done.ok:
            log.warning("The exchange of states with another site failed: %s", done.stderr.strip()[-500:])
