"""`balsam job create`: add a job with the parameters of its application to any site, as in Balsam 0.7."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Callable, TypeVar

import click

from ..core import field_specs
from ..core.clock import FORMS
from ..core.errors import InvalidSpec, UnknownApp, UnknownJob
from ..db.engine.registry import SiteEntry
from ..sites.interface import Row, SiteInterface
from . import completion, output
from .common import (
    RUN_WHEN_EPILOG,
    RUN_WHEN_HELP,
    Minutes,
    confirm,
    count,
    count0,
    long_site_option,
    number,
    one_site,
    pairs,
    row_number,
    warn,
)
from .group import BalsamCommand, option
from .selection import A_JOB, job_numbers

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Options of NAME=VALUE words.
_PAIRS = {"tags": "--tag", "parameters": "--param", "launch_params": "--launch-param", "environ_vars": "--env"}
#: The fields of the workshop's form of a new job, in its order.
_FORM = (
    "workdir", "tags", "data", "return_code", "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core",
    "launch_params", "gpus_per_rank", "node_packing_count", "wall_time_min", "app_id", "site_name", "parameters", "parent_ids",
)  # fmt: skip
#: Shown where they are given; the workshop does not know them.
_BESIDE = ("name", "workflow", "environ_vars", "priority", "run_when")


def _count(*names: str, help: str) -> Callable[[_Function], _Function]:
    """Declare an option for a whole number, 1 by default."""
    return option(*names, type=int, callback=count, default=1, metavar="N", help=f"{help} [default: 1]")


@click.command(cls=BalsamCommand, epilog=RUN_WHEN_EPILOG)
@option("-w", "--workdir", required=True, metavar="PATH", help="Working directory below data/ of the site.")
@option(
    "-a", "--app", required=True, metavar="NAME", shell_complete=completion.applications,
    help="Application to run, by its name or number.",
)  # fmt: skip
@option("-tag", "--tag", "tags", multiple=True, metavar="KEY=VALUE", help="Tag; may be repeated.")
@option(
    "-p", "--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Parameter of the application; may be repeated."
)
@_count("-n", "--num-nodes", help="Number of nodes.")
@_count("-rpn", "--ranks-per-node", help="MPI ranks per node.")
@_count("-tpr", "--threads-per-rank", help="Threads per rank.")
@_count("-tpc", "--threads-per-core", help="Threads per core.")
@option(
    "-g",
    "--gpus-per-rank",
    type=float,
    callback=number,
    default=0,
    metavar="N",
    help="GPUs per rank; with a fraction, ranks share one. [default: 0]",
)
@_count("-npc", "--node-packing-count", help="Maximum number of these jobs per node.")
@option(
    "-lp",
    "--launch-param",
    "launch_params",
    multiple=True,
    metavar="NAME=VALUE",
    help="Parameter of the MPI start command; may be repeated.",
)
@option(
    "-t", "--wall-time-min", type=Minutes(), callback=count0, default=1, metavar="TIME",
    help=f"Expected run time: {FORMS}. [default: 1]",
)  # fmt: skip
@option(
    "-pid", "--parent-id", "parent_ids", multiple=True, metavar="JOB",
    help=f"Job to wait for: {A_JOB}; may be repeated.",
)  # fmt: skip
@option("--run-when", default="all_finished", metavar="WHEN", help=RUN_WHEN_HELP)
@option("--name", default="", help="Name, also of the output file. [default: job.out]")
@option("--workflow", default="", help="Label that jobs share.")
@option("--env", "environ_vars", multiple=True, metavar="VAR=VALUE", help="Environment variable; may be repeated.")
@option("--allow-shared-workdir", is_flag=True, help="Allow the workdir of another job that has not ended.")
@option("--priority", type=int, default=0, metavar="N", help="Priority; jobs with a higher one start first. [default: 0]")
@long_site_option
@option("-y", "--yes", is_flag=True, help="Do not ask.")
def create(site: str, app: str, yes: bool, **values: Any) -> None:
    """Add a job to a site: one planned run of an application with these parameters.

    \b
    Examples:
        balsam job create --app Hello --workdir demo/hello \\
            --param say_hello_to=world --yes
        balsam job create -a Sim -w runs/7 -p steps=100 -n 2 -rpn 8 -g 1 \\
            -tag run=7 -pid 5 --site theta
    """
    target = one_site(site)
    job = _checked(target, app, values)
    sys.stdout.writelines(f"{line}\n" for line in _preview(target.entry, job))
    if not yes:
        target.check_jobs([job])  # a refused job asks the user nothing
    if yes or confirm("Do you want to create this Job?", "--yes"):
        (made,) = target.create("job", [job])
        click.echo(f"Added Job id={made['id']}")


# --- checking and showing it, before anything is written --------------------------------------------------------------


def _checked(target: SiteInterface, app: str, values: Mapping[str, Any]) -> Row:
    """Return the job to create, as a site takes it.

    Raises:
        InvalidSpec: a word without `=`, a directory outside of `data/`, parameters that are missing or too many. UnknownApp,
        UnknownJob.
    """
    job = {name: value for name, value in values.items() if name not in _PAIRS}
    job.update({name: pairs(values[name], as_typed) for name, as_typed in _PAIRS.items()})
    job.update({"parent_ids": job_numbers(target, job["parent_ids"]), "workdir": _workdir(job["workdir"])})
    job["run_when"] = field_specs.checked(field_specs.JOB_FIELD["run_when"], job["run_when"])
    job["gpus_per_rank"] = field_specs.checked(field_specs.JOB_FIELD["gpus_per_rank"], job["gpus_per_rank"])
    application = _application(target, app)
    _check_parameters(application, job["parameters"])
    _check_parents(target, job["parent_ids"])
    return {**job, "app_id": application["id"]}


def _preview(site: SiteEntry, job: Row) -> Iterator[str]:
    """Yield the lines of the job as YAML."""
    shown = {"data": {}, "return_code": None, "site_name": site.name, **job}
    yield from output.yaml_lines({name: shown[name] for name in _FORM})
    yield from output.yaml_lines({name: shown[name] for name in _BESIDE if _says_something(name, shown[name])})


def _says_something(name: str, value: Any) -> bool:
    return bool(value) and value != field_specs.JOB_FIELD[name].default


def _workdir(workdir: str) -> str:
    if workdir.startswith("/"):
        raise InvalidSpec(
            f"workdir must be a relative path: cannot start with '/', as {workdir!r} does",
            hint="It is a directory below the site's data/.",
        )
    return field_specs.checked_workdir(workdir)


def _application(target: SiteInterface, app: str) -> Row:
    by_number = row_number(app)
    where = {"name": app} if by_number is None else {"id": by_number}
    found = target.select("app", where)
    if found:
        return found[0]
    known = [one["name"] for one in target.select("app", stop=21)]
    raise UnknownApp.named(app, known, f"on site {target.entry.name}")


def _check_parameters(application: Row, given: Collection[str]) -> None:
    if application["kind"] == "command":
        if given:  # its jobs may have some for their scripts
            line = f"The command line of {application['name']} has no parameters"
            warn(f"{line}: {_set(given)} will not be passed to it.")
        return
    known = application["parameters"]
    missing = [name for name, rule in known.items() if _is_required(rule) and name not in given]
    if missing:
        raise InvalidSpec(f"Missing required parameters (-p): {_set(missing)}", hint=_usage(application))
    extra = [name for name in given if name not in known]
    if extra and not application["definition"].get("open"):  # `run` that takes whatever there is
        raise InvalidSpec(f"Extraneous parameters (-p): {_set(extra)}", hint=_usage(application))


def _is_required(rule: Any) -> bool:
    """Return whether a parameter is required. Other programs may have stored the rule, so it is unchecked."""
    return isinstance(rule, Mapping) and bool(rule.get("required"))


def _set(names: Collection[str]) -> str:
    return f"{{{', '.join(map(repr, sorted(names)))}}}"


def _usage(application: Row) -> str:
    words = []
    for name, rule in application["parameters"].items():
        word = f"-p {name}=…"
        words.append(word if _is_required(rule) else f"[{word}]")
    return f"{application['name']} takes: {' '.join(words) or 'none'}"


def _check_parents(target: SiteInterface, numbers: list[int]) -> None:
    if numbers:
        known = {job["id"] for job in target.select("job", {"id": numbers})}
        missing = [one for one in numbers if one not in known]
        if missing:
            listed = ", ".join(map(str, missing))
            raise UnknownJob(f"No job on site {target.entry.name} has the number {listed}.", hint="`balsam job ls` shows them.")
