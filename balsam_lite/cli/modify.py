"""`balsam modify`, `rerun` and `killjob`, each also as `balsam job …`, and `dep`: change, run again, kill or link jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ..core import command_line, field_specs, states
from ..core.clock import SystemClock
from ..core.errors import StateError, UnknownApp
from ..db.engine.connection import Database
from ..db.query import queries
from ..db.query.filters import all_of
from ..db.store import graph, user_actions
from ..sites import apps as site_apps
from . import completion, output
from .apps import as_program, warn_of, warn_of_line
from .common import confirm_or_end, long_site_option, one_site, open_db, pairs, say
from .group import BalsamCommand, Choice, Option, WordsRewriter, option
from .selection import ChosenJobs, Selection, dry_run_option, job_of_other_site, selection_options


class ModifyCommand(BalsamCommand):
    """A command with the arguments [ID] ATTR VALUE. VALUE may look like an option, and conditions come before ATTR."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        with formatter.section("States"):
            formatter.write_dl(list(states.DESCRIPTIONS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if ctx.resilient_parsing else self._in_order(ctx, args))

    def _in_order(self, ctx: click.Context, args: Sequence[str]) -> list[str]:
        """Return the options, and after `--` the arguments, of which the word after ATTR is always VALUE."""
        rewriter, rest = WordsRewriter(ctx, self.get_params(ctx)), list(args)
        options: list[str] = []
        arguments: list[str] = []
        before_attr = 1  # ID
        while rest:
            if len(arguments) == before_attr + 1:
                arguments.append(rest.pop(0))
            elif rest[0] == "--":
                arguments += rest[1:]
                break
            else:
                taken = rewriter.take(rest)
                if not taken[0].startswith("-") or len(taken[0]) == 1:
                    arguments += taken
                    continue
                options += taken
                if not arguments and taken[0].partition("=")[0] not in ("--type", "--site", "-h", "--help"):
                    before_attr = 0
        return [*options, "--", *arguments]


@click.command(cls=ModifyCommand)
@click.argument("words", nargs=-1, metavar="[ID] ATTR VALUE", shell_complete=completion.jobs)
@option("--type", "kind", type=Choice(["jobs", "apps"]), default="jobs", show_default=True, help="Kind of ID.")
@selection_options(ids=Option)
@long_site_option
def modify(words: Sequence[str], kind: str, chosen: Selection, site: str) -> None:
    """Set the field ATTR of one job, of all jobs that match, or of an application to VALUE.

    ID is a job's number, a unique prefix of its id, or its name ('#37' is always the number); or the name or number of an
    application. Conditions come before ATTR and take the place of ID. Objects are given as JSON. Without ATTR and VALUE,
    `balsam job modify --state STATE` sets the state.

    \b
    Examples:
        balsam modify '#37' priority 5
        balsam modify fab5 state RESTART_READY
        balsam modify fab5 auto_timeout_retry False
        balsam modify fab5 data '{"step": 2}'
        balsam modify --state FAILED --wf scan wall_time_minutes 30
        balsam modify --type apps say-hello executable "echo Hi,"
    """
    if len(words) != (2 if chosen else 3):
        raise click.UsageError("Give ID ATTR VALUE, or conditions such as --name and --state and then ATTR VALUE.")
    *named, attr, value = words
    if chosen and kind == "apps":
        raise click.UsageError("Conditions choose jobs. Name the application as ID.")
    if chosen or (site and kind == "jobs"):
        _modify_at_sites(chosen if chosen else Selection({"ids": tuple(named)}), site, attr, value)
        return
    db = open_db()
    if kind == "apps":
        shown = _modify_app(db, named[0], attr, value)
    elif attr == "state":
        shown = _set_state(db, named[0], value)
    else:
        shown = _modify_job(db, named[0], attr, value)
    click.echo(f"{kind[:-1]} {attr} changed to:  {output.many_lines(shown)}")


@click.command(cls=ModifyCommand)
@click.argument("words", nargs=-1, metavar="[ATTR VALUE]")
@option("-s", "--state", metavar="STATE", shell_complete=completion.states, help="State to put the jobs into.")
@selection_options(without=("wanted",), ids=Option)
@long_site_option
def job_modify(words: Sequence[str], state: str | None, chosen: Selection, site: str) -> None:
    """Put all matching jobs of one or more sites into another state, or set their field ATTR to VALUE.

    Jobs that wait for them, or failed because of them, are updated accordingly. If a launcher holds one of them, none of its
    site is changed. Another name of `balsam modify`, with --state for the new state.

    \b
    Examples:
        balsam job modify --id 5 --id 6 --state RESTART_READY
        balsam job modify --tag workflow=hello --state RESTART_READY --site all
        balsam job modify --app Hello wall_time_min 30
    """
    if (state is None) == (not words) or len(words) not in (0, 2):
        raise click.UsageError("Give either --state STATE or, after the conditions, ATTR VALUE.")
    if not chosen:
        raise click.UsageError("Which jobs? Give conditions, such as --id, --tag and --app.")
    attr, value = words or ("state", state)
    _modify_at_sites(chosen, site, attr, str(value))


def _modify_at_sites(chosen: Selection, site: str, attr: str, value: str) -> None:
    """Set a field of all jobs that match, and print how many each site had."""
    changes: dict[str, Any] = {attr: value}
    if attr == "state":
        changes = {"state": states.check_state(value), "state_data": {"message": user_actions.USER_CHANGED}}
    found = ChosenJobs.find(site, chosen)
    for there, _, changed in found.act(lambda one: one.update_where("job", found.where, changes)):
        if attr == "state":
            said = f"{output.plural(changed, 'job')} of {there.entry.name} put into {value}"
            if value != states.AWAITING_PARENTS and "state" not in str(found.where):  # so that they still match afterwards
                waiting = there.count("job", all_of(found.where, {"state": states.AWAITING_PARENTS}))
                said += f"; {waiting} waiting for parents" * bool(waiting)
        else:
            said = f"{attr} of {output.plural(changed, 'job')} of {there.entry.name} changed to {output.one_line(value)}"
        click.echo(f"{said}.")


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
    """Return the application of that name, or else of that number. Raises UnknownApp."""
    for key in ("name", "id"):
        for app in apps:
            if str(app[key]) == name:
                return app
    raise UnknownApp.named(name, [app["name"] for app in apps])


def _shown(field: field_specs.Field, value: Any) -> str:
    if field.kind == "environ":
        return field_specs.masked_json(value)
    return str(bool(value)) if field.kind == "flag" else str(value)


#: The jobs that `rerun` and `killjob` change.
_UNHELD, _UNENDED = {"lease__isnull": True}, {"state__in": [s for s in states.STATES if s not in states.END_STATES]}

# --- run again ---------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@selection_options()
@option("--downstream", is_flag=True, help="Also all jobs that depend on those: their children, and so on.")
@option("--set", "changes", multiple=True, metavar="FIELD=VALUE", help="Change a field of all that match; may be repeated.")
@option(
    "--to", type=Choice([states.CREATED, states.RESTART_READY]),
    help="State to put them into. [default: RESTART_READY if it has run before, else CREATED]",
)  # fmt: skip
@long_site_option
@option("-y", "--yes", is_flag=True, help="Do not ask.")
@dry_run_option
def rerun(
    *, chosen: Selection, site: str, downstream: bool, changes: Sequence[str], to: str | None, yes: bool, dry_run: bool
) -> None:
    """Put all matching jobs back so that a launcher runs them again, with changed fields if --set is given.

    All conditions must hold; of several values of one option one must, or all tags. Jobs held by a launcher are left alone.
    CREATED repeats the staging and the scripts, too; RESTART_READY runs only the program. A job waits for those of its parents
    that run again. Children that are JOB_FINISHED stay so unless they match or --downstream is given; `balsam ls` marks them as
    stale.

    \b
    Examples:
        balsam rerun --state FAILED --set wall_time_minutes=30
        balsam rerun --state FAILED --wf test --tag size=big --to CREATED --yes
        balsam rerun --id prepare --downstream
        balsam job rerun --site all --tag workflow=hello --state FAILED
    """
    if not chosen:
        raise click.UsageError("Which jobs? Give at least one condition, such as --state, --name, --id, --wf, --app and --tag.")
    values = pairs(changes, "--set")
    field_specs.check_job(values)
    found = ChosenJobs.find(site, chosen)
    below = sum(there.count_downstream(found.where) for there, _ in found.sites) if downstream else 0
    if dry_run:
        found.say_dry_run("run again", _UNHELD, f" and {output.plural(below, 'job')} below" * downstream)
        return
    if not yes:
        confirm_or_end(f"Run {output.plural(found.total + below, 'job')}{found.of_sites} again?", "Rerun")
    code = 0
    for _, of_site, done in found.act(lambda one: one.rerun(found.where, to, values, downstream), below):
        number = done["jobs"]
        wait = f", {done['waiting']} of them after their parents" if done["waiting"] else ""
        again = f"run again{wait}" if number != 1 else f"runs again{', after its parents' * bool(done['waiting'])}"
        click.echo(f"{number} job{'s' * (number != 1)}{of_site} {again}")
        if done["held"]:
            click.echo(f"{done['held']}{of_site} left alone: a launcher holds them")
        if done["failed"]:
            parent = f": parent {output.one_line(done['parent'])}" if done["parent"] else ""
            say(f"{done['failed']}{of_site} FAILED again at once, as their run_when cannot hold{parent}.")
            say("Once their parents are put back, they run too; --downstream puts back all jobs below a parent.")
            code = code if number else 1
    click.get_current_context().exit(code)


# --- kill -------------------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@selection_options()
@option("--recursive", is_flag=True, help="Kill all jobs that depend on them, too.")
@long_site_option
@option("-y", "--yes", is_flag=True, help="Do not ask.")
@dry_run_option
def killjob(chosen: Selection, site: str, recursive: bool, yes: bool, dry_run: bool) -> None:
    """Kill jobs: they become USER_KILLED and stay so. The launcher that runs one stops its processes.

    \b
    Examples:
        balsam killjob --id 7df8
        balsam killjob --id 7df8 ab58 --recursive --yes
        balsam killjob --wf scan --state 'RUN*'
        balsam job kill --site cluster --tag workflow=hello
    """
    if not chosen:
        raise click.UsageError("Which jobs? Give at least one condition, such as --id, --name, --state, --wf, --app and --tag.")
    found = ChosenJobs.find(site, chosen)
    if dry_run:
        below = sum(there.count_downstream(found.where) for there, _ in found.sites) if recursive else 0
        found.say_dry_run(
            "kill", _UNENDED, f" and those of {output.plural(below, 'job')} below that have not ended" * recursive
        )
        return
    for what in [] if yes else _named(found, chosen) or [f"{output.plural(found.total, 'job')}{found.of_sites}"]:
        confirm_or_end(f"Really kill {what} ??", "Kill")
    below = sum(there.count_downstream(found.where) for there, _ in found.sites) if recursive else 0
    for _, of_site, done in found.act(lambda one: one.kill(found.where, recursive), below):
        killed, running = done["killed"], done["running"]
        click.echo(_killed(killed, of_site))
        if running:
            one = "It still runs" if killed == 1 else "1 still runs"
            one += " until its launcher has stopped it."
            click.echo(one if running == 1 else f"{running} still run until their launchers have stopped them.")


def _named(found: ChosenJobs, chosen: Selection) -> list[str]:
    """Return each job by its name and id if --id named all of them."""
    if len(chosen.ids) != found.total:
        return []
    named = []
    for there, _ in found.sites:
        of_site = f" of {output.one_line(there.entry.name)}" * bool(found.of_sites)
        for job in there.page(found.where, ("name", "job_id")):
            named.append(f"job {output.one_line(job['name'])} {output.cute_id(job['name'], job['job_id'])}{of_site}")
    return named


def _killed(number: int, of_site: str) -> str:
    if number == 0:
        return f"No job{of_site} killed: there was nothing left to kill"
    return f"Job{of_site} killed" if number == 1 else f"{number} jobs{of_site} killed"


# --- dependencies -----------------------------------------------------------------------------------------------------


@click.command(cls=BalsamCommand)
@click.argument("parent", shell_complete=completion.jobs)
@click.argument("child", shell_complete=completion.jobs)
def dep(parent: str, child: str) -> None:
    """Let the job CHILD wait until the job PARENT is finished.

    Both are numbers, prefixes of ids, or names; each must fit one job only. '#37' is always a number. PARENT can be a job of
    another site, SITE#NUMBER.

    \b
    Examples:
        balsam dep 7df8 ab58
        balsam dep prepare simulate
        balsam dep 'theta#12' simulate
    """
    there = job_of_other_site(one_site(""), parent) if "#" in parent[1:] else None
    db = open_db()
    with db.read() as cx:  # a name may take a while to find: not in a write transaction
        above = None if there else queries.job(cx, queries.find_job(cx, parent))
        below = queries.job(cx, queries.find_job(cx, child))
    if there:
        from ..sites import remote_parents

        remote_parents.add_dependency(one_site(""), below["id"], *there)
        click.echo(f"Created link {output.one_line(parent)} --> {output.cute_id(below['name'], below['job_id'])}")
    elif above:
        with db.write() as cx:
            graph.add_dependency(cx, above["id"], below["id"], SystemClock.now_us())
        click.echo(output.new_link(above, below))
