"""`balsam ls`, `job ls` and `app ls`: list what the active DB holds, as on the slides, or what sites hold, as a table.

`balsam ls` is the command that users type most, so this module imports no more than reading needs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import click

from ..core import display, field_specs
from ..core.clock import format_us
from ..core.errors import UnknownField
from ..db.engine.connection import Database
from ..db.query import queries, runs, select
from ..db.query.fields import JOB
from . import listing, output
from .common import COUNT, ask_sites, long_site_option, open_db, row_number, say, site_option, warn
from .group import BalsamCommand, Choice, FieldOption, Option, option
from .selection import Selection, Where, selection_options

LIMIT_VARIABLE, FIELDS_VARIABLE = "BALSAM_LS_LIMIT", "BALSAM_LS_FIELDS"
DEFAULT_LIMIT = 5000
#: The columns of the slides' tables.
JOB_TABLE = ("job_id", "name", "workflow", "application", "state")
APP_TABLE = ("id", "name", "executable", "description")
QUEUE_TABLE = (
    "scheduler_id", "project", "queue", "nodes", "wall_minutes", "scheduler_state", "job_mode", "command", "from_balsam",
)  # fmt: skip
QUEUE_HEADER = (*QUEUE_TABLE[:5], "state", "job_mode", "Command", "Submitted from Balsam?")
LIMIT_HELP = f"Maximum number of rows. [default: {LIMIT_VARIABLE}, or the newest 50 on a terminal, else {DEFAULT_LIMIT}]"


class Wanted(SimpleNamespace):
    """The options of one `ls`. (Making a NamedTuple of as many fields takes milliseconds.)"""

    chosen: Selection
    where: Where
    history: bool
    by_states: bool
    tree: bool
    verbose: bool
    all_queues: bool
    sort: str
    limit: int | None
    look: listing.Look

    @property
    def limits(self) -> tuple[int, bool]:
        """Return the maximum number of rows, and whether to show the newest ones instead of the first."""
        if self.limit is None and not os.environ.get(LIMIT_VARIABLE) and self.sort == "id" and sys.stdout.isatty():
            return listing.TERMINAL_LIMIT, True
        return self.limit or limit_from(os.environ), False


def limit_from(environ: Mapping[str, str]) -> int:
    """Return BALSAM_LS_LIMIT, or its default with a warning where it is no count."""
    text = environ.get(LIMIT_VARIABLE, "")
    if text.isascii() and text.isdigit() and 0 < len(text) < 16 and int(text) > 0:
        return int(text)
    if text:
        warn(f"{LIMIT_VARIABLE} must be a whole number of 1 or more, not {text!r}; {DEFAULT_LIMIT} is used")
    return DEFAULT_LIMIT


def columns_from(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Return the columns of the table of jobs: the slides' five and those of BALSAM_LS_FIELDS."""
    extra = [name.strip() for name in environ.get(FIELDS_VARIABLE, "").split(":") if name.strip()]
    try:
        shown = [runs.SHORT_NAMES.get(name, name) for name in extra]
        stored = iter(queries.check_columns(name for name in shown if name not in runs.OF_JOB))
        return tuple(dict.fromkeys((*JOB_TABLE, *(name if name in runs.OF_JOB else next(stored) for name in shown))))
    except UnknownField as exc:
        raise UnknownField(f"{FIELDS_VARIABLE}: {exc.message}", hint=exc.hint) from None


@click.command(cls=BalsamCommand)
@click.argument("what", type=Choice(["jobs", "apps", "wf", "queues"]), default="jobs")
@selection_options(ids=Option)
@option("--history", is_flag=True, help="Show when each job entered each state.")
@option("--by-states", is_flag=True, help="Show the jobs state by state, with their numbers.")
@option("--tree", is_flag=True, help="Show the jobs below their parents.")
@option("--verbose", is_flag=True, help="Show every field.")
@option("--all", "all_queues", is_flag=True, help="With queues: the launches that have ended, too.")
@option("--sort", cls=FieldOption, default="id", metavar="FIELD", help="Order by this field; -FIELD: in reverse.")
@option("--limit", type=COUNT, metavar="N", help=LIMIT_HELP)
@listing.output_options
def ls(what: str, chosen: Selection, **options: Any) -> None:
    """List jobs, apps, workflows (wf) or the launches in the queue (queues) of the active DB.

    All conditions must hold; of several values of one option one must, or all tags. --name matches anywhere.
    BALSAM_LS_FIELDS=FIELD:FIELD adds columns. JSON and other formats hold all that match, unless --limit is given. A job is
    stale if a parent finished again after it started.

    \b
    Examples:
        balsam ls --state FAILED --history
        balsam ls --wf test --sort -priority --limit 20
        balsam ls --by-states
        balsam ls apps --verbose
        balsam ls --json --tag run=7
        balsam ls --format csv --columns name,state,return_code
    """
    history = what == "jobs" and options["history"]
    show, kind = _KINDS["counts" if what == "jobs" and options["by_states"] and not history else what]
    look = listing.Look.of(options, kind, history=history, verbose=options["verbose"])
    db = open_db()
    with listing.paged(look):
        show(db, Wanted(chosen=chosen, where=chosen.conditions(is_name_part=True), look=look, **options))


@click.command("ls", cls=BalsamCommand)
@selection_options()
@long_site_option
@option("--by-state", "by_states", is_flag=True, help="Count the jobs of each state. With -v: of those without jobs, too.")
@option("--history", is_flag=True, help="Show when each job entered each state.")
@option("-v", "--verbose", is_flag=True, help="Show every field.")
@option("--sort", cls=FieldOption, default="", metavar="FIELD", help="Order by this field; -FIELD: in reverse.")
@option("--limit", type=COUNT, metavar="N", help="Maximum number of jobs. [default: the newest 50 on a terminal]")
@listing.output_options
def job_ls(
    chosen: Selection, site: str, by_states: bool, history: bool, verbose: bool, sort: str, limit: int | None, **options: Any
) -> None:
    """List jobs of one or more sites.

    All conditions must hold; of several values of one option one must, or all tags.

    \b
    Examples:
        balsam job ls --tag workflow=hello
        balsam job ls --site all --by-state
        balsam job ls --app Hello --state FAILED --history
        balsam job ls --format csv --columns id,name,state
    """
    kind = listing.COUNTS if by_states and not history else listing.JOBS
    look = listing.Look.of(options, kind, history=history, verbose=verbose)
    jobs = listing.SiteJobs(lambda question: ask_sites(site, question), chosen.conditions(), sort, limit)
    with listing.paged(look):
        number = jobs.show(look, by_states=by_states, history=history, verbose=verbose)
    if not number and not look.is_whole:
        say(f"No job matches on {', '.join(jobs.sites)}.")


@click.command("ls", cls=BalsamCommand)
@site_option
@option("-v", "--verbose", is_flag=True, help="Show every field, with the template or the file of the Python class.")
@listing.output_options
def app_ls(site: str, verbose: bool, **options: Any) -> None:
    """List the applications of one or more sites: those of `balsam app` and those in Python alike.

    \b
    Examples:
        balsam app ls
        balsam app ls --site all --verbose
        balsam app ls --json
    """
    look = listing.Look.of(options, listing.APPS, verbose=verbose)
    answers = ask_sites(site, lambda one: one.select("app"))
    found = [listing.app_object(app, entry.name) for entry, apps in answers for app in apps]
    with listing.paged(look):
        if verbose and not look.form:
            _print(line for app in found for line in (*output.yaml_lines(_app_form(app)), "----"))
        else:
            listing.show(look, found)
    if not found and not look.is_whole:
        say(f"No application is on {', '.join(entry.name for entry, _ in answers)}.")


#: What the form of an application shows only if it has it.
_SOMETIMES = ("preprocess", "postprocess", "envscript", "handle_error", "handle_timeout")


def _app_form(app: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the workshop's form of an application, in its order."""
    from ..db.query.text_forms import source_of

    program = {"command": "executable", "template": "command_template"}.get(app["kind"])
    shown = {name: app[name] for name in ("id", "name", "site", "description", "kind")}
    shown.update({program: app[program]} if program else {})
    shown.update({"source": source_of(app["definition"])} if app["definition"] else {})
    shown.update(parameters=app["parameters"])
    shown.update({"environment_variables": app["environ_vars"]} if app["environ_vars"] else {})
    return {**shown, **{name: app[name] for name in _SOMETIMES if app[name]}}


# --- jobs, as the slides print them -----------------------------------------------------------------------------------


def _jobs(db: Database, wanted: Wanted) -> None:
    select.sorting(JOB, wanted.sort)
    if wanted.look.form:
        number = _objects(db, wanted)
    elif wanted.history:
        number = _histories(db, wanted)
    elif wanted.tree:
        number = _tree(db, wanted)
    elif wanted.by_states:
        number = _by_states(db, wanted)
    else:
        number = (_forms if wanted.verbose else _table)(db, wanted)
    if not number and not wanted.look.is_whole:
        say("No jobs found matching query")


def _objects(db: Database, wanted: Wanted) -> int:
    """Print jobs in another format than the slides', as `job ls` does."""
    from ..db.engine import registry
    from ..sites.local import LocalSite

    entry, order = registry.at(db.directory), wanted.sort if wanted.sort != "id" else ""
    is_limited = wanted.look.form == "table" and os.environ.get(LIMIT_VARIABLE)
    limit = wanted.limit or (limit_from(os.environ) if is_limited else None)
    jobs = listing.SiteJobs(lambda question: [(entry, question(LocalSite(entry, db)))], wanted.where, order, limit)
    return jobs.show(wanted.look, by_states=wanted.by_states, history=wanted.history, verbose=wanted.verbose)


def _few(db: Database, wanted: Wanted, columns: Sequence[str]) -> tuple[list[tuple[Any, ...]], int]:
    """Return the rows to show, and how many more match."""
    limit, are_newest = wanted.limits
    with db.read() as cx:
        rows = select.job_rows(cx, wanted.where, columns, "-id" if are_newest else wanted.sort, limit)
        more = select.count_jobs(cx, wanted.where) - len(rows) if len(rows) == limit else 0
    return rows[::-1] if are_newest else rows, more


def _print(lines: Iterable[str], more: int = 0) -> None:
    """Print the lines, and how many more jobs match."""
    rest = [f"({more} more BalsamJobs not shown...)"] if more > 0 else []
    sys.stdout.write("".join(f"{line}\n" for line in (*lines, *rest)))


def _table(db: Database, wanted: Wanted) -> int:
    columns = columns_from(os.environ)
    rows, more = _few(db, wanted, _expressions(columns))
    if rows:
        _print(_job_table(columns, rows), more)
        _explain_stale([row[-1] for row in rows])
    return len(rows)


def _expressions(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns of a row of `_job_table`."""
    return (*(runs.OF_JOB[name][0] if name in runs.OF_JOB else name for name in columns), queries.STALE)


_HEADINGS = {full: short for short, full in runs.SHORT_NAMES.items()}
#: How the table shows what is known of the last run; "" where it is unknown.
_SHOWN = {
    "started": format_us,
    "ended": format_us,
    "runtime_s": display.duration,
    "max_memory_bytes": display.size,
}


def _job_table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return the lines for rows of these columns, followed by `queries.STALE`."""
    program, state = columns.index("application"), columns.index("state")
    environ = columns.index("environ_vars") if "environ_vars" in columns else None
    of_run = [(place, _SHOWN[name]) for place, name in enumerate(columns) if name in _SHOWN]
    header = [_HEADINGS.get(name, name) for name in columns]
    shown = []
    for *row, is_stale in rows:
        for place, text in of_run:
            row[place] = "" if row[place] is None else text(row[place])
        if environ is not None:
            row[environ] = field_specs.masked_json(row[environ])
        row[program] = output.basenames(row[program])
        row[state] += listing.STALE_MARK * is_stale
        shown.append(row)
    return output.table(header, shown, output.is_coloured(sys.stdout))


def _explain_stale(marks: Iterable[int]) -> None:
    number = sum(marks)
    if number:
        these = "1 job is" if number == 1 else f"{number} jobs are"
        say(f"{these} stale: a parent finished again after the start. `balsam rerun --id ID` runs a stale job again.")


def _forms(db: Database, wanted: Wanted) -> int:
    from ..db.engine import directories
    from ..db.query import text_forms

    rows, more = _few(db, wanted, (*queries.JOB_COLUMNS, queries.STALE))
    texts, data = [], os.path.join(db.directory, directories.DATA)
    with db.read() as cx:
        programs = {app["name"]: text_forms.program_of(app) for app in select.apps(cx)}
        for row in rows:
            job = dict(zip(queries.JOB_COLUMNS, row))
            job["state"] += listing.STALE_MARK * row[-1]
            parents, _ = queries.relatives(cx, job["id"])
            text = text_forms.job_form(job, parents, programs.get(job["application"]), data)
            texts.append(output.many_lines(text) + "\n")
    _print(texts, more)
    return len(rows)


def _histories(db: Database, wanted: Wanted) -> int:
    from ..db.query import edits  # most listings do not need it

    rows, more = _few(db, wanted, ("id", "job_id", "name"))
    with db.read() as cx:
        ran = runs.runs_of_each(cx, (row[0] for row in rows))
        texts = [
            output.history(
                name,
                job_id,
                queries.history(cx, number),
                edits.edits(cx, [number]),
                [run.as_row() for run in ran.get(number, ())],
            )
            for number, job_id, name in rows
        ]
    _print(texts, more)
    return len(rows)


def _by_states(db: Database, wanted: Wanted) -> int:
    columns = columns_from(os.environ)
    with db.read() as cx:
        counts = select.count_states(cx, wanted.where)
    marks: list[int] = []
    # In the slides' order, which was a dictionary's: RUN_DONE before RUNNING.
    for state in sorted(counts, key=lambda name: name.replace("_", "")):
        rows, more = _few(db, Wanted(**{**vars(wanted), "where": {**wanted.where, "state": state}}), _expressions(columns))
        heading = f"{state} ({len(rows) + more} BalsamJobs)"
        _print([heading, "-" * len(heading), *_job_table(columns, rows)], more)
        _print([""])
        marks += [row[-1] for row in rows]
    _explain_stale(marks)
    return len(marks)


# --- jobs below their parents -----------------------------------------------------------------------------------------


def _tree(db: Database, wanted: Wanted) -> int:
    with db.read() as cx:
        matching = select.job_ids(cx, wanted.where, None, wanted.sort)
        places, omitted = _Forest(queries.edges(cx)).places(matching, wanted.limit or limit_from(os.environ))
        names = queries.columns_of(cx, {job for job, _, _ in places}, ("name", "job_id", queries.REMOTE_PARENTS))
    more = [f"(Omitted {omitted} jobs from display...)"] if omitted else []
    _print([*(_branch(depth, is_known, *names[job]) for job, depth, is_known in places), *more])
    return len(places)


def _branch(depth: int, is_known: bool, name: str, job_id: str, remote_parents: str) -> str:
    known = " (its children: see above)" if is_known else ""
    there = ", ".join(output.one_line(f"{one['site']}#{one['id']} {one['state']}") for one in json.loads(remote_parents))
    waits = f" (below {there})" if there else ""
    return f"{'|     ' * depth}{output.one_line(name):10} {output.cute_id(name, job_id)}{known}{waits}"


#: A line of the tree: a job's number, its depth, and whether its children are shown further up.
_Place = tuple[int, int, bool]


class _Forest:
    """Jobs and their children; a job with several parents is shown below each of them, its own children only once."""

    def __init__(self, edges: Sequence[tuple[int, int]]) -> None:
        self._children: dict[int, list[int]] = {}
        self._parents: dict[int, list[int]] = {}
        for parent, child in edges:
            self._children.setdefault(parent, []).append(child)
            self._parents.setdefault(child, []).append(parent)

    def places(self, matching: Sequence[int], limit: int) -> tuple[list[_Place], int]:
        """Return at most `limit` lines, and the number of matching jobs that have none."""
        listed = set(matching)
        roots = [job for job in matching if listed.isdisjoint(self._parents.get(job, ()))]
        found: list[_Place] = []
        shown: set[int] = set()
        waiting = [(job, 0) for job in reversed(roots)]
        while waiting and len(found) < limit:
            job, depth = waiting.pop()
            children = self._children.get(job, ())
            found.append((job, depth, job in shown and bool(children)))
            if job not in shown:
                waiting += [(child, depth + 1) for child in reversed(children)]
            shown.add(job)
        return found, len(listed - shown)


# --- apps, workflows, queues ------------------------------------------------------------------------------------------


def _apps(db: Database, wanted: Wanted) -> None:
    from ..db.query import text_forms

    numbers = {word: row_number(word) for word in wanted.chosen.ids}
    for word, number in numbers.items():
        if number is None:
            raise click.BadParameter(f"an application has a number, not {word!r}.", param_hint="'--id'")
    names = wanted.chosen.values("name")
    where = {**({"name__icontains": names[-1]} if names else {}), **({"id": list(numbers.values())} if numbers else {})}
    with db.read() as cx:
        apps = select.apps(cx, where, "", 0, wanted.limit)
    if wanted.look.form:
        site = _site_name(db)
        listing.show(wanted.look, (listing.app_object(app, site) for app in apps))
    elif apps and wanted.verbose:
        _print(output.many_lines(text_forms.app_form(app)) + "\n" for app in apps)
    elif apps:  # a template is no list of paths
        programs = [app["command_template"] or output.basenames(text_forms.program_of(app)) for app in apps]
        rows = [(app["id"], app["name"], program, app["description"]) for app, program in zip(apps, programs)]
        _print(output.table(APP_TABLE, rows))
    elif not wanted.look.is_whole:
        say("No apps found matching query")


def _site_name(db: Database) -> str:
    from ..db.engine import registry

    return registry.at(db.directory).name


def _workflows(db: Database, wanted: Wanted) -> None:
    exact = next(iter((*wanted.chosen.values("workflow"), *wanted.chosen.values("name"))), "")
    with db.read() as cx:
        names = [name for name in queries.workflows(cx) if name or not exact]
    if exact:
        names = [name for name in names if name == exact] or [name for name in names if exact.lower() in name.lower()]
    if wanted.look.form:
        listing.show(wanted.look, ({"workflow": name} for name in names))
    elif not names:
        say(f"No workflow matching {exact}" if exact else "No workflows found")
    elif wanted.tree or wanted.verbose or names == [exact]:
        show = _tree if wanted.tree else _forms if wanted.verbose else _table
        for name in names:
            heading = output.one_line(name)
            _print([heading, "-" * len(heading)])
            show(db, Wanted(**{**vars(wanted), "where": {"workflow": name}}))
            _print([""])
    else:
        _print(["Workflows", "-" * 9, *map(output.one_line, names)])


def _queues(db: Database, wanted: Wanted) -> None:
    """Print the launches. Asks the scheduler, once for all of them."""
    from ..sites import batch_jobs

    where = {} if wanted.all_queues else {"state": batch_jobs.ACTIVE_STATES}
    site = _site_name(db)
    rows = [listing.batch_job_object(row, site) for row in batch_jobs.select(db, where, "-id", 0, wanted.limit)[::-1]]
    if wanted.look.form:
        listing.show(wanted.look, rows)
    elif not rows:
        say("No queued jobs detected")
    elif wanted.verbose:
        from pprint import pformat

        _print(f"Qlaunch {pformat({name: row[name] for name in listing.BATCH_JOB_KEYS}, indent=4)}\n" for row in rows)
    else:
        _print(_launch_table(rows, wanted.all_queues))


def _launch_table(rows: Sequence[Mapping[str, Any]], ended: bool) -> list[str]:
    more = ("exit_code", "reason", "log") if ended else ("reason",) if any(row["reason"] for row in rows) else ()
    shown = [
        {
            **row,
            "command": os.path.basename(row["command"]),
            "reason": listing.first_line(row["reason"]),
            "scheduler_state": listing.with_tries(row["scheduler_state"], row),
        }
        for row in rows
    ]
    return output.table((*QUEUE_HEADER, *more), [[row[name] for name in (*QUEUE_TABLE, *more)] for row in shown])


_KINDS: dict[str, tuple[Callable[[Database, Wanted], None], listing.ObjectKind]] = {
    "jobs": (_jobs, listing.ObjectKind(listing.JOB_KEYS, JOB_TABLE)),
    "counts": (_jobs, listing.COUNTS),
    "apps": (_apps, listing.APPS),
    "wf": (_workflows, listing.WORKFLOWS),
    "queues": (_queues, listing.BATCH_JOBS),
}
