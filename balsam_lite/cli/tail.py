"""`balsam tail`: the last lines of what jobs have written, and what they write from now on."""

from __future__ import annotations

import select
import sys
import time
from base64 import b64decode
from codecs import getincrementaldecoder
from collections import Counter
from typing import TYPE_CHECKING

import click

from ..core import growing_file
from ..core.errors import DatabaseBusy, SiteUnreachable
from . import output
from .common import COUNT0, ask_sites, long_site_option, say, warn
from .group import BalsamCommand, option
from .selection import A_JOB, ChosenJobs, Selection, selection_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ..sites.interface import Row, SiteInterface

#: Pauses between two looks at the files, in seconds: on this host, and where a look locks the DB or goes through ssh.
_PAUSE_S, _FAR_PAUSE_S = 0.25, 2.0
#: A pause takes at least this number of times as long as the look before it.
_PAUSE_PER_LOOK = 5
#: Looks at a site may fail for this number of seconds.
_MAX_OUTAGE_S = 60.0
#: Maximum number of jobs that are followed, and of those whose last lines are read at once.
_MAX_FOLLOWED = 100
#: Bytes of a line that are kept until its end comes.
_MAX_LINE_BYTES = 1 << 16


@click.command(cls=BalsamCommand)
@option("-f", "--follow", is_flag=True, help="Go on with what is written, in later attempts too, until all jobs have ended.")
@option("-n", "--lines", type=COUNT0, default=10, show_default=True, metavar="N", help="Number of last lines to begin with.")
@option("--file", default="", metavar="NAME", help="Another file in the working directory instead of the output.")
@option("--json", "as_json", is_flag=True, help="Print a JSON list, one object for each job; without -f.")
@selection_options(without=("workdir",), has_jobs=True)
@long_site_option
def tail(follow: bool, lines: int, file: str, as_json: bool, chosen: Selection, site: str) -> None:
    """Show the last lines of the output of jobs, and with -f what they write from now on.

    JOB is a number, a unique prefix of an id, or a name. Lines of several jobs begin with their names. New attempts and ends of
    jobs are reported on stderr. Bytes that would steer a terminal are shown as escapes; files and pipes get all bytes.

    \b
    Examples:
        balsam tail 7df8
        balsam tail -f simulate
        balsam tail -n 100 --file solver.log 7df8
        balsam tail -f --wf scan --state RUNNING
    """
    if not chosen:
        raise click.UsageError(f"Which jobs? Name them ({A_JOB}), or give conditions such as --state and --wf.")
    if follow and as_json:
        raise click.UsageError("--follow and --json exclude each other.")
    found = ChosenJobs.find(site, chosen, ask_sites)
    if as_json:
        output.write_json(_objects(found, file, lines), sys.stdout)
        return
    if follow and found.total > _MAX_FOLLOWED:
        raise click.UsageError(f"{found.total} jobs match; at most {_MAX_FOLLOWED} can be followed. Give more conditions.")
    code = 0
    printer = _Printer(is_labelled=found.total > 1)
    followed: dict[SiteInterface, list[_Followed]] = {}
    for there, number in found.sites:
        jobs = [_Followed(row) for row in there.page(found.where, ("id", "job_id", "name"), size=number)]
        if follow:
            followed[there] = jobs
        for start in range(0, 0 if follow else len(jobs), _MAX_FOLLOWED):
            code |= _show_last(there, jobs[start : start + _MAX_FOLLOWED], file, lines, printer)
    if follow:
        _label([job for jobs in followed.values() for job in jobs])
        code = _follow(followed, file, lines, printer)
    click.get_current_context().exit(code)


def _objects(found: ChosenJobs, file: str, lines: int) -> Iterator[Row]:
    """Yield the last lines of each job, as `docs/json.rst` describes."""
    for there, number in found.sites:
        numbers = [row["id"] for row in there.page(found.where, ("id",), size=number)]
        for start in range(0, len(numbers), _MAX_FOLLOWED):
            places = [[one] for one in numbers[start : start + _MAX_FOLLOWED]]
            rows: dict[int, Row] = {}
            data: dict[int, bytes] = {}
            while places:
                read = there.outputs(places, file, lines)
                pieces = {row["id"]: b64decode(row["data"]) for row in read}
                rows.update({row["id"]: row for row in read})
                data.update({number: data.get(number, b"") + piece for number, piece in pieces.items()})
                places = [row["place"] for row in read if len(pieces[row["id"]]) == growing_file.PIECE_BYTES]
            for row in rows.values():
                text = data[row["id"]].decode(errors="replace")
                kept = {name: row[name] for name in ("id", "job_id", "name", "state", "attempt", "path", "error")}
                yield {"site": there.entry.name, **kept, "lines": text.removesuffix("\n").split("\n") if text else []}


class _Followed:
    """A job whose output is shown."""

    def __init__(self, row: Row) -> None:
        self.name = output.one_line(row["name"] or row["job_id"][: output.SHORT_ID])
        self.cute_id = output.cute_id(row["name"], row["job_id"])
        self.place: list[int] = [row["id"]]  # as `SiteInterface.outputs` takes it
        self.has_file = False
        self.trouble = ""  # why nothing is read, as it was last reported
        self.rest = b""  # the beginning of a line whose end has not come yet

    @property
    def number(self) -> int:
        """The number of the job at its site."""
        return self.place[0]

    def take(self, row: Row) -> bytes:
        """Return what was read of the job, report a new attempt, and read on after it."""
        if row["error"]:
            self.place = [*self.place, row["attempt"], 0, 0] if len(self.place) == 1 else self.place
            return b""
        if self.has_file and row["place"][1] != self.place[1]:
            self.report(f"attempt {row['place'][1]}")
        self.place, self.has_file, self.trouble = row["place"], True, ""
        return b64decode(row["data"])

    def report(self, text: str) -> None:
        """Print words about the job, after what it has written."""
        sys.stdout.flush()
        say(f"{self.cute_id} {output.one_line(text)}")


def _label(jobs: Sequence[_Followed]) -> None:
    """Let jobs of the same name be told apart."""
    names = Counter(job.name for job in jobs)
    for job in jobs:
        job.name = job.name if names[job.name] == 1 else job.cute_id


def _show_last(there: SiteInterface, jobs: list[_Followed], file: str, lines: int, printer: _Printer) -> int:
    """Print the last lines of these jobs; return the exit code: 1 if one has none that can be read."""
    code = 0
    _label(jobs)
    while jobs:
        by_number = {job.number: job for job in jobs}
        jobs = []
        for row in there.outputs([job.place for job in by_number.values()], file, lines):
            job = by_number[row["id"]]
            data = job.take(row)
            printer.write(job, data)
            if row["error"]:
                code = 1
                job.report(f"is {row['state']}, {row['error']}")
            if len(data) == growing_file.PIECE_BYTES:
                jobs.append(job)
            else:
                printer.end(job)
    return code


def _follow(followed: dict[SiteInterface, list[_Followed]], file: str, lines: int, printer: _Printer) -> int:
    """Print what is written until all jobs have ended; return the exit code, 1 if one was removed."""
    code = 0
    failing_since: dict[SiteInterface, float] = {}
    while True:
        began, has_more = time.monotonic(), False
        for there, jobs in followed.items():
            try:
                rows = {row["id"]: row for row in there.outputs([job.place for job in jobs], file, lines)} if jobs else {}
            except (SiteUnreachable, DatabaseBusy) as exc:
                if there not in failing_since:
                    warn(f"{output.one_line(exc.message)}; trying again")
                if began - failing_since.setdefault(there, began) > _MAX_OUTAGE_S:
                    raise
                continue
            failing_since.pop(there, None)
            for job in list(jobs):
                row = rows.get(job.number)
                data = job.take(row) if row else b""
                printer.write(job, data)
                has_more |= bool(data)
                if row and row["error"] != job.trouble and not row["has_ended"]:
                    job.trouble = row["error"]
                    job.report(f"is {row['state']}, {row['error']}")
                if row is None or (row["has_ended"] and not data):
                    jobs.remove(job)
                    printer.end(job)
                    code |= row is None
                    job.report(f"is {row['state']}" if row else "was removed")
        sys.stdout.flush()
        if not any(followed.values()):
            return code
        took_s = time.monotonic() - began
        _sleep(0 if has_more else max(*map(_pause_s, followed), _PAUSE_PER_LOOK * took_s))


def _pause_s(there: SiteInterface) -> float:
    """Return how long to wait before the next look at a site."""
    from ..sites.local import LocalSite

    return _PAUSE_S if isinstance(there, LocalSite) and there.database.access == "local" else _FAR_PAUSE_S


def _sleep(seconds: float) -> None:
    """Wait. Raise BrokenPipeError when the reader of stdout has gone."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
    except (OSError, ValueError):  # no file, in tests
        time.sleep(seconds)
        return
    if poll.poll(seconds * 1000):
        raise BrokenPipeError


class _Printer:
    """Prints pieces of outputs: as they are, or for a terminal with escapes; of several jobs whole lines with their names."""

    def __init__(self, is_labelled: bool) -> None:
        self._is_labelled = is_labelled
        self._raw = None if sys.stdout.isatty() else getattr(sys.stdout, "buffer", None)
        self._decode = getincrementaldecoder("utf-8")(errors="replace").decode

    def write(self, job: _Followed, data: bytes) -> None:
        """Print what a job has written."""
        if not data:
            return
        if self._is_labelled:
            *lines, job.rest = (job.rest + data).split(b"\n")
            if len(job.rest) > _MAX_LINE_BYTES:
                lines, job.rest = [*lines, job.rest], b""
            label = f"{job.name} | ".encode(errors="replace")
            data = b"".join(b"%s%s\n" % (label, line) for line in lines)
        if self._raw is not None:
            sys.stdout.flush()
            self._raw.write(data)
        else:
            text = self._decode(data)
            sys.stdout.write(output.many_lines(text.replace("\r\n", "\n").replace("\r", "\n")))

    def end(self, job: _Followed) -> None:
        """Print the beginning of a line that is left."""
        if job.rest:
            self.write(job, b"\n")
