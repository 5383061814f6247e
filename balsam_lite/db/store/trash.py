"""The trash: removed jobs with all rows about them, kept until they are taken back or for `KEEP_DAYS` days.

A row of `trash` holds up to `large_writes.JOBS_PER_PART` jobs of one action as compressed JSON: table -> columns and rows. No
query for jobs reads it. Rows are restored in the reverse order of their removal, so that both jobs of a dependency are there.
All functions run inside the caller's write transaction.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ...core import states
from ...core.clock import SECOND_US, SystemClock
from ..engine.connection import Database
from ..engine.schema import HAS_KEY, LARGE_WRITE_HOLD
from . import actions, counters, graph, large_writes, remote_parents, runs
from .tags import Tagger
from .transitions import Transition, apply, id_list

KEEP_DAYS = 30
#: A launcher may need this long to stop the run of a job that was removed while it ran: until then no other one takes it.
_STOPPING_US = 30 * SECOND_US
#: Free space that the file system must have, besides the removed rows, which take less than `_JOB_BYTES` each.
_MIN_FREE_BYTES, _JOB_BYTES = 64 << 20, 500

#: The key of an object that stands for bytes in the JSON.
_HEX = "hex"

_PRESENT = "SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?))"
#: The tables with rows about a job, besides `job`, `job_tag` and `dependency`.
_OF_JOB = ("event", "run", "edit", "imported", "call")


def has_room(db: Database, jobs: int) -> bool:
    """Return whether the file system has the space to keep that many removed jobs."""
    return shutil.disk_usage(db.directory).free > _MIN_FREE_BYTES + jobs * _JOB_BYTES


def keep(cx: sqlite3.Connection, action: int, jobs: Sequence[int]) -> None:
    """Store all rows about jobs that are about to be deleted."""
    for start in range(0, len(jobs), large_writes.JOBS_PER_PART):
        some = jobs[start : start + large_writes.JOBS_PER_PART]
        _keep(cx, action, some, {"job": "id", **dict.fromkeys(_OF_JOB, "job"), "dependency": "parent"})


def keep_edges(cx: sqlite3.Connection, action: int, parent: int, children: Sequence[int]) -> None:
    """Store the dependencies of these children, which are about to be deleted, on that parent."""
    if children:  # another change of these jobs may have been first
        _store(cx, action, [], {"dependency": _packed(["parent", "child"], [(parent, child) for child in children])})


def keep_apps(cx: sqlite3.Connection, action: int, apps: Sequence[int]) -> None:
    """Store applications that are about to be deleted."""
    _keep(cx, action, apps, {"app": "id"}, jobs=[])


def _keep(
    cx: sqlite3.Connection, action: int, numbers: Sequence[int], tables: dict[str, str], jobs: Sequence[int] | None = None
) -> None:
    listed = id_list(numbers)
    found = {}
    for table, column in tables.items():
        query = f"SELECT * FROM {table} WHERE {column} IN (SELECT value FROM json_each(?))"
        parameters = [listed]
        if table == "dependency":
            query += f" UNION {query.replace('parent IN', 'child IN')}"
            parameters *= 2
        cursor = cx.execute(query, parameters)
        rows = cursor.fetchall()
        if rows:
            found[table] = _packed([column[0] for column in cursor.description], rows)
    _store(cx, action, numbers if jobs is None else jobs, found)


#: Names of columns, the values of those that are equal in all rows, and the other columns' values by row.
_Packed = tuple[list[str], dict[str, Any], list[Any]]


def _packed(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> _Packed:
    columns = dict(zip(names, zip(*rows)))
    same = {name: values[0] for name, values in columns.items() if values.count(values[0]) == len(rows)}
    others = [name for name in names if name not in same]
    return others, same, list(zip(*(columns[name] for name in others))) if others else [()] * len(rows)


def _unpacked(packed: Sequence[Any]) -> tuple[list[str], list[list[Any]]]:
    others, same, rows = packed
    return [*others, *same], [[*row, *same.values()] for row in rows]


def _bytes_in_json(value: bytes) -> dict[str, str]:
    """Return bytes as `_with_bytes` reads them; for `json.dumps`."""
    return {_HEX: value.hex()}


def _with_bytes(value: dict[str, Any]) -> Any:
    return bytes.fromhex(value[_HEX]) if value.keys() == {_HEX} else value


def _store(cx: sqlite3.Connection, action: int, jobs: Sequence[int], tables: dict[str, _Packed]) -> None:
    content = zlib.compress(json.dumps(tables, default=_bytes_in_json).encode(), 1)
    sql = "INSERT INTO trash (action, time, jobs, content) VALUES (?, ?, ?, ?)"
    cx.execute(sql, (action, SystemClock.now_us(), json.dumps(list(jobs)), content))


def delete_rows(cx: sqlite3.Connection, jobs: str) -> None:
    """Delete the rows about the jobs in the query `jobs`, except their tags, their dependencies and the jobs themselves."""
    for table in _OF_JOB:
        cx.execute(f"DELETE FROM {table} WHERE job IN ({jobs})")


def empty_old(cx: sqlite3.Connection) -> None:
    """Delete what was kept for `KEEP_DAYS` days."""
    cx.execute("DELETE FROM trash WHERE time < ?", (SystemClock.now_us() - KEEP_DAYS * 86_400 * SECOND_US,))


def empty(cx: sqlite3.Connection) -> int:
    """Delete all that is kept. Return the number of jobs."""
    jobs = cx.execute("SELECT coalesce(sum(json_array_length(jobs)), 0) FROM trash").fetchone()[0]
    cx.execute("DELETE FROM trash")
    return int(jobs)


def restore(cx: sqlite3.Connection, row: int, large_write: int, by: int) -> Counter[str]:
    """Restore the jobs of a row of the trash. Return the number "taken" back, and why others were not, as `conflicts` does.

    A job that was running becomes RESTART_READY. Nothing is done if the row is not there any more.
    """
    tables = _tables(cx, row)
    if not tables:
        return Counter()
    cx.execute("DELETE FROM trash WHERE id = ?", (row,))
    columns, rows = tables.pop("job", ([], []))
    jobs = [dict(zip(columns, values)) for values in rows]
    counted, taken = _conflicts(cx, jobs)
    restored = [job for job in jobs if job["id"] not in taken]
    now = SystemClock.now_us()
    ran = [job["id"] for job in restored if job["state"] == states.RUNNING]
    _insert(cx, "job", columns, [tuple(_fresh(job, large_write, now).values()) for job in restored])
    numbers = [job["id"] for job in restored]
    counters.add(cx, id_list(numbers))
    Tagger(cx).add((job["id"], job["tags"]) for job in restored)
    edges = tables.pop("dependency", (["parent", "child"], []))
    known = {row[0] for row in cx.execute(_PRESENT, (id_list({end for pair in edges[1] for end in pair}),))} - taken
    known |= remote_parents.existing(cx, (end for pair in edges[1] for end in pair))
    pairs = [pair for pair in edges[1] if known.issuperset(pair)]
    _insert(cx, "dependency", edges[0], pairs)
    remote_parents.follow(cx, (pair[edges[0].index("parent")] for pair in pairs))
    apps: Counter[str] = Counter()
    for table, (names, values) in tables.items():
        if table == "event":
            place = names.index("id")  # it may be used again
            names, values = _without(names, place), [_without(value, place) for value in values]
        if table in _OF_JOB:
            values = [value for value in values if value[names.index("job")] not in taken]
        inserted = _insert(cx, table, names, values)
        apps += Counter(taken=inserted, conflict=len(values) - inserted) if table == "app" else Counter()
    path = (states.RUNNING, states.RESTART_READY)
    message = "It was running when it was removed; taken back by balsam undo"
    apply(cx, [Transition(job, path, now, (message,)) for job in ran], states.USER)
    runs.end_unseen(cx, numbers, now, runs.KILLED)
    _reconsider(cx, numbers, [pair[edges[0].index("child")] for pair in pairs], now)
    actions.count(cx, by, len(restored) + apps["taken"])
    return apps + counted + Counter(taken=len(restored))


def conflicts(cx: sqlite3.Connection, row: int) -> Counter[str]:
    """Return how many jobs of a row of the trash cannot be restored, by the reasons of `undo.REASONS`."""
    columns, rows = _tables(cx, row).get("job", ([], []))
    return _conflicts(cx, [dict(zip(columns, values)) for values in rows])[0]


def _tables(cx: sqlite3.Connection, row: int) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Return the content of a row of the trash: table -> columns and rows; {} if the row is not there any more."""
    found = cx.execute("SELECT content FROM trash WHERE id = ?", (row,)).fetchone()
    if found is None:
        return {}
    content = json.loads(zlib.decompress(found[0]), object_hook=_with_bytes)
    return {table: _unpacked(packed) for table, packed in content.items()}


def _reconsider(cx: sqlite3.Connection, restored: Sequence[int], children: Sequence[int], now: int) -> None:
    """Update the restored jobs and their children: those that failed by the removal wait again, and so do their children."""
    graph.recount(cx, {*restored, *children})
    last = "SELECT message FROM event WHERE event.job = job.id ORDER BY event.id DESC LIMIT 1"
    failed = f"SELECT id FROM job WHERE state = '{states.FAILED}' AND id IN (SELECT value FROM json_each(?)) AND ({last}) = ?"
    by_removal = [row[0] for row in cx.execute(failed, (id_list({*children} - {*restored}), graph.PARENT_REMOVED))]
    graph.settle(cx, {*restored, *children}, now)
    graph.reconsider(cx, by_removal, now)


def _without(values: list[Any], place: int) -> list[Any]:
    return [*values[:place], *values[place + 1 :]]


def _conflicts(cx: sqlite3.Connection, jobs: Sequence[dict[str, Any]]) -> tuple[Counter[str], set[int]]:
    """Return how many jobs have the number, the short id or the unique_key of a present job, by reason, and these jobs."""
    query = "SELECT id, substr(job_id, 1, 8) FROM job WHERE substr(job_id, 1, 8) IN (SELECT value FROM json_each(?))"
    used = {short for _, short in cx.execute(query, (json.dumps([job["job_id"][:8] for job in jobs]),))}
    present = {number for (number,) in cx.execute(_PRESENT, (id_list(job["id"] for job in jobs),))}
    taken = {job["id"] for job in jobs if job["id"] in present or job["job_id"][:8] in used}
    keys = {key: job["id"] for job in jobs if (key := job.get("unique_key")) and job["id"] not in taken}
    query = f"SELECT unique_key FROM job WHERE {HAS_KEY} AND unique_key IN (SELECT value FROM json_each(?))"
    by_key = {keys[key] for (key,) in cx.execute(query, (json.dumps(list(keys)),))} if keys else set()
    return +Counter(conflict=len(taken), key=len(by_key)), taken | by_key


def _fresh(job: dict[str, Any], large_write: int, now: int) -> dict[str, Any]:
    """Return the row of a restored job: no launcher holds it, and none takes it while its former run may have to be stopped."""
    start_after = job["start_after"]
    if start_after is not None and start_after >= LARGE_WRITE_HOLD:
        start_after = None
    if job["state"] not in states.END_STATES:
        if job["lease"] is not None:
            start_after = now + _STOPPING_US
        elif start_after is None and large_write and job["state"] not in states.UNSETTLED_STATES:
            start_after = large_writes.held_until(large_write)
    return {**job, "lease": None, "queued_launch_id": None, "start_after": start_after}


def _insert(cx: sqlite3.Connection, table: str, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> int:
    """Insert rows by the columns that the table has now. Return how many of them did not contradict present ones."""
    if not rows:
        return 0
    known = {column[1] for column in cx.execute(f"PRAGMA table_info({table})")}
    places = [place for place, name in enumerate(names) if name in known]
    marks = ", ".join("?" * len(places))
    sql = f"INSERT OR IGNORE INTO {table} ({', '.join(names[place] for place in places)}) VALUES ({marks})"
    return max(0, cx.executemany(sql, ([row[place] for place in places] for row in rows)).rowcount)
