"""Wait for jobs in Python: `FutureTask`, `wait`, `as_completed`, and `BalsamExecutor` (see `executor`)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core import states
from ..core.errors import InputError, TaskFailed, UnknownJob, WaitTimeout
from ..core.notebook import progress_bar
from .waiter import DELETED, ChangeFeed, JobStatus, Waiter, feed_of, status_of, why_failed

if TYPE_CHECKING:
    from ..db.engine.connection import Database
    from ..db.models import BalsamJob
    from .executor import BalsamExecutor

__all__ = ["ALL_COMPLETED", "ANY_COMPLETED", "BalsamExecutor", "FutureTask", "WaitResult", "as_completed", "wait"]

ANY_COMPLETED, ALL_COMPLETED = "ANY_COMPLETED", "ALL_COMPLETED"


# --- one job ----------------------------------------------------------------------------------------------------------


class FutureTask:
    """The future result of a job: what `done_callback(job, *args, **kwargs)` returns, which the first `result` calls.

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
        self._database = job._db
        self._status = status_of(job._db, job._number())
        self._callbacks = (done_callback, fail_callback)
        self._arguments = (args, kwargs)
        self._lock = threading.RLock()
        self._outcome: tuple[Any, BaseException | None] | None = None

    def _feed(self) -> ChangeFeed:
        feed = feed_of(self._database)
        feed.follow([self._status])
        return feed

    @property
    def state(self) -> str:
        """The job's state now (on a shared file system within the last second), or "" if it was deleted. An end is final."""
        if not self._status.ended:
            _release(self._database)
            self._feed().look()
        return self._status.state

    @property
    def done(self) -> bool:
        """Whether the job is JOB_FINISHED."""
        return self.state == states.JOB_FINISHED

    @property
    def failed(self) -> bool:
        """Whether the job FAILED or was deleted."""
        return self.state in (states.FAILED, DELETED)

    @property
    def cancelled(self) -> bool:
        """Whether the job was killed, by `cancel` or otherwise."""
        return self.state == states.USER_KILLED

    @property
    def active(self) -> bool:
        """Whether the job is none of these yet."""
        return self.state != DELETED and not self._status.ended

    def result(self, timeout: float | None = None) -> Any:
        """Wait until the job has ended, and return what its callback, called once, has returned; None if it was cancelled.

        Args:
            timeout: in seconds; None: no limit.

        Raises:
            WaitTimeout: (a TimeoutError) the job has not ended. TaskFailed: it failed, and there is no `fail_callback`.
            What the callback raised: each time.
        """
        if self.active:
            try:
                wait([self], timeout)
            except WaitTimeout as exc:
                exc.message = f"Job {self.job.cute_id} is still {self._status.state} after {timeout:g} s."
                raise
        with self._lock:
            if self._outcome is None:
                self._outcome = self._conclude()
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def _conclude(self) -> tuple[Any, BaseException | None]:
        """Return the result and what `result` is to raise."""
        if self._status.state == states.USER_KILLED:
            return None, None
        is_done = self._status.state == states.JOB_FINISHED
        callback = self._callbacks[0 if is_done else 1]
        if callback is None:
            return None, None if is_done else TaskFailed(why_failed(self._database, self._status.number, self.job.cute_id))
        try:
            self.job._follow()
        except UnknownJob:  # deleted: the callback gets what was known of it
            pass
        args, kwargs = self._arguments
        try:
            return callback(self.job, *args, **kwargs), None
        except Exception as exc:  # noqa: BLE001  # the user's; `result` raises it
            return None, exc

    def cancel(self) -> bool:
        """Kill the job and all jobs below it; return whether one of them had not ended."""
        from . import dag

        try:
            killed = dag.kill(self.job, recursive=True)
        except UnknownJob:
            return False
        self._feed().look(at_once=True)
        return killed > 0

    def _repr_html_(self) -> str:
        from ..core.notebook import html_form

        shown = {"job": self.job.cute_id, "state": self.state or "deleted", "output": self.job._output()}
        return html_form("FutureTask", shown)

    def __repr__(self) -> str:
        return f"<FutureTask {self.job.cute_id} {self._status.state or 'deleted'}>"


def _release(database: Database, waited_for: Iterable[JobStatus] = ()) -> None:
    """Let the jobs that this process holds back start, because it waits for jobs. Raise StateError if one of them cannot."""
    from ..db.store import held_back, journal

    journal.refuse_wait(database, (status.number for status in waited_for))
    held_back.release(database)


# --- many jobs --------------------------------------------------------------------------------------------------------


class WaitResult(NamedTuple):
    """Futures by the state of their jobs, each list in the order in which they were given."""

    active: list[FutureTask]
    done: list[FutureTask]
    failed: list[FutureTask]
    cancelled: list[FutureTask]


def _sorted(tasks: Iterable[FutureTask]) -> WaitResult:
    """Sort futures by what is known, without a look at the DB."""
    result = WaitResult([], [], [], [])
    kinds = {states.JOB_FINISHED: result.done, states.USER_KILLED: result.cancelled}
    kinds.update({states.FAILED: result.failed, DELETED: result.failed})
    for task in tasks:
        kinds.get(task._status.state, result.active).append(task)
    return result


def wait(
    futures: Iterable[FutureTask],
    timeout: float | None = None,
    return_when: str = ANY_COMPLETED,
    poll_period: float | None = None,
    progress: bool | None = None,
) -> WaitResult:
    """Wait until any of the futures, or all of them, are completed: done, failed or cancelled. Callbacks are not called.

    Returns at once if there are none, or, with ANY_COMPLETED, if one was completed before. A job that ends is noticed within
    50 ms on a local file system, within about a second on a shared one.

    Args:
        timeout: in seconds; None: no limit.
        poll_period: the pause between two looks at a DB on a shared file system, in seconds, at least 1.
        progress: show a progress bar of tqdm; None: in a notebook, if tqdm is installed.

    Raises:
        WaitTimeout: (a TimeoutError) with the current WaitResult as `partial`. InputError: `return_when` is neither.
    """
    if return_when not in (ANY_COMPLETED, ALL_COMPLETED):
        raise InputError(f"return_when must be {ANY_COMPLETED} or {ALL_COMPLETED}, not {return_when!r}")
    tasks = list(futures)
    enough = min(len(tasks), 1 if return_when == ANY_COMPLETED else len(tasks))
    completed = 0
    for ended in _rounds(tasks, timeout, poll_period, progress):
        completed += len(ended)
        if completed >= enough:
            break
    result = _sorted(tasks)
    if completed < enough:
        raise _overdue(tasks, timeout, result)
    return result


def as_completed(
    futures: Iterable[FutureTask], timeout: float | None = None, progress: bool | None = None
) -> Iterator[FutureTask]:
    """Yield each of the futures as soon as it is completed: done, failed or cancelled. `progress` is as in `wait`.

    Raises:
        WaitTimeout: (a TimeoutError) some are not completed `timeout` seconds after the first was asked for.
    """
    tasks = list(dict.fromkeys(futures))
    completed = 0
    for ended in _rounds(tasks, timeout, progress=progress):
        completed += len(ended)
        yield from ended
    if completed < len(tasks):
        raise _overdue(tasks, timeout, _sorted(tasks))


def _overdue(tasks: list[FutureTask], timeout: float | None, result: WaitResult) -> WaitTimeout:
    exc = WaitTimeout(f"{len(result.active)} of {len(tasks)} jobs were not completed after {timeout or 0:g} s.")
    exc.partial = result
    return exc


def _rounds(
    tasks: list[FutureTask], timeout: float | None, poll_s: float | None = None, progress: bool | None = None
) -> Iterator[list[FutureTask]]:
    """Yield the completed ones, look after look: first those that were completed before; see `Waiter.rounds`."""
    by_status: dict[JobStatus, list[FutureTask]] = {}
    by_database: dict[Database, list[JobStatus]] = {}
    for task in tasks:
        if task._status not in by_status:
            by_database.setdefault(task._database, []).append(task._status)
        by_status.setdefault(task._status, []).append(task)
    with progress_bar(len(tasks), progress, "job") as advance, Waiter(poll_s) as waiter:
        for database, statuses in by_database.items():
            waiter.add(database, statuses)
            _release(database, statuses)
        for ended in waiter.rounds(timeout):
            completed = [task for status in ended for task in by_status[status]]
            advance(len(completed))
            yield completed


def __getattr__(name: str) -> Any:
    if name == "BalsamExecutor":  # it imports much that waiting does not need
        from .executor import BalsamExecutor

        return BalsamExecutor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
