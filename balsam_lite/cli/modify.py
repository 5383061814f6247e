"""Commands that change what is in the DB: `modify`, `rm`, `killjob`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ..core import command_line, field_specs, states
from ..core.errors import NotFound, StateError, UnknownApp
from ..db.engine.connection import Database
from ..db.query import queries
from ..db.store import apps as app_store
from ..db.store import graph, user_actions
from ..sites import apps as site_apps
from . import output
from .apps import as_program, warn_of, warn_of_line
from .common import A_JOB, confirm, open_db, progress_of, say
from .group import BalsamCommand, Choice, ConditionOption, SeparateOption, option

_STATES = "\b\nThe states:\n" + "\n".join(f"  {state:17} {text}" for state, text in states.DESCRIPTIONS.items())


@click.command(cls=BalsamCommand, epilog=_STATES, context_settings={"ignore_unknown_options": True})
@click.argument("id")
@click.argument("attr")
@click.argument("value")
@option("--type", "kind", type=Choice(["jobs", "apps"]), default="jobs", show_default=True, help="What ID is.")
def modify(id: str, attr: str, value: str, kind: str) -> None:
    """Set the field ATTR of a job or of an application to VALUE.

    ID is a job's number, a prefix of its id, or its name, and must fit one job only ('#37' is always the number); or it is
    the name or number of an application. Objects are given as JSON.

    \b
    Examples:
        balsam modify '#37' priority 5
        balsam modify fab5 state RESTART_READY
        balsam modify fab5 auto_timeout_retry False
        balsam modify fab5 data '{"step": 2}'
        balsam modify --type apps say-hello executable "echo Hi,"
    """
    db = open_db()
    if kind == "apps":
        shown = _modify_app(db, id, attr, value)
    elif attr == "state":
        shown = _set_state(db, id, value)
    else:
        shown = _modify_job(db, id, attr, value)
    click.echo(f"{kind[:-1]} {attr} changed to:  {output.many_lines(shown)}")


def _set_state(db: Database, word: str, state: str) -> str:
    states.check_state(state)
    with db.read() as cx:
        job = queries.job(cx, queries.find_job(cx, word))
    changed = user_actions.set_state(db, [job["id"]], state, by=user_actions.USER_CHANGED)
    if not changed and job["state"] != state:
        raise StateError(f"Job {output.cute_id(job['name'], job['job_id'])} is {job['state']} already, and stays so.")
    with db.read() as cx:
        waits = queries.count_waiting(cx, [job["id"]]) > 0 and state != states.AWAITING_PARENTS
        failed, parent = queries.failed_with_parent(cx, [job["id"]])
    if failed and state != states.FAILED:
        raise StateError(
            f"Job {output.cute_id(job['name'], job['job_id'])} was put into {state} and FAILED again at once: its run_when "
            f"({job['run_when']}) cannot hold{parent and f', as its parent {output.one_line(parent)}'}.",
            hint="Put the parent back, and this job waits for it again; or change its run_when first.",
        )
    if waits:
        say(f"The job waits for its parents first, until its run_when ({job['run_when']}) holds.")
    return states.AWAITING_PARENTS if waits else state


def _modify_job(db: Database, word: str, attr: str, value: str) -> str:
    field = field_specs.known_field(attr)
    with db.read() as cx:
        number = queries.find_job(cx, word)
    user_actions.update_fields(db, [number], {field.name: value})
    with db.read() as cx:
        changed = queries.job(cx, number)
        apps = queries.apps(cx) if field.name == "args" else []
    for app in apps:
        if app["name"] == changed["application"]:
            warn_of("args", command_line.problems_of_args(value, app["executable"]))
    return _shown(field, changed[field.name])


def _modify_app(db: Database, name: str, attr: str, value: str) -> str:
    field = field_specs.known_field(attr, field_specs.APP_FIELD, "app")
    if field.name in command_line.FIELDS:
        value = as_program(field_specs.checked(field, value, "app"))
        warn_of_line(field.name, value)
    elif field.kind == "path" and value:
        value = field_specs.checked(field, value, "app")
        warn_of(field.name, command_line.problems_of_script(value))
    with db.write() as cx:
        number = _find_app(queries.apps(cx), name)["id"]
        site_apps.update(db, [{"id": number, field.name: value}])
        (changed,) = queries.apps(cx, number=number)
    return _shown(field, changed[field.name])


def _find_app(apps: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The application of that name, or else of that number."""
    for key in ("name", "id"):
        for app in apps:
            if str(app[key]) == name:
                return app
    known = ", ".join(app["name"] for app in apps) or "none"
    raise UnknownApp(f"App {name} not registered in local DB", hint=f"Registered are: {known}")


def _shown(field: field_specs.Field, value: Any) -> str:
    if field.kind == "environ":
        return field_specs.masked_json(value)
    return str(bool(value)) if field.kind == "flag" else str(value)


# --- rm ---------------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@click.argument("what", type=Choice(["jobs", "apps"]))
@option("--name", metavar="TEXT", cls=ConditionOption, help="All with TEXT in their name.")
@option("--id", metavar="ID", cls=ConditionOption, help=f"The one with that id (jobs: {A_JOB}; apps: the number).")
@option("--all", "everything", is_flag=True, help="All of them.")
@option("--force", is_flag=True, help="Do not ask; remove jobs that others wait for, too.")
def rm(what: str, name: str | None, id: str | None, everything: bool, force: bool) -> None:
    """Remove jobs or applications, with the jobs' history. Their working directories stay.

    A launcher that runs a removed job stops it.

    \b
    Examples:
        balsam rm jobs --name test
        balsam rm jobs --id 7df8 --force
        balsam rm apps --all
    """
    if sum((name is not None, id is not None, everything)) != 1:
        raise click.UsageError("Exactly one of --name, --id and --all is needed.")
    if name == "" or (id is not None and not id.strip()):
        raise click.UsageError("An empty text would match everything; use --all for that.")
    db = open_db()
    numbers = _doomed_jobs(db, name, id) if what == "jobs" else _doomed_apps(db, name, id)
    if not numbers:
        click.echo(f"There are no {what} to remove.")
        return
    if not force and not confirm(_question(what, len(numbers), name, id), "--force"):
        click.echo("Delete aborted")
        click.get_current_context().exit(1)
    if what == "jobs":
        with progress_of(len(numbers)) as progress:
            user_actions.delete(db, numbers, force=force, progress=progress)
    else:
        with db.write() as cx:
            app_store.delete_apps(cx, numbers)
    click.echo("Deleted.")


def _question(what: str, number: int, name: str | None, id: str | None) -> str:
    if name is not None:
        return f"PERMANENTLY remove {number} {what} matching name {name}?"
    return f"PERMANENTLY remove {what[:-1]} with ID matching {id}?" if id is not None else f"PERMANENTLY remove ALL {what}?"


def _doomed_jobs(db: Database, name: str | None, word: str | None) -> list[int]:
    with db.read() as cx:
        if word is not None:
            return [queries.find_job(cx, word)]
        numbers = queries.job_ids(cx, queries.JobFilter(name=name or ""))
    if name is not None and not numbers:
        raise NotFound(f"No jobs match name {name}")
    return numbers


def _doomed_apps(db: Database, name: str | None, number: str | None) -> list[int]:
    with db.read() as cx:
        apps = queries.apps(cx, name or "")
    if number is not None:
        apps = [_find_app(apps, number)]
    if name is not None and not apps:
        raise NotFound(f"No apps match name {name}")
    return [app["id"] for app in apps]


# --- kill -------------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@option(
    "--id", "ids", cls=SeparateOption, multiple=True, required=True, metavar="ID...",
    help=f"The job: {A_JOB} ('#37' is always a number); may be repeated.",
)  # fmt: skip
@option("--recursive", is_flag=True, help="All jobs below it, too.")
@option("--yes", is_flag=True, help="Do not ask.")
def killjob(ids: Sequence[str], recursive: bool, yes: bool) -> None:
    """Kill jobs: they become USER_KILLED and stay so. The launcher that runs one stops its processes.

    \b
    Examples:
        balsam killjob --id 7df8
        balsam killjob --id 7df8 ab58 --recursive --yes
    """
    db = open_db()
    with db.read() as cx:
        jobs = [queries.job(cx, number) for number in dict.fromkeys(queries.find_job(cx, word) for word in ids)]
    for job in jobs:
        question = f"Really kill job {output.one_line(job['name'])} {output.cute_id(job['name'], job['job_id'])} ??"
        if not yes and not confirm(question, "--yes"):
            click.echo("Kill aborted")
            click.get_current_context().exit(1)
    numbers = [job["id"] for job in jobs]
    below: list[int] = []
    if recursive:
        with db.read() as cx:
            below = graph.descendants(cx, numbers)
    with progress_of(len({*numbers, *below})) as progress:
        result = user_actions.kill(db, numbers, recursive=recursive, progress=progress)
    click.echo(_killed(result.killed))
    if result.running:
        one = "It still runs" if result.killed == 1 else "1 still runs"
        one += " until its launcher has stopped it."
        click.echo(one if result.running == 1 else f"{result.running} still run until their launchers have stopped them.")


def _killed(number: int) -> str:
    if number == 0:
        return "No job killed: there was nothing left to kill"
    return "Job killed" if number == 1 else f"{number} jobs killed"
