"""`BalsamExecutor`: Python's `concurrent.futures.Executor` whose calls are jobs.

A call is a job of the application `balsam-call` with a row in the table `call` (see `db.store.calls`), in which its result will
be. `submit` hands calls over to a thread, which adds all that have come meanwhile in one transaction, and gives futures the
results of the jobs that have ended.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import itertools
import logging
import operator
import os
import shlex
import shutil
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..core import field_specs, files, import_guard, states
from ..core.errors import DatabaseBusy, InputError, NoDatabase, RemoteError, TaskFailed, UnknownApp
from ..db import collected, models
from ..db.engine import directories
from ..db.engine.connection import Database
from ..db.query import queries
from ..db.store import apps, calls, insert, unique_keys, user_actions
from ..pyapps import payload, result_file, run_call
from . import dag
from .call_future import BalsamFuture, Task, future_key, main_of, name_of, pickled, pickled_with_parents
from .call_keys import KeyMaker
from .waiter import DELETED, Waiter, print_to_stderr, registration_of, status_of, why_failed

if TYPE_CHECKING:
    from .local_launcher import LocalLauncher

APP = "balsam-call"
WORKFLOW = "executor"

#: Seconds that the thread stays when nothing is pending: the next call may come at once.
_LINGER_S = 2.0
#: Jobs are added by transactions of about this many at most.
_MAX_TOGETHER = 2000

#: Fields of a job that the executor itself fills.
_OWN_FIELDS = ("args", "job_id", "origin", "parents")


class BalsamExecutor(concurrent.futures.Executor):
    """Run calls as jobs of the active DB, by any launcher. The jobs outlive this process, the futures do not.

    `submit(fn, …)` calls a function of this or any module; with the package cloudpickle also lambdas, functions inside of
    functions, and those of a notebook. Results and exceptions come back the same way (see `core.pickling`).
    With an `application`, `submit(*words)` runs that with those arguments, and the result is the text of its output.

    A BalsamFuture in the arguments of a call, also inside of lists, dicts and other objects, makes the job a child of that
    future's job: it starts when that one is finished and gets its result. An application gets the path of the file with the
    result.

    The first four arguments may be those of `ProcessPoolExecutor`: a number in the place of the application is `max_workers`.

    Args:
        mp_context: has no effect: launchers start the processes.
        initializer, initargs: called once in each process that makes calls, before its first one.
        max_workers: maximum number of calls that run at once, wherever; None: as many as there are places. Calls beyond
            that are added to the DB when others have ended, while this process lives; its end waits until all are added.
        max_tasks_per_child: maximum number of calls in one process.
        launcher: start a launcher on this host for the jobs of this executor, with that number of slots (True: one per core),
            and end it with the executor, which then has a workflow that no other one has, unless one is named. Where no DB is
            active, the executor has a temporary one, which is removed at its end.
        cwd: where calls run: in the directory of the process that submits them ("caller"), or in those of their jobs ("job");
            the latter with the field `user_workdir`, too.
        mpi: number of ranks of each call, which all call the function, over mpi4py; the result is that of rank 0. The first
            exception of any rank ends the others and is that of the call. With `num_nodes=` they are divided among these.
        memoize: do not repeat a call: if one of the same function (see `call_keys`) with the same arguments and the same
            `version` has finished in this DB, return its result; if it runs or waits, wait for it; if it failed, run it again.
            `memoized` counts the calls that were not added.
        version: any value; another one repeats calls.
        workflow: of the jobs; by default that of the job in which this code runs, else `executor`.
        python: the interpreter; it must have balsam_lite.
        job_fields: other fields of the jobs (`num_nodes=`, `node_packing_count=`, `wall_time_minutes=`, …).

    Raises:
        UnknownApp; UnknownField, InvalidSpec; InputError: a field that the executor fills itself, a number that is none.
    """

    def __init__(
        self,
        application: str | int | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_workers: int | None = None,
        max_tasks_per_child: int | None = None,
        launcher: int | bool | None = None,
        cwd: str = "caller",
        mpi: int | None = None,
        memoize: bool = False,
        version: Any = None,
        workflow: str | None = None,
        python: str = sys.executable,
        **job_fields: Any,
    ) -> None:
        import_guard.check_writable()  # in a job that imports the script of its call
        if application is not None and not isinstance(application, str):
            application, max_workers = None, application
        taken = [name for name in _OWN_FIELDS if name in job_fields]
        if taken:
            raise InputError(f"A BalsamExecutor chooses the {taken[0]} of its jobs itself.")
        max_workers, mpi = _count("max_workers", max_workers), _count("mpi", mpi)
        max_tasks_per_child = _count("max_tasks_per_child", max_tasks_per_child)
        if not isinstance(launcher, bool):
            launcher = _count("launcher", launcher)
        _check_ways(application, initializer, initargs, cwd, mpi, memoize)
        if mpi:
            job_fields["ranks_per_node"] = _ranks_per_node(mpi, job_fields)
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
        self._max_workers = max_workers
        self._ranks = mpi or 1
        self._keys = KeyMaker(version, future_key) if memoize else None
        self._initializer = b"" if initializer is None else pickled(initializer, (initializer, tuple(initargs)))
        self._begin()
        self._open(launcher)
        _note_open(self)

    def _begin(self) -> None:
        #: Number of calls that were not added, because there was the same one already.
        self.memoized = 0
        self._twins: dict[int, list[BalsamFuture]] = {}  # by number of the job: futures beside that in `_pending`
        self._lock = threading.Lock()  # held for moments, never while the DB is asked or a callback is called
        self._is_shut = False
        self._broken = ""  # why no call can be made any more
        self._pending: dict[int, BalsamFuture] = {}  # by number of the job: the thread that removes one settles it
        self._added: deque[BalsamFuture] = deque()  # those of them that are not followed yet
        self._has_added = threading.Condition()
        self._to_add: deque[list[BalsamFuture]] = deque()  # each list in one transaction
        self._last: BalsamFuture | None = None  # of those that are to be added
        self._contexts: dict[run_call.CallContext, int] = {}  # their numbers in the DB
        self._path: tuple[list[str], tuple[str, ...]] = [], ()  # sys.path, and the same with absolute paths
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._launcher: LocalLauncher | None = None
        self._reports: deque[str] = deque(maxlen=5)  # the last ones of the launcher
        self._process = os.getpid()

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
        """Return the future of one call, whose job a thread adds within milliseconds. What that raises, the future raises.

        Raises:
            InputError: the function or an argument cannot be sent to another process. RuntimeError: after `shutdown`.
        """
        return self._add([self._task(fn, args, kwargs)])[0]

    def map(
        self,
        fn: Any,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Return an iterator over the results, in order. All jobs are added in one transaction, before this returns.

        With an application `fn` is its first argument. A job makes `chunksize` calls. With a `buffersize` only that number of
        jobs is added, and another one for each result that is taken. Jobs that have not started are cancelled when a call
        raises or the iterator is closed.

        Raises:
            as `submit`; while iterating: TimeoutError, what a call raised.
        """
        chunksize, buffersize = _count("chunksize", chunksize) or 1, _count("buffersize", buffersize)
        calls = zip(*iterables)
        if self._application is not None or chunksize == 1:
            return self._results((self._task(fn, args, {}) for args in calls), timeout, buffersize)
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        tasks = (self._call(fn, (run_call.each, (fn, chunk), {})) for chunk in chunks)
        return _chained(self._results(tasks, timeout, buffersize))

    def _results(self, tasks: Iterator[Task], timeout: float | None, buffersize: int | None) -> Iterator[Any]:
        """Add jobs, and return an iterator over their results."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = deque(self._add_now(itertools.islice(tasks, buffersize)))

        def results() -> Iterator[Any]:
            try:
                while waiting:
                    waiting[0].exception(None if deadline is None else deadline - time.monotonic())
                    if buffersize:
                        waiting.extend(self._add(itertools.islice(tasks, 1)))
                    yield waiting.popleft().result()  # without keeping it here
            finally:
                self._cancel(waiting)

        return results()

    def _task(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        if self._application is not None:
            return self._words((fn, *args), kwargs)
        return self._call(fn, (fn, args, kwargs))

    def _call(self, fn: Any, call: tuple[Any, ...]) -> Task:
        if not callable(fn):
            raise InputError(f"{fn!r} cannot be called. To run an application, make the executor with application=…")
        content, parents = pickled_with_parents(self.database, fn, call)
        if sys.path != self._path[0]:
            self._path = list(sys.path), tuple(map(os.path.abspath, sys.path))
        cwd = os.getcwd() if self._runs_here else ""
        main = main_of(self._initializer, content)
        context = run_call.CallContext(self._path[1], main, cwd, self._initializer, self._max_calls, self._ranks)
        name, key = name_of(fn), None if self._keys is None else self._keys.key(fn, *call[1:])
        if len(content) <= run_call.MAX_INLINE_BYTES:
            return Task(name, parents=parents, call=content, context=context, key=key)
        job_id, path = self._write(name, content)
        return Task(name, parents=parents, call=path, context=context, job_id=job_id, key=key)

    def _write(self, name: str, pickled: bytes) -> tuple[str, str]:
        """Write a large call into the working directory of its job; return the job's UUID and the path below `data/`."""
        job_id = field_specs.new_job_id()
        workdir = field_specs.workdir_name(self._fields["workflow"], str(self._fields.get("name", name)), job_id)
        path = os.path.join(workdir, payload.arguments_name(job_id))
        absolute = os.path.join(self.database.directory, directories.DATA, path)
        os.makedirs(os.path.dirname(absolute))
        files.write_atomic(absolute, pickled, 0o600)
        return job_id, path

    def _words(self, words: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        if kwargs:
            raise InputError(f"An application takes words, not {', '.join(kwargs)}=…")
        parents = [word for word in words if isinstance(word, BalsamFuture)]
        for one in parents:
            one.check_database(self.database)
        line = shlex.join(word.path if isinstance(word, BalsamFuture) else str(word) for word in words)
        return Task(self._app, line, parents)

    # --- adding -------------------------------------------------------------------------------------------------------

    def _add_now(self, tasks: Iterable[Task]) -> list[BalsamFuture]:
        """Add jobs in one transaction, and return when that is done. Raises what adding them raises."""
        futures = self._add(tasks)
        if futures and not self._max_workers:
            _ = futures[-1].number
        return futures

    def _add(self, tasks: Iterable[Task]) -> list[BalsamFuture]:
        """Let the thread add jobs in one transaction."""
        import_guard.check_writable()
        collected.refuse("Adding jobs by balsam_lite.api or an executor")
        futures = [BalsamFuture(task, self) for task in tasks]
        with self._lock:
            if self._is_shut:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if self._broken:
                raise concurrent.futures.BrokenExecutor(self._broken)
            if futures:
                self._to_add.extend([[future] for future in futures] if self._max_workers else [futures])
                self._last = futures[-1]
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._follow, name="balsam-executor", daemon=True)
                    self._thread.start()
        self._wake.set()
        return futures

    def _insert_new(self) -> bool:
        """Add jobs that have been submitted: together, or each group alone if that fails. Return whether more can be added."""
        groups: list[list[BalsamFuture]] = []
        number = 0
        with self._lock:
            most = min(_MAX_TOGETHER, self._max_workers - len(self._pending)) if self._max_workers else _MAX_TOGETHER
            while self._to_add and number < most and all(map(self._can_be_added, self._to_add[0])):
                groups.append(self._to_add.popleft())
                number += len(groups[-1])
        if not groups:
            return False
        try:
            self._insert([future for group in groups for future in group])
        except Exception as exc:  # noqa: BLE001  # in a thread it would be lost
            for group in groups:
                try:
                    if len(groups) == 1:
                        raise
                    self._insert(group)
                except Exception as its:  # noqa: BLE001
                    self._refuse(group, its if len(groups) > 1 else exc)

        return bool(self._to_add)

    def _can_be_added(self, future: BalsamFuture) -> bool:
        """Return whether the jobs of the calls are known whose results the call gets."""
        parents = future._task.parents
        return all(one._number or one.done() or (one._executor is self and self._keys is None) for one in parents)

    def _refuse(self, futures: list[BalsamFuture], exc: Exception) -> None:
        for future in futures:
            self._discard(future._task)
            future.set_exception(exc)
        with self._has_added:
            self._has_added.notify_all()

    def _discard(self, task: Task) -> None:
        """Remove the file of a call that is not added."""
        if isinstance(task.call, str):
            path = run_call.in_data(task.call, self.database.directory)
            with suppress(OSError):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))

    def _insert(self, futures: list[BalsamFuture]) -> None:
        self._app = self._app or self._register()
        for context in {one._task.context for one in futures if one._task.context} - self._contexts.keys():
            with self.database.write() as cx:
                self._contexts[context] = calls.context_number(cx, run_call.dump(context))
        places = {future: place for place, future in enumerate(futures)}
        rows = [self._row(future._task, places) for future in futures]
        if self._keys is not None:
            with self.database.write() as cx:
                unique_keys.release_failed(cx, [future._task.key for future in futures if future._task.key])
        added = insert.add_jobs(self.database, rows, on_duplicate="refuse" if self._keys is None else "skip")
        numbers = [added.id_of(place) for place in range(len(futures))] if added.skipped else added.ids
        for number, future in zip(numbers, futures):
            future._status = status_of(self.database, number)
        for place in added.skipped.positions:
            futures[place]._is_shared = True
            self._discard(futures[place]._task)
        with self._lock:
            self.memoized += len(added.skipped.positions)
            for number, future in zip(numbers, futures):
                if future._is_shared and number in self._pending:
                    self._twins.setdefault(number, []).append(future)
                else:
                    self._pending[number] = future
            self._added.extend(futures)
            if self._last is futures[-1]:
                self._last = None
        with self._has_added:
            for number, future in zip(numbers, futures):
                future._number = number
            self._has_added.notify_all()

    def _row(self, task: Task, places: dict[BalsamFuture, int]) -> dict[str, Any]:
        """Return the fields of a job; `places` are those of its batch, which may have parents of it."""
        lost = next((one for one in task.parents if one.done() and not one._number and one not in places), None)
        if lost is not None:
            raise TaskFailed(f"A call whose result is an argument of {task.name} was cancelled, or could not be added.")
        parents = {one: dag.Position(places[one]) if one in places else one.number for one in task.parents}
        own = {"application": self._app, "args": task.args, "parents": list(dict.fromkeys(parents.values()))}
        if task.job_id:
            own["job_id"] = task.job_id
        if task.context is not None:
            orders = {  # as their numbers will be; futures may share a job
                one: (one in places, places.get(one, one._number)) for one in parents if one._executor._application is None
            }
            of_calls = sorted(set(orders.values()))
            sources = tuple(of_calls.index(orders[one]) if one in orders else one.path for one in task.parents)
            content = run_call.dump(run_call.CallPayload(task.call, sources))
            own["call"] = self._contexts[task.context], content
        if task.key:
            own["unique_key"] = task.key
        return {"name": task.name, **self._fields, **own}

    def _await_number(self, future: BalsamFuture) -> None:
        """Wait until a call is added, or refused.

        Raises:
            RuntimeError: this is a callback of a future, and `max_workers` keeps the call from being added.
        """
        if threading.current_thread() is not self._thread:
            with self._has_added:
                self._has_added.wait_for(lambda: future._number or future.done())
            return
        left = -1
        while not (future._number or future.done()):  # the thread that adds them has called the callback
            if len(self._to_add) == left:
                raise RuntimeError("A callback cannot wait for a call that max_workers keeps back.")
            left = len(self._to_add)
            self._insert_new()

    def _flush(self) -> None:
        """Wait until all that was submitted is added, or refused."""
        with self._lock:
            last, thread = self._last, self._thread
        if last is not None and self._process == os.getpid() and thread is not None and thread.is_alive():
            with suppress(Exception):
                _ = last.number

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
            if not self._pending and not self._to_add:
                self._thread = None
            return self._thread is not None

    def _follow_these(self) -> None:
        with self._lock:  # after a failure: everything anew
            self._added = deque(self._pending.values())
        with Waiter(wake=self._wake) as waiter:
            while self._pending or self._to_add or (not self._is_shut and self._wake.wait(_LINGER_S)):
                self._wake.clear()
                has_more = self._insert_new()
                with self._lock:
                    new = [future._status for future in self._added]
                    self._added.clear()
                if new:
                    waiter.add(self.database, new)
                self._settle([status.number for status in waiter.look()])
                self._check_launcher()
                if (self._pending or self._to_add) and not has_more:
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

    def _settle(self, numbers: Iterable[int], are_killed: bool = False) -> None:
        """Give the futures of ended jobs their results, except those that another thread has settled."""
        with self._lock:
            futures: deque[BalsamFuture] = deque()
            for number in numbers:
                if number in self._pending:
                    futures += [self._pending.pop(number), *self._twins.pop(number, ())]
        ended = [one for one in futures if not are_killed and one._status.state not in (states.USER_KILLED, DELETED)]
        results: dict[int, Any] = {}
        if ended and self._application is None:
            with self.database.read() as cx:
                results = calls.results(cx, [one.number for one in ended])
        del ended
        while futures:  # those whose results were taken are not kept alive here
            future = futures.popleft()
            if are_killed or future._status.state == states.USER_KILLED:
                concurrent.futures.Future.cancel(future)
                future.set_running_or_notify_cancel()  # wakes `concurrent.futures.wait`
                continue
            try:
                future.set_result(self._outcome(future, future._status.state, results.get(future.number)))
            except BaseException as exc:  # noqa: BLE001  # that of the call; SystemExit too
                future.set_exception(exc)
                if str(exc).startswith(run_call.INITIALIZER_FAILED):
                    self._break(str(exc))

    def _outcome(self, future: BalsamFuture, state: str, result: calls.Result | None) -> Any:
        """Return the result of a call, or raise what it raised."""
        if self._application is not None:
            if state != states.JOB_FINISHED:
                raise self._failed(future)
            if "user_workdir" in self._fields:  # shared by other calls
                return future.job.read_file_in_workdir(os.path.basename(future.path))
            with open(future.path, encoding="utf-8", errors="replace") as file:
                return file.read()
        try:
            outcome = run_call.outcome_in(result, self.database.directory) if result is not None else None
        except OSError as exc:
            if state == states.JOB_FINISHED:
                raise RemoteError(f"The result of job #{future.number} is gone: {exc}") from exc
            outcome = None
        if outcome is None or outcome.good != (state == states.JOB_FINISHED):
            raise self._failed(future)
        return result_file.result_of("call", outcome)

    def _failed(self, future: BalsamFuture) -> TaskFailed:
        return TaskFailed(why_failed(self.database, future.number, f"number {future.number}"))

    def _break(self, reason: str) -> None:
        """Make no further calls, as an executor whose initializer has raised; log it as Python's own executors do."""
        if self._broken:
            return
        self._broken = reason
        logging.getLogger("concurrent.futures").critical("%s", reason)
        with self._lock:
            numbers = list(self._pending)
        self._kill_unstarted(numbers, "The initializer of its executor has failed")
        self._give_up(concurrent.futures.BrokenExecutor(reason))

    def _give_up(self, exc: Exception) -> None:
        with self._lock:
            futures = [*self._pending.values(), *itertools.chain(*self._twins.values(), *self._to_add)]
            for some in (self._pending, self._twins, self._to_add):
                some.clear()
        for future in futures:
            future.set_exception(exc)
        with self._has_added:
            self._has_added.notify_all()

    # --- cancelling, the end ------------------------------------------------------------------------------------------

    def _cancel(self, futures: Iterable[BalsamFuture]) -> list[BalsamFuture]:
        """Kill the jobs that have not started; return their futures, now cancelled. One write transaction."""
        futures = [one for one in futures if not one.done() and not one._is_shared]
        held = self._take_back(futures)
        for one in futures:
            with suppress(Exception):  # the future raises it
                _ = one.number
        wanted = {one._number: one for one in futures if one._number and not one.done()}
        idle = self._kill_unstarted(wanted, "Cancelled by its executor") if wanted else []
        for number in idle:
            concurrent.futures.Future.cancel(wanted[number])  # unless the thread has done so by now
        self._settle(idle, are_killed=True)
        return held + [wanted[number] for number in idle]

    def _kill_unstarted(self, numbers: Iterable[int], message: str) -> list[int]:
        """Kill those of the jobs that have not started; return their numbers."""
        with self.database.write() as cx:
            idle = queries.unstarted(cx, numbers)
            user_actions.kill(self.database, idle, message=message)
        return list(idle)

    def _take_back(self, futures: Iterable[BalsamFuture]) -> list[BalsamFuture]:
        """Cancel those that `max_workers` has kept from being added; return them."""
        wanted = set(futures) if self._max_workers else set()
        with self._lock:
            held = [one for (one,) in self._to_add if one in wanted] if wanted else []
            if held:
                self._to_add = deque(group for group in self._to_add if group[0] not in wanted)
        for one in held:
            self._discard(one._task)
            concurrent.futures.Future.cancel(one)
            one.set_running_or_notify_cancel()  # wakes `concurrent.futures.wait`
        with self._has_added:
            self._has_added.notify_all()
        return held

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls. `wait`: return when all have ended; `cancel_futures`: kill those that have not started."""
        with self._lock:
            self._is_shut = True
        self._wake.set()
        if not self._max_workers:
            self._flush()
        with self._lock:
            futures, thread = [*self._pending.values(), *itertools.chain(*self._to_add)], self._thread
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

    def __exit__(self, kind: Any, exc: Any, trace: Any) -> bool | None:
        """Shut down; after Ctrl-C, stop the calls of the executor's launcher instead of waiting for them."""
        if isinstance(exc, KeyboardInterrupt):
            self._stop_launcher()
        return super().__exit__(kind, exc, trace)

    def _stop_launcher(self) -> None:
        if self._launcher is not None:
            self._reports.append("It was stopped by Ctrl-C.")
            self._launcher.close()


#: Executors whose launchers have to end with this process.
_with_launchers: weakref.WeakSet[BalsamExecutor] = weakref.WeakSet()


def _shut_down_all() -> None:
    """Wait for the calls of executors with launchers when the program ends, as Python's own executors do."""
    for executor in list(_with_launchers):
        if executor._process == os.getpid():
            if getattr(sys, "last_type", None) is KeyboardInterrupt:  # what has ended the program
                executor._stop_launcher()
            executor.shutdown()


def _chained(lists: Iterable[list[Any]]) -> Iterator[Any]:
    """Yield the elements of lists, without keeping them."""
    for some in lists:
        some.reverse()
        while some:
            yield some.pop()


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


_executors: weakref.WeakSet[BalsamExecutor] = weakref.WeakSet()


def _note_open(executor: BalsamExecutor) -> None:
    """Have the executor add what was submitted before this process ends."""
    if not _executors:
        atexit.register(_flush_all)
    _executors.add(executor)


def _flush_all() -> None:
    for executor in list(_executors):
        executor._flush()


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


def _count(name: str, value: Any) -> int | None:
    """Return a number, which may be one of numpy. Raises InputError: it is neither None nor an integer above 0."""
    if value is None:
        return None
    with suppress(TypeError):
        if not isinstance(value, bool) and operator.index(value) > 0:
            return operator.index(value)
    raise InputError(f"{name} must be greater than 0, a whole number, not {value!r}")


def _check_ways(
    application: str | None, initializer: object, initargs: object, cwd: str, mpi: int | None, memoize: bool
) -> None:
    """Raise InputError, TypeError if arguments of an executor make no sense."""
    if cwd not in ("caller", "job"):
        raise InputError(f'cwd must be "caller" or "job", not {cwd!r}')
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if not isinstance(initargs, Iterable):
        raise TypeError(f"initargs must be a tuple, not {initargs!r}")
    if application is not None and (mpi or memoize):
        raise InputError(f"{'mpi' if mpi else 'memoize'}= is for calls of functions, not for an application.")


def _ranks_per_node(ranks: int, job_fields: Mapping[str, Any]) -> int:
    """Return the number of ranks on each node. Raises InputError."""
    nodes = job_fields.get("num_nodes", 1)
    if "ranks_per_node" in job_fields or ranks % nodes:
        raise InputError(f"mpi={ranks} is the number of all ranks, a multiple of num_nodes={nodes}, instead of ranks_per_node.")
    return int(ranks // nodes)
