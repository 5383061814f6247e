"""`balsam job`, also called `job create`, and `mkchild`: add a job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import click

from ..core import command_line, field_specs
from ..core.errors import InvalidSpec, UnknownApp
from ..db.engine import directories
from ..db.query import queries, text_forms
from ..sites.interface import Row, SiteInterface
from . import completion, output
from .apps import warn_of
from .common import confirm_or_end, long_site_option, one_site, pairs, row_number, warn
from .group import BalsamCommand, SeparateOption, option
from .job_options import MANY_NAMES, PAIRS, RUN_WHEN_EPILOG, job_options, many_options
from .selection import A_JOB, job_numbers, parents_of


class _Wording(NamedTuple):
    """How a command shows the new job and speaks of it."""

    lines: Callable[[SiteInterface, Row, Row, Mapping[int, str]], Iterator[str]]
    question: str
    done: str


@click.command(cls=BalsamCommand, epilog=RUN_WHEN_EPILOG)
@option("--name", help="Name, also of the output file and the working directory.")
@option("--workflow", shell_complete=completion.workflows, help="A label that jobs share; also the directory above theirs.")
@option(
    "-pid", "--parent", "--parent-id", "parents", cls=SeparateOption, multiple=True, metavar="JOB...",
    shell_complete=completion.jobs, help=f"Job to wait for: {A_JOB}, or SITE#NUMBER; may be repeated.",
)  # fmt: skip
@job_options
@many_options
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
        balsam job create -a Plot -w plots/7 -pid 'theta#12'
        balsam job --name sim --workflow scan --app sim \\
            --sweep T=100:500:20 --sweep P=1,2,5 --args "-t {T} -p {P}"
        balsam job --from-file runs.csv --app sim --unique hash --dry-run
        balsam job --commands commands.txt --yes
    """
    is_of_slides = ctx.info_name == "job"
    many = {name: options.pop(name) for name in MANY_NAMES}
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
        numbers = parents_of(target, parents, many["dry_run"])
        _add(target, fields, numbers, yes, _AS_SLIDES if is_of_slides else _AS_WORKSHOP, many)
        return
    fields = _given(options)
    target = one_site(site)
    app = None
    if fields.get("application"):
        app = _application(target, fields["application"], _place_of(target, is_of_slides))
        fields["application"] = app["name"]
    if parents:
        numbers = parents_of(target, parents, many["dry_run"])
        fields["parent_ids"] = [number for number in numbers if number > 0 or not many["dry_run"]]
    many_jobs.add(target, {**options, **many}, fields, app, yes)


@click.command(cls=BalsamCommand)
@option("--name", required=True, help="Name, also of the output file and the working directory.")
@option("--parent", metavar="JOB", help=f"The job to wait for: {A_JOB}. [default: the one that calls this]")
@job_options
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
    added = _add(target, fields, {number: ""}, yes, _AS_SLIDES)
    click.echo(output.new_link(above, added))


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
    values.update({name: pairs(values[name], as_typed) for name, as_typed in PAIRS.items()})
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
    as_typed = [name for name in values if name in PAIRS or field_specs.JOB_FIELD[name].kind in ("place", "path")]
    return {**field_specs.check_job(values), **others, **{name: values[name] for name in as_typed}}


def _place_of(target: SiteInterface, is_of_slides: bool) -> str:
    return "in this DB" if is_of_slides else f"on site {target.entry.name}"


def _add(
    target: SiteInterface, fields: Row, parents: Mapping[int, str], yes: bool, style: _Wording, many: Mapping[str, Any] = {}
) -> Row:
    """Check the job, show it, ask, and add it; return its fields. The answer "no" ends the command, and so does --dry-run.

    Raises:
        UnknownApp, UnknownJob, DuplicateKey. InvalidSpec: parameters are missing or too many, or the workdir is another job's.
    """
    app = _application(target, fields["application"], _place_of(target, style is _AS_SLIDES))
    job_id = _unused_id(target)
    row = {name: value for name, value in fields.items() if name != "application"}
    row.update(app_id=app["id"], parent_ids=list(parents), job_id=job_id)
    is_dry_run = many.get("dry_run", False)
    target.check_jobs([{**row, "parent_ids": [number for number in parents if number > 0 or not is_dry_run]}])
    click.echo("\n".join(style.lines(target, app, row, parents)))
    _warn_of_unused(app, fields)
    if is_dry_run:
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


def _as_slides(target: SiteInterface, app: Row, row: Row, labels: Mapping[int, str]) -> Iterator[str]:
    """Yield the form of a job that the slides print."""
    known = {one["id"]: one["job_id"] for one in target.page({"id": row["parent_ids"]}, ("id", "job_id"))}
    settable = (field.name for field in field_specs.JOB_FIELDS if field.settable)
    stored = field_specs.check_job({name: row[name] for name in settable if name in row})
    (shown,) = field_specs.rows_with_defaults([{**stored, "application": app["name"]}])
    own = shown["user_workdir"] and os.path.abspath(shown["user_workdir"])
    shown.update(job_id=row["job_id"], workdir=own or _workdir_of(row))
    parents = [labels[number] or known[number] for number in row["parent_ids"]]
    data = os.path.join(target.entry.path, directories.DATA)
    yield output.many_lines(text_forms.job_form(shown, parents, text_forms.program_of(app), data))


def _workdir_of(row: Row) -> str:
    return row.get("workdir") or field_specs.workdir_name(row["workflow"], row["name"], row["job_id"])


#: The fields of the workshop's form of a new job, in its order; others are shown where they are given.
_WORKSHOP_FORM = (
    "workdir", "tags", "data", "return_code", "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core",
    "launch_params", "gpus_per_rank", "node_packing_count", "wall_time_min", "app_id", "site_name", "parameters", "parent_ids",
)  # fmt: skip


def _as_workshop(target: SiteInterface, app: Row, row: Row, labels: Mapping[int, str]) -> Iterator[str]:
    """Yield a job as YAML."""
    defaults = {field.name: field.default for field in field_specs.JOB_FIELDS if field.settable}
    shown = {**defaults, **row, "data": json.loads(row.get("data", "{}")), "site_name": target.entry.name, "return_code": None}
    parents = [labels[number] or number for number in row["parent_ids"]]
    shown.update(wall_time_min=shown["wall_time_minutes"], workdir=_workdir_of(row), parent_ids=parents)
    yield from output.yaml_lines({name: shown.get(name, "") for name in _WORKSHOP_FORM})
    others = defaults.keys() & row.keys() - {*_WORKSHOP_FORM, "wall_time_minutes"}
    more = {name: row[name] for name in row if name in others and row[name] not in (defaults[name], {})}
    yield from output.yaml_lines(more)


_AS_SLIDES = _Wording(_as_slides, "Confirm adding job to DB", "Added job to database")
_AS_WORKSHOP = _Wording(_as_workshop, "Do you want to create this Job?", "Added Job id={id}")
