"""Numbers of rows that know their site, so that those of several sites do not get mixed."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from ..db.engine.registry import Entry


class Id(int):
    """The number of a job, an application or a batch job at `site`.

    It is equal to the plain number, and has its hash; to an Id of another site it is not equal. So it goes into JSON, file
    names and arithmetic as any number does, and a plain number means a row of whichever site is asked.
    """

    __slots__ = ()
    site: Entry  # of the class that `maker` makes: a number for each of a million jobs must not carry more than itself

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Id) and not is_same_site(self.site, other.site):
            return False
        return int.__eq__(self, other) if isinstance(other, int) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = int.__hash__

    def __reduce__(self) -> Any:
        return _restored, (int(self), tuple(self.site))


def is_same_site(one: Entry, other: Entry) -> bool:
    """Whether both are the same DB, whatever it is called now."""
    return one.path == other.path and one.host == other.host


@lru_cache(maxsize=1024)
def maker(entry: Entry) -> type[Id]:
    """What makes the Ids of a site: `maker(entry)(7)`."""
    return type("Id", (Id,), {"__slots__": (), "site": entry, "__module__": __name__, "__qualname__": "Id"})


def _restored(number: int, site: tuple[Any, ...]) -> Id:
    """For pickle."""
    return maker(Entry(*site))(number)
