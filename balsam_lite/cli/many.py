"""`balsam job --sweep`, `--array`, `--from-file` and `--commands`: add many jobs."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from typing import Any

import click

from ..campaigns import job_rows, readers, sweep
from ..core.errors import AmbiguousJobId, BalsamError, InputError
from ..db.engine import registry
from ..sites.interface import Row, SiteInterface
from . import output
from .common import confirm_or_end, progress_of, say, warn
from .selection import job_of_other_site

_SOURCES = {"from_file": "--from-file", "commands": "--commands"}
#: Rows of JSON lines that are shown have no more characters than that.
_MAX_SHOWN = 300


def check(options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that do not go together."""
    is_sweep = bool(options["sweeps"] or options["array"] is not None)
    chosen = [_SOURCES[name] for name in _SOURCES if options[name] is not None]
    chosen += ["--sweep"] * bool(options["sweeps"]) or ["--array"] * is_sweep
    if len(chosen) > 1:
        raise click.UsageError(f"{chosen[0]} and {chosen[1]} exclude each other.")
    for name, word in (("is_zipped", "--zip"), ("random", "--random")):
        if options[name] and not is_sweep:
            raise click.UsageError(f"{word} goes with --sweep.")
    if options["seed"] is not None and options["random"] is None:
        raise click.UsageError("--seed goes with --random.")
    if options["input_format"] and options["from_file"] is None:
        raise click.UsageError("--input-format goes with --from-file.")
    if options["commands"] is not None and options["application"]:
        raise click.UsageError("--commands has its own application, which runs each line by bash; leave out --app.")


def add(target: SiteInterface, options: Mapping[str, Any], fields: Row, app: Row | None, yes: bool) -> None:
    """Add the jobs, or show what would be added. The answer "no" ends the command.

    Args:
        fields: of all jobs, as typed. app: the application that all have, if one is given.
    """
    if "-" in (options["from_file"], options["commands"]) and not yes and not options["dry_run"]:
        raise click.UsageError(
            "The jobs are read from stdin, so there is no terminal to confirm them: give --yes or --dry-run."
        )
    fields = job_rows.of_options(fields)
    with ExitStack() as stack:
        reader: readers.RowReader | None = None
        if options["commands"] is not None:
            source = readers.Commands(options["commands"])
            rows: Any = job_rows.CommandRows(source, fields)
            reader = stack.enter_context(source)
        elif options["from_file"] is not None:
            table = _open_table(options)
            reader = stack.enter_context(table)
            of_table = job_rows.FileRows(table, fields, _parameters(target, app, table))
            rows = _RemoteParents(of_table, target, options["dry_run"] or not yes)
        else:
            rows = _sweep_rows(options, fields, app)
        many = _ManyJobs(target, rows, options, reader)
        try:
            many.carry_out(yes, lambda: add(target, options, fields, app, yes=True))
        except BalsamError as exc:
            raise (job_rows.located(exc, reader) if reader else exc) from exc


class _ManyJobs:
    """Jobs to be added; notes the first and the last one on the way."""

    def __init__(self, target: SiteInterface, rows: Any, options: Mapping[str, Any], reader: readers.RowReader | None) -> None:
        self._target, self._rows, self._reader = target, rows, reader
        self._unique, self._on_duplicate = options["unique"], options["on_duplicate"] or "refuse"
        self._is_dry_run = options["dry_run"]
        self._new_app = job_rows.COMMANDS_APP if options["commands"] is not None else None
        self._number = 0
        self._first: Row | None = None
        self._last: Row | None = None

    def carry_out(self, yes: bool, again: Callable[[], None]) -> None:
        """Add the jobs, after a confirmation unless `yes`. A file is read to the end first, and then `again`."""
        if isinstance(self._rows, job_rows.SweepRows):
            if not yes or self._is_dry_run:
                self._number, self._first, self._last = self._rows.total, self._rows[0], self._rows[self._rows.total - 1]
                self._show()
            if not yes and not self._is_dry_run:
                confirm_or_end(f"Add {output.plural(self._number, 'job')}?", "Add jobs")
            self._tell(self._add(self._is_dry_run))
        elif self._is_dry_run or not yes:
            added = self._add(True)
            self._show()
            if self._is_dry_run:
                self._tell(added)
            else:
                confirm_or_end(f"Add {output.plural(added['jobs'], 'job')}?", "Add jobs")
                again()
        else:
            self._tell(self._add(False))

    def _add(self, dry_run: bool) -> Row:
        with progress_of(self._total()) as progress:
            self._target.progress = progress
            rows = self._noted(job_rows.with_keys(self._rows, self._unique) if self._unique else self._rows)
            return self._target.add_jobs(rows, self._on_duplicate, dry_run, self._new_app)

    def _noted(self, rows: Iterable[Row]) -> Iterator[Row]:
        self._number = 0
        row: Row | None = None
        for row in rows:
            if not self._number:
                self._first = {**row}
            self._number += 1
            yield row
        if row is None:
            raise InputError(f"{self._reader.name if self._reader else 'The sweep'} has no jobs; nothing was added.")
        self._last = row

    def _total(self) -> int:
        """Return what the progress counts to: each job once as it is read and once as it is inserted; 0: unknown."""
        if isinstance(self._rows, job_rows.SweepRows):
            return 2 * self._rows.total
        return 2 * self._reader.count_lines() if self._reader and sys.stderr.isatty() else 0

    def _show(self) -> None:
        names = [("first", self._first), ("last", self._last)] if self._number > 1 else [("job", self._first)]
        for word, row in names:
            if row is not None:
                click.echo(f"{word + ':':6} {_in_words(row)}")

    def _tell(self, added: Row) -> None:
        jobs, skipped = added["jobs"], added["skipped"]
        if self._is_dry_run:
            click.echo(f"{output.plural(jobs, 'job')} would be added{f', {skipped} skipped' * bool(skipped)}.")
            return
        numbers = "" if not jobs else f": #{added['first']}" + f" to #{added['first'] + jobs - 1}" * (jobs > 1)
        click.echo(f"Added {output.plural(jobs, 'job')} to database{numbers}" if jobs else "Added no job")
        if skipped:
            existing = list(dict.fromkeys(added["existing"]))
            listed = ", ".join(f"#{number}" for number in existing[:5]) + ", …" * (
                len(existing) > 5 or skipped > len(added["existing"])
            )
            click.echo(f"Skipped {output.plural(skipped, 'job')} whose unique key is there already: {listed}")


def _in_words(row: Row) -> str:
    """Return a job in one line."""
    parts = [str(row.get("name") or row.get("workdir") or "")]
    shown = {name: row.get(name) for name in ("workflow", "workdir", "application")}
    shown.update(row.get("parameters") or {})
    parts += [f"{name}={value}" for name, value in shown.items() if value not in (None, "") and value != parts[0]]
    parts += [f"args: {row['args']}"] if row.get("args") else []
    return output.cut(output.one_line("  ".join(parts)), _MAX_SHOWN)


# --- sweeps -----------------------------------------------------------------------------------------------------------


def _sweep_rows(options: Mapping[str, Any], fields: Row, app: Row | None) -> job_rows.SweepRows:
    variables = [sweep.parse(text, readers.values_of) for text in options["sweeps"]]
    if options["array"] is not None:
        variables.append(sweep.parse_array(options["array"]))
    whole = sweep.Zip(variables) if options["is_zipped"] else sweep.Product(variables)
    chosen: sweep.Sweep = whole
    if options["random"] is not None:
        seed = options["seed"]
        if seed is None:
            seed = secrets.randbelow(1 << 32)
            say(f"Drawn with --seed {seed}.")
        chosen = sweep.Sample(whole, options["random"], seed)
    sweep.refuse_too_many(chosen.total)
    assert app is not None
    takes_all = app["kind"] == "command" or bool(app["definition"].get("open"))
    rows = job_rows.SweepRows(chosen, fields, None if takes_all else app["parameters"])
    unused = [name for name in rows.unused if name != "i"]
    if unused:
        names = ", ".join(f"{{{name}}}" for name in unused)
        warn(f"{names} is in none of the jobs' arguments, and {app['name']} has no such parameter: their runs will not differ.")
    return rows


# --- files ------------------------------------------------------------------------------------------------------------


def _open_table(options: Mapping[str, Any]) -> readers.CsvTable | readers.JsonLines:
    path = options["from_file"]
    if path == "-" and not options["input_format"]:
        raise click.UsageError(
            f"Name the format of stdin with --input-format: {', '.join(sorted({*readers.FORMATS.values()}))}."
        )
    form = readers.format_of(path, options["input_format"])
    return readers.JsonLines(path) if form == "jsonl" else readers.CsvTable(path, form)


def _parameters(target: SiteInterface, app: Row | None, table: readers.RowReader) -> Sequence[str]:
    """Return the names of the parameters that columns can have."""
    columns = getattr(table, "columns", None)
    has_app = columns is None or not {"application", "app"}.isdisjoint(columns)
    if app is None and not has_app:
        raise click.UsageError("Which application? Give --app, or a column `application`.")
    apps = [app] if app is not None and columns is not None and not has_app else target.select("app")
    return list(dict.fromkeys(name for one in apps for name in one["parameters"]))


#: Rows whose parents at other sites are looked up together.
_CHUNK = 1000
_JobOfSite = tuple[SiteInterface, int]


class _RemoteParents:
    """The rows of a table, in which SITE#NUMBER of a known site, as a parent, is a job of that site."""

    def __init__(self, rows: Iterable[Row], target: SiteInterface, dry_run: bool) -> None:
        self._rows, self._target, self._dry_run = rows, target, dry_run
        self._jobs: dict[str, _JobOfSite | None] = {}  # by words; None: a name
        self._numbers: dict[str, int] = {}  # in `parent_ids`, by words
        self._names: set[str] = set()  # of jobs of the table that look like SITE#NUMBER

    def __iter__(self) -> Iterator[Row]:
        rows, first = iter(self._rows), 1
        while some := list(islice(rows, _CHUNK)):
            self._look_up(some, first)
            yield from map(self._with_numbers, some)
            first += len(some)

    def _look_up(self, rows: Sequence[Row], first: int) -> None:
        """Find the jobs of other sites that these rows name. Raises BalsamError, with the number of the row."""
        new: dict[str, int] = {}
        number = first
        try:
            for number, row in enumerate(rows, first):
                if "#" in row["name"]:
                    self._names.add(row["name"])
                for word in row.get("parents") or ():
                    if isinstance(word, str) and "#" in word[1:] and word not in self._jobs:
                        is_site = registry.matching(word.rpartition("#")[0]) is not None
                        self._jobs[word] = job_of_other_site(self._target, word) if is_site else None
                        new.update({word: number} if self._jobs[word] else {})
            self._ask(new)
        except BalsamError as exc:
            for word, number in new.items():  # which of them?
                self._ask_for(word, number)
            raise _of_row(number, exc) from exc
        for word in self._names.intersection(self._numbers):
            raise AmbiguousJobId(
                f"{word!r} is the name of a job of the table, and as a parent also means a job of another site.",
                hint="Rename the job of the table.",
            )

    def _ask(self, words: Iterable[str]) -> None:
        from ..sites import remote_parents

        of_sites: dict[str, list[str]] = {}
        for word in words:
            of_sites.setdefault(word.rpartition("#")[0], []).append(word)
        for same in of_sites.values():
            jobs = [job for word in same if (job := self._jobs[word])]
            found = remote_parents.numbers_for(self._target, jobs[0][0], [number for _, number in jobs], self._dry_run)
            self._numbers.update(zip(same, found))

    def _ask_for(self, word: str, number: int) -> None:
        try:
            self._ask([word])
        except BalsamError as exc:
            raise _of_row(number, exc) from exc

    def _with_numbers(self, row: Row) -> Row:
        numbers = [self._numbers[word] for word in row.get("parents") or () if word in self._numbers]
        if not numbers:
            return row
        names = [word for word in row["parents"] if word not in self._numbers]
        stored = [number for number in numbers if number > 0 or not self._dry_run]
        return {**row, "parents": names, "parent_ids": [*row.get("parent_ids", ()), *stored]}


def _of_row(number: int, exc: BalsamError) -> BalsamError:
    return type(exc)(f"Job number {number}: cannot have that parent: {exc.message}", hint=exc.hint)
