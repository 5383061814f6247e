"""Wait for jobs in Python: the waiter shared by `launcher.futures`, `BalsamExecutor` and `balsam_lite.api`.

A `ChangeFeed` does not query the states of all its jobs again and again. It checks whether the DB has changed, which takes a
few microseconds, and then reads the events since the last look. A `Waiter` looks at one feed for each DB until the jobs end.

While it waits, the process is registered with each DB: a launcher whose jobs have all ended leaves at once, unless a registered
process may add more when it has its results. When nothing happens to the jobs, the reason is printed on stderr. Both are best
effort: a process that can read a DB but not write it can wait, too.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary, finalize

from ..core import states
from ..core.clock import SystemClock
from ..core.errors import BalsamError, DatabaseBusy, SiteUnreachable
from ..core.import_guard import StopImport

if TYPE_CHECKING:
    from ..db.engine.connection import Database

T = TypeVar("T")

#: Pauses between two looks at a local DB, in seconds: the first, the longest, and the factor by which they grow. A look takes
#: 10 µs, but 250 µs after a sleep, when the caches are cold: 33 per second are 0.7 % of a core.
_MIN_PAUSE_S, MAX_PAUSE_S, _GROWTH = 0.01, 0.03, 1.3
#: Seconds between two looks at a DB on a shared file system. Each one locks the file for a moment.
SHARED_PAUSE_S = 1.0
#: A read of a site that takes long is followed by a pause of this many times as long; and the jobs of which one read asks.
_PAUSE_PER_READ, _MAX_NUMBERS = 5, 50_000
#: Looks at a site may fail for this number of seconds before waiting does.
MAX_OUTAGE_S = 60.0

#: Seconds that a process stays registered after it has waited: a loop that waits, adds jobs and waits again is one wait.
LINGER_S = 10.0
#: Heartbeat interval of a registered process, in seconds; LEASE_EXPIRY_S is 120 by default.
_HEARTBEAT_S = 30.0
#: Busy timeout for registering, in seconds: it must not delay the caller for long.
_BUSY_TIMEOUT_S = 2.0
#: Seconds without any change after which to look for the reason, then in growing intervals; and to repeat the same reason.
QUIET_S, _MAX_QUIET_S, _REPEAT_S = 5.0, 60.0, 600.0

#: The "state" of a job that was deleted.
DELETED = ""


# --- what is known of jobs --------------------------------------------------------------------------------------------


class JobStatus:
    """The state of a job as this process knows it. An end is final here, even if the user lets the job run again.

    `place` is the directory of its DB, or the address that another kind of `Feed` uses.
    """

    __slots__ = ("__weakref__", "_lock", "feed", "number", "place", "state")

    def __init__(self, place: Hashable, number: int) -> None:
        self.place = place
        self.number = number
        self.state = states.CREATED
        self.feed: Feed | None = None  # the last one that follows it, which therefore lives as long as the status does
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether the job is in an end state, or deleted."""
        return self.state in states.END_STATES or self.state == DELETED

    def learn(self, state: str) -> bool:
        """Take over a state that a thread has just read, unless another one has seen the end; return whether it has ended."""
        with self._lock:
            if not self.ended:
                self.state = state
            return self.ended


#: (directory, number of the job) -> its status, shared by all waiters in this process.
_statuses: WeakValueDictionary[tuple[str, int], JobStatus] = WeakValueDictionary()
_statuses_lock = threading.Lock()


def status_of(database: Database, number: int) -> JobStatus:
    """Return the status of a job; a new one if the job has ended before, because it may have been started again."""
    place = (database.directory, number)
    with _statuses_lock:
        found = _statuses.get(place)
        if found is None or found.ended:
            found = _statuses[place] = JobStatus(*place)
    return found


def why_failed(database: Database, number: int, name: str) -> str:
    """Return the last message of the job's history; if it failed with a parent also that one's, back to the first failure."""
    from ..db.query import queries

    with database.read() as cx:
        end = queries.end_of(cx, number)
        if end is None:
            return f"Job {name} was deleted."
        ends = [end]
        while ends[-1].parent is not None:
            end = queries.end_of(cx, ends[-1].parent)
            if end is None:
                break
            ends.append(end)
    if len(ends) > 3:  # a long chain: the job, its parent, and where it began
        ends = [*ends[:2], ends[-1]]
    return "\n".join(f"Job [{end.name} | {end.job_id[:8]}] is {end.state}: {end.message}" for end in ends)


# --- feeds ------------------------------------------------------------------------------------------------------------


class Feed(ABC):
    """A source of news about jobs. For one thread."""

    def __init__(self) -> None:
        #: Where the statuses of jobs are put that end while they are followed.
        self.listeners: list[deque[JobStatus]] = []

    @abstractmethod
    def due_s(self, poll_s: float) -> float:
        """Return when the next look is worth its cost, by the monotonic clock."""

    @abstractmethod
    def follow(self, statuses: Sequence[JobStatus]) -> None:
        """Update these statuses from now on, until their end; notify the listeners of those that have ended."""

    @abstractmethod
    def look(self) -> bool:
        """Update the followed statuses; return whether anything has changed."""

    def waiting(self, statuses: Iterable[JobStatus], place: Hashable) -> Sequence[int]:
        """Return the numbers of the jobs at `place` that are waited for, given the statuses that are."""
        return [status.number for status in statuses if status.place == place]

    def _tell(self, status: JobStatus) -> None:
        for listener in self.listeners:
            listener.append(status)


class ChangeFeed(Feed):
    """Follows the jobs of one DB. For one thread; it sees writes of other threads of this process, too."""

    def __init__(self, database: Database) -> None:
        from ..db.engine import directories

        super().__init__()
        self._is_local = database.access == "local"
        # A separate one: `changed` has one memory for each Database, and does not see what its own connection writes.
        self._db = directories.open_database(database.directory) if self._is_local else database
        self._statuses: WeakValueDictionary[int, JobStatus] = WeakValueDictionary()
        self._mark = (0, 0)
        self._looked_s = 0.0
        if self._is_local:
            finalize(self, self._db.close)

    def due_s(self, poll_s: float) -> float:
        """Return when to look again: always at a local DB, after `poll_s` (at least a second) at a shared one."""
        return 0.0 if self._is_local else self._looked_s + max(poll_s, SHARED_PAUSE_S)

    def follow(self, statuses: Sequence[JobStatus]) -> None:
        """Follow these jobs until their end, or as long as their statuses are referenced. New ones cost one query together."""
        new = [status for status in statuses if status.feed is not self and not status.ended]
        if new:
            from ..db.query import queries

            with self._db.read() as cx:
                self._catch_up(cx)
                found = queries.states_of(cx, [status.number for status in new])
            for status in new:
                if not status.learn(found.get(status.number, DELETED)):
                    status.feed = self
                    self._statuses[status.number] = status
        for status in statuses:
            if status.ended:
                self._tell(status)

    def look(self, at_once: bool = False) -> bool:
        """Read the changes; return whether there were any. At most once a second for a shared DB, unless `at_once`."""
        if not self._is_local and not at_once and time.monotonic() < self.due_s(0.0):
            return False
        if not self._db.changed():
            return False
        with self._db.read() as cx:
            return self._catch_up(cx)

    def _catch_up(self, cx: Any) -> bool:
        from ..db.query import queries

        self._looked_s = time.monotonic()
        news = queries.news(cx, self._mark if self._statuses else ())
        self._mark = news.mark
        entered = news.entered
        if news.has_removed:
            found = queries.states_of(cx, list(self._statuses))
            entered = [(number, found.get(number, DELETED)) for number in list(self._statuses)]
        for number, state in entered:
            status = self._statuses.get(number)
            if status is not None and status.learn(state):
                status.feed = None
                del self._statuses[number]
                self._tell(status)
        return self._catch_up(cx) if news.has_more else bool(entered)


class _Feeds(threading.local):
    """The feeds of one thread, by process and directory: a forked child opens separate ones."""

    def __init__(self) -> None:
        self.by_place: WeakValueDictionary[tuple[int, str], ChangeFeed] = WeakValueDictionary()


_feeds = _Feeds()


def feed_of(database: Database) -> ChangeFeed:
    """Return this thread's feed of that DB. It lives as long as the statuses that it follows."""
    place = (os.getpid(), database.directory)
    found = _feeds.by_place.get(place)
    if found is None:
        found = _feeds.by_place[place] = ChangeFeed(database)
    return found


class FixedSet(Feed):
    """A fixed set of jobs of one site, with one status for all. Only their numbers are kept: 100 MB for a million.

    Args:
        site: what reads the DB, a `sites.interface.SiteInterface`. poll_s: seconds between two looks.
        has_changed: tells whether it is worth reading.
        jobs: number and state of each. mark: taken, with `site.news`, before they were read.
        reached: the states in which a job is not waited for any more; the end states are always among them.
    """

    def __init__(
        self, site: Any, jobs: Iterable[tuple[int, str]], mark: Sequence[int], reached: Iterable[str] = (),
        poll_s: float = 0.1, has_changed: Callable[[], bool] = lambda: True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.status = JobStatus(self, 0)
        self.pending: set[int] = set()
        #: By state the number of jobs that are not waited for any more; DELETED is that of deleted ones.
        self.over: dict[str, int] = {}
        #: Those of them that failed, were killed or deleted, with their states.
        self.bad: list[tuple[int, str]] = []
        self._site, self._mark, self._poll_s, self._has_changed = site, mark, poll_s, has_changed
        self._reached = {DELETED, *states.END_STATES, *reached}
        self._are_bad = {DELETED, states.FAILED, states.USER_KILLED}.difference(reached)
        self._due_s = 0.0
        for number, state in jobs:
            self.pending.add(number)
            self._enter(number, state)

    def due_s(self, poll_s: float) -> float:
        """Return when the next read is due."""
        return self._due_s

    def follow(self, statuses: Sequence[JobStatus]) -> None:
        """Report at once if there is nothing to wait for."""
        self._conclude()

    def look(self) -> bool:
        """Read the news if that is due."""
        began = time.monotonic()
        if began < self._due_s:
            return False
        self._due_s = began + self._poll_s
        if not self._has_changed():
            return False
        has_moved = False
        while True:
            news = self._site.news(self._mark)
            self._mark = news["mark"]
            entered = [[number, found] for number, found in news["entered"] if number in self.pending]
            if news["has_removed"]:
                entered += self._removed()
            for number, state in entered:
                self._enter(number, state)
            has_moved = has_moved or bool(entered)
            if not news["has_more"]:
                break
        now = time.monotonic()
        self._due_s = now + max(self._poll_s, (now - began) * _PAUSE_PER_READ)
        self._conclude()
        return has_moved

    def waiting(self, statuses: Iterable[JobStatus], place: Hashable) -> Sequence[int]:
        """Return the numbers of the jobs that are waited for."""
        return list(self.pending)

    def _enter(self, number: int, state: str) -> None:
        if state not in self._reached or number not in self.pending:
            return
        self.pending.discard(number)
        self.over[state] = self.over.get(state, 0) + 1
        if state in self._are_bad:
            self.bad.append((number, state))

    def _removed(self) -> list[list[Any]]:
        """Return those that have been deleted, and any others that have entered a state unseen."""
        found: list[list[Any]] = []
        numbers = sorted(self.pending)
        for start in range(0, len(numbers), _MAX_NUMBERS):
            some = numbers[start : start + _MAX_NUMBERS]
            rows = {row["id"]: row["state"] for row in self._site.page({"id": some}, ("id", "state"), size=len(some))}
            found += [[number, rows.get(number, DELETED)] for number in some]
        return found

    def _conclude(self) -> None:
        if not self.pending and self.status.learn(states.JOB_FINISHED):
            self._tell(self.status)


# --- waiting ----------------------------------------------------------------------------------------------------------


class Waiter:
    """Wait for jobs, of any number of DBs, in one thread. A context manager.

    Args:
        poll_s: the pause between two looks at a DB on a shared file system, in seconds, at least 1.
        wake: an event that cuts a pause short.
    """

    def __init__(self, poll_s: float | None = None, wake: threading.Event | None = None) -> None:
        self._poll_s = SHARED_PAUSE_S if poll_s is None else poll_s
        self._wake = wake or threading.Event()
        self._pause_s = _MIN_PAUSE_S
        self._feeds: dict[Feed, list[JobStatus]] = {}  # with what is to be followed from the next look on
        self._reporters: dict[Feed, QuietReporter] = {}
        self._failing_since: dict[Feed, float] = {}
        self._pending: set[JobStatus] = set()
        self._ended: deque[JobStatus] = deque()

    def __enter__(self) -> Waiter:
        return self

    def __exit__(self, *_: object) -> None:
        for reporter in self._reporters.values():
            reporter.close()
        for feed in self._feeds:
            feed.listeners = [one for one in feed.listeners if one is not self._ended]

    def add(self, database: Database, statuses: Sequence[JobStatus]) -> None:
        """Wait for these jobs of that DB, too."""
        feed = feed_of(database)
        if feed not in self._reporters and not all(status.ended for status in statuses):
            # Registers this process before any of the jobs can end: a launcher without jobs leaves.
            self._reporters[feed] = QuietReporter(database)
        self.follow(feed, statuses)

    def add_set(self, jobs: FixedSet, database: Database | None, say: Callable[[str], object] | None = None) -> None:
        """Wait for these jobs, too; `database` is theirs if it is on this host, and reasons are printed by `say`."""
        if database is not None and jobs.pending:
            self._reporters[jobs] = QuietReporter(database, say)
        self.follow(jobs, [jobs.status])

    def follow(self, feed: Feed, statuses: Sequence[JobStatus]) -> None:
        """Wait for these jobs, too, which `feed` knows."""
        if feed not in self._feeds:
            self._feeds[feed] = []
            feed.listeners.append(self._ended)
        self._feeds[feed].extend(statuses)
        self._pending.update(statuses)
        self._pause_s = _MIN_PAUSE_S

    def rounds(self, timeout: float | None) -> Iterator[list[JobStatus]]:
        """Look repeatedly; yield each time the list of jobs that have ended since the last look, possibly empty.

        Stops when all have ended, or after `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            is_last = deadline is not None and time.monotonic() >= deadline
            yield self.look()
            if is_last or not self._pending:
                return
            self.pause(deadline)

    def look(self) -> list[JobStatus]:
        """Return the jobs that have ended since the last look.

        Raises:
            SiteUnreachable, DatabaseBusy: looks have failed for MAX_OUTAGE_S. Before that they are warnings.
        """
        now = time.monotonic()
        for feed, new in list(self._feeds.items()):
            try:
                if new:
                    feed.follow(new)
                    self._feeds[feed] = []
                if now < feed.due_s(self._poll_s):
                    continue
                has_moved = feed.look() or bool(new)
            except (SiteUnreachable, DatabaseBusy) as exc:
                self.tolerate(feed, exc)
                continue
            self._failing_since.pop(feed, None)
            if has_moved and feed in self._reporters:
                self._reporters[feed].has_moved()
        told = dict.fromkeys(self._ended.popleft() for _ in range(len(self._ended)))
        ended = [status for status in told if status in self._pending]
        self._pending.difference_update(ended)
        return ended

    def tolerate(self, feed: Feed, exc: BalsamError) -> None:
        """Warn that a look has failed; raise `exc` if looks have failed for MAX_OUTAGE_S."""
        since = self._failing_since.get(feed)
        if since is None:
            self._failing_since[feed] = time.monotonic()
            from ..core.settings import SettingsWarning  # which commands print as one line

            text = f"Waiting for jobs: a look at their states has failed, trying again: {exc.message}"
            warnings.warn(text, SettingsWarning, stacklevel=2)
        elif time.monotonic() - since > MAX_OUTAGE_S:
            raise exc

    def pause(self, deadline: float | None = None) -> None:
        """Sleep until the next look is due or `deadline` (monotonic clock) has come; report why nothing happens."""
        for feed, reporter in self._reporters.items():
            reporter.report(partial(feed.waiting, self._pending))
        now = time.monotonic()
        pause_s = max(self._pause_s, min((feed.due_s(self._poll_s) for feed in self._feeds), default=0.0) - now)
        self._pause_s = min(_GROWTH * self._pause_s, MAX_PAUSE_S)
        self._wake.wait(pause_s if deadline is None else max(0.0, min(pause_s, deadline - now)))


# --- registering this process, and explaining silence -----------------------------------------------------------------


class Registration:
    """This process's registration with one DB, shared by all its waits there; `registration_of` returns it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._users = 0
        self._beat_at = time.monotonic() + _HEARTBEAT_S
        self._lease: int | None = None
        self._timer: threading.Timer | None = None  # ends the registration

    def enter(self) -> None:
        """Begin a wait. One write transaction, unless this process is registered already."""
        with self._lock:
            self._users += 1
            self._stop_timer()
            if self._lease is None:
                self._lease = self._write(_open_lease)

    def beat(self) -> None:
        """Record a heartbeat when one is due, for launchers on other hosts: they see nothing else of this process."""
        from ..db.store import leases

        now = time.monotonic()
        if now < self._beat_at or self._lease is None:
            return
        with self._lock:
            self._beat_at, lease = now + _HEARTBEAT_S, self._lease
            if lease is not None:
                self._write(lambda cx, _: leases.heartbeat(cx, lease, SystemClock.now_us()))

    def leave(self) -> None:
        """End a wait. The registration ends LINGER_S later."""
        with self._lock:
            self._users -= 1
            if not self._users and self._lease is not None:
                self._stop_timer()
                self._timer = threading.Timer(LINGER_S, self._expire)
                self._timer.daemon = True
                self._timer.start()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread():  # else another wait has begun
                self._end()

    def _end(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            from ..db.store import leases

            self._write(lambda cx, _: leases.close_wait(cx, lease))

    def end_now(self) -> None:
        """End the registration with the process."""
        if self._lock.acquire(timeout=_BUSY_TIMEOUT_S):
            self._end()

    def _write(self, act: Callable[[Any, float], T]) -> T | None:
        """Write over a separate connection: any thread may call this, and the caller's may be inside a transaction."""
        from ..core.settings import Settings
        from ..db.engine import directories

        try:
            settings = Settings.load(self._directory)
            db = directories.open_database(self._directory, settings)
            db.busy_timeout_s = _BUSY_TIMEOUT_S
            try:
                with db.write() as cx:
                    return act(cx, settings.LEASE_EXPIRY_S)
            finally:
                db.close()
        except (BalsamError, OSError):
            return None
        except StopImport:  # another thread is importing an application's module; that is the one to stop
            if not isinstance(threading.current_thread(), threading.Timer):
                raise
            return None


def _open_lease(cx: Any, expiry_s: float) -> int:
    from ..core.process_table import Holder
    from ..db.store import leases

    job_id = os.environ.get("BALSAM_JOB_ID", "")
    return leases.open_wait(cx, Holder.current(), job_id, SystemClock.now_us(), expiry_s)


_registrations: dict[tuple[int, str], Registration] = {}
_registrations_lock = threading.Lock()


def registration_of(directory: str) -> Registration:
    """Return this process's registration with that DB; a forked child has a separate one."""
    with _registrations_lock:
        if not _registrations:
            atexit.register(_end_all)
        return _registrations.setdefault((os.getpid(), directory), Registration(directory))


def _end_all() -> None:
    for (process, _), registration in list(_registrations.items()):
        if process == os.getpid():
            registration.end_now()


def print_to_stderr(text: str) -> None:
    with suppress(AttributeError, OSError, ValueError):  # stderr is closed
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class QuietReporter:
    """Print why nothing happens to the jobs of one DB for which this process waits; register it there until `close`."""

    def __init__(self, database: Database, say: Callable[[str], object] | None = None) -> None:
        from ..db.store import leases

        self._say = say or print_to_stderr
        self.directory = database.directory
        self._database = database
        self._registration = registration_of(database.directory)
        self._registration.enter()
        self._reported, self._reported_at = "", 0.0
        self._heartbeats = leases.Watch()
        self.has_moved()

    def close(self) -> None:
        """End the wait."""
        self._registration.leave()

    def has_moved(self) -> None:
        """Record that something has happened."""
        self._quiet_since = time.monotonic()
        self._look_at = self._quiet_since + QUIET_S

    def report(self, pending: Callable[[Hashable], Sequence[int]]) -> None:
        """Print the reason when nothing has happened for long to the jobs of this DB that `pending` returns."""
        now = time.monotonic()
        self._registration.beat()
        if now < self._look_at:
            return
        quiet_s = now - self._quiet_since
        self._look_at = now + min(quiet_s, _MAX_QUIET_S)
        jobs = pending(self.directory)
        why = self._reason(jobs)
        if not why or (why == self._reported and now - self._reported_at < _REPEAT_S):
            return
        self._reported, self._reported_at = why, now
        what = f"{len(jobs)} jobs" if len(jobs) > 1 else "a job"
        self._say(f"balsam: waiting for {what} of {self.directory} for {quiet_s:.0f} s: {why}")

    def _reason(self, jobs: Sequence[int]) -> str:
        from ..core.settings import Settings
        from ..db.query.reasons import why_nothing_happens
        from ..service.surroundings import surroundings

        if not jobs:
            return ""
        try:
            settings = Settings.load(self.directory)
            with self._database.read() as cx:
                around = surroundings(cx, self._database, settings, self._heartbeats)
                return why_nothing_happens(cx, jobs, around)
        except BalsamError:  # the wait itself will raise it
            return ""
