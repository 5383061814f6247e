"""Read the pages of an SQLite file without SQLite, which refuses a damaged one as a whole.

Format: https://sqlite.org/fileformat2.html (1.3 header, 1.5 freelist, 1.6 b-tree pages, 2.1 records, 4 WAL). Reads only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

_MAGIC = b"SQLite format 3\0"
_WAL_MAGIC = (0x377F0682, 0x377F0683)  # checksums of little-endian, of big-endian words
_WAL_HEADER, _FRAME_HEADER = 32, 24
_INDEX_INNER, _TABLE_INNER, _INDEX_LEAF, _TABLE_LEAF = 0x02, 0x05, 0x0A, 0x0D
_DEFAULT_PAGE = 4096
_INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)

Row = tuple[Any, ...]


class Damaged(Exception):
    """A page, cell or record that cannot be read."""


class LostPage(NamedTuple):
    """A page that cannot be read, and the row ids that were on it or below; None where that is not known."""

    page: int
    low: int | None
    high: int | None


class Image:
    """A database file and the committed part of its WAL, page by page. Use as a context manager."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> Image:
        self._file = os.open(self._path, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
        header = os.pread(self._file, 100, 0)
        self.has_header = header[:16] == _MAGIC
        size = int.from_bytes(header[16:18], "big") if self.has_header else 0
        self.page_size = 65536 if size == 1 else size
        self._wal: dict[int, bytes] = {}
        wal_pages = self._read_wal()
        if self.page_size < 512 or self.page_size & (self.page_size - 1):
            self.page_size = _DEFAULT_PAGE
        self.pages = max(wal_pages, self._size // self.page_size)
        first = self.page(1) if self.pages else b""
        self.has_header = first[:16] == _MAGIC
        self._usable = self.page_size - (first[20] if self.has_header else 0)
        self.version = int.from_bytes(first[60:64], "big") if self.has_header else 0
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._file)

    def page(self, number: int) -> bytes:
        """Return a page's bytes. Raises Damaged: there is no such page."""
        if number in self._wal:
            return self._wal[number]
        found = os.pread(self._file, self.page_size, (number - 1) * self.page_size) if 0 < number <= self.pages else b""
        if len(found) != self.page_size:
            raise Damaged(f"there is no page {number}")
        return found

    def _read_wal(self) -> int:
        """Keep the pages of all committed frames; return how many pages the database has after them."""
        try:
            with open(f"{self._path}-wal", "rb") as file:
                data = file.read()
        except OSError:
            return 0
        if len(data) < _WAL_HEADER:
            return 0
        magic, _, size, _, salt1, salt2, check1, check2 = struct.unpack(">8I", data[:_WAL_HEADER])
        if magic not in _WAL_MAGIC or size < 512:
            return 0
        order = ">" if magic & 1 else "<"
        sums = _checksum(order, data[: _WAL_HEADER - 8], (0, 0))
        self.page_size, pages = size, 0
        waiting: dict[int, bytes] = {}
        at = _WAL_HEADER
        while sums == (check1, check2) and at + _FRAME_HEADER + size <= len(data):
            number, commit, frame_salt1, frame_salt2, check1, check2 = struct.unpack(">6I", data[at : at + _FRAME_HEADER])
            if (frame_salt1, frame_salt2) != (salt1, salt2):
                break
            body = data[at + _FRAME_HEADER : at + _FRAME_HEADER + size]
            sums = _checksum(order, body, _checksum(order, data[at : at + 8], sums))
            if sums != (check1, check2):
                break
            waiting[number] = body
            if commit:
                self._wal.update(waiting)
                waiting, pages = {}, commit
            at += _FRAME_HEADER + size
        return pages

    def free_pages(self) -> set[int]:
        """Return the pages of the freelist, whose old contents are no rows any more, as far as it can be read."""
        found: set[int] = set()
        trunk = int.from_bytes(self.page(1)[32:36], "big") if self.has_header else 0
        while trunk and trunk not in found and trunk <= self.pages:
            page = self.page(trunk)
            found.add(trunk)
            count = min(int.from_bytes(page[4:8], "big"), self._usable // 4 - 2)
            found.update(int.from_bytes(page[8 + 4 * n : 12 + 4 * n], "big") for n in range(count))
            trunk = int.from_bytes(page[:4], "big")
        return found

    # --- trees --------------------------------------------------------------------------------------------------------

    def leaves(self, root: int, lost: list[LostPage], seen: set[int]) -> Iterator[int]:
        """Yield the leaf pages of a table below `root`; add what cannot be read to `lost`, all pages to `seen`."""
        stack: list[tuple[int, int | None, int | None]] = [(root, None, None)]
        while stack:
            number, low, high = stack.pop()
            try:
                kind, start, cells = self._cells(number)
                if number in seen or kind not in (_TABLE_LEAF, _TABLE_INNER):
                    raise Damaged(f"page {number} is no page of a table")
                seen.add(number)
                if kind == _TABLE_LEAF:
                    yield number
                    continue
                page = self.page(number)
                children: list[tuple[int, int | None, int | None]] = []
                below = low
                for at in cells:
                    key, _ = _varint(page, at + 4)
                    children.append((int.from_bytes(page[at : at + 4], "big"), below, key))
                    below = key + 1
                children.append((int.from_bytes(page[start + 8 : start + 12], "big"), below, high))
                stack += reversed(children)
            except Damaged:
                seen.add(number)
                lost.append(LostPage(number, low, high))

    def rows(self, leaf: int, lost: list[LostPage]) -> Iterator[tuple[int, Row]]:
        """Yield the row id and the values of each row on a table's leaf page; add the rows that are damaged to `lost`."""
        page = self.page(leaf)
        for at in self._cells(leaf)[2]:
            rowid = None
            try:
                length, at = _varint(page, at)
                rowid, at = _varint(page, at)
                largest = self._usable - 35
                yield rowid, _record(self._payload(page, at, length, largest))
            except Damaged:
                lost.append(LostPage(leaf, rowid, rowid))

    def entries(self, root: int, lost: list[LostPage]) -> Iterator[Row]:
        """Yield the records of an index, or of a table without row ids, below `root`."""
        stack, seen = [root], set()
        while stack:
            number = stack.pop()
            try:
                kind, start, cells = self._cells(number)
                if number in seen or kind not in (_INDEX_LEAF, _INDEX_INNER):
                    raise Damaged(f"page {number} is no page of an index")
                seen.add(number)
                page = self.page(number)
                for at in cells:
                    if kind == _INDEX_INNER:
                        stack.append(int.from_bytes(page[at : at + 4], "big"))
                        at += 4
                    length, at = _varint(page, at)
                    yield _record(self._payload(page, at, length, (self._usable - 12) * 64 // 255 - 23))
                if kind == _INDEX_INNER:
                    stack.append(int.from_bytes(page[start + 8 : start + 12], "big"))
            except Damaged:
                lost.append(LostPage(number, None, None))

    def stray_leaves(self, seen: set[int]) -> Iterator[int]:
        """Yield the pages that look like leaves of tables, are not in `seen` and not free."""
        free = self.free_pages()
        for number in range(1, self.pages + 1):
            if number not in seen and number not in free:
                try:
                    if self._cells(number)[0] == _TABLE_LEAF:
                        yield number
                except Damaged:
                    pass

    def _cells(self, number: int) -> tuple[int, int, list[int]]:
        """Return a b-tree page's kind, where its header starts, and where its cells do."""
        page = self.page(number)
        start = 100 if number == 1 else 0
        kind = page[start]
        inner = kind in (_TABLE_INNER, _INDEX_INNER)
        if not inner and kind not in (_TABLE_LEAF, _INDEX_LEAF):
            raise Damaged(f"page {number} is of no known kind")
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        at = start + (12 if inner else 8)
        if at + 2 * count > self._usable:
            raise Damaged(f"page {number} has too many cells")
        return kind, start, list(struct.unpack(f">{count}H", page[at : at + 2 * count]))

    def _payload(self, page: bytes, at: int, length: int, largest: int) -> bytes:
        """Return a cell's payload, with what is on overflow pages."""
        if length <= largest:
            if at + length > len(page):
                raise Damaged("a cell does not fit into its page")
            return page[at : at + length]
        if length > self.pages * self.page_size:
            raise Damaged("a cell is larger than the file")
        least = (self._usable - 12) * 32 // 255 - 23
        local = least + (length - least) % (self._usable - 4)
        local = local if local <= largest else least
        parts, left = [page[at : at + local]], length - local
        following = int.from_bytes(page[at + local : at + local + 4], "big")
        while left > 0:
            page = self.page(following)
            parts.append(page[4 : 4 + min(left, self._usable - 4)])
            left -= len(parts[-1])
            following = int.from_bytes(page[:4], "big")
        return b"".join(parts)


def _checksum(order: str, data: bytes, sums: tuple[int, int]) -> tuple[int, int]:
    one, two = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for first, second in zip(words[::2], words[1::2]):
        one = (one + first + two) & 0xFFFFFFFF
        two = (two + second + one) & 0xFFFFFFFF
    return one, two


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that starts there, and where it ends."""
    value = 0
    try:
        for n in range(8):
            byte = data[at + n]
            value = value << 7 | byte & 0x7F
            if byte < 0x80:
                return value, at + n + 1
        value = value << 8 | data[at + 8]
    except IndexError:
        raise Damaged("a number does not end") from None
    return value - (1 << 64) if value >> 63 else value, at + 9


def _record(payload: bytes) -> Row:
    """Return the values of a record. Raises Damaged."""
    end, at = _varint(payload, 0)
    body, values = end, []
    if not 0 < end <= len(payload):
        raise Damaged("a record's header is too long")
    while at < end:
        kind, at = _varint(payload, at)
        if kind in _FIXED:
            values.append(_FIXED[kind])
            continue
        size = _INTEGER_BYTES[kind] if 0 < kind < 7 else 8 if kind == 7 else (kind - 12) // 2
        piece = payload[body : body + size]
        if kind < 1 or len(piece) != size or kind in (10, 11):
            raise Damaged("a record is cut")
        body += size
        values.append(_decoder(kind)(piece))
    return tuple(values)


_FIXED: dict[int, Any] = {0: None, 8: 0, 9: 1}


def _decoder(kind: int) -> Callable[[bytes], Any]:
    if kind < 7:
        return lambda piece: int.from_bytes(piece, "big", signed=True)
    if kind == 7:
        return lambda piece: struct.unpack(">d", piece)[0]
    return (lambda piece: piece.decode("utf-8", "replace")) if kind % 2 else bytes
