"""A launcher's nodes, MPI start command and end time, from the options, settings, batch job and machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from ..core.clock import Clock
from ..core.errors import InputError, LaunchError
from ..core.settings import Settings
from ..db.query.takers import MpiRules
from ..schedulers import environ as environ_of_batch
from ..schedulers.environ import Allocation, NodeGpus, allocation, ask_end_us, ask_gpus
from . import mpirun
from .exec import hardware
from .exec.hardware import deal_cpus
from .exec.invocation import NO_MPI, MpiUse
from .placement import Node, divide_host

log = logging.getLogger(__name__)

#: The scheduler may take this long to tell when the batch job ends, in seconds.
_ASK_S = 20.0
#: Maximum number of nodes or GPUs of one launcher. Each is an object; more would take minutes and all memory.
_MAX_PARTS = 100_000

T = TypeVar("T")


class LauncherOptions(NamedTuple):
    """The options of `balsam launcher`."""

    job_mode: str = "serial"  # serial, mpi or mixed
    workflow_filter: str | None = None  # exact name or glob; None: all jobs
    time_limit_minutes: float = 0.0  # <= 0: ask the batch job, else no limit
    nodes: int | None = None  # virtual nodes of this host; None: what the batch job has, else one per core
    limit_nodes: int | None = None  # maximum number of the batch job's nodes, None: all …
    offset_nodes: int = 0  # … after skipping this many
    gpus_per_node: int | None = None
    persistent: bool = False
    transition_threads: int = 0  # 0: as in the settings
    tags: tuple[tuple[str, str], ...] = ()  # only jobs that have all of them


class Resources(NamedTuple):
    """The result of `survey`."""

    nodes: list[Node]
    batch: Allocation | None
    mpi_rules: MpiRules | None  # None: no MPI jobs
    no_mpi: str  # why not
    mpi: MpiUse
    cpus: tuple[int, ...] = ()  # of this host, which jobs may be pinned to

    @property
    def are_shares(self) -> bool:
        """Return whether the nodes are shares of this host."""
        return not self.nodes[0].name

    @property
    def are_elsewhere(self) -> bool:
        """Return whether there is a node that is not this host, so that programs cannot simply be started here."""
        if self.batch is None or not self.nodes[0].name:
            return False
        here = (self.batch.this_node or self.batch.node_names[0]) if self.batch.runs_on_node else None
        return any(node.name != here for node in self.nodes)


def where_am_i(options: LauncherOptions, settings: Settings, environ: Mapping[str, str]) -> Allocation | None:
    """Return the batch job of this process, with its end and its nodes' GPUs; None outside of any. May ask the scheduler.

    Raises:
        LaunchError: its nodes cannot be determined, and --nodes does not request shares of this host; or this is one of several
        launchers that would each take all nodes.
    """
    _refuse_ranks(options, environ)
    batch = allocation(environ, node_names=() if options.nodes else None)
    if batch is None:
        return None
    command = settings.SCHEDULER_STATUS_EXE if settings.SCHEDULER_CLASS in ("", batch.scheduler) else ""
    timeout_s = min(_ASK_S, settings.SCHEDULER_TIMEOUT_S)
    return batch._replace(
        ends_us=ask_end_us(batch, command=command, timeout_s=timeout_s, environ=environ),
        node_gpus=ask_gpus(batch, timeout_s=timeout_s, environ=environ),
    )


def _refuse_ranks(options: LauncherOptions, environ: Mapping[str, str]) -> None:
    """Refuse to be one of several launchers that srun or mpiexec has started; with --nodes each divides its own host.

    Rank 0 of Slurm may still be the only launcher, as in `srun -N2 --pty bash`, and so may a rank 0 at a terminal.
    """
    rank = environ_of_batch.rank(environ)
    if rank is None or options.nodes:
        return
    what = f"This is {rank}: srun or mpiexec has started a launcher for each rank, and each would use all nodes."
    how = "Start `balsam launcher` once, without srun or mpiexec: it starts programs on all nodes itself."
    if rank.number > 0 or not ("SLURM_PROCID" in environ or os.isatty(0)):
        raise LaunchError(what, hint=f"{how}\nWith --nodes N each would divide only its own host into N nodes.")
    log.warning("Warning: this is %s. If the others start a launcher, too, those are refused.\n%s", rank, how)


def survey(options: LauncherOptions, settings: Settings, batch: Allocation | None, environ: Mapping[str, str]) -> Resources:
    """Determine the resources of the batch job and the machine. Runs the MPI command once, if needed, to identify it.

    Raises:
        InputError: the options leave no node. SettingsError: the MPI settings make no sense. LaunchError: the machine's MPI
        start command cannot do what the job mode needs.
    """
    if batch and batch.node_names and not options.nodes:
        nodes, cpus = _named(options, settings, batch), hardware.cpu_numbers()
    else:
        nodes, cpus = _virtual(options, settings, batch), _cpus_of_shares(options, batch)
    if options.job_mode == "serial":
        return Resources(nodes, batch, None, "needs --job-mode=mpi or mixed", NO_MPI, cpus)
    found = mpirun.find(settings, environ)
    if isinstance(found, str):
        return Resources(nodes, batch, None, f"needs an MPI start command: {found}", NO_MPI, cpus)
    found = found._replace(node_gpus=batch.node_gpus if batch and nodes[0].name else None)
    rules = MpiRules(options.job_mode == "mpi", found.shares_nodes, settings.MAX_CONCURRENT_MPIRUNS)
    use = mpirun.use(found, nodes, rules, hardware.gpu_variables(settings.GPU_VARIABLES))
    resources = Resources(nodes, batch, rules, "", use, cpus)
    if options.job_mode == "mixed" and resources.are_elsewhere and not found.shares_nodes:
        raise LaunchError(
            f"--job-mode=mixed is not possible here: {found.flavour.name} runs one program at a time on a node, and what runs"
            " the serial jobs would be one on every node.",
            hint="--job-mode=mpi runs all jobs; or start two launchers in one job script, each on its part of the nodes: one"
            " serial with --limit-nodes N, one mpi with --offset-nodes N.",
        )
    return resources


def count_nodes(options: LauncherOptions, batch: Allocation | None) -> int | None:
    """Return how many nodes `survey` will find before --limit-nodes and --offset-nodes; None if unknown."""
    if options.nodes or batch is None:
        return options.nodes
    return len(batch.node_names) or batch.num_nodes


def _named(options: LauncherOptions, settings: Settings, batch: Allocation) -> list[Node]:
    names = _chosen(batch.node_names, options)
    cpus = settings.CPUS_PER_NODE or batch.cpus_per_node or hardware.cpus()
    of_each = {} if settings.CPUS_PER_NODE else dict(zip(batch.node_names, batch.node_cpus))
    gpus = _gpus_of_named(options, settings, batch)
    _refuse_too_many(len(names), len(gpus) * len(names))
    here, elsewhere = batch.this_node or batch.node_names[0], _on_another_node(gpus)
    if batch.node_gpus is None:
        return [Node(of_each.get(name, cpus), gpus if name == here else elsewhere, name) for name in names]
    own = {name: gpus_of(batch.node_gpus, name, gpus_per_node(options, settings)) for name in names}
    if gpus_per_node(options, settings) is None and len(gpus) == len(own.get(here, ())):
        own[here] = gpus  # by the names that this process was told
    return [Node(of_each.get(name, cpus), own[name], name) for name in names]


def gpus_of(known: NodeGpus, name: str, per_node: int | None) -> tuple[str, ...]:
    """Return the GPUs that the scheduler gave to the batch job on that node, at most as many as the user wants per node."""
    return tuple(known.names.get(name, ()))[:per_node]


def _gpus_of_named(options: LauncherOptions, settings: Settings, batch: Allocation) -> tuple[str, ...]:
    """Return the GPUs of each node. This node's list precedes a number: another batch job may have the first GPUs."""
    per_node = gpus_per_node(options, settings)
    if per_node is None and batch.runs_on_node:
        found = hardware.gpus()
        if found or batch.gpus_per_node is None:
            return found
    return tuple(map(str, range((batch.gpus_per_node or 0) if per_node is None else per_node)))


def _on_another_node(gpus: tuple[str, ...]) -> tuple[str, ...]:
    """Return the corresponding GPUs of a node like this one. UUIDs, which name only GPUs of this node, become numbers.

    >>> _on_another_node(("2", "3")), _on_another_node(("0.0", "0.1")), _on_another_node(("GPU-8932f937", "GPU-5ad1"))
    (('2', '3'), ('0.0', '0.1'), ('0', '1'))
    """
    if all(gpu.replace(".", "").isdigit() for gpu in gpus):
        return gpus
    return tuple(map(str, range(len(gpus))))


def _virtual(options: LauncherOptions, settings: Settings, batch: Allocation | None) -> list[Node]:
    """Return shares of this host. If their number is not given, the user's values per node apply to the host."""
    number, cpus = _number_of_shares(options, batch), hardware.cpus()
    per_node, asked = gpus_per_node(options, settings), number if options.nodes or batch else 1
    _refuse_too_many(number, (per_node or 0) * asked)
    found = _gpus_of_host(None if per_node is None else per_node * asked)
    return _chosen(divide_host(number, settings.CPUS_PER_NODE * number or cpus, found, os.uname().nodename), options)


def _gpus_of_host(wanted: int | None) -> tuple[str, ...]:
    """Return at most this many GPUs of this host. If it shows none, use the user's number, perhaps for a trial."""
    if wanted == 0:
        return ()
    found = hardware.gpus()
    if wanted is None:
        return found
    return found[:wanted] or tuple(map(str, range(wanted)))


def _cpus_of_shares(options: LauncherOptions, batch: Allocation | None) -> tuple[int, ...]:
    """Return the CPUs of this launcher's nodes: another launcher on this host, with other nodes, has other CPUs."""
    shares = _chosen(deal_cpus(hardware.cpu_numbers(), _number_of_shares(options, batch)), options)
    return tuple(dict.fromkeys(cpu for share in shares for cpu in share))


def _number_of_shares(options: LauncherOptions, batch: Allocation | None) -> int:
    return options.nodes or (batch.num_nodes if batch else hardware.cpus())


def _chosen(nodes: Sequence[T], options: LauncherOptions) -> list[T]:
    """Return the nodes selected by --limit-nodes and --offset-nodes."""
    first, most = options.offset_nodes, options.limit_nodes
    chosen = list(nodes[first : None if most is None else first + most])
    if not chosen:
        raise InputError(
            f"--offset-nodes {first} and --limit-nodes {'(none)' if most is None else most} leave no node of {len(nodes)}"
        )
    return chosen


def gpus_per_node(options: LauncherOptions, settings: Settings) -> int | None:
    """Return the user's number of GPUs per node; None: not given."""
    if options.gpus_per_node is not None:
        return options.gpus_per_node
    return settings.GPUS_PER_NODE if settings.GPUS_PER_NODE >= 0 else None


def _refuse_too_many(nodes: int, gpus: int) -> None:
    if not 1 <= nodes <= _MAX_PARTS:
        raise InputError(f"The number of nodes must be from 1 to {_MAX_PARTS}, not {nodes}")
    if gpus > _MAX_PARTS:
        raise InputError(f"The number of GPUs must be at most {_MAX_PARTS}, not {gpus}")


def end(options: LauncherOptions, batch: Allocation | None, settings: Settings, clock: Clock) -> float | None:
    """Return when to stop, on the monotonic clock: at the user's limit or at the batch job's end, whichever is first."""
    ends = []
    if options.time_limit_minutes > 0:
        ends.append(60 * options.time_limit_minutes)
    if batch and batch.ends_us is not None:
        left_s = (batch.ends_us - clock.now_us()) / 1e6
        ends.append(max(left_s - min(settings.end_margin_s, left_s / 4), 0))
    return clock.monotonic() + min(ends) if ends else None
