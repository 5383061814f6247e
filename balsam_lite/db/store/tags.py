"""A copy of the jobs' tags for searching: `tag` holds each distinct pair, `job_tag` the jobs that have it.

Jobs show the column `job.tags`; code that writes it calls one of these functions in the same write transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable

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
