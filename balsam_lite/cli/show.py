"""`balsam show`: all of a job on a screen."""

from __future__ import annotations

import sys
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import click

from ..core import display, field_specs, states
from ..core.clock import SECOND_US, SystemClock, iso_us
from ..core.errors import NotFound
from . import listing, output
from .common import ask_sites, long_site_option
from .group import BalsamCommand, option
from .listing import Row
from .selection import A_JOB, ChosenJobs, Selection, selection_options

if TYPE_CHECKING:
    from ..sites.interface import SiteInterface

#: Jobs that are read at once, lines of the output to show, and the maximum of characters of each.
_PAGE, _LINES, _MAX_LINE = 100, 10, 500
#: Maximum number of edits to show, the newest ones.
_MAX_EDITS = 5
#: Columns of the labels, and of a terminal below which they have lines to themselves.
_LABEL, _NARROW = 13, 40
_ATTEMPTS = ("attempt", "started", "ran", "node", "exit", "memory", "CPU", "GPUs", "end")
#: Fields that are shown elsewhere on the screen, or of no use to people.
_ELSEWHERE = ("name", "state", "workdir", "application", "args", "created", "attempt", "lease", "unfinished_parents", "failure")


@click.command(cls=BalsamCommand)
@option("--workdir", "only_directory", is_flag=True, help="Print only the path of the working directory.")
@option("--output", "only_output", is_flag=True, help="Print only the path of the output file.")
@option("--json", "as_json", is_flag=True, help="Print a JSON list, one object a line.")
@selection_options(without=("workdir",), has_jobs=True)
@long_site_option
def show(only_directory: bool, only_output: bool, as_json: bool, chosen: Selection, site: str) -> None:
    """Show all of a job: its state and why, its command and fields, parents and children, attempts, and the end of its output.

    JOB is a number, a unique prefix of an id, or a name.

    \b
    Examples:
        balsam show 7df8
        cd "$(balsam show 7df8 --workdir)"
        less "$(balsam show simulate --output)"
        balsam show --wf scan --state FAILED --json
    """
    if not chosen:
        raise click.UsageError(f"Which jobs? Name them ({A_JOB}), or give conditions such as --state and --wf.")
    if only_directory + only_output + as_json > 1:
        raise click.UsageError("--workdir, --output and --json exclude each other.")
    found = ChosenJobs.find(site, chosen, ask_sites)
    if as_json:
        number = output.write_json((_as_json(there, row) for there, row in _details(found)), sys.stdout)
    else:
        number = 0
        for number, (there, row) in enumerate(_details(found), 1):
            if only_directory or only_output:
                _write(row["directory" if only_directory else "output"], sys.stdout)
            else:
                sys.stdout.write("\n" * (number > 1))
                of_site = f" of {output.one_line(there.entry.name)}" if found.of_sites else ""
                print_job(there, row, of_site, sys.stdout, output.terminal_width(sys.stdout))
    if not number:
        raise NotFound("The job was removed while it was read.")


def _details(found: ChosenJobs) -> Iterator[tuple[SiteInterface, Row]]:
    for there, _ in found.sites:
        after = 0
        while rows := there.page(found.where, ("id",), after, _PAGE):
            after = rows[-1]["id"]
            for row in there.details([row["id"] for row in rows]):
                yield there, row


def _last_lines(there: SiteInterface, number: int) -> tuple[list[str], str]:
    """Return the last lines of the output of a job, and why there are none."""
    for row in there.outputs([[number]], "", _LINES):
        text = b64decode(row["data"]).decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")
        return text.rstrip("\n").split("\n")[-_LINES:] if text else [], row["error"]
    return [], "the job was removed meanwhile"


def _as_json(there: SiteInterface, row: Row) -> Row:
    """Return what `docs/json.rst` describes: the keys of a job and more."""
    lines, _ = _last_lines(there, row["id"])
    whole = there.page({"id": row["id"]}, (), size=1)
    for run in row["attempts"]:
        run.update({name: run[name] and iso_us(run[name]) for name in ("started", "ended")})
    if row.get("source"):
        times = {name: row["source"][name] and iso_us(row["source"][name]) for name in ("time", "written")}
        row["source"] = {**row["source"], **times}
    row["edits"] = [listing.edit_object(edit, row) for edit in row["edits"]]
    for launcher in row["launchers"]:
        launcher.update({name: launcher[name] and iso_us(launcher[name]) for name in ("opened", "closed")})
    return {**listing.job_object({**dict(*whole), **row}, there.entry.name), "output_lines": lines}


# --- the screen -------------------------------------------------------------------------------------------------------


def print_job(there: SiteInterface, row: Row, of_site: str, file: IO[str], width: int | None) -> None:
    """Print the screen of a job, from a row of `SiteInterface.details`, in lines of that width; None: of any."""
    lines, trouble = _last_lines(there, row["id"])
    job = listing.job_object(row, there.entry.name)
    _write(f"Job {output.cute_id(row['name'], row['job_id'])}{of_site}, #{row['id']}, {row['job_id']}", file)
    for label, text in _facts(row, job):
        _print_fact(label, text, file, width)
    if row["attempts"]:
        _write("Attempts", file)
        table = [_attempt(run) for run in row["attempts"]]
        shown = [name for name in _ATTEMPTS if any(run[name] not in ("", None) for run in table)]
        output.write_tables("table", shown, table, file, width, is_fixed=False)
    for launcher in row["launchers"][-1:]:
        _print_fact("Launcher", _launcher(launcher), file, width)
    for place, edit in enumerate(row["edits"][-_MAX_EDITS:]):
        words = f"{display.moment(edit['timestamp'])}: {output.edit_in_words(edit)}"
        _print_fact("Edited" if place == 0 else "", words, file, width)
    _print_fact("Output", trouble if trouble and not lines else output.one_line(row["output"]), file, width)
    most = _MAX_LINE if width is None else max(width - 2, 1)
    for line in lines:
        _write(f"  {output.many_lines(line)[:most]}".rstrip(), file)


def _facts(row: Row, job: Row) -> Iterator[tuple[str, str]]:
    """Yield label and text of everything that is no table."""
    since = max(0, SystemClock.now_us() - row["last_update"]) / SECOND_US
    stale = ", stale" * bool(row["stale"])
    yield "State", f"{row['state']} since {display.moment(row['last_update'])} ({display.duration(since)}){stale}"
    for reason in row["reasons"]:
        yield "Why", output.many_lines(output.reason_text(reason))
        yield "", f"-> {output.one_line(reason['remedy'])}" if reason["remedy"] else ""
    yield "Application", output.one_line(row["app"] or "")
    missing = f"NO APPLICATION MATCHING {row['app']}"
    yield "Command", output.one_line(missing if row["command"] is None else row["command"])
    yield "Directory", output.one_line(row["directory"])
    shown = output.without_secrets({**job, "parameters": listing.readable_parameters(job["parameters"])})
    for field in field_specs.JOB_FIELDS:
        value = shown.get(field.name)
        if field.name not in _ELSEWHERE and value != field.default and value not in (None, "", {}, []):
            yield field.name, output.brief(value)
    if row.get("source"):  # a site of an older version sends none
        yield "Imported", _source(row["source"])
    yield from _relatives("Parents", row["parent_jobs"])
    yield from _relatives("Children", row["child_jobs"])


def _source(source: Mapping[str, Any]) -> str:
    """Return in words where a job comes from."""
    there = f" of the DB {source['directory']}" * bool(source["directory"])
    host = f" on {source['host']}" * bool(source["host"])
    return output.one_line(f"{display.moment(source['time'])[:-4]} from {source['file']}: #{source['number']}{there}{host}")


def _relatives(label: str, found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    counts = found["states"]
    if not counts:
        return
    total = sum(counts.values())
    yield (
        label,
        f"{total}: " + ", ".join(f"{counts[state]} {state}" for state in (*states.STATES, "REMOVED") if state in counts),
    )
    for one in found["some"]:
        of_site = f" {output.one_line(one['site'])}#{one['id']}" if "site" in one else ""
        yield "", f"{output.cute_id(one['name'], one['job_id'])}{of_site} {one['state']}"
    if total > len(found["some"]):
        yield "", f"... and {total - len(found['some'])} more"


def _launcher(record: Row) -> str:
    """Return in words where and with what a launcher ran."""
    differing = sorted(record["environment_difference"])
    parts = [
        f"{record['launcher']} on {record['host']}" + (f", batch job {record['scheduler_id']}" * bool(record["scheduler_id"])),
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        f"modules {', '.join(record['modules'])}" * bool(record["modules"]),
        f"{output.plural(len(differing), 'variable')} not as at its submission: {', '.join(differing)}" * bool(differing),
    ]
    return output.one_line("; ".join(filter(None, parts)))


def _attempt(run: Row) -> Row:
    """Return an attempt as a row of the table."""
    code = run["return_code"]
    cpu_s = [run[name] for name in ("user_cpu_s", "system_cpu_s") if run[name] is not None]
    runs_since = None if run["ended"] or not run["started"] else (SystemClock.now_us() - run["started"]) / SECOND_US
    ran_s = run["runtime_s"] if runs_since is None else runs_since
    return {
        "attempt": run["attempt"],
        "started": "" if run["started"] is None else display.moment(run["started"])[:-4],
        "ran": "" if ran_s is None else f"{display.duration(ran_s)}{' (running)' * (runs_since is not None)}",
        "node": run["node"],
        "GPUs": run["gpus"],
        "exit": "" if code is None else str(code) if code >= 0 else f"signal {-code}",
        "memory": "" if run["max_memory_bytes"] is None else display.size(run["max_memory_bytes"]),
        "CPU": display.duration(sum(cpu_s)) if cpu_s else "",
        "end": run["cause"],
    }


def _write(line: str, file: IO[str]) -> None:
    file.write(f"{line}\n")  # unlike click.echo, this encodes for the terminal


def _print_fact(label: str, text: str, file: IO[str], width: int | None) -> None:
    """Print a label and a text, of which further lines are below its beginning."""
    if not text:
        return
    if width is not None and width < _NARROW:
        if label:
            _write(label, file)
        lines, indent = _wrapped(text, width - 2), "  "
    else:
        lines, indent = _wrapped(text, None if width is None else width - _LABEL - 1), " " * (_LABEL + 1)
    if label == "State" and output.is_coloured(file):
        word, _, rest = lines[0].partition(" ")
        lines[0] = " ".join([output.painted(word), rest])
    for place, line in enumerate(lines):
        _write(f"{label:{_LABEL}} {line}" if place == 0 and len(indent) > 2 else f"{indent}{line}", file)


def _wrapped(text: str, width: int | None) -> list[str]:
    lines = text.split("\n")
    if width is None or all(len(line) <= width for line in lines):
        return lines
    import textwrap

    width = max(width, 1)
    return [part for line in lines for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)]
