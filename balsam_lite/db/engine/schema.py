"""The tables and indexes of the newest schema version, as SQLite reads them.

Every index serves a query that is named beside it; a test asks SQLite for the plan of each. Only SQL that SQLite 3.31
supports is used (no RETURNING, no STRICT).
"""

from __future__ import annotations

from typing import Any

from ...core import field_specs, states

VERSION = 8

_SQL_TYPE = {
    "count": "INTEGER",
    "minutes": "INTEGER",
    "count0": "INTEGER",
    "integer": "INTEGER",
    "flag": "INTEGER",
    "id": "INTEGER",
}


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    return "'" + value.replace("'", "''") + "'" if isinstance(value, str) else repr(value)


def _columns(fields: tuple[field_specs.Field, ...]) -> str:
    lines = []
    for field in fields:
        # gpus_per_rank has no type, so that a whole number takes no byte; SQLite compares 1 and 1.0 as equal.
        kind = "" if field.kind == "amount" else _SQL_TYPE.get(field.kind, "TEXT")
        rule = "" if field.default is None else f"NOT NULL DEFAULT {_literal(field.default)}"
        lines.append(f"    {field.name} {kind} {rule}".rstrip())
    return ",\n".join(lines)


def sql_list(words: tuple[str, ...]) -> str:
    """Return `'A', 'B'`, for an `IN (…)` of constants. SQLite uses a partial index only if the query repeats its terms."""
    return ", ".join(map(_literal, words))


#: A job that a launcher may take: no launcher holds it, it is not held back (`start_after`), and its `run_when` holds.
FREE = "lease IS NULL AND start_after IS NULL AND unfinished_parents = 0"
#: A job that was running when this many launchers died is a suspect, and runs apart from other jobs; see `store.suspects`.
SUSPECT_DEATHS = 2
#: A free job that may run beside others.
UNSUSPECTED = f"{FREE} AND launcher_deaths < {SUSPECT_DEATHS}"
#: A job that a launcher may start: it is prepared.
RUNNABLE = f"{UNSUSPECTED} AND state IN ({sql_list(states.RUNNABLE_STATES)})"
#: A job that a launcher may prepare, and start at once if nothing has to be prepared.
UNPREPARED = f"{UNSUSPECTED} AND state IN ({sql_list(states.UNPREPARED_STATES)})"
#: A job that a launcher may prepare, start or process the result of, but only apart from other jobs.
SUSPECT = (
    f"lease IS NULL AND start_after IS NULL AND launcher_deaths >= {SUSPECT_DEATHS} "
    f"AND (unfinished_parents = 0 AND state IN ({sql_list((*states.RUNNABLE_STATES, *states.UNPREPARED_STATES))}) "
    f"OR state IN ({sql_list(states.UNSETTLED_STATES)}))"
)
#: A job that is held back until a time.
HELD_BACK = "start_after IS NOT NULL"
#: From here on (the year 9892) `start_after` is not a time: the job waits for the end of the large write with the added number.
LARGE_WRITE_HOLD = 250_000_000_000_000_000
#: A job whose working directory the user chose, so that it may be shared. All other directory names end in the job's id.
OWN_WORKDIR = "substr(workdir, -8) <> substr(job_id, 1, 8)"
#: A job whose program has ended and whose holder is gone: a step has to decide what becomes of it.
UNSETTLED = f"lease IS NULL AND launcher_deaths < {SUSPECT_DEATHS} AND state IN ({sql_list(states.UNSETTLED_STATES)})"
#: A job whose name could also be a number or a prefix of an id.
HEX_NAME = "name > '' AND name NOT GLOB '*[^0-9A-Fa-f-]*'"
#: A job that no other job may equal in its key.
HAS_KEY = "unique_key IS NOT NULL"
#: A job that is FAILED; its `failure` is the number of the cause.
FAILED_FOR_CAUSE = "failure IS NOT NULL"
#: A job that is planned for a launch.
RESERVED = "queued_launch_id IS NOT NULL"

_ORDER = f"{', '.join(field_specs.SHAPE_FIELDS)}, priority DESC, wall_time_minutes DESC"

#: The key in an event's data under which the store keeps what a user or a hook passed with a state change.
PAYLOAD = "payload"


def visible(number: str = "job.id") -> str:
    """Return the condition that the job with this number is not still being added (see `store.hidden`).

    The first half names no row, so SQLite evaluates it once per statement, and skips the second half while nothing is hidden.
    """
    hiding = f"SELECT 1 FROM large_write WHERE {number} BETWEEN large_write.first AND large_write.last"
    return f"(NOT EXISTS (SELECT 1 FROM large_write) OR NOT EXISTS ({hiding}))"


#: A job that is not still being added.
VISIBLE = visible()

#: Changes of many jobs, and the parts still to do; see `store.pieces`. `first` and `last` of a part bound the numbers in its
#: list `jobs`; those of an insert bound the numbers of its jobs, which are hidden. `has_keys`: some of these have a unique_key.
LARGE_WRITES = (
    """CREATE TABLE large_write (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    host TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    touched INTEGER NOT NULL,
    total INTEGER NOT NULL,
    done INTEGER NOT NULL DEFAULT 0,
    counted TEXT NOT NULL DEFAULT '{}',
    first INTEGER NOT NULL DEFAULT 0,
    last INTEGER NOT NULL DEFAULT 0,
    has_keys INTEGER NOT NULL DEFAULT 0
)""",
    """CREATE TABLE large_write_part (
    id INTEGER PRIMARY KEY,
    large_write INTEGER NOT NULL,
    action TEXT NOT NULL,
    parameters TEXT NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    jobs TEXT NOT NULL
)""",
)

#: `failure`, which is no field, is a column since version 7: ALTER TABLE puts later fields after it.
_FIELDS_OF_VERSION_6, _LATER_FIELDS = field_specs.JOB_FIELDS[:-1], field_specs.JOB_FIELDS[-1:]

#: Dependencies between sites; see `store.remote_parents`.
REMOTE_PARENTS = (
    # Other sites, by the identity of their DBs. `host`, `path` and `balsam` are their address as seen from this host; an empty
    # path: it cannot be asked from here. `asked` is when a process last tried, `answered` when it last heard from the site.
    """CREATE TABLE remote_site (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    db_id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    host TEXT NOT NULL DEFAULT '',
    path TEXT NOT NULL DEFAULT '',
    balsam TEXT NOT NULL DEFAULT 'balsam',
    asked INTEGER NOT NULL DEFAULT 0,
    answered INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT ''
)""",
    # Jobs of other sites that jobs here wait for: the state there as last seen. It does not count as an end while `pending`
    # tells why. `directory` has the files, `copied` the patterns of those that were copied from the site.
    """CREATE TABLE remote_parent (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    site INTEGER NOT NULL,
    number INTEGER NOT NULL,
    job_id TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    pending TEXT,
    directory TEXT NOT NULL DEFAULT '',
    copied TEXT NOT NULL DEFAULT '[]',
    is_followed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (site, number)
)""",
    # Jobs here that jobs of other sites wait for, since when, what that site was told last, and when.
    """CREATE TABLE watched_job (
    site INTEGER NOT NULL,
    job INTEGER NOT NULL,
    since INTEGER NOT NULL,
    told TEXT NOT NULL DEFAULT '',
    told_at INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (site, job)
) WITHOUT ROWID""",
)

TABLES = (
    f"""CREATE TABLE job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL,
{_columns(_FIELDS_OF_VERSION_6)},
    failure INTEGER,
{_columns(_LATER_FIELDS)}
)""",
    f"""CREATE TABLE app (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
{_columns(field_specs.APP_FIELDS)}
)""",
    """CREATE TABLE dependency (
    parent INTEGER NOT NULL,
    child INTEGER NOT NULL,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID""",
    # A parent below 0 is a job of another site: the row of `remote_parent` with the opposite number.
    *REMOTE_PARENTS,
    # Append-only. A job's creation is no row here; the job's columns `created` and `origin` record it: see `history`.
    """CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    time INTEGER NOT NULL,
    from_state TEXT NOT NULL,
    to_state TEXT NOT NULL,
    message TEXT NOT NULL DEFAULT '',
    data TEXT
)""",
    """CREATE VIEW history AS
    SELECT id AS job, 0 AS id, created AS time, '' AS from_state, 'CREATED' AS to_state, origin AS message, NULL AS data
    FROM job
    UNION ALL SELECT job, id, time, from_state, to_state, message, data FROM event""",
    # One row per attempt; `db.query.runs.Run` has the meaning of the columns. `ended` is the time of the event that leaves
    # RUNNING, unless the job was killed before.
    """CREATE TABLE run (
    job INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    lease INTEGER,
    nodes TEXT NOT NULL DEFAULT '',
    gpus TEXT NOT NULL DEFAULT '',
    cpus TEXT NOT NULL DEFAULT '',
    started INTEGER,
    ended INTEGER,
    return_code INTEGER,
    user_us INTEGER,
    system_us INTEGER,
    max_memory INTEGER,
    cause TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (job, attempt)
) WITHOUT ROWID""",
    # One row per launcher or service, kept forever; AUTOINCREMENT, so that no number is used twice. `environment` is JSON: see
    # `launcher.environment`.
    """CREATE TABLE lease (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    host TEXT NOT NULL,
    pid_namespace TEXT NOT NULL,
    pid INTEGER NOT NULL,
    started TEXT NOT NULL,
    scheduler_id TEXT NOT NULL DEFAULT '',
    opened INTEGER NOT NULL,
    heartbeat INTEGER NOT NULL,
    closed INTEGER,
    end_reason TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT '',
    taken_by TEXT NOT NULL DEFAULT '',
    environment TEXT NOT NULL DEFAULT ''
)""",
    # The first columns are those that `submit-launch` prints. `absent` is when the scheduler's answers began to omit the batch
    # job; once it counts as over for that reason (`ended`), when they last did. NULL if the scheduler knows it.
    # `polled` is when it last answered; `reason` and `expected_start` are of then.
    """CREATE TABLE batch_job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    scheduler_id TEXT NOT NULL DEFAULT '',
    scheduler TEXT NOT NULL DEFAULT '',
    project TEXT NOT NULL DEFAULT '',
    queue TEXT NOT NULL DEFAULT '',
    nodes INTEGER NOT NULL DEFAULT 0,
    wall_minutes INTEGER NOT NULL DEFAULT 0,
    job_mode TEXT NOT NULL DEFAULT '',
    wf_filter TEXT NOT NULL DEFAULT '',
    filter_tags TEXT NOT NULL DEFAULT '{}',
    sched_flags TEXT NOT NULL DEFAULT '',
    command TEXT NOT NULL DEFAULT '',
    state TEXT NOT NULL DEFAULT 'pending-submission',
    reason TEXT NOT NULL DEFAULT '',
    prescheduled_only INTEGER NOT NULL DEFAULT 0,
    from_balsam INTEGER NOT NULL DEFAULT 1,
    created INTEGER NOT NULL DEFAULT 0,
    started INTEGER,
    ended INTEGER,
    exit_code INTEGER,
    log TEXT NOT NULL DEFAULT '',
    partitions TEXT NOT NULL DEFAULT '[]',
    optional_params TEXT NOT NULL DEFAULT '{}',
    absent INTEGER,
    cluster TEXT NOT NULL DEFAULT '',
    tries INTEGER NOT NULL DEFAULT 1,
    expected_start INTEGER,
    polled INTEGER,
    environment TEXT NOT NULL DEFAULT '{}'
)""",
    # Facts about the file itself: `id` is the identity of this DB, which a copy does not share.
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    # The tags of all jobs, stored redundantly so that they can be looked up; `store.tags` keeps them in sync with the job.
    "CREATE TABLE tag (id INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (key, value))",
    "CREATE TABLE job_tag (tag INTEGER NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (tag, job)) WITHOUT ROWID",
    # `ls --by-states` reads fourteen numbers instead of counting a million rows. `store.counters` maintains them, in the
    # transaction that changes a state; triggers would do so too, but reduce the rate of inserts by 40 %.
    "CREATE TABLE state_count (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) WITHOUT ROWID",
    # The same by workflow; a row with no job is deleted. The jobs of an insert that is not complete are counted apart.
    """CREATE TABLE workflow_count (
    workflow TEXT NOT NULL,
    state TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (workflow, state)
) WITHOUT ROWID""",
    """CREATE TABLE hidden_count (
    large_write INTEGER NOT NULL,
    workflow TEXT NOT NULL,
    state TEXT NOT NULL,
    jobs INTEGER NOT NULL,
    PRIMARY KEY (large_write, workflow, state)
) WITHOUT ROWID""",
    # The causes of failures (see `core.causes`) and how many jobs are FAILED for each: `job.failure` is a number here.
    "CREATE TABLE failure (id INTEGER PRIMARY KEY, cause TEXT NOT NULL UNIQUE, jobs INTEGER NOT NULL)",
    # What users and their scripts did, one row for each call: `fields` has the new values as JSON, `undone` is the action that
    # took it back.
    """CREATE TABLE action (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    author INTEGER NOT NULL,
    kind TEXT NOT NULL,
    jobs INTEGER NOT NULL DEFAULT 0,
    fields TEXT NOT NULL DEFAULT '{}',
    undone INTEGER
)""",
    """CREATE TABLE author (
    id INTEGER PRIMARY KEY,
    user TEXT NOT NULL,
    host TEXT NOT NULL,
    command TEXT NOT NULL,
    UNIQUE (user, host, command)
)""",
    # What an action changed in a job: a field, or a key of one that is an object (`data.x`), and the value before it. If many
    # jobs had the same long value, that is in `edit_text`, of which `shared` is the number.
    """CREATE TABLE edit (
    job INTEGER NOT NULL,
    action INTEGER NOT NULL,
    field TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    old,
    shared INTEGER,
    PRIMARY KEY (job, action, field)
) WITHOUT ROWID""",
    "CREATE TABLE edit_text (id INTEGER PRIMARY KEY, text TEXT NOT NULL)",
    # Removed jobs: their numbers and, compressed, all rows about them; see `store.trash`.
    """CREATE TABLE trash (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    action INTEGER NOT NULL,
    time INTEGER NOT NULL,
    jobs TEXT NOT NULL,
    content BLOB NOT NULL
)""",
    # Where jobs come from that were merged in with their history, a row for each import; and these jobs, each with the number
    # that it has there, and its UUID there if that differs.
    """CREATE TABLE source (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    file TEXT NOT NULL DEFAULT '',
    host TEXT NOT NULL DEFAULT '',
    directory TEXT NOT NULL DEFAULT '',
    db TEXT NOT NULL DEFAULT '',
    written INTEGER
)""",
    """CREATE TABLE imported (
    job INTEGER PRIMARY KEY,
    source INTEGER NOT NULL,
    number INTEGER NOT NULL,
    job_id TEXT
)""",
    # The calls of executors, one row each (see `store.calls`): what the function returned or raised is `result`: a BLOB or,
    # where it is large, TEXT: the path of a file below `data/`.
    """CREATE TABLE call (
    job INTEGER PRIMARY KEY,
    context INTEGER NOT NULL,
    payload BLOB NOT NULL,
    result
)""",
    # What many calls have in common: `pyapps.run_call.CallContext`.
    "CREATE TABLE call_context (id INTEGER PRIMARY KEY, content BLOB NOT NULL UNIQUE)",
    *LARGE_WRITES,
)

INDEXES = (
    # A prefix of a job id. Unique, so that the short id names one job and one working directory.
    "CREATE UNIQUE INDEX job_short_id ON job (substr(job_id, 1, 8))",
    # claim: the next job of a shape, and the same with a workflow filter. They contain waiting jobs only, so that finished ones
    # cost nothing, and keep prepared jobs apart, so that they are found even if a million jobs are unprepared.
    f"CREATE INDEX job_unprepared ON job ({_ORDER}) WHERE {UNPREPARED}",
    f"CREATE INDEX job_unprepared_of_workflow ON job (workflow, {_ORDER}) WHERE {UNPREPARED}",
    f"CREATE INDEX job_runnable ON job ({_ORDER}) WHERE {RUNNABLE}",
    f"CREATE INDEX job_runnable_of_workflow ON job (workflow, {_ORDER}) WHERE {RUNNABLE}",
    # the same for jobs that the service has planned for a launch, which that launch takes first.
    f"CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, {_ORDER}) WHERE {UNPREPARED} AND {RESERVED}",
    f"CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, {_ORDER}) WHERE {RUNNABLE} AND {RESERVED}",
    # the jobs that run apart, those present at the most launcher deaths first.
    f"CREATE INDEX job_suspect ON job (launcher_deaths DESC) WHERE {SUSPECT}",
    f"CREATE INDEX job_unsettled ON job (state) WHERE {UNSETTLED}",
    # the held-back jobs whose time has come, and the next time at which one is due.
    f"CREATE INDEX job_start_after ON job (start_after) WHERE {HELD_BACK}",
    # the job with a unique_key.
    f"CREATE UNIQUE INDEX job_unique_key ON job (unique_key) WHERE {HAS_KEY}",
    # jobs that share a working directory.
    f"CREATE INDEX job_own_workdir ON job (workdir) WHERE {OWN_WORKDIR}",
    # whether a word that could be an id is also the name of a job.
    f"CREATE INDEX job_hex_name ON job (name) WHERE {HEX_NAME}",
    # what a launcher holds: kills, reaping.
    "CREATE INDEX job_lease ON job (lease) WHERE lease IS NOT NULL",
    "CREATE INDEX job_state ON job (state)",
    "CREATE INDEX job_workflow ON job (workflow)",
    # the jobs that failed for one cause.
    f"CREATE INDEX job_failure ON job (failure) WHERE {FAILED_FOR_CAUSE}",
    "CREATE INDEX job_queued_launch ON job (queued_launch_id) WHERE queued_launch_id IS NOT NULL",
    "CREATE UNIQUE INDEX app_name ON app (name)",
    "CREATE INDEX dependency_child ON dependency (child, parent)",
    # the parents at a site whose states are asked for.
    "CREATE INDEX remote_parent_followed ON remote_parent (site) WHERE is_followed = 1",
    "CREATE INDEX event_job ON event (job)",
    # the newest events, and those since a moment; in pages.
    "CREATE INDEX event_time ON event (time)",
    # the removed jobs of an action, and those that were removed long ago.
    "CREATE INDEX trash_action ON trash (action)",
    "CREATE INDEX trash_time ON trash (time)",
    # the jobs that were given another UUID when they were merged in.
    "CREATE INDEX imported_job_id ON imported (job_id) WHERE job_id IS NOT NULL",
    "CREATE INDEX lease_open ON lease (id) WHERE closed IS NULL",
    "CREATE INDEX batch_job_scheduler_id ON batch_job (scheduler_id)",
    # the next part of a large write; the parts that may name a job.
    "CREATE INDEX large_write_part_of ON large_write_part (large_write)",
    "CREATE INDEX large_write_part_bounds ON large_write_part (first, last)",
)

ROWS = (
    f"INSERT INTO state_count VALUES {', '.join(f'({_literal(s)}, 0)' for s in states.STATES)}",
    "INSERT INTO meta VALUES ('id', lower(hex(randomblob(16))))",
)

STATEMENTS = TABLES + INDEXES + ROWS
