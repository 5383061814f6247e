"""`balsam job`, also called `job create`, and `mkchild`: add a job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import click

from ..core import command_line, field_specs
from ..core.clock import FORMS
from ..core.errors import InvalidSpec, UnknownApp
from ..db.engine import directories
from ..db.query import queries, text_forms
from ..sites.interface import Row, SiteInterface
from . import completion, output
from .apps import warn_of
from .common import COUNT, COUNT0, confirm_or_end, long_site_option, one_site, pairs, row_number, warn
from .group import BalsamCommand, Choice, LaterOption, SentenceOption, SeparateOption, WordsOption, option
from .selection import A_JOB, job_numbers

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Options of NAME=VALUE words, by their parameters.
_PAIRS = {"tags": "--tag", "parameters": "--param", "launch_params": "--launch-param", "environ_vars": "--env"}
_RUN_WHEN_EPILOG = "\n\n".join(
    ["Values of --run-when:", *(f"{value}: {text}." for value, text in field_specs.RUN_WHEN.items())]
)

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


def _many_options(command: _Function) -> _Function:
    for decorate in reversed(_MANY_OPTIONS):
        command = decorate(command)
    return command


def _job_options(command: _Function) -> _Function:
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


class _Wording(NamedTuple):
    """How a command shows the new job and speaks of it."""

    lines: Callable[[SiteInterface, Row, Row], Iterator[str]]
    question: str
    done: str


@click.command(cls=BalsamCommand, epilog=_RUN_WHEN_EPILOG)
@option("--name", help="Name, also of the output file and the working directory.")
@option("--workflow", shell_complete=completion.workflows, help="A label that jobs share; also the directory above theirs.")
@option(
    "-pid", "--parent", "--parent-id", "parents", cls=SeparateOption, multiple=True, metavar="JOB...",
    shell_complete=completion.jobs, help=f"Job to wait for: {A_JOB}; may be repeated.",
)  # fmt: skip
@_job_options
@_many_options
@long_site_option
@click.pass_context
def job(ctx: click.Context, /, *, parents: Sequence[str], site: str, yes: bool, **options: Any) -> None:
    """Add a job: one planned run of an application, with its arguments or parameters. Or add many.

    It needs --name and --workflow, or else --workdir. `balsam job` and `balsam job create` are two names of one command; the
    first one prints the new job as Balsam 0.3 did, the second one as Balsam 0.7. Many jobs, by --sweep, --array, --from-file or
    --commands, are added all or none.

    \b
    Examples:
        balsam job --name test1 --workflow test --application say-hello \\
            --args "world!"
        balsam job --name big --workflow test --application sim \\
            --num-nodes 2 --ranks-per-node 8 \\
            --env OMP_NUM_THREADS=4 --tag size=big --parent 7df8 --yes
        balsam job create --app Hello --workdir demo/hello \\
            --param say_hello_to=world --yes
        balsam job create -a Sim -w runs/7 -p steps=100 -n 2 -rpn 8 -g 1 \\
            -tag run=7 -pid 5 --site theta
        balsam job --name sim --workflow scan --app sim \\
            --sweep T=100:500:20 --sweep P=1,2,5 --args "-t {T} -p {P}"
        balsam job --from-file runs.csv --app sim --unique hash --dry-run
        balsam job --commands commands.txt --yes
    """
    is_of_slides = ctx.info_name == "job"
    many = {name: options.pop(name) for name in _MANY_NAMES}
    is_file = many["from_file"] is not None or many["commands"] is not None
    is_many = is_file or bool(many["sweeps"] or many["array"] is not None)
    if many["on_duplicate"] and not many["unique"] and many["from_file"] is None:
        raise click.UsageError("--on-duplicate goes with --unique.")
    if not is_file:
        _require(ctx, options, "application")
        if options["workdir"] is None:
            _require(ctx, options, *(("name", "workflow") if is_of_slides or options["name"] is not None else ("workdir",)))
    if not is_of_slides and options["wall_time_minutes"] == "0":  # Balsam 0.7's "unknown"
        options["wall_time_minutes"] = None
    if is_many or any(many[name] for name in ("is_zipped", "random", "seed", "input_format", "dry_run")):
        from . import many as many_jobs

        many_jobs.check({**options, **many})
    if is_of_slides and not site:
        directories.find(ctx.find_root().obj)
    if not is_many:
        fields = _fields_of(options)
        if many["unique"]:
            from ..campaigns import job_rows

            fields["unique_key"] = job_rows.key_maker(many["unique"])(fields)
        target = one_site(site)
        numbers = job_numbers(target, parents)
        _add(target, fields, numbers, yes, _AS_SLIDES if is_of_slides else _AS_WORKSHOP, many)
        return
    fields = _given(options)
    target = one_site(site)
    app = None
    if fields.get("application"):
        app = _application(target, fields["application"], _place_of(target, is_of_slides))
        fields["application"] = app["name"]
    if parents:
        fields["parent_ids"] = job_numbers(target, parents)
    many_jobs.add(target, {**options, **many}, fields, app, yes)


@click.command(cls=BalsamCommand)
@option("--name", required=True, help="Name, also of the output file and the working directory.")
@option("--parent", metavar="JOB", help=f"The job to wait for: {A_JOB}. [default: the one that calls this]")
@_job_options
@click.pass_context
def mkchild(ctx: click.Context, /, *, parent: str | None, yes: bool, **options: Any) -> None:
    """Add a job that waits for the one whose program or script calls this, in the same workflow.

    \b
    Examples:
        balsam mkchild --name check --application verify --yes
        balsam mkchild --parent 7df8 --name check --application verify
    """
    _require(ctx, options, "application")
    caller = parent or os.environ.get("BALSAM_JOB_ID", "")
    if not caller:
        raise click.UsageError("No job calls this: BALSAM_JOB_ID is not set. Name the parent with --parent.")
    fields = _fields_of(options)
    directories.find(ctx.find_root().obj)
    target = one_site("")
    (number,) = job_numbers(target, [caller])
    found = target.page({"id": number}, ("job_id", "name", "workflow", "queued_launch_id"))
    above = found[0] if found else queries.the_one(caller, [])  # which raises UnknownJob
    assert isinstance(above, dict)
    fields.update(workflow=above["workflow"], queued_launch_id=above["queued_launch_id"])
    fields["origin"] = f"spawned by {output.cute_id(above['name'], above['job_id'])}"
    added = _add(target, fields, [number], yes, _AS_SLIDES)
    click.echo(output.new_link(above, added))


#: The parameters of `_MANY_OPTIONS`.
_MANY_NAMES = (
    "sweeps", "is_zipped", "random", "seed", "array", "from_file", "input_format", "commands", "unique", "on_duplicate",
    "dry_run",
)  # fmt: skip


def _require(ctx: click.Context, options: Mapping[str, Any], *names: str) -> None:
    """Raise MissingParameter if one of these options is not given."""
    for name in names:
        if options[name] is None:
            raise click.MissingParameter(ctx=ctx, param=next(one for one in ctx.command.params if one.name == name))


def _given(options: Mapping[str, Any]) -> Row:
    """Return the fields of new jobs for options, as typed; some options have the opposite meaning.

    Raises:
        InvalidSpec: a word without `=`.
    """
    values = {name: value for name, value in options.items() if value is not None}
    values.update({name: pairs(values[name], as_typed) for name, as_typed in _PAIRS.items()})
    values["auto_timeout_retry"] = not values.pop("disable_auto_timeout_retry")
    values["wait_for_parents"] = not values.pop("no_wait_for_parents")
    if values.get("application") == "":
        raise InvalidSpec("job application must not be empty")
    return values


def _fields_of(options: Mapping[str, Any]) -> Row:
    """Return the fields of a new job for options.

    Raises:
        InvalidSpec: a word without `=`, or a value that is none of its field.
    """
    values = _given(options)
    others: Row = {name: values.pop(name) for name in ("workdir", "allow_shared_workdir", "launch_params") if name in values}
    if "workdir" in others:
        others["workdir"] = field_specs.checked_workdir(others["workdir"])
    # A site takes mappings, and makes paths absolute itself: at another host a path of this one means nothing.
    as_typed = [name for name in values if name in _PAIRS or field_specs.JOB_FIELD[name].kind in ("place", "path")]
    return {**field_specs.check_job(values), **others, **{name: values[name] for name in as_typed}}


def _place_of(target: SiteInterface, is_of_slides: bool) -> str:
    return "in this DB" if is_of_slides else f"on site {target.entry.name}"


def _add(
    target: SiteInterface, fields: Row, parents: list[int], yes: bool, style: _Wording, many: Mapping[str, Any] = {}
) -> Row:
    """Check the job, show it, ask, and add it; return its fields. The answer "no" ends the command, and so does --dry-run.

    Raises:
        UnknownApp, UnknownJob, DuplicateKey. InvalidSpec: parameters are missing or too many, or the workdir is another job's.
    """
    app = _application(target, fields["application"], _place_of(target, style is _AS_SLIDES))
    job_id = _unused_id(target)
    row = {name: value for name, value in fields.items() if name != "application"}
    row.update(app_id=app["id"], parent_ids=parents, job_id=job_id)
    target.check_jobs([row])
    click.echo("\n".join(style.lines(target, app, row)))
    _warn_of_unused(app, fields)
    if many.get("dry_run"):
        click.echo("1 job would be added.")
        return fields
    if not yes:
        confirm_or_end(style.question, "Add job")
    (made,) = target.create("job", [row], many.get("on_duplicate") or "refuse")
    if many.get("on_duplicate") == "skip" and made["job_id"] != job_id:
        click.echo(f"Skipped 1 job whose unique key is there already: #{made['id']}")
    else:
        click.echo(style.done.format(id=made["id"]))
    return {**fields, "job_id": job_id}


def _application(target: SiteInterface, word: str, where: str) -> Row:
    """Return the application of that name, or else of that number. Raises UnknownApp."""
    found = target.select("app", {"name": word})
    if not found and row_number(word) is not None:
        found = target.select("app", {"id": row_number(word)})
    if found:
        return found[0]
    known = [one["name"] for one in target.select("app", stop=21)]
    raise UnknownApp.named(word, known, where)


def _unused_id(target: SiteInterface) -> str:
    """Return a new id whose first 8 characters are free. Otherwise the store draws another one, and the form is wrong."""
    while True:
        job_id = field_specs.new_job_id()
        if not target.count("job", {"uuid": job_id[: output.SHORT_ID]}):
            return job_id


def _warn_of_unused(app: Row, fields: Row) -> None:
    """Warn of words that the program will not get, or not as they were meant."""
    if app["kind"] == "command" and fields["parameters"]:  # its scripts may read them
        names = ", ".join(map(repr, sorted(fields["parameters"])))
        warn(f"The command line of {app['name']} has no parameters: {{{names}}} will not be passed to it.")
    warn_of("args", command_line.problems_of_args(fields.get("args", ""), app["executable"]))
    if bool(fields.get("stage_out_files")) != bool(fields.get("stage_out_url")):
        warn("results are copied only where both --stage-out-files and --url-out are given")


# --- showing a job before it is added ---------------------------------------------------------------------------------


def _as_slides(target: SiteInterface, app: Row, row: Row) -> Iterator[str]:
    """Yield the form of a job that the slides print."""
    known = {one["id"]: one["job_id"] for one in target.page({"id": row["parent_ids"]}, ("id", "job_id"))}
    settable = (field.name for field in field_specs.JOB_FIELDS if field.settable)
    stored = field_specs.check_job({name: row[name] for name in settable if name in row})
    (shown,) = field_specs.rows_with_defaults([{**stored, "application": app["name"]}])
    own = shown["user_workdir"] and os.path.abspath(shown["user_workdir"])
    shown.update(job_id=row["job_id"], workdir=own or _workdir_of(row))
    parents = [known[number] for number in row["parent_ids"]]
    data = os.path.join(target.entry.path, directories.DATA)
    yield output.many_lines(text_forms.job_form(shown, parents, text_forms.program_of(app), data))


def _workdir_of(row: Row) -> str:
    return row.get("workdir") or field_specs.workdir_name(row["workflow"], row["name"], row["job_id"])


#: The fields of the workshop's form of a new job, in its order; others are shown where they are given.
_WORKSHOP_FORM = (
    "workdir", "tags", "data", "return_code", "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core",
    "launch_params", "gpus_per_rank", "node_packing_count", "wall_time_min", "app_id", "site_name", "parameters", "parent_ids",
)  # fmt: skip


def _as_workshop(target: SiteInterface, app: Row, row: Row) -> Iterator[str]:
    """Yield a job as YAML."""
    defaults = {field.name: field.default for field in field_specs.JOB_FIELDS if field.settable}
    shown = {**defaults, **row, "data": json.loads(row.get("data", "{}")), "site_name": target.entry.name, "return_code": None}
    shown.update(wall_time_min=shown["wall_time_minutes"], workdir=_workdir_of(row))
    yield from output.yaml_lines({name: shown.get(name, "") for name in _WORKSHOP_FORM})
    others = defaults.keys() & row.keys() - {*_WORKSHOP_FORM, "wall_time_minutes"}
    more = {name: row[name] for name in row if name in others and row[name] not in (defaults[name], {})}
    yield from output.yaml_lines(more)


_AS_SLIDES = _Wording(_as_slides, "Confirm adding job to DB", "Added job to database")
_AS_WORKSHOP = _Wording(_as_workshop, "Do you want to create this Job?", "Added Job id={id}")
