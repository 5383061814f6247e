"""Rows of fields for `SiteInterface.add_jobs`: of tables, JSON lines, lines of commands and sweeps.

Every row of a source has the same fields in the same order, which is what adding jobs is fast for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Union

from ..core import field_specs
from ..core.errors import BalsamError, InvalidSpec, did_you_mean
from . import readers, sweep

Row = dict[str, Any]

#: Columns that are no fields of a job.
_OTHERS = ("workdir", "allow_shared_workdir", "parents")
_FLAG = field_specs.Field("allow_shared_workdir", "flag", 0)
#: Fields whose keys can be columns: `data.x`, `tags.x`. Values of the first are numbers where they are printed as typed.
_OBJECTS = ("data", "parameters", "tags", "environ_vars")
_WITH_NUMBERS = ("data", "parameters")


class _Target(NamedTuple):
    """Where the values of a column go."""

    field: str
    key: str = ""  # of a field that is an object


def _are_both(one: _Target, other: _Target) -> bool:
    """Return whether two columns give the same, or one of them a part of the other."""
    return one.field == other.field and (one.key == other.key or not (one.key and other.key))


def _target(name: str, parameters: Collection[str]) -> _Target | None:
    """Return where the column `name` goes; None: nowhere."""
    field = field_specs.OUR_NAMES.get(name, name)
    head, dot, key = field.partition(".")
    if dot and head in _OBJECTS and key:
        return _Target(head, key)
    if field in field_specs.JOB_FIELD or field in _OTHERS:
        return _Target(field)
    return _Target("parameters", name) if name in parameters else None


class FileRows:
    """The jobs of a table or of JSON lines, with `defaults` for fields that a row does not give or leaves empty.

    Args:
        parameters: names of parameters of the applications; other columns than these must be fields, or FIELD.KEY.
    """

    def __init__(self, source: readers.CsvTable | readers.JsonLines, defaults: Row, parameters: Collection[str]) -> None:
        self._source, self._parameters = source, parameters
        self._defaults = {**defaults, **{name: _object_of(defaults[name]) for name in _OBJECTS if name in defaults}}
        self._stem = defaults.get("name") or _stem(source.name)
        self._targets: dict[str, _Target] = {}
        self._row: Row = {}
        self._gives_names = False
        self._has_overlaps = False  # two columns, not of the same row, give the same
        if isinstance(source, readers.CsvTable):
            for name in source.columns:
                self._add_column(name)

    def __iter__(self) -> Iterator[Row]:
        columns = getattr(self._source, "columns", ())
        for number, given in enumerate(self._source, 1):
            if isinstance(given, dict):
                yield self._made(number, given, given.items())
            else:
                yield self._made(number, columns, zip(columns, given))

    def _add_column(self, name: str) -> _Target:
        place = self._place(name)
        target = _target(name, self._parameters)
        if target is None:
            known = [*field_specs.JOB_FIELD, *_OTHERS, *self._parameters, *field_specs.OUR_NAMES]
            hint = (
                "A column is a field of a job, a parameter of its application, or a key: data.NAME, tags.NAME, parameters.NAME."
            )
            raise self._source.fail(f"there is no field or parameter {name!r}.{did_you_mean(name, known)}", place, hint=hint)
        field = field_specs.JOB_FIELD.get(target.field)
        if field is not None and not field.settable and target.field not in _OTHERS:
            raise self._source.fail(f"{name} is kept by balsam_lite and cannot be set", place)
        self._targets[name] = target
        if any(_are_both(target, one) for other, one in self._targets.items() if other != name):
            self._has_overlaps = True
            if place:
                self._refuse_overlap(self._targets)
        self._gives_names = self._gives_names or target.field == "name"
        # Fields that no row before had are added to all rows from now on, with their defaults.
        if target.field not in self._row:
            default = field_specs.JOB_FIELD[target.field].default if target.field in field_specs.JOB_FIELD else None
            default = {} if target.field in _OBJECTS else default
            self._defaults.setdefault(target.field, [] if target.field == "parents" else default)
        self._row = {name: value for name, value in self._defaults.items() if name != "workdir" or value}
        return target

    def _refuse_overlap(self, names: Iterable[str]) -> None:
        """Raise InvalidSpec if two of these columns give the same."""
        seen: list[_Target] = []
        for name in names:
            target = self._targets[name]
            for one in seen:
                if _are_both(target, one):
                    how = "twice, under two names" if target == one else "as a whole and by its keys"
                    raise self._source.fail(f"{target.field} is given {how}", self._place(name))
            seen.append(target)

    def _place(self, name: str) -> int:
        columns = getattr(self._source, "columns", ())
        return columns.index(name) + 1 if name in columns else 0

    def _made(self, number: int, given: Iterable[str], pairs: Iterable[tuple[str, Any]]) -> Row:
        row = {**self._row}
        copied: set[str] = set()
        for name, value in pairs:
            field, key = self._targets.get(name) or self._add_and_extend(name, row)
            if value == "" or value is None:
                continue
            if not key:
                row[field] = self._whole(field, value, name)
                continue
            if field not in copied:
                copied.add(field)
                row[field] = {**row[field]}
            row[field][key] = sweep.as_value(value) if field in _WITH_NUMBERS else value
        if self._has_overlaps:
            self._refuse_overlap(given)
        if not self._gives_names or row.get("name") == "":
            row["name"] = f"{self._stem}-{number}"
        if not row.get("workflow") and "workflow" not in self._targets:
            row["workflow"] = self._defaults.get("workflow") or _stem(self._source.name)
        return row

    def _add_and_extend(self, name: str, row: Row) -> _Target:
        """Add a column that no JSON line before had, also to the present row."""
        target = self._add_column(name)
        if target.field in self._row:
            row.setdefault(target.field, self._row[target.field])
        return target

    def _whole(self, field: str, value: Any, name: str) -> Any:
        try:
            if field in _OBJECTS:
                return _object_of(value) if field != "environ_vars" else value
            if field == "allow_shared_workdir":
                return bool(field_specs.checked(_FLAG, value))
            return _parents(value) if field == "parents" else value
        except ValueError as exc:
            raise self._source.fail(f"{name}: {exc}", self._place(name)) from None


def _object_of(value: Any) -> Any:
    """Return an object that may be JSON text. Raises ValueError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise ValueError(f"must be a JSON object, not {value[:40]!r} ({exc})") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, not {value!r}")
    return value


def _parents(value: Any) -> list[str | int]:
    """Return parents for `add_jobs`: texts and positions, from a list or a text with commas. Raises ValueError."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as exc:
            raise ValueError(f"must be a list of jobs, not {value[:40]!r} ({exc})") from None
    if isinstance(value, str):
        value = [word.strip() for word in value.split(",") if word.strip()]
    if not isinstance(value, list) or not all(type(one) in (str, int) for one in value):
        raise ValueError(f"must be a list of names of jobs, or of positions in this file counted from 0, not {value!r}")
    return value


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


#: The application of `CommandRows`: bash runs each line.
COMMANDS_APP = {"name": "commands", "executable": "bash -c", "description": "Command lines of balsam job --commands"}


class CommandRows:
    """The jobs of lines of commands, each of which bash runs."""

    def __init__(self, source: readers.Commands, defaults: Row) -> None:
        self._source, self._defaults = source, defaults

    def __iter__(self) -> Iterator[Row]:
        stem = self._defaults.get("name") or ("commands" if self._source.name == "stdin" else _stem(self._source.name))
        common = {**self._defaults, "workflow": self._defaults.get("workflow") or stem}
        for number, command in enumerate(self._source, 1):
            quoted = "'" + command.replace("'", "'\"'\"'") + "'"
            yield {**common, "application": COMMANDS_APP["name"], "name": f"{stem}-{number}", "args": quoted}


#: The key in `data` of swept values that are no parameters of the application.
SWEPT_ELSEWHERE = "sweep"


class SweepRows:
    """The jobs of a sweep: `{NAME}` of its variables is replaced in the texts of `defaults`.

    The values are also parameters, as far as the application takes parameters of these names, else in `data` under "sweep".

    Args:
        parameters: the names of these; None: it takes all.
    """

    def __init__(self, of: sweep.Sweep, defaults: Row, parameters: Collection[str] | None) -> None:
        self._of, self.total = of, of.total
        names = [one.name for one in of.variables]
        self._replaced = sweep.replacer(names)
        objects = {name: _object_of(defaults[name]) for name in _OBJECTS if name in defaults}
        self._defaults: Row = {"parameters": {}, "data": {}, **defaults, **objects}
        texts = {name for name, value in self._defaults.items() if self._replaced(value, dict.fromkeys(names, "")) != value}
        self._texts = sorted(texts)
        self.is_in_name = "name" in texts
        given = self._defaults["parameters"]
        self._as_parameters = [name for name in names if name not in given and (parameters is None or name in parameters)]
        self._as_data = [name for name in names if name not in given and name not in self._as_parameters]
        used = {name for name in names if any(f"{{{name}}}" in json.dumps(defaults[text], default=str) for text in texts)}
        #: Variables that no program gets: they are in no text, and no parameter.
        self.unused = [name for name in names if name not in used and (parameters is None or name not in self._as_parameters)]

    def __iter__(self) -> Iterator[Row]:
        return map(self._made, self._of)

    def __getitem__(self, place: int) -> Row:
        """Return the job at that place of the sweep."""
        return self._made(self._of[place])

    def _made(self, values: Mapping[str, Any]) -> Row:
        row = {**self._defaults}
        for name in self._texts:
            row[name] = self._replaced(row[name], values)
        if not self.is_in_name and row.get("name"):
            row["name"] = sweep.name_of(row["name"], values)
        row["parameters"] = {**row["parameters"], **{name: sweep.as_value(values[name]) for name in self._as_parameters}}
        if self._as_data:
            row["data"] = {**row["data"], SWEPT_ELSEWHERE: {name: sweep.as_value(values[name]) for name in self._as_data}}
        return row


#: What gives the rows of jobs.
Source = Union[FileRows, CommandRows, SweepRows, Sequence[Row]]

# --- unique keys ------------------------------------------------------------------------------------------------------

#: The fields that determine a run. Only values other than the defaults count, so that later fields do not change a hash.
HASHED = (
    "application", "args", "parameters", "environ_vars", "input_files", "stage_in_url", "user_workdir", "num_nodes",
    "ranks_per_node", "threads_per_rank", "threads_per_core", "cpu_affinity", "gpus_per_rank", "mpi_flags",
)  # fmt: skip
#: By what a job is unique -> its fields.
UNIQUE_BY: dict[str, tuple[str, ...]] = {
    "name": ("name",),
    "workflow+name": ("workflow", "name"),
    "args": ("application", "args", "parameters"),
    "hash": HASHED,
}
_LEGIBLE = ("name", "workflow+name")
_MAX_LEGIBLE = 500


def key_maker(by: str) -> Callable[[Mapping[str, Any]], str]:
    """Return the function that gives a row its `unique_key`: `by`, a colon, and the values or a hash (SHA-256) of them.

    >>> key_maker("workflow+name")({"workflow": "scan", "name": "run1", "args": "7"})
    'workflow+name:["scan","run1"]'
    """
    fields = [field_specs.JOB_FIELD[name] for name in UNIQUE_BY[by]]

    def key(row: Mapping[str, Any]) -> str:
        values = {}
        for field in fields:
            value = row.get(field.name, field.default)
            value = field_specs.checked(field, value)
            if value != field.default:
                values[field.name] = json.loads(value) if field.kind in field_specs.JSON_KINDS else value
        if by in _LEGIBLE:
            listed = [values.get(field.name, "") for field in fields]
            text = listed[0] if len(listed) == 1 else json.dumps(listed, ensure_ascii=False, separators=(",", ":"))
            if len(text) <= _MAX_LEGIBLE:
                return f"{by}:{text}"
        canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return f"{by}:{hashlib.sha256(canonical.encode()).hexdigest()[:32]}"

    return key


def with_keys(rows: Source, by: str) -> Iterator[Row]:
    """Yield the rows with their `unique_key`. Raises InvalidSpec: a row has one already."""
    key = key_maker(by)
    for number, row in enumerate(rows, 1):
        if row.get("unique_key"):
            raise InvalidSpec(f"Job number {number}: there are --unique and a unique_key; give one of them.")
        try:
            row["unique_key"] = key(row)
        except BalsamError as exc:
            raise type(exc)(f"Job number {number}: {exc.message}", hint=exc.hint) from exc
        yield row


# --- errors -----------------------------------------------------------------------------------------------------------

_NUMBERED = re.compile(r"Job number (\d+):? ")
_OTHER = re.compile(r"\bjob number (\d+)( of the same batch)?")
_OF_FIELD = re.compile(r"(?:job |The parameter |cannot have that |the )(\w+)\b")


def located(exc: BalsamError, source: readers.RowReader) -> BalsamError:
    """Return an error about a job of a file with the line and, where it names a field, the column instead of its number."""
    found = _NUMBERED.match(exc.message)
    if not found:
        return exc
    text = exc.message[found.end() :]
    columns = getattr(source, "columns", ())
    named = _OF_FIELD.match(text)
    names = [named[1], f"{named[1]}s", field_specs.WORKSHOP_NAMES.get(named[1], ""), f"parameters.{named[1]}"] if named else []
    place = next((columns.index(name) + 1 for name in names if name in columns), 0)
    where = source.fail(text, place, source.line_of(int(found[1])))
    exc.message = _OTHER.sub(lambda one: f"line {source.line_of(int(one[1]))}", where.message)
    return exc
