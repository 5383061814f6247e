"""Suspects: jobs that were running at several deaths of their launchers, and may have caused them (`job.launcher_deaths`).

A job can kill its launcher, for example by using all memory of the host; other jobs that run at that time are innocent. The
cause is found by bisection: suspects run apart from all other jobs, half of those with the most deaths at a time. An ordinary
end of a run clears its job. A job that ran alone at the death of its launcher has caused it, and fails.

The same applies to steps: a hook can kill a launcher, too. A spawn helper's death counts like a launcher's. A death with a
cause outside of the jobs (`leases.outside_cause`) does not count.
All functions run inside the caller's transaction, on its connection `cx`.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from ...core import states
from ..engine.schema import RESERVED, SUSPECT, SUSPECT_DEATHS, sql_list
from .tags import QueuedJob, TaggedJobs, by_readiness, of_workflows, queued_columns

#: Key in the data of the event RUNNING of a suspect that runs alone.
_ALONE = "alone"


class Suspect(NamedTuple):
    """A suspect that no launcher holds."""

    entry: QueuedJob
    is_unsettled: bool  # its program has ended, a step is left
    deaths: int
    since_us: int  # of its last event


def is_any(cx: sqlite3.Connection) -> bool:
    """Return whether a suspect is waiting to run."""
    return cx.execute(f"SELECT 1 FROM job INDEXED BY job_suspect WHERE {SUSPECT} LIMIT 1").fetchone() is not None


def query(plain: str, condition: str) -> str:
    """Return the SQL of `read`."""
    return f"""SELECT {queued_columns(plain)}, job.state IN ({sql_list(states.UNSETTLED_STATES)}), job.launcher_deaths,
        (SELECT max(time) FROM event WHERE event.job = job.id)
        FROM job INDEXED BY job_suspect LEFT JOIN app ON app.name = job.application WHERE {SUSPECT}{condition}"""


def read(
    cx: sqlite3.Connection,
    plain: str,
    condition: str = "",
    parameters: Sequence[object] = (),
    workflows: Iterable[str] | None = None,
    launch: int | None = None,
) -> list[Suspect]:
    """Return the suspects of these workflows (None: of all) and of this launch (None: of any) that meet a condition.

    `plain` is the SQL expression for whether a job needs no preparation.
    """
    within, names = of_workflows(workflows)
    values: list[object] = [*parameters, *names]
    if launch is not None:
        within += " AND job.queued_launch_id = ?"
        values.append(launch)
    rows = cx.execute(query(plain, condition + within), values)
    return [Suspect(QueuedJob.of_row(row), bool(row[-3]), row[-2], row[-1] or 0) for row in rows]


def next_group(found: Collection[Suspect]) -> list[Suspect]:
    """Return the suspects to run next: half of those with the most deaths, by priority.

    >>> entries = [QueuedJob(job, True, True, 0, 1, ()) for job in range(5)]
    >>> [one.entry.job for one in next_group([Suspect(entry, False, 3 - (entry.job > 2), 0) for entry in entries])]
    [0, 1]
    """
    most = max((one.deaths for one in found), default=0)
    group = [one for one in found if one.deaths == most]
    group.sort(key=lambda one: one.entry.rank)
    return group[: (len(group) + 1) // 2]


def startable(group: Iterable[Suspect]) -> list[TaggedJobs]:
    """Return the suspects that can be started, in the form that a launcher takes."""
    return by_readiness([one.entry for one in group if not one.is_unsettled])


def workflows(cx: sqlite3.Connection) -> list[str]:
    """Return the workflows of all suspects."""
    return [row[0] for row in cx.execute(f"SELECT DISTINCT workflow FROM job INDEXED BY job_suspect WHERE {SUSPECT}")]


def launches(cx: sqlite3.Connection) -> list[int]:
    """Return the launches for which suspects are planned."""
    rows = cx.execute(f"SELECT DISTINCT queued_launch_id FROM job INDEXED BY job_suspect WHERE {SUSPECT} AND {RESERVED}")
    return [row[0] for row in rows]


def running_note(deaths: int, is_alone: bool) -> tuple[str, str | None]:
    """Return the message and the data of the event by which a suspect becomes RUNNING."""
    how = "alone" if is_alone else "apart from other jobs"
    return f"Runs {how}: {describe(deaths)}", f'{{"{_ALONE}":1}}' if is_alone else None


def describe(deaths: int) -> str:
    """Return in words how often a launcher died while a job ran."""
    return f"its launcher died {deaths} times while it ran"


def at_death(cx: sqlite3.Connection, jobs: Iterable[int]) -> dict[int, tuple[int, bool]]:
    """Return, for RUNNING jobs of a dead launcher, the number of earlier deaths and whether the job ran alone as a suspect."""
    rows = cx.execute(
        f"""SELECT id, launcher_deaths, launcher_deaths >= {SUSPECT_DEATHS} AND (
                SELECT json_extract(data, '$.{_ALONE}') FROM event
                WHERE event.job = job.id AND to_state = '{states.RUNNING}' ORDER BY event.id DESC LIMIT 1) IS NOT NULL
            FROM job WHERE id IN (SELECT value FROM json_each(?))""",
        (json.dumps(list(jobs)),),
    )
    return {job: (deaths, bool(was_alone)) for job, deaths, was_alone in rows}
