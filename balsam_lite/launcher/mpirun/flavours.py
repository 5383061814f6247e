"""The known MPI start commands, and the options by which each takes a `RankLayout`. Data and pure functions.

Each function names its source; "tried" means: with that version, on a real machine, by the tests or for them.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ...core import field_specs
from ...core.errors import SettingsError
from ..exec.invocation import BUSY, CONTACT, KILLS, NODE, PASSES_ON, REFUSED, StartFailure

if TYPE_CHECKING:
    import jinja2


# --- ranks, threads and hosts of one program --------------------------------------------------------------------------


class RankLayout(NamedTuple):
    """Where the ranks of a program go. Without hosts all are on this host, of which each node is a share."""

    hosts: tuple[str, ...] = ()
    num_nodes: int = 1
    ranks_per_node: int = 1
    threads_per_rank: int = 1
    threads_per_core: int = 1
    cpu_affinity: str = "none"  # none or depth
    gpus_per_rank: float = 0.0
    cpus_per_node: int = 0  # of each node's CPUs the job's own; 0: unknown
    shares_nodes: bool = False  # others run on the same host or hosts at the same time
    step_gpus: tuple[str, str] | None = None  # the GPUs that a Slurm step has to ask for: an option of srun and its value

    @property
    def ranks(self) -> int:
        """Return the number of ranks on all hosts.

        >>> RankLayout(num_nodes=2, ranks_per_node=4).ranks
        8
        """
        return self.num_nodes * self.ranks_per_node

    @property
    def ranks_per_host(self) -> int:
        """Return the number of ranks on each host. Shares of one host count as one host.

        >>> RankLayout(num_nodes=2, ranks_per_node=4).ranks_per_host
        8
        >>> RankLayout(("a", "b"), num_nodes=2, ranks_per_node=4).ranks_per_host
        4
        """
        return self.ranks // (len(self.hosts) or 1)

    @property
    def cpus_per_host(self) -> int:
        """Return the job's CPUs on each node; 0 where unknown."""
        return self.cpus_per_node * self.num_nodes // (len(self.hosts) or 1)

    @property
    def cores_per_rank(self) -> int:
        """Return the number of cores for the threads of a rank.

        >>> RankLayout(threads_per_rank=5, threads_per_core=2).cores_per_rank
        3
        """
        return math.ceil(self.threads_per_rank / self.threads_per_core)

    @property
    def is_bound(self) -> bool:
        """Return whether each rank is bound to separate CPUs, in order.

        Only on request, where the host is the job's alone (each MPI start command begins with the first CPU, so programs side
        by side would all get the same ones), and where there are CPUs enough (most commands refuse to start otherwise).

        >>> RankLayout(cpu_affinity="depth", cpus_per_node=4).is_bound
        True
        >>> RankLayout(cpu_affinity="depth", cpus_per_node=4, threads_per_rank=5).is_bound
        False
        """
        fits = self.cpus_per_host == 0 or self.ranks_per_host * self.threads_per_rank <= self.cpus_per_host
        return self.cpu_affinity == "depth" and not self.shares_nodes and fits


# --- messages of a command when it starts nothing or loses a node -----------------------------------------------------


class Pattern(NamedTuple):
    """A line of output, and the failure that it shows. A group is the name of the node."""

    kind: str
    line: re.Pattern[str]


def _pattern(kind: str, text: str) -> Pattern:
    return Pattern(kind, re.compile(text, re.MULTILINE))


#: The command's own lines: if there are other lines, something was started.
SRUN_LINES = re.compile(r"srun: |slurmstepd: ")
HYDRA_LINES = re.compile(r"srun: |slurmstepd: |\[mpiexec@|\[proxy:")
#: srun reports how a task ended; then something was started.
SRUN_STARTED = re.compile(r"^srun: error: \S+: tasks? ", re.MULTILINE)
#: Prefixes of errors that pass, or that end all steps of the batch job. Source: slurm_errno.c of Slurm 22.05.8 (the tests ask
#: its library for them); strerror(3).
TRANSIENT = (
    *("Requested nodes are busy", "Step limit reached", "PrologSlurmctld is still running", "Requested operation is presently"),
    *("Job/step already completing", "Job is current suspended", "Slurm backup controller", "Unable to contact slurm"),
    *("Communication", "Message send failure", "Message receive failure", "Socket timed out", "Zero Bytes", "Protocol auth"),
    *("Connection", "Resource temporarily unavailable"),
)
_STEP = r"^srun: error: Unable to create step for job \S+: "
#: Source: srun of Slurm 22.05.8; tried, but of the errors that pass only those of a controller that is down or busy.
SRUN_FAILURES = (
    _pattern(NODE, r"^srun: error: Task launch for \S+ failed on node (\S+): .*$"),
    _pattern(NODE, _STEP + "Requested node configuration is not available.*$"),
    _pattern(BUSY, _STEP + f"(?:{'|'.join(TRANSIENT)}).*$"),
    _pattern(BUSY, r"^srun: error: Unable to confirm allocation for job \S+: .*$"),
    _pattern(REFUSED, _STEP + ".*$"),
)
#: A step that loses a node may end with exit code 0 (tried with 22.05.8).
SRUN_LOST = _pattern(NODE, r"^srun: error: Node failure on (\S+)$")
#: Hydra's mpiexec, when a proxy is gone. Source: MPICH 5.0.2; tried.
HYDRA_LOST = _pattern(CONTACT, r"^\[mpiexec@\S+\] control_cb .*assert \(!closed\) failed$")


class Diagnosis(NamedTuple):
    """The rules to read the messages of one command."""

    own_lines: re.Pattern[str]
    failures: tuple[Pattern, ...]
    lost: tuple[Pattern, ...]
    #: Whether the command can go on waiting for what it could not start: Hydra does, when its srun was refused (MPICH 5.0.2).
    hangs: bool = False
    #: Whether it may end with exit code 0 though it lost a node.
    hides_loss: bool = False

    def read(self, output: str, is_whole: bool = True) -> StartFailure | None:
        """Return why a run ended if the command started nothing or a node was lost; None if the job itself ended.

        >>> SRUN.read("srun: error: Unable to create step for job 7: Requested nodes are busy").kind
        'busy'
        >>> SRUN.read("hello\\nsrun: error: Unable to create step for job 7: Requested nodes are busy")
        >>> SRUN.read("hello\\nsrun: error: Node failure on node2").hosts
        ('node2',)
        """
        for pattern in self.lost:
            found = pattern.line.search(output)
            if found:
                hosts = tuple(dict.fromkeys(pattern.line.findall(output))) if pattern.line.groups else ()
                return StartFailure(pattern.kind, found[0], hosts, had_started=True)
        lines = [line for line in output.splitlines() if line.strip()]
        if not is_whole or not lines or not all(self.own_lines.match(line) for line in lines) or SRUN_STARTED.search(output):
            return None
        for pattern in self.failures:
            found = pattern.line.search(output)
            if found:
                return StartFailure(pattern.kind, found[0], found.groups())
        return None


SRUN = Diagnosis(SRUN_LINES, SRUN_FAILURES, (SRUN_LOST,), hides_loss=True)
HYDRA = Diagnosis(HYDRA_LINES, SRUN_FAILURES, (SRUN_LOST, HYDRA_LOST), hangs=True)


# --- known commands ---------------------------------------------------------------------------------------------------


#: The loopback name of a host.
_THIS_HOST = "localhost"


class Flavour(NamedTuple):
    """One kind of MPI start command."""

    name: str  # as in Settings.MPI_FLAVOUR
    commands: tuple[str, ...]  # to look for on PATH, the first that is there
    #: The words after the command: how many ranks and where; and their binding and other options, which follow.
    ranks: Callable[[RankLayout], list[str]]
    options: Callable[[RankLayout], list[str]] = lambda layout: []
    #: The options for our own ranks, each with all of its host's CPUs: if possible the others survive a rank that ends.
    alone: tuple[str, ...] = ()
    #: For the command's own environment.
    variables: Callable[[RankLayout], Mapping[str, str]] = lambda layout: {}
    #: Whether a host takes several of its programs at once, or one together with programs that it did not start.
    shares_nodes: bool = True
    #: What it makes of SIGTERM.
    at_term: str = PASSES_ON
    #: Words that give a run a name, and a program that asks the ranks of the runs with those names to end.
    name_words: Callable[[str], list[str]] = lambda name: []
    end_words: Callable[[Sequence[str]], list[str]] = lambda names: []
    #: Whether it replaces CUDA_VISIBLE_DEVICES by what its scheduler gave to the whole job.
    chooses_gpus: bool = False
    #: How its messages are read when it started nothing or lost a node.
    diagnosis: Diagnosis | None = None
    #: Whether ranks on the same host are its descendants for whose end it waits, so that what the kernel reports of the command
    #: includes what they used.
    waits_for_ranks: bool = False
    #: Whether its options tell which GPUs a Slurm step has; the srun that another command starts is told by its environment.
    says_gpus: bool = False

    def words(self, layout: RankLayout) -> list[str]:
        """Return the words after the command, before the user's flags and the program."""
        return [*self.ranks(layout), *self.options(layout)]

    def one_per_host(self, layout: RankLayout) -> list[str]:
        """Return the same for our own ranks."""
        return [*self.ranks(layout), *self.alone]


# --- MPICH and its kin ------------------------------------------------------------------------------------------------


def _hydra_ranks(layout: RankLayout) -> list[str]:
    """Return the number of ranks and their hosts. The hosts are explicit: in a batch job Hydra defaults to all of its hosts.

    Source: mpiexec -help of MPICH 5.0.2, tried, also inside Slurm 22.05; Intel MPI Library Developer Reference 2021.15, "Global
    Hydra Options".
    """
    hosts = ["-hosts", ",".join(layout.hosts)] if layout.hosts else ["-hosts", _THIS_HOST, "-bootstrap", "fork"]
    return ["-n", str(layout.ranks), "-ppn", str(layout.ranks_per_host), *hosts]


def _mpich(layout: RankLayout) -> list[str]:
    """Return words that bind nothing: MPICH does not bind by itself, but HYDRA_BINDING may demand it. Tried with 5.0.2."""
    return ["-bind-to", f"core:{layout.cores_per_rank}" if layout.is_bound else "none"]


#: The other ranks stay alive when one exits. A signal ends all ranks on its host (tried with 5.0.2).
_MPICH_ALONE = ("-bind-to", "none", "-disable-auto-cleanup")


def _intel_variables(layout: RankLayout) -> dict[str, str]:
    """Return variables for binding, which Intel MPI does by default. Inside a batch job it ignores -ppn unless told not to.

    Source: Intel MPI Library Developer Reference 2021.15, "Environment Variables for Process Pinning", "Hydra Environment
    Variables" (I_MPI_JOB_RESPECT_PROCESS_PLACEMENT).
    """
    found = {"I_MPI_JOB_RESPECT_PROCESS_PLACEMENT": "disable", "I_MPI_PIN": "enable" if layout.is_bound else "disable"}
    if layout.is_bound:
        found["I_MPI_PIN_DOMAIN"] = f"{layout.threads_per_rank}:compact"
    return found


# --- Open MPI ---------------------------------------------------------------------------------------------------------


def _openmpi_ranks(layout: RankLayout) -> list[str]:
    """Return the number of ranks and their hosts. Use `ppr`: -npernode is deprecated in version 4 and removed from 5.

    Open MPI refuses more ranks than slots unless OVERSUBSCRIBE is given; with enough slots it changes nothing.

    Source: mpirun(1) of Open MPI 4.1 and 5.0; tried with 4.1.8 and 5.0.11, also inside Slurm 22.05.
    """
    hosts = ",".join(f"{host}:{layout.ranks_per_host}" for host in layout.hosts or (_THIS_HOST,))
    width = f":PE={layout.cores_per_rank}" if layout.is_bound else ""
    by = f"ppr:{layout.ranks_per_host}:node{width}:OVERSUBSCRIBE"
    return ["-n", str(layout.ranks), "--host", hosts, "--map-by", by]


def _openmpi(layout: RankLayout) -> list[str]:
    """Return words that set the binding: by default Open MPI binds the one rank of each of many packed programs to core 0.

    Version 5 also reads options that follow the program's name, so a program cannot have a --bind-to or --map-by option
    itself (tried with 5.0.11); no order of words avoids this.
    """
    return ["--bind-to", "core" if layout.is_bound else "none"]


#: The other ranks stay alive when a rank ends in any way. Tried with 4.1.8 and 5.0.11.
_OPENMPI_ALONE = ("--bind-to", "none", "--enable-recovery")


# --- Slurm ------------------------------------------------------------------------------------------------------------


def _srun_ranks(layout: RankLayout) -> list[str]:
    """Start ranks by srun, with steps that never wait for one another (--overlap): the launcher decides what runs where.

    With --export=ALL they have the whole environment, also where SLURM_EXPORT_ENV or SRUN_EXPORT_ENV asks for less.

    Source: srun(1) of Slurm 22.05; tried with 22.05.8.
    """
    nodes = [f"--nodes={len(layout.hosts) or 1}", *([f"--nodelist={','.join(layout.hosts)}"] if layout.hosts else [])]
    ranks = [f"--ntasks={layout.ranks}", f"--ntasks-per-node={layout.ranks_per_host}", "--distribution=block"]
    gpus = ["--{}={}".format(*layout.step_gpus)] if layout.step_gpus else []
    return [*nodes, *ranks, "--overlap", "--export=ALL", *gpus]


def _srun(layout: RankLayout) -> list[str]:
    """Return the options of srun for a job. Without --cpus-per-task, which implies --exact, a step has all CPUs of its nodes.

    A rank that fails ends the others, as with all other commands. The site (MpiDefault) or the user (SLURM_MPI_TYPE) chooses
    the PMI.
    """
    if layout.is_bound:
        return ["--kill-on-bad-exit=1", f"--cpus-per-task={layout.threads_per_rank}", "--cpu-bind=cores"]
    more = ["--overcommit"] if layout.cpus_per_host < layout.ranks_per_host else []
    return ["--kill-on-bad-exit=1", *more, "--cpu-bind=none"]


#: stdin goes to rank 0 only (by default to all), and the others survive a lost rank or node.
_SRUN_ALONE = ("--cpu-bind=none", "--input=0", "--kill-on-bad-exit=0", "--wait=0", "--no-kill")
#: Asks the steps of this batch job by the names $1, $2 … to end. Source: squeue(1), scancel(1) of Slurm 22.05; tried.
_END_STEPS = """
for name in "$@"; do echo "$name"; done | awk '
    NR == FNR { wanted[$1]; next }
    $2 in wanted { print $1 }
' - <(squeue --noheader --steps --jobs="$SLURM_JOB_ID" --format="%i %j") | xargs -r scancel --signal=TERM
"""


def _srun_end(names: Sequence[str]) -> list[str]:
    return ["bash", "-c", _END_STEPS, "bash", *names]


# --- Cray, IBM --------------------------------------------------------------------------------------------------------


def _aprun_ranks(layout: RankLayout) -> list[str]:
    hosts = ["-L", ",".join(layout.hosts)] if layout.hosts else []
    return ["-n", str(layout.ranks), "-N", str(layout.ranks_per_host), *hosts]


def _aprun(layout: RankLayout) -> list[str]:
    """Return aprun's words. Whole nodes, one program each.

    Source: aprun(1), CLE 4.1 and later; the same words as Balsam 0.7's ThetaAprun.
    """
    affinity = "depth" if layout.cpu_affinity == "depth" else "none"
    return ["-cc", affinity, "-d", str(layout.threads_per_rank), "-j", str(layout.threads_per_core)]


def _pals_ranks(layout: RankLayout) -> list[str]:
    hosts = ["--hosts", ",".join(layout.hosts)] if layout.hosts else []
    return ["-np", str(layout.ranks), "-ppn", str(layout.ranks_per_host), *hosts, "--envall"]


def _pals(layout: RankLayout) -> list[str]:
    """Return the words of PALS. Source: mpiexec(1) of HPE Cray PALS 1.2; the same words as Balsam 0.7's AuroraRun."""
    return ["--cpu-bind", "depth" if layout.is_bound else "none", "-d", str(layout.threads_per_rank)]


def _jsrun_ranks(layout: RankLayout) -> list[str]:
    """Return one resource set per rank. jsrun counts cores, and chooses the hosts itself among those with free cores and GPUs.

    Source: jsrun(1) of IBM Job Step Manager 10.3; the same words as Balsam 0.7's SummitJsrun.
    """
    return ["--nrs", str(layout.ranks), "--tasks_per_rs", "1", "--rs_per_host", str(layout.ranks_per_host)]


def _jsrun(layout: RankLayout) -> list[str]:
    cpus = layout.cores_per_rank
    gpus = ["--gpu_per_rs", str(math.ceil(layout.gpus_per_rank))]
    return ["--cpu_per_rs", str(cpus), *gpus, "--bind", f"packed:{cpus}" if layout.is_bound else "rs"]


_JSRUN_ALONE = ("--cpu_per_rs", "ALL_CPUS", "--gpu_per_rs", "ALL_GPUS", "--bind", "none")

FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("aprun", ("aprun",), _aprun_ranks, _aprun, ("-cc", "none"), shares_nodes=False),
        Flavour(
            "mpich",
            ("mpiexec", "mpirun", "mpiexec.hydra"),
            _hydra_ranks,
            _mpich,
            _MPICH_ALONE,
            diagnosis=HYDRA,
            waits_for_ranks=True,  # tried with MPICH 5.0.2
        ),
        Flavour("intel", ("mpiexec.hydra", "mpiexec", "mpirun"), _hydra_ranks, variables=_intel_variables, diagnosis=HYDRA),
        Flavour("openmpi", ("mpiexec", "mpirun"), _openmpi_ranks, _openmpi, _OPENMPI_ALONE, at_term=KILLS),
        Flavour(
            "srun",
            ("srun",),
            _srun_ranks,
            _srun,
            _SRUN_ALONE,
            at_term=KILLS,
            name_words=lambda name: [f"--job-name={name}"],
            end_words=_srun_end,
            chooses_gpus=True,
            diagnosis=SRUN,
            says_gpus=True,
        ),
        Flavour("pals", ("mpiexec",), _pals_ranks, _pals, ("--cpu-bind", "none")),
        Flavour("jsrun", ("jsrun",), _jsrun_ranks, _jsrun, _JSRUN_ALONE),
    )
}

# --- a user's own command: a command line as a jinja2 template (Settings.MPI_RUN_TEMPLATE) ----------------------------

_FLAGS = "flags"
_VARIABLES = (
    "ranks", "ranks_per_node", "nodes", "hosts", "threads_per_rank", "threads_per_core", "cpu_affinity", "gpus_per_rank",
    _FLAGS,
)  # fmt: skip
#: What templates are tried with before any job is.
_EXAMPLES = (RankLayout(), RankLayout(("host-1", "host-2"), num_nodes=2, ranks_per_node=4, threads_per_rank=2))

#: Gives all words before the program, from a layout and the job's own flags.
Render = Callable[[RankLayout, Sequence[str]], list[str]]


def make_render(text: str) -> Render:
    """Read a template and try it.

    The program's words follow what it gives; the job's own flags come in between, unless it uses `flags`. These and `hosts`
    are quoted by the shell's rules, by which the line is split into words; no shell reads it. `Render` may raise the same
    error for a job.

    Raises:
        SettingsError: it cannot be read, or it fails for a simple job.
    """
    import jinja2
    import jinja2.meta

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        template = environment.from_string(text)
        places_flags = _FLAGS in jinja2.meta.find_undeclared_variables(environment.parse(text))
    except (jinja2.TemplateError, RecursionError) as exc:
        raise _broken(text, exc) from exc

    def render(layout: RankLayout, flags: Sequence[str]) -> list[str]:
        line = _line(template, text, _variables(layout, flags))
        try:
            words = field_specs.split_command(line)
        except ValueError as exc:
            raise _broken(text, f"{exc} in: {line}") from exc
        if not words:
            raise _broken(text, "it gives no words")
        return words if places_flags else [*words, *flags]

    for example in _EXAMPLES:
        render(example, ())
    return render


def _variables(layout: RankLayout, flags: Sequence[str]) -> dict[str, Any]:
    return {
        "ranks": layout.ranks,
        "ranks_per_node": layout.ranks_per_node,
        "nodes": layout.num_nodes,
        "hosts": [shlex.quote(host) for host in layout.hosts or ("localhost",)],
        "threads_per_rank": layout.threads_per_rank,
        "threads_per_core": layout.threads_per_core,
        "cpu_affinity": layout.cpu_affinity,
        "gpus_per_rank": layout.gpus_per_rank,
        _FLAGS: [shlex.quote(flag) for flag in flags],
    }


def _line(template: jinja2.Template, text: str, variables: dict[str, Any]) -> str:
    import jinja2

    try:
        return template.render(variables)
    except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as exc:
        raise _broken(text, exc) from exc


def _broken(text: str, why: object) -> SettingsError:
    return SettingsError(f"MPI_RUN_TEMPLATE: {why}\n    {text}", hint=f"It may use: {' '.join(_VARIABLES)}.")
