"""What all listings share: their options and columns, the objects that they print (see docs/json.rst), and pages of jobs.

An object has the same keys from every command: our names, and the workshop's as aliases. Times are ISO 8601, UTC.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ..core import field_specs, states
from ..core.clock import iso_us
from ..core.errors import InvalidSpec, UnknownField, did_you_mean
from ..db.query import runs
from . import output
from .common import say
from .group import LaterOption, option

if TYPE_CHECKING:
    from ..db.engine.registry import SiteEntry
    from ..sites.interface import SiteInterface

Row = dict[str, Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])

# --- the objects: docs/json.rst describes each key ----------------------------------------------------------------------

JOB_KEYS = (
    "id", "job_id", "site", *field_specs.JOB_FIELD, *field_specs.OUR_NAMES, "app_id", "launch_params", "parent_ids",
    "remote_parents", "parents", "children", "batch_job_id", "last_update", *runs.OF_JOB, "stale", "waits_for",
)  # fmt: skip
EVENT_KEYS = ("id", "job", "job_id", "site", "time", "timestamp", "from_state", "to_state", "message", "data")
APP_KEYS = ("id", "site", "name", "kind", *(name for name in field_specs.APP_FIELD if name != "name"))
BATCH_JOB_KEYS = (
    "id", "site", "scheduler", "cluster", "scheduler_id", "state", "scheduler_state", "reason", "exit_code", "tries", "project",
    "queue", "nodes", "num_nodes", "wall_minutes", "wall_time_min", "job_mode", "wf_filter", "filter_tags", "partitions",
    "sched_flags", "optional_params", "prescheduled_only", "from_balsam", "command", "log", "created", "expected_start",
    "polled", "started", "start_time", "ended", "end_time", "status_info",
)  # fmt: skip
SITE_KEYS = ("id", "name", "path", "active", "jobs", "version", "error")


class ObjectKind(NamedTuple):
    """A kind of objects that commands print."""

    keys: tuple[str, ...]
    table: tuple[str, ...]  # the usual columns; on a terminal no more of them than fit


JOBS = ObjectKind(JOB_KEYS, ("id", "site", "app", "workdir", "state", "tags"))
EVENTS = ObjectKind(EVENT_KEYS, ("job", "time", "from_state", "to_state", "message"))
APPS = ObjectKind(APP_KEYS, ("id", "name", "site", "kind", "description"))
BATCH_JOBS = ObjectKind(
    BATCH_JOB_KEYS,
    (
        "id",
        "site",
        "scheduler_id",
        "state",
        "filter_tags",
        "project",
        "queue",
        "num_nodes",
        "wall_time_min",
        "job_mode",
        "reason",
    ),
)
SITES = ObjectKind(SITE_KEYS, ("id", "name", "path", "active"))
COUNTS = ObjectKind(("state", "jobs"), ("state", "jobs"))
WORKFLOWS = ObjectKind(("workflow",), ("workflow",))

_TIMES = frozenset((
    "last_update", "created", "start_after", "told_to_stop", "time", "timestamp", "expected_start", "polled", "started",
    "start_time", "ended", "end_time",
))  # fmt: skip


def _with_iso_times(row: Row) -> Row:
    for name in _TIMES.intersection(row):
        if row[name] is not None:
            row[name] = iso_us(row[name])
    return row


def job_object(row: Mapping[str, Any], site: str) -> Row:
    """Return a job as listings print it, with those keys of `JOB_KEYS` that a row of a site has."""
    found = {**row, "site": site}
    for ours, theirs in field_specs.WORKSHOP_NAMES.items():
        if theirs in row:
            found[ours] = row[theirs]
    return _with_iso_times(found)


def event_object(event: Mapping[str, Any], job: Mapping[str, Any], site: str) -> Row:
    """Return an event as listings print it; `id` is the event's, `job_id` the job's UUID, `job` its number."""
    moved = {"job": event["job_id"], "job_id": job["job_id"], "site": site, "time": event["timestamp"]}
    return _with_iso_times({**event, **moved, "message": message_of(event)})


def edit_object(edit: Mapping[str, Any], job: Mapping[str, Any]) -> Row:
    """Return an edit as listings print it."""
    return {**_with_iso_times({**edit, "time": edit["timestamp"]}), "job_id": job["job_id"]}


def message_of(event: Mapping[str, Any]) -> str:
    """Return the message of an event, given as a site's row."""
    return str(event["data"].get("message") or event["data"].get("error") or "")


def creation(job: Mapping[str, Any]) -> Row:
    """Return the row of the first entry of a job's history, which is no event and has no id."""
    data = {"message": job["origin"]} if job["origin"] else {}
    entered = {"from_state": "", "to_state": states.CREATED}
    return {"id": None, "job_id": job["id"], "timestamp": job["created"], **entered, "data": data}


def app_object(row: Mapping[str, Any], site: str) -> Row:
    """Return an application as listings print it."""
    return {**row, "site": site}


def batch_job_object(row: Mapping[str, Any], site: str) -> Row:
    """Return a batch job as listings print it; ids of schedulers are text."""
    scheduler_id = row["scheduler_id"]
    times = {"started": row["start_time"], "ended": row["end_time"]}
    return _with_iso_times({**row, **times, "site": site, "scheduler_id": None if scheduler_id is None else str(scheduler_id)})


# --- options ----------------------------------------------------------------------------------------------------------

_OPTIONS = (
    option("--json", "as_json", is_flag=True, help="Print a JSON list, one object a line, with every key."),
    option(
        "--format",
        "form",
        metavar="FORMAT",
        help="Print csv, tsv, jsonl, json, yaml, parquet, or a table: plain, github, html, latex, ...",
    ),
    option(
        "-o",
        "--output",
        "path",
        cls=LaterOption,
        metavar="FILE",
        help="File to write; its suffix names the format. -: stdout.",
    ),
    option("--wide", cls=LaterOption, is_flag=True, help="Print whole cells and all columns, however wide the terminal is."),
    option("--no-pager", cls=LaterOption, is_flag=True, help="Do not page a long output on a terminal (PAGER, else less)."),
)


_COLUMNS = option("--columns", metavar="NAME,...", help="Print these keys of the JSON objects only, in this order.")


def format_options(command: _Function) -> _Function:
    """Give a command the options that set format, file and width; `Look.of_format` reads their values."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


def output_options(command: _Function) -> _Function:
    """Give a command the options of every listing; `Look.of` reads their values."""
    return _COLUMNS(format_options(command))


#: The formats that print all keys.
_WHOLE = ("json", "yaml")


class Look(NamedTuple):
    """How to print a listing."""

    form: str  # a format of `output`, or "" for the command's own
    shown: tuple[str, ...]  # the keys to print
    is_fixed: bool  # the user has named these keys
    is_whole: bool  # the user has named a format of all keys: no limit but the user's holds, and words are left out
    is_wide: bool
    path: str = ""  # of the file to write; "": stdout
    is_paged: bool = True  # on a terminal

    @classmethod
    def of(
        cls, options: dict[str, Any], kind: ObjectKind, *, history: bool = False, verbose: bool = False, verbose_form: str = ""
    ) -> Look:
        """Take the values of `output_options` out of a command's options, and check whether the file can be written.

        Args:
            kind: of the objects to print. history: print their events instead, or with JSON and YAML as well.
            verbose: print all keys. verbose_form: the format then, unless the user names one.

        Raises:
            InvalidSpec: an unknown format. UnknownField: an unknown column. Both name the nearest. UsageError.
            BalsamError: the file cannot be written.
        """
        columns, is_wide, no_pager = (options.pop(name) for name in ("columns", "wide", "no_pager"))
        form, path = chosen_format(options)
        is_whole = form in _WHOLE
        if history:
            kind = ObjectKind((*kind.keys, "history", "edits", "attempts"), kind.table) if is_whole else EVENTS
        typed = [] if columns is None else [name.strip() for name in columns.split(",")]
        names = tuple(dict.fromkeys(runs.SHORT_NAMES.get(name, name) for name in typed))
        for name in names:
            if name not in kind.keys:
                near = did_you_mean(name, kind.keys)
                raise UnknownField(f"There is no column {name!r}.{near}", hint=f"Columns: {', '.join(kind.keys)}")
        usual = kind.keys if is_whole or (verbose and not history) else kind.table
        form = form or ("table" if names else verbose_form if verbose else "")
        return cls(form, names or usual, bool(names), is_whole, is_wide, path, not no_pager)

    @classmethod
    def of_format(cls, options: dict[str, Any]) -> Look:
        """Take the values of `format_options` out of a command's options. Raises as `of`, but for columns."""
        is_wide, no_pager = options.pop("wide"), options.pop("no_pager")
        form, path = chosen_format(options)
        return cls(form, (), False, form in _WHOLE, is_wide, path, not no_pager)


@contextmanager
def paged(look: Look) -> Iterator[None]:
    """Within the block, page a long output on a terminal, unless the user wants none; who leaves the pager ends the command."""
    if not look.is_paged or look.path or not sys.stdout.isatty():
        yield
        return
    from . import pager

    try:
        with pager.paged():
            yield
    except pager.PagerLeft:
        click.get_current_context().exit(0)


def chosen_format(options: dict[str, Any]) -> tuple[str, str]:
    """Take --json, --format and --output out of a command's options; return the format, "" for the command's, and the file.

    Raises:
        InvalidSpec: an unknown format, with the nearest. UsageError. BalsamError: the file cannot be written.
    """
    as_json, form, path = (options.pop(name) for name in ("as_json", "form", "path"))
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} exclude each other.")
    if path == "":
        raise InvalidSpec("--output must not be empty; leave it out to mean standard output.")
    if as_json or form is not None or path:
        from . import writers

        form = "json" if as_json else writers.check_format(form) if form is not None else ""
        path = "" if path in (None, "-") else path
        form = form or (writers.format_of(path) if path else "")
        writers.check_target(form, path, sys.stdout.isatty())
    return form or "", path or ""


def show(look: Look, objects: Iterable[Mapping[str, Any]]) -> int:
    """Print objects in the user's format, without one as a table, or write the file; return how many there were."""
    from . import writers

    if look.form in ("", "table"):
        is_fitted = not look.is_wide and not look.path and sys.stdout.isatty()
        objects = (_in_table(found, is_fitted) for found in objects)
    return write(look, look.shown, writers.values_of(look.shown, objects), _TIMES)


def write(
    look: Look, columns: Sequence[str], rows: Iterable[Sequence[Any]], times: Iterable[str], *, has_header: bool = False
) -> int:
    """Print rows, or write them to the user's file; return how many there were. The arguments are those of `writers`."""
    from . import writers

    form = look.form or "table"
    if look.path:
        number = writers.write_file(form, columns, rows, look.path, times)
        say(f"Wrote {output.plural(number, 'row')} to {look.path}")
        return number
    if form == "parquet":
        return writers.write_parquet_to(sys.stdout.buffer, columns, rows, times)
    width = None if look.is_wide else output.terminal_width(sys.stdout)
    written = writers.write_rows(form, columns, rows, sys.stdout, width=width, is_fixed=look.is_fixed, has_header=has_header)
    if written.left_out:
        rest = len(written.left_out) - _MAX_NAMED
        named = ", ".join(written.left_out[:_MAX_NAMED]) + f" and {output.plural(rest, 'more column')}" * (rest > 0)
        say(f"No room for {named}: --wide prints all columns, --columns those that you name.")
    return written.rows


#: Columns that the message about those for which there is no room names.
_MAX_NAMED = 8
STALE_MARK = " (stale)"


def _in_table(found: Mapping[str, Any], is_fitted: bool) -> Mapping[str, Any]:
    """Return an object as a table shows it: remarks after states, reasons of one line, where it has to fit short ids."""
    shown = dict(found)
    if is_fitted and isinstance(found.get("job_id"), str):
        shown["job_id"] = found["job_id"][: output.SHORT_ID]
    if found.get("stale"):
        shown["state"] = found["state"] + STALE_MARK
    if "tries" in found:
        shown.update(state=with_tries(found["state"], found), reason=first_line(found["reason"]))
    return shown


def with_tries(state: str, row: Mapping[str, Any]) -> str:
    """Return a batch job's state, with the number of submissions where the scheduler refused several."""
    return state if (row["tries"] or 1) == 1 else f"{state} ({row['tries']} tries)"


def first_line(reason: str | None) -> str:
    """Return the first line of what a scheduler's program printed, which can be long; --verbose shows the rest."""
    first, *more = (reason or "").splitlines() or [""]
    return f"{first} …" if more else first


# --- jobs of one or several sites ---------------------------------------------------------------------------------------

#: A job as its site gives it, after the name of the site and the site.
Found = tuple[str, "SiteInterface", Row]
_T = TypeVar("_T")
#: What puts a question to each site.
Ask = Callable[[Callable[["SiteInterface"], Any]], "list[tuple[SiteEntry, Any]]"]

#: Jobs that are read at once, and where the events of each are wanted, too.
PAGE, HISTORY_PAGE = 5000, 500
#: Jobs of a table on a terminal, the newest ones, unless the user gives a limit.
TERMINAL_LIMIT = 50
_NO_LIMIT = 2**53


class SiteJobs:
    """The jobs of some sites that meet conditions, read page by page, each in its own transaction.

    Every method that reads may raise UnknownField and InvalidSpec for the conditions, and BalsamError: a site does not answer.
    """

    def __init__(self, ask: Ask, where: Mapping[str, Any], order: str = "", limit: int | None = None) -> None:
        self._ask, self._where, self._order, self._limit = ask, where, order, limit
        self.sites: list[str] = []  # the names of the sites that have answered

    def _answers(self, question: Callable[[SiteInterface], Any]) -> list[tuple[SiteEntry, Any]]:
        answers = self._ask(question)
        self.sites = [entry.name for entry, _ in answers]
        return answers

    def count_states(self) -> dict[str, int]:
        """Return state -> number of jobs, over all sites."""
        found: dict[str, int] = {}
        for _, numbers in self._answers(lambda one: one.count_states(self._where)):
            for state, jobs in numbers.items():
                found[state] = found.get(state, 0) + jobs
        return found

    def read(self, fields: Sequence[str] = (), size: int = PAGE) -> Iterator[Found]:
        """Return all jobs, with these fields or () for all, site by site, in order."""
        if self._order:
            pages = self._sorted_pages(fields, self._limit or _NO_LIMIT, size)
        else:
            size = min(size, self._limit or size)
            first = self._answers(lambda one: (one, one.page(self._where, fields, size=size)))
            pages = self._pages(first, fields, size)
        return islice(pages, self._limit)

    def _pages(self, first: list[tuple[SiteEntry, Any]], fields: Sequence[str], size: int) -> Iterator[Found]:
        for entry, (site, rows) in first:
            while rows:
                yield from ((entry.name, site, row) for row in rows)
                rows = site.page(self._where, fields, rows[-1]["id"], size) if len(rows) == size else []

    def _sorted_pages(self, fields: Sequence[str], limit: int, size: int, *, is_reversed: bool = False) -> Iterator[Found]:
        """Yield jobs in the user's order: first their numbers are read, then they are, so that none comes twice."""
        numbers = self._answers(lambda one: (one, one.page(self._where, ("id",), size=limit, order=self._order)))
        for entry, (site, rows) in numbers:
            listed = [row["id"] for row in (reversed(rows) if is_reversed else rows)]
            for start in range(0, len(listed), size):
                some = listed[start : start + size]
                found = {row["id"]: row for row in site.page({"id": some}, fields, size=size)}
                yield from ((entry.name, site, found[number]) for number in some if number in found)

    def _newest(self, fields: Sequence[str]) -> Iterator[Found]:
        """Return the newest jobs of each site in ascending order, and print how many more there are."""
        jobs = list(SiteJobs(self._ask, self._where, "-id")._sorted_pages(fields, TERMINAL_LIMIT, PAGE, is_reversed=True))
        more = sum(number for _, number in self._answers(lambda one: one.count("job", self._where))) - len(jobs)
        if more > 0:
            say(f"({more} more jobs not shown; --limit N shows the first N)")
        return iter(jobs)

    def show(self, look: Look, *, by_states: bool = False, history: bool = False, verbose: bool = False) -> int:
        """Print the jobs, or their histories, or their numbers by state; return how many of these there were.

        Without a format, `verbose` prints the workshop's form of each job, and states without jobs.
        """
        if history:
            if look.form:
                return show(look, self._history_objects(look.is_whole))
            return sum(_write(_history_text(job, *rows) + "\n") for _, job, *rows in self._with_events())
        if by_states:
            found = self.count_states()
            named = (state for state in states.STATES if state in found or verbose)
            return show(look, ({"state": state, "jobs": found.get(state, 0)} for state in named))
        if verbose and not look.form:
            return sum(_write("".join(f"{line}\n" for line in form(site, job))) for site, _, job in self.read())
        fields = fields_of((*look.shown, "stale"))
        is_short = look.form in ("", "table") and not self._order and self._limit is None and sys.stdout.isatty()
        jobs = self._newest(fields) if is_short else self.read(fields)
        return show(look, (job_object(job, site) for site, _, job in jobs))

    def _history_objects(self, is_whole: bool) -> Iterator[Row]:
        for site, job, events, edits, attempts in self._with_events():
            objects = [event_object(event, job, site) for event in events]
            if is_whole:
                yield {
                    **job_object(job, site),
                    "history": [{name: one[name] for name in EVENT_KEYS} for one in objects],
                    "edits": [edit_object(edit, job) for edit in edits],
                    "attempts": list(map(_with_iso_times, attempts)),
                }
            else:
                yield from objects

    def _with_events(self) -> Iterator[tuple[str, Row, list[Row], list[Row], list[Row]]]:
        """Yield each job with the rows of its history, its creation first, its edits, and its attempts."""
        for (name, site), group in groupby(self.read((), HISTORY_PAGE), key=lambda found: found[:2]):
            while some := [job for _, _, job in islice(group, HISTORY_PAGE)]:
                events: dict[int, list[Row]] = {job["id"]: [creation(job)] for job in some}
                for event in site.select("event", {"job_id": list(events)}, "id"):
                    events[event["job_id"]].append(event)
                edits: dict[int, list[Row]] = {}
                for edit in site.edits(list(events)):
                    edits.setdefault(edit["job"], []).append(edit)
                ran = {row["id"]: row["attempts"] for row in site.page({"id": list(events)}, ("id", "attempts"))}
                yield from ((name, job, events[job["id"]], edits.get(job["id"], []), ran.get(job["id"], [])) for job in some)


def _write(text: str) -> bool:
    return bool(sys.stdout.write(text))


def fields_of(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the fields to ask a site for, so as to print these columns; () is all."""
    columns = list(columns)
    if "waits_for" in columns:
        return ()
    return tuple(dict.fromkeys(["id", *(field_specs.WORKSHOP_NAMES.get(name, name) for name in columns if name != "site")]))


def _history_text(job: Row, events: Iterable[Row], edits: Sequence[Row], attempts: Sequence[Row]) -> str:
    lines = [(event["timestamp"], event["from_state"], event["to_state"], message_of(event)) for event in events]
    return output.history(job["name"] or job["workdir"], job["job_id"], lines, edits, attempts)


# --- the workshop's form of a job ---------------------------------------------------------------------------------------

#: What the form shows, in its order; other fields follow where they differ from their defaults.
_FORM = (
    "workdir", "tags", "data", "return_code", "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core",
    "launch_params", "gpus_per_rank", "node_packing_count", "wall_time_min", "id", "app_id", "parent_ids", "batch_job_id",
    "last_update", "state",
)  # fmt: skip
#: Fields that have their own place, or are of no use to people.
_ELSEWHERE = (*_FORM, "site", *field_specs.WORKSHOP_NAMES, "parameters", "unfinished_parents")


def form(site: str, row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of one job as YAML; `---` and an empty line end it."""
    job = job_object(row, site)
    yield from output.yaml_lines({"site": site, **{name: job.get(name) for name in _FORM}})
    yield from output.yaml_lines({name: value for name, value in job.items() if _is_worth_a_line(name, value)})
    yield f"deserialized parameters: {readable_parameters(job['parameters'])}"
    yield from ("---", "")


def readable_parameters(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the parameters of a job; of those that JSON cannot hold (see `pyapps.run_function`) only the names."""
    return dict.fromkeys(parameters.get("names", ()), "(pickled)") if "__pickled__" in parameters else parameters


def _is_worth_a_line(name: str, value: Any) -> bool:
    if name in _ELSEWHERE or value in ("", None) or value in ({}, []) or (value is False and name == "stale"):
        return False
    field = field_specs.JOB_FIELD.get(name)
    return field is None or value != field.default
