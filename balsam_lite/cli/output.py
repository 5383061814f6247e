"""Print the slides' tables, JSON, YAML, and the tables of tabulate. Knows neither click nor the DB.

Text that came from a program or another user may hold anything; what would steer a terminal is shown as an escape.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import ModuleType, SimpleNamespace
from typing import IO, Any

from ..core import display, field_specs, states
from ..core.clock import format_us

_HISTORY_DASHES = "-" * 48


def one_line(text: str) -> str:
    """Return `text` for a cell of a table.

    >>> one_line("two\\nlines")
    'two\\\\nlines'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def many_lines(text: str) -> str:
    """Return `text` for a terminal, with its line breaks and tabs and nothing else that is not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def basenames(line: str) -> str:
    """Return a command line with the basename of each word instead of its path.

    >>> basenames("/usr/bin/python /home/me/run.py -v")
    'python run.py -v'
    """
    if "/" not in line:
        return line
    return " ".join(os.path.basename(word) or word for word in line.split())


def reason_text(reason: Mapping[str, Any]) -> str:
    """Return a reason that `sites.explain` gave, with those of whom it is true before the lines of an output."""
    first, newline, rest = str(reason["reason"]).partition("\n")
    return f"{first} ({reason['of']}){newline}{rest}" if reason["of"] else str(reason["reason"])


def plural(number: int, noun: str) -> str:
    """Return a number of things in words.

    >>> plural(1, "job"), plural(0, "job")
    ('1 job', '0 jobs')
    """
    return f"{number} {noun}{'s' * (number != 1)}"


# --- the slides' tables -------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], colour: bool = False) -> list[str]:
    """Return the lines of the slides' table: header cells to the right, data cells to the left, columns as wide as needed.

    With `colour` the cells of a column `state` are coloured.
    """
    cells = [["" if value is None else one_line(str(value)) for value in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(header, *cells)]
    top = " | ".join([" " * (width - _width(name)) + name for name, width in zip(header, widths)])
    place = header.index("state") if colour and "state" in header else None
    lines = []
    for row in cells:
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths)]
        if place is not None:
            padded[place] = painted(row[place]) + padded[place][len(row[place]) :]
        lines.append(" | ".join(padded).rstrip())
    return [top, "-" * len(top), *lines]


def _width(text: str) -> int:
    """Return the columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


# --- terminals --------------------------------------------------------------------------------------------------------

#: SGR codes (ECMA-48) of the states that a reader looks for; those of jobs and of batch jobs.
_COLOURS = {
    **dict.fromkeys(("FAILED", "RUN_ERROR", "submit_failed"), 31),
    **dict.fromkeys(("JOB_FINISHED", "finished"), 32),
    **dict.fromkeys(("USER_KILLED", "RUN_TIMEOUT", "RESTART_READY", "pending_deletion"), 33),
    **dict.fromkeys(("RUNNING", "running"), 36),
}


def painted(state: str) -> str:
    """Return a state with the codes that colour it on a terminal; a remark after it in the same colour."""
    code = _COLOURS.get(state.partition(" ")[0])
    return f"\x1b[{code}m{state}\x1b[0m" if code else state


def is_coloured(file: IO[str]) -> bool:
    """Return whether to colour what is written there: a terminal that can, unless NO_COLOR is set (https://no-color.org)."""
    return file.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width(file: IO[str]) -> int | None:
    """Return the columns of the terminal that the file is; None if it is none. COLUMNS overrides the terminal's answer."""
    if not file.isatty():
        return None
    text = os.environ.get("COLUMNS", "")
    try:
        return int(text) if text.isdecimal() and int(text) else os.get_terminal_size(file.fileno()).columns or None
    except (OSError, ValueError):
        return None


# --- tables by tabulate -----------------------------------------------------------------------------------------------

#: How tabulate prints a `table`.
_PLAIN_TABLE = "simple"
#: Rows that tabulate lays out at once, so that a long listing is printed as it is read.
ROWS_AT_ONCE = 5000
#: A cell is shortened to this width at least.
_MIN_CELL = 12
#: Columns whose end matters more than their beginning.
_PATHS = ("workdir", "path", "log", "command", "submit_script")
SHORT_ID = 8


def tabulate_module() -> Any:
    """Import tabulate, only where a table is printed, and without what would take most of its 50 ms.

    That is `importlib.metadata`, which it asks for its own version alone, and wcwidth, whose work `_width` does.
    """
    if "tabulate" not in sys.modules:
        stand_in = ModuleType("importlib.metadata")
        vars(stand_in).update(version=lambda name: "unknown", PackageNotFoundError=ImportError)
        absent = {"importlib.metadata": stand_in, "wcwidth": None}
        kept = {name: sys.modules[name] for name in absent if name in sys.modules}
        sys.modules.update({name: module for name, module in absent.items() if name not in kept})  # type: ignore[misc]
        try:
            import tabulate
        finally:
            for name in absent.keys() - kept.keys():
                del sys.modules[name]
        vars(tabulate).update(wcwidth=SimpleNamespace(wcswidth=_width), WIDE_CHARS_MODE=True, MIN_PADDING=0)
    return sys.modules["tabulate"]


def brief(value: Any) -> str:
    """Return a value for a cell of a table."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return one_line(" ".join(f"{key}={brief(inner)}" for key, inner in value.items()))
    if isinstance(value, (list, tuple)):
        return ", ".join(map(brief, value))
    return str(value) if type(value) is int else "" if value is None else json.dumps(finite(value), ensure_ascii=False)


def write_tables(
    form: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], file: IO[str], width: int | None, is_fixed: bool
) -> tuple[int, list[str]]:
    """Write a table (`table` or a format of tabulate) and return the number of rows, and the columns left out.

    The arguments are those of `writers.write_rows`.
    """
    is_own = form == "table"
    source, total, shown = iter(rows), 0, list(columns)
    while block := list(islice(source, ROWS_AT_ONCE if is_own else None)):
        cells = {name: [brief(row[name]) for row in block] for name in columns}
        if is_own and width is not None:
            shown = shown if total or is_fixed else fitting_columns(cells, width)
            cells = _shortened({name: cells[name] for name in shown}, width)
        if is_own and is_coloured(file) and "state" in cells:
            cells["state"] = list(map(painted, cells["state"]))
        lines = _table_lines(form, shown, cells)
        file.write("\n".join([*lines[2 if total and is_own else 0 :], ""]))
        total += len(block)
    return total, [name for name in columns if name not in shown]


def _table_lines(form: str, shown: Sequence[str], cells: Mapping[str, Sequence[str]]) -> list[str]:
    rows = list(zip(*(cells[name] for name in shown)))
    look = _PLAIN_TABLE if form == "table" else form
    text = tabulate_module().tabulate(rows, list(shown), look, disable_numparse=True, stralign="left")
    return [line.rstrip() if form == "table" else line for line in text.split("\n")]


def fitting_columns(cells: Mapping[str, Sequence[str]], width: int) -> list[str]:
    """Return the first columns that fit a terminal with their cells shortened as far as they may be; the first one always."""
    found: list[str] = []
    left = width
    for name, column in cells.items():
        left -= min(_column_width(name, column), max(_MIN_CELL, len(name))) + 2 * bool(found)
        if left < 0 and found:
            break
        found.append(name)
    return found


def _column_width(name: str, cells: Sequence[str]) -> int:
    return max(len(name), *map(_width, cells)) if cells else len(name)


def _shortened(cells: dict[str, list[str]], width: int) -> dict[str, list[str]]:
    """Shorten the cells of the widest columns until all columns fit."""
    widths = {name: _column_width(name, column) for name, column in cells.items()}
    least = {name: max(_MIN_CELL, len(name)) for name in cells}
    excess = sum(widths.values()) + 2 * (len(widths) - 1) - width
    while excess > 0 and any(widths[name] > least[name] for name in cells):
        widest = max((name for name in cells if widths[name] > least[name]), key=lambda name: widths[name])
        widths[widest] -= 1
        excess -= 1
    return {name: [cut(cell, widths[name], name in _PATHS) for cell in column] for name, column in cells.items()}


def cut(text: str, width: int, keeps_end: bool = False) -> str:
    """Return `text` in at most `width` columns, with three dots where something is missing.

    >>> cut("demo/hello/run7", 12, True), cut("a description", 12, False)
    ('...ello/run7', 'a descrip...')
    """
    if _width(text) <= width:
        return text
    while _width(text) > width - 3:
        text = text[1:] if keeps_end else text[:-1]
    return f"...{text}" if keeps_end else f"{text}..."


def rate(per_s: float) -> str:
    """Return a rate in the largest unit in which it is at least one.

    >>> rate(12.345), rate(0.5), rate(0.001)
    ('12.3 per s', '30.0 per min', '3.6 per h')
    """
    for per, unit in ((1, "s"), (60, "min")):
        if per_s * per >= 1:
            return f"{per_s * per:.1f} per {unit}"
    return f"{per_s * 3600:.1f} per h"


# --- jobs -------------------------------------------------------------------------------------------------------------


def cute_id(name: str, job_id: str) -> str:
    """Return `[name | id8]`, as messages name a job.

    >>> cute_id("test1", "7df86c8b-f94b-4349-8ab6-a8afc85d8a9f")
    '[test1 | 7df86c8b]'
    """
    return f"[{one_line(name)} | {job_id[:8]}]" if name else f"[{job_id[:8]}]"


def new_link(parent: Mapping[str, Any], child: Mapping[str, Any]) -> str:
    """Return the message that a dependency was added."""
    return f"Created link {cute_id(parent['name'], parent['job_id'])} --> {cute_id(child['name'], child['job_id'])}"


def edit_in_words(edit: Mapping[str, Any]) -> str:
    """Return an edit as a line of a history.

    >>> edit_in_words({"field": "args", "old": "-n 5", "new": "-n 6", "user": "ann", "command": "balsam modify", "attempt": 1})
    "args: '-n 5' -> '-n 6' (ann, balsam modify; from attempt 2)"
    """
    old, new = ("none" if edit[side] is None else repr(edit[side]) for side in ("old", "new"))
    return f"{edit['field']}: {old} -> {new} ({edit['user']}, {edit['command']}; from attempt {edit['attempt'] + 1})"


def history(
    name: str,
    job_id: str,
    events: Iterable[tuple[int, str, str, str]],
    edits: Sequence[Mapping[str, Any]] = (),
    attempts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return a job's history as the slides print it: a line for each event, further lines of its message indented.

    Edits of its fields are lines between those of the events. The record of each of `attempts` (see
    `db.query.runs.Run.as_row`) follows the message of the event that ends it.
    """
    lines = [f"Job {one_line(name)} [{job_id}]", _HISTORY_DASHES]
    ended = [run for run in attempts if run["ended"] is not None]
    entries = [*events, *((edit["timestamp"], "", "EDITED", edit_in_words(edit)) for edit in edits)]
    for time_us, left, state, message in sorted(entries, key=lambda entry: entry[0]) if edits else entries:
        if left == states.RUNNING:  # a killed run ends after its event, all others with theirs
            its = [run for run in ended if run["ended"] == time_us or (state == states.USER_KILLED and run["ended"] > time_us)]
            message = "\n".join(filter(None, (message.rstrip(), *map(_record, its[:1]))))
        text = many_lines(message).rstrip().replace("\n", "\n    ")
        lines.append(f"[{format_us(time_us)} {state}] {text}".rstrip())
    return "\n".join(lines) + "\n"


def _record(run: Mapping[str, Any]) -> str:
    """Return in words where a run ran, for how long, and the memory of its largest process, as far as known."""
    words = [
        f"on {run['node']}" if run["node"] else "",
        "" if run["runtime_s"] is None else display.duration(run["runtime_s"]),
        "" if run["max_memory_bytes"] is None else display.size(run["max_memory_bytes"]),
        run["cause"],
    ]
    return ", ".join(filter(None, words))


# --- YAML -------------------------------------------------------------------------------------------------------------


def yaml_lines(mapping: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """Yield a mapping of JSON's values as lines of YAML, inner ones below their keys with an indentation of four blanks.

    Values of secret environment variables are masked.

    Text that YAML could take for something else, or that is not printable, is in double quotes.

    >>> list(yaml_lines({"id": 1, "tags": {"k": "1", "run": "a b"}, "parent_ids": [3], "data": {}}))
    ['id: 1', 'tags:', '    k: "1"', '    run: a b', 'parent_ids:', '- 3', 'data: {}']
    """
    before = " " * 4 * depth
    for key, value in without_secrets(mapping).items():
        start = f"{before}{_yaml_text(key)}:"
        if isinstance(value, Mapping) and value:
            yield start
            yield from yaml_lines(value, depth + 1)
        elif isinstance(value, (list, tuple)) and value:
            yield start
            yield from (f"{before}- {_yaml_scalar(item)}" for item in value)
        else:
            yield f"{start} {_yaml_scalar(value)}"


def _yaml_scalar(value: Any) -> str:
    if isinstance(value, str):
        return _yaml_text(value)
    return json.dumps(value, ensure_ascii=False)  # YAML knows what JSON does


#: Words that YAML 1.1 reads as truth values or nothing.
_YAML_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null"}


def _yaml_text(text: str) -> str:
    if (
        text.isprintable()
        and (text[:1].isalpha() or text[:1] in ("/", "_", "$"))
        and text.lower() not in _YAML_WORDS
        and not text.endswith((" ", ":"))
        and ": " not in text
        and " #" not in text
    ):
        return text
    return '"' + "".join(map(_yaml_character, text)) + '"'


def _yaml_character(c: str) -> str:
    if c in '"\\':
        return "\\" + c
    return c if c.isprintable() else c.encode("unicode_escape").decode()


# --- JSON -------------------------------------------------------------------------------------------------------------


#: Objects that are written at once.
_BATCH = 200

#: Under these keys are environment variables: ours, and the workshop's.
_ENVIRONMENTS = ("environ_vars", "environment_variables")


def without_secrets(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an object to print, with the values of secret environment variables masked."""
    for name in _ENVIRONMENTS:
        if isinstance(found.get(name), Mapping):
            found = {**found, name: field_specs.masked(found[name])}
    return found


def json_encoder(file: IO[str]) -> Callable[[Any], str]:
    r"""Return what turns objects into JSON for that file; where it does not take every character, they become \uXXXX.

    NaN and the infinities, which JSON does not know, become null.
    """
    takes_all = (getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")
    encode = json.JSONEncoder(ensure_ascii=not takes_all, allow_nan=False).encode

    def as_json(value: Any) -> str:
        try:
            return encode(value)
        except ValueError:  # looking for them in every object would cost more than this does in the few that have one
            return encode(finite(value))

    return as_json


def finite(value: Any) -> Any:
    """Return a value of JSON's types with None in the place of every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return list(map(finite, value)) if isinstance(value, (list, tuple)) else value


def write_json(objects: Iterable[Mapping[str, Any]], file: IO[str]) -> int:
    """Write a list of objects, one a line, as they come; mask the values of secret environment variables. Return how many."""
    encode = json_encoder(file)
    lines = (encode(without_secrets(found)) for found in objects)
    number = 0
    while some := list(islice(lines, _BATCH)):
        file.write(("[\n" if number == 0 else ",\n") + ",\n".join(some))
        number += len(some)
    file.write("\n]\n" if number else "[]\n")
    return number
