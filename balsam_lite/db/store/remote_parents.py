"""Jobs of other sites that jobs here wait for, and jobs here that jobs of other sites wait for.

A dependency on a job of another site is a row of `dependency` like others. Its parent is below 0: the opposite of the number of
a row of `remote_parent`, which has the state at the other site as last seen. `graph` uses it as it uses the state of a parent.

A process of either site exchanges the states (see `sites.remote_parents`): one here asks the other site about the parents in
`followed`, or one there reports its jobs in `unreported`. Both end in `graph.note_remote`. An end does not count while
`pending` tells why: a launcher there still holds the job, its files have to be copied first, or the state may be an old one.

All functions run inside the caller's transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import states
from ...core.clock import SECOND_US
from ..engine.schema import sql_list

#: The state of a parent that was removed from its site.
REMOVED = "REMOVED"
ENDS = (*states.END_STATES, REMOVED)
#: The directory of copied files, below `data/`.
COPIES = ".parents"

#: Values of `pending`; any other one is the reason why files could not be copied.
UNCONFIRMED, HELD, TO_COPY = "unconfirmed", "held", "to copy"
#: The states of a child that its parents can still affect.
_UNSTARTED = (*states.UNPREPARED_STATES, states.AWAITING_PARENTS, *states.RUNNABLE_STATES)
#: Maximum number of doublings of the pause after failures.
_MAX_DOUBLINGS = 6
#: Seconds after which a state is reported again although it has not changed; also the maximum pause after failures.
_REPEAT_S = 600.0
#: Seconds between two looks at parents that have ended.
_ENDED_PERIOD_S = 60.0
#: Seconds for which a job is watched although no job of the other site waits for it: that may be about to be added.
_MIN_WATCH_S = 3600.0


class OtherSite(NamedTuple):
    """Another site, and its address as seen from this host; one without a `path` cannot be asked from here."""

    id: int
    db_id: str
    name: str
    host: str
    path: str
    balsam: str
    asked: int
    answered: int
    failures: int
    error: str


class MissingFiles(NamedTuple):
    """Files of a parent that have to be copied from its site before its children can start."""

    number: int  # of the parent, at its site
    source: str  # its directory there
    target: str  # below `data/` here
    patterns: tuple[str, ...]


# --- adding -----------------------------------------------------------------------------------------------------------


def add_site(cx: sqlite3.Connection, site: Mapping[str, Any]) -> int:
    """Store a site, given by db_id, name, host, path and balsam; an address replaces the known one. Return its number here."""
    values = [str(site[name]) for name in ("db_id", "name", "host", "path", "balsam")]
    cx.execute(
        """INSERT INTO remote_site (db_id, name, host, path, balsam) VALUES (?, ?, ?, ?, ?)
            ON CONFLICT (db_id) DO UPDATE SET name = excluded.name, host = excluded.host, path = excluded.path,
                balsam = excluded.balsam, failures = 0 WHERE excluded.path <> ''""",
        values,
    )
    return int(cx.execute("SELECT id FROM remote_site WHERE db_id = ?", values[:1]).fetchone()[0])


def number_of(cx: sqlite3.Connection, db_id: str) -> int:
    """Return the number here of the site with that identity; 0 if there is none."""
    row = cx.execute("SELECT id FROM remote_site WHERE db_id = ?", (db_id,)).fetchone()
    return int(row[0]) if row else 0


def add_parents(cx: sqlite3.Connection, site: int, jobs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Store jobs of a site, from `records`. Return the numbers below 0 by which dependencies name them, in order."""
    sql = "INSERT OR IGNORE INTO remote_parent (site, number, job_id, name, state, pending) VALUES (?, ?, ?, ?, ?, ?)"
    cx.executemany(sql, [(site, job["id"], job["job_id"], job["name"], job["state"], UNCONFIRMED) for job in jobs])
    sql = "SELECT number, -id FROM remote_parent WHERE site = ? AND number IN (SELECT value FROM json_each(?))"
    known = dict(cx.execute(sql, (site, json.dumps([job["id"] for job in jobs]))))
    return [known[job["id"]] for job in jobs]


def existing(cx: sqlite3.Connection, numbers: Iterable[int]) -> set[int]:
    """Return those of these numbers that name jobs of other sites."""
    sql = "SELECT -id FROM remote_parent WHERE id IN (SELECT -value FROM json_each(?))"
    return {row[0] for row in cx.execute(sql, (json.dumps([number for number in numbers if number < 0]),))}


def follow(cx: sqlite3.Connection, parents: Iterable[int]) -> None:
    """Keep up with the states of those of `parents` that are jobs of other sites, now that other jobs wait for them."""
    remote = [(-parent,) for parent in {*parents} if parent < 0]
    if not remote:
        return
    sql = f"UPDATE remote_parent SET is_followed = 1, pending = '{UNCONFIRMED}' WHERE id = ? AND NOT is_followed"
    cx.executemany(sql, remote)
    sql = f"""UPDATE remote_parent SET pending = '{TO_COPY}' WHERE id = ? AND pending IS NULL AND directory NOT LIKE '/%'
        AND EXISTS (SELECT 1 FROM dependency CROSS JOIN job ON job.id = dependency.child
            WHERE dependency.parent = -remote_parent.id AND job.state IN ({sql_list(_UNSTARTED)})
                AND job.input_files <> '' AND job.input_files NOT IN (SELECT value FROM json_each(copied)))"""
    cx.executemany(sql, remote)


def follow_parents_of(cx: sqlite3.Connection, jobs: Sequence[int]) -> None:
    """Keep up again with parents at other sites of jobs that wait again. Reads one table, which is usually empty."""
    if jobs and cx.execute("SELECT 1 FROM remote_parent LIMIT 1").fetchone():
        parents = "SELECT -parent FROM dependency WHERE parent < 0 AND child IN (SELECT value FROM json_each(?))"
        sql = f"UPDATE remote_parent SET is_followed = 1 WHERE NOT is_followed AND id IN ({parents})"
        cx.execute(sql, (json.dumps(list(jobs)),))


def watch(cx: sqlite3.Connection, site: int, jobs: Iterable[int], now_us: int) -> None:
    """Report the states of these jobs to that site, whose jobs wait for them."""
    sql = "INSERT OR REPLACE INTO watched_job (site, job, since) VALUES (?, ?, ?)"
    cx.executemany(sql, [(site, job, now_us) for job in jobs])


# --- exchanging states ------------------------------------------------------------------------------------------------


def due(cx: sqlite3.Connection, now_us: int, period_s: float) -> list[int]:
    """Return the sites with which states are to be exchanged now. After failures the pauses get longer, up to ten minutes.

    Parents that have ended are only looked at once a minute: someone may put them back.
    """
    followed = """(SELECT {} FROM remote_parent INDEXED BY remote_parent_followed
        WHERE remote_parent.site = remote_site.id AND is_followed = 1)"""
    is_open = f"max(pending IS NOT NULL OR state NOT IN ({sql_list(ENDS)}))"
    sql = f"SELECT id, asked, failures, {followed.format(is_open)} FROM remote_site WHERE path <> ''"
    found = []
    for number, asked, failures, is_any_open in cx.execute(sql).fetchall():
        usual_us, ended_us = (_pause_us(seconds, failures) for seconds in (period_s, max(period_s, _ENDED_PERIOD_S)))
        if asked <= now_us < asked + usual_us:
            continue
        has_to_ask = is_any_open or (is_any_open is not None and not asked <= now_us < asked + ended_us)
        if has_to_ask or unreported(cx, number, now_us):
            found.append(number)
    return found


def _pause_us(period_s: float, failures: int) -> int:
    return int(max(period_s, min(period_s * 2.0 ** min(failures, _MAX_DOUBLINGS), _REPEAT_S)) * SECOND_US)


def begin(cx: sqlite3.Connection, site: int, now_us: int) -> OtherSite | None:
    """Record that this process exchanges states with a site; None if another one began to less than a second ago."""
    sql = "UPDATE remote_site SET asked = ? WHERE id = ? AND (asked <= ? OR asked > ?)"
    if not cx.execute(sql, (now_us, site, now_us - SECOND_US, now_us)).rowcount:
        return None
    row = cx.execute(f"SELECT {', '.join(OtherSite._fields)} FROM remote_site WHERE id = ?", (site,)).fetchone()
    return OtherSite._make(row)


def answered(cx: sqlite3.Connection, site: int, now_us: int, address: tuple[str, str] | None = None) -> None:
    """Record that a site has answered, or that it has told something itself; with `address`, where it is now (host, path)."""
    cx.execute("UPDATE remote_site SET answered = ?, failures = 0, error = '' WHERE id = ?", (now_us, site))
    if address:
        cx.execute("UPDATE remote_site SET host = ?, path = ? WHERE id = ?", (*address, site))


def failed(cx: sqlite3.Connection, site: int, error: str) -> None:
    """Record why a site could not be reached."""
    cx.execute("UPDATE remote_site SET failures = failures + 1, error = ? WHERE id = ?", (error, site))


def followed(cx: sqlite3.Connection, site: int) -> list[int]:
    """Return the numbers, at that site, of the parents whose states are asked for."""
    sql = "SELECT number FROM remote_parent INDEXED BY remote_parent_followed WHERE site = ? AND is_followed = 1"
    return [row[0] for row in cx.execute(sql, (site,))]


_RECORD = ("id", "job_id", "name", "state", "is_held", "workdir")
_RECORD_COLUMNS = "job.job_id, job.name, job.state, job.lease IS NOT NULL, job.workdir"


def records(cx: sqlite3.Connection, jobs: Sequence[int]) -> list[dict[str, Any]]:
    """Return what other sites are told about jobs here, also about those that are gone: id, job_id, name, state, is_held and
    workdir, in order."""
    sql = f"SELECT value, {_RECORD_COLUMNS} FROM json_each(?) LEFT JOIN job ON job.id = value"
    return [_record(row) for row in cx.execute(sql, (json.dumps(list(jobs)),))]


def _record(row: Sequence[Any]) -> dict[str, Any]:
    record = dict(zip(_RECORD, row))
    return record if record["state"] else {**record, "job_id": "", "name": "", "state": REMOVED, "workdir": ""}


def unreported(cx: sqlite3.Connection, site: int, now_us: int) -> list[dict[str, Any]]:
    """Return the `records` of jobs here for which jobs of that site wait, and that it does not know or was told long ago."""
    sql = f"""SELECT watched_job.job, {_RECORD_COLUMNS}, told, told_at
        FROM watched_job LEFT JOIN job ON job.id = watched_job.job WHERE site = ?"""
    found = [(_record(row[:-2]), *row[-2:]) for row in cx.execute(sql, (site,))]
    before = now_us - int(_REPEAT_S * SECOND_US)
    return [record for record, told, told_at in found if told != _summary(record) or told_at < before]


def _summary(record: Mapping[str, Any]) -> str:
    return f"{record['state']} {bool(record['is_held'])}"


def waiting_site(cx: sqlite3.Connection, jobs: str) -> str:
    """Return the name of a site whose jobs wait for one of the jobs in the query `jobs`, as far as it has told; else ""."""
    sql = f"""SELECT remote_site.name FROM remote_site CROSS JOIN watched_job ON watched_job.site = remote_site.id
        JOIN job ON job.id = watched_job.job
        WHERE watched_job.job IN ({jobs}) AND job.state NOT IN ({sql_list(states.END_STATES)}) LIMIT 1"""
    row = cx.execute(sql).fetchone()
    return str(row[0]) if row else ""


def reported(cx: sqlite3.Connection, site: int, jobs: Sequence[Mapping[str, Any]], needed: Iterable[int], now_us: int) -> None:
    """Record that a site was told about these jobs, and forget those that none of its jobs `needed` any more."""
    sql = "UPDATE watched_job SET told = ?, told_at = ? WHERE site = ? AND job = ?"
    cx.executemany(sql, [(_summary(job), now_us, site, job["id"]) for job in jobs])
    gone = {job["id"] for job in jobs}.difference(needed)
    before = now_us - int(_MIN_WATCH_S * SECOND_US)
    cx.executemany("DELETE FROM watched_job WHERE site = ? AND job = ? AND since < ?", [(site, job, before) for job in gone])


# --- what was seen ----------------------------------------------------------------------------------------------------


class SeenStates(NamedTuple):
    """The effect of new states."""

    changed: list[int]  # parents that have ended, or have been put back: numbers below 0
    missing: list[MissingFiles]


def store(cx: sqlite3.Connection, site: int, jobs: Iterable[Mapping[str, Any]]) -> SeenStates:
    """Store the states of parents as their site has told them.

    Args:
        jobs: from `records` there, with the `workdir` as an absolute path; besides `directory` (where that is here, if this
            host sees it), and `copied` (patterns of files that have been copied) or `trouble` (why they could not be).
    """
    (db_id,) = cx.execute("SELECT db_id FROM remote_site WHERE id = ?", (site,)).fetchone()
    seen = SeenStates([], [])
    for job in jobs:
        sql = "SELECT id, job_id, state, pending, copied FROM remote_parent WHERE site = ? AND number = ?"
        row = cx.execute(sql, (site, job["id"])).fetchone()
        if row is None:
            continue
        number, job_id, old_state, old_pending, old_copied = row
        state = job["state"] if job["job_id"] == job_id else REMOVED
        directory = job.get("directory", "")
        pending: str | None = None
        copied = json.loads(old_copied) if state == old_state else []
        copied = [*job["copied"], *copied] if "copied" in job else copied
        if state in states.END_STATES and job["is_held"]:
            pending = HELD
        elif state in states.END_STATES and not directory:
            directory = f"{COPIES}/{db_id[:8]}_{job['id']}" if copied else ""
            wanted = _patterns(cx, number, state)
            if not wanted.issubset(copied):
                pending = job.get("trouble") or TO_COPY
                target = f"{COPIES}/{db_id[:8]}_{job['id']}"
                seen.missing.append(MissingFiles(job["id"], job["workdir"], target, tuple(sorted(wanted.union(copied)))))
        cx.execute(
            "UPDATE remote_parent SET state = ?, pending = ?, directory = ?, copied = ? WHERE id = ?",
            (state, pending, directory, json.dumps(sorted({*copied})), number),
        )
        if _end(old_state, old_pending) != _end(state, pending):
            seen.changed.append(-number)
    return seen


def _end(state: str, pending: str | None) -> str:
    return state if state in ENDS and pending is None else ""


def _patterns(cx: sqlite3.Connection, number: int, state: str) -> set[str]:
    """Return the `input_files` of the jobs that wait for a parent which has ended in that state."""
    ways = "" if state == states.JOB_FINISHED else " AND job.run_when <> 'all_finished'"
    sql = f"""SELECT DISTINCT job.input_files FROM dependency CROSS JOIN job ON job.id = dependency.child
        WHERE dependency.parent = ? AND job.input_files <> '' AND job.state IN ({sql_list(_UNSTARTED)}){ways}"""
    return {row[0] for row in cx.execute(sql, (-number,))}


def unfollow(cx: sqlite3.Connection, site: int) -> list[int]:
    """Stop asking for finished parents of that site that can affect no job any more. Return the numbers of the others there."""
    sql = f"""UPDATE remote_parent SET is_followed = 0 WHERE site = ? AND is_followed = 1 AND NOT EXISTS (
        SELECT 1 FROM dependency CROSS JOIN job ON job.id = dependency.child WHERE dependency.parent = -remote_parent.id
            AND (job.state IN ({sql_list(_UNSTARTED)}) OR remote_parent.state <> '{states.JOB_FINISHED}'))"""
    cx.execute(sql, (site,))
    return followed(cx, site)


def ancestors(cx: sqlite3.Connection, jobs: Iterable[int], db_id: str) -> tuple[list[int], list[int]]:
    """Return these jobs with their ancestors here, and their ancestors at the site with that identity, by numbers there."""
    sql = """WITH RECURSIVE above (id) AS (
            SELECT value FROM json_each(?) UNION SELECT parent FROM dependency JOIN above ON dependency.child = above.id)
        SELECT above.id, db_id, number FROM above LEFT JOIN remote_parent ON remote_parent.id = -above.id
            LEFT JOIN remote_site ON remote_site.id = remote_parent.site"""
    rows = cx.execute(sql, (json.dumps(list(jobs)),)).fetchall()
    return [job for job, _, _ in rows if job > 0], [number for _, site, number in rows if site == db_id]


# --- for people -------------------------------------------------------------------------------------------------------


class ParentThere(NamedTuple):
    """A parent at another site, and what is known of the site."""

    number: int
    job_id: str
    name: str
    state: str
    pending: str | None
    site: str
    path: str
    answered: int
    error: str

    @property
    def label(self) -> str:
        """How users name it."""
        return f"{self.site}#{self.number}"

    @property
    def trouble(self) -> str:
        """Why its files could not be copied; "" if nothing is known against that."""
        return self.pending if self.pending and self.pending not in (UNCONFIRMED, HELD, TO_COPY) else ""

    @property
    def end(self) -> str:
        """The state that counts for its children; "" while it has not ended for them."""
        return _end(self.state, self.pending)


_THERE = """SELECT number, job_id, remote_parent.name, state, pending, remote_site.name, path, answered, error
    FROM remote_parent JOIN remote_site ON remote_site.id = remote_parent.site"""


#: The jobs that wait for parents at a site.
CHILDREN_OF_SITE = """SELECT dependency.child FROM remote_parent INDEXED BY remote_parent_followed
    JOIN dependency ON dependency.parent = -remote_parent.id WHERE remote_parent.site = ? AND is_followed = 1"""


def unreachable(cx: sqlite3.Connection) -> list[int]:
    """Return the sites that did not answer when they were asked last."""
    return [row[0] for row in cx.execute("SELECT id FROM remote_site WHERE error <> ''")]


def of_child(cx: sqlite3.Connection, child: int) -> list[ParentThere]:
    """Return the parents of a job that are at other sites."""
    edges = "JOIN dependency ON dependency.parent = -remote_parent.id WHERE child = ? AND parent < 0"
    return list(map(ParentThere._make, cx.execute(f"{_THERE} {edges} ORDER BY remote_parent.id", (child,))))


def find(cx: sqlite3.Connection, parent: int) -> ParentThere | None:
    """Return the parent that a number below 0 names; None if it is gone."""
    row = cx.execute(f"{_THERE} WHERE remote_parent.id = ?", (-parent,)).fetchone()
    return ParentThere._make(row) if row else None
