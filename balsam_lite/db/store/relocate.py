"""Adapt the rows of a DB that was moved, or copied: paths in it, and the launchers and batch jobs of the original.

All functions run inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from ...core import states
from ..engine import binding
from ..engine.schema import sql_list
from . import batch_jobs, leases

#: Columns that may hold an absolute path below the DB's directory. Other user text is never changed.
_PATHS = (
    ("job", "user_workdir"), ("job", "workdir"), ("job", "stage_in_url"), ("job", "stage_out_url"), ("batch_job", "command"),
    ("batch_job", "log"),
)  # fmt: skip
#: Columns of an application with files that are run or read, possibly below the DB's directory.
_COMMANDS = ("executable", "preprocess", "postprocess", "envscript", "command_template", "definition")


def relocate(cx: sqlite3.Connection, old: str, new: str) -> int:
    """Replace the directory `old` by `new` at the start of stored paths. Return the number of changed paths."""
    changed = 0
    for table, column in _PATHS:
        changed += cx.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (new, len(old) + 1, old, len(old) + 1, f"{old}/"),
        ).rowcount
    return changed


def apps_with(cx: sqlite3.Connection, directory: str) -> list[str]:
    """Return the names of the applications that run or read a file below that directory."""
    where = " OR ".join(f"instr({column}, ?)" for column in _COMMANDS)
    query = f"SELECT name FROM app WHERE {where} ORDER BY id"
    return [row[0] for row in cx.execute(query, [f"{directory}/"] * len(_COMMANDS))]


_REASON = "this DB is a copy, and the original goes on"


class Freed(NamedTuple):
    """Numbers of the rows that were freed in a copy."""

    jobs: int
    launchers: int
    batch_jobs: int


def make_own(cx: sqlite3.Connection, now_us: int, is_in_place: bool) -> Freed:
    """Make a copy a separate DB: draw a new id, close the leases and batch jobs of the original, free the jobs.

    A backup that replaces the original (`is_in_place`) keeps its batch jobs, which will run launchers there. RUNNING jobs go to
    RESTART_READY, which does not count as a restart. Runs inside the caller's write transaction.
    """
    cx.execute("DELETE FROM lease WHERE kind = 'wait'")  # those processes wait for the original's jobs
    cx.execute("UPDATE large_write SET pid = 0")  # their owners go on in the original
    found = leases.open_leases(cx)
    jobs = sum(leases.reap(cx, lease, now_us, _REASON, counts_restart=False) for lease in found)
    binding.renew_id(cx)
    if is_in_place:
        return Freed(jobs, len(found), 0)
    cx.execute(
        f"""UPDATE job SET queued_launch_id = NULL
            WHERE queued_launch_id IS NOT NULL AND state NOT IN ({sql_list(states.END_STATES)})"""
    )
    return Freed(jobs, len(found), batch_jobs.disown(cx, "it belongs to the DB of which this one is a copy", now_us))
