"""From one schema version to the next: an ordered list of steps, each in the transaction that records it.

To change the schema: raise `schema.VERSION`, append to `STEPS` the statements that lead there from the version before, and
keep `schema` as the picture of the newest version. A test compares a migrated file with a fresh one.
"""

from __future__ import annotations

import sqlite3

from ..errors import NotABalsamDB, SchemaMismatch
from . import schema

_BY_SHAPE = "num_nodes, ranks_per_node, node_packing_count, gpus_per_rank, priority DESC, wall_time_minutes DESC"
_UNPREPARED = "lease IS NULL AND state IN ('CREATED', 'READY', 'STAGED_IN')"
_RUNNABLE = "lease IS NULL AND state IN ('PREPROCESSED', 'RESTART_READY')"
_RESERVED = "queued_launch_id IS NOT NULL"

#: STEPS[n] leads from version n + 1 to version n + 2. Spelled out: `schema` goes on, these stay as they were.
STEPS: tuple[tuple[str, ...], ...] = (
    (  # retries; jobs that are to be prepared have an index of their own
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
    (  # flags for the MPI start command; jobs planned for a launch; what the service says of itself
        "ALTER TABLE job ADD COLUMN mpi_flags TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE lease ADD COLUMN note TEXT NOT NULL DEFAULT ''",
        f"CREATE INDEX job_unprepared_of_launch ON job (queued_launch_id, {_BY_SHAPE}) WHERE {_UNPREPARED} AND {_RESERVED}",
        f"CREATE INDEX job_runnable_of_launch ON job (queued_launch_id, {_BY_SHAPE}) WHERE {_RUNNABLE} AND {_RESERVED}",
    ),
    (  # applications that are Python classes; batch jobs in parts; tags and moments that can be looked up
        "ALTER TABLE app RENAME COLUMN data TO definition",  # nobody used it
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
)


def version_of(cx: sqlite3.Connection) -> int:
    """The schema version of an open file; 0 for an empty one."""
    return int(cx.execute("PRAGMA user_version").fetchone()[0])


def migrate(cx: sqlite3.Connection) -> None:
    """Bring the file to this program's schema version. Runs inside the caller's write transaction.

    Raises:
        SchemaMismatch: a newer balsam_lite has written the file.
    """
    version = version_of(cx)
    refuse_newer(version)
    if version == 0:
        statements: tuple[str, ...] = schema.STATEMENTS
    else:
        statements = tuple(statement for step in STEPS[version - 1 :] for statement in step)
    for statement in statements:
        cx.execute(statement)
    cx.execute(f"PRAGMA user_version = {schema.VERSION}")


def refuse_unready(version: int, directory: str) -> None:
    """Raise unless a file of that version can be used as it is: NotABalsamDB if it is empty, else SchemaMismatch."""
    refuse_newer(version)
    if version == 0:
        raise NotABalsamDB(f"The DB in {directory} has no tables.", hint=f"`balsam init {directory}` creates them.")
    if version < schema.VERSION:
        raise SchemaMismatch(
            f"The DB has schema version {version}; this balsam_lite works with version {schema.VERSION}.",
            hint=f"`balsam init {directory}` brings it up to date.",
        )


def refuse_newer(version: int) -> None:
    """Raise SchemaMismatch if this program is too old for a file of that version."""
    if version > schema.VERSION:
        raise SchemaMismatch(
            f"The DB has schema version {version}; this balsam_lite knows versions up to {schema.VERSION}.",
            hint="Use the balsam_lite that wrote it, or a newer one.",
        )
