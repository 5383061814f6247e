"""`balsam diff`: what differs between two sets of jobs."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from ..core import display
from ..core.errors import AmbiguousSite, BalsamError, NotFound, did_you_mean
from ..db.query import queries
from ..db.query.filters import all_of, condition_from_text
from . import output
from .common import long_site_option, number, one_site
from .exchange import local_database
from .group import BalsamCommand, LaterOption, option

if TYPE_CHECKING:
    from ..campaigns.comparison import ComparedJob, JobComparison
    from ..db.engine.connection import Database

#: Jobs that are named of one set alone, and rows of the table.
_MAX_NAMED, _MAX_ROWS = 5, 20
_COLUMNS = ("job", "what", "a", "b")


@click.command(cls=BalsamCommand)
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@option("--rtol", "tolerance", type=float, default=0.0, callback=number, metavar="X",
        help="Relative difference up to which numbers in results are equal. [default: 0]")  # fmt: skip
@option("-v", "--verbose", cls=LaterOption, is_flag=True, help=f"List all differences, not only {_MAX_ROWS}.")
@option("--json", "as_json", is_flag=True, help="Print the comparison as a JSON list with one object.")
@long_site_option
@click.pass_context
def diff(ctx: click.Context, a: str, b: str, tolerance: float, verbose: bool, as_json: bool, site: str) -> None:
    """Compare two sets of jobs: parameters, states, run times, and results (`data`, return values and return codes).

    A and B are each the name of a workflow, an archive of `balsam export`, or conditions in quotes, such as 'workflow=scan
    state=FAILED'. Jobs are matched by unique_key, else by name and parameters, else by name. The exit code is 0 if all jobs are
    matched and equal, 1 if not, 2 or 3 after an error. Run times do not count.

    \b
    Examples:
        balsam diff scan-1 scan-2
        balsam diff scan scan-before.tar.gz --rtol 1e-6
        balsam diff 'tags__version=1' 'tags__version=2' --json
    """
    from ..campaigns import comparison

    try:
        database = _LazySite(site)
        with _jobs(a, database) as jobs_a, _jobs(b, database) as jobs_b:
            found = comparison.compare(jobs_a, jobs_b, tolerance)
    except BalsamError as exc:
        if exc.exit_code == 1:  # which means that the sets differ
            exc.exit_code = 2
        raise
    if not (found.jobs_a or found.jobs_b):
        raise NotFound("Neither set has any job.", hint="`balsam ls wf` shows the workflows.")
    if as_json:
        output.write_json((_as_json(found),), sys.stdout)
    else:
        _print(a, b, found, verbose)
    ctx.exit(0 if found.is_same else 1)


class _LazySite:
    """The DB of a site, opened when it is needed: two archives need none."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._database: Database | None = None

    @property
    def database(self) -> Database:
        if self._database is None:
            self._database = local_database(one_site(self._site), "diff")
        return self._database


@contextmanager
def _jobs(word: str, site: _LazySite) -> Iterator[Iterator[ComparedJob]]:
    """Yield the jobs that an argument means.

    Raises:
        NotFound: it is no workflow and no archive. AmbiguousSite: it is both.
    """
    from ..campaigns import archive, comparison, containers

    path = os.path.expanduser(word)
    is_archive = os.path.isfile(os.path.join(path, containers.MARK)) or os.path.isfile(path)
    if is_archive and ("/" in word or containers.compression_of(word) is not None):
        with archive.open_archive(path) as found:
            yield comparison.jobs_of_archive(found)
        return
    if "=" in word:
        where = all_of(*(condition_from_text(text) for text in shlex.split(word)))
        yield comparison.jobs_of_db(site.database, where)
        return
    with site.database.read() as cx:
        known = queries.workflows(cx)
    if is_archive and word in known:
        raise AmbiguousSite(f"{word} is a workflow and a file.", hint=f"Give ./{word} or workflow={word}.")
    if is_archive:
        with archive.open_archive(path) as found:
            yield comparison.jobs_of_archive(found)
    elif word in known:
        yield comparison.jobs_of_db(site.database, {"workflow": word})
    else:
        raise NotFound(
            f"There is no workflow and no archive {word!r}.{did_you_mean(word, known)}",
            hint="`balsam ls wf` shows the workflows. Conditions look like 'workflow=scan state=FAILED'.",
        )


# --- printing ---------------------------------------------------------------------------------------------------------


def _print(a: str, b: str, found: JobComparison, verbose: bool) -> None:
    click.echo(f"A: {output.one_line(a)}, {output.plural(found.jobs_a, 'job')}")
    click.echo(f"B: {output.one_line(b)}, {output.plural(found.jobs_b, 'job')}")
    by = ", ".join(f"{number} by {kind}" for kind, number in found.matched.items() if number)
    click.echo(f"Matched: {sum(found.matched.values())}{f' ({by})' * bool(by)}")
    for label, jobs in (("A", found.only_a), ("B", found.only_b)):
        if jobs:
            named = ", ".join(output.one_line(job.name) or f"#{job.number}" for job in islice(jobs, _MAX_NAMED))
            click.echo(f"Only in {label}: {output.plural(len(jobs), 'job')}: {named}{', …' * (len(jobs) > _MAX_NAMED)}")
    if not any(found.matched.values()):
        click.echo("No job of A has a job of B with its unique_key, or its name.")
        return
    for label, kind in (("Parameters", "parameters"), ("Results", "results")):
        counts = found.counts(kind)
        pairs = sum(any(one.kind == kind for one in pair.differences) for pair in found.pairs)
        fields = ", ".join(f"{output.one_line(name)} ({number})" for name, number in islice(counts.items(), 8))
        more = ", …" * (len(counts) > 8)
        click.echo(f"{label}: {f'{pairs} differ: {fields}{more}' if counts else 'equal'}")
    changed = {states: number for states, number in found.states.items() if states[0] != states[1]}
    moves = ", ".join(f"{before} -> {after} ({number})" for (before, after), number in changed.items())
    click.echo(f"States: {f'{sum(changed.values())} differ: {moves}' if changed else 'equal'}")
    click.echo(f"Run times: {_run_times(found)}")
    rows = [
        {"job": output.one_line(pair.a.name) or f"#{pair.a.number}", "what": one.field, "a": one.a, "b": one.b}
        for pair in found.pairs
        for one in pair.differences
    ]
    if rows:
        click.echo()
        shown = rows if verbose else rows[:_MAX_ROWS]
        output.write_tables("table", _COLUMNS, shown, sys.stdout, output.terminal_width(sys.stdout), True)
        if len(shown) < len(rows):
            click.echo(f"... and {output.plural(len(rows) - len(shown), 'more difference')}; -v lists all.")


def _run_times(found: JobComparison) -> str:
    times = found.run_times
    if times is None:
        return "none to compare"
    medians = f"median {display.duration(times.median_a_s)} -> {display.duration(times.median_b_s)}"
    verdict = f"significant, p = {times.p:.2g}" if times.is_significant else "not significant"
    return f"{medians}, B / A = {times.ratio:.3g} ({output.plural(times.pairs, 'pair')}, {verdict})"


def _as_json(found: JobComparison) -> dict[str, Any]:
    times = found.run_times
    return {
        "is_same": found.is_same, "jobs_a": found.jobs_a, "jobs_b": found.jobs_b, "matched": found.matched,
        "only_a": _numbers(found.only_a), "only_b": _numbers(found.only_b),
        "parameters": found.counts("parameters"), "results": found.counts("results"),
        "states": [{"a": a, "b": b, "jobs": number} for (a, b), number in found.states.items()],
        "run_times": times and {**times._asdict(), "is_significant": times.is_significant},
        "differences": [
            {"name": pair.a.name, "a": pair.a.number, "b": pair.b.number, "matched_by": pair.matched_by,
             "fields": [one._asdict() for one in pair.differences]}
            for pair in found.pairs
        ],
    }  # fmt: skip


def _numbers(jobs: Sequence[ComparedJob]) -> list[dict[str, Any]]:
    return [{"id": job.number, "name": job.name} for job in jobs]
