"""Lazy query sets in the style of Django: `BalsamJob.objects.filter(state="FAILED").order_by("-num_nodes")[:10]`.

A query set is immutable: each method returns another one. peewee builds the SQL and `Database` runs it, so that everything
that `Database` handles (both ways of opening the file, threads, forks, a busy file) applies here, too. All rows are fetched
before the transaction ends; no transaction is open while a user's code runs. `db.store` does all writing.
"""

from __future__ import annotations

import operator
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar, overload

import peewee
from peewee import SQL

from ..core import states
from ..core.errors import InvalidSpec, NoDatabase, StateError
from .engine import directories
from .engine.connection import Database
from .query import fields, select
from .query.filters import Conditions, Q, all_of, negated
from .query.operators import Term, execute

#: Rows that `iterator` fetches at once, and objects that `repr` shows.
_PAGE, _SHOWN = 2000, 20

Record = TypeVar("Record", bound=Any)


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


class _Plan(NamedTuple):
    """The definition of a query."""

    where: Conditions | None = None
    within: tuple[Term, ...] = ()  # conditions in SQL: the slices that were narrowed
    order: tuple[str, ...] = ()
    start: int = 0
    stop: int | None = None
    columns: tuple[str, ...] = ()  # () is: whole objects
    shape: str = "object"  # or: dict, tuple, flat
    distinct: bool = False
    nothing: bool = False

    @property
    def is_cut(self) -> bool:
        return self.start > 0 or self.stop is not None


class QuerySet(Generic[Record]):
    """Matching jobs or applications in a defined order (by default by number; distinct rows by value).

    A read opens a read transaction, or joins the open one. Fetched rows are kept: iterating twice queries once.
    All methods raise UnknownField, InvalidSpec or InvalidStateError (each a ValueError) for invalid lookups.
    """

    def __init__(self, model: type[Record], database: Database | None = None, plan: _Plan = _Plan()) -> None:
        self.model = model
        self._database = database
        self._plan = plan
        self._fetched: list[Any] | None = None

    def _with(self, **changes: Any) -> QuerySet[Record]:
        return type(self)(self.model, self._database, self._plan._replace(**changes))

    @property
    def database(self) -> Database:
        """The DB of this query set: the one it was bound to, or the active one."""
        return self._database or active()

    # --- narrowing ----------------------------------------------------------------------------------------------------

    def using(self, database: Database) -> QuerySet[Record]:
        """Return the same query on that DB."""
        return type(self)(self.model, database, self._plan)

    def all(self) -> QuerySet[Record]:
        """Return a fresh copy, which queries the DB again."""
        return self._with()

    def none(self) -> QuerySet[Record]:
        """Return an empty query set."""
        return self._with(nothing=True)

    def filter(self, *several: Q, **conditions: Any) -> QuerySet[Record]:
        """Return those for which all conditions hold; of a slice, those of the slice. See `query.filters` for the grammar."""
        return self._narrowed(all_of(*(one.where for one in several), conditions))

    def exclude(self, *several: Q, **conditions: Any) -> QuerySet[Record]:
        """Return those for which not all conditions hold."""
        asked = all_of(*(one.where for one in several), conditions)
        return self._narrowed(negated(asked) if asked else {})

    def _narrowed(self, where: Mapping[str, Any]) -> QuerySet[Record]:
        plan = self._plan
        if not where:
            return self._with()
        asked = Conditions(where, self._table)
        if plan.is_cut:
            sql, parameters = self._select([self._number]).sql()
            inside = Term(f"{self._table.number} IN ({sql})", parameters)
            return self._with(where=asked, within=(inside,), start=0, stop=None)
        return self._with(where=asked if plan.where is None else plan.where & asked)

    def order_by(self, *names: str) -> QuerySet[Record]:
        """Return the objects sorted by these fields, in descending order with `-` before the name; ties by number."""
        for name in names:
            fields.column_of(self._table, name.removeprefix("-"))
        if self._plan.is_cut:
            raise InvalidSpec("A slice cannot be sorted any more: sort first, then cut.")
        return self._with(order=names)

    def reverse(self) -> QuerySet[Record]:
        """Return the objects in the opposite order."""
        order = self._plan.order or ("id",)
        return self.order_by(*(name[1:] if name.startswith("-") else f"-{name}" for name in order))

    def distinct(self) -> QuerySet[Record]:
        """Return only distinct rows; useful together with `values` and `values_list`."""
        return self._with(distinct=True)

    def values(self, *names: str) -> QuerySet[Record]:
        """Return dicts of these fields (by default all) instead of objects."""
        return self._with(columns=self._checked_columns(names), shape="dict")

    def values_list(self, *names: str, flat: bool = False) -> QuerySet[Record]:
        """Return tuples of these fields instead of objects; with `flat` the values of the one field."""
        if flat and len(names) != 1:
            raise InvalidSpec("values_list(flat=True) takes exactly one field.")
        return self._with(columns=self._checked_columns(names), shape="flat" if flat else "tuple")

    def _checked_columns(self, names: tuple[str, ...]) -> tuple[str, ...]:
        names = names or tuple(self.model._FIELDS)
        for name in names:
            fields.column_of(self._table, name)
        return names

    # --- SQL ----------------------------------------------------------------------------------------------------------

    @property
    def _table(self) -> fields.Table:
        return fields.TABLES[self.model._what]

    @property
    def _number(self) -> Any:
        return SQL(self._table.number)

    def _select(self, nodes: Sequence[Any]) -> Any:
        plan = self._plan
        table = self._table
        query = peewee.Table(table.name, alias=table.name).select(*nodes)
        for term in (*plan.within, (plan.where or Conditions({}, table)).sql()):
            query = query.where(SQL(term.sql, term.parameters))
        if plan.distinct:
            query = query.distinct()
        query = query.order_by(*self._order())
        if plan.stop is not None or plan.start:
            query = query.limit(-1 if plan.stop is None else max(plan.stop - plan.start, 0))
        return query.offset(plan.start) if plan.start else query

    def _order(self) -> Iterator[Any]:
        for name in self._plan.order:
            node = _node(fields.column_of(self._table, name.removeprefix("-")))
            yield peewee.Desc(node) if name.startswith("-") else peewee.Asc(node)
        if self._plan.distinct and self._plan.columns:  # rows, which have no number
            yield from map(_node, self._columns())
        else:
            last = self._plan.order[-1] if self._plan.order else ""
            yield peewee.Desc(self._number) if last.startswith("-") else peewee.Asc(self._number)

    def _run(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self.database.read() as cx:
            return execute(cx, sql, parameters).fetchall()

    # --- fetching -----------------------------------------------------------------------------------------------------

    def _columns(self) -> list[fields.Column]:
        return [fields.column_of(self._table, name) for name in self._plan.columns or self.model._COLUMNS]

    def _fetch(self) -> list[Any]:
        if self._fetched is None:
            if self._plan.nothing:
                self._fetched = []
            else:
                columns = self._columns()
                rows = self._run(*self._select([_node(column, select.fetched(column)) for column in columns]).sql())
                self._fetched = list(self._shaped(rows, columns))
        return self._fetched

    def _shaped(self, rows: Iterable[tuple[Any, ...]], columns: list[fields.Column]) -> Iterator[Any]:
        names, shape = self._plan.columns, self._plan.shape
        if shape == "object":
            database = self.database
            load = self.model._load
            return (load(row, database) for row in rows)
        readers = [(place, read) for place, one in enumerate(columns) if (read := select.reader_of(one))]
        if readers:
            rows = (_read(row, readers) for row in rows)
        if shape == "dict":
            return (dict(zip(names, row)) for row in rows)
        return (row[0] for row in rows) if shape == "flat" else iter(rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._fetch())

    def iterator(self, chunk_size: int = _PAGE) -> Iterator[Any]:
        """Yield the objects with `chunk_size` of them in memory, and 8 bytes for each of the others.

        The set of objects is fixed at the beginning. No transaction is open between two pages, so the loop may write. An object
        holds its row as it was when its page was read; rows deleted before that are skipped.
        """
        if self._plan.nothing:
            return
        if self._plan.distinct and self._plan.columns:
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
        plan = self._plan
        if plan.nothing:
            return iter(())
        query = self._with(distinct=False)._select([self._number])
        if plan.order or plan.is_cut:
            return iter(array("q", (row[0] for row in self._run(*query.sql()))))
        # Sorting here lets SQLite read an index, which is a tenth of the table.
        return iter(array("q", sorted(row[0] for row in self._run(*query.order_by().sql()))))

    def count(self) -> int:
        """Return the number of objects."""
        if self._fetched is not None or self._plan.nothing:
            return len(self._fetched or ())
        nodes = [_node(one) for one in self._columns()] if self._plan.distinct and self._plan.columns else [SQL("1")]
        sql, parameters = self._select(nodes).order_by().sql()
        return int(self._run(f"SELECT count(*) FROM ({sql})", parameters)[0][0])

    def exists(self) -> bool:
        """Return whether there is any object."""
        if self._fetched is not None or self._plan.nothing:
            return bool(self._fetched)
        sql, parameters = self._select([SQL("1")]).sql()
        return bool(self._run(f"SELECT EXISTS (SELECT 1 FROM ({sql}))", parameters)[0][0])

    def get(self, *several: Q, **conditions: Any) -> Any:
        """Return the one object that matches.

        Raises:
            the model's DoesNotExist or MultipleObjectsReturned.
        """
        found = self.filter(*several, **conditions)._cut(0, 2)._fetch()
        if len(found) == 1:
            return found[0]
        asked = ", ".join(f"{name}={value!r}" for name, value in conditions.items())
        if found:
            raise self.model.MultipleObjectsReturned(f"More than one {self.model._what} matches {asked or 'the query'}.")
        raise self.model.DoesNotExist(f"No {self.model._what} matches {asked or 'the query'}.")

    def first(self) -> Any:
        """Return the first object, None if there is none."""
        return next(iter(self._cut(0, 1)._fetch()), None)

    def last(self) -> Any:
        """Return the last object, None if there is none."""
        if self._plan.is_cut:
            return next(reversed(self._fetch()), None)
        return self.reverse().first()

    def __len__(self) -> int:
        return len(self._fetch())

    def __bool__(self) -> bool:
        return self.exists()

    @overload
    def __getitem__(self, place: int) -> Any: ...
    @overload
    def __getitem__(self, place: slice) -> Any: ...
    def __getitem__(self, place: int | slice) -> Any:
        """Return the object at that position, or a query set (with a step: a list) of the objects in that range."""
        if isinstance(place, slice):
            return self._sliced(place)
        place = operator.index(place)
        if self._fetched is not None:
            return self._fetched[place]
        if place < 0:
            place += self.count()
        found = self._cut(place, place + 1)._fetch() if place >= 0 else []
        if not found:
            raise IndexError("There are not that many.")
        return found[0]

    def _sliced(self, place: slice) -> Any:
        if place.step is not None:
            return self._fetch()[place]
        start, stop = operator.index(place.start or 0), None if place.stop is None else operator.index(place.stop)
        if start < 0 or (stop or 0) < 0:
            start, stop, _ = place.indices(self.count())
        cut = self._cut(start, stop)
        if self._fetched is not None:
            cut._fetched = self._fetched[place]
        return cut

    def _cut(self, start: int, stop: int | None) -> QuerySet[Record]:
        plan = self._plan
        end = None if stop is None else plan.start + max(stop, start)
        if plan.stop is not None:
            end = plan.stop if end is None else min(end, plan.stop)
        return self._with(start=plan.start + start, stop=end)

    def __repr__(self) -> str:
        try:
            shown = self._fetched[: _SHOWN + 1] if self._fetched is not None else self._cut(0, _SHOWN + 1)._fetch()
        except NoDatabase as exc:  # `help(BalsamJob)` comes here
            return f"<QuerySet: {exc.message}>"
        names = [one.cute_id if hasattr(one, "cute_id") else repr(one) for one in shown[:_SHOWN]]
        more = ", …" if len(shown) > _SHOWN else ""
        return f"<QuerySet [{', '.join(names)}{more}]>"

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
            return list((self if most is None or self._plan.is_cut else self._cut(0, most)).numbers())

        self._fetched = None
        return pieces.find_and_change(self.database, lambda cx, most: find(most), action)


class JobSource:
    """`BalsamJob.source` of Balsam 0.3: selects jobs as its launchers did. Today's launchers claim jobs by a lease.

    With `workflow`, select only jobs whose workflow name contains that text.
    """

    def __init__(self, model: type[Any]) -> None:
        self._model = model
        self.workflow = ""

    def by_states(self, names: str | Iterable[str]) -> QuerySet[Any]:
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
    ) -> QuerySet[Any]:
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


def _read(row: tuple[Any, ...], readers: list[tuple[int, Any]]) -> tuple[Any, ...]:
    values = list(row)
    for place, read in readers:
        values[place] = read(values[place])
    return tuple(values)
