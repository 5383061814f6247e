"""Migrate a DB from one schema version to the next: an ordered list of steps, each in the transaction that records it.

To change the schema: raise `schema.VERSION`, append to `STEPS` the statements that lead there from the previous version, and
update `schema` to describe the newest version. A test compares a migrated file with a fresh one.
"""

from __future__ import annotations

import sqlite3

from ...core.errors import NotABalsamDB, SchemaMismatch
from . import schema

_BY_SHAPE = "num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC"
_UNPREPARED = "lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN')"
_RUNNABLE = "lease IS NULL AND state IN ('PREPROCESSED', 'RESTART_READY')"
_RESERVED = "queued_launch_id IS NOT NULL"
_FREE = "lease IS NULL AND start_after IS NULL AND unfinished_parents = 0"
_FREE_UNPREPARED = f"{_FREE} AND state IN ('CREATED', 'READY', 'STAGED_IN')"
_FREE_RUNNABLE = f"{_FREE} AND state IN ('PREPROCESSED', 'RESTART_READY')"
_UNSUSPECTED_UNPREPARED = f"{_FREE} AND launcher_deaths < 2 AND state IN ('CREATED', 'READY', 'STAGED_IN')"
_UNSUSPECTED_RUNNABLE = f"{_FREE} AND launcher_deaths < 2 AND state IN ('PREPROCESSED', 'RESTART_READY')"
_SUSPECT = (
    "lease IS NULL AND start_after IS NULL AND launcher_deaths >= 2 AND (unfinished_parents = 0 "
    "AND state IN ('PREPROCESSED', 'RESTART_READY', 'CREATED', 'READY', 'STAGED_IN') "
    "OR state IN ('RUN_DONE', 'POSTPROCESSED', 'RUN_ERROR', 'RUN_TIMEOUT'))"
)
_WAITED = (
    "job.lease IS NULL AND job.unfinished_parents > 0 "
    "AND job.state IN ('CREATED', 'READY', 'STAGED_IN', 'PREPROCESSED', 'RESTART_READY')"
)
_NOW = "CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
#: From version 5 on a held parent counts as unfinished, and a child that has not started waits again for a parent that was
#: reset, or fails with one that has failed.
_PARENTS_COUNTED_ANEW = (
    """UPDATE job SET unfinished_parents = wait_for_parents * (
            SELECT count(*) FROM dependency d JOIN job p ON p.id = d.parent
            WHERE d.child = job.id AND (p.state <> 'JOB_FINISHED' OR p.lease IS NOT NULL))
        WHERE id IN (SELECT child FROM dependency)""",
    f"""INSERT INTO event (job, time, from_state, to_state, message)
        SELECT id, {_NOW}, state, 'AWAITING_PARENTS', 'A parent was put back' FROM job WHERE {_WAITED}""",
    f"""UPDATE state_count SET jobs = jobs - (SELECT count(*) FROM job WHERE {_WAITED} AND job.state = state_count.state)""",
    f"""UPDATE state_count SET jobs = jobs + (SELECT count(*) FROM job WHERE {_WAITED}) WHERE state = 'AWAITING_PARENTS'""",
    f"UPDATE job SET state = 'AWAITING_PARENTS' WHERE {_WAITED}",
    """CREATE TEMP TABLE doomed AS
        WITH RECURSIVE below (id, parent) AS (
            SELECT job.id, d.parent FROM job JOIN dependency d ON d.child = job.id JOIN job p ON p.id = d.parent
            WHERE job.state = 'AWAITING_PARENTS' AND job.wait_for_parents
                AND p.state IN ('FAILED', 'USER_KILLED') AND p.lease IS NULL
            UNION SELECT job.id, d.parent FROM below JOIN dependency d ON d.parent = below.id JOIN job ON job.id = d.child
            WHERE job.state = 'AWAITING_PARENTS' AND job.wait_for_parents)
        SELECT id, min(parent) AS parent FROM below GROUP BY id""",
    f"""INSERT INTO event (job, time, from_state, to_state, message, data)
        SELECT id, {_NOW}, 'AWAITING_PARENTS', 'FAILED', 'One or more parent jobs failed', json_object('parent', parent)
        FROM doomed""",
    "UPDATE state_count SET jobs = jobs - (SELECT count(*) FROM doomed) WHERE state = 'AWAITING_PARENTS'",
    "UPDATE state_count SET jobs = jobs + (SELECT count(*) FROM doomed) WHERE state = 'FAILED'",
    "UPDATE job SET state = 'FAILED' WHERE id IN (SELECT id FROM doomed)",
    "DROP TABLE doomed",
)

_VISIBLE = "NOT EXISTS (SELECT 1 FROM large_write WHERE job.id BETWEEN large_write.first AND large_write.last)"
_SIGNALS = " ".join(
    f"WHEN -{number} THEN ' ({name})'"
    for number, name in (
        (1, "SIGHUP"), (2, "SIGINT"), (3, "SIGQUIT"), (4, "SIGILL"), (6, "SIGABRT"), (7, "SIGBUS"), (8, "SIGFPE"),
        (9, "SIGKILL"), (10, "SIGUSR1"), (11, "SIGSEGV"), (12, "SIGUSR2"), (13, "SIGPIPE"), (14, "SIGALRM"), (15, "SIGTERM"),
        (24, "SIGXCPU"), (25, "SIGXFSZ"), (31, "SIGSYS"),
    )
)  # fmt: skip
_EXIT_CODE = f"""CASE WHEN job.return_code < 0
    THEN 'signal ' || -job.return_code || CASE job.return_code {_SIGNALS} ELSE '' END
    WHEN job.return_code > 0 THEN 'exit code ' || job.return_code ELSE 'unknown' END"""
#: Before version 7 the message of a job's last event was all that told why it failed.
CAUSES_OF_FAILURES = (
    "CREATE TEMP TABLE failed (job INTEGER PRIMARY KEY, cause TEXT NOT NULL)",
    f"""INSERT INTO failed
        SELECT job.id, CASE
            WHEN e.message LIKE 'A parent job was removed%' THEN 'parent removed'
            WHEN e.message LIKE 'A parent was lost%' THEN 'parent lost with a damaged DB'
            WHEN json_extract(e.data, '$.parent') IS NOT NULL THEN 'parent failed'
            WHEN e.message LIKE 'Restarted % times already%' THEN 'restart limit'
            WHEN e.message LIKE 'Its launcher died % times%' THEN 'its launcher died while it ran alone'
            WHEN e.message LIKE 'User mutated state%' THEN 'set by a user'
            WHEN e.message LIKE 'The preprocess script %' THEN 'preprocess failed'
            WHEN e.message LIKE 'The postprocess script %' THEN 'postprocess failed'
            WHEN e.from_state = 'RUN_TIMEOUT' THEN 'told to stop'
            WHEN e.from_state = 'RUN_ERROR' THEN {_EXIT_CODE}
            WHEN e.from_state IN ('CREATED', 'READY') THEN 'stage-in failed'
            WHEN e.from_state IN ('RUN_DONE', 'POSTPROCESSED') THEN 'stage-out failed'
            ELSE 'unknown' END
        FROM job LEFT JOIN event e ON e.id = (SELECT max(id) FROM event WHERE event.job = job.id)
        WHERE job.state = 'FAILED' AND job.failure IS NULL""",
    "INSERT OR IGNORE INTO failure (cause, jobs) SELECT DISTINCT cause, 0 FROM failed ORDER BY cause",
    """UPDATE job SET failure = (SELECT failure.id FROM failed JOIN failure USING (cause) WHERE failed.job = job.id)
        WHERE id IN (SELECT job FROM failed)""",
    f"UPDATE failure SET jobs = (SELECT count(*) FROM job WHERE job.failure = failure.id AND {_VISIBLE})",
    "DROP TABLE failed",
)
#: Up to version 6 the events had what is known of runs: the one to RUNNING the lease, the one that ends it start and return
#: code; a start of 0 means that it never ran, and its attempt number was used again. The last run has the job's number.
RUNS_FROM_EVENTS = (
    """INSERT INTO run (job, attempt, lease, started, ended, return_code, cause)
        SELECT begin.job,
            job.attempt - (
                SELECT count(*) FILTER (WHERE to_state = 'RUNNING')
                    - count(*) FILTER (WHERE from_state = 'RUNNING' AND data = '{"started":0}')
                FROM event WHERE event.job = begin.job AND event.id > coalesce(finish.id, begin.id)),
            json_extract(begin.data, '$.lease'), json_extract(finish.data, '$.started'), finish.time,
            CASE finish.to_state WHEN 'RUN_DONE' THEN 0 ELSE json_extract(finish.data, '$.return_code') END,
            CASE WHEN finish.to_state = 'USER_KILLED' THEN 'killed'
                WHEN finish.to_state = 'RUN_TIMEOUT' OR finish.message LIKE 'Told to stop at %' THEN 'told to stop'
                WHEN finish.to_state NOT IN ('RESTART_READY', 'FAILED') OR finish.id IS NULL THEN ''
                WHEN finish.message LIKE '% is gone%' THEN 'launcher died' WHEN finish.message LIKE 'Lost %' THEN 'node lost'
                ELSE 'unknown' END
        FROM event AS begin JOIN job ON job.id = begin.job LEFT JOIN event AS finish ON finish.id = (
            SELECT min(id) FROM event WHERE event.job = begin.job AND event.id > begin.id AND from_state = 'RUNNING')
        WHERE begin.to_state = 'RUNNING' AND finish.data IS NOT '{"started":0}'""",
    """UPDATE event SET data = NULL
        WHERE from_state = 'RUNNING' AND (data GLOB '{"started":[0-9]*}' OR data GLOB '{"return_code":[-0-9]*}')
            OR to_state = 'RUNNING' AND data GLOB '{"lease":[0-9]*}' AND data NOT LIKE '%,%'""",
    """UPDATE event SET data = json_remove(data, '$.lease') WHERE to_state = 'RUNNING' AND data GLOB '{"lease":*'""",
)

#: STEPS[n] leads from version n + 1 to version n + 2. Spelled out: `schema` changes later, these steps do not.
STEPS: tuple[tuple[str, ...], ...] = (
    (  # retries; jobs to be prepared have a separate index
        "ALTER TABLE job ADD COLUMN max_retries INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN retry_codes TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE job ADD COLUMN retries INTEGER NOT NULL DEFAULT 0",
        "DROP INDEX job_startable",
        "DROP INDEX job_startable_of_workflow",
        f"CREATE INDEX job_unprepared ON job ({_BY_SHAPE}) WHERE {_UNPREPARED}",
        f"CREATE INDEX job_unprepared_of_workflow ON job (workflow, {_BY_SHAPE}) WHERE {_UNPREPARED}",
        f"CREATE INDEX job_runnable ON job ({_BY_SHAPE}) WHERE {_RUNNABLE}",
        f"CREATE INDEX job_runnable_of_workflow ON job (workflow, {_BY_SHAPE}) WHERE {_RUNNABLE}",
    ),
    (  # flags for the MPI start command; jobs planned for a launch; what the service reports about itself
        "ALTER TABLE job ADD COLUMN mpi_flags TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE lease ADD COLUMN note TEXT NOT NULL DEFAULT ''",
        f"CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, {_BY_SHAPE}) WHERE {_UNPREPARED} AND {_RESERVED}",
        f"CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, {_BY_SHAPE}) WHERE {_RUNNABLE} AND {_RESERVED}",
    ),
    (  # applications that are Python classes; batch jobs in parts; tags and moments that can be looked up
        "ALTER TABLE app RENAME COLUMN data TO definition",  # it was not used
        "ALTER TABLE app ADD COLUMN command_template TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE app ADD COLUMN parameters TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE app ADD COLUMN environ_vars TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE app ADD COLUMN handle_error TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE app ADD COLUMN handle_timeout TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE batch_job ADD COLUMN partitions TEXT NOT NULL DEFAULT '[]'",
        "ALTER TABLE batch_job ADD COLUMN optional_params TEXT NOT NULL DEFAULT '{}'",
        "CREATE TABLE tag (id INTEGER PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL, UNIQUE (key, value))",
        "CREATE TABLE job_tag (tag INTEGER NOT NULL, job INTEGER NOT NULL, PRIMARY KEY (tag, job)) WITHOUT ROWID",
        """INSERT INTO tag (key, value)
            SELECT DISTINCT t.key, t.value FROM job, json_each(job.tags) AS t WHERE job.tags <> '{}'""",
        """INSERT INTO job_tag (tag, job)
            SELECT tag.id, job.id FROM job, json_each(job.tags) AS t JOIN tag ON tag.key = t.key AND tag.value = t.value
            WHERE job.tags <> '{}'""",
        "DROP INDEX job_tagged",
        "CREATE INDEX event_time ON event (time)",
    ),
    (  # when a job runs, by its parents' ends; jobs held back; runs told to stop; what is known of batch jobs; the DB's id
        "ALTER TABLE job ADD COLUMN run_when TEXT NOT NULL DEFAULT 'all_finished'",
        "ALTER TABLE job ADD COLUMN exit_0_is_done_after_stop INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN start_after INTEGER",
        "ALTER TABLE job ADD COLUMN told_to_stop INTEGER",
        "ALTER TABLE app ADD COLUMN exit_0_is_done_after_stop INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE batch_job ADD COLUMN absent INTEGER",
        "ALTER TABLE batch_job ADD COLUMN cluster TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE batch_job ADD COLUMN tries INTEGER NOT NULL DEFAULT 1",
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
        "INSERT INTO meta VALUES ('id', lower(hex(randomblob(16))))",
        *_PARENTS_COUNTED_ANEW,
        "DROP INDEX job_unprepared",
        "DROP INDEX job_unprepared_of_workflow",
        "DROP INDEX job_runnable",
        "DROP INDEX job_runnable_of_workflow",
        "DROP INDEX job_unprepared_of_launch",
        "DROP INDEX job_runnable_of_launch",
        f"CREATE INDEX job_unprepared ON job ({_BY_SHAPE}) WHERE {_FREE_UNPREPARED}",
        f"CREATE INDEX job_unprepared_of_workflow ON job (workflow, {_BY_SHAPE}) WHERE {_FREE_UNPREPARED}",
        f"CREATE INDEX job_runnable ON job ({_BY_SHAPE}) WHERE {_FREE_RUNNABLE}",
        f"CREATE INDEX job_runnable_of_workflow ON job (workflow, {_BY_SHAPE}) WHERE {_FREE_RUNNABLE}",
        f"CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, {_BY_SHAPE}) "
        f"WHERE {_FREE_UNPREPARED} AND {_RESERVED}",
        f"CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, {_BY_SHAPE}) WHERE {_FREE_RUNNABLE} AND {_RESERVED}",
        "CREATE INDEX job_start_after ON job (start_after) WHERE start_after IS NOT NULL",
        "CREATE INDEX job_own_workdir ON job (workdir) WHERE substr(workdir, -8) <> substr(job_id, 1, 8)",
        "CREATE INDEX job_hex_name ON job (name) WHERE name > '' AND name NOT GLOB '*[^0-9A-Fa-f-]*'",
    ),
    (  # background processes that a run may leave; launchers that died while a job ran; who took a launcher for dead
        "ALTER TABLE lease ADD COLUMN taken_by TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE job ADD COLUMN keep_background INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE job ADD COLUMN launcher_deaths INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE app ADD COLUMN keep_background INTEGER NOT NULL DEFAULT 0",
        "DROP INDEX job_unprepared",
        "DROP INDEX job_unprepared_of_workflow",
        "DROP INDEX job_runnable",
        "DROP INDEX job_runnable_of_workflow",
        "DROP INDEX job_unprepared_of_launch",
        "DROP INDEX job_runnable_of_launch",
        f"CREATE INDEX job_unprepared ON job ({_BY_SHAPE}) WHERE {_UNSUSPECTED_UNPREPARED}",
        f"CREATE INDEX job_unprepared_of_workflow ON job (workflow, {_BY_SHAPE}) WHERE {_UNSUSPECTED_UNPREPARED}",
        f"CREATE INDEX job_runnable ON job ({_BY_SHAPE}) WHERE {_UNSUSPECTED_RUNNABLE}",
        f"CREATE INDEX job_runnable_of_workflow ON job (workflow, {_BY_SHAPE}) WHERE {_UNSUSPECTED_RUNNABLE}",
        f"CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, {_BY_SHAPE}) "
        f"WHERE {_UNSUSPECTED_UNPREPARED} AND {_RESERVED}",
        f"CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, {_BY_SHAPE}) "
        f"WHERE {_UNSUSPECTED_RUNNABLE} AND {_RESERVED}",
        "DROP INDEX job_unsettled",
        "CREATE INDEX job_unsettled ON job (state) WHERE lease IS NULL AND launcher_deaths < 2 "
        "AND state IN ('RUN_DONE', 'POSTPROCESSED', 'RUN_ERROR', 'RUN_TIMEOUT')",
        f"CREATE INDEX job_suspect ON job (launcher_deaths DESC) WHERE {_SUSPECT}",
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
    last INTEGER NOT NULL DEFAULT 0
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
        "CREATE INDEX large_write_part_of ON large_write_part (large_write)",
        "CREATE INDEX large_write_part_bounds ON large_write_part (first, last)",
    ),
    (  # the record of runs; jobs counted by workflow; causes of failures; what users changed; removed jobs
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
        *RUNS_FROM_EVENTS,
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
        "CREATE TABLE failure (id INTEGER PRIMARY KEY, cause TEXT NOT NULL UNIQUE, jobs INTEGER NOT NULL)",
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
        """CREATE TABLE trash (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    action INTEGER NOT NULL,
    time INTEGER NOT NULL,
    jobs TEXT NOT NULL,
    content BLOB NOT NULL
)""",
        "CREATE INDEX trash_action ON trash (action)",
        "CREATE INDEX trash_time ON trash (time)",
        "ALTER TABLE job ADD COLUMN failure INTEGER",
        "ALTER TABLE batch_job ADD COLUMN expected_start INTEGER",
        "ALTER TABLE batch_job ADD COLUMN polled INTEGER",
        f"""INSERT INTO workflow_count
            SELECT workflow, state, count(*) FROM job WHERE {_VISIBLE} GROUP BY workflow, state""",
        """INSERT INTO hidden_count
            SELECT w.id, job.workflow, job.state, count(*) FROM large_write w JOIN job ON job.id BETWEEN w.first AND w.last
            WHERE w.first > 0 GROUP BY w.id, job.workflow, job.state""",
        *CAUSES_OF_FAILURES,
        "CREATE INDEX job_failure ON job (failure) WHERE failure IS NOT NULL",
        # Changes that are not complete go on as those of one unknown user; what they remove is not kept.
        "INSERT INTO author (user, host, command) SELECT '', '', 'an older balsam' FROM large_write_part LIMIT 1",
        f"INSERT INTO action (time, author, kind) SELECT {_NOW}, id, 'modify' FROM author",
        """UPDATE large_write_part
            SET parameters = json_set(parameters, '$.by', (SELECT id FROM action), '$.is_kept', json('false'))""",
        "ALTER TABLE lease ADD COLUMN environment TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE batch_job ADD COLUMN environment TEXT NOT NULL DEFAULT '{}'",
    ),
    # 7 -> 8
    (  # unique keys; parents at other sites
        "ALTER TABLE job ADD COLUMN unique_key TEXT",
        "CREATE UNIQUE INDEX job_unique_key ON job (unique_key) WHERE unique_key IS NOT NULL",
        "ALTER TABLE large_write ADD COLUMN has_keys INTEGER NOT NULL DEFAULT 0",
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
        "CREATE INDEX imported_job_id ON imported (job_id) WHERE job_id IS NOT NULL",
        "CREATE TABLE call (job INTEGER PRIMARY KEY, context INTEGER NOT NULL, payload BLOB NOT NULL, result)",
        "CREATE TABLE call_context (id INTEGER PRIMARY KEY, content BLOB NOT NULL UNIQUE)",
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
        """CREATE TABLE watched_job (
    site INTEGER NOT NULL,
    job INTEGER NOT NULL,
    since INTEGER NOT NULL,
    told TEXT NOT NULL DEFAULT '',
    told_at INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (site, job)
) WITHOUT ROWID""",
        "CREATE INDEX remote_parent_followed ON remote_parent (site) WHERE is_followed = 1",
    ),
)


def version_of(cx: sqlite3.Connection) -> int:
    """Return the schema version of an open file; 0 for an empty one."""
    return int(cx.execute("PRAGMA user_version").fetchone()[0])


def migrate(cx: sqlite3.Connection) -> None:
    """Upgrade the file to this program's schema version. Runs inside the caller's write transaction.

    Raises:
        SchemaMismatch: a newer balsam_lite has written the file.
    """
    version = version_of(cx)
    if version > schema.VERSION:
        refuse_unready(version, "")
    if version == 0:
        statements: tuple[str, ...] = schema.STATEMENTS
    else:
        statements = tuple(statement for step in STEPS[version - 1 :] for statement in step)
    for statement in statements:
        cx.execute(statement)
    cx.execute(f"PRAGMA user_version = {schema.VERSION}")


def refuse_unready(version: int, directory: str) -> None:
    """Raise unless a file of that version can be used as it is: NotABalsamDB if it is empty, else SchemaMismatch."""
    if version > schema.VERSION:
        raise SchemaMismatch(
            f"The DB has schema version {version}; this balsam_lite knows versions up to {schema.VERSION}.",
            hint="Use the balsam_lite that wrote it, or a newer one.",
        )
    if version == 0:
        raise NotABalsamDB(f"The DB in {directory} has no tables.", hint=f"`balsam init {directory}` creates them.")
    if version < schema.VERSION:
        raise SchemaMismatch(
            f"The DB has schema version {version}; this balsam_lite works with version {schema.VERSION}.",
            hint=f"`balsam init {directory}` brings it up to date.",
        )
