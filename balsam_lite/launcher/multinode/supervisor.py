"""Processes that start launchers and stay with them to their end; they have neither DB nor lease.

`supervise` runs `balsam launcher` on many nodes as one MPI program, whose rank 0 is the launcher (`rank`). It forwards signals
as lines to rank 0's stdin, because the MPI commands treat signals differently: Open MPI 5 kills the ranks half a second later,
MPICH 5 leaves that to the ranks (tried). No process of the program is left on this host, however it ends.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import logging
import os
import pickle
import select
import signal
import sys
import time
import zlib
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType
from typing import NamedTuple

from ...core import daemon, import_guard
from ...core.errors import LaunchError, SpawnFailed
from ...core.process_table import RUN_VARIABLE, Holder
from ...core.settings import Settings
from ...core.subprocess_run import module_words, python_path, run
from ...schedulers import hostlist
from ...schedulers.base import Partition, check_sum
from ...schedulers.environ import Allocation, NodeGpus
from .. import logs, mpirun, resources
from ..exec.invocation import ensemble_mark
from ..exec.run_file import end_runs
from ..exec.spawner import Alarm, Companion, Piped
from ..resources import LauncherOptions, Resources
from ..run_results import reason
from .mpi_transport import INSTALL

log = logging.getLogger(__name__)

#: Prefix of rank 0's reports on its stdout.
_TOKEN = "@balsam "
#: Number of lines of the MPI program's output that are shown when it breaks down, and the bytes to keep for that.
_LAST_WORDS, _LAST_WORDS_BYTES = 12, 4096
#: Starting Python on thousands of nodes takes minutes. A program that has not begun after this many seconds never will.
_START_LIMIT_S = 300.0
#: When rank 0 has reported its end, the MPI command still has this long, in seconds.
_END_LIMIT_S = 20.0
#: After a signal rank 0 needs the jobs' grace period, and the DB if it has taken any job; this many seconds later it hangs.
_STOP_LIMIT_S = 15.0
#: Remaining processes of a broken program are told to end, and killed this many seconds after the jobs' grace period.
_LEFTOVER_GRACE_S = 5.0
#: Reports of a dead rank 0 arrive for this long, in seconds, where the MPI command does not end with it.
_LAST_NEWS_LIMIT_S = 2.0
#: The output of a program that has ended is read for this long, in seconds.
_PIPES_LIMIT_S = 1.0
#: Minutes before the limit below which another attempt is not worth it.
_MIN_MINUTES = 1.0
#: A program that broke down after this many seconds had worked: the cause differs from that of the one before.
_STABLE_AFTER_S = 600.0
#: A node on which this program does not run within this many seconds is lost. (Slurm 22.05 tries for 17 s to reach a dead one.)
_PROBE, _PROBE_S = ("true",), 60.0
#: Maximum number of nodes to ask at once.
_PROBES = 16
_PERIOD_S = 0.2


# --- messages between supervisor and rank 0 ---------------------------------------------------------------------------


class RankPlan(NamedTuple):
    """The parameters that all ranks get on their command line."""

    db_directory: str
    ranks: int
    heartbeat_s: float
    options: LauncherOptions
    batch: Allocation | None
    lost_lease: int | None = None  # of the launcher before this one, which ended because of a lost node

    def as_text(self) -> str:
        """Return the plan as one word, short also for thousands of nodes; see `from_text`."""
        return base64.b64encode(zlib.compress(pickle.dumps(self))).decode()

    @staticmethod
    def from_text(text: str) -> RankPlan:
        """Return the plan that `as_text` wrote."""
        found: RankPlan = pickle.loads(zlib.decompress(base64.b64decode(text)))
        return found


def report(**news: object) -> None:
    """Report to the supervisor. Rank 0 reports `head=`, `mark=`, `lease=`, and at the end `ended=` or `error=`."""
    with suppress(OSError):  # the supervisor is gone; the end of stdin tells that, too
        os.write(1, f"\n{_TOKEN}{json.dumps(news)}\n".encode())


# --- the supervisor ---------------------------------------------------------------------------------------------------


def supervise(found: Resources, db_directory: str, settings: Settings, options: LauncherOptions) -> int:
    """Run the launcher as an MPI program, one rank on each node. Return its exit code; 1 if it broke down.

    A program that breaks down is restarted on the nodes that still answer, as often as nodes are lost. If all nodes answer, it
    is restarted once, and again whenever it has worked for a while.

    Raises:
        LaunchError: it could not start: no mpi4py, no MPI start command, or the error that rank 0 reported.
    """
    names = [node.name for node in found.nodes]
    where = f"{len(names)} nodes" if len(names) > 1 else f"{names[0]}, another node than the launcher's,"
    if importlib.util.find_spec("mpi4py") is None:
        raise LaunchError(f"Jobs on {where} need mpi4py, which {sys.executable} does not have.", hint=INSTALL)
    starter = RankStarter(settings, found.batch.node_gpus if found.batch else None)
    starter.words(names)
    logs.set_up(db_directory, settings, "supervisor")
    deadline = time.monotonic() + 60 * options.time_limit_minutes if options.time_limit_minutes > 0 else None
    signals = SignalInbox()
    batch, is_repeated, lost_lease = found.batch, False, None
    while True:
        if deadline is not None:
            options = options._replace(time_limit_minutes=max((deadline - time.monotonic()) / 60, 0.001))
        plan = RankPlan(db_directory, len(names), settings.HEARTBEAT_S, options, batch, lost_lease)
        program, began = _Program(starter.words(names), plan, settings, signals), time.monotonic()
        code = program.run()
        if code is not None:
            return code
        too_late = deadline is not None and deadline - time.monotonic() < 60 * _MIN_MINUTES
        if signals.stop or too_late or batch is None:
            break
        alive = starter.answering(names, signals)
        if signals.stop or not alive:
            break
        if len(alive) == len(names):
            if program.lease is None or (is_repeated and time.monotonic() - began < _STABLE_AFTER_S):
                break
            is_repeated, lost_lease = True, None
            log.warning("All nodes answer. It is started again.")
            continue
        lost = [name for name in names if name not in alive]
        log.warning("Lost %d of %d nodes, which do not answer: %s. It is started again on the others.",
                    len(lost), len(names), hostlist.compress(lost))  # fmt: skip
        names, options = alive, options._replace(limit_nodes=None, offset_nodes=0)
        batch, lost_lease = batch.only(alive), program.lease
    log.error("What was running will be RESTART_READY as soon as the next launcher starts.")
    return 1


class RankStarter:
    """The MPI start command for one rank on each of some nodes."""

    def __init__(self, settings: Settings, node_gpus: NodeGpus | None) -> None:
        self._settings, self._node_gpus = settings, node_gpus

    def words(self, names: Sequence[str]) -> list[str]:
        """Return the words before the rank program. Raise LaunchError if this machine has no such command."""
        found = mpirun.one_rank_per_node(names, self._settings, os.environ, self._node_gpus)
        if isinstance(found, str):
            where = f"{len(names)} nodes" if len(names) > 1 else f"{names[0]}, another node than the launcher's,"
            raise LaunchError(f"Jobs on {where} need an MPI start command: {found}")
        return found

    def answering(self, names: Sequence[str], signals: SignalInbox) -> list[str]:
        """Return the nodes on which a program can be started, in their order. A lost one takes `_PROBE_S`."""
        log.info("Asking each node whether it answers.")
        environ = _environ()

        def answers(name: str) -> bool:
            # A signal ends this check early: nothing is started any more then.
            return not signals.stop and run([*self.words([name]), *_PROBE], timeout_s=_PROBE_S, environ=environ).ok

        with ThreadPoolExecutor(_PROBES) as pool:
            return [name for name, ok in zip(names, pool.map(answers, names)) if ok]


def _environ() -> dict[str, str]:
    """Return a scrubbed environment: in Slurm a second program would otherwise wait for the rest of the first."""
    return {os.fsdecode(name): os.fsdecode(value) for name, value in mpirun.scrubbed(os.environb).items()}


class SignalInbox:
    """The signals that this process has received. Handles them until it ends."""

    def __init__(self) -> None:
        self.stop = False
        self._names: deque[str] = deque()
        daemon.handle_stop_signals(self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.stop = True
        self._names.append(signal.Signals(number).name)

    def take(self) -> list[str]:
        """Return the signals that came since the last call."""
        return [self._names.popleft() for _ in range(len(self._names))]


class _Program:
    """One run of the MPI program."""

    def __init__(self, starter: Sequence[str], plan: RankPlan, settings: Settings, signals: SignalInbox) -> None:
        self._plan, self._settings, self._signals = plan, settings, signals
        self._mark = ensemble_mark(Holder.current())
        log.info(
            "Starting %d ranks of balsam_lite.launcher.multinode.rank: %s", plan.ranks, " ".join([*starter, sys.executable])
        )
        environ = {**_environ(), RUN_VARIABLE: os.fsdecode(self._mark)}
        argv = [*starter, *module_words("balsam_lite.launcher.multinode.rank", plan.as_text())]
        self._process = Piped(argv, environ)
        self._unread = b""
        self._last_words = b""
        #: When it was "start"ed, if rank 0 has not begun; told to "stop"; "told" us that it is over; when rank 0 was seen
        #: "dead", and the MPI command came to its "end".
        self._times: dict[str, float] = {"start": time.monotonic()}
        self._how = ""  # it came to its end, if it did not do so itself
        self._head: Holder | None = None  # rank 0
        self._ended: int | None = None
        self._error: str | None = None
        self.lease: int | None = None
        self._run_mark = b""  # of its runs; known together with the lease

    def run(self) -> int | None:
        """Wait until the program has ended and left no process on this host. Return its exit code; None if it broke down.

        Raises:
            LaunchError: the error that a rank reported.
        """
        try:
            self._attend()
        finally:
            self._clean_up()
        if self._error is not None:
            raise LaunchError(self._error)
        if self._ended is None and self.lease is not None and self._process.returncode() == 0:
            self._ended = 0  # all ranks left in good order; Open MPI now and then loses the last line of one
        if self._ended is None:
            self._tell_how_it_died()
        return self._ended

    def _attend(self) -> None:
        listeners = {self._process.stdout: self._listen, self._process.stderr: self._pass_on}
        waiting = select.poll()  # select.select takes no descriptor beyond 1023
        for pipe in listeners:
            waiting.register(pipe, select.POLLIN)
        while listeners or self._process.returncode() is None:
            for pipe, _ in waiting.poll(_PERIOD_S * 1000):
                data = os.read(pipe, 65536)
                listeners[pipe](data)
                if not data:
                    waiting.unregister(pipe)
                    del listeners[pipe]
            for name in self._signals.take():
                self._process.tell(f"stop {name}\n".encode())
                self._times.setdefault("stop", time.monotonic())
            if self._process.returncode() is not None:
                self._times.setdefault("end", time.monotonic())
            if self._head is not None and "told" not in self._times and self._head.is_provably_dead():
                self._times.setdefault("dead", time.monotonic())
            if self._is_late():
                if "end" not in self._times:
                    self._how = self._what_hung()
                return

    def _what_hung(self) -> str:
        if "dead" in self._times:
            return "rank 0 has died"
        if "start" in self._times and "stop" not in self._times:
            return f"rank 0 did not begin within {_START_LIMIT_S:g} s"
        return "it did not end and was killed"

    def _is_late(self) -> bool:
        limits = {
            "start": _START_LIMIT_S,
            "told": _END_LIMIT_S,
            "end": _PIPES_LIMIT_S,
            "stop": _STOP_LIMIT_S,
            "dead": _LAST_NEWS_LIMIT_S,
        }
        if self.lease is not None:
            limits["stop"] += self._settings.KILL_GRACE_S + self._settings.BUSY_TIMEOUT_S
        now = time.monotonic()
        return any(now - since > limits[what] for what, since in self._times.items())

    def _listen(self, data: bytes) -> None:
        *lines, self._unread = (self._unread + data).split(b"\n")
        if not data:
            lines, self._unread = [*lines, self._unread], b""
        for line in lines:
            before, token, news = line.decode(errors="replace").partition(_TOKEN)
            if token:
                self._note(news)
            elif before.strip():
                self._pass_on(line + b"\n")

    def _note(self, text: str) -> None:
        """Act on a report of rank 0."""
        try:
            (what, value), *_ = json.loads(text).items()
            if what == "lease":
                self.lease = int(value)
            elif what == "mark":
                self._run_mark = os.fsencode(value)
            elif what == "head":
                self._head = Holder(*value)
                self._times.pop("start", None)
            elif what == "ended":
                self._ended = int(value)
            elif what == "error":
                self._error = self._error or str(value)
        except (ValueError, TypeError, AttributeError):  # a line of another program in between
            return
        if what in ("ended", "error"):
            self._times.setdefault("told", time.monotonic())

    def _pass_on(self, data: bytes) -> None:
        self._last_words = (self._last_words + data)[-_LAST_WORDS_BYTES:]
        daemon.write_stderr(data)

    def _tell_how_it_died(self) -> None:
        code = self._process.returncode()
        how = self._how or ("" if code is None else reason(code))
        lines = [line for line in self._last_words.decode(errors="replace").splitlines() if line.strip()]
        words = "".join(f"\n  {line}" for line in lines[-_LAST_WORDS:])
        log.error("The MPI program of the launcher broke down (%s).%s", how, words and f" Its last words:{words}")

    def _clean_up(self) -> None:
        directory, grace_s = self._plan.db_directory, self._settings.KILL_GRACE_S + _LEFTOVER_GRACE_S
        left = end_runs(directory, grace_s, [self._mark]).number
        if left:
            log.warning("%d process(es) of the MPI program were left on this host and have been told to end.", left)
        if self.lease is not None and self._ended is None:
            end_runs(directory, self._settings.USER_KILL_GRACE_S, [self._run_mark])


# --- balsam launcher --part -------------------------------------------------------------------------------------------

#: A child's end wakes this process; if that is missed, it checks after this many seconds.
_CHECK_PERIOD_S = 5.0


def run_parts(db_directory: str, options: LauncherOptions, parts: Sequence[Partition]) -> int:
    """Run a launcher for each part until all have ended. Return the worst of their exit codes.

    The launchers share this process's group, so that signals of a batch system or a terminal to the group reach them as well;
    they treat a signal repeated within a second as one. If only this process is killed, they go on working until the batch job,
    which has lost its main process, ends.

    The nodes are the batch job's in their order, or shares of this host: as many as the parts need, or `options` has.

    Raises:
        InvalidSpec: the parts do not cover all nodes. LaunchError: the nodes cannot be determined. SpawnFailed.
    """
    import_guard.check_writable()
    total = sum(part.num_nodes for part in parts)
    batch = resources.where_am_i(options, Settings.load(db_directory), os.environ)
    check_sum(parts, resources.count_nodes(options, batch) or total)
    if batch is None:
        options = options._replace(nodes=total)
    with Alarm() as alarm:
        launchers: list[Companion] = []
        heard: list[int] = []

        def pass_on(number: int, _: FrameType | None) -> None:
            heard.append(number)
            for launcher in launchers:
                launcher.signal(number)

        daemon.handle_stop_signals(pass_on)
        try:
            offset = 0
            for part in parts:
                launchers.append(_start_part(db_directory, options, part, offset))
                offset += part.num_nodes
                for early in heard:
                    launchers[-1].signal(early)
        except SpawnFailed:
            pass_on(signal.SIGTERM, None)
            raise
        while any(launcher.returncode() is None for launcher in launchers):
            alarm.wait(_CHECK_PERIOD_S)
    return max(_exit_code(launcher.returncode() or 0) for launcher in launchers)


def _start_part(db_directory: str, options: LauncherOptions, part: Partition, offset: int) -> Companion:
    argv = module_words("balsam_lite.cli", "--db", db_directory, *part_words(options, part, offset))
    return Companion(argv, {**os.environ, "PYTHONPATH": python_path()})


def part_words(options: LauncherOptions, part: Partition, offset: int) -> list[str]:
    """Return the command line of the launcher of that part, whose nodes follow the first `offset` ones."""
    given = {
        "--wf-filter": options.workflow_filter,
        "--nodes": options.nodes,
        "--gpus-per-node": options.gpus_per_node,
        "--time-limit-minutes": options.time_limit_minutes or None,
        "--num-transition-threads": options.transition_threads or None,
        "--limit-nodes": part.num_nodes,
        "--offset-nodes": offset,
        "--job-mode": part.job_mode,
    }
    found = ["launcher", *(f"{name}={value}" for name, value in given.items() if value is not None)]
    found += ["--consume-all"] * (options.workflow_filter is None) + ["--persistent"] * options.persistent
    return [*found, *(f"--tag={key}={value}" for key, value in {**dict(options.tags), **part.filter_tags}.items())]


def _exit_code(code: int) -> int:
    """Return an exit code as a shell reports it."""
    return code if code >= 0 else 128 - code
