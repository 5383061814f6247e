"""A site whose DB is on this host: `interface.SiteInterface` implemented on the DB."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.clock import SystemClock
from ..core.errors import InvalidSpec
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.engine.filesystem import LOCAL
from ..db.engine.registry import SiteEntry
from ..db.query import queries, select
from ..db.store import held_back
from .interface import KINDS, Row

if TYPE_CHECKING:
    from ..core.settings import Settings

#: Seconds since its last heartbeat after which a service is no longer active. Source: Balsam 0.7.
_ACTIVE_S = 120.0
#: The kind of a service's lease. Source: `service.loop`, whose import takes long.
_SERVICE = "service"

#: The modules that read and count the rows of each kind.
_READERS: dict[str, tuple[Callable[..., list[Row]], Callable[..., int]]] = {
    "job": (select.jobs, select.count_jobs),
    "app": (select.apps, select.count_apps),
    "event": (select.events, select.count_events),
}


class LocalSite:
    """The site of a DB on this host. Opens nothing before the first query."""

    def __init__(self, entry: SiteEntry, database: Database | None = None) -> None:
        self.entry = entry
        self.progress: Callable[[int], None] | None = None
        self._database = database
        self._settings: Settings | None = None

    @property
    def database(self) -> Database:
        """The site's DB. Raises NotABalsamDB, DatabaseError, SettingsError."""
        if self._database is None:
            self._database = directories.open_database(self.entry.path)
        return self._database

    # --- reading ------------------------------------------------------------------------------------------------------

    def at_one_moment(self) -> AbstractContextManager[object]:
        """Hold a read transaction, which writers do not notice; not on a shared file system, where it would stop them."""
        return self.database.read() if self.database.access == LOCAL else nullcontext()

    def about(self) -> Row:
        """Return version, path, identity, interpreter, whether a service is active and its last heartbeat, number of jobs."""
        from ..db.store import leases  # here, not above: importing it takes as long as all the rest

        with self.database.read() as cx:
            jobs, service = select.count_jobs(cx), leases.latest(cx, _SERVICE)
        is_active: bool | None = service is not None and service.closed_us is None
        if service is not None and is_active:
            lease, now_us = service.lease, SystemClock.now_us()
            is_recent = now_us - lease.heartbeat_us <= _ACTIVE_S * 1e6 and not lease.holder.is_provably_dead()
            is_active = None if leases.is_silent(lease, now_us, _ACTIVE_S) else is_recent
        last_refresh = service.lease.heartbeat_us if service else None
        return {
            "version": __version__,
            "path": self.database.directory,
            "db_id": directories.identity(self.database.directory),
            "python": sys.executable,
            "is_active": is_active,
            "last_refresh": last_refresh,
            "jobs": jobs,
        }

    def select(
        self, kind: str, where: Mapping[str, Any] = {}, order: str = "", start: int = 0, stop: int | None = None
    ) -> list[Row]:
        """Return the rows that match, in order."""
        if kind in _READERS:
            held_back.release(self.database)
            with self.database.read() as cx:
                return _READERS[kind][0](cx, where, order, start, stop)
        rows: list[Row] = _keeper(kind).select(self.database, where, order, start, stop)
        return rows

    def count(self, kind: str, where: Mapping[str, Any] = {}) -> int:
        """Return the number of rows that match."""
        if kind in _READERS:
            held_back.release(self.database)
            with self.database.read() as cx:
                return _READERS[kind][1](cx, where)
        return int(_keeper(kind).count(self.database, where))

    def count_states(self, where: Mapping[str, Any] = {}) -> dict[str, int]:
        """Return state -> number of the jobs that match."""
        held_back.release(self.database)
        with self.database.read() as cx:
            return select.count_states(cx, where)

    def overview(self, where: Mapping[str, Any] = {}, size: int = 100) -> Row:
        """Return what goes on at this moment."""
        from ..core.settings import Settings
        from ..db.query import overview

        self._settings = self._settings or Settings.load(self.database.directory)
        with self.database.read() as cx:
            return overview.overview(cx, where, SystemClock.now_us(), self._settings.LEASE_EXPIRY_S, size)

    def count_downstream(self, where: Mapping[str, Any] = {}) -> int:
        """Return the number of other jobs that depend on a matching one."""
        return int(_keeper("job").count_downstream(self.database, where))

    def event_tuples(self, where: Mapping[str, Any] = {}, after: int = 0, touching: Sequence[str] = ()) -> list[Sequence[Any]]:
        """Return a page of events as short lists."""
        with self.database.read() as cx:
            return select.event_page(cx, where, after, touching)

    def runs(self, where: Mapping[str, Any] = {}, after: int = 0) -> list[Sequence[Any]]:
        """Return a page of jobs with their runs."""
        return self._of_campaign("runs", where, after)

    def changes(
        self, where: Mapping[str, Any] = {}, after: int = 0, shift: int = 0, first: int = 0, last: int = 2**62
    ) -> Sequence[Any]:
        """Return a page of changes of state, counted by time."""
        return self._of_campaign("changes", where, after, shift, first, last)

    def parents(self, where: Mapping[str, Any] = {}, after: int = 0) -> Sequence[Any]:
        """Return a page of dependencies."""
        return self._of_campaign("parents", where, after)

    def _of_campaign(self, name: str, *arguments: Any) -> Any:
        from ..db.query import campaign  # few commands need it

        with self.database.read() as cx:
            return getattr(campaign, name)(cx, *arguments)

    def launchers(self) -> list[Row]:
        """Return the newest launchers."""
        return self._of_campaign("launchers")

    def edits(self, jobs: Sequence[int]) -> list[Row]:
        """Return the edits of these jobs."""
        from ..db.query import edits  # most commands do not need it

        with self.database.read() as cx:
            return edits.edits(cx, jobs)

    def page(
        self, where: Mapping[str, Any], fields: Sequence[str] = (), after: int = 0, size: int = 5000, order: str = ""
    ) -> list[Row]:
        """Return a part of the jobs that match; with all fields also why each does not run."""
        held_back.release(self.database)
        with self.database.read() as cx:
            rows = select.jobs_page(cx, where, fields, after, size, order)
            if not fields:
                from ..core.settings import Settings  # most commands do not need it
                from ..db.query.reasons import first_reasons
                from ..service.surroundings import surroundings

                reasons = first_reasons(cx, rows, surroundings(cx, self.database, Settings.load(self.database.directory)))
                for row in rows:
                    row["waits_for"] = reasons.get(row["id"], "")
            return rows

    def results(
        self, where: Mapping[str, Any], fields: Sequence[str] = (), after: int = 0, size: int = 5000, order: str = ""
    ) -> list[Sequence[Any]]:
        """Return columns of the results of the jobs that match."""
        from ..db.query import results

        with self.database.read() as cx:
            return results.page(cx, where, fields, after, size, order, os.path.join(self.database.directory, directories.DATA))

    def details(self, jobs: Sequence[int]) -> list[Row]:
        """Return what a person wants to know of these jobs."""
        from . import details

        return details.read(self.database, jobs)

    def news(self, since: Sequence[int] = ()) -> Row:
        """Return which states jobs have entered since earlier news."""
        with self.database.read() as cx:
            return queries.news(cx, since)._asdict()

    def result(self, job: int) -> Row:
        """Return the outcome of a job."""
        from . import jobs

        return jobs.result(self.database, job)

    def explain(
        self, where: Mapping[str, Any], each: bool = False, refresh: bool = False, budget_s: float | None = None
    ) -> Row:
        """Return why jobs do not run or have failed."""
        from . import explain

        if refresh:
            from . import batch_jobs

            batch_jobs.refresh(self.database)
        held_back.release(self.database)
        return explain.explain(self.database, where, each, budget_s)

    def status(self, where: Mapping[str, Any] = {}, refresh: bool = False) -> Row:
        """Return how it goes with the matching jobs."""
        from . import status

        if refresh:
            from . import batch_jobs

            batch_jobs.refresh(self.database)
        return status.status(self.database, where)

    def outputs(self, places: Sequence[Sequence[int]], file: str = "", lines: int = 10) -> list[Row]:
        """Return a piece of the output of each of these jobs."""
        from . import outputs

        return outputs.read(self.database, places, file, lines)

    # --- changing -----------------------------------------------------------------------------------------------------

    def create(self, kind: str, rows: Sequence[Row], on_duplicate: str = "refuse") -> list[Row]:
        """Add rows; all or none."""
        options = (on_duplicate,) if kind == "job" else ()
        made: list[Row] = _keeper(kind).create(self.database, rows, *options) if rows else []
        return made

    def add_jobs(
        self, rows: Iterable[Row], on_duplicate: str = "refuse", dry_run: bool = False, new_app: Row | None = None
    ) -> Row:
        """Add very many jobs."""
        added: Row = _keeper("job").add(self.database, rows, on_duplicate, dry_run, new_app, self.progress)
        return added

    def check_jobs(self, rows: Sequence[Row]) -> None:
        """Raise the errors that creating these jobs would."""
        _keeper("job").check(self.database, rows)

    def update(self, kind: str, changes: Sequence[Row]) -> int:
        """Change rows one by one; all or none."""
        return int(_keeper(kind).update(self.database, changes)) if changes else 0

    def update_where(self, kind: str, where: Mapping[str, Any], changes: Mapping[str, Any]) -> int:
        """Apply the same changes to all rows that match."""
        if kind == "batch_job":
            return self.update(kind, [{**changes, "id": row["id"]} for row in self.select(kind, where)])
        return int(_keeper(kind).update_where(self.database, where, changes))

    def delete(
        self,
        kind: str,
        where: Mapping[str, Any],
        force: bool = False,
        running: bool = False,
        keep_jobs: bool = False,
        no_trash: bool = False,
        workdirs: bool = False,
        dry_run: bool = False,
    ) -> Row:
        """Remove all rows that match."""
        options = {"job": (force, running, no_trash, workdirs, self.progress, dry_run), "app": (force, keep_jobs, no_trash)}
        done: Row = _keeper(kind).delete(self.database, where, *options.get(kind, ()))
        return done

    def actions(self) -> list[Row]:
        """Return the user's last actions."""
        from ..core import caller
        from ..db.store import undo

        with self.database.read() as cx:
            return [action._asdict() for action in undo.of_user(cx, caller.current().user)]

    def undo(self, number: int | None = None, dry_run: bool = False) -> Row:
        """Take back an action."""
        from ..db.store import undo

        with self.database.read() as cx:
            action = undo.find(cx, number)
        done = undo.preview(self.database, action) if dry_run else undo.take_back(self.database, action, self.progress)
        return {"action": action._asdict(), **done._asdict()}

    def rerun(
        self, where: Mapping[str, Any], to: str | None = None, changes: Mapping[str, Any] = {}, downstream: bool = False
    ) -> Row:
        """Put all matching jobs back to be run again."""
        done: Row = _keeper("job").rerun(self.database, where, to, changes, downstream, self.progress)
        return done

    def kill(self, where: Mapping[str, Any], recursive: bool = False) -> Row:
        """Make all matching jobs USER_KILLED."""
        done: Row = _keeper("job").kill(self.database, where, recursive, self.progress)
        return done

    # --- parents at other sites ---------------------------------------------------------------------------------------

    def parent_records(self, jobs: Sequence[int]) -> Row:
        """Return what other sites need to know of jobs here."""
        from ..db.store import remote_parents

        with self.database.read() as cx:
            found = [with_path(self.database, job) for job in remote_parents.records(cx, jobs)]
        directory = self.database.directory
        return {"db_id": directories.identity(directory), "path": directory, "jobs": found}

    def add_remote_parents(self, site: Row, jobs: Sequence[Row]) -> list[int]:
        """Store jobs of another site."""
        from ..db.store import remote_parents

        with self.database.write() as cx:
            return remote_parents.add_parents(cx, remote_parents.add_site(cx, site), jobs)

    def watch_jobs(self, site: Row, jobs: Sequence[int]) -> None:
        """Have the states of these jobs reported to another site."""
        from ..db.store import remote_parents

        with self.database.write() as cx:
            remote_parents.watch(cx, remote_parents.add_site(cx, site), jobs, SystemClock.now_us())

    def note_parents(self, db_id: str, jobs: Sequence[Row]) -> Row:
        """Take over the states of parents at another site."""
        from ..db.store import graph, remote_parents

        missing, needed = [], []
        with self.database.write() as cx:
            site = remote_parents.number_of(cx, db_id)
            if site:
                missing = graph.note_remote(cx, site, jobs, SystemClock.now_us())
                needed = remote_parents.unfollow(cx, site)
        data = os.path.join(self.database.directory, directories.DATA)
        missing = [one._replace(target=os.path.join(data, one.target)) for one in missing]
        for one in missing:
            os.makedirs(one.target, exist_ok=True)
        return {"needed": needed, "missing": list(map(list, missing))}

    def ancestors(self, jobs: Sequence[int], db_id: str) -> Row:
        """Return the ancestors of jobs, here and at another site."""
        from ..db.store import remote_parents

        with self.database.read() as cx:
            here, there = remote_parents.ancestors(cx, jobs, db_id)
        return {"here": here, "there": there}

    def add_dependency(self, parent: int, child: int) -> None:
        """Let a job wait for another one."""
        from ..db.store import graph

        with self.database.write() as cx:
            graph.add_dependency(cx, parent, child, SystemClock.now_us())

    # --- the service --------------------------------------------------------------------------------------------------

    def service(self, verb: str) -> Row:
        """Run `start`, `stop`, `status` of the site's service, or `check` its settings and queue policy."""
        from . import lifecycle

        verbs = {"start": lifecycle.start, "stop": lifecycle.stop, "status": lifecycle.status, "check": lifecycle.check}
        if verb not in verbs:
            raise InvalidSpec(f"A service can be asked for start, stop, status and check, not {verb!r}.")
        return verbs[verb](self.database.directory)


def with_path(db: Database, job: Row) -> Row:
    """Return the record of a job with an absolute path as its `workdir`; "" if it was removed."""
    return {**job, "workdir": job["workdir"] and os.path.join(db.directory, directories.DATA, job["workdir"])}


def _keeper(kind: str) -> Any:
    """Return the module that changes rows of that kind.

    Raises:
        InvalidSpec: there is no such kind, or its rows cannot be changed.
    """
    if kind == "job":
        from . import jobs

        return jobs
    if kind == "app":
        from . import apps

        return apps
    if kind == "batch_job":
        from . import batch_jobs

        return batch_jobs
    if kind in KINDS:
        raise InvalidSpec("Events are what happened; they are read and cannot be changed.")
    raise InvalidSpec(f"There is no kind of rows {kind!r}.", hint=f"There are: {', '.join(KINDS)}")
