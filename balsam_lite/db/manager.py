"""Lazy query sets in the style of Django: `BalsamJob.objects.filter(state="FAILED").order_by("-num_nodes")[:10]`.

peewee builds the SQL and `Database` runs it, so that everything
that `Database` handles (both ways of opening the file, threads, forks, a busy file) applies here, too. All rows are fetched
before the transaction ends; no transaction is open while a user's code runs. `db.store` does all writing.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NoReturn, TypeVar

import peewee
from peewee import SQL

from ..core import states
from ..core.errors import InvalidSpec, NoDatabase, StateError
from .engine import directories
from .engine.connection import Database
from .lazy_set import LazySet
from .query import fields, runs, select
from .query.filters import Conditions, Q, all_of, negated
from .query.operators import Term, execute

#: Rows that `iterator` fetches at once.
_PAGE = 2000

Set = TypeVar("Set", bound="QuerySet")


# --- which database ---------------------------------------------------------------------------------------------------

_chosen: list[Database] = []
_found: dict[str, Database] = {}


class use:
    """Make `database` the active one, from now on or for a `with` block; for tests, and for code with several DBs.

    This applies to all threads of the process. Objects remember the DB that they came from.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        _chosen.append(database)

    def __enter__(self) -> Database:
        return self._database

    def __exit__(self, *exc: object) -> None:
        _chosen.remove(self._database)


def active() -> Database:
    """Return the DB that query sets and new objects use: that of `use`, else the one that `directories.find` finds.

    The search runs once per process and value of BALSAM_DB_PATH, at first use.

    Raises:
        NoDatabase, NotABalsamDB, UnsafeFilesystem, SettingsError.
    """
    if _chosen:
        return _chosen[-1]
    named = os.environ.get(directories.DB_VARIABLE, "")
    if named not in _found:
        _found[named] = directories.open_database(directories.find())
    return _found[named]


def chosen_directory() -> str:
    """Return the directory of the DB of `use`; "" if there is none."""
    return _chosen[-1].directory if _chosen else ""


# --- query sets -------------------------------------------------------------------------------------------------------


class QuerySet(LazySet[Any]):
    """Matching jobs or applications in a defined order (by default by number; distinct rows by value).

    A read opens a read transaction, or joins the open one.
    All methods raise UnknownField, InvalidSpec or InvalidStateError (each a ValueError) for invalid lookups.
    """

    _where: Conditions | None = None
    _within: tuple[Term, ...] = ()  # conditions in SQL: the slices that were narrowed
    _sorted_by: tuple[str, ...] = ()
    _names: tuple[str, ...] = ()  # fields of the rows; () is: whole objects
    _shape = "object"  # or: dict, tuple, flat
    _is_distinct = False
    _title = "QuerySet"

    def __init__(self, model: type[Any], database: Database | None = None) -> None:
        super().__init__(model)
        self._database = database

    @property
    def database(self) -> Database:
        """Return the DB of this query set: the one it was bound to, or the active one."""
        return self._database or active()

    # --- narrowing ----------------------------------------------------------------------------------------------------

    def using(self: Set, database: Database) -> Set:
        """Return the same query on that DB."""
        return self._with(_database=database)

    def none(self: Set) -> Set:
        """Return an empty query set."""
        return self.filter(id=[])

    def filter(self: Set, *several: Q, **conditions: Any) -> Set:
        """Return those for which all conditions hold; of a slice, those of the slice. See `query.filters` for the grammar."""
        return self._narrowed(all_of(*(one.where for one in several), conditions))

    def exclude(self: Set, *several: Q, **conditions: Any) -> Set:
        """Return those for which not all conditions hold."""
        asked = all_of(*(one.where for one in several), conditions)
        return self._narrowed(negated(asked) if asked else {})

    def _narrowed(self: Set, where: Mapping[str, Any]) -> Set:
        if not where:
            return self._with()
        asked = Conditions(where, self._table)
        if self._is_cut:
            sql, parameters = self._select([self._number]).sql()
            inside = Term(f"{self._table.number} IN ({sql})", parameters)
            return self._with(_where=asked, _within=(inside,), _start=0, _stop=None)
        return self._with(_where=asked if self._where is None else self._where & asked)

    def order_by(self: Set, *names: str) -> Set:
        """Return the objects sorted by these fields, in descending order with `-` before the name; ties by number."""
        for name in names:
            fields.column_of(self._table, name.removeprefix("-"))
        if self._is_cut:
            raise InvalidSpec("A slice cannot be sorted any more: sort first, then cut.")
        return self._with(_sorted_by=names)

    def reverse(self: Set) -> Set:
        """Return the objects in the opposite order."""
        names = self._sorted_by or ("id",)
        return self.order_by(*(name[1:] if name.startswith("-") else f"-{name}" for name in names))

    def distinct(self: Set) -> Set:
        """Return only distinct rows of `values` and `values_list`; objects are distinct anyway."""
        return self._with(_is_distinct=True)

    def values(self: Set, *names: str) -> Set:
        """Return dicts of these fields (by default all) instead of objects."""
        return self._of_fields(names, "dict")

    def values_list(self: Set, *names: str, flat: bool = False) -> Set:
        """Return tuples of these fields instead of objects; with `flat` the values of the one field."""
        if flat and len(names) != 1:
            raise InvalidSpec("values_list(flat=True) takes exactly one field.")
        return self._of_fields(names, "flat" if flat else "tuple")

    def _of_fields(self: Set, names: tuple[str, ...], shape: str) -> Set:
        names = names or tuple(self.model._FIELDS)
        for name in names:
            fields.column_of(self._table, name)
        return self._with(_names=names, _shape=shape)

    @property
    def _labels(self) -> tuple[str, ...]:
        """Return the names of the fields in dicts and tables."""
        return self._names

    # --- SQL ----------------------------------------------------------------------------------------------------------

    @property
    def _table(self) -> fields.Table:
        return fields.TABLES[self.model._what]

    @property
    def _number(self) -> Any:
        return SQL(self._table.number)

    @property
    def _has_numbers(self) -> bool:
        """Return whether each row is that of one object: distinct rows have no number."""
        return not (self._is_distinct and self._names)

    def _select(self, nodes: Sequence[Any]) -> Any:
        table = self._table
        query = peewee.Table(table.name, alias=table.name).select(*nodes)
        for term in (*self._within, (self._where or Conditions({}, table)).sql()):
            query = query.where(SQL(term.sql, term.parameters))
        if not self._has_numbers:
            query = query.distinct()
        query = query.order_by(*self._order())
        if self._is_cut:
            limit, offset = select.limits(self._start, self._stop)
            query = query.limit(limit).offset(offset)
        return query

    def _order(self) -> Iterator[Any]:
        for name in self._sorted_by:
            column = fields.column_of(self._table, name.removeprefix("-"))
            order = peewee.Desc if name.startswith("-") else peewee.Asc
            yield order(_node(column), nulls="LAST" if column.is_sorted_last else None)
        if self._has_numbers:
            last = self._sorted_by[-1] if self._sorted_by else ""
            yield peewee.Desc(self._number) if last.startswith("-") else peewee.Asc(self._number)
        else:
            yield from map(_node, self._columns())

    def _run(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self.database.read() as cx:
            return execute(cx, sql, parameters).fetchall()

    # --- fetching -----------------------------------------------------------------------------------------------------

    def _columns(self) -> list[fields.Column]:
        return [fields.column_of(self._table, name) for name in self._names or self.model._COLUMNS]

    def _read(self) -> list[Any]:
        columns = self._columns()
        rows = self._run(*self._select([_node(column, select.fetched(column)) for column in columns]).sql())
        return list(self._shaped(rows, columns))

    def _shaped(self, rows: Iterable[tuple[Any, ...]], columns: list[fields.Column]) -> Iterator[Any]:
        shape = self._shape
        if shape == "object":
            database = self.database
            load = self.model._load
            return (load(row, database) for row in rows)
        readers = [(place, read) for place, one in enumerate(columns) if (read := select.READERS.get(one.kind))]
        if readers:
            rows = (_with_values(row, readers) for row in rows)
        if shape == "dict":
            return (dict(zip(self._labels, row)) for row in rows)
        return (row[0] for row in rows) if shape == "flat" else iter(rows)

    def iterator(self, chunk_size: int = _PAGE) -> Iterator[Any]:
        """Yield the objects with `chunk_size` of them in memory, and 8 bytes for each of the others.

        The set of objects is fixed at the beginning. No transaction is open between two pages, so the loop may write. An object
        holds its row as it was when its page was read; rows deleted before that are skipped.
        """
        if not self._has_numbers:
            yield from self._with()
            return
        numbers = self.numbers()
        columns = self._columns()
        nodes = [self._number, *(_node(column, select.fetched(column)) for column in columns)]
        while page := list(islice(numbers, chunk_size)):
            of_page = QuerySet(self.model, self.database).filter(id__in=page)._select(nodes)
            found = {row[0]: row[1:] for row in self._run(*of_page.sql())}
            yield from self._shaped((found[number] for number in page if number in found), columns)

    def numbers(self) -> Iterator[int]:
        """Yield the numbers (`id`) of the objects, in order."""
        query = self._with(_is_distinct=False)._select([self._number])
        if self._sorted_by or self._is_cut:
            return iter(array("q", (row[0] for row in self._run(*query.sql()))))
        # Sorting here lets SQLite read an index, which is a tenth of the table.
        return iter(array("q", sorted(row[0] for row in self._run(*query.order_by().sql()))))

    def _values(self, names: tuple[str, ...]) -> tuple[Sequence[str], Iterable[Mapping[str, Any]]]:
        if names or self._shape == "object":
            of_run = runs.OF_JOB if self.model._what == fields.JOB.name else ()
            return self.values(*(names or (*self.model._FIELDS, *of_run)))._values(())
        if self._shape != "dict":
            raise InvalidSpec("Only objects and dicts (values) make a data frame, not tuples.")
        times = [name for name, column in zip(self._labels, self._columns()) if column.kind == "time"]
        return self._labels, (_with_datetimes(row, times) for row in self)

    def _result_pages(self, names: tuple[str, ...]) -> tuple[Any, tuple[str, ...], bool]:
        from .query import results

        if self.model._what != fields.JOB.name or not self._has_numbers:
            return super()._result_pages(names)
        numbers = array("q", self.numbers())

        def read(some: list[int], columns: Sequence[str]) -> list[Sequence[Any]]:
            with self.database.read() as cx:
                data = os.path.join(self.database.directory, directories.DATA)
                return results.page(cx, {"id": some}, columns, 0, len(some), "", data)

        def pages(columns: Sequence[str]) -> Iterator[tuple[str, list[Sequence[Any]]]]:
            return (("", rows) for rows in results.of_numbers(lambda some: read(some, columns), numbers))

        return pages, names, False

    def _count(self) -> int:
        nodes = [SQL("1")] if self._has_numbers else [_node(one) for one in self._columns()]
        sql, parameters = self._select(nodes).order_by().sql()
        return int(self._run(f"SELECT count(*) FROM ({sql})", parameters)[0][0])

    def _from_end(self, place: int) -> int:
        return place + self.count()

    def first(self) -> Any:
        """Return the first object, None if there is none."""
        return next(iter(self._cut(0, 1)), None)

    def last(self) -> Any:
        """Return the last object, None if there is none."""
        return next(reversed(self._fetch()), None) if self._is_cut else self.reverse().first()

    def __repr__(self) -> str:
        try:
            return super().__repr__()
        except NoDatabase as exc:  # `help(BalsamJob)` comes here
            return f"<QuerySet: {exc.message}>"

    # --- writing ------------------------------------------------------------------------------------------------------

    def create(self, **fields: Any) -> Any:
        """Add an object with these fields; see the model's `save`."""
        made = self.model(**fields)
        made._database = self.database
        made.save()
        return made

    def get_or_create(self, defaults: Mapping[str, Any] | None = None, **fields: Any) -> tuple[Any, bool]:
        """Return the object with these fields, and whether it was added (with `defaults`, too). One write transaction."""
        with self.database.write():
            try:
                return self.get(**fields), False
            except self.model.DoesNotExist:
                given = {name: value for name, value in fields.items() if "__" not in name}
                return self.create(**{**given, **(defaults or {})}), True

    def update(self, **fields: Any) -> int:
        """Set these fields in all matching objects and return their number. All or nothing; many jobs in `store.pieces`.

        A job's `state` changes as by a user: this is recorded in its history, and its children are released or failed.

        Raises:
            UnknownField, InvalidSpec, InvalidStateError; StateError: a launcher holds one of the jobs.
        """
        numbers = self._write(lambda numbers: self.model._change(self.database, numbers, fields))[0]
        return len(numbers)

    def delete(self, force: bool = False) -> int:
        """Remove all matching objects and return their number. Many jobs are removed in pieces (`store.pieces`).

        Raises:
            ParentInUse: other jobs wait for one of these, and `force` is not set.
        """
        return int(self._write(lambda numbers: self.model._remove(self.database, numbers, force))[1])

    def _write(self, action: Callable[[list[int]], Any]) -> tuple[list[int], Any]:
        """Call `action` with the numbers of the matching objects, if few in the transaction that finds them. Return both."""
        from .store import pieces

        def find(most: int | None) -> list[int]:
            return list((self if most is None or self._is_cut else self._cut(0, most)).numbers())

        self._rows = None
        return pieces.find_and_change(self.database, lambda cx, most: find(most), action)


class JobSource:
    """`BalsamJob.source` of Balsam 0.3: selects jobs as its launchers did. Today's launchers claim jobs by a lease.

    With `workflow`, select only jobs whose workflow name contains that text.
    """

    def __init__(self, model: type[Any]) -> None:
        self._model = model
        self.workflow = ""

    def by_states(self, names: str | Iterable[str]) -> QuerySet:
        """Return the jobs in these states."""
        asked = self._model.objects.filter(state__in=[names] if isinstance(names, str) else list(names))
        return asked.filter(workflow__contains=self.workflow) if self.workflow else asked

    def get_runnable(
        self,
        max_nodes: int,
        remaining_minutes: float | None = None,
        mpi_only: bool = False,
        serial_only: bool = False,
        order_by: str | Iterable[str] | None = None,
    ) -> QuerySet:
        """Return the jobs that a launcher with these nodes and minutes may take now. Serial means one rank on one node."""
        if mpi_only and serial_only:
            raise InvalidSpec("mpi_only and serial_only exclude each other.")
        free = self.by_states((*states.RUNNABLE_STATES, *states.UNPREPARED_STATES)).filter(lease=None, start_after=None)
        found = free.filter(num_nodes__lte=max_nodes)
        if remaining_minutes is not None:
            found = found.filter(wall_time_minutes__lte=int(remaining_minutes))
        serial = {"num_nodes": 1, "ranks_per_node": 1}
        found = found.filter(**serial) if serial_only else found.exclude(**serial) if mpi_only else found
        names = (order_by,) if isinstance(order_by, str) else tuple(order_by or ())
        return found.order_by(*names)

    def acquire(self, ids: Iterable[Any]) -> NoReturn:
        """Raise StateError: only launchers claim jobs."""
        raise StateError("Jobs cannot be locked by hand any more.", hint="Launchers claim them by a lease now.")

    def release(self, ids: Iterable[Any] = ()) -> NoReturn:
        """Raise StateError: there is nothing to release."""
        self.acquire(ids)

    release_all_owned = start_tick = clear_stale_locks = release


def _node(column: fields.Column, sql: str = "") -> Any:
    return SQL(sql or column.sql, column.parameters)


def _with_datetimes(row: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return a row with datetimes instead of microseconds under these names."""
    from datetime import datetime, timedelta, timezone

    epoch = datetime(1970, 1, 1, tzinfo=timezone.utc)
    changed = {name: epoch + timedelta(microseconds=row[name]) for name in names if isinstance(row[name], int)}
    return {**row, **changed}


def _with_values(row: tuple[Any, ...], readers: list[tuple[int, Any]]) -> tuple[Any, ...]:
    values = list(row)
    for place, read in readers:
        values[place] = read(values[place])
    return tuple(values)
