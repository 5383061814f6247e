"""This machine's MPI start command: how it is found, and the words before a job's and before those of the launcher's ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from ...core import field_specs
from ...core.errors import SettingsError, SpawnFailed
from ...core.settings import Settings
from ...core.subprocess_run import run
from ...db.query.takers import MpiRules
from ...db.store.claims import Claim
from ...schedulers import hostlist
from ...schedulers.environ import NodeGpus
from ..exec import hardware
from ..exec.invocation import NODE, REFUSED, UNKNOWN, MpiUse, StartFailure
from ..placement import Node, Placement
from .flavours import FLAVOURS, Flavour, RankLayout, Render, make_render

#: Seconds in which Slurm must answer which nodes the batch job has left.
_ASK_S = 5.0
#: Variables by which a user chooses the GPUs of a step.
_GPU_FLAGS = ("--gres", "--gpus", "-G", "--tres-per-task")


class Starter(NamedTuple):
    """The command that `detect` has found."""

    argv: tuple[str, ...]  # its path, with words of the user's that are for all jobs
    flavour: Flavour
    this_host: str = ""  # how it calls this host; "" is: not at all
    template: Render | None = None  # what the user writes instead of the flavour's words
    evidence: str = ""  # for the log: why it is taken for that flavour
    node_gpus: NodeGpus | None = None  # the GPUs that Slurm gave to the batch job, if any

    @property
    def shares_nodes(self) -> bool:
        """Return whether a node takes several of its programs at once, or one together with programs that it did not start."""
        return self.flavour.shares_nodes

    def prefix(self, layout: RankLayout, flags: Sequence[str] = ()) -> list[str]:
        """Return all words before a program's; the user's flags come last.

        Raises:
            SettingsError: the template fails for this layout.
        """
        layout = self._placed(layout)
        if self.template is not None:
            return [*self._environment(layout), *self.template(layout, flags)]
        return [*self._environment(layout), *self.argv, *self.flavour.words(layout), *flags]

    def one_per_host(self, hosts: Sequence[str]) -> list[str]:
        """Return the words before a program with one rank on each host, with all of its CPUs, and stdin for rank 0."""
        layout = self._placed(RankLayout(tuple(hosts), num_nodes=len(hosts)))
        if self.node_gpus is not None:
            layout = layout._replace(step_gpus=self.node_gpus.step_gpus(hosts))
        if self.template is not None:
            return [*self._environment(layout), *self.template(layout, ())]
        return [*self._environment(layout), *self.argv, *self.flavour.one_per_host(layout)]

    def gone(self, hosts: Collection[str]) -> list[str]:
        """Return the hosts that Slurm has taken out of the batch job, as it does with --no-kill for a host that is down."""
        job = os.environ.get("SLURM_JOB_ID", "")
        answer = run(["scontrol", "--oneliner", "show", "job", job], timeout_s=_ASK_S) if job else None
        found = re.search(r"\sNodeList=(\S+)", answer.stdout) if answer and answer.ok else None
        try:
            left = hostlist.expand(found[1]) if found else tuple(hosts)
        except ValueError:
            return []
        return sorted(host for host in hosts if host and host not in left)

    def _placed(self, layout: RankLayout) -> RankLayout:
        return layout if layout.hosts or not self.this_host else layout._replace(hosts=(self.this_host,))

    def _environment(self, layout: RankLayout) -> list[str]:
        variables = dict(self.flavour.variables(layout))
        if layout.step_gpus is not None and (self.template is not None or not self.flavour.says_gpus):
            option, value = layout.step_gpus
            variables[f"SLURM_{option.upper()}"] = value  # for the srun by which it reaches other nodes
        return ["env", *[f"{name}={value}" for name, value in variables.items()]] if variables else []


def use(
    starter: Starter, nodes: Sequence[Node], rules: MpiRules, gpu_variables: Sequence[str] = hardware.DEFAULT_GPU_VARIABLES
) -> MpiUse:
    """Return how jobs of that placement are started and asked to end by that command.

    `words` raises SpawnFailed where the job's flags cannot be split into words, or the template fails for it.
    """
    flavour, shares_host = starter.flavour, not nodes[0].name

    def words(claim: Claim, place: Placement) -> list[str]:
        if not rules.starts(claim.shape):
            return []
        try:
            name = [] if starter.template else flavour.name_words(_run_name(claim))
            flags = field_specs.split_command(claim.mpi_flags)
            layout = _layout(claim, place, nodes, rules)
            if starter.node_gpus is not None and layout.hosts and not any(flag.startswith(_GPU_FLAGS) for flag in flags):
                layout = layout._replace(step_gpus=_step_gpus(claim, place, layout.hosts, starter.node_gpus))
            prefix = starter.prefix(layout, [*name, *flags])
        except SettingsError as exc:
            raise SpawnFailed(str(exc)) from exc
        except ValueError as exc:
            raise SpawnFailed(f"The MPI flags cannot be split into words ({exc}): {claim.mpi_flags}") from exc
        return [*prefix, *(_gpus(claim, place, gpu_variables, shares_host) if flavour.chooses_gpus else [])]

    def at_term(claim: Claim) -> str:
        return flavour.at_term if rules.starts(claim.shape) else UNKNOWN

    def end_words(claims: Sequence[Claim]) -> list[str]:
        return flavour.end_words([_run_name(claim) for claim in claims])

    names = {node.name for node in nodes if node.name}

    def judge(claim: Claim, place: Placement, code: int | None, read: Callable[[], tuple[str, bool]]) -> StartFailure | None:
        diagnosis = flavour.diagnosis
        if diagnosis is None or not rules.starts(claim.shape):
            return None
        if not (diagnosis.hangs if code is None else diagnosis.hides_loss or code):
            return None
        failure = diagnosis.read(*read())
        if failure is None or failure.kind != NODE:
            return failure
        hosts = failure.hosts or starter.gone({nodes[number].name for number in place.nodes})
        lost = tuple(host for host in hosts if host in names)
        return failure._replace(hosts=lost) if lost else failure._replace(kind=REFUSED)

    is_seen = shares_host and flavour.waits_for_ranks and starter.template is None

    def hides_usage(claim: Claim) -> bool:
        return rules.starts(claim.shape) and not is_seen

    return MpiUse(words, at_term, end_words, judge, hides_usage)


def _run_name(claim: Claim) -> str:
    """Return a name that is unique among the runs in the batch job."""
    return f"balsam-{claim.job_id[:8]}-{claim.attempt}"


def _layout(claim: Claim, place: Placement, nodes: Sequence[Node], rules: MpiRules) -> RankLayout:
    shape, taken = claim.shape, [nodes[number] for number in place.nodes]
    hosts = tuple(node.name for node in taken if node.name)
    packed = shape.node_packing_count if shape.num_nodes == 1 and rules.shares_nodes else 1
    return RankLayout(
        hosts,
        shape.num_nodes,
        shape.ranks_per_node,
        claim.threads_per_rank,
        claim.threads_per_core,
        claim.cpu_affinity,
        shape.gpus_per_rank,
        max(1, min(node.cpus for node in taken) // packed),
        packed > 1 or (not hosts and len(nodes) > len(taken)),
    )


def _step_gpus(claim: Claim, place: Placement, hosts: Sequence[str], known: NodeGpus) -> tuple[str, str]:
    if not claim.shape.gpus_per_rank:
        return "gres", "none"
    return known.step_gpus(hosts, names_differ=hardware.visible_gpus(place, shares_host=False) is None)


def _gpus(claim: Claim, place: Placement, names: Sequence[str], shares_host: bool) -> list[str]:
    """Return words that give ranks the GPUs of the job's placement if the MPI command puts others into their environment."""
    placed = hardware.visible_gpus(place, shares_host) if claim.shape.gpus_per_rank else None
    if placed is None:
        return []
    own = json.loads(claim.environ_vars)
    values = {name: own.get(name, value) for name, value in hardware.gpu_environment(names, placed).items() if name in names}
    return ["env", *[f"{name}={value}" for name, value in values.items()]] if values else []


# --- which command this machine has -----------------------------------------------------------------------------------

#: A command that does not tell its version within this many seconds is ignored.
VERSION_TIMEOUT_S = 20.0
#: Commands whose name is enough, looked for first: where they are nothing else starts programs on the compute nodes.
_BY_NAME = ("aprun", "jsrun")
#: Commands that many MPIs have under the same name.
_BY_VERSION = ("mpiexec", "mpirun", "mpiexec.hydra")
#: What they print for `--version`, asked in this order: Intel MPI is a Hydra too. Sources: MPICH 5.0.2, Open MPI 4.1.8
#: (which prints OpenRTE) and 5.0.11 (tried); what users of Intel MPI 2019 and later and of IBM Spectrum MPI 10 show.
_VERSIONS = (
    ("intel", re.compile(r"Intel\(R\) MPI Library")),
    ("openmpi", re.compile(r"\((Open MPI|OpenRTE|PRRTE)\) +\d|\bSpectrum MPI\b")),
    ("pals", re.compile(r"\bPALS\b", re.IGNORECASE)),
    ("mpich", re.compile(r"\bHYDRA build details\b|\bMPICH Version\b|\bMVAPICH\b", re.IGNORECASE)),
)
#: PALS is at /opt/cray/pe/pals/VERSION/bin; not each of its versions names itself.
_PALS_PATH = re.compile(r"/(cray-)?pals/")
_WAY_OUT = "set MPI_FLAVOUR and MPI_RUN_EXE, or MPI_RUN_TEMPLATE"


def find(settings: Settings, environ: Mapping[str, str]) -> Starter | str:
    """Return the MPI start command of the settings, else the first of this machine's; or why there is none.

    Inside Slurm an mpiexec on PATH comes before srun: it fits the MPI that the user has loaded, and starts its ranks through
    srun itself, whereas srun with another PMI than the program's gives as many programs of one rank each (tried: Open MPI
    under --mpi=pmi2). May take some seconds, but ends.

    Raises:
        SettingsError: MPI_FLAVOUR, MPI_RUN_EXE or MPI_RUN_TEMPLATE makes no sense.
    """
    flavour = _named(settings.MPI_FLAVOUR) if settings.MPI_FLAVOUR else None
    if settings.MPI_RUN_TEMPLATE:
        render = make_render(settings.MPI_RUN_TEMPLATE)
        return Starter((), flavour or _UNKNOWN, template=render, evidence="MPI_RUN_TEMPLATE")
    if settings.MPI_RUN_EXE:
        return _of_settings(_words(settings.MPI_RUN_EXE), flavour, environ)
    if flavour:
        path = next(filter(None, (_which(name, environ) for name in flavour.commands)), None)
        if path is None:
            return f"looked for {_either(flavour.commands)} on PATH, because MPI_FLAVOUR is {flavour.name}"
        return _starter((path,), flavour, environ, f"MPI_FLAVOUR is {flavour.name}")
    return _of_machine(environ)


def one_rank_per_node(
    names: Sequence[str], settings: Settings, environ: Mapping[str, str], node_gpus: NodeGpus | None = None
) -> list[str] | str:
    """Return the words before a program of which one rank runs on each of those nodes; or why there are none.

    Each rank has all CPUs of its node, stdin goes to rank 0, and the others survive a rank that ends, where the MPI allows it.

    Args:
        node_gpus: the GPUs that Slurm gave to the batch job, if any.

    Raises:
        SettingsError: as `find`.
    """
    found = find(settings, environ)
    return found if isinstance(found, str) else found._replace(node_gpus=node_gpus).one_per_host(names)


# --- settings ---------------------------------------------------------------------------------------------------------

#: What a template starts when its flavour is not given.
_UNKNOWN = Flavour("template", (), lambda layout: [], at_term=UNKNOWN)


def _named(name: str) -> Flavour:
    if name.lower() not in FLAVOURS:
        raise SettingsError(f"MPI_FLAVOUR: there is no {name!r}", hint=f"There are: {', '.join(sorted(FLAVOURS))}.")
    return FLAVOURS[name.lower()]


def _words(text: str) -> list[str]:
    try:
        words = field_specs.split_command(text)
    except ValueError as exc:
        raise SettingsError(f"MPI_RUN_EXE cannot be split into words ({exc}): {text}") from exc
    if not words:
        raise SettingsError("MPI_RUN_EXE holds nothing but blanks")
    return words


def _of_settings(words: Sequence[str], flavour: Flavour | None, environ: Mapping[str, str]) -> Starter | str:
    path = _which(words[0], environ)
    if path is None:
        return f"looked for {words[0]}, which is MPI_RUN_EXE; it is not there, or cannot be executed"
    name, evidence = (flavour.name, f"MPI_FLAVOUR is {flavour.name}") if flavour else _recognised(path, environ)
    if not name:
        return f"looked at MPI_RUN_EXE: {path} {evidence}; set MPI_FLAVOUR or MPI_RUN_TEMPLATE"
    return _starter((path, *words[1:]), FLAVOURS[name], environ, evidence)


# --- what the machine has ---------------------------------------------------------------------------------------------


def _of_machine(environ: Mapping[str, str]) -> Starter | str:
    doubts = []
    for path in _candidates(environ):
        name, evidence = _recognised(path, environ)
        if name:
            return _starter((path,), FLAVOURS[name], environ, evidence)
        doubts.append(f"{path} {evidence}")
    in_slurm = "" if "SLURM_JOB_ID" in environ else " (and for srun in a Slurm job only)"
    looked = f"looked for {_either((*_BY_NAME, *_BY_VERSION))}{in_slurm} on PATH, which is {environ.get('PATH', '')!r}"
    return "; ".join([looked, *doubts, _WAY_OUT])


def _candidates(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the paths of commands to check, each file once."""
    seen = set()
    for name in (*_BY_NAME, *_BY_VERSION, *(("srun",) if "SLURM_JOB_ID" in environ else ())):
        path = _which(name, environ)
        if path is not None and os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            yield path


def _recognised(path: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the flavour ("" if none is known) and what speaks for it, or against."""
    if os.path.basename(path) in (*_BY_NAME, "srun"):
        return os.path.basename(path), "by its name"
    if _PALS_PATH.search(os.path.realpath(path)):
        return "pals", "by its path"
    answer = run([path, "--version"], timeout_s=VERSION_TIMEOUT_S, environ=environ)
    text = f"{answer.stdout}\n{answer.stderr}"
    line = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
    told = f"reports as its version: {line[:80]!a}"
    return next((name for name, pattern in _VERSIONS if answer.ok and pattern.search(text)), ""), told


def _starter(argv: tuple[str, ...], flavour: Flavour, environ: Mapping[str, str], evidence: str) -> Starter:
    # Only srun must be told which of the batch job's nodes this is; it is slurmd's name for it (srun(1), Slurm 22.05).
    this_host = environ.get("SLURMD_NODENAME", "") if flavour.name == "srun" else ""
    return Starter(argv, flavour, this_host, evidence=evidence)


def _which(name: str, environ: Mapping[str, str]) -> str | None:
    path = shutil.which(name, path=environ.get("PATH", os.defpath))
    return None if path is None else os.path.abspath(path)


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]


# --- the environment without that of an outer MPI program -------------------------------------------------------------

# A rank's variables tell it that it is rank 3 of 8, and its peers. A program that inherits them from a launcher which is such
# a rank takes itself for that rank: a nested `mpiexec` refuses to start, one without it crashes (tried: MPICH 5.0.2 in MPICH
# and in Open MPI 5.0.11, Open MPI in Open MPI). What users set themselves under the same prefixes stays.

#: Source: the environment of a rank, compared with that of its mpiexec, of MPICH 5.0.2, Open MPI 4.1.8 and 5.0.11, and of a
#: task of Slurm 22.05.8 (tried; gfortran's variable is set by Hydra); intro_pmi(3) of Cray MPI and aprun(1); jsrun(1);
#: Slurm's "OUTPUT ENVIRONMENT VARIABLES".
_OF_RANKS = re.compile(
    rb"""
    PMI_ | PMI2_ | PMIX_ | HYDI_ | MPI_LOCAL | PALS_ | ALPS_APP_ | JSM_
    | OMPI_ | OPAL_USER_PARAMS_GIVEN$ | PRTE_
    | GFORTRAN_UNBUFFERED_PRECONNECTED$
    | MPIRUN_(RANK|NPROCS|ID)$ | MV2_COMM_WORLD_ | I_MPI_INFO_
    | SLURM_( PROCID$ | LOCALID$ | NODEID$ | GTIDS$ | TASK_PID$ | NPROCS$ | NTASKS | STEP | SRUN_COMM | LAUNCH_NODE_IPADDR$
            | TOPOLOGY_ADDR | DISTRIBUTION$ | UMASK$ | CPU_BIND | MEM_BIND | CPUS_PER_TASK$ | PMI | OVERCOMMIT$ )
    """,
    re.VERBOSE,
)
#: Of these what a user sets. Of OMPI_MCA_ and the like, parameters of Open MPI, a rank has a few itself.
_OF_USERS = re.compile(
    rb"""
    OMPI_ALLOW_RUN_AS_ROOT | OMPI_(CC|CXX|FC|CFLAGS|CXXFLAGS|FCFLAGS|LDFLAGS|LIBS)$ | PRTE_ALLOW_RUN_AS_ROOT
    | PMIX_MCA_ | PRTE_MCA_
    | OMPI_MCA_(?! ess($|_) | pmix$ | initial_wdir$ | num_procs$ | cpu_type$ | PREFIXES$ | mpi_oversubscribe$
                   | shmem_RUNTIME_QUERY_hint$
                   | orte_( app_num | bound_at_launch | ess_node_rank | ess_num_procs | hnp_uri | jobfam_session_dir | launch
                          | local_daemon_uri | num_nodes | precondition_transports | tmpdir_base | top_session_dir )$ )
    | PMI_( NO_FORK | NO_PREINITIALIZE | MMAP_SYNC_WAIT_TIME | MAX_KVS_ENTRIES | DEBUG | CRAY_NO_SMP_ORDER )$
    """,
    re.VERBOSE,
)
#: Options of the batch job or of its submitter that every `srun` would take as its own: the launcher's, and the one by which
#: an mpiexec reaches other nodes. --export=NONE of the batch job would drop a program's whole environment, --gpus=4 is refused
#: on a node that has two GPUs. sbatch sets them from its options. Which MPI and network a site uses, and how output is written
#: into the job's file, stays the user's choice.
#: Source: srun(1), "INPUT ENVIRONMENT VARIABLES", and sbatch(1), "OUTPUT ENVIRONMENT VARIABLES", Slurm 22.05; tried.
_OF_STEPS = re.compile(
    rb"""
    S(LURM|RUN)_EXPORT_ENV$ | SLURM_GET_USER_ENV$ | SRUN_CPUS_PER_TASK$
    | SLURM_( GPUS$ | GPUS_PER_(NODE|SOCKET|TASK)$ | CPUS_PER_GPU$ | GPU_(BIND|FREQ)$ | GRES$ | GRES_FLAGS$
            | TRES_(BIND|PER_TASK)$
            | MEM_PER_(CPU|GPU|NODE)$ | HINT$ | THREADS_PER_CORE$ | CORE_SPEC$ | THREAD_SPEC$ | EXACT$ | EXCLUSIVE$ | IMMEDIATE$
            | DIST_PLANESIZE$ | USE_MIN_NODES$ | NO_KILL$ | KILL_BAD_EXIT$ | WAIT$ | TIMELIMIT$ | REMOTE_CWD$ | WORKING_DIR$
            | STD(IN|OUT|ERR)MODE$ )
    """,
    re.VERBOSE,
)
_SLURM_JOB, _OVERLAP = b"SLURM_JOB_ID", b"SLURM_OVERLAP"


def scrubbed(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the environment without what makes this process a rank of an MPI program or a task of a Slurm step, and
    without the batch job's options for steps.

    Inside a Slurm job it also means that `srun` need not wait for other steps. Otherwise an mpiexec, which starts its ranks
    through srun, and a job's own srun would wait for the end of all steps that run (tried), the launcher's own included.
    """
    found = {
        name: value
        for name, value in environ.items()
        if _OF_USERS.match(name) or not (_OF_RANKS.match(name) or _OF_STEPS.match(name))
    }
    if _SLURM_JOB in found:
        found.setdefault(_OVERLAP, b"1")
    return found
