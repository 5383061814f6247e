"""A copy of the jobs' tags for searching: `tag` holds each distinct pair, `job_tag` the jobs that have it.

Jobs show the column `job.tags`; code that writes it calls one of these functions in the same write transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, NamedTuple

from ...core import field_specs, states
from ..engine.schema import UNSUSPECTED, VISIBLE, sql_list

_PAIRS_OF = """SELECT tag.id, job.id FROM job, json_each(job.tags) AS t JOIN tag ON tag.key = t.key AND tag.value = t.value
    WHERE job.tags <> '{}' AND"""


class Tagger:
    """Adds the tags of new jobs; use one instance for many jobs, as it caches the pairs it has stored."""

    def __init__(self, cx: sqlite3.Connection) -> None:
        self._cx = cx
        self._by_text: dict[str, list[int]] = {}

    def add(self, jobs: Iterable[tuple[int, str]]) -> None:
        """Store the tags of jobs, given as (number of the job, its tags in stored form)."""
        rows = [(tag, job) for job, tags in jobs if tags != "{}" for tag in self._tags_of(tags)]
        self._cx.executemany("INSERT OR IGNORE INTO job_tag (tag, job) VALUES (?, ?)", rows)

    def _tags_of(self, text: str) -> list[int]:
        found = self._by_text.get(text)
        if found is None:
            if len(self._by_text) > 10_000:  # tags are unique to each job: a cache is of no use
                self._by_text.clear()
            found = self._by_text[text] = [self._number(key, value) for key, value in json.loads(text).items()]
        return found

    def _number(self, key: str, value: str) -> int:
        self._cx.execute("INSERT OR IGNORE INTO tag (key, value) VALUES (?, ?)", (key, value))
        number: int = self._cx.execute("SELECT id FROM tag WHERE key = ? AND value = ?", (key, value)).fetchone()[0]
        return number


def differing(cx: sqlite3.Connection) -> int:
    """Count the jobs, deleted ones included, whose tags in the table differ from their column. An old Balsam can cause that.

    The tags are parsed in Python, as SQLite's JSON functions end a text at a NUL byte.
    """
    numbers = {(key, value): number for number, key, value in cx.execute("SELECT id, key, value FROM tag")}
    rows = cx.execute(
        """WITH noted AS (SELECT job, group_concat(tag) AS numbers FROM job_tag GROUP BY job)
        SELECT job.tags, noted.numbers FROM job LEFT JOIN noted ON noted.job = job.id
        WHERE job.tags <> '{}' OR noted.numbers IS NOT NULL"""
    )
    known: dict[str, set[int | None]] = {}
    wrong = 0
    for text, noted in rows:
        wanted = known.get(text)
        if wanted is None:
            if len(known) > 10_000:
                known.clear()
            wanted = known[text] = {numbers.get(pair) for pair in json.loads(text).items()}
        wrong += wanted != (set(map(int, noted.split(","))) if noted else set())
    gone = "SELECT count(DISTINCT job) FROM job_tag WHERE job NOT IN (SELECT id FROM job)"
    return wrong + int(cx.execute(gone).fetchone()[0])


def note_anew(cx: sqlite3.Connection) -> None:
    """Rebuild the table from the columns."""
    cx.execute("DELETE FROM job_tag")
    cx.execute("DELETE FROM tag")
    Tagger(cx).add(cx.execute("SELECT id, tags FROM job WHERE tags <> '{}'"))


def remove(cx: sqlite3.Connection, which: str, parameters: tuple[str, ...] = ()) -> None:
    """Remove the tags of jobs that are about to lose them or to be deleted; `which` is a condition on table job."""
    pairs = cx.execute(f"{_PAIRS_OF} {which}", parameters).fetchall()
    cx.executemany("DELETE FROM job_tag WHERE tag = ? AND job = ?", pairs)
    unused = "DELETE FROM tag WHERE id = ? AND NOT EXISTS (SELECT 1 FROM job_tag WHERE tag = tag.id)"
    cx.executemany(unused, [(tag,) for tag in {tag for tag, _ in pairs}])


# --- jobs with a rare tag ---------------------------------------------------------------------------------------------
# A launcher with `--tag` finds its jobs in the indexes that all launchers read, and checks the tags of each row. With a rare
# tag it would read almost every waiting row in vain: then the index on tags yields the jobs, few enough to read them all.


#: A tag is rare if at most this many jobs in any state have it; or at most this many startable jobs, if the first waiting jobs
#: do not have it. Reading that many takes ten milliseconds.
MAX_JOBS = 10_000
#: If _SAMPLE_HITS of the first SAMPLE_ROWS waiting jobs have the tag, reading the waiting jobs row by row finds enough.
_SAMPLE_HITS, SAMPLE_ROWS = 20, 2000

_STARTABLE = sql_list((*states.RUNNABLE_STATES, *states.UNPREPARED_STATES))
_TAG = "(SELECT id FROM tag WHERE key = ? AND value = ?)"
_COUNT = f"SELECT count(*) FROM (SELECT 1 FROM job_tag WHERE tag = {_TAG} LIMIT ?)"
_WAITING = f"SELECT sum(jobs) FROM state_count WHERE state IN ({_STARTABLE})"


class QueuedJob(NamedTuple):
    """The values that decide the order in which jobs are claimed."""

    job: int
    is_prepared: bool
    is_plain: bool  # nothing has to be prepared
    priority: int
    minutes: int
    shape: tuple[float, ...]  # field_specs.SHAPE_FIELDS

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> QueuedJob:
        """Return the job of a row that begins with `queued_columns`."""
        return cls(row[0], bool(row[1]), bool(row[2]), row[3], row[4], tuple(row[5 : 5 + len(field_specs.SHAPE_FIELDS)]))

    @property
    def rank(self) -> tuple[int, int, int]:
        """The place in the order in which jobs of one shape are claimed."""
        return -self.priority, -self.minutes, self.job


def queued_columns(plain: str) -> str:
    """Return the columns of a `QueuedJob`. `plain` is the SQL expression for whether a job needs no preparation."""
    return f"""job.id, job.state IN ({sql_list(states.RUNNABLE_STATES)}), {plain}, job.priority, job.wall_time_minutes,
        {", ".join(f"job.{field}" for field in field_specs.SHAPE_FIELDS)}"""


def of_workflows(workflows: Iterable[str] | None) -> tuple[str, tuple[str, ...]]:
    """Return the SQL condition that a job belongs to one of these workflows (None: to any), and its parameters."""
    if workflows is None:
        return "", ()
    return " AND job.workflow IN (SELECT value FROM json_each(?))", (json.dumps(list(workflows)),)


class TaggedJobs(NamedTuple):
    """The prepared or the unprepared jobs with a rare tag, in the order in which they are claimed."""

    is_prepared: bool
    entries: list[QueuedJob]

    def best(self, shape: Sequence[float], wanted: int, longest: int, only_plain: bool) -> list[int]:
        """Return the first `wanted` jobs of a shape whose estimate is at most `longest` minutes."""
        fitting = (
            entry.job
            for entry in self.entries
            if entry.shape == shape and entry.minutes <= longest and (entry.is_plain or not only_plain)
        )
        return list(islice(fitting, wanted))


def by_readiness(entries: Sequence[QueuedJob]) -> list[TaggedJobs]:
    """Return the prepared and the unprepared ones of these jobs, each in this order."""
    return [TaggedJobs(kind, [entry for entry in entries if entry.is_prepared == kind]) for kind in (True, False)]


def rarest(cx: sqlite3.Connection, tags: Iterable[tuple[str, str]], is_slow: bool = False) -> tuple[str, str] | None:
    """Return the rarest of these tags if fewer jobs have it than are waiting in all, so that starting from it pays; else None.

    The tag must also be rare, unless reading the waiting jobs row by row `is_slow`.
    """
    waiting = cx.execute(_WAITING).fetchone()[0]
    most = waiting if is_slow else min(MAX_JOBS, waiting)
    counts = [(cx.execute(_COUNT, (*tag, most + 1)).fetchone()[0], tag) for tag in tags]
    fewest, tag = min(counts, default=(most + 1, None))
    return tag if fewest <= most else None


def scan_is_cheap(
    cx: sqlite3.Connection, index: str, where: str, of_index: Sequence[object], tagged: str, tags: Sequence[object]
) -> bool:
    """Return whether enough of the first jobs along an index are `tagged`, or the index has no more jobs than these."""
    first = f"SELECT tags FROM job INDEXED BY {index} WHERE {where} LIMIT {SAMPLE_ROWS}"
    found = cx.execute(f"SELECT 1 FROM ({first}) AS job WHERE 1{tagged} LIMIT {_SAMPLE_HITS}", (*of_index, *tags)).fetchall()
    return len(found) == _SAMPLE_HITS or cx.execute(f"SELECT count(*) FROM ({first})", of_index).fetchone()[0] < SAMPLE_ROWS


def query_of_tagged(plain: str, condition: str) -> str:
    """Return the SQL of `read_tagged`. CROSS JOIN and NOT INDEXED fix its plan: rows of job are found by number only."""
    return f"""SELECT {queued_columns(plain)}
        FROM job_tag CROSS JOIN job NOT INDEXED ON job.id = job_tag.job LEFT JOIN app ON app.name = job.application
        WHERE job_tag.tag = {_TAG} AND {UNSUSPECTED} AND job.state IN ({_STARTABLE}){condition} AND {VISIBLE}
        LIMIT {MAX_JOBS + 1}"""


def read_tagged(
    cx: sqlite3.Connection,
    tag: tuple[str, str],
    plain: str,
    condition: str,
    parameters: Sequence[object],
    workflows: Iterable[str] | None = None,
) -> list[TaggedJobs] | None:
    """Return the prepared and the unprepared jobs with that tag, of these workflows (None: of all); None if they are too many.

    `plain` is the SQL expression for whether a job needs no preparation; `condition` is a further SQL condition on the jobs.
    """
    within, names = of_workflows(workflows)
    rows = cx.execute(query_of_tagged(plain, condition + within), (*tag, *parameters, *names))
    entries = list(map(QueuedJob.of_row, rows))
    if len(entries) > MAX_JOBS:
        return None
    entries.sort(key=lambda entry: entry.rank)
    return by_readiness(entries)
