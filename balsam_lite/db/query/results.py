"""Read results: one row for each job with its parameters, tags, `data`, return value and what is known of its last run.

The columns are those of the view `results`; keys of the JSON objects among them are columns, too: `parameters.T`,
`data.energy`, and `data.fit.a` for an object in `data`. Which keys there are is found by reading the objects once before.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from operator import itemgetter
from typing import Any

from ...core import field_specs
from ...core.clock import SECOND_US, iso_us
from ...core.errors import UnknownField, did_you_mean
from ...core.plain_values import json_in_file, json_of_result
from . import runs, select
from .filters import EVERY
from .operators import execute
from .views import BY_NAME, ViewColumn

#: Jobs that are read at once.
PAGE = 5000
#: Keys of one JSON object that become columns; if the jobs have more, it stays one column with JSON.
MAX_KEYS = 1000

#: The columns that have no key, by name.
FIXED: dict[str, ViewColumn] = {column.name: column for column in BY_NAME["results"].columns}
TIMES = frozenset(name for name, column in FIXED.items() if column.kind == "time")
#: The JSON objects whose keys become columns.
OBJECTS = tuple(name for name, column in FIXED.items() if column.is_json)
#: What a call returned.
RESULT = "result"
#: Other names of the columns.
ALIASES = {**runs.SHORT_NAMES, **field_specs.OUR_NAMES}
_BEFORE = ("id", "name", "workflow", "application", "state")
_AFTER = (
    "return_code", "attempt", "runtime_s", "user_cpu_s", "system_cpu_s", "max_memory_bytes", "node", "started", "ended",
    "created", "failure",
)  # fmt: skip

#: Reads the jobs page by page: gets names of FIXED; yields the name of a site and rows of the number and these columns.
Pages = Callable[[Sequence[str]], Iterator[tuple[str, list[Sequence[Any]]]]]


def page(
    cx: sqlite3.Connection, where: select.Given = EVERY, fields: Sequence[str] = (), after: int = 0, size: int = PAGE,
    order: str = "", data_directory: str = "",
) -> list[Sequence[Any]]:  # fmt: skip
    """Return the number and these columns, as stored, of the first `size` matching jobs with a number above `after`.

    Return values are JSON.

    Args:
        data_directory: that of the DB, where functions of applications leave what they returned; "": leave these values out.

    Raises:
        UnknownField, InvalidSpec.
    """
    numbers, parameters = select.statement(cx, "job.id", where, order, 0, size, after)
    if not fields:
        return execute(cx, numbers, parameters).fetchall()
    columns = ["job.id", *(FIXED[name].raw_sql for name in fields)]
    source = f"""({numbers}) AS chosen CROSS JOIN job ON job.id = chosen.id
        LEFT JOIN run ON run.job = job.id AND run.attempt = job.attempt"""
    functions: set[str] = set()
    if RESULT in fields and data_directory:
        functions = {name for (name,) in cx.execute("SELECT name FROM app WHERE definition <> '{}'")}
        columns += ["job.application", "job.workdir", "job.job_id", "job.attempt"] if functions else []
    rows: list[Sequence[Any]] = execute(cx, f"SELECT {', '.join(columns)} FROM {source}", parameters).fetchall()
    if RESULT in fields:
        place = 1 + fields.index(RESULT)
        rows = [_with_value(row, place, functions, data_directory) for row in rows]
    if not order:
        rows.sort(key=itemgetter(0))
    return rows


def _with_value(row: Sequence[Any], place: int, functions: set[str], data_directory: str) -> Sequence[Any]:
    """Return a row of `page` with its return value as JSON, and without the columns by which its file was found."""
    if functions:
        *row, application, workdir, job_id, attempt = row
        if application in functions:
            path = os.path.join(data_directory, workdir, f".balsam-{job_id[:8]}.pkl")
            return [*row[:place], json_in_file(path, job_id, attempt), *row[place + 1 :]]
    if row[place] is None:
        return row
    return [*row[:place], json_of_result(row[place]), *row[place + 1 :]]


def of_numbers(read: Callable[[list[int]], list[Sequence[Any]]], numbers: Iterable[int]) -> Iterator[list[Sequence[Any]]]:
    """Yield pages of the rows that `read` returns of these jobs, in their order; those that are gone are left out."""
    source = iter(numbers)
    while some := list(islice(source, PAGE)):
        found = {row[0]: row for row in read(some)}
        yield [found[number] for number in some if number in found]


class ResultTable:
    """The results of some jobs, as rows of the same columns.

    Attributes:
        columns: their names, in order.
        notes: what the user should know: objects with too many keys, columns without values.
    """

    def __init__(self, pages: Pages, named: Sequence[str] = (), has_sites: bool = False) -> None:
        """Find the columns: those that are named, or else all.

        Args:
            named: names of FIXED or ALIASES, `site`, names of keys, or their beginnings up to a dot, which mean all these.
            has_sites: begin with the name of the site.

        Raises:
            UnknownField: no job has such a column, and another name is near.
        """
        self._pages = pages
        self.notes: list[str] = []
        named = [ALIASES.get(name, name) for name in named]
        for name in named:
            if name not in (*FIXED, "site") and name.partition(".")[0] not in OBJECTS:
                raise UnknownField(
                    f"There is no column {name!r}.{did_you_mean(name, (*FIXED, *ALIASES))}",
                    hint=f"Columns: {', '.join(FIXED)}; and keys, as in data.energy or parameters.T",
                )
        wanted = {name.partition(".")[0] for name in named} if named else set(OBJECTS)
        self._paths = self._find_paths([name for name in OBJECTS if name in wanted])
        keys = {name: [key for key, path in self._paths.items() if path[0] == name] for name in OBJECTS}
        if named:
            self.columns = list(dict.fromkeys(column for name in named for column in self._resolved(name, keys)))
        else:
            whole = [name for name in OBJECTS if name in self._is_whole]
            self.columns = [
                *["site"] * has_sites,
                *_BEFORE,
                *whole,
                *(key for found in keys.values() for key in found),
                *_AFTER,
            ]

    def _find_paths(self, fields: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the columns of the keys in these objects, each with its path: the object, its key, the key in that, …"""
        self._is_whole: set[str] = set()
        found: dict[str, dict[tuple[str, ...], None]] = {name: {} for name in fields}
        shapes: set[tuple[str, ...]] = set()
        for _, rows in self._pages(fields) if fields else ():
            for place, name in enumerate(fields, 1):
                if name in self._is_whole:
                    continue
                _note_paths(name, (row[place] for row in rows), found[name], shapes)
                if len(found[name]) > MAX_KEYS:
                    self._is_whole.add(name)
                    self.notes.append(f"{name} has more than {MAX_KEYS} keys, so it is one column: name those that you want.")
            if len(shapes) > MAX_KEYS:
                shapes.clear()
        paths: dict[str, tuple[str, ...]] = {}
        for name in fields:
            for path in found[name] if name not in self._is_whole else ():
                key = ".".join(path)
                while key in paths:  # a key that holds a dot
                    key += "_"
                paths[key] = path
        return paths

    def _resolved(self, name: str, keys: dict[str, list[str]]) -> list[str]:
        """Return the columns that a name means."""
        group = name.partition(".")[0]
        if group not in OBJECTS or (name == group and not keys[group]):
            return [name]
        below = [key for key in keys[group] if key == name or name == group or key.startswith(f"{name}.")]
        if not below:
            near = did_you_mean(name, keys[group])
            if near:
                raise UnknownField(f"No job has a column {name!r}.{near}", hint=f"Keys of {group}: {', '.join(keys[group])}")
            if group in self._is_whole:
                self._paths[name] = tuple(name.split("."))
            else:
                self.notes.append(f"No job has {name}.")
        return below or [name]

    def rows(self, as_text: bool = True) -> Iterator[Sequence[Any]]:
        """Yield the values of each job in the order of `columns`; times as text, else as they are stored (microseconds).

        Raises what the pages raise.
        """
        heads = {self._paths[name][0] if name in self._paths else name for name in self.columns}
        fields = [name for name in FIXED if name in heads and name != "id"]
        for site, rows in self._pages(fields):
            stored = dict(zip(("id", *fields), zip(*rows)))
            stored["site"] = (site,) * len(rows)
            objects = {name: _objects(stored[name]) for name in OBJECTS if name in stored}
            yield from zip(*(self._values(name, stored, objects, as_text) for name in self.columns))

    def _values(
        self, name: str, stored: Mapping[str, Sequence[Any]], objects: Mapping[str, Sequence[Any]], as_text: bool
    ) -> Sequence[Any]:  # fmt: skip
        """Return a column of a page."""
        if path := self._paths.get(name):
            found: Sequence[Any] = objects[path[0]]
            for key in path[1:]:
                found = [one.get(key) if type(one) is dict else None for one in found]
            return [None if type(value) is dict and value else value for value in found] if dict in map(type, found) else found
        if name in objects:
            return objects[name]
        if name not in stored:
            return [None] * len(stored["site"])
        if as_text and name in TIMES:
            return [None if value is None else _time_text(value) for value in stored[name]]
        return stored[name]

    @property
    def kinds(self) -> dict[str, str]:
        """Return the kinds of the columns that are known, as in `fields.Column`."""
        return {name: FIXED[name].kind for name in self.columns if name in FIXED}


_decoded = json.JSONDecoder().raw_decode


def _object(text: str | None) -> Any:
    if text is None:
        return None
    return field_specs.read_object(text) if field_specs.FLOAT_KEY in text else _decoded(text)[0]


def _objects(texts: Sequence[str | None]) -> list[Any]:
    """Return JSON objects, not to be changed; equal texts are read once. A return value may be any value."""
    known = {text: _object(text) for text in set(texts)}
    return [known[text] for text in texts]


def _note_paths(
    name: str, texts: Iterable[str | None], paths: dict[tuple[str, ...], None], shapes: set[tuple[str, ...]]
) -> None:  # fmt: skip
    """Add the paths of all values in JSON texts. `shapes` are the keys of objects without inner ones that were seen."""
    for one in map(_object, dict.fromkeys(texts)):
        if one is None or one == {}:
            continue
        shape = (name, *one) if type(one) is dict and dict not in map(type, one.values()) else None
        if shape is None or shape not in shapes:
            _add_paths(one, (name,), paths)
        if shape is not None:
            shapes.add(shape)


def _add_paths(found: Any, path: tuple[str, ...], paths: dict[tuple[str, ...], None]) -> None:
    """Add the paths of all values in a value at this path; objects that are empty are values."""
    if type(found) is dict and found:
        for key, value in found.items():
            _add_paths(value, (*path, key), paths)
    else:
        paths.setdefault(path)


@lru_cache(65536)
def _second_text(seconds: int) -> str:
    return iso_us(seconds * SECOND_US)[:19]


def _time_text(time_us: int) -> str:
    """Return what `clock.iso_us` does, faster for times that are close together."""
    seconds, micros = divmod(time_us, SECOND_US)
    return f"{_second_text(seconds)}.{micros:06d}Z"
