"""Read jobs by number: their histories, relatives and states; find the job that a word names; list workflows, applications
and batch jobs.

Every function takes a connection inside a transaction (`Database.read()`), and none of them imports peewee, so that a
command costs no more than SQLite does. Each hot query has an index; a test checks the query plans.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...core import field_specs, states
from ...core.errors import AmbiguousJobId, UnknownApp, UnknownJob
from ..engine.schema import HEX_NAME, VISIBLE, visible

#: Every column of a job: its number and its UUID, then the fields in the order in which they are printed.
JOB_COLUMNS = ("id", "job_id", *field_specs.JOB_FIELD)
APP_COLUMNS = ("id", *field_specs.APP_FIELD)
SHORT_ID = 8

#: Jobs that do not run yet and have not ended.
WAITING_STATES = (*states.UNPREPARED_STATES, *states.RUNNABLE_STATES, states.AWAITING_PARENTS)

_ENDS = ", ".join(f"'{state}'" for state in states.END_STATES)

#: Maximum number of candidates to list when a word matches several jobs.
_CANDIDATES = 10

#: The number of a tag (a key-value pair); two parameters.
TAG = "(SELECT id FROM tag WHERE key = ? AND value = ?)"
#: The jobs that have a tag; the same parameters. SQLite starts from here even if the query sorts by something else.
JOBS_WITH = f"SELECT job FROM job_tag WHERE tag = {TAG}"


# --- which job? -------------------------------------------------------------------------------------------------------

#: The form of an id or a prefix of one, and the jobs with a name of this form, which have an index (see `schema.HEX_NAME`).
_IDS = re.compile(r"[0-9A-Fa-f-]{1,36}")
_WHOLE_ID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_NUMBER = re.compile(r"#?[0-9]{1,18}", re.ASCII)
_BY_NUMBER = "id = ?"


def fitting(word: str) -> tuple[str, list[str | int]]:
    """Return the condition by which `word` names a job of table job, without the word WHERE, and its parameters.

    `word` is a number, a prefix of an id, or a name; `#37` is a number only, and a whole UUID an id only. Only a name that
    could not be an id needs a scan of the whole table: it has no index.

    Raises:
        UnknownJob: the word is empty.
    """
    word = word.strip()
    if not word:
        raise UnknownJob("An empty word names no job.", hint="`balsam ls` shows the ids; any unique prefix will do.")
    if word.startswith("#") and _NUMBER.fullmatch(word):
        return _BY_NUMBER, [int(word[1:])]
    if _WHOLE_ID.fullmatch(word):
        return id_condition(word)  # type: ignore[return-value]
    if not _IDS.fullmatch(word):
        return "name = ?", [word]
    by_id, parameters = id_condition(word)
    by_number = ["id = ?"] if _NUMBER.fullmatch(word) else []
    terms = [*by_number, f"(name = ? AND {HEX_NAME})", f"({by_id})"]
    return f"({' OR '.join(terms)})", [*map(int, [word] * len(by_number)), word, *parameters]


def fitting_any(words: Iterable[str]) -> tuple[str, list[Any]]:
    """Return the condition by which one of `words` names a job; there may be thousands of words like `#37`."""
    numbers: list[int] = []
    terms, parameters = [], []
    for word in words:
        term, values = fitting(word)
        if term == _BY_NUMBER:
            numbers += values  # type: ignore[arg-type]
        else:
            terms.append(term)
            parameters += values
    terms = [*terms, "id IN (SELECT value FROM json_each(?))"]
    return f"({' OR '.join(terms)})", [*parameters, json.dumps(numbers)]


def find_job(cx: sqlite3.Connection, word: str) -> int:
    """Return the number of the one job that `word` names: see `fitting`.

    Raises:
        UnknownJob: it names none. AmbiguousJobId: it names several; they are listed.
    """
    condition, parameters = fitting(word)
    sql = f"SELECT {', '.join(CANDIDATE)} FROM job WHERE {condition} AND {VISIBLE} LIMIT ?"
    return the_one(word, cx.execute(sql, (*parameters, CANDIDATES)).fetchall())


#: The columns of the jobs that fit a word, and the number of jobs, that are needed to pick the one or to list them.
CANDIDATE = ("id", "job_id", "name", "workflow", "state")
CANDIDATES = _CANDIDATES + 1


def the_one(word: str, rows: Sequence[Sequence[Any]]) -> int:
    """Return the number of the one job in `rows`, the jobs that fit `word` (columns `CANDIDATE`, at most `CANDIDATES` of them).

    Raises:
        UnknownJob: there is none. AmbiguousJobId: there are several; they are listed.
    """
    word = word.strip()
    if not rows:
        raise UnknownJob(f"No job in local DB matched {word}", hint="`balsam ls` shows the ids.")
    if len(rows) == 1:
        return int(rows[0][0])
    candidates = sorted(map(tuple, rows))[:_CANDIDATES]
    lines = []
    for number, job_id, name, workflow, state in candidates:
        kind = "name" if word == name else "number" if word.isdigit() and int(word) == number else "id"
        lines.append(f"    '#{number}'  {job_id[:SHORT_ID]}  {name}  {workflow}  {state}  (by its {kind})")
    more = ["    …"] * (len(rows) > _CANDIDATES)
    way_out = f"Name one by its number in quotes, such as '#{candidates[0][0]}', or give more of its id."
    raise AmbiguousJobId(f"More than one job matched {word}:", hint="\n".join([*lines, *more, way_out]))


def short_id_holder(cx: sqlite3.Connection, job_id: str) -> tuple[str, str] | None:
    """Return the (UUID, name) of the job that has the short id of this UUID, None if there is none."""
    found: tuple[str, str] | None = cx.execute(
        "SELECT job_id, name FROM job WHERE substr(job_id, 1, 8) = ?", (job_id[:SHORT_ID],)
    ).fetchone()
    return found


def id_condition(prefix: str) -> tuple[str, list[str]]:
    """Return the condition, with parameters, that a UUID begins with `prefix`. Uses the index on the short id."""
    short = prefix.lower()[:SHORT_ID]
    if len(prefix) < SHORT_ID:
        return "substr(job_id, 1, 8) >= ? AND substr(job_id, 1, 8) < ?", [short, short + "~"]
    return "substr(job_id, 1, 8) = ? AND substr(job_id, 1, ?) = ?", [short, len(prefix), prefix.lower()]  # type: ignore[list-item]


# --- jobs -------------------------------------------------------------------------------------------------------------


def check_columns(names: Iterable[str]) -> list[str]:
    """Return the columns of table job with these names.

    Raises:
        UnknownField: with the nearest one.
    """
    columns = []
    for name in names:
        if name in ("id", "job_id", "pk"):
            columns.append("id" if name == "id" else "job_id")
        else:
            columns.append(field_specs.known_field(name).name)
    return columns


def end_counts(cx: sqlite3.Connection) -> dict[str, int]:
    """Return the number of jobs in each final state, from the counters."""
    return dict(cx.execute(f"SELECT state, jobs FROM state_count WHERE state IN ({_ENDS})"))


def count_workflow(cx: sqlite3.Connection, workflow: str) -> dict[str, int]:
    """Return the number of jobs of a workflow by state, from the counters; states without a job are left out."""
    return dict(cx.execute("SELECT state, jobs FROM workflow_count WHERE workflow = ?", (workflow,)))


def is_any_held(cx: sqlite3.Connection) -> bool:
    """Return whether any job is held by a launcher, dead ones included."""
    return cx.execute("SELECT 1 FROM job INDEXED BY job_lease WHERE lease IS NOT NULL LIMIT 1").fetchone() is not None


def job(cx: sqlite3.Connection, number: int) -> dict[str, Any]:
    """Return one job's columns by name, in their stored form.

    Raises:
        UnknownJob: it is not there (any more).
    """
    row = cx.execute(f"SELECT {', '.join(JOB_COLUMNS)} FROM job WHERE id = ? AND {VISIBLE}", (number,)).fetchone()
    if row is None:
        raise UnknownJob(f"There is no job #{number} in this DB (any more).")
    return dict(zip(JOB_COLUMNS, row))


def history(cx: sqlite3.Connection, number: int) -> list[tuple[int, str, str, str]]:
    """Return a job's events from its creation on: (time in µs UTC, state left, state entered, message)."""
    sql = "SELECT time, from_state, to_state, message, data, id FROM history WHERE job = ? ORDER BY id"
    return [(time, old, new, message or _said(new)) for time, old, new, message, _, _ in cx.execute(sql, (number,))]


def entries(cx: sqlite3.Connection, numbers: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Yield (time in µs UTC, state entered) of all events of these jobs, in no particular order."""
    sql = "SELECT time, to_state FROM history WHERE job IN (SELECT value FROM json_each(?))"
    yield from cx.execute(sql, (json.dumps(list(numbers)),))


def _said(state: str) -> str:
    # The message of Balsam 0.3.8. Storing it in each of a million rows would only cost space.
    return "Not scheduled by Balsam service" if state == "RUNNING" else ""


def relatives(cx: sqlite3.Connection, number: int) -> tuple[list[str], list[str]]:
    """Return the UUIDs of a job's parents and of its children."""
    parents = "SELECT job_id FROM dependency JOIN job ON job.id = parent WHERE child = ? ORDER BY parent"
    children = f"SELECT job_id FROM dependency JOIN job ON job.id = child WHERE parent = ? AND {VISIBLE} ORDER BY child"
    return tuple([row[0] for row in cx.execute(sql, (number,))] for sql in (parents, children))  # type: ignore[return-value]


def relatives_by_state(
    cx: sqlite3.Connection, number: int, kind: str, most: int
) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return the number of a job's parents or children by state, and at most that many of them, unfinished ones first.

    `kind` is "parent" or "child".
    """
    other = "child" if kind == "parent" else "parent"
    of_job = f"FROM dependency JOIN job ON job.id = {kind} WHERE {other} = ? AND {VISIBLE}"
    counts = dict(cx.execute(f"SELECT state, count(*) {of_job} GROUP BY state", (number,)))
    sql = f"SELECT job.id, job_id, name, state {of_job} ORDER BY state = '{states.JOB_FINISHED}', job.id LIMIT ?"
    return counts, [dict(zip(("id", "job_id", "name", "state"), row)) for row in cx.execute(sql, (number, most))]


#: As a column for `jobs`: the parents of a job at other sites, as a JSON list of objects.
REMOTE_PARENTS = """(SELECT json_group_array(json_object('site', remote_site.name, 'id', number, 'job_id', remote_parent.job_id,
        'name', remote_parent.name, 'state', remote_parent.state,
        'address', iif(host = '', path, 'ssh://' || host || path)))
    FROM dependency JOIN remote_parent ON remote_parent.id = -parent JOIN remote_site ON remote_site.id = remote_parent.site
    WHERE child = job.id AND parent < 0)"""

#: From dependencies to their parents, here or at another site; and the UUID, name, directory and state of a parent.
FROM_PARENTS = """FROM dependency LEFT JOIN job AS here ON here.id = dependency.parent
    LEFT JOIN remote_parent AS there ON there.id = -dependency.parent"""
PARENT = ", ".join(f"coalesce(here.{name}, there.{other})" for name, other in (
    ("job_id", "job_id"), ("name", "name"), ("workdir", "directory"), ("state", "state"),
))  # fmt: skip


def parents(cx: sqlite3.Connection, number: int) -> list[tuple[str, str]]:
    """Return the UUIDs and states of a job's parents, those at other sites first."""
    sql = f"""SELECT coalesce(here.job_id, there.job_id), coalesce(here.state, there.state) {FROM_PARENTS}
        WHERE child = ? AND coalesce(here.id, there.id) IS NOT NULL ORDER BY parent"""
    return cx.execute(sql, (number,)).fetchall()


def _relatives_of_each(theirs: str, mine: str) -> str:
    of_job = f"d.{mine} = job.id AND {visible('r.id')}"
    inner = f"SELECT r.job_id FROM dependency d JOIN job r ON r.id = d.{theirs} WHERE {of_job} ORDER BY r.id"
    return f"(SELECT json_group_array(job_id) FROM ({inner}))"


#: As columns for `jobs`: the UUIDs of a job's parents and of its children, each as a JSON list.
RELATIVES = (_relatives_of_each("parent", "child"), _relatives_of_each("child", "parent"))


def _last_entry(job: str, state: str) -> str:
    return f"(SELECT max(id) FROM event WHERE event.job = {job} AND to_state = '{state}' AND from_state <> '{state}')"


#: As a column for `jobs`: 1 for a finished job with a parent that finished after the job had started, else 0. The results of
#: such a job are based on the parent's earlier attempt. Events are numbered in the order of their commits, so no clocks are
#: compared. Jobs that need not wait for every parent are never stale.
STALE = f"""(state = '{states.JOB_FINISHED}' AND wait_for_parents AND run_when <> 'any_finished' AND EXISTS (
    SELECT 1 FROM dependency d WHERE d.child = job.id
        AND {_last_entry("d.parent", states.JOB_FINISHED)} > {_last_entry("job.id", states.RUNNING)}
        AND (SELECT parent.state FROM job parent WHERE parent.id = d.parent) = '{states.JOB_FINISHED}'))"""


def matches_workflow(name: str, pattern: str) -> bool:
    """Return whether a workflow matches a pattern: its name, or a glob with `*` and `?`; `[` is literal."""
    if name == pattern or not has_wildcard(pattern):
        return name == pattern
    from fnmatch import fnmatchcase  # here, not above: listings need none of it

    return fnmatchcase(name, pattern.replace("[", "[[]"))


def has_wildcard(pattern: str) -> bool:
    """Return whether a pattern of workflows can match a name other than itself."""
    return "*" in pattern or "?" in pattern


def count_waiting(cx: sqlite3.Connection, numbers: Iterable[int]) -> int:
    """Return how many of these jobs wait for their parents."""
    sql = "SELECT count(*) FROM job WHERE id IN (SELECT value FROM json_each(?)) AND state = ?"
    return int(cx.execute(sql, (json.dumps(list(numbers)), states.AWAITING_PARENTS)).fetchone()[0])


def failed_with_parent(cx: sqlite3.Connection, numbers: Iterable[int]) -> tuple[int, str]:
    """Return how many of these jobs are FAILED, and a failed or killed parent of one of them in words, else ""."""
    these = json.dumps(list(numbers))
    sql = "SELECT count(*) FROM job WHERE id IN (SELECT value FROM json_each(?)) AND state = ? AND lease IS NULL"
    number = int(cx.execute(sql, (these, states.FAILED)).fetchone()[0])
    sql = """SELECT p.name, p.job_id, p.state FROM json_each(?) AS one CROSS JOIN job c ON c.id = one.value AND c.state = ?
        JOIN dependency d ON d.child = c.id JOIN job p ON p.id = d.parent AND p.state IN (?, ?) LIMIT 1"""
    parent = cx.execute(sql, (these, states.FAILED, states.FAILED, states.USER_KILLED)).fetchone() if number else None
    if number and parent is None:
        sql = """SELECT s.name, p.number, p.state FROM json_each(?) AS one CROSS JOIN dependency d ON d.child = one.value
            JOIN remote_parent p ON p.id = -d.parent AND p.state <> ? JOIN remote_site s ON s.id = p.site LIMIT 1"""
        there = cx.execute(sql, (these, states.JOB_FINISHED)).fetchone()
        return number, "{}#{} is {}".format(*there) if there else ""
    return number, "{} [{:.8}] is {}".format(*parent) if parent else ""


def edges(cx: sqlite3.Connection) -> list[tuple[int, int]]:
    """Return all dependencies as (parent, child)."""
    sql = f"SELECT parent, child FROM dependency WHERE parent > 0 AND {visible('child')} ORDER BY parent, child"
    return cx.execute(sql).fetchall()


def edges_within(cx: sqlite3.Connection, workflow: str) -> list[tuple[int, int]]:
    """Return the dependencies between jobs of exactly that workflow, as (parent, child)."""
    sql = f"""SELECT d.parent, d.child FROM job c JOIN dependency d ON d.child = c.id JOIN job p ON p.id = d.parent
        WHERE c.workflow = ? AND p.workflow = c.workflow AND {visible("c.id")} ORDER BY d.parent, d.child"""
    return cx.execute(sql, (workflow,)).fetchall()


def edges_to(cx: sqlite3.Connection, children: Iterable[int]) -> list[tuple[int, int]]:
    """Return the dependencies of these jobs, as (parent, child)."""
    sql = "SELECT parent, child FROM dependency WHERE child IN (SELECT value FROM json_each(?))"
    return cx.execute(sql, (json.dumps(list(children)),)).fetchall()


def columns_of(cx: sqlite3.Connection, numbers: Iterable[int], columns: Sequence[str]) -> dict[int, tuple[Any, ...]]:
    """Return these columns of many jobs by number, in one query."""
    sql = f"SELECT id, {', '.join(columns)} FROM job WHERE id IN (SELECT value FROM json_each(?))"
    return {number: tuple(row) for number, *row in cx.execute(sql, (json.dumps(list(numbers)),))}


def sources_of(cx: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Return where jobs come from that were imported: the number and UUID there, and when and from what they were imported."""
    names = ("number", "job_id", "kind", "file", "host", "directory", "db_id", "time", "written")
    sql = """SELECT imported.job, number, coalesce(imported.job_id, job.job_id), kind, file, host, directory, db, time, written
        FROM json_each(?) AS one CROSS JOIN imported ON imported.job = one.value JOIN job ON job.id = imported.job
            JOIN source ON source.id = imported.source"""
    return {job: dict(zip(names, row)) for job, *row in cx.execute(sql, (json.dumps(list(numbers)),))}


def workflows(cx: sqlite3.Connection) -> list[str]:
    """Return the distinct workflow names, with one seek each, regardless of the number of jobs."""
    seen = f"EXISTS (SELECT 1 FROM job WHERE workflow = step.name AND {VISIBLE})"
    sql = f"""WITH RECURSIVE step (name) AS (
            SELECT min(workflow) FROM job
            UNION ALL SELECT (SELECT min(workflow) FROM job WHERE workflow > step.name) FROM step WHERE name IS NOT NULL)
        SELECT name FROM step WHERE name IS NOT NULL
            AND (NOT EXISTS (SELECT 1 FROM large_write) OR {seen})"""
    return [row[0] for row in cx.execute(sql)]


# --- watching ---------------------------------------------------------------------------------------------------------


def mark(cx: sqlite3.Connection) -> tuple[int, int]:
    """Return (number of the newest event, number of jobs ever deleted), a mark from which to look for changes later.

    A deletion leaves no event, and frees the numbers of events; job numbers are never reused.
    """
    known = "(SELECT sum(jobs) FROM state_count) + (SELECT coalesce(sum(last - first + 1), 0) FROM large_write WHERE first > 0)"
    deleted = f"coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'job'), 0) - ({known})"
    event, gone = cx.execute(f"SELECT coalesce((SELECT max(id) FROM event), 0), {deleted}").fetchone()
    return event, gone


#: Maximum number of events of one `News`.
MAX_NEWS = 50_000


class News(NamedTuple):
    """What has happened since a mark."""

    mark: tuple[int, int]  # from which to look on
    entered: list[tuple[int, str]]  # (job, state entered), in order
    has_removed: bool  # jobs were deleted; perhaps events of the others are missing
    has_more: bool


def news(cx: sqlite3.Connection, before: Sequence[int] = ()) -> News:
    """Return what has happened since the mark of an earlier `News`; without one nothing, with the present mark."""
    event, gone = mark(cx)
    if not before or gone != before[1]:
        return News((event, gone), [], bool(before), False)
    if event == before[0]:
        return News((event, gone), [], False, False)
    sql = f"SELECT job, to_state, id FROM event WHERE id > ? AND {visible('event.job')} ORDER BY id LIMIT ?"
    rows = cx.execute(sql, (before[0], MAX_NEWS)).fetchall()
    has_more = len(rows) == MAX_NEWS
    return News((rows[-1][2] if has_more else event, gone), [(job, state) for job, state, _ in rows], False, has_more)


def states_of(cx: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, str]:
    """Return the states of those of these jobs that exist, by number."""
    listed = json.dumps(list(numbers))
    return dict(cx.execute("SELECT id, state FROM job WHERE id IN (SELECT value FROM json_each(?))", (listed,)))


def unstarted(cx: sqlite3.Connection, numbers: Iterable[int]) -> list[int]:
    """Return those of these jobs that wait for a launcher or for their parents, and have no holder."""
    sql = f"""SELECT id FROM job WHERE id IN (SELECT value FROM json_each(?)) AND lease IS NULL
        AND state IN ({", ".join("?" * len(WAITING_STATES))}) ORDER BY id"""
    return [row[0] for row in cx.execute(sql, (json.dumps(list(numbers)), *WAITING_STATES))]


def workdirs(cx: sqlite3.Connection, first: int, last: int) -> dict[int, tuple[str, str]]:
    """Return UUID and working directory, as they are stored, of the jobs in that range of numbers."""
    rows = cx.execute("SELECT id, job_id, workdir FROM job WHERE id BETWEEN ? AND ?", (first, last))
    return {number: (job_id, workdir) for number, job_id, workdir in rows}


class End(NamedTuple):
    """A job, how it ended, and why."""

    name: str
    job_id: str
    state: str
    message: str  # the last one in its history that is not empty
    parent: int | None  # the parent with which it failed


def end_of(cx: sqlite3.Connection, number: int) -> End | None:
    """Return how the job ended, or its present state; None if there is no such job (any more)."""
    sql = """SELECT name, job_id, state,
            coalesce((SELECT message FROM event WHERE event.job = job.id AND message <> '' ORDER BY id DESC LIMIT 1), ''),
            (SELECT json_extract(data, '$.parent') FROM event WHERE event.job = job.id ORDER BY id DESC LIMIT 1)
        FROM job WHERE id = ?"""
    row = cx.execute(sql, (number,)).fetchone()
    return End(*row) if row else None


# --- applications -----------------------------------------------------------------------------------------------------


def apps(cx: sqlite3.Connection, number: int | None = None) -> list[dict[str, Any]]:
    """Return the applications, ordered by number; with `number` that one if there is one."""
    where, parameters = ("", ()) if number is None else ("WHERE id = ?", (number,))
    rows = cx.execute(f"SELECT {', '.join(APP_COLUMNS)} FROM app {where} ORDER BY id", parameters)
    return [dict(zip(APP_COLUMNS, row)) for row in rows]


def app(cx: sqlite3.Connection, name: str) -> dict[str, Any]:
    """Return the application with exactly that name.

    Raises:
        UnknownApp: there is none; the registered ones are listed.
    """
    row = cx.execute(f"SELECT {', '.join(APP_COLUMNS)} FROM app WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise UnknownApp.named(name, [entry["name"] for entry in apps(cx)])
    return dict(zip(APP_COLUMNS, row))


# --- batch jobs --------------------------------------------------------------------------------------------------------

#: A row of `batch_job`: all columns; times are microseconds since the epoch. The table grows by one row per launch, so it is
#: scanned: an index would cost more than it saves.
BatchRow = dict[str, Any]


def batch_job(cx: sqlite3.Connection, number: int) -> BatchRow | None:
    """Return the batch job with that number in the DB; None if there is none."""
    return next(iter(_batch_rows(cx, "WHERE id = ?", (number,))), None)


def batch_job_with_scheduler_id(cx: sqlite3.Connection, scheduler_id: str) -> BatchRow | None:
    """Return the newest batch job with that scheduler id: some schedulers reuse their ids."""
    return next(iter(_batch_rows(cx, "WHERE scheduler_id = ? ORDER BY id DESC LIMIT 1", (scheduler_id,))), None)


def launch_of(cx: sqlite3.Connection, scheduler: str, scheduler_id: str, cluster: str = "") -> BatchRow | None:
    """Return the batch job in which a launcher runs, by its scheduler (as in Settings.SCHEDULER_CLASS) and scheduler id.

    If the cluster is known, a batch job with the same id on another cluster does not match.

    Return None if Balsam did not submit it, or the submitter has not written the id yet.
    """
    # Inside a PBS batch job its id ends in a dot and the server name; submission returns it without these.
    where = """WHERE scheduler_id IN (?, ?) AND scheduler LIKE ? || '%' AND (? = '' OR cluster IN ('', ?))
        ORDER BY cluster = ? DESC, id DESC LIMIT 1"""
    parameters = (scheduler_id, scheduler_id.partition(".")[0], scheduler, cluster, cluster, cluster)
    return next(iter(_batch_rows(cx, where, parameters)), None)


def has_pending_batch_job(cx: sqlite3.Connection, scheduler: str) -> bool:
    """Return whether a process is about to submit a batch job to that scheduler, or died while doing so."""
    return bool(_batch_rows(cx, "WHERE ended IS NULL AND scheduler_id = '' AND scheduler LIKE ? || '%' LIMIT 1", (scheduler,)))


def open_batch_jobs(cx: sqlite3.Connection, scheduler: str) -> list[BatchRow]:
    """Return the rows of one scheduler (its `domain`) that may still change, oldest first."""
    return _batch_rows(cx, "WHERE ended IS NULL AND scheduler = ? ORDER BY id", (scheduler,))


def batch_jobs_presumed_over(cx: sqlite3.Connection, scheduler: str, since_us: int) -> list[BatchRow]:
    """Return the rows of one scheduler that count as ended only because it stopped listing them, at `since_us` or later.

    The oldest come first. A row is omitted if a later one has the same scheduler id: the scheduler reuses its ids.
    """
    newer = """SELECT 1 FROM batch_job AS later WHERE later.id > batch_job.id AND later.scheduler = batch_job.scheduler
        AND later.scheduler_id = batch_job.scheduler_id AND later.cluster = batch_job.cluster AND later.scheduler_id <> ''"""
    where = f"WHERE ended >= ? AND absent IS NOT NULL AND scheduler = ? AND NOT EXISTS ({newer}) ORDER BY id"
    return _batch_rows(cx, where, (since_us, scheduler))


def newest_batch_job(cx: sqlite3.Connection, values: Mapping[str, Any]) -> BatchRow | None:
    """Return the newest row with these values in these columns."""
    where = " AND ".join(f"{name} = ?" for name in values)
    return next(iter(_batch_rows(cx, f"WHERE {where} ORDER BY id DESC LIMIT 1", values.values())), None)


def unended_batch_jobs(cx: sqlite3.Connection) -> list[BatchRow]:
    """Return the rows of all schedulers that may still change, oldest first."""
    return _batch_rows(cx, "WHERE ended IS NULL ORDER BY id")


def launchers_in(cx: sqlite3.Connection, column: str, scheduler_id: str, since_us: int) -> list[Any]:
    """Return this column of the leases of the launchers in a batch job, which was submitted at `since_us`; oldest first.

    It has several launchers if it has partitions.
    """
    number = scheduler_id.partition(".")[0]  # PBS appends a dot and the server, or does not
    sql = f"SELECT scheduler_id, {column} FROM lease WHERE kind = 'launcher' AND opened >= ? ORDER BY id"
    return [value for other, value in cx.execute(sql, (since_us,)) if other.partition(".")[0] == number != ""]


def next_batch_job(cx: sqlite3.Connection) -> int:
    """Return the number that the next batch job will get, unless another process is faster."""
    found = cx.execute("SELECT seq FROM sqlite_sequence WHERE name = 'batch_job'").fetchone()
    return int(found[0]) + 1 if found else 1


def _batch_rows(cx: sqlite3.Connection, rest: str, parameters: Iterable[Any] = ()) -> list[BatchRow]:
    cursor = cx.execute(f"SELECT * FROM batch_job {rest}", tuple(parameters))
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row)) for row in cursor]


# --- words that a shell offers while a command is typed ---------------------------------------------------------------

#: Each query of a completion takes one index and stops after a screenful.
_MAX_COMPLETIONS = 50


def tags_from(cx: sqlite3.Connection, start: str) -> list[str]:
    """Return tags as KEY=VALUE that begin with `start`; those that no job has any more may be among them."""
    key, equals, value = start.partition("=")
    if equals:
        sql = "SELECT key || '=' || value FROM tag WHERE key = ? AND substr(value, 1, ?) = ? ORDER BY value LIMIT ?"
        rows = cx.execute(sql, (key, len(value), value, _MAX_COMPLETIONS))
    else:
        sql = "SELECT key || '=' || value FROM tag WHERE key >= ? AND substr(key, 1, ?) = ? ORDER BY key, value LIMIT ?"
        rows = cx.execute(sql, (key, len(key), key, _MAX_COMPLETIONS))
    return [row[0] for row in rows]


def short_ids_from(cx: sqlite3.Connection, start: str) -> list[str]:
    """Return the first 8 characters of job ids that begin with `start`; the newest jobs if it is empty."""
    if not start:
        found = cx.execute(
            f"SELECT substr(job_id, 1, 8) FROM job WHERE {VISIBLE} ORDER BY id DESC LIMIT ?", (_MAX_COMPLETIONS,)
        )
        return [row[0] for row in found]
    condition, parameters = id_condition(start)
    sql = f"SELECT substr(job_id, 1, max(8, ?)) FROM job WHERE {condition} AND {VISIBLE} LIMIT ?"
    return [row[0] for row in cx.execute(sql, (len(start), *parameters, _MAX_COMPLETIONS))]
