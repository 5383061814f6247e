"""The result of a run that has ended, from its exit code, its output, its leftover processes and the state of the machine."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from ..core import states
from ..core.clock import Clock, format_us
from ..core.errors import MachineTrouble
from ..core.process_table import Process
from ..db.store import runs
from ..db.store.claims import Claim
from ..db.store.runs import RunResult
from ..pyapps import result_file, run_call
from ..schedulers.hostlist import fold
from .exec import invocation
from .exec.invocation import BUSY, NODE, REFUSED, Context, Invocation, StartFailure
from .exec.program import ABANDONED, BY_ITSELF
from .exec.spawner import Ended, Leftover, Lost, Started
from .exec.trouble import Machine
from .exec.usage import OomKills
from .placement import Placement

#: Bytes of the end of a run's output that are read for messages of the MPI command.
_OUTPUT_BYTES = 16_384
#: A job fails when the MPI command has refused it this many times, without a sign that a node or Slurm is the cause.
_MAX_REFUSALS = 4
#: Maximum number of names of processes in a message.
_MAX_NAMES = 5
_NO_RESULT = "The program ended with exit code 0 before its function returned: by os._exit(), or as another program (os.exec…)"


class LiveRun:
    """A process of one attempt, until its end is reported."""

    __slots__ = (
        "claim", "cpus", "ended", "failure", "is_replaced", "is_spared", "kill_at", "left", "made", "members", "pid", "place",
        "reached_us", "start", "started_us", "stop_result", "told_us"
    )  # fmt: skip

    def __init__(
        self, claim: Claim, place: Placement | None, started: Started, made: Invocation, cpus: Sequence[int] = ()
    ) -> None:
        self.claim, self.place, self.made, self.cpus = claim, place, made, cpus
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

    @property
    def cpus_in_words(self) -> str:
        """Return the CPUs to which it is pinned, such as `0-3,8`; "" if it is not."""
        return fold(map(str, self.cpus))


#: A run that the kernel has killed for lack of memory is heard of within this many seconds.
_OOM_PERIOD_S = 1.0
#: Exit codes of a program that SIGKILL has ended, and of a shell whose program it has ended.
_KILLED_CODES = (-signal.SIGKILL, 128 + signal.SIGKILL)


class Finished(NamedTuple):
    """A run that has ended, and the placement that is free again."""

    exit: RunResult
    place: Placement | None  # None: it was reported as free before, or a queued job has it
    is_doubted: bool = False  # only the place is free; how it ended is reported again, see `ExitGraceRunner`
    trouble: MachineTrouble | None = None  # why it could not start or failed; the job goes back
    is_repeated: bool = False  # see `is_doubted`
    lost_hosts: tuple[str, ...] = ()  # nodes that do not answer any more


class ResultReader:
    """Reads the results of runs.

    Args:
        tail_lines: number of lines of a failed job's output that go into its history.
    """

    def __init__(self, context: Context, clock: Clock, tail_lines: int, machine: Machine) -> None:
        self._context, self._clock, self._tail_lines, self._machine = context, clock, tail_lines, machine
        self._refused: Counter[int] = Counter()  # how often the MPI command did not start a job
        self._oom_kills = OomKills()
        self._look_at = 0.0  # when to look for kills by the kernel, on the monotonic clock

    def look(self) -> None:
        """Note now and then how many processes the kernel has killed for lack of memory."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + _OOM_PERIOD_S
            self._oom_kills.look()

    def read(self, run: LiveRun) -> Finished:
        """Return the result of a run that has ended."""
        assert run.ended is not None
        if isinstance(run.ended, Lost) or run.ended.end == ABANDONED:
            return self._not_finished(run)
        code = run.ended.returncode
        failure = run.failure
        if failure is None and not run.stop_result:
            failure = self.start_failure(run, code)
        if failure is not None and run.told_us is None:
            return self._not_run(run, failure)
        result = run.stop_result or states.RUN_ERROR if code else states.RUN_DONE
        is_own = run.ended.end == BY_ITSELF and not run.stop_result
        cause = runs.OUT_OF_MEMORY if is_own and code in _KILLED_CODES and self._oom_kills.take() else ""
        message, trouble = self._message(run, code), None
        has_outcome = run.ended.outcome is not None
        if result == states.RUN_DONE and run.told_us is None and not has_outcome and _lacks_result(run.made.result_path):
            result, message = states.RUN_ERROR, _NO_RESULT
        if result == states.RUN_ERROR and not run.stop_result:
            reason = self._machine.why_data_fails()
            if reason:  # a restart, which counts: it may be this job that fills the disk
                trouble = MachineTrouble(reason)
                result, message = states.RESTART_READY, f"{reason}; the run ended: {message}"
        ended = self._result(run, result, code, message, run.started_us, run.ended.ended_us, told_us=run.told_us, cause=cause)
        return Finished(ended, None if run.is_replaced else run.place, trouble=trouble)

    def _result(
        self, run: LiveRun, result: str, code: int | None, message: str, started_us: int | None, ended_us: int, **others: Any
    ) -> RunResult:
        """Return the result of a run, with the record of where it ran and what it used."""
        place, ended = run.place, run.ended
        if isinstance(ended, Ended) and not self._context.mpi.hides_usage(run.claim):
            others.update(user_us=ended.user_us, system_us=ended.system_us, max_memory=ended.max_memory)
        if invocation.is_call(run.claim):
            others["outcome"] = self._outcome(run)
        if place is not None:
            others.update(nodes=place.nodes, gpus=place.gpus)
        if run.cpus:
            others["cpus"] = run.cpus_in_words
        return RunResult(run.claim.job, run.claim.attempt, result, code, message, started_us, ended_us, **others)

    def _outcome(self, run: LiveRun) -> bytes | str:
        """Return the outcome of a call, or the path of its file below `data/`; b"" if it has left none."""
        path = run.made.result_path
        if isinstance(run.ended, Ended) and run.ended.outcome:
            return run.ended.outcome
        content = result_file.read_small(path, run.claim.job_id, run.claim.attempt, run_call.MAX_INLINE_BYTES)
        return os.path.relpath(path, self._context.data_directory) if content is None else content

    def _message(self, run: LiveRun, code: int) -> str:
        message = reason(code) if code else ""
        if run.left:
            message = f"{message}; {_left_words(run.left)}" if message else _left_words(run.left).capitalize()
        if run.told_us is not None:
            message = f"Told to stop at {format_us(run.told_us)}, {message if code < 0 else f'ended with {code}'}"
        output = tail(run.made.output_path, self._tail_lines) if code else ""
        return f"{message}: {output}" if output else message

    def start_failure(self, run: LiveRun, code: int | None) -> StartFailure | None:
        """Return why the MPI command started nothing or lost a node; `code`: None while it runs."""
        if run.place is None:  # a call sent ahead, of whose predecessor's end nothing was heard: no MPI command is involved
            return None
        return self._context.mpi.judge(run.claim, run.place, code, partial(_output, run))

    def _not_finished(self, run: LiveRun) -> Finished:
        """Return the end of a run that its launcher or helper has lost: the job goes back."""
        is_dead = isinstance(run.ended, Lost)
        message = "Its spawn helper died" if is_dead else "Ended because its launcher gave no sign of life"
        has_started = run.pid > 0  # else it is unknown
        back = self._result(
            run, states.RESTART_READY, None, message, run.started_us if has_started else None, self._clock.now_us(),
            is_counted=False, is_death=is_dead and has_started and not run.stop_result, may_have_started=True,
            cause=runs.LAUNCHER_DIED,
        )  # fmt: skip
        return Finished(back, run.place)

    def _not_run(self, run: LiveRun, failure: StartFailure) -> Finished:
        """Return the end of a run that was not started or whose node died: the job goes back, unless it is the cause."""
        claim = run.claim
        assert isinstance(run.ended, Ended)
        started_us = run.started_us if failure.had_started else None
        message = f"{'Lost its node' if failure.had_started else 'Not started'}: {failure.words}"
        cause = runs.NODE_LOST if failure.had_started else ""
        back = self._result(
            run, states.RESTART_READY, None, message, started_us, run.ended.ended_us, is_counted=False, cause=cause
        )
        if failure.kind == BUSY:
            return Finished(back, run.place, trouble=MachineTrouble(failure.words))
        if failure.kind == NODE:
            return Finished(back, run.place, lost_hosts=failure.hosts)
        self._refused[claim.job] += 1
        times = self._refused[claim.job]
        is_own = failure.kind == REFUSED and (claim.mpi_flags or "SLURM_" in claim.environ_vars)
        if is_own or times >= _MAX_REFUSALS:
            again = f" {times} times" if times > 1 else ""
            message = f"The MPI command did not run it{again}: {failure.words}"
            back = back._replace(result=states.RUN_ERROR, return_code=run.ended.returncode, message=message)
            return Finished(back, run.place)
        return Finished(back, run.place, trouble=MachineTrouble(failure.words, scope=f"job {claim.label}"))


def _output(run: LiveRun) -> tuple[str, bool]:
    """Return the end of a run's output, and whether that is the whole output."""
    path = run.made.output_path
    try:
        size = os.stat(path, follow_symlinks=False).st_size
    except OSError:
        return "", False
    return tail(path, _OUTPUT_BYTES, _OUTPUT_BYTES), size <= _OUTPUT_BYTES


def _lacks_result(path: str) -> bool:
    """Return whether the program should have left a result but has not."""
    if not path or os.path.lexists(path):
        return False
    try:
        return os.path.basename(path) not in os.listdir(os.path.dirname(path))  # NFS may have cached that it was not there
    except OSError:
        return True


def _left_words(left: Sequence[Leftover]) -> str:
    """Describe the processes that a run has left running.

    >>> _left_words([Leftover("sleep", Process(7, 1, 7, 7, "1"))] * 3)
    'left 3 processes running: sleep (3)'
    """
    names = [
        f"{name or '?'} ({number})" if number > 1 else name or "?"
        for name, number in Counter(one.name for one in left).most_common()
    ]
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"left {len(left)} process{'es' if len(left) > 1 else ''} running: {', '.join(names[:_MAX_NAMES])}{more}"


# --- words ------------------------------------------------------------------------------------------------------------


def tail(path: str, lines: int, limit: int = 16_384) -> str:
    """Return the last `lines` lines of a file of any size and bytes, at most `limit` bytes; "" if it cannot be read."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            text = file.read(limit)
    except (OSError, ValueError):
        return ""
    kept = text.decode(errors="replace").replace("\0", "\N{REPLACEMENT CHARACTER}").splitlines()[-lines:]
    return "\n".join(kept)


def reason(code: int) -> str:
    """Return why a program with that return code has failed.

    >>> reason(3), reason(-9)
    ('nonzero return 3', 'killed by signal 9 (SIGKILL)')
    """
    if code >= 0:
        return f"nonzero return {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    return f"killed by signal {-code} ({name})"
