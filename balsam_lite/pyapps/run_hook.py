"""The program that runs the hooks of an application's class, started by a command line of `python_argv`: HOOK WHAT.

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
from typing import Any

from ..core import states
from ..core.errors import BalsamError, InvalidSpec, NoCurrentJob
from ..core.process_table import RUN_VARIABLE
from ..launcher.exec import invocation
from . import class_loader, payload


def main() -> int:
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
    getattr(made(job), hook)()
    if os.getpid() != pid:  # a child that the hook has forked: the parent moves the job
        return
    has_payload = not job._changed.keys().isdisjoint(("state_data", "state_timestamp"))
    if job.state == before and (has_payload or hook == "handle_timeout"):
        job.state = _default(hook, before)  # the payload belongs to a change of state
    job.save()


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
    from .job_view import instance_of

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
