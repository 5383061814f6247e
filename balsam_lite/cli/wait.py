"""`balsam wait`: wait until jobs have ended or reached a state, and show how far they are."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import click

from ..core import display, states
from ..core.clock import spoken
from ..core.errors import NotFound
from . import completion, listing, output
from .common import Minutes, ask_sites, long_site_option, say
from .group import BalsamCommand, option
from .selection import ChosenJobs, Selection, selection_options

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..launcher.waiter import FixedSet
    from ..sites.interface import SiteInterface

#: Exit codes: some have failed; the time is over.
_FAILED, _TIME_OVER = 1, 124
#: Jobs that one read returns when the set of jobs is determined.
_PAGE = 50_000
#: Seconds between two looks at a DB on this host, and at a site on another one.
_POLL_S, _FAR_POLL_S = 0.1, 2.0
#: Maximum number of failed jobs to list.
_MAX_LISTED = 20
#: The states of a job whose steps all succeed, in order.
_COURSE = states.STATES[: states.STATES.index(states.JOB_FINISHED) + 1]


@click.command(cls=BalsamCommand)
@option(
    "--timeout", type=Minutes(is_whole=False), metavar="TIME", help="Give up after this time: minutes, or 90s, 2h, 1-00:00:00."
)
@option("--any", "is_any", is_flag=True, help="Wait for the first one only.")
@option("--until", metavar="STATE", shell_complete=completion.states, help="Wait until they have reached this state, or ended.")
@option("--json", "as_json", is_flag=True, help="Print a JSON list of one object for each site.")
@selection_options(has_jobs=True)
@long_site_option
def wait(timeout: float | None, is_any: bool, until: str | None, as_json: bool, chosen: Selection, site: str) -> None:
    """Wait until jobs have ended: those named, those that match, or all.

    The set of jobs is determined at the start. On a terminal a line shows the progress; when nothing happens, the reason is
    printed. Exit code 0: all are JOB_FINISHED (or have reached --until); 1: some failed, were killed or removed (they are
    listed); 3: no job matches; 124: the time is over.

    \b
    Examples:
        balsam wait --wf scan --timeout 2h && ./collect.sh
        balsam wait 7df8 simulate
        balsam wait --any --tag batch=3
        balsam wait --until RUNNING simulate
    """
    from ..launcher.waiter import Waiter

    began = time.monotonic()
    reached = _states_from(states.check_state(until)) if until else ()
    found = ChosenJobs.find(site, chosen, ask_sites)
    if not found.total:
        raise NotFound("There is no job to wait for.", hint="`balsam ls` shows the jobs.")
    sets = [(there, _job_set(there, found, reached)) for there, _ in found.sites]
    progress = _ProgressLine([jobs for _, jobs in sets])
    is_over = False
    with Waiter() as waiter:
        for there, jobs in sets:
            waiter.add_set(jobs, _database_of(there), progress.say)
        for _ in waiter.rounds(None if timeout is None else max(0.0, began + 60 * timeout - time.monotonic())):
            progress.update()
            is_over = progress.pending == 0 or (is_any and progress.over > 0)
            if is_over:
                break
    progress.close()
    took_s = time.monotonic() - began
    bad = {there: _failures(there, jobs) for there, jobs in sets}
    code = _TIME_OVER if not is_over else _FAILED if any(jobs.bad for _, jobs in sets) else 0
    if as_json:
        output.write_json((_as_json(there, jobs, bad[there], took_s, not is_over) for there, jobs in sets), sys.stdout)
    else:
        _conclude([jobs for _, jobs in sets], bad, took_s, is_over, until)
    click.get_current_context().exit(code)


def _states_from(state: str) -> tuple[str, ...]:
    """Return the states of a job that has come as far as `state`."""
    if state not in _COURSE:
        return (state,)
    later = _COURSE[_COURSE.index(state) :]
    return (*later, states.RUN_ERROR, states.RUN_TIMEOUT) if states.RUNNING in later else later


def _job_set(there: SiteInterface, found: ChosenJobs, reached: tuple[str, ...]) -> FixedSet:
    """Read which jobs match, and what to wait for."""
    from ..launcher.waiter import SHARED_PAUSE_S, FixedSet

    mark = there.news()["mark"]
    database = _database_of(there)
    if database is None:
        return FixedSet(there, _states(there, found), mark, reached, _FAR_POLL_S)
    is_local = database.access == "local"
    database.changed()
    return FixedSet(there, _states(there, found), mark, reached, _POLL_S if is_local else SHARED_PAUSE_S, database.changed)


def _states(there: SiteInterface, found: ChosenJobs) -> Iterator[tuple[int, str]]:
    after = 0
    while rows := there.page(found.where, ("id", "state"), after, _PAGE):
        yield from ((row["id"], row["state"]) for row in rows)
        after = rows[-1]["id"]


def _database_of(there: SiteInterface) -> Any:
    """Return the DB of a site of this host, None for another one."""
    from ..sites.local import LocalSite

    return there.database if isinstance(there, LocalSite) else None


# --- what is printed --------------------------------------------------------------------------------------------------


def _failures(there: SiteInterface, jobs: FixedSet) -> list[listing.Row]:
    """Return the first of the jobs that failed, were killed or removed."""
    from ..launcher.waiter import DELETED

    some = dict(jobs.bad[:_MAX_LISTED])
    found = there.explain({"id": list(some)}, each=True)["jobs"] if some else []
    rows = {row["id"]: {name: row[name] for name in ("job_id", "name", "reasons")} for row in found}
    shown = []
    for number, state in some.items():
        row = rows.get(number, {"job_id": None, "name": None, "reasons": ()})
        reason = next((one["reason"] for one in row.pop("reasons")), "")
        shown.append({"id": number, **row, "state": "removed" if state == DELETED else state, "reason": reason})
    return shown


def _as_json(there: SiteInterface, jobs: FixedSet, bad: list[listing.Row], took_s: float, is_late: bool) -> listing.Row:
    return {
        "site": there.entry.name,
        "jobs": len(jobs.pending) + sum(jobs.over.values()),
        "pending": len(jobs.pending),
        "failed": len(jobs.bad),
        "states": {state or "removed": number for state, number in jobs.over.items()},
        "time_over": is_late,
        "elapsed_s": round(took_s, 3),
        "failures": bad,
    }


def _conclude(
    sets: list[FixedSet], bad: dict[SiteInterface, list[listing.Row]], took_s: float, is_over: bool, until: str | None
) -> None:
    """List the failed jobs on stdout, and print how many there were on stderr."""
    for row in (row for rows in bad.values() for row in rows):
        name = output.cute_id(row["name"], row["job_id"]) if row["job_id"] else f"#{row['id']}"
        why = f": {output.one_line(row['reason'].partition(chr(10))[0])}" if row["reason"] else ""
        click.echo(f"{name} {row['state']}{why}")
    failed, pending = sum(len(jobs.bad) for jobs in sets), sum(len(jobs.pending) for jobs in sets)
    more = failed - sum(map(len, bad.values()))
    if more:
        click.echo(f"... and {more} more; `balsam ls --state FAILED --state USER_KILLED` lists them")
    good = sum(sum(jobs.over.values()) for jobs in sets) - failed
    parts = [f"{good} {'reached ' + until if until else 'JOB_FINISHED'}"] * bool(good)
    by_state = Counter(state or "removed" for jobs in sets for _, state in jobs.bad)
    parts += [f"{number} {state}" for state, number in by_state.items()] + [f"{pending} not yet"] * bool(pending)
    say(f"{'' if is_over else 'Time over: '}{', '.join(parts)} after {display.duration(took_s)}.")


class _ProgressLine:
    """One line on a terminal, on stderr, that is written anew; elsewhere a line from time to time."""

    #: Seconds between two updates of the line, and between two lines where there is no terminal; the rate is that of a window.
    _LINE_S, _PLAIN_S, _WINDOW_S = 0.2, 60.0, 60.0

    def __init__(self, sets: list[FixedSet]) -> None:
        self._sets = sets
        self._width = output.terminal_width(sys.stderr)
        self._shown = 0  # characters of the line
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), self.over)])
        self._due = time.monotonic() + (self._PLAIN_S if self._width is None else 0.0)

    @property
    def over(self) -> int:
        """Return the number of jobs that are not waited for any more."""
        return sum(sum(jobs.over.values()) for jobs in self._sets)

    @property
    def pending(self) -> int:
        """Return the number of jobs that are waited for."""
        return sum(len(jobs.pending) for jobs in self._sets)

    def update(self) -> None:
        """Show the present numbers, if the last time is long enough ago."""
        now = time.monotonic()
        if now < self._due:
            return
        over, (then, before) = self.over, self._marks[-1]
        if self._width is None and over == before:  # nothing has happened: the reason is printed elsewhere
            return
        if now - then >= 1 or self._width is None:
            self._marks.append((now, over))
        while self._marks[0][0] < now - self._WINDOW_S and len(self._marks) > 2:
            self._marks.popleft()
        self._due = now + (self._PLAIN_S if self._width is None else self._LINE_S)
        self._write(self._text(now, over))

    def _text(self, now: float, over: int) -> str:
        total, failed = over + self.pending, sum(len(jobs.bad) for jobs in self._sets)
        first_s, first = self._marks[0]
        rate = (over - first) / max(now - first_s, 1e-3)
        words = [f"{over} of {total} ({100 * over // max(total, 1)} %)"]
        words += [f"{failed} failed"] * bool(failed)
        words += [f"{output.rate(rate)}, {spoken(self.pending / rate)} left"] if rate else []
        return ", ".join(words)

    def _write(self, text: str) -> None:
        if self._width is None:
            say(text)
            return
        bar = self._width - len(text) - 6
        if bar >= 10:
            full = bar * self.over // max(self.over + self.pending, 1)
            text = f"[{'#' * full}{'.' * (bar - full)}] {text}"
        text = text[: max(self._width - 1, 1)]
        sys.stderr.write(f"\r{text}{' ' * (self._shown - len(text))}")
        sys.stderr.flush()
        self._shown = len(text)

    def close(self) -> None:
        """Remove the line."""
        if self._shown:
            sys.stderr.write(f"\r{' ' * self._shown}\r")
            sys.stderr.flush()
            self._shown = 0

    def say(self, text: str) -> None:
        """Print words above the line."""
        self.close()
        say(text)
