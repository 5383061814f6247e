"""Waiting for jobs in Python: `FutureTask`, `wait`, `as_completed`, and `BalsamExecutor` (see `executor`).

Nobody asks the DB for the states of all jobs again and again. A `Watch` looks for a change of the DB, which costs a few
microseconds, and where there is one it reads the events since the last look.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary, finalize

from ..core import states
from ..core.errors import InputError, TaskFailed, UnknownJob, WaitTimeout
from . import waits
from .waits import Waiting

if TYPE_CHECKING:
    from ..db.engine.connection import Database
    from ..db.models import BalsamJob
    from .executor import BalsamExecutor

__all__ = ["ALL_COMPLETED", "ANY_COMPLETED", "BalsamExecutor", "FutureTask", "WaitResult", "as_completed", "wait"]

ANY_COMPLETED, ALL_COMPLETED = "ANY_COMPLETED", "ALL_COMPLETED"

#: The pauses between two looks, in seconds: the first, and what they grow to by that factor. A look takes 10 µs, but a
#: quarter of a millisecond after a sleep, when nothing is in the caches any more: 33 in a second are 0.7 % of a core.
SHORTEST_S, _LONGEST_S, GROWTH = 0.01, 0.03, 1.3
#: On a shared file system a look takes the file from all others for a moment.
_SHARED_S = 1.0

#: The "state" of a job that was deleted.
GONE = ""


# --- watching a DB ----------------------------------------------------------------------------------------------------


class Fate:
    """What is known of a job. Its end is final here, also if the user lets the job run once more. `fate_of` makes one."""

    __slots__ = ("__weakref__", "_lock", "number", "state", "watch")

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = states.CREATED
        self.watch: Watch | None = None  # the one that follows it, which so lives as long as somebody wants to know
        self._lock = threading.Lock()

    def learn(self, state: str) -> bool:
        """Take that state, which some thread read a moment ago, unless another one saw the end since; whether it ended."""
        with self._lock:
            if not self.ended:
                self.state = state
            return self.ended

    @property
    def ended(self) -> bool:
        """Whether the job is at an end state, or deleted."""
        return self.state in states.END_STATES or self.state == GONE


#: (DB, job) -> what is known of it, so that all who want to know share it.
_fates: WeakValueDictionary[tuple[str, int], Fate] = WeakValueDictionary()
_fates_lock = threading.Lock()


def fate_of(database: Database, number: int) -> Fate:
    """That of a job of that DB; a new one if the job has ended before, because it may have been started again."""
    place = (database.directory, number)
    with _fates_lock:
        found = _fates.get(place)
        if found is None or found.ended:
            found = _fates[place] = Fate(number)
    return found


class Watch:
    """What happens to some jobs of one DB. For one thread; it sees what other threads of this process write as well."""

    def __init__(self, database: Database) -> None:
        from ..db.engine import directories

        self._is_local = database.access == "local"
        # Of its own: `changed` has one memory for each Database, and is blind for what its own connection writes.
        self._db = directories.open_database(database.directory) if self._is_local else database
        self._fates: WeakValueDictionary[int, Fate] = WeakValueDictionary()
        self._mark = (0, 0)
        self._look_at = 0.0
        self.ended: list[int] = []  # the jobs that ended while they were followed, in order; only ever grows
        if self._is_local:
            finalize(self, self._db.close)

    @property
    def longest_pause_s(self) -> float:
        """How long to sleep between two looks at most."""
        return _LONGEST_S if self._is_local else _SHARED_S

    def follow(self, fates: Iterable[Fate]) -> None:
        """Follow these jobs until their end, or as long as somebody holds the Fate. New ones cost one query together."""
        new = [fate for fate in fates if fate.watch is not self and not fate.ended]
        if not new:
            return
        from ..db.query import queries

        with self._db.read() as cx:
            self._catch_up(cx)
            found = queries.states_of(cx, [fate.number for fate in new])
        for fate in new:
            if not fate.learn(found.get(fate.number, GONE)):
                fate.watch = self
                self._fates[fate.number] = fate

    def look(self, at_once: bool = False) -> bool:
        """Learn what has happened; whether anything has. Once in a second at most on a shared file system, or `at_once`."""
        if not (self._is_local or at_once):
            now = time.monotonic()
            if now < self._look_at:
                return False
            self._look_at = now + _SHARED_S
        if not self._db.changed():
            return False
        with self._db.read() as cx:
            return self._catch_up(cx)

    def _catch_up(self, cx: Any) -> bool:
        from ..db.query import queries

        before, self._mark = self._mark, queries.mark(cx)
        if self._mark == before or not self._fates:
            return False
        if self._mark[1] != before[1]:
            # Jobs were deleted, perhaps some of these; and the numbers of events may have been used anew.
            found = queries.states_of(cx, list(self._fates))
            news = [(number, found.get(number, GONE)) for number in list(self._fates)]
        else:
            news = queries.entered_since(cx, before[0])
        for number, state in news:
            self._take(number, state)
        return bool(news)

    def _take(self, number: int, state: str) -> None:
        fate = self._fates.get(number)
        if fate is None:
            return
        if fate.learn(state):
            fate.watch = None
            del self._fates[number]
            self.ended.append(number)


class _Watches(threading.local):
    """The watches of one thread, by DB; a forked child makes its own."""

    def __init__(self) -> None:
        self.by_place: WeakValueDictionary[tuple[int, str], Watch] = WeakValueDictionary()


_watches = _Watches()


def watch_of(database: Database) -> Watch:
    """This thread's watch of that DB. It is kept by the fates that it follows."""
    place = (os.getpid(), database.directory)
    found = _watches.by_place.get(place)
    if found is None:
        found = _watches.by_place[place] = Watch(database)
    return found


# --- one job ----------------------------------------------------------------------------------------------------------


class FutureTask:
    """The future result of a job: that of `done_callback(job, *args, **kwargs)`, called where `result` is first asked for.

    Args:
        job: a BalsamJob that is in the DB.
        done_callback: without one the result of a finished job is None.
        fail_callback: called likewise for a job that FAILED; without one `result` raises TaskFailed.

    Raises:
        InputError: `job` is no BalsamJob. UnknownJob: it was never saved.
    """

    def __init__(
        self,
        job: BalsamJob,
        done_callback: Callable[..., Any] | None = None,
        fail_callback: Callable[..., Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        from ..db.models import BalsamJob

        if not isinstance(job, BalsamJob):
            raise InputError(f"A FutureTask is made of a BalsamJob, not of {job!r}")
        self.job = job
        self._database = job._home
        self._fate = fate_of(job._home, job._number())
        self._callbacks = (done_callback, fail_callback)
        self._arguments = (args, kwargs)
        self._lock = threading.RLock()
        self._outcome: tuple[Any, BaseException | None] | None = None

    def _watch(self) -> Watch:
        watch = watch_of(self._database)
        watch.follow([self._fate])
        return watch

    @property
    def state(self) -> str:
        """The job's state now, on a shared file system within the last second; "" if the job was deleted. Its end is final."""
        if not self._fate.ended:
            _release(self._database)
            self._watch().look()
        return self._fate.state

    @property
    def done(self) -> bool:
        """Whether the job is JOB_FINISHED."""
        return self.state == states.JOB_FINISHED

    @property
    def failed(self) -> bool:
        """Whether the job FAILED or was deleted."""
        return self.state in (states.FAILED, GONE)

    @property
    def cancelled(self) -> bool:
        """Whether the job was killed: by `cancel`, or by whomever."""
        return self.state == states.USER_KILLED

    @property
    def active(self) -> bool:
        """Whether the job is none of these yet."""
        return self.state != GONE and not self._fate.ended

    def result(self, timeout: float | None = None) -> Any:
        """Wait until the job is over; what the callback returned, which is called once. None if it was cancelled.

        Args:
            timeout: in seconds; None: as long as it takes.

        Raises:
            WaitTimeout: (a TimeoutError) the job is not over yet. TaskFailed: it failed, and there is no `fail_callback`.
            What the callback raised: each time.
        """
        if self.active:
            try:
                wait([self], timeout)
            except WaitTimeout as exc:
                exc.message = f"Job {self.job.cute_id} is still {self._fate.state} after {timeout:g} s."
                raise
        with self._lock:
            if self._outcome is None:
                self._outcome = self._conclude()
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def _conclude(self) -> tuple[Any, BaseException | None]:
        """The result, or what `result` is to raise."""
        if self._fate.state == states.USER_KILLED:
            return None, None
        is_done = self._fate.state == states.JOB_FINISHED
        callback = self._callbacks[0 if is_done else 1]
        if callback is None:
            return None, None if is_done else TaskFailed(why_failed(self._database, self._fate.number, self.job.cute_id))
        try:
            self.job._follow()
        except UnknownJob:  # deleted: the callback gets what was known of it
            pass
        args, kwargs = self._arguments
        try:
            return callback(self.job, *args, **kwargs), None
        except Exception as exc:  # noqa: BLE001  # it is the user's, and comes out of `result`
            return None, exc

    def cancel(self) -> bool:
        """Kill the job and all jobs below it; whether there was anything to kill."""
        from . import dag

        try:
            killed = dag.kill(self.job, recursive=True)
        except UnknownJob:
            return False
        self._watch().look(at_once=True)
        return killed > 0

    def __repr__(self) -> str:
        return f"<FutureTask {self.job.cute_id} {self._fate.state or 'deleted'}>"


def _release(database: Database) -> None:
    """Let the jobs that this process holds back start, because it waits for jobs."""
    from ..db.store import held_back

    held_back.release(database)


def why_failed(database: Database, number: int, name: str) -> str:
    """What the job's history says last. Where it failed with a parent also what the parent's says, down to the first one."""
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


# --- many jobs --------------------------------------------------------------------------------------------------------


class WaitResult(NamedTuple):
    """Futures sorted by what became of them, each list in the order in which they were given."""

    active: list[FutureTask]
    done: list[FutureTask]
    failed: list[FutureTask]
    cancelled: list[FutureTask]


def _sorted(tasks: Iterable[FutureTask]) -> WaitResult:
    """By what is known; without looking."""
    result = WaitResult([], [], [], [])
    kinds = {states.JOB_FINISHED: result.done, states.USER_KILLED: result.cancelled}
    kinds.update({states.FAILED: result.failed, GONE: result.failed})
    for task in tasks:
        kinds.get(task._fate.state, result.active).append(task)
    return result


def wait(
    futures: Iterable[FutureTask],
    timeout: float | None = None,
    return_when: str = ANY_COMPLETED,
    poll_period: float | None = None,
) -> WaitResult:
    """Wait until any of the futures, or all of them, are completed: done, failed or cancelled. Callbacks are not called.

    Returns at once if there are none, or, with ANY_COMPLETED, if one was completed before. A job that ends is noticed within
    50 ms on a local file system, within a second or so on a shared one.

    Args:
        timeout: in seconds; None: as long as it takes.
        poll_period: the longest pause between two looks at the DB in seconds, if it is to be another one.

    Raises:
        WaitTimeout: (a TimeoutError) with the WaitResult until then as `partial`. InputError: `return_when` is neither.
    """
    if return_when not in (ANY_COMPLETED, ALL_COMPLETED):
        raise InputError(f"return_when must be {ANY_COMPLETED} or {ALL_COMPLETED}, not {return_when!r}")
    tasks = list(futures)
    pending = _Pending(tasks, poll_period)
    enough = 1 if return_when == ANY_COMPLETED else len(tasks)
    completed = len(tasks) - len(pending)
    for ended in pending.ends(timeout) if completed < min(enough, len(tasks)) else ():
        completed += len(ended)
        if completed >= enough:
            break
    result = _sorted(tasks)
    if completed < min(enough, len(tasks)):
        raise _overdue(tasks, timeout, result)
    return result


def as_completed(futures: Iterable[FutureTask], timeout: float | None = None) -> Iterator[FutureTask]:
    """Each of the futures, as soon as it is completed: done, failed or cancelled.

    Raises:
        WaitTimeout: (a TimeoutError) some are not completed `timeout` seconds after the first was asked for.
    """
    tasks = list(dict.fromkeys(futures))
    pending = _Pending(tasks, None)
    yield from [task for task in tasks if task._fate.ended and task not in pending]
    for ended in pending.ends(timeout):
        yield from ended
    if len(pending):
        raise _overdue(tasks, timeout, _sorted(tasks))


def _overdue(tasks: list[FutureTask], timeout: float | None, result: WaitResult) -> WaitTimeout:
    exc = WaitTimeout(f"{len(result.active)} of {len(tasks)} jobs were not completed after {timeout or 0:g} s.")
    exc.partial = result
    return exc


class _Pending:
    """Futures that are not completed yet."""

    def __init__(self, tasks: Iterable[FutureTask], poll_period: float | None) -> None:
        self._poll_period = poll_period
        self._watches: dict[str, Watch] = {}
        self._databases: dict[str, Database] = {}
        self._seen: dict[str, int] = {}  # how many of the ends that a watch has noted were handed out
        self._by_job: dict[tuple[str, int], list[FutureTask]] = {}
        self._number = 0
        self._follow([task for task in tasks if not task._fate.ended])

    def _follow(self, tasks: list[FutureTask]) -> None:
        fates: dict[Database, list[Fate]] = {}
        for task in tasks:
            fates.setdefault(task._database, []).append(task._fate)
        for database, of_it in fates.items():
            waits.touch(database.directory)  # before any job can end: a launcher without jobs leaves
            _release(database)
            watch = self._watches.setdefault(database.directory, watch_of(database))
            self._databases[database.directory] = database
            watch.follow(of_it)
            watch.look()
            self._seen[database.directory] = len(watch.ended)
        for task in tasks:
            if not task._fate.ended:
                self._by_job.setdefault((task._database.directory, task._fate.number), []).append(task)
                self._number += 1

    def __len__(self) -> int:
        return self._number

    def __contains__(self, task: FutureTask) -> bool:
        return task in self._by_job.get((task._database.directory, task._fate.number), ())

    def ends(self, timeout: float | None) -> Iterator[list[FutureTask]]:
        """Those that are completed by now, again and again; ends when all are, or after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        longest = self._poll_period
        if longest is None:
            longest = max((watch.longest_pause_s for watch in self._watches.values()), default=0.0)
        pause = min(SHORTEST_S, longest)
        waitings: dict[str, Waiting] = {}
        try:
            yield from self._ends(deadline, longest, pause, waitings)
        finally:
            for waiting in waitings.values():
                waiting.close()

    def _ends(
        self, deadline: float | None, longest: float, pause: float, waitings: dict[str, Waiting]
    ) -> Iterator[list[FutureTask]]:
        while self._number:
            overdue = deadline is not None and time.monotonic() >= deadline
            moved = {directory: watch.look() for directory, watch in self._watches.items()}
            ended = list(self._ended())
            self._number -= len(ended)
            if ended:
                yield ended
            if overdue:
                return
            if self._number:
                if not waitings:
                    waitings.update((directory, Waiting(database)) for directory, database in self._databases.items())
                for directory, waiting in waitings.items():
                    waiting.note(moved[directory], partial(self._unfinished, directory))
                time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - time.monotonic())))
                pause = min(GROWTH * pause, longest)

    def _unfinished(self, directory: str) -> list[int]:
        return [number for place, number in self._by_job if place == directory]

    def _ended(self) -> Iterator[FutureTask]:
        for place, watch in self._watches.items():
            while self._seen[place] < len(watch.ended):
                number = watch.ended[self._seen[place]]
                self._seen[place] += 1
                yield from self._by_job.pop((place, number), ())


def __getattr__(name: str) -> Any:
    if name == "BalsamExecutor":  # it imports much that waiting does not need
        from .executor import BalsamExecutor

        return BalsamExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
