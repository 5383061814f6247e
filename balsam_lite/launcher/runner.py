"""Run claimed jobs on this host: start them, collect their ends, stop them. Knows nothing of the database.

Spawn helpers own the programs (`spawner`). A run that is being stopped keeps its place until its whole process tree is gone.
"""

from __future__ import annotations

import logging
import os
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from ..core import states
from ..core.clock import SECOND_US, Clock
from ..core.errors import LaunchError, SpawnFailed
from ..core.process_table import Process, command_of, descendants, living, reap_adopted, signal_all, signal_process
from ..db.store.claims import Claim, Shape, unstarted
from ..db.store.runs import ProgramStart, RunResult
from .exec import hardware, invocation, run_file
from .exec.hardware import CpuSet
from .exec.invocation import Invocation
from .exec.program import BY_ITSELF, Request
from .exec.spawner import Ended, FailedStart, Leftover, Lost, Spawner, Started, Withdrawn
from .exec.trouble import Machine
from .failpoints import failpoint
from .placement import Placement
from .run_results import Finished, LiveRun, ResultReader

log = logging.getLogger(__name__)

#: A command that kills its ranks when it is told to end has this many seconds to do that.
_FINAL_GRACE_S = 3.0
#: Interval of checks for MPI commands that start nothing, and maximum age of a run for this check, in seconds.
_STUCK_PERIOD_S, _STUCK_MAX_AGE_S = 2.0, 300.0
#: Interval, in seconds, of checks of a process tree that is being stopped.
STOP_PERIOD_S = 0.02
#: Processes that a run has left are given this number of seconds to end: the first command of a pipeline often ends last.
_LINGER_S = 0.1
#: Above this number, processes that runs have left are checked for those still alive.
_MAX_LEFT = 100


class Runner(ABC):
    """Runs jobs for the loop: `LocalRunner` on this host, `ClusterRunner` on many. It queues jobs without a placement."""

    def __init__(self) -> None:
        self.started = 0  # number of programs that are known to have started
        self.started_from_queue = 0  # number of queued jobs that have got a placement
        self._queue: dict[int, Claim] = {}  # by job, the oldest first
        self._withdrawn: list[Claim] = []

    @property
    @abstractmethod
    def jobs(self) -> set[int]:
        """Return the jobs that hold a placement here and are not being stopped."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of jobs that hold a placement."""

    @abstractmethod
    def starts(self) -> list[ProgramStart]:
        """Return when and where the running programs started."""

    @property
    @abstractmethod
    def is_busy(self) -> bool:
        """Return whether something is going on that causes no signal, so that `poll` should be called again soon."""

    @property
    def queued(self) -> Counter[Shape]:
        """Return the number of queued jobs of each shape that wait for a placement."""
        return Counter(claim.shape for claim in self._queue.values())

    @property
    def queued_jobs(self) -> set[int]:
        """Return the jobs that wait for a placement and are not being withdrawn."""
        return set(self._queue)

    def queue(self, claim: Claim) -> None:
        """Queue a job to replace the next run of its shape that ends with exit code 0."""
        self._queue[claim.job] = claim

    def start_queued(self, place: Placement) -> bool:
        """Start the oldest queued job of that shape at a free placement. Return False if all are being withdrawn."""
        job = next((job for job, claim in self._queue.items() if claim.shape == place.shape), None)
        if job is None:
            return False
        self.started_from_queue += 1
        self.start(self._queue.pop(job), place)
        return True

    def withdraw(self, jobs: Collection[int]) -> None:
        """Withdraw those queued jobs. `withdrawn` returns those that have certainly never started."""
        self._withdrawn += [self._queue.pop(job) for job in self._queue.keys() & set(jobs)]

    def withdrawn(self) -> list[Claim]:
        """Return the jobs that were withdrawn since the last call before they were started."""
        found, self._withdrawn = self._withdrawn, []
        return found

    @abstractmethod
    def start(self, claim: Claim, place: Placement) -> None:
        """Start a job at its placement. One that cannot be started is reported by `poll`.

        As a RUN_ERROR, or, where the machine is to blame, as RESTART_READY and with the trouble.
        """

    @abstractmethod
    def poll(self) -> list[Finished]:
        """Return the runs that ended since the last call, with true start and end times."""

    @abstractmethod
    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End the process trees of those jobs: TERM now, KILL after the grace. Returns at once; `poll` reports the end.

        `result` is the result of runs that do not exit with 0. If it is RUN_TIMEOUT, the RunResult has the time when it was
        told to stop; a run that had ended before that is reported as ended by itself.
        """

    def leave(self, nodes: Collection[int], why: str) -> None:  # noqa: B027  # only some runners start on other nodes
        """End the MPI jobs that run on a node which does not answer. They go back, uncounted."""

    @abstractmethod
    def kill_now(self) -> None:
        """End the grace period of all process trees that are being stopped."""


class LocalRunner(Runner):
    """One process tree per job, on this host; that of a job of many nodes has the MPI command at its root.

    Args:
        context: what all jobs share.
        tail_lines: number of lines of a failed job's output that go into its history.
        cpus: of this host, for jobs that want to be pinned to some.
    """

    def __init__(
        self, context: invocation.Context, clock: Clock, tail_lines: int, spawner: Spawner, cpus: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self._context, self._clock, self._spawner = context, clock, spawner
        self._channel = spawner.channel()  # programs of jobs; the key is the job's number
        self._asking = spawner.channel()  # programs that ask ranks to end
        self._starting: dict[int, tuple[Claim, Placement]] = {}  # by job, like those below
        self._handed_on: set[int] = set()  # of the queued ones those that a spawn helper has
        self._withdrawing: set[int] = set()  # of these those that it is to give back
        self._runs: dict[int, LiveRun] = {}
        self._stopping: dict[int, LiveRun] = {}
        self._stop_at_once: dict[int, tuple[str, float]] = {}  # what to do when it is started
        self._lingering: list[tuple[float, LiveRun]] = []  # ended well, with processes that may be about to end; until when
        self._left: dict[int, list[Process]] = {}  # what jobs have left running, to be ended before they run again
        self._delayed: dict[int, tuple[float, list[Process]]] = {}  # of those that start, what has to end first, by when
        self._most_left = _MAX_LEFT  # more are looked through for what still lives
        self._orphans: list[Process] = []  # what dead spawn helpers had adopted, now children of this process
        self._over: list[Finished] = []  # to be reported: never started, or ended before they were told to
        self._lanes: dict[tuple[Shape, bytes | None], int] = {}
        self._machine = Machine(context.data_directory)
        self._results = ResultReader(context, clock, tail_lines, self._machine)
        self._made: dict[int, Invocation] = {}  # by job, until it has ended
        self._cpus = CpuSet(cpus)
        self._pinned: dict[int, tuple[int, ...]] = {}  # by job
        self._look_for_stuck_at = 0.0

    @property
    def jobs(self) -> set[int]:
        """Return the jobs that hold a placement here and are not being stopped."""
        return (self._runs.keys() - self._stopping.keys()) | (self._starting.keys() - self._stop_at_once.keys())

    def __len__(self) -> int:
        return len(self._starting) + len(self._runs) + len(self._over)

    def starts(self) -> list[ProgramStart]:
        """Return when and where the running programs started."""
        return [
            ProgramStart(run.claim.job, run.claim.attempt, run.started_us, run.place.nodes, run.place.gpus, run.cpus_in_words)
            for run in self._runs.values()
            if run.place is not None and run.pid
        ]

    @property
    def is_busy(self) -> bool:
        """Return whether something is going on that causes no signal, so that `poll` should be called again soon."""
        return bool(self._stopping or self._stop_at_once or self._over or self._lingering or self._delayed)

    def start(self, claim: Claim, place: Placement) -> None:
        """Start a job at its placement. One that cannot be started is reported by `poll`."""
        if claim.job in self._left and self._is_delayed(claim, place):
            return
        try:
            self._channel.start(self._request(claim, place))
            self._starting[claim.job] = (claim, place)
        except Exception as exc:  # noqa: BLE001  # one bad job fails alone, and the launcher goes on
            self._refuse(claim, place, exc)

    # --- the queue ----------------------------------------------------------------------------------------------------

    @property
    def queued_jobs(self) -> set[int]:
        """Return the jobs that wait for a placement and are not being withdrawn."""
        return self._queue.keys() - self._withdrawing

    def queue(self, claim: Claim) -> None:
        """Queue a job to replace the next run of its shape that ends with exit code 0."""
        self._queue[claim.job] = claim
        shape = claim.shape
        if claim.job in self._left:
            return  # `start` ends first what it has left
        if shape.num_nodes > 1 or shape.gpus_per_rank or hardware.cpus_wanted(claim):
            return  # its place decides about its environment
        place = Placement((0,), ((),), shape)
        try:
            if self._context.mpi.words(claim, place):
                return
            self._channel.queue(self._request(claim, place))
            self._handed_on.add(claim.job)
        except Exception as exc:  # noqa: BLE001  # one bad job fails alone, and the launcher goes on
            del self._queue[claim.job]
            self._refuse(claim, None, exc)

    def start_queued(self, place: Placement) -> bool:
        """Start the oldest queued job of that shape at a free placement. Return False if all are being withdrawn."""
        jobs = (job for job, claim in self._queue.items() if claim.shape == place.shape and job not in self._withdrawing)
        job = next(jobs, None)
        if job is None:
            return False
        claim = self._queue.pop(job)
        self.started_from_queue += 1
        if job in self._handed_on:
            self._handed_on.discard(job)
            self._starting[job] = (claim, place)
            self._channel.start_queued(job)
        else:
            self.start(claim, place)
        return True

    def withdraw(self, jobs: Collection[int]) -> None:
        """Withdraw those queued jobs. `withdrawn` returns those that have certainly never started."""
        here = self._queue.keys() & set(jobs)
        self._channel.withdraw(here & self._handed_on)
        self._withdrawing |= here & self._handed_on
        for job in here - self._handed_on:
            self._take_back(job)

    def _take_back(self, job: int) -> None:
        claim = self._queue.pop(job)
        self._handed_on.discard(job)
        self._withdrawing.discard(job)
        self._stop_at_once.pop(job, None)
        self._forget(claim)
        self._withdrawn.append(claim)

    def _request(self, claim: Claim, place: Placement) -> Request:
        made = self._made[claim.job] = invocation.make_invocation(claim, place, self._context)
        call = invocation.call_request(claim, made, self._context)
        program = invocation.find_program(made.argv[0], made.environ, made.directory, self._context)
        trouble = self._machine.data_trouble()
        if trouble:
            raise trouble
        return Request(
            claim.job,
            program,
            [os.fsencode(word) for word in made.argv],
            made.environ,
            made.directory,
            made.output,
            root=self._context.data_directory,
            renew=(claim.job_id, claim.attempt, made.is_generated),
            prepare=invocation.preparation(claim, made, self._context),
            cpus=self._pin(claim, place),
            lane=self._lanes.setdefault((claim.shape, call and call.kind), len(self._lanes) + 1),
            call=call and tuple(call),
        )

    def _pin(self, claim: Claim, place: Placement) -> tuple[int, ...]:
        """Return the CPUs on which the job may run; () if on all, or if the MPI command binds its ranks."""
        number = hardware.cpus_wanted(claim)
        if not number or self._context.mpi.words(claim, place):
            return ()
        self._pinned[claim.job] = self._cpus.take(number)
        return self._pinned[claim.job]

    def _forget(self, claim: Claim) -> None:
        """Release the CPUs of a job whose attempt is over, and remove its payload."""
        if self._pinned:
            self._cpus.release(self._pinned.pop(claim.job, ()))
        made = self._made.pop(claim.job, None)
        if made is not None:
            made.remove_payload()

    def _refuse(self, claim: Claim, place: Placement | None, exc: Exception) -> None:
        self._forget(claim)
        now_us = self._clock.now_us()
        trouble = self._machine.trouble_behind(exc)
        if trouble is not None:
            back = unstarted(claim, now_us, f"Not started: {trouble.message}")
            self._over.append(Finished(back, place, trouble=trouble))
            return
        reason = str(exc) if isinstance(exc, LaunchError) else f"unexpected {type(exc).__name__}: {exc}"
        message = f"The job could not be started: {reason}"
        ended = RunResult(claim.job, claim.attempt, states.RUN_ERROR, None, message, None, now_us)
        self._over.append(Finished(ended, place))

    def poll(self) -> list[Finished]:
        """Return the runs that ended since the last call, with true start and end times."""
        self._results.look()
        self._spawner.poll()
        for answer in self._channel.answers():
            if isinstance(answer, Started):
                self._note_start(answer)
            elif isinstance(answer, Ended):
                self._note_end(answer)
            elif isinstance(answer, FailedStart):
                claim, place = self._taken_out(answer.key)
                self._stop_at_once.pop(answer.key, None)
                self._refuse(claim, place, answer.error)
            elif isinstance(answer, Withdrawn) and answer.key in self._queue:
                self._take_back(answer.key)
            elif isinstance(answer, Withdrawn):
                self._note_refusal(answer)
            else:
                self._note_loss(answer)
        self._asking.answers()
        self._end_orphans()
        if self._lingering:
            self._look_at_lingering()
        if self._delayed:
            self._start_delayed()
        finished, self._over = self._over, []
        self._look_for_stuck_starts()
        if self._stopping:
            finished += self._go_on_stopping()
        return finished

    def _taken_out(self, job: int) -> tuple[Claim, Placement | None]:
        """Remove a job from those that have not started. A queued job has no placement yet, see `_note_end`."""
        claim = self._queue.pop(job, None)
        self._handed_on.discard(job)
        self._withdrawing.discard(job)
        if claim is None:
            return self._starting.pop(job)
        self.started_from_queue += 1
        return claim, None

    def _note_start(self, started: Started) -> None:
        job = started.key
        claim, place = self._taken_out(job)
        to_stop = self._stop_at_once.pop(job, None)
        self.started += 1
        self._runs[job] = LiveRun(claim, place, started, self._made[job], self._pinned.get(job, ()))
        failpoint("after-spawn")
        if to_stop:
            self.stop([job], *to_stop)

    def _note_end(self, ended: Ended) -> None:
        job = ended.key
        run = self._runs[job]
        run.ended = ended
        successor = None if ended.successor is None else self._runs.get(ended.successor)
        if successor is not None and successor.place is None:
            successor.place, run.is_replaced = run.place, True
        elif successor is None and ended.successor in self._queue and run.place is not None:  # a call, not begun yet
            self._starting[ended.successor] = self._taken_out(ended.successor)[0], run.place
            run.is_replaced = True
        # Its helper may reap it before it reads that it is to be told, but after a process in another session was signalled.
        is_reached = run.reached_us is not None and ended.ended_us >= run.reached_us
        if job in self._stopping and ended.end == BY_ITSELF and not is_reached:  # before it was told to
            run.stop_result, run.told_us, run.kill_at = "", None, 0.0
            del self._stopping[job]
        if job in self._stopping:
            # They had lost their parents, so that only its helper could know them.
            fresh = [one.process for one in ended.left or ()]
            signal_all(fresh, signal.SIGTERM)
            run.members += fresh
            return
        run.left = ended.left or []
        if run.left:
            self._lingering.append((self._clock.monotonic() + _LINGER_S, run))
        elif ended.left is None and ended.returncode and not run.claim.keep_background and self._left_behind(run):
            self._stopping[job] = run
        else:
            self._over.append(self._finish(run))

    def _look_at_lingering(self) -> None:
        """Finish runs that have left processes, when these have ended or stay. End those of a failed run first."""
        now = self._clock.monotonic()
        for until, run in list(self._lingering):
            assert isinstance(run.ended, Ended)
            # A shell's child may not have become its program yet when the helper saw it.
            run.left = [Leftover(command_of(one.process.pid), one.process) for one in run.left if living([one.process])]
            if run.left and now < until:
                continue
            self._lingering.remove((until, run))
            if run.left and not run.claim.keep_background:
                members = [one.process for one in run.left]
                if run.ended.returncode:
                    run.members, run.kill_at = members, now + _FINAL_GRACE_S
                    self._stopping[run.claim.job] = run
                    signal_all([*members, *descendants(self._leaders(run), [run.made.mark])], signal.SIGTERM)
                    continue
                self._keep_in_mind(run.claim.job, members)
            self._over.append(self._finish(run))

    def _keep_in_mind(self, job: int, members: list[Process]) -> None:
        self._left[job] = members
        if len(self._left) > self._most_left:
            self._left = {job: left for job, members in self._left.items() if (left := living(members))}
            self._most_left = 2 * len(self._left) + _MAX_LEFT

    def _is_delayed(self, claim: Claim, place: Placement) -> bool:
        """Return whether a job must wait for the end of processes of an earlier attempt here; `poll` starts it then."""
        members = living(self._left.pop(claim.job, ()))
        if members:
            signal_all(members, signal.SIGTERM)
            self._starting[claim.job] = (claim, place)
            self._delayed[claim.job] = (self._clock.monotonic() + _FINAL_GRACE_S, members)
        return bool(members)

    def _start_delayed(self) -> None:
        now = self._clock.monotonic()
        for job, (kill_at, members) in list(self._delayed.items()):
            left = living(members)
            if left and now >= kill_at:
                signal_all(left, signal.SIGKILL)
            if left and now < kill_at + _FINAL_GRACE_S:
                continue
            del self._delayed[job]
            claim, place = self._starting.pop(job)
            if left:
                log.warning("Job %s: processes of an earlier attempt cannot be killed: %s", claim.label, [p.pid for p in left])
            self.start(claim, place)

    def _note_loss(self, lost: Lost) -> None:
        """End the remaining processes of a run whose spawn helper has died; the job then goes back."""
        run = self._runs.get(lost.key)
        if run is None:  # it may have been started all the same
            claim, place = self._taken_out(lost.key)
            self._stop_at_once.pop(lost.key, None)
            run = LiveRun(claim, place, Started(lost.key, 0, "", self._clock.now_us()), self._made[lost.key])
            self._runs[lost.key] = run
        run.ended, run.kill_at = lost, self._clock.monotonic() + _FINAL_GRACE_S
        self._stopping[lost.key] = run
        self._left_behind(run)
        signal_all(run.members, signal.SIGTERM)

    def _note_refusal(self, withdrawn: Withdrawn) -> None:
        """Give back a job that its helper had dropped from the queue, for lack of heartbeats, before it was to be started."""
        claim, place = self._starting.pop(withdrawn.key)
        self._stop_at_once.pop(withdrawn.key, None)
        self._forget(claim)
        back = unstarted(claim, self._clock.now_us(), "Not started: its launcher had given no sign of life")
        self._over.append(Finished(back, place))

    def _end_orphans(self) -> None:
        """End the processes adopted by a dead spawn helper, of any job, before one of its jobs goes back."""
        orphans = self._spawner.take_orphans()
        self._orphans += orphans
        signal_all(orphans, signal.SIGTERM)
        lost = [run for run in self._stopping.values() if isinstance(run.ended, Lost)]
        for run in lost:
            run.members += orphans
        if not lost:
            signal_all(orphans, signal.SIGKILL)

    def _look_for_stuck_starts(self) -> None:
        """Stop MPI commands that wait for programs that they could not start."""
        now, now_us = self._clock.monotonic(), self._clock.now_us()
        if now < self._look_for_stuck_at:
            return
        self._look_for_stuck_at = now + _STUCK_PERIOD_S
        for run in [run for run in self._runs.values() if now_us - run.started_us < _STUCK_MAX_AGE_S * SECOND_US]:
            if run.ended or run.stop_result:
                continue
            failure = self._results.start_failure(run, None)
            if failure is not None:
                run.failure = failure
                self.stop([run.claim.job], states.RUN_ERROR, _FINAL_GRACE_S)

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End the process trees of those jobs: TERM now, KILL after the grace. Returns at once; `poll` reports the end.

        `result` is the result of runs that do not exit with 0. If it is RUN_TIMEOUT, the RunResult has the time when it was
        told to stop; a run that had ended before that is reported as ended by itself.
        """
        wanted = set(jobs)
        waiting = (self._starting.keys() | self._queue.keys()) & wanted
        self._stop_at_once.update(dict.fromkeys(waiting, (result, grace_s)))
        self.withdraw(waiting)
        lingering = {run.claim.job for _, run in self._lingering}  # these have ended
        runs = [self._runs[job] for job in self._runs.keys() & wanted - self._stopping.keys() - lingering]
        if runs:
            self._stop(runs, result, grace_s)
        self._spawner.flush()

    def leave(self, nodes: Collection[int], why: str) -> None:
        """End the jobs that run on a node which does not answer: not every MPI command notices that, or soon."""
        failure = invocation.StartFailure(invocation.NODE, why, had_started=True)
        on_them = [job for job, run in self._runs.items() if run.place and set(nodes) & set(run.place.nodes)]
        jobs = [job for job in on_them if not (self._runs[job].ended or self._runs[job].stop_result)]
        for job in jobs:
            self._runs[job].failure = failure
        self.stop(jobs, states.RUN_ERROR, _FINAL_GRACE_S)

    def _stop(self, runs: Sequence[LiveRun], result: str, grace_s: float) -> None:
        told_us = self._clock.now_us() if result == states.RUN_TIMEOUT else None
        by_manner: dict[str, list[LiveRun]] = {}
        for run in runs:
            run.stop_result, run.told_us, run.kill_at = result, told_us, self._clock.monotonic() + grace_s
            self._stopping[run.claim.job] = run
            by_manner.setdefault(self._context.mpi.at_term(run.claim), []).append(run)
        for run in by_manner.get(invocation.PASSES_ON, ()):
            # To it alone: what it runs below it, such as an srun to reach other nodes, would kill the ranks at SIGTERM.
            below = _started_by_shell(run)
            if below:
                self._signal_at_once(run)
            else:
                self._channel.signal(run.claim.job, signal.SIGTERM)
            signal_all(below, signal.SIGTERM)
        spared = by_manner.get(invocation.KILLS, [])
        for run in spared:
            run.is_spared = True
            if _is_in_shell(run):  # when the ranks have ended it would go on with the next command of its line
                self._signal_at_once(run)
        self._channel.tell([run.claim.job for run in spared])
        if not self._ask_to_end([run.claim for run in spared]):
            self._terminate(spared)
        self._terminate(by_manner.get(invocation.UNKNOWN, []))

    def _signal_at_once(self, run: LiveRun, is_group: bool = False) -> None:
        """Send SIGTERM to a run before other processes that belong to it: its helper, told by a message, could be later.

        Except to a call, whose worker may have begun another one.
        """
        if run.made.is_warm:
            self._channel.signal(run.claim.job, signal.SIGTERM, is_group)
            return
        run.reached_us = self._clock.now_us()
        self._channel.tell([run.claim.job])
        signal_process(run.pid, run.start, signal.SIGTERM, is_group)

    def _ask_to_end(self, claims: Sequence[Claim]) -> bool:
        """Start a program that asks the ranks of those jobs to end, on all nodes. Return False if that is not possible."""
        words = self._context.mpi.end_words(claims) if claims else []
        if not words:
            return False
        argv = [os.fsencode(word) for word in words]
        try:
            program = invocation.find_program(words[0], {}, "/", self._context)
            self._asking.start(Request(claims[0].job, program, argv, {}, "/", os.devnull, appends=True))
        except SpawnFailed:
            return False
        return True

    def _terminate(self, runs: Sequence[LiveRun]) -> None:
        """Send SIGTERM to all processes of those runs on this host, except to the MPI command of a spared run."""
        if not runs:
            return
        everything = descendants([(run.pid, run.start) for run in runs], [run.made.mark for run in runs])
        for run in runs:
            run.members = [p for p in everything if run.pid in (p.pid, p.session, p.group)]
        groups = {run.pid for run in runs}
        others = [p for p in everything if p.group not in groups]
        for run in runs:
            # The group in one go: a shell that outlived its child by a moment would start the next command.
            if not run.is_spared and others:
                self._signal_at_once(run, is_group=True)
            elif not run.is_spared:
                self._channel.signal(run.claim.job, signal.SIGTERM, is_group=True)
            elif others:
                run.reached_us = self._clock.now_us()
        self._spawner.flush()
        signal_all(others, signal.SIGTERM)
        # Processes in sessions that they opened cannot be told apart by run here, and need not be: all are to end.
        for run in runs[:1]:
            run.members += [p for p in others if p.session not in groups]

    def kill_now(self) -> None:
        """End the grace period of all process trees that are being stopped."""
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
                del self._stopping[run.claim.job]
                finished.append(self._finish(run))
        return finished

    def _left_behind(self, run: LiveRun) -> bool:
        """Return whether the run has living processes that were unknown until now, and add them to its members."""
        run.members = descendants(self._leaders(run), [run.made.mark])
        return bool(run.members)

    def _leaders(self, run: LiveRun) -> list[tuple[int, str]]:
        """Return pid and start of a run's session leader, which may have ended; from the run file if unknown otherwise."""
        return [(run.pid, run.start)] if run.pid else run_file.leaders_of(self._context.db_directory, [run.made.mark])

    def _kill(self, runs: Iterable[LiveRun]) -> None:
        for run in runs:
            found = [*living(run.members), *descendants(self._leaders(run), [run.made.mark])]
            spared = [one for one in found if one.group == run.pid] if run.is_spared else []
            if run.reached_us is None:  # a helper that is slow, or stopped, would take the end for the run's own
                run.reached_us = self._clock.now_us()
            if spared:
                # Killed itself, it would leave its ranks on other nodes running.
                run.is_spared = False
                run.kill_at = self._clock.monotonic() + _FINAL_GRACE_S
                signal_all(spared, signal.SIGTERM)
                continue
            signal_all(found, signal.SIGKILL)
            run.members = found
            if not run.ended:  # without /proc nothing was found
                self._channel.signal(run.claim.job, signal.SIGKILL, is_group=True)

    def _finish(self, run: LiveRun) -> Finished:
        del self._runs[run.claim.job]
        self._forget(run.claim)
        failpoint("after-exit")
        if isinstance(run.ended, Lost):
            reap_adopted([run.pid, *(one.pid for one in [*run.members, *self._orphans])])
        finished = self._results.read(run)
        if finished.place is not None and finished.exit.result == states.RUN_DONE and not run.stop_result:
            return finished._replace(place=self._refill(finished.place))
        return finished

    def _refill(self, place: Placement) -> Placement | None:
        """Start a queued job that no helper has at the placement of an ended run; return the placement if there is none."""
        if len(self._queue) > len(self._handed_on):
            for job, claim in self._queue.items():
                if claim.shape == place.shape and job not in self._handed_on:
                    del self._queue[job]
                    self.started_from_queue += 1
                    self.start(claim, place)
                    return None
        return place


def _is_in_shell(run: LiveRun) -> bool:
    """Return whether a shell runs the command line of the run, including its MPI command."""
    return bool(run.claim.command_template) and _is_shell(run.pid)


def _started_by_shell(run: LiveRun) -> list[Process]:
    """Return the MPI command of a shell's line, and other programs that the shell has started: it forwards no signal."""
    if not _is_in_shell(run):
        return []
    return [one for one in descendants([(run.pid, run.start)], []) if one.parent == run.pid]


def _is_shell(pid: int) -> bool:
    """Return whether a process is still a bash: with a single command, bash becomes that program. False if unknown."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
            return file.read().strip() == "bash"
    except OSError:
        return False
