"""`EventLog` and `EventLog.objects`: the history of jobs; a million events are read in pages."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from ..db.query.fields import EVENT
from . import site_handle
from .query import Manager, Pair, Query
from .records import NEVER, RelatedNumber, SiteRecord, known, naive
from .site_handle import SiteHandle

if TYPE_CHECKING:
    from datetime import datetime

#: Size of the first page, as often only the newest events are needed; its growth factor, because each query may have to find
#: its position among all events; and its maximum.
_FIRST_PAGE, _GROWTH, _LARGEST_PAGE = 500, 4, 32_000

_READ_ONLY = "EventLog is read-only"


class EventLog(SiteRecord):
    """A change of a job's state. Read-only."""

    __slots__ = ()

    job_id: int = RelatedNumber(None, None, NEVER)  # type: ignore[assignment]
    timestamp: datetime = known(naive)  # UTC, without a time zone
    from_state: str = known()
    to_state: str = known()
    data: dict[str, Any] = known(default={})

    _KIND = "event"
    _SHOWN = ("timestamp", "job_id", "from_state", "to_state", "data")
    _REFUSED: ClassVar = dict.fromkeys(("create", "update", "delete", "bulk_update"), (AttributeError, _READ_ONLY))
    _TABLE = EVENT
    _ORDERS = ("timestamp",)

    objects: ClassVar[Manager[EventLog]]

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(_READ_ONLY)

    def save(self) -> NoReturn:
        """Raise AttributeError."""
        raise AttributeError(_READ_ONLY)

    def delete(self) -> NoReturn:
        """Raise AttributeError: an event is deleted with its job."""
        raise AttributeError(_READ_ONLY)


class EventQuery(Query[EventLog]):
    """A query of events: newest first, across several sites in order of time.

    It is read in pages on each iteration, so that memory stays constant, and caches nothing; `len` counts. The
    first pages are read when an iteration begins, from several sites at once; sites without an answer are left out, with a
    warning.
    """

    _order = "-timestamp"
    _walked: int | None = None

    def _with(self, **changes: Any) -> EventQuery:
        return super()._with(_walked=None, **changes)

    def __iter__(self) -> Iterator[EventLog]:
        pairs, number = self._begin(self._stop)
        self._walked = None if number is None else max(number - self._start, 0)
        make = EventLog._of
        return (make(row, handle) for handle, row in islice(pairs, self._start, self._stop))

    def __len__(self) -> int:
        # `list(query)` asks for the length right after starting the iteration. If all events were in the first pages, it is
        # known then. Use it only once, as more events are added soon.
        number, self._walked = self._walked, None
        return self.count() if number is None else number

    def _fetch(self) -> list[EventLog]:
        return list(iter(self))

    def _begin(self, stop: int | None) -> tuple[Iterator[Pair], int | None]:
        """Return the matching rows of all sites, in order, at most `stop` being needed; and their number, if known."""
        size = _FIRST_PAGE if stop is None else min(_FIRST_PAGE, stop)
        asked = self._questions() if size else []
        if not asked:
            return iter(()), 0
        order = self._order
        found = site_handle.ask(asked, lambda site, where: site.select("event", where, order, 0, size))
        wheres = dict(asked)
        merged = self._merged([self._pages(handle, wheres[handle], rows, size) for handle, rows in found])
        number, wanted = sum(len(rows) for _, rows in found), sys.maxsize if stop is None else stop
        is_known = number >= wanted or all(len(rows) < size for _, rows in found)
        return merged, min(number, wanted) if is_known else None

    def _pages(self, handle: SiteHandle, where: dict[str, Any], rows: list[dict[str, Any]], size: int) -> Iterator[Pair]:
        """Yield the events of a site in order, of which `rows` are the first `size`."""
        while True:
            for row in rows:
                yield handle, row
            if len(rows) < size:
                return
            where = {**where, "after": [rows[-1]["timestamp"], rows[-1]["id"]]}
            size = min(_GROWTH * size, _LARGEST_PAGE)
            rows = handle.interface.select("event", where, self._order, 0, size)

    def tuples(self, touching: Sequence[str] = ()) -> Iterator[tuple[int, str, str, int, float | None, int | None]]:
        """Yield the events as tuples, in any order, many times faster than objects: (timestamp, from_state, to_state, job_id,
        num_nodes, started).

        The timestamp is in microseconds since the epoch (UTC); `num_nodes` is in the data of an event to RUNNING,
        `started` in the data of the end of a run.
        `touching` names the states whose events (leaving or entering) are needed; other events may be yielded as well.
        """
        if self._is_cut:
            for handle, row in islice(self._begin(self._stop)[0], self._start, self._stop):
                job = handle.id(row["job_id"])
                data = row["data"]
                yield row["timestamp"], row["from_state"], row["to_state"], job, data.get("num_nodes"), data.get("started")
            return
        asked = self._questions()
        for handle, where in asked:
            number = int if len(asked) == 1 else handle.id  # jobs of several sites have the same numbers
            for time, old, new, job, nodes, started, _ in _pages_of_tuples(handle, where, touching):
                yield time, old, new, number(job), nodes, started


def _pages_of_tuples(handle: SiteHandle, where: dict[str, Any], touching: Sequence[str]) -> Iterator[Sequence[Any]]:
    after = 0
    while page := handle.interface.event_tuples(where, after, touching):
        yield from page
        after = page[-1][-1]


EventLog.objects = Manager(EventLog, EventQuery)
