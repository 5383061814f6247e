"""Find the batch job in which this process runs, from the environment that the scheduler sets.

Only variables and the files that they name are read: no command is run (`remaining` does that) and no host name is examined.
What decides where jobs go, and until when, must be readable, else it is an error. CPUs and GPUs, which the machine itself
can report as well, count as unspecified if their values make no sense.

To add a scheduler: write a detector and a reader of its nodes, and append both to the table.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from ..core.clock import SECOND_US, Clock, SystemClock
from ..core.errors import LaunchError, NoNodes
from ..core.subprocess_run import run
from . import hostlist, pbs

LOCAL_JOBID, LOCAL_NODES, LOCAL_ENDTIME = "BALSAM_LOCAL_JOBID", "BALSAM_LOCAL_NODES", "BALSAM_LOCAL_ENDTIME"


class NodeGpus(NamedTuple):
    """The GPUs that Slurm gave to a batch job."""

    names: Mapping[str, Sequence[str]]  # by node, under the names that programs there have to use
    #: A step can use only the GPUs that it asks for (ConstrainDevices), and numbers them from 0.
    are_fenced: bool = False

    def step_gpus(self, hosts: Sequence[str], names_differ: bool = False) -> tuple[str, str]:
        """Return which GPUs a step on these hosts has to ask for: an option of srun, without dashes, and its value.

        A step that asks for nothing requests what the batch job requested with --gpus, and is refused where a node has
        less. It may ask for as many GPUs per node as the batch job's node with the fewest has; on one node for more in
        total. If nodes differ and nothing is fenced off, it needs none: programs get theirs by a variable, unless each
        node names them differently. Source: srun(1) of Slurm 22.05; tried with 22.05.8.

        >>> even, uneven = {"a": ["0", "1"], "b": ["0", "1"]}, {"a": ["0", "1"], "b": ["0"]}
        >>> NodeGpus(even).step_gpus(["a"]), NodeGpus(uneven).step_gpus(["a"]), NodeGpus(uneven, True).step_gpus(["a"])
        (('gres', 'gpu:2'), ('gres', 'none'), ('gpus', '2'))
        """
        counts, own = [len(found) for found in self.names.values()], [len(self.names.get(host, ())) for host in hosts]
        is_even = len(set(counts)) == 1
        if min(own) == 0 or not (is_even or self.are_fenced or names_differ):
            return "gres", "none"
        if len(hosts) == 1 and not is_even:
            return "gpus", str(own[0])
        return "gres", f"gpu:{min(filter(None, counts))}"


class Allocation(NamedTuple):
    """The resources of a batch job."""

    scheduler: str  # as in Settings.SCHEDULER_CLASS
    batch_id: str
    num_nodes: int
    node_names: tuple[str, ...] = ()  # () means virtual nodes, shares of this host
    ends_us: int | None = None  # microseconds since the epoch; None: not in the environment
    cpus_per_node: int = 0  # 0: not in the environment
    gpus_per_node: int | None = None  # None: not in the environment
    runs_on_node: bool = True  # False where the script runs on a service node, as on a Cray with aprun
    this_node: str = ""  # the node of this process; "" means unspecified, so the first one if this process runs on a node
    node_cpus: tuple[int, ...] = ()  # of each of `node_names`; () means unknown, or all have `cpus_per_node`
    node_gpus: NodeGpus | None = None  # from `node_gpus.ask_gpus`; None: unknown
    cluster: str = ""  # the cluster that numbered the batch job; "" means unknown, or there is only one

    def only(self, names: Sequence[str]) -> Allocation:
        """Return the same with no other nodes than these."""
        cpus = dict(zip(self.node_names, self.node_cpus))
        node_cpus = tuple(cpus[name] for name in names) if cpus else ()
        return self._replace(num_nodes=len(names), node_names=tuple(names), node_cpus=node_cpus)


_Environ = Mapping[str, str]


def allocation(environ: _Environ = os.environ, *, node_names: Sequence[str] | None = None) -> Allocation | None:
    """Return the batch job that this environment belongs to; None outside of any.

    Args:
        node_names: the nodes to use; those in the environment are then not read.

    Raises:
        LaunchError: a variable of the scheduler holds a value that it never writes there.
        NoNodes: its nodes cannot be determined.
    """
    for detect, nodes in _DETECTORS:
        found = detect(environ)
        if found is not None:
            num_nodes, names = nodes(environ) if node_names is None else _given(node_names)
            node_cpus = found.node_cpus if len(found.node_cpus) == len(names) else ()
            return found._replace(num_nodes=num_nodes, node_names=names, node_cpus=node_cpus)
    return None


#: Number of nodes, and their names.
_Nodes = tuple[int, tuple[str, ...]]


def _given(names: Sequence[str]) -> _Nodes:
    folded = tuple(dict.fromkeys(names))
    return max(len(folded), 1), folded


# --- ranks ------------------------------------------------------------------------------------------------------------

#: The variables of a rank's number, and of the number of ranks ("" means none). Source: the environments of ranks of Open MPI
#: 4.1.8 and 5.0.11, MPICH 5.0.2 and Slurm 22.05.8 (tried); intro_pmi(3) and aprun(1) of Cray; jsrun(1); flux-run(1);
#: MVAPICH2 2.3's user guide. A batch script has SLURM_PROCID=0 and no SLURM_STEP_NUM_TASKS (tried).
_RANK_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("PMIX_RANK", ""),
    ("PALS_RANKID", ""),
    ("ALPS_APP_PE", ""),
    ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
RANK_VARIABLES = frozenset(name for names in _RANK_VARIABLES for name in names if name)


class Rank(NamedTuple):
    """The rank of this process in a parallel program."""

    number: int
    size: int  # 0: unknown
    variable: str

    def __str__(self) -> str:
        return f"rank {self.number}{f' of {self.size}' if self.size else ''} ({self.variable}={self.number})"


def rank(environ: _Environ = os.environ) -> Rank | None:
    """Return this process's rank under srun, mpiexec or the like; None outside of them, or if it is the only one.

    The highest number counts: on other nodes srun starts mpiexec's own helper, which is a separate step.
    """
    found = []
    for variable, of_size in _RANK_VARIABLES:
        number, size = (environ.get(name, "") for name in (variable, of_size))
        if re.fullmatch("[0-9]{1,9}", number):
            found.append(Rank(int(number), int(size) if re.fullmatch("[0-9]{1,9}", size) else 0, variable))
    highest = max(found, default=None)
    return highest if highest and (highest.number > 0 or highest.size > 1) else None


# --- local ------------------------------------------------------------------------------------------------------------


def _local(environ: _Environ) -> Allocation | None:
    if LOCAL_JOBID not in environ:
        return None
    return Allocation("LocalScheduler", _batch_id(environ, LOCAL_JOBID), 1, ends_us=_time_us(environ, LOCAL_ENDTIME))


def _local_nodes(environ: _Environ) -> _Nodes:
    return (_count(environ, LOCAL_NODES) if LOCAL_NODES in environ else 1), ()


# --- Slurm: sbatch(1), "output environment variables", version 22.05 --------------------------------------------------


def _slurm(environ: _Environ) -> Allocation | None:
    """Read the allocation in a batch script, in a step, or in the shell of salloc. That shell runs where salloc was called, not
    on a node, so it has no SLURMD_NODENAME: slurmd sets that for the processes it starts."""
    if "SLURM_JOB_ID" not in environ:
        return None
    return Allocation(
        "SlurmScheduler",
        _batch_id(environ, "SLURM_JOB_ID"),
        1,
        ends_us=_time_us(environ, "SLURM_JOB_END_TIME"),  # since version 23.02
        cpus_per_node=_first(_fewest_cpus, environ, ("SLURM_JOB_CPUS_PER_NODE", "SLURM_CPUS_ON_NODE")) or 0,
        gpus_per_node=_slurm_gpus(environ),
        runs_on_node="SLURMD_NODENAME" in environ,
        this_node=environ.get("SLURMD_NODENAME", ""),
        cluster=environ.get("SLURM_CLUSTER_NAME", ""),
        node_cpus=_cpus_of_each(environ.get("SLURM_JOB_CPUS_PER_NODE", "")),
    )


def _slurm_nodes(environ: _Environ) -> _Nodes:
    """Return the nodes of the batch job, in a step too. SLURM_NODELIST is the name of old versions for the same."""
    variables = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")
    filled = next((variable for variable in variables if environ.get(variable)), variables[0])
    return _NodeSource(environ, "SLURM_JOB_ID", variables).in_list(filled, hostlist.expand)


def _slurm_gpus(environ: _Environ) -> int | None:
    found = _first(_total_gpus, environ, ("SLURM_GPUS_ON_NODE", "SLURM_GPUS_PER_NODE"))
    if found is None and environ.get("SLURM_JOB_GPUS"):  # the numbers of the GPUs on the batch script's node
        try:
            return len(hostlist.expand_numbers(environ["SLURM_JOB_GPUS"]))
        except ValueError:
            return None
    return found


def _cpus_of_each(text: str) -> tuple[int, ...]:
    """Return the CPUs of each node in SLURM_JOB_CPUS_PER_NODE; () if all have the same, or the text has another form.

    >>> _cpus_of_each("72(x2),36"), _cpus_of_each("4(x2)"), _cpus_of_each("many,4")
    ((72, 72, 36), (), ())
    """
    parts = [re.fullmatch(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", part) for part in text.split(",")]
    counts = [(int(part[1]), int(part[2] or 1)) for part in parts if part]
    if (
        len(counts) < len(parts)
        or len({cpus for cpus, _ in counts}) < 2
        or sum(times for _, times in counts) > hostlist.MAX_NAMES
    ):
        return ()
    return tuple(cpus for cpus, times in counts for _ in range(times))


def _fewest_cpus(text: str) -> int | None:
    """Return the smallest of the counts in SLURM_JOB_CPUS_PER_NODE; None if the text has another form.

    >>> _fewest_cpus("72(x2),36"), _fewest_cpus("4"), _fewest_cpus("many")
    (36, 4, None)
    """
    counts = [re.fullmatch(r"([0-9]{1,9})(?:\(x[0-9]{1,9}\))?", part) for part in text.split(",")]
    return min(int(count[1]) if count else 0 for count in counts) or None


def _total_gpus(text: str) -> int | None:
    """Return the number of GPUs of a node in the form of --gpus-per-node; None if the text has another form.

    >>> _total_gpus("4"), _total_gpus("a100:3,v100:1"), _total_gpus("all")
    (4, 4, None)
    """
    counts = [re.fullmatch(r"(?:[^,:]+:)*([0-9]{1,9})", part) for part in text.split(",")]
    return sum(int(count[1]) for count in counts if count) if all(counts) else None


# --- Cobalt 1.0.33, as its queue manager and the forkers of scripts set them ------------------------------------------


def _cobalt(environ: _Environ) -> Allocation | None:
    """Read the allocation. On a cluster the script starts on its first node and has a file of the nodes' names. On a Cray it
    starts on a service node and has the numbers of its nodes, for aprun."""
    if "COBALT_JOBID" not in environ:
        return None
    batch_id, ends_us = _batch_id(environ, "COBALT_JOBID"), _time_us(environ, "COBALT_ENDTIME")
    return Allocation("CobaltScheduler", batch_id, 1, ends_us=ends_us, runs_on_node="COBALT_NODEFILE" in environ)


def _cobalt_nodes(environ: _Environ) -> _Nodes:
    source = _NodeSource(environ, "COBALT_JOBID", ("COBALT_NODEFILE", "COBALT_PARTNAME", "COBALT_PARTSIZE"))
    if "COBALT_NODEFILE" in environ:
        return source.in_file("COBALT_NODEFILE")
    return source.in_list("COBALT_PARTNAME", hostlist.expand_numbers)


# --- PBS: qsub(1B) of OpenPBS 23.06 and of Torque 6.1 -----------------------------------------------------------------


def _pbs(environ: _Environ) -> Allocation | None:
    """Read the allocation; PBS does not report its end. The two counts of CPUs are those requested, or 1 if none were."""
    if "PBS_JOBID" not in environ:
        return None
    cpus = _first(_fewest_cpus, environ, ("PBS_NUM_PPN", "NCPUS")) or 0
    return Allocation("PBSScheduler", _batch_id(environ, "PBS_JOBID", _PBS_ID), 1, cpus_per_node=cpus if cpus > 1 else 0)


def _pbs_nodes(environ: _Environ) -> _Nodes:
    """Read the nodes, each of which has a line for each of its slots."""
    return _NodeSource(environ, "PBS_JOBID", ("PBS_NODEFILE",)).in_file("PBS_NODEFILE")


# --- reading variables ------------------------------------------------------------------------------------------------

_ID = re.compile(r"[0-9]{1,18}")
#: With the index in an array, and the server: 123[7].server.domain (pbs_job_attributes(7B)).
_PBS_ID = re.compile(r"[0-9]{1,18}(\[[0-9]{0,9}\])?(\.[A-Za-z0-9_.-]{1,255})?")
#: The year 5138; later times in microseconds exceed the integers used elsewhere.
_LATEST_S = 10**11


def _batch_id(environ: _Environ, variable: str, pattern: re.Pattern[str] = _ID) -> str:
    text = environ[variable]
    if not pattern.fullmatch(text):
        raise _nonsense(variable, text, "the id of a batch job", f"Outside of a batch job, `unset {variable}` helps.")
    return text


def _time_us(environ: _Environ, variable: str) -> int | None:
    """Convert seconds since 1970 to microseconds. No text, or 0 as for a batch job without limit, gives None."""
    text = environ.get(variable, "0")
    found = re.fullmatch(r"([0-9]{1,12})(\.[0-9]*)?", text)
    if not found or int(found[1]) > _LATEST_S:
        raise _nonsense(
            variable, text, "a time in seconds since 1970", f"`unset {variable}`; an option of the launcher sets it, too."
        )
    return int(found[1]) * SECOND_US or None


def _count(environ: _Environ, variable: str) -> int:
    text = environ[variable]
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) == 0:
        raise _nonsense(variable, text, "a number of nodes", f"`unset {variable}`; an option of the launcher sets it, too.")
    return int(text)


def _first(read: Callable[[str], int | None], environ: _Environ, variables: Sequence[str]) -> int | None:
    """Return the first number that `read` finds in the variables, in their order."""
    found = (read(environ[variable]) for variable in variables if variable in environ)
    return next((number for number in found if number is not None), None)


def _nonsense(variable: str, text: str, what: str, hint: str) -> LaunchError:
    return LaunchError(f"The environment variable {variable} should hold {what}, not {_shown(text)}", hint=hint)


# --- reading nodes ----------------------------------------------------------------------------------------------------

#: Ten thousand nodes with a hundred slots each take a third of it.
_MAX_FILE_BYTES = 64 * 1024 * 1024
_NODE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class _NodeSource(NamedTuple):
    """The variables in which a scheduler lists the nodes."""

    environ: _Environ
    identity: str  # the variable with the id of the batch job
    variables: tuple[str, ...]  # those with the nodes, the most important one first

    def in_list(self, variable: str, expand: Callable[[str], tuple[str, ...]]) -> _Nodes:
        """Return the nodes that `expand` reads from the variable."""
        if not self.environ.get(variable):
            raise self._trouble("The list is missing or empty")
        try:
            names = expand(self.environ[variable])
        except ValueError as exc:
            raise self._trouble(f"{variable} is no such list: {exc}") from exc
        return self._checked(names)

    def in_file(self, variable: str) -> _Nodes:
        """Return the names in the file at that path, separated by blanks, line ends and commas."""
        try:
            text = _read(self.environ.get(variable, ""))
        except (OSError, ValueError) as exc:
            raise self._trouble(f"The file of nodes cannot be read: {exc}") from exc
        names: dict[str, None] = {}
        for found in re.finditer(r"[^\s,]+", text):
            names[found[0]] = None
            if len(names) > hostlist.MAX_NAMES:
                raise self._trouble(f"The file has more than {hostlist.MAX_NAMES} names")
        if not names:
            raise self._trouble("The file of nodes is empty")
        return self._checked(names)

    def _checked(self, names: Iterable[str]) -> _Nodes:
        """Return each name once. Names are joined by commas in command lines, so unusual ones are refused."""
        folded = tuple(dict.fromkeys(names))
        odd = next((name for name in folded if len(name) > hostlist.MAX_NAME or not _NODE_NAME.fullmatch(name)), None)
        if odd is not None:
            raise self._trouble(f"{_shown(odd)} is no name of a node")
        return len(folded), folded

    def _trouble(self, what: str) -> NoNodes:
        environ, names = self.environ, (self.identity, *self.variables)
        seen = ", ".join(f"{name}={_shown(environ[name])}" if name in environ else f"no {name}" for name in names)
        return NoNodes(
            f"The environment is that of a batch job, but its nodes are not to be found out. {what}.\nSeen: {seen}",
            hint=f"Set {self.variables[0]} to what it should be, or `unset {self.identity}` to use this host alone.",
        )


def _read(path: str) -> str:
    """Return the file's text. Raises OSError and ValueError; does not wait, as opening a pipe would."""
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path!r} is no plain file")
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {_MAX_FILE_BYTES} bytes")
    return content.decode("ascii")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}…")


#: Asked in this order; the first that answers wins. Local is first: a local batch job may run inside another scheduler's
#: allocation, never the other way round. Slurm can give its jobs the variables of PBS, so it comes before.
_DETECTORS: tuple[tuple[Callable[[_Environ], Allocation | None], Callable[[_Environ], _Nodes]], ...] = (
    (_local, _local_nodes),
    (_slurm, _slurm_nodes),
    (_cobalt, _cobalt_nodes),
    (_pbs, _pbs_nodes),
)


#: Thirty years in seconds. Longer times count as no limit.
_MAX_S = 10**9
#: Pauses before the questions; squeue may leave out a batch job for seconds.
_PAUSES_S = (0.0, 1.0, 4.0)


def ask_end_us(
    batch: Allocation,
    *,
    command: str = "",
    timeout_s: float = 20.0,
    environ: _Environ = os.environ,
    clock: Clock | None = None,
) -> int | None:
    """Return when the batch job ends, in microseconds since the epoch; None if that is unknown, or it has no limit.

    It runs no command if the environment has the time. An answer without the batch job, or no answer, does not mean that there
    is no limit: the question is asked up to three times. A limit may be changed while the batch job runs.

    Args:
        command: the scheduler's status command; "" means its own, found on PATH.
        timeout_s: how long that may take in all.
    """
    if batch.ends_us is not None:
        return batch.ends_us
    ask = _QUESTIONS.get(batch.scheduler)
    if ask is None:
        return None
    clock = clock or SystemClock()
    left_s = ask(batch.batch_id, command, timeout_s, environ, clock)
    return None if left_s is None or left_s > _MAX_S else clock.now_us() + int(left_s * SECOND_US)


def _ask_slurm(batch_id: str, command: str, timeout_s: float, environ: _Environ, clock: Clock) -> float | None:
    """Ask squeue without the user's SQUEUE_ variables, which could hide the job, and SLURM_CLUSTERS, which may name others."""
    plain = {name: value for name, value in environ.items() if not name.startswith("SQUEUE_")}
    if "SLURM_CLUSTERS" in plain and plain.get("SLURM_CLUSTER_NAME"):
        plain["SLURM_CLUSTERS"] = plain["SLURM_CLUSTER_NAME"]
    argv = [command or "squeue", "-h", "-j", batch_id, "-o", "%L"]
    text = _answered(argv, lambda text: _without_heading(text) != "", timeout_s, plain, clock)
    return time_left_slurm(_without_heading(text))


def _without_heading(text: str) -> str:
    """Return squeue's output without the cluster's name, which it prints first where SLURM_CLUSTERS is set."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("CLUSTER:")).strip()


def _ask_pbs(batch_id: str, command: str, timeout_s: float, environ: _Environ, clock: Clock) -> float | None:
    """Ask qstat; without an answer use PBS_WALLTIME, all of the requested time, so at most that is left (Torque 6.1)."""
    argv = [command or "qstat", "-f", batch_id]
    text = _answered(argv, lambda text: next(pbs.parse_text(text), None) is not None, timeout_s, environ, clock)
    left_s = time_left_pbs(text, clock.now_us() / SECOND_US)
    return pbs.duration_s(environ.get("PBS_WALLTIME", "")) if left_s is None else left_s


def _answered(argv: list[str], tells: Callable[[str], bool], timeout_s: float, environ: _Environ, clock: Clock) -> str:
    """Return the command's output as soon as it contains the batch job; "" if it never does."""
    give_up_at = clock.monotonic() + timeout_s
    for pause_s in _PAUSES_S:
        clock.sleep(pause_s)
        left_s = give_up_at - clock.monotonic()
        if left_s <= 0:
            break
        answer = run(argv, timeout_s=left_s, environ=environ)
        if answer.ok and tells(answer.stdout):
            return answer.stdout
        if answer.returncode is None and not answer.was_killed:  # there is no such command
            break
    return ""


_QUESTIONS = {"SlurmScheduler": _ask_slurm, "PBSScheduler": _ask_pbs}


def time_left_slurm(text: str) -> int | None:
    """Return the seconds left by `squeue -o %L`: days-hours:minutes:seconds, or a word (squeue(1), version 22.05).

    >>> time_left_slurm("1-02:03:04"), time_left_slurm("5:00"), time_left_slurm("UNLIMITED")
    (93784, 300, None)
    """
    return pbs.duration_s(text.strip().replace("-", ":", 1))  # with a colon it has Torque's form


def time_left_pbs(text: str, now_s: float) -> float | None:
    """Return the seconds that are left to the batch job, from the text of `qstat -f`; None if they are not there.

    Torque prints them (`Walltime.Remaining`). OpenPBS prints the start time and the limit; else the time used,
    which is up to some minutes old (qstat(1B), pbs_job_attributes(7B), version 23.06).

    >>> time_left_pbs("Job Id: 7.s\\n    Walltime.Remaining = 60\\n", 0)
    60
    """
    job = next(pbs.parse_text(text), None)
    if job is None:
        return None
    names = ("Walltime.Remaining", "Resource_List.walltime", "resources_used.walltime")
    left_s, limit_s, used_s = (pbs.duration_s(job[1].get(name, "")) for name in names)
    if left_s is not None or limit_s is None:
        return left_s
    started_us = pbs.status_of(*job).started_us
    if started_us is not None:
        return max(started_us / SECOND_US + limit_s - now_s, 0)
    return None if used_s is None else max(limit_s - used_s, 0)


def ask_gpus(batch: Allocation, *, timeout_s: float = 20.0, environ: Mapping[str, str] = os.environ) -> NodeGpus | None:
    """Return the GPUs of each node of the batch job; None if it has none that Slurm knows of, or Slurm does not report them.

    Slurm numbers the GPUs of a node by their places in its configuration, and passes these numbers to programs; if it fences
    devices off, programs see only their own and number these from 0. Source: scontrol(1), gres.conf(5), cgroup.conf(5), and
    https://slurm.schedmd.com/gres.html, version 22.05; tried without fences.
    """
    if batch.scheduler != "SlurmScheduler" or not batch.node_names:
        return None
    answer = run(["scontrol", "--details", "show", "job", batch.batch_id], timeout_s=timeout_s, environ=environ)
    numbers = parse_job(answer.stdout) if answer.ok else {}
    found = {name: numbers.get(name, ()) for name in batch.node_names}
    if not any(found.values()):
        return None
    counted = {name: tuple(map(str, range(len(gpus)))) for name, gpus in found.items()}
    if counted == found and len(set(found.values())) == 1:
        return NodeGpus(found)  # it makes no difference
    config = run(["scontrol", "show", "config"], timeout_s=timeout_s, environ=environ)
    are_fenced = bool(re.search(r"^ConstrainDevices\s*=\s*yes", config.stdout, re.MULTILINE | re.IGNORECASE))
    return NodeGpus(counted if are_fenced else found, are_fenced)


def parse_job(text: str) -> dict[str, tuple[str, ...]]:
    r"""Return the numbers of each node's GPUs in the text of `scontrol --details show job`. Nodes without GPUs may be missing.

    >>> parse_job("  Nodes=n[1-2] CPU_IDs=0 Mem=0 GRES=gpu:3(IDX:0,2-3)\n  Nodes=n3 CPU_IDs=0 Mem=0 GRES=gpu:a100:1(IDX:1)")
    {'n1': ('0', '2', '3'), 'n2': ('0', '2', '3'), 'n3': ('1',)}
    """
    found = {}
    for nodes, gres in re.findall(r"^\s*Nodes=(\S+) .*\bGRES(?:_IDX)?=(\S*)", text, re.MULTILINE):
        try:
            indices = ",".join(re.findall(r"\bgpu(?::[^:(,]+)*\(IDX:([0-9,-]+)\)", gres))
            gpus = tuple(sorted(hostlist.expand_numbers(indices), key=int)) if indices else ()
            found.update(dict.fromkeys(hostlist.expand(nodes), gpus))
        except ValueError:
            continue
    return found
