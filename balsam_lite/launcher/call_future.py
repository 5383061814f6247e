"""The future of a call of a `BalsamExecutor`, and how a call is pickled with futures among its arguments."""

from __future__ import annotations

import concurrent.futures
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..core import field_specs, pickling, states
from ..core.errors import InputError
from ..db import models
from ..db.engine.connection import Database
from ..pyapps import result_file, run_call
from .waiter import JobStatus


class Task(NamedTuple):
    """A call that is being added."""

    name: str
    args: str = ""  # of an application
    parents: Sequence[BalsamFuture] = ()
    call: bytes | str = b""  # see `run_call.CallPayload`
    context: run_call.CallContext | None = None
    job_id: str | None = None  # if it is not to be drawn
    key: str | None = None  # see `call_keys`


class BalsamFuture(concurrent.futures.Future):  # type: ignore[type-arg]
    """The future of one call. `number` is that of its job; `path` the file where an application's output or, if it is large or
    needed by a program, the result of a call will be. Both wait until the job is added, which takes milliseconds.
    """

    def __init__(self, task: Task, executor: Any) -> None:
        super().__init__()
        self._task = task
        self._executor = executor
        self._status: JobStatus = JobStatus("", 0)  # until it is in the DB
        self._number = 0
        self._is_shared = False  # the job was added by another future, perhaps of another process

    @property
    def number(self) -> int:
        """The number of the job. Raises what adding it has raised."""
        if not self._number:
            self._executor._await_number(self)
            if not self._number:
                error = None if self.cancelled() else self.exception()
                raise error or concurrent.futures.CancelledError
        return self._number

    @property
    def path(self) -> str:
        """The path of the file. Raises as `job`."""
        job = self.job
        if self._executor._application is None:
            return os.path.join(job.working_directory, result_file.file_name(job.job_id))
        return os.path.join(job.working_directory, field_specs.output_name(job.name))

    @property
    def job(self) -> models.BalsamJob:
        """The BalsamJob as it is now. Raises UnknownJob: it was deleted."""
        found: models.BalsamJob = models.BalsamJob.objects.using(self._executor.database).get(id=self.number)
        return found

    def running(self) -> bool:
        """Return whether the job runs, or has run and a step after it has not ended."""
        return not self.done() and self._status.state in (states.RUNNING, *states.UNSETTLED_STATES)

    def cancel(self) -> bool:
        """Kill the job if it has not started; return whether it is cancelled. Jobs that wait for it fail."""
        return self.cancelled() or bool(self._executor._cancel([self]))

    def _repr_html_(self) -> str:
        from ..core.notebook import html_form

        error = self.exception() if self.done() and not self.cancelled() else None
        state = states.USER_KILLED if self.cancelled() else self._status.state or "deleted"
        shown = {"job": self.number, "state": state, "error": error}
        return html_form("BalsamFuture", {name: value for name, value in shown.items() if value is not None})

    def check_database(self, database: Database) -> None:
        """Raise InputError if the future's job is in another DB."""
        if self._executor.database.directory != database.directory:
            raise InputError(f"The future of job #{self.number} is in another DB, {self._executor.database.directory}.")

    def __reduce__(self) -> Any:
        """Make the future a parent of the call that is being pickled; there it is unpickled as its result."""
        if _pickling.database is None:
            raise TypeError("a BalsamFuture can be sent only in the arguments of a call, which gets its result")
        self.check_database(_pickling.database)
        return run_call.result_of_parent, (_pickling.parents.setdefault(self, len(_pickling.parents)),)


class _Pickling(threading.local):
    """The call that this thread is pickling."""

    database: Database | None = None  # of its executor
    parents: dict[BalsamFuture, int] = {}  # the futures in its arguments, with their index


_pickling = _Pickling()


def pickled_with_parents(database: Database, fn: Any, call: tuple[Any, ...]) -> tuple[bytes, list[BalsamFuture]]:
    """Return a call as bytes, and the futures in its arguments. Raises as `pickled`."""
    _pickling.database, _pickling.parents = database, {}
    try:
        return pickled(fn, call), list(_pickling.parents)
    finally:
        _pickling.database = None


def pickled(fn: Any, call: tuple[Any, ...]) -> bytes:
    """Return a function with its arguments as bytes.

    Raises:
        InputError: it cannot be sent; with the part that cannot.
    """
    try:
        return pickling.dumps(call)
    except Exception as exc:
        try:
            pickling.dumps(fn)
        except Exception:  # noqa: BLE001
            raise InputError(
                f"{getattr(fn, '__qualname__', fn)!r} cannot be sent to another process: {exc}",
                hint="Define it at the top level of a module, where other processes import it by name.",
            ) from exc
        raise InputError(f"An argument of {name_of(fn)} cannot be serialised: {exc}") from exc


def main_of(*pickled: bytes) -> tuple[str, str] | None:
    """Return where the job finds the script that runs here, if the call uses what is defined there."""
    if not any(map(pickling.needs_main, pickled)):
        return None
    # The name in the job of the classes that come back.
    sys.modules.setdefault(pickling.MAIN, sys.modules["__main__"])
    return pickling.source_of_main()


def name_of(fn: Any) -> str:
    """Return the name of the function's job."""
    inner = getattr(fn, "func", fn)  # of a functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))


def future_key(value: Any) -> Any:
    """Return what stands for a future in the key of a call: its own key, or the number of its job."""
    if isinstance(value, BalsamFuture):
        return value._task.key or value.number
    return None
