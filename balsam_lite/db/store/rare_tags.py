"""The startable jobs with a rare tag: few enough to read them all, instead of searching millions of jobs for them.

A launcher with `--tag` finds its jobs in the indexes that all launchers read, and checks the tags of each row. With a rare tag
it would read almost every waiting row in vain; in this case the index on tags yields the jobs. All functions run inside the
caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from ...core import field_specs, states
from ..engine.schema import UNSUSPECTED, VISIBLE, sql_list

#: A tag is rare if at most this many jobs in any state have it; or at most this many startable jobs, if the first waiting jobs
#: do not have it. Reading that many takes ten milliseconds.
_MAX_JOBS = 10_000
#: If _SAMPLE_HITS of the first _SAMPLE_ROWS waiting jobs have the tag, reading the waiting jobs row by row finds enough.
_SAMPLE_HITS, _SAMPLE_ROWS = 20, 2000

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


def rarest(cx: sqlite3.Connection, tags: Iterable[tuple[str, str]], is_slow: bool = False) -> tuple[str, str] | None:
    """Return the rarest of these tags if fewer jobs have it than are waiting in all, so that starting from it pays; else None.

    The tag must also be rare, unless reading the waiting jobs row by row `is_slow`.
    """
    waiting = cx.execute(_WAITING).fetchone()[0]
    most = waiting if is_slow else min(_MAX_JOBS, waiting)
    counts = [(cx.execute(_COUNT, (*tag, most + 1)).fetchone()[0], tag) for tag in tags]
    fewest, tag = min(counts, default=(most + 1, None))
    return tag if fewest <= most else None


def scan_is_cheap(
    cx: sqlite3.Connection, index: str, where: str, of_index: Sequence[object], tagged: str, tags: Sequence[object]
) -> bool:
    """Return whether enough of the first jobs along an index are `tagged`, or the index has no more jobs than these."""
    first = f"SELECT tags FROM job INDEXED BY {index} WHERE {where} LIMIT {_SAMPLE_ROWS}"
    found = cx.execute(f"SELECT 1 FROM ({first}) AS job WHERE 1{tagged} LIMIT {_SAMPLE_HITS}", (*of_index, *tags)).fetchall()
    return len(found) == _SAMPLE_HITS or cx.execute(f"SELECT count(*) FROM ({first})", of_index).fetchone()[0] < _SAMPLE_ROWS


def query(plain: str, condition: str) -> str:
    """Return the SQL of `read`. CROSS JOIN and NOT INDEXED fix its plan: rows of job are found by number only."""
    return f"""SELECT job.id, job.state IN ({sql_list(states.RUNNABLE_STATES)}), {plain}, job.priority, job.wall_time_minutes,
        {", ".join(f"job.{field}" for field in field_specs.SHAPE_FIELDS)}
        FROM job_tag CROSS JOIN job NOT INDEXED ON job.id = job_tag.job LEFT JOIN app ON app.name = job.application
        WHERE job_tag.tag = {_TAG} AND {UNSUSPECTED} AND job.state IN ({_STARTABLE}){condition} AND {VISIBLE}
        LIMIT {_MAX_JOBS + 1}"""


def read(
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
    values = [*tag, *parameters]
    if workflows is not None:
        condition += " AND job.workflow IN (SELECT value FROM json_each(?))"
        values.append(json.dumps(list(workflows)))
    rows = cx.execute(query(plain, condition), values)
    entries = [QueuedJob(row[0], bool(row[1]), bool(row[2]), row[3], row[4], tuple(row[5:])) for row in rows]
    if len(entries) > _MAX_JOBS:
        return None
    entries.sort(key=lambda entry: (-entry.priority, -entry.minutes, entry.job))
    return [TaggedJobs(kind, [entry for entry in entries if entry.is_prepared == kind]) for kind in (True, False)]
