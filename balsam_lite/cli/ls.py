"""`balsam ls`: what is in the DB. The command that is typed most, so it imports no more than reading needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import click

from ..core import field_specs, states
from ..core.errors import UnknownField
from ..db.engine.connection import Database
from ..db.query import queries, select
from ..db.query.filters import Where
from . import listing, output
from .common import A_JOB, count, open_db, pairs, row_number, say, warn
from .group import BalsamCommand, Choice, ConditionOption, FieldOption, option

if TYPE_CHECKING:
    import sqlite3

LIMIT_VARIABLE, FIELDS_VARIABLE = "BALSAM_LS_LIMIT", "BALSAM_LS_FIELDS"
DEFAULT_LIMIT = 5000
#: Rows of a table of jobs on a terminal, the newest ones.
TERMINAL_LIMIT = 50
JOB_TABLE = ("job_id", "name", "workflow", "application", "state")
APP_TABLE = ("id", "name", "executable", "description")
QUEUE_TABLE = (
    "scheduler_id",
    "project",
    "queue",
    "nodes",
    "wall_minutes",
    "scheduler_state",
    "job_mode",
    "command",
    "from_balsam",
)
QUEUE_HEADER = (*QUEUE_TABLE[:5], "state", "job_mode", "Command", "Submitted from Balsam?")
LIMIT_HELP = (
    f"Show N rows at most. [default: {LIMIT_VARIABLE}, or the newest {TERMINAL_LIMIT} on a terminal, else {DEFAULT_LIMIT}]"
)


class Wanted(SimpleNamespace):
    """The options of one `ls`. (Making a NamedTuple of as many fields takes milliseconds.)"""

    name: str
    id: tuple[str, ...]
    state: tuple[str, ...]
    wf: str
    app: str
    tag: tuple[str, ...]
    history: bool
    by_states: bool
    tree: bool
    verbose: bool
    all_queues: bool
    sort: str
    limit: int | None
    look: listing.Look

    def where(self) -> dict[str, Any]:
        """Return the conditions on jobs."""
        terms = {
            "name__icontains": self.name,
            "workflow__icontains": self.wf,
            "application__icontains": self.app,
            "which": list(self.id),
            "state": list(map(states.check_state, self.state)),
            "tags": pairs(self.tag, "--tag"),
        }
        return {name: value for name, value in terms.items() if value}

    @property
    def limits(self) -> tuple[int, bool]:
        """The number of rows to show at most, and whether these are the newest ones instead of the first."""
        if self.limit is None and not os.environ.get(LIMIT_VARIABLE) and self.sort == "id" and sys.stdout.isatty():
            return TERMINAL_LIMIT, True
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
        return tuple(dict.fromkeys((*JOB_TABLE, *queries.check_columns(extra))))
    except UnknownField as exc:
        raise UnknownField(f"{FIELDS_VARIABLE}: {exc.message}", hint=exc.hint) from None


@click.command(cls=BalsamCommand)
@click.argument("what", type=Choice(["jobs", "apps", "wf", "queues"]), default="jobs")
@option("--name", cls=ConditionOption, default="", metavar="TEXT", help="Only those with TEXT in their name.")
@option("--id", multiple=True, metavar="ID", help=f"Only those that ID fits: {A_JOB}; '#37' is a number. May be repeated.")
@option("--state", multiple=True, metavar="STATE", help="Only jobs in that state; may be repeated.")
@option(
    "--wf", "--workflow", cls=ConditionOption, default="", metavar="TEXT", help="Only jobs whose workflow has TEXT in its name."
)
@option(
    "--app",
    "--application",
    cls=ConditionOption,
    default="",
    metavar="TEXT",
    help="Only jobs whose application has TEXT in its name.",
)
@option("--tag", multiple=True, metavar="KEY=VALUE", help="Only jobs with that tag; may be repeated.")
@option("--history", is_flag=True, help="Show when each job entered each state.")
@option("--by-states", is_flag=True, help="Show the jobs state by state, with their numbers.")
@option("--tree", is_flag=True, help="Show the jobs below their parents.")
@option("--verbose", is_flag=True, help="Show every field.")
@option("--all", "all_queues", is_flag=True, help="With queues: the launches that have ended, too.")
@option("--sort", cls=FieldOption, default="id", metavar="FIELD", help="Order by that field; -FIELD: from the end.")
@option("--limit", type=int, callback=count, metavar="N", help=LIMIT_HELP)
@listing.output_options
def ls(what: str, **options: Any) -> None:
    """List jobs, apps, workflows (wf) or the launches in the queue (queues).

    All conditions must hold at once; of several --state, or several --id, one must. BALSAM_LS_FIELDS=FIELD:FIELD adds
    columns. JSON and other formats hold all that match, unless --limit is given. A job is stale if a parent finished again
    after it started.

    \b
    Examples:
        balsam ls --state FAILED --history
        balsam ls --wf test --sort -priority --limit 20
        balsam ls --by-states
        balsam ls apps --verbose
        balsam ls --json --tag run=7
        balsam ls --format csv --columns name,state,return_code
    """
    show, keys = _KINDS[what]
    look = listing.Look.of(options, keys, what == "jobs" and options["history"])
    show(open_db(), Wanted(look=look, **options))


# --- jobs -------------------------------------------------------------------------------------------------------------


def _jobs(db: Database, wanted: Wanted) -> None:
    only = wanted.where()
    queries.check_columns([wanted.sort.lstrip("-")])
    is_plain = not wanted.look.form
    if wanted.history:
        found = _histories(db, wanted, only) if is_plain else _history_objects(db, wanted, only)
    elif wanted.tree:
        found = _tree(db, wanted, only) if is_plain else _objects(db, wanted, only)
    elif wanted.by_states:
        found = _by_states(db, wanted, only) if is_plain else _count_states(db, wanted, only)
    elif not is_plain:
        found = _objects(db, wanted, only)
    else:
        found = (_forms if wanted.verbose else _table)(db, wanted, only)
    if not found:
        say("No jobs found matching query")


def _few(db: Database, wanted: Wanted, only: Where, columns: Sequence[str]) -> tuple[list[tuple[Any, ...]], int]:
    """Return the rows to show, and how many more match."""
    limit, are_newest = wanted.limits
    with db.read() as cx:
        rows = select.job_rows(cx, only, columns, "-id" if are_newest else wanted.sort, limit)
        more = select.count_jobs(cx, only) - len(rows) if len(rows) == limit else 0
    return rows[::-1] if are_newest else rows, more


def _print(lines: Iterable[str], more: int = 0) -> None:
    """Print the lines, and how many jobs are not among them."""
    told = [f"({more} more BalsamJobs not shown...)"] if more > 0 else []
    sys.stdout.write("".join(f"{line}\n" for line in (*lines, *told)))


def _table(db: Database, wanted: Wanted, only: Where) -> int:
    columns = columns_from(os.environ)
    rows, more = _few(db, wanted, only, (*columns, queries.STALE))
    if rows:
        _print(_job_table(columns, rows), more)
        _explain_stale(row[-1] for row in rows)
    return len(rows)


def _job_table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return the lines for rows of these columns, followed by `queries.STALE`."""
    program, state = columns.index("application"), columns.index("state")
    environ = columns.index("environ_vars") if "environ_vars" in columns else None
    shown = []
    for *row, is_stale in rows:
        if environ is not None:
            row[environ] = field_specs.masked_json(row[environ])
        row[program] = output.basenames(row[program])
        row[state] += listing.STALE_MARK * is_stale
        shown.append(row)
    return output.table(columns, shown, output.is_coloured(sys.stdout))


def _explain_stale(marks: Iterable[int]) -> None:
    number = sum(marks)
    if number:
        these = "1 job is" if number == 1 else f"{number} jobs are"
        say(f"{these} stale: a parent finished again after the start. `balsam rerun --id ID` runs a stale job again.")


def _forms(db: Database, wanted: Wanted, only: Where) -> int:
    from ..db.query.text_forms import program_of

    rows, more = _few(db, wanted, only, (*queries.JOB_COLUMNS, queries.STALE))
    texts = []
    with db.read() as cx:
        programs = {app["name"]: program_of(app) for app in queries.apps(cx)}
        for row in rows:
            job = dict(zip(queries.JOB_COLUMNS, row))
            job["state"] += listing.STALE_MARK * row[-1]
            parents, _ = queries.relatives(cx, job["id"])
            texts.append(form(db, job, parents, programs.get(job["application"])) + "\n")
    _print(texts, more)
    return len(rows)


def form(db: Database, job: Mapping[str, Any], parents: Sequence[str], executable: str | None) -> str:
    """Return one job as the slides print it."""
    from ..db.engine import directories
    from ..db.query import text_forms

    return output.many_lines(text_forms.job_form(job, parents, executable, os.path.join(db.directory, directories.DATA)))


def _histories(db: Database, wanted: Wanted, only: Where) -> int:
    rows, more = _few(db, wanted, only, ("id", "job_id", "name"))
    with db.read() as cx:
        texts = [output.history(name, job_id, queries.history(cx, number)) for number, job_id, name in rows]
    _print(texts, more)
    return len(rows)


def _by_states(db: Database, wanted: Wanted, only: Where) -> int:
    columns = columns_from(os.environ)
    marks: list[int] = []
    for state, _ in _state_counts(db, only):
        rows, more = _few(db, wanted, {**only, "state": state}, (*columns, queries.STALE))
        heading = f"{state} ({len(rows) + more} BalsamJobs)"
        _print([heading, "-" * len(heading), *_job_table(columns, rows)], more)
        _print([""])
        marks += [row[-1] for row in rows]
    _explain_stale(marks)
    return len(marks)


def _state_counts(db: Database, only: Where) -> list[tuple[str, int]]:
    with db.read() as cx:
        counts = select.count_states(cx, only)
    # In the slides' order, which was a dictionary's: RUN_DONE before RUNNING.
    return sorted(counts.items(), key=lambda count: count[0].replace("_", ""))


# --- jobs in other formats ----------------------------------------------------------------------------------------------


def _count_states(db: Database, wanted: Wanted, only: Where) -> int:
    counts = ({"state": state, "jobs": number} for state, number in _state_counts(db, only))
    return listing.show(wanted.look, listing.COUNT_KEYS, listing.COUNT_KEYS, counts) or wanted.look.is_whole


def _objects(db: Database, wanted: Wanted, only: Where) -> int:
    """Print jobs as objects, with --tree the UUIDs of their parents and children, too."""
    keys = (*listing.JOB_KEYS, *(("parents", "children") if wanted.tree else ()))
    with db.read() as cx:
        rows = _rows(cx, wanted, only)
        with closing(cast(Any, rows)):  # who reads from us may leave; the query must not outlive its connection
            site = _site_name(db)
            found = (listing.job_object(row, site) for row in rows)
            columns = keys if wanted.verbose else JOB_TABLE
            return listing.show(wanted.look, keys, columns, found, is_slow=_is_shared(db)) or wanted.look.is_whole


def _rows(cx: sqlite3.Connection, wanted: Wanted, only: Where) -> Iterator[dict[str, Any]]:
    """Yield jobs with all fields. A table on a terminal has as many as the slides' one, other formats all."""
    from ..db.query.fields import Column

    limit, are_newest = wanted.limits if wanted.look.form == "table" else (wanted.limit, False)
    more = {name: Column(sql, "uuids") for name, sql in zip(("parents", "children"), queries.RELATIVES)}
    rows = select.listed_jobs(cx, only, "-id" if are_newest else wanted.sort, limit, more if wanted.tree else {})
    return reversed(list(rows)) if are_newest else rows


def _history_objects(db: Database, wanted: Wanted, only: Where) -> int:
    from ..db.query import events

    with db.read() as cx:
        site = _site_name(db)
        jobs = _rows(cx, wanted, only)
        told = ((site, job, [listing.creation(job), *events.events(cx, {"job_id": job["id"]}, "id")]) for job in jobs)
        return listing.show_histories(wanted.look, told, is_slow=_is_shared(db)) or wanted.look.is_whole


def _site_name(db: Database) -> str:
    from ..db.engine import registry

    return registry.at(db.directory).name


def _is_shared(db: Database) -> bool:
    from ..db.engine.filesystem import LOCAL

    return db.access != LOCAL


# --- jobs below their parents -----------------------------------------------------------------------------------------


def _tree(db: Database, wanted: Wanted, only: Where) -> int:
    with db.read() as cx:
        matching = [row[0] for row in select.iterate_job_rows(cx, only, ("id",), wanted.sort)]
        places, omitted = _Forest(queries.edges(cx)).places(matching, wanted.limit or limit_from(os.environ))
        names = queries.columns_of(cx, {job for job, _, _ in places}, ("name", "job_id"))
    more = [f"(Omitted {omitted} jobs from display...)"] if omitted else []
    _print([*(_branch(depth, is_known, *names[job]) for job, depth, is_known in places), *more])
    return len(places)


def _branch(depth: int, is_known: bool, name: str, job_id: str) -> str:
    known = " (its children: see above)" if is_known else ""
    return f"{'|     ' * depth}{output.one_line(name):10} {output.cute_id(name, job_id)}{known}"


#: Where a job stands in the picture: its number, its depth, and whether its children stand further up.
_Place = tuple[int, int, bool]


class _Forest:
    """Jobs and their children; a job with several parents stands below each of them, its own children only once."""

    def __init__(self, edges: Sequence[tuple[int, int]]) -> None:
        self._children: dict[int, list[int]] = {}
        self._parents: dict[int, list[int]] = {}
        for parent, child in edges:
            self._children.setdefault(parent, []).append(child)
            self._parents.setdefault(child, []).append(parent)

    def places(self, matching: Sequence[int], limit: int) -> tuple[list[_Place], int]:
        """At most `limit` places, and the number of matching jobs that have none."""
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
    numbers = {word: row_number(word) for word in wanted.id}
    for word, number in numbers.items():
        if number is None:
            raise click.BadParameter(f"an application has a number, not {word!r}.", param_hint="'--id'")
    if wanted.look.form:
        found = _app_objects(db, wanted, list(numbers.values()))
    else:
        with db.read() as cx:
            apps = [app for app in queries.apps(cx, wanted.name) if not numbers or app["id"] in numbers.values()][
                : wanted.limit
            ]
        found = len(apps)
        if apps:
            _print(_app_forms(apps) if wanted.verbose else _app_table(apps))
    if not found:
        say("No apps found matching query")


def _app_objects(db: Database, wanted: Wanted, numbers: Sequence[int | None]) -> int:
    with db.read() as cx:
        apps = select.apps(cx, {"id": numbers} if numbers else {})
    site, text = _site_name(db), wanted.name.lower()
    found = (listing.app_object(app, site) for app in apps if text in app["name"].lower())
    keys = listing.APP_KEYS
    columns = keys if wanted.verbose else listing.APP_TABLE
    return listing.show(wanted.look, keys, columns, islice(found, wanted.limit)) or wanted.look.is_whole


def _app_forms(apps: Sequence[Mapping[str, Any]]) -> list[str]:
    from ..db.query import text_forms

    return [output.many_lines(text_forms.app_form(app)) + "\n" for app in apps]


def _app_table(apps: Sequence[Mapping[str, Any]]) -> list[str]:
    from ..db.query.text_forms import program_of

    # A template is no list of paths.
    programs = [app["command_template"] or output.basenames(program_of(app)) for app in apps]
    rows = [(app["id"], app["name"], program, app["description"]) for app, program in zip(apps, programs)]
    return output.table(APP_TABLE, rows)


def _workflows(db: Database, wanted: Wanted) -> None:
    exact = wanted.wf or wanted.name
    with db.read() as cx:
        names = [name for name in queries.workflows(cx) if name or not exact]
        if exact:
            names = [name for name in names if name == exact] or [name for name in names if exact.lower() in name.lower()]
    if wanted.look.form:
        listing.show(wanted.look, listing.WORKFLOW_KEYS, listing.WORKFLOW_KEYS, ({"workflow": name} for name in names))
    elif not names:
        say(f"No workflow matching {exact}" if exact else "No workflows found")
    elif wanted.tree or wanted.verbose or names == [exact]:
        show = _tree if wanted.tree else _forms if wanted.verbose else _table
        for name in names:
            heading = output.one_line(name)
            _print([heading, "-" * len(heading)])
            show(db, wanted, {"workflow": name})
            _print([""])
    else:
        _print(["Workflows", "-" * 9, *map(output.one_line, names)])


def _queues(db: Database, wanted: Wanted) -> None:
    """Print the launches. Asks the scheduler, once for all of them."""
    from ..sites import batch_jobs

    where = {} if wanted.all_queues else {"state": batch_jobs.ACTIVE_STATES}
    site, keys = _site_name(db), listing.BATCH_JOB_KEYS
    rows = [listing.batch_job_object(row, site) for row in batch_jobs.select(db, where, "-id", 0, wanted.limit)[::-1]]
    if wanted.look.form:
        listing.show(wanted.look, keys, keys if wanted.verbose else listing.BATCH_JOB_TABLE, rows)
    elif not rows:
        say("No queued jobs detected")
    elif wanted.verbose:
        from pprint import pformat

        _print(f"Qlaunch {pformat({name: row[name] for name in keys}, indent=4)}\n" for row in rows)
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


_KINDS = {
    "jobs": (_jobs, (*listing.JOB_KEYS, "parents", "children")),
    "apps": (_apps, listing.APP_KEYS),
    "wf": (_workflows, listing.WORKFLOW_KEYS),
    "queues": (_queues, listing.BATCH_JOB_KEYS),
}
