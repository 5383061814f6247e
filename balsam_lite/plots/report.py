"""The report of a campaign: one HTML file without links to other files, from the template `report.html`."""

from __future__ import annotations

import heapq
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .. import __version__
from ..core import field_specs, states
from ..core.clock import SECOND_US
from ..core.display import COLOURS, SIGNS, counted, duration, ink, moment, number, size
from ..core.errors import NotFound
from ..core.process_table import Holder
from ..sites.interface import Row, SiteInterface
from . import campaign
from .campaign import CODES, Campaign, Window
from .charts import KINDS, Size
from .drawing import WIDTH, drawing
from .svg import svg

#: Rows of the table of jobs, of those that are visible at first and that are printed on paper, and of each table of the record.
MAX_JOBS, VISIBLE_JOBS, _PRINTED, _MAX_ROWS = 5000, 500, 200, 200
_TEMPLATE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "templates", "report.html")
_HEADINGS = {
    "states": "Jobs by state", "throughput": "Throughput", "utilization": "Nodes in use", "gantt": "Runs by node",
    "nodes": "Use of nodes", "durations": "Durations", "waiting": "Waiting", "memory": "Memory", "failures": "Failures",
    "dag": "Graph",
}  # fmt: skip
#: The columns of the table of jobs, and whether they have numbers.
_COLUMNS = (
    ("Job", False), ("Workflow", False), ("Application", False), ("State", False), ("Attempts", True), ("Node", False),
    ("Started (UTC)", True), ("Run time", True), ("Memory", True), ("Failure", False),
)  # fmt: skip
_FINENESS = Size(columns=240, rows=100)


class SiteData(NamedTuple):
    """What a report needs of one site."""

    campaign: Campaign
    about: Row
    jobs: list[Row]  # the first of the table, with those keys of its rows
    apps: list[Row]
    batch_jobs: list[Row]
    launchers: list[Row]


class _RecordTable(NamedTuple):
    """A table of the record."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str]]
    more: int


class _Figure(NamedTuple):
    """A section with a picture, or with the reason why there is none."""

    name: str
    heading: str
    text: str
    svg: Any
    is_wide: bool


def read(site: SiteInterface, where: Mapping[str, Any], now_us: int, window: Window = campaign.ALL) -> SiteData:
    """Read what a report of the matching jobs needs: from one snapshot if the DB is on a local file system of this host.

    Raises:
        UnknownField, InvalidSpec, InvalidStateError; SiteUnreachable and DatabaseError.
    """
    with site.at_one_moment():
        found = campaign.read(site, where, ("changes", "edges", "batch_jobs"), now_us, window)
        apps = site.select("app")
        return SiteData(found, site.about(), _first_jobs(site, found), apps, site.select("batch_job"), site.launchers())


def _first_jobs(site: SiteInterface, of: Campaign) -> list[Row]:
    """Return the failed jobs and then the slowest ones, as rows of the table."""
    last_run = array("i", [-1]) * len(of.jobs)
    for run, job in enumerate(of.job):
        last_run[job] = run
    failed = CODES[states.FAILED]

    def rank(job: int) -> tuple[bool, int]:
        run = last_run[job]
        return of.states[job] == failed, of.ends[run] - of.starts[run] if run >= 0 else -1

    chosen = heapq.nlargest(MAX_JOBS, range(len(of.jobs)), key=rank)
    facts = site.page({"id": [of.jobs[job] for job in chosen]}, ("id", "name", "attempt"), size=MAX_JOBS) if chosen else []
    by_number = {row["id"]: row for row in facts}
    return [_job(of, job, last_run[job], by_number.get(of.jobs[job], {}), rank(job)) for job in chosen]


def _job(of: Campaign, job: int, run: int, row: Row, rank: tuple[bool, int]) -> Row:
    workflow, app = of.groups.values[of.group[job]]
    found = {
        "rank": rank, "site": of.sites[0], "id": of.jobs[job], "name": row.get("name", ""), "workflow": workflow, "app": app,
        "state": states.STATES[of.states[job]], "attempt": row.get("attempt", 0),
        "failure": of.failures.values[of.failure[job]], "node": "", "started": None, "runtime_s": None, "memory": None,
    }  # fmt: skip
    if run >= 0:
        found["node"] = of.node_lists.values[of.node_list[run]]
        found["started"], found["runtime_s"] = of.starts[run], (of.ends[run] - of.starts[run]) / SECOND_US
        found["memory"] = of.memory[run] if of.memory[run] >= 0 else None
    return found


# --- the page ---------------------------------------------------------------------------------------------------------


def render(found: Sequence[SiteData], conditions: str, now_us: int) -> str:
    """Return the page for the data of these sites. `conditions` are those of the command, in words."""
    import jinja2
    from markupsafe import Markup

    whole = campaign.merged([one.campaign for one in found])
    rows = heapq.nlargest(MAX_JOBS, (job for one in found for job in one.jobs), key=lambda job: job["rank"])
    place = ", ".join(whole.sites) if len(whole.sites) <= 4 else f"{len(whole.sites)} sites"

    def cells(job: Row) -> Any:
        return Markup("").join(_cells(Markup, job, len(found) > 1))

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    with open(_TEMPLATE, encoding="utf-8") as file:
        template = environment.from_string(file.read())
    total = len(whole.jobs)
    shown = "All jobs that match" if total == len(rows) else f"{len(rows):,} of {counted(total, 'job')}"
    return template.render(
        title=f"Report of {place}",
        made=f"Made {moment(now_us)} by {_user()} on {Holder.current().host} with balsam_lite {__version__}",
        span=f"Runs from {moment(min(whole.starts))} to {moment(max(whole.ends))}" if whole.starts else "",
        conditions=conditions,
        jobs_in_all=total,
        tiles=_tiles(whole) if total else [],
        states=[(state, jobs, f"{100 * jobs / total:.3g}") for state, jobs in whole.count_states.items()],
        figures=[_figure(kind, whole, place, Markup) for kind in _HEADINGS] if total else [],
        table_text=f"{shown}: first those that failed, then the others, in the order of their run times.",
        table_states=[state for state in states.STATES if any(job["state"] == state for job in rows)],
        columns=_COLUMNS, jobs=rows, cells=cells, printed=_PRINTED, visible=VISIBLE_JOBS, record=_record(found, whole),
        colours=COLOURS, signs=SIGNS, ink=ink,
    )  # fmt: skip


def _figure(kind: str, of: Campaign, place: str, safe: type[Any]) -> _Figure:
    try:
        picture = KINDS[kind][0](of, place, _FINENESS)
    except NotFound as exc:
        return _Figure(kind, _HEADINGS[kind], exc.message, "", False)
    drawn = drawing(picture, has_title=False)
    text = svg(drawn, picture.title, is_alone=False)
    return _Figure(kind, _HEADINGS[kind], picture.title, safe(text), drawn.width > WIDTH)


def _tiles(of: Campaign) -> list[tuple[str, str]]:
    """Return (value, what it is) of the summary."""
    ended = of.count_states
    done = ended.get(states.JOB_FINISHED, 0)
    tiles = [(number(len(of.jobs)), "jobs"), (number(done), "finished"), (number(ended.get(states.FAILED, 0)), "failed")]
    tiles.append((number(ended.get(states.RUNNING, 0)), "running"))
    if of.starts:
        node_s = sum((end - start) * nodes for start, end, nodes in zip(of.starts, of.ends, of.weights)) / SECOND_US
        cpu_s = sum(cpu for cpu in of.cpu if cpu > 0) / SECOND_US
        tiles += [(number(len(of.starts)), "runs"), (duration(of.busy_us / SECOND_US), "in which jobs ran")]
        tiles += [(f"{number(node_s / 3600)} h", "of nodes used")]
        tiles += [(f"{number(cpu_s / 3600)} h", "of CPUs used")] if cpu_s else []
    return tiles


def _cells(safe: type[Any], job: Row, has_sites: bool) -> Iterable[Any]:
    """Yield the cells of a row of the table of jobs; end tags may be left out."""
    site = f"{job['site']} " if has_sites else ""
    texts = (f"{site}#{job['id']} {job['name']}", job["workflow"], job["app"])
    yield from (safe("<td>{}").format(text) for text in texts)
    yield safe('<td><span class="badge b-{}">{} {}</span>').format(job["state"], SIGNS[job["state"]], job["state"])
    started, runtime_s, memory = job["started"], job["runtime_s"], job["memory"]
    numbers = (
        (job["attempt"], f"{job['attempt']:,}"), (None, job["node"]),
        (started, "" if started is None else moment(started)[:-4]),
        (runtime_s, "" if runtime_s is None else duration(runtime_s)), (memory, "" if memory is None else size(memory)),
    )  # fmt: skip
    for place, (value, text) in enumerate(numbers):
        if place == 1:
            yield safe("<td>{}").format(text)
        elif value is None:
            yield safe('<td class="n">')
        else:
            yield safe('<td class="n" data-v="{}">{}').format(value, text)
    yield safe("<td>{}").format(job["failure"])


# --- the record -------------------------------------------------------------------------------------------------------


def _record(found: Sequence[SiteData], whole: Campaign) -> list[_RecordTable]:
    """Return who ran what where and with which versions."""
    jobs_of: dict[str, int] = {}
    for group in whole.group:
        jobs_of[whole.groups.values[group][1]] = jobs_of.get(whole.groups.values[group][1], 0) + 1
    sites = [
        (one.campaign.sites[0], *(one.about[name] for name in ("path", "version", "python", "db_id", "jobs"))) for one in found
    ]
    apps = [
        (app["name"], jobs_of[app["name"]], _command(app), ", ".join(app["parameters"]), _environment(app["environ_vars"]))
        for one in found
        for app in one.apps
        if app["name"] in jobs_of
    ]
    launchers = [
        (row["host"], row["scheduler_id"], _time(row["opened"]), _time(row["closed"]), row["end_reason"],
         ", ".join(f"{name} {version}" for name, version in row["versions"].items()), ", ".join(row["modules"]),
         "\n".join(f"{name}={here}" for name, (_, here) in row["environment_difference"].items()))
        for one in found
        for row in one.launchers
    ]  # fmt: skip
    batch_jobs = [
        (row["scheduler_id"], row["queue"], row["project"], str(row["num_nodes"]), str(row["wall_time_min"]), row["state"],
         _time(row["start_time"]), _time(row["end_time"]))
        for one in found
        for row in one.batch_jobs[::-1]
    ]  # fmt: skip
    return [
        _cut("Sites", ("Name", "Directory", "balsam_lite", "Python", "DB", "Jobs there"), sites),
        _cut("Applications", ("Name", "Jobs", "Command", "Parameters", "Environment"), apps),
        _cut(
            "Launchers",
            ("Host", "Batch job", "Started", "Ended", "Reason", "Versions", "Modules", "Unlike its submitter's"),
            launchers,
        ),
        _cut("Batch jobs", ("Id", "Queue", "Project", "Nodes", "Minutes", "State", "Started", "Ended"), batch_jobs),
    ]


def _cut(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> _RecordTable:
    shown = [["" if cell is None else str(cell) for cell in row] for row in rows[:_MAX_ROWS]]
    return _RecordTable(title, columns, [*shown], max(len(rows) - _MAX_ROWS, 0))


def _command(app: Row) -> str:
    return str(app["command_template"] or app["executable"] or "a Python function")


def _environment(variables: Mapping[str, Any]) -> str:
    """Return environment variables with the values of secrets masked."""
    return "\n".join(f"{name}={value}" for name, value in field_specs.masked(variables).items())


def _time(time_us: int | None) -> str:
    return "" if time_us is None else moment(time_us)


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for the user's number
        return f"user {os.getuid()}"
