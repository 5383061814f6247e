"""Runs claimed jobs on this host: start, hear of their end, stop. Knows nothing of the database.

Spawn helpers own the programs (`spawner`). A run that is being stopped keeps its place until its whole process tree is gone.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Protocol

from ..core import field_specs, outputs, states
from ..core.clock import SECOND_US, Clock, format_us
from ..core.errors import InvalidSpec, LaunchError, MachineTrouble, SpawnFailed
from ..core.process_table import Process, command_of, descendants, living, reap_adopted, signal_all
from ..db.store.claims import Claim, RunResult, Shape, unstarted
from . import steps
from .exec import children, hardware, invocation, leftovers, mpi_use
from .exec.hardware import CpuSet
from .exec.mpi_use import BUSY, NODE, REFUSED, StartFailure
from .exec.spawn_helper import ABANDONED, BY_ITSELF, Request
from .exec.spawner import Ended, Failed, Leftover, Lost, Spawner, Started, Withdrawn
from .exec.trouble import Machine
from .failpoints import failpoint
from .placement import Placement

log = logging.getLogger(__name__)

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
#: Processes that a run has left are given this number of seconds to end: the first command of a pipeline often ends last.
_LINGER_S = 0.1
_MAX_NAMES, _MOST_LEFT = 5, 100
_NO_RESULT = "The program ended with exit code 0 before its function returned: by os._exit(), or as another program (os.exec…)"


class _Run:
    """A live process of one attempt."""

    __slots__ = (
        "claim", "ended", "failure", "is_replaced", "is_spared", "kill_at", "left", "mark", "members", "pid", "place",
        "reached_us", "start", "started_us", "stop_result", "told_us"
    )  # fmt: skip

    def __init__(self, claim: Claim, place: Placement | None, started: Started, mark: bytes) -> None:
        self.claim, self.place, self.mark = claim, place, mark
        _, self.pid, self.start, self.started_us = started
        self.ended: Ended | Lost | None = None
        self.is_replaced = False  # a queued job has its place
        self.left: list[Leftover] = []  # what it left running when it ended by itself
        self.failure: StartFailure | None = None  # why it is being stopped: its MPI command waits for what it cannot start
        # While it is being stopped:
        self.stop_result = ""  # what a run that did not end by itself counts as
        self.told_us: int | None = None  # when it was told to stop, because the launcher stops
        self.kill_at = 0.0
        self.members: list[Process] = []
        self.reached_us: int | None = None  # when processes of it outside of its group were signalled
        self.is_spared = False  # its MPI command has not been told, as that would kill the ranks at once


class Finished(NamedTuple):
    """A run that is over, and the place that is free again."""

    exit: RunResult
    place: Placement | None  # None: it was reported as free before, or a queued job has it
    is_doubted: bool = False  # only the place is free; how it ended is reported once more, see `ExitGraceRunner`
    trouble: MachineTrouble | None = None  # why it could not start or failed; the job goes back
    is_repeated: bool = False  # see `is_doubted`
    lost_hosts: tuple[str, ...] = ()  # nodes that do not answer any more


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

    @property
    def queued(self) -> Counter[Shape]:
        """Return how many jobs of each shape wait for a place."""

    @property
    def queued_jobs(self) -> set[int]:
        """Return the jobs that wait for a place and are not being withdrawn."""

    @property
    def started_from_queue(self) -> int:
        """Return how many queued jobs have got a place."""

    def queue(self, claim: Claim) -> None:
        """Start a job in the place of the next run of its shape that ends with exit code 0."""

    def start_queued(self, place: Placement) -> bool:
        """Start the oldest queued job of that shape at a place that is free. Return False if all are being withdrawn."""

    def withdraw(self, jobs: Collection[int]) -> None:
        """Do not start those queued jobs. `withdrawn` tells which of them have certainly never been started."""

    def withdrawn(self) -> list[Claim]:
        """Return the jobs that were withdrawn since the last call before they were started."""

    def start(self, claim: Claim, place: Placement) -> None:
        """Start a job at its place. One that cannot be started is reported by `poll`.

        As a RUN_ERROR, or, where the machine is to blame, as RESTART_READY and with the trouble.
        """

    def poll(self) -> list[Finished]:
        """The runs that ended since the last call, with true start and end times."""

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End the process trees of those jobs: TERM now, KILL after the grace. Returns at once; `poll` reports the end.

        `result` is what a run counts as that does not exit with 0. If it is RUN_TIMEOUT, the RunResult says when the run was
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
        self, context: invocation.Context, clock: Clock, tail_lines: int, spawner: Spawner, cpus: Sequence[int] = ()
    ) -> None:
        self._context, self._clock, self._tail_lines = context, clock, tail_lines
        self._spawner = spawner
        self._channel = spawner.channel()  # programs of jobs; the key is the job's number
        self._asking = spawner.channel()  # programs that ask ranks to end
        self._starting: dict[int, tuple[Claim, Placement]] = {}  # by job, like those below
        self._queued: dict[int, Claim] = {}  # without a place, the oldest first
        self._handed_on: set[int] = set()  # of the queued ones those that a spawn helper has
        self._withdrawing: set[int] = set()  # of these those that it is to give back
        self._withdrawn: list[Claim] = []
        self._runs: dict[int, _Run] = {}
        self._stopping: dict[int, _Run] = {}
        self._stop_at_once: dict[int, tuple[str, float]] = {}  # what to do when it is started
        self._lingering: list[tuple[float, _Run]] = []  # ended well, with processes that may be about to end; until when
        self._left: dict[int, list[Process]] = {}  # what jobs have left running, to be ended before they run again
        self._delayed: dict[int, tuple[float, list[Process]]] = {}  # of those that start, what has to end first, by when
        self._most_left = _MOST_LEFT  # more are looked through for what still lives
        self._orphans: list[Process] = []  # what dead spawn helpers had adopted, now children of this process
        self._over: list[Finished] = []  # to be reported: never started, or ended before they were told to
        self._lanes: dict[Shape, int] = {}
        self._machine = Machine(context.data_directory)
        self.started = 0  # number of programs
        self.started_from_queue = 0  # of those
        self._cpus = CpuSet(cpus)
        self._pinned: dict[int, tuple[int, ...]] = {}  # by job
        self._refused: Counter[int] = Counter()  # how often the MPI command did not start a job
        self._look_for_stuck_at = 0.0

    @property
    def jobs(self) -> set[int]:
        """The jobs that hold a place here and are not being stopped."""
        return (self._runs.keys() - self._stopping.keys()) | (self._starting.keys() - self._stop_at_once.keys())

    def __len__(self) -> int:
        return len(self._starting) + len(self._runs) + len(self._over)

    @property
    def is_busy(self) -> bool:
        """Whether something is going on that no signal tells of, so that `poll` should be called again soon."""
        return bool(self._stopping or self._stop_at_once or self._over or self._lingering or self._delayed)

    def start(self, claim: Claim, place: Placement) -> None:
        """Start a job at its place. One that cannot be started is reported by `poll`."""
        if claim.job in self._left and self._is_delayed(claim, place):
            return
        try:
            self._channel.start(self._request(claim, place))
            self._starting[claim.job] = (claim, place)
        except Exception as exc:  # noqa: BLE001  # one bad job fails alone, and the launcher goes on
            self._refuse(claim, place, exc)

    # --- the queue ----------------------------------------------------------------------------------------------------

    @property
    def queued(self) -> Counter[Shape]:
        """Return how many jobs of each shape wait for a place."""
        return Counter(claim.shape for claim in self._queued.values())

    @property
    def queued_jobs(self) -> set[int]:
        """Return the jobs that wait for a place and are not being withdrawn."""
        return self._queued.keys() - self._withdrawing

    def queue(self, claim: Claim) -> None:
        """Start a job in the place of the next run of its shape that ends with exit code 0."""
        self._queued[claim.job] = claim
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
            del self._queued[claim.job]
            self._refuse(claim, None, exc)

    def start_queued(self, place: Placement) -> bool:
        """Start the oldest queued job of that shape at a place that is free. Return False if all are being withdrawn."""
        jobs = (job for job, claim in self._queued.items() if claim.shape == place.shape and job not in self._withdrawing)
        job = next(jobs, None)
        if job is None:
            return False
        claim = self._queued.pop(job)
        self.started_from_queue += 1
        if job in self._handed_on:
            self._handed_on.discard(job)
            self._starting[job] = (claim, place)
            self._channel.start_queued(job)
        else:
            self.start(claim, place)
        return True

    def withdraw(self, jobs: Collection[int]) -> None:
        """Do not start those queued jobs. `withdrawn` tells which of them have certainly never been started."""
        here = self._queued.keys() & set(jobs)
        self._channel.withdraw(here & self._handed_on)
        self._withdrawing |= here & self._handed_on
        for job in here - self._handed_on:
            self._take_back(job)

    def _take_back(self, job: int) -> None:
        claim = self._queued.pop(job)
        self._handed_on.discard(job)
        self._withdrawing.discard(job)
        self._stop_at_once.pop(job, None)
        self._remove_payload(claim)
        self._withdrawn.append(claim)

    def withdrawn(self) -> list[Claim]:
        """Return the jobs that were withdrawn since the last call before they were started."""
        found, self._withdrawn = self._withdrawn, []
        return found

    def _request(self, claim: Claim, place: Placement) -> Request:
        argv = invocation.argv(claim, place, self._context)
        own = invocation.environment(claim, place, self._context)
        directory, output = invocation.workdir(claim, self._context), field_specs.output_name(claim.name)
        search = own.get(b"PATH") or self._context.environ.get(b"PATH")
        program = children.find_program(argv[0], search, directory)
        trouble = self._machine.data_trouble()
        if trouble:
            raise trouble
        is_generated = outputs.is_generated(claim.workdir, claim.job_id)
        return Request(
            claim.job,
            program,
            [os.fsencode(word) for word in argv],
            own,
            directory,
            output,
            root=self._context.data_directory,
            renew=(claim.job_id, claim.attempt, is_generated),
            prepare=self._preparation(claim, own, directory, is_generated),
            cpus=self._pin(claim, place),
            lane=self._lanes.setdefault(claim.shape, len(self._lanes) + 1),
        )

    def _preparation(self, claim: Claim, own: Mapping[bytes, bytes], directory: str, is_generated: bool) -> bytes:
        """Return what is to be done in its directory just before it starts, as `Request.prepare` has it."""
        # A launcher that is killed between the claim and the start leaves a job that counts as prepared and has no links. Links
        # are made before the output file, so a job without that file has not been started. One that has keeps what it changed.
        links = claim.parents != "[]" and (
            claim.state in states.UNPREPARED_STATES
            or not os.path.lexists(outputs.find(directory, field_specs.output_name(claim.name), claim.job_id, is_generated))
        )
        path = invocation.payload_path(claim, self._context)
        names_parents = invocation.has_parent_files(own)
        if not (links or path or names_parents):
            return b""
        calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        if links and claim.input_files:
            calls.append((steps.link_inputs, steps.inputs_of(claim, self._context)))
        if path:
            calls.append(
                (steps.write_payload, (path, invocation.make_payload(claim, self._context), not claim.command_template))
            )
        if names_parents:
            calls.append((invocation.give_parents, (claim, own)))
        return pickle.dumps(calls)

    def _pin(self, claim: Claim, place: Placement) -> tuple[int, ...]:
        """The CPUs that the job may run on; none where it may run on all, or the MPI command sees to that."""
        number = hardware.cpus_wanted(claim)
        if not number or self._context.mpi.words(claim, place):
            return ()
        self._pinned[claim.job] = self._cpus.take(number)
        return self._pinned[claim.job]

    def _unpin(self, claim: Claim) -> None:
        if self._pinned:
            self._cpus.release(self._pinned.pop(claim.job, ()))

    def _remove_payload(self, claim: Claim) -> None:
        """Remove what its program had to know, and has read."""
        with suppress(OSError, InvalidSpec):
            path = invocation.payload_path(claim, self._context)
            if path:
                os.unlink(path)

    def _refuse(self, claim: Claim, place: Placement | None, exc: Exception) -> None:
        self._unpin(claim)
        self._remove_payload(claim)
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
        """The runs that ended since the last call, with true start and end times."""
        self._spawner.poll()
        for answer in self._channel.answers():
            if isinstance(answer, Started):
                self._note_start(answer)
            elif isinstance(answer, Ended):
                self._note_end(answer)
            elif isinstance(answer, Failed):
                claim, place = self._taken_out(answer.key)
                self._stop_at_once.pop(answer.key, None)
                self._refuse(claim, place, answer.error)
            elif isinstance(answer, Withdrawn):
                self._take_back(answer.key)
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
        """Take a job out of those that have not started. One that was queued has no place yet, see `_note_end`."""
        claim = self._queued.pop(job, None)
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
        self._runs[job] = _Run(claim, place, started, invocation.mark(claim, self._context))
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
        """Finish runs that have left processes, when these have ended or stay. What a failed run has left is ended first."""
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
                    run.members, run.kill_at = members, now + _LAST_S
                    self._stopping[run.claim.job] = run
                    signal_all([*members, *descendants(self._leaders(run), [run.mark])], signal.SIGTERM)
                    continue
                self._keep_in_mind(run.claim.job, members)
            self._over.append(self._finish(run))

    def _keep_in_mind(self, job: int, members: list[Process]) -> None:
        self._left[job] = members
        if len(self._left) > self._most_left:
            self._left = {job: left for job, members in self._left.items() if (left := living(members))}
            self._most_left = 2 * len(self._left) + _MOST_LEFT

    def _is_delayed(self, claim: Claim, place: Placement) -> bool:
        """Return whether a job has to wait for the end of what an earlier attempt has left here; it is started by `poll`."""
        members = living(self._left.pop(claim.job, ()))
        if members:
            signal_all(members, signal.SIGTERM)
            self._starting[claim.job] = (claim, place)
            self._delayed[claim.job] = (self._clock.monotonic() + _LAST_S, members)
        return bool(members)

    def _start_delayed(self) -> None:
        now = self._clock.monotonic()
        for job, (kill_at, members) in list(self._delayed.items()):
            left = living(members)
            if left and now >= kill_at:
                signal_all(left, signal.SIGKILL)
            if left and now < kill_at + _LAST_S:
                continue
            del self._delayed[job]
            claim, place = self._starting.pop(job)
            if left:
                log.warning("Job %s: processes of an earlier attempt cannot be killed: %s", claim.label, [p.pid for p in left])
            self.start(claim, place)

    def _note_loss(self, lost: Lost) -> None:
        """End what a spawn helper that has died leaves of a run; the job then goes back."""
        run = self._runs.get(lost.key)
        if run is None:  # it may have been started all the same
            claim, place = self._taken_out(lost.key)
            self._stop_at_once.pop(lost.key, None)
            run = _Run(claim, place, Started(lost.key, 0, "", self._clock.now_us()), invocation.mark(claim, self._context))
            self._runs[lost.key] = run
        run.ended, run.kill_at = lost, self._clock.monotonic() + _LAST_S
        self._stopping[lost.key] = run
        self._left_behind(run)
        signal_all(run.members, signal.SIGTERM)

    def _end_orphans(self) -> None:
        """End what a dead spawn helper had adopted, of whichever job, before one of its jobs goes back."""
        orphans = self._spawner.take_orphans()
        self._orphans += orphans
        signal_all(orphans, signal.SIGTERM)
        lost = [run for run in self._stopping.values() if isinstance(run.ended, Lost)]
        for run in lost:
            run.members += orphans
        if not lost:
            signal_all(orphans, signal.SIGKILL)

    def _look_for_stuck_starts(self) -> None:
        """Stop MPI commands that wait for what they could not start."""
        now, now_us = self._clock.monotonic(), self._clock.now_us()
        if now < self._look_for_stuck_at:
            return
        self._look_for_stuck_at = now + _STUCK_PERIOD_S
        for run in [run for run in self._runs.values() if now_us - run.started_us < _STUCK_S * SECOND_US]:
            if run.ended or run.stop_result:
                continue
            failure = self._context.mpi.judge(run.claim, _placed(run), None, partial(self._output, run))
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
        return children.tail(path, _OUTPUT_BYTES, _OUTPUT_BYTES), size <= _OUTPUT_BYTES

    def stop(self, jobs: Collection[int], result: str, grace_s: float) -> None:
        """End the process trees of those jobs: TERM now, KILL after the grace. Returns at once; `poll` reports the end.

        `result` is what a run counts as that does not exit with 0. If it is RUN_TIMEOUT, the RunResult says when the run was
        told; one that had ended before that ended by itself, and is reported so.
        """
        wanted = set(jobs)
        waiting = (self._starting.keys() | self._queued.keys()) & wanted
        self._stop_at_once.update(dict.fromkeys(waiting, (result, grace_s)))
        self.withdraw(waiting)
        lingering = {run.claim.job for _, run in self._lingering}  # these have ended
        runs = [self._runs[job] for job in self._runs.keys() & wanted - self._stopping.keys() - lingering]
        if runs:
            self._stop(runs, result, grace_s)
        self._spawner.flush()

    def _stop(self, runs: Sequence[_Run], result: str, grace_s: float) -> None:
        told_us = self._clock.now_us() if result == states.RUN_TIMEOUT else None
        by_manner: dict[str, list[_Run]] = {}
        for run in runs:
            run.stop_result, run.told_us, run.kill_at = result, told_us, self._clock.monotonic() + grace_s
            self._stopping[run.claim.job] = run
            by_manner.setdefault(self._context.mpi.at_term(run.claim), []).append(run)
        for run in by_manner.get(mpi_use.PASSES_ON, ()):
            # To it alone: what it runs below it, such as an srun to reach other nodes, would kill the ranks at SIGTERM.
            below = _started_by_shell(run)
            self._channel.signal(run.claim.job, signal.SIGTERM)
            run.reached_us = self._clock.now_us() if below else None
            signal_all(below, signal.SIGTERM)
        spared = by_manner.get(mpi_use.KILLS, [])
        for run in spared:
            run.is_spared = True
            if _is_in_shell(run):  # when the ranks have ended it would go on with the next command of its line
                self._channel.signal(run.claim.job, signal.SIGTERM)
        self._channel.tell([run.claim.job for run in spared])
        if not self._ask_to_end([run.claim for run in spared]):
            self._terminate(spared)
        self._terminate(by_manner.get(mpi_use.UNKNOWN, []))

    def _ask_to_end(self, claims: Sequence[Claim]) -> bool:
        """Have the ranks of those jobs told to end, wherever they run. Returns False where that cannot be done."""
        words = self._context.mpi.end_words(claims) if claims else []
        if not words:
            return False
        argv = [os.fsencode(word) for word in words]
        try:
            program = children.find_program(words[0], self._context.environ.get(b"PATH"), "/")
            self._asking.start(Request(claims[0].job, program, argv, {}, "/", os.devnull, appends=True))
        except SpawnFailed:
            return False
        return True

    def _terminate(self, runs: Sequence[_Run]) -> None:
        """SIGTERM to all processes of those runs on this host, but to the command of one that is spared."""
        if not runs:
            return
        everything = descendants([(run.pid, run.start) for run in runs], [run.mark for run in runs])
        for run in runs:
            run.members = [p for p in everything if run.pid in (p.pid, p.session, p.group)]
            # The group in one go: a shell that outlived its child by a moment would start the next command.
            if not run.is_spared:
                self._channel.signal(run.claim.job, signal.SIGTERM, is_group=True)
        self._spawner.flush()
        groups = {run.pid for run in runs}
        others = [p for p in everything if p.group not in groups]
        for run in runs if others else ():
            run.reached_us = self._clock.now_us()
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
                del self._stopping[run.claim.job]
                finished.append(self._finish(run))
        return finished

    def _left_behind(self, run: _Run) -> bool:
        """Whether processes of the run live that nobody knows of yet; they become members."""
        run.members = descendants(self._leaders(run), [run.mark])
        return bool(run.members)

    def _leaders(self, run: _Run) -> list[tuple[int, str]]:
        """Return pid and start of a run's session leader, which may have ended; as recorded if its helper did not tell."""
        return [(run.pid, run.start)] if run.pid else leftovers.leaders_of(self._context.db_directory, [run.mark])

    def _kill(self, runs: Iterable[_Run]) -> None:
        for run in runs:
            found = [*living(run.members), *descendants(self._leaders(run), [run.mark])]
            spared = [one for one in found if one.group == run.pid] if run.is_spared else []
            if spared:
                # Killed itself, it would leave its ranks on other nodes behind.
                run.is_spared = False
                run.kill_at = self._clock.monotonic() + _LAST_S
                signal_all(spared, signal.SIGTERM)
                continue
            signal_all(found, signal.SIGKILL)
            run.members = found
            if not run.ended:  # without /proc nothing was found
                self._channel.signal(run.claim.job, signal.SIGKILL, is_group=True)

    def _finish(self, run: _Run) -> Finished:
        claim = run.claim
        del self._runs[claim.job]
        self._unpin(claim)
        self._remove_payload(claim)
        assert run.ended is not None
        failpoint("after-exit")
        if isinstance(run.ended, Lost):
            reap_adopted([run.pid, *(one.pid for one in [*run.members, *self._orphans])])
        if isinstance(run.ended, Lost) or run.ended.end == ABANDONED:
            return self._not_finished(run)
        code = run.ended.returncode
        failure = run.failure
        if failure is None and not run.stop_result:
            failure = self._context.mpi.judge(claim, _placed(run), code, partial(self._output, run))
        if failure is not None and run.told_us is None:
            return self._not_run(run, failure)
        result = run.stop_result or states.RUN_ERROR if code else states.RUN_DONE
        message = children.reason(code) if code else ""
        if run.left:
            message = f"{message}; {_left_words(run.left)}" if message else _left_words(run.left).capitalize()
        if run.told_us is not None:
            message = f"Told to stop at {format_us(run.told_us)}, {message if code < 0 else f'ended with {code}'}"
        output = self._tail(run) if code else ""
        message = f"{message}: {output}" if output else message
        trouble = None
        if result == states.RUN_DONE and run.told_us is None and self._has_no_result(claim):
            result, message = states.RUN_ERROR, _NO_RESULT
        if result == states.RUN_ERROR and not run.stop_result:
            trouble = self._trouble_at_the_end()
            if trouble is not None:  # a restart, which counts: it may be this job that fills the disk
                result, message = states.RESTART_READY, f"{trouble.message}; the run ended: {message}"
        ended = RunResult(claim.job, claim.attempt, result, code, message, run.started_us, run.ended.ended_us, run.told_us)
        place = None if run.is_replaced else run.place
        if place is not None and result == states.RUN_DONE and not run.stop_result:
            place = self._refill(place)
        return Finished(ended, place, trouble=trouble)

    def _refill(self, place: Placement) -> Placement | None:
        """Start a queued job that no helper has in the place of a run that has ended; return the place if there is none."""
        if len(self._queued) > len(self._handed_on):
            for job, claim in self._queued.items():
                if claim.shape == place.shape and job not in self._handed_on:
                    del self._queued[job]
                    self.started_from_queue += 1
                    self.start(claim, place)
                    return None
        return place

    def _not_finished(self, run: _Run) -> Finished:
        """Return the end of a run that its launcher or helper has lost: the job goes back."""
        claim, is_dead = run.claim, isinstance(run.ended, Lost)
        message = "Its spawn helper died" if is_dead else "Ended because its launcher gave no sign of life"
        started_us = run.started_us if run.pid else None
        back = RunResult(claim.job, claim.attempt, states.RESTART_READY, None, message, started_us, self._clock.now_us())
        return Finished(back._replace(is_counted=False, is_death=is_dead and not run.stop_result), run.place)

    def _not_run(self, run: _Run, failure: StartFailure) -> Finished:
        """Return the end of a run that was not started or whose node died: the job goes back, unless it is itself at fault."""
        claim = run.claim
        assert isinstance(run.ended, Ended)
        started_us = run.started_us if failure.had_started else None
        message = f"{'Lost its node' if failure.had_started else 'Not started'}: {failure.words}"
        back = RunResult(
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
        path = invocation.result_path(claim, self._context)
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
        return children.tail(self._output_path(run), self._tail_lines)

    def _output_path(self, run: _Run) -> str:
        claim = run.claim
        directory, is_generated = invocation.workdir(claim, self._context), outputs.is_generated(claim.workdir, claim.job_id)
        return outputs.find(directory, field_specs.output_name(claim.name), claim.job_id, is_generated)


def _left_words(left: Sequence[Leftover]) -> str:
    """Return what a run has left running, in words.

    >>> _left_words([Leftover("sleep", Process(7, 1, 7, 7, "1"))] * 3)
    'left 3 processes running: sleep (3)'
    """
    names = [
        f"{name or '?'} ({number})" if number > 1 else name or "?"
        for name, number in Counter(one.name for one in left).most_common()
    ]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"left {len(left)} process{'es' if len(left) > 1 else ''} running: {', '.join(names[:_MAX_NAMES])}{more}"


def _placed(run: _Run) -> Placement:
    assert run.place is not None  # its start was heard of together with the end of its predecessor
    return run.place


def _is_in_shell(run: _Run) -> bool:
    """Whether a shell runs its line, and the MPI command in that."""
    return bool(run.claim.command_template) and children.is_shell(run.pid)


def _started_by_shell(run: _Run) -> list[Process]:
    """The MPI command of a line that a shell runs, and what it has started beside it; the shell passes nothing on to them."""
    if not _is_in_shell(run):
        return []
    return [one for one in descendants([(run.pid, run.start)], []) if one.parent == run.pid]
