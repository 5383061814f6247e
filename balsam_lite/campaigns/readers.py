"""Files of many rows, read one row at a time: CSV, TSV, JSON lines and lines of commands.

A file that cannot be read as a whole is an error that names the file, the line (the first one is 1), and the column where it is
known. Rows are dicts; `RowReader.line` is where the last one began.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from math import isinf
from typing import IO, Any

from ..core.errors import BalsamError, InputError, InvalidSpec, NotFound

#: The formats of tables, by the end of the file's name.
FORMATS = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_DELIMITERS = {"csv": ",", "tsv": "\t"}
#: How a file begins that is text, but not UTF-8.
_OTHER_TEXTS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "compressed by gzip",
    b"PK": "a spreadsheet or archive",
}
#: Bytes of one line.
_MAX_LINE = 16 << 20
#: What an error tells about stdin whose last line has no end, and what to do about it.
UNFINISHED = "the last line has no end, as if the program that wrote it was interrupted. Nothing was added."
UNFINISHED_HINT = "If it is complete, add the end of the line: `(PROGRAM; echo) | balsam …`."
#: What to do about errors of the csv module.
_CSV_PROBLEMS = {
    "unexpected end of data": "a double quote is not closed",
    "new-line character seen in unquoted field": "there is a carriage return without a newline; `tr` converts such a file",
    "field larger than field limit": "a cell is longer than {limit} characters; is a double quote not closed?",
}


def format_of(path: str, chosen: str | None = None) -> str:
    """Return the format of a table: the chosen one, or that of the file's name.

    Raises:
        InvalidSpec: neither tells it.
    """
    if chosen:
        return chosen
    found = FORMATS.get(os.path.splitext(path)[1].lower())
    if found is None:
        listed = ", ".join(dict.fromkeys(FORMATS.values()))
        raise InvalidSpec(f"The format of {path} is unknown.", hint=f"Name it with --input-format: {listed}.")
    return found


class RowReader:
    """The rows of a file; `-` is stdin. It is a context manager, which closes the file."""

    def __init__(self, path: str) -> None:
        """Open the file. Raises NotFound, InputError: it cannot be read."""
        self.name = "stdin" if path == "-" else path
        self._is_file = path != "-"
        self.line = 0  # where the last row began
        self._lines_read = 0
        #: Numbers of rows, counted from 1, and their lines, where these are not the numbers after those before.
        self._numbers, self._lines = array("q"), array("q")
        self._rows = 0
        try:
            self._file: IO[bytes] = open(path, "rb") if self._is_file else sys.stdin.buffer
        except FileNotFoundError:
            raise NotFound(f"There is no file {path}.") from None
        except (OSError, ValueError) as exc:
            raise InputError(f"{self.name} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
        except AttributeError:  # sys.stdin is None
            raise InputError("stdin cannot be read: it is closed.") from None

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, unless it is stdin."""
        if self._is_file:
            self._file.close()

    def fail(self, text: str, column: int = 0, line: int = 0, hint: str = "") -> InvalidSpec:
        """Return the error about the last row, or about another line, and one of its columns, counted from 1."""
        where = f"{self.name}, line {line or self.line}{f', column {column}' if column else ''}"
        return InvalidSpec(f"{where}: {text}", hint=hint)

    def count_lines(self) -> int:
        """Return the number of lines of a file that has not been read yet; 0: it can be read only once."""
        if not self._file.seekable():
            return 0
        at = self._file.tell()
        self._file.seek(0)
        lines = sum(block.count(b"\n") for block in iter(lambda: self._file.read(1 << 20), b""))
        self._file.seek(at)
        return lines

    def line_of(self, number: int) -> int:
        """Return the line where the row with that number, counted from 1, began."""
        place = bisect_right(self._numbers, number) - 1
        return self._lines[place] + number - self._numbers[place] if place >= 0 else number

    def _begin_row(self, line: int) -> None:
        self.line = line
        self._rows += 1
        if self.line_of(self._rows) != line:
            self._numbers.append(self._rows)
            self._lines.append(line)

    def lines(self) -> Iterator[str]:
        """Yield the lines, with their ends.

        Raises:
            InputError: it cannot be read. InvalidSpec: a line is too long or not text, or stdin ends within a line.
        """
        last = b"\n"
        try:
            while raw := self._file.readline(_MAX_LINE + 1):
                self._lines_read += 1
                last = raw[-1:]
                yield self._decoded(raw)
        except OSError as exc:
            raise InputError(f"{self.name}, after line {self._lines_read}: cannot be read: {exc.strerror}") from exc
        if last != b"\n" and not self._is_file:  # the exit code of the other program cannot be known
            raise self.fail(UNFINISHED, line=self._lines_read, hint=UNFINISHED_HINT)

    def _decoded(self, raw: bytes) -> str:
        number = self._lines_read
        if number == 1:
            for start, kind in _OTHER_TEXTS.items():
                if raw.startswith(start):
                    raise InvalidSpec(f"{self.name} is {kind}, not text in UTF-8.", hint="Save it as UTF-8 first.")
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # as Excel writes
        if len(raw) > _MAX_LINE:
            raise self.fail(f"is longer than {_MAX_LINE} bytes", line=number)
        if b"\0" in raw:
            raise self.fail("there is a NUL byte", raw.index(b"\0") + 1, number)
        try:
            return raw.decode()
        except UnicodeDecodeError as exc:
            text = f"the byte 0x{raw[exc.start]:02x} is not UTF-8"
            raise self.fail(text, exc.start + 1, number, f"`iconv -f latin1 -t utf8 {self.name}` converts a file.") from None


class CsvTable(RowReader):
    """A CSV or TSV file with a header. A row maps the columns to texts; blank lines are skipped."""

    def __init__(self, path: str, form: str = "csv") -> None:
        """Open the file and read its header.

        Raises:
            NotFound, InputError; InvalidSpec: there is no header, or a column has no name or that of another one.
        """
        super().__init__(path)
        self._reader = csv.reader(self.lines(), delimiter=_DELIMITERS[form], strict=True)
        try:
            self.columns = self._read_header()
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> list[str]:
        header = self._next()
        while header == []:
            header = self._next()
        if header is None:
            raise InvalidSpec(f"{self.name} is empty: its first line must name the columns.")
        columns = [name.strip() for name in header]
        for place, name in enumerate(columns, 1):
            if not name:
                raise self.fail("the column has no name", place)
            if name in columns[: place - 1]:
                raise self.fail(f"there are two columns {name!r}", place)
        return columns

    def _next(self) -> list[str] | None:
        self.line = self._lines_read + 1
        try:
            return next(self._reader, None)
        except csv.Error as exc:
            found = (text for start, text in _CSV_PROBLEMS.items() if str(exc).startswith(start))
            what = next(found, str(exc)).format(limit=csv.field_size_limit())
            raise self.fail(f"{what}, in line {self._lines_read}" if self._lines_read > self.line else what) from None

    def __iter__(self) -> Iterator[list[str]]:
        """Yield the cells of each row."""
        width = len(self.columns)
        while (cells := self._next()) is not None:
            if not cells:
                continue
            if len(cells) != width:
                few = f"there {'is' if len(cells) == 1 else 'are'} {len(cells)} of {width} columns"
                missing = "" if len(cells) > width else f": {', '.join(self.columns[len(cells) :])} missing"
                raise self.fail(f"{few}{missing}", min(len(cells), width) + 1)
            self._begin_row(self.line)
            yield cells


class JsonLines(RowReader):
    """A file with a JSON object on each line. Blank lines are skipped."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for text in self.lines():
            if not text.strip():
                continue
            self._begin_row(self._lines_read)
            try:
                row = json.loads(
                    text, object_pairs_hook=self._object, parse_constant=self._refuse_constant, parse_float=self._float
                )
            except json.JSONDecodeError as exc:
                raise self.fail(f"no JSON: {exc.msg}", exc.colno) from None
            except RecursionError:
                raise self.fail("objects are nested too deeply") from None
            except BalsamError:
                raise
            except ValueError:  # a limit of `int`
                raise self.fail("a whole number has too many digits") from None
            if not isinstance(row, dict):
                raise self.fail(f"must be a JSON object {{…}}, not {text.strip()[:40]}")
            yield row

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            double = next(name for name in names if names.count(name) > 1)
            raise self.fail(f"{double!r} is given twice")
        return found

    def _refuse_constant(self, word: str) -> Any:
        raise self.fail(f"{word} is no JSON")

    def _float(self, text: str) -> float:
        number = float(text)
        if isinf(number):
            raise self.fail(f"the number {text[:40]} is too large")
        return number


class Commands(RowReader):
    """A file with a command line on each line. Blank lines and lines that begin with # are skipped."""

    def __iter__(self) -> Iterator[str]:
        for text in self.lines():
            command = text.strip()
            if not command or command.startswith("#"):
                continue
            self._begin_row(self._lines_read)
            if command.endswith("\\"):
                raise self.fail("ends with a backslash; each command must be one line")
            yield command


def values_of(path: str) -> list[str]:
    """Return the lines of a file that are not blank, without blanks around them. Raises NotFound, InputError, InvalidSpec."""
    with RowReader(path) as file:
        return [line.strip() for line in file.lines() if line.strip()]
