"""`balsam status`: how it goes, on one screen."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import click

from ..core import display, states
from ..core.clock import iso_us, spoken
from . import output
from .common import ask_sites, long_site_option
from .group import BalsamCommand, option
from .listing import Row
from .selection import ChosenJobs, Selection, selection_options

if TYPE_CHECKING:
    from ..sites.interface import SiteInterface

#: Seconds between two screens.
_MIN_PAUSE_S, _MAX_PAUSE_S = 0.2, 86400
#: Columns of the labels, and of a screen without a terminal.
_LABEL, _WIDTH = 10, 80
#: Lines for workflows, causes of failures, reasons and launches, beside one for those that are left out.
_MAX_WORKFLOWS, _MAX_FAILURES, _MAX_REASONS, _MAX_LAUNCHES, _MAX_NODES, _MAX_NEXT = 4, 3, 3, 3, 6, 2
#: Columns of the table, and the states whose jobs each counts.
_COLUMNS = {
    "waiting": (states.AWAITING_PARENTS, *states.UNPREPARED_STATES, *states.RUNNABLE_STATES),
    "running": (states.RUNNING, *states.UNSETTLED_STATES),
    "finished": (states.JOB_FINISHED,),
    "failed": (states.FAILED,),
    "killed": (states.USER_KILLED,),
}  # fmt: skip
#: Reasons that need nothing to be done, and the beginnings of the remedies of others.
_PATIENCE, _WAIT = ("waits-for-parents", "priority", "unexamined"), ("Wait", "Nothing")


@click.command(cls=BalsamCommand)
@option("--refresh", is_flag=True, help="Ask the scheduler about launches first; else its last answer is shown.")
@option("--watch", type=float, metavar="SECONDS", help="Show it again and again, with this pause, until Ctrl-C.")
@option("--json", "as_json", is_flag=True, help="Print a JSON list of one object for each site.")
@selection_options()
@long_site_option
def status(refresh: bool, watch: float | None, as_json: bool, chosen: Selection, site: str) -> None:
    """Show how it goes: jobs by workflow and state, what runs where, the rate, the time left, failures, and why jobs wait.

    Conditions limit jobs, failures and reasons; launches, service and disk are those of the DB. The time left follows from the
    run times of the same applications and the number of jobs that run now. The last line is what to do next.

    \b
    Examples:
        balsam status
        balsam status --wf scan
        balsam status --watch 10
        balsam status --site all --json
    """
    if watch is not None and (as_json or not _MIN_PAUSE_S <= watch <= _MAX_PAUSE_S):
        raise click.UsageError(f"--watch needs a pause of {_MIN_PAUSE_S} to {_MAX_PAUSE_S} seconds, and excludes --json.")
    while True:
        answers = _answers(chosen, site, refresh)
        if as_json:
            output.write_json((_as_json(there, row) for there, row in answers), sys.stdout)
        else:
            text = "\n".join(line for there, row in answers for line in [*_screen(there, row, chosen), ""]).rstrip("\n")
            sys.stdout.write(f"{_clear() if watch is not None else ''}{text}\n")
        if watch is None:
            return
        sys.stdout.flush()
        time.sleep(watch)


def _answers(chosen: Selection, site: str, refresh: bool) -> list[tuple[SiteInterface, Row]]:
    if chosen:
        found = ChosenJobs.find(site, chosen, ask_sites)
        return [(there, there.status(found.where, refresh)) for there, _ in found.sites]
    return [answer for _, answer in ask_sites(site, lambda one: (one, one.status({}, refresh)))]


def _clear() -> str:
    """Return what clears a terminal (ECMA-48); an empty line separates screens elsewhere."""
    return "\x1b[H\x1b[2J" if sys.stdout.isatty() else "\n"


def _as_json(there: SiteInterface, row: Row) -> Row:
    times = ("created", "expected_start", "polled")
    queued = [{**one, **{name: one[name] and iso_us(one[name]) for name in times}} for one in row["queued"]]
    return {"site": there.entry.name, **row, "time": iso_us(row["time"]), "queued": queued}


# --- the screen -------------------------------------------------------------------------------------------------------


def _screen(there: SiteInterface, row: Row, chosen: Selection) -> Iterator[str]:
    """Yield the lines of a site's screen, at most 25, cut to the width of the terminal."""
    width = output.terminal_width(sys.stdout) or _WIDTH
    for line in _lines(there, row):
        yield output.cut(line[: 4 * width], width)
    todo = _next(row, chosen)
    if todo:
        indent = " " * (_LABEL if width > 4 * _LABEL else 0)
        yield from textwrap.wrap(_fact("Next", todo), width, subsequent_indent=indent, break_on_hyphens=False)[:_MAX_NEXT]


def _lines(there: SiteInterface, row: Row) -> Iterator[str]:
    yield f"{output.one_line(there.entry.name)}, {display.moment(row['time'])}"
    if not row["states"]:
        yield "There are no jobs yet."
    else:
        yield from _table(row)
        yield _fact("Progress", _progress(row))
        if row["running"]:
            yield _fact("Running", _running(row))
    yield from _several("Failed", [f"{one['jobs']:>8}  {one['cause']}" for one in row["failures"]], _MAX_FAILURES, "cause")
    yield from _waiting(row)
    yield from _several("Launches", [*_launches(row)], _MAX_LAUNCHES, "launch", row["other_launchers"] + row["other_queued"])
    disk = "unknown" if row["disk_free_bytes"] is None else f"{display.size(row['disk_free_bytes'])} free"
    yield _fact("Service", f"{row['service'] or 'none'}; disk: {disk}")


def _fact(label: str, text: str) -> str:
    return f"{label:{_LABEL}}{output.one_line(text)}".rstrip()


def _several(label: str, texts: Sequence[str], most: int, noun: str, others: int = 0) -> Iterator[str]:
    """Yield a line for each of the first texts, and one for the number of the others."""
    others += max(0, len(texts) - most)
    for place, text in enumerate(texts[:most]):
        yield _fact(label if place == 0 else "", text.partition("\n")[0])
    if others:
        yield _fact("", f"{'':8}  and {others} more {noun}{'es' if noun == 'launch' and others > 1 else 's' * (others > 1)}")


def _waiting(row: Row) -> Iterator[str]:
    """Yield the most frequent reasons, and how many jobs were not examined in the time for it."""
    groups = [one for one in row["waiting"] if one["code"] != "unexamined"]
    texts = [f"{one['jobs']:>8}  {one['reason']}{' (' + one['of'] + ')' if one['of'] else ''}" for one in groups]
    unseen = sum(one["jobs"] for one in row["waiting"] if one["code"] == "unexamined")
    for place, text in enumerate(texts[:_MAX_REASONS]):
        yield _fact("Waiting" if place == 0 else "", text.partition("\n")[0])
    others = max(0, len(texts) - _MAX_REASONS) + row["other_reasons"]
    more = [f"{others} more reason{'s' * (others > 1)}"] * bool(others) + [f"{unseen} more jobs not examined"] * bool(unseen)
    if more:
        yield _fact("" if texts else "Waiting", f"{'':8}  and {' and '.join(more)}: `balsam explain`")


def _table(row: Row) -> Iterator[str]:
    """Yield the numbers of jobs by workflow and state, those of the workflows with the most jobs to do first."""
    named = [(one["workflow"] or "(none)", _counts(one["states"])) for one in row["workflows"]]
    number = len(named) + row["other_workflows"]
    total = _counts(row["states"])
    if number > _MAX_WORKFLOWS + 1 or row["other_workflows"]:
        named = named[:_MAX_WORKFLOWS]
        rest = {name: jobs - sum(counts[name] for _, counts in named) for name, jobs in total.items()}
        named.append((f"{number - _MAX_WORKFLOWS} others", rest))
    if number != 1:
        named.append(("all", total))
    width = output.terminal_width(sys.stdout) or _WIDTH
    columns = [name for name in total if name in ("jobs", "waiting", "running", "finished") or total[name]]
    left = max(_LABEL, width - sum(len(name) + 2 if len(name) > 8 else 10 for name in columns))
    names = [output.cut(output.one_line(name), left) for name, _ in named]
    left = max(len("workflow"), *map(len, names))
    yield f"{'workflow':{left}}" + "".join(f"{name:>10}" for name in columns)
    for name, (_, counts) in zip(names, named):
        yield f"{name:{left}}" + "".join(f"{counts[column]:>10}" for column in columns)


def _counts(by_state: Mapping[str, int]) -> dict[str, int]:
    return {"jobs": sum(by_state.values())} | {
        column: sum(by_state.get(state, 0) for state in those) for column, those in _COLUMNS.items()
    }


def _progress(row: Row) -> str:
    counts = _counts(row["states"])
    pending = counts["waiting"] + counts["running"]
    parts = [f"{100 * (counts['jobs'] - pending) // counts['jobs']} % ended"]
    if row["ended_per_s"]:
        parts.append(f"{output.rate(row['ended_per_s'])} in the last {spoken(row['rate_window_s'])}")
    if pending:
        known = row["left_s"] is not None
        parts.append(f"time left: about {spoken(row['left_s'])}" if known else "time left: unknown")
    return ", ".join(parts)


def _running(row: Row) -> str:
    some = [f"{one['node'] or 'unknown node'} ({one['jobs']})" for one in row["running"][:_MAX_NODES]]
    more = row["running_nodes"] - len(some)
    return f"on {', '.join(some)}{f' and {more} more' if more > 0 else ''}"


def _launches(row: Row) -> Iterator[str]:
    for one in row["launchers"]:
        left = "" if one["left_s"] is None else f", {spoken(one['left_s'])} left"
        trouble = f": {one['trouble']}" if one["trouble"] else ""
        nodes, jobs = display.counted(one["nodes"], "node"), display.counted(one["jobs"], "job")
        yield f"{one['launcher']}: {nodes}, {jobs}, {spoken(one['used_s'])} used{left}{trouble}"
    yield from (f"{name} is getting ready" for name in row["starting"])
    yield from row["doubted"]
    for one in row["queued"]:
        words = [f"qlaunch{one['id']} {one['state']} {spoken((row['time'] - one['created']) / 1e6)}"]
        words[0] += f": {one['reason']}" if one["reason"] else ""
        words += [f"start {display.moment(one['expected_start'])[5:16]}"] if one["expected_start"] else []
        words += [f"asked {spoken((row['time'] - one['polled']) / 1e6)} ago"] if one["polled"] else []
        yield ", ".join([*words, display.counted(one["nodes"], "node")])


def _next(row: Row, chosen: Selection) -> str:
    """Return what to do, "" if there is nothing to do but wait."""
    if not row["states"]:
        return "add jobs: `balsam job --help`"
    counts = _counts(row["states"])
    for one in row["waiting"]:
        if one["code"] not in _PATIENCE and not one["remedy"].startswith(_WAIT):
            return str(one["remedy"].replace("JOB", (one["example"] or "JOB")[: output.SHORT_ID]))
    if counts["failed"]:
        same = " (with the same conditions)" * bool(chosen)
        return f"`balsam explain --state FAILED` tells why; `balsam rerun --state FAILED` runs them again{same}"
    return ""
