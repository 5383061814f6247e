"""Read the results of the jobs of several sites, page by page (see `db.query.results`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..db.query import results

if TYPE_CHECKING:
    from .interface import SiteInterface

_NO_LIMIT = 2**53


class SitePages:
    """`results.Pages` of the matching jobs of some sites, each with its conditions."""

    def __init__(
        self,
        sites: Sequence[tuple[SiteInterface, Mapping[str, Any]]],
        order: str = "",
        limit: int | None = None,
        numbers: list[list[int]] | None = None,
    ) -> None:
        """Read at most `limit` jobs in that order, or those with these numbers at each site."""
        self._sites, self._order, self._limit, self._numbers = sites, order, limit, numbers

    def newest(self, most: int) -> int:
        """Read only the newest jobs of each site, oldest first; return how many others there are."""
        self._numbers = [numbers[::-1] for numbers in self._in_order("-id", most)]
        return sum(site.count("job", where) for site, where in self._sites) - sum(map(len, self._numbers))

    def _in_order(self, order: str, most: int) -> list[list[int]]:
        return [[row[0] for row in site.results(where, (), 0, most, order)] for site, where in self._sites]

    def __call__(self, fields: Sequence[str]) -> Iterator[tuple[str, list[Sequence[Any]]]]:
        """Yield the names of sites and rows of their jobs, of which each is given once."""
        if self._numbers is None and self._order:
            self._numbers = self._in_order(self._order, self._limit or _NO_LIMIT)
        left = self._limit or _NO_LIMIT
        for place, (site, where) in enumerate(self._sites):
            for rows in self._of_site(site, where, fields, None if self._numbers is None else self._numbers[place]):
                yield site.entry.name, rows[:left]
                left -= len(rows)
                if left <= 0:
                    return

    def _of_site(
        self, site: SiteInterface, where: Mapping[str, Any], fields: Sequence[str], numbers: list[int] | None
    ) -> Iterator[list[Sequence[Any]]]:  # fmt: skip
        if numbers is not None:
            yield from results.of_numbers(lambda some: site.results({"id": some}, fields, 0, len(some)), numbers)
            return
        size = min(results.PAGE, self._limit or results.PAGE)
        rows = site.results(where, fields, 0, size)
        while rows:
            yield rows
            rows = site.results(where, fields, rows[-1][0], size) if len(rows) == size else []
