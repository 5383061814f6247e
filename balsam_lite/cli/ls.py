"""`balsam ls`: what is in the DB. The command that is typed most, so it imports no more than reading needs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, cast

import click

from ..core import field_specs, states
from ..core.errors import UnknownField
from ..db.engine.connection import Database
from ..db.query import queries
from . import output
from .common import A_JOB, count, open_db, pairs, row_number, say, warn
from .group import BalsamCommand, Choice, ConditionOption, FieldOption, option

if TYPE_CHECKING:
    import sqlite3

LIMIT_VARIABLE, FIELDS_VARIABLE = "BALSAM_LS_LIMIT", "BALSAM_LS_FIELDS"
DEFAULT_LIMIT = 5000
JOB_TABLE = ("job_id", "name", "workflow", "application", "state")
APP_TABLE = ("id", "name", "executable", "description")
QUEUE_TABLE = ("scheduler_id", "project", "queue", "nodes", "wall_minutes", "state", "job_mode", "command", "from_balsam")
QUEUE_HEADER = (*QUEUE_TABLE[:-2], "Command", "Submitted from Balsam?")
NO_JOBS = "No jobs found matching query"
LIMIT_HELP = f"Show N rows at most. [default: {LIMIT_VARIABLE} or {DEFAULT_LIMIT}]"


class Wanted(SimpleNamespace):
    """The options of one `ls`. (Making a NamedTuple of so many fields takes milliseconds.)"""

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
    json: bool

    def only(self) -> queries.JobFilter:
        """Which jobs are meant."""
        return queries.JobFilter(
            name=self.name,
            which=self.id,
            states=tuple(map(states.check_state, self.state)),
            workflow=self.wf,
            application=self.app,
            tags=pairs(self.tag, "--tag"),
        )

    def rows(self) -> int:
        """How many rows to show at most."""
        return self.limit or limit_from(os.environ)


def limit_from(environ: Mapping[str, str]) -> int:
    """BALSAM_LS_LIMIT, or its default with a warning where it is no count."""
    text = environ.get(LIMIT_VARIABLE, "")
    if text.isascii() and text.isdigit() and 0 < len(text) < 16 and int(text) > 0:
        return int(text)
    if text:
        warn(f"{LIMIT_VARIABLE} must be a whole number of 1 or more, not {text!r}; {DEFAULT_LIMIT} is used")
    return DEFAULT_LIMIT


def columns_from(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The columns of the table of jobs: the usual ones and those of BALSAM_LS_FIELDS."""
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
@option("--json", is_flag=True, help="Print a list of objects, whose keys are the names of the fields.")
def ls(what: str, **options: Any) -> None:
    """List jobs, apps, workflows (wf) or the launches in the queue (queues).

    All conditions must hold at once; of several --state, or several --id, one must. BALSAM_LS_FIELDS=FIELD:FIELD adds
    columns. JSON holds all that match, unless --limit is given. A job is stale if a parent finished again after it started.

    \b
    Examples:
        balsam ls --state FAILED --history
        balsam ls --wf test --sort -priority --limit 20
        balsam ls --by-states
        balsam ls apps --verbose
        balsam ls --json --tag run=7
    """
    wanted = Wanted(**options)
    {"jobs": _jobs, "apps": _apps, "wf": _workflows, "queues": list_queues}[what](open_db(), wanted)


# --- jobs -------------------------------------------------------------------------------------------------------------


def _jobs(db: Database, wanted: Wanted) -> None:
    only = wanted.only()
    queries.check_columns([wanted.sort.lstrip("-")])
    if wanted.history:
        _histories(db, wanted, only)
    elif wanted.tree:
        _tree(db, wanted, only)
    elif wanted.by_states:
        _by_states(db, wanted, only)
    elif wanted.json:
        _all_fields(db, wanted, only)
    elif wanted.verbose:
        _forms(db, wanted, only)
    else:
        _table(db, wanted, only)


def _few(db: Database, wanted: Wanted, only: queries.JobFilter, columns: Sequence[str]) -> tuple[list[tuple[Any, ...]], int]:
    """As many rows as may be shown, and how many more there are."""
    limit = wanted.rows()
    with db.read() as cx:
        rows = queries.jobs(cx, only, columns, wanted.sort, limit)
        more = queries.count_jobs(cx, only) - len(rows) if len(rows) == limit else 0
    return rows, more


def _more(number: int) -> list[str]:
    return [f"({number} more BalsamJobs not shown...)"] if number > 0 else []


def _print(lines: Sequence[str]) -> None:
    sys.stdout.write("\n".join([*lines, ""]))


def _table(db: Database, wanted: Wanted, only: queries.JobFilter) -> None:
    columns = columns_from(os.environ)
    rows, more = _few(db, wanted, only, (*columns, queries.STALE))
    _print([*_job_table(columns, rows), *_more(more)] if rows else [NO_JOBS])
    _explain_stale(row[-1] for row in rows)


def _job_table(columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return the lines for rows of these columns, followed by `queries.STALE`."""
    program, state = columns.index("application"), columns.index("state")
    environ = columns.index("environ_vars") if "environ_vars" in columns else None
    shown = []
    for *row, is_stale in rows:
        if environ is not None:
            row[environ] = field_specs.masked_json(row[environ])
        row[program] = output.basenames(row[program])
        row[state] += _STALE_MARK * is_stale
        shown.append(row)
    return output.table(columns, shown)


_STALE_MARK = " (stale)"


def _explain_stale(marks: Iterable[int]) -> None:
    number = sum(marks)
    if number:
        these = "1 job is" if number == 1 else f"{number} jobs are"
        say(f"{these} stale: a parent finished again after the start. `balsam rerun --id ID` runs a stale job again.")


def _forms(db: Database, wanted: Wanted, only: queries.JobFilter) -> None:
    from ..db.query.text_forms import program_of

    limit = wanted.rows()
    texts = []
    with db.read() as cx:
        programs = {app["name"]: program_of(app) for app in queries.apps(cx)}
        rows = queries.jobs(cx, only, (*queries.JOB_COLUMNS, queries.STALE), wanted.sort, limit)
        for row in rows:
            job = dict(zip(queries.JOB_COLUMNS, row))
            job["state"] += _STALE_MARK * row[-1]
            parents, _ = queries.relatives(cx, job["id"])
            texts.append(form(db, job, parents, programs.get(job["application"])) + "\n")
        more = queries.count_jobs(cx, only) - len(rows) if len(rows) == limit else 0
    _print([*texts, *_more(more)] or [NO_JOBS])


def form(db: Database, job: Mapping[str, Any], parents: Sequence[str], executable: str | None) -> str:
    """One job as the slides print it."""
    from ..db.engine import directories
    from ..db.query import text_forms

    return output.many_lines(text_forms.job_form(job, parents, executable, os.path.join(db.directory, directories.DATA)))


def _all_fields(db: Database, wanted: Wanted, only: queries.JobFilter) -> None:
    names = (*queries.JOB_COLUMNS, "stale")
    kinds = {name: field.kind for name, field in field_specs.JOB_FIELD.items()} | {"stale": "flag"}
    with db.read() as cx, _Unhurried(db) as file:
        rows = queries.iterate_jobs(cx, only, (*queries.JOB_COLUMNS, queries.STALE), wanted.sort, wanted.limit)
        with closing(cast(Any, rows)):  # whoever reads us may leave; the query must not outlive its connection
            output.write_json(output.objects(names, kinds, rows), file)


class _Unhurried:
    """Where to write what is being read. Nobody knows how slow the reader at the other end of a pipe is.

    On a local disk a reader keeps nobody from the DB. On a shared one it does, so the text is put aside first.
    """

    def __init__(self, db: Database) -> None:
        from ..db.engine.filesystem import LOCAL

        self._aside: IO[str] | None = None
        if db.access != LOCAL:
            import tempfile

            self._aside = tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass")

    def __enter__(self) -> IO[str]:
        return self._aside or sys.stdout

    def __exit__(self, *exc: object) -> None:
        if self._aside:
            click.get_current_context().call_on_close(self._pass_on)

    def _pass_on(self) -> None:
        assert self._aside is not None
        with self._aside as file:
            file.seek(0)
            while True:
                piece = file.read(1 << 20)
                if not piece:
                    return
                sys.stdout.write(piece)


def _histories(db: Database, wanted: Wanted, only: queries.JobFilter) -> None:
    columns = ("id", "job_id", "name")
    limit = wanted.limit if wanted.json else wanted.rows()
    with db.read() as cx:
        rows = queries.jobs(cx, only, columns, wanted.sort, limit)
        more = queries.count_jobs(cx, only) - len(rows) if len(rows) == limit else 0
        if wanted.json:
            with _Unhurried(db) as file:
                output.write_json(_history_objects(cx, rows), file)
            return
        texts = [output.history(name, job_id, queries.history(cx, number)) for number, job_id, name in rows]
    _print([*texts, *_more(more)] or [NO_JOBS])


def _history_objects(cx: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    keys = ("time", "from_state", "to_state", "message")
    for number, job_id, name in rows:
        events = [dict(zip(keys, event)) for event in queries.history(cx, number)]
        yield {"job_id": job_id, "name": name, "history": events}


def _by_states(db: Database, wanted: Wanted, only: queries.JobFilter) -> None:
    columns = columns_from(os.environ)
    limit = wanted.rows()
    found: dict[str, tuple[int, list[tuple[Any, ...]]]] = {}
    with db.read() as cx:
        counts = queries.state_counts(cx, only)
        # In the slides' order, which was a dictionary's: RUN_DONE before RUNNING.
        for state in sorted(counts, key=lambda name: name.replace("_", "")):
            here = only._replace(states=(state,))
            rows = [] if wanted.json else queries.jobs(cx, here, (*columns, queries.STALE), wanted.sort, limit)
            found[state] = (counts[state], rows)
    if wanted.json:
        output.write_json(({"state": state, "jobs": number} for state, (number, _) in found.items()), sys.stdout)
        return
    lines: list[str] = []
    for state, (number, rows) in found.items():
        heading = f"{state} ({number} BalsamJobs)"
        lines += [heading, "-" * len(heading), *_job_table(columns, rows), *_more(number - len(rows)), ""]
    _print(lines or [NO_JOBS])
    _explain_stale(row[-1] for _, rows in found.values() for row in rows)


# --- jobs below their parents -----------------------------------------------------------------------------------------


def _tree(db: Database, wanted: Wanted, only: queries.JobFilter) -> None:
    if wanted.json:
        _tree_objects(db, wanted, only)
        return
    with db.read() as cx:
        matching = [row[0] for row in queries.iterate_jobs(cx, only, ("id",), wanted.sort)]
        places, omitted = _Forest(queries.edges(cx)).places(matching, wanted.rows())
        names = queries.columns_of(cx, {job for job, _, _ in places}, ("name", "job_id"))
    more = [f"(Omitted {omitted} jobs from display...)"] if omitted else []
    _print([*(_branch(depth, is_known, *names[job]) for job, depth, is_known in places), *more] or [NO_JOBS])


def _tree_objects(db: Database, wanted: Wanted, only: queries.JobFilter) -> None:
    names, kinds = (*JOB_TABLE, "parents", "children"), {"parents": "object", "children": "object"}
    with db.read() as cx, _Unhurried(db) as file:
        rows = queries.iterate_jobs(cx, only, (*JOB_TABLE, *queries.RELATIVES), wanted.sort, wanted.limit)
        with closing(cast(Any, rows)):
            output.write_json(output.objects(names, kinds, rows), file)


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
    with db.read() as cx:
        apps = [app for app in queries.apps(cx, wanted.name) if not numbers or app["id"] in numbers.values()][: wanted.limit]
    if wanted.json:
        kinds = {name: field.kind for name, field in field_specs.APP_FIELD.items()}
        rows = (tuple(app.values()) for app in apps)
        output.write_json(output.objects(queries.APP_COLUMNS, kinds, rows), sys.stdout)
    elif not apps:
        _print(["No apps found matching query"])
    else:
        _print(_app_forms(apps) if wanted.verbose else _app_table(apps))


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
    if wanted.json:
        output.write_json(({"workflow": name} for name in names), sys.stdout)
        return
    if not names:
        _print([f"No workflow matching {exact}" if exact else "No workflows found"])
        return
    expanded = wanted.tree or wanted.verbose or names == [exact]
    if not expanded:
        _print(["Workflows", "-" * 9, *map(output.one_line, names)])
        return
    for name in names:
        heading = output.one_line(name)
        _print([heading, "-" * len(heading)])
        only = queries.JobFilter(exact_workflow=name)
        (_tree if wanted.tree else _forms if wanted.verbose else _table)(db, wanted, only)
        _print([])


def list_queues(db: Database, wanted: Wanted) -> None:
    """The launches. Asks the scheduler, once for all of them."""
    rows = _launches(db, wanted)
    if wanted.json:
        output.write_json(map(_plain_launch, rows), sys.stdout)
    elif not rows:
        _print(["No queued jobs detected"])
    elif wanted.verbose:
        from pprint import pformat

        _print([f"Qlaunch {pformat(_plain_launch(row), indent=4)}\n" for row in rows])
    else:
        _print(_launch_table(rows, wanted.all_queues))


def _launches(db: Database, wanted: Wanted) -> list[dict[str, Any]]:
    """The launches as they are now, if the scheduler answers; else as they were when it last did."""
    from ..core.errors import SchedulerError
    from ..core.settings import Settings
    from ..db.query import batch_queries
    from ..schedulers import base, submission

    try:
        submission.refresh(db, base.select(Settings.load(db.directory)))
    except SchedulerError as exc:
        warn(f"Scheduler is not reachable: {exc}")
    with db.read() as cx:
        rows = batch_queries.all_rows(cx, wanted.limit) if wanted.all_queues else batch_queries.unended_rows(cx)
    return rows[: wanted.limit]


def _launch_table(rows: Sequence[Mapping[str, Any]], ended: bool) -> list[str]:
    more = ("exit_code", "reason", "log") if ended else ("reason",) if any(row["reason"] for row in rows) else ()
    shown = [
        {
            **row,
            "command": os.path.basename(row["command"]),
            "from_balsam": bool(row["from_balsam"]),
            "reason": _first_line(row["reason"]),
            "state": row["state"] if row["tries"] == 1 else f"{row['state']} ({row['tries']} tries)",
        }
        for row in rows
    ]
    return output.table((*QUEUE_HEADER, *more), [[row[name] for name in (*QUEUE_TABLE, *more)] for row in shown])


def _first_line(reason: str | None) -> str:
    """What a scheduler's program printed can be long; --verbose shows the rest."""
    first, *more = (reason or "").splitlines() or [""]
    return f"{first} …" if more else first


_LAUNCH_KINDS = {"filter_tags": "tags", "prescheduled_only": "flag", "from_balsam": "flag"}


def _plain_launch(row: Mapping[str, Any]) -> dict[str, Any]:
    return next(output.objects(tuple(row), _LAUNCH_KINDS, [tuple(row.values())]))
