"""Check a DB: its directory, its file, the consistency of its rows, and its locks. Repairs nothing.

In the lock test several processes, on one host or many, count in a scratch DB beside the real one. Each of them increments a
number and writes a row about it, as often as it can for a few seconds. If the locks hold, the final number is the sum of
the counts that the processes report.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ...core import states
from ...core.clock import spoken
from ...core.errors import BalsamError, DatabaseError, DatabaseReadOnly
from ...core.process_table import Holder
from ...core.settings import Settings
from ..store import graph, leases, pieces, tags
from . import connection, directories, filesystem, maintenance, migrations
from .connection import Connection, Database
from .filesystem import failure
from .schema import VISIBLE, sql_list

OK, NOTE, WRONG = "ok", "note", "wrong"

#: Maximum number of files to name.
_MAX_SHOWN = 4

#: The first version of SQLite without the fault of https://sqlite.org/wal.html#walresetbug.
_WAL_RESET_FIXED = (3, 51, 3)


class Finding(NamedTuple):
    """The result of one check."""

    topic: str
    level: str  # OK, NOTE (worth knowing) or WRONG (needs a fix)
    text: str


class Rule(NamedTuple):
    """Rows that should not exist."""

    query: str  # counts them
    text: str  # what they are and what to do; {} is the number of rows
    level: str = WRONG


_HELD = "job.lease IS NOT NULL"
_COUNTS = f"SELECT state, count(*) FROM job WHERE {VISIBLE} GROUP BY state"
_COUNTS_BY_WORKFLOW = f"SELECT workflow, state, count(*) FROM job WHERE {VISIBLE} GROUP BY workflow, state"
_RULES = (
    Rule(
        f"SELECT count(*) FROM job WHERE {_HELD} AND lease NOT IN (SELECT id FROM lease WHERE closed IS NULL)",
        "{} job(s) belong to a launcher that has ended without freeing them. That is a fault of balsam; please report it.",
    ),
    Rule(
        f"SELECT count(*) FROM job WHERE state = '{states.RUNNING}' AND lease IS NULL",
        "{} job(s) are RUNNING, but no launcher has them. `balsam killjob` and then `balsam rerun` put them back.",
    ),
    Rule(
        f"SELECT count(*) FROM job WHERE unfinished_parents <> {graph.UNFINISHED_PARENTS} AND {VISIBLE}",
        "{} job(s) count their unfinished parents wrongly. That is a fault of balsam; please report it. "
        "`balsam killjob` and then `balsam rerun` put them back.",
    ),
    Rule(
        f"""SELECT count(*) FROM job
            WHERE state = '{states.AWAITING_PARENTS}' AND lease IS NULL AND unfinished_parents = 0 AND {VISIBLE}""",
        "{} job(s) wait for parents, although these have all ended. `balsam killjob` and then `balsam rerun` put them back.",
    ),
    Rule(
        f"""SELECT count(*) FROM job WHERE lease IS NULL AND unfinished_parents > 0
            AND state IN ({sql_list((*states.UNPREPARED_STATES, *states.RUNNABLE_STATES))}) AND {VISIBLE}""",
        "{} job(s) are ready to run, although parents have yet to finish. `balsam rerun` lets them wait.",
    ),
    Rule(
        """SELECT count(*) FROM dependency WHERE child NOT IN (SELECT id FROM job)
            OR parent NOT IN (SELECT id FROM job UNION ALL SELECT -id FROM remote_parent)""",
        "{} dependencies name jobs that are not there, which does no harm.",
        NOTE,
    ),
    Rule(
        f"""SELECT count(*) FROM remote_parent WHERE is_followed = 0 AND -id IN (
            SELECT parent FROM dependency JOIN job ON job.id = child WHERE job.state = '{states.AWAITING_PARENTS}')""",
        "{} parent(s) at other sites are not asked for. That is a fault of balsam; please report it.",
    ),
    Rule(
        f"""SELECT count(*) FROM job WHERE state = '{states.RUNNING}'
            AND NOT EXISTS (SELECT 1 FROM run WHERE run.job = job.id AND run.attempt = job.attempt)""",
        "{} job(s) are RUNNING without a record of the run. That is a fault of balsam; please report it.",
    ),
    Rule(
        "SELECT count(*) FROM run WHERE ended IS NULL AND job NOT IN (SELECT id FROM job WHERE lease IS NOT NULL)",
        "{} run(s) have no recorded end, although no launcher has their jobs, which does no harm.",
        NOTE,
    ),
    Rule(
        "SELECT count(*) FROM run WHERE job NOT IN (SELECT id FROM job)",
        "{} run(s) are of jobs that are not there, which does no harm.",
        NOTE,
    ),
    Rule(
        "SELECT count(*) FROM edit WHERE job NOT IN (SELECT id FROM job) OR action NOT IN (SELECT id FROM action)",
        "{} recorded change(s) are of jobs that are not there, which does no harm.",
        NOTE,
    ),
    Rule(
        "SELECT count(*) FROM imported WHERE job NOT IN (SELECT id FROM job) OR source NOT IN (SELECT id FROM source)",
        "{} record(s) of where a job comes from are of jobs that are not there, which does no harm.",
        NOTE,
    ),
    Rule(
        "SELECT count(*) FROM call WHERE context NOT IN (SELECT id FROM call_context)",
        "{} call(s) of executors lack their context and cannot run. That is a fault of balsam; please report it.",
    ),
    Rule(
        "SELECT count(*) FROM call WHERE job NOT IN (SELECT id FROM job)",
        "{} call(s) of executors are of jobs that are not there, which does no harm.",
        NOTE,
    ),
    Rule(
        "SELECT count(*) FROM event WHERE job NOT IN (SELECT id FROM job)",
        "{} event(s) are of jobs that are not there, which does no harm.",
        NOTE,
    ),
    Rule(
        f"""SELECT count(*) FROM (
            SELECT state, jobs FROM state_count WHERE jobs <> 0 EXCEPT {_COUNTS}
            UNION ALL SELECT * FROM ({_COUNTS} EXCEPT SELECT state, jobs FROM state_count WHERE jobs <> 0))""",
        "the number of jobs is wrong for {} state(s) in `balsam ls --by-states`; `balsam db vacuum` counts them anew.",
    ),
    Rule(
        f"""SELECT count(*) FROM (
            SELECT workflow, state, jobs FROM workflow_count EXCEPT {_COUNTS_BY_WORKFLOW}
            UNION ALL SELECT * FROM ({_COUNTS_BY_WORKFLOW} EXCEPT SELECT workflow, state, jobs FROM workflow_count))""",
        "the number of jobs is wrong for {} state(s) of workflows in `balsam status`; `balsam db vacuum` counts them anew.",
    ),
    Rule(
        f"""SELECT count(*) FROM failure
            WHERE jobs <> (SELECT count(*) FROM job WHERE job.failure = failure.id AND {VISIBLE})""",
        "the number of failed jobs is wrong for {} cause(s) in `balsam status`; `balsam db vacuum` counts them anew.",
    ),
    Rule(
        f"""SELECT count(*) FROM job WHERE (state = '{states.FAILED}') <> (failure IS NOT NULL)
            OR failure IS NOT NULL AND failure NOT IN (SELECT id FROM failure)""",
        "{} job(s) have a cause of failure but are not FAILED, or are FAILED without one.",
    ),
)

_WRONG_TAGS = (
    "{} job(s) are not found by the tags that they have, or by ones that they have not. A program of an older version has "
    "changed them; end all of those, and `balsam db vacuum` fixes it."
)


_SALVAGE = "restore a backup, or let `balsam db salvage NEW_DIR` read what can be read"


def look_over(db: Database, *, now_us: int, expiry_s: float, quick: bool = False) -> Iterator[Finding]:
    """Run each check in turn. An unreadable file is a finding, not an exception. Opens separate read transactions."""
    yield _mount(db)
    yield _rights(db.directory)
    yield _sqlite()
    faults = maintenance.damage(db, quick=quick)
    yield (
        Finding("file", WRONG, "; ".join(faults) + ("" if "`balsam" in faults[-1] else f"; {_SALVAGE}"))
        if faults
        else Finding("file", OK, _sound(quick))
    )
    if faults:
        return
    with db.read() as cx:  # nothing is yielded inside: the consumer may be slow, and others need the DB
        schema = Finding("schema", OK, f"version {migrations.version_of(cx)}")
        rows = list(_broken_rules(cx)) or [Finding("rows", OK, "jobs, dependencies, tags, events and counts agree")]
        holders = [Finding("large write", NOTE if one.is_abandoned else OK, one.text) for one in pieces.described(cx)]
        holders += _leases(cx, now_us, expiry_s)
        ahead = _furthest_ahead(cx)
    yield from (schema, *rows, *holders, *_clocks(db, ahead))


def _mount(db: Database) -> Finding:
    mount = filesystem.mount_of(db.directory)
    how = "as on a local disk" if db.access == filesystem.LOCAL else "in sessions, by one process at a time"
    text = f"{mount}, opened {how}"
    if db.access == filesystem.SHARED and mount.access == filesystem.LOCAL:
        return Finding("access", NOTE, f"{text}: needed only if other hosts reach this directory too, and slower if not")
    if db.access != mount.access:
        return Finding("access", WRONG, f"{text}, which would lose jobs; `balsam init --access shared` changes that")
    return Finding("access", OK, text)


def _rights(directory: str) -> Finding:
    found = directories.readable_by_others(directory)
    if not found:
        return Finding(
            "rights", OK, f"only you can read {connection.FILE_NAME} and job scripts; data/ and log/ are as umask was"
        )
    shown = ", ".join(found[:_MAX_SHOWN]) + (f" and {len(found) - _MAX_SHOWN} more" if len(found) > _MAX_SHOWN else "")
    text = f"others can read {shown}, and in them the values of environment variables"
    if directories.is_recorded_shared_read(directory):
        return Finding("rights", OK, f"{text}, as `balsam init --shared-read` allows")
    return Finding(
        "rights",
        NOTE,
        f"{text}; `balsam init --no-shared-read {directory}` takes that away, --shared-read states that it shall be so",
    )


def _sqlite() -> Finding:
    version = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info >= _WAL_RESET_FIXED:
        return Finding("sqlite", OK, f"version {version}")
    return Finding(
        "sqlite",
        NOTE,
        f"version {version} has a rare fault where two processes write and checkpoint at one moment (fixed in 3.51.3, see "
        "https://sqlite.org/wal.html#walresetbug); balsam leaves checkpoints to one process, which avoids it",
    )


def _sound(quick: bool) -> str:
    return "looks sound (quick check)" if quick else "sound, and its indexes agree with its tables"


def _broken_rules(cx: sqlite3.Connection) -> Iterator[Finding]:
    for rule in _RULES:
        rows = cx.execute(rule.query).fetchone()[0]
        if rows:
            yield Finding("rows", rule.level, rule.text.format(rows))
    tagged = tags.differing(cx)
    if tagged:
        yield Finding("rows", WRONG, _WRONG_TAGS.format(tagged))


def _leases(cx: sqlite3.Connection, now_us: int, expiry_s: float) -> Iterator[Finding]:
    for lease in leases.open_leases(cx):
        text = leases.described(cx, lease, now_us, expiry_s)
        if leases.is_dead(lease, expiry_s):
            yield Finding("lease", NOTE, f"{text}: it is dead, and the next launcher will free its jobs")
        elif leases.is_silent(lease, now_us, expiry_s):
            yield Finding(
                "lease",
                NOTE,
                f"{text}: it is dead, or the clocks differ; the next launcher watches it for {expiry_s:g} s, and frees its "
                "jobs if it is dead",
            )
        else:
            yield Finding("lease", OK, text)


def _furthest_ahead(cx: sqlite3.Connection) -> list[tuple[str, float]]:
    """Return other hosts with an open lease, and for how many seconds the last heartbeat is ahead of this host's clock.

    A late heartbeat proves nothing: it may be an old one.
    """
    beats = [(lease.holder.host, lease.heartbeat_us / 1e6) for lease in leases.open_leases(cx) if not lease.holder.is_here()]
    now_s = time.time()
    newest = {host: max(beat for other, beat in beats if other == host) - now_s for host, _ in beats}
    return [(host, seconds) for host, seconds in newest.items() if seconds > 0]


def _clocks(db: Database, ahead: list[tuple[str, float]]) -> Iterator[Finding]:
    """Compare the clocks of other hosts and of the file system's server with this host's."""
    server = filesystem.clock_ahead_s(db.directory) if db.access == filesystem.SHARED else None
    if server is not None:
        yield compared_clock("the file system's server", server)
    for host, seconds in ahead:
        if seconds > leases.CLOCKS_AGREE_S:
            yield compared_clock(host, seconds)


def compared_clock(who: str, ahead_s: float, unsure_s: float = 0.0) -> Finding:
    """Return the finding about a clock that is this number of seconds ahead of this host's."""
    if abs(ahead_s) <= leases.CLOCKS_AGREE_S + unsure_s:
        return Finding("clocks", OK, f"the clock of {who} agrees with this host's")
    side = "ahead of" if ahead_s > 0 else "behind"
    return Finding(
        "clocks",
        NOTE,
        f"the clock of {who} is {spoken(abs(ahead_s))} {side} this host's: times in histories and ages of files mislead. No "
        "job is lost by it, as launchers watch heartbeats by their own clocks",
    )


def refused(exc: BalsamError) -> Finding:
    """Return the finding about a DB that cannot even be opened."""
    return Finding("access", WRONG, str(exc).replace("\n", " "))


_PREFIX = "selftest-"
_CALLED_OFF = "called-off"
#: Seconds within which all testers must have started. Python starts slowly from a parallel file system, and batch steps queue.
GATHERING_S = 40.0


class TesterReport(NamedTuple):
    """The report of one tester."""

    name: str
    host: str
    pid_namespace: str
    commits: int
    slowest_s: float  # its slowest transaction, including waiting
    met_s: float  # when it saw that all had started, by its host's clock

    def as_text(self) -> str:
        return json.dumps(self._asdict())

    @classmethod
    def parsed(cls, text: str) -> TesterReport | None:
        """Parse the output of a tester, ignoring lines of login shells or batch systems; return None if it has no report."""
        for line in reversed(text.splitlines()):
            try:
                return cls(**json.loads(line))
            except (ValueError, TypeError, RecursionError):
                continue
        return None


@contextmanager
def scratch(db: Database) -> Iterator[str]:
    """Create a scratch DB beside `db`, opened in the same way; yield its directory and remove it at the end."""
    try:
        directory = tempfile.mkdtemp(prefix=_PREFIX, dir=db.directory)
    except OSError as exc:
        kind = DatabaseReadOnly if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS) else DatabaseError
        raise kind(f"The DB {db.directory} cannot be written: {failure(exc, db.directory)}") from exc
    try:
        made = directories.set_up(directory, db.access)
        with made.write() as cx:
            cx.execute("CREATE TABLE tester (name TEXT PRIMARY KEY)")
            cx.execute("CREATE TABLE tally (tester TEXT, n INTEGER)")
            cx.execute("CREATE TABLE total (n INTEGER)")
            cx.execute("INSERT INTO total VALUES (0)")
        made.close()
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def call_off(directory: str) -> None:
    """Let testers that wait for others stop."""
    try:
        os.close(os.open(os.path.join(directory, _CALLED_OFF), os.O_WRONLY | os.O_CREAT, 0o644))
    except OSError:  # then they stop when their time is over
        pass


def count(directory: str, name: str, testers: int, seconds: float) -> TesterReport:
    """Run one of `testers` processes: wait for the others, then count for `seconds`.

    Raises:
        DatabaseError: the scratch DB is missing, the others did not start, or the DB could not be used.
    """
    give_up = time.monotonic() + GATHERING_S

    def is_over() -> bool:
        return time.monotonic() > give_up or os.path.exists(os.path.join(directory, _CALLED_OFF))

    _wait(lambda: directories.is_db(directory), is_over, f"The scratch DB {directory} is not there.")
    db = directories.open_database(directory, Settings.load(os.path.dirname(directory)))
    with db.write() as cx:
        cx.execute("INSERT INTO tester VALUES (?)", (name,))
    _wait(lambda: _number_of(db) >= testers, is_over, f"Not all of the {testers} testers came.")
    met_s = time.time()
    done, slowest_s, started = 0, 0.0, time.monotonic()
    until = started + seconds
    while started < until:
        with db.write() as cx:
            _add_one(cx, name)
        done, ended = done + 1, time.monotonic()
        slowest_s, started = max(slowest_s, ended - started), ended
    db.close()
    me = Holder.current()
    return TesterReport(name, me.host, me.pid_namespace, done, round(slowest_s, 3), round(met_s, 3))


def _wait(condition: Callable[[], bool], is_over: Callable[[], bool], otherwise: str) -> None:
    while not condition():
        if is_over():
            raise DatabaseError(otherwise)
        time.sleep(0.1)


def _number_of(db: Database) -> int:
    with db.read() as cx:
        return int(cx.execute("SELECT count(*) FROM tester").fetchone()[0])


def _add_one(cx: Connection, name: str) -> None:
    n = cx.execute("SELECT n FROM total").fetchone()[0] + 1
    cx.execute("UPDATE total SET n = ?", (n,))
    cx.execute("INSERT INTO tally VALUES (?, ?)", (name, n))


def faults(directory: str, tallies: Sequence[TesterReport]) -> list[str]:
    """Return which results of the testers are missing from the scratch DB, or in it twice; [] if none."""
    db = directories.open_database(directory)
    expected = sum(tally.commits for tally in tallies)
    with db.session():
        try:
            damage = [str(row[0]) for row in db.execute_outside_transaction("PRAGMA integrity_check(3)") if row[0] != "ok"]
            with db.read() as cx:
                found = _differences(cx, tallies, expected)
        except (DatabaseError, sqlite3.Error) as exc:
            return [f"the scratch DB cannot be read any more: {exc}"]
    db.close()
    return [*(f"the scratch DB is damaged: {text}" for text in damage), *found]


def _differences(cx: Connection, tallies: Sequence[TesterReport], expected: int) -> list[str]:
    total = cx.execute("SELECT n FROM total").fetchone()[0]
    differences = [] if total == expected else [f"{expected} were counted, but the number is {total}"]
    for tally in tallies:
        rows = cx.execute("SELECT count(*) FROM tally WHERE tester = ?", (tally.name,)).fetchone()[0]
        if rows != tally.commits:
            differences.append(f"{tally.name} on {tally.host} committed {tally.commits} rows, {rows} of them are there")
    twice = cx.execute("SELECT count(*) - count(DISTINCT n) FROM tally").fetchone()[0]
    return [*differences, f"{twice} numbers were given twice"] if twice else differences
