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
        self._row: Row = {}  # of a job for which no column gives anything
        self._plans: dict[tuple[str, ...], list[_Step]] = {}
        if isinstance(source, readers.CsvTable):
            self._plan(tuple(source.columns))

    def __iter__(self) -> Iterator[Row]:
        if isinstance(self._source, readers.CsvTable):
            columns = tuple(self._source.columns)
            for number, cells in enumerate(self._source, 1):
                yield self._made(number, columns, cells)
        else:
            for number, given in enumerate(self._source, 1):
                yield self._made(number, tuple(given), given.values())

    def _plan(self, columns: tuple[str, ...]) -> list[_Step]:
        """Return what to do with the values of rows that have these columns."""
        for name in columns:
            if name not in self._targets:
                self._add_column(name)
        targets = [self._targets[name] for name in columns]
        for place, target in enumerate(targets):
            for other in targets[:place]:
                if target.field == other.field and (target.key == other.key or not (target.key and other.key)):
                    how = "twice, under two names" if target == other else "as a whole and by its keys"
                    raise self._source.fail(f"{target.field} is given {how}", self._place(columns[place]))
        if len(self._plans) > _MAX_PLANS:
            self._plans.clear()
        plan = self._plans[columns] = [_Step(*target, _conversion(*target)) for target in targets]
        return plan

    def _add_column(self, name: str) -> None:
        place = self._place(name)
        target = _target(name, self._parameters)
        if target is None:
            known = [*field_specs.JOB_FIELD, *_OTHERS, *self._parameters, *field_specs.OUR_NAMES]
            hint = (
                "A column is a field of a job, a parameter of its application, or a key: data.NAME, tags.NAME, parameters.NAME."
            )
            if getattr(self._source, "columns", ()) == [name] and any(mark in name for mark in ";\t"):
                hint = (
                    "The header is one column. Commas separate the columns of CSV, and tabs those of TSV (--input-format tsv)."
                )
            raise self._source.fail(f"there is no field or parameter {name!r}.{did_you_mean(name, known)}", place, hint=hint)
        field = field_specs.JOB_FIELD.get(target.field)
        if field is not None and not field.settable and target.field not in _OTHERS:
            raise self._source.fail(f"{name} is kept by balsam_lite and cannot be set", place)
        self._targets[name] = target
        # Rows without this column have the default, so that all rows have the same fields.
        default = {} if target.field in _OBJECTS else [] if target.field == "parents" else field.default if field else None
        self._defaults.setdefault(target.field, default)
        self._row = {name: value for name, value in self._defaults.items() if name != "workdir" or value}
        if "workflow" not in self._targets and not self._row.get("workflow"):
            self._row["workflow"] = _stem(self._source.name)

    def _place(self, name: str) -> int:
        columns = getattr(self._source, "columns", ())
        return columns.index(name) + 1 if name in columns else 0

    def _made(self, number: int, columns: tuple[str, ...], values: Iterable[Any]) -> Row:
        plan = self._plans.get(columns) or self._plan(columns)
        row = {**self._row, "name": f"{self._stem}-{number}"}
        copied: set[str] = set()
        for place, (value, (field, key, convert)) in enumerate(zip(values, plan)):
            if value == "" or value is None:
                continue
            if convert is not None:
                try:
                    value = convert(value)
                except ValueError as exc:
                    name = columns[place]
                    raise self._source.fail(f"{name}: {exc}", self._place(name)) from None
            if not key:
                row[field] = value
                continue
            if field not in copied:
                copied.add(field)
                row[field] = {**row[field]}
            row[field][key] = value
        return row


class _Step(NamedTuple):
    """What to do with a value of a column: where it goes, and the function that converts it."""

    field: str
    key: str
    convert: Callable[[Any], Any] | None


#: Combinations of columns of JSON lines whose plans are kept.
_MAX_PLANS = 1000


def _conversion(field: str, key: str) -> Callable[[Any], Any] | None:
    """Return the function that converts values for a field, or for a key of it; it raises ValueError."""
    if key:
        return sweep.as_value if field in _WITH_NUMBERS else None
    if field == "allow_shared_workdir":
        return lambda value: bool(field_specs.checked(_FLAG, value))
    if field == "parents":
        return _parents
    return _object_of if field in _OBJECTS and field != "environ_vars" else None


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
COMMANDS_APP: Row = {"name": "commands", "executable": "bash -c", "description": "Command lines of balsam job --commands"}


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
        self._defaults: Row = {"parameters": {}, **defaults, **objects}
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
        if self._as_parameters:
            row["parameters"] = {**row["parameters"], **{name: sweep.as_value(values[name]) for name in self._as_parameters}}
        if self._as_data:
            row["data"] = {
                **row.get("data", {}),
                SWEPT_ELSEWHERE: {name: sweep.as_value(values[name]) for name in self._as_data},
            }
        return row


#: What gives the rows of jobs.
Source = Union[FileRows, CommandRows, SweepRows, Sequence[Row]]


def of_options(fields: Mapping[str, Any]) -> Row:
    """Return the fields of all jobs of a campaign but for those with their defaults, which would be checked for each job."""
    found = {}
    for name, value in fields.items():
        field = field_specs.JOB_FIELD.get(name)
        is_default = (
            not value if field is None or name in _OBJECTS else field.kind == "flag" and bool(value) == bool(field.default)
        )
        if not is_default:
            found[name] = value
    return found


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
    #: The last value of each field, and its canonical form: in most fields the same object in all rows.
    last: dict[str, tuple[Any, Any]] = {}

    def canonical(field: field_specs.Field, given: Any) -> Any:
        """Return a value as it is hashed; None: it is the default."""
        stored = field_specs.checked(field, given)
        if stored == field.default:
            return None
        return json.loads(stored) if field.kind in field_specs.JSON_KINDS else stored

    def key(row: Mapping[str, Any]) -> str:
        values = {}
        for field in fields:
            name, default = field.name, field.default
            given = row.get(name, default)
            known = last.get(name)
            if known is None or known[0] is not given or isinstance(given, dict):
                known = last[name] = (given, canonical(field, given))
            if known[1] is not None:
                values[name] = known[1]
        if by in _LEGIBLE:
            listed = [values.get(field.name, "") for field in fields]
            text = listed[0] if len(listed) == 1 else json.dumps(listed, ensure_ascii=False, separators=(",", ":"))
            if len(text) <= _MAX_LEGIBLE:
                return f"{by}:{text}"
        return f"{by}:{hashlib.sha256(_as_json(values).encode()).hexdigest()[:32]}"

    return key


_as_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


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
_OTHERS_NUMBERED = re.compile(r"\bjob(s?) number (\d+(?:, \d+)*)( of the same batch)?")
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

    def lines(found: re.Match[str]) -> str:
        return f"line{found[1]} {', '.join(str(source.line_of(int(number))) for number in found[2].split(', '))}"

    exc.message, exc.hint = (_OTHERS_NUMBERED.sub(lines, one) for one in (where.message, exc.hint))
    return exc
