"""The programs that run an application's class, started by command lines of `payload`: FUNCTION PAYLOAD and HOOK WHAT.

FUNCTION calls `run`. PAYLOAD is a file with a TaskPayload, the outcome goes to another one (see `result_file`). The exit code
is 1, and the traceback is printed, if the code raised. This opens no DB: only rank 0 of the launcher does, never a compute
rank. HOOK runs one of these:

preprocess, postprocess, handle_error, handle_timeout
    run as an application's scripts do, in the working directory of a job that the launcher holds. The class's function may
    set `self.job.state`; else the job goes where it would go without the hook, after handle_timeout to RESTART_READY. An
    exception fails the job.
launch PAYLOAD WORD …
    runs instead of the job's program: the commands of `shell_preamble()`, in a shell which then becomes that program. Opens no
    DB, because it runs on the node on which the program is started.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..core import field_specs, parameters, states
from ..core.errors import BalsamError, InvalidSpec, NoCurrentJob, did_you_mean
from ..core.process_table import RUN_VARIABLE
from . import class_loader, payload, result_file
from .ranks import end_all_ranks, rank_of
from .result_file import Outcome, ResultHeader
from .run_call import concluded


def run_hook() -> int:
    """Run the hook that the command line names; return the exit code."""
    what, *rest = sys.argv[1:]
    try:
        if what == "launch":
            _launch(*rest)
        else:
            _decide(what)
    except BalsamError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


# --- hooks ------------------------------------------------------------------------------------------------------------


def _decide(hook: str) -> None:
    """Call the hook of the class for the job to which this process belongs."""
    job, pid = _current_job(), os.getpid()
    before = job.state
    (app,) = job._site.interface.select("app", {"name": job._row["app"]})
    made = class_loader.load(payload.class_ref(json.dumps(app["definition"])), as_main=True)
    instance = made(job)
    getattr(instance, hook)()
    if os.getpid() != pid:  # a child that the hook has forked: the parent moves the job
        return
    has_payload = not job._changed.keys().isdisjoint(("state_data", "state_timestamp"))
    if job.state == before and (has_payload or hook == "handle_timeout"):
        job.state = _default(hook, before)  # the payload belongs to a change of state
    if hook == "postprocess" and before == states.RUN_DONE and job.state in (before, *_SUCCESSES):
        _clean_up(instance.cleanup_files, job.stage_out_files)
    job.save()


_SUCCESSES = (states.POSTPROCESSED, states.JOB_FINISHED)


def _clean_up(patterns: Sequence[str], kept: str) -> None:
    """Remove the files and links in the working directory that match, except those that are staged out, and our own files."""
    from ..launcher.staging import files

    def matching(words: str) -> set[str]:
        return {path for glob in files.globs(words) for path in glob.expand(".")}

    doomed = set().union(*(matching(shlex.quote(one)) for one in patterns)) - matching(kept)
    for path in sorted(doomed):
        if not files.is_directory(path) and not os.path.basename(path).startswith((".balsam-", "postprocess.log")):
            os.unlink(path)


def _default(hook: str, state: str) -> str:
    """Return the next state of a job that its hook does not move."""
    if hook == "preprocess":
        return states.PREPROCESSED
    if hook == "handle_timeout":
        return states.RESTART_READY
    return states.POSTPROCESSED if state == states.RUN_DONE else states.FAILED


def _current_job() -> Any:
    """Return the api's Job that the launcher's variables name."""
    from ..api.jobs import Job
    from ..api.site_handle import handle_of
    from ..db.engine import directories, registry

    directory = os.environ.get(directories.DB_VARIABLE, "")
    _, *numbers = os.environ.get(RUN_VARIABLE, "").rsplit(":", 3)
    if len(numbers) != 3:
        raise NoCurrentJob("A hook of an application is run by the launcher, for one of its jobs.")
    handle = handle_of(registry.at(directory))
    return Job.objects.get(id=handle.id(int(numbers[1])))


# --- the preamble -----------------------------------------------------------------------------------------------------


def _launch(path: str, *words: str) -> None:
    """Become a shell that runs the commands of the preamble, and then becomes the program."""
    from ..launcher.exec import invocation

    given = payload.read(path)
    commands_before = _script(instance_of(given).shell_preamble())
    if len(words) == 3 and words[:2] == invocation.BASH:
        script, words = f"{commands_before}{words[2]}", ()  # its variables and functions are there for that text
    else:
        script = f'{commands_before}exec "$@"'
    sys.stdout.flush()
    os.execvp("bash", ["bash", "-c", script, "bash", *words])


def _script(preamble: Any) -> str:
    """Return commands for bash, which ends if one of them fails. Raises InvalidSpec."""
    if preamble is None or len(preamble) == 0:
        return ""
    if isinstance(preamble, str):
        text = f"{preamble}\n"  # sourced, so that `return` may end it; from no file, which other jobs there would share
        return f"source <(printf %s {shlex.quote(text)}) || exit\n"
    if not isinstance(preamble, (list, tuple)) or not all(isinstance(line, str) for line in preamble):
        raise InvalidSpec(f"shell_preamble() must return a list of commands or a text, not {preamble!r}")
    return "".join([f"{{\n{entry}\n}} || exit\n" for entry in preamble if _has_command(entry)])


def _has_command(entry: str) -> bool:
    """Return whether there is more than blanks and comments, which are no commands to bash."""
    return any(line.strip() and not line.lstrip().startswith("#") for line in entry.splitlines())


# --- functions --------------------------------------------------------------------------------------------------------


def run_function() -> int:
    """Run the function of the job whose payload the command line names; return the exit code.

    Under MPI every rank calls it; what rank 0 returns is the result. A rank that raises ends all, and the first exception is
    the result.
    """
    path = sys.argv[1]
    given = payload.read(path)
    rank = rank_of(given.ranks, os.environ)

    def write(outcome: Outcome) -> None:
        if rank == 0 or not outcome.good:
            header = ResultHeader(given.job["job_id"], given.job["attempt"], outcome.good)
            result_file.write(os.path.join(os.path.dirname(path), result_file.file_name(header.job_id)), header, outcome)

    code = concluded(lambda: _outcome_of_function(given, keeps_result=rank == 0), write)
    if code and given.ranks > 1:
        end_all_ranks()
    return code


def _outcome_of_function(given: payload.TaskPayload, keeps_result: bool) -> Outcome:
    try:
        instance = instance_of(given)
    except BalsamError as exc:
        return result_file.failure(exc)._replace(trace=f"{exc}\n")  # where in our code that was found helps no user

    def run() -> Any:
        # A default of the class counts where a parameter is not given; the function's own defaults are left to it.
        defaults = {n: one["default"] for n, one in instance.parameters.items() if not one["required"] and "default" in one}
        value = instance.run(**{**defaults, **instance.job.parameters})
        return value if keeps_result else None

    return result_file.outcome_of(run, result_file.MAX_VALUE_BYTES)


# --- the job, as `run` and `shell_preamble` see it --------------------------------------------------------------------


class NeedsDatabase(BalsamError, AttributeError):
    """An attribute of a job needs the DB, which is not opened here."""


class JobView(SimpleNamespace):
    """`self.job` where `run` and `shell_preamble` are called: the fields of an `api.Job` as they were when the job was claimed.

    Assigning a field changes nothing in the DB. `workdir` is absolute, `state` is RUNNING, `app` is the application's name.

    Raises:
        NeedsDatabase: (an AttributeError) for other attributes of `api.Job`, such as `save`.
    """

    parameters: dict[str, Any]
    workdir: Path

    def resolve_workdir(self, data_path: str | os.PathLike[str]) -> Path:
        """Return the job's working directory, as `api.Job.resolve_workdir` does."""
        return Path(data_path) / self.workdir

    def get_parameters(self) -> dict[str, Any]:
        """Return the parameters with which `run` is called."""
        return dict(self.parameters)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        from ..api.jobs import Job

        if hasattr(Job, name):
            raise NeedsDatabase(
                f"self.job.{name} needs the DB, which `run` and `shell_preamble` do not open: compute ranks never do.",
                hint="Use it in a hook such as `postprocess`, or in the script that adds the jobs. What `run` returns is the "
                "job's result, and files in the working directory stay.",
            )
        raise AttributeError(f"self.job has no attribute {name!r}.{did_you_mean(name, vars(self))}")


def instance_of(given: payload.TaskPayload) -> Any:
    """Return an object of the job's class, with a view of the job.

    Raises:
        ApplicationLost. RemoteError: the job's parameters cannot be unpickled here.
    """
    made = class_loader.load(payload.class_ref(given.definition), as_main=True)
    found = parameters.decoded(
        field_specs.read_object(given.parameters)
    )  # after that, as they may be objects of the module's classes
    known = {**given.job, "workdir": Path(given.job["workdir"]), "state": states.RUNNING}
    known["parent_ids"] = frozenset(known.get("parent_ids", ()))
    known.pop("parameters", None)
    return made(JobView(**known, parameters=found))
