"""The program that MPI starts once on each node, with a plan (see `supervisor`) as its only argument.

Rank 0 is the launcher, on the first node; the others run the jobs that it sends. The process that started all (`supervisor`)
reads rank 0's stdout and writes to its stdin, which MPI start commands forward.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from ...core import daemon
from ...core.clock import Clock, SystemClock
from ...core.errors import BalsamError, LaunchError
from ...core.process_table import Holder
from ...core.settings import Settings
from ...db.store.claims import Claim
from .. import main, resources
from ..exec import hardware
from ..exec.invocation import Context
from ..exec.run_file import end_runs
from ..exec.spawner import Alarm
from ..placement import Node, NodePool
from ..resources import LauncherOptions, Resources
from ..runner import LocalRunner, Runner
from . import messages
from .coordinator import ALIVE_HEARTBEATS, ClusterRunner, Workers
from .messages import Channel
from .mpi_transport import MpiTransport, connect
from .supervisor import RankPlan, report
from .worker import ALONE_AFTER_HEARTBEATS, HEAD, ConnectionLost, LocalExecutor, Worker

log = logging.getLogger("balsam_lite.launcher.multinode.rank")  # run as a program, its __name__ is __main__

#: The signal that MPICH's mpiexec sends to all ranks when one has died (tried with 5.0.2).
_RANK_DIED = signal.SIGUSR1
#: This signal, and those that the batch system sends to every process of a batch job.
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, _RANK_DIED)


def run(text: str) -> int:
    """Run one rank and return its exit code. Does not return if the ranks cannot leave together."""
    plan = RankPlan.from_text(text)
    try:
        transport = connect(plan.ranks)
    except LaunchError as exc:
        report(error=str(exc))
        return 1
    for number in _IGNORED:
        # Not SIG_IGN: started programs would inherit that.
        signal.signal(number, lambda *_: None)
    _keep_files_to_ourselves()
    if transport.rank == HEAD:
        return _be_head(transport, plan)
    return _be_node(transport, plan)


def _keep_files_to_ourselves() -> None:
    """Keep started programs from inheriting files and sockets that MPI has opened."""
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # it was the directory's own
            os.set_inheritable(int(name), int(name) <= 2)


def _leave(transport: MpiTransport, together: bool, code: int) -> int:
    """End this process: together with all the others if possible, else at once."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its reader has ended
            stream.flush()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)  # Python puts an end to handlers before its own
    if not together:
        os._exit(code)
    transport.close()
    return code


# --- rank 0 -----------------------------------------------------------------------------------------------------------


def _be_head(transport: MpiTransport, plan: RankPlan) -> int:
    settings = Settings.load(plan.db_directory)
    clock = SystemClock()
    workers = Workers(transport, clock, plan.heartbeat_s)
    signal.signal(_RANK_DIED, lambda *_: workers.channel.note_death())
    code, error = 1, ""
    try:
        report(head=Holder.current())
        _listen_to_supervisor()
        workers.gather()
        found = resources.survey(plan.options, settings, plan.batch, os.environ)
        found = found._replace(nodes=_nodes(found, {HEAD: _hello(), **workers.members}, settings, plan.options))
        code = main.run_on(
            found, plan.db_directory, settings, plan.options, RemoteNodes(workers, found, clock), plan.lost_lease
        )
    except BalsamError as exc:
        error = str(exc)
    except Exception as exc:  # reported by the supervisor; the traceback is in the log
        log.exception("Rank 0 stops because of an internal error.")
        error = f"Unexpected {type(exc).__name__}: {exc}"
    together = workers.dismiss(in_good_order=code == 0)
    if error:
        report(error=error)
    else:
        report(ended=code)
    return _leave(transport, together, code)


def _listen_to_supervisor() -> None:
    """Convert lines on stdin (`stop SIGTERM`) into signals, and the end of the writer into SIGHUP."""

    def listen() -> None:
        with open(0, "rb", buffering=0, closefd=False) as file:
            while True:
                line = file.readline()
                if not line:
                    break
                verb, _, name = line.decode(errors="replace").strip().partition(" ")
                if verb == "stop" and name in signal.Signals.__members__:
                    os.kill(os.getpid(), signal.Signals[name])
        # Output has no reader any more, and the MPI command could die of that.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.kill(os.getpid(), signal.SIGHUP)

    threading.Thread(target=listen, name="supervisor", daemon=True).start()


def _nodes(found: Resources, hellos: dict[int, messages.Hello], settings: Settings, options: LauncherOptions) -> list[Node]:
    """Return the batch job's nodes in the order of the ranks, with the CPUs and GPUs of each.

    These are what the scheduler allocated, else what each node has found, but no more GPUs than the user wants per node.
    """
    says_cpus = settings.CPUS_PER_NODE or (found.batch and found.batch.cpus_per_node)
    names = names_by_rank([node.name for node in found.nodes], {rank: hello.host for rank, hello in hellos.items()})
    by_name = {node.name: node for node in found.nodes}
    shown = {name: hellos[rank].gpus if rank in hellos else () for rank, name in enumerate(names)}
    gpus = _gpus(found, shown, resources.gpus_per_node(options, settings))
    made = []
    for rank, name in enumerate(names):
        hello = hellos.get(rank)
        made.append(Node(by_name[name].cpus if says_cpus or hello is None else hello.cpus, gpus[name], name))
        made[-1].is_closed = hello is None
    return made


def _gpus(found: Resources, shown: Mapping[str, tuple[str, ...]], per_node: int | None) -> dict[str, tuple[str, ...]]:
    """Return the GPUs of each node, by its name, from what each node shows.

    The scheduler's answer comes first. If no node shows any GPU, the number given by the user or the batch job counts.
    """
    known = found.batch.node_gpus if found.batch else None
    if known is None and any(shown.values()):
        return {name: gpus[:per_node] for name, gpus in shown.items()}
    if known is None:
        number = per_node if per_node is not None else (found.batch and found.batch.gpus_per_node) or 0
        return dict.fromkeys(shown, tuple(map(str, range(number))))
    _, value = known.step_gpus(list(shown))
    dealt = 0 if value == "none" else int(value.rpartition(":")[2])  # to each rank's step
    most = dealt if known.are_fenced else None
    own = {node.name: tuple(node.gpu_load)[:most] for node in found.nodes}
    return {name: gpus if 0 < dealt == len(gpus) == len(own[name]) else own[name] for name, gpus in shown.items()}


def names_by_rank(names: Sequence[str], hosts: Mapping[int, str]) -> list[str]:
    """Return the batch job's node of each rank: in their order, unless the names of all hosts show another one.

    >>> names_by_rank(["n1", "n2"], {0: "n2.site.edu", 1: "n1"})
    ['n2', 'n1']
    >>> names_by_rank(["1001", "1002"], {0: "nid01001", 1: "nid01002"})
    ['1001', '1002']
    """
    by_label = {name.partition(".")[0]: name for name in names}
    found = [by_label.get(hosts.get(rank, "").partition(".")[0]) for rank in range(len(names))]
    told = [name for name in found if name is not None]
    return told if len(set(told)) == len(names) else list(names)


class RemoteNodes(main.Nodes):
    """The other nodes of a launcher on many."""

    def __init__(self, workers: Workers, found: Resources, clock: Clock) -> None:
        self._workers, self._found, self._clock = workers, found, clock
        self._runner: ClusterRunner | None = None

    def begin(self, context: Context, settings: Settings, job_mode: str, lease: int, dead_marks: tuple[bytes, ...]) -> None:
        """End processes of dead launchers on all nodes, and make the nodes get ready."""
        report(mark=os.fsdecode(context.mark))
        report(lease=lease)
        orders = messages.Begin(
            context.db_directory,
            context.mark,
            len(self._found.nodes),
            job_mode,
            context.environ,
            settings.ERROR_TAIL_LINES,
            settings.USER_KILL_GRACE_S,
            dead_marks,
            context.gpu_variables,
            context.worker_limits,
        )
        end_runs(context.db_directory, settings.USER_KILL_GRACE_S, dead_marks)
        self._workers.begin(orders)

    def runner(self, local: LocalRunner, pool: NodePool) -> Runner:
        """Return the runner for all nodes, given the runner for this one."""
        for rank in self._workers.left_out:
            pool.close(rank)
        rules = self._found.mpi_rules

        def is_own(claim: Claim) -> bool:
            return rules is not None and rules.starts(claim.shape)

        self._runner = ClusterRunner(local, self._workers, self._clock, is_own, pool.close)
        return self._runner

    def waiter(self, nap: Callable[[float], bool]) -> Callable[[float], object]:
        """Return a function that sleeps until a message of a node arrives or `nap` is woken."""

        def wait(seconds: float) -> None:
            assert self._runner is not None
            self._runner.wait(seconds, nap)

        return wait

    def abandon(self) -> None:
        """Make the nodes end all runs at once."""
        self._workers.abandon()


# --- the other ranks --------------------------------------------------------------------------------------------------


def _be_node(transport: MpiTransport, plan: RankPlan) -> int:
    clock = SystemClock()
    channel = Channel(transport, (HEAD,), clock, ALIVE_HEARTBEATS * plan.heartbeat_s)
    channel.start_heartbeat()
    _log_through(channel)
    with Alarm() as alarm:
        executor = LocalExecutor(transport.rank, clock, alarm, ALONE_AFTER_HEARTBEATS * plan.heartbeat_s)
        server = Worker(channel, clock, plan.heartbeat_s, executor, alarm.wait)
        try:
            together = server.serve(_hello())
        except ConnectionLost as exc:
            daemon.write_stderr(f"balsam launcher on {os.uname().nodename}: {exc}\n")
            together = False
        executor.close()
    channel.close()
    return _leave(transport, together, 0)


def _hello() -> messages.Hello:
    return messages.Hello(messages.VERSION, os.uname().nodename, hardware.cpus(), hardware.gpus())


class _ToHead(logging.Handler):
    """A handler that sends log records to rank 0, which has a log file."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(HEAD, messages.LOG, record.levelno, self.format(record))


def _log_through(channel: Channel) -> None:
    logger = logging.getLogger("balsam_lite")
    logger.setLevel(logging.INFO)
    logger.addHandler(_ToHead(channel))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
