"""The options of commands that add jobs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..core import field_specs
from ..core.clock import FORMS
from . import completion
from .common import COUNT, COUNT0
from .group import Choice, LaterOption, SentenceOption, WordsOption, option

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Options of NAME=VALUE words, by their parameters.
PAIRS = {"tags": "--tag", "parameters": "--param", "launch_params": "--launch-param", "environ_vars": "--env"}
RUN_WHEN_EPILOG = "\n\n".join(["Values of --run-when:", *(f"{value}: {text}." for value, text in field_specs.RUN_WHEN.items())])

#: The options of every new job, in the order of the help text. Their values are checked as fields.
_OPTIONS = (
    option(
        "-a", "--app", "--application", "application", metavar="NAME", shell_complete=completion.applications,
        help="Application to run (`balsam ls apps`).",
    ),
    option(
        "-p", "--param", "parameters", cls=LaterOption, multiple=True, metavar="NAME=VALUE",
        help="Parameter of the application; may be repeated.",
    ),
    option("--args", cls=WordsOption, metavar="WORDS...", help="Arguments, appended to the application's command line."),
    option(
        "-t", "--wall-time-minutes", "--wall-time-min", "wall_time_minutes", metavar="TIME",
        help=f"Longest expected run time: {FORMS}. [default: 1, which means unknown]",
    ),
    option("-n", "--num-nodes", "num_nodes", metavar="N", help="Number of nodes. [default: 1]"),
    option("--coschedule-num-nodes", metavar="N", help="Stored, without effect. [default: 0]"),
    option(
        "-npc", "--node-packing-count", "node_packing_count", metavar="N",
        help="Maximum number of these jobs per node. [default: 1]",
    ),
    option("-rpn", "--ranks-per-node", "ranks_per_node", metavar="N", help="MPI ranks per node. [default: 1]"),
    option("-tpr", "--threads-per-rank", "threads_per_rank", metavar="N", help="Threads per rank. [default: 1]"),
    option("-tpc", "--threads-per-core", "threads_per_core", metavar="N", help="Threads per core. [default: 1]"),
    option(
        "-g", "--gpus-per-rank", "gpus_per_rank", metavar="N",
        help="GPUs per rank; with a fraction, ranks share one. [default: 0]",
    ),
    option("--cpu-affinity", metavar="none|depth", help="depth: bind each rank to separate cores. [default: none]"),
    option(
        "-lp", "--launch-param", "launch_params", cls=LaterOption, multiple=True, metavar="NAME=VALUE",
        help="Parameter of the MPI start command; may be repeated.",
    ),
    option("--mpi-flags", cls=WordsOption, metavar="FLAGS", help="Additional flags for the MPI start command."),
    option("--description", cls=SentenceOption, metavar="WORDS...", help="Free text."),
    option("-tag", "--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Tag; may be repeated."),
    option("--env", "environ_vars", multiple=True, metavar="VAR=VALUE", help="Environment variable; may be repeated."),
    option("--data", metavar="JSON", help="JSON object for your own use."),
    option("--priority", metavar="N", help="Priority; jobs with a higher one start first. [default: 0]"),
    option(
        "--run-when", metavar="WHEN",
        help=f"When its parents let it run: {', '.join(field_specs.RUN_WHEN)}. [default: all_finished]",
    ),
    option("--no-wait-for-parents", is_flag=True, help="Start without waiting for the parents."),
    option(
        "--post_handle_error", "--post-handle-error", "post_error_handler", is_flag=True,
        help="Run the postprocess script after an error, too.",
    ),
    option(
        "--post_handle_timeout", "--post-handle-timeout", "post_timeout_handler", is_flag=True,
        help="Run the postprocess script after a timeout, too.",
    ),
    option(
        "--disable_auto_timeout_retry", "--disable-auto-timeout-retry", is_flag=True,
        help="Fail after a timeout instead of running again.",
    ),
    option(
        "--exit-0-is-done-after-stop", is_flag=True,
        help="Count exit code 0 as success even after the launcher told it to stop.",
    ),
    option("--keep-background", is_flag=True, help="Keep processes that it leaves in the background."),
    option("--restart-limit", metavar="N", help="Maximum number of restarts after timeouts. [default: 10]"),
    option("--max-retries", metavar="N", help="Maximum number of retries after errors. [default: 0]"),
    option(
        "--retry-codes", cls=WordsOption, metavar="CODES...",
        help="Return codes after which to retry; signal 9 is -9. [default: all but 0]",
    ),
    option(
        "--input-files", cls=WordsOption, metavar="GLOBS...",
        help="Files of its parents to link into its directory. [default: *]",
    ),
    option("--url-in", "stage_in_url", metavar="URL", help="Copy from there to its directory before it starts."),
    option("--url-out", "stage_out_url", metavar="URL", help="Copy results to there after it has ended."),
    option(
        "--stage-out-files", cls=WordsOption, metavar="GLOBS...",
        help="Results to copy with --url-out, by patterns of their names.",
    ),
    option("-w", "--workdir", "workdir", cls=LaterOption, metavar="PATH", help="Working directory below data/."),
    option(
        "--allow-shared-workdir", cls=LaterOption, is_flag=True, help="Allow the workdir of another job that has not ended.",
    ),
    option("--user-workdir", metavar="DIR", help="Working directory anywhere else."),
    option("-y", "--yes", is_flag=True, help="Do not ask."),
)  # fmt: skip


#: The options of `balsam job` that add many jobs, see `many`, and that keep jobs unique.
_MANY_OPTIONS = (
    option(
        "--sweep", "sweeps", cls=LaterOption, multiple=True, metavar="NAME=VALUES",
        help="Add a job for each value: T=100:500:20 (500 included), P=1,2,5 or x=@FILE. Repeated: for each combination. "
        "{NAME} in --args, --name and other texts becomes the value, which is also a parameter.",
    ),
    option("--zip", "is_zipped", cls=LaterOption, is_flag=True, help="Combine the first values, the second ones, and so on."),
    option("--random", "random", cls=LaterOption, type=COUNT, metavar="N", help="Draw N of the combinations."),
    option("--seed", "seed", cls=LaterOption, type=COUNT0, metavar="S", help="The same seed draws the same combinations."),
    option("--array", cls=LaterOption, metavar="RANGE", help="Sweep the variable i: 1-1000, 1-10:2 or 1,5,7-9."),
    option(
        "--from-file", "from_file", cls=LaterOption, metavar="FILE",
        help="Add a job for each row of a .csv, .tsv or .jsonl file. A column is a field, a parameter, data.X or tags.X; "
        "the other options are for all jobs. - is stdin.",
    ),
    option(
        "--input-format", cls=LaterOption, type=Choice(["csv", "tsv", "jsonl"]),
        help="Format of that file. [default: by its name]",
    ),
    option(
        "--commands", "commands", cls=LaterOption, metavar="FILE",
        help="Add a job for each line, which bash runs. Blank lines and # comments are skipped. - is stdin.",
    ),
    option(
        "--unique", cls=LaterOption, type=Choice(["name", "workflow+name", "args", "hash"]),
        help="Add each job once: give it a unique_key made of its name, of its application with arguments and parameters, or "
        "of all that determines its run.",
    ),
    option(
        "--on-duplicate", cls=LaterOption, type=Choice(["refuse", "skip"]),
        help="What to do if a unique_key is there already: add nothing, or only the others. [default: refuse]",
    ),
    option("--dry-run", cls=LaterOption, is_flag=True, help="Only check the jobs; show the first, the last and their number."),
)  # fmt: skip


#: The parameters of `_MANY_OPTIONS`.
MANY_NAMES = (
    "sweeps", "is_zipped", "random", "seed", "array", "from_file", "input_format", "commands", "unique", "on_duplicate",
    "dry_run",
)  # fmt: skip


def many_options(command: _Function) -> _Function:
    """Give a command the options of many jobs."""
    for decorate in reversed(_MANY_OPTIONS):
        command = decorate(command)
    return command


def job_options(command: _Function) -> _Function:
    """Give a command the options of every new job."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command
