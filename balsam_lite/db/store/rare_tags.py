"""The startable jobs with a rare tag: few enough to read them all, instead of looking for them among millions.

A launcher with `--tag` finds its jobs in the indexes that all launchers read, and looks at the tags of each row. Where a tag
is rare that would be almost every row that waits, for nothing; there the index over tags leads to the jobs. All functions run
inside the caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from ...core import field_specs, states
from ..engine.schema import UNSUSPECTED, VISIBLE, sql_list

#: A tag is rare if no more jobs have it, whatever their states; or no more that can be started, if the first that wait do not
#: have it. To look at that many takes ten milliseconds.
_MAX_JOBS = 10_000
#: If _SAMPLE_HITS are found among the first _SAMPLE_ROWS that wait, looking at these row by row finds enough.
_SAMPLE_HITS, _SAMPLE_ROWS = 20, 2000

_STARTABLE = sql_list((*states.RUNNABLE_STATES, *states.UNPREPARED_STATES))
_TAG = "(SELECT id FROM tag WHERE key = ? AND value = ?)"
_COUNT = f"SELECT count(*) FROM (SELECT 1 FROM job_tag WHERE tag = {_TAG} LIMIT ?)"
_WAITING = f"SELECT sum(jobs) FROM state_count WHERE state IN ({_STARTABLE})"


class QueuedJob(NamedTuple):
    """What decides when a job's turn is."""

    job: int
    is_prepared: bool
    is_plain: bool  # nothing has to be prepared
    priority: int
    minutes: int
    shape: tuple[float, ...]  # spec.SHAPE_FIELDS


class TaggedJobs(NamedTuple):
    """The prepared or the unprepared ones of them, in the order in which they are claimed."""

    is_prepared: bool
    entries: list[QueuedJob]

    def best(self, shape: Sequence[float], wanted: int, longest: int, only_plain: bool) -> list[int]:
        """The first `wanted` jobs of a shape whose estimate is at most `longest` minutes."""
        fitting = (
            entry.job
            for entry in self.entries
            if entry.shape == shape and entry.minutes <= longest and (entry.is_plain or not only_plain)
        )
        return list(islice(fitting, wanted))


def rarest(cx: sqlite3.Connection, tags: Iterable[tuple[str, str]], is_slow: bool = False) -> tuple[str, str] | None:
    """The rarest of these tags, if its jobs are fewer than what waits in all, so that it is worth to begin with them.

    They must be few, too, unless looking at what waits row by row `is_slow`.
    """
    waiting = cx.execute(_WAITING).fetchone()[0]
    most = waiting if is_slow else min(_MAX_JOBS, waiting)
    counts = [(cx.execute(_COUNT, (*tag, most + 1)).fetchone()[0], tag) for tag in tags]
    fewest, tag = min(counts, default=(most + 1, None))
    return tag if fewest <= most else None


def scan_is_cheap(
    cx: sqlite3.Connection, index: str, where: str, of_index: Sequence[object], tagged: str, tags: Sequence[object]
) -> bool:
    """Whether some of the first jobs along an index are `tagged`, or all are among the first."""
    first = f"SELECT tags FROM job INDEXED BY {index} WHERE {where} LIMIT {_SAMPLE_ROWS}"
    found = cx.execute(f"SELECT 1 FROM ({first}) AS job WHERE 1{tagged} LIMIT {_SAMPLE_HITS}", (*of_index, *tags)).fetchall()
    return len(found) == _SAMPLE_HITS or cx.execute(f"SELECT count(*) FROM ({first})", of_index).fetchone()[0] < _SAMPLE_ROWS


def query(plain: str, condition: str) -> str:
    """The SQL of `read`; its plan is fixed by CROSS JOIN and NOT INDEXED, which leaves the number of the row."""
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
    """The prepared and the unprepared jobs with that tag, of these workflows (None: of all); None if they are not few.

    `plain` says of a row whether nothing has to be prepared; `condition` must hold besides.
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
