"""The steps before and after a job's program: links and stage-in, preprocess, postprocess, stage-out.

Steps take time, so each runs in one of a few threads while the launcher's loop goes on; the job is held meanwhile and keeps
its state. A step gets all its data at its start, and its result goes into the loop's next transaction. An interrupted step
leaves nothing incomplete that could do harm when it is repeated.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from ..core import causes, field_specs, job_files, states
from ..core.errors import LaunchError, MachineTrouble
from ..db.store.claims import Claim
from ..db.store.steps import StepEnd
from ..pyapps import payload
from .exec import invocation
from .exec.program import ABANDONED, Request, make_directory
from .exec.run_file import end_runs
from .exec.spawner import Answer, Ended, FailedStart, Spawner, Started
from .exec.trouble import Machine
from .failpoints import failpoint
from .run_results import reason, tail
from .staging import links
from .staging.files import shown

if TYPE_CHECKING:
    from .staging.transfers import Run

log = logging.getLogger(__name__)

#: Number of lines of a failed script's output that go into the history.
_TAIL_LINES = 30
#: Scripts of an application, and what their logs are headed.
_TITLES = {
    "preprocess": "Preprocessor",
    "postprocess": "Postprocessor",
    "handle_error": "Error handler",
    "handle_timeout": "Timeout handler",
}
_TRANSFER_LOG = ".balsam-part-{}.log"  # with the short id, as jobs may share the directory
#: The scripts that handle an error or a timeout of such a job, and decide how it continues.
_TROUBLE = (states.RUN_ERROR, states.RUN_TIMEOUT)


class _Interrupted(Exception):
    """The step must stop, and is repeated later; `is_death`: the spawn helper of its script died."""

    def __init__(self, is_death: bool = False) -> None:
        self.is_death = is_death


class StepFailed(LaunchError):
    """The step failed; the message is for the job's history, the `cause` is one of few texts (see `core.causes`)."""

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class _Stop(NamedTuple):
    """A message to a step: end your processes, TERM first and KILL after the grace."""

    grace_s: float


class StepTask:
    """One job's step. Its inbox gets the ends of its processes, and orders to stop."""

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.inbox: SimpleQueue[Answer | _Stop] = SimpleQueue()
        self.reached: list[str] = []
        self.note = ""  # on its success, for the job's history
        self.part = "step"  # what it does now, in the cause of its failure
        self.stop: _Stop | None = None
        self.ran_s = 0.0  # how long its programs ran


class Steps:
    """Carries out steps, up to `threads` at once; the others queue.

    Args:
        context: what all jobs share.
        time_limit_s: for a script; one that takes longer is stopped and has failed.
        wake: called in a thread when a step has ended, so that `poll` is called.
        doubt_s: in a batch job, whose scheduler may end its programs just before the launcher: for how long to hold back the
            end of programs, by whether they failed and for how many seconds they ran. See `exit_grace`.
    """

    def __init__(
        self,
        context: invocation.Context,
        spawner: Spawner,
        threads: int,
        time_limit_s: float,
        kill_grace_s: float,
        wake: Callable[[], None],
        doubt_s: Callable[[bool, float], float] | None = None,
    ) -> None:
        self._doubt_s = doubt_s
        self._doubted: list[tuple[float, StepEnd]] = []  # when to believe it, on the monotonic clock
        self._context, self._spawner, self._channel = context, spawner, spawner.channel()
        self._time_limit_s, self._kill_grace_s, self._wake = time_limit_s, kill_grace_s, wake
        self._most = max(1, threads)
        self._queue: SimpleQueue[StepTask] = SimpleQueue()
        self._threads = 0
        self._tasks: dict[int, StepTask] = {}  # by job
        self._ended: deque[StepEnd] = deque()
        self._machine = Machine(context.data_directory)

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def jobs(self) -> set[int]:
        """Return the jobs that have a step here and are not being stopped."""
        return {job for job, task in self._tasks.items() if task.stop is None}

    @property
    def room(self) -> int:
        """Return how many more steps may be started, so that the threads are busy until the next transaction."""
        return max(0, 4 * self._most - len(self._tasks))

    def start(self, claim: Claim) -> None:
        """Start the step that the job needs in its state. `poll` reports the end."""
        task = self._tasks[claim.job] = StepTask(claim)
        if self._threads < min(self._most, len(self._tasks)):
            try:
                threading.Thread(target=self._work, name="step", daemon=True).start()
            except RuntimeError as exc:
                if not self._threads:
                    trouble = self._machine.trouble_behind(exc)
                    self._ended.append(StepEnd(claim, (), interrupted=True, trouble=trouble))
                    self._wake()
                    return
            else:
                self._threads += 1
        self._queue.put(task)

    def poll(self) -> list[StepEnd]:
        """Return the steps that have ended since the last call."""
        if not self._tasks:
            return []
        self._hear_of_ends()
        found = [self._ended.popleft() for _ in range(len(self._ended))]
        if self._doubt_s is not None:
            found = self._believed(found, self._doubt_s)
        for end in found:
            del self._tasks[end.claim.job]
        return found

    def _hear_of_ends(self) -> None:
        self._spawner.poll()
        for answer in self._channel.answers():
            task = self._tasks.get(answer.key)
            if task is not None:
                task.inbox.put(answer)

    def _believed(self, ends: Sequence[StepEnd], doubt_s: Callable[[bool, float], float]) -> list[StepEnd]:
        """Return those of these ends, and of earlier ones, that are not held back (any more)."""
        now = time.monotonic()
        found = []
        for end in ends:
            task = self._tasks[end.claim.job]
            seconds = doubt_s(bool(end.failure), task.ran_s) if task.ran_s else 0.0
            if seconds and task.stop:
                found.append(end._replace(interrupted=True))
            elif seconds:
                self._doubted.append((now + seconds, end))
            else:
                found.append(end)
        found += [end for until, end in self._doubted if now >= until]
        self._doubted = [(until, end) for until, end in self._doubted if now < until]
        return found

    def stop(self, jobs: Collection[int], grace_s: float) -> None:
        """Interrupt the steps of those jobs: TERM to their processes, KILL after the grace period. Returns at once.

        If a program has already ended by itself, its step goes on, unless that end is held back.
        """
        self._hear_of_ends()
        self._doubted = [
            (0.0, end._replace(interrupted=True)) if end.claim.job in jobs else (until, end) for until, end in self._doubted
        ]
        for job in jobs:
            task = self._tasks.get(job)
            if task is not None and task.stop is None:
                task.stop = _Stop(grace_s)
                task.inbox.put(task.stop)

    # --- in the threads -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            task = self._queue.get()
            self._ended.append(self._end_of(task))
            self._wake()

    def _end_of(self, task: StepTask) -> StepEnd:
        failure, cause, interrupted, is_death, trouble = "", "", False, False, None
        try:
            if task.stop:
                raise _Interrupted
            if task.claim.state in states.UNPREPARED_STATES:
                self._prepare(task)
            else:
                self._settle(task)
            failpoint("after-step")
        except _Interrupted as exc:
            interrupted, is_death = True, exc.is_death
        except Exception as exc:  # one bad job fails alone
            trouble = self._machine.trouble_behind(exc)
            if isinstance(exc, LaunchError):
                failure, interrupted = str(exc), task.stop is not None
                cause = getattr(exc, "cause", "") or _cause_in(task.part, str(exc))
                reason = "" if trouble or interrupted else self._machine.why_data_fails()
                trouble = MachineTrouble(reason) if reason else trouble
            elif trouble is None:
                log.exception("Job %s: unexpected error in its %s step.", task.claim.label, task.claim.state)
                failure, cause = f"Unexpected {type(exc).__name__}: {exc}", f"{task.part}: unexpected {type(exc).__name__}"
            if trouble is not None:  # the machine's: the step is done again
                failure, interrupted = "", True
        return StepEnd(task.claim, tuple(task.reached), failure, cause, interrupted, trouble, task.note, is_death=is_death)

    def _make_directory(self, directory: str) -> None:
        trouble = self._machine.data_trouble()
        if trouble:
            raise trouble
        make_directory(directory, self._context.data_directory)

    def _prepare(self, task: StepTask) -> None:
        claim = task.claim
        directory = invocation.workdir(claim, self._context)
        self._make_directory(directory)
        if claim.input_files and claim.parents != "[]":
            links.link_inputs(directory, claim.name, invocation.parents(claim, self._context), claim.input_files)
        if claim.stage_in_url and claim.state != states.STAGED_IN:
            from .staging import transfers

            task.part = "stage-in"
            transfers.stage_in(claim.stage_in_url, directory, self._runner_of(task), lambda: task.stop is not None)
            task.reached.append(states.STAGED_IN)
        if claim.preprocess:
            self._script(task, "preprocess", claim.preprocess)
        task.reached.append(states.PREPROCESSED)

    def _settle(self, task: StepTask) -> None:
        claim = task.claim
        stages_out = claim.stage_out_url and claim.stage_out_files
        if claim.state in _TROUBLE:
            self._script(task, *_handler(claim))
            return
        if claim.postprocess and claim.state != states.POSTPROCESSED:
            self._script(task, "postprocess", claim.postprocess)
            task.reached.append(states.POSTPROCESSED)
            if stages_out:
                return  # a separate step: the script may have moved the job
        if stages_out:
            from .staging import transfers

            directory = invocation.workdir(claim, self._context)
            run, is_cancelled = self._runner_of(task), lambda: task.stop is not None
            task.part = "stage-out"
            done = transfers.stage_out(claim.stage_out_url, claim.stage_out_files, directory, run, is_cancelled)
            if done.unmatched:
                task.note = f"Nothing to stage out matches {', '.join(map(shown, done.unmatched))}"
        task.reached.append(states.JOB_FINISHED)

    def _script(self, task: StepTask, kind: str, command: str) -> None:
        """Run a script of the job's application, and raise unless it exits with 0."""
        task.part = kind
        directory = invocation.workdir(task.claim, self._context)
        try:
            argv = field_specs.split_command(command)
        except ValueError as exc:
            raise StepFailed(f"The {kind} script cannot be split into words ({exc}): {command}") from exc
        if not argv:
            raise StepFailed(f"The {kind} script is empty.")
        self._make_directory(directory)
        called = f"{task.claim.application}.{kind}" if payload.is_hook(command) else command
        output = _begin_log(directory, kind, called, task.claim)
        own = invocation.hook_environment(task.claim, kind, self._context)
        try:
            if invocation.has_parent_files(own):
                invocation.give_parents(task.claim, own)
            code = self._run(task, argv, directory, output, own, self._time_limit_s)
            words = tail(f"{directory}/{output}", _TAIL_LINES) if code else ""
        except LaunchError as exc:
            raise StepFailed(f"The {kind} script {called}: {exc}", causes.of_message(kind, str(exc))) from exc
        finally:
            if output != f"{kind}.log":
                with suppress(OSError):
                    os.unlink(f"{directory}/{output}")
        if code:
            raise StepFailed(f"The {kind} script {called}: {reason(code)}: {words}", f"{kind}: {causes.of_exit(code)}")

    def _runner_of(self, task: StepTask) -> Run:
        """Return the function by which `staging` starts a program for that task."""

        def run(argv: Sequence[str], directory: str) -> tuple[int, str]:
            log_name = _TRANSFER_LOG.format(task.claim.job_id[:8])
            path = os.path.join(directory, log_name)
            own = invocation.mark_alone(task.claim, self._context)
            try:
                code = self._run(task, list(argv), directory, log_name, own, None)
                return code, tail(path, _TAIL_LINES)
            finally:
                if os.path.lexists(path):
                    os.unlink(path)

        return run

    def _run(
        self, task: StepTask, argv: list[str], directory: str, output: str, own: dict[bytes, bytes], limit_s: float | None
    ) -> int:
        program = invocation.find_program(argv[0], own, directory, self._context)
        words = [os.fsencode(word) for word in argv]
        self._channel.start(Request(task.claim.job, program, words, own, directory, output, appends=True))
        self._spawner.flush()
        started = time.monotonic()
        try:
            return self._end_of_program(task, None if limit_s is None else started + limit_s)
        except Empty:
            self._end_processes(task, self._kill_grace_s)
            raise StepFailed(f"it did not end within {limit_s:g} s and was stopped") from None
        finally:
            task.ran_s += time.monotonic() - started

    def _end_of_program(self, task: StepTask, until: float | None) -> int:
        """Wait for the end of a program that is being started. Raise Empty at the time `until`, on the monotonic clock."""
        while True:
            heard = task.inbox.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            if isinstance(heard, Ended):
                if heard.end == ABANDONED:  # its helper ended it, as this launcher was silent for too long
                    raise _Interrupted
                return heard.returncode
            if isinstance(heard, FailedStart):
                raise heard.error
            if isinstance(heard, Started):
                failpoint("in-step")
                continue
            if isinstance(heard, _Stop):
                self._end_processes(task, heard.grace_s)
            else:  # its spawn helper has died
                self._end_run(task, self._kill_grace_s)
                raise _Interrupted(is_death=task.stop is None)
            raise _Interrupted

    def _end_processes(self, task: StepTask, grace_s: float) -> None:
        job = task.claim.job
        self._channel.signal(job, signal.SIGTERM, is_group=True)
        self._spawner.flush()
        self._end_run(task, grace_s)
        kill_at = time.monotonic() + grace_s
        while True:
            try:
                if not isinstance(task.inbox.get(timeout=max(0.1, kill_at - time.monotonic())), (Started, _Stop)):
                    return
            except Empty:  # it hides its environment
                self._channel.signal(job, signal.SIGKILL, is_group=True)
                self._spawner.flush()

    def _end_run(self, task: StepTask, grace_s: float) -> None:
        end_runs(self._context.db_directory, grace_s, runs=[invocation.mark(task.claim, self._context)])


def _cause_in(part: str, message: str) -> str:
    return f"{part} failed" if part.startswith("stage-") else causes.of_message(part, message)


def _handler(claim: Claim) -> tuple[str, str]:
    """Return the script that decides about a job in trouble, and its command."""
    own = claim.handle_error if claim.state == states.RUN_ERROR else claim.handle_timeout
    if own:
        return ("handle_error" if claim.state == states.RUN_ERROR else "handle_timeout"), own
    return "postprocess", claim.postprocess or ""


def _begin_log(directory: str, kind: str, command: str, claim: Claim) -> str:
    """Keep the logs of earlier calls, and begin a new log with the command and the reason. Return the log's name.

    If jobs may share the directory, the name is a hidden link: another job may rename the log itself at any moment.
    """
    path, name = f"{directory}/{kind}.log", f"{kind}.log"
    lines = [f"# Balsam {_TITLES[kind]}: {command}"]
    if claim.state in _TROUBLE:
        lines.append(f"# Invoked to handle {claim.state}")
    try:
        if job_files.is_generated(claim.workdir, claim.job_id):
            job_files.put_aside(path)
        else:
            name = job_files.link_name(claim.job_id, "log")
            with suppress(FileNotFoundError):
                os.unlink(f"{directory}/{name}")
        _write_new(f"{directory}/{name}", lines)
        if name != f"{kind}.log" and not job_files.give_name(f"{directory}/{name}", path):
            name = f"{kind}.log"
            _write_new(path, lines)
    except OSError as exc:
        raise StepFailed(f"{path} cannot be written: {exc.strerror}") from exc
    return name


def _write_new(path: str, lines: Sequence[str]) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with open(handle, "w", encoding="utf-8") as file:
        file.write("\n".join([*lines, ""]))
