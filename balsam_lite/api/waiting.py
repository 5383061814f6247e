"""Wait for jobs and read the results of their functions; see `Job` and `JobManager`."""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from ..core import states
from ..core.errors import BalsamError, DatabaseBusy, InvalidSpec, RemoteError, SiteUnreachable, TaskFailed
from ..core.notebook import progress_bar
from ..db.store import held_back
from ..launcher.waiter import DELETED, Feed, JobStatus, Waiter, feed_of, status_of
from ..pyapps import result_file
from ..sites.interface import Row, SiteInterface
from ..sites.local import LocalSite
from . import site_handle
from .site_handle import Question, SiteHandle

if TYPE_CHECKING:
    from ..db.engine.connection import Database

#: A `jobs.Job`, which is made of this module's functions.
Job = Any

ALL_COMPLETED, FIRST_COMPLETED = "ALL_COMPLETED", "FIRST_COMPLETED"

#: Pauses between two queries to sites of other hosts: the first, in seconds, and the factor by which they grow.
_MIN_PAUSE_S, _GROWTH = 0.02, 1.5
#: Minimum ratio of a pause to the query before it: otherwise 100 000 jobs would keep a core busy.
_PAUSE_PER_QUERY = 5


class NoResult(BalsamError):
    """The job has not ended."""


def result_of(job: Job) -> Any:
    """Return the result of the function of a job that has ended, or raise its exception."""
    found = job._site.interface.result(job._row["id"])
    is_good = found["state"] == states.JOB_FINISHED
    if found.get("outcome") is None:
        if is_good and found["is_function"]:
            raise RemoteError(f"{job._title()} left no result: its program ended with exit code 0 before its function did.")
        if is_good:
            return None
        raise TaskFailed(f"{job._title()} is {found['state']}: {found.get('message') or 'no reason is known'}")
    outcome = result_file.unpickled(b64decode(found["outcome"]))
    if outcome.good != is_good:  # the function succeeded and a hook failed; or it is an earlier attempt's
        raise TaskFailed(f"{job._title()} is {found['state']}: {found.get('message') or outcome.trace or 'no reason is known'}")
    return result_file.result_of("function", outcome)


def wait(
    jobs: Sequence[Job], timeout: float | None, poll_interval: float, return_when: str, progress: bool | None = None
) -> tuple[list[Job], list[Job]]:
    """Wait as `JobManager.wait` does. Return the jobs that are over, and the others."""
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise InvalidSpec(f"return_when must be {ALL_COMPLETED} or {FIRST_COMPLETED}, not {return_when!r}")
    over: set[Place] = set()
    for ended in _ends(jobs, over, timeout, poll_interval, progress):
        if ended and return_when == FIRST_COMPLETED:
            break
    return [job for job in jobs if _place(job) in over], [job for job in jobs if _place(job) not in over]


def as_completed(
    jobs: Sequence[Job], timeout: float | None, poll_interval: float, progress: bool | None = None
) -> Iterator[Job]:
    """Yield jobs as `JobManager.as_completed` does."""
    over: set[Place] = set()
    for ended in _ends(jobs, over, timeout, poll_interval, progress):
        yield from ended
    missing = len({*map(_place, jobs)} - over)
    if missing:
        from concurrent.futures import TimeoutError as Overdue

        raise Overdue(f"{missing} Jobs are still pending after {timeout or 0:g} sec timeout.")


def bulk_refresh(jobs: Sequence[Job]) -> None:
    """Read the jobs again as `JobManager.bulk_refresh` does."""
    wanted = _by_place(jobs)
    handles = list(dict.fromkeys(handle for handle, _ in wanted))
    found = {}
    for handle in handles:
        numbers = [number for at, number in wanted if at is handle]
        found.update({(handle, row["id"]): row for row in handle.interface.select("job", {"id": numbers})})
    missing = [number for handle, number in wanted if (handle, number) not in found]
    if missing:
        listed = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise type(jobs[0]).DoesNotExist(f"{len(missing)} of the jobs are not in the DB any more: {listed}")
    for place, of_place in wanted.items():
        for job in of_place:
            job._fill(dict(found[place]), job._site)


#: The place of a job: its site, and its number there.
Place = tuple[SiteHandle, int]


def _place(job: Job) -> Place:
    return job._site, job._row["id"]


def _by_place(jobs: Iterable[Job]) -> dict[Place, list[Job]]:
    """Return the jobs by site and number; several objects may represent one job."""
    found: dict[Place, list[Job]] = {}
    for job in jobs:
        found.setdefault(_place(job), []).append(job)
    return found


def _ends(
    jobs: Sequence[Job], over: set[Place], timeout: float | None, poll_interval: float, progress: bool | None = None
) -> Iterator[list[Job]]:
    """Yield at each check the jobs that are over by now, read again; their places are added to `over`.

    Stops when all are over, or after `timeout` seconds.
    """
    by_place = _by_place(jobs)
    with progress_bar(len(by_place), progress, "job") as advance, Waiter(poll_interval) as waiter:
        sources = _Sources(waiter, poll_interval)
        sources.follow(by_place)
        for statuses in waiter.rounds(timeout):
            places, again = sources.read_anew(statuses, by_place)
            over.update(places)
            advance(len(places))
            yield [job for place in places for job in by_place[place]]
            sources.follow(again)


class _Sources:
    """The sites of the jobs for which a `Waiter` waits: those of this host have change feeds, the others are queried."""

    def __init__(self, waiter: Waiter, poll_interval: float) -> None:
        self._waiter = waiter
        self._remote = _RemoteFeed(poll_interval)
        self._handles: dict[JobStatus, SiteHandle] = {}

    def follow(self, places: Iterable[Place]) -> None:
        """Wait for these jobs. Raises BalsamError: a DB on this host cannot be opened."""
        by_handle: dict[SiteHandle, list[int]] = {}
        for handle, number in places:
            by_handle.setdefault(handle, []).append(number)
        for handle, numbers in by_handle.items():
            database = _database_of(handle)
            if database is None:
                statuses = [JobStatus(handle, number) for number in numbers]
                self._waiter.follow(self._remote, statuses)
            else:
                statuses = [status_of(database, number) for number in numbers]
                self._waiter.add(database, statuses)
                held_back.release(database)
            self._handles.update(dict.fromkeys(statuses, handle))

    def read_anew(self, statuses: Iterable[JobStatus], by_place: dict[Place, list[Job]]) -> tuple[list[Place], list[Place]]:
        """Read the rows of jobs that have ended again; return which are over, and which were started again."""
        by_handle: dict[SiteHandle, list[JobStatus]] = {}
        for status in statuses:
            by_handle.setdefault(self._handles.pop(status), []).append(status)
        over: list[Place] = []
        again: list[Place] = []
        for handle, ended in by_handle.items():
            read = {status.number for status in ended if status.state == DELETED}
            where = {"id": [status.number for status in ended if status.number not in read], "state": [*states.END_STATES]}
            try:
                rows = handle.interface.select("job", where) if where["id"] else ()
            except (SiteUnreachable, DatabaseBusy) as exc:
                database = _database_of(handle)
                self._waiter.tolerate(self._remote if database is None else feed_of(database), exc)
                rows = ()
            for row in rows:
                read.add(row["id"])
                for job in by_place[handle, row["id"]]:
                    job._fill(dict(row), job._site)
            for status in ended:
                (over if status.number in read else again).append((handle, status.number))
        return over, again


def _database_of(handle: SiteHandle) -> Database | None:
    """Return the DB of a site of this host; None for a site of another host. Raises BalsamError."""
    interface = None if handle.entry.is_remote else handle.interface
    return interface.database if isinstance(interface, LocalSite) else None


class _RemoteFeed(Feed):
    """Jobs at sites of other hosts: a `Feed` that queries their states, at growing intervals."""

    def __init__(self, poll_interval: float) -> None:
        super().__init__()
        self._poll_s = poll_interval
        self._pause_s = min(_MIN_PAUSE_S, poll_interval)
        self._due_s = 0.0
        self._statuses: dict[SiteHandle, dict[int, JobStatus]] = {}

    def due_s(self, poll_s: float) -> float:
        """Return when the next query is due, by the monotonic clock."""
        return self._due_s

    def follow(self, statuses: Sequence[JobStatus]) -> None:
        """Query these as well; `place` of each is its SiteHandle."""
        for status in statuses:
            self._statuses.setdefault(cast("SiteHandle", status.place), {})[status.number] = status
        self._due_s = 0.0

    def look(self) -> bool:
        """Query the states if that is due; return whether a job has ended."""
        began = time.monotonic()
        asked = [Question(handle, {"id": [*numbers]}) for handle, numbers in self._statuses.items() if numbers]
        if began < self._due_s or not asked:
            return False
        has_ended = False
        try:
            for handle, rows in site_handle.ask(asked, _states):
                found = {row["id"]: row["state"] for row in rows}
                of_handle = self._statuses[handle]
                for status in list(of_handle.values()):
                    if status.learn(found.get(status.number, DELETED)):
                        has_ended = True
                        self._tell(status)
                        del of_handle[status.number]
        finally:
            now = time.monotonic()
            self._due_s = now + max(self._pause_s, (now - began) * _PAUSE_PER_QUERY)
            self._pause_s = min(_GROWTH * self._pause_s, self._poll_s)
        return has_ended


def _states(interface: SiteInterface, where: dict[str, Any]) -> list[Row]:
    """Return number and state of those of the jobs that exist."""
    return interface.page(where, ("id", "state"), 0, len(where["id"]))
