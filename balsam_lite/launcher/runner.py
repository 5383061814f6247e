"""Runs claimed jobs on this host: start, hear of their end, stop. Knows nothing of the database.

A run that is being stopped keeps its place until its whole process tree is gone.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

from .. import outputs, spec, states
from ..clock import SECOND_US, Clock, format_us
from ..db.store.claims import Claim, Exit
from ..errors import InvalidSpec, LaunchError, MachineTrouble, SpawnFailed
from ..processes import Process, descendants, living, signal_all, signal_child, signal_group
from . import commands, pinning, process, steps
from .failpoints import failpoint
from .nodes import Place
from .pinning import CpuSet
from .spawner import Request, Spawner
from .start_failures import BUSY, NODE, REFUSED, StartFailure
from .trouble import Machine

#: A command that kills its ranks when it is told to end has so many seconds to do that.
_LAST_S = 3.0
#: How often to look for MPI commands that do not start anything, and among runs of which age, in seconds.
_STUCK_PERIOD_S, _STUCK_S = 2.0, 300.0
#: Bytes of the end of a run's output that are read for messages of the MPI command.
_OUTPUT_BYTES = 16_384
#: A job that the MPI command refuses this often, without a sign that a node or Slurm is to blame, has failed.
_MOST_REFUSALS = 4
#: A tree that is being stopped is looked at this often, in seconds.
STOP_PERIOD_S = 0.02
_NO_RESULT = "The program ended with exit code 0 before its function returned: by os._exit(), or as another program (os.exec…)"


class _Run:
    """A live process of one attempt."""

    __slots__ = (
        "claim", "ended", "failure", "is_spared", "kill_at", "mark", "members", "pid", "place", "started_us", "stop_result",
        "told_us"
    )  # fmt: skip

    def __init__(self, claim: Claim, place: Place, pid: int, mark: bytes, started_us: int) -> None:
        self.claim, self.place, self.pid, self.mark, self.started_us = claim, place, pid, mark, started_us
        self.ended: process.Ended | None = None
        self.failure: StartFailure | None = None  # why it is being stopped: its MPI command waits for what it cannot start
        # While it is being stopped:
        self.stop_result = ""  # what a run that did not end by itself counts as
        self.told_us: int | None = None  # when it was told to stop, because the launcher stops
        self.kill_at = 0.0
        self.members: list[Process] = []
        self.is_spared = False  # its MPI command has not been told, as that would kill the ranks at once


class Finished(NamedTuple):
    """A run that is over, and the place that is free again."""

    exit: Exit
    place: Place | None  # None: it was reported as free before
    is_doubted: bool = False  # only the place is free; how it ended is reported once more, see `PatientRunner`
    trouble: MachineTrouble | None = None  # why it could not start or failed; the job goes back (`given_back`)
    lost_hosts: tuple[str, ...] = ()  # nodes that do not answer any more


def given_back(claim: Claim, trouble: MachineTrouble, now_us: int) -> Exit:
    """Return the end of a job that the machine kept from starting: it goes back to where it can be taken again."""
    return Exit(claim.job, claim.attempt, states.RESTART_READY, None, f"Not started: {trouble.message}", None, now_us)


class Runner(Protocol):
    """What the loop asks of whoever runs jobs: `LocalRunner` on this host, the ensemble's on many."""

    @property
    def jobs(self) -> set[int]:
        """The jobs that hold a place here and are not being stopped."""

    def __len__(self) -> int:
        """How many hold a place."""

    @property
    def is_busy(self) -> bool:
        """Whether something is going on that no signal tells of, so that `poll` should be called again soon."""

    @property
    def started(self) -> int:
        """Return the number of programs that are known to have started."""

    def start(self, claim: Claim, place: Place) -> None:
        """Start a job at its place. One that cannot be started is reported by `poll`.

        As a RUN_ERROR, or, where the machine is to blame, as RESTART_READY and with the trouble.
        """

    def poll(self) -> list[Finished]:
        """The runs that ended since the last call, with true start and end times."""

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End the process trees of those jobs: TERM now, KILL after the grace. Returns at once; `poll` reports the end.

        `result` is what a run counts as that does not exit with 0. If it is RUN_TIMEOUT, the Exit says when the run was
        told; one that had ended before that ended by itself, and is reported so.
        """

    def kill_now(self) -> None:
        """Let the grace of all trees that are being stopped be over."""


class LocalRunner:
    """One process tree per job, on this host; that of a job of many nodes has the MPI command at its root.

    Args:
        context: what all jobs share.
        tail_lines: so many lines of a failed job's output go into its history.
        cpus: of this host, for jobs that want to be pinned to some.
    """

    def __init__(
        self,
        context: commands.Context,
        clock: Clock,
        tail_lines: int,
        spawner: Spawner,
        children: process.Children,
        cpus: Sequence[int] = (),
    ) -> None:
        self._context, self._clock, self._tail_lines = context, clock, tail_lines
        self._spawner, self._children = spawner, children
        self._starting: dict[int, tuple[Claim, Place]] = {}  # by job
        self._runs: dict[int, _Run] = {}  # by pid
        self._stopping: dict[int, _Run] = {}  # by pid
        self._stop_at_once: dict[int, tuple[str, float]] = {}  # by job: what to do when it is started
        self._asking: set[int] = set()  # pids of programs that ask ranks to end
        self._over: list[Finished] = []  # to be reported: never started, or ended before they were told to
        self._machine = Machine(context.data_directory)
        self.started = 0  # number of programs
        self._cpus = CpuSet(cpus)
        self._pinned: dict[int, tuple[int, ...]] = {}  # by job
        self._refused: Counter[int] = Counter()  # how often the MPI command did not start a job
        self._look_for_stuck_at = 0.0

    @property
    def jobs(self) -> set[int]:
        """The jobs that hold a place here and are not being stopped."""
        running = {run.claim.job for run in self._runs.values() if run.pid not in self._stopping}
        return running | (self._starting.keys() - self._stop_at_once.keys())

    def __len__(self) -> int:
        return len(self._starting) + len(self._runs) + len(self._over)

    @property
    def is_busy(self) -> bool:
        """Whether something is going on that no signal tells of, so that `poll` should be called again soon."""
        return bool(self._stopping or self._stop_at_once or self._over)

    def start(self, claim: Claim, place: Place) -> None:
        """Start a job at its place. One that cannot be started is reported by `poll`."""
        try:
            self._spawner.start(self._request(claim, place))
            self._starting[claim.job] = (claim, place)
        except Exception as exc:  # noqa: BLE001  # one bad job fails alone, and the launcher goes on
            self._refuse(claim, place, exc)

    def _request(self, claim: Claim, place: Place) -> Request:
        argv = commands.argv(claim, place, self._context)
        own = commands.environment(claim, place, self._context)
        directory, output = commands.workdir(claim, self._context), spec.output_name(claim.name)
        search = own.get(b"PATH") or self._context.environ.get(b"PATH")
        program = process.find_program(argv[0], search, directory)
        trouble = self._machine.data_trouble()
        if trouble:
            raise trouble
        is_new = process.make_directory(directory, self._context.data_directory)
        is_generated = outputs.is_generated(claim.workdir, claim.job_id)
        renew = partial(outputs.renew, directory, output, claim.job_id, claim.attempt, is_generated)
        is_rerun = claim.attempt > 1 or not (is_new or is_generated)
        variables = commands.as_variables(own, self._context)
        words = [os.fsencode(word) for word in argv]
        prepare, cpus = self._preparation(claim, own, directory, is_generated), self._pin(claim, place)
        return Request(
            claim.job, program, words, variables, directory, output, prepare, cpus=cpus, renew=renew, is_rerun=is_rerun
        )

    def _preparation(
        self, claim: Claim, own: Mapping[bytes, bytes], directory: str, is_generated: bool
    ) -> Callable[[], None] | None:
        """What is to be done in its directory just before it starts, if there is something."""
        # A launcher that is killed between the claim and the start leaves a job that counts as prepared and has no links. Links
        # are made before the output file, so a job without that file has not been started. One that has keeps what it changed.
        links = claim.parents != "[]" and (
            claim.state in states.UNPREPARED_STATES
            or not os.path.lexists(outputs.find(directory, spec.output_name(claim.name), claim.job_id, is_generated))
        )
        path = commands.order_path(claim, self._context)
        names_parents = commands.has_parent_files(own)
        if not (links or path or names_parents):
            return None

        def prepare() -> None:
            try:
                if links:
                    steps.link_inputs(claim, self._context)
                if path:
                    steps.give_order(claim, self._context, path)
                if names_parents:
                    commands.give_parents(claim, own)
            except LaunchError as exc:
                raise SpawnFailed(str(exc)) from exc

        return prepare

    def _pin(self, claim: Claim, place: Place) -> tuple[int, ...]:
        """The CPUs that the job may run on; none where it may run on all, or the MPI command sees to that."""
        number = pinning.wanted(claim)
        if not number or self._context.mpi.words(claim, place):
            return ()
        self._pinned[claim.job] = self._cpus.take(number)
        return self._pinned[claim.job]

    def _unpin(self, claim: Claim) -> None:
        if self._pinned:
            self._cpus.give_back(self._pinned.pop(claim.job, ()))

    def _forget_order(self, claim: Claim) -> None:
        """Remove what its program had to know, and has read."""
        with suppress(OSError, InvalidSpec):
            path = commands.order_path(claim, self._context)
            if path:
                os.unlink(path)

    def _refuse(self, claim: Claim, place: Place, exc: Exception) -> None:
        self._unpin(claim)
        self._forget_order(claim)
        now_us = self._clock.now_us()
        trouble = self._machine.trouble_behind(exc)
        if trouble is not None:
            self._over.append(Finished(given_back(claim, trouble, now_us), place, trouble=trouble))
            return
        reason = str(exc) if isinstance(exc, LaunchError) else f"unexpected {type(exc).__name__}: {exc}"
        message = f"The job could not be started: {reason}"
        ended = Exit(claim.job, claim.attempt, states.RUN_ERROR, None, message, None, now_us)
        self._over.append(Finished(ended, place))

    def poll(self) -> list[Finished]:
        """The runs that ended since the last call, with true start and end times."""
        self._hear_of_starts()
        ends = self._children.take(self._runs.keys())
        # A program can be over before its starter has said that it was started. Asked in this order, and with the starter
        # looking the other way round (`main`), neither can miss the other.
        while self._children.has_unclaimed and self._spawner.has_answers:
            self._hear_of_starts()
            ends += self._children.take(self._runs.keys())
        self._note_ends(ends)
        finished, self._over = self._over, []
        self._look_for_stuck_starts()
        if self._stopping:
            finished += self._go_on_stopping()
        if self._asking:
            self._asking -= {ended.pid for ended in self._children.take(self._asking)}
        return finished

    def _note_ends(self, ends: Iterable[process.Ended]) -> None:
        for ended in ends:
            run = self._runs[ended.pid]
            run.ended = ended
            if ended.pid in self._stopping:
                continue
            # A program that a signal has killed could not end its own: Open MPI's ranks outlive their mpiexec.
            if ended.returncode < 0 and self._left_behind(run):
                self._stopping[run.pid] = run
            else:
                self._over.append(self._finish(run))

    def _look_for_stuck_starts(self) -> None:
        """Stop MPI commands that wait for what they could not start."""
        now, now_us = self._clock.monotonic(), self._clock.now_us()
        if now < self._look_for_stuck_at:
            return
        self._look_for_stuck_at = now + _STUCK_PERIOD_S
        for run in [run for run in self._runs.values() if now_us - run.started_us < _STUCK_S * SECOND_US]:
            if run.ended or run.stop_result:
                continue
            failure = self._context.mpi.judge(run.claim, run.place, None, partial(self._output, run))
            if failure is not None:
                run.failure = failure
                self.stop([run.claim.job], states.RUN_ERROR, _LAST_S)

    def _output(self, run: _Run) -> tuple[str, bool]:
        """Return the end of a run's output, and whether that is all of it."""
        path = self._output_path(run)
        try:
            size = os.stat(path, follow_symlinks=False).st_size
        except OSError:
            return "", False
        return process.tail(path, _OUTPUT_BYTES, _OUTPUT_BYTES), size <= _OUTPUT_BYTES

    def _hear_of_starts(self) -> None:
        for job, pid, started_us in self._spawner.answers():
            claim, place = self._starting.pop(job)
            to_stop = self._stop_at_once.pop(job, None)
            if isinstance(pid, LaunchError):
                self._refuse(claim, place, pid)
                continue
            self.started += 1
            self._runs[pid] = _Run(claim, place, pid, commands.mark(claim, self._context), started_us)
            failpoint("after-spawn")
            if to_stop:
                self.stop([job], *to_stop)

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End the process trees of those jobs: TERM now, KILL after the grace. Returns at once; `poll` reports the end.

        `result` is what a run counts as that does not exit with 0. If it is RUN_TIMEOUT, the Exit says when the run was
        told; one that had ended before that ended by itself, and is reported so.
        """
        self._stop_at_once.update(dict.fromkeys(self._starting.keys() & set(jobs), (result, grace_s)))
        runs = self._without_ended(
            [run for run in self._runs.values() if run.claim.job in jobs and run.pid not in self._stopping]
        )
        if not runs:
            return
        told_us = self._clock.now_us() if result == states.RUN_TIMEOUT else None
        for run in runs:
            run.stop_result, run.told_us, run.kill_at = result, told_us, self._clock.monotonic() + grace_s
            self._stopping[run.pid] = run
        by_manner: dict[str, list[_Run]] = {}
        for run in runs:
            by_manner.setdefault(self._context.mpi.at_term(run.claim), []).append(run)
        for run in by_manner.get(commands.PASSES_ON, ()):
            # To it alone: what it runs below it, such as an srun to reach other nodes, would kill the ranks at SIGTERM.
            below = _started_by_shell(run)
            signal_child(run.pid, signal.SIGTERM)
            signal_all(below, signal.SIGTERM)
        spared = by_manner.get(commands.KILLS, [])
        for run in spared:
            run.is_spared = True
            if _is_in_shell(run):  # when the ranks have ended it would go on with the next command of its line
                signal_child(run.pid, signal.SIGTERM)
        if not self._ask_to_end([run.claim for run in spared]):
            self._terminate(spared)
        self._terminate(by_manner.get(commands.UNKNOWN, []))

    def _without_ended(self, runs: Sequence[_Run]) -> list[_Run]:
        """Return the runs that have not ended. One that can be reaped by now ended by itself, whatever is signalled next."""
        ends = self._children.take({run.pid for run in runs})
        for ended in ends:
            run = self._runs[ended.pid]
            run.stop_result, run.told_us, run.kill_at = "", None, 0.0
            self._stopping.pop(run.pid, None)
        self._note_ends(ends)
        return [run for run in runs if run.ended is None] if ends else list(runs)

    def _ask_to_end(self, claims: Sequence[Claim]) -> bool:
        """Have the ranks of those jobs told to end, wherever they run. Returns False where that cannot be done."""
        words = self._context.mpi.end_words(claims) if claims else []
        if not words:
            return False
        argv = [os.fsencode(word) for word in words]
        try:
            program = process.find_program(words[0], self._context.environ.get(b"PATH"), "/")
            self._asking.add(
                self._spawner.spawn(Request(0, program, argv, self._context.variables, "/", os.devnull, appends=True))
            )
        except SpawnFailed:
            return False
        return True

    def _terminate(self, runs: Sequence[_Run]) -> None:
        """SIGTERM to all processes of those runs on this host, but to the command of one that is spared."""
        if not runs:
            return
        everything = descendants([run.pid for run in runs], [run.mark for run in runs])
        if not runs[0].is_spared:  # the look took milliseconds, and these have not been told yet
            runs = self._without_ended(runs)
        for run in runs:
            run.members = [p for p in everything if run.pid in (p.pid, p.session, p.group)]
            # The group in one go: a shell that outlived its child by a moment would start the next command.
            if not run.is_spared:
                signal_group(run.pid, signal.SIGTERM)
        groups = {run.pid for run in runs}
        others = [p for p in everything if p.group not in groups]
        signal_all(others, signal.SIGTERM)
        # Whoever opened a session of its own cannot be told apart by run here, and need not be: all are to end.
        for run in runs[:1]:
            run.members += [p for p in others if p.session not in groups]

    def kill_now(self) -> None:
        """Let the grace of all trees that are being stopped be over."""
        for run in self._stopping.values():
            run.kill_at = 0.0

    def _go_on_stopping(self) -> list[Finished]:
        now = self._clock.monotonic()
        overdue = [run for run in self._stopping.values() if now >= run.kill_at]
        if overdue:
            self._kill(overdue)
        finished = []
        for run in list(self._stopping.values()):
            if run.ended and not living(run.members) and not (now < run.kill_at and self._left_behind(run)):
                del self._stopping[run.pid]
                finished.append(self._finish(run))
        return finished

    def _left_behind(self, run: _Run) -> bool:
        """Whether processes of the run live that nobody knows of yet; they become members."""
        run.members = descendants([], [run.mark])
        return bool(run.members)

    def _kill(self, runs: Iterable[_Run]) -> None:
        for run in runs:
            leaders = [] if run.ended else [run.pid]
            found = [*living(run.members), *descendants(leaders, [run.mark])]
            spared = [one for one in found if one.group == run.pid] if run.is_spared else []
            if spared:
                # Killed itself, it would leave its ranks on other nodes behind.
                run.is_spared = False
                run.kill_at = self._clock.monotonic() + _LAST_S
                signal_all(spared, signal.SIGTERM)
                continue
            signal_all(found, signal.SIGKILL)
            run.members = found

    def _finish(self, run: _Run) -> Finished:
        del self._runs[run.pid]
        self._unpin(run.claim)
        self._forget_order(run.claim)
        assert run.ended is not None
        failpoint("after-exit")
        code = run.ended.returncode
        failure = run.failure
        if failure is None and not run.stop_result:
            failure = self._context.mpi.judge(run.claim, run.place, code, partial(self._output, run))
        if failure is not None and run.told_us is None:
            return self._not_run(run, failure)
        result = run.stop_result or states.RUN_ERROR if code else states.RUN_DONE
        message = process.reason(code) if code else ""
        if run.told_us is not None:
            message = f"Told to stop at {format_us(run.told_us)}, {message if code < 0 else f'ended with {code}'}"
        output = self._tail(run) if code else ""
        message = f"{message}: {output}" if output else message
        claim, trouble = run.claim, None
        if result == states.RUN_DONE and run.told_us is None and self._has_no_result(claim):
            result, message = states.RUN_ERROR, _NO_RESULT
        if result == states.RUN_ERROR and not run.stop_result:
            trouble = self._trouble_at_the_end()
            if trouble is not None:  # a restart, which counts: it may be this job that fills the disk
                result, message = states.RESTART_READY, f"{trouble.message}; the run ended: {message}"
        ended = Exit(claim.job, claim.attempt, result, code, message, run.started_us, run.ended.ended_us, run.told_us)
        return Finished(ended, run.place, trouble=trouble)

    def _not_run(self, run: _Run, failure: StartFailure) -> Finished:
        """Return the end of a run that was not started or whose node died: the job goes back, unless it is itself at fault."""
        claim = run.claim
        assert run.ended is not None
        started_us = run.started_us if failure.had_started else None
        message = f"{'Lost its node' if failure.had_started else 'Not started'}: {failure.words}"
        back = Exit(
            claim.job, claim.attempt, states.RESTART_READY, None, message, started_us, run.ended.ended_us, is_counted=False
        )
        if failure.kind == BUSY:
            return Finished(back, run.place, trouble=MachineTrouble(failure.words))
        if failure.kind == NODE:
            return Finished(back, run.place, lost_hosts=failure.hosts)
        self._refused[claim.job] += 1
        times = self._refused[claim.job]
        is_own = failure.kind == REFUSED and (claim.mpi_flags or "SLURM_" in claim.environ_vars)
        if is_own or times >= _MOST_REFUSALS:
            again = f" {times} times" if times > 1 else ""
            message = f"The MPI command did not run it{again}: {failure.words}"
            back = back._replace(result=states.RUN_ERROR, return_code=run.ended.returncode, message=message)
            return Finished(back, run.place)
        return Finished(back, run.place, trouble=MachineTrouble(failure.words, scope=f"job {claim.label}"))

    def _has_no_result(self, claim: Claim) -> bool:
        """Return whether the program should have left a result, and has not."""
        path = commands.result_path(claim, self._context)
        if not path or os.path.lexists(path):
            return False
        try:
            return os.path.basename(path) not in os.listdir(os.path.dirname(path))  # NFS may remember that it was not there
        except OSError:
            return True

    def _trouble_at_the_end(self) -> MachineTrouble | None:
        """Return the trouble because of which a run probably failed: data/ cannot be written."""
        reason = self._machine.why_data_fails()
        return MachineTrouble(reason) if reason else None

    def _tail(self, run: _Run) -> str:
        return process.tail(self._output_path(run), self._tail_lines)

    def _output_path(self, run: _Run) -> str:
        claim = run.claim
        directory, is_generated = commands.workdir(claim, self._context), outputs.is_generated(claim.workdir, claim.job_id)
        return outputs.find(directory, spec.output_name(claim.name), claim.job_id, is_generated)


def _is_in_shell(run: _Run) -> bool:
    """Whether a shell runs its line, and the MPI command in that."""
    return bool(run.claim.command_template) and process.is_shell(run.pid)


def _started_by_shell(run: _Run) -> list[Process]:
    """The MPI command of a line that a shell runs, and what it has started beside it; the shell passes nothing on to them."""
    if not _is_in_shell(run):
        return []
    return [one for one in descendants([run.pid], []) if one.parent == run.pid]
