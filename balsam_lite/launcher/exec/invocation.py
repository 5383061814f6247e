"""Turn a claimed job into an `Invocation`: command line, environment, directory, output and payload of one attempt."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from ...core import field_specs, files, job_files, states
from ...core.errors import LaunchError, SpawnFailed, TemplateError
from ...core.parameters import PICKLED
from ...core.process_table import DETACHED_VARIABLE, HOOK_VARIABLE, JOB_VARIABLES, RUN_VARIABLE, Holder
from ...db.engine import directories
from ...db.store import claims
from ...db.store.calls import ParentCall
from ...db.store.claims import Claim
from ...pyapps import payload, result_file, run_call
from .. import template
from ..placement import Placement
from ..staging import links
from ..staging.links import Parent
from . import hardware
from .program import UNSET
from .run_file import node_mark
from .workers import OF_CALL, CallRequest

_RUN, _DETACHED = RUN_VARIABLE.encode(), DETACHED_VARIABLE.encode()
#: Maximum number of bytes of the variables about parents that always fit into the environment.
_FEW_PARENTS_BYTES = 4096
#: Bytes reserved from the limit for a program's variables and words together: for its path, and for additions by a hook.
_SPARE_BYTES = 8192
#: The shell that runs a command text.
BASH = ("bash", "-c")
#: Variables of the context that a job cannot change.
_FIXED = frozenset((b"BALSAM_DB_PATH", b"BALSAM_LAUNCHER_NODES", b"BALSAM_JOB_MODE"))


# --- the MPI start command --------------------------------------------------------------------------------------------

#: The kinds of failure, in this order: the command could not start anything now; it refuses the request; a node does not
#: answer; the command lost a node on which it had started something.
BUSY, REFUSED, NODE, CONTACT = "busy", "refused", "node", "contact"


class StartFailure(NamedTuple):
    """Why a run did not start or lost a node, with the command's message."""

    kind: str
    words: str
    hosts: tuple[str, ...] = ()  # that are lost, as far as the message tells
    had_started: bool = False


#: An MPI command's reaction to SIGTERM: it forwards it to its ranks; it kills them at once; unknown.
PASSES_ON, KILLS, UNKNOWN = "passes on", "kills", "unknown"


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
    judge: Callable[[Claim, Placement, int | None, Callable[[], tuple[str, bool]]], StartFailure | None] = lambda *_: None
    #: Whether the command starts the job, and what the kernel reports of the command does not include its ranks.
    hides_usage: Callable[[Claim], bool] = lambda claim: False


NO_MPI = MpiUse(lambda claim, place: [], lambda claim: UNKNOWN, lambda claims: [])


# --- jobs -------------------------------------------------------------------------------------------------------------


class Context(NamedTuple):
    """The settings shared by all jobs of a launcher; `make_context` makes one."""

    data_directory: str
    environ: dict[bytes, bytes]  # what every job inherits, with the BALSAM_ variables that are the same for all
    mark: bytes  # with what the BALSAM_RUN of all its runs begins
    mpi: MpiUse
    node_mark: bytes = b""  # with what it ends
    gpu_variables: tuple[str, ...] = hardware.DEFAULT_GPU_VARIABLES  # these tell a job its GPUs
    shares_host: bool = True  # the nodes are shares of one host
    worker_limits: tuple[int, int] = (0, 0)  # maximum number of calls of a worker, and of its MiB of memory; 0: none

    @property
    def db_directory(self) -> str:
        """Return the DB's directory."""
        return os.path.dirname(self.data_directory)


def make_context(
    db_directory: str,
    run_mark: bytes,
    nodes: int,
    job_mode: str,
    environ: Mapping[bytes, bytes],
    mpi: MpiUse = NO_MPI,
    rank: int = 0,
    gpu_variables: Sequence[str] = hardware.DEFAULT_GPU_VARIABLES,
    shares_host: bool = True,
    worker_limits: tuple[int, int] = (0, 0),
) -> Context:
    """Return the context of the launcher with that `lease_mark`, or of another rank of it; its jobs inherit `environ`."""
    own = {name.encode() for name in JOB_VARIABLES}
    common = {name: value for name, value in environ.items() if name not in own}
    common[b"BALSAM_DB_PATH"] = os.fsencode(db_directory)
    common[b"BALSAM_LAUNCHER_NODES"] = b"%d" % nodes
    common[b"BALSAM_JOB_MODE"] = job_mode.encode()
    data = os.path.join(db_directory, directories.DATA)
    return Context(data, common, run_mark, mpi, node_mark(rank), tuple(gpu_variables), shares_host, worker_limits)


class Invocation(NamedTuple):
    """Everything needed to start one attempt of a job."""

    job_id: str
    argv: list[str]  # the MPI start command's words, the executable's, the arguments'
    environ: dict[bytes, bytes]  # beyond the context's, or instead of it
    directory: str  # absolute
    output: str  # the output file's name in it
    is_generated: bool  # the directory's name; the output file of an earlier attempt is then renewed
    payload_path: str  # the file that tells a Python class about its job, absolute; "" if none
    result_path: str  # the file in which a Python function or call leaves its result, absolute; "" for other programs
    mark: bytes  # the run mark
    is_warm: bool = False  # a worker makes the call

    @property
    def output_path(self) -> str:
        """Return the absolute path of the output file."""
        return job_files.find(self.directory, self.output, self.job_id, self.is_generated)

    def remove_payload(self) -> None:
        """Remove the payload file, which the program has read."""
        if self.payload_path:
            with suppress(OSError):
                os.unlink(self.payload_path)


def make_invocation(claim: Claim, place: Placement, context: Context) -> Invocation:
    """Return the invocation of a claimed job at a placement.

    Raises:
        SpawnFailed: see `argv`.
    """
    directory = workdir(claim, context)
    is_warm = is_for_worker(claim, place, context)
    result_name = "" if claim.command_template else payload.result_name(claim.executable, claim.job_id)
    return Invocation(
        claim.job_id,
        argv(claim, place, context),
        environment(claim, place, context),
        directory,
        field_specs.output_name(claim.name),
        job_files.is_generated(claim.workdir, claim.job_id),
        "" if is_warm else _payload_path(claim, directory),
        result_name and f"{directory}/{result_name}",
        mark(claim, context),
        is_warm,
    )


def preparation(claim: Claim, made: Invocation, context: Context) -> bytes:
    """Return the pickled calls that a spawn helper makes in the job's directory just before it starts the program, or b""."""
    # A launcher that is killed between the claim and the start leaves a job that counts as prepared and has no links. Links
    # are made before the output file, so a job without that file has not been started. One that has keeps what it changed.
    needs_links = claim.parents != "[]" and (claim.state in states.UNPREPARED_STATES or not os.path.lexists(made.output_path))
    calls: list[tuple[Callable[..., object], tuple[object, ...]]] = []
    if needs_links and claim.input_files:
        calls.append((links.link_inputs, (made.directory, claim.name, parents(claim, context), claim.input_files)))
    if is_call(claim) and made.payload_path:
        calls.append((run_call.write_call, (made.payload_path, *sent_call(claim))))
    elif made.payload_path:
        calls.append((write_payload, (made.payload_path, _make_payload(claim, made), not claim.command_template)))
    if claim.call and not is_call(claim):
        calls.append((write_results, ([(_absolute(one.workdir, context), one) for one in claim.call.parents],)))
    if has_parent_files(made.environ):
        calls.append((give_parents, (claim, made.environ)))
    return pickle.dumps(calls) if calls else b""


def argv(claim: Claim, place: Placement, context: Context) -> list[str]:
    """Return the words of the job's command line: the MPI start command's, the executable's, the arguments'.

    An envscript is sourced by bash, which then becomes the program. If a command template needs a shell, this runs everything.

    Raises:
        SpawnFailed: the application is gone, empty, or cannot be split into words; the MPI command has no way to run it; the
            template cannot be filled with the job's parameters.
    """
    if claim.executable is None:
        raise SpawnFailed(f"No application named {claim.application!r} is registered in this DB.")
    prefix = context.mpi.words(claim, place)
    if claim.command_template:
        words = _of_template(claim, prefix)
    else:
        words = [*prefix, *_of_executable(claim)]
    if is_for_worker(claim, place, context):
        words += ["--worker", *map(str, context.worker_limits)]
    elif is_call(claim):
        words.append(_payload_path(claim, workdir(claim, context)))
    ref = _class_of(claim)
    if ref is not None:
        path = _payload_path(claim, workdir(claim, context))
        words = words if claim.command_template else [*words, path]
        words = payload.program_words(ref.python, payload.HOOK, "launch", path, *words) if ref.has_preamble else words
    if claim.envscript:
        return ["bash", "-c", 'source "$0" || exit; exec "$@"', claim.envscript, *words]
    return words


_found_programs: dict[tuple[str, bytes], str] = {}


def find_program(name: str, own: Mapping[bytes, bytes], directory: str, context: Context) -> str:
    """Return the path of a program, found as a shell in `directory` would that has these variables.

    Raises:
        SpawnFailed: there is none.
    """
    if "/" in name:
        return name
    path = own.get(b"PATH") or context.environ.get(b"PATH", os.defpath.encode())
    found = _found_programs.get((name, path))
    if found is None or not os.access(found, os.X_OK):
        found = shutil.which(name, path=os.fsdecode(path))
        if found is None:
            raise SpawnFailed(f"{name}: command not found (PATH is {os.fsdecode(path)})")
        if not os.path.isabs(found):
            return os.path.join(directory, found)
        _found_programs[name, path] = found
    return found


#: Splitting the line of an application for calls takes 0.1 ms.
_split = lru_cache(maxsize=64)(field_specs.split_command)


def _of_executable(claim: Claim) -> list[str]:
    assert claim.executable is not None
    try:
        words = [*_split(claim.executable), *(field_specs.split_command(claim.args) if claim.args else ())]
    except ValueError as exc:
        raise SpawnFailed(f"The command line cannot be split into words ({exc}): {claim.executable} {claim.args}") from exc
    if not words:
        raise SpawnFailed(f"The application {claim.application!r} has no executable.")
    return words


def _of_template(claim: Claim, prefix: Sequence[str]) -> list[str]:
    """Return the words of a template. In a line for a shell the MPI command precedes the first command, as in Balsam 0.7.

    With a preamble the line is for a shell, because the preamble may define functions that the line calls (such as `module`).
    """
    assert claim.command_template is not None
    if claim.args.strip():
        raise SpawnFailed(f"The application {claim.application!r} has a command template, which takes no args: {claim.args}")
    values = field_specs.read_object(claim.parameters)
    if PICKLED in values:
        raise SpawnFailed(f"The command template of {claim.application!r} takes text and numbers; its job has other values.")
    try:
        all_values = {**_defaults(claim.app_parameters or "{}"), **values}
        command = template.render(claim.command_template, all_values, for_shell=_has_preamble(claim))
    except TemplateError as exc:
        raise SpawnFailed(str(exc)) from exc
    if command.argv:
        return [*prefix, *command.argv]
    return [*BASH, f"{shlex.join(prefix)} {command.text}" if prefix else command.text]


@lru_cache(maxsize=64)
def _defaults(parameters: str) -> dict[str, Any]:
    """Return the default values of optional parameters."""
    return {name: one["default"] for name, one in field_specs.read_object(parameters).items() if not one.get("required", True)}


def _class_of(claim: Claim) -> payload.ClassRef | None:
    """Return the class of the job's application; None if that is none."""
    return payload.class_ref(claim.definition) if claim.definition not in ("{}", None) else None


def _has_preamble(claim: Claim) -> bool:
    ref = _class_of(claim)
    return ref is not None and ref.has_preamble


def is_call(claim: Claim) -> bool:
    """Return whether the job is a call of an executor; calls that earlier versions have added are programs like others."""
    return bool(claim.call and claim.call.context)


def is_for_worker(claim: Claim, place: Placement, context: Context) -> bool:
    """Return whether a worker makes the call; else a separate process does: of several ranks, or pinned to CPUs."""
    return is_call(claim) and not (claim.keep_background or hardware.cpus_wanted(claim) or context.mpi.words(claim, place))


def call_request(claim: Claim, made: Invocation, context: Context) -> CallRequest | None:
    """Return what a spawn helper needs to have the call made by a worker; None if it is to start a program."""
    if not made.is_warm or claim.call is None:
        return None
    alike = (claim.call.context, made.argv, sorted(item for item in made.environ.items() if item[0] not in OF_CALL))
    mark_of_worker = b"%b0:0%b" % (context.mark, context.node_mark)
    return CallRequest(repr(alike).encode(), mark_of_worker, *sent_call(claim), not _cwd(claim.call.content))


@lru_cache(maxsize=64)
def _cwd(content: bytes) -> str:
    return run_call.CallContext(*pickle.loads(content)).cwd


def sent_call(claim: Claim) -> tuple[bytes, bytes, tuple[Any, ...]]:
    """Return what a call is given: its context, its payload, and the results of its parents, by their numbers."""
    assert claim.call is not None
    return claim.call.content, claim.call.payload, tuple(parent.result for parent in sorted(claim.call.parents))


def write_results(parents: Sequence[tuple[str, ParentCall]]) -> None:
    """Write results of calls, given with the directories of their jobs, where a child that is a program finds them.

    Raises:
        OSError.
    """
    for directory, parent in parents:
        path = f"{directory}/{result_file.file_name(parent.job_id)}"
        if isinstance(parent.result, bytes):
            os.makedirs(directory, exist_ok=True)
            files.write_atomic(path, parent.result, 0o600)


def _payload_path(claim: Claim, directory: str) -> str:
    if is_call(claim):
        return f"{directory}/{payload.call_name(claim.job_id)}"
    is_read = _has_preamble(claim) if claim.command_template else _class_of(claim) is not None
    return f"{directory}/{payload.file_name(claim.job_id)}" if is_read else ""


def _make_payload(claim: Claim, made: Invocation) -> payload.TaskPayload:
    shape = claim.shape
    job = {
        **claims.fields_of(claim),
        "id": claim.job,
        "job_id": claim.job_id,
        "name": claim.name,
        "workflow": claim.workflow,
        "app": claim.application,
        "workdir": made.directory,
        "attempt": claim.attempt,
        "threads_per_rank": claim.threads_per_rank,
        "threads_per_core": claim.threads_per_core,
        "wall_time_min": claim.wall_time_minutes,
        **shape._asdict(),
    }
    return payload.TaskPayload(claim.definition or "{}", claim.parameters, shape.num_nodes * shape.ranks_per_node, job)


def write_payload(path: str, given: payload.TaskPayload, returns_result: bool) -> None:
    """Write a payload file, and remove what an earlier attempt returned.

    Raises:
        LaunchError: with the reason.
    """
    try:
        if returns_result:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(os.path.dirname(path), result_file.file_name(given.job["job_id"])))
        payload.write(path, given)
    except OSError as exc:
        raise LaunchError(f"{path} cannot be written: {exc.strerror}") from exc


def environment(claim: Claim, place: Placement | None, context: Context) -> dict[bytes, bytes]:
    """Return the variables that the job has in addition to `context.environ` or instead of it. Without `place`, no GPUs.

    The job's variables take precedence over those of its placement, then come its application's and the inherited ones; the
    BALSAM_ variables take precedence over all.
    """
    own: dict[bytes, bytes] = {}
    if claim.app_environ not in ("{}", None):
        own.update(_encoded(claim.app_environ))
    if claim.threads_per_rank > 1:
        own[b"OMP_NUM_THREADS"] = b"%d" % claim.threads_per_rank
    if claim.shape.gpus_per_rank and place is not None:
        own.update(_gpu_variables(place, context))
    if claim.environ_vars != "{}":
        own.update(_encoded(claim.environ_vars))
    own.update({name: context.environ[name] for name in own.keys() & _FIXED})
    own[b"BALSAM_JOB_ID"] = claim.job_id.encode()
    own[b"BALSAM_ATTEMPT"] = b"%d" % claim.attempt
    own.update(_NO_PARENTS if claim.parents == "[]" else _of_parents(claim, context, own))
    own[_RUN] = mark(claim, context)
    if claim.keep_background:
        own[_DETACHED] = b"1"
    return own


def _encoded(variables: str) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in json.loads(variables).items()}


def _gpu_variables(place: Placement, context: Context) -> dict[bytes, bytes]:
    found = hardware.visible_gpus(place, context.shares_host)
    if found is None:  # the job has whole nodes and may use all GPUs, whose names differ by node
        return dict.fromkeys((name.encode() for name in context.gpu_variables), UNSET)
    return {name.encode(): value.encode() for name, value in hardware.gpu_environment(context.gpu_variables, found).items()}


def hook_environment(claim: Claim, script: str, context: Context) -> dict[bytes, bytes]:
    """Return `environment` for a script of the job's application, such as preprocess, with the reason for the call."""
    own = environment(claim, None, context)
    own[HOOK_VARIABLE.encode()] = script.encode()
    for name, state in ((b"BALSAM_JOB_TIMEOUT", states.RUN_TIMEOUT), (b"BALSAM_JOB_ERROR", states.RUN_ERROR)):
        own[name] = b"TRUE" if claim.state == state else b"FALSE"
    return own


def parents(claim: Claim, context: Context) -> list[Parent]:
    """Return the job's parents, whose files it may use."""
    rows = json.loads(claim.parents)  # without a directory: a job of another site whose files were not asked for
    return [Parent(job_id, name, _absolute(directory, context)) for job_id, name, directory, _ in rows if directory]


_NO_PARENTS = {job_files.IDS.encode(): b"[]", job_files.STATES.encode(): b"[]"}


def _of_parents(claim: Claim, context: Context, own: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the variables that name a job's parents; `give_parents` writes the files that they refer to."""
    room = None
    if len(claim.parents) > _FEW_PARENTS_BYTES:
        taken = sum(job_files.size_of(b"%b=%b" % variable) for variable in {**context.environ, **own}.items())
        words = sum(len(text or "") for text in (claim.executable, claim.args, claim.command_template, claim.parameters))
        room = job_files.total_bytes() - taken - 2 * words - _SPARE_BYTES
    found = job_files.variables(_known_of_parents(claim), workdir(claim, context), claim.job_id, room)
    return {name.encode(): os.fsencode(value) for name, value in found.items()}


def _known_of_parents(claim: Claim) -> list[tuple[str, str]]:
    return [(job_id, state) for job_id, _, _, state in json.loads(claim.parents)]


def has_parent_files(own: Mapping[bytes, bytes]) -> bool:
    """Return whether this environment names files about the job's parents."""
    return job_files.IDS_FILE.encode() in own or job_files.STATES_FILE.encode() in own


def give_parents(claim: Claim, own: Mapping[bytes, bytes]) -> None:
    """Write the files about the job's parents into its working directory.

    Raises:
        SpawnFailed: with the reason.
    """
    found = {name.decode(): os.fsdecode(own[name]) for name in own if name.startswith(b"BALSAM_PARENT_")}
    try:
        job_files.write_files(_known_of_parents(claim), found)
    except OSError as exc:
        raise SpawnFailed(f"The files about the job's parents cannot be written: {exc}") from exc


def mark_alone(claim: Claim, context: Context) -> dict[bytes, bytes]:
    """Return the variables of a program that the launcher itself runs for a job: only the mark by which it is found."""
    return {_RUN: mark(claim, context)}


def mark(claim: Claim, context: Context) -> bytes:
    """Return the run mark: the value of BALSAM_RUN, by which all processes of the run are found, in any session."""
    return b"%b%d:%d%b" % (context.mark, claim.job, claim.attempt, context.node_mark)


def lease_mark(db_id: str, lease: int) -> bytes:
    """Return the start of the BALSAM_RUN of all programs started under that lease; the job and the attempt follow.

    It contains the id of the DB (`binding.id_of`), which a copy does not share and which stays when the directory is moved.
    """
    return b"%b:%d:" % (db_id.encode(), lease)


def ensemble_mark(supervisor: Holder) -> bytes:
    """Return the BALSAM_RUN of the MPI program of a launcher on many nodes; its jobs have that of the lease."""
    return os.fsencode(f"ensemble:{':'.join(map(str, supervisor))}:")


def workdir(claim: Claim, context: Context) -> str:
    """Return the job's working directory, absolute."""
    return _absolute(claim.workdir, context)


def _absolute(path: str, context: Context) -> str:
    return path if path[:1] == "/" else f"{context.data_directory}/{path}"
