"""The lazy set of both Python interfaces (`manager`, `api.query`): rows in a defined order, read when they are first needed.

A set is immutable: each method returns another one. Fetched rows are kept: iterating twice queries once.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

from ..core.errors import InvalidSpec

R = TypeVar("R")
Set = TypeVar("Set", bound="LazySet[Any]")

#: No row has a higher position; it is the limit of Python's iterators and of SQLite's counts.
_MAX_POSITION = sys.maxsize
#: Objects that `repr` shows.
_SHOWN = 20


class LazySet(Generic[R]):
    """Rows of a model that match some conditions. Each interface adds how they are filtered, sorted, read and counted.

    `model` has `_what` (for messages), `DoesNotExist` and `MultipleObjectsReturned`.
    """

    _start = 0
    _stop: int | None = None
    _rows: list[R] | None = None
    _title = ""  # in `repr`; "" is: that of the class

    def __init__(self, model: Any) -> None:
        self.model = model

    def _with(self: Set, **changes: Any) -> Set:
        """Return a set that differs in these attributes, to be read again."""
        made: Set = object.__new__(type(self))
        made.__dict__.update(self.__dict__, _rows=None, **changes)
        return made

    def filter(self: Set, *several: Any, **conditions: Any) -> Set:
        """Return the rows that also match these conditions."""
        raise NotImplementedError

    def _read(self) -> list[R]:
        """Return the rows at the positions from `_start` to before `_stop` among all that match."""
        raise NotImplementedError

    def _count(self) -> int:
        """Return the number of these rows."""
        raise NotImplementedError

    def _from_end(self, place: int) -> int:
        """Return the position that a negative one means."""
        raise NotImplementedError

    def _named(self, conditions: dict[str, Any]) -> str:
        """Return the conditions of `get` in words."""
        return ", ".join(f"{name}={value!r}" for name, value in conditions.items()) or "the query"

    @property
    def _is_cut(self) -> bool:
        return self._start > 0 or self._stop is not None

    # --- reading ------------------------------------------------------------------------------------------------------

    def all(self: Set) -> Set:
        """Return the same set, to be read again."""
        return self._with()

    def _fetch(self) -> list[R]:
        if self._rows is None:
            self._rows = [] if self._stop is not None and self._stop <= self._start else self._read()
        return self._rows

    def __iter__(self) -> Iterator[R]:
        return iter(self._fetch())

    def __len__(self) -> int:
        return len(self._fetch())

    def __bool__(self) -> bool:
        return self.exists()

    def exists(self) -> bool:
        """Return whether there is any row."""
        return bool(self._cut(0, 1)._fetch() if self._rows is None else self._rows)

    def count(self) -> int:
        """Return the number of rows."""
        return self._count() if self._rows is None else len(self._rows)

    def get(self, *several: Any, **conditions: Any) -> R:
        """Return the one row that also matches these conditions.

        Raises:
            the model's DoesNotExist or MultipleObjectsReturned.
        """
        query = self.filter(*several, **conditions) if several or conditions else self
        found = query._cut(0, 2)._fetch() if query._rows is None else query._rows
        if len(found) == 1:
            return found[0]
        asked = f"{self.model._what} matches {query._named(conditions)}."
        if found:
            raise self.model.MultipleObjectsReturned(f"More than one {asked}")
        raise self.model.DoesNotExist(f"No {asked}")

    # --- positions ----------------------------------------------------------------------------------------------------

    @overload
    def __getitem__(self, place: int) -> R: ...
    @overload
    def __getitem__(self: Set, place: slice) -> Set: ...
    def __getitem__(self, place: Any) -> Any:
        """Return the row at that position, or a set (with a step: a list) of the rows in that range."""
        if isinstance(place, slice):
            return self._slice(place)
        at = operator.index(place)
        at = self._from_end(at) if at < 0 else at
        rows = [] if at < 0 else self._cut(at, at + 1)._fetch() if self._rows is None else self._rows[at : at + 1]
        if not rows:
            raise IndexError(f"There is no {self.model._what} at position {place}")
        return rows[0]

    def _slice(self, place: slice) -> Any:
        if place.step not in (None, 1):
            return self._fetch()[place]
        start, stop = (None if end is None else operator.index(end) for end in (place.start, place.stop))
        ends = [end if end is None or end >= 0 else max(self._from_end(end), 0) for end in (start, stop)]
        cut = self._cut(ends[0] or 0, ends[1])
        if self._rows is not None:
            cut._rows = self._rows[place]
        return cut

    def _cut(self: Set, start: int, stop: int | None) -> Set:
        """Return the rows from position `start` to before `stop` of this set."""
        ends = [end for end in (self._stop, None if stop is None else self._start + max(stop, start)) if end is not None]
        return self._with(_start=min(self._start + start, _MAX_POSITION), _stop=min(*ends, _MAX_POSITION) if ends else None)

    # --- in notebooks -------------------------------------------------------------------------------------------------

    def to_df(self, *names: str) -> Any:
        """Return the rows as a pandas DataFrame with these columns, by default all fields. Times have the zone UTC.

        Of jobs these include `started`, `ended`, `runtime_s`, `node` and `max_memory_bytes` of the last run.

        Raises:
            BalsamError: pandas is not installed. UnknownField.
        """
        from ..core.notebook import data_frame

        columns, rows = self._values(names)
        return data_frame(([row[name] for name in columns] for row in rows), columns)

    def results_df(self, *names: str) -> Any:
        """Return the results of these jobs as a pandas DataFrame with the columns of `balsam results`: see `db.query.results`.

        Args:
            names: columns: fields, `data.energy`, `parameters.T`, or `data` for all keys; by default all.

        Raises:
            BalsamError: pandas is not installed. UnknownField. InvalidSpec: these are no jobs.
        """
        from ..core.notebook import data_frame
        from .query.results import TIMES, ResultTable

        table = ResultTable(*self._result_pages(names))
        return data_frame(table.rows(as_text=False), table.columns, TIMES)

    def _result_pages(self, names: tuple[str, ...]) -> tuple[Any, tuple[str, ...], bool]:
        """Return the arguments of `ResultTable`."""
        raise InvalidSpec("Only jobs have results.")

    def _values(self, names: tuple[str, ...]) -> tuple[Sequence[str], Iterable[Mapping[str, Any]]]:
        """Return these fields, or all if there are none, and the rows as dicts of them."""
        raise NotImplementedError

    def _repr_html_(self) -> str | None:
        """Return a table of the first rows; None, which shows `repr`, if they are no objects."""
        rows = self._rows[:_SHOWN] if self._rows is not None else self._cut(0, _SHOWN)._fetch()
        if not all(hasattr(one, "_shown_fields") or isinstance(one, dict) for one in rows):
            return None
        from ..core.notebook import html_table

        shown: list[Any] = [getattr(one, "_shown_fields", lambda one=one: one)() for one in rows]
        return html_table(shown, self.count(), f"{self.model._what}s")

    def __repr__(self) -> str:
        rows = self._rows if self._rows is not None else self._cut(0, _SHOWN + 1)._fetch()
        shown = [getattr(one, "cute_id", None) or repr(one) for one in rows[:_SHOWN]]
        return f"<{self._title or type(self).__name__} [{', '.join(shown)}{', …' if len(rows) > _SHOWN else ''}]>"
