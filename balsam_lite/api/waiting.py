"""Waiting for jobs, and their results."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core import states
from ..core.errors import BalsamError, DatabaseBusy, InvalidSpec, RemoteError, SiteUnreachable, TaskFailed
from ..launcher.waits import Waiting
from ..pyapps import run_call
from ..sites.interface import Desk, Row
from ..sites.local import LocalDesk
from . import site_handle
from .site_handle import Question, SiteHandle

if TYPE_CHECKING:
    from ..db.engine.connection import Database
    from .jobs import Job

ALL_COMPLETED, FIRST_COMPLETED = "ALL_COMPLETED", "FIRST_COMPLETED"

#: The pauses between two looks: the first, in seconds, and by what they grow. A look at few jobs takes a quarter of a ms.
_SHORTEST_S, _GROWTH = 0.02, 1.5
#: A pause is so many times as long as the look before it at least, or else a hundred thousand jobs would keep a core busy.
_LAZINESS = 5
#: Looks may fail for so many seconds before waiting does.
_PATIENCE_S = 60.0


class NoResult(BalsamError):
    """The job is not over yet."""


class WaitResult(NamedTuple):
    """Jobs that are over, and those that are not, each in the order in which they were given."""

    done: list[Job]
    not_done: list[Job]


# --- one job ----------------------------------------------------------------------------------------------------------


def result_nowait(job: Job) -> Any:
    """See `Job.result_nowait`."""
    if not job.done():
        raise NoResult(f"{job._title()} is still {job.state}.")
    return _result(job)


def result(job: Job, timeout: float | None, poll_interval: float) -> Any:
    """See `Job.result`."""
    if not wait([job], timeout, poll_interval, ALL_COMPLETED).done:
        from concurrent.futures import TimeoutError as Overdue

        raise Overdue(f"Job is still {job.state} after {timeout or 0:g} sec timeout")
    if not job.done():  # it was made to run once more meanwhile
        return result(job, timeout, poll_interval)
    return _result(job)


def _result(job: Job) -> Any:
    """Of a job that is over."""
    found = job._site.desk.result(job._row["id"])
    is_good = found["state"] == states.JOB_FINISHED
    if found.get("outcome") is None:
        if is_good and found["is_function"]:
            raise RemoteError(f"{job._title()} left no result: its program ended with exit code 0 before its function did.")
        if is_good:
            return None
        raise TaskFailed(f"{job._title()} is {found['state']}: {found.get('message') or 'no reason is known'}")
    outcome = _read_outcome(found["outcome"])
    if outcome.good != is_good:  # the function did well and a hook did not; or it is an earlier attempt's
        raise TaskFailed(f"{job._title()} is {found['state']}: {found.get('message') or outcome.trace or 'no reason is known'}")
    value = run_call.value_of("function", outcome)
    if is_good:
        return value
    raise value from RemoteError(outcome.trace)


def _read_outcome(text: str) -> Any:
    import base64
    import pickle

    try:
        return run_call.Outcome(*pickle.loads(base64.b64decode(text)))
    except Exception as exc:
        raise RemoteError(f"The file with the job's result cannot be read: {exc!r}") from exc


# --- many jobs --------------------------------------------------------------------------------------------------------


def wait(jobs: Sequence[Job], timeout: float | None, poll_interval: float, return_when: str) -> WaitResult:
    """See `JobManager.wait`."""
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise InvalidSpec(f"return_when must be {ALL_COMPLETED} or {FIRST_COMPLETED}, not {return_when!r}")
    pending = _Pending(jobs)
    for _ in pending.ends(timeout, poll_interval):
        if return_when == FIRST_COMPLETED:
            break
    over = pending.over
    return WaitResult([job for job in jobs if _place(job) in over], [job for job in jobs if _place(job) not in over])


def as_completed(jobs: Sequence[Job], timeout: float | None, poll_interval: float) -> Iterator[Job]:
    """See `JobManager.as_completed`."""
    pending = _Pending(jobs)
    for ended in pending.ends(timeout, poll_interval):
        yield from ended
    if len(pending):
        from concurrent.futures import TimeoutError as Overdue

        raise Overdue(f"{len(pending)} Jobs are still pending after {timeout or 0:g} sec timeout.")


def bulk_refresh(jobs: Sequence[Job]) -> None:
    """See `JobManager.bulk_refresh`."""
    wanted = _by_place(jobs)
    handles = list(dict.fromkeys(handle for handle, _ in wanted))
    found = {}
    for handle in handles:
        numbers = [number for at, number in wanted if at is handle]
        found.update({(handle, row["id"]): row for row in handle.desk.select("job", {"id": numbers})})
    missing = [number for handle, number in wanted if (handle, number) not in found]
    if missing:
        listed = ", ".join(map(str, missing[:5])) + (", …" if len(missing) > 5 else "")
        raise type(jobs[0]).DoesNotExist(f"{len(missing)} of the jobs are not in the DB any more: {listed}")
    for place, of_place in wanted.items():
        for job in of_place:
            job._renewed(dict(found[place]))


def _place(job: Job) -> tuple[SiteHandle, int]:
    return job._site, job._row["id"]


def _by_place(jobs: Sequence[Job]) -> dict[tuple[SiteHandle, int], list[Job]]:
    """Jobs by site and number; the same one may be there as several objects."""
    found: dict[tuple[SiteHandle, int], list[Job]] = {}
    for job in jobs:
        found.setdefault(_place(job), []).append(job)
    return found


def _states(desk: Desk, where: dict[str, Any]) -> list[Row]:
    """Number and state of those of some jobs that are there."""
    return desk.page(where, ("id", "state"), 0, len(where["id"]))


class _Pending:
    """Jobs that are not known to be over."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = _by_place(jobs)
        self._failing_since: float | None = None
        self.over: set[tuple[SiteHandle, int]] = set()

    def __len__(self) -> int:
        return len(self._jobs)

    def ends(self, timeout: float | None, poll_interval: float) -> Iterator[list[Job]]:
        """Those that are over by now, again and again; ends when all are, or after `timeout` seconds."""
        waitings: dict[SiteHandle, Waiting] = {}
        try:
            yield from self._ends(timeout, poll_interval, waitings)
        finally:
            for waiting in waitings.values():
                waiting.close()

    def _ends(self, timeout: float | None, poll_interval: float, waitings: dict[SiteHandle, Waiting]) -> Iterator[list[Job]]:
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = min(_SHORTEST_S, poll_interval)
        waitings.update((handle, Waiting(database)) for handle, database in self._local_sites())
        while self._jobs:
            began = time.monotonic()
            is_last = deadline is not None and began >= deadline
            ended = self._look()
            looked_s = time.monotonic() - began
            if ended:
                yield ended
            if is_last:
                return
            if self._jobs:
                for handle, waiting in waitings.items():
                    waiting.note(bool(ended), partial(self._numbers, handle))
                rest = max(pause, looked_s * _LAZINESS)
                time.sleep(rest if deadline is None else max(0.0, min(rest, deadline - time.monotonic())))
                pause = min(_GROWTH * pause, poll_interval)

    def _local_sites(self) -> Iterator[tuple[SiteHandle, Database]]:
        """Yield the sites of this host that have some of the jobs."""
        for handle in {handle for handle, _ in self._jobs}:
            with suppress(BalsamError):  # reading its jobs will raise it again
                desk = handle.desk
                if isinstance(desk, LocalDesk):
                    yield handle, desk.database

    def _numbers(self, handle: SiteHandle) -> list[int]:
        return [number for at, number in self._jobs if at is handle]

    def _look(self) -> list[Job]:
        """Those that have ended since the last look, as they are now."""
        numbers: dict[SiteHandle, list[int]] = {}
        for handle, number in self._jobs:
            numbers.setdefault(handle, []).append(number)
        places: list[tuple[SiteHandle, int]] = []
        try:
            for handle, rows in site_handle.ask(
                [Question(handle, {"id": of_site}) for handle, of_site in numbers.items()], _states
            ):
                found = {row["id"]: row["state"] for row in rows}
                places += self._ended(handle, found)
                places += [
                    (handle, number) for number in numbers[handle] if number not in found
                ]  # deleted: nothing will follow
        except (SiteUnreachable, DatabaseBusy) as exc:
            self._bear(exc)
            return []
        self._failing_since = None
        self.over.update(places)
        return [job for place in places for job in self._jobs.pop(place, ())]

    def _bear(self, exc: BalsamError) -> None:
        """Warn once, and raise it when it has lasted too long."""
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            warnings.warn(f"The jobs could not be looked at, once more soon: {exc.message}", stacklevel=2)
        elif time.monotonic() - self._failing_since > _PATIENCE_S:
            raise exc

    def _ended(self, handle: SiteHandle, found: dict[int, str]) -> list[tuple[SiteHandle, int]]:
        """Those of a site's jobs that are over, and read anew; `found` is the state of each that is there."""
        ended = [number for number, state in found.items() if state in states.END_STATES]
        places = []
        # One that was made to run once more since then is not over.
        for row in handle.desk.select("job", {"id": ended, "state": list(states.END_STATES)}) if ended else ():
            places.append((handle, row["id"]))
            for job in self._jobs.get(places[-1], ()):
                job._renewed(dict(row))
        return places
