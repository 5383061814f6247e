"""Rows as text: tables, histories, YAML, JSON. Knows neither click nor the DB.

Text that came from a program or another user may hold anything; what would steer a terminal is shown as an escape.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from math import isfinite
from typing import IO, Any

from ..core import field_specs
from ..core.clock import format_us

_HISTORY_DASHES = "-" * 48


def one_line(text: str) -> str:
    """`text` for a cell of a table.

    >>> one_line("two\\nlines")
    'two\\\\nlines'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def many_lines(text: str) -> str:
    """`text` for a terminal, with its line breaks and tabs and nothing else that is not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def basenames(line: str) -> str:
    """A command line with the basename of each word instead of its path.

    >>> basenames("/usr/bin/python /home/me/run.py -v")
    'python run.py -v'
    """
    if "/" not in line:
        return line
    return " ".join(os.path.basename(word) or word for word in line.split())


def size(number: int) -> str:
    """A number of bytes for people.

    >>> size(999), size(1500), size(2_000_000_000)
    ('999 bytes', '1.5 kB', '2.0 GB')
    """
    if number < 1000:
        return f"{number} bytes"
    value, units = number / 1000, iter(("kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 999.95 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:.1f} {unit}"


# --- tables -----------------------------------------------------------------------------------------------------------


def _width(text: str) -> int:
    """Columns that `text` takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a table: header cells to the right, data cells to the left, each column as wide as its widest cell."""
    cells = [_cells(row) for row in rows]
    widths = [max(map(_width, column)) for column in zip(header, *cells)]
    top = " | ".join(map(right, header, widths))
    return [top, "-" * len(top), *(" | ".join(map(left, row, widths)).rstrip() for row in cells)]


def padded(header: Sequence[str], rows: Iterable[Sequence[Any]], ahead: int = 5000) -> Iterator[str]:
    """The lines of a table of the workshop's style: cells to the left, each column two blanks wider than its widest cell.

    Source: Balsam 0.7, `job ls`. Widths are those of the first `ahead` rows, so that a long table is printed as it comes.
    """
    source = iter(rows)
    first = [header, *(_cells(row) for row in islice(source, ahead))]
    widths = [max(map(_width, column)) + 2 for column in zip(*first)]
    for row in chain(first, map(_cells, source)):
        yield " ".join(map(left, row, widths))


def _cells(row: Sequence[Any]) -> list[str]:
    return ["" if value is None else one_line(str(value)) for value in row]


def left(cell: str, width: int) -> str:
    """`cell` with blanks behind it."""
    return cell + " " * (width - _width(cell))


def right(cell: str, width: int) -> str:
    """`cell` with blanks before it."""
    return " " * (width - _width(cell)) + cell


# --- jobs -------------------------------------------------------------------------------------------------------------


def cute_id(name: str, job_id: str) -> str:
    """`[name | id8]`, as messages name a job.

    >>> cute_id("test1", "7df86c8b-f94b-4349-8ab6-a8afc85d8a9f")
    '[test1 | 7df86c8b]'
    """
    return f"[{one_line(name)} | {job_id[:8]}]" if name else f"[{job_id[:8]}]"


def history(name: str, job_id: str, events: Iterable[tuple[int, str, str, str]]) -> str:
    """A job's history: one line for each event, further lines of its message indented."""
    lines = [f"Job {one_line(name)} [{job_id}]", _HISTORY_DASHES]
    for time_us, _, state, message in events:
        text = many_lines(message).rstrip().replace("\n", "\n    ")
        lines.append(f"[{format_us(time_us)} {state}] {text}".rstrip())
    return "\n".join(lines) + "\n"


# --- YAML -------------------------------------------------------------------------------------------------------------


def yaml_lines(mapping: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    """The lines of a mapping of JSON's values as YAML, inner ones below their keys with an indentation of four blanks.

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


#: So many objects are written at once.
_BATCH = 200


def objects(names: Sequence[str], kinds: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Rows as JSON knows them: flags as true or false, JSON columns as objects. `kinds` are those of `field_specs.Field`."""
    flags = [name for name in names if kinds.get(name) == "flag"]
    parsed = [name for name in names if kinds.get(name) in field_specs.JSON_KINDS]
    for row in rows:
        found = dict(zip(names, row))
        for name in flags:
            found[name] = found[name] != 0
        for name in parsed:
            found[name] = {} if found[name] == "{}" else field_specs.read_object(found[name])
        yield found


#: Under these keys are environment variables: ours, and the workshop's.
_ENVIRONMENTS = ("environ_vars", "environment_variables")


def without_secrets(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return an object to print, with the values of secret environment variables masked."""
    for name in _ENVIRONMENTS:
        if isinstance(found.get(name), Mapping):
            found = {**found, name: field_specs.masked(found[name])}
    return found


def json_encoder(file: IO[str]) -> Callable[[Any], str]:
    r"""What turns objects into JSON for that file; where it does not take every character, they become \uXXXX."""
    takes_all = (getattr(file, "encoding", None) or "utf-8").lower().startswith("utf")
    encode = json.JSONEncoder(ensure_ascii=not takes_all, allow_nan=False).encode

    def encoded(found: Any) -> str:
        try:
            return encode(found)
        except ValueError:
            return encode(_with_null(found))

    return encoded


def _with_null(value: Any) -> Any:
    """Return a value with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _with_null(one) for key, one in value.items()}
    if isinstance(value, list):
        return list(map(_with_null, value))
    return None if isinstance(value, float) and not isfinite(value) else value


def write_json(objects: Iterable[Mapping[str, Any]], file: IO[str]) -> None:
    """A list of objects, one per line, written as they come, with the values of secret environment variables masked."""
    encode = json_encoder(file)
    before = "[\n"
    lines = (encode(without_secrets(found)) for found in objects)
    for first in lines:
        file.write(before + ",\n".join([first, *islice(lines, _BATCH - 1)]))
        before = ",\n"
    file.write("[]\n" if before == "[\n" else "\n]\n")
