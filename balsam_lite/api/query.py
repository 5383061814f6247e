"""`Model.objects`, and its queries: lazy sets of the rows of one site or several, with the rules of Balsam 0.7.

Conditions are those of `db.query.filters`, which are also sent to sites on other hosts, and additionally `site_id`,
`site_name` and `site_path`. A keyword that is given again replaces the first one, and None removes it.
"""

from __future__ import annotations

import heapq
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Generic, NoReturn, TypeVar

from ..core.errors import InputError, UnknownField
from ..db.lazy_set import LazySet
from ..db.query import filters
from . import site_handle
from .records import SiteRecord, listed, to_us
from .site_handle import Question, SiteHandle

R = TypeVar("R", bound=SiteRecord)
QueryType = TypeVar("QueryType", bound="Query[Any]")
#: A row, after its site.
Pair = tuple[SiteHandle, dict[str, Any]]


# --- queries ----------------------------------------------------------------------------------------------------------


class Query(LazySet[R]):
    """Rows of a kind that match some conditions.

    Without a condition on the site, the active DB is queried, or all known sites if there is none. If one of
    several cannot be read, a warning is issued. Rows of several sites come site by site, or in the order of `order_by`.
    """

    _where: Mapping[str, Any] = {}
    _order = ""

    def _refuse_cut(self, what: str) -> None:
        if self._is_cut:
            raise AttributeError(f"Cannot {what} a query that was sliced; slice it last.")

    def filter(self: QueryType, *several: filters.Q, **conditions: Any) -> QueryType:
        """Return the rows that also match these conditions; a keyword replaces its earlier value, and None removes it.

        Raises:
            AttributeError: after a slice. UnknownField, InvalidSpec.
        """
        self._refuse_cut("filter")
        where = {**self._where, **self._checked(conditions)}
        if several:
            where["$and"] = [*where.get("$and", ()), *(filters.as_json(one.where, self.model._TABLE) for one in several)]
        return self._with(_where=where)

    def _checked(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Return conditions in the form for a site; None values stay, to remove what was given before."""
        found: dict[str, Any] = {}
        for name, value in conditions.items():
            if value is None or name in site_handle.SITE_KEYS:
                found[name] = value if value is None or name == "site_path" else listed(value)
            elif filters.kind_of(name, self.model._TABLE) == "time" and not isinstance(value, filters.F):
                moments = [to_us(one, name) for one in listed(value)]
                found[name] = moments if isinstance(value, (list, tuple)) else moments[0]
            else:
                found |= filters.as_json({name: value}, self.model._TABLE)
        return found

    def order_by(self: QueryType, field: str) -> QueryType:
        """Return the rows sorted by a field; a leading `-` reverses the order.

        Raises:
            AttributeError: after a slice. UnknownField: rows cannot be sorted by that field.
        """
        self._refuse_cut("order")
        if not isinstance(field, str) or field.removeprefix("-") not in self.model._ORDERS:
            possible = ", ".join(self.model._ORDERS) or "nothing"
            raise UnknownField(f"{self.model.__name__}.objects cannot be sorted by {field!r}.", hint=f"Possible is: {possible}")
        return self._with(_order=field)

    # --- reading ------------------------------------------------------------------------------------------------------

    def _questions(self) -> list[Question]:
        """Return the sites to query, and the conditions for each."""
        where = {name: value for name, value in self._where.items() if value is not None}
        return [] if where.get("id") == [] else site_handle.questions(where)

    def _read(self) -> list[R]:
        asked = self._questions()
        if not asked:
            return []
        kind, order, make, stop = self.model._KIND, self._order, self.model._of, self._stop
        first = self._start if len(asked) == 1 else 0
        found = site_handle.ask(asked, lambda site, where: site.select(kind, where, order, first, stop))
        if len(asked) == 1:
            return [make(row, handle) for handle, rows in found for row in rows]
        pairs = [[(handle, row) for row in rows] for handle, rows in found]
        return [make(row, handle) for handle, row in islice(self._merged(pairs), self._start, stop)]

    def _merged(self, of_sites: Sequence[Iterable[Pair]]) -> Iterator[Pair]:
        """Yield the rows of several sites, each already sorted, in order."""
        if not self._order or len(of_sites) == 1:
            return chain.from_iterable(of_sites)
        field, reverse = self._order.lstrip("-"), self._order.startswith("-")

        def key(pair: Pair) -> tuple[bool, Any]:
            value = pair[1][field]
            return (value is None) != reverse, 0 if value is None else value  # rows without a value come last either way

        return heapq.merge(*of_sites, key=key, reverse=reverse)

    def _values(self, names: tuple[str, ...]) -> tuple[Sequence[str], Iterable[Mapping[str, Any]]]:
        columns = names or self.model._columns()
        for name in columns:
            if name not in self.model._columns():
                raise UnknownField.named(self.model._what, name, self.model._columns())
        return columns, ({name: _plain_value(getattr(row, name)) for name in columns} for row in self)

    def _count(self) -> int:
        kind = self.model._KIND
        asked = self._questions()
        number = sum(found for _, found in site_handle.ask(asked, lambda site, where: site.count(kind, where))) if asked else 0
        return max((number if self._stop is None else min(number, self._stop)) - self._start, 0)

    def _named(self, conditions: dict[str, Any]) -> str:
        return super()._named(dict(self._where))

    def _from_end(self, place: int) -> NoReturn:
        raise InputError("Queries cannot be counted from their end; use order_by, or list(query).")

    def first(self) -> R:
        """Return the first row. Raises IndexError: there is none."""
        return self[0]

    # --- changing -----------------------------------------------------------------------------------------------------

    def update(self, **fields: Any) -> int:
        """Change all rows that match, ignoring slices, and return their number. One write transaction for each site.

        Nothing is changed unless all sites can be read.

        Raises:
            TypeError, InvalidSpec, InvalidStateError, StateError.
        """
        self.model._check_allowed("update")
        changes = self.model._checked(fields)
        asked = self._questions()
        kind = self.model._KIND
        return (
            sum(site_handle.write(asked, kind, lambda site, where: site.update_where(kind, where, changes))) if changes else 0
        )

    def delete(self, force: bool = False) -> int:
        """Delete all rows that match, ignoring slices, and return their number. Those held by a launcher stay, with a warning.

        Raises:
            ParentInUse: other jobs wait for one of these, and `force` is not set. Then nothing is deleted at that site.
        """
        self.model._check_allowed("delete")
        asked = self._questions()
        kind = self.model._KIND
        done = site_handle.write(asked, kind, lambda site, where: site.delete(kind, where, force))
        held = sum(one.get("held", 0) for one in done)
        if held:
            warnings.warn(f"{held} of them are held by launchers and were not deleted.", stacklevel=2)
        return sum(one.get("deleted", 0) for one in done)


# --- managers ---------------------------------------------------------------------------------------------------------


def _plain_value(value: Any) -> Any:
    """Return a value for a data frame: members of enums and paths as text."""
    return str(value) if isinstance(value, (str, os.PathLike)) else value


class Manager(Generic[R]):
    """`Model.objects`: all rows."""

    def __init__(self, model: type[R], query: type[Query[R]] = Query) -> None:
        self.model, self._query = model, query

    def all(self) -> Query[R]:
        """Return a query of all rows."""
        return self._query(self.model)

    def filter(self, *several: filters.Q, **conditions: Any) -> Query[R]:
        """Return those that match all conditions; see `Query.filter`."""
        return self.all().filter(*several, **conditions)

    def order_by(self, field: str) -> Query[R]:
        """Return all rows, sorted; see `Query.order_by`."""
        return self.all().order_by(field)

    def get(self, **conditions: Any) -> R:
        """Return the only row that matches; see `Query.get`."""
        return self.all().get(**conditions)

    def first(self) -> R:
        """Return the first row. Raises IndexError: there is none."""
        return self.all().first()

    def count(self) -> int:
        """Return the number of rows."""
        return self.all().count()

    def create(self, **fields: Any) -> R:
        """Create an object and save it. Raises what the model and its `save` raise."""
        self.model._check_allowed("create")
        made = self.model(**fields)
        made.save()
        return made

    def bulk_update(self, objects: list[R]) -> None:
        """Write the changes of each of these, all or none at each site, in one write transaction there.

        Raises:
            TypeError: it is no list. DoesNotExist: one of them was never saved.
        """
        self.model._check_allowed("bulk_update")
        of_kind(objects, self.model, "bulk_update")
        changes: dict[SiteHandle, list[tuple[R, dict[str, Any]]]] = {}
        for one in objects:
            changed = one._changes()
            handle = one._site
            if changed:
                changes.setdefault(handle, []).append((one, changed))
        for handle, of_site in changes.items():
            handle.interface.update(self.model._KIND, [one._update_of(changed) for one, changed in of_site])
            for one, changed in of_site:
                one._saved(changed)


def of_kind(objects: Any, model: type[SiteRecord], what: str) -> None:
    """Raise TypeError unless it is a list of such objects."""
    if not isinstance(objects, list):
        raise TypeError(f"{what} takes a list, not {objects!r:.200}")
    for place, one in enumerate(objects, 1):
        if not isinstance(one, model):
            raise TypeError(f"{what}: number {place} is no {model.__name__}, but {one!r:.200}")
