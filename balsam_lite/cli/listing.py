"""What all listings share: their options and columns, the objects that they print (see docs/json.rst), and pages of jobs.

An object has the same keys from every command: our names, and the workshop's as aliases beside them. Times are ISO 8601, UTC.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ..core import field_specs, states
from ..core.clock import iso_us
from ..core.errors import UnknownField
from ..core.suggest import did_you_mean
from . import output
from .common import say
from .group import option

if TYPE_CHECKING:
    from ..db.engine.registry import SiteEntry

Row = dict[str, Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])

# --- the objects: docs/json.rst describes each key ----------------------------------------------------------------------

#: Our names of a job's fields and the workshop's, which are aliases.
_JOB_ALIASES = {"application": "app", "wall_time_minutes": "wall_time_min"}
JOB_KEYS = (
    "id", "job_id", "site", *field_specs.JOB_FIELD, *_JOB_ALIASES.values(), "app_id", "launch_params", "parent_ids",
    "batch_job_id", "last_update", "stale", "waits_for",
)  # fmt: skip
EVENT_KEYS = ("id", "job", "job_id", "site", "time", "timestamp", "from_state", "to_state", "message", "data")
APP_KEYS = ("id", "site", "name", "kind", *(name for name in field_specs.APP_FIELD if name != "name"))
BATCH_JOB_KEYS = (
    "id", "site", "scheduler", "cluster", "scheduler_id", "state", "scheduler_state", "reason", "exit_code", "tries", "project",
    "queue", "nodes", "num_nodes", "wall_minutes", "wall_time_min", "job_mode", "wf_filter", "filter_tags", "partitions",
    "sched_flags", "optional_params", "prescheduled_only", "from_balsam", "command", "log", "created", "started", "start_time",
    "ended", "end_time", "status_info",
)  # fmt: skip
SITE_KEYS = ("id", "name", "path", "active", "jobs", "version", "error")
COUNT_KEYS = ("state", "jobs")
WORKFLOW_KEYS = ("workflow",)

_TIMES = frozenset(
    ("last_update", "created", "start_after", "told_to_stop", "time", "timestamp", "started", "start_time", "ended", "end_time")
)


def _with_iso_times(row: Row) -> Row:
    for name in _TIMES.intersection(row):
        if row[name] is not None:
            row[name] = iso_us(row[name])
    return row


def job_object(row: Mapping[str, Any], site: str) -> Row:
    """Return a job as listings print it, with those keys of `JOB_KEYS` that a row of a site has."""
    found = {**row, "site": site}
    for ours, theirs in _JOB_ALIASES.items():
        if theirs in row:
            found[ours] = row[theirs]
    return _with_iso_times(found)


def event_object(event: Mapping[str, Any], job: Mapping[str, Any], site: str) -> Row:
    """Return an event as listings print it; `id` is the event's, `job_id` the job's UUID, `job` its number."""
    moved = {"job": event["job_id"], "job_id": job["job_id"], "site": site, "time": event["timestamp"]}
    return _with_iso_times({**event, **moved, "message": message_of(event)})


def message_of(event: Mapping[str, Any]) -> str:
    """Return what a site's row of an event has to tell."""
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
        "--format", "form", metavar="FORMAT", help="Print json, yaml, csv, or a table: plain, github, html, latex, tsv, ..."
    ),
    option("--columns", metavar="NAME,...", help="Print these keys of the JSON objects only, in this order."),
    option("--wide", is_flag=True, help="Print whole cells and all columns, however wide the terminal is."),
)


def output_options(command: _Function) -> _Function:
    """Give a command the options of every listing; `Look.of` reads their values."""
    for decorate in reversed(_OPTIONS):
        command = decorate(command)
    return command


#: The formats that print all keys.
_WHOLE = ("json", "yaml")


class Look(NamedTuple):
    """How to print a listing."""

    form: str  # a format of `output`, or "" for the command's own
    columns: tuple[str, ...]  # that the user has named
    is_wide: bool

    @classmethod
    def of(cls, options: dict[str, Any], keys: Sequence[str], history: bool = False) -> Look:
        """Take the values of `output_options` out of a command's options; `keys` are those of the objects it prints.

        Raises:
            InvalidSpec: an unknown format. UnknownField: an unknown column. Both name the nearest. UsageError.
        """
        as_json, form, columns, is_wide = (options.pop(name) for name in ("as_json", "form", "columns", "wide"))
        if as_json and form not in (None, "json"):
            raise click.UsageError(f"--json and --format {form} exclude each other.")
        form = "json" if as_json else output.check_format(form) if form is not None else ""
        if history:
            keys = (*keys, "history") if form in _WHOLE else EVENT_KEYS
        names = () if columns is None else tuple(dict.fromkeys(name.strip() for name in columns.split(",")))
        for name in names:
            if name not in keys:
                raise UnknownField(
                    f"There is no column {name!r}.{did_you_mean(name, keys)}", hint=f"Columns: {', '.join(keys)}"
                )
        return cls(form or ("table" if names else ""), names, is_wide)

    @property
    def is_whole(self) -> bool:
        """Whether all keys are printed, and no limit but the user's holds."""
        return self.form in _WHOLE

    def shown(self, keys: Sequence[str], columns: Sequence[str]) -> Sequence[str]:
        """Return the keys to print: those that the user has named, or all, or a table's usual `columns`."""
        return self.columns or (keys if self.is_whole else columns)


def show(
    look: Look, keys: Sequence[str], columns: Sequence[str], objects: Iterable[Mapping[str, Any]], *, is_slow: bool = False
) -> int:
    """Print objects in the user's format, without one as a table; return how many there were.

    Args:
        keys: of such objects. columns: those of a table. On a terminal it has no more of them than fit.
        is_slow: the objects come from a DB that others wait for while it is read. They are put aside first: how long the
            reader of a pipe takes is unknown.
    """
    shown = look.shown(keys, columns)
    width = None if look.is_wide else output.terminal_width(sys.stdout)
    file = _aside() if is_slow else sys.stdout
    rows = (in_table(look, dict(found)) for found in objects)
    number, left_out = output.write_rows(look.form or "table", shown, rows, file, width, bool(look.columns))
    if left_out:
        say(f"No room for {', '.join(left_out)}: --wide prints all columns, --columns those that you name.")
    return number


def _aside() -> IO[str]:
    """Return a temporary file whose text is printed when the command has closed its DBs."""
    import tempfile

    file = tempfile.TemporaryFile("w+", encoding="utf-8", errors="surrogatepass")

    def pass_on() -> None:
        with file:
            file.seek(0)
            while piece := file.read(1 << 20):
                sys.stdout.write(piece)

    click.get_current_context().call_on_close(pass_on)
    return file


# --- tables -------------------------------------------------------------------------------------------------------------

JOB_TABLE = ("id", "site", "app", "workdir", "state", "tags")
APP_TABLE = ("id", "name", "site", "kind", "description")
BATCH_JOB_TABLE = (
    "id", "site", "scheduler_id", "state", "filter_tags", "project", "queue", "num_nodes", "wall_time_min", "job_mode",
    "reason",
)  # fmt: skip
SITE_TABLE = ("id", "name", "path", "active")
STALE_MARK = " (stale)"


def in_table(look: Look, found: Row) -> Row:
    """Return an object as a table of `look` shows it: short ids, remarks after states, reasons of one line."""
    if look.form not in ("", "table"):
        return found
    shown = dict(found)
    if not look.is_wide and isinstance(found.get("job_id"), str):
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


# --- jobs of several sites ----------------------------------------------------------------------------------------------

#: A job as its site gives it, and the site.
Found = tuple["SiteEntry", Row]

#: Jobs that are read at once, and where the events of each are wanted, too.
PAGE, HISTORY_PAGE = 5000, 500


def fields_of(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the fields to ask a site for, so as to print these columns; () is all."""
    columns = list(columns)
    if "waits_for" in columns:
        return ()
    return tuple(dict.fromkeys(["id", *(_JOB_ALIASES.get(name, name) for name in columns if name != "site")]))


def every(
    first: Iterable[tuple[SiteEntry, list[Row]]], where: Mapping[str, Any], fields: Sequence[str], size: int
) -> Iterator[Found]:
    """Yield all jobs that match, site by site; `first` has the first page of each, the sites are asked for the others.

    Each page is read in its own transaction.

    Raises:
        BalsamError: a site has stopped answering.
    """
    from ..sites import fanout

    for entry, rows in first:
        while rows:
            yield from ((entry, row) for row in rows)
            rows = [] if len(rows) < size else fanout.open_site(entry).page(where, fields, rows[-1]["id"], size)


def with_events(found: Iterable[Found]) -> Iterator[tuple[SiteEntry, Row, list[Row]]]:
    """Yield each job with the rows of its history, its creation first."""
    source = iter(found)
    while some := list(islice(source, HISTORY_PAGE)):
        events = _events(some)
        for site, job in some:
            yield site, job, [creation(job), *events[site].get(job["id"], ())]


def _events(jobs: Iterable[Found]) -> dict[SiteEntry, dict[int, list[Row]]]:
    """Return the events of these jobs in the order in which they happened."""
    from ..sites import fanout

    by_site: dict[SiteEntry, dict[int, list[Row]]] = {}
    for site, job in jobs:
        by_site.setdefault(site, {})[job["id"]] = []
    for site, of_job in by_site.items():
        for event in fanout.open_site(site).select("event", {"job_id": list(of_job)}, "id"):
            of_job[event["job_id"]].append(event)
    return by_site


def history_objects(look: Look, told: Iterable[tuple[str, Row, list[Row]]]) -> Iterator[Row]:
    """Yield histories, each as (name of the site, job, rows of events): in JSON and YAML jobs with a `history`, else events."""
    for site, job, events in told:
        objects = [event_object(event, job, site) for event in events]
        if look.is_whole:
            yield {**job_object(job, site), "history": [{name: one[name] for name in EVENT_KEYS} for one in objects]}
        else:
            yield from objects


HISTORY_COLUMNS = ("job", "time", "from_state", "to_state", "message")


def show_histories(look: Look, told: Iterable[tuple[str, Row, list[Row]]], *, is_slow: bool = False) -> int:
    """Print histories in the user's format, see `history_objects` and `show`."""
    keys = (*JOB_KEYS, "history") if look.is_whole else EVENT_KEYS
    return show(look, keys, HISTORY_COLUMNS, history_objects(look, told), is_slow=is_slow)


# --- the workshop's form of a job ---------------------------------------------------------------------------------------

#: What the form shows, in its order; other fields follow where they differ from their defaults.
_FORM = (
    "workdir", "tags", "data", "return_code", "num_nodes", "ranks_per_node", "threads_per_rank", "threads_per_core",
    "launch_params", "gpus_per_rank", "node_packing_count", "wall_time_min", "id", "app_id", "parent_ids", "batch_job_id",
    "last_update", "state",
)  # fmt: skip
#: Fields that have their own place, or are of no use to people.
_ELSEWHERE = (*_FORM, "site", *_JOB_ALIASES, "parameters", "unfinished_parents")


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
