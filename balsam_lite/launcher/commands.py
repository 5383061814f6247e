"""From a claimed job to what the operating system is told: the program's words and its environment. Pure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from .. import spec, states
from ..db import location
from ..db.store.claims import Claim
from ..errors import SpawnFailed
from ..identity import Holder
from ..processes import HOOK_VARIABLE, JOB_VARIABLES, RUN_VARIABLE
from . import gpus
from .nodes import Place
from .staging.links import Parent

_RUN = RUN_VARIABLE.encode()
#: Linux takes at most 128 KiB for one variable.
_LONGEST_VARIABLE = 120_000
#: The value of a variable that a job shall not have, though the launcher has it. No real value holds a NUL.
UNSET = b"\0"
#: Variables of the context that a job cannot change.
_FIXED = frozenset((b"BALSAM_DB_PATH", b"BALSAM_LAUNCHER_NODES", b"BALSAM_JOB_MODE"))


#: What an MPI command makes of SIGTERM: it passes it on to its ranks; it kills them at once; nobody knows.
PASSES_ON, KILLS, UNKNOWN = "passes on", "kills", "unknown"


class MpiUse(NamedTuple):
    """How the machine's MPI start command is used for jobs; `NO_MPI` where programs are started as they are."""

    #: What stands before a job's own words; nothing where it needs no MPI.
    words: Callable[[Claim, Place], list[str]]
    #: What SIGTERM does to the job's command. UNKNOWN too where it is none of MPI's.
    at_term: Callable[[Claim], str]
    #: A program that asks the ranks of such jobs to end, on whatever node; nothing where there is none.
    end_words: Callable[[Sequence[Claim]], list[str]]


NO_MPI = MpiUse(lambda claim, place: [], lambda claim: UNKNOWN, lambda claims: [])


class Context(NamedTuple):
    """What is the same for all jobs of a launcher; `make_context` makes one."""

    data_directory: str
    environ: dict[bytes, bytes]  # what every job inherits, with the BALSAM_ variables that are the same for all
    variables: list[bytes]  # the same as NAME=value
    mark: bytes  # with what the BALSAM_RUN of all its runs begins
    mpi: MpiUse
    node_mark: bytes = b""  # with what it ends
    gpu_variables: tuple[str, ...] = gpus.DEFAULT  # these tell a job its GPUs
    shares_host: bool = True  # the nodes are shares of one host


def make_context(
    db_directory: str,
    lease: int,
    nodes: int,
    job_mode: str,
    environ: Mapping[bytes, bytes],
    mpi: MpiUse = NO_MPI,
    rank: int = 0,
    gpu_variables: Sequence[str] = gpus.DEFAULT,
    shares_host: bool = True,
) -> Context:
    """The context of the launcher with that lease, or of another rank of it; its jobs inherit `environ`."""
    own = {name.encode() for name in JOB_VARIABLES}
    common = {name: value for name, value in environ.items() if name not in own}
    common[b"BALSAM_DB_PATH"] = os.fsencode(db_directory)
    common[b"BALSAM_LAUNCHER_NODES"] = b"%d" % nodes
    common[b"BALSAM_JOB_MODE"] = job_mode.encode()
    variables = [b"%b=%b" % variable for variable in common.items()]
    data = os.path.join(db_directory, location.DATA)
    lease_begin, names = lease_mark(db_directory, lease), tuple(gpu_variables)
    return Context(data, common, variables, lease_begin, mpi, node_mark(rank), names, shares_host)


def argv(claim: Claim, place: Place, context: Context) -> list[str]:
    """The words of the job's command line: the MPI start command's, the executable's, the arguments'; no shell reads them.

    An envscript is sourced by bash, which then becomes the program.

    Raises:
        SpawnFailed: the application is gone, empty, or cannot be split into words; the MPI command has no way to run it.
    """
    if claim.executable is None:
        raise SpawnFailed(f"No application named {claim.application!r} is registered in this DB.")
    try:
        words = spec.split_command(claim.executable) + spec.split_command(claim.args)
    except ValueError as exc:
        raise SpawnFailed(f"The command line cannot be split into words ({exc}): {claim.executable} {claim.args}") from exc
    if not words:
        raise SpawnFailed(f"The application {claim.application!r} has no executable.")
    words = [*context.mpi.words(claim, place), *words]
    if claim.envscript:
        return ["bash", "-c", 'source "$0" || exit; exec "$@"', claim.envscript, *words]
    return words


def environment(claim: Claim, place: Place | None, context: Context) -> dict[bytes, bytes]:
    """What the job's environment has beyond `context.environ`, or instead of it. Without a place it has no GPUs.

    What the job itself asks for wins over what is inherited, the BALSAM_ variables win over both.
    """
    own: dict[bytes, bytes] = {}
    if claim.threads_per_rank > 1:
        own[b"OMP_NUM_THREADS"] = b"%d" % claim.threads_per_rank
    if claim.shape.gpus_per_rank and place is not None:
        own.update(_gpu_variables(place, context))
    if claim.environ_vars != "{}":
        for name, value in json.loads(claim.environ_vars).items():
            own[name.encode()] = value.encode()
        own.update({name: context.environ[name] for name in own.keys() & _FIXED})
    own[b"BALSAM_JOB_ID"] = claim.job_id.encode()
    own[b"BALSAM_ATTEMPT"] = b"%d" % claim.attempt
    own[b"BALSAM_PARENT_IDS"] = _parent_ids(claim)
    own[_RUN] = mark(claim, context)
    return own


def _gpu_variables(place: Place, context: Context) -> dict[bytes, bytes]:
    found = gpus.visible(place, context.shares_host)
    if found is None:  # whoever has whole nodes may use all that is there, and what this node calls its own is wrong elsewhere
        return dict.fromkeys((name.encode() for name in context.gpu_variables), UNSET)
    return {name.encode(): value.encode() for name, value in gpus.variables(context.gpu_variables, found).items()}


def hook_environment(claim: Claim, script: str, context: Context) -> dict[bytes, bytes]:
    """The same for the job's preprocess or postprocess script: with the reason why it is called."""
    own = environment(claim, None, context)
    own[HOOK_VARIABLE.encode()] = script.encode()
    for name, state in ((b"BALSAM_JOB_TIMEOUT", states.RUN_TIMEOUT), (b"BALSAM_JOB_ERROR", states.RUN_ERROR)):
        own[name] = b"TRUE" if claim.state == state else b"FALSE"
    return own


def parents(claim: Claim, context: Context) -> list[Parent]:
    """Whose files it may want."""
    return [Parent(job_id, name, _absolute(directory, context)) for job_id, name, directory in json.loads(claim.parents)]


def _parent_ids(claim: Claim) -> bytes:
    """A JSON list of UUIDs; an empty one also where it would be longer than what a program can be given (E2BIG)."""
    if claim.parents == "[]":
        return b"[]"
    text = json.dumps([parent[0] for parent in json.loads(claim.parents)]).encode()
    return text if len(text) <= _LONGEST_VARIABLE else b"[]"


def as_variables(own: Mapping[bytes, bytes], context: Context) -> list[bytes]:
    """The whole environment as the operating system takes it: NAME=value."""
    if own.keys() & context.environ.keys():
        return [b"%b=%b" % variable for variable in {**context.environ, **own}.items() if variable[1] != UNSET]
    return [*context.variables, *[b"%b=%b" % variable for variable in own.items() if variable[1] != UNSET]]


def mark_alone(claim: Claim, context: Context) -> dict[bytes, bytes]:
    """The environment of a program that is this launcher's own doing, for a job: it can be found, and that is all."""
    return {_RUN: mark(claim, context)}


def mark(claim: Claim, context: Context) -> bytes:
    """The run mark: the value of BALSAM_RUN, by which all processes of the run are found, whatever sessions they open."""
    return b"%b%d:%d%b" % (context.mark, claim.job, claim.attempt, context.node_mark)


def node_mark(rank: int) -> bytes:
    """With what the run marks of all runs end that this rank has started; those of rank 0, the launcher, need none."""
    return b"@%d" % rank if rank else b""


def lease_mark(db_directory: str, lease: int) -> bytes:
    """With what the BALSAM_RUN of everything begins that was started under that lease; the job and the attempt follow."""
    return os.fsencode(os.path.realpath(db_directory)) + b":%d:" % lease


def ensemble_mark(db_directory: str, supervisor: Holder) -> bytes:
    """The BALSAM_RUN of the MPI program that is a launcher over many nodes; its jobs have that of the lease."""
    return os.fsencode(f"{os.path.realpath(db_directory)}:ensemble:{':'.join(map(str, supervisor))}")


def workdir(claim: Claim, context: Context) -> str:
    """The job's working directory, absolute."""
    return _absolute(claim.workdir, context)


def _absolute(path: str, context: Context) -> str:
    return path if path[:1] == "/" else f"{context.data_directory}/{path}"
