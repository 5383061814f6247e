"""`BalsamExecutor`: Python's `concurrent.futures.Executor` whose calls are jobs.

A call is a `CallPayload` in a file below `data/<workflow>/.calls` of the DB and a job of the application `balsam-call`, whose
argument is that file. The result is in the job's working directory (`pyapps.result_file`). The payload is removed when the call
has succeeded or was cancelled; that of a failed call stays, so that the job can be rerun.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import itertools
import os
import shlex
import shutil
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core import field_specs, import_guard, pickling, states
from ..core.errors import DatabaseBusy, InputError, NoDatabase, RemoteError, TaskFailed, UnknownApp
from ..db import models
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.query import queries
from ..db.store import apps, insert, user_actions
from ..pyapps import payload, result_file, run_call
from . import dag
from .waiter import DELETED, JobStatus, Waiter, print_to_stderr, registration_of, status_of, why_failed

if TYPE_CHECKING:
    from .local_launcher import LocalLauncher

APP = "balsam-call"
WORKFLOW = "executor"
_CALLS = ".calls"

#: Seconds that the thread stays when nothing is pending: the next call may come at once.
_LINGER_S = 2.0

#: Fields of a job that the executor itself fills.
_OWN_FIELDS = ("args", "job_id", "origin", "parents")


class BalsamFuture(concurrent.futures.Future):  # type: ignore[type-arg]
    """The future of one call. `number` is that of its job, `path` the file where the result will be."""

    def __init__(self, task: _Task, executor: BalsamExecutor) -> None:
        super().__init__()
        self._task = task
        self._executor = executor
        self._status: JobStatus = JobStatus("", 0)  # until it is in the DB
        self.number = 0
        self.path = ""

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
        if _pickling.executor is None:
            raise TypeError("a BalsamFuture can be sent only in the arguments of a call, which gets its result")
        self.check_database(_pickling.executor.database)
        return run_call.result_of_parent, (_pickling.parents.setdefault(self, len(_pickling.parents)),)


class _Pickling(threading.local):
    """The call that this thread is pickling."""

    executor: BalsamExecutor | None = None
    parents: dict[BalsamFuture, int] = {}  # the futures in its arguments, with their index


_pickling = _Pickling()


class _Task(NamedTuple):
    """A call that is being added."""

    name: str
    args: str
    parents: list[int]
    file: str = ""  # with the payload; "" for an application


class BalsamExecutor(concurrent.futures.Executor):
    """Run calls as jobs of the active DB, by any launcher. The jobs outlive this process, the futures do not.

    `submit(fn, …)` calls a function of this or any module; with the package cloudpickle also lambdas, functions inside of
    functions, and those of a notebook. Results and exceptions come back the same way (see `core.pickling`).
    With an `application`, `submit(*words)` runs that with those arguments, and the result is the text of its output.

    A BalsamFuture in the arguments of a call, also inside of lists, dicts and other objects, makes the job a child of that
    future's job: it starts when that one is finished and gets its result. An application gets the path of the file with the
    result.

    The first four arguments are those of `ProcessPoolExecutor`, of which a number counts as `max_workers`.

    Args:
        mp_context: has no effect: launchers start the processes.
        initializer, initargs: called once in each process that makes calls, before its first one.
        max_tasks_per_child: maximum number of calls in one process.
        launcher: start a launcher on this host for the jobs of this executor, with that number of slots (True: one per core),
            and end it with the executor, which then has a workflow that no other one has, unless one is named. Where no DB is
            active, the executor has a temporary one, which is removed at its end.
        cwd: where calls run: in the directory of the process that submits them ("caller"), or in those of their jobs ("job");
            the latter with the field `user_workdir`, too.
        workflow: of the jobs; by default that of the job in which this code runs, else `executor`.
        python: the interpreter; it must have balsam_lite.
        job_fields: other fields of the jobs (`num_nodes=`, `node_packing_count=`, `wall_time_minutes=`, …).

    Raises:
        UnknownApp; UnknownField, InvalidSpec; InputError: a field that the executor fills itself, a number that is none.
    """

    def __init__(
        self,
        application: str | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        launcher: int | bool | None = None,
        cwd: str = "caller",
        workflow: str | None = None,
        python: str = sys.executable,
        **job_fields: Any,
    ) -> None:
        import_guard.check_writable()  # in a job that imports the script of its call
        taken = [name for name in _OWN_FIELDS if name in job_fields]
        if taken:
            raise InputError(f"A BalsamExecutor chooses the {taken[0]} of its jobs itself.")
        if cwd not in ("caller", "job"):
            raise InputError(f'cwd must be "caller" or "job", not {cwd!r}')
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        _check_count("max_tasks_per_child", max_tasks_per_child)
        if launcher is not True:
            _check_count("launcher", launcher)
        current = dag.current_job
        if current is not None and not launcher and "queued_launch" not in job_fields:
            job_fields.setdefault("queued_launch_id", current.queued_launch_id)
        if workflow is None and launcher:
            workflow = f"{WORKFLOW}-{os.urandom(4).hex()}"
        elif workflow is None:
            workflow = current.workflow if current else WORKFLOW
        if application is None:
            job_fields.setdefault("input_files", "")  # results are read where they are
        field_specs.check_job({"workflow": workflow, **job_fields})
        self._fields = {"workflow": workflow, **job_fields}
        self._application = application
        self._python = python
        self._app = application or ""
        self._runs_here = cwd == "caller" and not job_fields.get("user_workdir")
        self._max_calls = max_tasks_per_child or 0
        self._initializer = b"" if initializer is None else _pickled(initializer, (initializer, tuple(initargs)))
        self._lock = threading.Lock()  # held for moments, never while the DB is asked or a callback is called
        self._is_shut = False
        self._broken = ""  # why no call can be made any more
        self._pending: dict[int, BalsamFuture] = {}  # by number of the job: the thread that removes one settles it
        self._added: deque[BalsamFuture] = deque()  # those of them that are not followed yet
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._launcher: LocalLauncher | None = None
        self._reports: deque[str] = deque(maxlen=5)  # the last ones of the launcher
        self._process = os.getpid()
        self._open(launcher)

    def _open(self, launcher: int | bool | None) -> None:
        self.database, is_temporary = _database(may_be_temporary=bool(launcher))
        try:
            if self._application is not None:
                with self.database.read() as cx:
                    queries.app(cx, self._application)
            # Launchers stay while it is open, as more calls may come.
            registration = registration_of(self.database.directory)
            registration.enter()
            self._leave = weakref.finalize(self, registration.leave)
            if launcher:
                self._start_launcher(None if launcher is True else launcher, is_temporary)
        except BaseException:
            if is_temporary:
                shutil.rmtree(self.database.directory, ignore_errors=True)
            raise

    def _start_launcher(self, slots: int | None, is_temporary: bool) -> None:
        from .local_launcher import LocalLauncher

        is_mpi = any(self._fields.get(name, 1) != 1 for name in ("num_nodes", "ranks_per_node"))
        mode = "mixed" if is_mpi else "serial"
        self._launcher = LocalLauncher(self.database.directory, is_temporary, self._fields["workflow"], slots, mode)
        weakref.finalize(self, self._launcher.close)
        if not _with_launchers:
            atexit.register(_shut_down_all)
        _with_launchers.add(self)

    # --- submitting ---------------------------------------------------------------------------------------------------

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> BalsamFuture:
        """Add the job of one call and return its future. One write transaction.

        Raises:
            InputError: the function or an argument cannot be sent to another process. RuntimeError: after `shutdown`.
        """
        return self._add(self._task(fn, args, kwargs) for _ in (0,))[0]

    def map(self, fn: Any, *iterables: Iterable[Any], timeout: float | None = None, chunksize: int = 1) -> Iterator[Any]:
        """Return an iterator over the results, in order. All jobs are added in one transaction, before this returns.

        With an application `fn` is its first argument. A job makes `chunksize` calls. Jobs that have not started are cancelled
        when a call raises or the iterator is closed.

        Raises:
            as `submit`; while iterating: TimeoutError, what a call raised.
        """
        if chunksize < 1:
            raise InputError(f"chunksize must be 1 or more, not {chunksize}")
        calls = zip(*iterables)
        if self._application is not None or chunksize == 1:
            return self._results(self._add(self._task(fn, args, {}) for args in calls), timeout)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        futures = self._add(self._call(fn, (run_call.each, (fn, chunk), {})) for chunk in chunks)
        return itertools.chain.from_iterable(self._results(futures, timeout))

    def _results(self, futures: list[BalsamFuture], timeout: float | None) -> Iterator[Any]:
        deadline = None if timeout is None else time.monotonic() + timeout

        def results() -> Iterator[Any]:
            waiting = deque(futures)
            try:
                while waiting:
                    left = None if deadline is None else deadline - time.monotonic()
                    value = waiting[0].result(left)
                    waiting.popleft()
                    yield value
            finally:
                self._cancel(waiting)

        return results()

    def _task(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Task:
        if self._application is not None:
            return self._words((fn, *args), kwargs)
        return self._call(fn, (fn, args, kwargs))

    def _call(self, fn: Any, call: tuple[Any, ...]) -> _Task:
        if not callable(fn):
            raise InputError(f"{fn!r} cannot be called. To run an application, make the executor with application=…")
        _pickling.executor, _pickling.parents = self, {}
        try:
            pickled = _pickled(fn, call)
            parents = list(_pickling.parents)
        finally:
            _pickling.executor = None
        path, main = list(map(os.path.abspath, sys.path)), _main_of(self._initializer, pickled)
        cwd = os.getcwd() if self._runs_here else ""
        paths = [one.path for one in parents]
        file = self._write(run_call.CallPayload(path, main, pickled, paths, cwd, self._initializer, self._max_calls))
        return _Task(_name_of(fn), shlex.quote(file), [one.number for one in parents], file)

    def _words(self, words: tuple[Any, ...], kwargs: dict[str, Any]) -> _Task:
        if kwargs:
            raise InputError(f"An application takes words, not {', '.join(kwargs)}=…")
        numbers = []
        for word in words:
            if isinstance(word, BalsamFuture):
                word.check_database(self.database)
                numbers.append(word.number)
        line = shlex.join(word.path if isinstance(word, BalsamFuture) else str(word) for word in words)
        return _Task(self._app, line, list(dict.fromkeys(numbers)))

    def _write(self, what: run_call.CallPayload) -> str:
        job_id = field_specs.new_job_id()
        of_workflow = os.path.dirname(field_specs.workdir_name(self._fields["workflow"], "", job_id))
        folder = os.path.join(self.database.directory, directories.DATA, of_workflow, _CALLS)
        path = os.path.join(folder, f"{job_id}.pkl")
        try:
            run_call.write_payload(path, what)
        except FileNotFoundError:
            os.makedirs(folder, exist_ok=True)
            run_call.write_payload(path, what)
        return path

    def _add(self, tasks: Iterable[_Task]) -> list[BalsamFuture]:
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self._broken:
            raise concurrent.futures.BrokenExecutor(self._broken)
        futures: list[BalsamFuture] = []
        self._app = self._app or self._register()

        def rows() -> Iterator[dict[str, Any]]:
            for task in tasks:
                futures.append(BalsamFuture(task, self))
                own = {"application": self._app, "args": task.args, "parents": task.parents}
                yield {"name": task.name, **self._fields, **own}

        try:
            added = insert.add_jobs(self.database, rows())
        except BaseException:
            for future in futures:
                _remove(future._task.file)
            raise
        self._take_over(futures, added.ids)
        return futures

    def _take_over(self, futures: list[BalsamFuture], numbers: range) -> None:
        if not futures:
            return
        with self.database.read() as cx:
            workdirs = queries.workdirs(cx, numbers[0], numbers[-1])
        data = os.path.join(self.database.directory, directories.DATA)
        for number, future in zip(numbers, futures):
            name = str(self._fields.get("name", future._task.name))
            job_id, workdir = workdirs.get(number, ("", ""))
            output = result_file.file_name(job_id) if self._application is None else field_specs.output_name(name)
            future.path = os.path.join(data, workdir, output)
            future.number = number
            future._status = status_of(self.database, number)
        with self._lock:
            self._pending.update(zip(numbers, futures))
            self._added.extend(futures)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._follow, name="balsam-executor", daemon=True)
                self._thread.start()
        self._wake.set()

    def _register(self) -> str:
        """Return the name of the application that runs calls with this interpreter; register it if there is none."""
        line = shlex.join(payload.program_words(self._python, payload.CALL))
        with self.database.read() as cx:
            name = _app_for(cx, line, may_add=False)
        if not name:
            with self.database.write() as cx:
                name = _app_for(cx, line, may_add=True)
        return name

    # --- the end of jobs ----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Give futures the results of their jobs until nothing is pending: the thread."""
        try:
            while self._goes_on():
                try:
                    self._follow_these()
                except DatabaseBusy:
                    continue  # it was tried for a minute; the jobs go on meanwhile
                except Exception as exc:  # noqa: BLE001  # in a thread it would be lost
                    self._give_up(exc)
        finally:
            self.database.close()  # this thread's connection
            if self._is_shut and self._launcher is not None:
                self._launcher.close()

    def _goes_on(self) -> bool:
        with self._lock:
            if not self._pending:
                self._thread = None
            return bool(self._pending)

    def _follow_these(self) -> None:
        with self._lock:  # after a failure: everything anew
            self._added = deque(self._pending.values())
        with Waiter(wake=self._wake) as waiter:
            while self._pending or (not self._is_shut and self._wake.wait(_LINGER_S)):
                self._wake.clear()
                with self._lock:
                    new, self._added = list(self._added), deque()
                if new:
                    waiter.add(self.database, [future._status for future in new])
                for status in waiter.look():
                    self._settle(status.number)
                self._check_launcher()
                if self._pending:
                    waiter.pause()

    def _check_launcher(self) -> None:
        """Print what the executor's launcher reports; if it has ended, fail all calls: nothing else will make them."""
        if self._launcher is None:
            return
        has_ended = self._launcher.has_ended()
        for line in self._launcher.lines():
            self._reports.append(line)
            print_to_stderr(f"balsam: launcher of this executor: {line}")
        if has_ended:
            self._broken = "\n".join(["The launcher of this executor has ended.", *self._reports])
            self._give_up(concurrent.futures.BrokenExecutor(self._broken))

    def _settle(self, number: int, is_killed: bool = False) -> None:
        """Give the future of an ended job its result, unless another thread has done so."""
        with self._lock:
            future = self._pending.pop(number, None)
        if future is None:
            return
        if is_killed or future._status.state == states.USER_KILLED:
            concurrent.futures.Future.cancel(future)
            future.set_running_or_notify_cancel()  # wakes `concurrent.futures.wait`
            _remove(future._task.file)
            return
        try:
            value = self._outcome(future, future._status.state)
        except BaseException as exc:  # noqa: BLE001  # that of the call; SystemExit too
            future.set_exception(exc)
        else:
            _remove(future._task.file)
            future.set_result(value)

    def _outcome(self, future: BalsamFuture, state: str) -> Any:
        """Return the result of a call, or raise what it raised."""
        if self._application is not None:
            if state != states.JOB_FINISHED:
                raise self._failed(future)
            if "user_workdir" in self._fields:  # shared by other calls
                return future.job.read_file_in_workdir(os.path.basename(future.path))
            with open(future.path, encoding="utf-8", errors="replace") as file:
                return file.read()
        try:
            outcome = None if state == DELETED else result_file.read_outcome(future.path)
        except OSError as exc:
            if state == states.JOB_FINISHED:
                raise RemoteError(f"The result of job #{future.number} is gone: {exc}") from exc
            outcome = None
        if outcome is None or outcome.good != (state == states.JOB_FINISHED):
            raise self._failed(future)
        return result_file.result_of("call", outcome)

    def _failed(self, future: BalsamFuture) -> TaskFailed:
        return TaskFailed(why_failed(self.database, future.number, f"number {future.number}"))

    def _give_up(self, exc: Exception) -> None:
        with self._lock:
            futures = list(self._pending.values())
            self._pending.clear()
        for future in futures:
            future.set_exception(exc)

    # --- cancelling, the end ------------------------------------------------------------------------------------------

    def _cancel(self, futures: Iterable[BalsamFuture]) -> list[BalsamFuture]:
        """Kill the jobs that have not started; return their futures, now cancelled. One write transaction."""
        wanted = {one.number: one for one in futures if not one.done()}
        if not wanted:
            return []
        with self.database.write() as cx:
            idle = queries.unstarted(cx, wanted)
            user_actions.kill(self.database, idle, message="Cancelled by its executor")
        for number in idle:
            concurrent.futures.Future.cancel(wanted[number])  # unless the thread has done so by now
            self._settle(number, is_killed=True)
        return [wanted[number] for number in idle]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. `wait`: return when all have ended; `cancel_futures`: kill those that have not started."""
        with self._lock:
            self._is_shut = True
            futures, thread = list(self._pending.values()), self._thread
        if cancel_futures:
            self._cancel(futures)
        self._wake.set()
        self._leave()
        if wait and thread is not None and thread is not threading.current_thread():
            thread.join()
        if self._launcher is not None and (wait or not futures):
            self._launcher.close()
            if wait:
                self._launcher.wait()


#: Executors whose launchers have to end with this process.
_with_launchers: weakref.WeakSet[BalsamExecutor] = weakref.WeakSet()


def _shut_down_all() -> None:
    """Wait for the calls of executors with launchers when the program ends, as Python's own executors do."""
    for executor in list(_with_launchers):
        if executor._process == os.getpid():
            executor.shutdown()


# --- parts ------------------------------------------------------------------------------------------------------------


def _database(may_be_temporary: bool) -> tuple[Database, bool]:
    """Return the active DB and False, or a new temporary one and True."""
    try:
        return models.active(), False
    except NoDatabase:
        if not may_be_temporary:
            raise
    from .local_launcher import temporary_db

    return temporary_db(), True


def _remove(path: str) -> None:
    if path:
        with suppress(OSError):
            os.unlink(path)


def _app_for(cx: Any, line: str, may_add: bool) -> str:
    """Return the application with that command line: balsam-call, balsam-call-2 …; "" if none has it."""
    for number in itertools.count(1):
        name = APP if number == 1 else f"{APP}-{number}"
        try:
            if queries.app(cx, name)["executable"] == line:
                return name
        except UnknownApp:
            if not may_add:
                return ""
            apps.add_app(cx, {"name": name, "executable": line, "description": "Calls of BalsamExecutor"})
            return name
    raise AssertionError("unreachable")


def _name_of(fn: Any) -> str:
    """Return the name of the function's job."""
    inner = getattr(fn, "func", fn)  # of a functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))


def _pickled(fn: Any, call: tuple[Any, ...]) -> bytes:
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
        raise InputError(f"An argument of {_name_of(fn)} cannot be serialised: {exc}") from exc


def _check_count(name: str, value: int | None) -> None:
    """Raise InputError if a number is neither None nor an integer above 0."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{name} must be 1 or more, not {value!r}")


def _main_of(*pickled: bytes) -> tuple[str, str] | None:
    """Return where the job finds the script that runs here, if the call uses what is defined there."""
    if not any(map(pickling.needs_main, pickled)):
        return None
    # The name in the job of the classes that come back.
    sys.modules.setdefault(pickling.MAIN, sys.modules["__main__"])
    return pickling.source_of_main()
