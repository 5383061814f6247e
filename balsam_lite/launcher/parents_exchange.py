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
#: For the last exchange of an idle launcher: minimum seconds since the one before, and maximum seconds that it is waited for.
_LAST_PERIOD_S, _MAX_WAIT_S = 1.0, 10.0


class ParentsExchange:
    """The exchanges of one DB that this launcher or service has started, at most one for each site at a time.

    Args:
        is_service: a launcher leaves the exchanges to a service, if one has a lease.
    """

    def __init__(self, db: Database, settings: Settings, clock: Clock, is_service: bool = False) -> None:
        self._db, self._settings, self._clock, self._is_service = db, settings, clock, is_service
        self._running: dict[int, threading.Thread] = {}  # by number of the site
        self._last_for, self._last_at = -1.0, 0.0  # the idle phase before whose end the last exchanges were started, and when

    def start_due(self, period_s: float | None = None) -> None:
        """Start the exchanges that are due, by default each SERVICE_PERIOD, without waiting. Opens a read transaction."""
        try:
            with self._db.read() as cx:
                due = remote_parents.due(cx, self._clock.now_us(), period_s or self._settings.SERVICE_PERIOD)
                if due and not self._is_service and leases.open_leases(cx, "kind = 'service'"):
                    return
        except DatabaseError:  # the next turn tells
            return
        self._running = {site: thread for site, thread in self._running.items() if thread.is_alive()}
        for site in due:
            if site not in self._running:
                self._running[site] = threading.Thread(target=self._run, args=(site,), name="exchange", daemon=True)
                self._running[site].start()

    def is_settled(self, idle_since: float) -> bool:
        """Return whether a launcher that has been idle since then may end.

        First, a last exchange may bring the end of a parent, or the files, for which its jobs wait. It waits for that, but
        not for a long copy.
        """
        now = self._clock.monotonic()
        if self._last_for != idle_since:
            self._last_for, self._last_at = idle_since, now
            self.start_due(_LAST_PERIOD_S)
        return now - self._last_at > _MAX_WAIT_S or not any(thread.is_alive() for thread in self._running.values())

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
