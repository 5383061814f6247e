"""Build a new DB from the readable parts of a damaged one.

The damaged files are only read, and not by SQLite, which rejects a whole file if its schema page is damaged. A table's rows
are found through its tree and, where that is broken, on stray pages, recognized by their columns.
Format: https://sqlite.org/fileformat2.html (1.3 header, 1.5 freelist, 1.6 b-tree pages, 2.1 records, 4 WAL).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import states
from ...core.clock import SystemClock
from ...core.errors import DatabaseBusy, DatabaseError, InputError
from ..store import batch_jobs, claims, counters, graph, runs, tags
from . import connection, directories, migrations, schema, wal

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
    """An unreadable page, and the row ids that were on it or below it; None if they are unknown."""

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
        """Return a page's bytes. Raise Damaged if there is no such page."""
        if number in self._wal:
            return self._wal[number]
        found = os.pread(self._file, self.page_size, (number - 1) * self.page_size) if 0 < number <= self.pages else b""
        if len(found) != self.page_size:
            raise Damaged(f"there is no page {number}")
        return found

    def _read_wal(self) -> int:
        """Store the pages of all committed frames; return how many pages the database has after them."""
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
        """Return the pages of the freelist, whose old contents are no longer rows, as far as it can be read."""
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
        """Yield the leaf pages of a table below `root`; add unreadable pages to `lost`, and all pages to `seen`."""
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
        """Yield the row id and the values of each row on a table's leaf page; add damaged rows to `lost`."""
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
        """Yield the pages that look like table leaves and are neither in `seen` nor free."""
        free = self.free_pages()
        for number in range(1, self.pages + 1):
            if number not in seen and number not in free:
                try:
                    if self._cells(number)[0] == _TABLE_LEAF:
                        yield number
                except Damaged:
                    pass

    def _cells(self, number: int) -> tuple[int, int, list[int]]:
        """Return a b-tree page's kind, the position of its header, and those of its cells."""
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
        """Return a cell's payload, including its overflow pages."""
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
    """Return the number that starts at `at`, and the position after it."""
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
    """Return the values of a record. Raise Damaged if it cannot be read."""
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


#: The tables with row ids, in the order of the report. `tag` and `job_tag` are rebuilt from the jobs.
_TABLES = ("job", "app", "event", "batch_job", "lease", "failure")
_WORDS = {
    "job": "job", "app": "application", "event": "event", "batch_job": "batch job", "lease": "lease", "failure": "failure cause"
}  # fmt: skip
#: Tables that older files lack -> the schema version that brought them.
_SINCE = {"failure": 7}
_MAX_RANGES = 8
_INSERTS, _RUN = "large_write", "run"
#: What users changed and removed, since version 7; where merged jobs come from, calls, and parents at other sites, since 8.
_CHANGES = (
    "author", "action", "edit_text", "trash", "edit", "source", "imported", "call_context", "call", "remote_site",
    "remote_parent", "watched_job",
)  # fmt: skip
_WITHOUT_ROW_IDS = ("edit", "watched_job")
_JSON = frozenset(("data", "tags", "parameters", "environ_vars"))


class Salvaged(NamedTuple):
    """What was read and what was lost, as text."""

    directory: str
    read: dict[str, int]  # by kind, such as "jobs"
    lost: list[str]
    notes: list[str]


class SalvagedTable(NamedTuple):
    columns: tuple[str, ...]
    rows: dict[int, Row]  # by row id
    lost: list[LostPage]
    emptied: set[int]  # rows of which a JSON field is lost


def salvage(directory: str, target: str) -> Salvaged:
    """Read the damaged DB in `directory` and write what is found to a new DB in the new directory `target`.

    No job is RUNNING there: jobs held by launchers become RESTART_READY. Jobs whose parents or dependencies are lost fail.

    Raises:
        InputError: `target` exists. DatabaseBusy: the damaged DB was written meanwhile. DatabaseError: nothing can be read.
    """
    target = directories.absolute(target)
    if os.path.lexists(target):
        raise InputError(f"{target} exists already.", hint="Give the path of a new directory.")
    path = os.path.join(directory, connection.FILE_NAME)
    try:
        before = wal.state_of(path)
        with Image(path) as image:
            tables, edges, found_runs, changes, notes = _read(image)
        if wal.state_of(path) != before:
            raise DatabaseBusy(f"The DB {directory} was written meanwhile.", hint="End its launchers and its service first.")
    except OSError as exc:
        raise DatabaseError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    if not any(table.rows for table in tables.values()):
        raise DatabaseError(f"Nothing can be read in {path}.", hint="Restore a backup.")
    try:
        db = directories.set_up(target)
        with db.write() as cx:
            _write_changes(cx, changes)
            notes += _write(cx, tables, edges, found_runs)
            _drop_unusable_changes(cx)
        db.close()
        directories.remember(db.directory)
    except BaseException:  # half a DB would look like a complete one
        shutil.rmtree(target, ignore_errors=True)
        raise
    read = {f"{_WORDS[name]}s": len(table.rows) for name, table in tables.items()}
    lost = [text for name, table in tables.items() for text in _told(name, table)]
    return Salvaged(db.directory, read, lost, notes)


# --- reading ----------------------------------------------------------------------------------------------------------


def _read(
    image: Image,
) -> tuple[dict[str, SalvagedTable], set[tuple[int, int]], list[Row] | None, dict[str, list[Row]], list[str]]:
    """Return the tables, the dependencies, the runs (None: the file's version has none), what users changed, and notes."""
    notes: list[str] = []
    plan = _plan(image, notes)
    tables: dict[str, SalvagedTable] = {}
    seen: set[int] = set()
    for name in _TABLES:
        root, columns = plan.get(name, (0, ()))
        table = tables[name] = SalvagedTable(columns, {}, [], set())
        for leaf in image.leaves(root, table.lost, seen) if root else ():
            _take(image, leaf, name, table)
    if any(table.lost for table in tables.values()) or not all(plan[name][0] for name in _TABLES if name in plan):
        for leaf in image.stray_leaves(seen):
            name = _table_of(image, leaf, plan)
            if name and _take(image, leaf, name, tables[name], stray=True):
                seen.add(leaf)
    hidden = _remove_hidden(image, plan, tables["job"])
    if hidden:
        notes.append(f"{hidden} job(s) that were being added when it was damaged were left out")
    edges, damaged = _dependencies(image, plan, set(tables["job"].rows))
    if damaged:
        notes.append("some dependencies may be lost: both places in which they are noted are damaged")
    return tables, edges, _runs(image, plan, notes), _changes(image, plan, notes), notes


def _changes(image: Image, plan: Mapping[str, tuple[int, tuple[str, ...]]], notes: list[str]) -> dict[str, list[Row]]:
    """Return the readable rows of the tables `_CHANGES`."""
    lost: list[LostPage] = []
    found: dict[str, list[Row]] = {}
    for name in _CHANGES:
        if name not in plan:
            continue
        root, columns = plan[name]
        if name in _WITHOUT_ROW_IDS:
            rows = list(image.entries(root, lost))
        else:
            leaves = image.leaves(root, lost, set())
            rows = [(number, *row[1:]) for leaf in leaves for number, row in image.rows(leaf, lost)]
        found[name] = [row for row in rows if len(row) == len(columns)]
    if lost:
        notes.append(
            "the record of some changes by users is lost, or some calls, or parents at other sites, or some removed jobs, "
            "which cannot be taken back"
        )
    return found


def _runs(image: Image, plan: Mapping[str, tuple[int, tuple[str, ...]]], notes: list[str]) -> list[Row] | None:
    """Return the readable rows of the record of runs, with the columns of the newest version."""
    if _RUN not in plan:
        return None
    root, columns = plan[_RUN]
    lost: list[LostPage] = []
    found = list(image.entries(root, lost)) if root else []
    whole = [row for row in found if len(row) == len(columns) and all(isinstance(value, int) for value in row[:2])]
    if lost or not root or len(whole) < len(found):
        notes.append("the record of some runs is lost: when, where and with what result they ran")
    return whole


def _plan(image: Image, notes: list[str]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return for each table, and the index of the dependencies, the root page (0: unknown) and the columns."""
    lost: list[LostPage] = []
    found: dict[str, tuple[int, str]] = {}
    if image.has_header:
        leaves = image.leaves(1, lost, set())
        for row in (row for leaf in leaves for _, row in image.rows(leaf, lost)):
            if len(row) == 5 and isinstance(row[3], int):
                found[str(row[1])] = (row[3], str(row[4] or ""))
    changes = {name: (found[name][0], _columns(found[name][1], name)) for name in _CHANGES if name in found}
    version = image.version if 0 < image.version <= schema.VERSION else schema.VERSION
    names: tuple[str, ...] = tuple(name for name in _TABLES if _SINCE.get(name, 1) <= version)
    names = (*names, "dependency", "dependency_child")
    fresh = _fresh(image.page_size)
    if lost or any(name not in found for name in names):
        notes.append("the list of tables is damaged; they were looked for where a new DB has them")
        found = {**fresh, **found}
    plan = {}
    names = (*names, *(name for name in (_INSERTS, _RUN) if name in found))  # not before schema versions 6 and 7
    for name in names:
        root, sql = found[name]
        columns = _columns(sql, name) or _columns(fresh[name][1], name) or ("child", "parent")  # of an index
        plan[name] = (root if _is_plausible(image, root, name, len(columns)) else 0, columns)
    if version < schema.VERSION:
        notes.append(f"it was of schema version {version}, and is of version {schema.VERSION} now")
    return {**plan, **changes}


def _remove_hidden(image: Image, plan: Mapping[str, tuple[int, tuple[str, ...]]], jobs: SalvagedTable) -> int:
    """Remove the jobs of incomplete inserts (see `store.hidden`). Return their number."""
    root, columns = plan.get(_INSERTS, (0, ()))
    lost: list[LostPage] = []
    gone = 0
    for row in (row for leaf in image.leaves(root, lost, set()) for _, row in image.rows(leaf, lost)) if root else ():
        first, last = (dict(zip(columns, row)).get(name) for name in ("first", "last"))
        if isinstance(first, int) and isinstance(last, int) and first > 0:
            hidden = [number for number in jobs.rows if first <= number <= last]
            gone += len(hidden)
            for number in hidden:
                del jobs.rows[number]
    return gone


def _fresh(page_size: int) -> dict[str, tuple[int, str]]:
    """Return the root page and the SQL of each table and index of a new DB, by name."""
    cx = sqlite3.connect(":memory:", isolation_level=None)
    cx.execute(f"PRAGMA page_size = {page_size}")
    migrations.migrate(cx)
    found = {name: (root, sql or "") for name, root, sql in cx.execute("SELECT name, rootpage, sql FROM sqlite_master")}
    cx.close()
    return found


def _columns(sql: str, name: str) -> tuple[str, ...]:
    """Return the names of a table's columns, as SQLite reads the statement; () if it creates no table."""
    cx = sqlite3.connect(":memory:")
    try:
        if not re.match(r"CREATE TABLE", sql):
            return ()
        cx.execute(sql)
        return tuple(row[1] for row in cx.execute(f"PRAGMA table_info({name})"))
    except sqlite3.Error:
        return ()
    finally:
        cx.close()


def _is_plausible(image: Image, root: int, name: str, columns: int) -> bool:
    """Return whether that page is the root of such a table: the page number in a new DB is only a guess."""
    lost: list[LostPage] = []
    if name.startswith("dependency") or name == _RUN:
        first = next(image.entries(root, lost), None)
        return first is None or (len(first) == columns and all(isinstance(value, int) for value in first[:2]))
    for leaf in image.leaves(root, lost, set()):
        return all(_fits(name, row, columns) for _, row in image.rows(leaf, lost))
    return True


def _fits(name: str, row: Row, columns: int) -> bool:
    """Return whether a row may belong to that table. A row written before columns were added is shorter."""
    if not 0 < len(row) <= columns or row[0] is not None:
        return False
    if name == "job":
        return len(row) > 30 and isinstance(row[1], str) and len(row[1]) == 36 and row[1].count("-") == 4
    if name == "failure":
        return len(row) == columns and isinstance(row[1], str) and isinstance(row[2], int)
    if name == "event":
        return len(row) == columns and all(state in states.STATES for state in row[3:5])
    return len(row) > columns - 8 and isinstance(row[1], str)


def _table_of(image: Image, leaf: int, plan: Mapping[str, tuple[int, tuple[str, ...]]]) -> str:
    """Return the table that all rows on that page fit; "" if there is none, or if it is ambiguous."""
    rows = [row for _, row in image.rows(leaf, [])]
    fitting = [name for name in _TABLES if name in plan and rows and all(_fits(name, row, len(plan[name][1])) for row in rows)]
    if len(fitting) > 1:  # an exact number of columns is the better sign
        fitting = [name for name in fitting if any(len(row) == len(plan[name][1]) for row in rows)]
    return fitting[0] if len(fitting) == 1 else ""


def _take(image: Image, leaf: int, name: str, table: SalvagedTable, stray: bool = False) -> bool:
    """Add the rows of that page. A stray page may hold an outdated version of a row, so known rows are kept."""
    lost: list[LostPage] = []
    taken = 0
    for rowid, row in image.rows(leaf, lost):
        whole = _checked(name, table.columns, row) if _fits(name, row, len(table.columns)) else None
        if whole is None:
            lost.append(LostPage(leaf, rowid, rowid))
        elif not (stray and rowid in table.rows):
            table.rows[rowid] = whole
            table.emptied.update({rowid} if whole != row else ())
            taken += 1
    if not stray:
        table.lost.extend(lost)
    return bool(taken)


def _checked(name: str, columns: Sequence[str], row: Row) -> Row | None:
    """Return the row, with `{}` for damaged JSON (as by a lost overflow page); None if any other value is damaged."""
    values = list(row)
    for place, (column, value) in enumerate(zip(columns, row)):
        if column in _JSON and value is not None:
            try:
                json.loads(value)
            except (TypeError, ValueError, RecursionError):
                values[place] = "{}"
        elif (isinstance(value, str) and "\0" in value) or (name == "job" and column == "state" and value not in states.STATES):
            return None
    return tuple(values)


def _dependencies(
    image: Image, plan: Mapping[str, tuple[int, tuple[str, ...]]], jobs: set[int]
) -> tuple[set[tuple[int, int]], bool]:
    """Return all (parent, child) pairs, from the table and from its index, and whether both are damaged."""
    in_table: list[LostPage] = []
    in_index: list[LostPage] = []
    table, index = plan["dependency"][0], plan["dependency_child"][0]
    found = set(image.entries(table, in_table)) if table else set()
    mirrored = {(entry[1], entry[0]) for entry in image.entries(index, in_index) if len(entry) == 2} if index else set()
    pairs = {pair for pair in (*found, *mirrored) if len(pair) == 2 and all(isinstance(end, int) for end in pair)}
    return pairs, bool(in_table or not table) and bool(in_index or not index)


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(
    cx: sqlite3.Connection, tables: Mapping[str, SalvagedTable], edges: set[tuple[int, int]], found_runs: list[Row] | None
) -> list[str]:
    """Fill a new DB inside the caller's write transaction. Return the notes."""
    now_us, notes = SystemClock.now_us(), []
    for name in _TABLES:
        refused = _insert(cx, name, tables[name])
        if refused:
            notes.append(f"{refused} {_WORDS[name]}(s) contradict others and were left out")
    held = [row[0] for row in cx.execute("SELECT id FROM job WHERE lease IS NOT NULL")]
    cx.execute("UPDATE job SET lease = NULL, queued_launch_id = NULL")
    cx.execute("UPDATE lease SET closed = ?, end_reason = 'the DB was damaged' WHERE closed IS NULL", (now_us,))
    batch_jobs.disown(cx, "it belongs to the DB that was damaged", now_us)
    events = cx.execute("DELETE FROM event WHERE job NOT IN (SELECT id FROM job)").rowcount
    if events:
        notes.append(f"{events} event(s) of jobs that are lost were left out")
    cx.execute("UPDATE job SET failure = NULL WHERE state <> 'FAILED' OR failure NOT IN (SELECT id FROM failure)")
    for statement in migrations.CAUSES_OF_FAILURES:  # of jobs whose cause is lost, or was not stored yet
        cx.execute(statement)
    if found_runs is None:
        for statement in migrations.RUNS_FROM_EVENTS:
            cx.execute(statement)
    else:
        runs.restore(cx, found_runs)
    counters.recount(cx)
    running = claims.facts_of(cx, f"job.state = '{states.RUNNING}'", ())
    runs.end_unseen(cx, held, now_us, runs.UNKNOWN)
    note = "Salvaged from a damaged DB"
    lost = [(facts, runs.lost_run(facts, note, now_us, runs.UNKNOWN, is_counted=False)) for facts in running]
    claims.requeue_lost(cx, lost, now_us)
    if held or running:
        notes.append(f"{len({*held, *(facts.job for facts in running)})} job(s) that launchers had are free again")
    notes += _link(cx, edges, now_us)
    tags.note_anew(cx)
    names = "SELECT DISTINCT application FROM job WHERE application <> '' AND application NOT IN (SELECT name FROM app)"
    missing = [row[0] for row in cx.execute(names)]
    if missing:
        notes.append(f"applications that jobs name and that are lost: {', '.join(sorted(missing))}; add them with `balsam app`")
    return notes


def _write_changes(cx: sqlite3.Connection, changes: Mapping[str, list[Row]]) -> None:
    """Add what users changed in jobs, what they removed, and the parents at other sites."""
    for name, rows in changes.items():
        if rows:
            cx.executemany(f"INSERT OR IGNORE INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)


def _drop_unusable_changes(cx: sqlite3.Connection) -> None:
    """Delete what users changed in jobs that are lost."""
    cx.execute("DELETE FROM edit WHERE job NOT IN (SELECT id FROM job) OR action NOT IN (SELECT id FROM action)")
    cx.execute("DELETE FROM imported WHERE job NOT IN (SELECT id FROM job) OR source NOT IN (SELECT id FROM source)")
    cx.execute("DELETE FROM call WHERE job NOT IN (SELECT id FROM job) OR context NOT IN (SELECT id FROM call_context)")
    cx.execute("DELETE FROM trash WHERE action NOT IN (SELECT id FROM action)")


def _insert(cx: sqlite3.Connection, name: str, table: SalvagedTable) -> int:
    """Insert rows by the columns that both versions have; return how many were rejected."""
    renamed = {"data": "definition"} if name == "app" else {}
    known = {row[1] for row in cx.execute(f"PRAGMA table_info({name})")}
    refused = 0
    for rowid, row in sorted(table.rows.items()):
        given = {renamed.get(column, column): value for column, value in zip(table.columns, row)}
        values = {column: value for column, value in {**given, "id": rowid}.items() if column in known}
        marks = ", ".join("?" * len(values))
        try:
            cx.execute(f"INSERT INTO {name} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
        except sqlite3.Error:
            refused += 1
            table.lost.append(LostPage(0, rowid, rowid))
    return refused


def _link(cx: sqlite3.Connection, edges: set[tuple[int, int]], now_us: int) -> list[str]:
    """Add the dependencies; fail jobs whose parent or dependency is lost."""
    jobs = {row[0] for row in cx.execute("SELECT id FROM job UNION ALL SELECT -id FROM remote_parent")}
    of_child = Counter(child for _, child in edges)
    orphaned = {child: parent for parent, child in edges if parent not in jobs and child in jobs}
    for job, waits_for in cx.execute("SELECT id, unfinished_parents FROM job WHERE unfinished_parents > 0"):
        if waits_for > of_child[job]:
            orphaned.setdefault(job, 0)
    cx.executemany("INSERT INTO dependency (parent, child) VALUES (?, ?)", [e for e in edges if jobs.issuperset(e)])
    waiting = [row[0] for row in cx.execute(f"SELECT id FROM job WHERE state = '{states.AWAITING_PARENTS}'")]
    # Fail only jobs for which one failed parent is enough: otherwise the other parents decide, as when one was removed.
    failed = [
        (job, orphaned[job])
        for (job,) in cx.execute("SELECT id FROM job WHERE run_when = 'all_finished' AND wait_for_parents")
        if job in orphaned
    ]
    failed = [pair for pair in failed if pair[0] in set(waiting)]
    graph.recount(cx, jobs)
    graph.fail(cx, failed, now_us, graph.PARENT_LOST)
    graph.settle(cx, [job for job in jobs if job not in orphaned or job in waiting], now_us)
    return [f"{len(failed)} job(s) waited for parents that are lost, and are FAILED"] if failed else []


# --- report -----------------------------------------------------------------------------------------------------------


def _told(name: str, table: SalvagedTable) -> Iterator[str]:
    """Yield a sentence on which rows of a table could not be read, as far as known."""
    word = _WORDS[name]
    if table.emptied:
        fields = f"data, tags, parameters or environ_vars of {len(table.emptied)} {word}(s)"
        yield f"{fields}, which are empty now: {_listed(table.emptied)}"
    if not table.lost:
        return
    pages = {lost.page for lost in table.lost if lost.page}
    ranges = _merged([gap for lost in table.lost for gap in _gaps(lost, table.rows)])
    text = f"{len(pages)} page(s) of {word}s are damaged"
    if ranges:
        count = sum(high - low + 1 for low, high in ranges)
        text += f"; {word}s that are missing, or were removed before: {count}, the numbers {_ranges(ranges)}"
    elif table.rows:
        text += f"; every number up to {max(table.rows)} was found, and later ones may be lost"
    yield text


def _listed(numbers: Iterable[int]) -> str:
    return _ranges(_merged([(number, number) for number in numbers]))


def _ranges(ranges: Sequence[tuple[int, int]]) -> str:
    listed = ", ".join(f"{low}" if low == high else f"{low} to {high}" for low, high in ranges[:_MAX_RANGES])
    return listed + (f" and {len(ranges) - _MAX_RANGES} more ranges" if len(ranges) > _MAX_RANGES else "")


def _gaps(lost: LostPage, rows: Mapping[int, Row]) -> Iterator[tuple[int, int]]:
    """Yield the ranges of lost numbers that were not found elsewhere; an open end stops at the last number found."""
    low = 1 if lost.low is None else lost.low
    high = max(rows, default=0) if lost.high is None else lost.high
    for known in [*sorted(number for number in rows if low <= number <= high), high + 1]:
        if low < known:
            yield low, known - 1
        low = known + 1


def _merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return merged
