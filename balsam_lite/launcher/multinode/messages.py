"""The messages of ranks, in tuples that marshal knows. All ranks run one installation; `VERSION` makes sure.

Rank 0 to node: BEGIN, START, STOP, HURRY, ABANDON, LEAVE. Node to rank 0: HELLO, READY, ENDED, LOG, GONE, BYE.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

from ... import __version__
from ...core.errors import MachineTrouble
from ...db.store.claims import Claim, RunResult, Shape
from ..exec.hardware import DEFAULT_GPU_VARIABLES
from ..placement import Placement

#: marshal's format is the interpreter's own.
VERSION = (__version__, sys.version_info[:2])

BEGIN, START, STOP, HURRY, ABANDON, LEAVE = "begin", "start", "stop", "hurry", "abandon", "leave"
HELLO, READY, ENDED, LOG, GONE, BYE = "hello", "ready", "ended", "log", "gone", "bye"

_SHAPE, _PLACE = Claim._fields.index("shape"), Claim._fields.index("place")


class Hello(NamedTuple):
    """The first message of a node."""

    version: tuple[Any, ...]
    host: str
    cpus: int
    gpus: tuple[str, ...]


class Begin(NamedTuple):
    """The data that a node needs to run jobs."""

    db_directory: str
    run_mark: bytes  # with which those of its runs begin
    lease: int
    nodes: int
    job_mode: str
    environ: dict[bytes, bytes]  # what jobs inherit; where the node has such a variable too, the node's own counts
    tail_lines: int
    grace_s: float  # between TERM and KILL for what has no launcher
    dead_marks: tuple[bytes, ...]  # run marks of dead launchers, whose processes are to end first
    gpu_variables: tuple[str, ...] = DEFAULT_GPU_VARIABLES  # these tell jobs their GPUs


def start(claim: Claim, place: Placement) -> tuple[Any, ...]:
    """Return the message that starts a job."""
    plain = list(claim)
    plain[_SHAPE] = plain[_PLACE] = None
    return START, plain, tuple(claim.shape), place.nodes, place.gpus


def read_start(
    claim: list[Any], shape: tuple[Any, ...], nodes: tuple[int, ...], gpus: tuple[tuple[str, ...], ...]
) -> tuple[Claim, Placement]:
    """Return the claim and the placement from the data of a `start` message (without START)."""
    made = Shape._make(shape)
    return Claim._make(claim)._replace(shape=made), Placement(nodes, gpus, made)


def ended(run: RunResult, trouble: MachineTrouble | None = None) -> tuple[Any, ...]:
    """Return the message for a run that has ended, or that the node could not start because of `trouble`."""
    return ENDED, tuple(run), trouble and (trouble.message, trouble.scope)


def read_ended(run: tuple[Any, ...], trouble: tuple[str, str] | None) -> tuple[RunResult, MachineTrouble | None]:
    """Return the result and the trouble from the data of an `ended` message (without ENDED)."""
    return RunResult._make(run), trouble and MachineTrouble(*trouble)
