"""Write rows as CSV, TSV, JSON lines, JSON, YAML, Parquet or tables, to a stream or to a file. Knows neither click nor the DB.

All formats but Parquet and tabulate's are written as the rows come, in constant memory; Parquet keeps the rows in a temporary
file first, because its column types follow from all of them.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import IO, Any, NamedTuple

from ..core.errors import BalsamError, InvalidSpec, did_you_mean
from . import output

#: The formats that are not tabulate's. `table` is each listing's own.
OWN_FORMATS = ("table", "json", "yaml", "csv", "tsv", "jsonl", "parquet")
#: Suffix of a file -> its format.
SUFFIXES = {
    **{f".{form}": form for form in OWN_FORMATS[1:]}, ".yml": "yaml", ".ndjson": "jsonl", ".txt": "table", ".md": "github",
    ".html": "html", ".tex": "latex",
}  # fmt: skip
_DELIMITERS = {"csv": ",", "tsv": "\t"}
#: Rows that are written at once.
_BATCH = 1000
#: Rows of a Parquet row group.
_ROW_GROUP = 50_000

Values = Sequence[Any]


class Written(NamedTuple):
    """What `write_rows` has written."""

    rows: int
    left_out: Sequence[str]  # columns for which a terminal had no room


def check_format(name: str) -> str:
    """Return the name of a format; raise InvalidSpec with the nearest one if there is none of that name."""
    if name in OWN_FORMATS:
        return name
    known = tuple(dict.fromkeys((*OWN_FORMATS, *output.tabulate_module().tabulate_formats)))
    if name in known:
        return name
    raise InvalidSpec(f"There is no format {name!r}.{did_you_mean(name, known)}", hint=f"The formats are: {', '.join(known)}")


def format_of(path: str) -> str:
    """Return the format of a file by its suffix. Raises InvalidSpec."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise InvalidSpec(
            f"There is no format for the suffix of {path!r}.", hint=f"Name one with --format, or use: {', '.join(SUFFIXES)}"
        )
    return SUFFIXES[suffix]


def write_rows(
    form: str, columns: Sequence[str], rows: Iterable[Values], file: IO[str], *, width: int | None = None,
    is_fixed: bool = False, has_header: bool = False,
) -> Written:  # fmt: skip
    """Write rows, which have a value for each column, in a format other than Parquet.

    Args:
        width: that of a terminal which a table has to fit; None for any. is_fixed: leave no column out.
        has_header: write the names of the columns of CSV and TSV even if there is no row.
    """
    if form in _DELIMITERS:
        return Written(_write_separated(_DELIMITERS[form], columns, rows, file, has_header), ())
    if form == "jsonl":
        return Written(_write_lines(map(output.json_encoder(file), _objects(columns, rows)), file), ())
    if form == "json":
        return Written(output.write_json(_objects(columns, rows), file), ())
    if form == "yaml":
        return Written(_write_lines(("\n".join(("---", *output.yaml_lines(one))) for one in _objects(columns, rows)), file), ())
    return Written(*output.write_tables(form, columns, _objects(columns, rows), file, width, is_fixed))


def _objects(columns: Sequence[str], rows: Iterable[Values]) -> Iterator[dict[str, Any]]:
    return (dict(zip(columns, row)) for row in rows)


def _write_lines(lines: Iterator[str], file: IO[str]) -> int:
    number = 0
    while some := list(islice(lines, _BATCH)):
        file.write("\n".join((*some, "")))
        number += len(some)
    return number


# --- CSV and TSV --------------------------------------------------------------------------------------------------------

#: Types that the module csv writes so that they can be read back: text, whole numbers, None as nothing.
_PLAIN = frozenset((str, int, type(None), float))


class _Sink(NamedTuple):
    """A file for a csv.writer, which calls `write` for each row."""

    write: Callable[[str], object]


def _write_separated(delimiter: str, columns: Sequence[str], rows: Iterable[Values], file: IO[str], has_header: bool) -> int:
    """Write RFC 4180's form with bare line feeds: quotes where needed, None as an empty field, lists and objects as JSON.

    Before Python 3.13 the module csv quotes a carriage return only if rows end with it, so they do, and are cut here.
    """
    import csv

    lines: list[str] = []
    writer = csv.writer(_Sink(lines.append), delimiter=delimiter, lineterminator="\r\n")
    cell = _cell_on_terminal if file.isatty() else _cell
    source = iter(rows)
    number = 0
    while some := list(islice(source, _BATCH)):
        if not number:
            writer.writerow(columns)
        if cell is _cell:
            writer.writerows([[value if type(value) in _PLAIN else _cell(value) for value in row] for row in some])
        else:
            writer.writerows([list(map(cell, row)) for row in some])
        _write_cut(lines, file)
        number += len(some)
    if has_header and not number:
        writer.writerow(columns)
        _write_cut(lines, file)
    return number


def _write_cut(lines: list[str], file: IO[str]) -> None:
    file.write("".join([f"{line[:-2]}\n" for line in lines]))
    lines.clear()


def _cell(value: Any) -> Any:
    """Return a value as the module csv has to get it."""
    return value if type(value) in _PLAIN else json.dumps(output.finite(value), ensure_ascii=False)


def _cell_on_terminal(value: Any) -> Any:
    found = _cell(value)
    return output.one_line(found) if isinstance(found, str) else found


# --- Parquet ------------------------------------------------------------------------------------------------------------


def _pyarrow() -> Any:
    """Import pyarrow. Raises BalsamError with the command that installs it."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise BalsamError(
            f"Parquet needs pyarrow, which cannot be imported: {exc}",
            hint="Install it with: pip install 'balsam_lite[parquet]'\nThe formats csv, tsv and jsonl need nothing.",
        ) from exc
    return pyarrow


#: The kinds of values in a column: type of Python -> kind; any other is JSON.
_KINDS = {bool: "flag", int: "integer", float: "number", str: "text"}


_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z").fullmatch


def _write_parquet(columns: Sequence[str], rows: Iterable[Values], path: str, times: Iterable[str]) -> int:
    """Write a Parquet file with the types that the values have: a column of several kinds as text, numbers as such.

    Text, too, are numbers of which one has no place in the type: one that needs more than 64 bits does not stop the file.

    Args:
        columns: no name twice. times: columns that become timestamps in UTC if all their values are times in ISO 8601.
    """
    import marshal
    import tempfile

    arrow = _pyarrow()
    kinds: list[set[type]] = [set() for _ in columns]
    largest = [0] * len(columns)  # of whole numbers, without their signs
    known = set(times)
    number = 0
    source = iter(rows)
    with tempfile.TemporaryFile(prefix="balsam-", dir=os.path.dirname(path) or ".") as kept:
        while some := list(islice(source, _ROW_GROUP)):
            blocks = [list(column) for column in zip(*some)]
            for place, (name, found, column) in enumerate(zip(columns, kinds, blocks)):
                found.update(map(type, column))
                if int in found:
                    largest[place] = max(largest[place], *(abs(value) for value in column if type(value) is int), 0)
                if name in known and not all(value is None or _ISO_TIME(str(value)) for value in column):
                    known.discard(name)
            marshal.dump(blocks, kept)
            number += len(some)
        kept.seek(0)
        types = [_type_of(arrow, name in known, found, most) for name, found, most in zip(columns, kinds, largest)]
        schema = arrow.schema(list(zip(columns, types)))
        with arrow.parquet.ParquetWriter(path, schema) as writer:
            for _ in range(0, number, _ROW_GROUP):
                arrays = [_array(arrow, *about) for about in zip(types, marshal.load(kept))]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
    return number


def _type_of(arrow: Any, is_time: bool, found: set[type], largest: int) -> Any:
    """Return the Arrow type for a column with values of these types, and whole numbers up to `largest`."""
    kinds = {_KINDS.get(one, "json") for one in found if one is not type(None)}
    if is_time and kinds <= {"text"}:
        return arrow.timestamp("us", "UTC")
    if largest >= 1 << (53 if "number" in kinds else 63):
        return arrow.string()
    if kinds == {"integer", "number"}:
        return arrow.float64()
    known = {"flag": arrow.bool_(), "integer": arrow.int64(), "number": arrow.float64()}
    return known.get(kinds.pop(), arrow.string()) if len(kinds) == 1 else arrow.string()


def _array(arrow: Any, kind: Any, column: list[Any]) -> Any:
    if kind == arrow.string():
        texts = [value if value is None or type(value) is str else _cell_text(value) for value in column]
        try:
            return arrow.array(texts, kind)
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
            return arrow.array([text and text.encode("utf-8", "backslashreplace").decode() for text in texts], kind)
    if arrow.types.is_timestamp(kind):
        return arrow.array(column, arrow.string()).cast(kind)
    return arrow.array(column, kind)


def _cell_text(value: Any) -> str:
    return str(_cell(value)) if type(value) is not float else repr(value)


# --- files --------------------------------------------------------------------------------------------------------------


def check_target(form: str, path: str, is_terminal: bool) -> None:
    """Raise BalsamError unless a file of that name ("": stdout) can be written in that format, as far as is known before."""
    if form == "parquet":
        _pyarrow()
        if not path and is_terminal:
            raise InvalidSpec("Parquet is not for a terminal.", hint="Name a file: -o FILE.parquet")
    if path:
        from ..plots.figures import check_writable

        check_writable(path)


@contextmanager
def whole_file(path: str) -> Iterator[str]:
    """Yield the name of a new file, which replaces `path` at the end of the block; `path` itself if it is a device or a pipe.

    Raises:
        BalsamError: the file cannot be written.
    """
    from ..core.files import replacing
    from ..plots.figures import cannot_write

    real = os.path.realpath(path)
    try:
        if os.path.exists(real) and not stat.S_ISREG(os.stat(real).st_mode):
            yield real
            return
        with replacing(real) as unfinished:
            yield unfinished
    except BrokenPipeError:
        raise
    except OSError as exc:
        if exc.filename not in (None, real) and not str(exc.filename).startswith(real):
            raise
        raise cannot_write(path, exc) from exc


def write_file(
    form: str, columns: Sequence[str], rows: Iterable[Values], path: str, times: Iterable[str] = (), **options: Any
) -> int:
    """Write rows to a file, whole or not at all; return how many. The arguments are those of `write_rows`.

    Raises:
        BalsamError: it cannot be written.
    """
    with whole_file(path) as unfinished:
        if form == "parquet":
            return _write_parquet(columns, rows, unfinished, times)
        with open(unfinished, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            return write_rows(form, columns, rows, file, has_header=True, **options).rows


def write_parquet_to(file: IO[bytes], columns: Sequence[str], rows: Iterable[Values], times: Iterable[str] = ()) -> int:
    """Write a Parquet file to a stream, such as a pipe, once it is complete."""
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory(prefix="balsam-") as folder:
        path = os.path.join(folder, "rows.parquet")
        number = _write_parquet(columns, rows, path, times)
        with open(path, "rb") as complete:
            shutil.copyfileobj(complete, file)
    return number


def values_of(columns: Sequence[str], objects: Iterable[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """Yield the values of objects in the order of these columns, those of secret environment variables masked."""
    return ([found.get(name) for name in columns] for found in map(output.without_secrets, objects))
