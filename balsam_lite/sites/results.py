"""Read the results of the jobs of several sites, page by page (see `db.query.results`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..db.query import results

if TYPE_CHECKING:
    from .interface import SiteInterface

_NO_LIMIT = 2**53


class SitePages:
    """`results.Pages` of the matching jobs of some sites."""

    def __init__(
        self, sites: Sequence[SiteInterface], where: Mapping[str, Any], order: str = "", limit: int | None = None
    ) -> None:
        self._sites, self._where, self._order, self._limit = sites, where, order, limit
        self._numbers: list[list[int]] | None = None  # of the jobs in order, at each site

    def newest(self, most: int) -> int:
        """Read only the newest jobs of each site, oldest first; return how many others there are."""
        self._numbers = [[row[0] for row in site.results(self._where, (), 0, most, "-id")][::-1] for site in self._sites]
        return sum(site.count("job", self._where) for site in self._sites) - sum(map(len, self._numbers))

    def __call__(self, fields: Sequence[str]) -> Iterator[tuple[str, list[Sequence[Any]]]]:
        """Yield the names of sites and rows of their jobs, of which each is given once."""
        if self._numbers is None and self._order:
            most = self._limit or _NO_LIMIT
            self._numbers = [[row[0] for row in site.results(self._where, (), 0, most, self._order)] for site in self._sites]
        left = self._limit or _NO_LIMIT
        for place, site in enumerate(self._sites):
            for rows in self._of_site(site, fields, None if self._numbers is None else self._numbers[place]):
                yield site.entry.name, rows[:left]
                left -= len(rows)
                if left <= 0:
                    return

    def _of_site(
        self, site: SiteInterface, fields: Sequence[str], numbers: list[int] | None
    ) -> Iterator[list[Sequence[Any]]]:  # fmt: skip
        if numbers is not None:
            yield from results.of_numbers(lambda some: site.results({"id": some}, fields, 0, len(some)), numbers)
            return
        size = min(results.PAGE, self._limit or results.PAGE)
        rows = site.results(self._where, fields, 0, size)
        while rows:
            yield rows
            rows = site.results(self._where, fields, rows[-1][0], size) if len(rows) == size else []
