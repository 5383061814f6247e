"""The use of the machine's MPI start command for jobs, and its messages when it starts nothing or loses a node. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ...db.store.claims import Claim
from ..placement import Placement

#: The kinds of failure, in this order: the command could not start anything now; it refuses the request; a node does not
#: answer; the command lost a node on which it had started something.
BUSY, REFUSED, NODE, CONTACT = "busy", "refused", "node", "contact"


class Pattern(NamedTuple):
    """A line of output, and the failure that it shows. A group is the name of the node."""

    kind: str
    line: re.Pattern[str]


class StartFailure(NamedTuple):
    """Why a run did not start or lost a node, with the command's message."""

    kind: str
    words: str
    hosts: tuple[str, ...] = ()  # that are lost, as far as the message tells
    had_started: bool = False


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


# --- use --------------------------------------------------------------------------------------------------------------

#: An MPI command's reaction to SIGTERM: it forwards it to its ranks; it kills them at once; unknown.
PASSES_ON, KILLS, UNKNOWN = "passes on", "kills", "unknown"


def _no_failure(claim: Claim, place: Placement, code: int | None, read: Callable[[], tuple[str, bool]]) -> StartFailure | None:
    return None


class MpiUse(NamedTuple):
    """How the machine's MPI start command is used for jobs; `NO_MPI` if programs are started directly."""

    #: The words before a job's own; none where it needs no MPI.
    words: Callable[[Claim, Placement], list[str]]
    #: What SIGTERM does to the job's command. UNKNOWN too where it is none of MPI's.
    at_term: Callable[[Claim], str]
    #: A program that asks the ranks of such jobs to end, on all nodes; nothing where there is none.
    end_words: Callable[[Sequence[Claim]], list[str]]
    #: Return why a run ended, if the command started nothing or lost a node, from its exit code (None while it runs) and a
    #: function that reads the end of its output and tells whether that is all.
    judge: Callable[[Claim, Placement, int | None, Callable[[], tuple[str, bool]]], StartFailure | None] = _no_failure


NO_MPI = MpiUse(lambda claim, place: [], lambda claim: UNKNOWN, lambda claims: [])
